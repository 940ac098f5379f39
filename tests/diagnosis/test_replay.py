"""Replay of a step and tracing of any code."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from diagnosis_helpers import (
    Net,
    Operation,
    found,
    line_of,
    table,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from sknan.diagnosis import diagnose
from sknan.diagnosis._replay import ModuleNames, replay, trace_operations


def test_a_replay_that_raises_returns_the_failure_found_before():
    module = Operation(torch.log)

    def run():
        module(torch.tensor([[-1.0]]))
        raise ValueError("later")

    failed = replay(run, ModuleNames({"module": module}, []), (), 1)
    assert (failed.operation, failed.module) == ("aten.log", "")
    assert not nn.modules.module._global_forward_hooks


def test_a_replay_in_which_the_user_raises_on_purpose_finds_nothing():
    def run():
        raise ValueError("at once")

    assert replay(run, ModuleNames({}, []), (), 1) is None


@pytest.mark.parametrize("error", [KeyError("a"), MemoryError(), TypeError("b")])
def test_an_exception_that_no_value_causes_passes_through_a_replay(error):
    def run():
        torch.log(-torch.ones(1))
        raise error

    with pytest.raises(type(error)):
        replay(run, ModuleNames({}, []), (), 1)


def test_any_code_can_be_traced():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float16))
    weight.grad = torch.tensor([1e-6], dtype=torch.float16)
    optimizer = torch.optim.Adam([weight], eps=1e-8)
    failed = trace_operations(optimizer.step)
    assert failed.operation.startswith("aten.addcdiv")
    assert failed.dtype is torch.float16
    weight.grad.fill_(1.0)
    assert trace_operations(lambda: weight.detach() * 2) is None


@pytest.mark.parametrize("is_inner", [False, True])
def test_a_forward_hook_runs_in_the_name_of_its_module(is_inner):
    def logarithm(module, inputs, output):
        return torch.log(output - 3.0)

    module = Net(torch.tanh)
    (module.first if is_inner else module).register_forward_hook(logarithm)
    report = diagnose(module, nn.MSELoss(), table(), torch.ones(6, 1))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.module == ("first" if is_inner else "")
    assert report.source == line_of(logarithm, 1)


# -- modules that do not run as plain Python -----------------------------------------


# The search for columns runs the checkpointed part without gradients.
without_gradient = pytest.mark.filterwarnings("ignore:None of the inputs have requires")


@without_gradient
@pytest.mark.parametrize("reentrant", [False, True])
def test_failures_in_checkpointed_parts_are_found(reentrant):
    def function(x):
        return checkpoint(torch.log, x, use_reentrant=reentrant)

    assert found(function, table()) is None
    report = found(function, table(row1=-1.0))
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert report.source == line_of(function, 1)
    assert report.rows == (1,)


def scripted(module):
    return torch.jit.script(module)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return torch.log(self.linear(x) * 0 - 1)


@pytest.mark.parametrize(
    "wrapped",
    [scripted, lambda module: torch.compile(module, backend="eager")],
    ids=["scripted", "compiled"],
)
def test_a_failure_in_a_scripted_or_compiled_module_has_phase_and_operation(wrapped):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = diagnose(wrapped(Plain()), F.mse_loss, table(), torch.ones(6, 3))
        finite = diagnose(
            wrapped(nn.Linear(3, 3)), F.mse_loss, table(), torch.ones(6, 3)
        )
    assert (report.phase, report.operation) == ("forward", "aten.log")
    assert finite is None
