"""skorch's scoring callbacks score an estimator's net like the estimator itself."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import check_scoring, f1_score, make_scorer
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import BatchScoring, Callback, EarlyStopping, EpochScoring

from sknan import StableNetClassifier, StableNetRegressor

RNG = np.random.default_rng(0)
X, CODES = load_breast_cancer(return_X_y=True)
X = StandardScaler().fit_transform(X).astype(np.float32)
LABELS = np.array(["malignant", "benign"])[CODES]
NUMBERS = 1e3 + 50.0 * X[:, :2] @ [1.0, 2.0] + RNG.normal(size=len(X))
WEIGHTS = RNG.uniform(0.5, 2.0, size=len(X))
N_EPOCHS = 4


class Batches(Callback):
    """Callback that sees single batches, and so needs the loop of the net."""

    def on_batch_end(self, net, **_):
        pass


class Rows(Callback):
    """Callback that keeps the row numbers, targets and weights of the last epoch."""

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **_):
        datasets = {True: dataset_train, False: dataset_valid}
        places = {row.tobytes(): i for i, row in enumerate(X)}
        self.rows = {
            on_train: np.array([places[row.numpy().tobytes()] for row in dataset.X])
            for on_train, dataset in datasets.items()
        }
        self.targets = {on_train: data.y for on_train, data in datasets.items()}
        self.weights = {
            name: value.clone() for name, value in net.module_.state_dict().items()
        }


def assert_same(found, expected):
    if expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)


def recall_of_user(net, X, y):
    return float(np.mean(net.predict(X)[y == "benign"] == "benign"))


CLASSIFIERS = ["accuracy", "roc_auc", "f1", "neg_log_loss", "balanced_accuracy", None]
F1_OF_LABEL = make_scorer(f1_score, pos_label="benign")
CASES = {
    "codes": (StableNetClassifier, CODES, CLASSIFIERS, {}),
    "binary loss": (
        StableNetClassifier,
        CODES,
        CLASSIFIERS,
        {"criterion": "binary_cross_entropy"},
    ),
    "labels": (
        StableNetClassifier,
        LABELS,
        ["accuracy", "roc_auc", "neg_log_loss", F1_OF_LABEL, recall_of_user],
        {},
    ),
    "numbers": (
        StableNetRegressor,
        NUMBERS,
        ["r2", "neg_mean_squared_error", "neg_median_absolute_error", None],
        {},
    ),
    "two targets": (
        StableNetRegressor,
        np.stack([NUMBERS, X[:, 0] * 1e-6], 1),
        ["r2", "neg_mean_absolute_error"],
        {"criterion": "huber"},
    ),
}


def fitted(case, *others, weights=None):
    estimator, y, scorers, options = CASES[case]
    scores = [
        (f"{i}_{on_train}", EpochScoring(scorer, False, on_train, f"{i}_{on_train}"))
        for i, scorer in enumerate(scorers)
        for on_train in (True, False)
    ]
    model = estimator(
        max_epochs=N_EPOCHS,
        lr=0.01,
        early_stopping=True,
        callbacks=[*scores, *((f"other{i}", o) for i, o in enumerate(others))],
        random_state=0,
        **options,
    )
    return model.fit(X, y, sample_weight=weights), scorers


@pytest.mark.parametrize("others", [(), (Batches(),)], ids=["epochs", "batches"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_estimator(case, weights, others):
    spy = Rows()
    model, scorers = fitted(case, spy, *others, weights=weights)
    y = CASES[case][1]
    model.net_.module_.load_state_dict(spy.weights)  # those of the last epoch
    assert sorted(np.concatenate([spy.rows[True], spy.rows[False]])) == list(
        range(len(X))
    )
    for on_train, rows in spy.rows.items():
        assert_same(spy.targets[on_train], y[rows])
        for i, scorer in enumerate(scorers):
            expected = check_scoring(model, scorer)(model, X[rows], y[rows])
            score = model.net_.history[-1, f"{i}_{on_train}"]
            assert score == pytest.approx(expected, rel=1e-6)


def score_history(case, *others):
    model, scorers = fitted(case, *others)
    names = [
        f"{i}_{on_train}" for i in range(len(scorers)) for on_train in (True, False)
    ]
    return np.array(model.net_.history[:, names])


@pytest.mark.parametrize("case", CASES)
def test_a_stack_and_the_loop_of_the_net_have_the_same_scores(case):
    found, expected = score_history(case), score_history(case, Batches())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_training_stops_by_a_score():
    rule = EarlyStopping(monitor="valid_acc", lower_is_better=False, patience=2)
    model = StableNetClassifier(
        max_epochs=50,
        lr=0.01,
        early_stopping=True,
        callbacks=[EpochScoring("accuracy", False, name="valid_acc"), rule],
        random_state=0,
    ).fit(X, LABELS)
    scores = model.net_.history[:, "valid_acc"]
    assert len(scores) == int(np.argmax(scores)) + 1 + 2 < 50


def test_without_held_out_rows_there_is_no_score_of_them():
    callbacks = [
        ("train", EpochScoring("accuracy", False, on_train=True, name="train")),
        ("valid", EpochScoring("accuracy", False, name="valid")),
    ]
    model = StableNetClassifier(
        max_epochs=2, early_stopping=False, callbacks=callbacks, random_state=0
    ).fit(X, CODES)
    assert model.net_.history[-1, "train"] == model.score(X, CODES)
    assert "valid" not in model.net_.history[-1]


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_scores_of_batches_are_averaged_over_the_rows(weights):
    callbacks = [
        ("a", BatchScoring("accuracy", name="of_batches")),
        ("b", EpochScoring("accuracy", name="of_epoch")),
    ]
    model = StableNetClassifier(
        max_epochs=2, early_stopping=True, callbacks=callbacks, random_state=0
    ).fit(X, LABELS, sample_weight=weights)
    row = model.net_.history[-1]
    assert row["of_batches"] == pytest.approx(row["of_epoch"])


def test_the_net_of_an_estimator_predicts_as_the_estimator():
    model, _ = fitted("labels")
    net = model.net_
    frame = X.astype(np.float64)
    np.testing.assert_array_equal(net.predict(frame), model.predict(X))
    np.testing.assert_array_equal(net.predict_proba(frame), model.predict_proba(X))
    np.testing.assert_array_equal(net.classes_, model.classes_)
    assert net.score(torch.from_numpy(X), LABELS) == model.score(X, LABELS)
    model, _ = fitted("numbers")
    np.testing.assert_array_equal(model.net_.predict(X), model.predict(X))
    assert model.net_.score(X, NUMBERS) == model.score(X, NUMBERS)
    assert not hasattr(model.net_, "classes_")
    with pytest.raises(AttributeError, match="A regressor has no predict_proba"):
        model.net_.predict_proba(X)


@pytest.mark.parametrize("scale", [1.0, 100.0], ids=["standard", "raw units"])
def test_the_net_of_an_estimator_gives_its_outputs(scale):
    inputs = X * np.float32(scale)
    model = StableNetClassifier(max_epochs=2, random_state=0).fit(inputs, LABELS)
    net = model.net_
    expected = model._output(inputs)
    assert torch.equal(net.forward(inputs), expected)
    assert torch.equal(net.forward(inputs.astype(np.float64), training=True), expected)
    net.set_params(batch_size=16)
    torch.testing.assert_close(torch.cat(list(net.forward_iter(inputs))), expected)
    batches = list(net.get_iterator(net.get_dataset(inputs, CODES)))
    np.testing.assert_array_equal(torch.cat([y for _, y in batches]), CODES)
    torch.testing.assert_close(net.evaluation_step(batches[0]), expected[:16])


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("is_clone", [False, True], ids=["net", "clone"])
def test_the_net_of_an_estimator_refuses_to_train(method, is_clone):
    net = StableNetClassifier(max_epochs=1).fit(X, LABELS).net_
    net = clone(net) if is_clone else net
    message = (
        "The net_ of a fitted estimator predicts, but is not trained. To train its "
        "network, call partial_fit of the estimator, or fit with warm_start=True."
    )
    with pytest.raises(NotImplementedError, match=re.escape(message)):
        getattr(net, method)(X, CODES)


def test_the_classes_of_a_task_with_three_classes_are_scored():
    inputs, y = load_iris(return_X_y=True)
    scoring = EpochScoring("roc_auc_ovr", False, on_train=True, name="auc")
    model = StableNetClassifier(
        max_epochs=20, lr=0.01, callbacks=[scoring], random_state=0
    ).fit(inputs, y)
    assert model.net_.history[-1, "auc"] > 0.8


@pytest.mark.parametrize("at", [1, 2])
def test_ctrl_c_in_a_scorer_ends_the_training_with_a_warning(at):
    scores = iter([0.5, 0.6][: at - 1])

    def scoring(estimator, X, y):
        for score in scores:
            return score
        raise KeyboardInterrupt

    X = np.random.default_rng(0).normal(size=(60, 3))
    model = StableNetClassifier(
        scoring=scoring, early_stopping=True, max_epochs=4, random_state=0
    )
    with pytest.warns(UserWarning, match=f"interrupted after {at} of 4 epochs"):
        model.fit(X, (X[:, 0] > 0).astype(int))
    assert model.best_epoch_ == (1 if at == 2 else None)
    assert np.isfinite(model.predict_proba(X)).all()
