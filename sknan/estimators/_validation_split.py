"""Which rows are held out of a training: scikit-learn's choice, without its detours.

``train_test_split`` goes through lists of Python integers, which for a narrow table
take more memory than the table, and half as long as an epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["ValidationFold", "held_out"]


class ValidationFold(NamedTuple):
    """One of several parts of equal size that rows are dealt to by lot.

    Networks of an ensemble that each hold out another one leave no row unused.
    """

    number: int
    n_folds: int
    seed: int

    def split(
        self, n_rows: int, classes: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers outside and inside the fold, each sorted.

        Parameters
        ----------
        n_rows : int
            How many there are, at least ``n_folds``. A remainder is in no fold, so that
            all are of one size.
        classes : ndarray of int of shape (n_rows,) or None, default=None
            Codes. The rows of each class are then dealt out in turn.

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


def held_out(
    n_rows: int, n_valid: int, seed: int, classes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Split row numbers as ``train_test_split`` does, each side sorted.

    Parameters
    ----------
    n_rows : int
        How many there are.
    n_valid : int
        How many to hold out, at least 1 and fewer than all.
    seed : int
        Of the choice.
    classes : ndarray of int of shape (n_rows,) or None, default=None
        Codes from 0 on. Each class is then held out in proportion: there must be two
        rows of each, and no fewer rows on either side than classes.

    Returns
    -------
    train, valid : ndarray of int64
        Row numbers.
    """
    rng = np.random.RandomState(seed)
    is_valid = np.zeros(n_rows, dtype=bool)
    if classes is None:
        is_valid[rng.permutation(n_rows)[:n_valid]] = True
    else:
        counts = np.bincount(classes)
        # Narrow integers are sorted in linear time.
        codes = classes.astype(np.min_scalar_type(len(counts)))
        counts = counts[counts > 0]
        by_class = np.argsort(codes, kind="stable")
        n_train = _shares(counts, n_rows - n_valid, rng)
        left = counts - n_train
        ends = np.cumsum(counts)
        for end, count, start, n_held in zip(
            ends, counts, n_train, _shares(left, n_valid, rng), strict=True
        ):
            its_order = rng.permutation(count)[start : start + n_held]
            is_valid[by_class[end - count + its_order]] = True
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def _shares(counts: np.ndarray, n_drawn: int, rng: np.random.RandomState) -> np.ndarray:
    """How many of each class are to be drawn; rounding is settled by lot."""
    exact = counts / counts.sum() * n_drawn
    shares = np.floor(exact)
    n_missing = int(n_drawn - shares.sum())
    rest = exact - shares
    for value in np.unique(rest)[::-1]:
        if n_missing <= 0:
            break
        alike = np.flatnonzero(rest == value)
        chosen = rng.choice(alike, size=min(len(alike), n_missing), replace=False)
        shares[chosen] += 1
        n_missing -= len(chosen)
    whole: np.ndarray = shares.astype(int)
    return whole
