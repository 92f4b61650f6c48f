"""Kernels read and write no cell outside their arrays: each array ends, or begins, at a page that nobody may touch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ENGINES, Engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are fenced by Linux's mprotect")

# In a process of its own, which one forbidden access ends. Canaries see what is written beside an array, not what is read.
SCRIPT = """
import ctypes, faulthandler, mmap, sys
import numpy as np
import fastconv as fc
from fastconv import _plan
from conftest import Engine
from problems import CASES, integers, solved
from test_pool import CASES as POOLS
from tolerance import assert_same

faulthandler.enable()
PAGE, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


def fenced(shape, dtype, at_end):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, pages + 2 * PAGE)
    raw = np.frombuffer(memory, np.uint8)
    for fence in (raw.ctypes.data, raw.ctypes.data + PAGE + pages):
        assert libc.mprotect(fence, PAGE, 0) == 0, ctypes.get_errno()
    begin = PAGE + (pages - size if at_end else 0)
    return raw[begin : begin + size].view(dtype).reshape(shape)


def copied(array, at_end):
    new = fenced(array.shape, array.dtype, at_end)
    new[...] = array
    return new


def convolve(case, dtype, at_end):
    problem, data = case.problem(dtype), solved(case, dtype, "integers")
    arguments = dict(stride=case.stride, padding=case.padding, dilation=case.dilation, groups=case.groups)
    x, w, bias, grad = (copied(data[name], at_end) for name in ("x", "w", "bias", "grad_output"))
    calls = (
        ("conv2d", lambda **how: fc.conv2d(x, w, bias, **arguments, **how), data["conv"] + data["bias"][:, None, None]),
        ("grad_input", lambda **how: fc.conv2d_grad_input(x.shape, w, grad, **arguments, **how), data["grad_input"]),
        ("grad_weight", lambda **how: fc.conv2d_grad_weight(x, w.shape, grad, **arguments, **how), data["grad_weight"]),
    )
    for name, call, exact in calls:
        for algorithm in _plan.ALGORITHMS:
            out = fenced(exact.shape, dtype, at_end)
            out[...] = np.nan
            try:
                call(algorithm=algorithm, out=out)
            except ValueError:  # it refuses
                assert algorithm not in ("im2col", "direct"), (case.name, name, algorithm)
                continue
            if algorithm in ("im2col", "direct"):
                assert_same(out, exact.astype(dtype), f"{case.name} {name} {algorithm}")
            ran.add((name, algorithm))


def pool(case, dtype, at_end):
    x = copied(integers(case.shape, dtype, 1), at_end)
    arguments = case.kernel_size, case.stride, case.padding
    values, indices = fc.max_pool2d(x, *arguments, case.dilation, case.ceil_mode, return_indices=True)
    out = fenced(values.shape, dtype, at_end)
    fc.max_pool2d(x, *arguments, case.dilation, case.ceil_mode, out=out)
    assert_same(out, values, case.name)
    grad, indices = copied(values, at_end), copied(indices, at_end)
    fc.max_pool2d_backward(grad, indices, x.shape, *arguments, case.dilation)
    ran.add("pool")
    if case.average:
        fc.avg_pool2d(x, *arguments, case.ceil_mode)
        fc.avg_pool2d_backward(grad, x.shape, *arguments, case.ceil_mode)


ran = set()
with Engine(sys.argv[1]).config():
    for at_end in (True, False):
        for dtype in ("float32", "float64"):
            for case in CASES:
                convolve(case, dtype, at_end)
            for case in POOLS:
                pool(case, dtype, at_end)
wanted = {(name, algorithm) for name in ("conv2d", "grad_weight") for algorithm in ("im2col", "direct", "winograd")}
assert wanted <= ran and "pool" in ran, wanted - ran
print("untouched")
"""


def run(code, *arguments):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "reference"])
def test_kernels_stay_inside(name):
    engine = Engine(name)
    if engine.refusal:
        pytest.skip(f"{name}: {engine.refusal}")
    process = run(SCRIPT, name)
    assert process.returncode == 0 and process.stdout == "untouched\n", process.stderr[-3000:]


@pytest.mark.parametrize("cell", ["4 * x.size", "-1"])
def test_the_fences_stand(cell):
    """A byte before or behind a fenced array ends the process."""
    at_end = not cell.startswith("-")
    process = run(
        SCRIPT.partition("def copied")[0]
        + f"x = fenced((3, 5), 'float32', {at_end})\nx[...] = 1\nctypes.string_at(x.ctypes.data + {cell}, 1)\n"
    )
    assert process.returncode < 0, process.stderr[-2000:]
