"""Random trainings, each of which must be finite or refused.

Everything is drawn at random: the module from layers and fragile operations, the
criterion, the optimizer and its learning rate, the faults in the data, the class that
trains and the policy of the guard. A training must either be finite, or stop with an
error of sknan or with a message about data or parameters.
"""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from torch import nn

from sknan import (
    DivergenceWarning,
    GuardedNet,
    GuardedNetClassifier,
    GuardedNetRegressor,
    NaNImputer,
    SafeScaler,
    SknanError,
    StableNetClassifier,
    StableNetRegressor,
)

N_BLOCKS, N_DRAWS = 10, 20

# Messages about data or a number of rows that the training does not allow.
MESSAGES = (
    r"needs y of at least 0|needs at least 2 classes|Expected more than 1 value per "
    r"channel|than the number of members in each class"
)

# A training of a few dozen steps with more forward passes than this does not end.
MOST_CALLS = 4000


class Hang(BaseException):
    """Error that no handler of ``Exception`` catches."""


# -- modules -------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Recurrent layer over the features as a series."""

    def __init__(self, kind, width):
        super().__init__()
        options = {"nonlinearity": "relu"} if kind is nn.RNN else {}
        self.cell = kind(1, width, batch_first=True, **options)

    def forward(self, x):
        return self.cell(x.unsqueeze(-1))[0][:, -1]


class Attention(nn.Module):
    """Attention in which rows of negative features have no keys."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, batch_first=True)
        self.width = width

    def forward(self, x):
        series = x.unsqueeze(-1)
        mask = x < 0
        return self.attention(series, series, series, key_padding_mask=mask)[0][..., 0]


class Operation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Running(nn.Module):
    """Handwritten batch normalization, whose spread may be 0 or that of one row."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("spread", torch.ones(width))

    def forward(self, x):
        if self.training:
            spread = x.std(0)
            with torch.no_grad():
                self.spread.lerp_(spread, 0.1)
        else:
            spread = self.spread
        return x / spread


def in_place(x):
    y = x.clone()
    y.log_()
    return y


def rows_in_place(x):
    y = x.clone()
    y /= y.sum(1, keepdim=True)
    return y


def masked_softmax(x):
    return torch.softmax(x.masked_fill(x < 0, -torch.inf), dim=1)


def factored(x):
    size = x.abs().mean(1, keepdim=True)[..., None]
    matrix = torch.diag_embed(x * x)
    return torch.linalg.cholesky(matrix).sum(-1) + size[..., 0]


OPERATIONS = {
    "log": torch.log,
    "log_of_relu": lambda x: torch.log(torch.relu(x)),
    "sqrt": torch.sqrt,
    "exp": torch.exp,
    "softplus_by_hand": lambda x: torch.log(1 + torch.exp(50 * x)),
    "share": lambda x: x / x.sum(1, keepdim=True),
    "inverse": lambda x: 1 / torch.relu(x),
    "length": lambda x: x / x.square().sum(1, keepdim=True).sqrt(),
    "power": lambda x: x**0.5,
    "powers": lambda x: x.relu() ** x,
    "softmax_by_hand": lambda x: torch.exp(x) / torch.exp(x).sum(1, keepdim=True),
    "masked_softmax": masked_softmax,
    "trap": lambda x: torch.where(x > 0, torch.sqrt(x), 0.1 * x),
    "log_trap": lambda x: torch.where(x > 0, torch.log(x), x),
    "acos": torch.acos,
    "zscore": lambda x: (x - x.mean(0)) / x.std(0),
    "in_place": in_place,
    "rows_in_place": rows_in_place,
    "factored": factored,
    "fourth": lambda x: (30 * x) ** 4,
    "half": lambda x: (x.half() * 300).float(),
    "angle": lambda x: torch.atan2(torch.relu(x), torch.relu(x)),
    "complex": lambda x: torch.fft.fft(x).abs(),
    "tan": lambda x: torch.tan(x),
    "hard_zero": lambda x: x / (x * 0),
    "cdist": lambda x: torch.cdist(x, x.mean(0, keepdim=True)).expand_as(x) + x,
}
LAYERS = {
    "relu": lambda w: nn.Sequential(nn.Linear(w, w), nn.ReLU()),
    "tanh": lambda w: nn.Sequential(nn.Linear(w, w), nn.Tanh()),
    "batch_norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "dropout": lambda w: nn.Dropout(0.3),
    "running": Running,
    "rnn": lambda w: Recurrent(nn.RNN, w),
    "gru": lambda w: Recurrent(nn.GRU, w),
    "lstm": lambda w: Recurrent(nn.LSTM, w),
    "attention": Attention,
}


class Drawn(nn.Module):
    """Chain of the layers and operations above."""

    def __init__(self, n_features_in, n_outputs, chain=(), gain=1.0, is_flat=False):
        super().__init__()
        width = 6
        parts = []
        if not is_flat:
            parts.append(nn.Linear(n_features_in, width))
        else:
            width = n_features_in
        for name in chain:
            if name in LAYERS:
                parts.append(LAYERS[name](width))
            else:
                parts.append(Operation(OPERATIONS[name]))
        self.body = nn.ModuleList(parts)
        self.head = nn.Linear(width, n_outputs)
        self.n_calls = 0
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(gain)

    def forward(self, x):
        self.n_calls += 1
        if self.n_calls > MOST_CALLS:
            raise Hang
        for part in self.body:
            x = part(x)
        return self.head(x)


# -- criteria ------------------------------------------------------------------------


class ByHand(nn.Module):
    """Loss written without care for numerical range."""

    def __init__(self, name="mape"):
        super().__init__()
        self.name = name

    def forward(self, output, target):
        if self.name == "mape":
            return ((output - target) / target).abs().mean()
        if self.name == "rmse":
            return torch.sqrt(((output - target) ** 2).mean())
        if self.name == "rmsle":
            return ((torch.log1p(output) - torch.log1p(target)) ** 2).mean()
        if self.name == "log_cosh":
            return torch.log(torch.cosh(output - target)).mean()
        if self.name == "r2":
            return ((output - target) ** 2).sum() / (
                (target - target.mean()) ** 2
            ).sum()
        if self.name == "poisson":
            return (torch.exp(output) - target * output).mean()
        if self.name == "sum_of_fourths":
            return ((output - target) ** 4).sum()
        codes = nn.functional.one_hot(target.long(), output.shape[1])
        shares = torch.exp(output) / torch.exp(output).sum(1, keepdim=True)
        if self.name == "cross_entropy":
            return -(codes * torch.log(shares)).sum(1).mean()
        right = (codes * shares).sum(1)
        return (-((1 - right) ** 0.5) * torch.log(right)).mean()  # "focal"


VALUE_LOSSES = {
    "skorch": [
        nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, nn.PoissonNLLLoss,
    ],
    "sklearn": [
        "mse", "rmse", "mae", "huber", "log_cosh", "quantile", "poisson", "mape",
        "smape", "cosine", "correlation", nn.MSELoss,
    ],
    "by_hand": ["mape", "rmse", "rmsle", "log_cosh", "r2", "poisson", "sum_of_fourths"],
}  # fmt: skip
CLASS_LOSSES = {
    "skorch": [nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss],
    "sklearn": ["cross_entropy", "focal", nn.CrossEntropyLoss],
    "by_hand": ["cross_entropy", "focal"],
}

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.99, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adam_eps": (torch.optim.Adam, {"eps": 0.0}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.5}),
    "rmsprop": (torch.optim.RMSprop, {"centered": True}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "adamax": (torch.optim.Adamax, {}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "asgd": (torch.optim.ASGD, {}),
    "rprop": (torch.optim.Rprop, {}),
    "lbfgs": (torch.optim.LBFGS, {"max_iter": 4}),
}


# -- data ----------------------------------------------------------------------------

DAMAGE = (
    "nan", "inf", "huge", "constant", "twice", "large_target", "nan_target", "raw",
    "zero", "tiny", "huge_row", "constant_target",
)  # fmt: skip


def table(rng, is_classification):
    n_rows, n_columns = int(rng.integers(2, 60)), int(rng.integers(1, 6))
    X = rng.normal(size=(n_rows, n_columns)).astype("float32")
    y = X.sum(1) + 0.1 * rng.normal(size=n_rows).astype("float32")
    damage = set(rng.choice(DAMAGE, size=rng.integers(0, 4), replace=False).tolist())
    row, column = rng.integers(n_rows), rng.integers(n_columns)
    with np.errstate(over="ignore"):
        if "raw" in damage:
            X = X * rng.choice([1e3, 1e6, 1e12]).astype("float32") + np.float32(2000)
        if "constant" in damage:
            X[:, column] = rng.choice([0.0, 1.0, 1e6])
        if "twice" in damage:
            X[:, column] = X[:, 0]
        if "zero" in damage:
            X[row] = 0.0
        if "tiny" in damage:
            X[:, column] = 1e-40
        if "huge" in damage:
            X[row, column] = rng.choice([1e30, -3.4e38, 1e20])
        if "huge_row" in damage:
            X[row] = 1e25
        if "nan" in damage:
            X[rng.random(X.shape) < 0.1] = np.nan
        if "inf" in damage:
            X[row, column] = rng.choice([np.inf, -np.inf])
        if "large_target" in damage:
            y = (y * rng.choice([1e4, 1e12, 1e30])).astype("float32")
        if "constant_target" in damage and not is_classification:
            y[:] = rng.choice([0.0, 1.0])
        if "nan_target" in damage and rng.random() < 0.2:
            y[row] = np.nan
    if is_classification:
        codes = np.arange(n_rows) % 2 if n_rows < 4 else (y > 0).astype("int64")
        return X, codes, damage
    return X, y.astype("float32"), damage


# -- trainings -----------------------------------------------------------------------


def drawn(seed):
    """Return an estimator, a table with target, and a description."""
    rng = np.random.default_rng(seed)

    def one_of(things):
        return things[int(rng.integers(len(things)))]

    is_classification = rng.random() < 0.4
    library = one_of(["skorch", "sklearn"])
    losses = CLASS_LOSSES if is_classification else VALUE_LOSSES
    loss = one_of(losses[library])
    params = {}
    if rng.random() < 0.4:
        loss, params["criterion__name"] = ByHand, one_of(losses["by_hand"])
    n_parts = int(rng.integers(0, 4))
    names = [*LAYERS, *OPERATIONS]
    chain = tuple(one_of(names) for _ in range(n_parts))
    # Learning rates up to 1 in half of the draws, up to 1e38 in the others.
    exponent = rng.uniform(-6, 0) if rng.random() < 0.5 else rng.uniform(0, 38)
    name = one_of(list(OPTIMIZERS))
    optimizer, options = OPTIMIZERS[name]
    params |= {f"optimizer__{key}": value for key, value in options.items()}
    params |= {
        "optimizer": optimizer,
        "lr": float(10.0**exponent),
        "max_epochs": int(rng.integers(1, 4)),
        "batch_size": one_of([4, 8, 32]),
        "on_nonfinite": one_of(["recover"] * 6 + ["skip", "raise"]),
        "max_recoveries": one_of([0, 3, 10, 10, 10, 10]),
        "clip_norm": one_of([None, None, 1.0, 1e-3]),
        "clip_value": one_of([None, None, 0.5]),
        "adaptive_clip": one_of([None, None, None, "agc", "quantile", "zscore"]),
        "lr_schedule": one_of([None, "cosine", "one_cycle", "plateau", "step"]),
        "verbose": 0,
        "module__chain": chain,
        "module__gain": one_of([1.0, 1.0, 0.0, 30.0, 1e6]),
        "module__is_flat": bool(rng.random() < 0.4),
    }
    X, y, damage = table(rng, is_classification)
    n_outputs = 2 if is_classification else 1
    if library == "skorch":
        params |= {"module__n_features_in": X.shape[1], "module__n_outputs": n_outputs}
        kinds = [GuardedNet, GuardedNetRegressor]
        if is_classification:
            kinds = [GuardedNetClassifier]
        elif rng.random() < 0.9:  # otherwise y is broadcast, a common mistake
            y = y[:, None]
        kind = one_of(kinds)
        options = {"iterator_train__shuffle": bool(rng.random() < 0.5)}
        if rng.random() < 0.5 or len(X) < 20:
            options["train_split"] = None
        model = kind(Drawn, criterion=loss, **params, **options)
        if rng.random() < 0.8:
            X = NaNImputer(keep_empty_features=True).fit_transform(X).astype("float32")
            y = np.nan_to_num(y)
    else:
        params["random_state"] = int(rng.integers(1000))
        params["warmup"] = one_of([0.0, 0.3])
        params["early_stopping"] = one_of(["auto", True])
        if rng.random() < 0.2:
            params = {k: v for k, v in params.items() if not k.startswith("module__")}
        else:
            params["module"] = Drawn
        kind = StableNetClassifier if is_classification else StableNetRegressor
        model = kind(criterion=loss, **params)
        if rng.random() < 0.8:
            model = make_pipeline(NaNImputer(), SafeScaler(), model)
    description = {
        "seed": seed, "kind": kind.__name__, "loss": loss, "damage": damage,
        "n": X.shape, "optimizer_name": name, **params,
    }  # fmt: skip
    return model, X, y, description


def faults_of(model, X):
    """Return descriptions of all that is not finite in a fitted model."""
    last = model[-1] if hasattr(model, "steps") else model
    net = getattr(last, "net_", last)
    faults = [
        f"{name} is not finite"
        for name, value in net.module_.state_dict().items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    for epoch in net.history:
        taken = [b["train_loss"] for b in epoch["batches"] if "train_loss" in b]
        if not all(map(math.isfinite, taken)):
            faults.append(f"a step was taken at losses {taken}")
        if taken and not math.isfinite(epoch["train_loss"]):
            faults.append(f"the loss of an epoch is {epoch['train_loss']}")
    if not 0 < net.effective_lr_ < math.inf:
        faults.append(f"effective_lr_ is {net.effective_lr_}")
    for report in last.nonfinite_reports_:
        if "None" in str(report) or not str(report).endswith("."):
            faults.append(f"the report reads {report}")
    for name in ("predict", "predict_proba"):
        if not hasattr(last, name):
            continue
        try:
            values = getattr(model, name)(X)
        except SknanError:
            continue
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            faults.append(f"{name} is not finite")
    return faults


def outcome_of(seed):
    """Return the outcome of a training, its faults and its description."""
    model, X, y, description = drawn(seed)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        # torch warns about spreads of one row and shapes that differ.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", DivergenceWarning)
        try:
            model.fit(X, y)
        except SknanError as error:
            return "refused", [] if str(error) else ["no message"], description
        except Exception as error:
            if isinstance(error, ValueError) and re.search(MESSAGES, str(error)):
                return "invalid", [], description
            return "raised", [f"raised {type(error).__name__}: {error}"], description
        except Hang:
            return "hung", ["does not end"], description
        return "fitted", faults_of(model, X), description


@pytest.mark.parametrize("block", range(N_BLOCKS))
def test_every_training_is_finite_or_refused(block):
    outcomes = []
    for seed in range(block * N_DRAWS, (block + 1) * N_DRAWS):
        outcome, faults, description = outcome_of(seed)
        assert not faults, f"{faults} of {description}"
        outcomes.append(outcome)
    # Many trainings are hopeless and must be refused, but not all.
    assert outcomes.count("fitted") >= N_DRAWS // 5


def test_the_same_seed_gives_the_same_outcome():
    for seed in range(5):
        assert outcome_of(seed)[:2] == outcome_of(seed)[:2]
