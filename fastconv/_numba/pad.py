"""Copy an image with a border, and the adjoint of that copy. Formula and shapes: fastconv/_reference/pad.py."""

from fastconv._numba._jit import VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, real, task
from fastconv._problem import (
    GEO_IC,
    GEO_IH,
    GEO_IW,
    GEO_N,
    GEO_OH,
    GEO_OW,
    GEO_PAD_LEFT,
    GEO_PAD_MODE,
    GEO_PAD_TOP,
    PAD_CIRCULAR,
    PAD_REFLECT,
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


@task
def pad2d_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one plane.
    IC, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    OH, OW = geometry[GEO_OH], geometry[GEO_OW]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    mode = geometry[GEO_PAD_MODE]
    n, c = task // IC, task % IC
    # Output columns [first, last) copy a run of input columns
    first = min(max(pad_left, 0), OW)
    last = max(min(pad_left + IW, OW), first)

    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        if ih < 0:
            for ow in range(OW):
                output[n, c, oh, ow] = 0
            continue
        for ow in range(first, last):
            output[n, c, oh, ow] = input[n, c, ih, ow - pad_left]
        for ow in range(first):
            iw = source(ow - pad_left, IW, mode)
            output[n, c, oh, ow] = input[n, c, ih, iw] if iw >= 0 else 0
        for ow in range(last, OW):
            iw = source(ow - pad_left, IW, mode)
            output[n, c, oh, ow] = input[n, c, ih, iw] if iw >= 0 else 0


def pad2d(input, output, workspace, geometry, n_threads):
    """input (N, IC, IH, IW) -> output (N, IC, OH, OW)."""
    pad2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, output, geometry)


@task
def pad2d_adjoint_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one plane; its cells are summed in row-major order of the output.
    IC, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    OH, OW = geometry[GEO_OH], geometry[GEO_OW]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    mode = geometry[GEO_PAD_MODE]
    n, c = task // IC, task % IC

    for ih in range(IH):
        for iw in range(IW):
            grad_input[n, c, ih, iw] = 0
    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        if ih < 0:
            continue
        for ow in range(OW):
            iw = source(ow - pad_left, IW, mode)
            if iw >= 0:
                grad_input[n, c, ih, iw] += grad_output[n, c, oh, ow]


def pad2d_adjoint(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, OH, OW) -> grad_input (N, IC, IH, IW): each cell sums the cells that copied it."""
    pad2d_adjoint_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, grad_output, grad_input, geometry)
