"""Names of the classes and functions that a file may restore without being asked."""

from __future__ import annotations

from types import FunctionType, ModuleType
from typing import Any

from sklearn import metrics, model_selection
from sklearn.gaussian_process import kernels
from torch import optim


def _public(module: ModuleType, kind: type) -> set[str]:
    """Return the full names of the public objects of a kind that a package defines."""
    public = (value for name, value in vars(module).items() if name[0] != "_")
    found: list[Any] = [value for value in public if isinstance(value, kind)]
    return {
        f"{value.__module__}.{value.__qualname__}"
        for value in found
        if value.__module__.startswith(module.__name__)
    }


# A file may name these, and may not call them. Classes that are compiled are not
# trusted: they read memory at positions that a file contains.
METRICS = _public(metrics, FunctionType)
OPTIMIZERS = _public(optim, type)

# Objects of these classes are restored from their attributes. None of them runs code
# that a file contains, and none writes files. Estimators are trusted by skops.
_CLASSES = [
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
    "sklearn.metrics._scorer._CurveScorer",
    "sklearn.metrics._scorer._MultimetricScorer",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.metrics._scorer._Scorer",
    "sklearn.model_selection._split._CVIterableWrapper",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils._metadata_requests.MetadataRequest",
    "sklearn.utils._metadata_requests.MethodMetadataRequest",
    "sknan._engine.fitted_network.FittedNetwork",
    "sknan._engine.prediction.ColumnScaling",
    "sknan._engine.range_test.learning_rate_range.LearningRateRange",
    "sknan._utils.encoding.Encoded",
    "sknan.diagnosis._report.NonFiniteReport",
    "sknan.estimators._class_outputs.ClassCoding",
    "sknan.estimators._class_outputs.LabelCoding",
    "sknan.estimators._classifier.StableNetClassifier",
    "sknan.estimators._ensemble.StableNetEnsembleClassifier",
    "sknan.estimators._ensemble.StableNetEnsembleRegressor",
    "sknan.estimators._intervals.HeldOutResiduals",
    "sknan.estimators._regressor.StableNetRegressor",
    "sknan.estimators._target_scaling.NumberCoding",
    "sknan.losses._traits.LossTraits",
    "sknan.model_selection._search.BatchedGridSearchCV",
    "sknan.model_selection._search.BatchedHalvingSearchCV",
    "sknan.model_selection._search.BatchedRandomizedSearchCV",
    "sknan.preprocessing._cleaner.TableCleaner",
    "sknan.preprocessing._encoder.CategoryEncoder",
    "sknan.preprocessing._encoder.ColumnEncoder",
    "sknan.preprocessing._imputer.NaNImputer",
    "sknan.preprocessing._kernels.column_means.RunningMeans",
    "sknan.preprocessing._kernels.quantile_sketch.QuantileSketch",
    "sknan.preprocessing._kernels.soft_bound.DirectScaling",
    "sknan.preprocessing._scaler.SafeScaler",
    "sknan.preprocessing._tables.column_schema.ColumnSchema",
    "sknan.preprocessing._tables.date_format.DateFormat",
    "sknan.preprocessing._tables.number_format.NumberFormat",
    "sknan.preprocessing._word_encoder.WordEncoder",
    "skrub._apply_to_each_col.ApplyToEachCol",
    "skrub._check_input.CheckInputDataFrame",
    "skrub._clean_categories.CleanCategories",
    "skrub._clean_null_strings.CleanNullStrings",
    "skrub._dataframe._common.is_any_date",
    "skrub._dataframe._common.is_categorical",
    "skrub._dataframe._common.is_numeric",
    "skrub._datetime_encoder.DatetimeEncoder",
    "skrub._drop_uninformative.DropUninformative",
    "skrub._duration_to_float.DurationToFloat",
    "skrub._string_encoder.StringEncoder",
    "skrub._table_vectorizer.PassThrough",
    "skrub._table_vectorizer.ShortReprDict",
    "skrub._table_vectorizer.TableVectorizer",
    "skrub._table_vectorizer._created_by_predicate",
    "skrub._to_datetime.ToDatetime",
    "skrub._to_float.ToFloat",
    "skrub._to_str.ToStr",
    "skrub.selectors._base.All",
    "skrub.selectors._base.And",
    "skrub.selectors._base.Cols",
    "skrub.selectors._base.Filter",
    "skrub.selectors._base.Sub",
    "skrub.selectors._selectors._cardinality_below",
]

TRUSTED_TYPES: list[str] = sorted(
    {*_CLASSES, *METRICS, *_public(model_selection, type), *_public(kernels, type)}
)
