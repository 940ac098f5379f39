"""Mixin that guards the training loop of a skorch net."""

from __future__ import annotations

from typing import Any, Protocol

import cloudpickle
import torch

from sknan._utils.compiled import original_of
from sknan._utils.outside import (
    end_other_fits,
    is_announced_stop,
    is_orderly_stop,
)
from sknan._utils.pickling import (
    VersionedPickleMixin,
    complete_copy,
    make_picklable,
    refuse_unpicklable,
)
from sknan._utils.settings import usual_settings
from sknan._utils.warn import warn
from sknan.diagnosis._report import NonFiniteReport
from sknan.exceptions import DivergenceWarning
from sknan.nets._backup import BackupAndRestore
from sknan.nets._best_weights import BestWeights
from sknan.nets._data import (
    check_target_outliers,
    readable_target,
    refuse_nonfinite_data,
    refuse_unusable_targets,
)
from sknan.nets._final_loss import find_fault_of_result
from sknan.nets._guard_parts import guard_parts
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._loop import LoopMixin
from sknan.nets._output import OutputMixin
from sknan.nets._own_step import (
    refuse_missing_net,
    refuse_order_of_bases,
    refuse_own_loop,
)
from sknan.nets._parameters import check_net_parameters
from sknan.nets._records import (
    hide_guard_entries,
    no_step_error,
    not_learned_error,
    warn_of_fall,
    warn_of_idle_clip,
    warn_of_interrupt,
    warn_of_rescue,
)
from sknan.nets._weight_average import WeightAverage
from sknan.nets.guard._guard import RESTORED, Guard
from sknan.nets.recovery import RECOVERIES, Recovery

# Lists in which skorch registers modules, criteria and optimizers.
_REGISTRIES = (
    *("prefixes_", "cuda_dependent_attributes_"),
    *("_modules", "_criteria", "_optimizers"),
)

# Sentences that the report on a useless training records.
_WENT_BACK = "The weights from before the training were restored."


class EarlierEpochs(Protocol):
    """Epochs of a training that were done elsewhere, as those of a backup."""

    @property
    def n_epochs_done(self) -> int:
        """Number of these epochs."""

    def restore_training(self, net: Any) -> None:
        """Restore the state after these epochs, before the first batch of the rest."""


class GuardMixin(VersionedPickleMixin, LoopMixin, OutputMixin):
    """Guard, clip and schedule every training step of a skorch net.

    In the list of base classes the mixin must precede the skorch net: another order
    raises ``TypeError`` when the class is defined. By default only the guard is active:
    it checks loss and gradients of each step, refuses a step that is not finite, and
    recovers.

    Parameters
    ----------
    *args, **kwargs
        Parameters of the skorch net.
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        Answer to a non-finite or exploded step. ``"recover"`` repeats the step without
        the rows or operations that failed, skips a batch that is to blame, or rolls
        back to the last verified weights, clears the moments of the optimizer and
        lowers the learning rate. ``"skip"`` skips the batch. ``"raise"`` raises
        ``NonFiniteTrainingError`` at once.
    max_recoveries : int, default=10
        Maximum number of roll-backs and consecutive skipped batches in one training;
        one more raises an error. Steps that are taken without the rows to blame, or
        with repaired operations, do not count. 0 allows no recovery at all.
    clip_norm : float or None, default=None
        Largest global 2-norm of the gradients.
    clip_value : float or None, default=None
        Largest absolute value of an entry of the gradients.
    adaptive_clip : {"agc", "quantile", "zscore"}, callable or None, default=None
        Clipping with an automatic threshold; see :mod:`sknan.optim`.
    lr_schedule : str, callable or None, default=None
        Factor of ``lr`` over the progress of training: ``"constant"``, ``"cosine"``,
        ``"one_cycle"``, ``"exponential"``, ``"step"``, ``"plateau"``, ``"coslog4"`` or
        a function of progress in [0, 1]; see :mod:`sknan.optim`.
    warmup : float or int, default=0.0
        Fraction (float) or number (int) of the steps in which the learning rate rises
        to ``lr``.
    ema_decay : float or None, default=None
        Decay of an exponential moving average of the weights and of the running
        statistics of batch normalization. Between two epochs, and after training, the
        module holds the average: validation, scores and callbacks use it. Each step
        enters the average when it is taken; a failed one never does, and a roll back
        restores the average of that time. After ``n`` steps the decay is at most
        ``(1 + n) / (10 + n)``, as in TensorFlow. ``partial_fit`` and ``warm_start``
        continue the steps from their own weights, and the average too. If the weights
        were changed in the meantime, both start from the new ones. None: no average.

    Attributes
    ----------
    nonfinite_reports_ : list of NonFiniteReport
        Reports on all failed steps since the last ``fit``, in order.
    effective_lr_ : float
        ``lr`` times all reductions by the guard (the schedule is not counted).

    Raises
    ------
    ValueError
        If a parameter of skorch or of the guard is invalid, or unknown to the class
        that it is for, such as ``optimizer__betas`` to ``SGD``, or if ``X`` and ``y``
        differ in their number of rows. Parameters that a method of your own reads are
        not checked.
    NonFiniteDataError
        If ``X`` or ``y`` contains NaN or infinities, or ``y`` a few values that are too
        large for the loss to distinguish the others. User-defined data sets and
        iterators are not read in advance.
    NonFiniteTrainingError
        If a step fails and there is no recovery, or none is allowed, or if a training
        ends with a loss that is far above the first one and that of a constant output.

    Warns
    -----
    DivergenceWarning
        Once per fit, if training was rescued, if it ended with a loss that has risen
        above that of a constant output, or if it ruined a network that had been
        trained before, whose weights are then restored.
    UserWarning
        If a few targets dominate the loss, or if Ctrl-C interrupted a training that
        is not one of several, such as those of a search or an ensemble; these end with
        the ``KeyboardInterrupt``. A callback of your own that raises one in
        ``on_epoch_end`` ends only its training, with the same warning; callbacks of
        skorch, such as ``EarlyStopping``, give none.
    """

    guard_: Guard
    # Answers to a failed step, tried in this order.
    _recoveries: tuple[Recovery, ...] = RECOVERIES
    _backup_: EarlierEpochs | None = None
    # Whether the weights have not been trained or loaded since the initialization.
    _is_untrained_ = False
    _first_versions_: Any = None
    # Whether the present training is by fit, and not by partial_fit.
    _is_new_fit_ = False
    # State of the coordinates of the latest training, if its data were in raw units.
    _conditioning_: dict[str, Any] | None = None
    _average_: WeightAverage | None = None
    # Training whose weights are not in order yet.
    _ending_: GuardedTraining | None = None
    # During partial_fit: the batches of its last epoch, once training has ended.
    _batches_done_: list[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_order_of_bases(GuardMixin, cls)

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
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_missing_net(GuardMixin, type(self))
        self.on_nonfinite = on_nonfinite
        self.max_recoveries = max_recoveries
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.adaptive_clip = adaptive_clip
        self.lr_schedule = lr_schedule
        self.warmup = warmup
        self.ema_decay = ema_decay
        self._init_net(*args, **kwargs)

    def _init_net(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @property
    def nonfinite_reports_(self) -> list[NonFiniteReport]:
        """Reports on all failed steps since the last ``fit``, in order."""
        return list(self.guard_.reports)

    @property
    def effective_lr_(self) -> float:
        """``lr`` times all reductions by the guard."""
        return float(self.lr) * self.guard_.lr_scale

    def initialize_callbacks(self) -> Any:
        """Initialize the callbacks; those that print or log ignore the guard's entries.

        ``PrintLog`` and the loggers then show what they show with skorch's nets. Pass
        ``keys_ignored=[]`` to one of them to include the entries of the guard.
        """
        super().initialize_callbacks()
        for _, callback in self.callbacks_:
            hide_guard_entries(callback)
        return self

    @usual_settings(any_dtype=True)
    def initialize(self) -> Any:
        """Create module, criterion, optimizer and callbacks, as in skorch."""
        refuse_own_loop(LoopMixin, self)
        check_net_parameters(self)
        guard_parts(self)  # checks its parameters
        known = {name: getattr(self, name) for name in _REGISTRIES}
        try:
            super().initialize()
        except BaseException:  # skorch may know only half of a module
            self.__dict__.update(known)
            raise
        self._is_untrained_ = True
        self._first_versions_ = self._versions_of_weights()
        self._conditioning_ = None
        self._average_ = None
        self._output_range_ = None
        self._counts_only_first_ = False
        return self

    @property
    def _is_fresh_(self) -> bool:
        """Whether training may replace the weights, which were not passed in."""
        return self._is_untrained_ and not isinstance(self.module, torch.nn.Module)

    def _versions_of_weights(self) -> list[int]:
        """Return numbers that change when weights are trained or loaded."""
        return [p._version for m in self._all_modules() for p in m.parameters()]

    @usual_settings(any_dtype=True)
    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> Any:
        """Train without initializing; parameters as in skorch.

        At the end, the output for ``X`` is computed once more, except with parameters
        of ``forward``. It must be finite, or of a kind that predictions can repair.
        """
        batches = self._batches_done_ = []
        try:
            super().partial_fit(X, y, classes, **fit_params)
        finally:
            del self._batches_done_
        if self._has_stopped_:  # skorch returns after Ctrl-C
            end_other_fits()
        if not fit_params.keys() - {"_routing_method"}:
            self._check_trained_output(X, *batches)
        return self

    def on_train_begin(self, net: Any, *args: Any, **kwargs: Any) -> None:
        """Restore a backup, if there is one, before any callback begins."""
        super().on_train_begin(net, *args, **kwargs)
        backups = [c for _, c in self.callbacks_ if isinstance(c, BackupAndRestore)]
        self._backup_ = backups[0] if backups else None
        if backups:
            is_first = self._versions_of_weights() == self._first_versions_
            backups[0].restore_net(self)
            if is_first:
                self._first_versions_ = self._versions_of_weights()

    @usual_settings(any_dtype=True)
    def fit_loop(
        self, X: Any, y: Any = None, epochs: int | None = None, **fit_params: Any
    ) -> Any:
        """Run the epochs under guard; parameters as in skorch."""
        n_epochs = self.max_epochs if epochs is None else epochs
        n_done = 0 if self._backup_ is None else self._backup_.n_epochs_done
        n_before = len(self.history) - n_done
        try:
            self._run_guarded(X, y, n_epochs, n_done, fit_params)
        except KeyboardInterrupt as interrupt:  # skorch goes on after it
            if not hasattr(self, "guard_"):  # before the training
                self._prepare_guard(is_new=True)
            if self._ending_ is not None:  # while the training ended
                self._ending_.end(is_interrupted=True)
            if not is_orderly_stop(interrupt):
                self._has_stopped_ = True
                end_other_fits()
            if not is_announced_stop(interrupt):
                has_best = any(isinstance(c, BestWeights) for _, c in self.callbacks_)
                warn_of_interrupt(self, n_before, n_epochs, has_best=has_best)
            raise
        finally:
            self._ending_ = None
        return self

    def _run_guarded(
        self, X: Any, y: Any, n_epochs: int, n_done: int, fit_params: dict[str, Any]
    ) -> None:
        refuse_nonfinite_data("X", X)
        refuse_unusable_targets(self, X, y)
        y = readable_target(self, X, y)
        self._is_new_fit_ = is_new = fit_params.get("_routing_method", "fit") == "fit"
        self._prepare_guard(is_new=is_new)
        self._is_untrained_ &= is_new and (
            self._versions_of_weights() == self._first_versions_
        )
        n_reports = len(self.guard_.reports)
        self._epochs_ahead_ = n_epochs = int(n_epochs)  # which may be one of NumPy
        self._has_stopped_ = is_interrupted = False
        try:
            super().fit_loop(X, y, n_epochs - n_done, **fit_params)
        except KeyboardInterrupt as interrupt:
            is_interrupted = not is_orderly_stop(interrupt)
            raise
        except BaseException:  # no other error may replace it, nor a SystemExit
            self._has_stopped_ = True
            raise
        finally:
            self._end_training(n_reports, is_interrupted=is_interrupted)

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Return training and validation rows; parameters as in skorch.

        A new ``fit`` names outliers among the targets of the training rows.
        """
        rows, valid_rows = super().get_split_datasets(X, y, **fit_params)
        if self._is_new_fit_:
            check_target_outliers(self, rows)
        return rows, valid_rows

    def _end_training(self, n_reports: int, *, is_interrupted: bool) -> None:
        """Leave usable weights, and raise or warn if training has failed."""
        training, self._training_ = self._training_, None
        self._ending_ = training
        is_untrained, self._is_untrained_ = self._is_untrained_, False
        if training is None:
            return
        if not is_interrupted and hasattr(self, "_batches_done_"):
            self._batches_done_.append(training.batches)
        is_complete = not (is_interrupted or self._has_stopped_)
        has_learned = not is_complete or training.has_learned(is_new=is_untrained)
        found: tuple[NonFiniteReport, bool] | None = None
        if is_complete and len(self.guard_.reports) == n_reports:
            found = find_fault_of_result(training)
        fault, is_ruin = found or (None, False)
        if is_ruin or not has_learned:
            is_untrained = is_untrained and not training.were_trained()
            if not is_untrained:
                self.guard_.withdraw_training()  # trained before, and better
                has_learned = True
            elif fault is not None and training.returns_to_verified():
                self.guard_.record(fault, RESTORED)
                fault = None
        reports = self.guard_.reports[n_reports:]
        is_rescued = is_complete and has_learned and bool(reports)
        remark = training.what_is_left() if is_rescued else ""
        training.end(is_interrupted=is_interrupted)
        self._ending_ = None
        if fault is not None and not is_ruin:
            warn(DivergenceWarning(str(fault), fault))
        elif fault is not None:
            if is_untrained or self.on_nonfinite == "raise":
                self.guard_.stop(fault)
            self.guard_.record(fault, _WENT_BACK)
            warn(DivergenceWarning(f"{fault} {_WENT_BACK}", fault))
            return
        if is_complete and training.latest_batches:
            warn_of_fall(self, training.latest_batches[-1])
        if is_complete:
            self._warn_of_idle_clip(
                training.n_steps, training.n_clipped, training.largest_norm
            )
        if not has_learned:
            raise not_learned_error(reports)
        if self._has_stopped_ or not reports:
            return
        if training.n_steps:
            warn_of_rescue(self, reports, remark)
        elif not is_interrupted:
            raise no_step_error(reports)

    def _prepare_guard(self, *, is_new: bool) -> None:
        """Check the parameters, and create guard, clipper and schedule."""
        check_net_parameters(self)
        guard, clipper, self.schedule_ = guard_parts(self)
        if is_new or not hasattr(self, "guard_"):
            self.guard_ = guard
            self.adaptive_clip_ = clipper
        else:
            self.guard_.on_nonfinite = guard.on_nonfinite
            self.guard_.max_recoveries = guard.max_recoveries
            if self.lr != self._guarded_lr_:  # reductions were those of another rate
                self.guard_.lr_scale = 1.0
        self._guarded_lr_: Any = self.lr
        self._training_ = None
        self._prepare_average()

    def _prepare_average(self) -> None:
        modules = self._all_modules()
        if self.ema_decay is None or self._has_lazy_layers():
            self._average_ = None
        elif self._average_ is None:
            self._average_ = WeightAverage(modules)
        else:
            self._average_ = self._average_.bind(modules)

    def _all_modules(self) -> list[torch.nn.Module]:
        names = [*self._modules, *self._criteria]
        modules = [getattr(self, f"{name}_") for name in names]
        return [m for m in modules if isinstance(m, torch.nn.Module)]

    def _all_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = [getattr(self, f"{name}_") for name in self._optimizers]
        # The user is responsible for objects that only act as an optimizer.
        return [o for o in optimizers if isinstance(o, torch.optim.Optimizer)]

    def _warn_of_idle_clip(self, *clipping: Any) -> None:
        warn_of_idle_clip(self, *clipping)

    def __getstate__(self) -> dict[str, Any]:
        # skorch pickles tensors into bytes, to move them between devices when they are
        # loaded. The plain pickler that it uses cannot pickle a module of the user's
        # script or notebook; the caller's pickler, such as cloudpickle, can.
        for module in self._all_modules() if self.initialized_ else ():
            make_picklable(module)
            refuse_unpicklable(original_of(module))
        prefixes = tuple({*self.cuda_dependent_attributes_, "_average_"})
        tensors = {k: v for k, v in vars(self).items() if k.startswith(prefixes)}
        others = {k: v for k, v in vars(self).items() if k not in tensors}
        rest: GuardMixin = object.__new__(type(self))
        rest.__dict__.update(others, cuda_dependent_attributes_=[])
        state = super(GuardMixin, rest).__getstate__()
        state["cuda_dependent_attributes_"] = list(prefixes)
        if self.device == "cpu":
            state |= tensors
        else:
            state["__cuda_dependent_attributes__"] = cloudpickle.dumps(tensors)
        state["_training_"] = None
        state.pop("_batches_done_", None)
        state["_is_untrained_"] = False  # versions of weights are not pickled
        # A module or criterion that was passed as an instance is trained itself. It is
        # pickled once.
        for name in [*self._modules, *self._criteria]:
            if state.get(name) is getattr(self, f"{name}_", self):
                state[name] = None
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name in [*self._modules, *self._criteria]:
            if getattr(self, name, self) is None:
                setattr(self, name, getattr(self, f"{name}_", None))
        for name in self._optimizers:
            complete_copy(getattr(self, f"{name}_", None))
