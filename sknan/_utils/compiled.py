"""Modules as they were before ``torch.compile``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

__all__ = ["original_of", "uncompiled"]


def original_of(part: Any) -> Any:
    """What ``torch.compile`` was given: in compiled code there is nothing to see.

    Parameters
    ----------
    part : object
        Network or criterion, compiled or not.
    """
    return getattr(part, "_orig_mod", part)


@contextlib.contextmanager
def uncompiled(net: Any) -> Iterator[None]:
    """Put what ``torch.compile`` was given in place of what it made of it.

    Parameters
    ----------
    net : skorch net
        Initialized.
    """
    names = [f"{name}_" for name in (*net._modules, *net._criteria)]
    compiled = {name: vars(net)[name] for name in names if name in vars(net)}
    vars(net).update({name: original_of(part) for name, part in compiled.items()})
    try:
        yield
    finally:
        vars(net).update(compiled)
