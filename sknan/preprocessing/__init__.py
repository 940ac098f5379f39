"""Transformers that clean, impute and scale tables for neural networks."""

from sknan.preprocessing._chunks import iter_chunks
from sknan.preprocessing._cleaner import TableCleaner
from sknan.preprocessing._imputer import NaNImputer
from sknan.preprocessing._scaler import SafeScaler

__all__ = ["NaNImputer", "SafeScaler", "TableCleaner", "iter_chunks"]
