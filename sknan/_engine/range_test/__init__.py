"""Range test of learning rates: short trainings at many learning rates."""

from sknan._engine.range_test.curves import TimeIsUp
from sknan._engine.range_test.judge import USUAL_RATE
from sknan._engine.range_test.learning_rate_range import LearningRateRange
from sknan._engine.range_test.run import DEFAULT_RATES, range_test

__all__ = [
    "DEFAULT_RATES",
    "USUAL_RATE",
    "LearningRateRange",
    "TimeIsUp",
    "range_test",
]
