"""Comparisons of a training with its first weights and with a constant output."""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
from skorch.dataset import get_len, unpack_data
from torch import Tensor

from sknan._utils.compiled import uncompiled
from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import MARGIN, N_ERRORS, N_TRIAL_ROWS, SMALL, is_far_above
from sknan.nets.guard._loss_watch import is_trusted
from sknan.nets.recovery.collapse import varies
from sknan.nets.recovery.constant_output import lowest_constant_loss
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.nets.recovery.protocol import StepRefused
from sknan.nets.recovery.sample_losses import SampleLosses


class Rise(NamedTuple):
    """Losses before and after a training, and that of a constant output."""

    before: float
    after: float
    constant: float


class Comparison(NamedTuple):
    """Loss of a network beside that of a constant output, with its standard error.

    The error is NaN if the constant is not known, and ``constant`` is then the loss of
    the first weights, or NaN.
    """

    reached: float
    constant: float
    error: float

    @property
    def is_above(self) -> bool:
        """Whether the loss is higher, by two standard errors."""
        return self.reached - N_ERRORS * self.error > self.constant

    @property
    def is_below(self) -> bool:
        """Whether the loss is lower by a real margin."""
        return not self.reached > self.constant - SMALL * abs(self.constant)

    @property
    def is_far_above(self) -> bool:
        """Whether the loss is far higher."""
        return math.isinf(self.reached) or bool(
            is_far_above(self.reached, self.constant)
        )


class ResultTrials(SampleLosses):
    """Comparisons that say what a training has achieved; see :class:`SampleLosses`."""

    def largest_loss(self) -> float:
        """Return the largest finite loss of a sample of the data; NaN if there is none.

        The sample is the recent batches and, if the training rows are known, a batch
        of rows from the whole table, which may be sorted. The loss of a constant output
        counts too: weights that were passed in may be so good that ten times their loss
        is still good. If all rows have the same target, the loss has no scale: it is 0.
        """
        results = []
        with kept_random_states(self.net.device), torch.no_grad():
            for batch in self.sample:
                with contextlib.suppress(StepRefused):
                    results.append((batch, *self._kept_result(batch)))
        pairs = [(unpack_data(batch)[1], output) for batch, output, _ in results]
        if pairs and all(_are_compared(*pair) for pair in pairs):
            targets = torch.cat([target for target, _ in pairs])
            if not varies(targets):
                return 0.0
        losses = [loss for _, _, loss in results]
        with contextlib.suppress(StepRefused):
            batches, outputs = [b for b, _, _ in results], [o for _, o, _ in results]
            losses.append(lowest_constant_loss(self.net, batches, [outputs]))
        return max(filter(math.isfinite, losses), default=math.nan)

    def were_trained(self) -> bool:
        """Whether the first weights have at most half the loss of any constant output.

        The weights of a module that was passed in may have been trained before.
        """
        sample = self.sample
        try:
            first, outputs = self._first_results(sample)
            constant = self._lowest_constant(sample, outputs)
        except StepRefused:
            return False
        is_known = math.isfinite(constant)
        return is_known and constant - first >= (1.0 - 1.0 / MARGIN) * abs(constant)

    def has_learned(self, *, is_new: bool) -> bool:
        """Whether the present weights have a lower loss than the first ones.

        The losses are those of a sample of the training rows.

        Parameters
        ----------
        is_new : bool
            Whether the loss must be clearly lower than that of any constant output too.
        """
        sample = self.sample
        try:
            reached, outputs = self._repaired_results(sample)
        except StepRefused:
            return True  # nothing to compare with
        first, first_outputs = self._first_results(sample)
        if reached >= first:
            return False
        if not is_new or not math.isfinite(reached):
            return True
        constant = self._lowest_constant(sample, outputs, first_outputs)
        if constant == math.inf and not isinstance(self.net.module, torch.nn.Module):
            constant = first  # all that is known; one passed in may be good already
        return Comparison(reached, constant, math.nan).is_below

    def find_rise(self) -> tuple[Rise, bool] | None:
        """Return the rise of the loss to more than that of a constant output.

        An untrained loss of exactly 0 gives no scale.

        Returns
        -------
        tuple of (Rise, bool) or None
            The losses, and whether the last one is far above that of a constant output
            and more than twice the first one. None if the loss has not risen, or by no
            more than what chance gives.
        """
        sample = [self._few_rows()]
        try:
            after = self._results(sample)[0]
            before = self._first_results(sample)[0]
        except StepRefused:
            return None
        after = math.inf if math.isnan(after) else after
        if not math.isfinite(before) or before == 0.0 or after <= before:
            return None
        found = self.compare_with_constant(has_risen=True)
        if found is None:
            return None
        rise = Rise(before, after, found.constant)
        if found.is_far_above and not is_trusted(after, before):
            return rise, True
        has_risen = after - before > N_ERRORS * found.error
        return (rise, False) if found.is_above and has_risen else None

    def is_far_worse_than_constant(self, *, is_doubtful: bool) -> bool:
        """Whether the loss is far above that of a constant output.

        Two standard errors above it are enough, unless the loss has been falling: it
        may be high yet.

        Parameters
        ----------
        is_doubtful : bool
            Whether it must be clearly lower, unless it has been falling.
        """
        found = self.compare_with_constant()
        if found is None:
            return False
        if found.is_far_above or self._may_fall(found.reached):
            return found.is_far_above
        return found.is_above or (is_doubtful and not found.is_below)

    def compare_with_constant(self, *, has_risen: bool = False) -> Comparison | None:
        """Return the loss of training rows, and that of a constant output.

        The rows are training rows that seldom failed and whose loss is finite, with
        repaired operations if it is not for most of them. There is no comparison if
        there are none, if all have the same target, or if the loss relates rows, such
        as a triplet loss: equal outputs are no baseline for it.

        Parameters
        ----------
        has_risen : bool, default=False
            Whether the loss is known to be higher than that of the first weights. If
            the loss of most rows is no longer finite, it is far above then. If that of
            a constant output is not known, that of the first weights takes its place.
        """
        if self.net._own_step() is not None:
            return None
        batches = self.training.rows_of_data(N_TRIAL_ROWS) or self.batches[-1:]
        if not has_risen and self._fail_mostly(batches):
            with uncompiled(self.net), RepairedOperations():  # as in predictions
                return self._compare(batches, has_risen=False)
        return self._compare(batches, has_risen=has_risen)

    def _fail_mostly(self, batches: list[Any]) -> bool:
        """Whether the output or loss of most rows is not finite."""
        try:
            with kept_random_states(self.net.device), torch.no_grad():
                sound = map(self._sound_rows, batches)
                n_sound: int = sum(get_len(inputs) for inputs, _ in sound)
        except StepRefused:  # for some rows, the network raises
            return False
        n_rows: int = sum(get_len(inputs) for inputs, _ in batches)
        return 2 * n_sound < n_rows

    def _compare(self, batches: list[Any], *, has_risen: bool) -> Comparison | None:
        try:
            with kept_random_states(self.net.device), torch.no_grad():
                if has_risen:
                    with self.net.guard_.first_weights():
                        batches, _ = self._comparable_rows(batches)
                    n_rows = sum(get_len(b[0]) for b in batches)
                    batches = [self._sound_rows(b) for b in batches]
                    if 2 * sum(get_len(b[0]) for b in batches) < n_rows:
                        return Comparison(math.inf, math.nan, math.nan)
                    errors = self._errors(batches)
                else:
                    batches, errors = self._comparable_rows(batches)
            reached, outputs = self._results(batches) if batches else (math.nan, [])
        except StepRefused:
            return None
        if not math.isfinite(reached):  # a mean of finite losses may overflow
            is_far = has_risen and bool(batches)
            return Comparison(math.inf, math.nan, math.nan) if is_far else None
        first, first_outputs = self._first_results(batches)
        constant = self._lowest_constant(batches, outputs, first_outputs)
        if has_risen and constant == math.inf:  # of several outputs, for example
            return Comparison(reached, first, math.nan)
        error = max(filter(math.isfinite, errors), default=0.0)
        return Comparison(reached, constant, error)

    def _comparable_rows(self, batches: list[Any]) -> tuple[list[Any], list[float]]:
        """Return rows for which equal outputs are a baseline, or none, and errors."""
        batches = [b for b in map(self._sound_rows, batches) if varies(b[1])]
        errors = self._errors(batches)
        return (batches, errors) if all(map(math.isfinite, errors)) else ([], [])

    def _may_fall(self, reached: float) -> bool:
        """Whether the loss has been falling to the end, so that it may be high yet.

        Unknown if rows that always fail make up the losses of the epochs.
        """
        history = self.net.history or ()
        losses = [row.get("train_loss", math.nan) for row in history]
        losses = [loss for loss in losses if not math.isnan(loss)]
        lowest = min(losses, default=0.0)
        return (
            not losses
            or losses[-1] <= lowest + SMALL * abs(lowest)
            or is_far_above(losses[-1], reached)
        )

    def _lowest_constant(self, batches: list[Any], *outputs: list[Any]) -> float:
        """Return the loss of the best constant output; inf if it is not known."""
        lowest = lowest_constant_loss(self.net, batches, list(filter(None, outputs)))
        return lowest if math.isfinite(lowest) else math.inf


def _are_compared(target: Any, output: Any) -> bool:
    """Return whether a loss seems to compare each output with a target."""
    are_tensors = isinstance(target, Tensor) and isinstance(output, Tensor)
    return (
        are_tensors and target.is_floating_point() and target.numel() == output.numel()
    )
