"""Copy an image with a border, and the adjoint of that copy. Formula and shapes: fastconv/_reference/pad.py."""

from libc.string cimport memcpy, memset

from common cimport (
    GEO_IC, GEO_IH, GEO_IW, GEO_N, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_MODE, GEO_PAD_TOP,
    Copy, PAD_CIRCULAR, PAD_REFLECT, PAD_REPLICATE, cells_of, each_task, int64_t, real, rolled, team_join,
)

team_join()


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


cdef inline Py_ssize_t step_of(int64_t mode) noexcept nogil:
    """Input columns from one column of a border to the next."""
    return 1 if mode == PAD_CIRCULAR else -1 if mode == PAD_REFLECT else 0


cdef inline void copy_border(
    real* target, const real* row, Py_ssize_t from_column, Py_ssize_t to_column, Py_ssize_t iw, Py_ssize_t step,
) noexcept nogil:
    """Columns of the border, the first of which copies column iw of the input."""
    cdef Py_ssize_t ow
    for ow in range(from_column, to_column):
        rolled()
        target[ow] = row[iw] if iw >= 0 else 0
        iw += step


cdef void pad2d_task(
    Py_ssize_t task,
    const real* input,        # IN
    real* output,             # OUT
    const int64_t* geometry,  # IN
) noexcept nogil:
    # A task is one plane.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        int64_t mode = geometry[GEO_PAD_MODE]
        Py_ssize_t oh, ih, step = step_of(mode)
        # Output columns [first, last) copy a run of input columns
        Py_ssize_t first = min(max(pad_left, 0), OW), last = max(min(pad_left + IW, OW), first)
        Py_ssize_t left = source(-pad_left, IW, mode), right = source(last - pad_left, IW, mode)
        const real* row
        real* target

    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        target = output + (task * OH + oh) * OW
        if ih < 0:
            memset(target, 0, OW * sizeof(real))
            continue
        row = input + (task * IH + ih) * IW
        if last > first:
            memcpy(target + first, row + first - pad_left, (last - first) * sizeof(real))
        copy_border(target, row, 0, first, left, step)
        copy_border(target, row, last, OW, right, step)


cdef void pad2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Copy* c = <const Copy*> job
    if c.itemsize == sizeof(float):
        pad2d_task(task, <const float*> c.source, <float*> c.target, c.geometry)
    else:
        pad2d_task(task, <const double*> c.source, <double*> c.target, c.geometry)


def pad2d(
    const real[:, :, :, ::1] input,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, IC, IH, IW) -> output (N, IC, OH, OW)."""
    cdef:
        const int64_t* g = &geometry[0]
        Copy job = Copy(
            sizeof(real), cells_of(input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]),
            <void*> cells_of(output, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), g,
        )
    with nogil:
        each_task(pad2d_entry, &job, g[GEO_N] * g[GEO_IC], n_threads)


cdef inline void add_border(
    real* row, const real* grads, Py_ssize_t from_column, Py_ssize_t to_column, Py_ssize_t iw, Py_ssize_t step,
) noexcept nogil:
    """What columns of the border add to a row, the first of them to its column iw."""
    cdef Py_ssize_t ow
    for ow in range(from_column, to_column):
        rolled()
        if iw >= 0:
            row[iw] += grads[ow]
        iw += step


cdef void pad2d_adjoint_task(
    Py_ssize_t task,
    const real* grad_output,  # IN
    real* grad_input,         # OUT
    const int64_t* geometry,  # IN
) noexcept nogil:
    # A task is one plane, whose cells sum row after row of the output: of each what lies over the image first, as vectors
    # that read a cell of the border just after it is written would wait for it.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        int64_t mode = geometry[GEO_PAD_MODE]
        Py_ssize_t oh, ow, ih, step = step_of(mode)
        Py_ssize_t first = min(max(pad_left, 0), OW), last = max(min(pad_left + IW, OW), first)
        Py_ssize_t left = source(-pad_left, IW, mode), right = source(last - pad_left, IW, mode)
        const real* grads
        real* row
        real* plane = grad_input + task * IH * IW

    memset(plane, 0, IH * IW * sizeof(real))
    for oh in range(OH):
        ih = source(oh - pad_top, IH, mode)
        if ih < 0:
            continue
        row, grads = plane + ih * IW, grad_output + (task * OH + oh) * OW
        for ow in range(first, last):
            row[ow - pad_left] += grads[ow]
        add_border(row, grads, 0, first, left, step)
        add_border(row, grads, last, OW, right, step)


cdef void pad2d_adjoint_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Copy* c = <const Copy*> job
    if c.itemsize == sizeof(float):
        pad2d_adjoint_task(task, <const float*> c.source, <float*> c.target, c.geometry)
    else:
        pad2d_adjoint_task(task, <const double*> c.source, <double*> c.target, c.geometry)


def pad2d_adjoint(
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_output (N, IC, OH, OW) -> grad_input (N, IC, IH, IW): each cell sums the cells that copied it."""
    cdef:
        const int64_t* g = &geometry[0]
        Copy job = Copy(
            sizeof(real), cells_of(grad_output, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]),
            <void*> cells_of(grad_input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), g,
        )
    with nogil:
        each_task(pad2d_adjoint_entry, &job, g[GEO_N] * g[GEO_IC], n_threads)
