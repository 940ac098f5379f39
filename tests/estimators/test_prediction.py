"""Predicting: batches that fit memory, and a short way that refuses what is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
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
from sknan._engine.table_net import _VALUES_PER_FORWARD
from sknan._utils.validation import already_valid_array

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype(np.float32)
VALUES = X[:, 0] + 2 * X[:, 1]
LABELS = (VALUES > 0).astype(int)
MANY = RNG.normal(size=(5000, 3)).astype(np.float32)
NAMES = ["a", "b", "c"]

DOORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(("door", "y"), DOORS, ids=["classifier", "regressor"])


def regressor(module=None, **params):
    return StableNetRegressor(module, max_epochs=1, random_state=0, **params)


class Listed(nn.Module):
    """Repeats its input, and keeps a list of how many rows came at a time."""

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
def test_several_batches_are_predicted_like_one(door, y, width):
    model = door(module__width=width, max_epochs=1, random_state=0).fit(X, y)
    method = "predict_proba" if door is StableNetClassifier else "predict"
    whole = getattr(model, method)(MANY)
    model.net_.batch_size = len(MANY)  # a batch of this size has been trained on
    at_once = getattr(model, method)(MANY)
    np.testing.assert_allclose(whole, at_once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_copies", [1, 100, 1000])
def test_as_many_rows_come_at_a_time_as_the_widest_tensor_allows(n_copies):
    model = regressor(Listed, module__n_copies=n_copies).fit(X, VALUES)
    rows = model.net_.module_.rows
    rows.clear()
    model.predict(np.tile(MANY, (200, 1)))
    tried, *rest = rows
    assert tried < 100  # to find out how wide it is
    assert sum(rest) == 200 * len(MANY)
    assert max(rest) == _VALUES_PER_FORWARD // (3 * n_copies)


def test_the_weights_of_a_layer_are_no_width():
    module = nn.Sequential(nn.Linear(3, 512), nn.Linear(512, 512), nn.Linear(512, 1))
    net = regressor(module).fit(X, VALUES).net_
    n_rows = net._rows_per_forward(torch.from_numpy(MANY))
    assert n_rows == _VALUES_PER_FORWARD // 512


def test_a_batch_of_the_size_of_training_is_never_cut():
    model = regressor(Listed, module__n_copies=10_000, batch_size=512).fit(X, VALUES)
    rows = model.net_.module_.rows
    for n_rows, expected in ((512, [512]), (1024, [1024]), (1025, [512, 512, 1])):
        rows.clear()
        model.predict(MANY[:n_rows])
        assert rows[-len(expected) :] == expected


def test_rows_that_are_not_finite_are_counted_over_all_batches():
    class Overflows(Listed):
        def forward(self, X):
            huge = torch.where(X[:, :1] > 100, 1e38, 0.0)
            return super().forward(X) + huge.double().exp().float()

    model = regressor(Overflows, module__n_copies=1000, on_nonfinite="raise")
    model.fit(X, VALUES)
    table = MANY.copy()
    table[[700, 4900], 0] = 1000.0
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.predict(table)
    assert str(caught.value) == (
        "The network's output is non-finite for 2 of 5000 rows, first row 700, "
        "although X is finite: its values lie far outside the training data. Bound "
        "them with SafeScaler()."
    )


def test_a_row_in_a_later_batch_is_repaired():
    class Root(Listed):
        def forward(self, X):
            return super().forward(X) + X[:, :1].sqrt() ** 0.0001

    positive = np.abs(X) + 1
    model = regressor(Root, module__n_copies=1000).fit(positive, VALUES)
    table = np.abs(MANY) + 1
    table[4900, 0] = -1.0
    n_rows = _VALUES_PER_FORWARD // 3000
    found = (
        f"not finite for 1 of {len(table) % n_rows} rows, first row {4900 % n_rows} of "
        "the batch"
    )
    with pytest.warns(UserWarning, match=found):
        predicted = model.predict(table)
    assert np.isfinite(predicted).all()


# -- the network ---------------------------------------------------------------------


@both
def test_a_part_left_in_training_mode_makes_no_difference(door, y):
    model = door(module__dropout=0.5, max_epochs=1, random_state=0).fit(X, y)
    before = model.predict(X)
    model.net_.module_.hidden[2].train()
    np.testing.assert_array_equal(model.predict(X), before)


def test_the_answer_is_no_memory_of_the_network():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("kept", torch.full((60, 2), 0.5))

        def forward(self, X):
            return self.linear(X).softmax(1) if self.training else self.kept[: len(X)]

    model = StableNetClassifier(Remembers, criterion="probability_nll", max_epochs=1)
    model.fit(X, LABELS)
    model.predict_proba(X)[:] = 7.0
    np.testing.assert_allclose(model.predict_proba(X), 0.5)


@both
def test_a_fit_that_was_refused_leaves_nothing_fitted(door, y):
    model = door()
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.where(X > 0, X, np.nan), y)
    for ask in (check_is_fitted, lambda model: model.predict(X)):
        with pytest.raises(NotFittedError) as caught:
            ask(model)
        assert str(caught.value) == (
            f"This {door.__name__} instance is not fitted yet. Call 'fit' with "
            "appropriate arguments before using this estimator."
        )


# -- what validation would do --------------------------------------------------------

FRAME = pd.DataFrame(X, columns=NAMES)


class WithMeta(np.ndarray):
    """An array of a class of its own."""


INPUTS = {
    "float32": X,
    "float64": X.astype(np.float64),
    "float16": X.astype(np.float16),
    "big-endian": X.astype(">f8"),
    "integers": np.arange(6).reshape(2, 3),
    "flags": np.ones((2, 3), dtype=bool),
    "objects": X.astype(object),
    "text": np.array([["a", "b", "c"]]),
    "complex": X.astype(complex),
    "one row": X[:1],
    "no row": X[:0],
    "a column less": X[:, :2],
    "a column more": np.hstack([X, X]),
    "a vector": X[0],
    "a number": np.float64(1.0),
    "three dimensions": X[None],
    "strided": X[::2, ::-1],
    "Fortran": np.asfortranarray(X),
    "read-only": np.broadcast_to(X[:1], (5, 3)),
    "a class of its own": X.view(WithMeta),
    "masked": np.ma.masked_array(X, X > 0),
    "lists": X.tolist(),
    "sparse": sparse.csr_matrix(X),
    "holes": np.where(X > 0, X, np.nan),
    "infinite": np.where(X > 0, X, np.inf),
    "huge": np.where(X > 0, X.astype(float), 1e300),
    "frame": FRAME,
    "frame of float64": FRAME.astype(np.float64),
    "frame of two kinds": FRAME.astype({"a": np.float64}),
    "frame of float16": FRAME.astype({"a": np.float16}),
    "frame with integers": FRAME.assign(a=1),
    "frame with flags": FRAME.assign(a=True),
    "frame with text": FRAME.assign(a="x"),
    "frame with dates": FRAME.assign(a=pd.Timestamp(0)),
    "frame with holes": FRAME.where(FRAME > 0),
    "nullable frame": FRAME.astype("Float64"),
    "nullable column": FRAME.astype({"a": "Float64"}),
    "nullable column with holes": FRAME.assign(a=pd.array([None] * 60, "Float64")),
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
    "a name twice": FRAME[["a", "b", "b"]],
    "two levels": FRAME.set_axis(pd.MultiIndex.from_product([["t"], NAMES]), axis=1),
    "a frame less": FRAME[["a", "b"]],
    "a series": FRAME["a"],
}


def outcome(function, *args, **options):
    """Result, or class and message of the error, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = function(*args, **options)
        except Exception as error:
            result = type(error), str(error)
    return result, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("seen", [X, FRAME], ids=["array", "frame"])
@pytest.mark.parametrize("name", INPUTS)
def test_the_short_way_takes_what_validation_returns_as_it_is(seen, name):
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
        (X, ["float32", "float64", "one row", "strided", "read-only", "holes", "huge"]),
        (
            FRAME,
            ["frame", "frame of two kinds", "frame of one row", "frame with holes"],
        ),
    ],
    ids=["array", "frame"],
)
def test_the_short_way_is_taken(seen, names):
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
def test_both_ways_end_alike_to_the_letter(model, name):
    table = INPUTS[name]
    if type(table) is not np.ndarray or not table.ndim:
        return
    method = model.transform if isinstance(model, NaNImputer) else model.predict
    short, warned = outcome(method, table)
    long, warned_too = outcome(method, table.view(WithMeta))
    assert warned == warned_too
    if isinstance(long, tuple):
        assert short == long
    else:
        assert short.dtype == long.dtype
        np.testing.assert_array_equal(short, long)


def test_a_pipeline_fitted_on_names_says_so_when_they_are_missing_or_other():
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
def test_the_tags_of_the_imputer_are_those_of_scikit_learns(marker):
    ours = get_tags(NaNImputer(missing_values=marker))
    theirs = get_tags(SimpleImputer(missing_values=marker))
    assert ours.input_tags == theirs.input_tags
    assert ours.target_tags == theirs.target_tags


# -- imports -------------------------------------------------------------------------


def test_importing_brings_nothing_heavy_beside_torch_scikit_learn_and_skorch():
    code = (
        "import sys, torch, sklearn, skorch; before = set(sys.modules); import sknan; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    brought = set(done.stdout.split()) - sys.stdlib_module_names
    assert "sknan" in brought
    assert brought <= {"sknan", "torch", "sklearn", "skorch", "tqdm"}
