"""Exceptions of argument checks, as opposed to errors of the program."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from diagnosis_helpers import Operation, line_of, table
from torch import nn

from sknan.diagnosis import diagnose
from sknan.diagnosis._raised import may_concern_values, result_of_trial


class OwnError(ValueError):
    """Exception of the user's code."""


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        MemoryError(),
        NotImplementedError(),
        OwnError(),
        RecursionError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        SystemExit(),
        TypeError(),
        torch.OutOfMemoryError(),
    ],
)
def test_exceptions_of_programs_never_concern_values(error):
    assert not may_concern_values(error)


@pytest.mark.parametrize("is_check", [True, False])
def test_a_trial_passes_on_an_own_exception_that_its_repetition_does_not_raise(
    is_check,
):
    calls = []

    def run():
        calls.append(1)
        if is_check or len(calls) == 1:
            raise OwnError
        return 1.0

    if is_check:
        assert result_of_trial(run) is None
    else:
        with pytest.raises(OwnError):
            result_of_trial(run)


# Torch leaves these checks out after torch.compile was used, unless they are asked for.
def normal(x):
    normal = torch.distributions.Normal(0.0, x, validate_args=True)
    return normal.log_prob(torch.ones(3))


def covariance(x):
    matrices = torch.diag_embed(x)
    zeros = torch.zeros(3)
    return torch.distributions.MultivariateNormal(
        zeros, matrices, validate_args=True
    ).loc


def lookup(x):
    return F.embedding(x.long(), torch.ones(3, 1)).squeeze(2)


def c_function(x):
    return x * math.log(x.min().item())


@pytest.mark.parametrize(
    ("function", "value", "operation", "cause", "action"),
    [
        (
            normal,
            0.0,
            "Normal",
            "activation",
            "Keep the parameter inside its domain, for example a scale by "
            "torch.nn.functional.softplus(x) + 1e-6.",
        ),
        (
            covariance,
            -1.0,
            "MultivariateNormal",
            "architecture",
            "Keep the matrix away from the edge, for example by adding a small "
            "multiple of the identity.",
        ),
        (
            lookup,
            9.0,
            "aten.embedding",
            "data",
            "Check that codes in X are below num_embeddings, and class labels in y "
            "below the number of outputs.",
        ),
        (
            c_function,
            -1.0,
            "",
            "activation",
            "Keep the arguments inside the domain that this call checks.",
        ),
    ],
)
def test_a_check_that_some_rows_fail_names_call_line_and_rows(
    function, value, operation, cause, action
):
    X = table(row2=value, row4=value)
    module = nn.Sequential(nn.Identity(), Operation(function), nn.Linear(3, 1))
    report = diagnose(module, F.mse_loss, X, torch.ones(6, 1))
    assert (report.operation, report.cause, report.action) == (operation, cause, action)
    assert (report.phase, report.module, report.rows) == ("forward", "1", (2, 4))
    n_lines = 3 if function is covariance else 1
    assert report.source == line_of(function, n_lines)
    assert report.error in ("ValueError", "IndexError")


def test_the_message_of_a_failed_check():
    net = nn.Linear(3, 1)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.bias.fill_(-4.0)
    X = table(n_rows=4, row1=9.0)
    X[[0, 2, 3]] = 1.4  # whose outputs are 0.2
    report = diagnose(net, nn.BCELoss(), X, torch.ones(4, 1))
    assert str(report) == (
        "RuntimeError of aten.binary_cross_entropy in 'criterion'. The step raised "
        "RuntimeError: all elements of input should be between 0 and 1. To blame: row "
        "1. Use torch.nn.BCEWithLogitsLoss on logits, or end the network with a "
        "sigmoid."
    )
    X[1] = 1.4
    report = diagnose(net, nn.BCELoss(), X, torch.tensor([[1.0], [0.0], [2.0], [1.0]]))
    assert (report.cause, report.rows) == ("data", (2,))
    assert report.action == "Check y: each target must be a probability, in [0, 1]."


def test_a_check_that_all_rows_fail_depends_on_values_if_others_pass():
    module = nn.Sequential(nn.Linear(3, 2), Operation(lambda x: -x.abs() - 1.0))

    def loss(outputs, target):
        mean, scale = outputs.chunk(2, dim=1)
        normal = torch.distributions.Normal(mean, scale, validate_args=True)
        return -normal.log_prob(target).mean()

    report = diagnose(module, loss, table(), torch.ones(6, 1))
    assert (report.phase, report.cause) == ("loss", "loss")
    assert report.rows == (0, 1, 2, 3, 4, 5)


def test_a_batch_of_one_row_is_told_from_shapes_that_do_not_match():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    report = diagnose(module, F.mse_loss, table(1), torch.ones(1, 1))
    assert (report.operation, report.module) == ("BatchNorm1d", "1")
    assert (report.cause, report.rows) == ("architecture", ())
    assert report.action == (
        "Choose a batch_size that leaves no batch of one row, or leave it out with "
        "iterator_train__drop_last=True."
    )
    with pytest.raises(RuntimeError, match="must match the size"):
        diagnose(Operation(lambda x: x + torch.ones(4, 1)), F.mse_loss, table(), 0)


def refuses(x):
    if (x < 0).any():
        raise ValueError("no negative amounts")
    return x


def test_a_check_in_the_users_own_code_is_raised_unchanged():
    module = nn.Sequential(Operation(refuses), nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"^no negative amounts$"):
        diagnose(module, F.mse_loss, table(row1=-1.0), torch.ones(6, 1))
