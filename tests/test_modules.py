from __future__ import annotations

import copy
import pickle

import pytest
import torch

from sknan.modules import TabularMLP

ACTIVATIONS = ["relu", "gelu", "selu", "silu", "mish", "tanh"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_output_and_gradients_are_finite_and_of_the_right_shape(activation, depth):
    torch.manual_seed(0)
    module = TabularMLP(3, 2, width=8, depth=depth, activation=activation)
    X = torch.cat([torch.randn(5, 3), torch.zeros(1, 3), torch.full((1, 3), 1e4)])
    output = module(X)
    assert output.shape == (7, 2)
    assert torch.isfinite(output).all()
    output.sum().backward()
    for parameter in module.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("rows", [0, 1])
def test_a_batch_of_one_row_or_none_passes(rows):
    torch.manual_seed(0)
    assert TabularMLP(3, 2, width=4)(torch.zeros(rows, 3)).shape == (rows, 2)


def test_depth_zero_is_a_linear_model():
    torch.manual_seed(0)
    module = TabularMLP(3, 2, depth=0)
    X = torch.randn(5, 3)
    expected = X @ module.head.weight.T + module.head.bias
    torch.testing.assert_close(module(X), expected)
    assert sum(p.numel() for p in module.parameters()) == 8


def test_width_and_depth_decide_the_number_of_weights():
    module = TabularMLP(3, 2, width=5, depth=2)
    expected = (3 * 5 + 5) + (5 * 5 + 5) + (5 * 2 + 2)
    assert sum(p.numel() for p in module.parameters()) == expected


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    module = TabularMLP(3, 2, width=32, dropout=0.5)
    X = torch.randn(4, 3)
    assert not torch.equal(module(X), module(X))
    module.eval()
    assert torch.equal(module(X), module(X))


def test_without_dropout_no_random_number_is_drawn():
    torch.manual_seed(0)
    module = TabularMLP(3, 2, width=4)
    before = torch.get_rng_state()
    module(torch.zeros(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_pass(dtype):
    torch.manual_seed(0)
    module = TabularMLP(3, 2, width=4).to(dtype)
    output = module(torch.ones(2, 3, dtype=dtype))
    assert output.dtype == dtype
    assert torch.isfinite(output).all()


def test_a_nan_that_comes_in_goes_out_in_its_own_row_only():
    torch.manual_seed(0)
    X = torch.zeros(3, 2)
    X[1, 0] = torch.nan
    output = TabularMLP(2, 1, width=4)(X)
    assert torch.isnan(output).flatten().tolist() == [False, True, False]


def test_the_seed_decides_the_weights():
    torch.manual_seed(0)
    first = TabularMLP(3, 2).state_dict()
    torch.manual_seed(0)
    second = TabularMLP(3, 2).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_give_the_same_output(again):
    torch.manual_seed(0)
    module = TabularMLP(3, 2)
    X = torch.randn(4, 3)
    assert torch.equal(again(module)(X), module(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"activation": "rellu"},
            "activation must be one of 'relu', 'gelu', 'selu', 'silu', 'mish', "
            "'tanh', got 'rellu'.",
        ),
        (
            {"width": 0},
            "width must be at least 1 and depth at least 0, got width=0 and depth=2.",
        ),
        (
            {"depth": -1},
            "width must be at least 1 and depth at least 0, got width=128 and "
            "depth=-1.",
        ),
        ({"dropout": 1.0}, "dropout must lie in [0, 1), got 1.0."),
        ({"dropout": -0.1}, "dropout must lie in [0, 1), got -0.1."),
        ({"dropout": float("nan")}, "dropout must lie in [0, 1), got nan."),
    ],
)
def test_an_impossible_network_is_refused(options, message):
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        TabularMLP(3, 2, **options)
    assert str(caught.value) == message
