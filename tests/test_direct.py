"""The direct kernels, on every engine."""

import pytest
from hypothesis import given

import convolution
from problems import BY_NAME, RUN_IDS, RUNS, Conv, convolutions

STEM = "direct"
KERNELS = tuple(convolution.RESULT)


@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=RUN_IDS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_against_scipy(engine, kernel, case, dtype):
    convolution.check_case(engine, STEM, kernel, case, dtype)


# Columns one vector wide, two of an image with a stride
DEPTHWISE = [
    Conv("rows-3", 2, 5, 3, 9, 5, 3, 3, padding=1, groups=5),
    Conv("rows-5-multiplier2", 1, 15, 5, 7, 30, 3, 3, padding=1, groups=15),
    Conv("planes-40", 2, 20, 7, 7, 20, 3, 3, padding=1, groups=20),
    Conv("padding-beyond-kernel", 1, 3, 6, 8, 3, 3, 3, padding=4, groups=3),
    Conv("crop", 1, 3, 11, 12, 3, 3, 3, padding=((-2, 1), (-1, 2)), groups=3),
    Conv("in-place", 1, 2, 34, 41, 2, 3, 3, padding=1, groups=2),
    Conv("5x5", 1, 3, 14, 15, 3, 5, 5, padding=2, groups=3),
    Conv("7x7", 1, 2, 9, 17, 2, 7, 7, padding=3, groups=2),
    Conv("stride2-rows-4", 3, 5, 8, 15, 5, 3, 3, stride=2, padding=1, groups=5),
    Conv("stride2-multiplier2", 2, 3, 9, 10, 6, 3, 3, stride=2, padding=((0, 3), (1, 4)), groups=3),
    Conv("stride2-crop", 1, 3, 12, 13, 3, 3, 3, stride=2, padding=((-1, 2), (3, -2)), groups=3),
    Conv("stride2-in-place", 1, 2, 43, 66, 2, 3, 3, stride=2, padding=1, groups=2),
    Conv("stride2-5x5", 1, 3, 13, 18, 3, 5, 5, stride=2, padding=2, groups=3),
    Conv("stride2-5x5-padding1", 1, 2, 11, 40, 2, 5, 5, stride=2, padding=1, groups=2),
    Conv("stride2-same", 1, 3, 14, 36, 3, 3, 3, stride=2, padding=((0, 1), (0, 1)), groups=3),
    Conv("stride2-odd-width", 1, 2, 10, 35, 2, 3, 3, stride=2, padding=1, groups=2),
    Conv("stride2-beyond-kernel", 1, 2, 9, 12, 2, 3, 3, stride=2, padding=3, groups=2),
    Conv("stride2-bands", 1, 2, 67, 130, 2, 3, 3, stride=2, padding=1, groups=2),
    Conv("stride2-chunks", 1, 1, 500, 480, 1, 3, 3, stride=2, padding=1),
]


@pytest.mark.parametrize("case", DEPTHWISE, ids=lambda case: case.name)
@pytest.mark.parametrize("kernel", KERNELS)
def test_depthwise(engine, kernel, case):
    convolution.check_case(engine, STEM, kernel, case, "float32")


def test_depthwise_tasks(engine):
    # More planes than one task takes: what a vector writes beyond its row must stay within the task
    case = Conv("planes-1300", 1, 1300, 7, 7, 1300, 3, 3, padding=1, groups=1300)
    convolution.check_threads(engine, STEM, case, "float32")
    convolution.check_case(engine, STEM, "conv2d", case, "float32")
    case = Conv("planes-1300-stride2", 1, 1300, 14, 14, 1300, 3, 3, stride=2, padding=1, groups=1300)
    convolution.check_threads(engine, STEM, case, "float32")
    convolution.check_case(engine, STEM, "conv2d_grad_input", case, "float32")


@given(case=convolutions())
def test_any_geometry(engine, case):
    convolution.check_any(engine, STEM, case)


@pytest.mark.parametrize(
    "name",
    [
        "article", "crop-and-pad", "depthwise", "depthwise-planes-7", "depthwise-planes-3", "depthwise-planes-stride2",
        "depthwise-columns-stride2", "pixels-49", "rows-3", "batch-empty",
    ],
)  # fmt: skip
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


@pytest.mark.parametrize(
    "name",
    [
        "same-3x3", "crop-and-pad", "groups2", "depthwise-stride2", "depthwise-planes-7", "depthwise-planes-stride2",
        "depthwise-columns-stride2", "depthwise-wide", "rows-17", "filters-7",
    ],
)  # fmt: skip
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
