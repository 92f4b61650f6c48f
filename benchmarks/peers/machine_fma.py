"""The machine's FMA peak: independent fused multiply-adds in registers, in C, on as many threads as the others get."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .._timing import measure
from .case import Case, Prepared

CHAINS = 12  # independent sums: more than latency times ports of any CPU in sight, fewer than its registers
ROUNDS = 1_000_000  # some milliseconds: starting the threads does not count
WIDTHS = (4, 8, 16)

SOURCE = """
typedef float vf __attribute__((vector_size(4 * VL)));
float run(long rounds) {
    vf x = {0}, y = {0}, s[CHAINS];
    x = x + 0.999f; y = y + 1e-3f;
    #pragma GCC unroll 32
    for (int i = 0; i < CHAINS; i++) s[i] = x + (float)i;
    for (long r = 0; r < rounds; r++) {
        #pragma GCC unroll 32
        for (int i = 0; i < CHAINS; i++) s[i] = s[i] * x + y;
    }
    #pragma GCC unroll 32
    for (int i = 1; i < CHAINS; i++) s[0] += s[i];
    float total = 0;
    for (int j = 0; j < VL; j++) total += s[0][j];
    return total;
}
"""


def load(threads: int) -> Any:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ImportError("no C compiler")
    return Adapter(compiler, threads)


def _compiled(compiler: str, folder: str, width: int) -> Any:
    source, library = Path(folder, f"fma{width}.c"), Path(folder, f"fma{width}.so")
    source.write_text(SOURCE)
    subprocess.run(
        [
            compiler, "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC",
            f"-DVL={width}", f"-DCHAINS={CHAINS}", str(source), "-o", str(library),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    run = ctypes.CDLL(str(library)).run  # ctypes lets go of the GIL
    run.argtypes, run.restype = [ctypes.c_long], ctypes.c_float
    return run


class Adapter:
    version = "-"

    def __init__(self, compiler: str, threads: int) -> None:
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)
        with tempfile.TemporaryDirectory() as folder:
            runs = {width: _compiled(compiler, folder, width) for width in WIDTHS}
        speed = {width: width / min(measure(lambda run=run: run(ROUNDS), 0.02)) for width, run in runs.items()}
        self.width = max(speed, key=speed.__getitem__)
        self.run = runs[self.width]

    def prepare(self, case: Case) -> Prepared:
        def call() -> None:
            list(self.pool.map(self.run, [ROUNDS] * self.threads))

        work = 2.0 * ROUNDS * CHAINS * self.width * self.threads
        return Prepared(call, lambda: (), f"{self.width} floats a vector", case, work=work)
