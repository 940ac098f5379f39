"""Output of a classifier: checks of the raw output, probabilities and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin
from sklearn.utils import Tags
from torch import Tensor, nn

from sknan._utils.tags import classifier_tags, tags_of
from sknan._utils.validation import drop_rows
from sknan._utils.warn import warn
from sknan.estimators._input import require_target
from sknan.estimators._labels import label_array, labels_per_row, refuse_unusable_labels
from sknan.estimators._temperature import at_temperature
from sknan.losses._bounded import unbounded
from sknan.losses._traits import traits_of
from sknan.preprocessing._stored_table import stored_chunks


class LabelPredictionMixin(ClassifierMixin):
    """Methods that follow from ``predict_proba``."""

    predict_proba: Callable[[Any], np.ndarray]

    @property
    def _coding(self) -> ClassCoding:
        """Conversion between labels and class codes."""
        raise NotImplementedError

    def __sklearn_tags__(self) -> Tags:
        return tags_of(self, classifier_tags)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            Columns as in ``predict_proba``. Values of at least log(1.2e-38), the
            logarithm of the smallest normal float32.
        """
        tiny = np.finfo(np.float32).tiny
        logs: np.ndarray = np.log(np.maximum(self.predict_proba(X), tiny))
        return logs

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels of the most probable classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
            Elements of ``classes_``. With several labels per row, 1 for labels of a
            probability above 0.5, else 0.
        """
        probabilities = self.predict_proba(X)
        return self._coding.labels_of(probabilities)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the accuracy: the share of rows of which all labels are predicted.

        Parameters
        ----------
        X : array-like, DataFrame or chunks of shape (n_samples, n_features)
            Features: finite numbers within float32.
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Labels, as in ``fit``.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        float
        """
        X, y, _ = stored_chunks(X, y)
        require_target(self, y)
        # scikit-learn does not compare tables of nullable columns.
        remedy = drop_rows("y", "scored")
        labels = labels_per_row(y, type(self).__name__, remedy=remedy)
        if labels is None:
            labels = label_array(y)
            if not issparse(labels):
                refuse_unusable_labels(np.asarray(labels), "y", remedy)
        return float(super().score(X, labels, sample_weight))


@dataclass(frozen=True)
class ClassCoding:
    """Conversion between labels and class codes.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Labels of the classes, in the order of their codes.
    """

    classes: np.ndarray

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the target of a row."""
        return ()

    def decode(self, target: Tensor) -> np.ndarray:
        """Return the labels of rows."""
        labels: np.ndarray = self.classes[target.flatten().long().numpy(force=True)]
        return labels

    def responses(
        self, criterion: nn.Module, output: Tensor, *, in_logits: bool = False
    ) -> Tensor:
        """Return the probabilities of the classes or their logits, as a tensor."""
        response = class_logits if in_logits else class_probabilities
        return response(criterion, output)

    def probabilities(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the probabilities of the classes, (n_samples, n_classes)."""
        return self.responses(criterion, output).numpy()

    def log_probabilities(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return finite logarithms of the probabilities of the classes, in float64.

        They distinguish probabilities that round to 0 or 1. With several labels per
        row, the last axis has absence and presence of each label.
        """
        return self.log_responses(criterion, output).numpy()

    def log_responses(self, criterion: nn.Module, output: Tensor) -> Tensor:
        """Return :meth:`log_probabilities` as a tensor."""
        output, traits = output.double(), traits_of(criterion)
        is_pair = traits.is_binary or len(self.label_shape) > 0
        if traits.output_kind == "probabilities":
            if is_pair:
                output = torch.stack([1.0 - output, output], dim=-1)
            logs = torch.log(output.clamp_min(torch.finfo(torch.float32).tiny))
        elif is_pair:
            logs = F.logsigmoid(torch.stack([-output, output], dim=-1))
        else:
            logs = F.log_softmax(output, dim=-1)
        return logs.reshape(output.shape[0], *self.label_shape, logs.shape[-1])

    def at_temperature(self, logs: np.ndarray, temperature: float) -> np.ndarray:
        """Return probabilities as :meth:`probabilities` does, at a temperature."""
        found = at_temperature(logs, temperature)
        return found[..., 1] if self.label_shape else found

    def predict(self, criterion: nn.Module, output: Tensor) -> np.ndarray:
        """Return the labels of the most probable classes."""
        return self.labels_of(self.probabilities(criterion, output))

    def labels_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the labels of the most probable classes."""
        labels: np.ndarray = self.classes[probabilities.argmax(axis=1)]
        return labels


class LabelCoding(ClassCoding):
    """Conversion for rows with several labels, whose codes are absence and presence.

    The numbers of the labels take the place of the classes, as in scikit-learn.
    """

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the target of a row."""
        return self.classes.shape

    def decode(self, target: Tensor) -> np.ndarray:
        """Return 1 for each label that a row has, else 0."""
        return target.long().numpy(force=True)

    def responses(
        self, criterion: nn.Module, output: Tensor, *, in_logits: bool = False
    ) -> Tensor:
        """Return the probabilities of the labels or their logits, as a tensor."""
        if traits_of(criterion).output_kind != "probabilities":
            return output if in_logits else torch.sigmoid(output)
        # The module may return its own buffer.
        return _as_logits(output) if in_logits else output.clone()

    def labels_of(self, probabilities: np.ndarray) -> np.ndarray:
        """Return 1 for each label of a probability above 0.5, else 0."""
        labels: np.ndarray = (probabilities > 0.5).astype(np.int64)
        return labels


def check_binary_output(
    criterion: nn.Module, output: Tensor, n_labels: int | None = None
) -> None:
    """Raise ``ValueError`` if a binary loss cannot use the raw output.

    ``n_labels`` is the number of labels per row; None for a single class per row.
    """
    name, shape = type(unbounded(criterion)).__name__, tuple(output.shape)
    if n_labels is not None:
        _check_number(shape, n_labels, "labels")
    elif shape[1:] not in ((), (1,)):
        raise ValueError(
            f"The module's output has shape {shape}, but criterion {name} needs one "
            f"logit per row: ({shape[0]}, 1)."
        )
    gives_probabilities = traits_of(criterion).output_kind == "probabilities"
    if gives_probabilities and _is_outside_unit_interval(output):
        raise ValueError(
            f"Criterion {name} needs probabilities, but the module's output ranges "
            f"from {float(output.min()):.3g} to {float(output.max()):.3g}. Use "
            "criterion='binary_cross_entropy', which takes logits, or end the module "
            "with a sigmoid."
        )


def check_class_output(criterion: nn.Module, output: Tensor, n_classes: int) -> None:
    """Raise ``ValueError`` if a loss over classes cannot use the raw output.

    Warns
    -----
    UserWarning
        If the output is probabilities, but the loss takes logits.
    """
    name, shape = type(unbounded(criterion)).__name__, tuple(output.shape)
    kind = traits_of(criterion).output_kind
    _check_number(shape, n_classes, "classes")
    if kind == "log-probabilities" and not _are_log_probabilities(output):
        raise ValueError(
            f"Criterion {name} needs log-probabilities, but the rows of the module's "
            "output are not log-probabilities. Use criterion='cross_entropy', which "
            "takes logits, or end the module with a log-softmax."
        )
    gives_probabilities = _are_probabilities(output)
    if kind == "probabilities" and not gives_probabilities:
        raise ValueError(
            f"Criterion {name} needs probabilities, but the rows of the module's "
            "output are not probabilities. Use criterion='cross_entropy', which takes "
            "logits, or end the module with a softmax."
        )
    if kind == "logits" and gives_probabilities:
        warn(
            "The rows of the module's output are probabilities, but criterion "
            f"{name} takes logits: a second softmax slows training down. Remove the "
            "softmax from the module.",
        )


def class_probabilities(criterion: nn.Module, output: Tensor) -> Tensor:
    """Return the probabilities (n_samples, n_classes) for a raw output."""
    traits = traits_of(criterion)
    gives_probabilities = traits.output_kind == "probabilities"
    if traits.is_binary:
        positive = output.reshape(-1)
        if not gives_probabilities:
            positive = torch.sigmoid(positive)
        return torch.stack([1.0 - positive, positive], dim=1)
    if gives_probabilities:
        return output.clone()  # the module may return its own buffer
    # Log-probabilities, for NLLLoss, are logits too.
    return torch.softmax(output, dim=1)


def class_logits(criterion: nn.Module, output: Tensor) -> Tensor:
    """Return the logarithm of the odds of each class, (n_samples, n_classes)."""
    traits = traits_of(criterion)
    if traits.output_kind == "probabilities":
        return _as_logits(class_probabilities(criterion, output))
    if traits.is_binary:
        positive = output.reshape(-1)
        return torch.stack([-positive, positive], dim=1)
    itself = torch.eye(output.shape[1], dtype=torch.bool, device=output.device)
    others = output[:, None, :].masked_fill(itself, -torch.inf)
    return output - others.logsumexp(dim=2)


def _as_logits(probabilities: Tensor) -> Tensor:
    return torch.logit(probabilities, eps=torch.finfo(probabilities.dtype).eps)


def _check_number(shape: tuple[int, ...], number: int, noun: str) -> None:
    if shape[1:] != (number,):
        raise ValueError(
            f"The module's output has shape {shape}, but {number} {noun} need one "
            f"logit each: ({shape[0]}, {number}). Let the module's constructor take "
            "n_outputs, and it is filled in."
        )


def _is_outside_unit_interval(output: Tensor) -> bool:
    return bool((output < 0).any() or (output > 1).any())


def _are_probabilities(output: Tensor) -> bool:
    sums = output.sum(dim=1)
    return not _is_outside_unit_interval(output) and bool((sums - 1).abs().max() < 1e-3)


def _are_log_probabilities(output: Tensor) -> bool:
    return bool((output.exp().sum(dim=1) - 1).abs().max() < 1e-3)
