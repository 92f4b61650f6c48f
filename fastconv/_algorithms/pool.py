"""Pooling: one kernel an operation.

Operands by operation: max_pool2d (input; outputs output, indices), max_pool2d_backward (grad_output, indices),
max_unpool2d (input, indices), max_unpool2d_backward (grad_output, indices), avg_pool2d (input), avg_pool2d_backward
(grad_output).
"""

from __future__ import annotations

from typing import Any

from fastconv._algorithms import Step, kernel_workspace
from fastconv._problem import PoolProblem

OPS = (
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
)
TO_INPUT = ("max_pool2d_backward", "max_unpool2d", "avg_pool2d_backward")  # results of the input's shape


def step(k: Any, problem: PoolProblem, op: str) -> Step:
    """The step that runs kernel ``op``."""
    geometry = problem.geometry()
    kernel = getattr(k.pool, op)

    def run(*arrays):
        kernel(*arrays[:-1], geometry, arrays[-1])

    def run_max(input, output, indices, workspace, n_threads):  # for small calls: unpacking takes longer than they
        kernel(input, output, indices, workspace, geometry, n_threads)

    if op == "max_pool2d":
        run = run_max
    return Step(run, kernel_workspace(k, "pool", op, geometry))
