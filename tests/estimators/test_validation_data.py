"""Validation data, groups and splitters decide which rows are held out."""

import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    ShuffleSplit,
    TimeSeriesSplit,
)
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback

from sknan import (
    BatchedGridSearchCV,
    NaNImputer,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan._engine.range_test.curves import drawn_rows
from sknan.estimators._validation_split import HoldOut, folds_of_groups

_rng = np.random.default_rng(0)
X = _rng.normal(size=(60, 3)).astype(np.float32)
X_VAL = _rng.normal(size=(20, 3)).astype(np.float32)
GROUPS = np.repeat(["p", "q", "r", "s", "t", "u"], 10)
OPTIONS = {"max_epochs": 3, "module__width": 8, "random_state": 0}


def labels_of(rows):
    return np.where(rows[:, 0] > 0, "up", "down")


Y, Y_VAL = labels_of(X), labels_of(X_VAL)


class HeldOut(Callback):
    """Callback that records the training rows and the held-out rows."""

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **_):
        self.train, self.valid = dataset_train.X, dataset_valid.X


def rows_of(found, table=X):
    """Return the numbers of rows in the table."""
    return sorted(int((table == row).all(axis=1).argmax()) for row in np.asarray(found))


def held_out(model=StableNetClassifier, table=X, **data):
    """Return the numbers of the training and of the held-out rows of a fit."""
    options = data.pop("options", {})
    record = HeldOut()
    y = labels_of(table) if model is StableNetClassifier else table[:, 0]
    model(**OPTIONS, callbacks=[record], **options).fit(table, y, **data)
    return rows_of(record.train, table), rows_of(record.valid, table)


# -- validation data -------------------------------------------------------------------


@pytest.mark.parametrize("early_stopping", [True, "auto"])
def test_validation_data_are_used_instead_of_training_rows(early_stopping):
    record = HeldOut()
    model = StableNetClassifier(
        **OPTIONS, early_stopping=early_stopping, callbacks=[record]
    )
    model.fit(X, Y, X_val=X_VAL, y_val=Y_VAL)
    assert rows_of(record.train) == list(range(60))
    assert rows_of(record.valid, X_VAL) == list(range(20))
    losses = [row["valid_loss"] for row in model.net_.history]
    assert model.best_epoch_ == len(losses) - np.argmin(losses[::-1])


def test_validation_data_train_the_same_network_as_held_out_rows():
    model = StableNetClassifier(**OPTIONS, module__dropout=0.1, batch_size=16)
    weights = np.linspace(1, 2, 80)
    weights[:60] *= 60 / weights[:60].sum()
    weights[60:] *= 20 / weights[60:].sum()
    given = clone(model).fit(
        X, Y, weights[:60], X_val=X_VAL, y_val=Y_VAL, sample_weight_val=weights[60:]
    )
    split = model.set_params(validation_split=[(range(60), range(60, 80))])
    split.fit(np.vstack([X, X_VAL]), [*Y, *Y_VAL], weights)
    for name in ("train_loss", "valid_loss"):
        np.testing.assert_allclose(
            given.net_.history[:, name], split.net_.history[:, name], rtol=1e-6
        )
    np.testing.assert_allclose(
        given.predict_proba(X), split.predict_proba(X), rtol=1e-5
    )


def test_weights_of_validation_data_change_the_best_epoch_only():
    model = StableNetRegressor(**OPTIONS)
    y, y_val = X[:, 0], X_VAL[:, 0]
    plain, weighted = (
        clone(model).fit(X, y, X_val=X_VAL, y_val=y_val, sample_weight_val=weights)
        for weights in (None, np.arange(20))
    )
    # Rounding differs, because each row has a weight.
    np.testing.assert_allclose(
        plain.net_.history[:, "train_loss"], weighted.net_.history[:, "train_loss"],
        rtol=1e-5,
    )  # fmt: skip
    assert weighted.best_epoch_ == 3
    error = ((weighted.predict(X_VAL) - y_val) / weighted.target_scale_) ** 2
    mean = np.average(error, weights=np.arange(20))
    assert weighted.net_.history[-1, "valid_loss"] == pytest.approx(mean, rel=1e-4)


def test_statistics_come_from_the_training_rows_only():
    far = X_VAL + np.float32(1000)
    model = StableNetRegressor(**OPTIONS)
    model.fit(X, X[:, 0], X_val=far, y_val=far[:, 0])
    assert model.target_mean_ == pytest.approx(X[:, 0].mean(), abs=1e-6)


NAMED = pd.DataFrame(X, columns=["a", "b", "c"])
WITH_NAN = np.where(np.arange(3) == 1, np.nan, X_VAL)


@pytest.mark.parametrize(
    ("table", "data", "message"),
    [
        (
            X, {"X_val": X_VAL},
            "X_val is provided, but y_val was not provided. Pass X_val and y_val "
            "together.",
        ),
        (
            X, {"y_val": Y_VAL},
            "y_val is provided, but X_val was not provided. Pass X_val and y_val "
            "together.",
        ),
        (
            X, {"sample_weight_val": np.ones(20)},
            "sample_weight_val is provided, but X_val was not provided. Pass X_val and "
            "y_val together.",
        ),
        (
            X, {"X_val": X_VAL[:, :2], "y_val": Y_VAL},
            "X_val does not match X. X has 2 features, but StableNetClassifier is "
            "expecting 3 features as input.",
        ),
        (
            NAMED, {"X_val": NAMED[["b", "a", "c"]], "y_val": Y},
            "X_val does not match X. The feature names should match those that were "
            "passed during fit.\nFeature names must be in the same order as they were "
            "in fit.\n",
        ),
        (
            X, {"X_val": WITH_NAN, "y_val": Y_VAL},
            "X_val contains 20 NaN values in 1 of 3 columns: 1 (20, first at row 0). "
            "Transform it as X is: a Pipeline with transform_input=['X_val'] does, "
            "with metadata routing enabled.",
        ),
        (
            X, {"X_val": X_VAL, "y_val": [*Y_VAL[1:], "left"]},
            "y_val contains labels that are not among the classes ['down', 'up']: "
            "['left'].",
        ),
        (
            X, {"X_val": X_VAL, "y_val": [*Y_VAL[1:], None]},
            "y_val contains 1 missing labels (None, NaN or NaT), first at row 19. A "
            "row without a finite target cannot be used for training: remove these "
            "rows from X_val and y_val.",
        ),
        (
            X, {"X_val": X_VAL, "y_val": Y_VAL[1:]},
            "X_val has 20 rows, but y_val has 19.",
        ),
        (
            X, {"X_val": X_VAL, "y_val": Y_VAL, "sample_weight_val": np.ones(3)},
            "sample_weight_val must have shape (20,), one weight per row, got (3,).",
        ),
        (
            X, {"groups": np.ones(3)},
            "groups must have shape (60,), one group per row, got (3,).",
        ),
        (
            X, {"groups": [None, *GROUPS[1:]]},
            "groups contains 1 missing labels (None, NaN or NaT), first at row 0. Give "
            "each row that belongs to no other a group of its own.",
        ),
        (
            X, {"groups": np.ones(60)},
            "groups contains one group only, but a whole group is to be held out. Pass "
            "X_val and y_val, or set early_stopping=False and a number for lr.",
        ),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_refused(table, data, message):
    for model in (
        StableNetClassifier(**OPTIONS, early_stopping=True),
        StableNetEnsembleClassifier(
            StableNetClassifier(**OPTIONS, early_stopping=True), n_estimators=2
        ),
    ):
        with pytest.raises(ValueError, match=r"\w") as refused:
            model.fit(table, Y, **data)
        assert str(refused.value) == message


def test_targets_and_parameters_that_do_not_fit_validation_data_are_refused():
    model = StableNetRegressor(**OPTIONS)
    with pytest.raises(ValueError, match="target columns") as refused:
        model.fit(X, X[:, 0], X_val=X_VAL, y_val=X_VAL[:, :2])
    assert str(refused.value) == (
        "y_val has 2 target columns, but the training data have 1."
    )
    with pytest.raises(ValueError, match="early_stopping=False") as refused:
        model.set_params(early_stopping=False).fit(
            X, X[:, 0], X_val=X_VAL, y_val=X_VAL[:, 0]
        )
    assert str(refused.value) == (
        "X_val and y_val are provided, but early_stopping=False does not use them. Set "
        "early_stopping to 'auto' or True."
    )
    with pytest.raises(ValueError, match="validation_split") as refused:
        model.set_params(early_stopping=True, validation_split=GroupKFold(3)).fit(
            X, X[:, 0], X_val=X_VAL, y_val=X_VAL[:, 0]
        )
    assert str(refused.value) == (
        "X_val and validation_split both choose the rows to validate on. Pass one of "
        "them."
    )


# -- groups ----------------------------------------------------------------------------


@pytest.mark.parametrize("model", [StableNetClassifier, StableNetRegressor])
def test_groups_are_held_out_as_a_whole(model):
    data = {"groups": GROUPS, "options": {"early_stopping": True}}
    train, valid = held_out(model, **data)
    assert sorted([*train, *valid]) == list(range(60))
    assert len(valid) == 10
    assert not set(GROUPS[train]) & set(GROUPS[valid])


def test_equal_rows_of_different_groups_are_not_merged():
    twice = np.vstack([X[:30], X[:30]])
    groups = np.repeat(np.arange(20), 3)
    record = HeldOut()
    model = StableNetRegressor(**OPTIONS, early_stopping=True, callbacks=[record])
    model.fit(twice, twice[:, 0], groups=groups)
    assert (len(record.train), len(record.valid)) == (54, 6)


def test_rows_without_weight_do_not_count_in_their_groups():
    weights = np.where(GROUPS == "p", 0.0, 1.0)
    data = {"sample_weight": weights, "groups": GROUPS}
    train, valid = held_out(options={"early_stopping": True}, **data)
    assert sorted([*train, *valid]) == list(range(10, 60))


def test_folds_of_groups_are_similar_in_size_and_classes():
    groups = _rng.permutation(np.repeat(np.arange(40), _rng.integers(1, 30, 40)))
    groups = np.unique(groups, return_inverse=True)[1]
    classes = (groups % 4 == 0).astype(int)  # all rows of a group are of one class
    folds = folds_of_groups(groups, classes, 5, seed=0)[groups]
    table = np.array([np.bincount(classes[folds == i]) for i in range(5)])
    assert (np.ptp(table, axis=0) <= [20, 30]).all()
    few = folds_of_groups(np.array([0, 1, 2]), np.array([0, 1, 0]), 3, seed=0)
    assert sorted(few) == [0, 1, 2]


def test_networks_of_an_ensemble_hold_out_different_groups():
    held = []
    for groups in (GROUPS, GROUPS.repeat(1).astype(object), np.repeat([0, 1], 30)):
        records = []
        for number in range(5):
            hold_out = HoldOut(
                0.1, True, None, np.unique(groups, return_inverse=True)[1]
            )
            model = StableNetEnsembleClassifier(random_state=0)
            fold = model._jobs(X, Y)[number].fit_params["fold"]
            _, valid = hold_out.with_fold(fold).split((X[:, 0] > 0).astype(int), 0)
            records.append(set(groups[valid.numpy()]))
        held.append(records)
    assert set.union(*held[0]) == set(GROUPS)
    assert sum(map(len, held[0])) == 6
    assert held[2] in ([{0}, {1}] * 2 + [{0}], [{1}, {0}] * 2 + [{1}])


def test_the_range_test_holds_out_the_same_rows():
    def drawn(**data):
        rows = StableNetClassifier(**OPTIONS)._training_rows(X, Y, **data)
        return drawn_rows(rows, 500, np.random.RandomState(0))

    train, valid = drawn(groups=GROUPS)
    assert sorted([*train.numbers, *valid.numbers]) == list(range(60))
    assert not set(GROUPS[train.numbers]) & set(GROUPS[valid.numbers])
    train, valid = drawn(X_val=X_VAL, y_val=Y_VAL)
    assert rows_of(train.X) == list(range(60))
    np.testing.assert_array_equal(valid.X, X_VAL)


def test_the_automatic_learning_rate_depends_on_the_held_out_rows():
    model = StableNetRegressor(**OPTIONS, lr="auto", early_stopping=True)
    found = [
        clone(model).fit(X, X[:, 0], **data).learning_rate_range_
        for data in ({}, {"groups": GROUPS}, {"X_val": X_VAL, "y_val": X_VAL[:, 1]})
    ]
    assert len({float(np.nanmin(each.valid_losses)) for each in found}) == 3


# -- splitters -------------------------------------------------------------------------


def test_a_network_takes_the_last_split_of_a_time_series_and_else_the_first():
    def split_by(splitter, **data):
        return held_out(options={"validation_split": splitter}, **data)

    assert split_by(TimeSeriesSplit(3)) == ([*range(45)], [*range(45, 60)])
    windows = TimeSeriesSplit(3, max_train_size=15)
    assert split_by(windows) == ([*range(30, 45)], [*range(45, 60)])
    assert split_by(KFold(3)) == ([*range(20, 60)], [*range(20)])
    assert split_by([(np.arange(60) < 9, [30, 20])]) == ([*range(9)], [20, 30])
    train, valid = split_by(GroupKFold(3), groups=GROUPS)
    assert not set(GROUPS[train]) & set(GROUPS[valid])
    weights = np.ones(60)
    weights[45:50] = 0.0
    expected = [*range(45)], [*range(50, 60)]
    assert split_by(TimeSeriesSplit(3), sample_weight=weights) == expected


@pytest.mark.parametrize("splitter", [ShuffleSplit(2), KFold(3, shuffle=True)])
def test_a_splitter_without_a_seed_follows_the_random_state(splitter):
    options = {"validation_split": splitter}
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    assert held_out(options=options) == held_out(options=options)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert splitter.random_state is None


@pytest.mark.parametrize("is_parameter_of_network", [True, False])
def test_networks_of_an_ensemble_take_successive_splits(is_parameter_of_network):
    records = [HeldOut() for _ in range(7)]
    split = {"validation_split": KFold(3)}
    of_network, of_ensemble = (split, {}) if is_parameter_of_network else ({}, split)
    model = StableNetEnsembleRegressor(
        StableNetRegressor(**OPTIONS, **of_network), n_estimators=7, **of_ensemble
    )
    jobs = model._jobs(X, X[:, 0])
    for job, record in zip(jobs, records, strict=True):
        job.estimator.set_params(callbacks=[record])._fit(X, X[:, 0], **job.fit_params)
    firsts = [rows_of(record.valid)[0] for record in records]
    assert firsts == [0, 20, 40, 0, 20, 40, 0]


@pytest.mark.parametrize(
    ("splitter", "message"),
    [
        (
            5,
            "The 'validation_split' parameter of StableNetClassifier must be a "
            "splitter such as GroupKFold(), a list of (train, valid) pairs of row "
            "numbers, 'chunks' or None, got 5.",
        ),
        (
            [(range(10), range(5, 60))],
            "validation_split has 5 of 60 rows in both parts of a split. A row that is "
            "trained on cannot be held out.",
        ),
        (
            [(range(10), [60])],
            "validation_split must contain row numbers of X, which has 60 rows: index "
            "60 is out of bounds for axis 0 with size 60.",
        ),
        (
            [(range(10), [])],
            "validation_split gives a split with 10 training rows and 0 validation "
            "rows. Both parts need rows.",
        ),
    ],
)
def test_a_split_that_cannot_be_used_is_refused(splitter, message):
    with pytest.raises(ValueError, match="validation_split") as refused:
        held_out(options={"validation_split": splitter})
    assert str(refused.value) == message


def test_a_split_without_rows_of_positive_weight_is_refused():
    weights = np.arange(60.0) > 30
    with pytest.raises(ValueError, match="validation_split") as refused:
        held_out(
            options={"validation_split": [(range(10), range(20, 60))]},
            sample_weight=weights,
        )
    assert str(refused.value) == (
        "validation_split gives a split with 0 training rows and 29 validation rows of "
        "positive weight. Both parts need rows."
    )


def test_an_error_of_the_splitter_names_the_parameter():
    with pytest.raises(ValueError, match="groups") as refused:
        held_out(options={"validation_split": GroupKFold(3)})
    assert refused.value.__notes__ == [
        "while splitting the rows by validation_split=GroupKFold(n_splits=3, "
        "random_state=None, shuffle=False)"
    ]


# -- pipelines and searches ------------------------------------------------------------


@pytest.mark.parametrize("is_ensemble", [False, True])
def test_a_pipeline_transforms_validation_data(is_ensemble):
    net = StableNetClassifier(**OPTIONS, early_stopping=True)
    if is_ensemble:
        net = StableNetEnsembleClassifier(net, n_estimators=2, random_state=0)
    with config_context(enable_metadata_routing=True):
        net.set_fit_request(X_val=True, y_val=True)
        steps = [("impute", NaNImputer()), ("scale", SafeScaler()), ("net", net)]
        model = Pipeline(steps, transform_input=["X_val"])
        model.fit(X, Y, X_val=WITH_NAN, y_val=Y_VAL)
        start = model[:-1]
        alone = clone(net).fit(
            start.transform(X), Y, X_val=start.transform(WITH_NAN), y_val=Y_VAL
        )
    expected = alone.predict_proba(start.transform(X))
    np.testing.assert_array_equal(model.predict_proba(X), expected)


def test_searches_index_groups_and_pass_validation_data_on():
    found = []
    with config_context(enable_metadata_routing=True):
        net = StableNetClassifier(**OPTIONS, early_stopping=True)
        for data in (
            {"groups": GROUPS, "X_val": None, "y_val": None},
            {"groups": GROUPS, "X_val": X_VAL, "y_val": Y_VAL},
        ):
            net.set_fit_request(groups=True, X_val=True, y_val=True)
            for search in (GridSearchCV, BatchedGridSearchCV):
                grid = {"lr": [1e-3, 3e-3]}
                fitted = search(net, grid, cv=GroupKFold(3), scoring="neg_log_loss")
                found.append(fitted.fit(X, Y, **data).cv_results_)
                assert fitted.best_estimator_.best_epoch_ is not None
    for plain, batched in zip(found[::2], found[1::2], strict=True):
        assert batched["stacked"].all()
        np.testing.assert_allclose(
            plain["mean_test_score"], batched["mean_test_score"], rtol=1e-6
        )
    assert (found[0]["mean_test_score"] != found[2]["mean_test_score"]).all()
