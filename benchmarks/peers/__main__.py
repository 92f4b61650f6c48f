"""``python -m benchmarks.peers``: race fastconv against the libraries that are installed."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import shapes
from .._timing import cpus_for
from . import race, report
from .contestants import CONTESTANTS, MACHINE

TRAINING = {"backward", *shapes.TRAINING_CLASSES}  # "backward": all that training needs
CLASSES = (*shapes.CLASSES, "backward", *shapes.TRAINING_CLASSES)


def _chosen(names: list[str] | None, classes: list[str] | None) -> tuple[shapes.Shape, ...]:
    """Layers, unless names or classes say gradients or steps."""
    of_training = [name for name in names or () if shapes.select_training([name], None)]
    if of_training or TRAINING & {*(classes or ())}:
        return shapes.select_training(of_training or None, classes)
    return shapes.select(names, classes)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--class", dest="classes", nargs="+", choices=CLASSES, help="classes of layers")
    parser.add_argument("--shape", dest="names", nargs="+", metavar="NAME", help="layers or networks, e.g. vgg16 smoke")
    parser.add_argument(
        "--peers", nargs="+", choices=tuple(CONTESTANTS), help="who takes part (default: all installed)"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="thread counts, one race each (default: 1)")
    parser.add_argument("--quick", action="store_true", help="two short turns: does it all run? Not for figures")
    parser.add_argument("--rounds", type=int, help="turns of each contestant on each layer")
    parser.add_argument("--seconds", type=float, help="length of a turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables (they are printed anyway)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    base = race.QUICK if options.quick else race.Settings()
    settings = race.Settings(options.rounds or base.rounds, options.seconds or base.seconds)
    names = options.peers or list(CONTESTANTS)
    names += [name for name in MACHINE if name not in names]
    try:
        chosen = _chosen(options.names, options.classes)
        for threads in options.threads:
            cpus_for(threads)
    except ValueError as error:
        print(f"benchmarks.peers: {error}", file=sys.stderr)
        return 2
    result: dict[str, Any] = {"machine": race.machine(), "settings": asdict(settings), "races": []}
    with _Progress((len(chosen) + len(names)) * len(options.threads)) as progress:
        for threads in options.threads:
            result["races"].append(race.run(chosen, names, threads, settings, progress))
    text = report.markdown(result)
    print(text)
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


class _Progress:
    """tqdm's bar where there is tqdm, else nothing."""

    def __init__(self, total: int) -> None:
        try:
            from tqdm import tqdm
        except ImportError:
            self._bar = None
        else:
            self._bar = tqdm(total=total, unit="step")

    def __call__(self, text: str, steps: int) -> None:
        if self._bar is not None:
            self._bar.set_description(text)
            self._bar.update(steps)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()


if __name__ == "__main__":
    raise SystemExit(main())
