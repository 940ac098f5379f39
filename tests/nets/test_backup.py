"""Trainings that are killed, interrupted or averaged.

Run as a script, this file is the process that is killed:
``python test_backup.py TRAINING BACKUP RESULT``, where RESULT may be KILL or INTERRUPT.
"""

from __future__ import annotations

import os
import pickle
import random
import signal
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import run_script, start_script
from sklearn.base import clone
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    Freezer,
    LoadInitState,
    LRScheduler,
)
from skorch.dataset import ValidSplit
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from sknan import (
    BackupAndRestore,
    DivergenceWarning,
    GuardedNet,
    GuardedNetRegressor,
    NonFiniteTrainingError,
    StableNetRegressor,
)
from sknan._utils.archive import load, save
from sknan.nets._training_state import plain
from sknan.nets.guard import Guard
from sknan.optim import QuantileClip

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 4)).astype("float32")
VALUES = X[:, :1] - X[:, 1:2]
RAW = X * np.float32(1e3) + np.float32(3e3)
N_EPOCHS = 6


class Net(nn.Module):
    def __init__(self, has_norm=True):
        super().__init__()
        norm = nn.BatchNorm1d(8) if has_norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 1)

    def forward(self, X):
        return self.head(self.body(X))


class Rough(nn.Sequential):
    """Network that explodes on raw data, until the guard conditions it."""

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


class AtBatch(Callback):
    """Call a function in the middle of an epoch."""

    def __init__(self, action, epoch=4, batch=2):
        self.action = action
        self.epoch = epoch
        self.batch = batch

    def on_batch_begin(self, net, training=None, **kwargs):
        at = len(net.history), self.n_batches_ + 1
        self.n_batches_ += bool(training)
        if training and at == (self.epoch, self.batch):
            self.action(net)

    def on_epoch_begin(self, net, **kwargs):
        self.n_batches_ = 0


class PowerCutError(Exception):
    """Ends a training without cleanup, as a kill does."""


def cut_power(net):
    raise PowerCutError


def skorch_net(*callbacks, **options):
    defaults = {
        "max_epochs": N_EPOCHS,
        "batch_size": 16,
        "lr": 0.05,
        "verbose": 0,
        "optimizer": torch.optim.Adam,
        "iterator_train__shuffle": True,
        "lr_schedule": "cosine",
        # Its library swallows a Ctrl-C that comes while it writes numbers.
        "callbacks__print_log": None,
    }
    given = {"module": Net, **defaults, "callbacks": list(callbacks), **options}
    return GuardedNetRegressor(**given), X, VALUES


class Batches(Callback):
    """Callback that sees batches, and so needs the loop of the net."""

    def on_batch_end(self, net, **_):
        pass


def estimator(*callbacks, **options):
    defaults = {"max_epochs": N_EPOCHS, "batch_size": 16, "random_state": 0}
    # A stack gives other bits than the loop of the net, which a backup needs.
    given = {**defaults, "callbacks": [Batches(), *callbacks], **options}
    return StableNetRegressor(Net, **given), X, VALUES.ravel()


def with_early_stopping(*callbacks, **options):
    options = {"early_stopping": True, "n_iter_no_change": 2, **options}
    return estimator(*callbacks, lr=0.1, **options)


def raw_data(*callbacks, **options):
    options = {"module": Rough, "optimizer": torch.optim.SGD, **options}
    net, _, y = skorch_net(*callbacks, **options)
    return net, RAW, 100 * y + 1000


TRAININGS = {
    "skorch": skorch_net,
    "estimator": estimator,
    "estimator, early stopping": with_early_stopping,
}
every_training = pytest.mark.parametrize("training", list(TRAININGS))
TRAININGS["raw data"] = raw_data


def fit(net, X, y, seed=0):
    """Fit with the global generators in a known state."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
    return net.fit(X, y)


def network_of(model):
    return getattr(model, "net_", model)


def state_of(model):
    return network_of(model).module_.state_dict()


def history_of(model):
    rows = network_of(model).history.to_list()
    return [{k: v for k, v in row.items() if k != "dur"} for row in rows]


def is_finite(tensors):
    return all(torch.isfinite(t).all() for t in tensors)


def assert_same(first, second):
    assert list(first) == list(second)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def cut_and_resumed(build, path, *make_callbacks, at=4):
    """Run the same training three times: whole, interrupted and resumed."""

    def callbacks():
        return [make() for make in make_callbacks]

    whole = fit(*build(*callbacks()))
    backup = BackupAndRestore(path)
    with pytest.raises(PowerCutError):
        fit(*build(backup, *callbacks(), AtBatch(cut_power, at)))
    assert path.exists()
    again = fit(*build(clone(backup), *callbacks()), seed=99)
    return whole, again


def backup_of(model):
    (found,) = [
        c for _, c in network_of(model).callbacks_ if isinstance(c, BackupAndRestore)
    ]
    return found


# -- a training that was killed ------------------------------------------------------


@pytest.mark.parametrize("training", ["skorch", "estimator, early stopping"])
def test_a_killed_and_resumed_process_ends_at_the_same_weights(training, tmp_path):
    path, result = tmp_path / "backup", tmp_path / "weights.pt"
    output = tmp_path / "output"
    code, printed = run_script(__file__, output, training, path, "KILL")
    assert code == -signal.SIGKILL, printed
    assert {file.name for file in tmp_path.iterdir()} == {"backup", "output"}
    code, printed = run_script(__file__, output, training, path, result)
    assert (code, printed) == (0, "3\n")  # epochs that were not done again
    whole = fit(*TRAININGS[training]())
    assert_same(torch.load(result, weights_only=True), state_of(whole))
    assert {file.name for file in tmp_path.iterdir()} == {"weights.pt", "output"}


@every_training
def test_a_resumed_training_is_the_one_that_was_cut_off(training, tmp_path):
    whole, again = cut_and_resumed(TRAININGS[training], tmp_path / "backup")
    assert_same(state_of(again), state_of(whole))
    assert history_of(again) == history_of(whole)
    assert len(network_of(again).history) <= N_EPOCHS
    assert backup_of(again).n_restored_epochs_ == 3
    np.testing.assert_array_equal(again.predict(X), whole.predict(X))
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"lr_schedule": "plateau"},
        {"lr_schedule": "one_cycle", "warmup": 3},
        {"optimizer": torch.optim.LBFGS, "lr": 0.01, "lr_schedule": None},
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9},
        {"adaptive_clip": "quantile", "train_split": None},
        {"adaptive_clip": QuantileClip(0.5, window=20, min_history=5)},
        {"adaptive_clip": "zscore"},
        {"adaptive_clip": "agc"},
        {"train_split": ValidSplit(0.3)},  # drawn from numpy's generator
        {"iterator_train__pin_memory": False},  # a data loader
    ],
    ids=lambda options: " ".join(options) + str(options.get("adaptive_clip", ""))[:9],
)
def test_schedules_optimizers_and_clips_resume_their_state(options, tmp_path):
    def build(*callbacks):
        return skorch_net(*callbacks, **options)

    whole, again = cut_and_resumed(build, tmp_path / "backup")
    assert_same(state_of(again), state_of(whole))
    assert history_of(again) == history_of(whole)


def test_a_generator_of_the_data_loader_resumes_its_state(tmp_path):
    def build(*callbacks):
        generator = torch.Generator().manual_seed(7)
        return skorch_net(*callbacks, iterator_train__generator=generator)

    whole, again = cut_and_resumed(build, tmp_path / "backup")
    assert_same(state_of(again), state_of(whole))


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=1, load_best=True, threshold=0.2),
        lambda: LRScheduler(lr_scheduler.ExponentialLR, gamma=0.5),
        lambda: LRScheduler(lr_scheduler.MultiStepLR, milestones=[2, 5]),
        lambda: LRScheduler(
            lr_scheduler.ReduceLROnPlateau,
            patience=0,
            threshold=0.3,
            monitor="valid_loss",
        ),
        lambda: LRScheduler(
            lr_scheduler.CyclicLR,
            base_lr=0.001,
            max_lr=0.1,
            step_every="batch",
            cycle_momentum=False,
        ),
        lambda: Freezer("body.*"),
    ],
    ids=["early stopping", "exponential", "steps", "plateau", "cycle", "frozen"],
)
def test_callbacks_of_skorch_resume_their_state(make, tmp_path):
    whole, again = cut_and_resumed(skorch_net, tmp_path / "backup", make)
    assert_same(state_of(again), state_of(whole))
    assert history_of(again) == history_of(whole)


class NoisyInputs(Callback):
    """Draw from numpy and Python, as a user's own augmentation may."""

    def on_batch_begin(self, net, batch=None, training=None, **kwargs):
        if training:
            factor = np.random.uniform(0.5, 1.5)  # noqa: NPY002
            batch[0].mul_(factor).add_(random.gauss(0.0, 0.1))


def test_the_generators_of_numpy_and_python_resume_their_state(tmp_path):
    whole, again = cut_and_resumed(skorch_net, tmp_path / "backup", NoisyInputs)
    assert_same(state_of(again), state_of(whole))


class Average(Callback):
    """A weight average as users write it, with a state."""

    def __init__(self, make=lambda module: AveragedModel(module)):
        self.make = make

    def on_train_begin(self, net, **kwargs):
        self.average_ = self.make(net.module_)

    def on_batch_end(self, net, training=None, **kwargs):
        if training:
            self.average_.update_parameters(net.module_)

    def state_dict(self):
        return dict(self.average_.state_dict())

    def load_state_dict(self, state):
        self.average_.load_state_dict(state)


def average_of(model):
    (found,) = [c for _, c in network_of(model).callbacks_ if isinstance(c, Average)]
    return found.average_


def test_a_callback_with_a_state_of_its_own_resumes_its_state(tmp_path):
    whole, again = cut_and_resumed(skorch_net, tmp_path / "backup", Average)
    assert_same(average_of(again).state_dict(), average_of(whole).state_dict())


RESCUES = {
    # The rate is absurd from the beginning ...
    "before": {"lr": 1e30, "optimizer": torch.optim.SGD},
    "early": {"lr": 1e4},
    # ... or becomes so after the training was resumed.
    "after": {"lr_schedule": lambda progress: 1.0 if progress < 0.55 else 1e30},
    "raw data": {},
}


@pytest.mark.parametrize("name", RESCUES)
def test_a_rescued_training_is_resumed_bitwise_too(name, tmp_path):
    def build(*callbacks):
        training = raw_data if name == "raw data" else skorch_net
        return training(*callbacks, **RESCUES[name])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        whole, again = cut_and_resumed(build, tmp_path / "backup")
    assert_same(state_of(again), state_of(whole))
    assert history_of(again) == history_of(whole)
    assert again.effective_lr_ == whole.effective_lr_
    assert len(again.nonfinite_reports_) > 0
    assert again.nonfinite_reports_ == whole.nonfinite_reports_
    first, same = again.nonfinite_reports_[0], whole.nonfinite_reports_[0]
    assert torch.equal(first.capsule.inputs, same.capsule.inputs)
    if name == "raw data":
        assert first.recovery == "Training restarted as if on standardized data."


class Ruin(Callback):
    """Ruin the weights in the last epoch."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == net.max_epochs:
            with torch.no_grad():
                for weight in net.module_.parameters():
                    weight *= 30


def test_a_ruined_training_raises_after_it_is_resumed_too(tmp_path):
    def error_of(kind, *callbacks):
        with pytest.raises(kind) as caught:
            fit(*skorch_net(*callbacks, Ruin(), on_nonfinite="skip"))
        return str(caught.value)

    whole = error_of(NonFiniteTrainingError)
    assert "far above that of a constant output" in whole
    backup = BackupAndRestore(tmp_path / "backup")
    error_of(PowerCutError, backup, AtBatch(cut_power))
    assert error_of(NonFiniteTrainingError, clone(backup)) == whole


def test_without_a_random_state_the_held_out_rows_stay_held_out(tmp_path):
    path, seen = tmp_path / "backup", []

    class Rows(Callback):
        def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
            seen.append(dataset_valid.numbers)

    def build(*callbacks):
        options = {"random_state": None, "n_iter_no_change": 9}
        return with_early_stopping(
            BackupAndRestore(path), Rows(), *callbacks, **options
        )

    with pytest.raises(PowerCutError):
        fit(*build(AtBatch(cut_power)))
    fit(*build(), seed=1)
    assert len(seen) == 4 + 3
    assert all(torch.equal(rows, seen[0]) for rows in seen)


def test_a_training_that_is_killed_twice_is_resumed_twice(tmp_path):
    path = tmp_path / "backup"
    for epoch in (2, 5):
        with pytest.raises(PowerCutError):
            fit(*skorch_net(BackupAndRestore(path), AtBatch(cut_power, epoch)))
    again = fit(*skorch_net(BackupAndRestore(path)))
    assert backup_of(again).n_restored_epochs_ == 4
    assert_same(state_of(again), state_of(fit(*skorch_net())))


def test_a_resumed_training_may_be_longer(tmp_path):
    path = tmp_path / "backup"
    options = {"lr_schedule": None}
    with pytest.raises(PowerCutError):
        fit(*skorch_net(BackupAndRestore(path), AtBatch(cut_power), **options))
    again = fit(*skorch_net(BackupAndRestore(path), max_epochs=9, **options))
    whole = fit(*skorch_net(max_epochs=9, **options))
    assert_same(state_of(again), state_of(whole))


# -- the file ------------------------------------------------------------------------


@every_training
def test_a_backup_changes_nothing_and_serves_any_number_of_fits(training, tmp_path):
    path = tmp_path / "folder" / "backup"
    plain_model = fit(*TRAININGS[training]())
    model, *data = TRAININGS[training](BackupAndRestore(path))
    for _ in range(2):
        fit(model, *data)
        assert_same(state_of(model), state_of(plain_model))
        assert backup_of(model).n_restored_epochs_ == 0
        assert list(path.parent.iterdir()) == []
    assert_same(state_of(fit(clone(model), *data)), state_of(plain_model))
    assert_same(state_of(pickle.loads(pickle.dumps(model))), state_of(plain_model))


def test_a_pickled_callback_contains_no_training_state(tmp_path):
    model = fit(*estimator(BackupAndRestore(tmp_path / "backup")))
    kept = vars(pickle.loads(pickle.dumps(backup_of(model))))
    assert set(kept) == {
        "path",
        "delete_checkpoint",
        "n_restored_epochs_",
        "_found_",
    }
    assert kept["_found_"] is None


def test_a_kept_file_lets_the_last_epoch_be_trained_again(tmp_path):
    path = tmp_path / "backup"
    whole = fit(*skorch_net(BackupAndRestore(path, delete_checkpoint=False)))
    assert path.exists()
    again = fit(*skorch_net(BackupAndRestore(path)), seed=1)
    assert backup_of(again).n_restored_epochs_ == N_EPOCHS - 1
    assert_same(state_of(again), state_of(whole))


def test_the_file_contains_only_tensors_and_plain_python_objects(tmp_path):
    net, *data = skorch_net(
        BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
    )
    fit(net, *data)
    contents = torch.load(tmp_path / "backup", weights_only=True)
    assert contents["format"] == "sknan backup 1"
    assert contents["n_epochs"] == N_EPOCHS - 1
    assert plain({"a": (np.float32(1.5), [None])}, "it") == {"a": (1.5, [None])}

    class Logging(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("when", Path("now"))

    with pytest.raises(TypeError) as caught:
        fit(*skorch_net(BackupAndRestore(tmp_path / "other"), Logging()))
    assert str(caught.value) == (
        f"history[0]['when'] is of type {type(Path()).__name__}, which a backup cannot "
        "contain. A backup consists of tensors, numbers and strings, so that no code "
        "runs when it is read. Use one of these types."
    )


def refused(net, X, y):
    with pytest.raises(ValueError, match=r"^The backup ") as caught:
        fit(net, X, y)
    return str(caught.value)


def test_the_backup_of_another_training_is_refused_and_not_changed(tmp_path):
    path = tmp_path / "backup"
    backup = BackupAndRestore(path)
    with pytest.raises(PowerCutError):
        fit(*skorch_net(backup, AtBatch(cut_power)))
    before = path.read_bytes()
    what_to_do = (
        " Restore these settings and data, delete the file to start from scratch, or "
        "choose another path."
    )

    def says(what):
        return f"The backup {str(path)!r} {what}.{what_to_do}"

    net, *data = skorch_net(backup)
    assert refused(*skorch_net(backup, lr=0.1)) == says(
        "is of a net with lr=0.05, but this net has lr=0.1"
    )
    assert refused(*skorch_net(backup, optimizer=torch.optim.SGD)) == says(
        "is of a net with optimizer=Adam, but this net has optimizer=SGD"
    )
    assert refused(*skorch_net(backup, optimizer__amsgrad=True)) == says(
        "is of a net with optimizer__amsgrad=not given, but this net has "
        "optimizer__amsgrad=True"
    )
    assert refused(*skorch_net(backup, module__has_norm=False)) == says(
        "contains a tensor 'body.1.weight' of module_, which this net does not have"
    )
    other = GuardedNetRegressor(
        nn.Linear, module__in_features=4, module__out_features=1
    )
    assert refused(other.set_params(callbacks=[backup]), *data) == says(
        "does not contain the tensor 'weight' of module_"
    )
    wider = GuardedNetRegressor(Wide, callbacks=[backup], verbose=0)
    assert refused(wider, np.hstack([X, X]), VALUES) == says(
        "contains a tensor 'body.0.weight' of module_ of shape (8, 4) and dtype "
        "float32, but this net has one of shape (8, 8) and dtype float32"
    )
    assert refused(*skorch_net(backup, max_epochs=3)) == says(
        "contains 3 finished epochs, but max_epochs=3 needs no more"
    )
    assert refused(net, X[:80], VALUES[:80]) == says(
        "is of a training on 76 rows, but this training has 64"
    )
    assert refused(net, X + 1, VALUES) == says(
        "is of a training on other data of the same shape"
    )
    assert path.read_bytes() == before
    assert_same(state_of(fit(net, *data)), state_of(fit(*skorch_net())))


OTHER_PARAMETERS = {
    "early_stopping": (True, False),
    "n_iter_no_change": (2, 1),
    "random_state": (0, 1),
    "scoring": ("loss", "r2"),
    "validation_fraction": (0.1, 0.3),
}


@pytest.mark.parametrize(("name", "values"), OTHER_PARAMETERS.items())
def test_the_backup_of_an_estimator_with_other_parameters_is_refused(
    tmp_path, name, values
):
    backup = BackupAndRestore(tmp_path / "backup")
    with pytest.raises(PowerCutError):
        fit(*with_early_stopping(backup, AtBatch(cut_power, epoch=2)))
    was, now = values
    assert refused(*with_early_stopping(backup, **{name: now})).startswith(
        f"The backup {str(backup.path)!r} is of a net with {name}={was!r}, but this "
        f"net has {name}={now!r}. Restore these settings and data, delete the file"
    )
    settings = {"num_threads": 1, "max_epochs": 3, "max_time": 60.0, "verbose": 1}
    fit(*with_early_stopping(backup, **settings))
    assert backup.n_restored_epochs_ == 1


class Wide(Net):
    def __init__(self):
        super().__init__()
        self.body[0] = nn.Linear(8, 8)


def test_a_file_that_is_not_a_backup_is_refused_and_runs_no_code(tmp_path):
    path, trace = tmp_path / "backup", tmp_path / "trace"

    class Evil:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    for write in (
        lambda: path.write_text("some notes"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(pickle.dumps({"format": Evil()})),
        lambda: torch.save({"format": Evil()}, path),
        lambda: save({"format": Evil()}, path),
        lambda: torch.save({"weight": torch.zeros(2)}, path),
        lambda: save({"weight": torch.zeros(2)}, path),
        lambda: save([1, 2], path),
    ):
        write()
        assert refused(*skorch_net(BackupAndRestore(path))) == (
            f"The backup {str(path)!r} is damaged, or was not written by this version "
            "of BackupAndRestore. Put an intact copy in its place, delete the file to "
            "start from scratch, or choose another path."
        )
        assert not trace.exists()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (["random_states"], {}, "KeyError: 'cpu'"),
        (
            ["random_states", "numpy", 2],
            10**9,
            "ValueError: the position 1000000000 of numpy's generator is invalid",
        ),
        (
            ["random_states", "numpy"],
            torch.zeros(4),
            "ValueError: the state of numpy's generator is no list",
        ),
        (
            ["modules", "module", "head.bias"],
            torch.tensor([torch.nan]),
            "ValueError: the weights are not finite",
        ),
        (
            ["training", "guard", "weights", "first", "tensors", 0],
            torch.full((8, 4), torch.inf),
            "ValueError: a copy of the weights is not finite",
        ),
        (
            ["training", "n_steps"],
            16,
            "ValueError: 16 steps are not of 3 epochs",
        ),
        (
            ["training", "guard", "_rescue_norm"],
            -1.0,
            "ValueError: [1.0, -1.0] are no learning rates and norms of a guard",
        ),
        (
            # A fused kernel of torch would write beyond this tensor.
            ["optimizers", 0, "state", 1, "exp_avg"],
            torch.zeros(0),
            "TypeError: optimizers[0]['state'][1]['exp_avg'] is of shape (0,) and "
            "dtype float32 instead of (8,) and dtype float32",
        ),
        (
            ["optimizers", 0, "param_groups", 0, "eps"],
            "small",
            "TypeError: optimizers[0]['param_groups'][0]['eps'] is of type str instead "
            "of float",
        ),
        (
            ["optimizers", 0, "param_groups", 0, "amsgrad"],
            True,
            "ValueError: the optimizers have other parameters or options",
        ),
        (
            ["optimizers", 0, "state", "other"],
            1,
            "ValueError: the optimizers have other parameters or options",
        ),
        (
            ["optimizers", 0, "param_groups", 0, "lr"],
            0.5,
            "ValueError: the optimizers have other parameters or options",
        ),
        (
            ["n_epochs"],
            9,
            "ValueError: 9 finished epochs are not in a history of 3",
        ),
        (
            ["schedule", "plan"],
            (0, 10**9, 1),
            "ValueError: the plan (0, 1000000000, 1) of the lr_schedule does not "
            "belong to 30 steps",
        ),
        (
            ["training", "guard", "lr_scale"],
            None,
            "TypeError: state['training']['guard']['lr_scale'] is of type NoneType "
            "instead of float",
        ),
        (["history", 0], 1, "TypeError: history[0] is of type int instead of dict"),
        (
            ["history", 0, "train_loss_best"],
            torch.zeros(0),
            "TypeError: history[0]['train_loss_best'] is of type Tensor instead of "
            "bool",
        ),
        (
            ["history", 0, "train_batch_count"],
            [1],
            "TypeError: history[0]['train_batch_count'] is of type list instead of "
            "float",
        ),
    ],
)
def test_a_backup_that_was_edited_is_refused(tmp_path, field, value, reason):
    path = tmp_path / "backup"
    with pytest.raises(PowerCutError):
        fit(*skorch_net(BackupAndRestore(path), AtBatch(cut_power)))
    contents = part = load(path)
    for key in field[:-1]:
        part = part[key]
    part[field[-1]] = value
    save(contents, path)
    assert refused(*skorch_net(BackupAndRestore(path))) == (
        f"The backup {str(path)!r} cannot be restored: {reason}. Put an intact copy in "
        "its place, delete the file to start from scratch, or choose another path."
    )


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        (
            ["optimizers", 0, "param_groups", 0, "initial_lr"],
            0.5,
            "the optimizers have other parameters or options",
        ),
        (
            ["optimizers", 0, "param_groups", 0, "lr"],
            0.5,
            "the learning rates are not those of the scheduler",
        ),
        (
            ["callbacks", "LRScheduler", "gamma"],
            2.0,
            "LRScheduler['gamma'] is not of this training",
        ),
        (
            ["adaptive_clip", "quantile"],
            1.0,
            "adaptive_clip['quantile'] is not of this training",
        ),
    ],
)
def test_learning_rates_and_clips_that_were_edited_are_refused(
    tmp_path, field, value, reason
):
    path = tmp_path / "backup"
    options = {"lr_schedule": None, "adaptive_clip": "quantile"}
    scheduler = LRScheduler(lr_scheduler.ExponentialLR, gamma=0.5)
    callbacks = [BackupAndRestore(path), scheduler]
    with pytest.raises(PowerCutError):
        fit(*skorch_net(*callbacks, AtBatch(cut_power), **options))
    contents = part = load(path)
    for key in field[:-1]:
        part = part[key]
    part[field[-1]] = value
    save(contents, path)
    message = refused(*skorch_net(*callbacks, **options))
    assert f" cannot be restored: ValueError: {reason}. " in message


def test_a_net_without_a_guard_is_refused(tmp_path):
    net = NeuralNet(
        Net,
        nn.MSELoss,
        callbacks=[BackupAndRestore(tmp_path / "backup")],
        verbose=0,
    )
    with pytest.raises(TypeError) as caught:
        net.fit(X, VALUES)
    assert str(caught.value) == (
        "BackupAndRestore needs one of sknan's guarded nets, and can be used once in a "
        "net; got NeuralNet. Use GuardedNet or one of its subclasses, or put "
        "GuardMixin before the class of the net."
    )


def test_every_attribute_of_a_guard_is_kept_or_made_at_the_beginning():
    # A new one must be put in its place, or a resumed training loses it.
    module = Net()
    guard = Guard()
    made = {
        *("on_nonfinite", "max_recoveries", "parameters", "reports"),
        *("_optimizers", "_buffers", "_weights", "_watch"),
        *("_first_step_ratio", "_is_step_fragile", "_n_steps"),
    }
    guard.begin([module], [torch.optim.SGD(module.parameters(), 0.1)])
    kept = {name for name in guard.state_dict() if name in vars(guard)}
    assert set(vars(guard)) == made | kept
    weights = guard.weights
    kept = set(weights.state_dict()) - {"moments"}
    assert set(vars(weights)) == {"_moments"} | kept


# -- skorch's own checkpoints --------------------------------------------------------


class Still(nn.Sequential):
    """No dropout, so that a training does not depend on the generators."""

    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("by_hand", [False, True])
def test_checkpoints_of_skorch_resume_as_they_do_in_skorch(
    optimizer, by_hand, tmp_path
):
    def built(training, *callbacks, max_epochs=N_EPOCHS):
        return training(
            Still,
            nn.MSELoss,
            optimizer=optimizer,
            lr=0.05,
            max_epochs=max_epochs,
            train_split=None,
            batch_size=16,
            callbacks=list(callbacks),
            verbose=0,
        )

    def resumed(training):
        checkpoint = Checkpoint(monitor=None, dirname=str(tmp_path / training.__name__))
        with pytest.raises(PowerCutError):
            fit(built(training, checkpoint, AtBatch(cut_power)), X, VALUES)
        if by_hand:
            net = built(training, max_epochs=3).initialize()
            net.load_params(checkpoint=checkpoint)
            return net.partial_fit(X, VALUES)
        return fit(
            built(training, LoadInitState(checkpoint), max_epochs=3), X, VALUES, seed=1
        )

    ours, theirs = resumed(GuardedNet), resumed(NeuralNet)
    assert_same(state_of(ours), state_of(theirs))
    assert len(ours.history) == N_EPOCHS
    assert ours.history[:, "train_loss"] == theirs.history[:, "train_loss"]
    assert_same(state_of(ours), state_of(fit(built(GuardedNet), X, VALUES)))


# -- a training that is interrupted ---------------------------------------------------


def press_ctrl_c(net):
    raise KeyboardInterrupt


class AtEpochEnd(AtBatch):
    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.action(net)

    on_batch_begin = Callback.on_batch_begin


@pytest.mark.parametrize(
    ("training", "place"),
    [
        ("skorch", AtBatch),
        ("skorch", AtEpochEnd),
        ("estimator", AtEpochEnd),
        ("estimator, early stopping", AtBatch),
    ],
)
@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_ctrl_c_leaves_a_usable_net_and_the_backup(training, place, tmp_path):
    path = tmp_path / "backup"
    broken = fit(*TRAININGS[training](BackupAndRestore(path), place(press_ctrl_c)))
    assert is_finite(state_of(broken).values())
    assert np.isfinite(broken.predict(X)).all()
    assert path.exists()
    again = fit(*TRAININGS[training](BackupAndRestore(path)))
    assert_same(state_of(again), state_of(fit(*TRAININGS[training]())))


@pytest.mark.parametrize(
    "training", ["skorch", "raw data", "estimator, early stopping"]
)
def test_a_real_ctrl_c_leaves_a_usable_net(training, tmp_path):
    output = tmp_path / "output"
    args = training, tmp_path / "backup", "INTERRUPT"
    process = start_script(__file__, output, *args, action="ignore")
    while not (output.exists() and "in training" in output.read_text()):
        assert process.exitcode is None, output.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=600)
    assert (process.exitcode, output.read_text()) == (
        0,
        "in training\nfinite and of use\n",
    )


class WeightsOfEpochs(Callback):
    def initialize(self):
        self.weights_ = []
        return self

    def on_epoch_end(self, net, **kwargs):
        weights = dict(net.module_.named_parameters())
        self.weights_.append({k: w.detach().clone() for k, w in weights.items()})


@pytest.mark.parametrize("lr", [1e6, 1e20])
@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_diverged_weights_are_replaced_by_the_last_verified_ones(lr):
    def fling(net):
        net.optimizer_.param_groups[0]["lr"] = lr

    callbacks = [WeightsOfEpochs(), AtBatch(fling, 4, 2), AtBatch(press_ctrl_c, 4, 3)]
    net = fit(*skorch_net(*callbacks, lr_schedule=None))
    assert net.nonfinite_reports_ == []  # nothing was seen of it before Ctrl-C
    assert_same(dict(net.module_.named_parameters()), callbacks[0].weights_[-1])
    assert np.isfinite(net.predict(X)).all()


@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_ctrl_c_keeps_the_progress_of_a_long_first_epoch():
    # Weights go further than their first size here, though no step was too large.
    inputs = np.random.default_rng(0).normal(size=(8000, 4)).astype("float32")
    y = 10 * inputs[:, :1] + 3
    net, _, _ = skorch_net(AtBatch(press_ctrl_c, 1, 400), train_split=None)
    fit(net, inputs, y)
    assert len(net.history) == 1
    assert np.mean((net.predict(inputs) - y) ** 2) < 0.2 * y.var()


class CtrlCAtOperation(TorchDispatchMode):
    """Press Ctrl-C at the n-th operation of torch, counted from a batch on."""

    def __init__(self, n):
        super().__init__()
        self.n_left = n
        self.is_counting = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n_left -= self.is_counting
        if self.is_counting and self.n_left == 0:
            self.is_counting = False
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [skorch_net, raw_data])
@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_ctrl_c_at_any_operation_of_a_step_leaves_a_usable_net(training):
    def loss_of(net, inputs, y):
        return float(np.mean((net.predict(inputs) - y) ** 2))

    _, *data = training()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        usual = loss_of(fit(*training(max_epochs=3)), *data)
        # A step has some hundred operations.
        for n in range(1, 160, 11):
            mode = CtrlCAtOperation(n)
            count = AtBatch(lambda net, mode=mode: setattr(mode, "is_counting", True))
            with mode:
                net = fit(*training(count))
            assert len(net.history) == 4
            assert is_finite(state_of(net).values())
            assert loss_of(net, *data) < 2 * usual


# -- weight averages -----------------------------------------------------------------


class PoisonGradient(Callback):
    def __init__(self, value, every=3):
        self.value = value
        self.every = every

    def initialize(self):
        self.n_seen_ = 0
        return self

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.n_seen_ += 1
        if self.n_seen_ % self.every == 0:
            next(iter(named_parameters))[1].grad.view(-1)[0] = self.value


class Half(Net):
    def __init__(self):
        super().__init__()
        self.half()

    def forward(self, X):
        return super().forward(X.half()).float()


class LogOfAnything(Net):
    def forward(self, X):
        return torch.log(super().forward(X))


FAULTS = {
    "SGD at 1e38": {"lr": 1e38, "optimizer": torch.optim.SGD},
    "Adam at 1e38": {"lr": 1e38},
    "momentum at 1e3": {
        "lr": 1e3,
        "optimizer": torch.optim.SGD,
        "optimizer__momentum": 0.9,
    },
    "LBFGS at 1e30": {"lr": 1e30, "optimizer": torch.optim.LBFGS},
    "a late 1e38": {"lr_schedule": lambda progress: 1.0 if progress < 0.5 else 1e38},
    "float16, eps 1e-8": {"module": Half, "lr": 0.01},
    "float16 at 10": {"module": Half, "lr": 10.0, "optimizer": torch.optim.SGD},
    "NaN gradients": {"value": np.nan},
    "inf gradients": {"value": np.inf},
    "NaN gradients, skip": {"value": np.nan, "on_nonfinite": "skip"},
    "log": {"module": LogOfAnything},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_weight_average_never_contains_a_nan(name):
    def exponential(module):
        average = get_ema_multi_avg_fn(0.9)
        return AveragedModel(module, multi_avg_fn=average, use_buffers=True)

    options = dict(FAULTS[name])
    averages = [Average(), Average(exponential)]
    callbacks = list(averages)
    if "value" in options:
        callbacks.append(PoisonGradient(options.pop("value")))
    net, *data = skorch_net(*callbacks, max_recoveries=50, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        # Adam with eps=1e-8 divides 0 by 0 in float16, and no rate can help.
        gives_up = name == "float16, eps 1e-8"
        with pytest.raises(NonFiniteTrainingError) if gives_up else nullcontext():
            fit(net, *data)
    assert len(net.nonfinite_reports_) > 0
    for average in averages:
        assert is_finite(average.average_.state_dict().values())
    assert is_finite(state_of(net).values())


# -- the script ----------------------------------------------------------------------


class TrainUntilCtrlC(Callback):
    """Print a line when training has started."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 3:
            print("in training", flush=True)


def interrupted(training, path):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    callbacks = [BackupAndRestore(path), TrainUntilCtrlC()]
    options = {"max_epochs": 10**6, "lr_schedule": None}
    if "early stopping" in training:
        options["n_iter_no_change"] = 10**6
    model, inputs, y = TRAININGS[training](*callbacks, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        fit(model, inputs, y)
    assert is_finite(state_of(model).values())
    error = np.mean((model.predict(inputs).ravel() - np.ravel(y)) ** 2)
    print("finite and of use" if error < np.var(y) else f"{error} of {np.var(y)}")


def resumed(training, path, result):
    model = fit(*TRAININGS[training](BackupAndRestore(path)), seed=5)
    print(backup_of(model).n_restored_epochs_)
    torch.save(state_of(model), result)


def killed(training, path):
    kill = AtBatch(lambda net: os.kill(os.getpid(), signal.SIGKILL))
    fit(*TRAININGS[training](BackupAndRestore(path), kill))


def main(training, path, result):
    torch.set_num_threads(1)
    if result == "KILL":
        killed(training, path)
    elif result == "INTERRUPT":
        interrupted(training, path)
    else:
        resumed(training, path, result)


if __name__ == "__main__":
    main(*sys.argv[1:])


@pytest.mark.parametrize(
    ("params", "rule"),
    [
        ({"path": 1}, "a path"),
        ({"path": b"backup"}, "a path"),
        ({"path": "backup", "delete_checkpoint": "no"}, "True or False"),
    ],
)
def test_invalid_parameters_are_refused_before_the_training(params, rule):
    *_, (name, value) = params.items()
    with pytest.raises(ValueError, match=name) as caught:
        BackupAndRestore(**params).initialize()
    assert str(caught.value) == (
        f"The {name!r} parameter of BackupAndRestore must be {rule}, got {value!r}."
    )
