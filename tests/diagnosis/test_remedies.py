"""Recommended actions and the parts of sknan that they name."""

from __future__ import annotations

import re

import pytest

import sknan.functional
import sknan.losses
from sknan.diagnosis._evidence import CRITERION, FailedOperation, Places
from sknan.diagnosis._remedies import (
    ACTIONS,
    FUNCTIONS,
    PATTERNS,
    SAME_LOSSES,
    action_for,
)


def test_everything_that_is_advised_exists():
    advice = [p.advice for p in PATTERNS]
    advice += [f"sknan.functional.{name}" for name in FUNCTIONS.values()]
    advice += [f"sknan.losses.{name}" for name in SAME_LOSSES]
    for package in (sknan.functional, sknan.losses):
        pattern = rf"{package.__name__}\.(\w+)"
        names = {name for text in advice for name in re.findall(pattern, text)}
        assert names <= set(package.__all__)


LOG = "use sknan.functional.log, whose value and gradient stay finite."


@pytest.mark.parametrize("operation", ["aten.log", "aten.log_"])
@pytest.mark.parametrize(
    ("cause", "places", "action"),
    [
        ("activation", Places((3,), (1,)), f"Clean these columns, or {LOG}"),
        ("activation", Places((3,)), f"U{LOG[1:]}"),
        ("architecture", Places((3,), (1,)), f"U{LOG[1:]}"),
        ("loss", Places(), f"U{LOG[1:]}"),
        ("data", Places((3,), (1,), "inputs"), ACTIONS["data"]),
        (
            "data",
            Places((3,), (), "targets"),
            "Correct these targets, or leave out their rows.",
        ),
        ("learning_rate", Places(), ACTIONS["learning_rate"]),
    ],
)
def test_the_action_follows_from_cause_and_places(operation, cause, places, action):
    failed = FailedOperation("forward", CRITERION, operation, None)
    assert action_for(cause, failed, places) == action
