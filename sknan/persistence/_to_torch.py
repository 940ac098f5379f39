"""One torch module from the numbers of a table to the predictions of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet, NeuralNetBinaryClassifier
from torch import Tensor, nn

from sknan.estimators._base import StableNetBase
from sknan.estimators._class_outputs import ClassCoding
from sknan.estimators._ensemble_base import Ensemble
from sknan.nets._mixin import GuardMixin
from sknan.persistence._networks import (
    CalibratedMean,
    EstimatorNetwork,
    MeanOfNetworks,
    NetPredictions,
    Numbers,
    Probabilities,
)
from sknan.persistence._steps import Impute, Scale
from sknan.persistence._tables import Layout, encoding_of
from sknan.preprocessing._cleaner import TableCleaner
from sknan.preprocessing._encoder import ColumnEncoder
from sknan.preprocessing._imputer import NaNImputer
from sknan.preprocessing._scaler import SafeScaler


class ExportedModel(nn.Module):
    """Fitted model as one torch module, which :func:`to_torch` returns.

    Parameters
    ----------
    steps : sequence of nn.Module
        Preparation of the table, network and conversion of its output.
    layout : Layout
        Columns of the input, and codes of categories.
    classes : ndarray or None
        Labels of the classes.

    Attributes
    ----------
    n_features_in_ : int or None
        Number of columns of the input; None for a guarded skorch net alone.
    feature_names_in_ : list of str or None
        Names of these columns, in order; None if the model was fitted without names.
    categories_ : dict of str to dict of str to int
        For each column of categories, the code of each text that ``fit`` has seen, of
        the usual spellings of its numbers and flags ("2" for "2.0"), and of words for
        missing values in lower case, upper case and capitalized. The code -1, like NaN,
        means a missing value, and any other code an unknown category. Unlike the
        cleaner of the pipeline, the codes contain no other spelling of a number, flag,
        date or word, and no blanks around texts but those of ``fit``.
    classes_ : list or None
        Labels of the columns of the output; None for numbers.

    Notes
    -----
    Shape: input (n_samples, n_features_in), float32 or float64. Output (n_samples,
    n_classes), or the shape of the predicted numbers.
    """

    def __init__(
        self, steps: Sequence[nn.Module], layout: Layout, classes: np.ndarray | None
    ) -> None:
        super().__init__()
        self.steps = nn.Sequential(*steps)
        self.n_features_in_ = layout.n_columns
        self.feature_names_in_ = layout.names
        self.categories_ = layout.categories
        self.classes_ = None if classes is None else np.asarray(classes).tolist()
        self.eval()

    def forward(self, X: Tensor) -> Tensor:
        """Predict rows of numbers."""
        n_columns = self.n_features_in_  # Broadcasting would hide other shapes.
        # In a trace of torch.jit the sizes are tensors.
        known = [size for size in X.shape[1:] if not isinstance(size, Tensor)]
        is_other = X.ndim != 2 or known not in ([], [n_columns])
        if n_columns is not None and is_other:
            raise ValueError(
                f"The model takes a tensor of shape (n_samples, {n_columns}), got "
                f"{tuple(X.shape)}. Pass X.reshape(-1, {n_columns}) if these are the "
                "values of rows in order."
            )
        predicted: Tensor = self.steps(X)
        return predicted

    def train(self, mode: bool = True) -> ExportedModel:
        """Remain in evaluation mode: the module is for predictions."""
        return super().train(False)


def to_torch(model: Any) -> ExportedModel:
    """Return a fitted model as one torch module, from raw numbers to predictions.

    The module contains the imputer, the scaler, the network and the conversion of its
    output. It can be passed to ``torch.export``, ``torch.compile``, ``torch.jit.trace``
    and ``torch.save``, and needs no scikit-learn to run.

    Parameters
    ----------
    model : estimator, Pipeline or search
        Fitted network: an estimator or ensemble of sknan, or a guarded skorch net.
        Before it, a ``Pipeline`` may contain :class:`~sknan.NaNImputer` and
        :class:`~sknan.SafeScaler`, and the first two steps of
        :func:`~sknan.tabular_pipeline`. Of a search, the best estimator is exported.

    Returns
    -------
    ExportedModel
        Module in evaluation mode, on the CPU. Its output is that of ``predict_proba``
        for classes, with the labels in ``classes_``, and that of ``predict`` for
        numbers. Rows for which these methods raise an error, such as NaN without an
        imputer, give NaN.

    Raises
    ------
    ValueError
        If a step or a column cannot be computed from numbers, such as a date.
    NotFittedError
        If the model is not fitted.

    Notes
    -----
    The input has the columns of the table that ``fit`` was given, in order, as one
    tensor. After ``tabular_pipeline`` these are the columns of its first step, without
    those that had no value, and categories are given as the codes in ``categories_``.

    A network whose output may overflow, or whose operations have a domain, computes
    each row twice: the second time with every operation kept inside its domain, as
    ``predict`` does for rows that fail. ``torch.compile`` runs this part uncompiled,
    and therefore refuses ``fullgraph=True`` for such a network.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn.pipeline import make_pipeline
    >>> from sknan import NaNImputer, SafeScaler, StableNetRegressor
    >>> from sknan.persistence import to_torch
    >>> X = np.arange(60.0).reshape(20, 3)
    >>> net = StableNetRegressor(max_epochs=3, random_state=0)
    >>> model = make_pipeline(NaNImputer(), SafeScaler(), net).fit(X, X[:, 0])
    >>> module = to_torch(model)
    >>> rows = torch.tensor([[1.0, torch.nan, torch.inf]], dtype=torch.float64)
    >>> bool(np.isclose(module(rows), model.predict(rows.numpy())))
    True
    """
    return exported(model, "to_torch({})")


def exported(model: Any, call: str) -> ExportedModel:
    """Return a fitted model as one module; name a call to export a part in errors."""
    if hasattr(model, "refit") and not hasattr(model, "best_estimator_"):  # a search
        check_is_fitted(model)
        raise ValueError(
            f"{type(model).__name__} was fitted with refit=False and has no "
            "best_estimator_ to export. Fit the search with refit=True."
        )
    steps = _steps_of(model)
    first = next(step for step in steps if not _is_identity(step))
    layout, modules = Layout.of_numbers(first), list[nn.Module]()
    n_encoded = 0
    if isinstance(steps[0], TableCleaner) and isinstance(steps[1], ColumnEncoder):
        layout, encode = encoding_of(steps[0], steps[1], _in_two_parts(model, 2, call))
        modules, n_encoded = [encode], 2
    for i, step in enumerate(steps[n_encoded:-1], n_encoded):
        if isinstance(step, (NaNImputer, SafeScaler)):
            modules.append(preparation_of(step))
        elif not _is_identity(step):
            raise ValueError(
                f"{type(step).__name__}, step {i} of the pipeline, cannot be exported: "
                "only NaNImputer, SafeScaler and the first two steps of "
                f"tabular_pipeline can. {_in_two_parts(model, i + 1, call)}"
            )
    modules += prediction_of(steps[-1], largest_after(steps[:-1]))
    return ExportedModel(modules, layout, getattr(steps[-1], "classes_", None))


def _steps_of(model: Any) -> list[Any]:
    """Return the fitted steps of a pipeline, or a model alone as one step."""
    steps = _flat(model)
    if not isinstance(steps[-1], (StableNetBase, Ensemble, GuardMixin)):
        raise ValueError(
            "Only networks of sknan can be exported, alone or at the end of a "
            f"Pipeline, but the model ends in {type(steps[-1]).__name__}."
        )
    for step in steps:
        if isinstance(step, GuardMixin):
            step.check_is_fitted(["module_"])
        elif not _is_identity(step):
            check_is_fitted(step)
    return steps


def _flat(model: Any) -> list[Any]:
    """Return the steps of a model; of a search at its end, those of the best one."""
    model = getattr(model, "best_estimator_", model)
    if not isinstance(model, Pipeline):
        return [model]
    *before, last = (step for _, step in model.steps)
    return [*before, *_flat(last)]


def _in_two_parts(
    model: Any, n: int, call: str, name: str = "model", table: str = "X"
) -> str:
    """Return advice to export a model without its first steps."""
    if hasattr(model, "best_estimator_"):
        model, name = model.best_estimator_, f"{name}.best_estimator_"
    n_before = len(model.steps) - 1
    if n > n_before:  # in a pipeline at the end
        table = f"{name}[:-1].transform({table})" if n_before else table
        return _in_two_parts(model[-1], n - n_before, call, f"{name}[-1]", table)
    return (
        f"Transform tables with {name}[:{n}].transform({table}), and export the steps "
        f"after it, {call.format(f'{name}[{n}:]')}."
    )


def _is_identity(step: Any) -> bool:
    return step is None or (isinstance(step, str) and step == "passthrough")


def preparation_of(step: NaNImputer | SafeScaler) -> nn.Module:
    """Return a fitted imputer or scaler as a module."""
    if isinstance(step, SafeScaler):
        return Scale(step)
    if step._fit_dtype.kind not in "fiub":
        raise ValueError(
            f"NaNImputer(strategy={step.strategy!r}) was fitted on a table of dtype "
            f"{step._fit_dtype}, which cannot be exported. Fit it on numbers, such as "
            "X.astype(float)."
        )
    return Impute(step)


def largest_after(steps: Sequence[Any]) -> float:
    """Return a bound of the finite numbers that the network receives."""
    largest = math.inf
    for step in steps:
        if isinstance(step, SafeScaler):
            largest = math.inf if step.bound is None else step.bound
        elif isinstance(step, NaNImputer):  # an indicator column has ones
            largest = max(largest, 1.0, *np.abs(step.statistics_[step._kept()]))
    return largest


def prediction_of(model: Any, largest: float) -> list[nn.Module]:
    """Return a fitted network as modules from prepared numbers to predictions."""
    if isinstance(model, GuardMixin):
        if type(model).infer not in (NeuralNet.infer, NeuralNetBinaryClassifier.infer):
            raise ValueError(
                f"{type(model).__name__} overrides infer, which cannot be exported. "
                "Export its module by itself: net.module_."
            )
        return [NetPredictions(model, largest)]
    if isinstance(model, StableNetBase):
        return [EstimatorNetwork(model, largest), _output_of(model)]
    temperature = getattr(model, "temperature_", None)
    members = [
        nn.Sequential(
            EstimatorNetwork(member, largest),
            _output_of(member, in_logs=temperature is not None),
        )
        for member in model.estimators_
    ]
    if temperature is None:
        return [MeanOfNetworks(members)]
    is_pair = len(model.estimators_[0]._coding.label_shape) > 0
    return [CalibratedMean(members, temperature, is_pair=is_pair)]


def _output_of(estimator: StableNetBase, *, in_logs: bool = False) -> nn.Module:
    coding: Any = estimator._coding
    criterion = estimator._fitted.criterion_
    if isinstance(coding, ClassCoding):
        return Probabilities(coding, criterion, in_logs=in_logs)
    return Numbers(coding, criterion)
