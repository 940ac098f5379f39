"""Training jobs of many estimators, run in stacks where their networks have one shape.

A search, an ensemble or a range test has many jobs: an estimator and the data to fit it
on. Small networks keep a processor busy with overhead rather than with arithmetic.
Networks that differ only in numbers (learning rate, weight decay, clipping, dropout,
schedule, seed, rows) can therefore take each step together: their weights are one
tensor with the networks along its first axis, and so are their inputs, gradients and
moments. Every quantity that is one number in a single training (loss, gradient norm,
learning rate, clip coefficient) is one number for each network, so that no network
influences another.

A network whose step fails is recovered by the guard, and continues in the stack.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sknan._engine.fit import train, train_stack
from sknan._engine.grouping import plan_key
from sknan._engine.passes import chain_of
from sknan._engine.plan import Trainable, TrainingPlan, TrainingRows
from sknan._utils.outside import is_of_memory, is_of_signal, unless
from sknan._utils.progress import advance, counting_parts
from sknan._utils.settings import usual_settings
from sknan._utils.warn import recorded_warnings
from sknan.nets._chain import layers_of

# Parameters in which the members of one stack may differ.
_PER_MEMBER = frozenset(
    {
        "callbacks",
        "ema_decay",
        "lr",
        "weight_decay",
        "adaptive_clip",
        "clip_norm",
        "clip_value",
        "lr_schedule",
        "warmup",
        "random_state",
        "n_iter_no_change",
        "max_recoveries",
        "on_nonfinite",
        "module__dropout",
        "optimizer__betas",
        "optimizer__dampening",
        "optimizer__momentum",
    }
)

# Bytes of a stack above which it is slower than two stacks of half the size. The many
# operations of a recorded module take longer to start, so that leaving the cache costs
# less than more stacks do: searches over `tabular_pipeline` and residual
# modules take 0.77 to 0.95 of the time with 8 MB, up to widths of 128.
_CACHE_SIZE = 2**23
_CACHE_SIZE_OF_MODULES = 2**25

# Tensors in the size of the weights that a step uses (weights, moments, gradients and
# steps), and those that are kept beside it (two earlier states, best weights).
_N_COPIES_IN_STEP = 6
_N_OTHER_COPIES = 7


class Composite(Protocol):
    """Contract between an estimator of several networks and :func:`train_together`."""

    def _jobs(self, X: Any, y: Any, **fit_params: Any) -> list[Job]:
        """Return one job for each network that ``fit`` would train."""

    def _assemble(
        self, outcomes: list[JobOutcome], X: Any, y: Any, **fit_params: Any
    ) -> None:
        """Set the fitted attributes from the outcomes of the jobs, in their order.

        This raises the error of a job, and issues the warnings of the jobs.
        """


class Job(NamedTuple):
    """Call ``estimator.fit(X, y, **fit_params)`` that is to be made.

    Parameters
    ----------
    estimator : Trainable or Composite
        Unfitted estimator that is used for this job only.
    X, y : object
        Data to fit the estimator on.
    fit_params : dict of str to object
        Further arguments of ``fit``.
    """

    estimator: Any
    X: Any
    y: Any
    fit_params: dict[str, Any]


class JobOutcome(NamedTuple):
    """Fitted estimator or error of a job.

    Parameters
    ----------
    estimator : Trainable, Composite or None
        Estimator in the state that ``fit`` leaves; None if there is an error.
    error : Exception or None
        Exception that ``fit`` would have raised.
    seconds : float
        Time of the job; for a job in a stack, its share of the stack's time.
    is_stacked : bool
        Whether the network, or each of the networks, was trained in a stack to its end.
    warnings : list of Warning
        Warnings of the library that ``fit`` would have issued.
    """

    estimator: Any
    error: Exception | None
    seconds: float
    is_stacked: bool
    warnings: list[Warning]


def job_key(job: Job) -> Hashable | None:
    """Return a key that is equal for jobs that may share a stack.

    The key is derived from parameters and data alone, without building a network. It is
    None for a job that must be run separately.
    """
    params = job.estimator.get_params(deep=False)
    if params["verbose"] > 1 or params["device"] != "cpu":
        return None
    common = {name: v for name, v in params.items() if name not in _PER_MEMBER}
    shape = getattr(job.X, "shape", None)
    try:
        return type(job.estimator), shape, frozenset(common.items())
    except TypeError:  # a parameter that is not hashable
        return None


@usual_settings()
def train_together(jobs: list[Job], max_memory: int | None = None) -> list[JobOutcome]:
    """Run jobs, with networks of one shape trained in stacks.

    Parameters
    ----------
    jobs : list of Job
        Jobs to run. Those of different :func:`job_key` are never in one stack.
    max_memory : int or None, default=None
        Bytes that the weights, moments and activations of a stack may take. None
        limits a stack only by the size of the processor's cache.

    Returns
    -------
    list of JobOutcome
        Outcomes in the order of the jobs.
    """
    runs = [_run_of(job) for job in jobs]
    networks: list[_JobRun] = []
    for run in runs:
        networks += run.networks if isinstance(run, _CompositeRun) else [run]
    with counting_parts(len(networks) / len(jobs) if networks else 1.0):
        _train_networks(networks, max_memory)
    return [run.outcome() for run in runs]


def _train_networks(runs: list[_JobRun], max_memory: int | None) -> None:
    validated: dict[Hashable, _ValidatedRows] = {}
    for run in runs:
        run.prepare(validated)
    groups: dict[Hashable, list[_JobRun]] = defaultdict(list)
    for run in runs:
        if run.key is not None:
            groups[run.key].append(run)
    raised: list[tuple[Exception, list[_JobRun]]] = []
    for group in groups.values():
        # The module of one network may raise anything. The networks that have not
        # finished are then trained separately, so that only one fails.
        try:
            _train_group(group, max_memory)
        except unless(is_of_signal, Exception) as error:
            raised.append((error, group))
    for run in runs:
        run.finish()
        if not run.is_stacked:  # a stack has reported progress itself
            advance(1, run.n_recoveries)
    for problem, group in raised:
        is_repeated = any(type(run.error) is type(problem) for run in group)
        if not is_of_memory(problem) and not is_repeated:
            for run in group:
                run.error = run.error or problem


@dataclass
class _ValidatedRows:
    """Rows that one estimator has validated, for all jobs of the same key and rows.

    Parameters
    ----------
    rows : TrainingRows
        Validated rows.
    attributes : dict of str to object
        Attributes that the validation has set on the estimator.
    plan : TrainingPlan or None
        Plan of the first job, whose table the others share. None for a module other
        than a chain of known layers: a call of such a module may have side effects, so
        that it has to be called in each job.
    """

    rows: TrainingRows
    attributes: dict[str, Any]
    plan: TrainingPlan | None = None


class _Run:
    """State of a job between its start and its outcome.

    Parameters
    ----------
    job : Job
        Job to run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: Exception | None = None
        self.seconds = 0.0
        self.warnings: list[Warning] = []

    def _run(self, action: Callable[[], None]) -> None:
        """Call a function; record its time, its warnings and its exception.

        Raises
        ------
        BaseException
            That of a signal, such as Ctrl-C, to end all trainings.
        """
        start = time.perf_counter()
        with recorded_warnings() as recorded:
            try:
                action()
            except unless(is_of_signal, Exception) as error:
                self.error = error
        self.warnings += recorded
        self.seconds += time.perf_counter() - start

    @property
    def is_stacked(self) -> bool:
        """Whether all networks were trained in a stack to their end."""
        raise NotImplementedError

    def outcome(self) -> JobOutcome:
        """Return the fitted estimator or the error."""
        fitted = None if self.error is not None else self.job.estimator
        return JobOutcome(
            fitted, self.error, self.seconds, self.is_stacked, self.warnings
        )


def _run_of(job: Job) -> _CompositeRun | _JobRun:
    is_composite = hasattr(job.estimator, "_assemble")
    return _CompositeRun(job) if is_composite else _JobRun(job)


class _CompositeRun(_Run):
    """Job whose estimator consists of several networks."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.networks: list[_JobRun] = []
        self._run(self._divide)

    def _divide(self) -> None:
        estimator, X, y, fit_params = self.job
        self.networks = [_JobRun(job) for job in estimator._jobs(X, y, **fit_params)]

    @property
    def is_stacked(self) -> bool:
        return bool(self.networks) and all(run.is_stacked for run in self.networks)

    def outcome(self) -> JobOutcome:
        outcomes = [run.outcome() for run in self.networks]
        self.seconds += sum(outcome.seconds for outcome in outcomes)
        if self.error is None:
            estimator, X, y, fit_params = self.job
            self._run(lambda: estimator._assemble(outcomes, X, y, **fit_params))
        return super().outcome()


class _JobRun(_Run):
    """Job whose estimator is one network."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.plan: TrainingPlan | None = None
        # Equal for networks that may share a stack; None for separate training.
        self.key: Hashable | None = None
        # Function that ends a stacked training; None before it.
        self.end: Callable[[], None] | None = None

    def prepare(self, validated: dict[Hashable, _ValidatedRows]) -> None:
        """Check data and parameters, and build the network.

        Rows that other jobs have validated are used again, and new ones are added.
        """
        if hasattr(self.job.estimator, "_skl_callbacks"):
            return  # scikit-learn's callbacks follow a whole fit
        self._run(lambda: self._prepare(validated))

    def _prepare(self, validated: dict[Hashable, _ValidatedRows]) -> None:
        estimator, X, y, fit_params = self.job
        other_params = dict(fit_params)
        fold = other_params.pop("fold", None)
        kind = job_key(self.job)
        key = None if kind is None else (kind, self.source)
        estimator._check_parameters()
        checked = validated.get(key)
        if checked is None:
            checked = _validate(estimator, X, y, other_params)
            if key is not None:
                validated[key] = checked
        vars(estimator).update(checked.attributes)
        self.plan = estimator._plan(checked.rows, fold, checked.plan)
        if checked.plan is None and layers_of(self.plan.net.module_) is not None:
            checked.plan = self.plan
        self.key = plan_key(self.plan)

    @property
    def source(self) -> Hashable:
        """Key that is equal for jobs on the same rows."""
        job = self.job
        others = {name: id(v) for name, v in job.fit_params.items() if name != "fold"}
        return id(job.X), id(job.y), frozenset(others.items())

    @property
    def is_stacked(self) -> bool:
        return self.end is not None

    @property
    def n_recoveries(self) -> int:
        """Number of failed steps that the training recovered from."""
        return 0 if self.error else len(self.job.estimator.nonfinite_reports_)

    def finish(self) -> None:
        """Train the network unless a stack has done so, and finish the estimator."""
        if self.error is None:
            self._run(self._finish)

    def _finish(self) -> None:
        estimator, X, y, fit_params = self.job
        if self.plan is None:
            estimator._fit(X, y, **fit_params)
            return
        if self.end is None:
            train(self.plan)
        else:
            self.end()
        estimator._finish(self.plan)


def _validate(
    estimator: Trainable, X: Any, y: Any, fit_params: dict[str, Any]
) -> _ValidatedRows:
    before = set(vars(estimator))
    rows = estimator._training_rows(X, y, **fit_params)
    attributes = {name: v for name, v in vars(estimator).items() if name not in before}
    return _ValidatedRows(rows, attributes)


def _train_group(runs: list[_JobRun], max_memory: int | None) -> None:
    """Train the networks of one key in stacks of a good size."""
    # Networks of one seed draw equal batches and dropout masks, once in each stack.
    runs = sorted(runs, key=_seed_of)
    plans = [run.plan for run in runs if run.plan is not None]
    n_stacks = math.ceil(len(runs) / _members_per_stack(plans[0], max_memory))
    bounds = [len(runs) * i // n_stacks for i in range(n_stacks + 1)]
    for first, last in itertools.pairwise(bounds):
        stack = runs[first:last]
        if len(stack) < 2:
            continue
        start = time.perf_counter()
        ends = train_stack(plans[first:last], [run.source for run in stack])
        share = (time.perf_counter() - start) / len(stack)
        for run, end in zip(stack, ends, strict=True):
            run.end = end
            run.seconds += share


def _seed_of(run: _JobRun) -> bytes:
    assert run.plan is not None
    return run.plan.random_states[0].numpy().tobytes()


def _members_per_stack(plan: TrainingPlan, max_memory: int | None) -> int:
    """Return the best number of networks in a stack, at least 1."""
    is_explicit = chain_of(plan.net) is not None
    size = _CACHE_SIZE if is_explicit else _CACHE_SIZE_OF_MODULES
    n_members = size // _bytes_per_member(plan, _N_COPIES_IN_STEP)
    if max_memory is not None:
        n_bytes = _bytes_per_member(plan, _N_COPIES_IN_STEP + _N_OTHER_COPIES)
        n_members = min(n_members, int(max_memory // n_bytes))
    return max(1, n_members)


def _bytes_per_member(plan: TrainingPlan, n_copies: int) -> int:
    """Return the bytes of one network: copies of its weights, and its activations."""
    module = plan.net.module_
    n_weights = sum(p.numel() for p in module.parameters())
    widths = [p.shape[0] for p in module.parameters() if p.ndim > 1]
    n_activations = plan.batch_size * (plan.table.X.shape[1] + 3 * sum(widths))
    return 4 * int(n_copies * n_weights + n_activations)
