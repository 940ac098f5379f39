"""SafeScaler: every number gives a finite result, and the order is kept."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mpmath import mp, mpf
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import RobustScaler, StandardScaler

from sknan import SafeScaler

NAN, INF = np.nan, np.inf
FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT64_MAX = float(np.finfo(np.float64).max)
TINY = 5e-324

EXTREMES = [0.0, -0.0, TINY, FLOAT64_MAX, -FLOAT64_MAX, FLOAT32_MAX, 1e19, 5e19, 1e200]
finite = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)
anything = finite | st.sampled_from([NAN, INF, -INF])
shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=8)
tables = hnp.arrays(np.float64, shapes, elements=anything)
bounds = st.sampled_from([3.0, 0.1, 5.0, 1e-30, 1e30, None])


def message_of(error, function, *args):
    with pytest.raises(error) as caught:
        function(*args)
    return str(caught.value)


def exact(x, center, scale, bound):
    """Evaluate the definition with 700 digits."""
    with mp.workdps(700):
        z = (mpf(x) - mpf(center)) / mpf(scale)
        return z if bound is None else z / mp.sqrt(1 + (z / mpf(bound)) ** 2)


# -- all numbers ---------------------------------------------------------------------


@given(tables, bounds, st.sampled_from([np.float32, np.float64]))
def test_every_result_is_finite_and_bounded(table, bound, dtype):
    with np.errstate(over="ignore"):
        table = table.astype(dtype)
    scaled = SafeScaler(bound=bound).fit_transform(table)
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(np.isnan(scaled), np.isnan(table))
    known = scaled[~np.isnan(table)]
    assert np.isfinite(known).all()
    if bound is not None:
        assert (np.abs(known.astype(np.float64)) <= bound).all()


@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=anything),
    bounds,
    st.sampled_from([np.float32, np.float64]),
)
def test_a_larger_value_never_gives_a_smaller_result(column, bound, dtype):
    with np.errstate(over="ignore"):
        column = np.sort(column[~np.isnan(column)]).astype(dtype)
    assume(column.size)
    scaled = SafeScaler(bound=bound).fit_transform(column[:, None]).ravel()
    assert (np.diff(scaled.astype(np.float64)) >= 0).all()


@given(hnp.arrays(np.float64, st.integers(2, 9), elements=finite), bounds)
def test_the_result_agrees_with_the_definition(column, bound):
    scaler = SafeScaler(bound=bound).fit(column[:, None])
    center, scale = float(scaler.center_[0]), float(scaler.scale_[0])
    scaled = scaler.transform(column[:, None]).ravel()
    if scale == 0:
        assert not scaled.any()
        return
    for x, found in zip(column.tolist(), scaled.tolist(), strict=True):
        expected = exact(x, center, scale, bound)
        if abs(expected) > FLOAT64_MAX:
            assert abs(found) == FLOAT64_MAX
            continue
        # The subtraction has an error of half a unit of the larger operand, which is
        # divided by the scale. Each other step adds an error of half a unit.
        lost = max(abs(x), abs(center)) * 2.0**-52
        lost_scaled = mpf(lost) / mpf(scale)
        assert abs(mpf(found) - expected) <= lost_scaled + 4e-16 * abs(expected) + TINY


def quantile(known, q):
    """Evaluate the definition in fractions, which neither overflow nor round."""
    rank = (len(known) - 1) * Fraction(q)
    below = known[math.floor(rank)]
    return below + (known[math.ceil(rank)] - below) * (rank - math.floor(rank))


@given(tables)
def test_center_and_scale_are_median_and_quartiles(table):
    scaler = SafeScaler().fit(table)
    for column, center, scale in zip(
        table.T, scaler.center_, scaler.scale_, strict=True
    ):
        known = sorted(Fraction(x) for x in column[np.isfinite(column)])
        if not known:
            assert math.isnan(center)
            assert scale == 0
            continue
        tolerance = Fraction(1e-12) * max(abs(x) for x in known) + Fraction(TINY)
        assert abs(Fraction(center) - quantile(known, 0.5)) <= tolerance
        spread = quantile(known, 0.75) - quantile(known, 0.25)
        # Quartiles that differ only by rounding may count as equal: then the scale is
        # the range.
        choices = [spread] if spread > tolerance else [spread, known[-1] - known[0]]
        errors = [abs(Fraction(scale) - min(c, Fraction(FLOAT64_MAX))) for c in choices]
        assert min(errors) <= tolerance


def test_far_values_do_not_become_the_median():
    # x / sqrt(1 + (x / 3)**2) in float32 gives 0 from about 5e19 on.
    table = np.array([[0.0], [1.0], [-1.0], [2.0], [1e19], [1e20], [3e38]], np.float32)
    scaled = SafeScaler().fit(table[:4]).transform(table).ravel()
    assert (scaled[4:] > 2.99).all()
    with np.errstate(over="ignore"):
        squared = (table / np.float32(3)) ** 2
    assert (table / np.sqrt(1 + squared))[-1] == 0


def test_one_cell_of_1e200_does_not_affect_the_others():
    table = np.arange(9.0)[:, None].copy()
    table[3] = 1e200
    scaled = SafeScaler().fit_transform(table)
    others = np.delete(scaled, 3)
    assert np.ptp(others) > 1.5
    assert scaled[3] == pytest.approx(3.0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        standard = StandardScaler().fit_transform(table)
        robust = RobustScaler().fit_transform(table).astype(np.float32)
    assert not np.isfinite(standard).all() or np.ptp(np.delete(standard, 3)) == 0
    assert np.isinf(robust[3])


def test_infinities_become_the_bounds_and_nan_stays_nan():
    scaler = SafeScaler(bound=5.0).fit([[1.0], [2.0], [3.0], [INF], [-INF], [NAN]])
    assert scaler.center_.tolist() == [2.0]
    scaled = scaler.transform([[INF], [-INF], [NAN], [2.0]]).ravel()
    assert scaled[:2].tolist() == [5.0, -5.0]
    assert math.isnan(scaled[2])
    assert scaled[3] == 0


def test_without_a_bound_it_agrees_with_robust_scaler():
    table = np.random.default_rng(0).normal(size=(40, 3))
    scaled = SafeScaler(bound=None).fit_transform(table)
    np.testing.assert_allclose(scaled, RobustScaler().fit_transform(table), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_a_bound_numbers_that_overflow_become_the_largest_number(dtype):
    table = np.array([[0.0], [1e-30], [2e-30], [1e30], [INF]], dtype=dtype)
    scaler = SafeScaler(bound=None).fit(table[:3])
    scaled = scaler.transform(table)
    assert np.isfinite(scaled).all()
    assert scaled[-1] == np.finfo(dtype).max


# -- columns of no, one or two values ------------------------------------------------


def test_indicator_columns_are_scaled_by_their_range():
    table = np.zeros((20, 1))
    table[3] = 1.0  # both quartiles are 0
    scaled = SafeScaler().fit_transform(table)
    assert scaled[0] == 0
    assert scaled[3] == pytest.approx(1 / math.sqrt(1 + 1 / 9))


@pytest.mark.parametrize("value", [0.0, 7.0, 1e308, -TINY])
def test_a_constant_column_becomes_zero(value):
    scaler = SafeScaler().fit(np.full((5, 1), value))
    assert scaler.scale_.tolist() == [0.0]
    assert (
        scaler.transform([[value], [3.0], [INF], [-1e300]]).ravel().tolist()
        == [0.0] * 4
    )


def test_a_column_that_had_no_finite_value_becomes_zero():
    scaler = SafeScaler().fit([[NAN], [INF]])
    scaled = scaler.transform([[5.0], [NAN]]).ravel()
    assert scaled[0] == 0
    assert math.isnan(scaled[1])


def test_huge_and_tiny_spreads():
    table = np.array([[-FLOAT64_MAX, -TINY], [0.0, 0.0], [FLOAT64_MAX, TINY]])
    scaled = SafeScaler(quantile_range=(0.0, 100.0)).fit_transform(table)
    expected = 0.5 / math.sqrt(1 + (0.5 / 3) ** 2)
    # The spread of the huge column is the largest float64, half of its true value.
    assert scaled[2, 0] == pytest.approx(1 / math.sqrt(1 + 1 / 9))
    assert scaled[2, 1] == pytest.approx(expected)
    assert scaled[0].tolist() == (-scaled[2]).tolist()
    assert scaled[1].tolist() == [0, 0]


def test_a_single_row():
    assert SafeScaler().fit_transform([[3.0, NAN]])[0, 0] == 0


# -- inverse_transform ---------------------------------------------------------------


def test_inverse_transform_restores_values_within_the_bound():
    table = np.random.default_rng(0).normal(size=(50, 3)) * [1, 1e-5, 1e200] + 7
    table[:, 2] -= 7
    scaler = SafeScaler().fit(table)
    back = scaler.inverse_transform(scaler.transform(table))
    np.testing.assert_allclose(back, table, rtol=1e-9)


@given(tables, bounds)
def test_inverse_transform_is_finite_where_the_table_was(table, bound):
    scaler = SafeScaler(bound=bound).fit(table)
    back = scaler.inverse_transform(scaler.transform(table))
    assert not np.isnan(back[~np.isnan(table)]).any()


# -- types of tables -----------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_memory_layout_changes_nothing(order, dtype):
    table = np.random.default_rng(0).normal(size=(300, 50)).astype(dtype)
    plain = SafeScaler().fit_transform(table)
    other = SafeScaler().fit_transform(np.asarray(table, order=order))
    np.testing.assert_array_equal(plain, other)
    strided = SafeScaler().fit_transform(np.repeat(table, 2, axis=1)[:, ::2])
    np.testing.assert_array_equal(plain, strided)


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_blocks_do_not_affect_the_result(order):
    table = np.asarray(np.random.default_rng(0).normal(size=(40_000, 3)), order=order)
    scaler = SafeScaler().fit(table)
    whole = scaler.transform(table)
    parts = np.vstack([scaler.transform(part) for part in np.array_split(table, 7)])
    np.testing.assert_array_equal(whole, parts)


def test_without_copy_the_table_is_overwritten():
    table = np.arange(6.0).reshape(3, 2)
    before = table.copy()
    scaled = SafeScaler().fit(table).transform(table)
    np.testing.assert_array_equal(table, before)
    SafeScaler(copy=False).fit(table).transform(table)
    np.testing.assert_array_equal(table, scaled)


def test_pandas_and_polars():
    frame = pd.DataFrame({"a": [1.0, 2.0, NAN], "b": [3, 4, 5]}, index=list("xyz"))
    scaled = SafeScaler().set_output(transform="pandas").fit_transform(frame)
    assert scaled.columns.tolist() == ["a", "b"]
    assert scaled.index.tolist() == list("xyz")
    plain = SafeScaler().fit_transform(frame)
    np.testing.assert_array_equal(scaled.to_numpy(), plain)
    np.testing.assert_array_equal(
        SafeScaler().fit_transform(pl.from_pandas(frame)), plain
    )


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "boolean"])
def test_nullable_columns(dtype):
    frame = pd.DataFrame({"a": pd.array([0, 1, None, 1], dtype=dtype)})
    scaled = SafeScaler().fit_transform(frame).ravel()
    assert math.isnan(scaled[2])
    assert np.isfinite(np.delete(scaled, 2)).all()


# -- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0, -1.0, NAN, INF, 1e31, "3", True])
def test_a_bound_out_of_range_is_refused(bound):
    message = message_of(ValueError, SafeScaler(bound=bound).fit, [[1.0]])
    assert message.startswith("The 'bound' parameter of SafeScaler must be")
    assert message.endswith(f"Got {bound!r} instead.")


@pytest.mark.parametrize("pair", [(75, 25), (25, 25), (-1, 50), (0, 101), 5, "ab"])
def test_an_invalid_quantile_range_is_refused(pair):
    scaler = SafeScaler(quantile_range=pair)
    assert message_of(ValueError, scaler.fit, [[1.0]]) == (
        "The 'quantile_range' parameter of SafeScaler must be two numbers with "
        f"0 <= low < high <= 100. Got {pair!r} instead."
    )


def test_the_message_about_text_names_row_and_column():
    frame = pd.DataFrame({"age": [3.0, 4.0], "color": ["1", "red"]})
    assert message_of(ValueError, SafeScaler().fit, frame) == (
        "X contains text, first 'red' at row 1, column 'color', but SafeScaler needs "
        "numbers. Encode the table first, for example with skrub.TableVectorizer()."
    )


def test_an_unfitted_scaler_raises_not_fitted_error():
    with pytest.raises(NotFittedError):
        SafeScaler().transform([[1.0]])
    with pytest.raises(NotFittedError):
        SafeScaler().inverse_transform([[1.0]])


# -- large tables, and direct scaling of ordinary columns ----------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", [3.0, 0.1, None])
def test_ordinary_columns_are_exact_to_four_units(dtype, bound):
    rng = np.random.default_rng(0)
    table = rng.standard_cauchy((300, 4)) * [1e-6, 1, 1e6, 3] + [0, 100, -1e6, 1e-3]
    table = table.astype(dtype)
    scaler = SafeScaler(bound=bound).fit(table)
    scaled = scaler.transform(table)
    bound = bound and float(dtype(bound))
    for j, (center, scale) in enumerate(
        zip(scaler.center_, scaler.scale_, strict=True)
    ):
        for x, found in zip(table[:, j].tolist(), scaled[:, j].tolist(), strict=True):
            expected = exact(x, center, scale, bound)
            # Five or six roundings of half a unit each.
            assert abs(found - expected) <= 4 * float(np.spacing(dtype(abs(expected))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_deviations_too_small_to_be_squared_are_scaled(dtype):
    tiny = np.finfo(dtype).tiny
    scaler = SafeScaler().fit(np.array([[-1.5], [-0.5], [0.5], [1.5]], dtype))
    positive = np.array([0.0, tiny, tiny**0.75, tiny**0.5, tiny**0.25], dtype)
    column = np.concatenate([-positive[::-1], positive])
    scaled = scaler.transform(column[:, None]).ravel()
    np.testing.assert_allclose(scaled, column / scaler.scale_[0], rtol=1e-6)
    assert (np.diff(scaled) >= 0).all()
    assert scaled.tolist() == (-scaled[::-1]).tolist()


@given(
    hnp.arrays(
        np.float32,
        st.integers(3, 30),
        elements=st.floats(-(2.0**40), 2.0**40, width=32) | st.sampled_from([INF, 0.0]),
    ),
    st.sampled_from([3.0, 0.1, None]),
)
def test_the_order_of_ordinary_float32_is_kept(column, bound):
    column = np.sort(column)[:, None]
    scaled = SafeScaler(bound=bound).fit(column[::2]).transform(column).ravel()
    assert (np.diff(scaled.astype(np.float64)) >= 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tiny_deviations_are_scaled_in_tables_of_any_length(dtype):
    # Some squares underflow. Squares of powers of two may be exact and yet too small
    # as a divisor.
    lowest = int(math.log2(float(np.finfo(dtype).smallest_subnormal)))
    sizes = np.outer(2.0 ** np.arange(lowest, 2), [0.0, 1.0, 1.3, 1.999])
    column = np.sort(np.concatenate([sizes.ravel(), -sizes.ravel()])).astype(dtype)
    scaler = SafeScaler().fit(np.array([[-1.0], [-0.3], [0.3], [1.0]]))
    once = scaler.transform(column[:, None])
    expected = column / scaler.scale_[0]
    expected /= np.sqrt(1 + (expected / 3.0) ** 2)
    unit = float(np.finfo(dtype).smallest_subnormal)
    np.testing.assert_allclose(once[:, 0], expected, rtol=1e-6, atol=unit)
    assert (np.diff(once, axis=0) >= 0).all()
    n_times = 1 + 40_000 // len(column)
    many = scaler.transform(np.tile(column, n_times)[:, None])
    np.testing.assert_array_equal(many, np.tile(once, (n_times, 1)))


@given(
    st.sampled_from([np.float32, np.float64]),
    st.lists(finite, min_size=1, max_size=30),
    st.integers(-45, 45),
    st.sampled_from([3.0, 7.0]),
)
def test_the_order_around_a_center_of_zero_is_kept(dtype, cells, exponent, bound):
    with np.errstate(over="ignore"):
        column = np.array(cells).astype(dtype)
    known = column[np.isfinite(column) & (column != 0)]
    # Adjacent numbers, and numbers of the size of the spread, are tested too.
    about = np.float64(2.0**exponent) * np.array([1e-20, 1e-9, 0.7, 1.0, 1e9, 1e20])
    known = np.concatenate([known, about.astype(dtype)])
    adjacent = np.nextafter(known, dtype(0))
    column = np.sort(np.concatenate([known, adjacent, -known, -adjacent]))[:, None]
    scaler = SafeScaler(bound=bound).fit(2.0**exponent * np.array([[-1], [0], [1.0]]))
    scaled = scaler.transform(column).astype(np.float64)
    assert (np.diff(scaled, axis=0) >= 0).all()
    np.testing.assert_array_equal(scaled, -scaled[::-1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("bound", [3.0, 7.0])  # 7 is no reciprocal of a float32
def test_few_rows_give_the_same_bits_as_many(dtype, order, bound):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60_000, 5)) * [1, 1e-3, 50, 1, 1] + [0, 1, 0, 0, 0]
    table[:, 2] = table[:, 2].round()  # the median, 0, is one of them
    table[:, 3] = 4.0
    table[rng.random(table.shape) < 0.1] = NAN
    table[rng.random(table.shape) < 0.01] = INF
    table = np.array(table, dtype=dtype, order=order)
    scaler = SafeScaler(bound=bound).fit(table)
    few = np.vstack([scaler.transform(part) for part in np.array_split(table, 60)])
    n_threads = torch.get_num_threads()
    try:
        for n in (1, 2):  # the blocks are larger with one thread
            torch.set_num_threads(n)
            np.testing.assert_array_equal(scaler.transform(table), few)
    finally:
        torch.set_num_threads(n_threads)
    wide = np.repeat(table, 2, axis=1)
    SafeScaler(bound=bound, copy=False).fit(table).transform(wide[:, ::2])
    np.testing.assert_array_equal(wide[:, ::2], few)
    np.testing.assert_array_equal(wide[:, 1::2], table)


FAR = [(-47, 0), (0, -29), (46, 0), (20, 27)]
FARTHER = [(-399, -80), (0, -99), (399, 80), (380, 99)]


@pytest.mark.parametrize(
    ("dtype", "of_scale", "of_bound"),
    [(np.float32, *pair) for pair in FAR] + [(np.float64, *pair) for pair in FARTHER],
)
def test_columns_at_the_limits_of_direct_scaling_are_exact_to_four_units(
    dtype, of_scale, of_bound
):
    scale, bound = 1.1 * 2.0**of_scale, 1.1 * 2.0**of_bound
    scaler = SafeScaler(bound=bound).fit(scale * np.array([[-1], [0], [1.0]]))
    largest = int(math.log2(float(np.finfo(dtype).max)))
    column = np.append(1.3 * 2.0 ** np.arange(1 - largest, largest, 3), INF)
    *scaled, reached = scaler.transform(column.astype(dtype)[:, None]).ravel().tolist()
    assert reached == pytest.approx(bound, rel=float(np.finfo(dtype).eps))
    for x, found in zip(column.astype(dtype).tolist(), scaled, strict=False):
        expected = exact(x, 0.0, scaler.scale_[0], reached)
        assert abs(found - expected) <= 4 * float(np.spacing(dtype(abs(expected))))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinities_reach_every_bound_exactly(dtype):
    for bound in [*np.arange(0.25, 50, 0.25).tolist(), 0.1, math.pi, math.e * 1e3]:
        scaler = SafeScaler(bound=bound).fit([[1.0], [2.0], [3.0], [4.0]])
        highest, lowest = scaler.transform(np.array([[INF], [-INF]], dtype)).ravel()
        assert highest == -lowest
        assert float(highest) <= bound < float(np.nextafter(highest, dtype(INF)))


def test_a_center_between_two_float32_numbers_is_exact():
    center = 0.001 + 1e-11
    scaler = SafeScaler().fit([[center - 1.0], [center], [center + 1.0]])
    nearest = np.float32(center)
    column = np.array([nearest, np.nextafter(nearest, np.float32(1))])
    scaled = scaler.transform(column[:, None]).ravel()
    expected = [exact(float(x), center, scaler.scale_[0], 3.0) for x in column]
    np.testing.assert_allclose(scaled, np.array(expected, float), rtol=3e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_statistics_of_large_tables_agree_with_robust_scaler(dtype, order):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(30_000, 4)) * [1, 1e-3, 50, 1]
    table[:, 3] = rng.integers(0, 6, len(table))
    table[rng.random(table.shape) < 0.1] = NAN
    table = np.array(table, dtype=dtype, order=order)
    scaler, reference = SafeScaler().fit(table), RobustScaler().fit(table)
    # RobustScaler interpolates in the dtype of the table.
    tolerance = {"rtol": 4 * float(np.finfo(dtype).eps), "atol": 1e-6}
    np.testing.assert_allclose(scaler.center_, reference.center_, **tolerance)
    np.testing.assert_allclose(scaler.scale_, reference.scale_, **tolerance)


def test_rare_ones_of_a_large_table_are_scaled_by_the_range():
    column = np.zeros((30_000, 1), np.float32)
    column[::3000] = 4.0
    assert SafeScaler().fit(column).scale_.tolist() == [4.0]


def test_memory_maps_are_scaled(tmp_path):
    table = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    np.save(tmp_path / "table.npy", table)
    mapped = np.load(tmp_path / "table.npy", mmap_mode="r")
    scaled = SafeScaler(copy=False).fit(mapped).transform(mapped)
    assert type(scaled) is np.ndarray
    np.testing.assert_array_equal(scaled, SafeScaler().fit_transform(table))


def test_a_single_row_is_scaled_as_within_a_table():
    table = np.random.default_rng(0).normal(size=(5000, 7))
    scaler = SafeScaler().fit(table)
    whole = scaler.transform(table)
    for i in (0, 17, 4999):
        np.testing.assert_array_equal(scaler.transform(table[[i]]), whole[[i]])


def test_without_copy_a_strided_table_is_overwritten():
    wide = np.arange(24.0).reshape(4, 6)
    before = wide.copy()
    table = wide[:, ::2]
    expected = SafeScaler().fit_transform(table)
    scaled = SafeScaler(copy=False).fit(table).transform(table)
    assert scaled is table
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(wide[:, 1::2], before[:, 1::2])


def test_a_copy_that_is_no_flag_is_refused():
    with pytest.raises(ValueError, match="copy") as caught:
        SafeScaler(copy="no").fit([[1.0], [2.0]])
    assert str(caught.value) == (
        "The 'copy' parameter of SafeScaler must be True or False, got 'no'."
    )
