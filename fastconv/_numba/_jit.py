"""The one compile policy of the Numba back end: how a task function becomes a serial and a parallel kernel.

A kernel module reads like its Cython twin. A task does one piece of the work and declares its arguments in Cython's
words; the kernel is a plain Python function with the contract's signature that runs its tasks::

    @task
    def pad2d_task(
        task: index, input: const_real[:, :, :, ::1], output: real[:, :, :, ::1], geometry: const_int64[::1]
    ):
        ...

    def pad2d(input, output, workspace, geometry, n_threads):
        pad2d_task.run(geometry[GEO_N] * geometry[GEO_IC], n_threads, input, output, geometry)

A task that needs memory takes ``worker: index`` as its second argument, 0 <= worker < n_threads, and cuts its slice out
of the workspace with it. Two phases are two calls of ``run``. Small functions that tasks call are decorated with
`helper`, those that the kernels call as well with `shared`. Nothing compiles before the first call. Under
NUMBA_DISABLE_JIT=1 the same code runs as Python.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numba.extending
import numpy as np

# ------------------------------------------------------------------------------- argument kinds, as Cython spells them


@dataclass(frozen=True)
class Kind:
    """Type of a task's argument: ``real`` is the call's float32 or float64; ``const`` takes read-only arrays too."""

    dtype: str
    const: bool = False
    ndim: int = 0

    def __getitem__(self, axes: Any) -> Kind:
        return replace(self, ndim=len(axes) if isinstance(axes, tuple) else 1)

    def numba_type(self, dtype: np.dtype) -> Any:
        """The Numba type where ``real`` is ``dtype``. One type for both: else a read-only array compiles all again."""
        element = numba.from_dtype(dtype if self.dtype == "real" else np.dtype(self.dtype))
        return numba.types.Array(element, self.ndim, "C", readonly=self.const) if self.ndim else element


real, const_real = Kind("real"), Kind("real", const=True)
int64, const_int64 = Kind("int64"), Kind("int64", const=True)
index = Kind("int64")

# ------------------------------------------------------------------------------------------------------ vector length


def _vector_length() -> int:
    """Floats in a vector of this CPU, capped by FASTCONV_MAX_ISA: as in the Cython back end 4, 8 or 16."""
    features = llvmlite.binding.get_host_cpu_features()
    cap = {"baseline": 4, "x86_64_v3": 8}.get(os.environ.get("FASTCONV_MAX_ISA", "").strip(), 16)
    if cap == 16 and all(features.get(f"avx512{part}") for part in ("f", "bw", "cd", "dq", "vl")):
        return 16
    return 8 if cap >= 8 and features.get("avx2") and features.get("fma") else 4


VL_FLOAT = _vector_length()
VL_DOUBLE = VL_FLOAT // 2

# --------------------------------------------------------------------------------------------------------- compilation


def _stamp() -> str:
    """What compiled code depends on beside its own file, which is all that Numba's cache looks at.

    The files that kernel modules share (their names start with _), the geometry, the vector length, bounds checks.
    """
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((VL_FLOAT, numba.config.BOUNDSCHECK)).encode())
    for path in [*sorted(here.glob("_*.py")), here.parent / "_problem.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_STAMP = _stamp()
_compiling = threading.RLock()


def _jit(function: Callable[..., Any], *signature: Any, reassoc: bool = False, **options: Any) -> Any:
    # Contraction to FMA yes; NaN, Inf and signed zeros stay; sums are reordered only where a task asks for it.
    fastmath = {"contract", "reassoc"} if reassoc else {"contract"}
    return numba.njit(*signature, nogil=True, error_model="numpy", fastmath=fastmath, **options)(function)


def helper(function: Callable[..., Any]) -> Any:
    """A small function that tasks call."""
    return _jit(function)


def shared(function: Callable[..., Any]) -> Any:
    """A helper that kernels call too, when they count tasks or workspace: there it is plain Python and compiles nothing."""
    return numba.extending.register_jitable(error_model="numpy")(function)


# `prange` gives uint64, and uint64 with int64 gives float64: cast once.
_SERIAL = """
def {name}(n_tasks, {arguments}):
    for index in range(n_tasks):
        task(index, {worker}{arguments})
"""
_PARALLEL = """
def {name}(n_tasks, {arguments}):
    for index in prange(n_tasks):
        task(int64(index), {worker}{arguments})
"""


class Task:
    """One piece of a kernel's work, compiled on demand: for each dtype a serial loop over all, and a parallel one."""

    def __init__(self, function: Callable[..., Any], reassoc: bool = False) -> None:
        self.function, self.__doc__ = function, function.__doc__
        self._jitted = _jit(function, reassoc=reassoc)
        parameters = dict(inspect.signature(function).parameters)
        del parameters["task"]
        self._has_worker = parameters.pop("worker", None) is not None
        self._kinds: dict[str, Kind] = {name: parameter.annotation for name, parameter in parameters.items()}
        kinds = list(self._kinds.values())
        self._dtype_from = next(i for i, kind in enumerate(kinds) if kind.dtype == "real" and kind.ndim)
        self._scalars = [i for i, kind in enumerate(kinds) if kind.dtype == "real" and not kind.ndim]
        self._loops: dict[tuple[np.dtype, bool], Callable[..., None]] = {}

    def _loop(self, dtype: np.dtype, parallel: bool) -> Callable[..., None]:
        name = f"{self.function.__name__}_{'parallel' if parallel else 'serial'}_{_STAMP}"
        worker = "" if not self._has_worker else "get_thread_id(), " if parallel else "0, "
        source = (_PARALLEL if parallel else _SERIAL).format(name=name, arguments=", ".join(self._kinds), worker=worker)
        # The loop poses as a function of the kernel's file: there Numba looks for its cache, and for changes.
        space = {
            "__name__": self.function.__module__,
            "task": self._jitted,
            "prange": numba.prange,
            "get_thread_id": numba.get_thread_id,
            "int64": np.int64,
        }
        exec(compile(source, inspect.getfile(self.function), "exec"), space)
        kinds = self._kinds.values()
        signature = numba.void(numba.int64, *(kind.numba_type(dtype) for kind in kinds))
        try:
            return _jit(space[name], signature, parallel=parallel, cache=True)
        except RuntimeError:  # there is no folder to write a cache to
            return _jit(space[name], signature, parallel=parallel)

    def run(self, n_tasks: int, n_threads: int, *arguments: Any) -> None:
        """Run tasks 0 ... n_tasks - 1; with ``n_threads`` 1 Numba's thread pool is not touched."""
        dtype = arguments[self._dtype_from].dtype
        if self._scalars:
            arguments = tuple(dtype.type(a) if i in self._scalars else a for i, a in enumerate(arguments))
        if numba.config.DISABLE_JIT:
            worker = (0,) if self._has_worker else ()
            for task in range(n_tasks):
                self.function(task, *worker, *arguments)
            return
        parallel = bool(n_threads > 1 and n_tasks > 1)
        loop = self._loops.get((dtype, parallel))
        if loop is None:
            with _compiling:
                loop = self._loops.setdefault((dtype, parallel), self._loop(dtype, parallel))
        if not parallel:
            loop(n_tasks, *arguments)
            return
        before = numba.get_num_threads()  # of this Python thread: the user's own setting
        numba.set_num_threads(min(n_threads, numba.config.NUMBA_NUM_THREADS))
        try:
            with _guard():
                loop(n_tasks, *arguments)
        finally:
            numba.set_num_threads(before)


def task(function: Callable[..., Any] | None = None, *, reassoc: bool = False) -> Any:
    """Decorator of a task function; ``reassoc`` lets the compiler reorder its sums."""
    if function is None:
        return lambda function: Task(function, reassoc)
    return Task(function)


# -------------------------------------------------------------------------------------------------------- thread layer

_one_at_a_time = threading.Lock()


def _layer() -> str | None:
    """Numba's threading layer; None before its first parallel call."""
    try:
        return numba.threading_layer()
    except ValueError:
        return None


def _guard() -> Any:
    """Keeps a second Python thread out, except of the layers that let it in: workqueue would abort the process."""
    return nullcontext() if _layer() in ("omp", "tbb") else _one_at_a_time


def describe() -> str:
    """Version and threading layer, for `show_config`."""
    return f"{numba.__version__}, threading layer {_layer() or 'not yet chosen'}, VL {VL_FLOAT} / {VL_DOUBLE}"
