"""Labels, probabilities, predictions and accepted input of the two estimators."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from estimator_helpers import (
    FAST,
    LABELS,
    VALUES,
    X,
    both,
    raw_scores,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from torch import nn

from sknan import (
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)

# -- outputs -----------------------------------------------------------------------


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


def r2_of_halves(model, X, y):
    return r2_score(y * 2.0**-1000, model.predict(X) * 2.0**-1000)


def test_a_target_whose_spread_is_rounding_is_scored():
    y = 1e308 + VALUES * 1e292
    model = StableNetRegressor(early_stopping=True, scoring=r2_of_halves, **FAST)
    assert np.isfinite(model.fit(X, y).predict(X)).all()
    assert np.isfinite(model.validation_scores_).all()


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
    assert model.target_scale_ == pytest.approx(counts.mean())
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


# -- prediction --------------------------------------------------------------------


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
        "Non-finite output of aten.addmm. The network's output is not finite for 2 of "
        "60 rows, although X is finite; the batch has inputs of size 1e18 and more. "
        "To blame: rows 7, 9, columns 0, 1, 2, 3. Clean and impute the inputs first: "
        'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
    )


@pytest.mark.parametrize("criterion", ["mse", "poisson"])
def test_predictions_far_outside_the_training_data_are_finite(criterion):
    y = np.abs(VALUES) * (1e300 if criterion == "mse" else 1)
    model = StableNetRegressor(nn.Linear(4, 1), criterion=criterion, **FAST).fit(X, y)
    predicted = model.predict(X * 1e30)
    assert np.isfinite(predicted).all()
    assert predicted.dtype == np.float64


@settings(max_examples=40, derandomize=True)
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
    except NonFiniteDataError as error:
        is_outlier = "too large for float32" in str(error) and np.abs(table).max() > 1e6
        assert is_outlier or not fits_float32
    except NonFiniteTrainingError:
        assert np.abs(table).max() > 1e15  # smaller values do not overflow the network
    else:
        assert fits_float32
        assert np.isfinite(predicted).all()


@settings(max_examples=40, derandomize=True)
@given(st.lists(st.floats(width=64), min_size=24, max_size=24))
def test_any_target_gives_finite_predictions_or_an_error_of_sknan(values):
    model = StableNetRegressor(max_epochs=2, random_state=0, module__width=8)
    try:
        predicted = fit_quietly(model, X[:24], np.array(values)).predict(X)
    except NonFiniteDataError as error:
        is_outlier = "too large for float32" in str(error)
        assert is_outlier or not np.isfinite(values).all()
    else:
        assert np.isfinite(values).all()
        assert np.isfinite(predicted).all()


def fit_quietly(model, X, y):
    """Fit the model and ignore warnings about recoveries and outliers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        warnings.filterwarnings("ignore", "[Xy] contains outliers")
        return model.fit(X, y)


# -- input -------------------------------------------------------------------------


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
