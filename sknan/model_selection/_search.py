"""Searches that train all candidates on all folds together.

They are subclasses of scikit-learn's searches with the same parameters and results. If
the estimator is a network or ensemble of this package, or a pipeline that ends in one,
the transformers are fitted once for each fold, and networks of the same shape are
trained as one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
)

from sknan._utils.validation import is_number, is_one_of
from sknan.model_selection._mixin import BatchedSearchMixin
from sknan.model_selection._pipelines import final_network, path_of_last


def _inherited(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a constructor that scikit-learn's constructor has too."""
    added = {"self", "__class__", "max_memory", "max_time"}
    return {name: value for name, value in arguments.items() if name not in added}


class BatchedGridSearchCV(BatchedSearchMixin, GridSearchCV):
    """Grid search that trains all candidates on all folds together.

    The parameters and results are those of scikit-learn's ``GridSearchCV``.
    Transformers are fitted once for each fold and each distinct setting of their
    parameters, and networks of the same shape are trained as one.

    Parameters
    ----------
    estimator : estimator
        Network or ensemble of this package, or pipeline that ends in one. For any other
        estimator the search is the same as scikit-learn's.
    param_grid : dict or list of dict
        Names of parameters with lists of values, or several such grids.
    scoring : str, callable, list, tuple or dict, default=None
        One metric or several, as in scikit-learn. None uses the ``score`` method of
        the estimator.
    n_jobs : int or None, default=None
        Number of workers, each of which trains a share of the candidates and folds.
        None is 1, or the number set by ``joblib.parallel_config``, whose backend may
        be ``"dask"`` or ``"ray"``.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows. With several metrics, the name of
        the metric that decides. A callable takes ``cv_results_`` and returns the index
        of the best candidate.
    cv : int, splitter, iterable or None, default=None
        Cross-validation folds, as in scikit-learn.
    verbose : int, default=0
        Level of detail, up to 10, of the lines that scikit-learn prints. The durations
        in them do not include training and scoring. Above 0, a bar shows the number of
        finished trainings in a terminal or a notebook.
    pre_dispatch : int, str or None, default="2*n_jobs"
        Number of jobs to dispatch, as in scikit-learn. It has no effect on networks of
        this package.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises an exception. ``"raise"`` raises it.
    return_train_score : bool, default=False
        Whether to score on the training parts too.
    max_memory : int or None, default=None
        Number of bytes that the search may take in addition to the data. None limits
        the number of trained networks in memory to 512 instead.
    max_time : float or None, default=None
        Time limit of the search in seconds, including the refit. All fits get equal
        parts of the time as their ``max_time``; the refit counts as one more candidate,
        and gets all that is left. Each network is trained for at least one epoch.

    Attributes
    ----------
    cv_results_ : dict of str to array
        Results as in scikit-learn, with additional columns about failed steps.
        ``n_recoveries`` is the number of steps that failed and were rescued, over all
        folds. ``diverged_at`` is the earliest epoch with a failed step, counted from 1.
        ``effective_lr`` is the smallest learning rate at the end of a training. These
        three are masked where there is no value, and have a column for each fold
        (``split0_n_recoveries``). ``stacked`` is whether the candidate was trained
        together with others on every fold. ``mean_fit_time`` is the share of the
        candidate in the duration of the training.
    best_estimator_ : estimator
        Best candidate, fitted on all rows.
    best_score_ : float
        Mean test score of the best candidate.
    best_params_ : dict
        Parameters of the best candidate.
    best_index_ : int
        Index of the best candidate in ``cv_results_``.

    Warns
    -----
    DivergenceWarning
        Once, if a training step of any candidate failed. The message says how many
        candidates diverged, which ones, and whether the best is one of them.
    ConvergenceWarning
        If ``max_time`` ended trainings, with their number, and if it ended the refit.

    See Also
    --------
    BatchedRandomizedSearchCV : Search over random candidates.
    BatchedHalvingSearchCV : Search that drops weak candidates early.

    Notes
    -----
    On each fold a candidate has the same transformed rows, initial weights and batches
    as ``clone(estimator).set_params(...)`` would have. Its scores are equal to those of
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
        max_time: float | None = None,
    ) -> None:
        super().__init__(**_inherited(locals()))
        self.max_memory = max_memory
        self.max_time = max_time


class BatchedRandomizedSearchCV(BatchedSearchMixin, RandomizedSearchCV):
    """Random search that trains all candidates on all folds together.

    The parameters and results are those of scikit-learn's ``RandomizedSearchCV``.
    Candidates are trained together as in :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimator : estimator
        Network or ensemble of this package, or pipeline that ends in one. For any other
        estimator the search is the same as scikit-learn's.
    param_distributions : dict or list of dict
        Names of parameters with lists of values, or with distributions that have a
        method ``rvs``, or several such dicts.
    n_iter : int, default=10
        Number of candidates.
    scoring : str, callable, list, tuple or dict, default=None
        One metric or several, as in scikit-learn. None uses the ``score`` method of
        the estimator.
    n_jobs : int or None, default=None
        Number of workers, each of which trains a share of the candidates and folds.
        None is 1, or the number set by ``joblib.parallel_config``, whose backend may
        be ``"dask"`` or ``"ray"``.
    refit : bool, str or callable, default=True
        Whether to fit the best candidate on all rows. With several metrics, the name of
        the metric that decides. A callable takes ``cv_results_`` and returns the index
        of the best candidate.
    cv : int, splitter, iterable or None, default=None
        Cross-validation folds, as in scikit-learn.
    verbose : int, default=0
        Level of detail, up to 10, of the lines that scikit-learn prints. The durations
        in them do not include training and scoring. Above 0, a bar shows the number of
        finished trainings in a terminal or a notebook.
    pre_dispatch : int, str or None, default="2*n_jobs"
        Number of jobs to dispatch, as in scikit-learn. It has no effect on networks of
        this package.
    random_state : int, RandomState or None, default=None
        Seed for drawing the candidates.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises an exception. ``"raise"`` raises it.
    return_train_score : bool, default=False
        Whether to score on the training parts too.
    max_memory : int or None, default=None
        Number of bytes that the search may take in addition to the data. None limits
        the number of trained networks in memory to 512 instead.
    max_time : float or None, default=None
        Time limit of the search in seconds, including the refit. All fits get equal
        parts of the time as their ``max_time``; the refit counts as one more candidate,
        and gets all that is left. Each network is trained for at least one epoch.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_
        As in :class:`BatchedGridSearchCV`.

    Warns
    -----
    DivergenceWarning, ConvergenceWarning
        As :class:`BatchedGridSearchCV` does.

    See Also
    --------
    BatchedGridSearchCV : Search over all combinations.
    BatchedHalvingSearchCV : Search that drops weak candidates early.

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
        max_time: float | None = None,
    ) -> None:
        super().__init__(**_inherited(locals()))
        self.max_memory = max_memory
        self.max_time = max_time


class BatchedHalvingSearchCV(BatchedSearchMixin, HalvingGridSearchCV):
    """Grid search in rounds that drops weak candidates after each round.

    The parameters and results are those of scikit-learn's ``HalvingGridSearchCV``. All
    candidates start with few epochs or rows. The best third of them is trained again
    with three times as many, and so on. Candidates are trained together as in
    :class:`BatchedGridSearchCV`.

    Parameters
    ----------
    estimator : estimator
        Network or ensemble of this package, or pipeline that ends in one. For any other
        estimator the search is the same as scikit-learn's.
    param_grid : dict or list of dict
        Names of parameters with lists of values, or several such grids.
    factor : int or float, default=3
        The number of candidates is divided by this factor after each round.
    resource : str, default="n_samples"
        Resource that grows from round to round: the number of rows, ``"epochs"`` for
        the ``max_epochs`` of the network at the end of the pipeline, or the name of an
        integer parameter.
    max_resources : int or "auto", default="auto"
        Maximum of the resource. ``"auto"`` is all rows, or the ``max_epochs`` of the
        network.
    min_resources : int, "exhaust" or "smallest", default="exhaust"
        Value of the resource in the first round. ``"exhaust"`` chooses it such that the
        last round comes as close to the maximum as possible.
    aggressive_elimination : bool, default=False
        Whether to repeat the first round until few enough candidates are left.
    cv : int, splitter, iterable or None, default=5
        Cross-validation folds, as in scikit-learn. They must be the same at each call.
    scoring : str or callable, default=None
        One metric, as in scikit-learn. None uses the ``score`` method of the estimator.
    refit : bool or callable, default=True
        Whether to fit the best candidate on all rows. A callable takes ``cv_results_``
        and returns the index of the best candidate.
    error_score : "raise" or float, default=np.nan
        Score of a candidate whose ``fit`` raises an exception. ``"raise"`` raises it.
    return_train_score : bool, default=True
        Whether to score on the training parts too.
    random_state : int, RandomState or None, default=None
        Seed for drawing the rows of each round.
    n_jobs : int or None, default=None
        Number of workers, each of which trains a share of the candidates and folds.
        None is 1, or the number set by ``joblib.parallel_config``, whose backend may
        be ``"dask"`` or ``"ray"``.
    verbose : int, default=0
        Level of detail, up to 10, of the lines that scikit-learn prints. The durations
        in them do not include training and scoring. Above 0, a bar shows the number of
        finished trainings in a terminal or a notebook.
    max_memory : int or None, default=None
        Number of bytes that the search may take in addition to the data. None limits
        the number of trained networks in memory to 512 instead.
    max_time : float or None, default=None
        Time limit of the search in seconds, including the refit. All fits get equal
        parts of the time as their ``max_time``; the refit counts as one more candidate,
        and gets all that is left. Each network is trained for at least one epoch.

    Attributes
    ----------
    cv_results_, best_estimator_, best_score_, best_params_, best_index_
        As in :class:`BatchedGridSearchCV`.
    n_candidates_ : list of int
        Number of candidates in each round.
    n_resources_ : list of int
        Value of the resource in each round.

    Warns
    -----
    DivergenceWarning, ConvergenceWarning
        As :class:`BatchedGridSearchCV` does.

    See Also
    --------
    BatchedGridSearchCV : Search that trains every candidate with all resources.

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
        max_time: float | None = None,
    ) -> None:
        super().__init__(**_inherited(locals()))
        self.max_memory = max_memory
        self.max_time = max_time

    def _n_rounds_left(self, n_candidates: int) -> int:
        return 1 + math.floor(math.log(n_candidates, self.factor))

    def fit(self, X: Any, y: Any = None, **params: Any) -> Any:
        """Run the search, and fit the best candidate on all rows.

        See :meth:`BatchedGridSearchCV.fit`.
        """
        search: Any = self
        if is_number(search.factor) and not search.factor > 1:
            raise ValueError(
                "The 'factor' parameter of BatchedHalvingSearchCV must be above 1, got "
                f"{search.factor!r}: each round keeps 1 / factor of the candidates."
            )
        given = search.resource, search.max_resources
        net = final_network(search.estimator)
        try:
            if is_one_of(search.resource, ("epochs",)) and net is not None:
                path = path_of_last(search.estimator)
                if hasattr(net, "n_estimators"):
                    path = f"{path}estimator__"
                    net = net._checked_network()
                search.resource = f"{path}max_epochs"
                if is_one_of(search.max_resources, ("auto",)):
                    search.max_resources = net.most_epochs(0)
            return super().fit(X, y, **params)
        finally:
            search.resource, search.max_resources = given
