"""What the asv benchmarks share: parameters, data, and when a combination is skipped.

Parameters are constants, never what happens to be installed, so that stored results stay comparable. What cannot
run here raises NotImplementedError in ``setup``, which asv records as "skipped"; ``setup`` also makes the first call,
so that no compilation is timed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fastconv
from fastconv import _backends
from fastconv._plan import ALGORITHMS as ALGORITHM_MODULES
from fastconv._problem import ConvProblem, PoolProblem

from . import shapes
from ._timing import ALLOWED, cpus_for, gather, spread
from .shapes import Shape

BACKENDS = ("cython", "numba", "reference")
KERNELS = ("cython-x86_64_v4", "cython-x86_64_v3", "cython-baseline", "numba", "reference")  # back end and ISA
ALGORITHMS = ("im2col", "direct")
FORWARD = (*ALGORITHMS, "winograd", "winograd_wide")  # where only the forward is timed
THREADS = (1, 2)

SMOKE_NAMES = tuple(shape.name for shape in shapes.SMOKE)
SMOKE_CONVS = tuple(shape.name for shape in shapes.SMOKE if shape.kernel and not shape.pool)
SMOKE_POOLS = tuple(shape.name for shape in shapes.SMOKE if not shape.kernel)

# A few layers of every class: asv tracks these; `python -m benchmarks` runs all of them
CONVS = (
    "vgg16.conv1_2",
    "resnet50.layer1.conv",
    "resnet50.layer3.conv",
    "resnet50.layer4.conv",
    "resnet50.layer1.expand",
    "resnet50.layer3.reduce",
    "mobilenetv2.block3.project",
    "resnet50.layer2.conv1",
    "alexnet.conv2",
    "vgg16.conv1_1",
    "resnet50.conv1",
    "mobilenetv2.block3.depthwise",
    "mobilenetv2.block8.depthwise",
    *SMOKE_CONVS,
)
POOLS = ("vgg16.pool2", "resnet50.pool1", "pools.3x3_112_idx", "vgg16.pool4", *SMOKE_POOLS)

REFERENCE_LIMIT = 3_000_000  # multiply-adds, or elements of a pool: above, the NumPy reference is not worth the wait


class Timed:
    """asv's attributes for benchmarks of calls that take microseconds to milliseconds."""

    timeout = 300.0
    warmup_time = 0.05
    sample_time = 0.01
    repeat = (5, 50, 1.0)


def get(name: str) -> Shape:
    """The shape of that name, smoke shapes included."""
    return next(shape for shape in (*shapes.SHAPES, *shapes.SMOKE) if shape.name == name)


def require(
    kernel: str, shape: Shape | None = None, threads: int = 1, *, large: bool = False
) -> tuple[str, str | None]:
    """(back end, ISA) of a parameter such as "cython-x86_64_v3"; NotImplementedError if that cannot run here.

    The reference back end is timed on small shapes alone: ``large`` or the layer's own size tell.
    """
    backend, _, isa = kernel.partition("-")
    reason = _backends.refusal(backend, isa or None)
    if reason:
        raise NotImplementedError(f"{kernel}: {reason}")
    if threads > len(ALLOWED):
        raise NotImplementedError(f"{threads} threads, {len(ALLOWED)} CPUs")
    if backend == "reference":
        if threads > 1:
            raise NotImplementedError("the reference back end runs on one thread")
        if large or (shape is not None and max(shape.macs, np.prod(shape.input_shape)) > REFERENCE_LIMIT):
            raise NotImplementedError("the reference back end is timed on small shapes alone")
    fastconv.set_num_threads(threads)
    return backend, isa or None


def place(call: Callable[[], Any], threads: int) -> None:
    """Busy threads on a CPU each, for the rest of this process: left alone, two may share one for many calls."""
    if threads > 1:
        gather(cpus_for(threads))
        call()
        spread(call, cpus_for(threads))


class Data:
    """Input, weight, bias and gradient of a layer: standard normal, from a seed made of its name."""

    def __init__(self, shape: Shape, dtype: str = "float32") -> None:
        rng = np.random.default_rng(zlib.crc32(shape.name.encode()))

        def array(*extents: int) -> np.ndarray:
            return rng.standard_normal(extents, dtype=dtype)

        self.input = array(*shape.input_shape)
        if shape.kernel:
            self.weight = array(*shape.weight_shape)
            self.weight /= np.sqrt(self.weight[0].size).astype(dtype)
            self.bias = array(shape.OC)
        self.grad_output = array(*shape.output_shape)


def conv_problem(shape: Shape, dtype: str = "float32") -> ConvProblem:
    """The convolution of a layer, with bias and ReLU."""
    return ConvProblem.from_args(
        "benchmark", shape.input_shape, shape.weight_shape, dtype, shape.stride, shape.padding, 1, shape.groups,
        bias_shape=(shape.OC,), activation="relu",
    )  # fmt: skip


def require_algorithm(algorithm: str, problem: ConvProblem) -> None:
    """NotImplementedError if an algorithm refuses the layer."""
    reason = ALGORITHM_MODULES[algorithm].refusal(problem, "forward")
    if reason:
        raise NotImplementedError(f"{algorithm}: {reason}")


def pool_problem(shape: Shape, dtype: str = "float32") -> PoolProblem:
    return PoolProblem.from_args(
        "benchmark", shape.input_shape, dtype, shape.pool, shape.pool_stride, shape.pool_padding
    )
