"""Copy an image with a border, and the adjoint of that copy. Formula and shapes: fastconv/_reference/pad.py."""

from fastconv._numba._common import add_run
from fastconv._numba._jit import VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, real, task
from fastconv._numba._simd import address, clear, copy, get, itemsize, put, rolled
from fastconv._problem import (
    GEO_IC, GEO_IH, GEO_IW, GEO_N, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_MODE, GEO_PAD_TOP, PAD_CIRCULAR, PAD_REFLECT,
    PAD_REPLICATE,
)  # fmt: skip


@helper
def source(position, extent, mode):
    """Input position that an output position (its pad taken off) copies; -1 where the border is zero."""
    if 0 <= position < extent:
        return position
    if mode == PAD_REFLECT:
        return -position if position < 0 else 2 * (extent - 1) - position
    if mode == PAD_REPLICATE:
        return 0 if position < 0 else extent - 1
    if mode == PAD_CIRCULAR:
        return position + extent if position < 0 else position - extent
    return -1


@helper
def step_of(mode):
    """Input columns from one column of a border to the next."""
    return 1 if mode == PAD_CIRCULAR else -1 if mode == PAD_REFLECT else 0


@helper
def copy_border(target, row, from_column, to_column, iw, step, dtype):
    """Columns of the border, the first of which copies column iw of the input."""
    for ow in range(from_column, to_column):
        rolled()
        put(target, ow, get(row, iw, dtype) if iw >= 0 else dtype.type(0))
        iw += step


@task
def pad2d_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one plane.
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    mode, dtype = geometry[GEO_PAD_MODE], input.dtype
    size = itemsize(dtype)
    # Output columns [first, last) copy a run of input columns
    first = min(max(pad_left, 0), OW)
    last = max(min(pad_left + IW, OW), first)
    left, right, step = source(-pad_left, IW, mode), source(last - pad_left, IW, mode), step_of(mode)

    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        target = address(output) + (task * OH + oh) * OW * size
        if ih < 0:
            clear(target, OW * size)
            continue
        row = address(input) + (task * IH + ih) * IW * size
        copy(target + first * size, row + (first - pad_left) * size, (last - first) * size)
        copy_border(target, row, 0, first, left, step, dtype)
        copy_border(target, row, last, OW, right, step, dtype)


def pad2d(input, output, workspace, geometry, n_threads):
    """input (N, IC, IH, IW) -> output (N, IC, OH, OW)."""
    pad2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, output, geometry)


@helper
def add_border(row, grads, from_column, to_column, iw, step, dtype):
    """What columns of the border add to a row, the first of them to its column iw."""
    for ow in range(from_column, to_column):
        rolled()
        if iw >= 0:
            put(row, iw, get(row, iw, dtype) + get(grads, ow, dtype))
        iw += step


@task
def pad2d_adjoint_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one plane, whose cells sum row after row of the output: of each what lies over the image first, as vectors
    # that read a cell of the border just after it is written would wait for it.
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    mode, dtype = geometry[GEO_PAD_MODE], grad_output.dtype
    size = itemsize(dtype)
    plane = address(grad_input) + task * IH * IW * size
    first = min(max(pad_left, 0), OW)
    last = max(min(pad_left + IW, OW), first)
    left, right, step = source(-pad_left, IW, mode), source(last - pad_left, IW, mode), step_of(mode)

    clear(plane, IH * IW * size)
    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        if ih < 0:
            continue
        row, grads = plane + ih * IW * size, address(grad_output) + (task * OH + oh) * OW * size
        add_run(row + (first - pad_left) * size, grads + first * size, last - first, dtype)
        add_border(row, grads, 0, first, left, step, dtype)
        add_border(row, grads, last, OW, right, step, dtype)


def pad2d_adjoint(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, OH, OW) -> grad_input (N, IC, IH, IW): each cell sums the cells that copied it."""
    pad2d_adjoint_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, grad_output, grad_input, geometry)
