"""Guarded versions of skorch's nets.

A skorch user changes one class name. Callbacks, history, ``module__...`` parameters,
``partial_fit``, ``save_params``, data sets, dict inputs and custom iterators behave as
in skorch. :class:`GuardMixin` documents the additional parameters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from skorch import (
    NeuralNet,
    NeuralNetBinaryClassifier,
    NeuralNetClassifier,
    NeuralNetRegressor,
)
from skorch.dataset import ValidSplit
from torch import Tensor

from sknan._utils.warn import warn
from sknan.functional._domain import within
from sknan.nets._mixin import GuardMixin

_LOGITS_TO_NLL = (
    "The module's output is negative in places, but criterion NLLLoss wants "
    "probabilities here (skorch takes their logarithm). If the module returns logits, "
    "use criterion=torch.nn.CrossEntropyLoss; otherwise end it with a softmax."
)


class GuardedNet(GuardMixin, NeuralNet):
    """Guarded version of skorch's ``NeuralNet``; see also :class:`GuardMixin`.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sknan import GuardedNet
    >>> X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
    >>> net = GuardedNet(
    ...     torch.nn.Linear, torch.nn.MSELoss, module__in_features=3,
    ...     module__out_features=1, max_epochs=2, verbose=0,
    ... )
    >>> net.fit(X, X[:, :1]).nonfinite_reports_
    []
    """


class GuardedNetClassifier(GuardMixin, NeuralNetClassifier):
    """Guarded version of skorch's ``NeuralNetClassifier``; see :class:`GuardMixin`."""

    # skorch's classifier and regressor call super() with their class name. If that name
    # is rebound to this class, as when it replaces skorch's in a test suite, the call
    # recurses without end. The methods below copy skorch's and call the base class.

    def _init_net(
        self,
        module: Any,
        *args: Any,
        criterion: Any = torch.nn.NLLLoss,
        train_split: Any = ValidSplit(5, stratified=True),  # noqa: B008 - as skorch
        classes: Any = None,
        **kwargs: Any,
    ) -> None:
        NeuralNet.__init__(
            self, module, *args, criterion=criterion, train_split=train_split, **kwargs
        )
        self.classes = classes

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Any:
        """Initialize and train; parameters as in skorch."""
        return NeuralNet.fit(self, X, y, **fit_params)

    def get_loss(self, y_pred: Any, y_true: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss of a batch; parameters as in skorch.

        skorch's default criterion is ``NLLLoss`` of ``log(y_pred + eps)``, whose input
        are probabilities. Negative logits would give NaN. Here they count as
        probability 0, and a warning says so.
        """
        is_nll = isinstance(self.criterion_, torch.nn.NLLLoss)
        if is_nll and isinstance(y_pred, Tensor):
            is_first = self._training_ is not None and not self._training_.n_steps
            if kwargs.get("training") and is_first and (y_pred < 0).any():
                warn(_LOGITS_TO_NLL)
            y_pred = within(y_pred, 0.0, math.inf)
        loss: Tensor = super().get_loss(y_pred, y_true, *args, **kwargs)
        return loss


class GuardedNetBinaryClassifier(GuardMixin, NeuralNetBinaryClassifier):
    """Guarded ``NeuralNetBinaryClassifier`` of skorch; see :class:`GuardMixin`."""


class GuardedNetRegressor(GuardMixin, NeuralNetRegressor):
    """Guarded version of skorch's ``NeuralNetRegressor``; see :class:`GuardMixin`."""

    def _init_net(
        self, *args: Any, criterion: Any = torch.nn.MSELoss, **kwargs: Any
    ) -> None:
        NeuralNet.__init__(self, *args, criterion=criterion, **kwargs)

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Any:
        """Initialize and train; parameters as in skorch."""
        return NeuralNet.fit(self, X, y, **fit_params)
