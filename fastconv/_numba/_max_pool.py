"""Maxima of windows on vectors: what the pool kernels and the max-pool fused behind a convolution share.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once. A ring holds the reduced rows that are still needed: image row ih in slot
ih & (slots - 1). Windows of 2x2 that tile the plane share nothing and are done at one go.

Lanes of a vector are windows that are neighbours in a row. A vector that meets columns outside the image masks them off.
Cells of one window are numbered with integers as wide as the elements: in float32 its rows must span fewer than 2**31 cells.
"""

import numpy as np

from fastconv._numba._jit import VL_FLOAT, helper, shared
from fastconv._numba._pool_simd import (
    add_cells, even, fold_max, insert, load_cells, load_inside, odd, pick, ramp, store_cells, store_first, takes,
)  # fmt: skip
from fastconv._numba._simd import broadcast, get, itemsize, lanes, load, put, store
from fastconv._problem import (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
    GEO_STRIDE_W,
)  # fmt: skip


@shared
def span(kernel, dilation):
    """Cells from the first to the last of a window."""
    return (kernel - 1) * dilation + 1


@helper
def first_inside(position, dilation):
    """The first of position, position + dilation, ... that is not negative."""
    return position if position >= 0 else position + -(position // dilation) * dilation


# ---------------------------------------------------------------------------------------------- rows for windows


@shared
def row_size(geometry):
    """Elements of a reduced row: OW in whole vectors."""
    return -(-geometry[GEO_OW] // VL_FLOAT) * VL_FLOAT


@shared
def ring_slots(geometry):
    """Rows from the first to the last of a window, rounded up to a power of two."""
    slots = 1
    while slots < span(geometry[GEO_KH], geometry[GEO_DIL_H]):
        slots *= 2
    return slots


@helper
def block_inside(column, VL, stride_w, width, IW):
    """Whether the taps of a vector of windows, the first at ``column``, read the image alone."""
    return column >= 0 and column + VL * stride_w + (width - 1 if stride_w != 2 else (width - 1) // 2 * 2) <= IW


@helper
def rows_inside(top, first, IH, KH, dil_h):
    """Rows of the window at ``top`` that lie in the image, where ``first`` is the first of them."""
    if first == top and top + span(KH, dil_h) <= IH:
        return KH
    return -(-(min(top + span(KH, dil_h), IH) - first) // dil_h)


@shared
def is_tiling(geometry):
    """Whether windows are 2x2 and tile the image without padding."""
    return (
        geometry[GEO_KH] == 2 and geometry[GEO_KW] == 2 and geometry[GEO_STRIDE_H] == 2 and geometry[GEO_STRIDE_W] == 2
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and 2 * geometry[GEO_OH] <= geometry[GEO_IH]
        and 2 * geometry[GEO_OW] <= geometry[GEO_IW]
    )  # fmt: skip


@helper
def tap(row, inside, column, offset, stride, extent, border, dtype):
    """Lane i: row[column + offset + i * stride], border outside of the image; inside: there is no lane outside."""
    if stride == 1:
        return load(row, column + offset, dtype) if inside else load_inside(row, column + offset, extent, border, dtype)
    if stride == 2:
        first, VL = column + offset // 2 * 2, lanes(dtype)
        low = load(row, first, dtype) if inside else load_inside(row, first, extent, border, dtype)
        high = load(row, first + VL, dtype) if inside else load_inside(row, first + VL, extent, border, dtype)
        return odd(low, high) if offset % 2 else even(low, high)
    v = broadcast(border)
    for lane in range(lanes(dtype)):
        at = column + offset + lane * stride
        if inside or (at >= 0 and at < extent):
            v = insert(v, lane, get(row, at, dtype))
    return v


@helper
def put_first(to, offset, v, count, dtype):
    """The first ``count`` lanes to memory."""
    if count >= lanes(dtype):
        store(to, offset, v)
    else:
        store_first(to, offset, v, count)


# Rows and rings are given by their addresses. inside, and KW, n_rows and stride_w at the calls that matter, are constants
# once inlined: then the loops over a window are unrolled and all of it stays in registers.


@helper
def max_along_block(
    x,  # IN   image row
    best,  # OUT  a vector of reduced windows
    columns,  # OUT  with_indices: theirs, integers as wide as real
    column, IW, with_indices, inside, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    lowest = dtype.type(-np.inf)
    value = tap(x, inside, column, 0, stride_w, IW, lowest, dtype)
    if not with_indices:
        for kw in range(1, KW):
            value = fold_max(value, tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype))
        store(best, 0, value)
        return
    where = ramp(0, 0, dtype)
    for kw in range(1, KW):
        other = tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype)
        won = takes(value, other)
        value, where = pick(won, other, value), pick(won, ramp(kw * dil_w, 0, dtype), where)
    store(best, 0, value)
    store(columns, 0, add_cells(where, ramp(column, stride_w, dtype)))


@helper
def max_along_row(
    x,  # IN   image row
    best,  # OUT  (size)
    columns,  # OUT  (size) with_indices
    pad_left, IW, OW,
    readable,  # elements from x on: in lanes past the last window anything may stand
    with_indices, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    VL, size = lanes(dtype), itemsize(dtype)
    column = -pad_left
    if (OW - 1) * stride_w - pad_left + span(KW, dil_w) > IW:
        readable = IW  # there are windows across the right border
    for ow in range(0, OW, VL):
        if block_inside(column, VL, stride_w, span(KW, dil_w), readable):
            max_along_block(
                x, best + ow * size, columns + ow * size, column, IW, with_indices, True, KW, stride_w, dil_w, dtype
            )
        else:
            max_along_block(
                x, best + ow * size, columns + ow * size, column, IW, with_indices, False, KW, stride_w, dil_w, dtype
            )
        column += VL * stride_w


# The rows of a window lie in the ring from ``slot`` on, dil_h slots apart.
@helper
def max_over_rows(
    values,  # IN   ring
    columns,  # IN   with_indices: ring
    output,  # OUT  (OW), of which only ``room`` elements may be written
    indices,  # OUT  with_indices: (OW) the same
    room, first_cell, IW, with_indices, slot, slots, n_rows, dil_h, OW, size, dtype,
):  # fmt: skip
    for ow in range(0, OW, lanes(dtype)):
        at = slot * size + ow
        value = load(values, at, dtype)
        if with_indices:
            where = load_cells(columns, at, dtype)
            for row in range(1, n_rows):
                at = ((slot + row * dil_h) & (slots - 1)) * size + ow
                other = load(values, at, dtype)
                won = takes(value, other)
                cell = add_cells(load_cells(columns, at, dtype), ramp(row * dil_h * IW, 0, dtype))
                value, where = pick(won, other, value), pick(won, cell, where)
            store_cells(indices, ow, where, first_cell, room - ow)
        else:
            for row in range(1, n_rows):
                at = ((slot + row * dil_h) & (slots - 1)) * size + ow
                value = fold_max(value, load(values, at, dtype))
        put_first(output, ow, value, room - ow, dtype)


@helper
def correct_columns(columns, column, stride_w, dil_w, dtype):
    """Windows from ``column`` on, left of the image: where nothing beats the border's -inf, the first cell inside."""
    ow = 0
    while column < 0:
        if itemsize(dtype) == 4:
            if get(columns, ow, np.int32) < 0:
                put(columns, ow, np.int32(first_inside(column, dil_w)))
        elif get(columns, ow, np.int64) < 0:
            put(columns, ow, np.int64(first_inside(column, dil_w)))
        ow += 1
        column += stride_w


@helper
def max_rows(
    x,  # IN   a plane
    output,  # OUT  its output plane
    indices,  # OUT  with_indices
    ring,  # TMP  max_ring_size
    oh_first, oh_last, with_indices, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane."""
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, KW, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots, size, element = ring_slots(geometry), row_size(geometry), itemsize(dtype)
    values, columns = ring, ring + slots * size * element
    reduced = 0
    end = min((oh_last - 1) * stride_h - pad_top + span(KH, dil_h), IH)  # of the image rows that are there

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row, slot = x + reduced * IW * element, (reduced & (slots - 1)) * size * element
            best, column = values + slot, columns + slot
            readable = (end - reduced) * IW
            if KW == 3 and dil_w == 1 and stride_w == 2:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, 3, 2, 1, dtype)
            elif KW == 3 and dil_w == 1 and stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, 3, 1, 1, dtype)
            elif stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, KW, 1, dil_w, dtype)
            else:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, KW, stride_w, dil_w, dtype)
            if with_indices:
                correct_columns(column, -pad_left, stride_w, dil_w, dtype)
            reduced += 1

        y, where = output + oh * OW * element, indices + oh * OW * 8
        first = first_inside(top, dil_h)
        if first >= IH:  # dilation steps over the whole image
            for ow in range(OW):
                put(y, ow, dtype.type(-np.inf))
                if with_indices:
                    put(where, ow, first * IW + first_inside(ow * stride_w - pad_left, dil_w))
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        room = (oh_last - oh) * OW  # what is written past the end of the row, the next rows overwrite
        if n_rows == 3 and dil_h == 1:
            max_over_rows(
                values, columns, y, where, room, first * IW, IW, with_indices, slot, slots, 3, 1, OW, size, dtype
            )
        else:
            max_over_rows(
                values, columns, y, where, room, first * IW, IW, with_indices,
                slot, slots, n_rows, dil_h, OW, size, dtype,
            )  # fmt: skip


@helper
def max_tiles_block(
    x,  # IN   upper of two image rows
    output,  # OUT  a vector of windows, of which only ``room`` elements may be written
    indices,  # OUT  with_indices: the same
    room, first_cell, column, IW, with_indices, inside, dtype,
):  # fmt: skip
    lowest, below = dtype.type(-np.inf), x + IW * itemsize(dtype)
    value = tap(x, inside, column, 0, 2, IW, lowest, dtype)
    right = tap(x, inside, column, 1, 2, IW, lowest, dtype)
    lower = tap(below, inside, column, 0, 2, IW, lowest, dtype)
    last = tap(below, inside, column, 1, 2, IW, lowest, dtype)
    if with_indices:
        won = takes(value, right)
        value, where = pick(won, right, value), pick(won, ramp(1, 0, dtype), ramp(0, 0, dtype))
        won = takes(value, lower)
        value, where = pick(won, lower, value), pick(won, ramp(IW, 0, dtype), where)
        won = takes(value, last)
        value, where = pick(won, last, value), pick(won, ramp(IW + 1, 0, dtype), where)
        store_cells(indices, 0, add_cells(where, ramp(column, 2, dtype)), first_cell, room)
    else:
        value = fold_max(fold_max(value, right), fold_max(lower, last))
    put_first(output, 0, value, room, dtype)


@helper
def max_tiles(
    x,  # IN   a plane
    output,  # OUT  its output plane
    indices,  # OUT  with_indices
    oh_first, oh_last, with_indices, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    IW, OW, VL, size = geometry[GEO_IW], geometry[GEO_OW], lanes(dtype), itemsize(dtype)
    for oh in range(oh_first, oh_last):
        row, cell = x + 2 * oh * IW * size, 2 * oh * IW
        for ow in range(0, OW, VL):
            at = oh * OW + ow
            y, where, room = output + at * size, indices + at * 8, oh_last * OW - at
            if block_inside(2 * ow, VL, 2, 2, (2 * (oh_last - oh) - 1) * IW):  # from the lower row on
                max_tiles_block(row, y, where, room, cell, 2 * ow, IW, with_indices, True, dtype)
            else:
                max_tiles_block(row, y, where, room, cell, 2 * ow, IW, with_indices, False, dtype)


@shared
def max_ring_size(geometry):
    """Elements for the rings of values and of columns."""
    return 0 if is_tiling(geometry) else 2 * ring_slots(geometry) * row_size(geometry)
