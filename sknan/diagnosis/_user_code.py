"""Location of the innermost line of the user's code on the call stack."""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType

import torch

_PACKAGE = str(Path(__file__).parents[1])  # root of sknan: no file in it is the user's
_TORCH = str(Path(torch.__file__).parent)
_LIBRARY_FOLDERS = (_TORCH, _PACKAGE, sysconfig.get_paths()["stdlib"])
_LIBRARY_NAMES = ("skorch", "sklearn", "joblib", "_pytest", "pluggy")


@functools.cache
def is_users(filename: str) -> bool:
    """Whether a file contains code of the user, not of a library.

    Parameters
    ----------
    filename : str
        Path of a source file.

    Returns
    -------
    bool
    """
    if filename.startswith((*_LIBRARY_FOLDERS, "<frozen")):
        # Some installations keep packages below the standard library.
        is_package = "site-packages" in filename
        if not is_package or filename.startswith((_TORCH, _PACKAGE)):
            return False
    _, is_in_package, path = filename.replace("\\", "/").rpartition("site-packages/")
    return not is_in_package or not any(f"{name}/" in path for name in _LIBRARY_NAMES)


@functools.lru_cache(maxsize=4096)
def _is_forward(code: CodeType) -> bool:
    """Whether a function is the ``forward`` of a class of autograd functions."""
    classes = [torch.autograd.Function]
    for function_class in classes:
        if getattr(function_class.forward, "__code__", None) is code:
            return True
        classes.extend(function_class.__subclasses__())
    return False


def line_of_user(stop: FrameType, *, is_of_node: bool = False) -> str | None:
    """Return ``file:line`` of the innermost frame of the user's code.

    Parameters
    ----------
    stop : frame
        Outermost frame to look at, itself excluded.
    is_of_node : bool, default=False
        Whether the line is for a node of the autograd graph. The line of such a node is
        the one that calls the user's own autograd function, not one inside it.

    Returns
    -------
    str or None
        None if all frames belong to libraries.
    """
    frame: FrameType | None = sys._getframe(1)
    found: FrameType | None = None
    while frame is not None and frame is not stop:
        if is_of_node and _is_forward(frame.f_code):
            found = None
        elif found is None and is_users(frame.f_code.co_filename):
            found = frame
            if not is_of_node:
                break
        frame = frame.f_back
    return f"{found.f_code.co_filename}:{found.f_lineno}" if found else None
