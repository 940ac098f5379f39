"""Sections of a report about the settings: parameters, versions and seeds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import Pipeline

from sknan.inspection._report._html import details, section, table
from sknan.nets._curves import networks_of, skorch_net_of

# Distributions whose versions are listed.
_PACKAGES = (
    *("sknan", "torch", "scikit-learn", "skorch", "skrub", "numpy", "pandas"),
    "matplotlib",
)

# The repr of a module or a data set may be very long.
_MAX_REPR = 200


def parameter_section(estimator: Any) -> str:
    """Return the section with the parameters of each step.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model.

    Returns
    -------
    str
    """
    parts = []
    for step in _steps_of(estimator):
        params = step.get_params(deep=False) if hasattr(step, "get_params") else {}
        rows = [(name, _short(value)) for name, value in sorted(params.items())]
        parts.append(details(f"{type(step).__name__} ({len(rows)})", table(rows)))
    return section("Parameters", parts)


def version_section(estimator: Any) -> str:
    """Return the section with seeds, device, system and versions.

    Parameters
    ----------
    estimator : estimator, net, ensemble, Pipeline or search
        Fitted model.

    Returns
    -------
    str
    """
    seeds = [
        (f"random_state of {type(step).__name__}", _short(step.random_state))
        for step in [*_steps_of(estimator), estimator]
        if isinstance(step, BaseEstimator) and hasattr(step, "random_state")
    ]
    first, *_ = networks_of(estimator).values()
    rows = [
        *dict.fromkeys(seeds),
        ("device", str(skorch_net_of(first).device)),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("Python", platform.python_version()),
    ]
    for name in _PACKAGES:
        module = "sklearn" if name == "scikit-learn" else name
        if importlib.util.find_spec(module) is not None:
            rows.append((name, importlib.metadata.version(name)))
    return section("Versions and seeds", [table(rows)])


def _steps_of(estimator: Any) -> list[Any]:
    model = getattr(estimator, "best_estimator_", estimator)
    return [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_REPR else text[: _MAX_REPR - 1] + "…"
