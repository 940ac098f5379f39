"""Searches that train all candidates on all folds together.

They are scikit-learn's own searches, and take and give what those do. Where the
estimator is a network of this package, or a pipeline that ends in one, its transformers
are fitted once for each fold, and networks of one shape are trained as one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
)

from sknan.model_selection._mixin import BatchedSearchMixin
from sknan.model_selection._pipelines import final_network, path_of_last

__all__ = ["BatchedGridSearchCV", "BatchedHalvingSearchCV", "BatchedRandomizedSearchCV"]


class BatchedGridSearchCV(BatchedSearchMixin, GridSearchCV):
    """Grid search that trains all candidates on all folds together.

    scikit-learn's ``GridSearchCV``, with the same parameters and results. Transformers
    are fitted once for each fold and each distinct setting of theirs, and networks of
    one shape are trained as one.

    Parameters
    ----------
    estimator : estimator
        A network of this package, or a pipeline that ends in one. With any other the
        search is scikit-learn's.
    param_grid : dict or list of dict
        Names of parameters with lists of values to try, or several such grids.
    scoring : str, callable, list, tuple or dict, default=None
        One score or several, as in scikit-learn; None is that of the estimator.
    n_jobs : int or None, default=None
        Shares of the training that run side by side. None is 1, or as many as a
        ``joblib.parallel_config`` says; its backend may be ``"dask"`` or ``"ray"``.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows; the score to choose by where
        there are several; or a function of ``cv_results_`` that gives the place of the
        best.
    cv : int, splitter, iterable or None, default=None
        Folds, as in scikit-learn.
    verbose : int, default=0
        From 1 to 10, what scikit-learn prints, without the times of training and
        scoring, and a bar over the trainings in a terminal or a notebook.
    pre_dispatch : int, str or None, default="2*n_jobs"
        As in scikit-learn, for estimators of others.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises.
    return_train_score : bool, default=False
        Whether to score on the training parts as well.
    max_memory : int or None, default=None
        Bytes that the search may take on top of the data. None bounds it by number: at
        most 512 trained networks at a time.

    Attributes
    ----------
    cv_results_ : dict of str to array
        As in scikit-learn, with columns that tell of failed steps. ``n_recoveries`` is
        the number of steps that failed and were rescued, over all folds;
        ``diverged_at`` the earliest epoch with one, counted from 1; ``effective_lr``
        the smallest rate that the guard ended at; each is masked where there is none,
        and has a column for each fold (``split0_n_recoveries``). ``stacked`` is whether
        the candidate was trained together with others on every fold.
        ``mean_fit_time`` is its share of the time.
    best_estimator_ : estimator
        The best candidate, fitted on all rows.
    best_score_ : float
        Its mean test score.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in ``cv_results_``.

    Warns
    -----
    DivergenceWarning
        Once, if any step of any candidate failed: how many candidates it was, which,
        and whether the best is one of them.

    See Also
    --------
    BatchedRandomizedSearchCV : Draws candidates from distributions.
    BatchedHalvingSearchCV : Drops weak candidates early.

    Notes
    -----
    Each candidate gets on each fold what ``clone(estimator).set_params(...)`` would get
    there: the same transformed rows, initial weights and batches. Scores are those of
    scikit-learn's search up to rounding.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import BatchedGridSearchCV, SafeScaler, StableNetClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> net = StableNetClassifier(max_epochs=20, random_state=0)
    >>> search = BatchedGridSearchCV(
    ...     make_pipeline(SafeScaler(), net),
    ...     {"stablenetclassifier__lr": [1e-4, 1e-3, 1e-2]},
    ... ).fit(X, y)
    >>> search.best_params_
    {'stablenetclassifier__lr': 0.01}
    >>> search.cv_results_["n_recoveries"].tolist()
    [0, 0, 0]
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_memory = max_memory


class BatchedRandomizedSearchCV(BatchedSearchMixin, RandomizedSearchCV):
    """Random search that trains all candidates on all folds together.

    scikit-learn's ``RandomizedSearchCV``, with the same parameters and results; what is
    done together is told at :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimator : estimator
        A network of this package, or a pipeline that ends in one. With any other the
        search is scikit-learn's.
    param_distributions : dict or list of dict
        Names of parameters with lists of values, or distributions with a method
        ``rvs``, to draw from; or several such dicts.
    n_iter : int, default=10
        Number of candidates.
    scoring : str, callable, list, tuple or dict, default=None
        One score or several, as in scikit-learn; None is that of the estimator.
    n_jobs : int or None, default=None
        Shares of the training that run side by side. None is 1, or as many as a
        ``joblib.parallel_config`` says; its backend may be ``"dask"`` or ``"ray"``.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows; the score to choose by where
        there are several; or a function of ``cv_results_`` that gives the place of the
        best.
    cv : int, splitter, iterable or None, default=None
        Folds, as in scikit-learn.
    verbose : int, default=0
        From 1 to 10, what scikit-learn prints, without the times of training and
        scoring, and a bar over the trainings in a terminal or a notebook.
    pre_dispatch : int, str or None, default="2*n_jobs"
        As in scikit-learn, for estimators of others.
    random_state : int, RandomState or None, default=None
        Seed of the draw.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises.
    return_train_score : bool, default=False
        Whether to score on the training parts as well.
    max_memory : int or None, default=None
        Bytes that the search may take on top of the data. None bounds it by number: at
        most 512 trained networks at a time.

    Attributes
    ----------
    cv_results_ : dict of str to array
        As in scikit-learn, with columns that tell of failed steps. ``n_recoveries`` is
        the number of steps that failed and were rescued, over all folds;
        ``diverged_at`` the earliest epoch with one, counted from 1; ``effective_lr``
        the smallest rate that the guard ended at; each is masked where there is none,
        and has a column for each fold (``split0_n_recoveries``). ``stacked`` is whether
        the candidate was trained together with others on every fold.
        ``mean_fit_time`` is its share of the time.
    best_estimator_ : estimator
        The best candidate, fitted on all rows.
    best_score_ : float
        Its mean test score.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in ``cv_results_``.

    Warns
    -----
    DivergenceWarning
        Once, if any step of any candidate failed: how many candidates it was, which,
        and whether the best is one of them.

    See Also
    --------
    BatchedGridSearchCV : Tries all combinations.
    BatchedHalvingSearchCV : Drops weak candidates early.

    Notes
    -----
    Each candidate gets on each fold what ``clone(estimator).set_params(...)`` would get
    there: the same transformed rows, initial weights and batches. Scores are those of
    scikit-learn's search up to rounding.

    Examples
    --------
    >>> from scipy.stats import loguniform
    >>> from sklearn.datasets import load_iris
    >>> from sknan import BatchedRandomizedSearchCV, StableNetClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> search = BatchedRandomizedSearchCV(
    ...     StableNetClassifier(max_epochs=20, random_state=0),
    ...     {"lr": loguniform(1e-4, 1e-1), "module__width": [16, 32]},
    ...     n_iter=6,
    ...     random_state=0,
    ... ).fit(X, y)
    >>> bool(search.best_score_ > 0.9)
    True
    """

    def __init__(
        self,
        estimator: Any,
        param_distributions: Any,
        *,
        n_iter: int = 10,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        random_state: Any = None,
        error_score: Any = np.nan,
        return_train_score: bool = False,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_distributions,
            n_iter=n_iter,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            random_state=random_state,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.max_memory = max_memory


class BatchedHalvingSearchCV(BatchedSearchMixin, HalvingGridSearchCV):
    """Grid search that drops weak candidates at rungs and trains the rest together.

    scikit-learn's ``HalvingGridSearchCV``, with the same parameters and results: all
    candidates start with few epochs or rows, the best third of them goes on with three
    times as many, and so on. What is done together is told at
    :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimator : estimator
        A network of this package, or a pipeline that ends in one. With any other the
        search is scikit-learn's.
    param_grid : dict or list of dict
        Names of parameters with lists of values to try, or several such grids.
    factor : int or float, default=3
        One in so many candidates stays at each rung.
    resource : str, default="n_samples"
        What grows from rung to rung: the number of rows, ``"epochs"`` for those of the
        network, wherever in a pipeline it stands, or an integer parameter.
    max_resources : int or "auto", default="auto"
        Its largest value; ``"auto"`` is all rows, or the network's ``max_epochs``.
    min_resources : int, "exhaust" or "smallest", default="exhaust"
        Its value at the first rung; ``"exhaust"`` is that from which the last rung
        comes as near to the largest as it can.
    aggressive_elimination : bool, default=False
        Whether to repeat the first rung until few enough candidates are left.
    cv : int, splitter, iterable or None, default=5
        Folds, as in scikit-learn; the same ones at each call.
    scoring : str or callable, default=None
        One score, as in scikit-learn; None is that of the estimator.
    refit : bool or callable, default=True
        Whether to fit the best candidate on all rows, or a function of ``cv_results_``
        that gives its place.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises.
    return_train_score : bool, default=True
        Whether to score on the training parts as well.
    random_state : int, RandomState or None, default=None
        Seed of the choice of rows.
    n_jobs : int or None, default=None
        Shares of the training that run side by side. None is 1, or as many as a
        ``joblib.parallel_config`` says; its backend may be ``"dask"`` or ``"ray"``.
    verbose : int, default=0
        From 1 to 10, what scikit-learn prints, without the times of training and
        scoring, and a bar over the trainings in a terminal or a notebook.
    max_memory : int or None, default=None
        Bytes that the search may take on top of the data. None bounds it by number: at
        most 512 trained networks at a time.

    Attributes
    ----------
    cv_results_ : dict of str to array
        As in scikit-learn, with columns that tell of failed steps. ``n_recoveries`` is
        the number of steps that failed and were rescued, over all folds;
        ``diverged_at`` the earliest epoch with one, counted from 1; ``effective_lr``
        the smallest rate that the guard ended at; each is masked where there is none,
        and has a column for each fold (``split0_n_recoveries``). ``stacked`` is whether
        the candidate was trained together with others on every fold.
        ``mean_fit_time`` is its share of the time.
    best_estimator_ : estimator
        The best candidate, fitted on all rows.
    best_score_ : float
        Its mean test score.
    best_params_ : dict
        Its parameters.
    best_index_ : int
        Its place in ``cv_results_``.
    n_candidates_ : list of int
        Candidates at each rung.
    n_resources_ : list of int
        What each of them had.

    Warns
    -----
    DivergenceWarning
        Once, if any step of any candidate failed: how many candidates it was, which,
        and whether the best is one of them.

    See Also
    --------
    BatchedGridSearchCV : Gives every candidate all there is.

    Notes
    -----
    Each candidate gets on each fold what ``clone(estimator).set_params(...)`` would get
    there: the same transformed rows, initial weights and batches. Scores are those of
    scikit-learn's search up to rounding.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import BatchedHalvingSearchCV, StableNetClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> search = BatchedHalvingSearchCV(
    ...     StableNetClassifier(max_epochs=27, random_state=0),
    ...     {"lr": [1e-5, 1e-4, 1e-3, 1e-2, 0.1], "module__width": [16, 32]},
    ...     resource="epochs",
    ... ).fit(X, y)
    >>> search.n_candidates_, search.n_resources_
    ([10, 4, 2], [3, 9, 27])
    """

    def __init__(
        self,
        estimator: Any,
        param_grid: Any,
        *,
        factor: float = 3,
        resource: str = "n_samples",
        max_resources: int | str = "auto",
        min_resources: int | str = "exhaust",
        aggressive_elimination: bool = False,
        cv: Any = 5,
        scoring: Any = None,
        refit: Any = True,
        error_score: Any = np.nan,
        return_train_score: bool = True,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: int = 0,
        max_memory: int | None = None,
    ) -> None:
        super().__init__(
            estimator,
            param_grid,
            factor=factor,
            resource=resource,
            max_resources=max_resources,
            min_resources=min_resources,
            aggressive_elimination=aggressive_elimination,
            cv=cv,
            scoring=scoring,
            refit=refit,
            error_score=error_score,
            return_train_score=return_train_score,
            random_state=random_state,
            n_jobs=n_jobs,
            verbose=verbose,
        )
        self.max_memory = max_memory

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Run the search, as :class:`BatchedGridSearchCV` does."""
        search: Any = self
        given = search.resource, search.max_resources
        net = final_network(search.estimator)
        try:
            if search.resource == "epochs" and net is not None:
                search.resource = f"{path_of_last(search.estimator)}max_epochs"
                if search.max_resources == "auto":
                    search.max_resources = net.max_epochs
            return super().fit(X, y, **params)
        finally:
            search.resource, search.max_resources = given
