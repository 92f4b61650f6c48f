"""The one compile policy of the Numba back end: how a task function becomes machine code, and how that is kept and run.

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

A task is compiled once for each dtype, by `_compile`, and kept by `_store`; a later process loads it without importing
Numba. The machine code of a task is ``entry(first, last, worker, table)``: tasks first ... last - 1 by one worker. The
table is the tuple of the arguments as it lies in memory: arrays, whose addresses and extents the entry reads itself, and
numbers, all of them floats. So a call packs nothing. `_parallel` runs it, on several threads if asked to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastconv._numba import _late, _parallel, _store
from fastconv._numba._late import helper
from fastconv._numba._simd import VL_DOUBLE, VL_FLOAT

# ------------------------------------------------------------------------------- argument kinds, as Cython spells them


@dataclass(frozen=True)
class Kind:
    """Type of a task's argument: ``real`` is the call's float32 or float64; ``const`` must not be written."""

    dtype: str
    const: bool = False
    ndim: int = 0

    def __getitem__(self, axes: Any) -> Kind:
        return replace(self, ndim=len(axes) if isinstance(axes, tuple) else 1)


real, const_real = Kind("real"), Kind("real", const=True)
int64, const_int64 = Kind("int64"), Kind("int64", const=True)
index = Kind("int64")

# --------------------------------------------------------------------------------------------------------- compilation


def shared(function: Callable[..., Any]) -> Callable[..., Any]:
    """A helper that kernels call too, when they count tasks or workspace: there it is plain Python and compiles nothing."""
    _late.shared.append(function)
    return function


tasks: list[Task] = []  # of all modules imported so far


class Task:
    """One piece of a kernel's work, compiled on demand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.__doc__ = function, function.__doc__
        parameters = dict(inspect.signature(function).parameters)
        del parameters["task"]
        self.has_worker = parameters.pop("worker", None) is not None
        self.kinds: dict[str, Kind] = {name: parameter.annotation for name, parameter in parameters.items()}
        kinds = list(self.kinds.values())
        self._dtype_from = next(i for i, kind in enumerate(kinds) if kind.dtype == "real" and kind.ndim)
        self._numbers = [i for i, kind in enumerate(kinds) if not kind.ndim]
        self._entries: dict[int, int] = {}  # by size of the dtype, which is compared in less time
        tasks.append(self)

    @property
    def name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    def entry(self, dtype: np.dtype) -> int:
        """Address of the machine code: loaded, or else compiled and kept."""
        with _late.lock:
            found = self._entries.get(dtype.itemsize)
            if found is None:
                file = inspect.getfile(self.function)
                found = _store.load(self.name, dtype.name, file)
                if found is None:
                    _late.make_all()
                    found = _late.compiler().compile_task(self, dtype, file)
                self._entries[dtype.itemsize] = found
        return found

    def run(self, n_tasks: int, n_threads: int, *arguments: Any) -> None:
        """Run tasks 0 ... n_tasks - 1; with ``n_threads`` 1 no thread is started."""
        array = arguments[self._dtype_from]
        entry = self._entries.get(array.itemsize)
        if entry is None:
            if _late.PLAIN_PYTHON:
                self._run_python(n_tasks, array.dtype, arguments)
                return
            entry = self.entry(array.dtype)
        for i in self._numbers:
            if type(arguments[i]) is not float:
                arguments = (*arguments[:i], float(arguments[i]), *arguments[i + 1 :])
        _parallel.run(n_tasks, n_threads, entry, arguments)

    def _run_python(self, n_tasks: int, dtype: np.dtype, arguments: tuple[Any, ...]) -> None:
        worker = (0,) if self.has_worker else ()
        values = [dtype.type(a) if kind == real else a for a, kind in zip(arguments, self.kinds.values(), strict=True)]
        for task in range(n_tasks):
            self.function(task, *worker, *values)


def task(function: Callable[..., Any]) -> Task:
    """Decorator of a task function."""
    return Task(function)


def describe() -> str:
    """Version and vector lengths, for `show_config`."""
    return f"{_store.numba_version()}, VL {VL_FLOAT} / {VL_DOUBLE}"
