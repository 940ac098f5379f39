"""Archives of torch that report why they could not be written."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["save"]


def save(contents: Any, file: Any) -> None:
    """``torch.save`` that raises what broke it off.

    torch closes its archive even if that is half written, fails at it, and so hides a
    full disk or Ctrl-C behind an error about positions in the archive.

    Parameters
    ----------
    contents : object
        What to save.
    file : path or binary file
        Where to.
    """
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        if isinstance(error.__context__, (KeyboardInterrupt, OSError)):
            raise error.__context__ from None
        raise
