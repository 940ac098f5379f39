"""Columns of X in raw units, and values beside which the others vanish."""

from __future__ import annotations

import contextlib
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from skorch.callbacks import EpochScoring
from torch import nn

from sknan import (
    NonFiniteDataError,
    NonFiniteTrainingError,
    SafeScaler,
    StableNetClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan.estimators import default_network
from sknan.estimators._column_scaling import raw_columns
from sknan.losses import BoundedLoss, MSELoss
from sknan.model_selection import BatchedGridSearchCV

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(400, 3))
TIME = 1.7e9 + RNG.uniform(0, 3e7, 400)
X = np.column_stack([Z, TIME])
Y = Z[:, 0] + 0.1 * RNG.normal(size=400)


def raw(column):
    """Return a table with a last column in raw units, and a target that needs it."""
    in_standard_units = (column - column.mean()) / column.std()
    return np.column_stack([Z, column]), Z[:, 0] + in_standard_units


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_column_of_unix_time_is_standardized(optimizer, clip_norm):
    lr = {"adamw": 1e-3, "sgd": 0.05}[optimizer]
    net = StableNetRegressor(
        optimizer=optimizer, lr=lr, clip_norm=clip_norm, random_state=0
    )
    assert net.fit(X, Y).score(X, Y) > 0.9
    assert net.nonfinite_reports_ == []


@pytest.mark.parametrize(
    "column",
    [
        1.7e9 + np.arange(400.0),  # seconds, which float32 does not resolve
        (1_700_000_000 + np.arange(400)).astype(np.int64),
        1e7 + 10 * RNG.normal(size=400),
        1e15 * RNG.integers(1, 9, 400),
        np.where(RNG.random(400) < 0.8, 0.0, 99_999.0),
    ],
    ids=["seconds", "integers", "spread of 10 on 1e7", "identifiers", "mostly 0"],
)
def test_a_network_learns_from_a_column_in_raw_units(column):
    table, y = raw(column)
    net = StableNetRegressor(random_state=0)
    frame = pd.DataFrame(table[:, :3], columns=["a", "b", "c"]).assign(time=column)
    assert net.fit(frame, y).score(frame, y) > 0.9


def test_a_standardized_table_has_no_columns_in_raw_units():
    heavy = RNG.standard_t(3, size=(400, 2))
    table = np.column_stack([Z, heavy / heavy.std(axis=0), Z[:, 0] > 0])
    assert raw_columns(table, None) is None
    assert StableNetRegressor(max_epochs=1).fit(table, Y)._scaling is None


@pytest.mark.parametrize("unit", [1e-9, 1e-300])
def test_a_table_of_tiny_numbers_is_standardized(unit):
    net = StableNetRegressor(random_state=0).fit(unit * Z, Y)
    assert net.score(unit * Z, Y) > 0.9
    with_noise = np.column_stack([Z, 1e-16 * RNG.normal(size=400)])
    assert raw_columns(with_noise, None) is None


def test_columns_that_are_not_in_raw_units_keep_their_bits():
    scaling = raw_columns(X, None)
    assert scaling is not None
    assert (scaling.scaled(X)[:, :3] == Z.astype(np.float32)).all()
    np.testing.assert_allclose(scaling.scaled(X)[:, 3].std(), 1.0, rtol=1e-5)


def test_a_weight_counts_as_a_repetition_of_the_row():
    table, y = X[:40], Y[:40]
    weights = np.where(np.arange(40) < 20, 2.0, 1.0)
    repeated = np.concatenate([np.arange(20), np.arange(40)])
    weighted = StableNetRegressor(random_state=0, max_epochs=5)
    weighted.fit(table, y, sample_weight=weights)
    doubled = StableNetRegressor(random_state=0, max_epochs=5)
    doubled.fit(table[repeated], y[repeated])
    assert (weighted.predict(X) == doubled.predict(X)).all()


def test_classifiers_ensembles_searches_and_streams_standardize_too():
    labels = (Y > 0).astype(int)
    assert StableNetClassifier(random_state=0).fit(X, labels).score(X, labels) > 0.9
    network = default_network("regressor").set_params(max_epochs=20)
    ensemble = StableNetEnsembleRegressor(network, n_estimators=2, random_state=0)
    assert ensemble.fit(X, Y).score(X, Y) > 0.8
    search = BatchedGridSearchCV(
        StableNetRegressor(random_state=0, max_epochs=30), {"lr": [1e-3, 3e-3]}, cv=2
    )
    assert search.fit(X, Y).best_score_ > 0.8
    stream = StableNetRegressor(random_state=0, warm_start=True)
    for _ in range(40):
        stream.partial_fit(X, Y)
    assert stream.score(X, Y) > 0.8
    again = pickle.loads(pickle.dumps(stream.fit(X, Y)))
    assert (again.predict(X) == stream.predict(X)).all()


def test_callbacks_and_the_net_receive_the_units_of_the_user():
    seen = []

    def score(net, X, y):
        seen.append(X)
        return r2_score(y, net.predict(X))

    scoring = EpochScoring(score, lower_is_better=False, name="r2", on_train=True)
    net = StableNetRegressor(
        random_state=0, early_stopping=False, callbacks=[scoring]
    ).fit(X, Y)
    np.testing.assert_allclose(np.ravel(net.net_.predict(X)), net.predict(X))
    assert net.net_.history[-1, "r2"] == pytest.approx(net.score(X, Y), abs=1e-6)
    np.testing.assert_allclose(seen[-1][:, 3].mean(), TIME.mean(), rtol=1e-9)


class TwoLayers(nn.Module):
    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.first = nn.Linear(n_features_in, 32)
        self.head = nn.Linear(32, n_outputs)

    def forward(self, x):
        return self.head(torch.relu(self.first(self.drop(x))))


class LogOfLast(TwoLayers):
    def forward(self, x):
        return super().forward(torch.cat([x[:, :-1], x[:, -1:].log() - 21], dim=1))


def test_a_module_that_passes_its_input_to_linear_layers_gets_standardized_columns():
    net = StableNetRegressor(TwoLayers, random_state=0, lr=0.01).fit(X, Y)
    assert net._scaling is not None
    assert net.score(X, Y) > 0.8


def test_a_module_that_uses_its_input_otherwise_gets_the_units_of_the_user():
    net = StableNetRegressor(LogOfLast, random_state=0, lr=0.01).fit(X, Y)
    assert net._scaling is None
    assert net.score(X, Y) > 0.8


def test_a_module_that_was_passed_in_keeps_its_units_and_a_warning_names_the_columns():
    torch.manual_seed(0)
    net = StableNetRegressor(TwoLayers(4, 1), random_state=0, max_epochs=2)
    with pytest.warns(UserWarning, match="raw units") as caught:
        net.fit(X, Y)
    assert [str(w.message) for w in caught] == [
        "Columns of X are in raw units: 3. The outputs of the untrained network are "
        "far too large for it to learn. The columns are not standardized, because the "
        "weights of a module that was passed in may be made for these units: pass its "
        "class, or standardize X, for example with SafeScaler()."
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.set_params(module=TwoLayers).fit(X, Y)
        net.set_params(module=TwoLayers(4, 1)).fit(Z[:, [0, 1, 2, 2]] * 100, Y)


class Skipping(TwoLayers):
    def forward(self, x):
        return super().forward(x) + x[:, -1:]


class Normalizing(TwoLayers):
    def __init__(self, n_features_in, n_outputs):
        super().__init__(n_features_in, n_outputs)
        self.norm = nn.BatchNorm1d(n_features_in)

    def forward(self, x):
        return super().forward(self.norm(x))


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
def test_a_module_that_cannot_learn_in_raw_units_is_told_of():
    net = StableNetRegressor(Skipping, random_state=0, max_epochs=1)
    with (
        pytest.warns(UserWarning, match="raw units: 3") as caught,
        contextlib.suppress(NonFiniteTrainingError),  # it learns nothing in one epoch
    ):
        net.fit(X, Y)
    told = [str(w.message) for w in caught if "raw units" in str(w.message)]
    assert len(told) == 1
    assert told[0].endswith(
        "because the module uses its input elsewhere than in linear layers: "
        "standardize X, for example with SafeScaler()."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = StableNetRegressor(Normalizing, random_state=0, lr=0.01).fit(X, Y)
    assert net.score(X, Y) > 0.8


def test_a_constant_column_is_zero_and_stays_small_when_it_changes():
    table = np.column_stack([Z, np.full(400, 2020.0)])
    net = StableNetRegressor(random_state=0).fit(table, Y)
    later = table + np.array([0, 0, 0, 1])
    np.testing.assert_allclose(net.predict(later), net.predict(table), atol=0.01)


# -- outliers ----------------------------------------------------------------------


def test_values_beside_which_the_others_vanish_are_refused_by_name():
    table = pd.DataFrame(Z.copy(), columns=["a", "b", "c"])
    table.loc[[7, 31], "b"] = -3.4e38
    table.loc[12, "c"] = 1e20
    with pytest.raises(NonFiniteDataError) as caught:
        StableNetRegressor().fit(table, Y)
    assert str(caught.value) == (
        "X contains values too large for float32 to distinguish the others in 2 of 3 "
        "columns: 'b' (2, first at row 7), 'c' (1, first at row 12). Bound them: "
        "make_pipeline(SafeScaler(), StableNetRegressor())."
    )


def test_targets_beside_which_the_others_vanish_are_refused_by_row():
    y = Y.copy()
    y[[3, 99]] = 1e28, -1e30
    with pytest.raises(NonFiniteDataError) as caught:
        StableNetRegressor().fit(Z, y)
    assert str(caught.value) == (
        "y contains values too large for float32 to distinguish the others at rows 3, "
        "99. Correct these targets, remove their rows from X and y, or predict the "
        "logarithm."
    )
    weights = np.ones(400)
    weights[[3, 99]] = 0.0
    net = StableNetRegressor(random_state=0).fit(Z, y, sample_weight=weights)
    assert net.score(Z[100:], Y[100:]) > 0.9


@pytest.mark.parametrize(
    "y",
    [
        np.where(RNG.random(400) < 0.95, 0.0, 1e28),
        np.exp(RNG.normal(size=400)),
        np.r_[np.full(399, 5.0), 1e30],
    ],
    ids=["zero inflated", "lognormal", "one value and a constant"],
)
def test_skewed_targets_are_not_outliers(y):
    net = StableNetRegressor(random_state=0, max_epochs=2).fit(Z, y)
    assert np.isfinite(net.predict(Z)).all()


OF_X = (
    "X contains outliers in 1 of 3 columns: 'b' (2, first at row 7). They dominate the "
    "standard deviation, so that the network hardly distinguishes the other values. "
    "Bound them: make_pipeline(SafeScaler(), StableNetRegressor())."
)
OF_Y = (
    "y contains outliers at rows 7, 31. They dominate the standard deviation, so that "
    "the network hardly distinguishes the other values. Correct these targets, remove "
    "their rows from X and y, or predict the logarithm."
)


@pytest.mark.parametrize("size", [1e3, -1e6, 1e8, -3e18, 3e38])
def test_outliers_are_named_whatever_their_size(size):
    table, y = pd.DataFrame(Z.copy(), columns=["a", "b", "c"]), Y.copy()
    table.loc[[7, 31], "b"] = y[[7, 31]] = size
    net = StableNetRegressor(max_epochs=1)
    for data, message in (((table, Y), OF_X), ((Z, y), OF_Y)):
        if abs(size) < 1e7:
            with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
                net.fit(*data)
        else:
            with pytest.raises(NonFiniteDataError, match=r"row.*7.*31|row 7"):
                net.fit(*data)


@pytest.mark.parametrize("n_rows", [1, 400])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_outlying_targets_are_named_when_a_training_continues(method, n_rows):
    net = StableNetRegressor(random_state=0, max_epochs=1, warm_start=True).fit(Z, Y)
    y = Y[-n_rows:].copy()
    rows = Z[-n_rows:]
    if method == "fit":  # of at least two rows
        rows, y = np.r_[rows, Z[:1]], np.r_[y, Y[:1]]
    predicted, train = net.predict(Z), getattr(net, method)
    for size in (1e12, 1e38, -1e300):
        y[0] = size
        with pytest.raises(NonFiniteDataError, match=r"y contains values .* row 0\."):
            train(rows, y)
    np.testing.assert_array_equal(net.predict(Z), predicted)
    y[0] = 1e6
    with pytest.warns(UserWarning, match=r"outliers at row 0\. They outweigh"):
        train(rows, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(rows, np.full(len(y), 50.0))


def test_the_remedies_for_outliers_train():
    table, y = Z.copy(), Y.copy()
    table[[7, 31], 0] = y[[7, 31]] = 1e6
    net = StableNetRegressor(random_state=0, max_epochs=30)
    bounded = make_pipeline(SafeScaler(), net).fit(table, Y)
    assert bounded.score(Z[100:], Y[100:]) > 0.9
    kept = np.delete(np.arange(400), [7, 31])
    assert net.fit(Z[kept], y[kept]).score(Z[100:], Y[100:]) > 0.9


@pytest.mark.parametrize("size", [1e4, 1e10, -3e38])
def test_outliers_do_not_count_with_a_bounded_loss(size):
    y = Y.copy()
    y[[7, 31]] = size
    loss = BoundedLoss(MSELoss(), 0.0, 10.0)
    net = StableNetRegressor(criterion=loss, random_state=0, max_epochs=20)
    assert net.fit(Z, y).score(Z[100:], Y[100:]) > 0.9


# -- constant targets --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "criterion"),
    [(0.0, "mse"), (1e-4, "mae"), (-3.7e12, "huber"), (1e-4, "poisson"), (3.0, "mape")],
)
def test_a_constant_target_is_predicted_exactly_at_any_learning_rate(value, criterion):
    y = np.full(400, value)
    for lr in (1e-3, 1e4):
        net = StableNetRegressor(criterion=criterion, lr=lr, random_state=0)
        net.set_params(max_epochs=3, early_stopping=lr > 1)
        assert (net.fit(Z, y).predict(Z) == y).all()
        assert len(net.loss_curve_) == net.n_iter_ == 3
        assert net.effective_lr_ == net.lr_ == lr


@pytest.mark.parametrize("search", [GridSearchCV, BatchedGridSearchCV])
def test_searches_predict_a_constant_target_at_any_learning_rate(search):
    net = StableNetRegressor(max_epochs=2)
    found = search(net, {"lr": [1e-3, 1e4]}, cv=2, error_score="raise")
    assert (found.fit(Z, np.full(400, 3.0)).predict(Z) == 3.0).all()


def test_a_constant_first_chunk_leaves_the_weights_and_moments_alone():
    net = StableNetRegressor(random_state=0, lr=1.0)
    net.partial_fit(Z[:100], np.full(100, 2.5))
    weights = [p.clone() for p in net.net_.module_.parameters()]
    net.partial_fit(Z[:100], np.full(100, 2.5))
    assert all(map(torch.equal, weights, net.net_.module_.parameters()))
    net.set_params(lr=0.01).partial_fit(Z, Y)
    assert net.score(Z, Y) > 0.5


def test_a_stream_whose_first_rows_have_one_target_learns_from_the_next():
    net = StableNetRegressor(random_state=0, lr=3e-3)
    net.partial_fit(Z[:1], 1e6 + Y[:1])
    for _ in range(60):
        net.partial_fit(Z, 1e6 + Y)
    assert net.score(Z, 1e6 + Y) > 0.9
