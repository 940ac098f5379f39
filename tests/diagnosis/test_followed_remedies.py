"""Each remedy that a report advises, followed literally, trains the network."""

from __future__ import annotations

import math
import operator
import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

import sknan.functional
import sknan.losses
from sknan import GuardedNet, NaNImputer, NonFiniteTrainingError, SafeScaler
from sknan.diagnosis import diagnose
from sknan.diagnosis._remedies import FUNCTIONS

RNG = np.random.default_rng(0)
BAD = [3, 40, 77]
BASE = RNG.uniform(0.5, 1.5, (128, 5)).astype("float32")
SIGNAL = (BASE[:, 3:4] - BASE[:, 4:5]).astype("float32")


def table(value):
    """Return a table whose first three columns contain a value in three rows."""
    X = BASE.copy()
    X[BAD, :3] = value
    return X


class Net(nn.Module):
    """A network that applies a function to the first three columns, times a weight."""

    def __init__(self, function, n_outputs=1):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(3))
        width = function(torch.ones(2, 3)).reshape(2, -1).shape[1] + 2
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(width, 16), nn.LeakyReLU(0.1), nn.Linear(16, n_outputs)
        )

    def forward(self, x):
        feature = self.function(self.scale * x[:, :3])
        return self.body(torch.cat([feature.reshape(len(x), -1), x[:, 3:]], 1))


def trained(module, criterion, X, y, **options):
    torch.manual_seed(0)
    defaults = {"max_epochs": 30, "lr": 0.02, "batch_size": 32, "verbose": 0}
    defaults |= {"optimizer": torch.optim.Adam, "on_nonfinite": "raise"}
    return GuardedNet(module, criterion, train_split=None, **defaults | options).fit(
        X, y
    )


def report_on(*training, **options):
    with pytest.raises(NonFiniteTrainingError) as caught:
        trained(*training, **options)
    return caught.value.report


def r2(net, X, y):
    out = net.forward(X).detach().numpy()[:, :1]
    return 1 - ((out - y) ** 2).mean() / y.var()


def named_in(action):
    """Return the first function or loss of sknan or torch that an action names."""
    path = re.search(r"sknan\.(?:functional|losses)\.\w+|torch\.\w+", action).group()
    return operator.attrgetter(path)(sys.modules[__name__])


class InForward(NamedTuple):
    """An operation in a module, a value that breaks it, and the remedy applied."""

    broken: Callable[[Tensor], Tensor]
    value: float
    name: str
    followed: Callable[[Any, Tensor], Tensor]


def alone(f, x):
    return f(x)


def over_rows(f, x):
    return f(x, 1)


IN_FORWARD = {
    "_log_softmax": InForward(
        lambda x: torch.log_softmax(x.masked_fill(x < 0, -torch.inf), 1),
        -1.0,
        "log_softmax",
        lambda f, x: f(x.masked_fill(x < 0, -torch.inf), 1),
    ),
    "_softmax": InForward(
        lambda x: torch.softmax(x.masked_fill(x < 0, -torch.inf), 1),
        -1.0,
        "softmax",
        lambda f, x: f(x.masked_fill(x < 0, -torch.inf), 1),
    ),
    "logsumexp": InForward(
        lambda x: torch.logsumexp(x.masked_fill(x < 0, -torch.inf), 1),
        -1.0,
        "logsumexp",
        lambda f, x: torch.where(
            (x < 0).all(1), 0.0, f(x.masked_fill(x < 0, -torch.inf), 1)
        ),
    ),
    "acos": InForward(lambda x: torch.acos(x / 4), 8.0, "acos", lambda f, x: f(x / 4)),
    "asin": InForward(lambda x: torch.asin(x / 4), 8.0, "asin", lambda f, x: f(x / 4)),
    "atanh": InForward(
        lambda x: torch.atanh(x / 4), 8.0, "atanh", lambda f, x: f(x / 4)
    ),
    "hypot": InForward(lambda x: torch.hypot(x, x), 0.0, "hypot", lambda f, x: f(x, x)),
    "div": InForward(
        lambda x: x / x.sum(1, keepdim=True),
        0.0,
        "divide",
        lambda f, x: f(x, x.sum(1, keepdim=True)),
    ),
    "log": InForward(torch.log, -1.0, "log", alone),
    "log of zero": InForward(torch.log, 0.0, "log", alone),
    "log of zero in bfloat16": InForward(
        lambda x: torch.log(x.bfloat16()).float(),
        0.0,
        "log",
        lambda f, x: f(x.bfloat16()).float(),
    ),
    "division by zero in float16": InForward(
        lambda x: (x.half() / x.half().sum(1, keepdim=True)).float(),
        0.0,
        "divide",
        lambda f, x: f(x.half(), x.half().sum(1, keepdim=True)).float(),
    ),
    "log1p": InForward(torch.log1p, -2.0, "log1p", alone),
    "log2": InForward(torch.log2, -1.0, "log", alone),
    "log10": InForward(torch.log10, -1.0, "log", alone),
    "logit": InForward(
        lambda x: torch.logit(x / 4), 8.0, "logit", lambda f, x: f(x / 4)
    ),
    "pow": InForward(lambda x: x**0.5, -1.0, "power", lambda f, x: f(x, 0.5)),
    "cube root": InForward(
        lambda x: x ** (1 / 3), 0.0, "power", lambda f, x: f(x, 1 / 3)
    ),
    "reciprocal": InForward(lambda x: 1 / x, 0.0, "reciprocal", alone),
    "rsqrt": InForward(
        torch.rsqrt, 0.0, "reciprocal", lambda f, x: f(sknan.functional.sqrt(x))
    ),
    "rsqrt of a negative number": InForward(
        torch.rsqrt, -1.0, "reciprocal", lambda f, x: f(sknan.functional.sqrt(x))
    ),
    "negative power": InForward(
        lambda x: x**-0.5,
        0.0,
        "power",
        lambda f, x: sknan.functional.reciprocal(f(x, 0.5)),
    ),
    "sqrt": InForward(torch.sqrt, 0.0, "sqrt", alone),
    "sqrt of a negative number": InForward(torch.sqrt, -1.0, "sqrt", alone),
    "std": InForward(
        lambda x: x[:, :1].std(1), 1.0, "std", lambda f, x: f(x[:, :1], 1)
    ),
    "var": InForward(
        lambda x: x[:, :1].var(1), 1.0, "var", lambda f, x: f(x[:, :1], 1)
    ),
    "exp": InForward(torch.exp, 100.0, "softplus", alone),
    "expm1": InForward(torch.expm1, 100.0, "softplus", alone),
    # -- the whole pattern -----------------------------------------------------------
    "vector over its norm": InForward(
        lambda x: x / x.norm(dim=1, keepdim=True), 0.0, "normalize", over_rows
    ),
    "vector over its norm by hand": InForward(
        lambda x: x / (x**2).sum(1, keepdim=True).sqrt(), 0.0, "normalize", over_rows
    ),
    "vector times a reciprocal norm": InForward(
        lambda x: x * torch.rsqrt(x.square().sum(1, keepdim=True)),
        0.0,
        "normalize",
        over_rows,
    ),
    "difference over its spread": InForward(
        lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
        1.0,
        "standardize",
        over_rows,
    ),
    "cosine by hand": InForward(
        lambda x: (x * x.flip(1)).sum(1) / (x.norm(dim=1) * x.flip(1).norm(dim=1)),
        0.0,
        "cosine_similarity",
        lambda f, x: f(x, x.flip(1), 1),
    ),
    "norm by hand": InForward(lambda x: (x**2).sum(1).sqrt(), 0.0, "norm", over_rows),
    "norm by hand with eps behind": InForward(
        lambda x: x / ((x * x).sum(1, keepdim=True).sqrt() + 1e-6),
        0.0,
        "norm",
        lambda f, x: x / (f(x, 1, keepdim=True) + 1e-6),
    ),
    "std by hand": InForward(lambda x: x.var(1).sqrt(), 0.0, "std", over_rows),
    "softmax by hand": InForward(
        lambda x: x.exp() / x.exp().sum(1, keepdim=True), 100.0, "softmax", over_rows
    ),
    "softmax by hand in steps": InForward(
        lambda x: (lambda e: e / e.sum(1, keepdim=True))(torch.exp(x)),
        100.0,
        "softmax",
        over_rows,
    ),
    "logsumexp by hand": InForward(
        lambda x: torch.log(torch.exp(x).sum(1)), 100.0, "logsumexp", over_rows
    ),
    "softplus by hand": InForward(
        lambda x: torch.log(1 + torch.exp(x)), 100.0, "softplus", alone
    ),
    "softplus by log1p": InForward(
        lambda x: torch.log1p(torch.exp(x)), 100.0, "softplus", alone
    ),
    "log of a sigmoid": InForward(
        lambda x: torch.log(torch.sigmoid(x)), -120.0, "log_sigmoid", alone
    ),
    "log of 1 minus a sigmoid": InForward(
        lambda x: torch.log(1 - torch.sigmoid(x)),
        60.0,
        "log_sigmoid",
        lambda f, x: f(-x),
    ),
    "log of a softmax": InForward(
        lambda x: torch.log(torch.softmax(x * torch.tensor([1.0, -1.0, 1.0]), 1)),
        100.0,
        "log_softmax",
        lambda f, x: f(x * torch.tensor([1.0, -1.0, 1.0]), 1),
    ),
    "log of a quotient": InForward(
        lambda x: torch.log(x[:, :1] / (x[:, 1:2] + 1)),
        0.0,
        "log",
        lambda f, x: f(x[:, :1]) - f(x[:, 1:2] + 1),
    ),
    "log of a quotient by 0": InForward(
        lambda x: torch.log((x[:, :1] + 1) / x[:, 1:2] + 1e-3),
        0.0,
        "log",
        lambda f, x: f(x[:, :1] + 1) - f(x[:, 1:2]),
    ),
    "log of a product": InForward(
        lambda x: torch.log(x.prod(1)), 1e-20, "log", lambda f, x: f(x).sum(1)
    ),
    "tanh by hand": InForward(
        lambda x: (x.exp() - torch.exp(-x)) / (x.exp() + torch.exp(-x)),
        100.0,
        "tanh",
        alone,
    ),
    "sigmoid by hand": InForward(
        lambda x: (lambda e: e / (1 + e))(x.exp()), 100.0, "sigmoid", alone
    ),
    "log cosh": InForward(
        lambda x: torch.log(torch.cosh(x)),
        100.0,
        "softplus",
        lambda f, x: x + f(-2 * x) - 0.6931,
    ),
}


def test_each_function_that_replaces_an_operation_is_followed():
    assert set(FUNCTIONS) <= set(IN_FORWARD)


@pytest.mark.filterwarnings("ignore:(std|var).*degrees of freedom is <= 0")
@pytest.mark.parametrize("name", IN_FORWARD)
def test_the_function_that_is_advised_trains(name):
    remedy = IN_FORWARD[name]
    X = table(remedy.value)
    report = report_on(Net(remedy.broken), nn.MSELoss, X, SIGNAL)
    function = named_in(report.action)
    assert function.__name__ == remedy.name, report.action
    net = trained(Net(lambda x: remedy.followed(function, x)), nn.MSELoss, X, SIGNAL)
    assert r2(net, X, SIGNAL) > 0.8


def squared(p, y):
    return ((p - y) ** 2).mean()


class InLoss(NamedTuple):
    """A formula of output and target, and the loss or function applied instead."""

    broken: Callable[[Tensor, Tensor], Tensor]
    name: str
    followed: Callable[[Any], Callable[[Tensor, Tensor], Tensor]]
    target: np.ndarray = SIGNAL
    score: Callable[..., float] = r2
    n_outputs: int = 1
    offset: float = 0.0  # of the output before training
    inputs: np.ndarray = BASE
    max_epochs: int = 60


def accuracy(net, X, y):
    out = net.forward(X).detach().numpy()
    found = out.argmax(1) if out.shape[1] > 1 else out[:, 0] > 0
    return float((found == y.ravel()).mean())


def correlation(net, X, y):
    return np.corrcoef(net.forward(X).detach().numpy().ravel(), y.ravel())[0, 1]


POSITIVE = np.exp(SIGNAL)
WITH_ZEROS = POSITIVE.copy()
WITH_ZEROS[BAD] = 0.0
FAR = SIGNAL.copy()
FAR[BAD] = 150.0
LABELS = (SIGNAL > 0).astype("float32")
CODES = LABELS.ravel().astype("int64")
MEASURED = SIGNAL.copy()
MEASURED[:32] = -9.0  # nothing was measured in the first batch


def percentage(p, y):
    return ((p - y).abs() / y).mean()


def masked_mean(divide, p, y):
    known = (y > -9).float()
    return divide((known * (p - y) ** 2).sum(), known.sum())


def cross_entropy_by_hand(log_softmax, p, y):
    return -log_softmax(200 * p).gather(1, y[:, None]).mean()


def probability_of_class(p, y):
    return torch.softmax(200 * p, 1).gather(1, y[:, None])


def bce_by_hand(p, y):
    q = torch.sigmoid(40 * p)
    return -(y * torch.log(q) + (1 - y) * torch.log(1 - q)).mean()


def sigmoids_of_class(p, y):
    q = torch.sigmoid(40 * p)
    return torch.cat([1 - q, q], 1).gather(1, y.long())


WEIGHTS = torch.tensor([0.9, 0.1])  # of the components of a mixture


def exponents(p, y):
    return -((y - p) ** 2) * torch.tensor([40.0, 80.0])


def negative_log_likelihood(log_rate, y):
    return (torch.exp(log_rate) - y * log_rate).mean()


def with_log(log, p, y):
    return (log(p) - torch.log(y)).square().mean()


IN_LOSS = {
    "relative error": InLoss(
        percentage, "MAPELoss", lambda loss: loss(floor=0.5), WITH_ZEROS
    ),
    "mean over nothing": InLoss(
        lambda p, y: masked_mean(torch.divide, p, y),
        "divide",
        lambda divide: lambda p, y: masked_mean(divide, p, y),
        MEASURED,
        score=lambda net, X, y: r2(net, X[32:], y[32:]),
    ),
    "root of the squared error": InLoss(
        lambda p, y: torch.sqrt(F.mse_loss(0 * p + y, y)) + squared(p, y),
        "RMSELoss",
        lambda loss: loss(),
    ),
    "log cosh": InLoss(
        lambda p, y: torch.log(torch.cosh(p - y)).mean(),
        "LogCoshLoss",
        lambda loss: loss(),
        FAR,
        score=lambda net, X, y: r2(net, np.delete(X, BAD, 0), np.delete(y, BAD, 0)),
    ),
    "cross-entropy by hand": InLoss(
        lambda p, y: cross_entropy_by_hand(
            lambda z: torch.log(torch.softmax(z, 1)), p, y
        ),
        "log_softmax",
        lambda f: lambda p, y: cross_entropy_by_hand(lambda z: f(z, 1), p, y),
        CODES,
        accuracy,
        2,
        offset=3.0,
    ),
    **{
        f"logarithm of {name}": InLoss(
            lambda p, y, of=of: -torch.log(of(p, y)).mean(),
            "log_softmax",
            lambda f: lambda p, y: cross_entropy_by_hand(lambda z: f(z, 1), p, y),
            CODES,
            accuracy,
            2,
            offset=3.0,
        )
        for name, of in {
            "gathered probabilities": probability_of_class,
            "indexed probabilities plus zero": lambda p, y: (
                torch.softmax(200 * p, 1)[torch.arange(len(y)), y] + 0.0
            ),
            "a sum of products": lambda p, y: (
                torch.softmax(200 * p, 1) * F.one_hot(y, 2)
            ).sum(1),
        }.items()
    },
    "logarithm of gathered sigmoids": InLoss(
        lambda p, y: -torch.log(sigmoids_of_class(p, y)).mean(),
        "log_sigmoid",
        lambda f: lambda p, y: -torch.where(y == 1, f(40 * p), f(-40 * p)).mean(),
        LABELS,
        accuracy,
        offset=9,
    ),
    "logarithm of a choice of sigmoids": InLoss(
        lambda p, y: (
            -torch.log(
                torch.where(y == 1, torch.sigmoid(40 * p), 1 - torch.sigmoid(40 * p))
            ).mean()
        ),
        "BCEWithLogitsLoss",
        lambda loss: loss(),
        LABELS,
        accuracy,
        offset=9,
    ),
    "likelihood of a mixture": InLoss(
        lambda p, y: -torch.log((WEIGHTS * exponents(p, y).exp()).sum(1)).mean(),
        "logsumexp",
        lambda f: lambda p, y: -f(WEIGHTS.log() + exponents(p, y), 1).mean(),
        offset=3,
    ),
    "binary cross-entropy by hand": InLoss(
        bce_by_hand,
        "BCEWithLogitsLoss",
        lambda loss: loss(),
        LABELS,
        accuracy,
        offset=9,
    ),
    "exponential of a logarithmic rate": InLoss(
        negative_log_likelihood,
        "soft_clamp",
        lambda f: lambda p, y: negative_log_likelihood(f(p, high=10.0), y),
        POSITIVE,
        score=lambda net, X, y: r2(
            net, np.delete(X, BAD, 0), np.log(np.delete(y, BAD, 0))
        ),
        inputs=table(-2000.0),
        max_epochs=300,
    ),
    "logarithm of a prediction": InLoss(
        lambda p, y: with_log(torch.log, p, y),
        "softplus",
        lambda f: lambda p, y: with_log(torch.log, f(p), y),
        POSITIVE,
        score=correlation,
        offset=-0.5,
    ),
    "root of a prediction": InLoss(
        lambda p, y: (torch.sqrt(p) - y).square().mean(),
        "softplus",
        lambda f: lambda p, y: (torch.sqrt(f(p)) - y).square().mean(),
        POSITIVE,
        score=correlation,
        offset=-0.5,
    ),
    "logarithm of a target": InLoss(
        lambda p, y: (p - torch.log(y)).abs().mean(),
        "log",
        lambda f: lambda p, y: (p - f(y)).abs().mean(),
        WITH_ZEROS,
        score=lambda net, X, y: r2(
            net, np.delete(X, BAD, 0), np.log(np.delete(y, BAD, 0))
        ),
    ),
    "cross-entropy of nothing": InLoss(
        lambda p, y: F.cross_entropy(p, torch.where(y > -9, 1, -100).ravel()),
        "CrossEntropyLoss",
        lambda loss: lambda p, y: loss()(p, torch.where(y > -9, 1, -100).ravel()),
        MEASURED,
        score=lambda net, X, y: float((net.forward(X).argmax(1) == 1).float().mean()),
        n_outputs=2,
    ),
}


class Loss(nn.Module):
    def __init__(self, formula):
        super().__init__()
        self.formula = formula

    def forward(self, p, y):
        return self.formula(p, y)


@pytest.mark.parametrize("name", IN_LOSS)
def test_the_loss_or_function_that_is_advised_trains(name):
    remedy = IN_LOSS[name]

    def net(formula):
        module = Net(lambda x: x, remedy.n_outputs)
        with torch.no_grad():
            module.body[-1].bias.fill_(remedy.offset)
            module.body[-1].bias[1:] *= -1
        return module, Loss(formula), remedy.inputs, remedy.target

    report = report_on(*net(remedy.broken))
    advised = named_in(report.action)
    assert advised.__name__ == remedy.name, report.action
    followed = trained(*net(remedy.followed(advised)), max_epochs=remedy.max_epochs)
    assert remedy.score(followed, remedy.inputs, remedy.target) > 0.8


def test_the_exponent_of_a_likelihood_trains():
    def exponent(p, y):
        return -(((y - p) / 0.05) ** 2) / 2

    def module():
        return Net(lambda x: x)

    scale = 0.05 * math.sqrt(2 * math.pi)
    loss = Loss(lambda p, y: -torch.log(exponent(p, y).exp() / scale).mean())
    report = report_on(module(), loss, BASE, SIGNAL)
    assert report.action == (
        "Write log(exp(x)) as x, and the logarithm of a product as the sum of the "
        "logarithms of its factors."
    )
    followed = Loss(lambda p, y: math.log(scale) - exponent(p, y).mean())
    assert r2(trained(module(), followed, BASE, SIGNAL), BASE, SIGNAL) > 0.8


# -- options, layers, weights and data -----------------------------------------------


class CTC(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.ctc = nn.CTCLoss(**options)

    def forward(self, out, target):
        lengths = torch.full((len(out),), out.shape[1])
        steps = out.log_softmax(2).transpose(0, 1)
        return self.ctc(steps, target[:, 1:], lengths, target[:, 0])


def test_a_label_longer_than_its_signal_is_ignored_or_left_out():
    # One symbol per signal, which its first number tells; two labels are too long.
    symbols = RNG.integers(1, 3, 64)
    X = RNG.normal(size=(64, 4, 3)).astype("float32")
    X[:, :, 0] = 3.0 * (2 * symbols - 3)[:, None]
    y = np.c_[np.ones(64, "int64"), np.tile(symbols[:, None], (1, 6))]
    y[[11, 40], 0] = 6
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    report = report_on(module, CTC, X, y)
    assert report.action == (
        "Pass zero_infinity=True to CTCLoss, or leave out the rows whose label is "
        "longer than their signal."
    )
    assert report.rows == (11,)

    def error(net):
        best = net.forward(X).argmax(2).numpy()
        return np.mean([s not in row for s, row in zip(symbols, best, strict=True)])

    options = {"max_epochs": 100}
    followed = trained(module, CTC, X, y, criterion__zero_infinity=True, **options)
    assert error(followed) < 0.1
    rest = np.delete(X, [11, 40], 0), np.delete(y, [11, 40], 0)
    assert error(trained(module, CTC, *rest, **options)) < 0.1


def test_another_initialization_trains_where_only_weights_are_concerned():
    def module(weight):
        head = nn.Linear(16, 1)
        nn.init.constant_(head.weight, weight)
        head = nn.utils.parametrizations.spectral_norm(head)
        return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), head)

    report = report_on(module(0.0), nn.MSELoss, BASE, SIGNAL)
    assert (report.cause, report.rows, report.columns) == ("architecture", (), ())
    assert report.action == (
        "Choose another initialization: the operation depends on weights and "
        "constants alone, not on the data."
    )
    assert r2(trained(module(0.1), nn.MSELoss, BASE, SIGNAL), BASE, SIGNAL) > 0.8


class BoxCox(nn.Module):
    def __init__(self, exponent):
        super().__init__()
        torch.manual_seed(0)
        self.exponent = nn.Parameter(torch.full((5,), exponent))
        self.head = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x):
        return self.head((x**self.exponent - 1) / self.exponent)


def test_another_initialization_trains_where_a_weight_is_a_denominator_of_zero():
    report = report_on(BoxCox(0.0), nn.MSELoss, BASE, SIGNAL)
    assert (report.cause, report.operation) == ("architecture", "aten.div")
    assert report.rows == ()
    assert report.action == (
        "Choose another initialization: the denominator depends on weights alone, and "
        "is 0 for all rows."
    )
    net = trained(BoxCox(0.5), nn.MSELoss, BASE, SIGNAL, max_epochs=60)
    assert r2(net, BASE, SIGNAL) > 0.8


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_infinite_class_weights_are_refused_and_finite_ones_train(name):
    y = np.c_[LABELS, np.zeros_like(LABELS)]
    options = {f"criterion__{name}": torch.tensor([1.0, torch.inf])}
    module = Net(lambda x: x, 2)
    report = report_on(module, nn.BCEWithLogitsLoss, BASE, y, **options)
    assert str(report) == (
        f"Non-finite loss in 'criterion'. {name!r} of BCEWithLogitsLoss is not finite "
        "before the first step: 1 of 2 entries, first entry 1. Set the entry to 1 for "
        "a class that does not occur."
    )
    options = {f"criterion__{name}": torch.tensor([1.0, 1.0])}
    net = trained(module, nn.BCEWithLogitsLoss, BASE, y, **options)
    assert ((net.forward(BASE)[:, :1].numpy() > 0) == LABELS).mean() > 0.8


class Attention(nn.Module):
    def __init__(self, keeps_first):
        super().__init__()
        torch.manual_seed(0)
        self.keeps_first = keeps_first
        self.embed = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        is_masked = x < -0.5
        if self.keeps_first:
            is_masked = is_masked & (torch.arange(x.shape[1]) > 0)
        h = self.embed(x.unsqueeze(-1))
        return self.head(self.attention(h, h, h, key_padding_mask=is_masked)[0][:, 0])


def test_a_row_with_one_key_unmasked_trains():
    X = BASE.copy()
    X[BAD] = -1.0
    y = X.mean(1, keepdims=True)
    report = report_on(Attention(keeps_first=False), nn.MSELoss, X, y)
    assert report.action == (
        "Leave at least one key of each row unmasked, such as the first."
    )
    net = trained(Attention(keeps_first=True), nn.MSELoss, X, y, max_epochs=60)
    assert r2(net, X, y) > 0.8


def normalized(eps):
    return nn.Sequential(
        nn.Linear(5, 16, bias=False),
        nn.LayerNorm(16, eps=eps),
        nn.Tanh(),
        nn.Linear(16, 1),
    )


def test_a_layer_with_an_eps_above_zero_trains():
    X = BASE.copy()
    X[BAD] = 0.0
    report = report_on(normalized(0.0), nn.MSELoss, X, SIGNAL)
    assert report.action == (
        "Give LayerNorm an eps above 0, and inputs of moderate size."
    )
    net = trained(normalized(1e-5), nn.MSELoss, X, SIGNAL, max_epochs=60)
    assert r2(net, X, SIGNAL) > 0.8


def eigenvalues(x, spread=0.0):
    matrix = torch.diag_embed(x) + spread * torch.diag(torch.arange(3.0))
    values, vectors = torch.linalg.eigh(matrix)
    return torch.cat([values, vectors[:, :, 0]], 1)


def test_distinct_numbers_on_the_diagonal_train():
    X = table(1.0)
    report = report_on(Net(eigenvalues), nn.MSELoss, X, SIGNAL)
    assert report.action == (
        "Leave out these rows, or add distinct small numbers to the diagonal of the "
        "matrix."
    )
    followed = Net(lambda x: eigenvalues(x, 0.01))
    assert r2(trained(followed, nn.MSELoss, X, SIGNAL), X, SIGNAL) > 0.8


def test_a_clamped_argument_trains_where_sknan_has_no_function():
    X = table(0.5)
    X[:, :3] += 1.0
    X[BAD, 1] = 0.5
    report = report_on(Net(torch.acosh), nn.MSELoss, X, SIGNAL)
    assert report.action == (
        "Clean these columns, or keep the argument of acosh where its value and "
        "gradient are finite, for example with torch.clamp."
    )
    followed = Net(lambda x: torch.acosh(torch.clamp(x, min=1.01)))
    assert r2(trained(followed, nn.MSELoss, X, SIGNAL), X, SIGNAL) > 0.8


def test_bounded_arguments_train_where_a_product_overflows():
    def product(x):
        return (1e30 * x.detach()) * (1e30 * x.detach())

    report = report_on(Net(product), nn.MSELoss, BASE, SIGNAL)
    assert report.action == (
        "Keep the arguments of mul below 1e18: scale them, for example by a "
        "normalization layer, or bound them by torch.tanh."
    )
    followed = Net(lambda x: torch.tanh(1e30 * x) * torch.tanh(1e30 * x))
    assert r2(trained(followed, nn.MSELoss, BASE, SIGNAL), BASE, SIGNAL) > 0.8


def test_a_clamped_base_trains_where_a_power_overflows():
    X = table(1e14)
    report = report_on(Net(lambda x: x**3), nn.MSELoss, X, SIGNAL)
    assert report.action == (
        "Keep the argument of pow where its value and gradient are finite, for "
        "example with torch.clamp."
    )
    followed = Net(lambda x: torch.clamp(x, max=2.0) ** 3)
    assert r2(trained(followed, nn.MSELoss, X, SIGNAL), X, SIGNAL) > 0.8


def test_a_term_that_is_left_out_trains():
    def broken(x):
        return x + x[x > 9].mean()

    report = report_on(Net(broken), nn.MSELoss, BASE, SIGNAL)
    assert report.action == (
        "Leave out the term where there are no elements to summarize."
    )
    followed = Net(lambda x: x + (x[x > 9].mean() if (x > 9).any() else 0.0))
    assert r2(trained(followed, nn.MSELoss, BASE, SIGNAL), BASE, SIGNAL) > 0.8


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (torch.square, 300.0),
        (lambda x: torch.log(x + 1e-8), 0.0),  # 1e-8 is 0 in float16
        (lambda x: x / (x.sum(1, keepdim=True) + 1e-8), 0.0),
    ],
)
def test_a_wider_dtype_trains(function, value):
    X = table(value)
    net = Net(lambda x: function(x.half()).float())
    report = report_on(net, nn.MSELoss, X, SIGNAL)
    assert report.action == "Use a wider dtype, such as float32."
    X = np.delete(X, BAD, 0), np.delete(SIGNAL, BAD, 0)
    assert r2(trained(Net(function), nn.MSELoss, *X), *X) > 0.8


def test_a_cleaned_table_trains():
    X = table(-3.4e38)
    report = report_on(Net(lambda x: x), nn.MSELoss, X, SIGNAL)
    assert (report.cause, report.rows, report.columns) == ("data", (3,), (0, 1, 2))
    assert report.action == (
        "Clean and impute the inputs first: "
        'make_pipeline(NaNImputer(dtype="float32"), SafeScaler(), net).'
    )
    cleaning = make_pipeline(NaNImputer(dtype="float32"), SafeScaler())
    cleaned = cleaning.fit_transform(X)
    assert cleaned.dtype == np.float32
    net = trained(Net(lambda x: x), nn.MSELoss, cleaned, SIGNAL)
    assert r2(net, cleaned, SIGNAL) > 0.8


def test_a_table_without_the_huge_targets_trains():
    y = SIGNAL.copy()
    y[BAD] = 1e28
    tensors = torch.from_numpy(BASE), torch.from_numpy(y)
    report = diagnose(Net(lambda x: x), nn.MSELoss(), *tensors)
    assert report is not None
    assert (report.cause, report.rows, report.columns) == ("data", tuple(BAD), ())
    assert report.action == "Correct these targets, or leave out their rows."
    rest = np.delete(BASE, BAD, 0), np.delete(y, BAD, 0)
    assert r2(trained(Net(lambda x: x), nn.MSELoss, *rest), *rest) > 0.8


def test_a_lower_rate_trains():
    options = {"optimizer": torch.optim.SGD, "max_epochs": 60}
    training = Net(lambda x: x), nn.MSELoss, BASE, SIGNAL
    report = report_on(*training, lr=1e6, **options)
    assert report.action == (
        "Lower lr; for an estimator, sknan.find_learning_rate suggests one."
    )
    assert r2(trained(*training, lr=0.1, **options), BASE, SIGNAL) > 0.8


def test_an_initialization_that_does_not_amplify_trains_and_clipping_has_an_effect():
    def module(gain):
        return Net(lambda x: x * gain**30)

    report = report_on(module(4.0), nn.MSELoss, BASE, SIGNAL)
    assert report.cause == "gradient"
    assert report.action == (
        "Scale inputs and targets, choose an initialization or a cell that does not "
        "amplify, clip the gradients with clip_norm=1.0 or less, or lower lr."
    )
    assert r2(trained(module(1.0), nn.MSELoss, BASE, SIGNAL), BASE, SIGNAL) > 0.8
    # A threshold without an effect would be an error in this test: it gives a warning.
    trained(module(4.0), nn.MSELoss, BASE, SIGNAL, clip_norm=1.0)
