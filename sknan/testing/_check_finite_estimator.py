"""Fault injection for any scikit-learn estimator."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

from sklearn.exceptions import EstimatorCheckFailedWarning
from sklearn.utils import get_tags

from sknan._utils.outside import is_of_signal, unless
from sknan._utils.validation import did_you_mean
from sknan.testing import _checks_of_tables, _checks_of_training
from sknan.testing._registry import ALL_CHECKS, applicable_checks

_NOT_EXPECTED = "Check is not expected to fail"

# These modules register their checks when they are imported.
_CHECK_MODULES = (_checks_of_tables, _checks_of_training)


def finite_estimator_checks(
    estimator: Any,
) -> Iterator[tuple[Any, partial[str]]]:
    """Yield the estimator with each check that applies to it, one for each fault.

    Parameters
    ----------
    estimator : estimator object
        Classifier, regressor, transformer or pipeline with the interface of
        scikit-learn. Each check clones it; it is never fitted itself.

    Yields
    ------
    estimator : estimator object
        The given estimator.
    check : functools.partial
        Called with the estimator, it returns ``"finite"`` or ``"refused"``, or raises
        an ``AssertionError`` whose ``kind`` is ``"silent NaN"``, ``"wrong"`` or
        ``"error"``. The name of the check is ``check.func.__name__``.

    Raises
    ------
    TypeError
        If a class is given instead of an instance.
    ValueError
        If the estimator does not accept numeric tables.

    See Also
    --------
    check_finite_estimator : Run all checks. Its notes state the contract.
    """
    if isinstance(estimator, type):
        raise TypeError(
            f"Expected an instance of an estimator, got the class "
            f"{estimator.__name__}. Pass {estimator.__name__}()."
        )
    name = type(estimator).__name__
    if not get_tags(estimator).input_tags.two_d_array:
        raise ValueError(
            f"{name} does not accept numeric tables (its tag input_tags.two_d_array is "
            "False), but the faults are cells of such a table."
        )
    for check in applicable_checks(estimator):
        yield estimator, partial(check, name)


def check_finite_estimator(
    estimator: Any,
    *,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    callback: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Check that no fault in the data makes an estimator return NaN.

    Each check injects one fault into healthy data. The parameters and results are those
    of :func:`sklearn.utils.estimator_checks.check_estimator`, which checks the
    interface of an estimator instead of its numbers.

    Parameters
    ----------
    estimator : estimator object
        Classifier, regressor, transformer or pipeline with the interface of
        scikit-learn. Each check clones it; it is never fitted itself.

    expected_failed_checks : dict of str to str or None, default=None
        Reason for each check that may fail, by the name of the check.

    on_fail : {"raise", "warn"} or None, default="raise"
        Reaction to a failed check: raise its ``AssertionError``; give an
        :class:`~sklearn.exceptions.EstimatorCheckFailedWarning` and continue; or, for
        None, only record it in the results.

    callback : callable or None, default=None
        Function that is called after each check with the entries of its result as
        keyword arguments. It cannot be combined with ``on_fail="raise"``.

    Returns
    -------
    list of dict
        One result per check, with the keys ``estimator``, ``check_name``,
        ``exception``, ``status`` (``"passed"``, ``"failed"`` or ``"xfail"``),
        ``expected_to_fail`` and ``expected_to_fail_reason``.

    Raises
    ------
    AssertionError
        If a check fails and ``on_fail="raise"``. The message says what was found,
        where, and what should happen.
    TypeError
        If a class is given instead of an instance.
    ValueError
        If a parameter is invalid, a check in ``expected_failed_checks`` does not exist,
        or the estimator does not accept numeric tables.

    See Also
    --------
    parametrize_with_finite_checks : Run each check as a pytest test.

    Notes
    -----
    A check passes in one of two ways.

    *Refused*: ``fit``, or the called method, raises a ``ValueError``, ``TypeError`` or
    ``ArithmeticError`` whose message names the fault, for example "NaN" or "missing"
    for a missing value, "too large", "overflow" or "finite" for a finite number that is
    too large, and "samples" or "classes" if there are too few. Any other exception
    fails the check.

    *Finite*: the following must hold.

    - Every number in a fitted attribute is finite, including the weights of torch
      modules, unless it is not finite on healthy data either.
    - Every output is finite, for healthy rows and for rows with a fault. A transformer
      whose tags allow NaN may propagate non-finite values: its output must be finite
      where its input is.
    - Probabilities are in [0, 1] and sum to 1. Labels are labels of ``y``.
    - The output for a row without a fault does not depend on faults in other rows.
    - After a fault in a few cells, a column without information, targets of another
      magnitude or an absurd learning rate, an estimator keeps at least half of its
      gain over a constant prediction on healthy rows. A transformer still
      distinguishes healthy rows in every column.

    The checks set random states to 0 and ignore warnings.

    Examples
    --------
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sknan import SafeScaler
    >>> from sknan.testing import check_finite_estimator
    >>> {result["status"] for result in check_finite_estimator(SafeScaler())}
    {'passed'}
    >>> for result in check_finite_estimator(StandardScaler(), on_fail=None):
    ...     if result["status"] == "failed":
    ...         print(result["check_name"])
    check_extreme_float32_overflow_at_fit
    check_extreme_largest_float32_at_fit
    check_extreme_largest_float64_at_fit
    check_nonfinite_missing_column
    check_extreme_huge_weights
    check_extreme_unequal_weights
    """
    if on_fail not in ("raise", "warn", None):
        raise ValueError(
            f"The 'on_fail' parameter must be 'raise', 'warn' or None, got {on_fail!r}."
        )
    if on_fail == "raise" and callback is not None:
        raise ValueError(
            "callback cannot be provided together with on_fail='raise'. Pass "
            "on_fail='warn' or None."
        )
    reasons = _expected(expected_failed_checks)
    results = []
    for _, check in finite_estimator_checks(estimator):
        name = check.func.__name__
        exception: Exception | None = None
        status = "passed"
        try:
            check(estimator)
        except unless(is_of_signal, Exception) as error:
            if on_fail == "raise" and name not in reasons:
                raise
            exception = error
            status = "xfail" if name in reasons else "failed"
        result = {
            "estimator": estimator,
            "check_name": name,
            "exception": exception,
            "status": status,
            "expected_to_fail": name in reasons,
            "expected_to_fail_reason": reasons.get(name, _NOT_EXPECTED),
        }
        if exception is not None and on_fail == "warn":
            warnings.warn(EstimatorCheckFailedWarning(**result), stacklevel=2)
        results.append(result)
        if callback is not None:
            callback(**result)
    return results


def parametrize_with_finite_checks(
    estimators: Iterable[Any],
    *,
    expected_failed_checks: Callable[[Any], Mapping[str, str]] | None = None,
    xfail_strict: bool | None = None,
) -> Any:
    """Parametrize a pytest test with each estimator and each of its checks.

    Parameters
    ----------
    estimators : iterable of estimator objects
        Estimators to check.

    expected_failed_checks : callable or None, default=None
        Function that returns, for an estimator, the reason for each check that may
        fail, by the name of the check. These tests are marked as xfail.

    xfail_strict : bool or None, default=None
        Whether a check that passes although it was expected to fail is a failure. None
        uses the configuration of pytest.

    Returns
    -------
    pytest.MarkDecorator
        Decorator of a test with the arguments ``estimator`` and ``check``.

    See Also
    --------
    check_finite_estimator : Run all checks. Its notes state the contract.

    Examples
    --------
    >>> from sknan import SafeScaler
    >>> from sknan.testing import parametrize_with_finite_checks
    >>> @parametrize_with_finite_checks([SafeScaler()])
    ... def test_it_never_answers_nan(estimator, check):
    ...     check(estimator)
    """
    import pytest

    strict: dict[str, Any] = {} if xfail_strict is None else {"strict": xfail_strict}
    cases = []
    for checked in estimators:
        reasons = _expected(expected_failed_checks and expected_failed_checks(checked))
        for estimator, check in finite_estimator_checks(checked):
            name = check.func.__name__
            marks = (
                [pytest.mark.xfail(reason=reasons[name], **strict)]
                if name in reasons
                else []
            )
            label = re.sub(r"\s", "", f"{estimator!r}-{name}")
            cases.append(pytest.param(estimator, check, marks=marks, id=label))
    return pytest.mark.parametrize(("estimator", "check"), cases)


def _expected(checks: Mapping[str, str] | None) -> dict[str, str]:
    known = {check.__name__ for check in ALL_CHECKS}
    for name in checks or {}:
        if name not in known:
            raise ValueError(
                f"expected_failed_checks contains {name!r}, which is not a check."
                f"{did_you_mean(name, sorted(known))}"
            )
    return dict(checks or {})
