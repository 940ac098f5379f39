"""Random split of the rows of a table into training and validation rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor


class ValidationFold(NamedTuple):
    """One of several disjoint validation sets of equal size, drawn at random.

    If each network of an ensemble holds out another fold, every row is used for
    training by most of the networks.

    Parameters
    ----------
    number : int
        Number of this fold, counted from 0.
    n_folds : int
        Number of folds.
    seed : int
        Seed of the random order, the same for all folds of one partition.
    """

    number: int
    n_folds: int
    seed: int

    def split(
        self, n_rows: int, classes: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the row numbers outside and inside the fold, each sorted.

        Parameters
        ----------
        n_rows : int
            Number of rows, at least ``n_folds``. The rows that remain after division
            into folds of equal size are in no fold.
        classes : ndarray of int of shape (n_rows,) or None, default=None
            Class codes. If given, the rows of each class are distributed evenly over
            the folds.

        Returns
        -------
        train, valid : ndarray of int64
        """
        order = np.random.RandomState(self.seed).permutation(n_rows)
        if classes is not None:
            order = order[np.argsort(classes[order], kind="stable")]
        valid = order[self.number :: self.n_folds][: n_rows // self.n_folds]
        is_valid = np.zeros(n_rows, dtype=bool)
        is_valid[valid] = True
        return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def split_rows(
    y: np.ndarray,
    seed: int,
    *,
    validation_fraction: float,
    is_classification: bool,
    fold: ValidationFold | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the training and of the validation rows.

    Parameters
    ----------
    y : ndarray of shape (n_rows,) or (n_rows, n_targets)
        Class codes or targets.
    seed : int
        Seed of the choice, if there is no fold.
    validation_fraction : float
        Fraction of the rows to hold out, if there is no fold.
    is_classification : bool
        Whether to hold out the same fraction of each class where that is possible.
    fold : ValidationFold or None, default=None
        Fold to hold out, used if there are enough rows for one.

    Returns
    -------
    train, valid : Tensor of int64

    Raises
    ------
    ValueError
        If no row would be left for training.
    """
    n_rows = len(y)
    if fold is not None and n_rows >= fold.n_folds:
        train, valid = fold.split(n_rows, y if is_classification else None)
        return torch.from_numpy(train), torch.from_numpy(valid)
    n_valid = math.ceil(validation_fraction * n_rows)
    if n_valid >= n_rows:
        raise ValueError(
            f"validation_fraction={validation_fraction!r} holds out {n_valid} of "
            f"{n_rows} rows, which leaves none to train on. Lower it, or set "
            "early_stopping=False."
        )
    stratify = None
    if is_classification:
        counts = np.unique(y, return_counts=True)[1]
        fits = min(n_valid, n_rows - n_valid) >= len(counts)
        stratify = y if counts.min() >= 2 and fits else None
    train, valid = train_test_split(
        np.arange(n_rows), test_size=n_valid, random_state=seed, stratify=stratify
    )
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(valid))
