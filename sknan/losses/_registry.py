"""Losses by the names that estimators accept, and by the form of their gradient."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from sknan._utils.validation import did_you_mean, meant_by_word
from sknan.losses import _classification, _multiplicative, _regression, _similarity
from sknan.losses._base import Loss

ClosedForm = Literal["cross_entropy", "binary_cross_entropy", "squared_error"]

_FAMILIES = (_classification, _regression, _multiplicative, _similarity)


def _losses_by_name(task: str) -> dict[str, type[Any]]:
    """Return the losses for a task by each of their names, in order of definition."""
    return {
        name: kind
        for family in _FAMILIES
        for kind in vars(family).values()
        if isinstance(kind, type)
        and issubclass(kind, Loss)
        and kind.traits.task == task
        for name in kind.traits.names
    }


# Words in the names that other libraries give to a loss, the more special ones first.
_WORDS = {
    "pinball": "quantile",
    "quantile": "quantile",
    "pseudohuber": "pseudo_huber",
    "huber": "huber",
    "smoothl1": "huber",
    "cosh": "log_cosh",
    "focal": "focal",
    "kullback": "kl_div",
    "kld": "kl_div",
    "symmetric": "smape",
    "smape": "smape",
    "mape": "mape",
    "percentage": "mape",
    "msle": "msle",
    "squaredlog": "msle",
    "logarithmic": "msle",
    "rmse": "rmse",
    "rootmean": "rmse",
    "l2root": "rmse",
    "gaussian": "gaussian_nll",
    "poisson": "poisson",
    "gamma": "gamma",
    "tweedie": "tweedie",
    "cosine": "cosine",
    "correlation": "correlation",
    "pearson": "correlation",
    "probability": "probability_nll",
    "nll": "nll",
    "bce": "binary_cross_entropy",
    "binary": "binary_cross_entropy",
    "logistic": "binary_cross_entropy",
    "entropy": "cross_entropy",
    "logloss": "cross_entropy",
    "softmax": "cross_entropy",
    "softprob": "cross_entropy",
    "multi": "cross_entropy",
    "categorical": "cross_entropy",
    "deviance": "cross_entropy",
    "absolute": "mae",
    "mae": "mae",
    "lad": "mae",
    "l1": "mae",
    "square": "mse",
    "mse": "mse",
    "l2": "mse",
    "regression": "mse",
}

CLASSIFICATION_LOSSES: dict[str, type[Any]] = _losses_by_name("classification")
REGRESSION_LOSSES: dict[str, type[Any]] = _losses_by_name("regression")


def get_criterion(name: str) -> type[Any]:
    """Return the loss class of a name.

    Parameters
    ----------
    name : str
        A key of ``CLASSIFICATION_LOSSES`` or ``REGRESSION_LOSSES``.

    Returns
    -------
    type
        Subclass of ``torch.nn.Module``.

    Raises
    ------
    ValueError
        If the name is unknown. The message lists the known names.
    """
    known = CLASSIFICATION_LOSSES | REGRESSION_LOSSES
    if name not in known:
        hint = meant_by_word(name, _WORDS) or did_you_mean(name, known)
        listed = ", ".join(repr(key) for key in known)
        raise ValueError(f"Unknown criterion {name!r}.{hint} Known criteria: {listed}.")
    return known[name]


def closed_form_of(criterion: Any) -> ClosedForm | None:
    """Return the formula of a criterion that is a plain mean over the batch.

    It is None for any other class, a subclass, or an option that changes the formula.
    """
    is_mean = getattr(criterion, "reduction", None) == "mean"
    return plain_form_of(criterion) if is_mean else None


def plain_form_of(criterion: Any) -> ClosedForm | None:
    """Return the formula of a criterion as `closed_form_of`, for any reduction."""
    kind = type(criterion)
    if kind in (_regression.MSELoss, nn.MSELoss):
        return "squared_error"
    if kind in (_classification.BCEWithLogitsLoss, nn.BCEWithLogitsLoss):
        is_plain = criterion.weight is None and criterion.pos_weight is None
        return "binary_cross_entropy" if is_plain else None
    if kind not in (_classification.CrossEntropyLoss, nn.CrossEntropyLoss):
        return None
    is_plain = (
        criterion.weight is None
        and criterion.ignore_index == -100
        and criterion.label_smoothing == 0.0
    )
    return "cross_entropy" if is_plain else None
