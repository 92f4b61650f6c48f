"""``python -m benchmarks``: GFLOP/s of every layer shape and back end, as a table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import fastconv

from . import shapes
from ._common import REFERENCE_LIMIT, Data, place
from ._timing import cpus_for, measure
from .shapes import CLASSES, Shape


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--class", dest="classes", nargs="+", choices=tuple(CLASSES), help="classes of layers")
    parser.add_argument("--shape", dest="names", nargs="+", metavar="NAME", help="layers or networks, e.g. vgg16 smoke")
    parser.add_argument("--backend", dest="backends", nargs="+", choices=("cython", "numba", "reference"))
    parser.add_argument("--algorithm", default="auto", help="force one, e.g. im2col or direct")
    parser.add_argument("--isa", help="level of the Cython back end")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--seconds", type=float, default=0.2, help="measured for each cell (default: 0.2)")
    parser.add_argument("--quick", action="store_true", help="three calls a cell")
    return parser.parse_args(argv)


def call_of(shape: Shape, backend: str, algorithm: str, dtype: str) -> Callable[[], Any]:
    """The layer through the public API."""
    data = Data(shape, dtype)
    maps = data.input

    def conv(out: np.ndarray) -> np.ndarray:
        return fastconv.conv2d(
            data.input, data.weight, data.bias, shape.stride, shape.padding, 1, shape.groups,
            activation="relu", algorithm=algorithm, backend=backend, out=out,
        )  # fmt: skip

    if shape.kernel:
        maps = np.empty((1, shape.OC, *shape.conv_extents), dtype)

    def call() -> Any:
        if shape.kernel:
            conv(maps)
        if shape.pool:
            return fastconv.max_pool2d(
                maps, shape.pool, shape.pool_stride, shape.pool_padding, return_indices=shape.indices, backend=backend
            )
        return maps

    return call


def cell(shape: Shape, backend: str, options: argparse.Namespace) -> float | None:
    """GFLOP/s, of a max-pool GB/s; None where the back end would take too long."""
    if backend == "reference" and max(shape.macs, np.prod(shape.input_shape)) > REFERENCE_LIMIT:
        return None
    call = call_of(shape, backend, options.algorithm, options.dtype)
    place(call, options.threads)
    best = min(measure(call, 0.0 if options.quick else options.seconds))
    itemsize = np.dtype(options.dtype).itemsize / 4
    return (2 * shape.macs if shape.kernel else shape.n_bytes * itemsize) / best / 1e9


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    try:
        from tqdm import tqdm
    except ImportError:
        print("benchmarks: tqdm is not installed (pip install fastconv[bench])", file=sys.stderr)
        return 2
    backends = options.backends or fastconv.available_backends()
    try:
        chosen = shapes.select(options.names, options.classes)
        cpus_for(options.threads)
        with fastconv.config(isa=options.isa, num_threads=options.threads):
            return _table(chosen, backends, options, tqdm)
    except (ValueError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


def _table(chosen: Sequence[Shape], backends: Sequence[str], options: argparse.Namespace, tqdm: Any) -> int:
    names = max(len(shape.name) for shape in chosen) if chosen else 0
    texts = max(len(str(shape)) for shape in chosen) if chosen else 0
    print(f"GFLOP/s (max-pool: GB/s), best call, {options.dtype}, batch 1, threads {options.threads}, "
          f"algorithm {options.algorithm}; convolutions with bias and ReLU")  # fmt: skip
    print(f"{'':{names}}  {'':{texts}}  {'Mmac':>8}" + "".join(f"{backend:>11}" for backend in backends))
    with tqdm(total=len(chosen) * len(backends), unit="cell") as bar:
        for shape in chosen:
            cells = []
            for backend in backends:
                bar.set_description(f"{shape.name} {backend}")
                cells.append(cell(shape, backend, options))
                bar.update()
            line = f"{shape.name:{names}}  {shape!s:{texts}}  {shape.macs / 1e6:8.1f}"
            line += "".join(f"{'-' if value is None else f'{value:.1f}':>11}" for value in cells)
            tqdm.write(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
