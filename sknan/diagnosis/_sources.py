"""Numbers of which an expression consists, such as the probabilities of a softmax."""

from __future__ import annotations

import re

# Operations that select numbers, weight them or add them up.
_COMBINES = (
    *("add", "amax", "amin", "bmm", "cat", "clamp", "clamp_max", "clamp_min"),
    *("div", "gather", "index_select", "masked_fill", "masked_select", "max"),
    *("maximum", "mean", "min", "minimum", "mul", "stack", "sum", "take", "where"),
)
_ADDS_UP = ("bmm", "mean", "sum")
_COMPARES = (
    *("bitwise_and", "bitwise_not", "bitwise_or", "eq", "ge", "gt", "isfinite"),
    *("isnan", "le", "logical_and", "logical_not", "logical_or", "lt", "ne"),
)
_GIVEN = (
    *("arange", "constant", "eye", "full", "new_full", "new_ones", "new_zeros"),
    *("ones", "ones_like", "target", "zeros", "zeros_like"),
)


def sources_of(expression: str) -> tuple[str, ...]:
    """Return the operations whose numbers an expression selects, weights or adds up.

    Parameters
    ----------
    expression : str
        Origin of a tensor, such as ``"sum(mul(_softmax(input), target))"``.

    Returns
    -------
    tuple of str
        Sorted names, without weights that are constants or targets. ``"1-name"`` is the
        complement of a probability, and ``"+"`` says that several numbers are added up.

    Examples
    --------
    >>> sources_of("where(eq(target, 1), sigmoid(input), rsub(sigmoid(input), 1))")
    ('1-sigmoid', 'sigmoid')
    >>> sources_of("sum(div(mul(_softmax(input), exp(neg(input))), constant))")
    ('+', '_softmax', 'exp')
    """
    innermost = re.compile(r"(\w+)\(([^()]*)\)")
    while innermost.search(expression):
        expression = innermost.sub(_numbers_of_call, expression)
    return tuple(sorted(set(_without_given(expression))))


def _without_given(expression: str) -> list[str]:
    names = (name for name in expression.split(", ") if name not in _GIVEN)
    return [name for name in names if re.match(r"[a-z_+]|1-", name)]


def _numbers_of_call(call: re.Match[str]) -> str:
    """Return the numbers of which the result of a call without calls consists."""
    name, arguments = call.groups()
    names = _without_given(arguments)
    if name in _COMPARES or not names:
        return "constant"
    if name in _COMBINES:
        is_sum = name in _ADDS_UP or (name == "add" and len(names) > 1)
        return ", ".join({*names, "+"} if is_sum else set(names))
    is_complement = name == "rsub" or (name == "sub" and arguments[:8] == "constant")
    if not is_complement:
        return name
    return ", ".join({f"1-{n.removeprefix('1-')}" for n in names if n != "+"})
