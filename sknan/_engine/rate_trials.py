"""Searches for lower learning rates by several members, with their trials in stacks."""

from __future__ import annotations

import copy
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from sknan._engine.clipping import Clipping
from sknan._engine.ledger import are_refused
from sknan._engine.network_state import NetworkState
from sknan._engine.state import Stack
from sknan._engine.table_net import TableNet
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.thresholds import N_TRIALS
from sknan._utils.tree import tree_leaves, tree_map
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets.recovery.protocol import Step
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.nets.recovery.raw_units import Conditioning


class Recovery(Protocol):
    """Guarded training of a member that has failed; see ``MemberRecovery``."""

    net: TableNet
    training: GuardedTraining
    random_state: Tensor

    def run(self, action: Callable[[], Any]) -> Any:
        """Call a function with gradients and with the member's random numbers."""

    def verified(self) -> NetworkState:
        """Return the last verified state."""


class RecoverySearch:
    """Recovery of a member that may wait for the losses of trials.

    Parameters
    ----------
    recovery : Recovery
        Recovery of the member.
    trials : RateTrials
        Trials on its batch.
    search : generator
        Generator that yields factors of the learning rate and receives losses.

    Attributes
    ----------
    scales : list of float or None
        Factors that wait for their losses; None if the recovery has ended.
    result : Step or None
        Step that was taken.
    error : Exception or None
        Exception that ended the training.
    """

    def __init__(
        self,
        recovery: Recovery,
        trials: RateTrials,
        search: Generator[list[float], Any, Any],
    ) -> None:
        self.recovery, self.trials, self.search = recovery, trials, search
        self.scales: list[float] | None = None
        self.result: Step | None = None
        self.error: Exception | None = None

    def resume(self, losses: list[float] | None) -> None:
        """Continue with the losses of the trials, until the next ones or the end."""
        self.scales = None
        try:
            self.scales = self.recovery.run(lambda: self.search.send(losses))
        except StopIteration as end:
            self.result = end.value
        except unless(is_of_signal, Exception) as error:  # of this member only
            self.error = error

    def try_separately(self) -> list[float]:
        """Return the losses of trials that the net itself runs."""
        scales = self.scales or []
        losses: list[float] = self.recovery.run(
            lambda: self.trials.losses_after(scales)
        )
        return losses


def run_searches(searches: Sequence[RecoverySearch]) -> None:
    """Run the recoveries of several members, with their trials in stacks.

    Parameters
    ----------
    searches : sequence of RecoverySearch
        Recoveries that have not begun. Their results or errors are set.
    """
    for search in searches:
        search.resume(None)
    while waiting := [search for search in searches if search.scales is not None]:
        groups: dict[Hashable, list[RecoverySearch]] = defaultdict(list)
        for search in waiting:
            groups[_trial_key(search.trials)].append(search)
        for group in groups.values():
            for search, losses in zip(group, _losses_of(group), strict=True):
                search.resume(losses)


def _trial_key(trials: RateTrials) -> Hashable:
    return tuple(len(tree_leaves(inputs)[0]) for inputs, _ in trials.batches)


def _losses_of(searches: list[RecoverySearch]) -> list[list[float]]:
    """Return the losses of the trials of several members."""
    try:
        losses = _StackedTrials(searches).run()
    except unless(is_of_signal, RuntimeError):  # such as a LinAlgError of one of them
        return [search.try_separately() for search in searches]
    ends = np.cumsum([len(search.scales or ()) for search in searches])
    return [part.tolist() for part in np.split(losses, ends[:-1])]


class _TrialMember(NamedTuple):
    """Network of a trial."""

    net: TableNet
    group: dict[str, Any]
    generator: torch.Generator
    conditioning: Conditioning | None


class _StackedTrials:
    """Short trainings at several learning rates, from the last verified weights.

    Parameters
    ----------
    searches : list of RecoverySearch
        Members whose learning rates are tried, with batches of the same sizes.
    """

    def __init__(self, searches: list[RecoverySearch]) -> None:
        self.members = []
        states, rates, batches = [], [], []
        for search in searches:
            net, training = search.recovery.net, search.recovery.training
            group = net.optimizer_.param_groups[0]
            # The trials start without moments.
            kept = search.recovery.verified()._replace(n_steps=0)
            factor = net._schedule_factor()
            generator = torch.Generator()
            generator.set_state(search.recovery.random_state)
            for scale in search.scales or ():
                self.members.append(
                    _TrialMember(net, group, generator, training.conditioning)
                )
                states.append(kept)
                rates.append(float(group["lr"]) * scale * factor)
                batches.append(search.trials.batches)
        self.clipping = Clipping([member.net for member in self.members])
        self.clipping.clippers[:] = [
            copy.deepcopy(member.net.adaptive_clip_) for member in self.members
        ]
        guards = [member.net.guard_ for member in self.members]
        limits = [guard.clip_norm(is_repeated=False) for guard in guards]
        self.clipping.lower_limits(limits)
        caps = [min(guard.rate_caps, default=math.inf) for guard in guards]
        self.rates = np.minimum(rates, caps)
        self.stack = Stack(self.members, states)
        self.batches = [self._joined(batch) for batch in zip(*batches, strict=True)]

    def _joined(self, batches: tuple[Any, ...]) -> tuple[Tensor, Any]:
        """Return inputs and prepared targets of one batch of each member."""
        leaves = [torch.stack(c) for c in zip(*map(tree_leaves, batches), strict=True)]
        remaining = iter(leaves)
        x, target = tree_map(lambda _: next(remaining), batches[0])
        return x, self.stack.prepare_target(target, x.shape[:2])

    def run(self) -> np.ndarray:
        """Return the mean loss of each member before its steps; inf if one fails."""
        stack = self.stack
        steps = itertools.islice(itertools.cycle(self.batches), N_TRIALS)
        factors = stack.step_factors(np.tile(self.rates, (N_TRIALS, 1)))
        losses, norms = np.empty((2, N_TRIALS, len(self.members)))
        with torch.no_grad(), np.errstate(invalid="ignore", over="ignore"):
            for i, ((x, target), factor) in enumerate(zip(steps, factors, strict=True)):
                losses[i], norms[i], _ = stack.forward_backward(x, target)
                self.clipping.apply(stack, norms[i])
                stack.step(factor)
            has_failed = are_refused(losses, norms).any(0)
            # numpy's sums could round differently for one member than for many.
            mean = np.add.accumulate(losses)[-1] / N_TRIALS
        return np.where(has_failed | ~np.isfinite(mean), math.inf, mean)
