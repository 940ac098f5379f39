"""Validation batches in which a check of the loss refuses rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch.dataset import Dataset
from skorch.helper import predefined_split
from torch import nn

from sknan import GuardedNet, GuardedNetClassifier, NonFiniteTrainingError
from sknan.nets.recovery.validation_loss import loss_of_sound_rows

X = np.random.default_rng(0).normal(size=(64, 3)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def validated(valid_targets, **options):
    torch.manual_seed(0)
    split = predefined_split(Dataset(X, valid_targets))
    net = GuardedNetClassifier(
        nn.Linear,
        criterion=nn.CrossEntropyLoss,
        module__in_features=3,
        module__out_features=2,
        max_epochs=1,
        lr=0.1,
        train_split=split,
        verbose=0,
        callbacks__valid_acc=None,
        **options,
    )
    return net.fit(X, Y)


@pytest.mark.parametrize("policy", ["recover", "skip"])
def test_rows_that_the_loss_refuses_are_left_out(policy):
    targets = Y.copy()
    targets[[5, 9]] = 7
    net = validated(targets, on_nonfinite=policy)
    good = np.delete(np.arange(64), [5, 9])
    with torch.no_grad():
        expected = nn.functional.cross_entropy(
            net.forward(X[good]), torch.from_numpy(Y[good])
        )
    assert net.history[-1, "valid_loss"] == pytest.approx(float(expected), rel=1e-6)


def test_a_loss_that_refuses_all_rows_is_explained():
    with pytest.raises(NonFiniteTrainingError) as caught:
        validated(Y + 7)
    report = caught.value.report
    assert (report.phase, report.cause, report.error) == ("loss", "data", "IndexError")
    assert str(caught.value) == f"In validation: {report}"


def test_targets_of_another_shape_are_an_error_of_the_program():
    with pytest.raises(RuntimeError, match="0D or 1D target"):
        validated(np.zeros((64, 2, 1), dtype="int64"))


class OutsideForAnyRow(nn.Module):
    """Loss whose check refuses the NaN that a root gives for any output."""

    def forward(self, output, target):
        share = torch.sqrt(-1.0 - output.abs())
        return nn.functional.binary_cross_entropy(share, target)


def test_a_loss_that_passes_with_repaired_operations_only_is_explained():
    net = GuardedNet(nn.Linear(3, 1), OutsideForAnyRow).initialize()
    outputs, target = torch.randn(8, 1), torch.full((8, 1), 0.5)
    with pytest.raises(NonFiniteTrainingError) as caught:
        loss_of_sound_rows(net, torch.from_numpy(X[:8]), outputs, target)
    assert str(caught.value) == f"In validation: {caught.value.report}"
