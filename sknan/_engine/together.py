"""Many trainings of one shape as one: for searches, range tests and ensembles.

A small network keeps a processor busy with bookkeeping, not with numbers. Networks that
differ in nothing but numbers (rate, decay, clip, dropout, schedule, seed, rows) can
take each step together: their weights lie in one tensor, a slice for each of them, and
so do inputs, gradients and moments. What is one number in a single training (loss,
norm, rate, clip) is one for each slice, so that no slice touches another.

A slice that fails, or might, leaves the stack and is trained again by itself, by the
very code that ``fit`` runs, guard and all; one that stops early leaves it too.
"""

from __future__ import annotations

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sknan._engine.plan import Trainable, TrainingPlan, TrainingRows
from sknan._engine.training import shape_of, train_stack
from sknan._utils.progress import advance
from sknan.nets._chain import layers_of

__all__ = ["Job", "Outcome", "stack_key", "train_together"]

# Parameters in which the slices of one stack may differ.
_PER_SLICE = frozenset(
    {
        "lr",
        "weight_decay",
        "clip_norm",
        "lr_schedule",
        "warmup",
        "random_state",
        "n_iter_no_change",
        "max_recoveries",
        "module__dropout",
        "optimizer__betas",
        "optimizer__dampening",
        "optimizer__momentum",
    }
)


class Job(NamedTuple):
    """One training: ``estimator.fit(X, y, **fit_params)``.

    ``estimator`` is unfitted, and nobody else holds it.
    """

    estimator: Trainable
    X: Any
    y: Any
    fit_params: dict[str, Any]


class Outcome(NamedTuple):
    """What has become of a job.

    ``estimator`` is fitted, as after ``fit``, or None and ``error`` is what ``fit``
    would have raised; ``seconds`` is its share of the time; ``warnings`` are those that
    ``fit`` would have shown.
    """

    estimator: Trainable | None
    error: Exception | None
    seconds: float
    is_stacked: bool
    warnings: list[warnings.WarningMessage]


def stack_key(job: Job) -> Hashable | None:
    """What the jobs of one stack have in common.

    Parameters
    ----------
    job : Job
        Any.

    Returns
    -------
    hashable or None
        Jobs with equal keys may be trained together; None for one that goes alone.
    """
    params = job.estimator.get_params(deep=False)
    if params["callbacks"] or params["verbose"] > 1 or params["device"] != "cpu":
        return None
    common = {name: v for name, v in params.items() if name not in _PER_SLICE}
    shape = getattr(job.X, "shape", None)
    key = (type(job.estimator), shape, frozenset(common.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def train_together(jobs: list[Job], max_memory: int | None = None) -> list[Outcome]:
    """Train estimators, those of one shape as one network.

    Parameters
    ----------
    jobs : list of Job
        Of one :func:`stack_key`, if any are to be trained together.
    max_memory : int or None, default=None
        Bytes that the weights, moments and activations of a stack may take; None
        leaves it to what suits the processor's cache.

    Returns
    -------
    list of Outcome
        In the order of the jobs.
    """
    tasks = [_Task(job) for job in jobs]
    validated: dict[Hashable, _Validated] = {}
    for task in tasks:
        task.prepare(validated)
    groups: dict[Hashable, list[_Task]] = defaultdict(list)
    for task in tasks:
        shape = None if task.plan is None else shape_of(task.plan)
        if shape is not None:
            groups[shape].append(task)
    for group in groups.values():
        _train_group(group, max_memory)
    for task in tasks:
        task.finish()
        if task.warn is None:  # a stack has counted its own
            advance(1, task.n_recoveries)
    return [task.outcome() for task in tasks]


@dataclass
class _Validated:
    """Rows that one estimator has checked, for all others that would find the same.

    ``learnt`` are the attributes that this has given the estimator. ``plan`` is its
    training, once there is one, if a call of its module leaves nothing behind: then
    those of the others need no trial.
    """

    rows: TrainingRows
    learnt: dict[str, Any]
    warnings: list[warnings.WarningMessage]
    plan: TrainingPlan | None = None


class _Task:
    """A job on its way."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.plan: Any = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.warn: Callable[[], None] | None = None
        self.warnings: list[warnings.WarningMessage] = []

    def prepare(self, validated: dict[Hashable, _Validated]) -> None:
        """Check data and parameters, and build the network.

        Parameters
        ----------
        validated : dict of hashable to _Validated
            What has been checked before; what is checked here is added.
        """
        estimator, X, y, fit_params = self.job
        if hasattr(estimator, "_skl_callbacks"):
            return  # they are to be told of a whole fit
        others = dict(fit_params)
        fold = others.pop("fold", None)
        its_kind = stack_key(self.job)
        key = None if its_kind is None else (its_kind, self.source)

        def prepare() -> None:
            estimator._check_parameters()
            found = validated.get(key)
            if found is None:
                found = _validate(estimator, X, y, others)
                if key is not None:
                    validated[key] = found
            estimator.__dict__.update(found.learnt)
            for its in found.warnings:
                warnings.warn_explicit(
                    its.message, its.category, its.filename, its.lineno
                )
            self.plan = estimator._plan(found.rows, fold, found.plan)
            if found.plan is None and layers_of(self.plan.net.module_) is not None:
                found.plan = self.plan

        self._run(prepare)

    @property
    def source(self) -> Hashable:
        """Equal for tasks of the same rows."""
        job = self.job
        weights = id(job.fit_params.get("sample_weight"))
        return id(job.X), id(job.y), weights

    @property
    def n_recoveries(self) -> int:
        """Failed steps that were rescued."""
        return 0 if self.error else len(self.job.estimator.nonfinite_reports_)

    def finish(self) -> None:
        """Train it by itself unless that is done, and take the network over."""
        if self.error is not None:
            return
        estimator, X, y, fit_params = self.job

        def finish() -> None:
            if self.plan is None:
                estimator._fit(X, y, **fit_params)
                return
            if self.warn is None:
                self.plan.run()
            else:
                self.warn()
            estimator._finish(self.plan)

        self._run(finish)

    def _run(self, action: Any) -> None:
        start = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                action()
            except Exception as error:
                self.error = error
        self.warnings += caught
        self.seconds += time.perf_counter() - start

    def outcome(self) -> Outcome:
        """What has become of it."""
        fitted = None if self.error is not None else self.job.estimator
        return Outcome(
            fitted, self.error, self.seconds, self.warn is not None, self.warnings
        )


def _validate(
    estimator: Trainable, X: Any, y: Any, fit_params: dict[str, Any]
) -> _Validated:
    before = set(vars(estimator))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = estimator._training_rows(X, y, **fit_params)
    learnt = {name: v for name, v in vars(estimator).items() if name not in before}
    return _Validated(rows, learnt, told)


def _train_group(tasks: list[_Task], max_memory: int | None) -> None:
    """Train tasks of one shape in stacks of a good size."""
    size = slices_per_stack(tasks[0].plan, max_memory)
    n_stacks = math.ceil(len(tasks) / size)
    for i in range(n_stacks):
        stack = tasks[i::n_stacks]
        if len(stack) < 2:
            continue
        start = time.perf_counter()
        finished = train_stack(
            [task.plan for task in stack], [task.source for task in stack]
        )
        share = (time.perf_counter() - start) / len(stack)
        for task, warn in zip(stack, finished, strict=True):
            task.warn = warn
            task.seconds += share


def slices_per_stack(plan: Any, max_memory: int | None) -> int:
    """How many networks of a shape are best trained as one.

    Parameters
    ----------
    plan : TrainingPlan
        One of them.
    max_memory : int or None
        Bytes that they may take.

    Returns
    -------
    int
        At least 1.
    """
    per_slice = memory_of(plan)
    most = _CACHE if max_memory is None else min(_CACHE, max_memory)
    return max(1, int(most // per_slice))


# Bytes of a stack from which on it is slower than two of half the size.
_CACHE = 2**23


def memory_of(plan: Any) -> int:
    """Bytes that one slice takes: weights, moments and activations."""
    module = plan.net.module_
    n_weights = sum(p.numel() for p in module.parameters())
    widths = [p.shape[0] for p in module.parameters() if p.ndim > 1]
    n_activations = plan.batch_size * (plan.table.X.shape[1] + 3 * sum(widths))
    return 4 * int(7 * n_weights + n_activations)
