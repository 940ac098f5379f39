"""Recovery of the members of a stack whose steps have failed.

The learning rates that roll backs try are trained as a stack of all these members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sknan._engine.member import Member
from sknan._engine.member_recovery import FailedStep, MemberRecovery
from sknan._engine.network_state import read_state
from sknan._engine.rate_trials import RecoverySearch, run_searches
from sknan._engine.stack_state import StackSnapshot, StackState
from sknan._utils.outside import is_of_signal, unless
from sknan.diagnosis._raised import result_of_trial
from sknan.nets.recovery.collapse import is_collapsed


def recover_steps(
    training: StackState,
    numbers: NDArray[np.int64],
    before: StackSnapshot,
    i: int,
) -> None:
    """Take the failed steps of some members, in place of the steps of the stack.

    Parameters
    ----------
    training : StackState
        Training whose other members have taken the step.
    numbers : ndarray of int
        Positions of the members.
    before : StackSnapshot
        State before the step.
    i : int
        Number of the batch in its epoch, from 0.
    """
    failed = {int(k): _failed_step(training, int(k), before, i) for k in numbers}
    loaded = _load(training, failed, i)
    searches = {k: recovery.step(failed[k]) for k, recovery in loaded.items()}
    _run(training, searches)
    for k, search in searches.items():
        if search.error is None:
            step = search.result or {}
            training.ledger.record_recovered(k, i, loaded[k].training, step)
            output = step.get("y_pred")
            training.ledger.is_constant[k] = is_collapsed(failed[k].batch[0], output)


def recover_weights(training: StackState, numbers: NDArray[np.int64]) -> None:
    """Restore usable weights of members that may have unusable ones after an epoch.

    Parameters
    ----------
    training : StackState
        Training at the end of an epoch.
    numbers : ndarray of int
        Positions of the members.
    """
    present, i = training.snapshot(), len(training.bounds) - 1
    present.verified.is_proposed[:] = False
    failed = {int(k): _failed_step(training, int(k), present, i) for k in numbers}
    loaded = _load(training, failed, len(training.bounds))
    searches = {
        k: search
        for k, recovery in loaded.items()
        if (search := recovery.answer_to_weights(failed[k])) is not None
    }
    _run(training, searches)


def recovery_at_present(training: StackState, k: int) -> MemberRecovery:
    """Return the guarded training of a member in its present state, after an epoch.

    Parameters
    ----------
    training : StackState
        Training of the member.
    k : int
        Position of the member.
    """
    i = len(training.bounds) - 1
    failed = _failed_step(training, k, training.snapshot(), i)
    return _load(training, {k: failed}, i + 1)[k]


def judge_results(training: StackState, numbers: Sequence[int]) -> None:
    """Give members whose loss is above the first one the state of a training.

    At its end, that training finds out whether it has ruined the network.

    Parameters
    ----------
    training : StackState
        Training of which these members end.
    numbers : sequence of int
        Positions of the members.
    """
    members = training.members
    ends = [k for k in numbers if _ends_in_stack(members[k])]
    if not ends:
        return
    losses = np.nan_to_num(_final_losses(training), nan=np.inf)
    have_risen = training.ledger.watches.have_risen(losses)
    present, n_batches = training.snapshot(), len(training.bounds)
    failed = {}
    for k in ends:
        if have_risen[k]:
            step = _failed_step(training, k, present, n_batches - 1)
            # The last epoch is in the history.
            failed[k] = replace(step, epoch=len(members[k].history))
    _load(training, failed, n_batches)


def _ends_in_stack(member: Member) -> bool:
    """Whether a member ends in order, and has never failed."""
    is_cut = member.is_interrupted or member.error is not None
    return not is_cut and member.recovery is None and member.rest is None


def _final_losses(training: StackState) -> NDArray[np.float64]:
    """Return a loss of each member in evaluation mode, in its best epoch if kept."""
    if training.members[0].plan.best is not None:
        rows = [[row["valid_loss"] for row in m.history] for m in training.members]
        return np.array([min(losses, default=-np.inf) for losses in rows])
    trained = torch.stack([member.train for member in training.members])
    n_rows = min(training.members[0].plan.batch_size, trained.shape[1])
    chosen = torch.linspace(0, trained.shape[1] - 1, n_rows).long()
    x, target = training.batch_of(trained[:, chosen])

    def run() -> np.ndarray:
        with training.stack.averaged():
            return np.array(training.stack.evaluate(x, target))

    losses = result_of_trial(run)
    # None: a user's module may raise anything; predictions raise it again.
    return np.full(len(trained), -np.inf) if losses is None else losses


def add_latest_batches(training: StackState, k: int, i: int) -> None:
    """Pass on the latest batches of a member that has recovered from a failed step.

    All steps since the last recovery were taken by the stack, on successive batches.

    Parameters
    ----------
    training : StackState
        Training of the member.
    k : int
        Position of the member.
    i : int
        Number of the next batch in its epoch, from 0.
    """
    recovery = training.members[k].recovery
    if recovery is None:
        return
    latest = recovery.training.latest_batches
    n_new = int(training.ledger.n_taken[k]) - recovery.training.n_steps
    n_new = min(n_new, latest.maxlen or 0, i + len(training.bounds))
    for j in range(i - n_new, i):
        orders = training.orders if j >= 0 else training.previous_orders
        latest.append(training.batch_of(orders[k, slice(*training.bounds[j])]))


def _load(
    training: StackState, failed: dict[int, FailedStep], i: int
) -> dict[int, MemberRecovery]:
    """Return recoveries that have taken over the state of their members."""
    loaded = {}
    for k, step in failed.items():
        member = training.members[k]
        try:
            recovery = member.recovery_of(training.total_steps)
        except unless(is_of_signal, Exception) as error:  # before the first step
            member.error = error
            continue
        net, adaptive = recovery.net, training.ledger.learning_rates.adaptive
        net.schedule_ = adaptive.get(k, net.schedule_)
        add_latest_batches(training, k, i)
        recovery.load(step)
        loaded[k] = recovery
    return loaded


def _failed_step(
    training: StackState, k: int, before: StackSnapshot, i: int
) -> FailedStep:
    member, ledger, verified = training.members[k], before.ledger, before.verified
    rows = training.orders[k, slice(*training.bounds[i])]
    return FailedStep(
        batch=training.batch_of(rows),
        numbers=member.plan.table.numbers[rows - member.offset],
        epoch=len(member.history) + 1,
        batch_number=i + 1,
        n_taken=int(ledger.n_taken[k]),
        state=training.stack.state_of(k, before.rows),
        verified=training.stack.state_of(k, verified.rows),
        n_since=int(verified.n_since[k]),
        is_proposed=bool(verified.is_proposed[k]),
        has_improved=bool(verified.has_improved[k]),
        watch=ledger.watches.watch_of(k),
        first_step_ratio=float(ledger.first_step_ratio[k]),
        adaptive_clip=ledger.clipping.clippers[k],
        random_state=before.random_states[k],
    )


def _put_back(training: StackState, k: int) -> None:
    """Write the state of a member into the stack."""
    member, verified = training.members[k], training.verified
    recovery = member.recovery
    assert recovery is not None
    weights = recovery.net.guard_.weights
    training.stack.put_state(k, read_state(recovery.net))
    training.stack.put_state(k, recovery.verified(), verified.rows)
    verified.n_since[k] = weights.n_steps
    verified.is_proposed[k] = weights.is_proposed
    verified.has_improved[k] = weights._has_improved
    training.ledger.resume(k, recovery.training, training.n_steps)
    member.set_random_state(recovery.random_state)


def _run(training: StackState, searches: dict[int, RecoverySearch]) -> None:
    """Run recoveries by the position of their member, and write back what they reach.

    A member whose recovery raises keeps the error.
    """
    run_searches(list(searches.values()))
    for k, search in searches.items():
        training.members[k].error = search.error
        if search.error is None:
            _put_back(training, k)
