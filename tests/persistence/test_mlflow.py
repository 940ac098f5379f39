"""Models in MLflow, with the real package."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from persistence_helpers import LABELS, NUMBERS, SETTINGS, clean_table
from sklearn.pipeline import make_pipeline

from sknan import (
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
    tabular_pipeline,
)
from sknan.persistence import TRUSTED_TYPES

X = clean_table()
PAGE = Path(__file__).parents[2] / "docs/guide/files.md"
MODELS = {
    "pipeline": make_pipeline(
        NaNImputer(), SafeScaler(), StableNetClassifier(**SETTINGS)
    ),
    "ensemble": StableNetEnsembleRegressor(StableNetRegressor(**SETTINGS), 2),
    "tabular": tabular_pipeline(StableNetRegressor(**SETTINGS)),
}


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """Return MLflow, whose files are in a folder of the test."""
    package = pytest.importorskip("mlflow", reason="the package mlflow is missing")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    package.set_tracking_uri(f"file:{tmp_path}/runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on signatures and stores
        yield package


@pytest.mark.parametrize("kind", MODELS)
def test_mlflow_saves_and_loads_a_model(mlflow, tmp_path, kind):
    model = MODELS[kind].fit(X, LABELS if kind == "pipeline" else NUMBERS)
    folder = str(tmp_path / "saved")
    mlflow.sklearn.save_model(
        model,
        folder,
        skops_trusted_types=TRUSTED_TYPES,
        pip_requirements=["sknan[ship]"],  # to find them takes a minute
    )
    for load in (mlflow.sklearn.load_model, mlflow.pyfunc.load_model):
        np.testing.assert_array_equal(load(folder).predict(X), model.predict(X))


def test_the_code_of_the_guide_runs(mlflow):
    namespace = {}
    found = re.findall(r"^```\S*(?: ?python)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    for block in found:
        exec(block, namespace)
    assert namespace["served"].predict(X).shape == (len(X),)
