"""The classifier: labels in, labels and probabilities out."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor, nn

from sknan._utils.stacklevel import stacklevel_of_caller
from sknan._utils.validation import DROP_ROWS
from sknan.estimators._base import StableNetBase
from sknan.estimators._components import kind_of
from sknan.estimators._labels import (
    apply_class_weight,
    encode_labels,
    list_labels,
    refuse_missing_labels,
)
from sknan.losses._bounded import unbounded
from sknan.losses._traits import traits_of

__all__ = ["ProbableLabelsMixin", "StableNetClassifier"]


class ProbableLabelsMixin(ClassifierMixin):
    """What follows from ``predict_proba`` and ``classes_`` alone."""

    classes_: np.ndarray
    predict_proba: Callable[[Any], np.ndarray]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            At least log(1.2e-38), that of the smallest normal float32.
        """
        tiny = np.finfo(np.float32).tiny
        logs: np.ndarray = np.log(np.maximum(self.predict_proba(X), tiny))
        return logs

    def predict(self, X: Any) -> np.ndarray:
        """Labels of the most probable classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,)
            Values out of ``classes_``.
        """
        codes = self.predict_proba(X).argmax(axis=1)
        labels: np.ndarray = self.classes_[codes]
        return labels


class StableNetClassifier(ProbableLabelsMixin, StableNetBase):
    """Classifier: a neural network that ends finite, or says why it cannot.

    Gradients are clipped and the learning rate is scheduled by default; a step whose
    loss or gradient is not finite is not taken, and training goes on from the last
    verified weights at a lower rate. After ``fit`` every weight and every output on the
    training rows is finite.

    Parameters
    ----------
    module : type, nn.Module, callable or None, default=None
        The network. None builds a :class:`~sknan.nets.TabularMLP` to fit the data. A
        class, or a function that returns a module, is called with the ``module__``
        parameters; where it takes ``n_features_in`` or ``n_outputs`` they are filled
        in. An instance is copied, and training starts from its weights. With a module
        of one's own ``X`` may have more than two dimensions.
    criterion : str, type, nn.Module or callable, default="cross_entropy"
        The loss: ``"cross_entropy"``, ``"binary_cross_entropy"``, ``"focal"``,
        ``"nll"`` (of log-probabilities), ``"probability_nll"``, a class or instance of
        :mod:`sknan.losses` or ``torch.nn``, or a function of output and target. The
        network returns logits, unless it is an NLL, of shape (n_samples, n_classes), or
        (n_samples, 1) for a binary loss.
    optimizer : str or type, default="adamw"
        ``"adamw"``, ``"adam"``, ``"sgd"``, ``"nadam"``, ``"radam"``, ``"rmsprop"``,
        ``"adagrad"`` or a class of ``torch.optim``.
    lr : float or "auto", default=1e-3
        Learning rate at the top of the schedule. ``"auto"`` lets ``fit``, and the first
        ``partial_fit``, find it on their rows by :func:`~sknan.find_learning_rate`;
        training that goes on keeps the rate it has.
    lr_schedule : str, callable or None, default="cosine"
        Factor of ``lr`` over the progress of training: ``"constant"``, ``"cosine"``,
        ``"one_cycle"``, ``"exponential"``, ``"step"``, ``"plateau"``, ``"coslog4"`` or
        a function of progress in [0, 1]; see :mod:`sknan.optim`.
    warmup : float or int, default=0.0
        Share (float) or number (int) of the steps in which the rate rises to ``lr``.
    max_epochs : int, default=100
        Passes over the training rows.
    batch_size : int or "auto", default=128
        Rows in a step. A last batch of a single row joins the one before it. ``"auto"``
        goes by the rows of the table: 32 below 700, 64 below 1500, 128 below 6000, 256
        below 30 000, 512 below 100 000, else 1024.
    weight_decay : float, default=0.01
        Passed to the optimizer, if it takes it.
    clip_norm : float or None, default=1.0
        Largest global 2-norm of the gradients.
    clip_value : float or None, default=None
        Largest size of an entry of the gradients.
    adaptive_clip : {"agc", "quantile", "zscore"}, float, callable or None, default=None
        Clipping that finds its own threshold; see :mod:`sknan.optim`.
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        What a non-finite or exploded step leads to: going back to the last verified
        weights with a lower rate, leaving the batch out, or an error.
    max_recoveries : int, default=10
        Failed steps that one training may survive; one more raises.
    early_stopping : bool or "auto", default="auto"
        Whether to hold out ``validation_fraction`` of the rows, stop when their loss no
        longer improves, and keep the weights of the best epoch (the later of equals).
        ``"auto"`` does so from 500 rows on: a tenth of fewer is too small a sample to
        choose an epoch by.
    validation_fraction : float, default=0.1
        Share of the rows held out.
    n_iter_no_change : int, default=20
        Epochs without improvement after which training stops.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes, as in scikit-learn: they multiply ``sample_weight``.
    callbacks : list or None, default=None
        Callbacks of skorch. They see the net inside: class codes, standardised targets.
    warm_start : bool, default=False
        Whether ``fit`` goes on from the last one's weights and optimizer. Parameters of
        module, criterion and optimizer are then not read again, ``lr`` excepted.
    device : str, default="cpu"
        Where to train: a torch device, or ``"auto"`` for the GPU if there is one.
    num_threads : int or "auto", default="auto"
        Threads of torch to train and predict with. ``"auto"`` is one for small
        networks, which are slower on two, and no more than ``torch.get_num_threads()``;
        see the page on performance. torch's own setting comes back.
    compile : bool, default=False
        Whether to ``torch.compile`` the network and the criterion, which takes some
        seconds and a C++ compiler. ``compile__mode`` and the like are passed on.
    random_state : int, RandomState or None, default=None
        Seed of initial weights, batches, dropout and hold-out. torch's own generators
        are left as they were.
    verbose : int, default=0
        1 shows a bar in a terminal or a notebook, and nothing in a log; 2 prints a line
        per epoch anywhere. As in Keras.
    **prefixed
        ``module__...``, ``criterion__...`` and ``optimizer__...``: parameters of the
        network's parts, such as ``module__width=64``; ``compile__...``.

    Attributes
    ----------
    net_ : GuardedNet
        The fitted skorch net; ``net_.history`` tells each epoch's loss, gradient norm
        and rate, ``net_.module_`` is the network.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    n_iter_ : int
        Number of epochs run.
    best_epoch_ : int or None
        Epoch whose weights were kept, counted from 1; None without early stopping.
    nonfinite_reports_ : list of NonFiniteReport
        Every step that failed and was rescued, in order.
    lr_ : float
        Learning rate: ``lr``, or what was found for ``"auto"``.
    learning_rate_range_ : LearningRateRange or None
        How it was found, with the reason and the curves; None if ``lr`` is a number.
    effective_lr_ : float
        ``lr_`` times all reductions by the guard: equal to ``lr_`` if nothing failed.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if ``X`` had names that are all strings.

    Raises
    ------
    NonFiniteDataError
        In ``fit`` and ``predict``, if ``X`` (or ``y``) holds NaN, infinities or values
        beyond float32.
    NonFiniteTrainingError
        If a step fails and cannot or must not be rescued.
    ValueError
        If a parameter, the shape of the network's output, or the input is unusable.
    TypeError
        If an unknown parameter is passed to the constructor.

    Warns
    -----
    DivergenceWarning
        Once per fit, if training was rescued.

    See Also
    --------
    StableNetRegressor : The same for numbers.
    NaNImputer : Fills missing and infinite values.
    SafeScaler : Scales columns, however far their outliers lie.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import NaNImputer, SafeScaler, StableNetClassifier
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> X.iloc[3, 0] = float("nan")
    >>> model = make_pipeline(
    ...     NaNImputer(), SafeScaler(), StableNetClassifier(lr=0.01, random_state=0)
    ... )
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    _task: ClassVar[str] = "classification"
    classes_: np.ndarray

    def __init__(
        self,
        module: Any = None,
        *,
        criterion: Any = "cross_entropy",
        optimizer: Any = "adamw",
        lr: float | str = 1e-3,
        lr_schedule: Any = "cosine",
        warmup: float = 0.0,
        max_epochs: int = 100,
        batch_size: int | str = 128,
        weight_decay: float = 0.01,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        adaptive_clip: Any = None,
        on_nonfinite: str = "recover",
        max_recoveries: int = 10,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 20,
        class_weight: Any = None,
        callbacks: list[Any] | None = None,
        warm_start: bool = False,
        device: str = "cpu",
        num_threads: int | str = "auto",
        compile: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        **prefixed: Any,
    ) -> None:
        self._store_params(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> StableNetClassifier:
        """Train the network.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32. More dimensions with a module of one's own.
        y : array-like of shape (n_samples,)
            Labels of at least two classes: numbers, strings or booleans.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, at least 0.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> StableNetClassifier:
        """Train for one more epoch on these rows, at a constant rate.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            As in ``fit``.
        y : array-like of shape (n_samples,)
            Labels out of ``classes``.
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that will ever come; needed in the first call.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows.

        Returns
        -------
        self
        """
        self._partial_fit(X, y, sample_weight, classes=classes)
        return self

    def _row_weights(
        self, sample_weight: Any, target: np.ndarray, *, is_partial: bool
    ) -> np.ndarray | None:
        weights = super()._row_weights(sample_weight, target, is_partial=is_partial)
        if self.class_weight is None:
            return weights
        if is_partial and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all labels at once, which partial_fit "
                "never sees. Pass the weights as a dict."
            )
        return apply_class_weight(self.class_weight, target, weights, self)

    def _encode_target(
        self, target: np.ndarray, *, is_partial: bool, classes: Any = None
    ) -> np.ndarray:
        continues = self._continues(is_partial=is_partial)
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
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, but y holds one "
                f"class only: {list_labels(known)}."
            )
        codes = encode_labels(target, known)
        if not continues:
            self.classes_ = known
        return codes

    def _fit_target(
        self,
        y: Any,
        target: np.ndarray,
        weights: np.ndarray | None,
        *,
        is_partial: bool,
    ) -> tuple[np.ndarray, int]:
        n_classes = len(self.classes_)
        if not self._has_binary_loss():
            return target, n_classes
        if n_classes > 2:
            raise ValueError(
                f"criterion={self.criterion!r} is for 2 classes, but y holds "
                f"{n_classes}. Use criterion='cross_entropy'."
            )
        return target, 1

    def _as_target(self, y: Any) -> np.ndarray:
        return encode_labels(self._validate_target(y), self.classes_)

    def _classes_of_stream(self, classes: Any, *, continues: bool) -> np.ndarray:
        """All labels that will ever come, as the first call of ``partial_fit`` says."""
        if classes is None:
            if not continues:
                raise ValueError(
                    "classes must be passed on the first call to partial_fit: all "
                    "labels that will ever come."
                )
            return self.classes_
        given = column_or_1d(classes)
        refuse_missing_labels(given, "classes", "A label must be finite.")
        known: np.ndarray = np.unique(given)
        if continues and not np.array_equal(known, self.classes_):
            raise ValueError(
                f"classes={list_labels(known)} differ from those of the first call to "
                f"partial_fit, {list_labels(self.classes_)}."
            )
        return known

    def _validate_target(self, y: Any) -> np.ndarray:
        labels: np.ndarray = column_or_1d(y, warn=True)
        refuse_missing_labels(labels, "y", DROP_ROWS)
        check_classification_targets(labels)
        return labels

    def _has_binary_loss(self) -> bool:
        return traits_of(kind_of(self.criterion)).is_binary

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        n_classes = len(self.classes_)
        traits = traits_of(criterion)
        name = type(unbounded(criterion)).__name__
        found = tuple(output.shape)
        if traits.is_binary:
            if found[1:] not in ((), (1,)):
                raise ValueError(
                    f"The module's output has shape {found}, but criterion {name} "
                    f"needs one logit per row: ({found[0]}, 1)."
                )
            if traits.output_kind == "probabilities" and _is_outside_unit(output):
                raise ValueError(
                    f"Criterion {name} wants probabilities, but the module's output "
                    f"ranges from {float(output.min()):.3g} to "
                    f"{float(output.max()):.3g}. Use criterion='binary_cross_entropy', "
                    "which takes logits, or end the module with a sigmoid."
                )
            shape = (-1,) if len(found) == 1 else (-1, 1)
            return torch.from_numpy(y).float().reshape(shape)
        if len(found) != 2 or found[1] != n_classes:
            raise ValueError(
                f"The module's output has shape {found}, but {n_classes} classes need "
                f"one logit each: ({found[0]}, {n_classes}). Let the module's "
                "constructor take n_outputs, and it is filled in."
            )
        is_log = traits.output_kind == "log-probabilities"
        if is_log and not _are_log_probabilities(output):
            raise ValueError(
                f"Criterion {name} wants log-probabilities, but the rows of the "
                "module's output are none. Use criterion='cross_entropy', which takes "
                "logits, or end the module with a log-softmax."
            )
        is_probable = _are_probabilities(output)
        if traits.output_kind == "probabilities" and not is_probable:
            raise ValueError(
                f"Criterion {name} wants probabilities, but the rows of the module's "
                "output are none. Use criterion='cross_entropy', which takes logits, "
                "or end the module with a softmax."
            )
        if traits.output_kind == "logits" and is_probable:
            warnings.warn(
                "The rows of the module's output are probabilities, but criterion "
                f"{name} takes logits, and learns little through a second softmax. "
                "Leave the softmax out.",
                UserWarning,
                stacklevel=stacklevel_of_caller(),
            )
        return torch.from_numpy(y)

    def _probabilities(self, X: Any) -> Tensor:
        output = self._output(X)
        traits = traits_of(self.net_.criterion_)
        holds_probabilities = traits.output_kind == "probabilities"
        if traits.is_binary:
            positive = output.reshape(-1)
            if not holds_probabilities:
                positive = torch.sigmoid(positive)
            return torch.stack([1.0 - positive, positive], dim=1)
        if holds_probabilities:
            return output.clone()  # it may be memory of the module's own
        # Log-probabilities, for NLLLoss, are logits too.
        return torch.softmax(output, dim=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``; rows sum to 1.
        """
        probabilities: np.ndarray = self._probabilities(X).numpy()
        return probabilities


def _is_outside_unit(output: Tensor) -> bool:
    return bool((output < 0).any() or (output > 1).any())


def _are_probabilities(output: Tensor) -> bool:
    sums = output.sum(dim=1)
    return not _is_outside_unit(output) and bool((sums - 1).abs().max() < 1e-3)


def _are_log_probabilities(output: Tensor) -> bool:
    return bool((output.exp().sum(dim=1) - 1).abs().max() < 1e-3)
