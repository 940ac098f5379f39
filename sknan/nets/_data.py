"""Conversion of skorch's input to whole tensors, and its validation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from skorch.dataset import Dataset, get_len, unpack_data
from skorch.utils import is_pandas_ndframe
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from sknan._utils.outliers import DOMINANT, Mask, check_outliers
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.random_state import kept_random_states
from sknan._utils.thresholds import N_TRIAL_ROWS
from sknan._utils.tree import tree_leaves, tree_map
from sknan._utils.validation import FLOAT64_MAX, check_dense, check_finite, drop_rows
from sknan.diagnosis._raised import result_of_trial
from sknan.exceptions import NonFiniteDataError
from sknan.losses._target_domain import refuse_outside_domain
from sknan.losses._traits import is_own_loss, traits_of
from sknan.nets._batching import TensorTable
from sknan.nets._own_step import has_own_method
from sknan.preprocessing._tables.plain_cells import kind_of, plain_cells

_IMPUTE = (
    "Impute first, for example with "
    'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
)


# Remedy in the criterion of the user.
LEAVE_OUT = (
    "Or let the criterion leave missing targets out: its loss is not finite for them."
)

# Number of inputs whose rows a message lists.
_MOST_INPUTS = 8

# What outliers among the targets do to a training, and the remedy.
_OUTWEIGH = "They dominate the loss, so that the network learns little from the others."
_BOUND = (
    "Correct these targets, remove their rows from X and y, or choose a loss whose "
    "gradient is bounded, such as HuberLoss."
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
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return TensorTable(*dataset.tensors)
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
    elif type(data) is TensorDataset:
        data = data.tensors[0 if name == "X" else -1]
    module = type(data).__module__.partition(".")[0]
    if isinstance(data, np.ma.MaskedArray) or module in ("polars", "pyarrow"):
        data = plain_cells(data)
    is_array = isinstance(data, np.ndarray)
    if isinstance(data, Tensor) or (is_array and data.dtype.kind != "O"):
        yield name, data, None
    elif is_pandas_ndframe(data):
        frame = data.to_frame() if data.ndim == 1 else data
        columns = [(label, _numbers_in(cells, name)) for label, cells in frame.items()]
        known = [(label, cells) for label, cells in columns if cells is not None]
        if known:
            labels, numbers = zip(*known, strict=True)
            yield name, np.column_stack(numbers), list(labels)
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _arrays(f"{name}[{key!r}]", value)
    elif isinstance(data, (list, tuple)) and any(hasattr(v, "shape") for v in data):
        for i, value in enumerate(data):
            yield from _arrays(f"{name}[{i}]", value)
    elif is_array or isinstance(data, (list, tuple, pd.api.extensions.ExtensionArray)):
        # skorch makes zeros of None among objects.
        cells = _numbers_in(data, name)
        if cells is not None:
            yield name, cells, None


def _numbers_in(cells: Any, name: str) -> np.ndarray | None:
    """Return cells as numbers, with NaN for missing ones; None if they are others.

    Labels of text in ``y`` become 0 if one of them is missing.
    """
    plain = plain_cells(cells)
    if not isinstance(plain, np.ndarray) or plain.dtype.kind not in "biufO":
        return None
    is_text = plain.dtype.kind == "O" and any(isinstance(c, str) for c in plain.flat)
    if is_text:
        missing = pd.isna(plain)
        is_lost = name == "y" and missing.any()
        return np.where(missing, np.nan, 0.0) if is_lost else None
    with contextlib.suppress(TypeError, ValueError):
        return np.asarray(plain, dtype=np.float64)
    return None


def refuse_nonfinite_data(name: str, data: Any, remedy: str = _IMPUTE) -> None:
    """Raise an error for NaN and infinities in inputs or targets.

    Custom datasets are not read.

    Raises
    ------
    NonFiniteDataError
        If a value is not finite. The message names the array, the columns, the counts
        and the first rows.
    """
    for label, values, columns in _arrays(name, data):
        check_finite(
            values,
            name=label,
            remedy=remedy,
            columns=columns,
            limit=FLOAT64_MAX,  # a user's module may compute in float64
        )


def refuse_unusable_targets(net: Any, X: Any, y: Any) -> None:
    """Raise an error for targets from which the net's criterion cannot learn.

    Raises
    ------
    NonFiniteDataError
        If a target is outside the domain of the criterion, or if it is not finite and
        the criterion does not leave it out, as one of the user may do.
    """
    data = X if isinstance(X, (Dataset, TensorDataset)) else y
    criterion = getattr(net, "criterion_", None)
    is_own = criterion is not None and is_own_loss(criterion)
    remedy = drop_rows("y") + (f" {LEAVE_OUT}" if is_own else "")
    try:
        refuse_nonfinite_data("y", data, remedy)
    except NonFiniteDataError:
        if not is_own or not _leaves_out_missing_targets(net, X, y, data):
            raise
    if criterion is None or traits_of(criterion).target_domain == "all":
        return
    for _, values, _ in _arrays("y", data):
        array = _as_array(values)
        if array.dtype.kind in "fiu":
            refuse_outside_domain(criterion, array, type(criterion).__name__)


def check_rows(net: Any, X: Any, y: Any) -> None:
    """Raise an error for inputs whose rows skorch cannot read.

    Whatever reads the rows of a net in a way of the user may read others.

    Raises
    ------
    TypeError
        If a tensor is nested or sparse.
    ValueError
        If the numbers of rows differ, or if there are none.
    """
    is_own = isinstance(X, torch.utils.data.Dataset) or net.get_params_for("dataset")
    if is_own or not reads_as_skorch(net):
        return
    leaves = [*_leaves("X", X), *_leaves("y", y)]
    for label, leaf in leaves:
        if isinstance(leaf, Tensor):
            check_dense(leaf, label)
    with contextlib.suppress(TypeError, ValueError):  # no length, or several
        n_rows = get_len(X)
        if y is None or get_len(y) == n_rows:
            return
    found = [f"{label} {_length_of(leaf)}" for label, leaf in leaves]
    if len(found) > _MOST_INPUTS:
        found[_MOST_INPUTS:] = ["and so on"]
    several = any(isinstance(data, (list, tuple)) for data in (X, y))
    hint = " A list holds the inputs of a network, not its rows: stack them." * several
    raise ValueError(
        f"X and y must have one row per sample, but {', '.join(found)}.{hint}"
    )


def _leaves(name: str, data: Any) -> Iterator[tuple[str, Any]]:
    """Yield the inputs or targets that skorch finds in ``X`` or ``y``, with names."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _leaves(f"{name}[{key!r}]", value)
    elif isinstance(data, (list, tuple)) and any(hasattr(v, "__len__") for v in data):
        for i, value in enumerate(data):
            yield from _leaves(f"{name}[{i}]", value)
    elif name != "y" or data is not None:
        yield name, data


def _length_of(value: Any) -> str:
    try:
        return f"has length {get_len(value)}"
    except (TypeError, ValueError):
        return f"is of type {type(value).__name__}"


def readable_target(net: Any, X: Any, y: Any) -> Any:
    """Return a target in a type that skorch reads; refuse text and dates.

    skorch reads neither polars nor Arrow, no DataFrame and, in classifiers, no list,
    and the binary losses of torch read neither integers nor flags. Whatever reads the
    rows of a net in a way of the user gets the target as it is.

    Raises
    ------
    ValueError
        If ``y`` contains text, dates or durations, or lists of polars or Arrow.
    """
    if isinstance(X, Dataset) or not reads_as_skorch(net):
        return y
    is_foreign = (
        type(y).__module__.partition(".")[0] in ("polars", "pyarrow")
        or isinstance(y, pd.DataFrame)
        or (type(y) is list and all(map(np.isscalar, y)))
    )
    if not is_foreign and not isinstance(y, (np.ndarray, pd.Series)):
        return y
    cells = np.asarray(plain_cells(y))
    if cells.dtype.kind in "OUS":
        _refuse_other_kinds(net, cells, is_number=not is_foreign)
        cells = np.asarray(_numbers_in(cells, "y"))
    criterion = type(getattr(net, "criterion_", None))
    is_binary = criterion in (nn.BCEWithLogitsLoss, nn.BCELoss)
    if is_binary and cells.dtype.kind in "biu":  # for which these losses fail
        cells, is_foreign = cells.astype(np.float32), True
    if not is_foreign:
        return y
    is_one_column = cells.ndim == 2 and cells.shape[1] == 1
    return cells[:, 0] if is_one_column and is_classifier(net) else cells


def reads_as_skorch(net: Any) -> bool:
    """Return whether no code of the user comes between targets and criterion."""
    methods = ("get_dataset", "get_iterator", "get_loss", "train_step_single")
    has_own = any(has_own_method(type(net), name) for name in methods)
    options = net.get_params_for("iterator_train")
    is_plain = net.dataset is Dataset and net.iterator_train is DataLoader
    return is_plain and "collate_fn" not in options and not has_own


def _refuse_other_kinds(net: Any, cells: NDArray[Any], *, is_number: bool) -> None:
    """Raise an error for the first cell that is text or a date, or is no number."""
    for index, cell in np.ndenumerate(cells):
        kind = kind_of(cell)
        if kind is None and (is_number or isinstance(cell, (Number, np.bool_))):
            continue
        shown = str(cell) if kind != "text" else repr(str(cell))
        remedy = "Pass numbers."
        if kind == "text" and is_classifier(net):
            remedy = "Pass sklearn.preprocessing.LabelEncoder().fit_transform(y), or "
            remedy += "these labels to StableNetClassifier."
        place = f" at row {index[0]}" if index else ""
        raise ValueError(
            f"y contains {kind or type(cell).__name__}, first {shown}{place}, but "
            f"{type(net).__name__} needs numbers. {remedy}"
        )


def check_target_outliers(net: Any, dataset: Any) -> None:
    """Refuse or warn of a few targets that outweigh all the others in the loss.

    They do not if the gradient of the loss is bounded. Of custom data sets, only a
    ``Subset`` of the user's data is read.

    Raises
    ------
    NonFiniteDataError
        See :func:`~sknan._utils.outliers.check_outliers`.
    """
    is_part = type(dataset) is Subset
    for name, values, columns in _arrays("y", dataset.dataset if is_part else dataset):
        array = _as_array(values)
        rows = np.asarray(dataset.indices) if is_part else np.arange(len(array))
        array = array[rows]
        if array.dtype.kind != "f" or not array.size or not np.isfinite(array).all():
            continue
        is_wide = array.ndim > 1 and array.size > len(array)
        is_double = str(values.dtype).endswith("float64")
        check_outliers(
            array.reshape(len(array), -1) if is_wide else array.ravel(),
            rows,
            name=name,
            effect=_OUTWEIGH,
            remedy=_BOUND,
            columns=columns,
            dtype=np.float64 if is_double else np.float32,
            is_harmful=partial(_outweigh_in_loss, net, dataset),
        )


def _outweigh_in_loss(net: Any, dataset: Any, bad: Mask) -> bool:
    """Whether rows have most of the loss's gradient with respect to the output.

    The output is the median of the targets if the loss compares them, else that of the
    untrained network. The gradients of some rows of each kind stand for all.
    """
    is_bad = bad.reshape(len(bad), -1).any(axis=1)
    rows = [_evenly_spaced(np.flatnonzero(mask)) for mask in (is_bad, ~is_bad)]
    try:
        batch = default_collate([dataset[int(row)] for row in np.concatenate(rows)])
        inputs, target = unpack_data(batch)
        with kept_random_states(net.device), torch.no_grad():
            net._set_training(False)
            outputs = net.infer(inputs)
        if traits_of(net.criterion_).unit_power is not None:
            middle = target[len(rows[0]) :].median(dim=0).values
            outputs = middle.expand_as(target).reshape(outputs.shape).to(outputs)
        outputs = tree_map(_as_variable, outputs)
        with torch.enable_grad():
            loss = net.get_loss(outputs, target, X=inputs, training=False)
        variables = [leaf for leaf in tree_leaves(outputs) if leaf.requires_grad]
        grads = torch.autograd.grad(loss, variables, allow_unused=True)
    except unless(is_of_signal, Exception):  # training raises it again
        return False
    found = [g.double().square().flatten(1).sum(1) for g in grads if g is not None]
    if not found:
        return False
    squares = torch.stack(found).sum(0)
    of_bad, of_others = squares[: len(rows[0])].mean(), squares[len(rows[0]) :].mean()
    ratio = float(of_bad * is_bad.sum() / (of_others * (~is_bad).sum()))
    # NaN if they overflow. Their steps fail then, and are explained and recovered.
    return ratio >= DOMINANT / (1.0 - DOMINANT)


def _evenly_spaced(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    n_rows = min(len(rows), N_TRIAL_ROWS)
    chosen: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, n_rows).astype(int)]
    return chosen


def _as_variable(leaf: Any) -> Any:
    is_float = isinstance(leaf, Tensor) and leaf.is_floating_point()
    return leaf.detach().clone().requires_grad_() if is_float else leaf


def _as_array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _leaves_out_missing_targets(net: Any, X: Any, y: Any, data: Any) -> bool:
    """Whether the loss is finite for rows with and without missing targets."""
    missing = np.array(False)
    for _, values, _ in _arrays("y", data):
        finite = np.isfinite(_as_array(values))
        missing = missing | ~finite.reshape(len(finite), -1).all(axis=1)
    return is_loss_finite(net, net.get_dataset(X, y), missing)


def is_loss_finite(net: Any, dataset: Any, missing: np.ndarray) -> bool:
    """Whether the loss is finite on some rows with and without missing targets."""
    rows = [np.flatnonzero(mask)[:N_TRIAL_ROWS] for mask in (missing, ~missing)]

    def is_finite() -> bool:
        batch = default_collate([dataset[int(row)] for row in np.concatenate(rows)])
        inputs, target = unpack_data(batch)
        with kept_random_states(net.device), torch.no_grad():
            net._set_training(False)
            loss = net.get_loss(net.infer(inputs), target, X=inputs, training=False)
        return bool(torch.isfinite(loss).all())

    return bool(result_of_trial(is_finite))
