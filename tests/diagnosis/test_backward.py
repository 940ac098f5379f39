"""Detection of the operation that fails in a backward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diagnosis_helpers import (
    Net,
    Operation,
    found,
    line_of,
    table,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from sknan import GuardedNet, NonFiniteTrainingError
from sknan.diagnosis import diagnose

BACKWARD = {
    "sqrt": (lambda x: torch.sqrt(x), 0.0, "aten.sqrt"),
    "root": (lambda x: x**0.5, 0.0, "aten.pow"),
    "norm by hand": (lambda x: x / (x.square().sum(1, True).sqrt() + 1), 0.0, "sqrt"),
    "sqrt trap": (lambda x: torch.where(x > 0, torch.sqrt(x), x), -1.0, "aten.sqrt"),
    "div trap": (lambda x: torch.where(x > 0, 1 / x, x), 0.0, "aten.reciprocal"),
    "log trap": (lambda x: torch.where(x > 0, torch.log(x), x), -0.0, "aten.log"),
    "masked trap": (lambda x: torch.log(x).masked_fill(x <= 0, 0.0), 0.0, "aten.log"),
    "acos": (lambda x: torch.acos(x / 4), 4.0, "aten.acos"),
    "asin": (lambda x: torch.asin(x / 4), 4.0, "aten.asin"),
    "hypot": (lambda x: torch.hypot(x, x), 0.0, "aten.hypot"),
    "sqrt_": (lambda x: (x * 1).sqrt_(), 0.0, "aten.sqrt_"),
    "cdist": (lambda x: x + (x - 1).square().sum(1, True).sqrt(), 1.0, "aten.sqrt"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_an_operation_of_the_backward_pass_is_found_with_line_and_rows(name):
    function, value, operation = BACKWARD[name]
    report = found(function, table(row1=value, row4=value))
    assert (report.phase, report.module) == ("backward", "inner.part")
    assert report.operation.removeprefix("aten.") == operation.removeprefix("aten.")
    assert report.source == line_of(function)
    assert report.rows == (1, 4)


def test_an_overflowing_gradient_is_found_at_the_operation_that_overflows():
    report = found(
        lambda x: (x * 1e30).tanh() + x, table() * 0, lambda o, y: o.sum() * 1e20
    )
    assert (report.phase, report.operation) == ("backward", "aten.mul")
    assert report.module == "inner.part"


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 0.0


def test_a_user_defined_gradient_is_located_at_the_line_that_calls_the_function():
    def function(x):
        return InfiniteGradient.apply(x)

    report = found(function, table())
    assert (report.phase, report.operation) == ("backward", "InfiniteGradient")
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)


def test_the_gradient_of_a_loss_is_located_by_line():
    def root_of_squares(output, target):
        return torch.sqrt((output - target).square().mean())

    def same(x):
        return x * 0

    module = Net(same)
    nn.init.zeros_(module.head.bias)
    report = diagnose(module, root_of_squares, table(), torch.zeros(6, 1))
    assert (report.phase, report.module) == ("backward", "criterion")
    assert report.operation == "aten.sqrt"
    assert report.source == line_of(root_of_squares, 1)


@pytest.mark.parametrize("reentrant", [False, True])
def test_failed_gradients_of_checkpointed_parts_are_found(reentrant):
    def function(x):
        return checkpoint(torch.sqrt, x, use_reentrant=reentrant)

    report = found(function, table(row1=0.0))
    assert report.phase == "backward"
    assert report.module == "inner.part"
    assert report.source == line_of(function, 1)
    if not reentrant:
        assert report.operation == "aten.sqrt"
        assert report.rows == (1,)


# -- hooks on gradients --------------------------------------------------------------


def divided(grad):
    return grad / 0.0


def divide_in_place(weight):
    weight.grad.div_(0.0)


def of_weight(net):
    net.first.weight.register_hook(divided)


def after_accumulation(net):
    net.first.weight.register_post_accumulate_grad_hook(divide_in_place)


def of_module(net):
    net.head.register_full_backward_hook(lambda module, grads, _: (grads[0] / 0.0,))


@pytest.mark.parametrize("is_guarded", [False, True])
@pytest.mark.parametrize(
    ("hook", "operation", "source"),
    [
        (of_weight, "aten.div", line_of(divided, 1)),
        (after_accumulation, "aten.div_", line_of(divide_in_place, 1)),
        (of_module, "aten.div", line_of(of_module, 1)),
    ],
)
def test_a_hook_that_ruins_a_gradient_is_named(hook, operation, source, is_guarded):
    net, X, y = Net(torch.tanh), table(), torch.ones(6, 1)
    hook(net)
    if is_guarded:
        options = {"on_nonfinite": "raise", "train_split": None, "verbose": 0}
        with pytest.raises(NonFiniteTrainingError) as caught:
            GuardedNet(net, nn.MSELoss, **options).fit(X.numpy(), y.numpy())
        report = caught.value.report
    else:
        report = diagnose(net, nn.MSELoss(), X, y)
    assert report.phase == "backward"
    assert report.module == ("head" if hook is of_module else "first")
    assert (report.operation, report.source) == (operation, source)
    assert report.action == "Correct this hook, which was given a finite gradient."


def test_a_hook_on_an_activation_is_named_with_its_rows():
    def function(x):
        x.register_hook(lambda grad: torch.where(x > 1.9, torch.nan, grad))
        return torch.tanh(x)

    report = found(function, table(row3=3.0))
    assert (report.phase, report.operation) == ("backward", "aten.where")
    assert (report.source, report.rows) == (line_of(function, 1), (3,))


def test_a_hook_without_an_operation_of_torch_is_named_by_its_weight():
    net, nan = Net(torch.tanh), np.full((1, 3), np.nan, dtype="float32")
    net.head.weight.register_hook(lambda grad: torch.from_numpy(nan))
    report = diagnose(net, nn.MSELoss(), table(), torch.ones(6, 1))
    assert str(report) == (
        "Non-finite gradient in 'head'. The loss is 4.06 but 1 of 4 gradients are "
        "non-finite, first that of 'head.weight'. Correct this hook, which was given a "
        "finite gradient."
    )


def test_a_sum_of_finite_gradients_that_overflows_is_found():
    def function(x):
        return x * 1e19 + x * 1e19

    net = Net(function)
    nn.init.ones_(net.head.weight)
    X, y = table() * 1e-20, torch.ones(6, 1)
    report = diagnose(net, lambda o, y: (o * 2.5e19).sum(), X, y)
    assert (report.phase, report.operation) == ("backward", "aten.add")
    assert (report.cause, report.source) == ("gradient", line_of(function, 1))


def test_a_hook_that_steps_an_optimizer_leaves_weights_and_training_alone():
    net = Net(torch.sqrt)
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in net.parameters()}

    def step(weight):
        optimizers[weight].step()
        optimizers[weight].zero_grad()

    for weight in net.parameters():
        weight.register_post_accumulate_grad_hook(step)
    before = [p.clone() for p in net.parameters()]
    assert diagnose(net, nn.MSELoss(), table(), torch.ones(6, 1)) is None
    report = diagnose(net, nn.MSELoss(), table(row2=0.0), torch.ones(6, 1))
    assert (report.operation, report.rows) == ("aten.sqrt", (2,))
    assert all(map(torch.equal, before, net.parameters()))


# -- gradients inside a forward pass or a loss ---------------------------------------


class Derivative(nn.Module):
    """A network that returns a function of its inputs plus its n-th derivative."""

    def __init__(self, function, n):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"part": Operation(function)})
        self.scale = nn.Parameter(torch.ones(()))
        self.n = n

    def forward(self, x):
        x = x.clone().requires_grad_()
        value = derivative = self.inner["part"](x) * self.scale
        for _ in range(self.n):
            total = derivative.sum()
            (derivative,) = torch.autograd.grad(total, x, create_graph=True)
        return (value + derivative).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "n", "operation"),
    [
        (lambda x: torch.sqrt(x), 1, "aten.sqrt"),
        (lambda x: x.abs() ** 1.5, 2, "aten.pow"),  # its derivatives contain zeros
        (lambda x: torch.where(x > 0, torch.log(x), x), 1, "aten.log"),
    ],
)
def test_a_gradient_inside_a_forward_pass_is_blamed_on_its_operation(
    function, n, operation
):
    module, y = Derivative(function, n), torch.ones(6, 1)
    assert diagnose(module, nn.MSELoss(), table(), y) is None
    report = diagnose(module, nn.MSELoss(), table(row1=0.0), y)
    assert (report.phase, report.module) == ("backward", "inner.part")
    assert (report.operation, report.source) == (operation, line_of(function))
    assert report.rows == (1,)


def test_a_gradient_penalty_is_blamed_on_the_root_in_it():
    class Penalty(nn.Module):
        def __init__(self, critic):
            super().__init__()
            self.critic = critic

        def forward(self, output, target):
            x = torch.zeros(4, 3, requires_grad=True)
            total = self.critic(x).sum()
            (slope,) = torch.autograd.grad(total, x, create_graph=True)
            return squared_root(slope) + ((output - target) ** 2).mean()

    def squared_root(slope):
        return (slope.square().sum(1).sqrt() - 1).square().mean()

    critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(critic[0].bias, -1.0)
    report = diagnose(critic, Penalty(critic), table(), torch.ones(6, 1))
    assert (report.phase, report.module) == ("backward", "criterion")
    assert (report.operation, report.source) == ("aten.sqrt", line_of(squared_root, 1))
    assert report.action == "Use sknan.functional.norm."
