"""Convolutions and pools touch no cell outside arrays, workspace and packed weight: each ends, or begins, at forbidden pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
from conftest import ENGINES, Engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are fenced by Linux's mprotect")
ROOT = Path(fastconv.__file__).parent.parent

# In a process of its own, which one forbidden access ends. Canaries see what is written beside an array, not what is read.
FENCES = """
import ctypes, faulthandler, mmap, resource, sys
import numpy as np

faulthandler.enable()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
FENCE, libc = 64 * mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def fenced(shape, dtype, at_end):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    raw = np.frombuffer(mmap.mmap(-1, pages + 2 * FENCE), np.uint8)
    for fence in (raw.ctypes.data, raw.ctypes.data + FENCE + pages):
        assert libc.mprotect(fence, FENCE, 0) == 0, ctypes.get_errno()
    begin = FENCE + (pages - size if at_end else 0)
    return raw[begin : begin + size].view(dtype).reshape(shape)
"""
KERNELS = """
import fastconv as fc
from fastconv import _arena, _plan
from conftest import Engine
from problems import CASES, integers, solved
from test_pool import CASES as POOLS
from tolerance import assert_same


def copied(array):
    new = fenced(array.shape, array.dtype, at_end)
    new[...] = array
    return new


def poisoned(shape, dtype):
    new = fenced(shape, dtype, at_end)
    new[...] = np.nan
    fc.clear_workspaces()  # the next call's is as large as it asks for
    return new


def convolve(case, dtype):
    problem, data = case.problem(dtype), solved(case, dtype, "integers")
    how = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups)
    x, w, bias, grad = (copied(data[name]) for name in ("x", "w", "bias", "grad_output"))

    def packed(**more):
        return fc.conv2d(x, fc.pack_conv2d_weight(w, x.shape, **how, algorithm=more["algorithm"]), bias, **how, **more)

    calls = (
        ("forward", lambda **more: fc.conv2d(x, w, bias, **how, **more), data["conv"] + data["bias"][:, None, None]),
        ("forward", packed, data["conv"] + data["bias"][:, None, None]),
        ("grad_input", lambda **more: fc.conv2d_grad_input(x.shape, w, grad, **how, **more), data["grad_input"]),
        ("grad_weight", lambda **more: fc.conv2d_grad_weight(x, w.shape, grad, **how, **more), data["grad_weight"]),
    )
    for op, call, exact in calls:
        for algorithm, module in _plan.ALGORITHMS.items():
            if module.refusal(problem, op):
                continue
            out = poisoned(exact.shape, dtype)
            call(algorithm=algorithm, out=out)
            if algorithm in ("im2col", "direct"):
                assert_same(out, exact.astype(dtype), f"{case.name} {op} {algorithm}")
            ran.add((op, algorithm))


def pool(case, dtype):
    x = copied(integers(case.shape, dtype, 1))
    window = case.kernel_size, case.stride, case.padding
    values, indices = fc.max_pool2d(x, *window, case.dilation, case.ceil_mode, return_indices=True)
    out = poisoned(values.shape, dtype)
    fc.max_pool2d(x, *window, case.dilation, case.ceil_mode, out=out)
    assert_same(out, values, case.name)
    fc.max_pool2d_backward(copied(values), copied(indices), x.shape, *window, case.dilation)
    if case.average:
        out = poisoned(values.shape, dtype)
        fc.avg_pool2d(x, *window, case.ceil_mode, out=out)
        fc.avg_pool2d_backward(copied(values), x.shape, *window, case.ceil_mode)


ran = set()
_arena.aligned_empty = lambda n_bytes: fenced((n_bytes,), np.uint8, at_end)
with Engine(sys.argv[1]).config():
    for at_end in (True, False):
        for dtype in ("float32", "float64"):
            for case in CASES:
                convolve(case, dtype)
            for case in POOLS:
                pool(case, dtype)
ops = {"forward": _plan.ALGORITHMS, "grad_input": ["im2col", "direct"], "grad_weight": ["im2col", "direct", "winograd"]}
wanted = {(op, algorithm) for op, algorithms in ops.items() for algorithm in algorithms}
assert wanted <= ran, wanted - ran
print("untouched")
"""


def run(code, *arguments):
    places = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=900, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": places},
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "reference"])
def test_kernels_stay_inside(name):
    engine = Engine(name)
    if engine.refusal:
        pytest.skip(f"{name}: {engine.refusal}")
    process = run(FENCES + KERNELS, name)
    assert process.returncode == 0 and process.stdout == "untouched\n", process.stderr[-3000:]


@pytest.mark.parametrize(("at_end", "byte"), [(True, "x.nbytes"), (False, "-1")])
def test_the_fences_stand(at_end, byte):
    """A byte behind or before a fenced array ends the process."""
    code = f"x = fenced((3, 5), 'float32', {at_end})\nx[...] = 1\nctypes.string_at(x.ctypes.data + {byte}, 1)\n"
    process = run(FENCES + code)
    assert process.returncode < 0, process.stderr[-2000:]
