"""Pipeline that cleans, encodes, imputes and scales a table for a network."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline

from sknan._utils.random_state import random_generator
from sknan._utils.validation import did_you_mean, is_integer, is_one_of
from sknan.estimators._ensemble import (
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
)
from sknan.estimators._ensemble_base import default_network
from sknan.preprocessing._cleaner import TableCleaner, check_sentinels
from sknan.preprocessing._encoder import CategoryEncoder, ColumnEncoder
from sknan.preprocessing._imputer import STRATEGIES, NaNImputer
from sknan.preprocessing._scaler import SafeScaler
from sknan.preprocessing._word_encoder import WordEncoder

# Number of networks, and their settings that differ from those of the default network.
_PRESETS: dict[str, tuple[int, dict[str, Any]]] = {
    "fast": (
        2,
        {
            "max_epochs": 15,
            "n_iter_no_change": 5,
            "module__n_frequencies": 8,
            "module__dropout": 0.0,
        },
    ),
    "balanced": (5, {}),
    "best": (10, {"max_epochs": 40, "n_iter_no_change": 14}),
}

_ENSEMBLES: dict[str, type[Any]] = {
    "classifier": StableNetEnsembleClassifier,
    "regressor": StableNetEnsembleRegressor,
}


def tabular_pipeline(
    estimator: Any = "classifier",
    *,
    preset: str = "balanced",
    impute: Any = "median",
    sentinels: Any = "auto",
    max_levels: int = 255,
    random_state: Any = None,
) -> Pipeline:
    """Return a pipeline from a raw table to a network with finite predictions.

    Parameters
    ----------
    estimator : "classifier", "regressor" or estimator, default="classifier"
        Last step of the pipeline. A name means the mean of five networks,
        :class:`~sknan.StableNetEnsembleClassifier` or
        :class:`~sknan.StableNetEnsembleRegressor`, whose parameters are those of
        :func:`~sknan.estimators.default_network`.

    preset : {"fast", "balanced", "best"}, default="balanced"
        Number of networks and their epochs, if ``estimator`` is a name. ``"fast"``
        trains two in some 40 % of the time. ``"best"`` trains ten for more epochs.
        ``docs/quality.md`` has the measured times and scores.

    impute : str or callable, default="median"
        Value to impute for missing numbers: a ``strategy`` of
        :class:`~sknan.NaNImputer`. Indicator columns mark the imputed cells.

    sentinels : "auto", None, list or dict, default="auto"
        Values that mean "missing", such as -999. ``"auto"`` detects them in ``fit``
        (see :func:`~sknan.inspection.suspected_sentinels`), also among digits stored as
        text; signs and words such as "?" and "unknown" that occur only later are
        treated as missing, too. A list applies to all columns, a dict of lists to the
        columns it names. None keeps all values.

    max_levels : int, default=255
        Maximum number of categories of a text column that is encoded by one column for
        each category, missing values included. Text columns with more categories are
        encoded by one column for each of their 30 most frequent words.

    random_state : int, RandomState or None, default=None
        Seed of the default network. A custom estimator keeps its own seed.

    Returns
    -------
    Pipeline
        Pipeline with the steps ``clean`` (types and sentinels), ``encode`` (skrub's
        ``TableVectorizer`` for the columns that are not numbers), ``impute``, ``scale``
        and ``net``.

    Raises
    ------
    ValueError
        If a parameter is invalid.
    TypeError
        If ``estimator`` is not an estimator.

    See Also
    --------
    audit : Report of the problems in a table that these steps solve.

    Examples
    --------
    >>> from sknan import tabular_pipeline
    >>> list(tabular_pipeline("regressor").named_steps)
    ['clean', 'encode', 'impute', 'scale', 'net']
    """
    if isinstance(estimator, str):
        if estimator not in _ENSEMBLES:
            raise ValueError(
                "The 'estimator' parameter of tabular_pipeline must be 'classifier', "
                f"'regressor' or an estimator. Got {estimator!r} instead."
                f"{did_you_mean(estimator, _ENSEMBLES)}"
            )
        if not is_one_of(preset, _PRESETS):
            raise ValueError(
                "The 'preset' parameter of tabular_pipeline must be one of "
                f"{', '.join(map(repr, _PRESETS))}. Got {preset!r} instead."
                f"{did_you_mean(str(preset), _PRESETS)}"
            )
        # All settings of the networks are parameters that are visible in the pipeline.
        n_networks, settings = _PRESETS[preset]
        network = default_network(estimator).set_params(**settings)
        make = _ENSEMBLES[estimator]
        estimator = make(network, n_networks, random_state=random_state)
    elif isinstance(estimator, type) or not hasattr(estimator, "fit"):
        is_class = isinstance(estimator, type)
        hint = f" Pass an instance: {estimator.__name__}()." if is_class else ""
        raise TypeError(
            "The 'estimator' parameter of tabular_pipeline must be 'classifier', "
            f"'regressor' or an estimator. Got {estimator!r} instead.{hint}"
        )
    elif not is_one_of(preset, ("balanced",)):
        raise ValueError(
            f"tabular_pipeline got preset={preset!r} and an estimator. A preset "
            "chooses the settings of 'classifier' or 'regressor': set those of your "
            "estimator."
        )
    if not (callable(impute) or is_one_of(impute, STRATEGIES)):
        known = ", ".join(map(repr, STRATEGIES))
        raise ValueError(
            f"The 'impute' parameter of tabular_pipeline must be one of {known} or a "
            f"callable. Got {impute!r} instead.{did_you_mean(str(impute), STRATEGIES)}"
        )
    if not is_integer(max_levels) or max_levels < 1:
        raise ValueError(
            "The 'max_levels' parameter of tabular_pipeline must be an integer of at "
            f"least 1. Got {max_levels!r} instead."
        )
    check_sentinels(sentinels, "tabular_pipeline")
    random_generator("tabular_pipeline", random_state)
    # Importing skrub takes three times as long as importing all of sknan.
    from skrub import DatetimeEncoder, TableVectorizer

    # For two categories, a second column would be redundant.
    one_hot = CategoryEncoder(
        drop="if_binary",
        handle_unknown="ignore",
        sparse_output=False,
        dtype="float32",
    )
    vectorizer = TableVectorizer(
        cardinality_threshold=max_levels + 1,
        low_cardinality=one_hot,
        high_cardinality=WordEncoder(),
        datetime=DatetimeEncoder(),
    )
    impute_step = NaNImputer(strategy=impute, add_indicator=True, dtype="float32")
    # With pandas output the network knows the column names, for its reports.
    return Pipeline(
        [
            ("clean", TableCleaner(sentinels=sentinels)),
            ("encode", ColumnEncoder(vectorizer)),
            ("impute", impute_step.set_output(transform="pandas")),
            ("scale", SafeScaler().set_output(transform="pandas")),
            ("net", estimator),
        ]
    )
