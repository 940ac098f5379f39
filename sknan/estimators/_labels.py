"""Validation, encoding and weighting of class labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.class_weight import compute_class_weight

from sknan._utils.validation import FLOAT64_MAX, check_finite
from sknan.exceptions import NonFiniteDataError
from sknan.preprocessing._tables.plain_cells import plain_cells


def label_array(y: Any) -> Any:
    """Return labels with NaN for masked ones, and integers of pandas as integers."""
    if isinstance(y, np.ma.MaskedArray):
        return plain_cells(y)
    # scikit-learn converts nullable integers to float64, which rounds large ones.
    is_pandas = isinstance(
        y, (pd.Series, pd.DataFrame, pd.api.extensions.ExtensionArray)
    )
    return np.asarray(y) if is_pandas else y


def refuse_unusable_labels(labels: np.ndarray, name: str, remedy: str) -> None:
    """Raise an error if a label is missing or not finite, or if they have no order.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Numbers, strings or objects.
    name : str
        Name of the input for the message.
    remedy : str
        Last sentence of the message about missing labels.

    Raises
    ------
    NonFiniteDataError
        If a label is missing or not finite.
    ValueError
        If text and numbers are mixed.
    """
    if labels.dtype.kind == "f":
        check_finite(labels, name=name, remedy=remedy, limit=FLOAT64_MAX)
    elif labels.dtype.kind in "OMm":
        missing = pd.isna(labels)
        if missing.any():
            raise NonFiniteDataError(
                f"{name} contains {int(missing.sum())} missing labels (None, NaN or "
                f"NaT), first at row {int(missing.argmax())}. {remedy}"
            )
    if labels.dtype.kind != "O":
        return
    kinds = sorted({type(label).__name__ for label in labels})
    if "str" in kinds and len(kinds) > 1:
        raise ValueError(
            f"{name} contains labels of several types: {', '.join(kinds)}. Convert "
            f"them to one type, for example by {name}.astype(str)."
        )


def encode_labels(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the position of each label in ``classes``.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Labels of the rows.
    classes : ndarray of shape (n_classes,)
        All classes, sorted.

    Returns
    -------
    ndarray of int64 of shape (n_samples,)

    Raises
    ------
    ValueError
        If a label is not one of the classes.
    """
    codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    if (classes[codes] != labels).any():
        unknown = np.unique(labels[classes[codes] != labels])
        raise ValueError(
            f"y contains labels that are not among the classes {list_labels(classes)}: "
            f"{list_labels(unknown)}."
        )
    return codes


def list_labels(labels: np.ndarray) -> str:
    """Return the first ten labels as text, without the types of NumPy scalars."""
    shown = ", ".join(repr(label) for label in labels[:10].tolist())
    return f"[{shown}{', ...' if len(labels) > 10 else ''}]"


def apply_class_weight(
    class_weight: Any,
    labels: np.ndarray,
    weights: np.ndarray | None,
    owner: str,
    is_partial: bool,
) -> np.ndarray:
    """Return the sample weights multiplied by the weight of each row's class.

    Parameters
    ----------
    class_weight : dict or "balanced"
        Weights of the classes, as in scikit-learn.
    labels : ndarray of shape (n_samples,)
        Labels of the rows.
    weights : ndarray of shape (n_samples,) or None
        Sample weights; None means 1 for each row.
    owner : str
        Class name of the estimator, for messages.
    is_partial : bool
        Whether the rows are those of one call of ``partial_fit``.

    Returns
    -------
    ndarray of shape (n_samples,), float64

    Raises
    ------
    ValueError
        If ``class_weight`` is invalid, or all products are zero.
    """
    if class_weight != "balanced" and not isinstance(class_weight, dict):
        raise ValueError(
            f"The 'class_weight' parameter of {owner} must be a "
            f"dict, 'balanced' or None, got {class_weight!r}."
        )
    if is_partial and class_weight == "balanced":
        raise ValueError(
            "class_weight='balanced' needs all labels at once, but partial_fit gets "
            "them in parts. Pass the weights as a dict."
        )
    classes, codes = np.unique(labels, return_inverse=True)
    by_class: np.ndarray = compute_class_weight(
        class_weight, classes=classes, y=labels, sample_weight=weights
    )
    check_finite(
        by_class, name="class_weight", remedy="Give each class a finite weight."
    )
    if (by_class < 0).any():
        worst = list_labels(classes[by_class < 0])
        raise ValueError(f"class_weight must not be negative, but is for {worst}.")
    combined = by_class[codes] if weights is None else weights * by_class[codes]
    if not combined.any():
        raise ValueError(
            "class_weight gives every row the weight 0. At least one row needs a "
            "positive weight."
        )
    return combined
