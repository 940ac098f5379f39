"""Refusals of parameters of skorch, before any training, and what stays legal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from skorch import NeuralNet
from skorch.callbacks import EpochScoring, PrintLog
from skorch.dataset import Dataset, ValidSplit
from torch import nn
from torch.utils.data import DataLoader

from sknan import (
    GuardedNet,
    GuardedNetBinaryClassifier,
    GuardedNetClassifier,
    GuardMixin,
)

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = X[:, :1]


class Counted(nn.Linear):
    """Layer that counts how often it is made and called."""

    n_calls = 0

    def __init__(self):
        super().__init__(3, 1)
        Counted.n_calls += 1

    def forward(self, x):
        Counted.n_calls += 1
        return super().forward(x)


def net(**params):
    defaults = {"module": Counted, "criterion": nn.MSELoss, "verbose": 0}
    return GuardedNet(**{**defaults, "max_epochs": 1, **params})


def refusal(error, function, *args):
    """Return the message of an error that is raised before the network is made."""
    before = Counted.n_calls
    with pytest.raises(error) as caught:
        function(*args)
    assert Counted.n_calls == before
    return str(caught.value)


RATE = "a finite number of at least 0"
MODULE = "a torch.nn.Module class or instance, or a function returning one"
SIZE = "an integer of at least 1, -1 for all rows, or None for a data set of batches"
WRONG_VALUES = [
    *[("lr", v, RATE) for v in ("abc", None, -0.1, np.nan, np.inf, 2**70, True)],
    *[("lr", v, RATE) for v in (torch.ones(2), np.ones(2), pd.NA, [0.1])],
    *[("optimizer__lr", v, RATE) for v in ("abc", -1)],
    ("optimizer__momentum", np.nan, "a number"),
    *[
        ("max_epochs", v, "an integer of at least 0")
        for v in (-1, 1.5, "3", None, np.arange(2), True)
    ],
    *[("batch_size", v, SIZE) for v in (0, -2, 1.5, "a", pd.NA, True)],
    *[("iterator_valid__batch_size", v, SIZE) for v in (0, "x")],
    ("iterator_train__shuffle", "no", "True or False"),
    *[
        (
            "module",
            v,
            "a torch.nn.Module class or instance, or a function returning one",
        )
        for v in (None, 3, "mlp")
    ],
    *[
        ("criterion", v, "a loss class or instance, or a function returning one")
        for v in (None, "mse")
    ],
    *[
        ("optimizer", v, "a class such as torch.optim.Adam")
        for v in ("adam", None, torch.ones(2))
    ],
    *[
        (name, 3, "a class, such as torch.utils.data.DataLoader")
        for name in ("iterator_train", "iterator_valid")
    ],
    *[("dataset", v, "a data set, or a class of data sets") for v in (3, "abc")],
    *[
        (
            "train_split",
            v,
            "a function of the data set, such as skorch.dataset.ValidSplit(5), or None",
        )
        for v in (0.2, "valid", pd.NA)
    ],
    *[
        ("callbacks", v, "a list of skorch callbacks, 'disable' or None")
        for v in ("print", 3, PrintLog(), (PrintLog(),), [3], [print], [("a", 3)])
    ],
    ("predict_nonlinearity", "softmax", "a function, 'auto' or None"),
    ("predict_nonlinearity", np.ones(2), "a function, 'auto' or None"),
    ("warm_start", "no", "True or False"),
    ("compile", "no", "True or False"),
    ("verbose", "no", "an integer"),
    ("use_caching", np.ones(2), "True, False or 'auto'"),
    ("torch_load_kwargs", 3, "a dict or None"),
]


@pytest.mark.parametrize(("name", "value", "rule"), WRONG_VALUES)
def test_invalid_values_of_parameters_of_skorch_are_refused(name, value, rule):
    assert refusal(ValueError, net(**{name: value}).fit, X, Y) == (
        f"The {name!r} parameter of GuardedNet must be {rule}, got {value!r}."
    )


@pytest.mark.parametrize(
    ("cls", "params", "rule"),
    [
        (GuardedNetClassifier, {"classes": 3}, "a list of labels or None"),
        (GuardedNetBinaryClassifier, {"threshold": "half"}, "a number"),
    ],
)
def test_invalid_parameters_of_classifiers_are_refused(cls, params, rule):
    ((name, value),) = params.items()
    assert refusal(ValueError, cls(Counted, verbose=0, **params).fit, X, Y) == (
        f"The {name!r} parameter of {cls.__name__} must be {rule}, got {value!r}."
    )


@pytest.mark.parametrize("value", ["gpu", [], 2**70])
def test_an_unknown_device_is_refused(value):
    assert refusal(ValueError, net(device=value).fit, X, Y) == (
        "device must be a torch device such as 'cpu' or 'cuda', or None, got "
        f"{value!r}."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_unavailable_device_is_refused():
    assert refusal(ValueError, net(device="cuda").fit, X, Y) == (
        "device='cuda' is not available here. Use device='cpu'."
    )


def test_parameters_of_the_guard_are_refused_before_the_network_is_made():
    assert refusal(ValueError, net(on_nonfinite=np.ones(2)).fit, X, Y) == (
        "on_nonfinite must be one of 'recover', 'skip', 'raise', got array([1., 1.])."
    )


def needs_width(width):
    return nn.Linear(3, width)


def own_loss(output, target):
    return (output - target).square().mean()


PARTS = [
    (
        {"optimizer__foo": 1},
        "GuardedNet got optimizer__foo, but SGD has no parameter 'foo'. It has: "
        "'params', 'lr', 'momentum', 'dampening', 'weight_decay', 'nesterov'",
    ),
    (
        {"criterion__reducton": "sum"},
        "GuardedNet got criterion__reducton, but MSELoss has no parameter 'reducton'. "
        "Did you mean 'reduction'? It has: ",
    ),
    (
        {"module": nn.Linear(3, 1), "module__width": 1},
        "GuardedNet got module__width, but Linear has no parameter 'width'. It has: ",
    ),
    (
        {"iterator_train__batchsize": 1},
        "GuardedNet got iterator_train__batchsize, but DataLoader has no parameter "
        "'batchsize'. Did you mean 'batch_size'? It has: ",
    ),
    (
        {"module": needs_width},
        "GuardedNet needs module__width, because needs_width has no default for its "
        "parameter 'width'.",
    ),
    (
        {"criterion": own_loss},
        "GuardedNet needs criterion__output, because own_loss has no default for its "
        "parameter 'output'. If own_loss is the loss itself, pass a function that "
        "returns it.",
    ),
]


@pytest.mark.parametrize(("params", "message"), PARTS)
def test_unknown_and_missing_parameters_of_a_part_are_refused(params, message):
    assert refusal(ValueError, net(**params).fit, X, Y).startswith(message)


def test_the_advice_for_a_loss_function_trains():
    net(criterion=lambda: own_loss).fit(X, Y)


def test_a_function_that_returns_no_part_is_refused():
    with pytest.raises(
        ValueError, match="parameter of GuardedNet must return"
    ) as caught:
        net(criterion=lambda: 3).fit(X, Y)
    assert str(caught.value) == (
        "The 'criterion' parameter of GuardedNet must return a torch.nn.Module or a "
        "function, but <lambda> returned 3."
    )


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (
            {"betas": (2, 1)},
            "optimizer__betas=(2, 1), lr=0.01: Invalid beta parameter at index 0: 2.",
        ),
        (
            {"param_groups": 3, "lr": 0.5},
            "optimizer__param_groups=3, optimizer__lr=0.5: 'int' object is not "
            "iterable.",
        ),
    ],
)
def test_options_that_an_optimizer_refuses_are_named(options, found):
    options = {f"optimizer__{name}": value for name, value in options.items()}
    with pytest.raises(ValueError, match="refuses") as caught:
        net(optimizer=torch.optim.Adam, **options).fit(X, Y)
    assert str(caught.value) == f"The optimizer Adam refuses {found}"


def test_the_options_of_a_part_that_cannot_be_made_are_noted():
    model = net(module=nn.Linear, module__in_features="x", module__out_features=1)
    with pytest.raises(TypeError) as caught:
        model.fit(X, Y)
    assert caught.value.__notes__ == [
        "while creating Linear with module__in_features='x', module__out_features=1"
    ]
    with pytest.raises(ValueError, match="num_workers") as caught:
        net(iterator_train__num_workers=-1).fit(X, Y)
    assert caught.value.__notes__ == [
        "while creating DataLoader with iterator_train__num_workers=-1"
    ]


def test_a_parameter_that_is_set_between_two_trainings_is_refused():
    model = net().fit(X, Y)
    assert refusal(ValueError, model.set_params(max_epochs=1.5).partial_fit, X, Y) == (
        "The 'max_epochs' parameter of GuardedNet must be an integer of at least 0, "
        "got 1.5."
    )


# -- what stays legal ----------------------------------------------------------------


LEGAL = [
    {"lr": torch.tensor(0.1), "optimizer": torch.optim.Adam},
    {"lr": np.float32(0.1)},
    {"lr": 0},
    {"max_epochs": 0},
    {"max_epochs": np.int64(1)},
    {"batch_size": -1},
    {"batch_size": 10**6},
    {"iterator_train__batch_size": 3, "batch_size": -1},
    {"iterator_train": lambda dataset, batch_size: DataLoader(dataset, batch_size)},
    {"callbacks": "disable"},
    {"callbacks": [PrintLog, ("score", EpochScoring("r2")), None]},
    {"callbacks__print_log": None},
    {"train_split": False},
    {"train_split": ValidSplit(0.25)},
    {"train_split": None, "dataset": Dataset(X, Y)},
    {"device": torch.device("cpu")},
    {"device": None},
    {"optimizer": lambda params, lr: torch.optim.SGD(params, lr=lr)},
    {"optimizer__param_groups": [("weight", {"lr": 0.5})]},
    {"module": nn.Linear(3, 1), "module__in_features": 3, "module__out_features": 1},
    {"criterion": nn.MSELoss()},
    {"verbose": False},
    {"torch_load_kwargs": {"weights_only": True}},
]


@pytest.mark.parametrize("params", LEGAL)
def test_what_skorch_accepts_is_accepted(params):
    for cls in (NeuralNet, GuardedNet):
        defaults = {"module": Counted, "criterion": nn.MSELoss, "verbose": 0}
        cls(**{**defaults, "max_epochs": 1, **params}).fit(X, Y)


class Batches(torch.utils.data.Dataset):
    """Data set of whole batches."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        rows = slice(3 * index, 3 * index + 3)
        return torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])


def test_a_data_set_of_batches_needs_no_batch_size():
    weights = []
    for cls in (NeuralNet, GuardedNet):
        torch.manual_seed(0)
        model = cls(Counted, nn.MSELoss, batch_size=None, train_split=None, verbose=0)
        weights.append(model.fit(Batches(), None).module_.weight)
    assert torch.equal(*weights)


class Own(GuardMixin, NeuralNet):
    """Net that reads parameters in its own way."""

    def initialize_optimizer(self):
        classes = {"adam": torch.optim.Adam}
        self.optimizer_ = classes[self.optimizer](self.module_.parameters(), self.lr)
        return self

    def get_split_datasets(self, X, y=None, **fit_params):
        n_rows = int(self.train_split * len(X))
        return self.get_dataset(X[:n_rows], y[:n_rows]), None


def test_parameters_that_a_method_of_the_user_reads_are_not_checked():
    Own(Counted, nn.MSELoss, optimizer="adam", train_split=0.5, verbose=0).fit(X, Y)


# -- inputs --------------------------------------------------------------------------


STACK = " A list holds the inputs of a network, not its rows: stack them."
UNREADABLE = [
    (
        [torch.ones(12, 3), torch.ones(9, 3)],
        "X[0] has length 12, X[1] has length 9",
        STACK,
    ),
    ({"a": X, "b": X[:9]}, "X['a'] has length 12, X['b'] has length 9", ""),
    (X[:9], "X has length 9", ""),
    (None, "X is of type NoneType", ""),
    (3, "X is of type int", ""),
    ("abc", "X has length 3", ""),
]


@pytest.mark.parametrize(("inputs", "found", "hint"), UNREADABLE)
def test_inputs_without_one_row_per_sample_are_refused(inputs, found, hint):
    with pytest.raises(ValueError, match="one row per sample") as caught:
        net().fit(inputs, Y)
    assert str(caught.value) == (
        f"X and y must have one row per sample, but {found}, y has length 12.{hint}"
    )


def test_a_long_list_of_inputs_is_not_listed_whole():
    rows = [torch.ones(k % 3 + 1) for k in range(12)]
    with pytest.raises(ValueError, match=r"length 2, and so on\. A list holds"):
        net().fit(rows, Y)


def test_sparse_and_nested_tensors_are_refused_in_fit_and_predict():
    tensor = torch.from_numpy(X)
    nested = torch.nested.nested_tensor(list(tensor), layout=torch.jagged)
    found = (
        "is a nested or sparse tensor, or of type float8. Pass to_padded_tensor(0.0), "
        "to_dense() or float() of it."
    )
    model = net().fit(X, Y)
    for inputs in (tensor.to_sparse(), tensor.long().to_sparse(), nested):
        assert refusal(TypeError, net(module=nn.Linear(3, 1)).fit, inputs, Y) == (
            f"X {found}"
        )
        assert refusal(TypeError, model.predict, inputs) == f"X {found}"
        assert refusal(TypeError, model.predict, {"input": inputs}) == (
            f"X['input'] {found}"
        )
