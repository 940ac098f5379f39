"""Proof that an exception depends on the values in a step, and the rows to blame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sknan._utils.thresholds import N_TRIALS
from sknan._utils.tree import tree_leaves, tree_map
from sknan.diagnosis._culprits import by_bisection, sliced
from sknan.diagnosis._raised import does_raise, error_of

Action = Callable[[], Any]
Run = Callable[[Any], Any]


def rows_that_raise(run: Run, batch: tuple[Any, Any]) -> tuple[int, ...]:
    """Return the rows for which a step raises by themselves.

    Parameters
    ----------
    run : callable
        Function of a batch.
    batch : (object, object)
        Inputs and target.
    """
    n_rows = len(tree_leaves(batch[0])[0])

    def passes(part: slice) -> bool:
        rows = torch.arange(part.start, part.stop)
        if len(rows) == 1:
            rows = rows.repeat(2)  # one row has no spread
        return not does_raise(lambda: run(sliced(batch, rows, n_rows)))

    return by_bisection(passes, n_rows)


def depends_on_values(
    run: Run, batch: tuple[Any, Any], trials: Iterable[Action]
) -> bool:
    """Whether a step that raises for a batch passes with other values.

    An exception that is raised for any values of the same shapes is an error of the
    program, such as shapes that do not match. Errors of torch's linear algebra are
    about values. A batch of one row counts as a value: two equal rows, which must pass
    or fail in another way, are tried in its place.

    Parameters
    ----------
    run : callable
        Function of a batch, which raises an exception for ``batch``.
    batch : (object, object)
        Inputs and target.
    trials : iterable of callable
        Further trials, such as the step with other weights.

    Returns
    -------
    bool
    """
    first = error_of(partial(run, batch))
    if isinstance(first, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        return True
    if len(tree_leaves(batch[0])[0]) == 1:
        second = error_of(partial(run, sliced(batch, torch.tensor([0, 0]), 1)))
        return second is None or _without_numbers(first) != _without_numbers(second)
    batches = chain(_of_equal_rows(batch), _of_equal_rows(_harmless_data(batch)))
    actions: Iterator[Action] = chain(trials, (partial(run, b) for b in batches))
    return not all(does_raise(action) for action in actions)


def _without_numbers(error: Exception | None) -> str:
    return re.sub(r"\d+", "", repr(error))


def _of_equal_rows(batch: tuple[Any, Any]) -> Iterator[Any]:
    """Yield batches that repeat one row of a batch."""
    n_rows = len(tree_leaves(batch[0])[0])
    # With random weights a row is about as likely inside a domain such as x > 0 as
    # outside, so that one of them is inside.
    step = max(1, n_rows // N_TRIALS)
    for row in range(0, n_rows, step):
        yield sliced(batch, torch.full((n_rows,), row), n_rows)


def _harmless_data(batch: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return random inputs of size 1, and targets inside most domains."""
    generator = torch.Generator().manual_seed(0)

    def standard_normal(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return torch.zeros_like(leaf)
        return torch.randn(leaf.shape, generator=generator).to(leaf)

    return _map(standard_normal, batch[0]), harmless(batch[1])


def harmless(data: Any) -> Any:
    """Return 0.5 for floats, identity matrices for square ones, and 0 for integers.

    Parameters
    ----------
    data : nested tuples, lists or mappings of Tensor
        Data whose shapes and dtypes are kept.
    """

    def values(leaf: Tensor) -> Tensor:
        if not leaf.is_floating_point():
            return torch.zeros_like(leaf)
        if leaf.ndim > 2 and leaf.shape[-1] == leaf.shape[-2]:
            return torch.eye(leaf.shape[-1]).expand(leaf.shape).to(leaf)
        return torch.full_like(leaf, 0.5)

    return _map(values, data)


def harmless_outputs(outputs: Any) -> Any:
    """Return outputs with harmless values and a gradient of 0, in the same graph.

    A backward pass runs through all of the graph, so that it raises where it would for
    any values.

    Parameters
    ----------
    outputs : nested tuples, lists or mappings of Tensor
        Outputs of a forward pass.
    """

    def values(leaf: Tensor) -> Tensor:
        everywhere = torch.ones_like(leaf, dtype=torch.bool)
        return torch.where(everywhere, harmless(leaf.detach()), leaf)

    return _map(values, outputs)


def _map(function: Callable[[Tensor], Tensor], data: Any) -> Any:
    return tree_map(lambda x: function(x) if isinstance(x, Tensor) else x, data)
