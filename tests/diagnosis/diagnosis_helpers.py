"""Networks, tables and line numbers for the tests of the diagnosis."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sknan.diagnosis import diagnose


def line_of(function, below=0):
    """Return ``file:line`` of a function, some lines below its first line."""
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + below}"


def table(n_rows=6, n_columns=3, **rows):
    """Return a table of numbers between 1 and 2, with other values in some rows."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n_rows, n_columns, generator=generator) + 1.0
    for row, value in rows.items():
        X[int(row.removeprefix("row"))] = value
    return X


class Operation(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Net(nn.Module):
    """An identity layer, an operation and a linear output layer."""

    def __init__(self, function, width=3, n_outputs=1):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(width, width)
        self.inner = nn.ModuleDict({"part": Operation(function)})
        self.head = nn.Linear(width, n_outputs)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(width))
            self.first.bias.zero_()

    def forward(self, x):
        return self.head(self.inner["part"](self.first(x)))


def found(function, X, criterion=F.mse_loss, y=None, **options):
    y = torch.ones(len(X), 1) if y is None else y
    return diagnose(Net(function, X.shape[1], **options), criterion, X, y)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        torch.manual_seed(0)
        self.cell = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        states, _ = self.cell(x.unsqueeze(1).expand(-1, 4, -1))
        return self.head(states[:, -1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.embed = nn.Linear(1, 4)
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        series = self.embed(x.unsqueeze(-1))
        pooled, _ = self.attention(series, series, series, key_padding_mask=x < 0)
        return self.head(pooled[:, 0])


class NormalizedLog(nn.Module):
    """A logarithm below batch normalization and dropout."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(3, 1)

    def forward(self, x):
        return self.head(self.drop(self.norm(torch.log(x))))


# A table whose logarithm is not finite in rows 5 and 40.
X_BAD = np.abs(np.random.default_rng(0).normal(size=(64, 3))).astype("float32") + 0.5
X_BAD[[5, 40], 1] = [0.0, -2.0]
Y_BAD = X_BAD.sum(1, keepdims=True)
