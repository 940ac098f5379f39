from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sknan.optim import (
    SCHEDULES,
    LearningRateSchedule,
    Plateau,
    constant,
    cosine,
    coslog4,
    exponential,
    one_cycle,
    step,
)

FUNCTIONS = [constant, coslog4, cosine, exponential, one_cycle, step]


def halved(progress):
    return 0.5


def broken_in_the_middle(progress):
    return math.nan if progress > 0.5 else 1.0


def negative(progress):
    return -progress


def pickled_and_back(thing):
    return pickle.loads(pickle.dumps(thing))


def factors(schedule, total_steps, n_asked=None):
    schedule.start(total_steps)
    return [schedule.factor(i) for i in range(n_asked or total_steps)]


def learning_rates_of_torch(build, n_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@settings(deadline=None)
@given(st.floats(0.0, 1.0))
def test_every_schedule_stays_between_zero_and_one(progress):
    for function in FUNCTIONS:
        assert 0.0 <= function(progress) <= 1.0, function.__name__


def test_cosine_agrees_with_torch():
    n = 17
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=0.1),
        n + 1,
    )
    ours = [cosine(i / n, final=0.1) for i in range(n + 1)]
    # torch computes by a recursion, whose roundings add up.
    assert ours == pytest.approx(expected, abs=1e-12)


def test_one_cycle_agrees_with_torch():
    n = 21
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=n, pct_start=7 / n, cycle_momentum=False
        ),
        n,
    )
    # torch counts the peak at pct_start * total_steps - 1 of total_steps - 1 intervals.
    ours = [one_cycle(i / (n - 1), pct_start=6 / 20) for i in range(n)]
    assert ours == pytest.approx(expected, abs=1e-12)


def test_exponential_agrees_with_torch():
    n = 10
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, gamma=0.01 ** (1 / n)), n
    )
    assert [exponential(i / n) for i in range(n)] == pytest.approx(expected, rel=1e-12)


def test_step_agrees_with_torch():
    n = 12
    expected = learning_rates_of_torch(
        lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=4), n
    )
    assert [step(i / n) for i in range(n)] == pytest.approx(expected, rel=1e-12)
    assert step(1.0) == pytest.approx(0.01)


def test_one_cycle_with_all_or_nothing_of_a_rise():
    assert one_cycle(0.0, pct_start=0.0) == 1.0
    assert one_cycle(1.0, pct_start=0.0) == pytest.approx(4e-6)
    assert one_cycle(0.0, pct_start=1.0) == pytest.approx(0.04)
    assert one_cycle(1.0, pct_start=1.0) == 1.0


def test_coslog4_has_four_waves_that_each_take_twice_as_long():
    zeros = [(2**k - 1) / 15 for k in range(5)]
    peaks = [(2 ** (k + 0.5) - 1) / 15 for k in range(4)]
    assert [coslog4(t) for t in zeros] == pytest.approx([0.0] * 5, abs=1e-15)
    assert [coslog4(t) for t in peaks] == pytest.approx([1.0] * 4, abs=1e-15)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 200),
    st.integers(0, 50) | st.floats(0.0, 1.0, exclude_max=True),
)
def test_no_step_is_wasted_whatever_the_schedule_and_warmup(name, total_steps, warmup):
    found = factors(LearningRateSchedule(name, warmup), total_steps, total_steps + 60)
    assert all(0.0 < factor <= 1.0 for factor in found)


@pytest.mark.parametrize("name", ["coslog4", "cosine"])
def test_neither_the_first_nor_the_last_step_has_factor_zero(name):
    found = factors(LearningRateSchedule(name), 50)
    assert found[0] > 0.0
    assert found[-1] > 0.0
    assert found == [SCHEDULES[name]((i + 0.5) / 50) for i in range(50)]


def test_warmup_rises_linearly_and_the_schedule_takes_over_at_its_start():
    found = factors(LearningRateSchedule("cosine", warmup=4), 10)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:] == [cosine((i + 0.5) / 6) for i in range(6)]


def test_a_float_warmup_is_a_fraction_of_all_steps():
    as_fraction = factors(LearningRateSchedule("cosine", warmup=0.2), 30)
    assert as_fraction == factors(LearningRateSchedule("cosine", warmup=6), 30)


def test_numpy_numbers_are_warmups_too():
    expected = factors(LearningRateSchedule("cosine", warmup=6), 30)
    assert factors(LearningRateSchedule("cosine", np.int64(6)), 30) == expected
    assert factors(LearningRateSchedule("cosine", np.float64(0.2)), 30) == expected


@pytest.mark.parametrize("name", [None, *sorted(SCHEDULES)])
def test_steps_beyond_the_total_hold_the_last_factor(name):
    found = factors(LearningRateSchedule(name, warmup=2), 10, 30)
    assert found[10:] == [found[9]] * 20


def test_a_warmup_longer_than_the_training_goes_on_to_its_end():
    found = factors(LearningRateSchedule("cosine", warmup=4), 2, 6)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_without_a_plan_the_factor_is_one():
    assert LearningRateSchedule("cosine").factor(3) == 1.0
    assert factors(LearningRateSchedule("cosine", warmup=0.5), 0, 3) == [1.0] * 3


def test_names_are_spelt_with_underscores_or_hyphens():
    expected = factors(LearningRateSchedule(one_cycle), 9)
    assert factors(LearningRateSchedule("one_cycle"), 9) == expected
    assert factors(LearningRateSchedule("one-cycle"), 9) == expected


def test_none_is_constant():
    assert factors(LearningRateSchedule(), 3) == [1.0] * 3


def test_a_function_of_the_progress_is_a_schedule():
    assert factors(LearningRateSchedule(halved, warmup=1), 3) == [0.5, 0.5, 0.5]


def test_plateau_agrees_with_torch():
    losses = [1.0, 0.9, 0.95, 0.9, math.nan, 0.91, 0.8, math.inf, 0.9, 0.9, 0.9, 0.9]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=2, min_lr=0.3
    )
    plateau = Plateau(factor=0.5, patience=2, min_factor=0.3)
    for loss in losses:
        reference.step(loss)
        plateau.update(loss)
        assert plateau.current == optimizer.param_groups[0]["lr"]
    assert plateau.current == 0.3


def test_plateau_wants_a_negative_loss_to_fall_too():
    plateau = Plateau(patience=0, threshold=0.1)
    plateau.update(-1.0)
    plateau.update(-1.05)
    assert plateau.current == 0.5
    plateau.update(-1.2)
    assert plateau.current == 0.5


def test_plateau_survives_a_first_loss_of_nan():
    plateau = Plateau(patience=1)
    for loss in (math.nan, 2.0, 1.0):
        plateau.update(loss)
    assert (plateau.current, plateau.best) == (1.0, 1.0)


def test_plateau_scales_the_warmup_and_starts_afresh():
    schedule = LearningRateSchedule(Plateau(patience=0), warmup=1)
    schedule.start(3)
    schedule.update(math.nan)
    assert [schedule.factor(i) for i in range(3)] == [0.25, 0.5, 0.5]
    assert factors(schedule, 3) == [0.5, 1.0, 1.0]


def test_the_plateau_handed_over_is_left_alone():
    plateau = Plateau(patience=0)
    LearningRateSchedule(plateau).update(math.nan)
    assert plateau.current == 1.0


def test_only_plateau_listens_to_the_loss():
    schedule = LearningRateSchedule("cosine")
    before = factors(schedule, 5)
    for _ in range(20):
        schedule.update(math.nan)
    assert [schedule.factor(i) for i in range(5)] == before


@pytest.mark.parametrize("schedule", [None, halved, Plateau(), *sorted(SCHEDULES)])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_copy_goes_on_where_the_original_was(schedule, duplicate):
    original = LearningRateSchedule(schedule, warmup=0.1)
    original.start(20)
    for _ in range(7):
        original.update(math.nan)
    twin = duplicate(original)
    assert [twin.factor(i) for i in range(25)] == [
        original.factor(i) for i in range(25)
    ]


def test_an_unknown_name_is_answered_with_the_nearest_one():
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
    ("schedule", "found"),
    [
        (0.5, "0.5 of type float"),
        (
            torch.optim.lr_scheduler.CosineAnnealingLR,
            "the class CosineAnnealingLR",
        ),
    ],
)
def test_what_is_no_schedule_is_refused(schedule, found):
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
        (broken_in_the_middle, "broken_in_the_middle", "nan", 0.75),
        (negative, "negative", "-0.75", 0.75),
    ],
)
def test_a_bad_factor_names_the_function_and_the_progress(
    schedule, name, value, progress
):
    planned = LearningRateSchedule(schedule)
    planned.start(2)
    with pytest.raises(ValueError, match="lr_schedule") as caught:
        planned.factor(1)
    assert str(caught.value) == (
        f"The lr_schedule {name} returned {value} at progress {progress}. Return a "
        "finite factor of 0 or more."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1.0}, "factor must be between 0 and 1, got 1.0."),
        ({"factor": math.nan}, "factor must be between 0 and 1, got nan."),
        ({"patience": -1}, "patience must be 0 or more, got -1."),
        ({"threshold": -1}, "threshold must be 0 or more and finite, got -1."),
        ({"min_factor": 2}, "min_factor must be in [0, 1], got 2."),
    ],
)
def test_plateau_refuses_options_out_of_range(options, message):
    with pytest.raises(ValueError, match="must be") as caught:
        Plateau(**options)
    assert str(caught.value) == message


def test_schedules_show_how_they_were_made():
    assert repr(LearningRateSchedule(Plateau(patience=2), warmup=3)) == (
        "LearningRateSchedule(Plateau(factor=0.5, patience=2, threshold=0.0001, "
        "min_factor=0.001), warmup=3)"
    )
