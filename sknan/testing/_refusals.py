"""Words of a valid refusal, and the error for a broken contract."""

from __future__ import annotations

import re

# Words that name a fault. A message with none of them does not tell the user the cause.
MISSING = ("NaN", "missing", "null", "finite", "nonfinite")
INFINITE = ("inf", "infinite", "infinity", "finite", "nonfinite")
# Without "inf": a table of finite numbers contains no infinity.
TOO_LARGE = ("too large", "large value", "overflow", "beyond", "finite", "nonfinite")
# Without "zero" alone, which would accept the message of a division by zero.
CONSTANT = ("constant", "variance", "distinct", "identical", "all zero")
FEW = ("sample", "row", "class", "classes", "member", "observation")
RATE = ("learning rate", "learning_rate", "learning_rate_init", "lr", *TOO_LARGE)
WEIGHT = ("weight", *TOO_LARGE)


class FaultError(AssertionError):
    """An estimator broke the contract.

    Parameters
    ----------
    message : str
        Message that says what was found, where, and what should happen.
    kind : {"silent NaN", "wrong", "error"}, default="wrong"
        ``"silent NaN"`` is a non-finite result, ``"wrong"`` a finite but wrong result,
        and ``"error"`` an exception that does not name the fault.
    """

    def __init__(self, message: str, kind: str = "wrong") -> None:
        super().__init__(message)
        self.kind = kind


def names_fault(message: str, words: tuple[str, ...]) -> bool:
    """Whether the message contains one of the words or its plural."""
    listed = "|".join(re.escape(word) for word in words)
    whole_word = rf"(?<![a-z])(?:{listed})s?(?![a-z])"
    return bool(words) and re.search(whole_word, message, re.IGNORECASE) is not None


def judge(error: Exception, label: str, words: tuple[str, ...]) -> None:
    """Raise ``FaultError`` unless the exception is a refusal that names the fault."""
    is_refusal = isinstance(error, (ValueError, TypeError, ArithmeticError))
    if is_refusal and names_fault(str(error), words):
        return
    text = " ".join(str(error).split())
    remedy = (
        f"Name the fault in a ValueError ({_choice(words)}), or fit a finite model."
        if words
        else "Such input is valid: accept it."
    )
    raise FaultError(
        f"{label} raised {type(error).__name__}: {text.rstrip('.')}. {remedy}", "error"
    ) from error


def _choice(words: tuple[str, ...]) -> str:
    return " or ".join(repr(word) for word in words[:3])


def advice(words: tuple[str, ...]) -> str:
    """Return the last sentence of a message: the expected behavior."""
    if not words:
        return "All of it must be finite."
    return (
        f"Refuse such input with a ValueError that names the fault ({_choice(words)}), "
        "or stay finite."
    )
