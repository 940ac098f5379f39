"""Split of the rows of a table into training and validation rows."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from sknan.estimators._labels import label_combinations


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
    partition : int, default=0
        Number of this partition, counted from 0.
    """

    number: int
    n_folds: int
    seed: int
    partition: int = 0

    @property
    def member(self) -> int:
        """Number of the network that holds out this fold."""
        return self.partition * self.n_folds + self.number

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


class UserSplits(NamedTuple):
    """Splits of the rows that the user passed, by a splitter or as pairs of indices.

    Parameters
    ----------
    splitter : object
        Value of the parameter ``validation_split``.
    X, y, groups : object
        Rows as the user passed them; ``groups`` may be None.
    numbers : ndarray of int
        Numbers of the rows that are trained on, in ascending order.
    """

    splitter: Any
    X: Any
    y: Any
    groups: Any
    numbers: np.ndarray

    def choose(self, seed: int, member: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Return the training and validation rows of one split.

        Parameters
        ----------
        seed : int
            Seed of a splitter without a ``random_state``.
        member : int or None
            Number of the network of an ensemble, each of which takes the next split.
            None takes the last split if each trains on rows before those that it
            validates on, as in a time series; else the first.
        """
        splits = [self._checked(pair) for pair in self._splits(seed)]
        if not splits:
            raise ValueError("validation_split gives no split of the rows.")
        if member is not None:
            return splits[member % len(splits)]
        follows_time = all(train.max() < valid.min() for train, valid in splits)
        return splits[-1 if follows_time else 0]

    def _splits(self, seed: int) -> list[Any]:
        splitter = self.splitter
        if not hasattr(splitter, "split"):
            return list(splitter)
        if getattr(splitter, "random_state", seed) is None:
            splitter = copy.copy(splitter)
            splitter.random_state = seed
        try:
            return list(splitter.split(self.X, self.y, self.groups))
        except Exception as error:
            error.add_note(
                f"while splitting the rows by validation_split={self.splitter!r}"
            )
            raise

    def _checked(self, pair: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions of the rows of a pair among those that are trained on.

        Rows that do not count, because their weight is 0, are left out.
        """
        n_rows = len(self.y)
        parts = []
        for rows in pair:
            is_chosen, chosen = np.zeros(n_rows, dtype=bool), np.asarray(rows)
            try:
                is_chosen[chosen if chosen.size else []] = True
            except IndexError as error:
                raise ValueError(
                    "validation_split must contain row numbers of X, which has "
                    f"{n_rows} rows: {error}."
                ) from error
            parts.append(is_chosen)
        train, valid = parts
        n_common = int((train & valid).sum())
        if n_common:
            raise ValueError(
                f"validation_split has {n_common} of {n_rows} rows in both parts of a "
                "split. A row that is trained on cannot be held out."
            )
        found = np.flatnonzero(train[self.numbers]), np.flatnonzero(valid[self.numbers])
        if not all(map(len, found)):
            weighted = " of positive weight" if len(self.numbers) < n_rows else ""
            raise ValueError(
                f"validation_split gives a split with {len(found[0])} training rows "
                f"and {len(found[1])} validation rows{weighted}. Both parts need rows."
            )
        return found


@dataclass(frozen=True)
class HoldOut:
    """Choice of the rows that are held out of a training.

    Parameters
    ----------
    validation_fraction : float
        Fraction of the rows to hold out, if there is no fold.
    is_classification : bool
        Whether to hold out the same fraction of each class where that is possible.
    splits : UserSplits or None, default=None
        Splits that the user has chosen.
    groups : ndarray of int of shape (n_samples,) or None, default=None
        Numbers of the groups of rows, from 0, which are held out as a whole.
    n_valid : int, default=0
        Number of rows at the end of the table that the user passed for validation,
        instead of rows to hold out.
    fold : ValidationFold or None, default=None
        Fold to hold out.
    """

    validation_fraction: float
    is_classification: bool
    splits: UserSplits | None = None
    groups: np.ndarray | None = None
    n_valid: int = 0
    fold: ValidationFold | None = None

    @property
    def is_random(self) -> bool:
        """Whether each row may be held out, whatever the others are."""
        return not self.n_valid and self.splits is None and self.groups is None

    def of_part(self) -> HoldOut:
        """Return a random choice for a part of the rows, which has other numbers."""
        return HoldOut(self.validation_fraction, self.is_classification)

    def with_fold(self, fold: ValidationFold | None) -> HoldOut:
        """Return the choice for one of several networks; None for a single one."""
        return dataclasses.replace(self, fold=fold)

    def split(self, y: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Return the numbers of the training and of the validation rows.

        Raises
        ------
        ValueError
            If no row would be left for training.
        """
        rows, fold = np.arange(len(y)), self.fold
        y = label_combinations(y) if self.is_classification else y
        if self.n_valid:
            train, valid = rows[: -self.n_valid], rows[-self.n_valid :]
        elif self.splits is not None:
            seed = seed if fold is None else fold.seed
            member = None if fold is None else fold.member
            train, valid = self.splits.choose(seed, member)
        elif self.groups is not None:
            is_valid = self._is_in_fold_of_groups(self.groups, y, seed)
            train, valid = rows[~is_valid], rows[is_valid]
        elif fold is not None and len(y) >= fold.n_folds:
            train, valid = fold.split(len(y), y if self.is_classification else None)
        else:
            train, valid = self._at_random(y, seed)
        return torch.from_numpy(train), torch.from_numpy(valid)

    def _at_random(self, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        n_rows = len(y)
        n_valid = math.ceil(self.validation_fraction * n_rows)
        if n_valid >= n_rows:
            raise ValueError(
                f"validation_fraction={self.validation_fraction!r} holds out {n_valid} "
                f"of {n_rows} rows, which leaves none to train on. Lower it, or set "
                "early_stopping=False."
            )
        stratify = None
        if self.is_classification:
            counts = np.unique(y, return_counts=True)[1]
            fits = min(n_valid, n_rows - n_valid) >= len(counts)
            stratify = y if counts.min() >= 2 and fits else None
        train, valid = train_test_split(
            np.arange(n_rows), test_size=n_valid, random_state=seed, stratify=stratify
        )
        return np.sort(train), np.sort(valid)

    def _is_in_fold_of_groups(
        self, groups: np.ndarray, y: np.ndarray, seed: int
    ) -> np.ndarray:
        n_groups = int(groups.max()) + 1
        if n_groups < 2:
            raise ValueError(
                "groups contains one group only, but a whole group is to be held out. "
                "Pass X_val and y_val, or set early_stopping=False and a number for lr."
            )
        fold = self.fold
        if fold is None:
            fold = ValidationFold(0, max(2, round(1 / self.validation_fraction)), seed)
        classes = np.zeros(len(y), dtype=np.int64)
        if self.is_classification:
            classes = np.unique(y, return_inverse=True)[1]
        n_folds = min(fold.n_folds, n_groups)
        folds = folds_of_groups(groups, classes, n_folds, fold.seed)
        is_in_fold: np.ndarray = folds[groups] == fold.number % n_folds
        return is_in_fold


def folds_of_groups(
    groups: np.ndarray, classes: np.ndarray, n_folds: int, seed: int
) -> np.ndarray:
    """Distribute groups over folds of similar size and similar shares of the classes.

    Each group, from the largest to the smallest, is put into the fold that has the
    fewest rows so far, in total and of the classes of the group.

    Parameters
    ----------
    groups : ndarray of int of shape (n_rows,)
        Number of the group of each row, from 0.
    classes : ndarray of int of shape (n_rows,)
        Class of each row.
    n_folds : int
        Number of folds, at most that of the groups. No fold is empty.
    seed : int
        Seed of the order of groups of one size.

    Returns
    -------
    ndarray of int of shape (n_groups,)
        Fold of each group.
    """
    rng = np.random.RandomState(seed)
    n_groups, n_classes = groups.max() + 1, classes.max() + 1
    cells = np.bincount(groups * n_classes + classes, minlength=n_groups * n_classes)
    by_class = cells.reshape(n_groups, n_classes)
    counts = np.column_stack([by_class, by_class.sum(axis=1)])
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    order = rng.permutation(n_groups)
    filled = np.zeros((n_folds, counts.shape[1]))
    folds = np.empty(n_groups, dtype=np.int64)
    for group in order[np.argsort(-counts[order, -1], kind="stable")]:
        folds[group] = fold = (filled @ shares[group]).argmin()
        filled[fold] += counts[group]
    shuffled: np.ndarray = rng.permutation(n_folds)[folds]
    return shuffled


def is_chunks(validation_split: Any) -> bool:
    """Whether whole chunks are to be held out."""
    return isinstance(validation_split, str) and validation_split == "chunks"


def groups_of_chunks(chunk: np.ndarray | None, groups: np.ndarray | None) -> np.ndarray:
    """Return the chunk of each row as its group, or refuse a table without chunks.

    ``chunk`` is None for a table in memory, ``groups`` what the user passed.
    """
    what = "validation_split='chunks' holds out whole chunks"
    if groups is not None:
        raise ValueError(f"{what}, but groups were passed, too. Pass one of the two.")
    if chunk is None:
        raise ValueError(
            f"{what}, but X is a table in memory. Pass iter_chunks(X, y) of "
            "sknan.preprocessing."
        )
    if chunk[-1] < 1:
        raise ValueError(
            f"{what}, but X has one chunk of {len(chunk)} rows. Pass a smaller "
            "chunk_size to iter_chunks: about a tenth of the rows."
        )
    return chunk


def is_splitter(value: Any) -> bool:
    """Whether ``value`` is a splitter of scikit-learn, or pairs of row numbers."""
    if hasattr(value, "split") and not isinstance(value, str):
        return not isinstance(value, type)
    return isinstance(value, Sequence) and all(
        isinstance(pair, Iterable) and len(list(pair)) == 2 for pair in value
    )
