"""LearningRateSchedule: warm-up, schedule and their parameters."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sknan.optim import SCHEDULES, LearningRateSchedule, Plateau, cosine, one_cycle


def halved(progress):
    return 0.5


def broken_in_the_middle(progress):
    return math.nan if progress >= 0.5 else 1.0


def negative(progress):
    return -progress


def factors(schedule, total_steps, n_asked=None):
    schedule.start(total_steps)
    return [schedule.factor(i) for i in range(n_asked or total_steps)]


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 200),
    st.integers(0, 50) | st.floats(0.0, 1.0, exclude_max=True),
)
def test_no_factor_is_zero_for_any_schedule_and_warmup(name, total_steps, warmup):
    found = factors(LearningRateSchedule(name, warmup), total_steps, total_steps + 60)
    assert all(0.0 < factor <= 1.0 for factor in found)


@pytest.mark.parametrize("name", ["coslog4", "cosine"])
def test_neither_the_first_nor_the_last_step_has_factor_zero(name):
    found = factors(LearningRateSchedule(name), 50)
    assert found[0] > 0.0
    assert found[-1] > 0.0


OF_TORCH = {
    None: lambda optimizer, n: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    "constant": lambda optimizer, n: torch.optim.lr_scheduler.ConstantLR(
        optimizer, 1.0
    ),
    "cosine": lambda optimizer, n: torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, n
    ),
    "exponential": lambda optimizer, n: torch.optim.lr_scheduler.ExponentialLR(
        optimizer, 0.01 ** (1 / n)
    ),
    "one_cycle": lambda optimizer, n: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=n
    ),
    "step": lambda optimizer, n: torch.optim.lr_scheduler.StepLR(optimizer, n // 3),
}


def factors_of_torch(make_scheduler, n_steps):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0, momentum=0.9)
    scheduler = make_scheduler(optimizer, n_steps)
    found = [optimizer.param_groups[0]["lr"]]
    for _ in range(n_steps - 1):
        optimizer.step()
        scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("n_steps", [3, 6, 12, 99, 147, 300])
@pytest.mark.parametrize("name", OF_TORCH)
def test_each_step_has_the_factor_of_torch(name, n_steps):
    expected = factors_of_torch(OF_TORCH[name], n_steps)
    found = factors(LearningRateSchedule(name), n_steps)
    # torch computes recursively, so that rounding errors add up.
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pct_start", [0.1, 0.5, 1.0])
def test_a_one_cycle_with_another_peak_has_the_factors_of_torch(pct_start):
    expected = factors_of_torch(
        lambda optimizer, n: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 1.0, total_steps=n, pct_start=pct_start
        ),
        40,
    )
    schedule = LearningRateSchedule(partial(one_cycle, pct_start=pct_start))
    assert factors(schedule, 40) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n_steps", [1, 4, 25])
def test_a_warmup_has_the_factors_of_torch(n_steps):
    expected = factors_of_torch(
        lambda optimizer, n: torch.optim.lr_scheduler.LinearLR(
            optimizer, 1 / (n + 1), total_iters=n
        ),
        n_steps,
    )
    found = factors(LearningRateSchedule(warmup=n_steps), n_steps + 5)
    assert found == pytest.approx([*expected, *[1.0] * 5])


def test_every_schedule_is_compared_with_torch():
    # coslog4 is not in torch; test_schedules compares the plateau.
    assert set(SCHEDULES) - set(OF_TORCH) == {"coslog4", "plateau"}


def test_a_function_with_a_parameter_total_steps_gets_the_steps_after_the_warmup():
    def share(progress, total_steps):
        return 1.0 / total_steps

    assert factors(LearningRateSchedule(share, warmup=2), 10)[2:] == [1 / 8] * 8


def test_the_schedule_starts_after_a_linear_warmup():
    found = factors(LearningRateSchedule("cosine", warmup=4), 10)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == [cosine(i / 6) for i in range(6)]


def test_a_float_warmup_is_a_fraction_of_all_steps():
    as_fraction = factors(LearningRateSchedule("cosine", warmup=0.2), 30)
    assert as_fraction == factors(LearningRateSchedule("cosine", warmup=6), 30)


def test_numpy_numbers_are_valid_warmups():
    expected = factors(LearningRateSchedule("cosine", warmup=6), 30)
    assert factors(LearningRateSchedule("cosine", np.int64(6)), 30) == expected
    assert factors(LearningRateSchedule("cosine", np.float64(0.2)), 30) == expected


@pytest.mark.parametrize("name", [None, *sorted(SCHEDULES)])
def test_steps_beyond_the_total_hold_the_last_factor(name):
    found = factors(LearningRateSchedule(name, warmup=2), 10, 30)
    assert found[10:] == [found[9]] * 20


def test_a_warmup_longer_than_the_training_continues_to_its_end():
    found = factors(LearningRateSchedule("cosine", warmup=4), 2, 6)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("name", ["cosine", "exponential", "step", "one_cycle"])
def test_the_rest_can_be_planned_for_fewer_steps(name):
    schedule = LearningRateSchedule(name)
    whole = factors(schedule, 1000)
    for step, n_steps in [(10, 30), (15, 5), (17, 10)]:  # slower, then faster again
        before = schedule.factor(step)
        schedule.plan_rest(step, n_steps)
        assert schedule.factor(step) == pytest.approx(before)
    rest = [schedule.factor(step) for step in range(17, 27)]
    assert rest == sorted(rest, reverse=True)
    assert rest[-1] <= whole[-100]
    assert schedule.factor(40) == whole[-1]


def test_a_plan_with_time_for_all_steps_changes_nothing():
    schedule = LearningRateSchedule("cosine", warmup=7)
    whole = factors(schedule, 100)
    for step in range(0, 100, 9):
        schedule.plan_rest(step, 10**9)
        assert [schedule.factor(i) for i in range(step, 100)] == whole[step:]


def test_without_a_number_of_steps_the_factor_is_one():
    assert LearningRateSchedule("cosine").factor(3) == 1.0
    assert factors(LearningRateSchedule("cosine", warmup=0.5), 0, 3) == [1.0] * 3


def test_names_have_underscores_or_hyphens():
    expected = factors(LearningRateSchedule(one_cycle), 9)
    assert factors(LearningRateSchedule("one_cycle"), 9) == expected
    assert factors(LearningRateSchedule("one-cycle"), 9) == expected


def test_none_is_constant():
    assert factors(LearningRateSchedule(), 3) == [1.0] * 3


def test_a_function_of_the_progress_is_a_valid_schedule():
    assert factors(LearningRateSchedule(halved, warmup=1), 3) == [0.5, 0.5, 0.5]


def test_plateau_scales_the_warmup_and_is_reset_by_start():
    schedule = LearningRateSchedule(Plateau(patience=0), warmup=1)
    schedule.start(3)
    schedule.update(math.nan)
    assert [schedule.factor(i) for i in range(3)] == [0.25, 0.5, 0.5]
    assert factors(schedule, 3) == [0.5, 1.0, 1.0]


def test_a_plateau_given_as_parameter_does_not_change():
    plateau = Plateau(patience=0)
    LearningRateSchedule(plateau).update(math.nan)
    assert plateau.current == 1.0


def test_only_plateau_depends_on_the_loss():
    schedule = LearningRateSchedule("cosine")
    before = factors(schedule, 5)
    for _ in range(20):
        schedule.update(math.nan)
    assert [schedule.factor(i) for i in range(5)] == before


@pytest.mark.parametrize("schedule", [None, halved, Plateau(), *sorted(SCHEDULES)])
@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_continues_like_the_original(schedule, make_copy):
    original = LearningRateSchedule(schedule, warmup=0.1)
    original.start(20)
    for _ in range(7):
        original.update(math.nan)
    copied = make_copy(original)
    assert [copied.factor(i) for i in range(25)] == [
        original.factor(i) for i in range(25)
    ]


def test_the_message_about_an_unknown_name_suggests_the_closest_one():
    with pytest.raises(ValueError, match="Unknown") as caught:
        LearningRateSchedule("cosin")
    assert str(caught.value) == (
        "Unknown lr_schedule 'cosin'. Did you mean 'cosine'? Known schedules: "
        "'constant', 'cosine', 'coslog4', 'exponential', 'one_cycle', 'plateau', "
        "'step'."
    )
    with pytest.raises(ValueError, match="Unknown") as caught:
        LearningRateSchedule("zzz")
    assert str(caught.value) == (
        "Unknown lr_schedule 'zzz'. Known schedules: 'constant', 'cosine', 'coslog4', "
        "'exponential', 'one_cycle', 'plateau', 'step'."
    )


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("CosineAnnealingLR", "cosine"),
        ("OneCycleLR", "one_cycle"),
        ("ReduceLROnPlateau", "plateau"),
        ("StepLR", "step"),
        ("ExponentialLR", "exponential"),
        ("adaptive", "plateau"),
    ],
)
def test_a_name_of_another_library_is_answered_with_ours(name, ours):
    with pytest.raises(ValueError, match="Unknown") as caught:
        LearningRateSchedule(name)
    assert f"{name!r}. Did you mean {ours!r}? Known" in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "found"),
    [
        (0.5, "0.5 of type float"),
        (
            torch.optim.lr_scheduler.CosineAnnealingLR,
            "the class CosineAnnealingLR",
        ),
    ],
)
def test_an_object_that_is_no_schedule_is_refused(schedule, found):
    with pytest.raises(TypeError) as caught:
        LearningRateSchedule(schedule)
    assert str(caught.value) == (
        "lr_schedule must be None, a name or a function of the progress in [0, 1], "
        f"got {found}."
    )


@pytest.mark.parametrize("warmup", [True, None, "0.1", 1j])
def test_a_warmup_of_another_type_is_refused(warmup):
    with pytest.raises(TypeError) as caught:
        LearningRateSchedule("cosine", warmup)
    assert str(caught.value) == (
        "warmup must be a fraction of all steps (float) or a number of steps (int), "
        f"got {warmup!r} of type {type(warmup).__name__}."
    )


@pytest.mark.parametrize("warmup", [-0.1, 1.0, math.nan, math.inf])
def test_a_fraction_outside_zero_to_one_is_refused(warmup):
    with pytest.raises(ValueError, match="warmup") as caught:
        LearningRateSchedule("cosine", warmup)
    assert str(caught.value) == (
        f"warmup as a fraction of all steps must be in [0, 1), got {warmup!r}. "
        "Pass an int for a number of steps."
    )


def test_a_negative_number_of_warmup_steps_is_refused():
    with pytest.raises(ValueError, match="warmup") as caught:
        LearningRateSchedule("cosine", -1)
    assert str(caught.value) == (
        "warmup as a number of steps must be 0 or more, got -1."
    )


def test_a_negative_total_is_refused():
    with pytest.raises(ValueError, match="total_steps") as caught:
        LearningRateSchedule().start(-1)
    assert str(caught.value) == "total_steps must be 0 or more, got -1."


@pytest.mark.parametrize(
    ("schedule", "name", "value", "progress"),
    [
        (broken_in_the_middle, "broken_in_the_middle", "nan", 0.5),
        (negative, "negative", "-0.5", 0.5),
    ],
)
def test_the_message_about_a_bad_factor_names_function_and_progress(
    schedule, name, value, progress
):
    broken = LearningRateSchedule(schedule)
    broken.start(2)
    with pytest.raises(ValueError, match="lr_schedule") as caught:
        broken.factor(1)
    assert str(caught.value) == (
        f"The lr_schedule {name} returned {value} at progress {progress}. Return a "
        "finite factor of 0 or more."
    )


def test_the_repr_shows_the_parameters():
    assert repr(LearningRateSchedule(Plateau(patience=2), warmup=3)) == (
        "LearningRateSchedule(Plateau(factor=0.5, patience=2, threshold=0.0001, "
        "min_factor=0.001), warmup=3)"
    )
