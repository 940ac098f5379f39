"""Tables with faults, and short forms of their findings, for the tests of audit."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sknan import audit

N = 300


def rng():
    return np.random.default_rng(0)


def normal(n=N):
    return rng().normal(size=n)


def objects(*cells, n=N):
    column = np.empty(n, dtype=object)
    column[:] = (list(cells) * n)[:n]
    return column


def kinds_of(X, y=None, where="X", **options):
    """Return the evidence of each finding by its kind."""
    found = audit(X, y, **options)
    return {f.kind: f.evidence for f in found if f.where == where}


def found_in(cells):
    """Return the evidence by kind for a column next to one without faults."""
    # pandas 2 does not convert an array with integers beyond float64.
    column = pd.Series(cells, dtype=getattr(cells, "dtype", None))
    frame = pd.DataFrame({"x": column, "other": normal(len(cells))})
    return {f.kind: f.evidence for f in audit(frame) if f.columns != ("other",)}


def damaged():
    """Return a table with faults of each severity."""
    frame = pd.DataFrame(
        {
            "age": rng().integers(18, 90, size=N).astype(float),
            "pay": rng().lognormal(3, 1, size=N),
            "rate": [f"{value:.1f}" for value in normal()],
            "town": rng().choice(["Rome", "Oslo", "?"], size=N),
        }
    )
    frame.loc[:29, "age"] = -999
    frame.loc[40:59, "age"] = np.nan
    frame.loc[3, "pay"] = np.inf
    frame.loc[4, "pay"] = 1e200
    frame["wage"] = frame["pay"]
    return frame
