"""The winograd kernels, on every engine, and the algorithm above them."""

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import convolution
import fastconv as fc
import oracle
from conftest import Guarded
from fastconv import _plan
from fastconv._algorithms import winograd
from fastconv._problem import WINOGRAD_POINTS, ConvProblem
from fastconv._reference.winograd import _matrices
from problems import BY_NAME, CASES, Conv, integers, normals, solved
from tolerance import (
    ZERO_MEAN,
    assert_same,
    assert_within,
    winograd_bound,
    winograd_factor,
    winograd_grad_weight_bound,
)  # fmt: skip

STEM = "winograd"
TILES = tuple(WINOGRAD_POINTS)
tiles = pytest.mark.parametrize("tile", TILES)

# Beside the common problems: planes of one tile, one cell less and more; many tiles, cut into blocks of rows and
# columns; more tiles than one chunk of images holds; channels and filters about whole vectors.
OWN = [
    *(Conv(f"plane-{n}x{m}", 1, 3, n, m, 5, 3, 3, padding=1) for n, m in ((1, 2), (3, 4), (5, 6), (7, 8), (11, 13))),
    Conv("rows-of-blocks", 1, 3, 45, 47, 4, 3, 3, padding=1, double=True),
    Conv("columns-of-blocks", 1, 2, 5, 230, 3, 3, 3, padding=((1, 1), (0, 2))),
    Conv("deep-blocks", 1, 131, 30, 61, 3, 3, 3, padding=1),
    Conv("many-filters", 1, 3, 22, 21, 135, 3, 3),
    Conv("chunks-of-images", 9, 2, 13, 15, 7, 3, 3, padding=1),
    Conv("groups-of-blocks", 2, 6, 41, 45, 8, 3, 3, padding=1, groups=2),
    *(Conv(f"channels-{n}", 1, n, 6, 7, n + 1, 3, 3, padding=1, double=n in (9, 17)) for n in (7, 9, 15, 16, 17, 33)),
    # Few channels: squares of 4 columns and 1, 2 or 4 rows of tiles, one pixel less and more; filters in pairs or fours
    *(Conv(f"squares-{n}x{m}", 1, c, n, m, f, 3, 3, padding=1, double=c in (1, 4))
      for n, m, c, f in ((15, 16, 1, 4), (16, 17, 3, 3), (17, 15, 4, 5), (33, 32, 2, 2), (32, 31, 3, 9))),
    Conv("squares-unpadded", 2, 3, 22, 38, 6, 3, 3, double=True),
    Conv("squares-crop", 1, 2, 37, 20, 3, 3, 3, padding=((-1, 3), (0, -2))),
    Conv("squares-groups", 2, 12, 18, 18, 10, 3, 3, padding=(2, 1), groups=2),
    Conv("squares-in-blocks-of-columns", 1, 4, 9, 830, 3, 3, 3, padding=1, double=True),
]  # fmt: skip
# Wider kernels: the same edges, extents that leave the phases of a stride one row or column more and less; phases of few
# channels, which share vectors, and of more.
WIDE = [
    *(Conv(f"five-{n}x{m}", 1, 3, n, m, 5, 5, 5, padding=2, double=n == 4) for n, m in ((1, 2), (2, 3), (4, 5), (9, 12))),
    Conv("five-rows-of-blocks", 1, 3, 31, 47, 4, 5, 5, padding=2),
    Conv("five-columns-of-blocks", 1, 2, 6, 120, 3, 5, 5, padding=((1, 1), (0, 2)), double=True),
    Conv("five-groups", 2, 6, 23, 25, 8, 5, 5, padding=2, groups=2),
    Conv("five-channels-17", 1, 17, 6, 7, 18, 5, 5, padding=1),
    Conv("five-crop", 1, 2, 12, 13, 3, 5, 5, padding=-1),
    *(Conv(f"strided-{n}x{m}", 1, 3, n, m, 5, 5, 5, stride=2, padding=2, double=n == 7)
      for n, m in ((1, 2), (3, 4), (7, 8), (8, 9), (17, 20))),
    Conv("strided-unpadded", 2, 4, 14, 15, 3, 5, 5, stride=2),
    Conv("strided-rows-of-blocks", 1, 3, 85, 95, 4, 5, 5, stride=2, padding=1),
    Conv("strided-columns-of-blocks", 1, 2, 9, 460, 3, 5, 5, stride=2, padding=((1, 3), (0, 2))),
    Conv("strided-deep", 1, 33, 61, 91, 3, 5, 5, stride=2, padding=2),
    Conv("strided-images", 9, 2, 23, 25, 7, 5, 5, stride=2, padding=(3, 1)),
    Conv("strided-groups", 2, 6, 81, 85, 8, 5, 5, stride=2, padding=2, groups=2),
    Conv("strided-channels-17", 1, 17, 12, 13, 18, 5, 5, stride=2, padding=2),
    Conv("strided-crop", 1, 2, 17, 18, 3, 5, 5, stride=2, padding=-1, double=True),
    Conv("strided-empty", 0, 2, 17, 18, 3, 5, 5, stride=2),
    Conv("strided-no-channels", 1, 0, 17, 18, 3, 5, 5, stride=2),
    Conv("wide-6-by-2", 2, 3, 15, 18, 9, 6, 6, stride=2, padding=2, double=True),
    Conv("wide-7-by-3", 1, 9, 40, 43, 5, 7, 7, stride=3, padding=3),
    Conv("wide-8-by-3", 1, 5, 41, 38, 6, 8, 8, stride=3, padding=(0, 4), double=True),
    Conv("wide-9-by-3", 1, 2, 20, 22, 5, 9, 9, stride=3, padding=9),
    Conv("wide-10-by-4", 1, 1, 31, 29, 3, 10, 10, stride=4),
    Conv("wide-11-by-4", 2, 3, 43, 47, 9, 11, 11, stride=4, padding=2, double=True),
    Conv("wide-12-by-4", 1, 17, 30, 31, 4, 12, 12, stride=4, padding=((5, 0), (2, 3))),
    Conv("wide-groups-11-by-4", 1, 6, 60, 180, 8, 11, 11, stride=4, padding=2, groups=2),
    Conv("wide-crop-11-by-4", 1, 7, 40, 41, 3, 11, 11, stride=4, padding=-3),
]  # fmt: skip
FITTING = [case for case in CASES if winograd.refusal(case.problem(), "forward") is None] + OWN
FITTING_WIDE = [case for case in CASES if winograd.WIDE.refusal(case.problem(), "forward") is None] + WIDE
NAMED = {case.name: case for case in FITTING + FITTING_WIDE}


def tiles_of(case):
    return TILES if case.KH == 3 else (winograd.tile_of_wide(case.problem()),)


def with_tiles(*names):
    return pytest.mark.parametrize(("name", "tile"), [(name, tile) for name in names for tile in tiles_of(NAMED[name])])


RUNS = [
    (case, dtype, tile)
    for case in FITTING + FITTING_WIDE
    for dtype in ("float32", "float64")[: 1 + case.double]
    for tile in tiles_of(case)
]


def exact_conv(problem, x, w):
    pads = (problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right)
    return oracle.conv2d(x, w, (problem.stride_h, problem.stride_w), pads, groups=problem.G)


@functools.cache
def data_of(case, dtype):
    """x, w and the exact result, of integers and of zero-mean random data."""
    problem = case.problem(dtype)
    found = {}
    for make in (integers, normals):
        x, w = make(problem.input_shape, dtype, 21), make(problem.weight_shape, dtype, 22)
        found[make.__name__] = x, w, exact_conv(problem, x, w)
    return found


@pytest.mark.parametrize(("tile", "taps"), [*((tile, 3) for tile in TILES), (2, 5)])
def test_matrices_are_exact(tile, taps):
    """The identity that the algorithm rests on, for every pair of unit vectors; and what floats must hold."""
    a_t, g, b_t = _matrices(tile, taps)
    T = tile + taps - 1
    for k, p in itertools.product(range(taps), range(T)):
        for i in range(tile):
            value = sum(a_t[i][xi] * g[xi][k] * b_t[xi][p] for xi in range(T))
            assert value == Fraction(p == i + k)
    for cell in itertools.chain(*a_t, *b_t):
        assert float(np.float32(float(cell))) == cell, "a coefficient of the image's is not exact"


def test_points_are_one_set(engine):
    if engine.backend == "reference":
        pytest.skip("the reference reads them")
    assert engine.k.winograd.POINTS == WINOGRAD_POINTS


def test_automatic_tiles_are_within_twice_the_bound_of_four():
    assert max(map(winograd_factor, winograd.CHOICES)) <= 2 * winograd_factor(4) < winograd_factor(6)
    for case in WIDE:
        problem = case.problem()
        taps = -(-problem.KH // problem.stride_h)
        assert winograd_factor(winograd.tile_of_wide(problem), taps) <= 2 * winograd_factor(4)


@pytest.mark.parametrize(
    ("case", "dtype", "tile"), RUNS, ids=[f"{case.name}-{dtype}-{tile}" for case, dtype, tile in RUNS]
)
def test_against_scipy(engine, case, dtype, tile):
    problem, what = case.problem(dtype), f"{engine.name} F({tile}) {case.name}"
    x, w, exact = data_of(case, dtype)["integers"]
    actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
    if tile == 2 and case.KH == 3:
        assert_same(actual, exact.astype(dtype), what)
    assert_within(actual, exact, winograd_bound(problem, tile, x, w), what)
    x, w, exact = data_of(case, dtype)["normals"]
    actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
    assert_within(actual, exact, winograd_bound(problem, tile, x, w), what)
    assert_within(actual, exact, winograd_bound(problem, tile, x, w, ZERO_MEAN), f"{what} (zero-mean)")


@st.composite
def fitting(draw, K=3, stride=1):
    groups, small = draw(st.sampled_from((1, 1, 2, 3))), st.integers(1, 9)
    pads, extents = [], []
    for _ in "hw":
        extent, before = draw(st.integers(1, 30)), draw(st.integers(-2, 5))
        least = max(K - extent - before, -2)
        extents.append(extent)
        pads.append((before, draw(st.integers(least, max(least, 5)))))
    return Conv("random", draw(st.integers(0, 3)), groups * draw(small), *extents, groups * draw(small), K, K,
                stride, tuple(pads), 1, groups)  # fmt: skip


@given(case=fitting())
def test_any_geometry(engine, case):
    problem = case.problem()
    x, w = integers(problem.input_shape, "float32", 1), integers(problem.weight_shape, "float32", 2)
    exact = exact_conv(problem, x, w)
    assert_same(convolution.conv2d(engine, STEM, problem, x, w, tile=2), exact.astype("float32"), f"F(2) {case}")
    for tile in (4, 6):
        actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
        assert_within(actual, exact, winograd_bound(problem, tile, x, w), f"F({tile}) {case}")


@given(case=st.sampled_from(((5, 1), (5, 2), (6, 2), (7, 3), (9, 3), (11, 4))).flatmap(lambda each: fitting(*each)))
def test_any_geometry_of_wide(engine, case):
    problem, (tile,) = case.problem(), tiles_of(case)
    x, w = integers(problem.input_shape, "float32", 1), integers(problem.weight_shape, "float32", 2)
    actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
    assert_within(actual, exact_conv(problem, x, w), winograd_bound(problem, tile, x, w), f"{case}")


@pytest.mark.parametrize("name", ["article", "groups2", "rows-9", "batch-empty", "no-channels", "crop"])
def test_epilogue(engine, name, dtype):
    convolution.check_forward_epilogue(engine, STEM, BY_NAME[name], dtype, tile=2)


@with_tiles("article", "same-3x3", "groups2", "channels-17", "rows-of-blocks", "squares-17x15", "squares-unpadded",
            "five-rows-of-blocks", "strided-groups")  # fmt: skip
def test_epilogue_rounding(engine, name, tile, dtype):
    """Bias, accumulate and clamp on whole and partial tiles: each adds a rounding."""
    problem = NAMED[name].problem(dtype)
    x, w, exact = data_of(NAMED[name], dtype)["normals"]
    bias, start = normals((problem.OC,), dtype, 3), normals(problem.output_shape, dtype, 4)
    actual = convolution.conv2d(engine, STEM, problem, x, w, bias, start, (-2.0, 3.0), tile=tile)
    terms = abs(exact) + abs(bias)[:, None, None] + abs(start)
    limit = winograd_bound(problem, tile, x, w) + 3 * float(np.finfo(dtype).eps) * terms
    assert_within(actual, np.clip(exact + bias[:, None, None] + start, -2, 3), limit, f"{engine.name} F({tile})")


POOLS = [
    ("article", (2, 2), (2, 2), (0, 0)),
    ("same-3x3", (3, 3), (2, 2), (1, 1)),
    ("plane-14x14", (2, 3), (3, 1), (0, 1)),
    ("groups2", (2, 2), (2, 2), (0, 0)),
    ("four-sides", (3, 2), (1, 2), (1, 0)),
]


@pytest.mark.parametrize("indices", [True, False])
@pytest.mark.parametrize(("name", "window", "stride", "pads"), POOLS)
def test_fused_pool(engine, name, window, stride, pads, indices, dtype):
    convolution.check_fused_pool(engine, STEM, BY_NAME[name], dtype, window, stride, pads, indices, tile=2)


@with_tiles(
    "rows-of-blocks", "columns-of-blocks", "groups-of-blocks", "plane-7x8", "squares-17x15", "five-rows-of-blocks",
    "strided-groups",
)  # fmt: skip
@pytest.mark.parametrize("window", [2, 3, 5])
def test_fused_pool_of_blocks(engine, name, window, tile):
    problem = NAMED[name].problem()
    x, w, exact = data_of(NAMED[name], "float32")["normals"]
    geometry, extents = convolution.pool_geometry(problem, (window, window), (2, 2), (1, 1), tile=tile)
    shape, none = (problem.N, problem.OC, *extents), np.zeros((0, 0, 0, 0), "float32")
    packed = convolution.weight_of(engine, STEM, w, problem, tile=tile)
    results = []
    for n_threads in (1, 2):
        pooled, indices = Guarded(shape, "float32"), Guarded(shape, np.int64)
        engine.run(STEM, "conv2d", x, packed, np.zeros(0, "float32"), -math.inf, math.inf, none, pooled.array,
                   indices.array, geometry=geometry, n_threads=n_threads)  # fmt: skip
        pooled.check("pooled")
        indices.check("indices")
        results.append((pooled.array, indices.array))
    (values, where), (again, where_again) = results
    assert_same(again, values)
    assert_same(where_again, where)
    # Blocks start at other rows here than without a pool: the largest bound of all holds for each
    limit = winograd_bound(problem, tile, np.full_like(x, abs(x).max()), w).max()
    best, _ = oracle.max_pool2d(exact, (window, window), (2, 2), (1, 1, 1, 1), (1, 1), extents)
    assert_within(values, best, limit, f"{engine.name} F({tile}) pooled")
    found = np.take_along_axis(exact.reshape(*shape[:2], -1), where.reshape(*shape[:2], -1), 2).reshape(shape)
    assert_within(found.astype("float32"), best, 2 * limit, f"{engine.name} F({tile}) indices")


@pytest.mark.parametrize("name", ["rows-of-blocks", "groups-of-blocks", *(c.name for c in OWN if "squares" in c.name)])
@pytest.mark.parametrize("spoilt", [False, True])
def test_windows_within_tiles(engine, name, spoilt):
    """A pool of 2 x 2 without indices: the maxima of the very results that there are without it, and NaN where one is."""
    problem = NAMED[name].problem()
    x, w, _ = data_of(NAMED[name], "float32")["normals"]
    bias, (low, high) = normals((problem.OC,), "float32", 3), (-0.5, 3.0)
    if spoilt:
        x = x.copy()
        spots = x.reshape(-1)[:: x.size // 5]
        spots[:] = np.resize((np.nan, np.inf, -np.inf), spots.size)
        bias[0] = np.inf  # which with a sum of -Inf is NaN, too
    with np.errstate(invalid="ignore"):
        maps = convolution.conv2d(engine, STEM, problem, x, w, bias, None, (low, high), tile=4)
    geometry, extents = convolution.pool_geometry(problem, (2, 2), (2, 2), tile=4)
    expected, _ = oracle.max_pool2d(maps, (2, 2), (2, 2), (0, 0, 0, 0), (1, 1), extents)
    packed = convolution.weight_of(engine, STEM, w, problem, tile=4)
    none, no_indices = np.zeros((0, 0, 0, 0), "float32"), np.zeros((0, 0, 0, 0), np.int64)
    for n_threads in (1, 2):
        pooled = Guarded((problem.N, problem.OC, *extents), "float32")
        with np.errstate(invalid="ignore"):
            engine.run(STEM, "conv2d", x, packed, bias, low, high, none, pooled.array, no_indices, geometry=geometry,
                       n_threads=n_threads)  # fmt: skip
        pooled.check("pooled")
        assert_same(pooled.array, expected.astype("float32"), f"{engine.name} {name} on {n_threads} threads")


@with_tiles("same-3x3", "four-sides", "groups2", "channels-9", "crop", "squares-33x32", "five-9x12", "strided-8x9", "strided-crop",
            "wide-11-by-4", "wide-7-by-3")  # fmt: skip
def test_non_finite(engine, name, tile):
    """NaN and Inf appear exactly where the definition puts them."""
    problem = NAMED[name].problem()
    x, w, _ = data_of(NAMED[name], "float32")["integers"]
    for value, spot in itertools.product((np.nan, np.inf, -np.inf), "xw"):
        changed = {"x": x.copy(), "w": w.copy()}
        flat = changed[spot].reshape(-1)
        flat[[0, flat.size // 2, flat.size - 1]] = value
        with np.errstate(invalid="ignore"):
            exact = convolution.definition(problem, *changed.values(), np.zeros(problem.output_shape))["conv"]
            actual = convolution.conv2d(engine, STEM, problem, *changed.values(), tile=tile)
        what = f"{engine.name} F({tile}) with {value} in {spot}"
        assert_same(convolution._pattern(actual), convolution._pattern(exact), what)
        finite = np.isfinite(exact)
        limit = winograd_bound(problem, tile, *map(np.nan_to_num, changed.values()))
        assert_within(actual[finite], exact[finite], np.minimum(limit, 1e30)[finite], what)


HARD = {
    "large mean": lambda x: x + x.dtype.type(1e4),
    "one huge pixel": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size // 2, x.dtype.type(1e6), x),
    "tiny": lambda x: x * x.dtype.type(1e-30),
    "subnormal": lambda x: x * x.dtype.type(1e-41 if x.itemsize == 4 else 1e-320),
    "large": lambda x: x * x.dtype.type(1e30),
    "zeros": np.zeros_like,
}


@pytest.mark.parametrize("kind", HARD)
@with_tiles("article", "plane-11x13", "channels-17", "five-channels-17", "strided-17x20", "wide-11-by-4")
def test_hard_data(engine, name, kind, tile, dtype):
    problem = NAMED[name].problem(dtype)
    x, w, _ = data_of(NAMED[name], dtype)["normals"]
    x = HARD[kind](x)
    actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
    assert_within(actual, exact_conv(problem, x, w), winograd_bound(problem, tile, x, w), f"{engine.name} F({tile})")


@with_tiles("article", "squares-17x15", "five-9x12", "strided-17x20")
def test_a_transform_that_overflows_is_computed_again(engine, name, tile):
    """Data near the largest float whose convolution is finite: exact to the last bit of a sum of products."""
    problem = NAMED[name].problem()
    x, w, _ = data_of(NAMED[name], "float32")["normals"]
    x = np.sign(x) * np.float32(2.0**127)
    w = np.sign(w) * np.float32(2.0**-7)
    actual = convolution.conv2d(engine, STEM, problem, x, w, tile=tile)
    assert_same(actual, exact_conv(problem, x, w).astype("float32"), f"{engine.name} F({tile})")


@with_tiles("article", "plane-14x14", "batch5", "groups2", "chunks-of-images", "rows-of-blocks", "many-filters",
            "squares-33x32", "squares-groups",
            "columns-of-blocks", "five-columns-of-blocks", "strided-images", "strided-rows-of-blocks", "wide-11-by-4",
            "wide-groups-11-by-4")  # fmt: skip
def test_threads_do_not_change_bits(engine, name, tile):
    problem = NAMED[name].problem()
    x, w, _ = data_of(NAMED[name], "float32")["normals"]
    packed = [convolution.weight_of(engine, STEM, w, problem, n, tile) for n in (1, 2, 3)]
    results = [convolution.conv2d(engine, STEM, problem, x, w, n_threads=n, tile=tile) for n in (1, 2, 3)]
    for n in (1, 2):
        assert_same(packed[n], packed[0], f"{engine.name} F({tile}): weight packed on {n + 1} threads")
        assert_same(results[n], results[0], f"{engine.name} F({tile}) on {n + 1} threads")


# ------------------------------------------------------------------------------------- the gradient of the weight

# More than one chunk: of images, of rows, of the rows of a group; and blocks of D about whole ones
GRADIENTS = [
    *(BY_NAME[name] for name in ("article", "same-3x3", "four-sides", "crop", "groups2", "batch5", "rows-1", "tall",
                                 "padding-beyond-kernel", "batch-empty", "no-channels", "no-filters", "no-rows")),
    *(NAMED[name] for name in ("plane-1x2", "plane-5x6", "deep-blocks", "many-filters", "channels-9", "channels-17")),
    Conv("rows-of-chunks", 1, 3, 150, 149, 4, 3, 3, padding=1),
    Conv("images-of-chunks", 13, 2, 41, 39, 3, 3, 3, padding=1),
    Conv("groups-of-chunks", 2, 4, 95, 101, 2, 3, 3, padding=(0, 2), groups=2, double=True),
    *(Conv(f"blocks-{n}", 1, n, 5, 4, n + 9, 3, 3, padding=1) for n in (23, 24, 25)),
    *(Conv(f"blocks-{n}", 1, n, 5, 4, n + 16, 3, 3, padding=1, double=n == 49) for n in (47, 48, 49)),  # with AVX-512 2 x 2
]  # fmt: skip
GRADIENT_RUNS = [(case, "float32") for case in GRADIENTS] + [(c, "float64") for c in GRADIENTS if c.double]


@pytest.mark.parametrize(("case", "dtype"), GRADIENT_RUNS, ids=[f"{c.name}-{dtype}" for c, dtype in GRADIENT_RUNS])
@tiles
def test_grad_weight_against_scipy(engine, case, dtype, tile):
    problem, what = case.problem(dtype), f"{engine.name} F({tile}) grad_weight {case.name}"
    data = solved(case, dtype, "integers")
    actual = convolution.grad_weight(engine, STEM, problem, data["x"], data["grad_output"], tile=tile)
    if tile == 2:
        assert_same(actual, data["grad_weight"].astype(dtype), what)
    limit = winograd_grad_weight_bound(problem, tile, data["x"], data["grad_output"])
    assert_within(actual, data["grad_weight"], limit, what)
    data = solved(case, dtype, "normals")
    for roundings in (None, ZERO_MEAN):
        actual = convolution.grad_weight(engine, STEM, problem, data["x"], data["grad_output"], tile=tile)
        limit = winograd_grad_weight_bound(problem, tile, data["x"], data["grad_output"], roundings)
        assert_within(actual, data["grad_weight"], limit, what)


@pytest.mark.parametrize("case", [case for case in GRADIENTS if case.name in ("article", "blocks-25", "groups-of-chunks")],
                         ids=lambda case: case.name)  # fmt: skip
def test_grad_weight_is_added(engine, case):
    problem, data = case.problem(), solved(case, "float32", "integers")
    start = integers(problem.weight_shape, "float32", 5, 20)
    for n_threads in (1, 2, 3):
        actual = convolution.grad_weight(
            engine, STEM, problem, data["x"], data["grad_output"], start, n_threads, tile=2
        )  # fmt: skip
        assert_same(actual, (data["grad_weight"] + start).astype("float32"), f"{engine.name} on {n_threads} threads")


@pytest.mark.parametrize("case", [case for case in GRADIENTS if case.name in ("batch5", "blocks-25", "images-of-chunks")],
                         ids=lambda case: case.name)  # fmt: skip
def test_threads_do_not_change_bits_of_grad_weight(engine, case):
    problem, data = case.problem(), solved(case, "float32", "normals")
    one, *more = (
        convolution.grad_weight(engine, STEM, problem, data["x"], data["grad_output"], n_threads=n, tile=4)
        for n in (1, 2, 3)
    )
    for n, other in enumerate(more, 2):
        assert_same(other, one, f"{engine.name} on {n} threads")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spot", ["x", "grad_output"])
def test_grad_weight_of_non_finite_data(engine, spot, value):
    """NaN and Inf appear exactly where the definition puts them; data near the largest float overflow nowhere."""
    data, problem = solved(NAMED["same-3x3"], "float32", "integers"), NAMED["same-3x3"].problem()
    plan = fc.plan_conv2d(problem, "winograd_f4", op="grad_weight")
    changed = {**data, spot: data[spot].copy()}
    changed[spot].reshape(-1)[[0, -1]] = value
    with np.errstate(invalid="ignore"):
        exact = convolution.definition(problem, changed["x"], data["w"], changed["grad_output"])["grad_weight"]
        actual = plan(changed["x"], changed["grad_output"])
    assert_same(convolution._pattern(actual), convolution._pattern(exact))
    large = np.sign(data["x"]) * np.float32(2.0**126)
    actual = plan(large, np.sign(data["grad_output"]) * np.float32(2.0**-7))
    exact = convolution.definition(problem, np.sign(data["x"]), data["w"], np.sign(data["grad_output"]))["grad_weight"]
    assert_same(actual, (exact * 2.0**119).astype("float32"))


# ------------------------------------------------------------------------------------------------ the algorithm


def problem_of(shape=(1, 4, 9, 10), weight=(6, 4, 3, 3), *more, **named):
    return ConvProblem.from_args("test", shape, weight, "float32", *more, **named)


@pytest.mark.parametrize("algorithm", ["winograd", *winograd.FORCED])
@pytest.mark.parametrize(
    ("problem", "op", "reason"),
    [
        (problem_of(stride=2), "forward", "stride is 2, it needs 1"),
        (problem_of(stride=(1, 2)), "grad_input", r"stride is \(1, 2\), it needs 1"),
        (problem_of(dilation=3), "forward", "dilation is 3, it needs 1"),
        (problem_of(weight=(6, 4, 3, 1)), "forward", "the kernel is 3 x 1, it needs 3 x 3"),
        (problem_of(dilation=2), "grad_weight", "dilation is 2, it needs 1"),
    ],
)
def test_refusals(algorithm, problem, op, reason):
    with pytest.raises(ValueError, match=rf"^{algorithm}: {reason}$"):
        fc.plan_conv2d(problem, algorithm, backend="reference", op=op)
    assert fc.plan_conv2d(problem, backend="reference", op=op).algorithm != "winograd"


@pytest.mark.parametrize(
    ("problem", "op", "reason"),
    [
        (problem_of(), "forward", "the kernel has 3 rows, with stride 1 it needs 5"),
        (
            problem_of((1, 4, 19, 20), (6, 4, 7, 7), stride=2),
            "forward",
            "the kernel has 7 rows, with stride 2 it needs 5 to 6 rows",
        ),
        (problem_of((1, 4, 19, 20), (6, 4, 13, 13), stride=5), "forward", "stride is 5, it needs 4 or less"),
        (problem_of(weight=(6, 4, 5, 5), stride=(1, 2)), "forward", "the stride is 1 x 2, it needs a square one"),
        (problem_of(weight=(6, 4, 5, 3)), "forward", "the kernel is 5 x 3, it needs a square one"),
        (problem_of(weight=(6, 4, 5, 5), stride=2), "grad_input", "it has no grad_input with stride 2"),
        (problem_of(weight=(6, 4, 5, 5), dilation=2), "forward", "dilation is 2, it needs 1"),
        (problem_of(weight=(6, 4, 5, 5)), "grad_weight", "it has no grad_weight with stride 1"),
    ],
)
def test_refusals_of_wide(problem, op, reason):
    with pytest.raises(ValueError, match=rf"^winograd_wide: {reason}$"):
        fc.plan_conv2d(problem, "winograd_wide", backend="reference", op=op)
    assert fc.plan_conv2d(problem, backend="reference", op=op).algorithm != "winograd_wide"


@pytest.mark.parametrize(
    "name",
    ["five-9x12", "five-groups", "five-crop", "strided-17x20", "strided-groups", "strided-empty", "wide-11-by-4"],
)
def test_forced_on_wide(engine, name):
    data, problem, (tile,) = (
        solved(NAMED[name], "float32", "normals"),
        NAMED[name].problem(bias=True),
        tiles_of(NAMED[name]),
    )
    exact = data["conv"] + data["bias"][:, None, None]
    limit = winograd_bound(problem, tile, data["x"], data["w"]).max(initial=0) + 1e-6 * (1 + abs(exact))
    assert_within(fc.plan_conv2d(problem, "winograd_wide")(data["x"], data["w"], data["bias"]), exact, limit, "forward")
    if problem.stride_h == 1:
        plan = fc.plan_conv2d(NAMED[name].problem(), "winograd_wide", op="grad_input")
        limit = winograd_factor(4) * 60 * 1.2e-7 * np.abs(data["w"]).sum() * abs(data["grad_output"]).max(initial=0)
        back = plan(data["grad_output"], data["w"], None)
        assert_within(back, data["grad_input"], np.full(back.shape, limit), "grad_input")


@pytest.mark.parametrize(("stride", "tile"), [(1, "2 x 2"), (2, "4 x 4")])
def test_auto_takes_winograd_for_wide_kernels(stride, tile):
    problem = problem_of((1, 64, 27, 27), (192, 64, 5, 5), stride, 2)
    plan = fc.plan_conv2d(problem, backend="reference", packed=True)
    assert plan.algorithm == "winograd_wide" and f"tile       {tile}" in plan.explain()
    assert (
        fc.plan_conv2d(problem_of((1, 3, 27, 27), (8, 3, 5, 5), stride, 2), backend="reference").algorithm
        != "winograd_wide"
    )


@pytest.mark.parametrize("algorithm", ["winograd", *winograd.FORCED])
@pytest.mark.parametrize("name", ["same-3x3", "four-sides", "crop", "groups2", "padding-beyond-kernel", "batch-empty"])
def test_forced(engine, name, algorithm):
    """Forward and the gradient of the input, by the names a caller uses."""
    data, problem = solved(BY_NAME[name], "float32", "normals"), BY_NAME[name].problem(bias=True)
    tile = {"winograd": 4}.get(algorithm) or int(algorithm[-1])
    exact = data["conv"] + data["bias"][:, None, None]
    limit = winograd_bound(problem, tile, data["x"], data["w"]).max(initial=0) + 1e-6 * (1 + abs(exact))
    assert_within(fc.plan_conv2d(problem, algorithm)(data["x"], data["w"], data["bias"]), exact, limit, "forward")
    back = fc.plan_conv2d(BY_NAME[name].problem(), algorithm, op="grad_input")(data["grad_output"], data["w"], None)
    limit = winograd_factor(tile) * 60 * 1.2e-7 * np.abs(data["w"]).sum() * abs(data["grad_output"]).max(initial=0)
    assert_within(back, data["grad_input"], np.full(back.shape, limit), "grad_input")
    weight = fc.plan_conv2d(BY_NAME[name].problem(), algorithm, op="grad_weight")(data["x"], data["grad_output"])
    tile = 2 if algorithm == "winograd" else tile  # 2 or 4: the bound of 4 is the larger
    limit = winograd_grad_weight_bound(problem, max(tile, 4), data["x"], data["grad_output"])
    assert_within(weight, data["grad_weight"], limit, "grad_weight")
    if algorithm == "winograd_f2":
        data, whole = solved(BY_NAME[name], "float32", "integers"), BY_NAME[name].problem()
        back = fc.plan_conv2d(whole, algorithm, op="grad_input")(data["grad_output"], data["w"], None)
        assert_same(back, data["grad_input"].astype("float32"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_grad_input_of_non_finite_weights(engine, value):
    data = solved(BY_NAME["same-3x3"], "float32", "integers")
    problem, w = BY_NAME["same-3x3"].problem(), data["w"].copy()
    w.reshape(-1)[5] = value
    with np.errstate(invalid="ignore"):
        exact = convolution.definition(problem, data["x"], w, data["grad_output"])["grad_input"]
        actual = fc.plan_conv2d(problem, "winograd", op="grad_input")(data["grad_output"], w, None)
    assert_same(convolution._pattern(actual), convolution._pattern(exact))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(engine, mode):
    x, w = integers((2, 3, 8, 9), "float32", 1), integers((4, 3, 3, 3), "float32", 2)
    actual, other = (
        fc.conv2d(x, w, padding=2, padding_mode=mode, algorithm=name) for name in ("winograd_f2", "im2col")
    )
    assert_same(actual, other)


@pytest.mark.parametrize(
    ("algorithm", "K", "stride"),
    [
        *((name, 3, 1) for name in ("winograd", *winograd.FORCED)),
        ("winograd_wide", 5, 1),
        ("winograd_wide", 5, 2),
        ("winograd_wide", 11, 4),
    ],
)
def test_a_weight_packed_before(engine, algorithm, K, stride):
    """The same bits as packing in the call, where the tile is the same."""
    module, problem = _plan.ALGORITHMS[algorithm], problem_of((2, 16, 30, 30), (24, 16, K, K), stride, 1)
    x, w = normals(problem.input_shape, "float32", 1), normals(problem.weight_shape, "float32", 2)
    bias = np.zeros(0, "float32")
    packed = Guarded((module.packed_size(engine.k, problem),), "float32")
    module.pack(engine.k, problem, w, packed.array, 1)
    packed.check("packed")
    step = module.forward_packed(engine.k, problem)
    out, space = np.empty(problem.output_shape, "float32"), np.empty(step.workspace(1), "float32")
    step.run(x, packed.array, bias, out, space, 1)
    assert step.packed_elements == 0 and step.detail == module.forward(engine.k, problem).detail
    assert_same(out, fc.plan_conv2d(problem, algorithm)(x, w, None))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 17), (1, 17, 16), (3, 2, 9)])
@pytest.mark.parametrize(("tile", "K"), [*((tile, 3) for tile in TILES), (2, 5)])
def test_a_turned_weight_is_packed_as_its_copy_would_be(engine, shape, tile, K):
    """Filters and channels change places within each group, taps their order; the very same bytes."""
    G, OCG, ICG = shape
    problem = problem_of((1, G * ICG, 4, 4), (G * OCG, ICG, K, K), 1, 1, groups=G)
    given = normals((G * ICG, OCG, K, K), "float32", 1)
    turned = given.reshape(G, ICG, OCG, K, K).swapaxes(1, 2)[..., ::-1, ::-1].reshape(problem.weight_shape)
    packed = [
        convolution.weight_of(engine, STEM, each, problem, tile=tile, turned=flag)
        for each, flag in ((np.ascontiguousarray(turned), False), (given, True))
    ]
    np.testing.assert_array_equal(*packed)
