"""Steps without the rows of a batch that are to blame."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from failing_trainings import (
    MLP,
    LogOfFirst,
    X,
    Y,
    fitted,
    is_sound,
    network_of,
    with_bad_rows,
)
from torch import nn

from sknan import DivergenceWarning, StableNetRegressor
from sknan.nets.recovery.drop_rows import DropRows
from sknan.nets.recovery.repair_operations import RepairOperations


def test_rows_to_blame_are_dropped_and_reported_as_rows_of_the_data():
    net = fitted(network_of(LogOfFirst, max_epochs=3), with_bad_rows())
    assert is_sound(net)
    reports = net.nonfinite_reports_
    assert {row for report in reports for row in report.rows} == {7, 90}
    assert {report.rows_in for report in reports} == {"data"}
    assert net.effective_lr_ == 0.05
    first = reports[0]
    assert (first.phase, first.module, first.operation) == ("forward", "", "aten.log")
    assert (first.rows, first.columns) == ((7,), (0,))
    assert first.action == (
        "Clean these columns, or use sknan.functional.log, whose value and gradient "
        "stay finite."
    )


class Normed(LogOfFirst):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.BatchNorm1d(4), MLP())


def test_running_statistics_count_the_steps_that_were_taken_and_no_trials():
    net = fitted(network_of(Normed, max_epochs=3), with_bad_rows())
    assert int(net.module_.mlp[0].num_batches_tracked) == 3 * 8
    assert {report.recovery for report in net.nonfinite_reports_} == {DropRows.says}


def test_columns_are_reported_by_name():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(with_bad_rows(), columns=["gain", "b", "c", "d"])
    model = StableNetRegressor(LogOfFirst, max_epochs=3, random_state=0)
    with pytest.warns(DivergenceWarning, match="row 7, column gain"):
        model.fit(frame.drop(index=90), np.delete(Y, 90, axis=0).ravel())


def test_row_numbers_count_rows_of_weight_zero():
    weights = np.ones(128)
    weights[:5] = 0.0
    model = StableNetRegressor(LogOfFirst, max_epochs=2, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(with_bad_rows(), Y.ravel(), sample_weight=weights)
    rows = {row for report in model.nonfinite_reports_ for row in report.rows}
    assert rows == {7, 90}


def test_with_a_user_defined_data_set_rows_are_those_of_the_batch():
    class Own(torch.utils.data.TensorDataset):
        """Data set that may transform each row."""

    data = Own(torch.from_numpy(with_bad_rows()), torch.from_numpy(Y))
    net = fitted(network_of(LogOfFirst, max_epochs=1), data, None)
    assert {report.rows_in for report in net.nonfinite_reports_} == {"batch"}
    assert "of the batch" in str(net.nonfinite_reports_[0])


def test_rows_of_a_tensor_data_set_are_those_of_the_data():
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(with_bad_rows()), torch.from_numpy(Y)
    )
    net = fitted(network_of(LogOfFirst, max_epochs=1), data, None)
    assert {report.rows_in for report in net.nonfinite_reports_} == {"data"}
    rows = {row for report in net.nonfinite_reports_ for row in report.rows}
    assert rows == {7, 90}


class LogOfEach(MLP):
    """Module whose operations fail one after another."""

    def forward(self, x):
        parts = [torch.log(column) for column in (x * x).split(1, dim=1)]
        return super().forward(torch.cat(parts, dim=1))


def test_all_rows_that_a_step_drops_one_after_another_are_reported():
    bad = X.copy()
    bad[[3, 5, 9, 12], range(4)] = 0.0
    net = fitted(network_of(LogOfEach, max_epochs=3, batch_size=-1), bad)
    assert net.effective_lr_ == 0.05
    for report in net.nonfinite_reports_:
        assert (report.recovery, report.rows) == (DropRows.says, (3, 5, 9, 12))


def test_a_majority_that_is_dropped_one_after_another_is_repaired_instead():
    bad = X.copy()
    bad[:50, 0] = 0.0
    bad[50:80, 1] = 0.0
    net = fitted(network_of(LogOfEach, max_epochs=1, batch_size=-1), bad)
    assert [r.recovery for r in net.nonfinite_reports_] == [RepairOperations.says]


class Halves(nn.Module):
    """Percentage error, which is 0/0 if a target of zero is predicted exactly."""

    def forward(self, output, target):
        return ((target - output).abs() / target.abs()).mean()


def test_rows_with_a_nonfinite_loss_are_found_by_bisection():
    targets = np.abs(Y) + 1.0
    targets[[3, 50, 51]] = 0.0
    net = fitted(network_of(MLP, Halves), X, targets)
    rows = {row for report in net.nonfinite_reports_ for row in report.rows}
    assert rows == {3, 50, 51}
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause, first.module) == ("loss", "loss", "criterion")
    assert is_sound(net)


class Steep(nn.MSELoss):
    def forward(self, output, target):
        return 1e4 * super().forward(output, target)


def test_a_step_without_rows_is_clipped_to_norm_one():
    net = network_of(LogOfFirst, Steep, max_epochs=1, batch_size=128).initialize()
    before = torch.cat([p.detach().flatten() for p in net.module_.parameters()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        net.partial_fit(with_bad_rows(), Y)
    after = torch.cat([p.detach().flatten() for p in net.module_.parameters()])
    assert [r.recovery for r in net.nonfinite_reports_] == [DropRows.says]
    assert float((after - before).norm()) == pytest.approx(0.05, rel=1e-3)


class LinearInLogs(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(torch.log(torch.abs(x * self.scale)))


@pytest.mark.parametrize("lr", [0.1, 1.0])
def test_lbfgs_learns_as_well_as_without_the_row(lr):
    options = {"optimizer": torch.optim.LBFGS, "lr": lr, "batch_size": -1}
    kept, data = np.delete(np.arange(len(X)), 7), X.copy()
    data[7, 2] = 0.0
    net = fitted(network_of(LinearInLogs, **options), data)
    assert {report.rows for report in net.nonfinite_reports_} == {(7,)}
    twin = fitted(network_of(LinearInLogs, **options), data[kept], Y[kept])
    assert twin.nonfinite_reports_ == []
    best = twin.history[-1, "train_loss"]
    assert net.history[-1, "train_loss"] == pytest.approx(best, rel=1e-3)


def test_a_majority_of_rows_is_repaired_instead():
    data = with_bad_rows()
    data[:10, 0] = -1.0
    net = fitted(
        network_of(
            LogOfFirst, max_epochs=1, batch_size=16, iterator_train__shuffle=False
        ),
        data,
    )
    assert net.nonfinite_reports_[0].recovery == RepairOperations.says
