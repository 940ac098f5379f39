"""Numbers that a regressor is trained on: validation and standardization."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_array
from torch import Tensor, nn

from sknan._engine.plan import TrainingRows
from sknan._engine.table_net import TableNet
from sknan._utils.compiled import original_of
from sknan._utils.outliers import without_outliers
from sknan._utils.validation import FLOAT32_MAX, FLOAT64_MAX, check_finite, drop_rows
from sknan.estimators._base import StableNetBase
from sknan.estimators._column_scaling import check_targets
from sknan.estimators._target_scaling import (
    NumberCoding,
    joint_moments,
    mean_and_scale,
    prediction_dtype,
    standardize,
)
from sknan.losses._bounded import BoundedLoss, unbounded
from sknan.losses._multiplicative import UnitLoss
from sknan.losses._target_domain import refuse_outside_domain
from sknan.losses._traits import is_own_loss, predictions
from sknan.nets._batching import TensorTable
from sknan.nets._data import LEAVE_OUT, is_loss_finite
from sknan.nets._parameters import name_of
from sknan.nets._tabular_mlp import TabularMLP
from sknan.preprocessing._tables.plain_cells import name_unfit_cell, plain_cells

# Rows of ``partial_fit`` whose targets together give mean and scale. The standard error
# of the standard deviation of 100 normal numbers is 7 %.
_ROWS_OF_UNITS = 100


class NumberTargetMixin(StableNetBase):
    """Network whose targets are numbers.

    Where the loss allows it, they are standardized, or else scaled, for training.
    """

    _task: ClassVar[str] = "regression"
    target_mean_: np.ndarray
    target_scale_: np.ndarray
    _constants: np.ndarray
    _target_shape: tuple[int, ...]
    _n_targets_seen: int

    def _validate_target(self, y: Any, name: str = "y") -> np.ndarray:
        """Return the targets as float64, or as float32 if they are float32."""
        remedy = "Pass numbers, or labels to StableNetClassifier."
        with name_unfit_cell(name, y, type(self).__name__, remedy):
            values: np.ndarray = check_array(
                plain_cells(y),
                ensure_2d=False,
                dtype=(np.float64, np.float32),
                # Checked below, since scikit-learn does not name the row.
                ensure_all_finite=False,
                input_name=name,
                estimator=self,
            )
        known = values
        if is_own_loss(self.criterion):  # see _table for missing targets
            known = np.where(np.isnan(values), 0.0, values)
        check_finite(known, name=name, remedy=drop_rows(name), limit=FLOAT64_MAX)
        if not self._loss_traits.standardizes_target:
            # The loss may compute with the values themselves, in float32.
            check_finite(
                known,
                name=name,
                remedy=(
                    "Divide y by a constant, or use criterion='mse', which "
                    "standardizes y."
                ),
                limit=FLOAT32_MAX,
            )
        refuse_outside_domain(
            self._build_criterion(per_row=False), values, name_of(self.criterion)
        )
        return values

    def _encode_target(
        self, y: Any, target: np.ndarray, weights: np.ndarray | None, is_partial: bool
    ) -> tuple[np.ndarray, int]:
        shape, traits = target.shape[1:], self._loss_traits
        # A constant target is predicted exactly, whatever the network has learned.
        is_constant = (target == target[0]).all(axis=0) & (
            not is_own_loss(self.criterion)
        )
        constants = np.where(is_constant, target[0], np.nan)
        if self._continues(is_partial):
            if _n_targets(shape) != _n_targets(self._target_shape):
                raise ValueError(
                    f"y has {_n_targets(shape)} target columns, but the first fit had "
                    f"{_n_targets(self._target_shape)}."
                )
            # A vector may follow a table of one column, or the reverse.
            mean = self.target_mean_.reshape(shape)
            scale = self.target_scale_.reshape(shape)
            constants = np.where(
                constants == self._constants.reshape(shape), constants, np.nan
            )
            is_open = self._is_unit_open.reshape(shape)
            if is_open.any():
                before = mean, scale, self._n_targets_seen
                found = *self._moments_of(target, weights), len(target)
                joint = joint_moments(before, found, scaled=traits.scales_target)
                mean = np.where(is_open, joint[0], mean)
                scale = np.where(is_open, joint[1], scale)
        else:
            self._target_dtype = prediction_dtype(y)
            self._n_targets_seen = 0
            mean, scale = np.zeros(shape), np.ones(shape)
            if self._has_unit:
                mean, scale = self._moments_of(target, weights)
        # A whole fit has learned in the units of its targets.
        n_seen = len(target) if is_partial else max(len(target), _ROWS_OF_UNITS)
        self._n_targets_seen += n_seen
        self._target_shape, self.target_mean_, self.target_scale_ = shape, mean, scale
        self._constants = constants
        n_outputs = _n_targets(shape) * traits.outputs_per_target
        return standardize(target, mean, scale), n_outputs

    def _moments_of(
        self, target: np.ndarray, weights: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers to subtract from the targets and to divide them by."""
        # A bounded loss is chosen because there are outliers.
        if isinstance(self.criterion, BoundedLoss):
            target = without_outliers(target)
        if not self._loss_traits.scales_target:
            return mean_and_scale(target, weights)
        size, _ = mean_and_scale(np.abs(target), weights)
        return np.zeros_like(size), size

    def _build_net(self, rows: TrainingRows, *, per_row: bool) -> TableNet:
        net = super()._build_net(rows, per_row=per_row)
        module = original_of(net.module_)
        is_new = type(module) is TabularMLP and not isinstance(self.module, nn.Module)
        self._set_unit(net)
        loss, zero = unbounded(original_of(net.criterion_)), torch.zeros(1)
        is_value = self._loss_traits.scales_target and predictions(loss, zero) is zero
        if is_value and is_new:
            # Outputs of the wrong sign, or near 0, have little gradient or none.
            median = np.quantile(
                rows.y[: rows.n_train],
                0.5,
                axis=0,
                method="inverted_cdf",
                weights=None if rows.weights is None else rows.weights[: rows.n_train],
            )
            with torch.no_grad():
                module.head.bias.copy_(torch.as_tensor(median))
        return net

    def _continued_net(self, *, per_row: bool) -> TableNet:
        net = super()._continued_net(per_row=per_row)
        self._set_unit(net)
        return net

    def _set_unit(self, net: TableNet) -> None:
        """Tell the unit of the target to a loss that has a constant in it."""
        loss = unbounded(original_of(net.criterion_))
        if isinstance(loss, UnitLoss) and self._loss_traits.scales_target:
            unit = np.where(self.target_scale_ > 0, self.target_scale_, 1.0)
            loss.unit = torch.from_numpy(unit).to(net.device, torch.float32)

    @property
    def _has_unit(self) -> bool:
        """Whether the targets are standardized or scaled for training."""
        traits = self._loss_traits
        return traits.standardizes_target or traits.scales_target

    @property
    def _is_unit_open(self) -> np.ndarray:
        """Whether later calls of ``partial_fit`` change mean and scale of a target."""
        is_open: np.ndarray = (self.target_scale_ == 0) | (
            self._has_unit & (self._n_targets_seen < _ROWS_OF_UNITS)
        )
        return is_open

    def _refuse_outlying_targets(
        self, target: np.ndarray, numbers: np.ndarray, *, is_new: bool
    ) -> None:
        if isinstance(self.criterion, BoundedLoss):
            return
        kept, shape = None, target.shape[1:]
        is_kept = not is_new and self._has_unit and not self._is_unit_open.any()
        if is_kept and _n_targets(shape) == _n_targets(self._target_shape):
            kept = self.target_mean_.reshape(shape), self.target_scale_.reshape(shape)
        check_targets(target, numbers, kept, is_new=is_new)

    def _table(self, net: TableNet, rows: TrainingRows) -> TensorTable:
        """Return the rows; refuse missing targets that the criterion does not mask."""
        table = super()._table(net, rows)
        missing = np.isnan(rows.y.reshape(len(rows.y), -1)).any(axis=1)
        if missing.any() and not is_loss_finite(net, table, missing):
            for name, part in (
                ("y", slice(rows.n_train)),
                ("y_val", slice(rows.n_train, None)),
            ):
                in_data = np.zeros((rows.numbers.max() + 1, *rows.y.shape[1:]))
                in_data[rows.numbers[part]] = rows.y[part]
                remedy = f"{drop_rows(name)} {LEAVE_OUT}"
                check_finite(in_data, name=name, remedy=remedy)
        return table

    def _as_target(self, y: Any, name: str = "y") -> np.ndarray:
        values = self._validate_target(y, name)
        n_targets = _n_targets(self._target_shape)
        if _n_targets(values.shape[1:]) != n_targets:
            raise ValueError(
                f"{name} has {_n_targets(values.shape[1:])} target columns, but the "
                f"training data have {n_targets}."
            )
        values = values.reshape(-1, *self._target_shape)
        return standardize(values, self.target_mean_, self.target_scale_)

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        found = tuple(output.shape)
        n_targets = _n_targets(y.shape[1:])
        n_outputs = n_targets * self._loss_traits.outputs_per_target
        if (found[1:] or (1,)) != (n_outputs,):
            raise ValueError(
                f"The module's output has shape {found}, but y has {n_targets} target "
                f"column{'s' if n_targets > 1 else ''}: ({found[0]}, {n_outputs}) is "
                "needed. Let the module's constructor take n_outputs, and it is filled "
                "in."
            )
        # (n,) against (n, 1) would broadcast to (n, n) inside the loss.
        shape = (-1, n_targets) if len(found) == 2 else (-1,)
        return torch.from_numpy(y).reshape(shape)

    @property
    def _needs_network(self) -> bool:
        return bool(np.isnan(self._constants).any())

    @property
    def _coding(self) -> NumberCoding:
        # Of a single target they are numbers.
        mean, scale = np.asarray(self.target_mean_), np.asarray(self.target_scale_)
        is_constant = ~np.isnan(self._constants)
        if is_constant.any():
            mean = np.where(is_constant, self._constants, mean)
            scale = np.where(is_constant, 0.0, scale)
        return NumberCoding(mean, scale, self._target_shape, self._target_dtype)


def _n_targets(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1
