"""Blocks of a table in any memory layout, and filling missing cells by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sknan.preprocessing._kernels.blocks import (
    KnownMask,
    PerColumn,
    blocks,
    fill,
    places_of,
)

NAN, INF = np.nan, np.inf

# Shapes around the sizes of blocks and long rows, with and without a remainder.
SHAPES = [(1, 1), (7, 3), (999, 5), (1000, 1), (140_000, 1), (5000, 37), (600, 501)]
SHAPES += [(3, 70_001)]


def in_layout(table, layout):
    """Return an equal table with another memory layout."""
    if layout in "CF":
        return np.array(table, order=layout)
    n_rows, n_columns = table.shape
    wide = np.zeros((2 * n_rows, 3 * n_columns), table.dtype)
    wide[::2, ::3] = table
    return wide[::2, ::3]


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_cell_is_in_one_block(shape, layout):
    table = np.arange(shape[0] * shape[1], dtype=np.float64).reshape(shape)
    table = in_layout(table, layout)
    out = in_layout(np.full(shape, NAN), layout)
    total = np.zeros(shape[1])
    for block in blocks(table, out):
        block.out.reshape(-1)[:] = block.cells.reshape(-1) + 1
        total[block.columns] += block.by_column(block.parts(block.cells).sum(axis=0))
    np.testing.assert_array_equal(out, table + 1)
    np.testing.assert_array_equal(total, table.sum(axis=0))


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_of_columns_are_repeated_along_joined_rows(shape, layout):
    table = np.broadcast_to(np.arange(shape[1], dtype=np.float64), shape)
    values = PerColumn(np.arange(shape[1], dtype=np.float64))
    everywhere = PerColumn(np.arange(shape[1], dtype=np.float64))
    n_true = np.zeros(shape[1], dtype=int)
    for block in blocks(in_layout(table, layout)):
        mask = block.cells == values.along(block)
        assert mask.all()
        n_true[block.columns] += block.count_true(mask)
        some = np.arange(block.cells.size).reshape(block.cells.shape) % 3 == 0
        assert (block.cells[some] == everywhere.where(block, some)).all()
    assert (n_true == shape[0]).all()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.sampled_from([7, 8, 800, 801]))
def test_the_places_of_a_mask_are_its_true_entries(seed, share, size):
    mask = np.random.default_rng(seed).random((3, size)) < share**2
    np.testing.assert_array_equal(places_of(mask), np.flatnonzero(mask))


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_missing_cells_are_filled(shape, dtype, layout):
    rng = np.random.default_rng(0)
    table = rng.normal(size=shape).astype(dtype)
    table[rng.random(shape) < 0.2] = NAN
    table[rng.random(shape) < 0.1] = -0.0
    table[rng.random(shape) < 0.1] = -INF
    table = in_layout(table, layout)
    values = (np.arange(shape[1]) % 1000).astype(dtype)
    out, in_place = np.full_like(table, 7.0), in_layout(table.copy(), layout)
    fill(table, values, KnownMask(), out)
    fill(in_place, values, KnownMask(), in_place)
    expected = np.where(np.isfinite(table), table, values)
    for found in (out, in_place):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_known_cells_depend_on_marker_and_limit(dtype):
    cells = np.array([NAN, INF, -INF, 70_000.0, -70_000.0, 3.0, -9.0], dtype=dtype)
    assert KnownMask()(cells).tolist() == [False] * 3 + [True] * 4
    assert KnownMask(limit=65504.0)(cells).tolist() == [False] * 5 + [True] * 2
    assert KnownMask(-9, 65504.0)(cells[3:]).tolist() == [False, False, True, False]
    assert KnownMask(-9)(cells[3:]).tolist() == [True, True, True, False]
