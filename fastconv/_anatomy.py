"""The picture of the demo: how a filter turns three colour planes into one map, and what ReLU and pooling do to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

import fastconv
from fastconv.see._page import INK, MARGIN, SOFT, Page, signed

if TYPE_CHECKING:
    from fastconv._demo import Photo, Weights

Array = np.ndarray

FILTERS = (0, 8, 28)  # drawn, and calculated by hand for the first: an edge, a colour, a random one
NOTES = (
    "The same pattern in all three\nplanes: dark left of bright gives\n+ (orange), bright left of dark\n"
    "- (purple), flat areas give 0.\nThe frame comes from the zeros\noutside (padding 1).",
    "Red counts +, green and blue\ncount -: only the sum of the\nthree tells red from white.\nThe bias is a threshold.",
    "Random numbers, as all filters\nare before training. It answers\nto some pattern, but to none\nthat has a name.",
)
CHANNELS = (("R", "red", "#c0392b"), ("G", "green", "#1e8449"), ("B", "blue", "#1f618d"))

# Inches. Six columns of maps (R, G, B, sum, ReLU, pool) right of a column of names.
LABEL, MAP, GAP, KERNEL = 2.75, 2.25, 0.52, 0.92


def telling_window(sums: Array) -> tuple[int, int]:
    """Row and column of the 2 x 2 window where ReLU and the maximum show most: a large value beside a negative one."""
    rows, columns = sums.shape[0] // 2, sums.shape[1] // 2
    fours = sums[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2)
    largest, least = fours.max(axis=(1, 3)), fours.min(axis=(1, 3))
    score = np.minimum(largest, -2 * least) + 1e-3 * largest
    inner = score[1:-1, 1:-1] if min(score.shape) > 2 else score  # away from the zeros of the padding
    row, column = np.unravel_index(int(inner.argmax()), inner.shape)
    off = int(inner is not score)
    return int(row) + off, int(column) + off


def draw(photo: Photo, weights: Weights, x: Array, backend: str) -> Figure:
    """The picture; all its maps are computed by ``backend`` through the public functions.

    Parameters
    ----------
    photo : Photo
        What is shown as the input.
    weights : Weights
        Those of the demo.
    x : ndarray, shape (1, 3, H, W)
        The input of the unit.
    backend : str
        Back end to compute with.
    """
    rows, columns = x.shape[2:]
    tall = MAP * min(max(rows / columns, 0.5), 1.5)  # height of a map; a longer picture leaves white space
    column_x = [MARGIN + LABEL + i * (MAP + GAP) for i in range(6)]
    width = column_x[-1] + MAP + MARGIN
    top = 1.55  # of the planes
    band = KERNEL + tall + 1.0
    bands = top + tall + 0.62
    strip = bands + len(FILTERS) * band + 0.1
    page = Page(width, strip + 2.75)

    with fastconv.config(backend=backend):
        convolved = fastconv.conv2d(x, weights.weight1, weights.bias1, padding=1)
        rectified = fastconv.relu(convolved)
        pooled = fastconv.max_pool2d(rectified, 2)
        second = fastconv.conv2d(pooled, weights.weight2, weights.bias2, padding=1)
        # One group per plane: the maps that a convolution adds up.
        parts = {f: fastconv.conv2d(x, weights.weight1[f][:, None], padding=1, groups=3)[0] for f in FILTERS}

    _heading(page, photo, x, column_x, top, tall, [convolved, rectified, pooled, second], weights)
    window = telling_window(convolved[0, FILTERS[0]])
    for place, index in enumerate(FILTERS):
        maps = [*parts[index], convolved[0, index], rectified[0, index], pooled[0, index]]
        mark = window if place == 0 else None
        _band(page, bands + place * band, tall, column_x, place, index, weights, maps, mark)
    _by_hand(page, strip, column_x, x[0], weights, FILTERS[0], convolved[0], window)
    return page.figure


def _heading(
    page: Page,
    photo: Photo,
    x: Array,
    column_x: list[float],
    top: float,
    tall: float,
    results: list[Array],
    weights: Weights,
) -> None:
    """Title, the photograph, its planes, and the chain of shapes."""
    convolved, rectified, pooled, second = results
    page.text(
        MARGIN, 0.38, "Anatomy of a convolution layer: Conv2d \u2192 ReLU \u2192 MaxPool", 21, ha="left", weight="bold"
    )
    page.text(
        MARGIN, 0.78, "Read from left to right. Each filter has one 3 x 3 kernel per colour plane; "
        "each kernel slides over its plane and gives a map; the three maps are ADDED to one map per filter.",
        11.5, ha="left", color=SOFT,
    )  # fmt: skip
    rows, columns = x.shape[2:]
    page.image(MARGIN, top, MAP, tall, photo.image)
    page.text(MARGIN + MAP / 2, top - 0.33, "input photograph", 12, weight="bold")
    page.text(MARGIN + MAP / 2, top - 0.12, f"{rows} x {columns} pixels, 3 colours", 9, color=SOFT)
    page.arrow(MARGIN + MAP + 0.06, top + tall / 2, column_x[0] - 0.08, top + tall / 2)
    page.text((MARGIN + MAP + column_x[0]) / 2, top + tall / 2 - 0.14, "split", 9, color=SOFT)
    for channel, (letter, name, colour) in enumerate(CHANNELS):
        left = column_x[channel]
        page.image(left, top, MAP, tall, x[0, channel], colour, cmap="gray", vmin=0, vmax=1)
        page.text(left + MAP / 2, top - 0.33, f"{letter}: the {name} plane", 12, weight="bold", color=colour)
        page.text(left + MAP / 2, top - 0.12, f"{rows} x {columns} numbers, black 0, white 1", 9, color=SOFT)
        page.arrow(left + MAP / 2, top + tall + 0.06, left + MAP / 2, top + tall + 0.5)
    lines = (
        ("shapes", "(N images, C maps, H rows, W columns)"),
        (str(x.shape), "the photograph"),
        (str(convolved.shape), "Conv2d 3\u219232, 3 x 3, padding 1: 32 filters, 32 maps"),
        (str(rectified.shape), "ReLU: every negative number becomes 0"),
        (str(pooled.shape), "MaxPool 2 x 2: the largest of every four"),
        (str(second.shape), "Conv2d 32\u219264: the same again, now 32 planes a filter"),
    )
    step = min(0.26, tall / len(lines))
    for i, (shape, text) in enumerate(lines):
        y = top + tall / 2 + (i - (len(lines) - 1) / 2) * step
        bold = {"weight": "bold"} if i == 0 else {}
        page.text(column_x[3] + 0.15, y, shape, 10.5, ha="left", **(bold or {"family": "monospace"}))
        page.text(column_x[3] + 2.3, y, text, 10.5, ha="left", color=SOFT)
        if 2 <= i:
            page.text(column_x[3], y, "\u2192", 10.5, color=SOFT)
    made = sum(name != "random" for name in weights.names)
    page.text(
        column_x[3],
        top - 0.12,
        f"{made} of the 32 filters are made by hand, the others random. Nothing is trained.",
        9.5,
        ha="left",
        color=SOFT,
    )


def _band(
    page: Page, y: float, tall: float, column_x: list[float], place: int, index: int, weights: Weights,
    maps: list[Array], mark: tuple[int, int] | None,
) -> None:  # fmt: skip
    """One filter: kernels above, maps below."""
    weight, bias = weights.weight1[index], float(weights.bias1[index])
    page.line(y)
    y += 0.14
    maps_y = y + KERNEL + 0.4
    name = weights.names[index]
    page.text(MARGIN, y + 0.2, f"filter {index}", 13, ha="left", weight="bold")
    page.text(MARGIN, y + 0.46, f"\u201c{name}\u201d" if name != "random" else "random", 12, ha="left", color="#b9540b")
    page.text(MARGIN, y + 0.7, f"weight {weight.shape}, bias {bias:+.1f}", 9, ha="left", color=SOFT)
    page.text(MARGIN, maps_y + tall / 2, NOTES[place], 10, ha="left")
    kernel_shades, map_shades = signed(weight), signed(np.concatenate([m.ravel() for m in maps[:4]]))
    height, width = maps[0].shape
    for channel, (letter, _, colour) in enumerate(CHANNELS):
        left, middle = column_x[channel], column_x[channel] + MAP / 2
        page.numbers(middle - 1.5 * KERNEL / 3, y, weight[channel], kernel_shades, KERNEL / 3, colour)
        page.text(middle - KERNEL / 2 - 0.12, y + KERNEL / 2, f"kernel\nfor {letter}", 9, ha="right", color=colour)
        page.arrow(middle, y + KERNEL + 0.05, middle, maps_y - 0.05)
        page.text(middle + 0.1, y + KERNEL + 0.2, f"slide over {letter}", 8.5, ha="left", color=SOFT)
        page.image(left, maps_y, MAP, tall, maps[channel], colour, **map_shades)
    captions = ("R map", "G map", "B map", "the sum + bias", "after ReLU", "after pooling")
    for column, caption in enumerate(captions):
        shape = maps[column].shape
        page.text(
            column_x[column] + MAP / 2, maps_y + tall + 0.15, f"{caption}   {shape[0]} x {shape[1]}", 9.5,
            weight="bold" if column == 3 else "normal",
        )  # fmt: skip
    for column, sign in ((1, "+"), (2, "+"), (3, "=")):
        page.text(column_x[column] - GAP / 2, maps_y + tall / 2, sign, 24, weight="bold")
    results = [page.image(column_x[c], maps_y, MAP, tall, maps[c], **map_shades) for c in (3, 4, 5)]
    for column, first, then in ((4, "ReLU", "negative \u2192 0"), (5, "MaxPool", "2 x 2 \u2192 largest")):
        left = column_x[column]
        page.arrow(left - GAP + 0.05, maps_y + tall / 2, left - 0.05, maps_y + tall / 2)
        page.text(left - GAP / 2, maps_y - 0.36, first, 11, weight="bold")
        page.text(left - GAP / 2, maps_y - 0.14, then, 9, color=SOFT)
    if bias:
        page.text(column_x[3] - GAP / 2, maps_y + tall / 2 + 0.32, f"bias\n{bias:+.1f}", 9, color=INK)
    _scale(page, column_x[3] + 0.1, y + 0.2, map_shades)
    if mark:
        row, column = mark
        for picture, (r, c, size) in zip(results, ((2 * row, 2 * column, 2),) * 2 + ((row, column, 1),), strict=True):
            wide = max(width * size // 44, size)  # as wide as can be seen
            picture.mark(r + (size - wide) / 2, c + (size - wide) / 2, wide, wide)


def _scale(page: Page, x: float, y: float, shades: dict[str, Any]) -> None:
    """The colour scale of a band's maps."""
    page.image(x, y, MAP - 0.2, 0.13, np.linspace(-1, 1, 200)[None], stretch=True, cmap=shades["cmap"])
    limit = shades["vmax"]
    for at, text in ((0.0, f"{-limit:.2g}"), (0.5, "0"), (1.0, f"+{limit:.2g}")):
        page.text(x + at * (MAP - 0.2), y + 0.22, text, 8, color=SOFT)
    page.text(x + (MAP - 0.2) / 2, y - 0.1, "colours of this filter's six maps", 8.5, color=SOFT)


def _by_hand(
    page: Page,
    y: float,
    column_x: list[float],
    x: Array,
    weights: Weights,
    index: int,
    convolved: Array,
    window: tuple[int, int],
) -> None:
    """The same with numbers: one output pixel, then ReLU and pooling of its neighbourhood."""
    page.line(y)
    weight, bias = weights.weight1[index], float(weights.bias1[index])
    block = convolved[index, 2 * window[0] : 2 * window[0] + 2, 2 * window[1] : 2 * window[1] + 2]
    dr, dc = np.unravel_index(int(block.argmax()), block.shape)
    row, column = 2 * window[0] + int(dr), 2 * window[1] + int(dc)
    patches = np.pad(x, ((0, 0), (1, 1), (1, 1)))[:, row : row + 3, column : column + 3]
    page.text(MARGIN, y + 0.3, "By hand", 13, ha="left", weight="bold")
    page.text(
        MARGIN, y + 1.3, f"One number of filter {index}'s map:\nrow {row}, column {column}, inside the\n"
        "blue square above. Multiply the\n3 x 3 pixels by the 3 x 3 kernel,\nnumber by number, and add up.\n"
        "Zeros stand outside the picture.", 10, ha="left",
    )  # fmt: skip
    cell, grey = 0.29, {"cmap": "gray", "vmin": 0, "vmax": 1}
    top = y + 0.75
    shades = signed(weight)
    sums = (patches * weight).sum(axis=(1, 2))
    for channel, (letter, _, colour) in enumerate(CHANNELS):
        left = column_x[channel]
        page.text(left + 1.5 * cell, top - 0.15, f"{letter} pixels", 9, color=colour)
        page.numbers(left, top, patches[channel], grey, cell, colour)
        page.text(left + 3 * cell + 0.19, top + 1.5 * cell, "\u00d7", 17)
        page.numbers(left + 3 * cell + 0.38, top, weight[channel], shades, cell, colour)
        page.text(left + 4.5 * cell + 0.38, top - 0.15, f"kernel for {letter}", 9, color=colour)
        page.text(
            left + MAP / 2, top + 3 * cell + 0.27, f"adds up to {sums[channel]:+.3f}", 10.5, color=colour, weight="bold"
        )
        if channel:
            page.text(left - GAP / 2, top + 3 * cell + 0.27, "+", 15, weight="bold")
    value = float(convolved[index, row, column])
    page.text(column_x[3] - GAP / 2, top + 3 * cell + 0.27, "=", 15, weight="bold")
    page.text(
        column_x[3],
        top + 3 * cell + 0.27,
        f"{sums.sum():+.3f}, bias {bias:+.1f}: {value:+.3f}",
        10.5,
        ha="left",
        weight="bold",
    )
    map_shades = signed(convolved[index])
    big = 0.44
    texts = ("the 2 x 2 sums there", "after ReLU", "after pooling")
    for place, (data, text) in enumerate(
        zip((block, np.maximum(block, 0), np.maximum(block, 0).max(keepdims=True)), texts, strict=True)
    ):
        left = column_x[3 + place] + MAP / 2 - data.shape[1] * big / 2
        picture = page.numbers(left, top + (2 - data.shape[0]) * big / 2, data, map_shades, big)
        if place == 0:
            picture.mark(dr + 0.05, dc + 0.05, 0.9, 0.9)
        page.text(column_x[3 + place] + MAP / 2, top - 0.15, text, 9, color=SOFT)
        if place:
            page.arrow(column_x[3 + place] - GAP / 2 - 0.45, top + big, column_x[3 + place] - GAP / 2 + 0.45, top + big)
    page.text(page.width - MARGIN, y + 2.6, f"computed by fastconv {fastconv.__version__}", 8, ha="right", color=SOFT)
