"""`fastconv warmup`: the Numba kernels compiled beforehand, and kept for every later process."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from fastconv import _backends, _threads


class WarmupError(Exception):
    """Why nothing can be compiled and kept; one line."""


def run(everything: bool) -> None:
    """Compile ``everything``, or the float32 kernels of forward passes, on all CPUs, with a progress bar."""
    reason = _backends.refusal("numba")
    if reason:
        raise WarmupError(reason)
    try:
        from tqdm import tqdm
    except ImportError:
        raise WarmupError("tqdm is not installed (pip install fastconv[numba])") from None
    warmup = _backends.numba_warmup()
    folder = warmup.folder()
    if folder is None:
        raise WarmupError("no folder for compiled kernels can be written: set NUMBA_CACHE_DIR to one that can")
    jobs = warmup.kernels(everything)
    start = time.perf_counter()
    # Numba compiles one function at a time, so CPUs need processes; new ones, as a fork may not use Numba's threads
    pool = ProcessPoolExecutor(min(_threads.available_cpus(), len(jobs)), multiprocessing.get_context("spawn"))
    try:
        running = {pool.submit(warmup.compile, *job): " ".join(job).strip() for job in jobs}
        with tqdm(total=len(jobs), unit="kernel") as bar:
            for done in as_completed(running):
                done.result()
                bar.set_postfix_str(running[done])
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{len(jobs)} kernels are ready in {folder} ({time.perf_counter() - start:.1f} s)")
