"""Fitted models as ONNX files."""

from __future__ import annotations

import contextlib
import json
import logging
import numbers
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from sknan._utils.validation import PATH, check_parameter, is_one_of
from sknan.persistence._to_torch import exported

# Code of a text that is no category of ``fit``.
_UNKNOWN = -2

# First version of the operators that torch's exporter writes.
_OLDEST_OPSET = 18

# Prefix of the values inside a graph.
_INSIDE = "sknan/"


def to_onnx(
    model: Any, path: str | PathLike[str], *, opset: int = 20, dtype: str = "float64"
) -> None:
    """Write a fitted model as an ONNX file, from raw cells to predictions.

    The file contains the module of :func:`to_torch`. The packages onnx and onnxscript
    are needed, which ``pip install 'sknan[onnx]'`` installs.

    Parameters
    ----------
    model : estimator, Pipeline or search
        Fitted model, as for :func:`to_torch`.
    path : str or path
        File to write.
    opset : int, default=20
        Version of the operators of ONNX, from 18 to the newest of the package onnx.
    dtype : {"float64", "float32"}, default="float64"
        Type of the columns of numbers. float64 resolves columns such as seconds of a
        Unix time; some servers pass float32 only.

    Raises
    ------
    ValueError
        If a step or a column cannot be exported; see :func:`to_torch`. If ``opset`` or
        ``dtype`` is unknown.
    ImportError
        If onnx or onnxscript is not installed.

    Notes
    -----
    If the model was fitted on named columns, each column is an input of its name, of
    shape (n_samples, 1). After :func:`~sknan.tabular_pipeline`, columns of categories
    are strings: the empty string is a missing value, and a text that ``categories_`` of
    :class:`ExportedModel` does not contain is an unknown category. Unlike ``predict``,
    the file does not strip blanks around a text. If the model was fitted without names,
    the columns are inputs ``x0``, ``x1``, ... after :func:`~sknan.tabular_pipeline`;
    any other model has one input ``X``, (n_samples, n_features).

    The output is ``probabilities``, with the labels as JSON in ``classes`` of the
    metadata, or ``predictions``. If a column has this name, an underscore follows it.
    """
    check_parameter("to_onnx", "path", path, PATH)
    if not is_one_of(dtype, ("float64", "float32")):
        raise ValueError(f"dtype must be 'float64' or 'float32', got {dtype!r}.")
    module = exported(model, "to_onnx({}, path)")
    names = module.feature_names_in_
    n_columns = module.n_features_in_ if names is None else 1
    if n_columns is None:
        raise ValueError(
            "to_onnx needs the number of columns, which a guarded skorch net does not "
            "know. Fit the net in a pipeline: make_pipeline(NaNImputer(), net)."
        )
    is_regressor = module.classes_ is None
    inputs = ["X"] if names is None else [name or "unnamed" for name in names]
    output = "predictions" if is_regressor else "probabilities"
    while output in inputs:
        output += "_"
    places = [f"input {j}" for j in range(len(inputs))]
    proto = onnx_of(
        module if names is None else _ByColumn(module),
        places,
        "output",
        n_columns=n_columns,
        opset=opset,
        dtype=getattr(torch, dtype),
    )
    # A column may have the name of a value inside the graph, such as "linear".
    renamed = {**dict(zip(places, inputs, strict=True)), "output": output}
    rename(proto.graph, lambda name: renamed.get(name, f"{_INSIDE}{name}"))
    for name, codes in module.categories_.items():
        _read_texts(proto, name or "unnamed", codes)
    import onnx

    if not is_regressor:
        labels = json.dumps(module.classes_)
        onnx.helper.set_model_props(proto, {"classes": labels})
    onnx.save(proto, path)


class _ByColumn(nn.Module):
    """Module with one input for each column."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *columns: Tensor) -> Tensor:
        """Predict rows that are given as columns, (n_samples, 1)."""
        found: Tensor = self.model(torch.cat(columns, dim=1))
        return found


def onnx_of(
    module: nn.Module,
    inputs: Sequence[str],
    output: str,
    *,
    n_columns: int,
    opset: int,
    dtype: torch.dtype,
) -> Any:
    """Return a module as an ONNX model.

    Parameters
    ----------
    module : nn.Module
        Module with one or several inputs.
    inputs : sequence of str
        Names of the inputs.
    output : str
        Name of the output.
    n_columns : int
        Number of columns of each input.
    opset : int
        Version of the operators.
    dtype : torch.dtype
        Type of the inputs.

    Returns
    -------
    onnx.ModelProto
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch would fail late, and with another error
    except ImportError as error:
        raise ImportError(
            f"Files of ONNX need the packages onnx and onnxscript ({error}). Install "
            "them: pip install 'sknan[onnx]'."
        ) from error
    newest = onnx.defs.onnx_opset_version()
    is_whole = isinstance(opset, numbers.Integral)
    if not is_whole or not _OLDEST_OPSET <= opset <= newest:
        raise ValueError(
            f"opset must be an integer from {_OLDEST_OPSET} to {newest}, the newest of "
            f"onnx {onnx.__version__}, got {opset!r}."
        )
    # torch.export keeps a number of rows of 1 as a constant.
    examples = tuple(torch.zeros(2, n_columns, dtype=dtype) for _ in inputs)
    rows = ({0: torch.export.Dim("n_samples")},) * len(inputs)
    with _without_remarks():
        program: Any = torch.onnx.export(
            module.eval(),
            examples,
            input_names=list(inputs),
            output_names=[output],
            opset_version=opset,
            dynamo=True,
            dynamic_shapes=(rows,) if isinstance(module, _ByColumn) else rows,
            verbose=False,
        )
    return program.model_proto


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence remarks of torch's exporter about its own code and other packages."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", "# The axis name")
            yield
    finally:
        logger.setLevel(level)


def rename(graph: Any, new_name: Callable[[str], str]) -> None:
    """Rename the values of a graph."""
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new_name(value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name and new_name(name) for name in names]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                rename(attribute.g, new_name)
    del graph.value_info[:]


def _read_texts(proto: Any, name: str, codes: Mapping[str, int]) -> None:
    """Let a column of categories be given as texts instead of codes."""
    from onnx import TensorProto, helper

    graph = proto.graph
    place = [given.name for given in graph.input].index(name)
    number = graph.input[place].type.tensor_type.elem_type
    code = f"{_INSIDE}code of {name}"
    for node in graph.node:
        for i, given in enumerate(node.input):
            if given == name:
                node.input[i] = code
    graph.input[place].CopyFrom(
        helper.make_tensor_value_info(name, TensorProto.STRING, ["n_samples", 1])
    )
    encode = helper.make_node(
        "LabelEncoder",
        [name],
        [f"{_INSIDE}number of {name}"],
        domain="ai.onnx.ml",
        keys_strings=list(codes),
        values_int64s=list(codes.values()),
        default_int64=_UNKNOWN,
    )
    cast = helper.make_node("Cast", encode.output, [code], to=number)
    graph.node.insert(0, cast)
    graph.node.insert(0, encode)
    if all(known.domain != "ai.onnx.ml" for known in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
