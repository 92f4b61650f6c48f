"""``python -m benchmarks.parity``: every kernel of both compiled back ends in turns, and how near Numba comes to Cython."""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fastconv import _backends

from . import _common, bench_kernels, shapes
from ._timing import cpus_for
from .shapes import CLASSES, Shape

# What is timed: the class of bench_kernels whose call it is, its parameter between back end and shape, for which layers
OPERATIONS: dict[str, tuple[type[Any], tuple[str, ...], str]] = {
    **{f"forward {name}": (bench_kernels.Conv2d, (name,), "conv") for name in _common.FORWARD},
    **{f"unit {name}": (bench_kernels.Unit, (name,), "unit") for name in _common.FORWARD},
    **{f"pack {name}": (bench_kernels.PackWeight, (name,), "conv") for name in ("im2col", "winograd")},
    **{f"grad_input {name}": (bench_kernels.Conv2dGradInput, (name,), "conv") for name in ("im2col", "direct")},
    **{
        f"grad_weight {name}": (bench_kernels.Conv2dGradWeight, (name,), "conv")
        for name in ("im2col", "direct", "winograd")
    },
    **{name: (bench_kernels.Columns, (name,), "conv") for name in ("im2col", "col2im", "interleave")},
    **{
        f"{name} {mode}": (bench_kernels.Pad2d, (name, mode), "conv")
        for name in ("pad2d", "pad2d_adjoint")
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
    "max_pool2d": (bench_kernels.MaxPool2d, (), "pool"),
    **{name: (bench_kernels.ByIndices, (name,), "pool") for name in bench_kernels.ByIndices.functions},
    **{name: (bench_kernels.AvgPool2d, (name,), "pool") for name in bench_kernels.AvgPool2d.functions},
    **{name: (bench_kernels.Elementwise, (name,), "pool") for name in bench_kernels.Elementwise.functions},
    "normalise": (bench_kernels.Normalise, (), "pool"),
    "normalise_backward": (bench_kernels.NormaliseBackward, (), "pool"),
}
MOST_MACS = (
    250_000_000  # of a layer that the kernels made for small layers are timed on: direct, and columns turned back
)
# A ratio that far from 1, in either direction, is measured again, five times as long, when all others have been: virtual
# machines have minutes in which whatever lies outside the first cache takes longer
UNUSUAL = 0.85
FOR_SMALL = (
    "im2col",
    "col2im",
    "forward direct",
    "unit direct",
    "grad_input im2col",
    "grad_input direct",
    "grad_weight direct",
)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--class", dest="classes", nargs="+", choices=tuple(CLASSES), help="classes of layers")
    parser.add_argument("--shape", dest="names", nargs="+", metavar="NAME", help="layers or networks, e.g. vgg16 smoke")
    parser.add_argument("--operation", nargs="+", choices=tuple(OPERATIONS), default=tuple(OPERATIONS), metavar="OPERATION",
                        help=", ".join(OPERATIONS))  # fmt: skip
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    parser.add_argument("--isa", help="level of the Cython back end (default: the one in use)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="default: 1")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each kernel and layer (default: 0.1)")
    return parser.parse_args(argv)


def kind(shape: Shape) -> str:
    return "pool" if not shape.kernel else "unit" if shape.pool else "conv"


def in_turns(first: Callable[[], Any], second: Callable[[], Any], threads: int, seconds: float) -> tuple[float, float]:
    """Times of two calls that take turns, of each the one below which a tenth lies: CPU time of one thread, else wall time."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    # The helpers of either go on spinning after a call, for as long as `rest`, on the CPU that the other's helpers need:
    # a turn of several threads starts with calls that are not timed, and is long
    rest, turn = (0.0, 0.0) if threads == 1 else (0.012, 0.02)
    times: tuple[list[float], list[float]] = ([], [])  # not the best: virtual machines' clocks jump now and then
    end, rounds = time.perf_counter() + seconds, 0
    gc.disable()
    try:
        while rounds < (5 if threads == 1 else 2) or time.perf_counter() < end:
            for i, call in enumerate((first, second)):
                timed = time.perf_counter() + rest
                while time.perf_counter() < timed:
                    call()
                done = time.perf_counter() + turn
                while True:
                    start = clock()
                    call()
                    times[i].append(clock() - start)
                    if time.perf_counter() >= done:
                        break
            rounds += 1
    finally:
        gc.enable()
    first_times, second_times = (sorted(each)[len(each) // 10] for each in times)
    return first_times, second_times


def measured(
    operation: str, shape: Shape, threads: int, seconds: float, options: argparse.Namespace
) -> tuple[float, float] | None:
    """Seconds of Cython and of Numba; None for what an algorithm refuses."""
    benchmark, parameters, _ = OPERATIONS[operation]
    pair = benchmark(), benchmark()
    pair[1].twin = pair[0]
    try:
        for each, kernel in zip(pair, (f"cython-{options.isa or _backends.best_isa()}", "numba"), strict=True):
            each.dtype = options.dtype
            each.setup(kernel, *parameters, shape.name, threads)
    except NotImplementedError:
        return None
    return in_turns(pair[0].call, pair[1].call, threads, seconds)


def cells(
    chosen: Iterable[Shape], threads: int, options: argparse.Namespace
) -> Iterator[tuple[str, Shape, float, float]]:
    """(operation, layer, seconds of Cython, seconds of Numba); what an algorithm refuses is left out."""
    unusual = []
    for shape in chosen:
        for operation in options.operation:
            if kind(shape) != OPERATIONS[operation][2] or (operation in FOR_SMALL and shape.macs > MOST_MACS):
                continue
            times = measured(operation, shape, threads, options.seconds, options)
            if times is None:
                continue
            if UNUSUAL < times[0] / times[1] < 1 / UNUSUAL:
                yield operation, shape, *times
            else:
                unusual.append((operation, shape))
    for operation, shape in unusual:
        times = measured(operation, shape, threads, 5 * options.seconds, options)
        assert times is not None
        yield operation, shape, *times


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    reason = _backends.refusal("numba") or _backends.refusal("cython", options.isa)
    try:
        chosen = shapes.select(options.names, options.classes)
        for threads in options.threads:
            cpus_for(threads)
    except ValueError as error:
        reason = str(error)
    if reason:
        print(f"benchmarks.parity: {reason}", file=sys.stderr)
        return 2
    for threads in options.threads:
        found: dict[tuple[str, str], list[tuple[float, str]]] = {}
        print(
            f"## {threads} thread{'s' * (threads > 1)}: lowest tenth of the times of each in turns, {options.dtype}, batch 1\n"
        )
        print("| operation | layer | cython, us | numba, us | cython / numba |\n|---|---|--:|--:|--:|")
        for operation, shape, cython, numba in cells(chosen, threads, options):
            print(f"| {operation} | {shape.name} {shape} | {cython * 1e6:.1f} | {numba * 1e6:.1f} | "
                  f"{cython / numba:.2f} |", flush=True)  # fmt: skip
            found.setdefault((operation, shape.layer_class), []).append((cython / numba, shape.name))
        print("\n| operation | class | layers | geometric mean | worst | |\n|---|---|--:|--:|--:|---|")
        for (operation, layer_class), ratios in found.items():
            print(f"| {operation} | {CLASSES[layer_class]} | {len(ratios)} | {mean([ratio for ratio, _ in ratios]):.2f} | "
                  f"{min(ratios)[0]:.2f} | {min(ratios)[1]} |")  # fmt: skip
        print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
