"""Max and average pooling, unpooling, and their gradients. Meaning and shapes: fastconv/_reference/pool.py.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once. A ring holds the reduced rows that are still needed: image row ih in slot
ih & (slots - 1). Windows of 2x2 that tile the plane share nothing and are done at one go.

Loops over the windows of a row are plain ones, for LLVM to make vectors of; they index slices from 0, as an index that may
be negative would cost a test each.
"""

import numpy as np

from fastconv._numba._jit import (  # noqa: F401
    VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, int64, real, shared, task,
)  # fmt: skip
from fastconv._problem import (
    GEO_COUNT_INCLUDE_PAD, GEO_DIL_H, GEO_DIL_W, GEO_DIVISOR, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N,
    GEO_OH, GEO_OW, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_PAD_TOP, GEO_STRIDE_H, GEO_STRIDE_W,
)  # fmt: skip

CELLS = 32768  # cells that a task reads at least: microseconds, against a fraction of one to start it
PARTS = 32  # partial sums of a whole plane: two vectors at least, to hide the latency of an addition


@shared
def span(kernel, dilation):
    """Cells from the first to the last of a window."""
    return (kernel - 1) * dilation + 1


@helper
def first_inside(position, dilation):
    """The first of position, position + dilation, ... that is not negative."""
    return position if position >= 0 else position + -(position // dilation) * dilation


# Two ways to cut the work into tasks: runs of output rows, counted through all planes, and runs of planes.
@shared
def rows_per_task(geometry):
    return 1 + CELLS // max(geometry[GEO_OW] * geometry[GEO_KH] * geometry[GEO_KW], 1)


@shared
def planes_per_task(geometry):
    return 1 + CELLS // max(geometry[GEO_IH] * geometry[GEO_IW], 1)


@shared
def row_tasks(geometry):
    return -(-geometry[GEO_N] * geometry[GEO_IC] * geometry[GEO_OH] // rows_per_task(geometry))


@shared
def plane_tasks(geometry):
    return -(-geometry[GEO_N] * geometry[GEO_IC] // planes_per_task(geometry))


# ---------------------------------------------------------------------------------------------- rows for windows


@shared
def ring_slots(geometry):
    """Rows from the first to the last of a window, rounded up to a power of two."""
    slots = 1
    while slots < span(geometry[GEO_KH], geometry[GEO_DIL_H]):
        slots *= 2
    return slots


@helper
def whole_windows(geometry):
    """Output columns [first, last) whose windows lie between the left and the right edge of the image."""
    IW, OW, stride_w = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_STRIDE_W]
    pad_left, width = geometry[GEO_PAD_LEFT], span(geometry[GEO_KW], geometry[GEO_DIL_W])
    first = min(-(-pad_left // stride_w), OW)
    return first, max(min((IW + pad_left - width) // stride_w + 1, OW), first)


@helper
def rows_inside(top, first, IH, KH, dil_h):
    """Rows of the window at ``top`` that lie in the image, where ``first`` is the first of them."""
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


# ---------------------------------------------------------------------------------------------------- max pooling


@helper
def larger(best, value):
    """The maximum: NaN wins, of equals ``best`` (zeros have signs)."""
    maximum = value if value > best else best
    return value if value != value else maximum


@helper
def wins(best, value):
    """Whether ``value`` replaces ``best``: it is larger, or the first NaN."""
    return (not (value <= best)) & (best == best)


@helper
def fold_first(best, where, value, cell):
    """The winner of two, and its cell."""
    won = wins(best, value)
    return (value if won else best), (cell if won else where)


@helper
def max_along_window(x, column, IW, KW, dil_w):
    """One window of a row, clipped to the image, and its column."""
    best, where = x.dtype.type(-np.inf), first_inside(column, dil_w)
    for kw in range(KW):
        at = column + kw * dil_w
        if 0 <= at < IW:
            best, where = fold_first(best, where, x[at], at)
    return best, np.int32(where)


@helper
def max_along_row(
    x,  # IN   image row
    best,  # OUT  (OW)
    columns,  # OUT  (OW) with_indices
    with_indices, geometry,
):  # fmt: skip
    IW, OW, KW = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_KW]
    pad_left, stride_w, dil_w = geometry[GEO_PAD_LEFT], geometry[GEO_STRIDE_W], geometry[GEO_DIL_W]
    first, last = whole_windows(geometry)
    for ow in range(first):
        best[ow], column = max_along_window(x, ow * stride_w - pad_left, IW, KW, dil_w)
        if with_indices:
            columns[ow] = column
    for ow in range(last, OW):
        best[ow], column = max_along_window(x, ow * stride_w - pad_left, IW, KW, dil_w)
        if with_indices:
            columns[ow] = column
    if last == first:
        return
    column = np.int32(first * stride_w - pad_left)
    x, best = x[column:], best[first:last]
    if with_indices:
        columns = columns[first:last]
        one, two, step = np.int32(1), np.int32(2), np.int32(stride_w)
        if KW == 3 and dil_w == 1 and stride_w == 2:
            for i in range(last - first):
                value, where = fold_first(x[2 * i], np.int32(0), x[2 * i + 1], one)
                value, where = fold_first(value, where, x[2 * i + 2], two)
                best[i] = value
                columns[i] = where + column + np.int32(i) * two
        elif KW == 3 and dil_w == 1 and stride_w == 1:
            for i in range(last - first):
                value, where = fold_first(x[i], np.int32(0), x[i + 1], one)
                value, where = fold_first(value, where, x[i + 2], two)
                best[i] = value
                columns[i] = where + column + np.int32(i)
        else:
            for i in range(last - first):
                best[i] = x[i * stride_w]
                columns[i] = column + np.int32(i) * step
            for kw in range(1, KW):
                at = kw * dil_w
                cell = np.int32(column + at)
                if stride_w == 1:
                    for i in range(last - first):
                        best[i], columns[i] = fold_first(best[i], columns[i], x[i + at], cell + np.int32(i))
                else:
                    for i in range(last - first):
                        best[i], columns[i] = fold_first(
                            best[i], columns[i], x[i * stride_w + at], cell + np.int32(i) * step
                        )
    elif KW == 3 and dil_w == 1 and stride_w == 2:
        for i in range(last - first):
            best[i] = larger(larger(x[2 * i], x[2 * i + 1]), x[2 * i + 2])
    elif KW == 3 and dil_w == 1 and stride_w == 1:
        for i in range(last - first):
            best[i] = larger(larger(x[i], x[i + 1]), x[i + 2])
    else:
        for i in range(last - first):
            best[i] = x[i * stride_w]
        for kw in range(1, KW):
            at = kw * dil_w
            if stride_w == 1:
                for i in range(last - first):
                    best[i] = larger(best[i], x[i + at])
            else:
                for i in range(last - first):
                    best[i] = larger(best[i], x[i * stride_w + at])


# The rows of a window lie in the ring from ``slot`` on, dil_h slots apart.
@helper
def max_over_rows(
    values,  # IN   ring (slots, OW)
    columns,  # IN   with_indices: ring
    output,  # OUT  (OW)
    indices,  # OUT  with_indices: (OW)
    with_indices, first_cell, IW, slot, n_rows, dil_h,
):  # fmt: skip
    slots, OW = values.shape
    row0 = values[slot]
    if with_indices:
        column = columns[slot]
        for ow in range(OW):
            output[ow] = row0[ow]
            indices[ow] = first_cell + column[ow]
        for row in range(1, n_rows):
            at = (slot + row * dil_h) & (slots - 1)
            value, column, cell = values[at], columns[at], first_cell + row * dil_h * IW
            for ow in range(OW):
                output[ow], indices[ow] = fold_first(output[ow], indices[ow], value[ow], cell + column[ow])
    elif n_rows == 3:
        row1, row2 = values[(slot + dil_h) & (slots - 1)], values[(slot + 2 * dil_h) & (slots - 1)]
        for ow in range(OW):
            output[ow] = larger(larger(row0[ow], row1[ow]), row2[ow])
    else:
        for ow in range(OW):
            output[ow] = row0[ow]
        for row in range(1, n_rows):
            value = values[(slot + row * dil_h) & (slots - 1)]
            for ow in range(OW):
                output[ow] = larger(output[ow], value[ow])


@helper
def max_rows(
    x,  # IN   a plane (IH, IW)
    output,  # OUT  its output plane (OH, OW)
    indices,  # OUT  with_indices: (OH, OW)
    ring,  # TMP  max_ring_size
    oh_first, oh_last, with_indices, geometry,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane."""
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots = ring_slots(geometry)
    values = ring[: slots * OW].reshape(slots, OW)
    columns = ring[slots * OW : 2 * slots * OW].view(np.int32)[: slots * OW].reshape(slots, OW)
    reduced = 0

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            slot = reduced & (slots - 1)
            max_along_row(x[reduced], values[slot], columns[slot], with_indices, geometry)
            reduced += 1

        first = first_inside(top, dil_h)
        if first >= IH:  # dilation steps over the whole image
            for ow in range(OW):
                output[oh, ow] = -np.inf
                if with_indices:
                    indices[oh, ow] = first * IW + first_inside(ow * stride_w - pad_left, dil_w)
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        where = indices[oh] if with_indices else indices[0]
        max_over_rows(values, columns, output[oh], where, with_indices, first * IW, IW, slot, n_rows, dil_h)


@helper
def max_tiles(
    x,  # IN   a plane (IH, IW)
    output,  # OUT  its output plane (OH, OW)
    indices,  # OUT  with_indices: (OH, OW)
    oh_first, oh_last, with_indices, geometry,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    IW, OW = geometry[GEO_IW], geometry[GEO_OW]
    one, below, below_one = np.int64(1), IW, IW + 1
    for oh in range(oh_first, oh_last):
        row0, row1, y = x[2 * oh], x[2 * oh + 1], output[oh]
        if with_indices:
            where = indices[oh]
            for ow in range(OW):
                value, cell = fold_first(row0[2 * ow], np.int64(0), row0[2 * ow + 1], one)
                value, cell = fold_first(value, cell, row1[2 * ow], below)
                value, cell = fold_first(value, cell, row1[2 * ow + 1], below_one)
                y[ow] = value
                where[ow] = 2 * oh * IW + 2 * ow + cell
        else:
            for ow in range(OW):
                y[ow] = larger(larger(row0[2 * ow], row0[2 * ow + 1]), larger(row1[2 * ow], row1[2 * ow + 1]))


@shared
def max_ring_size(geometry):
    """Elements for the rings of values and of columns."""
    return 0 if is_tiling(geometry) else 2 * ring_slots(geometry) * geometry[GEO_OW]


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
    # A task is a run of output rows, counted through all planes.
    IC, OH, size = geometry[GEO_IC], geometry[GEO_OH], max_ring_size(geometry)
    ring = workspace[worker * size : (worker + 1) * size]
    row = task * rows_per_task(geometry)
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * IC * OH)
    tiling, with_indices = is_tiling(geometry), indices.shape[0] > 0
    while row < row_last:
        n, c, oh = row // OH // IC, row // OH % IC, row % OH
        oh_last = min(oh + row_last - row, OH)
        x, y = input[n, c], output[n, c]
        where = indices[n, c] if with_indices else indices.reshape(1, 0)
        if tiling:
            max_tiles(x, y, where, oh, oh_last, with_indices, geometry)
        else:
            max_rows(x, y, where, ring, oh, oh_last, with_indices, geometry)
        row += oh_last - oh


def max_pool2d_workspace(geometry, n_workers):
    """Elements of workspace of max_pool2d."""
    return n_workers * max_ring_size(geometry)


def max_pool2d(input, output, indices, workspace, geometry, n_threads):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    max_pool2d_task.run(row_tasks(geometry.tolist()), n_threads, input, output, indices, workspace, geometry)


@task
def max_pool2d_backward_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    indices: const_int64[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is a run of planes; gradients are added in row-major order of the output.
    IC, cells = geometry[GEO_IC], geometry[GEO_IH] * geometry[GEO_IW]
    windows = geometry[GEO_OH] * geometry[GEO_OW]
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for plane in range(plane, plane_last):
        grads = grad_output[plane // IC, plane % IC].reshape(windows)
        where = indices[plane // IC, plane % IC].reshape(windows)
        image = grad_input[plane // IC, plane % IC].reshape(cells)
        image[:] = 0
        for window in range(windows):
            image[where[window]] += grads[window]


def max_pool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    max_pool2d_backward_task.run(plane_tasks(geometry.tolist()), n_threads, grad_output, indices, grad_input, geometry)


# ------------------------------------------------------------------------------------------------------ unpooling


@task
def max_unpool2d_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    indices: const_int64[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is a run of planes; values are written in row-major order.
    IC, cells = geometry[GEO_IC], geometry[GEO_IH] * geometry[GEO_IW]
    windows = geometry[GEO_OH] * geometry[GEO_OW]
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for plane in range(plane, plane_last):
        values = input[plane // IC, plane % IC].reshape(windows)
        where = indices[plane // IC, plane % IC].reshape(windows)
        image = output[plane // IC, plane % IC].reshape(cells)
        image[:] = 0
        for window in range(windows):
            image[where[window]] = values[window]


def max_unpool2d(input, indices, output, workspace, geometry, n_threads):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    max_unpool2d_task.run(plane_tasks(geometry.tolist()), n_threads, input, indices, output, geometry)


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
    IC, cells = geometry[GEO_IC], geometry[GEO_IH] * geometry[GEO_IW]
    windows = geometry[GEO_OH] * geometry[GEO_OW]
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    taken = workspace[worker * cells : (worker + 1) * cells]
    taken[:] = 0
    for plane in range(plane, plane_last):
        image = grad_output[plane // IC, plane % IC].reshape(cells)
        where = indices[plane // IC, plane % IC].reshape(windows)
        grads = grad_input[plane // IC, plane % IC].reshape(windows)
        for window in range(windows - 1, -1, -1):
            cell = where[window]
            grads[window] = image[cell] if taken[cell] == 0 else 0
            taken[cell] = 1
        for window in range(windows):
            taken[where[window]] = 0


def max_unpool2d_backward_workspace(geometry, n_workers):
    """Elements of workspace of max_unpool2d_backward."""
    return n_workers * geometry[GEO_IH] * geometry[GEO_IW]


def max_unpool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    max_unpool2d_backward_task.run(plane_tasks(geometry.tolist()), n_threads, grad_output, indices, grad_input, workspace, geometry)


# --------------------------------------------------------------------------------------------------------- average


@helper
def covered(position, kernel, pad, extent, pad_after, with_pad):
    """Cells along one axis that a window counts: those of the padded image, or of the image alone."""
    stop = min(position + kernel, extent + pad_after)
    if with_pad:
        return stop - position
    return min(stop, extent) - max(position, 0)


@helper
def divisor_of_row(oh, geometry, like):
    """Rows that the windows of output row oh count; with ``divisor`` 1. Of the type of ``like``."""
    if geometry[GEO_DIVISOR] != 0:
        return like.dtype.type(1)
    return like.dtype.type(
        covered(
            oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP], geometry[GEO_KH], geometry[GEO_PAD_TOP],
            geometry[GEO_IH], geometry[GEO_PAD_BOTTOM], geometry[GEO_COUNT_INCLUDE_PAD],
        )
    )  # fmt: skip


@helper
def divisor_of_column(ow, geometry, like):
    """Columns that the windows of output column ow count; with ``divisor`` that itself. Of the type of ``like``."""
    if geometry[GEO_DIVISOR] != 0:
        return like.dtype.type(geometry[GEO_DIVISOR])
    return like.dtype.type(
        covered(
            ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT], geometry[GEO_KW], geometry[GEO_PAD_LEFT],
            geometry[GEO_IW], geometry[GEO_PAD_RIGHT], geometry[GEO_COUNT_INCLUDE_PAD],
        )
    )  # fmt: skip


@helper
def run_sum(x, parts):
    """The sum of a run of cells, by PARTS partial sums."""
    count = x.size // PARTS * PARTS
    for part in range(PARTS):
        parts[part] = 0
    for i in range(0, count, PARTS):
        run = x[i : i + PARTS]
        for part in range(PARTS):
            parts[part] += run[part]
    total = x.dtype.type(0)
    for part in range(PARTS):
        total += parts[part]
    for i in range(count, x.size):
        total += x[i]
    return total


@helper
def sum_along_window(x, column, IW, KW, dil_w):
    """One window of a row, clipped to the image."""
    total = x.dtype.type(0)
    for kw in range(KW):
        at = column + kw * dil_w
        if 0 <= at < IW:
            total += x[at]
    return total


@helper
def sum_along_row(
    x,  # IN   image row
    sums,  # OUT  (OW)
    geometry,
):
    IW, OW, KW = geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_KW]
    pad_left, stride_w, dil_w = geometry[GEO_PAD_LEFT], geometry[GEO_STRIDE_W], geometry[GEO_DIL_W]
    first, last = whole_windows(geometry)
    for ow in range(first):
        sums[ow] = sum_along_window(x, ow * stride_w - pad_left, IW, KW, dil_w)
    for ow in range(last, OW):
        sums[ow] = sum_along_window(x, ow * stride_w - pad_left, IW, KW, dil_w)
    if last == first:
        return
    x, sums = x[first * stride_w - pad_left :], sums[first:last]
    if KW == 3 and dil_w == 1 and stride_w == 2:
        for i in range(last - first):
            sums[i] = x[2 * i] + x[2 * i + 1] + x[2 * i + 2]
    elif KW == 3 and dil_w == 1 and stride_w == 1:
        for i in range(last - first):
            sums[i] = x[i] + x[i + 1] + x[i + 2]
    else:
        for i in range(last - first):
            sums[i] = x[i * stride_w]
        for kw in range(1, KW):
            at = kw * dil_w
            if stride_w == 1:
                for i in range(last - first):
                    sums[i] += x[i + at]
            else:
                for i in range(last - first):
                    sums[i] += x[i * stride_w + at]


@helper
def mean_over_rows(
    sums,  # IN   ring (slots, OW)
    divisors,  # IN   (OW)
    output,  # OUT  (OW)
    divisor, slot, n_rows, dil_h,
):  # fmt: skip
    slots, OW = sums.shape
    row0 = sums[slot]
    if n_rows == 3:
        row1, row2 = sums[(slot + dil_h) & (slots - 1)], sums[(slot + 2 * dil_h) & (slots - 1)]
        for ow in range(OW):
            output[ow] = (row0[ow] + row1[ow] + row2[ow]) / (divisors[ow] * divisor)
        return
    for ow in range(OW):
        output[ow] = row0[ow]
    for row in range(1, n_rows):
        value = sums[(slot + row * dil_h) & (slots - 1)]
        for ow in range(OW):
            output[ow] += value[ow]
    for ow in range(OW):
        output[ow] /= divisors[ow] * divisor


@helper
def mean_rows(
    x,  # IN   a plane (IH, IW)
    output,  # OUT  its output plane (OH, OW)
    ring,  # TMP  mean_ring_size
    oh_first, oh_last, geometry,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane; the way of max_rows."""
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, KW, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, pad_top, pad_left = geometry[GEO_STRIDE_H], geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots = ring_slots(geometry)
    values = ring[: slots * OW].reshape(slots, OW)
    divisors = ring[slots * OW : (slots + 1) * OW]
    parts = ring[(slots + 1) * OW : (slots + 1) * OW + PARTS]
    reduced = 0

    for ow in range(OW):
        divisors[ow] = divisor_of_column(ow, geometry, ring)
    for oh in range(oh_first, oh_last):
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            sums = values[reduced & (slots - 1)]
            if OW == 1 and dil_w == 1:
                sums[0] = run_sum(x[reduced][: min(KW - pad_left, IW)], parts)
            else:
                sum_along_row(x[reduced], sums, geometry)
            reduced += 1
        divisor = divisor_of_row(oh, geometry, ring)
        first = first_inside(top, dil_h)
        if first >= IH:
            for ow in range(OW):
                output[oh, ow] = 0 / (divisor * divisors[ow])
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        mean_over_rows(values, divisors, output[oh], divisor, slot, n_rows, dil_h)


@helper
def mean_tiles(
    x,  # IN   a plane (IH, IW)
    output,  # OUT  its output plane (OH, OW)
    oh_first, oh_last, geometry,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    OW = geometry[GEO_OW]
    divisor = divisor_of_row(0, geometry, output) * divisor_of_column(0, geometry, output)
    for oh in range(oh_first, oh_last):
        row0, row1, y = x[2 * oh], x[2 * oh + 1], output[oh]
        for ow in range(OW):
            y[ow] = (row0[2 * ow] + row0[2 * ow + 1] + row1[2 * ow] + row1[2 * ow + 1]) / divisor


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
    """Elements for the ring of sums, the divisors, and the partial sums of a run."""
    return 0 if is_tiling(geometry) else (ring_slots(geometry) + 1) * geometry[GEO_OW] + PARTS


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
    ring = workspace[worker * size : (worker + 1) * size]
    row = task * rows_per_task(geometry)
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * IC * OH)
    tiling, plane = is_tiling(geometry), is_plane(geometry)
    while row < row_last:
        n, c, oh = row // OH // IC, row // OH % IC, row % OH
        oh_last = min(oh + row_last - row, OH)
        x, y = input[n, c], output[n, c]
        if tiling:
            mean_tiles(x, y, oh, oh_last, geometry)
        elif plane:
            divisor = divisor_of_row(0, geometry, y) * divisor_of_column(0, geometry, y)
            y[0, 0] = run_sum(x.reshape(x.size), ring) / divisor
        else:
            mean_rows(x, y, ring, oh, oh_last, geometry)
        row += oh_last - oh


def avg_pool2d_workspace(geometry, n_workers):
    """Elements of workspace of avg_pool2d."""
    return n_workers * mean_ring_size(geometry)


def avg_pool2d(input, output, workspace, geometry, n_threads):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    avg_pool2d_task.run(row_tasks(geometry.tolist()), n_threads, input, output, workspace, geometry)


@helper
def spread_pass(share, frame, stride_w):
    """One column of all windows: frame[ow * stride_w] += share[ow]."""
    if stride_w == 1:
        for ow in range(share.size):
            frame[ow] += share[ow]
    else:
        for ow in range(share.size):
            frame[ow * stride_w] += share[ow]


@shared
def spread_size(geometry):
    """Elements for the divisors, a row of shares, and that row spread."""
    OW = geometry[GEO_OW]
    return 2 * OW + (OW - 1) * geometry[GEO_STRIDE_W] + span(geometry[GEO_KW], geometry[GEO_DIL_W])


@task
def avg_pool2d_backward_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # TMP  spread_size a worker
    geometry: const_int64[::1],  # IN
):
    # A task is a run of planes. A row of gradients is spread along its windows' columns once, then added to their rows.
    IC, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w, dil_h, dil_w = (
        geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W], geometry[GEO_DIL_H], geometry[GEO_DIL_W],
    )  # fmt: skip
    pad_top, pad_left, size = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT], spread_size(geometry)
    scratch = workspace[worker * size : (worker + 1) * size]
    divisors, share, frame = scratch[:OW], scratch[OW : 2 * OW], scratch[2 * OW :]
    spread = frame[pad_left : pad_left + IW]
    plane = task * planes_per_task(geometry)
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for ow in range(OW):
        divisors[ow] = divisor_of_column(ow, geometry, scratch)
    for plane in range(plane, plane_last):
        image = grad_input[plane // IC, plane % IC]
        for ih in range(IH):
            image[ih] = 0
        for oh in range(OH):
            grads = grad_output[plane // IC, plane % IC, oh]
            rows = divisor_of_row(oh, geometry, scratch)
            for ow in range(OW):
                share[ow] = grads[ow] / (rows * divisors[ow])
            frame[:] = 0
            for kw in range(KW):
                spread_pass(share, frame[kw * dil_w :], stride_w)
            for kh in range(KH):
                ih = oh * stride_h - pad_top + kh * dil_h
                if 0 <= ih < IH:
                    row = image[ih]
                    for iw in range(spread.size):
                        row[iw] += spread[iw]


def avg_pool2d_backward_workspace(geometry, n_workers):
    """Elements of workspace of avg_pool2d_backward."""
    return n_workers * spread_size(geometry)


def avg_pool2d_backward(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    avg_pool2d_backward_task.run(plane_tasks(geometry.tolist()), n_threads, grad_output, grad_input, workspace, geometry)
