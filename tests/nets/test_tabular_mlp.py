from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch

from sknan.nets import PeriodicEmbedding, TabularMLP

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


def test_a_nan_input_affects_only_its_row():
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
        ({"width": 0}, "width must be an integer of at least 1, got 0."),
        ({"width": 8.5}, "width must be an integer of at least 1, got 8.5."),
        ({"depth": "2"}, "depth must be an integer of at least 0, got '2'."),
        ({"dropout": 1.0}, "dropout must be a number in [0, 1), got 1.0."),
        ({"dropout": None}, "dropout must be a number in [0, 1), got None."),
        ({"dropout": float("nan")}, "dropout must be a number in [0, 1), got nan."),
        (
            {"n_frequencies": -1},
            "n_frequencies must be an integer of at least 0, got -1.",
        ),
    ],
)
def test_an_impossible_network_is_refused(options, message):
    with pytest.raises(ValueError, match=next(iter(options))) as caught:
        TabularMLP(3, 2, **options)
    assert str(caught.value) == message


# -- embedding of numbers --------------------------------------------------------------


def test_the_embedding_is_what_its_formula_says():
    torch.manual_seed(0)
    embed = PeriodicEmbedding(4, [3, 1], n_frequencies=5, d_embedding=2)
    X = torch.randn(6, 4)
    expected = [X]
    for k, column in enumerate([3, 1]):
        angle = 2 * math.pi * X[:, column, None] * embed.frequency[k] + embed.phase[k]
        expected.append(angle.cos() @ embed.weight[k] + embed.bias[k])
    torch.testing.assert_close(embed(X), torch.cat(expected, dim=1))
    assert embed(X).shape == (6, 4 + 2 * 2)


def test_all_columns_are_embedded_by_default():
    torch.manual_seed(0)
    assert PeriodicEmbedding(3).columns.tolist() == [0, 1, 2]
    assert repr(PeriodicEmbedding(3)) == (
        "PeriodicEmbedding(3 columns, n_frequencies=16, d_embedding=3)"
    )


def test_frequencies_are_spread_over_their_range():
    torch.manual_seed(0)
    embed = PeriodicEmbedding(4000, n_frequencies=3, frequency_range=(0.1, 10.0))
    spread = embed.frequency.std(dim=0)
    torch.testing.assert_close(spread, torch.tensor([0.1, 1, 10]), rtol=0.05, atol=0)


@pytest.mark.parametrize("value", [0.0, 1e6, 3.4e38, -3.4e38])
def test_the_embedding_of_any_number_is_finite_as_are_its_gradients(value):
    torch.manual_seed(0)
    embed = PeriodicEmbedding(2, n_frequencies=4)
    X = torch.full((3, 2), value, requires_grad=True)
    output = embed(X)
    assert torch.isfinite(output).all()
    output[:, 2:].sum().backward()
    for tensor in (X, *embed.parameters()):
        assert torch.isfinite(tensor.grad).all()


def test_gradients_of_the_embedding_are_those_of_its_values():
    torch.manual_seed(0)
    embed = PeriodicEmbedding(3, [0, 2], n_frequencies=3).double()
    X = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weights = tuple(embed.parameters())
    names = [name for name, _ in embed.named_parameters()]

    def embedded(X, *values):
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(embed, given, (X,))

    assert torch.autograd.gradcheck(embedded, (X, *weights))


def test_many_embeddings_can_be_passed_as_one():
    torch.manual_seed(0)
    nets = [TabularMLP(3, 2, width=4, n_frequencies=3) for _ in range(4)]
    weights, buffers = torch.func.stack_module_state(nets)
    X = torch.randn(4, 5, 3)

    def output(weights, buffers, x):
        return torch.func.functional_call(nets[0], (weights, buffers), (x,))

    together = torch.vmap(output)(weights, buffers, X)
    each = torch.stack([net(x) for net, x in zip(nets, X, strict=True)])
    torch.testing.assert_close(together, each)


def test_an_embedding_precedes_the_first_layer():
    torch.manual_seed(0)
    module = TabularMLP(5, 2, width=4, n_frequencies=3, numeric_columns=[1, 2])
    embed = module.hidden[0]
    assert isinstance(embed, PeriodicEmbedding)
    assert embed.columns.tolist() == [1, 2]
    assert module.hidden[1].in_features == 5 + 2 * 3
    again = pickle.loads(pickle.dumps(module))
    X = torch.randn(3, 5)
    assert torch.equal(again(X), module(X))
    assert torch.equal(copy.deepcopy(module)(X), module(X))


def test_no_embedding_without_frequencies_or_columns():
    torch.manual_seed(0)
    assert len(TabularMLP(5, 2, width=4).hidden) == 4
    module = TabularMLP(5, 2, width=4, n_frequencies=3, numeric_columns=())
    assert len(module.hidden) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_frequencies": 0},
            "n_frequencies must be an integer of at least 1, got 0.",
        ),
        (
            {"frequency_range": (3.0, 0.1)},
            "frequency_range must be two finite numbers above 0, the lower one first, "
            "got (3.0, 0.1).",
        ),
        (
            {"frequency_range": ("a", "b")},
            "frequency_range must be two finite numbers above 0, the lower one first, "
            "got ('a', 'b').",
        ),
        (
            {"columns": []},
            "columns must be distinct integers, at least one, got [].",
        ),
        (
            {"columns": [1, "1"]},
            "columns must be distinct integers, at least one, got [1, '1'].",
        ),
        ({"columns": [0, 3]}, "columns must be between 0 and 2, got [0, 3]."),
    ],
)
def test_an_impossible_embedding_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PeriodicEmbedding(3, **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 1), "n_features_in must be an integer of at least 1, got 0."),
        ((3, "1"), "n_outputs must be an integer of at least 1, got '1'."),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TabularMLP(*sizes)


def test_columns_that_are_no_list_are_refused():
    message = "columns must be distinct integers, at least one, got 1."
    for make in (
        lambda: PeriodicEmbedding(3, columns=1),
        lambda: TabularMLP(3, 1, n_frequencies=2, numeric_columns=1),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make()
