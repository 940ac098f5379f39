"""From a messy table to a network in one call: tabular_pipeline."""

from __future__ import annotations

import numbers
from typing import Any

from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from sknan._utils.validation import did_you_mean
from sknan.estimators._ensemble import (
    StableNetEnsembleClassifier,
    StableNetEnsembleRegressor,
    default_network,
)
from sknan.preprocessing._cleaner import CategoryEncoder, TableCleaner, check_sentinels
from sknan.preprocessing._imputer import STRATEGIES, NaNImputer
from sknan.preprocessing._scaler import SafeScaler

__all__ = ["tabular_pipeline"]

_KINDS = ("classifier", "regressor")


def tabular_pipeline(
    estimator: Any = "classifier",
    *,
    impute: Any = "median",
    sentinels: Any = "auto",
    max_levels: int = 255,
    random_state: Any = None,
) -> Pipeline:
    """Pipeline from a raw table to a network that ends finite.

    Parameters
    ----------
    estimator : "classifier", "regressor" or estimator, default="classifier"
        What learns from the prepared table. A name stands for the mean of five
        networks: :class:`~sknan.StableNetEnsembleClassifier` or its twin, with the
        recipe of :func:`~sknan.estimators.default_network` as its parameters.

    impute : str or callable, default="median"
        What missing numbers are filled with: a ``strategy`` of
        :class:`~sknan.NaNImputer`. Indicator columns tell where it was.

    sentinels : "auto", None, list or dict, default="auto"
        Values that stand for "missing", such as -999: ``"auto"`` finds them in ``fit``
        (see :func:`~sknan.inspection.suspected_sentinels`), among digits kept as text
        too,
        and takes signs and words such as "?" and "unknown" that come later for missing;
        a list gives them for all columns, a dict of lists for each column by its name;
        None leaves all as it is.

    max_levels : int, default=255
        A column of text of at most so many levels has a column for each, missing among
        them; one of more is encoded by its letters.

    random_state : int, RandomState or None, default=None
        Seed of the network and the encoding by letters. An estimator of your own keeps
        its own.

    Returns
    -------
    Pipeline
        Of the steps ``clean`` (types and sentinels), ``encode`` (skrub's
        ``TableVectorizer``), ``impute``, ``scale`` and ``net``.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    TypeError
        If ``estimator`` is nothing that can be fitted.

    See Also
    --------
    audit : What in a table calls for these steps.

    Examples
    --------
    >>> from sknan import tabular_pipeline
    >>> list(tabular_pipeline("regressor").named_steps)
    ['clean', 'encode', 'impute', 'scale', 'net']
    """
    if isinstance(estimator, str):
        if estimator not in _KINDS:
            raise ValueError(
                "The 'estimator' parameter of tabular_pipeline must be 'classifier', "
                f"'regressor' or an estimator. Got {estimator!r} instead."
                f"{did_you_mean(estimator, _KINDS)}"
            )
        estimator = _default_estimator(estimator, random_state)
    elif isinstance(estimator, type) or not hasattr(estimator, "fit"):
        is_class = isinstance(estimator, type)
        hint = f" Pass an instance: {estimator.__name__}()." if is_class else ""
        raise TypeError(
            "The 'estimator' parameter of tabular_pipeline must be 'classifier', "
            f"'regressor' or an estimator. Got {estimator!r} instead.{hint}"
        )
    if not (callable(impute) or (isinstance(impute, str) and impute in STRATEGIES)):
        known = ", ".join(map(repr, STRATEGIES))
        raise ValueError(
            f"The 'impute' parameter of tabular_pipeline must be one of {known} or a "
            f"callable. Got {impute!r} instead.{did_you_mean(str(impute), STRATEGIES)}"
        )
    is_integer = isinstance(max_levels, numbers.Integral)
    if not is_integer or isinstance(max_levels, bool) or max_levels < 1:
        raise ValueError(
            "The 'max_levels' parameter of tabular_pipeline must be an integer of at "
            f"least 1. Got {max_levels!r} instead."
        )
    check_sentinels(sentinels, "tabular_pipeline")
    check_random_state(random_state)
    # Here, since importing it takes three times as long as the whole of sknan.
    from skrub import DatetimeEncoder, StringEncoder, TableVectorizer

    # Two columns for two levels would say everything twice.
    one_hot = CategoryEncoder(
        drop="if_binary",
        handle_unknown="ignore",
        sparse_output=False,
        dtype="float32",
    )
    encode = TableVectorizer(
        cardinality_threshold=max_levels + 1,
        low_cardinality=one_hot,
        high_cardinality=StringEncoder(random_state=random_state),
        numeric="passthrough",
        datetime=DatetimeEncoder(),
    )
    impute_step = NaNImputer(strategy=impute, add_indicator=True, dtype="float32")
    # Names reach the network, whose reports tell them.
    return Pipeline(
        [
            ("clean", TableCleaner(sentinels=sentinels)),
            ("encode", encode),
            ("impute", impute_step.set_output(transform="pandas")),
            ("scale", SafeScaler().set_output(transform="pandas")),
            ("net", estimator),
        ]
    )


def _default_estimator(kind: str, random_state: Any = None) -> Any:
    """The networks at the end of the pipeline, with their recipe in sight."""
    ensemble = (
        StableNetEnsembleClassifier
        if kind == "classifier"
        else StableNetEnsembleRegressor
    )
    return ensemble(default_network(kind), random_state=random_state)
