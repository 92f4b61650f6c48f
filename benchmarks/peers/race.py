"""The race: one process per contestant, all pinned to the same CPUs, taking turns on every layer."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._timing import cpus_for
from ..shapes import Shape
from . import report
from .case import STEP_TOLERANCE, TOLERANCE, Case, error
from .contestants import MACHINE
from .worker import Failed, Worker

SETTLE = 0.005  # seconds between turns: the last one's spinning threads go to sleep


@dataclass(frozen=True)
class Settings:
    """How long a race takes: every contestant gets ``rounds`` turns of ``seconds`` on every layer."""

    rounds: int = 5
    seconds: float = 0.06


QUICK = Settings(rounds=2, seconds=0.01)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def run(
    shapes: Sequence[Shape],
    names: Sequence[str],
    threads: int,
    settings: Settings,
    progress: Callable[[str, int], None] = lambda text, steps: None,
) -> dict[str, Any]:
    """Race ``names`` over ``shapes``; the result is what the JSON file holds for one thread count."""
    cpus = cpus_for(threads)
    oracle = Worker(None, threads, cpus)
    workers = {name: Worker(name, threads, cpus) for name in names}
    versions: dict[str, str] = {}
    absent: dict[str, str] = {}
    rows = []
    try:
        for name, worker in list(workers.items()):
            progress(f"starting {name}", 1)
            try:
                versions[name] = worker.ask("load")
            except Failed as reason:
                absent[name] = str(reason)
                workers.pop(name).close()
        for shape in shapes:
            rows.append(_layer(shape, workers, oracle, settings, threads, cpus, progress))
            progress(shape.name, 1)
    finally:
        for worker in (*workers.values(), oracle):
            worker.close()
    return {"threads": threads, "cpus": cpus, "versions": versions, "absent": absent, "rows": rows}


def _layer(
    shape: Shape,
    workers: dict[str, Worker],
    oracle: Worker,
    settings: Settings,
    threads: int,
    cpus: list[int],
    progress: Callable[[str, int], None],
) -> dict[str, Any]:
    expected: dict[Case, Any] = {}
    results: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    source = ""
    for name, worker in workers.items():
        progress(f"{shape.name} {name}", 0)
        try:
            if not worker.alive:  # it died on an earlier layer: start afresh
                worker = workers[name] = Worker(name, threads, cpus)
                worker.ask("load")
            outputs, note, solved, work = worker.prepare(Case.of(shape))
            if name not in MACHINE:
                if solved not in expected:
                    expected[solved], source = oracle.ask("expected", solved)
                wrong = error(outputs, expected[solved])
                if wrong > (STEP_TOLERANCE if shape.op == "step" else TOLERANCE):
                    raise Failed(f"wrong result: relative error {wrong:.1e}")
                results[name] = {"note": note, "error": wrong}
            else:
                results[name] = {"note": note}
            if work is not None:
                results[name]["work"] = work
            times[name] = []
        except Failed as reason:
            results[name] = {"failed": str(reason)}
    order = list(times)
    for _ in range(settings.rounds):
        for name in order:
            progress(f"{shape.name} {name}", 0)
            time.sleep(SETTLE)
            try:
                times[name] += workers[name].ask("run", settings.seconds)
            except Failed as reason:
                results[name] = {"failed": str(reason)}
        order = [name for name in order[1:] + order[:1] if "failed" not in results[name]]
    for name in order:
        taken = times[name]
        results[name] |= {"best": min(taken), "median": statistics.median(taken), "calls": len(taken)}
    return {
        "name": shape.name,
        "text": str(shape),
        "class": shape.layer_class,
        "network": shape.network,
        "count": shape.count,
        "work": shape.n_bytes if shape.layer_class in report.MOVES_BYTES else 2 * shape.macs,
        "expected_by": source,
        "results": results,
    }
