"""Pooling, unpooling and their gradients, on every engine: kernels, and the public functions they serve."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
import oracle
from conftest import Guarded
from fastconv._problem import PoolProblem
from problems import integers, normals
from tolerance import assert_same, assert_within, bound


@dataclass(frozen=True)
class Pool:
    """One pool by its arguments; ``average``: avg_pool2d can do it too (it has no dilation)."""

    name: str
    shape: tuple
    kernel_size: Any
    stride: Any = None
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False

    @property
    def average(self):
        return self.dilation == 1

    def problem(self, dtype="float32", **more):
        return PoolProblem.from_args(
            "test",
            self.shape,
            dtype,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.ceil_mode,
            **more,
        )


CASES = [
    Pool("2x2", (2, 3, 8, 10), 2),
    Pool("2x2-odd", (2, 3, 9, 11), 2),
    Pool("2x2-ceil", (1, 3, 9, 11), 2, ceil_mode=True),
    Pool("3x3s2p1", (2, 3, 11, 12), 3, 2, 1),
    Pool("3x3s2p1-ceil", (1, 2, 12, 12), 3, 2, 1, ceil_mode=True),
    Pool("3x3s1", (1, 2, 7, 19), 3, 1),
    Pool("3x3s1p1", (1, 2, 7, 33), 3, 1, 1),
    Pool("2x3", (1, 2, 9, 10), (2, 3), (3, 2), (1, 0)),
    Pool("2x3-ceil", (1, 2, 8, 11), (2, 3), (3, 2), (1, 1), ceil_mode=True),
    Pool("stride-beyond-kernel", (1, 2, 11, 12), 2, (4, 5)),
    Pool("stride-beyond-kernel-ceil", (1, 2, 10, 11), 2, (4, 3), 1, ceil_mode=True),
    Pool("1x1", (2, 2, 4, 5), 1),
    Pool("1x1s2", (2, 2, 4, 5), 1, 2),
    Pool("whole", (2, 3, 5, 6), (5, 6)),
    Pool("four-sides", (1, 2, 7, 8), (4, 3), 2, ((1, 2), (0, 1))),
    Pool("four-sides-ceil", (1, 2, 7, 8), (4, 3), (3, 2), ((2, 0), (0, 1)), ceil_mode=True),
    Pool("dilation2", (1, 2, 9, 10), 3, 2, 2, 2),
    Pool("dilation-2x3", (2, 2, 9, 13), (3, 2), 1, (2, 1), (2, 3)),
    Pool("dilation-ceil", (1, 2, 10, 10), 3, 3, 1, 2, ceil_mode=True),
    Pool("5x5", (1, 1, 12, 17), 5, 3, 2),
    Pool("batch-empty", (0, 3, 6, 6), 2),
    Pool("no-channels", (2, 0, 6, 6), 2),
    Pool("one-row", (2, 3, 1, 40), (1, 3), (1, 2)),
    Pool("one-column", (2, 3, 40, 1), (3, 1), (2, 1)),
    *(Pool(f"2x2-width-{n}", (1, 2, 4, n), 2) for n in (2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 34, 63, 64, 65, 66)),
    *(Pool(f"3x3s2p1-width-{n}", (1, 2, 5, n), 3, 2, 1) for n in (1, 2, 3, 14, 15, 16, 17, 18, 31, 32, 33, 47, 64, 65)),
]
IDS = [case.name for case in CASES]
AVERAGES = [case for case in CASES if case.average]
AVERAGE_IDS = [case.name for case in AVERAGES]


def geometry_of(p):
    """(kernel, stride, pads, dilation, output extents) of a problem."""
    return (
        (p.KH, p.KW), (p.stride_h, p.stride_w), (p.pad_top, p.pad_bottom, p.pad_left, p.pad_right),
        (p.dil_h, p.dil_w), (p.OH, p.OW),
    )  # fmt: skip


def exact_max(x, p):
    kernel, stride, pads, dilation, extents = geometry_of(p)
    return oracle.max_pool2d(x, kernel, stride, pads, dilation, extents)


def run(engine, kernel, shape, *arrays, geometry, n_threads=1):
    """A pooling kernel with one guarded output; its indices lie in their planes."""
    out = Guarded(shape, next(array.dtype for array in arrays if array.dtype.kind == "f"))
    outside = [np.ones(1, np.int64)] if kernel in ("max_pool2d_backward", "max_unpool2d") else []
    engine.run("pool", kernel, *arrays, out.array, *outside, geometry=geometry, n_threads=n_threads)
    out.check(f"{engine.name} {kernel}")
    assert not any(flag[0] for flag in outside), f"{engine.name} {kernel}: no index lies outside"
    return out.array


def max_pool(engine, x, p, n_threads=1, with_indices=True):
    out = Guarded(p.output_shape, x.dtype)
    indices = Guarded(p.output_shape if with_indices else (0, 0, 0, 0), np.int64)
    engine.run("pool", "max_pool2d", x, out.array, indices.array, geometry=p.geometry(), n_threads=n_threads)
    out.check(f"{engine.name} max_pool2d")
    indices.check(f"{engine.name} max_pool2d indices")
    return out.array, indices.array


def check_max(engine, x, p, what):
    values, indices = exact_max(x, p)
    actual, where = max_pool(engine, x, p)
    assert_same(actual, values, what)
    assert_same(where, indices, f"{what}: indices")
    assert_same(max_pool(engine, x, p, with_indices=False)[0], values, f"{what}: without indices")


# ------------------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_extents(case):
    p = case.problem()
    (kernel, stride, pads, dilation, extents), (IH, IW) = geometry_of(p), case.shape[2:]
    assert extents == (
        oracle.pool_extent(IH, kernel[0], stride[0], *pads[:2], dilation[0], case.ceil_mode),
        oracle.pool_extent(IW, kernel[1], stride[1], *pads[2:], dilation[1], case.ceil_mode),
    )


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("kind", ["distinct", "ties", "non-finite", "minus-infinity"])
def test_max_pool(engine, case, kind, dtype):
    x = normals(case.shape, dtype, 3)
    if kind == "ties":
        x = integers(case.shape, dtype, 4, 1)
    elif kind == "non-finite":
        chosen = np.random.default_rng(5).integers(0, 8, case.shape)
        x[chosen == 0], x[chosen == 1], x[chosen == 2] = np.nan, np.inf, -np.inf
    elif kind == "minus-infinity":
        x[...] = -np.inf
    check_max(engine, x, case.problem(dtype), f"{engine.name} {case.name} {kind}")


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 0), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("extents", [(5, 19), (3, 36), (6, 7), (6, 13)], ids=str)  # for vectors of any width
def test_max_pool_loses_no_nan(engine, window, extents, dtype):
    """The common windows look at some cells alone for NaN: one in each cell of a plane in turn, beside planes without."""
    IH, IW = extents
    x = np.tile(normals((1, 1, IH, IW), dtype, 3), (1, IH * IW + 1, 1, 1))
    cells = np.arange(IH * IW)
    x[0, cells, cells // IW, cells % IW] = np.nan
    p = Pool("", x.shape, *window).problem(dtype)
    check_max(engine, x, p, f"{engine.name} {window}")
    # One NaN sends all planes of a task the slow way: each cell by itself, too
    (values, indices), alone = exact_max(x, p), Pool("", (1, 1, IH, IW), *window).problem(dtype)
    for cell in cells:
        one = slice(cell, cell + 1)
        actual, _ = max_pool(engine, x[:, one], alone, with_indices=False)
        assert_same(actual, values[:, one], f"{engine.name} {window} {cell}")
        actual, where = max_pool(engine, x[:, one], alone)
        assert_same(actual, values[:, one], f"{engine.name} {window} {cell}")
        assert_same(where, indices[:, one], f"{engine.name} {window} {cell}: indices")


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 1), (3, 1, 1)], ids=str)
def test_max_pool_in_several_tasks(engine, window):
    """Tasks end within planes, and what runs over the end of a row stays within its task."""
    case = Pool("", (1, 2, 131, 190), *window)
    x, p = integers(case.shape, "float32", 50, 1), case.problem()
    check_max(engine, x, p, f"{engine.name} {window}")
    values, indices = exact_max(x, p)
    actual, where = max_pool(engine, x, p, 2)
    assert_same(actual, values)
    assert_same(where, indices)


@pytest.mark.parametrize("shape", [(2, 3, 6, 34), (1, 4, 5, 9), (1, 70, 24, 24)], ids=str)
def test_tiles_with_indices_of_other_windows(engine, shape, dtype):
    """2x2 tiles are filled at one go; a plane whose indices lie elsewhere is not, whatever its neighbours are."""
    p = Pool("", shape, 2).problem(dtype)
    grad = integers(p.output_shape, dtype, 9, 1)
    _, indices = exact_max(integers(shape, dtype, 4, 2), p)
    indices[:, 1::2] = _some_indices(p, 3)[:, 1::2]
    actual = run(engine, "max_pool2d_backward", shape, grad, indices, geometry=p.geometry())
    assert_same(actual, oracle.max_pool2d_backward(grad, indices, shape), f"{engine.name} backward")
    actual = run(engine, "max_unpool2d", shape, grad, indices, geometry=p.geometry())
    assert_same(actual, oracle.max_unpool2d(grad, indices, (p.IH, p.IW)), f"{engine.name} unpool")


@pytest.mark.parametrize("kernel", ["max_pool2d_backward", "max_unpool2d"])
@pytest.mark.parametrize(("shape", "window"), [((2, 2, 6, 70), 2), ((2, 2, 7, 9), 3)], ids=str)
def test_an_index_outside_of_its_plane_is_told(engine, kernel, shape, window, dtype):
    """Wherever it stands, by however much; nothing is written outside of the output."""
    p = Pool("", shape, window).problem(dtype)
    values = integers(p.output_shape, dtype, 9, 1)
    _, indices = exact_max(integers(shape, dtype, 4, 2), p)
    for position in (0, indices.size // 2, indices.size - 1):
        good = int(indices.flat[position])
        for wrong in (-1, p.IH * p.IW, good + 2**32, good - 2**32, good - 2**63, 2**63 - 1):
            indices.flat[position] = wrong
            out, outside = Guarded(shape, dtype), np.zeros(1, np.int64)
            engine.run("pool", kernel, values, indices, out.array, outside, geometry=p.geometry())
            out.check(f"{engine.name} {kernel} {position} {wrong}")
            assert outside[0] == 1, f"{engine.name} {kernel} {position} {wrong}"
        indices.flat[position] = good


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_max_pool_backward(engine, case, dtype):
    p = case.problem(dtype)
    _, indices = exact_max(integers(case.shape, dtype, 4, 2), p)
    for make in (integers, normals):
        grad = make(p.output_shape, dtype, 6)
        actual = run(engine, "max_pool2d_backward", case.shape, grad, indices, geometry=p.geometry())
        exact = oracle.max_pool2d_backward(grad, indices, case.shape)
        limit = bound(p.KH * p.KW, oracle.max_pool2d_backward(abs(grad), indices, case.shape), dtype)
        assert_within(actual, exact, 0 if make is integers else limit, f"{engine.name} {case.name}")


def _some_indices(p, seed):
    """Indices of all kinds: some duplicated, some cells never named."""
    return np.random.default_rng(seed).integers(0, p.IH * p.IW, p.output_shape)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_max_unpool(engine, case, dtype):
    p = case.problem(dtype)
    x, indices = normals(p.output_shape, dtype, 7), _some_indices(p, 8)
    actual = run(engine, "max_unpool2d", case.shape, x, indices, geometry=p.geometry())
    assert_same(actual, oracle.max_unpool2d(x, indices, (p.IH, p.IW)), f"{engine.name} {case.name}")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_max_unpool_backward(engine, case, dtype):
    p = case.problem(dtype)
    grad, indices = normals(case.shape, dtype, 7), _some_indices(p, 8)
    actual = run(engine, "max_unpool2d_backward", p.output_shape, grad, indices, geometry=p.geometry())
    assert_same(actual, oracle.max_unpool2d_backward(grad, indices), f"{engine.name} {case.name}")


AVERAGE_KINDS = {"padded": (True, 0), "image": (False, 0), "divisor": (True, 3), "negative": (False, -2)}


@pytest.mark.parametrize("kind", AVERAGE_KINDS)
@pytest.mark.parametrize("case", AVERAGES, ids=AVERAGE_IDS)
def test_avg_pool(engine, case, kind, dtype):
    include, divisor = AVERAGE_KINDS[kind]
    p = case.problem(dtype, count_include_pad=include, divisor_override=divisor or None)
    kernel, stride, pads, _, extents = geometry_of(p)
    arguments = (kernel, stride, pads)
    x = normals(case.shape, dtype, 9)
    actual = run(engine, "avg_pool2d", p.output_shape, x, geometry=p.geometry())
    exact = oracle.avg_pool2d(x, *arguments, extents, include, divisor)
    sizes = abs(oracle.avg_pool2d(abs(x), *arguments, extents, include, divisor))
    what = f"{engine.name} avg_pool2d {case.name} {kind}"
    assert_within(actual, exact, bound(p.KH * p.KW, sizes, dtype, 1, extra=1), what)

    grad = normals(p.output_shape, dtype, 10)
    actual = run(engine, "avg_pool2d_backward", case.shape, grad, geometry=p.geometry())
    exact = oracle.avg_pool2d_backward(grad, case.shape, *arguments, include, divisor)
    sizes = abs(oracle.avg_pool2d_backward(abs(grad), case.shape, *arguments, include, divisor))
    assert_within(actual, exact, bound(p.KH * p.KW, sizes, dtype, p.KH * p.KW, extra=1), f"{what} backward")


def test_avg_pool_integers_are_exact(engine, dtype):
    case = Pool("4", (2, 3, 8, 12), 4)  # a window of 16 cells: the division is exact
    p = case.problem(dtype)
    x = integers(case.shape, dtype, 1)
    exact = oracle.avg_pool2d(x, *geometry_of(p)[:3], (p.OH, p.OW)).astype(dtype)
    assert_same(run(engine, "avg_pool2d", p.output_shape, x, geometry=p.geometry()), exact)


def test_avg_pool_keeps_the_pattern_of_non_finite_cells(engine):
    p = Pool("", (1, 1, 6, 7), 3, 2, 1).problem()
    x = np.ones((1, 1, 6, 7), "float32")
    x[0, 0, 0, 0], x[0, 0, 2, 5], x[0, 0, 5, 6], x[0, 0, 5, 2] = np.nan, np.inf, -np.inf, np.inf
    actual = run(engine, "avg_pool2d", p.output_shape, x, geometry=p.geometry())
    exact = oracle.avg_pool2d(x, *geometry_of(p)[:3], (p.OH, p.OW))
    assert_same(np.isnan(actual), np.isnan(exact))
    assert_same(np.where(np.isinf(actual), np.sign(actual), 0), np.where(np.isinf(exact), np.sign(exact), 0))


@pytest.mark.parametrize("case", AVERAGES[:12], ids=AVERAGE_IDS[:12])
def test_avg_pool_adjoint_identity(engine, case):
    p = case.problem("float64")
    x, grad = normals(case.shape, "float64", 1), normals(p.output_shape, "float64", 2)
    forward = run(engine, "avg_pool2d", p.output_shape, x, geometry=p.geometry())
    back = run(engine, "avg_pool2d_backward", case.shape, grad, geometry=p.geometry())
    assert abs((forward * grad).sum() - (x * back).sum()) <= 1e-13 * (abs(forward * grad).sum() + abs(x * back).sum())


@st.composite
def pools(draw):
    """Any pool that the argument rules allow, padding beyond them included: the kernels know no rule."""
    shape = draw(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 10), st.integers(1, 24)))
    kernel, stride, dilation, padding = [], [], [], []
    for extent in shape[2:]:
        size, dil = draw(st.integers(1, 4)), draw(st.integers(1, 2))
        reach = dil * (size - 1) + 1
        before, after = draw(st.integers(0, reach // 2)), draw(st.integers(0, reach // 2))
        if extent + before + after < reach:
            size, dil, before, after = 1, 1, 0, 0
        kernel.append(size)
        dilation.append(dil)
        padding.append((before, after))
        stride.append(draw(st.integers(1, 5)))
    return Pool("random", shape, tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), draw(st.booleans()))


@given(case=pools(), seed=st.integers(0, 5))
def test_any_pool(engine, case, seed):
    p = case.problem()
    x = integers(case.shape, "float32", seed, 2)
    if seed == 0:
        x[x == 1] = np.nan
    check_max(engine, x, p, f"{engine.name} {case}")
    if p.dil_h == p.dil_w == 1:
        kernel, stride, pads, _, extents = geometry_of(p)
        x = integers(case.shape, "float32", seed)
        actual = run(engine, "avg_pool2d", p.output_shape, x, geometry=p.geometry())
        exact = oracle.avg_pool2d(x, kernel, stride, pads, extents)
        assert_within(actual, exact, bound(1, abs(exact), "float32"), f"{engine.name} {case}")


@pytest.mark.parametrize("name", ["2x2", "3x3s2p1-ceil", "dilation2", "5x5"])
def test_threads_do_not_change_bits(engine, name):
    case = next(case for case in CASES if case.name == name)
    p = case.problem()
    x, grad = normals(case.shape, "float32", 1), normals(p.output_shape, "float32", 2)
    _, indices = exact_max(x, p)

    def everything(n):
        yield from max_pool(engine, x, p, n)
        for kernel, shape, arrays in (
            ("max_pool2d_backward", case.shape, (grad, indices)),
            ("max_unpool2d", case.shape, (grad, indices)),
            ("max_unpool2d_backward", p.output_shape, (x, indices)),
            *((
                ("avg_pool2d", p.output_shape, (x,)),
                ("avg_pool2d_backward", case.shape, (grad,)),
            ) if case.average else ()),
        ):  # fmt: skip
            yield run(engine, kernel, shape, *arrays, geometry=p.geometry(), n_threads=n)

    one = list(everything(1))
    for n in (2, 3):
        for actual, exact in zip(everything(n), one, strict=True):
            assert_same(actual, exact, f"{engine.name} {n} threads")


# --------------------------------------------------------------------------------------------- public functions

X5 = np.arange(1.0, 26).reshape(1, 1, 5, 5)
X6 = np.arange(1.0, 37).reshape(1, 1, 6, 6)

# (input, arguments, values, indices): what torch 2.13 gives
TORCH_MAX = [
    (X5, (2, 2, 0, 1, True), [[7, 9, 10], [17, 19, 20], [22, 24, 25]], [[6, 8, 9], [16, 18, 19], [21, 23, 24]]),
    (X5, (2, 2, 0, 1, False), [[7, 9], [17, 19]], [[6, 8], [16, 18]]),
    (X5, (3, 2, 1, 1, True), [[7, 9, 10], [17, 19, 20], [22, 24, 25]], [[6, 8, 9], [16, 18, 19], [21, 23, 24]]),
    (X5, (2, 3, 1, 1, True), [[1, 4], [16, 19]], [[0, 3], [15, 18]]),  # a third window would start in the padding
    (X5, (3, 3, 1, 1, True), [[7, 10], [22, 25]], [[6, 9], [21, 24]]),
    (X5, (2, 2, 0, 2, True), [[13, 15], [23, 25]], [[12, 14], [22, 24]]),
    (X5, (3, 2, 0, 2, True), [[25]], [[24]]),
    (X5, (2, 4, 1, 1, True), [[1, 5], [21, 25]], [[0, 4], [20, 24]]),
    (
        X6, (3, 2, 1, 1, True),
        [[8, 10, 12, 12], [20, 22, 24, 24], [32, 34, 36, 36], [32, 34, 36, 36]],
        [[7, 9, 11, 11], [19, 21, 23, 23], [31, 33, 35, 35], [31, 33, 35, 35]],
    ),
    (X6, (3, 2, 1, 1, False), [[8, 10, 12], [20, 22, 24], [32, 34, 36]], [[7, 9, 11], [19, 21, 23], [31, 33, 35]]),
    (
        X6, ((2, 3), (3, 2), (1, 0), 1, True),
        [[3, 5, 6], [21, 23, 24], [33, 35, 36]], [[2, 4, 5], [20, 22, 23], [32, 34, 35]],
    ),
    (X6, (2, 5, 0, 1, True), [[8, 12], [32, 36]], [[7, 11], [31, 35]]),
    (X6, (3, 3, 1, 2, True), [[22, 23], [28, 29]], [[21, 22], [27, 28]]),
]  # fmt: skip
TORCH_AVG = [
    (X5, (2, 2, 0, True), [[4, 6, 7.5], [14, 16, 17.5], [21.5, 23.5, 25]]),
    (X5, (3, 2, 1, True), [[16 / 9, 33 / 9, 28 / 9], [69 / 9, 13, 87 / 9], [76 / 9, 123 / 9, 88 / 9]]),
    (X5, (3, 2, 1, True, False), [[4, 5.5, 7], [11.5, 13, 14.5], [19, 20.5, 22]]),
    (X5, (3, 2, 1, True, True, 2), [[8, 16.5, 14], [34.5, 58.5, 43.5], [38, 61.5, 44]]),
    (X5, (2, 3, 1, True, True), [[0.25, 1.75], [6.75, 16]]),
    (X5, (2, 3, 1, True, False), [[1, 3.5], [13.5, 16]]),
    (X6, ((2, 3), (3, 2), (1, 0), True, True), [[1, 2, 2.75], [17, 19, 20.5], [16, 17, 17.75]]),
    (X6, ((2, 3), (3, 2), (1, 0), True, False), [[2, 4, 5.5], [17, 19, 20.5], [32, 34, 35.5]]),
    (X5, (2, 4, 1, True, True), [[0.25, 2.25], [9.25, 22]]),
    (X6, (3, 2, 1, True), [[2, 4, 16 / 3, 3], [9, 15, 17, 9], [17, 27, 29, 15], [10.5, 16.5, 17.5, 9]]),
]


@pytest.mark.parametrize(("x", "arguments", "values", "indices"), TORCH_MAX)
def test_max_pool_as_torch(engine, x, arguments, values, indices):
    actual, where = fastconv.max_pool2d(x, *arguments, True)
    assert_same(actual, np.array([[values]], "float64"))
    assert_same(where, np.array([[indices]], "int64"))
    assert where.dtype == np.int64
    assert_same(fastconv.max_pool2d(x[0], *arguments), actual[0])


@pytest.mark.parametrize(("x", "arguments", "values"), TORCH_AVG)
def test_avg_pool_as_torch(engine, x, arguments, values):
    exact = np.array([[values]])
    assert_within(fastconv.avg_pool2d(x, *arguments), exact, 4e-16 * abs(exact))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_max_pool_against_torch(case):
    torch = pytest.importorskip("torch", reason="torch is not installed: the cross-check with it is left out")
    if np.ndim(case.padding) == 2 or 0 in case.shape:
        pytest.skip("torch has no four-sided padding and refuses empty extents")
    if (2 * np.array(case.padding) > np.array(case.kernel_size)).any():
        pytest.skip("torch allows half of the kernel as padding, not half of the dilated kernel")
    x = integers(case.shape, "float32", 1, 3)
    arguments = (case.kernel_size, case.stride, case.padding, case.dilation, case.ceil_mode)
    values, indices = torch.nn.functional.max_pool2d(torch.from_numpy(x), *arguments, return_indices=True)
    actual, where = fastconv.max_pool2d(x, *arguments, True)
    assert_same(actual, values.numpy())
    assert_same(where, indices.numpy())


def test_max_pool_backward_finds_ceil_mode_by_the_shape(engine):
    x = integers((2, 3, 9, 7), "float32", 1)
    for ceil_mode in (False, True):
        out, indices = fastconv.max_pool2d(x, 2, ceil_mode=ceil_mode, return_indices=True)
        grad = integers(out.shape, "float32", 2)
        actual = fastconv.max_pool2d_backward(grad, indices, x.shape, 2)
        assert_same(actual, oracle.max_pool2d_backward(grad, indices, x.shape).astype("float32"))


def test_max_pool_backward_of_a_window_larger_than_the_image(engine):
    x = np.array([[[1.0, 4.0], [3.0, 2.0]]])
    out, indices = fastconv.max_pool2d(x, 3, 2, ceil_mode=True, return_indices=True)
    assert_same(out, np.array([[[4.0]]]))
    back = fastconv.max_pool2d_backward(np.array([[[5.0]]]), indices, x.shape, 3, 2)
    assert_same(back, np.array([[[0.0, 5.0], [0.0, 0.0]]]))


@pytest.mark.parametrize(
    ("shape", "window"),
    [((1, 1, 7, 1), ((1, 2), 1, (0, 1), (1, 2))), ((2, 3, 1, 7), ((2, 5), None, (1, 1), (2, 2), True))],
)
def test_no_gradient_of_a_window_that_steps_over_the_image(engine, shape, window):
    """Of such a window the index points nowhere, or to another window's cell."""
    x = np.arange(math.prod(shape), dtype="float64").reshape(shape)
    maxima, indices = fastconv.max_pool2d(x, *window, return_indices=True)
    assert (maxima == -np.inf).all()
    grad = fastconv.max_pool2d_backward(np.ones_like(maxima), indices, shape, *window[:4])
    np.testing.assert_array_equal(grad, np.zeros(shape))


def test_max_pool_gradient_by_central_differences(engine, rng):
    # Distinct by at least 1: a step of 1/4 changes no winner.
    x = rng.permutation(np.arange(4 * 6 * 7.0)).reshape(2, 2, 6, 7)
    out, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    g = rng.standard_normal(out.shape)
    back = fastconv.max_pool2d_backward(g, indices, x.shape, 3, 2, 1)
    for cell in rng.choice(x.size, 25, replace=False):
        up, down = x.copy(), x.copy()
        up.reshape(-1)[cell] += 0.25
        down.reshape(-1)[cell] -= 0.25
        numeric = ((fastconv.max_pool2d(up, 3, 2, 1) - fastconv.max_pool2d(down, 3, 2, 1)) * g).sum() / 0.5
        assert abs(numeric - back.reshape(-1)[cell]) < 1e-9


def test_unpool_undoes_a_pool_without_overlap(engine, dtype):
    x = normals((2, 3, 6, 8), dtype, 1)
    out, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    whole = fastconv.max_unpool2d(out, indices, 2)
    assert whole.shape == x.shape
    assert_same(fastconv.max_pool2d(np.where(whole == 0, -np.inf, whole).astype(dtype), 2), out)
    assert_same(np.sort(whole[whole != 0]), np.sort(out.ravel()))
    assert_same(fastconv.max_unpool2d_backward(whole, indices), out)


def test_of_duplicates_the_last_stays(engine, dtype):
    x = np.array([[[[1, 2], [3, 4]]]], dtype)
    indices = np.array([[[[5, 5], [0, 5]]]])
    out = fastconv.max_unpool2d(x, indices, 2)
    exact = np.zeros((1, 1, 4, 4), dtype)
    exact[0, 0, 0, 0], exact[0, 0, 1, 1] = 3, 4
    assert_same(out, exact)
    grad = np.arange(16).reshape(1, 1, 4, 4).astype(dtype)
    assert_same(fastconv.max_unpool2d_backward(grad, indices), np.array([[[[0, 0], [0, 5]]]], dtype))


@pytest.mark.parametrize(
    ("size", "shape"), [(None, (6, 9)), ((7, 10), (7, 10)), ((5, 8), (5, 8)), ((1, 2, 7, 9), (7, 9))]
)
def test_unpool_output_size(engine, size, shape):
    x = integers((1, 2, 3, 4), "float32", 1)
    indices = np.arange(24).reshape(1, 2, 3, 4) % 11
    out = fastconv.max_unpool2d(x, indices, (2, 3), (2, 2), output_size=size)
    assert_same(out, oracle.max_unpool2d(x, indices, shape))


def test_empty_window_and_infinite_ones(engine, dtype):
    """A window of -inf alone has the index of its first cell inside the image; one NaN takes the window."""
    x = np.full((1, 1, 4, 4), -np.inf, dtype)
    out, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert_same(out, np.full((1, 1, 2, 2), -np.inf, dtype))
    assert_same(indices, np.array([[[[0, 1], [4, 5]]]]))
    x[0, 0, 1, 1], x[0, 0, 2, 2], x[0, 0, 1, 2] = np.inf, np.nan, np.nan
    out, indices = fastconv.max_pool2d(x, 3, 2, 1, return_indices=True)
    assert np.isnan(out).tolist() == [[[[False, True], [False, True]]]]
    assert indices.tolist() == [[[[5, 6], [5, 6]]]]  # of two NaN the first


def test_negative_zero_does_not_beat_zero(engine, dtype):
    x = np.array([[[[-0.0, 0.0], [0.0, -0.0]]]], dtype)
    out, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    assert out[0, 0, 0, 0] == 0 and indices[0, 0, 0, 0] == 0
