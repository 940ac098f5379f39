"""Clipping of the gradients of many networks at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sknan._engine.state import Stack
from sknan._engine.table_net import TableNet
from sknan._utils.member_arrays import MemberArrays
from sknan.optim._adaptive_clipping import resolve_adaptive_clip
from sknan.optim._clipping import lowered_norm

Floats = NDArray[np.float64]

# Limit where gradients are not clipped. It is finite: inf / inf would be NaN.
HUGE = float(np.finfo(np.float64).max)


class Clipping(MemberArrays):
    """Limits of the gradients of each member, and their application.

    Parameters
    ----------
    nets : sequence of TableNet
        Net of each member.

    Attributes
    ----------
    limits : ndarray of shape (n_members,)
        Largest gradient norms.
    values : ndarray of shape (n_members,)
        Largest absolute values of an entry of the gradients.
    clippers : ndarray of shape (n_members,), object
        Adaptive clipping, or None.
    is_used : ndarray of shape (n_members,), bool
        Whether the user has set any of the three.
    is_by_norm_only : bool
        Whether no member has more than a largest norm.
    """

    _arrays = ("limits", "values", "clippers", "is_used")

    def __init__(self, nets: Sequence[TableNet]) -> None:
        norms = [net.clip_norm for net in nets]
        clips = [net.clip_value for net in nets]
        self.limits = np.array([HUGE if c is None else float(c) for c in norms])
        self.values = np.array([math.inf if c is None else float(c) for c in clips])
        self.clippers = np.empty(len(nets), dtype=object)
        self.clippers[:] = [resolve_adaptive_clip(net.adaptive_clip) for net in nets]
        self.is_by_norm_only = all(c is None for c in (*clips, *self.clippers))
        self.is_used = (
            (self.limits < HUGE)
            | (self.values < math.inf)
            | np.array([clipper is not None for clipper in self.clippers])
        )

    def select(self, index: NDArray[np.int64]) -> Clipping:
        """Return a copy for some of the members, with copies of their clippers."""
        selected = super().select(index)
        selected.clippers[:] = [copy.deepcopy(c) for c in selected.clippers]
        return selected

    def lower_limits(self, norms: Sequence[float | None]) -> None:
        """Apply a further limit of each member's gradient norm; None for no limit."""
        others = [HUGE if norm is None else norm for norm in norms]
        self.limits = np.minimum(self.limits, others)

    def apply(self, stack: Stack, norms: Floats) -> Floats | None:
        """Clip the gradients of a stack.

        Parameters
        ----------
        stack : Stack
            Stack whose gradients have been computed.
        norms : ndarray of shape (n_members,)
            Gradient norms. A member whose norm is not finite is not clipped.

        Returns
        -------
        ndarray of shape (n_members,) or None
            Norm after clipping, divided by the norm before; None if no gradient was
            clipped.
        """
        if not self.is_by_norm_only:
            return self._apply_in_order(stack, norms)
        if not np.count_nonzero(norms > self.limits):  # faster than any()
            return None
        # A NaN would spread to the padding of the rows, which fmax prevents.
        coefficients: Floats = self.limits / np.fmax(norms, self.limits)
        stack.clip(coefficients)
        return coefficients

    def _apply_in_order(self, stack: Stack, norms: Floats) -> Floats:
        """Apply the adaptive clipping, the largest values, and the norms."""
        factors = np.ones(len(norms))
        for k in np.flatnonzero(np.isfinite(norms)).tolist():
            if self.clippers[k] is not None:
                parameters = stack.parameters_of(k)
                grads: list[Any] = [parameter.grad for parameter in parameters]
                factors[k] = self.clippers[k](parameters, grads, float(norms[k]))
        clipped = norms * factors
        has_value = self.values < math.inf
        if has_value.any():
            stack.clamp(self.values)
            lowered = lowered_norm(clipped, stack.gradient_norms())
            clipped = np.where(has_value, lowered, clipped)
        coefficients = self.limits / np.fmax(clipped, self.limits)
        stack.clip(coefficients)
        return np.where(norms > 0.0, clipped * coefficients / norms, 1.0)
