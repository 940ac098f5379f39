"""The average of weights follows the steps that are taken, in both engines."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sknan import (
    BatchedGridSearchCV,
    GuardedNet,
    StableNetClassifier,
    StableNetRegressor,
)
from sknan.nets import BackupAndRestore

DECAY = 0.7

_rng = np.random.default_rng(0)
X = _rng.normal(size=(96, 3)).astype(np.float32)
y = (X[:, :1] + X[:, 1:2] * X[:, 2:]).astype(np.float32)


def network():
    torch.manual_seed(0)
    layers = nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)
    return nn.Sequential(*layers)


def net_for(module=None, **params):
    """Return a guarded net that trains on the rows in their order."""
    settings = {
        "criterion": nn.MSELoss,
        "lr": 0.05,
        "max_epochs": 3,
        "batch_size": 16,
        "train_split": None,
        "ema_decay": DECAY,
        "verbose": 0,
    }
    return GuardedNet(module or network(), **{**settings, **params})


def averaged_by_torch(module, batches, n_epochs=3, lr=0.05):
    """Return the module that torch's class averages over plain steps."""

    def update(averages, present, n_averaged):
        decay = min(DECAY, (1 + int(n_averaged)) / (10 + int(n_averaged)))
        get_ema_multi_avg_fn(decay)(averages, present, n_averaged)

    averaged = AveragedModel(module, multi_avg_fn=update, use_buffers=True)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(n_epochs):
        for rows in batches:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(rows[0]), rows[1])
            loss.backward()
            optimizer.step()
            averaged.update_parameters(module)
    return averaged.module


def batches_of(size=16):
    tensors = torch.from_numpy(X), torch.from_numpy(y)
    return list(zip(*(t.split(size) for t in tensors), strict=True))


def state_of(module):
    counts = ("num_batches_tracked",)
    return {k: v for k, v in module.state_dict().items() if not k.endswith(counts)}


def assert_equal_states(module, expected, atol=0.0):
    expected = state_of(expected)
    for name, tensor in state_of(module).items():
        torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0.0)


class Follow(Callback):
    """Keep the output at the end of each epoch."""

    def initialize(self):
        self.outputs = []
        return self

    def on_epoch_end(self, net, **_):
        net.module_.eval()
        with torch.no_grad():
            self.outputs.append(net.module_(torch.from_numpy(X)))
        net.module_.train()


class Poisoned(nn.Module):
    """Network with a loss of NaN for one of the batches in training."""

    def __init__(self):
        super().__init__()
        self.layers = network()

    def forward(self, x):
        failing = torch.from_numpy(X[16:32])
        is_failing = self.training and torch.equal(x.detach(), failing)
        return self.layers(x) * (math.nan if is_failing else 1.0)


def test_the_average_is_that_of_torch():
    net = net_for(callbacks=[("follow", Follow())]).fit(X, y)
    expected = averaged_by_torch(network(), batches_of())
    # torch's kernels round the two forms of an interpolation differently.
    assert_equal_states(net.module_, expected, atol=1e-6)
    last = torch.from_numpy(net.predict(X))
    assert torch.equal(dict(net.callbacks_)["follow"].outputs[-1], last)


@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
def test_a_failed_step_never_enters_the_average():
    net = net_for(Poisoned(), on_nonfinite="skip").fit(X, y)
    taken = [batch for i, batch in enumerate(batches_of()) if i != 1]
    assert net.nonfinite_reports_
    assert_equal_states(net.module_.layers, averaged_by_torch(network(), taken), 1e-6)


def spike(progress):
    """Return the factor of a learning rate that is far too high for one step."""
    return 1e9 if 0.4 < progress < 0.41 else 1.0


@pytest.mark.parametrize("kind", [net_for, StableNetRegressor])
@pytest.mark.filterwarnings("ignore::sknan.DivergenceWarning")
def test_a_roll_back_restores_the_average_of_that_time(kind):
    options = {} if kind is net_for else {"optimizer": "sgd", "random_state": 0}
    net = kind(lr_schedule=spike, max_epochs=20, lr=0.05, ema_decay=0.99, **options)
    net.set_params(batch_size=16).fit(X, y)
    assert "restored" in net.nonfinite_reports_[0].recovery
    module = getattr(net, "net_", net).module_
    assert max(p.detach().abs().max() for p in module.parameters()) < 5.0


def test_an_interrupted_training_resumes_with_its_average(tmp_path):
    class Interrupt(Callback):
        def on_epoch_end(self, net, **_):
            if len(net.history) == 2:
                raise RuntimeError

    backup = BackupAndRestore(str(tmp_path / "backup"))
    with pytest.raises(RuntimeError):
        net_for(callbacks=[backup, Interrupt()], max_epochs=4).fit(X, y)
    resumed = net_for(callbacks=[backup], max_epochs=4).fit(X, y)
    assert backup.n_restored_epochs_ == 1
    assert_equal_states(resumed.module_, net_for(max_epochs=4).fit(X, y).module_)


def test_partial_fit_continues_weights_and_average_also_after_pickling():
    net = net_for(max_epochs=1).partial_fit(X, y)
    net = pickle.loads(pickle.dumps(net)).partial_fit(X, y).partial_fit(X, y)
    assert_equal_states(net.module_, net_for().fit(X, y).module_)


def test_weights_that_were_loaded_in_between_begin_a_new_average():
    net = net_for(max_epochs=1).partial_fit(X, y)
    net.module_.load_state_dict(network().state_dict())
    net.partial_fit(X, y)
    assert_equal_states(net.module_, net_for(max_epochs=1).fit(X, y).module_)


def test_an_average_in_half_precision_keeps_small_changes():
    net = net_for(nn.Linear(3, 1).bfloat16(), ema_decay=0.999, max_epochs=1)
    rows = torch.from_numpy(X).bfloat16(), torch.from_numpy(y).bfloat16()
    net.fit(*rows)
    assert net._average_.averages[0].dtype == torch.float32
    assert net.module_.weight.dtype == torch.bfloat16


class Normalized(nn.Sequential):
    def __init__(self, n_features_in, n_outputs):
        norm = nn.BatchNorm1d(8)
        layers = nn.Linear(n_features_in, 8, bias=False), norm, nn.Linear(8, n_outputs)
        super().__init__(*layers)


@pytest.mark.parametrize("module", [None, Normalized])
def test_estimators_choose_the_epoch_by_the_average_in_searches_too(module):
    labels = (y[:, 0] > 0).astype(int)
    model = StableNetClassifier(
        module=module, max_epochs=8, early_stopping=True, batch_size=8, random_state=0
    )
    grid = {"ema_decay": [None, 0.5, 0.9]}
    searches = [
        kind(clone(model), grid, cv=2, scoring="neg_log_loss").fit(X, labels)
        for kind in (GridSearchCV, BatchedGridSearchCV)
    ]
    scores = [search.cv_results_["mean_test_score"] for search in searches]
    assert len(set(scores[0])) == 3
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5 if module else 0)
    assert searches[1].cv_results_["stacked"].all()
    fitted = clone(model).set_params(ema_decay=0.9).fit(X, labels)
    assert fitted.net_._average_ is None
    assert fitted.net_.history[fitted.best_epoch_ - 1, "valid_loss"] == min(
        fitted.net_.history[:, "valid_loss"]
    )


def test_a_warm_start_continues_the_average():
    labels = (y[:, 0] > 0).astype(int)
    common = {
        "ema_decay": 0.9,
        "lr_schedule": None,
        "batch_size": 96,
        "optimizer": "sgd",
        "random_state": 0,
    }
    warm = StableNetClassifier(max_epochs=3, warm_start=True, **common)
    warm.fit(X, labels).fit(X, labels)
    whole = StableNetClassifier(max_epochs=6, **common).fit(X, labels)
    np.testing.assert_allclose(warm.predict_proba(X), whole.predict_proba(X), atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan, "0.9", True])
def test_an_impossible_decay_is_refused(decay):
    message = (
        "ema_decay must be a number between 0 and 1, both excluded, or None, got "
        f"{decay!r}."
    )
    for model in (net_for(ema_decay=decay), StableNetClassifier(ema_decay=decay)):
        with pytest.raises(ValueError, match="ema_decay") as failure:
            model.fit(X, (y[:, 0] > 0).astype(int))
        assert str(failure.value) == message
