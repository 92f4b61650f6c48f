"""Workspaces: one growing buffer per Python thread, so that calls allocate nothing but their results."""

from __future__ import annotations

import threading

import numpy as np

ALIGNMENT = 64  # bytes: a cache line, and the widest vector

_local = threading.local()
_generation = 0  # raised by clear_workspaces(); a thread drops its buffer when it sees a newer one


def aligned_empty(n_bytes: int) -> np.ndarray:
    """Uninitialised uint8 array whose first byte lies on a cache line."""
    raw = np.empty(n_bytes + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes]


def workspace(elements: int, dtype: str) -> np.ndarray:
    """1-D uninitialised array of at least ``elements``; valid until this thread's next call."""
    # The whole buffer in this dtype is kept too: a view and a slice would cost a small call more than its arithmetic
    whole = getattr(_local, dtype, None)
    if whole is None or _local.generation != _generation or whole.size < elements:
        n_bytes = -(-elements * np.dtype(dtype).itemsize // 8) * 8
        if getattr(_local, "generation", -1) != _generation or _local.buffer.size < n_bytes:
            _local.__dict__.clear()
            _local.buffer = aligned_empty(n_bytes)
            _local.generation = _generation
        whole = _local.buffer.view(dtype)
        setattr(_local, dtype, whole)
    return whole


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
    _local.__dict__.clear()
