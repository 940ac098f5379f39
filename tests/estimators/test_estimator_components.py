"""Custom modules, losses, callbacks and devices of the two estimators."""

from __future__ import annotations

import pickle
import re
import warnings

import numpy as np
import pytest
import torch
from estimator_helpers import (
    FAST,
    LABELS,
    VALUES,
    Recorder,
    X,
    both,
    raw_scores,
    same_weights,
    weights_of,
)
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import EpochScoring
from torch import nn
from torch.nn.utils import parametrizations, prune

from sknan import (
    BatchedGridSearchCV,
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetRegressor,
)
from sknan.nets import TabularMLP

# -- modules -----------------------------------------------------------------------


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
    torch.manual_seed(0)
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


# -- callbacks, device, verbosity --------------------------------------------------


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
    model = StableNetRegressor(verbose=2, early_stopping=True, **FAST).fit(X, VALUES)
    # As in skorch, the lowest losses so far are printed in color.
    printed = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)
    header, _, *lines = printed.splitlines()
    names = ["epoch", "train_loss", "valid_loss", "dur"]
    assert header.split() == names
    rows = [[float(number) for number in line.split()] for line in lines]
    assert np.allclose(rows, model.net_.history[:, names], atol=1e-4)


@both
def test_the_device_can_be_chosen(Estimator, y):
    on_cpu = Estimator(device="cpu", **FAST).fit(X, y)
    assert next(on_cpu.net_.module_.parameters()).device.type == "cpu"
    automatic = Estimator(device="auto", **FAST).fit(X, y)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert next(automatic.net_.module_.parameters()).device.type == expected
    assert isinstance(raw_scores(automatic, X), np.ndarray)


# -- networks that torch allows ------------------------------------------------------


class OfParts(nn.Module):
    """Network of a first part and a linear layer."""

    def __init__(self, n_features_in=4, n_outputs=2, part="weight_norm"):
        super().__init__()
        self.part = PARTS[part](n_features_in)
        self.head = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return self.head(self.part(x))


class Twice(nn.Module):
    """Layer that is applied twice, by two names."""

    def __init__(self, width):
        super().__init__()
        self.first = self.second = nn.Linear(width, width)

    def forward(self, x):
        return self.second(self.first(x))


class Magnitude(nn.Module):
    """Magnitude of products with complex weights."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width, dtype=torch.complex64))

    def forward(self, x):
        return (x.to(self.weight.dtype) @ self.weight).abs()


class InDoublePrecision(nn.Linear):
    """Linear layer in float64 between layers in float32."""

    def __init__(self, width):
        super().__init__(width, width, dtype=torch.float64)

    def forward(self, x):
        return super().forward(x.double()).float()


class Transposed(nn.Module):
    """Product with weights that are stored by columns, and a buffer of one number."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, width).T)
        self.register_buffer("shift", torch.ones(1).expand(width))

    def forward(self, x):
        return torch.tanh(x @ self.weight) @ self.weight.T + self.shift


def narrow(width):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: nothing to initialize
        return nn.Sequential(nn.Linear(width, 0), nn.Linear(0, width))


PARTS = {
    "weight norm": lambda w: parametrizations.weight_norm(nn.Linear(w, w)),
    "spectral norm": lambda w: parametrizations.spectral_norm(nn.Linear(w, w)),
    "pruned": lambda w: prune.l1_unstructured(nn.Linear(w, w), "weight", amount=0.3),
    "lazy": lambda w: nn.Sequential(nn.LazyLinear(w), nn.LazyBatchNorm1d()),
    "applied twice": Twice,
    "of width 0": narrow,
    "complex": Magnitude,
    "in double precision": InDoublePrecision,
    "compiled": lambda w: torch.compile(nn.Linear(w, w), backend="eager"),
    "in another order": Transposed,
}


@pytest.mark.parametrize("part", PARTS)
def test_any_network_of_torch_is_trained_pickled_and_searched(part):
    net = StableNetClassifier(OfParts, module__part=part, ema_decay=0.5, **FAST)
    model = net.fit(X, LABELS)
    scores = raw_scores(model, X)
    assert np.isfinite(scores).all()
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(raw_scores(loaded, X), scores)
    pairs = zip(weights_of(loaded), weights_of(model), strict=True)
    assert all(a.stride() == b.stride() for a, b in pairs)
    instance = StableNetClassifier(OfParts(part=part), **FAST).fit(X, LABELS)
    assert np.isfinite(raw_scores(instance, X)).all()
    ensemble = StableNetEnsembleClassifier(net, n_estimators=2, random_state=0)
    assert np.isfinite(raw_scores(ensemble.fit(X, LABELS), X)).all()
    grid = {"lr": [0.01, 0.1]}
    searches = [S(net, grid, cv=2) for S in (GridSearchCV, BatchedGridSearchCV)]
    found = [s.fit(X, LABELS).cv_results_["mean_test_score"] for s in searches]
    np.testing.assert_array_equal(*found)


@both
def test_a_network_without_parameters_is_refused(Estimator, y):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is asserted
        Estimator(nn.Identity(), **FAST).fit(X, y)
    assert str(caught.value) == (
        "The network has nothing to train: it has no parameters."
    )
