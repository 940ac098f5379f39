"""Warnings of the library.

A search or an ensemble collects the warnings of its networks, and shows each once.
``warnings.catch_warnings`` would replace the filters of the whole process meanwhile. A
context variable holds the list that collects them, so that each thread has its own.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType

# Packages whose frames are skipped.
_INSIDE = {"sknan", "skorch", "sklearn", "joblib", "contextlib"}

_recorder: ContextVar[list[Warning] | None] = ContextVar("recorder", default=None)


def warn(warning: str | Warning) -> None:
    """Issue a warning at the user's line, or record it in :func:`recorded_warnings`.

    Parameters
    ----------
    warning : str or Warning
        The warning; a text is a ``UserWarning``.
    """
    recorded = _recorder.get()
    if recorded is None:
        warnings.warn(warning, stacklevel=_stacklevel_of_caller())
    else:
        recorded.append(UserWarning(warning) if isinstance(warning, str) else warning)


@contextlib.contextmanager
def recorded_warnings() -> Iterator[list[Warning]]:
    """Record the library's warnings in the block instead of issuing them.

    Warnings of other libraries are issued as usual.

    Yields
    ------
    list of Warning
        Warnings in their order.
    """
    recorded: list[Warning] = []
    token = _recorder.set(recorded)
    try:
        yield recorded
    finally:
        _recorder.reset(token)


def _stacklevel_of_caller() -> int:
    """Return the stack level of the first frame outside the libraries.

    The number of frames of sknan, skorch and scikit-learn between the user's call and
    the warning is not fixed: a pipeline or a search adds some. (The argument
    ``skip_file_prefixes`` of ``warnings.warn`` needs Python 3.12.)
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _INSIDE:
            return level
        frame, level = frame.f_back, level + 1
    return level
