"""Guarded versions of skorch's nets."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted
from skorch import (
    NeuralNet,
    NeuralNetBinaryClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from skorch.callbacks import Callback, LRScheduler
from skorch.dataset import Dataset
from skorch.exceptions import NotInitializedError
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
    GuardMixin,
    NaNImputer,
    NonFiniteDataError,
    NonFiniteTrainingError,
    SafeScaler,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 4)).astype("float32")
CODES = (X[:, 0] > 0).astype("int64")
SHARES = CODES.astype("float32")
VALUES = X[:, :1] - X[:, 1:2]


class Net(nn.Module):
    def __init__(self, n_outputs=1, squeeze=False, batch_norm=False):
        super().__init__()
        norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.body = nn.Sequential(nn.Linear(4, 8), norm, nn.Tanh(), nn.Dropout(0.1))
        self.head = nn.Linear(8, n_outputs)
        self.squeeze = squeeze

    def forward(self, X):
        output = self.head(self.body(X))
        return output.squeeze(1) if self.squeeze else output


PAIRS = {
    "net": (GuardedNet, NeuralNet, {"criterion": nn.MSELoss}, VALUES),
    "classifier": (
        GuardedNetClassifier,
        NeuralNetClassifier,
        {"criterion": nn.CrossEntropyLoss, "module__n_outputs": 2},
        CODES,
    ),
    "binary": (
        GuardedNetBinaryClassifier,
        NeuralNetBinaryClassifier,
        {"module__squeeze": True},
        SHARES,
    ),
    "regressor": (GuardedNetRegressor, NeuralNetRegressor, {}, VALUES),
}
every_net = pytest.mark.parametrize("name", PAIRS)


def built(name, guarded=True, **options):
    guarded_class, skorch_class, params, _ = PAIRS[name]
    net_class = guarded_class if guarded else skorch_class
    defaults = {"max_epochs": 3, "batch_size": 32, "lr": 0.05, "verbose": 0}
    return net_class(Net, **{**defaults, **params, **options})


def target(name):
    return PAIRS[name][3]


def fit_seeded(net, *data, seed=0):
    torch.manual_seed(seed)
    return net.fit(*data)


def weights_of(net):
    return [p.detach().clone() for p in net.module_.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def refusal(error, function, *args):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


class PoisonGradient(Callback):
    """Write NaN into one gradient at the given steps."""

    def __init__(self, steps=(2,)):
        self.steps = steps

    def initialize(self):
        self.n_seen_ = 0
        return self

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.n_seen_ += 1
        if self.n_seen_ in self.steps:
            next(iter(named_parameters))[1].grad.view(-1)[0] = torch.nan


# -- trainings without a failed step -------------------------------------------------


@every_net
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("kind", ["arrays", "tensors", "data set", "shuffled"])
def test_a_training_without_failures_is_bitwise_that_of_skorch(name, optimizer, kind):
    y = target(name)
    data = {
        "arrays": (X, y),
        "tensors": (torch.from_numpy(X), torch.from_numpy(y)),
        "data set": (Dataset(X, y), None),
        "shuffled": (X, y),
    }[kind]
    options = {"optimizer": optimizer, "module__batch_norm": True}
    if kind == "shuffled":
        options["iterator_train__shuffle"] = True
    elif kind != "arrays":
        options["train_split"] = None  # skorch cannot stratify by tensors
    net = fit_seeded(built(name, **options), *data)
    plain = fit_seeded(built(name, guarded=False, **options), *data)
    assert same(weights_of(net), weights_of(plain))
    assert same(net.module_.state_dict().values(), plain.module_.state_dict().values())
    shared = ["train_loss"] + (
        [] if options.get("train_split", 1) is None else ["valid_loss"]
    )
    for key in shared:
        assert net.history[:, key] == plain.history[:, key]
    batches = (slice(None), "batches", slice(None), "train_loss")
    assert net.history[batches] == plain.history[batches]
    np.testing.assert_array_equal(net.predict(X), plain.predict(X))
    assert net.nonfinite_reports_ == []
    assert net.effective_lr_ == 0.05


def test_a_shuffled_training_sees_every_row_once_an_epoch():
    seen = []

    class Spy(Callback):
        def on_batch_begin(self, net, batch=None, training=None, **kwargs):
            if training:
                seen.append(batch[0][:, 0].clone())

    net = built("net", iterator_train__shuffle=True, max_epochs=2, train_split=None)
    fit_seeded(net.set_params(callbacks=[Spy()]), X, VALUES)
    epochs = torch.cat(seen).reshape(2, -1)
    assert not torch.equal(epochs[0], epochs[1])
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(X[:, 0].tolist())


# LBFGS of torch 2.8 warns of the loss that a step of skorch returns.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_an_optimizer_that_calls_the_loss_many_times_is_guarded():
    options = {"optimizer": torch.optim.LBFGS, "lr": 0.1, "train_split": None}
    nets = [built("net", guarded, **options) for guarded in (True, False)]
    net, plain = (fit_seeded(net, X, VALUES) for net in nets)
    assert same(weights_of(net), weights_of(plain))
    wild = built("net", **{**options, "lr": 1e30})
    with pytest.warns(DivergenceWarning):
        fit_seeded(wild, X, VALUES)
    assert all(torch.isfinite(w).all() for w in weights_of(wild))


class Noisy(torch.utils.data.Dataset):
    """User-defined data set, whose batches are no slices of tensors."""

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"X": torch.from_numpy(X[i])}, torch.from_numpy(VALUES[i])


@pytest.mark.parametrize(
    "data",
    [
        ({"X": X}, VALUES),
        (Noisy(), None),
        (torch.utils.data.Subset(Dataset(X, VALUES), range(50)), None),
        (torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(VALUES)), None),
    ],
    ids=["dict", "own data set", "subset", "tensor data set"],
)
def test_every_data_set_that_skorch_accepts_is_trained_on(data):
    net = fit_seeded(built("net", train_split=None), *data)
    plain = fit_seeded(built("net", False, train_split=None), *data)
    assert same(weights_of(net), weights_of(plain))


def test_options_of_the_data_loader_have_an_effect():
    lengths = []

    def collate(rows):
        lengths.append(len(rows))
        return torch.utils.data.default_collate(rows)

    net = built("net", iterator_train__collate_fn=collate, train_split=None)
    fit_seeded(net, X, VALUES)
    assert lengths == [32, 32, 32] * (3 + 1)  # the outputs are checked at the end
    net = built("net", iterator_train__drop_last=True, batch_size=40, train_split=None)
    assert fit_seeded(net, X, VALUES).history[-1, "train_batch_count"] == 2
    net = built("net", batch_size=-1, train_split=None)
    assert fit_seeded(net, X, VALUES).history[-1, "train_batch_count"] == 1


def test_the_mixin_guards_a_user_defined_net():
    class Halved(NeuralNetRegressor):
        def get_loss(self, y_pred, y_true, *args, **kwargs):
            return super().get_loss(y_pred, y_true, *args, **kwargs) / 2

    class GuardedHalved(GuardMixin, Halved):
        pass

    options = {"max_epochs": 2, "lr": 0.05, "verbose": 0}
    net = fit_seeded(GuardedHalved(Net, clip_norm=100.0, **options), X, VALUES)
    assert same(
        weights_of(net), weights_of(fit_seeded(Halved(Net, **options), X, VALUES))
    )
    with pytest.warns(DivergenceWarning):
        fit_seeded(GuardedHalved(Net, **{**options, "lr": 1e30}), X, VALUES)


def test_parameters_are_saved_and_loaded_as_in_skorch(tmp_path):
    net = fit_seeded(built("net"), X, VALUES)
    net.save_params(f_params=tmp_path / "net.pt", f_history=tmp_path / "net.json")
    twin = built("net").initialize()
    twin.load_params(f_params=tmp_path / "net.pt", f_history=tmp_path / "net.json")
    np.testing.assert_array_equal(twin.predict(X), net.predict(X))
    assert len(twin.history) == 3


@every_net
def test_repr_and_messages_name_the_guarded_class(name):
    # skorch's own tests compare its class names, as docs/guide/moving.md says.
    guarded, skorchs, _, _ = PAIRS[name]
    net, twin = built(name), built(name, guarded=False)
    not_initialized = "^This {} instance is not initialized yet"
    for any_net in (net, twin):
        message = not_initialized.format(type(any_net).__name__)
        with pytest.raises(NotInitializedError, match=message):
            any_net.predict(X)
        with pytest.raises(NotFittedError, match=f"^This {type(any_net).__name__} "):
            check_is_fitted(any_net)
    assert repr(net) == repr(twin).replace(str(skorchs), str(guarded))
    assert repr(net.initialize()) == repr(twin.initialize()).replace(
        str(skorchs), str(guarded)
    )
    assert str(net) == repr(net)


# -- one step: check, recover, clip, schedule, log -----------------------------------


def test_gradients_changed_by_a_callback_are_checked_before_clipping():
    # Clipping by norm would spread one NaN to every weight.
    net = built(
        "net",
        callbacks=[("poison", PoisonGradient(steps=(2,)))],
        clip_norm=1.0,
        clip_value=0.5,
        adaptive_clip="agc",
        train_split=None,
    )
    with pytest.warns(DivergenceWarning, match="Training failed once"):
        fit_seeded(net, X, VALUES)
    assert all(torch.isfinite(w).all() for w in weights_of(net))
    (report,) = net.nonfinite_reports_
    assert (report.phase, report.epoch, report.batch) == ("backward", 1, 2)
    assert len(net.history) == 3


def test_the_history_has_the_gradient_norm_before_clipping():
    net = built("net", clip_norm=1e-4, train_split=None)
    fit_seeded(net, X, VALUES)
    assert min(net.history[:, "grad_norm"]) > 0.01
    assert net.history[:, "clip_share"] == [1.0] * 3
    assert "clip_share" not in fit_seeded(built("net"), X, VALUES).history[-1]


def test_a_step_is_no_longer_than_the_clipping_threshold():
    net = built("net", lr=1.0, clip_norm=1e-3, batch_size=-1, max_epochs=1)
    net.initialize()
    before = torch.cat([w.flatten() for w in weights_of(net)])
    net.partial_fit(X, VALUES)
    after = torch.cat([w.flatten() for w in weights_of(net)])
    assert float((after - before).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_schedule_and_warmup_set_the_learning_rate_of_every_step():
    rates = []

    class Spy(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    net = built(
        "net",
        lr=0.1,
        lr_schedule=lambda progress: 1 - progress,
        warmup=3,
        train_split=None,
        callbacks=[Spy()],
    )
    fit_seeded(net, X, VALUES)
    assert len(rates) == 9
    assert rates[0] < rates[1] < rates[2]
    assert all(a > b for a, b in itertools.pairwise(rates[3:]))
    # The rate is scaled only inside the step, so that it does not disturb schedulers.
    assert net.optimizer_.param_groups[0]["lr"] == 0.1
    assert net.history[-1, "lr"] == rates[-1]


def test_a_scheduler_of_skorch_still_works():
    scheduler = LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    net = built("net", callbacks=[scheduler], train_split=None)
    plain = built("net", False, callbacks=[scheduler], train_split=None)
    assert same(
        weights_of(fit_seeded(net, X, VALUES)),
        weights_of(fit_seeded(plain, X, VALUES)),
    )


def test_a_schedule_needs_to_know_the_length():
    class Endless:
        def __init__(self, dataset, batch_size):
            self.dataset = dataset

        def __iter__(self):
            return iter([(torch.tensor(X), torch.tensor(VALUES))])

    net = built("net", iterator_train=Endless, train_split=None, max_epochs=2)
    fit_seeded(net, X, VALUES)  # the length matters only for a schedule
    assert refusal(TypeError, net.set_params(lr_schedule="cosine").fit, X, VALUES) == (
        "lr_schedule='cosine' with warmup=0.0 needs to know the number of batches, but "
        "Endless has no length. Give the iterator a __len__, or leave both out."
    )


# -- recovery ------------------------------------------------------------------------


@every_net
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("lr", [1e4, 1e30])
def test_a_training_at_an_absurd_learning_rate_is_rescued(name, optimizer, lr):
    net = built(name, lr=lr, optimizer=optimizer, max_epochs=10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_seeded(net, X, target(name))
    # With Adam, steps of 1e4 saturate tanh and the loss stays finite: no failure.
    if optimizer is torch.optim.SGD or lr == 1e30:
        assert [w.category for w in caught] == [DivergenceWarning]
        assert caught[0].filename == __file__
        assert net.effective_lr_ < lr
    assert all(torch.isfinite(w).all() for w in weights_of(net))
    assert np.isfinite(net.predict_proba(X)).all()


def test_skip_skips_the_batch_and_keeps_the_learning_rate():
    poison = PoisonGradient(steps=(2, 5))
    net = built("net", on_nonfinite="skip", callbacks=[poison], train_split=None)
    with pytest.warns(DivergenceWarning, match="Training failed in 2 steps of"):
        fit_seeded(net, X, VALUES)
    assert net.effective_lr_ == 0.05
    assert [(r.epoch, r.batch) for r in net.nonfinite_reports_] == [(1, 2), (2, 2)]


@pytest.mark.parametrize("every", [2, 1])
def test_only_consecutive_skipped_steps_count(every):
    poison = PoisonGradient(steps=range(2, 90, every))
    net = built("net", on_nonfinite="skip", callbacks=[poison], max_epochs=30)
    net.set_params(max_recoveries=4, train_split=None)
    if every == 2:
        with pytest.warns(DivergenceWarning, match="Training failed in 44 steps of"):
            fit_seeded(net, X, VALUES)
        return
    refusal = r"Gave up after 4 recoveries \(max_recoveries=4\)"
    with pytest.raises(NonFiniteTrainingError, match=refusal):
        fit_seeded(net, X, VALUES)


def test_raise_raises_with_the_report_and_leaves_finite_weights():
    net = built("net", on_nonfinite="raise", callbacks=[PoisonGradient()])
    with pytest.raises(NonFiniteTrainingError) as caught:
        fit_seeded(net, X, VALUES)
    assert str(caught.value) == str(caught.value.report)
    assert caught.value.report == net.nonfinite_reports_[0]
    assert all(torch.isfinite(w).all() for w in weights_of(net))


def test_a_temporary_fault_costs_only_a_repetition_of_the_step():
    poisoned = built("net", callbacks=[PoisonGradient(steps=(2,))], max_epochs=2)
    with pytest.warns(DivergenceWarning):
        fit_seeded(poisoned, X, VALUES)
    sound = fit_seeded(built("net", max_epochs=2), X, VALUES)
    assert same(weights_of(poisoned), weights_of(sound))
    (report,) = poisoned.nonfinite_reports_
    assert report.recovery == "The step was taken again, and was finite."


class EverySecond:
    """Gradient accumulation: replaces an optimizer and takes every second step."""

    def __init__(self, optimizer):
        self.optimizer, self.n_calls = optimizer, 0

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.n_calls += 1
        if self.n_calls % 2 == 0:
            self.optimizer.step()
        return loss

    def zero_grad(self, set_to_none=True):
        if self.n_calls % 2 == 0:
            self.optimizer.zero_grad(set_to_none)


class Accumulating(GuardedNet):
    def initialize_optimizer(self):
        super().initialize_optimizer()
        self.optimizer_ = EverySecond(self.optimizer_)
        return self


def test_an_object_that_replaces_the_optimizer_is_not_interfered_with():
    torch.manual_seed(0)
    net = Accumulating(
        Net, torch.nn.MSELoss, max_epochs=3, lr=0.1, train_split=None, verbose=0
    )
    net.fit(X, VALUES)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < losses[0]
    assert net.nonfinite_reports_ == []


def test_a_spent_budget_raises():
    poison = PoisonGradient(steps=range(2, 100))
    net = built("net", max_recoveries=3, callbacks=[poison], max_epochs=20)
    message = refusal(NonFiniteTrainingError, fit_seeded, net, X, VALUES)
    assert message.endswith("Gave up after 3 recoveries (max_recoveries=3).")
    assert len(net.nonfinite_reports_) == 4


def test_a_new_fit_has_a_new_budget_and_partial_fit_continues():
    net = built("net", lr=1e30)
    with pytest.warns(DivergenceWarning):
        fit_seeded(net, X, VALUES)
    n_reports, rate = len(net.nonfinite_reports_), net.effective_lr_
    assert rate < 1e30
    net.partial_fit(X, VALUES)
    assert net.effective_lr_ <= rate
    assert len(net.nonfinite_reports_) >= n_reports
    net.set_params(lr=0.01)
    fit_seeded(net, X, VALUES)
    assert net.nonfinite_reports_ == []
    assert net.effective_lr_ == 0.01


class Interrupt(Callback):
    """Write NaN into a weight and interrupt the second epoch."""

    def on_grad_computed(self, net, named_parameters, **kwargs):
        if len(net.history) == 2:
            with torch.no_grad():
                net.module_.head.weight.fill_(torch.nan)
            raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:Training was interrupted")
def test_an_interrupted_training_leaves_finite_weights():
    net = fit_seeded(built("net", callbacks=[Interrupt()]), X, VALUES)
    assert len(net.history) == 2
    assert all(torch.isfinite(w).all() for w in weights_of(net))
    assert np.isfinite(net.predict(X)).all()


def test_train_step_without_fit_is_guarded_too():
    poison = PoisonGradient(steps=range(1, 4))
    net = built("net", callbacks=[poison]).initialize()
    before = weights_of(net)
    step = net.train_step((torch.tensor(X), torch.tensor(VALUES)))
    assert step["was_skipped"]
    assert same(weights_of(net), before)
    assert net.nonfinite_reports_[0].recovery == "The batch was left out."
    net.train_step((torch.tensor(X), torch.tensor(VALUES)))
    assert not same(weights_of(net), before)


def test_logits_where_probabilities_are_expected_give_a_warning():
    net = GuardedNetClassifier(
        Net, module__n_outputs=2, max_epochs=2, verbose=0, lr=0.1
    )
    with pytest.warns(UserWarning, match="criterion NLLLoss wants probabilities") as w:
        fit_seeded(net, X, CODES)
    assert str(w[0].message) == (
        "The module's output is negative in places, but criterion NLLLoss wants "
        "probabilities here (skorch takes their logarithm). If the module returns "
        "logits, use criterion=torch.nn.CrossEntropyLoss; otherwise end it with a "
        "softmax."
    )
    assert all(torch.isfinite(p).all() for p in weights_of(net))


# -- refusals ------------------------------------------------------------------------

IMPUTE = (
    "Impute first, for example with "
    'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
)


def damaged():
    table = X.copy()
    table[[2, 5], 1] = np.nan
    table[3, 0] = np.inf
    return table


def test_missing_values_are_refused_before_training():
    table = damaged()
    net = built("net")
    place = "in 2 of 4 columns: {} (1, first at row 3), {} (2, first at row 2). "
    assert refusal(NonFiniteDataError, net.fit, table, VALUES) == (
        f"X contains 2 NaN values and 1 inf value {place.format(0, 1)}{IMPUTE}"
    )
    frame = pd.DataFrame(table, columns=list("abcd"))
    assert refusal(NonFiniteDataError, net.fit, frame, VALUES) == (
        "X contains 2 NaN values and 1 inf value " + place.format("'a'", "'b'") + IMPUTE
    )
    for data in (torch.tensor(table), Dataset(table, VALUES), {"X": table}):
        message = refusal(NonFiniteDataError, net.fit, data, VALUES)
        assert message.startswith(("X contains 2 NaN", "X['X'] contains 2 NaN"))


def test_the_advice_to_impute_trains_a_net_on_a_table_of_float64():
    table = damaged().astype("float64")
    steps = NaNImputer(dtype="float32"), SafeScaler(), built("net")
    make_pipeline(*steps).fit(table, VALUES).predict(table)
    wide = make_pipeline(NaNImputer(), SafeScaler(), built("net"))
    message = (
        "mat1 and mat2 must have the same dtype, but got Double and Float. X is "
        "float64, and the weights of the network are float32: pass "
        "X.astype('float32'), or set dtype='float32' in NaNImputer."
    )
    assert refusal(RuntimeError, wide.fit, table, VALUES) == message
    inputs = X.astype("float64")
    assert refusal(RuntimeError, steps[-1].predict, inputs) == message


@pytest.mark.parametrize(
    ("dtype", "name", "cast"),
    [
        (torch.float16, "Half", "astype('float32')"),
        (torch.bfloat16, "BFloat16", "to(torch.float32)"),
        (torch.int64, "Long", "astype('float32')"),
        (torch.bool, "Bool", "astype('float32')"),
    ],
)
def test_the_advice_on_the_dtype_of_X_is_for_every_dtype(dtype, name, cast):
    tensor = torch.tensor(X).to(dtype)
    kind = str(dtype).removeprefix("torch.")
    message = (
        f"mat1 and mat2 must have the same dtype, but got {name} and Float. X is "
        f"{kind}, and the weights of the network are float32: pass X.{cast}, or set "
        "dtype='float32' in NaNImputer."
    )
    inputs = tensor if kind == "bfloat16" else tensor.numpy()
    assert refusal(RuntimeError, built("net").fit, inputs, VALUES) == message
    advised = {"X": inputs, "torch": torch}
    net = built("net").fit(eval(f"X.{cast}", advised), VALUES)
    assert refusal(RuntimeError, net.predict, inputs) == message
    numbers = tensor.float().numpy() if kind == "bfloat16" else inputs
    steps = NaNImputer(dtype="float32"), built("net")
    make_pipeline(*steps).fit(numbers, VALUES).predict(numbers)


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "float32"])
def test_the_dtype_of_labels_is_named(dtype):
    labels = (VALUES[:, 0] > 0).astype(dtype)
    net = GuardedNetClassifier(
        nn.Linear,
        module__in_features=4,
        module__out_features=2,
        criterion=nn.CrossEntropyLoss,
        max_epochs=1,
        verbose=0,
    )
    assert refusal(RuntimeError, net.fit, X, labels).endswith(
        ". The criterion takes the numbers of the classes as int64: pass "
        "y.astype('int64')."
    )
    net.fit(X, labels.astype("int64"))


class HalfPrecision(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 2))
        self.bfloat16()

    def forward(self, X):
        return super().forward(X.bfloat16())


def test_the_output_of_a_module_in_bfloat16_becomes_an_array_of_float32():
    net = GuardedNetClassifier(
        HalfPrecision, criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0
    )
    shares = net.fit(X, CODES).predict_proba(X)
    assert shares.dtype == np.float32
    assert shares.sum(axis=1) == pytest.approx(1.0)
    assert net.forward(X).dtype == torch.bfloat16


class LoneRow(nn.Sequential):
    """Network that can be trained on neither one row nor two equal rows."""

    def __init__(self):
        super().__init__(nn.BatchNorm1d(4), nn.Linear(4, 1))

    def forward(self, X):
        X = self[0](X)
        if self.training:
            torch.linalg.cholesky(X.T @ X)
        return self[1](X)


def test_a_lone_row_is_left_out_whatever_two_equal_rows_raise():
    net = GuardedNetRegressor(
        LoneRow, batch_size=8, max_epochs=1, train_split=None, verbose=0
    )
    with pytest.warns(
        DivergenceWarning, match="leave it out with iterator_train__drop"
    ):
        net.fit(X[:9], VALUES[:9])
    assert np.isfinite(net.predict(X)).all()


def test_a_target_with_missing_values_is_refused_before_training():
    y = VALUES.copy()
    y[7] = np.nan
    assert refusal(NonFiniteDataError, built("net").fit, X, y) == (
        "y contains 1 NaN value in 1 of 1 column: 0 (1, first at row 7). A row without "
        "a finite target cannot be used for training: remove these rows from X and y."
    )
    for missing in (None, pd.NA, np.nan, np.inf):
        cells = [*y[:7, 0].tolist(), missing, *y[8:, 0].tolist()]
        for target in (cells, tuple(cells), pd.Series(cells, dtype=object)):
            message = refusal(NonFiniteDataError, built("net").fit, X, target)
            assert message.startswith("y contains 1 ")
            assert "at row 7" in message


def test_missing_values_at_predict_are_refused():
    net = fit_seeded(built("net"), X, VALUES)
    message = refusal(NonFiniteDataError, net.predict, damaged())
    assert message.startswith("X contains 2 NaN values and 1 inf value in 2 of 4")
    with torch.no_grad():
        net.module_.head.weight.fill_(torch.nan)
    message = refusal(NonFiniteTrainingError, net.predict, X)
    assert re.sub(r"\(.*?:\d+\)", "(line)", message) == (
        "Non-finite output of aten.addmm in 'head' (line). The network's output is not "
        "finite for 96 of 96 rows, although X is finite; the weight 'head.weight' is "
        "not finite. Fit the network again, or check the weights that were loaded."
    )


@pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
@pytest.mark.parametrize("value", [0, -1.0, np.nan, "1", True])
def test_an_invalid_clipping_threshold_is_refused(name, value):
    assert refusal(ValueError, built("net", **{name: value}).fit, X, VALUES) == (
        f"{name} must be a number above 0 or None, got {value!r}."
    )


# -- memory --------------------------------------------------------------------------


def test_no_second_copy_of_the_weights_outlives_the_training():
    wide = nn.Sequential(nn.Linear(4, 100_000), nn.Linear(100_000, 1))
    net = GuardedNet(wide, nn.MSELoss, max_epochs=1, lr=1e-6, verbose=0)
    fit_seeded(net, X, VALUES)
    n_bytes = sum(p.numel() * 4 for p in net.module_.parameters())
    assert len(pickle.dumps(net)) < 1.1 * n_bytes + 20_000
    twin = pickle.loads(pickle.dumps(net))
    assert twin.module is twin.module_
    np.testing.assert_array_equal(twin.predict(X), net.predict(X))


def lazy_module():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(1))


@pytest.mark.parametrize("module", [lazy_module, lazy_module()])
def test_lazy_layers_take_their_shapes_from_the_training_data(module):
    options = {"train_split": None, "verbose": 0, "max_epochs": 10, "lr": 0.1}
    inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    target = inputs[:, :1].clone()
    torch.manual_seed(0)
    net = GuardedNet(copy.deepcopy(module), nn.MSELoss, **options).fit(inputs, target)
    losses = net.history[:, "train_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert net.module_[0].weight.shape == (8, 4)


LAZY = (
    "The module has lazy layers, such as LazyLinear, whose weights have no shape yet. "
    "Call the module on a batch of inputs before the training."
)


class Fussy(nn.Module):
    """Network that raises for the first row, before its lazy layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LazyLinear(1)

    def forward(self, x):
        if x[0, 0] == 0.5:
            raise ValueError("0.5")
        return self.layer(x)


def test_lazy_layers_can_be_averaged_and_may_refuse_a_row():
    inputs = np.linspace(0.5, 1, 64, dtype="float32").reshape(-1, 1)
    options = {"train_split": None, "verbose": 0, "max_epochs": 2, "batch_size": 64}
    net = GuardedNet(Fussy, nn.MSELoss, ema_decay=0.9, **options)
    with pytest.raises(ValueError, match=r"^0\.5$"):
        net.fit(inputs, inputs)  # the layer has its shape, and training has begun
    assert net.module_.layer.weight.shape == (1, 1)
    net = GuardedNet(lazy_module, nn.MSELoss, ema_decay=0.9, **options)
    assert np.isfinite(net.fit(inputs, inputs).predict(inputs)).all()


def test_an_optimizer_that_needs_the_shapes_of_lazy_layers_says_so():
    net = GuardedNet(lazy_module, nn.MSELoss, optimizer=torch.optim.Adagrad, verbose=0)
    with pytest.raises(ValueError, match=f"^{LAZY}$"):
        net.fit(X, VALUES)


def test_lazy_layers_on_a_data_loader_need_a_first_call():
    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.ones(4), torch.ones(1)

    net = GuardedNet(lazy_module, nn.MSELoss, train_split=None, verbose=0)
    with pytest.raises(ValueError, match=f"^{LAZY}$"):
        net.fit(Own(), None)
