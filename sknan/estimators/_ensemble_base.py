"""Base class of the two ensembles, and the network that they train by default."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from joblib import effective_n_jobs
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from sknan._engine.jobs import Job, JobOutcome, train_together
from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.pickling import VersionedPickleMixin
from sknan._utils.progress import call_in_workers, progress
from sknan._utils.random_state import random_generator
from sknan._utils.validation import COUNT, check_parameter, did_you_mean, is_integer
from sknan._utils.warn import recorded_warnings, warn
from sknan.diagnosis._report import NonFiniteReport
from sknan.estimators._base import StableNetBase
from sknan.estimators._classifier import StableNetClassifier
from sknan.estimators._held_out import HeldOutPredictions
from sknan.estimators._input import CheckedRows, check_sample_weight, network_input
from sknan.estimators._parameters import check_own_parameter
from sknan.estimators._regressor import StableNetRegressor
from sknan.estimators._validation_split import ValidationFold
from sknan.exceptions import DivergenceWarning
from sknan.nets._training_facts import diagram_block
from sknan.preprocessing._stored_table import stored_chunks

# Attributes that exist only after a fit in which rows were held out.
_HELD_OUT_RESULTS = {
    "oof_prediction_",
    "oof_score_",
    "temperature_",
    "_residuals",
}

# With early stopping, each network holds out one of this many folds.
_N_FOLDS = 5

# A test of ``n_jobs`` of joblib, and the same in words.
_N_JOBS = (
    lambda v: v is None or (is_integer(v) and v != 0),
    "an integer other than 0 or None",
)

# docs/details/quality.md measures the effect of each setting.
_DEFAULT_PARAMS: dict[str, Any] = {
    "module__n_frequencies": 16,
    "module__dropout": 0.2,
    "lr": 3e-3,
    "lr_schedule": "cosine",
    "max_epochs": "auto",
    "batch_size": "auto",
    "early_stopping": True,
    "n_iter_no_change": 10,
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


class Ensemble(VersionedPickleMixin, EncodedStateMixin, BaseEstimator):
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
        validation_split: Any = None,
        scoring: Any = None,
        verbose: int = 0,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.max_time = max_time
        self.validation_split = validation_split
        self.scoring = scoring
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

    @property
    def _sk_visual_block_(self) -> Callable[[], Any]:
        """Block in scikit-learn's diagrams; before ``fit``, scikit-learn draws it."""
        if not hasattr(self, "estimators_"):
            raise AttributeError("_sk_visual_block_")
        return functools.partial(diagram_block, self)

    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
        groups: Any = None,
    ) -> Self:
        """Train the networks.

        Parameters
        ----------
        X : array-like, DataFrame or chunks of shape (n_samples, n_features)
            Features: finite numbers within float32. Chunks are the result of
            :func:`~sknan.preprocessing.iter_chunks` or an Arrow dataset; ``y`` may then
            be the name of a column, or belong to the chunks.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            For a regressor, finite numbers. For a classifier, labels of at least two
            classes: numbers, strings or booleans; for several labels per row, 0 and 1
            in a column for each label, which may be sparse.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Non-negative weights of the rows.
        X_val : array-like, DataFrame or chunks, (n_val, n_features), default=None
            Rows for early stopping of all networks, each of which then trains on all
            rows of ``X``. In a ``Pipeline`` they are transformed as ``X`` is with
            ``transform_input=["X_val"]``.
        y_val : array-like of shape (n_val,), default=None
            Targets of ``X_val``, unless they belong to its chunks.
        sample_weight_val : array-like of shape (n_val,) or None, default=None
            Non-negative weights of the rows of ``X_val``.
        groups : array-like of shape (n_samples,) or None, default=None
            Group of each row, such as a patient or a session. All rows of a group are
            held out together. Fewer than five groups give as many folds.

        Returns
        -------
        self
        """
        self._fit(
            X,
            y,
            sample_weight=sample_weight,
            X_val=X_val,
            y_val=y_val,
            sample_weight_val=sample_weight_val,
            groups=groups,
        )
        return self

    def _fit(self, X: Any, y: Any, **fit_params: Any) -> None:
        X, y, chunk = stored_chunks(X, y)
        jobs = self._jobs(X, y, chunk=chunk, **fit_params)
        n_shares = self._n_shares()
        shares = [jobs[i::n_shares] for i in range(n_shares)]
        with progress("Training", len(jobs), "networks", verbose=self.verbose):
            arguments = [(share,) for share in shares]
            found = call_in_workers(train_together, arguments, n_shares)
        outcomes = [found[i % n_shares][i // n_shares] for i in range(len(jobs))]
        self._assemble(outcomes, X, y, **fit_params)

    def _assemble(
        self,
        outcomes: list[JobOutcome],
        X: Any,
        y: Any,
        **fit_params: Any,
    ) -> None:
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
        self._judge_held_out(X, y, fit_params.get("sample_weight"))

    def _judge_held_out(self, X: Any, y: Any, sample_weight: Any) -> None:
        """Set the attributes that describe the predictions for held-out rows."""
        held_out = [member._held_out_ for member in self.estimators_]
        for member in self.estimators_:
            del member._held_out_
        for name in _HELD_OUT_RESULTS & vars(self).keys():
            delattr(self, name)
        if any(rows is None or not len(rows) for rows in held_out):
            self._do_without_held_out()
            return
        first = self.estimators_[0]
        X_in = network_input(first, X)
        with recorded_warnings():  # fit has shown the same warnings
            each = [
                self._held_out_prediction(member, CheckedRows(X_in[rows]))
                for member, rows in zip(self.estimators_, held_out, strict=True)
            ]
        weights = check_sample_weight(sample_weight, len(X_in))
        target = first._validate_target(y)
        self._use_held_out(HeldOutPredictions(held_out, each, target, weights))

    def _do_without_held_out(self) -> None:
        """Raise an error if the ensemble depends on held-out rows."""

    def _held_out_prediction(self, member: Any, rows: CheckedRows) -> np.ndarray:
        """Return the predictions of a network of which the mean is to be formed."""
        raise NotImplementedError

    def _use_held_out(self, held_out: HeldOutPredictions) -> None:
        """Set the attributes of an ensemble with held-out rows."""
        raise NotImplementedError

    def _n_shares(self) -> int:
        """Return the number of processes."""
        return min(int(effective_n_jobs(self.n_jobs)), self.n_estimators)

    def _jobs(self, X: Any, y: Any, **fit_params: Any) -> list[Job]:
        """Return the job of each network."""
        network = self._checked_network()
        if self.max_time is not None:
            n_in_turn = math.ceil(self.n_estimators / self._n_shares())
            network = clone(network).set_params(max_time=self.max_time / n_in_turn)
        splitter = network.validation_split
        if self.validation_split is not None:
            splitter = self.validation_split
        if self.scoring is not None:
            network = clone(network).set_params(scoring=self.scoring)
        rng = random_generator(type(self).__name__, self.random_state)
        seeds = rng.randint(np.iinfo(np.int32).max, size=(2, self.n_estimators))
        jobs = []
        for i in range(self.n_estimators):
            partition, number = divmod(i, _N_FOLDS)
            seed = int(seeds[1, partition])
            fold = ValidationFold(number, _N_FOLDS, seed, partition)
            member = clone(network).set_params(random_state=int(seeds[0, i]))
            # One splitter for all, so that the rows are validated once.
            member.validation_split = splitter
            jobs.append(Job(member, X, y, {**fit_params, "fold": fold}))
        return jobs

    def _checked_network(self) -> StableNetBase:
        name = type(self).__name__
        check_parameter(name, "n_estimators", self.n_estimators, COUNT)
        check_parameter(name, "n_jobs", self.n_jobs, _N_JOBS)
        for parameter in ("max_time", "validation_split", "scoring", "verbose"):
            check_own_parameter(self, parameter)
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

    def _of_each(self, method: str, X: Any, **options: Any) -> list[Any]:
        """Return a prediction of each network; a warning of several is shown once."""
        check_is_fitted(self)
        rows = CheckedRows(network_input(self.estimators_[0], X))
        with recorded_warnings() as recorded:
            each = [getattr(m, method)(rows, **options) for m in self.estimators_]
        if recorded:
            warn(f"In {len(recorded)} of {len(each)} networks: {recorded[0]}")
        return each

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimators_")


def _show_warnings(outcomes: list[JobOutcome]) -> None:
    """Show each warning of the networks once, and one summary of all recoveries."""
    caught = [w for outcome in outcomes for w in outcome.warnings]
    by_network = (
        [w for w in outcome.warnings if isinstance(w, DivergenceWarning)]
        for outcome in outcomes
    )
    recoveries = [found[0] for found in by_network if found]
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
