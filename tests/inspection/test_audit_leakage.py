"""Columns that reveal the target."""

from __future__ import annotations

import numpy as np
import pandas as pd
from audit_helpers import N, kinds_of, normal, rng


def test_missing_cells_that_depend_on_the_target_are_found():
    y = normal()
    x = rng().permutation(y)
    related = x.copy()
    related[(y > 0) & (np.arange(N) % 3 > 0)] = np.nan
    assert kinds_of({"x": related}, y)["missing goes with the target"].startswith(
        "'x' (median y"
    )
    labels = np.where(y > 0, "up", "down")
    assert kinds_of({"x": related}, labels)["missing goes with the target"] == (
        "'x' (in 69 % of 'up', 0 % of others)."
    )
    revealed = np.where(y > 0, np.nan, x)
    assert kinds_of({"x": revealed}, labels)["missing tells the target"] == (
        "'x' (in 100 % of 'up', 0 % of others)."
    )
    assert "missing tells the target" in kinds_of({"x": revealed}, y)
    unrelated = np.where(np.arange(N) % 3 == 0, np.nan, x)
    assert list(kinds_of({"x": unrelated}, labels)) == ["missing"]
    assert list(kinds_of({"x": unrelated}, y)) == ["missing"]


def test_a_column_that_is_missing_where_the_target_is_may_be_derived_from_it():
    y = normal()
    y[:40] = np.nan
    frame = pd.DataFrame({"tax": np.where(np.isnan(y), np.nan, rng().random(N))})
    assert kinds_of(frame, y) == {
        "missing": "'tax' (13 %).",
        "missing with the target": "'tax' (both are missing in 100 % of the rows "
        "where either is).",
    }


def test_a_copy_of_the_target_is_found():
    y = normal()
    frame = pd.DataFrame({"x": rng().permutation(y), "y": y, "exp": np.exp(y)})
    assert kinds_of(frame, y)["copy of the target"] == (
        "2 columns: 'y' (equal to it), 'exp' (in the same order)."
    )
    labels = np.where(y > 0, "up", "down")
    frame = pd.DataFrame({"x": rng().permutation(y), "up": y > 0})
    assert kinds_of(frame, labels) == {
        "copy of the target": "'up' (one value for each class)."
    }
