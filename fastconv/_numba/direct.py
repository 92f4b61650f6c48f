"""Convolution by its definition, and its two gradients. Formula and shapes: fastconv/_reference/direct.py.

Every sum runs over (channel, kh, kw), or for grad_weight over (n, oh, ow), in that order.
"""

from fastconv._numba._jit import (  # noqa: F401
    VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, int64, real, task,
)  # fmt: skip
from fastconv._problem import (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH,
    GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT,
    GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_STRIDE_W,
)  # fmt: skip


@helper
def clamp(value, low, high):
    """value within [low, high]; NaN stays NaN: both comparisons are false for it."""
    if value < low:
        return low
    if value > high:
        return high
    return value


@helper
def conv2d_row(n, oc, oh, input, weight, bias, act_min, act_max, accumulate, row, geometry):
    IC, IH, IW, G = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_G]
    KH, KW, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    ICG, group = IC // G, oc // (geometry[GEO_OC] // G)
    zero = weight.dtype.type(0)
    for ow in range(OW):
        total = (row[ow] if accumulate else zero) + (bias[oc] if bias.size else zero)
        for ic in range(ICG):
            partial = zero
            for kh in range(KH):
                ih = oh * stride_h - pad_top + kh * dil_h
                for kw in range(KW):
                    iw = ow * stride_w - pad_left + kw * dil_w
                    if 0 <= ih < IH and 0 <= iw < IW:
                        partial += input[n, group * ICG + ic, ih, iw] * weight[oc, ic, kh, kw]
                    else:  # padding is a zero that is multiplied: NaN where the weight is not finite
                        partial += zero * weight[oc, ic, kh, kw]
            total += partial
        row[ow] = clamp(total, act_min, act_max)


@helper
def pool_row(plane, pooled, indices, pool_oh, geometry):
    # Max over each window; NaN wins, then the first of equals.
    OH, OW, pool_OW = geometry[GEO_OH], geometry[GEO_OW], geometry[GEO_POOL_OW]
    first_h = pool_oh * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP]
    last_h = min(first_h + geometry[GEO_POOL_KH], OH)
    first_h = max(first_h, 0)
    for pool_ow in range(pool_OW):
        first_w = pool_ow * geometry[GEO_POOL_STRIDE_W] - geometry[GEO_POOL_PAD_LEFT]
        last_w = min(first_w + geometry[GEO_POOL_KW], OW)
        first_w = max(first_w, 0)
        where = first_h * OW + first_w
        best = plane[where]
        for oh in range(first_h, last_h):
            for ow in range(first_w, last_w):
                value = plane[oh * OW + ow]
                if value > best or (value != value and best == best):
                    best = value
                    where = oh * OW + ow
        pooled[pool_ow] = best
        if indices.size:
            indices[pool_ow] = where


@task
def conv2d_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    output: real[:, :, :, ::1],  # OUT
    pooled: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT
    workspace: real[::1],  # a plane, with a fused pool
    geometry: const_int64[::1],  # IN
):
    # A task is one plane of the output.
    OC, OH, OW = geometry[GEO_OC], geometry[GEO_OH], geometry[GEO_OW]
    n, oc = task // OC, task % OC
    pool = geometry[GEO_POOL_KH] > 0
    accumulate = geometry[GEO_ACCUMULATE] != 0 and not pool
    plane = workspace[worker * OH * OW : (worker + 1) * OH * OW]
    for oh in range(OH):
        row = plane[oh * OW : (oh + 1) * OW] if pool else output[n, oc, oh]
        conv2d_row(n, oc, oh, input, weight, bias, act_min, act_max, accumulate, row, geometry)
    if pool:
        nowhere = indices[:0, 0, 0, 0]
        for oh in range(geometry[GEO_POOL_OH]):
            if indices.size:
                pool_row(plane, pooled[n, oc, oh], indices[n, oc, oh], oh, geometry)
            else:
                pool_row(plane, pooled[n, oc, oh], nowhere, oh, geometry)


def conv2d_workspace(geometry, n_workers):
    """Elements of workspace: with a fused pool, a plane for each worker."""
    return n_workers * geometry[GEO_OH] * geometry[GEO_OW] if geometry[GEO_POOL_KH] > 0 else 0


def conv2d(input, weight, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    n_tasks = geometry[GEO_N] * geometry[GEO_OC]
    conv2d_task.run(
        n_tasks, n_threads, input, weight, bias, act_min, act_max, output, pooled, indices, workspace, geometry
    )


@task
def conv2d_grad_input_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one plane of grad_input; each cell gathers the outputs that have read it.
    IC, IH, IW, G = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_G]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    n, channel, ICG, OCG = task // IC, task % IC, IC // G, geometry[GEO_OC] // G
    ic, group = channel % ICG, channel // ICG
    accumulate = geometry[GEO_ACCUMULATE] != 0
    zero = weight.dtype.type(0)
    for ih in range(IH):
        for iw in range(IW):
            total = (grad_input[n, channel, ih, iw] if accumulate else zero) + (bias[channel] if bias.size else zero)
            for oc in range(group * OCG, (group + 1) * OCG):
                partial = zero
                for kh in range(KH):
                    oh = ih + pad_top - kh * dil_h
                    if oh < 0 or oh % stride_h or oh // stride_h >= OH:
                        continue
                    for kw in range(KW):
                        ow = iw + pad_left - kw * dil_w
                        if ow < 0 or ow % stride_w or ow // stride_w >= OW:
                            continue
                        partial += grad_output[n, oc, oh // stride_h, ow // stride_w] * weight[oc, ic, kh, kw]
                total += partial
            grad_input[n, channel, ih, iw] = clamp(total, act_min, act_max)


def conv2d_grad_input(grad_output, weight, bias, act_min, act_max, grad_input, workspace, geometry, n_threads):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    conv2d_grad_input_task.run(
        n_tasks, n_threads, grad_output, weight, bias, act_min, act_max, grad_input, geometry
    )


@task
def conv2d_grad_weight_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_weight: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is the KH x KW entries of one (filter, channel).
    N, IC, IH, IW = geometry[GEO_N], geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    ICG, OCG = IC // geometry[GEO_G], geometry[GEO_OC] // geometry[GEO_G]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    oc, ic = task // ICG, task % ICG
    channel = oc // OCG * ICG + ic
    zero = input.dtype.type(0)
    for kh in range(KH):
        for kw in range(KW):
            total = grad_weight[oc, ic, kh, kw] if geometry[GEO_ACCUMULATE] else zero
            for n in range(N):
                plane = zero
                for oh in range(OH):
                    partial = zero
                    ih = oh * stride_h - pad_top + kh * dil_h
                    for ow in range(OW):
                        iw = ow * stride_w - pad_left + kw * dil_w
                        if 0 <= ih < IH and 0 <= iw < IW:
                            partial += grad_output[n, oc, oh, ow] * input[n, channel, ih, iw]
                        else:
                            partial += grad_output[n, oc, oh, ow] * zero
                    plane += partial
                total += plane
            grad_weight[oc, ic, kh, kw] = total


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate."""
    n_tasks = geometry[GEO_OC] * (geometry[GEO_IC] // geometry[GEO_G])
    conv2d_grad_weight_task.run(n_tasks, n_threads, input, grad_output, grad_weight, geometry)
