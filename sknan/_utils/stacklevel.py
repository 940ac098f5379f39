"""Where a warning points to: the line of the caller, not one of a library."""

from __future__ import annotations

import sys
from types import FrameType

__all__ = ["stacklevel_of_caller"]

# Packages whose lines are not the user's.
_INSIDE = {"sknan", "skorch", "sklearn", "joblib", "contextlib"}


def stacklevel_of_caller() -> int:
    """Level, for a warning of the calling function, of the first frame outside.

    Between ``fit`` and the training lie frames of ours, skorch and scikit-learn, more
    of them in a pipeline or a search. (``skip_file_prefixes`` needs Python 3.12.)

    Returns
    -------
    int
        For ``warnings.warn(..., stacklevel=...)``.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _INSIDE:
            return level
        frame, level = frame.f_back, level + 1
    return level
