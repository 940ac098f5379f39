"""Loop over epochs and batches of a skorch net under guard."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from skorch import NeuralNet
from skorch.dataset import get_len, unpack_data
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from sknan._utils.outside import is_of_environment, unless
from sknan._utils.settings import usual_settings
from sknan._utils.tree import tree_map
from sknan.diagnosis._raised import result_of_trial
from sknan.diagnosis._report import NonFiniteReport
from sknan.losses._base import refuse_other_output
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._data import as_table, check_rows
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._own_step import owner_behind
from sknan.nets._parameters import name_of, noted_options, optimizer_error
from sknan.nets._records import collapse_report, damage_report, record_epoch
from sknan.nets.guard._guard import Guard
from sknan.nets.recovery.collapse import has_collapsed, is_collapsed
from sknan.nets.recovery.rate_trials import RateTrials
from sknan.nets.recovery.restart import start_on_standardized_data
from sknan.optim._learning_rate_schedule import LearningRateSchedule
from sknan.optim._learning_rates import run_search

_LAZY = (
    "The module has lazy layers, such as LazyLinear, whose weights have no shape yet. "
    "Call the module on a batch of inputs before the training."
)

# At run time the next base class is a skorch net.
_SkorchNet: Any = object


class LoopMixin(_SkorchNet):
    """Batches, steps and epochs of a skorch net under guard."""

    guard_: Guard
    schedule_: LearningRateSchedule
    _training_: GuardedTraining | None
    _epoch_loss_: float
    _is_in_own_step_ = False

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return the data set of inputs and targets; parameters as in skorch."""
        check_rows(self, X, y)
        return super().get_dataset(X, y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of a data set; parameters as in skorch.

        Batches of arrays and tensors are slices of whole tensors. A data loader is used
        for workers, samplers, collating and user-defined data sets.
        """
        prefix = "iterator_train" if training else "iterator_valid"
        options = self.get_params_for(prefix)
        is_plain = getattr(self, prefix) is DataLoader and options.keys() <= {
            "batch_size",
            "shuffle",
            "drop_last",
        }
        owner = owner_behind(LoopMixin, type(self), "get_iterator")
        table = as_table(dataset) if is_plain and owner is NeuralNet else None
        batch_size = options.get("batch_size", self.batch_size)
        if table is None or batch_size is None:
            with noted_options(prefix, getattr(self, prefix), options):
                return super().get_iterator(dataset, training=training)
        options.pop("batch_size", None)
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
            if step_fn == self.train_step:
                step_fn = self._guarded_step
        elif (guarded := getattr(self, "_training_", None)) is not None:
            guarded.valid_batches = iterator
            self.guard_.begin_step()
        n_batches, total_loss, total_rows = 0, 0.0, 0
        for n_batches, batch in enumerate(iterator, start=1):
            if training and self._training_ is not None:
                self._training_.batch_number = n_batches
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            was_skipped = step.pop("was_skipped", False)
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not was_skipped:
                loss = step["loss"].item()
                rows = get_len(inputs)
                self._log_batch(prefix, loss, rows)
                total_loss += loss * rows
                total_rows += rows
            self.notify("on_batch_end", batch=batch, training=training, **step)
        self.history.record(f"{prefix}_batch_count", n_batches)
        if n_batches and not total_rows:  # callbacks read the loss of each epoch
            self._log_batch(prefix, math.nan, get_len(inputs))
        mean_loss = total_loss / total_rows if total_rows else math.nan
        self._log_epoch(prefix, mean_loss)
        if training:
            self._epoch_loss_ = mean_loss
            if n_batches:
                self._end_training_epoch(batch, step)
        else:
            self._end_validation_pass()
            self._follow_loss(mean_loss)

    def _end_validation_pass(self) -> None:
        """Restore buffers, such as a running mean, that the pass made non-finite."""
        if getattr(self, "_training_", None) is None:
            return
        if not self.guard_.has_finite_weights():
            self.guard_.restore_buffers(damage_report(self))

    def _log_batch(self, prefix: str, loss: float, rows: int) -> None:
        self.history.record_batch(f"{prefix}_loss", loss)
        self.history.record_batch(f"{prefix}_batch_size", rows)

    def _log_epoch(self, prefix: str, mean_loss: float) -> None:
        """Do nothing: skorch's callbacks average the losses of the batches."""

    def _start_training(self, iterator: Any) -> None:
        """Begin a training with its first epoch, whose length is known."""
        if not hasattr(self, "schedule_"):  # run_single_epoch without fit
            return
        if self._training_ is not None:
            self._training_.begin_epoch(iterator)
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
        self._begin_training(n_steps, iterator)
        if self._backup_ is not None:
            self._backup_.restore_training(self)
        elif self._conditioning_ is None and self._training_ is not None:
            self._condition_raw_columns(self._training_)

    def _condition_raw_columns(self, training: GuardedTraining) -> None:
        start_on_standardized_data(training)

    def _follow_loss(self, loss: float) -> None:
        """Pass the loss of an epoch to the schedule."""
        if hasattr(self, "schedule_"):
            self.schedule_.update(loss)

    def _base_rate(self) -> float:
        """Return ``lr``, or what a callback has replaced it by in the optimizer."""
        groups = [g for o in self._all_optimizers() for g in o.param_groups]
        return float(groups[0]["lr"] if len(groups) == 1 else self.lr)

    def _is_rate_raised(self) -> bool:
        """Whether a scheduler or callback has raised the learning rate above ``lr``."""
        return self._base_rate() > float(self.lr)

    def _rate_factor(self) -> float:
        """Return the factor of ``lr`` at this step, by schedule and guard."""
        return self.guard_.lr_scale * self._schedule_factor()

    def _step_rate(self) -> float:
        """Return the learning rate of this step, by callbacks, schedule and guard."""
        return self._limited_rate(self._schedule_factor())

    def _limited_rate(self, factor: float = 1.0) -> float:
        """Return ``factor`` times the rate by callbacks, within the guard's limits."""
        guard = self.guard_
        rate = self._base_rate() * (guard.lr_scale * factor)
        return min(rate, *guard.rate_caps) if len(guard.rate_caps) == 1 else rate

    def _schedule_factor(self) -> float:
        if self.lr_schedule is None and not self.warmup:
            return 1.0
        training = self._training_
        return self.schedule_.factor(0 if training is None else training.n_steps)

    @usual_settings(any_dtype=True)
    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Take one step, and recover if it fails.

        A ``train_step`` of a subclass is called by the guard, which checks each step of
        an optimizer in it. There ``super().train_step`` is that of skorch.

        Parameters
        ----------
        batch : tuple
            Inputs and targets, as the iterator yields them.
        **fit_params
            Parameters of the module's ``forward``.

        Returns
        -------
        dict
            ``loss`` and ``y_pred``, and ``was_skipped`` = True if no step was taken.
        """
        if self._is_in_own_step_:
            step: dict[str, Any] = super().train_step(batch, **fit_params)
            return step
        return self._guarded_step(batch, **fit_params)

    def _guarded_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        if getattr(self, "_training_", None) is None:
            self._begin_training(None, [batch])
        training: Any = self._training_
        step: dict[str, Any] = training.step(batch, fit_params)
        return step

    def _own_train_step(self) -> Callable[..., dict[str, Any]] | None:
        """Return the user's ``train_step``, or None if it is that of skorch."""
        is_of_subclass = type(self).train_step is not LoopMixin.train_step
        owner = owner_behind(LoopMixin, type(self), "train_step")
        if not is_of_subclass and owner is NeuralNet:
            return None
        method = self.train_step if is_of_subclass else super().train_step

        def train_step(batch: Any, **fit_params: Any) -> dict[str, Any]:
            self._is_in_own_step_ = True
            try:
                step: dict[str, Any] = method(batch, **fit_params)
            finally:
                self._is_in_own_step_ = False
            return step

        return train_step

    def _own_step(self) -> Callable[..., dict[str, Any]] | None:
        """Return ``train_step`` or ``train_step_single`` if one is the user's."""
        is_own = type(self).train_step_single is not NeuralNet.train_step_single
        return self._own_train_step() or (self.train_step_single if is_own else None)

    def _begin_training(self, n_steps: int | None, batches: Any) -> None:
        if not hasattr(self, "guard_"):  # train_step was called without fit
            self._prepare_guard(is_new=True)
        self._initialize_lazy_layers(getattr(batches, "dataset", None))
        self._training_ = GuardedTraining(
            self, batches, n_steps, is_fresh=self._is_fresh_
        )

    def _has_lazy_layers(self) -> bool:
        return any(is_lazy(p) for m in self._all_modules() for p in m.parameters())

    def initialized_instance(self, instance_or_cls: Any, kwargs: Any) -> Any:
        """Create a module or criterion that can be trained; parameters as in skorch."""
        parts = (name for name, value in vars(self).items() if value is instance_or_cls)
        prefix = next(parts, "module")
        with noted_options(prefix, instance_or_cls, kwargs):
            part = super().initialized_instance(instance_or_cls, kwargs)
        if not callable(part):
            raise ValueError(
                f"The {prefix!r} parameter of {type(self).__name__} must return a "
                f"torch.nn.Module or a function, but {name_of(instance_or_cls)} "
                f"returned {part!r}."
            )
        if isinstance(part, torch.nn.Module):
            _prepare_memory(part)
        return part

    def get_loss(self, y_pred: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch; parameters as in skorch."""
        try:
            return super().get_loss(y_pred, *args, **kwargs)
        except (TypeError, RuntimeError, AttributeError) as error:
            kinds = (TypeError, NotImplementedError, AttributeError)
            if isinstance(error, kinds) or re.search("NestedT|Float8", str(error)):
                refuse_other_output(y_pred)
            raise

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizers; parameters as in skorch."""
        try:
            return super().initialize_optimizer(*args, **kwargs)
        except unless(is_of_environment, TypeError, ValueError, RuntimeError) as error:
            if self._has_lazy_layers():  # Adagrad needs the shapes of the weights
                raise ValueError(_LAZY) from error
            if not any(True for m in self._all_modules() for _ in m.parameters()):
                raise ValueError(
                    "The network has nothing to train: it has no parameters."
                ) from error
            raise optimizer_error(self, error) from error

    def _initialize_lazy_layers(self, table: Any) -> None:
        """Give layers such as LazyLinear the shapes that the training data need."""
        if not self._has_lazy_layers():
            return
        if not isinstance(table, TensorTable):
            raise ValueError(_LAZY)
        self._set_training(False)
        row = table.rows(slice(0, 1))[0]
        # The module may raise for the values of a row, as torch.linalg.cholesky does.
        for inputs in (row, tree_map(torch.ones_like, row)):
            with torch.no_grad():
                result_of_trial(partial(self.infer, inputs))
        if self._has_lazy_layers():
            raise ValueError(_LAZY)
        self._prepare_average()

    def _end_training_epoch(self, batch: Any, step: dict[str, Any]) -> None:
        """Propose the weights for a roll back if they are usable, and log the epoch."""
        training = self._training_
        if training is None:
            return
        report = self._find_fault_of_epoch(batch, step)
        if report is None:
            self.guard_.propose_weights()
        else:
            trials = RateTrials(training, batch, {})
            run_search(training.search_answer(report, batch), trials.losses_after)
        record_epoch(self, training)
        training.show_average()

    def _find_fault_of_epoch(
        self, batch: Any, step: dict[str, Any]
    ) -> NonFiniteReport | None:
        """Report what is wrong with the weights at the end of an epoch, if it is."""
        guard, training = self.guard_, self._training_
        if not guard.has_finite_weights():
            return damage_report(self)
        output = step.get("y_pred")
        if training is None or not is_collapsed(unpack_data(batch)[0], output):
            return None
        sample = RateTrials(training, batch, {}).sample
        if not guard.may_go_back or not has_collapsed(self, sample):
            return None
        return collapse_report(self, get_len(output))


def _prepare_memory(module: torch.nn.Module) -> None:
    """Refuse weights without memory of their own, and copy such buffers."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            continue
        where = f"The tensor {name!r} of {type(module).__name__}"
        if tensor.is_meta:
            raise ValueError(
                f"{where} is on the device 'meta' and has no values. Create the module "
                "on another device, or call its to_empty(device='cpu') and set its "
                "values."
            )
        if tensor.is_nested or tensor.layout is not torch.strided:
            layout = "nested" if tensor.is_nested else tensor.layout
            raise ValueError(
                f"{where} has the layout {layout}, whose values are not checked. Call "
                "to_dense() on it, or to_padded_tensor(0.0) if it is nested."
            )
        if tensor.is_floating_point() and tensor.dtype.itemsize == 1:
            raise ValueError(
                f"{where} is of type {tensor.dtype}, in which torch does not compute. "
                "Convert it to a wider type, for example by float()."
            )
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        if not any(size > 1 and stride == 0 for size, stride in sizes):
            continue
        if isinstance(tensor, torch.nn.Parameter):
            raise ValueError(
                f"{where} has several entries in one place of memory, as after "
                "expand(), and cannot be trained. Call clone() on it before "
                "nn.Parameter."
            )
        owner, _, own_name = name.rpartition(".")
        setattr(module.get_submodule(owner), own_name, tensor.clone())
