"""A page of pictures, measured in inches: what `anatomy` and the demo draw on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import FancyArrowPatch, Rectangle

Array = np.ndarray

SIGNED = "PuOr_r"  # purple below 0, white at 0, orange above
INK, SOFT, MARK = "#222222", "#666666", "#00a0c0"
DPI = 110
MARGIN = 0.35


class Page:
    """A figure measured in inches from its top left corner: one pair of axes holds all its pictures.

    Axes of its own for each picture would cost 20 ms, and a page has up to 200.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        self.axes.axis("off")

    def image(
        self, x: float, y: float, width: float, height: float, data: Array, edge: str = INK, *, stretch: bool = False,
        **how: Any,
    ) -> Picture:  # fmt: skip
        """An array in the middle of a box, its cells square unless they are to ``stretch`` to the whole of it."""
        rows, columns = data.shape[:2]
        if not stretch:
            cell = min(width / columns, height / rows)
            x, y = x + (width - cell * columns) / 2, y + (height - cell * rows) / 2
            width, height = cell * columns, cell * rows
        shown = self.axes.imshow(
            data, extent=(x, x + width, y + height, y), aspect="auto",
            interpolation="nearest" if min(rows, columns) <= 8 else "antialiased", **how,
        )  # fmt: skip
        self.axes.add_patch(
            Rectangle((x, y), width, height, fill=False, edgecolor=edge, linewidth=1.6 if edge != INK else 0.8)
        )
        return Picture(self, shown, x, y, width / columns, height / rows)

    def text(self, x: float, y: float, text: str, size: float = 10, **how: Any) -> None:
        how = {"color": INK, "ha": "center", "va": "center", **how}
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, **how)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, bend: float = 0.0) -> None:
        points = [(x / self.width, 1 - y / self.height) for x, y in ((x0, y0), (x1, y1))]
        self.figure.add_artist(
            FancyArrowPatch(
                *points, transform=self.figure.transFigure, arrowstyle="-|>", mutation_scale=13, color=SOFT,
                linewidth=1.3, connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0,
            )
        )  # fmt: skip

    def line(self, y: float) -> None:
        self.figure.add_artist(
            Rectangle(
                (MARGIN / self.width, 1 - y / self.height), 1 - 2 * MARGIN / self.width, 0,
                transform=self.figure.transFigure, edgecolor="#cccccc", linewidth=1,
            )
        )  # fmt: skip

    def numbers(self, x: float, y: float, data: Array, shades: dict[str, Any], cell: float, edge: str = INK) -> Picture:
        """A small array as a grid of coloured cells with their numbers."""
        rows, columns = data.shape
        picture = self.image(x, y, columns * cell, rows * cell, data, edge, **shades)
        colours = picture.image
        for (row, column), value in np.ndenumerate(data):
            rgb = colours.cmap(colours.norm(value))[:3]
            light = np.dot(rgb, (0.299, 0.587, 0.114)) > 0.5
            shown = (
                f"{value:.2f}".replace("-0.00", "0.00").replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"
            )
            self.text(
                x + (column + 0.5) * cell, y + (row + 0.5) * cell, shown, 26 * cell, color=INK if light else "white"
            )
        return picture


@dataclass(frozen=True)
class Picture:
    """An array as it was drawn: its top left corner and the extents of a cell, in inches."""

    page: Page
    image: AxesImage
    x: float
    y: float
    cell_width: float
    cell_height: float

    def mark(self, row: float, column: float, rows: float, columns: float) -> None:
        """A frame around cells."""
        corner = self.x + column * self.cell_width, self.y + row * self.cell_height
        self.page.axes.add_patch(
            Rectangle(
                corner, columns * self.cell_width, rows * self.cell_height, fill=False, edgecolor=MARK, linewidth=1.8
            )
        )


def signed(values: Array) -> dict[str, Any]:
    """Colours of an array with both signs: white is 0; the same on both sides."""
    limit = float(np.percentile(np.abs(values), 99.0)) or float(np.abs(values).max()) or 1.0
    return {"cmap": SIGNED, "vmin": -limit, "vmax": limit}
