"""Neural network regressor for scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from sknan._utils.settings import usual_settings
from sknan.estimators._number_targets import NumberTargetMixin
from sknan.estimators._quantiles import QuantilePredictionMixin
from sknan.losses._bounded import unbounded
from sknan.nets._parameters import name_of


class StableNetRegressor(QuantilePredictionMixin, NumberTargetMixin):
    """Neural network regressor whose weights and outputs are always finite.

    Gradients are clipped and the learning rate follows a schedule by default. A step
    with a non-finite loss or gradient is not taken: training returns to the last
    verified weights and continues at a lower learning rate. After ``fit``, every weight
    and every output for a training row is finite; if that is impossible, ``fit`` raises
    an error that names the cause.

    Parameters
    ----------
    module : type, nn.Module, callable or None, default=None
        Network to train. None builds a :class:`~sknan.TabularMLP` with the numbers of
        inputs and outputs of the data. A class, or a function that returns a module, is
        called with the ``module__`` parameters; ``n_features_in`` and ``n_outputs`` are
        added if it has parameters of these names. An instance is copied, and training
        starts from its weights. With a custom module, ``X`` may have more than two
        dimensions.
    criterion : str, type, nn.Module or callable, default="mse"
        Loss: ``"mse"``, ``"rmse"``, ``"mae"``, ``"huber"``, ``"pseudo_huber"``,
        ``"log_cosh"``, ``"quantile"``, ``"gaussian_nll"``, ``"poisson"``, ``"gamma"``,
        ``"tweedie"`` (for these three the output is the logarithm of the mean),
        ``"mape"``, ``"smape"``, ``"msle"``, ``"kl_div"``, ``"cosine"``,
        ``"correlation"``, a class or instance of :mod:`sknan.losses` or ``torch.nn``,
        or a function of output and target. Several quantiles, as in
        ``criterion__quantile=[0.05, 0.5, 0.95]``, cannot cross. For the losses from
        ``"mse"`` to ``"gaussian_nll"``, whose optimum shifts and scales with the
        target, the target is standardized for training. For those from ``"poisson"`` to
        ``"msle"``, whose zero has a meaning, it is divided by the mean of its absolute
        values. Predictions are in the units of ``y``.
    optimizer : str or type, default="adamw"
        Optimizer: ``"adamw"``, ``"adam"``, ``"sgd"``, ``"nadam"``, ``"radam"``,
        ``"rmsprop"``, ``"adagrad"`` or a class of ``torch.optim``.
    lr : float or "auto", default=1e-3
        Highest learning rate of the schedule. With ``"auto"``, ``fit`` and the first
        ``partial_fit`` find a learning rate for their rows by
        :func:`~sknan.find_learning_rate`. A training that continues keeps the learning
        rate found before.
    lr_schedule : str, callable or None, default="cosine"
        Factor by which ``lr`` is multiplied in the course of training: ``"constant"``,
        ``"cosine"``, ``"one_cycle"``, ``"exponential"``, ``"step"``, ``"plateau"``,
        ``"coslog4"`` or a function of the progress in [0, 1]; see :mod:`sknan.optim`.
    warmup : float or int, default=0.0
        Fraction (float) or number (int) of the steps in which the learning rate rises
        to ``lr``.
    ema_decay : float or None, default=None
        Decay of an exponential moving average of the weights and of the running
        statistics of batch normalization, such as 0.99. The best epoch is chosen, and
        predictions are made, with the average. After ``n`` steps the decay is at most
        ``(1 + n) / (10 + n)``. A step that fails never enters the average.
        ``partial_fit`` and ``warm_start`` continue the average. None: no average.
    max_epochs : int or "auto", default=100
        Maximum number of passes over the training rows. ``"auto"`` depends on the
        number of rows of the table: 30 below 30 000, 12 below 100 000, else 8.
    max_time : float or None, default=None
        Time limit of each training in seconds. No epoch begins that is expected to end
        later, but the first one is always completed. The range test of ``lr="auto"``
        takes at most about half of the time, in fewer steps if necessary; where that
        does not suffice, the learning rate is 1e-3, and ``fit`` warns. From the second
        epoch on, ``lr_schedule`` follows the time if that allows fewer epochs than
        ``max_epochs``, and reaches its end within it. None means no limit.
    batch_size : int or "auto", default=128
        Number of rows in a batch. A last batch of a single row is merged with the batch
        before it. ``"auto"`` depends on the number of rows of the table: 32 below 700,
        64 below 1500, 128 below 6000, 256 below 30 000, 512 below 100 000, else 1024.
    weight_decay : float, default=0.01
        Weight decay, passed to the optimizer if it has this parameter.
    clip_norm : float or None, default=1.0
        Maximum 2-norm of all gradients together.
    clip_value : float or None, default=None
        Maximum absolute value of each entry of the gradients.
    adaptive_clip : {"agc", "quantile", "zscore"}, float, callable or None, default=None
        Method of clipping with a threshold that adapts to the training; see
        :mod:`sknan.optim`.
    on_nonfinite : {"recover", "skip", "raise"}, default="recover"
        Action after a non-finite or exploding step: recover (take the step without the
        rows to blame or with repaired operations, skip the batch, or return to verified
        weights with a lower learning rate), only skip the step, or raise an error.
    max_recoveries : int, default=10
        Maximum number of roll-backs and consecutive skipped batches in one training;
        one more raises an error. Steps that are taken without the rows to blame, or
        with repaired operations, do not count. 0 allows no recovery at all.
    early_stopping : bool or "auto", default="auto"
        Whether to hold out ``validation_fraction`` of the rows, to stop when their
        ``scoring`` no longer improves, and to keep the weights of the best epoch
        (the last of equal ones). ``"auto"`` does so for 500 rows or more; with
        fewer rows, a tenth is too small to choose an epoch by, unless
        ``validation_split`` or ``X_val`` provides the rows.
    validation_fraction : float, default=0.1
        Fraction of the rows to hold out for early stopping. With ``groups``, whole
        groups are held out whose rows make up about this fraction, at most a half.
    validation_split : splitter, list of (train, valid), "chunks" or None, default=None
        Splitter of scikit-learn, such as ``GroupKFold()`` or ``TimeSeriesSplit()``, or
        pairs of row numbers, that decides which rows are held out, instead of
        ``validation_fraction``. Of several splits, the last one is used if each trains
        only on rows before those that it holds out, as in a time series; otherwise the
        first one. ``"chunks"`` holds out whole chunks of a table in chunks, whose rows
        make up about ``validation_fraction``.
    scoring : str, callable or None, default="loss"
        Score by which the best epoch is chosen: the loss, a name of a scorer of
        scikit-learn, a callable ``scorer(estimator, X, y)``, or the ``score`` of the
        estimator (None). A scorer receives the held-out rows in your labels and units,
        and their weights if it takes ``sample_weight``. An epoch whose score is NaN is
        never the best.
    n_iter_no_change : int, default=20
        Number of epochs without improvement after which training stops.
    callbacks : list or None, default=None
        Callbacks of skorch. They are called with the skorch net that is trained, which
        predicts as the estimator does.
    warm_start : bool, default=False
        Whether ``fit`` continues with the weights and the optimizer of the last fit.
        Parameters of the module and the criterion then keep their values. An optimizer
        of another kind starts anew.
    device : str, default="cpu"
        Device to train on: a torch device, or ``"auto"`` for the GPU if there is one.
    num_threads : int or "auto", default="auto"
        Number of threads of torch for training and prediction. ``"auto"`` is 1 for
        small networks, which are slower with two threads, and at most
        ``torch.get_num_threads()``; see the page on performance. The setting of torch
        is restored afterwards. A process that was forked uses 1.
    compile : bool, default=False
        Whether to ``torch.compile`` the network and the criterion, which takes some
        seconds and needs a C++ compiler. Parameters such as ``compile__mode`` are
        passed on.
    random_state : int, RandomState or None, default=None
        Seed of the initial weights, the batches, dropout and the choice of validation
        rows. The global generators of torch do not change.
    verbose : int, default=0
        Level of output, as in Keras: 1 shows a progress bar in a terminal or a
        notebook, and nothing in a log; 2 prints a line per epoch in all of them.
    **prefixed
        Parameters of the components of the network, such as ``module__width=64``, with
        the prefix ``module__``, ``criterion__``, ``optimizer__`` or ``compile__``.

    Attributes
    ----------
    net_ : GuardedNet
        Fitted network as a skorch net, which is built at each access.
        ``net_.history`` contains the loss, the gradient norm and the learning rate of
        each epoch; ``net_.module_`` is the network.
    target_mean_, target_scale_ : ndarray of shape () or (n_targets,)
        Mean and standard deviation by which ``y`` was standardized for training; 0 and
        the mean absolute value if ``y`` was only scaled, and 0 and 1 if the criterion
        allows neither. A constant target has the scale 0, and is
        predicted exactly. If all are, the weights keep their initial values.
    n_iter_ : int
        Number of epochs run.
    best_epoch_ : int or None
        Number of the epoch whose weights were kept, counted from 1. None without early
        stopping.
    loss_curve_ : list of float
        Mean training loss of each epoch; NaN for an epoch that was interrupted.
    validation_scores_ : list of float or None
        ``scoring`` of the held-out rows after each epoch; for ``"loss"``, minus the
        loss, so that greater is better. None without early stopping.
    best_score_ : float or None
        Score of the best epoch. None without early stopping.
    nonfinite_reports_ : list of NonFiniteReport
        Reports of the failed steps that training recovered from, in order.
    lr_ : float
        Learning rate: ``lr``, or the one found for ``lr="auto"``.
    learning_rate_range_ : LearningRateRange or None
        Curves, range and reason of the learning rate found for ``lr="auto"``. None if
        ``lr`` is a number, or if ``max_time`` was too short for the test.
    effective_lr_ : float
        ``lr_`` times all reductions by the guard; equal to ``lr_`` if no step failed.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``, if all of them were strings.

    Raises
    ------
    NonFiniteDataError
        In ``fit`` and ``predict``, if ``X`` (or ``y``) contains NaN, infinities or
        values beyond float32.
    NonFiniteTrainingError
        If a step fails and training cannot recover, or ``on_nonfinite`` forbids it.
    ValueError
        If a parameter, the shape of the network's output, or the input is invalid.
    TypeError
        If an unknown parameter is passed to the constructor.

    Warns
    -----
    DivergenceWarning
        Once per fit, if training recovered from failed steps.
    UserWarning
        If Ctrl-C interrupted the training: the warning says after how many epochs. As
        one of several, such as those of a search or an ensemble, the training ends with
        the ``KeyboardInterrupt`` instead.
    ConvergenceWarning
        If ``max_time`` ended the training before ``max_epochs``, or was too short for
        the range test of ``lr="auto"``.

    See Also
    --------
    StableNetClassifier : Network for class labels.
    StableNetEnsembleRegressor : Mean of several networks.
    NaNImputer : Imputation of missing and infinite values.
    SafeScaler : Scaling that bounds outliers of any size.

    Notes
    -----
    Columns of ``X`` with a mean or standard deviation of 10 or more are standardized,
    in float64, before the network receives them. A custom module receives ``X``
    unchanged if it was passed as an instance, or if it uses its input elsewhere than
    in linear layers.

    Predictions are float64 if ``y`` was float64, or if it contained integers that
    float32 cannot represent. Otherwise they are float32, the dtype of the network.

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

    def __init__(
        self,
        module: Any = None,
        *,
        criterion: Any = "mse",
        optimizer: Any = "adamw",
        lr: float | str = 1e-3,
        lr_schedule: Any = "cosine",
        warmup: float = 0.0,
        ema_decay: float | None = None,
        max_epochs: int | str = 100,
        max_time: float | None = None,
        batch_size: int | str = 128,
        weight_decay: float = 0.01,
        clip_norm: float | None = 1.0,
        clip_value: float | None = None,
        adaptive_clip: Any = None,
        on_nonfinite: str = "recover",
        max_recoveries: int = 10,
        early_stopping: bool | str = "auto",
        validation_fraction: float = 0.1,
        validation_split: Any = None,
        scoring: Any = "loss",
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

    @usual_settings()
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> StableNetRegressor:
        """Train for one more epoch on these rows, at a constant learning rate.

        ``y`` is standardized or scaled by ``target_mean_`` and ``target_scale_`` of the
        first 100 rows: until these have been seen, or while all targets are equal, each
        call computes both anew from all rows so far. After ``fit`` those of ``fit`` are
        kept.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_targets), default=None
            Targets: finite numbers.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        self
        """
        self._partial_fit(X, y, sample_weight)
        return self

    @usual_settings()
    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the predicted targets, in the units of ``y``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.
        return_std : bool, default=False
            Whether to return the standard deviation of the target around each
            prediction as well, which a network learns with ``"gaussian_nll"``.

        Returns
        -------
        predicted : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions in the shape of ``y``, with one more dimension for several
            quantiles of the criterion ``"quantile"``, which ascend along it. See Notes
            for the dtype.
        std : ndarray in the shape of ``predicted``
            Standard deviations in the units of ``y``; only if ``return_std=True``.
        """
        output = self._output(X)
        criterion = self._fitted.criterion_
        predicted = self._coding.predict(criterion, output)
        if not return_std:
            return predicted
        if not self._learns_std:
            raise ValueError(
                "predict(X, return_std=True) needs a criterion that learns the "
                f"variance of the target, which {name_of(self.criterion)} does not: "
                "use criterion='gaussian_nll', or StableNetEnsembleRegressor for the "
                "deviation between networks."
            )
        return predicted, self._coding.deviations(criterion, output)

    @property
    def _learns_std(self) -> bool:
        """Whether the network predicts a standard deviation."""
        return hasattr(unbounded(self._fitted.criterion_), "predict_std")

    @property
    def _criterion(self) -> nn.Module:
        criterion: nn.Module = self._fitted.criterion_
        return criterion
