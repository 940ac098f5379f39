"""The order of recoveries, and recoveries of users."""

from __future__ import annotations

import torch
from failing_trainings import LogOfFirst, fitted, is_sound, refused, with_bad_rows
from torch import nn

from sknan import GuardedNet
from sknan.nets.recovery import RECOVERIES


class TakeEmptyStep:
    """Recovery that accepts the failed step without changing a weight."""

    says = "The step was accepted as it was."

    def __init__(self):
        self.batches = []

    def applies(self, failure):
        return failure.report.operation == "aten.log"

    def attempt(self, training, failure, batch):
        self.batches.append(batch)
        training.guard.record(failure.report, self.says)
        loss = torch.tensor(0.25)
        return {"loss": loss, "y_pred": failure.refused.step["y_pred"]}


class NotForThis:
    says = "Never."

    def applies(self, failure):
        return False

    def attempt(self, training, failure, batch):
        raise AssertionError("This recovery does not apply.")


class GivesUp:
    says = "Never."

    def applies(self, failure):
        return True

    def attempt(self, training, failure, batch):
        return None


def test_a_new_recovery_in_the_tuple_is_tried_and_its_step_is_taken():
    recovery = TakeEmptyStep()

    class Net(GuardedNet):
        _recoveries = (NotForThis(), GivesUp(), recovery, *RECOVERIES)

    net = Net(
        LogOfFirst,
        nn.MSELoss,
        lr=0.05,
        max_epochs=1,
        batch_size=16,
        train_split=None,
        verbose=0,
    )
    fitted(net, with_bad_rows())
    assert len(recovery.batches) == 2
    assert [r.recovery for r in net.nonfinite_reports_] == [recovery.says] * 2
    losses = net.history[0, "batches", :, "train_loss"]
    assert losses.count(0.25) == 2
    assert len(losses) == 8
    assert is_sound(net)


def test_without_a_recovery_that_applies_training_stops_with_the_report():
    class Net(GuardedNet):
        _recoveries = (NotForThis(), GivesUp())

    net = Net(LogOfFirst, nn.MSELoss, train_split=None, verbose=0)
    error = refused(net, with_bad_rows())
    assert error.report is net.nonfinite_reports_[-1]
    assert str(error) == str(error.report)


def test_every_recovery_says_what_the_report_records():
    assert [recovery.says for recovery in RECOVERIES] == [
        "The labels were refused.",
        "Training restarted as if on standardized data.",
        "The step was taken again, and was finite.",
        "The step was taken with torch's gradient, which is finite, since the same "
        "rows have failed before.",
        "The step was taken without the rows to blame.",
        "The step was taken with its operations repaired.",
        "The step was left out.",
        "The last verified weights were restored.",
        "The batch was left out.",
        "The {weights} weights were restored, and {change}.",
    ]
