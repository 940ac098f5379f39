"""Jobs: keys, outcomes, errors, warnings, and jobs that cannot share a stack."""

import signal
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from engine_helpers import (
    LEARNING_RATES,
    TABLES,
    assert_bitwise_equal,
    assert_close,
    fitted_separately,
    jobs_of,
    weights_of,
)
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import ShuffleSplit
from skorch.callbacks import Callback
from torch import nn

from sknan import (
    DivergenceWarning,
    StableNetClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan._engine.jobs import Job, job_key, train_together
from sknan.model_selection import BatchedGridSearchCV


def test_jobs_that_may_share_a_stack_have_equal_keys():
    job, *_ = jobs_of(StableNetClassifier, LEARNING_RATES)

    def key(**params):
        return job_key(
            job._replace(estimator=clone(job.estimator).set_params(**params))
        )

    assert key() == key(lr=1.0, weight_decay=1.0, clip_norm=None, random_state=7)
    assert key(optimizer__betas=(0.5, 0.9)) == key(optimizer__betas=(0.9, 0.99))
    assert key() != key(module__width=8)
    assert key() != key(batch_size=16)
    assert key() == key(callbacks=[Callback()])
    assert key(verbose=2) is None
    assert key() != job_key(job._replace(X=job.X[:50]))


def test_predictions_equal_those_of_separate_fits():
    jobs = jobs_of(StableNetClassifier, LEARNING_RATES)
    estimators = fitted_separately(jobs)
    for outcome, separate, job in zip(
        train_together(jobs), estimators, jobs, strict=True
    ):
        np.testing.assert_allclose(
            outcome.estimator.predict_proba(job.X),
            separate.predict_proba(job.X),
            rtol=0,
            atol=1e-4,
        )


def test_an_outcome_holds_the_error_that_fit_would_raise():
    X, y = TABLES[0]
    broken = X.copy()
    broken[3, 1] = np.nan
    jobs = [
        Job(StableNetRegressor(max_epochs=1), X, y, {}),
        Job(StableNetRegressor(max_epochs=1), broken, y, {}),
        Job(StableNetRegressor(max_epochs=1, lr=-1), X, y, {}),
    ]
    outcomes = train_together(jobs)
    assert outcomes[0].error is None
    assert outcomes[1].estimator is None
    assert "NaN" in str(outcomes[1].error)
    assert "'lr'" in str(outcomes[2].error)


def test_an_outcome_holds_the_warnings_of_fit():
    settings = [{"clip_norm": 1e6}, {"clip_norm": 0.1}]
    outcomes = train_together(jobs_of(StableNetRegressor, settings))
    assert "clip_norm=1000000.0 never had an effect" in str(outcomes[0].warnings[0])
    assert not outcomes[2].warnings


def test_jobs_on_the_same_rows_share_their_validation():
    X, y = TABLES[0]
    frame = pd.DataFrame(X, columns=list("abcde"))
    column = (y > 0).astype(int)[:, None]
    jobs = [
        Job(StableNetClassifier(max_epochs=2, lr=lr, random_state=0), frame, column, {})
        for lr in (1e-3, 1e-2, -1.0)
    ]
    with pytest.warns(DataConversionWarning) as caught:
        *outcomes, refused = train_together(jobs)
    assert len(caught) == 1
    for outcome in outcomes:
        assert outcome.is_stacked
        assert outcome.estimator.feature_names_in_.tolist() == list("abcde")
        assert outcome.estimator.classes_.tolist() == [0, 1]
    with pytest.raises(ValueError, match="lr") as separate:
        clone(jobs[2].estimator).fit(frame, column)
    assert str(refused.error) == str(separate.value)


def test_a_stack_holds_the_rows_of_each_member():
    # class_weight changes the weights of the rows, validation_split their order.
    X, y = TABLES[0][0], np.digitize(TABLES[0][1], [-0.5, 0.5])
    common = {"max_epochs": 3, "early_stopping": True, "random_state": 0}
    each = [
        {"class_weight": {0: 1, 2: 2}},
        {"class_weight": {0: 2, 2: 9}},
        {},
        {"validation_split": ShuffleSplit(1, test_size=0.1, random_state=0)},
    ]
    jobs = [Job(StableNetClassifier(**common, **own), X, y, {}) for own in each]
    separate = [estimator.predict_proba(X) for estimator in fitted_separately(jobs)]
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    found = [outcome.estimator.predict_proba(X) for outcome in outcomes]
    np.testing.assert_allclose(found, separate, atol=1e-5)


def test_memory_limits_the_size_of_a_stack():
    jobs = jobs_of(StableNetClassifier, LEARNING_RATES)
    estimators = fitted_separately(jobs)
    outcomes = train_together(jobs, max_memory=1)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, estimators)


def test_the_state_of_the_global_generator_is_unchanged():
    state = torch.get_rng_state()
    train_together(jobs_of(StableNetClassifier, LEARNING_RATES))
    assert torch.equal(torch.get_rng_state(), state)


# -- failures --------------------------------------------------------------------------


def test_a_member_that_fails_late_does_not_change_the_others():
    # Large enough to diverge, small enough to be accepted in the stack.
    settings = [{"lr": 1e-3}, {"lr": 1e9}, {"lr": 1e-2}]
    jobs = jobs_of(StableNetClassifier, settings, clip_norm=None, max_epochs=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        estimators = fitted_separately(jobs)
    outcomes = train_together(jobs)
    stacked = [outcome.is_stacked for outcome in outcomes]
    assert stacked == [True] * 6
    for outcome, estimator in zip(outcomes, estimators, strict=True):
        assert_bitwise_equal(weights_of(outcome.estimator), weights_of(estimator))
    assert_close(outcomes, estimators)
    assert outcomes[2].estimator.nonfinite_reports_
    assert [type(w) for w in outcomes[2].warnings] == [DivergenceWarning]


def raising_late(progress):
    if progress > 0.5:
        raise RuntimeError("I am at my end")
    return 1.0


def test_a_schedule_that_raises_affects_its_own_job_only():
    settings = [{"lr_schedule": "cosine"}, {"lr_schedule": raising_late}, {"lr": 1e-2}]
    outcomes = train_together(jobs_of(StableNetClassifier, settings, TABLES[:1]))
    assert [outcome.is_stacked for outcome in outcomes] == [True, False, True]
    assert str(outcomes[1].error) == "I am at my end"


class Whitened(nn.Module):
    """Raises where a weight is not finite, because a decomposition does not exist."""

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.mix = nn.Linear(n_features_in, 3)
        self.head = nn.Linear(3, n_outputs)

    def forward(self, x):
        h = self.mix(x)
        root = torch.linalg.cholesky(torch.eye(3) + h.T @ h / len(h))
        return self.head(torch.linalg.solve_triangular(root, h.T, upper=False).T)


def test_a_module_that_raises_for_one_member_does_not_affect_the_others():
    settings = [{"lr": 1e-3}, {"lr": 1e-2}, {"lr": 1e9}]
    common = {"module": Whitened, "clip_norm": None, "on_nonfinite": "raise"}
    jobs = jobs_of(StableNetClassifier, settings, TABLES[:1], **common)
    with pytest.raises(Exception) as separate:  # noqa: PT011
        clone(jobs[2].estimator).fit(jobs[2].X, jobs[2].y)
    estimators = fitted_separately(jobs[:2])
    *outcomes, diverged = train_together(jobs)
    assert_close(outcomes, estimators)
    assert type(diverged.error) is type(separate.value)


class InterruptAt(Callback):
    """Interrupt the second training in its second epoch, and count the trainings."""

    trainings = ()  # of the class: callbacks are copied

    def __init__(self, method_name):
        self.method_name = method_name

    def notify(self, method_name, net):
        if method_name == "on_train_begin":
            InterruptAt.trainings += (net,)
        is_second = len(InterruptAt.trainings) > 1 and len(net.history) == 2
        if method_name == self.method_name and is_second:
            signal.raise_signal(signal.SIGINT)

    def on_train_begin(self, net, **_):
        self.notify("on_train_begin", net)

    def on_epoch_end(self, net, **_):
        self.notify("on_epoch_end", net)


class InterruptInBatch(InterruptAt):
    """Callback that sees batches, so that each training uses the loop of its net."""

    def on_batch_end(self, net, **_):
        self.notify("on_batch_end", net)


@pytest.mark.parametrize(
    ("kind", "method_name"),
    [
        (InterruptAt, "on_epoch_end"),
        (InterruptInBatch, "on_epoch_end"),
        (InterruptInBatch, "on_batch_end"),
    ],
)
def test_an_interrupt_ends_all_jobs(kind, method_name):
    InterruptAt.trainings = ()
    callbacks = [kind(method_name)]
    jobs = jobs_of(StableNetRegressor, LEARNING_RATES, callbacks=callbacks)
    with pytest.raises(KeyboardInterrupt):
        train_together(jobs)
    # A stack begins all of its trainings together.
    assert len(InterruptAt.trainings) == (2 if kind is InterruptInBatch else len(jobs))


class AlarmError(Exception):
    """Raised by the handler of a signal."""


class Alarmed(nn.Module):
    """Network that is called when a signal arrives, in its 40th call of all."""

    n_calls = 0

    def __init__(self, n_features_in, n_outputs):
        super().__init__()
        self.layer = nn.Linear(n_features_in, n_outputs)

    def forward(self, x):
        Alarmed.n_calls += 1
        if Alarmed.n_calls == 40:
            signal.raise_signal(signal.SIGTERM)
        return self.layer(x)


@pytest.fixture
def handle():
    """Return a function that makes another function the handler of signals."""
    signals = [signal.SIGTERM, getattr(signal, "SIGALRM", signal.SIGTERM)]
    before = [signal.getsignal(number) for number in signals]

    def set_handler(function):
        for number in signals:
            signal.signal(number, function)

    yield set_handler
    for number, function in zip(signals, before, strict=True):
        signal.signal(number, function)


def handler_that_raises(error):
    def handler(*_):
        raise error("deadline")

    return handler


def estimators_of(net):
    return {
        "net": net,
        "lr": clone(net).set_params(lr="auto"),
        "ensemble": StableNetEnsembleRegressor(net, n_estimators=3, random_state=0),
        "search": BatchedGridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2),
    }


@pytest.mark.parametrize("error", [AlarmError, ValueError])
@pytest.mark.parametrize("kind", ["net", "lr", "ensemble", "search"])
def test_the_error_of_a_handler_ends_all_trainings(kind, error, handle):
    net = StableNetRegressor(Alarmed, max_epochs=20, random_state=0)
    handle(handler_that_raises(error))
    Alarmed.n_calls = 0
    with pytest.raises(error, match=r"^deadline$"):
        estimators_of(net)[kind].fit(*TABLES[0])
    assert Alarmed.n_calls == 40


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer")
@pytest.mark.parametrize(
    ("kind", "handler", "error"),
    [
        ("net", handler_that_raises(ValueError), ValueError),
        ("ensemble", handler_that_raises(Exception), Exception),
        ("search", handler_that_raises(FloatingPointError), FloatingPointError),
    ],
)
def test_a_deadline_ends_a_stack(kind, handler, error, handle):
    # No machine trains that many epochs in the time.
    net = StableNetRegressor(max_epochs=100_000, random_state=0)
    handle(handler)

    def fit_with_deadline():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        estimators_of(net)[kind].fit(*TABLES[0])

    with pytest.raises(error, match=r"^deadline$"):
        fit_with_deadline()


def test_an_error_while_a_stack_is_made_comes_out():
    def alarm(frame, event, arg):
        if frame.f_code.co_name == "_allocate":  # the memory of a stack
            sys.settrace(None)
            raise AlarmError

    net, before = StableNetRegressor(max_epochs=2), sys.gettrace()
    ensemble = StableNetEnsembleRegressor(net, n_estimators=2, random_state=0)
    sys.settrace(alarm)
    try:
        with pytest.raises(AlarmError):
            ensemble.fit(*TABLES[0])
    finally:
        sys.settrace(before)


def test_an_interrupt_of_the_refit_ends_a_search():
    InterruptAt.trainings = ()
    search = BatchedGridSearchCV(
        StableNetRegressor(max_epochs=3, callbacks=[InterruptInBatch("on_batch_end")]),
        {"lr": [1e-3]},
        cv=[(np.arange(20), np.arange(20, 40))],
    )
    with pytest.raises(KeyboardInterrupt):
        search.fit(*TABLES[0])
    assert len(InterruptAt.trainings) == 2


def test_an_interrupt_ends_a_search_and_an_ensemble():
    callbacks = [InterruptInBatch("on_batch_end")]
    net = StableNetRegressor(
        max_epochs=100, callbacks=callbacks, random_state=0, batch_size=32
    )
    search = BatchedGridSearchCV(net, {"lr": [1e-3, 1e-2]}, cv=2)
    ensemble = StableNetEnsembleRegressor(net, n_estimators=3, random_state=0)
    for estimator in (search, ensemble):
        InterruptAt.trainings = ()
        with pytest.raises(KeyboardInterrupt):
            estimator.fit(*TABLES[0])
