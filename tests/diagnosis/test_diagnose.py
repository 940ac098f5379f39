"""Diagnosis of modules, skorch nets and estimators."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diagnosis_helpers import (
    X_BAD,
    Y_BAD,
    Attention,
    Net,
    NormalizedLog,
    Recurrent,
    found,
    line_of,
    table,
)
from skorch import NeuralNet, NeuralNetClassifier
from torch import nn

from sknan import DivergenceWarning, GuardedNet, StableNetClassifier, StableNetRegressor
from sknan.diagnosis import diagnose


def test_an_error_unrelated_to_nonfinite_numbers_is_raised_unchanged():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        diagnose(nn.Linear(4, 1), F.mse_loss, table(), torch.ones(6, 1))


def test_objects_that_are_not_nets_are_refused():
    with pytest.raises(TypeError) as caught:
        diagnose(nn.Linear(1, 1), X_BAD, Y_BAD)
    assert str(caught.value) == (
        "diagnose takes a module, a criterion, X and y, or an initialized net, X and "
        "y, got Linear. Call initialize() or fit() first."
    )
    with pytest.raises(TypeError) as caught:
        diagnose(X_BAD, Y_BAD)
    assert str(caught.value) == (
        "diagnose takes (module, criterion, X, y) or (net, X, y), got 2 arguments."
    )
    with pytest.raises(TypeError) as caught:
        diagnose(nn.Linear, nn.MSELoss, X_BAD, Y_BAD)
    assert str(caught.value) == (
        "diagnose takes a network, got the class Linear. Pass an instance."
    )


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def squares(output, target):
    return (output - target) ** 2


LOSSES_WITHOUT_GRADIENT = {
    "detached": (
        (Detached(3, 1), nn.MSELoss()),
        ValueError,
        "The loss has no gradient with respect to any weight. Look in forward and in "
        "the loss for detach(), torch.no_grad(), torch.inference_mode(), argmax or a "
        "use of NumPy, and leave it out.",
    ),
    "unreduced": (
        (nn.Linear(3, 1), squares),
        ValueError,
        "The loss is not one real number, and only such a number has a gradient. "
        "Return its mean, as in loss.mean(), or set reduction='mean' in the criterion.",
    ),
    "complex": (
        (nn.Linear(3, 1), lambda output, target: squares(output, target).mean() + 0j),
        ValueError,
        "The loss is not one real number, and only such a number has a gradient. "
        "Return its mean, as in loss.mean(), or set reduction='mean' in the criterion.",
    ),
    "number": (
        (nn.Linear(3, 1), lambda output, target: squares(output, target).sum().item()),
        TypeError,
        "The loss is of type float, but must be a tensor with one real number. Return "
        "the tensor itself, without item(), float() or NumPy.",
    ),
}


@pytest.mark.parametrize("name", LOSSES_WITHOUT_GRADIENT)
def test_a_loss_that_has_no_gradient_is_refused(name):
    (module, criterion), kind, message = LOSSES_WITHOUT_GRADIENT[name]
    with pytest.raises(kind) as caught:
        diagnose(module, criterion, table(), torch.ones(6, 1))
    assert str(caught.value) == message
    options = {"train_split": None, "max_epochs": 1, "verbose": 0}
    net = GuardedNet(module, lambda: criterion, **options)
    with pytest.raises(kind) as caught:
        net.fit(table().numpy(), torch.ones(6, 1).numpy())
    assert str(caught.value) == message


def test_a_failure_is_found_before_a_loss_that_has_no_gradient():
    y = torch.ones(6, 1)
    report = diagnose(Detached(3, 1), lambda o, y: torch.log(y - y).mean(), table(), y)
    assert report.operation == "aten.log"
    report = diagnose(Net(torch.log), squares, table(row2=-1.0), y)
    assert (report.operation, report.rows) == ("aten.log", (2,))


# -- nets and estimators -------------------------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.log(x)


class TwoModules(NeuralNet):
    def initialize_module(self):
        super().initialize_module()
        self.encoder_ = Encoder()
        return self

    def infer(self, x, **fit_params):
        return self.module_(self.encoder_(x))


class TwoGuarded(GuardedNet):
    infer = TwoModules.infer

    def initialize_module(self):
        super().initialize_module()
        self.encoder_ = Encoder()
        return self


@pytest.mark.parametrize("kind", [TwoModules, TwoGuarded])
def test_each_of_several_modules_is_reported_by_its_name(kind):
    net = kind(nn.Linear, nn.MSELoss, module__in_features=3, module__out_features=1)
    net.initialize()
    X = table(row4=-1.0).numpy()
    report = diagnose(net, X, np.ones((6, 1), dtype="float32"))
    assert (report.phase, report.module) == ("forward", "encoder")
    assert report.source == line_of(Encoder.forward, 1)
    assert report.rows == (4,)
    net.module_.weight.data.fill_(1e38)
    report = diagnose(net, np.full((6, 3), 1e10, "float32"), np.ones((6, 1), "float32"))
    assert (report.module, report.operation) == ("", "aten.addmm")


def test_a_skorch_net_is_diagnosed_with_its_loss():
    net = NeuralNetClassifier(
        nn.Sequential(nn.Linear(3, 2), nn.Softmax(dim=1)), criterion=nn.NLLLoss
    ).initialize()
    labels = np.array([0, 1, 0, 1, 0, 1])
    assert diagnose(net, table().numpy(), labels) is None
    with torch.no_grad():
        net.module_[0].weight.fill_(torch.nan)
    report = diagnose(net, table().numpy(), labels)
    assert report.module == "0"
    with pytest.raises(TypeError, match=r"Call initialize\(\) or fit\(\) first"):
        diagnose(NeuralNetClassifier(nn.Linear), table().numpy(), labels)


@pytest.mark.parametrize("kind", [StableNetRegressor, StableNetClassifier])
def test_a_fitted_estimator_is_diagnosed_on_rows_that_break_it(kind):
    class Log(nn.Module):
        def __init__(self, n_features_in, n_outputs):
            super().__init__()
            self.linear = nn.Linear(n_features_in, n_outputs)

        def forward(self, x):
            return self.linear(torch.log(x))

    X = table(40).numpy()
    y = (X[:, 0] > 1.5).astype(int)
    model = kind(Log, max_epochs=2, random_state=0).fit(X, y)
    assert diagnose(model, X, y) is None
    X[7, 1] = -1.0
    report = diagnose(model, X, y)
    assert (report.operation, report.rows, report.columns) == ("aten.log", (7,), (1,))
    assert report.source == line_of(Log.forward, 1)


def test_a_report_on_an_estimator_uses_the_column_names_of_the_data():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X_BAD, columns=["a", "b", "c"])
    model = StableNetRegressor(NormalizedLog, max_epochs=2, random_state=0)
    with pytest.warns(DivergenceWarning):
        model.fit(frame, Y_BAD.ravel())
    report = diagnose(model, frame, Y_BAD.ravel())
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert (report.rows, report.columns, report.rows_in) == ((5, 40), ("b",), "data")
    finite = frame.drop(index=[5, 40])
    assert diagnose(model, finite, np.delete(Y_BAD.ravel(), [5, 40])) is None


# -- nothing is changed --------------------------------------------------------------


class Busy(nn.Module):
    """A network with running statistics, random numbers and a counter."""

    def __init__(self, n_features_in=3, n_outputs=1, is_fragile=False):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features_in, 8),
            nn.BatchNorm1d(8),
            nn.Dropout(0.5),
            nn.Tanh(),
            nn.Linear(8, n_outputs),
        )
        self.register_buffer("n_calls", torch.zeros(()))
        self.is_fragile = is_fragile

    def forward(self, x):
        self.n_calls += 1
        output = self.body(x)
        return torch.log(output - 100) if self.is_fragile else output


def everything(module):
    """Return copies of weights, buffers and gradients, the modes, and hook counts."""
    tensors = [*module.state_dict().values()]
    tensors += [p.grad for p in module.parameters() if p.grad is not None]
    modes = [part.training for part in module.modules()]
    hooks = [
        len(part._forward_hooks) + len(part._forward_pre_hooks)
        for part in module.modules()
    ]
    return [t.clone() for t in tensors], modes, hooks


def is_same(before, after):
    return (
        len(before[0]) == len(after[0])
        and all(map(torch.equal, before[0], after[0]))
        and before[1:] == after[1:]
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("is_fragile", [True, False])
def test_diagnosing_a_module_changes_nothing(is_fragile, training):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state must be kept
    X, y = table(16), torch.ones(16, 1)
    module = Busy(is_fragile=is_fragile).train(training)
    F.mse_loss(module.body(X), y).backward()
    before, X_before = everything(module), X.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    report = diagnose(module, nn.MSELoss(), X, y)
    assert (report is not None) == is_fragile
    assert is_same(before, everything(module))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(X, X_before)
    assert X.grad is None
    assert not torch.is_anomaly_enabled()
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("is_fragile", [True, False])
@pytest.mark.parametrize("kind", [NeuralNet, GuardedNet])
def test_diagnosing_a_net_changes_nothing(kind, is_fragile):
    torch.manual_seed(0)
    X, y = table(16).numpy(), np.ones((16, 1), dtype="float32")
    options = {"max_epochs": 2, "verbose": 0, "optimizer": torch.optim.Adam}
    net = kind(Busy, nn.MSELoss, **options).fit(X, y)
    net.module_.is_fragile = is_fragile
    net.module_.eval()
    before, history = everything(net.module_), copy.deepcopy(list(net.history))
    moments = copy.deepcopy(net.optimizer_.state_dict())
    state = torch.get_rng_state()
    report = diagnose(net, X, y)
    assert (report is not None) == is_fragile
    assert is_same(before, everything(net.module_))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(net.history) == history
    after = net.optimizer_.state_dict()
    assert after["param_groups"] == moments["param_groups"]
    for number, kept in moments["state"].items():
        for name, value in kept.items():
            assert torch.equal(after["state"][number][name], value)


def test_gradients_mode_and_random_state_are_kept():
    torch.manual_seed(0)
    module, criterion = NormalizedLog(), nn.MSELoss()
    module.head.weight.grad = torch.ones(1, 3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.random.get_rng_state()
    module.eval()
    diagnose(module, criterion, X_BAD, Y_BAD)
    assert not module.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(module.head.weight.grad, torch.ones(1, 3))
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- finite steps --------------------------------------------------------------------


def test_diagnose_works_under_no_grad():
    with torch.no_grad():
        report = found(torch.sqrt, table(row1=0.0))
        assert not torch.is_grad_enabled()
    assert report.phase == "backward"


FINITE = {
    "linear": lambda: nn.Linear(3, 1),
    "busy": Busy,
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "attention": Attention,
    "large": lambda: Net(lambda x: x * 1e15),
    # relu gives the entry of the logarithm with a NaN gradient no weight.
    "clamped": lambda: Net(lambda x: torch.log((x - 1.5).relu()).clamp(min=-10)),
}


@pytest.mark.parametrize("name", FINITE)
def test_a_finite_step_gives_no_report(name):
    torch.manual_seed(0)
    module = FINITE[name]()
    assert diagnose(module, nn.MSELoss(), table(), torch.ones(6, 1)) is None
    assert diagnose(module, nn.MSELoss(), table().numpy(), np.ones((6, 1))) is None


def test_the_forward_pass_of_a_frozen_network_is_diagnosed():
    module = Net(torch.log).requires_grad_(False)
    assert diagnose(module, F.mse_loss, table(), torch.ones(6, 1)) is None
    report = diagnose(module, F.mse_loss, table(row2=-1.0), torch.ones(6, 1))
    assert report.operation == "aten.log"
