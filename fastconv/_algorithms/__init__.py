"""How kernels combine. Each file: refusal(problem, op) -> None or the reason, cost(problem, op), a maker per operation.

A maker takes a kernel table and a problem and gives a `Step`: what to run and how much workspace it needs. Nothing here
knows which back end ``k`` is.

``forward_packed`` makes the step that reads a weight packed beforehand by ``pack``, an array of ``packed_size`` elements;
0 of them mean that the weight is read as it stands. ``packed_layout`` names all that the layout depends on beside the
weight's shape, the groups and the kernels; ``cost(..., packed=True)`` leaves packing out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

OPS = ("forward", "grad_input", "grad_weight")
NO_IMAGE = {name: np.empty((0, 0, 0, 0), name) for name in ("float32", "float64")}
NO_INDICES = np.empty((0, 0, 0, 0), np.int64)


@dataclass(frozen=True)
class Step:
    """One way to do one operation.

    ``run(*operands, output, workspace, n_threads)``; ``workspace(n_workers)`` -> elements. Operands are, by operation:
    forward (input, weight, bias), grad_input (grad_output, weight, bias), grad_weight (input, grad_output).
    """

    run: Callable[..., None]
    workspace: Callable[[int], int]
    packed_elements: int = 0  # the part of the workspace that holds weights packed by the call
    detail: str = ""  # what `explain` adds


def convolution(kernel: Callable[..., None], problem: Any, geometry: np.ndarray) -> Callable[..., None]:
    """``kernel`` as ``run(input, weight, bias, output, workspace, n_threads)``.

    With a fused pool two outputs stand for one: ``pooled``, and ``indices`` (of length 0 if none are wanted).
    """
    low, high, no_image = problem.act_min, problem.act_max, NO_IMAGE[problem.dtype]

    def run(input, weight, bias, output, workspace, n_threads):
        kernel(input, weight, bias, low, high, output, no_image, NO_INDICES, workspace, geometry, n_threads)

    def run_pooled(input, weight, bias, pooled, indices, workspace, n_threads):
        kernel(input, weight, bias, low, high, no_image, pooled, indices, workspace, geometry, n_threads)

    return run if problem.pool is None else run_pooled


LINE = 16  # elements of a cache line, of float64 of two


def lines(elements: int) -> int:
    """So many, or a few more: what follows them in a workspace begins with a cache line, as kernels expect."""
    return -(-elements // LINE) * LINE


def packing(pack: Callable[..., None], size: int, geometry: np.ndarray, packed: Step) -> Step:
    """``packed``, a step that reads a packed weight, as one that packs it first, into ``size`` elements of workspace."""

    room = lines(size)

    def run(input, weight, *others):
        *bias_and_outputs, workspace, n_threads = others
        own, rest = workspace[:size], workspace[room:]
        pack(weight, own, rest, geometry, n_threads)
        packed.run(input, own, *bias_and_outputs, rest, n_threads)

    return replace(
        packed, run=run, workspace=lambda n_workers: room + packed.workspace(n_workers), packed_elements=room
    )


def kernel_workspace(k: Any, stem: str, kernel: str, geometry: np.ndarray) -> Callable[[int], int]:
    """``n_workers -> elements`` of one kernel."""
    return lambda n_workers: k.workspace(stem, kernel, geometry, n_workers)
