"""Transformers that make a table safe for a network."""

from sknan.preprocessing._cleaner import TableCleaner
from sknan.preprocessing._imputer import NaNImputer
from sknan.preprocessing._scaler import SafeScaler

__all__ = [
    "NaNImputer",
    "SafeScaler",
    "TableCleaner",
]
