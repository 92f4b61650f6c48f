"""How kernels combine. Each file: refusal(problem, op) -> None or the reason, cost(problem, op), a maker per operation.

``cost(..., packed=True)`` leaves out packing the weight: what a caller pays who has packed it before. A file that packs
also has packed_size, pack, and forward_packed, whose step takes the packed array in place of the weight.

A maker takes a kernel table and a problem and gives a `Step`: what to run and how much workspace it needs. Nothing here
knows which back end ``k`` is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


def kernel_workspace(k: Any, stem: str, kernel: str, geometry: np.ndarray) -> Callable[[int], int]:
    """``n_workers -> elements`` of one kernel."""
    return lambda n_workers: k.workspace(stem, kernel, geometry, n_workers)
