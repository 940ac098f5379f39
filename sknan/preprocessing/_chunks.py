"""Tables that are read in chunks, because they do not fit into memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import issparse

from sknan._utils.validation import is_integer
from sknan.preprocessing._kernels.quantile_sketch import QuantileSketch
from sknan.preprocessing._tables.typed_column import (
    frame_from_arrow,
    frame_from_polars,
    is_polars,
    name_clash,
    series_from_polars,
    stacked_frames,
)

# Size of the sample from which transformers learn that have no ``partial_fit``.
_MOST_ROWS, _MOST_CELLS = 100_000, 1 << 24

NO_ROWS = "The table has no rows. Pass a table with at least one row."

_NOT_IN_MEMORY = (
    "X is read in chunks, but a table in memory is needed here. Pass a sample of its "
    "rows, which X, y = iter_chunks(..., y).sample() gives."
)

_ARRAYS = (np.ndarray, pd.DataFrame, pd.Series)

# Random numbers from 0 to 1 of some rows, these rows, and their targets or None.
_Part = tuple[np.ndarray, Any, Any]


class TableChunks:
    """Chunks of a table, with their targets, that can be iterated over repeatedly.

    Parameters
    ----------
    read : _Passes
        Passes over the chunks.
    y : str, int, array-like or None, default=None
        Name of the target's column, its position in an array, or the target of each row
        of the table.
    functions : tuple of callable, default=()
        Functions that convert each chunk in turn, after the target is removed.
    sample : tuple or None, default=None
        Sample of the rows before the functions, and its targets, if it is drawn.
    sketch : QuantileSketch or None, default=None
        Sketch of all rows after the functions, if one is known.
    """

    def __init__(
        self,
        read: _Passes,
        y: Any = None,
        functions: tuple[Callable[[Any], Any], ...] = (),
        sample: tuple[Any, Any] | None = None,
        sketch: QuantileSketch | None = None,
    ) -> None:
        self._read = read
        self._given_y = y
        if is_polars(y):
            y = (frame_from_polars if hasattr(y, "columns") else series_from_polars)(y)
        # pandas and NumPy keep the type of the target.
        self._names_column = _is_name(y)
        keeps = y is None or self._names_column or isinstance(y, _ARRAYS)
        self._y = y if keeps else np.asarray(y)
        if not (y is None or self._names_column or self._y.ndim):
            raise TypeError(
                f"y of iter_chunks is of type {type(self._given_y).__name__}. Pass the "
                "name of a column, its position if X is an array, or a list or array "
                "of one target for each row."
            )
        self._functions = functions
        self._sample = sample
        self.sketch = sketch

    def __iter__(self) -> Iterator[Any]:
        for X, y in self.pairs():
            yield X if self._y is None else (X, y)

    def pairs(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over chunks and their targets, which are None if there are none."""
        for table, y in self._read_pairs():
            X, y = self._split(table, y)
            yield self._converted(X), y

    def _converted(self, X: Any) -> Any:
        for function in self._functions:
            X = function(X)
        return X

    def _split(self, table: Any, y: Any) -> tuple[Any, Any]:
        """Return a table without the column of the target, and the target."""
        if self._names_column:
            return _without(table, self._y)
        return (frame_from_arrow(table) if _is_arrow_chunk(table) else table), y

    def _read_pairs(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over chunks as they are read, and targets that are no column."""
        start = 0
        for table in self._read():
            y = None
            stop = start + len(table)
            if not (self._y is None or self._names_column):
                y = _rows(self._y, start, stop)
                if len(y) < len(table):
                    is_text = isinstance(self._given_y, (list, tuple)) and all(
                        isinstance(target, str) for target in self._given_y
                    )
                    name = " or the name of one column" if is_text else ""
                    raise ValueError(
                        f"y has {len(self._y)} rows, but X has at least {stop}. Pass "
                        f"one target for each row{name}."
                    )
            yield table, y
            start = stop
        if not (self._y is None or self._names_column or start == len(self._y)):
            raise ValueError(
                f"y has {len(self._y)} rows, but X has {start}. Pass one target for "
                "each row."
            )

    @property
    def n_rows(self) -> int:
        """Number of rows, 0 before they were all read."""
        return self._read.n_rows

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Refuse to be read whole, as by estimators and searches of scikit-learn."""
        raise TypeError(_NOT_IN_MEMORY)

    def map(
        self, function: Callable[[Any], Any], sketch: QuantileSketch | None = None
    ) -> TableChunks:
        """Return the chunks as converted by a function of rows, when they are read."""
        functions = (*self._functions, function)
        return TableChunks(self._read, self._given_y, functions, self._sample, sketch)

    def with_target(self, y: Any) -> TableChunks:
        """Return the chunks with a target, unless they have this one already."""
        known = self._given_y
        is_known = _is_name(y) and _is_name(known) and y == known
        if y is None or y is known or is_known:
            return self
        if known is not None:
            raise ValueError(
                "The target is passed twice: as y of iter_chunks, and as another y. "
                "Pass one of the two."
            )
        return TableChunks(self._read, y, self._functions)

    def sample(self) -> Any:
        """Return random rows of all chunks in their order, or all rows of a few.

        Returns
        -------
        X : DataFrame or ndarray
            From 100 000 to 200 000 rows, or fewer of more than 167 columns. All rows of
            a table with fewer rows.
        y : ndarray or Series
            The targets of these rows, if the chunks have targets.
        """
        X, y = self.sampled_rows()
        return X if self._y is None else (X, y)

    def sampled_rows(self, most: int | None = None) -> tuple[Any, Any]:
        """Return the sample and its targets, which are None if there are none."""
        if self._sample is None:
            _, tables, targets = zip(*self._drawn_parts(), strict=True)
            y = None if targets[0] is None else _stacked(targets)
            self._sample = self._split(_stacked(tables), y)
        X, y = self._sample
        return self._converted(X if most is None else _rows(X, 0, most)), y

    def _drawn_parts(self) -> list[_Part]:
        """Draw rows of each chunk, fewer of each the more chunks there are."""
        rng = np.random.default_rng(0)
        parts: list[_Part] = []
        share = 1.0
        for table, y in self._read_pairs():
            parts.append(_drawn((rng.random(len(table)), table, y), share))
            n_columns = table.shape[1] - self._names_column
            most = min(_MOST_ROWS, _MOST_CELLS // max(1, n_columns))
            while sum(len(draws) for draws, _, _ in parts) > 2 * most:
                share /= 2
                parts = [_drawn(part, share) for part in parts]
        if not parts:
            raise ValueError(NO_ROWS)
        return parts


class _Passes:
    """Passes over a table, which must all give the same number of rows."""

    def __init__(self, read: Callable[[], Iterable[Any]]) -> None:
        self._read = read
        self._last: Any = None
        self.n_rows = 0

    def __call__(self) -> Iterator[Any]:
        """Iterate over the chunks that have rows."""
        chunks = self._read()
        if chunks is self._last and iter(chunks) is chunks:
            raise ValueError(
                f"The function of iter_chunks returned the same {type(chunks).__name__}"
                " again, which can be read only once. Create the iterator in the "
                "function, because each pass over the table calls it."
            )
        self._last = chunks
        n_rows = 0
        for chunk in chunks:
            if issparse(chunk) or not getattr(chunk, "shape", ()):
                raise TypeError(
                    f"The function of iter_chunks gave a {type(chunk).__name__} as a "
                    "chunk. Let it give DataFrames or dense arrays."
                )
            n_rows += len(chunk)
            if len(chunk):
                yield chunk
        if self.n_rows not in (0, n_rows):
            raise ValueError(
                f"The table in chunks had {self.n_rows} rows in the first pass and "
                f"{n_rows} in a later one. Each pass must give the same rows."
            )
        self.n_rows = n_rows


def iter_chunks(X: Any, y: Any = None, *, chunk_size: int = 1 << 16) -> TableChunks:
    """Read a table in chunks of rows.

    The result can be iterated several times, and passed to ``fit`` of
    :class:`~sknan.NaNImputer`, :class:`~sknan.SafeScaler`, the estimators and pipelines
    of them, such as :func:`~sknan.tabular_pipeline`. Only a few chunks are in memory at
    a time.

    Parameters
    ----------
    X : str, path, pyarrow Dataset or Table, DataFrame, array or callable
        The table. A path names a Parquet file or a folder of such files, in which a
        column may be empty in one file, or have integers in one and floats in another.
        A callable has no arguments and returns an iterator over chunks of its own, for
        example ``lambda: pandas.read_csv("trips.csv", chunksize=100_000)``. A memory
        map is read as needed.

    y : str, int, array-like or None, default=None
        Name of the column that is the target, which of a DataFrame may also be a
        number. Position of this column in an array. Or one target for each row.

    chunk_size : int, default=65536
        Largest number of rows in a chunk. Chunks of a file end where its row groups do.
        A callable chooses the size of its chunks. Chunks without rows are skipped.

    Returns
    -------
    iterable
        Chunks: DataFrames of pandas for Arrow data, otherwise what ``X`` is. If ``y``
        is passed, each item is a pair of a chunk without the target and the targets.

    Raises
    ------
    TypeError
        If ``X`` cannot be read in chunks repeatedly, such as an iterator, or is sparse,
        or ``y`` is neither a name nor an array.
    ValueError
        If ``chunk_size`` is not an integer of at least 1, or a file is not Parquet; and
        when chunks are read, if a later pass has another number of rows.

    Examples
    --------
    >>> import numpy as np
    >>> from sknan.preprocessing import SafeScaler, iter_chunks
    >>> X = np.arange(10.0).reshape(5, 2)
    >>> [chunk.shape for chunk in iter_chunks(X, chunk_size=2)]
    [(2, 2), (2, 2), (1, 2)]
    >>> SafeScaler().fit(iter_chunks(X, chunk_size=2)).center_
    array([4., 5.])
    """
    if not is_integer(chunk_size) or chunk_size < 1:
        raise ValueError(
            f"chunk_size must be an integer of at least 1, got {chunk_size!r}."
        )
    return TableChunks(_Passes(_reader(X, chunk_size)), y)


def as_chunks(X: Any, y: Any = None) -> TableChunks | None:
    """Return the chunks of an input of ``fit`` that is read in chunks, else None."""
    if isinstance(X, TableChunks):
        return X.with_target(y)
    if _is_arrow_dataset(X):
        return iter_chunks(X, y)
    if isinstance(X, (str, Path)):
        target = f", y={y!r}" if _is_name(y) else ""
        raise TypeError(
            f"X is the text or path {str(X)!r}, not a table. To read Parquet files, "
            f"pass iter_chunks({str(X)!r}{target}) of sknan.preprocessing."
        )
    if _is_name(y):
        kind = "text" if isinstance(y, str) else type(y).__name__
        raise TypeError(
            f"y is the {kind} {y!r}, not a target for each row. If it names a column, "
            f"pass iter_chunks(X, y={y!r}) of sknan.preprocessing."
        )
    return None


def refuse_chunks(X: Any) -> None:
    """Refuse an input that is read in chunks where a table in memory is needed."""
    if isinstance(X, TableChunks) or _is_arrow_dataset(X):
        raise TypeError(_NOT_IN_MEMORY)


class ChunkwiseMixin:
    """Transformer that learns from chunks of a table, and converts them when read.

    A subclass learns from each chunk if it has the methods ``_add``, which takes a
    chunk and whether it is the first one, and ``_finish``. Otherwise it learns from a
    sample of the rows of all chunks.
    """

    def _sketch_of_output(self) -> QuantileSketch | None:
        """Return a sketch of what `transform` gives for the chunks, if one is known."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # scikit-learn has wrapped these methods for set_output, which must be inside.
        for chunkwise in (fit, transform, fit_transform):
            name = chunkwise.__name__
            method = cls.__dict__.get(name)
            if name == "fit_transform" and method is None:
                method = cls.fit_transform  # type: ignore[attr-defined]
            if method is not None:
                setattr(cls, name, _or_chunkwise(method, chunkwise))

    def _learns_from_chunks(self) -> bool:
        return hasattr(self, "_add")


def _or_chunkwise(method: Any, chunkwise: Callable[..., Any]) -> Any:
    """Return a method that treats an input in chunks in another way."""

    @functools.wraps(method)
    def wrapped(self: Any, X: Any, *args: Any, **params: Any) -> Any:
        if type(X) is np.ndarray and not (args or params):  # the prediction of a row
            return method(self, X)
        if as_chunks(X, args[0] if args else params.get("y")) is None:
            return method(self, X, *args, **params)
        return chunkwise(self, as_chunks(X), *args, **params)

    return wrapped


def fit(transformer: Any, chunks: TableChunks, y: Any = None) -> Any:
    """Learn from chunks one after the other, or from a sample of them."""
    _learn(transformer, chunks.with_target(y))
    return transformer


def transform(transformer: Any, chunks: TableChunks) -> TableChunks:
    """Convert chunks when they are read."""
    return chunks.map(transformer.transform)


def fit_transform(
    transformer: Any, chunks: TableChunks, y: Any = None, **params: Any
) -> TableChunks:
    """Learn from chunks, and convert them when they are read again."""
    chunks = chunks.with_target(y)
    return chunks.map(transformer.transform, _learn(transformer, chunks))


def _learn(transformer: Any, chunks: TableChunks) -> QuantileSketch | None:
    """Learn from chunks; return a sketch of the output for all rows, if there is one.

    A sketch of the step before spares a pass over the table.
    """
    if not transformer._learns_from_chunks():
        transformer.fit(*chunks.sampled_rows())
        return None
    if chunks.sketch is not None and hasattr(transformer, "_add_sketch"):
        transformer._add_sketch(chunks.sampled_rows(1)[0], chunks.sketch)
    else:
        is_first = True
        for X, _ in chunks.pairs():
            transformer._add(X, is_first=is_first)
            is_first = False
        if is_first:
            raise ValueError(NO_ROWS)
    transformer._finish()
    sketch: QuantileSketch | None = transformer._sketch_of_output()
    transformer._sketch = None  # as after a fit of a whole table
    return sketch


def _reader(X: Any, chunk_size: int) -> Callable[[], Iterable[Any]]:
    if isinstance(X, (str, Path)) or _is_arrow(X):
        # Importing Arrow takes longer than importing all of sknan.
        from pyarrow import ArrowInvalid, dataset, default_memory_pool

        try:
            arrow = X if hasattr(X, "to_batches") else _dataset_of_files(X)
        except ArrowInvalid as error:
            raise ValueError(
                f"iter_chunks cannot read {str(X)!r} as Parquet. For CSV, pass "
                f"pyarrow.dataset.dataset({str(X)!r}, format='csv')."
            ) from error
        if not hasattr(arrow, "scanner"):  # a table in memory
            arrow = dataset.dataset(arrow)
        options: dict[str, Any] = {"batch_readahead": 2, "fragment_readahead": 1}
        if isinstance(getattr(arrow, "format", None), dataset.ParquetFileFormat):
            # Buffers of what is read ahead would be kept until the end of the file.
            scan = dataset.ParquetFragmentScanOptions(pre_buffer=False)
            options["fragment_scan_options"] = scan

        def read() -> Iterator[Any]:
            with name_clash(arrow):
                yield from arrow.to_batches(batch_size=chunk_size, **options)
            default_memory_pool().release_unused()

        return read
    if callable(X):
        chunks_of_user: Callable[[], Iterable[Any]] = X
        return chunks_of_user
    if issparse(X):
        raise TypeError(
            "iter_chunks cannot read a sparse table. Pass a function that gives dense "
            "chunks: X = X.tocsr(); iter_chunks(lambda: (X[i : i + 1000].toarray() for "
            "i in range(0, X.shape[0], 1000)), y)."
        )
    if not hasattr(X, "__len__") or not hasattr(X, "shape"):
        raise TypeError(
            f"iter_chunks cannot read {type(X).__name__} in chunks repeatedly. Pass a "
            "path to Parquet files, an Arrow dataset, a DataFrame, an array, a memory "
            "map, or a function without arguments that returns an iterator."
        )
    starts = range(0, len(X), chunk_size)
    return lambda: (_rows(X, start, start + chunk_size) for start in starts)


def _dataset_of_files(path: Any) -> Any:
    """Return a dataset whose columns have types that hold the cells of every file.

    Arrow takes the types of the first file, in which a column may be empty.
    """
    from pyarrow import ArrowInvalid, ArrowTypeError, dataset, unify_schemas

    files = dataset.dataset(path)
    schemas = [files.schema, *(file.physical_schema for file in files.get_fragments())]
    # Text in one file and numbers in another have no common type.
    with contextlib.suppress(ArrowInvalid, ArrowTypeError):
        return dataset.dataset(
            path, unify_schemas(schemas, promote_options="permissive")
        )
    return files


def _is_arrow(X: Any, has: str = "to_batches") -> bool:
    """Return whether an object is a table or dataset of Arrow, without importing it."""
    return type(X).__module__.partition(".")[0] == "pyarrow" and hasattr(X, has)


def _is_arrow_chunk(X: Any) -> bool:
    return _is_arrow(X, "to_pandas")


def _is_arrow_dataset(X: Any) -> bool:
    """Return whether data of Arrow are not in memory, as those of a table are."""
    return _is_arrow(X, "scanner")


def _drawn(part: _Part, share: float) -> _Part:
    """Return the rows of which a random number is below a share."""
    if share == 1:
        return part
    is_drawn = part[0] < share
    draws, X, y = (_chosen(rows, is_drawn) for rows in part)
    return draws, X, y


def _chosen(rows: Any, is_chosen: np.ndarray) -> Any:
    if rows is None:
        return None
    if is_polars(rows):
        return rows.filter(is_chosen)
    if _is_arrow_chunk(rows):
        from pyarrow import ArrowNotImplementedError, array

        try:
            return rows.filter(array(is_chosen))
        except ArrowNotImplementedError:  # of views of text
            rows = frame_from_arrow(rows)
    return (rows.iloc if hasattr(rows, "iloc") else rows)[is_chosen]


def _stacked(tables: Sequence[Any]) -> Any:
    """Return the rows of several tables, or several targets, as one."""
    if isinstance(tables[0], np.ndarray):
        return np.concatenate(tables)
    if is_polars(tables[0]):
        import polars

        return polars.concat(tables)
    if _is_arrow_chunk(tables[0]):
        from pyarrow import Table, concat_tables

        return concat_tables(
            table if isinstance(table, Table) else Table.from_batches([table])
            for table in tables
        )
    return stacked_frames(list(tables))


def _rows(table: Any, start: int, stop: int) -> Any:
    return (table.iloc if hasattr(table, "iloc") else table)[start:stop]


def _is_name(y: Any) -> bool:
    """Return whether a target is the name of a column: text or another single value."""
    is_array = any(hasattr(y, has) for has in ("__len__", "__iter__", "__array__"))
    return isinstance(y, (str, np.generic)) or not (y is None or is_array)


def _without(table: Any, name: Any) -> tuple[Any, Any]:
    """Return a table without a column, and the column."""
    if _is_arrow_chunk(table):
        places: tuple[list[int], list[int]] = ([], [])
        for j, column in enumerate(table.schema.names):
            places[column == name].append(j)
        X, y = (frame_from_arrow(table.select(these)) for these in places)
        if name in y:
            return X, y[name].to_numpy()
        table = X
    is_array = isinstance(table, np.ndarray) and table.ndim == 2
    if is_array and is_integer(name) and -table.shape[1] <= name < table.shape[1]:
        return np.delete(table, name, axis=1), table[:, name]
    columns = list(range(table.shape[1]) if is_array else getattr(table, "columns", ()))
    if name not in columns:
        some = ", ".join(map(repr, columns[:5])) + (", ..." if columns[5:] else "")
        raise ValueError(
            f"The table has no column {name!r} for the target. It has: "
            f"{some or 'no columns'}."
        )
    if is_polars(table):
        return table.drop(name), series_from_polars(table[name]).to_numpy()
    return table.drop(columns=name), table[name].to_numpy()
