"""Detection of losses and gradients that diverge although they are finite."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sknan.nets.guard import LossWatch
from sknan.nets.guard._loss_watch import LossWatches

losses = st.floats(-1e30, 1e30)


def _noted(asked, k):
    asked.append(k)
    return math.inf


def never():
    raise AssertionError("there was no suspicion")


def steps_until_explosion(watch, losses, untrained=lambda: 1.0):
    """Return the number of the loss that counts as exploded, counted from 1."""
    for number, loss in enumerate(losses, start=1):
        if watch.has_exploded(loss, untrained):
            return number
    return None


def test_a_loss_that_stays_ten_times_the_untrained_one_has_exploded():
    watch = LossWatch(None)
    assert steps_until_explosion(watch, [1.0] + [50.0] * 20) == 11


def test_an_explosion_is_recognized_sooner_in_a_short_training():
    assert steps_until_explosion(LossWatch(40), [1.0] + [50.0] * 20) == 6
    assert steps_until_explosion(LossWatch(1), [1.0] + [50.0] * 20) == 2


@given(st.lists(losses, min_size=1, max_size=40))
def test_a_loss_below_ten_times_the_first_one_is_never_suspected(values):
    first = abs(values[0]) + 1.0
    watch = LossWatch(None)
    watch.has_exploded(first, never)
    for value in values:
        assert not watch.has_exploded(math.fmod(value, 9.0 * first), never)


def test_a_short_spike_is_no_explosion():
    watch = LossWatch(None)
    values = ([1.0] * 3 + [1e20] * 9) * 3
    assert steps_until_explosion(watch, values, never) is None


def test_larger_data_raise_the_reference():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [1.0] + [50.0] * 20, lambda: 40.0) is None
    assert watch.reference == 50.0
    # An explosion must exceed the new reference tenfold.
    assert steps_until_explosion(watch, [450.0] * 20, never) is None
    assert steps_until_explosion(watch, [600.0] * 20, lambda: 40.0) is not None


def test_the_reference_rises_to_the_untrained_loss_of_recent_batches():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [1.0] + [50.0] * 5, lambda: 70.0) is None
    assert watch.reference == 70.0


def test_an_untrained_loss_that_is_not_finite_confirms_nothing():
    for before in (math.nan, math.inf):
        watch = LossWatch(40)
        found = steps_until_explosion(
            watch, [1.0] + [50.0] * 20, lambda before=before: before
        )
        assert found is None


def test_negative_losses_are_compared_by_difference():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [-5.0] + [30.0] * 20, never) is None
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [-5.0] + [80.0] * 9, lambda: -5.0) is not None
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [-5.0, *range(-10, -200, -5)], never) is None


def test_a_loss_that_begins_at_zero_may_become_an_ordinary_one():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [0.0] + [0.5] * 20, lambda: 0.4) is None


def test_a_first_loss_of_exactly_zero_gives_way_to_the_untrained_loss():
    # The rows are sorted: the network fits the first batches exactly.
    watch = LossWatch(40)
    epoch = [0.0] * 8 + [1.0] * 8 + [0.06] * 16
    assert steps_until_explosion(watch, epoch, lambda: 1.0) is None
    assert watch.reference == 1.0
    assert steps_until_explosion(watch, [0.06] * 40, never) is None
    assert steps_until_explosion(watch, [60.0] * 9, lambda: 1.0) is not None


def test_an_untrained_loss_of_exactly_zero_confirms_nothing():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [0.0] * 9 + [1e-5] * 9, lambda: 0.0) is None
    assert watch.reference == 1e-5


def test_counting_restarts_after_a_failed_step():
    watch = LossWatch(40)
    assert steps_until_explosion(watch, [1.0] + [50.0] * 4) is None
    watch.forget()
    assert steps_until_explosion(watch, [50.0] * 4) is None
    assert steps_until_explosion(watch, [50.0]) == 1


def test_a_second_training_keeps_the_reference_of_the_first():
    watch = LossWatch(40, reference=100.0)
    assert steps_until_explosion(watch, [1.0] + [50.0] * 20, never) is None


def test_weights_are_trusted_up_to_twice_the_untrained_loss():
    watch = LossWatch(None)
    watch.has_exploded(3.0, never)
    assert watch.is_trusted(6.0)
    assert not watch.is_trusted(6.1)
    assert watch.is_trusted(-1e30)


# -- gradients -----------------------------------------------------------------------


def test_a_gradient_beside_which_float32_loses_the_others_is_absurd():
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    assert not any(watch.is_spike(1.0, 2.0) for _ in range(10))
    assert not watch.is_spike(1.0, 1.6e7)
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    assert not any(watch.is_spike(1.0, 2.0) for _ in range(10))
    assert watch.is_spike(1.0, 1.7e7)
    # A spike does not change the usual norm.
    assert watch.is_spike(1.0, 1.7e7)


def test_the_first_gradients_are_compared_with_the_loss():
    watch = LossWatch(None)
    assert not watch.is_spike(1e12, 1e15)
    watch = LossWatch(None)
    assert watch.is_spike(1.0, 1e7)


def test_a_large_gradient_at_an_exploding_loss_is_no_spike():
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    for _ in range(10):
        watch.is_spike(1.0, 1.0)
    assert not watch.is_spike(100.0, 1e9)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50))
def test_gradients_of_up_to_a_million_are_no_spike_at_a_loss_of_one(norms):
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    assert not any(watch.is_spike(1.0, norm) for norm in norms[:5])


@pytest.mark.parametrize("norm", [0.0, 1e-300])
def test_gradients_that_vanish_make_no_later_one_a_spike(norm):
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    for _ in range(20):
        assert not watch.is_spike(1.0, norm)
    assert not watch.is_spike(1.0, 1.0)


def test_a_gradient_that_returns_after_many_zeros_is_no_spike():
    # A hinge loss does this when a batch has a row inside the margin again.
    watch = LossWatch(None)
    watch.has_exploded(1.0, never)
    assert not any(watch.is_spike(1.0, 3.0) for _ in range(10))
    assert not any(watch.is_spike(0.0, 0.0) for _ in range(3000))
    assert not watch.is_spike(0.1, 2.9)


# -- saved and joint watches ---------------------------------------------------------


@given(st.lists(losses, max_size=30), st.lists(losses, min_size=1, max_size=30))
def test_a_saved_watch_continues_in_the_same_way(before, after):
    first, second = LossWatch(40), LossWatch(40)
    for loss in before:
        first.has_exploded(loss, lambda: 1.0)
        first.is_spike(loss, abs(loss))
    second.load_state_dict(first.state_dict())
    for loss in after:
        assert first.is_spike(loss, 1.0) == second.is_spike(loss, 1.0)
        assert first.has_exploded(loss, lambda: 1.0) == second.has_exploded(
            loss, lambda: 1.0
        )


@given(st.data())
def test_joint_watches_suspect_the_same_steps_as_a_single_one(data):
    n_steps = data.draw(st.integers(1, 200))
    n_trainings = data.draw(st.integers(1, 4))
    numbers = st.floats(1e-3, 1e12)
    any_numbers = numbers | st.just(0.0) | st.floats(-1e3, 1e3)
    shape = (data.draw(st.integers(1, 40)), n_trainings)
    losses = data.draw(arrays(np.float64, shape, elements=any_numbers))
    norms = data.draw(arrays(np.float64, shape, elements=numbers))
    together = LossWatches(n_steps, n_trainings)
    cuts = np.sort(data.draw(arrays(np.int64, 3, elements=st.integers(0, shape[0]))))
    parts, trusted = [], {}
    for first, *part in zip(
        [0, *cuts], np.split(losses, cuts), np.split(norms, cuts), strict=True
    ):
        if len(part[0]):
            spikes = together.is_spike(*part)
            parts.append((spikes, together.may_have_exploded(part[0])))
            trusted[first] = together.are_trusted(part[0][0]).tolist()
    all_spikes, all_suspects = (
        np.concatenate(values) for values in zip(*parts, strict=True)
    )
    alone = [LossWatch(n_steps) for _ in range(n_trainings)]
    steps = zip(losses, norms, all_spikes.tolist(), all_suspects.tolist(), strict=True)
    for n, (row, row_norms, spikes, suspects) in enumerate(steps):
        triples = list(zip(alone, row.tolist(), row_norms.tolist(), strict=True))
        assert spikes == [watch.is_spike(loss, norm) for watch, loss, norm in triples]
        asked: list[int] = []
        for k, (watch, loss, _) in enumerate(triples):
            watch.has_exploded(loss, partial(_noted, asked, k))
        if n in trusted and not asked:
            assert trusted[n] == [w.is_trusted(loss) for w, loss, _ in triples]
        assert np.flatnonzero(suspects).tolist() == asked
        if asked or any(spikes):
            return  # from here on it is watched alone


def test_dropping_a_watch_does_not_change_the_others():
    rng = np.random.default_rng(0)
    losses, norms = rng.exponential(size=(2, 30, 3)) * 10.0 ** rng.integers(0, 3, 3)
    three, two = LossWatches(30, 3), LossWatches(30, 2)
    for step, (row, row_norms) in enumerate(zip(losses, norms, strict=True)):
        if step == 10:
            three = three.select(np.array([0, 2]))
        both, both_norms = row[None, [0, 2]], row_norms[None, [0, 2]]
        seen = both if step >= 10 else row[None]
        seen_norms = both_norms if step >= 10 else row_norms[None]
        spikes = three.is_spike(seen, seen_norms)
        suspects = three.may_have_exploded(seen)
        kept = [0, 2] if step < 10 else [0, 1]
        assert (spikes[:, kept] == two.is_spike(both, both_norms)).all()
        assert (suspects[:, kept] == two.may_have_exploded(both)).all()
