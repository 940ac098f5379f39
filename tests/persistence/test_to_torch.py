"""Exported modules against the models that they are made from."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
import torch
from persistence_helpers import (
    LABELS,
    MODELS,
    NUMBERS,
    SETTINGS,
    classifier,
    clean_table,
    log_network,
    model_of,
    predicted,
    raw_table,
    table_of_texts,
    table_pipeline,
    text_pipeline,
    unusual_rows,
    unusual_table,
)
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNet
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    GuardedNetRegressor,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
    tabular_pipeline,
)
from sknan.persistence import to_onnx, to_torch

pytestmark = pytest.mark.filterwarnings(
    "ignore::sknan.DivergenceWarning", "ignore:Non-finite output of aten.log"
)


def rows_of(module, table):
    """Return a table as numbers, with its categories as codes."""
    rows = np.full((len(table), module.n_features_in_), np.nan)
    for j, name in enumerate(module.feature_names_in_):
        codes = module.categories_.get(name)
        cells = table[name].tolist()
        if codes is not None:
            cells = [-1 if pd.isna(cell) else codes.get(cell, 99) for cell in cells]
        rows[:, j] = cells
    return torch.from_numpy(rows)


def valid_rows(dtype):
    """Return rows of which the imputer with a marker refuses none."""
    rows = unusual_rows(dtype=dtype)
    # scikit-learn's check of finite values warns if their sum overflows.
    return np.where(np.abs(rows) < 1e30, rows, rows.dtype.type(-1))


# -- equal predictions ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_a_module_predicts_as_its_model(name, dtype):
    model = model_of(name)
    X = valid_rows(dtype) if name == "marker" else unusual_rows(dtype=dtype)
    expected = predicted(model, X)
    found = to_torch(model)(torch.from_numpy(X)).numpy()
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.isfinite(found).all()
    # In float32 the scaler of the model rounds, and that of the module does not.
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
    is_rounded = dtype == "float32" or "guarded" in name or name == "indicator"
    assert is_rounded or (found == expected).all()


def test_the_labels_of_the_output_are_those_of_the_model():
    assert to_torch(model_of("ensemble")).classes_ == ["no", "yes"]
    assert to_torch(model_of("quantiles")).classes_ is None


def test_rows_that_predict_refuses_are_nan():
    net = StableNetRegressor(**SETTINGS).fit(clean_table(), NUMBERS)
    rows = clean_table(5)
    rows[[0, 1, 2], [0, 1, 2]] = np.nan, np.inf, 1e300
    found = to_torch(net)(torch.from_numpy(rows)).numpy()
    assert np.isnan(found).tolist() == [True, True, True, False, False]
    assert (found[3:] == net.predict(rows[3:])).all()


def test_columns_in_raw_units_are_standardized():
    X = clean_table()
    X[:, 1] = 1.7e9 + 1e4 * X[:, 1]
    net = StableNetClassifier(**SETTINGS).fit(X, LABELS)
    found = to_torch(net)(torch.from_numpy(X)).numpy()
    assert (found == net.predict_proba(X)).all()


def test_rows_that_need_repaired_operations_are_repaired():
    net, X = log_network(), clean_table()
    X[::3, 1], X[::5, 2] = -1.0, 0.0
    module = to_torch(net)
    found = module(torch.from_numpy(X)).numpy()
    assert np.isfinite(found).all()
    assert (found == net.predict_proba(X)).all()


def test_a_refused_row_has_no_effect_on_the_repair_of_another():
    class Saturating(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

        def forward(self, X):
            return self.head(X * X / (1 + X * X))

    net = StableNetClassifier(Saturating(), max_epochs=1, random_state=0)
    net.fit(clean_table(), LABELS)
    rows = np.vstack([np.full(4, 1e30), np.full(4, np.nan)])
    with pytest.warns(UserWarning, match="keep each operation inside"):
        expected = net.predict_proba(rows[:1])
    assert (to_torch(net)(torch.from_numpy(rows)).numpy()[:1] == expected).all()


def test_a_network_that_works_in_place_leaves_the_input_unchanged():
    layers = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    net = StableNetClassifier(layers, max_epochs=1).fit(clean_table(), LABELS)
    rows = torch.full((2, 4), -1.0)
    to_torch(net)(rows)
    assert (rows == -1.0).all()


def test_a_raw_table_is_given_as_numbers_and_codes():
    pipeline, table = table_pipeline(), unusual_table()
    module = to_torch(pipeline)
    names = ["age", "income", "city", "linear", "probabilities", "sex"]
    assert module.feature_names_in_ == names
    cities = {"Oslo": 0, "Paris": 1, "Rome": 2, " Rome": 2, "?": -1}
    seen = {
        name: {text: codes[text] for text in {*cities, "f", "m"} & set(codes)}
        for name, codes in module.categories_.items()
    }
    assert seen == {"city": cities, "sex": {"f": 0, "m": 1, "?": -1}}
    found = module(rows_of(module, table)).numpy()
    np.testing.assert_allclose(found, pipeline.predict_proba(table), atol=1e-6)


def test_every_text_of_the_categories_is_read_as_by_the_pipeline():
    pipeline = text_pipeline()
    module = to_torch(pipeline)
    codes = module.categories_
    assert codes["version"].items() >= {"2": 0, "2.0": 0, "3": 1, "NaN": -1}.items()
    assert codes["flag"].items() >= {"true": 2, "TRUE": 2, "1": 2, "0": 0}.items()
    assert codes["letter"].items() >= {"": -1, "?": -1, "N/A": -1, "x": 0}.items()
    words = ("na", "UNKNOWN", "Unknown", "Not Available", "nan", "NULL", "#N/A", "-")
    assert {codes["letter"][word] for word in words} == {-1}
    assert codes["country"]["NA"] == 3  # Namibia
    assert "na" not in codes["country"]
    table = table_of_texts(codes)
    found = module(rows_of(module, table)).numpy()
    np.testing.assert_allclose(found, pipeline.predict(table), rtol=1e-6)


@pytest.mark.parametrize("name", [*MODELS, "repaired"])
def test_the_output_of_no_rows_is_empty(name):
    module = to_torch(log_network() if name == "repaired" else model_of(name))
    one = module(torch.ones(1, 4, dtype=torch.float64))
    none = module(torch.ones(0, 4, dtype=torch.float64))
    assert (none.shape, none.dtype) == ((0, *one.shape[1:]), one.dtype)


def test_a_module_moves_and_trains_without_an_effect_on_the_model():
    model = model_of("classes")
    before = model.predict_proba(clean_table())
    module = to_torch(model).train().double()
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    assert (model.predict_proba(clean_table()) == before).all()


# -- torch.export, torch.jit.trace, torch.compile ------------------------------------

ANY_NUMBER = ({0: torch.export.Dim.DYNAMIC},)


def exported(module, rows):
    return torch.export.export(module, (rows,), dynamic_shapes=ANY_NUMBER).module()


def compiled(module, rows):
    # The default backend calls a C++ compiler, which takes a minute.
    return torch.compile(module, dynamic=True, backend="eager")


def traced(module, rows):
    return torch.jit.trace(module, (rows,))


def loaded(module, rows):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("repaired", exported),
        ("repaired", traced),
        ("quantiles", traced),
        ("quantiles", loaded),
        ("classes", compiled),
    ],
)
def test_a_module_goes_through_the_compilers_of_torch(name, way):
    module = to_torch(log_network() if name == "repaired" else model_of(name))
    rows = torch.from_numpy(unusual_rows(40))
    expected = module(rows)
    found = way(module, rows[:3].clone())(rows)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-6)


# -- refusals ------------------------------------------------------------------------


def refusal_of(model, export=to_torch):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - compared as a whole
        export(model)
    return str(refusal.value)


def search_of(model, step="net"):
    return BatchedGridSearchCV(model, {f"{step}__lr": [1e-3]}, cv=2)


@pytest.mark.parametrize(
    ("wrap", "inner", "code"),
    [
        (lambda model: model, lambda model: model, "model"),
        (search_of, lambda model: model.best_estimator_, "model.best_estimator_"),
        (
            lambda model: make_pipeline(search_of(model)),
            lambda model: model[-1].best_estimator_,
            "model[-1].best_estimator_",
        ),
    ],
)
def test_columns_of_dates_and_text_are_refused_by_name(wrap, inner, code):
    table = raw_table()
    table["joined"] = pd.date_range("2024-01-01", periods=len(table))
    table["remark"] = [f"remark {i}" for i in range(len(table))]
    pipeline = tabular_pipeline(StableNetClassifier(**SETTINGS), max_levels=100)
    model = wrap(pipeline).fit(table, np.arange(len(table)) % 2)
    message = (
        "Columns 'joined' (dates), 'remark' (text of many categories) cannot be "
        "exported: their encoders read dates and words, not numbers. Transform tables "
        f"with {code}[:2].transform(X), and export the steps after it, "
    )
    assert refusal_of(model) == f"{message}to_torch({code}[2:])."
    in_onnx = refusal_of(model, lambda model: to_onnx(model, "unwritten.onnx"))
    assert in_onnx == f"{message}to_onnx({code}[2:], path)."
    pipeline = inner(model)
    encoded = pipeline[:2].transform(table).to_numpy(dtype=np.float64, copy=True)
    found = to_torch(pipeline[2:])(torch.from_numpy(encoded)).numpy()
    np.testing.assert_allclose(found, model.predict_proba(table), atol=1e-6)


@pytest.mark.parametrize("is_searched", [False, True])
def test_other_steps_are_refused_by_name(is_searched):
    steps = (StandardScaler(), StableNetClassifier(**SETTINGS))
    if is_searched:
        steps = (search_of(make_pipeline(*steps), "stablenetclassifier"),)
    model = make_pipeline(NaNImputer(), *steps).fit(clean_table(), LABELS)
    cells, code, n = "X", "model", 2
    if is_searched:
        cells, code, n = "model[:-1].transform(X)", "model[-1].best_estimator_", 1
    assert refusal_of(model) == (
        "StandardScaler, step 1 of the pipeline, cannot be exported: only NaNImputer, "
        "SafeScaler and the first two steps of tabular_pipeline can. Transform tables "
        f"with {code}[:{n}].transform({cells}), and export the steps after it, "
        f"to_torch({code}[{n}:])."
    )
    X = clean_table()
    if is_searched:
        scaled = model[-1].best_estimator_[:1].transform(model[:-1].transform(X))
        rest = model[-1].best_estimator_[1:]
    else:
        scaled, rest = model[:2].transform(X), model[2:]
    found = to_torch(rest)(torch.from_numpy(scaled)).numpy()
    assert (found == model.predict_proba(X)).all()


def test_other_models_are_refused():
    model = make_pipeline(NaNImputer(), LinearRegression())
    assert refusal_of(model) == (
        "Only networks of sknan can be exported, alone or at the end of a Pipeline, "
        "but the model ends in LinearRegression."
    )
    assert "NeuralNet" in refusal_of(NeuralNet(nn.Linear, nn.MSELoss))
    with pytest.raises(NotFittedError, match=re.escape("not fitted yet")):
        to_torch(StableNetClassifier())


def test_a_search_at_the_end_of_a_pipeline_is_exported():
    steps = make_pipeline(SafeScaler(), classifier())
    grid = {"stablenetclassifier__lr": [1e-3, 1e-2]}
    model = make_pipeline(NaNImputer(), BatchedGridSearchCV(steps, grid, cv=2))
    model.fit(clean_table(), LABELS)
    rows = unusual_rows(20)
    module = to_torch(model)
    np.testing.assert_allclose(
        module(torch.from_numpy(rows)), model.predict_proba(rows), atol=1e-6
    )
    assert module.classes_ == ["no", "yes"]


def test_a_search_without_a_best_estimator_is_refused():
    search = BatchedGridSearchCV(StableNetClassifier(**SETTINGS), {"lr": [0.1]}, cv=2)
    message = (
        "This BatchedGridSearchCV instance is not fitted yet. Call 'fit' with "
        "appropriate arguments before using this estimator."
    )
    with pytest.raises(NotFittedError, match=f"^{re.escape(message)}$"):
        to_torch(search)
    search.set_params(refit=False).fit(clean_table(), LABELS)
    assert refusal_of(search) == (
        "BatchedGridSearchCV was fitted with refit=False and has no best_estimator_ to "
        "export. Fit the search with refit=True."
    )


@pytest.mark.parametrize("name", ["classes", "numbers", "search"])
@pytest.mark.parametrize("shape", [(4,), (3, 1), (2, 2, 4), ()])
def test_a_tensor_of_another_shape_is_refused(name, shape):
    rows = torch.ones(shape)
    assert refusal_of(rows, to_torch(model_of(name))) == (
        f"The model takes a tensor of shape (n_samples, 4), got {shape}. Pass "
        "X.reshape(-1, 4) if these are the values of rows in order."
    )


def test_an_imputer_of_text_is_refused():
    X = np.array([["1", "2"], ["2", "3"]] * 5, dtype=object)
    net = StableNetClassifier(**SETTINGS)
    model = make_pipeline(NaNImputer(strategy="most_frequent"), net)
    model.fit(X, [0, 1] * 5)
    assert refusal_of(model) == (
        "NaNImputer(strategy='most_frequent') was fitted on a table of dtype object, "
        "which cannot be exported. Fit it on numbers, such as X.astype(float)."
    )


def test_a_net_with_an_inference_of_its_own_is_refused():
    class Halved(GuardedNetRegressor):
        def infer(self, x, **params):
            return super().infer(x, **params) / 2

    X = clean_table().astype("float32")
    net = Halved(nn.Linear, module__in_features=4, module__out_features=1, verbose=0)
    net.initialize()
    assert refusal_of(net.fit(X, X[:, :1])) == (
        "Halved overrides infer, which cannot be exported. Export its module by "
        "itself: net.module_."
    )
