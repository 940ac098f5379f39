import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sknan.nets import PeriodicEmbedding, TabularMLP
from sknan.nets._chain import ACTIVATIONS, layers_of, output_bound


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(33, 5, generator=generator)
    return X, torch.randint(0, 3, (33,), generator=generator)


def chain(*hidden, n_in=5, width=7, n_out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, width), *hidden, nn.Linear(width, n_out))


def test_the_bound_of_an_embedding_holds(batch):
    X, _ = batch
    torch.manual_seed(0)
    module = PeriodicEmbedding(5)
    with torch.no_grad():
        module.weight.mul_(30.0)
    assert module(X).abs().max() <= output_bound(module, X) < 1e4


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_gradients_of_activations_are_autograds_bitwise(kind):
    module = kind()
    x = torch.linspace(-8.0, 8.0, 1001, requires_grad=True)
    output = module(x)
    output.backward(torch.cos(x.detach()))
    function, gradient, saves_output = ACTIVATIONS[kind]
    with torch.no_grad():
        found = function(module, x)
        saved = found if saves_output else x
        assert torch.equal(found, output)
        assert torch.equal(gradient(module, torch.cos(x), saved), x.grad)


# -- what is taken for a chain -------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = chain(nn.ReLU())

    def forward(self, x):
        """With a docstring."""
        return self.net(x)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Linear(5, 4), nn.Tanh()
        self.second = nn.Linear(4, 3)

    def forward(self, inputs):
        return self.second(self.act(self.first(inputs)))


class InTurn(Nested):
    def forward(self, x):
        x = self.first(x)
        x = self.act(x)
        return self.second(x)


class Assigned(Nested):
    def forward(self, x):
        x = self.first(x)
        x = self.act(x)
        x = self.second(x)
        return x  # noqa: RET504 - as many write it


@pytest.mark.parametrize(
    "build", [Wrapped, Nested, InTurn, Assigned, lambda: TabularMLP(5, 3, dropout=0.2)]
)
def test_a_module_that_only_passes_its_input_on_is_a_chain(batch, build):
    module, X = build().eval(), batch[0]
    assert torch.equal(nn.Sequential(*layers_of(module))(X), module(X))


def test_layers_without_effect_are_left_out():
    module = chain(nn.Identity(), nn.Dropout(0.0), nn.Dropout(0.5))
    assert layers_of(module) == [module[0], module[3], module[4]]


class Doubled(Nested):
    def forward(self, x):
        return self.second(self.act(self.act(self.first(x))))


class Scaled(Nested):
    def forward(self, x):
        return self.second(self.act(self.first(x * 2)))


class Residual(Nested):
    def forward(self, x):
        hidden = self.first(x)
        return self.second(self.act(hidden) + hidden)


class Counting(Nested):
    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return self.second(self.act(self.first(x)))


class Random(Nested):
    def forward(self, x):
        if torch.rand(()) < 0.5:
            return self.second(self.first(x))
        return self.second(self.act(self.first(x)))


class Hiding(Nested):
    def __getattr__(self, name):
        return super().__getattr__(name)


class Shadowing(Nested):
    act = property(lambda self: torch.relu)

    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)


class Patched(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def with_(change, build=lambda: chain(nn.ReLU())):
    def built():
        module = build()
        change(module)
        return module

    return built


STRANGERS = {
    "another order": Doubled,
    "something more": Scaled,
    "a residual": Residual,
    "a counter": Counting,
    "a choice": Random,
    "attributes of its own": Hiding,
    "a property": Shadowing,
    "a subclass of a layer": lambda: nn.Sequential(Patched(5, 3)),
    "an unknown layer": lambda: chain(nn.BatchNorm1d(7)),
    "certain dropout": lambda: chain(nn.Dropout(1.0)),
    "a forward hook": with_(lambda m: m[1].register_forward_hook(print)),
    "a hook before": with_(lambda m: m.register_forward_pre_hook(print)),
    "a backward hook": with_(lambda m: m[0].register_full_backward_hook(print)),
    "a forward of the instance": with_(lambda m: setattr(m[0], "forward", lambda x: x)),
    "a parametrization": with_(
        lambda m: nn.utils.parametrizations.weight_norm(m[0], "weight")
    ),
}


@pytest.mark.parametrize("build", STRANGERS.values(), ids=STRANGERS)
def test_anything_else_is_no_chain(build):
    assert layers_of(build()) is None


def test_a_hook_of_all_modules_prevents_a_chain():
    handle = nn.modules.module.register_module_forward_hook(print)
    assert layers_of(chain(nn.ReLU())) is None
    handle.remove()
    assert layers_of(chain(nn.ReLU())) is not None


# -- what the outputs cannot exceed --------------------------------------------------


@given(
    activation=st.sampled_from(list(ACTIVATIONS)),
    scale=st.floats(1e-3, 1e6),
    depth=st.integers(0, 4),
)
def test_no_value_exceeds_the_bound(activation, scale, depth):
    torch.manual_seed(depth)
    layers = [nn.Linear(3, 8)]
    for _ in range(depth):
        layers += [activation(), nn.Dropout(0.5), nn.Linear(8, 8)]
    module = nn.Sequential(*layers).eval()
    X = torch.randn(50, 3) * scale
    bound = output_bound(module, X)
    values = X
    for layer in module:
        values = layer(values)
        assert values.abs().max() <= bound * (1 + 1e-6)


def test_a_network_that_is_no_chain_has_no_bound(batch):
    assert output_bound(Residual(), batch[0]) == np.inf


def test_a_bound_that_overflows_on_the_way_is_infinite():
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    with torch.no_grad():
        module[0].weight.fill_(1e30)
        module[1].weight.fill_(0.0)
    bound = output_bound(module, torch.full((2, 1), 1e30))
    assert bound == pytest.approx(1e60, rel=1e-3)


def test_batch_normalization_has_a_bound():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)
    )
    with torch.no_grad():
        module[1].weight.mul_(-3.0)
    X = torch.randn(50, 3) * 100 + 7
    module(X)
    module.eval()
    assert module(X).abs().max() <= output_bound(module, X) < 1e6
    with torch.no_grad():
        module[1].running_var.zero_()
        module[1].bias.fill_(1e25)
        module[3].weight.fill_(1e10)
    assert output_bound(module, X) > 1e35
    assert output_bound(nn.BatchNorm1d(3, track_running_stats=False), X) == np.inf
