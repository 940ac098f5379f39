"""Stack level of the user's line, for warnings."""

from __future__ import annotations

import sys
from types import FrameType

# Packages whose frames are skipped.
_INSIDE = {"sknan", "skorch", "sklearn", "joblib", "contextlib"}


def stacklevel_of_caller() -> int:
    """Return the stack level of the first frame outside the libraries.

    The number of frames of sknan, skorch and scikit-learn between the user's call and
    the warning is not fixed: a pipeline or a search adds some. (The argument
    ``skip_file_prefixes`` of ``warnings.warn`` needs Python 3.12.)

    Returns
    -------
    int
        Value for ``warnings.warn(..., stacklevel=...)`` in the calling function.
    """
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _INSIDE:
            return level
        frame, level = frame.f_back, level + 1
    return level
