"""Verified states of the members of a stack, to which a failed training rolls back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sknan._engine.stack_rows import StackRows
from sknan._engine.state import Stack
from sknan._utils.member_arrays import MemberArrays


class VerifiedStates(MemberArrays):
    """Last verified state of each member.

    The state after an epoch is proposed, and verified by the next step if its loss and
    gradient are finite and its loss is not far above that of the untrained network.

    Parameters
    ----------
    stack : Stack
        Stack before its first step.

    Attributes
    ----------
    rows : StackRows
        Verified states.
    n_since : ndarray of shape (n_members,)
        Number of steps since the verified state.
    is_proposed : ndarray of shape (n_members,), bool
        Whether the next step may verify the present state.
    has_improved : ndarray of shape (n_members,), bool
        Whether a state was verified since the last roll back.
    """

    _arrays = ("n_since", "is_proposed", "has_improved")

    def __init__(self, stack: Stack) -> None:
        n_members = len(stack.members)
        self.rows = stack.rows.clone()
        self.n_since = np.zeros(n_members, dtype=np.int64)
        self.is_proposed = np.zeros(n_members, dtype=bool)
        self.has_improved = np.ones(n_members, dtype=bool)

    def select(self, index: NDArray[np.int64]) -> VerifiedStates:
        """Return a copy for some of the members."""
        selected = super().select(index)
        selected.rows = self.rows.select(index)
        return selected

    def copy(self) -> VerifiedStates:
        """Return a copy, which shares the rows; :meth:`steps_taken` replaces them."""
        return super().select(np.arange(len(self.n_since)))

    def put(self, index: NDArray[np.int64], other: VerifiedStates) -> None:
        """Overwrite the entries of some members."""
        super().put(index, other)
        self.rows.put(index, other.rows)

    def steps_taken(
        self, before: StackRows, n_steps: int, are_trusted: NDArray[np.bool_]
    ) -> None:
        """Record steps, the first of which verifies the proposed states.

        ``before`` is the state before the steps, which is not changed afterwards. A
        member is trusted if the loss of its first step is low enough.
        """
        accepted = self.is_proposed & are_trusted
        if accepted.all():
            self.rows = before
        elif accepted.any():
            index = np.flatnonzero(accepted)
            self.rows = self.rows.clone()
            self.rows.put(index, before.select(index))
        self.n_since = np.where(accepted, 0, self.n_since) + n_steps
        self.has_improved |= accepted
        self.is_proposed[:] = False
