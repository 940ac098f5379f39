"""Training curves and recoveries of a fitted model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sknan._utils.validation import is_number
from sknan.nets._records import GUARD_ENTRIES

# Entries of the history that the net itself records: numbers, and no scores.
NET_ENTRIES = {
    "epoch",
    "dur",
    *GUARD_ENTRIES,
    "train_loss",
    "valid_loss",
    "train_batch_count",
    "valid_batch_count",
}


def steps_of(model: Any) -> list[Any]:
    """Return the steps of a fitted model; of a search, those of the best one."""
    best = getattr(model, "best_estimator_", model)
    return [step for _, step in best.steps] if isinstance(best, Pipeline) else [best]


def last_of(model: Any) -> Any:
    """Return the last step of a model; for a search, that of the best estimator."""
    return steps_of(model)[-1]


def networks_of(model: Any) -> dict[str, Any]:
    """Return the fitted sknan networks at the end of a model, by name.

    The members of an ensemble have names of their own. For a search, the best estimator
    is used.

    Raises
    ------
    NotFittedError
        If the model is not fitted.
    TypeError
        If the model does not end in a network of sknan.
    """
    found = last_of(model)
    # Ensembles of other libraries have no reports.
    is_fitted = hasattr(found, "estimators_")
    if hasattr(found, "n_estimators") and (
        not is_fitted or hasattr(found, "nonfinite_reports_")
    ):
        check_is_fitted(found)
        members = enumerate(found.estimators_, start=1)
        networks = {f"network {i}": network_of(member) for i, member in members}
    else:
        networks = {type(found).__name__: network_of(found)}
    for net in networks.values():
        check_is_fitted(net)
    return networks


def network_of(model: Any) -> Any:
    """Return the sknan network that a model is or ends in, or raise ``TypeError``.

    For a fitted search, the best estimator is used.
    """
    found = last_of(model)
    # Parameters that estimators and nets have in common.
    if not (hasattr(found, "max_recoveries") and hasattr(found, "on_nonfinite")):
        raise TypeError(
            "Expected a StableNet or GuardedNet estimator, or a pipeline or fitted "
            f"search that ends in one, got {type(found).__name__}."
        )
    return found


def skorch_net_of(model: Any) -> Any:
    """Return the fitted skorch net inside a model, as for :func:`network_of`."""
    net = network_of(model)
    check_is_fitted(net)
    return getattr(net, "net_", net)


@dataclass(frozen=True, eq=False)
class TrainingCurves:
    """Curves of one training, with a value for each epoch.

    Parameters
    ----------
    name : str
        Name of the training in a legend.
    train_loss : ndarray of shape (n_epochs,)
        Mean training loss of each epoch; NaN if no step was taken.
    valid_loss : ndarray of shape (n_epochs,) or None, default=None
        Loss on held-out rows.
    score : ndarray of shape (n_epochs,) or None, default=None
        Score from the history, such as the accuracy on held-out rows.
    score_name : str, default="score"
        Key of the score in the history.
    lr : ndarray of shape (n_epochs,) or None, default=None
        Learning rate of the last step, including reductions by the guard.
    grad_norm : ndarray of shape (n_epochs,) or None, default=None
        Median gradient norm of the steps of the epoch, before clipping.
    clip_norm : float or None, default=None
        Largest gradient norm after clipping.
    recoveries : tuple of (int, str), default=()
        Epoch, counted from 1, and cause of each failed step.
    best_epoch : int or None, default=None
        Epoch whose weights early stopping restored.
    """

    name: str
    train_loss: np.ndarray
    valid_loss: np.ndarray | None = None
    score: np.ndarray | None = None
    score_name: str = "score"
    lr: np.ndarray | None = None
    grad_norm: np.ndarray | None = None
    clip_norm: float | None = None
    recoveries: tuple[tuple[int, str], ...] = ()
    best_epoch: int | None = None

    @property
    def epochs(self) -> np.ndarray:
        """Epochs, counted from 1."""
        return np.arange(1, len(self.train_loss) + 1)

    @classmethod
    def of(cls, model: Any, name: str | None = None) -> TrainingCurves:
        """Return the curves of a fitted model.

        Parameters
        ----------
        model : estimator, net, Pipeline or search
            Fitted model. For a search, the best estimator is used.
        name : str or None, default=None
            Name of the training. None uses the name of the class.

        Returns
        -------
        TrainingCurves

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError
            If the model does not end in a network of sknan.
        ValueError
            If no epoch of the history has a loss.
        """
        net, outer = skorch_net_of(model), network_of(model)
        rows = list(net.history)
        train_loss = _values(rows, "train_loss")
        if train_loss is None:
            raise ValueError(
                f"The history of {type(outer).__name__} has no epoch with a "
                "train_loss. Fit the model first."
            )
        score_name = _name_of_score(rows)
        return cls(
            name=type(outer).__name__ if name is None else name,
            train_loss=train_loss,
            valid_loss=_values(rows, "valid_loss"),
            score=None if score_name is None else _values(rows, score_name),
            score_name=score_name or "score",
            lr=_values(rows, "lr"),
            grad_norm=_values(rows, "grad_norm"),
            clip_norm=net.clip_norm,
            recoveries=tuple(
                (min(report.epoch or len(rows), len(rows)), report.cause)
                for report in outer.nonfinite_reports_
            ),
            best_epoch=getattr(outer, "best_epoch_", None),
        )


def _values(rows: list[Any], key: str) -> np.ndarray | None:
    """Return a value per epoch, NaN where it is missing; None if all are missing."""
    values = [row.get(key) for row in rows]
    if not any(map(is_number, values)):
        return None
    return np.array([float(v) if is_number(v) else math.nan for v in values])


def _name_of_score(rows: list[Any]) -> str | None:
    """Return the score that early stopping goes by, or another one in the history."""
    keys = [
        key
        for key, value in rows[-1].items()
        if is_number(value)
        and key not in NET_ENTRIES
        and not key.startswith("event_")
        and not key.endswith("_best")
    ]
    known = [key for key in ("valid_score", "valid_acc") if key in keys]
    return next(iter([*known, *keys]), None)
