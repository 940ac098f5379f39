"""Warnings of the library.

A search or an ensemble collects the warnings of its networks, and shows each once.
``warnings.catch_warnings`` would replace the filters of the whole process meanwhile. A
context variable holds the list that collects them, so that each thread has its own.
"""

from __future__ import annotations

import sys
import warnings
from contextvars import ContextVar
from types import FrameType
from typing import Any

# Packages whose frames are skipped.
_INSIDE = {"sknan", "skorch", "sklearn", "joblib", "contextlib"}

_recorder: ContextVar[recorded_warnings | None] = ContextVar("recorder", default=None)


def warn(warning: str | Warning) -> None:
    """Issue a warning at the user's line, or record it in :class:`recorded_warnings`.

    Parameters
    ----------
    warning : str or Warning
        The warning; a text is a ``UserWarning``.
    """
    recorder = _recorder.get()
    while recorder is not None and not recorder.is_open():
        recorder = recorder.outer
    if recorder is None:
        warnings.warn(warning, stacklevel=_stacklevel_of_caller())
    else:
        found = UserWarning(warning) if isinstance(warning, str) else warning
        recorder.recorded.append(found)


class recorded_warnings:
    """Record the library's warnings in the block instead of issuing them.

    Warnings of other libraries are issued as usual. The block yields the list of the
    warnings in their order.
    """

    def __enter__(self) -> list[Warning]:
        self.recorded: list[Warning] = []
        self.outer = _recorder.get()
        self._frame: FrameType | None = sys._getframe(1)
        _recorder.set(self)
        return self.recorded

    def __exit__(self, *error: Any) -> None:
        _recorder.set(self.outer)
        self._frame = None

    def is_open(self) -> bool:
        """Whether the function with the block is still running.

        Ctrl-C at the end of a block may keep Python from leaving it.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None


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
