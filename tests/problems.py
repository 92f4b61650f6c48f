"""Named problems that reach every edge of the kernels' loops, and random ones. Append-only: names are stable.

Tile extents in use: MR = 6, 8 or 16 filters, of fewer 1 to 4, 8 and 12; NR = 4, 8, 16, 24 or 48 pixels; of Winograd's
products 6 or 12 tiles and 4, 8, 16 or 32 filters; vectors of 2 to 16 elements; depth blocks KC of about 384. Each is met
at one less, exactly, and one more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import oracle
from fastconv._problem import ConvProblem


@dataclass(frozen=True)
class Conv:
    """One convolution by its arguments; ``double``: run in float64 too."""

    name: str
    N: int
    IC: int
    IH: int
    IW: int
    OC: int
    KH: int
    KW: int
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    double: bool = False

    @property
    def input_shape(self):
        return self.N, self.IC, self.IH, self.IW

    @property
    def weight_shape(self):
        return self.OC, self.IC // self.groups, self.KH, self.KW

    def problem(self, dtype="float32", bias=False, activation=None):
        return ConvProblem.from_args(
            "test", self.input_shape, self.weight_shape, dtype, self.stride, self.padding, self.dilation, self.groups,
            bias_shape=(self.OC,) if bias else None, activation=activation,
        )  # fmt: skip


CASES = [
    Conv("one-cell", 1, 1, 1, 1, 1, 1, 1, double=True),
    Conv("article", 2, 3, 10, 11, 8, 3, 3, double=True),
    Conv("same-3x3", 1, 4, 7, 9, 6, 3, 3, padding=1, double=True),
    Conv("first-layer", 1, 3, 19, 21, 9, 7, 7, stride=2, padding=3),
    Conv("kernel-2x5", 2, 2, 6, 13, 5, 2, 5, padding=((0, 1), (2, 2))),
    Conv("kernel-5x5", 2, 3, 9, 12, 6, 5, 5, padding=2),
    Conv("kernel-5x5-stride2", 1, 9, 13, 11, 5, 5, 5, stride=2, padding=1),
    Conv("kernel-5x1", 1, 3, 9, 4, 4, 5, 1, padding=(2, 0)),
    Conv("kernel-1x4", 1, 3, 4, 9, 4, 1, 4),
    Conv("kernel-is-image", 2, 3, 5, 4, 7, 5, 4, double=True),
    Conv("even-kernel", 1, 2, 8, 8, 3, 4, 4, padding=((1, 2), (2, 1))),
    Conv("1x1", 3, 9, 5, 6, 7, 1, 1, double=True),
    Conv("1x1-stride2", 2, 5, 7, 8, 6, 1, 1, stride=2),
    Conv("1x1-padded", 1, 3, 4, 5, 6, 1, 1, padding=1),
    Conv("stride2", 2, 3, 11, 12, 6, 3, 3, stride=2, padding=1, double=True),
    Conv("stride-2x3", 1, 3, 12, 17, 7, 3, 3, stride=(2, 3), padding=(1, 2), double=True),
    Conv("stride-beyond-kernel", 1, 2, 13, 14, 5, 2, 2, stride=(5, 4), padding=1),
    Conv("stride-beyond-image", 1, 2, 5, 6, 3, 3, 3, stride=9),
    Conv("leftover-rows", 1, 2, 10, 10, 4, 3, 3, stride=4),
    Conv("padding-beyond-kernel", 1, 2, 4, 5, 6, 3, 3, padding=5, double=True),
    Conv("padding-beyond-image", 1, 1, 2, 2, 3, 2, 2, padding=((3, 4), (5, 0))),
    Conv("four-sides", 2, 2, 6, 7, 5, 3, 3, padding=((0, 2), (3, 1)), double=True),
    Conv("crop", 1, 3, 9, 10, 6, 3, 3, padding=((-1, -2), (-2, -1)), double=True),
    Conv("crop-and-pad", 2, 2, 8, 9, 5, 3, 2, stride=(1, 2), padding=((2, -3), (-1, 4)), double=True),
    Conv("crop-strided-dilated", 1, 2, 14, 13, 4, 3, 3, stride=2, padding=((-2, 1), (1, -3)), dilation=2),
    Conv("dilation2", 1, 3, 9, 11, 6, 3, 3, padding=2, dilation=2, double=True),
    Conv("dilation-3x2", 2, 2, 12, 9, 5, 3, 3, stride=(2, 1), padding=(2, 1), dilation=(3, 2), double=True),
    Conv("dilation-beyond-image", 1, 2, 5, 5, 4, 2, 2, padding=4, dilation=7),
    Conv("groups2", 2, 4, 7, 8, 6, 3, 3, padding=1, groups=2, double=True),
    Conv("groups3-strided", 1, 9, 8, 9, 12, 3, 2, stride=2, padding=1, groups=3),
    Conv("groups-7-filters", 1, 4, 6, 11, 14, 3, 3, padding=1, groups=2),
    Conv("depthwise", 2, 7, 9, 10, 7, 3, 3, padding=1, groups=7, double=True),
    Conv("depthwise-stride2", 1, 6, 11, 9, 6, 3, 3, stride=2, padding=1, groups=6),
    Conv("depthwise-5x5-dilated", 1, 5, 12, 13, 5, 5, 5, padding=4, dilation=2, groups=5),
    Conv("depthwise-wide", 1, 3, 4, 37, 3, 3, 3, padding=1, groups=3),
    Conv("multiplier2", 1, 5, 7, 8, 10, 3, 3, padding=1, groups=5, double=True),
    Conv("multiplier3-strided", 2, 3, 9, 8, 9, 3, 3, stride=2, padding=1, groups=3),
    Conv("many-to-one", 1, 8, 6, 6, 2, 3, 3, padding=1, groups=2),
    Conv("one-filter", 2, 5, 6, 7, 1, 3, 3, padding=1),
    Conv("one-channel", 2, 1, 8, 9, 5, 3, 3, padding=1),
    Conv("batch5", 5, 2, 5, 5, 4, 3, 3, padding=1, double=True),
    Conv("batch-empty", 0, 3, 6, 7, 4, 3, 3, padding=1, double=True),
    Conv("no-channels", 2, 0, 5, 6, 3, 3, 3, padding=1),
    Conv("no-filters", 2, 3, 5, 6, 0, 3, 3, padding=1),
    Conv("no-rows", 2, 3, 0, 5, 4, 3, 3, padding=(2, 0)),
    Conv("no-columns", 1, 4, 6, 0, 6, 3, 3, padding=(1, 2), groups=2),
    Conv("signal", 2, 3, 1, 29, 6, 1, 5, padding=(0, 2)),
    Conv("column", 1, 3, 29, 1, 6, 5, 1, padding=(2, 0)),
    Conv("plane-7x7", 1, 16, 7, 7, 18, 3, 3, padding=1),
    Conv("plane-14x14", 1, 6, 14, 14, 13, 3, 3, padding=1),
    Conv("tall", 1, 2, 41, 3, 5, 3, 3, padding=1),
    *(Conv(f"filters-{n}", 1, 2, 5, 6, n, 3, 3, padding=1, double=n in (6, 9)) for n in (5, 6, 7, 8, 9, 11, 12, 13)),
    *(Conv(f"filters-{n}", 1, 3, 3, 3, n, 2, 2) for n in (15, 16, 17, 23, 24, 25, 49)),
    *(Conv(f"pixels-{n}", 1, 3, 1, n, 7, 1, 1, double=n in (25, 47)) for n in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17)),
    *(Conv(f"pixels-{n}", 1, 2, 1, n, 9, 1, 1, double=n in (23, 49)) for n in (23, 24, 25, 31, 33, 47, 48, 49, 97)),
    *(Conv(f"rows-{n}", 1, 2, 3, n, 3, 3, 3, padding=1, double=n in (3, 9)) for n in (1, 2, 3, 4, 5, 7, 8, 9)),
    *(Conv(f"rows-{n}", 1, 2, 4, n, 3, 3, 3, padding=1) for n in (15, 16, 17, 31, 32, 33)),
    *(Conv(f"strided-rows-{n}", 1, 2, 5, n, 3, 3, 3, stride=2, padding=1) for n in (13, 14, 15, 16, 17, 31, 33)),
    *(Conv(f"depth-{n}", 1, n, 2, 3, 7, 1, 1, double=n == 385) for n in (127, 128, 129, 255, 256, 257, 383, 384, 385)),
    *(Conv(f"depth-{n}", 1, n, 1, 2, 3, 1, 1, double=n == 769) for n in (511, 512, 513, 767, 768, 769)),
    Conv("depth-43x9", 1, 43, 4, 5, 9, 3, 3, padding=1),  # 387: blocks end inside a channel
    Conv("depth-86x9-strided", 2, 86, 5, 5, 7, 3, 3, stride=2, padding=1),  # 774
    *(Conv(f"lone-{n}", 1, 43, 1, n, 9, 1, 1, double=n in (49, 50)) for n in (49, 50, 51, 52)),  # past the last vector
    Conv("flat-32x32", 1, 33, 32, 32, 17, 1, 1),  # planes that alias are packed, a panel of pixels for all filters
    Conv("flat-15x17", 1, 80, 15, 17, 9, 1, 1, double=True),  # planes read in place, in several blocks
    Conv("flat-filters-137", 2, 5, 9, 11, 137, 1, 1),
    Conv("strided-filters-137", 1, 3, 7, 9, 137, 3, 3, stride=2, padding=1),  # enough to be split between threads
    # Rows of the map that vectors fill, or nearly: read from the copied rows, in several blocks
    Conv("whole-rows-31", 1, 28, 20, 31, 9, 3, 3, padding=1, double=True),
    Conv("whole-rows-32-stride4", 1, 10, 31, 127, 5, 5, 5, stride=4, padding=2, double=True),
    Conv("whole-rows-48-dilated", 1, 2, 12, 48, 4, 3, 3, padding=2, dilation=2),
    Conv("whole-rows-64-groups", 1, 6, 7, 64, 6, 3, 2, padding=((1, 1), (0, 1)), groups=2),
    Conv("whole-rows-110-strided", 1, 3, 17, 220, 5, 7, 7, stride=2, padding=3),
    # Rows of two planes in one vector, the last plane alone; columns that end inside a vector
    Conv("depthwise-planes-7", 3, 5, 7, 7, 5, 3, 3, padding=1, groups=5),
    Conv("depthwise-planes-3", 3, 5, 6, 3, 10, 3, 3, padding=1, groups=5, double=True),
    Conv("depthwise-planes-stride2", 3, 3, 13, 14, 3, 3, 3, stride=2, padding=1, groups=3),
    Conv("depthwise-columns-stride2", 2, 2, 9, 63, 2, 3, 3, stride=2, padding=1, groups=2, double=True),
    Conv("depthwise-one-row", 3, 2, 1, 9, 2, 3, 3, padding=1, groups=2),
    *(Conv(f"tiles-{n}", 1, 17, 4, 4 * n, n + 20, 3, 3, padding=1, double=n == 12) for n in (11, 12, 13)),
    # Runs of pixels that all filters meet, panels of filters in one call; a plane whose first pixels lie before a cache line
    Conv("runs-20-40", 1, 20, 15, 17, 40, 1, 1, double=True),
    Conv("panels-252-34", 1, 252, 2, 9, 34, 1, 1, double=True),
    Conv("panels-28x9-33", 1, 28, 3, 6, 33, 3, 3, padding=1),
    # Tiles of three vectors, and what is left: planes read in place, and packed
    Conv("wide-162-32", 1, 162, 3, 17, 32, 1, 1, double=True),
    Conv("wide-66-195", 1, 66, 5, 11, 195, 1, 1),
    Conv("lone-7x7-257", 1, 6, 7, 7, 257, 1, 1, double=True),  # a lone pixel; chunks of filters
    Conv("lone-7x7-strided", 1, 4, 13, 13, 20, 3, 3, stride=2, padding=1),
    Conv("headed-28x40", 1, 6, 28, 40, 21, 1, 1, double=True),
    *(Conv(f"few-filters-{n}", 1, 9, 9, 12, n, 1, 1, double=n in (1, 3)) for n in (1, 2, 3, 4)),
    *(Conv(f"filters-{n}", 1, 3, 5, 14, n, 2, 2) for n in (18, 28, 31, 33)),
    Conv("one-row-strided", 2, 3, 9, 40, 5, 1, 3, stride=2, padding=1, double=True),
    Conv("one-column-strided", 1, 3, 40, 9, 5, 3, 1, stride=(3, 2), padding=1),
    Conv("1x1-strided-padded", 2, 6, 13, 37, 21, 1, 1, stride=(2, 3), padding=1),
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "two problems of one name"

# (case, dtype): float32 in full, float64 in part
RUNS = [(case, "float32") for case in CASES] + [(case, "float64") for case in CASES if case.double]
RUN_IDS = [f"{case.name}-{dtype}" for case, dtype in RUNS]


def integers(shape, dtype, seed, largest=4):
    """Integer-valued data: every sum in these tests is exact."""
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(dtype)


def normals(shape, dtype, seed):
    """Zero-mean random data."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


KINDS = {"integers": integers, "normals": normals}


def _arguments(problem):
    return {
        "stride": (problem.stride_h, problem.stride_w),
        "pads": (problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right),
        "dilation": (problem.dil_h, problem.dil_w),
        "groups": problem.G,
    }


@functools.cache
def solved(case, dtype, kind):
    """Data and exact results of a case, computed once for all engines: a dict of read-only arrays."""
    problem, make = case.problem(dtype), KINDS[kind]
    seed = sum(map(ord, case.name))
    x, w = make(problem.input_shape, dtype, seed), make(problem.weight_shape, dtype, seed + 1)
    bias, grad = make((problem.OC,), dtype, seed + 2), make(problem.output_shape, dtype, seed + 3)
    found = {"x": x, "w": w, "bias": bias, "grad_output": grad}
    found.update(solve(problem, x, w, grad))
    if kind == "normals":
        sizes = solve(problem, abs(x), abs(w), abs(grad))
        found.update({f"abs_{name}": value for name, value in sizes.items()})
    for array in found.values():
        array.flags.writeable = False
    return found


def solve(problem, x, w, grad_output):
    """The exact forward result and both gradients."""
    arguments = _arguments(problem)
    return {
        "conv": oracle.conv2d(x, w, **arguments),
        "grad_input": oracle.conv2d_grad_input(problem.input_shape, w, grad_output, **arguments),
        "grad_weight": oracle.conv2d_grad_weight(x, problem.weight_shape, grad_output, **arguments),
    }


@st.composite
def convolutions(draw, largest_image=11):
    """Any convolution of small extents whose kernel fits into the padded image."""
    small = st.integers(1, 3)
    groups = draw(st.sampled_from((1, 1, 2, 3)))
    IC, OC = groups * draw(small), groups * draw(st.integers(1, 5))
    axes = []
    for _ in "hw":
        extent, kernel, dilation = draw(st.integers(1, largest_image)), draw(st.integers(1, 4)), draw(small)
        before = draw(st.integers(-2, 4))
        short = max(0, dilation * (kernel - 1) + 1 - extent - before)
        after = draw(st.integers(min(short, 4) if short else -2, max(short, 4)))
        after = max(after, dilation * (kernel - 1) + 1 - extent - before)
        axes.append((extent, kernel, dilation, (before, after), draw(st.integers(1, 4))))
    (IH, KH, dil_h, pads_h, stride_h), (IW, KW, dil_w, pads_w, stride_w) = axes
    return Conv(
        "random", draw(st.integers(0, 3)), IC, IH, IW, OC, KH, KW, (stride_h, stride_w), (pads_h, pads_w),
        (dil_h, dil_w), groups,
    )  # fmt: skip
