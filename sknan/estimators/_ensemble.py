"""Ensembles of networks that are trained together, each on other rows."""

from __future__ import annotations

import numbers
import warnings
from typing import Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from sknan._engine.together import Job, Outcome, train_together
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.progress import call_in_workers, progress
from sknan._utils.stacklevel import stacklevel_of_caller
from sknan.diagnosis._report import NonFiniteReport
from sknan.estimators._base import StableNetBase
from sknan.estimators._classifier import ProbableLabelsMixin, StableNetClassifier
from sknan.estimators._input import CheckedRows, check_features
from sknan.estimators._regressor import StableNetRegressor
from sknan.estimators._validation_split import ValidationFold
from sknan.exceptions import DivergenceWarning

__all__ = [
    "StableNetEnsembleClassifier",
    "StableNetEnsembleRegressor",
    "default_network",
]

# With early stopping each network holds out one of so many parts of the rows.
_N_FOLDS = 5

# What each default is worth is measured in docs/quality.md.
_RECIPE: dict[str, Any] = {
    "module__n_frequencies": 16,
    "module__dropout": 0.2,
    "lr_schedule": "constant",
    "max_epochs": 200,
    "batch_size": "auto",
    "early_stopping": True,
    "n_iter_no_change": 15,
}


def default_network(estimator: str) -> Any:
    """Network that the ensembles train by default, with its recipe as parameters.

    Parameters
    ----------
    estimator : {"classifier", "regressor"}
        What it is to be.

    Returns
    -------
    StableNetClassifier or StableNetRegressor
        Unfitted.

    Raises
    ------
    ValueError
        If it is to be something else.

    Examples
    --------
    >>> from sknan import StableNetEnsembleClassifier
    >>> from sknan.estimators import default_network
    >>> network = default_network("classifier").set_params(module__width=256)
    >>> model = StableNetEnsembleClassifier(network)
    """
    kinds = {"classifier": StableNetClassifier, "regressor": StableNetRegressor}
    if estimator not in kinds:
        raise ValueError(
            f"estimator must be 'classifier' or 'regressor', got {estimator!r}."
        )
    return kinds[estimator](**_RECIPE)


class _Ensemble(VersionedPickleMixin, BaseEstimator):
    """What the two ensembles share; see there."""

    _network: ClassVar[type[StableNetBase]]

    estimators_: list[Any]
    nonfinite_reports_: list[NonFiniteReport]
    effective_lr_: float

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = 5,
        *,
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        jobs = self._jobs(X, y, sample_weight)
        n_shares = min(effective_n_jobs(self.n_jobs), len(jobs))
        shares = [jobs[i::n_shares] for i in range(n_shares)]
        with progress("Training", len(jobs), "networks", verbose=self.verbose):
            found = call_in_workers(
                train_together, [(share,) for share in shares], n_shares
            )
        outcomes: list[Outcome] = [None] * len(jobs)  # type: ignore[list-item]
        for i, its in enumerate(found):
            outcomes[i::n_shares] = its
        for number, outcome in enumerate(outcomes):
            if outcome.error is not None:
                outcome.error.add_note(
                    f"while training network {number} of {len(jobs)} of "
                    f"{type(self).__name__}"
                )
                raise outcome.error
        _show_warnings(outcomes)
        self.estimators_ = [outcome.estimator for outcome in outcomes]
        self.nonfinite_reports_ = [
            report for its in self.estimators_ for report in its.nonfinite_reports_
        ]
        self.effective_lr_ = min(its.effective_lr_ for its in self.estimators_)
        first = self.estimators_[0]
        self.n_features_in_ = first.n_features_in_
        if hasattr(first, "feature_names_in_"):
            self.feature_names_in_ = first.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _jobs(self, X: Any, y: Any, sample_weight: Any) -> list[Job]:
        network = self._checked_network()
        rng = check_random_state(self.random_state)
        seeds = rng.randint(np.iinfo(np.int32).max, size=(2, self.n_estimators))
        jobs = []
        for i in range(self.n_estimators):
            turn, number = divmod(i, _N_FOLDS)
            fold = ValidationFold(number, _N_FOLDS, int(seeds[1, turn]))
            member = clone(network).set_params(random_state=int(seeds[0, i]))
            options = {"sample_weight": sample_weight, "fold": fold}
            jobs.append(Job(member, X, y, options))
        return jobs

    def _checked_network(self) -> StableNetBase:
        name = type(self).__name__
        n = self.n_estimators
        is_integer = isinstance(n, numbers.Integral) and not isinstance(n, bool)
        if not is_integer or n < 1:
            raise ValueError(
                f"The 'n_estimators' parameter of {name} must be an integer of at "
                f"least 1, got {n!r}."
            )
        if self.estimator is None:
            return self._network(**_RECIPE)
        if not isinstance(self.estimator, self._network):
            raise ValueError(
                f"The 'estimator' parameter of {name} must be a "
                f"{self._network.__name__} or None, got {self.estimator!r}."
            )
        if self.estimator.warm_start:
            raise ValueError(
                f"{name} trains its networks anew in each fit: set warm_start=False in "
                "its estimator."
            )
        return self.estimator

    def _checked_rows(self, X: Any) -> CheckedRows:
        check_is_fitted(self)
        return CheckedRows(check_features(self.estimators_[0], X, reset=False))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimators_")


def _show_warnings(outcomes: list[Outcome]) -> None:
    """What the networks had to say, each thing once, and all rescues in one warning."""
    said = set()
    rescues: list[DivergenceWarning] = []
    for outcome in outcomes:
        for its in outcome.warnings:
            if isinstance(its.message, DivergenceWarning):
                rescues.append(its.message)
                continue
            key = its.category, str(its.message)
            if key not in said:
                said.add(key)
                warnings.warn(its.message, stacklevel=stacklevel_of_caller())
    if rescues:
        summary = DivergenceWarning(
            f"{len(rescues)} of {len(outcomes)} networks were rescued in training. The "
            f"first: {rescues[0]}",
            rescues[0].report,
        )
        warnings.warn(summary, stacklevel=stacklevel_of_caller())


class StableNetEnsembleClassifier(ProbableLabelsMixin, _Ensemble):
    """Mean of several guarded networks, for classification.

    With early stopping each network holds out another fifth of the rows to choose its
    epoch by, so that none is lost. The networks are trained as one, at a fraction of
    the time.

    Parameters
    ----------
    estimator : StableNetClassifier or None, default=None
        The network, which is cloned for each member. None stands for the recipe that
        was found best on tables of many kinds: ``StableNetClassifier(
        module__n_frequencies=16, module__dropout=0.2, lr_schedule="constant",
        max_epochs=200, batch_size="auto", early_stopping=True, n_iter_no_change=15)``.
    n_estimators : int, default=5
        Number of networks.
    n_jobs : int or None, default=None
        Processes to train them in, each with its share; None is 1. The networks do not
        depend on it.
    random_state : int, RandomState or None, default=None
        Seed of folds, initial weights, batches and dropout.
    verbose : int, default=0
        1 shows a bar over the networks in a terminal or a notebook, and nothing in a
        log.

    Attributes
    ----------
    estimators_ : list of StableNetClassifier
        The fitted networks.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    nonfinite_reports_ : list of NonFiniteReport
        Every step that failed and was rescued, network by network.
    effective_lr_ : float
        Smallest rate that the guard of a network ended at; ``lr`` if none failed.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if ``X`` had names that are all strings.

    Raises
    ------
    NonFiniteDataError, NonFiniteTrainingError, ValueError
        As a single network does. If one cannot be trained, neither can the ensemble:
        a note says which it was.

    Warns
    -----
    DivergenceWarning
        Once, if the training of a network was rescued: of how many, and the first.

    See Also
    --------
    StableNetEnsembleRegressor : The same for numbers.
    StableNetClassifier : A single network.

    Notes
    -----
    Probabilities are averaged, not logits: over-confidence of single networks cancels.
    What the defaults are worth is measured in ``docs/quality.md``.

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the networks.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.
        y : array-like of shape (n_samples,)
            Labels of at least two classes: numbers, strings or booleans.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Weights of the rows, at least 0.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight)
        self.classes_ = self.estimators_[0].classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of the classes: the mean of those of the networks.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``; rows sum to 1.
        """
        rows = self._checked_rows(X)
        each = [its.predict_proba(rows) for its in self.estimators_]
        mean: np.ndarray = np.stack(each).mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)


class StableNetEnsembleRegressor(RegressorMixin, _Ensemble):
    """Mean of several guarded networks, for regression.

    With early stopping each network holds out another fifth of the rows to choose its
    epoch by, so that none is lost. The networks are trained as one, at a fraction of
    the time.

    Parameters
    ----------
    estimator : StableNetRegressor or None, default=None
        The network, which is cloned for each member. None stands for the recipe that
        was found best on tables of many kinds: ``StableNetRegressor(
        module__n_frequencies=16, module__dropout=0.2, lr_schedule="constant",
        max_epochs=200, batch_size="auto", early_stopping=True, n_iter_no_change=15)``.
    n_estimators : int, default=5
        Number of networks.
    n_jobs : int or None, default=None
        Processes to train them in, each with its share; None is 1. The networks do not
        depend on it.
    random_state : int, RandomState or None, default=None
        Seed of folds, initial weights, batches and dropout.
    verbose : int, default=0
        1 shows a bar over the networks in a terminal or a notebook, and nothing in a
        log.

    Attributes
    ----------
    estimators_ : list of StableNetRegressor
        The fitted networks.
    nonfinite_reports_ : list of NonFiniteReport
        Every step that failed and was rescued, network by network.
    effective_lr_ : float
        Smallest rate that the guard of a network ended at; ``lr`` if none failed.
    n_features_in_ : int
        Number of columns seen in ``fit``.
    feature_names_in_ : ndarray of shape (n_features,)
        Their names, if ``X`` had names that are all strings.

    Raises
    ------
    NonFiniteDataError, NonFiniteTrainingError, ValueError
        As a single network does. If one cannot be trained, neither can the ensemble:
        a note says which it was.

    Warns
    -----
    DivergenceWarning
        Once, if the training of a network was rescued: of how many, and the first.

    See Also
    --------
    StableNetEnsembleClassifier : The same for labels.
    StableNetRegressor : A single network.

    Notes
    -----
    Predictions are averaged in the units of ``y``, whatever the criterion. What the
    defaults are worth is measured in ``docs/quality.md``.

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train the networks.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.
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

    def predict(self, X: Any) -> np.ndarray:
        """Predicted targets, in the units of ``y``: the mean of the networks.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            As ``y`` was, in the dtype of a single network's answer.
        """
        rows = self._checked_rows(X)
        mean, *others = (its.predict(rows) for its in self.estimators_)
        # In shares: a sum of numbers near the largest would overflow.
        share = 1.0 / len(self.estimators_)
        dtype = mean.dtype
        mean = mean * np.float64(share)
        for its in others:
            mean += its * np.float64(share)
        averaged: np.ndarray = mean.astype(dtype)
        return averaged

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
