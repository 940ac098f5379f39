"""Weights-only archives of torch, written atomically and followed by a checksum.

Reading takes no more memory than a few times the size of the file, whoever has written
it: the parts are stored without compression, and no tensor repeats its elements.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from sknan._utils.outside import is_of_signal, unless

# Containers that an archive restores with their type.
SEQUENCES = (list, tuple)
MAPPINGS = (dict, OrderedDict, Counter)

_DIGEST_SIZE = hashlib.sha256().digest_size


class _Digested:
    """Binary file that computes the digest of what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> Any:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def write_archive(contents: Any, file: Any) -> None:
    """Write an archive and its checksum, and raise the original error if that fails.

    torch closes a partly written archive, fails while closing, and thereby hides a full
    disk or Ctrl-C behind an error about positions in the archive.

    Parameters
    ----------
    contents : object
        Tensors, numbers and strings in nested tuples, lists and dicts.
    file : binary file
        Destination.
    """
    digested = _Digested(file)
    try:
        torch.save(contents, digested)  # type: ignore[arg-type]
    except RuntimeError as error:
        if error.__context__ is not None:
            raise error.__context__ from None
        raise
    file.write(digested.sha256.digest())


def save(contents: Any, path: str | os.PathLike[str]) -> None:
    """Write an archive that replaces the file at once, when it is complete.

    Parameters
    ----------
    contents : object
        Tensors, numbers and strings in nested tuples, lists and dicts.
    path : str or path-like
        Path of the file. If an error is raised, the file has not changed.
    """
    write_file(path, lambda file: write_archive(contents, file))


def write_file(path: str | os.PathLike[str], write: Callable[[Any], object]) -> None:
    """Write a file that replaces another one at once, when it is complete.

    Parameters
    ----------
    path : str or path-like
        Path of the file. If an error is raised, the file has not changed.
    write : callable
        Function that writes to a binary file.
    """
    new = f"{os.fspath(path)}.new"
    try:
        with open(new, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(new)
        raise


def load(path: str | os.PathLike[str], location: Any = "cpu") -> Any:
    """Read an archive without running any code from it.

    Parameters
    ----------
    path : str or path-like
        Path of the file.
    location : object, default="cpu"
        Device for the tensors, or None for the devices they were on.

    Returns
    -------
    object
        None if :func:`save` has not written this file, or its contents have changed.
    """
    with open(path, "rb") as file:
        archive = verified(file.read())
    if archive is None:
        return None
    try:
        parts = zipfile.ZipFile(io.BytesIO(archive)).infolist()
        if sum(part.file_size for part in parts) > len(archive):
            return None
        contents = torch.load(
            io.BytesIO(archive), map_location=location, weights_only=True
        )
    except unless(is_of_signal, Exception):  # foreign contents can cause any exception
        return None
    return None if any(map(_is_expanded, _tensors_in(contents))) else contents


def require_like(found: Any, expected: Any, name: str) -> None:
    """Raise an error if a part of a state has another type or shape than expected.

    Wrong types would raise errors deep inside a training, and the fused kernels of
    torch read and write beyond a tensor that is too small.

    Parameters
    ----------
    found : object
        Tensors, numbers and strings in nested tuples, lists and dicts.
    expected : object
        State of the same kind. None and empty containers allow everything. A container
        may be empty, and None may be in a list that has None here; keys of a dict that
        are numbers, such as those of parameters, may be absent.
    name : str
        Name of the state in the error message.

    Raises
    ------
    TypeError
        If a part is missing, or of another type or shape.
    """
    if expected is None:
        return
    kinds = {type(found), type(expected)}
    if len(kinds) > 1 and not kinds <= {int, float}:
        what = f"{type(found).__name__} instead of {type(expected).__name__}"
        raise TypeError(f"{name} is of type {what}")
    if isinstance(expected, torch.Tensor):
        shapes = shape_in_words(found), shape_in_words(expected)
        if shapes[0] != shapes[1]:
            raise TypeError(f"{name} is of shape {shapes[0]} instead of {shapes[1]}")
    if isinstance(expected, MAPPINGS) and found:
        for key, part in expected.items():
            if key in found:
                require_like(found[key], part, f"{name}[{key!r}]")
            elif isinstance(key, str):
                raise TypeError(f"{name} has no {key!r}")
    elif isinstance(expected, SEQUENCES) and expected:
        lengths = len(found), len(expected)
        is_as_long = lengths[0] == lengths[1]
        if isinstance(expected, tuple) and not is_as_long:
            raise TypeError(f"{name} is of length {lengths[0]} instead of {lengths[1]}")
        may_be_none = any(part is None for part in expected)
        for i, part in enumerate(found):
            if part is not None or not may_be_none:
                require_like(part, expected[i if is_as_long else 0], f"{name}[{i}]")


def shape_in_words(tensor: torch.Tensor) -> str:
    """Return shape, dtype and an unusual layout of a tensor for a message."""
    kinds = [tensor.dtype, *({tensor.layout} - {torch.strided})]
    words = " ".join(str(kind).removeprefix("torch.") for kind in kinds)
    return f"{tuple(tensor.shape)} and dtype {words}"


def sealed(data: bytes) -> bytes:
    """Return data followed by their checksum."""
    return data + hashlib.sha256(data).digest()


def verified(data: bytes) -> memoryview | None:
    """Return the data before a checksum, or None if they have changed."""
    view = memoryview(data)
    contents, digest = view[:-_DIGEST_SIZE], view[-_DIGEST_SIZE:]
    return contents if hashlib.sha256(contents).digest() == digest else None


def _tensors_in(contents: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors; lists that contain one list many times are searched once."""
    seen: set[int] = set()
    parts = [contents]
    while parts:
        part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, torch.Tensor):
            yield part
        elif isinstance(part, Mapping):
            parts += part.values()
        elif isinstance(part, (list, tuple)):
            parts += part


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether a tensor has more elements than its memory, so that a copy is larger."""
    if tensor.layout is torch.sparse_coo:
        return _is_expanded(tensor._indices()) or _is_expanded(tensor._values())
    if tensor.layout is not torch.strided:
        return True  # of unknown size
    return tensor.nbytes > tensor.untyped_storage().nbytes()
