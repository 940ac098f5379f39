"""Learning-rate finder: short trainings at many learning rates at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from sknan._engine.range_test import LearningRateRange, range_test
from sknan._utils.outside import is_of_signal, unless
from sknan._utils.random_state import random_generator
from sknan._utils.settings import usual_settings
from sknan._utils.validation import (
    COUNT,
    VERBOSE,
    Rule,
    check_parameter,
    is_integer,
    is_one_of,
)
from sknan.estimators._base import StableNetBase
from sknan.preprocessing._stored_table import stored_chunks

# With fewer steps a curve has too few points to compare its end with its beginning.
_MIN_STEPS = 10


def _are_rates(rates: Any) -> bool:
    try:
        values = np.unique(np.asarray(rates, dtype=np.float64))
    except unless(is_of_signal, TypeError, ValueError, OverflowError):
        return False
    return len(values) >= 3 and bool((values > 0).all() and np.isfinite(values).all())


_RULES: dict[str, Rule] = {
    "rates": (
        lambda v: v is None or _are_rates(v),
        "at least 3 different finite numbers above 0 or None",
    ),
    "n_seeds": COUNT,
    "n_steps": (
        lambda v: (is_integer(v) and v >= _MIN_STEPS) or is_one_of(v, ("auto",)),
        f"an integer of at least {_MIN_STEPS} or 'auto'",
    ),
    "verbose": VERBOSE,
}


@usual_settings()
def find_learning_rate(
    estimator: StableNetBase | Pipeline,
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    rates: Any = None,
    n_seeds: int = 2,
    n_steps: int | str = "auto",
    verbose: int | bool = 0,
) -> LearningRateRange:
    """Suggest a learning rate from short trainings at many learning rates.

    The trainings start from the same weights, use the same batches and keep their
    learning rate constant. They run together as one stacked network, and are repeated
    from other initial weights. A non-finite loss ends only the curve of its learning
    rate.

    Parameters
    ----------
    estimator : StableNetClassifier, StableNetRegressor or Pipeline
        Estimator to find a learning rate for, or pipeline that ends in one. The
        transformers of the pipeline are fitted first. The estimator is cloned and not
        changed.
    X : array-like, DataFrame or chunks of shape (n_samples, n_features)
        Features, as in ``estimator.fit``. Only a random part of the rows of a large
        table is used.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Labels or targets.
    sample_weight : array-like of shape (n_samples,) or None, default=None
        Weights of the rows.
    rates : array-like of float or None, default=None
        Learning rates to test. None is three for each power of ten from 1e-5 to 10.
    n_seeds : int, default=2
        Number of repetitions, each with other initial weights.
    n_steps : int or "auto", default="auto"
        Number of steps of each training, at least 10. ``"auto"`` is 200, or fewer if
        the training of the estimator is shorter or the network is large (down to 60).
    verbose : int or bool, default=0
        Whether to show a bar in a terminal or a notebook.

    Returns
    -------
    LearningRateRange
        Object with the attributes ``suggestion``, ``confidence``, ``reason``,
        ``largest_stable`` and ``fastest``, and with the curves.

    Raises
    ------
    TypeError
        If ``estimator`` neither is nor ends in a single network of this package.
    ValueError
        If a parameter or the data are invalid.

    See Also
    --------
    StableNetClassifier : Runs this test in ``fit`` if ``lr="auto"``.

    Notes
    -----
    The usual range test raises the learning rate step by step during one training. Each
    learning rate then depends on what was learned before, and the first NaN ends the
    test. Here the trainings are independent, so their curves can be compared.

    Learning rates are compared by the final loss on held-out rows, a fifth of all,
    which differ between repetitions. The center of the best learning rates, at most
    half of the largest stable one, and a third of it are then compared with the default
    of 1e-3 in trainings with the epochs, the schedule and the early stopping of the
    estimator (fewer epochs for a large network or table). The best one is suggested if
    its loss on the held-out rows is lower in each repetition, and on average by more
    than two standard errors. Otherwise, and for fewer than 100 rows, the suggestion is
    1e-3. If no learning rate is stable, half of the lowest one is compared in the same
    way. Nothing is compared if half of the largest stable learning rate is below 1e-3,
    or if 1e-3 is outside of ``rates``. Callbacks are ignored.

    With an integer ``random_state`` the suggestion is the same as with ``lr="auto"``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import SafeScaler, StableNetClassifier, find_learning_rate
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(SafeScaler(), StableNetClassifier(random_state=0))
    >>> found = find_learning_rate(model, X, y)
    >>> bool(found.suggestion < found.largest_stable)
    True
    """
    net = estimator.steps[-1][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(net, StableNetBase):
        raise TypeError(
            "estimator must be a StableNetClassifier, a StableNetRegressor or a "
            f"Pipeline that ends in one, got {type(net).__name__}."
        )
    for name, value in zip(_RULES, (rates, n_seeds, n_steps, verbose), strict=True):
        check_parameter("find_learning_rate", name, value, _RULES[name])
    if isinstance(estimator, Pipeline) and len(estimator.steps) > 1:
        X = clone(estimator[:-1]).fit_transform(X, y)
    trial = clone(net)
    X, y, chunk = stored_chunks(X, y)
    rows = trial._training_rows(X, y, sample_weight, chunk=chunk)
    rng = random_generator(type(trial).__name__, trial.random_state)
    seed = int(rng.randint(np.iinfo(np.int32).max))
    return range_test(
        trial,
        rows,
        seed,
        rates=None if rates is None else np.unique(np.asarray(rates, float)),
        n_seeds=n_seeds,
        n_steps=n_steps,
        verbose=verbose,
    )
