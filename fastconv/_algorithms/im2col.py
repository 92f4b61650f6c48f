"""Convolution as a blocked matrix product: columns of the image are packed block by block, never all at once."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from fastconv._algorithms import Step, convolution, kernel_workspace, lines, packing, transposed
from fastconv._problem import ConvProblem


def refusal(problem: ConvProblem, op: str) -> str | None:
    """None: every convolution is a matrix product."""
    return None


def cost(problem: ConvProblem, op: str, *, packed: bool = False) -> float:
    """Estimated nanoseconds on one thread.

    About 40 multiply-adds a ns, taken as if tiles had 8 filters and 16 pixels of an image; packing the columns costs a copy
    of them, packing the weight about 2 ns for each 8 of its elements, unless it is ``packed``. A gradient of the weight has
    tiles of 8 rows of K, and turns grad_output.
    """
    filters = -(-problem.OCG // 8) * 8 * problem.G
    pixels = problem.N * -(-problem.OH * problem.OW // 16) * 16
    K = problem.ICG * problem.KH * problem.KW
    if op == "grad_weight":
        pixels = problem.N * problem.OH * problem.OW
        return pixels * (filters * -(-K // 8) * 8 / 40.0 + problem.G * K / 4.0 + problem.OC * 0.4) + 2000.0
    packing = 0.0 if packed else problem.OC * K / 4.0
    return pixels * filters * K / 40.0 + pixels * problem.G * K / 4.0 + packing + 2000.0


def forward(k: Any, problem: ConvProblem, *, turned: bool = False) -> Step:
    """output = clamp(conv(input, weight) + bias); ``turned``: of the weight of the convolution whose adjoint this is."""
    geometry = problem.geometry(turned=turned)
    return packing(k.im2col.pack_weight, packed_size(k, problem), geometry, forward_packed(k, problem))


def forward_packed(k: Any, problem: ConvProblem) -> Step:
    """`forward` of a weight that `pack` has laid out."""
    geometry = problem.geometry()
    return Step(convolution(k.im2col.conv2d, problem, geometry), kernel_workspace(k, "im2col", "conv2d", geometry))


def packed_layout(problem: ConvProblem) -> str:
    """There is one: panels of filters."""
    return "im2col"


def packed_size(k: Any, problem: ConvProblem) -> int:
    """Elements of the packed weight."""
    return int(k.im2col.packed_weight_size(problem.geometry()))


def pack(k: Any, problem: ConvProblem, weight: Any, packed: Any, n_threads: int) -> None:
    """Lay ``weight`` out in ``packed``."""
    k.im2col.pack_weight(weight, packed, packed[:0], problem.geometry(), n_threads)


def grad_input(k: Any, problem: ConvProblem) -> Step:
    """grad_input = clamp(adjoint of conv in its input (grad_output) + bias), by forward convolutions where it can."""
    geometry, low, high = problem.geometry(), problem.act_min, problem.act_max
    kernel = k.im2col.conv2d_grad_input

    def run(grad_output, weight, bias, output, workspace, n_threads):
        kernel(grad_output, weight, bias, low, high, output, workspace, geometry, n_threads)

    step = Step(run, kernel_workspace(k, "im2col", "conv2d_grad_input", geometry))
    return step if transposed.refusal(problem) else transposed.grad_input(k, problem, forward, step)


def grad_weight(k: Any, problem: ConvProblem) -> Step:
    """grad_weight = adjoint of conv in its weight."""
    if _meets_few_cells(problem):
        return _grad_weight_of_met(k, problem)
    if problem.KH == problem.KW == problem.G == 1 and problem.IC < problem.OC and _no_padding(problem):
        # The sum has two equal sides, of which the kernel turns the one it takes for grad_output: the smaller, the input
        by_input = _grad_weight(k, replace(problem, IC=problem.OC, OC=problem.IC), turned=True)

        def run(input, grad_output, *others):
            by_input.run(grad_output, input, *others)

        return replace(by_input, run=run)
    return _grad_weight(k, problem)


def _grad_weight(k: Any, problem: ConvProblem, *, turned: bool = False) -> Step:
    geometry = problem.geometry(turned=turned)
    kernel = k.im2col.conv2d_grad_weight

    def run(input, grad_output, output, workspace, n_threads):
        kernel(input, grad_output, output, workspace, geometry, n_threads)

    return Step(run, kernel_workspace(k, "im2col", "conv2d_grad_weight", geometry))


def _meets_few_cells(problem: ConvProblem) -> bool:
    """A 1x1 kernel with a stride and no padding leaves out whole rows and columns."""
    return problem.KH == problem.KW == 1 and max(problem.stride_h, problem.stride_w) > 1 and _no_padding(problem)


def _no_padding(problem: ConvProblem) -> bool:
    return not any((problem.pad_top, problem.pad_left, problem.pad_bottom, problem.pad_right))


def _grad_weight_of_met(k: Any, problem: ConvProblem) -> Step:
    """The met cells alone, copied together: stride 1."""
    met = replace(problem, IH=problem.OH, IW=problem.OW, stride_h=1, stride_w=1)
    step, size = grad_weight(k, met), math.prod(met.input_shape)
    rows, columns = slice(None, None, problem.stride_h), slice(None, None, problem.stride_w)

    def run(input, grad_output, output, workspace, n_threads):
        cells = workspace[:size].reshape(met.input_shape)
        cells[...] = input[:, :, rows, columns]
        step.run(cells, grad_output, output, workspace[lines(size) :], n_threads)

    return Step(run, lambda n_workers: lines(size) + step.workspace(n_workers))
