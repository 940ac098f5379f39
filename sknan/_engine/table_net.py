"""Guarded net of an estimator: training on whole tables and prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import ClassifierTags, RegressorTags
from skorch.callbacks import EpochTimer, PrintLog
from skorch.callbacks.scoring import ScoringBase
from skorch.history import History
from skorch.utils import is_dataset
from torch import Tensor

from sknan._engine.fitted_network import (
    VALUES_PER_FORWARD,
    FittedNetwork,
    NetworkOutput,
    width_of,
)
from sknan._engine.prediction import ColumnScaling, UserRows, regression_score
from sknan._utils.compiled import original_of
from sknan._utils.outside import is_orderly_stop
from sknan._utils.settings import usual_settings
from sknan.losses._traits import traits_of
from sknan.nets._batching import TensorBatches, TensorTable
from sknan.nets._guarded_step import GuardedTraining
from sknan.nets._nets import GuardedNet
from sknan.nets._training_state import clipper_state, put_clipper_state

# Entries of a batch that the net itself writes into the history.
_BATCH_SIZES = {"train_batch_size", "valid_batch_size"}

# Default of the estimators' parameter clip_norm.
_DEFAULT_CLIP_NORM = 1.0


class TableNet(NetworkOutput, GuardedNet):
    """Guarded net that is trained on whole tables and logs epochs instead of batches.

    Targets may be pairs (y, weight). The loss of a batch is then the weighted sum of
    the losses of its rows, divided by the number of rows. Since weights average 1 over
    the training data, this is the weighted mean in expectation, and exactly so if one
    batch contains all rows.
    """

    _is_versioned: ClassVar[bool] = False  # the estimator that holds it is
    column_names_: Sequence[Any] | None = None

    # Parameters of the estimator, in place of or besides those of the net, that a
    # resumed training must have too.
    estimator_params_: Mapping[str, Any] = MappingProxyType({})

    # Conversion of X, if columns are in raw units.
    scaling_: ColumnScaling | None = None

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        callbacks: list[tuple[str, Any]] = [("epoch_timer", EpochTimer())]
        if self.verbose >= 2:
            callbacks.append(("print_log", PrintLog()))
        return callbacks

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.coding_.classes is None:
            tags.estimator_type, tags.regressor_tags = "regressor", RegressorTags()
        else:
            tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        return tags

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Call a method of the net and of its callbacks; parameters as in skorch.

        The callbacks receive the rows of an epoch in the units of the user. An epoch
        after which one of them ends the training is also complete for the others, so
        that it may be the best epoch.
        """
        stop: KeyboardInterrupt | None = None
        getattr(self, method_name)(self, **kwargs)
        for name in kwargs.keys() & {"dataset_train", "dataset_valid"}:
            if isinstance(kwargs[name], TensorTable):
                kwargs[name] = self._user_rows(kwargs[name])
        for _, callback in self.callbacks_:
            given = kwargs
            if isinstance(callback, ScoringBase) and "batch" in kwargs:
                rows = self._user_rows(TensorTable(*kwargs["batch"]))
                given = {**kwargs, "batch": (rows.X, rows.y)}
            try:
                getattr(callback, method_name)(self, **given)
            except KeyboardInterrupt as interrupt:
                if method_name != "on_epoch_end" or not is_orderly_stop(interrupt):
                    raise
                stop = stop or interrupt
        if stop is not None:
            raise stop

    def _user_rows(self, table: TensorTable) -> UserRows:
        return UserRows(table, self.coding_, self.scaling_)

    def _condition_raw_columns(self, training: GuardedTraining) -> None:
        """Do nothing: the estimator has standardized the columns."""

    def _warn_of_idle_clip(self, *clipping: Any) -> None:
        # A default that has no effect needs no warning.
        if self.clip_norm != _DEFAULT_CLIP_NORM:
            super()._warn_of_idle_clip(*clipping)

    def get_params_for_optimizer(self, prefix: str, named_parameters: Any) -> Any:
        """Return the arguments of an optimizer; parameters as in skorch."""
        named = list(named_parameters)
        args, kwargs = super().get_params_for_optimizer(prefix, named)
        if any(p.is_complex() for _, p in named):  # torch has no fused kernel for them
            kwargs.pop("fused", None)
        return args, kwargs

    def partial_fit(self, X: Any, *args: Any, **kwargs: Any) -> Any:
        """Train on the table of the estimator; other data are refused."""
        if not isinstance(X, TensorTable):
            raise NotImplementedError(
                "The net_ of a fitted estimator predicts, but is not trained. To train "
                "its network, call partial_fit of the estimator, or fit with "
                "warm_start=True."
            )
        return super().partial_fit(X, *args, **kwargs)

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return a data set of the rows, with ``X`` as the network receives it."""
        return super().get_dataset(X if is_dataset(X) else self._network_rows(X), y)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if not isinstance(dataset, TensorTable):
            return super().get_iterator(dataset, training=training)
        if training:
            return TensorBatches(
                dataset, self.batch_size, shuffle=True, merge_lone_row=True
            )
        first_row = dataset.rows(slice(0, 1))[0]
        return TensorBatches(dataset, rows_per_evaluation(self.batch_size, first_row))

    def get_loss(self, y_pred: Any, y_true: Any, *_: Any, **__: Any) -> Tensor:
        target, weight = y_true if isinstance(y_true, tuple) else (y_true, None)
        if weight is not None and not traits_of(self.criterion_).is_per_row:
            whole: Tensor = self.criterion_(y_pred, target, weight)
            return whole
        loss: Tensor = self.criterion_(y_pred, target)
        if weight is None:
            return loss
        per_row: Tensor = loss.flatten(1).mean(dim=1) if loss.ndim > 1 else loss
        weighted: Tensor = (per_row * weight).mean()
        return weighted

    def _log_batch(self, prefix: str, loss: float, rows: int) -> None:
        """Log the number of rows, by which scores of batches are averaged."""
        self.history.record_batch(f"{prefix}_batch_size", rows)

    def _log_epoch(self, prefix: str, mean_loss: float) -> None:
        name = f"{prefix}_loss"
        self.history.record(f"{name}_best", is_best(self.history, name, mean_loss))
        self.history.record(name, mean_loss)
        batches = self.history[-1, "batches"]
        # The history is pickled with the net. A callback may have written to it.
        if all(batch.keys() <= _BATCH_SIZES for batch in batches):
            batches[:] = [{}]  # skorch's Checkpoint reads the last batch

    def __getstate__(self) -> dict[str, Any]:
        # During a training, the split is a closure that holds the training rows.
        return {**super().__getstate__(), "train_split": None}

    # -- the fitted network ----------------------------------------------------------

    def fitted(self, *, keeps_moments: bool = False) -> FittedNetwork:
        """Return what is needed of a trained net, without copies.

        ``keeps_moments`` says whether to keep the state of optimizer, average and
        adaptive clipping.
        """
        guard = self.guard_
        rest: dict[str, Any] = {
            "lr": self.lr,
            "lr_scale": guard.lr_scale,
            "largest_loss": guard.largest_loss,
            "conditioning": self._conditioning_,
        }
        if keeps_moments:
            rest["optimizer"] = type(self.optimizer_).__name__
            rest["moments"] = self.optimizer_.state_dict()["state"]
            rest["clipper"] = clipper_state(self.adaptive_clip_)
            if self._average_ is not None:
                rest["average"] = dict(self._average_.state.state_dict())
        return FittedNetwork(
            self.module_,
            original_of(self.criterion_),  # compiled anew to continue the training
            batch_size=self.batch_size,
            device=self.device,
            on_nonfinite=self.on_nonfinite,
            flops_per_row_=self.flops_per_row_,
            column_names_=self.column_names_,
            history=self.history.to_list(),
            reports=guard.reports,
            rest=rest,
            _output_range_=self._output_range_,
        )

    def resume(self, fitted: FittedNetwork, callbacks: Sequence[Any]) -> None:
        """Initialize the net with a trained network.

        Parameters
        ----------
        fitted : FittedNetwork
            Network whose module and criterion are those of the net.
        callbacks : sequence
            Callbacks of an earlier training, which are not initialized again.
        """
        self.initialize()
        self.callbacks = list(callbacks)
        given = [c[1] if isinstance(c, tuple) else c for c in callbacks]
        self.callbacks_ = []
        for name, callback in self._uniquely_named_callbacks():
            if not any(callback is known for known in given):
                callback = callback() if isinstance(callback, type) else callback
                callback.initialize()
            self.callbacks_.append((name, callback))
        rest = fitted.rest
        self.history_ = History(fitted.history)
        self.flops_per_row_ = fitted.flops_per_row_
        self._output_range_ = fitted._output_range_
        self._conditioning_ = rest["conditioning"]
        self._is_untrained_ = False
        self._prepare_guard(is_new=True)
        if self.lr == rest["lr"]:
            self.guard_.lr_scale = rest["lr_scale"]
        self.guard_.largest_loss = rest["largest_loss"]
        self.guard_.reports = list(fitted.reports)
        if rest.get("optimizer") == type(self.optimizer_).__name__:
            state = {**self.optimizer_.state_dict(), "state": rest["moments"]}
            self.optimizer_.load_state_dict(state)
            put_clipper_state(self.adaptive_clip_, rest["clipper"])
        if self._average_ is not None and "average" in rest:
            self._average_.state.load_state_dict(rest["average"])
        else:
            self._average_ = None

    # -- predictions -----------------------------------------------------------------

    @property
    def classes_(self) -> np.ndarray:
        """Labels of the classes."""
        if self.coding_.classes is None:
            raise AttributeError("A regressor has no classes_.")
        classes: np.ndarray = self.coding_.classes
        return classes

    @usual_settings(any_dtype=True)
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, as the estimator does."""
        output = self._output_of(X)
        result: np.ndarray = self.coding_.probabilities(self.criterion_, output)
        return result

    @usual_settings(any_dtype=True)
    def predict(self, X: Any) -> np.ndarray:
        """Return labels, or numbers in the units of ``y``, as the estimator does."""
        output = self._output_of(X)
        result: np.ndarray = self.coding_.predict(self.criterion_, output)
        return result

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy of a classifier, or the score of a regressor."""
        predicted = self.predict(X)
        if self.coding_.classes is None:
            return regression_score(self.criterion_, y, predicted)
        return float(accuracy_score(y, predicted))

    def _is_in_training(self) -> bool:
        # A stack trains nets without a GuardedTraining of their own.
        return super()._is_in_training() or self._is_untrained_

    def _check_trained_output(self, X: Any, batches: Any = None) -> None:
        """Do nothing: the estimator checks the output of its fitted net."""

    def _output_of(self, X: Any) -> Tensor:
        if not hasattr(self, "module_"):
            raise NotFittedError(
                "A clone of net_ is not fitted, and cannot be fitted by itself. Clone "
                "and fit the estimator, whose net_ then predicts."
            )
        X = X if isinstance(X, Tensor) else getattr(X, "X", X)
        return self.finite_output(self._network_rows(X).to(self.device))

    def _network_rows(self, X: Any) -> Tensor:
        """Return rows in the units of the user as the network receives them."""
        if self.scaling_ is not None:
            X = self.scaling_.scaled(np.asarray(X))
        rows = torch.as_tensor(X if isinstance(X, Tensor) else np.asarray(X))
        return rows.to(torch.float32)


def rows_per_evaluation(batch_size: int, X: Any) -> int:
    """Return how many held-out rows are evaluated at once."""
    return max(batch_size, VALUES_PER_FORWARD // width_of(X))


def is_best(history: list[dict[str, Any]], name: str, value: float) -> bool:
    """Whether a loss is lower than in all earlier epochs, as skorch records it."""
    key = f"{name}_best"
    # An epoch that was interrupted may lack one of the two entries.
    rows = (row for row in reversed(history) if row.get(key) and name in row)
    best = next((row[name] for row in rows), math.inf)
    return bool(value < best)
