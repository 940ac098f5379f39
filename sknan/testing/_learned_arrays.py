"""Learned arrays of a fitted estimator, with the path of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.utils import get_tags
from torch import Tensor, nn

# Records of the training. They may contain a failed step that was rescued.
_RECORDS = {
    "best_loss_",
    "callbacks_",
    "history_",
    "loss_",
    "loss_curve_",
    "nonfinite_reports_",
    "validation_scores_",
}

# Attributes whose outermost values are infinite by design.
_OPEN_ENDED = ("bin_edges_", "thresholds_")


def learned_arrays(
    estimator: Any, *, has_empty_column: bool = False
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield every float array, number and tensor in attributes that end in ``_``.

    Each has a path such as ``"module_.0.weight"``. The search descends into steps of
    pipelines, nested estimators, lists, dicts and torch modules. A transformer that
    accepts NaN may have NaN for a column without a value in an array with one number
    per column.
    """
    yield from _walk(estimator, "", has_empty_column, set())


def _walk(
    value: Any, path: str, has_empty_column: bool, seen: set[int]
) -> Iterator[tuple[str, NDArray[Any]]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value.detach().cpu().to(torch.float64).numpy()
        return
    if isinstance(value, (float, np.floating)):
        yield path, np.asarray(value)
        return
    if sparse.issparse(value):
        value = value.data
    if isinstance(value, np.ndarray) and value.dtype.kind in "fc":
        yield path, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        part_path = f"{path}.{name}" if path else name
        for array_path, array in _walk(part, part_path, has_empty_column, seen):
            if has_empty_column and _is_statistic_per_column(value, name, array):
                yield array_path, array[~np.isnan(array)]
            elif any(word in array_path for word in _OPEN_ENDED):
                yield array_path, array[~np.isinf(array)]
            else:
                yield array_path, array


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Module):
        yield from value.state_dict().items()
    elif isinstance(value, dict):
        yield from ((str(key), part) for key, part in value.items())
    elif isinstance(value, (list, tuple)) or (
        isinstance(value, np.ndarray) and value.dtype.kind == "O"
    ):
        yield from ((str(i), part) for i, part in enumerate(value))
    elif isinstance(value, Pipeline):
        yield from value.steps
    elif isinstance(value, FeatureUnion):
        yield from value.transformer_list
    elif hasattr(value, "get_params") and not isinstance(value, type):
        attributes = dict(vars(value))
        if isinstance(getattr(type(value), "net_", None), property):
            attributes["net_"] = value.net_
        for name, part in attributes.items():
            is_learned = name.endswith("_") and not name.startswith("_")
            if is_learned and name not in _RECORDS:
                yield name, part


def _is_statistic_per_column(owner: Any, name: str, array: NDArray[Any]) -> bool:
    if not (hasattr(owner, "transform") and name.endswith("_")):
        return False
    is_per_column = array.shape == (getattr(owner, "n_features_in_", None),)
    return is_per_column and bool(get_tags(owner).input_tags.allow_nan)
