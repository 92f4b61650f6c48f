"""A page of pictures, measured in inches: what `anatomy` and the demo draw on."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

Array = np.ndarray

SIGNED = "PuOr_r"  # purple below 0, white at 0, orange above
INK, SOFT, MARK = "#222222", "#666666", "#00a0c0"
DPI = 110
MARGIN = 0.35


class Page:
    """A figure measured in inches from its top left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)

    def axes(self, x: float, y: float, width: float, height: float) -> Any:
        axes = self.figure.add_axes(
            (x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height)
        )
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def image(self, x: float, y: float, width: float, height: float, data: Array, edge: str = INK, **how: Any) -> Any:
        axes = self.axes(x, y, width, height)
        axes.imshow(data, interpolation="nearest" if min(data.shape[:2]) <= 8 else "antialiased", **how)
        axes.set_anchor("C")
        for spine in axes.spines.values():
            spine.set(edgecolor=edge, linewidth=1.6 if edge != INK else 0.8)
        return axes

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

    def numbers(self, x: float, y: float, data: Array, shades: dict[str, Any], cell: float, edge: str = INK) -> Any:
        """A small array as a grid of coloured cells with their numbers."""
        rows, columns = data.shape
        axes = self.image(x, y, columns * cell, rows * cell, data, edge, **shades)
        colours = axes.images[0]
        for (row, column), value in np.ndenumerate(data):
            rgb = colours.cmap(colours.norm(value))[:3]
            light = np.dot(rgb, (0.299, 0.587, 0.114)) > 0.5
            shown = (
                f"{value:.2f}".replace("-0.00", "0.00").replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.1f}"
            )
            axes.text(column, row, shown, ha="center", va="center", fontsize=26 * cell, color=INK if light else "white")
        return axes


def signed(values: Array) -> dict[str, Any]:
    """Colours of an array with both signs: white is 0; the same on both sides."""
    limit = float(np.percentile(np.abs(values), 99.0)) or float(np.abs(values).max()) or 1.0
    return {"cmap": SIGNED, "vmin": -limit, "vmax": limit}
