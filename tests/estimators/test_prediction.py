"""Prediction: batches that fit into memory, and the short path of validation."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from sknan import (
    NaNImputer,
    NonFiniteTrainingError,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan._engine.fitted_network import _ROWS_PER_FORWARD
from sknan._utils.validation import already_valid_array

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
VALUES = X[:, 0] + 2 * X[:, 1]
LABELS = (VALUES > 0).astype(int)
MANY = RNG.normal(size=(5000, 3)).astype(np.float32)
NAMES = ["a", "b", "c"]

ESTIMATORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(
    ("Estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"]
)


def regressor(module=None, **params):
    return StableNetRegressor(module, max_epochs=1, random_state=0, **params)


class Widening(nn.Module):
    """Module that repeats its input and records the number of rows in each call."""

    def __init__(self, n_features_in, n_copies=1):
        super().__init__()
        self.n_copies = n_copies
        self.linear = nn.Linear(n_features_in, 1)
        self.rows = []

    def forward(self, X):
        self.rows.append(len(X))
        repeated = X[:, None, :].repeat(1, self.n_copies, 1)
        return self.linear(X) + 0 * repeated.mean(dim=1)[:, :1]


# -- batches -------------------------------------------------------------------------


@both
@pytest.mark.parametrize("width", [8, 2048])
def test_several_batches_have_the_predictions_of_one(Estimator, y, width):
    model = Estimator(module__width=width, max_epochs=1, random_state=0).fit(X, y)
    method = "predict_proba" if Estimator is StableNetClassifier else "predict"
    whole = getattr(model, method)(MANY)
    model._fitted.batch_size = len(
        MANY
    )  # batches of this size are possible in training
    at_once = getattr(model, method)(MANY)
    np.testing.assert_allclose(whole, at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_copies", [1, 1000])
def test_all_rows_are_predicted_in_batches_of_a_limited_size(n_copies):
    model = regressor(Widening, module__n_copies=n_copies).fit(X, VALUES)
    rows = model.net_.module_.rows
    rows.clear()
    model.predict(np.tile(MANY, (200, 1)))
    assert sum(rows) == 200 * len(MANY)
    assert max(rows) == _ROWS_PER_FORWARD


@pytest.mark.parametrize(("width", "limit"), [(8, 2048), (512, 2048), (2048, 512)])
def test_the_widest_linear_layer_limits_the_rows_of_a_batch(width, limit):
    module = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 1))
    net = regressor(module).fit(X, VALUES).net_
    assert net._rows_per_forward(torch.from_numpy(MANY)) == limit


def test_batches_of_prediction_are_at_least_as_large_as_in_training():
    model = regressor(Widening, batch_size=3000).fit(X, VALUES)
    rows = model.net_.module_.rows
    for n_rows, expected in ((2500, [2500]), (3000, [3000]), (3001, [3000, 1])):
        rows.clear()
        model.predict(MANY[:n_rows])
        assert rows == expected


def test_non_finite_rows_are_counted_over_all_batches():
    class Overflows(Widening):
        def forward(self, X):
            huge = torch.where(X[:, :1] > 100, 1e38, 0.0)
            return super().forward(X) + huge.double().exp().float()

    model = regressor(Overflows, module__n_copies=1000, on_nonfinite="raise")
    model.fit(X, VALUES)
    table = MANY.copy()
    table[[700, 4900], 0] = 1000.0
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.predict(table)
    assert caught.value.report.rows == (700, 4900)
    assert re.sub(r"\(.*?:\d+\)", "(line)", str(caught.value)) == (
        "Non-finite output of aten.exp (line). The network's output is not finite for "
        "2 of 5000 rows, although X is finite; aten.exp was given 0 to 1e+38. To "
        "blame: rows 700, 4900, column 0. Clean these columns, or use "
        "sknan.functional.softplus, which grows like its argument, or bound the "
        "exponent."
    )


def test_a_row_in_a_later_batch_is_repaired():
    class Root(Widening):
        def forward(self, X):
            return super().forward(X) + X[:, :1].sqrt() ** 0.0001

    positive = np.abs(X) + 1
    model = regressor(Root, module__n_copies=1000).fit(positive, VALUES)
    table = np.abs(MANY) + 1
    table[4900, 0] = -1.0
    with pytest.warns(UserWarning, match="1 of 5000 rows.*row 4900, column 0"):
        predicted = model.predict(table)
    assert np.isfinite(predicted).all()


# -- the network ---------------------------------------------------------------------


@both
def test_a_submodule_in_training_mode_makes_no_difference(Estimator, y):
    model = Estimator(module__dropout=0.5, max_epochs=1, random_state=0).fit(X, y)
    before = model.predict(X)
    model.net_.module_.hidden[2].train()
    np.testing.assert_array_equal(model.predict(X), before)


def _double_weights(module):
    with torch.no_grad():
        module.head.weight.mul_(2.0)


def _replace_weights(module):
    module.head.weight = nn.Parameter(module.head.weight.detach() * 3.0)


def _replace_data(module):
    module.head.weight.data = module.head.weight.data * 3.0


def _remove_bias(module):
    module.head.bias = None


def _replace_layer(module):
    module.hidden[1] = nn.Tanh()


def _add_hook(module):
    module.hidden[0].register_forward_hook(lambda part, args, output: output + 1.0)


def _replace_forward(module):
    module.head.forward = lambda X: X[:, :1] + 1.0


@pytest.mark.parametrize(
    "change",
    [
        _double_weights,
        _replace_weights,
        _replace_data,
        _remove_bias,
        _replace_layer,
        _add_hook,
        _replace_forward,
    ],
)
def test_a_few_rows_are_predicted_by_the_module_as_it_is_at_the_moment(change):
    model = regressor(module__width=8).fit(X, VALUES)
    model.predict(X[:1])
    before = model.predict(X[:1])  # by the arrays that the first call has prepared
    assert model._fitted._row_chain is not None
    module = model.net_.module_
    change(module)
    after = model.predict(X[:1])
    assert after != before
    with torch.no_grad():
        output = module(torch.from_numpy(X[:1])).double().numpy().ravel()
    expected = output * model.target_scale_ + model.target_mean_
    for predicted in (after, model.predict(X[:1]), model.predict(X[:2])[:1]):
        # NumPy and torch add the products of a row in another order.
        np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_one_row_that_overflows_is_repaired():
    model = regressor(module__width=8).fit(X, VALUES)
    with torch.no_grad():
        model.net_.module_.hidden[0].weight.mul_(1e30)
    model.predict(X[:1])
    with pytest.warns(UserWarning, match="not finite for 1 of 1 rows") as warned:
        assert np.isfinite(model.predict(np.full((1, 3), 1e30, np.float32))).all()
    assert len(warned) == 1


@both
def test_the_tags_of_a_subclass_are_its_own(Estimator, y):
    class Mine(Estimator):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.target_tags.multi_output = tags.input_tags.sparse = True
            return tags

    assert get_tags(Mine()).input_tags.sparse
    assert not get_tags(Estimator()).input_tags.sparse


def test_changed_statistics_of_a_fitted_step_are_used():
    gaps = X.copy()
    gaps[0] = np.nan
    imputer, scaler = NaNImputer().fit(gaps), SafeScaler().fit(X)
    imputer.transform(gaps[:1]), scaler.transform(X[:1])
    imputer.statistics_[0] = 7.0
    scaler.center_[1] = X[0, 1]
    assert imputer.transform(gaps[:1])[0, 0] == 7.0
    assert scaler.transform(X[:1])[0, 1] == 0.0


def test_predictions_do_not_share_memory_with_the_network():
    class Buffered(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("kept", torch.full((60, 2), 0.5))

        def forward(self, X):
            return self.linear(X).softmax(1) if self.training else self.kept[: len(X)]

    model = StableNetClassifier(Buffered, criterion="probability_nll", max_epochs=1)
    model.fit(X, LABELS)
    model.predict_proba(X)[:] = 7.0
    np.testing.assert_allclose(model.predict_proba(X), 0.5)


@both
def test_an_estimator_is_not_fitted_after_a_refused_fit(Estimator, y):
    model = Estimator()
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 0, X, np.nan), y)
    for call in (check_is_fitted, lambda model: model.predict(X)):
        with pytest.raises(NotFittedError) as caught:
            call(model)
        assert str(caught.value) == (
            f"This {Estimator.__name__} instance is not fitted yet. Call 'fit' with "
            "appropriate arguments before using this estimator."
        )


# -- the short path of validation ----------------------------------------------------

FRAME = pd.DataFrame(X, columns=NAMES)


class ArraySubclass(np.ndarray):
    """Array of a subclass."""


INPUTS = {
    "float32": X,
    "float64": X.astype(np.float64),
    "float16": X.astype(np.float16),
    "big-endian": X.astype(">f8"),
    "integers": np.arange(6).reshape(2, 3),
    "booleans": np.ones((2, 3), dtype=bool),
    "objects": X.astype(object),
    "text": np.array([["a", "b", "c"]]),
    "complex": X.astype(complex),
    "one row": X[:1],
    "no row": X[:0],
    "one column fewer": X[:, :2],
    "twice the columns": np.hstack([X, X]),
    "a vector": X[0],
    "a number": np.float64(1.0),
    "three dimensions": X[None],
    "strided": X[::2, ::-1],
    "Fortran": np.asfortranarray(X),
    "read-only": np.broadcast_to(X[:1], (5, 3)),
    "array subclass": X.view(ArraySubclass),
    "masked": np.ma.masked_array(X, X > 0),
    "lists": X.tolist(),
    "sparse": sparse.csr_matrix(X),
    "with NaN": np.where(X > 0, X, np.nan),
    "infinite": np.where(X > 0, X, np.inf),
    "huge": np.where(X > 0, X.astype(float), 1e300),
    "frame": FRAME,
    "frame of float64": FRAME.astype(np.float64),
    "frame of two kinds": FRAME.astype({"a": np.float64}),
    "frame of float16": FRAME.astype({"a": np.float16}),
    "frame with integers": FRAME.assign(a=1),
    "frame with booleans": FRAME.assign(a=True),
    "frame with text": FRAME.assign(a="x"),
    "frame with dates": FRAME.assign(a=pd.Timestamp(0)),
    "frame with NaN": FRAME.where(FRAME > 0),
    "nullable frame": FRAME.astype("Float64"),
    "nullable column": FRAME.astype({"a": "Float64"}),
    "nullable column with missing values": FRAME.assign(
        a=pd.array([None] * 60, "Float64")
    ),
    "sparse column": FRAME.assign(a=pd.arrays.SparseArray(X[:, 0])),
    "sparse frame": FRAME.astype(pd.SparseDtype("float64")),
    "arrow column": FRAME.astype({"a": "double[pyarrow]"}),
    "frame of one row": FRAME[:1],
    "frame of no row": FRAME[:0],
    "other order": FRAME[["b", "a", "c"]],
    "other names": FRAME.rename(columns={"a": "x"}),
    "no names": pd.DataFrame(X),
    "names of two kinds": FRAME.rename(columns={"a": 0}),
    "names of numpy": FRAME.set_axis(
        pd.Index([np.str_(name) for name in NAMES], dtype=object), axis=1
    ),
    "duplicate name": FRAME[["a", "b", "b"]],
    "column index of two levels": FRAME.set_axis(
        pd.MultiIndex.from_product([["t"], NAMES]), axis=1
    ),
    "frame of two columns": FRAME[["a", "b"]],
    "a series": FRAME["a"],
}


def outcome(function, *args, **options):
    """Return the result or the class and message of the error, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*args, **options)
        except Exception as error:
            result = type(error), str(error)
    return result, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("seen", [X, FRAME], ids=["array", "frame"])
@pytest.mark.parametrize("name", INPUTS)
def test_the_short_path_returns_the_result_of_full_validation(seen, name):
    scaler = SafeScaler().fit(seen)
    short = already_valid_array(INPUTS[name], scaler)
    if short is None:
        return
    dtypes = [np.float64, np.float32]
    (checked, warned) = outcome(
        validate_data,
        scaler,
        INPUTS[name],
        reset=False,
        dtype=dtypes,
        ensure_all_finite=False,
    )
    assert not warned
    assert type(checked) is type(short) is np.ndarray
    assert (checked.dtype, checked.flags.writeable) == (
        short.dtype,
        short.flags.writeable,
    )
    np.testing.assert_array_equal(checked, short)


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (
            X,
            [
                "float32",
                "float64",
                "one row",
                "strided",
                "read-only",
                "with NaN",
                "huge",
            ],
        ),
        (
            FRAME,
            ["frame", "frame of two kinds", "frame of one row", "frame with NaN"],
        ),
    ],
    ids=["array", "frame"],
)
def test_plain_tables_take_the_short_path(seen, names):
    scaler = SafeScaler().fit(seen)
    assert all(already_valid_array(INPUTS[name], scaler) is not None for name in names)


@pytest.mark.parametrize(
    "name", [name for name in INPUTS if isinstance(INPUTS[name], np.ndarray)]
)
@pytest.mark.parametrize(
    "model",
    [
        NaNImputer().fit(X),
        StableNetClassifier(max_epochs=1, random_state=0).fit(X, LABELS),
        StableNetRegressor(max_epochs=1, random_state=0).fit(X, VALUES),
        make_pipeline(NaNImputer(), SafeScaler(), regressor()).fit(X, VALUES),
    ],
    ids=lambda model: type(model).__name__,
)
def test_both_paths_give_the_same_results_and_messages(model, name):
    table = INPUTS[name]
    if type(table) is not np.ndarray or not table.ndim:
        return
    method = model.transform if isinstance(model, NaNImputer) else model.predict
    short, warned = outcome(method, table)
    long, warned_too = outcome(method, table.view(ArraySubclass))
    assert warned == warned_too
    if isinstance(long, tuple):
        assert short == long
    else:
        assert short.dtype == long.dtype
        np.testing.assert_array_equal(short, long)


@both
def test_a_clone_of_the_net_says_what_to_fit(Estimator, y):
    net = clone(Estimator(max_epochs=1, random_state=0).fit(X, y).net_)
    with pytest.raises(NotFittedError) as refused:
        net.predict(X)
    assert str(refused.value) == (
        "A clone of net_ is not fitted, and cannot be fitted by itself. Clone and fit "
        "the estimator, whose net_ then predicts."
    )


def test_a_pipeline_fitted_on_names_checks_them_at_predict():
    pipeline = make_pipeline(NaNImputer(), SafeScaler(), regressor())
    pipeline.fit(FRAME, VALUES)
    expected = pipeline.predict(FRAME)
    np.testing.assert_allclose(pipeline.predict(FRAME[:1]), expected[:1], rtol=1e-5)
    _, warned = outcome(pipeline.predict, X)
    assert warned == [
        "X does not have valid feature names, but NaNImputer was fitted with feature "
        "names"
    ]
    with pytest.raises(ValueError, match="must be in the same order") as error:
        pipeline.predict(FRAME[["b", "a", "c"]])
    assert str(error.value) == (
        "The feature names should match those that were passed during fit.\n"
        "Feature names must be in the same order as they were in fit.\n"
    )


@pytest.mark.parametrize("marker", [np.nan, pd.NA, -1])
def test_the_tags_of_the_imputer_equal_those_of_scikit_learn(marker):
    tags = get_tags(NaNImputer(missing_values=marker))
    expected = get_tags(SimpleImputer(missing_values=marker))
    assert tags.input_tags == expected.input_tags
    assert tags.target_tags == expected.target_tags


# -- imports -------------------------------------------------------------------------


def test_import_loads_no_large_package_except_torch_scikit_learn_and_skorch():
    code = (
        "import sys, torch, sklearn, skorch; before = set(sys.modules); import sknan; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split()) - sys.stdlib_module_names
    assert "sknan" in loaded
    assert loaded <= {"sknan", "torch", "sklearn", "skorch", "tqdm"}
