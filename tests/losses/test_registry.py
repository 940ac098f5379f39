"""Tests of the registry of losses by name."""

from __future__ import annotations

import pytest
from losses_helpers import (
    ALL,
)
from torch import nn

from sknan.losses import CLASSIFICATION_LOSSES, REGRESSION_LOSSES, get_criterion


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_name_gives_its_class(name):
    assert get_criterion(name) is ALL[name]
    assert issubclass(ALL[name], nn.Module)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_loss_has_the_task_of_its_registry(name):
    is_classification = name in CLASSIFICATION_LOSSES
    expected = "classification" if is_classification else "regression"
    assert ALL[name].traits.task == expected


def test_no_name_is_in_both_registries():
    assert not CLASSIFICATION_LOSSES.keys() & REGRESSION_LOSSES.keys()


def test_the_target_is_not_standardized_for_losses_that_depend_on_its_zero():
    in_units = {
        name
        for name, loss in REGRESSION_LOSSES.items()
        if not loss.traits.standardizes_target
    }
    positive_means = {"poisson", "gamma", "tweedie"}
    assert in_units == positive_means | {"mape", "smape", "msle", "kl_div", "cosine"}


def known_names():
    return ", ".join(repr(name) for name in ALL)


@pytest.mark.parametrize(
    ("name", "hint"), [("hubber", " Did you mean 'huber'?"), ("zzz", "")]
)
def test_an_unknown_name_raises_with_a_suggestion(name, hint):
    with pytest.raises(ValueError, match="criterion") as caught:
        get_criterion(name)
    assert str(caught.value) == (
        f"Unknown criterion {name!r}.{hint} Known criteria: {known_names()}."
    )


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("pinball", "quantile"),
        ("MSELoss", "mse"),
        ("SmoothL1Loss", "huber"),
        ("BCEWithLogitsLoss", "binary_cross_entropy"),
        ("mean_absolute_percentage_error", "mape"),
        ("sparse_categorical_crossentropy", "cross_entropy"),
        ("binary_crossentropy", "binary_cross_entropy"),
        ("logcosh", "log_cosh"),
        ("log_loss", "cross_entropy"),
        ("least_squares", "mse"),
        ("regression_l1", "mae"),
        ("multiclass", "cross_entropy"),
        ("reg:squarederror", "mse"),
        ("reg:pseudohubererror", "pseudo_huber"),
        ("count:poisson", "poisson"),
        ("binary:logistic", "binary_cross_entropy"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(name, ours):
    assert ours in ALL
    with pytest.raises(ValueError, match="criterion") as caught:
        get_criterion(name)
    assert f"{name!r}. Did you mean {ours!r}? Known" in str(caught.value)
