"""Several quantiles of one network: in order, in the units of y, and scored."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import d2_pinball_score, make_scorer, mean_pinball_loss, r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    BatchedGridSearchCV,
    NaNImputer,
    SafeScaler,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan.losses import BoundedLoss, QuantileLoss

LEVELS = [0.05, 0.5, 0.95]
_rng = np.random.default_rng(0)
X = _rng.normal(size=(200, 4))
y = 1e4 + 300 * X[:, 0] + 50 * (1 + X[:, 1] ** 2) * _rng.normal(size=200)
Y = np.column_stack([y, -y / 1e6])
NET = StableNetRegressor(
    criterion="quantile",
    criterion__quantile=LEVELS,
    max_epochs=8,
    lr=0.01,
    batch_size=50,
    random_state=0,
)


class Skip(nn.Module):
    """Module of a user, which knows nothing of quantiles."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.hidden = nn.Linear(n_features_in, 16)
        self.last = nn.Linear(n_features_in + 16, n_outputs)

    def forward(self, x):
        return self.last(torch.cat([x, torch.tanh(self.hidden(x))], 1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": Skip},
        {"criterion": BoundedLoss(QuantileLoss(LEVELS), 0.0, 10.0)},
        {"criterion__quantile": np.array(LEVELS)},
        {"criterion__quantile": tuple(LEVELS), "early_stopping": True},
    ],
)
@pytest.mark.parametrize(("target", "weights"), [(y, None), (Y, np.arange(1.0, 201.0))])
def test_a_stack_and_the_loop_agree(options, target, weights):
    model = clone(NET)
    if "criterion" in options:
        model = StableNetRegressor(max_epochs=8, random_state=0)
    model.set_params(**options)
    looped = clone(model)
    plan = looped._plan(looped._training_rows(X, target, weights))
    plan.run_loop()
    looped._finish(plan)

    predicted = model.fit(X, target, weights).predict(X)

    assert predicted.shape == (*target.shape, 3)
    scale = target.std()
    np.testing.assert_allclose(predicted, looped.predict(X), atol=1e-4 * scale)
    assert (np.diff(predicted) >= 0).all()
    np.testing.assert_array_equal(model.predict_quantiles(X), predicted)
    np.testing.assert_array_equal(model.net_.predict(X), predicted)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), predicted)


def test_the_loss_is_the_mean_pinball_loss_in_standard_deviations():
    model = clone(NET).set_params(module=Skip).fit(X, y)
    predicted = model.predict(X)
    losses = [
        mean_pinball_loss(y, predicted[:, i], alpha=q) for i, q in enumerate(LEVELS)
    ]
    batch, target = model._as_batch(X, y)
    with torch.no_grad():
        loss = model.net_.get_loss(model.net_.module_(batch), target).item()
    assert loss == pytest.approx(np.mean(losses) / model.target_scale_, rel=1e-5)


@pytest.fixture(scope="module")
def fitted():
    pipelines = [
        make_pipeline(NaNImputer(), SafeScaler(), model)
        for model in (
            clone(NET).set_params(criterion__quantile=[0.01, 0.2, 0.3, 0.8, 0.99]),
            StableNetEnsembleRegressor(clone(NET), n_estimators=2, random_state=0),
        )
    ]
    bare = clone(NET).set_params(module=Skip)
    return [*(p.fit(X, y) for p in pipelines), bare.fit(X, y)]


VALUE = st.one_of(
    st.floats(-1e38, 1e38), st.sampled_from([0.0, np.nan, np.inf, -np.inf])
)


@given(rows=st.lists(st.lists(VALUE, min_size=4, max_size=4), min_size=1, max_size=4))
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_predicted_quantiles_never_cross(fitted, rows):
    table = np.array(rows)
    for model in fitted:
        given_rows = table
        if isinstance(model, StableNetRegressor):
            given_rows = np.clip(np.nan_to_num(table), -1e18, 1e18)
        predicted = model.predict(given_rows)
        assert np.isfinite(predicted).all()
        assert (np.diff(predicted) >= 0).all()


def test_an_ensemble_averages_each_quantile():
    model = StableNetEnsembleRegressor(clone(NET), n_estimators=3, random_state=0)
    model.fit(X, Y)
    each = [member.predict(X) for member in model.estimators_]
    np.testing.assert_allclose(model.predict(X), np.mean(each, 0))
    np.testing.assert_array_equal(model.predict_quantiles(X), model.predict(X))
    assert model.score(X, Y) == pytest.approx(
        np.mean(
            [
                d2_pinball_score(Y, model.predict(X)[..., i], alpha=q)
                for i, q in enumerate(LEVELS)
            ]
        )
    )


@pytest.mark.parametrize("target", [y, Y, Y * 1e200], ids=["one", "two", "huge"])
def test_each_score_is_the_mean_over_the_quantiles(target):
    net = clone(NET).set_params(early_stopping=True)
    model = StableNetEnsembleRegressor(net, n_estimators=5, random_state=0)
    model.fit(X, target)
    unit = np.abs(target).max(axis=0)
    parts = [
        d2_pinball_score(target / unit, model.oof_prediction_[..., i] / unit, alpha=q)
        for i, q in enumerate(LEVELS)
    ]
    assert model.oof_score_ == pytest.approx(np.mean(parts))
    first = model.estimators_[0]
    assert first.net_.score(X, target) == first.score(X, target)


def test_a_score_of_targets_that_are_not_finite_is_refused_by_name():
    model = StableNetRegressor(max_epochs=1, random_state=0).fit(X, y)
    targets = np.full(y.shape, 1e300)
    targets[3:5] = [[np.inf], [-np.inf]] if y.ndim > 1 else [np.inf, -np.inf]
    with pytest.raises(ValueError, match="y contains 2 inf values at rows 3, 4"):
        model.score(X, targets)


@pytest.mark.parametrize("unit", [1e25, np.float32(1e25), 1e-200, 1e300])
def test_the_score_does_not_depend_on_the_unit_of_the_target(unit):
    target = (y / 1e4 * unit).astype(type(unit))
    model = StableNetRegressor(max_epochs=2, random_state=0).fit(X, target)
    expected = r2_score(target / unit, model.predict(X) / unit)
    assert model.score(X, target) == pytest.approx(expected, rel=1e-4)


def test_a_search_scores_quantiles():
    scorers = {
        "d2": lambda model, X, y: model.score(X, y),
        "median": make_scorer(lambda y, p: d2_pinball_score(y, p[:, 1])),
    }
    grid = {"criterion__quantile": [LEVELS, [0.2, 0.5, 0.8]], "lr": [0.01, 0.03]}
    common = {"scoring": scorers, "cv": 2, "refit": "d2"}
    batched = BatchedGridSearchCV(NET, grid, **common).fit(X, y)
    single = GridSearchCV(NET, grid, **common).fit(X, y)
    assert batched.cv_results_["stacked"].all()
    for name in scorers:
        np.testing.assert_allclose(
            batched.cv_results_[f"mean_test_{name}"],
            single.cv_results_[f"mean_test_{name}"],
            atol=1e-5,
        )


def test_a_single_quantile_is_predicted_as_before():
    model = clone(NET).set_params(criterion__quantile=0.9).fit(X, y)
    assert model.predict(X).shape == (200,)
    np.testing.assert_array_equal(model.predict_quantiles(X)[:, 0], model.predict(X))
    assert model.score(X, y) == r2_score(y, model.predict(X))


def test_other_criteria_have_no_quantiles():
    for model in (
        StableNetRegressor(max_epochs=1),
        StableNetEnsembleRegressor(StableNetRegressor(max_epochs=1), n_estimators=2),
    ):
        with pytest.raises(AttributeError, match="only with") as refused:
            model.fit(X, y).predict_quantiles(X)
        assert str(refused.value) == (
            f"{type(model).__name__} predicts quantiles only with "
            "criterion='quantile', criterion__quantile=[0.05, 0.5, 0.95]."
        )


def test_quantiles_in_another_order_are_refused_before_training():
    model = clone(NET).set_params(criterion__quantile=[0.9, 0.1], module=lambda: 1 / 0)
    with pytest.raises(ValueError, match="ascending order"):
        model.fit(X, y)


def test_all_quantiles_of_a_constant_target_are_the_constant():
    predicted = clone(NET).fit(X, np.full(200, 7.0)).predict(X)
    np.testing.assert_array_equal(predicted, np.full((200, 3), 7.0))
