"""Expected gradients: the contribution of each column to each prediction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.pipeline import Pipeline
from torch import Tensor

from sknan._utils.random_state import random_generator
from sknan._utils.settings import usual_settings
from sknan._utils.threads import threads_for
from sknan._utils.tree import first_of
from sknan._utils.validation import is_flag, is_integer, is_one_of
from sknan._utils.warn import warn
from sknan.exceptions import NonFiniteTrainingError
from sknan.inspection._expected_gradients import (
    Place,
    expected_gradients,
    in_proportion,
    places_between,
    root_mean_square,
    shares_of,
)
from sknan.nets._curves import networks_of
from sknan.nets.recovery.finite_operations import RepairedOperations
from sknan.preprocessing._sources import sources_of

# Fewer rows are no sample of a table, by which its mean prediction can be estimated.
_MIN_BACKGROUND = 50

# Largest number of rows, and of values for all outputs, in a batch.
_ROWS_PER_BATCH = 1024
_VALUES_PER_BATCH = 2**20

# Share of the predictions' spread from which the sampling error is reported.
_LARGE_ERROR = 0.5


@dataclass(frozen=True, eq=False)
class Attributions:
    """Contribution of each column to each prediction.

    The sum of a row of ``values`` plus ``base_values`` is the prediction.

    Parameters
    ----------
    values : ndarray of shape (n_samples, n_columns[, n_outputs])
        Contributions, in the units of the prediction.
    base_values : float or ndarray of shape (n_outputs,)
        Mean prediction for the background.
    feature_names : list of str
        Names of the columns.
    output_names : list
        Labels of the classes, or numbers of the targets, that are explained.
    data : DataFrame of shape (n_samples, n_columns)
        Cells of the explained rows.
    sampling_error : float
        Root mean square, over rows and outputs, of the difference between the sum of
        the sampled contributions and the prediction. The contributions were corrected
        by it. A larger ``n_samples`` makes it smaller.

    Notes
    -----
    The names are those of ``shap.Explanation``, whose plots can be used:
    ``shap.Explanation(a.values, a.base_values, a.data.to_numpy(),
    feature_names=a.feature_names)``.
    """

    values: np.ndarray
    base_values: Any
    feature_names: list[str]
    output_names: list[Any]
    data: pd.DataFrame
    sampling_error: float

    @property
    def importances(self) -> pd.Series:
        """Mean absolute contribution of each column, summed over outputs; sorted."""
        sizes = np.abs(self.values).mean(axis=0)
        sizes = sizes if sizes.ndim == 1 else sizes.sum(axis=1)
        return pd.Series(sizes, self.feature_names).sort_values(ascending=False)

    def to_frame(self, output: Any = None) -> pd.DataFrame:
        """Return the contributions to one output as a table.

        Parameters
        ----------
        output : label or int, default=None
            One of ``output_names``. None is possible if there is a single one.

        Returns
        -------
        DataFrame of shape (n_samples, n_columns)
        """
        values = self.values_of(output)
        return pd.DataFrame(values, self.data.index, self.feature_names)

    def values_of(self, output: Any = None) -> np.ndarray:
        """Return the contributions to one output as an array.

        Parameters
        ----------
        output : label or int, default=None
            One of ``output_names``. None is possible if there is a single one.

        Returns
        -------
        ndarray of shape (n_samples, n_columns)
        """
        if self.values.ndim == 2 and output is None:
            return self.values
        number = _number_of(output, self.output_names, "output")
        return self.values if self.values.ndim == 2 else self.values[:, :, number]


def attributions(
    model: Any,
    X: Any,
    *,
    background: Any = None,
    target: Any = None,
    response: Literal["prediction", "logit"] = "prediction",
    n_samples: int = 100,
    random_state: Any = None,
) -> Attributions:
    """Explain predictions by expected gradients, column by column.

    Each prediction is divided among the columns: what a column contributes to the
    difference between the prediction and the mean prediction for background rows.

    Parameters
    ----------
    model : StableNet estimator, ensemble, Pipeline or search
        Fitted model that is, or ends in, a StableNet estimator or an ensemble. In a
        pipeline, contributions are computed for the inputs of the network. Those of
        encoded columns and indicators are added to the column they come from.
    X : DataFrame or array-like of shape (n_samples, n_columns)
        Rows to explain, as for ``model.predict``.
    background : DataFrame or array-like of shape (n_rows, n_columns), default=None
        Rows that the predictions are compared with, usually the training rows. None
        uses ``X``, which must then have at least 50 rows: a fitted model holds no
        training rows.
    target : label or int, default=None
        Class, or number of the target column, to explain. None explains the second of
        two classes, and otherwise all classes or targets.
    response : {"prediction", "logit"}, default="prediction"
        Quantity to explain: the prediction, which is the probability for a classifier,
        or the logarithm of the odds of a class. For an ensemble, it is the mean over
        the networks, before the division by its ``temperature_``.
    n_samples : int, default=100
        Number of gradients for each row. They are divided among the networks of an
        ensemble.
    random_state : int, RandomState or None, default=None
        Seed of the choice of background rows.

    Returns
    -------
    Attributions
        Contributions, whose sums are exact up to rounding.

    Raises
    ------
    ValueError
        If there is no background, a column cannot be traced through the pipeline, or a
        parameter is invalid.
    TypeError
        If ``model`` does not end in a StableNet estimator or an ensemble.
    NonFiniteTrainingError
        If a derivative of the network is not finite.

    Warns
    -----
    UserWarning
        If the sampled contributions explain less than half of the predictions.

    See Also
    --------
    sknan.inspection.AttributionDisplay : Plot of the result.
    sklearn.inspection.permutation_importance : Effect of a column on the score.

    Notes
    -----
    The contribution of input i is the mean of (x_i - b_i) df/dx_i at a random point
    between the row x and a random background row b. A network that is linear in its
    inputs is explained exactly. Otherwise the sum has a sampling error, which is
    divided among the inputs in proportion to the variance of their samples.

    References
    ----------
    Erion, Janizek, Sturmfels, Lundberg, Lee, "Improving performance of deep learning
    models with axiomatic attribution priors and expected gradients", Nature Machine
    Intelligence 3, 2021, arXiv:1906.10670, equation 2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sknan import StableNetClassifier
    >>> from sknan.inspection import attributions
    >>> X, y = load_iris(return_X_y=True, as_frame=True)
    >>> net = StableNetClassifier(random_state=0).fit(X, y)
    >>> attributions(net, X, target=2, random_state=0).importances.index[0]
    'petal length (cm)'
    """
    if not is_integer(n_samples) or n_samples < 1:
        raise ValueError(
            f"n_samples must be an integer of at least 1, got {n_samples}."
        )
    if not is_one_of(response, ("prediction", "logit")):
        raise ValueError(f"response must be 'prediction' or 'logit', got {response!r}.")
    X = _as_table(X)
    background = X if background is None else _as_table(background)
    if background is X and len(X) < _MIN_BACKGROUND:
        raise ValueError(
            f"X has {len(X)} rows, too few to compare them with each other. Pass the "
            "rows that the model was trained on: attributions(model, X, "
            "background=X_train)."
        )
    prepared = getattr(model, "best_estimator_", model)
    is_pipeline = isinstance(prepared, Pipeline) and len(prepared) > 1
    steps = prepared[:-1] if is_pipeline else None
    with usual_settings():
        networks = _networks_of(model, in_logits=response == "logit")
        names = _names_of(prepared, X)
        shares = shares_of(sources_of(steps, names), len(names))
        rows, others = (_inputs_of(networks[0], steps, T) for T in (X, background))
        found, output_names = _choose(networks, others[:1], target)
        rng = random_generator("attributions", random_state)
        path = list(places_between(len(networks), len(others), n_samples, rng))
        explained = _explain(networks, rows, others, path, found, shares)
    values, base, error = explained
    is_single = len(found) == 1
    return Attributions(
        values[:, :, 0] if is_single else values,
        float(base[0]) if is_single else base,
        names,
        output_names,
        _cells(X, names),
        error,
    )


# -- the model -----------------------------------------------------------------------


class _Network:
    """Response of one network, and its derivative by the inputs."""

    def __init__(self, estimator: Any, *, in_logits: bool) -> None:
        self.estimator = estimator
        self.net = estimator.net_
        self.in_logits = in_logits

    def _respond(self, output: Any) -> Tensor:
        first: Tensor = first_of(output)
        found: Tensor = self.net.coding_.responses(
            self.net.criterion_, first.float(), in_logits=self.in_logits
        )
        return found

    def responses(self, rows: Tensor) -> Tensor:
        """Return the responses to rows, (n_samples, n_outputs), float64."""
        with torch.no_grad():
            output = self.net.finite_output(rows).to(self.net.device)
            return self._respond(output).double()

    def gradients(self, rows: Tensor, units: dict[int, float]) -> Tensor:
        """Return derivatives of outputs in these units, (n_outputs, n_rows, n_inputs).

        float32, in which a network computes, has no derivatives in the unit of a target
        near the largest float64.
        """
        found = self._derivatives(rows, units)
        if bool(found.isfinite().all()):
            return found
        with RepairedOperations():
            found = self._derivatives(rows, units)
        if not bool(found.isfinite().all()):
            raise NonFiniteTrainingError(
                "The derivative of the network by its inputs is not finite between "
                "the explained rows and the background. Use a module whose operations "
                "have finite derivatives, such as those of sknan.functional."
            )
        return found

    def _derivatives(self, rows: Tensor, units: dict[int, float]) -> Tensor:
        leaf = rows.detach().requires_grad_()
        responses = self._respond(self.net.module_(leaf.clone()))
        found = [
            torch.autograd.grad(
                (responses[:, output] / unit).sum(),
                leaf,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]
            if responses.requires_grad
            else torch.zeros_like(leaf)
            for output, unit in units.items()
        ]
        return torch.stack(found)


def _networks_of(model: Any, *, in_logits: bool) -> list[_Network]:
    found = list(networks_of(model).values())
    for estimator in found:
        if not hasattr(estimator, "net_"):
            raise TypeError(
                "attributions explains StableNet estimators and their ensembles, got "
                f"{type(estimator).__name__}."
            )
        if in_logits and estimator.net_.coding_.classes is None:
            raise ValueError(
                "response='logit' is for classifiers, but the model ends in a "
                f"{type(estimator).__name__}."
            )
        estimator.net_._set_training(False)
    return [_Network(estimator, in_logits=in_logits) for estimator in found]


def _choose(
    networks: Sequence[_Network], row: Tensor, target: Any
) -> tuple[list[int], list[Any]]:
    """Return the numbers and names of the responses to explain."""
    network = networks[0]
    classes = network.net.coding_.classes
    n_outputs = network.responses(row).shape[1]
    is_labeled = classes is not None and len(classes) == n_outputs
    names = list(classes) if is_labeled else list(range(n_outputs))
    if target is not None:
        chosen = [_number_of(target, names, "target")]
    elif n_outputs == 2 and classes is not None and not network.net.coding_.label_shape:
        chosen = [1]
    else:
        chosen = list(range(n_outputs))
    return chosen, [names[i] for i in chosen]


def _number_of(wanted: Any, names: Sequence[Any], parameter: str) -> int:
    for number, name in enumerate(names):
        # The comparison with an array or NA has no truth value.
        if is_flag(is_same := name == wanted) and is_same:
            return number
    listed = ", ".join(map(str, names))
    raise ValueError(f"{parameter} must be one of {listed}, got {wanted!r}.")


# -- the table -----------------------------------------------------------------------


def _as_table(X: Any) -> Any:
    return X if hasattr(X, "columns") or hasattr(X, "shape") else np.asarray(X)


def _names_of(model: Any, X: Any) -> list[str]:
    """Return the names of the columns in the order of ``fit``."""
    names = getattr(model, "feature_names_in_", None)
    if names is None:
        names = [f"x{j}" for j in range(X.shape[1])]
    return [str(name) for name in names]


def _cells(X: Any, names: list[str]) -> pd.DataFrame:
    """Return a table with its columns in the order of ``fit``."""
    if hasattr(X, "to_pandas"):
        X = X.to_pandas()
    if not isinstance(X, pd.DataFrame):
        X = X.toarray() if hasattr(X, "toarray") else X
        return pd.DataFrame(X, columns=names)
    labels = {str(label): label for label in X.columns}
    if set(labels) != set(names):
        return X.set_axis(names, axis=1)
    return X[[labels[name] for name in names]].set_axis(names, axis=1)


def _inputs_of(network: _Network, steps: Pipeline | None, X: Any) -> Tensor:
    """Return rows as the networks receive them."""
    prepared = X if steps is None else steps.transform(X)
    rows: Tensor = network.estimator._network_rows(prepared)
    if rows.ndim != 2:
        raise ValueError(
            f"attributions needs a table of two dimensions, got {tuple(rows.shape)}."
        )
    return rows


# -- expected gradients --------------------------------------------------------------


def _explain(
    networks: Sequence[_Network],
    rows: Tensor,
    background: Tensor,
    places: Sequence[Place],
    outputs: list[int],
    shares: Tensor,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return contributions, base values and the sampling error."""
    estimator, n_inputs = networks[0].estimator, rows.shape[1]
    n_rows = _VALUES_PER_BATCH // (n_inputs * len(outputs))
    n_rows = max(1, min(_ROWS_PER_BATCH, n_rows))
    n_flops = networks[0].net.flops_per_row_ * min(n_rows, len(rows))
    with threads_for(n_flops, estimator.num_threads):
        base = _mean(_responses(networks, background, outputs))
        differences = _responses(networks, rows, outputs) - base
        unit = differences.abs().amax(dim=0)
        unit = unit.where(unit > 0, 1.0)
        units = dict(zip(outputs, unit.tolist(), strict=True))
        gradients = [functools.partial(n.gradients, units=units) for n in networks]
        values, errors = [], []
        for start in range(0, len(rows), n_rows):
            batch = slice(start, start + n_rows)
            mean, variance = expected_gradients(
                gradients, rows[batch], background, places
            )
            error = (differences[batch] / unit).T[:, :, None]
            error = error - mean.sum(dim=2, keepdim=True)
            mean += error * in_proportion(variance)
            values.append((mean @ shares.to(mean)).permute(1, 2, 0) * unit)
            errors.append(error[:, :, 0].T * unit)
    missed, spread = root_mean_square(torch.cat(errors)), root_mean_square(differences)
    if missed > _LARGE_ERROR * spread:
        warn(
            f"The gradients explain little of the predictions: the contributions of "
            f"{len(places)} samples differ by {missed:.2g} from the predictions, which "
            f"differ by {spread:.2g} from their mean. Increase n_samples. If that does "
            "not help, the module has steps without derivative, such as rounding."
        )
    return torch.cat(values).numpy(force=True), base.numpy(force=True), missed


def _responses(
    networks: Sequence[_Network], rows: Tensor, outputs: list[int]
) -> Tensor:
    """Return the mean response of the networks, (n_samples, n_outputs)."""
    each = torch.stack([network.responses(rows)[:, outputs] for network in networks])
    return _mean(each)


def _mean(values: Tensor) -> Tensor:
    """Return the mean over the first axis; a sum of large values would overflow."""
    return (values / len(values)).sum(dim=0)
