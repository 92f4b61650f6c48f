"""Images and labels in a .npz file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import _state
from fastconv.datasets._dataset import Dataset


def read_npz(path: Any, images: str = "x", labels: str = "y") -> Dataset:
    """A data set in a .npz file.

    Parameters
    ----------
    path : str or path
    images, labels : str
        Names of the two arrays. Images are (N, C, H, W), (N, H, W, C) with 1 or 3 channels, (N, H, W), or rows
        (N, H * W) of square images.

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If the file is damaged, lacks one of the arrays, or their shapes do not fit.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import numpy as np, fastconv, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.save({"x": np.zeros((2, 784), np.uint8), "y": np.array([3, 1])}, f"{folder}/a.npz")
    ...     fastconv.datasets.read_npz(f"{folder}/a.npz")
    Dataset(2 images 1 x 28 x 28, uint8, 4 classes)
    """
    name, entries = _state.path_name("read_npz", path), _state.read("read_npz", path)
    for key in (images, labels):
        if key not in entries:
            raise ValueError(f"read_npz: {name}: it has no array {key!r}, only {', '.join(map(repr, entries))}")
    try:
        return Dataset(_as_nchw(entries[images]), entries[labels])
    except (TypeError, ValueError) as error:
        raise type(error)(f"read_npz: {name}: {error}") from None


def _as_nchw(x: np.ndarray) -> np.ndarray:
    if x.ndim == 2 and math.isqrt(x.shape[1]) ** 2 == x.shape[1]:
        side = math.isqrt(x.shape[1])
        return x.reshape(len(x), 1, side, side)
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4 and x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    return x
