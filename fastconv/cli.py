"""The command `fastconv`: ``demo`` shows the unit on a photograph, ``train`` and ``cost`` train networks, ``see``, ``explain``
and ``fetch`` look at trained ones, ``warmup`` compiles the Numba kernels beforehand, ``info`` prints the configuration.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

# fastconv._commands.MODELS has the functions; their names here keep `fastconv --help` light.
MODELS = ("article", "alexnet", "zfnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2")


def _natural(text: str, least: int = 0) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def _positive(text: str) -> int:
    return _natural(text, 1)


def _numbers(text: str) -> list[int]:
    return [_positive(part.strip()) for part in text.split(",")]


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
    training = commands.add_parser(
        "train",
        help="train a network; leaves checkpoint, history, curves and a moving picture of its filters",
        description="Trains a network, with a progress bar, and leaves checkpoint.npz, history.csv, curves.png and "
        "filters.gif (the first layer's filters at the start and after every epoch) in a folder. The same command "
        "again goes on where it was stopped, to the same bits.",
    )
    training.add_argument("data", metavar="digits|fashion|FOLDER", help="FOLDER holds one folder of images per class")
    training.add_argument("--model", choices=MODELS, default="article", help="default: article")
    training.add_argument("--epochs", type=_positive, metavar="N", help="default: 30, for fashion 8")
    training.add_argument("--no-augment", action="store_true", help="train on the images as they are")
    training.add_argument("--out", default="run", metavar="DIR", help="default: run")
    cost = commands.add_parser(
        "cost",
        help="parameters, multiply-adds, time and accuracy of a network against its number of filters",
        description="Trains a network briefly with each number of filters; prints what it costs and how well it does, "
        "and writes cost.csv and cost.png.",
    )
    cost.add_argument("model", choices=MODELS, metavar="MODEL", help=", ".join(MODELS))
    cost.add_argument(
        "--filters", type=_numbers, default="8,16,32,64", metavar="N,N,...",
        help="of the first layer, the others in proportion (default: 8,16,32,64)",
    )  # fmt: skip
    cost.add_argument("--data", default="digits", metavar="digits|fashion|FOLDER", help="default: digits")
    cost.add_argument("--epochs", type=_positive, default=3, metavar="N", help="default: 3")
    cost.add_argument("--out", default=".", metavar="DIR", help="folder of cost.csv and cost.png (default: this one)")
    for command in (training, cost):
        command.add_argument("--backend", choices=("auto", *BACKENDS), default="auto", help="default: auto")
        command.add_argument("--lr", type=float, default=0.1, help="largest learning rate (default: 0.1)")
        command.add_argument("--seed", type=_natural, default=0, help="of weights, order and augmentation (default: 0)")
        command.add_argument(
            "--size", type=_positive, default=64, metavar="N", help="of the images of a FOLDER (default: 64)"
        )
    warmup = commands.add_parser(
        "warmup",
        help="compile the Numba kernels beforehand",
        description="Compiles Numba kernels and keeps them, so that the first call of every later process is quick: "
        "the float32 kernels of convolution and pooling forward, with --all every kernel.",
    )
    warmup.add_argument("--all", action="store_true", dest="everything", help="gradients and float64 too")
    commands.add_parser("info", help="print back ends, instruction sets and threads")
    from fastconv.see import _commands as see_commands

    see_commands.add(commands, _positive)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0 good, 1 the demo's check failed, 2 a bad request (one line on stderr), 130 Ctrl-C."""
    namespace = parser().parse_args(argv)
    arguments = dict(vars(namespace))
    command = arguments.pop("command")
    import fastconv
    from fastconv import _demo, _warmup
    from fastconv.see import _commands as see_commands

    # What the environment asks for can be wrong in every command; inside the demo a ValueError would be our own.
    problems: tuple[type[Exception], ...] = (
        _demo.DemoError, _warmup.WarmupError, fastconv.BackendUnavailable, see_commands.Refusal,
    )  # fmt: skip
    if command in ("info", "train", "cost"):
        problems = (*problems, ValueError, OSError, ImportError, FloatingPointError, MemoryError)
    try:
        if command == "demo":
            return 0 if _demo.run(arguments["image"], arguments["backend"], arguments["out"]) else 1
        if command == "info":
            fastconv.show_config()
            return 0
        if command == "warmup":
            _warmup.run(arguments["everything"])
            return 0
        if command in ("train", "cost"):
            from fastconv import _backends, _commands

            _backends.resolve(arguments["backend"])  # what cannot run is told before anything is read or written
            fastconv.get_num_threads()
            if command == "train":
                _commands.run_train(augmented=not arguments.pop("no_augment"), **arguments)
            else:
                _commands.run_cost(**arguments)
            return 0
        return see_commands.run(namespace)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except problems as error:
        text = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())]).replace("\n", " ")
        print(f"fastconv {command}: {text.removeprefix(f'{command}: ')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = f"; the same command goes on from {arguments['out']}" if command == "train" else ""
        print(f"fastconv {command}: stopped{goes_on}", file=sys.stderr)
        return 130
