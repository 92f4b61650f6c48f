"""The pictures of `report`, as arrays of pixels (H, W, 3 or 4) and as data URIs that a page can hold."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv.layers import Conv2d
from fastconv.see.patches import Patch

CELL = 96  # pixels of a patch in the page: larger ones are reduced to it, smaller ones are shown enlarged
BLOCKS = 12  # patches up to so many pixels are shown as blocks, and stored without loss, which takes less space then
GREY = 128  # of zero
# Of the nonzero values of a projection so many per cent keep their difference, the largest are all white or one colour:
# a few pixels at the strongest edge would leave the rest of the picture grey.
CONTRAST = 98.0
# Fixed colours of the answers under a grey square, in the order of their frequency (Okabe and Ito's, for the colour-blind)
ANSWERS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
OTHERS = (120, 120, 120)


@dataclass(frozen=True)
class Embedded:
    """A picture in the page; its extents are known before it is decoded, so nothing moves when it is."""

    uri: str
    width: int
    height: int


def embedded(pixels: np.ndarray, lossless: bool = False) -> Embedded:
    """A picture (uint8, HWC) as a data URI: WebP, for small things without loss."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "WEBP", quality=76, lossless=lossless, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
    return Embedded(uri, pixels.shape[1], pixels.shape[0])


def photograph(x: np.ndarray, prepare: Any) -> np.ndarray:
    """An image (C, H, W) as uint8 (H, W, 3)."""
    if prepare is not None:
        shown = prepare.pixels(x)
    else:
        planes = x if len(x) == 3 else x.mean(axis=0, keepdims=True)
        low, high = (0.0, 1.0) if 0 <= planes.min() and planes.max() <= 1 else (planes.min(), planes.max())
        shown = np.rint((planes - low) / ((high - low) or 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:2], 3)))


def around_zero(values: np.ndarray, prepare: Any, limit: float | None = None) -> np.ndarray:
    """A projection or kernel (C, H, W) as uint8 (H, W, 3): grey is zero, ``limit`` (the largest value) white."""
    planes = values if len(values) == 3 else values.mean(axis=0, keepdims=True)
    planes = prepare.colours(planes) if prepare is not None and len(planes) == 3 else planes
    planes = np.nan_to_num(planes.astype(np.float64))
    most = limit or float(np.abs(planes).max()) or 1.0
    shown = np.clip(np.rint(GREY + 127 * planes / most), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return np.broadcast_to(shown, (*shown.shape[:2], 3))


def projection(values: np.ndarray, prepare: Any) -> np.ndarray:
    """A projection (C, H, W) as uint8 (H, W, 3), with the contrast of most of its pixels."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    return around_zero(values, prepare, float(np.percentile(sizes, CONTRAST)) if sizes.size else None)


def grid(pictures: list[np.ndarray], columns: int, gap: int = 1) -> np.ndarray:
    """Pictures of one size or smaller, side by side: on grey, or with alpha on nothing."""
    height = max(len(picture) for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    channels = pictures[0].shape[2]
    rows = -(-len(pictures) // columns)
    extents = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    page = np.full(extents, 0 if channels == 4 else GREY, np.uint8)
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


def cell(patch: Patch, picture: np.ndarray) -> np.ndarray:
    """A picture of a patch at the size of its field, transparent (uint8, H, W, 4) outside the image."""
    opaque = np.concatenate([picture, np.full((*picture.shape[:2], 1), 255, np.uint8)], axis=2)
    return _fitted(np.ascontiguousarray(patch.framed(opaque.transpose(2, 0, 1), 0).transpose(1, 2, 0)))


def blocks(patches: Sequence[Patch]) -> bool:
    """Whether patches are so small that each of their pixels is seen as a block."""
    return all(max(one.patch.shape[1:]) <= BLOCKS for one in patches)


def kernels(conv: Conv2d, f: int, prepare: Any) -> np.ndarray:
    """A filter's kernels: in colour where it reads three channels, else side by side, at most 64 of them."""
    weight = conv.weight[f]
    if len(weight) == 3:
        return around_zero(weight, prepare)
    some = weight[:64]
    columns = min(8, len(some))
    empty = np.zeros((-len(some) % columns, *conv.kernel_size), weight.dtype)
    return _tiled(np.concatenate([some, empty]).reshape(-1, columns, *conv.kernel_size) / _largest(weight))


def sheet(conv: Conv2d, prepare: Any) -> np.ndarray:
    """All kernels of a layer that reads at most four channels, or the first 64 filters by 64 channels of another."""
    if len(conv.weight[0]) <= 4:
        return grid([around_zero(weight, prepare) for weight in conv.weight], 16)
    some = conv.weight[:64, :64]
    return _tiled(some / np.array([_largest(filter) for filter in some]).reshape(-1, 1, 1, 1))


def _largest(weight: np.ndarray) -> float:
    return float(np.abs(np.nan_to_num(weight)).max()) or 1.0


def _tiled(tiles: np.ndarray) -> np.ndarray:
    """Kernels (rows, columns, KH, KW) between -1 and 1 as one grey picture, a line of grey between them."""
    rows, columns, height, width = tiles.shape
    shown = np.full((rows, height + 1, columns, width + 1), GREY, np.uint8)
    shown[:, :-1, :, :-1] = np.clip(np.rint(GREY + 127 * np.nan_to_num(tiles)), 0, 255).transpose(0, 2, 1, 3)
    page = shown.reshape(rows * (height + 1), columns * (width + 1))[:-1, :-1]
    return np.repeat(page[..., None], 3, axis=2)


def heat(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A coarse map (R, C) in colours from its least value (dark) to its largest (bright), about as large as ``shape``."""
    from matplotlib import colormaps

    low, high = values.min(), values.max()
    shades = colormaps["viridis"]((values - low) / ((high - low) or 1))[..., :3]
    return _stretched(np.rint(255 * shades).astype(np.uint8), shape)


def answer_map(answers: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """Which class was named where (R, C), in colours, and the classes with theirs, the most frequent first."""
    classes, counts = np.unique(answers, return_counts=True)
    order = classes[np.argsort(-counts, kind="stable")][: len(ANSWERS)]
    shown = np.empty((*answers.shape, 3), np.uint8)
    shown[...] = OTHERS
    for number, colour in zip(order, ANSWERS, strict=False):
        shown[answers == number] = colour
    legend = [(int(number), f"rgb{colour}") for number, colour in zip(order, ANSWERS, strict=False)]
    return _stretched(shown, shape), legend


def _stretched(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    times = max(1, round(shape[0] / picture.shape[0])), max(1, round(shape[1] / picture.shape[1]))
    return picture.repeat(times[0], axis=0).repeat(times[1], axis=1)
