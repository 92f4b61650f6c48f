"""The kernels by name, for `fastconv warmup`."""

from __future__ import annotations

import importlib

import numpy as np

from fastconv._numba import _jit, _parallel, _store

STEMS = ("direct", "im2col", "winograd", "pool", "pad", "elementwise")
TEAM = "_parallel"  # what runs tasks, on several threads too, is compiled as they are
FIRST = (
    "direct.pooled_task", "direct.conv2d_task", "direct.depthwise_task", "im2col.pack_weight_task", "im2col.conv2d_task",
    "winograd.pack_weight_task", "winograd.conv2d_task", "winograd.input_task", "winograd.multiply_task",
    "winograd.output_task", "pool.max_pool2d_task", "pool.avg_pool2d_task", "pad.pad2d_task",
)  # fmt: skip

folder = _store.writable_folder


def _tasks() -> dict[str, _jit.Task]:
    for stem in STEMS:
        importlib.import_module(f"fastconv._numba.{stem}")
    return {task.name: task for task in _jit.tasks}


def kernels(everything: bool) -> list[tuple[str, str]]:
    """(name, dtype) of every task, or of those that first calls in float32 meet; the longest to compile first."""
    names = list(_tasks()) if everything else FIRST
    long = (".pooled_task", ".conv2d_task")
    order = sorted(names, key=lambda name: (not name.endswith(long), STEMS.index(name.partition(".")[0])))
    dtypes = ("float32", "float64") if everything else ("float32",)
    return [*((name, dtype) for name in order for dtype in dtypes), (TEAM, "")]


def compile(name: str, dtype: str) -> None:
    """Compile a kernel and keep it, unless it is there."""
    if name == TEAM:
        for function in (_parallel.launch, _parallel.serve):
            _parallel.machine_code(function)
    else:
        _tasks()[name].entry(np.dtype(dtype))
