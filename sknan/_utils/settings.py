"""Settings of torch and numpy under which the library computes.

Results do not depend on settings that the caller has made for other code: torch's grad
mode, inference mode, autocast, default dtype and default device, and the error state of
numpy. All of these are changed for the present thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch._C import _len_torch_function_stack
from torch.overrides import TorchFunctionMode

from sknan._utils.threads import is_forked, threads_for

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


@contextlib.contextmanager
def usual_settings(
    *, any_dtype: bool = False, any_precision: bool = False
) -> Iterator[None]:
    """Use the settings of a new thread inside the block.

    Gradients are enabled, and inference mode is off. A process that was forked computes
    on one thread.

    Parameters
    ----------
    any_dtype : bool, default=False
        Whether torch's default dtype and device stay in use for new tensors, instead of
        float32 and the CPU.
    any_precision : bool, default=False
        Whether autocast stays on.
    """
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        changes = list(_changes(any_dtype, any_precision))
        if not changes:  # an ExitStack takes longer than all the tests
            yield
            return
        with contextlib.ExitStack() as stack:
            for change in changes:
                stack.enter_context(change)
            yield


def _changes(
    any_dtype: bool, any_precision: bool
) -> Iterator[contextlib.AbstractContextManager[Any]]:
    """Return contexts for the settings that are not the usual ones."""
    if is_forked():
        yield threads_for(0.0, 1)
    if torch.is_inference_mode_enabled():
        yield torch.inference_mode(False)
    if not torch.is_grad_enabled():
        yield torch.enable_grad()
    for device in () if any_precision else ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            yield torch.autocast(device, enabled=False)
    if not any_dtype:
        if torch.get_default_dtype() != torch.float32:
            yield Float32Mode()
        if _len_torch_function_stack() and _default_device() != "cpu":
            yield torch.device("cpu")
