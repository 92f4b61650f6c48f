"""Workspaces: one growing buffer per Python thread and dtype, so that calls allocate nothing but their results."""

from __future__ import annotations

import threading

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector

_generation = 0  # raised by clear_workspaces(); a thread drops its buffers when it sees a newer one


class _Local(threading.local):
    def __init__(self) -> None:
        self.generation = _generation
        self.kept: dict[str, np.ndarray] = {}  # by dtype


_local = _Local()


def aligned_empty(n_bytes: int) -> np.ndarray:
    """Uninitialised uint8 array whose first byte lies on a cache line."""
    raw = np.empty(n_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def workspace(elements: int, dtype: str) -> np.ndarray:
    """1-D uninitialised array of at least ``elements``; nobody else's until `keep` gets it back.

    A call may come in the midst of another one of this thread, from a signal's handler: it has a buffer of its own.
    """
    if _local.generation != _generation:
        _local.kept.clear()
        _local.generation = _generation
    space = _local.kept.pop(dtype, None)
    if space is None or space.size < elements:
        space = aligned_empty(elements * np.dtype(dtype).itemsize).view(dtype)
    return space


def keep(space: np.ndarray, dtype: str) -> None:
    """Keep a workspace for this thread's next call."""
    if _local.generation == _generation:
        _local.kept[dtype] = space


def clear_workspaces() -> None:
    """Give back the scratch memory that calls keep for the next one.

    This thread's is freed at once, another thread's at its next call. Results are not affected.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.clear_workspaces()
    """
    global _generation
    _generation += 1
    _local.kept.clear()
