"""Targets of several labels per row: one network, one logit per label."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_array, csr_matrix
from sklearn.base import clone
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GridSearchCV, TunedThresholdClassifierCV
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from torch import nn

import sknan.losses as sl
from sknan import (
    BatchedGridSearchCV,
    NonFiniteDataError,
    StableNetClassifier,
    StableNetEnsembleClassifier,
)
from sknan.estimators._labels import label_combinations, label_weights
from sknan.losses._per_label import PerLabelLoss, loss_per_label

_rng = np.random.default_rng(0)
X = _rng.normal(size=(90, 4)).astype(np.float32)
Y = (X[:, :3] + X[:, 1:] > [0.0, 0.7, -0.7]).astype(np.int64)
WEIGHTS = _rng.uniform(0.5, 2.0, size=90)
NET = StableNetClassifier(max_epochs=4, lr=0.01, batch_size=32, random_state=0)


class NetworkPerLabel(nn.Module):
    """Three networks that share nothing."""

    def __init__(self):
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(3)
        )

    def forward(self, x):
        return torch.cat([network(x) for network in self.networks], 1)


def trained_in_plain_torch(network, weights):
    """Train on all rows in each step, with the losses of the labels averaged."""
    x, y = torch.from_numpy(X), torch.from_numpy(Y).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01, weight_decay=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        losses = nn.BCEWithLogitsLoss(reduction="none")(network(x), y)
        (losses * weights).mean().backward()
        optimizer.step()
    with torch.no_grad():
        return torch.sigmoid(network(x)).numpy()


@pytest.mark.parametrize("engine", ["stack", "loop"])
@pytest.mark.parametrize("weighting", ["none", "rows", "labels", "both"])
def test_it_equals_one_network_per_label_trained_jointly(engine, weighting):
    torch.manual_seed(0)
    network = NetworkPerLabel()
    rows = WEIGHTS if weighting in ("rows", "both") else np.ones(90)
    of_labels = [{0: 1.0, 1: 3.0}, {1: 2.0}, {}]
    present, absent = np.array([3.0, 2.0, 1.0]), np.ones(3)
    if weighting not in ("labels", "both"):
        of_labels, present = None, absent
    weights = np.where(Y, present, absent) * rows[:, None]
    model = StableNetClassifier(
        network,
        lr=0.01,
        lr_schedule=None,
        max_epochs=20,
        batch_size=90,
        clip_norm=None,
        class_weight=of_labels,
    )
    plan = model._plan(model._training_rows(X, Y, rows))
    if engine == "loop":
        plan.run_loop()
        model._finish(plan)
    else:
        model.fit(X, Y, rows)

    expected = trained_in_plain_torch(
        network, torch.from_numpy(weights / weights.mean()).float()
    )

    np.testing.assert_allclose(model.predict_proba(X), expected, atol=1e-6)


@pytest.mark.parametrize(
    "as_target",
    [
        lambda y: y.astype(bool),
        lambda y: y.astype(np.float64),
        lambda y: y.tolist(),
        csr_matrix,
        csr_array,
        lambda y: pd.DataFrame(y, columns=list("abc")),
        lambda y: pd.DataFrame(y).astype("Int8"),
    ],
)
def test_every_representation_of_labels_trains_the_same_network(as_target):
    expected = clone(NET).fit(X, Y)
    model = clone(NET).fit(X, as_target(Y))

    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    predicted = model.predict(X)
    np.testing.assert_array_equal(predicted, (model.predict_proba(X) > 0.5) * 1)
    assert predicted.dtype == np.int64
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])
    assert model.score(X, as_target(Y)) == accuracy_score(Y, predicted)
    assert model.net_.score(X, Y) == model.score(X, Y)
    np.testing.assert_array_equal(model.net_.predict(X), predicted)
    assert type(model.net_.criterion_) is sl.BCEWithLogitsLoss


def brier(output, target):
    return (torch.sigmoid(output) - target).square().mean()


@pytest.mark.parametrize(
    ("criterion", "options"),
    [
        ("cross_entropy", {}),
        ("binary_cross_entropy", {"criterion__pos_weight": torch.tensor([1.0, 2, 3])}),
        ("focal", {"criterion__gamma": 1.0}),
        ("cross_entropy", {"criterion__label_smoothing": 0.2}),
        (sl.BoundedLoss(sl.CrossEntropyLoss(), 0.0, 2.0), {}),
        (nn.BCEWithLogitsLoss, {}),
        (nn.MultiLabelSoftMarginLoss, {}),
        (brier, {}),
    ],
)
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_a_stack_and_the_loop_agree(criterion, options, weights):
    if weights is not None and criterion is brier:
        pytest.skip("A function gives no loss per row.")
    model = clone(NET).set_params(criterion=criterion, **options)
    looped = clone(model)
    plan = looped._plan(looped._training_rows(X, Y, weights))
    plan.run_loop()
    looped._finish(plan)

    model.fit(X, Y, weights)

    np.testing.assert_allclose(
        model.predict_proba(X), looped.predict_proba(X), atol=1e-5
    )
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (
            sl.CrossEntropyLoss(label_smoothing=0.2),
            lambda z, y: nn.BCEWithLogitsLoss()(z, 0.8 * y + 0.1),
        ),
        (sl.CrossEntropyLoss(reduction="sum"), nn.BCEWithLogitsLoss(reduction="sum")),
        (sl.FocalLoss(0.0), nn.BCEWithLogitsLoss()),
        (
            sl.FocalLoss(2.0),
            lambda z, y: (
                (torch.sigmoid(z) - y).square()
                * nn.BCEWithLogitsLoss(reduction="none")(z, y)
            ).mean(),
        ),
    ],
)
def test_a_loss_of_classes_applies_to_each_label(loss, expected):
    z = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    y = torch.from_numpy(Y[:7]).float()
    found = loss_per_label(loss, "loss", None)(z, y)
    torch.testing.assert_close(found, expected(z, y))


@pytest.mark.parametrize("value", [1e38, -1e38, 100.0])
def test_a_loss_per_label_is_finite_for_all_logits(value):
    for loss in (sl.FocalLoss(), sl.CrossEntropyLoss(label_smoothing=0.1)):
        z = torch.full((2, 3), value, requires_grad=True)
        total = loss_per_label(loss, "loss", None)(z, torch.eye(2, 3))
        total.backward()
        assert torch.isfinite(total)
        assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        ("nll", "'nll'"),
        ("probability_nll", "'probability_nll'"),
        (nn.MultiMarginLoss, "MultiMarginLoss"),
        (nn.SoftMarginLoss(), "SoftMarginLoss"),
        (nn.MultiLabelMarginLoss(), "MultiLabelMarginLoss"),
    ],
)
def test_a_criterion_of_one_class_per_row_is_refused(criterion, name):
    model = StableNetClassifier(lambda: 1 / 0, criterion=criterion)
    with pytest.raises(ValueError, match="one class per row") as refused:
        model.fit(X, Y)
    assert str(refused.value) == (
        f"criterion={name} is for one class per row, but y has several labels per row. "
        "Use criterion='cross_entropy', 'binary_cross_entropy' or 'focal'."
    )
    for remedy in ("cross_entropy", "binary_cross_entropy", "focal"):
        clone(NET).set_params(criterion=remedy, max_epochs=1).fit(X, Y)


def test_several_targets_of_any_classes_are_refused():
    several = pd.DataFrame(Y * [1, 1, 2], columns=list("abc"))
    row = several["c"].argmax()
    with pytest.raises(ValueError, match="3 columns") as refused:
        NET.fit(X, several)
    assert str(refused.value) == (
        "y has 3 columns, each for a label that a row has (1) or not (0), but it "
        f"contains 2 at row {row} of column 'c'. For several targets of any classes "
        "use sklearn.multioutput.MultiOutputClassifier(StableNetClassifier())."
    )
    MultiOutputClassifier(StableNetClassifier(max_epochs=1)).fit(X, several)


def test_a_missing_label_is_refused():
    missing = pd.DataFrame(Y).astype("Int8")
    missing.iloc[5, 1] = pd.NA
    with pytest.raises(NonFiniteDataError, match="row 5"):
        NET.fit(X, missing)
    with pytest.raises(NonFiniteDataError, match="3 NaN values"):
        NET.fit(X, np.where(np.eye(90, 3), np.nan, Y))


def test_another_number_of_labels_is_refused():
    model = clone(NET).partial_fit(X, Y)
    for other, words in [(Y[:, :2], "2 labels"), (Y[:, 0], "one class")]:
        with pytest.raises(ValueError, match="first fit") as refused:
            model.partial_fit(X, other)
        assert str(refused.value) == (
            f"y has {words} per row, but the first fit had 3 labels per row."
        )
    with pytest.raises(ValueError, match="numbers of the") as refused:
        clone(NET).partial_fit(X, Y, classes=[0, 1])
    assert str(refused.value) == (
        "classes=[0, 1] must be the numbers of the 3 columns of y, [0, 1, 2], or None."
    )
    with pytest.raises(ValueError, match="3 labels need one logit each"):
        StableNetClassifier(nn.Linear(4, 2)).fit(X, Y)


def test_partial_fit_continues_with_other_class_weights():
    model = clone(NET).partial_fit(X[:60], Y[:60], classes=[0, 1, 2])
    model.partial_fit(X[60:], csr_array(Y[60:]))
    assert model.score(X, Y) > 0.2
    model.set_params(class_weight={1: 5.0}).partial_fit(X, Y)
    ratio = model.net_.criterion_.weights[1] / model.net_.criterion_.weights[0]
    torch.testing.assert_close(ratio, torch.full((3,), 5.0))
    model.set_params(class_weight=[{1: 3.0}, {}, {}]).partial_fit(X, Y)
    ratio = model.net_.criterion_.weights[1] / model.net_.criterion_.weights[0]
    torch.testing.assert_close(ratio, torch.tensor([3.0, 1.0, 1.0]))


@pytest.mark.parametrize("rows", [None, WEIGHTS])
def test_balanced_labels_weigh_the_same_absent_and_present(rows):
    weights = label_weights("balanced", Y, rows, "StableNetClassifier", False)
    each = weights[Y, np.arange(3)]
    for label in range(3):
        of_class = [
            np.sum(
                each[Y[:, label] == c, label]
                * (1 if rows is None else rows[Y[:, label] == c])
            )
            for c in (0, 1)
        ]
        assert of_class[0] == pytest.approx(of_class[1], rel=1e-5)
    assert np.average(each.mean(1), weights=rows) == pytest.approx(1.0, rel=1e-5)
    constant = label_weights("balanced", Y * [0, 1, 1], rows, "", False)
    assert np.isfinite(constant).all()


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        (
            [{1: 2.0}],
            "The 'class_weight' parameter of StableNetClassifier must be a dict of "
            "numbers, a list of 3 dicts, 'balanced' or None, got [{1: 2.0}].",
        ),
        (
            {2: 3.0},
            "class_weight has the key 2, but the classes of each label are 0 and 1. "
            "Pass a list of dicts for different weights of the labels.",
        ),
        ({1: -1.0}, "class_weight must not be negative, but is for [1, 1, 1]."),
        (
            {0: 0.0, 1: 0.0},
            "class_weight gives every label the weight 0. At least one label needs a "
            "positive weight.",
        ),
    ],
)
def test_class_weights_that_do_not_fit_labels_are_refused(class_weight, message):
    with pytest.raises(ValueError, match="class_weight") as refused:
        clone(NET).set_params(class_weight=class_weight).fit(X, Y)
    assert str(refused.value) == message


def test_class_weights_need_a_loss_per_label():
    model = clone(NET).set_params(
        criterion=nn.MultiLabelSoftMarginLoss, class_weight={1: 2.0}
    )
    with pytest.raises(ValueError, match="loss per label") as refused:
        model.fit(X, Y)
    assert str(refused.value) == (
        "class_weight needs a loss per label, but 32 rows of 3 labels have losses of "
        "shape (32,). Use criterion='binary_cross_entropy'."
    )


def test_a_stack_of_a_search_gives_the_scores_of_scikit_learn():
    grid = {"lr": [0.003, 0.03], "class_weight": [None, "balanced"]}
    common = {"cv": 2, "scoring": ["f1_macro", "roc_auc"], "refit": "f1_macro"}
    batched = BatchedGridSearchCV(NET, grid, **common).fit(X, Y)
    single = GridSearchCV(NET, grid, **common).fit(X, Y)
    assert batched.cv_results_["stacked"].all()
    for name in ("mean_test_f1_macro", "mean_test_roc_auc"):
        np.testing.assert_allclose(
            batched.cv_results_[name], single.cv_results_[name], atol=1e-6
        )
    assert batched.predict(X).shape == Y.shape


def test_an_ensemble_averages_the_probabilities_of_labels():
    network = clone(NET).set_params(early_stopping=True)
    model = StableNetEnsembleClassifier(network, n_estimators=2, random_state=0)
    model.fit(X, csr_matrix(Y))
    each = [member.predict_proba(X) for member in model.estimators_]
    np.testing.assert_allclose(model.predict_proba(X), np.mean(each, 0), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(X), model.predict_proba(X) > 0.5)
    np.testing.assert_array_equal(model.classes_, [0, 1, 2])


def test_rows_are_stratified_by_their_combination_of_labels():
    y = np.array([[0, 1], [0, 1], [1, 1], [0, 0], [0, 1], [0, 0]])
    found = label_combinations(y)
    assert found[0] == found[1] == found[4] != found[3] == found[5]
    assert found[2] == -1
    rare = np.zeros((600, 2), dtype=int)
    rare[:20, 1] = 1
    model = StableNetClassifier(max_epochs=1, random_state=0)
    plan = model._plan(model._training_rows(np.zeros((600, 1)) + rare[:, 1:], rare))
    _, valid = plan.split(plan.split_seed)
    assert rare[valid.numpy()].sum() == 2


def test_meta_estimators_of_scikit_learn_take_one_label_at_a_time():
    thresholds = TunedThresholdClassifierCV(clone(NET), cv=2, scoring="f1")
    tuned = MultiOutputClassifier(thresholds).fit(X, Y)
    chained = ClassifierChain(clone(NET), order=[2, 0, 1]).fit(X, Y)
    for model in (tuned, chained):
        assert f1_score(Y, model.predict(X), average="macro") > 0.7


def test_a_criterion_per_label_is_not_wrapped_again():
    wrapped = loss_per_label(sl.FocalLoss(), "'focal'", None)
    assert isinstance(wrapped, PerLabelLoss)
    assert sl.unbounded(wrapped).gamma == 2.0
