"""Searches that train all candidates as one network, and a learning-rate finder."""

from sknan._engine.range_test.learning_rate_range import LearningRateRange
from sknan.model_selection._find_learning_rate import find_learning_rate
from sknan.model_selection._search import (
    BatchedGridSearchCV,
    BatchedHalvingSearchCV,
    BatchedRandomizedSearchCV,
)

__all__ = [
    "BatchedGridSearchCV",
    "BatchedHalvingSearchCV",
    "BatchedRandomizedSearchCV",
    "LearningRateRange",
    "find_learning_rate",
]
