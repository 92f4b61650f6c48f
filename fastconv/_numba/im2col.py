"""Convolution as a blocked matrix product. Formula and shapes: fastconv/_reference/im2col.py.

conv (OCG x P) = weight (OCG x K) @ cols (K x P), P = OH*OW pixels of one image and group, K = ICG*KH*KW. ``cols``
exists only as packed blocks of NB pixels by KC rows, in the scratch memory of one task, or not at all: a plane that a
1x1 kernel meets once is read in place, and so are the copied input rows where vectors of pixels fill the rows of a map.

    task   one block of NB pixels (of one image, group, chunk of filters); for a fused pool a strip of blocks, one below
           the other, of which each takes over the last rows of the one before; windows of 2x2 are pooled in registers
    loop 1 over blocks of KC rows of cols: copy the input rows they touch, pack B panels [KC][NV*VL pixels]; of planes those
           of a run in loop 2, which the first filters to meet them do as they multiply
    loop 2 over runs of B panels: with AVX-512 those that stay in the first-level cache, else all of a block
    loop 3 over panels of MR filters (A panels [KC][MR], packed once by pack_weight)
    loop 4 over the panels of NV*VL pixels of a run
    tile   MR x NV accumulators in registers, vectors along pixels, so that results are stored as NCHW; LISTED_MR x LISTED_NV
           where the core can not load a factor for each product

Below the arrays of a task everything is an address (see _simd.py): ``dtype`` is the element type, ``size`` its bytes.
"""

from collections import namedtuple  # geometry names, as many a line as fit
from functools import lru_cache

import numpy as np

from fastconv._numba._common import (
    CACHE_LINE, DEPTHS, LISTED_DEPTHS, LISTED_MR, LISTED_NV, MR, NV, OUTER_MR, OUTER_NV, add_run, ceil_div, clamp,
    fields_at, lines, spread_run,
)  # fmt: skip
from fastconv._numba._direct_simd import every_other, load_inside, zip_high, zip_low
from fastconv._numba._fused_pool import max_pool_rows, pool_ring_size
from fastconv._numba._lanes import store_filters
from fastconv._numba._pool_simd import even, fold_max, odd, store_first, untangle
from fastconv._numba._jit import const_int64, const_real, helper, index, int64, real, task
from fastconv._numba._simd import (
    LOADS_ARE_SCARCE, VL_DOUBLE, VL_FLOAT, address, broadcast, clear, copy, fma, get, itemsize, lanes, load, local,
    outlined, prefetch, put, rolled, store, vmax, vmin,
)  # fmt: skip
from fastconv._numba._straight import straight
from fastconv._numba._winograd_simd import load_lanes, store_lanes, transpose
from fastconv._problem import (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH, GEO_OW,
    GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP,
    GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_STRIDE_W, GEO_TURNED,
)  # fmt: skip

# A B block of KC x NB stays in the second-level cache beside the rows it is packed from; KC rows of an A panel in the
# first.
KC = 256
# Of the block of pixels that stays in the second-level cache, half a MB before AVX-512, one with it.
BLOCK_PIXELS = 384 if VL_FLOAT == 16 else 192
# Of a block, float32 cells that all filters meet before the next ones and results of a panel of filters: a first-level cache
# of them, or all.
RUN_CELLS = (13056 if LOADS_ARE_SCARCE else 8192) if VL_FLOAT == 16 else 1 << 30
# Of a flat problem: with more, cells are read often enough to be worth packing.
IN_PLACE_FILTERS = 2048 if VL_FLOAT == 16 else 128
TRIPLE = LOADS_ARE_SCARCE  # tiles of LISTED_MR x LISTED_NV before those of MR x NV
SHORT_DEPTH = 64  # of more channels, where tiles are wide, cells are packed for
MANY_FILTERS = 192  # more filters than these
# Of more channels, a panel's cells push each other out of a first-level cache where they lie a plane apart.
IN_PLACE_DEPTH = 159
MOST_POOLED = 4096  # of a block of rows that a pool reads, which a panel of filters must hold in cache
MOST_PIXELS = 1536  # of a block
FEW_WEIGHTS = 16384  # that one thread packs before a second one is there
THREAD_TASKS = 4  # strips of a fused pool for each thread, tasks of a flat problem
CHUNK_FILTERS = 64  # the smallest chunk of filters: a pixel's columns are packed again for each
IDLE = 8  # filters are split into chunks where threads would wait 1/IDLE of the time or more,
EVEN = 32  # flat planes into more blocks where they would 1/EVEN, or else into chunks where nothing is packed
SHARED_PIXELS = 96  # of a block at least, where threads share an image
IN_PLACE_CELLS = 32 * BLOCK_PIXELS  # of a block that is read in place, or of its copied rows: a first-level cache
SPARE = 16  # tiles of whole rows may waste 1/SPARE of their lanes
MOST_PLACES = 2048  # >= vectors of such a block
# Vectors of a plane whose first pixels are worth a tile, so that no other vector lies in two lines.
HEADED = 64 if VL_FLOAT == 16 else 32
LONE = 4  # pixels past the last whole vector are computed apart if they fill 1/LONE of a vector at most
MOST_LONE = 4  # >= VL / LONE
LONE_SUMS = 8  # of such vectors at a time, at least: one addition waits for another
LONE_SPAN = ceil_div(MR, VL_FLOAT) * VL_FLOAT  # MR filled up to whole vectors
FEW_VECTORS = 4  # at least, of a tile of four filters or fewer: as many chains of additions
ALIASED = 1024  # pixels: cells of planes so far apart share the sets of a first-level cache; of so many
ALIASED_DEPTH = 32  # channels they push each other out, and
ALIASED_FILTERS = 16  # read them often enough to pay for packing
MOST_VECTORS = 64  # >= NV * VL + 1: copies that one row of a B panel may take
TILE_ELEMENTS, LISTED_ELEMENTS = MR * NV * VL_FLOAT, LISTED_MR * LISTED_NV * VL_FLOAT
LONE_ELEMENTS = MOST_LONE * LONE_SPAN
INDEX_BYTES = 8
PLACES = MOST_PLACES + LISTED_NV  # a last part of a tile reads places for a whole one
CHAIN_PIXELS = 392  # pixels summed in registers before they are added to the block: a panel of filters stays in the
# first-level cache meanwhile
CHUNK_ELEMENTS = 1 << 20  # of a chunk's operands: they stay in the third-level cache; more if the blocks of results,
# which are read and written for every chunk, are larger
TASK_TILES = 8  # tiles of OUTER_MR rows of K in a task, and
TASK_PANELS = 4  # panels of filters: its block of results stays in the first-level cache
TASK_ROWS = TASK_TILES * OUTER_MR
AHEAD = 8  # places to fetch from, in turns: a line is as many cells of float64, and OUTER_MR is no more
FEW_TASKS = 4  # of fewer a task has one panel: first layers, of few channels, make work for several threads

# What a tile does with its sums: store them, as K goes on; add the bias; raise to the lower bound as well; clamp.
KEEP, SHIFT, RAISE, CLAMP = 0, 1, 2, 3


Blocking = namedtuple(
    "Blocking",
    "ICG OCG T K OH OW P "  # T taps of one channel; a flat 1x1 problem has one row of P pixels
    "flat in_place "  # in place: tiles read the image, packed is only what ends inside a vector
    "run "  # pixels that all filters meet before the next ones, in whole panels
    "NB blocks strip strips "  # most pixels of a block, blocks of an image and of a task, tasks of an image
    "unit units "  # pixels that a block has a whole number of times, and that of all blocks
    "pooled_rows carried_rows "  # of a fused pool per block; of the maps, that two blocks' windows share
    "by_rows "  # vectors of a tile lie in one row each: read from the copied rows
    "paired "  # tiles pool by themselves: where indices are not wanted
    "kc k_blocks panels chunks chunk_panels kept_panels "
    "lent "  # filters that the last panel takes from the one before
    "phases phase_width row_width rows channels "  # of the copied input
    "row_skip "  # rows of the input from one copied row to the next
    "row_step "  # copied rows from one row of the map to the next
    "copy_elements b_elements lone_elements c_elements ring_elements shift_elements elements",  # scratch of a worker
)


def is_idle(tasks, n_threads, part):
    """Whether threads that share tasks of one size wait for the last for 1/part of the time or more."""
    turns = ceil_div(tasks, n_threads) * n_threads
    return (turns - tasks) * part >= turns and turns > tasks


def is_paired(OH, OW, K, k_blocks, flat, geometry):
    """Whether tiles can pool: windows are 2x2 and tile the maps, K is one block, at most a fifth of the lanes is wasted."""
    pool_OH, pool_OW = geometry[GEO_POOL_OH], geometry[GEO_POOL_OW]
    return int(
        geometry[GEO_POOL_KH] == 2 and geometry[GEO_POOL_KW] == 2
        and geometry[GEO_POOL_STRIDE_H] == 2 and geometry[GEO_POOL_STRIDE_W] == 2
        and geometry[GEO_POOL_PAD_TOP] == 0 and geometry[GEO_POOL_PAD_LEFT] == 0 and 2 * pool_OH <= OH and 2 * pool_OW <= OW
        and k_blocks == 1 and K > 0 and flat == 0 and 2 * ceil_div(2 * pool_OW, VL_FLOAT) * VL_FLOAT <= 5 * pool_OW
    )  # fmt: skip


def blocking(geometry, n_threads):
    """Every size that a plan of loops needs. Threads only decide where blocks and chunks of filters
    begin, which no sum reaches across.
    """
    KH, KW, G, NR = geometry[GEO_KH], geometry[GEO_KW], max(geometry[GEO_G], 1), NV * VL_FLOAT
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w, images = geometry[GEO_DIL_H], geometry[GEO_DIL_W], geometry[GEO_N] * G
    ICG = geometry[GEO_IC] // G
    OCG = geometry[GEO_OC] // G
    T = KH * KW
    K = ICG * T
    OH = geometry[GEO_OH]
    OW = geometry[GEO_OW]
    P = OH * OW
    # A 1x1 kernel that meets every pixel once: the plane is one long row, read in place
    flat = int(
        T == 1 and stride_h == 1 and stride_w == 1 and geometry[GEO_PAD_TOP] == 0 and geometry[GEO_PAD_LEFT] == 0
        and OH == geometry[GEO_IH] and OW == geometry[GEO_IW]
    )  # fmt: skip
    panels = ceil_div(OCG, MR)
    lent = 2 if NV > 1 and OCG % MR == 2 and panels > 1 else 0

    # K in equal blocks, of whole channels where a channel fits
    k_blocks = max(ceil_div(K, KC), 1)
    kc = ceil_div(K, k_blocks)
    if 0 < T <= KC and ceil_div(kc, T) * T <= KC:
        kc = ceil_div(kc, T) * T
    kc = max(kc, 1)
    k_blocks = max(ceil_div(K, kc), 1)
    few_filters = (
        OCG <= (MANY_FILTERS if TRIPLE and kc > SHORT_DEPTH else IN_PLACE_FILTERS) and geometry[GEO_POOL_KH] == 0
    )
    deep = kc > IN_PLACE_DEPTH and OCG >= CHUNK_FILTERS
    aliased = P % ALIASED == 0 and kc >= ALIASED_DEPTH and OCG >= ALIASED_FILTERS
    # A panel of one vector is so narrow that its cells may be read in place, fetched ahead by the first filters to meet them
    by_panel = NV > 1 and flat > 0 and few_filters and (deep or aliased)
    in_place = int(flat > 0 and few_filters and not by_panel)

    # Copied rows: split by column modulo stride, so that each tap reads neighbouring cells; those that no tap of a kernel of
    # one row or column meets are left out
    row_skip = stride_h if KH == 1 else 1
    row_step = stride_h // row_skip
    phases = stride_w if KW > 1 else 1
    phase_width = lines(OW + ((KW - 1) * dil_w) // stride_w + 1)
    row_width = phases * phase_width

    # Pixels in equal blocks of whole panels, or of whole rows, which a fused pool wants too
    by_rows = int(
        flat == 0 and k_blocks == 1 and K > 0 and geometry[GEO_ACCUMULATE] == 0 and VL_FLOAT <= OW <= MOST_PIXELS
        and (ceil_div(OW, VL_FLOAT) * VL_FLOAT - OW) * SPARE <= OW
    )  # fmt: skip
    wide = NR * LISTED_NV if TRIPLE else NR  # pixels of whole tiles
    lone = 0  # past the last vector, which the last block takes
    pooled_rows = 0
    carried_rows = 0
    strip = 1
    paired = 0
    if geometry[GEO_POOL_KH] > 0:
        carried_rows = max(geometry[GEO_POOL_KH] - geometry[GEO_POOL_STRIDE_H], 0)
        NB = max(3 * BLOCK_PIXELS, min(KC * BLOCK_PIXELS // kc, MOST_POOLED))
        pooled_rows = max((NB // max(OW, 1) - carried_rows) // geometry[GEO_POOL_STRIDE_H], 1)
        blocks = ceil_div(geometry[GEO_POOL_OH], pooled_rows)
        NB = min(((pooled_rows - 1) * geometry[GEO_POOL_STRIDE_H] + geometry[GEO_POOL_KH]) * OW, P)
        NB = ceil_div(NB, NR) * NR
        paired = is_paired(OH, OW, K, k_blocks, flat, geometry)
        if carried_rows > 0:
            strip = max(min(ceil_div(images * blocks, THREAD_TASKS * n_threads), blocks), 1)
    else:
        NB = BLOCK_PIXELS
        if in_place > 0 and NV > 1:  # all filters meet it: it stays in the first-level cache
            NB = min(max(IN_PLACE_CELLS // kc // NR, 1) * NR, BLOCK_PIXELS)
        elif flat > 0 and n_threads > 1:  # runs of pixels share nothing: as many blocks as threads want
            NB = min(ceil_div(ceil_div(P * images, THREAD_TASKS * n_threads), wide) * wide, BLOCK_PIXELS)
        elif flat == 0:  # more pixels where columns are short, as rows that neighbours share are copied twice
            NB = max(NB, min(KC * BLOCK_PIXELS // kc, MOST_PIXELS))
            if 2 * SHARED_PIXELS <= P and n_threads > 1:  # what threads copy of an image for themselves, they copy once
                NB = min(NB, max(ceil_div(ceil_div(P * images, n_threads), wide) * wide, SHARED_PIXELS))
        if by_rows > 0:  # of vectors for whole tiles
            rows = (IN_PLACE_CELLS // (ICG * row_width) - (KH - 1) * dil_h - 1) // row_step + 1
            NB = max(min(max(rows // LISTED_NV * LISTED_NV, LISTED_NV), MOST_PIXELS // OW, OH), 1) * OW
        else:
            lone = P % VL_FLOAT if P % VL_FLOAT * LONE <= VL_FLOAT < P else 0
            NB = ceil_div(ceil_div(P - lone, max(ceil_div(P - lone, max(NB, 1)), 1)), wide) * wide
        blocks = ceil_div(P - lone, max(NB, 1))
    if by_rows > 0 and ceil_div(NB, OW) * ceil_div(OW, VL_FLOAT // 2) > MOST_PLACES:
        by_rows = 0

    strips = ceil_div(blocks, strip)
    chunks = 1
    unit, units = NB, blocks
    tasks = images * strips
    if in_place == 0:
        if flat > 0 and n_threads > 1 and tasks > 0:  # enough for a thread that wakes late; each packs cells for itself
            chunks = max(min(ceil_div(THREAD_TASKS * n_threads, tasks), OCG // (2 * CHUNK_FILTERS)), 1)
        while chunks < OCG // CHUNK_FILTERS and is_idle(tasks * chunks, n_threads, IDLE):
            chunks += 1
    elif n_threads > 1 and tasks > 0:  # nothing is packed: as many as balance tasks of any size
        chunks = max(min(ceil_div(THREAD_TASKS * n_threads, tasks), OCG // CHUNK_FILTERS), 1)
    if flat > 0 and pooled_rows == 0:
        unit, units = wide, ceil_div(P - lone, wide)
        while blocks < units and is_idle(images * blocks * chunks, n_threads, EVEN):
            blocks += 1
        while in_place > 0 and chunks < OCG // CHUNK_FILTERS and is_idle(images * blocks * chunks, n_threads, EVEN):
            chunks += 1
        NB, strips = ceil_div(units, max(blocks, 1)) * wide, blocks
    chunk_panels = ceil_div(panels, chunks)
    # The cells of a run stay in the first-level cache. Of a pool and of rows it is a block: RUN_CELLS says for which else
    run = NB
    if by_panel:
        run = NR
    elif pooled_rows == 0 and by_rows == 0:
        run = max(min(RUN_CELLS // (kc + MR), NB) // NR, 1) * NR

    rows = 0
    channels = 0
    copy_elements = 0
    if flat == 0:
        rows = (min(OH, ceil_div(NB + lone, max(OW, 1)) + 1) - 1) * row_step + (KH - 1) * dil_h + 1
        channels = min(ceil_div(kc - 1, max(T, 1)) + 1, max(ICG, 1))
        copy_elements = lines(channels * rows * row_width + VL_FLOAT)
    panel_pixels = NR if in_place > 0 else 0 if by_rows > 0 else run if flat > 0 else NB + ceil_div(lone, NR) * NR
    b_elements = lines(kc * panel_pixels + VL_FLOAT)
    lone_elements = lines(VL_FLOAT // LONE * kc)
    # Finished rows of one panel; sums of all panels where K comes in several blocks
    kept_panels = 1 if k_blocks == 1 else chunk_panels
    c_elements = lines(kept_panels * MR * NB if pooled_rows > 0 else 0)
    ring_elements = lines(pool_ring_size(geometry))
    shift_elements = lines(chunk_panels * MR + LONE_SPAN)
    elements = copy_elements + b_elements + lone_elements + c_elements + ring_elements + shift_elements
    elements += lines(chunk_panels * MR * carried_rows * OW)
    return Blocking(
        ICG, OCG, T, K, OH, OW, P, flat, in_place, run, NB, blocks, strip, strips, unit, units, pooled_rows, carried_rows,
        by_rows, paired, kc, k_blocks, panels, chunks, chunk_panels, kept_panels, lent, phases, phase_width, row_width, rows,
        channels, row_skip, row_step, copy_elements, b_elements, lone_elements, c_elements, ring_elements, shift_elements, elements,
    )  # fmt: skip


Transposed = namedtuple("Transposed", "CB channel_blocks tiles a_elements b_elements c_elements")


def transposed(b, geometry):
    CB = max(MR // max(b.T, 1), 1)
    channel_blocks = ceil_div(b.ICG, CB)
    tiles = ceil_div(CB * b.T, MR)
    a_elements = geometry[GEO_G] * channel_blocks * tiles * b.OCG * MR
    b_elements = max(b.OCG, 1) * NV * VL_FLOAT
    c_elements = tiles * MR * NV * VL_FLOAT
    return Transposed(CB, channel_blocks, tiles, a_elements, b_elements, c_elements)


Outer = namedtuple(
    "Outer",
    "OH OW "  # rows and columns of a plane: 1 and P of a flat one
    "images chunks "  # images of a chunk
    "rows row_width x_elements "  # copied rows of a channel, elements of all channels of a chunk
    "filters panels y_elements "  # filters of a group, filled to whole vectors; their panels
    "task_panels tile_blocks panel_blocks c_elements kept_elements",  # panels of a task
)


def outer(b, geometry, VL):
    NR, N, G = OUTER_NV * VL, geometry[GEO_N], geometry[GEO_G]
    OH, OW, row_width = (1, b.P, b.P) if b.flat else (b.OH, b.OW, b.row_width)
    rows = (OH - 1) * b.row_step + (geometry[GEO_KH] - 1) * geometry[GEO_DIL_H] + 1
    filters = ceil_div(b.OCG, VL) * VL
    panels = ceil_div(filters, NR)
    tile_blocks = ceil_div(ceil_div(b.K, OUTER_MR), TASK_TILES)
    task_panels = TASK_PANELS if G * tile_blocks >= FEW_TASKS else 1
    panel_blocks = ceil_div(panels, task_panels)
    c_elements = TASK_TILES * OUTER_MR * task_panels * NR
    kept_elements = G * tile_blocks * panel_blocks * c_elements
    x_image, y_image = geometry[GEO_IC] * rows * row_width, G * b.P * filters
    images = max(min(max(CHUNK_ELEMENTS, kept_elements) // max(x_image + y_image, 1), N), 1)
    chunks = ceil_div(N, images)
    images = ceil_div(N, max(chunks, 1))
    return Outer(
        OH, OW, images, chunks, rows, row_width, 0 if b.flat else images * x_image, filters, panels, images * y_image,
        task_panels, tile_blocks, panel_blocks, c_elements, kept_elements if chunks > 1 else 0,
    )  # fmt: skip


# The last two by vector length: outer, and all as one array
Plan = namedtuple("Plan", "blocking transposed outer words")


@lru_cache(maxsize=1024)
def _planned(geometry, n_threads):
    g = np.frombuffer(geometry, np.int64).tolist()
    b = blocking(g, n_threads)
    t = transposed(b, g)
    o = {VL: outer(b, g, VL) for VL in (VL_FLOAT, VL_DOUBLE)}
    return Plan(b, t, o, {VL: np.array((*b, *t, *each), np.int64) for VL, each in o.items()})


def plan_of(geometry, n_threads=1):
    """Kept, for in Python it costs 20 us. Tasks get it as one array: they may be as small as a channel."""
    return _planned(geometry.tobytes(), n_threads)


def words_of(plan, array):
    """The array of a plan, for tasks on elements as ``array`` has."""
    return plan.words[VL_FLOAT if array.itemsize == 4 else VL_DOUBLE]


BLOCKING_BYTES, TRANSPOSED_BYTES = 8 * len(Blocking._fields), 8 * len(Transposed._fields)


@helper
def blocking_in(words):
    return fields_at(address(words), Blocking)


@helper
def transposed_in(words):
    return fields_at(address(words) + BLOCKING_BYTES, Transposed)


@helper
def outer_in(words):
    return fields_at(address(words) + BLOCKING_BYTES + TRANSPOSED_BYTES, Outer)


@helper
def is_finite(bias):
    """Whether adding the bias keeps the order of all sums: infinity and -infinity make NaN."""
    for i in range(bias.size):
        if not -np.inf < bias[i] < np.inf:
            return False
    return True


@helper
def panel_start(b, panel):
    """The first filter of a panel. Of few vectors a last one of two has too few FMA chains: the one before lends it two."""
    return min(panel * MR, b.OCG) - (b.lent if panel == b.panels - 1 else 0)


# ----------------------------------------------------------------------------------------------------- the tile


# A tile's sums are [filter][vector of pixels].


@straight
def no_sums(dtype, rows, nv):
    return [[broadcast(dtype.type(0))] * nv] * rows


@straight
def places_of(place, apart, nv, listed):
    return [get(place, j, np.int64) if listed else j * apart for j in range(nv)]


@straight
def add_products(acc, filters, next_panel, cells, ldb, depth, at, dtype, depths, listed, ahead, packs, first):
    size, VL = itemsize(dtype), lanes(dtype)
    for k in range(ceil_div(depths * MR * size, CACHE_LINE)):
        prefetch(filters + next_panel + k * CACHE_LINE)
    for k in range(depths):
        row = cells + (get(depth, k, np.int64) if listed else k * ldb) * size
        x = [load(row, place, dtype) for place in at]
        if first:
            for place in at if NV == 1 else at[:1]:
                prefetch(row + place * size + ahead)
        if first and NV > 1:
            for j, cell in enumerate(x):
                store(packs, (k * len(x) + j) * VL, cell)
        for i, sums in enumerate(acc):
            filter = broadcast(get(filters, k * MR + i, dtype))
            acc[i] = [fma(filter, cell, total) for cell, total in zip(x, sums, strict=True)]
    return acc


@straight
def add_rows(acc, c, ldc, dtype):
    return [[v + load(c, i * ldc + j * lanes(dtype), dtype) for j, v in enumerate(row)] for i, row in enumerate(acc)]


@straight
def add_shifts(acc, bias, dtype):
    shifts = [broadcast(get(bias, i, dtype)) for i in range(len(acc))]
    return [[v + shift for v in row] for row, shift in zip(acc, shifts, strict=True)]


@straight
def raise_to(acc, low):
    least = broadcast(low)
    return [[vmax(least, v) for v in row] for row in acc]


@straight
def lower_to(acc, high):
    most = broadcast(high)
    return [[vmin(most, v) for v in row] for row in acc]


@straight
def store_rows(acc, c, ldc, at):
    for i, row in enumerate(acc):
        for j, v in enumerate(row):
            store(c, i * ldc + at[j], v)


@straight
def store_pooled(acc, c, ldc, bias, low, high, dtype):
    # Maxima of 2x2 pixels before bias and clamp, which keep order: a quarter of the work. Two filters share a vector.
    VL, size = lanes(dtype), itemsize(dtype)
    memory = local(VL_FLOAT, dtype)
    halves, half = address(memory), VL // 2 * size
    least, most = broadcast(low), broadcast(high)
    for i in range(0, len(acc), 2):
        first, second = fold_max(*acc[i]), fold_max(*acc[i + 1])
        v = untangle(fold_max(even(first, second), odd(first, second)))
        store(halves, 0, vmin(most, vmax(least, v + load(bias, i // 2 * VL, dtype))))
        copy(c + i * ldc * size, halves, half)
        copy(c + (i + 1) * ldc * size, halves + half, half)


@helper
def tile(
    a,  # IN   [kc][MR] filters
    b,  # IN   vector j of depth k at k * ldb + j * apart, or where
    ldb,
    apart,
    depth,  # IN   these say: depth[k]
    place,  # IN              + place[j]
    kc,
    c,  # IN/OUT rows of pixels, ldc apart; vector j at j * VL, or where
    ldc,
    to,  # IN   this says: to[j]
    accumulate,  # add to c
    finish,
    bias,  # IN   (MR,)
    low,
    high,
    tiles,  # one beside the other, whose pixels lie so far apart in b,
    b_step,
    panels,  # or one below the other, of so many panels of filters
    ahead,  # bytes: so far to the right cells are fetched
    packs,  # OUT  [kc][nv * VL] the cells, where a panel has several vectors
    dtype,
    rows,  # filters and
    nv,  # vectors of pixels in use; literals, as are
    depths,  # those of one turn
    first,  # both of this is done
    listed,  # places are listed
    paired,  # pixels of two rows of the map, one below the other: c are VL / 2 pooled pixels, bias is [MR][VL / 2]
):
    # rows * nv independent FMA chains hide the latency of each. Every accumulator, the vectors of pixels and one
    # broadcast filter stay in registers.
    outlined()
    size = itemsize(dtype)
    next_panel = kc * MR * size  # of filters
    a_step, bias_step, c_step = 0, 0, nv * lanes(dtype) * size
    if panels > 1:
        a_step, bias_step, b_step, c_step = next_panel, MR * size, 0, MR * ldc * size
    for _ in range(tiles * panels):
        filters, cells, turn, left = a, b, depth, kc
        acc, at = no_sums(dtype, rows, nv), places_of(place, apart, nv, listed)
        while left >= depths:
            rolled()
            acc = add_products(
                acc, filters, next_panel, cells, ldb, turn, at, dtype, depths, listed, ahead, packs, first
            )
            filters += depths * MR * size
            left -= depths
            if first:
                packs += depths * nv * lanes(dtype) * size
            if listed:
                turn += depths * INDEX_BYTES
            else:
                cells += depths * ldb * size
        while left > 0:
            rolled()
            acc = add_products(acc, filters, next_panel, cells, ldb, turn, at, dtype, 1, listed, ahead, packs, first)
            filters += MR * size
            left -= 1
            if first:
                packs += nv * lanes(dtype) * size
            if listed:
                turn += INDEX_BYTES
            else:
                cells += ldb * size
        if paired:
            store_pooled(acc, c, ldc, bias, low, high, dtype)
        else:
            if accumulate:
                acc = add_rows(acc, c, ldc, dtype)
            if finish != KEEP:
                acc = add_shifts(acc, bias, dtype)
            if finish >= RAISE:
                acc = raise_to(acc, low)
            if finish == CLAMP:
                acc = lower_to(acc, high)
            store_rows(acc, c, ldc, places_of(to, lanes(dtype), nv, listed))
        if listed:
            place += nv * INDEX_BYTES
            to += nv * INDEX_BYTES
        else:
            a += a_step
            b += b_step * (nv // NV) * size
            c += c_step
            bias += bias_step


@helper
def plain_tile(
    a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, panels, ahead, packs, dtype, rows, nv,
    first,
):  # fmt: skip
    """A tile whose places are not listed. Of a panel of one vector, a tile of several reads several panels."""
    apart = b_step if NV == 1 else lanes(dtype)
    tile(
        a, b, ldb, apart, 0, 0, kc, c, ldc, 0, accumulate, finish, bias, low, high, tiles, b_step, panels, ahead, packs, dtype,
        rows, nv, LISTED_DEPTHS if nv == LISTED_NV > NV else DEPTHS, first, False, False,
    )  # fmt: skip


@helper
def triple_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, rows, tiles, ahead, dtype):
    """Of ``tiles`` of one vector those that fill tiles of LISTED_NV, LISTED_MR of their rows at a time; their number."""
    size, i, triples = itemsize(dtype), 0, tiles // LISTED_NV
    if triples > 0 and ahead > 0:
        plain_tile(
            a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, triples, b_step, 1, ahead, 0, dtype, LISTED_MR,
            LISTED_NV, True,
        )  # fmt: skip
        i += LISTED_MR
    while triples > 0 and i < rows:
        some_rows(
            a + i * size, b, ldb, kc, c + i * ldc * size, ldc, accumulate, finish, bias + i * size, low, high, triples, b_step,
            dtype, LISTED_MR, LISTED_NV,
        )  # fmt: skip
        i += LISTED_MR
    return triples * LISTED_NV


@helper
def whole_tiles(
    a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, tiles, panels, ahead, packs, dtype
):  # fmt: skip
    """ahead: the first filters to meet a run that is read in place fetch the next one, as no hardware does along channels; and,
    but for panels of one vector, copy its cells for the others.
    """
    if TRIPLE:
        done = triple_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, MR, tiles, ahead, dtype)
        b += done * b_step * itemsize(dtype)
        c += done * lanes(dtype) * itemsize(dtype)
        tiles -= done
    if ahead > 0:
        plain_tile(
            a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, 1, ahead, packs, dtype, MR, NV, True
        )  # fmt: skip
    else:
        plain_tile(
            a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, panels, 0, 0, dtype, MR, NV, False
        )  # fmt: skip


@helper
def height(filters):
    """Rows of the smallest tile that holds so many filters."""
    if filters <= 4:
        return filters if NV == 1 else 2 if filters <= 2 else 4
    if MR > 8 and filters <= 8:
        return 8
    return 12 if MR > 12 and filters <= 12 else MR


@helper
def some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, rows, nv):
    plain_tile(
        a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, 1, 0, 0, dtype, rows, nv, False
    )  # fmt: skip


@helper
def low_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, rows, tiles, dtype, nv):
    """Tiles of at most four rows, a `height`."""
    if NV == 1 and rows == 1:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 1, nv)
    elif rows == 2:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 2, nv)
    elif NV == 1 and rows == 3:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 3, nv)
    else:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 4, nv)


@helper
def part_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, rows, nv, tiles, dtype):
    """A tile of MR rows of nv vectors, or tiles of fewer rows, a `height`, of NV vectors; what lies outside costs nothing."""
    few = tiles * NV // FEW_VECTORS
    done = few * (FEW_VECTORS // NV)
    if NV == 1 and rows <= 4 and few > 0:
        low_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, rows, few, dtype, FEW_VECTORS)
        b += done * b_step * itemsize(dtype)
        c += done * NV * lanes(dtype) * itemsize(dtype)
        tiles -= done
    if rows <= 4:
        low_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, rows, tiles, dtype, NV)
    elif MR > 8 and rows == 8:
        if TRIPLE:
            done = triple_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, low, high, 8, tiles, 0, dtype)
            b += done * b_step * itemsize(dtype)
            c += done * lanes(dtype) * itemsize(dtype)
            tiles -= done
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 8, NV)
    elif MR > 12 and rows == 12:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, tiles, b_step, dtype, 12, NV)
    elif NV > 1 and nv == 1:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, 1, 0, dtype, MR, 1)
    else:
        some_rows(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, 1, 0, dtype, MR, NV)


@helper
def edge_tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, filters, pixels, dtype):
    """A tile of which only ``filters`` x ``pixels`` exist: computed whole beside c, copied in part."""
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    NR, nv = NV * VL, ceil_div(pixels, VL)
    rows = height(filters) if nv == NV else MR
    memory = local(TILE_ELEMENTS, dtype)
    whole = address(memory)
    if accumulate:
        for i in range(filters):
            copy(whole + i * NR * size, c + i * ldc * size, pixels * size)
    part_tiles(a, b, ldb, 0, kc, whole, NR, accumulate, finish, bias, low, high, rows, nv, 1, dtype)
    for i in range(filters):
        copy(c + i * ldc * size, whole + i * NR * size, pixels * size)


@helper
def some_tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, filters, pixels, dtype):
    """A tile of ``filters`` x ``pixels``, one of them no extent of whole tiles."""
    VL = lanes(dtype)
    if NV > 1 and filters == MR and pixels % VL == 0:
        part_tiles(a, b, ldb, 0, kc, c, ldc, accumulate, finish, bias, low, high, MR, pixels // VL, 1, dtype)
    else:
        edge_tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, low, high, filters, pixels, dtype)


@helper
def listed_rows(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, tiles, dtype, rows, nv):
    """A tile whose places are listed."""
    tile(
        a, b, 0, 0, depth, place, kc, c, ldc, to, False, finish, bias, low, high, tiles, 0, 1, 0, 0, dtype, rows, nv,
        LISTED_DEPTHS, False, True, False,
    )  # fmt: skip


@helper
def listed_tiles(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, filters, nv, tiles, dtype):
    """Tiles of at most LISTED_MR filters and LISTED_NV vectors whose places are listed; a part of one is alone."""
    VL, size = lanes(dtype), itemsize(dtype)
    rows = 4 if filters <= 4 else LISTED_MR
    if filters == LISTED_MR and nv == LISTED_NV:
        listed_rows(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, tiles, dtype, LISTED_MR, LISTED_NV)
    elif filters == LISTED_MR and nv == 1:
        listed_rows(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, 1, dtype, LISTED_MR, 1)
    elif filters == LISTED_MR and LISTED_NV > 2:
        listed_rows(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, 1, dtype, LISTED_MR, 2)
    else:
        part = filters < rows or nv < LISTED_NV
        memory, places = local(LISTED_ELEMENTS, dtype), local(LISTED_NV, np.int64)
        whole = address(memory)  # computed beside c
        target, step, beside = whole if part else c, LISTED_NV * VL if part else ldc, address(places) if part else to
        for j in range(LISTED_NV):
            places[j] = j * VL
        if rows == 4:
            listed_rows(
                a, b, depth, place, kc, target, step, beside, finish, bias, low, high, tiles, dtype, 4, LISTED_NV
            )  # fmt: skip
        else:
            listed_rows(
                a, b, depth, place, kc, target, step, beside, finish, bias, low, high, 1, dtype, LISTED_MR, LISTED_NV
            )  # fmt: skip
        for i in range(filters if part else 0):
            for j in range(nv):
                source = whole + (i * LISTED_NV + j) * VL * size
                copy(c + (i * ldc + get(to, j, np.int64)) * size, source, VL * size)


@helper
def listed_panel(a, b, depth, place, kc, c, ldc, to, finish, bias, low, high, filters, vectors, dtype):
    """All vectors of a panel of filters: whole tiles run in one call, the rest tile by tile."""
    outlined()
    size, i = itemsize(dtype), 0
    while i < filters:
        rows, j = min(filters - i, LISTED_MR), 0
        if rows == LISTED_MR or rows == 4:
            j = vectors // LISTED_NV * LISTED_NV
            listed_tiles(
                a + i * size, b, depth, place, kc, c + i * ldc * size, ldc, to, finish, bias + i * size, low, high, rows,
                LISTED_NV, j // LISTED_NV, dtype,
            )  # fmt: skip
        while j < vectors:
            listed_tiles(
                a + i * size, b, depth, place + j * INDEX_BYTES, kc, c + i * ldc * size, ldc, to + j * INDEX_BYTES, finish,
                bias + i * size, low, high, rows, min(vectors - j, LISTED_NV), 1, dtype,
            )  # fmt: skip
            j += LISTED_NV
        i += LISTED_MR


@helper
def paired_rows(a, b, depth, place, kc, z, ldz, bias, low, high, dtype, rows):
    tile(
        a, b, 0, 0, depth, place, kc, z, ldz, 0, False, CLAMP, bias, low, high, 1, 0, 1, 0, 0, dtype, rows, 2,
        LISTED_DEPTHS, False, True, True,
    )  # fmt: skip


@helper
def paired_tile(a, b, depth, place, kc, z, ldz, bias, low, high, filters, columns, dtype):
    """Half a vector of pooled pixels of at most LISTED_MR filters, or the first ``columns``: a part is computed beside z."""
    VL, size = lanes(dtype), itemsize(dtype)
    half, rows = VL // 2, 4 if filters <= 4 else LISTED_MR
    memory = local(LISTED_ELEMENTS, dtype)
    whole = address(memory)
    part = filters < rows or columns < half
    target, step = whole if part else z, half if part else ldz
    if rows == 4:
        paired_rows(a, b, depth, place, kc, target, step, bias, low, high, dtype, 4)
    else:
        paired_rows(a, b, depth, place, kc, target, step, bias, low, high, dtype, LISTED_MR)
    if part:
        for i in range(filters):
            copy(z + i * ldz * size, whole + i * half * size, columns * size)


# Sums of left-over pixels are [turn][pixel][vector of filters].


@straight
def no_lone_sums(dtype, pixels):
    vectors = LONE_SPAN // lanes(dtype)
    return [[[broadcast(dtype.type(0))] * vectors] * pixels] * ceil_div(LONE_SUMS, pixels * vectors)


@straight
def add_lone_products(acc, a, x, dtype):
    for t, sums in enumerate(acc):
        for v in range(len(sums[0])):
            filters = load(a, t * MR + v * lanes(dtype), dtype)
            for p, total in enumerate(sums):
                total[v] = fma(broadcast(get(x, t * len(sums) + p, dtype)), filters, total[v])
    return acc


@straight
def add_turns(acc):
    first, *others = acc
    for sums in others:
        first = [[v + w for v, w in zip(*pair, strict=True)] for pair in zip(first, sums, strict=True)]
    return [first]


@straight
def store_lone_sums(acc, sums, dtype):
    for p, total in enumerate(acc[0]):
        for v, each in enumerate(total):
            store(sums, p * LONE_SPAN + v * lanes(dtype), each)


@helper
def lone_sums(
    a,  # IN   [kc][MR] filters
    x,  # IN   [kc][pixels]
    kc,
    sums,  # OUT  [pixels][LONE_SPAN]
    dtype,
    pixels,  # a literal
):
    # Vectors along filters: a few pixels that are left over would waste most of a tile. Depths take turns with several sums,
    # as an addition to the same one would wait for the last.
    outlined()
    size, k = itemsize(dtype), 0
    turns = ceil_div(LONE_SUMS, pixels * (LONE_SPAN // lanes(dtype)))
    acc = no_lone_sums(dtype, pixels)
    while k + turns <= kc:
        acc = add_lone_products(acc, a, x, dtype)
        a += turns * MR * size
        x += turns * pixels * size
        k += turns
    rest = add_turns(acc)
    while k < kc:
        rest = add_lone_products(rest, a, x, dtype)
        a += MR * size
        x += pixels * size
        k += 1
    store_lone_sums(rest, sums, dtype)


@helper
def lone_tile(
    a,  # IN   [kc][MR] filters; of the last panel may be read what fills a vector up
    x,  # IN   [kc][pixels]
    kc,
    c,  # IN/OUT pixels of ``filters`` maps, ldc apart
    ldc,
    accumulate,
    finish,
    bias,
    low,
    high,
    filters,
    pixels,  # at most VL / LONE
    dtype,
):
    outlined()
    memory = local(LONE_ELEMENTS, dtype)
    sums = address(memory)
    if pixels == 1:
        lone_sums(a, x, kc, sums, dtype, 1)
    elif pixels == 2:
        lone_sums(a, x, kc, sums, dtype, 2)
    elif VL_FLOAT == 16 and pixels == 3:
        lone_sums(a, x, kc, sums, dtype, 3)
    elif VL_FLOAT == 16:
        lone_sums(a, x, kc, sums, dtype, 4)
    if accumulate:
        for i in range(filters):
            for p in range(pixels):
                memory[p * LONE_SPAN + i] += get(c, i * ldc + p, dtype)
    if finish != KEEP:
        for p in range(pixels):
            for i in range(0, LONE_SPAN, lanes(dtype)):
                v = load(sums, p * LONE_SPAN + i, dtype) + load(bias, i, dtype)
                store(sums, p * LONE_SPAN + i, vmin(broadcast(high), vmax(broadcast(low), v)))
    store_filters(sums, c, pixels, filters, LONE_SPAN, ldc, False, dtype)


# -------------------------------------------------------------------------------------------- packing the columns


@helper
def copy_every_other(source, target, count, stride, dtype):
    """target[j] = source[stride * j] for j < count, stride 2 or 4, without a scalar tail: the last vector overlaps."""
    VL, size = lanes(dtype), itemsize(dtype)
    if count < VL:
        if stride == 2:
            a, b = load_inside(source, 0, 2 * count - 1, dtype), load_inside(source, VL, 2 * count - 1, dtype)
            store_first(target, 0, untangle(even(a, b)), count)
        else:
            for j in range(count):
                put(target, j, get(source, stride * j, dtype))
        return
    j = 0
    while True:
        # The last load ends at the last element that is wanted; of four, those of odd index are in odd lanes
        x = source + stride * j * size
        v = every_other(load(x, 0, dtype), load(x, VL - 1, dtype))
        if stride == 4:
            v = every_other(v, every_other(load(x, 2 * VL - 2, dtype), load(x, 3 * VL - 3, dtype)))
        store(target, j, v)
        if j + VL >= count:
            break
        j = min(j + VL, count - VL)


@helper
def meets_tap(place, taps, stride, dil):
    """Whether one of ``taps``, dil apart, falls on ``place`` modulo stride."""
    if stride == 1 or (dil == 1 and taps >= stride):
        return True
    for tap in range(taps):
        if (place - tap * dil) % stride == 0:
            return True
    return False


@helper
def gather(
    columns,  # IN   (kc) rows of pixels, ldb apart
    ldb,
    lone,  # OUT  [kc][pixels]
    kc,
    pixels,
    dtype,
):
    """The columns of ``pixels`` pixels one after the other: where they stand each depth has a line of the cache for itself."""
    outlined()
    for k in range(kc):
        for p in range(pixels):
            put(lone, k * pixels + p, get(columns, k * ldb + p, dtype))


@helper
def clear_around(cells, first, last, width, dtype):
    """Zeros before ``first`` and from ``last`` on, in whole vectors, as rows are: what lies between is written afterwards."""
    VL, zeros = lanes(dtype), broadcast(dtype.type(0))
    for j in range(0, first, VL):
        rolled()
        store(cells, j, zeros)
    for j in range(last // VL * VL, width, VL):
        rolled()
        store(cells, j, zeros)


@helper
def copy_pairs(plane, copied, b, geometry, first_row, rows, dtype):
    """`copy_rows` at a stride of 2 whose both phases are read: a row's even and odd columns at once."""
    outlined()
    IH, IW, width, pad = geometry[GEO_IH], geometry[GEO_IW], b.phase_width, geometry[GEO_PAD_LEFT]
    VL, size = lanes(dtype), itemsize(dtype)
    # Of even columns, from cell ``left`` of one phase on, and of odd ones, from ``right`` of the other
    left, right = min(pad // 2, width), min((pad + 1) // 2, width)
    evens, odds = min(ceil_div(IW, 2), width - left), min(IW // 2, width - right)
    both = min(evens, odds)
    last = both - VL
    for row in range(rows):
        if not meets_tap(row * b.row_skip, geometry[GEO_KH], geometry[GEO_STRIDE_H], geometry[GEO_DIL_H]):
            continue
        ih = first_row + row * b.row_skip
        even = copied + (row * b.row_width + pad % 2 * width) * size
        odd = copied + (row * b.row_width + (1 - pad % 2) * width) * size
        if ih < 0 or ih >= IH:
            clear(copied + row * b.row_width * size, b.row_width * size)
            continue
        source = plane + ih * IW * size
        for j in range(ceil_div(IW * size, CACHE_LINE)):  # of the next channel: hardware does not in rows so short
            rolled()
            prefetch(source + IH * IW * size + j * CACHE_LINE)
        clear_around(even, left, left + evens, width, dtype)
        clear_around(odd, right, right + odds, width, dtype)
        even += left * size
        odd += right * size
        j = 0
        while last >= 0:  # from which the last vectors go: they are whole, too
            rolled()
            x = source + 2 * j * size
            store(even, j, every_other(load(x, 0, dtype), load(x, VL - 1, dtype)))
            store(odd, j, every_other(load(x, 1, dtype), load(x, VL, dtype)))
            if j == last:
                break
            j = min(j + VL, last)
        for j in range(both if last >= 0 else 0, both):
            rolled()
            put(even, j, get(source, 2 * j, dtype))
            put(odd, j, get(source, 2 * j + 1, dtype))
        for j in range(both, evens):
            rolled()
            put(even, j, get(source, 2 * j, dtype))
        for j in range(both, odds):
            rolled()
            put(odd, j, get(source, 2 * j + 1, dtype))


@helper
def copy_rows(
    plane,  # IN   one channel (IH, IW)
    copied,  # OUT  [rows][phases][phase_width]
    b,
    geometry,
    first_row,  # input row of the first copied one; may lie above the image
    rows,
    dtype,
):
    """Input rows with their zero border, columns split by their position modulo stride."""
    outlined()
    IH, IW, KH, KW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_KH], geometry[GEO_KW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w, pad_left = geometry[GEO_DIL_H], geometry[GEO_DIL_W], geometry[GEO_PAD_LEFT]
    width, size = b.phase_width, itemsize(dtype)
    if b.phases == 2 and dil_w % 2 == 1 and pad_left >= 0:  # negative: columns cut off
        copy_pairs(plane, copied, b, geometry, first_row, rows, dtype)
        return
    for phase in range(stride_w):
        if not meets_tap(phase, KW, stride_w, dil_w):
            continue
        # Cell j holds input column left + j * stride_w
        left = phase - pad_left
        first = min(max(ceil_div(-left, stride_w), 0), width) if left < 0 else 0
        last = min(max(ceil_div(IW - left, stride_w), first), width) if left < IW else first
        for row in range(rows):
            # Rows between the taps of a strided kernel are never read
            if not meets_tap(row * b.row_skip, KH, stride_h, dil_h):
                continue
            ih = first_row + row * b.row_skip
            target = copied + (row * b.row_width + phase * width) * size
            if ih < 0 or ih >= IH:
                clear(target, width * size)
                continue
            source = plane + (ih * IW + left) * size
            if phase == 0:  # the same row of the next channel: rows are too short for the hardware to fetch ahead
                for j in range(ceil_div(IW * size, CACHE_LINE)):
                    rolled()
                    prefetch(plane + (IH + ih) * IW * size + j * CACHE_LINE)
            clear_around(target, first, last, width, dtype)
            if stride_w == 1:
                copy(target + first * size, source + first * size, (last - first) * size)
            elif stride_w == 2 or stride_w == 4:
                copy_every_other(source + stride_w * first * size, target + first * size, last - first, stride_w, dtype)
            else:
                for j in range(first, last):
                    put(target, j, get(source, j * stride_w, dtype))


@straight
def listed_places(places, count):
    return [get(places, j, np.int64) for j in range(count)]


@straight
def copy_vectors(row, source, packed, target, dtype):
    for there, here in zip(source, target, strict=True):
        store(packed, here, load(row, there, dtype))


@helper
def pack_panel(
    copied,  # IN
    depth,  # IN   (kc)
    packed,  # OUT  [kc][NV * VL]
    kc,
    run_from,  # IN   (vectors)
    run_to,  # IN   (vectors)
    dtype,
    vectors,  # a literal: the places of the runs then stay in registers
):
    size = itemsize(dtype)
    source, target = listed_places(address(run_from), vectors), listed_places(address(run_to), vectors)
    for k in range(kc):
        copy_vectors(copied + depth[k] * size, source, packed, target, dtype)
        packed += NV * lanes(dtype) * size


@helper
def pack_flat(
    plane,  # IN   pixels of kc channels, IHW apart
    packed,  # OUT  panels of [kc][NV * VL]
    kc,
    pixels,
    IHW,
    dtype,
):
    outlined()
    # No hardware fetches along channels by itself: the next panel's cells are fetched as this one's are copied.
    VL, size = lanes(dtype), itemsize(dtype)
    NR = NV * VL
    for _ in range(pixels // NR):
        row = plane
        for _ in range(kc):
            prefetch(row + NR * size)
            for j in range(NV):
                store(packed, j * VL, load(row, j * VL, dtype))
            packed += NR * size
            row += IHW * size
        plane += NR * size
    if pixels % NR:
        # Nothing past the caller's array may be read, and what lay here may be subnormal: slow to multiply with
        for k in range(kc):
            for j in range(NR):
                put(packed, k * NR + j, get(plane, k * IHW + j, dtype) if j < pixels % NR else dtype.type(0))


@helper
def column_of_tap(column, stride, b):
    """Where a copied row holds what a tap ``column`` columns from the first meets; small layers feel a division."""
    return column if stride == 1 else column % stride * b.phase_width + column // stride


@helper
def copy_block(
    image,  # IN   the channels of one group of one image
    copied,  # OUT  copy_elements
    depth,  # OUT  (kc) where the cells of the first pixel lie
    b,
    geometry,
    k_from,
    kc,
    oh_from,  # rows of the map
    oh_to,
    dtype,
):
    """The input rows that rows k_from .. k_from + kc of the columns touch."""
    outlined()
    size = itemsize(dtype)
    IHW, KH, KW = geometry[GEO_IH] * geometry[GEO_IW], geometry[GEO_KH], geometry[GEO_KW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    c_from, c_to = k_from // b.T, (k_from + kc - 1) // b.T + 1
    rows = (oh_to - 1 - oh_from) * b.row_step + (KH - 1) * dil_h + 1
    for c in range(c_from, c_to):
        copy_rows(
            image + c * IHW * size, copied + (c - c_from) * b.rows * b.row_width * size, b, geometry,
            oh_from * stride_h - geometry[GEO_PAD_TOP], rows, dtype,
        )  # fmt: skip
    c = 0
    kh = k_from % b.T // KW
    kw = k_from % KW
    for k in range(kc):
        row = (c * b.rows + kh * dil_h) * b.row_width
        depth[k] = row + column_of_tap(kw * dil_w, stride_w, b)
        kw += 1
        if kw == KW:
            kw = 0
            kh += 1
            if kh == KH:
                kh = 0
                c += 1


@helper
def pack_block(
    copied,  # IN   by `copy_block`
    depth,  # IN   (kc)
    packed,  # OUT  panels of [kc][NV * VL]
    b,
    geometry,
    kc,
    p_from,
    pixels,
    dtype,
):
    """The columns of ``pixels`` pixels."""
    outlined()
    # A row of a panel is one run of cells per output row it crosses. Each run is written by whole vectors, in order:
    # what a vector writes past its run is overwritten by the next run or row, or lies in the slack behind the block.
    VL, size = lanes(dtype), itemsize(dtype)
    NR, row = NV * VL, b.row_step * b.row_width
    run_to, run_from = local(MOST_VECTORS, np.int64), local(MOST_VECTORS, np.int64)
    oh, ow, left = np.int64(0), p_from % b.OW, pixels
    for _ in range(ceil_div(pixels, NR)):
        vectors = 0
        done = 0
        while done < NR and left > 0:
            length = min(min(b.OW - ow, NR - done), left)
            for j in range(ceil_div(length, VL)):
                run_to[vectors] = done + j * VL
                run_from[vectors] = oh * row + ow + j * VL
                vectors += 1
            done += length
            left -= length
            ow += length
            if ow == b.OW:
                ow = 0
                oh += 1
        if vectors == 1:
            pack_panel(copied, depth, packed, kc, run_from, run_to, dtype, 1)
        elif vectors == 2:
            pack_panel(copied, depth, packed, kc, run_from, run_to, dtype, 2)
        elif vectors == 3:
            pack_panel(copied, depth, packed, kc, run_from, run_to, dtype, 3)
        elif vectors == 4:
            pack_panel(copied, depth, packed, kc, run_from, run_to, dtype, 4)
        else:
            for k in range(kc):
                for j in range(vectors):
                    cells = load(copied, depth[k] + run_from[j], dtype)
                    store(packed, k * NR + run_to[j], cells)
        packed += kc * NR * size


# ------------------------------------------------------------------------------------------- kernels: columns


@task
def im2col_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    cols: real[:, :, :, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one channel of one image.
    IH, IW = geometry[GEO_IH], geometry[GEO_IW]
    OH, OW, KH, KW = geometry[GEO_OH], geometry[GEO_OW], geometry[GEO_KH], geometry[GEO_KW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dtype = input.dtype
    size = itemsize(dtype)
    plane = address(input) + task * IH * IW * size
    target = address(cols) + task * KH * KW * OH * OW * size
    for kh in range(KH):
        for kw in range(KW):
            left = kw * dil_w - pad_left
            # Output columns [first, last) lie over the image
            first = min(max(ceil_div(-left, stride_w), 0), OW)
            last = min(max(ceil_div(IW - left, stride_w), first), OW)
            for oh in range(OH):
                ih = oh * stride_h - pad_top + kh * dil_h
                if ih < 0 or ih >= IH:
                    clear(target, OW * size)
                else:
                    source = plane + (ih * IW + left) * size
                    clear(target, first * size)
                    if stride_w == 1:
                        copy(target + first * size, source + first * size, (last - first) * size)
                    elif stride_w == 2:
                        copy_every_other(source + 2 * first * size, target + first * size, last - first, 2, dtype)
                    else:
                        for ow in range(first, last):
                            put(target, ow, get(source, ow * stride_w, dtype))
                    clear(target + last * size, (OW - last) * size)
                target += OW * size


def im2col(input, cols, workspace, geometry, n_threads):
    """input (N, IC, IH, IW) -> cols (N, IC, KH, KW, OH, OW)."""
    im2col_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, cols, geometry)


@task
def col2im_task(
    task: index,
    cols: const_real[:, :, :, :, :, ::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one channel of one image; a cell sums its columns in the order of the taps.
    IH, IW = geometry[GEO_IH], geometry[GEO_IW]
    OH, OW, KH, KW = geometry[GEO_OH], geometry[GEO_OW], geometry[GEO_KH], geometry[GEO_KW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dtype = output.dtype
    size = itemsize(dtype)
    plane = address(output) + task * IH * IW * size
    source = address(cols) + task * KH * KW * OH * OW * size
    clear(plane, IH * IW * size)
    for kh in range(KH):
        for kw in range(KW):
            left = kw * dil_w - pad_left
            first = min(max(ceil_div(-left, stride_w), 0), OW)
            last = min(max(ceil_div(IW - left, stride_w), first), OW)
            for oh in range(OH):
                ih = oh * stride_h - pad_top + kh * dil_h
                if 0 <= ih < IH:
                    target = plane + (ih * IW + left) * size
                    if stride_w == 1:
                        add_run(target + first * size, source + first * size, last - first, dtype)
                    elif stride_w == 2:
                        spread_run(target + 2 * first * size, source + first * size, last - first, dtype)
                    else:
                        cell = target + first * stride_w * size
                        for ow in range(first, last):
                            put(cell, 0, get(cell, 0, dtype) + get(source, ow, dtype))
                            cell += stride_w * size
                source += OW * size


def col2im(cols, output, workspace, geometry, n_threads):
    """The adjoint of im2col: output (N, IC, IH, IW) sums the columns' cells."""
    col2im_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, cols, output, geometry)


@task
def interleave_task(
    task: index,
    parts: const_real[::1],  # IN
    output: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # A task is one channel of one image. With a stride of 2 both parts of a row are read together, so that it is written
    # once.
    planes, IH, IW = geometry[GEO_N] * geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dtype = output.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    above = 0
    for row in range(min(stride_h, IH)):
        rows = ceil_div(IH - row, stride_h)
        for i in range(rows):
            target = address(output) + (task * IH + row + i * stride_h) * IW * size
            left = 0
            if stride_w == 2:
                columns = ceil_div(IW, 2)
                source = address(parts) + (above * planes + (task * rows + i) * columns) * size
                second = address(parts) + ((above + rows * columns) * planes + (task * rows + i) * (IW // 2)) * size
                whole = IW // 2 // VL * VL
                for j in range(0, whole, VL):
                    a, b = load(source, j, dtype), load(second, j, dtype)
                    store(target, 2 * j, zip_low(a, b))
                    store(target, 2 * j + VL, zip_high(a, b))
                left = IW // 2 - whole
                if left > 0:
                    a, b = load_inside(source, whole, IW // 2, dtype), load_inside(second, whole, IW // 2, dtype)
                    store_first(target, 2 * whole, zip_low(a, b), min(2 * left, VL))
                    if 2 * left > VL:
                        store_first(target, 2 * whole + VL, zip_high(a, b), 2 * left - VL)
                if IW % 2 != 0:
                    put(target, IW - 1, get(source, IW // 2, dtype))
                continue
            for column in range(min(stride_w, IW)):
                columns = ceil_div(IW - column, stride_w)
                source = address(parts) + ((above + rows * left) * planes + (task * rows + i) * columns) * size
                for j in range(columns):
                    put(target, j * stride_w + column, get(source, j, dtype))
                left += columns
        above += rows * IW


def interleave(parts, output, workspace, geometry, n_threads):
    """output (N, IC, IH, IW) of ``parts``, one behind the other: each is every stride-th row and column, from 0, 1 ... on."""
    interleave_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, parts, output, geometry)


# ------------------------------------------------------------------------------------------- kernels: forward


def packed_weight_size(geometry):
    """Elements of a packed weight: [G][block of K][panel][kc][MR], the last panel of a group filled up with zeros."""
    b = plan_of(geometry).blocking
    return int(geometry[GEO_G]) * b.panels * b.K * MR + LONE_SPAN - MR  # whose last vector of filters is read whole


@straight
def transpose_filters(
    row,  # IN   MR filters, step apart: depth after depth
    step,
    target,  # OUT  [VL][MR], and two elements more where MR is not made of squares
    dtype,
):
    """VL depths of MR filters, from filter by filter to depth by depth: 4 filters at once."""
    # From the last filters to the first: what a square that holds two of them writes too much is overwritten.
    quad = 16 // itemsize(dtype)
    for first in range(ceil_div(MR, 4) * 4 - 4, -1, -4):
        z = [load(row, min(first + j, MR - 1) * step, dtype) for j in range(4)]
        for j, v in enumerate(transpose(*z)):
            i = first + j // quad * quad
            if i < MR:
                store_lanes(target, j % quad * MR + i, quad * MR, v)


@straight
def move_filters(row, step, target, dtype):
    for i in range(MR):
        put(target, i, get(row, i * step, dtype))


@helper
def transpose_depths(row, step, target, kc, dtype):
    """So many depths of MR filters as squares: these write too much for the last ones."""
    outlined()  # else every task begins with the addresses of a square, needed or not
    VL, size, k = lanes(dtype), itemsize(dtype), 0
    while k + VL < kc:
        transpose_filters(row + k * size, step, target + k * MR * size, dtype)
        k += VL
    return k


@task
def pack_weight_task(
    task: index,
    weight: const_real[:, :, :, ::1],  # IN
    packed: real[::1],  # OUT
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is one panel of filters. A turned weight holds filters within channels, and taps in reverse.
    b = blocking_in(words)
    dtype = weight.dtype
    size, zero, turned = itemsize(dtype), dtype.type(0), geometry[GEO_TURNED] != 0
    g, panel = task // b.panels, task % b.panels
    first = panel_start(b, panel)
    filters, step, tap = panel_start(b, panel + 1) - first, b.T if turned else b.K, 0
    row = address(weight) + (g * b.OCG + first) * b.K * size
    if turned:
        row = address(weight) + ((g * b.ICG * b.OCG + first) * b.T + b.T - 1) * size
    k_from = 0
    while k_from < b.K:
        kc = min(b.K - k_from, b.kc)
        target = address(packed) + ((g * b.K + k_from) * b.panels + panel * kc) * MR * size
        k = k_from
        if not turned and filters == MR:
            done = transpose_depths(row, step, target, kc, dtype)
            target += done * MR * size
            row += done * size
            k += done
        for _ in range(k, k_from + kc):
            if filters == MR:
                move_filters(row, step, target, dtype)
            elif filters == 1:  # the masked gather that LLVM makes of the loop below takes longer
                put(target, 0, get(row, 0, dtype))
                for i in range(1, MR):
                    put(target, i, zero)
            else:
                for i in range(MR):
                    put(target, i, get(row, i * step, dtype) if i < filters else zero)
            target += MR * size
            row += -size if turned else size
            tap += 1
            if turned and tap == b.T:
                tap = 0
                row += (b.OCG + 1) * b.T * size
        k_from += kc


def pack_weight(weight, packed, workspace, geometry, n_threads):
    """weight (OC, ICG, KH, KW), turned (IC, OCG, KH, KW) -> packed, in the order in which this back end's conv2d reads it."""
    plan = plan_of(geometry)
    n_tasks = geometry[GEO_G] * plan.blocking.panels
    words, n_threads = words_of(plan, weight), n_threads if packed.size > FEW_WEIGHTS else 1
    pack_weight_task.run(n_tasks, n_threads, weight, packed, geometry, words)


def conv2d_workspace(geometry, n_workers):
    """Elements of workspace: for each worker copied rows, the packed block, what a fused pool reads and carries over."""
    return n_workers * plan_of(geometry, n_workers).blocking.elements


@helper
def conv2d_block(
    ng,  # image and group
    block,
    follows,  # the block above has been computed just before
    panel_from,  # panels of filters
    panel_to,
    input,  # IN
    packed,  # IN
    bias,  # IN
    low,
    high,
    output,  # OUT
    pooled,  # OUT
    indices,  # OUT
    scratch,  # elements
    b,
    geometry,  # IN
):
    outlined()
    dtype = input.dtype
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    NR, g = NV * VL, ng % geometry[GEO_G]
    step, top, KH = geometry[GEO_POOL_STRIDE_H], geometry[GEO_POOL_PAD_TOP], geometry[GEO_POOL_KH]
    plane = geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
    image = address(input) + ng * b.ICG * geometry[GEO_IH] * geometry[GEO_IW] * size
    copied = scratch
    b_block = scratch + b.copy_elements * size
    lone_cells = b_block + b.b_elements * size
    c_block = lone_cells + b.lone_elements * size
    ring = c_block + b.c_elements * size
    shifts = ring + b.ring_elements * size  # [panel][MR] bias
    carry = shifts + b.shift_elements * size  # [filter][carried_rows][OW]

    oc_from, head = panel_start(b, panel_from), 0
    # c: this block's pixels of filter oc_from
    if b.pooled_rows > 0:
        pooled_from = block * b.pooled_rows
        pooled_to = min(pooled_from + b.pooled_rows, geometry[GEO_POOL_OH])
        row_from = max(pooled_from * step - top, 0)
        row_to = min((pooled_to - 1) * step - top + KH, b.OH)
        carried = max(min((pooled_from - 1) * step - top + KH, b.OH) - row_from, 0) if follows else 0
        carry_from = max(pooled_to * step - top, 0)
        rows_to_carry = max(row_to - carry_from, 0)
        p_from = (row_from + carried) * b.OW
        pixels = max(row_to * b.OW - p_from, 0)  # none where the last windows reach into the padding
        ldc = b.NB
        c = c_block + carried * b.OW * size
        lone = 0  # how a pixel is summed must not depend on where blocks begin
    else:
        pooled_from = pooled_to = row_from = carried = carry_from = rows_to_carry = 0
        if b.flat > 0 and (b.in_place > 0 or NV > 1) and b.P % VL == 0 and b.P >= HEADED * VL:
            head = -(image // size) % (VL if b.P % NR else NR)
        p_from = block * b.units // b.blocks * b.unit + head
        pixels = b.P - p_from if block == b.blocks - 1 else (block + 1) * b.units // b.blocks * b.unit + head - p_from
        ldc = b.P
        c = address(output) + ((ng * b.OCG + oc_from) * b.P + p_from) * size
        lone = pixels % VL if pixels % VL * LONE <= VL and b.by_rows == 0 and head == 0 else 0

    pixels -= lone
    cells = pixels
    depth, place, to = local(KC, np.int64), local(PLACES, np.int64), local(MOST_PLACES, np.int64)
    places, targets = address(place), address(to)
    if b.by_rows > 0:
        in_row = ceil_div(b.OW, VL)
        cells = pixels // b.OW * in_row * VL
        for j in range(cells // VL):
            q = min(j % in_row * VL, b.OW - VL)
            place[j] = j // in_row * b.row_step * b.row_width + q
            to[j] = j // in_row * b.OW + q
        for j in range(LISTED_NV):
            place[cells // VL + j] = 0
    tiles = ceil_div(cells, NR)
    run = tiles if b.by_rows > 0 or b.pooled_rows > 0 else b.run // NR
    for panel in range(panel_from, panel_to):
        first = panel_start(b, panel)
        filters = panel_start(b, panel + 1) - first
        for i in range(MR):
            shift = bias[g * b.OCG + first + i] if i < filters and bias.size > 0 else zero
            put(shifts, (panel - panel_from) * MR + i, shift)

    for k_block in range(b.k_blocks):  # loop 1: blocks of K
        k_from = k_block * b.kc
        kc = min(b.K - k_from, b.kc)
        weights = address(packed) + (g * b.K + k_from) * b.panels * MR * size  # all panels of a block of K
        accumulate = k_from > 0 or (geometry[GEO_ACCUMULATE] != 0 and b.pooled_rows == 0)
        last = k_block == b.k_blocks - 1
        finish = KEEP if not last else CLAMP if high < np.inf else RAISE if low > -np.inf else SHIFT
        x = image + (k_from * b.P + p_from) * size  # of a flat problem, this block's cells
        if b.flat > 0:
            if b.in_place > 0 and kc > 0:
                pack_flat(x + pixels // NR * NR * size, b_block, kc, pixels % NR, b.P, dtype)
        elif kc > 0 and pixels + lone > 0:
            oh_from, oh_to = p_from // b.OW, (p_from + pixels + lone - 1) // b.OW + 1
            copy_block(image, copied, depth, b, geometry, k_from, kc, oh_from, oh_to, dtype)
            if b.by_rows == 0:
                pack_block(copied, depth, b_block, b, geometry, kc, p_from, pixels + lone, dtype)
        ldb, b_step = NR, NR * kc
        if b.in_place > 0:
            ldb, b_step = b.P, NR
        if head > 0 and block == 0:
            for panel in range(panel_from, panel_to):
                first = panel_start(b, panel)
                edge_tile(
                    weights + panel * kc * MR * size, image + k_from * b.P * size,
                    b.P, kc, c + ((first - oc_from) * ldc - head) * size, ldc, accumulate, finish,
                    shifts + (panel - panel_from) * MR * size, low, high, panel_start(b, panel + 1) - first, head, dtype,
                )  # fmt: skip
        run_from = 0
        while True:  # loop 2: runs of B panels
            run_to = min(run_from + run, tiles)
            whole = max(min(run_to, cells // NR), run_from)
            copying = (  # by the first filters that meet a run
                NV > 1
                and b.flat > 0
                and b.in_place == 0
                and kc > 0
                and panel_to - panel_from > 1
                and panel_start(b, panel_from + 1) - oc_from == MR
            )
            source = b_block  # of the cells of a run
            if b.in_place > 0:
                source = x + run_from * NR * size
            elif b.flat > 0:
                q = whole - run_from if copying else 0
                pack_flat(
                    x + (run_from + q) * NR * size, b_block + q * b_step * size, kc,
                    min(pixels - run_from * NR, b.run) - q * NR, b.P, dtype,
                )  # fmt: skip
            else:
                source += run_from * b_step * size
            panel = panel_from
            while panel < panel_to:  # loop 3: filters
                first = panel_start(b, panel)
                filters = panel_start(b, panel + 1) - first
                shift = shifts + (panel - panel_from) * MR * size
                kept = first - oc_from if b.kept_panels > 1 or b.pooled_rows == 0 else 0
                a = weights + panel * kc * MR * size
                map = c + kept * ldc * size
                # Whole tiles of a panel, or of a run of one panel those of all whole panels, run in one call, the rest tile
                # by tile
                target = map + run_from * NR * size
                panels = 1
                if b.by_rows > 0:
                    listed_panel(
                        a, copied, address(depth), places, kc, map, ldc, targets, finish, shift, low, high, filters,
                        cells // VL, dtype,
                    )  # fmt: skip
                elif filters < MR and height(filters) == filters:
                    part_tiles(
                        a, source, ldb, b_step, kc, target, ldc, accumulate, finish, shift, low, high, filters, NV,
                        whole - run_from, dtype,
                    )  # fmt: skip
                elif filters == MR and copying and panel == panel_from:
                    whole_tiles(
                        a, x + run_from * NR * size, b.P, NR, kc, target, ldc, accumulate, finish, shift, low, high,
                        whole - run_from, 1, (2 * NR - 1) * size, b_block, dtype,
                    )  # fmt: skip
                elif filters == MR:
                    ahead = b.run * size if NV == 1 and b.in_place > 0 and panel == panel_from else 0
                    if run == 1 and whole > run_from and kc > 0 and b.pooled_rows == 0 and ahead == 0:
                        panels = max(min(panel_to, b.OCG // MR - int(b.lent > 0)) - panel, 1)
                    whole_tiles(
                        a, source, ldb, b_step, kc, target, ldc, accumulate, finish, shift, low, high, whole - run_from,
                        panels, ahead, 0, dtype,
                    )  # fmt: skip
                rest = run_to if b.by_rows > 0 else whole if filters == MR or height(filters) == filters else run_from
                for j in range(rest, run_to):  # loop 4: pixels
                    q = j * NR
                    y, row = source + (j - run_from) * b_step * size, ldb
                    # Nothing past the caller's array may be read
                    if b.in_place > 0 and q + NR > cells and cells % VL > 0:
                        y, row = b_block, NR
                    some_tile(
                        a, y, row, kc, map + q * size, ldc, accumulate, finish, shift, low, high, filters,
                        min(cells - q, NR), dtype,
                    )  # fmt: skip
                if last and b.pooled_rows > 0:
                    for i in range(filters):
                        map = c_block + (kept + i) * ldc * size
                        above = carry + (first - oc_from + i) * b.carried_rows * b.OW * size
                        q = (ng * b.OCG + first + i) * plane
                        copy(map, above, carried * b.OW * size)
                        max_pool_rows(
                            map, row_from, pooled_from, pooled_to, address(pooled) + q * size,
                            address(indices) + q * itemsize(np.int64) if indices.size > 0 else 0, ring, geometry, dtype,
                        )  # fmt: skip
                        copy(above, map + (carry_from - row_from) * b.OW * size, rows_to_carry * b.OW * size)
                panel += panels
            run_from = run_to
            if run_to == tiles:
                break
        if lone > 0:
            if b.flat > 0:
                gather(x + pixels * size, b.P, lone_cells, kc, lone, dtype)
            else:
                y = b_block + (pixels // NR * b_step + pixels % NR) * size
                gather(y, NR, lone_cells, kc, lone, dtype)
            for panel in range(panel_from, panel_to):
                first = panel_start(b, panel)
                lone_tile(
                    weights + panel * kc * MR * size, lone_cells, kc,
                    c + ((first - oc_from) * ldc + pixels) * size, ldc, accumulate, finish,
                    shifts + (panel - panel_from) * MR * size, low, high, panel_start(b, panel + 1) - first, lone, dtype,
                )  # fmt: skip


@helper
def conv2d_paired_block(
    ng,  # image and group
    block,
    panel_from,  # panels of filters
    panel_to,
    input,  # IN
    packed,  # IN
    bias,  # IN
    low,
    high,
    pooled,  # OUT
    scratch,  # elements
    b,
    geometry,  # IN
):
    # The vectors of a tile lie one below the other in the maps, so that it holds whole windows of 2x2 and stores maxima: the
    # maps never leave the registers. A row's last tile begins early enough to be whole, and overlaps the one before.
    outlined()
    dtype = input.dtype
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    half, g, OW = VL // 2, ng % geometry[GEO_G], geometry[GEO_POOL_OW]
    row_from = block * b.pooled_rows
    row_to = min(row_from + b.pooled_rows, geometry[GEO_POOL_OH])
    plane, columns = geometry[GEO_POOL_OH] * OW, min(half, OW)
    below, last_column = b.row_step * b.row_width, max(2 * OW - VL, 0)
    depth, place, shifts = local(KC, np.int64), local(2, np.int64), local(TILE_ELEMENTS, dtype)
    image = address(input) + ng * b.ICG * geometry[GEO_IH] * geometry[GEO_IW] * size
    copy_block(image, scratch, depth, b, geometry, 0, b.K, 2 * row_from, 2 * row_to, dtype)
    for panel in range(panel_from, panel_to):
        first = panel_start(b, panel)
        filters = panel_start(b, panel + 1) - first
        a = address(packed) + (g * b.panels + panel) * b.K * MR * size
        z = address(pooled) + (ng * b.OCG + first) * plane * size
        for i in range(MR * half):
            shifts[i] = bias[g * b.OCG + first + i // half] if i < filters * half and bias.size > 0 else zero
        for row in range(row_from, row_to):
            for j in range(ceil_div(2 * OW, VL)):
                place[0] = 2 * (row - row_from) * below + min(j * VL, last_column)
                place[1] = place[0] + below
                at = z + (row * OW + min(j * half, OW - columns)) * size
                for i in range(0, filters, LISTED_MR):
                    paired_tile(
                        a + i * size, scratch, address(depth), address(place), b.K, at + i * plane * size, plane,
                        address(shifts) + i * half * size, low, high, min(filters - i, LISTED_MR), columns, dtype,
                    )  # fmt: skip


@task
def conv2d_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    packed: const_real[::1],  # IN
    bias: const_real[::1],  # IN
    low: real,
    high: real,
    output: real[:, :, :, ::1],  # OUT
    pooled: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT
    workspace: real[::1],  # elements of each worker
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is a strip of blocks of one image, group and chunk of filters, which other threads at best do not meet.
    b = blocking_in(words)
    chunk, first = task // b.strips % b.chunks, task % b.strips * b.strip
    panel_from, panel_to = chunk * b.panels // b.chunks, (chunk + 1) * b.panels // b.chunks
    image = task // b.strips // b.chunks
    scratch = address(workspace) + worker * b.elements * itemsize(input.dtype)
    paired = b.paired > 0 and indices.size == 0 and is_finite(bias)
    for block in range(first, min(first + b.strip, b.blocks)):
        if paired:
            conv2d_paired_block(
                image, block, panel_from, panel_to, input, packed, bias, low, high, pooled, scratch, b, geometry
            )
        else:
            conv2d_block(
                image, block, block > first, panel_from, panel_to, input, packed, bias, low, high, output, pooled, indices,
                scratch, b, geometry,
            )  # fmt: skip


def conv2d(input, packed, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    plan = plan_of(geometry, n_threads)
    b = plan.blocking
    n_tasks = int(geometry[GEO_N] * geometry[GEO_G]) * b.strips * b.chunks
    conv2d_task.run(
        n_tasks, n_threads, input, packed, bias, act_min, act_max, output, pooled, indices, workspace, geometry,
        words_of(plan, input),
    )  # fmt: skip


# ------------------------------------------------------------------------------- kernels: gradient of the input


def conv2d_grad_input_workspace(geometry, n_workers):
    """Elements of workspace: the transposed weight, and for each worker a panel of grad_output and its columns."""
    t = plan_of(geometry).transposed
    return t.a_elements + n_workers * (t.b_elements + t.c_elements)


@task
def transpose_weight_task(
    task: index,
    weight: const_real[:, :, :, ::1],  # IN   (OC, ICG, KH, KW)
    workspace: real[::1],  # OUT  [G][channel block][tile][OCG][MR]
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is one block of channels.
    b, t = blocking_in(words), transposed_in(words)
    dtype = weight.dtype
    size, zero = itemsize(dtype), dtype.type(0)
    g, c_from = task // t.channel_blocks, task % t.channel_blocks * t.CB
    rows = min(t.CB, b.ICG - c_from) * b.T
    target = address(workspace) + task * t.tiles * b.OCG * MR * size
    for tile_index in range(t.tiles):
        for oc in range(b.OCG):
            source = address(weight) + ((g * b.OCG + oc) * b.K + c_from * b.T) * size
            for i in range(MR):
                row = tile_index * MR + i
                put(target, i, get(source, row, dtype) if row < rows else zero)
            target += MR * size


@task
def conv2d_grad_input_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    low: real,
    high: real,
    grad_input: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # IN   the transposed weight; b_elements + c_elements of each worker
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # A task is one block of channels of one image: columns = weight^T @ grad_output, panel by panel, summed where they
    # lie.
    b, t = blocking_in(words), transposed_in(words)
    dtype = grad_output.dtype
    VL, size, zero = lanes(dtype), itemsize(dtype), dtype.type(0)
    NR, G = NV * VL, geometry[GEO_G]
    IH, IW, KW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_KW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    block, g, n = task % t.channel_blocks, task // t.channel_blocks % G, task // t.channel_blocks // G
    c_from = block * t.CB
    channels = min(t.CB, b.ICG - c_from)
    source = address(grad_output) + (n * G + g) * b.OCG * b.P * size
    a = address(workspace) + (g * t.channel_blocks + block) * t.tiles * b.OCG * MR * size
    packed = address(workspace) + (t.a_elements + worker * (t.b_elements + t.c_elements)) * size
    columns = packed + t.b_elements * size
    image = address(grad_input) + (n * geometry[GEO_IC] + g * b.ICG + c_from) * IH * IW * size

    if geometry[GEO_ACCUMULATE] == 0:
        clear(image, channels * IH * IW * size)
    for panel in range(ceil_div(b.P, NR)):
        p_from = panel * NR
        oh_from, ow_from = p_from // b.OW, p_from % b.OW
        pixels = min(b.P - p_from, NR)
        for oc in range(b.OCG):
            copy(packed + oc * NR * size, source + (oc * b.P + p_from) * size, pixels * size)
            clear(packed + (oc * NR + pixels) * size, (NR - pixels) * size)
        for j in range(t.tiles):
            whole_tiles(
                a + j * b.OCG * MR * size, packed, NR, 0, b.OCG, columns + j * MR * NR * size, NR, False, KEEP, packed, low,
                high, 1, 1, 0, 0, dtype,
            )  # fmt: skip
        for c in range(channels):
            plane = image + c * IH * IW * size
            for tap in range(b.T):
                row = columns + (c * b.T + tap) * NR * size
                left = tap % KW * dil_w - pad_left
                ih, ow = oh_from * stride_h - pad_top + tap // KW * dil_h, ow_from
                for j in range(pixels):
                    iw = ow * stride_w + left
                    if 0 <= ih < IH and 0 <= iw < IW:
                        put(plane, ih * IW + iw, get(plane, ih * IW + iw, dtype) + get(row, j, dtype))
                    ow += 1
                    if ow == b.OW:
                        ow = 0
                        ih += stride_h
    for c in range(channels):
        shift = bias[g * b.ICG + c_from + c] if bias.size > 0 else zero
        plane = image + c * IH * IW * size
        for i in range(IH * IW):
            put(plane, i, clamp(get(plane, i, dtype) + shift, low, high))


def conv2d_grad_input(grad_output, weight, bias, act_min, act_max, grad_input, workspace, geometry, n_threads):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    plan = plan_of(geometry)
    words = words_of(plan, weight)
    n_weights = int(geometry[GEO_G]) * plan.transposed.channel_blocks
    n_tasks = int(geometry[GEO_N]) * n_weights
    transpose_weight_task.run(n_weights, n_threads, weight, workspace, geometry, words)
    conv2d_grad_input_task.run(
        n_tasks, n_threads, grad_output, bias, act_min, act_max, grad_input, workspace, geometry, words
    )


# ------------------------------------------------------------------------------ kernels: gradient of the weight


# grad_weight^T (K x OCG) = cols (K x P) @ grad_output^T (P x OCG), summed over images: vectors along filters, cells of
# the copied input broadcast from OUTER_MR places at once, so that no column is packed. Operands of a chunk of images are laid
# out (first driver); then each task owns a block of K rows and of filters and adds images and pixels in order. Flat 1x1
# problems read the input in place, as one row of P cells; images of few pixels are summed several at once.
def conv2d_grad_weight_workspace(geometry, n_workers):
    """Elements of workspace: the copied input and grad_output with filters last, of a chunk; blocks of results."""
    outers = plan_of(geometry).outer.values()  # chunks of the two are of different sizes
    return max(o.x_elements + o.y_elements + o.kept_elements + n_workers * o.c_elements for o in outers)


@straight
def lay_out_square(source, target, p, P, width, dtype):
    quad = 16 // itemsize(dtype)
    z = [load_lanes(source, p + j // quad * quad + j % quad * P, quad * P, dtype) for j in range(4)]
    for j, v in enumerate(transpose(*z)):
        store(target, (p + j) * width, v)


@helper
def lay_out(
    source,  # IN   VL planes of P pixels, or fewer
    target,  # OUT  [P][width]
    planes,
    P,
    width,
    dtype,
):
    """Pixels of VL filters: 4 at once, then one by one."""
    outlined()
    VL, zero = lanes(dtype), dtype.type(0)
    squares = P // 4 if planes == VL else 0
    for square in range(squares):
        lay_out_square(source, target, square * 4, P, width, dtype)
    for p in range(squares * 4, P):
        for j in range(VL):
            put(target, p * width + j, get(source, j * P + p, dtype) if j < planes else zero)


@task
def lay_out_task(
    task: index,
    chunk: index,
    input: const_real[:, :, :, ::1],  # IN
    grad_output: const_real[:, :, :, ::1],  # IN
    workspace: real[::1],  # OUT  [images][IC][rows][phases][phase_width]; [images][G][panel][P][NR or what is left]
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    # The first images * IC tasks copy a channel (of flat problems there are none), the others turn one panel of filters
    # of one image.
    dtype = input.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    NR = OUTER_NV * VL
    b, o = blocking_in(words), outer_in(words)
    first = chunk * o.images
    copies = 0 if b.flat else min(o.images, geometry[GEO_N] - first) * geometry[GEO_IC]
    copied = address(workspace)
    turned = copied + o.x_elements * size
    if task < copies:
        copy_rows(
            address(input) + (first * geometry[GEO_IC] + task) * geometry[GEO_IH] * geometry[GEO_IW] * size,
            copied + task * o.rows * o.row_width * size, b, geometry, -geometry[GEO_PAD_TOP], o.rows, dtype,
        )  # fmt: skip
        return
    image = (task - copies) // o.panels  # n * G + g
    panel = (task - copies) % o.panels
    width = min(o.filters - panel * NR, NR)
    for vector in range(width // VL):
        oc = panel * NR + vector * VL
        source = address(grad_output) + ((first * geometry[GEO_G] + image) * b.OCG + oc) * b.P * size
        target = turned + (image * b.P * o.filters + panel * NR * b.P + vector * VL) * size
        lay_out(source, target, min(b.OCG - oc, VL), b.P, width, dtype)


@straight
def add_outer_products(acc, cells, moved, y, dtype, count):
    nv = len(acc[0])
    for k in range(count):
        x = [load(y, (k * nv + j) * lanes(dtype), dtype) for j in range(nv)]
        for i, sums in enumerate(acc):
            cell = broadcast(get(cells[i], moved + k, dtype))
            acc[i] = [fma(cell, filters, total) for filters, total in zip(x, sums, strict=True)]
    return acc


@straight
def prefetch_ahead(ahead, moved, dtype):
    for k in range(AHEAD):
        prefetch(get(ahead, k, np.int64) + moved * itemsize(dtype))


@helper
def outer_tile(
    cells,  # IN   OUTER_MR places in the copied input: the first pixel's cell of OUTER_MR rows of K
    ahead,  # IN   AHEAD places that the next tile reads
    y,  # IN   [rows * columns][nv * VL] filters, y_step apart from row to row
    images,
    rows,
    columns,
    x_image,  # from one image to the next
    x_step,  # from one row of cells to the next
    y_image,
    y_step,
    c,  # IN/OUT  OUTER_MR rows of filters, ldc apart
    ldc,
    dtype,
    nv,  # a literal
):
    # Registers as of `tile`, and OUTER_MR places that one index moves from, a cell a step. OUTER_MR rows are too many for the
    # hardware to fetch ahead: each step fetches a line of one of the next tile's.
    outlined()
    VL, size = lanes(dtype), itemsize(dtype)
    acc, at = no_sums(dtype, OUTER_MR, nv), listed_places(cells, OUTER_MR)
    for image in range(images):
        for row in range(rows):
            moved = image * x_image + row * x_step
            yy = y + (image * y_image + row * y_step) * size
            left = columns
            while left >= AHEAD:
                rolled()
                prefetch_ahead(ahead, moved, dtype)
                acc = add_outer_products(acc, at, moved, yy, dtype, AHEAD)
                yy += AHEAD * nv * VL * size
                moved += AHEAD
                left -= AHEAD
            line = ahead
            while left > 0:
                rolled()
                prefetch(get(line, 0, np.int64) + moved * size)
                acc = add_outer_products(acc, at, moved, yy, dtype, 1)
                yy += nv * VL * size
                line += INDEX_BYTES
                moved += 1
                left -= 1
    acc = add_rows(acc, c, ldc, dtype)
    store_rows(acc, c, ldc, places_of(c, lanes(dtype), nv, False))


@task
def conv2d_grad_weight_task(
    task: index,
    worker: index,
    chunk: index,
    input: const_real[:, :, :, ::1],  # IN
    grad_weight: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # IN/OUT  what lay_out_task wrote; blocks of all tasks, or one of each worker
    geometry: const_int64[::1],  # IN
    words: const_int64[::1],  # IN
):
    dtype = grad_weight.dtype
    VL, size = lanes(dtype), itemsize(dtype)
    NR, G, IC = OUTER_NV * VL, geometry[GEO_G], geometry[GEO_IC]
    b, o = blocking_in(words), outer_in(words)
    KW, stride_w, dil_h, dil_w = geometry[GEO_KW], geometry[GEO_STRIDE_W], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    panel_from = task % o.panel_blocks * o.task_panels
    k_from = task // o.panel_blocks % o.tile_blocks * TASK_TILES * OUTER_MR
    g = task // o.panel_blocks // o.tile_blocks
    panel_to, rows_of_k = min(panel_from + o.task_panels, o.panels), min(TASK_TILES * OUTER_MR, b.K - k_from)
    ldc, tall, wide = o.task_panels * NR, max(CHAIN_PIXELS // max(o.OW, 1), 1), max(min(o.OW, CHAIN_PIXELS), 1)
    many, x_image, y_image = max(CHAIN_PIXELS // max(b.P, 1), 1), IC * o.rows * o.row_width, G * b.P * o.filters
    chunk_images = min(o.images, geometry[GEO_N] - chunk * o.images)
    copied = address(workspace)
    turned = copied + o.x_elements * size
    if b.flat:
        copied = address(input) + chunk * o.images * x_image * size
    block = turned + (o.y_elements + (task if o.kept_elements > 0 else worker) * o.c_elements) * size
    # places: of each row's first cell in an image
    cell_places, line_places, places = local(OUTER_MR, np.int64), local(AHEAD, np.int64), local(TASK_ROWS, np.int64)
    cells, ahead = address(cell_places), address(line_places)

    tiles = ceil_div(rows_of_k, OUTER_MR)
    if chunk == 0:
        clear(block, tiles * OUTER_MR * ldc * size)
    channel, kh, kw = k_from // b.T, k_from % b.T // KW, k_from % KW
    for i in range(min((tiles + 1) * OUTER_MR, TASK_ROWS)):  # those of the tiles, and what the last one fetches
        place = (channel * o.rows + kh * dil_h) * o.row_width
        places[i] = place + column_of_tap(kw * dil_w, stride_w, b)
        if i < rows_of_k - 1:  # past the end: the last row again
            kw += 1
            if kw == KW:
                kw = 0
                kh += 1
                if kh == geometry[GEO_KH]:
                    kh = 0
                    channel += 1
    x_step = b.row_step * o.row_width
    for block_of_images in range(ceil_div(chunk_images, many)):
        n = block_of_images * many
        images = min(many, chunk_images - n)
        x = copied + (n * IC + g * b.ICG) * o.rows * o.row_width * size
        for row_block in range(ceil_div(o.OH, tall)):  # blocks of rows
            oh = row_block * tall
            rows = min(tall, o.OH - oh)
            for column_block in range(ceil_div(o.OW, wide)):  # blocks of columns
                ow = column_block * wide
                columns = min(wide, o.OW - ow)
                for panel in range(panel_from, panel_to):  # panels of filters
                    width = min(o.filters - panel * NR, NR)
                    y = turned + (n * G + g) * b.P * o.filters * size
                    y += (panel * NR * b.P + (oh * o.OW + ow) * width) * size
                    y_step = o.OW * width
                    for tile_index in range(tiles):  # tiles of OUTER_MR rows of K
                        for i in range(OUTER_MR):
                            cell_places[i] = x + (places[tile_index * OUTER_MR + i] + oh * x_step + ow) * size
                        for i in range(AHEAD):
                            k = min((tile_index + 1) * OUTER_MR + i % OUTER_MR, TASK_ROWS - 1)
                            line_places[i] = x + (places[k] + oh * x_step + ow) * size
                        c = block + (tile_index * OUTER_MR * ldc + (panel - panel_from) * NR) * size
                        if width == NR:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, dtype, OUTER_NV
                            )  # fmt: skip
                        elif width == VL:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, dtype, 1
                            )  # fmt: skip
                        else:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, dtype, 2
                            )  # fmt: skip
    if chunk < o.chunks - 1 or b.T == 0:
        return
    if geometry[GEO_TURNED] != 0:
        for i in range(rows_of_k):
            k = g * b.K + k_from + i
            c = address(grad_weight) + ((k // b.T * b.OCG + panel_from * NR) * b.T + b.T - 1 - k % b.T) * size
            for n in range(min(panel_to * NR, b.OCG) - panel_from * NR):
                old = get(c, n * b.T, dtype) if geometry[GEO_ACCUMULATE] != 0 else dtype.type(0)
                put(c, n * b.T, get(block, i * ldc + n, dtype) + old)
        return
    store_filters(
        block, address(grad_weight) + ((g * b.OCG + panel_from * NR) * b.K + k_from) * size, rows_of_k,
        min(panel_to * NR, b.OCG) - panel_from * NR, ldc, b.K, geometry[GEO_ACCUMULATE] != 0, dtype,
    )  # fmt: skip


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), turned (IC, OCG, KH, KW), added to what is there if accumulate."""
    plan = plan_of(geometry)
    o, words = plan.outer[VL_FLOAT if input.itemsize == 4 else VL_DOUBLE], words_of(plan, input)
    N, G = int(geometry[GEO_N]), int(geometry[GEO_G])
    copies = 0 if o.x_elements == 0 else int(geometry[GEO_IC])
    n_tasks = G * o.tile_blocks * o.panel_blocks
    for chunk in range(max(o.chunks, 1)):  # none of an empty batch: its sums are 0
        n_copies = min(o.images, N - chunk * o.images) * (copies + G * o.panels)
        lay_out_task.run(n_copies, n_threads, chunk, input, grad_output, workspace, geometry, words)
        conv2d_grad_weight_task.run(n_tasks, n_threads, chunk, input, grad_weight, workspace, geometry, words)
