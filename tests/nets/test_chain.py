import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sknan import StableNetClassifier, StableNetRegressor
from sknan.exceptions import DivergenceWarning
from sknan.losses import CrossEntropyLoss, HuberLoss, MSELoss
from sknan.nets import PeriodicEmbedding, TabularMLP
from sknan.nets._chain import output_bound
from sknan.nets._layerwise_pass import layerwise_pass

ACTIVATIONS = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Mish, nn.GELU, nn.SELU]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(33, 5, generator=generator)
    return X, torch.randint(0, 3, (33,), generator=generator)


def chain(*hidden, n_in=5, width=7, n_out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, width), *hidden, nn.Linear(width, n_out))


def by_autograd(module, criterion, X, y):
    module.zero_grad()
    output = module(X)
    loss = criterion(output, y)
    loss.backward()
    return loss.detach(), output.detach(), [p.grad for p in module.parameters()]


def by_layers(module, criterion, X, y):
    module.zero_grad()
    layers = layerwise_pass(module, criterion, X)
    assert layers is not None
    step = layers.step(X, y, criterion)
    return step["loss"], step["y_pred"], [p.grad for p in module.parameters()]


def assert_same_bits(module, criterion, X, y):
    torch.manual_seed(1)
    expected = by_autograd(module, criterion, X, y)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    found = by_layers(module, criterion, X, y)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    for gradient, expected_gradient in zip(found[2], expected[2], strict=True):
        assert torch.equal(gradient, expected_gradient)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("criterion", [CrossEntropyLoss(), MSELoss()])
def test_embeddings_of_numbers_are_passed_bitwise(batch, criterion):
    X, y = batch
    torch.manual_seed(0)
    module = TabularMLP(5, 3, width=7, dropout=0.3, n_frequencies=4)
    target = y if isinstance(criterion, CrossEntropyLoss) else X[:, :3]
    assert_same_bits(module, criterion, X, target)


def test_an_embedding_after_other_layers_propagates_its_gradient(batch):
    X, y = batch
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Linear(5, 4), PeriodicEmbedding(4, [1, 2]), nn.Linear(10, 3)
    )
    assert_same_bits(module, CrossEntropyLoss(), X, y)


def test_the_bound_of_an_embedding_holds(batch):
    X, _ = batch
    torch.manual_seed(0)
    module = PeriodicEmbedding(5)
    with torch.no_grad():
        module.weight.mul_(30.0)
    assert module(X).abs().max() <= output_bound(module, X) < 1e4


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_loss_and_gradients_are_autograds_bitwise(batch, activation):
    assert_same_bits(chain(activation()), CrossEntropyLoss(), *batch)


@given(
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    activation=st.sampled_from(ACTIVATIONS),
    dropout=st.sampled_from([0.0, 0.3]),
    has_bias=st.booleans(),
    n_rows=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    kind=st.sampled_from(["cross_entropy", "torchs", "mse", "huber"]),
)
def test_any_chain_gives_the_same_bits(
    widths, activation, dropout, has_bias, n_rows, dtype, kind
):
    torch.manual_seed(len(widths) + n_rows)
    layers, n_in = [], 6
    for width in widths:
        layers += [nn.Linear(n_in, width, bias=has_bias), activation()]
        layers += [nn.Dropout(dropout), nn.Identity()]
        n_in = width
    module = nn.Sequential(nn.Sequential(*layers), nn.Linear(n_in, 3)).to(dtype)
    X = torch.randn(n_rows, 6, dtype=dtype)
    target = torch.randn(n_rows, 3, dtype=dtype)
    criterion, y = {
        "cross_entropy": (CrossEntropyLoss(), target.argmax(1)),
        "torchs": (nn.CrossEntropyLoss(), target.argmax(1)),
        "mse": (MSELoss(), target),
        "huber": (HuberLoss(), target),  # by autograd from the output on
    }[kind]
    assert_same_bits(module, criterion, X, y)


@pytest.mark.parametrize(
    "criterion",
    [
        CrossEntropyLoss(label_smoothing=0.1),
        CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0])),
        CrossEntropyLoss(ignore_index=1),
        CrossEntropyLoss(reduction="sum"),
    ],
    ids=["smoothed", "weighted", "ignoring", "summed"],
)
def test_options_of_a_loss_are_left_to_it(batch, criterion):
    assert_same_bits(chain(nn.ReLU()), criterion, *batch)


def test_a_stable_loss_stays_stable(batch):
    module = chain(nn.ReLU())
    with torch.no_grad():
        module[2].weight.fill_(torch.finfo(torch.float32).max)
    loss, _, grads = by_layers(module, CrossEntropyLoss(), *batch)
    assert torch.isfinite(loss)
    assert_same_bits(module, CrossEntropyLoss(), *batch)
    assert all(len(grad) for grad in grads)


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
    torch.manual_seed(0)
    assert_same_bits(build(), CrossEntropyLoss(), *batch)


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
    "no weights": lambda: nn.Sequential(nn.ReLU()),
    "a layer used twice": lambda: chain(*[nn.Linear(7, 7)] * 2),
    "a frozen layer": with_(lambda m: m[0].requires_grad_(False)),
    "a forward hook": with_(lambda m: m[1].register_forward_hook(print)),
    "a hook before": with_(lambda m: m.register_forward_pre_hook(print)),
    "a backward hook": with_(lambda m: m[0].register_full_backward_hook(print)),
    "a hook of a gradient": with_(lambda m: m[0].weight.register_hook(print)),
    "a hook after the gradient": with_(
        lambda m: m[0].weight.register_post_accumulate_grad_hook(print)
    ),
    "a forward of the instance": with_(lambda m: setattr(m[0], "forward", lambda x: x)),
    "a parametrization": with_(
        lambda m: nn.utils.parametrizations.weight_norm(m[0], "weight")
    ),
    "weights of another dtype": with_(lambda m: m[2].double()),
    "half precision": with_(lambda m: m.half()),
    "transposed weights": with_(
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.t().contiguous().t())
    ),
}


@pytest.mark.parametrize("build", STRANGERS.values(), ids=STRANGERS)
def test_anything_else_is_left_to_autograd(batch, build):
    assert layerwise_pass(build(), CrossEntropyLoss(), batch[0]) is None


def test_a_criterion_with_weights_or_hooks_is_left_to_autograd(batch):
    weighted = CrossEntropyLoss()
    weighted.scale = nn.Parameter(torch.ones(()))
    hooked = CrossEntropyLoss()
    hooked.register_forward_hook(print)
    for criterion in (weighted, hooked, nn.functional.cross_entropy):
        assert layerwise_pass(chain(nn.ReLU()), criterion, batch[0]) is None


def test_a_dispatch_mode_sees_the_operations_of_autograd(batch):
    module, criterion, X = chain(nn.ReLU()), CrossEntropyLoss(), batch[0]
    handle = nn.modules.module.register_module_forward_hook(print)
    assert layerwise_pass(module, criterion, X) is None
    handle.remove()
    with torch.autograd.set_detect_anomaly(True):
        assert layerwise_pass(module, criterion, X) is None
    with torch.autocast("cpu"):
        assert layerwise_pass(module, criterion, X) is None
    with torch.device("cpu"):
        assert layerwise_pass(module, criterion, X) is None
    with FlopCounterMode(display=False):
        assert layerwise_pass(module, criterion, X) is None
    assert layerwise_pass(module, criterion, X) is not None


@pytest.mark.parametrize(
    "X",
    [torch.zeros(4, 2, 5), torch.zeros(4, 5).double(), {"x": torch.zeros(4, 5)}],
    ids=["three dimensions", "another dtype", "dict"],
)
def test_other_inputs_are_left_to_autograd(X):
    assert layerwise_pass(chain(nn.ReLU()), CrossEntropyLoss(), X) is None


# -- inside the estimators -----------------------------------------------------------


class Opaque(nn.Sequential):
    """The same layers, in a ``forward`` that is not recognized."""

    def forward(self, X):
        for layer in self:
            X = layer(X)
        return X


@pytest.mark.parametrize("door", [StableNetClassifier, StableNetRegressor])
@pytest.mark.parametrize("lr", [1e-3, 1e6])
def test_a_training_is_the_same_with_and_without_autograd(door, lr):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = (X[:, 0] > 0).astype(int)

    def trained(kind):
        n_outputs = 1 if door is StableNetRegressor else 2
        torch.manual_seed(0)
        layers = [nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, n_outputs)]
        model = door(kind(*layers), lr=lr, max_epochs=4, batch_size=32, random_state=0)
        if lr > 1:
            with pytest.warns(DivergenceWarning):
                model.fit(X, y)
        else:
            model.fit(X, y)
        return model.net_.module_.state_dict().values(), model.net_.history

    (ours, history), (theirs, other) = trained(nn.Sequential), trained(Opaque)
    assert all(itertools.starmap(torch.equal, zip(ours, theirs, strict=True)))
    assert history[:, "train_loss"] == other[:, "train_loss"]
    assert history[:, "grad_norm"] == other[:, "grad_norm"]


# -- what the outputs cannot exceed --------------------------------------------------


@given(
    activation=st.sampled_from(ACTIVATIONS),
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
