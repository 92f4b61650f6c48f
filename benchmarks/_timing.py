"""Wall times of calls, and where the threads that make them run."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TASKS = Path("/proc/self/task")  # this process's threads, on Linux
ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def measure(call: Callable[[], Any], seconds: float, least: int = 3) -> list[float]:
    """Wall times of calls, for ``seconds`` but at least ``least`` of them, after one that is not timed."""
    call()
    times = []
    clock = time.perf_counter
    gc.disable()
    try:
        end = clock() + seconds
        while len(times) < least or clock() < end:
            start = clock()
            call()
            times.append(clock() - start)
    finally:
        gc.enable()
    return times


def cpus_for(threads: int) -> list[int]:
    """The first ``threads`` of the CPUs that this process had; ValueError if there are fewer."""
    if threads > len(ALLOWED):
        raise ValueError(f"{threads} threads: this process may use {len(ALLOWED)} CPUs")
    return ALLOWED[:threads]


def spread(call: Callable[[], Any], cpus: list[int], seconds: float = 0.02) -> None:
    """Put the threads that ``call`` keeps busy on a CPU each (Linux).

    Left alone, two threads of a pool may share one CPU for as long as a whole turn, in any library.
    """
    if len(cpus) < 2 or not TASKS.is_dir():
        return

    def busy() -> dict[int, int]:
        return {int(task.name): int((task / "schedstat").read_text().split()[0]) for task in TASKS.iterdir()}

    try:
        before = busy()
        measure(call, seconds)
        after = busy()
        busiest = sorted(after, key=lambda task: before.get(task, 0) - after[task])
        for task, cpu in zip(busiest, cpus, strict=False):
            os.sched_setaffinity(task, {cpu})
    except OSError:
        pass  # a thread has ended, or no such accounting here: the system places them


def gather(cpus: list[int]) -> None:
    """Undo `spread`: new threads inherit their CPUs from the one that starts them."""
    if hasattr(os, "sched_setaffinity"):
        for task in [int(task.name) for task in TASKS.iterdir()] if TASKS.is_dir() else [0]:
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(task, cpus)
