"""Convolution by direct loops: no matrix, no packing. Depthwise layers, tiny problems, and the last resort."""

from __future__ import annotations

from typing import Any

from fastconv._algorithms import Step, convolution, kernel_workspace
from fastconv._problem import ConvProblem


def refusal(problem: ConvProblem, op: str) -> str | None:
    """None: direct loops compute everything."""
    return None


def cost(problem: ConvProblem, op: str, *, packed: bool = False) -> float:
    """Estimated nanoseconds on one thread: 15 multiply-adds a ns where a filter reads one channel, 8 elsewhere.

    Gradients of several channels: 1 with a stride, 6 in planes that fill few vectors. Nothing is packed.
    """
    rate = 15.0 if problem.ICG == 1 else 8.0
    if op != "forward" and problem.ICG > 1:
        strided = max(problem.stride_h, problem.stride_w) > 1
        rate = 1.0 if strided else 6.0 if problem.OW <= 14 else 8.0
    return problem.macs / rate + problem.N * problem.OC * 20.0


def forward(k: Any, problem: ConvProblem) -> Step:
    """output = clamp(conv(input, weight) + bias)."""
    geometry = problem.geometry()
    return Step(convolution(k.direct.conv2d, problem, geometry), kernel_workspace(k, "direct", "conv2d", geometry))


forward_packed = forward


def packed_layout(problem: ConvProblem) -> str:
    """There is one: the weight as it stands."""
    return "direct"


def packed_size(k: Any, problem: ConvProblem) -> int:
    """0: the kernel reads the weight as it stands."""
    return 0


def grad_input(k: Any, problem: ConvProblem) -> Step:
    """grad_input = clamp(adjoint of conv in its input (grad_output) + bias)."""
    geometry, low, high = problem.geometry(), problem.act_min, problem.act_max
    kernel = k.direct.conv2d_grad_input

    def run(grad_output, weight, bias, output, workspace, n_threads):
        kernel(grad_output, weight, bias, low, high, output, workspace, geometry, n_threads)

    return Step(run, kernel_workspace(k, "direct", "conv2d_grad_input", geometry))


def grad_weight(k: Any, problem: ConvProblem) -> Step:
    """grad_weight = adjoint of conv in its weight."""
    geometry = problem.geometry()
    kernel = k.direct.conv2d_grad_weight

    def run(input, grad_output, output, workspace, n_threads):
        kernel(input, grad_output, output, workspace, geometry, n_threads)

    return Step(run, kernel_workspace(k, "direct", "conv2d_grad_weight", geometry))
