"""Several threads for a task: Numba's pool, whatever its threading layer. Imports Numba."""

from __future__ import annotations

import hashlib
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from fastconv._numba import _late, _simd

address = _late.made(_simd.address)


@intrinsic
def next_task(typingctx, counter):
    """The number at an address, which grows by one: each worker gets another."""

    def codegen(context, builder, signature, arguments):
        at = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", at, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def call_entry(typingctx, entry, first, last, worker, table):
    """Machine code at an address, as `_jit` describes it."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 4)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), codegen


def _drive(n_tasks, n_workers, entry, table):
    counter = np.zeros(8, np.int64)
    for worker in numba.prange(n_workers):
        task = next_task(address(counter))
        while task < n_tasks:
            call_entry(entry, task, task + 1, numba.int64(worker), table)
            task = next_task(address(counter))


# Numba's cache looks at this file alone; these are used here as well.
_stamp = hashlib.sha256(Path(_simd.__file__).read_bytes() + Path(_late.__file__).read_bytes()).hexdigest()[:12]
_drive.__name__ = _drive.__qualname__ = f"drive_{_stamp}"
_driver: Any = None


def driver() -> Any:
    """The compiled loop."""
    global _driver
    with _late.lock:
        if _driver is None:
            signature = types.void(*[types.int64] * 4)
            try:
                _driver = numba.njit(signature, nogil=True, parallel=True, cache=True)(_drive)
            except Exception:  # no folder for the cache, or damaged files in it
                _driver = numba.njit(signature, nogil=True, parallel=True)(_drive)
    return _driver


# Numba keeps a second Python thread from its workqueue layer by ending the process.
_one_at_a_time = threading.Lock()
_NOBODY = nullcontext()


def layer() -> str | None:
    """Numba's threading layer; None before its first parallel call."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


def run(n_tasks: int, n_threads: int, entry: int, table: int) -> None:
    """Run tasks 0 ... n_tasks - 1 on up to ``n_threads`` threads, whoever is free next."""
    loop = _driver or driver()
    n_workers = min(n_threads, n_tasks, numba.config.NUMBA_NUM_THREADS)
    before = numba.get_num_threads()  # of this Python thread: the user's own setting
    if before != n_workers:  # else nothing need be set, and twice, by 1.6 us of Python each time
        numba.set_num_threads(n_workers)
    try:
        with _NOBODY if layer() in ("omp", "tbb") else _one_at_a_time:
            loop(n_tasks, n_workers, entry, table)
    finally:
        if before != n_workers:
            numba.set_num_threads(before)
