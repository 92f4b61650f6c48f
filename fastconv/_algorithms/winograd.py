"""Convolution by Winograd's minimal filtering, dilation 1: 3 x 3 kernels with stride 1, and wider ones.

3 x 3 in tiles of 2, 4 or 6 cells. Without a forced ``tile`` the cheaper one of 2 and 4 by `cost` is taken: 4 for most
planes, 2 where many channels meet few pixels, as its transformed weight is less than half as large. 6 multiplies least,
but its error bound is nine times that of 4 (tests/tolerance.py): only who asks for it gets it.

Wider kernels as an algorithm of its own (`WIDE`), of tiles that need 6 x 6 cells as those of 4 do, with their error bound:
5 x 5 in tiles of 2; and with stride S, of K x K where 2 S < K <= 3 S, in tiles of 4, as 3 x 3 taps of the kernel meet each
of the S x S images of every S-th row and column: 5 x 5 with stride 2, AlexNet's 11 x 11 with stride 4.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastconv._algorithms import Step, convolution, im2col, kernel_workspace, packing, transposed
from fastconv._algorithms.elementwise import all_finite
from fastconv._problem import GEO_TILE, WINOGRAD_POINTS, ConvProblem

CHOICES = (4, 2)  # of a 3 x 3 kernel
MOST_STRIDE = 4  # of a wider one
THIN = 4  # channels, at most, of layers whose vectors are along tiles (with SSE 3)


def refusal(problem: ConvProblem, op: str, *, tile: int = 0) -> str | None:
    """Why Winograd's algorithm does not apply; None if it does."""
    if (problem.KH, problem.KW) != (3, 3):
        return f"the kernel is {problem.KH} x {problem.KW}, it needs 3 x 3"
    for name, numbers in (
        ("stride", (problem.stride_h, problem.stride_w)),
        ("dilation", (problem.dil_h, problem.dil_w)),
    ):
        if numbers != (1, 1):
            return f"{name} is {numbers[0] if numbers[0] == numbers[1] else numbers}, it needs 1"
    return None


def _refusal_of_wide(problem: ConvProblem, op: str) -> str | None:
    K, stride = problem.KH, problem.stride_h
    for name, (rows, columns) in (
        ("kernel", (K, problem.KW)),
        ("stride", (stride, problem.stride_w)),
        ("dilation", (problem.dil_h, problem.dil_w)),
    ):
        if rows != columns:
            return f"the {name} is {rows} x {columns}, it needs a square one"
    if problem.dil_h != 1:
        return f"dilation is {problem.dil_h}, it needs 1"
    if stride > MOST_STRIDE:
        return f"stride is {stride}, it needs {MOST_STRIDE} or less"
    least, most = (5, 5) if stride == 1 else (2 * stride + 1, 3 * stride)
    if not least <= K <= most:
        extents = f"{least} to {most} rows" if least < most else f"{least}"
        return f"the kernel has {K} rows, with stride {stride} it needs {extents}"
    if op == "grad_weight" or (op == "grad_input" and stride > 1):
        return f"it has no {op} with stride {stride}"
    return None


def tile_of_wide(problem: ConvProblem) -> int:
    """Cells of a tile that needs 6 x 6 cells of the image."""
    return 2 if problem.stride_h == 1 else 4


def cost(problem: ConvProblem, op: str, *, packed: bool = False, tile: int = 0) -> float:
    """Estimated nanoseconds on one thread: of ``tile``, or of the best choice."""
    if op == "grad_input":
        inner = [phase.problem for phase in transposed.phases(problem) if phase.problem]
        turning = problem.OC * problem.ICG * problem.KH * problem.KW * 0.5
        return turning + sum(cost(each, "forward", packed=packed, tile=tile) for each in inner)
    one = _grad_weight_cost if op == "grad_weight" else partial(_cost, packed=packed)
    return min(one(problem, each) for each in _tiles(problem, tile))


def _tiles(problem: ConvProblem, tile: int) -> tuple[int, ...]:
    """The tiles to choose from."""
    if problem.KH > 3:
        return (tile_of_wide(problem),)
    return (tile,) if tile else CHOICES


def _grad_weight_cost(problem: ConvProblem, tile: int) -> float:
    """Products as in `_cost`; a third of a ns for each transformed cell; 0.6 ns to finish each cell of the products."""
    cells = (tile + 2) ** 2
    tiles = problem.N * -(-problem.OH // tile) * -(-problem.OW // tile)
    channels, filters = -(-problem.ICG // 6) * 6, -(-problem.OCG // 8) * 8
    products = cells * channels * filters * problem.G
    moving = tiles * cells * problem.G * (-(-problem.ICG // 8) * 8 + filters) / 3.0
    return tiles * products / 45.0 + products * 0.6 + moving + 4000.0


def _cost(problem: ConvProblem, tile: int, packed: bool) -> float:
    """Products at 45 multiply-adds a ns, a third of a ns for each transformed cell, and the weight.

    The transformed weight is read once for each block of tiles, 25 bytes a ns; making it costs 0.25 ns an element,
    more than twice that where it leaves the cache, and twice as much for the taps of a wider kernel.
    Phases of few channels that share vectors take half a ns for each transformed cell, 2 for each of the image.
    Of a wider kernel it must save 20 us, of THIN channels 10: small layers keep the more exact sum. Tiles of 4 on so few
    channels come in squares of 1, 2 or 4 x 4, taken as 2 x 4, which are filled up. Of those only units with a pool are told
    apart: where maps are stored whole, that takes most of what products save, and photographs keep the more exact sum.
    """
    stride = problem.stride_h
    cells = (tile + -(-problem.KH // stride) - 1) ** 2
    plane = -(-problem.OH // tile) * -(-problem.OW // tile)
    tiles = problem.N * plane
    channels, filters = -(-problem.ICG // 8) * 8 * stride**2, -(-problem.OCG // 8) * 8
    dense = stride > 1 and problem.ICG < 8
    if dense:
        channels = -(-problem.ICG * stride**2 // 8) * 8
    weights = cells * channels * filters * problem.G
    most = 64 if max(channels, filters) > 128 else 32
    blocks = problem.N * -(-plane // most) if plane >= 100 else -(-problem.N // (100 // max(plane, 1)))
    element = (0.25 if weights < 3_000_000 else 0.6) * (1 if problem.KH == 3 else 2)
    packing = 0.0 if packed else weights * element
    if tile == 4 and problem.KH == 3 and problem.ICG <= THIN and problem.pool is not None:
        squares = -(-problem.OH // 8) * -(-problem.OW // 16)
        each, worth = problem.OC * (46.0 + 9.0 * problem.ICG) + problem.IC * 130.0, 10_000.0
        return problem.N * squares * each + packing + 4000.0 + worth
    moving = tiles * cells * problem.G * (channels + filters) / (2.0 if dense else 3.0)
    moving += tiles * tile**2 * problem.IC * stride**2 * 2.0 if dense else 0.0
    worth = 20_000.0 if problem.KH > 3 else 0.0
    return tiles * weights / 45.0 + blocks * weights * 4 / 25.0 + moving + packing + 4000.0 + worth


def _geometry(problem: ConvProblem, packed: bool, tile: int, turned: bool = False) -> np.ndarray:
    best = min(_tiles(problem, tile), key=lambda each: _cost(problem, each, packed))
    return problem.geometry(tile=best, turned=turned)


def _detail(geometry: np.ndarray) -> str:
    return f"tile       {geometry[GEO_TILE]} x {geometry[GEO_TILE]}"


def forward(k: Any, problem: ConvProblem, *, tile: int = 0, turned: bool = False) -> Step:
    """output = clamp(conv(input, weight) + bias); ``turned``: of the weight of the convolution whose adjoint this is."""
    geometry = _geometry(problem, False, tile, turned)
    size = int(k.winograd.packed_weight_size(geometry))
    return packing(k.winograd.pack_weight, size, geometry, _of_packed(k, problem, geometry))


def grad_input(k: Any, problem: ConvProblem, *, tile: int = 0) -> Step:
    """grad_input = clamp(adjoint of conv in its input (grad_output) + bias): a convolution with the turned weight."""
    return transposed.grad_input(k, problem, partial(forward, tile=tile), im2col.grad_input(k, problem))


def grad_weight(k: Any, problem: ConvProblem, *, tile: int = 0) -> Step:
    """grad_weight = adjoint of conv in its weight; where that is not finite, by im2col.

    Transforms spread a NaN over all cells of a kernel, and may overflow themselves.
    """
    geometry = problem.geometry(tile=min(_tiles(problem, tile), key=lambda each: _grad_weight_cost(problem, each)))
    kernel, definition = k.winograd.conv2d_grad_weight, im2col.grad_weight(k, problem)
    own = kernel_workspace(k, "winograd", "conv2d_grad_weight", geometry)

    def run(input, grad_output, output, workspace, n_threads):
        kernel(input, grad_output, output, workspace, geometry, n_threads)
        if not all_finite(k, output, n_threads):
            definition.run(input, grad_output, output, workspace, n_threads)

    def workspace(n_workers):
        return max(own(n_workers), definition.workspace(n_workers))

    return Step(run, workspace, detail=_detail(geometry))


def packed_size(k: Any, problem: ConvProblem, *, tile: int = 0) -> int:
    """Elements of a packed weight."""
    return int(k.winograd.packed_weight_size(_geometry(problem, True, tile)))


def pack(
    k: Any, problem: ConvProblem, weight: np.ndarray, packed: np.ndarray, n_threads: int, *, tile: int = 0
) -> None:
    """Pack ``weight`` for `forward_packed`."""
    k.winograd.pack_weight(weight, packed, packed[:0], _geometry(problem, True, tile), n_threads)


def forward_packed(k: Any, problem: ConvProblem, *, tile: int = 0) -> Step:
    """`forward` with the packed weight in place of the weight."""
    return _of_packed(k, problem, _geometry(problem, True, tile))


def _of_packed(k: Any, problem: ConvProblem, geometry: np.ndarray) -> Step:
    run, workspace = (
        convolution(k.winograd.conv2d, problem, geometry),
        kernel_workspace(k, "winograd", "conv2d", geometry),
    )
    return Step(run, workspace, detail=_detail(geometry))


def packed_layout(problem: ConvProblem, *, tile: int = 0) -> str:
    """One for each tile and kernel."""
    return "winograd_wide" if problem.KH > 3 else f"winograd_f{_geometry(problem, True, tile)[GEO_TILE]}"


_FUNCTIONS = {
    function.__name__: function
    for function in (refusal, cost, forward, grad_input, grad_weight, packed_layout, packed_size, pack, forward_packed)
}
FORCED = {
    f"winograd_f{tile}": SimpleNamespace(**{name: partial(each, tile=tile) for name, each in _FUNCTIONS.items()})
    for tile in WINOGRAD_POINTS
}
WIDE = SimpleNamespace(**_FUNCTIONS | {"refusal": _refusal_of_wide})
