"""Recommended actions and the parts of sknan that they name."""

from __future__ import annotations

import re

import pytest

import sknan.functional
import sknan.losses
from sknan.diagnosis._evidence import CRITERION, FailedOperation
from sknan.diagnosis._remedies import _REPLACEMENTS, ACTIONS, action_for


@pytest.mark.parametrize("operation", _REPLACEMENTS)
def test_each_replacement_exists(operation):
    function, loss = _REPLACEMENTS[operation]
    assert function or loss
    assert not function or hasattr(sknan.functional, function)
    for name in re.findall(r"\w+Loss\b", loss):
        assert hasattr(sknan.losses, name)


@pytest.mark.parametrize("operation", ["aten.log", "aten.log_"])
@pytest.mark.parametrize(
    ("cause", "has_columns", "action"),
    [
        (
            "activation",
            True,
            "Clean these columns, or use sknan.functional.log, whose value and "
            "gradient stay finite.",
        ),
        (
            "architecture",
            True,
            "Use sknan.functional.log, whose value and gradient stay finite.",
        ),
        (
            "loss",
            False,
            "Use sknan.losses.CrossEntropyLoss or BCEWithLogitsLoss on logits, or "
            "losses.GaussianNLLLoss for a variance.",
        ),
        ("data", True, ACTIONS["data"]),
    ],
)
def test_the_action_names_a_replacement(operation, cause, has_columns, action):
    failed = FailedOperation("forward", CRITERION, operation, None)
    assert action_for(cause, failed, has_columns) == action
