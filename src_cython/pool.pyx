"""Max and average pooling, unpooling, and their gradients. Meaning and shapes: fastconv/_reference/pool.py.

How windows are reduced on vectors: max_pool.pxd. Means go the same way, with sums for maxima.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset

from common cimport (
    GEO_COUNT_INCLUDE_PAD, GEO_DIL_H, GEO_DIL_W, GEO_DIVISOR, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N,
    GEO_OH, GEO_OW, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_PAD_TOP, GEO_STRIDE_H, GEO_STRIDE_W,
    GEO_TURNED, address_in, address_out, ceil_div, cells_of, each_task, int64_t, lines, real, real_itemsize, start_of_row,
    team_join, vd, vec, vf,
)
from common cimport VL_DOUBLE as _VL_DOUBLE
from common cimport VL_FLOAT as _VL_FLOAT
from lanes cimport high_f, low_f  # no-cython-lint: spread_tiles calls them
from max_pool cimport (
    block_inside, first_inside, has_flags, is_common, is_seamless, is_tiling, max_of_planes, max_ring_size, put, ring_slots,
    row_size, rows_inside, span, spread, tap, untangle,
)

team_join()

cdef extern from *:
    """
    /* Pairs of elements, ordered so that low and high of lanes.pxd deal them out in their order. */
    #if FASTCONV_VL == 16
    #define APART ((vdi){0, 4, 1, 5, 2, 6, 3, 7})
    #elif FASTCONV_VL == 8
    #define APART ((vdi){0, 2, 1, 3})
    #else
    #define APART ((vdi){0, 1})
    #endif
    #define POOL_APART(v) POOL_SHUFFLE(VL_DOUBLE, (vdi)(v), (vdi)(v), APART)

    /* Indices as cells, apart; beyond: what does not fit into a cell. */
    POOL vfi apart_indices_f(const int64_t *p, vfi *beyond)
    {
        vf a = *(const vf *)p, b = *(const vf *)(p + VL_DOUBLE); /* of floats this shuffle is one instruction */
        *beyond = (vfi)POOL_SHUFFLE(VL_FLOAT, a, b, EVEN_F + 1);
        return (vfi)POOL_SHUFFLE(VL_FLOAT, a, b, EVEN_F);
    }
    POOL vdi apart_indices_d(const int64_t *p, vdi *beyond)
    {
        *beyond = (vdi){0};
        return POOL_APART(*(const vdi *)p);
    }

    /* A vector of tiles of 2x2: each value goes to the cell of its tile that its index names, 0 to the other three.
       flags: of the lanes, of those that `wanted` has flags for, whose index names another cell. */
    #define POOL_SPREAD_TILES(S, type, vec, cells, VL) \
    POOL void spread_tiles_##S( \
        vec *flags, const type *values, const int64_t *indices, type *upper, type *lower, \
        int64_t first_cell, Py_ssize_t IW, vec wanted) \
    { \
        cells lane; \
        for (int i = 0; i < VL; i++) lane[i] = 2 * i; \
        lane = (cells)POOL_APART(lane); \
        vec value = (vec)POOL_APART(*(const vec *)values); \
        cells beyond, tap = apart_indices_##S(indices, &beyond) - lane - (type##_lane)first_cell; \
        cells tap0 = tap == 0, tap1 = tap == 1, tap2 = tap == (type##_lane)IW, tap3 = tap == (type##_lane)(IW + 1); \
        *flags = (vec)((cells)*flags | beyond | (~(tap0 | tap1 | tap2 | tap3) & (cells)wanted)); \
        vec left = (vec)((cells)value & tap0), right = (vec)((cells)value & tap1); \
        *(vec *)upper = low_##S(left, right); \
        *(vec *)(upper + VL) = high_##S(left, right); \
        left = (vec)((cells)value & tap2), right = (vec)((cells)value & tap3); \
        *(vec *)lower = low_##S(left, right); \
        *(vec *)(lower + VL) = high_##S(left, right); \
    }
    /* Flags of the first `count` lanes, apart. */
    #define POOL_FIRST_FLAGS(S, type, vec, cells, VL) \
    POOL void first_flags_##S(vec *flags, Py_ssize_t count) \
    { \
        cells lane; \
        for (int i = 0; i < VL; i++) lane[i] = i; \
        *flags = (vec)((cells)POOL_APART(lane) < (type##_lane)(count < VL ? count : VL)); \
    }
    POOL_FIRST_FLAGS(f, float, vf, vfi, VL_FLOAT)
    POOL_FIRST_FLAGS(d, double, vd, vdi, VL_DOUBLE)
    #define first_flags(flags, count) POOL_OF(first_flags, *(flags))(flags, count)
    POOL_SPREAD_TILES(f, float, vf, vfi, VL_FLOAT)
    POOL_SPREAD_TILES(d, double, vd, vdi, VL_DOUBLE)
    #define spread_tiles(flags, values, indices, upper, lower, first_cell, IW, wanted) \
        POOL_OF(spread_tiles, *(flags))(flags, (void *)(values), indices, (void *)(upper), (void *)(lower), first_cell, IW, wanted)
    """
    void first_flags(...) nogil   # (flags, count)
    void spread_tiles(...) nogil  # (flags, values, indices, upper, lower, first_cell, IW, wanted)

VL_FLOAT = _VL_FLOAT
VL_DOUBLE = _VL_DOUBLE

cdef enum:
    FIELDS = GEO_TURNED + 1  # of the geometry
    CELLS = 32768  # cells that a task reads at least: microseconds, against a fraction of one to start it

# Two ways to cut the work into tasks: runs of output rows, counted through all planes, and runs of planes.
cdef inline Py_ssize_t rows_per_task(const int64_t* geometry) noexcept nogil:
    """Of whole planes, if they hold several."""
    cdef Py_ssize_t rows = 1 + CELLS // max(geometry[GEO_OW] * geometry[GEO_KH] * geometry[GEO_KW], 1)
    return max(rows // max(geometry[GEO_OH], 1) * geometry[GEO_OH], min(rows, geometry[GEO_OH]))


cdef inline Py_ssize_t planes_per_task(const int64_t* geometry) noexcept nogil:
    return 1 + CELLS // max(geometry[GEO_IH] * geometry[GEO_IW], 1)


cdef inline Py_ssize_t row_tasks(const int64_t* geometry) noexcept nogil:
    return ceil_div(geometry[GEO_N] * geometry[GEO_IC] * geometry[GEO_OH], rows_per_task(geometry))


cdef inline Py_ssize_t plane_tasks(const int64_t* geometry) noexcept nogil:
    return ceil_div(geometry[GEO_N] * geometry[GEO_IC], planes_per_task(geometry))


# What the tasks of a kernel share.
cdef struct Pool:
    Py_ssize_t itemsize
    const void* source
    int64_t* indices
    void* target
    int64_t* outside
    void* workspace
    Py_ssize_t slice     # elements of workspace for each worker
    const int64_t* geometry


# ---------------------------------------------------------------------------------------------------- max pooling

cdef void max_pool2d_task(
    Py_ssize_t task,
    const real* input,             # IN
    real* output,                  # OUT
    int64_t* indices,              # OUT  or NULL
    real* ring,                    # TMP  max_ring_size
    const int64_t* geometry,       # IN
) noexcept nogil:
    # A task is a run of output rows, counted through all planes; where no index tells planes apart they may be one.
    cdef:
        int64_t[FIELDS] joined
        Py_ssize_t planes = geometry[GEO_N] * geometry[GEO_IC], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t cells = geometry[GEO_IH] * geometry[GEO_IW], row = task * rows_per_task(geometry), plane, oh, count, whole
        Py_ssize_t left = min(rows_per_task(geometry), planes * OH - row), readable
        bint common = is_common(geometry)
        const real* x
        real* y
        int64_t* where = NULL
        vf* like_f = NULL
        vd* like_d = NULL
    memcpy(&joined[0], geometry, sizeof(joined))
    if indices == NULL and is_seamless(geometry):
        joined[GEO_IH] *= planes
        joined[GEO_OH] *= planes
        OH, cells, planes = OH * planes, cells * planes, 1
    plane, oh = row // OH, row % OH
    while left > 0:
        count = min(left, OH - oh)
        whole = max(left // OH, 1) if oh == 0 else 1
        x = input + plane * cells
        y = output + plane * OH * OW
        if indices != NULL:
            where = indices + plane * OH * OW
        readable = (planes - plane) * cells
        if real is float:
            max_of_planes(x, y, where, ring, oh, oh + count, whole, readable, left * OW, common, &joined[0], like_f)
        else:
            max_of_planes(x, y, where, ring, oh, oh + count, whole, readable, left * OW, common, &joined[0], like_d)
        left -= whole * count
        plane += whole
        oh = 0


def max_pool2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of max_pool2d."""
    cdef const int64_t* g = &geometry[0]
    return n_workers * max_ring_size(g)


cdef void max_pool2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Pool* p = <const Pool*> job
        Py_ssize_t at = worker * p.slice
    if p.itemsize == sizeof(float):
        max_pool2d_task(
            task, <const float*> p.source, <float*> p.target, p.indices, <float*> p.workspace + at, p.geometry
        )
    else:
        max_pool2d_task(
            task, <const double*> p.source, <double*> p.target, p.indices, <double*> p.workspace + at, p.geometry
        )


def max_pool2d(input, output, indices, workspace, geometry, int n_threads):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    cdef:
        Py_ssize_t itemsize = real_itemsize(input)
        const int64_t* g = <const int64_t*> address_in(geometry, sizeof(int64_t))
        Pool job = Pool(
            itemsize, address_in(input, itemsize), <int64_t*> address_out(indices, sizeof(int64_t)),
            address_out(output, itemsize), NULL, address_out(workspace, itemsize), max_ring_size(g), g,
        )
    with nogil:
        each_task(max_pool2d_entry, &job, row_tasks(g), n_threads)


cdef inline bint put_tiles(
    const real* values,    # IN   a plane of windows
    const int64_t* indices,  # IN   theirs
    real* image,           # OUT  a plane
    Py_ssize_t readable,   # elements of values and indices
    Py_ssize_t room,       # elements from image on: what is written past the plane, the next ones overwrite
    const int64_t* geometry, vec* like,
) noexcept nogil:
    """Where `is_tiling`: each value to its index, 0 elsewhere; False, and any values, if an index lies outside its window."""
    # Forwards, as memory likes it: a row's last vector begins early enough to be whole, and repeats what the one before wrote.
    # A row shorter than a vector runs over its end; the row below overwrites that.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), whole = OH, oh, ow
        Py_ssize_t window
        int64_t cell, first
        real* upper
        real* lower
        bint outside = False
        vec flags, wanted
    if real is float and (IH * IW) >> 31 != 0:
        return False
    spread(&flags, 0)
    first_flags(&wanted, OW)      # all lanes where rows are as long
    while OW < lanes and whole > 0 and ((2 * whole - 1) * IW + 2 * lanes > room or (whole - 1) * OW + lanes > readable):
        whole -= 1  # the other rows have no space for a vector
    for oh in range(whole):
        upper = image + 2 * oh * IW
        lower = upper + IW
        ow = 0
        while True:
            spread_tiles(
                &flags, values + oh * OW + ow, indices + oh * OW + ow, upper + 2 * ow, lower + 2 * ow, 2 * (oh * IW + ow), IW,
                wanted,
            )
            if ow + lanes >= OW:
                break
            ow = min(ow + lanes, OW - lanes)
        if 2 * OW < IW:
            upper[IW - 1] = lower[IW - 1] = 0
    memset(image + 2 * whole * IW, 0, (IH - 2 * whole) * IW * sizeof(real))
    for window in range(whole * OW, OH * OW):
        cell = indices[window]
        first = 2 * (window // OW * IW + window % OW)
        if cell == first or cell == first + 1 or cell == first + IW or cell == first + IW + 1:
            image[cell] = values[window]
        else:
            outside = True
    return not (outside or has_flags(flags))


cdef inline void place_task(
    Py_ssize_t task,
    const real* values,        # IN
    const int64_t* indices,    # IN
    real* output,              # OUT
    int64_t* outside,          # OUT
    const int64_t* geometry,   # IN
    const bint add,
) noexcept nogil:
    """A run of planes: each value to its index, in row-major order; of one cell all add up, or the last stays."""
    cdef:
        Py_ssize_t cells = geometry[GEO_IH] * geometry[GEO_IW], windows = geometry[GEO_OH] * geometry[GEO_OW]
        Py_ssize_t planes = geometry[GEO_N] * geometry[GEO_IC], plane = task * planes_per_task(geometry), plane_last, window
        const real* source
        const int64_t* where
        real* image
        uint64_t signs
        bint tiling = is_tiling(geometry), done = False
        vf* like_f = NULL
        vd* like_d = NULL
    plane_last = min(plane + planes_per_task(geometry), planes)
    for plane in range(plane, plane_last):
        source = values + plane * windows
        where = indices + plane * windows
        image = output + plane * cells
        if tiling and real is float:
            done = put_tiles(source, where, image, (planes - plane) * windows, (plane_last - plane) * cells, geometry, like_f)
        elif tiling:
            done = put_tiles(source, where, image, (planes - plane) * windows, (plane_last - plane) * cells, geometry, like_d)
        if done:
            continue
        signs = 0
        for window in range(windows):
            signs |= <uint64_t> where[window] | (<uint64_t> (cells - 1) - <uint64_t> where[window])
        if signs >> 63 != 0:
            outside[0] = 1
            continue
        memset(image, 0, cells * sizeof(real))
        for window in range(windows):
            if add:
                image[where[window]] += source[window]
            else:
                image[where[window]] = source[window]


cdef void max_pool2d_backward_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pool* p = <const Pool*> job
    if p.itemsize == sizeof(float):
        place_task(task, <const float*> p.source, p.indices, <float*> p.target, p.outside, p.geometry, True)
    else:
        place_task(task, <const double*> p.source, p.indices, <double*> p.target, p.outside, p.geometry, True)


cdef void max_unpool2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pool* p = <const Pool*> job
    if p.itemsize == sizeof(float):
        place_task(task, <const float*> p.source, p.indices, <float*> p.target, p.outside, p.geometry, False)
    else:
        place_task(task, <const double*> p.source, p.indices, <double*> p.target, p.outside, p.geometry, False)


cdef inline int64_t* indices_of(const int64_t[:, :, :, ::1] indices) noexcept nogil:
    if indices.shape[0] and indices.shape[1] and indices.shape[2] and indices.shape[3]:
        return <int64_t*> &indices[0, 0, 0, 0]
    return NULL


def max_pool2d_backward(
    const real[:, :, :, ::1] grad_output,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] grad_input,
    int64_t[::1] outside,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    cdef:
        const int64_t* g = &geometry[0]
        Pool job = Pool(
            sizeof(real), cells_of(grad_output, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), indices_of(indices),
            <void*> cells_of(grad_input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), &outside[0], NULL, 0, g,
        )
    outside[0] = 0
    with nogil:
        each_task(max_pool2d_backward_entry, &job, plane_tasks(g), n_threads)


# ------------------------------------------------------------------------------------------------------ unpooling


def max_unpool2d(
    const real[:, :, :, ::1] input,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] output,
    int64_t[::1] outside,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    cdef:
        const int64_t* g = &geometry[0]
        Pool job = Pool(
            sizeof(real), cells_of(input, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), indices_of(indices),
            <void*> cells_of(output, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), &outside[0], NULL, 0, g,
        )
    outside[0] = 0
    with nogil:
        each_task(max_unpool2d_entry, &job, plane_tasks(g), n_threads)


cdef void max_unpool2d_backward_task(
    Py_ssize_t task,
    const real* grad_output,   # IN
    const int64_t* indices,    # IN
    real* grad_input,          # OUT
    real* taken,               # TMP  (IH * IW) whether a later value went to the cell
    const int64_t* geometry,   # IN
) noexcept nogil:
    # A task is a run of planes; from the last window to the first, only the first to come keeps a cell.
    cdef:
        Py_ssize_t cells = geometry[GEO_IH] * geometry[GEO_IW], windows = geometry[GEO_OH] * geometry[GEO_OW]
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, window, cell
        const real* image
        const int64_t* where
        real* grads
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * geometry[GEO_IC])
    memset(taken, 0, cells * sizeof(real))
    for plane in range(plane, plane_last):
        image = grad_output + plane * cells
        where = indices + plane * windows
        grads = grad_input + plane * windows
        for window in range(windows - 1, -1, -1):
            cell = where[window]
            grads[window] = image[cell] if taken[cell] == 0 else 0
            taken[cell] = 1
        for window in range(windows):
            taken[where[window]] = 0


def max_unpool2d_backward_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of max_unpool2d_backward."""
    cdef const int64_t* g = &geometry[0]
    return n_workers * g[GEO_IH] * g[GEO_IW]


cdef void max_unpool2d_backward_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Pool* p = <const Pool*> job
        Py_ssize_t at = worker * p.slice
    if p.itemsize == sizeof(float):
        max_unpool2d_backward_task(
            task, <const float*> p.source, p.indices, <float*> p.target, <float*> p.workspace + at, p.geometry
        )
    else:
        max_unpool2d_backward_task(
            task, <const double*> p.source, p.indices, <double*> p.target, <double*> p.workspace + at, p.geometry
        )


def max_unpool2d_backward(
    const real[:, :, :, ::1] grad_output,
    const int64_t[:, :, :, ::1] indices,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    cdef:
        const int64_t* g = &geometry[0]
        Pool job = Pool(
            sizeof(real), cells_of(grad_output, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), indices_of(indices),
            <void*> cells_of(grad_input, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), NULL,
            <void*> start_of_row(workspace), g[GEO_IH] * g[GEO_IW], g,
        )
    with nogil:
        each_task(max_unpool2d_backward_entry, &job, plane_tasks(g), n_threads)


# --------------------------------------------------------------------------------------------------------- average


cdef inline Py_ssize_t covered(
    Py_ssize_t position, Py_ssize_t kernel, Py_ssize_t pad, Py_ssize_t extent, Py_ssize_t pad_after, bint with_pad
) noexcept nogil:
    """Cells along one axis that a window counts: those of the padded image, or of the image alone."""
    cdef Py_ssize_t stop = min(position + kernel, extent + pad_after)
    if with_pad:
        return stop - position
    return min(stop, extent) - max(position, 0)


cdef inline real divisor_of_row(Py_ssize_t oh, const int64_t* geometry, real* same_type) noexcept nogil:
    """Rows that the windows of output row oh count; with ``divisor`` 1."""
    if geometry[GEO_DIVISOR] != 0:
        return 1
    return <real> covered(
        oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP], geometry[GEO_KH], geometry[GEO_PAD_TOP], geometry[GEO_IH],
        geometry[GEO_PAD_BOTTOM], geometry[GEO_COUNT_INCLUDE_PAD],
    )


cdef inline real divisor_of_column(Py_ssize_t ow, const int64_t* geometry, real* same_type) noexcept nogil:
    """Columns that the windows of output column ow count; with ``divisor`` that itself."""
    if geometry[GEO_DIVISOR] != 0:
        return <real> geometry[GEO_DIVISOR]
    return <real> covered(
        ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT], geometry[GEO_KW], geometry[GEO_PAD_LEFT], geometry[GEO_IW],
        geometry[GEO_PAD_RIGHT], geometry[GEO_COUNT_INCLUDE_PAD],
    )


cdef inline real run_sum(const real* x, Py_ssize_t count, vec* like) noexcept nogil:
    """The sum of a run of cells, by four vectors of partial sums: they hide the latency of an addition."""
    cdef Py_ssize_t i = 0, lane, lanes = sizeof(vec) // sizeof(real)
    cdef vec sum0, sum1, sum2, sum3, rest
    cdef real total = 0
    spread(&sum0, 0)
    sum1 = sum2 = sum3 = sum0
    while i + 4 * lanes <= count:
        sum0 = sum0 + (<const vec*> (x + i))[0]
        sum1 = sum1 + (<const vec*> (x + i + lanes))[0]
        sum2 = sum2 + (<const vec*> (x + i + 2 * lanes))[0]
        sum3 = sum3 + (<const vec*> (x + i + 3 * lanes))[0]
        i += 4 * lanes
    while i < count:
        tap(&rest, False, x, i, 0, 1, count, 0)
        sum0 = sum0 + rest
        i += lanes
    sum0 = (sum0 + sum1) + (sum2 + sum3)
    for lane in range(lanes):
        total += (<real*> &sum0)[lane]
    return total


cdef inline void sum_along_block(
    const real* x,         # IN   image row
    real* sums,            # OUT  a vector of reduced windows
    Py_ssize_t column, Py_ssize_t IW,
    const bint inside, const Py_ssize_t KW, const Py_ssize_t stride_w, Py_ssize_t dil_w, vec* like,
) noexcept nogil:
    cdef Py_ssize_t kw
    cdef vec total, other
    tap(&total, inside, x, column, 0, stride_w, IW, 0)
    for kw in range(1, KW):
        tap(&other, inside, x, column, kw * dil_w, stride_w, IW, 0)
        total = total + other
    if stride_w == 2:
        untangle(&total)
    (<vec*> sums)[0] = total


cdef inline void sum_along_row(
    const real* x,         # IN   image row
    real* sums,            # OUT  (size)
    Py_ssize_t pad_left, Py_ssize_t IW, Py_ssize_t OW,
    const Py_ssize_t KW, const Py_ssize_t stride_w, Py_ssize_t dil_w, vec* like,
) noexcept nogil:
    cdef Py_ssize_t ow = 0, column = -pad_left, lanes = sizeof(vec) // sizeof(real)
    while ow < OW:
        if block_inside(column, lanes, stride_w, span(KW, dil_w), IW):
            sum_along_block(x, sums + ow, column, IW, True, KW, stride_w, dil_w, like)
        else:
            sum_along_block(x, sums + ow, column, IW, False, KW, stride_w, dil_w, like)
        ow += lanes
        column += lanes * stride_w


cdef inline void mean_over_rows(
    const real* sums,      # IN   ring
    const real* divisors,  # IN   (size)
    real* output,          # OUT  (OW), of which only ``room`` elements may be written
    real divisor, Py_ssize_t room,
    Py_ssize_t slot, Py_ssize_t slots, const Py_ssize_t n_rows, Py_ssize_t dil_h, Py_ssize_t OW, Py_ssize_t size, vec* like,
) noexcept nogil:
    cdef Py_ssize_t ow = 0, row
    cdef vec total, rows
    spread(&rows, divisor)
    while ow < OW:
        total = (<const vec*> (sums + slot * size + ow))[0]
        for row in range(1, n_rows):
            total = total + (<const vec*> (sums + ((slot + row * dil_h) & (slots - 1)) * size + ow))[0]
        put(output + ow, total / ((<const vec*> (divisors + ow))[0] * rows), room - ow)
        ow += sizeof(vec) // sizeof(real)


cdef inline void mean_rows(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    real* ring,            # TMP  mean_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane; the way of max_rows."""
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t slots = ring_slots(geometry), size = row_size(geometry)
        real* values = ring
        real* divisors = values + slots * size
        real* sums
        real* y
        real divisor
        const real* row
        Py_ssize_t oh, ow, top, first, slot, n_rows, room, reduced = 0

    for ow in range(size):
        divisors[ow] = divisor_of_column(min(ow, OW - 1), geometry, ring)
    for oh in range(oh_first, oh_last):
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row = x + reduced * IW
            sums = values + (reduced & (slots - 1)) * size
            if OW == 1 and dil_w == 1:
                sums[0] = run_sum(row, min(KW - pad_left, IW), like)
            elif KW == 3 and dil_w == 1 and stride_w == 2:
                sum_along_row(row, sums, pad_left, IW, OW, 3, 2, 1, like)
            elif KW == 3 and dil_w == 1 and stride_w == 1:
                sum_along_row(row, sums, pad_left, IW, OW, 3, 1, 1, like)
            elif KW == 2 and dil_w == 1 and stride_w == 2:
                sum_along_row(row, sums, pad_left, IW, OW, 2, 2, 1, like)
            elif stride_w == 1:
                sum_along_row(row, sums, pad_left, IW, OW, KW, 1, dil_w, like)
            else:
                sum_along_row(row, sums, pad_left, IW, OW, KW, stride_w, dil_w, like)
            reduced += 1
        divisor = divisor_of_row(oh, geometry, ring)
        first = first_inside(top, dil_h)
        if first >= IH:
            for ow in range(OW):
                output[oh * OW + ow] = 0 / (divisor * divisors[ow])
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        room = (oh_last - oh) * OW  # what is written past the end of the row, the next rows overwrite
        y = output + oh * OW
        if n_rows == 3 and dil_h == 1:
            mean_over_rows(values, divisors, y, divisor, room, slot, slots, 3, 1, OW, size, like)
        elif n_rows == 2 and dil_h == 1:
            mean_over_rows(values, divisors, y, divisor, room, slot, slots, 2, 1, OW, size, like)
        else:
            mean_over_rows(values, divisors, y, divisor, room, slot, slots, n_rows, dil_h, OW, size, like)


cdef inline void mean_tiles_block(
    const real* x,         # IN   upper of two image rows
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    real divisor, Py_ssize_t room, Py_ssize_t column, Py_ssize_t IW, const bint inside, vec* like,
) noexcept nogil:
    cdef Py_ssize_t tile
    cdef vec total, other
    tap(&total, inside, x, column, 0, 2, IW, 0)
    for tile in range(1, 4):
        tap(&other, inside, x + (tile >> 1) * IW, column, tile & 1, 2, IW, 0)
        total = total + other
    untangle(&total)
    spread(&other, divisor)
    put(output, total / other, room)


cdef inline void mean_tiles(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    cdef:
        Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW], oh, ow, at, lanes = sizeof(vec) // sizeof(real)
        const real* row
        real divisor = divisor_of_row(0, geometry, output) * divisor_of_column(0, geometry, output)
    for oh in range(oh_first, oh_last):
        row = x + 2 * oh * IW
        ow = 0
        while ow < OW:
            at = oh * OW + ow
            if block_inside(2 * ow, lanes, 2, 2, IW):
                mean_tiles_block(row, output + at, divisor, oh_last * OW - at, 2 * ow, IW, True, like)
            else:
                mean_tiles_block(row, output + at, divisor, oh_last * OW - at, 2 * ow, IW, False, like)
            ow += lanes


cdef inline bint is_plane(const int64_t* geometry) noexcept nogil:
    """Whether the window is just the plane."""
    return (
        geometry[GEO_KH] == geometry[GEO_IH] and geometry[GEO_KW] == geometry[GEO_IW]
        and geometry[GEO_OH] == 1 and geometry[GEO_OW] == 1 and geometry[GEO_PAD_TOP] == 0 and geometry[GEO_PAD_LEFT] == 0
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1
    )


cdef void avg_pool2d_task(
    Py_ssize_t task,
    const real* input,         # IN
    real* output,              # OUT
    real* ring,                # TMP  mean_ring_size
    const int64_t* geometry,   # IN
) noexcept nogil:
    # A task is a run of output rows, counted through all planes.
    cdef:
        Py_ssize_t OH = geometry[GEO_OH], row = task * rows_per_task(geometry), row_last, oh, oh_last
        bint tiling = is_tiling(geometry), plane = is_plane(geometry)
        const real* x
        real* y
        real divisor
        vf* like_f = NULL
        vd* like_d = NULL
    row_last = min(row + rows_per_task(geometry), geometry[GEO_N] * geometry[GEO_IC] * OH)
    while row < row_last:
        oh = row % OH
        oh_last = min(oh + row_last - row, OH)
        x = input + row // OH * geometry[GEO_IH] * geometry[GEO_IW]
        y = output + row // OH * OH * geometry[GEO_OW]
        if plane:
            divisor = divisor_of_row(0, geometry, y) * divisor_of_column(0, geometry, y)
            if real is float:
                y[0] = run_sum(x, geometry[GEO_IH] * geometry[GEO_IW], like_f) / divisor
            else:
                y[0] = run_sum(x, geometry[GEO_IH] * geometry[GEO_IW], like_d) / divisor
        elif real is float:
            if tiling:
                mean_tiles(x, y, oh, oh_last, geometry, like_f)
            else:
                mean_rows(x, y, ring, oh, oh_last, geometry, like_f)
        else:
            if tiling:
                mean_tiles(x, y, oh, oh_last, geometry, like_d)
            else:
                mean_rows(x, y, ring, oh, oh_last, geometry, like_d)
        row += oh_last - oh


cdef inline Py_ssize_t mean_ring_size(const int64_t* geometry) noexcept nogil:
    """Elements for the ring of sums and the divisors."""
    return 0 if is_plane(geometry) or is_tiling(geometry) else (ring_slots(geometry) + 1) * row_size(geometry)


def avg_pool2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of avg_pool2d."""
    cdef const int64_t* g = &geometry[0]
    return n_workers * mean_ring_size(g)


cdef void avg_pool2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Pool* p = <const Pool*> job
        Py_ssize_t at = worker * p.slice
    if p.itemsize == sizeof(float):
        avg_pool2d_task(task, <const float*> p.source, <float*> p.target, <float*> p.workspace + at, p.geometry)
    else:
        avg_pool2d_task(task, <const double*> p.source, <double*> p.target, <double*> p.workspace + at, p.geometry)


def avg_pool2d(
    const real[:, :, :, ::1] input,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    cdef:
        const int64_t* g = &geometry[0]
        Pool job = Pool(
            sizeof(real), cells_of(input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), NULL,
            <void*> cells_of(output, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), NULL, <void*> start_of_row(workspace),
            mean_ring_size(g), g,
        )
    with nogil:
        each_task(avg_pool2d_entry, &job, row_tasks(g), n_threads)


cdef inline void spread_pass(const real* share, real* frame, Py_ssize_t OW, const Py_ssize_t stride_w) noexcept nogil:
    """One column of all windows: frame[ow * stride_w] += share[ow]."""
    cdef Py_ssize_t ow
    for ow in range(OW):
        frame[ow * stride_w] += share[ow]


cdef inline void repeat_pass(const real* share, real* frame, Py_ssize_t OW, const Py_ssize_t KW) noexcept nogil:
    """All columns of windows that lie side by side: frame[ow * KW + kw] = share[ow]."""
    cdef Py_ssize_t ow, kw
    for ow in range(OW):
        for kw in range(KW):
            frame[ow * KW + kw] = share[ow]


cdef void avg_pool2d_backward_task(
    Py_ssize_t task,
    const real* grad_output,   # IN
    real* grad_input,          # OUT
    real* scratch,             # TMP  spread_size
    const int64_t* geometry,   # IN
) noexcept nogil:
    # A task is a run of planes. A row of gradients is spread along its windows' columns once, then added to their rows, or
    # copied where windows lie one below the other.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t width = (OW - 1) * stride_w + span(KW, dil_w), reach = min(width - pad_left, IW)
        Py_ssize_t plane = task * planes_per_task(geometry), plane_last, oh, ow, ih, iw, kh, kw
        bint beside = stride_w == KW and dil_w == 1, below = stride_h == KH and dil_h == 1
        Py_ssize_t met = min(OH * KH - pad_top, IH) if below else 0      # rows that are copied
        real* divisors = scratch
        real* share = divisors + lines(OW)
        real* frame = share + lines(OW)
        real rows
        const real* grads
        real* image
    plane_last = min(plane + planes_per_task(geometry), geometry[GEO_N] * geometry[GEO_IC])
    for ow in range(OW):
        divisors[ow] = divisor_of_column(ow, geometry, scratch)
    for plane in range(plane, plane_last):
        image = grad_input + plane * IH * IW
        memset(image + met * IW, 0, (IH - met) * IW * sizeof(real))
        for oh in range(OH):
            grads = grad_output + (plane * OH + oh) * OW
            rows = divisor_of_row(oh, geometry, scratch)
            for ow in range(OW):
                share[ow] = grads[ow] / (rows * divisors[ow])
            if beside and KW == 2:
                repeat_pass(share, frame, OW, 2)
            elif beside:
                repeat_pass(share, frame, OW, KW)
            else:
                memset(frame, 0, width * sizeof(real))
                for kw in range(KW):
                    if stride_w == 1:
                        spread_pass(share, frame + kw * dil_w, OW, 1)
                    else:
                        spread_pass(share, frame + kw * dil_w, OW, stride_w)
            for kh in range(KH):
                ih = oh * stride_h - pad_top + kh * dil_h
                if 0 <= ih < met:
                    memcpy(image + ih * IW, frame + pad_left, reach * sizeof(real))
                    memset(image + ih * IW + reach, 0, (IW - reach) * sizeof(real))
                elif 0 <= ih < IH:
                    for iw in range(reach):
                        image[ih * IW + iw] += frame[pad_left + iw]


cdef inline Py_ssize_t spread_size(const int64_t* geometry) noexcept nogil:
    """Elements for the divisors, a row of shares, and that row spread; workers write no line of each other's."""
    return lines(geometry[GEO_OW]) * (2 + geometry[GEO_STRIDE_W]) + lines(span(geometry[GEO_KW], geometry[GEO_DIL_W]))


def avg_pool2d_backward_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace of avg_pool2d_backward."""
    cdef const int64_t* g = &geometry[0]
    return n_workers * spread_size(g)


cdef void avg_pool2d_backward_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Pool* p = <const Pool*> job
        Py_ssize_t at = worker * p.slice
    if p.itemsize == sizeof(float):
        avg_pool2d_backward_task(task, <const float*> p.source, <float*> p.target, <float*> p.workspace + at, p.geometry)
    else:
        avg_pool2d_backward_task(
            task, <const double*> p.source, <double*> p.target, <double*> p.workspace + at, p.geometry
        )


def avg_pool2d_backward(
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    cdef:
        const int64_t* g = &geometry[0]
        Pool job = Pool(
            sizeof(real), cells_of(grad_output, g[GEO_N], g[GEO_IC], g[GEO_OH], g[GEO_OW]), NULL,
            <void*> cells_of(grad_input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), NULL, &workspace[0], spread_size(g), g,
        )
    with nogil:
        each_task(avg_pool2d_backward_entry, &job, plane_tasks(g), n_threads)
