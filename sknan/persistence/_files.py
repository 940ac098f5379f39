"""Fitted models in files that run no code when they are read."""

from __future__ import annotations

import io
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import cloudpickle
import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet

from sknan._utils.archive import sealed, verified, write_file
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.pickling import versions
from sknan._utils.trusted_types import METRICS, OPTIMIZERS, TRUSTED_TYPES
from sknan._utils.validation import PATH, check_parameter

_FORMAT = "sknan model 1"
_ABOUT = "about.json"

# The parts of a file may be this many times as large as the file, and this many bytes
# larger. Beyond that the parts are stored without compression.
_LARGEST_EXPANSION = 20
_EXTRA_BYTES = 2**22

# Names of packages whose own rule says what is trusted: a file with other parts of them
# would only be refused where it is loaded.
_JUDGED = ("sklearn.", "scipy.")

_WITHOUT_DISTRIBUTIONS = (
    "Save best_estimator_ of the search, search lists of values, or use pickle."
)

_PART_NAME = re.compile(r"[\w-]+\.(npy|bin|json)")


def save(
    model: Any, path: str | os.PathLike[str], *, trusted: Sequence[str] = ()
) -> None:
    """Write a fitted model to a file that :func:`load` reads without running code.

    The format is that of skops, compressed, with the versions of the packages, the
    names of the columns and a checksum. It needs ``pip install 'sknan[ship]'``.

    Parameters
    ----------
    model : estimator, Pipeline or search
        Fitted model. Its own classes must be importable where it is loaded.
    path : str or path-like
        Path of the file. An existing file is replaced when the new one is complete. If
        an error is raised, it has not changed.
    trusted : sequence of str, default=()
        Names of classes and functions of scikit-learn and scipy that :func:`load` does
        not trust by itself, such as ``["sklearn.tree._tree.Tree"]``. Pass them to
        :func:`load` too.

    Raises
    ------
    ValueError
        If a part of the model cannot be saved, such as a lambda function, or is not
        trusted by :func:`load`. The message says which.
    NotFittedError
        If the model is not fitted.
    ImportError
        If skops is not installed.

    See Also
    --------
    to_torch : One torch module, which needs no scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier
    >>> from sknan.persistence import load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> model = StableNetClassifier(max_epochs=1, random_state=0).fit(X, y)
    >>> save(model, "model.skops")  # doctest: +SKIP
    >>> load("model.skops").predict(X[:1])  # doctest: +SKIP
    """
    check_parameter("save", "path", path, PATH)
    kind = type(model).__name__
    if isinstance(model, NeuralNet) or not isinstance(model, BaseEstimator):
        raise ValueError(
            f"save writes estimators of scikit-learn and sknan, got {kind}. Use "
            "pickle, or save_params of a skorch net."
        )
    names = _checked_names(trusted)
    check_is_fitted(model)
    try:
        arrays: list[Any] = []  # without copies
        _Search(io.BytesIO(), protocol=5, buffer_callback=arrays.append).dump(model)
        data = _written(model, zipfile.ZIP_DEFLATED)
        if _expansion(data) > _LARGEST_EXPANSION * len(data) + _EXTRA_BYTES:
            data = _written(model, zipfile.ZIP_STORED)
        _check_what_load_refuses(data, names)
        _check_parts(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            _skops().loads(data, trusted=_types_in(data))
    except ImportError:
        raise
    except _RefusedError as error:
        raise ValueError(f"{kind} cannot be saved: {error}") from None
    except RecursionError:
        raise ValueError(
            f"{kind} cannot be saved: a part contains itself, as scipy.stats.randint "
            f"does. {_WITHOUT_DISTRIBUTIONS}"
        ) from None
    except unless(is_of_signal, Exception) as error:
        reason = str(error).rstrip(".")
        raise ValueError(
            f"{kind} cannot be saved: {reason}. Use classes and functions that can be "
            "imported, or pickle."
        ) from error
    write_file(path, lambda file: file.write(sealed(data)))


def load(path: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> Any:
    """Read a model that :func:`save` has written, without running code from the file.

    Only objects of known classes of sknan, skrub and scikit-learn are restored
    (:data:`TRUSTED_TYPES`, and the estimators that skops trusts). Metrics of
    scikit-learn and optimizers of torch are restored by name, and not called. The file
    is checked before anything is restored, and reading it takes no more memory than
    about 20 times its size.

    Parameters
    ----------
    path : str or path-like
        Path of the file.
    trusted : sequence of str, default=()
        Names of further classes and functions that the file may contain, such as the
        class of your own module: ``["my_package.MyModule"]``. Their code runs.

    Returns
    -------
    object
        The model.

    Raises
    ------
    ValueError
        If `trusted` is not a list of names, or the file is damaged, was not written by
        :func:`save`, or contains classes or functions that are not trusted. The message
        names them.
    OSError
        If the file cannot be read.
    ImportError
        If skops is not installed.

    Warns
    -----
    InconsistentVersionWarning
        Once for each package whose version differs.
    """
    check_parameter("load", "path", path, PATH)
    name = repr(os.fspath(path))
    own = _checked_names(trusted)
    with open(path, "rb") as file:
        contents = verified(file.read())
    if contents is None:
        raise ValueError(
            f"The file {name} is damaged, or was not written by "
            "sknan.persistence.save. Put an intact copy in its place."
        )
    data = bytes(contents)
    try:
        made_with = _check_parts(data)
        unknown = _not_trusted(data, own)
    except ImportError:
        raise
    except unless(is_of_signal, Exception) as error:
        raise ValueError(
            f"The file {name} is not a model that sknan.persistence.save has "
            f"written: {error}"
        ) from error
    if unknown:
        raise ValueError(
            f"The file {name} contains classes or functions that are not trusted: "
            f"{', '.join(unknown)}. If you trust their code and the author of the "
            f"file, pass trusted={unknown}."
        )
    try:
        return _restored(data, sorted({*TRUSTED_TYPES, *OPTIMIZERS, *own}))
    except unless(is_of_signal, Exception) as error:
        made = ", ".join(f"{name} {version}" for name, version in made_with.items())
        raise ValueError(
            f"The file {name}, which was written with {made}, cannot be restored: "
            f"{type(error).__name__}: {error}"
        ) from error


class _RefusedError(Exception):
    """Part of a model that :func:`load` would refuse, and what to do."""


def _checked_names(trusted: Any) -> list[str]:
    """Return the names that a user trusts."""
    names = [trusted] if isinstance(trusted, str) else trusted
    is_collection = isinstance(names, (list, tuple, set, frozenset))
    if not is_collection or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "trusted must be a list of names of classes and functions, such as "
            f"['my_package.MyModule'], got {trusted!r}."
        )
    return [*names]


def _not_trusted(data: bytes, own: Sequence[str]) -> list[str]:
    """Return the names that neither the rules nor the user trusts.

    A metric or an optimizer is trusted as a value only. Another node of skops with its
    name would call it.
    """
    values = {*METRICS, *OPTIMIZERS}
    called = {
        name
        for name, loader in _nodes(data)
        if name in values and loader not in ("FunctionNode", "TypeNode")
    }
    found = {*_types_in(data)} - {*TRUSTED_TYPES, *OPTIMIZERS}
    return sorted((found | called) - {*own})


def _nodes(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the names of the objects in a file, each with its loader of skops."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        nodes = [json.loads(archive.read("schema.json"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            if "__loader__" in node:
                name = f"{node['__module__']}.{node['__class__']}"
                yield name, str(node["__loader__"])
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def _check_what_load_refuses(data: bytes, own: Sequence[str]) -> None:
    """Raise an error for parts that cannot be loaded elsewhere."""
    names = {name for name, _ in _nodes(data)}
    local = sorted(name for name in names if name.startswith("__main__."))
    if local:
        raise _RefusedError(
            f"{', '.join(local)} is defined in a notebook or script, and does not "
            "exist where the file is loaded. Put it into a module file, import it from "
            "there, and fit again."
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(name.endswith(".npz") for name in archive.namelist()):
            raise _RefusedError(
                "it contains a sparse matrix, which load does not read. Fit it on a "
                "dense array, or use pickle."
            )
    unknown = [name for name in _not_trusted(data, own) if name.startswith(_JUDGED)]
    distributions = [name for name in unknown if name.startswith("scipy.stats.")]
    if distributions:
        raise _RefusedError(
            f"load does not trust {', '.join(distributions)}, because scipy runs text "
            f"of the file to restore them. {_WITHOUT_DISTRIBUTIONS}"
        )
    if unknown:
        raise _RefusedError(
            f"load does not trust {', '.join(unknown)}. If the file is only loaded by "
            f"those who trust you, pass trusted={unknown} to save and to load. Or use "
            "pickle."
        )


class _Search(cloudpickle.Pickler):
    """Search for objects of torch on which skops would abort the process."""

    def persistent_id(self, obj: Any) -> None:
        """Refuse an object that is implemented in C++."""
        if isinstance(obj, torch.ScriptObject):
            raise _RefusedError(
                "it contains an object of torch without attributes in Python, as "
                "quantized layers do. Use pickle, or the layer before it is quantized."
            )


def _skops() -> Any:
    try:
        import skops.io
    except ImportError as error:
        raise ImportError(
            "Files of models need skops: pip install 'sknan[ship]'."
        ) from error
    return skops.io


def _written(model: Any, compression: int) -> bytes:
    """Return a model in the format of skops, and what is known about it."""
    file = io.BytesIO(_skops().dumps(model, compression=compression))
    about = {
        "format": _FORMAT,
        "versions": versions(),
        "feature_names": list(map(str, getattr(model, "feature_names_in_", ()))),
    }
    with zipfile.ZipFile(file, "a", compression) as archive:
        archive.writestr(_ABOUT, json.dumps(about))
    return file.getvalue()


def _types_in(data: bytes) -> list[str]:
    """Return the classes and functions that skops does not trust by itself."""
    found: list[str] = _skops().get_untrusted_types(data=data)
    return found


def _expansion(data: bytes) -> int:
    """Return the number of bytes of all parts."""
    parts = zipfile.ZipFile(io.BytesIO(data)).infolist()
    return sum(part.file_size for part in parts)


def _check_parts(data: bytes) -> dict[str, str]:
    """Check names and sizes of all parts, and return the versions of the packages."""
    if _expansion(data) > _LARGEST_EXPANSION * len(data) + _EXTRA_BYTES:
        raise ValueError("Its parts are far larger than the file.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        strange = [name for name in names if not _PART_NAME.fullmatch(name)]
        if strange or len({*names}) < len(names):
            raise ValueError("Its parts have other names.")
        for name in names:
            if name.endswith(".npy"):
                with archive.open(name) as file:
                    _check_array(file, archive.getinfo(name).file_size)
        about = json.loads(archive.read(_ABOUT))
    if about["format"] != _FORMAT:
        raise ValueError(f"It has the format {about['format']!r}, not {_FORMAT!r}.")
    made_with: dict[str, str] = about["versions"]
    return made_with


def _check_array(file: Any, size: int) -> None:
    """Check that an array is as large as its part."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
    if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("An array has another size than its part.")


def _restored(data: bytes, trusted: list[str]) -> Any:
    """Return the model, and show each warning of another version once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", InconsistentVersionWarning)
        model = _skops().loads(data, trusted=trusted)
    shown = set()
    for found in caught:
        warning: Any = found.message
        key = getattr(warning, "original_sklearn_version", str(warning))
        if key not in shown:
            shown.add(key)
            warnings.warn(warning, stacklevel=3)
    return model
