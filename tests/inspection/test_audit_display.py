"""Display of missing cells and scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sknan import AuditDisplay, audit


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_an_audit_shows_shares_and_scales():
    frame = pd.DataFrame({"a$b$": np.arange(1.0, 41.0), "t": list("xy") * 20})
    frame.loc[:9, "a$b$"] = np.nan
    frame.loc[10, "a$b$"] = np.inf
    display = AuditDisplay.from_data(frame)
    shares, scales = display.ax_
    assert labels_of(shares) == ["missing", "infinite"]
    widths = [bar.get_width() for bar in shares.patches]
    np.testing.assert_allclose(widths, [0.25, 0.0, 1 / 40, 0.0])
    texts = [text.get_text() for text in scales.texts]
    assert texts == ["text, 2 distinct"]
    assert shares.get_yticklabels()[0].get_text() == r"✖ a\$b\$"
    display.figure_.canvas.draw()


def test_text_beside_the_longest_bar_fits():
    town = ["unknown"] * 10 + [None] * 20 + ["Rome"] * 15 + ["Oslo"] * 15
    display = AuditDisplay.from_data(pd.DataFrame({"town": town}))
    display.figure_.canvas.draw()
    shares = display.ax_[0]
    (text,) = shares.texts
    assert text.get_text() == "0.33  sentinel unknown"
    assert text.get_window_extent().x1 < shares.bbox.x1


def test_all_values_of_columns_of_very_different_scales_are_visible():
    frame = pd.DataFrame(
        {"s": np.linspace(1e-3, 2e-3, 30), "h": np.geomspace(1, 1e30, 30)}
    )
    frame["n"] = -frame["h"]
    low, high = AuditDisplay.from_data(frame).ax_[1].get_xlim()
    assert low < -1e30
    assert high > 1e30


def test_a_table_without_missing_cells_has_an_empty_first_panel():
    shares, _ = AuditDisplay.from_data(pd.DataFrame({"a": [1.0, 2.0, 3.0]})).ax_
    assert shares.texts[-1].get_text() == "no cell is missing"
    assert not len(shares.get_yticks())


def test_the_worst_columns_of_a_wide_table_are_drawn():
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 40)))
    table.loc[:3, 37] = np.nan
    display = AuditDisplay.from_audit(audit(table), max_columns=5)
    names = [label.get_text() for label in display.ax_[0].get_yticklabels()]
    assert len(names) == 5
    assert "✖ 37" in names
    assert "35 columns with fewer findings are not shown" in display.ax_[1].get_xlabel()


def test_a_table_without_columns_is_refused():
    with pytest.raises(ValueError, match="no columns"):
        AuditDisplay.from_data(pd.DataFrame(index=range(3)))


@pytest.mark.parametrize("number", [0, 2.5, np.ones(2), "all"])
def test_a_number_of_columns_below_1_is_refused(number):
    table = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="max_columns") as caught:
        AuditDisplay.from_data(table, max_columns=number)
    assert str(caught.value) == (
        "The 'max_columns' parameter of AuditDisplay must be an integer of at least 1, "
        f"got {number!r}."
    )
