"""The guard inside skorch's training loop."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

import numpy as np
import torch
from skorch.dataset import get_len, unpack_data
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.utils.data import DataLoader

from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan.diagnosis._culprits import without_rows
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import DivergenceWarning, NonFiniteTrainingError
from sknan.nets._backup import BackupAndRestore
from sknan.nets._batching import TensorBatches
from sknan.nets._chain import LayerwisePass, layerwise_pass
from sknan.nets._data import as_table, refuse_nonfinite_data
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets.guard._guard import Guard
from sknan.nets.recovery import RECOVERIES, Recovery
from sknan.nets.recovery.output_repair import (
    output_repaired,
    rows_without_output,
    without_output,
)
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.optim._adaptive_clipping import resolve_adaptive_clip
from sknan.optim._fused_adam import step_with
from sknan.optim._schedules import LearningRateSchedule

__all__ = ["BATCH_METHODS", "GuardMixin"]


def _check_positive(name: str, value: Any) -> None:
    if value is None:
        return
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not value > 0:
        raise ValueError(f"{name} must be a number above 0 or None, got {value!r}.")


# A clip that had nothing to do in fewer steps may yet have.
_LEAST_STEPS = 20


# What callbacks may be told of a batch.
BATCH_METHODS = ("on_batch_begin", "on_batch_end", "on_grad_computed")

# What skorch calls to take a step.
_STEP_METHODS = ("notify", "infer", "get_loss", "train_step_single", *BATCH_METHODS)


def _is_known(thing: Any, method_name: str) -> bool:
    """Whether a method of a net or callback is skorch's or ours."""
    method = getattr(thing, method_name, None)
    package = (getattr(method, "__module__", None) or "").partition(".")[0]
    return package in ("skorch", "sknan") and method_name not in vars(thing)


def _times(reports: list[NonFiniteReport]) -> str:
    return "once" if len(reports) == 1 else f"{len(reports)} times"


# The mixin only ever stands before a skorch net, whose methods it calls.
_SkorchNet: Any = object


class GuardMixin(VersionedPickleMixin, _SkorchNet):
    """Guard, clip and schedule every training step of a skorch net.

    Put it before any skorch net in the list of bases. By default only the guard is on:
    each step's loss and gradients are looked at, a step that is not finite is not
    taken, and training goes on from the last verified weights at a lower rate.

    Parameters
    ----------
    *args, **kwargs
        As of the skorch net.
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        What a non-finite or exploded step leads to. ``"recover"``: the last verified
        weights come back, the optimizer's moments are cleared and the learning rate is
        lowered; a batch that fails on verified weights is left out. ``"skip"``: the
        batch is left out. ``"raise"``: ``NonFiniteTrainingError`` at once.
    max_recoveries : int, default=10
        Failed steps that one call of ``fit`` may survive; one more raises.
    clip_norm : float or None, default=None
        Largest global 2-norm of the gradients.
    clip_value : float or None, default=None
        Largest size of an entry of the gradients.
    adaptive_clip : {"agc", "quantile", "zscore"}, callable or None, default=None
        Clipping that finds its own threshold; see :mod:`sknan.optim`.
    lr_schedule : str, callable or None, default=None
        Factor of ``lr`` over the progress of training: ``"constant"``, ``"cosine"``,
        ``"one_cycle"``, ``"exponential"``, ``"step"``, ``"plateau"``, ``"coslog4"`` or
        a function of progress in [0, 1]; see :mod:`sknan.optim`.
    warmup : float or int, default=0.0
        Share (float) or number (int) of the steps in which the rate rises to ``lr``.

    Attributes
    ----------
    nonfinite_reports_ : list of NonFiniteReport
        Every failed step since the last ``fit``, in order.
    effective_lr_ : float
        ``lr`` times all reductions by the guard (the schedule is not counted).

    Raises
    ------
    NonFiniteDataError
        If ``X`` or ``y`` holds NaN or infinities; data sets and iterators of one's own
        are not read in advance.
    NonFiniteTrainingError
        If a step fails and cannot or must not be rescued.

    Warns
    -----
    DivergenceWarning
        Once per fit, if training was rescued.
    """

    guard_: Guard
    # Answers to a failed step, tried in this order.
    _recoveries: tuple[Recovery, ...] = RECOVERIES
    _training_: GuardedTraining | None
    _backup_: BackupAndRestore | None = None
    _epoch_loss_: float
    # Whether anybody listens to what happens to a batch.
    _is_heard_in_epoch_: bool = True

    def __init__(
        self,
        *args: Any,
        on_nonfinite: str = "recover",
        max_recoveries: int = 10,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        adaptive_clip: Any = None,
        lr_schedule: Any = None,
        warmup: float = 0.0,
        **kwargs: Any,
    ) -> None:
        self.on_nonfinite = on_nonfinite
        self.max_recoveries = max_recoveries
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.adaptive_clip = adaptive_clip
        self.lr_schedule = lr_schedule
        self.warmup = warmup
        self._init_net(*args, **kwargs)

    def _init_net(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @property
    def nonfinite_reports_(self) -> list[NonFiniteReport]:
        """Every failed step since the last ``fit``, in order."""
        return list(self.guard_.reports)

    @property
    def effective_lr_(self) -> float:
        """``lr`` times all reductions by the guard."""
        return float(self.lr) * self.guard_.lr_scale

    def on_train_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Let a backup bring back what it holds, before any callback begins."""
        super().on_train_begin(net, *args, **kwargs)
        backups = [c for _, c in self.callbacks_ if isinstance(c, BackupAndRestore)]
        self._backup_ = backups[0] if backups else None
        if self._backup_ is not None:
            self._backup_.restore_net(self)

    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> Any:
        """Run the epochs under guard; parameters as in skorch."""
        refuse_nonfinite_data(X, y)
        is_new = fit_params.get("_routing_method", "fit") == "fit"
        self._prepare_guard(is_new=is_new)
        n_reports = len(self.guard_.reports)
        self._epochs_ahead_ = self.max_epochs if epochs is None else epochs
        n_done = 0 if self._backup_ is None else self._backup_.n_epochs_done
        self._has_stopped_ = is_broken_off = False
        try:
            super().fit_loop(X, y, self._epochs_ahead_ - n_done, **fit_params)
        except Exception:  # a callback's too: nothing must take its place
            self._has_stopped_ = True
            raise
        except KeyboardInterrupt:
            is_broken_off = True
            raise
        finally:
            self._end_training(n_reports, is_broken_off=is_broken_off)
        return self

    def _end_training(self, n_reports: int, *, is_broken_off: bool) -> None:
        """Leave usable weights, and say what has happened."""
        training, self._training_ = self._training_, None
        if training is None:
            return
        is_over = not (is_broken_off or self._has_stopped_)
        has_learned = not is_over or training.has_learned()
        training.end(is_broken_off=is_broken_off)
        reports = self.guard_.reports[n_reports:]
        if is_over and self._is_clip_idle(training):
            self._warn_of_idle_clip(training)
        if not has_learned:
            raise NonFiniteTrainingError(
                f"Training failed {_times(reports)}, and what was rescued has learned "
                "nothing: its loss is no better than that of the untrained network. "
                f"First failure: {reports[0]}",
                reports[0],
            )
        if self._has_stopped_ or not reports:
            return
        if training.n_steps:
            self._warn_of_rescue(reports)
        elif not is_broken_off:
            raise NonFiniteTrainingError(
                f"Not a single step could be taken. First failure: {reports[0]}",
                reports[0],
            )

    def _prepare_guard(self, *, is_new: bool) -> None:
        """Check the parameters, and make what watches, clips and schedules."""
        _check_positive("clip_norm", self.clip_norm)
        _check_positive("clip_value", self.clip_value)
        schedule = LearningRateSchedule(self.lr_schedule, self.warmup)
        clipper = resolve_adaptive_clip(self.adaptive_clip)
        guard = Guard(self.on_nonfinite, self.max_recoveries)
        if is_new or not hasattr(self, "guard_"):
            self.guard_ = guard
            self.adaptive_clip_ = clipper
        else:
            self.guard_.on_nonfinite = guard.on_nonfinite
            self.guard_.max_recoveries = guard.max_recoveries
        self.schedule_ = schedule
        self.schedule_.start(0)
        # Weights that someone has trained before are not to be started anew.
        self._is_fresh_ = is_new and not isinstance(self.module, torch.nn.Module)
        self._training_ = None

    def _begin_training(
        self, n_steps: int | None, batches: Any, layerwise: LayerwisePass | None = None
    ) -> None:
        if not hasattr(self, "guard_"):  # a step by hand, without fit
            self._prepare_guard(is_new=True)
        training = GuardedTraining(self, batches, n_steps, is_fresh=self._is_fresh_)
        training.begin_epoch(batches, layerwise)
        self._training_ = training

    def _all_modules(self) -> list[torch.nn.Module]:
        names = [*self._modules, *self._criteria]
        modules = [getattr(self, f"{name}_") for name in names]
        return [m for m in modules if isinstance(m, torch.nn.Module)]

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = [getattr(self, f"{name}_") for name in self._optimizers]
        # Something else in an optimizer's place is the caller's business.
        return [o for o in optimizers if isinstance(o, torch.optim.Optimizer)]

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Batches of a data set; parameters as in skorch.

        Arrays and tensors come as slices of whole tensors; whatever a data loader does
        more (workers, samplers, collating, a data set of one's own) it still does.
        """
        prefix = "iterator_train" if training else "iterator_valid"
        options = self.get_params_for(prefix)
        is_plain = getattr(self, prefix) is DataLoader and options.keys() <= {
            "batch_size",
            "shuffle",
            "drop_last",
        }
        table = as_table(dataset) if is_plain else None
        if table is None:
            return super().get_iterator(dataset, training=training)
        batch_size = options.pop("batch_size", self.batch_size)
        return TensorBatches(
            table,
            len(table) if batch_size == -1 else batch_size,
            like_loader=True,
            **options,
        )

    def run_single_epoch(
        self,
        iterator: Any,
        training: bool,
        prefix: str,
        step_fn: Any,
        **fit_params: Any,
    ) -> None:
        """Run one epoch of training or validation; parameters as in skorch."""
        if iterator is None:
            self._follow_loss(self._epoch_loss_)
            return
        if training:
            self._start_training(iterator)
        n_batches, total_loss, total_rows = 0, 0.0, 0
        for n_batches, batch in enumerate(iterator, start=1):
            if training and self._training_ is not None:
                self._training_.batch_number = n_batches
            self._notify_of_batch("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            was_skipped = step.pop("was_skipped", False)
            if not was_skipped:
                loss = step["loss"].item()
                rows = self._n_rows(batch)
                self._log_batch(prefix, loss, rows)
                total_loss += loss * rows
                total_rows += rows
            self._notify_of_batch(
                "on_batch_end", batch=batch, training=training, **step
            )
        self.history.record(f"{prefix}_batch_count", n_batches)
        mean_loss = total_loss / total_rows if total_rows else math.nan
        self._log_epoch(prefix, mean_loss)
        if training:
            self._epoch_loss_ = mean_loss
            if n_batches:
                self._end_training_epoch(batch, step)
        else:
            self._follow_loss(mean_loss)

    def _n_rows(self, batch: Any) -> int:
        inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        return int(get_len(inputs))

    def _notify_of_batch(self, method_name: str, **kwargs: Any) -> None:
        self.notify(method_name, **kwargs)

    def _log_batch(self, prefix: str, loss: float, rows: int) -> None:
        self.history.record_batch(f"{prefix}_loss", loss)
        self.history.record_batch(f"{prefix}_batch_size", rows)

    def _log_epoch(self, prefix: str, mean_loss: float) -> None:
        """Leave the epoch's loss to skorch's callbacks, which average the batches'."""

    def _start_training(self, iterator: Any) -> None:
        """Begin a training with its first epoch, which knows its length."""
        if not hasattr(self, "schedule_"):  # an epoch by hand, without fit
            return
        if self._training_ is not None:
            self._training_.begin_epoch(iterator, self._layerwise_pass(iterator))
            return
        try:
            n_steps: int | None = len(iterator) * self._epochs_ahead_
        except TypeError:
            n_steps = None
            if self.lr_schedule is not None or self.warmup:
                raise TypeError(
                    f"lr_schedule={self.lr_schedule!r} with warmup={self.warmup!r} "
                    "needs to know the number of batches, but "
                    f"{type(iterator).__name__} has no length. Give the iterator a "
                    "__len__, or leave both out."
                ) from None
        self.schedule_.start(n_steps or 0)
        self._begin_training(n_steps, iterator, self._layerwise_pass(iterator))
        if self._backup_ is not None:
            self._backup_.restore_training(self)

    def _layerwise_pass(self, iterator: Any) -> LayerwisePass | None:
        """What may take the place of autograd in this epoch."""
        is_usual = (
            isinstance(iterator, TensorBatches)
            and (self._modules, self._criteria) == (["module"], ["criterion"])
            # Others may do anything, such as to freeze a layer in mid-epoch.
            and all(_is_known(self, name) for name in _STEP_METHODS)
            and all(
                _is_known(callback, name)
                for _, callback in self.callbacks_
                for name in BATCH_METHODS
            )
        )
        if not is_usual:
            return None
        X, _ = iterator.dataset.rows(slice(0, 1))
        return layerwise_pass(self.module_, self.criterion_, X)

    def _step_optimizer(self, step_fn: Any) -> None:
        for name in self._optimizers:
            step_with(getattr(self, f"{name}_"), step_fn)

    def _follow_loss(self, loss: float) -> None:
        """Tell a plateau schedule how the epoch went."""
        if hasattr(self, "schedule_"):
            self.schedule_.update(loss)

    def _rate_factor(self) -> float:
        """What schedule and guard make of ``lr`` at this step."""
        return self.guard_.lr_scale * self._schedule_factor()

    def _schedule_factor(self) -> float:
        if self.lr_schedule is None and not self.warmup:
            return 1.0
        training = self._training_
        return self.schedule_.factor(0 if training is None else training.n_steps)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one step if it is finite; else recover, and try again or leave it out.

        Parameters
        ----------
        batch : tuple
            As the iterator yields it.
        **fit_params
            Passed to the module's ``forward``.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``; with ``was_skipped`` true if no step was taken.
        """
        if getattr(self, "_training_", None) is None:
            self._begin_training(None, [batch])
        training: Any = self._training_
        step: dict[str, Any] = training.step(batch, fit_params)
        return step

    def _end_training_epoch(self, batch: Any, step: dict[str, Any]) -> None:
        """Verify the weights, keep them if good, and log what the guard saw."""
        training = self._training_
        if training is None:
            return
        fault = self._find_fault_of_epoch(batch, step)
        if fault is None:
            self.guard_.propose_weights()
        else:
            self.guard_.handle(
                NonFiniteReport(
                    phase="step",
                    cause="learning_rate",
                    evidence=f"{fault} at lr={self.effective_lr_:.3g}.",
                    action=(
                        "Lower lr, or add warmup=0.05, and clip_norm=1.0 if it is off."
                    ),
                    epoch=len(self.history),
                    batch=training.batch_number,
                ),
                RateTrials(training, batch, {}),
            )
        epoch = len(self.history)
        n_recoveries = sum(report.epoch == epoch for report in self.guard_.reports)
        self.history.record("n_recoveries", n_recoveries)
        if training.norms:
            self.history.record("grad_norm", float(np.median(training.norms)))
        if training.norms and self._clips:
            clipped = [c for c in training.coefficients if c < 1.0]
            self.history.record("clip_share", len(clipped) / len(training.norms))
            mean = float(np.mean(clipped)) if clipped else 1.0
            self.history.record("clip_coefficient", mean)
        if training.rate is not None:
            self.history.record("lr", training.rate)

    def _find_fault_of_epoch(self, batch: Any, step: dict[str, Any]) -> str | None:
        """What is wrong with the weights at the end of an epoch, in words."""
        if self.guard_.has_finite_weights():
            return None
        return "The last step of the epoch left non-finite weights"

    @property
    def _clips(self) -> bool:
        options = (self.clip_norm, self.clip_value, self.adaptive_clip)
        return any(option is not None for option in options)

    def _is_clip_idle(self, training: GuardedTraining) -> bool:
        """Whether a clip that someone asked for never had anything to do."""
        is_asked_for = self.clip_norm is not None or self.clip_value is not None
        return (
            is_asked_for
            and training.n_steps >= _LEAST_STEPS
            and not (training.n_clipped)
        )

    def _warn_of_idle_clip(self, training: GuardedTraining) -> None:
        given = f"clip_norm={self.clip_norm!r}"
        if self.clip_norm is None:
            given = f"clip_value={self.clip_value!r}"
        warnings.warn(
            f"{given} never had an effect: the norm of the gradients was at most "
            f"{training.largest_norm:.3g} in {training.n_steps} steps. Lower it to "
            "bound what is unusual here, or leave it out.",
            UserWarning,
            stacklevel=stacklevel_of_caller(),
        )

    def _warn_of_rescue(self, reports: list[NonFiniteReport]) -> None:
        was = "" if self.guard_.lr_scale == 1.0 else f" instead of lr={self.lr:.3g}"
        warnings.warn(
            DivergenceWarning(
                f"Training failed {_times(reports)} and was rescued; it went on with "
                f"lr={self.effective_lr_:.3g}{was}. First failure: {reports[0]}",
                reports[0],
            ),
            stacklevel=stacklevel_of_caller(),
        )

    def __getstate__(self) -> dict[str, Any]:
        # A module or criterion that was given as an instance is itself what is trained.
        # Once is enough, and its place is among what skorch moves between devices.
        state = super().__getstate__()
        state["_training_"] = None
        for name in [*self._modules, *self._criteria]:
            if state.get(name) is getattr(self, f"{name}_", self):
                state[name] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in [*self._modules, *self._criteria]:
            if getattr(self, name, self) is None:
                setattr(self, name, getattr(self, f"{name}_", None))

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss of a batch that is not trained on; parameters as in skorch.

        Rows for which the network has no output, since a decomposition of theirs does
        not exist, are left out.
        """
        try:
            step: dict[str, Any] = super().validation_step(batch, **fit_params)
        except LinAlgError as error:
            n_rows = get_len(unpack_data(batch)[0])
            bad = rows_without_output(self, batch)
            if len(bad) in (0, n_rows):
                raise without_output(self, batch, error) from error
            step = super().validation_step(
                without_rows(batch, bad, n_rows), **fit_params
            )
        return step

    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        """Output for one batch; parameters as in skorch.

        Under ``on_nonfinite="recover"`` a row whose output is not finite although its
        input is comes from a second pass, in which each operation is kept inside its
        domain; a warning counts such rows.
        """
        try:
            outputs = super().evaluation_step(batch, training=training)
        except LinAlgError as error:
            raise without_output(self, batch, error) from error
        if training or self.on_nonfinite != "recover":
            return outputs
        return output_repaired(self, unpack_data(batch)[0], outputs)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Output of the module, made probabilities where the criterion tells how.

        Parameters
        ----------
        X : array-like, Tensor, dict, list or Dataset
            As in skorch.

        Returns
        -------
        ndarray

        Raises
        ------
        NonFiniteDataError
            If an output is NaN or infinite and ``X`` is not finite.
        NonFiniteTrainingError
            If an output is NaN or infinite although ``X`` is finite.
        """
        output: np.ndarray = super().predict_proba(X)
        # Minus infinity is the logit of what is ruled out.
        bad = np.isnan(output) | np.isposinf(output)
        if bad.any():
            refuse_nonfinite_data(X, None)
            rows = np.unique(np.argwhere(bad)[:, 0])
            what = "NaN" if np.isnan(output).any() else "infinite"
            raise NonFiniteTrainingError(
                f"The network's output is {what} for {len(rows)} of {len(output)} "
                f"rows, first row {rows[0]}, although X is finite. Is its range the "
                "one seen in training? SafeScaler bounds it."
            )
        return output
