"""Ensembles of networks that are trained together on different rows."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sknan._engine.jobs import Job, JobOutcome, train_together
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.progress import call_in_workers, progress
from sknan._utils.validation import did_you_mean, is_integer
from sknan._utils.warn import warn
from sknan.diagnosis._report import NonFiniteReport
from sknan.estimators._base import StableNetBase
from sknan.estimators._class_outputs import LabelPredictionMixin
from sknan.estimators._classifier import StableNetClassifier
from sknan.estimators._input import CheckedRows, network_input
from sknan.estimators._parameters import check_parameter
from sknan.estimators._regressor import StableNetRegressor
from sknan.estimators._validation_split import ValidationFold
from sknan.exceptions import DivergenceWarning

# With early stopping, each network contains out one of this many folds.
_N_FOLDS = 5

# docs/quality.md measures the effect of each setting.
_DEFAULT_PARAMS: dict[str, Any] = {
    "module__n_frequencies": 16,
    "module__dropout": 0.2,
    "lr_schedule": "constant",
    "max_epochs": 200,
    "batch_size": "auto",
    "early_stopping": True,
    "n_iter_no_change": 15,
}


def default_network(estimator: str) -> Any:
    """Return the network that the ensembles train by default.

    Parameters
    ----------
    estimator : {"classifier", "regressor"}
        Kind of the network.

    Returns
    -------
    StableNetClassifier or StableNetRegressor
        Unfitted network, whose default settings are its parameters.

    Raises
    ------
    ValueError
        If ``estimator`` is another value.

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
    return kinds[estimator](**_DEFAULT_PARAMS)


class _Ensemble(VersionedPickleMixin, BaseEstimator):
    """Base class of the two ensembles; see their docstrings."""

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
        max_time: float | None = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.max_time = max_time
        self.verbose = verbose

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the ensemble, or of its network as ``estimator__...``.

        Parameters
        ----------
        **params : object
            Values by parameter name. A parameter of the network replaces
            ``estimator=None`` by the default network first.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is unknown.
        """
        known = self._get_param_names()
        for name in params:
            if name.partition("__")[0] not in known:
                raise ValueError(self._unknown_parameter(name))
        is_nested = any(name.startswith("estimator__") for name in params)
        if is_nested and params.get("estimator", self.estimator) is None:
            params["estimator"] = self._network(**_DEFAULT_PARAMS)
        super().set_params(**params)
        return self

    def _unknown_parameter(self, name: str) -> str:
        own = self._get_param_names()
        of_network = self._network._nearest_parameter(name)
        hint = "" if "__" in name else did_you_mean(name, own)
        if not hint and of_network:
            hint = f" Did you mean 'estimator__{of_network}'?"
        return (
            f"{type(self).__name__} has no parameter {name!r}.{hint} It has: "
            f"{', '.join(map(repr, own))}. Parameters of its network are written "
            "estimator__..."
        )

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        jobs = self._jobs(X, y, sample_weight)
        n_shares = self._n_shares()
        shares = [jobs[i::n_shares] for i in range(n_shares)]
        with progress("Training", len(jobs), "networks", verbose=self.verbose):
            arguments = [(share,) for share in shares]
            found = call_in_workers(train_together, arguments, n_shares)
        self._assemble([found[i % n_shares][i // n_shares] for i in range(len(jobs))])

    def _assemble(self, outcomes: list[JobOutcome]) -> None:
        """Set the fitted attributes from the outcomes of the networks' jobs."""
        for number, outcome in enumerate(outcomes):
            if outcome.error is not None:
                outcome.error.add_note(
                    f"while training network {number} of {len(outcomes)} of "
                    f"{type(self).__name__}"
                )
                raise outcome.error
        _show_warnings(outcomes)
        self.estimators_ = [outcome.estimator for outcome in outcomes]
        self.nonfinite_reports_ = [
            report
            for member in self.estimators_
            for report in member.nonfinite_reports_
        ]
        self.effective_lr_ = min(member.effective_lr_ for member in self.estimators_)
        first = self.estimators_[0]
        self.n_features_in_ = first.n_features_in_
        if hasattr(first, "feature_names_in_"):
            self.feature_names_in_ = first.feature_names_in_
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _n_shares(self) -> int:
        """Return the number of processes."""
        return min(int(effective_n_jobs(self.n_jobs)), self.n_estimators)

    def _jobs(self, X: Any, y: Any, sample_weight: Any = None) -> list[Job]:
        """Return the job of each network."""
        network = self._checked_network()
        if self.max_time is not None:
            n_in_turn = math.ceil(self.n_estimators / self._n_shares())
            network = clone(network).set_params(max_time=self.max_time / n_in_turn)
        rng = check_random_state(self.random_state)
        seeds = rng.randint(np.iinfo(np.int32).max, size=(2, self.n_estimators))
        jobs = []
        for i in range(self.n_estimators):
            partition, number = divmod(i, _N_FOLDS)
            fold = ValidationFold(number, _N_FOLDS, int(seeds[1, partition]))
            member = clone(network).set_params(random_state=int(seeds[0, i]))
            options = {"sample_weight": sample_weight, "fold": fold}
            jobs.append(Job(member, X, y, options))
        return jobs

    def _checked_network(self) -> StableNetBase:
        name = type(self).__name__
        n = self.n_estimators
        if not is_integer(n) or n < 1:
            raise ValueError(
                f"The 'n_estimators' parameter of {name} must be an integer of at "
                f"least 1, got {n!r}."
            )
        check_parameter(self, "max_time")
        if self.estimator is None:
            return self._network(**_DEFAULT_PARAMS)
        if not isinstance(self.estimator, self._network):
            raise ValueError(
                f"The 'estimator' parameter of {name} must be a "
                f"{self._network.__name__} or None, got {self.estimator!r}."
            )
        if self.estimator.warm_start:
            raise ValueError(
                f"{name} trains new networks in each fit: set warm_start=False in its "
                "estimator."
            )
        return self.estimator

    def _checked_rows(self, X: Any) -> CheckedRows:
        check_is_fitted(self)
        return CheckedRows(network_input(self.estimators_[0], X))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimators_")


def _show_warnings(outcomes: list[JobOutcome]) -> None:
    """Show each warning of the networks once, and one summary of all recoveries."""
    caught = [w for outcome in outcomes for w in outcome.warnings]
    recoveries = [w for w in caught if isinstance(w, DivergenceWarning)]
    for warning in {(type(w), str(w)): w for w in caught}.values():
        if not isinstance(warning, DivergenceWarning):
            warn(warning)
    if recoveries:
        summary = DivergenceWarning(
            f"{len(recoveries)} of {len(outcomes)} networks were rescued in training. "
            f"The first: {recoveries[0]}",
            recoveries[0].report,
        )
        warn(summary)


class StableNetEnsembleClassifier(LabelPredictionMixin, _Ensemble):
    """Mean of the probabilities of several guarded networks.

    With early stopping, each network contains out another fifth of the rows for the
    choice of its best epoch, so that no row is lost. The networks are trained as one
    stacked network, which takes a fraction of the time.

    Parameters
    ----------
    estimator : StableNetClassifier or None, default=None
        Network, which is cloned for each member. None means the settings that were best
        on tables of many kinds: ``StableNetClassifier(
        module__n_frequencies=16, module__dropout=0.2, lr_schedule="constant",
        max_epochs=200, batch_size="auto", early_stopping=True, n_iter_no_change=15)``.
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
    verbose : int, default=0
        Level of output: 1 shows a progress bar over the networks in a terminal or a
        notebook, and nothing in a log.

    Attributes
    ----------
    estimators_ : list of StableNetClassifier
        Fitted networks.
    classes_ : ndarray of shape (n_classes,)
        Labels of the classes, sorted.
    nonfinite_reports_ : list of NonFiniteReport
        Reports of the failed steps that training recovered from, network by network.
    effective_lr_ : float
        Smallest ``effective_lr_`` of the networks; equal to ``lr`` if no step failed.
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
    networks cancels. ``docs/quality.md`` measures the effect of the default settings.

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
            Features: finite numbers within float32.
        y : array-like of shape (n_samples,)
            Labels of at least two classes: numbers, strings or booleans.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight)
        return self

    def _assemble(self, outcomes: list[JobOutcome]) -> None:
        super()._assemble(outcomes)
        self.classes_ = self.estimators_[0].classes_

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the mean of the networks' probabilities of the classes.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples, n_classes), float32
            Columns in the order of ``classes_``. The sum of each row is 1.
        """
        rows = self._checked_rows(X)
        each = [member.predict_proba(rows) for member in self.estimators_]
        mean: np.ndarray = np.stack(each).mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)


class StableNetEnsembleRegressor(MultiOutputMixin, RegressorMixin, _Ensemble):
    """Mean of the predictions of several guarded networks.

    With early stopping, each network contains out another fifth of the rows for the
    choice of its best epoch, so that no row is lost. The networks are trained as one
    stacked network, which takes a fraction of the time.

    Parameters
    ----------
    estimator : StableNetRegressor or None, default=None
        Network, which is cloned for each member. None means the settings that were best
        on tables of many kinds: ``StableNetRegressor(
        module__n_frequencies=16, module__dropout=0.2, lr_schedule="constant",
        max_epochs=200, batch_size="auto", early_stopping=True, n_iter_no_change=15)``.
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
    ``docs/quality.md`` measures the effect of the default settings.

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
            Features: finite numbers within float32.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets: finite numbers.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.

        Returns
        -------
        self
        """
        self._fit(X, y, sample_weight)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the mean of the networks' predictions, in the units of ``y``.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features: finite numbers within float32.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_targets)
            Predictions in the shape of ``y``, with the dtype of a single network.
        """
        rows = self._checked_rows(X)
        # Each term is divided first: a sum of values near the largest would overflow.
        share = np.float64(1.0 / len(self.estimators_))
        first, *others = (member.predict(rows) for member in self.estimators_)
        mean: np.ndarray = first * share
        for predicted in others:
            mean += predicted * share
        return mean.astype(first.dtype)
