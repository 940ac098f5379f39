"""Construction of the guarded net of an estimator from its parameters."""

from __future__ import annotations

import re
from textwrap import shorten
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from sknan._engine.fitted_network import FittedNetwork
from sknan._engine.plan import TrainingRows
from sknan._engine.table_net import TableNet
from sknan._utils.compiled import original_of
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
    automatic_epochs,
    is_auto,
)
from sknan.losses._traits import LossTraits, traits_of

# Parameters that net and estimator have in common.
_NET_PARAMS = (
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
    _params_of_fitted: dict[str, str]

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

    def most_epochs(self, n_rows: int) -> int:
        """Return the maximum number of epochs for a table of ``n_rows`` rows.

        Parameters
        ----------
        n_rows : int
            Number of rows of the table, including validation rows.

        Returns
        -------
        int
            ``max_epochs``, or the automatic choice for ``max_epochs="auto"``.
        """
        is_set = not is_auto(self.max_epochs)
        return int(self.max_epochs) if is_set else automatic_epochs(n_rows)

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

    def _new_net(
        self,
        module: Any,
        module_params: dict[str, Any],
        criterion: nn.Module,
        batch_size: int,
        device: str,
    ) -> TableNet:
        """Return a net with these parts and no callbacks, which is not initialized."""
        owner = type(self).__name__
        if "lr" in self._params_for("optimizer"):
            raise ValueError(
                f"{owner} got optimizer__lr: the learning rate is its parameter lr."
            )
        optimizer, optimizer_params = resolve_optimizer(
            self.optimizer, self._params_for("optimizer"), self.weight_decay, owner
        )
        return TableNet(
            module,
            criterion,
            optimizer=optimizer,
            lr=self.lr_,
            batch_size=batch_size,
            max_epochs=self.most_epochs(0),  # the plan knows the number of rows
            train_split=None,
            use_caching=False,  # scores are those of the weights at an epoch's end
            compile=self.compile,
            warm_start=True,  # the estimator decides when to start from scratch
            device=device,
            **{name: getattr(self, name) for name in _NET_PARAMS},
            **{f"module__{name}": value for name, value in module_params.items()},
            **{f"optimizer__{name}": v for name, v in optimizer_params.items()},
            **{f"compile__{k}": v for k, v in self._params_for("compile").items()},
        )

    def _build_net(self, rows: TrainingRows, *, per_row: bool) -> TableNet:
        """Return a new, initialized net for these rows."""
        X = rows.X[: rows.n_train]
        net = self._new_net(
            *self._module_for(X, rows.n_outputs),
            self._build_criterion(per_row=per_row),
            self.rows_per_batch(len(X)),
            resolve_device(self.device),
        )
        net.callbacks = list(self.callbacks or ())
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

    def _network_params(self) -> dict[str, str]:
        """Return the parameters that define network and loss, as texts to compare."""
        values = {"module": self.module, "criterion": self.criterion}
        for part in tuple(values):
            params = self._params_for(part)
            values |= {f"{part}__{name}": value for name, value in params.items()}
        return {name: _text_of(value) for name, value in values.items()}

    def _check_same_network(self) -> None:
        """Refuse to continue a training whose network or loss would be another one."""
        before, now = self._params_of_fitted, self._network_params()
        for name in before | now:
            old, new = (texts.get(name, "not set") for texts in (before, now))
            if old != new:
                raise ValueError(
                    f"The parameter {name} was {shorten(old, 60)} in the last training "
                    f"and is {shorten(new, 60)} now, but a continued training keeps "
                    "its network and loss. Restore the parameter, or start anew: call "
                    "fit with warm_start=False."
                )

    def _rebuilt_net(self) -> TableNet:
        """Return a net of the fitted network and the current parameters."""
        fitted: FittedNetwork = self._fitted
        batch_size = fitted.batch_size if is_auto(self.batch_size) else self.batch_size
        module = original_of(fitted.module_)
        net = self._new_net(module, {}, fitted.criterion_, batch_size, fitted.device)
        net.resume(fitted, self.callbacks or ())
        return net

    def _continued_net(self, *, per_row: bool) -> TableNet:
        """Return a net that continues training the fitted network."""
        net = self._rebuilt_net()
        criterion = self._build_criterion(per_row=per_row)
        if hasattr(criterion, "reduction"):
            net.criterion_.reduction = criterion.reduction
        return net


def _text_of(value: Any) -> str:
    """Return a text that is equal for equal parameters, also in another process."""
    value = value.item() if isinstance(value, np.generic) else value
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
