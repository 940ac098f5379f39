"""Encoder of text by its most frequent words."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

# Runs of letters or of digits. Chinese and Japanese have no blanks between words: there
# each character counts.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+|\d+")

# Word for a missing value, as in the names of categories.
_MISSING = "nan"


class WordEncoder(TransformerMixin, BaseEstimator):
    """Indicator columns of the most frequent words of a text column.

    Upper and lower case are the same. A text without letters and digits is one word.

    Parameters
    ----------
    n_words : int, default=30
        Maximum number of words.
    """

    # skrub calls the encoder with one column.
    __single_column_transformer__ = True

    def __init__(self, n_words: int = 30) -> None:
        self.n_words = n_words

    def fit(self, X: pd.Series, y: Any = None) -> WordEncoder:
        """Learn the most frequent words."""
        self._name = X.name
        codes, texts = _distinct(X)
        frequency = Counter[str]()
        for words, n_rows in zip(texts, np.bincount(codes).tolist(), strict=False):
            frequency.update(dict.fromkeys(words, n_rows))
        ordered = sorted(frequency, key=lambda word: (-frequency[word], word))
        self._words = sorted(ordered[: self.n_words])
        return self

    def fit_transform(self, X: pd.Series, y: Any = None, **params: Any) -> pd.DataFrame:
        """Learn the words, and encode the column."""
        return self.fit(X).transform(X)

    def transform(self, X: pd.Series) -> pd.DataFrame:
        """Encode a column."""
        codes, texts = _distinct(X)
        cells = np.array([[word in words for word in self._words] for words in texts])
        names = self.get_feature_names_out()
        return pd.DataFrame(cells[codes].astype(np.float32), X.index, names)

    def get_feature_names_out(self, input_features: Any = None) -> list[str]:
        """Return the names of the outputs."""
        return [f"{self._name}_{word}" for word in self._words]


def _distinct(column: pd.Series) -> tuple[np.ndarray, list[set[str]]]:
    """Return the words of each distinct text, and the number of each cell's text."""
    cells = column.array
    if not isinstance(cells, pd.Categorical):
        cells = pd.Categorical(cells)
    words = [_words_of(str(text)) for text in cells.categories]
    # The code of a missing value is -1, the last text.
    return cells.codes.astype(np.intp) % (len(words) + 1), [*words, {_MISSING}]


def _words_of(text: str) -> set[str]:
    folded = text.casefold()
    return set(_WORD.findall(folded) or [folded])
