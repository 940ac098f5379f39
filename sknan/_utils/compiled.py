"""Modules as they were before ``torch.compile``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def original_of(part: Any) -> Any:
    """Return the module that was passed to ``torch.compile``.

    Compiled code cannot be instrumented.

    Parameters
    ----------
    part : object
        Network or criterion, compiled or not.

    Returns
    -------
    object
        The original module, or ``part`` if it was not compiled.
    """
    return getattr(part, "_orig_mod", part)


@contextlib.contextmanager
def uncompiled(net: Any) -> Iterator[None]:
    """Replace the compiled modules of a net by the original ones inside the block.

    Parameters
    ----------
    net : skorch net
        Initialized net.
    """
    names = [f"{name}_" for name in (*net._modules, *net._criteria)]
    compiled = {name: vars(net)[name] for name in names if name in vars(net)}
    vars(net).update({name: original_of(part) for name, part in compiled.items()})
    try:
        yield
    finally:
        vars(net).update(compiled)
