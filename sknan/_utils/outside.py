"""Exceptions that come from outside a computation, such as from a signal's handler."""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Callable
from dis import opname
from types import FrameType
from typing import TypeVar

import torch

_Error = TypeVar("_Error", bound=BaseException)

# Modules whose functions train several models, and those among them that train one.
_OF_SEVERAL = (
    *("sklearn", "joblib"),
    *("sknan._engine.jobs", "sknan.model_selection", "sknan.testing"),
)
_OF_ONE = (
    *("sklearn.base", "sklearn.callback", "sklearn.compose", "sklearn.pipeline"),
    "sklearn.utils",
)


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

    Raises
    ------
    BaseException
        The exception from outside that the passed one has replaced, as one of a
        ``finally`` does.
    """
    error = sys.exception()
    if not isinstance(error, kinds) or not is_passed(error):
        return kinds
    origin = _from_outside(error)
    if origin is not None and origin is not error:
        raise origin
    return ()


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
    """Whether an exception is of a signal, or has replaced one while it was handled.

    An exception of a signal is Ctrl-C, an exit, or what a handler has raised. Python
    passes the frame that it interrupts to a handler, as it does to the function of
    :func:`sys.settrace`.

    Parameters
    ----------
    error : BaseException
        Exception during a training.

    Returns
    -------
    bool
    """
    return _from_outside(error) is not None


def _from_outside(error: BaseException) -> BaseException | None:
    """Return the exception of a signal that has led to an exception."""
    found: BaseException | None = error
    known: set[FrameType] = set()
    seen: list[BaseException] = []
    while found is not None and found not in seen:
        frames = [frame for frame, _ in traceback.walk_tb(found.__traceback__)]
        if found is not error and known.isdisjoint(frames):
            return None  # handled by a caller, since before the program got here
        is_interrupt = isinstance(found, KeyboardInterrupt | SystemExit)
        if is_interrupt and not is_orderly_stop(found):
            return found
        if any(itertools.starmap(_gets_frame, itertools.pairwise(frames))):
            return found
        known.update(frames)
        seen.append(found)
        found = found.__context__
    return None


def is_orderly_stop(interrupt: BaseException) -> bool:
    """Whether a callback has ended a training after an epoch, and not the user.

    In skorch a callback ends a training by a ``raise KeyboardInterrupt`` in its method
    ``on_epoch_end``. Ctrl-C gives this exception at any instruction.

    Parameters
    ----------
    interrupt : BaseException
        Exception that has ended the training.

    Returns
    -------
    bool
    """
    return _stopping_frame(interrupt) is not None


def is_announced_stop(interrupt: BaseException) -> bool:
    """Whether the callback of an orderly stop belongs to skorch or sknan.

    These say so themselves. A stop by any other callback gives a warning, since it may
    be Ctrl-C that the callback passes on.
    """
    frame = _stopping_frame(interrupt)
    name = "" if frame is None else str(frame.f_globals.get("__name__"))
    return name.partition(".")[0] in ("skorch", "sknan")


def _stopping_frame(interrupt: BaseException) -> FrameType | None:
    """Return the frame of the callback that has raised an exception, if one has."""
    place = interrupt.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return None
    frame = place.tb_frame
    is_raised = opname[frame.f_code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    return frame if is_raised and frame.f_code.co_name == "on_epoch_end" else None


def end_other_fits() -> None:
    """End a search, an ensemble or other fits that the present one belongs to.

    After Ctrl-C a training keeps what it has learned if the user has called its
    ``fit``, alone or as the end of a pipeline. As one of several it is of no use: half
    trained, it would be compared or averaged with the others. The call stack tells
    the two.

    Raises
    ------
    KeyboardInterrupt
        If a function that trains several models has called the present one, such as
        those of scikit-learn's searches and ensembles, and of joblib's workers.
    """
    frame = inspect.currentframe()
    while frame is not None:
        name = f"{frame.f_globals.get('__name__')}."
        if _is_among(name, _OF_SEVERAL) and not _is_among(name, _OF_ONE):
            raise KeyboardInterrupt
        frame = frame.f_back


def _is_among(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a module, whose name ends in a dot, is one of these or inside it."""
    return name.startswith(tuple(f"{module}." for module in modules))


def _gets_frame(caller: FrameType, called: FrameType) -> bool:
    """Whether one of the arguments of a function is the frame that has called it."""
    names, varargs, _, values = inspect.getargvalues(called)
    arguments = [values.get(name) for name in names]
    others = values.get(varargs or "")
    if isinstance(others, tuple):  # the function may use the name for something else
        arguments += others
    return any(argument is caller for argument in arguments)
