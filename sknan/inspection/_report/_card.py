"""Sections of a model card about the model and its training data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from sknan._utils.html import element, table
from sknan.inspection._report._evaluation import names_of_columns, quantiles_of
from sknan.inspection._report._html import cut_table, section, value_text
from sknan.nets._curves import last_of, networks_of, skorch_net_of, steps_of
from sknan.preprocessing._cleaner import TableCleaner
from sknan.preprocessing._imputer import NaNImputer

_MAX_CLASSES = 20


def model_section(estimator: Any, y: Any, license: str | None) -> str:
    """Return the section with the input and the output of a model."""
    steps = steps_of(estimator)
    task, output = _task_and_output(estimator, y)
    nets = [skorch_net_of(net) for net in networks_of(estimator).values()]
    n_weights = sum(p.numel() for net in nets for p in net.module_.parameters())
    rows = [
        ("task", task),
        ("output", output),
        ("steps", ", ".join(type(step).__name__ for step in steps)),
        ("weights", f"{n_weights} in {len(nets)} network{'s' * (len(nets) > 1)}"),
        ("license", license or "not stated"),
    ]
    return section("Model", [table(rows)])


def _task_and_output(estimator: Any, y: Any) -> tuple[str, str]:
    """Return what a model predicts, with the names of the columns of ``y``."""
    classes = getattr(last_of(estimator), "classes_", None)
    if classes is None:
        quantiles = quantiles_of(estimator)
        if quantiles is None:
            return "regression", "numbers in the units of the target"
        listed = ", ".join(f"{level:g}" for level in quantiles)
        return (
            f"regression, quantile{'s' * (len(quantiles) > 1)} {listed}",
            "quantiles of the target in this order, in its units",
        )
    first = next(iter(networks_of(estimator).values()))
    is_multilabel = getattr(first, "_is_multilabel", False)
    n, kind = len(classes), "labels per row" if is_multilabel else "classes"
    names = names_of_columns(y, n, "label") if is_multilabel else map(str, classes)
    more = ", ..." if n > _MAX_CLASSES else ""
    task = f"classification, {n} {kind}: {', '.join(list(names)[:_MAX_CLASSES])}{more}"
    if is_multilabel:
        output = "predict gives 0 or 1 for each label, predict_proba its probability"
        return task, f"{output}, in this order"
    return task, "predict gives labels, predict_proba probabilities in this order"


def training_data_section(estimator: Any) -> str:
    """Return the section with the columns of ``fit`` and their missing cells, or ""."""
    first = steps_of(estimator)[0]
    if not hasattr(first, "n_features_in_"):
        return ""
    names = list(getattr(first, "feature_names_in_", range(first.n_features_in_)))
    kinds, missing = dict.fromkeys(names, "numbers"), {}
    if isinstance(first, TableCleaner):
        names = first._names
        kinds, missing = first.kinds_, first.n_missing_
    elif isinstance(first, NaNImputer):
        missing = dict(zip(names, first.n_missing_.tolist(), strict=True))
    sentinels = getattr(first, "sentinels_", {})
    fills = _fill_values(getattr(estimator, "best_estimator_", estimator), names)
    n_rows = getattr(first, "n_samples_seen_", None)
    rows = []
    for name in names:
        kind, n = kinds.get(name, "dropped: no values"), missing.get(name)
        share = "-" if n is None or not n_rows else f"{n} ({100 * n / n_rows:.1f} %)"
        of_column = ", ".join(map(value_text, sentinels.get(name, [])))
        filled = "encoded" if kind in ("categories", "dates") else "-"
        rows.append((name, kind, of_column, share, fills.get(name, filled)))
    text = f"The model was fitted on {len(names)} columns"
    if n_rows is not None:
        text += f" of {n_rows} rows"
    heads = ["column", "read as", "sentinels", "missing in fit", "filled with"]
    return section("Training data", [element("p", f"{text}."), cut_table(rows, heads)])


def _fill_values(model: Any, names: list[Any]) -> dict[Any, str]:
    """Return the values that imputers fill into columns of the table, by their names.

    The columns that an encoder makes of one column have other names.
    """
    fills: dict[Any, str] = {}
    for imputer in _imputers_in(model):
        is_first = imputer is steps_of(model)[0]
        own = getattr(imputer, "feature_names_in_", names if is_first else [])
        fills.update(zip(own, map(value_text, imputer.statistics_), strict=False))
    return fills


def _imputers_in(model: Any) -> Iterator[NaNImputer]:
    steps: list[Any] = []
    if isinstance(model, NaNImputer):
        yield model
    elif isinstance(model, Pipeline):
        steps = [step for _, step in model.steps]
    elif isinstance(model, ColumnTransformer):
        steps = [step for _, step, _ in model.transformers_]
    for step in steps:
        yield from _imputers_in(step)
