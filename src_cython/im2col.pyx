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
"""

from libc.math cimport INFINITY
from libc.string cimport memcpy, memset

from common cimport (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH,
    GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT,
    GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_STRIDE_H, GEO_STRIDE_W, GEO_TURNED, Copy, Operands,
    VL_FLOAT, add_outer, ceil_div, cells_of, clamp, each_task, fill, int64_t, lines, opaque, operands, prefetch, real, start,
    start_of_row, team_join, vec, vd, vf, vfma, vfma_at, vmax, vmin,
)
from common cimport BLOCK_PIXELS, CACHE_LINE, DEPTHS, HEADED, IN_PLACE_FILTERS, LONE_SPAN, RUN_CELLS
from common cimport LISTED_DEPTHS, LISTED_MR, LISTED_NV, TRIPLE_RUN_CELLS, loads_are_scarce
from common cimport MR as _MR, NV as _NV, OUTER_MR as _OUTER_MR, OUTER_NV as _OUTER_NV, VL_DOUBLE as _VL_DOUBLE
from fused_pool cimport max_pool_rows, pool_ring_size
from lanes cimport load_lanes, store_filters, store_lanes, transpose
from max_pool cimport fold_max, pool_even, pool_odd, untangle

team_join()

# A B block of KC x NB stays in the second-level cache beside the rows it is packed from, an A panel in the first.
cdef enum:
    _KC = 256
    MOST_POOLED = 4096         # of a block of rows that a pool reads, which a panel of filters must hold in cache
    MOST_PIXELS = 1536         # of a block
    FEW_WEIGHTS = 16384        # that one thread packs before a second one is there
    THREAD_TASKS = 4           # strips of a fused pool for each thread, tasks of a flat problem
    CHUNK_FILTERS = 64         # the smallest chunk of filters: a pixel's columns are packed again for each
    IDLE = 8                   # filters are split into chunks where threads would wait 1/IDLE of the time or more,
    EVEN = 32                  # flat planes into more blocks where they would 1/EVEN, or else into chunks where nothing is packed
    SHARED_PIXELS = 96         # of a block at least, where threads share an image
    IN_PLACE_CELLS = 32 * BLOCK_PIXELS      # of a block that is read in place, or of its copied rows: a first-level cache
    SPARE = 16                 # tiles of whole rows may waste 1/SPARE of their lanes
    MOST_PLACES = 2048         # >= vectors of such a block
    LONE = 4                   # pixels past the last whole vector are computed apart if they fill 1/LONE of a vector at most
    LONE_SUMS = 8              # of such vectors at a time, at least: one addition waits for another
    FEW_VECTORS = 4            # at least, of a tile of four filters or fewer: as many chains of additions
    MOST_LONE = 4              # >= VL / LONE
    IN_PLACE_DEPTH = 159       # of more channels, a panel's cells push each other out of a first-level cache where they lie
    SHORT_DEPTH = 64           # of more channels, where tiles are wide, cells are packed for
    MANY_FILTERS = 192         # more filters than these
    ALIASED = 1024             # a plane apart; pixels: cells of planes so far apart share its sets; of so many
    ALIASED_DEPTH = 32         # channels they push each other out, and
    ALIASED_FILTERS = 16       # read them often enough to pay for packing
    MOST_VECTORS = 64          # >= NV * VL + 1: copies that one row of a B panel may take

# What a tile does with its sums: store them, as K goes on; add the bias; raise to the lower bound as well; clamp.
cdef enum Finish:
    KEEP, SHIFT, RAISE, CLAMP

KC = _KC
cdef bint TRIPLE = loads_are_scarce()      # tiles of LISTED_MR x LISTED_NV before those of MR x NV


cdef struct Blocking:
    Py_ssize_t ICG, OCG, T, K, OH, OW, P        # T taps of one channel; a flat 1x1 problem has one row of P pixels
    bint flat, in_place                         # in place: tiles read the image, packed is only what ends inside a vector
    Py_ssize_t run                              # pixels that all filters meet before the next ones, in whole panels
    Py_ssize_t NB, blocks, strip, strips        # most pixels of a block, blocks of an image and of a task, tasks of an image
    Py_ssize_t unit, units                      # pixels that a block has a whole number of times, and that of all blocks
    Py_ssize_t pooled_rows, carried_rows        # of a fused pool per block; of the maps, that two blocks' windows share
    bint by_rows                                # vectors of a tile lie in one row each: read from the copied rows
    bint paired                                 # tiles pool by themselves: where indices are not wanted
    Py_ssize_t kc, k_blocks, panels, chunks, chunk_panels, kept_panels
    Py_ssize_t lent                             # filters that the last panel takes from the one before
    Py_ssize_t phases, phase_width, row_width, rows, channels     # of the copied input
    Py_ssize_t row_skip                         # rows of the input from one copied row to the next
    Py_ssize_t row_step                         # copied rows from one row of the map to the next
    Py_ssize_t copy_elements, b_elements, lone_elements, c_elements, ring_elements, shift_elements  # scratch of a worker,
    Py_ssize_t elements                                                                             # in all


cdef Blocking blocking(const int64_t* geometry, Py_ssize_t n_threads) noexcept nogil:
    """Every size that a plan of loops needs. Threads only decide where blocks and chunks of filters
    begin, which no sum reaches across.
    """
    cdef:
        Blocking b
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], G = max(geometry[GEO_G], 1), NR = _NV * VL_FLOAT
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W], images = geometry[GEO_N] * G, rows, tasks, panel_pixels
        Py_ssize_t wide = NR * LISTED_NV if TRIPLE else NR      # pixels of whole tiles
        Py_ssize_t lone = 0                                     # past the last vector, which the last block takes
        bint few_filters, by_panel
    b.ICG = geometry[GEO_IC] // G
    b.OCG = geometry[GEO_OC] // G
    b.T = KH * KW
    b.K = b.ICG * b.T
    b.OH = geometry[GEO_OH]
    b.OW = geometry[GEO_OW]
    b.P = b.OH * b.OW
    # A 1x1 kernel that meets every pixel once: the plane is one long row, read in place
    b.flat = (
        b.T == 1 and stride_h == 1 and stride_w == 1 and geometry[GEO_PAD_TOP] == 0 and geometry[GEO_PAD_LEFT] == 0
        and b.OH == geometry[GEO_IH] and b.OW == geometry[GEO_IW]
    )
    b.panels = ceil_div(b.OCG, _MR)
    b.lent = 2 if _NV > 1 and b.OCG % _MR == 2 and b.panels > 1 else 0

    # K in equal blocks, of whole channels where a channel fits
    b.k_blocks = max(ceil_div(b.K, _KC), 1)
    b.kc = ceil_div(b.K, b.k_blocks)
    if b.T <= _KC and ceil_div(b.kc, b.T) * b.T <= _KC:
        b.kc = ceil_div(b.kc, b.T) * b.T
    b.kc = max(b.kc, 1)
    b.k_blocks = max(ceil_div(b.K, b.kc), 1)
    few_filters = b.OCG <= (MANY_FILTERS if TRIPLE and b.kc > SHORT_DEPTH else IN_PLACE_FILTERS) and geometry[GEO_POOL_KH] == 0
    # A panel of one vector is so narrow that its cells may be read in place, fetched ahead by the first filters to meet them
    by_panel = _NV > 1 and b.flat and few_filters and (
        (b.kc > IN_PLACE_DEPTH and b.OCG >= CHUNK_FILTERS)
        or (b.P % ALIASED == 0 and b.kc >= ALIASED_DEPTH and b.OCG >= ALIASED_FILTERS)
    )
    b.in_place = b.flat and few_filters and not by_panel

    # Copied rows: split by column modulo stride, so that each tap reads neighbouring cells; those that no tap of a kernel of
    # one row or column meets are left out
    b.row_skip = stride_h if KH == 1 else 1
    b.row_step = stride_h // b.row_skip
    b.phases = stride_w if KW > 1 else 1
    b.phase_width = lines(b.OW + ((KW - 1) * dil_w) // stride_w + 1)
    b.row_width = b.phases * b.phase_width
    # Pixels in equal blocks of whole panels, or of whole rows, which a fused pool wants too
    b.by_rows = (
        not b.flat and b.k_blocks == 1 and b.K > 0 and not geometry[GEO_ACCUMULATE] and VL_FLOAT <= b.OW <= MOST_PIXELS
        and (ceil_div(b.OW, VL_FLOAT) * VL_FLOAT - b.OW) * SPARE <= b.OW
    )
    b.pooled_rows = 0
    b.carried_rows = 0
    b.paired = False
    b.strip = 1
    if geometry[GEO_POOL_KH] > 0:
        b.carried_rows = max(geometry[GEO_POOL_KH] - geometry[GEO_POOL_STRIDE_H], 0)
        b.NB = max(3 * BLOCK_PIXELS, min(_KC * BLOCK_PIXELS // b.kc, MOST_POOLED))
        b.pooled_rows = max((b.NB // max(b.OW, 1) - b.carried_rows) // geometry[GEO_POOL_STRIDE_H], 1)
        b.blocks = ceil_div(geometry[GEO_POOL_OH], b.pooled_rows)
        b.NB = min(((b.pooled_rows - 1) * geometry[GEO_POOL_STRIDE_H] + geometry[GEO_POOL_KH]) * b.OW, b.P)
        b.NB = ceil_div(b.NB, NR) * NR
        b.paired = is_paired(&b, geometry)
        if b.carried_rows:
            b.strip = max(min(ceil_div(images * b.blocks, THREAD_TASKS * n_threads), b.blocks), 1)
    else:
        b.NB = BLOCK_PIXELS
        if b.in_place and _NV > 1:  # all filters meet it: it stays in the first-level cache
            b.NB = min(max(IN_PLACE_CELLS // b.kc // NR, 1) * NR, BLOCK_PIXELS)
        elif b.flat and n_threads > 1:  # runs of pixels share nothing: as many blocks as threads want
            b.NB = min(ceil_div(ceil_div(b.P * images, THREAD_TASKS * n_threads), wide) * wide, BLOCK_PIXELS)
        elif not b.flat:  # more pixels where columns are short, as rows that neighbours share are copied twice
            b.NB = max(b.NB, min(_KC * BLOCK_PIXELS // b.kc, MOST_PIXELS))
            if 2 * SHARED_PIXELS <= b.P and n_threads > 1:  # what threads copy of an image for themselves, they copy once
                b.NB = min(b.NB, max(ceil_div(ceil_div(b.P * images, n_threads), wide) * wide, SHARED_PIXELS))
        if b.by_rows:  # of vectors for whole tiles
            rows = (IN_PLACE_CELLS // (b.ICG * b.row_width) - (KH - 1) * dil_h - 1) // b.row_step + 1
            b.NB = max(min(max(rows // LISTED_NV * LISTED_NV, LISTED_NV), MOST_PIXELS // b.OW, b.OH), 1) * b.OW
        else:
            lone = b.P % VL_FLOAT if b.P % VL_FLOAT * LONE <= VL_FLOAT < b.P else 0
            b.NB = ceil_div(ceil_div(b.P - lone, max(ceil_div(b.P - lone, max(b.NB, 1)), 1)), wide) * wide
        b.blocks = ceil_div(b.P - lone, max(b.NB, 1))
    b.by_rows = b.by_rows and ceil_div(b.NB, b.OW) * ceil_div(b.OW, VL_FLOAT // 2) <= MOST_PLACES
    b.strips = ceil_div(b.blocks, b.strip)
    b.chunks = 1
    b.unit, b.units = b.NB, b.blocks
    tasks = images * b.strips
    if not b.in_place:
        if b.flat and n_threads > 1 and tasks > 0:  # enough for a thread that wakes late; each packs cells for itself
            b.chunks = max(min(ceil_div(THREAD_TASKS * n_threads, tasks), b.OCG // (2 * CHUNK_FILTERS)), 1)
        while b.chunks < b.OCG // CHUNK_FILTERS and is_idle(tasks * b.chunks, n_threads, IDLE):
            b.chunks += 1
    elif n_threads > 1 and tasks > 0:  # nothing is packed: as many as balance tasks of any size
        b.chunks = max(min(ceil_div(THREAD_TASKS * n_threads, tasks), b.OCG // CHUNK_FILTERS), 1)
    if b.flat and not b.pooled_rows:
        b.unit, b.units = wide, ceil_div(b.P - lone, wide)
        while b.blocks < b.units and is_idle(images * b.blocks * b.chunks, n_threads, EVEN):
            b.blocks += 1
        while b.in_place and b.chunks < b.OCG // CHUNK_FILTERS and is_idle(images * b.blocks * b.chunks, n_threads, EVEN):
            b.chunks += 1
        b.NB, b.strips = ceil_div(b.units, max(b.blocks, 1)) * wide, b.blocks
    b.chunk_panels = ceil_div(b.panels, b.chunks)
    # The cells of a run stay in the first-level cache. Of a pool and of rows it is a block: RUN_CELLS says for which else
    b.run = b.NB
    if by_panel:
        b.run = NR
    elif not b.pooled_rows and not b.by_rows:
        b.run = max(min((TRIPLE_RUN_CELLS if TRIPLE else RUN_CELLS) // (b.kc + _MR), b.NB) // NR, 1) * NR

    b.rows = 0
    b.channels = 0
    b.copy_elements = 0
    if not b.flat:
        b.rows = (min(b.OH, ceil_div(b.NB + lone, max(b.OW, 1)) + 1) - 1) * b.row_step + (KH - 1) * dil_h + 1
        b.channels = min(ceil_div(b.kc - 1, b.T) + 1, max(b.ICG, 1))
        b.copy_elements = lines(b.channels * b.rows * b.row_width + VL_FLOAT)
    panel_pixels = NR if b.in_place else 0 if b.by_rows else b.run if b.flat else b.NB + ceil_div(lone, NR) * NR
    b.b_elements = lines(b.kc * panel_pixels + VL_FLOAT)
    b.lone_elements = lines(VL_FLOAT // LONE * b.kc)
    # Finished rows of one panel; sums of all panels where K comes in several blocks
    b.kept_panels = 1 if b.k_blocks == 1 else b.chunk_panels
    b.c_elements = lines(b.kept_panels * _MR * b.NB if b.pooled_rows else 0)
    b.ring_elements = lines(pool_ring_size(geometry))
    b.shift_elements = lines(b.chunk_panels * _MR + LONE_SPAN)
    b.elements = lines(
        b.copy_elements + b.b_elements + b.lone_elements + b.c_elements + b.ring_elements + b.shift_elements
        + b.chunk_panels * _MR * b.carried_rows * b.OW
    )
    return b


cdef inline bint is_idle(Py_ssize_t tasks, Py_ssize_t n_threads, Py_ssize_t part) noexcept nogil:
    """Whether threads that share tasks of one size wait for the last for 1/part of the time or more."""
    cdef Py_ssize_t turns = ceil_div(tasks, n_threads) * n_threads
    return (turns - tasks) * part >= turns and turns > tasks


cdef inline bint is_paired(const Blocking* b, const int64_t* geometry) noexcept nogil:
    """Whether tiles can pool: windows are 2x2 and tile the maps, K is one block, at most a fifth of the lanes is wasted."""
    cdef Py_ssize_t OH = geometry[GEO_POOL_OH], OW = geometry[GEO_POOL_OW]
    return (
        geometry[GEO_POOL_KH] == geometry[GEO_POOL_KW] == geometry[GEO_POOL_STRIDE_H] == geometry[GEO_POOL_STRIDE_W] == 2
        and geometry[GEO_POOL_PAD_TOP] == geometry[GEO_POOL_PAD_LEFT] == 0 and 2 * OH <= b.OH and 2 * OW <= b.OW
        and b.k_blocks == 1 and b.K > 0 and not b.flat and 2 * ceil_div(2 * OW, VL_FLOAT) * VL_FLOAT <= 5 * OW
    )


cdef inline bint is_finite(const real* bias, Py_ssize_t OC) noexcept nogil:
    """Whether adding the bias keeps the order of all sums: infinity and -infinity make NaN."""
    cdef Py_ssize_t i
    for i in range(OC if bias != NULL else 0):
        if not -INFINITY < bias[i] < INFINITY:
            return False
    return True


cdef inline Py_ssize_t panel_start(const Blocking* b, Py_ssize_t panel) noexcept nogil:
    """The first filter of a panel. Of few vectors a last one of two has too few FMA chains: the one before lends it two."""
    return min(panel * _MR, b.OCG) - (b.lent if panel == b.panels - 1 else 0)


# ----------------------------------------------------------------------------------------------------- the tile


cdef inline void tile_step(
    const real* a,            # IN   filters of one depth
    const real* b,            # IN   vector j at at[j]
    const Py_ssize_t* at,
    vec* acc,                 # INOUT [rows][nv]
    real* packs,              # OUT   (nv * VL) the vectors, unless it is NULL
    const int rows,
    const int nv,
) noexcept nogil:
    # Of a factor that meets one vector the product takes it from memory, which costs no instruction of its own.
    cdef:
        vec[FEW_VECTORS] x
        vec filter
        Py_ssize_t i, j, VL = sizeof(vec) // sizeof(real)
    for j in range(nv):
        x[j] = (<const vec*> (b + at[j]))[0]
        if packs != NULL:
            (<vec*> (packs + j * VL))[0] = x[j]
    for i in range(rows):
        if nv == 1:
            acc[i] = vfma_at(acc[i], a + i, x[0])
        else:
            fill(&filter, a[i])
            for j in range(nv):
                acc[i * nv + j] = vfma(acc[i * nv + j], filter, x[j])


cdef inline void tile_sums(
    const real* a,            # IN   [kc][MR] filters
    const real* b,            # IN   vector j of depth k at k * ldb + j * apart, or where
    Py_ssize_t ldb,
    Py_ssize_t apart,
    const Py_ssize_t* depth,  # IN   these say: depth[k]
    const Py_ssize_t* place,  # IN              + place[j]
    Py_ssize_t kc,            # at least 1
    vec* acc,                 # OUT  [rows][nv]
    const int rows,           # filters and
    const int nv,             # vectors of pixels in use
    const bint listed,        # places are listed
    Py_ssize_t ahead,         # pixels: so far to the right cells are fetched
    real* packs,              # OUT  [kc][nv * VL] the cells, where a panel has several vectors
    const bint first,         # both of this is done
) noexcept nogil:
    # rows * nv independent FMA chains hide the latency of each. Every accumulator, the vectors of pixels and one broadcast
    # filter stay in registers: rows, nv and flags must be constants at each call, and the loop must run once at least, or
    # all accumulators take a way through memory.
    cdef:
        Py_ssize_t[FEW_VECTORS] at
        const real* next_panel = a + kc * _MR  # of filters
        Py_ssize_t i, j, k, line = CACHE_LINE // sizeof(real), VL = sizeof(vec) // sizeof(real)
        Py_ssize_t depths = LISTED_DEPTHS if listed or nv == LISTED_NV > _NV else DEPTHS
    for j in range(nv):
        at[j] = place[j] if listed else j * apart
    for i in range(rows):
        for j in range(nv):
            fill(&acc[i * nv + j], <real> 0)
    while True:
        for k in range(ceil_div(depths * _MR, line)):
            prefetch(next_panel + k * line)
        for k in range(depths):
            tile_step(
                a + k * _MR, b + depth[k] if listed else b, at, acc, packs + k * nv * VL if first and _NV > 1 else NULL, rows, nv
            )
            for j in range(0 if not first else nv if _NV == 1 else 1):
                prefetch(b + at[j] + ahead)
            if not listed:
                b += ldb
            if kc == k + 1:
                return
        a += depths * _MR
        next_panel += depths * _MR
        kc -= depths
        if listed:
            depth += depths
        if first and _NV > 1:
            packs += depths * nv * VL


cdef inline void tile_body(
    const real* a,
    const real* b,
    Py_ssize_t ldb,
    const Py_ssize_t* depth,
    const Py_ssize_t* place,
    Py_ssize_t kc,
    real* c,                  # IN/OUT rows of pixels, ldc apart; vector j at j * VL, or where
    Py_ssize_t ldc,
    const Py_ssize_t* to,     # IN   this says: to[j]
    const bint accumulate,    # add to c
    const Finish finish,
    const real* bias,         # IN   (MR,)
    const real* bounds,       # IN   (2,) of the clamp
    const int rows,
    const int nv,
    const bint listed,
    Py_ssize_t tiles,         # one beside the other, whose pixels lie so far apart in b,
    Py_ssize_t b_step,
    Py_ssize_t panels,        # or one below the other, of so many panels of filters
    Py_ssize_t ahead,
    real* packs,
    const bint first,
    vec* unused,              # names the vector type
) noexcept nogil:
    # accumulate and finish must be constants, too. The clamp's bounds come by memory, as two registers that live through
    # the loop would be two too many. Of a panel of one vector, a tile of several reads several panels.
    cdef:
        vec[LISTED_MR * LISTED_NV] acc      # no tile has more
        vec low_v, high_v, shift
        Py_ssize_t _tile, i, j, VL = sizeof(vec) // sizeof(real), apart = b_step if _NV == 1 else VL
        Py_ssize_t a_step = 0, bias_step = 0, c_step = nv * VL
    if panels > 1:
        a_step, bias_step, b_step, c_step = kc * _MR, _MR, 0, _MR * ldc
    for _tile in range(tiles * panels):
        if not listed:
            c = <real*> opaque(c)
        tile_sums(a, b, ldb, apart, depth, place, kc, &acc[0], rows, nv, listed, ahead, packs, first)
        if accumulate:
            for i in range(rows):
                for j in range(nv):
                    acc[i * nv + j] = acc[i * nv + j] + (<const vec*> (c + i * ldc + j * VL))[0]
        if finish != KEEP:
            if finish != SHIFT:
                fill(&low_v, bounds[0])
            if finish == CLAMP:
                fill(&high_v, bounds[1])
            for i in range(rows):
                fill(&shift, bias[i])
                for j in range(nv):
                    acc[i * nv + j] = acc[i * nv + j] + shift
                    if finish != SHIFT:
                        acc[i * nv + j] = vmax(low_v, acc[i * nv + j])
                    if finish == CLAMP:
                        acc[i * nv + j] = vmin(high_v, acc[i * nv + j])
        for i in range(rows):
            for j in range(nv):
                (<vec*> (c + i * ldc + (to[j] if listed else j * VL)))[0] = acc[i * nv + j]
        if listed:
            place += nv
            to += nv
        else:
            a += a_step
            b += b_step * (nv // _NV)
            c += c_step
            bias += bias_step
            if first and _NV > 1:
                packs += kc * nv * VL


cdef inline void plain_body(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t kc, real* c, Py_ssize_t ldc, const bint accumulate,
    Finish finish, const real* bias, const real* bounds, const int rows, const int nv, Py_ssize_t tiles,
    Py_ssize_t b_step, Py_ssize_t panels, Py_ssize_t ahead, real* packs, const bint first, vec* unused,
) noexcept nogil:
    """`tile_body` whose places are not listed, with a constant for what it does with its sums."""
    if finish == KEEP:
        tile_body(
            a, b, ldb, NULL, NULL, kc, c, ldc, NULL, accumulate, KEEP, bias, bounds, rows, nv, False, tiles, b_step, panels,
            ahead, packs, first, unused,
        )
    elif finish == CLAMP:
        tile_body(
            a, b, ldb, NULL, NULL, kc, c, ldc, NULL, accumulate, CLAMP, bias, bounds, rows, nv, False, tiles, b_step, panels,
            ahead, packs, first, unused,
        )
    elif finish == RAISE:
        tile_body(
            a, b, ldb, NULL, NULL, kc, c, ldc, NULL, accumulate, RAISE, bias, bounds, rows, nv, False, tiles, b_step, panels,
            ahead, packs, first, unused,
        )
    else:
        tile_body(
            a, b, ldb, NULL, NULL, kc, c, ldc, NULL, accumulate, SHIFT, bias, bounds, rows, nv, False, tiles, b_step, panels,
            ahead, packs, first, unused,
        )


cdef inline void tile(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate, Finish finish,
    const real* bias, const real* bounds, const int rows, const int nv, Py_ssize_t tiles, Py_ssize_t b_step,
    Py_ssize_t panels, Py_ssize_t ahead, real* packs, const bint first, vec* unused,
) noexcept nogil:
    """`plain_body` with a constant for its flag."""
    cdef Py_ssize_t i, j
    if kc == 0:  # no input channels: the bias is all there is
        for i in range(rows):
            for j in range(tiles * nv * <Py_ssize_t> (sizeof(vec) // sizeof(real))):
                if not accumulate:
                    c[i * ldc + j] = 0
                if finish != KEEP:
                    c[i * ldc + j] = clamp(c[i * ldc + j] + bias[i], bounds[0], bounds[1])
    elif accumulate:
        plain_body(
            a, b, ldb, kc, c, ldc, True, finish, bias, bounds, rows, nv, tiles, b_step, panels, ahead, packs, first, unused
        )
    else:
        plain_body(
            a, b, ldb, kc, c, ldc, False, finish, bias, bounds, rows, nv, tiles, b_step, panels, ahead, packs, first, unused
        )


cdef Py_ssize_t triple_tiles(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t b_step, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate,
    Finish finish, const real* bias, const real* bounds, Py_ssize_t rows, Py_ssize_t tiles, Py_ssize_t ahead, vec* unused,
) noexcept nogil:
    """Of ``tiles`` of one vector those that fill tiles of LISTED_NV, LISTED_MR of their rows at a time; their number."""
    cdef Py_ssize_t i = 0, triples = tiles // LISTED_NV if _NV == 1 else 0
    if triples and ahead:
        tile(
            a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, LISTED_MR, LISTED_NV, triples, b_step, 1, ahead, NULL,
            True, unused,
        )
        i = LISTED_MR
    while triples and i < rows:
        tile(
            a + i, b, ldb, kc, c + i * ldc, ldc, accumulate, finish, bias + i, bounds, LISTED_MR, LISTED_NV, triples, b_step, 1,
            0, NULL, False, unused,
        )
        i += LISTED_MR
    return triples * LISTED_NV


cdef void whole_tiles(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t b_step, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate,
    Finish finish, const real* bias, const real* bounds, Py_ssize_t tiles, Py_ssize_t panels, Py_ssize_t ahead, real* packs,
    vec* unused,
) noexcept nogil:
    """ahead: the first filters to meet a run that is read in place fetch the next one, as no hardware does along channels; and,
    but for panels of one vector, copy its cells for the others.
    """
    cdef Py_ssize_t done
    if _NV == 1 and TRIPLE:
        done = triple_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, bounds, _MR, tiles, ahead, unused)
        b += done * b_step
        c += done * <Py_ssize_t> (sizeof(vec) // sizeof(real))
        tiles -= done
    if ahead:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, _MR, _NV, tiles, b_step, 1, ahead, packs, True, unused)
    else:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, _MR, _NV, tiles, b_step, panels, 0, NULL, False, unused)


cdef inline Py_ssize_t height(Py_ssize_t filters) noexcept nogil:
    """Rows of the smallest tile that holds so many filters."""
    if filters <= 4:
        return filters if _NV == 1 else 2 if filters <= 2 else 4
    if _MR > 8 and filters <= 8:
        return 8
    return 12 if _MR > 12 and filters <= 12 else _MR


cdef inline void low_tiles(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t b_step, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate,
    Finish finish, const real* bias, const real* bounds, Py_ssize_t rows, const int nv, Py_ssize_t tiles, vec* unused,
) noexcept nogil:
    """Tiles of at most four rows, a `height`."""
    if rows == 1 and _NV == 1:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, 1, nv, tiles, b_step, 1, 0, NULL, False, unused)
    elif rows == 2:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, 2, nv, tiles, b_step, 1, 0, NULL, False, unused)
    elif rows == 3 and _NV == 1:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, 3, nv, tiles, b_step, 1, 0, NULL, False, unused)
    else:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, 4, nv, tiles, b_step, 1, 0, NULL, False, unused)


cdef void part_tiles(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t b_step, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate,
    Finish finish, const real* bias, const real* bounds, Py_ssize_t rows, Py_ssize_t nv, Py_ssize_t tiles, vec* unused,
) noexcept nogil:
    """A tile of MR rows of nv vectors, or tiles of fewer rows, a `height`, of NV vectors; what lies outside costs nothing."""
    cdef Py_ssize_t few = tiles * _NV // FEW_VECTORS, done = few * (FEW_VECTORS // _NV), VL = sizeof(vec) // sizeof(real)
    if finish != KEEP:
        finish = CLAMP
    if _NV == 1 and rows <= 4 and few:
        low_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, bounds, rows, FEW_VECTORS, few, unused)
        b += done * b_step
        c += done * _NV * VL
        tiles -= done
    if rows <= 4:
        low_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, bounds, rows, _NV, tiles, unused)
    elif rows == 8 and _MR > 8:
        if TRIPLE:
            done = triple_tiles(a, b, ldb, b_step, kc, c, ldc, accumulate, finish, bias, bounds, 8, tiles, 0, unused)
            b += done * b_step
            c += done * VL
            tiles -= done
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, min(8, _MR), _NV, tiles, b_step, 1, 0, NULL, False, unused)
    elif rows == 12 and _MR > 12:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, min(12, _MR), _NV, tiles, b_step, 1, 0, NULL, False, unused)
    elif nv == 1 and _NV > 1:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, _MR, 1, 1, 0, 1, 0, NULL, False, unused)
    else:
        tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, _MR, _NV, 1, 0, 1, 0, NULL, False, unused)


cdef void edge_tile(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate, Finish finish,
    const real* bias, const real* bounds, Py_ssize_t filters, Py_ssize_t pixels, vec* unused,
) noexcept nogil:
    """A tile of which only ``filters`` x ``pixels`` exist: computed whole beside c, copied in part."""
    cdef:
        real[_MR * _NV * VL_FLOAT] whole
        Py_ssize_t i, VL = sizeof(vec) // sizeof(real), NR = _NV * VL, nv = ceil_div(pixels, VL)
        Py_ssize_t rows = height(filters) if nv == _NV else _MR
    if accumulate:
        for i in range(filters):
            memcpy(&whole[i * NR], c + i * ldc, pixels * sizeof(real))
    part_tiles(a, b, ldb, 0, kc, &whole[0], NR, accumulate, finish, bias, bounds, rows, nv, 1, unused)
    for i in range(filters):
        memcpy(c + i * ldc, &whole[i * NR], pixels * sizeof(real))


cdef inline void some_tile(
    const real* a, const real* b, Py_ssize_t ldb, Py_ssize_t kc, real* c, Py_ssize_t ldc, bint accumulate, Finish finish,
    const real* bias, const real* bounds, Py_ssize_t filters, Py_ssize_t pixels, vec* unused,
) noexcept nogil:
    """A tile of ``filters`` x ``pixels``, one of them no extent of whole tiles."""
    cdef Py_ssize_t VL = sizeof(vec) // sizeof(real)
    if _NV > 1 and filters == _MR and pixels % VL == 0:
        part_tiles(a, b, ldb, 0, kc, c, ldc, accumulate, finish, bias, bounds, _MR, pixels // VL, 1, unused)
    else:
        edge_tile(a, b, ldb, kc, c, ldc, accumulate, finish, bias, bounds, filters, pixels, unused)


cdef inline void listed_body(
    const real* a, const real* b, const Py_ssize_t* depth, const Py_ssize_t* place, Py_ssize_t kc, real* c, Py_ssize_t ldc,
    const Py_ssize_t* to, const Finish finish, const real* bias, const real* bounds, const int rows, const int nv,
    Py_ssize_t tiles, vec* unused,
) noexcept nogil:
    """`tile_body` whose places are listed."""
    tile_body(
        a, b, 0, depth, place, kc, c, ldc, to, False, finish, bias, bounds, rows, nv, True, tiles, 0, 1, 0, NULL, False, unused
    )


cdef void listed_tiles(
    const real* a, const real* b, const Py_ssize_t* depth, const Py_ssize_t* place, Py_ssize_t kc, real* c, Py_ssize_t ldc,
    const Py_ssize_t* to, Finish finish, const real* bias, const real* bounds, Py_ssize_t filters, Py_ssize_t nv,
    Py_ssize_t tiles, vec* unused,
) noexcept nogil:
    """Tiles of at most LISTED_MR filters and LISTED_NV vectors whose places are listed; a part of one is alone."""
    cdef:
        real[LISTED_MR * LISTED_NV * VL_FLOAT] whole      # beside c
        Py_ssize_t[LISTED_NV] beside
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = LISTED_NV * VL, rows = 4 if filters <= 4 else LISTED_MR, i, j
        bint part = filters < rows or nv < LISTED_NV
        real* target = &whole[0] if part else c
        Py_ssize_t step = NR if part else ldc
        const Py_ssize_t* at = to
    if filters == LISTED_MR and nv == LISTED_NV and finish == RAISE:
        listed_body(a, b, depth, place, kc, c, ldc, to, RAISE, bias, bounds, LISTED_MR, LISTED_NV, tiles, unused)
    elif filters == LISTED_MR and nv == LISTED_NV:
        listed_body(a, b, depth, place, kc, c, ldc, to, CLAMP, bias, bounds, LISTED_MR, LISTED_NV, tiles, unused)
    elif filters == LISTED_MR and nv == 1:
        listed_body(a, b, depth, place, kc, c, ldc, to, CLAMP, bias, bounds, LISTED_MR, 1, 1, unused)
    elif filters == LISTED_MR:
        listed_body(a, b, depth, place, kc, c, ldc, to, CLAMP, bias, bounds, LISTED_MR, 2, 1, unused)
    else:
        if part:
            for j in range(LISTED_NV):
                beside[j] = j * VL
            at = &beside[0]
        if rows == 4:
            listed_body(a, b, depth, place, kc, target, step, at, CLAMP, bias, bounds, 4, LISTED_NV, tiles, unused)
        else:
            listed_body(a, b, depth, place, kc, target, step, at, CLAMP, bias, bounds, LISTED_MR, LISTED_NV, 1, unused)
        for i in range(filters if part else 0):
            for j in range(nv):
                memcpy(c + i * ldc + to[j], &whole[i * NR + j * VL], sizeof(vec))


cdef inline void listed_panel(
    const real* a, const real* b, const Py_ssize_t* depth, const Py_ssize_t* place, Py_ssize_t kc, real* c, Py_ssize_t ldc,
    const Py_ssize_t* to, Finish finish, const real* bias, const real* bounds, Py_ssize_t filters, Py_ssize_t vectors, vec* unused,
) noexcept nogil:
    """All vectors of a panel of filters: whole tiles run in one call, the rest tile by tile."""
    cdef Py_ssize_t i = 0, j, rows
    while i < filters:
        rows = min(filters - i, LISTED_MR)
        j = 0
        if rows == LISTED_MR or rows == 4:
            j = vectors // LISTED_NV * LISTED_NV
            listed_tiles(
                a + i, b, depth, place, kc, c + i * ldc, ldc, to, finish, bias + i, bounds, rows, LISTED_NV, j // LISTED_NV, unused
            )
        while j < vectors:
            listed_tiles(
                a + i, b, depth, place + j, kc, c + i * ldc, ldc, to + j, finish, bias + i, bounds, rows,
                min(vectors - j, LISTED_NV), 1, unused,
            )
            j += LISTED_NV
        i += LISTED_MR


cdef inline void paired_body(
    const real* a,         # IN   [kc][MR] filters
    const real* b,         # IN   two vectors of pixels, one below the other in the map
    const Py_ssize_t* depth,
    const Py_ssize_t* place,
    Py_ssize_t kc,
    real* z,               # OUT  VL / 2 pooled pixels of each filter, ldz apart
    Py_ssize_t ldz,
    const real* bias,      # IN   [filters][VL / 2] each filter's
    const real* bounds,    # IN   of the clamp
    const int rows,        # filters, an even constant
    vec* unused,
) noexcept nogil:
    # Maxima of 2x2 pixels before bias and clamp, which keep order: a quarter of the work. Two filters share a vector.
    cdef:
        vec[2 * LISTED_MR] acc
        vec v, other, low_v, high_v
        Py_ssize_t i, VL = sizeof(vec) // sizeof(real)
    tile_sums(a, b, 0, 0, depth, place, kc, &acc[0], rows, 2, True, 0, NULL, False)
    fill(&low_v, bounds[0])
    fill(&high_v, bounds[1])
    for i in range(rows // 2):
        fold_max(&acc[4 * i], acc[4 * i + 1])
        fold_max(&acc[4 * i + 2], acc[4 * i + 3])
        pool_even(&v, acc[4 * i], acc[4 * i + 2])
        pool_odd(&other, acc[4 * i], acc[4 * i + 2])
        fold_max(&v, other)
        untangle(&v)
        v = vmin(high_v, vmax(low_v, v + (<const vec*> (bias + i * VL))[0]))
        memcpy(z + 2 * i * ldz, &v, sizeof(vec) // 2)
        memcpy(z + (2 * i + 1) * ldz, <const real*> &v + VL // 2, sizeof(vec) // 2)


cdef void paired_tile(
    const real* a, const real* b, const Py_ssize_t* depth, const Py_ssize_t* place, Py_ssize_t kc, real* z,
    Py_ssize_t ldz, const real* bias, const real* bounds, Py_ssize_t filters, Py_ssize_t columns, vec* unused,
) noexcept nogil:
    """`paired_body` for at most LISTED_MR filters and VL / 2 columns; a part of a tile is computed beside z."""
    cdef:
        real[LISTED_MR * VL_FLOAT] whole
        Py_ssize_t i, half = sizeof(vec) // sizeof(real) // 2, rows = 4 if filters <= 4 else LISTED_MR
        bint part = filters < rows or columns < half
        real* target = &whole[0] if part else z
        Py_ssize_t step = half if part else ldz
    if rows == 4:
        paired_body(a, b, depth, place, kc, target, step, bias, bounds, 4, unused)
    else:
        paired_body(a, b, depth, place, kc, target, step, bias, bounds, LISTED_MR, unused)
    if part:
        for i in range(filters):
            memcpy(z + i * ldz, &whole[i * half], columns * sizeof(real))


cdef inline void lone_sums(
    const real* a,          # IN   [kc][MR] filters
    const real* x,          # IN   [kc][pixels]
    Py_ssize_t kc,
    real* sums,             # OUT  [pixels][vectors * VL]
    const int pixels,       # constants: how many, and
    const int vectors,      # of filters
    vec* unused,
) noexcept nogil:
    # Vectors along filters: a few pixels that are left over would waste most of a tile. Depths take turns with several sums,
    # as an addition to the same one would wait for the last.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), turns = ceil_div(LONE_SUMS, pixels * vectors), k = 0, p, t, v
        vec[2 * LONE_SUMS] acc
        vec filters
    for v in range(turns * pixels * vectors):
        fill(&acc[v], <real> 0)
    while k + turns <= kc:
        for t in range(turns):
            for v in range(vectors):
                filters = (<const vec*> (a + t * _MR + v * VL))[0]
                for p in range(pixels):
                    acc[(t * pixels + p) * vectors + v] = vfma_at(
                        acc[(t * pixels + p) * vectors + v], x + t * pixels + p, filters
                    )
        a += turns * _MR
        x += turns * pixels
        k += turns
    for t in range(1, turns):
        for v in range(pixels * vectors):
            acc[v] = acc[v] + acc[t * pixels * vectors + v]
    while k < kc:
        for v in range(vectors):
            filters = (<const vec*> (a + v * VL))[0]
            for p in range(pixels):
                acc[p * vectors + v] = vfma_at(acc[p * vectors + v], x + p, filters)
        a += _MR
        x += pixels
        k += 1
    for v in range(pixels * vectors):
        (<vec*> (sums + v * VL))[0] = acc[v]


cdef void lone_tile(
    const real* a,          # IN   [kc][MR] filters; of the last panel may be read what fills a vector up
    const real* x,          # IN   [kc][pixels]
    Py_ssize_t kc,
    real* c,                # IN/OUT pixels of ``filters`` maps, ldc apart
    Py_ssize_t ldc,
    bint accumulate,
    Finish finish,
    const real* bias,
    const real* bounds,
    Py_ssize_t filters,
    Py_ssize_t pixels,      # at most VL / LONE
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), i, p
        real[MOST_LONE * LONE_SPAN] sums
        vec low, high
        vec* sum
    if real is float:
        if pixels == 1:
            lone_sums(a, x, kc, &sums[0], 1, LONE_SPAN // VL_FLOAT, unused)
        elif pixels == 2:
            lone_sums(a, x, kc, &sums[0], 2, LONE_SPAN // VL_FLOAT, unused)
        elif pixels == 3 and VL_FLOAT == 16:
            lone_sums(a, x, kc, &sums[0], 3, LONE_SPAN // VL_FLOAT, unused)
        elif VL_FLOAT == 16:
            lone_sums(a, x, kc, &sums[0], 4, LONE_SPAN // VL_FLOAT, unused)
    elif pixels == 1:
        lone_sums(a, x, kc, &sums[0], 1, LONE_SPAN // _VL_DOUBLE, unused)
    elif VL_FLOAT == 16:
        lone_sums(a, x, kc, &sums[0], 2, LONE_SPAN // _VL_DOUBLE, unused)
    if accumulate:
        for i in range(filters):
            for p in range(pixels):
                sums[p * LONE_SPAN + i] = sums[p * LONE_SPAN + i] + c[i * ldc + p]
    if finish != KEEP:
        fill(&low, bounds[0])
        fill(&high, bounds[1])
        for p in range(pixels):
            for i in range(LONE_SPAN // VL):
                sum = <vec*> &sums[p * LONE_SPAN + i * VL]
                sum[0] = vmin(high, vmax(low, sum[0] + (<const vec*> (bias + i * VL))[0]))
    store_filters(&sums[0], c, pixels, filters, LONE_SPAN, ldc, False, unused)


# -------------------------------------------------------------------------------------------- packing the columns


cdef extern from *:
    """
    #define EVERY_OTHER(S, ...) \\
    static inline __attribute__((always_inline)) v##S every_other_##S(v##S a, v##S b) \\
    { return SIMD_SHUFFLE_##S(a, b, __VA_ARGS__); }
    #if FASTCONV_VL == 16
    EVERY_OTHER(f, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31)
    EVERY_OTHER(d, 0, 2, 4, 6, 9, 11, 13, 15)
    #elif FASTCONV_VL == 8 /* two instructions, of which compilers make three and more: within halves, then their pairs */
    #define EVERY_OTHER_PAIR(S, ...) \\
    static inline __attribute__((always_inline)) v##S every_other_##S(v##S a, v##S b) \\
    { vd v = (vd)SIMD_SHUFFLE_##S(a, b, __VA_ARGS__); return (v##S)SIMD_SHUFFLE_d(v, v, 0, 2, 1, 3); }
    EVERY_OTHER_PAIR(f, 0, 2, 9, 11, 4, 6, 13, 15)
    EVERY_OTHER_PAIR(d, 0, 5, 2, 7)
    #else
    EVERY_OTHER(f, 0, 2, 5, 7)
    EVERY_OTHER(d, 0, 3)
    #endif
    """
    vf every_other_f(vf a, vf b) nogil
    vd every_other_d(vd a, vd b) nogil


cdef inline vec every_other(vec a, vec b) noexcept nogil:
    """The even lanes of a, the odd ones of b."""
    if vec is vf:
        return every_other_f(a, b)
    else:
        return every_other_d(a, b)


cdef inline void copy_every_other(
    const real* source, real* target, Py_ssize_t count, const Py_ssize_t stride, vec* unused,
) noexcept nogil:
    """target[j] = source[stride * j] for j < count, stride 2 or 4, without a scalar tail: the last vector overlaps."""
    cdef:
        Py_ssize_t j = 0, VL = sizeof(vec) // sizeof(real)
        const real* x
        vec v
    if count < VL:
        for j in range(count):
            target[j] = source[stride * j]
        return
    while True:
        # The last load ends at the last element that is wanted; of four, those of odd index are in odd lanes
        x = source + stride * j
        v = every_other((<const vec*> x)[0], (<const vec*> (x + VL - 1))[0])
        if stride == 4:
            v = every_other(
                v, every_other((<const vec*> (x + 2 * VL - 2))[0], (<const vec*> (x + 3 * VL - 3))[0])
            )
        (<vec*> (target + j))[0] = v
        if j + VL >= count:
            break
        j = min(j + VL, count - VL)


cdef void gather(
    const real* columns,        # IN   (kc) rows of pixels, ldb apart
    Py_ssize_t ldb,
    real* lone,                 # OUT  [kc][pixels]
    Py_ssize_t kc,
    Py_ssize_t pixels,
) noexcept nogil:
    """The columns of ``pixels`` pixels one after the other: where they stand each depth has a line of the cache for itself."""
    cdef Py_ssize_t k, p
    for k in range(kc):
        for p in range(pixels):
            lone[k * pixels + p] = columns[k * ldb + p]


cdef inline void clear_around(real* cells, Py_ssize_t first, Py_ssize_t last, Py_ssize_t width, vec* unused) noexcept nogil:
    """Zeros before ``first`` and from ``last`` on, in whole vectors, as rows are: what lies between is written afterwards."""
    cdef:
        Py_ssize_t j = 0, VL = sizeof(vec) // sizeof(real)
        vec zeros
    fill(&zeros, <real> 0)
    while j < first:
        (<vec*> (cells + j))[0] = zeros
        j += VL
    j = last // VL * VL
    while j < width:
        (<vec*> (cells + j))[0] = zeros
        j += VL


cdef void copy_pairs(
    const real* plane, real* copied, const Blocking* b, const int64_t* geometry, Py_ssize_t first_row, Py_ssize_t rows, vec* unused,
) noexcept nogil:
    """`copy_rows` at a stride of 2 whose both phases are read: a row's even and odd columns at once."""
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), IH = geometry[GEO_IH], IW = geometry[GEO_IW], width = b.phase_width
        Py_ssize_t pad = geometry[GEO_PAD_LEFT], left = min(pad // 2, width), right = min((pad + 1) // 2, width), row, ih, j
        # Of even columns, from cell ``left`` of one phase on, and of odd ones, from ``right`` of the other
        Py_ssize_t evens = min(ceil_div(IW, 2), width - left), odds = min(IW // 2, width - right), both = min(evens, odds)
        Py_ssize_t last = both - VL
        real* even
        real* odd
        const real* source
    for row in range(rows):
        if not meets_tap(row * b.row_skip, geometry[GEO_KH], geometry[GEO_STRIDE_H], geometry[GEO_DIL_H]):
            continue
        ih = first_row + row * b.row_skip
        even = copied + row * b.row_width + pad % 2 * width
        odd = copied + row * b.row_width + (1 - pad % 2) * width
        if ih < 0 or ih >= IH:
            memset(copied + row * b.row_width, 0, b.row_width * sizeof(real))
            continue
        source = plane + ih * IW
        for j in range(ceil_div(IW, CACHE_LINE // sizeof(real))):  # of the next channel: hardware does not in rows so short
            prefetch(source + IH * IW + j * (CACHE_LINE // sizeof(real)))
        clear_around(even, left, left + evens, width, unused)
        clear_around(odd, right, right + odds, width, unused)
        even += left
        odd += right
        j = 0
        while last >= 0:  # from which the last vectors go: they are whole, too
            (<vec*> (even + j))[0] = every_other(
                (<const vec*> (source + 2 * j))[0], (<const vec*> (source + 2 * j + VL - 1))[0]
            )
            (<vec*> (odd + j))[0] = every_other(
                (<const vec*> (source + 2 * j + 1))[0], (<const vec*> (source + 2 * j + VL))[0]
            )
            if j == last:
                break
            j = min(j + VL, last)
        for j in range(both if last >= 0 else 0, both):
            even[j] = source[2 * j]
            odd[j] = source[2 * j + 1]
        for j in range(both, evens):
            even[j] = source[2 * j]
        for j in range(both, odds):
            odd[j] = source[2 * j + 1]


cdef void copy_rows(
    const real* plane,          # IN   one channel (IH, IW)
    real* copied,               # OUT  [rows][phases][phase_width]
    const Blocking* b,
    const int64_t* geometry,
    Py_ssize_t first_row,       # input row of the first copied one; may lie above the image
    Py_ssize_t rows,
    vec* unused,
) noexcept nogil:
    """Input rows with their zero border, columns split by their position modulo stride."""
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], KH = geometry[GEO_KH], KW = geometry[GEO_KW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t row, phase, j, ih, width = b.phase_width, left, first, last
        real* target
        const real* source
    if b.phases == 2 and dil_w % 2 and pad_left >= 0:  # negative: columns cut off
        copy_pairs(plane, copied, b, geometry, first_row, rows, unused)
        return
    for phase in range(stride_w):
        if not meets_tap(phase, KW, stride_w, dil_w):
            continue
        # Cell j holds input column left + j * stride_w
        left = phase - pad_left
        first = min(max(ceil_div(-left, stride_w), 0), width) if left < 0 else 0
        last = min(max(ceil_div(IW - left, stride_w), first), width) if left < IW else first
        for row in range(rows):
            if not meets_tap(row * b.row_skip, KH, stride_h, dil_h):  # rows between the taps of a strided kernel are never read
                continue
            ih = first_row + row * b.row_skip
            target = copied + row * b.row_width + phase * width
            if ih < 0 or ih >= IH:
                memset(target, 0, width * sizeof(real))
                continue
            source = plane + ih * IW + left
            if phase == 0:  # the same row of the next channel: rows are too short for the hardware to fetch ahead
                for j in range(ceil_div(IW, CACHE_LINE // sizeof(real))):
                    prefetch(plane + (IH + ih) * IW + j * (CACHE_LINE // sizeof(real)))
            clear_around(target, first, last, width, unused)
            if stride_w == 1:
                memcpy(target + first, source + first, (last - first) * sizeof(real))
            elif stride_w == 2:
                copy_every_other(source + 2 * first, target + first, last - first, 2, unused)
            elif stride_w == 4:
                copy_every_other(source + 4 * first, target + first, last - first, 4, unused)
            else:
                for j in range(first, last):
                    target[j] = source[j * stride_w]


cdef inline bint meets_tap(Py_ssize_t place, Py_ssize_t taps, Py_ssize_t stride, Py_ssize_t dil) noexcept nogil:
    """Whether one of ``taps``, dil apart, falls on ``place`` modulo stride, at or before it (phases: place < stride)."""
    cdef Py_ssize_t tap
    if stride == 1 or (dil == 1 and taps >= stride):
        return True
    for tap in range(taps):
        if (place - tap * dil) % stride == 0:
            return True
    return False


cdef void copy_block(
    const real* image,          # IN   the channels of one group of one image
    real* copied,               # OUT  copy_elements
    Py_ssize_t* depth,          # OUT  (kc) where the cells of the first pixel lie
    const Blocking* b,
    const int64_t* geometry,
    Py_ssize_t k_from,
    Py_ssize_t kc,
    Py_ssize_t oh_from,         # rows of the map
    Py_ssize_t oh_to,
    vec* unused,
) noexcept nogil:
    """The input rows that rows k_from .. k_from + kc of the columns touch."""
    cdef:
        Py_ssize_t IHW = geometry[GEO_IH] * geometry[GEO_IW], KH = geometry[GEO_KH], KW = geometry[GEO_KW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W], k, kh, kw
        Py_ssize_t c, c_from = k_from // b.T, c_to = (k_from + kc - 1) // b.T + 1
        Py_ssize_t rows = (oh_to - 1 - oh_from) * b.row_step + (KH - 1) * dil_h + 1
    for c in range(c_from, c_to):
        copy_rows(
            image + c * IHW, copied + (c - c_from) * b.rows * b.row_width, b, geometry,
            oh_from * stride_h - geometry[GEO_PAD_TOP], rows, unused,
        )
    c = 0
    kh = k_from % b.T // KW
    kw = k_from % KW
    for k in range(kc):
        depth[k] = (
            (c * b.rows + kh * dil_h) * b.row_width + kw * dil_w % stride_w * b.phase_width + kw * dil_w // stride_w
        )
        kw += 1
        if kw == KW:
            kw = 0
            kh += 1
            if kh == KH:
                kh = 0
                c += 1


cdef void pack_block(
    const real* copied,         # IN   by `copy_block`
    const Py_ssize_t* depth,    # IN   (kc)
    real* packed,               # OUT  panels of [kc][NV * VL]
    const Blocking* b,
    const int64_t* geometry,
    Py_ssize_t kc,
    Py_ssize_t p_from,
    Py_ssize_t pixels,
    vec* unused,
) noexcept nogil:
    """The columns of ``pixels`` pixels."""
    # A row of a panel is one run of cells per output row it crosses. Each run is written by whole vectors, in order:
    # what a vector writes past its run is overwritten by the next run or row, or lies in the slack behind the block.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, row = b.row_step * b.row_width
        Py_ssize_t[MOST_VECTORS] run_to
        Py_ssize_t[MOST_VECTORS] run_from
        Py_ssize_t oh_from = p_from // b.OW, vectors, panel, p, oh, ow, length, done, k, j
    for panel in range(ceil_div(pixels, NR)):
        vectors = 0
        p = p_from + panel * NR
        done = 0
        while done < NR and p < p_from + pixels:
            oh = p // b.OW
            ow = p % b.OW
            length = min(min(b.OW - ow, NR - done), p_from + pixels - p)
            for j in range(ceil_div(length, VL)):
                run_to[vectors] = done + j * VL
                run_from[vectors] = (oh - oh_from) * row + ow + j * VL
                vectors += 1
            done += length
            p += length
        if vectors == 1:
            pack_panel(copied, depth, packed, kc, &run_from[0], &run_to[0], 1, unused)
        elif vectors == 2:
            pack_panel(copied, depth, packed, kc, &run_from[0], &run_to[0], 2, unused)
        elif vectors == 3:
            pack_panel(copied, depth, packed, kc, &run_from[0], &run_to[0], 3, unused)
        elif vectors == 4:
            pack_panel(copied, depth, packed, kc, &run_from[0], &run_to[0], 4, unused)
        else:
            for k in range(kc):
                for j in range(vectors):
                    (<vec*> (packed + k * NR + run_to[j]))[0] = (<const vec*> (copied + depth[k] + run_from[j]))[0]
        packed += kc * NR


cdef inline void pack_panel(
    const real* copied,             # IN
    const Py_ssize_t* depth,        # IN   (kc)
    real* packed,                   # OUT  [kc][NV * VL]
    Py_ssize_t kc,
    const Py_ssize_t* run_from,     # IN   (vectors)
    const Py_ssize_t* run_to,       # IN   (vectors)
    const Py_ssize_t vectors,       # a constant, at most 4: the places of the runs then stay in registers
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t[4] source
        Py_ssize_t[4] target
        Py_ssize_t k, j, NR = _NV * (sizeof(vec) // sizeof(real))
        const real* row
    for j in range(vectors):
        source[j] = run_from[j]
        target[j] = run_to[j]
    for k in range(kc):
        row = copied + depth[k]
        for j in range(vectors):
            (<vec*> (packed + target[j]))[0] = (<const vec*> (row + source[j]))[0]
        packed += NR


cdef inline void pack_flat(
    const real* plane,          # IN   pixels of kc channels, IHW apart
    real* packed,               # OUT  panels of [kc][NV * VL]
    Py_ssize_t kc,
    Py_ssize_t pixels,
    Py_ssize_t IHW,
    vec* unused,
) noexcept nogil:
    # No hardware fetches along channels by itself: the next panel's cells are fetched as this one's are copied.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, k, _k, j
        const real* row
    for _ in range(pixels // NR):
        row = plane
        for _k in range(kc):
            prefetch(row + NR)
            for j in range(_NV):
                (<vec*> (packed + j * VL))[0] = (<const vec*> (row + j * VL))[0]
            packed += NR
            row += IHW
        plane += NR
    if pixels % NR:
        # Nothing past the caller's array may be read, and what lay here may be subnormal: slow to multiply with
        for k in range(kc):
            for j in range(NR):
                packed[k * NR + j] = plane[k * IHW + j] if j < pixels % NR else 0


# ------------------------------------------------------------------------------------------- kernels: columns


cdef inline const real* columns_of(const real[:, :, :, :, :, ::1] cols, const int64_t* geometry) except? NULL:
    """`cells_of` columns."""
    cdef:
        Py_ssize_t N = geometry[GEO_N], IC = geometry[GEO_IC], KH = geometry[GEO_KH], KW = geometry[GEO_KW]
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW]
    if min(N, IC, KH, KW, OH, OW) <= 0 or &cols[N - 1, IC - 1, KH - 1, KW - 1, OH - 1, OW - 1] == NULL:
        return NULL
    return &cols[0, 0, 0, 0, 0, 0]


cdef void im2col_task(
    Py_ssize_t task,
    const real* input,        # IN
    real* cols,               # OUT
    const int64_t* geometry,  # IN
) noexcept nogil:
    # A task is one channel of one image.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW], KH = geometry[GEO_KH], KW = geometry[GEO_KW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t kh, kw, oh, ow, ih, left, first, last
        const real* row
        real* target = cols + task * KH * KW * OH * OW
    for kh in range(KH):
        for kw in range(KW):
            left = kw * dil_w - geometry[GEO_PAD_LEFT]
            # Output columns [first, last) lie over the image
            first = min(max(ceil_div(-left, stride_w), 0), OW)
            last = min(max(ceil_div(IW - left, stride_w), first), OW)
            for oh in range(OH):
                ih = oh * stride_h - geometry[GEO_PAD_TOP] + kh * dil_h
                if ih < 0 or ih >= IH:
                    memset(target, 0, OW * sizeof(real))
                else:
                    row = input + (task * IH + ih) * IW + left
                    memset(target, 0, first * sizeof(real))
                    if stride_w == 1:
                        memcpy(target + first, row + first, (last - first) * sizeof(real))
                    else:
                        for ow in range(first, last):
                            target[ow] = row[ow * stride_w]
                    memset(target + last, 0, (OW - last) * sizeof(real))
                target += OW


cdef void im2col_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Copy* c = <const Copy*> job
    if c.itemsize == sizeof(float):
        im2col_task(task, <const float*> c.source, <float*> c.target, c.geometry)
    else:
        im2col_task(task, <const double*> c.source, <double*> c.target, c.geometry)


def im2col(
    const real[:, :, :, ::1] input,
    real[:, :, :, :, :, ::1] cols,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, IC, IH, IW) -> cols (N, IC, KH, KW, OH, OW)."""
    cdef:
        const int64_t* g = &geometry[0]
        Copy job = Copy(
            sizeof(real), cells_of(input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), <void*> columns_of(cols, g), g
        )
    with nogil:
        each_task(im2col_entry, &job, g[GEO_N] * g[GEO_IC], n_threads)


cdef void col2im_task(
    Py_ssize_t task,
    const real* cols,         # IN
    real* output,             # OUT
    const int64_t* geometry,  # IN
) noexcept nogil:
    # A task is one channel of one image; a cell sums its columns in the order of the taps.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW], KH = geometry[GEO_KH], KW = geometry[GEO_KW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t kh, kw, oh, ow, ih, left, first, last
        const real* source = cols + task * KH * KW * OH * OW
        real* plane = output + task * IH * IW
        real* row
    memset(plane, 0, IH * IW * sizeof(real))
    for kh in range(KH):
        for kw in range(KW):
            left = kw * dil_w - geometry[GEO_PAD_LEFT]
            first = min(max(ceil_div(-left, stride_w), 0), OW)
            last = min(max(ceil_div(IW - left, stride_w), first), OW)
            for oh in range(OH):
                ih = oh * stride_h - geometry[GEO_PAD_TOP] + kh * dil_h
                if 0 <= ih < IH:
                    row = plane + ih * IW + left
                    for ow in range(first, last):
                        row[ow * stride_w] += source[ow]
                source += OW


cdef void col2im_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Copy* c = <const Copy*> job
    if c.itemsize == sizeof(float):
        col2im_task(task, <const float*> c.source, <float*> c.target, c.geometry)
    else:
        col2im_task(task, <const double*> c.source, <double*> c.target, c.geometry)


def col2im(
    const real[:, :, :, :, :, ::1] cols,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint of im2col: output (N, IC, IH, IW) sums the columns' cells."""
    cdef:
        const int64_t* g = &geometry[0]
        Copy job = Copy(
            sizeof(real), columns_of(cols, g), <void*> cells_of(output, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), g
        )
    with nogil:
        each_task(col2im_entry, &job, g[GEO_N] * g[GEO_IC], n_threads)


cdef void interleave_task(
    Py_ssize_t task,
    const real* parts,        # IN
    real* output,             # OUT
    const int64_t* geometry,
) noexcept nogil:
    # A task is one channel of one image. With a stride of 2 both parts of a row are read together, so that it is written
    # once.
    cdef:
        Py_ssize_t planes = geometry[GEO_N] * geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t row, column, rows, columns, above = 0, left, i, j
        const real* source
        const real* second
        real* target
    for row in range(min(stride_h, IH)):
        rows = ceil_div(IH - row, stride_h)
        for i in range(rows):
            target = output + (task * IH + row + i * stride_h) * IW
            left = 0
            if stride_w == 2:
                columns = ceil_div(IW, 2)
                source = parts + above * planes + (task * rows + i) * columns
                second = parts + (above + rows * columns) * planes + (task * rows + i) * (IW // 2)
                for j in range(IW // 2):
                    target[2 * j] = source[j]
                    target[2 * j + 1] = second[j]
                if IW % 2:
                    target[IW - 1] = source[IW // 2]
                continue
            for column in range(min(stride_w, IW)):
                columns = ceil_div(IW - column, stride_w)
                source = parts + (above + rows * left) * planes + (task * rows + i) * columns
                for j in range(columns):
                    target[j * stride_w + column] = source[j]
                left += columns
        above += rows * IW


cdef void interleave_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Copy* c = <const Copy*> job
    if c.itemsize == sizeof(float):
        interleave_task(task, <const float*> c.source, <float*> c.target, c.geometry)
    else:
        interleave_task(task, <const double*> c.source, <double*> c.target, c.geometry)


def interleave(
    const real[::1] parts,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """output (N, IC, IH, IW) of ``parts``, one behind the other: each is every stride-th row and column, from 0, 1 ... on."""
    cdef Copy job = Copy(sizeof(real), start_of_row(parts), <void*> start(output), &geometry[0])
    with nogil:
        each_task(interleave_entry, &job, geometry[GEO_N] * geometry[GEO_IC], n_threads)


# ------------------------------------------------------------------------------------------- kernels: forward


def packed_weight_size(const int64_t[::1] geometry):
    """Elements of a packed weight: [G][block of K][panel][kc][MR], the last panel of a group filled up with zeros."""
    cdef Blocking b = blocking(&geometry[0], 1)
    return geometry[GEO_G] * b.panels * b.K * _MR + LONE_SPAN - _MR  # whose last vector of filters is read whole


cdef inline void transpose_filters(
    const real* row,                  # IN   MR filters, step apart: depth after depth
    Py_ssize_t step,
    real* target,                     # OUT  [VL][MR], and two elements more where MR is not made of squares
    vec* unused,
) noexcept nogil:
    """VL depths of MR filters, from filter by filter to depth by depth: 4 or 2 filters at once."""
    # From the last filters to the first: what a square that holds two of them writes too much is overwritten.
    cdef:
        Py_ssize_t quad = 16 // sizeof(real), i = (_MR - 1) // quad * quad, j
        vec[4] z
    while i >= 0:
        for j in range(quad):
            z[j] = (<const vec*> (row + min(i + j, _MR - 1) * step))[0]
        transpose(&z[0])
        for j in range(quad):
            store_lanes(target + j * _MR + i, quad * _MR, z[j])
        i -= quad


cdef void pack_weight_task(
    Py_ssize_t task,
    const real* weight,               # IN
    real* packed,                     # OUT
    const Blocking* b,                # IN
    bint turned,
    vec* unused,
) noexcept nogil:
    # A task is one panel of filters. A turned weight holds filters within channels, and taps in reverse.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real)
        Py_ssize_t g = task // b.panels, panel = task % b.panels, first = panel_start(b, panel), k_from = 0, kc, k, i
        Py_ssize_t filters = panel_start(b, panel + 1) - first, step = b.T if turned else b.K, tap = 0
        const real* row = weight + (g * b.OCG + first) * b.K
        real* target
    if turned:
        row = weight + (g * b.ICG * b.OCG + first) * b.T + b.T - 1
    while k_from < b.K:
        kc = min(b.K - k_from, b.kc)
        target = packed + ((g * b.K + k_from) * b.panels + panel * kc) * _MR
        k = k_from
        while not turned and filters == _MR and k + VL < k_from + kc:  # before the last depths: squares write too much
            transpose_filters(row, step, target, unused)
            target += VL * _MR
            row += VL
            k += VL
        while k < k_from + kc:
            if filters == _MR and step == 1:
                memcpy(target, row, _MR * sizeof(real))
            elif filters == _MR:
                for i in range(_MR):
                    target[i] = row[i * step]
            else:
                for i in range(_MR):
                    target[i] = row[i * step] if i < filters else 0
            target += _MR
            row += -1 if turned else 1
            tap += 1
            if turned and tap == b.T:
                tap = 0
                row += (b.OCG + 1) * b.T
            k += 1
        k_from += kc


cdef struct Pack:
    Py_ssize_t itemsize
    const void* weight
    void* packed
    const Blocking* blocking
    bint turned


cdef void pack_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pack* p = <const Pack*> job
    if p.itemsize == sizeof(float):
        pack_weight_task(task, <const float*> p.weight, <float*> p.packed, p.blocking, p.turned, <vf*> NULL)
    else:
        pack_weight_task(task, <const double*> p.weight, <double*> p.packed, p.blocking, p.turned, <vd*> NULL)


def pack_weight(
    const real[:, :, :, ::1] weight,
    real[::1] packed,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """weight (OC, ICG, KH, KW), turned (IC, OCG, KH, KW) -> packed, in the order in which this back end's conv2d reads it."""
    cdef:
        Blocking b = blocking(&geometry[0], 1)
        Pack job = Pack(sizeof(real), start(weight), <void*> start_of_row(packed), &b, geometry[GEO_TURNED] != 0)
    with nogil:
        each_task(
            pack_weight_entry, &job, geometry[GEO_G] * b.panels, n_threads if packed.shape[0] > FEW_WEIGHTS else 1
        )


def conv2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: for each worker copied rows, the packed block, what a fused pool reads and carries over."""
    cdef Blocking b = blocking(&geometry[0], n_workers)
    return n_workers * b.elements


cdef void conv2d_task(
    Py_ssize_t task,
    const real* input,            # IN
    const real* packed,           # IN
    const real* bias,             # IN   NULL for none
    real low,
    real high,
    real* output,                 # OUT
    real* pooled,                 # OUT
    int64_t* indices,             # OUT
    real* scratch,                # elements
    const Blocking* b,            # IN
    const int64_t* geometry,      # IN
    vec* unused,
) noexcept nogil:
    # A task is a strip of blocks of one image, group and chunk of filters, which other threads at best do not meet.
    cdef:
        Py_ssize_t chunk = task // b.strips % b.chunks, first = task % b.strips * b.strip
        Py_ssize_t image = task // b.strips // b.chunks, panel_from = chunk * b.panels // b.chunks, block
        Py_ssize_t panel_to = (chunk + 1) * b.panels // b.chunks
    for block in range(first, min(first + b.strip, b.blocks)):
        if b.paired:
            conv2d_paired_block(
                image, block, panel_from, panel_to, input, packed, bias, low, high, pooled, scratch, b, geometry, unused,
            )
        else:
            conv2d_block(
                image, block, block > first, panel_from, panel_to, input, packed, bias, low, high, output, pooled, indices,
                scratch, b, geometry, unused,
            )


cdef void conv2d_paired_block(
    Py_ssize_t ng,                # image and group
    Py_ssize_t block,
    Py_ssize_t panel_from,        # panels of filters
    Py_ssize_t panel_to,
    const real* input,            # IN
    const real* packed,           # IN
    const real* bias,             # IN   NULL for none
    real low,
    real high,
    real* pooled,                 # OUT
    real* scratch,                # elements
    const Blocking* b,            # IN
    const int64_t* geometry,      # IN
    vec* unused,
) noexcept nogil:
    # The vectors of a tile lie one below the other in the maps, so that it holds whole windows of 2x2 and stores maxima: the
    # maps never leave the registers. A row's last tile begins early enough to be whole, and overlaps the one before.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), g = ng % geometry[GEO_G], OW = geometry[GEO_POOL_OW]
        Py_ssize_t row_from = block * b.pooled_rows, row_to = min(row_from + b.pooled_rows, geometry[GEO_POOL_OH])
        Py_ssize_t plane = geometry[GEO_POOL_OH] * OW, columns = min(VL // 2, OW), panel, first, filters, i, row, j
        Py_ssize_t below = b.row_step * b.row_width, last = max(2 * OW - VL, 0)   # row, column
        Py_ssize_t[_KC] depth
        Py_ssize_t[2] place
        const real* a
        real* z
        Py_ssize_t half = VL // 2
        real[_MR * VL_FLOAT] shifts      # a panel's bias, VL / 2 times
        real[2] bounds = [low, high]
    copy_block(
        input + ng * b.ICG * geometry[GEO_IH] * geometry[GEO_IW], scratch, depth, b, geometry, 0, b.K, 2 * row_from,
        2 * row_to, unused,
    )
    for panel in range(panel_from, panel_to):
        first = panel_start(b, panel)
        filters = panel_start(b, panel + 1) - first
        a = packed + (g * b.panels + panel) * b.K * _MR
        z = pooled + (ng * b.OCG + first) * plane
        for i in range(_MR * half):
            shifts[i] = bias[g * b.OCG + first + i // half] if i < filters * half and bias != NULL else 0
        for row in range(row_from, row_to):
            for j in range(ceil_div(2 * OW, VL)):
                place[0] = 2 * (row - row_from) * below + min(j * VL, last)
                place[1] = place[0] + below
                i = 0
                while i < filters:
                    paired_tile(
                        a + i, scratch, depth, place, b.K, z + i * plane + row * OW + min(j * half, OW - columns), plane,
                        shifts + i * half, bounds, min(filters - i, LISTED_MR), columns, unused,
                    )
                    i += LISTED_MR


cdef void conv2d_block(
    Py_ssize_t ng,                # image and group
    Py_ssize_t block,
    bint follows,                 # the block above has been computed just before
    Py_ssize_t panel_from,        # panels of filters
    Py_ssize_t panel_to,
    const real* input,            # IN
    const real* packed,           # IN
    const real* bias,             # IN   NULL for none
    real low,
    real high,
    real* output,                 # OUT
    real* pooled,                 # OUT
    int64_t* indices,             # OUT
    real* scratch,                # elements
    const Blocking* b,            # IN
    const int64_t* geometry,      # IN
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, g = ng % geometry[GEO_G]
        Py_ssize_t p_from, pixels, lone, cells, ldc, k_block, k_from, kc, panel, panels, kept, j, q, i, first, filters
        Py_ssize_t head = 0, tiles, run, run_from, run_to, whole, rest, ahead, b_step, row, oc_from = panel_start(b, panel_from)
        Py_ssize_t pooled_from, pooled_to, row_from, row_to, carried, carry_from, rows_to_carry
        Py_ssize_t step = geometry[GEO_POOL_STRIDE_H], top = geometry[GEO_POOL_PAD_TOP], KH = geometry[GEO_POOL_KH]
        Py_ssize_t plane = geometry[GEO_POOL_OH] * geometry[GEO_POOL_OW]
        const real* image = input + ng * b.ICG * geometry[GEO_IH] * geometry[GEO_IW]
        const real* weights       # all panels of a block of K
        const real* a
        const real* x             # of a flat problem, this block's cells
        const real* y
        const real* source        # of the cells of a run
        bint copying              # by the first filters that meet a run
        Py_ssize_t[_KC] depth
        Py_ssize_t[MOST_PLACES + LISTED_NV] place      # a last part of a tile reads places for a whole one
        Py_ssize_t[MOST_PLACES] to
        Py_ssize_t in_row = ceil_div(b.OW, VL), ldb
        real* copied = scratch
        real* b_block = scratch + b.copy_elements
        real* lone_cells = b_block + b.b_elements
        real* c_block = lone_cells + b.lone_elements
        real* ring = c_block + b.c_elements
        real* shifts = ring + b.ring_elements     # [panel][MR] bias
        real* carry = shifts + b.shift_elements   # [filter][carried_rows][OW]
        const real* shift
        real[2] bounds = [low, high]
        real* c                   # this block's pixels of filter oc_from
        real* map
        real* above
        Finish finish
        bint accumulate, last

    if b.pooled_rows:
        pooled_from = block * b.pooled_rows
        pooled_to = min(pooled_from + b.pooled_rows, geometry[GEO_POOL_OH])
        row_from = max(pooled_from * step - top, 0)
        row_to = min((pooled_to - 1) * step - top + KH, b.OH)
        carried = max(min((pooled_from - 1) * step - top + KH, b.OH) - row_from, 0) if follows else 0
        carry_from = max(pooled_to * step - top, 0)
        rows_to_carry = max(row_to - carry_from, 0)
        p_from = (row_from + carried) * b.OW
        pixels = max(row_to * b.OW - p_from, 0)       # none where the last windows reach into the padding
        ldc = b.NB
        c = c_block + carried * b.OW
        lone = 0                              # how a pixel is summed must not depend on where blocks begin
    else:
        pooled_from = pooled_to = row_from = carried = carry_from = rows_to_carry = 0
        if b.flat and (b.in_place or _NV > 1) and b.P % VL == 0 and b.P >= HEADED * VL:
            q = VL if b.P % NR else NR
            head = (q - <size_t> image // sizeof(real) % q) % q
        p_from = block * b.units // b.blocks * b.unit + head
        pixels = b.P - p_from if block == b.blocks - 1 else (block + 1) * b.units // b.blocks * b.unit + head - p_from
        ldc = b.P
        c = output + (ng * b.OCG + oc_from) * b.P + p_from
        lone = pixels % VL if pixels % VL * LONE <= VL and not b.by_rows and head == 0 else 0

    pixels -= lone
    cells = pixels
    if b.by_rows:
        cells = pixels // b.OW * in_row * VL
        for j in range(cells // VL):
            q = min(j % in_row * VL, b.OW - VL)
            place[j] = j // in_row * b.row_step * b.row_width + q
            to[j] = j // in_row * b.OW + q
        for j in range(LISTED_NV):
            place[cells // VL + j] = 0
    tiles = ceil_div(cells, NR)
    run = tiles if b.by_rows or b.pooled_rows else b.run // NR
    for panel in range(panel_from, panel_to):
        first = panel_start(b, panel)
        filters = panel_start(b, panel + 1) - first
        for i in range(_MR):
            shifts[(panel - panel_from) * _MR + i] = bias[g * b.OCG + first + i] if i < filters and bias != NULL else 0
    for k_block in range(b.k_blocks):                                                      # loop 1: blocks of K
        k_from = k_block * b.kc
        kc = min(b.K - k_from, b.kc)
        weights = packed + (g * b.K + k_from) * b.panels * _MR
        accumulate = k_from > 0 or (geometry[GEO_ACCUMULATE] and not b.pooled_rows)
        last = k_block == b.k_blocks - 1
        finish = KEEP if not last else CLAMP if high < INFINITY else RAISE if low > -INFINITY else SHIFT
        if b.flat:
            x = image + k_from * b.P + p_from
            if b.in_place and kc > 0:
                pack_flat(x + pixels // NR * NR, b_block, kc, pixels % NR, b.P, unused)
        elif kc > 0 and pixels + lone > 0:
            copy_block(
                image, copied, depth, b, geometry, k_from, kc, p_from // b.OW, (p_from + pixels + lone - 1) // b.OW + 1,
                unused,
            )
            if not b.by_rows:
                pack_block(copied, depth, b_block, b, geometry, kc, p_from, pixels + lone, unused)
        if b.in_place:
            ldb, b_step = b.P, NR
        else:
            ldb, b_step = NR, NR * kc
        if head and block == 0:
            for panel in range(panel_from, panel_to):
                first = panel_start(b, panel)
                edge_tile(
                    weights + panel * kc * _MR, image + k_from * b.P, b.P, kc,
                    c + (first - oc_from) * ldc - head, ldc, accumulate, finish, shifts + (panel - panel_from) * _MR, bounds,
                    panel_start(b, panel + 1) - first, head, unused,
                )
        run_from = 0
        while True:                                                                        # loop 2: runs of B panels
            run_to = min(run_from + run, tiles)
            whole = max(min(run_to, cells // NR), run_from)
            copying = (
                _NV > 1 and b.flat and not b.in_place and kc > 0 and panel_to - panel_from > 1
                and panel_start(b, panel_from + 1) - oc_from == _MR
            )
            if b.in_place:
                source = x + run_from * NR
            elif b.flat:
                source = b_block
                q = whole - run_from if copying else 0
                pack_flat(
                    x + (run_from + q) * NR, b_block + q * b_step, kc, min(pixels - run_from * NR, b.run) - q * NR, b.P, unused
                )
            else:
                source = b_block + run_from * b_step
            panel = panel_from
            while panel < panel_to:                                                        # loop 3: filters
                first = panel_start(b, panel)
                filters = panel_start(b, panel + 1) - first
                shift = shifts + (panel - panel_from) * _MR
                kept = first - oc_from if b.kept_panels > 1 or not b.pooled_rows else 0
                a = weights + panel * kc * _MR
                map = c + kept * ldc
                # Whole tiles of a panel, or of a run of one panel those of all whole panels, run in one call, the rest tile
                # by tile
                q = run_from * NR
                panels = 1
                if b.by_rows:
                    listed_panel(
                        a, copied, depth, place, kc, map, ldc, to, finish, shift, bounds, filters, cells // VL, unused
                    )
                elif filters < _MR and height(filters) == filters:
                    part_tiles(
                        a, source, ldb, b_step, kc, map + q, ldc, accumulate, finish, shift, bounds, filters, _NV,
                        whole - run_from, unused,
                    )
                elif filters == _MR and copying and panel == panel_from:
                    whole_tiles(
                        a, x + q, b.P, NR, kc, map + q, ldc, accumulate, finish, shift, bounds, whole - run_from, 1, 2 * NR - 1,
                        b_block, unused,
                    )
                elif filters == _MR:
                    ahead = b.run if _NV == 1 and b.in_place and panel == panel_from else 0
                    if run == 1 and whole > run_from and kc > 0 and not b.pooled_rows and not ahead:
                        panels = max(min(panel_to, b.OCG // _MR - (b.lent > 0)) - panel, 1)
                    whole_tiles(
                        a, source, ldb, b_step, kc, map + q, ldc, accumulate, finish, shift, bounds, whole - run_from, panels,
                        ahead, NULL, unused,
                    )
                rest = run_to if b.by_rows else whole if filters == _MR or height(filters) == filters else run_from
                for j in range(rest, run_to):                                              # loop 4: pixels
                    q = j * NR
                    y, row = source + (j - run_from) * b_step, ldb
                    if b.in_place and q + NR > cells and cells % VL:  # nothing past the caller's array may be read
                        y, row = b_block, NR
                    some_tile(
                        a, y, row, kc, map + q, ldc, accumulate, finish, shift, bounds, filters, min(cells - q, NR), unused
                    )
                if last and b.pooled_rows:
                    for i in range(filters):
                        map = c_block + (kept + i) * ldc
                        above = carry + (first - oc_from + i) * b.carried_rows * b.OW
                        q = (ng * b.OCG + first + i) * plane
                        memcpy(map, above, carried * b.OW * sizeof(real))
                        max_pool_rows(
                            <const real*> map, row_from, pooled_from, pooled_to, pooled + q,
                            indices + q if indices != NULL else NULL, ring, geometry, unused,
                        )
                        memcpy(above, map + (carry_from - row_from) * b.OW, rows_to_carry * b.OW * sizeof(real))
                panel += panels
            run_from = run_to
            if run_to == tiles:
                break
        if lone:
            if b.flat:
                gather(x + pixels, b.P, lone_cells, kc, lone)
            else:
                gather(b_block + pixels // NR * b_step + pixels % NR, NR, lone_cells, kc, lone)
            for panel in range(panel_from, panel_to):
                first = panel_start(b, panel)
                lone_tile(
                    weights + panel * kc * _MR, lone_cells, kc,
                    c + (first - oc_from) * ldc + pixels, ldc, accumulate, finish, shifts + (panel - panel_from) * _MR, bounds,
                    panel_start(b, panel + 1) - first, lone, unused,
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
    if o.itemsize == sizeof(float):
        conv2d_task(
            task, <const float*> o.input, <const float*> o.weight, <const float*> o.bias, <float> f.low, <float> f.high,
            <float*> o.output, <float*> o.pooled, o.indices, <float*> o.workspace + worker * b.elements, b, o.geometry,
            <vf*> NULL,
        )
    else:
        conv2d_task(
            task, <const double*> o.input, <const double*> o.weight, <const double*> o.bias, f.low, f.high,
            <double*> o.output, <double*> o.pooled, o.indices, <double*> o.workspace + worker * b.elements, b, o.geometry,
            <vd*> NULL,
        )


def conv2d(
    input, packed, bias, double act_min, double act_max, output, pooled, indices, workspace, geometry, int n_threads,
):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    cdef:
        Operands o = operands(input, packed, bias, output, pooled, indices, workspace, geometry)
        const int64_t* g = o.geometry
        Forward job
        Blocking* b = &job.blocking
    job.operands, job.low, job.high, job.blocking = &o, act_min, act_max, blocking(g, n_threads)
    b.paired = b.paired and o.indices == NULL and (
        is_finite(<const float*> o.bias, g[GEO_OC]) if o.itemsize == sizeof(float) else is_finite(<const double*> o.bias, g[GEO_OC])
    )
    with nogil:
        each_task(conv2d_entry, &job, g[GEO_N] * g[GEO_G] * b.strips * b.chunks, n_threads)


# ------------------------------------------------------------------------------- kernels: gradient of the input


cdef struct Transposed:
    Py_ssize_t CB, channel_blocks, tiles      # channels of a task, tasks of a group, tiles of MR (channel, tap) rows
    Py_ssize_t a_elements, b_elements, c_elements


cdef Transposed transposed(const Blocking* b, const int64_t* geometry) noexcept nogil:
    cdef Transposed t
    t.CB = max(_MR // max(b.T, 1), 1)
    t.channel_blocks = ceil_div(b.ICG, t.CB)
    t.tiles = ceil_div(t.CB * b.T, _MR)
    t.a_elements = geometry[GEO_G] * t.channel_blocks * t.tiles * b.OCG * _MR
    t.b_elements = max(b.OCG, 1) * _NV * VL_FLOAT
    t.c_elements = t.tiles * _MR * _NV * VL_FLOAT
    return t


def conv2d_grad_input_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: the transposed weight, and for each worker a panel of grad_output and its columns."""
    cdef:
        Blocking b = blocking(&geometry[0], 1)
        Transposed t = transposed(&b, &geometry[0])
    return t.a_elements + n_workers * (t.b_elements + t.c_elements)


cdef void transpose_weight_task(
    Py_ssize_t task,
    const real* weight,        # IN   (OC, ICG, KH, KW)
    real* transposed_weight,   # OUT  [G][channel block][tile][OCG][MR]
    const Blocking* b,
    const Transposed* t,
) noexcept nogil:
    # A task is one block of channels.
    cdef:
        Py_ssize_t g = task // t.channel_blocks, c_from = task % t.channel_blocks * t.CB, tile_index, oc, i, row
        Py_ssize_t rows = min(t.CB, b.ICG - c_from) * b.T
        real* target = transposed_weight + task * t.tiles * b.OCG * _MR
    for tile_index in range(t.tiles):
        for oc in range(b.OCG):
            for i in range(_MR):
                row = tile_index * _MR + i
                target[i] = weight[(g * b.OCG + oc) * b.K + c_from * b.T + row] if row < rows else 0
            target += _MR


cdef void conv2d_grad_input_task(
    Py_ssize_t task,
    const real* grad_output,         # IN
    const real* transposed_weight,   # IN
    const real* bias,                # IN   NULL for none
    real low,
    real high,
    real* grad_input,                # OUT
    real* scratch,                   # b_elements + c_elements
    const Blocking* b,
    const Transposed* t,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    # A task is one block of channels of one image: columns = weight^T @ grad_output, panel by panel, each summed in
    # place.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _NV * VL, G = geometry[GEO_G]
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], KW = geometry[GEO_KW]
        Py_ssize_t block = task % t.channel_blocks, g = task // t.channel_blocks % G, n = task // t.channel_blocks // G
        Py_ssize_t c_from = block * t.CB, channels = min(t.CB, b.ICG - block * t.CB), p_from, pixels, panel
        Py_ssize_t oc, c, tap, ih, iw, oh, ow, j
        const real* source = grad_output + (n * G + g) * b.OCG * b.P
        const real* a = transposed_weight + (g * t.channel_blocks + block) * t.tiles * b.OCG * _MR
        const real* row
        real* packed = scratch
        real* columns = scratch + t.b_elements
        real* planes = grad_input + ((n * G + g) * b.ICG + c_from) * IH * IW
        real shift

    if not geometry[GEO_ACCUMULATE]:
        memset(planes, 0, channels * IH * IW * sizeof(real))
    for panel in range(ceil_div(b.P, NR)):
        p_from = panel * NR
        pixels = min(b.P - p_from, NR)
        for oc in range(b.OCG):
            memcpy(packed + oc * NR, source + oc * b.P + p_from, pixels * sizeof(real))
            memset(packed + oc * NR + pixels, 0, (NR - pixels) * sizeof(real))
        for j in range(t.tiles):
            whole_tiles(
                a + j * b.OCG * _MR, packed, NR, 0, b.OCG, columns + j * _MR * NR, NR, False, KEEP, NULL, NULL, 1, 1, 0, NULL,
                unused,
            )
        for c in range(channels):
            for tap in range(b.T):
                row = columns + (c * b.T + tap) * NR
                for j in range(pixels):
                    oh = (p_from + j) // b.OW
                    ow = (p_from + j) % b.OW
                    ih = oh * geometry[GEO_STRIDE_H] - geometry[GEO_PAD_TOP] + tap // KW * geometry[GEO_DIL_H]
                    iw = ow * geometry[GEO_STRIDE_W] - geometry[GEO_PAD_LEFT] + tap % KW * geometry[GEO_DIL_W]
                    if 0 <= ih < IH and 0 <= iw < IW:
                        planes[(c * IH + ih) * IW + iw] += row[j]
    for c in range(channels):
        shift = bias[g * b.ICG + c_from + c] if bias != NULL else 0
        for j in range(c * IH * IW, (c + 1) * IH * IW):
            planes[j] = clamp(planes[j] + shift, low, high)


cdef struct GradInput:
    Py_ssize_t itemsize
    const void* grad_output
    const void* weight
    const void* bias
    double low, high
    void* grad_input
    void* workspace  # the turned weight, then a slice of each worker
    const Blocking* blocking
    const Transposed* transposed
    const int64_t* geometry


cdef void transpose_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const GradInput* d = <const GradInput*> job
    if d.itemsize == sizeof(float):
        transpose_weight_task(task, <const float*> d.weight, <float*> d.workspace, d.blocking, d.transposed)
    else:
        transpose_weight_task(task, <const double*> d.weight, <double*> d.workspace, d.blocking, d.transposed)


cdef void conv2d_grad_input_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const GradInput* d = <const GradInput*> job
        const Transposed* t = d.transposed
        Py_ssize_t scratch = t.a_elements + worker * (t.b_elements + t.c_elements)
    if d.itemsize == sizeof(float):
        conv2d_grad_input_task(
            task, <const float*> d.grad_output, <const float*> d.workspace, <const float*> d.bias, <float> d.low,
            <float> d.high, <float*> d.grad_input, <float*> d.workspace + scratch, d.blocking, t, d.geometry, <vf*> NULL,
        )
    else:
        conv2d_grad_input_task(
            task, <const double*> d.grad_output, <const double*> d.workspace, <const double*> d.bias, d.low,
            d.high, <double*> d.grad_input, <double*> d.workspace + scratch, d.blocking, t, d.geometry, <vd*> NULL,
        )


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
    cdef:
        const int64_t* g = &geometry[0]
        Blocking b = blocking(g, 1)
        Transposed t = transposed(&b, g)
        Py_ssize_t blocks = geometry[GEO_G] * t.channel_blocks
        GradInput job = GradInput(
            sizeof(real), start(grad_output), start(weight), start_of_row(bias), act_min, act_max,
            <void*> cells_of(grad_input, g[GEO_N], g[GEO_IC], g[GEO_IH], g[GEO_IW]), &workspace[0], &b, &t, g,
        )
    with nogil:
        each_task(transpose_weight_entry, &job, blocks, n_threads)
        each_task(conv2d_grad_input_entry, &job, geometry[GEO_N] * blocks, n_threads)


# ------------------------------------------------------------------------------ kernels: gradient of the weight

# grad_weight^T (K x OCG) = cols (K x P) @ grad_output^T (P x OCG), summed over images: vectors along filters, cells of
# the copied input broadcast from OUTER_MR places at once, so that no column is packed. Operands of a chunk of images are laid
# out (first driver); then each task owns a block of K rows and of filters and adds images and pixels in order. Flat 1x1
# problems read the input in place, as one row of P cells; images of few pixels are summed several at once.
cdef enum:
    # Pixels summed in registers before they are added to the block: a panel of filters stays in the first-level cache.
    # Planes of 7, 14, 28 and 56 divide into as many without a rest
    CHAIN_PIXELS = 392
    # Operands of a chunk stay in the third-level cache; more if the blocks of results are larger, which are read and
    # written for every chunk
    CHUNK_ELEMENTS = 1 << 20
    TASK_TILES = 8          # tiles of OUTER_MR rows of K in a task, and
    TASK_PANELS = 4         # panels of filters: its block of results stays in the first-level cache
    AHEAD = 8               # places to fetch from, in turns: a line is as many cells of float64, and OUTER_MR is no more
    FEW_TASKS = 4           # of fewer a task has one panel: first layers, of few channels, make work for several threads


cdef struct Outer:
    Py_ssize_t OH, OW                            # rows and columns of a plane: 1 and P of a flat one
    Py_ssize_t images, chunks                    # images of a chunk
    Py_ssize_t rows, row_width, x_elements       # copied rows of a channel, elements of all channels of a chunk
    Py_ssize_t filters, panels, y_elements       # filters of a group, filled to whole vectors; their panels
    Py_ssize_t task_panels, tile_blocks, panel_blocks, c_elements, kept_elements   # panels of a task


cdef Outer outer(const Blocking* b, const int64_t* geometry, Py_ssize_t VL) noexcept nogil:
    cdef:
        Outer o
        Py_ssize_t NR = _OUTER_NV * VL, N = geometry[GEO_N], G = geometry[GEO_G], x_image, y_image
    o.OH = 1 if b.flat else b.OH
    o.OW = b.P if b.flat else b.OW
    o.rows = (o.OH - 1) * b.row_step + (geometry[GEO_KH] - 1) * geometry[GEO_DIL_H] + 1
    o.row_width = b.P if b.flat else b.row_width
    o.filters = ceil_div(b.OCG, VL) * VL
    o.panels = ceil_div(o.filters, NR)
    o.tile_blocks = ceil_div(ceil_div(b.K, _OUTER_MR), TASK_TILES)
    o.task_panels = TASK_PANELS if G * o.tile_blocks >= FEW_TASKS else 1
    o.panel_blocks = ceil_div(o.panels, o.task_panels)
    o.c_elements = TASK_TILES * _OUTER_MR * o.task_panels * NR
    o.kept_elements = G * o.tile_blocks * o.panel_blocks * o.c_elements
    x_image = geometry[GEO_IC] * o.rows * o.row_width
    y_image = G * b.P * o.filters
    o.images = max(min(max(CHUNK_ELEMENTS, o.kept_elements) // max(x_image + y_image, 1), N), 1)
    o.chunks = ceil_div(N, o.images)
    o.images = ceil_div(N, max(o.chunks, 1))
    o.x_elements = 0 if b.flat else o.images * x_image
    o.y_elements = o.images * y_image
    if o.chunks <= 1:
        o.kept_elements = 0
    return o


def conv2d_grad_weight_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: the copied input and grad_output with filters last, of a chunk; blocks of results."""
    cdef:
        Blocking b = blocking(&geometry[0], 1)
        Outer o
        Py_ssize_t most = 0, i
        Py_ssize_t[2] lengths = [VL_FLOAT, _VL_DOUBLE]
    for i in range(2):  # chunks of the two are of different sizes
        o = outer(&b, &geometry[0], lengths[i])
        most = max(most, o.x_elements + o.y_elements + o.kept_elements + n_workers * o.c_elements)
    return most


cdef void lay_out_task(
    Py_ssize_t task,
    const real* input,            # IN   first image of the chunk
    const real* grad_output,      # IN   the same
    real* copied,                 # OUT  [images][IC][rows][phases][phase_width]
    real* turned,                 # OUT  [images][G][panel][P][NR or what is left]
    Py_ssize_t images,
    const Blocking* b,
    const Outer* o,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    # The first images * IC tasks copy a channel (of flat problems there are none), the others turn one panel of filters of
    # one image: 4 (or 2) pixels of VL filters at once.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _OUTER_NV * VL, quad = 16 // sizeof(real)
        Py_ssize_t copies = 0 if b.flat else images * geometry[GEO_IC]
        Py_ssize_t image, panel, width, p, j, vector, first, filters, square, squares
        vec[4] z
        const real* source
        real* target
    if task < copies:
        copy_rows(
            input + task * geometry[GEO_IH] * geometry[GEO_IW], copied + task * o.rows * o.row_width, b, geometry,
            -geometry[GEO_PAD_TOP], o.rows, unused,
        )
        return
    image = (task - copies) // o.panels  # n * G + g
    panel = (task - copies) % o.panels
    width = min(o.filters - panel * NR, NR)
    for vector in range(width // VL):
        first = vector * VL
        filters = min(b.OCG - panel * NR - first, VL)
        source = grad_output + (image * b.OCG + panel * NR + first) * b.P
        target = turned + image * b.P * o.filters + panel * NR * b.P + first
        squares = b.P // quad if filters == VL else 0
        for square in range(squares):
            p = square * quad
            for j in range(quad):
                load_lanes(&z[j], source + p + j * b.P, quad * b.P)
            transpose(&z[0])
            for j in range(quad):
                (<vec*> (target + (p + j) * width))[0] = z[j]
        for p in range(squares * quad, b.P):
            for j in range(VL):
                target[p * width + j] = source[j * b.P + p] if j < filters else 0


cdef inline void outer_row(
    const real** at,          # IN   OUTER_MR places, from which
    Py_ssize_t column,        # ... cells are read from this one
    Py_ssize_t end,           # ... up to, not including, this one: at least one
    const real** ahead,       # IN   AHEAD places that the next tile reads
    const real* y,            # IN   [columns][nv * VL] filters
    vec* acc,                 # INOUT [OUTER_MR][OUTER_NV]
    const int nv,             # a constant at each call
) noexcept nogil:
    # Registers as in `tile_sums`, and OUTER_MR places that one index moves from, a cell a step. OUTER_MR rows are too many for
    # the hardware to fetch ahead: each step fetches a line of one of the next tile's.
    cdef Py_ssize_t k, VL = sizeof(vec) // sizeof(real)
    while True:
        for k in range(AHEAD):
            prefetch(ahead[k] + column)
            add_outer(acc, at, column + k, y + k * nv * VL, _OUTER_MR, nv, _OUTER_NV)
            if column + k + 1 == end:
                return
        y += AHEAD * nv * VL
        column += AHEAD


cdef void outer_tile(
    const real** cells,       # IN   OUTER_MR places in the copied input: the first pixel's cell of OUTER_MR rows of K
    const real** ahead,       # IN   AHEAD places that the next tile reads
    const real* y,            # IN   [rows * columns][nv * VL] filters, y_step apart from row to row
    Py_ssize_t images,
    Py_ssize_t rows,
    Py_ssize_t columns,
    Py_ssize_t x_image,       # from one image to the next
    Py_ssize_t x_step,        # from one row of cells to the next
    Py_ssize_t y_image,
    Py_ssize_t y_step,
    real* c,                  # IN/OUT  OUTER_MR rows of filters, ldc apart
    Py_ssize_t ldc,
    int nv,                   # a constant at each call
    vec* unused,
) noexcept nogil:
    cdef:
        vec[_OUTER_MR * _OUTER_NV] acc
        const real* at[_OUTER_MR]
        Py_ssize_t image, row, i, j, moved, VL = sizeof(vec) // sizeof(real)
    for i in range(_OUTER_MR):
        at[i] = cells[i]
        for j in range(nv):
            fill(&acc[i * _OUTER_NV + j], <real> 0)
    for image in range(images):
        for row in range(rows):
            moved = image * x_image + row * x_step
            outer_row(at, moved, moved + columns, ahead, y + image * y_image + row * y_step, &acc[0], nv)
    for i in range(_OUTER_MR):
        for j in range(nv):
            (<vec*> (c + i * ldc + j * VL))[0] = (<vec*> (c + i * ldc + j * VL))[0] + acc[i * _OUTER_NV + j]


cdef void conv2d_grad_weight_task(
    Py_ssize_t task,
    const real* copied,                # IN
    const real* turned,                # IN
    real* grad_weight,                 # OUT
    real* block,                       # IN/OUT  c_elements
    Py_ssize_t chunk_images,
    bint begin,                        # nothing is in the block yet
    bint end,                          # of the sum
    const Blocking* b,
    const Outer* o,
    const int64_t* geometry,
    vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), NR = _OUTER_NV * VL, G = geometry[GEO_G], IC = geometry[GEO_IC]
        Py_ssize_t KW = geometry[GEO_KW], stride_w = geometry[GEO_STRIDE_W], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t panel_from = task % o.panel_blocks * o.task_panels
        Py_ssize_t k_from = task // o.panel_blocks % o.tile_blocks * TASK_TILES * _OUTER_MR
        Py_ssize_t g = task // o.panel_blocks // o.tile_blocks
        Py_ssize_t panel_to = min(panel_from + o.task_panels, o.panels), rows_of_k = min(TASK_TILES * _OUTER_MR, b.K - k_from)
        Py_ssize_t ldc = o.task_panels * NR, tall = max(CHAIN_PIXELS // max(o.OW, 1), 1), wide = max(min(o.OW, CHAIN_PIXELS), 1)
        Py_ssize_t many = max(CHAIN_PIXELS // max(b.P, 1), 1), x_image = IC * o.rows * o.row_width, y_image = G * b.P * o.filters
        Py_ssize_t block_of_images, row_block, column_block, n, images, oh, ow, rows, columns, panel, width, y_step
        Py_ssize_t tile_index, i, k, tap, x_step = b.row_step * o.row_width
        const real* x
        const real* y
        const real* cells[_OUTER_MR]
        const real* ahead[AHEAD]
        Py_ssize_t[TASK_TILES * _OUTER_MR] places   # of each row's first cell in an image
        real* c

    if begin:
        memset(block, 0, o.c_elements * sizeof(real))
    for i in range(TASK_TILES * _OUTER_MR):
        k = k_from + min(i, rows_of_k - 1)    # past the end: the last row again
        tap = k % b.T
        places[i] = (k // b.T * o.rows + tap // KW * geometry[GEO_DIL_H]) * o.row_width
        places[i] += tap % KW * dil_w % stride_w * b.phase_width + tap % KW * dil_w // stride_w
    for block_of_images in range(ceil_div(chunk_images, many)):
        n = block_of_images * many
        images = min(many, chunk_images - n)
        x = copied + (n * IC + g * b.ICG) * o.rows * o.row_width
        for row_block in range(ceil_div(o.OH, tall)):                            # blocks of rows
            oh = row_block * tall
            rows = min(tall, o.OH - oh)
            for column_block in range(ceil_div(o.OW, wide)):                     # blocks of columns
                ow = column_block * wide
                columns = min(wide, o.OW - ow)
                for panel in range(panel_from, panel_to):                        # panels of filters
                    width = min(o.filters - panel * NR, NR)
                    y = turned + (n * G + g) * b.P * o.filters + panel * NR * b.P + (oh * o.OW + ow) * width
                    y_step = o.OW * width
                    for tile_index in range(ceil_div(rows_of_k, _OUTER_MR)):           # tiles of OUTER_MR rows of K
                        for i in range(_OUTER_MR):
                            cells[i] = x + places[tile_index * _OUTER_MR + i] + oh * x_step + ow
                        for i in range(AHEAD):
                            k = min((tile_index + 1) * _OUTER_MR + i % _OUTER_MR, TASK_TILES * _OUTER_MR - 1)
                            ahead[i] = x + places[k] + oh * x_step + ow
                        c = block + tile_index * _OUTER_MR * ldc + (panel - panel_from) * NR
                        if width == NR:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, _OUTER_NV, unused
                            )
                        elif width == VL:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, 1, unused
                            )
                        else:
                            outer_tile(
                                cells, ahead, y, images, rows, columns, x_image, x_step, y_image, y_step, c, ldc, 2, unused
                            )
    if not end or b.T == 0:
        return
    if geometry[GEO_TURNED] != 0:
        for i in range(rows_of_k):
            k = g * b.K + k_from + i
            c = grad_weight + (k // b.T * b.OCG + panel_from * NR) * b.T + b.T - 1 - k % b.T
            for n in range(min(panel_to * NR, b.OCG) - panel_from * NR):
                c[n * b.T] = block[i * ldc + n] + (c[n * b.T] if geometry[GEO_ACCUMULATE] != 0 else 0)
        return
    store_filters(
        <const real*> block, grad_weight + (g * b.OCG + panel_from * NR) * b.K + k_from, rows_of_k,
        min(panel_to * NR, b.OCG) - panel_from * NR, ldc, b.K, geometry[GEO_ACCUMULATE] != 0, unused,
    )


cdef struct GradWeight:
    Py_ssize_t itemsize
    const void* input        # of the chunk of images
    const void* grad_output
    void* copied             # both of them laid out
    void* turned
    void* kept               # blocks of all tasks, or one of each worker
    void* grad_weight
    Py_ssize_t images
    bint begin, end          # of the sum
    const Blocking* blocking
    const Outer* outer
    const int64_t* geometry


cdef void lay_out_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const GradWeight* d = <const GradWeight*> job
    if d.itemsize == sizeof(float):
        lay_out_task(
            task, <const float*> d.input, <const float*> d.grad_output, <float*> d.copied, <float*> d.turned, d.images,
            d.blocking, d.outer, d.geometry, <vf*> NULL,
        )
    else:
        lay_out_task(
            task, <const double*> d.input, <const double*> d.grad_output, <double*> d.copied, <double*> d.turned, d.images,
            d.blocking, d.outer, d.geometry, <vd*> NULL,
        )


cdef void conv2d_grad_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const GradWeight* d = <const GradWeight*> job
        const void* cells = d.input if d.blocking.flat else d.copied
        Py_ssize_t block = (task if d.outer.kept_elements else worker) * d.outer.c_elements
    if d.itemsize == sizeof(float):
        conv2d_grad_weight_task(
            task, <const float*> cells, <const float*> d.turned, <float*> d.grad_weight, <float*> d.kept + block, d.images,
            d.begin, d.end, d.blocking, d.outer, d.geometry, <vf*> NULL,
        )
    else:
        conv2d_grad_weight_task(
            task, <const double*> cells, <const double*> d.turned, <double*> d.grad_weight, <double*> d.kept + block, d.images,
            d.begin, d.end, d.blocking, d.outer, d.geometry, <vd*> NULL,
        )


def conv2d_grad_weight(
    const real[:, :, :, ::1] input,
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_weight,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), turned (IC, OCG, KH, KW), added to what is there if accumulate."""
    cdef:
        Blocking b = blocking(&geometry[0], 1)
        Outer o = outer(&b, &geometry[0], VL_FLOAT if real is float else _VL_DOUBLE)
        Py_ssize_t chunk, copies = 0 if b.flat else geometry[GEO_IC]
        const real* x = start(input)
        const real* dy = start(grad_output)
        real* copied = &workspace[0]
        real* turned = copied + o.x_elements
        GradWeight job = GradWeight(
            sizeof(real), x, dy, copied, turned, turned + o.y_elements, <void*> start(grad_weight), 0, True, True, &b, &o,
            &geometry[0],
        )
    for chunk in range(max(o.chunks, 1)):  # none of an empty batch: its sums are 0
        job.images = min(o.images, geometry[GEO_N] - chunk * o.images)
        job.begin, job.end = chunk == 0, chunk >= o.chunks - 1
        with nogil:
            each_task(lay_out_entry, &job, job.images * (copies + geometry[GEO_G] * o.panels), n_threads)
            each_task(
                conv2d_grad_weight_entry, &job, geometry[GEO_G] * o.tile_blocks * o.panel_blocks, n_threads
            )
        x += job.images * geometry[GEO_IC] * geometry[GEO_IH] * geometry[GEO_IW]
        dy += job.images * geometry[GEO_OC] * b.P
        job.input, job.grad_output = x, dy
