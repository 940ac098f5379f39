"""Tests of the errors and warnings."""

from __future__ import annotations

import copy
import pickle

import pytest
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning

import sknan
from sknan import exceptions
from sknan.diagnosis import NonFiniteReport
from sknan.exceptions import (
    DivergenceWarning,
    NonFiniteDataError,
    NonFiniteTrainingError,
    SknanError,
)

REPORT = NonFiniteReport("loss", "loss", "The loss is inf.", "Bound it.", epoch=2)


def fail_in_a_worker():
    raise NonFiniteTrainingError("No good.", REPORT)


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (SknanError, (Exception,)),
        (NonFiniteDataError, (SknanError, ValueError)),
        (NonFiniteTrainingError, (SknanError, FloatingPointError, ArithmeticError)),
        (DivergenceWarning, (ConvergenceWarning, UserWarning)),
    ],
)
def test_errors_are_subclasses_of_standard_errors(error, bases):
    assert all(issubclass(error, base) for base in bases)


def test_training_errors_and_data_errors_are_distinct():
    assert not issubclass(NonFiniteTrainingError, ValueError)
    assert not issubclass(NonFiniteDataError, FloatingPointError)


def test_every_public_error_can_be_imported_from_the_package():
    for name in exceptions.__all__:
        assert getattr(sknan, name) is getattr(exceptions, name)
        assert name in sknan.__all__


@pytest.mark.parametrize("error", [NonFiniteTrainingError, DivergenceWarning])
@pytest.mark.parametrize("report", [REPORT, None])
@pytest.mark.parametrize(
    "duplicate", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
)
def test_message_and_report_are_copied_and_pickled(error, report, duplicate):
    copied = duplicate(error("No good.", report))
    assert type(copied) is error
    assert str(copied) == "No good."
    assert copied.report == report


@pytest.mark.parametrize("error", [NonFiniteTrainingError, DivergenceWarning])
def test_the_report_is_optional(error):
    assert error("No good.").report is None


def test_a_data_error_can_be_pickled():
    copied = pickle.loads(pickle.dumps(NonFiniteDataError("X contains 1 NaN value.")))
    assert str(copied) == "X contains 1 NaN value."


def test_the_report_is_kept_in_an_error_of_a_worker_process():
    with pytest.raises(NonFiniteTrainingError) as caught:
        Parallel(n_jobs=2, backend="multiprocessing")(
            [delayed(fail_in_a_worker)() for _ in range(2)]
        )
    assert str(caught.value) == "No good."
    assert caught.value.report == REPORT
