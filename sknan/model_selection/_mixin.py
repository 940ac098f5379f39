"""Mixin for scikit-learn's searches that trains the candidates together."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, is_classifier
from sklearn.utils import estimator_html_repr

from sknan._utils.encoding import EncodedStateMixin
from sknan._utils.html import table
from sknan._utils.progress import progress
from sknan._utils.validation import drop_rows, is_number
from sknan._utils.warn import recorded_warnings, warn
from sknan.estimators._base import TimeLimitWarning
from sknan.estimators._labels import label_array, refuse_unusable_labels
from sknan.model_selection._divergence import (
    candidate_facts,
    divergence_columns,
    divergence_warning,
)
from sknan.model_selection._pipelines import final_network
from sknan.model_selection._run import SearchRun
from sknan.model_selection._stand_ins import scorer_stand_in
from sknan.preprocessing._chunks import refuse_chunks
from sknan.preprocessing._tables.plain_cells import plain_cells


class BatchedSearchMixin(EncodedStateMixin, BaseEstimator):
    """Mixin for scikit-learn's searches that trains the candidates together."""

    # Set while `fit` runs, if the estimator is a network of this package.
    _run: SearchRun | None = None
    scorer_: Any

    def _html_repr(self) -> str:
        """Return scikit-learn's diagram, followed by what became of the candidates."""
        diagram: str = estimator_html_repr(self)
        results = getattr(self, "cv_results_", {})
        if "n_recoveries" not in results:
            return diagram
        return diagram + table(
            candidate_facts(
                results,
                getattr(self, "best_index_", None),
                getattr(self, "resource", None),
            )
        )

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Run the search, and fit the best candidate on all rows.

        Parameters
        ----------
        X : array-like or DataFrame of shape (n_samples, n_features)
            Features. Of a table in chunks pass a sample, which ``iter_chunks(X,
            y).sample()`` gives.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
            Targets.
        **params : object
            Metadata such as ``sample_weight`` or ``groups``. They are passed to the
            ``fit`` of the estimator, to the scorer and to the splitter, as in
            scikit-learn.

        Returns
        -------
        self
        """
        refuse_chunks(X)
        for name, unit in (("max_memory", "bytes"), ("max_time", "seconds")):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(
                    f"The {name!r} parameter of {type(self).__name__} must be a number "
                    f"of {unit} above 0 or None, got {value!r}."
                )
        self._validate_params()  # those of scikit-learn, before one of them is used
        limit = self.max_time
        if final_network(self.estimator) is None:
            if limit is not None:
                raise ValueError(
                    f"max_time={limit!r} needs an estimator that is, or ends in, a "
                    f"network or ensemble of sknan, got {self.estimator!r}. Leave it "
                    "out."
                )
            return super().fit(X, y, **params)
        if type(y).__module__.partition(".")[0] in ("polars", "pyarrow"):
            y = plain_cells(y)  # NumPy reads no integers of 128 bits
        if is_classifier(self.estimator) and y is not None and not issparse(y):
            # scikit-learn sorts the labels before any fit.
            refuse_unusable_labels(np.asarray(label_array(y)), "y", drop_rows("y"))
        self._run = run = SearchRun(self)
        try:
            with recorded_warnings() as recorded:
                super().fit(X, y, **params)
        finally:
            run.leave()
            del self._run
        for issued in recorded:
            warn(issued)
        self.scorer_ = getattr(self.scorer_, "__wrapped__", self.scorer_)
        has_best = self.refit or not self.multimetric_
        best = self.best_index_ if has_best else None
        resource = getattr(self, "resource", None)
        warning = divergence_warning(run.results, self.cv_results_, best, resource)
        if warning is not None:
            warn(warning)
        n_cut = sum(result.is_cut for result in run.results)
        if limit is not None and n_cut:
            warn(
                TimeLimitWarning(
                    f"max_time={limit:g} ended {n_cut} of {len(run.results)} trainings "
                    "of the search before their max_epochs, so that their scores are "
                    "those of shorter trainings. Raise max_time, or search fewer "
                    "candidates."
                )
            )
        return self

    def _n_rounds_left(self, n_candidates: int) -> int:
        """Return the number of evaluations left, with one of these candidates next."""
        return 1

    def _get_scorers(self) -> Any:
        scorer, refit_metric = super()._get_scorers()
        if self._run is not None:
            scoring = self.scoring
            is_single = scoring is None or isinstance(scoring, str) or callable(scoring)
            self._run.options.scorer = scorer
            scorer = scorer_stand_in(scorer, not is_single)
        return scorer, refit_metric

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        routed = super()._get_routed_params_for_fit(params)
        if self._run is not None:
            self._run.options.fit_params = dict(routed.estimator.fit)
            self._run.options.score_params = dict(routed.scorer.score)
        return routed

    def _check_input_parameters(self, X: Any, y: Any, split_params: Any) -> None:
        super()._check_input_parameters(X, y, split_params)
        if self._run is not None:
            self._run.enter()  # scikit-learn clones the estimator next

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any) -> None:
        run = self._run
        if run is None:
            super()._run_search(evaluate_candidates, callback_ctx=callback_ctx)
            return
        run.leave()

        def evaluate(candidates: Any, cv: Any = None, **others: Any) -> Any:
            candidates = list(candidates)
            run.budget.n_rounds_left = self._n_rounds_left(len(candidates))
            cv = cv or self._checked_cv_orig
            n_fits = len(candidates) * self.n_splits_
            has_callbacks = hasattr(self, "_skl_callbacks")
            with (
                progress("Search", n_fits, "fits", verbose=self.verbose),
                run.evaluating(candidates, cv, has_callbacks) as splitter,
            ):
                return evaluate_candidates(candidates, splitter, **others)

        super()._run_search(evaluate, callback_ctx=callback_ctx)

    def _format_results(
        self, candidate_params: Any, n_splits: int, out: Any, more_results: Any = None
    ) -> dict[str, Any]:
        # Empty if a subclass overrides `_run_search`.
        results = [] if self._run is None else self._run.results
        for entry, result in zip(out, results, strict=bool(results)):
            entry["fit_time"] = result.fit_seconds
            entry["score_time"] = result.score_seconds
        columns: dict[str, Any] = super()._format_results(
            candidate_params, n_splits, out, more_results
        )
        return (
            {**columns, **divergence_columns(results, n_splits)} if results else columns
        )
