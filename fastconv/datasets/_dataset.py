"""`Dataset`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastconv._arrays import as_array
from fastconv._problem import sequence

MOST_UNNAMED = 2**20  # classes that get numbers as names: larger labels are damage, and their names would fill memory


class Dataset:
    """Images with labels; ``images, labels = dataset`` takes it apart, ``dataset[:100]`` is a part of it.

    Parameters
    ----------
    images : (N, C, H, W) array of uint8 or float
    labels : (N,) array of int
    classes : sequence of str, optional
        Their names; by default "0", "1" ...

    Raises
    ------
    TypeError, ValueError
        If shapes do not fit, or a label has no class.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> data = fastconv.datasets.Dataset(np.zeros((3, 1, 2, 2), np.uint8), [2, 0, 1])
    >>> images, labels = data[1:]
    >>> labels, data.classes
    (array([0, 1]), ('0', '1', '2'))
    """

    def __init__(self, images: Any, labels: Any, classes: Sequence[str] | None = None) -> None:
        self.images = as_array("Dataset", "images", images)
        self.labels = as_array("Dataset", "labels", labels)
        floats = self.images.dtype.kind == "f"
        if self.images.ndim != 4 or not (floats or self.images.dtype == np.uint8):
            shown = f"{self.images.dtype} {self.images.shape}"
            raise ValueError(f"Dataset: images are {shown}: they must be (N, C, H, W) of uint8 or float")
        if self.labels.shape != (len(self.images),):
            raise ValueError(f"Dataset: {len(self.images)} images, labels of shape {self.labels.shape}: one for each")
        if self.labels.dtype.kind not in "iu":
            raise TypeError(f"Dataset: labels have dtype {self.labels.dtype}: they must be integers")
        self.labels = self.labels.astype(np.int64)
        least, most = (int(self.labels.min()), int(self.labels.max())) if len(self.labels) else (0, -1)
        if classes is not None and not sequence(classes):
            raise TypeError(f"Dataset: classes is a {type(classes).__name__}: it must be a sequence of names")
        if classes is None and most >= MOST_UNNAMED:
            raise ValueError(f"Dataset: label {most}: it must be below {MOST_UNNAMED} where classes are not named")
        self.classes = tuple(map(str, range(most + 1))) if classes is None else tuple(classes)
        if least < 0 or most >= len(self.classes):
            worst = least if least < 0 else most
            raise ValueError(f"Dataset: label {worst}: it must lie in 0 .. {len(self.classes) - 1}")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.images, self.labels))

    def __getitem__(self, rows: Any) -> Dataset:
        """The images of a slice, or of an array of indices."""
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows)
            if rows.size == 0 and rows.dtype.kind == "f":  # an empty list
                rows = rows.astype(np.intp)
        return Dataset(self.images[rows], self.labels[rows], self.classes)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.images.shape[1:]))
        return f"Dataset({len(self)} images {size}, {self.images.dtype}, {len(self.classes)} classes)"
