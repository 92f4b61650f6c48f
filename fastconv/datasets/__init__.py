"""Data sets of images: readers of files, and two known sets that are found where they are installed.

================  ===============================================================
_dataset.py       `Dataset`: images, labels, names of the classes
idx.py            `read_idx`: the files of MNIST and Fashion-MNIST
npz.py            `read_npz`: NumPy's archives
folders.py        `image_folder`: one folder of photographs for each class (Pillow)
known.py          `digits`, `fashion_mnist`
================  ===============================================================

>>> import numpy as np, fastconv
>>> data = fastconv.datasets.Dataset(np.zeros((5, 1, 8, 8), np.uint8), [0, 1, 0, 1, 1], ("cat", "dog"))
>>> data
Dataset(5 images 1 x 8 x 8, uint8, 2 classes)
>>> len(data[:3])
3
"""

from fastconv.datasets._dataset import Dataset
from fastconv.datasets.folders import image_folder
from fastconv.datasets.idx import read_idx
from fastconv.datasets.known import digits, fashion_mnist
from fastconv.datasets.npz import read_npz

__all__ = ["Dataset", "digits", "fashion_mnist", "image_folder", "read_idx", "read_npz"]
