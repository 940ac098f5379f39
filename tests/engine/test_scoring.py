"""A score decides when training stops and which epoch is the best."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.metrics import accuracy_score, get_scorer, roc_auc_score
from skorch.callbacks import Callback, EarlyStopping

from sknan import (
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetRegressor,
    TrainingDisplay,
)

_rng = np.random.default_rng(0)
X = (100 + 20 * _rng.normal(size=(90, 3))).astype(np.float32)
Y = np.where(X[:, 0] + 20 * _rng.normal(size=90) > 100, "up", "down")
TRAIN, VALID = np.arange(60), np.arange(60, 90)
OPTIONS = {
    "max_epochs": 6,
    "module__width": 8,
    "lr": 0.01,
    "batch_size": 16,
    "random_state": 0,
    "validation_split": [(TRAIN, VALID)],
}


class Batches(Callback):
    """Callback that sees single batches, and so needs the loop of the net."""

    def on_batch_end(self, net, **_):
        pass


def recorded(scorer):
    """Return a scorer that keeps its arguments, and the list of them."""
    calls = []

    def record(estimator, X, y, **weights):
        calls.append((estimator, X, y))
        return scorer(estimator, X, y)

    return record, calls


@pytest.mark.parametrize("scoring", ["roc_auc", "accuracy", None])
@pytest.mark.parametrize("callbacks", [None, [Batches]], ids=["stack", "loop"])
def test_the_best_epoch_is_that_of_the_score(scoring, callbacks):
    model = StableNetClassifier(**OPTIONS, scoring=scoring, callbacks=callbacks)
    model.fit(X, Y)
    scores = model.validation_scores_
    assert len(scores) == len(model.loss_curve_) == model.n_iter_ == 6
    assert model.best_score_ == max(scores)
    assert model.best_epoch_ == max(
        i for i in range(1, 7) if scores[i - 1] == max(scores)
    )
    assert model.net_.history[:, "valid_score"] == scores
    assert model.loss_curve_ == model.net_.history[:, "train_loss"]
    score = get_scorer(scoring) if scoring else StableNetClassifier.score
    assert score(model, X[VALID], Y[VALID]) == pytest.approx(model.best_score_)
    assert [name for name, _ in model.net_.callbacks_ if "score" in name] == []


def test_both_engines_choose_the_same_epoch():
    stack = StableNetClassifier(**OPTIONS, scoring="roc_auc").fit(X, Y)
    loop = clone(stack).set_params(callbacks=[Batches]).fit(X, Y)
    assert stack.validation_scores_ == loop.validation_scores_
    assert stack.best_epoch_ == loop.best_epoch_


def test_the_loss_is_a_score_with_the_opposite_sign():
    model = StableNetClassifier(**OPTIONS).fit(X, Y)
    losses = model.net_.history[:, "valid_loss"]
    np.testing.assert_array_equal(model.validation_scores_, np.negative(losses))
    assert model.best_score_ == max(model.validation_scores_)
    without = clone(model).set_params(early_stopping=False).fit(X, Y)
    assert without.validation_scores_ is without.best_score_ is None
    assert (
        without.partial_fit(X, Y).loss_curve_ == without.net_.history[:, "train_loss"]
    )


def test_a_callable_receives_rows_and_labels_of_the_user():
    scorer, calls = recorded(
        lambda estimator, X, y: accuracy_score(y, estimator.predict(X))
    )
    StableNetClassifier(**OPTIONS, scoring=scorer).fit(X, Y)
    assert len(calls) == 6
    for estimator, X_found, y_found in calls:
        assert type(estimator) is StableNetClassifier
        np.testing.assert_allclose(X_found, X[VALID], rtol=1e-5)
        np.testing.assert_array_equal(y_found, Y[VALID])


def test_numbers_are_scored_in_the_units_of_y():
    y = 1000.0 * X[:, 0]
    model = StableNetRegressor(**OPTIONS, scoring="neg_mean_absolute_error").fit(X, y)
    error = np.abs(model.predict(X[VALID]) - y[VALID]).mean()
    assert model.best_score_ == pytest.approx(-error, rel=1e-5)


@pytest.mark.parametrize("is_given", [True, False])
def test_weights_of_held_out_rows_reach_the_scorer(is_given):
    weights = _rng.uniform(0.1, 2.0, size=90)
    model = StableNetClassifier(**OPTIONS, scoring="roc_auc")
    if is_given:
        model.set_params(validation_split=None).fit(
            X[TRAIN], Y[TRAIN], X_val=X[VALID], y_val=Y[VALID],
            sample_weight_val=weights[VALID],
        )  # fmt: skip
    else:
        model.fit(X, Y, weights)
    up = model.predict_proba(X[VALID])[:, 1]
    assert model.best_score_ == pytest.approx(
        roc_auc_score(Y[VALID], up, sample_weight=weights[VALID]), abs=1e-6
    )
    unweighted = StableNetClassifier(**OPTIONS, scoring=lambda m, X, y: m.score(X, y))
    unweighted.fit(X, Y, weights)
    found = accuracy_score(Y[VALID], unweighted.predict(X[VALID]))
    assert unweighted.best_score_ == pytest.approx(found)


def test_patience_counts_epochs_without_a_better_score():
    scores = iter([0.1, 0.5, 0.2, np.nan, 0.5, 0.3])
    model = StableNetClassifier(
        **OPTIONS, scoring=lambda *_: next(scores), n_iter_no_change=3
    )
    model.fit(X, Y)
    assert (model.n_iter_, model.best_epoch_, model.best_score_) == (5, 5, 0.5)
    assert np.isnan(model.validation_scores_[3])


def test_callbacks_of_the_user_find_the_score():
    stop = EarlyStopping("valid_score", patience=2, lower_is_better=False)
    model = StableNetClassifier(**OPTIONS, scoring=lambda *_: 0.5, callbacks=[stop])
    assert model.fit(X, Y).n_iter_ == 3


def test_ensembles_pass_the_scoring_on():
    network = StableNetClassifier(
        **{**OPTIONS, "validation_split": None}, early_stopping=True
    )
    model = StableNetEnsembleClassifier(
        network, n_estimators=2, scoring="accuracy", random_state=0
    )
    for member in model.fit(X, Y).estimators_:
        assert member.scoring == "accuracy"
        assert member.best_score_ == max(member.validation_scores_)


def test_the_display_draws_the_score_with_the_best_epoch():
    model = StableNetClassifier(**OPTIONS, scoring="accuracy").fit(X, Y)
    display = TrainingDisplay.from_estimator(model)
    assert [ax.get_ylabel() for ax in display.ax_][:2] == ["loss", "valid_score"]
    curve, star = display.ax_[1].lines
    assert curve.get_ydata().tolist() == model.validation_scores_
    assert star.get_xydata().tolist() == [[model.best_epoch_, model.best_score_]]


# -- scorers that fail -----------------------------------------------------------------


def failing(estimator, X, y):
    raise RuntimeError("no score")


@pytest.mark.parametrize("callbacks", [None, [Batches]], ids=["stack", "loop"])
@pytest.mark.parametrize(
    ("scoring", "message", "notes"),
    [
        (
            failing, "no score",
            [f"while computing scoring={failing!r} of 30 held-out rows after epoch 1"],
        ),
        (
            np.shape, "scoring must return a number, got (90,).", None,
        ),
    ],
)  # fmt: skip
def test_an_error_of_the_scorer_ends_the_fit(scoring, message, notes, callbacks):
    if scoring is np.shape:

        def scoring(estimator, X, y):
            return (90,)

    model = StableNetClassifier(**OPTIONS, scoring=scoring, callbacks=callbacks)
    with pytest.raises((RuntimeError, ValueError), match="scor") as raised:
        model.fit(X, Y)
    assert str(raised.value) == message
    assert notes is None or raised.value.__notes__ == notes
    assert not hasattr(model, "net_")


def test_a_score_that_is_never_finite_is_refused():
    model = StableNetClassifier(**OPTIONS, scoring=lambda *_: np.nan)
    with pytest.raises(ValueError, match="not finite") as raised:
        model.fit(X, Y)
    assert str(raised.value) == (
        f"scoring={model.scoring!r} is not finite for the 30 held-out rows in any of 6 "
        "epochs, so that no epoch is the best. Hold out more rows, of each class, by "
        "validation_split or X_val, or choose another scoring."
    )


def test_an_unknown_scoring_is_refused():
    for model in (
        StableNetClassifier(scoring="acuracy"),
        StableNetEnsembleClassifier(scoring="acuracy"),
    ):
        with pytest.raises(ValueError, match="scoring") as raised:
            model.fit(X, Y)
        assert str(raised.value) == (
            f"The 'scoring' parameter of {type(model).__name__} must be 'loss', a name "
            "from sklearn.metrics.get_scorer_names(), a callable or None, got "
            "'acuracy'."
        )
