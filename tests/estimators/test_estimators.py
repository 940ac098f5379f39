"""Behavior of StableNetClassifier and StableNetRegressor."""

from __future__ import annotations

import copy
import gc
import math
import warnings
import weakref

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from sknan import (
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    SafeScaler,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan.nets import TabularMLP

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
LABELS = (X[:, 0] + X[:, 1] > 0).astype(int)
VALUES = X[:, 0] - 2 * X[:, 1]

FAST = {"max_epochs": 3, "random_state": 0}
ESTIMATORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(
    ("Estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"]
)


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return SafeScaler().fit_transform(X), y


def weights_of(model):
    return [p.detach().clone() for p in model.net_.module_.parameters()]


def same_weights(first, second):
    pairs = zip(weights_of(first), weights_of(second), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def raw_scores(model, X):
    proba = getattr(model, "predict_proba", None)
    return model.predict(X) if proba is None else proba(X)


class Recorder(Callback):
    """Callback that records losses, weights, learning rates and batch sizes."""

    def initialize(self):
        self.losses_ = []
        self.weights_ = []
        self.learning_rates_ = []
        return self

    def on_batch_begin(self, net, batch=None, training=None, **_):
        if training:
            self.rows_ = [*getattr(self, "rows_", []), len(batch[0])]

    def on_epoch_end(self, net, **_):
        self.losses_.append(net.history[-1].get("valid_loss"))
        self.weights_.append([p.detach().clone() for p in net.module_.parameters()])
        self.learning_rates_.append(net.history[-1, "lr"])


# -- outputs -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["no", "yes"], [False, True], [-3, 7], [1.0, 2.0], np.array(["b", "é"], object)],
    ids=str,
)
def test_predicted_labels_have_the_values_and_dtype_of_y(names):
    names = np.asarray(names)
    y = names[LABELS]
    model = StableNetClassifier(lr=0.01, max_epochs=40, random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(names))
    assert model.classes_.dtype == y.dtype
    predicted = model.predict(X)
    assert predicted.dtype == y.dtype
    assert predicted.shape == (60,)
    assert np.mean(predicted == y) > 0.9


@pytest.mark.parametrize(
    "y",
    [
        pd.Series(np.where(LABELS, "yes", "no"), dtype="string"),
        pd.Series(np.where(LABELS, "yes", "no"), dtype="category"),
        np.where(LABELS, "yes", "no").tolist(),
        pl.Series(np.where(LABELS, "yes", "no").tolist()),
    ],
    ids=["string", "category", "list", "polars"],
)
def test_y_can_be_any_container_of_labels(y):
    model = StableNetClassifier(lr=0.01, max_epochs=40, random_state=0).fit(X, y)
    assert model.classes_.tolist() == ["no", "yes"]
    assert np.mean(model.predict(X) == np.asarray(y)) > 0.9


def test_the_names_of_classes_do_not_change_the_network():
    plain = StableNetClassifier(**FAST).fit(X, LABELS)
    named = StableNetClassifier(**FAST).fit(X, np.array(["a", "b"])[LABELS])
    np.testing.assert_array_equal(plain.predict_proba(X), named.predict_proba(X))


def test_probabilities_have_a_row_per_sample_and_sum_to_one():
    y = np.digitize(X[:, 0], [-0.5, 0.5])
    model = StableNetClassifier(**FAST).fit(X, y)
    proba = model.predict_proba(X)
    assert proba.shape == (60, 3)
    assert proba.dtype == np.float32
    # Rounding errors of a softmax with three terms.
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X), model.classes_[proba.argmax(1)])
    np.testing.assert_allclose(model.predict_log_proba(X), np.log(proba), rtol=1e-6)


def test_log_probabilities_of_zero_probabilities_are_finite():
    certain = nn.Linear(4, 2)
    with torch.no_grad():
        certain.weight.copy_(torch.tensor([[1e4, 0, 0, 0], [-1e4, 0, 0, 0]]))
    model = StableNetClassifier(
        certain, lr=1e-30, max_epochs=1, clip_norm=None, random_state=0
    ).fit(X, LABELS)
    assert (model.predict_proba(X) == 0).any()
    assert np.isfinite(model.predict_log_proba(X)).all()


@pytest.mark.parametrize(
    ("shape", "n_targets"), [((60,), 1), ((60, 1), 1), ((60, 2), 2), ((60, 3), 3)]
)
def test_predictions_have_the_shape_of_the_target(shape, n_targets):
    y = np.column_stack([VALUES * (j + 1) for j in range(n_targets)]).reshape(shape)
    model = StableNetRegressor(lr=0.01, max_epochs=60, random_state=0).fit(X, y)
    assert model.predict(X).shape == shape
    assert model.predict(X[:1]).shape == (1, *shape[1:])
    assert model.score(X, y) > 0.9


def test_a_column_and_a_vector_give_the_same_predictions():
    flat = StableNetRegressor(**FAST).fit(X, VALUES)
    column = StableNetRegressor(**FAST).fit(X, VALUES[:, None])
    np.testing.assert_array_equal(flat.predict(X), column.predict(X)[:, 0])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float32),
        (np.int64, np.float32),
        (np.uint8, np.float32),
        (bool, np.float32),
    ],
)
def test_the_dtype_of_predictions_follows_that_of_the_target(dtype, expected):
    y = np.round(np.abs(VALUES) * 3).astype(dtype)
    assert StableNetRegressor(**FAST).fit(X, y).predict(X).dtype == expected


def test_predictions_for_integers_beyond_float32_are_float64():
    y = 10**12 + np.round(VALUES * 100).astype(np.int64)
    model = StableNetRegressor(lr=0.01, max_epochs=60, random_state=0).fit(X, y)
    assert model.predict(X).dtype == np.float64
    assert model.score(X, y) > 0.9


@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1, 1e9), (1e-6, 0), (1e300, 0), (1e-300, 0), (1e-3, 1e6), (1.7e307, 0)],
)
def test_the_units_of_the_target_do_not_matter(scale, offset):
    plain = StableNetRegressor(lr=0.01, max_epochs=40, random_state=0)
    y = VALUES * scale + offset
    model = clone(plain).fit(X, y)
    predicted = model.predict(X)
    assert np.isfinite(predicted).all()
    # Compared in standardized units, since r2 overflows at 1e300. Adding the offset
    # changes y by up to 1e-7 of its spread, and training amplifies the difference.
    reference = plain.fit(X, VALUES).predict(X)
    np.testing.assert_allclose((predicted - offset) / scale, reference, atol=0.05)


def test_a_constant_target_is_predicted_closely():
    for value in (0.0, 5.0, -1e30, 1e300):
        model = StableNetRegressor(**FAST).fit(X, np.full(60, value))
        predicted = model.predict(X)
        assert np.isfinite(predicted).all()
        # The scale of a constant is 1, and the output of an untrained network about 1.
        assert np.abs(predicted - value).max() <= max(3.0, abs(value) * 1e-6)


def test_targets_of_both_signs_near_the_largest_float64_are_learned():
    y = np.where(LABELS, 1.7e308, -1.7e308)
    model = StableNetRegressor(lr=0.01, max_epochs=40, random_state=0).fit(X, y)
    predicted = model.predict(X)
    assert np.isfinite(predicted).all()
    assert np.mean(np.sign(predicted) == np.sign(y)) > 0.9


def test_poisson_predictions_are_positive_and_in_units_of_counts():
    counts = np.random.default_rng(0).poisson(np.exp(1 + X[:, 0]))
    model = StableNetRegressor(
        criterion="poisson", lr=0.02, max_epochs=80, random_state=0
    ).fit(X, counts)
    predicted = model.predict(X)
    assert (predicted > 0).all()
    assert model.target_mean_ == 0
    assert model.target_scale_ == 1
    assert 0.8 < predicted.mean() / counts.mean() < 1.2


def test_the_poisson_loss_of_torch_gives_the_same_counts():
    counts = np.random.default_rng(0).poisson(np.exp(1 + X[:, 0]))
    named = StableNetRegressor(criterion="poisson", **FAST).fit(X, counts)
    torchs = StableNetRegressor(criterion=nn.PoissonNLLLoss, **FAST).fit(X, counts)
    np.testing.assert_array_equal(named.predict(X), torchs.predict(X))


@pytest.mark.parametrize(
    "criterion", ["mse", "mae", "huber", "squared_error", "absolute_error", nn.MSELoss]
)
def test_every_regression_loss_learns(criterion):
    model = StableNetRegressor(
        criterion=criterion, lr=0.01, max_epochs=60, random_state=0
    )
    assert model.fit(X, VALUES).score(X, VALUES) > 0.9


def test_a_binary_loss_gives_two_columns_of_probabilities():
    model = StableNetClassifier(
        criterion="binary_cross_entropy", lr=0.01, max_epochs=40, random_state=0
    ).fit(X, np.where(LABELS, "yes", "no"))
    proba = model.predict_proba(X)
    assert proba.shape == (60, 2)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, atol=1e-6)
    assert model.score(X, np.where(LABELS, "yes", "no")) > 0.9


def test_outputs_that_are_probabilities_are_not_transformed():
    sigmoid = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid())
    log_softmax = nn.Sequential(nn.Linear(4, 2), nn.LogSoftmax(dim=1))
    for module, criterion in ((sigmoid, nn.BCELoss), (log_softmax, nn.NLLLoss)):
        model = StableNetClassifier(
            module, criterion=criterion, lr=0.1, max_epochs=60, random_state=0
        ).fit(X, LABELS)
        np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1.0, atol=1e-6)
        assert model.score(X, LABELS) > 0.9


@both
def test_predict_before_fit_raises(Estimator, y):
    with pytest.raises(NotFittedError) as caught:
        Estimator().predict(X)
    assert str(caught.value) == (
        f"This {Estimator.__name__} instance is not fitted yet. Call 'fit' with "
        "appropriate arguments before using this estimator."
    )


@both
def test_fitted_attributes_have_the_documented_values(Estimator, y):
    model = Estimator(**FAST).fit(pd.DataFrame(X, columns=list("abcd")), y)
    assert model.n_iter_ == 3
    assert model.best_epoch_ is None
    assert model.nonfinite_reports_ == []
    assert model.effective_lr_ == model.lr
    assert model.n_features_in_ == 4
    assert model.feature_names_in_.tolist() == list("abcd")
    assert len(model.net_.history) == 3
    assert set(model.net_.history[-1]) >= {"train_loss", "grad_norm", "lr"}


# -- prediction ----------------------------------------------------------------------


@both
def test_the_prediction_of_a_row_does_not_depend_on_other_rows(Estimator, y):
    model = Estimator(**FAST).fit(X, y)
    whole = raw_scores(model, X)
    single = np.concatenate([raw_scores(model, X[i : i + 1]) for i in range(60)])
    # The order of summation in a matrix product depends on its shape.
    np.testing.assert_allclose(single, whole, rtol=1e-4, atol=1e-6)


@both
def test_a_table_of_several_batches_has_the_predictions_of_its_parts(Estimator, y):
    model = Estimator(**FAST).fit(X, y)
    long = np.random.default_rng(1).normal(size=(2**18 + 1, 4))
    scores = raw_scores(model, long)
    assert len(scores) == len(long)
    # These rows include the border between two batches.
    for part in (slice(0, 3), slice(2**18 - 2, 2**18 + 1)):
        np.testing.assert_allclose(
            scores[part], raw_scores(model, long[part]), rtol=1e-4, atol=1e-6
        )


def test_dropout_is_off_at_predict():
    model = StableNetClassifier(module__dropout=0.5, **FAST).fit(X, LABELS)
    np.testing.assert_array_equal(model.predict_proba(X), model.predict_proba(X))


@both
def test_predict_does_not_change_its_input(Estimator, y):
    model = Estimator(
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2 if y is LABELS else 1)),
        **FAST,
    )
    table = X.astype(np.float32)
    before = table.copy()
    model.fit(table, y).predict(table)
    np.testing.assert_array_equal(table, before)


def test_outputs_that_overflow_are_refused():
    model = StableNetRegressor(nn.Linear(4, 1), **FAST).fit(X, VALUES)
    far = X.copy()
    far[[7, 9]] = 3e38
    with torch.no_grad():
        model.net_.module_.weight.fill_(1.0)
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.predict(far)
    assert str(caught.value) == (
        "The network's output is non-finite for 2 of 60 rows, first row 7, although X "
        "is finite: its values lie far outside the training data. Bound them with "
        "SafeScaler()."
    )


@pytest.mark.parametrize("criterion", ["mse", "poisson"])
def test_predictions_far_outside_the_training_data_are_finite(criterion):
    y = np.abs(VALUES) * (1e300 if criterion == "mse" else 1)
    model = StableNetRegressor(nn.Linear(4, 1), criterion=criterion, **FAST).fit(X, y)
    predicted = model.predict(X * 1e30)
    assert np.isfinite(predicted).all()
    assert predicted.dtype == np.float64


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 23),
            st.integers(0, 3),
            st.floats(allow_nan=True, allow_infinity=True, width=64),
        ),
        max_size=6,
    )
)
def test_any_table_gives_finite_predictions_or_an_error_of_sknan(cells):
    table = X[:24].copy()
    for row, column, value in cells:
        table[row, column] = value
    model = StableNetRegressor(max_epochs=2, random_state=0, module__width=8)
    limit = np.finfo(np.float32).max
    fits_float32 = bool((np.abs(table) <= limit).all())
    try:
        predicted = fit_quietly(model, table, VALUES[:24]).predict(table)
    except NonFiniteDataError:
        assert not fits_float32
    except NonFiniteTrainingError:
        assert np.abs(table).max() > 1e15  # smaller values do not overflow the network
    else:
        assert fits_float32
        assert np.isfinite(predicted).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.floats(width=64), min_size=24, max_size=24))
def test_any_target_gives_finite_predictions_or_an_error_of_sknan(values):
    model = StableNetRegressor(max_epochs=2, random_state=0, module__width=8)
    try:
        predicted = fit_quietly(model, X[:24], np.array(values)).predict(X)
    except NonFiniteDataError:
        assert not np.isfinite(values).all()
    else:
        assert np.isfinite(values).all()
        assert np.isfinite(predicted).all()


def fit_quietly(model, X, y):
    """Fit the model and ignore warnings about recoveries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        return model.fit(X, y)


# -- input ---------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "make",
    [
        lambda X: X.tolist(),
        lambda X: pd.DataFrame(X, columns=list("abcd")),
        lambda X: pd.DataFrame(X, columns=list("abcd")).astype("Float64"),
        lambda X: pl.DataFrame(X, schema=list("abcd")),
        np.asfortranarray,
        lambda X: X[::-1][::-1],
        lambda X: X.astype(">f8"),
        lambda X: torch.from_numpy(X),
    ],
    ids=["list", "pandas", "nullable", "polars", "fortran", "view", "big", "tensor"],
)
def test_any_container_of_numbers_gives_the_same_model(Estimator, y, make):
    model = Estimator(**FAST).fit(make(X), y)
    np.testing.assert_array_equal(
        raw_scores(model, make(X)), raw_scores(Estimator(**FAST).fit(X, y), X)
    )


def test_integers_and_booleans_are_numbers():
    table = pd.DataFrame({"n": np.arange(60) % 7, "flag": LABELS.astype(bool)})
    model = StableNetClassifier(lr=0.02, max_epochs=60, random_state=0)
    assert model.fit(table, LABELS).score(table, LABELS) == 1.0


@both
def test_a_read_only_table_is_accepted(Estimator, y):
    table = X.astype(np.float32)
    table.flags.writeable = False
    Estimator(**FAST).fit(table, y).predict(table)


@both
def test_tiny_tables_can_be_learned(Estimator, y):
    for n in (2, 3, 5):
        target = np.arange(n) % 2 if y is LABELS else y[:n]
        model = Estimator(**FAST).fit(X[:n], target)
        assert np.isfinite(raw_scores(model, X)).all()
    model = Estimator(early_stopping=True, **FAST).fit(X[:4], [0, 1, 0, 1])
    assert np.isfinite(raw_scores(model, X)).all()


def test_a_class_of_one_row_does_not_prevent_early_stopping():
    y = LABELS.copy()
    y[:1] = 2
    model = StableNetClassifier(early_stopping=True, **FAST).fit(X, y)
    assert model.predict_proba(X).shape == (60, 3)


# -- sample and class weights --------------------------------------------------------


@both
def test_a_weight_of_zero_equals_removing_the_row(Estimator, y):
    weight = (np.arange(60) % 3 > 0).astype(float)
    kept = weight > 0
    weighted = Estimator(**FAST).fit(X, y, sample_weight=weight)
    assert same_weights(weighted, Estimator(**FAST).fit(X[kept], y[kept]))


@both
def test_an_integer_weight_equals_repeating_the_row(Estimator, y):
    # In one batch: with several, the batches would contain different rows.
    weight = np.arange(60) % 3
    rows = np.repeat(np.arange(60), weight)
    weighted = Estimator(batch_size=200, **FAST).fit(X, y, sample_weight=weight)
    assert same_weights(
        weighted, Estimator(batch_size=200, **FAST).fit(X[rows], y[rows])
    )


@both
def test_only_the_proportions_of_weights_matter(Estimator, y):
    weight = np.random.default_rng(0).uniform(0.5, 2, size=60)
    model = Estimator(batch_size=16, **FAST).fit(X, y, weight)
    # Multiplication by a power of two is exact.
    assert same_weights(
        model, Estimator(batch_size=16, **FAST).fit(X, y, weight * 2**40)
    )
    assert same_weights(
        model, Estimator(batch_size=16, **FAST).fit(X, y, weight * 2**-40)
    )
    assert not same_weights(model, Estimator(batch_size=16, **FAST).fit(X, y))


@both
def test_equal_weights_have_no_effect(Estimator, y):
    model = Estimator(batch_size=16, **FAST).fit(X, y, np.full(60, 7.0))
    assert same_weights(model, Estimator(batch_size=16, **FAST).fit(X, y))


def test_predictions_move_toward_rows_of_large_weight():
    y = np.where(np.arange(60) % 2, 1.0, -1.0)  # only the mean can be learned
    model = StableNetRegressor(lr=0.01, max_epochs=40, random_state=0)
    high = model.fit(X, y, np.where(y > 0, 20.0, 1.0)).predict(X).mean()
    low = model.fit(X, y, np.where(y > 0, 1.0, 20.0)).predict(X).mean()
    assert low < 0 < high


def test_a_class_weight_equals_a_weight_of_its_rows():
    by_dict = StableNetClassifier(class_weight={0: 1, 1: 3}, batch_size=16, **FAST)
    by_rows = StableNetClassifier(batch_size=16, **FAST)
    assert same_weights(
        by_dict.fit(X, LABELS), by_rows.fit(X, LABELS, np.where(LABELS, 3, 1))
    )


def test_balanced_classes_have_equal_influence():
    y = (np.arange(60) < 6).astype(int)
    plain = StableNetClassifier(module__depth=0, lr=0.05, max_epochs=60, random_state=0)
    balanced = clone(plain).set_params(class_weight="balanced")
    noise = np.zeros_like(X)
    noise[:, 0] = (
        np.arange(60) % 2
    )  # two distinct rows, so that the network does not seem collapsed
    assert plain.fit(noise, y).predict_proba(noise)[:, 1].mean() < 0.2
    assert 0.4 < balanced.fit(noise, y).predict_proba(noise)[:, 1].mean() < 0.6


def test_balanced_class_weights_treat_a_weight_as_repetitions():
    # As in scikit-learn, where compute_class_weight has a sample_weight parameter.
    weight = 1 + (np.arange(60) % 3)
    rows = np.repeat(np.arange(60), weight)
    model = StableNetClassifier(class_weight="balanced", batch_size=200, **FAST)
    weighted = clone(model).fit(X, LABELS, sample_weight=weight).predict_proba(X)
    repeated = model.fit(X[rows], LABELS[rows]).predict_proba(X)
    # Three thirds and one whole may differ by rounding.
    np.testing.assert_allclose(weighted, repeated, rtol=1e-5)


def test_weights_can_be_combined_with_early_stopping():
    weight = np.random.default_rng(0).uniform(0.1, 3, size=60)
    model = StableNetClassifier(early_stopping=True, **FAST).fit(X, LABELS, weight)
    assert all(math.isfinite(row["valid_loss"]) for row in model.net_.history)


# -- randomness ----------------------------------------------------------------------


@both
def test_the_same_seed_gives_bitwise_identical_weights(Estimator, y):
    params = {"batch_size": 16, "early_stopping": True, "module__dropout": 0.2}
    first = Estimator(**params, **FAST).fit(X, y)
    torch.rand(7)  # random numbers drawn elsewhere have no effect
    second = Estimator(**params, **FAST).fit(X, y)
    assert same_weights(first, second)
    assert not same_weights(first, second.set_params(random_state=1).fit(X, y))


@both
def test_global_random_generators_do_not_change(Estimator, y):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the test is about the global generator
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    model = Estimator(early_stopping=True, module__dropout=0.2, **FAST).fit(X, y)
    model.predict(X)
    model.partial_fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


def test_a_generator_as_seed_advances_between_fits():
    generator = np.random.RandomState(0)
    model = StableNetRegressor(max_epochs=1, random_state=generator)
    first = copy.deepcopy(model.fit(X, VALUES))
    assert not same_weights(first, model.fit(X, VALUES))


def test_without_a_seed_models_differ():
    first = StableNetRegressor(max_epochs=1).fit(X, VALUES)
    assert not same_weights(first, StableNetRegressor(max_epochs=1).fit(X, VALUES))


# -- early stopping ------------------------------------------------------------------


@both
def test_the_best_epoch_is_restored(Estimator, y):
    noisy = y if y is VALUES else np.random.default_rng(0).permutation(y)
    recorder = Recorder()
    model = Estimator(
        lr=0.03,
        lr_schedule="constant",
        batch_size=8,
        max_epochs=30,
        early_stopping=True,
        validation_fraction=0.3,
        callbacks=[recorder],
        random_state=0,
    ).fit(X, noisy)
    best = int(np.argmin(recorder.losses_)) + 1
    assert model.best_epoch_ == best
    assert model.n_iter_ == len(recorder.losses_)
    assert best < model.n_iter_
    kept = zip(weights_of(model), recorder.weights_[best - 1], strict=True)
    assert all(torch.equal(a, b) for a, b in kept)
    assert set(recorder.rows_) <= set(range(1, 9))


def test_the_last_of_equal_epochs_is_kept_and_patience_counts_from_the_first():
    # At this learning rate no weight changes: all epochs are equal.
    model = StableNetRegressor(
        lr=1e-30,
        weight_decay=0.0,
        early_stopping=True,
        n_iter_no_change=4,
        max_epochs=50,
        random_state=0,
    ).fit(X, VALUES)
    assert model.n_iter_ == 5
    assert model.best_epoch_ == 5


def test_held_out_rows_are_not_trained_on():
    recorder = Recorder()
    StableNetClassifier(
        early_stopping=True,
        validation_fraction=0.25,
        batch_size=1000,
        callbacks=[recorder],
        **FAST,
    ).fit(X, LABELS)
    assert recorder.rows_ == [45, 45, 45]


def test_auto_stops_early_from_500_rows_on():
    many = np.random.default_rng(0).normal(size=(500, 4))
    for n, stops in ((499, False), (500, True)):
        model = StableNetRegressor(**FAST).fit(many[:n], many[:n, 0])
        assert (model.best_epoch_ is not None) == stops
        assert ("valid_loss" in model.net_.history[-1]) == stops


def test_the_validation_split_keeps_the_proportions_of_classes():
    y = (np.arange(60) < 12).astype(int)

    class Shares(Callback):
        def on_train_begin(self, net, X=None, y=None, **_):
            self.share_ = float(X.y.double().mean())

    shares = Shares()
    StableNetClassifier(
        early_stopping=True, validation_fraction=0.25, callbacks=[shares], **FAST
    ).fit(X, y)
    assert shares.share_ == pytest.approx(0.2)


# -- continued training --------------------------------------------------------------


@both
def test_a_warm_start_continues_where_the_last_fit_ended(Estimator, y):
    model = Estimator(warm_start=True, lr=0.01, max_epochs=20, random_state=0).fit(X, y)
    before = weights_of(model)
    loss = model.net_.history[-1, "train_loss"]
    model.set_params(lr=1e-30, weight_decay=0.0, max_epochs=1).fit(X, y)
    moved = zip(before, weights_of(model), strict=True)
    assert all(torch.equal(a, b) for a, b in moved)
    assert model.net_.history[-1, "train_loss"] <= loss
    assert model.n_iter_ == 21


@both
def test_a_fit_without_warm_start_starts_from_scratch(Estimator, y):
    model = Estimator(**FAST).fit(X, y)
    first = weights_of(model)
    model.fit(X, y)
    assert model.n_iter_ == 3
    assert all(torch.equal(a, b) for a, b in zip(first, weights_of(model), strict=True))


@both
def test_the_optimizer_state_is_kept_only_for_continued_training(Estimator, y):
    assert not Estimator(**FAST).fit(X, y).net_.optimizer_.state
    assert Estimator(warm_start=True, **FAST).fit(X, y).net_.optimizer_.state
    classes = {"classes": [0, 1]} if y is LABELS else {}
    assert Estimator(**FAST).partial_fit(X, y, **classes).net_.optimizer_.state


def test_a_warm_start_accepts_a_vector_after_a_column():
    model = StableNetRegressor(warm_start=True, **FAST).fit(X, VALUES[:, None])
    assert model.predict(X).shape == (60, 1)
    assert model.fit(X, VALUES).predict(X).shape == (60,)


@both
def test_partial_fit_is_one_epoch_at_the_full_learning_rate(Estimator, y):
    classes = {"classes": [0, 1]} if y is LABELS else {}
    recorder = Recorder()
    model = Estimator(lr=0.01, warmup=0.5, callbacks=[recorder], random_state=0)
    for n in range(1, 41):
        model.partial_fit(X, y, **classes)
        assert model.n_iter_ == n
    assert recorder.learning_rates_ == [0.01] * 40
    assert model.score(X, y) > 0.9


def test_partial_fit_knows_classes_that_have_not_occurred_yet():
    model = StableNetClassifier(random_state=0)
    model.partial_fit(X[:1], ["b"], classes=["c", "a", "b"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.predict_proba(X).shape == (60, 3)
    model.partial_fit(X[1:3], ["c", "a"])
    assert np.isfinite(model.predict_proba(X)).all()


def test_partial_fit_continues_after_fit():
    model = StableNetRegressor(lr=0.01, max_epochs=20, random_state=0).fit(X, VALUES)
    before = model.score(X, VALUES)
    for _ in range(20):
        model.partial_fit(X, VALUES)
    assert model.score(X, VALUES) > before
    assert model.n_iter_ == 40


def test_partial_fit_keeps_the_units_of_the_first_call():
    model = StableNetRegressor(random_state=0).partial_fit(X, VALUES + 100)
    mean = model.target_mean_.copy()
    model.partial_fit(X[:5], VALUES[:5])
    np.testing.assert_array_equal(model.target_mean_, mean)


# -- modules -------------------------------------------------------------------------


class Wide(nn.Module):
    """Module with parameters for the number of columns and of outputs."""

    def __init__(self, n_features_in, n_outputs, width=5):
        super().__init__()
        self.sizes = (n_features_in, n_outputs, width)
        self.layers = nn.Sequential(
            nn.Linear(n_features_in, width), nn.Tanh(), nn.Linear(width, n_outputs)
        )

    def forward(self, X):
        return self.layers(X)


def make_wide(n_features_in, width=5):
    return Wide(n_features_in, 2, width)


def test_sizes_are_passed_to_a_module_that_has_parameters_for_them():
    model = StableNetClassifier(Wide, **FAST).fit(X, np.arange(60) % 3)
    assert model.net_.module_.sizes == (4, 3, 5)
    model = StableNetRegressor(Wide, module__width=9, **FAST).fit(X, X[:, :2])
    assert model.net_.module_.sizes == (4, 2, 9)
    model = StableNetClassifier(make_wide, module__width=7, **FAST).fit(X, LABELS)
    assert model.net_.module_.sizes == (4, 2, 7)
    model = StableNetClassifier(
        Wide, module__n_outputs=1, criterion=nn.BCEWithLogitsLoss, **FAST
    ).fit(X, LABELS)
    assert model.net_.module_.sizes == (4, 1, 5)


def test_prefixed_parameters_reach_the_default_network():
    model = StableNetRegressor(module__depth=3, module__activation="gelu", **FAST)
    network = model.fit(X, VALUES).net_.module_
    assert isinstance(network, TabularMLP)
    assert sum(isinstance(layer, nn.GELU) for layer in network.modules()) == 3


def test_a_module_given_as_an_instance_does_not_change():
    module = nn.Linear(4, 2)
    before = [p.detach().clone() for p in module.parameters()]
    model = StableNetClassifier(module, lr=0.1, max_epochs=20, random_state=0)
    model.fit(X, LABELS)
    assert model.module is module
    after = list(module.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert model.score(X, LABELS) > 0.9


def test_training_starts_from_the_weights_of_an_instance():
    module = nn.Linear(4, 1)
    model = StableNetRegressor(module, lr=1e-30, weight_decay=0.0, **FAST)
    model.fit(X, VALUES)
    assert torch.equal(model.net_.module_.weight, module.weight)


def test_a_criterion_given_as_an_instance_does_not_change():
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    model = StableNetClassifier(criterion=criterion, optimizer=torch.optim.Adam, **FAST)
    model.fit(X, LABELS, np.arange(60))
    assert criterion.reduction == "mean"
    assert model.net_.criterion_.label_smoothing == 0.1


def test_a_function_can_be_the_loss():
    def loss(output, target, power=2):
        return (output - target).abs().pow(power).mean()

    model = StableNetRegressor(
        nn.Linear(4, 1), criterion=loss, lr=0.1, max_epochs=60, random_state=0
    )
    assert model.fit(X, VALUES).score(X, VALUES) > 0.9
    model.set_params(criterion__power=4).fit(X, VALUES)
    assert model.net_.criterion_.options == {"power": 4}


class Convolution(nn.Module):
    def __init__(self, n_outputs):
        super().__init__()
        self.convolution = nn.Conv1d(2, 4, 3, padding=1)
        self.head = nn.Linear(4, n_outputs)

    def forward(self, X):  # (n_samples, 2, 6)
        return self.head(torch.relu(self.convolution(X)).mean(dim=2))


@both
def test_a_custom_module_accepts_tables_of_three_dimensions(Estimator, y):
    series = np.random.default_rng(0).normal(size=(60, 2, 6))
    y = (series[:, 0].mean(axis=1) > 0).astype(int) if y is LABELS else series[:, 0, 0]
    model = Estimator(Convolution, **FAST).fit(series, y)
    assert model.predict(series).shape == (60,)


class WithExtras(nn.Module):
    """Module that returns the output and its hidden layer."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, X):
        hidden = torch.relu(self.hidden(X))
        return self.head(hidden), hidden


def first_mse(output, target):
    return nn.functional.mse_loss(output[0], target)


def test_the_first_of_several_outputs_is_the_prediction():
    model = StableNetRegressor(
        WithExtras, criterion=first_mse, lr=0.02, max_epochs=60, random_state=0
    ).fit(X, VALUES)
    assert model.predict(X).shape == (60,)
    assert model.score(X, VALUES) > 0.9


@pytest.mark.parametrize("n", [17, 33, 49, 50])
def test_no_batch_has_a_single_row(n):
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    recorder = Recorder()
    model = StableNetClassifier(module, batch_size=16, callbacks=[recorder], **FAST)
    model.fit(X[:n], LABELS[:n])
    assert min(recorder.rows_) > 1
    assert sum(recorder.rows_) == 3 * n
    assert np.isfinite(model.predict_proba(X)).all()


class FirstColumn(nn.Module):
    """Linear model of the first column only."""

    def __init__(self, n_outputs):
        super().__init__()
        self.head = nn.Linear(1, n_outputs)

    def forward(self, X):
        return self.head(X[:, :1])


def test_rows_that_a_module_cannot_distinguish_are_not_a_collapse():
    table = X[:34].copy()
    table[:, 0] = np.arange(34) % 2
    # The last batch of an epoch has two rows, which are often equal in that column.
    model = StableNetRegressor(
        FirstColumn, batch_size=16, lr=0.1, max_epochs=20, random_state=0
    ).fit(table, table[:, 0])
    assert model.nonfinite_reports_ == []
    assert model.effective_lr_ == 0.1
    assert model.score(table, table[:, 0]) > 0.9


# -- callbacks, device, verbosity ----------------------------------------------------


def test_callbacks_are_called_with_the_net():
    recorder = Recorder()
    model = StableNetRegressor(callbacks=[recorder], **FAST).fit(X, VALUES)
    assert len(recorder.weights_) == 3
    last = zip(recorder.weights_[-1], weights_of(model), strict=True)
    assert all(torch.equal(a, b) for a, b in last)


def test_named_callbacks_of_skorch_score_each_epoch():
    def spread(net, X, y):
        return float(np.ptp(net.predict(X)))

    scoring = EpochScoring(spread, name="spread", on_train=False)
    model = StableNetRegressor(
        callbacks=[("spread", scoring)], early_stopping=True, **FAST
    ).fit(X, VALUES)
    assert all(row["spread"] > 0 for row in model.net_.history)


def test_a_model_with_callbacks_can_be_fitted_twice_and_cloned():
    model = StableNetRegressor(callbacks=[Recorder()], **FAST).fit(X, VALUES)
    model.fit(X, VALUES)
    assert len(model.callbacks[0].losses_) == 3
    assert same_weights(clone(model).fit(X, VALUES), model)


def test_verbose_prints_a_line_per_epoch(capsys):
    StableNetRegressor(**FAST).fit(X, VALUES)
    assert capsys.readouterr().out == ""
    StableNetRegressor(verbose=2, **FAST).fit(X, VALUES)
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5  # header and rule
    assert "train_loss" in table[0]


@both
def test_the_device_can_be_chosen(Estimator, y):
    on_cpu = Estimator(device="cpu", **FAST).fit(X, y)
    assert next(on_cpu.net_.module_.parameters()).device.type == "cpu"
    automatic = Estimator(device="auto", **FAST).fit(X, y)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(automatic.net_.module_.parameters()).device.type == expected
    assert isinstance(raw_scores(automatic, X), np.ndarray)


# -- schedules and clipping ----------------------------------------------------------


def test_the_schedule_is_followed():
    recorder = Recorder()
    model = StableNetRegressor(lr=0.01, max_epochs=10, callbacks=[recorder])
    model.set_params(random_state=0).fit(X, VALUES)
    # With one step per epoch, the history contains the learning rate of that step.
    middles = (np.arange(10) + 0.5) / 10
    expected = 0.01 * (1 + np.cos(np.pi * middles)) / 2
    np.testing.assert_allclose(recorder.learning_rates_, expected, rtol=1e-12)
    model.set_params(lr_schedule="constant").fit(X, VALUES)
    assert recorder.learning_rates_ == [0.01] * 10
    model.set_params(lr_schedule=lambda progress: 0.5).fit(X, VALUES)
    assert recorder.learning_rates_ == [0.005] * 10


@pytest.mark.parametrize(
    "params",
    [
        {"clip_norm": 1e-3},
        {"clip_value": 1e-4},
        {"adaptive_clip": "agc"},
    ],
    ids=str,
)
def test_clipping_changes_the_training(params):
    plain = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=100.0, **FAST)
    clipped = clone(plain).set_params(**params).fit(X, VALUES)
    assert not same_weights(plain.fit(X, VALUES), clipped)


def test_a_clip_above_every_gradient_changes_nothing():
    wide = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=1e6, **FAST)
    none = StableNetRegressor(optimizer="sgd", lr=0.1, clip_norm=None, **FAST)
    assert same_weights(wide.fit(X, VALUES), none.fit(X, VALUES))


# -- recovery ------------------------------------------------------------------------


@both
@pytest.mark.parametrize("lr", [1e4, 1e15, 1e30, 1e300])
def test_training_recovers_from_an_absurd_learning_rate_with_a_warning(
    Estimator, y, lr
):
    model = Estimator(lr=lr, max_epochs=40, batch_size=16, random_state=0)
    with pytest.warns(DivergenceWarning) as caught:
        model.fit(X, y)
    assert model.effective_lr_ < lr
    assert model.nonfinite_reports_
    assert len(caught) == 1
    warning = caught[0].message
    assert warning.report == model.nonfinite_reports_[0]
    assert str(warning).endswith(f"First failure: {model.nonfinite_reports_[0]}")
    assert all(torch.isfinite(w).all() for w in weights_of(model))
    assert np.isfinite(raw_scores(model, X)).all()


def test_the_warning_points_to_the_line_that_called_fit():
    model = StableNetRegressor(lr=1e30, max_epochs=5, batch_size=16, random_state=0)
    with pytest.warns(DivergenceWarning) as caught:
        model.fit(X, VALUES)
    assert caught[0].filename == __file__


@both
def test_on_nonfinite_raise_raises_with_the_report(Estimator, y):
    model = Estimator(lr=1e30, on_nonfinite="raise", max_epochs=5, batch_size=16)
    with pytest.raises(NonFiniteTrainingError) as caught:
        model.set_params(random_state=0).fit(X, y)
    report = caught.value.report
    assert str(caught.value) == str(report)
    assert report.cause == "learning_rate"
    assert report.epoch == 1


def test_a_collapsed_network_is_flagged_and_restarted(cancer):
    X, y = cancer
    model = StableNetClassifier(
        optimizer="sgd", lr=100.0, max_epochs=20, random_state=0
    )
    with pytest.warns(DivergenceWarning, match="The network has collapsed"):
        model.fit(X, y)
    assert model.effective_lr_ < 100.0
    assert model.nonfinite_reports_[0].cause == "learning_rate"
    assert model.score(X, y) > 0.9


class LogOfColumn(nn.Module):
    """Logarithm of a column that contains zeros."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)

    def forward(self, X):
        return self.head(torch.log(X[:, :1].clamp(min=0)))


class DividedByNorm(LogOfColumn):
    """Weight of zeros, divided by its norm."""

    def __init__(self):
        super().__init__()
        self.direction = nn.Parameter(torch.zeros(4))

    def forward(self, X):
        return self.head(X @ (self.direction / self.direction.norm())[:, None])


def test_a_module_that_cannot_be_repaired_gives_an_error_that_names_the_line():
    with pytest.raises(NonFiniteTrainingError) as caught:
        StableNetRegressor(
            DividedByNorm, max_recoveries=3, max_epochs=10, random_state=0
        ).fit(X, VALUES)
    report = caught.value.report
    assert (report.phase, report.cause) == ("forward", "architecture")
    assert (report.module, report.operation) == ("", "aten.div")
    assert report.source.startswith(__file__)
    assert str(caught.value) == (
        f"{report} Gave up after 3 recoveries (max_recoveries=3)."
    )


def test_a_module_that_fails_for_most_rows_learns_with_repaired_operations():
    model = StableNetRegressor(LogOfColumn, max_epochs=10, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(X, VALUES)
    report = model.nonfinite_reports_[0]
    assert (report.cause, report.operation) == ("activation", "aten.log")
    assert report.recovery == (
        "The step was taken with its operations repaired, clipped to norm 1."
    )
    with pytest.warns(UserWarning, match="computed again"):
        assert np.isfinite(model.predict(X)).all()


def nan_loss(output, target):
    return (output - target).square().mean() * torch.nan


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
@pytest.mark.parametrize("policy", ["recover", "skip"])
def test_a_training_without_a_single_step_raises(policy):
    model = StableNetRegressor(
        nn.Linear(4, 1), criterion=nan_loss, on_nonfinite=policy, **FAST
    )
    with pytest.raises(NonFiniteTrainingError):
        model.fit(X, VALUES)


def test_a_rare_bad_row_is_skipped_and_reported():
    table = np.abs(X) + 0.5
    table[7, 0] = 0.0
    model = StableNetRegressor(
        LogOfColumn, batch_size=6, max_epochs=3, max_recoveries=10, random_state=0
    )
    with pytest.warns(DivergenceWarning):
        model.fit(table, VALUES)
    reports = model.nonfinite_reports_
    assert len(reports) == 3  # once an epoch
    assert {(r.rows, r.rows_in, r.columns) for r in reports} == {((7,), "data", (0,))}
    assert reports[0].recovery == (
        "The step was taken without the rows to blame, clipped to norm 1."
    )
    # In prediction, the operation is kept inside its domain for this row.
    with pytest.warns(UserWarning, match="computed again") as caught:
        prediction = model.predict(table)
    assert np.isfinite(prediction).all()
    assert str(caught[0].message) == (
        "The network's output was not finite for 1 of 60 rows, first row 7 of the "
        "batch, although their input is; they were computed again with each operation "
        "kept inside its domain. sknan.diagnosis.diagnose(net, X, y) names the "
        "operation."
    )


# -- quality -------------------------------------------------------------------------


def test_the_defaults_learn_real_tables(cancer):
    X, y = cancer
    assert (
        StableNetClassifier(max_epochs=20, random_state=0).fit(X, y).score(X, y) > 0.97
    )
    X, y = load_diabetes(return_X_y=True)
    X = SafeScaler().fit_transform(X)
    model = StableNetRegressor(max_epochs=30, random_state=0).fit(X, y)
    assert r2_score(y, model.predict(X)) > 0.45


class Stop(Exception):
    """Error by which a search ends a trial."""


def test_the_error_of_a_callback_is_not_replaced_by_a_message_of_the_guard():
    class StopWhenRescued(Callback):
        def on_epoch_end(self, net, **kwargs):
            if net.nonfinite_reports_:
                raise Stop

    X = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    model = StableNetClassifier(
        lr=1e30, callbacks=[StopWhenRescued()], max_epochs=3, random_state=0
    )
    with pytest.raises(Stop):
        model.fit(X, (X[:, 0] > 0).astype(int))


@both
def test_a_network_is_freed_with_its_estimator(Estimator, y):
    X = np.random.default_rng(0).normal(size=(len(y), 3))
    model = Estimator(max_epochs=1).fit(X, y)
    network = weakref.ref(model.net_.module_)
    del model
    gc.collect()
    assert network() is None
