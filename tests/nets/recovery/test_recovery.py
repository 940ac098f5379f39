"""What becomes of a step that fails: in whole trainings, on real faults."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    NonFiniteTrainingError,
    StableNetClassifier,
    StableNetRegressor,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(128, 4)).astype("float32")
Y = (X @ np.array([1.0, -0.5, 0.25, 0.0]) + 0.1)[:, None].astype("float32")


def network_of(module, criterion=nn.MSELoss, **options):
    torch.manual_seed(0)
    defaults = {
        "optimizer": torch.optim.SGD,
        "lr": 0.05,
        "max_epochs": 10,
        "batch_size": 16,
        "train_split": None,
        "verbose": 0,
        "iterator_train__shuffle": True,
    }
    return GuardedNet(module, criterion, **{**defaults, **options})


def fitted(net, inputs=X, targets=Y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        return net.fit(inputs, targets)


def refused(net, inputs=X, targets=Y):
    with pytest.raises(NonFiniteTrainingError) as caught:
        fitted(net, inputs, targets)
    return caught.value


def r2(net, inputs=X, targets=Y):
    with torch.no_grad():
        residual = net.forward(inputs).numpy() - targets
    return 1 - (residual**2).mean() / targets.var()


def is_sound(net):
    return all(torch.isfinite(v).all() for v in net.module_.state_dict().values())


class MLP(nn.Module):
    def __init__(self, d_in=4, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(d_in, width), nn.Tanh())
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        return self.head(self.body(x))


# -- rows ----------------------------------------------------------------------------


class LogOfFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = MLP()

    def forward(self, x):
        return self.mlp(torch.cat([torch.log(x[:, :1]), x[:, 1:]], 1))


def with_bad_rows():
    inputs = np.abs(X) + 0.5
    inputs[[7, 90], 0] = [-1.0, 0.0]
    return inputs


def test_rows_to_blame_are_left_out_and_named_as_those_of_the_data():
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


def test_columns_have_the_callers_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(with_bad_rows(), columns=["gain", "b", "c", "d"])
    model = StableNetRegressor(LogOfFirst, max_epochs=3, random_state=0)
    with pytest.warns(DivergenceWarning, match="row 7, column gain"):
        model.fit(frame.drop(index=90), np.delete(Y, 90, axis=0).ravel())


def test_rows_of_no_weight_do_not_shift_the_numbers():
    weights = np.ones(128)
    weights[:5] = 0.0
    model = StableNetRegressor(LogOfFirst, max_epochs=2, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(with_bad_rows(), Y.ravel(), sample_weight=weights)
    rows = {row for report in model.nonfinite_reports_ for row in report.rows}
    assert rows == {7, 90}


def test_a_data_loader_of_ones_own_gets_rows_of_the_batch():
    data = torch.utils.data.TensorDataset(
        torch.from_numpy(with_bad_rows()), torch.from_numpy(Y)
    )
    net = fitted(network_of(LogOfFirst, max_epochs=1), data, None)
    assert {report.rows_in for report in net.nonfinite_reports_} == {"batch"}
    assert "of the batch" in str(net.nonfinite_reports_[0])


class Halves(nn.Module):
    """Percentage error: 0/0 on a target of zero that is predicted to be zero."""

    def forward(self, output, target):
        return ((target - output).abs() / target.abs()).mean()


def test_rows_that_break_the_loss_are_found_by_bisection():
    targets = np.abs(Y) + 1.0
    targets[[3, 50, 51]] = 0.0
    net = fitted(network_of(MLP, Halves), X, targets)
    rows = {row for report in net.nonfinite_reports_ for row in report.rows}
    assert rows == {3, 50, 51}
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause, first.module) == ("loss", "loss", "criterion")
    assert is_sound(net)


# -- operations ----------------------------------------------------------------------


class RootTrap(nn.Module):
    """The branch not taken sends 0 * inf into the gradient."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, x):
        h = self.first(x)
        return self.head(torch.where(h > 0, torch.sqrt(h), 0.1 * h))


def test_a_trap_in_every_row_is_sprung_by_repairing_the_operation():
    net = fitted(network_of(RootTrap, optimizer=torch.optim.Adam, lr=0.02))
    assert r2(net) > 0.8
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause, first.operation) == (
        "backward",
        "architecture",
        "aten.sqrt",
    )
    assert first.recovery == (
        "The step was taken with its operations repaired, clipped to norm 1."
    )


class OwnNorm(nn.Module):
    """Running statistics of a batch that may hold one row."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP()
        self.register_buffer("spread", torch.ones(4))

    def forward(self, x):
        if self.training:
            spread = x.std(0)
            with torch.no_grad():
                self.spread.lerp_(spread, 0.1)
        else:
            spread = self.spread
        return self.mlp(x / spread)


def test_a_lone_row_is_left_out_and_poisons_no_buffer():
    net = network_of(OwnNorm, batch_size=127)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        fitted(net)
    assert is_sound(net)
    first = net.nonfinite_reports_[0]
    assert (first.cause, first.operation) == ("architecture", "aten.std")


class Count(nn.Module):
    """A buffer alone goes NaN: a mean over nothing."""

    def __init__(self):
        super().__init__()
        self.mlp = MLP()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.mean.lerp_(x[x > 2.5].mean(), 0.1)
        return self.mlp(x)


def test_a_buffer_that_alone_goes_nan_is_seen_at_once():
    net = fitted(network_of(Count, max_epochs=2))
    assert is_sound(net)
    first = net.nonfinite_reports_[0]
    assert (first.phase, first.cause) == ("forward", "architecture")
    assert first.operation == "aten.mean"
    assert first.epoch == 1


class Factor(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        matrices = torch.diag_embed(x * x)
        return self.head(torch.linalg.cholesky(matrices).sum(-1))


def test_a_decomposition_that_raises_is_a_failed_step_and_no_strange_error():
    inputs = X.copy()
    inputs[11, 2] = 0.0
    net = fitted(network_of(Factor, lr=0.01, max_epochs=2), inputs)
    first = net.nonfinite_reports_[0]
    assert (first.cause, first.rows) == ("architecture", (11,))
    assert first.operation == "aten.linalg_cholesky_ex"
    with pytest.raises(NonFiniteTrainingError) as caught:
        net.predict(inputs)
    assert str(caught.value).startswith(
        "The network has no output for 1 of 16 rows, first row 11 of the batch: "
        "linalg.cholesky: "
    )


def test_an_error_that_has_nothing_to_do_with_numbers_is_raised_as_it_is():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network_of(MLP, module__d_in=5).fit(X, Y)


# -- rates and gradients -------------------------------------------------------------


def test_a_rate_is_lowered_to_one_at_which_the_network_learns():
    net = fitted(network_of(MLP, lr=1e4))
    (report,) = net.nonfinite_reports_
    assert report.cause == "learning_rate"
    assert report.recovery.startswith(
        "The last verified weights came back, and the rate is lowered "
    )
    assert 1e-3 < net.effective_lr_ < 2.0
    assert r2(net) > 0.8


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        widths = [4] + [24] * 10
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.head = nn.Linear(24, 1)
        for layer in [*self.layers, self.head]:
            nn.init.normal_(layer.weight, std=0.4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def test_a_network_that_amplifies_is_clipped_at_the_rate_that_was_asked_for():
    net = fitted(network_of(Deep, lr=0.1, max_epochs=30))
    first = net.nonfinite_reports_[0]
    assert first.cause == "gradient"
    assert "gradients are clipped to norm" in first.recovery
    assert net.effective_lr_ == 0.1
    assert r2(net) > 0.5


class Growing(Callback):
    """A schedule with a factor above 1."""

    def on_epoch_end(self, net, **_):
        net.optimizer_.param_groups[0]["lr"] *= 3.0


def test_no_scheduler_raises_the_rate_above_what_was_found_sound():
    net = fitted(network_of(MLP, max_epochs=20, callbacks=[Growing()]))
    assert is_sound(net)
    assert r2(net) > 0.5
    assert len(net.nonfinite_reports_) < 5


def test_a_decay_that_explodes_by_itself_stops_before_the_first_step():
    error = refused(network_of(MLP, lr=0.5, optimizer__weight_decay=10.0))
    assert str(error) == (
        "Training diverged. lr=0.5 times weight_decay=10 multiplies every weight by -4 "
        "at each step, whatever the data. Lower weight_decay to 0.1 or less."
    )


def test_an_optimizer_that_climbs_the_loss_is_told_so():
    error = refused(network_of(MLP, lr=0.5, optimizer__maximize=True, max_epochs=60))
    assert "SGD climbs the loss: maximize=True." in str(error)
    assert error.report.action == (
        "Leave out maximize, or return the score with its sign changed."
    )


class Undone(Callback):
    """Whatever was learned is taken back after each epoch."""

    def on_epoch_end(self, net, **_):
        with torch.no_grad():
            net.module_.head.bias.fill_(5.0)


def test_a_rescue_that_has_learned_nothing_is_an_error():
    net = network_of(MLP, lr=1e30, max_epochs=2, callbacks=[Undone()])
    error = refused(net)
    assert str(error) == (
        "Training failed once, and the rescued network has learned nothing: its loss "
        "is no better than that of the untrained network. First failure: "
        f"{net.nonfinite_reports_[0]}"
    )


class Units(nn.Module):
    """A loss whose gradients are finite, and whose squares are not."""

    def forward(self, output, target):
        return 1e30 * (output - target).square().mean()


def test_gradients_whose_squares_overflow_are_large_and_not_nan():
    net = fitted(network_of(MLP, Units, optimizer=torch.optim.RMSprop, lr=0.01))
    (report,) = net.nonfinite_reports_
    assert (report.phase, report.cause) == ("backward", "gradient")
    assert r2(net) > 0.8


# -- raw units -----------------------------------------------------------------------


class Rectified(MLP):
    def __init__(self):
        super().__init__()
        self.body[1] = nn.ReLU()


SCALES = np.array([2000.0, 40.0, 1e6, 1.0], dtype="float32")


def test_raw_inputs_are_learned_from_as_if_they_were_standardised():
    raw = X * SCALES + np.array([1975.0, 0.0, 0.0, 0.0], dtype="float32")
    net = fitted(network_of(Rectified, max_epochs=30), raw)
    assert net.nonfinite_reports_[0].recovery == (
        "Training started anew as if on standardised data."
    )
    assert net.effective_lr_ == 0.05
    assert r2(net, raw) > 0.9


def test_raw_targets_are_too_where_the_loss_compares_them():
    raw = (Y * 2e5 + 3e5).astype("float32")
    net = fitted(network_of(Rectified, max_epochs=30), X, raw)
    assert net.nonfinite_reports_[0].recovery == (
        "Training started anew as if on standardised data."
    )
    assert r2(net, X, raw) > 0.9


class Scaled(Rectified):
    """The input is a physical quantity, and goes elsewhere too."""

    def forward(self, x):
        return super().forward(x) * x[:, :1].abs().sqrt()


def test_an_input_that_is_used_otherwise_is_left_as_it_is():
    raw = X * SCALES
    net = fitted(network_of(Scaled), raw)
    assert is_sound(net)
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training started anew as if on standardised data." not in recoveries


def test_weights_that_someone_has_trained_before_are_not_started_anew():
    raw = X * SCALES
    net = fitted(network_of(Rectified()), raw)
    assert net.nonfinite_reports_
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert "Training started anew as if on standardised data." not in recoveries


# -- what is logged ------------------------------------------------------------------


def test_clips_are_counted_and_measured():
    net = network_of(MLP, clip_norm=0.05, max_epochs=2).fit(X, Y)
    share, coefficient = net.history[-1, ("clip_share", "clip_coefficient")]
    assert 0.5 < share <= 1.0
    assert 0.0 < coefficient < 1.0


def test_a_clip_that_never_had_an_effect_is_pointed_out():
    with pytest.warns(UserWarning, match="clip_norm") as caught:
        network_of(MLP, clip_norm=1e6, max_epochs=4).fit(X, Y)
    message = str(caught[0].message)
    assert message.startswith(
        "clip_norm=1000000.0 never had an effect: the norm of the gradients was at "
    )
    assert message.endswith(
        "in 32 steps. Lower it to bound what is unusual here, or leave it out."
    )


def test_the_default_clip_of_an_estimator_is_nobodys_choice():
    labels = (Y.ravel() > 0).astype(int)
    model = StableNetClassifier(lr=1e-6, max_epochs=30, batch_size=16, random_state=0)
    model.fit(X, labels)  # warnings are errors here


# -- policies ------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["skip", "raise"])
def test_skip_and_raise_neither_repair_nor_leave_out_rows(policy):
    net = network_of(LogOfFirst, on_nonfinite=policy, max_recoveries=100, max_epochs=2)
    if policy == "raise":
        error = refused(net, with_bad_rows())
        assert error.report.operation == "aten.log"
        assert str(error) == str(error.report)
        return
    fitted(net, with_bad_rows())
    recoveries = {report.recovery for report in net.nonfinite_reports_}
    assert recoveries == {"The step was left out."}
    assert np.isnan(net.forward(with_bad_rows()).numpy()).any()
