"""Convolution by its definition, and its two gradients. Formula and shapes: fastconv/_reference/direct.py.

Every sum runs over (channel, kh, kw), or for grad_weight over (n, oh, ow), in that order.
"""

from cython.parallel cimport prange, threadid

from common cimport (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH,
    GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT,
    GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_STRIDE_W, clamp, int64_t, real,
)
from common cimport VL_DOUBLE as _VL_DOUBLE
from common cimport VL_FLOAT as _VL_FLOAT

VL_FLOAT = _VL_FLOAT
VL_DOUBLE = _VL_DOUBLE


cdef void conv2d_row(
    Py_ssize_t n, Py_ssize_t oc, Py_ssize_t oh,
    const real[:, :, :, ::1] input,   # IN
    const real[:, :, :, ::1] weight,  # IN
    const real[::1] bias,             # IN
    real act_min, real act_max, bint accumulate,
    real* row,                        # OUT: OW columns
    const int64_t[::1] geometry,      # IN
) noexcept nogil:
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW], G = geometry[GEO_G]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OW = geometry[GEO_OW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t ICG = IC // G, group = oc // (geometry[GEO_OC] // G), ow, ic, kh, kw, ih, iw
        real zero = 0, total, partial
    for ow in range(OW):
        total = (row[ow] if accumulate else zero) + (bias[oc] if bias.shape[0] else zero)
        for ic in range(ICG):
            partial = 0
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


cdef void pool_row(
    const real* plane,  # IN: OW columns in a row
    real* pooled,       # OUT: pool_OW columns
    int64_t* indices,   # OUT: pool_OW columns, or NULL
    Py_ssize_t pool_oh,
    const int64_t[::1] geometry,
) noexcept nogil:
    # Max over each window; NaN wins, then the first of equals.
    cdef:
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW], pool_OW = geometry[GEO_POOL_OW]
        Py_ssize_t first_h = pool_oh * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP], first_w
        Py_ssize_t last_h = min(first_h + geometry[GEO_POOL_KH], OH), last_w, pool_ow, oh, ow, where
        real best, value
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
        if indices != NULL:
            indices[pool_ow] = where


cdef void conv2d_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,      # IN
    const real[:, :, :, ::1] weight,     # IN
    const real[::1] bias,                # IN
    real act_min, real act_max,
    real[:, :, :, ::1] output,           # OUT
    real[:, :, :, ::1] pooled,           # OUT
    int64_t[:, :, :, ::1] indices,       # OUT
    real* workspace,                     # a plane, with a fused pool
    const int64_t[::1] geometry,         # IN
) noexcept nogil:
    # A task is one plane of the output.
    cdef:
        Py_ssize_t OC = geometry[GEO_OC], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t n = task // OC, oc = task % OC, oh
        bint pool = geometry[GEO_POOL_KH] > 0, accumulate = geometry[GEO_ACCUMULATE] and not pool
    for oh in range(OH):
        conv2d_row(n, oc, oh, input, weight, bias, act_min, act_max, accumulate,
                   workspace + oh * OW if pool else &output[n, oc, oh, 0], geometry)
    if pool:
        for oh in range(geometry[GEO_POOL_OH]):
            pool_row(workspace, &pooled[n, oc, oh, 0], &indices[n, oc, oh, 0] if indices.shape[0] else NULL,
                     oh, geometry)


def conv2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: with a fused pool, a plane for each worker."""
    return n_workers * geometry[GEO_OH] * geometry[GEO_OW] if geometry[GEO_POOL_KH] > 0 else 0


def conv2d(
    const real[:, :, :, ::1] input,
    const real[:, :, :, ::1] weight,
    const real[::1] bias,
    double act_min,
    double act_max,
    real[:, :, :, ::1] output,
    real[:, :, :, ::1] pooled,
    int64_t[:, :, :, ::1] indices,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    cdef Py_ssize_t task, n_tasks = geometry[GEO_N] * geometry[GEO_OC]
    cdef Py_ssize_t slice = geometry[GEO_OH] * geometry[GEO_OW] if geometry[GEO_POOL_KH] > 0 else 0
    cdef real* scratch = &workspace[0] if workspace.shape[0] else NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        conv2d_task(task, input, weight, bias, <real> act_min, <real> act_max, output, pooled, indices,
                    scratch + slice * threadid(), geometry)


cdef void conv2d_grad_input_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,  # IN
    const real[:, :, :, ::1] weight,       # IN
    const real[::1] bias,                  # IN
    real act_min, real act_max,
    real[:, :, :, ::1] grad_input,         # OUT
    const int64_t[::1] geometry,           # IN
) noexcept nogil:
    # A task is one plane of grad_input; each cell gathers the outputs that have read it.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW], G = geometry[GEO_G]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t n = task // IC, channel = task % IC, ICG = IC // G, OCG = geometry[GEO_OC] // G
        Py_ssize_t ic = channel % ICG, group = channel // ICG, ih, iw, oc, kh, kw, oh, ow
        bint accumulate = geometry[GEO_ACCUMULATE]
        real zero = 0, total, partial
    for ih in range(IH):
        for iw in range(IW):
            total = (grad_input[n, channel, ih, iw] if accumulate else zero) + (bias[channel] if bias.shape[0] else zero)
            for oc in range(group * OCG, (group + 1) * OCG):
                partial = 0
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


def conv2d_grad_input(
    const real[:, :, :, ::1] grad_output,
    const real[:, :, :, ::1] weight,
    const real[::1] bias,
    double act_min,
    double act_max,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    cdef Py_ssize_t task, n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        conv2d_grad_input_task(task, grad_output, weight, bias, <real> act_min, <real> act_max, grad_input, geometry)


cdef void conv2d_grad_weight_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,        # IN
    const real[:, :, :, ::1] grad_output,  # IN
    real[:, :, :, ::1] grad_weight,        # OUT
    const int64_t[::1] geometry,           # IN
) noexcept nogil:
    # A task is the KH x KW entries of one (filter, channel).
    cdef:
        Py_ssize_t N = geometry[GEO_N], IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t G = geometry[GEO_G], ICG = IC // G, OCG = geometry[GEO_OC] // G
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t oc = task // ICG, ic = task % ICG, channel = oc // OCG * ICG + ic, n, oh, ow, kh, kw, ih, iw
        real zero = 0, total, plane, partial
    for kh in range(KH):
        for kw in range(KW):
            total = grad_weight[oc, ic, kh, kw] if geometry[GEO_ACCUMULATE] else zero
            for n in range(N):
                plane = 0
                for oh in range(OH):
                    partial = 0
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


def conv2d_grad_weight(
    const real[:, :, :, ::1] input,
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_weight,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate."""
    cdef Py_ssize_t task, n_tasks = geometry[GEO_OC] * (geometry[GEO_IC] // geometry[GEO_G])
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        conv2d_grad_weight_task(task, input, grad_output, grad_weight, geometry)
