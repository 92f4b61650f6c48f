"""The direct kernels, on every engine."""

import pytest
from hypothesis import given

import convolution
from problems import BY_NAME, RUN_IDS, RUNS, convolutions

STEM = "direct"
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


@pytest.mark.parametrize("name", ["article", "plane-14x14", "batch5", "depthwise", "filters-49", "depth-43x9", "tall"])
def test_threads_do_not_change_bits(engine, name):
    convolution.check_threads(engine, STEM, BY_NAME[name], "float32")


@pytest.mark.parametrize("name", ["article", "rows-9"])
def test_subnormal(engine, name, dtype):
    convolution.check_subnormal(engine, STEM, BY_NAME[name], dtype)
