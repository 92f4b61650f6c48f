"""One layer as a problem that every contestant solves: same numbers in, one expected result."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from .._timing import measure
from ..shapes import Shape

# Of max |expected|: Winograd's worst here is 2e-5, half precision of any kind starts at 1e-3
TOLERANCE = 1e-4

# Of a training step: where a sum rounds to the other side of 0, or another of two near maxima wins, a gradient takes
# another path. A wrong formula is off by the size of the gradients themselves.
STEP_TOLERANCE = 1e-2
LEARNING_RATE = 1e-30  # a step costs what it costs, but leaves the weights: each repetition is the same step

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)  # filters, 0: a max-pool
# (filters of each 3x3 convolution or 0, padding, width of the linear layer, whether batch normalisation stands behind each
# convolution): then ReLU, at last classes
NETWORKS = {
    "article": ((32, 0, 64, 0), 0, 1600, False),
    "vgg16": (VGG16, 1, 2048, False),
    "vgg16_bn": (VGG16, 1, 2048, True),
    "smoke": ((4, 0), 0, 100, False),
    "smoke_bn": ((4, 0), 0, 100, True),
}


class Unsupported(Exception):
    """The library cannot do this layer; the text says why."""


@dataclass(frozen=True)
class Case:
    """A layer. ``pool_pads`` (top, bottom, left, right) may differ from the shape's in a library that knows only
    its own padding rule: as many windows, one row and column further.
    """

    shape: Shape
    pool_pads: tuple[int, int, int, int] = field(default=(0, 0, 0, 0))

    @classmethod
    def of(cls, shape: Shape) -> Case:
        return cls(shape, (shape.pool_padding,) * 4)

    def with_pool_pads(self, *pads: int) -> Case:
        return replace(self, pool_pads=pads)

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = self.shape
        rng = np.random.default_rng(zlib.crc32(shape.name.encode()))
        if shape.op:
            return self._training_arrays(rng)
        input = rng.standard_normal(shape.input_shape, dtype=np.float32)
        if not shape.kernel:
            return input, np.empty(0, np.float32), np.empty(0, np.float32)
        weight = rng.standard_normal(shape.weight_shape, dtype=np.float32)
        weight /= np.float32(np.sqrt(weight[0].size))
        return input, weight, rng.standard_normal(shape.OC, dtype=np.float32)

    def _training_arrays(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Input, weight, and in the bias's place the gradient of the output; of a step images and labels."""
        shape = self.shape
        input = rng.standard_normal(shape.input_shape, dtype=np.float32)
        if shape.op == "step":
            return input, np.empty(0, np.float32), rng.integers(0, shape.OC, shape.batch)
        weight = rng.standard_normal(shape.weight_shape if shape.kernel else 0, dtype=np.float32)
        return input, weight, rng.standard_normal(shape.output_shape, dtype=np.float32)

    @property
    def gradient(self) -> np.ndarray:
        """Of the output; the labels of a step."""
        return self._arrays[2]

    @cached_property
    def parameters(self) -> list[np.ndarray]:
        """Of a step's network: weight and bias of every layer, drawn as torch draws them; of a normalisation near 1 and 0."""
        shape, rng = self.shape, np.random.default_rng(0)
        filters, _, features, normalised = NETWORKS[shape.name.partition(".")[2]]
        shapes, channels = [], shape.IC
        for each in filter(None, filters):
            shapes.append((each, channels, 3, 3))
            channels = each
        drawn = []
        for size in (*shapes, (shape.OC, features)):
            limit = 1 / np.sqrt(np.prod(size[1:]))
            drawn += [rng.uniform(-limit, limit, each).astype(np.float32) for each in (size, size[:1])]
            if normalised and len(size) == 4:
                drawn += [(near + rng.uniform(-0.1, 0.1, size[0])).astype(np.float32) for near in (1, 0)]
        return drawn

    @property
    def input(self) -> np.ndarray:
        return self._arrays[0]

    @property
    def weight(self) -> np.ndarray:
        return self._arrays[1]

    @property
    def bias(self) -> np.ndarray:
        return self._arrays[2]


@dataclass
class Prepared:
    """A layer ready to be timed.

    ``call`` is timed; ``outputs`` gives the last call's result as NCHW arrays (the pooled maps, then the indices where
    wanted), or () for what is no layer. ``note`` says layout and packing. ``case`` is what was really solved.
    ``share`` is the part of a call that counts: layout conversion that the library cannot leave out is taken off.
    ``work`` replaces the layer's own flops or bytes.
    """

    call: Callable[[], Any]
    outputs: Callable[[], tuple[np.ndarray, ...]]
    note: str
    case: Case
    share: float = 1.0
    work: float | None = None


def fastest(candidates: list[Prepared], seconds: float = 0.02) -> Prepared:
    """Of several layouts the one that is quickest in a short trial."""
    return min(candidates, key=lambda prepared: min(measure(prepared.call, seconds)) * prepared.share)


def expected(case: Case) -> tuple[tuple[np.ndarray, ...], str]:
    """The exact result and who computed it: torch in float64, or without torch fastconv's reference."""
    try:
        import torch
    except ImportError:
        return _expected_by_reference(case), "fastconv's reference back end, float64"
    shape = case.shape
    functional = torch.nn.functional
    if shape.op:
        from . import peer_torch

        with torch.inference_mode(False), torch.enable_grad():
            call, outputs = peer_torch.training(torch, case, torch.float64)
            call()
        return outputs(), "torch, float64"
    maps = torch.from_numpy(case.input).double()
    if shape.kernel:
        weight, bias = torch.from_numpy(case.weight).double(), torch.from_numpy(case.bias).double()
        maps = functional.conv2d(maps, weight, bias, shape.stride, shape.padding, 1, shape.groups).relu()
    if not shape.pool:
        return (maps.numpy(),), "torch, float64"
    top, bottom, left, right = case.pool_pads
    padded = functional.pad(maps, (left, right, top, bottom), value=float("-inf"))
    pooled, where = functional.max_pool2d(padded, shape.pool, shape.pool_stride, return_indices=True)
    if not shape.indices:
        return (pooled.numpy(),), "torch, float64"
    width = padded.shape[3]
    rows, columns = where.numpy() // width - top, where.numpy() % width - left
    return (pooled.numpy(), rows * maps.shape[3] + columns), "torch, float64"


def _expected_by_reference(case: Case) -> tuple[np.ndarray, ...]:
    import fastconv

    shape = case.shape
    if shape.op:
        from . import peer_fastconv

        call, outputs = peer_fastconv.training(fastconv, case, "reference", np.float64)
        call()
        return outputs()
    maps = case.input.astype(np.float64)
    if shape.kernel:
        maps = fastconv.conv2d(
            maps, case.weight.astype(np.float64), case.bias.astype(np.float64), shape.stride, shape.padding, 1,
            shape.groups, activation="relu", backend="reference",
        )  # fmt: skip
    if not shape.pool:
        return (maps,)
    top, bottom, left, right = case.pool_pads
    result = fastconv.max_pool2d(
        maps, shape.pool, shape.pool_stride, ((top, bottom), (left, right)), return_indices=shape.indices,
        backend="reference",
    )  # fmt: skip
    return result if shape.indices else (result,)


def error(outputs: tuple[np.ndarray, ...], exact: tuple[np.ndarray, ...]) -> float:
    """Largest error of the maps, relative to the largest exact value; inf if shape or indices are wrong."""
    if len(outputs) != len(exact) or any(a.shape != b.shape for a, b in zip(outputs, exact, strict=True)):
        return float("inf")
    if any(not np.array_equal(a, b) for a, b in zip(outputs[1:], exact[1:], strict=True)):
        return float("inf")
    largest = float(np.abs(exact[0]).max()) or 1.0
    worst = float(np.abs(outputs[0].astype(np.float64) - exact[0]).max())
    return worst / largest if np.isfinite(worst) else float("inf")
