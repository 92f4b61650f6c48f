"""The command `fastconv`: ``demo`` and ``info``; ``see``, ``explain`` and ``fetch`` look at networks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from fastconv import __version__
    from fastconv._backends import BACKENDS

    main_parser = argparse.ArgumentParser(prog="fastconv", description="Convolution and pooling for NumPy arrays.")
    main_parser.add_argument("--version", action="version", version=f"fastconv {__version__}")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run Conv2d -> ReLU -> MaxPool -> Conv2d on a photograph, timed, checked and drawn",
        description="Runs Conv2d(3->32) -> ReLU -> MaxPool -> Conv2d(32->64) on a photograph with every back end, "
        "prints shape, time and error of each step, and draws how a filter works into anatomy.png.",
    )
    demo.add_argument("image", nargs="?", metavar="IMAGE", help="a photograph (default: a small one that is shipped)")
    demo.add_argument("--backend", choices=("all", *BACKENDS), default="all", help="default: all that run here")
    demo.add_argument("--out", default=".", metavar="DIR", help="folder of anatomy.png (default: this one)")
    commands.add_parser("info", help="print back ends, instruction sets and threads")
    from fastconv.see import _commands

    _commands.add(commands)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 good, 1 the demo's check failed, 2 a bad request (one line on stderr)."""
    arguments = parser().parse_args(argv)
    import fastconv
    from fastconv import _demo
    from fastconv.see import _commands

    # What the environment asks for can be wrong in both commands; inside the demo a ValueError would be our own.
    problems: tuple[type[Exception], ...] = (_demo.DemoError, fastconv.BackendUnavailable, _commands.Refusal)
    try:
        if arguments.command == "info":
            problems = (*problems, ValueError)
            fastconv.show_config()
            return 0
        if arguments.command != "demo":
            return _commands.run(arguments)
        return 0 if _demo.run(arguments.image, arguments.backend, arguments.out) else 1
    except problems as error:
        print(f"fastconv {arguments.command}: {error}", file=sys.stderr)
        return 2
