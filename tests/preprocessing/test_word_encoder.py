"""Encoding of text by its most frequent words."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sknan import StableNetRegressor, tabular_pipeline
from sknan.preprocessing._word_encoder import WordEncoder


def encoded(cells, later=None, **options):
    encoder = WordEncoder(**options)
    fitted = encoder.fit_transform(pd.Series(cells, name="t"))
    if later is None:
        return fitted
    return encoder.transform(pd.Series(later, name="t"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Senior Engineer", ["engineer", "senior"]),
        ("senior  ENGINEER, engineer", ["engineer", "senior"]),
        ("C85 B-12", ["12", "85", "b", "c"]),
        ("Müller_Straße", ["müller", "strasse"]),
        ("漢字 abc", ["abc", "字", "漢"]),
        ("***", ["***"]),
        ("", [""]),
        (None, ["nan"]),
    ],
)
def test_words_are_runs_of_letters_or_digits_or_single_ideographs(text, words):
    assert list(encoded([text])) == [f"t_{word}" for word in words]


def test_the_most_frequent_words_are_kept_and_counted_once_a_row():
    out = encoded(["a a a", "b", "b c", "c", "d", None], n_words=2)
    assert list(out) == ["t_b", "t_c"]
    assert out["t_b"].tolist() == [0, 1, 1, 0, 0, 0]
    assert out["t_c"].tolist() == [0, 0, 1, 1, 0, 0]
    # Of equally frequent words, the first in the alphabet.
    assert list(encoded(["b", "a", "c"], n_words=2)) == ["t_a", "t_b"]


def test_unknown_words_are_zeros_and_missing_cells_a_word_if_fit_had_them():
    out = encoded(["a b", "b", None], later=["new", "B", None, "a new"])
    assert list(out) == ["t_a", "t_b", "t_nan"]
    assert out.to_numpy().tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert encoded(["a", "b"], later=[None]).to_numpy().tolist() == [[0, 0]]


@pytest.mark.parametrize("n", [127, 128, 200])
def test_missing_cells_beside_many_distinct_texts(n):
    cells = pd.Series([f"w{i:03d}" for i in range(n)] + [None] * 3, name="t")
    for column in (cells, cells.astype("category")):
        out = WordEncoder(n_words=2).fit_transform(column)
        assert list(out) == ["t_nan", "t_w"]
        assert out["t_nan"].to_numpy().nonzero()[0].tolist() == [n, n + 1, n + 2]


def table(n=240):
    rng = np.random.default_rng(0)
    jobs = np.array(["teacher", "Nurse", "engineer", "driver"])[rng.integers(0, 4, n)]
    title = [f"{job} {rng.integers(10**6)}" for job in jobs]
    return pd.DataFrame({"title": title, "x": rng.normal(size=n)}), jobs


def test_a_network_learns_from_words_among_texts_that_are_all_distinct():
    X, jobs = table()
    y = (jobs == "Nurse") * 2.0 + (jobs == "driver") - X["x"].to_numpy()
    net = StableNetRegressor(max_epochs=30, lr=1e-2, random_state=0)
    pipeline = tabular_pipeline(net, max_levels=100).fit(X[:160], y[:160])
    assert {"title_nurse", "title_driver"} <= set(pipeline[:2].get_feature_names_out())
    assert pipeline.score(X[160:], y[160:]) > 0.8
