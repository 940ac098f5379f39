"""The regressor: numbers in, numbers out, in the caller's units."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_array
from torch import Tensor, nn

from sknan._utils.validation import DROP_ROWS, FLOAT32_MAX, FLOAT64_MAX, check_finite
from sknan.estimators._base import StableNetBase
from sknan.estimators._components import kind_of, name_of
from sknan.estimators._input import name_text_cell
from sknan.estimators._target_scaling import (
    mean_and_scale,
    prediction_dtype,
    standardize,
)
from sknan.losses._bounded import unbounded
from sknan.losses._traits import predictions, traits_of

__all__ = ["StableNetRegressor"]


class StableNetRegressor(RegressorMixin, StableNetBase):
    """Regressor: a neural network that ends finite, or says why it cannot.

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
    criterion : str, type, nn.Module or callable, default="mse"
        The loss: ``"mse"``, ``"rmse"``, ``"mae"``, ``"huber"``, ``"pseudo_huber"``,
        ``"log_cosh"``, ``"quantile"``, ``"gaussian_nll"``, ``"poisson"``, ``"gamma"``,
        ``"tweedie"`` (whose output is the log of the mean), ``"mape"``, ``"smape"``,
        ``"msle"``, ``"kl_div"``, ``"cosine"``, ``"correlation"``, a class or instance
        of :mod:`sknan.losses` or ``torch.nn``, or a function of output and target.
        Where the loss moves and stretches with the target, from ``"mse"`` to
        ``"gaussian_nll"``, the target is standardised for training, and predictions
        come back in its units.
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
    target_mean_, target_scale_ : ndarray of shape () or (n_targets,)
        What was subtracted from ``y`` and divided out for training; 0 and 1 where the
        criterion does not allow it.
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
    StableNetClassifier : The same for classes.
    NaNImputer : Fills missing and infinite values.
    SafeScaler : Scales columns, however far their outliers lie.

    Notes
    -----
    Predictions are float64 if ``y`` was, or if it held integers that float32 cannot
    hold; otherwise they are float32, as the network computes.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import NaNImputer, SafeScaler, StableNetRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X[3, 0] = float("inf")
    >>> model = make_pipeline(
    ...     NaNImputer(), SafeScaler(), StableNetRegressor(random_state=0)
    ... )
    >>> bool(model.fit(X, y).score(X, y) > 0.5)
    True
    """

    _task: ClassVar[str] = "regression"
    target_mean_: np.ndarray
    target_scale_: np.ndarray
    _target_shape: tuple[int, ...]

    def __init__(
        self,
        module: Any = None,
        *,
        criterion: Any = "mse",
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> StableNetRegressor:
        """Train the network.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32. More dimensions with a module of one's own.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Finite numbers.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, at least 0.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight)
        return self

    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None
    ) -> StableNetRegressor:
        """Train for one more epoch on these rows, at a constant rate.

        The first call's mean and standard deviation of ``y`` stay in force.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            As in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Finite numbers.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows.

        Returns
        -------
        self
        """
        self._partial_fit(X, y, sample_weight)
        return self

    def _fit_target(
        self,
        y: Any,
        target: np.ndarray,
        weights: np.ndarray | None,
        *,
        is_partial: bool,
    ) -> tuple[np.ndarray, int]:
        continues = self._continues(is_partial=is_partial)
        shape = target.shape[1:]
        if continues and _n_targets(shape) != _n_targets(self._target_shape):
            raise ValueError(
                f"y has {_n_targets(shape)} target columns, but the first fit had "
                f"{_n_targets(self._target_shape)}."
            )
        self._target_shape = shape
        if continues:  # a vector may follow a table of one column, or the reverse
            self.target_mean_ = self.target_mean_.reshape(shape)
            self.target_scale_ = self.target_scale_.reshape(shape)
        else:
            self._target_dtype = prediction_dtype(y)
            self.target_mean_, self.target_scale_ = (
                mean_and_scale(target, weights)
                if self._standardizes_target()
                else (np.zeros(shape), np.ones(shape))
            )
        standardized = standardize(target, self.target_mean_, self.target_scale_)
        return standardized, _n_targets(shape) * self._outputs_per_target()

    def _as_target(self, y: Any) -> np.ndarray:
        values = self._validate_target(y).reshape(-1, *self._target_shape)
        return standardize(values, self.target_mean_, self.target_scale_)

    def _validate_target(self, y: Any) -> np.ndarray:
        """Targets as float64, or float32 if they came so."""
        remedy = " Pass numbers, or labels to StableNetClassifier."
        with name_text_cell("y", y, type(self).__name__, remedy):
            values: np.ndarray = check_array(
                y,
                ensure_2d=False,
                dtype=(np.float64, np.float32),
                # Looked at below: scikit-learn names no row.
                ensure_all_finite=False,
                input_name="y",
                estimator=self,
            )
        if values.ndim > 2:
            raise ValueError(
                f"y must have one or two dimensions, got shape {values.shape}."
            )
        check_finite(values, name="y", remedy=DROP_ROWS, limit=FLOAT64_MAX)
        if not self._standardizes_target():
            # It must fit the network's own float32.
            check_finite(
                values,
                name="y",
                remedy=(
                    "Divide y by a constant, or use criterion='mse', which "
                    "standardises y."
                ),
                limit=FLOAT32_MAX,
            )
        self._check_domain(values)
        return values

    def _check_domain(self, values: np.ndarray) -> None:
        """Refuse targets for which the criterion is not defined."""
        outside, needed = {
            "all": (np.zeros_like(values, dtype=bool), ""),
            "non-negative": (values < 0, "of at least 0"),
            "positive": (values <= 0, "above 0"),
        }[traits_of(kind_of(self.criterion)).target_domain]
        if outside.any():
            place = tuple(np.argwhere(outside)[0])
            raise ValueError(
                f"criterion={name_of(self.criterion)} needs y {needed}, but it is "
                f"{values[place]:g} at row {place[0]}."
            )

    def _standardizes_target(self) -> bool:
        return traits_of(kind_of(self.criterion)).standardizes_target

    def _outputs_per_target(self) -> int:
        return traits_of(kind_of(self.criterion)).outputs_per_target

    def _match_target(
        self, criterion: nn.Module, output: Tensor, y: np.ndarray
    ) -> Tensor:
        found = tuple(output.shape)
        n_targets = _n_targets(y.shape[1:])
        n_outputs = n_targets * self._outputs_per_target()
        if (found[1:] or (1,)) != (n_outputs,):
            raise ValueError(
                f"The module's output has shape {found}, but y has {n_targets} target "
                f"column{'s' if n_targets > 1 else ''}: ({found[0]}, {n_outputs}) is "
                "needed. Let the module's constructor take n_outputs, and it is filled "
                "in."
            )
        # (n,) against (n, 1) would broadcast to (n, n) inside the loss.
        shape = (-1, n_targets) if len(found) == 2 else (-1,)
        return torch.from_numpy(y).reshape(shape)

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets, in the units of ``y``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            As ``y`` was; for the dtype see Notes.
        """
        output = self._output(X)
        output = predictions(unbounded(self.net_.criterion_), output)
        values = output.double().numpy().reshape(-1, *self._target_shape)
        with np.errstate(over="ignore"):  # an overflow is clipped on the next line
            values = values * self.target_scale_ + self.target_mean_
        limit = np.finfo(self._target_dtype).max
        # For a few values numpy.clip takes twice as long.
        values = np.minimum(np.maximum(values, -limit), limit)
        predicted: np.ndarray = values.astype(self._target_dtype, copy=False)
        return predicted

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _n_targets(shape: tuple[int, ...]) -> int:
    return shape[0] if shape else 1
