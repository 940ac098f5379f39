"""Exceptions that come from outside a computation, such as from a signal's handler."""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import torch

_Error = TypeVar("_Error", bound=BaseException)


def unless(
    is_passed: Callable[[BaseException], bool], *kinds: type[_Error]
) -> tuple[type[_Error], ...]:
    """Return the kinds of exceptions that an ``except`` catches.

    Python evaluates the expression of ``except unless(is_of_signal, Exception)`` once
    the exception has been raised.

    Parameters
    ----------
    is_passed : callable
        Whether the ``except`` is to let an exception pass, such as ``is_of_signal``.
    *kinds : type
        Types of exceptions to catch.

    Returns
    -------
    tuple of type
    """
    error = sys.exception()
    return () if isinstance(error, kinds) and is_passed(error) else kinds


def is_of_environment(error: BaseException) -> bool:
    """Whether an exception comes from memory, a disk, a connection or a signal.

    Parameters
    ----------
    error : BaseException
        Exception during a training step.

    Returns
    -------
    bool
    """
    return is_of_signal(error) or isinstance(error, OSError) or is_of_memory(error)


def is_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there is not enough memory.

    Parameters
    ----------
    error : BaseException
        Exception during a training.

    Returns
    -------
    bool
    """
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def is_of_signal(error: BaseException) -> bool:
    """Whether the handler of a signal has raised an exception.

    Python passes the frame that it interrupts to a handler, as it does to the function
    of :func:`sys.settrace`.

    Parameters
    ----------
    error : BaseException
        Exception during a training.

    Returns
    -------
    bool
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(itertools.starmap(_gets_frame, itertools.pairwise(frames)))


def _gets_frame(caller: FrameType, called: FrameType) -> bool:
    """Whether one of the arguments of a function is the frame that has called it."""
    names, varargs, _, values = inspect.getargvalues(called)
    arguments = [values.get(name) for name in names]
    others = values.get(varargs or "")
    if isinstance(others, tuple):  # the function may use the name for something else
        arguments += others
    return any(argument is caller for argument in arguments)
