from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from sknan import SafeScaler, StableNetEnsembleRegressor, StableNetRegressor
from sknan.inspection import IntervalDisplay


def test_coverage_and_width_are_those_of_the_intervals():
    y = np.arange(100.0)
    ends = np.array([[-1.0, 49.0], [-1.0, 89.0]])
    intervals = np.repeat(ends[:, None], 100, axis=1)
    display = IntervalDisplay.from_predictions(y, intervals, coverage=[0.5, 0.8])
    assert display.observed.tolist() == [0.5, 0.9]
    assert display.width.tolist() == [50.0, 90.0]
    top, bottom = display.ax_
    assert top.get_lines()[-1].get_ydata().tolist() == [0.5, 0.9]
    assert bottom.get_lines()[-1].get_ydata().tolist() == [50.0, 90.0]
    message = (
        "intervals must have shape (2, 100, 2): lower and upper ends of each target "
        "for each coverage. Got (2, 99, 2)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        IntervalDisplay.from_predictions(y, intervals[:, 1:], coverage=[0.5, 0.8])


def test_models_and_pipelines_are_drawn_on_the_same_axes():
    X = np.random.default_rng(0).normal(size=(60, 2))
    net = StableNetRegressor(max_epochs=2, early_stopping=True)
    pipeline = make_pipeline(SafeScaler(), StableNetEnsembleRegressor(net))
    pipeline.fit(X, X)
    first = IntervalDisplay.from_estimator(pipeline, X, X, name="two targets")
    second = IntervalDisplay.from_estimator(
        pipeline, X, X, coverage=[0.5, 0.9], ax=first.ax_
    )
    assert second.figure_ is first.figure_
    names = [text.get_text() for text in second.ax_[0].get_legend().get_texts()]
    expected = ["chance, 60 targets", "two targets", "StableNetEnsembleRegressor"]
    assert sorted(names) == sorted(expected)
    message = (
        "IntervalDisplay needs an estimator with the method predict_interval, such as "
        "StableNetEnsembleRegressor, got Ridge."
    )
    with pytest.raises(TypeError, match=f"^{message}$"):
        IntervalDisplay.from_estimator(Ridge().fit(X, X), X, X)
