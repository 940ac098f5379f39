"""Ensembles of networks that are trained together on different rows."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sknan._engine.jobs import JobOutcome
from sknan._engine.prediction import regression_score
from sknan._utils.validation import Rule, check_parameter, is_one_of
from sknan.estimators._base import StableNetBase
from sknan.estimators._class_outputs import ClassCoding, LabelPredictionMixin
from sknan.estimators._classifier import StableNetClassifier
from sknan.estimators._ensemble_base import Ensemble
from sknan.estimators._held_out import HeldOutPredictions
from sknan.estimators._input import CheckedRows
from sknan.estimators._intervals import (
    IntervalMixin,
    mixture_deviation,
    residuals_of,
)
from sknan.estimators._quantiles import QuantilePredictionMixin
from sknan.estimators._regressor import StableNetRegressor
from sknan.estimators._temperature import log_mean, temperature_of

_CALIBRATION: Rule = (
    lambda v: v is None or is_one_of(v, ("temperature",)),
    "'temperature' or None",
)


class StableNetEnsembleClassifier(LabelPredictionMixin, Ensemble):
    """Mean of the probabilities of several guarded networks.

    With early stopping, each network holds out another fifth of the rows for the
    choice of its best epoch, so that no row is lost. The networks are trained as one
    stacked network, which takes a fraction of the time.

    Parameters
    ----------
    estimator : StableNetClassifier or None, default=None
        Network, which is cloned for each member. None means the settings that were best
        on tables of many kinds: ``StableNetClassifier(
        module__n_frequencies=16, module__dropout=0.2, lr=3e-3, lr_schedule="cosine",
        max_epochs="auto", batch_size="auto", early_stopping=True,
        n_iter_no_change=10)``.
    n_estimators : int, default=5
        Number of networks.
    n_jobs : int or None, default=None
        Number of processes among which the networks are divided; None means 1. The
        trained networks do not depend on it.
    random_state : int, RandomState or None, default=None
        Seed of the folds, the initial weights, the batches and dropout.
    max_time : float or None, default=None
        Time limit of ``fit`` in seconds, of which each network receives an equal share
        as its ``max_time``. The networks then depend on ``n_jobs``. None leaves the
        ``max_time`` of ``estimator`` unchanged.
    validation_split : splitter, list of (train, valid), "chunks" or None, default=None
        Splitter of scikit-learn, or pairs of row numbers, that decides which rows are
        held out. Each network takes the next split, and the first one again after the
        last. ``"chunks"`` holds out other chunks, of a table in chunks, for each
        network. None leaves the ``validation_split`` of ``estimator`` unchanged.
    scoring : str, callable or None, default=None
        Score by which the best epoch of each network is chosen: ``"loss"``, a name
        of a scorer of scikit-learn, or a callable. None leaves the ``scoring`` of
        ``estimator`` unchanged.
    calibration : {"temperature"} or None, default=None
        Whether the probabilities are calibrated on the held-out rows, without a further
        fit: the logarithms of the mean probabilities are divided by ``temperature_``.
        The most probable class does not change.
    verbose : int, default=0
        Level of output: 1 shows a progress bar over the networks in a terminal or a
        notebook, and nothing in a log.

    Attributes
    ----------
    estimators_ : list of StableNetClassifier
        Fitted networks.
    classes_ : ndarray of shape (n_classes,) or (n_labels,)
        Labels of the classes, sorted; with several labels per row, their numbers.
    nonfinite_reports_ : list of NonFiniteReport
        Reports of the failed steps that training recovered from, network by network.
    effective_lr_ : float
        Smallest ``effective_lr_`` of the networks; equal to ``lr`` if no step failed.
    temperature_ : float
        Number that minimizes the log-loss of the networks on the rows held out of each,
        weighted by ``sample_weight``; shared by all labels of a row. Above 1, the
        networks are too confident. Exists only with ``calibration="temperature"``.
    oof_prediction_ : ndarray of shape (n_samples, n_classes) or (n_samples, n_labels)
        For each row of ``fit``, the mean of the probabilities by the networks that were
        not trained on it. NaN for a row that no network held out, such as a row of
        weight 0. As ``oof_score_``, it exists only if rows were held out.
    oof_score_ : float
        Accuracy of ``oof_prediction_``, weighted by ``sample_weight``: an estimate for
        new rows without a further fit.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``, if all of them were strings.

    Raises
    ------
    NonFiniteDataError, NonFiniteTrainingError, ValueError
        For the same reasons as a single network. If one network cannot be trained,
        the fit fails with the error of that network. A note names the network.

    Warns
    -----
    DivergenceWarning
        Once per fit, if the training of a network recovered from failed steps. It
        contains the number of such networks and the message of the first.

    See Also
    --------
    StableNetEnsembleRegressor : Ensemble for numeric targets.
    StableNetClassifier : A single network.

    Notes
    -----
    Probabilities are averaged, not logits, so that the overconfidence of single
    networks cancels. ``docs/details/quality.md`` has the effect of each default.

    ``oof_score_`` is slightly pessimistic, because each row is predicted by a part of
    the networks, and slightly optimistic, because its networks have chosen their best
    epoch by the rows held out.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import SafeScaler, StableNetEnsembleClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(SafeScaler(), StableNetEnsembleClassifier(random_state=0))
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True
    """

    _network = StableNetClassifier

    classes_: np.ndarray

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = 5,
        *,
        n_jobs: int | None = None,
        random_state: Any = None,
        max_time: float | None = None,
        validation_split: Any = None,
        scoring: Any = None,
        calibration: str | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            estimator,
            n_estimators,
            n_jobs=n_jobs,
            random_state=random_state,
            max_time=max_time,
            validation_split=validation_split,
            scoring=scoring,
            verbose=verbose,
        )
        self.calibration = calibration

    def _assemble(
        self, outcomes: list[JobOutcome], X: Any, y: Any, **fit_params: Any
    ) -> None:
        super()._assemble(outcomes, X, y, **fit_params)
        self.classes_ = self.estimators_[0].classes_

    def _held_out_prediction(self, member: Any, rows: CheckedRows) -> np.ndarray:
        is_calibrated = self.calibration is not None
        predict = member._log_probabilities if is_calibrated else member.predict_proba
        predicted: np.ndarray = predict(rows)
        return predicted

    def _use_held_out(self, held_out: HeldOutPredictions) -> None:
        if self.calibration is None:
            self.oof_prediction_ = held_out.mean()
        else:
            codes = self.estimators_[0]._as_target(held_out.target)
            self.temperature_ = temperature_of(held_out, codes)
            logs = held_out.log_mean()
            found = self._coding.at_temperature(logs, self.temperature_)
            self.oof_prediction_ = found.astype(np.float32)
        labels = self._coding.labels_of(np.nan_to_num(self.oof_prediction_))
        self.oof_score_ = held_out.score(labels, accuracy_score)

    @property
    def _coding(self) -> ClassCoding:
        coding: ClassCoding = self.estimators_[0]._coding
        return coding

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the mean of the networks' probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes) or (n_samples, n_labels), float32
            Columns as in :meth:`StableNetClassifier.predict_proba`.
        """
        check_is_fitted(self)
        if hasattr(self, "temperature_"):
            logs = log_mean(self._of_each("_log_probabilities", X))
            mean = self._coding.at_temperature(logs, self.temperature_)
        else:
            each = self._of_each("predict_proba", X)
            mean = np.stack(each).mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    def _checked_network(self) -> StableNetBase:
        network = super()._checked_network()
        owner = type(self).__name__
        check_parameter(owner, "calibration", self.calibration, _CALIBRATION)
        if network.early_stopping is False:
            self._do_without_held_out()
        return network

    def _do_without_held_out(self) -> None:
        if self.calibration is not None:
            raise ValueError(
                f"calibration={self.calibration!r} needs rows that are held out of the "
                "networks: set early_stopping=True in the estimator of "
                f"{type(self).__name__}, and do not pass X_val."
            )


class StableNetEnsembleRegressor(QuantilePredictionMixin, IntervalMixin, Ensemble):
    """Mean of the predictions of several guarded networks.

    With early stopping, each network holds out another fifth of the rows for the
    choice of its best epoch, so that no row is lost. The networks are trained as one
    stacked network, which takes a fraction of the time.

    Parameters
    ----------
    estimator : StableNetRegressor or None, default=None
        Network, which is cloned for each member. None means the settings that were best
        on tables of many kinds: ``StableNetRegressor(
        module__n_frequencies=16, module__dropout=0.2, lr=3e-3, lr_schedule="cosine",
        max_epochs="auto", batch_size="auto", early_stopping=True,
        n_iter_no_change=10)``.
    n_estimators : int, default=5
        Number of networks.
    n_jobs : int or None, default=None
        Number of processes among which the networks are divided; None means 1. The
        trained networks do not depend on it.
    random_state : int, RandomState or None, default=None
        Seed of the folds, the initial weights, the batches and dropout.
    max_time : float or None, default=None
        Time limit of ``fit`` in seconds, of which each network receives an equal share
        as its ``max_time``. The networks then depend on ``n_jobs``. None leaves the
        ``max_time`` of ``estimator`` unchanged.
    validation_split : splitter, list of (train, valid), "chunks" or None, default=None
        Splitter of scikit-learn, or pairs of row numbers, that decides which rows are
        held out. Each network takes the next split, and the first one again after the
        last. ``"chunks"`` holds out other chunks, of a table in chunks, for each
        network. None leaves the ``validation_split`` of ``estimator`` unchanged.
    scoring : str, callable or None, default=None
        Score by which the best epoch of each network is chosen: ``"loss"``, a name
        of a scorer of scikit-learn, or a callable. None leaves the ``scoring`` of
        ``estimator`` unchanged.
    verbose : int, default=0
        Level of output: 1 shows a progress bar over the networks in a terminal or a
        notebook, and nothing in a log.

    Attributes
    ----------
    estimators_ : list of StableNetRegressor
        Fitted networks.
    nonfinite_reports_ : list of NonFiniteReport
        Reports of the failed steps that training recovered from, network by network.
    effective_lr_ : float
        Smallest ``effective_lr_`` of the networks; equal to ``lr`` if no step failed.
    oof_prediction_ : ndarray in the shape of predictions
        For each row of ``fit``, the mean of the predictions by the networks that were
        not trained on it. NaN for a row that no network held out, such as a row of
        weight 0. As ``oof_score_``, it exists only if rows were held out.
    oof_score_ : float
        R2 of ``oof_prediction_``, or the mean D2 pinball score of several quantiles,
        weighted by ``sample_weight``: an estimate for new rows without a further fit.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns seen in ``fit``, if all of them were strings.

    Raises
    ------
    NonFiniteDataError, NonFiniteTrainingError, ValueError
        For the same reasons as a single network. If one network cannot be trained,
        the fit fails with the error of that network. A note names the network.

    Warns
    -----
    DivergenceWarning
        Once per fit, if the training of a network recovered from failed steps. It
        contains the number of such networks and the message of the first.

    See Also
    --------
    StableNetEnsembleClassifier : Ensemble for class labels.
    StableNetRegressor : A single network.

    Notes
    -----
    Predictions are averaged in the units of ``y`` for every criterion.
    ``docs/details/quality.md`` measures the effect of the default settings.

    ``oof_score_`` is slightly pessimistic, because each row is predicted by a part of
    the networks, and slightly optimistic, because its networks have chosen their best
    epoch by the rows held out.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import SafeScaler, StableNetEnsembleRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = make_pipeline(SafeScaler(), StableNetEnsembleRegressor(random_state=0))
    >>> bool(model.fit(X, y).score(X, y) > 0.5)
    True
    """

    _network = StableNetRegressor

    def _held_out_prediction(self, member: Any, rows: CheckedRows) -> np.ndarray:
        predicted: np.ndarray = member.predict(rows)
        return predicted

    def _use_held_out(self, held_out: HeldOutPredictions) -> None:
        self.oof_prediction_ = held_out.mean()
        metric = functools.partial(regression_score, self._criterion)
        self.oof_score_ = held_out.score(self.oof_prediction_, metric)
        fits = self.oof_prediction_.shape == held_out.target.shape
        self._residuals = residuals_of(held_out) if fits else None

    @property
    def _criterion(self) -> nn.Module:
        criterion: nn.Module = self.estimators_[0]._fitted.criterion_
        return criterion

    def predict(
        self, X: Any, return_std: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return the mean of the networks' predictions, in the units of ``y``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.
        return_std : bool, default=False
            Whether to return a standard deviation as well: that of the mixture of the
            networks' distributions. Its square is the mean of the variances that the
            networks predict (noise of the target, which more data do not reduce) plus
            the variance of their predictions (what they do not know). Networks predict
            a variance with ``criterion="gaussian_nll"`` only. With other criteria, the
            first part is missing, and :meth:`predict_interval` says where new targets
            are to be expected.

        Returns
        -------
        predicted : ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions in the shape of ``y``, with the dtype of a single network, and
            one more dimension for several quantiles. Means of quantiles do not cross.
        std : ndarray in the shape of ``predicted``
            Standard deviations in the units of ``y``; only if ``return_std=True``.
        """
        check_is_fitted(self)
        learns_std = return_std and self.estimators_[0]._learns_std
        stds: list[np.ndarray] | None = None
        each = self._of_each(
            "predict", X, **({"return_std": True} if learns_std else {})
        )
        if learns_std:
            each, stds = (list(part) for part in zip(*each, strict=True))
        first, *others = each
        # Each term is divided first: a sum of values near the largest would overflow.
        share = np.float64(1.0 / (1 + len(others)))
        mean: np.ndarray = first * share
        for predicted in others:
            mean += predicted * share
        mean = mean.astype(first.dtype)
        if not return_std:
            return mean
        return mean, mixture_deviation(each, stds).astype(first.dtype)
