"""Conversion of skorch's input to whole tensors, and its validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from skorch.utils import is_pandas_ndframe
from torch import Tensor
from torch.utils.data import Subset

from sknan._utils.validation import DROP_ROWS, FLOAT64_MAX, check_finite
from sknan.nets._batching import TensorTable

_IMPUTE = (
    "Impute first, for example with make_pipeline(NaNImputer(), SafeScaler(), net)."
)


def _as_tensor(values: Any) -> Tensor | None:
    """Return a tensor over the array's memory, or None if collation would differ."""
    if isinstance(values, Tensor):
        if values.is_sparse or values.ndim == 0:
            return None
        # Autograd cannot save tensors that were made in inference mode.
        return values.clone() if values.is_inference() else values
    if type(values) is not np.ndarray or values.ndim == 0:
        return None
    if values.dtype.kind not in "fiub":
        return None
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()  # torch warns about the former and refuses the latter
    try:
        return torch.from_numpy(values)
    except TypeError:  # longdouble, foreign byte order
        return None


def as_table(dataset: Any) -> TensorTable | None:
    """Return the whole tensors of a dataset, or None if it must be read row by row."""
    if isinstance(dataset, TensorTable):
        return dataset
    if type(dataset) is Subset:
        table = as_table(dataset.dataset)
        if table is None:
            return None
        return table.subset(torch.as_tensor(np.asarray(dataset.indices)))
    if type(dataset) is not Dataset:  # a subclass may transform each row
        return None
    X = _as_tensor(dataset.X)
    if X is None or len(X) != len(dataset):
        return None
    # skorch's substitute for a missing target, as a data loader would stack it
    y = torch.zeros(len(X), 1) if dataset.y is None else _as_tensor(dataset.y)
    return None if y is None else TensorTable(X, y)


def _arrays(name: str, data: Any) -> Iterator[tuple[str, Any, list[Any] | None]]:
    """Yield the numeric arrays in ``X`` or ``y`` of a skorch net, with their names."""
    if isinstance(data, Dataset):
        data = data.X if name == "X" else data.y
    if isinstance(data, (np.ndarray, Tensor)):
        yield name, data, None
    elif is_pandas_ndframe(data):
        frame = data.to_frame() if data.ndim == 1 else data
        frame = frame.select_dtypes("number")
        yield name, frame.to_numpy(dtype=float), list(frame.columns)
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _arrays(f"{name}[{key!r}]", value)
    elif isinstance(data, (list, tuple)) and any(hasattr(v, "shape") for v in data):
        for i, value in enumerate(data):
            yield from _arrays(f"{name}[{i}]", value)


def refuse_nonfinite_data(X: Any, y: Any) -> None:
    """Raise an error for NaN and infinities in training data.

    Parameters
    ----------
    X, y : object
        Input of ``fit`` of a skorch net. Custom datasets are not read.

    Raises
    ------
    NonFiniteDataError
        If a value is not finite. The message names the array, the columns, the counts
        and the first rows.
    """
    for name, data, remedy in (("X", X, _IMPUTE), ("y", y, DROP_ROWS)):
        source = X if name == "y" and isinstance(X, Dataset) else data
        for label, values, columns in _arrays(name, source):
            check_finite(
                values,
                name=label,
                remedy=remedy,
                columns=columns,
                limit=FLOAT64_MAX,  # a user's module may compute in float64
            )
