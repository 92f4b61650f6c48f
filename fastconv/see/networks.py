"""The architectures of the networks that `fetch` brings: layers with their names, and how an image becomes an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv._arrays import as_ndarray
from fastconv.functional import per_channel
from fastconv.layers import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    GlobalAvgPool2d,
    Layer,
    Linear,
    MaxPool2d,
    PReLU,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    Softmax,
)
from fastconv.layers._summary import Signal


@dataclass(frozen=True)
class Preparation:
    """From a photograph to what a network takes, and back.

    Attributes
    ----------
    mean, scale : float or sequence of float
        input = (pixels - mean) * scale, pixels in 0 .. 255; one number, or one for each channel of the input.
    bgr : bool
        The network takes blue, green, red.

    Raises
    ------
    TypeError, ValueError
        When called, for an image that is not (H, W, C), or `mean` or `scale` that are no numbers for its channels.

    Examples
    --------
    >>> import numpy as np
    >>> from fastconv.see import Preparation
    >>> prepare = Preparation(mean=127.5, scale=1 / 127.5)
    >>> x = prepare(np.full((2, 2, 3), 255, np.uint8))
    >>> x.shape, float(x.max())
    ((3, 2, 2), 1.0)
    >>> int(prepare.pixels(x).min())
    255
    """

    mean: float | Sequence[float] = 0.0
    scale: float | Sequence[float] = 1 / 255
    bgr: bool = False

    def _columns(self, C: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and scale of every channel, (C, 1, 1)."""
        mean, scale = (per_channel("Preparation", name, getattr(self, name), C) for name in ("mean", "scale"))
        return mean[:, None, None], scale[:, None, None]

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, C) to float32 (C, H, W)."""
        array = as_ndarray("Preparation", "image", image)
        if array.ndim != 3:
            raise ValueError(f"Preparation: image has shape {array.shape}: it must be (H, W, C)")
        planes = array.transpose(2, 0, 1)
        planes = planes[::-1] if self.bgr else planes
        mean, scale = self._columns(len(planes))
        return ((planes - mean) * scale).astype(np.float32)

    def pixels(self, x: np.ndarray) -> np.ndarray:
        """float (C, H, W) to uint8 (H, W, C), for showing."""
        mean, scale = self._columns(len(x))
        planes = np.clip(np.rint(x / scale + mean), 0, 255).astype(np.uint8)
        return (planes[::-1] if self.bgr else planes).transpose(1, 2, 0)

    def colours(self, x: np.ndarray) -> np.ndarray:
        """The channels of (C, h, w) in the order red, green, blue."""
        return x[::-1] if self.bgr else x


# VGG-16 (Simonyan and Zisserman, arXiv 1409.1556, table 1, column D): filters of each convolution, and the pools.
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)


def vgg16_trunk() -> Sequential:
    """The 13 convolutions of VGG-16 with four pools, named "0" ... "29" as torchvision's ``features``."""
    layers: list[Layer] = []
    channels = 3
    for entry in VGG16:
        if isinstance(entry, str):
            layers.append(MaxPool2d(2, ceil_mode=True))
        else:
            layers += [Conv2d(channels, entry, 3, padding=1, init="zeros"), ReLU()]
            channels = entry
    return Sequential(*layers)


class Resize(Layer):
    """Bilinear enlargement to the size of another map, by two matrices: y = A x B^T."""

    def _forward(self, x: Any, like: Any) -> tuple[Any, Any]:
        if isinstance(x, Signal):
            return x.like((*x.shape[:2], *like.shape[2:])), None
        rows, columns = (_bilinear(x.shape[axis], like.shape[axis], x.dtype) for axis in (2, 3))
        return np.ascontiguousarray(rows @ x @ columns.T), (rows, columns)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: Any) -> Any:
        rows, columns = saved
        return np.ascontiguousarray(rows.T @ grad_output @ columns)

    def _trace(self, signal: Any, like: Any) -> tuple[Any, int]:
        return self._forward(signal, like)[0], 0


def _bilinear(size: int, target: int, dtype: Any) -> np.ndarray:
    """Weights (target, size): cell i of the output stands at (i + 1/2) * size / target - 1/2, borders repeated."""
    place = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    low = np.floor(place).astype(int)
    share = place - low
    matrix = np.zeros((target, size), dtype)
    matrix[np.arange(target), low] += 1 - share
    matrix[np.arange(target), np.minimum(low + 1, size - 1)] += share
    return matrix


class HED(Layer):
    """Holistically-nested edge detection (Xie and Tu, arXiv 1504.06375): VGG-16's trunk with five side outputs."""

    _SIDES = ("3", "8", "15", "22", "29")  # the last ReLU of each block

    def __init__(self) -> None:
        self.features = vgg16_trunk()
        for i, channels in enumerate((64, 128, 256, 512, 512), 1):
            setattr(self, f"dsn{i}", Conv2d(channels, 1, 1, init="zeros"))
        self.resize = Resize()
        self.fuse = Conv2d(5, 1, 1, init="zeros")

    def _forward(self, x: Any) -> tuple[Any, Any]:
        sides, maps, i = [], x, 1
        for name, layer in self.features.named_children():
            maps = layer(maps)
            if name in self._SIDES:
                side = getattr(self, f"dsn{i}")(maps)
                sides.append(side if i == 1 else self.resize(side, x))
                i += 1
        if isinstance(x, Signal):
            return self.fuse(sides[-1].like((x.shape[0], 5, *x.shape[2:]))), None
        fused = self.fuse(np.concatenate(sides, axis=1))
        return 1 / (1 + np.exp(-fused)), 1 / (1 + np.exp(-fused))

    def _backward(self, grad_output: np.ndarray, saved: Any, run: Any) -> Any:
        sides = np.split(run(self.fuse, grad_output * saved * (1 - saved)), 5, axis=1)
        grad, i = None, 5
        for name, layer in reversed(list(self.features.named_children())):
            if name in self._SIDES:
                side = np.ascontiguousarray(sides[i - 1])
                side = run(getattr(self, f"dsn{i}"), side if i == 1 else run(self.resize, side))
                grad = side if grad is None else grad + side
                i -= 1
            grad = run(layer, grad)
        return grad


# EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, without squeeze-and-excitation): repeats, kernel, stride, expansion,
# channels of each stage.
LITE0 = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip


def _normed(channels: int, filters: int, kernel: int, stride: int = 1, groups: int = 1) -> list[Layer]:
    conv = Conv2d(channels, filters, kernel, stride, "same", groups=groups, bias=False, init="zeros")
    return [conv, BatchNorm2d(filters, eps=1e-3)]


def efficientnet_lite0() -> Sequential:
    """1,000 classes of ImageNet; input 224 x 224."""
    layers: list[Layer] = [*_normed(3, 32, 3, 2), ReLU6()]
    channels = 32
    for repeats, kernel, first_stride, expansion, filters in LITE0:
        for i in range(repeats):
            stride, inner = first_stride if i == 0 else 1, channels * expansion
            block: list[Layer] = [*_normed(channels, inner, 1), ReLU6()] if expansion > 1 else []
            block += [*_normed(inner, inner, kernel, stride, groups=inner), ReLU6(), *_normed(inner, filters, 1)]
            body = Sequential(*block)
            layers.append(Residual(body) if stride == 1 and channels == filters else body)
            channels = filters
    layers += [*_normed(channels, 1280, 1), ReLU6(), GlobalAvgPool2d(), Flatten(), Linear(1280, 1000, init="zeros")]
    return Sequential(*layers)


def mtcnn_onet() -> Sequential:
    """The output net of the face cascade (Zhang et al., arXiv 1604.02878): 48 x 48 -> chances of (no face, face)."""
    zeros: dict[str, Any] = {"init": "zeros"}
    return Sequential(
        Conv2d(3, 32, 3, **zeros), PReLU(32), MaxPool2d(3, 2, ceil_mode=True),
        Conv2d(32, 64, 3, **zeros), PReLU(64), MaxPool2d(3, 2),
        Conv2d(64, 64, 3, **zeros), PReLU(64), MaxPool2d(2, 2, ceil_mode=True),
        Conv2d(64, 128, 2, **zeros), PReLU(128),
        Flatten(), Linear(1152, 256, **zeros), PReLU(256), Linear(256, 2, **zeros), Softmax(1),
    )  # fmt: skip
