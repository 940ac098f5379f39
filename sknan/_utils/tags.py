"""Tags of the steps of a pipeline, which asks for them seven times in a prediction.

The chain of scikit-learn's mixins takes twice as long as the constructors, and a copy
of the tags of a classifier as long as two layers of a network for one row.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from sklearn.utils import (
    ClassifierTags,
    InputTags,
    RegressorTags,
    Tags,
    TargetTags,
    TransformerTags,
)


class _QuickCopy:
    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> Self:
        copied: Self = dataclasses.replace(self)  # type: ignore[type-var]
        return copied


class _ClassifierTags(_QuickCopy, ClassifierTags):
    __slots__ = ()


class _RegressorTags(_QuickCopy, RegressorTags):
    __slots__ = ()


def classifier_tags() -> Tags:
    """Return the tags of a classifier of one or several labels per row."""
    return Tags(
        estimator_type="classifier",
        target_tags=TargetTags(required=True),
        transformer_tags=None,
        classifier_tags=_ClassifierTags(multi_label=True),
    )


def regressor_tags() -> Tags:
    """Return the tags of a regressor of one or several targets."""
    return Tags(
        estimator_type="regressor",
        target_tags=TargetTags(required=True, multi_output=True),
        transformer_tags=None,
        regressor_tags=_RegressorTags(),
    )


def transformer_tags(
    *, sparse: bool = False, allow_nan: bool = True, preserves_dtype: bool = True
) -> Tags:
    """Return the tags of a transformer of tables of numbers.

    Parameters
    ----------
    sparse, allow_nan : bool
        Whether the table may be sparse, or contain missing values.
    preserves_dtype : bool
        Whether float32 and float64 are kept.
    """
    preserved = ["float64", "float32"] if preserves_dtype else []
    return Tags(
        estimator_type=None,
        target_tags=TargetTags(required=False),
        transformer_tags=TransformerTags(preserved),
        input_tags=InputTags(sparse=sparse, allow_nan=allow_nan),
    )
