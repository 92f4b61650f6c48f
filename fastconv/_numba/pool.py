"""Max and average pooling, unpooling, and their gradients. Formula and shapes: fastconv/_reference/pool.py."""

import numpy as np

from fastconv._numba._jit import VL_DOUBLE, VL_FLOAT, const_int64, const_real, helper, index, int64, real, task
from fastconv._problem import (
    GEO_COUNT_INCLUDE_PAD,
    GEO_DIL_H,
    GEO_DIL_W,
    GEO_DIVISOR,
    GEO_IC,
    GEO_IH,
    GEO_IW,
    GEO_KH,
    GEO_KW,
    GEO_N,
    GEO_OH,
    GEO_OW,
    GEO_PAD_BOTTOM,
    GEO_PAD_LEFT,
    GEO_PAD_RIGHT,
    GEO_PAD_TOP,
    GEO_STRIDE_H,
    GEO_STRIDE_W,
)

__all__ = ["VL_DOUBLE", "VL_FLOAT"]


@helper
def first_tap(start, dil):
    """The first tap of a window that starts at ``start`` whose cell is not left of the image."""
    return (-start + dil - 1) // dil if start < 0 else 0


@helper
def last_tap(start, dil, kernel, extent):
    """One past the last tap whose cell lies in the image."""
    return min(kernel, (extent - start + dil - 1) // dil) if start < extent else 0


# ------------------------------------------------------------------------------------------------------ max pooling


@task
def max_pool2d_task(
    task: index,
    input: const_real[:, :, :, ::1],
    output: real[:, :, :, ::1],
    indices: int64[:, :, :, ::1],
    geometry: const_int64[::1],
):
    # A task is one plane.
    C, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    OH, OW = geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    n, c = task // C, task % C
    with_indices = indices.size > 0
    for oh in range(OH):
        top = oh * stride_h - geometry[GEO_PAD_TOP]
        kh_from, kh_to = first_tap(top, dil_h), last_tap(top, dil_h, geometry[GEO_KH], IH)
        for ow in range(OW):
            left = ow * stride_w - geometry[GEO_PAD_LEFT]
            kw_from, kw_to = first_tap(left, dil_w), last_tap(left, dil_w, geometry[GEO_KW], IW)
            best = output.dtype.type(-np.inf)
            where = (top + kh_from * dil_h) * IW + left + kw_from * dil_w
            for kh in range(kh_from, kh_to):
                ih = top + kh * dil_h
                for kw in range(kw_from, kw_to):
                    iw = left + kw * dil_w
                    value = input[n, c, ih, iw]
                    if value > best or (value != value and best == best):
                        best = value
                        where = ih * IW + iw
            output[n, c, oh, ow] = best
            if with_indices:
                indices[n, c, oh, ow] = where


def max_pool2d(input, output, indices, workspace, geometry, n_threads):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    max_pool2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, output, indices, geometry)


@task
def max_pool2d_backward_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],
    indices: const_int64[:, :, :, ::1],
    grad_input: real[:, :, :, ::1],
    geometry: const_int64[::1],
):
    # A task is one plane.
    C, IW = geometry[GEO_IC], geometry[GEO_IW]
    n, c = task // C, task % C
    grad_input[n, c] = 0
    for oh in range(geometry[GEO_OH]):
        for ow in range(geometry[GEO_OW]):
            cell = indices[n, c, oh, ow]
            grad_input[n, c, cell // IW, cell % IW] += grad_output[n, c, oh, ow]


def max_pool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    max_pool2d_backward_task.run(n_tasks, n_threads, grad_output, indices, grad_input, geometry)


# -------------------------------------------------------------------------------------------------------- unpooling


@task
def max_unpool2d_task(
    task: index,
    input: const_real[:, :, :, ::1],
    indices: const_int64[:, :, :, ::1],
    output: real[:, :, :, ::1],
    geometry: const_int64[::1],
):
    # A task is one plane.
    C, IW = geometry[GEO_IC], geometry[GEO_IW]
    n, c = task // C, task % C
    output[n, c] = 0
    for oh in range(geometry[GEO_OH]):
        for ow in range(geometry[GEO_OW]):
            cell = indices[n, c, oh, ow]
            output[n, c, cell // IW, cell % IW] = input[n, c, oh, ow]


def max_unpool2d(input, indices, output, workspace, geometry, n_threads):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    max_unpool2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, indices, output, geometry)


def max_unpool2d_backward_workspace(geometry, n_workers):
    """Elements of workspace: for each worker a plane of marks."""
    return n_workers * geometry[GEO_IH] * geometry[GEO_IW]


@task
def max_unpool2d_backward_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],
    indices: const_int64[:, :, :, ::1],
    grad_input: real[:, :, :, ::1],
    workspace: real[::1],
    geometry: const_int64[::1],
):
    # A task is one plane, walked backwards: the first value met for a cell is the one that stands there.
    C, IH, IW, OW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    n, c = task // C, task % C
    taken = workspace[worker * IH * IW : (worker + 1) * IH * IW]
    taken[:] = 0
    for position in range(geometry[GEO_OH] * OW - 1, -1, -1):
        oh, ow = position // OW, position % OW
        cell = indices[n, c, oh, ow]
        if taken[cell] == 0:
            grad_input[n, c, oh, ow] = grad_output[n, c, cell // IW, cell % IW]
            taken[cell] = 1
        else:
            grad_input[n, c, oh, ow] = 0


def max_unpool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    max_unpool2d_backward_task.run(n_tasks, n_threads, grad_output, indices, grad_input, workspace, geometry)


# --------------------------------------------------------------------------------------------------- average pooling


@helper
def cells_of(start, kernel, extent, pad_after, count_include_pad):
    """Cells of a window along one axis that its sum is divided by: of the padded image, or of the image alone."""
    stop = min(start + kernel, extent + pad_after)
    return stop - start if count_include_pad else min(stop, extent) - max(start, 0)


@helper
def divisor_of(geometry, top, left):
    """What the sum of the window at (top, left) is divided by."""
    if geometry[GEO_DIVISOR] != 0:
        return geometry[GEO_DIVISOR]
    include = geometry[GEO_COUNT_INCLUDE_PAD] != 0
    rows = cells_of(top, geometry[GEO_KH], geometry[GEO_IH], geometry[GEO_PAD_BOTTOM], include)
    return rows * cells_of(left, geometry[GEO_KW], geometry[GEO_IW], geometry[GEO_PAD_RIGHT], include)


@task
def avg_pool2d_task(
    task: index, input: const_real[:, :, :, ::1], output: real[:, :, :, ::1], geometry: const_int64[::1]
):
    # A task is one plane.
    C, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    n, c = task // C, task % C
    for oh in range(geometry[GEO_OH]):
        top = oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP]
        for ow in range(geometry[GEO_OW]):
            left = ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT]
            total = output.dtype.type(0)
            for ih in range(max(top, 0), min(top + geometry[GEO_KH], IH)):
                for iw in range(max(left, 0), min(left + geometry[GEO_KW], IW)):
                    total += input[n, c, ih, iw]
            output[n, c, oh, ow] = total / output.dtype.type(divisor_of(geometry, top, left))


def avg_pool2d(input, output, workspace, geometry, n_threads):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    avg_pool2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, output, geometry)


@task
def avg_pool2d_backward_task(
    task: index, grad_output: const_real[:, :, :, ::1], grad_input: real[:, :, :, ::1], geometry: const_int64[::1]
):
    # A task is one plane.
    C, IH, IW = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    n, c = task // C, task % C
    grad_input[n, c] = 0
    for oh in range(geometry[GEO_OH]):
        top = oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP]
        for ow in range(geometry[GEO_OW]):
            left = ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT]
            share = grad_output[n, c, oh, ow] / grad_output.dtype.type(divisor_of(geometry, top, left))
            for ih in range(max(top, 0), min(top + geometry[GEO_KH], IH)):
                for iw in range(max(left, 0), min(left + geometry[GEO_KW], IW)):
                    grad_input[n, c, ih, iw] += share


def avg_pool2d_backward(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    avg_pool2d_backward_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, grad_output, grad_input, geometry)
