"""Neural network classifier for scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from sknan._engine.table_net import TableNet
from sknan._utils.settings import usual_settings
from sknan.estimators._class_outputs import (
    ClassCoding,
    LabelCoding,
    LabelPredictionMixin,
)
from sknan.estimators._class_targets import ClassTargetMixin
from sknan.losses._per_label import PerLabelLoss, loss_per_label
from sknan.nets._parameters import name_of


class StableNetClassifier(LabelPredictionMixin, ClassTargetMixin):
    """Neural network classifier whose weights and outputs are always finite.

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
    criterion : str, type, nn.Module or callable, default="cross_entropy"
        Loss: ``"cross_entropy"``, ``"binary_cross_entropy"``, ``"focal"``, ``"nll"``
        (of log-probabilities), ``"probability_nll"``, a class or instance of
        :mod:`sknan.losses` or ``torch.nn``, or a function of output and target. The
        output of the network has shape (n_samples, n_classes), or (n_samples, 1) for a
        binary loss. It contains logits, except for the two NLL losses. With several
        labels per row, the output has shape (n_samples, n_labels), and the losses of
        logits apply to each label; ``"cross_entropy"`` is then the binary one. A
        function receives targets of 0.0 and 1.0.
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
    class_weight : dict, list of dict, "balanced" or None, default=None
        Weights of the classes, as in scikit-learn. They are multiplied by
        ``sample_weight``. With several labels per row, weights of 0 and 1: for all
        labels, or a list of one dict for each label.
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
    classes_ : ndarray of shape (n_classes,) or (n_labels,)
        Labels of the classes, sorted. With several labels per row, the numbers of the
        columns of ``y``, as in ``MLPClassifier``.
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
    StableNetRegressor : Network for numeric targets.
    StableNetEnsembleClassifier : Mean of several networks.
    NaNImputer : Imputation of missing and infinite values.
    SafeScaler : Scaling that bounds outliers of any size.

    Notes
    -----
    Columns of ``X`` with a mean or standard deviation of 10 or more are standardized,
    in float64, before the network receives them. A custom module receives ``X``
    unchanged if it was passed as an instance, or if it uses its input elsewhere than
    in linear layers.

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

    def __init__(
        self,
        module: Any = None,
        *,
        criterion: Any = "cross_entropy",
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

    @usual_settings()
    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, sample_weight: Any = None
    ) -> StableNetClassifier:
        """Train for one more epoch on these rows, at a constant learning rate.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features, as in ``fit``.
        y : array-like of shape (n_samples,) or (n_samples, n_labels), default=None
            Labels, all of them from ``classes``; or 0 and 1, as in ``fit``.
        classes : array-like of shape (n_classes,) or None, default=None
            All labels that may occur in any call. Required in the first call, except
            with several labels per row.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        self
        """
        self._partial_fit(X, y, sample_weight, classes=classes)
        return self

    def _build_criterion(self, *, per_row: bool) -> nn.Module:
        criterion = super()._build_criterion(per_row=per_row)
        if not getattr(self, "_is_multilabel", False):
            return criterion
        weights = self._label_weights
        return loss_per_label(
            criterion,
            name_of(self.criterion),
            None if weights is None else torch.from_numpy(weights),
        )

    def _continued_net(self, *, per_row: bool) -> TableNet:
        net = super()._continued_net(per_row=per_row)
        criterion = self._build_criterion(per_row=per_row).to(net.device)
        if isinstance(net.criterion_, PerLabelLoss) != isinstance(
            criterion, PerLabelLoss
        ):
            net.criterion_ = criterion
        elif isinstance(criterion, PerLabelLoss):  # class_weight may have changed
            net.criterion_.weights = criterion.weights
        return net

    @property
    def _coding(self) -> ClassCoding:
        return (LabelCoding if self._is_multilabel else ClassCoding)(self.classes_)

    @usual_settings()
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels), float32
            Columns in the order of ``classes_``. The sum of each row is 1. With several
            labels per row, the probability that the row has the label.
        """
        output = self._output(X)
        return self._coding.probabilities(self._fitted.criterion_, output)

    @usual_settings()
    def _log_probabilities(self, X: Any) -> np.ndarray:
        """Return finite logarithms of the probabilities, for a calibration."""
        output = self._output(X)
        return self._coding.log_probabilities(self._fitted.criterion_, output)
