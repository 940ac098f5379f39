"""Fault injection on our estimators, on those of others, and on broken ones."""

from __future__ import annotations

import importlib.util
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    OneToOneFeatureMixin,
    RegressorMixin,
    TransformerMixin,
    clone,
    is_regressor,
)
from sklearn.exceptions import EstimatorCheckFailedWarning, NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multioutput import MultiOutputRegressor
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from sknan import NaNImputer, SafeScaler, StableNetClassifier, StableNetRegressor
from sknan.testing import (
    check_finite_estimator,
    finite_estimator_checks,
    parametrize_with_finite_checks,
)
from sknan.testing._cases import Case, healthy_table
from sknan.testing._learned_arrays import learned_arrays
from sknan.testing._refusals import CONSTANT, MISSING, TOO_LARGE, names_fault
from sknan.testing._registry import ALL_CHECKS, applicable_checks, fault_check

ROOT = Path(__file__).resolve().parents[2]


@parametrize_with_finite_checks(
    [
        NaNImputer(),
        SafeScaler(),
        StableNetClassifier(),
        StableNetRegressor(),
        make_pipeline(NaNImputer(), SafeScaler()),
        make_pipeline(NaNImputer(), SafeScaler(), StableNetClassifier()),
        make_pipeline(NaNImputer(), SafeScaler(), StableNetRegressor()),
    ]
)
def test_our_estimators_refuse_a_fault_by_name_or_stay_finite(estimator, check):
    assert check(estimator) in ("finite", "refused")


# -- what the page says ---------------------------------------------------------------


def tables_of_the_page():
    """Return the counts of docs/fault_injection.md, and the failures by estimator."""
    text = (ROOT / "docs" / "fault_injection.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    _, *kinds = next(row for row in rows if row[0] == "check")
    counts = {row[0]: row[1] for row in rows if re.fullmatch(r"\d+ of \d+", row[1])}
    failures = {estimator: {} for estimator in counts}
    for check, *cells in rows:
        for kind, cell in zip(kinds, cells, strict=False):
            if check.startswith("`") and cell:
                for estimator in re.split(r", (?!classifier|regressor)", cell):
                    failures[estimator]["check_" + check.strip("`")] = kind
    return counts, failures


@pytest.fixture(scope="module")
def benchmark():
    path = ROOT / "benchmarks" / "fault_injection.py"
    spec = importlib.util.spec_from_file_location("fault_injection", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COUNTS, FAILURES = tables_of_the_page()


def test_the_page_counts_its_failures(benchmark):
    candidates = benchmark.candidates()
    assert list(COUNTS) == list(candidates)
    for name, estimator in candidates.items():
        n_checks = len(list(finite_estimator_checks(estimator)))
        assert COUNTS[name] == f"{len(FAILURES[name])} of {n_checks}"


@pytest.mark.parametrize("name", [name for name in FAILURES if FAILURES[name]])
def test_the_failures_on_the_page_are_found(benchmark, name):
    expected = FAILURES[name]
    estimator = benchmark.candidates()[name]
    found = {}
    for _, check in finite_estimator_checks(estimator):
        if check.func.__name__ in expected:
            with pytest.raises(AssertionError) as caught:
                check(estimator)
            found[check.func.__name__] = caught.value.kind
    assert found == expected


def test_the_message_that_the_page_shows_is_what_is_printed():
    text = (ROOT / "docs" / "fault_injection.md").read_text(encoding="utf-8")
    shown = re.search("^```text\n(.*?)\n^```", text, re.M | re.S).group(1)
    results = check_finite_estimator(Ridge(), on_fail=None)
    failed = [r["exception"] for r in results if r["status"] == "failed"]
    assert str(failed[0]) == shown


def test_the_benchmark_prints_the_lines_of_the_page(benchmark):
    found = {
        name: benchmark.failures_of(estimator)
        for name, estimator in benchmark.candidates().items()
        if name in ("SafeScaler", "RobustScaler")
    }
    assert benchmark.as_rows(found) == [
        "| estimator | failed |",
        "| --- | --- |",
        "| SafeScaler | 0 of 28 |",
        "| RobustScaler | 1 of 28 |",
        "",
        "| check | silent NaN | wrong | error |",
        "| --- | --- | --- | --- |",
        "| `nonfinite_missing_column` | RobustScaler |  |  |",
    ]


# -- broken in one way each -----------------------------------------------------------


class Nearest(ClassifierMixin, BaseEstimator):
    """Nearest-mean classifier that replaces NaN by 0, and so passes every NaN check."""

    def fit(self, X, y):
        X_in = self._numbers(X, reset=True)
        self.classes_ = np.unique(y)
        self.means_ = np.array([X_in[y == label].mean(axis=0) for label in (0, 1)])
        return self

    def _numbers(self, X, reset=False):
        X_in = validate_data(self, X, reset=reset, ensure_all_finite=False, dtype=float)
        return np.clip(np.nan_to_num(X_in), -5, 5)

    def predict_proba(self, X):
        check_is_fitted(self)
        X_in = self._numbers(X)
        gap = ((X_in[:, None] - self.means_) ** 2).sum(axis=2)
        first = 1 / (1 + np.exp(np.clip(gap[:, 0] - gap[:, 1], -50, 50)))
        return np.column_stack([first, 1 - first])

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class Forgets(Nearest):
    """Classifier with NaN probabilities for NaN input; argmax makes them class 0."""

    def predict_proba(self, X):
        proba = super().predict_proba(X)
        proba[np.isnan(np.asarray(X)).any(axis=1)] = np.nan
        return proba


class Leaks(Nearest):
    def fit(self, X, y):
        super().fit(X, y)
        self.report_ = {"spread": [np.asarray(X).std(axis=0)]}
        return self


class Stumbles(Nearest):
    def fit(self, X, y):
        if np.isnan(np.asarray(X)).any():
            raise IndexError("list index out of range")
        return super().fit(X, y)


class Mumbles(Nearest):
    def fit(self, X, y):
        if np.isnan(np.asarray(X)).any():
            raise ValueError("Something is off.")
        return super().fit(X, y)


class GivesUp(Nearest):
    def fit(self, X, y):
        super().fit(X, y)
        if np.isnan(np.asarray(X)).any():
            self.means_[:] = 0
        return self


class LooksAround(Nearest):
    """Classifier whose output for a row depends on the mean of the other rows."""

    def predict_proba(self, X):
        X_in = np.asarray(X, dtype=float)
        return super().predict_proba(X_in - X_in.mean(axis=0))


class Unsure(Nearest):
    def predict_proba(self, X):
        return super().predict_proba(X) * 0.75


class Invents(Nearest):
    def predict(self, X):
        return np.where(np.isnan(np.asarray(X)).any(axis=1), -1, super().predict(X))


class Skips(Nearest):
    def predict(self, X):
        return super().predict(X)[~np.isnan(np.asarray(X)).any(axis=1)]


class OneColumn(Nearest):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, 1:]


class Fussy(Nearest):
    def fit(self, X, y):
        if np.asarray(X).dtype == np.float32:
            raise TypeError("expected Double but found Float")
        return super().fit(X, y)


class FussyLater(Nearest):
    def predict_proba(self, X):
        if len(X) < 2:
            raise ValueError("Expected more than 1 row.")
        return super().predict_proba(X)


class Rounds(RegressorMixin, Nearest):
    predict_proba = None

    def fit(self, X, y):
        self.model_ = Ridge().fit(self._numbers(X, reset=True), y)
        return self

    def predict(self, X):
        return self.model_.predict(self._numbers(X)).astype(int)


class PassesOn(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Transformer that returns its input, including NaN, as its tags declare."""

    def fit(self, X, y=None):
        validate_data(self, X, ensure_all_finite=False)
        return self

    def transform(self, X):
        return validate_data(self, X, reset=False, ensure_all_finite=False)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class SpreadsIt(PassesOn):
    """Transformer that turns a row with one missing value into NaN."""

    def transform(self, X):
        X_in = super().transform(X)
        return X_in + 0 * X_in.sum(axis=1, keepdims=True)


class Flattens(PassesOn):
    """Transformer that divides by the range without protection."""

    def fit(self, X, y=None):
        super().fit(X)
        self.range_ = np.nanmax(np.clip(np.abs(X), 0, 1e300), axis=0)
        return self

    def transform(self, X):
        X_in = super().transform(X)
        return np.where(self.range_ > 1e100, 0.0, X_in)


def message_of(estimator, name):
    """Return kind and message of the failed check with this name."""
    for _, check in finite_estimator_checks(estimator):
        if check.func.__name__ == name:
            with pytest.raises(AssertionError) as caught:
                check(estimator)
            return caught.value.kind, str(caught.value)
    raise LookupError(name)


NAN_CELLS = "X with NaN in 3 cells, first at row 5, column 1"
SAY_NAN = "names the fault ('NaN' or 'missing' or 'null'), or stay finite."


def test_a_nan_that_predict_turns_into_a_class_is_found():
    assert message_of(Forgets(), "check_nonfinite_nan_cells_at_predict") == (
        "silent NaN",
        "Forgets.predict_proba, fitted on healthy data, gives 6 NaN values of 96 for "
        f"{NAN_CELLS}, first at row 5 of the output, which predict calls 0. Refuse "
        f"such input with a ValueError that {SAY_NAN}",
    )


def test_a_nan_in_a_fitted_attribute_is_found_although_outputs_are_finite():
    assert message_of(Leaks(), "check_nonfinite_nan_cells_at_fit") == (
        "silent NaN",
        f"Leaks, fitted on {NAN_CELLS}, contains 2 NaN values of 4 in "
        f"report_.spread.0. Refuse such input with a ValueError that {SAY_NAN}",
    )


def test_an_unrelated_exception_is_not_a_refusal():
    assert message_of(Stumbles(), "check_nonfinite_nan_cells_at_fit") == (
        "error",
        f"Stumbles.fit, given {NAN_CELLS}, raised IndexError: list index out of range. "
        "Name the fault in a ValueError ('NaN' or 'missing' or 'null'), or fit a "
        "finite model.",
    )


def test_an_error_that_does_not_name_the_fault_is_not_a_refusal():
    assert message_of(Mumbles(), "check_nonfinite_nan_in_dataframe") == (
        "error",
        "Mumbles.fit, given a DataFrame with NaN in 3 cells, first at row 5, column 1, "
        "raised ValueError: Something is off. Name the fault in a ValueError ('NaN' or "
        "'missing' or 'null'), or fit a finite model.",
    )


def test_a_silent_collapse_to_a_constant_is_found():
    assert message_of(GivesUp(), "check_nonfinite_nan_cells_at_fit") == (
        "wrong",
        f"GivesUp, fitted on {NAN_CELLS}, reaches accuracy 0.5 on healthy rows; "
        "without the fault it is 0.958, for a constant prediction 0.5. Refuse such "
        "input, or keep at least half of the gain over the constant: 0.729.",
    )


def test_an_output_that_depends_on_other_rows_is_found():
    assert message_of(LooksAround(), "check_extreme_float32_overflow_at_predict") == (
        "wrong",
        "LooksAround.predict, fitted on healthy data, returns another output for 23 "
        "rows without a fault, first row 0, because of X with 1e200 in 3 cells, first "
        "at row 5, column 1. The output for a row must not depend on other rows.",
    )


def test_probabilities_that_do_not_sum_to_one_are_found():
    kind, message = message_of(Unsure(), "check_extreme_float64_input")
    assert kind == "wrong"
    assert re.sub(r"\[[-\d.e, ]{8,}\]", "[...]", message) == (
        "Unsure.predict_proba, fitted on a healthy table of float64, gives [...] at "
        "row 0 of healthy rows. Probabilities lie in [0, 1] and sum to 1."
    )


def test_an_unknown_label_is_found():
    assert message_of(Invents(), "check_nonfinite_nan_cells_at_predict") == (
        "wrong",
        f"Invents.predict, fitted on healthy data, gives -1 for {NAN_CELLS}, which is "
        "not a class of y. Predict labels of y.",
    )


def test_missing_output_rows_are_found():
    assert message_of(Skips(), "check_nonfinite_nan_cells_at_predict") == (
        "wrong",
        f"Skips.predict, fitted on healthy data, gives 45 rows for 48 rows: "
        f"{NAN_CELLS}.",
    )


def test_a_missing_column_of_probabilities_is_found():
    assert message_of(OneColumn(), "check_extreme_float64_input") == (
        "wrong",
        "OneColumn.predict_proba, fitted on a healthy table of float64, gives shape "
        "(48, 1) for healthy rows, but y has 2 classes. Give a column per class.",
    )


def test_valid_input_must_be_accepted_in_fit():
    assert message_of(Fussy(), "check_extreme_float32_input") == (
        "error",
        "Fussy.fit, given a healthy table of float32, raised TypeError: expected "
        "Double but found Float. Such input is valid: accept it.",
    )


def test_valid_input_must_be_accepted_in_predict():
    assert message_of(FussyLater(), "check_extreme_single_row_at_predict") == (
        "error",
        "FussyLater.predict, fitted on healthy data, and given X with a single row, "
        "raised ValueError: Expected more than 1 row. Such input is valid: accept it.",
    )


def test_a_regressor_that_predicts_integers_is_found():
    assert message_of(Rounds(), "check_extreme_float64_input") == (
        "wrong",
        "Rounds.predict, fitted on a healthy table of float64, gives dtype int64 for "
        "healthy rows. Predict floats.",
    )


def test_a_transformer_may_propagate_nan_but_not_spread_it():
    assert message_of(SpreadsIt(), "check_nonfinite_nan_cells_at_predict") == (
        "silent NaN",
        "SpreadsIt.transform, fitted on healthy data, gives 9 NaN values of 192 "
        f"for {NAN_CELLS}, first at row 5 of the output. Refuse such input with a "
        f"ValueError that {SAY_NAN}",
    )
    passed = [
        check(PassesOn())
        for _, check in finite_estimator_checks(PassesOn())
        if "nan_cells" in check.func.__name__
    ]
    assert passed == ["finite", "finite"]


def test_a_transformer_that_makes_a_column_constant_is_found():
    assert message_of(Flattens(), "check_extreme_float32_overflow_at_fit") == (
        "wrong",
        "Flattens.transform, fitted on X with 1e200 in 3 cells, first at row 5, column "
        "1, gives 2 columns that vary among healthy rows; without the fault it gives "
        "4. Refuse such input, or keep healthy rows distinct.",
    )


def test_a_correct_estimator_passes():
    # It was written for two classes, and says so of one only by an IndexError.
    expected = dict.fromkeys(
        ("check_extreme_one_class", "check_extreme_single_row_at_fit"), "two classes"
    )
    model = make_pipeline(NaNImputer(), Nearest())
    results = check_finite_estimator(model, expected_failed_checks=expected)
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)


# -- words ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words", "is_named"),
    [
        ("Input X contains NaN.", MISSING, True),
        ("X contains 3 NaNs", MISSING, True),
        ("NONFINITE loss", MISSING, True),
        ("nanosecond clock failed", MISSING, False),
        ("array must not contain infs or NaNs", TOO_LARGE, False),
        ("a value too large for dtype('float32')", TOO_LARGE, True),
        ("needs n_samples=2", ("sample",), True),
        ("anything", (), False),
    ],
)
def test_a_fault_is_named_by_whole_words(message, words, is_named):
    assert names_fault(message, words) is is_named


# -- what is walked -------------------------------------------------------------------


def test_learned_arrays_are_found_in_steps_dicts_and_modules():
    model = make_pipeline(StandardScaler(), StableNetClassifier(max_epochs=1))
    table = healthy_table(model)
    paths = {path for path, _ in learned_arrays(model.fit(table.X, table.y))}
    assert "standardscaler.mean_" in paths
    assert "stablenetclassifier.effective_lr_" in paths
    assert any("net_.module_." in path and "weight" in path for path in paths)


def test_infinite_edges_of_bins_are_not_a_fault():
    bins = KBinsDiscretizer(quantile_method="averaged_inverted_cdf")
    passed = {
        check.func.__name__: check(bins)
        for _, check in finite_estimator_checks(bins)
        if check.func.__name__ == "check_extreme_constant_column"
    }
    assert passed == {"check_extreme_constant_column": "finite"}


# -- the functions --------------------------------------------------------------------

FAILS = {"check_nonfinite_nan_cells_at_fit", "check_nonfinite_missing_column"}
FAILS |= {"check_nonfinite_nan_in_dataframe"}


class Poor(PassesOn):
    """Estimator that fails three checks quickly."""

    def fit(self, X, y=None):
        super().fit(X)
        self.mean_ = float(np.asarray(X, dtype=np.float64).clip(-9, 9).mean())
        return self


def test_the_results_are_those_of_check_estimator():
    ours = check_finite_estimator(Poor(), on_fail=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = check_estimator(SafeScaler(), on_fail=None)
    assert {tuple(result) for result in ours} == {tuple(theirs[0])}
    assert {r["check_name"] for r in ours if r["status"] == "failed"} == FAILS
    assert {r["status"] for r in ours} == {"passed", "failed"}
    reasons = {r["expected_to_fail_reason"] for r in (*ours, theirs[0])}
    assert reasons == {"Check is not expected to fail"}


def test_the_first_failure_is_raised():
    with pytest.raises(AssertionError) as caught:
        check_finite_estimator(Poor())
    assert str(caught.value) == (
        f"Poor, fitted on {NAN_CELLS}, contains 1 NaN value of 1 in mean_. Refuse "
        f"such input with a ValueError that {SAY_NAN}"
    )


def test_failures_can_be_warnings():
    with pytest.warns(EstimatorCheckFailedWarning) as caught:
        check_finite_estimator(Poor(), on_fail="warn")
    assert {warning.message.check_name for warning in caught} == FAILS


def test_the_callback_receives_each_result():
    seen = []
    results = check_finite_estimator(
        Poor(), on_fail=None, callback=lambda **result: seen.append(result)
    )
    assert seen == results


def test_expected_failures_have_a_status_of_their_own():
    expected = dict.fromkeys(FAILS, "its mean is NaN")
    results = check_finite_estimator(Poor(), expected_failed_checks=expected)
    failed = [r for r in results if r["status"] == "xfail"]
    assert {r["check_name"] for r in failed} == FAILS
    assert {r["expected_to_fail_reason"] for r in failed} == {"its mean is NaN"}
    assert {r["status"] for r in results} == {"passed", "xfail"}


def test_the_decorator_marks_expected_failures():
    mark = parametrize_with_finite_checks(
        [Poor(), SafeScaler()],
        expected_failed_checks=lambda e: dict.fromkeys(
            FAILS if isinstance(e, Poor) else (), "its mean is NaN"
        ),
        xfail_strict=True,
    ).mark
    names, cases = mark.args
    assert names == ("estimator", "check")
    assert cases[0].id == "Poor()-check_extreme_float64_input"
    assert cases[-1].id == "SafeScaler()-check_extreme_single_row_at_predict"
    marked = [case for case in cases if case.marks]
    assert {case.values[1].func.__name__ for case in marked} == FAILS
    assert {case.marks[0].kwargs["reason"] for case in marked} == {"its mean is NaN"}
    assert all(case.marks[0].kwargs["strict"] for case in marked)


def names_for(estimator):
    return {check.func.__name__ for _, check in finite_estimator_checks(estimator)}


def test_a_new_fault_check_is_one_decorated_function():
    @fault_check(is_regressor)
    def check_extreme_zero_targets(estimator):
        table = healthy_table(estimator)
        return Case("y of 0 only", CONSTANT, replace(table, y=np.zeros_like(table.y)))

    try:
        results = check_finite_estimator(Ridge(), on_fail=None)
        assert results[-1]["check_name"] == "check_extreme_zero_targets"
        assert results[-1]["status"] == "passed"
        assert check_extreme_zero_targets not in applicable_checks(SafeScaler())
    finally:
        del ALL_CHECKS[check_extreme_zero_targets]


def test_each_kind_of_estimator_gets_the_checks_that_apply():
    everybody = names_for(SafeScaler())
    assert len(everybody) == 28
    classifier = names_for(LogisticRegression())
    assert {n for n in classifier - everybody if "weight" not in n} == {
        "check_extreme_one_class",
        "check_extreme_one_row_per_class",
    }
    assert "check_nonfinite_nan_targets" in names_for(Ridge()) - classifier
    rated = names_for(make_pipeline(SafeScaler(), StableNetClassifier()))
    assert rated - classifier == {
        "check_extreme_learning_rate_of_1e4",
        "check_extreme_learning_rate_of_1e30",
    }
    # Counts cannot be negative.
    assert "check_nonfinite_negative_inf_cells_at_fit" not in names_for(MultinomialNB())


def test_targets_are_columns_where_the_tags_demand_it():
    several = MultiOutputRegressor(Ridge())
    for _, check in finite_estimator_checks(several):
        if check.func.__name__ == "check_extreme_float64_input":
            assert check(several) == "finite"


def test_the_estimator_stays_unfitted_and_generators_are_restored():
    model = StableNetClassifier(max_epochs=2)
    before = repr(model)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    _, check = next(iter(finite_estimator_checks(clone(model))))
    check(model)
    assert torch.equal(torch.rand(1), expected)
    assert repr(model) == before
    with pytest.raises(NotFittedError):
        check_is_fitted(model)


# -- what is refused ------------------------------------------------------------------


def test_a_class_is_refused():
    with pytest.raises(TypeError) as caught:
        check_finite_estimator(SafeScaler)
    assert str(caught.value) == (
        "Expected an instance of an estimator, got the class SafeScaler. Pass "
        "SafeScaler()."
    )


def test_an_estimator_without_numeric_tables_is_refused():
    class ForText(PassesOn):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = False
            return tags

    with pytest.raises(ValueError, match="two_d_array") as caught:
        check_finite_estimator(ForText())
    assert str(caught.value) == (
        "ForText does not accept numeric tables (its tag input_tags.two_d_array is "
        "False), but the faults are cells of such a table."
    )


def test_an_unknown_check_is_refused():
    with pytest.raises(ValueError, match="not a check") as caught:
        check_finite_estimator(
            SafeScaler(), expected_failed_checks={"check_extreme_huge_weight": "why"}
        )
    assert str(caught.value) == (
        "expected_failed_checks contains 'check_extreme_huge_weight', which is not a "
        "check. Did you mean 'check_extreme_huge_weights'?"
    )


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="on_fail") as caught:
        check_finite_estimator(SafeScaler(), on_fail="stop")
    assert str(caught.value) == (
        "The 'on_fail' parameter must be 'raise', 'warn' or None, got 'stop'."
    )


def test_a_callback_cannot_be_combined_with_raise():
    with pytest.raises(ValueError, match="callback") as caught:
        check_finite_estimator(SafeScaler(), callback=print)
    assert str(caught.value) == (
        "callback cannot be provided together with on_fail='raise'. Pass "
        "on_fail='warn' or None."
    )
