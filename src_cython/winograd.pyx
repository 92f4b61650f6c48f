"""Convolution by Winograd's minimal filtering. Formula, shapes and matrices: fastconv/_reference/winograd.py.

With xi one of the T x T cells of a transformed tile, the products are T*T matrix products

    M[xi] (tiles x OCG) = V[xi] (tiles x ICG) @ U[xi] (ICG x OCG)

    U[xi][panel of NV*VL filters][channel][NV*VL]     the weight, transformed once by pack_weight
    V[xi][block of VL channels][tile][VL]             vectors along channels in the input transform
    M[xi][panel][tile][NV*VL]                         vectors along filters in product and output transform

    block of tiles
    loop 1 over blocks of channels: turn the image's rows to [row][column][VL], transform every tile
    loop 2 over xi
    loop 3 over panels of filters (a U panel stays in the first-level cache)
    loop 4 over groups of MR tiles: MR x NV accumulators, V broadcast
    loop 5 over panels and tiles: transform, add bias, clamp, turn to rows of pixels

A plane of many tiles is cut into blocks, and a task does all of this for its rows. Planes of few tiles are put together,
several images at once, and each loop is a phase whose tasks share V and M: then U is read once for all of them; a fused pool
reads a panel's maps in the last. Of MANY_GROUPS a task does all of this for the rows of one.

A sum over few channels is too short to be worth writing down. Layers of at most THIN_CHANNELS have vectors along tiles:

    U[FILTERS filters][column][channel][row][FILTERS]  each cell is broadcast
    V[column][channel][row][VL tiles]                  of a square of tiles: a 128-bit lane is tiles of one row, the next one below
    M is six rows of a column for FILTERS filters: accumulators, transformed at once

    block of tiles, whose cells are copied with their border
    loop 1 over squares of tiles: transform V
    loop 2 over FILTERS filters: columns of products, transforms, epilogue; windows of 2 x 2 are pooled in registers
"""

from libc.string cimport memcpy, memset

from common cimport (
    GEO_ACCUMULATE, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_N, GEO_OC, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP,
    GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_TILE, GEO_TURNED, Operands, VL_FLOAT, add_outer, ceil_div, clamp, each_task, fill,
    int64_t, lines, operands, prefetch, real, start, start_of_row, team_join, vd, vec, vf, vfma, vfma_at, vmax, vmin, vset_d,
    vset_f,
)
from common cimport CACHE_LINE, DEPTHS, LINE, VL_DOUBLE as _VL_DOUBLE, WINOGRAD_MR as _MR, WINOGRAD_NV as _NV
from fused_pool cimport max_pool_rows, pool_ring_size
from lanes cimport high_f, interleave, load_lanes, low_f, store_filters, store_lanes, transpose

team_join()

# V and M of a block stay in the second-level cache, or stream through the third, where U is the larger part.
cdef enum:
    MOST_TILES = 32            # of a block
    MOST_TILES_DEEP = 64       # with more than DEEP channels: U is read once for each block
    DEEP = 128
    FEW_TILES = 100            # planes of fewer share their phases, and those of fewer than
    FEW_OVERLAPPED = 256       # these, of which tasks of their own would compute rows twice for windows that overlap
    OVERLAPPED_TASKS = 8       # of larger ones, at most
    MANY_GROUPS = 16           # of so many no phases are shared: they are tasks enough, and small
    SHARED_ELEMENTS = 3 << 20  # of V and M together, where several images share them, or more tiles than FEW_TILES
    PANEL_CHUNKS = 4           # tasks that a matrix product is split into
    THIN_CELLS = 32768         # elements of their copied cells, so that these stay in the second-level cache
    MOST_CELLS = 64            # T * T
    MOST_TAPS = 144            # of a kernel
    TURNED = 16                # channels of a weight that are turned at a time
    STRIP_BYTES = 24576        # of a dense copy, whose lines stay in the first-level cache until all lanes are written

cdef extern from *:
    """
    typedef long long winograd_pair __attribute__((aligned(4), may_alias));
    /* Pairs of floats: the two of 128-bit lane l from and to p + 4 * l * step and p + (4 * l + 1) * step. */
    LANES vf load_pairs(const float *p, Py_ssize_t step)
    {
        simd_id v;
        for (int l = 0; l < FASTCONV_VL / 4; l++) {
            v[2 * l] = *(const winograd_pair *)(p + 4 * l * step);
            v[2 * l + 1] = *(const winograd_pair *)(p + (4 * l + 1) * step);
        }
        return (vf)v;
    }
    LANES void store_pairs(float *p, Py_ssize_t step, vf v)
    {
        simd_id pairs = (simd_id)v;
        for (int l = 0; l < FASTCONV_VL / 4; l++) {
            *(winograd_pair *)(p + 4 * l * step) = pairs[2 * l];
            *(winograd_pair *)(p + (4 * l + 1) * step) = pairs[2 * l + 1];
        }
    }
    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    LANES int any_nan_f(vf v) { return _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q) != 0; }
    LANES int any_nan_d(vd v) { return _mm512_cmp_pd_mask((__m512d)v, (__m512d)v, _CMP_UNORD_Q) != 0; }
    #elif FASTCONV_VL == 8 && defined(__AVX__)
    LANES int any_nan_f(vf v) { return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)v, _CMP_UNORD_Q)) != 0; }
    LANES int any_nan_d(vd v) { return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)v, (__m256d)v, _CMP_UNORD_Q)) != 0; }
    #else
    LANES int any_nan_f(vf v) { float sum = v[0]; for (int i = 1; i < VL_FLOAT; i++) sum += v[i]; return sum != sum; }
    LANES int any_nan_d(vd v) { double sum = v[0]; for (int i = 1; i < VL_DOUBLE; i++) sum += v[i]; return sum != sum; }
    #endif
    """
    enum:
        THIN_CHANNELS "(FASTCONV_VL > 4 ? 4 : 3)"  # where vectors along channels would be half empty, or less full
        FILTERS "(FASTCONV_VL == 16 ? 4 : 2)"  # of thin layers: six vectors of products of each stay in registers
    vf load_pairs(const float* p, Py_ssize_t step) nogil
    void store_pairs(float* p, Py_ssize_t step, vf v) nogil
    bint any_nan_f(vf v) nogil
    bint any_nan_d(vd v) nogil


# ------------------------------------------------------------------------------------------------------ vector helpers


cdef inline bint any_nan(vec v) noexcept nogil:
    if vec is vf:
        return any_nan_f(v)
    else:
        return any_nan_d(v)


cdef inline vec constant(double value, vec* unused) noexcept nogil:
    if vec is vf:
        return vset_f(<float> value)
    else:
        return vset_d(value)


# --------------------------------------------------------------------------------------- one-dimensional transforms

# Points come in pairs, so B^T, A^T and G split into even and odd parts. With h = T / 2 - 1 pairs of points p_i, everything
# follows from the polynomials prod (x^2 - p_l^2) over all l, and over all but one. T, m and r = T - m + 1 are constants at
# each call: coefficients become constants too.


cdef inline double point(int T, int i) noexcept nogil:
    """The positive points of WINOGRAD_POINTS."""
    if T == 4:
        return 1
    if T == 6:
        return 0.625 if i == 0 else 1.5
    return 0.5 if i == 0 else 1 if i == 1 else 2


POINTS = {T - 2: tuple([point(T, i) for i in range(T // 2 - 1)]) for T in (4, 6, 8)}


cdef inline double square(int T, int i) noexcept nogil:
    return point(T, i) * point(T, i)


cdef inline double all_pairs(int T, int k) noexcept nogil:
    """Coefficient of x^(2k) of prod (x^2 - p_l^2), k < h."""
    if T == 4:
        return -square(T, 0)
    if T == 6:
        return square(T, 0) * square(T, 1) if k == 0 else -(square(T, 0) + square(T, 1))
    if k == 0:
        return -square(T, 0) * square(T, 1) * square(T, 2)
    if k == 1:
        return square(T, 0) * square(T, 1) + square(T, 0) * square(T, 2) + square(T, 1) * square(T, 2)
    return -(square(T, 0) + square(T, 1) + square(T, 2))


cdef inline double other_pairs(int T, int i, int k) noexcept nogil:
    """Coefficient of x^(2k) of prod (x^2 - p_l^2) over l != i, k < h - 1."""
    if T == 6:
        return -square(T, 1 - i)
    if k == 0:
        return square(T, (i + 1) % 3) * square(T, (i + 2) % 3)
    return -(square(T, (i + 1) % 3) + square(T, (i + 2) % 3))


cdef inline double scale(int T, int i) noexcept nogil:
    """1 / prod (p_i - p_l) over all other points; of point 0 for i < 0."""
    if i < 0:
        return 1 / all_pairs(T, 0)
    if T == 4:
        return 1 / (2 * square(T, i))
    if T == 6:
        return 1 / (2 * square(T, i) * (square(T, i) - square(T, 1 - i)))
    return 1 / (
        2 * square(T, i) * (square(T, i) - square(T, (i + 1) % 3)) * (square(T, i) - square(T, (i + 2) % 3))
    )


cdef inline void input_1d(const vec* cells, Py_ssize_t step, vec* out, Py_ssize_t out_step, int T) noexcept nogil:
    """out = B^T cells: T vectors, ``step`` vectors apart."""
    cdef:
        vec[8] x
        vec even, odd, c
        int i, k, h = T // 2 - 1
    for i in range(T):
        x[i] = cells[i * step]
    even = x[T - 2]
    odd = x[T - 1]
    for k in range(h):
        c = constant(all_pairs(T, h - 1 - k), &even)
        even = even + c * x[2 * (h - 1 - k)]
        odd = odd + c * x[2 * (h - 1 - k) + 1]
    out[0] = even
    out[(T - 1) * out_step] = odd
    for i in range(h):
        even = x[T - 2]
        odd = x[T - 3]
        for k in range(h - 1):
            c = constant(other_pairs(T, i, h - 2 - k), &even)
            even = even + c * x[2 * (h - 2 - k) + 2]
            odd = odd + c * x[2 * (h - 2 - k) + 1]
        c = constant(point(T, i), &even)
        out[(2 * i + 1) * out_step] = even + c * odd
        out[(2 * i + 2) * out_step] = even - c * odd


cdef inline double power(int T, int i, int k) noexcept nogil:
    """point ** k."""
    if k == 0:
        return 1
    if k == 1:
        return point(T, i)
    if k == 2:
        return square(T, i)
    if k == 3:
        return square(T, i) * point(T, i)
    if k == 4:
        return square(T, i) * square(T, i)
    return square(T, i) * square(T, i) * point(T, i)


cdef inline void output_1d(
    const vec* cells, Py_ssize_t step, vec* out, Py_ssize_t out_step, int T, int m,
) noexcept nogil:
    """out = A^T cells: m vectors from T."""
    cdef:
        vec[3] sum
        vec[3] difference
        vec total
        int i, k, h = T // 2 - 1
    for i in range(h):
        sum[i] = cells[(2 * i + 1) * step] + cells[(2 * i + 2) * step]
        difference[i] = cells[(2 * i + 1) * step] - cells[(2 * i + 2) * step]
    for k in range(m):
        if k == 0:
            total = cells[0] + sum[0]
        elif k == m - 1:
            total = cells[(T - 1) * step] + constant(power(T, 0, k), &total) * difference[0]
        elif k % 2:
            total = constant(power(T, 0, k), &total) * difference[0]
        else:
            total = constant(power(T, 0, k), &total) * sum[0]
        for i in range(1, h):
            if k % 2:
                total = total + constant(power(T, i, k), &total) * difference[i]
            else:
                total = total + constant(power(T, i, k), &total) * sum[i]
        out[k * out_step] = total


cdef inline void weight_1d(
    const vec* cells, Py_ssize_t step, vec* out, Py_ssize_t out_step, int T, int r,
) noexcept nogil:
    """out = G cells: T vectors from r."""
    cdef:
        vec[5] x
        vec even, odd, c
        int i, k
    for k in range(r):
        x[k] = cells[k * step]
    out[0] = constant(scale(T, -1), &even) * x[0]
    for i in range(T // 2 - 1):
        even = x[0]
        odd = x[1]
        for k in range(2, r):
            if k % 2:
                odd = odd + constant(power(T, i, k - 1), &even) * x[k]
            else:
                even = even + constant(power(T, i, k), &even) * x[k]
        even = constant(scale(T, i), &even) * even
        c = constant(point(T, i) * scale(T, i), &even)
        out[(2 * i + 1) * out_step] = even + c * odd
        out[(2 * i + 2) * out_step] = even - c * odd
    out[(T - 1) * out_step] = x[r - 1]


cdef inline void grad_output_1d(const vec* cells, Py_ssize_t step, vec* out, Py_ssize_t out_step, int T) noexcept nogil:
    """out = A cells: T vectors from m = T - 2."""
    cdef:
        vec[6] x
        vec even, odd
        int i, k, m = T - 2
    for k in range(m):
        x[k] = cells[k * step]
    out[0] = x[0]
    out[(T - 1) * out_step] = x[m - 1]
    for i in range(m // 2):
        even = x[0]
        odd = constant(point(T, i), &even) * x[1]
        for k in range(2, m):
            if k % 2:
                odd = odd + constant(power(T, i, k), &even) * x[k]
            else:
                even = even + constant(power(T, i, k), &even) * x[k]
        out[(2 * i + 1) * out_step] = even + odd
        out[(2 * i + 2) * out_step] = even - odd


cdef inline void grad_weight_1d(const vec* cells, Py_ssize_t step, vec* out, Py_ssize_t out_step, int T) noexcept nogil:
    """out = G^T cells: 3 vectors from T."""
    cdef:
        vec x0, x1, x2, sum, difference
        int i
    x0 = constant(scale(T, -1), &x0) * cells[0]
    x2 = cells[(T - 1) * step]
    for i in range(T // 2 - 1):
        sum = constant(scale(T, i), &sum) * (cells[(2 * i + 1) * step] + cells[(2 * i + 2) * step])
        difference = cells[(2 * i + 1) * step] - cells[(2 * i + 2) * step]
        x0 = x0 + sum
        x2 = x2 + constant(square(T, i), &sum) * sum
        if i == 0:
            x1 = constant(point(T, i) * scale(T, i), &sum) * difference
        else:
            x1 = x1 + constant(point(T, i) * scale(T, i), &sum) * difference
    out[0] = x0
    out[out_step] = x1
    out[2 * out_step] = x2


# ---------------------------------------------------------------------------------------------------------- blocking


cdef struct Blocking:
    Py_ssize_t ICG, OCG, K, S, OH, OW, m, r, T, VL, NR       # kernels of K x K, stride S: r x r taps for each of S * S phases
    bint dense                                              # phases of few channels share vectors
    Py_ssize_t spacing, phase_step                          # of cells that a phase's columns are copied to; its channels
    Py_ssize_t image_blocks, channel_blocks                 # of VL channels: that are copied together, and all
    Py_ssize_t panels, chunk_panels                         # of NR filters; panels of a task
    Py_ssize_t tile_rows, tile_columns                      # of a plane
    bint thin, pools_tiles                                  # vectors along tiles; windows are 2 x 2 cells of them
    bint shared                                             # several images at once, phase by phase
    Py_ssize_t images, rows, columns, tiles                 # of a block: images, rows and columns of tiles, tiles
    Py_ssize_t task_rows, row_blocks, pooled_rows           # output rows of a task at most, tasks of a plane, pooled rows
    Py_ssize_t u_step, v_step, m_step                       # from one xi to the next
    Py_ssize_t u_elements, v_elements, m_elements, copy_elements, map_elements, worker_elements


# A block of tiles: rows ... of one plane each of ``images`` images.
cdef struct Block:
    Py_ssize_t row, rows, column, columns                   # first output row; rows of tiles; the same for columns
    Py_ssize_t tiles                                        # of one image


cdef Blocking blocking(const int64_t* geometry, Py_ssize_t VL) noexcept nogil:
    """Every size that a plan of loops needs; a function of the problem alone, never of the thread count."""
    cdef:
        Blocking b
        Py_ssize_t G = max(geometry[GEO_G], 1), most, plane, cells, elements, stride_h, lanes = VL_FLOAT // 4
        bint overlaps
    b.ICG = geometry[GEO_IC] // G
    b.OCG = geometry[GEO_OC] // G
    b.OH = geometry[GEO_OH]
    b.OW = geometry[GEO_OW]
    b.K = geometry[GEO_KH]
    b.S = geometry[GEO_STRIDE_H]
    b.m = geometry[GEO_TILE]
    b.r = ceil_div(b.K, b.S)
    b.T = b.m + b.r - 1
    b.VL = VL
    b.NR = _NV * VL
    b.dense = b.S > 1 and b.ICG < VL_FLOAT  # in both dtypes: packed sizes are of the longer vectors
    b.spacing = 1 if b.dense else b.S
    b.phase_step = b.ICG if b.dense else ceil_div(b.ICG, VL) * VL
    b.channel_blocks = ceil_div(b.S * b.S * b.phase_step, VL)
    b.image_blocks = b.channel_blocks if b.dense else ceil_div(b.ICG, VL)
    b.panels = ceil_div(b.OCG, b.NR)
    b.chunk_panels = max(ceil_div(b.panels, PANEL_CHUNKS), 1)
    b.tile_rows = ceil_div(b.OH, b.m)
    b.tile_columns = ceil_div(b.OW, b.m)
    plane = b.tile_rows * b.tile_columns
    cells = b.T * b.T
    elements = cells * plane * (b.S * b.S * b.ICG + b.OCG)
    overlaps = geometry[GEO_POOL_KH] > geometry[GEO_POOL_STRIDE_H]
    b.thin = b.m == 4 and b.K == 3 and b.ICG <= THIN_CHANNELS  # whatever the plane: one packed weight serves all
    b.pools_tiles = (
        b.thin and geometry[GEO_POOL_KH] == 2 and geometry[GEO_POOL_KW] == 2
        and geometry[GEO_POOL_STRIDE_H] == 2 and geometry[GEO_POOL_STRIDE_W] == 2
        and geometry[GEO_POOL_PAD_TOP] == 0 and geometry[GEO_POOL_PAD_LEFT] == 0
    )
    b.shared = not b.thin and G < MANY_GROUPS and (
        plane < FEW_TILES or (overlaps and plane < FEW_OVERLAPPED and elements <= SHARED_ELEMENTS)
    )
    b.pooled_rows = 0
    b.map_elements = 0
    if b.shared:
        b.images = min(FEW_TILES // max(plane, 1), SHARED_ELEMENTS // max(elements, 1))
        b.images = max(min(b.images, geometry[GEO_N]), 1)
        b.rows = b.tile_rows
        b.columns = b.tile_columns
        b.task_rows = b.OH
        b.row_blocks = 1
        if geometry[GEO_POOL_KH] > 0:
            b.pooled_rows = geometry[GEO_POOL_OH]
            b.map_elements = lines(b.NR * b.OH * b.OW)
    else:
        b.images = 1
        if b.thin:
            most = THIN_CELLS // max(b.ICG * (lanes * b.m + 2) * b.m, 1) - 1
            b.columns = max(min(ceil_div(b.tile_columns, 4), most // 4), 1) * 4  # whole squares of either dtype
            b.rows = lanes
            b.row_blocks = ceil_div(b.tile_rows, b.rows)
        else:
            most = MOST_TILES_DEEP if max(b.S * b.S * b.ICG, b.OCG) > DEEP else MOST_TILES
            b.columns = max(ceil_div(b.tile_columns, max(ceil_div(b.tile_columns, most), 1)), 1)
            b.rows = max(most // b.columns, 1)
            b.row_blocks = ceil_div(b.tile_rows, b.rows)
            if geometry[GEO_POOL_KH] == 0 and 1 < b.row_blocks < b.tile_rows:  # two threads share an even number better
                b.row_blocks += b.row_blocks % 2
            b.rows = ceil_div(b.tile_rows, max(b.row_blocks, 1))
        b.task_rows = b.rows * b.m
        if geometry[GEO_POOL_KH] > 0:
            stride_h = geometry[GEO_POOL_STRIDE_H]
            b.pooled_rows = max((b.task_rows - max(geometry[GEO_POOL_KH] - stride_h, 0)) // stride_h, 1)
            if overlaps:
                b.pooled_rows = max(b.pooled_rows, ceil_div(geometry[GEO_POOL_OH], OVERLAPPED_TASKS))
            b.row_blocks = ceil_div(geometry[GEO_POOL_OH], b.pooled_rows)
            b.task_rows = min((b.pooled_rows - 1) * stride_h + geometry[GEO_POOL_KH], b.OH)
            b.map_elements = lines(b.OCG * b.task_rows * b.OW)
    b.tiles = b.images * b.rows * b.columns
    # One line between slabs, so that their distances are no multiples of a page
    b.u_step = b.panels * b.channel_blocks * VL * b.NR + LINE
    b.v_step = b.channel_blocks * b.tiles * VL + LINE
    b.m_step = b.panels * b.tiles * b.NR + LINE
    b.u_elements = cells * b.u_step
    b.v_elements = cells * b.v_step
    b.m_elements = cells * b.m_step
    b.copy_elements = lines((b.rows * b.m + b.r - 1) * (b.columns * b.m + b.r - 1) * b.S * VL)
    if b.thin:
        b.u_elements = lines(ceil_div(b.OCG, FILTERS) * FILTERS * cells * b.ICG)
        b.v_elements = cells * b.ICG * VL
        b.m_elements = 0
        b.copy_elements = lines(b.ICG * (b.rows * b.m + 2) * (b.columns + 1) * b.m)
    b.worker_elements = b.copy_elements + b.map_elements + lines(pool_ring_size(geometry))
    b.worker_elements += 0 if b.shared else b.v_elements + b.m_elements
    return b


# ------------------------------------------------------------------------------------------------- input transform


cdef void copy_rows(
    const real* image,          # IN   VL planes, or fewer
    real* copied,               # OUT  [height][width][VL]
    Py_ssize_t planes,
    Py_ssize_t plane,           # from one plane to the next
    Py_ssize_t IW,              # from one row to the next
    Py_ssize_t row_step,        # rows from one that is copied to the next
    Py_ssize_t top,
    Py_ssize_t left,
    Py_ssize_t height,
    Py_ssize_t width,
    Py_ssize_t row_end,         # cells from here on are not read
    Py_ssize_t column_end,
    vec* unused,
) noexcept nogil:
    """The cells of a window on the planes, planes last; zero outside 0 .. row_end, 0 .. column_end."""
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), quad = 16 // sizeof(real), row, ih, first, last, p, j, c
        vec[4] z
        const real* source
        real* target
    first = min(max(-left, 0), width)
    last = min(max(column_end - left, first), width)
    for row in range(height):
        ih = top + row * row_step
        target = copied + row * width * VL
        if ih < 0 or ih >= row_end or first == last:
            memset(target, 0, width * VL * sizeof(real))
            continue
        source = image + ih * IW + left
        memset(target, 0, first * VL * sizeof(real))
        memset(target + last * VL, 0, (width - last) * VL * sizeof(real))
        if planes == VL and last - first >= quad:
            p = first
            while True:  # the last square overlaps the one before
                for j in range(quad):
                    load_lanes(&z[j], source + p + j * plane, quad * plane)
                transpose(&z[0])
                for j in range(quad):
                    (<vec*> (target + (p + j) * VL))[0] = z[j]
                if p == last - quad:
                    break
                p = min(p + quad, last - quad)
        else:
            for p in range(first, last):
                for c in range(planes):
                    target[p * VL + c] = source[c * plane + p]
                for c in range(planes, VL):
                    target[p * VL + c] = 0


cdef inline void transform_input(
    const real* copied,         # IN   first column of the phase
    real* v,                    # OUT  [xi][...][tile][VL], first tile
    Py_ssize_t v_step,          # from one xi to the next
    const Block* at,
    const Blocking* b,
    int T,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), S = b.spacing, width = (at.columns * b.m + b.r - 1) * S, row, column
        Py_ssize_t step = v_step // VL
        int i
        const vec* source
        vec[MOST_CELLS] half
    for row in range(at.rows):
        for column in range(at.columns):
            source = <const vec*> (copied + (row * width + column * S) * b.m * VL)
            for i in range(T):
                input_1d(source + i * S, width, &half[i], T, T)
            for i in range(T):
                input_1d(&half[i * T], 1, <vec*> v + i * T * step, step, T)
            v += VL


cdef void copy_phases(
    const real* image,          # IN   channels of one group of one image
    real* copied,               # OUT  [height][width][VL]
    Py_ssize_t block,           # of VL channels of all phases, phase by phase
    Py_ssize_t top,             # of the first phase
    Py_ssize_t left,
    Py_ssize_t height,
    Py_ssize_t width,
    Py_ssize_t row_end,
    Py_ssize_t column_end,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    """`copy_rows` of every S-th row and column, a lane for each channel of each phase."""
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), IH = geometry[GEO_IH], IW = geometry[GEO_IW], S = b.S
        Py_ssize_t rows = max(STRIP_BYTES // max(width * <Py_ssize_t> sizeof(vec), 1), 1)  # of a strip
        Py_ssize_t strip, lane, channel, phase, row, ih, iw, first, last, p
        const real* source
        real* target
    for strip in range(ceil_div(height, rows)):
        for lane in range(VL):
            channel = block * VL + lane
            phase = channel // b.ICG
            iw = left + phase % S
            first = min(max(ceil_div(-iw, S), 0), width) if iw < 0 else 0
            last = min(max(ceil_div(column_end - iw, S), first), width) if iw < column_end else first
            for row in range(strip * rows, min(strip * rows + rows, height)):
                ih = top + phase // S + row * S
                target = copied + row * width * VL + lane
                if ih < 0 or ih >= row_end or phase >= S * S:
                    for p in range(width):
                        target[p * VL] = 0
                    continue
                source = image + (channel % b.ICG * IH + ih) * IW + iw
                for p in range(first):
                    target[p * VL] = 0
                for p in range(first, last):
                    target[p * VL] = source[p * S]
                for p in range(last, width):
                    target[p * VL] = 0


cdef void input_block(
    const real* image,          # IN   channels of one group of one image
    real* v,                    # OUT  [xi][...][tile][VL], first tile of the block of channels
    Py_ssize_t v_step,
    Py_ssize_t block,           # of channels
    real* copied,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    # A stride leaves S * S images of every S-th row and column: each is so many channels more, with a kernel of its own.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), IH = geometry[GEO_IH], IW = geometry[GEO_IW], S = b.S, row, column
        Py_ssize_t top = at.row * S - geometry[GEO_PAD_TOP], left = at.column * S - geometry[GEO_PAD_LEFT]
        Py_ssize_t row_end = min(IH, (b.OH - 1) * S + b.K - geometry[GEO_PAD_TOP])
        Py_ssize_t column_end = min(IW, (b.OW - 1) * S + b.K - geometry[GEO_PAD_LEFT])
        Py_ssize_t height = at.rows * b.m + b.r - 1, width = at.columns * b.m + b.r - 1
    for row in range(1 if b.dense else S):
        if b.dense:
            copy_phases(image, copied, block, top, left, height, width, row_end, column_end, b, geometry, unused)
        else:
            copy_rows(
                image + block * VL * IH * IW, copied, min(b.ICG - block * VL, VL), IH * IW, IW, S, top + row, left, height,
                width * S, row_end, column_end, unused,
            )
        for column in range(b.spacing):
            if b.T == 4:
                transform_input(<const real*> copied + column * VL, v, v_step, at, b, 4, unused)
            elif b.T == 6:
                transform_input(<const real*> copied + column * VL, v, v_step, at, b, 6, unused)
            else:
                transform_input(<const real*> copied + column * VL, v, v_step, at, b, 8, unused)
            v += b.image_blocks * b.tiles * VL


# ------------------------------------------------------------------------------------------------- matrix product


cdef inline void tile(
    const real* v,              # IN   [blocks][tile][VL], ``step`` from block to block
    const real* u,              # IN   [blocks * VL][NV * VL]
    Py_ssize_t blocks,
    Py_ssize_t step,
    Py_ssize_t ahead,           # from a panel of u to the next, fetched meanwhile
    real* c,                    # OUT  [tile][NV * VL]
    int rows,                   # tiles, and
    int nv,                     # vectors of filters: constants at each call, so that GCC keeps acc in registers
    vec* unused,
) noexcept nogil:
    # MR * NV independent FMA chains hide the latency of each; every accumulator, the vectors of filters and one
    # broadcast cell stay in registers.
    cdef:
        vec[_MR][_NV] acc
        vec[_NV] x
        vec cell
        Py_ssize_t _block, _turn, k, i, j, VL = sizeof(vec) // sizeof(real), depths = min(VL, DEPTHS)
        Py_ssize_t line = CACHE_LINE // sizeof(real)
    for i in range(rows):
        for j in range(nv):
            fill(&acc[i][j], <real> 0)
    for _block in range(blocks):
        for _turn in range(VL // depths):
            for k in range(depths):
                for j in range(nv):
                    x[j] = (<const vec*> (u + (k * _NV + j) * VL))[0]
                for i in range(rows):
                    fill(&cell, v[i * VL + k])
                    for j in range(nv):
                        acc[i][j] = vfma(acc[i][j], cell, x[j])
                for j in range(ceil_div(_NV * VL, line)):
                    prefetch(u + ahead + k * _NV * VL + j * line)
            u += depths * _NV * VL
            v += depths
        v += step - VL
    for i in range(rows):
        for j in range(nv):
            (<vec*> (c + (i * _NV + j) * VL))[0] = acc[i][j]


cdef inline void tile_rows(
    const real* v, const real* u, Py_ssize_t blocks, Py_ssize_t step, Py_ssize_t ahead, real* c,
    Py_ssize_t rows, int nv, vec* unused,
) noexcept nogil:
    """`tile` with the number of tiles as a constant."""
    if rows == _MR:
        tile(v, u, blocks, step, ahead, c, _MR, nv, unused)
    elif rows == 1:
        tile(v, u, blocks, step, ahead, c, 1, nv, unused)
    elif rows == 2:
        tile(v, u, blocks, step, ahead, c, 2, nv, unused)
    elif rows == 3:
        tile(v, u, blocks, step, ahead, c, 3, nv, unused)
    elif rows == 4:
        tile(v, u, blocks, step, ahead, c, 4, nv, unused)
    elif rows == 5:
        tile(v, u, blocks, step, ahead, c, 5, nv, unused)
    elif _MR > 6 and rows == 6:
        tile(v, u, blocks, step, ahead, c, min(6, _MR), nv, unused)
    elif _MR > 6 and rows == 7:
        tile(v, u, blocks, step, ahead, c, min(7, _MR), nv, unused)
    elif _MR > 6 and rows == 8:
        tile(v, u, blocks, step, ahead, c, min(8, _MR), nv, unused)
    elif _MR > 6 and rows == 9:
        tile(v, u, blocks, step, ahead, c, min(9, _MR), nv, unused)
    elif _MR > 6 and rows == 10:
        tile(v, u, blocks, step, ahead, c, min(10, _MR), nv, unused)
    elif _MR > 6:
        tile(v, u, blocks, step, ahead, c, min(11, _MR), nv, unused)


cdef void multiply(
    const real* u,              # IN   one xi: [panel][channel][NV * VL]
    const real* v,              # IN   [channel block][tile][VL]
    real* c,                    # OUT  [panel][tile][NV * VL]
    Py_ssize_t panel_from,
    Py_ssize_t panel_to,
    Py_ssize_t tiles,
    const Blocking* b,
    vec* unused,
) noexcept nogil:
    # Tiles in groups of nearly equal size: all have accumulators enough.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, groups = ceil_div(tiles, _MR), panel, group, t, rows
        Py_ssize_t nv, step = b.tiles * VL, ahead = b.channel_blocks * VL * NR
        const real* filters
        real* target
    for panel in range(panel_from, panel_to):                                              # loop 3: filters
        nv = min(ceil_div(b.OCG - panel * NR, VL), _NV)
        filters = u + panel * b.channel_blocks * VL * NR
        target = c + panel * b.tiles * NR
        t = 0
        for group in range(groups):                                                        # loop 4: tiles
            rows = tiles // groups + (group < tiles % groups)
            if nv == 1:
                tile_rows(v + t * VL, filters, b.channel_blocks, step, ahead, target + t * NR, rows, 1, unused)
            else:
                tile_rows(v + t * VL, filters, b.channel_blocks, step, ahead, target + t * NR, rows, _NV, unused)
            t += rows


# ------------------------------------------------------------------------------------------------ output transform


cdef void sum_again(
    real* y,                    # IN/OUT  [m * m][VL]
    const real* image,          # IN   channels of one group of one image
    const real* weight,         # IN   filters (ICG, K, K)
    Py_ssize_t count,           # of lanes that are looked at
    Py_ssize_t oh_from,
    Py_ssize_t ow_from,
    const Blocking* b,
    const int64_t* geometry,
) noexcept nogil:
    """Tiles with a value that is not finite, by the definition: lane by lane, each a filter, or a tile of the first one."""
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], m = b.m, VL = b.VL, K = b.K, quad = VL // (VL_FLOAT // 4)
        Py_ssize_t i, j, c, kh, kw, ih, iw, lane, oh, ow
        real total
        const real* w
    for lane in range(count):
        total = 0
        for i in range(m * m):
            total = total + y[i * VL + lane] * 0
        if total == 0:
            continue
        oh = oh_from + (lane // quad * m if b.thin else 0)
        ow = ow_from + (lane % quad * m if b.thin else 0)
        for i in range(m):
            for j in range(m):
                total = 0
                w = weight + (0 if b.thin else lane * b.ICG * K * K)
                for c in range(b.ICG):
                    for kh in range(K):
                        ih = (oh + i) * b.S + kh - geometry[GEO_PAD_TOP]
                        for kw in range(K):
                            iw = (ow + j) * b.S + kw - geometry[GEO_PAD_LEFT]
                            if 0 <= ih < IH and 0 <= iw < IW:
                                total = total + w[kh * K + kw] * image[(c * IH + ih) * IW + iw]
                            else:
                                total = total + w[kh * K + kw] * 0
                    w += K * K
                y[(i * m + j) * VL + lane] = total


cdef inline void store_whole(
    const vec* y,               # IN   [m * m]
    real* out,                  # OUT  first row and column
    Py_ssize_t apart,           # from one element of a 128-bit lane to the next, and
    Py_ssize_t lane_step,       # from one such lane to the next
    Py_ssize_t OW,              # from one row to the next
    bint accumulate,
    vec shift,
    vec low,
    vec high,
    int m,
) noexcept nogil:
    """The epilogue of whole tiles, of VL filters or side by side, turned to rows of pixels: 4 or 2 at once."""
    cdef:
        vec[4] z
        vec old
        real* at
        int i, j, q, quad = 16 // sizeof(real)
    for i in range(m):
        for q in range(m // quad):
            for j in range(quad):
                z[j] = y[i * m + q * quad + j] + shift
            transpose(&z[0])
            for j in range(quad):
                at = out + i * OW + q * quad + j * apart
                if accumulate:
                    load_lanes(&old, <const real*> at, lane_step)
                    z[j] = z[j] + old
                store_lanes(at, lane_step, vmin(high, vmax(low, z[j])))
        if vec is vf:
            if m % 4:
                z[2] = y[i * m + m - 2] + shift
                z[3] = y[i * m + m - 1] + shift
                z[0] = low_f(z[2], z[3])
                z[1] = high_f(z[2], z[3])
                for j in range(2):
                    at = out + i * OW + m - 2 + 2 * j * apart
                    if accumulate:
                        old = load_pairs(<const float*> at, apart)
                        z[j] = z[j] + old
                    store_pairs(<float*> at, apart, vmin(high, vmax(low, z[j])))


cdef inline void transform_output(
    const real* c,              # IN   [xi][...][tile][NV * VL], first tile and filter
    const real* image,          # IN   for sum_again
    const real* weight,         # IN
    const real* shifts,         # IN   VL biases
    Py_ssize_t filters,
    real* out,                  # OUT  plane of the first filter, whose first row is output row ``origin``
    Py_ssize_t plane,
    Py_ssize_t origin,
    Py_ssize_t row_end,         # no output row from here on
    bint accumulate,
    real low,
    real high,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    int T,
    int m,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), quad = 16 // sizeof(real), step = b.m_step // VL, OW = b.OW
        Py_ssize_t row, column, oh, ow, oc, p
        int i, j
        const vec* cells
        real* target
        real value
        vec[MOST_CELLS] half
        vec[36] y
        vec sum, zero, low_v, high_v, shift = (<const vec*> shifts)[0]
    fill(&low_v, low)
    fill(&high_v, high)
    fill(&zero, <real> 0)
    for row in range(at.rows):
        oh = at.row + row * m
        for column in range(at.columns):
            ow = at.column + column * m
            cells = <const vec*> c
            c += _NV * VL
            for i in range(T):
                output_1d(cells + i * step, T * step, &half[i], T, T, m)
            for i in range(m):
                output_1d(&half[i * T], 1, &y[i * m], 1, T, m)
            sum = zero
            for i in range(m * m):
                sum = sum + y[i] * zero
            if any_nan(sum):
                sum_again(<real*> &y[0], image, weight, filters, oh, ow, b, geometry)
            target = out + (oh - origin) * OW + ow
            if filters == VL and oh + m <= row_end and ow + m <= OW:
                store_whole(&y[0], target, plane, quad * plane, OW, accumulate, shift, low_v, high_v, m)
                continue
            for oc in range(filters):
                for i in range(min(m, row_end - oh)):
                    for j in range(min(m, OW - ow)):
                        p = oc * plane + i * OW + j
                        value = (<const real*> &y[i * m + j])[oc] + shifts[oc]
                        if accumulate:
                            value = value + target[p]
                        target[p] = clamp(value, low, high)


cdef void output_block(
    const real* c,              # IN   [xi][panel][tile][NV * VL]
    Py_ssize_t first_tile,
    Py_ssize_t panel,
    const real* image,          # IN
    const real* weight,         # IN   filters of the group
    const real* bias,           # IN   of the group, or NULL
    real* out,                  # OUT  planes of the group
    Py_ssize_t plane,
    Py_ssize_t origin,
    Py_ssize_t row_end,
    bint accumulate,
    real low,
    real high,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, j, first, filters, i
        real[VL_FLOAT] shifts
        const real* cells
        const real* w
        real* planes
    for j in range(min(ceil_div(b.OCG - panel * NR, VL), _NV)):
        first = panel * NR + j * VL
        filters = min(b.OCG - first, VL)
        for i in range(VL):
            shifts[i] = bias[first + i] if bias != NULL and i < filters else 0
        cells = c + (panel * b.tiles + first_tile) * NR + first - panel * NR
        w = weight + first * b.ICG * b.K * b.K
        planes = out + first * plane
        if b.T == 4:
            transform_output(
                cells, image, w, <const real*> &shifts[0], filters, planes, plane, origin, row_end, accumulate, low,
                high, at, b, geometry, 4, 2, unused,
            )
        elif b.T == 8:
            transform_output(
                cells, image, w, <const real*> &shifts[0], filters, planes, plane, origin, row_end, accumulate, low,
                high, at, b, geometry, 8, 6, unused,
            )
        elif b.m == 4:
            transform_output(
                cells, image, w, <const real*> &shifts[0], filters, planes, plane, origin, row_end, accumulate, low,
                high, at, b, geometry, 6, 4, unused,
            )
        else:
            transform_output(
                cells, image, w, <const real*> &shifts[0], filters, planes, plane, origin, row_end, accumulate, low,
                high, at, b, geometry, 6, 2, unused,
            )


# ----------------------------------------------------------------------------------------------------- thin layers


cdef void copy_thin(
    const real* image,          # IN   channels of one group of one image
    real* copied,               # OUT  [channel][rows * m + 2][width]
    Py_ssize_t width,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
) noexcept nogil:
    """The cells that a block's tiles read; zero outside the image and for tiles past its end."""
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], c, row, ih
        Py_ssize_t top = at.row - geometry[GEO_PAD_TOP], left = at.column - geometry[GEO_PAD_LEFT]
        Py_ssize_t row_end = min(IH, b.OH + 2 - geometry[GEO_PAD_TOP]), column_end = min(IW, b.OW + 2 - geometry[GEO_PAD_LEFT])
        Py_ssize_t first = min(max(-left, 0), width), last = min(max(column_end - left, first), width)
    for c in range(b.ICG):
        for row in range(b.rows * b.m + 2):
            ih = top + row
            if ih < 0 or ih >= row_end:
                memset(copied, 0, width * sizeof(real))
            else:
                memset(copied, 0, first * sizeof(real))
                if first < last:
                    memcpy(copied + first, image + (c * IH + ih) * IW + left + first, (last - first) * sizeof(real))
                memset(copied + last, 0, (width - last) * sizeof(real))
            copied += width


cdef void transform_thin(
    const real* copied,         # IN   first cell of the first tile
    real* v,                    # OUT  [column][channel][row][VL]
    Py_ssize_t width,
    const Blocking* b,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), quad = 16 // sizeof(real), c, row, p, j
        vec[8] x
        vec[36] half
    for c in range(b.ICG):
        for row in range(6):
            for p in range(ceil_div(6, quad)):
                for j in range(quad):
                    load_lanes(&x[p * quad + j], copied + row * width + p * quad + j * 4, 4 * width)
                transpose(&x[p * quad])
            input_1d(&x[0], 1, &half[row * 6], 1, 6)
        for j in range(6):
            input_1d(&half[j], 6, <vec*> (v + (j * b.ICG + c) * 6 * VL), 1, 6)
        copied += (b.rows * 4 + 2) * width


cdef inline void column_of_products(
    const real* v,              # IN   [channel][row][VL]
    const real* u,              # IN   [channel][row][FILTERS]
    vec* half,                  # OUT  [FILTERS][4][6], this column of each
    Py_ssize_t channels,
    vec* unused,
) noexcept nogil:
    """Products of a column of V, transformed."""
    # 6 * FILTERS independent FMA chains: with a vector of V all are in registers, the cells of U come from memory.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), _c, i, k
        vec[6][FILTERS] sums
        vec cells
    for i in range(6):
        for k in range(FILTERS):
            fill(&sums[i][k], <real> 0)
    for _c in range(channels):
        for i in range(6):
            cells = (<const vec*> (v + i * VL))[0]
            for k in range(FILTERS):
                sums[i][k] = vfma_at(sums[i][k], u + i * FILTERS + k, cells)
        v += 6 * VL
        u += 6 * FILTERS
    for k in range(FILTERS):
        output_1d(&sums[0][k], FILTERS, half + k * 24, 6, 6, 4)


cdef inline real larger(real a, real b) noexcept nogil:
    """The larger one; NaN wins."""
    return a if a > b or a != a else b


cdef void pool_lanes(const real* y, real* pooled, Py_ssize_t VL) noexcept nogil:
    """[4 * 4][VL] -> [2 * 2][VL], where NaN may be."""
    cdef:
        Py_ssize_t i, lane
        const real* first
    for i in range(4):
        for lane in range(VL):
            first = y + (i // 2 * 8 + i % 2 * 2) * VL + lane
            pooled[i * VL + lane] = larger(larger(first[0], first[VL]), larger(first[4 * VL], first[5 * VL]))


cdef inline void store_pooled(
    const vec* y,               # IN   [2 * 2]
    real* out,                  # OUT
    Py_ssize_t lane_step,
    Py_ssize_t OW,
    vec shift,
    vec low,
    vec high,
) noexcept nogil:
    """`store_whole` of pooled tiles."""
    cdef:
        vec[2] z
        int i, j
    for i in range(2):
        for j in range(2):
            z[j] = y[i * 2 + j] + shift
        interleave(&z[0])
        for j in range(2):
            store_lanes(out + i * OW + j * (16 // <int> sizeof(real)), lane_step, vmin(high, vmax(low, z[j])))


cdef inline void copy_part(
    const real* source, real* target, Py_ssize_t source_step, Py_ssize_t target_step, Py_ssize_t rows, Py_ssize_t columns,
) noexcept nogil:
    """Rows of a few columns, 4 or 2 at once: calls of memcpy would take longer."""
    cdef Py_ssize_t quad = 16 // sizeof(real), _row, i, wide = columns // quad * quad
    for _row in range(rows):
        i = 0
        while i < wide:
            memcpy(target + i, source + i, 16)
            i += quad
        for i in range(wide, columns):
            target[i] = source[i]
        source += source_step
        target += target_step


cdef void filters_of_thin(
    const real* v,              # IN   [column][channel][row][VL]
    const real* u,              # IN   [column][channel][row][FILTERS]
    const real* image,          # IN   for sum_again
    const real* weight,         # IN   the same, of the first filter
    const real* bias,           # IN   of the first filter, or NULL
    real* out,                  # OUT  of the first filter, where the first tile is: pixels, or pooled ones
    Py_ssize_t filters,
    Py_ssize_t plane,           # from one filter's to the next
    Py_ssize_t OW,              # from one row to the next
    Py_ssize_t height,          # that is left of the plane
    Py_ssize_t width,
    bint pools,                 # windows of 2 x 2
    bint accumulate,
    real low,
    real high,
    Py_ssize_t oh,
    Py_ssize_t ow,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), k, edge = 2 if pools else 4
        Py_ssize_t rows = min(VL_FLOAT // 4 * edge, height), columns = 16 // sizeof(real) * edge, step = columns, i, j, row_step
        bint whole = rows == VL_FLOAT // 4 * edge and columns <= width
        real* target
        vec[24 * FILTERS] half
        vec[16] y, part
        vec[4] pooled
        vec total, zero, shift, low_v, high_v
    columns = min(columns, width)
    fill(&zero, <real> 0)
    fill(&low_v, low)
    fill(&high_v, high)
    for j in range(6):
        column_of_products(v + j * b.ICG * 6 * VL, u + j * b.ICG * 6 * FILTERS, &half[j], b.ICG, unused)
    for k in range(min(filters, FILTERS)):
        for i in range(4):
            output_1d(&half[k * 24 + i * 6], 1, &y[i * 4], 1, 6, 4)
        fill(&shift, bias[k] if bias != NULL else <real> 0)
        total = y[0]
        for i in range(1, 16):
            total = total + y[i]
        if any_nan(total * zero):
            sum_again(<real*> &y[0], image, weight + k * b.ICG * 9, VL, oh, ow, b, geometry)
            if pools:  # with the bias: where both are infinite their sum is NaN
                for i in range(16):
                    y[i] = y[i] + shift
                pool_lanes(<const real*> &y[0], <real*> &pooled[0], VL)
                shift = zero
        elif pools:
            for i in range(4):
                j = i // 2 * 8 + i % 2 * 2
                pooled[i] = vmax(vmax(y[j], y[j + 1]), vmax(y[j + 4], y[j + 5]))
        target, row_step = out + k * plane, OW
        if not whole:  # past the plane's end: by way of a copy
            target, row_step = <real*> &part[0], step
            if accumulate:
                copy_part(<const real*> out + k * plane, target, OW, step, rows, columns)
        if pools:
            store_pooled(&pooled[0], target, 2 * row_step, row_step, shift, low_v, high_v)
        else:
            store_whole(&y[0], target, 4, 4 * row_step, row_step, accumulate, shift, low_v, high_v, 4)
        if not whole:
            copy_part(<const real*> target, out + k * plane, step, OW, rows, columns)


cdef void thin_block(
    const real* image,          # IN   channels of one group of one image
    const real* u,              # IN   of the group, as
    const real* weight,         # IN
    const real* bias,           # IN   or NULL
    real* out,                  # OUT  planes of the group, or pooled ones
    Py_ssize_t plane,
    Py_ssize_t origin,          # output row that the planes' first row is
    Py_ssize_t row_end,         # no output row from here on
    bint pools,                 # windows of 2 x 2
    bint accumulate,
    real low,
    real high,
    real* v,
    real* copied,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t quad = 16 // sizeof(real), width = (b.columns + 1) * 4, shrink = 2 if pools else 1, square
        Py_ssize_t group, f, ow
        Py_ssize_t OW = geometry[GEO_POOL_OW] if pools else b.OW
    copy_thin(image, copied, width, at, b, geometry)
    for square in range(ceil_div(at.columns, quad)):                                       # loop 1: tiles
        ow = at.column + square * quad * 4
        transform_thin(<const real*> copied + square * quad * 4, v, width, b, unused)
        for group in range(ceil_div(b.OCG, FILTERS)):                                      # loop 2: filters
            f = group * FILTERS
            filters_of_thin(
                <const real*> v, u + f * b.ICG * 36, image, weight + f * b.ICG * 9, bias + f if bias != NULL else NULL,
                out + f * plane + (at.row - origin) // shrink * OW + ow // shrink, b.OCG - f, plane, OW,
                (row_end - at.row) // shrink, OW - ow // shrink, pools, accumulate, low, high, at.row, ow, b, geometry,
                unused,
            )


# --------------------------------------------------------------------------------------------------- kernels: weight


def packed_weight_size(const int64_t[::1] geometry):
    """Elements of a packed weight: of each group U, filled up with zeros, and the weight itself."""
    cdef Blocking b = blocking(&geometry[0], VL_FLOAT)
    return geometry[GEO_G] * b.u_elements + geometry[GEO_OC] * b.ICG * b.K * b.K


cdef inline void transform_weight(
    const vec* taps,            # IN   (r, r)
    real* u,                    # OUT  [xi], ``step`` vectors apart
    Py_ssize_t step,
    int T,
    int r,
    vec* unused,
) noexcept nogil:
    cdef:
        vec[30] half
        int i
    for i in range(r):
        weight_1d(taps + i, r, &half[i], r, T, r)
    for i in range(T):
        weight_1d(&half[i * r], 1, <vec*> u + i * T * step, step, T, r)


cdef inline void transform_phases(
    const vec* taps,            # IN   (K, K)
    real* u,                    # OUT  of the first phase
    const Blocking* b,
    vec* unused,
) noexcept nogil:
    """Kernels of every S-th row and column of one, filled up to r x r with zeros."""
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), step = b.u_step // VL, phase, kh, kw, i, r = b.r
        vec[MOST_TAPS] own
    for phase in range(b.S * b.S):
        for i in range(r * r):
            kh = i // r * b.S + phase // b.S
            kw = i % r * b.S + phase % b.S
            if kh < b.K and kw < b.K:
                own[i] = taps[kh * b.K + kw]
            else:
                fill(&own[i], <real> 0)
        if b.T == 4:
            transform_weight(&own[0], u, step, 4, 3, unused)
        elif b.T == 8:
            transform_weight(&own[0], u, step, 8, 3, unused)
        elif r == 3:
            transform_weight(&own[0], u, step, 6, 3, unused)
        else:
            transform_weight(&own[0], u, step, 6, 5, unused)
        u += b.phase_step * b.NR


cdef void transform_thin_weight(
    const vec* taps,            # IN   (3, 3)
    real* u,                    # OUT  of the group
    Py_ssize_t first,           # filter of the first lane
    Py_ssize_t c,
    const Blocking* b,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), lane, i, j, f
        vec[36] cells
    transform_weight(taps, <real*> &cells[0], 1, 6, 3, unused)
    for lane in range(min(ceil_div(b.OCG, FILTERS) * FILTERS - first, VL)):
        f = first + lane
        for i in range(6):
            for j in range(6):
                u[((f // FILTERS * 6 + j) * b.ICG + c) * 6 * FILTERS + i * FILTERS + f % FILTERS] = (
                    <const real*> &cells[i * 6 + j])[lane]


cdef void turn_filters(
    const real* weight,         # IN   [channel][OCG][n_taps], first filter
    real* turned,               # OUT  [filter][ICG][n_taps]
    Py_ssize_t filters,
    Py_ssize_t ICG,
    Py_ssize_t OCG,
    Py_ssize_t n_taps,
) noexcept nogil:
    """Filters of the adjoint convolution: channels and filters change places, taps their order."""
    # Some channels at a time: rows of whole powers of two would push each other's cache lines out between two channels.
    cdef:
        Py_ssize_t block, c, f, i
        const real* taps
        real* target
    for block in range(ceil_div(ICG, TURNED)):
        for f in range(filters):
            for c in range(block * TURNED, min(block * TURNED + TURNED, ICG)):
                taps = weight + (c * OCG + f) * n_taps
                target = turned + (f * ICG + c) * n_taps
                for i in range(n_taps):
                    target[i] = taps[n_taps - 1 - i]


cdef void pack_weight_task(
    Py_ssize_t task,
    const real* weight,               # IN
    real* packed,                     # OUT
    const Blocking* b,                # IN
    Py_ssize_t G,
    bint turned,
    vec* unused,
) noexcept nogil:
    # A task is one panel of filters. The taps of 4 (or 2) channels are that many squares to transpose.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, quad = 16 // sizeof(real), n_taps = b.K * b.K
        Py_ssize_t g = task // b.panels, panel = task % b.panels, K = b.ICG * n_taps, run = n_taps * quad
        Py_ssize_t first, filters, channels, c, i, j, q, squares, distance, depth = b.ICG if b.thin else b.phase_step
        real[4 * MOST_TAPS * VL_FLOAT] edge
        vec[4 * MOST_TAPS] taps
        const real* source
        real* own = packed + G * b.u_elements + (g * b.OCG + panel * NR) * K
        real* u
    filters = min(b.OCG - panel * NR, NR)
    if turned:
        turn_filters(weight + (g * b.ICG * b.OCG + panel * NR) * n_taps, own, filters, b.ICG, b.OCG, n_taps)
    else:
        memcpy(own, weight + (g * b.OCG + panel * NR) * K, filters * K * sizeof(real))
    u = packed + g * b.u_elements + panel * b.channel_blocks * VL * NR
    for squares in range(ceil_div(depth, quad)):
        c = squares * quad
        for i in range(_NV):
            first = panel * NR + i * VL
            filters = min(max(b.OCG - first, 0), VL)
            channels = min(max(b.ICG - c, 0), quad)
            source = <const real*> own + i * VL * K + c * n_taps
            distance = K
            if filters < VL or channels < quad:
                memset(edge, 0, VL * run * sizeof(real))
                for j in range(filters):
                    memcpy(&edge[j * run], source + j * K, channels * n_taps * sizeof(real))
                source = <const real*> &edge[0]
                distance = run
            for q in range(n_taps):
                for j in range(quad):
                    load_lanes(&taps[q * quad + j], source + q * quad + j * distance, quad * distance)
                transpose(&taps[q * quad])
            for q in range(min(quad, depth - c)):
                if b.thin:
                    transform_thin_weight(&taps[q * n_taps], packed + g * b.u_elements, first, c + q, b, unused)
                else:
                    transform_phases(&taps[q * n_taps], u + ((c + q) * _NV + i) * VL, b, unused)
    for i in range(0 if b.thin else b.T * b.T):  # lanes that no channel fills
        c = b.S * b.S * b.phase_step * NR
        memset(u + i * b.u_step + c, 0, (b.channel_blocks * VL * NR - c) * sizeof(real))


cdef struct Pack:
    Py_ssize_t itemsize
    const void* weight
    void* packed
    const Blocking* blocking
    Py_ssize_t G
    bint turned


cdef void pack_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pack* p = <const Pack*> job
    if p.itemsize == sizeof(float):
        pack_weight_task(task, <const float*> p.weight, <float*> p.packed, p.blocking, p.G, p.turned, <vf*> NULL)
    else:
        pack_weight_task(task, <const double*> p.weight, <double*> p.packed, p.blocking, p.G, p.turned, <vd*> NULL)


def pack_weight(
    const real[:, :, :, ::1] weight,
    real[::1] packed,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """weight (OC, ICG, K, K), turned (IC, OCG, K, K) -> packed, in the order in which this back end's conv2d reads it."""
    cdef:
        Blocking b = blocking(&geometry[0], VL_FLOAT if real is float else _VL_DOUBLE)
        Pack job = Pack(
            sizeof(real), start(weight), <void*> start_of_row(packed), &b, geometry[GEO_G], geometry[GEO_TURNED] != 0
        )
    with nogil:
        each_task(pack_weight_entry, &job, job.G * b.panels, n_threads)


# -------------------------------------------------------------------------------------------------- kernels: forward


def conv2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: V and M, shared or of each worker; copied rows, and the map that a fused pool reads."""
    cdef Blocking b = blocking(&geometry[0], VL_FLOAT)
    return n_workers * b.worker_elements + (b.v_elements + b.m_elements if b.shared else 0)


cdef void conv2d_task(
    Py_ssize_t task,
    const real* input,            # IN
    const real* packed,           # IN
    const real* bias,             # IN
    real low,
    real high,
    real* output,                 # OUT
    real* pooled,                 # OUT
    int64_t* indices,             # OUT
    real* scratch,                # worker_elements
    const Blocking* b,            # IN
    const int64_t* geometry,      # IN
    vec* unused,
) noexcept nogil:
    # A task is at most ``task_rows`` rows of the output of one group of one image, block by block; without a pool all have
    # nearly as many.
    cdef:
        Py_ssize_t G = geometry[GEO_G], g = task // b.row_blocks % G, n = task // b.row_blocks // G
        Py_ssize_t row_block = task % b.row_blocks, row_from, row_end, pooled_from, pooled_to, block, panel, xi, i
        Py_ssize_t plane, origin, pooled_plane = geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
        bint accumulate = geometry[GEO_ACCUMULATE] and not b.pooled_rows, pools_tiles = b.pools_tiles and indices == NULL
        const real* image = input + (n * G + g) * b.ICG * geometry[GEO_IH] * geometry[GEO_IW]
        const real* u = packed + g * b.u_elements
        const real* weight = packed + G * b.u_elements + g * b.OCG * b.ICG * b.K * b.K
        const real* shifts = bias + g * b.OCG if bias != NULL else NULL
        real* v = scratch
        real* c = v + b.v_elements
        real* copied = c + b.m_elements
        real* out
        Block at
    if b.pooled_rows:
        pooled_from = row_block * b.pooled_rows
        pooled_to = min(pooled_from + b.pooled_rows, geometry[GEO_POOL_OH])
        row_from = max(pooled_from * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP], 0)
        row_end = (pooled_to - 1) * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP] + geometry[GEO_POOL_KH]
        row_end = min(row_end, b.OH)
        out = copied + b.copy_elements
        plane = b.task_rows * b.OW
        origin = row_from
        if pools_tiles:
            out = pooled + (n * G + g) * b.OCG * pooled_plane
            plane = pooled_plane
            origin = 0
    else:
        pooled_from = pooled_to = 0
        # Tasks are cut so that any neighbours, as a thread's part is, have as many rows
        row_from = row_block * b.tile_rows // b.row_blocks * b.m
        row_end = min((row_block + 1) * b.tile_rows // b.row_blocks * b.m, b.OH)
        out = output + (n * G + g) * b.OCG * b.OH * b.OW
        plane = b.OH * b.OW
        origin = 0
    at.row = row_from
    while at.row < row_end:
        at.rows = min(ceil_div(row_end - at.row, b.m), b.rows)
        at.column = 0
        while at.column < b.OW:
            at.columns = min(ceil_div(b.OW - at.column, b.m), b.columns)
            at.tiles = at.rows * at.columns
            if b.thin:
                thin_block(
                    image, u, weight, shifts, out, plane, origin, row_end, pools_tiles, accumulate, low, high, v, copied, &at,
                    b, geometry, unused,
                )
                at.column += at.columns * b.m
                continue
            for block in range(b.image_blocks):                                            # loop 1: channels
                input_block(
                    image, v + block * b.tiles * b.VL, b.v_step, block, copied, &at, b, geometry, unused
                )
            for xi in range(b.T * b.T):                                                    # loop 2: cells
                multiply(
                    u + xi * b.u_step, <const real*> v + xi * b.v_step, c + xi * b.m_step, 0, b.panels, at.tiles, b,
                    unused,
                )
            for panel in range(b.panels):                                                  # loop 5: filters
                output_block(
                    <const real*> c, 0, panel, image, weight, shifts, out, plane, origin, row_end, accumulate, low,
                    high, &at, b, geometry, unused,
                )
            at.column += at.columns * b.m
        at.row += at.rows * b.m
    if b.pooled_rows and not pools_tiles:
        for i in range(b.OCG):
            max_pool_rows(
                <const real*> out + i * plane, row_from, pooled_from, pooled_to,
                pooled + ((n * G + g) * b.OCG + i) * pooled_plane,
                indices + ((n * G + g) * b.OCG + i) * pooled_plane if indices != NULL else NULL,
                copied + b.copy_elements + b.map_elements, geometry, unused,
            )


# Whole planes of ``images`` images of one group: three phases, whose tasks are the steps of one loop.


cdef void input_task(
    Py_ssize_t task,
    const real* input,            # IN   first image of the chunk, first channel of the group
    real* v,                      # OUT
    real* copied,
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef Py_ssize_t n = task // b.image_blocks, block = task % b.image_blocks
    input_block(
        input + n * geometry[GEO_IC] * geometry[GEO_IH] * geometry[GEO_IW],
        v + (block * b.tiles + n * at.tiles) * b.VL, b.v_step, block, copied, at, b, geometry, unused,
    )


cdef void multiply_task(
    Py_ssize_t task,
    const real* u,                # IN   of the group
    const real* v,                # IN
    real* c,                      # OUT
    Py_ssize_t tiles,
    const Blocking* b,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t chunks = ceil_div(b.panels, b.chunk_panels), xi = task // chunks
        Py_ssize_t panel = task % chunks * b.chunk_panels
    multiply(
        u + xi * b.u_step, v + xi * b.v_step, c + xi * b.m_step, panel, min(panel + b.chunk_panels, b.panels), tiles, b,
        unused,
    )


cdef void output_task(
    Py_ssize_t task,
    const real* c,                # IN
    const real* input,            # IN   first image of the chunk, first channel of the group
    const real* weight,           # IN   of the group
    const real* bias,             # IN   of the group, or NULL
    real low,
    real high,
    real* output,                 # OUT  first image of the chunk, first filter of the group, as
    real* pooled,                 # OUT
    int64_t* indices,             # OUT  or NULL
    real* maps,                   # map_elements, of the panel where they are pooled, and what that takes
    const Block* at,
    const Blocking* b,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t n = task // b.panels, panel = task % b.panels, P = b.OH * b.OW, first = panel * b.NR, i, q
        Py_ssize_t pooled_plane = geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
        real* out = maps - first * P if b.pooled_rows else output + n * geometry[GEO_OC] * P
        bint accumulate = geometry[GEO_ACCUMULATE] and not b.pooled_rows
    output_block(
        c, n * at.tiles, panel, input + n * geometry[GEO_IC] * geometry[GEO_IH] * geometry[GEO_IW], weight, bias, out, P, 0,
        b.OH, accumulate, low, high, at, b, geometry, unused,
    )
    for i in range(first, min(first + b.NR, b.OCG) if b.pooled_rows else first):
        q = (n * geometry[GEO_OC] + i) * pooled_plane
        max_pool_rows(
            <const real*> out + i * P, 0, 0, b.pooled_rows, pooled + q, indices + q if indices != NULL else NULL,
            maps + b.map_elements, geometry, unused,
        )


cdef struct Forward:
    const Operands* operands
    double low, high
    Blocking blocking


cdef void conv2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Forward* f = <const Forward*> job
        const Operands* o = f.operands
        const Blocking* b = &f.blocking
        Py_ssize_t at = worker * b.worker_elements
    if o.itemsize == sizeof(float):
        conv2d_task(
            task, <const float*> o.input, <const float*> o.weight, <const float*> o.bias, <float> f.low, <float> f.high,
            <float*> o.output, <float*> o.pooled, o.indices, <float*> o.workspace + at, b, o.geometry, <vf*> NULL,
        )
    else:
        conv2d_task(
            task, <const double*> o.input, <const double*> o.weight, <const double*> o.bias, f.low, f.high,
            <double*> o.output, <double*> o.pooled, o.indices, <double*> o.workspace + at, b, o.geometry, <vd*> NULL,
        )


# What the three phases of a chunk of whole planes share.
cdef struct Chunk:
    Py_ssize_t itemsize
    const void* input         # IN   first image of the chunk, first channel of the group
    const void* u             # IN   of the group, as all of
    const void* weight
    const void* bias          # or NULL
    double low, high
    void* output              # OUT  first image of the chunk, first filter of the group, as
    void* pooled              # OUT
    int64_t* indices          # OUT  or NULL
    void* v
    void* c
    void* scratch
    Py_ssize_t tiles          # of all images
    Block at
    const Blocking* blocking
    const int64_t* geometry


cdef void input_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Chunk* d = <const Chunk*> job
        Py_ssize_t scratch = worker * d.blocking.worker_elements
    if d.itemsize == sizeof(float):
        input_task(
            task, <const float*> d.input, <float*> d.v, <float*> d.scratch + scratch, &d.at, d.blocking, d.geometry, <vf*> NULL
        )
    else:
        input_task(
            task, <const double*> d.input, <double*> d.v, <double*> d.scratch + scratch, &d.at, d.blocking, d.geometry,
            <vd*> NULL,
        )


cdef void multiply_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Chunk* d = <const Chunk*> job
    if d.itemsize == sizeof(float):
        multiply_task(task, <const float*> d.u, <const float*> d.v, <float*> d.c, d.tiles, d.blocking, <vf*> NULL)
    else:
        multiply_task(task, <const double*> d.u, <const double*> d.v, <double*> d.c, d.tiles, d.blocking, <vd*> NULL)


cdef void output_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Chunk* d = <const Chunk*> job
        Py_ssize_t maps = worker * d.blocking.worker_elements + d.blocking.copy_elements
    if d.itemsize == sizeof(float):
        output_task(
            task, <const float*> d.c, <const float*> d.input, <const float*> d.weight, <const float*> d.bias, <float> d.low,
            <float> d.high, <float*> d.output, <float*> d.pooled, d.indices, <float*> d.scratch + maps, &d.at, d.blocking,
            d.geometry, <vf*> NULL,
        )
    else:
        output_task(
            task, <const double*> d.c, <const double*> d.input, <const double*> d.weight, <const double*> d.bias, d.low,
            d.high, <double*> d.output, <double*> d.pooled, d.indices, <double*> d.scratch + maps, &d.at, d.blocking,
            d.geometry, <vd*> NULL,
        )


cdef void chunks_of(const Operands* o, double low, double high, const Blocking* b, int n_threads, real* unused) noexcept nogil:
    """Whole planes: three phases for each chunk of images and group."""
    cdef:
        const int64_t* geo = o.geometry
        Py_ssize_t G = geo[GEO_G], g, n, images, chunk, pooled_plane = geo[GEO_POOL_OH] * geo[GEO_POOL_OW]
        real* v = <real*> o.workspace
        const real* u = <const real*> o.weight
        const real* weight = u + G * b.u_elements
        Block whole = Block(0, b.tile_rows, 0, b.tile_columns, b.tile_rows * b.tile_columns)
        Chunk job
    job.itemsize, job.low, job.high, job.at, job.blocking, job.geometry = sizeof(real), low, high, whole, b, geo
    job.v, job.c, job.scratch = v, v + b.v_elements, v + b.v_elements + b.m_elements
    for chunk in range(G * ceil_div(geo[GEO_N], b.images)):
        g = chunk % G
        n = chunk // G * b.images
        images = min(b.images, geo[GEO_N] - n)
        job.input = <const real*> o.input + (n * G + g) * b.ICG * geo[GEO_IH] * geo[GEO_IW]
        job.u = u + g * b.u_elements
        job.weight = weight + g * b.OCG * b.ICG * b.K * b.K
        job.bias = <const real*> o.bias + g * b.OCG if o.bias != NULL else NULL
        job.output = <real*> o.output + (n * G + g) * b.OCG * b.OH * b.OW if o.output != NULL else NULL
        job.pooled = <real*> o.pooled + (n * G + g) * b.OCG * pooled_plane if o.pooled != NULL else NULL
        job.indices = o.indices + (n * G + g) * b.OCG * pooled_plane if o.indices != NULL else NULL
        job.tiles = images * whole.tiles
        each_task(input_entry, &job, images * b.image_blocks, n_threads)
        each_task(multiply_entry, &job, b.T * b.T * ceil_div(b.panels, b.chunk_panels), n_threads)
        each_task(output_entry, &job, images * b.panels, n_threads)


def conv2d(
    input, packed, bias, double act_min, double act_max, output, pooled, indices, workspace, geometry, int n_threads,
):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    cdef:
        Operands o = operands(input, packed, bias, output, pooled, indices, workspace, geometry)
        const int64_t* geo = o.geometry
        Forward job = Forward(&o, act_min, act_max, blocking(geo, VL_FLOAT if o.itemsize == sizeof(float) else _VL_DOUBLE))
    if geo[GEO_OC] == 0 or geo[GEO_N] == 0:
        return
    with nogil:
        if not job.blocking.shared:
            each_task(conv2d_entry, &job, geo[GEO_N] * geo[GEO_G] * job.blocking.row_blocks, n_threads)
        elif o.itemsize == sizeof(float):
            chunks_of(&o, act_min, act_max, &job.blocking, n_threads, <float*> NULL)
        else:
            chunks_of(&o, act_min, act_max, &job.blocking, n_threads, <double*> NULL)


# ------------------------------------------------------------------------------ kernels: gradient of the weight

# The same products from the other side, with Y' = A dY A^T of every tile of grad_output:
#
#     D[xi] (ICG x OCG) = V[xi]^T (ICG x tiles) @ Y'[xi] (tiles x OCG);     grad_weight = G^T D G
#
#     Y'[xi][panel of NV*VL filters][tile][NV*VL]       D[block][xi][TASK_CHANNELS][TASK_PANELS * NV*VL]
#
# Tiles come in chunks, images or rows of one. The first driver transforms a chunk, the second multiplies: a task owns a
# block of D and adds every chunk to it in order, and turns it to grad_weight after the last. A term of the sum is a tile.
# Of MANY_GROUPS a task is a whole group, in memory of its worker: to start tasks takes longer than what they have to do.
cdef enum:
    # V and Y' of a chunk together stay in the third-level cache; more if D is larger: D, which is read and written for
    # every chunk, need not be kept then
    CHUNK_ELEMENTS = 1 << 20
    # Of a task, in whole tiles of either size: with its panels of filters V[xi] and Y'[xi] stay in the second-level cache,
    # and a layer of few channels is several tasks
    TASK_CHANNELS = 24

cdef extern from *:
    enum:
        TASK_PANELS "(FASTCONV_VL == 16 ? 1 : 2)"


cdef struct Outer:
    Py_ssize_t images, rows, tiles, image_chunks, row_chunks     # of a chunk; chunks
    Py_ssize_t filter_vectors, tile_blocks, panel_blocks, ldd    # of VL filters; blocks of D, from channel to channel
    Py_ssize_t v_step, y_step, d_step                            # from one xi to the next
    Py_ssize_t v_elements, y_elements, d_elements, kept_elements, copy_elements, result_elements, worker_elements


cdef Outer outer(const Blocking* b, const int64_t* geometry) noexcept nogil:
    cdef:
        Outer o
        Py_ssize_t N = geometry[GEO_N], cells = b.T * b.T, plane = b.tile_rows * b.tile_columns, most, d_all
    o.filter_vectors = ceil_div(b.OCG, b.VL)
    o.tile_blocks = ceil_div(b.ICG, TASK_CHANNELS)
    o.panel_blocks = ceil_div(b.panels, TASK_PANELS)
    o.ldd = TASK_PANELS * b.NR
    o.d_step = TASK_CHANNELS * o.ldd + LINE
    o.d_elements = cells * o.d_step
    d_all = o.tile_blocks * o.panel_blocks * o.d_elements
    most = max(CHUNK_ELEMENTS, d_all) // max(cells * (b.channel_blocks * b.VL + b.panels * b.NR), 1)
    o.images = max(min(most // max(plane, 1), N), 1)
    o.image_chunks = ceil_div(N, o.images)
    o.images = ceil_div(N, max(o.image_chunks, 1))
    o.rows = max(min(most // max(b.tile_columns, 1), b.tile_rows), 1)
    o.row_chunks = ceil_div(b.tile_rows, o.rows)
    o.rows = ceil_div(b.tile_rows, max(o.row_chunks, 1))
    o.tiles = o.images * o.rows * b.tile_columns
    o.v_step = b.channel_blocks * o.tiles * b.VL + LINE
    o.y_step = b.panels * o.tiles * b.NR + LINE
    o.v_elements = cells * o.v_step
    o.y_elements = cells * o.y_step
    o.kept_elements = d_all if o.image_chunks * o.row_chunks > 1 else 0
    o.copy_elements = lines((o.rows * b.m + 2) * (b.tile_columns * b.m + 2) * b.VL)
    o.result_elements = TASK_CHANNELS * 9 * o.ldd
    o.worker_elements = max(o.copy_elements, o.result_elements + (0 if o.kept_elements else o.d_elements))
    return o


def conv2d_grad_weight_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: V and Y' of a chunk, D where there are several; copied rows, or a block of results."""
    cdef:
        Blocking b
        Outer o
        Py_ssize_t most = 0, copies, i
        Py_ssize_t[2] lengths = [VL_FLOAT, _VL_DOUBLE]
    for i in range(2):  # chunks of the two are of different sizes
        b = blocking(&geometry[0], lengths[i])
        o = outer(&b, &geometry[0])
        copies = n_workers if geometry[GEO_G] >= MANY_GROUPS else 1
        most = max(most, copies * (o.v_elements + o.y_elements + o.kept_elements) + n_workers * o.worker_elements)
    return most


cdef inline void transform_grad_output(
    const real* copied,         # IN   [rows * m][columns * m][VL]
    real* y,                    # OUT  [xi][...][tile][NV * VL], first tile
    Py_ssize_t y_step,
    const Block* at,
    int T,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), m = T - 2, width = at.columns * m, row, column, step = y_step // VL
        int i
        const vec* source
        vec[MOST_CELLS] half
    for row in range(at.rows):
        for column in range(at.columns):
            source = <const vec*> (copied + (row * width + column) * m * VL)
            for i in range(m):
                grad_output_1d(source + i, width, &half[i], m, T)
            for i in range(T):
                grad_output_1d(&half[i * m], 1, <vec*> y + i * T * step, step, T)
            y += _NV * VL


cdef void transform_task(
    Py_ssize_t task,
    const real* input,            # IN   first image of the chunk, first channel of the group
    const real* grad_output,      # IN   first image of the chunk, first filter of the group
    real* v,                      # OUT
    real* y,                      # OUT
    real* copied,
    const Block* at,
    const Blocking* b,
    const Outer* o,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    # Of each image first the blocks of VL channels, then those of VL filters.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), n = task // (b.channel_blocks + o.filter_vectors), P = b.OH * b.OW
        Py_ssize_t block = task % (b.channel_blocks + o.filter_vectors)
    if block < b.channel_blocks:
        input_block(
            input + n * geometry[GEO_IC] * geometry[GEO_IH] * geometry[GEO_IW],
            v + (block * o.tiles + n * at.tiles) * VL, o.v_step, block, copied, at, b, geometry, unused,
        )
        return
    block -= b.channel_blocks
    copy_rows(
        grad_output + (n * geometry[GEO_OC] + block * VL) * P, copied, min(b.OCG - block * VL, VL), P, b.OW, 1, at.row, 0,
        at.rows * b.m, at.columns * b.m, b.OH, b.OW, unused,
    )
    y += ((block // _NV * o.tiles + n * at.tiles) * _NV + block % _NV) * VL
    if b.T == 4:
        transform_grad_output(<const real*> copied, y, o.y_step, at, 4, unused)
    elif b.T == 6:
        transform_grad_output(<const real*> copied, y, o.y_step, at, 6, unused)
    else:
        transform_grad_output(<const real*> copied, y, o.y_step, at, 8, unused)


cdef inline void outer_sums(
    const real** at,            # IN   MR channels of the first tile, VL elements from tile to tile
    const real* y,              # IN   [tile][NV * VL]
    Py_ssize_t tiles,           # at least one
    vec* acc,                   # INOUT [MR][NV]
    const int nv,               # a constant at each call
) noexcept nogil:
    # The same registers as `tile`; MR pointers move through V together, one tile a step.
    cdef Py_ssize_t t = 0, k, VL = sizeof(vec) // sizeof(real)
    while True:
        for k in range(DEPTHS):
            add_outer(acc, at, t + k * VL, y + k * _NV * VL, _MR, nv, _NV)
            if tiles == k + 1:
                return
        y += DEPTHS * _NV * VL
        t += DEPTHS * VL
        tiles -= DEPTHS


cdef inline void outer_tile(
    const real** cells,         # IN   MR channels of the first tile, VL elements from tile to tile
    const real* y,              # IN   [tile][NV * VL]
    Py_ssize_t tiles,
    real* d,                    # IN/OUT  MR rows of filters, ldd apart
    Py_ssize_t ldd,
    bint first,                 # nothing is there yet
    int nv,                     # a constant at each call
    vec* unused,
) noexcept nogil:
    cdef:
        vec[_MR * _NV] acc
        const real* at[_MR]
        Py_ssize_t i, j, VL = sizeof(vec) // sizeof(real)
    for i in range(_MR):
        at[i] = cells[i]
        for j in range(nv):
            if first:
                fill(&acc[i * _NV + j], <real> 0)
            else:
                acc[i * _NV + j] = (<const vec*> (d + i * ldd + j * VL))[0]
    outer_sums(at, y, tiles, &acc[0], nv)
    for i in range(_MR):
        for j in range(nv):
            (<vec*> (d + i * ldd + j * VL))[0] = acc[i * _NV + j]


cdef inline void transform_products(
    const real* d,              # IN   [xi][channel][filter], first of each
    real* results,              # OUT  [channel][9][filter]
    Py_ssize_t channels,
    Py_ssize_t vectors,         # of filters
    Py_ssize_t ldd,
    Py_ssize_t d_step,
    int T,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), c, j, step = d_step // VL
        int i
        const vec* cells
        vec[24] half
    for c in range(channels):
        for j in range(vectors):
            cells = <const vec*> (d + c * ldd + j * VL)
            for i in range(T):
                grad_weight_1d(cells + i * step, T * step, &half[i], T, T)
            for i in range(3):
                grad_weight_1d(
                    &half[i * T], 1, <vec*> (results + (c * 9 + i * 3) * ldd + j * VL), ldd // VL, T
                )


cdef void conv2d_grad_weight_task(
    Py_ssize_t task,
    const real* v,                # IN
    const real* y,                # IN
    real* kept,                   # IN/OUT  D of all blocks, where there are several chunks
    real* grad_weight,            # OUT  of the group
    real* scratch,
    Py_ssize_t tiles,
    bint first,
    bint last,
    const Blocking* b,
    const Outer* o,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL
        Py_ssize_t panel_from = task % o.panel_blocks * TASK_PANELS, c_from = task // o.panel_blocks * TASK_CHANNELS
        Py_ssize_t panels = min(TASK_PANELS, b.panels - panel_from), channels = min(TASK_CHANNELS, b.ICG - c_from)
        Py_ssize_t filters = min(b.OCG - panel_from * NR, TASK_PANELS * NR), K = b.ICG * 9, xi, panel, tile_index, i, c
        const real* cells[_MR]
        const real* filters_of
        real* d = kept + task * o.d_elements if o.kept_elements else scratch + o.result_elements
        real* target
    for xi in range(b.T * b.T):
        for panel in range(panels):
            filters_of = y + xi * o.y_step + (panel_from + panel) * o.tiles * NR
            for tile_index in range(ceil_div(channels, _MR)):
                for i in range(_MR):
                    c = c_from + min(tile_index * _MR + i, channels - 1)  # past the end: the last channel again
                    cells[i] = v + xi * o.v_step + c // VL * o.tiles * VL + c % VL
                target = d + xi * o.d_step + tile_index * _MR * o.ldd + panel * NR
                if b.OCG - (panel_from + panel) * NR > VL:
                    outer_tile(cells, filters_of, tiles, target, o.ldd, first, _NV, unused)
                else:
                    outer_tile(cells, filters_of, tiles, target, o.ldd, first, 1, unused)
    if not last:
        return
    if b.T == 4:
        transform_products(<const real*> d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, 4, unused)
    elif b.T == 6:
        transform_products(<const real*> d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, 6, unused)
    else:
        transform_products(<const real*> d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, 8, unused)
    store_filters(
        <const real*> scratch, grad_weight + (panel_from * NR * b.ICG + c_from) * 9, channels * 9, filters, o.ldd, K,
        geometry[GEO_ACCUMULATE] != 0, unused,
    )


cdef struct GradWeight:
    Py_ssize_t itemsize
    const char* inputs        # all of them
    const char* grad_outputs
    char* grad_weights
    char* workspace
    const char* input         # of the chunk
    const char* grad_output
    char* v
    char* y
    char* kept
    char* grad_weight         # of the group
    char* scratch
    Block at
    Py_ssize_t images
    Py_ssize_t tiles          # of all images
    bint first, last          # chunk
    const Blocking* blocking
    const Outer* outer
    const int64_t* geometry


cdef void put_workspace(GradWeight* job, char* workspace) noexcept nogil:
    cdef const Outer* o = job.outer
    job.v = workspace
    job.y = job.v + o.v_elements * job.itemsize
    job.kept = job.y + o.y_elements * job.itemsize
    job.scratch = job.kept + o.kept_elements * job.itemsize


cdef void put_chunk(GradWeight* job, Py_ssize_t chunk) noexcept nogil:
    """Chunks of the first group come first."""
    cdef:
        const Blocking* b = job.blocking
        const Outer* o = job.outer
        Py_ssize_t G = job.geometry[GEO_G], chunks = o.image_chunks * o.row_chunks
        Py_ssize_t g = chunk // chunks, n = chunk % chunks // o.row_chunks * o.images
    job.images = min(o.images, job.geometry[GEO_N] - n)
    job.at.row = chunk % o.row_chunks * o.rows * b.m
    job.at.rows = min(o.rows, b.tile_rows - chunk % o.row_chunks * o.rows)
    job.at.column, job.at.columns = 0, b.tile_columns
    job.at.tiles = job.at.rows * job.at.columns
    job.input = job.inputs + (n * G + g) * b.ICG * job.geometry[GEO_IH] * job.geometry[GEO_IW] * job.itemsize
    job.grad_output = job.grad_outputs + (n * G + g) * b.OCG * b.OH * b.OW * job.itemsize
    job.grad_weight = job.grad_weights + g * b.OCG * b.ICG * 9 * job.itemsize
    job.tiles = job.images * job.at.tiles
    job.first, job.last = chunk % chunks == 0, chunk % chunks == chunks - 1


cdef void transform_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const GradWeight* d = <const GradWeight*> job
        Py_ssize_t scratch = worker * d.outer.worker_elements
    if d.itemsize == sizeof(float):
        transform_task(
            task, <const float*> d.input, <const float*> d.grad_output, <float*> d.v, <float*> d.y,
            <float*> d.scratch + scratch, &d.at, d.blocking, d.outer, d.geometry, <vf*> NULL,
        )
    else:
        transform_task(
            task, <const double*> d.input, <const double*> d.grad_output, <double*> d.v, <double*> d.y,
            <double*> d.scratch + scratch, &d.at, d.blocking, d.outer, d.geometry, <vd*> NULL,
        )


cdef void conv2d_grad_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const GradWeight* d = <const GradWeight*> job
        Py_ssize_t scratch = worker * d.outer.worker_elements
    if d.itemsize == sizeof(float):
        conv2d_grad_weight_task(
            task, <const float*> d.v, <const float*> d.y, <float*> d.kept, <float*> d.grad_weight,
            <float*> d.scratch + scratch, d.tiles, d.first, d.last, d.blocking, d.outer, d.geometry, <vf*> NULL,
        )
    else:
        conv2d_grad_weight_task(
            task, <const double*> d.v, <const double*> d.y, <double*> d.kept, <double*> d.grad_weight,
            <double*> d.scratch + scratch, d.tiles, d.first, d.last, d.blocking, d.outer, d.geometry, <vd*> NULL,
        )


cdef void group_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        GradWeight d = (<const GradWeight*> job)[0]
        const Outer* o = d.outer
        Py_ssize_t elements = o.v_elements + o.y_elements + o.kept_elements + o.worker_elements
        Py_ssize_t chunks = o.image_chunks * o.row_chunks, chunk, i
    put_workspace(&d, d.workspace + worker * elements * d.itemsize)
    for chunk in range(task * chunks, (task + 1) * chunks):
        put_chunk(&d, chunk)
        for i in range(d.images * (d.blocking.channel_blocks + o.filter_vectors)):
            transform_entry(&d, i, 0)
        for i in range(o.tile_blocks * o.panel_blocks):
            conv2d_grad_weight_entry(&d, i, 0)


def conv2d_grad_weight(
    const real[:, :, :, ::1] input,
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_weight,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in the weight: grad_weight (OC, ICG, 3, 3), added to what is there with accumulate."""
    cdef:
        Blocking b = blocking(&geometry[0], VL_FLOAT if real is float else _VL_DOUBLE)
        Outer o = outer(&b, &geometry[0])
        Py_ssize_t G = geometry[GEO_G], chunks = o.image_chunks * o.row_chunks, chunk
        real* dw = <real*> start(grad_weight)
        GradWeight job
    if chunks == 0:
        if not geometry[GEO_ACCUMULATE] and dw != NULL:
            memset(dw, 0, G * b.OCG * b.ICG * 9 * sizeof(real))
        return
    job.itemsize, job.blocking, job.outer, job.geometry = sizeof(real), &b, &o, &geometry[0]
    job.inputs, job.grad_outputs, job.grad_weights = <const char*> start(input), <const char*> start(grad_output), <char*> dw
    job.workspace = <char*> &workspace[0]
    if G >= MANY_GROUPS:
        with nogil:
            each_task(group_entry, &job, G, n_threads)
        return
    put_workspace(&job, job.workspace)
    for chunk in range(G * chunks):
        put_chunk(&job, chunk)
        with nogil:
            each_task(transform_entry, &job, job.images * (b.channel_blocks + o.filter_vectors), n_threads)
            each_task(conv2d_grad_weight_entry, &job, o.tile_blocks * o.panel_blocks, n_threads)
