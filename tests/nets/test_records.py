"""History entries and warnings of guarded trainings."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import BaggingRegressor, StackingRegressor, VotingRegressor
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EarlyStopping
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    GuardedNetRegressor,
    StableNetClassifier,
    StableNetRegressor,
)

X = np.random.default_rng(0).normal(size=(128, 4)).astype("float32")
Y = (X @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.1)[:, None].astype("float32")


class MLP(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))


class FlatMLP(MLP):
    def forward(self, x):
        return super().forward(x)[:, 0]


def network_of(**options):
    torch.manual_seed(0)
    return GuardedNet(
        MLP,
        nn.MSELoss,
        lr=0.05,
        batch_size=16,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
        **options,
    )


def test_clips_are_counted_and_measured():
    net = network_of(clip_norm=0.05, max_epochs=2).fit(X, Y)
    share, coefficient = net.history[-1, ("clip_share", "clip_coefficient")]
    assert 0.5 < share <= 1.0
    assert 0.0 < coefficient < 1.0


def test_a_clip_that_never_had_an_effect_gives_a_warning():
    with pytest.warns(UserWarning, match="clip_norm") as caught:
        network_of(clip_norm=1e6, max_epochs=4).fit(X, Y)
    message = str(caught[0].message)
    assert message.startswith(
        "clip_norm=1000000.0 never had an effect: the norm of the gradients was at "
    )
    assert message.endswith(
        "in 32 steps. Lower it to bound what is unusual here, or leave it out."
    )


def test_a_clip_by_value_that_never_had_an_effect_gives_a_warning():
    net = network_of(clip_value=1e6, max_epochs=4)
    with pytest.warns(UserWarning, match="clip_value=1000000.0 never had an effect"):
        net.fit(X, Y)
    assert set(net.history[:, "clip_share"]) == {0.0}
    assert set(net.history[:, "clip_coefficient"]) == {1.0}


def test_no_warning_says_that_the_default_clip_of_an_estimator_was_idle():
    labels = (Y.ravel() > 0).astype(int)
    model = StableNetClassifier(lr=1e-6, max_epochs=30, batch_size=16, random_state=0)
    model.fit(X, labels)  # warnings are errors here


# -- interrupted trainings -----------------------------------------------------------


class InterruptAt(Callback):
    """Interrupt a training in an epoch, at its beginning, in a batch or at its end."""

    def __init__(self, method_name, epoch, interrupt):
        setattr(self, method_name, self.act)
        self.epoch = epoch
        self.interrupt = interrupt

    def act(self, net, **kwargs):
        if len(net.history) == self.epoch:
            self.interrupt()


def raise_interrupt():
    raise KeyboardInterrupt


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("interrupt", [raise_interrupt, press_ctrl_c])
@pytest.mark.parametrize(
    ("method_name", "n_done"),
    [("on_epoch_begin", 2), ("on_batch_end", 2), ("on_epoch_end", 3)],
)
def test_an_interrupted_training_says_after_how_many_epochs(
    method_name, n_done, interrupt
):
    callbacks = [InterruptAt(method_name, 3, interrupt)]
    with pytest.warns(UserWarning, match="interrupted") as caught:
        network_of(max_epochs=7, callbacks=callbacks).fit(X, Y)
    assert [str(w.message) for w in caught] == [
        f"Training was interrupted after {n_done} of 7 epochs. The network keeps the "
        "last weights that are usable. Call fit again for a complete training."
    ]
    assert caught[0].filename == __file__


class InterruptIn:
    """Tracer that raises an exception when functions are called in this order."""

    def __init__(self, *names):
        self.names = list(names)

    def __call__(self, frame, event, arg):
        if self.names[0] in (frame.f_code.co_name, frame.f_code.co_qualname):
            del self.names[0]
        if not self.names:
            sys.settrace(None)
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("names", "n_done"),
    [
        (["check_target_outliers"], 0),
        (["_prepare_guard"], 0),
        (["find_fault_of_result"], 3),
        (["end"], 3),
        (["end", "show_average"], 3),
    ],
)
def test_an_interrupt_before_or_after_the_epochs_gives_the_warning(names, n_done):
    def averaged():
        torch.manual_seed(0)
        return network_of(max_epochs=3, ema_decay=0.9)

    expected, net = averaged().fit(X, Y).predict(X), averaged()
    before = sys.gettrace()
    sys.settrace(InterruptIn(*names))
    try:
        with pytest.warns(UserWarning, match=f"after {n_done} of 3 epochs"):
            net.fit(X, Y)
    finally:
        sys.settrace(before)
    assert np.isfinite(net.predict(X)).all()
    torch.manual_seed(0)
    np.testing.assert_array_equal(net.fit(X, Y).predict(X), expected)


def test_only_the_epochs_of_the_interrupted_training_count():
    interrupt = InterruptAt("on_epoch_end", 6, raise_interrupt)
    net = network_of(max_epochs=4, callbacks=[interrupt]).fit(X, Y)
    with pytest.warns(UserWarning, match=r"interrupted after 2 of 4 epochs\."):
        net.partial_fit(X, Y)


def test_an_interrupted_estimator_keeps_its_best_epoch_and_predicts():
    net = StableNetRegressor(
        callbacks=[InterruptAt("on_epoch_end", 2, press_ctrl_c)],
        early_stopping=True,
        random_state=0,
    )
    with pytest.warns(UserWarning, match="interrupted") as caught:
        net.fit(X, Y.ravel())
    assert [str(w.message) for w in caught] == [
        "Training was interrupted after 2 of 100 epochs. The network keeps the weights "
        "of its best epoch. Call fit again for a complete training."
    ]
    assert caught[0].filename == __file__
    assert net.n_iter_ == 2
    assert np.isfinite(net.predict(X)).all()


class InterruptNth(Callback):
    """Interrupt the n-th training at the end of an epoch; copies count together."""

    n_trainings = 0  # of the class

    def __init__(self, n):
        self.n = n

    def on_train_begin(self, net, **kwargs):
        InterruptNth.n_trainings += 1

    def end_epoch(self):
        if InterruptNth.n_trainings == self.n:
            press_ctrl_c()

    def on_epoch_end(self, net, **kwargs):
        self.end_epoch()


class InterruptBatch(InterruptNth):
    """Callback with which the training runs in the loop of the net."""

    def on_batch_end(self, net, **kwargs):
        self.end_epoch()

    on_epoch_end = Callback.on_epoch_end


@pytest.mark.parametrize(
    "names",
    [
        # Python does not leave the block of a method that it does not enter.
        ["recorded_warnings.__exit__"],
        ["ValidationScore.on_epoch_end", "BestWeights.on_epoch_end"],
    ],
)
def test_an_interrupt_at_the_end_of_an_epoch_gives_the_warning(names):
    options = {"early_stopping": True, "scoring": "r2", "max_epochs": 3}
    net = StableNetRegressor(callbacks=[InterruptBatch(0)], **options)
    tracer = InterruptIn(*names)
    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        with pytest.warns(UserWarning, match="Training was interrupted after 1 of 3"):
            net.fit(X, Y.ravel())
    finally:
        sys.settrace(before)
    assert np.isfinite(net.predict(X)).all()


class StopNth(InterruptNth):
    """End the n-th training after its first epoch, as skorch's EarlyStopping does."""

    def on_epoch_end(self, net, **kwargs):
        if InterruptNth.n_trainings == self.n:
            raise KeyboardInterrupt


def interrupted_models(n):
    InterruptNth.n_trainings = 0
    stacked = StableNetRegressor(max_epochs=3, callbacks=[InterruptNth(n)])
    guarded = GuardedNetRegressor(FlatMLP, verbose=0, callbacks=[InterruptNth(n)])
    return {
        "stack": stacked,
        "loop": clone(stacked).set_params(callbacks=[InterruptBatch(n)]),
        "net": make_pipeline(StandardScaler(), guarded.set_params(train_split=None)),
    }


OF_SEVERAL = {
    "search": lambda model: GridSearchCV(model, {}, cv=2).fit,
    "refit": lambda model: RandomizedSearchCV(model, {}, n_iter=1, cv=2).fit,
    "scores": lambda model: lambda X, y: cross_val_score(model, X, y, cv=2),
    "bagging": lambda model: BaggingRegressor(model, n_estimators=2).fit,
    "stacking": lambda model: StackingRegressor([("a", model), ("b", model)]).fit,
    "voting": lambda model: VotingRegressor([("a", model), ("b", model)]).fit,
    "multioutput": lambda model: MultiOutputRegressor(model).fit,
}


@pytest.mark.parametrize("kind", OF_SEVERAL)
@pytest.mark.parametrize("model", ["stack", "loop", "net"])
def test_ctrl_c_ends_the_fits_of_scikit_learn_that_a_training_belongs_to(model, kind):
    n = 3 if kind == "refit" else 2
    fit = OF_SEVERAL[kind](interrupted_models(n)[model])
    with pytest.raises(KeyboardInterrupt):
        fit(X, np.hstack([Y, Y]) if kind == "multioutput" else Y.ravel())
    assert InterruptNth.n_trainings == n


@pytest.mark.parametrize("model", ["stack", "loop", "net"])
@pytest.mark.parametrize("of_one", [make_pipeline, TransformedTargetRegressor])
def test_ctrl_c_leaves_a_usable_net_in_what_trains_one(model, of_one):
    fitted = of_one(interrupted_models(1)[model])
    with pytest.warns(UserWarning, match="interrupted after"):
        fitted.fit(X, Y.ravel())
    assert np.isfinite(fitted.predict(X)).all()


@pytest.mark.parametrize("model", ["stack", "net"])
def test_a_callback_that_ends_its_training_ends_no_other(model):
    net = interrupted_models(2)[model]
    name = "callbacks" if model == "stack" else "guardednetregressor__callbacks"
    search = GridSearchCV(net.set_params(**{name: [StopNth(2)]}), {}, cv=2)
    with pytest.warns(UserWarning, match="interrupted after 1 of") as caught:
        search.fit(X, Y.ravel())
    assert len(caught) == 1
    assert InterruptNth.n_trainings == 3


class Patient(EarlyStopping):
    """A callback of the user's that relies on skorch's to end the training."""


class LogOfFirst(nn.Module):
    def __init__(self, n_features_in=4, n_outputs=1):
        super().__init__()
        self.head = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        return self.head(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


@pytest.mark.parametrize("n_epochs", [1, 5])
def test_a_summary_counts_reasons_and_epochs_and_names_rows(n_epochs):
    inputs = np.abs(X) + 0.5
    inputs[17, 0] = -3.0
    net = StableNetRegressor(
        LogOfFirst, random_state=0, max_epochs=n_epochs, early_stopping=False
    )
    with pytest.warns(DivergenceWarning) as caught:
        net.fit(inputs, Y.ravel())
    first = net.nonfinite_reports_[0]
    failed, dropped = "once", "Row 17 was left out of steps."
    if n_epochs > 1:
        failed = "in 5 steps of 5 epochs, for one reason,"
        dropped += (
            f" Non-finite output of aten.log ({first.source}). The network cannot "
            "learn from 1 row, left out of more than 2 steps, since torch's own "
            "gradient is of no use there either. To blame: row 17, column 0."
        )
    assert str(caught[0].message) == (
        f"Training failed {failed} and was rescued. {dropped} First failure: {first}"
    )


class LogOfTwo(LogOfFirst):
    """Logarithm of the first column, and square root of the second."""

    def forward(self, x):
        return super().forward(torch.cat([x[:, :1], x[:, 1:2].sqrt(), x[:, 2:]], 1))


def test_rows_that_no_step_can_learn_from_are_told_with_each_operation():
    inputs = np.abs(X) + 0.5
    inputs[[17, 90], 0] = -3.0
    inputs[64, 1] = -2.0
    net = network_of(max_epochs=4).set_params(module=LogOfTwo)
    with pytest.warns(DivergenceWarning) as caught:
        net.fit(inputs, Y)
    log, root = (
        next(r for r in net.nonfinite_reports_ if r.operation == f"aten.{name}")
        for name in ("log", "sqrt")
    )
    assert log is net.nonfinite_reports_[0]
    assert root.action == (
        "Clean these columns, or use sknan.functional.sqrt, whose value and gradient "
        "stay finite."
    )
    assert str(caught[0].message) == (
        "Training failed in 12 steps of 4 epochs, for 2 "
        "reasons, and was rescued. Rows 17, 64, 90 were left out of steps. "
        f"Non-finite output of aten.log ({log.source}). The network cannot learn "
        "from 2 rows, left out of more than 2 steps, since torch's own gradient "
        "is of no use there either. To blame: rows 17, 90, column 0. "
        f"Non-finite output of aten.sqrt ({root.source}). The network cannot learn "
        "from 1 row, left out of more than 2 steps, since torch's own gradient is of "
        "no use there either. To blame: row 64, column 1. "
        f"{root.action} First failure: {log}"
    )


class Exit(Callback):
    """Callback that exits as a handler of SIGTERM does, after a failed step."""

    def __init__(self, error):
        self.error = error

    def on_batch_end(self, net, training=False, **_):
        if training and net.nonfinite_reports_:
            raise self.error


@pytest.mark.parametrize("error", [SystemExit(143), GeneratorExit(), MemoryError()])
def test_an_exit_during_a_rescue_is_raised_unchanged(error):
    net = StableNetRegressor(
        criterion=Never, callbacks=[Exit(error)], max_epochs=2, random_state=0
    )
    with pytest.raises(type(error)) as caught:
        net.fit(X, Y.ravel())
    assert caught.value is error


class Logarithm(nn.Module):
    """Network outside its domain for some rows, whose n-th call raises an exception."""

    def __init__(self, n_features_in, n_outputs, at=0, error=None):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)
        self.n_calls, self.at, self.error = 0, at, error

    def forward(self, x):
        self.n_calls += 1
        if self.n_calls == self.at:
            if self.error is None:
                torch.empty(2**60)  # more than any machine has
            raise self.error
        return self.layer(torch.log(x + 1))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), None])
def test_an_exception_of_the_machine_is_raised_also_while_a_step_is_explained(error):
    for at in (1, 2, 3, 5, 8):
        net = StableNetRegressor(
            Logarithm,
            module__at=at,
            module__error=error,
            max_epochs=1,
            random_state=0,
        )
        with pytest.raises(type(error) if error else RuntimeError) as caught:
            net.fit(X, Y.ravel())
        expected = str(error) if error else "DefaultCPUAllocator"
        assert expected in str(caught.value)  # a replay calls a copy of the module


class Never(nn.MSELoss):
    """Loss that is never finite."""

    def forward(self, out, y):
        return super().forward(out, y) * float("nan")


@pytest.mark.parametrize("kind", [EarlyStopping, Patient])
def test_callbacks_that_end_a_training_in_order_give_no_warning(kind):
    stopping = kind(monitor="train_loss", patience=2, threshold=10.0)
    assert len(network_of(max_epochs=9, callbacks=[stopping]).fit(X, Y).history) < 9
    net = StableNetRegressor(
        early_stopping=True, n_iter_no_change=1, callbacks=[stopping], random_state=0
    )
    assert net.fit(X, Y.ravel()).n_iter_ < 100
