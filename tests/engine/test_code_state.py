"""State that the code of modules reads, and modules whose code changes it."""

import copy
import itertools
import random
import types

import numpy as np
import pytest
import torch
from engine_helpers import assert_close, fitted_by_the_loop, jobs_of
from torch import nn

from sknan import StableNetRegressor
from sknan._engine.code_state import code_state
from sknan._engine.jobs import train_together
from sknan._engine.passes import does_stacking_agree
from sknan._utils.random_state import generator_states, set_generator_states

SETTINGS = types.ModuleType("settings")
SETTINGS.n_calls = 0
N_CALLS = 0
CALLS = {"n": 0, "array": np.zeros(1)}
NUMBERS = np.random.default_rng(0)
COUNTER = itertools.count()


class Counter:
    n_calls = 0

    def count(self):
        self.n_calls += 1


class Helped(nn.Module):
    """Network whose forward calls a function with the network."""

    def __init__(self, n_features_in, n_outputs, action=None):
        super().__init__()
        self.first = nn.Linear(n_features_in, 8)
        self.head = nn.Linear(8, n_outputs)
        self.helper = Counter()
        self.action = action

    def forward(self, X):
        self.action(self)
        return self.head(torch.tanh(self.first(X)))


def count_globally(_):
    global N_CALLS
    N_CALLS += 1


def count_in_a_dict(_):
    CALLS["n"] += 1


def count_in_an_array(_):
    CALLS["array"][0] += 1


def count_in_a_module(_):
    SETTINGS.n_calls += 1


def count_in_a_class(_):
    Counter.n_calls += 1


def count_in_an_object(net):
    net.helper.count()


def count_in_a_closure():
    n_calls = 0

    def count(_):
        nonlocal n_calls
        n_calls += 1

    return count


def count_indirectly(_):
    count_globally(_)


def draw_from_python(_):
    return random.random() < 1e-3


def draw_from_numpy(_):
    return np.random.uniform() < 1e-3  # noqa: NPY002


def draw_from_a_generator(_):
    return NUMBERS.uniform() < 1e-3


def draw_from_an_iterator(_):
    return next(COUNTER)


ACTIONS = [
    count_globally,
    count_in_a_dict,
    count_in_an_array,
    count_in_a_module,
    count_in_a_class,
    count_in_an_object,
    count_in_a_closure(),
    count_indirectly,
    draw_from_python,
    draw_from_numpy,
    draw_from_a_generator,
    draw_from_an_iterator,
]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.__name__)
def test_a_module_whose_code_changes_state_uses_the_loop(action):
    jobs = jobs_of(
        StableNetRegressor,
        [{"lr": 1e-3}, {"lr": 1e-2}],
        module=Helped,
        module__action=action,
        max_epochs=1,
    )
    outcomes = train_together(jobs)
    assert not any(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_by_the_loop(jobs))


def test_a_module_whose_code_reads_state_is_stacked():
    jobs = jobs_of(
        StableNetRegressor,
        [{"lr": 1e-3}, {"lr": 1e-2}],
        module=Helped,
        module__action=lambda net: (N_CALLS, CALLS, SETTINGS.n_calls, net.helper),
        max_epochs=1,
    )
    outcomes = train_together(jobs)
    assert all(outcome.is_stacked for outcome in outcomes)
    assert_close(outcomes, fitted_by_the_loop(jobs))


class Counted(nn.Module):
    """Loss of a user that counts its calls in a helper."""

    def __init__(self):
        super().__init__()
        self.helper = Counter()

    def forward(self, output, target):
        self.helper.count()
        return (output - target).square().mean()


def test_a_criterion_that_counts_its_calls_uses_the_loop():
    jobs = jobs_of(StableNetRegressor, [{}, {"lr": 0.1}], criterion=Counted)
    outcomes = train_together(jobs)
    assert not any(outcome.is_stacked for outcome in outcomes)


def test_the_comparison_with_a_stack_leaves_the_generators_unchanged():
    states = generator_states()
    job = jobs_of(
        StableNetRegressor, [{}], module=Helped, module__action=draw_from_python
    )[0]
    plan = job.estimator._plan(job.estimator._training_rows(job.X, job.y))
    set_generator_states(states)
    assert not does_stacking_agree(plan.net, plan.table)
    assert generator_states() == states


@pytest.mark.parametrize("value", [1, [1], {"a": (1, 2)}, Counter(), np.ones(2)])
def test_equal_values_have_one_state(value):
    assert code_state(value) == code_state(copy.deepcopy(value))


@pytest.mark.parametrize("value", [iter([]), [[] for _ in range(20_000)]])
def test_what_is_not_compared_is_equal_to_nothing(value):
    assert code_state(value) != code_state(value)
