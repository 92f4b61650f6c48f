"""Pictures of training: `curves` of a history, `filters` as they change, `costs` of several widths. All return bytes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

SIDE = 560  # pixels, about, of the moving picture
BETWEEN = (70, 100, 150)  # colour of the gaps, which no grey cell has
HEAD = 24  # pixels above them, for the caption


def check_installed(function: str) -> None:
    """ImportError, before anything is trained, if what draws is missing."""
    try:
        import matplotlib.figure  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError(f"{function}: its pictures need matplotlib and Pillow: pip install 'fastconv[viz]'") from None


def curves(history: Any, title: str) -> bytes:
    """Loss and accuracy against epochs, as PNG."""
    epochs = history["epoch"]
    figure, panels = _figure(title)
    for panel, name, scale in zip(panels, ("loss", "accuracy"), (1, 100), strict=True):
        marker = "o" if len(epochs) < 40 else None
        panel.plot(epochs, history[name] * scale, marker=marker, markersize=3, label="training")
        panel.plot(epochs, history[f"val_{name}"] * scale, marker=marker, markersize=3, label="validation")
        panel.set(xlabel="epoch", ylabel=name if scale == 1 else f"{name} in %")
        panel.legend()
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_yscale("log")
    panels[1].set_title(f"validation: {history['val_accuracy'][-1]:.2%} after {len(history)} epochs", fontsize=10)
    return _png(figure)


def costs(rows: Sequence[dict[str, float]], title: str) -> bytes:
    """Accuracy against the number of filters, and against what they cost, as PNG."""
    figure, panels = _figure(title)
    filters = [row["filters"] for row in rows]
    accuracy = [100 * row["accuracy"] for row in rows]
    panels[0].plot(filters, accuracy, marker="o")
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks(filters, [f"{n:g}" for n in filters])
    panels[0].set(xlabel="filters of the first layer", ylabel="validation accuracy in %")
    panels[1].plot([row["multiply_adds"] / 1e6 for row in rows], accuracy, marker="o")
    for row, height in zip(rows, accuracy, strict=True):
        at = (row["multiply_adds"] / 1e6, height)
        panels[1].annotate(f"{row['filters']:g}", at, xytext=(4, -12), textcoords="offset points")
    panels[1].set_xscale("log")
    panels[1].margins(0.1)
    panels[1].set(xlabel="million multiply-adds for one image", ylabel="validation accuracy in %")
    return _png(figure)


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    for panel in panels:
        panel.grid(alpha=0.3)
    return figure, panels


def _png(figure: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    return data.getvalue()


def filters(frames: Sequence[np.ndarray], captions: Sequence[str]) -> bytes:
    """The filters of a convolution at several times as a moving picture (GIF); the last stays longest.

    Each filter of 3 channels is a colour picture, any other the mean of its channels in grey; 0 is the middle grey, and
    the largest weight of each filter, at each time, is black or white.
    """
    from PIL import Image, ImageDraw

    pictures = []
    for weight, caption in zip(frames, captions, strict=True):
        tiles = _tiled(weight)
        zoom = max(1, SIDE // tiles.shape[1])
        sheet = Image.fromarray(tiles).resize((tiles.shape[1] * zoom, tiles.shape[0] * zoom), Image.Resampling.NEAREST)
        picture = Image.new("RGB", (sheet.width, sheet.height + HEAD), "white")
        picture.paste(sheet, (0, HEAD))
        ImageDraw.Draw(picture).text((6, 5), caption, fill="black", font_size=14)
        pictures.append(picture)
    data = io.BytesIO()
    times = [800] + [350] * (len(pictures) - 2) + [2500] if len(pictures) > 1 else [1000]
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return data.getvalue()


def _tiled(weight: np.ndarray) -> np.ndarray:
    """(OC, IC, KH, KW) as one uint8 sheet (height, width, 3), filters in rows, one pixel for each cell."""
    OC, IC, KH, KW = weight.shape
    shown = weight if IC == 3 else np.repeat(weight.mean(axis=1, keepdims=True), 3, axis=1)
    largest = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    grey = np.rint(127.5 + 127.5 * shown / np.where(largest > 0, largest, 1)).astype(np.uint8)
    columns = math.ceil((2 * OC) ** 0.5)  # about twice as wide as high
    rows = -(-OC // columns)
    sheet = np.empty((rows * (KH + 1) + 1, columns * (KW + 1) + 1, 3), np.uint8)
    sheet[:] = BETWEEN
    for n in range(OC):
        top, left = n // columns * (KH + 1) + 1, n % columns * (KW + 1) + 1
        sheet[top : top + KH, left : left + KW] = grey[n].transpose(1, 2, 0)
    return sheet
