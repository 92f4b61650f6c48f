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
reads a panel's maps in the last. Of MANY_GROUPS a task does all of this for the images of one group, or for its rows.

A sum over few channels is too short to be worth writing down. Layers of at most THIN_CHANNELS have vectors along tiles:

    U[FILTERS filters][column][channel][row][FILTERS]  each cell is broadcast
    V[column][channel][row][VL tiles]                  of a square of tiles: a 128-bit lane is tiles of one row, the next one below
    M is six rows of a column for FILTERS filters: accumulators, transformed at once

    block of tiles, whose cells are copied with their border
    loop 1 over squares of tiles: transform V
    loop 2 over FILTERS filters: columns of products, transforms, epilogue; windows of 2 x 2 are pooled in registers

Below the arrays of a task everything is an address (see _simd.py): ``dtype`` is the element type, ``size`` its bytes.
Every product that is added to something is an explicit fma: bits must not depend on what a compiler contracts where.
"""

from collections import namedtuple  # geometry names, as many a line as fit
from functools import lru_cache

import numpy as np

from fastconv._numba._common import CACHE_LINE, DEPTHS, LINE, ceil_div, clamp, fields_at, lines
from fastconv._numba._common import WINOGRAD_MR as MR
from fastconv._numba._common import WINOGRAD_NV as NV
from fastconv._numba._fused_pool import max_pool_rows, pool_ring_size
from fastconv._numba._lanes import store_filters
from fastconv._numba._jit import const_int64, const_real, helper, index, int64, real, task
from fastconv._numba._simd import (
    VL_DOUBLE, VL_FLOAT, address, broadcast, clear, copy, fma, get, itemsize, lanes, load, local, outlined, prefetch,
    put, rolled, store, vmax, vmin,
)  # fmt: skip
from fastconv._numba._straight import straight
from fastconv._numba._winograd_simd import (
    any_nan, high, load_lanes, load_twos, low, store_lanes, store_twos, transpose,
)  # fmt: skip
from fastconv._problem import (
    GEO_ACCUMULATE, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_N, GEO_OC, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP,
    GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_TILE, GEO_TURNED,
)  # fmt: skip
from fastconv._problem import WINOGRAD_POINTS as POINTS

# V and M of a block stay in the second-level cache, or stream through the third, where U is the larger part.
MOST_TILES = 32  # of a block
MOST_TILES_DEEP = 64  # with more than DEEP channels: U is read once for each block
DEEP = 128
FEW_TILES = 100  # planes of fewer share their phases, and those of fewer than
FEW_OVERLAPPED = 256  # these, of which tasks of their own would compute rows twice for windows that overlap
OVERLAPPED_TASKS = 8  # of larger ones, at most
MANY_GROUPS = 16  # of so many no phases are shared: they are tasks enough, and small
SHARED_ELEMENTS = 3 << 20  # of V and M together, where several images share them, or more tiles than FEW_TILES
PANEL_CHUNKS = 4  # tasks that a matrix product is split into
TURNED = 16  # channels of a weight that are turned at a time
STRIP_BYTES = 24576  # of a dense copy, whose lines stay in the first-level cache until all lanes are written
LANES = VL_FLOAT // 4  # of 128 bits in a vector
THIN_CHANNELS = 4 if VL_FLOAT > 4 else 3  # where vectors along channels would be half empty, or less full
FILTERS = 4 if VL_FLOAT == 16 else 2  # of thin layers: six vectors of products of each stay in registers
THIN_CELLS = 32768  # elements of their copied cells, so that these stay in the second-level cache
MOST_CELLS = 64 * VL_FLOAT  # elements of T * T vectors,
MOST_RESULTS = 36 * VL_FLOAT  # of m * m, and
MOST_TAPS = 144 * VL_FLOAT  # of a kernel,
HALF_CELLS = 24 * FILTERS * VL_FLOAT  # of half transformed thin tiles
FOUR_KERNELS = 4 * MOST_TAPS  # of those of 4 channels
CHUNK_ELEMENTS = 1 << 20  # of V and Y' together: they stay in the third-level cache; more if D is larger, so that D,
# which is read and written for every chunk, need not be kept
# Of a task, in whole tiles of either size: with its panels of filters V[xi] and Y'[xi] stay in the second-level cache, and a
# layer of few channels is several tasks.
TASK_CHANNELS = 24
TASK_PANELS = 1 if VL_FLOAT == 16 else 2


# --------------------------------------------------------------------------------------- one-dimensional transforms

# Points come in pairs, so B^T, A^T and G split into even and odd parts. With h = T / 2 - 1 pairs of points p_i, everything
# follows from the polynomials prod (x^2 - p_l^2) over all l, and over all but one.


def squares(T, without=-1):
    return [p * p for i, p in enumerate(POINTS.get(T - 2, ())) if i != without]


def monic(roots):
    """Coefficients of prod (x - root), lowest power first."""
    return np.atleast_1d(np.poly(roots))[::-1].tolist()


def scale(T, i):
    """1 / prod (p_i - p_l) over all other points."""
    square = squares(T)[i]
    return 1 / (2 * square * np.prod([square - other for other in squares(T, i)]))


EXTENTS = [m + 2 for m in POINTS]
PAIRS = {T: range(len(POINTS[T - 2])) for T in EXTENTS}
POINT = {T: POINTS[T - 2] for T in EXTENTS}
POWER = {T: [[p**k for k in range(6)] for p in POINTS[T - 2]] for T in EXTENTS}
ALL_PAIRS = {T: monic(squares(T)) for T in EXTENTS}
OTHER_PAIRS = {T: [monic(squares(T, i)) for i in PAIRS[T]] for T in EXTENTS}
SCALE_0 = {T: 1 / monic(squares(T))[0] for T in EXTENTS}
SCALE = {T: [float(scale(T, i)) for i in PAIRS[T]] for T in EXTENTS}


# T, m and r are literals, so that coefficients are constants of the machine code.
@straight
def input_1d(cells, step, out, out_step, dtype, T):
    """out = B^T cells: T vectors, ``step`` bytes apart."""
    transform_cells([load(cells + i * step, 0, dtype) for i in range(T)], out, out_step, dtype, T)


@straight
def transform_cells(x, out, out_step, dtype, T):
    """out = B^T x of T vectors."""
    even, odd = x[T - 2], x[T - 1]
    for k in range(T // 2 - 2, -1, -1):
        c = broadcast(dtype.type(ALL_PAIRS[T][k]))
        even, odd = fma(c, x[2 * k], even), fma(c, x[2 * k + 1], odd)
    store(out, 0, even)
    store(out + (T - 1) * out_step, 0, odd)
    for i in PAIRS[T]:
        even, odd = x[T - 2], x[T - 3]
        for k in range(T // 2 - 3, -1, -1):
            c = broadcast(dtype.type(OTHER_PAIRS[T][i][k]))
            even, odd = fma(c, x[2 * k + 2], even), fma(c, x[2 * k + 1], odd)
        store(out + (2 * i + 1) * out_step, 0, fma(broadcast(dtype.type(POINT[T][i])), odd, even))
        store(out + (2 * i + 2) * out_step, 0, fma(broadcast(dtype.type(-POINT[T][i])), odd, even))


@straight
def output_1d(cells, step, out, out_step, dtype, T, m):
    """out = A^T cells: m vectors from T."""
    transform_products_of([load(cells + i * step, 0, dtype) for i in range(T)], out, out_step, dtype, T, m)


@straight
def transform_products_of(x, out, out_step, dtype, T, m):
    """out = A^T x of T vectors."""
    sums, differences = [x[2 * i + 1] + x[2 * i + 2] for i in PAIRS[T]], [x[2 * i + 1] - x[2 * i + 2] for i in PAIRS[T]]
    total = x[0]
    for term in sums:
        total = total + term
    store(out, 0, total)
    for k in range(1, m - 1):
        terms = differences if k % 2 else sums
        total = broadcast(dtype.type(POWER[T][0][k])) * terms[0]
        for i in PAIRS[T][1:]:
            total = fma(broadcast(dtype.type(POWER[T][i][k])), terms[i], total)
        store(out + k * out_step, 0, total)
    total = x[T - 1]
    for i in PAIRS[T]:
        total = fma(broadcast(dtype.type(POWER[T][i][m - 1])), differences[i], total)
    store(out + (m - 1) * out_step, 0, total)


@straight
def weight_1d(cells, step, out, out_step, dtype, T, r):
    """out = G cells: T vectors from r."""
    x = [load(cells + k * step, 0, dtype) for k in range(r)]
    store(out, 0, broadcast(dtype.type(SCALE_0[T])) * x[0])
    for i in PAIRS[T]:
        even, odd = x[0], x[1]
        for k in range(2, r, 2):
            even = fma(broadcast(dtype.type(POWER[T][i][k])), x[k], even)
        for k in range(3, r, 2):
            odd = fma(broadcast(dtype.type(POWER[T][i][k - 1])), x[k], odd)
        even = broadcast(dtype.type(SCALE[T][i])) * even
        c = dtype.type(POINT[T][i] * SCALE[T][i])
        store(out + (2 * i + 1) * out_step, 0, fma(broadcast(c), odd, even))
        store(out + (2 * i + 2) * out_step, 0, fma(broadcast(-c), odd, even))
    store(out + (T - 1) * out_step, 0, x[r - 1])


@straight
def grad_output_1d(cells, step, out, out_step, dtype, T):
    """out = A cells: T vectors from m = T - 2."""
    x = [load(cells + k * step, 0, dtype) for k in range(T - 2)]
    store(out, 0, x[0])
    store(out + (T - 1) * out_step, 0, x[T - 3])
    for i in PAIRS[T]:
        even = x[0]
        odd = broadcast(dtype.type(POINT[T][i])) * x[1]
        for k in range(2, T - 2, 2):
            even = fma(broadcast(dtype.type(POWER[T][i][k])), x[k], even)
            odd = fma(broadcast(dtype.type(POWER[T][i][k + 1])), x[k + 1], odd)
        store(out + (2 * i + 1) * out_step, 0, even + odd)
        store(out + (2 * i + 2) * out_step, 0, even - odd)


@straight
def grad_weight_1d(cells, step, out, out_step, dtype, T):
    """out = G^T cells: 3 vectors from T."""
    x0 = broadcast(dtype.type(SCALE_0[T])) * load(cells, 0, dtype)
    x1 = broadcast(dtype.type(0))
    x2 = load(cells + (T - 1) * step, 0, dtype)
    for i in PAIRS[T]:
        plus = load(cells + (2 * i + 1) * step, 0, dtype)
        minus = load(cells + (2 * i + 2) * step, 0, dtype)
        total = broadcast(dtype.type(SCALE[T][i])) * (plus + minus)
        x0 = x0 + total
        x1 = fma(broadcast(dtype.type(POINT[T][i] * SCALE[T][i])), plus - minus, x1)
        x2 = fma(broadcast(dtype.type(POWER[T][i][2])), total, x2)
    store(out, 0, x0)
    store(out + out_step, 0, x1)
    store(out + 2 * out_step, 0, x2)


# ---------------------------------------------------------------------------------------------------------- blocking

Blocking = namedtuple(
    "Blocking",
    "ICG OCG K S OH OW m r T VL NR "  # kernels of K x K, stride S: r x r taps for each of S * S phases
    "dense "  # phases of few channels share vectors
    "spacing phase_step "  # of cells that a phase's columns are copied to; its channels
    "image_blocks channel_blocks "  # of VL channels: that are copied together, and all
    "panels chunk_panels "  # of NR filters; panels of a task
    "tile_rows tile_columns "  # of a plane
    "thin pools_tiles "  # vectors along tiles; windows are 2 x 2 cells of them
    "shared "  # several images at once, phase by phase, of one group after the other
    "images rows columns tiles "  # of a block: images, rows and columns of tiles, tiles
    "task_rows row_blocks pooled_rows "  # output rows of a task at most, tasks of a plane, pooled rows
    "u_step v_step m_step "  # from one xi to the next
    "u_elements v_elements m_elements copy_elements map_elements worker_elements",
)

# A block of tiles of one plane: first output row, rows of tiles, the same for columns; and their number.
Block = namedtuple("Block", "row rows column columns tiles")


def blocking(geometry, VL):
    """Every size that a plan of loops needs; a function of the problem alone, never of the thread count."""
    G = max(geometry[GEO_G], 1)
    ICG, OCG = geometry[GEO_IC] // G, geometry[GEO_OC] // G
    OH, OW = geometry[GEO_OH], geometry[GEO_OW]
    K, S, m = geometry[GEO_KH], geometry[GEO_STRIDE_H], geometry[GEO_TILE]
    r = ceil_div(K, S)
    T, NR = m + r - 1, NV * VL
    dense = int(S > 1 and ICG < VL_FLOAT)  # in both dtypes: packed sizes are of the longer vectors
    spacing = 1 if dense > 0 else S
    phase_step = ICG if dense > 0 else ceil_div(ICG, VL) * VL
    channel_blocks = ceil_div(S * S * phase_step, VL)
    image_blocks = channel_blocks if dense > 0 else ceil_div(ICG, VL)
    panels = ceil_div(OCG, NR)
    chunk_panels = max(ceil_div(panels, PANEL_CHUNKS), 1)
    tile_rows, tile_columns = ceil_div(OH, m), ceil_div(OW, m)
    plane, cells = tile_rows * tile_columns, T * T
    pooled_rows = 0
    map_elements = 0
    pools = geometry[GEO_POOL_KH] > 0
    elements = cells * plane * (S * S * ICG + OCG)
    overlaps = geometry[GEO_POOL_KH] > geometry[GEO_POOL_STRIDE_H]
    thin = int(m == 4 and K == 3 and ICG <= THIN_CHANNELS)  # whatever the plane: one packed weight serves all
    pools_tiles = int(
        thin > 0 and geometry[GEO_POOL_KH] == 2 and geometry[GEO_POOL_KW] == 2
        and geometry[GEO_POOL_STRIDE_H] == 2 and geometry[GEO_POOL_STRIDE_W] == 2
        and geometry[GEO_POOL_PAD_TOP] == 0 and geometry[GEO_POOL_PAD_LEFT] == 0
    )  # fmt: skip
    few = plane < FEW_TILES or (overlaps and plane < FEW_OVERLAPPED and elements <= SHARED_ELEMENTS)
    together = few and (G < MANY_GROUPS or not pools) and thin == 0
    in_phases = int(together and G < MANY_GROUPS)
    if together:
        images = min(FEW_TILES // max(plane, 1), SHARED_ELEMENTS // max(elements, 1))
        images = max(min(images, geometry[GEO_N]), 1)
        rows = tile_rows
        columns = tile_columns
        task_rows = OH
        row_blocks = 1
        if pools:
            pooled_rows = geometry[GEO_POOL_OH]
            map_elements = lines(NR * OH * OW)
    else:
        images = 1
        if thin > 0:
            most = THIN_CELLS // max(ICG * (LANES * m + 2) * m, 1) - 1
            columns = max(min(ceil_div(tile_columns, 4), most // 4), 1) * 4  # whole squares of either dtype
            rows = LANES
            row_blocks = ceil_div(tile_rows, rows)
        else:
            most = MOST_TILES_DEEP if max(S * S * ICG, OCG) > DEEP else MOST_TILES
            columns = max(ceil_div(tile_columns, max(ceil_div(tile_columns, most), 1)), 1)
            rows = max(most // columns, 1)
            row_blocks = ceil_div(tile_rows, rows)
            if not pools and 1 < row_blocks < tile_rows:  # two threads share an even number better
                row_blocks += row_blocks % 2
            rows = ceil_div(tile_rows, max(row_blocks, 1))
        task_rows = rows * m
        if pools:
            stride_h = geometry[GEO_POOL_STRIDE_H]
            pooled_rows = max((task_rows - max(geometry[GEO_POOL_KH] - stride_h, 0)) // stride_h, 1)
            if overlaps:
                pooled_rows = max(pooled_rows, ceil_div(geometry[GEO_POOL_OH], OVERLAPPED_TASKS))
            row_blocks = ceil_div(geometry[GEO_POOL_OH], pooled_rows)
            task_rows = min((pooled_rows - 1) * stride_h + geometry[GEO_POOL_KH], OH)
            map_elements = lines(OCG * task_rows * OW)
    tiles = images * rows * columns
    # One line between slabs, so that their distances are no multiples of a page
    u_step = panels * channel_blocks * VL * NR + LINE
    v_step = channel_blocks * tiles * VL + LINE
    m_step = panels * tiles * NR + LINE
    u_elements, v_elements, m_elements = cells * u_step, cells * v_step, cells * m_step
    copy_elements = lines((rows * m + r - 1) * (columns * m + r - 1) * S * VL)
    if thin > 0:
        u_elements = lines(ceil_div(OCG, FILTERS) * FILTERS * cells * ICG)
        v_elements, m_elements = cells * ICG * VL, 0
        copy_elements = lines(ICG * (rows * m + 2) * (columns + 1) * m)
    worker_elements = copy_elements + map_elements + lines(pool_ring_size(geometry))
    worker_elements += 0 if in_phases else v_elements + m_elements
    return Blocking(
        ICG, OCG, K, S, OH, OW, m, r, T, VL, NR, dense, spacing, phase_step, image_blocks, channel_blocks, panels,
        chunk_panels, tile_rows, tile_columns, thin, pools_tiles, in_phases, images, rows, columns, tiles, task_rows,
        row_blocks, pooled_rows, u_step, v_step, m_step, u_elements, v_elements, m_elements, copy_elements, map_elements,
        worker_elements,
    )  # fmt: skip


Outer = namedtuple(
    "Outer",
    "images rows tiles image_chunks row_chunks "  # of a chunk; chunks
    "filter_vectors tile_blocks panel_blocks ldd "  # of VL filters; blocks of D, from channel to channel
    "v_step y_step d_step "  # from one xi to the next
    "v_elements y_elements d_elements kept_elements result_elements worker_elements",
)


def outer(b, geometry):
    N, cells, plane = geometry[GEO_N], b.T * b.T, b.tile_rows * b.tile_columns
    filter_vectors = ceil_div(b.OCG, b.VL)
    tile_blocks, panel_blocks = ceil_div(b.ICG, TASK_CHANNELS), ceil_div(b.panels, TASK_PANELS)
    ldd = TASK_PANELS * b.NR
    d_step = TASK_CHANNELS * ldd + LINE
    d_elements = cells * d_step
    d_all = tile_blocks * panel_blocks * d_elements
    most = max(CHUNK_ELEMENTS, d_all) // max(cells * (b.channel_blocks * b.VL + b.panels * b.NR), 1)
    images = max(min(most // max(plane, 1), N), 1)
    image_chunks = ceil_div(N, images)
    images = ceil_div(N, max(image_chunks, 1))
    rows = max(min(most // max(b.tile_columns, 1), b.tile_rows), 1)
    row_chunks = ceil_div(b.tile_rows, rows)
    rows = ceil_div(b.tile_rows, max(row_chunks, 1))
    tiles = images * rows * b.tile_columns
    v_step = b.channel_blocks * tiles * b.VL + LINE
    y_step = b.panels * tiles * b.NR + LINE
    kept_elements = d_all if image_chunks * row_chunks > 1 else 0
    copy_elements = lines((rows * b.m + 2) * (b.tile_columns * b.m + 2) * b.VL)
    result_elements = TASK_CHANNELS * 9 * ldd
    worker_elements = max(copy_elements, result_elements + (0 if kept_elements > 0 else d_elements))
    return Outer(
        images, rows, tiles, image_chunks, row_chunks, filter_vectors, tile_blocks, panel_blocks, ldd, v_step, y_step,
        d_step, cells * v_step, cells * y_step, d_elements, kept_elements, result_elements, worker_elements,
    )  # fmt: skip


Plan = namedtuple("Plan", "blocking outer words")  # words: both as one array


@lru_cache(maxsize=1024)
def _planned(geometry, VL):
    g = np.frombuffer(geometry, np.int64).tolist()
    b = blocking(g, VL)
    o = outer(b, g)
    return Plan(b, o, np.array((*b, *o), np.int64))


def plan_of(geometry, itemsize=4):
    """Kept, for in Python it costs 10 us. Tasks get its words: they may be as small as a channel."""
    return _planned(geometry.tobytes(), VL_FLOAT if itemsize == 4 else VL_DOUBLE)


BLOCKING_BYTES = 8 * len(Blocking._fields)


@helper
def blocking_in(words):
    return fields_at(address(words), Blocking)


@helper
def outer_in(words):
    return fields_at(address(words) + BLOCKING_BYTES, Outer)


# ------------------------------------------------------------------------------------------------- input transform


@straight
def turn_square(source, target, p, plane, dtype):
    VL, quad = lanes(dtype), 16 // itemsize(dtype)
    z = [load_lanes(source, p + j // quad * quad + j % quad * plane, quad * plane, dtype) for j in range(4)]
    for j, v in enumerate(transpose(*z)):
        store(target, (p + j) * VL, v)


@helper
def copy_rows(
    image,  # IN   VL planes, or fewer
    copied,  # OUT  [height][width][VL]
    planes,
    plane,  # from one plane to the next
    IW,  # from one row to the next
    row_step,  # rows from one that is copied to the next
    top,
    left,
    height,
    width,
    row_end,  # cells from here on are not read
    column_end,
    dtype,
):
    """The cells of a window on the planes, planes last; zero outside 0 .. row_end, 0 .. column_end."""
    outlined()
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    first = min(max(-left, 0), width)
    last = min(max(column_end - left, first), width)
    for row in range(height):
        ih = top + row * row_step
        target = copied + row * width * VL * size
        if ih < 0 or ih >= row_end or first == last:
            clear(target, width * VL * size)
            continue
        source = image + (ih * IW + left) * size
        clear(target, first * VL * size)
        clear(target + last * VL * size, (width - last) * VL * size)
        if planes == VL and last - first >= 4:
            p = first
            while True:  # the last four overlap those before
                turn_square(source, target, p, plane, dtype)
                if p == last - 4:
                    break
                p = min(p + 4, last - 4)
        else:
            for p in range(first, last):
                for c in range(planes):
                    put(target, p * VL + c, get(source, c * plane + p, dtype))
                for c in range(planes, VL):
                    put(target, p * VL + c, zero)


@helper
def transform_input(
    copied,  # IN   first column of the phase
    v,  # OUT  [xi][...][tile][VL], first tile
    v_step,  # from one xi to the next
    at,
    b,
    dtype,
    T,
):
    outlined()
    size = itemsize(dtype)
    vector, S, m = lanes(dtype) * size, b.spacing, b.m
    width, step = (at.columns * m + b.r - 1) * S * vector, v_step * size
    memory = local(MOST_CELLS, dtype)
    half = address(memory)
    for row in range(at.rows):
        for column in range(at.columns):
            source = copied + row * m * width + column * m * S * vector
            for i in range(T):
                rolled()
                input_1d(source + i * S * vector, width, half + i * vector, T * vector, dtype, T)
            for i in range(T):
                rolled()
                input_1d(half + i * T * vector, vector, v + i * T * step, step, dtype, T)
            v += vector


@helper
def copy_phases(
    image,  # IN   channels of one group of one image
    copied,  # OUT  [height][width][VL]
    block,  # of VL channels of all phases, phase by phase
    top,  # of the first phase
    left,
    height,
    width,
    row_end,
    column_end,
    b,
    geometry,
    dtype,
):
    """`copy_rows` of every S-th row and column, a lane for each channel of each phase."""
    outlined()
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    IH, IW, S = geometry[GEO_IH], geometry[GEO_IW], b.S
    rows = max(STRIP_BYTES // max(width * VL * size, 1), 1)  # of a strip
    for strip in range(ceil_div(height, rows)):
        for lane in range(VL):
            channel = block * VL + lane
            phase = channel // b.ICG
            iw = left + phase % S
            first = min(max(ceil_div(-iw, S), 0), width) if iw < 0 else 0
            last = min(max(ceil_div(column_end - iw, S), first), width) if iw < column_end else first
            for row in range(strip * rows, min(strip * rows + rows, height)):
                ih = top + phase // S + row * S
                target = copied + (row * width * VL + lane) * size
                if ih < 0 or ih >= row_end or phase >= S * S:
                    for p in range(width):
                        put(target, p * VL, zero)
                    continue
                source = image + ((channel % b.ICG * IH + ih) * IW + iw) * size
                for p in range(first):
                    put(target, p * VL, zero)
                for p in range(first, last):
                    rolled()
                    put(target, p * VL, get(source, p * S, dtype))
                for p in range(last, width):
                    put(target, p * VL, zero)


@helper
def input_block(
    image,  # IN   channels of one group of one image
    v,  # OUT  [xi][...][tile][VL], first tile of the block of channels
    v_step,
    block,  # of channels
    copied,
    at,
    b,
    geometry,
    dtype,
):
    # A stride leaves S * S images of every S-th row and column: each is so many channels more, with a kernel of its own.
    VL, size, S = lanes(dtype), itemsize(dtype), b.S
    IH, IW = geometry[GEO_IH], geometry[GEO_IW]
    top, left = at.row * S - geometry[GEO_PAD_TOP], at.column * S - geometry[GEO_PAD_LEFT]
    row_end, column_end = (
        min(IH, (b.OH - 1) * S + b.K - geometry[GEO_PAD_TOP]),
        min(IW, (b.OW - 1) * S + b.K - geometry[GEO_PAD_LEFT]),
    )
    height, width = at.rows * b.m + b.r - 1, at.columns * b.m + b.r - 1
    for row in range(1 if b.dense > 0 else S):
        if b.dense > 0:
            copy_phases(image, copied, block, top, left, height, width, row_end, column_end, b, geometry, dtype)
        else:
            copy_rows(
                image + block * VL * IH * IW * size, copied, min(b.ICG - block * VL, VL), IH * IW, IW, S, top + row, left,
                height, width * S, row_end, column_end, dtype,
            )  # fmt: skip
        for column in range(b.spacing):
            first = copied + column * VL * size
            if b.T == 4:
                transform_input(first, v, v_step, at, b, dtype, 4)
            elif b.T == 6:
                transform_input(first, v, v_step, at, b, dtype, 6)
            else:
                transform_input(first, v, v_step, at, b, dtype, 8)
            v += b.image_blocks * b.tiles * VL * size


# ------------------------------------------------------------------------------------------------- matrix product


@straight
def no_sums(dtype, rows, nv):
    return [[broadcast(dtype.type(0))] * nv] * rows


@straight
def add_products(acc, cells, u, ahead, dtype):
    VL = lanes(dtype)
    for k in range(DEPTHS):
        x = [load(u, (k * NV + j) * VL, dtype) for j in range(len(acc[0]))]
        for i, sums in enumerate(acc):
            cell = broadcast(get(cells, i * VL + k, dtype))
            acc[i] = [fma(cell, filters, total) for filters, total in zip(x, sums, strict=True)]
        for at in range(0, NV * VL * itemsize(dtype), CACHE_LINE):
            prefetch(u + ahead + k * NV * VL * itemsize(dtype) + at)
    return acc


@straight
def store_sums(acc, c, ldc, dtype):
    for i, sums in enumerate(acc):
        for j, v in enumerate(sums):
            store(c, i * ldc + j * lanes(dtype), v)


@helper
def tile(
    v,  # IN   [blocks][tile][VL], ``step`` bytes from block to block
    u,  # IN   [blocks * VL][NV * VL]
    blocks,
    step,
    ahead,  # bytes from a panel of u to the next, fetched meanwhile
    c,  # OUT  [tile][NV * VL]
    dtype,
    rows,  # tiles, and
    nv,  # vectors of filters: literals
):
    # MR * NV independent FMA chains hide the latency of each; every accumulator, the vectors of filters and one
    # broadcast cell stay in registers.
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    acc = no_sums(dtype, rows, nv)
    for _ in range(blocks):
        cells = v
        for _ in range(VL // DEPTHS):
            rolled()
            acc = add_products(acc, cells, u, ahead, dtype)
            cells += DEPTHS * size
            u += DEPTHS * NV * VL * size
        v += step
    store_sums(acc, c, NV * VL, dtype)


@helper
def tile_of(v, u, blocks, step, ahead, c, dtype, rows, nv):
    """`tile` with its rows as a literal."""
    if rows == 1:
        tile(v, u, blocks, step, ahead, c, dtype, 1, nv)
    elif rows == 2:
        tile(v, u, blocks, step, ahead, c, dtype, 2, nv)
    elif rows == 3:
        tile(v, u, blocks, step, ahead, c, dtype, 3, nv)
    elif rows == 4:
        tile(v, u, blocks, step, ahead, c, dtype, 4, nv)
    elif rows == 5:
        tile(v, u, blocks, step, ahead, c, dtype, 5, nv)
    elif MR == 6 or rows == 6:
        tile(v, u, blocks, step, ahead, c, dtype, 6, nv)
    elif rows == 7:
        tile(v, u, blocks, step, ahead, c, dtype, 7, nv)
    elif rows == 8:
        tile(v, u, blocks, step, ahead, c, dtype, 8, nv)
    elif rows == 9:
        tile(v, u, blocks, step, ahead, c, dtype, 9, nv)
    elif rows == 10:
        tile(v, u, blocks, step, ahead, c, dtype, 10, nv)
    elif rows == 11:
        tile(v, u, blocks, step, ahead, c, dtype, 11, nv)
    else:
        tile(v, u, blocks, step, ahead, c, dtype, 12, nv)


@helper
def multiply(
    u,  # IN   one xi: [panel][channel][NV * VL]
    v,  # IN   [channel block][tile][VL]
    c,  # OUT  [panel][tile][NV * VL]
    panel_from,
    panel_to,
    tiles,
    b,
    dtype,
):
    outlined()
    # Tiles in groups of nearly equal size: all have accumulators enough.
    VL, size = lanes(dtype), itemsize(dtype)
    NR, groups = NV * VL, ceil_div(tiles, MR)
    step, ahead = b.tiles * VL * size, b.channel_blocks * VL * NR * size
    for panel in range(panel_from, panel_to):  # loop 3: filters
        nv = min(ceil_div(b.OCG - panel * NR, VL), NV)
        filters = u + panel * ahead
        target = c + panel * b.tiles * NR * size
        t = 0
        for group in range(groups):  # loop 4: tiles
            rows = tiles // groups + (1 if group < tiles % groups else 0)
            cells, sums = v + t * VL * size, target + t * NR * size
            if nv == 1:
                tile_of(cells, filters, b.channel_blocks, step, ahead, sums, dtype, rows, 1)
            else:
                tile_of(cells, filters, b.channel_blocks, step, ahead, sums, dtype, rows, 2)
            t += rows


# ------------------------------------------------------------------------------------------------ output transform


@helper
def sum_again(
    y,  # IN/OUT  [m * m][VL]
    image,  # IN   channels of one group of one image
    weight,  # IN   filters (ICG, K, K)
    count,  # of lanes that are looked at
    oh_from,
    ow_from,
    b,
    geometry,
    dtype,
):
    """Tiles with a value that is not finite, by the definition: lane by lane, each a filter, or a tile of the first one."""
    outlined()
    IH, IW, m, VL, K, size, zero = geometry[GEO_IH], geometry[GEO_IW], b.m, b.VL, b.K, itemsize(dtype), dtype.type(0)
    quad = VL // LANES
    for lane in range(count):
        total = zero
        for i in range(m * m):
            total = total + get(y, i * VL + lane, dtype) * zero
        if total == zero:
            continue
        oh = oh_from + (lane // quad * m if b.thin > 0 else 0)
        ow = ow_from + (lane % quad * m if b.thin > 0 else 0)
        for i in range(m):
            for j in range(m):
                total = zero
                w = weight + (0 if b.thin > 0 else lane * b.ICG * K * K * size)
                for c in range(b.ICG):
                    for kh in range(K):
                        ih = (oh + i) * b.S + kh - geometry[GEO_PAD_TOP]
                        for kw in range(K):
                            iw = (ow + j) * b.S + kw - geometry[GEO_PAD_LEFT]
                            inside = 0 <= ih < IH and 0 <= iw < IW
                            cell = get(image, (c * IH + ih) * IW + iw, dtype) if inside else zero
                            total = total + get(w, kh * K + kw, dtype) * cell
                    w += K * K * size
                put(y, (i * m + j) * VL + lane, total)


# Elements of a 128-bit lane go ``apart``, lanes ``lane_step``.
@straight
def store_row(cells, row, apart, lane_step, accumulate, shift, least, most, dtype, m):
    """m vectors of filters, or of tiles, as a row of m pixels of each: 4 at once, and 2."""
    VL, quad = lanes(dtype), 16 // itemsize(dtype)
    z = [load(cells, j * VL, dtype) + shift for j in range(m)]
    for q in range(0, m - 3, 4):
        for j, v in enumerate(transpose(*z[q : q + 4])):
            offset = q + j // quad * quad + j % quad * apart
            if accumulate:
                v = v + load_lanes(row, offset, lane_step, dtype)
            store_lanes(row, offset, lane_step, vmin(most, vmax(least, v)))
    if m % 4 == 2:
        for j, v in enumerate((low(z[m - 2], z[m - 1]), high(z[m - 2], z[m - 1]))):
            offset = m - 2 + j * (quad // 2) * apart
            if accumulate:
                v = v + load_twos(row, offset, apart, dtype)
            store_twos(row, offset, apart, vmin(most, vmax(least, v)))


@helper
def store_whole(y, out, apart, lane_step, OW, accumulate, shift, least, most, dtype, m):
    """The epilogue of whole tiles, of VL filters or side by side, turned to rows of pixels."""
    outlined()
    size = itemsize(dtype)
    for i in range(m):
        rolled()
        cells = y + i * m * lanes(dtype) * size
        row = out + i * OW * size
        if accumulate:
            store_row(cells, row, apart, lane_step, True, shift, least, most, dtype, m)
        else:
            store_row(cells, row, apart, lane_step, False, shift, least, most, dtype, m)


@helper
def transform_output(
    c,  # IN   [xi][...][tile][NV * VL], first tile and filter
    image,  # IN   for sum_again
    weight,  # IN
    shifts,  # IN   VL biases
    filters,
    out,  # OUT  plane of the first filter, whose first row is output row ``origin``
    plane,
    origin,
    row_end,  # no output row from here on
    accumulate,
    least,
    most,
    at,
    b,
    geometry,
    dtype,
    T,
    m,
):
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    vector, step, OW = VL * size, b.m_step * size, b.OW
    memory, results = local(MOST_CELLS, dtype), local(MOST_RESULTS, dtype)
    half, y = address(memory), address(results)
    zero, least_v, most_v, shift = broadcast(dtype.type(0)), broadcast(least), broadcast(most), load(shifts, 0, dtype)
    for row in range(at.rows):
        oh = at.row + row * m
        for column in range(at.columns):
            ow = at.column + column * m
            for i in range(T):
                rolled()
                output_1d(c + i * step, T * step, half + i * vector, T * vector, dtype, T, m)
            for i in range(m):
                rolled()
                output_1d(half + i * T * vector, vector, y + i * m * vector, vector, dtype, T, m)
            c += NV * vector
            total = zero
            for i in range(m * m):
                rolled()
                total = fma(load(y, i * VL, dtype), zero, total)
            if any_nan(total):
                sum_again(y, image, weight, filters, oh, ow, b, geometry, dtype)
            target = out + ((oh - origin) * OW + ow) * size
            if filters == VL and oh + m <= row_end and ow + m <= OW:
                quad = 16 // size
                store_whole(y, target, plane, quad * plane, OW, accumulate, shift, least_v, most_v, dtype, m)
                continue
            for oc in range(filters):
                for i in range(min(m, row_end - oh)):
                    for j in range(min(m, OW - ow)):
                        p = oc * plane + i * OW + j
                        value = get(y, (i * m + j) * VL + oc, dtype) + get(shifts, oc, dtype)
                        if accumulate:
                            value = value + get(target, p, dtype)
                        put(target, p, clamp(value, least, most))


@helper
def output_block(
    c,  # IN   [xi][panel][tile][NV * VL]
    first_tile,
    panel,
    image,  # IN
    weight,  # IN   filters of the group
    bias,  # IN   of the group, or 0
    out,  # OUT  planes of the group
    plane,
    origin,
    row_end,
    accumulate,
    least,
    most,
    at,
    b,
    geometry,
    dtype,
):
    outlined()
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    NR = NV * VL
    memory = local(VL_FLOAT, dtype)
    shifts = address(memory)
    for j in range(min(ceil_div(b.OCG - panel * NR, VL), NV)):
        first = panel * NR + j * VL
        filters = min(b.OCG - first, VL)
        for i in range(VL):
            put(shifts, i, get(bias, first + i, dtype) if bias != 0 and i < filters else zero)
        cells = c + ((panel * b.tiles + first_tile) * NR + j * VL) * size
        w = weight + first * b.ICG * b.K * b.K * size
        planes = out + first * plane * size
        if b.T == 4:
            transform_output(
                cells, image, w, shifts, filters, planes, plane, origin, row_end, accumulate, least, most, at, b,
                geometry, dtype, 4, 2,
            )  # fmt: skip
        elif b.T == 8:
            transform_output(
                cells, image, w, shifts, filters, planes, plane, origin, row_end, accumulate, least, most, at, b,
                geometry, dtype, 8, 6,
            )  # fmt: skip
        elif b.m == 4:
            transform_output(
                cells, image, w, shifts, filters, planes, plane, origin, row_end, accumulate, least, most, at, b,
                geometry, dtype, 6, 4,
            )  # fmt: skip
        else:
            transform_output(
                cells, image, w, shifts, filters, planes, plane, origin, row_end, accumulate, least, most, at, b,
                geometry, dtype, 6, 2,
            )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- thin layers


@helper
def copy_thin(
    image,  # IN   channels of one group of one image
    copied,  # OUT  [channel][rows * m + 2][width]
    width,
    at,
    b,
    geometry,
    dtype,
):
    """The cells that a block's tiles read; zero outside the image and for tiles past its end."""
    outlined()
    size, IH, IW = itemsize(dtype), geometry[GEO_IH], geometry[GEO_IW]
    top, left = at.row - geometry[GEO_PAD_TOP], at.column - geometry[GEO_PAD_LEFT]
    row_end, column_end = min(IH, b.OH + 2 - geometry[GEO_PAD_TOP]), min(IW, b.OW + 2 - geometry[GEO_PAD_LEFT])
    first = min(max(-left, 0), width)
    last = min(max(column_end - left, first), width)
    for c in range(b.ICG):
        for row in range(b.rows * b.m + 2):
            ih = top + row
            if ih < 0 or ih >= row_end:
                clear(copied, width * size)
            else:
                clear(copied, first * size)
                copy(copied + first * size, image + ((c * IH + ih) * IW + left + first) * size, (last - first) * size)
                clear(copied + last * size, (width - last) * size)
            copied += width * size


@straight
def thin_row(source, width, half, dtype):
    """Rows of six cells of each tile, transformed: 4 vectors of cells at once are turned to vectors of tiles."""
    quad, x = 16 // itemsize(dtype), []
    for p in (0, 4):
        x += transpose(*[load_lanes(source, p + j // quad * quad + j % quad * 4, 4 * width, dtype) for j in range(4)])
    transform_cells(x[:6], half, lanes(dtype) * itemsize(dtype), dtype, 6)


@helper
def transform_thin(
    copied,  # IN   first cell of the first tile
    v,  # OUT  [column][channel][row][VL]
    width,
    b,
    dtype,
):
    outlined()
    size = itemsize(dtype)
    vector = lanes(dtype) * size
    memory = local(MOST_CELLS, dtype)
    half = address(memory)
    for c in range(b.ICG):
        for row in range(6):
            rolled()
            thin_row(copied + row * width * size, width, half + row * 6 * vector, dtype)
        for j in range(6):
            rolled()
            input_1d(half + j * vector, 6 * vector, v + (j * b.ICG + c) * 6 * vector, vector, dtype, 6)
        copied += (b.rows * 4 + 2) * width * size


@straight
def add_thin_products(sums, v, u, dtype):
    for i in range(6):
        cells = load(v, i * lanes(dtype), dtype)
        sums[i] = [fma(broadcast(get(u, i * FILTERS + k, dtype)), cells, total) for k, total in enumerate(sums[i])]
    return sums


@straight
def finish_column(sums, half, dtype):
    vector = lanes(dtype) * itemsize(dtype)
    for k in range(FILTERS):
        transform_products_of([row[k] for row in sums], half + k * 24 * vector, 6 * vector, dtype, 6, 4)


@helper
def column_of_products(
    v,  # IN   [channel][row][VL]
    u,  # IN   [channel][row][FILTERS]
    half,  # OUT  [FILTERS][4][6], this column of each
    channels,
    dtype,
):
    """Products of a column of V, transformed."""
    # 6 * FILTERS independent FMA chains: with a vector of V all are in registers, the cells of U come from memory.
    outlined()
    size = itemsize(dtype)
    sums = no_sums(dtype, 6, FILTERS)
    for _ in range(channels):
        rolled()
        sums = add_thin_products(sums, v, u, dtype)
        v += 6 * lanes(dtype) * size
        u += 6 * FILTERS * size
    finish_column(sums, half, dtype)


@straight
def finish_rows(half, y, dtype):
    """The second transform; the sum of its results."""
    VL, size = lanes(dtype), itemsize(dtype)
    for i in range(4):
        output_1d(half + i * 6 * VL * size, VL * size, y + i * 4 * VL * size, VL * size, dtype, 6, 4)
    total = load(y, 0, dtype)
    for i in range(1, 16):
        total = total + load(y, i * VL, dtype)
    return total


@helper
def larger(a, b):
    """The larger one; NaN wins."""
    return a if a > b or a != a else b


@helper
def pool_lanes(y, pooled, dtype):
    """[4 * 4][VL] -> [2 * 2][VL], where NaN may be."""
    outlined()
    VL = lanes(dtype)
    for i in range(4):
        for lane in range(VL):
            first = (i // 2 * 8 + i % 2 * 2) * VL + lane
            put(
                pooled, i * VL + lane,
                larger(
                    larger(get(y, first, dtype), get(y, first + VL, dtype)),
                    larger(get(y, first + 4 * VL, dtype), get(y, first + 5 * VL, dtype)),
                ),
            )  # fmt: skip


@straight
def pool_vectors(y, pooled, dtype):
    """`pool_lanes` of finite values."""
    VL = lanes(dtype)
    for i in range(4):
        a, b, c, d = (load(y, (i // 2 * 8 + i % 2 * 2 + j) * VL, dtype) for j in (0, 1, 4, 5))
        store(pooled, i * VL, vmax(vmax(a, b), vmax(c, d)))


@straight
def store_pooled(
    y,  # IN   [2 * 2]
    out,  # OUT
    lane_step,
    OW,
    shift,
    least,
    most,
    dtype,
):
    """`store_whole` of pooled tiles."""
    VL, size = lanes(dtype), itemsize(dtype)
    for i in range(2):
        a, b = (load(y, (i * 2 + j) * VL, dtype) + shift for j in range(2))
        for j, v in enumerate((low(a, b), high(a, b))):
            store_lanes(out + i * OW * size, j * (16 // size), lane_step, vmin(most, vmax(least, v)))


@helper
def copy_part(source, target, source_step, target_step, rows, columns, dtype):
    """Rows of a few columns, 4 or 2 at once: calls of memcpy would take longer."""
    size = itemsize(dtype)
    wide = columns * size // 16 * 16
    for _ in range(rows):
        for i in range(0, wide, 16):
            rolled()
            copy(target + i, source + i, 16)
        for i in range(wide // size, columns):
            rolled()
            put(target, i, get(source, i, dtype))
        source += source_step * size
        target += target_step * size


@helper
def filters_of_thin(
    v,  # IN   [column][channel][row][VL]
    u,  # IN   [column][channel][row][FILTERS]
    image,  # IN   for sum_again
    weight,  # IN   the same, of the first filter
    bias,  # IN   of the first filter, or 0
    out,  # OUT  of the first filter, where the first tile is: pixels, or pooled ones
    filters,
    plane,  # from one filter's to the next
    OW,  # from one row to the next
    height,  # that is left of the plane
    width,
    pools,  # windows of 2 x 2
    accumulate,
    least,
    most,
    oh,
    ow,
    b,
    geometry,
    dtype,
):
    outlined()
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    vector, edge = VL * size, 2 if pools else 4
    step = 16 // size * edge
    whole = height >= LANES * edge and width >= step
    rows, columns = min(LANES * edge, height), min(step, width)
    memory, results = local(HALF_CELLS, dtype), local(MOST_RESULTS, dtype)
    half, y = address(memory), address(results)
    pooled, part = y + 16 * vector, y + 20 * vector
    zeros, least_v, most_v = broadcast(zero), broadcast(least), broadcast(most)
    for j in range(6):
        rolled()
        column_of_products(
            v + j * b.ICG * 6 * vector, u + j * b.ICG * 6 * FILTERS * size, half + j * vector, b.ICG, dtype
        )
    for k in range(min(filters, FILTERS)):
        rolled()
        shift = broadcast(get(bias, k, dtype) if bias != 0 else zero)
        if any_nan(finish_rows(half + k * 24 * vector, y, dtype) * zeros):
            sum_again(y, image, weight + k * b.ICG * 9 * size, VL, oh, ow, b, geometry, dtype)
            if pools:  # with the bias: where both are infinite their sum is NaN
                for i in range(16):
                    rolled()
                    store(y, i * VL, load(y, i * VL, dtype) + shift)
                pool_lanes(y, pooled, dtype)
                shift = zeros
        elif pools:
            pool_vectors(y, pooled, dtype)
        first = out + k * plane * size
        target, row_step = first, OW
        if not whole:  # past the plane's end: by way of a copy
            target, row_step = part, step
            if accumulate:
                copy_part(first, part, OW, step, rows, columns, dtype)
        if pools:
            store_pooled(pooled, target, 2 * row_step, row_step, shift, least_v, most_v, dtype)
        else:
            store_whole(y, target, 4, 4 * row_step, row_step, accumulate, shift, least_v, most_v, dtype, 4)
        if not whole:
            copy_part(part, first, step, OW, rows, columns, dtype)


@helper
def thin_block(
    image,  # IN   channels of one group of one image
    u,  # IN   of the group, as
    weight,  # IN
    bias,  # IN   or 0
    out,  # OUT  planes of the group, or pooled ones
    plane,
    origin,  # output row that the planes' first row is
    row_end,  # no output row from here on
    pools,  # windows of 2 x 2
    accumulate,
    least,
    most,
    v,
    copied,
    at,
    b,
    geometry,
    dtype,
):
    size = itemsize(dtype)
    quad, width, shrink = 16 // size, (b.columns + 1) * 4, 2 if pools else 1
    OW = geometry[GEO_POOL_OW] if pools else b.OW
    copy_thin(image, copied, width, at, b, geometry, dtype)
    for square in range(ceil_div(at.columns, quad)):  # loop 1: tiles
        ow = at.column + square * quad * 4
        transform_thin(copied + square * quad * 4 * size, v, width, b, dtype)
        for group in range(ceil_div(b.OCG, FILTERS)):  # loop 2: filters
            f = group * FILTERS
            filters_of_thin(
                v, u + f * b.ICG * 36 * size, image, weight + f * b.ICG * 9 * size, bias + f * size if bias != 0 else 0,
                out + (f * plane + (at.row - origin) // shrink * OW + ow // shrink) * size, b.OCG - f, plane, OW,
                (row_end - at.row) // shrink, OW - ow // shrink, pools, accumulate, least, most, at.row, ow, b, geometry,
                dtype,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------- kernels: weight


def packed_weight_size(geometry):
    """Elements of a packed weight: of each group U, filled up with zeros, and the weight itself."""
    b = plan_of(geometry).blocking
    return int(geometry[GEO_G]) * b.u_elements + int(geometry[GEO_OC]) * b.ICG * b.K * b.K


@helper
def transform_weight(
    taps,  # IN   (r, r)
    u,  # OUT  [xi], ``step`` bytes apart
    step,
    dtype,
    T,
    r,
):
    outlined()
    vector = lanes(dtype) * itemsize(dtype)
    memory = local(MOST_CELLS, dtype)
    half = address(memory)
    for i in range(r):
        rolled()
        weight_1d(taps + i * vector, r * vector, half + i * vector, r * vector, dtype, T, r)
    for i in range(T):
        rolled()
        weight_1d(half + i * r * vector, vector, u + i * T * step, step, dtype, T, r)


@helper
def transform_phases(
    taps,  # IN   (K, K)
    u,  # OUT  of the first phase
    b,
    dtype,
):
    """Kernels of every S-th row and column of one, filled up to r x r with zeros."""
    outlined()
    size, zero, r, K = itemsize(dtype), broadcast(dtype.type(0)), b.r, b.K
    VL, step = lanes(dtype), b.u_step * size
    memory = local(MOST_TAPS, dtype)
    own = address(memory)
    for phase in range(b.S * b.S):
        if b.S == 1:
            own = taps
        else:
            for i in range(r * r):
                kh, kw = i // r * b.S + phase // b.S, i % r * b.S + phase % b.S
                if kh < K and kw < K:
                    store(own, i * VL, load(taps, (kh * K + kw) * VL, dtype))
                else:
                    store(own, i * VL, zero)
        if b.T == 4:
            transform_weight(own, u, step, dtype, 4, 3)
        elif b.T == 8:
            transform_weight(own, u, step, dtype, 8, 3)
        elif r == 3:
            transform_weight(own, u, step, dtype, 6, 3)
        else:
            transform_weight(own, u, step, dtype, 6, 5)
        u += b.phase_step * b.NR * size


@helper
def transform_thin_weight(
    taps,  # IN   (3, 3)
    u,  # OUT  of the group
    first,  # filter of the first lane
    c,
    b,
    dtype,
):
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    memory = local(MOST_CELLS, dtype)
    cells = address(memory)
    transform_weight(taps, cells, VL * size, dtype, 6, 3)
    for lane in range(min(ceil_div(b.OCG, FILTERS) * FILTERS - first, VL)):
        f = first + lane
        for i in range(6):
            for j in range(6):
                offset = ((f // FILTERS * 6 + j) * b.ICG + c) * 6 * FILTERS + i * FILTERS + f % FILTERS
                put(u, offset, get(cells, (i * 6 + j) * VL + lane, dtype))


@straight
def take_square(source, distance, taps, q, dtype):
    VL, quad = lanes(dtype), 16 // itemsize(dtype)
    z = [load_lanes(source, q * 4 + j // quad * quad + j % quad * distance, quad * distance, dtype) for j in range(4)]
    for j, v in enumerate(transpose(*z)):
        store(taps, (q * 4 + j) * VL, v)


@helper
def take_taps(source, distance, taps, n_taps, dtype):
    """The taps of 4 channels of VL filters: vectors along filters, from n_taps squares to transpose."""
    for q in range(n_taps):
        rolled()
        take_square(source, distance, taps, q, dtype)


@helper
def turn_filters(
    weight,  # IN   [channel][OCG][n_taps], first filter
    turned,  # OUT  [filter][ICG][n_taps]
    filters,
    ICG,
    OCG,
    n_taps,
    dtype,
):
    """Filters of the adjoint convolution: channels and filters change places, taps their order."""
    # Some channels at a time: rows of whole powers of two would push each other's cache lines out between two channels.
    size = itemsize(dtype)
    for block in range(ceil_div(ICG, TURNED)):
        for f in range(filters):
            for c in range(block * TURNED, min(block * TURNED + TURNED, ICG)):
                taps, target = weight + (c * OCG + f) * n_taps * size, turned + (f * ICG + c) * n_taps * size
                for i in range(n_taps):
                    put(target, i, get(taps, n_taps - 1 - i, dtype))


@task
def pack_weight_task(
    task: index,
    weight: const_real[:, :, :, ::1],  # IN
    packed: real[::1],  # OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is one panel of filters.
    dtype = weight.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    b = blocking_in(words)
    NR, n_taps = NV * VL, b.K * b.K
    K, run = b.ICG * n_taps, 4 * n_taps
    g, panel = task // b.panels, task % b.panels
    memory, squares = local(FOUR_KERNELS, dtype), local(FOUR_KERNELS, dtype)
    edge, taps = address(memory), address(squares)
    own = address(packed) + (geometry[GEO_G] * b.u_elements + (g * b.OCG + panel * NR) * K) * size
    filters = min(b.OCG - panel * NR, NR)
    if geometry[GEO_TURNED] != 0:
        turn_filters(
            address(weight) + (g * b.ICG * b.OCG + panel * NR) * n_taps * size, own, filters, b.ICG, b.OCG, n_taps, dtype
        )  # fmt: skip
    else:
        copy(own, address(weight) + (g * b.OCG + panel * NR) * K * size, filters * K * size)
    thin = b.thin > 0
    depth = b.ICG if thin else b.phase_step
    u = address(packed) + (g * b.u_elements + (0 if thin else panel * b.channel_blocks * VL * NR)) * size
    for square in range(ceil_div(depth, 4)):
        c = square * 4
        for i in range(NV):
            first = panel * NR + i * VL
            filters, channels = min(max(b.OCG - first, 0), VL), min(max(b.ICG - c, 0), 4)
            source = own + (i * VL * K + c * n_taps) * size
            distance = K
            if filters < VL or channels < 4:
                clear(edge, VL * run * size)
                for j in range(filters):
                    copy(edge + j * run * size, source + j * K * size, channels * n_taps * size)
                source = edge
                distance = run
            take_taps(source, distance, taps, n_taps, dtype)
            for q in range(min(depth - c, 4)):
                if thin:
                    transform_thin_weight(taps + q * n_taps * VL * size, u, first, c + q, b, dtype)
                else:
                    transform_phases(taps + q * n_taps * VL * size, u + ((c + q) * NV + i) * VL * size, b, dtype)
    filled_to = b.S * b.S * b.phase_step * NR
    for xi in range(0 if thin else b.T * b.T):  # lanes that no channel fills
        clear(u + (xi * b.u_step + filled_to) * size, (b.channel_blocks * VL * NR - filled_to) * size)


def pack_weight(weight, packed, workspace, geometry, n_threads):
    """weight (OC, ICG, K, K), turned (IC, OCG, K, K) -> packed, in the order in which this back end's conv2d reads it."""
    plan = plan_of(geometry, weight.itemsize)
    n_tasks = int(geometry[GEO_G]) * plan.blocking.panels
    pack_weight_task.run(n_tasks, n_threads, weight, packed, geometry, plan.words)


# -------------------------------------------------------------------------------------------------- kernels: forward


def conv2d_workspace(geometry, n_workers):
    """Elements of workspace: V and M, shared or of each worker; copied rows, and the map that a fused pool reads."""
    b = plan_of(geometry).blocking
    return n_workers * b.worker_elements + (b.v_elements + b.m_elements if b.shared else 0)


@task
def conv2d_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    packed: const_real[::1],  # IN
    bias: const_real[::1],  # IN
    least: real,
    most: real,
    output: real[:, :, :, ::1],  # OUT
    pooled: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT
    workspace: real[::1],  # worker_elements of each worker
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is at most ``task_rows`` rows of the output of one group of one image, block by block, of which without a pool all
    # have nearly as many, or planes of ``images`` images.
    dtype = input.dtype
    size = itemsize(dtype)
    b = blocking_in(words)
    G = geometry[GEO_G]
    row_block, g, n = task % b.row_blocks, task // b.row_blocks % G, task // b.row_blocks // G * b.images
    images = min(b.images, geometry[GEO_N] - n)
    pooled_plane = geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
    accumulate = geometry[GEO_ACCUMULATE] != 0 and b.pooled_rows == 0
    pools_tiles = b.pools_tiles > 0 and indices.size == 0
    input_plane = geometry[GEO_IH] * geometry[GEO_IW]
    image = address(input) + (n * G + g) * b.ICG * input_plane * size
    to_image = geometry[GEO_IC] * input_plane * size
    u = address(packed) + g * b.u_elements * size
    weight = address(packed) + (G * b.u_elements + g * b.OCG * b.ICG * b.K * b.K) * size
    shifts = address(bias) + g * b.OCG * size if bias.size > 0 else 0
    v = address(workspace) + worker * b.worker_elements * size
    c = v + b.v_elements * size
    copied = c + b.m_elements * size
    if b.pooled_rows > 0:
        pooled_from = row_block * b.pooled_rows
        pooled_to = min(pooled_from + b.pooled_rows, geometry[GEO_POOL_OH])
        row_from = max(pooled_from * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP], 0)
        row_end = (pooled_to - 1) * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP] + geometry[GEO_POOL_KH]
        row_end = min(row_end, b.OH)
        out = copied + b.copy_elements * size
        plane = b.task_rows * b.OW
        origin = row_from
        if pools_tiles:
            out = address(pooled) + (n * G + g) * b.OCG * pooled_plane * size
            plane = pooled_plane
            origin = 0
    else:
        pooled_from = pooled_to = 0
        # Tasks are cut so that any neighbours, as a thread's part is, have as many rows
        row_from = row_block * b.tile_rows // b.row_blocks * b.m
        row_end = min((row_block + 1) * b.tile_rows // b.row_blocks * b.m, b.OH)
        out = address(output) + (n * G + g) * b.OCG * b.OH * b.OW * size
        plane = b.OH * b.OW
        origin = 0
    row = row_from
    while row < row_end:
        rows = min(ceil_div(row_end - row, b.m), b.rows)
        column = 0
        while column < b.OW:
            columns = min(ceil_div(b.OW - column, b.m), b.columns)
            at = Block(row, rows, column, columns, rows * columns)
            if b.thin > 0:
                thin_block(
                    image, u, weight, shifts, out, plane, origin, row_end, pools_tiles, accumulate, least, most, v, copied,
                    at, b, geometry, dtype,
                )  # fmt: skip
                column += columns * b.m
                continue
            for i in range(images):
                for block in range(b.image_blocks):  # loop 1: channels
                    input_block(
                        image + i * to_image, v + (block * b.tiles + i * at.tiles) * b.VL * size, b.v_step, block, copied, at,
                        b, geometry, dtype,
                    )  # fmt: skip
            for xi in range(b.T * b.T):  # loop 2: cells
                multiply(
                    u + xi * b.u_step * size, v + xi * b.v_step * size, c + xi * b.m_step * size, 0, b.panels,
                    images * at.tiles, b, dtype,
                )  # fmt: skip
            for i in range(images):
                for panel in range(b.panels):  # loop 5: filters
                    output_block(
                        c, i * at.tiles, panel, image + i * to_image, weight, shifts,
                        out + i * geometry[GEO_OC] * plane * size, plane, origin, row_end, accumulate, least, most, at, b,
                        geometry, dtype,
                    )  # fmt: skip
            column += columns * b.m
        row += rows * b.m
    if b.pooled_rows > 0 and not pools_tiles:
        for i in range(b.OCG):
            q = ((n * G + g) * b.OCG + i) * pooled_plane
            max_pool_rows(
                out + i * plane * size, row_from, pooled_from, pooled_to, address(pooled) + q * size,
                address(indices) + q * itemsize(np.int64) if indices.size > 0 else 0,
                copied + (b.copy_elements + b.map_elements) * size, geometry, dtype,
            )  # fmt: skip


# Whole planes of ``images`` images of one group, a chunk: three phases, whose tasks are the steps of one loop.


@helper
def chunk_of(chunk, b, geometry):
    """The chunk's first image times groups plus its group, its group, its images, a block of one plane."""
    G = geometry[GEO_G]
    g, n = chunk % G, chunk // G * b.images
    at = Block(0, b.tile_rows, 0, b.tile_columns, b.tile_rows * b.tile_columns)
    return n * G + g, g, min(b.images, geometry[GEO_N] - n), at


@task
def input_task(
    task: index,
    worker: index,
    chunk: index,
    input: const_real[:, :, :, ::1],  # IN
    workspace: real[::1],  # OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    dtype = input.dtype
    size = itemsize(dtype)
    b = blocking_in(words)
    first, g, images, at = chunk_of(chunk, b, geometry)
    n, block = task // b.image_blocks, task % b.image_blocks
    plane = geometry[GEO_IH] * geometry[GEO_IW]
    copied = address(workspace) + (b.v_elements + b.m_elements + worker * b.worker_elements) * size
    input_block(
        address(input) + (first * b.ICG + n * geometry[GEO_IC]) * plane * size,
        address(workspace) + (block * b.tiles + n * at.tiles) * b.VL * size, b.v_step, block, copied, at, b, geometry,
        dtype,
    )  # fmt: skip


@task
def multiply_task(
    task: index,
    chunk: index,
    packed: const_real[::1],  # IN
    workspace: real[::1],  # IN/OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    dtype = packed.dtype
    size = itemsize(dtype)
    b = blocking_in(words)
    first, g, images, at = chunk_of(chunk, b, geometry)
    chunks = ceil_div(b.panels, b.chunk_panels)
    xi, panel = task // chunks, task % chunks * b.chunk_panels
    v = address(workspace)
    multiply(
        address(packed) + (g * b.u_elements + xi * b.u_step) * size, v + xi * b.v_step * size,
        v + (b.v_elements + xi * b.m_step) * size, panel, min(panel + b.chunk_panels, b.panels), images * at.tiles, b,
        dtype,
    )  # fmt: skip


@task
def output_task(
    task: index,
    worker: index,
    chunk: index,
    input: const_real[:, :, :, ::1],  # IN
    packed: const_real[::1],  # IN
    bias: const_real[::1],  # IN
    least: real,
    most: real,
    output: real[:, :, :, ::1],  # OUT
    pooled: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT
    workspace: real[::1],  # IN/OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    dtype = input.dtype
    size = itemsize(dtype)
    b = blocking_in(words)
    first, g, images, at = chunk_of(chunk, b, geometry)
    n, panel, P = task // b.panels, task % b.panels, b.OH * b.OW
    plane, pooled_plane = geometry[GEO_IH] * geometry[GEO_IW], geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
    weight = address(packed) + (geometry[GEO_G] * b.u_elements + g * b.OCG * b.ICG * b.K * b.K) * size
    # Maps of the panel, where they are pooled, and what that takes
    maps = address(workspace) + (b.v_elements + b.m_elements + worker * b.worker_elements + b.copy_elements) * size
    filter = first * b.OCG + n * geometry[GEO_OC]
    out = maps - panel * b.NR * P * size if b.pooled_rows > 0 else address(output) + filter * P * size
    output_block(
        address(workspace) + b.v_elements * size, n * at.tiles, panel,
        address(input) + (first * b.ICG + n * geometry[GEO_IC]) * plane * size, weight,
        address(bias) + g * b.OCG * size if bias.size > 0 else 0, out, P, 0, b.OH,
        geometry[GEO_ACCUMULATE] != 0 and b.pooled_rows == 0, least, most, at, b, geometry, dtype,
    )  # fmt: skip
    if b.pooled_rows > 0:
        for i in range(panel * b.NR, min((panel + 1) * b.NR, b.OCG)):
            q = (filter + i) * pooled_plane
            max_pool_rows(
                out + i * P * size, 0, 0, b.pooled_rows, address(pooled) + q * size,
                address(indices) + q * itemsize(np.int64) if indices.size > 0 else 0, maps + b.map_elements * size, geometry,
                dtype,
            )  # fmt: skip


def conv2d(input, packed, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    plan = plan_of(geometry, input.itemsize)
    b, words = plan.blocking, plan.words
    N, G = int(geometry[GEO_N]), int(geometry[GEO_G])
    if b.OCG == 0 or N == 0:
        return
    if not b.shared:
        conv2d_task.run(
            ceil_div(N, b.images) * G * b.row_blocks, n_threads, input, packed, bias, act_min, act_max, output, pooled,
            indices, workspace, geometry, words,
        )  # fmt: skip
        return
    for chunk in range(G * ceil_div(N, b.images)):
        images = min(b.images, N - chunk // G * b.images)
        n_products = b.T * b.T * ceil_div(b.panels, b.chunk_panels)
        input_task.run(images * b.image_blocks, n_threads, chunk, input, workspace, geometry, words)
        multiply_task.run(n_products, n_threads, chunk, packed, workspace, geometry, words)
        output_task.run(
            images * b.panels, n_threads, chunk, input, packed, bias, act_min, act_max, output, pooled, indices, workspace,
            geometry, words,
        )  # fmt: skip


# ------------------------------------------------------------------------------ kernels: gradient of the weight

# The same products from the other side, with Y' = A dY A^T of every tile of grad_output:
#
#     D[xi] (ICG x OCG) = V[xi]^T (ICG x tiles) @ Y'[xi] (tiles x OCG);     grad_weight = G^T D G
#
#     Y'[xi][panel of NV*VL filters][tile][NV*VL]       D[block][xi][TASK_CHANNELS][TASK_PANELS * NV*VL]
#
# Tiles come in chunks, images or rows of one. The first tasks transform a chunk, the next multiply: one owns a block of D and
# adds every chunk to it in order, and turns it to grad_weight after the last. A term of the sum is a tile. Of MANY_GROUPS a
# task is a whole group, in memory of its worker: to start tasks takes longer than what they have to do.


def conv2d_grad_weight_workspace(geometry, n_workers):
    """Elements of workspace: V and Y' of a chunk, D where there are several; copied rows, or a block of results."""
    most = 0
    for size in (4, 8):  # chunks of the two are of different sizes
        o = plan_of(geometry, size).outer
        copies = n_workers if geometry[GEO_G] >= MANY_GROUPS else 1
        most = max(most, copies * (o.v_elements + o.y_elements + o.kept_elements) + n_workers * o.worker_elements)
    return most


@helper
def transform_grad_output(
    copied,  # IN   [rows * m][columns * m][VL]
    y,  # OUT  [xi][...][tile][NV * VL], first tile
    y_step,
    at,
    dtype,
    T,
):
    outlined()
    size, m = itemsize(dtype), T - 2
    vector = lanes(dtype) * size
    width, step = at.columns * m * vector, y_step * size
    memory = local(MOST_CELLS, dtype)
    half = address(memory)
    for row in range(at.rows):
        for column in range(at.columns):
            source = copied + row * m * width + column * m * vector
            for i in range(m):
                rolled()
                grad_output_1d(source + i * vector, width, half + i * vector, m * vector, dtype, T)
            for i in range(T):
                rolled()
                grad_output_1d(half + i * m * vector, vector, y + i * T * step, step, dtype, T)
            y += NV * vector


@helper
def part_of(chunk, b, o, geometry):
    """The chunk's first image times groups plus its group, its group, its images, its rows of one plane."""
    G, chunks = geometry[GEO_G], o.image_chunks * o.row_chunks
    g, n, part = chunk // chunks, chunk % chunks // o.row_chunks * o.images, chunk % o.row_chunks * o.rows
    rows = min(o.rows, b.tile_rows - part)
    at = Block(part * b.m, rows, 0, b.tile_columns, rows * b.tile_columns)
    return n * G + g, g, min(o.images, geometry[GEO_N] - n), at


@helper
def transform(task, chunk, input, grad_output, v, copied, b, o, geometry):
    """Of each image first the blocks of VL channels, then those of VL filters."""
    outlined()
    dtype = input.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    first, g, images, at = part_of(chunk, b, o, geometry)
    n, block = task // (b.channel_blocks + o.filter_vectors), task % (b.channel_blocks + o.filter_vectors)
    y = v + o.v_elements * size
    if block < b.channel_blocks:
        plane = geometry[GEO_IH] * geometry[GEO_IW]
        input_block(
            address(input) + (first * b.ICG + n * geometry[GEO_IC]) * plane * size,
            v + (block * o.tiles + n * at.tiles) * VL * size, o.v_step, block, copied, at, b, geometry, dtype,
        )  # fmt: skip
        return
    block -= b.channel_blocks
    P = b.OH * b.OW
    copy_rows(
        address(grad_output) + (first * b.OCG + n * geometry[GEO_OC] + block * VL) * P * size, copied,
        min(b.OCG - block * VL, VL), P, b.OW, 1, at.row, 0, at.rows * b.m, at.columns * b.m, b.OH, b.OW, dtype,
    )  # fmt: skip
    y += ((block // NV * o.tiles + n * at.tiles) * NV + block % NV) * VL * size
    if b.T == 4:
        transform_grad_output(copied, y, o.y_step, at, dtype, 4)
    elif b.T == 6:
        transform_grad_output(copied, y, o.y_step, at, dtype, 6)
    else:
        transform_grad_output(copied, y, o.y_step, at, dtype, 8)


@straight
def add_outer_products(acc, v, t, y, dtype, count):
    VL, nv = lanes(dtype), len(acc[0])
    for k in range(count):
        x = [load(y, (k * NV + j) * VL, dtype) for j in range(nv)]
        for i, sums in enumerate(acc):
            cell = broadcast(get(v[i], (t + k) * VL, dtype))
            acc[i] = [fma(cell, filters, total) for filters, total in zip(x, sums, strict=True)]
    return acc


@straight
def load_sums(d, ldd, dtype, nv):
    return [[load(d, i * ldd + j * lanes(dtype), dtype) for j in range(nv)] for i in range(MR)]


@straight
def places_of(places):
    return [get(places, i, np.int64) for i in range(MR)]


@helper
def outer_tile(
    v,  # IN   the blocks of channels, from the first tile on
    block_step,  # from one block to the next
    c_from,  # first channel
    c_last,  # that stands for those past the end
    y,  # IN   [tile][NV * VL]
    tiles,
    d,  # IN/OUT  MR rows of filters, ldd apart
    ldd,
    first,  # nothing is there yet
    dtype,
    nv,  # a literal
):
    # The same registers as `tile`; MR addresses move through V together, one tile a step.
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    places = local(MR, np.int64)
    for i in range(MR):
        c = min(c_from + i, c_last)
        places[i] = v + (c // VL * block_step + c % VL) * size
    at, acc, t = places_of(address(places)), no_sums(dtype, MR, nv), 0
    if not first:
        acc = load_sums(d, ldd, dtype, nv)
    while t + DEPTHS <= tiles:
        rolled()
        acc = add_outer_products(acc, at, t, y, dtype, DEPTHS)
        y += DEPTHS * NV * VL * size
        t += DEPTHS
    while t < tiles:
        rolled()
        acc = add_outer_products(acc, at, t, y, dtype, 1)
        y += NV * VL * size
        t += 1
    store_sums(acc, d, ldd, dtype)


@helper
def transform_products(
    d,  # IN   [xi][channel][filter], first of each
    results,  # OUT  [channel][9][filter]
    channels,
    vectors,  # of filters
    ldd,
    d_step,
    dtype,
    T,
):
    outlined()
    size = itemsize(dtype)
    vector, line, step = lanes(dtype) * size, ldd * size, d_step * size
    memory = local(MOST_CELLS, dtype)
    half = address(memory)
    for c in range(channels):
        for j in range(vectors):
            cells = d + c * line + j * vector
            for i in range(T):
                rolled()
                grad_weight_1d(cells + i * step, T * step, half + i * vector, T * vector, dtype, T)
            for i in range(3):
                rolled()
                target = results + (c * 9 + i * 3) * line + j * vector
                grad_weight_1d(half + i * T * vector, vector, target, line, dtype, T)


@helper
def multiply_and_turn(task, chunk, grad_weight, v, scratch, b, o, geometry):
    outlined()
    dtype = grad_weight.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    _, g, images, at = part_of(chunk, b, o, geometry)
    chunks, NR, tiles = o.image_chunks * o.row_chunks, NV * VL, images * at.tiles
    panel_from, c_from = task % o.panel_blocks * TASK_PANELS, task // o.panel_blocks * TASK_CHANNELS
    panels, channels = min(TASK_PANELS, b.panels - panel_from), min(TASK_CHANNELS, b.ICG - c_from)
    filters, K = min(b.OCG - panel_from * NR, TASK_PANELS * NR), b.ICG * 9
    y = v + o.v_elements * size
    kept = y + o.y_elements * size
    d = kept + task * o.d_elements * size if o.kept_elements > 0 else scratch + o.result_elements * size
    for xi in range(b.T * b.T):
        for panel in range(panels):
            filters_of = y + (xi * o.y_step + (panel_from + panel) * o.tiles * NR) * size
            for tile_index in range(ceil_div(channels, MR)):
                c = c_from + tile_index * MR
                target = d + (xi * o.d_step + tile_index * MR * o.ldd + panel * NR) * size
                tile_of_v, last, begin = v + xi * o.v_step * size, c_from + channels - 1, chunk % chunks == 0
                if b.OCG - (panel_from + panel) * NR > VL:
                    outer_tile(tile_of_v, o.tiles * VL, c, last, filters_of, tiles, target, o.ldd, begin, dtype, NV)
                else:
                    outer_tile(tile_of_v, o.tiles * VL, c, last, filters_of, tiles, target, o.ldd, begin, dtype, 1)
    if chunk % chunks != chunks - 1:
        return
    if b.T == 4:
        transform_products(d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, dtype, 4)
    elif b.T == 6:
        transform_products(d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, dtype, 6)
    else:
        transform_products(d, scratch, channels, ceil_div(filters, VL), o.ldd, o.d_step, dtype, 8)
    out = address(grad_weight) + ((g * b.OCG + panel_from * NR) * b.ICG + c_from) * 9 * size
    store_filters(scratch, out, channels * 9, filters, o.ldd, K, geometry[GEO_ACCUMULATE] != 0, dtype)


# What a task is: a transform of a chunk, a block of D, or the whole of a group.
TRANSFORM, MULTIPLY, GROUP = range(3)


@task
def conv2d_grad_weight_task(
    task: index,
    worker: index,
    phase: index,
    chunk: index,
    input: const_real[:, :, :, ::1],  # IN
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_weight: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # IN/OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    b, o, size = blocking_in(words), outer_in(words), itemsize(input.dtype)
    chunk_elements = o.v_elements + o.y_elements + o.kept_elements
    v = address(workspace)
    own = v + (chunk_elements + worker * o.worker_elements) * size
    if phase == TRANSFORM:
        transform(task, chunk, input, grad_output, v, own, b, o, geometry)
    elif phase == MULTIPLY:
        multiply_and_turn(task, chunk, grad_weight, v, own, b, o, geometry)
    else:
        v += worker * (chunk_elements + o.worker_elements) * size
        own = v + chunk_elements * size
        chunks = o.image_chunks * o.row_chunks
        for part in range(task * chunks, (task + 1) * chunks):
            images = min(o.images, geometry[GEO_N] - part % chunks // o.row_chunks * o.images)
            for i in range(images * (b.channel_blocks + o.filter_vectors)):
                transform(i, part, input, grad_output, v, own, b, o, geometry)
            for i in range(o.tile_blocks * o.panel_blocks):
                multiply_and_turn(i, part, grad_weight, v, own, b, o, geometry)


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, 3, 3), added to what is there with accumulate."""
    plan = plan_of(geometry, input.itemsize)
    b, o = plan.blocking, plan.outer
    N, G, chunks = int(geometry[GEO_N]), int(geometry[GEO_G]), o.image_chunks * o.row_chunks
    if chunks == 0:
        if not geometry[GEO_ACCUMULATE]:
            grad_weight[...] = 0
        return
    arrays = input, grad_output, grad_weight, workspace, geometry, plan.words
    if G >= MANY_GROUPS:
        conv2d_grad_weight_task.run(G, n_threads, GROUP, 0, *arrays)
        return
    for chunk in range(G * chunks):
        images = min(o.images, N - chunk % chunks // o.row_chunks * o.images)
        n_transforms = images * (b.channel_blocks + o.filter_vectors)
        conv2d_grad_weight_task.run(n_transforms, n_threads, TRANSFORM, chunk, *arrays)
        conv2d_grad_weight_task.run(o.tile_blocks * o.panel_blocks, n_threads, MULTIPLY, chunk, *arrays)
