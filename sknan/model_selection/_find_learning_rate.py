"""Find a learning rate by training at many of them at once."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from sknan._engine.range_test import LearningRateRange, range_test
from sknan.estimators._base import StableNetBase

__all__ = ["LearningRateRange", "find_learning_rate"]

# Of fewer steps the end of a curve is not another place than its beginning.
_LEAST_STEPS = 10


def find_learning_rate(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    rates: Any = None,
    n_seeds: int = 2,
    n_steps: int | str = "auto",
    verbose: int | bool = 0,
) -> LearningRateRange:
    """Suggest a learning rate, with a reason, from short trainings at many of them.

    All rates are trained together as one stacked network, from the same weights, on the
    same batches, each at its constant rate, and all of that again from another start. A
    loss that is not finite ends the curve of its rate, and nothing else.

    Parameters
    ----------
    estimator : StableNetClassifier, StableNetRegressor or Pipeline
        To find a rate for; a pipeline ends in one of the two, and its transformers are
        fitted first. It is cloned, and left as it is.
    X : array-like or DataFrame of shape (n_samples, n_features)
        As ``estimator.fit`` takes it. Of a large table some rows are drawn.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Labels or targets.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights of the rows.
    rates : array-like of float or None, default=None
        Rates to try. None is three for each power of ten from 1e-5 to 10.
    n_seeds : int, default=2
        Starts that the test is repeated from.
    n_steps : int or "auto", default="auto"
        Steps of each training, at least 10. ``"auto"`` is 200, fewer if the estimator's
        own training is shorter, and fewer, down to 60, for a large network.
    verbose : int or bool, default=0
        1 shows a bar in a terminal or a notebook, and nothing in a log.

    Returns
    -------
    LearningRateRange
        ``suggestion``, ``confidence``, ``reason``, ``largest_stable``, ``fastest`` and
        the curves; prints readably.

    Raises
    ------
    TypeError
        If ``estimator`` is, or ends in, none of this package's estimators.
    ValueError
        If a parameter or the data are unusable.

    See Also
    --------
    StableNetClassifier : With ``lr="auto"`` it runs this test in ``fit``.

    Notes
    -----
    The usual range test raises the rate step by step along one training: each rate
    inherits what the ones before it have learnt, and the first NaN ends it all.
    Here nothing is inherited, so that the curves can be compared as they stand. Rates
    are judged by the loss at the end on a fifth of the rows that is held out, another
    one for each start; the suggestion is the centre of the best ones, at most half of
    the largest stable one. Fewer than 50 rows cannot tell rates apart: then it is 1e-3,
    or half of the largest stable rate if that is lower. Callbacks, schedule and warm-up
    are left out: the rate is the one at the top of a schedule.

    With an integer ``random_state`` the suggestion is the one that ``lr="auto"`` takes.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import SafeScaler, StableNetClassifier, find_learning_rate
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(SafeScaler(), StableNetClassifier(random_state=0))
    >>> found = find_learning_rate(model, X, y)
    >>> bool(1e-3 < found.suggestion < found.largest_stable)
    True
    """
    net = estimator
    if isinstance(estimator, Pipeline):
        net = estimator.steps[-1][1]
    if not isinstance(net, StableNetBase):
        raise TypeError(
            "estimator must be a StableNetClassifier, a StableNetRegressor or a "
            f"Pipeline that ends in one, got {type(net).__name__}."
        )
    tried = _checked_rates(rates)
    _check_at_least("n_seeds", n_seeds, 1)
    if n_steps != "auto":
        _check_at_least("n_steps", n_steps, _LEAST_STEPS, " or 'auto'")
    if isinstance(estimator, Pipeline) and len(estimator.steps) > 1:
        X = clone(estimator[:-1]).fit_transform(X, y)
    trial = clone(net)
    rows = trial._training_rows(X, y, sample_weight)
    seed = int(check_random_state(trial.random_state).randint(np.iinfo(np.int32).max))
    return range_test(
        trial,
        rows,
        seed,
        rates=tried,
        n_seeds=n_seeds,
        n_steps=n_steps,
        verbose=verbose,
    )


def _checked_rates(rates: Any) -> np.ndarray | None:
    if rates is None:
        return None
    values = np.unique(np.asarray(rates, dtype=np.float64))
    if len(values) < 3 or not (values > 0).all() or not np.isfinite(values).all():
        raise ValueError(
            "The 'rates' parameter of find_learning_rate must be at least 3 different "
            f"finite numbers above 0 or None, got {rates!r}."
        )
    return values


def _check_at_least(name: str, value: Any, least: int, alternative: str = "") -> None:
    is_integer = isinstance(value, numbers.Integral) and not isinstance(
        value, (bool, np.bool_)
    )
    if not is_integer or value < least:
        raise ValueError(
            f"The {name!r} parameter of find_learning_rate must be an integer of at "
            f"least {least}{alternative}, got {value!r}."
        )
