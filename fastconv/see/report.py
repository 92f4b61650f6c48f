"""`report`: one HTML page that shows what a network's filters see."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, BinaryIO

import numpy as np

from fastconv._problem import choice
from fastconv._state import _write
from fastconv.layers import Conv2d, Layer, summary
from fastconv.see._probe import convolutions, evaluated, images_of, index_of, layer_of, network
from fastconv.see.anatomy import anatomy
from fastconv.see.deconvnet import RULES
from fastconv.see.health import Health, LayerHealth, health
from fastconv.see.patches import Patch, collect, finish

CELL = 72  # pixels of a patch in the page: larger ones are reduced to it, smaller ones are shown enlarged
GREY = 128  # of a projection's zero, and of what lies outside an image


@dataclass(frozen=True)
class Card:
    """One filter in the page."""

    number: int
    kernels: str
    patches: str
    projections: str
    strongest: str
    images: str
    faults: tuple[str, ...]
    facts: str


@dataclass(frozen=True)
class Section:
    """One layer in the page."""

    name: str
    title: str
    health: LayerHealth
    sheet: str
    cards: list[Card]


def report(
    net: Any,
    images: Iterable[Any],
    path: Any,
    *,
    layers: Iterable[Any] | None = None,
    filters: int | Iterable[int] = 16,
    k: int = 9,
    prepare: Any = None,
    title: str = "What the filters see",
    history: Mapping[str, Sequence[float]] | None = None,
    labels: Any = None,
    mode: str = "deconvnet",
    progress: bool = True,
) -> Health:
    """Write one HTML page about a network: summary, kernels, anatomy, strongest patches, curves, health.

    Parameters
    ----------
    net : Layer
    images : iterable of (C, H, W) arrays
        Some dozens, as the network takes them; they are gone through twice and kept in memory.
    path : str or path
        The page. It holds everything that it shows and works from a folder without a server.
    layers : iterable of str or Layer, optional
        Convolutions; by default all of them.
    filters : int or iterable of int
        How many filters of each layer (the first ones), or which.
    k : int
        Patches for each filter.
    prepare : Preparation, optional
        Tells how to show images in their true colours.
    title : str
    history : mapping of str to sequence of float, optional
        Curves of the training, {"loss": [...], "accuracy": [...]}, a number for each epoch.
    labels, mode
        As in `health` and `deconvnet`.
    progress : bool
        Show bars (tqdm).

    Returns
    -------
    Health
        What the page says about the network.

    Raises
    ------
    TypeError, ValueError
        As `top_patches` and `health`.
    ImportError
        If Jinja2, Pillow or matplotlib is not installed (extra ``see``).
    OSError
        If the page cannot be written.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import report
    >>> net = fastconv.Sequential(fastconv.Conv2d(3, 16, 3, rng=0), fastconv.ReLU())
    >>> images = np.random.default_rng(0).random((20, 3, 32, 32), np.float32)
    >>> report(net, images, "report.html").verdict    # doctest: +SKIP
    'untrained'
    """
    function = "report"
    try:
        import jinja2
        import PIL  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{function}: it needs {error.name}: pip install 'fastconv[see]'") from None
    network(function, net)
    choice(function, "mode", mode, tuple(RULES))
    every = dict(convolutions(function, net))
    chosen = every if layers is None else dict(_checked_layer(function, net, layer) for layer in layers)
    pictures = [images_of(function, "an image", image)[0][0] for image in images]
    if not pictures:
        raise ValueError(f"{function}: images is empty: at least one image is needed")
    wanted: dict[Layer, list[int] | None] = {conv: _wanted(function, filters, conv) for conv in chosen.values()}
    checked = health(net, pictures, labels, progress=progress)
    states = {layer.name: layer for layer in checked.layers}
    table = summary(net, (1, *pictures[0].shape))
    sections = []
    with evaluated(net):
        best = collect(function, net, pictures, wanted, k, progress)
        for name, conv in chosen.items():
            found = finish(function, net, conv, best[conv], mode, progress)
            cards = [_card(conv, f, patches, states[name], prepare) for f, patches in found.items()]
            sections.append(Section(name, repr(conv), states[name], _sheet(conv, prepare), cards))
    page = _template(jinja2).render(
        title=title, health=checked, table=table, sections=sections, anatomy=_anatomy(net, pictures[0], prepare, every),
        curves=_curves(checked, history), counts={"images": len(pictures), "k": k}, mode=mode,
        faults=[(layer, one) for layer in checked.layers for one in layer.filters if one.faults],
        shown={(section.name, card.number) for section in sections for card in section.cards},
    )  # fmt: skip

    def fill(file: BinaryIO) -> None:
        file.write(page.encode())

    _write(path, fill)
    return checked


def _checked_layer(function: str, net: Layer, layer: Any) -> tuple[str, Conv2d]:
    name, found = layer_of(function, net, layer)
    if type(found) is not Conv2d:
        raise TypeError(f"{function}: layer {name!r} is a {type(found).__name__}: it must be a Conv2d")
    return name, found


def _wanted(function: str, filters: Any, conv: Conv2d) -> list[int]:
    if hasattr(filters, "__index__") and not isinstance(filters, bool):
        if filters < 1:
            raise ValueError(f"{function}: filters {filters}: it must be at least 1")
        return list(range(min(filters, conv.out_channels)))
    return [index_of(function, "filters", f, conv.out_channels, "the layer") for f in filters]


def _template(jinja2: Any) -> Any:
    text = resources.files("fastconv").joinpath("see", "report.html.jinja").read_text("utf-8")
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


# ------------------------------------------------------------------------------------------------------- pictures


def _uri(pixels: np.ndarray, lossless: bool = False) -> str:
    """A picture (uint8, HW or HWC) as a data URI: WebP, for small things without loss."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=72, lossless=lossless, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _pixels(x: np.ndarray, prepare: Any) -> np.ndarray:
    """An image (C, H, W) as uint8 (H, W, 3)."""
    if prepare is not None:
        shown = prepare.pixels(x)
    else:
        planes = x if len(x) == 3 else x.mean(axis=0, keepdims=True)
        low, high = (0.0, 1.0) if 0 <= planes.min() and planes.max() <= 1 else (planes.min(), planes.max())
        shown = np.rint((planes - low) / ((high - low) or 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def _signed(values: np.ndarray, prepare: Any, limit: float | None = None) -> np.ndarray:
    """A projection or kernel (C, H, W) as uint8 (H, W, 3): grey is zero, and the largest value white or a colour."""
    planes = values if len(values) == 3 else values.mean(axis=0, keepdims=True)
    planes = prepare.colours(planes) if prepare is not None and len(planes) == 3 else planes
    planes = np.nan_to_num(planes.astype(np.float64))
    most = limit or float(np.abs(planes).max()) or 1.0
    shown = np.clip(np.rint(GREY + 127 * planes / most), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def _grid(pictures: list[np.ndarray], columns: int, gap: int = 1) -> np.ndarray:
    """Pictures (H, W, 3) of one size or smaller, side by side on grey."""
    height = max(len(picture) for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    rows = -(-len(pictures) // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), GREY, np.uint8)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        top, left = row * (height + gap), column * (width + gap)
        page[top : top + len(picture), left : left + picture.shape[1]] = picture
    return page


def _fitted(picture: np.ndarray) -> np.ndarray:
    """Reduced to CELL pixels, or enlarged by a whole number."""
    from PIL import Image

    longest = max(picture.shape[:2])
    if longest > CELL:
        height, width = (max(1, round(side * CELL / longest)) for side in picture.shape[:2])
        return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    times = max(CELL // longest, 1)
    return picture.repeat(times, axis=0).repeat(times, axis=1)


def _framed(patch: Patch, picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(patch.framed(picture.transpose(2, 0, 1), GREY).transpose(1, 2, 0))


def _card(conv: Conv2d, f: int, patches: list[Patch], layer: LayerHealth, prepare: Any) -> Card:
    state = layer.filters[f]
    strongest = f"{patches[0].value:.3g}" if patches else "no finite activation"
    if "dead" in state.faults:
        patches = []  # what comes nearest to exciting it would say nothing
    columns = max(1, round(len(patches) ** 0.5))
    seen = [_fitted(_framed(one, _pixels(one.patch, prepare))) for one in patches]
    down = [_fitted(_framed(one, _signed(one.projection, prepare))) for one in patches]
    facts = f"active at {state.active:.1%} of the positions, norm {state.norm:.3g}"
    if not np.isnan(state.high_frequency):
        facts += f", high frequencies {state.high_frequency:.0%}"
    if state.twin is not None:
        facts += f", most like filter {state.twin} (cosine {state.cosine:.2f})"
    return Card(
        f,
        _uri(_kernels(conv, f, prepare), lossless=True),
        _uri(_grid(seen, columns, 2)) if seen else "",
        _uri(_grid(down, columns, 2)) if down else "",
        strongest,
        ", ".join(str(one.image) for one in patches),
        state.faults,
        facts,
    )


def _kernels(conv: Conv2d, f: int, prepare: Any) -> np.ndarray:
    """A filter's kernels: in colour where it reads three channels, else side by side, at most 64 of them."""
    weight = conv.weight[f]
    if len(weight) == 3:
        return np.ascontiguousarray(_signed(weight, prepare))
    limit = float(np.abs(np.nan_to_num(weight)).max()) or 1.0
    tiles = [_signed(kernel[None], None, limit) for kernel in weight[:64]]
    return _grid(tiles, min(8, len(tiles)))


def _sheet(conv: Conv2d, prepare: Any) -> str:
    """All kernels of a layer that reads at most four channels, or the first 64 filters by 64 channels of another."""
    if len(conv.weight[0]) <= 4:
        tiles = [np.ascontiguousarray(_signed(weight, prepare)) for weight in conv.weight]
        return _uri(_grid(tiles, 16), lossless=True)
    some = conv.weight[:64, :64]
    tiles = [
        _signed(kernel[None], None, float(np.abs(np.nan_to_num(row)).max()) or 1.0) for row in some for kernel in row
    ]
    return _uri(_grid(tiles, some.shape[1]), lossless=True)


def _anatomy(net: Layer, image: np.ndarray, prepare: Any, every: dict[str, Conv2d]) -> str:
    """The picture of `anatomy`: the first two convolutions, or the first alone where the second has no plain input."""
    from PIL import Image

    for layer in (None, next(iter(every))):
        try:
            figure = anatomy(net, image, layer, prepare=prepare)
        except ValueError:
            continue
        file = io.BytesIO()
        figure.savefig(file, dpi=80)
        return _uri(np.asarray(Image.open(file).convert("RGB")))
    return ""


# --------------------------------------------------------------------------------------------------------- curves


@dataclass(frozen=True)
class Curve:
    """A line chart: its points in a box of 0 .. 560 by 0 .. 150, and labels."""

    title: str
    points: str
    dots: list[tuple[float, float, str]]
    low: str
    high: str
    first: str
    last: str


def _curve(title: str, values: Sequence[float], names: Sequence[str]) -> Curve:
    y = np.asarray(values, np.float64)
    finite = y[np.isfinite(y)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    span = (high - low) or 1.0
    step = 560 / max(len(y) - 1, 1)
    dots = [
        (round(i * step, 1), round(150 - (value - low) / span * 150, 1), f"{name}: {value:.3g}")
        for i, (value, name) in enumerate(zip(y, names, strict=True)) if np.isfinite(value)
    ]  # fmt: skip
    points = " ".join(f"{px},{py}" for px, py, _ in dots)
    return Curve(title, points, dots, f"{low:.3g}", f"{high:.3g}", str(names[0]), str(names[-1]))


def _curves(checked: Health, history: Mapping[str, Sequence[float]] | None) -> list[Curve]:
    found = []
    for name, values in (history or {}).items():
        if len(values):
            found.append(_curve(f"{name} by epoch", values, [f"epoch {i}" for i in range(len(values))]))
    names = [layer.name for layer in checked.layers]
    found.append(_curve("share of active positions, by layer", [layer.active for layer in checked.layers], names))
    found.append(
        _curve("share of high frequencies, by layer", [layer.high_frequency for layer in checked.layers], names)
    )
    ill = [np.mean([bool(one.faults) for one in layer.filters]) for layer in checked.layers]
    found.append(_curve("share of filters with a fault, by layer", [float(share) for share in ill], names))
    return found
