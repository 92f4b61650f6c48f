"""Max and average pooling, unpooling, and their gradients. Meaning and shapes: fastconv/_reference/pool.py.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once. Common small windows are done at one go, in registers.
"""

from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int32_t
from libc.string cimport memcpy, memset

from common cimport (
    GEO_COUNT_INCLUDE_PAD, GEO_DIL_H, GEO_DIL_W, GEO_DIVISOR, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N,
    GEO_OH, GEO_OW, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_PAD_TOP, GEO_STRIDE_H, GEO_STRIDE_W,
    ceil_div, int64_t, real,
)
from common cimport VL_DOUBLE as _VL_DOUBLE
from common cimport VL_FLOAT as _VL_FLOAT

VL_FLOAT = _VL_FLOAT
VL_DOUBLE = _VL_DOUBLE

cdef enum:
    CELLS = 32768  # cells that a task reads at least: microseconds, against a fraction of one to start it
    PARTS = 32     # partial sums of a whole plane: two vectors at least, to hide the latency of an addition

# An integer as wide as `real`, so that both have equally many lanes: (float, int32_t), (double, int64_t).
ctypedef fused lane:
    int32_t
    int64_t


cdef inline Py_ssize_t span(Py_ssize_t kernel, Py_ssize_t dilation) noexcept nogil:
    """Cells from the first to the last of a window."""
    return (kernel - 1) * dilation + 1


cdef inline Py_ssize_t first_inside(Py_ssize_t position, Py_ssize_t dilation) noexcept nogil:
    """The first of position, position + dilation, ... that is not negative."""
    return position if position >= 0 else position + ceil_div(-position, dilation) * dilation


cdef inline Py_ssize_t whole_first(Py_ssize_t size, Py_ssize_t pad, Py_ssize_t stride) noexcept nogil:
    """The first of ``size`` output positions whose window starts inside the image."""
    return min(ceil_div(pad, stride), size)


cdef inline Py_ssize_t whole_last(
    Py_ssize_t size, Py_ssize_t pad, Py_ssize_t stride, Py_ssize_t kernel, Py_ssize_t extent
) noexcept nogil:
    """The first output position, from `whole_first` on, whose window does not end inside the image."""
    if extent + pad < kernel:
        return whole_first(size, pad, stride)
    return max(min((extent + pad - kernel) // stride + 1, size), whole_first(size, pad, stride))


# Two ways to cut the work into tasks: runs of output rows, counted through all planes, and runs of planes.
cdef inline Py_ssize_t rows_per_task(const int64_t[::1] geometry) noexcept nogil:
    return 1 + CELLS // max(geometry[GEO_OW] * geometry[GEO_KH] * geometry[GEO_KW], 1)


cdef inline Py_ssize_t planes_per_task(const int64_t[::1] geometry) noexcept nogil:
    return 1 + CELLS // max(geometry[GEO_IH] * geometry[GEO_IW], 1)


cdef inline Py_ssize_t row_tasks(const int64_t[::1] geometry) noexcept nogil:
    return ceil_div(geometry[GEO_N] * geometry[GEO_IC] * geometry[GEO_OH], rows_per_task(geometry))


cdef inline Py_ssize_t plane_tasks(const int64_t[::1] geometry) noexcept nogil:
    return ceil_div(geometry[GEO_N] * geometry[GEO_IC], planes_per_task(geometry))


# --------------------------------------------------------------------------------------- max: rules, small windows


cdef inline real larger(real best, real value) noexcept nogil:
    """The maximum: NaN wins, of equals ``best`` (zeros have signs)."""
    cdef real maximum = value if value > best else best
    return value if value != value else maximum


# Plain selections, each on one comparison: the form that GCC turns into vectors.
cdef inline void take(real value, lane cell, real* best, lane* where) noexcept nogil:
    """Replace best and where by value and cell if value is larger, or the first NaN."""
    cdef real now = best[0]
    cdef lane at = cell if not (value <= now) else where[0]
    cdef real maximum = value if not (value <= now) else now
    where[0] = at if now == now else where[0]
    best[0] = maximum if now == now else now


cdef inline real row_max(const real* x, const int KW) noexcept nogil:
    cdef real best = larger(x[0], x[1])
    if KW == 3:
        best = larger(best, x[2])
    return best


# KH, KW and stride_w are constants at each call: straight-line code over vectors of windows. A row of the window that lies
# outside the image is replaced by its neighbour inside, which is visited anyway and is not larger than itself.
cdef inline void small_max(
    const real* row0, const real* row1, const real* row2,  # IN   rows of the window, at the first window's first column
    real* output,                                          # OUT  a run of windows of one output row
    Py_ssize_t count, const int KH, const int KW, const int stride_w,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef real best
    for i in range(count):
        best = larger(row_max(row0 + i * stride_w, KW), row_max(row1 + i * stride_w, KW))
        if KH == 3:
            best = larger(best, row_max(row2 + i * stride_w, KW))
        output[i] = best


cdef inline void take_row(
    const real* x, lane cell, real* best, lane* where, const int KW, const int first
) noexcept nogil:
    if first == 0:
        take(x[0], cell, best, where)
    take(x[1], cell + 1, best, where)
    if KW == 3:
        take(x[2], cell + 2, best, where)


# Cells are numbered from the first cell of the window: row1 begins at cell1, row2 at cell2.
cdef inline void small_max_indices(
    const real* row0, const real* row1, const real* row2,  # IN
    lane cell1, lane cell2,
    real* output, int64_t* indices,                        # OUT
    int64_t first_cell, Py_ssize_t count, const int KH, const int KW, const int stride_w,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef real best
    cdef lane where
    for i in range(count):
        best = row0[i * stride_w]
        where = 0
        take_row(row0 + i * stride_w, 0, &best, &where, KW, 1)
        take_row(row1 + i * stride_w, cell1, &best, &where, KW, 0)
        if KH == 3:
            take_row(row2 + i * stride_w, cell2, &best, &where, KW, 0)
        output[i] = best
        indices[i] = first_cell + i * stride_w + where


cdef inline void small_max_row(
    const real* x, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t IH, Py_ssize_t IW,
    real* output, int64_t* indices,
    Py_ssize_t count, const int KH, const int KW, const int stride_w,
) noexcept nogil:
    """A run of windows of one row, the first at (ih, iw); their columns lie inside the image."""
    cdef:
        Py_ssize_t ih0 = max(ih, 0), ih1 = min(max(ih + 1, 0), IH - 1), ih2 = min(ih + 2, IH - 1)
        const real* row0 = x + ih0 * IW + iw
        const real* row1 = x + ih1 * IW + iw
        const real* row2 = x + ih2 * IW + iw
    if indices == NULL:
        small_max[real](row0, row1, row2, output, count, KH, KW, stride_w)
    elif real is float:
        small_max_indices[float, int32_t](
            row0, row1, row2, <int32_t> ((ih1 - ih0) * IW), <int32_t> ((ih2 - ih0) * IW),
            output, indices, ih0 * IW + iw, count, KH, KW, stride_w,
        )
    else:
        small_max_indices[double, int64_t](
            row0, row1, row2, (ih1 - ih0) * IW, (ih2 - ih0) * IW,
            output, indices, ih0 * IW + iw, count, KH, KW, stride_w,
        )


cdef inline void max_window(
    const real* x, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t IH, Py_ssize_t IW,
    real* output, int64_t* indices,
    Py_ssize_t KH, Py_ssize_t KW,
) noexcept nogil:
    """One window at (ih, iw) without dilation, clipped to the image: the windows at both ends of a row."""
    cdef:
        Py_ssize_t top = max(ih, 0), bottom = min(ih + KH, IH), left = max(iw, 0), right = min(iw + KW, IW), row, column
        real best = x[top * IW + left]
        int64_t where = top * IW + left
    for row in range(top, bottom):
        for column in range(left, right):
            take[real, int64_t](x[row * IW + column], row * IW + column, &best, &where)
    output[0] = best
    if indices != NULL:
        indices[0] = where


cdef inline bint is_small(const int64_t[::1] geometry) noexcept nogil:
    """Whether windows are 2x2 at stride_w 2, or 3x3 at stride_w 1 or 2, and their cells can be numbered in 32 bits."""
    cdef int64_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], stride_w = geometry[GEO_STRIDE_W]
    return (
        geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and KH == KW and geometry[GEO_IW] < 1 << 28
        and (KH == 2 and stride_w == 2 or KH == 3 and (stride_w == 1 or stride_w == 2))
    )


cdef void small_max_rows(
    const real* x,     # IN   a plane
    real* output,      # OUT  its output plane
    int64_t* indices,  # OUT  or NULL
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t first = whole_first(OW, pad_left, stride_w), last = whole_last(OW, pad_left, stride_w, KH, IW)
        Py_ssize_t oh, ow, ih, iw = first * stride_w - pad_left
        real* y
        int64_t* where = NULL

    for oh in range(oh_first, oh_last):
        ih = oh * stride_h - pad_top
        y = output + oh * OW
        if indices != NULL:
            where = indices + oh * OW
        for ow in range(first):
            max_window(x, ih, ow * stride_w - pad_left, IH, IW, y + ow, where + ow if where != NULL else NULL, KH, KH)
        if last > first:
            if where != NULL:
                where += first
            if KH == 2:
                small_max_row(x, ih, iw, IH, IW, y + first, where, last - first, 2, 2, 2)
            elif stride_w == 2:
                small_max_row(x, ih, iw, IH, IW, y + first, where, last - first, 3, 3, 2)
            else:
                small_max_row(x, ih, iw, IH, IW, y + first, where, last - first, 3, 3, 1)
            if where != NULL:
                where -= first
        for ow in range(last, OW):
            max_window(x, ih, ow * stride_w - pad_left, IH, IW, y + ow, where + ow if where != NULL else NULL, KH, KH)


# --------------------------------------------------------------------------------------------- max: any window


cdef inline const real* framed(
    const real* x,       # IN   an image row
    real* frame,         # OUT  memory for width cells
    Py_ssize_t width, Py_ssize_t pad_left, Py_ssize_t IW, real value,
) noexcept nogil:
    """The row as windows see it, from -pad_left on, ``value`` outside the image: x itself where that is all inside."""
    cdef Py_ssize_t i, copied = min(IW, width - pad_left)
    if pad_left == 0 and width <= IW:
        return x
    for i in range(min(pad_left, width)):
        frame[i] = value
    if copied > 0:
        memcpy(frame + pad_left, x, copied * sizeof(real))
    for i in range(pad_left + max(copied, 0), width):
        frame[i] = value
    return frame


cdef inline void max_pass(
    const real* x, real* best, int64_t* where, int64_t cell, Py_ssize_t OW, const Py_ssize_t stride_w
) noexcept nogil:
    """One column of all windows: best[ow] and where[ow] against x[ow * stride_w], which is cell + ow * stride_w."""
    cdef Py_ssize_t ow
    if where == NULL:
        for ow in range(OW):
            best[ow] = larger(best[ow], x[ow * stride_w])
    else:
        for ow in range(OW):
            take[real, int64_t](x[ow * stride_w], cell + ow * stride_w, &best[ow], &where[ow])


cdef inline void reduce_row_max(
    const real* x,           # IN   an image row as windows see it
    real* best,              # OUT  (OW)
    int64_t* where,          # OUT  (OW) columns, or NULL
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t OW = geometry[GEO_OW], KW = geometry[GEO_KW], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_left = geometry[GEO_PAD_LEFT], dil_w = geometry[GEO_DIL_W], ow, kw
    for ow in range(OW):
        best[ow] = -INFINITY
    if where != NULL:
        for ow in range(OW):
            where[ow] = first_inside(ow * stride_w - pad_left, dil_w)
    for kw in range(KW):
        if stride_w == 1:
            max_pass(x + kw * dil_w, best, where, kw * dil_w - pad_left, OW, 1)
        elif stride_w == 2:
            max_pass(x + kw * dil_w, best, where, kw * dil_w - pad_left, OW, 2)
        else:
            max_pass(x + kw * dil_w, best, where, kw * dil_w - pad_left, OW, stride_w)


# A ring of reduced rows: image row ih is in slot ih % slots, from the first window that meets it to the last.
cdef void any_max_rows(
    const real* x,       # IN
    real* output,        # OUT
    int64_t* indices,    # OUT  or NULL
    real* ring,          # TMP  ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t slots = span(KH, dil_h), width = (OW - 1) * stride_w + span(KW, dil_w)
        int64_t* columns = <int64_t*> ring
        real* values = <real*> (columns + slots * OW)
        real* frame = values + slots * OW
        Py_ssize_t oh, ow, ih, top, row, reduced = 0
        real* y
        int64_t* where = NULL
        const real* best
        const int64_t* column

    for oh in range(oh_first, oh_last):
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + slots, IH):
            reduce_row_max(
                framed[real](x + reduced * IW, frame, width, pad_left, IW, -INFINITY), values + (reduced % slots) * OW,
                columns + (reduced % slots) * OW if indices != NULL else NULL, geometry,
            )
            reduced += 1
        y = output + oh * OW
        for ow in range(OW):
            y[ow] = -INFINITY
        if indices != NULL:
            where = indices + oh * OW
            for ow in range(OW):
                where[ow] = first_inside(top, dil_h) * IW + first_inside(ow * stride_w - pad_left, dil_w)
        for row in range(KH):
            ih = top + row * dil_h
            if ih < 0 or ih >= IH:
                continue
            best = values + (ih % slots) * OW
            if indices == NULL:
                for ow in range(OW):
                    y[ow] = larger(y[ow], best[ow])
            else:
                column = columns + (ih % slots) * OW
                for ow in range(OW):
                    take[real, int64_t](best[ow], ih * IW + column[ow], &y[ow], &where[ow])


cdef inline Py_ssize_t ring_size(const int64_t[::1] geometry) noexcept nogil:
    """Elements for a ring of rows, their columns (64 bits) and a framed row; even, to keep the columns aligned."""
    cdef Py_ssize_t OW = geometry[GEO_OW]
    cdef Py_ssize_t width = (OW - 1) * geometry[GEO_STRIDE_W] + span(geometry[GEO_KW], geometry[GEO_DIL_W])
    return (3 * span(geometry[GEO_KH], geometry[GEO_DIL_H]) * OW + width + 1) // 2 * 2


cdef void max_pool2d_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,    # IN
    real[:, :, :, ::1] output,         # OUT
    int64_t[:, :, :, ::1] indices,     # OUT  or of length 0
    real* ring,                        # TMP  ring_size
    const int64_t[::1] geometry,       # IN
) noexcept nogil:
    # A task is a run of output rows, counted through all planes.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], OH = geometry[GEO_OH]
        Py_ssize_t row = task * rows_per_task(geometry), row_last, n, c, oh, oh_last
        bint small = is_small(geometry)
        int64_t* where
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * IC * OH)
    while row < row_last:
        n, c, oh = row // OH // IC, row // OH % IC, row % OH
        oh_last = min(oh + row_last - row, OH)
        where = &indices[n, c, 0, 0] if indices.shape[0] > 0 else NULL
        if small:
            small_max_rows(&input[n, c, 0, 0], &output[n, c, 0, 0], where, oh, oh_last, geometry)
        else:
            any_max_rows(&input[n, c, 0, 0], &output[n, c, 0, 0], where, ring, oh, oh_last, geometry)
        row += oh_last - oh


def max_pool2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of max_pool2d."""
    return 0 if is_small(geometry) else n_workers * ring_size(geometry)


def max_pool2d(
    const real[:, :, :, ::1] input,
    real[:, :, :, ::1] output,
    int64_t[:, :, :, ::1] indices,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    cdef Py_ssize_t task, n_tasks = row_tasks(geometry), size = 0 if is_small(geometry) else ring_size(geometry)
    cdef real* ring = &workspace[0] if size > 0 else NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        max_pool2d_task(task, input, output, indices, ring + threadid() * size, geometry)


cdef void max_pool2d_backward_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,   # IN
    const int64_t[:, :, :, ::1] indices,    # IN
    real[:, :, :, ::1] grad_input,          # OUT
    const int64_t[::1] geometry,            # IN
) noexcept nogil:
    # A task is a run of planes; gradients are added in row-major order of the output.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], cells = geometry[GEO_IH] * geometry[GEO_IW]
        Py_ssize_t windows = geometry[GEO_OH] * geometry[GEO_OW]
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, window
        const real* grads
        const int64_t* where
        real* image
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for plane in range(plane, plane_last):
        grads = &grad_output[plane // IC, plane % IC, 0, 0]
        where = &indices[plane // IC, plane % IC, 0, 0]
        image = &grad_input[plane // IC, plane % IC, 0, 0]
        memset(image, 0, cells * sizeof(real))
        for window in range(windows):
            image[where[window]] += grads[window]


def max_pool2d_backward(
    const real[:, :, :, ::1] grad_output,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    cdef Py_ssize_t task, n_tasks = plane_tasks(geometry)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        max_pool2d_backward_task(task, grad_output, indices, grad_input, geometry)


# ------------------------------------------------------------------------------------------------------ unpooling


cdef void max_unpool2d_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,         # IN
    const int64_t[:, :, :, ::1] indices,    # IN
    real[:, :, :, ::1] output,              # OUT
    const int64_t[::1] geometry,            # IN
) noexcept nogil:
    # A task is a run of planes; values are written in row-major order.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], cells = geometry[GEO_IH] * geometry[GEO_IW]
        Py_ssize_t windows = geometry[GEO_OH] * geometry[GEO_OW]
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, window
        const real* values
        const int64_t* where
        real* image
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for plane in range(plane, plane_last):
        values = &input[plane // IC, plane % IC, 0, 0]
        where = &indices[plane // IC, plane % IC, 0, 0]
        image = &output[plane // IC, plane % IC, 0, 0]
        memset(image, 0, cells * sizeof(real))
        for window in range(windows):
            image[where[window]] = values[window]


def max_unpool2d(
    const real[:, :, :, ::1] input,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    cdef Py_ssize_t task, n_tasks = plane_tasks(geometry)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        max_unpool2d_task(task, input, indices, output, geometry)


cdef void max_unpool2d_backward_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,   # IN
    const int64_t[:, :, :, ::1] indices,    # IN
    real[:, :, :, ::1] grad_input,          # OUT
    real* taken,                            # TMP  (IH * IW) whether a later value went to the cell
    const int64_t[::1] geometry,            # IN
) noexcept nogil:
    # A task is a run of planes; from the last window to the first, only the first to come keeps a cell.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], cells = geometry[GEO_IH] * geometry[GEO_IW]
        Py_ssize_t windows = geometry[GEO_OH] * geometry[GEO_OW]
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, window, cell
        const real* image
        const int64_t* where
        real* grads
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    memset(taken, 0, cells * sizeof(real))
    for plane in range(plane, plane_last):
        image = &grad_output[plane // IC, plane % IC, 0, 0]
        where = &indices[plane // IC, plane % IC, 0, 0]
        grads = &grad_input[plane // IC, plane % IC, 0, 0]
        for window in range(windows - 1, -1, -1):
            cell = where[window]
            grads[window] = image[cell] if taken[cell] == 0 else 0
            taken[cell] = 1
        for window in range(windows):
            taken[where[window]] = 0


def max_unpool2d_backward_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of max_unpool2d_backward."""
    return n_workers * geometry[GEO_IH] * geometry[GEO_IW]


def max_unpool2d_backward(
    const real[:, :, :, ::1] grad_output,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    cdef Py_ssize_t task, n_tasks = plane_tasks(geometry), cells = geometry[GEO_IH] * geometry[GEO_IW]
    cdef real* taken = &workspace[0] if cells > 0 else NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        max_unpool2d_backward_task(task, grad_output, indices, grad_input, taken + threadid() * cells, geometry)


# --------------------------------------------------------------------------------------------------------- average


cdef inline Py_ssize_t covered(
    Py_ssize_t position, Py_ssize_t kernel, Py_ssize_t pad, Py_ssize_t extent, Py_ssize_t pad_after, bint with_pad
) noexcept nogil:
    """Cells along one axis that a window counts: those of the padded image, or of the image alone."""
    cdef Py_ssize_t stop = min(position + kernel, extent + pad_after)
    if with_pad:
        return stop - position
    return min(stop, extent) - max(position, 0)


cdef inline real divisor_of_row(Py_ssize_t oh, const int64_t[::1] geometry, real* same_type) noexcept nogil:
    """Rows that the windows of output row oh count; with ``divisor`` 1."""
    if geometry[GEO_DIVISOR] != 0:
        return 1
    return <real> covered(
        oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP], geometry[GEO_KH], geometry[GEO_PAD_TOP], geometry[GEO_IH],
        geometry[GEO_PAD_BOTTOM], geometry[GEO_COUNT_INCLUDE_PAD],
    )


cdef inline real divisor_of_column(Py_ssize_t ow, const int64_t[::1] geometry, real* same_type) noexcept nogil:
    """Columns that the windows of output column ow count; with ``divisor`` that itself."""
    if geometry[GEO_DIVISOR] != 0:
        return <real> geometry[GEO_DIVISOR]
    return <real> covered(
        ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT], geometry[GEO_KW], geometry[GEO_PAD_LEFT], geometry[GEO_IW],
        geometry[GEO_PAD_RIGHT], geometry[GEO_COUNT_INCLUDE_PAD],
    )


cdef inline real row_sum(const real* x, const int KW) noexcept nogil:
    if KW == 3:
        return x[0] + x[1] + x[2]
    return x[0] + x[1]


# As small_max, but a row outside the image is a row of zeros.
cdef inline void small_average(
    const real* row0, const real* row1, const real* row2,  # IN
    real* output, real divisor,                            # OUT
    Py_ssize_t count, const int KH, const int KW, const int stride_w,
) noexcept nogil:
    cdef Py_ssize_t i
    cdef real total
    for i in range(count):
        total = row_sum(row0 + i * stride_w, KW) + row_sum(row1 + i * stride_w, KW)
        if KH == 3:
            total += row_sum(row2 + i * stride_w, KW)
        output[i] = total / divisor


cdef inline real window_sum(
    const real* x, Py_ssize_t ih, Py_ssize_t iw, Py_ssize_t IH, Py_ssize_t IW, Py_ssize_t KH, Py_ssize_t KW
) noexcept nogil:
    """One window at (ih, iw) without dilation, clipped to the image."""
    cdef real total = 0
    cdef Py_ssize_t row, column
    for row in range(max(ih, 0), min(ih + KH, IH)):
        for column in range(max(iw, 0), min(iw + KW, IW)):
            total += x[row * IW + column]
    return total


cdef void small_average_rows(
    const real* x,      # IN   a plane
    real* output,       # OUT  its output plane
    real* zeros,        # TMP  (IW)
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t first = whole_first(OW, pad_left, stride_w), last = whole_last(OW, pad_left, stride_w, KH, IW)
        Py_ssize_t oh, ow, ih, iw = first * stride_w - pad_left
        real rows
        real* y
        const real* row0
        const real* row1
        const real* row2

    memset(zeros, 0, IW * sizeof(real))
    for oh in range(oh_first, oh_last):
        ih = oh * stride_h - pad_top
        y = output + oh * OW
        rows = divisor_of_row(oh, geometry, y)
        for ow in range(first):
            y[ow] = window_sum(x, ih, ow * stride_w - pad_left, IH, IW, KH, KH) / (rows * divisor_of_column(ow, geometry, y))
        if last > first:
            row0 = (x + ih * IW if 0 <= ih < IH else zeros) + iw
            row1 = (x + (ih + 1) * IW if 0 <= ih + 1 < IH else zeros) + iw
            row2 = (x + (ih + 2) * IW if 0 <= ih + 2 < IH else zeros) + iw
            rows *= divisor_of_column(first, geometry, y)
            if KH == 2:
                small_average(row0, row1, row2, y + first, rows, last - first, 2, 2, 2)
            elif stride_w == 2:
                small_average(row0, row1, row2, y + first, rows, last - first, 3, 3, 2)
            else:
                small_average(row0, row1, row2, y + first, rows, last - first, 3, 3, 1)
            rows = divisor_of_row(oh, geometry, y)
        for ow in range(last, OW):
            y[ow] = window_sum(x, ih, ow * stride_w - pad_left, IH, IW, KH, KH) / (rows * divisor_of_column(ow, geometry, y))


cdef inline real run_sum(const real* x, Py_ssize_t count) noexcept nogil:
    """The sum of a run of cells, by PARTS partial sums."""
    cdef real parts[PARTS]
    cdef real total = 0
    cdef Py_ssize_t i, part
    for part in range(PARTS):
        parts[part] = 0
    for i in range(count // PARTS):
        for part in range(PARTS):
            parts[part] += x[i * PARTS + part]
    for part in range(PARTS):
        total += parts[part]
    for i in range(count // PARTS * PARTS, count):
        total += x[i]
    return total


cdef inline void add_pass(const real* x, real* sums, Py_ssize_t OW, const Py_ssize_t stride_w) noexcept nogil:
    """One column of all windows: sums[ow] += x[ow * stride_w]."""
    cdef Py_ssize_t ow
    for ow in range(OW):
        sums[ow] += x[ow * stride_w]


cdef inline void reduce_row_sum(
    const real* x,           # IN   an image row as windows see it
    real* sums,              # OUT  (OW)
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t OW = geometry[GEO_OW], KW = geometry[GEO_KW], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_w = geometry[GEO_DIL_W], kw
    if OW == 1 and dil_w == 1:
        sums[0] = run_sum(x, KW)
        return
    memset(sums, 0, OW * sizeof(real))
    for kw in range(KW):
        if stride_w == 1:
            add_pass(x + kw * dil_w, sums, OW, 1)
        elif stride_w == 2:
            add_pass(x + kw * dil_w, sums, OW, 2)
        else:
            add_pass(x + kw * dil_w, sums, OW, stride_w)


# The ring of any_max_rows, with sums.
cdef void any_average_rows(
    const real* x,       # IN
    real* output,        # OUT
    real* ring,          # TMP  ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t[::1] geometry,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t slots = span(KH, dil_h), width = (OW - 1) * stride_w + span(KW, dil_w)
        real* values = ring
        real* divisors = values + slots * OW
        real* frame = divisors + OW
        Py_ssize_t oh, ow, ih, top, row, reduced = 0
        real rows
        real* y
        const real* sums

    for ow in range(OW):
        divisors[ow] = divisor_of_column(ow, geometry, output)
    for oh in range(oh_first, oh_last):
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + slots, IH):
            reduce_row_sum[real](
                framed[real](x + reduced * IW, frame, width, pad_left, IW, 0), values + (reduced % slots) * OW, geometry
            )
            reduced += 1
        y = output + oh * OW
        memset(y, 0, OW * sizeof(real))
        for row in range(KH):
            ih = top + row * dil_h
            if ih < 0 or ih >= IH:
                continue
            sums = values + (ih % slots) * OW
            for ow in range(OW):
                y[ow] += sums[ow]
        rows = divisor_of_row(oh, geometry, y)
        for ow in range(OW):
            y[ow] = y[ow] / (rows * divisors[ow])


cdef inline bint is_plane(const int64_t[::1] geometry) noexcept nogil:
    """Whether the window is just the plane."""
    return (
        geometry[GEO_KH] == geometry[GEO_IH] and geometry[GEO_KW] == geometry[GEO_IW]
        and geometry[GEO_OH] == 1 and geometry[GEO_OW] == 1 and geometry[GEO_PAD_TOP] == 0 and geometry[GEO_PAD_LEFT] == 0
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1
    )


cdef void avg_pool2d_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,    # IN
    real[:, :, :, ::1] output,         # OUT
    real* scratch,                     # TMP
    const int64_t[::1] geometry,       # IN
) noexcept nogil:
    # A task is a run of output rows, counted through all planes.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], OH = geometry[GEO_OH]
        Py_ssize_t row = task * rows_per_task(geometry), row_last, n, c, oh, oh_last
        const real* x
        real* y
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * IC * OH)
    while row < row_last:
        n, c, oh = row // OH // IC, row // OH % IC, row % OH
        oh_last = min(oh + row_last - row, OH)
        x = &input[n, c, 0, 0]
        y = &output[n, c, 0, 0]
        if is_plane(geometry):
            y[0] = run_sum(x, geometry[GEO_IH] * geometry[GEO_IW]) / (
                divisor_of_row(0, geometry, y) * divisor_of_column(0, geometry, y)
            )
        elif is_small(geometry):
            small_average_rows(x, y, scratch, oh, oh_last, geometry)
        else:
            any_average_rows(x, y, scratch, oh, oh_last, geometry)
        row += oh_last - oh


cdef inline Py_ssize_t average_size(const int64_t[::1] geometry) noexcept nogil:
    """Elements for a ring of rows, the divisors and a framed row; for small windows a row of zeros."""
    cdef Py_ssize_t OW = geometry[GEO_OW]
    if is_plane(geometry):
        return 0
    if is_small(geometry):
        return geometry[GEO_IW]
    return (span(geometry[GEO_KH], geometry[GEO_DIL_H]) + 1) * OW + (
        (OW - 1) * geometry[GEO_STRIDE_W] + span(geometry[GEO_KW], geometry[GEO_DIL_W])
    )


def avg_pool2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of avg_pool2d."""
    return n_workers * average_size(geometry)


def avg_pool2d(
    const real[:, :, :, ::1] input,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    cdef Py_ssize_t task, n_tasks = row_tasks(geometry), size = average_size(geometry)
    cdef real* scratch = &workspace[0] if size > 0 else NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        avg_pool2d_task(task, input, output, scratch + threadid() * size, geometry)


cdef inline void spread_pass(const real* share, real* frame, Py_ssize_t OW, const Py_ssize_t stride_w) noexcept nogil:
    """One column of all windows: frame[ow * stride_w] += share[ow]."""
    cdef Py_ssize_t ow
    for ow in range(OW):
        frame[ow * stride_w] += share[ow]


cdef void avg_pool2d_backward_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,   # IN
    real[:, :, :, ::1] grad_input,          # OUT
    real* scratch,                          # TMP  spread_size
    const int64_t[::1] geometry,            # IN
) noexcept nogil:
    # A task is a run of planes. A row of gradients is spread along its windows' columns once, then added to their rows.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t width = (OW - 1) * stride_w + span(KW, dil_w), reach = min(width - pad_left, IW)
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, oh, ow, ih, iw, kh, kw
        real* divisors = scratch
        real* share = divisors + OW
        real* frame = share + OW
        real rows
        const real* grads
        real* image
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * IC)
    for ow in range(OW):
        divisors[ow] = divisor_of_column(ow, geometry, scratch)
    for plane in range(plane, plane_last):
        image = &grad_input[plane // IC, plane % IC, 0, 0]
        memset(image, 0, IH * IW * sizeof(real))
        for oh in range(OH):
            grads = &grad_output[plane // IC, plane % IC, oh, 0]
            rows = divisor_of_row(oh, geometry, scratch)
            for ow in range(OW):
                share[ow] = grads[ow] / (rows * divisors[ow])
            memset(frame, 0, width * sizeof(real))
            for kw in range(KW):
                if stride_w == 1:
                    spread_pass(share, frame + kw * dil_w, OW, 1)
                else:
                    spread_pass(share, frame + kw * dil_w, OW, stride_w)
            for kh in range(KH):
                ih = oh * stride_h - pad_top + kh * dil_h
                if 0 <= ih < IH:
                    for iw in range(reach):
                        image[ih * IW + iw] += frame[pad_left + iw]


cdef inline Py_ssize_t spread_size(const int64_t[::1] geometry) noexcept nogil:
    """Elements for the divisors, a row of shares, and that row spread."""
    cdef Py_ssize_t OW = geometry[GEO_OW]
    return 2 * OW + (OW - 1) * geometry[GEO_STRIDE_W] + span(geometry[GEO_KW], geometry[GEO_DIL_W])


def avg_pool2d_backward_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of avg_pool2d_backward."""
    return n_workers * spread_size(geometry)


def avg_pool2d_backward(
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    cdef Py_ssize_t task, n_tasks = plane_tasks(geometry), size = spread_size(geometry)
    cdef real* scratch = &workspace[0]
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        avg_pool2d_backward_task(task, grad_output, grad_input, scratch + threadid() * size, geometry)
