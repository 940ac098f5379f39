from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from sknan.diagnosis import NonFiniteReport, StepEvidence, examine_step
from sknan.exceptions import NonFiniteTrainingError
from sknan.nets.guard import Guard, Snapshot
from sknan.nets.guard._weights import VerifiedWeights
from sknan.optim._learning_rates import scaled_rates

REPORT = NonFiniteReport(
    "backward", "learning_rate", "It is NaN.", "Lower it.", epoch=1
)


class Trials:
    """Trials of a loop in plain torch."""

    def __init__(self, loop, X, y):
        self.loop, self.X, self.y = loop, X, y

    def has_last_learned(self):
        return True

    def fails_on_last_weights(self):
        with self.loop.guard.last_weights():
            return not math.isfinite(self.loop.loss_of(self.X, self.y))

    def losses_after(self, scales):
        return list(map(self.loss_after, scales))

    def loss_after(self, scale):
        loop, optimizer = self.loop, self.loop.optimizer
        kept, optimizer.state = optimizer.state, type(optimizer.state)(dict)
        with loop.guard.last_weights(), scaled_rates([optimizer], scale):
            for _ in range(16):
                optimizer.zero_grad()
                loop.loss(loop.module(self.X), self.y).backward()
                optimizer.step()
            loss = loop.loss_of(self.X, self.y)
        optimizer.state = kept
        return loss if math.isfinite(loss) else math.inf

    def is_rate_raised(self):
        return False

    def rates_at(self, scale):
        return [g["lr"] * scale for g in self.loop.optimizer.param_groups]


def failed(loop, report, seed=0):
    """Return the answer of the guard to a failure on a sound batch."""
    return loop.guard.handle(report, Trials(loop, *batch(seed)))


class PlainLoop:
    """Training loop in plain torch with a guard."""

    def __init__(self, module, guard, optimizer=None, lr=0.1, n_steps=None, **options):
        self.module = module
        self.guard = guard
        self.optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=lr)
        self.loss = options.get("loss", mse_loss)
        self.losses = []
        guard.begin([module], [self.optimizer], n_steps)

    def loss_of(self, X, y):
        with torch.no_grad():
            return self.loss(self.module(X), y).item()

    def step(self, X, y, poison=False):
        """Return "taken" or "skip"; poison the gradients of the first attempt."""
        while True:
            self.optimizer.zero_grad()
            self.guard.begin_step()
            output = self.module(X)
            loss = self.loss(output, y)
            loss.backward()
            if poison:
                next(self.module.parameters()).grad.view(-1)[0] = torch.nan
                poison = False
            value, norm, _, _ = self.guard.look(loss)
            is_finite = math.isfinite(value) and math.isfinite(norm)
            if is_finite and not self.guard.has_exploded(
                value, lambda: self.loss_of(X, y)
            ):
                self.guard.pass_step(value)
                with scaled_rates(
                    [self.optimizer], self.guard.lr_scale, self.guard.rate_caps
                ):
                    self.optimizer.step()
                self.guard.step_taken()
                self.losses.append(value)
                return "taken"
            evidence = StepEvidence(
                inputs=X,
                outputs=output,
                loss=value,
                gradient_norm=norm,
                named_parameters=list(self.module.named_parameters()),
                relative_distance=self.guard.relative_distance(),
                lr=self.optimizer.param_groups[0]["lr"] * self.guard.lr_scale,
                epoch=1,
                batch=len(self.losses) + 1,
            )
            report = examine_step(evidence)
            if self.guard.handle(report, Trials(self, X, y)) == "skip":
                return "skip"


def batch(seed=0, n=8, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, 3, generator=generator) * scale
    return X, X.sum(1, keepdim=True)


def network(batch_norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8)]
    if batch_norm:
        layers.append(nn.BatchNorm1d(8))
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 1))


def state_of(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def is_same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


def moments_of(optimizer):
    return copy.deepcopy(list(optimizer.state.values()))


class CausalAttention(nn.Module):
    """Module with a buffer of -inf, by design."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        mask = torch.triu(torch.full((3, 3), -torch.inf), diagonal=1)
        self.register_buffer("mask", mask)

    def forward(self, X):
        scores = torch.softmax(self.mask + self.linear(X)[:, None, :], dim=-1)
        return (scores @ X[:, :, None]).sum(1)


# snapshots


def test_a_snapshot_restores_weights_buffers_and_counters():
    module = network(batch_norm=True)
    snapshot = Snapshot([module])
    before = state_of(module)
    module(batch()[0])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    assert not snapshot.is_live_finite()
    snapshot.restore()
    assert is_same(state_of(module), before)
    assert snapshot.is_live_finite()


def test_a_snapshot_is_a_copy():
    module = network()
    snapshot = Snapshot([module])
    before = state_of(module)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    moved = state_of(module)
    snapshot.take()
    with torch.no_grad():
        module[0].weight.add_(1.0)
    snapshot.restore()
    assert is_same(state_of(module), moved)
    assert not is_same(moved, before)


def test_only_tensors_that_are_not_finite_are_restored():
    module = network()
    snapshot = Snapshot([module])
    before = state_of(module)
    with torch.no_grad():
        module[0].weight.fill_(torch.inf)
        module[0].bias.fill_(5.0)
    snapshot.restore_nonfinite()
    assert torch.equal(module[0].weight, before["0.weight"])
    assert torch.equal(module[0].bias, torch.full((8,), 5.0))


def test_present_weights_return_after_a_snapshot_was_in_place_even_on_errors():
    module = network(batch_norm=True)
    snapshot = Snapshot([module])
    first = state_of(module)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    moved = state_of(module)
    with contextlib.suppress(KeyboardInterrupt), snapshot.swapped_in():
        assert is_same(state_of(module), first)
        module(batch()[0])  # moves the running statistics
        raise KeyboardInterrupt
    assert is_same(state_of(module), moved)


def test_a_mask_of_infinities_is_no_failure():
    torch.manual_seed(0)
    module = CausalAttention()
    loop = PlainLoop(module, Guard())
    for seed in range(5):
        assert loop.step(*batch(seed)) == "taken"
    assert loop.guard.has_finite_weights()
    assert loop.guard.reports == []
    with torch.no_grad():
        module.linear.weight[0, 0] = torch.nan
    assert not loop.guard.has_finite_weights()


def test_a_frozen_infinite_weight_is_no_failure():
    module = network()
    module[0].bias.requires_grad_(False).fill_(torch.inf)
    assert Snapshot([module]).is_live_finite()


def test_a_buffer_that_becomes_nan_is_a_failure():
    module = network(batch_norm=True)
    loop = PlainLoop(module, Guard())
    module[1].running_var[0] = torch.nan
    assert not loop.guard.has_finite_weights()


def test_shared_weights_are_copied_once():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    snapshot = Snapshot([module, module])
    assert len(snapshot._kept) == 3


def test_distance_is_relative_to_the_norm():
    module = nn.Linear(2, 1)
    nn.init.constant_(module.weight, 3.0)
    nn.init.constant_(module.bias, 4.0)
    snapshot = Snapshot([module])
    assert snapshot.relative_distance() == 0.0
    with torch.no_grad():
        module.bias += 5.0
    size = math.sqrt(9 + 9 + 16)
    assert snapshot.relative_distance() == pytest.approx(5.0 / size)
    with torch.no_grad():
        module.bias.fill_(torch.nan)
    assert snapshot.relative_distance() > 1e30


def test_weights_that_start_at_zero_have_a_distance():
    module = nn.Linear(3, 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    snapshot = Snapshot([module])
    with torch.no_grad():
        module.bias.fill_(1.0)
    assert snapshot.relative_distance() == pytest.approx(1.0 / (1e-2 * 2.0))


def test_the_growth_of_weights_is_that_of_each_step():
    module = network()
    weights = VerifiedWeights([module], [])
    weights.n_steps = 2
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4.0)
    assert weights.growth_per_step() == pytest.approx(1.0)


# learning rates


def test_rates_are_scaled_inside_the_block_only():
    optimizer = torch.optim.SGD(
        [
            {"params": [nn.Parameter(torch.ones(1))], "lr": 0.1},
            {"params": [nn.Parameter(torch.ones(1))], "lr": 1e-30},
        ]
    )
    with scaled_rates([optimizer], 1e-3):
        assert [g["lr"] for g in optimizer.param_groups] == [0.1 * 1e-3, 1e-30 * 1e-3]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 1e-30]


def test_rates_are_restored_after_an_error():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(RuntimeError, match="stop"), scaled_rates([optimizer], 0.5):
        raise RuntimeError("stop")
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_rate_that_is_a_tensor_is_scaled_and_restored():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], lr=rate)
    with scaled_rates([optimizer], 0.5):
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)


# the check of a step


def test_loss_and_norm_are_read_before_any_step():
    module = network()
    loop = PlainLoop(module, Guard())
    X, y = batch()
    loss = mse_loss(module(X), y)
    loss.backward()
    value, norm, parameters, grads = loop.guard.look(loss)
    assert value == loss.item()
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
    assert norm == pytest.approx(expected, rel=1e-6)
    assert [p.grad is g for p, g in zip(parameters, grads, strict=True)] == [True] * 4


def test_finite_gradients_whose_squares_overflow_are_finite():
    module = nn.Linear(3, 1)
    loop = PlainLoop(module, Guard())
    loss = (module(torch.ones(1, 3)) * 1e30).sum()
    loss.backward()
    _, norm, _, _ = loop.guard.look(loss)
    assert norm == pytest.approx(2e30, rel=1e-6)


def test_a_float64_loss_beyond_float32_is_finite():
    module = nn.Linear(3, 1)
    loop = PlainLoop(module, Guard())
    module(torch.ones(1, 3)).sum().backward()
    value, _, _, _ = loop.guard.look(torch.tensor(1e300, dtype=torch.float64))
    assert value == 1e300


class Buffers(nn.Module):
    """Module with buffers of any shape and one weight."""

    def __init__(self, *buffers):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        for i, buffer in enumerate(buffers):
            self.register_buffer(f"buffer_{i}", buffer)


@pytest.mark.parametrize(
    "buffers",
    [
        [torch.zeros(3), torch.zeros(())],
        [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.float16)],
        [torch.zeros(100, 100), torch.zeros(3), torch.zeros(3, dtype=torch.int64)],
    ],
)
def test_nonfinite_buffers_are_found_and_large_ones_are_no_failure(buffers):
    module = Buffers(*(buffer.clone() for buffer in buffers))
    guard = PlainLoop(module, Guard()).guard
    for buffer in filter(torch.is_floating_point, module.buffers()):
        kept = buffer.clone()
        # The sum overflows, but no entry does.
        buffer.fill_(torch.finfo(buffer.dtype).max)
        module.weight.grad = torch.ones(1)
        assert guard.look(torch.tensor(1.0))[1] == 1.0
        for bad in (math.nan, math.inf):
            buffer.view(-1)[-1] = bad
            assert math.isnan(guard.look(torch.tensor(1.0))[1])
        buffer.copy_(kept)


def test_weights_without_a_gradient_are_left_out():
    module = network()
    loop = PlainLoop(module, Guard())
    module[0](torch.ones(1, 3)).sum().backward()
    _, norm, parameters, _ = loop.guard.look(torch.tensor(1.0))
    assert len(parameters) == 2
    assert math.isfinite(norm)


# recovery


@pytest.mark.parametrize("policy", ["skip", "recover"])
def test_a_failed_step_touches_neither_weights_nor_moments(policy):
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    loop = PlainLoop(module, Guard(policy), optimizer)
    for seed in range(3):
        loop.step(*batch(seed))
    loop.guard.propose_weights()
    loop.step(*batch(3))
    # The weights have not moved since they were verified, so the batch is to blame.
    loop.guard.propose_weights()
    X, y = batch(4)
    loop.guard.pass_step(loop.loss_of(X, y))
    weights, moments = state_of(module), moments_of(optimizer)
    X[0, 0] = torch.nan
    assert loop.step(X, y) == "skip"
    assert is_same(state_of(module), weights)
    assert len(moments) == 4
    for new, old in zip(moments_of(optimizer), moments, strict=True):
        assert is_same(new, old)
    assert loop.guard.lr_scale == 1.0
    assert len(loop.guard.reports) == 1


@pytest.mark.parametrize("policy", ["skip", "recover"])
def test_running_statistics_are_restored_after_a_failed_batch(policy):
    module = network(batch_norm=True)
    loop = PlainLoop(module, Guard(policy))
    for seed in range(3):
        loop.step(*batch(seed))
    X, y = batch(3)
    X[0] = torch.nan
    assert loop.step(X, y) == "skip"
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_skipping_a_batch_leaves_the_running_statistics_as_they_were():
    module = network(batch_norm=True)
    loop = PlainLoop(module, Guard("skip"))
    for seed in range(3):
        loop.step(*batch(seed))
    before = state_of(module)
    X, y = batch(3)
    X[0] = torch.nan
    assert loop.step(X, y) == "skip"
    assert is_same(state_of(module), before)


def test_a_roll_back_returns_to_the_last_verified_weights():
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    loop = PlainLoop(module, Guard(), optimizer)
    loop.step(*batch(0))
    verified = state_of(module)
    loop.guard.propose_weights()
    loop.step(*batch(1))  # verifies them: loss and gradient are finite
    loop.step(*batch(2))
    loop.guard.propose_weights()  # never verified
    assert failed(loop, REPORT) == "retry"
    assert is_same(state_of(module), verified)
    assert not optimizer.state
    assert 0.0 < loop.guard.lr_scale <= 0.5


def test_a_skipped_step_that_has_exploded_leaves_the_last_verified_weights():
    module = network()
    loop = PlainLoop(module, Guard("skip"))
    loop.step(*batch(0))
    verified = state_of(module)
    loop.guard.propose_weights()
    loop.step(*batch(1))  # verifies them
    assert not is_same(state_of(module), verified)
    assert failed(loop, dataclasses.replace(REPORT, phase="step")) == "skip"
    assert is_same(state_of(module), verified)


def test_without_verified_weights_a_roll_back_returns_to_the_first_ones():
    module = network()
    first = state_of(module)
    loop = PlainLoop(module, Guard())
    loop.step(*batch(0))
    loop.step(*batch(1))
    assert failed(loop, REPORT) == "retry"
    assert is_same(state_of(module), first)


def test_weights_with_a_loss_far_above_the_first_one_are_not_verified():
    module = network()
    first = state_of(module)
    loop = PlainLoop(module, Guard())
    loop.step(*batch(0))
    loop.guard.propose_weights()
    loop.guard.pass_step(1e6)
    failed(loop, REPORT)
    assert is_same(state_of(module), first)


@pytest.mark.parametrize(("factor", "is_kept"), [(3.0, True), (100.0, False)])
def test_verified_weights_that_are_far_away_are_not_trusted(factor, is_kept):
    module = network()
    first = state_of(module)
    loop = PlainLoop(module, Guard())
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(factor)
    moved = state_of(module)
    loop.guard.propose_weights()
    loop.guard.pass_step(1.0)
    loop.guard.roll_back(REPORT)
    assert is_same(state_of(module), moved if is_kept else first)


def test_after_a_temporary_fault_the_batch_is_attempted_again():
    loop = PlainLoop(network(), Guard())
    loop.step(*batch(0))
    assert loop.step(*batch(1), poison=True) == "taken"
    assert len(loop.guard.reports) == 1
    report = loop.guard.reports[0]
    assert (report.phase, report.batch) == ("backward", 2)
    assert report.module == "0"
    assert loop.guard.lr_scale < 1.0


def test_only_a_batch_that_fails_on_verified_weights_too_is_skipped():
    loop = PlainLoop(network(), Guard())
    loop.step(*batch(0))
    X, y = batch(1)
    X[2, 1] = torch.nan
    assert loop.step(X, y) == "skip"
    assert [report.phase for report in loop.guard.reports] == ["input"]
    assert loop.guard.reports[0].recovery == "The batch was left out."
    assert loop.guard.lr_scale == 1.0
    assert loop.step(*batch(2)) == "taken"


def test_a_bad_first_batch_is_skipped_at_once():
    loop = PlainLoop(network(), Guard())
    X, y = batch()
    X[0, 0] = torch.inf
    assert loop.step(X, y) == "skip"
    assert len(loop.guard.reports) == 1
    assert loop.guard.lr_scale == 1.0


def test_a_spent_budget_raises_with_the_report():
    loop = PlainLoop(network(), Guard(max_recoveries=2))
    X, y = batch()
    X[0, 0] = torch.nan
    assert loop.step(X, y) == "skip"
    assert loop.step(X, y) == "skip"
    assert not loop.guard.has_budget
    with pytest.raises(NonFiniteTrainingError) as caught:
        loop.step(X, y)
    report = caught.value.report
    assert report is loop.guard.reports[-1]
    assert (report.phase, report.cause) == ("input", "data")
    assert (report.epoch, report.batch) == (1, 1)
    assert str(caught.value) == (
        f"{report} Gave up after 2 recoveries (max_recoveries=2)."
    )
    assert loop.guard.has_finite_weights()


def test_a_budget_of_zero_raises_at_the_first_failure():
    loop = PlainLoop(network(), Guard(max_recoveries=0))
    with pytest.raises(NonFiniteTrainingError) as caught:
        failed(loop, REPORT)
    assert str(caught.value) == (
        "Non-finite gradient at epoch 1. It is NaN. Lower it. "
        "Gave up after 0 recoveries (max_recoveries=0)."
    )


def test_the_policy_raise_raises_at_once_and_leaves_finite_weights():
    module = network()
    loop = PlainLoop(module, Guard("raise"))
    loop.step(*batch(0))
    weights = state_of(module)
    with pytest.raises(NonFiniteTrainingError) as caught:
        loop.step(*batch(1), poison=True)
    assert str(caught.value) == str(loop.guard.reports[0])
    assert caught.value.report is loop.guard.reports[0]
    assert is_same(state_of(module), weights)


def test_the_policy_skip_keeps_weights_and_rate():
    module = network()
    loop = PlainLoop(module, Guard("skip"))
    loop.step(*batch(0))
    weights = state_of(module)
    assert loop.step(*batch(1), poison=True) == "skip"
    assert is_same(state_of(module), weights)
    assert loop.guard.lr_scale == 1.0


@pytest.mark.parametrize("lr", [1e6, 1e15, 1e30, 1e38])
def test_an_absurd_rate_is_lowered_in_one_or_two_recoveries(lr):
    loop = PlainLoop(network(), Guard(), lr=lr)
    for _ in range(20):
        for seed in range(5):
            loop.step(*batch(seed))
        if loop.guard.has_finite_weights():
            loop.guard.propose_weights()
    assert 1 <= len(loop.guard.reports) <= 2
    assert lr * loop.guard.lr_scale < 10.0
    assert loop.guard.has_finite_weights()
    assert loop.losses[-1] < 100.0 * loop.losses[0]


# exploding losses


def explode(loop, n_steps=60, X=None, y=None):
    X, y = batch(0) if X is None else (X, y)
    for _ in range(n_steps):
        loop.step(X, y)


def diverging_linear(**options):
    """Return a loop whose steps overshoot: the loss grows and stays finite."""
    torch.manual_seed(0)
    return PlainLoop(nn.Linear(3, 1), Guard(), lr=2.0, **options)


def test_a_loss_that_explodes_without_overflow_is_recognized():
    loop = diverging_linear()
    explode(loop)
    report = loop.guard.reports[0]
    assert (report.phase, report.cause) == ("step", "learning_rate")
    assert report.evidence.startswith("The loss has grown to ")
    assert max(loop.losses) < 1e30
    assert loop.guard.lr_scale < 1.0
    assert loop.losses[-1] < loop.losses[0]


def test_a_short_training_has_explosions_recognized_sooner():
    long, short = diverging_linear(), diverging_linear(n_steps=30)
    explode(long)
    explode(short)
    assert short.guard.reports[0].batch < long.guard.reports[0].batch


def test_an_exploding_negative_loss_is_recognized():
    loop = diverging_linear(loss=lambda a, b: mse_loss(a, b) - 100.0)
    explode(loop)
    assert loop.guard.reports[0].phase == "step"


def test_a_loss_that_falls_to_minus_infinity_is_no_failure():
    loop = PlainLoop(network(), Guard(), loss=lambda a, b: -(1 + a**2).mean())
    explode(loop, 40)
    assert loop.losses[-1] < 100 * loop.losses[0] < 0.0
    assert loop.guard.reports == []


def test_a_spike_of_the_loss_is_no_failure():
    loop = PlainLoop(network(), Guard(), lr=1e-5)
    for i in range(60):
        loop.step(*batch(i, scale=1e3 if i % 20 == 10 else 1.0))
    assert max(loop.losses) > 1e4 * loop.losses[0]
    assert loop.guard.reports == []


def test_data_that_grow_along_a_sorted_table_are_no_failure():
    loop = PlainLoop(network(), Guard(), lr=1e-6)
    for i in range(80):
        loop.step(*batch(i, scale=1.2**i))
    assert loop.losses[-1] > 1e6 * loop.losses[0]
    assert loop.guard.reports == []


def test_a_loss_of_zero_at_first_does_not_make_every_other_one_explode():
    module = nn.Linear(3, 1)
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    loop = PlainLoop(module, Guard(), lr=1e-3)
    X, _ = batch()
    loop.step(X, torch.zeros(8, 1))
    for i in range(60):
        loop.step(*batch(i))
    assert loop.losses[0] == 0.0
    assert loop.guard.reports == []


def test_confirming_an_explosion_changes_neither_weights_nor_statistics():
    module = network(batch_norm=True)
    loop = PlainLoop(module, Guard(), lr=1e-6, n_steps=24)
    X, y = batch(0)
    for _ in range(4):
        loop.step(X, y)
    before = state_of(module)
    called = []

    def loss_of_batch():
        called.append(True)
        return loop.loss_of(X, y * 1e6)

    for _ in range(3):
        assert not loop.guard.has_exploded(1e6, loss_of_batch)
    assert called
    assert is_same(state_of(module), before)


# beginning, ending, parameters


def test_initial_weights_that_are_not_finite_are_refused():
    module = network()
    with torch.no_grad():
        module[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteTrainingError) as caught:
        PlainLoop(module, Guard())
    assert str(caught.value) == (
        "The network contains non-finite weights before the first step. Check its "
        "initialization, or the weights that were loaded into it."
    )


def test_a_training_interrupted_with_nan_weights_ends_with_verified_ones():
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    loop = PlainLoop(module, Guard(), optimizer)
    loop.step(*batch(0))
    verified, moments = state_of(module), moments_of(optimizer)
    loop.guard.propose_weights()
    loop.step(*batch(1))
    with torch.no_grad():
        module[0].weight.fill_(torch.nan)
    loop.guard.end()
    assert is_same(state_of(module), verified)
    for new, old in zip(moments_of(optimizer), moments, strict=True):
        assert is_same(new, old)


def test_after_its_end_a_guard_holds_no_tensor():
    loop = PlainLoop(network(), Guard())
    loop.step(*batch(0))
    assert loop.guard.has_begun
    during = pickle.loads(pickle.dumps(loop.guard))
    assert not during.has_begun
    loop.guard.end()
    assert not loop.guard.has_begun
    assert loop.guard.parameters == []
    assert len(pickle.dumps(loop.guard)) < 2000
    loop.guard.end()  # a second call has no effect


def test_a_second_training_has_a_new_budget_and_keeps_the_rate_and_the_reports():
    guard = Guard(max_recoveries=1)
    loop = PlainLoop(network(), guard)
    loop.step(*batch(0))
    failed(loop, REPORT)
    scale = guard.lr_scale
    guard.end()
    again = PlainLoop(network(), guard)
    assert guard.has_budget
    assert guard.lr_scale == scale
    again.step(*batch(0))
    assert failed(again, REPORT) == "retry"
    assert len(guard.reports) == 2


@pytest.mark.parametrize("policy", ["recovery", None, True])
def test_an_unknown_policy_is_refused(policy):
    with pytest.raises(ValueError, match="on_nonfinite") as caught:
        Guard(policy)
    assert str(caught.value) == (
        f"on_nonfinite must be one of 'recover', 'skip', 'raise', got {policy!r}."
    )


@pytest.mark.parametrize("budget", [-1, 1.5, True, None, "10"])
def test_an_impossible_budget_is_refused(budget):
    with pytest.raises(ValueError, match="max_recoveries") as caught:
        Guard(max_recoveries=budget)
    assert str(caught.value) == (
        f"max_recoveries must be an integer of at least 0, got {budget!r}."
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_are_guarded_too(dtype):
    loop = PlainLoop(network().to(dtype), Guard(), lr=1e-3)
    X, y = (tensor.to(dtype) for tensor in batch(0))
    assert loop.step(X, y) == "taken"
    assert loop.step(X, y, poison=True) == "taken"
    assert len(loop.guard.reports) == 1
    assert loop.guard.has_finite_weights()


def test_a_network_with_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="nothing to train") as caught:
        PlainLoop(network().requires_grad_(False), Guard())
    assert str(caught.value) == (
        "The network has nothing to train: none of its parameters requires a gradient. "
        "Call requires_grad_() on those that are to be trained, or leave out the "
        "callback that freezes them."
    )
