"""The im2col kernels, on every engine."""

import numpy as np
import pytest
from hypothesis import given

import convolution
import fastconv as fc
import oracle
from conftest import Guarded
from problems import BY_NAME, RUN_IDS, RUNS, Conv, convolutions, integers, normals, solved
from tolerance import assert_same, assert_within, bound

STEM = "im2col"
KERNELS = tuple(convolution.RESULT)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=RUN_IDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_against_scipy(engine, kernel, case, dtype):
    convolution.check_case(engine, STEM, kernel, case, dtype)


@given(case=convolutions())
def test_any_geometry(engine, case):
    convolution.check_any(engine, STEM, case)


@pytest.mark.parametrize("name", ["article", "crop-and-pad", "depthwise", "pixels-49", "rows-3", "batch-empty"])
def test_epilogue(engine, name, dtype):
    convolution.check_epilogue(engine, STEM, BY_NAME[name], dtype)


@pytest.mark.parametrize("name", ["article", "groups2", "depth-385"])
def test_epilogue_rounding(engine, name, dtype):
    convolution.check_epilogue_rounding(engine, STEM, BY_NAME[name], dtype)


@pytest.mark.parametrize("indices", [True, False])
@pytest.mark.parametrize(
    ("name", "window", "stride", "pads"),
    [
        ("article", (2, 2), (2, 2), (0, 0)),
        ("same-3x3", (3, 3), (2, 2), (1, 1)),
        ("plane-14x14", (2, 3), (3, 1), (0, 1)),
        ("depthwise", (2, 2), (2, 2), (0, 0)),
        ("first-layer", (3, 2), (1, 2), (1, 0)),
        ("whole-rows-31", (3, 3), (2, 2), (1, 1)),
        ("whole-rows-32-stride4", (2, 2), (2, 2), (0, 0)),
        ("flat-15x17", (2, 2), (2, 2), (0, 0)),
    ],
)
def test_fused_pool(engine, name, window, stride, pads, indices, dtype):
    convolution.check_fused_pool(engine, STEM, BY_NAME[name], dtype, window, stride, pads, indices)


@pytest.mark.parametrize("name", ["same-3x3", "crop-and-pad", "groups2", "depthwise-stride2", "rows-17", "filters-7"])
def test_non_finite(engine, name):
    convolution.check_non_finite(engine, STEM, BY_NAME[name], "float32")


@pytest.mark.parametrize("name", ["article", "crop-and-pad", "dilation-3x2", "depthwise", "stride-2x3"])
def test_adjoint_identity(engine, name, dtype):
    convolution.check_adjoint(engine, STEM, BY_NAME[name], dtype)


@pytest.mark.parametrize("name", ["stride-2x3", "crop-and-pad", "groups2", "multiplier2"])
def test_central_differences(engine, name, rng):
    convolution.check_central_differences(engine, STEM, BY_NAME[name], rng)


@pytest.mark.parametrize(
    "name",
    [
        "article",
        "plane-14x14",
        "batch5",
        "depthwise",
        "filters-49",
        "depth-43x9",
        "tall",
        "whole-rows-31",
        "flat-15x17",
        "flat-filters-137",
        "strided-filters-137",
        "lone-7x7-257",
        "wide-162-32",
        "wide-66-195",
    ],
)
def test_threads_do_not_change_bits(engine, name):
    convolution.check_threads(engine, STEM, BY_NAME[name], "float32")


@pytest.mark.parametrize("name", ["article", "rows-9"])
def test_subnormal(engine, name, dtype):
    convolution.check_subnormal(engine, STEM, BY_NAME[name], dtype)


@pytest.mark.parametrize("shape", [(1, 7, 5, 1, 1), (1, 12, 300, 1, 1), (1, 7, 3, 3, 2), (3, 2, 9, 1, 3)])
def test_a_turned_weight_is_packed_as_its_copy_would_be(engine, shape):
    """Filters and channels change places within each group, taps their order; the very same bytes."""
    G, OCG, ICG, KH, KW = shape
    problem = fc.ConvProblem.from_args("t", (1, G * ICG, 4, 4), (G * OCG, ICG, KH, KW), "float32", groups=G)
    given = normals((G * ICG, OCG, KH, KW), "float32", 1)
    turned = given.reshape(G, ICG, OCG, KH, KW).swapaxes(1, 2)[..., ::-1, ::-1].reshape(problem.weight_shape)
    packed = [
        convolution.weight_of(engine, STEM, each, problem, turned=flag)
        for each, flag in ((np.ascontiguousarray(turned), False), (given, True))
    ]
    np.testing.assert_array_equal(*packed)


@pytest.mark.parametrize("shape", [(1, 7, 5, 1, 1), (1, 12, 100, 1, 1), (1, 70, 3, 3, 2), (3, 2, 9, 1, 3)])
def test_a_turned_gradient_of_the_weight(engine, dtype, shape):
    """Filters and channels change places within each group, taps their order; what is there may be added."""
    G, OCG, ICG, KH, KW = shape
    problem = fc.ConvProblem.from_args("t", (2, G * ICG, 4, 5), (G * OCG, ICG, KH, KW), dtype, groups=G)
    x, grad = integers(problem.input_shape, dtype, 1), integers(problem.output_shape, dtype, 2)
    expected = convolution.grad_weight(engine, STEM, problem, x, grad).reshape(G, OCG, ICG, KH, KW)
    expected = expected.swapaxes(1, 2)[..., ::-1, ::-1].reshape(G * ICG, OCG, KH, KW)
    for accumulate in (False, True):
        for n_threads in (1, 2):
            own = Guarded(expected.shape, dtype)
            own.array[...] = 3
            geometry = problem.geometry(accumulate=accumulate, turned=True)
            engine.run(STEM, "conv2d_grad_weight", x, grad, own.array, geometry=geometry, n_threads=n_threads)
            own.check(f"{engine.name}, {n_threads} threads")
            assert_same(own.array, expected + 3 * accumulate, engine.name)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (2, 2, 0), (3, 1, 2), (3, 1, 0)])
def test_grad_input_of_weights_that_are_not_finite(engine, kernel, stride, padding):
    """A cell is not finite exactly where one of its own products is not, with a border of zeros and without."""
    x_shape, w = (2, 3, 6, 6), integers((5, 3, kernel, kernel), "float32", 1)
    w[2, 1, 0, -1], w[4, 2, -1, 0] = np.inf, np.nan
    problem = fc.ConvProblem.from_args("t", x_shape, w.shape, "float32", stride, padding)
    grad = integers(problem.output_shape, "float32", 2)
    with np.errstate(invalid="ignore"):
        actual = fc.conv2d_grad_input(x_shape, w, grad, stride, padding, algorithm="im2col")
        expected = convolution.grad_input(engine, "direct", problem, grad, w)
    assert_same(np.isfinite(actual), np.isfinite(expected))
    assert_same(actual[np.isfinite(expected)], expected[np.isfinite(expected)])


def _arguments(problem):
    return (
        (problem.stride_h, problem.stride_w),
        (problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right),
        (problem.dil_h, problem.dil_w),
    )


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=RUN_IDS)
def test_columns(engine, case, dtype):
    problem = case.problem(dtype)
    kernel, out_shape = (problem.KH, problem.KW), (problem.OH, problem.OW)
    x = solved(case, dtype, "normals")["x"]
    cols = Guarded((problem.N, problem.IC, *kernel, *out_shape), dtype)
    engine.run(STEM, "im2col", x, cols.array, geometry=problem.geometry())
    cols.check("im2col")
    stride, pads, dilation = _arguments(problem)
    assert_same(cols.array, oracle.unfold(x, kernel, stride, pads, dilation, out_shape), f"{engine.name} im2col")


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=RUN_IDS)
def test_columns_back(engine, case, dtype):
    problem = case.problem(dtype)
    shape = (problem.N, problem.IC, problem.KH, problem.KW, problem.OH, problem.OW)
    stride, pads, dilation = _arguments(problem)
    for make in (integers, normals):
        cols = make(shape, dtype, 5)
        output = Guarded(problem.input_shape, dtype)
        engine.run(STEM, "col2im", cols, output.array, geometry=problem.geometry())
        output.check("col2im")
        exact = oracle.fold(cols, problem.input_shape, stride, pads, dilation)
        if make is integers:
            assert_same(output.array, exact.astype(dtype), f"{engine.name} col2im")
        sizes = oracle.fold(abs(cols), problem.input_shape, stride, pads, dilation)
        limit = bound(problem.KH * problem.KW, sizes, dtype)
        assert_within(output.array, exact, limit, f"{engine.name} col2im")


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2), (3, 2), (2, 3), (9, 9)])
@pytest.mark.parametrize("extents", [(1, 1), (5, 37), (4, 8), (2, 31)])
def test_interleave(engine, extents, stride, dtype):
    problem = fc.ConvProblem.from_args("t", (2, 3, *extents), (1, 3, 1, 1), dtype, stride)
    exact = normals(problem.input_shape, dtype, 1)
    cells = [exact[:, :, row :: stride[0], column :: stride[1]].ravel() for row, column in np.ndindex(stride)]
    parts, output = np.concatenate(cells), Guarded(problem.input_shape, dtype)
    for n_threads in (1, 2):
        output.array[...] = np.nan
        engine.run(STEM, "interleave", parts, output.array, geometry=problem.geometry(), n_threads=n_threads)
        output.check("interleave")
        assert_same(output.array, exact, f"{engine.name} interleave")


def test_columns_keep_non_finite_cells(engine):
    case = BY_NAME["same-3x3"]
    problem = case.problem("float32")
    x = normals(problem.input_shape, "float32", 1)
    x[0, 0, 0, 0], x[0, 1, 2, 3], x[0, -1, -1, -1] = np.nan, np.inf, -np.inf
    cols = np.zeros((problem.N, problem.IC, 3, 3, problem.OH, problem.OW), "float32")
    engine.run(STEM, "im2col", x, cols, geometry=problem.geometry())
    stride, pads, dilation = _arguments(problem)
    assert_same(cols, oracle.unfold(x, (3, 3), stride, pads, dilation, (problem.OH, problem.OW)))


def test_pack_is_independent_of_threads(engine):
    problem = BY_NAME["filters-49"].problem("float32")
    w = normals(problem.weight_shape, "float32", 3)
    one = convolution.weight_of(engine, STEM, w, problem, 1)
    for n_threads in (2, 3):
        assert_same(convolution.weight_of(engine, STEM, w, problem, n_threads), one)


# More operands than one chunk of the gradient of the weight holds; the last chunk is smaller. Flat ones read the input
# in place.
CHUNKS = [
    Conv("chunks-flat", 5, 9, 130, 131, 7, 1, 1),
    Conv("chunks-3x3", 3, 5, 210, 211, 11, 3, 3, padding=1),
    Conv("chunks-groups", 3, 6, 200, 201, 10, 2, 2, stride=(1, 2), groups=2),
]


@pytest.mark.parametrize("case", CHUNKS, ids=lambda case: case.name)
def test_grad_weight_of_chunks(engine, case):
    problem = case.problem("float32")
    x, grad = integers(problem.input_shape, "float32", 1), integers(problem.output_shape, "float32", 2)
    stride, pads, dilation = _arguments(problem)
    exact = oracle.conv2d_grad_weight(x, problem.weight_shape, grad, stride, pads, dilation, problem.G)
    start = integers(problem.weight_shape, "float32", 3)
    actual = convolution.grad_weight(engine, STEM, problem, x, grad, start)
    assert_same(actual, (exact + start).astype("float32"), f"{engine.name} {case.name}")
    assert_same(
        convolution.grad_weight(engine, STEM, problem, x, grad, start, 2), actual, f"{engine.name} on 2 threads"
    )


def test_grad_weight_of_images_of_few_pixels(engine):
    """Several images are summed at once; more of them than go into one sum."""
    problem = Conv("few-pixels", 131, 3, 2, 2, 5, 3, 3, padding=1).problem("float32")
    x, grad = integers(problem.input_shape, "float32", 1), integers(problem.output_shape, "float32", 2)
    exact = oracle.conv2d_grad_weight(x, problem.weight_shape, grad, pads=(1, 1, 1, 1))
    assert_same(convolution.grad_weight(engine, STEM, problem, x, grad), exact.astype("float32"), engine.name)


def test_grad_weight_of_a_strided_1x1_kernel(engine):
    """The met cells alone are read: what lies between them may be anything."""
    x, w, grad = (integers(shape, "float32", i) for i, shape in enumerate([(2, 3, 9, 8), (5, 3, 1, 1), (2, 5, 3, 4)]))
    exact = oracle.conv2d_grad_weight(x, w.shape, grad, (3, 2), (0, 0, 0, 0))
    x[:, :, 1::3] = np.nan
    needs = (False, True, False)
    _, actual, _ = fc.conv2d_backward(grad, x, w, stride=(3, 2), needs=needs, algorithm="im2col")
    assert_same(actual, exact.astype("float32"))


@pytest.mark.parametrize(("channels", "filters"), [(6, 9), (300, 14)])
def test_a_plane_that_is_read_in_place_may_begin_anywhere(engine, dtype, channels, filters):
    """Vectors begin with cache lines, wherever the array does: a matter of speed alone."""
    shape, size = (2, channels, 24, 32), 2 * channels * 24 * 32
    weight, bias = normals((filters, channels, 1, 1), dtype, 1), normals((filters,), dtype, 2)
    space = normals((size + 17,), dtype, 3)
    first = None
    for start in (0, 1, 4, 7, 8, 16):
        here = space[start : start + size]
        here[...] = normals(shape, dtype, 4).ravel()
        actual = fc.conv2d(here.reshape(shape), weight, bias, activation="relu", algorithm="im2col")
        first = actual if first is None else first
        assert_same(actual, first, f"{engine.name}, {start} elements on")
    exact = np.maximum(oracle.conv2d(normals(shape, dtype, 4), weight) + bias[:, None, None], 0)
    np.testing.assert_allclose(first, exact, rtol=0, atol=1e-3 if dtype == "float32" else 1e-11)
