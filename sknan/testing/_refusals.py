"""What counts as a refusal, and the error for what breaks the contract."""

from __future__ import annotations

import re

__all__ = [
    "CONSTANT",
    "FEW",
    "INFINITE",
    "MISSING",
    "RATE",
    "TOO_LARGE",
    "WEIGHT",
    "FaultError",
    "advice",
    "judge",
    "names_fault",
]

# What a refusal may call the fault. A message with none of these words leaves the user
# to find the cause alone.
MISSING = ("NaN", "missing", "null", "finite", "nonfinite")
INFINITE = ("inf", "infinite", "infinity", "finite", "nonfinite")
# Not "inf": a table of finite numbers holds none, and must not be blamed for it.
TOO_LARGE = ("too large", "large value", "overflow", "beyond", "finite", "nonfinite")
# Not "zero" alone: a division by zero is what such a refusal is to prevent.
CONSTANT = ("constant", "variance", "distinct", "identical", "all zero")
FEW = ("sample", "row", "class", "classes", "member", "observation")
RATE = ("learning rate", "learning_rate", "learning_rate_init", "lr", *TOO_LARGE)
WEIGHT = ("weight", *TOO_LARGE)


class FaultError(AssertionError):
    """An estimator broke the contract.

    Parameters
    ----------
    message : str
        What was found, where, and what should happen.
    kind : {"silent NaN", "wrong", "error"}
        A result that is not finite; one that is finite and wrong; or an exception that
        does not name the fault.
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


def names_fault(message: str, words: tuple[str, ...]) -> bool:
    """Whether one of the words, or its plural, stands in the message."""
    listed = "|".join(re.escape(word) for word in words)
    whole_word = rf"(?<![a-z])(?:{listed})s?(?![a-z])"
    return bool(words) and re.search(whole_word, message, re.IGNORECASE) is not None


def judge(error: Exception, label: str, words: tuple[str, ...]) -> None:
    """Let an exception pass that is a refusal naming the fault; raise for another."""
    is_refusal = isinstance(error, (ValueError, TypeError, ArithmeticError))
    if is_refusal and names_fault(str(error), words):
        return
    text = " ".join(str(error).split())
    remedy = (
        f"Name the fault in a ValueError ({_choice(words)}), or fit a finite model."
        if words
        else "Such input is sound: accept it."
    )
    raise FaultError(
        f"{label} raised {type(error).__name__}: {text.rstrip('.')}. {remedy}", "error"
    ) from error


def _choice(words: tuple[str, ...]) -> str:
    return " or ".join(repr(word) for word in words[:3])


def advice(words: tuple[str, ...]) -> str:
    """What should have happened, as the last sentence of a message."""
    if not words:
        return "All of it must be finite."
    return (
        f"Refuse such input with a ValueError that names the fault ({_choice(words)}), "
        "or stay finite."
    )
