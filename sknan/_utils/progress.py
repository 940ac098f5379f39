"""Progress bars for operations that take longer than a second.

The code that opens a bar (`progress`) and the code that advances it (`advance`) need
not know each other: the current bar is a context variable. In the workers of joblib a
count takes its place, which comes back with the result (`call_in_workers`).
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from joblib import effective_n_jobs
from sklearn.utils.parallel import Parallel, delayed
from tqdm import TqdmWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmWarning)  # tqdm shows text without ipywidgets
    from tqdm.auto import tqdm

_SECONDS_BEFORE = 1.0
_LINE = "{l_bar}{bar}| {n:.0f}/{total_fmt} {unit} [{elapsed}<{remaining}{postfix}]"

_T = TypeVar("_T")


@dataclass
class _Count:
    """Progress that was made so far.

    ``recoveries`` is None where they are not counted. ``numbers`` are the latest values
    to be shown after the bar.
    """

    n: float = 0.0
    recoveries: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)

    def add(self, other: _Count) -> None:
        self.n += other.n
        if other.recoveries is not None:
            self.recoveries = (self.recoveries or 0) + other.recoveries
        self.numbers |= other.numbers


class _Bar(_Count):
    """Bar of tqdm that shows a count."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        super().__init__()
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=unit,
            delay=_SECONDS_BEFORE,
            miniters=0,  # the time alone decides when the bar is drawn
            bar_format=_LINE,
            dynamic_ncols=True,
        )

    def add(self, other: _Count) -> None:
        super().add(other)
        shown = {name: f"{value:.3g}" for name, value in self.numbers.items()}
        if self.recoveries is not None:
            shown["recoveries"] = str(self.recoveries)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(min(self.n, self._bar.total) - self._bar.n)

    def show(self) -> None:
        """Draw the bar without waiting for the first second to pass."""
        self._bar.refresh()
        self._bar.delay = 0

    def complete(self) -> None:
        # The block may end early, and fractions do not quite add up to the total.
        self._bar.n = self._bar.total = round(self.n)

    def close(self) -> None:
        self._bar.close()


_current: ContextVar[_Count | None] = ContextVar("current", default=None)


def _is_watched() -> bool:
    """Whether stderr is a terminal, or the code runs in a notebook."""
    ipython = sys.modules.get("IPython")
    is_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return is_notebook or (sys.stderr is not None and sys.stderr.isatty())


def is_shown() -> bool:
    """Whether there is a bar that `advance` moves."""
    return _current.get() is not None


@contextlib.contextmanager
def _counting(count: _Count | None) -> Iterator[None]:
    token = _current.set(count)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def progress(
    title: str, total: int, unit: str, *, verbose: int | bool
) -> Iterator[None]:
    """Show a bar for the progress of the block, after its first second.

    Parameters
    ----------
    title : str
        Text before the bar.
    total : int
        Number of units.
    unit : str
        Name of the units, in the plural.
    verbose : int or bool
        Whether to show the bar. A block inside a block that has a bar shows none.
    """
    if not (verbose and total and not is_shown() and _is_watched()):
        with _counting(None):
            yield
        return
    bar = _Bar(title, total, unit)
    try:
        with _counting(bar):
            yield
        bar.complete()
    finally:
        bar.close()


class _Parts(_Count):
    """Count of parts of the units of another count."""

    def __init__(self, whole: _Count, n_parts: float) -> None:
        super().__init__()
        self._whole, self._n_parts = whole, n_parts

    def add(self, other: _Count) -> None:
        super().add(other)
        self._whole.add(
            _Count(other.n / self._n_parts, other.recoveries, other.numbers)
        )


@contextlib.contextmanager
def counting_parts(n_parts: float) -> Iterator[None]:
    """Count parts of a unit in the block, if there is a bar.

    Parameters
    ----------
    n_parts : float
        Number of parts in a unit.
    """
    count = _current.get()
    with _counting(None if count is None else _Parts(count, n_parts)):
        yield


def advance(n: float, recoveries: int | None = None, **numbers: float) -> None:
    """Advance the bar, if there is one.

    Parameters
    ----------
    n : float
        Number of further units.
    recoveries : int or None, default=None
        Number of failed steps in them that were rescued, or None if they are not
        counted.
    **numbers : float
        Values to show after the bar. They stay until they are replaced.
    """
    count = _current.get()
    if count is not None:
        count.add(_Count(n, recoveries, numbers))


def advance_to(n: float) -> None:
    """Advance the bar to a number of units, if there is one.

    Parameters
    ----------
    n : float
        Number of units in total.
    """
    count = _current.get()
    if count is not None:
        count.add(_Count(n - count.n))


def call_in_workers(
    function: Callable[..., _T],
    arguments: Sequence[tuple[Any, ...]],
    n_jobs: int | None,
) -> list[_T]:
    """Call a function in the workers of joblib.

    In the process of the caller the bar advances during a call. In other processes and
    threads it advances when a call returns, and is therefore drawn at once.

    Parameters
    ----------
    function : callable
        Function to call, which can be pickled.
    arguments : sequence of tuple
        Positional arguments of each call.
    n_jobs : int or None
        Number of workers, as in joblib.

    Returns
    -------
    list
        Results of the calls, in the order of ``arguments``.
    """
    if effective_n_jobs(n_jobs) == 1:
        # `delayed` replaces the warning filters of the process during a call.
        return [function(*these) for these in arguments]
    bar = _current.get()
    if isinstance(bar, _Bar):
        bar.show()
    try:
        parallel = Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    except ValueError:  # some backends return all results at the end
        parallel = Parallel(n_jobs=n_jobs)
    found: dict[int, _T] = {}
    for index, result, count in parallel(
        delayed(_call)(index, bar is not None, function, *these)
        for index, these in enumerate(arguments)
    ):
        found[index] = result
        if bar is not None and count is not None:
            bar.add(count)
    return [found[index] for index in range(len(arguments))]


def _call(
    index: int, is_counted: bool, function: Callable[..., _T], *arguments: Any
) -> tuple[int, _T, _Count | None]:
    """Call the function, and count its progress where no bar can be reached."""
    if not is_counted or is_shown():
        return index, function(*arguments), None
    count = _Count()
    with _counting(count):
        return index, function(*arguments), count
