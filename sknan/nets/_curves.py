"""How a training went, read off a fitted model: curves and recoveries."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

__all__ = ["TrainingCurves", "last_of", "network_of", "networks_of", "skorch_net_of"]

# What the history holds beside scores.
_NO_SCORES = {
    "epoch",
    "dur",
    "lr",
    "grad_norm",
    "clip_share",
    "clip_coefficient",
    "n_recoveries",
    "train_loss",
    "valid_loss",
    "train_batch_count",
    "valid_batch_count",
}


def last_of(model: Any) -> Any:
    """What learns at the end of a model: of a search, of the best estimator."""
    found = getattr(model, "best_estimator_", model)
    return found.steps[-1][1] if isinstance(found, Pipeline) else found


def networks_of(model: Any) -> dict[str, Any]:
    """Fitted networks of ours that a model ends in, by name: one, or an ensemble's.

    Parameters
    ----------
    model : estimator, net, ensemble, Pipeline or search
        Fitted; of a search, the best estimator.

    Returns
    -------
    dict of str to network

    Raises
    ------
    NotFittedError
        If it has not been fitted.
    TypeError
        If it is, or ends in, none of ours.
    """
    found = last_of(model)
    # Ensembles of others have no reports, and their members are not ours.
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
    """The network of ours that a model is or ends in.

    Parameters
    ----------
    model : estimator, net, Pipeline or search
        Of a search, the best estimator.

    Returns
    -------
    StableNetClassifier, StableNetRegressor or a skorch net with GuardMixin

    Raises
    ------
    TypeError
        If it is, or ends in, none of ours.
    """
    found = last_of(model)
    # Parameters of both doors.
    if not (hasattr(found, "max_recoveries") and hasattr(found, "on_nonfinite")):
        raise TypeError(
            "Only StableNet and GuardedNet estimators, and pipelines and fitted "
            f"searches that end in one, tell how they were trained, got "
            f"{type(found).__name__}."
        )
    return found


def skorch_net_of(model: Any) -> Any:
    """The fitted skorch net inside a model, with its history.

    Parameters
    ----------
    model : estimator, net, Pipeline or search
        As of :func:`network_of`.

    Returns
    -------
    skorch net with GuardMixin

    Raises
    ------
    NotFittedError
        If it has not been fitted.
    TypeError
        If it is none of ours.
    """
    net = network_of(model)
    check_is_fitted(net)
    return getattr(net, "net_", net)


@dataclass(frozen=True, eq=False)
class TrainingCurves:
    """One training, epoch by epoch.

    Parameters
    ----------
    name : str
        What the training is called in a legend.
    train_loss : ndarray of shape (n_epochs,)
        Mean over the epoch; NaN where no step could be taken.
    valid_loss : ndarray of shape (n_epochs,) or None, default=None
        On held-out rows.
    score : ndarray of shape (n_epochs,) or None, default=None
        Another value of the history, such as the accuracy on held-out rows.
    score_name : str, default="score"
        Its name there.
    lr : ndarray of shape (n_epochs,) or None, default=None
        Learning rate of the last step, reductions by the guard included.
    grad_norm : ndarray of shape (n_epochs,) or None, default=None
        Median norm of the gradients of the epoch's steps, before clipping.
    clip_norm : float or None, default=None
        What the norm is clipped to.
    recoveries : tuple of (int, str), default=()
        Epoch, counted from 1, and cause of each step that failed and was rescued.
    best_epoch : int or None, default=None
        Epoch whose weights were kept by early stopping.
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
        """Those of a fitted model.

        Parameters
        ----------
        model : estimator, net, Pipeline or search
            Fitted; of a search, the best estimator.
        name : str or None, default=None
            None for the name of the class.

        Returns
        -------
        TrainingCurves

        Raises
        ------
        NotFittedError
            If it has not been fitted.
        TypeError
            If it is, or ends in, none of this package's networks.
        ValueError
            If its history has no epoch with a loss.
        """
        net, outer = skorch_net_of(model), network_of(model)
        rows = list(net.history)
        train_loss = _values(rows, "train_loss")
        if train_loss is None:
            raise ValueError(
                f"The history of {type(outer).__name__} holds no epoch with a "
                "train_loss: there is nothing to show. Fit it first."
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


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _values(rows: list[Any], key: str) -> np.ndarray | None:
    """A value of each epoch, NaN where it has none; None where no epoch has."""
    values = [row.get(key) for row in rows]
    if not any(map(_is_number, values)):
        return None
    return np.array([float(v) if _is_number(v) else math.nan for v in values])


def _name_of_score(rows: list[Any]) -> str | None:
    """``valid_acc``, or what else a scoring callback has written down first."""
    keys = [
        key
        for key, value in rows[-1].items()
        if _is_number(value)
        and key not in _NO_SCORES
        and not key.startswith("event_")
        and not key.endswith("_best")
    ]
    return "valid_acc" if "valid_acc" in keys else next(iter(keys), None)
