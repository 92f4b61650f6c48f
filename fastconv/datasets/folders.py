"""`image_folder`: photographs in one folder for each class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastconv.datasets._dataset import Dataset

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_folder(path: Any, size: int = 64, channels: int = 3) -> Dataset:
    """Images in folders: ``path/cat/1.jpg``, ``path/dog/7.png``; a folder's name is its class.

    Parameters
    ----------
    path : str or path
    size : int
        Each image is scaled until its shorter side has this many pixels, and the square in its middle is taken.
    channels : {3, 1}
        Colour or grey.

    Returns
    -------
    Dataset
        Classes and files in the order of their names; hidden ones (".name") are passed over.

    Raises
    ------
    ValueError
        If there are no folders or no images, or an image is damaged; the message names it.
    FileNotFoundError
        If there is no such folder.
    ImportError
        If Pillow is not installed.

    Examples
    --------
    >>> import fastconv, os, tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
    ...         os.mkdir(f"{folder}/{name}")
    ...         Image.new("RGB", (40, 30), colour).save(f"{folder}/{name}/1.png")
    ...     data = fastconv.datasets.image_folder(folder, size=16)
    >>> data, data.classes, data.images[0, :, 0, 0]
    (Dataset(2 images 3 x 16 x 16, uint8, 2 classes), ('blue', 'red'), array([  0,   0, 255], dtype=uint8))
    """
    from fastconv._problem import choice, integer
    from fastconv._state import path_name

    function = "image_folder"
    size = integer(function, "size", size)
    if size < 1:
        raise ValueError(f"{function}: size {size}: it must be at least 1")
    mode = choice(function, "channels", str(channels), ("1", "3"))
    root = Path(path_name(function, path))
    if not root.is_dir():
        raise FileNotFoundError(f"{function}: {root}: there is no such folder")
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ImportError(f"{function}: it needs Pillow: pip install 'fastconv[viz]'") from None
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files = [
        (label, file)
        for label, folder in enumerate(folders)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
    ]
    if not files:
        raise ValueError(f"{function}: {root}: it holds no folders with images, one for each class")
    images = np.empty((len(files), int(mode), size, size), np.uint8)
    for n, (_, file) in enumerate(files):
        try:
            with Image.open(file) as opened:
                photo = ImageOps.exif_transpose(opened).convert("RGB" if mode == "3" else "L")
            fitted = np.asarray(ImageOps.fit(photo, (size, size), Image.Resampling.BILINEAR))
        except Exception as error:  # Pillow's decoders raise many types for a broken file
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{function}: {file}: it cannot be read ({reason})") from None
        images[n] = fitted.transpose(2, 0, 1) if mode == "3" else fitted
    return Dataset(images, [label for label, _ in files], [folder.name for folder in folders])
