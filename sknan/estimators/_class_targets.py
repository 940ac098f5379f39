"""Labels that a classifier is trained on: validation, encoding, comparison."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from sknan._utils.validation import drop_rows
from sknan.estimators._base import StableNetBase
from sknan.estimators._class_outputs import (
    ClassCoding,
    check_binary_output,
    check_class_output,
)
from sknan.estimators._labels import (
    encode_labels,
    label_array,
    label_weights,
    labels_per_row,
    list_labels,
    refuse_other_types,
    refuse_unusable_labels,
)
from sknan.losses._traits import traits_of


class ClassTargetMixin(StableNetBase):
    """Network whose targets are classes, or several labels per row."""

    _task: ClassVar[str] = "classification"
    classes_: np.ndarray
    _is_multilabel: bool
    _label_weights: np.ndarray | None

    @property
    def _coding(self) -> ClassCoding:
        """Conversion between labels and class codes."""
        raise NotImplementedError

    def _validate_target(self, y: Any, name: str = "y") -> np.ndarray:
        """Return the classes (n_samples,), or 0 and 1 (n_samples, n_labels)."""
        several = labels_per_row(y, type(self).__name__, name)
        if several is not None:
            return several
        y = y.toarray() if issparse(y) else label_array(y)
        labels: np.ndarray = column_or_1d(y, warn=True)
        refuse_unusable_labels(labels, name, drop_rows(name))
        refuse_other_types(labels, name)
        check_classification_targets(labels)
        return labels

    def _encode_target(
        self,
        y: Any,
        target: np.ndarray,
        weights: np.ndarray | None,
        is_partial: bool,
        classes: Any = None,
    ) -> tuple[np.ndarray, int]:
        if self._continues(is_partial):
            self._refuse_other_labels(target)
        self._is_multilabel = target.ndim == 2
        if self._is_multilabel:
            return self._encode_labels(target, weights, is_partial, classes)
        continues = self._continues(is_partial)
        if is_partial:
            known = self._classes_of_stream(classes, continues=continues)
        else:
            known = np.unique(target)
            if continues and not np.array_equal(known, self.classes_):
                raise ValueError(
                    "warm_start=True continues training with the classes of the first "
                    f"fit, {list_labels(self.classes_)}, but y now contains "
                    f"{list_labels(known)}."
                )
        if len(known) < 2:
            is_whole = len(np.unique(self._validate_target(y))) == len(known)
            found = "y contains" if is_whole else "rows of positive weight have"
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, but {found} one "
                f"class only: {list_labels(known)}."
            )
        codes = encode_labels(target, known)
        if not continues:
            self.classes_ = known
        if not self._loss_traits.is_binary:
            return codes, len(known)
        if len(known) > 2:
            raise ValueError(
                f"criterion={self.criterion!r} is for 2 classes, but y contains "
                f"{len(known)}. Use criterion='cross_entropy'."
            )
        return codes, 1

    def _encode_labels(
        self,
        target: np.ndarray,
        weights: np.ndarray | None,
        is_partial: bool,
        classes: Any,
    ) -> tuple[np.ndarray, int]:
        """Set the attributes of a target of several labels per row."""
        n_labels = target.shape[1]
        numbers = np.arange(n_labels)
        if classes is not None and not np.array_equal(np.unique(classes), numbers):
            raise ValueError(
                f"classes={list_labels(np.unique(classes))} must be the numbers of the "
                f"{n_labels} columns of y, {list_labels(numbers)}, or None."
            )
        if not self._continues(is_partial):
            self._label_weights = None
            self._build_criterion(per_row=self.class_weight is not None)
            self.classes_ = numbers
        if self.class_weight is not None:
            self._label_weights = label_weights(
                self.class_weight, target, weights, type(self).__name__, is_partial
            )
        return target, n_labels

    def _refuse_other_labels(self, target: np.ndarray, name: str = "y") -> None:
        """Refuse a target that has not the columns of the first fit."""
        found, known = target.shape[1:], self._coding.label_shape
        if found != known:
            raise ValueError(
                f"{name} has {_columns(found)}, but the first fit had "
                f"{_columns(known)}."
            )

    def _classes_of_stream(self, classes: Any, *, continues: bool) -> np.ndarray:
        """Return all labels that may occur, as given in the first ``partial_fit``."""
        if classes is None:
            if not continues:
                raise ValueError(
                    "classes must be passed on the first call to partial_fit: all "
                    "labels that may occur in any call."
                )
            return self.classes_
        labels = label_array(classes)
        if np.ndim(labels) == 0 or np.size(labels) != len(labels):
            raise ValueError(f"classes must be a list of labels, got {classes!r}.")
        given = column_or_1d(labels)
        refuse_unusable_labels(given, "classes", "A label must be finite.")
        known: np.ndarray = np.unique(given)
        if continues and not np.array_equal(known, self.classes_):
            raise ValueError(
                f"classes={list_labels(known)} differ from those of the first call to "
                f"partial_fit, {list_labels(self.classes_)}."
            )
        return known

    def _as_target(self, y: Any, name: str = "y") -> np.ndarray:
        target = self._validate_target(y, name)
        self._refuse_other_labels(target, name)
        if target.ndim == 2:
            return target
        return encode_labels(target, self.classes_, name)

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        codes = torch.from_numpy(y)
        if y.ndim == 2:
            check_binary_output(criterion, output, y.shape[1])
            return codes.float()
        if not traits_of(criterion).is_binary:
            check_class_output(criterion, output, len(self.classes_))
            return codes
        check_binary_output(criterion, output)
        return codes.float().reshape((-1,) if output.ndim == 1 else (-1, 1))


def _columns(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} labels per row" if shape else "one class per row"
