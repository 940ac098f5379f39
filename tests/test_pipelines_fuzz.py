"""Columns of every odd kind, and of another kind at predict time."""

import datetime
import fractions

import numpy as np
import pandas as pd
import pytest

from sknan.pipelines import tabular_pipeline

N = 40

COLUMNS = {
    "bytes": [b"a", b"b"] * 20,
    "period": pd.period_range("2020-01", periods=N, freq="M"),
    "interval": pd.interval_range(0, N),
    "time": [datetime.time(1)] * N,
    "date": [datetime.date(2020, 1, 1)] * N,
    "far date": [datetime.date(9999, 12, 31)] * N,
    "categories of integers": pd.Categorical([0, 1] * 20),
    "categories of dates": pd.Categorical(pd.date_range("2020", periods=N)),
    "fractions": [fractions.Fraction(1, 3)] * N,
    "blank": [""] * N,
    "float16": np.arange(N, dtype="f2"),
    "huge": [10**400, -(10**400)] * 20,
    "unsigned": np.full(N, 2**64 - 1, dtype="u8"),
    "sparse": pd.arrays.SparseArray(np.zeros(N)),
    "objects": [object()] * N,
    "two zones": [pd.Timestamp("2020", tz="UTC"), pd.Timestamp("2020")] * 20,
    "own text": [f"{i} {i * 7}" for i in range(N)],
    "no date": [pd.NaT] * N,
    "string": pd.array(["a", None] * 20, dtype="string"),
    "nullable": pd.array([1.5, None] * 20, dtype="Float64"),
    "flags and words": [True, "x"] * 20,
    "durations": pd.to_timedelta([1, None] * 20, unit="s"),
    "two formats": ["2020-01-05 10:00", "31/12/2020"] * 20,
}


@pytest.mark.parametrize("name", COLUMNS)
def test_any_column_gives_finite_predictions_whatever_it_becomes(name):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({name: COLUMNS[name], "number": rng.normal(size=N)})
    model = tabular_pipeline(random_state=0).set_params(net__estimator__max_epochs=1)
    model.fit(X, rng.integers(0, 2, size=N))
    assert np.isfinite(model.predict_proba(X)).all()
    for other in ("word", 1.5, pd.Timestamp("2020"), None):
        changed = X.assign(**{name: other})
        assert np.isfinite(model.predict_proba(changed)).all()
