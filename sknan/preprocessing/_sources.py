"""Columns of a table from which a fitted transformer computes its outputs."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline


class Sources(NamedTuple):
    """Origin of the outputs of a transformer.

    Parameters
    ----------
    names : list of str
        Names of the outputs.
    inputs : list of tuple of int
        Numbers of the input columns of each output; empty if they are unknown, as for
        the components of a PCA.
    """

    names: list[str]
    inputs: list[tuple[int, ...]]


def sources_of(transformer: Any, names: Sequence[str]) -> Sources:
    """Return the input columns from which each output is computed.

    Parameters
    ----------
    transformer : transformer, Pipeline, ColumnTransformer, FeatureUnion or str
        Fitted transformer, or ``"passthrough"`` or ``"drop"``.
    names : sequence of str
        Names of the input columns.

    Returns
    -------
    Sources

    Raises
    ------
    ValueError
        If the transformer does not name its outputs.
    """
    if transformer is None or transformer == "passthrough":
        return Sources(list(names), [(j,) for j in range(len(names))])
    if transformer == "drop":
        return Sources([], [])
    if isinstance(transformer, Pipeline):
        found = sources_of(None, names)
        for _, step in transformer.steps:
            found = _composed(found, sources_of(step, found.names))
        return found
    if isinstance(transformer, ColumnTransformer):
        return _of_column_transformer(transformer, names)
    if isinstance(transformer, FeatureUnion):
        parts = [sources_of(part, names) for _, part in transformer.transformer_list]
        return Sources(
            [name for part in parts for name in part.names],
            [inputs for part in parts for inputs in part.inputs],
        )
    if hasattr(transformer, "output_to_input_"):  # also of transformers of skrub
        number_of = {name: j for j, name in enumerate(names)}
        pairs = transformer.output_to_input_.items()
        return Sources([out for out, _ in pairs], [(number_of[i],) for _, i in pairs])
    return _by_output_names(transformer, names)


def distinct(names: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """Return the names, with "_" appended to those that others have.

    Parameters
    ----------
    names : iterable of str
        Names of outputs.
    taken : iterable of str, default=()
        Names that they may not have.

    Returns
    -------
    list of str
    """
    found: list[str] = []
    taken = set(taken)
    for name in names:
        while name in taken:
            name += "_"
        taken.add(name)
        found.append(name)
    return found


def _composed(first: Sources, then: Sources) -> Sources:
    """Return the sources of two transformers in a row."""
    inputs = [
        tuple(sorted({j for i in inner for j in first.inputs[i]}))
        for inner in then.inputs
    ]
    return Sources(then.names, inputs)


def _of_column_transformer(transformer: Any, names: Sequence[str]) -> Sources:
    number_of = {name: j for j, name in enumerate(names)}
    n_outputs = max(part.stop for part in transformer.output_indices_.values())
    found = Sources([""] * n_outputs, [()] * n_outputs)
    for label, part, columns in transformer.transformers_:
        where = transformer.output_indices_[label]
        if where.start == where.stop:
            continue
        if isinstance(columns, str) or np.isscalar(columns):
            columns = [columns]
        is_named = not isinstance(columns, slice) and isinstance(columns[0], str)
        chosen = (
            [number_of[name] for name in columns]
            if is_named
            else np.arange(len(names))[columns].tolist()
        )
        inner = sources_of(part, [names[j] for j in chosen])
        found.names[where] = inner.names
        found.inputs[where] = [tuple(chosen[i] for i in out) for out in inner.inputs]
    return found


def _by_output_names(transformer: Any, names: Sequence[str]) -> Sources:
    """Find the inputs in the names of the outputs, for which inputs are numbered."""
    if not hasattr(transformer, "get_feature_names_out"):
        raise ValueError(
            f"{type(transformer).__name__} does not name its outputs, so that they "
            "cannot be traced to columns of X. Give it the method "
            "get_feature_names_out; for a FunctionTransformer, pass "
            "feature_names_out='one-to-one'."
        )
    marks = np.array([f"\0{j}\0" for j in range(len(names))], dtype=object)
    marked = copy.copy(transformer)
    if hasattr(transformer, "feature_names_in_"):
        marked.feature_names_in_ = marks
    outputs = [str(name) for name in marked.get_feature_names_out(marks)]
    inputs = [tuple(map(int, re.findall("\0(\\d+)\0", name))) for name in outputs]
    named = [re.sub("\0(\\d+)\0", lambda m: names[int(m[1])], out) for out in outputs]
    return Sources(distinct(named), inputs)
