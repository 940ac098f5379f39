"""Construction of the guarded net of an estimator from its parameters."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from sknan._engine.table_net import TableNet
from sknan.estimators._column_scaling import numeric_columns
from sknan.estimators._components import (
    resolve_criterion,
    resolve_device,
    resolve_module,
    resolve_optimizer,
)
from sknan.estimators._parameters import (
    PrefixedParamsMixin,
    automatic_batch_size,
    is_auto,
)
from sknan.losses._traits import LossTraits, traits_of

# Parameters that a net which continues training takes over from the estimator.
_UPDATED_PARAMS = (
    "max_epochs",
    "verbose",
    "on_nonfinite",
    "max_recoveries",
    "clip_norm",
    "clip_value",
    "adaptive_clip",
    "lr_schedule",
    "warmup",
    "ema_decay",
)


class NetBuildingMixin(PrefixedParamsMixin):
    """Module, criterion, optimizer and net of an estimator."""

    _task: ClassVar[str]

    def rows_per_batch(self, n_rows: int) -> int:
        """Return the batch size for a table of ``n_rows`` rows.

        Parameters
        ----------
        n_rows : int
            Number of rows of the table, including validation rows.

        Returns
        -------
        int
            ``batch_size``, or the automatic choice for ``batch_size="auto"``.
        """
        is_set = not is_auto(self.batch_size)
        return int(self.batch_size) if is_set else automatic_batch_size(n_rows)

    @property
    def _loss_traits(self) -> LossTraits:
        return traits_of(self._build_criterion(per_row=False))

    def _build_criterion(self, *, per_row: bool) -> nn.Module:
        return resolve_criterion(
            self.criterion,
            self._params_for("criterion"),
            task=self._task,
            per_row=per_row,
            owner=type(self).__name__,
        )

    def _build_net(self, X: np.ndarray, n_outputs: int, *, per_row: bool) -> TableNet:
        """Return a new, initialized net for these features."""
        owner = type(self).__name__
        module, module_params = self._module_for(X, n_outputs)
        if "lr" in self._params_for("optimizer"):
            raise ValueError(
                f"{owner} got optimizer__lr: the learning rate is its parameter lr."
            )
        optimizer, optimizer_params = resolve_optimizer(
            self.optimizer, self._params_for("optimizer"), self.weight_decay, owner
        )
        net = TableNet(
            module,
            self._build_criterion(per_row=per_row),
            optimizer=optimizer,
            lr=self.lr_,
            batch_size=self.rows_per_batch(len(X)),
            train_split=None,
            use_caching=False,  # scores are those of the weights at an epoch's end
            callbacks=list(self.callbacks or ()),
            compile=self.compile,
            warm_start=True,  # the estimator decides when to start from scratch
            device=resolve_device(self.device),
            **{name: getattr(self, name) for name in _UPDATED_PARAMS},
            **{f"module__{name}": value for name, value in module_params.items()},
            **{f"optimizer__{name}": v for name, v in optimizer_params.items()},
            **{f"compile__{k}": v for k, v in self._params_for("compile").items()},
        )
        net.initialize()
        default = torch.get_default_dtype()
        if default != torch.float32:  # in which torch.Tensor(n) creates parameters
            net.module_._apply(lambda t: t.float() if t.dtype == default else t)
        return net

    def _module_for(self, X: np.ndarray, n_outputs: int) -> tuple[Any, dict[str, Any]]:
        """Return the module or its factory, and the arguments of the factory."""
        sizes, owner = self._sizes(X, n_outputs), type(self).__name__
        return resolve_module(self.module, self._params_for("module"), sizes, owner)

    def _sizes(self, X: np.ndarray, n_outputs: int) -> dict[str, Any]:
        """Return the arguments that are added if the module's constructor has them."""
        sizes: dict[str, Any] = {"n_features_in": X.shape[1], "n_outputs": n_outputs}
        if self._params_for("module").get("n_frequencies"):
            sizes["numeric_columns"] = numeric_columns(X)
        return sizes

    def _update_net(self, *, per_row: bool) -> TableNet:
        """Return the fitted net with the current values of changeable parameters."""
        net: TableNet = self.net_
        net._is_untrained_ = False
        changes = {name: getattr(self, name) for name in _UPDATED_PARAMS}
        if not is_auto(self.batch_size):
            changes["batch_size"] = self.batch_size
        if self.lr_ != net.lr:
            changes["lr"] = self.lr_
        net.set_params(**changes)
        criterion = self._build_criterion(per_row=per_row)
        if hasattr(criterion, "reduction"):
            net.criterion_.reduction = criterion.reduction
        return net
