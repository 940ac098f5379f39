"""Exceptions of a training step that are about values, such as those of checks."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable
from dis import opname
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sknan._utils.outside import is_of_environment, is_of_signal, unless
from sknan._utils.tree import tree_leaves
from sknan.diagnosis._evidence import CRITERION, FailedOperation
from sknan.diagnosis._user_code import is_users

# Raised for values, and for shapes.
_FOR_ARGUMENTS = (
    ArithmeticError,
    AssertionError,
    IndexError,
    RuntimeError,
    ValueError,
)
_NEVER_FOR_VALUES = (NotImplementedError, RecursionError)
LOSS_IS_DETACHED = (
    "The loss has no gradient with respect to any weight. Look in forward and in the "
    "loss for detach(), torch.no_grad(), torch.inference_mode(), argmax or a use of "
    "NumPy, and leave it out."
)
LOSS_IS_NO_NUMBER = (
    "The loss is not one real number, and only such a number has a gradient. Return "
    "its mean, as in loss.mean(), or set reduction='mean' in the criterion."
)
_HAS_NO_BACKWARD = re.compile(r"'([\w.]+)' object has no attribute 'backward'")

_LIBRARIES = ("builtins", "numpy", "torch")

# Names of dtypes in torch's messages, and what a criterion says of other targets than
# the numbers of the classes.
_NAMES = {
    torch.float64: "[Dd]ouble",
    torch.float32: "[Ff]loat",
    torch.float16: "Half",
    torch.bfloat16: "BFloat16",
    torch.int64: "Long",
    torch.int32: "Int",
    torch.int16: "Short",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.bool: "Bool",
}
_EXPECTS_LABELS = re.compile("expected (target dtype to be|scalar type) Long")

_T = TypeVar("_T")


def may_concern_values(error: BaseException) -> bool:
    """Whether an exception may come from a check of argument values.

    Exceptions of another type, such as a ``TypeError``, are errors of the program. The
    user's own exceptions are for the user's own code to handle.

    Parameters
    ----------
    error : BaseException
        Exception of a training step.

    Returns
    -------
    bool
    """
    return (
        isinstance(error, _FOR_ARGUMENTS)
        and not isinstance(error, _NEVER_FOR_VALUES)
        and not is_of_environment(error)
        and type(error).__module__.partition(".")[0] in _LIBRARIES
    )


def may_be_transient(error: BaseException) -> bool:
    """Whether a repetition of a step may hide an exception that is not the step's.

    These are lack of memory, and what ends a program from outside.

    Parameters
    ----------
    error : BaseException
        Exception during a training step.

    Returns
    -------
    bool
    """
    is_own = type(error).__module__.partition(".")[0] not in _LIBRARIES
    return is_own or is_of_environment(error)


class ValueErrors:
    """Block that ends at an exception that may depend on values, and keeps it.

    Attributes
    ----------
    error : Exception or None
        Exception that ended the block. Any other exception passes.
    """

    error: Exception | None = None

    def __enter__(self) -> ValueErrors:
        """Return the block."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, place: Any) -> bool:
        """Keep the exception, or let it pass."""
        if isinstance(error, Exception) and may_concern_values(error):
            self.error = error
        return self.error is not None


def error_of(run: Callable[[], Any]) -> Exception | None:
    """Return the exception of a function, if it may depend on values.

    Parameters
    ----------
    run : callable
        Function without arguments.
    """
    with ValueErrors() as block:
        run()
    return block.error


def does_raise(run: Callable[[], Any]) -> bool:
    """Whether a function raises an exception that may depend on values.

    Parameters
    ----------
    run : callable
        Function without arguments.
    """
    return error_of(run) is not None


def result_of_trial(run: Callable[[], _T]) -> _T | None:
    """Return the result of user code; None if it raises.

    An exception of the user's own type that a repetition does not raise came from
    outside, such as from the handler of a signal. It passes.

    Parameters
    ----------
    run : callable
        Function without arguments, which may be called twice.
    """
    try:
        return run()
    except unless(is_of_signal, Exception) as error:
        if may_be_transient(error) and not _raises_alike(run, error):
            raise
        return None


def _raises_alike(run: Callable[[], Any], error: Exception) -> bool:
    if is_of_environment(error):
        return False
    try:
        run()
    except unless(is_of_signal, Exception) as again:
        return type(again) is type(error)
    return False


def is_raised_by_user(error: BaseException) -> bool:
    """Whether a ``raise`` or ``assert`` in the user's code has raised an exception."""
    place = error.__traceback__
    if place is None:
        return False
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code
    is_raise = opname[code.co_code[place.tb_lasti]] == "RAISE_VARARGS"
    is_package = "site-packages" in code.co_filename
    return is_raise and is_users(code.co_filename) and not is_package


def about_loss(error: Exception) -> Exception:
    """Return an exception that says what is wrong with a loss, if that has failed.

    Parameters
    ----------
    error : Exception
        Exception of a step.

    Returns
    -------
    Exception
        ``error`` itself if it has another reason.
    """
    message = str(error)
    frames = traceback.walk_tb(error.__traceback__)
    if any(f.f_code.co_name == "_call_impl" for f, _ in frames):
        return error  # of a module
    if "does not require grad" in message:
        return ValueError(LOSS_IS_DETACHED)
    if "grad can be implicitly created only for" in message:
        return ValueError(LOSS_IS_NO_NUMBER)
    if (found := re.fullmatch(_HAS_NO_BACKWARD, message)) is not None:
        return TypeError(loss_of_type(found[1]))
    return error


def loss_of_type(name: str) -> str:
    """Return the message about a loss of another type than a tensor."""
    return (
        f"The loss is of type {name}, but must be a tensor with one real number. "
        "Return the tensor itself, without item(), float() or NumPy."
    )


def about_dtype(
    error: Exception, inputs: Any, parameters: Iterable[Tensor]
) -> Exception:
    """Return an exception that asks for another dtype, if that is what has failed.

    Parameters
    ----------
    error : Exception
        Exception of a step or a prediction.
    inputs : nested Tensor
        Inputs of the batch.
    parameters : iterable of Tensor
        Weights of the network.

    Returns
    -------
    Exception
        ``error`` itself if it has another reason.
    """
    message = (str(error).splitlines() or [""])[0].rstrip(".")
    if not isinstance(error, RuntimeError):
        return error
    if _EXPECTS_LABELS.search(message):
        return RuntimeError(
            f"{message}. The criterion takes the numbers of the classes as int64: pass "
            "y.astype('int64')."
        )
    weights = {p.dtype for p in parameters if p.is_floating_point()}
    types = dict.fromkeys(leaf.dtype for leaf in tree_leaves(inputs))
    pairs = ((of_X, own) for of_X in types for own in weights if of_X is not own)
    found = next((pair for pair in pairs if _is_about(message, *pair)), None)
    if found is None:
        return error
    of_X, own = (str(dtype).removeprefix("torch.") for dtype in found)
    if of_X == "float32" or own in ("float16", "bfloat16"):
        return RuntimeError(
            f"{message}. X is {of_X}, and weights of the network are {own}: call "
            "float() on the module."
        )
    # NumPy has no bfloat16: such an X is a tensor.
    cast = f"to(torch.{own})" if of_X == "bfloat16" else f"astype('{own}')"
    return RuntimeError(
        f"{message}. X is {of_X}, and the weights of the network are {own}: pass "
        f"X.{cast}, or set dtype='{own}' in NaNImputer."
    )


def _is_about(message: str, of_X: torch.dtype, own: torch.dtype) -> bool:
    """Whether a message names the dtypes of inputs and weights.

    Integers are inputs of an embedding, too. One that fails is named beside another.
    """
    x, weights = (
        re.search(rf"\b{_NAMES[dtype]}(Tensor)?\b", message)
        if dtype in _NAMES
        else None
        for dtype in (of_X, own)
    )
    if of_X is torch.float32:
        return weights is not None
    return x is not None and (of_X.is_floating_point or weights is not None)


def failed_check(error: Exception, module: str) -> FailedOperation:
    """Return the call in the user's code that has raised an exception.

    Parameters
    ----------
    error : Exception
        Exception of the forward pass or the loss.
    module : str
        Path of the module whose forward pass was running.

    Returns
    -------
    FailedOperation
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    of_user = [i for i, (f, _) in enumerate(frames) if is_users(f.f_code.co_filename)]
    source = None
    if of_user:
        frame, line = frames[of_user[-1]]
        source = f"{frame.f_code.co_filename}:{line}"
        frames = frames[of_user[-1] + 1 :]
    return FailedOperation(
        phase="loss" if module == CRITERION else "forward",
        module=module,
        operation=_name_of_call([frame for frame, _ in frames]),
        source=source,
        has_raised=True,
    )


def _name_of_call(frames: list[FrameType]) -> str:
    """Return the name of the module, object or function that has raised."""
    owners = [frame.f_locals.get("self") for frame in frames]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    if modules:
        return type(modules[-1]).__name__
    if not frames:  # a function in C, such as math.log
        return ""
    owner = owners[0]
    return frames[0].f_code.co_name if owner is None else type(owner).__name__
