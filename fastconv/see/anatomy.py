"""`anatomy`: the picture of how filters make maps out of channels, in any Conv-ReLU-MaxPool chain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from fastconv.layers import BatchNorm2d, Conv2d, Dropout, Identity, Layer
from fastconv.see._probe import Order, convolutions, evaluated, images_of, index_of, layer_of, network, run, several
from fastconv.see.explain import Explanation, explain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fastconv.see._page import Page

MOST = 64  # channels that are drawn of a filter
FEW = 4  # up to so many channels stand in one row
MAP, KERNEL, GAP, LABEL = 1.55, 0.62, 0.34, 1.7  # inches


def anatomy(
    unit: Any,
    image: Any,
    layer: Any = None,
    filters: Iterable[int] | None = None,
    *,
    prepare: Any = None,
) -> Figure:
    """Draw what filters do with an image: kernel, map of every channel, their sum, and the layers up to the next filter.

    Parameters
    ----------
    unit : Layer
        A chain such as Conv2d - ReLU - MaxPool2d - Conv2d, or any network with such chains inside.
    image : (C, H, W) array
        What `unit` is called with.
    layer : str or Layer, optional
        One convolution. By default the first two of the unit.
    filters : iterable of int, optional
        By default the three of the first convolution, and the one of the second, whose maps vary most.
    prepare : Preparation, optional
        Tells how to show `image` in its true colours.

    Returns
    -------
    matplotlib.figure.Figure
        ``.savefig("anatomy.png")`` writes it.

    Raises
    ------
    TypeError, ValueError
        If there is no convolution, or the image does not fit.
    ImportError
        If matplotlib is not installed (extra ``see``).

    Notes
    -----
    Each map is what one kernel makes of one channel; the maps of a filter add up, with its bias, to its output
    (`explain`). Orange is above zero, purple below, white zero; the maps of one filter share one scale. Of filters with
    more than 64 channels the 64 that add most are drawn.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import anatomy
    >>> unit = fastconv.Sequential(
    ...     fastconv.Conv2d(3, 32, 3, padding=1, rng=0), fastconv.ReLU(), fastconv.MaxPool2d(2),
    ...     fastconv.Conv2d(32, 64, 3, padding=1, rng=1), fastconv.ReLU())
    >>> image = np.random.default_rng(0).random((3, 16, 16), np.float32)
    >>> figure = anatomy(unit, image)    # doctest: +SKIP
    >>> figure.savefig("anatomy.png")    # doctest: +SKIP
    """
    function = "anatomy"
    network(function, unit)
    x, _ = images_of(function, "image", image)
    if len(x) != 1:
        raise ValueError(f"{function}: image has shape {x.shape}: it must be one image, (C, H, W)")
    convs = convolutions(function, unit)
    if layer is None:
        chosen = convs[:2]
    else:
        name, found = layer_of(function, unit, layer)
        if type(found) is not Conv2d:
            raise TypeError(f"{function}: layer {name!r} is a {type(found).__name__}: it must be a Conv2d")
        chosen = [(name, found)]
    wanted = None if filters is None else list(several(function, "filters", filters, "a sequence of integers"))
    if wanted == []:
        raise ValueError(f"{function}: filters is empty: at least one is needed")
    with evaluated(unit):
        order = Order(unit)
        run(unit, x, order)
        bands = []
        for i, (name, conv) in enumerate(chosen):
            place = next((j for j, (leaf, _) in enumerate(order.leaves) if leaf is conv), None)
            if place is None:
                continue
            before = _input_of(order, place, x)
            after = _chain(order, place)
            rows = wanted if wanted is not None else _telling(order.leaves[place][1][0], 3 if i == 0 else 1)
            for f in rows:
                index_of(function, "filter", f, conv.out_channels, "the layer")
                bands.append((name, conv, f, before, [(leaf, output[0, f]) for leaf, output in after]))
    try:
        from fastconv.see._page import Page
    except ImportError:
        raise ImportError("anatomy: it needs matplotlib: pip install 'fastconv[see]'") from None
    return _draw(Page, bands, x, prepare)


def _input_of(order: Order, place: int, x: np.ndarray) -> np.ndarray:
    """What the convolution at ``place`` was given: the image, or the output before it that it answers to."""
    conv, output = order.leaves[place]
    for _, candidate in [*reversed(order.leaves[:place]), (None, x)]:
        fits = candidate.ndim == 4 and candidate.shape[1] == conv.in_channels  # type: ignore[attr-defined]
        if fits and np.array_equal(conv._forward(candidate)[0], output, equal_nan=True):
            return candidate
    raise ValueError(f"anatomy: {conv!r}: its input is no output of one layer (a sum of branches): draw another layer")


def _chain(order: Order, place: int) -> list[tuple[Layer, np.ndarray]]:
    """The leaves that follow a convolution one after the other, up to the next one; at most four."""
    chain = [order.leaves[place]]
    for leaf, output in order.leaves[place + 1 :]:
        same = output.ndim == 4 and output.shape[1] == chain[0][1].shape[1]
        if isinstance(leaf, Conv2d) or not same or len(chain) == 4:
            break
        if not np.array_equal(leaf._forward(chain[-1][1])[0], output, equal_nan=True):
            break
        if not isinstance(leaf, (Identity, Dropout)):
            chain.append((leaf, output))
    return chain


def _telling(maps: np.ndarray, count: int) -> list[int]:
    """The filters whose maps vary most for their size, at most ``count``."""
    spread = np.nan_to_num(maps.std(axis=(1, 2)) * (maps.max(axis=(1, 2)) > 0))
    return sorted(int(f) for f in np.argsort(-spread, kind="stable")[:count])


def _shown(found: Explanation) -> np.ndarray:
    """Places of the channels that are drawn, in their order."""
    weight = np.abs(found.maps).sum(axis=(1, 2))
    return np.sort(np.argsort(-weight, kind="stable")[:MOST])


def _picture(x: np.ndarray, prepare: Any) -> np.ndarray:
    if prepare is not None:
        return prepare.pixels(x)
    low, high = (0.0, 1.0) if 0 <= x.min() and x.max() <= 1 else (float(x.min()), float(x.max()) or 1.0)
    planes = np.clip((x - low) / ((high - low) or 1), 0, 1)
    return planes.transpose(1, 2, 0) if len(x) == 3 else planes[0]


def _draw(kind: type[Page], bands: list[Any], x: np.ndarray, prepare: Any) -> Figure:
    heights, explained = [], []
    for _, conv, f, before, _ in bands:
        found = explain(conv, before, f)
        shown = _shown(found)
        rows = 1 if len(shown) <= FEW else -(-len(shown) // 8)
        cell = MAP if rows == 1 else MAP / 2
        explained.append((found, shown, rows, cell))
        heights.append(max(rows * (cell + KERNEL * cell / MAP + 0.3) + 0.65, MAP + KERNEL + 0.9))
    columns = max(
        (8 * (MAP / 2 + 0.14) if len(shown) > FEW else len(shown) * (MAP + GAP)) for _, shown, _, _ in explained
    )
    after = max(len(chain) for *_, chain in bands)
    side = MAP * min(max(x.shape[2] / x.shape[3], 0.5), 1.3)
    top = 1.0 + side + 0.35
    page = kind(0.7 + LABEL + columns + 0.3 + after * (MAP + GAP), top + sum(heights) + 0.3)
    page.text(0.35, 0.35, "Anatomy: one kernel and one map a channel; the maps add up", 17, ha="left", weight="bold")
    page.text(
        0.35, 0.68, "Orange is above zero, purple below, white zero. The maps of one filter share one scale.", 10,
        ha="left", color="#666666",
    )  # fmt: skip
    shades: dict[str, Any] = {"cmap": "gray"} if x.shape[1] != 3 else {}
    page.image(0.35, 0.95, MAP, side, _picture(x[0], prepare), **shades)
    page.text(
        0.35 + MAP + 0.2, 0.95 + side / 2, f"the input, {x.shape[1]} x {x.shape[2]} x {x.shape[3]}", 10, ha="left"
    )
    y = top
    for band, height, parts in zip(bands, heights, explained, strict=True):
        page.line(y)
        _band(page, y + 0.12, columns, band, parts)
        y += height
    return page.figure


def _band(page: Page, y: float, columns: float, band: Any, parts: Any) -> None:
    from fastconv.see._page import signed

    name, conv, f, before, chain = band
    found, shown, rows, cell = parts
    page.text(0.35, y + 0.25, f"layer {name!r}", 11, ha="left", weight="bold")
    page.text(0.35, y + 0.5, f"filter {f} of {conv.out_channels}", 11, ha="left")
    every = len(found.channels)
    note = f"{every} kernels, {every} maps" if len(shown) == every else f"{len(shown)} of {every} kernels\nand maps"
    page.text(0.35, y + 0.85, f"{note}\n{conv.kernel_size[0]} x {conv.kernel_size[1]}, bias {found.bias:+.2g}", 9, ha="left", color="#666666")  # fmt: skip  # noqa: E501
    kernel_shades = signed(found.kernels)
    shades = signed(np.concatenate([found.maps[shown].ravel(), found.sum.ravel()]))
    left = 0.35 + LABEL
    step = cell + (GAP if rows == 1 and len(shown) <= FEW else 0.14)
    per_row = len(shown) if len(shown) <= FEW else 8
    kernel = KERNEL * cell / MAP
    for place, channel in enumerate(shown):
        row, column = divmod(place, per_row)
        at_x, at_y = left + column * step, y + 0.2 + row * (cell + kernel + 0.3)
        page.image(at_x + (cell - kernel) / 2, at_y, kernel, kernel, found.kernels[channel], **kernel_shades)
        page.image(at_x, at_y + kernel + 0.05, cell, cell, found.maps[channel], **shades)
        page.text(at_x, at_y + kernel / 2, f"{found.channels[channel]}", 7, ha="left", color="#666666")
        if per_row <= FEW and column + 1 < per_row:
            page.text(at_x + cell + GAP / 2, at_y + kernel + cell / 2, "+", 16, weight="bold")
    x0 = left + columns + 0.3
    middle = y + 0.2 + KERNEL + 0.05
    page.text(x0 - 0.32, middle + MAP / 2, "=", 18, weight="bold")
    for place, (leaf, values) in enumerate(chain):
        at_x = x0 + place * (MAP + GAP)
        title = "sum + bias" if place == 0 else type(leaf).__name__
        own = (
            signed(values)
            if isinstance(leaf, BatchNorm2d) or (place and isinstance(chain[1][0], BatchNorm2d))
            else shades
        )
        page.image(at_x, middle, MAP, MAP, values, **own)
        page.text(at_x + MAP / 2, middle - 0.14, title, 10, weight="bold")
        page.text(at_x + MAP / 2, middle + MAP + 0.13, f"{values.shape[0]} x {values.shape[1]}", 8, color="#666666")
        if place:
            page.arrow(at_x - GAP + 0.05, middle + MAP / 2, at_x - 0.05, middle + MAP / 2)
