"""Networks, losses and optimizers for `benchmarks.fuzz`.

Most operations have a domain, or a derivative that is not finite everywhere, and the
losses of `ByHand` are written without care for numerical range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

# A training of a few dozen steps with more forward passes than this does not end.
MOST_CALLS = 6000


class Hang(BaseException):
    """Error that no handler of ``Exception`` catches."""


class Recurrent(nn.Module):
    """Recurrent layer over the features as a series."""

    def __init__(self, kind: type[nn.Module], width: int) -> None:
        super().__init__()
        options = {"nonlinearity": "relu"} if kind is nn.RNN else {}
        self.cell = kind(1, width, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last state, of shape (n_samples, width)."""
        return self.cell(x.unsqueeze(-1))[0][:, -1]


class Attention(nn.Module):
    """Attention in which rows of negative features have no keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each feature."""
        series = x.unsqueeze(-1)
        mask = x < 0
        return self.attention(series, series, series, key_padding_mask=mask)[0][..., 0]


class Running(nn.Module):
    """Handwritten batch normalization, whose spread may be 0 or that of one row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("spread", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` divided by the spread of each column."""
        if not self.training:
            return x / self.spread
        spread = x.std(0)
        with torch.no_grad():
            self.spread.lerp_(spread, 0.1)
        return x / spread


class Operation(nn.Module):
    """Module that applies one of the operations below."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Return the value of the operation."""
        return OPERATIONS[self.name](x)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.log_()
    return y


def rows_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y /= y.sum(1, keepdim=True)
    return y


def masked_softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.masked_fill(x < 0, -torch.inf), dim=1)


def factored(x: Tensor) -> Tensor:
    size = x.abs().mean(1, keepdim=True)[..., None]
    matrix = torch.diag_embed(x * x)
    return torch.linalg.cholesky(matrix).sum(-1) + size[..., 0]


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
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
    "tan": torch.tan,
    "hard_zero": lambda x: x / (x * 0),
    "cdist": lambda x: torch.cdist(x, x.mean(0, keepdim=True)).expand_as(x) + x,
}
LAYERS: dict[str, Callable[[int], nn.Module]] = {
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
    "weight_norm": lambda w: parametrizations.weight_norm(nn.Linear(w, w)),
    "spectral_norm": lambda w: parametrizations.spectral_norm(nn.Linear(w, w)),
    "orthogonal": lambda w: parametrizations.orthogonal(nn.Linear(w, w)),
    "lazy": lambda w: nn.LazyLinear(w),
    "frozen": lambda w: nn.Linear(w, w).requires_grad_(False),
}


class Drawn(nn.Module):
    """Chain of the layers and operations above."""

    def __init__(
        self,
        n_features_in: int,
        n_outputs: int,
        chain: tuple[str, ...] = (),
        gain: float = 1.0,
        is_flat: bool = False,
        is_frozen: bool = False,
    ) -> None:
        super().__init__()
        width = n_features_in if is_flat else 6
        parts = [] if is_flat else [nn.Linear(n_features_in, width)]
        for name in chain:
            parts.append(LAYERS[name](width) if name in LAYERS else Operation(name))
        self.body = nn.ModuleList(parts)
        self.head = nn.Linear(width, n_outputs)
        self.n_calls = 0
        for parameter in self.parameters():
            if not isinstance(parameter, nn.UninitializedParameter):
                parameter.data *= gain
            parameter.requires_grad &= not is_frozen

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of shape (n_samples, n_outputs)."""
        self.n_calls += 1
        if self.n_calls > MOST_CALLS:
            raise Hang
        for part in self.body:
            x = part(x)
        output: Tensor = self.head(x)
        return output


class ByHand(nn.Module):
    """Loss written without care for numerical range."""

    def __init__(self, name: str = "mape") -> None:
        super().__init__()
        self.name = name

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss of the batch."""
        if self.name == "mape":
            return ((output - target) / target).abs().mean()
        if self.name == "rmse":
            return torch.sqrt(((output - target) ** 2).mean())
        if self.name == "rmsle":
            return ((torch.log1p(output) - torch.log1p(target)) ** 2).mean()
        if self.name == "log_cosh":
            return torch.log(torch.cosh(output - target)).mean()
        if self.name == "r2":
            variation = ((target - target.mean()) ** 2).sum()
            return ((output - target) ** 2).sum() / variation
        if self.name == "poisson":
            return (torch.exp(output) - target * output).mean()
        if self.name == "sum_of_fourths":
            return ((output - target) ** 4).sum()
        if target.ndim == 2:  # several labels
            share = torch.sigmoid(output)
            logs = target * torch.log(share) + (1 - target) * torch.log(1 - share)
            return -logs.mean()
        codes = nn.functional.one_hot(target.long(), output.shape[1])
        shares = torch.exp(output) / torch.exp(output).sum(1, keepdim=True)
        if self.name == "cross_entropy":
            return -(codes * torch.log(shares)).sum(1).mean()
        right = (codes * shares).sum(1)
        return (-((1 - right) ** 0.5) * torch.log(right)).mean()  # "focal"


# Losses of torch for skorch's nets, and names of `ByHand`, by the kind of target.
LOSSES: dict[str, tuple[list[Any], list[str]]] = {
    "values": (
        [nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, nn.PoissonNLLLoss],
        ["mape", "rmse", "rmsle", "log_cosh", "r2", "poisson", "sum_of_fourths"],
    ),
    "classes": (
        [nn.CrossEntropyLoss, nn.NLLLoss, nn.MultiMarginLoss],
        ["cross_entropy", "focal"],
    ),
}

OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {}),
    (torch.optim.SGD, {"momentum": 0.99, "nesterov": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"eps": 0.0}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.5}),
    (torch.optim.RMSprop, {"centered": True}),
    (torch.optim.Adagrad, {}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.NAdam, {}),
    (torch.optim.RAdam, {}),
    (torch.optim.ASGD, {}),
    (torch.optim.Rprop, {}),
    (torch.optim.LBFGS, {"max_iter": 4}),
]
