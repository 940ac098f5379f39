"""Dropout of 16 random bits for each unit: its masks against the binomial law."""

import math

import numpy as np
import pytest
import torch

from sknan.nets import TabularMLP
from sknan.nets._dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.001, 0.2, 0.5, 0.97])
def test_each_unit_is_zero_with_the_probability_and_the_mean_is_kept(p, dtype):
    torch.manual_seed(0)
    n = 200_000
    output = Dropout(p)(torch.ones(n // 4, 4, dtype=dtype)).double()
    kept = output != 0.0
    assert abs((~kept).sum() - n * p) < 4.0 * math.sqrt(n * p * (1.0 - p))
    # Rows of four units share one random number of 64 bits.
    for unit in kept.T[1:]:
        both = kept[:, 0] & unit
        assert abs(both.sum() - n / 4 * (1.0 - p) ** 2) < 4.0 * math.sqrt(n / 4) / 2.0
    scale = 1.0 / (1.0 - p)
    np.testing.assert_allclose(output[kept], scale, rtol=torch.finfo(dtype).eps + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("p", [1e-6, 0.999999, 1.0])
def test_probabilities_next_to_0_and_1_have_the_masks_of_torch(p, dtype):
    x = torch.ones(1001, 7, dtype=dtype)
    outputs = []
    for layer in (Dropout(p), torch.nn.Dropout(p)):
        torch.manual_seed(0)
        outputs.append(layer(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("is_trained", [True, False])
def test_compilers_and_transforms_of_torch_know_every_operation(is_trained):
    net = TabularMLP(3, 2, width=8, dropout=0.5).train(is_trained)
    x = torch.randn(5, 3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    scripted = torch.jit.script(net)
    traced = torch.jit.trace(net, x, check_trace=False)
    exported = torch.export.export(net, (x,)).module()
    by_row = torch.vmap(net, randomness="different")
    for function in (compiled, scripted, traced, exported, by_row):
        assert function(x).isfinite().all()
        if not is_trained:
            torch.testing.assert_close(function(x), net(x))


def test_the_gradient_has_the_mask_of_the_output():
    torch.manual_seed(0)
    x = torch.randn(50, 30, requires_grad=True)
    output = Dropout(0.3)(x)
    output.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), output.detach())


def test_nothing_is_set_to_zero_or_drawn_in_evaluation_mode():
    x, state = torch.ones(3, 2), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_the_default_network_draws_no_mask_twice():
    torch.manual_seed(0)
    net = TabularMLP(3, 2, width=8, dropout=0.5)
    x = torch.randn(5, 3)
    assert not torch.equal(net(x), net(x))
    torch.manual_seed(1)
    first = net(x)
    torch.manual_seed(1)
    assert torch.equal(net(x), first)
