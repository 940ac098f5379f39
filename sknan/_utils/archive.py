"""``torch.save`` with errors that state the cause."""

from __future__ import annotations

from typing import Any

import torch


def save(contents: Any, file: Any) -> None:
    """Save with ``torch.save``, and raise the original error if writing fails.

    torch closes a partly written archive, fails while closing, and thereby hides a full
    disk or Ctrl-C behind an error about positions in the archive.

    Parameters
    ----------
    contents : object
        Object to save.
    file : path or binary file
        Destination.
    """
    try:
        torch.save(contents, file)
    except RuntimeError as error:
        if isinstance(error.__context__, (KeyboardInterrupt, OSError)):
            raise error.__context__ from None
        raise
