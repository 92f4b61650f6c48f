"""memcpy moving as many bytes, read and written together, as the layer reads and writes."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .case import Case, Prepared

BYTES_A_CALL = 64 * 2**20  # copies are repeated up to this, so that starting the threads does not count


def load(threads: int) -> Any:
    return Adapter(threads)


class Adapter:
    version = "-"

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)

    def prepare(self, case: Case) -> Prepared:
        n_bytes = max(case.shape.n_bytes // 2 // self.threads, 64)
        repeats = max(1, BYTES_A_CALL // (n_bytes * self.threads))
        pairs = [(np.ones(n_bytes, np.uint8), np.zeros(n_bytes, np.uint8)) for _ in range(self.threads)]
        memcpy = ctypes.CDLL(None).memcpy  # ctypes lets go of the GIL
        memcpy.argtypes, memcpy.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t], ctypes.c_void_p

        def copy(pair: tuple[np.ndarray, np.ndarray]) -> None:
            source, target = (array.ctypes.data for array in pair)
            for _ in range(repeats):
                memcpy(target, source, n_bytes)

        def call() -> None:
            list(self.pool.map(copy, pairs))

        return Prepared(
            call, lambda: (), f"{n_bytes * self.threads} bytes", case, work=2.0 * n_bytes * self.threads * repeats
        )
