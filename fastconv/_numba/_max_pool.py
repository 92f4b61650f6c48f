"""Maxima of windows on vectors: what the pool kernels and the max-pool fused behind a convolution share.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once: a ring holds the reduced rows that are still needed, image row ih in slot
ih & (slots - 1). `max_rows` does that for any windows. Those that networks have, where no cell is NaN, are done in one sweep:
`max_common` finds their indices too, `max_strided` and `max_sliding` values alone, which no order binds.

Lanes of a vector are windows that are neighbours in a row. A vector that meets columns outside the image masks them off.
Cells of one window are numbered with integers as wide as the elements: in float32 its rows must span fewer than 2**31 cells.
"""

import numpy as np

from fastconv._numba._common import CACHE_LINE
from fastconv._numba._jit import VL_FLOAT, helper, shared
from fastconv._numba._pool_simd import (
    add_cells, after, before, even, fold_max, has_flags, insert, lanes_outside, larger, load_cells, load_inside, next_even,
    no_flags, note_nan, odd, outside, pick, ramp, store_cells, store_first, store_halves, store_tangled_cells, subtract_cells,
    takes, untangle,
)  # fmt: skip
from fastconv._numba._simd import (
    broadcast, get, inlined, itemsize, lanes, load, local, outlined, prefetch, put, rolled, store, vmax,
)  # fmt: skip
from fastconv._numba._straight import straight
from fastconv._problem import (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
    GEO_STRIDE_W,
)  # fmt: skip

LONG_ROW = 128  # cells: of longer rows, which run through other levels of cache, the processor itself asks for too few


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
    """Whether windows are 2x2 and tile the image without padding; a last column and last rows may be left over."""
    return (
        geometry[GEO_KH] == 2 and geometry[GEO_KW] == 2 and geometry[GEO_STRIDE_H] == 2 and geometry[GEO_STRIDE_W] == 2
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and 2 * geometry[GEO_OH] <= geometry[GEO_IH]
        and 2 * geometry[GEO_OW] <= geometry[GEO_IW] <= 2 * geometry[GEO_OW] + 1
    )  # fmt: skip


@straight
def cells_inside(row, inside, at, extent, border, dtype):
    return load(row, at, dtype) if inside else load_inside(row, at, extent, border, dtype)


@straight
def tap(row, inside, column, offset, stride, extent, border, dtype):
    """Lane i: row[column + offset + i * stride], border outside of the image; inside: there is no lane outside.

    With stride 2 not yet `untangle`. Offset and stride are literals, stride is 1 or 2.
    """
    if stride == 1:
        return cells_inside(row, inside, column + offset, extent, border, dtype)
    first = column + offset // 2 * 2
    low = cells_inside(row, inside, first, extent, border, dtype)
    high = cells_inside(row, inside, first + lanes(dtype), extent, border, dtype)
    return odd(low, high) if offset % 2 else even(low, high)


@helper
def any_tap(row, inside, column, offset, stride, extent, border, dtype):
    """`tap` of any offset and stride."""
    if stride == 1:
        return tap(row, inside, column + offset, 0, 1, extent, border, dtype)
    if stride == 2:
        if offset % 2:
            return tap(row, inside, column + offset // 2 * 2, 1, 2, extent, border, dtype)
        return tap(row, inside, column + offset // 2 * 2, 0, 2, extent, border, dtype)
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


# Rows and rings are given by their addresses.


@shared
def is_seamless(geometry):
    """Whether windows do not overlap and rows of windows go on into the next plane as if it were the same."""
    return (
        geometry[GEO_STRIDE_H] == geometry[GEO_KH] and geometry[GEO_DIL_H] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_OH] * geometry[GEO_KH] == geometry[GEO_IH]
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the common windows

# In this part windows are 2x2 at step 2, or 3x3 at step 2 or 1, and K, stride and inside are constants. A row outside of the
# image is replaced by the nearest inside: that is one of the same window, so the maximum stays, and its first cell.
# vmax and fold_larger keep the first of two values if it is NaN and lose the second: all seconds are looked at, in pairs.


@shared
def is_common(geometry):
    """Whether this part has the windows, each of which must meet the image."""
    K, stride = geometry[GEO_KH], geometry[GEO_STRIDE_H]
    return (
        geometry[GEO_KW] == K and geometry[GEO_STRIDE_W] == stride and geometry[GEO_DIL_H] == geometry[GEO_DIL_W] == 1
        and ((K == 2 and stride == 2) or (K == 3 and (stride == 1 or stride == 2)))
        and geometry[GEO_PAD_TOP] < K and (geometry[GEO_OH] - 1) * stride - geometry[GEO_PAD_TOP] < geometry[GEO_IH]
        and geometry[GEO_PAD_LEFT] < K and (geometry[GEO_OW] - 1) * stride - geometry[GEO_PAD_LEFT] < geometry[GEO_IW]
    )  # fmt: skip


@helper
def first_row(oh, stride, geometry):
    """The first image row of the windows of output row oh."""
    return max(oh * stride - geometry[GEO_PAD_TOP], 0)


@helper
def rows_alike(oh, oh_last, K, stride, geometry):
    """The end of the output rows that lie in the image as oh does: that one, or as many as lie inside; at most oh_last.

    Besides: from the first row of a window to its second and to its last, in elements.
    """
    top, first, IH = oh * stride - geometry[GEO_PAD_TOP], first_row(oh, stride, geometry), geometry[GEO_IH]
    below1 = (min(max(top + 1, 0), IH - 1) - first) * geometry[GEO_IW]
    below2 = (min(max(top + K - 1, 0), IH - 1) - first) * geometry[GEO_IW]
    alike = oh + 1 if top < 0 else max(oh + 1, min(oh_last, (IH - K - top) // stride + oh + 1))
    return alike, below1, below2


@straight
def max_of_columns(flags, low, high, K):
    """Windows of the columns low, high, not yet untangled; of 3x3 ones the last lane of either is none. Besides: flags."""
    # A window is an even column, the odd one and the next even one. A NaN in an even column stays.
    value, between = even(low, high), odd(low, high)
    if K == 3:
        value = vmax(next_even(value), vmax(between, value))
    else:
        value = vmax(between, value)
    return value, note_nan(flags, between, value)


# Loops stay rolled: rows and vectors are few, and whether one is left over is guessed wrongly as often as the loop ends.
# First over the rows, all columns of two vectors, then along them. A NaN in the first row stays and is seen in a maximum; one
# in the third row is seen in the next row of windows, of which that is the first, or by `note_row`.
@straight
def max_strided_block(
    flags,  # IN   of lanes that lost a NaN, or have one
    hidden_low, hidden_high,  # IN   lanes that lie outside of the image although they are read
    x,  # IN   an image row
    above, below1, below2,  # IN   from there to the rows of the windows, in elements
    output,  # OUT  a vector of windows, of which only ``room`` elements may be written
    room, column, IW, inside, hides_low, hides_high, K, dtype,
):  # fmt: skip
    VL, element, lowest = lanes(dtype), itemsize(dtype), dtype.type(-np.inf)
    if inside:  # as in max_common
        prefetch(x + (column + 8 * IW) * element)
        prefetch(x + (column + 9 * IW) * element)
    low = tap(x + above * element, inside, column, 0, 1, IW, lowest, dtype)
    high = tap(x + above * element, inside, column + VL, 0, 1, IW, lowest, dtype)
    low1 = tap(x + below1 * element, inside, column, 0, 1, IW, lowest, dtype)
    high1 = tap(x + below1 * element, inside, column + VL, 0, 1, IW, lowest, dtype)
    flags = note_nan(flags, low1, high1)
    if K == 3:
        low2 = tap(x + below2 * element, inside, column, 0, 1, IW, lowest, dtype)
        high2 = tap(x + below2 * element, inside, column + VL, 0, 1, IW, lowest, dtype)
        low1, high1 = vmax(low1, low2), vmax(high1, high2)
    low, high = vmax(low1, low), vmax(high1, high)
    if hides_low:
        low = pick(hidden_low, broadcast(lowest), low)
    if hides_high:
        high = pick(hidden_high, broadcast(lowest), high)
    value, flags = max_of_columns(flags, low, high, K)
    put_first(output, 0, untangle(value), room, dtype)
    return flags


@helper
def note_row(flags, row, blocks, column, IW, inside, dtype):
    """The last row of windows of which none follow."""
    inlined()
    VL, lowest = lanes(dtype), dtype.type(-np.inf)
    while blocks > 0:
        rolled()
        low = tap(row, inside, column, 0, 1, IW, lowest, dtype)
        flags = note_nan(flags, low, tap(row, inside, column + VL, 0, 1, IW, lowest, dtype))
        column += 2 * VL - 2
        blocks -= 1
    return flags


@helper
def max_strided_pairs(
    flags,
    hidden,
    x,  # IN   where the windows of a plane begin, all columns of a row in one vector
    y,  # OUT  (rows * OW) of each plane, and what the last vector writes behind them
    planes, rows, cells, OW, IW, below1, below2, hides, K, dtype,
):  # fmt: skip
    """Two output rows in one vector; behind an odd number of rows comes one that is overwritten later."""
    inlined()
    element, lowest = itemsize(dtype), broadcast(dtype.type(-np.inf))
    down, right = 2 * IW * element, OW * element
    skip = rows % 2 * right
    while planes > 0:
        low2 = high2 = load(x, 0, dtype)
        x1 = x + below1 * element
        x2 = x + below2 * element if K == 3 else x
        row = rows
        while row > 0:
            rolled()
            low1, high1 = load(x1, 0, dtype), load(x1 + down, 0, dtype)
            flags = note_nan(flags, low1, high1)
            if K == 3:
                low2 = load(x2, 0, dtype)
                low = vmax(low2, vmax(low1, high2))
                high2 = load(x2 + down, 0, dtype)
                high = vmax(high2, vmax(high1, low2))
            else:
                low, high = vmax(low1, load(x2, 0, dtype)), vmax(high1, load(x2 + down, 0, dtype))
            if hides:
                low, high = pick(hidden, lowest, low), pick(hidden, lowest, high)
            value, flags = max_of_columns(flags, low, high, K)
            store_halves(y, untangle(value), right)
            x1 += 2 * down
            x2 += 2 * down
            y += 2 * right
            row -= 2
        if K == 3:
            flags = note_nan(flags, low2, high2)
        y -= skip
        x += cells * element
        planes -= 1
    return flags


@helper
def max_strided_column(
    flags,
    hidden_low, hidden_high,
    x,  # IN   where the windows of a plane begin
    y,  # OUT  (rows * OW) of each plane, a vector in each row, and what it writes behind that
    planes, rows, cells, OW, IW, below1, below2, hides, K, dtype,
):  # fmt: skip
    """Rows of one vector: the last row of 3x3 windows is the first of the next ones."""
    inlined()
    VL, element, lowest = lanes(dtype), itemsize(dtype), broadcast(dtype.type(-np.inf))
    down, right = 2 * IW * element, OW * element
    while planes > 0:
        low2, high2 = load(x, 0, dtype), load(x, VL, dtype)
        x1 = x + below1 * element
        x2 = x + below2 * element if K == 3 else x
        row = rows
        while row > 0:
            rolled()
            low1, high1 = load(x1, 0, dtype), load(x1, VL, dtype)
            flags = note_nan(flags, low1, high1)
            if K == 3:
                low, high = vmax(low1, low2), vmax(high1, high2)
                low2, high2 = load(x2, 0, dtype), load(x2, VL, dtype)
                low, high = vmax(low2, low), vmax(high2, high)
            else:
                low, high = vmax(low1, load(x2, 0, dtype)), vmax(high1, load(x2, VL, dtype))
            if hides:
                low, high = pick(hidden_low, lowest, low), pick(hidden_high, lowest, high)
            value, flags = max_of_columns(flags, low, high, K)
            store(y, 0, untangle(value))
            x1 += down
            x2 += down
            y += right
            row -= 1
        if K == 3:
            flags = note_nan(flags, low2, high2)
        x += cells * element
        planes -= 1
    return flags


@helper
def max_strided_rows(
    flags,
    hidden_first, last_low, last_high,  # IN   lanes outside of the image, of the first vector and of the last two
    x,  # IN   where the windows of a plane begin
    y,  # OUT  (rows * OW) of each plane, and what the last vector writes behind that
    planes, rows, cells, blocks, OW, IW, below1, below2, hides, K, dtype,
):  # fmt: skip
    inlined()
    VL, element = lanes(dtype), itemsize(dtype)
    windows = VL if K == 2 else VL - 1
    between = blocks - 2 if hides else blocks
    while planes > 0:
        above, first, row = 0, x, rows
        while row > 0:
            at, to = first, y
            if hides:
                flags = max_strided_block(
                    flags, hidden_first, hidden_first, at, above, below1, below2, to, VL, 0, IW, True, True, False, K, dtype
                )  # fmt: skip
                at += 2 * windows * element
                to += windows * element
            block = between
            while block > 0:
                rolled()
                flags = max_strided_block(
                    flags, hidden_first, hidden_first, at, above, below1, below2, to, VL, 0, IW, True, False, False, K, dtype
                )  # fmt: skip
                at += 2 * windows * element
                to += windows * element
                block -= 1
            if hides:
                flags = max_strided_block(
                    flags, last_low, last_high, at, above, below1, below2, to, VL, 0, IW, True, True, True, K, dtype
                )
            above = below1 - IW  # below padding the second row came first
            first += 2 * IW * element
            y += OW * element
            row -= 1
        if K == 3:
            flags = note_row(flags, first + (below2 - 2 * IW) * element, blocks, 0, IW, True, dtype)
        x += cells * element
        planes -= 1
    return flags


@helper
def max_strided_part(
    flags,
    x,  # IN   where the windows begin
    y,  # OUT  as the functions above say
    planes, rows, blocks, below1, below2, pairs, hides, K, geometry, dtype,
):  # fmt: skip
    """Rows that lie in the image alike, of planes that are alike."""
    inlined()
    IW, OW, pad_left, VL = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT], lanes(dtype)
    cells, column = geometry[GEO_IH] * IW, 2 * (VL if K == 2 else VL - 1) * (blocks - 1) - pad_left
    first, last_low = lanes_outside(-pad_left, IW, dtype), lanes_outside(column, IW, dtype)
    last_high = lanes_outside(column + VL, IW, dtype)
    if blocks > 1:
        return max_strided_rows(
            flags, first, last_low, last_high, x, y, planes, rows, cells, blocks, OW, IW, below1, below2, hides, K, dtype
        )  # fmt: skip
    if pairs:
        return max_strided_pairs(flags, first, x, y, planes, rows, cells, OW, IW, below1, below2, hides, K, dtype)
    return max_strided_column(
        flags, last_low, last_high, x, y, planes, rows, cells, OW, IW, below1, below2, hides, K, dtype
    )


# Functions of their own, so that registers are all theirs.
@helper
def max_strided_inner(flags, x, y, planes, rows, blocks, below1, below2, pairs, geometry, dtype):
    outlined()
    return max_strided_part(flags, x, y, planes, rows, blocks, below1, below2, pairs, False, 3, geometry, dtype)


@helper
def max_strided_outer(flags, x, y, planes, rows, blocks, below1, below2, pairs, geometry, dtype):
    outlined()
    return max_strided_part(flags, x, y, planes, rows, blocks, below1, below2, pairs, True, 3, geometry, dtype)


@helper
def max_tiles_inner(flags, x, y, planes, rows, blocks, below1, below2, pairs, geometry, dtype):
    outlined()
    return max_strided_part(flags, x, y, planes, rows, blocks, below1, below2, pairs, False, 2, geometry, dtype)


@helper
def max_tiles_outer(flags, x, y, planes, rows, blocks, below1, below2, pairs, geometry, dtype):
    outlined()
    return max_strided_part(flags, x, y, planes, rows, blocks, below1, below2, pairs, True, 2, geometry, dtype)


@helper
def max_strided_planes(
    flags,
    x,  # IN   a plane
    y,  # OUT  from row oh of its output plane on
    oh, oh_last, planes, blocks, pairs, hides, K, geometry, dtype,
):  # fmt: skip
    # How rows lie in the image is found once: of planes with few rows that would be most of the work
    inlined()
    IW, OW, cells, element = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_IH] * geometry[GEO_IW], itemsize(dtype)
    parts, together = 0, 1
    part = local(12, np.int64)  # of up to three: from the plane to the first row, rows, from that row to the others
    while oh < oh_last:
        alike, below1, below2 = rows_alike(oh, oh_last, K, 2, geometry)
        part[4 * parts] = first_row(oh, 2, geometry) * IW - geometry[GEO_PAD_LEFT]
        part[4 * parts + 1], part[4 * parts + 2], part[4 * parts + 3] = alike - oh, below1, below2
        oh = alike
        one_above = parts == 1 and below1 == IW and below2 == (K - 1) * IW and part[2] == 0
        if one_above and (part[3] == IW if K == 3 else blocks > 1):
            part[1] += part[5]  # one row of padding, which only the first one meets
        else:
            parts += 1
    if parts == 1:
        together = planes
    while planes > 0:
        for n in range(parts):
            first, rows = x + part[4 * n] * element, part[4 * n + 1]
            below1, below2 = part[4 * n + 2], part[4 * n + 3]
            if K == 3:
                if hides:
                    flags = max_strided_outer(
                        flags, first, y, together, rows, blocks, below1, below2, pairs, geometry, dtype
                    )
                else:
                    flags = max_strided_inner(
                        flags, first, y, together, rows, blocks, below1, below2, pairs, geometry, dtype
                    )
            elif hides:
                flags = max_tiles_outer(flags, first, y, together, rows, blocks, below1, below2, pairs, geometry, dtype)
            else:
                flags = max_tiles_inner(flags, first, y, together, rows, blocks, below1, below2, pairs, geometry, dtype)
            y += rows * OW * element
        x += cells * element
        planes -= together
    return flags


@helper
def whole_vectors(space, first, step):
    """How many vectors there is space for, if one takes ``first`` elements and each other ``step``."""
    return 0 if space < first else (space - first) // step + 1


@helper
def max_strided_row(
    flags,
    x,  # IN   first row of the windows
    y,  # OUT  (OW), of which only ``room`` elements may be written
    room, blocks, pad_left, IW, below1, below2, K, dtype,
):  # fmt: skip
    """A row that has no space around it."""
    inlined()
    VL, element = lanes(dtype), itemsize(dtype)
    windows = VL if K == 2 else VL - 1
    whole = min(whole_vectors(IW, 2 * VL - pad_left, 2 * windows), whole_vectors(room, VL, windows))
    none = lanes_outside(0, VL, dtype)
    for block in range(blocks):
        to, column = y + windows * block * element, 2 * windows * block - pad_left
        if block < whole and (block > 0 or pad_left <= 0):
            flags = max_strided_block(
                flags, none, none, x, 0, below1, below2, to, VL, column, IW, True, False, False, K, dtype
            )
        else:
            flags = max_strided_block(
                flags, none, none, x, 0, below1, below2, to, room - windows * block, column, IW, False, False, False, K, dtype
            )  # fmt: skip
    if K == 3:
        flags = note_row(flags, x + below2 * element, blocks, -pad_left, IW, False, dtype)
    return flags


@helper
def max_strided(
    x,  # IN   a plane
    output,  # OUT  its output plane
    oh_first, oh_last, planes, readable, room, K, geometry, dtype,
):  # fmt: skip
    """Rows [oh_first, oh_last) of ``planes`` output planes, at step 2; False, and any values, if there is a NaN."""
    # Rows are counted through all planes. Windows across the left or right border read the end of the row before and the
    # row behind: [from_row, to_row) have those, and space for whole vectors.
    inlined()
    IH, IW, OW, pad_left = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT]
    VL, element = lanes(dtype), itemsize(dtype)
    windows = VL if K == 2 else VL - 1
    blocks = (OW + windows - 1) // windows  # vectors of a row
    pairs = 2 * OW + K - 2 <= VL  # a vector takes all columns of a row
    # Elements written for a row, and those read from its last image row on; of a pair from the first of the two
    width = OW + VL // 2 if pairs else (blocks - 1) * windows + VL
    reach = (2 * IW + VL if pairs else 2 * width) - pad_left
    hides = pad_left > 0 or (OW - 1) * 2 - pad_left + K > IW
    y, flags, oh, count, row = output + oh_first * OW * element, no_flags(dtype), oh_first, oh_last - oh_first, 0
    rows = to_row = planes * count
    from_row = min(max(pad_left, 0), 1)
    while to_row > from_row and (
        room - (to_row - 1) * OW < width
        or readable - (to_row - 1) // count * IH * IW
        - min((oh_first + (to_row - 1) % count) * 2 - geometry[GEO_PAD_TOP] + K - 1, IH - 1) * IW < reach
    ):  # fmt: skip
        to_row -= 1
    while row < rows:
        whole, last = 1, oh + 1
        if from_row <= row < to_row:
            if oh == oh_first:
                whole = max((to_row - row) // count, 1)
            last = min(oh_last, oh + to_row - row)
            flags = max_strided_planes(flags, x, y, oh, last, whole, blocks, pairs, hides, K, geometry, dtype)
        else:
            _, below1, below2 = rows_alike(oh, last, K, 2, geometry)
            first = x + first_row(oh, 2, geometry) * IW * element
            flags = max_strided_row(flags, first, y, room - row * OW, blocks, pad_left, IW, below1, below2, K, dtype)
        row += whole * (last - oh)
        y += whole * (last - oh) * OW * element
        oh = last
        if oh == oh_last:
            oh = oh_first
            x += whole * IH * IW * element
    return not has_flags(flags)


# Where a vector of windows lies in its rows: not at their ends, with a padding cell at the left or the right end, at an end
# without padding
INNER, LEFT, RIGHT, SIDE = range(4)


@straight
def max_sliding_inside(flags, row, place, dtype):
    """No cell outside is read: its neighbour, of the same window, stands for it. Middle cells are not looked at."""
    middle = load(row, 1, dtype)
    left = before(middle) if place == LEFT else load(row, 0, dtype)
    right = after(middle) if place == RIGHT else load(row, 2, dtype)
    if place == SIDE:
        flags = note_nan(flags, left, right)
    return vmax(right, vmax(left, middle)), flags


@helper
def max_sliding_whole(
    flags,  # IN   of lanes that lost a NaN
    x,  # IN   a plane
    y,  # OUT  a vector of windows in each row
    planes, rows, top, column, place, geometry, dtype,
):  # fmt: skip
    """Two output rows at a time: each needs the two middle ones of four rows. Middle cells that are NaN stay."""
    inlined()
    IW, OW, below, element = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_IH] - 1, itemsize(dtype)
    while planes > 0:
        ih = top
        at = x + (min(max(ih, 0), below) * IW + column) * element
        first, flags = max_sliding_inside(flags, at, place, dtype)
        at += IW * element if 0 <= ih < below else 0
        ih += 1
        second, flags = max_sliding_inside(flags, at, place, dtype)
        flags = note_nan(flags, first, second)
        row = rows
        while row > 0:
            rolled()
            at += IW * element if 0 <= ih < below else 0
            ih += 1
            third, flags = max_sliding_inside(flags, at, place, dtype)
            flags = note_nan(flags, second, third)
            both = vmax(second, third)
            store(y, 0, vmax(first, both))
            y += OW * element
            if row == 1:
                break
            at += IW * element if 0 <= ih < below else 0
            ih += 1
            first = third
            second, flags = max_sliding_inside(flags, at, place, dtype)
            store(y, 0, vmax(second, both))
            y += OW * element
            row -= 2
        flags = note_nan(flags, first, second)
        x += (below + 1) * IW * element
        planes -= 1
    return flags


@straight
def max_sliding_row(flags, row, column, IW, dtype):
    lowest = dtype.type(-np.inf)
    left = tap(row, False, column, 0, 1, IW, lowest, dtype)
    middle = tap(row, False, column, 1, 1, IW, lowest, dtype)
    right = tap(row, False, column, 2, 1, IW, lowest, dtype)
    reduced = vmax(right, vmax(middle, left))
    return reduced, note_nan(note_nan(flags, middle, right), reduced, reduced)  # the left one stays


@helper
def max_sliding_column(
    flags,  # IN   of lanes that lost a NaN
    x,  # IN   a plane
    y,  # OUT  a vector of windows in each row, exact or what it writes behind them
    planes, rows, top, column, room, exact, geometry, dtype,
):  # fmt: skip
    """Rows of planes that are alike, down one vector of columns."""
    inlined()
    IW, OW, below, element = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_IH] - 1, itemsize(dtype)
    while planes > 0:
        ih = top
        at = x + min(max(ih, 0), below) * IW * element
        second, flags = max_sliding_row(flags, at, column, IW, dtype)
        at += IW * element if 0 <= ih < below else 0
        ih += 1
        third, flags = max_sliding_row(flags, at, column, IW, dtype)
        row = rows
        while row > 0:
            at += IW * element if 0 <= ih < below else 0
            ih += 1
            first, second = second, third
            third, flags = max_sliding_row(flags, at, column, IW, dtype)
            value = vmax(third, vmax(second, first))
            if exact:
                put_first(y, 0, value, room, dtype)
                room -= OW
            else:
                store(y, 0, value)
            y += OW * element
            row -= 1
        flags = note_nan(flags, second, third)
        x += (below + 1) * IW * element
        planes -= 1
    return flags


# Functions of their own, so that registers are all theirs.
@helper
def max_sliding_inner(flags, x, y, planes, rows, top, column, geometry, dtype):
    outlined()
    return max_sliding_whole(flags, x, y, planes, rows, top, column, INNER, geometry, dtype)


@helper
def max_sliding_left(flags, x, y, planes, rows, top, column, geometry, dtype):
    outlined()
    return max_sliding_whole(flags, x, y, planes, rows, top, column, LEFT, geometry, dtype)


@helper
def max_sliding_right(flags, x, y, planes, rows, top, column, geometry, dtype):
    outlined()
    return max_sliding_whole(flags, x, y, planes, rows, top, column, RIGHT, geometry, dtype)


@helper
def max_sliding_side(flags, x, y, planes, rows, top, column, geometry, dtype):
    outlined()
    return max_sliding_whole(flags, x, y, planes, rows, top, column, SIDE, geometry, dtype)


@helper
def max_sliding_masked(flags, x, y, planes, rows, top, column, room, geometry, dtype):
    outlined()
    return max_sliding_column(flags, x, y, planes, rows, top, column, room, False, geometry, dtype)


@helper
def max_sliding_exact(flags, x, y, planes, rows, top, column, room, geometry, dtype):
    outlined()
    return max_sliding_column(flags, x, y, planes, rows, top, column, room, True, geometry, dtype)


@helper
def max_sliding(
    x,  # IN   a plane
    output,  # OUT  its output plane
    oh_first, oh_last, planes, room, geometry, dtype,
):  # fmt: skip
    """Rows [oh_first, oh_last) of ``planes`` output planes, 3x3 windows at step 1; False, and any values, if a NaN was lost."""
    # Down each vector of columns. The last one ends with the rows where these take several, and padding is one cell at most.
    # Else the last comes first: what it writes past the end of rows is overwritten by the others, and the first to_row rows,
    # counted through all planes, have room for that.
    inlined()
    IH, IW, OW, left = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT]
    VL, element, flags = lanes(dtype), itemsize(dtype), no_flags(dtype)
    count, blocks, row, oh, right = oh_last - oh_first, (OW + VL - 1) // VL, 0, oh_first, OW - left + 2 - IW
    rows = planes * count
    y = output + oh_first * OW * element
    if blocks > 1 and left <= 1 and right <= 1:
        top = oh - geometry[GEO_PAD_TOP]
        for block in range(blocks):
            ow = min(block * VL, OW - VL)
            to, column = y + ow * element, ow - left
            if block == 0 and left == 1:
                flags = max_sliding_left(flags, x, to, planes, count, top, column, geometry, dtype)
            elif block == blocks - 1 and right == 1:
                flags = max_sliding_right(flags, x, to, planes, count, top, column, geometry, dtype)
            elif block == 0 or block == blocks - 1:
                flags = max_sliding_side(flags, x, to, planes, count, top, column, geometry, dtype)
            else:
                flags = max_sliding_inner(flags, x, to, planes, count, top, column, geometry, dtype)
        return not has_flags(flags)
    to_row = min(whole_vectors(room, blocks * VL, OW), rows)
    while row < rows:
        last = min(oh_last, oh + (to_row if row < to_row else rows) - row)
        together, n, top = 1, last - oh, oh - geometry[GEO_PAD_TOP]
        if oh == oh_first and last == oh_last and row < to_row:
            together = (to_row - row) // count
        for block in range(blocks - 1, -1, -1):
            to, column, space = y + block * VL * element, block * VL - left, room - row * OW - block * VL
            if row < to_row:
                flags = max_sliding_masked(flags, x, to, together, n, top, column, space, geometry, dtype)
            else:
                flags = max_sliding_exact(flags, x, to, together, n, top, column, space, geometry, dtype)
        row += together * n
        y += together * n * OW * element
        oh = last
        if oh == oh_last:
            oh = oh_first
            x += together * IH * IW * element
    return not has_flags(flags)


@straight
def cells_of(first, stride, dtype):
    """Cells: first + stride * i, in the order of the lanes of `tap`."""
    at = even(ramp(0, 1, dtype), ramp(lanes(dtype), 1, dtype)) if stride == 2 else ramp(0, 1, dtype)
    return add_cells(at, ramp(first, 0, dtype))


@straight
def taps_outside(column, stride, extent, dtype):
    """The lanes whose tap, of the first window ``column``, is not in [0, extent)."""
    return outside(cells_of(column, stride, dtype), extent)


@straight
def fold_larger(best, where, value, cell):
    """Where value is larger: it and its cell; for values that are no NaN."""
    return vmax(value, best), pick(larger(best, value), cell, where)


@straight
def reduce_row(
    flags,  # IN   of lanes that lost a NaN
    x,  # IN   image row
    column, IW, masked, across, K, stride, dtype,
):  # fmt: skip
    """Maxima along the row, as tap orders them; cells: 0 or less, minus the tap of each that has it; flags.

    across: taps may lie outside, but all can be read; masked: they cannot.
    """
    lowest, VL = dtype.type(-np.inf), lanes(dtype)
    if masked:
        best = tap(x, False, column, 0, stride, IW, lowest, dtype)
        other = last = tap(x, False, column, 1, stride, IW, lowest, dtype)
        if K == 3:
            last = tap(x, False, column, 2, stride, IW, lowest, dtype)
    elif stride == 2:
        low, high = load(x, column, dtype), load(x, column + VL, dtype)
        best, other = even(low, high), odd(low, high)
        last = odd(load(x, column + 1, dtype), load(x, column + 1 + VL, dtype)) if K == 3 else other
    else:
        best, other, last = load(x, column, dtype), load(x, column + 1, dtype), load(x, column + 2, dtype)
    if across:
        best = pick(taps_outside(column, stride, IW, dtype), broadcast(lowest), best)
        other = pick(taps_outside(column + 1, stride, IW, dtype), broadcast(lowest), other)
        if K == 3:
            last = pick(taps_outside(column + 2, stride, IW, dtype), broadcast(lowest), last)
    best, place = fold_larger(best, ramp(0, 0, dtype), other, ramp(-1, 0, dtype))
    if masked or across:  # to the left of the image
        place = pick(taps_outside(column, stride, 2**31 - 1, dtype), ramp(-1, 0, dtype), place)
    if K == 3:
        best, place = fold_larger(best, place, last, ramp(-2, 0, dtype))
    return best, place, note_nan(flags, other, last if K == 3 else other)


@helper
def column_of(block, OW, VL):
    """The first window of a vector: where a row has several, the last one ends with it."""
    return min(block * VL, max(OW - VL, 0))


@helper
def carry_row(
    flags,
    x,  # IN   image row
    carried,  # OUT  (size) reduced; places behind
    pad_left, IW, OW, size, K, stride, dtype,
):  # fmt: skip
    # Masked: one row of a plane need not be fast, but the code short
    inlined()
    VL = lanes(dtype)
    for block in range((OW + VL - 1) // VL):
        column = column_of(block, OW, VL) * stride - pad_left
        best, place, flags = reduce_row(flags, x, column, IW, True, False, K, stride, dtype)
        store(carried, block * VL, best)
        store(carried, size + block * VL, place)
    return flags


@straight
def max_common_block(
    flags,
    x,  # IN   first row of the windows
    below1, below2,  # IN   from there to the others, in elements
    oldest,  # IN/OUT  carried: the first row reduced, which the last replaces
    newer,  # IN   carried: the second
    output,  # OUT  a row of windows
    indices,  # OUT  the same
    block, first_cell, pad_left, IW, OW, size, masked, across, K, stride, dtype,
):  # fmt: skip
    element, VL = itemsize(dtype), lanes(dtype)
    ow = column_of(block, OW, VL)
    column = ow * stride - pad_left
    carried, carried_places = block * VL, size + block * VL
    if stride == K:
        value, where, flags = reduce_row(flags, x, column, IW, masked, across, K, stride, dtype)
    else:
        value, where = load(oldest, carried, dtype), load_cells(oldest, carried_places, dtype)
    last = value
    for row in range(1, K):
        below = below1 if row == 1 else below2
        if row < K - stride:
            other, place = load(newer, carried, dtype), load_cells(newer, carried_places, dtype)
        else:
            other, place, flags = reduce_row(flags, x + below * element, column, IW, masked, across, K, stride, dtype)
        if row == K - 1:
            flags = note_nan(flags, other, last if K == 3 else other)
            if stride < K:
                store(oldest, carried, other)
                store(oldest, carried_places, place)
        value, where = fold_larger(value, where, other, add_cells(place, ramp(-below, 0, dtype)))
        last = other
    where = subtract_cells(cells_of(first_cell + column, stride, dtype), where)
    value = untangle(value) if stride == 2 else value
    if masked:
        put_first(output, ow, value, OW, dtype)
        store_cells(indices, ow, untangle(where) if stride == 2 else where, 0, OW)
    else:
        store(output, ow, value)
        if stride == 2:
            store_tangled_cells(indices, ow, where)
        else:
            store_cells(indices, ow, where, 0, VL)
    return flags


@helper
def max_common(
    x,  # IN   a plane
    output,  # OUT  its output plane
    indices,  # OUT  the same
    ring,  # TMP  max_ring_size
    oh_first, oh_last, planes, readable, room, K, stride, geometry, dtype,
):  # fmt: skip
    """Rows [oh_first, oh_last) of ``planes`` output planes and their indices; False, and any values, if a NaN was lost."""
    # K - stride reduced rows are carried from one output row to the next. Rows that meet the start or the end of what may be
    # read or written are masked. Windows across a side read the row before or behind.
    inlined()
    IW, OW, pad_left = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT]
    size, VL, element, cells = row_size(geometry), lanes(dtype), itemsize(dtype), geometry[GEO_IH] * geometry[GEO_IW]
    blocks, width, done = (OW + VL - 1) // VL, max(OW, VL), 0
    reach = (width - 1) * stride - pad_left + K  # of a row's vectors
    crosses = (OW - 1) * stride - pad_left + K > IW
    start = 1 if pad_left > 0 or (blocks == 1 and crosses) else 0
    stop = blocks - 1 if blocks > 1 and crosses else blocks
    oldest, newer = ring, ring + 2 * size * element
    y, where = output + oh_first * OW * element, indices + oh_first * OW * 8
    flags = no_flags(dtype)
    while planes > 0:
        oh = oh_first
        while oh < oh_last:
            alike, below1, below2 = rows_alike(oh, oh_last, K, stride, geometry)
            first = first_row(oh, stride, geometry) * IW
            rows = x + first * element
            if oh == oh_first and stride < K:
                flags = carry_row(flags, rows, oldest, pad_left, IW, OW, size, K, stride, dtype)
                if stride < K - 1:
                    below = below1 * element
                    flags = carry_row(flags, rows + below, newer, pad_left, IW, OW, size, K, stride, dtype)
            while oh < alike:
                if (done == 0 and pad_left > 0) or room - done < width or readable - first - below2 < reach:
                    for block in range(blocks):
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest, newer, y, where, block, first, pad_left, IW, OW, size, True,
                            False, K, stride, dtype,
                        )  # fmt: skip
                else:
                    if IW > LONG_ROW:
                        for line in range(stride * IW * element // CACHE_LINE):  # of rows that are read later
                            rolled()  # a burst of them would find no buffer free: the processor drops what is left
                            prefetch(rows + 8 * IW * element + line * CACHE_LINE)
                    for block in range(start, stop):
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest, newer, y, where, block, first, pad_left, IW, OW, size, False,
                            False, K, stride, dtype,
                        )  # fmt: skip
                    if start == 1:
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest, newer, y, where, 0, first, pad_left, IW, OW, size, False,
                            True, K, stride, dtype,
                        )  # fmt: skip
                    if stop < blocks:
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest, newer, y, where, stop, first, pad_left, IW, OW, size, False,
                            True, K, stride, dtype,
                        )  # fmt: skip
                oh += 1
                done += OW
                first += stride * IW
                rows += stride * IW * element
                y += OW * element
                where += OW * 8
                if stride < K - 1:
                    oldest, newer = newer, oldest
        x += cells * element
        readable -= cells
        planes -= 1
    return not has_flags(flags)


@helper
def max_windows(x, output, indices, ring, oh_first, oh_last, planes, readable, room, geometry, dtype):
    outlined()
    if indices != 0:
        if geometry[GEO_KH] == 2:
            return max_common(
                x, output, indices, ring, oh_first, oh_last, planes, readable, room, 2, 2, geometry, dtype
            )
        if geometry[GEO_STRIDE_H] == 2:
            return max_common(
                x, output, indices, ring, oh_first, oh_last, planes, readable, room, 3, 2, geometry, dtype
            )
        return max_common(x, output, indices, ring, oh_first, oh_last, planes, readable, room, 3, 1, geometry, dtype)
    if geometry[GEO_KH] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 2, geometry, dtype)
    if geometry[GEO_STRIDE_H] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 3, geometry, dtype)
    return max_sliding(x, output, oh_first, oh_last, planes, room, geometry, dtype)


# ---------------------------------------------------------------------------------------------------- any windows


@helper
def max_along_block(
    x,  # IN   image row
    best,  # OUT  a vector of reduced windows
    columns,  # OUT  with_indices: theirs, integers as wide as real
    column, IW, with_indices, inside, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    inlined()
    lowest = dtype.type(-np.inf)
    value = any_tap(x, inside, column, 0, stride_w, IW, lowest, dtype)
    if not with_indices:
        for kw in range(1, KW):
            value = fold_max(value, any_tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype))
        store(best, 0, untangle(value) if stride_w == 2 else value)
        return
    where = ramp(0, 0, dtype)
    for kw in range(1, KW):
        other = any_tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype)
        won = takes(value, other)
        value, where = pick(won, other, value), pick(won, ramp(kw * dil_w, 0, dtype), where)
    if stride_w == 2:
        value, where = untangle(value), untangle(where)
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
    outlined()
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
    outlined()
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
    oh_first, oh_last, readable, room, with_indices, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane."""
    outlined()
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, KW, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots, size, element = ring_slots(geometry), row_size(geometry), itemsize(dtype)
    values, columns = ring, ring + slots * size * element
    reduced = 0

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row, slot = x + reduced * IW * element, (reduced & (slots - 1)) * size * element
            best, column, space = values + slot, columns + slot, readable - reduced * IW
            if stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, space, with_indices, KW, 1, dil_w, dtype)
            else:
                max_along_row(row, best, column, pad_left, IW, OW, space, with_indices, KW, stride_w, dil_w, dtype)
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
        max_over_rows(
            values, columns, y, where, room - (oh - oh_first) * OW, first * IW, IW, with_indices, slot, slots, n_rows, dil_h, OW,
            size, dtype,
        )  # fmt: skip


@shared
def max_ring_size(geometry):
    """Elements for the rings of values and of columns."""
    return 2 * ring_slots(geometry) * row_size(geometry)


@helper
def max_of_planes(
    x,  # IN   a plane, others behind it
    output,  # OUT  its output plane
    indices,  # OUT  or 0
    ring,  # TMP  max_ring_size
    oh_first, oh_last,  # of one plane; of more than one all rows
    planes,
    readable,  # elements from x on: in lanes past the last window anything may stand
    room,  # elements from row oh_first of output on: what is written past a row, the next ones overwrite
    common,  # is_common
    geometry, dtype,
):  # fmt: skip
    cells, windows = geometry[GEO_IH] * geometry[GEO_IW], geometry[GEO_OH] * geometry[GEO_OW]
    together = planes if common else 1
    common = common and (indices == 0 or (geometry[GEO_PAD_LEFT] <= 1 and cells >> 31 == 0))
    done = False
    for plane in range(planes):
        if common and plane % together == 0:
            done = max_windows(x, output, indices, ring, oh_first, oh_last, together, readable, room, geometry, dtype)
        if not done:
            max_rows(x, output, indices, ring, oh_first, oh_last, readable, room, indices != 0, geometry, dtype)
        x += cells * itemsize(dtype)
        output += windows * itemsize(dtype)
        if indices != 0:
            indices += windows * 8
        readable -= cells
        room -= windows
