"""Training steps in the coordinates of standardized data."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sknan.losses import HuberLoss, MSELoss, PoissonNLLLoss
from sknan.nets.recovery.raw_units import (
    Conditioning,
    conditioned,
    feeds_linear_layers,
)

SHIFT, SCALE = torch.tensor([2000.0, -50.0, 0.0]), torch.tensor([1e4, 20.0, 1.0])
N_STEPS = 5

# Products are summed in another order, and inputs of size 2000 are centered.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}


def standard_data(dtype=torch.float64, n_rows=200):
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(n_rows, 3, generator=generator, dtype=dtype)
    noise = torch.randn(n_rows, 1, generator=generator, dtype=dtype)
    return X, X.sum(1, keepdim=True) + 0.1 * noise


def units(values):
    """Return the median and half the width of the middle 68.2 %, column by column."""
    levels = torch.tensor([0.159, 0.5, 0.841], dtype=torch.float64)
    low, middle, high = torch.quantile(values.double(), levels, dim=0)
    return middle.to(values), ((high - low) / 2).to(values)


def raw_data(dtype, is_raw):
    X, y = standard_data(dtype)
    if is_raw in ("inputs", "both"):
        X = X * SCALE.to(dtype) + SHIFT.to(dtype)
    if is_raw in ("target", "both"):
        y = y * 3e5 + 1e6
    return X, y


def standardized(X, y, is_raw, *, is_centered=(True, True)):
    if is_raw in ("inputs", "both"):
        middle, spread = units(X)
        X = (X - middle * is_centered[0]) / spread
    if is_raw in ("target", "both"):
        middle, spread = units(y)
        y = (y - middle * is_centered[1]) / spread
    return X, y


class MLP(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.first = nn.Linear(3, 8, bias=bias)
        self.head = nn.Linear(8, 1, bias=bias)

    def forward(self, x):
        return self.head(torch.tanh(self.first(x)))


NETWORKS = {
    "mlp": MLP,
    "linear": lambda: nn.Linear(3, 1),
    "no bias": lambda: MLP(bias=False),
    "linear, no bias": lambda: nn.Linear(3, 1, bias=False),
}
OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (torch.optim.Adam, {"lr": 0.05}),
}


def trained(module, optimizer, X, y, loss, conditioning=None):
    """Take some steps and return the outputs after each."""
    outputs = []
    for _ in range(N_STEPS):
        optimizer.zero_grad()
        loss(module(X), y).backward()
        if conditioning is not None:
            conditioning.scale_grads()
            conditioning.to_scaled()
        optimizer.step()
        if conditioning is not None:
            conditioning.to_raw()
        outputs.append(module(X).detach())
    return outputs


def conditioned_on(module, criterion, X, y):
    return conditioned(module, criterion, (X[:16], y[:16]), (X, y), module)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("is_raw", ["inputs", "target", "both"])
@pytest.mark.parametrize("network", NETWORKS)
def test_steps_are_those_of_the_network_on_standardized_data(
    network, is_raw, optimizer, dtype
):
    torch.manual_seed(0)
    reference = NETWORKS[network]().to(dtype)
    module = copy.deepcopy(reference)
    X, y = raw_data(dtype, is_raw)
    has_bias = "no bias" not in network
    X_standard, y_standard = standardized(X, y, is_raw, is_centered=(has_bias,) * 2)
    kind, options = OPTIMIZERS[optimizer]
    expected = trained(
        reference,
        kind(reference.parameters(), **options),
        X_standard,
        y_standard,
        F.mse_loss,
    )

    conditioning = conditioned_on(module, nn.MSELoss(), X, y)
    assert isinstance(conditioning, Conditioning)
    conditioning.reinterpret()
    found = trained(
        module, kind(module.parameters(), **options), X, y, F.mse_loss, conditioning
    )
    middle, spread = units(y)
    for output, target in zip(found, expected, strict=True):
        if is_raw != "inputs":
            target = target * spread + middle * has_bias
        error = (output - target).abs().max() / y.std()
        assert error < TOLERANCES[dtype]


def test_an_absolute_loss_is_scaled_by_the_power_of_its_unit():
    torch.manual_seed(0)
    reference = MLP().double()
    module = copy.deepcopy(reference)
    X, y = raw_data(torch.float64, "both")
    expected = trained(
        reference,
        torch.optim.SGD(reference.parameters(), lr=0.05),
        *standardized(X, y, "both"),
        F.l1_loss,
    )
    conditioning = conditioned_on(module, nn.L1Loss(), X, y)
    conditioning.reinterpret()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    found = trained(module, optimizer, X, y, F.l1_loss, conditioning)
    middle, spread = units(y)
    torch.testing.assert_close(found[-1], expected[-1] * spread + middle)


def test_two_first_layers_are_both_conditioned():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)
            self.head = nn.Linear(4, 1)

        def forward(self, x):
            return self.head(torch.tanh(self.left(x)) * torch.sigmoid(self.right(x)))

    torch.manual_seed(0)
    reference = Two().double()
    module = copy.deepcopy(reference)
    X, y = raw_data(torch.float64, "inputs")
    expected = trained(
        reference,
        torch.optim.Adam(reference.parameters(), lr=0.05),
        *standardized(X, y, "inputs"),
        F.mse_loss,
    )
    conditioning = conditioned_on(module, nn.MSELoss(), X, y)
    conditioning.reinterpret()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    found = trained(module, optimizer, X, y, F.mse_loss, conditioning)
    torch.testing.assert_close(found[-1], expected[-1])


def test_changing_the_coordinates_twice_preserves_the_function():
    torch.manual_seed(0)
    module = MLP().double()
    X, y = raw_data(torch.float64, "both")
    conditioning = conditioned_on(module, nn.MSELoss(), X, y)
    before = module(X)
    conditioning.to_scaled()
    assert not torch.allclose(module(X), before)
    conditioning.to_raw()
    torch.testing.assert_close(module(X), before)
    after = module(X)
    conditioning.to_raw()  # no effect
    assert torch.equal(module(X), after)


def test_in_scaled_weights_the_network_sees_standardized_data():
    torch.manual_seed(0)
    module = MLP().double()
    X, y = raw_data(torch.float64, "both")
    before = module(X)
    conditioning = conditioned_on(module, nn.MSELoss(), X, y)
    conditioning.to_scaled()
    middle, spread = units(y)
    output = module(standardized(X, y, "both")[0]) * spread + middle
    torch.testing.assert_close(output, before)


def test_frozen_weights_have_no_gradient_to_be_scaled():
    module = MLP().double()
    module.first.requires_grad_(False)
    X, y = raw_data(torch.float64, "both")
    conditioning = conditioned_on(module, nn.MSELoss(), X, y)
    F.mse_loss(module(X), y).backward()
    conditioning.scale_grads()
    assert module.first.weight.grad is None
    assert module.head.weight.grad.isfinite().all()


def test_a_saved_state_conditions_an_equal_network_in_the_same_way():
    torch.manual_seed(0)
    first = MLP().double()
    second = copy.deepcopy(first)
    X, y = raw_data(torch.float64, "both")
    one = conditioned_on(first, nn.MSELoss(), X, y)
    other = Conditioning.from_state_dict(one.state_dict(first), second)
    outputs = []
    for module, conditioning in ((first, one), (second, other)):
        conditioning.reinterpret()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        outputs.append(trained(module, optimizer, X, y, F.mse_loss, conditioning)[-1])
    assert torch.equal(*outputs)
    state = one.state_dict(first)
    shift = state["units"][0]["shift"]
    for wrong in (shift[:0], shift + torch.nan):
        state["units"][0]["shift"] = wrong
        assert Conditioning.from_state_dict(state, second) is None
    state["loss_scale"] = float("nan")
    assert Conditioning.from_state_dict(state, second) is None


# -- columns -------------------------------------------------------------------------


def shifts_of(X, y=None, criterion=None):
    """Return the mean and deviation of each column that the first layer uses."""
    module = nn.Linear(X.shape[1], 1).double()
    y = torch.zeros(len(X), 1, dtype=torch.float64) if y is None else y
    conditioning = conditioned(module, criterion, (X[:8], y[:8]), (X, y), module)
    if conditioning is None:
        return None
    weight, bias = torch.ones_like(module.weight), torch.zeros_like(module.bias)
    with torch.no_grad():
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    conditioning.to_scaled()
    return module.weight.detach().flatten(), module.bias.item()


def test_a_constant_column_is_scaled_by_the_absolute_value():
    X = torch.randn(50, 2, dtype=torch.float64)
    X[:, 1] = 5000.0
    scale, shift = shifts_of(X)
    assert scale[1] == 5000.0
    assert shift == pytest.approx(5000.0 + X[:, 0].quantile(0.5).item())


def test_a_column_of_zeros_or_tiny_numbers_is_not_scaled():
    X = torch.randn(50, 3, dtype=torch.float64)
    X[:, 0] *= 1e6
    X[:, 1] = 0.0
    X[:, 2] *= 1e-20
    scale, _ = shifts_of(X)
    assert scale[0] > 1e5
    assert scale[1:].tolist() == [1.0, 1.0]


def test_an_outlier_has_no_effect_on_the_scale():
    X = torch.randn(500, 1, dtype=torch.float64) * 100.0
    X[3] = 1e30
    scale, shift = shifts_of(X)
    assert 80.0 < scale.item() < 120.0
    assert abs(shift) < 20.0


def test_a_column_that_is_mostly_constant_is_scaled_by_the_other_values():
    X = torch.zeros(100, 1, dtype=torch.float64)
    X[:5] = 1e4
    scale, shift = shifts_of(X)
    assert scale.item() == pytest.approx(X.std(correction=0).item())
    assert shift == 0.0


def test_columns_of_size_one_are_not_raw():
    assert shifts_of(torch.randn(50, 3, dtype=torch.float64) * 2.0 + 1.0) is None


def test_infinities_in_the_data_have_no_effect():
    X = torch.randn(50, 2, dtype=torch.float64) * 1e4
    X[:40, 1] = torch.inf
    scale, _ = shifts_of(X)
    assert scale.isfinite().all()
    assert scale[1] == 1.0


# -- networks that cannot be conditioned ---------------------------------------------


class Product(MLP):
    def forward(self, x):
        return super().forward(x) * x[:, :1]


class Reordered(MLP):
    def forward(self, x):
        return super().forward(x[:, [2, 0, 1]])


class Unchanged(MLP):
    def forward(self, x):
        x = F.dropout(x, 0.5, training=False)
        return super().forward(torch.nan_to_num(x[:, :3]).reshape(-1, 3))


class Own(nn.Module):
    """Product with a weight that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3))

    def forward(self, x):
        return torch.tanh(F.linear(x, self.weight))


class Normalized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return torch.tanh(self.linear(self.norm(x)))


@pytest.mark.parametrize("network", [Product, Reordered, Own, Normalized])
def test_inputs_with_other_uses_are_not_conditioned(network):
    X, y = raw_data(torch.float64, "inputs")
    assert conditioned_on(network().double(), nn.MSELoss(), X, y) is None


def test_a_function_that_leaves_the_input_as_it_is_is_no_other_use():
    X, y = raw_data(torch.float64, "inputs")
    assert conditioned_on(Unchanged().double(), nn.MSELoss(), X, y) is not None
    assert feeds_linear_layers(Unchanged(), X.float())
    assert not feeds_linear_layers(Reordered(), X.float())


def test_reading_the_shape_of_the_input_is_no_other_use():
    class Asking(MLP):
        def forward(self, x):
            assert x.shape[1] == 3
            assert x.dtype == torch.float64
            assert len(x) == x.size(0)
            return super().forward(x)

    X, y = raw_data(torch.float64, "inputs")
    assert conditioned_on(Asking().double(), nn.MSELoss(), X, y) is not None


class Bounded(MLP):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


@pytest.mark.parametrize(
    ("network", "criterion"),
    [
        (MLP, nn.PoissonNLLLoss()),
        (MLP, PoissonNLLLoss()),
        (MLP, F.mse_loss),
        (MLP, None),
        (Bounded, nn.MSELoss()),
    ],
    ids=["poisson", "output", "function", "none", "bounded"],
)
def test_targets_of_other_losses_are_not_conditioned(network, criterion):
    X, y = raw_data(torch.float64, "target")
    assert conditioned_on(network().double(), criterion, X, y) is None


@pytest.mark.parametrize("criterion", [MSELoss(), HuberLoss(), nn.SmoothL1Loss()])
def test_losses_of_sknan_that_compare_are_known(criterion):
    X, y = raw_data(torch.float64, "target")
    assert conditioned_on(MLP().double(), criterion, X, y) is not None


def test_an_output_may_be_reshaped():
    class Flat(MLP):
        def forward(self, x):
            return super().forward(x).squeeze(1)

    X, y = raw_data(torch.float64, "target")
    assert conditioned_on(Flat().double(), nn.MSELoss(), X, y.flatten()) is not None


def test_a_head_that_is_used_twice_has_no_unit():
    class Twice(MLP):
        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            self.head(hidden * 2)
            return self.head(hidden)

    X, y = raw_data(torch.float64, "target")
    assert conditioned_on(Twice().double(), nn.MSELoss(), X, y) is None


def test_labels_and_shapes_that_do_not_match_have_no_unit():
    X, _ = raw_data(torch.float64, "target")
    labels = torch.full((200,), 100)
    assert conditioned_on(MLP().double(), nn.MSELoss(), X, labels) is None
    wide = torch.full((200, 2), 1e6, dtype=torch.float64)
    assert conditioned_on(MLP().double(), nn.MSELoss(), X, wide) is None


@pytest.mark.parametrize(
    "inputs",
    [
        torch.full((4, 3), 10**6),
        torch.full((4, 2, 3), 1e6),
        torch.empty(0, 3),
        {"x": torch.full((4, 3), 1e6)},
    ],
    ids=["codes", "series", "empty", "dict"],
)
def test_inputs_other_than_tables_are_not_conditioned(inputs):
    found = conditioned(
        nn.Linear(3, 1), nn.MSELoss(), (inputs, None), (inputs, None), F
    )
    assert found is None


def test_a_network_that_raises_is_not_conditioned():
    class Factor(MLP):
        def forward(self, x):
            torch.linalg.cholesky(torch.diag_embed(x * 0))
            return super().forward(x)

    X, y = raw_data(torch.float64, "both")
    assert conditioned_on(Factor().double(), nn.MSELoss(), X, y) is None


def test_the_examination_changes_neither_weights_nor_outputs():
    torch.manual_seed(0)
    module = MLP().double()
    before = copy.deepcopy(module.state_dict())
    X, y = raw_data(torch.float64, "both")
    conditioned_on(module, nn.MSELoss(), X, y)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in module.parameters())
