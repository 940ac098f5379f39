"""Mixin that repairs and checks the outputs of a skorch net."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from skorch import NeuralNet, NeuralNetRegressor
from skorch.dataset import get_len, unpack_data
from torch import Tensor
from torch.utils.data import IterableDataset

from sknan._utils.outside import is_of_environment, is_of_signal, unless
from sknan._utils.random_state import (
    generator_states,
    kept_random_states,
    set_generator_states,
)
from sknan._utils.settings import usual_settings
from sknan._utils.tree import tree_leaves
from sknan._utils.warn import warn
from sknan.diagnosis._culprits import sliced, without_rows
from sknan.diagnosis._raised import ValueErrors
from sknan.exceptions import DivergenceWarning, NonFiniteTrainingError
from sknan.losses._traits import is_own_loss
from sknan.nets._batching import TensorBatches
from sknan.nets._chain import FAR_FROM_OVERFLOW, output_bound
from sknan.nets._data import refuse_nonfinite_data
from sknan.nets.recovery.explain_output import explain_output, in_data
from sknan.nets.recovery.output_repair import (
    OutputRange,
    OutputRepair,
    outputs_by_row,
    predicted_part,
)
from sknan.nets.recovery.validation_loss import loss_of_sound_rows

# At run time the next base class is a skorch net.
_SkorchNet: Any = object

# Number of training batches that are evaluated together after a training. Without a
# graph for gradients, they need less memory than one batch of a network of some layers.
_BATCHES_AT_ONCE = 4

# The repair of the present call, which goes through several batches.
_repair: ContextVar[OutputRepair | None] = ContextVar("repair", default=None)


class OutputMixin(_SkorchNet):
    """Validation and prediction of a skorch net, without non-finite outputs."""

    on_nonfinite: str
    # Whether only the first output counts.
    _has_plain_output: ClassVar[bool] = False
    _output_range_: OutputRange | None = None
    # Whether this is so because the loss is finite whatever the others are.
    _counts_only_first_: bool = False

    @property
    def _may_rule_out_classes(self) -> bool:
        """Whether minus infinity may be the logit of a class that is ruled out."""
        return not (self._has_plain_output or isinstance(self, NeuralNetRegressor))

    def _is_in_training(self) -> bool:
        """Whether a training runs, whose callbacks may predict."""
        return getattr(self, "_training_", None) is not None

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Compute the loss of a validation batch; parameters as in skorch.

        Under ``on_nonfinite="recover"`` rows are repaired as in a prediction. Rows that
        a check in the loss refuses are left out, and those that cannot be repaired,
        with one warning.
        """
        inputs, target = unpack_data(batch)
        step: dict[str, Any] = {}
        with ValueErrors() as caught:
            step = super().validation_step(batch, **fit_params)
            outputs = step["y_pred"]
        if caught.error is not None:
            outputs = self._outputs_without_error(inputs, **fit_params)
        repaired, refused = outputs, []
        if self.on_nonfinite == "recover":
            repair = OutputRepair(self)
            repaired, refused = repair.add(inputs, outputs), repair.refused
        is_accepted = step and not (refused and not torch.isfinite(step["loss"]).all())
        if repaired is outputs and is_accepted:
            return step
        data, n_rows = ((inputs, repaired), target), get_len(inputs)
        if 0 < len(refused) < n_rows:
            self._warn_of_validation(inputs, len(refused))
            data = without_rows(data, tuple(refused), n_rows)
        (inputs, rest), target = data
        loss = loss_of_sound_rows(self, inputs, rest, target)
        return {"loss": loss, "y_pred": repaired}

    def _warn_of_validation(self, inputs: Any, n_bad: int) -> None:
        """Warn once in a training of validation rows whose output is not finite."""
        training = getattr(self, "_training_", None)
        if training is None or training.has_warned_of_validation:
            return
        training.has_warned_of_validation = True
        of = f"{n_bad} of {get_len(inputs)} rows of a validation batch"
        report = explain_output(self, inputs, f"The output is not finite for {of}")
        batches = training.valid_batches
        if isinstance(batches, TensorBatches) and batches.latest is not None:
            report = in_data(report, batches.latest, batches.dataset.columns)
        these = "this row" if n_bad == 1 else "these rows"
        message = f"{report} The validation loss leaves out {these}."
        warn(DivergenceWarning(message, report))

    def _outputs_without_error(self, inputs: Any, **fit_params: Any) -> Any:
        """Return the outputs of a batch, NaN for the rows for which the net raises."""
        with torch.no_grad():
            try:
                return self.infer(inputs, **fit_params)
            except unless(is_of_signal, Exception) as error:
                return outputs_by_row(self, inputs, error)

    @usual_settings(any_dtype=True)
    def evaluation_step(self, batch: Any, training: bool = False) -> Any:
        """Compute the output for one batch; parameters as in skorch.

        Under ``on_nonfinite="recover"`` a row whose output is not finite although its
        input is, is computed again with each operation kept inside its domain. A
        warning names the operation and the rows.
        """
        inputs, _ = unpack_data(batch)
        try:
            outputs = super().evaluation_step(batch, training=training)
        except unless(is_of_signal, Exception) as error:
            outputs = outputs_by_row(self, inputs, error)
        if training:
            return outputs
        repair = _repair.get()
        if repair is not None and repair.net is self:
            return repair.add(inputs, outputs)
        repair = OutputRepair(self)
        outputs = repair.add(inputs, outputs)
        self._warn_of_repair(repair)
        return outputs

    def _warn_of_repair(self, repair: OutputRepair) -> None:
        if not self._is_in_training():  # at its end, training reports what is left
            repair.warn()

    def forward_iter(
        self, X: Any, training: bool = False, device: str = "cpu"
    ) -> Iterator[Any]:
        """Yield the outputs of batches; parameters as in skorch."""
        batches = super().forward_iter(X, training=training, device=device)
        given = _repair.get()
        is_given = given is not None and given.net is self
        repair = given if is_given and given is not None else OutputRepair(self)
        while True:
            # The variable is not set while the caller runs.
            token = _repair.set(repair)
            try:
                outputs = next(batches)
            except StopIteration:
                break
            finally:
                _repair.reset(token)
            yield outputs
        if not is_given:
            self._warn_of_repair(repair)

    def _get_predict_nonlinearity(self) -> Callable[[Any], Any]:
        return partial(_in_numpy_dtype, super()._get_predict_nonlinearity())

    @usual_settings(any_dtype=True)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the output of the module, as probabilities if the criterion is known.

        Parameters
        ----------
        X : array-like, Tensor, dict, list or Dataset
            Inputs, as in skorch.

        Returns
        -------
        ndarray

        Raises
        ------
        NonFiniteDataError
            If an output is NaN or infinite and ``X`` is not finite.
        NonFiniteTrainingError
            If an output is NaN or infinite although ``X`` is finite.

        Warns
        -----
        UserWarning
            If rows were repaired; see :meth:`evaluation_step`.
        """
        repair = OutputRepair(self, only_first=True)
        token = _repair.set(repair)
        try:
            output: np.ndarray = super().predict_proba(X)
        finally:
            _repair.reset(token)
        n_bad = 0
        if not np.isfinite(output).all():
            values = torch.from_numpy(output)
            n_bad = int((~repair.are_sound(values, torch.isfinite(values))).sum())
        if n_bad:
            refuse_nonfinite_data("X", X)
            if not repair.n_rows:  # a scoring callback has stored the outputs
                self._evaluate(self._batches_of(X), repair)
            raise repair.error(n_bad)
        self._warn_of_repair(repair)
        return output

    def _check_trained_output(self, X: Any, batches: Any = None) -> None:
        """Evaluate the training rows after a training, unless no value can overflow.

        If no step has failed, the first part of a tuple counts, with which skorch
        predicts, and a loss of the user may accept outputs that are not finite. ``X``
        is evaluated if training was rescued or the output for a batch is bad. A stream
        of rows is never read again.

        Raises
        ------
        NonFiniteTrainingError
            If the output is not finite for all rows, or a row cannot be repaired.
        """
        if _is_stream(X) or _is_stream(batches):
            return
        is_rescued = bool(self.guard_.reports)
        if isinstance(batches, TensorBatches):
            if not is_rescued and self._is_bounded(batches.dataset.X):
                return
            n_rows = _BATCHES_AT_ONCE * batches.batch_size
            batches = TensorBatches(batches.dataset, n_rows)
        repair = OutputRepair(self, only_first=True)
        try:
            with unchanged_states(self, batches):
                if not is_rescued:
                    self._evaluate(batches or (), repair)
                    if not repair.has_bad_rows or self._does_loss_accept(batches):
                        return
                self._counts_only_first_ = self._does_loss_leave_out_others(batches)
                repair = OutputRepair(self, learns_range=True)
                self._evaluate(self._batches_of(X), repair)
        except NonFiniteTrainingError:
            raise
        except unless(is_of_environment, Exception):
            self._warn_of_error(X)
            return
        repair.conclude_training()

    def _warn_of_error(self, X: Any) -> None:
        """Warn that a prediction for the training rows raises an error of the user.

        Two modules with a step of the user's own need have no output.
        """
        if self._own_step() is not None:
            return
        batches = self._batches_of(X)
        try:
            with unchanged_states(self, batches):
                self._evaluate(batches, OutputRepair(self, only_first=True))
        except unless(is_of_environment, Exception) as error:
            message = (str(error).splitlines() or [""])[0].rstrip(".")
            warn(
                "After training, a prediction for the training rows raises "
                f"{type(error).__name__}: {message}. Look for what the module does in "
                "evaluation mode only."
            )

    def _is_bounded(self, X: Any) -> bool:
        """Whether the weights alone show that no output overflows."""
        is_own = getattr(self.infer, "__func__", None) is not NeuralNet.infer
        if is_own or not isinstance(X, Tensor) or not X.is_floating_point():
            return False
        weights = [p.dtype for p in self.module_.parameters()]
        is_wide = {X.dtype, *weights} <= {torch.float32, torch.float64}
        return is_wide and output_bound(self.module_, X) < FAR_FROM_OVERFLOW

    def _does_loss_leave_out_others(self, batches: Any) -> bool:
        """Whether the loss is finite for rows whose outputs after the first are not.

        They are not used then, or right as they are, as minus infinity is in a mask.
        """
        for batch in batches or ():
            inputs, target = unpack_data(batch)
            self._set_training(False)
            outputs, n_rows = self._outputs_without_error(inputs), get_len(inputs)
            bad, bad_first = (
                OutputRepair(self, only_first=only_first).bad_rows(outputs, n_rows)
                for only_first in (False, True)
            )
            rows = torch.tensor(sorted({*bad} - {*bad_first}))
            if len(rows):
                parts = [sliced(x, rows, n_rows) for x in (outputs, target, inputs)]
                loss = self.get_loss(*parts[:2], X=parts[2], training=False)
                return bool(torch.isfinite(loss).all())
        return False

    def _does_loss_accept(self, batches: Any) -> bool:
        """Whether a loss of the user is finite with outputs that are not.

        NaN may mark what the loss leaves out. Without any finite output, a training
        has failed.
        """
        owners = [b for b in type(self).__mro__ if "get_loss" in vars(b)]
        modules = [part.__module__ for part in (self.get_loss, *owners)]
        is_ours = all(name.startswith(("skorch.", "sknan.")) for name in modules)
        if is_ours and not is_own_loss(self.criterion_):
            return False
        is_any_finite = False
        for batch in batches:
            try:
                step = super().validation_step(batch)
            except unless(is_of_environment, Exception):
                return False
            if not torch.isfinite(step["loss"]).all():
                return False
            leaves = tree_leaves(predicted_part(step["y_pred"]))
            is_any_finite |= any(bool(leaf.isfinite().any()) for leaf in leaves)
        return is_any_finite

    def _batches_of(self, X: Any) -> Any:
        return self.get_iterator(self.get_dataset(X), training=False)

    def _evaluate(self, batches: Any, repair: OutputRepair) -> None:
        token = _repair.set(repair)
        try:
            for batch in batches:
                self.evaluation_step(batch)
        finally:
            _repair.reset(token)


def _in_numpy_dtype(function: Callable[[Any], Any], output: Any) -> Any:
    """Return the value of a function in a dtype that NumPy has: not bfloat16."""
    is_bfloat16 = getattr(output, "dtype", None) is torch.bfloat16
    return function(output.float() if is_bfloat16 else output)


def _is_stream(rows: Any) -> bool:
    """Whether a data set, or that of batches, is a stream of rows."""
    return isinstance(getattr(rows, "dataset", rows), IterableDataset)


@contextlib.contextmanager
def unchanged_states(net: Any, batches: Any) -> Iterator[None]:
    """Restore random streams and the modes of the net's modules after the block."""
    parts = [part for module in net._all_modules() for part in module.modules()]
    modes = [part.training for part in parts]
    # The user's data set may draw from the streams of Python and numpy.
    numbers = generator_states()
    generator = getattr(batches, "generator", None)  # of a data loader
    state = None if generator is None else generator.get_state()
    try:
        with kept_random_states(net.device):
            yield
    finally:
        set_generator_states(numbers)
        if generator is not None:
            generator.set_state(state)
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
