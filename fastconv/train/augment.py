"""Augmentation of image batches: shifted, turned, scaled, mirrored, cropped copies, drawn from a generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv._arrays import as_floats
from fastconv._problem import flag, integer
from fastconv.layers._base import number
from fastconv.layers._initial import generator


class Augment:
    """Random changes of every image of a batch, each drawn anew.

    Parameters
    ----------
    shift : float
        Up to this many cells along each axis, fractions too.
    rotate : float
        Up to this many degrees, either way, about the centre.
    scale : float
        Larger or smaller by up to this part, below 1: 0.1 means factors 0.9 to 1.1.
    flip : bool
        Mirror left and right, every other image.
    crop : int
        Cut out a square of this many cells at a random place; 0: keep the size.
    fill : float
        Value of cells that come from outside the image.

    Raises
    ------
    TypeError, ValueError
        For numbers out of range; when called, for anything but an (N, C, H, W) batch of floats, or one smaller than
        the crop.

    Notes
    -----
    Shift, turn and scale are one affine map with bilinear interpolation. The same generator state gives the same bits.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> augment = fastconv.train.Augment(flip=True, crop=24)
    >>> augment(np.zeros((8, 1, 28, 28), np.float32), rng=0).shape
    (8, 1, 24, 24)
    """

    def __init__(
        self,
        shift: float = 0.0,
        rotate: float = 0.0,
        scale: float = 0.0,
        flip: bool = False,
        crop: int = 0,
        fill: float = 0.0,
    ) -> None:
        self.shift = number("Augment", "shift", shift, 0)
        self.rotate = number("Augment", "rotate", rotate, 0, 180)
        self.scale = number("Augment", "scale", scale, 0, 0.99)
        self.flip = flag("Augment", "flip", flip)
        self.crop = integer("Augment", "crop", crop)
        if self.crop < 0:
            raise ValueError(f"Augment: crop {self.crop}: it must be at least 0")
        self.fill = number("Augment", "fill", fill)

    def __call__(self, images: Any, rng: Any) -> np.ndarray:
        """A new batch; `rng` is a generator or a seed."""
        x = _batch("Augment", images, self.crop)
        source = generator("Augment", rng)
        N = x.shape[0]
        if self.shift or self.rotate or self.scale:
            x = self._transformed(x, source)
        if self.flip:
            mirrored = source.random((N,)) < 0.5
            x = np.where(mirrored[:, None, None, None], x[..., ::-1], x)
        if self.crop:
            tops, lefts = (source.integers(0, extent - self.crop + 1, (N,)) for extent in x.shape[2:])
            x = _cut(x, tops, lefts, self.crop)
        return x

    def _transformed(self, x: np.ndarray, source: np.random.Generator) -> np.ndarray:
        N, C, H, W = x.shape
        turns = np.radians(source.uniform(-self.rotate, self.rotate, (N,)))
        factors = source.uniform(1 - self.scale, 1 + self.scale, (N,))
        down, right = source.uniform(-self.shift, self.shift, (2, N))
        # Where each output cell looks, from the centre: moved back, turned back, scaled back
        centre_h, centre_w = (H - 1) / 2, (W - 1) / 2
        rows = np.arange(H)[:, None] - centre_h - down[:, None, None]
        columns = np.arange(W)[None, :] - centre_w - right[:, None, None]
        cosine, sine = ((f(turns) / factors)[:, None, None] for f in (np.cos, np.sin))
        return _sampled(
            x, cosine * rows - sine * columns + centre_h, sine * rows + cosine * columns + centre_w, self.fill
        )


def _sampled(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float) -> np.ndarray:
    """Bilinear values of (N, C, H, W) at the places (N, h, w) of every image; ``fill`` lies all around.

    The whole batch at once: ten times as fast as a call of scipy.ndimage for each image, which tests compare it with.
    """
    N, C, H, W = x.shape
    framed = np.full((N, C, H + 3, W + 3), fill, x.dtype)  # one cell before, two behind
    framed[:, :, 1:-2, 1:-2] = x
    rows, columns = np.clip(rows + 1, 0, H + 1), np.clip(columns + 1, 0, W + 1)
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    down, right = (rows - top).astype(x.dtype)[:, None], (columns - left).astype(x.dtype)[:, None]
    corner = (top * (W + 3) + left)[:, None]
    corner = corner + np.arange(N * C, dtype=np.int32).reshape(N, C, 1, 1) * ((H + 3) * (W + 3))
    flat = framed.reshape(-1)
    above, below = (
        (flat.take(corner + step) * (1 - right) + flat.take(corner + step + 1) * right) for step in (0, W + 3)
    )
    return above * (1 - down) + below * down


def center_crop(images: Any, size: int) -> np.ndarray:
    """The square in the middle of every image: what a network trained on random crops is validated with.

    Parameters
    ----------
    images : (N, C, H, W) array of float
    size : int

    Returns
    -------
    (N, C, size, size) array

    Raises
    ------
    TypeError, ValueError
        For another shape, or a size that is not in 1 .. min(H, W).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.train.center_crop(np.arange(16.0).reshape(1, 1, 4, 4), 2)
    array([[[[ 5.,  6.],
             [ 9., 10.]]]])
    """
    size = integer("center_crop", "size", size)
    if size < 1:
        raise ValueError(f"center_crop: size {size}: it must be at least 1")
    x = _batch("center_crop", images, size)
    N, _, H, W = x.shape
    return _cut(x, np.full(N, (H - size) // 2), np.full(N, (W - size) // 2), size)


def _batch(function: str, images: Any, least: int) -> np.ndarray:
    x = as_floats(function, "images", images)
    if x.ndim != 4 or min(x.shape[2:]) < least:
        rule = "it must be (N, C, H, W)" + (f" with H and W of at least {least}" if least else "")
        raise ValueError(f"{function}: images have shape {x.shape}: {rule}")
    return x


def _cut(x: np.ndarray, tops: np.ndarray, lefts: np.ndarray, size: int) -> np.ndarray:
    out = np.empty((*x.shape[:2], size, size), x.dtype)
    for n, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        out[n] = x[n, :, top : top + size, left : left + size]
    return out
