"""Fault injection for any scikit-learn estimator: it must never answer NaN."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

from sklearn.exceptions import EstimatorCheckFailedWarning
from sklearn.utils import get_tags

from sknan._utils.validation import did_you_mean
from sknan.testing._registry import ALL_CHECKS, applicable_checks

__all__ = [
    "check_finite_estimator",
    "finite_estimator_checks",
    "parametrize_with_finite_checks",
]

_NOT_EXPECTED = "Check is not expected to fail"


def finite_estimator_checks(
    estimator: Any,
) -> Iterator[tuple[Any, Callable[[Any], str]]]:
    """Pairs of the estimator and a check of it, one per fault.

    Parameters
    ----------
    estimator : estimator object
        A classifier, regressor or transformer of scikit-learn's kind, or a pipeline of
        them. It is cloned by each check, never fitted itself.

    Yields
    ------
    estimator : estimator object
        As given.
    check : functools.partial
        Called with the estimator, it returns ``"finite"`` or ``"refused"``, or raises
        an ``AssertionError`` whose ``kind`` is ``"silent NaN"``, ``"wrong"`` or
        ``"error"``. Its name is that of ``check.func``.

    Raises
    ------
    TypeError
        If a class is given instead of an instance.
    ValueError
        If the estimator does not take tables of numbers.

    See Also
    --------
    check_finite_estimator : Runs them all, and states the contract.
    """
    if isinstance(estimator, type):
        raise TypeError(
            f"Expected an instance of an estimator, got the class "
            f"{estimator.__name__}. Pass {estimator.__name__}()."
        )
    name = type(estimator).__name__
    if not get_tags(estimator).input_tags.two_d_array:
        raise ValueError(
            f"{name} takes no tables of numbers (its tag input_tags.two_d_array is "
            "False), and the faults are cells of one."
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
    """Put one fault after another into healthy data and see that none becomes NaN.

    What :func:`sklearn.utils.estimator_checks.check_estimator` does for the interface
    of an estimator, for its numbers, with the same parameters and results.

    Parameters
    ----------
    estimator : estimator object
        A classifier, regressor or transformer of scikit-learn's kind, or a pipeline of
        them. It is cloned by each check, never fitted itself.

    expected_failed_checks : dict of str to str or None, default=None
        Names of checks that may fail, each with the reason.

    on_fail : {"raise", "warn"} or None, default="raise"
        What the first failed check leads to: its ``AssertionError``; an
        :class:`~sklearn.exceptions.EstimatorCheckFailedWarning`, and the next check; or
        only an entry in the results.

    callback : callable or None, default=None
        Called after each check with the keys of its result as keywords. Not together
        with ``on_fail="raise"``.

    Returns
    -------
    list of dict
        One per check, with the keys ``estimator``, ``check_name``, ``exception``,
        ``status`` (``"passed"``, ``"failed"`` or ``"xfail"``), ``expected_to_fail`` and
        ``expected_to_fail_reason``.

    Raises
    ------
    AssertionError
        With ``on_fail="raise"``: what was found, where, and what should happen.
    TypeError
        If a class is given instead of an instance.
    ValueError
        If a parameter is wrong, a check in ``expected_failed_checks`` does not exist,
        or the estimator does not take tables of numbers.

    See Also
    --------
    parametrize_with_finite_checks : The same as one pytest test per check.

    Notes
    -----
    A check passes in one of two ways.

    *Refused*: ``fit``, or the method that is asked, raises a ``ValueError``,
    ``TypeError`` or ``ArithmeticError`` whose message names the fault: NaN or missing
    for a missing cell, too large or overflow or finite for a finite number that is too
    large, samples or classes where there are too few, and so on. Any other exception
    fails.

    *Finite*: every number behind an attribute that ends in ``_`` is finite, those of
    torch modules included, unless it is not finite on healthy data either; so is every
    output on healthy rows and on the faulty ones. Probabilities lie in [0, 1] and sum
    to 1, labels are labels of ``y``, and the answer for a whole row does not depend on
    a fault in another. A transformer whose tags allow NaN may pass on what is not
    finite: its output must be finite where its input is. After a fault in a few cells,
    a column that says nothing, targets of another magnitude or an absurd learning rate,
    at least half of what the estimator gains on healthy rows over a constant answer
    must remain; a transformer must still tell healthy rows apart in every column.

    Random states are set to 0, and warnings are ignored during the checks.

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
    check_nonfinite_missing_column
    check_extreme_float32_overflow_at_fit
    check_extreme_largest_float32_at_fit
    check_extreme_largest_float64_at_fit
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
        name = _name_of(check)
        exception: Exception | None = None
        status = "passed"
        try:
            check(estimator)
        except Exception as error:
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
    """Decorator of a pytest test: one test per estimator and fault.

    Parameters
    ----------
    estimators : iterable of estimator objects
        The estimators to check.

    expected_failed_checks : callable or None, default=None
        Called with an estimator, it returns a dict of the checks that may fail, each
        with the reason; those tests are marked as xfail.

    xfail_strict : bool or None, default=None
        Whether a check that was expected to fail and passes is a failure; None leaves
        it to the configuration of pytest.

    Returns
    -------
    pytest.MarkDecorator
        For a test with the arguments ``estimator`` and ``check``.

    See Also
    --------
    check_finite_estimator : States the contract.

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
    for given in estimators:
        reasons = _expected(expected_failed_checks and expected_failed_checks(given))
        for estimator, check in finite_estimator_checks(given):
            name = _name_of(check)
            marks = (
                [pytest.mark.xfail(reason=reasons[name], **strict)]
                if name in reasons
                else []
            )
            label = re.sub(r"\s", "", f"{estimator!r}-{name}")
            cases.append(pytest.param(estimator, check, marks=marks, id=label))
    return pytest.mark.parametrize(("estimator", "check"), cases)


def _name_of(check: Any) -> str:
    return str(check.func.__name__)


def _expected(checks: Mapping[str, str] | None) -> dict[str, str]:
    known = {check.__name__ for check in ALL_CHECKS}
    for name in checks or {}:
        if name not in known:
            raise ValueError(
                f"expected_failed_checks holds {name!r}, which is no check."
                f"{did_you_mean(name, sorted(known))}"
            )
    return dict(checks or {})
