"""Score with which one column alone predicts the target."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeRegressor

# Score from which a column predicts the target almost alone: R2, or AUC of classes.
_ALMOST_ALONE = 0.99

# Columns whose groups of neighboring values explain less of the target's variance are
# not cross-validated. An AUC of 0.99 explains 0.85 of it for normal classes.
_MAY_PREDICT = 0.5
_N_GROUPS = 32

# Fewer rows per category on average are those of an identifier.
ROWS_PER_CATEGORY = 4


def score_of_column(
    codes: NDArray[np.int64], numbers: NDArray[np.float64] | None, y: NDArray[Any]
) -> str:
    """Return the cross-validated score of one column in words, or "" below 0.99.

    Codes of the values are -1 where missing. Categories have no numbers. Targets are
    floats of a regression, or codes of classes. The result is ``"R2 of 0.998 alone"``,
    for example.
    """
    is_regression = y.dtype.kind == "f"
    if is_regression:
        target = y[:, None] / np.abs(y).max()
    else:
        classes, y = np.unique(y, return_inverse=True)
        target = np.eye(len(classes))[y]
    if numbers is None:
        if codes.max() >= len(codes) / ROWS_PER_CATEGORY:
            return ""
        predicted = _cross_validated(_by_category, codes + 1, target)
    else:
        ranks = stats.rankdata(numbers, nan_policy="omit")
        if _explained_by_groups(ranks, target) < _MAY_PREDICT:
            return ""
        predicted = _cross_validated(_by_tree, ranks, target)
    if is_regression:
        score = 1 - float(((target - predicted) ** 2).sum() / _variation(target))
    else:
        score = roc_auc_score(target, predicted, average="weighted")
    if numbers is not None:
        # The order alone needs no training, for which a fold may be too small.
        known = np.isfinite(numbers)
        score = max(score, _score_of_order(ranks[known], y[known]))
    name = "R2" if is_regression else "AUC"
    return f"{name} of {score:.3f} alone" if score >= _ALMOST_ALONE else ""


def _score_of_order(ranks: NDArray[Any], y: NDArray[Any]) -> float:
    if y.dtype.kind == "f":
        return float(stats.spearmanr(ranks, y).statistic) ** 2
    if len(np.unique(y)) != 2:
        return 0.0
    score = float(roc_auc_score(y, ranks))
    return max(score, 1 - score)


def _cross_validated(predict: Any, values: NDArray[Any], target: NDArray[Any]) -> Any:
    predicted = np.empty_like(target)
    for fold in (0, 1):
        is_test = np.arange(len(values)) % 2 == fold
        train, test = values[~is_test], values[is_test]
        predicted[is_test] = predict(train, target[~is_test], test)
    return predicted


def _by_tree(train: NDArray[Any], target: NDArray[Any], test: NDArray[Any]) -> Any:
    tree = DecisionTreeRegressor(min_samples_leaf=3, random_state=0)
    return (
        tree.fit(train[:, None], target).predict(test[:, None]).reshape(len(test), -1)
    )


def _by_category(train: NDArray[Any], target: NDArray[Any], test: NDArray[Any]) -> Any:
    n_codes = int(max(train.max(), test.max())) + 1
    counts = np.bincount(train, minlength=n_codes)[:, None]
    sums = np.zeros((n_codes, target.shape[1]))
    np.add.at(sums, train, target)
    return np.where(counts > 0, sums / np.maximum(counts, 1), target.mean(axis=0))[test]


def _explained_by_groups(order: NDArray[Any], target: NDArray[Any]) -> float:
    """Return the share of the variance between groups of rows of similar values."""
    groups = np.array_split(target[np.argsort(order, kind="stable")], _N_GROUPS)
    rest = sum(_variation(group) for group in groups if len(group))
    return 1 - rest / _variation(target)


def _variation(target: NDArray[Any]) -> float:
    return float(((target - target.mean(axis=0)) ** 2).sum())
