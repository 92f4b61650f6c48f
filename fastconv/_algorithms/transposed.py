"""The gradient of the input by the forward machinery.

With stride 1 it is a convolution of grad_output with the weight turned by 180 degrees and its channel axes swapped,
padded by dilation * (kernel - 1) - pad. With stride s and dilation 1, the input rows of one residue modulo s meet every
s-th kernel row only: s*s such convolutions, each dense, each filling every s-th row and column.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fastconv._algorithms import Step, lines
from fastconv._algorithms.elementwise import all_finite
from fastconv._problem import ConvProblem

MOST_PHASES = 1024  # to plan them takes some microseconds each; of a larger stride most hold no kernel cell at all


class Phase(NamedTuple):
    """One residue: cells of grad_input it fills, kernel cells it reads, its convolution (None: no kernel cell)."""

    rows: slice
    columns: slice
    kernel_rows: slice
    kernel_columns: slice
    problem: ConvProblem | None


def refusal(problem: ConvProblem) -> str | None:
    """Why this form does not apply; None if it does."""
    for stride, dilation in ((problem.stride_h, problem.dil_h), (problem.stride_w, problem.dil_w)):
        if stride > 1 and dilation > 1:
            return f"stride is {stride} and dilation {dilation}, one of them must be 1"
    if problem.stride_h * problem.stride_w > MOST_PHASES:
        return f"strides {problem.stride_h} and {problem.stride_w} make more than {MOST_PHASES} convolutions"
    return None


def _axis(extent: int, kernel: int, stride: int, dil: int, pad: int, residue: int) -> tuple[int, int, int, int]:
    """For input cells i with (i + pad) % stride == residue: first i, their number, kernel cells, pad."""
    first = (residue - pad) % stride
    count = len(range(first, extent, stride))
    cells = len(range(residue, kernel, stride))
    # Cell first + j*stride meets output (first + pad - residue) / stride + j - t through kernel cell residue + t*stride
    shift = (first + pad - residue) // stride
    return first, count, cells, dil * (cells - 1) - shift


def phases(problem: ConvProblem) -> list[Phase]:
    """The convolutions that make up the gradient, in the order of their first cells; one, of everything, for stride 1."""
    found: list[Phase] = []
    p = problem
    for residue_h in range(p.stride_h):
        first_h, IH, KH, pad_top = _axis(p.IH, p.KH, p.stride_h, p.dil_h, p.pad_top, residue_h)
        for residue_w in range(p.stride_w):
            first_w, IW, KW, pad_left = _axis(p.IW, p.KW, p.stride_w, p.dil_w, p.pad_left, residue_w)
            if IH == 0 or IW == 0:
                continue
            inner = None
            if KH and KW:
                inner = replace(
                    p, IC=p.OC, IH=p.OH, IW=p.OW, OC=p.IC, KH=KH, KW=KW, OH=IH, OW=IW, stride_h=1, stride_w=1,
                    pad_top=pad_top, pad_left=pad_left,
                    pad_bottom=IH - 1 + p.dil_h * (KH - 1) + 1 - p.OH - pad_top,
                    pad_right=IW - 1 + p.dil_w * (KW - 1) + 1 - p.OW - pad_left,
                )  # fmt: skip
            found.append(
                Phase(
                    slice(first_h, p.IH, p.stride_h),
                    slice(first_w, p.IW, p.stride_w),
                    slice(residue_h, p.KH, p.stride_h),
                    slice(residue_w, p.KW, p.stride_w),
                    inner,
                )
            )
    return sorted(found, key=lambda phase: (phase.rows.start, phase.columns.start))


def of_finite(k: Any, step: Step, definition: Step) -> Step:
    """``step``, but ``definition`` for weights that are not finite.

    The zeros around grad_output times Inf would make NaN in cells that meet no such product.
    """

    def run(grad_output, weight, *others):
        (step if all_finite(k, weight, others[-1]) else definition).run(grad_output, weight, *others)

    return replace(step, run=run, workspace=lambda n: max(step.workspace(n), definition.workspace(n)))


def grad_input(k: Any, problem: ConvProblem, forward: Callable[..., Step], definition: Step) -> Step:
    """grad_input by the step that ``forward`` makes for each phase; ``definition`` takes what those cannot."""
    found = phases(problem)
    inner = [phase.problem for phase in found if phase.problem]
    if max(problem.stride_h, problem.stride_w) > 1:
        step = _by_phases(k, problem, found, forward)
    elif inner:
        step = forward(k, inner[0], turned=True)
    else:
        return definition
    bordered = any(max(p.pad_top, p.pad_left, p.pad_bottom, p.pad_right) > 0 for p in inner)
    return of_finite(k, step, definition) if bordered else step


def _by_phases(k: Any, problem: ConvProblem, found: list[Phase], forward: Callable[..., Step]) -> Step:
    """Of a stride: each phase by itself, then their cells in turns."""
    # Of a 1x1 kernel a phase has the weight as it is, which packing turns
    whole = problem.KH == problem.KW == 1
    parts = [
        (phase, phase.problem, forward(k, phase.problem, turned=whole) if phase.problem else None) for phase in found
    ]
    steps = [step for *_, step in parts if step]
    filters = 0 if whole else lines(problem.OC * problem.ICG * problem.KH * problem.KW)
    cells = lines(math.prod(problem.input_shape))
    by_group = (problem.G, problem.OCG, problem.ICG, problem.KH, problem.KW)
    low, high, geometry = problem.act_min, problem.act_max, problem.geometry()

    def run(grad_output, weight, bias, output, workspace, n_threads):
        turned_space, space, rest = np.split(workspace, (filters, filters + cells))
        first = 0
        for phase, inner, step in parts:
            shape = output[:, :, phase.rows, phase.columns].shape
            part = space[first : first + math.prod(shape)].reshape(shape)
            first += part.size
            if inner is None or step is None:  # no kernel cell reaches these input cells
                value = np.clip(bias if bias.size else np.zeros(1), low, high).astype(output.dtype)
                part[...] = value[:, None, None]
                continue
            if whole:
                step.run(grad_output, weight, bias, part, rest, n_threads)
                continue
            source = weight.reshape(by_group)[..., phase.kernel_rows, phase.kernel_columns]
            turned = turned_space[: source.size].reshape(inner.weight_shape)
            by_input = turned.reshape(problem.G, problem.ICG, problem.OCG, inner.KH, inner.KW)
            for kh, kw in np.ndindex(inner.KH, inner.KW):  # tap by tap: NumPy's inner loop runs over channels
                by_input[..., kh, kw] = source[..., -1 - kh, -1 - kw].swapaxes(1, 2)
            step.run(grad_output, turned, bias, part, rest, n_threads)
        k.im2col.interleave(space, output, rest[:0], geometry, n_threads)

    def workspace(n_workers):
        return filters + cells + max((step.workspace(n_workers) for step in steps), default=0)

    packed = filters + max((step.packed_elements for step in steps), default=0)
    return Step(run, workspace, packed_elements=packed, detail=steps[0].detail if steps else "")
