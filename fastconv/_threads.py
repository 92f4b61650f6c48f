"""How many threads a call may use. The threads themselves: src_cython/team.h, and _numba/_parallel.py."""

from __future__ import annotations

import math
import operator
import os
import threading
from pathlib import Path

MOST_THREADS = 4096  # each has a workspace


class Lock:
    """A lock for the whole process, which its holder may take again, and which is open in a forked child: there the thread
    that held it is missing.
    """

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class _Local(threading.local):
    count: int | None = None  # of ``config(num_threads=)``


_local = _Local()
_global: int | None = None  # set_num_threads(); None: environment or default


def _cgroup_quota() -> float:
    """CPUs granted by the cgroup (v2, then v1); inf if unlimited or unknown."""
    try:
        path = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        path = "/"
    root = Path("/sys/fs/cgroup")
    quota = math.inf
    folder = root / path.lstrip("/")
    for place in (folder, *folder.parents):  # a limit of any ancestor binds
        try:
            limit, period = (place / "cpu.max").read_text().split()
            if limit != "max":
                quota = min(quota, int(limit) / int(period))
        except (OSError, ValueError):
            pass
        if place == root:
            break
    try:
        limit_us = int((root / "cpu/cpu.cfs_quota_us").read_text())
        if limit_us > 0:
            quota = min(quota, limit_us / int((root / "cpu/cpu.cfs_period_us").read_text()))
    except (OSError, ValueError):
        pass
    return quota


def available_cpus() -> int:
    """CPUs that this process may use: its affinity mask, capped by the cgroup's quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cpus if quota == math.inf else min(cpus, math.ceil(quota)))


def _default() -> int:
    text = os.environ.get("FASTCONV_NUM_THREADS", "").strip()
    if not text:
        return available_cpus()
    if not text.isdecimal() or int(text[:9]) < 1:
        raise ValueError(f"FASTCONV_NUM_THREADS is {text!r}: it must be an integer of at least 1")
    if len(text) > 9 or int(text) > MOST_THREADS:
        raise ValueError(f"FASTCONV_NUM_THREADS is {text[:40]!r}: it must be at most {MOST_THREADS}")
    return int(text)


def check_count(function: str, n: object) -> int:
    """``n`` as a thread count; ValueError or TypeError if it is none."""
    try:
        count = operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        count = None
    if count is None or isinstance(n, bool):
        raise TypeError(f"{function}: num_threads is {n!r}: it must be an integer")
    if not 1 <= count <= MOST_THREADS:
        rule = "at least 1" if count < 1 else f"at most {MOST_THREADS}"
        raise ValueError(f"{function}: num_threads {str(count)[:40]}: it must be {rule}")
    return count


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, for the whole process.

    Results do not depend on it: a call gives the same bits for every thread count.

    Parameters
    ----------
    n : int
        At least 1, at most 4096.

    Raises
    ------
    TypeError, ValueError
        If `n` is not an integer of 1 .. 4096.

    Examples
    --------
    >>> import fastconv
    >>> before = fastconv.get_num_threads()
    >>> fastconv.set_num_threads(1)
    >>> fastconv.get_num_threads()
    1
    >>> fastconv.set_num_threads(before)
    """
    global _global
    _global = check_count("set_num_threads", n)


def get_num_threads() -> int:
    """Threads that a call may use in this Python thread.

    The innermost of ``config(num_threads=)``, `set_num_threads`, the environment variable
    ``FASTCONV_NUM_THREADS``, and the number of CPUs this process may use (affinity and cgroup quota).

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If the environment variable is no integer of 1 .. 4096.

    Examples
    --------
    >>> import fastconv
    >>> with fastconv.config(num_threads=3):
    ...     fastconv.get_num_threads()
    3
    """
    global _global
    count = _local.count
    if count is not None:
        return count
    if _global is None:
        _global = _default()
    return _global


def swap_local(count: int | None) -> int | None:
    """Set this Python thread's own count (None: none) and return the former one."""
    former = _local.count
    _local.count = count
    return former
