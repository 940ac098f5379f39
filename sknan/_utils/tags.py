"""Tags of the steps of a pipeline, which asks for them five times in a prediction.

To construct them takes as long as a layer of a network for one row, and to copy those
of a classifier as long as two. The instances of a class of this library therefore share
them. The method of a user's subclass gets tags of its own, which it may change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, Self

from sklearn.utils import (
    ClassifierTags,
    InputTags,
    RegressorTags,
    Tags,
    TargetTags,
    TransformerTags,
)


def tags_of(estimator: object, build: Callable[..., Tags], *options: bool) -> Tags:
    """Return the tags that a function of this module builds from the options."""
    is_ours = type(estimator).__module__.startswith("sknan.")
    return _shared(build, *options) if is_ours else build(*options)


@lru_cache
def _shared(build: Callable[..., Tags], *options: bool) -> Tags:
    return build(*options)


class _QuickCopy:
    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]]

    def __deepcopy__(self, memo: Any) -> Self:
        # dataclasses.replace takes five times as long.
        return type(self)(*map(self.__getattribute__, self.__match_args__))


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
    sparse: bool = False, allow_nan: bool = True, preserves_dtype: bool = True
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
