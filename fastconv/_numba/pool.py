"""Max and average pooling, unpooling, and their gradients. Meaning and shapes: fastconv/_reference/pool.py.

How windows are reduced on vectors: _max_pool.py. Means go the same way, with sums for maxima.
"""

from functools import lru_cache

import numpy as np

from fastconv._numba._common import add_run, lines, spread_run
from fastconv._numba._direct_simd import zip_high, zip_low
from fastconv._numba._jit import (
    VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, int64, real, shared, task,
)  # fmt: skip
from fastconv._numba._max_pool import (
    any_tap, block_inside, first_inside, is_common, is_seamless, is_tiling, max_of_planes, max_ring_size, put_first, ring_slots,
    row_size, rows_inside, span, tap,
)  # fmt: skip
from fastconv._numba._pool_simd import (
    add_cells, apart, beyond_cells, divide, either, even, first_ones, fold_max, has_flags, insert, larger, load_cells,
    load_indices, load_inside, note_nan, odd, pick, ramp, same, store_cells, store_first, sum_of_lanes, takes,
    untangle, zip_pieces_high, zip_pieces_low,
)  # fmt: skip
from fastconv._numba._simd import (
    address, broadcast, clear, copy, get, inlined, itemsize, lanes, load, local, outlined, put, store,
)  # fmt: skip
from fastconv._numba._straight import straight
from fastconv._problem import (
    GEO_COUNT_INCLUDE_PAD, GEO_DIL_H, GEO_DIL_W, GEO_DIVISOR, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N,
    GEO_OH, GEO_OW, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_PAD_TOP, GEO_STRIDE_H, GEO_STRIDE_W, GEOMETRY,
)  # fmt: skip

FIELDS = len(GEOMETRY)
CELLS = 32768  # cells that a task reads at least: microseconds, against a fraction of one to start it


# Two ways to cut the work into tasks: runs of output rows, counted through all planes, and runs of planes.
@shared
def rows_per_task(geometry):
    """Of whole planes, if they hold several."""
    rows = 1 + CELLS // max(geometry[GEO_OW] * geometry[GEO_KH] * geometry[GEO_KW], 1)
    return max(rows // max(geometry[GEO_OH], 1) * geometry[GEO_OH], min(rows, geometry[GEO_OH]))


@shared
def planes_per_task(geometry):
    return 1 + CELLS // max(geometry[GEO_IH] * geometry[GEO_IW], 1)


@shared
def row_tasks(geometry):
    return -(-geometry[GEO_N] * geometry[GEO_IC] * geometry[GEO_OH] // rows_per_task(geometry))


@shared
def plane_tasks(geometry):
    return -(-geometry[GEO_N] * geometry[GEO_IC] // planes_per_task(geometry))


@lru_cache(maxsize=1024)
def _tasks(geometry):
    g = np.frombuffer(geometry, np.int64).tolist()
    return row_tasks(g), plane_tasks(g)


# ---------------------------------------------------------------------------------------------------- max pooling


@task
def max_pool2d_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT  or of length 0
    workspace: real[::1],  # TMP  max_ring_size a worker
    geometry: const_int64[::1],  # IN
):
    # A task is a run of output rows, counted through all planes; where no index tells planes apart they may be one.
    dtype, element = input.dtype, itemsize(input.dtype)
    planes, OH, OW = geometry[GEO_N] * geometry[GEO_IC], geometry[GEO_OH], geometry[GEO_OW]
    cells, row = geometry[GEO_IH] * geometry[GEO_IW], task * rows_per_task(geometry)
    left = min(rows_per_task(geometry), planes * OH - row)
    ring = address(workspace) + worker * max_ring_size(geometry) * element
    common, with_indices = is_common(geometry), indices.shape[0] > 0
    joined = local(FIELDS, np.int64)
    for field in range(FIELDS):
        joined[field] = geometry[field]
    if not with_indices and is_seamless(geometry):
        joined[GEO_IH] *= planes
        joined[GEO_OH] *= planes
        OH, cells, planes = OH * planes, cells * planes, 1
    plane, oh = row // OH, row % OH
    while left > 0:
        count = min(left, OH - oh)
        whole = max(left // OH, 1) if oh == 0 else 1
        x, y = address(input) + plane * cells * element, address(output) + plane * OH * OW * element
        where = address(indices) + plane * OH * OW * 8 if with_indices else 0
        readable = (planes - plane) * cells
        max_of_planes(x, y, where, ring, oh, oh + count, whole, readable, left * OW, common, joined, dtype)
        left -= whole * count
        plane += whole
        oh = 0


def max_pool2d_workspace(geometry, n_workers):
    """Elements of workspace of max_pool2d."""
    return n_workers * max_ring_size(geometry)


def max_pool2d(input, output, indices, workspace, geometry, n_threads):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    max_pool2d_task.run(_tasks(geometry.tobytes())[0], n_threads, input, output, indices, workspace, geometry)


@helper
def spread_tiles(flags, values, indices, upper, lower, first_cell, IW, wanted, dtype):
    """A vector of tiles of 2x2: each value goes to the cell of its tile that its index names, 0 to the other three.

    Gives flags of the lanes, of those that ``wanted`` has ones for, whose index names another cell.
    """
    value, nothing, none, VL = apart(load(values, 0, dtype)), broadcast(dtype.type(0)), ramp(0, 0, dtype), lanes(dtype)
    tap = add_cells(load_indices(indices, 0, dtype), add_cells(apart(ramp(0, -2, dtype)), ramp(-first_cell, 0, dtype)))
    tap0, tap1 = same(tap, none), same(tap, ramp(1, 0, dtype))
    tap2, tap3 = same(tap, ramp(IW, 0, dtype)), same(tap, ramp(IW + 1, 0, dtype))
    left, right = pick(tap0, value, nothing), pick(tap1, value, nothing)
    store(upper, 0, zip_pieces_low(left, right))
    store(upper, VL, zip_pieces_high(left, right))
    left, right = pick(tap2, value, nothing), pick(tap3, value, nothing)
    store(lower, 0, zip_pieces_low(left, right))
    store(lower, VL, zip_pieces_high(left, right))
    missing = pick(either(either(tap0, tap1), either(tap2, tap3)), none, wanted)
    return either(flags, either(beyond_cells(indices, 0, dtype), missing))


@helper
def put_tiles(
    values,  # IN   a plane of windows
    indices,  # IN   theirs
    image,  # OUT  a plane
    readable,  # elements of values and indices
    room,  # elements from image on: what is written past the plane, the next ones overwrite
    geometry,
    dtype,
):
    """Where `is_tiling`: each value to its index, 0 elsewhere; False, and any values, if an index lies outside its window."""
    # Forwards, as memory likes it: a row's last vector begins early enough to be whole, and repeats what the one before wrote.
    # A row shorter than a vector runs over its end; the row below overwrites that.
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    VL, size, whole = lanes(dtype), itemsize(dtype), OH
    outside, flags, zero = False, ramp(0, 0, dtype), dtype.type(0)
    wanted = apart(first_ones(OW, dtype))  # all lanes where rows are as long
    if size == 4 and (IH * IW) >> 31 != 0:
        return False
    while OW < VL and whole > 0 and ((2 * whole - 1) * IW + 2 * VL > room or (whole - 1) * OW + VL > readable):
        whole -= 1  # the other rows have no space for a vector
    for oh in range(whole):
        upper = image + 2 * oh * IW * size
        lower = upper + IW * size
        ow = 0
        while True:
            at = oh * OW + ow
            flags = spread_tiles(
                flags, values + at * size, indices + at * 8, upper + 2 * ow * size, lower + 2 * ow * size, 2 * (oh * IW + ow), IW,
                wanted, dtype,
            )  # fmt: skip
            if ow + VL >= OW:
                break
            ow = min(ow + VL, OW - VL)
        if 2 * OW < IW:
            put(upper, IW - 1, zero)
            put(lower, IW - 1, zero)
    clear(image + 2 * whole * IW * size, (IH - 2 * whole) * IW * size)
    for window in range(whole * OW, OH * OW):
        cell, first = get(indices, window, np.int64), 2 * (window // OW * IW + window % OW)
        if cell == first or cell == first + 1 or cell == first + IW or cell == first + IW + 1:
            put(image, cell, get(values, window, dtype))
        else:
            outside = True
    return not (outside or has_flags(flags))


@task
def place_task(
    task: index,
    values: const_real[:, :, :, ::1],  # IN
    indices: const_int64[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    outside: int64[::1],  # OUT
    geometry: const_int64[::1],  # IN
    add: index,
):
    """A run of planes: each value to its index, in row-major order; of one cell all add up, or the last stays."""
    dtype, size = values.dtype, itemsize(values.dtype)
    cells, windows = geometry[GEO_IH] * geometry[GEO_IW], geometry[GEO_OH] * geometry[GEO_OW]
    planes, plane = geometry[GEO_N] * geometry[GEO_IC], task * planes_per_task(geometry)
    plane_last, tiling = min(plane + planes_per_task(geometry), planes), is_tiling(geometry)
    for plane in range(plane, plane_last):
        source, where = address(values) + plane * windows * size, address(indices) + plane * windows * 8
        image = address(output) + plane * cells * size
        if tiling and put_tiles(
            source, where, image, (planes - plane) * windows, (plane_last - plane) * cells, geometry, dtype
        ):
            continue
        signs = 0
        for window in range(windows):
            signs |= get(where, window, np.int64) | (cells - 1 - get(where, window, np.int64))
        if signs < 0:
            outside[0] = 1
            continue
        clear(image, cells * size)
        for window in range(windows):
            cell = get(where, window, np.int64)
            if add != 0:
                put(image, cell, get(image, cell, dtype) + get(source, window, dtype))
            else:
                put(image, cell, get(source, window, dtype))


def max_pool2d_backward(grad_output, indices, grad_input, outside, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    outside[0] = 0
    place_task.run(_tasks(geometry.tobytes())[1], n_threads, grad_output, indices, grad_input, outside, geometry, 1)


# ------------------------------------------------------------------------------------------------------ unpooling


def max_unpool2d(input, indices, output, outside, workspace, geometry, n_threads):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    outside[0] = 0
    place_task.run(_tasks(geometry.tobytes())[1], n_threads, input, indices, output, outside, geometry, 0)


@task
def max_unpool2d_backward_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    indices: const_int64[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # TMP  (IH * IW) a worker: whether a later value went to the cell
    geometry: const_int64[::1],  # IN
):
    # A task is a run of planes; from the last window to the first, only the first to come keeps a cell.
    dtype, size = grad_output.dtype, itemsize(grad_output.dtype)
    IC, cells = geometry[GEO_IC], geometry[GEO_IH] * geometry[GEO_IW]
    windows = geometry[GEO_OH] * geometry[GEO_OW]
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    taken, zero, one = address(workspace) + worker * cells * size, dtype.type(0), dtype.type(1)
    clear(taken, cells * size)
    for plane in range(plane, plane_last):
        image, where = address(grad_output) + plane * cells * size, address(indices) + plane * windows * 8
        grads = address(grad_input) + plane * windows * size
        for window in range(windows - 1, -1, -1):
            cell = get(where, window, np.int64)
            put(grads, window, get(image, cell, dtype) if get(taken, cell, dtype) == 0 else zero)
            put(taken, cell, one)
        for window in range(windows):
            put(taken, get(where, window, np.int64), zero)


def max_unpool2d_backward_workspace(geometry, n_workers):
    """Elements of workspace of max_unpool2d_backward."""
    return n_workers * geometry[GEO_IH] * geometry[GEO_IW]


def max_unpool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    max_unpool2d_backward_task.run(
        _tasks(geometry.tobytes())[1], n_threads, grad_output, indices, grad_input, workspace, geometry
    )


# --------------------------------------------------------------------------------------------------------- average


@helper
def covered(position, kernel, pad, extent, pad_after, with_pad):
    """Cells along one axis that a window counts: those of the padded image, or of the image alone."""
    stop = min(position + kernel, extent + pad_after)
    if with_pad:
        return stop - position
    return min(stop, extent) - max(position, 0)


@helper
def divisor_of_row(oh, geometry, dtype):
    """Rows that the windows of output row oh count; with ``divisor`` 1."""
    if geometry[GEO_DIVISOR] != 0:
        return dtype.type(1)
    return dtype.type(
        covered(
            oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP], geometry[GEO_KH], geometry[GEO_PAD_TOP],
            geometry[GEO_IH], geometry[GEO_PAD_BOTTOM], geometry[GEO_COUNT_INCLUDE_PAD],
        )
    )  # fmt: skip


@helper
def divisor_of_column(ow, geometry, dtype):
    """Columns that the windows of output column ow count; with ``divisor`` that itself."""
    if geometry[GEO_DIVISOR] != 0:
        return dtype.type(geometry[GEO_DIVISOR])
    return dtype.type(
        covered(
            ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT], geometry[GEO_KW], geometry[GEO_PAD_LEFT],
            geometry[GEO_IW], geometry[GEO_PAD_RIGHT], geometry[GEO_COUNT_INCLUDE_PAD],
        )
    )  # fmt: skip


@helper
def run_sum(x, count, dtype):
    """The sum of a run of cells, by four vectors of partial sums."""
    VL = lanes(dtype)
    sum0 = sum1 = sum2 = sum3 = broadcast(dtype.type(0))
    i = 0
    while i + 4 * VL <= count:
        sum0, sum1 = sum0 + load(x, i, dtype), sum1 + load(x, i + VL, dtype)
        sum2, sum3 = sum2 + load(x, i + 2 * VL, dtype), sum3 + load(x, i + 3 * VL, dtype)
        i += 4 * VL
    while i < count:
        sum0 = sum0 + load_inside(x, i, count, dtype.type(0), dtype)
        i += VL
    return sum_of_lanes((sum0 + sum1) + (sum2 + sum3))


@helper
def sum_along_block(
    x,  # IN   image row
    sums,  # OUT  a vector of reduced windows
    column, IW, inside, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    total = any_tap(x, inside, column, 0, stride_w, IW, dtype.type(0), dtype)
    for kw in range(1, KW):
        total = total + any_tap(x, inside, column, kw * dil_w, stride_w, IW, dtype.type(0), dtype)
    store(sums, 0, untangle(total) if stride_w == 2 else total)


@helper
def sum_along_row(
    x,  # IN   image row
    sums,  # OUT  (size)
    pad_left, IW, OW, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    inlined()
    VL, size = lanes(dtype), itemsize(dtype)
    column = -pad_left
    for ow in range(0, OW, VL):
        if block_inside(column, VL, stride_w, span(KW, dil_w), IW):
            sum_along_block(x, sums + ow * size, column, IW, True, KW, stride_w, dil_w, dtype)
        else:
            sum_along_block(x, sums + ow * size, column, IW, False, KW, stride_w, dil_w, dtype)
        column += VL * stride_w


@helper
def sum_along_any_row(x, sums, pad_left, IW, OW, KW, stride_w, dil_w, dtype):
    """`sum_along_row` as a function of its own, so that the usual windows have registers enough."""
    outlined()
    if stride_w == 1:
        sum_along_row(x, sums, pad_left, IW, OW, KW, 1, dil_w, dtype)
    else:
        sum_along_row(x, sums, pad_left, IW, OW, KW, stride_w, dil_w, dtype)


@helper
def mean_over_rows(
    sums,  # IN   ring
    divisors,  # IN   (size)
    output,  # OUT  (OW), of which only ``room`` elements may be written
    divisor, room, slot, slots, n_rows, dil_h, OW, size, dtype,
):  # fmt: skip
    inlined()
    rows = broadcast(divisor)
    for ow in range(0, OW, lanes(dtype)):
        total = load(sums, slot * size + ow, dtype)
        for row in range(1, n_rows):
            total = total + load(sums, ((slot + row * dil_h) & (slots - 1)) * size + ow, dtype)
        put_first(output, ow, divide(total, load(divisors, ow, dtype) * rows), room - ow, dtype)


@helper
def mean_over_any_rows(sums, divisors, output, divisor, room, slot, slots, n_rows, dil_h, OW, size, dtype):
    outlined()
    mean_over_rows(sums, divisors, output, divisor, room, slot, slots, n_rows, dil_h, OW, size, dtype)


@helper
def mean_rows(
    x,  # IN   a plane
    output,  # OUT  its output plane
    ring,  # TMP  mean_ring_size
    oh_first, oh_last, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane; the way of max_rows."""
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, KW, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots, size, element = ring_slots(geometry), row_size(geometry), itemsize(dtype)
    values, divisors = ring, ring + slots * size * element
    reduced = 0

    for ow in range(size):
        put(divisors, ow, divisor_of_column(min(ow, OW - 1), geometry, dtype))
    for oh in range(oh_first, oh_last):
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row, sums = x + reduced * IW * element, values + (reduced & (slots - 1)) * size * element
            if OW == 1 and dil_w == 1:
                put(sums, 0, run_sum(row, min(KW - pad_left, IW), dtype))
            elif KW == 3 and dil_w == 1 and stride_w == 2:
                sum_along_row(row, sums, pad_left, IW, OW, 3, 2, 1, dtype)
            elif KW == 3 and dil_w == 1 and stride_w == 1:
                sum_along_row(row, sums, pad_left, IW, OW, 3, 1, 1, dtype)
            else:
                sum_along_any_row(row, sums, pad_left, IW, OW, KW, stride_w, dil_w, dtype)
            reduced += 1
        divisor = divisor_of_row(oh, geometry, dtype)
        y = output + oh * OW * element
        first = first_inside(top, dil_h)
        if first >= IH:
            for ow in range(OW):
                put(y, ow, dtype.type(0) / (divisor * get(divisors, ow, dtype)))
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        room = (oh_last - oh) * OW  # what is written past the end of the row, the next rows overwrite
        if n_rows == 3 and dil_h == 1:
            mean_over_rows(values, divisors, y, divisor, room, slot, slots, 3, 1, OW, size, dtype)
        else:
            mean_over_any_rows(values, divisors, y, divisor, room, slot, slots, n_rows, dil_h, OW, size, dtype)


@straight
def mean_tiles_block(
    x,  # IN   upper of two image rows
    output,  # OUT  a vector of windows, of which only ``room`` elements may be written
    divisor, room, column, IW, inside, dtype,
):  # fmt: skip
    zero, below = dtype.type(0), x + IW * itemsize(dtype)
    total = tap(x, inside, column, 0, 2, IW, zero, dtype) + tap(x, inside, column, 1, 2, IW, zero, dtype)
    total = total + tap(below, inside, column, 0, 2, IW, zero, dtype)
    total = total + tap(below, inside, column, 1, 2, IW, zero, dtype)
    put_first(output, 0, divide(untangle(total), broadcast(divisor)), room, dtype)


@helper
def mean_tiles(
    x,  # IN   a plane
    output,  # OUT  its output plane
    oh_first, oh_last, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    IW, OW, VL, size = geometry[GEO_IW], geometry[GEO_OW], lanes(dtype), itemsize(dtype)
    divisor = divisor_of_row(0, geometry, dtype) * divisor_of_column(0, geometry, dtype)
    for oh in range(oh_first, oh_last):
        row = x + 2 * oh * IW * size
        for ow in range(0, OW, VL):
            at = oh * OW + ow
            if block_inside(2 * ow, VL, 2, 2, IW):
                mean_tiles_block(row, output + at * size, divisor, oh_last * OW - at, 2 * ow, IW, True, dtype)
            else:
                mean_tiles_block(row, output + at * size, divisor, oh_last * OW - at, 2 * ow, IW, False, dtype)


@shared
def is_plane(geometry):
    """Whether the window is just the plane."""
    return (
        geometry[GEO_KH] == geometry[GEO_IH] and geometry[GEO_KW] == geometry[GEO_IW]
        and geometry[GEO_OH] == 1 and geometry[GEO_OW] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1
    )  # fmt: skip


@shared
def mean_ring_size(geometry):
    """Elements for the ring of sums and the divisors."""
    return 0 if is_plane(geometry) or is_tiling(geometry) else (ring_slots(geometry) + 1) * row_size(geometry)


@task
def avg_pool2d_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # TMP  mean_ring_size a worker
    geometry: const_int64[::1],  # IN
):
    # A task is a run of output rows, counted through all planes.
    IC, OH, size = geometry[GEO_IC], geometry[GEO_OH], mean_ring_size(geometry)
    ring = address(workspace) + worker * size * itemsize(input.dtype)
    row = task * rows_per_task(geometry)
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * IC * OH)
    tiling, plane = is_tiling(geometry), is_plane(geometry)
    while row < row_last:
        n, c, oh = row // OH // IC, row // OH % IC, row % OH
        oh_last = min(oh + row_last - row, OH)
        x, y = address(input[n, c]), address(output[n, c])
        if plane:
            divisor = divisor_of_row(0, geometry, input.dtype) * divisor_of_column(0, geometry, input.dtype)
            put(y, 0, run_sum(x, geometry[GEO_IH] * geometry[GEO_IW], input.dtype) / divisor)
        elif tiling:
            mean_tiles(x, y, oh, oh_last, geometry, input.dtype)
        else:
            mean_rows(x, y, ring, oh, oh_last, geometry, input.dtype)
        row += oh_last - oh


def avg_pool2d_workspace(geometry, n_workers):
    """Elements of workspace of avg_pool2d."""
    return n_workers * mean_ring_size(geometry)


def avg_pool2d(input, output, workspace, geometry, n_threads):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    avg_pool2d_task.run(_tasks(geometry.tobytes())[0], n_threads, input, output, workspace, geometry)


@helper
def spread_pass(share, frame, OW, stride_w, dtype):
    """One column of all windows: frame[ow * stride_w] += share[ow]."""
    if stride_w == 1:
        add_run(frame, share, OW, dtype)
    elif stride_w == 2 and OW >= lanes(dtype):  # in a shorter row the next pass would wait for each vector of this one
        spread_run(frame, share, OW, dtype)
    else:
        for ow in range(OW):
            put(frame, ow * stride_w, get(frame, ow * stride_w, dtype) + get(share, ow, dtype))


@helper
def repeat_pass(share, frame, OW, KW, dtype):
    """All columns of windows that lie side by side: frame[ow * KW + kw] = share[ow]."""
    VL = lanes(dtype)
    if KW == 2:
        for ow in range(0, OW, VL):
            x = load(share, ow, dtype)
            store(frame, 2 * ow, zip_low(x, x))
            store(frame, 2 * ow + VL, zip_high(x, x))
    else:
        for ow in range(OW):
            for kw in range(KW):
                put(frame, ow * KW + kw, get(share, ow, dtype))


@shared
def spread_size(geometry):
    """Elements for the divisors, a row of shares, and that row spread: of whole vectors, the last filled up with shares of 0."""
    return lines(geometry[GEO_OW]) * (2 + geometry[GEO_STRIDE_W]) + lines(span(geometry[GEO_KW], geometry[GEO_DIL_W]))


@task
def avg_pool2d_backward_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # TMP  spread_size a worker
    geometry: const_int64[::1],  # IN
):
    # A task is a run of planes. A row of gradients is spread along its windows' columns once, then added to their rows, or
    # copied where windows lie one below the other.
    IC, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w, dil_h, dil_w = (
        geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W], geometry[GEO_DIL_H], geometry[GEO_DIL_W],
    )  # fmt: skip
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dtype = grad_output.dtype
    VL, size, width = lanes(dtype), itemsize(dtype), (OW - 1) * stride_w + span(KW, dil_w)
    reach = min(width - pad_left, IW)
    divisors = address(workspace) + worker * spread_size(geometry) * size
    share = divisors + lines(OW) * size
    frame = share + lines(OW) * size
    spread = frame + pad_left * size
    beside, below = stride_w == KW and dil_w == 1, stride_h == KH and dil_h == 1
    met = min(OH * KH - pad_top, IH) if below else 0  # rows that are copied
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for ow in range(lines(OW)):
        put(divisors, ow, divisor_of_column(min(ow, OW - 1), geometry, dtype))
    for plane in range(plane, plane_last):
        image = address(grad_input) + plane * IH * IW * size
        clear(image + met * IW * size, (IH - met) * IW * size)
        for oh in range(OH):
            grads = address(grad_output) + (plane * OH + oh) * OW * size
            rows = broadcast(divisor_of_row(oh, geometry, dtype))
            for ow in range(0, OW, VL):
                if ow + VL <= OW:
                    x = load(grads, ow, dtype)
                else:
                    x = load_inside(grads, ow, OW, dtype.type(0), dtype)
                store(share, ow, divide(x, rows * load(divisors, ow, dtype)))
            if beside:
                repeat_pass(share, frame, OW, KW, dtype)
            else:
                clear(frame, width * size)
                for kw in range(KW):
                    spread_pass(share, frame + kw * dil_w * size, OW, stride_w, dtype)
            for kh in range(KH):
                ih = oh * stride_h - pad_top + kh * dil_h
                row = image + ih * IW * size
                if 0 <= ih < met:
                    copy(row, spread, reach * size)
                    if reach < IW:
                        clear(row + reach * size, (IW - reach) * size)
                elif 0 <= ih < IH:
                    add_run(row, spread, reach, dtype)


def avg_pool2d_backward_workspace(geometry, n_workers):
    """Elements of workspace of avg_pool2d_backward."""
    return n_workers * spread_size(geometry)


def avg_pool2d_backward(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    avg_pool2d_backward_task.run(_tasks(geometry.tobytes())[1], n_threads, grad_output, grad_input, workspace, geometry)
