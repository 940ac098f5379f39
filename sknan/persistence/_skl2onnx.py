"""Converters of skl2onnx for the steps and networks of sknan."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from sknan.estimators import (
    StableNetClassifier,
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    StableNetRegressor,
)
from sknan.nets import (
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardedNetRegressor,
)
from sknan.persistence._to_onnx import onnx_of, rename
from sknan.persistence._to_torch import largest_after, prediction_of, preparation_of
from sknan.preprocessing import NaNImputer, SafeScaler

_STEPS = (NaNImputer, SafeScaler)
_CLASSIFIERS = (
    StableNetClassifier,
    StableNetEnsembleClassifier,
    GuardedNetClassifier,
    GuardedNetBinaryClassifier,
)
_REGRESSORS = (StableNetRegressor, StableNetEnsembleRegressor, GuardedNetRegressor)


def register() -> None:
    """Register the converters with skl2onnx."""
    from skl2onnx import update_registered_converter

    for kind in (*_STEPS, *_REGRESSORS, *_CLASSIFIERS):
        options = None
        if kind in _CLASSIFIERS:
            options = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
        update_registered_converter(
            kind, f"Sknan{kind.__name__}", _set_types, _convert, options=options
        )


class _OnImport(importlib.abc.MetaPathFinder):
    """Finder of modules that registers the converters when skl2onnx is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        """Return the usual specification, whose loader registers the converters."""
        if name != "skl2onnx":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            register()

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _set_types(operator: Any) -> None:
    """Set the types of the outputs, from those of a trial."""
    from skl2onnx.common import data_types

    module, dtype = _module_of(operator), _dtype_of(operator)
    found = module(torch.zeros(2, _n_columns(operator), dtype=dtype))
    types = {
        torch.float32: data_types.FloatTensorType,
        torch.float64: data_types.DoubleTensorType,
    }
    operator.outputs[-1].type = types[found.dtype]([None, *found.shape[1:]])
    if len(operator.outputs) == 2:
        labels = operator.raw_operator.classes_
        is_text = labels.dtype.kind not in "biuf"
        kind = data_types.StringTensorType if is_text else data_types.Int64TensorType
        several = found.shape[1:] if _is_multilabel(operator.raw_operator) else ()
        operator.outputs[0].type = kind([None, *several])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    """Add the nodes of a step or network, and those of its labels."""
    from onnx import TensorProto

    dtype = _dtype_of(operator)
    to = TensorProto.FLOAT if dtype == torch.float32 else TensorProto.DOUBLE
    columns = []
    for given in operator.inputs:
        columns.append(scope.get_unique_variable_name("column"))
        container.add_node("Cast", [given.full_name], columns[-1:], to=to)
    rows = scope.get_unique_variable_name("rows")
    container.add_node("Concat", columns, [rows], axis=1)
    model = onnx_of(
        _module_of(operator),
        ["X"],
        "found",
        n_columns=_n_columns(operator),
        opset=container.target_opset,
        dtype=dtype,
    )
    found = operator.outputs[-1].full_name
    _splice(model.graph, {"X": rows, "found": found}, scope, container)
    if len(operator.outputs) == 2:
        label = operator.outputs[0].full_name
        _add_labels(operator.raw_operator, found, label, scope, container)


def _splice(graph: Any, names: dict[str, str], scope: Any, container: Any) -> None:
    """Add the nodes of a graph, of which some inputs and outputs have other names."""

    def new_name(name: str) -> str:
        if name not in names:
            names[name] = scope.get_unique_variable_name(name)
        return names[name]

    rename(graph, new_name)
    container.initializers.extend(graph.initializer)
    for node in graph.node:
        node.name = scope.get_unique_operator_name(node.name or node.op_type)
        container.nodes.append(node)


def _add_labels(
    model: Any, probabilities: str, label: str, scope: Any, container: Any
) -> None:
    from onnx import TensorProto

    constant, position = map(scope.get_unique_variable_name, ("constant", "position"))
    if _is_multilabel(model):
        container.add_initializer(constant, TensorProto.FLOAT, [], [0.5])
        container.add_node("Greater", [probabilities, constant], [position])
        container.add_node("Cast", [position], [label], to=TensorProto.INT64)
        return
    labels = model.classes_
    is_text = labels.dtype.kind not in "biuf"
    texts = [str(one).encode() for one in labels]
    container.add_initializer(
        constant,
        TensorProto.STRING if is_text else TensorProto.INT64,
        [len(labels)],
        texts if is_text else labels.astype(np.int64).tolist(),
    )
    container.add_node("ArgMax", [probabilities], [position], axis=1, keepdims=0)
    container.add_node("Gather", [constant, position], [label])


def _module_of(operator: Any) -> nn.Module:
    """Return the step or the network of an operator as a module."""
    model = operator.raw_operator
    if isinstance(model, _STEPS):
        return preparation_of(model)
    steps: list[Any] = []
    given = operator.inputs[0]
    makers = {
        output.full_name: other
        for other in operator.scope_inst.operators.values()
        for output in other.outputs
    }
    while given.full_name in makers:
        maker = makers[given.full_name]
        steps.insert(0, maker.raw_operator)
        given = maker.inputs[0]
    return nn.Sequential(*prediction_of(model, largest_after(steps)))


def _n_columns(operator: Any) -> int:
    # A skorch net does not know the number.
    given: int = sum(variable.type.shape[1] or 0 for variable in operator.inputs)
    known: int = getattr(operator.raw_operator, "n_features_in_", given)
    return known


def _dtype_of(operator: Any) -> torch.dtype:
    """Return float32 if all inputs are float32, else float64."""
    from skl2onnx.common.data_types import FloatTensorType

    types = [given.type for given in operator.inputs]
    is_narrow = all(isinstance(kind, FloatTensorType) for kind in types)
    return torch.float32 if is_narrow else torch.float64


def _is_multilabel(model: Any) -> bool:
    network = getattr(model, "estimators_", [model])[0]
    return bool(getattr(network, "_is_multilabel", False))


def register_on_import() -> None:
    """Register the converters now, or as soon as skl2onnx is imported."""
    if "skl2onnx" in sys.modules:
        register()
    elif not any(isinstance(finder, _OnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OnImport())
