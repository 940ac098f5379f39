"""Settings of torch and numpy under which the library computes.

Results do not depend on settings that the caller has made for other code: torch's grad
mode, inference mode, autocast, default dtype and default device, and the error state of
numpy. All of these are changed for the present thread only.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode

from sknan._utils.threads import is_forked, threads_for

_ERRORS: Any = {
    "divide": "warn",
    "over": "warn",
    "under": "ignore",
    "invalid": "warn",
}

P = ParamSpec("P")
R = TypeVar("R")

# Functions that create tensors of the default dtype.
_OF_SIZES: tuple[Any, ...] = (
    torch.empty,
    torch.empty_strided,
    torch.eye,
    torch.linspace,
    torch.logspace,
    torch.normal,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.zeros,
)

# Functions that create tensors of the default dtype from Python's floats.
_OF_NUMBERS: tuple[Any, ...] = (
    torch.arange,
    torch.as_tensor,
    torch.asarray,
    torch.full,
    torch.scalar_tensor,
    torch.tensor,
)


class Float32Mode(TorchFunctionMode):
    """Create tensors in float32, whatever torch's default dtype is.

    The default dtype belongs to the whole process, a mode to one thread.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, with a dtype if it would use the default one."""
        kwargs = kwargs or {}
        is_of_sizes = func in _OF_SIZES
        if not (is_of_sizes or func in _OF_NUMBERS) or any(
            isinstance(value, torch.dtype) or hasattr(value, "dtype")
            for value in (*args, *kwargs.values())
        ):
            return func(*args, **kwargs)
        if not is_of_sizes:
            found = func(*args, **kwargs)
            if found.dtype != torch.get_default_dtype():
                return found
        return func(*args, **{**kwargs, "dtype": torch.float32})


def _default_device() -> str:
    device: torch.device = torch.get_default_device()
    return device.type


class usual_settings:
    """Use the settings of a new thread inside a block, or inside each call.

    Gradients are enabled, and inference mode is off. A process that was forked computes
    on one thread. This is a class, since the context manager of a generator takes as
    long as a small layer.

    Parameters
    ----------
    any_dtype : bool, default=False
        Whether torch's default dtype and device stay in use for new tensors, instead of
        float32 and the CPU.
    any_precision : bool, default=False
        Whether autocast stays on.
    """

    def __init__(self, *, any_dtype: bool = False, any_precision: bool = False) -> None:
        self._given = any_dtype, any_precision

    def __enter__(self) -> None:
        self._errors = np.errstate(**_ERRORS)
        self._errors.__enter__()
        self._stack = None
        changes = _changes(*self._given)
        if changes:  # an ExitStack takes longer than all the tests
            self._stack = contextlib.ExitStack()
            for change in changes:
                self._stack.enter_context(change)

    def __exit__(self, *error: Any) -> None:
        try:
            if self._stack is not None:
                self._stack.__exit__(*error)
        finally:
            self._errors.__exit__(*error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return a function that uses the settings in each call."""
        any_dtype, any_precision = self._given

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if np.geterr() == _ERRORS and not _changes(any_dtype, any_precision):
                return function(*args, **kwargs)
            with usual_settings(any_dtype=any_dtype, any_precision=any_precision):
                return function(*args, **kwargs)

        return call


def _changes(
    any_dtype: bool, any_precision: bool
) -> list[contextlib.AbstractContextManager[Any]]:
    """Return contexts for the settings that are not the usual ones."""
    found: list[contextlib.AbstractContextManager[Any]] = []
    if is_forked():
        found.append(threads_for(0.0, 1))
    if torch.is_inference_mode_enabled():
        found.append(torch.inference_mode(False))
    if not torch.is_grad_enabled():
        found.append(torch.enable_grad())
    for device in () if any_precision else ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            found.append(torch.autocast(device, enabled=False))
    if not any_dtype:
        if torch.get_default_dtype() != torch.float32:
            found.append(Float32Mode())
        if _len_torch_function_stack() and _default_device() != "cpu":
            found.append(torch.device("cpu"))
    return found
