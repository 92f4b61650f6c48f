"""Copy an image with a border, and the adjoint of that copy. Formula and shapes: fastconv/_reference/pad.py."""

from cython.parallel cimport prange
from libc.string cimport memcpy, memset

from common cimport (
    GEO_IC, GEO_IH, GEO_IW, GEO_N, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_MODE, GEO_PAD_TOP,
    PAD_CIRCULAR, PAD_REFLECT, PAD_REPLICATE, int64_t, real,
)


cdef inline Py_ssize_t source(Py_ssize_t position, Py_ssize_t extent, int64_t mode) noexcept nogil:
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


cdef void pad2d_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,  # IN
    real[:, :, :, ::1] output,       # OUT
    const int64_t[::1] geometry,     # IN
) noexcept nogil:
    # A task is one plane.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        int64_t mode = geometry[GEO_PAD_MODE]
        Py_ssize_t n = task // IC, c = task % IC, oh, ow, ih, iw
        # Output columns [first, last) copy a run of input columns
        Py_ssize_t first = min(max(pad_left, 0), OW), last = max(min(pad_left + IW, OW), first)

    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        if ih < 0:
            memset(&output[n, c, oh, 0], 0, OW * sizeof(real))
            continue
        if last > first:
            memcpy(&output[n, c, oh, first], &input[n, c, ih, first - pad_left], (last - first) * sizeof(real))
        for ow in range(first):
            iw = source(ow - pad_left, IW, mode)
            output[n, c, oh, ow] = input[n, c, ih, iw] if iw >= 0 else 0
        for ow in range(last, OW):
            iw = source(ow - pad_left, IW, mode)
            output[n, c, oh, ow] = input[n, c, ih, iw] if iw >= 0 else 0


def pad2d(
    const real[:, :, :, ::1] input,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, IC, IH, IW) -> output (N, IC, OH, OW)."""
    cdef Py_ssize_t task, n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        pad2d_task(task, input, output, geometry)


cdef void pad2d_adjoint_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,  # IN
    real[:, :, :, ::1] grad_input,         # OUT
    const int64_t[::1] geometry,           # IN
) noexcept nogil:
    # A task is one plane; its cells are summed in row-major order of the output.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        int64_t mode = geometry[GEO_PAD_MODE]
        Py_ssize_t n = task // IC, c = task % IC, oh, ow, ih, iw

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


def pad2d_adjoint(
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_output (N, IC, OH, OW) -> grad_input (N, IC, IH, IW): each cell sums the cells that copied it."""
    cdef Py_ssize_t task, n_tasks = geometry[GEO_N] * geometry[GEO_IC]
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        pad2d_adjoint_task(task, grad_output, grad_input, geometry)
