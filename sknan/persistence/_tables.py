"""Columns of the input of an exported model, and codes of categories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sknan.persistence._steps import Encode
from sknan.preprocessing._cleaner import TableCleaner
from sknan.preprocessing._encoder import CategoryEncoder, ColumnEncoder
from sknan.preprocessing._tables.cell_texts import text_of
from sknan.preprocessing._tables.column_schema import ColumnSchema
from sknan.preprocessing._tables.sentinels import WORDS_FOR_MISSING
from sknan.preprocessing._tables.typed_column import read_column

# Code of a missing value in a column of categories.
MISSING = -1


@dataclass(frozen=True)
class Layout:
    """Columns of the input of an exported model.

    Parameters
    ----------
    n_columns : int or None
        Number of columns; None if the model does not know it.
    names : list of str or None
        Their names; None if the model was fitted without names.
    categories : dict of str to dict of str to int
        Codes of the texts of each column of categories.
    """

    n_columns: int | None
    names: list[str] | None
    categories: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of_numbers(cls, step: Any) -> Layout:
        """Return the columns that the first step was fitted on."""
        names = getattr(step, "feature_names_in_", None)
        n_columns = getattr(step, "n_features_in_", None)
        return cls(n_columns, None if names is None else names.tolist())


def encoding_of(
    cleaner: TableCleaner, encoder: ColumnEncoder, remedy: str
) -> tuple[Layout, Encode]:
    """Return the columns of a raw table, and the module that encodes them.

    Parameters
    ----------
    cleaner, encoder : transformer
        First two steps of a fitted ``tabular_pipeline``.
    remedy : str
        What to do if a column cannot be exported.

    Raises
    ------
    ValueError
        If a column is encoded by the parts of its dates or by its words.
    """
    column_of = {name: j for j, name in enumerate(encoder.feature_names_in_.tolist())}
    schema_of = {
        name: schema
        for schema in cleaner._schemas
        for name, source in cleaner.output_to_input_.items()
        if source == schema.name
    }
    numbers: list[int] = []
    sentinels: list[list[float]] = []
    pairs: list[tuple[int, int]] = []
    categories: dict[str, dict[str, int]] = {}
    for names, part in encoder._parts:
        if part is None:
            numbers += [column_of[name] for name in names]
            sentinels += [schema_of[name].numeric_sentinels for name in names]
        elif isinstance(part, CategoryEncoder):
            for j, name in enumerate(names):
                codes = _codes_of(part, j)
                pairs += [(column_of[name], code) for code in _kept(part, j)]
                categories[name] = _texts_to_codes(schema_of[name], codes)
        else:
            _refuse(names, schema_of, remedy)
    layout = Layout(len(column_of), list(column_of), categories)
    values = encoder._single_values
    return layout, Encode(numbers, sentinels, pairs, encoder._offsets, values)


def _codes_of(encoder: CategoryEncoder, j: int) -> dict[str, int]:
    """Return the code of each category of a column, which is its number."""
    categories = enumerate(encoder.categories_[j])
    return {text: i for i, text in categories if text == text}


def _kept(encoder: CategoryEncoder, j: int) -> list[int]:
    """Return the codes of the categories that have an output, in order."""
    dropped = None if encoder.drop_idx_ is None else encoder.drop_idx_[j]
    return [
        i if text == text else MISSING
        for i, text in enumerate(encoder.categories_[j])
        if i != dropped
    ]


def _texts_to_codes(schema: ColumnSchema, codes: dict[str, int]) -> dict[str, int]:
    """Return the code of each text that the cleaner reads as known or as missing."""
    texts = list(dict.fromkeys([*codes, *schema.known, *_spellings(schema)]))
    read = schema.read(read_column(pd.Series(texts, dtype=object)))[-1]
    found = {
        text: MISSING if category != category else codes.get(category)
        for text, category in zip(texts, read, strict=True)
    }
    return {text: code for text, code in found.items() if code is not None}


def _spellings(schema: ColumnSchema) -> Iterator[str]:
    """Generate the usual spellings of missing values, numbers and flags."""
    yield from ("NaN", "NaT")
    yield from (str(text_of(sentinel)) for sentinel in schema.sentinels)
    for word in sorted(WORDS_FOR_MISSING):
        yield from (word, word.upper(), word.capitalize(), word.title())
    for value in schema.text_of_value:
        if isinstance(value, float):
            yield from (str(text_of(value)), str(value))
        if value in (0.0, 1.0):
            flag = str(bool(value))
            yield from (flag, flag.lower(), flag.upper())


def _refuse(names: list[str], schema_of: dict[str, ColumnSchema], remedy: str) -> None:
    kinds = {"dates": "dates", "categories": "text of many categories"}
    listed = ", ".join(
        f"{name!r} ({kinds.get(schema_of[name].kind, 'words')})" for name in names[:3]
    )
    more = ", ..." if len(names) > 3 else ""
    raise ValueError(
        f"Columns {listed}{more} cannot be exported: their encoders read dates and "
        f"words, not numbers. {remedy}"
    )
