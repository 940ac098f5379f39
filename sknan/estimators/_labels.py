"""Validation, encoding and weighting of class labels."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse
from sklearn.utils.class_weight import compute_class_weight

from sknan._utils.validation import (
    FLOAT64_MAX,
    check_finite,
    column_name,
    drop_rows,
    is_number,
    is_one_of,
)
from sknan.exceptions import NonFiniteDataError
from sknan.preprocessing._tables.plain_cells import plain_cells
from sknan.preprocessing._tables.typed_column import is_polars


def label_array(y: Any) -> Any:
    """Return labels with NaN for masked ones, and integers of pandas as integers."""
    if isinstance(y, np.ma.MaskedArray) or is_polars(y):
        return np.asarray(plain_cells(y))
    if isinstance(y, (list, tuple)):
        are_text = {isinstance(label, str) for label in y}
        if len(are_text) == 2:
            return plain_cells(y)  # NumPy makes text of NaN among text
    # scikit-learn converts nullable integers to float64, which rounds large ones.
    is_pandas = isinstance(
        y, (pd.Series, pd.DataFrame, pd.api.extensions.ExtensionArray)
    )
    return np.asarray(y) if is_pandas else y


def refuse_other_types(labels: np.ndarray, name: str) -> None:
    """Raise ``ValueError`` for labels that are dates, decimals or beyond 64 bits.

    Numbers in an array of objects are refused, too, as by scikit-learn's metrics.
    """
    row = 0
    if labels.dtype.kind == "f":
        row = int(np.abs(labels).argmax())
        is_refused = bool(np.abs(labels[row]) >= 2.0**63)
    else:
        is_text = isinstance(labels[0], (str, bytes))
        is_refused = labels.dtype.kind in "OMm" and not is_text
    if not is_refused:
        return
    kind, remedy = type(labels[row]).__name__, f"[str(label) for label in {name}]"
    # pandas 2 tries to convert integers beyond float64.
    with contextlib.suppress(OverflowError):
        if pd.Series(labels).infer_objects().dtype.kind in "biu":
            kind = f"{kind} in an array of objects"
            remedy = f"pandas.Series({name}).infer_objects()"
    raise ValueError(
        f"Unknown label type: {name} contains labels of type {kind}, first "
        f"{labels[row]} at row {row}. Labels must be text, or booleans or integers of "
        f"at most 64 bits: convert them, for example by {remedy}."
    )


def refuse_unusable_labels(labels: np.ndarray, name: str, remedy: str) -> None:
    """Raise an error if a label is missing or not finite, or if they have no order.

    ``remedy`` is the last sentence of the message about missing labels.

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
            row = int(np.argwhere(missing)[0, 0])
            raise NonFiniteDataError(
                f"{name} contains {int(missing.sum())} missing labels (None, NaN or "
                f"NaT), first at row {row}. {remedy}"
            )
    if labels.dtype.kind != "O":
        return
    kinds = sorted(
        {"str" if isinstance(k, str) else type(k).__name__ for k in labels.flat}
    )
    if "str" in kinds and len(kinds) > 1:
        raise ValueError(
            f"{name} contains labels of several types: {', '.join(kinds)}. Convert "
            f"them to one type, for example by {name}.astype(str)."
        )


def labels_per_row(
    y: Any, owner: str, name: str = "y", remedy: str = ""
) -> np.ndarray | None:
    """Return targets of several columns as 0 and 1, or None if there is one column.

    Parameters
    ----------
    y : array-like, sparse matrix or DataFrame
        Targets.
    owner : str
        Class name of the estimator, for messages.
    name : str, default="y"
        Name of the targets in messages.
    remedy : str, default=""
        Last sentence of the message about missing labels, if not about training.

    Returns
    -------
    ndarray of int64 of shape (n_samples, n_labels) or None

    Raises
    ------
    NonFiniteDataError
        If a value is missing or not finite.
    ValueError
        If there are other values than 0 and 1.
    """
    names = getattr(y, "columns", None)
    try:
        values = np.asarray(plain_cells(y.toarray() if issparse(y) else y))
    except ValueError as error:  # rows of different lengths
        error.add_note("Convert sets of labels by sklearn's MultiLabelBinarizer first.")
        raise
    if values.ndim != 2 or values.shape[1] < 2:
        return None
    refuse_unusable_labels(values, name, remedy or drop_rows(name))
    is_other = (values != 0) & (values != 1)
    if is_other.any():
        row, column = np.argwhere(is_other)[0]
        raise ValueError(
            f"{name} has {values.shape[1]} columns, each for a label that a row has "
            f"(1) or not (0), but it contains {values[row, column].item()!r} at row "
            f"{row} of column {column_name(column, names)}. For several targets of any "
            f"classes use sklearn.multioutput.MultiOutputClassifier({owner}())."
        )
    labels: np.ndarray = values.astype(np.int64)
    return labels


def label_combinations(codes: np.ndarray) -> np.ndarray:
    """Return one class code per row: that of its combination of labels.

    Combinations that occur once share a code, so that rows can be stratified by it.
    """
    if codes.ndim == 1:
        return codes
    _, combination, counts = np.unique(
        codes, axis=0, return_inverse=True, return_counts=True
    )
    code: np.ndarray = np.where(counts[combination] > 1, combination, -1)
    return code


def encode_labels(
    labels: np.ndarray, classes: np.ndarray, name: str = "y"
) -> np.ndarray:
    """Return the position of each label in ``classes``, which are sorted.

    Raises
    ------
    ValueError
        If a label is not one of the classes.
    """
    codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    if (classes[codes] != labels).any():
        unknown = np.unique(labels[classes[codes] != labels])
        raise ValueError(
            f"{name} contains labels that are not among the classes "
            f"{list_labels(classes)}: {list_labels(unknown)}."
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
    if not _is_by_class(class_weight):
        rule = "a dict of numbers, 'balanced' or None"
        _refuse_class_weight(class_weight, owner, rule)
    _refuse_partly_balanced(class_weight, is_partial)
    by_class, codes = _class_weights(class_weight, labels, weights)
    combined: np.ndarray = by_class[codes]
    if weights is not None:
        combined = weights * combined
    if not combined.any():
        raise ValueError(
            "class_weight gives every row the weight 0. At least one row needs a "
            "positive weight."
        )
    return combined


def label_weights(
    class_weight: Any,
    labels: np.ndarray,
    weights: np.ndarray | None,
    owner: str,
    is_partial: bool,
) -> np.ndarray:
    """Return the weights of absent and present labels, 1 on average.

    Parameters
    ----------
    class_weight : dict, list of dict, or "balanced"
        Weights of 0 and 1: for all labels, or one dict for each label, as in the
        forests of scikit-learn.
    labels : ndarray of int of shape (n_samples, n_labels)
        Labels of the rows, 0 and 1.
    weights, owner, is_partial
        See :func:`apply_class_weight`.

    Returns
    -------
    ndarray of shape (2, n_labels), float32

    Raises
    ------
    ValueError
        If ``class_weight`` is invalid, or all weights are zero.
    """
    n_labels = labels.shape[1]
    each = class_weight if isinstance(class_weight, list) else [class_weight] * n_labels
    if not all(map(_is_by_class, each)) or len(each) != n_labels:
        rule = f"a dict of numbers, a list of {n_labels} dicts, 'balanced' or None"
        _refuse_class_weight(class_weight, owner, rule)
    for of_label in each:
        _refuse_partly_balanced(of_label, is_partial)
    present = np.average(labels, axis=0, weights=weights)
    by_class = np.transpose(
        [_label_weight(*pair) for pair in zip(each, present, strict=True)]
    )
    _check_class_weights(by_class, np.arange(2)[:, None])
    mean = np.average(
        by_class[labels, np.arange(n_labels)].mean(axis=1), weights=weights
    )
    if mean == 0.0:
        raise ValueError(
            "class_weight gives every label the weight 0. At least one label needs a "
            "positive weight."
        )
    scaled: np.ndarray = (by_class / mean).astype(np.float32)
    return scaled


def _is_balanced(class_weight: Any) -> bool:
    return is_one_of(class_weight, ("balanced",))


def _is_by_class(class_weight: Any) -> bool:
    if isinstance(class_weight, dict):
        return all(map(is_number, class_weight.values()))
    return _is_balanced(class_weight)


def _label_weight(class_weight: Any, present: float) -> list[float]:
    """Return the weights of 0 and 1 for a label with this mean."""
    if _is_balanced(class_weight):
        shares = [1.0 - present, present]
        n_classes = sum(share > 0.0 for share in shares)
        return [1.0 / (n_classes * share) if share else 1.0 for share in shares]
    unknown = list(class_weight.keys() - {0, 1})
    if unknown:
        raise ValueError(
            f"class_weight has the key {unknown[0]!r}, but the classes of each label "
            "are 0 and 1. Pass a list of dicts for different weights of the labels."
        )
    return [class_weight.get(0, 1.0), class_weight.get(1, 1.0)]


def _class_weights(
    class_weight: Any, labels: np.ndarray, weights: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight of each class that occurs, and the class code of each row."""
    classes, codes = np.unique(labels, return_inverse=True)
    by_class: np.ndarray = compute_class_weight(
        class_weight, classes=classes, y=labels, sample_weight=weights
    )
    _check_class_weights(by_class, classes)
    return by_class, codes


def _check_class_weights(by_class: np.ndarray, classes: np.ndarray) -> None:
    check_finite(
        by_class, name="class_weight", remedy="Give each class a finite weight."
    )
    if (by_class < 0).any():
        worst = list_labels(np.broadcast_to(classes, by_class.shape)[by_class < 0])
        raise ValueError(f"class_weight must not be negative, but is for {worst}.")


def _refuse_class_weight(class_weight: Any, owner: str, rule: str) -> None:
    raise ValueError(
        f"The 'class_weight' parameter of {owner} must be {rule}, got {class_weight!r}."
    )


def _refuse_partly_balanced(class_weight: Any, is_partial: bool) -> None:
    if is_partial and _is_balanced(class_weight):
        raise ValueError(
            "class_weight='balanced' needs all labels at once, but partial_fit gets "
            "them in parts. Pass the weights as a dict."
        )
