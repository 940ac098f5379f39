"""Complete messages for data that the estimators refuse."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from torch import nn

from sknan import (
    NonFiniteDataError,
    StableNetClassifier,
    StableNetRegressor,
)

X = np.random.default_rng(0).normal(size=(12, 3))
LABELS = np.arange(12) % 2
VALUES = X[:, 0] + 2 * X[:, 1]

IMPUTE = "Impute first: make_pipeline(NaNImputer(), SafeScaler(), {}())."
DROP_ROWS = (
    "A row without a finite target cannot be used for training: "
    "remove these rows from X and y."
)

ESTIMATORS = [(StableNetClassifier, LABELS), (StableNetRegressor, VALUES)]
both = pytest.mark.parametrize(
    ("Estimator", "y"), ESTIMATORS, ids=["classifier", "regressor"]
)


def classifier(**params):
    return StableNetClassifier(max_epochs=1, random_state=0).set_params(**params)


def regressor(**params):
    return StableNetRegressor(max_epochs=1, random_state=0).set_params(**params)


def damaged(value):
    table = X.copy()
    table[[2, 5], 1] = value
    table[3, 0] = value
    return table


def refusal(error, function, *args, **params):
    """Return the message of the error that the call raises, of exactly this class."""
    with pytest.raises(error) as caught:
        function(*args, **params)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize("label", [None, np.nan])
@both
def test_missing_targets_are_not_scored(Estimator, y, label):
    net = Estimator(max_epochs=1).fit(X, y)
    y = y.astype(object) if label is None and y is LABELS else y.astype(float)
    y[3] = label
    message = refusal(NonFiniteDataError, net.score, X, y)
    assert message.endswith(DROP_ROWS.replace("used for training", "scored"))


# -- X -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("value", "found"),
    [
        (np.nan, "3 NaN values"),
        (np.inf, "3 inf values"),
        (-np.inf, "3 inf values"),
        (1e39, "3 values beyond float32"),
    ],
)
def test_the_message_names_columns_and_rows_of_non_finite_cells(
    Estimator, y, value, found
):
    assert refusal(NonFiniteDataError, Estimator().fit, damaged(value), y) == (
        f"X contains {found} in 2 of 3 columns: 0 (1, first at row 3), 1 (2, first at "
        f"row 2). {IMPUTE.format(Estimator.__name__)}"
    )


def test_the_message_counts_kinds_separately_and_names_columns():
    table = pd.DataFrame(damaged(np.nan), columns=["age", "pay", "size"])
    table.loc[7, "pay"] = -np.inf
    table.loc[8, "size"] = 1e300
    assert refusal(NonFiniteDataError, classifier().fit, table, LABELS) == (
        "X contains 3 NaN values and 1 inf value and 1 value beyond float32 in 3 of 3 "
        "columns: 'age' (1, first at row 3), 'pay' (3, first at row 2), 'size' (1, "
        f"first at row 8). {IMPUTE.format('StableNetClassifier')}"
    )


@pytest.mark.parametrize("missing", [None, pd.NA])
def test_the_message_names_missing_cells_of_nullable_columns(missing):
    table = pd.DataFrame({"age": [1, 2, missing, 4], "pay": [1.0, 2, 3, 4]})
    table = table.astype({"age": "Int64"})
    assert refusal(NonFiniteDataError, classifier().fit, table, [0, 1, 0, 1]) == (
        "X contains 1 NaN value in 1 of 2 columns: 'age' (1, first at row 2). "
        f"{IMPUTE.format('StableNetClassifier')}"
    )


def test_the_message_about_a_wide_table_is_short():
    table = np.full((3, 40), np.nan)
    columns = ", ".join(f"{j} (3, first at row 0)" for j in range(8))
    assert refusal(NonFiniteDataError, classifier().fit, table, [0, 1, 0]) == (
        f"X contains 120 NaN values in 40 of 40 columns: {columns} and 32 more. "
        f"{IMPUTE.format('StableNetClassifier')}"
    )


def test_the_message_gives_an_index_for_more_than_two_dimensions():
    table = np.zeros((6, 2, 2))
    table[4, 1, 0] = np.nan
    model = classifier(module=nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    assert refusal(NonFiniteDataError, model.fit, table, [0, 1] * 3) == (
        "X contains 1 NaN value; the first is at index (4, 1, 0). "
        f"{IMPUTE.format('StableNetClassifier')}"
    )


@both
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_predict_refuses_what_fit_refuses(Estimator, y, method):
    model = Estimator(max_epochs=1, random_state=0).fit(X, y)
    if hasattr(model, method):
        assert refusal(NonFiniteDataError, getattr(model, method), damaged(np.nan)) == (
            "X contains 3 NaN values in 2 of 3 columns: 0 (1, first at row 3), 1 (2, "
            f"first at row 2). {IMPUTE.format(Estimator.__name__)}"
        )


@both
def test_a_dict_of_inputs_is_refused_with_what_accepts_it(Estimator, y):
    with pytest.raises(TypeError) as refused:
        Estimator().fit({"a": X, "b": X}, y)
    assert str(refused.value) == (
        f"{Estimator.__name__} takes one table as X, got a dict. For a module with "
        "several inputs use GuardedNetClassifier or GuardedNetRegressor, which pass "
        "the entries of a dict to forward by their names."
    )


def test_a_refused_table_does_not_change():
    table = damaged(np.nan)
    before = table.copy()
    refusal(NonFiniteDataError, classifier().fit, table, LABELS)
    np.testing.assert_array_equal(table, before)


@both
def test_an_empty_table_is_refused(Estimator, y):
    assert refusal(ValueError, Estimator().fit, X[:0], y[:0]) == (
        "Found array with 0 sample(s) (shape=(0, 3)) while a minimum of 2 is required "
        f"by {Estimator.__name__}."
    )
    assert refusal(ValueError, Estimator().fit, X[:, :0], y) == (
        "Found array with 0 feature(s) (shape=(12, 0)) while a minimum of 1 is "
        f"required by {Estimator.__name__}."
    )


@both
def test_a_single_row_is_refused(Estimator, y):
    assert refusal(ValueError, Estimator().fit, X[:1], y[:1]) == (
        "Found array with 1 sample(s) (shape=(1, 3)) while a minimum of 2 is required "
        f"by {Estimator.__name__}."
    )


@both
@pytest.mark.parametrize("width", [2, 4])
def test_a_different_number_of_columns_at_predict_is_refused(Estimator, y, width):
    model = Estimator(max_epochs=1, random_state=0).fit(X, y)
    assert refusal(ValueError, model.predict, np.ones((2, width))) == (
        f"X has {width} features, but {Estimator.__name__} is expecting 3 features as "
        "input."
    )


def test_renamed_and_reordered_columns_at_predict_are_refused():
    table = pd.DataFrame(X, columns=["a", "b", "c"])
    model = classifier().fit(table, LABELS)
    assert refusal(ValueError, model.predict, table.rename(columns={"b": "z"})) == (
        "The feature names should match those that were passed during fit.\n"
        "Feature names unseen at fit time:\n- z\n"
        "Feature names seen at fit time, yet now missing:\n- b\n"
    )
    assert refusal(ValueError, model.predict, table[["b", "a", "c"]]) == (
        "The feature names should match those that were passed during fit.\n"
        "Feature names must be in the same order as they were in fit.\n"
    )


@both
def test_the_message_names_the_first_cell_of_text(Estimator, y):
    table = pd.DataFrame(X, columns=["a", "b", "c"]).astype(object)
    table.loc[4, "b"] = "red"
    advice = (
        f"but {Estimator.__name__} needs numbers. Encode the table first: "
        f"sknan.tabular_pipeline({Estimator.__name__}()) does, or "
        "sklearn.preprocessing.OneHotEncoder()."
    )
    assert refusal(ValueError, Estimator().fit, table, y) == (
        f"X contains text, first 'red' at row 4, column 'b', {advice}"
    )
    assert refusal(ValueError, Estimator().fit, table.to_numpy(), y) == (
        f"X contains text, first 'red' at row 4, column 1, {advice}"
    )


def test_numbers_stored_as_text_are_accepted():
    table = pd.DataFrame(X).astype(object)
    table.iloc[4, 1] = "0.5"
    number = table.astype(float)
    np.testing.assert_array_equal(
        classifier().fit(table, LABELS).predict_proba(table),
        classifier().fit(number, LABELS).predict_proba(number),
    )


def test_more_than_two_dimensions_need_a_custom_module():
    assert refusal(ValueError, classifier().fit, X[:, :, None], LABELS) == (
        "Found array with dim 3, while dim <= 2 is required by StableNetClassifier."
    )


# -- y -----------------------------------------------------------------------------


@both
def test_a_missing_target_is_refused(Estimator, y):
    assert refusal(ValueError, Estimator().fit, X, None) == (
        f"{Estimator.__name__} requires y to be passed, but the target y is None."
    )


@both
def test_targets_of_a_different_length_are_refused(Estimator, y):
    assert refusal(ValueError, Estimator().fit, X, y[:5]) == (
        "Found input variables with inconsistent numbers of samples: [12, 5]"
    )


@both
@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "inf")])
def test_the_message_names_rows_of_non_finite_targets(Estimator, y, value, kind):
    bad = y.astype(float)
    bad[[3, 7]] = value
    assert refusal(NonFiniteDataError, Estimator().fit, X, bad) == (
        f"y contains 2 {kind} values at rows 3, 7. {DROP_ROWS}"
    )
    bad = y.astype(float)
    bad[3] = value
    assert refusal(NonFiniteDataError, Estimator().fit, X, bad) == (
        f"y contains 1 {kind} value at row 3. {DROP_ROWS}"
    )


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_the_message_names_the_first_missing_label(missing):
    labels = np.array(["yes", "no"] * 6, dtype=object)
    labels[[4, 6]] = missing
    for y in (labels, labels.tolist(), pd.Series(labels)):
        assert refusal(NonFiniteDataError, classifier().fit, X, y) == (
            "y contains 2 missing labels (None, NaN or NaT), first at row 4. "
            f"{DROP_ROWS}"
        )


def test_the_message_names_rows_of_a_nullable_target():
    target = pd.Series([pd.NA, *range(11)], dtype="Int64")
    assert refusal(NonFiniteDataError, regressor().fit, X, target) == (
        f"y contains 1 NaN value at row 0. {DROP_ROWS}"
    )


def test_the_message_names_columns_of_several_targets():
    targets = np.column_stack([VALUES, VALUES])
    targets[9, 1] = np.inf
    assert refusal(NonFiniteDataError, regressor().fit, X, targets) == (
        f"y contains 1 inf value in 1 of 2 columns: 1 (1, first at row 9). {DROP_ROWS}"
    )


def test_a_target_of_three_dimensions_is_refused():
    assert refusal(ValueError, regressor().fit, X, np.ones((12, 2, 2))) == (
        "Found array with dim 3, while dim <= 2 is required by StableNetRegressor."
    )


def test_counts_beyond_float32_are_refused_if_they_are_not_standardized():
    counts = np.full(12, 1e300)
    assert refusal(
        NonFiniteDataError, regressor(criterion="poisson").fit, X, counts
    ) == (
        "y contains 12 values beyond float32 at rows 0, 1, 2, 3, 4, 5, 6, 7, .... "
        "Divide y by a constant, or use criterion='mse', which standardizes y."
    )


def test_negative_counts_are_refused():
    counts = np.arange(12.0)
    counts[[3, 5]] = -1
    assert refusal(
        NonFiniteDataError, regressor(criterion="poisson").fit, X, counts
    ) == ("criterion='poisson' needs y of at least 0, but it is -1 at row 3.")


def test_the_message_names_the_row_of_text_in_a_numeric_target():
    target = np.array(["1.5", "2", "high", "3"] * 3, dtype=object)
    assert refusal(ValueError, regressor().fit, X, target) == (
        "y contains text, first 'high' at row 2, but StableNetRegressor needs numbers. "
        "Pass numbers, or labels to StableNetClassifier."
    )


@pytest.mark.parametrize(
    ("label", "shown"), [(0.0, "0.0"), (1, "1"), ("yes", "'yes'"), (True, "True")]
)
def test_a_single_class_is_refused(label, shown):
    assert refusal(ValueError, classifier().fit, X, np.full(12, label)) == (
        "StableNetClassifier needs at least 2 classes, but y contains one class only: "
        f"[{shown}]."
    )


def test_continuous_numbers_are_not_labels():
    assert refusal(ValueError, classifier().fit, X, VALUES) == (
        "Unknown label type: continuous. Maybe you are trying to fit a classifier, "
        "which expects discrete classes on a regression target with continuous values."
    )


# -- weights -----------------------------------------------------------------------


@both
def test_invalid_sample_weights_are_refused(Estimator, y):
    fit = Estimator(max_epochs=1).fit
    ones = np.ones(12)
    assert refusal(ValueError, fit, X, y, np.ones(5)) == (
        "sample_weight must have shape (12,), one weight per row, got (5,)."
    )
    assert refusal(ValueError, fit, X, y, np.ones((12, 1))) == (
        "sample_weight must have shape (12,), one weight per row, got (12, 1)."
    )
    assert refusal(ValueError, fit, X, y, np.where(np.arange(12) == 10, -2, ones)) == (
        "sample_weight must not be negative, but is -2 at row 10."
    )
    assert refusal(ValueError, fit, X, y, np.zeros(12)) == (
        "sample_weight is zero for all rows: at least one row must count."
    )
    bad = np.where(np.arange(12) == 4, np.nan, ones)
    assert refusal(NonFiniteDataError, fit, X, y, bad) == (
        "sample_weight contains 1 NaN value at row 4. Give rows that must not count "
        "the weight 0."
    )
    assert refusal(NonFiniteDataError, fit, X, y, 1e300 * ones) == (
        "sample_weight contains 12 values beyond float32 at rows 0, 1, 2, 3, 4, 5, 6, "
        "7, .... Divide the weights by their mean: only their ratios have an effect."
    )
    fit(X, y, 1e300 * ones / (1e300 * ones).mean())


def test_weights_that_leave_one_class_are_refused():
    assert refusal(ValueError, classifier().fit, X, LABELS, LABELS) == (
        "StableNetClassifier needs at least 2 classes, but rows of positive weight "
        "have one class only: [1]."
    )


def test_invalid_class_weights_are_refused():
    for wrong in ("balance", np.ones(2), pd.NA, {0: "1"}):
        assert refusal(ValueError, classifier(class_weight=wrong).fit, X, LABELS) == (
            "The 'class_weight' parameter of StableNetClassifier must be a dict of "
            f"numbers, 'balanced' or None, got {wrong!r}."
        )


@pytest.mark.parametrize("weight", [pd.NA, "x", {0: 1.0}, {1}])
def test_objects_that_are_no_sample_weights_are_refused(weight):
    assert refusal(TypeError, classifier().fit, X, LABELS, weight) == (
        f"sample_weight must be one number per row, got {weight!r}."
    )


def test_a_sample_weight_that_is_no_number_is_named():
    weights = ["a", *range(1, 12)]
    assert refusal(ValueError, classifier().fit, X, LABELS, weights) == (
        "sample_weight contains text, first 'a' at row 0, but a weight needs numbers. "
        "Pass one number per row."
    )


@pytest.mark.parametrize("classes", [pd.NA, 2, {0, 1}, [[0, 1], [1, 0]]])
def test_classes_that_are_no_list_of_labels_are_refused(classes):
    assert refusal(ValueError, classifier().partial_fit, X, LABELS, classes) == (
        f"classes must be a list of labels, got {classes!r}."
    )


def test_balanced_classes_need_all_labels_at_once():
    model = classifier(class_weight="balanced")
    assert refusal(ValueError, model.partial_fit, X, LABELS, [0, 1]) == (
        "class_weight='balanced' needs all labels at once, but partial_fit gets them "
        "in parts. Pass the weights as a dict."
    )


# -- continued training ------------------------------------------------------------


def test_partial_fit_needs_the_classes():
    assert refusal(ValueError, classifier().partial_fit, X, LABELS) == (
        "classes must be passed on the first call to partial_fit: all labels that may "
        "occur in any call."
    )
    assert refusal(ValueError, classifier().partial_fit, X, LABELS, [1, 2]) == (
        "y contains labels that are not among the classes [1, 2]: [0]."
    )
    model = classifier().partial_fit(X, LABELS, [0, 1])
    assert refusal(ValueError, model.partial_fit, X, LABELS * 3) == (
        "y contains labels that are not among the classes [0, 1]: [3]."
    )


def test_partial_fit_refuses_classes_that_differ_from_the_first_call():
    model = classifier().partial_fit(X, LABELS, [0, 1])
    assert refusal(ValueError, model.partial_fit, X, LABELS, [0, 1, 2]) == (
        "classes=[0, 1, 2] differ from those of the first call to partial_fit, [0, 1]."
    )


def test_nan_is_not_a_class():
    assert refusal(
        NonFiniteDataError, classifier().partial_fit, X, LABELS, [0, 1, np.nan]
    ) == ("classes contains 1 NaN value at row 2. A label must be finite.")


def test_a_warm_start_refuses_different_classes():
    model = classifier(warm_start=True).fit(X, LABELS)
    assert refusal(ValueError, model.fit, X, LABELS * 2) == (
        "warm_start=True continues training with the classes of the first fit, [0, 1], "
        "but y now contains [0, 2]."
    )


def test_a_warm_start_refuses_a_different_number_of_columns():
    model = classifier(warm_start=True).fit(X, LABELS)
    assert refusal(ValueError, model.fit, X[:, :2], LABELS) == (
        "X has 2 features, but StableNetClassifier is expecting 3 features as input."
    )
    model = regressor(warm_start=True).fit(X, VALUES)
    assert refusal(ValueError, model.fit, X, X[:, :2]) == (
        "y has 2 target columns, but the first fit had 1."
    )


def test_a_refused_warm_start_does_not_change_the_model():
    model = classifier(warm_start=True).fit(X, LABELS)
    before = model.predict_proba(X)
    refusal(ValueError, model.fit, X, LABELS * 2)
    refusal(NonFiniteDataError, model.fit, damaged(np.nan), LABELS)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    np.testing.assert_array_equal(model.classes_, [0, 1])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({0: -1, 1: 1}, "class_weight must not be negative, but is for [0]."),
        (
            {0: np.nan, 1: 1},
            "class_weight contains 1 NaN value at row 0. Give each class a finite "
            "weight.",
        ),
        (
            {0: 0, 1: 1},
            "StableNetClassifier needs at least 2 classes, but rows of positive weight "
            "have one class only: [1].",
        ),
    ],
)
def test_unusable_class_weights_are_refused(weights, message):
    labels = np.arange(len(X)) % 2
    fit = classifier(class_weight=weights).fit
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is asserted
        fit(X, labels)
    assert str(caught.value) == message


def test_labels_of_several_types_are_refused():
    labels = np.array([1, "a"] * (len(X) // 2), dtype=object)
    assert refusal(ValueError, classifier().fit, X, labels) == (
        "y contains labels of several types: int, str. Convert them to one type, for "
        "example by y.astype(str)."
    )


@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        ([Decimal("1.5"), Decimal(2)], "Decimal, first 1.5"),
        (pd.Series([Decimal("1.5"), Decimal(2)]), "Decimal, first 1.5"),
        ([2**70, 3], "int, first 1180591620717411303424"),
        (pd.Series([2**64 - 1, -3]), "int, first 18446744073709551615"),
        ([2**64 - 1, -3], "float64, first 1.8446744073709552e+19"),
        ([date(2020, 1, 1), date(2020, 1, 2)], "date, first 2020-01-01"),
        (
            pd.to_datetime(["2020-01-01", "2020-01-02"]),
            "datetime64, first 2020-01-01T00",
        ),
    ],
)
def test_labels_that_are_no_classes_are_named_and_the_remedy_works(labels, shown):
    y = [label for label in labels for _ in range(6)]
    y = y if isinstance(labels, list) else type(labels)(y)
    message = refusal(ValueError, classifier().fit, X, y)
    assert message.startswith(f"Unknown label type: y contains labels of type {shown}")
    assert message.endswith(
        " at row 0. Labels must be text, or booleans or integers of at most 64 bits: "
        "convert them, for example by [str(label) for label in y]."
    )
    classes = classifier().fit(X, [str(label) for label in y]).classes_
    assert set(classes) == set(map(str, labels))


@pytest.mark.parametrize("labels", [(2, 1), (True, False)])
def test_numbers_among_objects_are_refused_and_the_remedy_works(labels):
    y = np.array(labels * (len(X) // 2), dtype=object)
    assert refusal(ValueError, classifier().fit, X, y) == (
        f"Unknown label type: y contains labels of type {type(labels[0]).__name__} in "
        f"an array of objects, first {labels[0]} at row 0. Labels must be text, or "
        "booleans or integers of at most 64 bits: convert them, for example by "
        "pandas.Series(y).infer_objects()."
    )
    net = classifier().fit(X, pd.Series(y).infer_objects())
    assert net.classes_.tolist() == sorted(labels)
