"""Progress bars: for what takes longer than a second, where somebody is watching.

Who has been asked to show a bar holds it; what works deep inside, or in another
process, and knows nothing of it, says how far it has come.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # without widgets it is a line of text
    from tqdm.auto import tqdm

__all__ = ["advance", "is_shown", "progress", "reach", "reported_to", "reports"]

_SECONDS_BEFORE = 1.0
_SECONDS_BETWEEN = 0.2
_LINE = "{l_bar}{bar}| {n:.0f}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"


class _Bar:
    """A bar, and the numbers behind it."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._bar = tqdm(
            total=total,
            desc=what,
            unit=unit,
            delay=_SECONDS_BEFORE,
            miniters=0,  # whether it is drawn depends on the time alone
            bar_format=_LINE,
            dynamic_ncols=True,
        )
        self._n = 0.0
        self._numbers: dict[str, float] = {}

    def add(self, n: float, recoveries: int | None, numbers: dict[str, float]) -> None:
        self._n += n
        shown = self._numbers
        shown.update(numbers)
        if recoveries is not None:
            shown["recoveries"] = shown.pop("recoveries", 0) + recoveries  # at the end
        self._bar.set_postfix(
            {name: f"{value:.3g}" for name, value in shown.items()}, refresh=False
        )
        self._bar.update(min(self._n, self._bar.total) - self._bar.n)

    def reach(self, n: int, recoveries: int | None) -> None:
        if recoveries is not None:
            recoveries -= int(self._numbers.get("recoveries", 0))
        self.add(n - self._n, recoveries, {})

    def close(self, *, is_done: bool) -> None:
        if is_done:
            # What has ended early is done; and thirds do not quite add up to one.
            self._bar.n = self._bar.total = round(self._n)
        self._bar.close()


class _Reports:
    """What stands for the bar in another process: a file that it is told through."""

    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, n: float, recoveries: int | None, numbers: dict[str, float]) -> None:
        line = json.dumps([n, recoveries, numbers]) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, line.encode())  # in one piece, whoever else writes
        finally:
            os.close(file)


_shown: ContextVar[Any] = ContextVar("shown", default=None)


def _is_watched() -> bool:
    """Whether the bar has a terminal or a notebook to be in, and not a log."""
    ipython = sys.modules.get("IPython")
    is_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return is_notebook or (sys.stderr is not None and sys.stderr.isatty())


def is_shown() -> bool:
    """Whether what is done here and now has a bar."""
    return _shown.get() is not None


@contextlib.contextmanager
def _showing(sink: Any) -> Iterator[None]:
    token = _shown.set(sink)
    try:
        yield
    finally:
        _shown.reset(token)


@contextlib.contextmanager
def progress(
    what: str, total: int, unit: str, *, verbose: int | bool
) -> Iterator[None]:
    """Show how far the block has come, from its first second on.

    Parameters
    ----------
    what : str
        Stands before the bar.
    total : int
        Units to be done.
    unit : str
        What they are, in plural.
    verbose : int or bool
        0 shows nothing. Inside a block that has a bar nothing is shown either.
    """
    if not (verbose and total and _shown.get() is None and _is_watched()):
        with _showing(None):
            yield
        return
    bar = _Bar(what, total, unit)
    is_done = False
    try:
        with _showing(bar):
            yield
        is_done = True
    finally:
        bar.close(is_done=is_done)


def advance(n: float, recoveries: int | None = None, **numbers: float) -> None:
    """Count what has been done, if there is a bar.

    Parameters
    ----------
    n : float
        Units.
    recoveries : int or None, default=None
        Failed steps that were rescued in them; None where they are not counted.
    **numbers : float
        What else to show behind the bar, until it is said anew.
    """
    sink = _shown.get()
    if sink is not None:
        sink.add(n, recoveries, numbers)


def reach(n: int, recoveries: int | None = None) -> None:
    """Count what has not been counted on the way.

    Parameters
    ----------
    n : int
        Units that are done in all.
    recoveries : int or None, default=None
        Rescued steps in all.
    """
    sink = _shown.get()
    if isinstance(sink, _Bar):
        sink.reach(n, recoveries)


@contextlib.contextmanager
def reports() -> Iterator[str | None]:
    """Let other processes move the bar while the block runs.

    Yields
    ------
    str or None
        For :func:`reported_to`, in any process of this machine; None without a bar.
    """
    bar = _shown.get()
    if bar is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sknan") as folder:
        path = Path(folder) / "reports"
        path.touch()
        is_over = threading.Event()
        with path.open(encoding="utf-8") as file:
            reader = threading.Thread(target=_read, args=(file, bar, is_over))
            reader.start()
            try:
                yield str(path)
            finally:
                is_over.set()
                reader.join()


def _read(file: TextIO, bar: _Bar, is_over: threading.Event) -> None:
    rest = ""
    is_last = False
    while not is_last:
        is_last = is_over.wait(_SECONDS_BETWEEN)
        *lines, rest = (rest + file.read()).split("\n")
        for line in lines:
            bar.add(*json.loads(line))


def reported_to(path: str | None) -> contextlib.AbstractContextManager[None]:
    """Move the bar of another process by what is done in the block.

    Parameters
    ----------
    path : str or None
        From :func:`reports`. On another machine it leads nowhere, and the bar there
        moves when the whole is done.
    """
    has_reader = path is not None and Path(path).exists()
    return _showing(_Reports(path) if path is not None and has_reader else None)
