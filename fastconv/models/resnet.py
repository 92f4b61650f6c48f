"""`resnet18` and `resnet50`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.layers import AdaptiveAvgPool2d, BatchNorm2d, Flatten, Layer, MaxPool2d, ReLU, Sequential
from fastconv.layers._folding import joined, unit
from fastconv.layers._tape import BackwardPass
from fastconv.models._common import Maker


class _Block(Layer):
    """y = ReLU(body(x) + shortcut(x)); the body is conv1, bn1, conv2, bn2 ... with ReLU between, torchvision's names.

    Parameters
    ----------
    make : Maker
    in_channels : int
    steps : tuple of (width, kernel, stride)
        The convolutions of the body.
    """

    def __init__(self, make: Maker, in_channels: int, steps: tuple[tuple[int, int, int], ...]) -> None:
        channels, stride = in_channels, 1
        for i, (width, kernel, step) in enumerate(steps, 1):
            convolution = make.conv(channels, width, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{i}", convolution)
            setattr(self, f"bn{i}", BatchNorm2d(width, dtype=make.dtype))
            channels, stride = width, stride * step
        self.relu = ReLU()
        self.downsample: Sequential | None = None
        if stride != 1 or channels != in_channels:
            shortcut = make.conv(in_channels, channels, 1, stride, bias=False)
            self.downsample = Sequential(shortcut, BatchNorm2d(channels, dtype=make.dtype))
        self._n = len(steps)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = input
        for i in range(1, self._n + 1):
            x = unit(getattr(self, f"conv{i}"), getattr(self, f"bn{i}"), self.relu if i < self._n else None, x)
        around = input if self.downsample is None else self.downsample(input)
        return joined(around, x, getattr(self, f"bn{self._n}"), self.relu), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        needs_input = run.needs_input
        grad_sum = run(self.relu, grad_output)
        around = grad_sum if self.downsample is None else run(self.downsample, grad_sum, needs_input)
        grad = grad_sum
        for i in range(self._n, 0, -1):
            if i < self._n:
                grad = run(self.relu, grad)
            grad = run(getattr(self, f"conv{i}"), run(getattr(self, f"bn{i}"), grad), needs_input or i > 1)
        return grad + around if needs_input else None


def _resnet(make: Maker, bottleneck: bool, depths: tuple[int, int, int, int]) -> Sequential:
    stem, channels = make.width(64), make.width(64)
    net: dict[str, Layer] = {
        "conv1": make.conv(make.in_channels, stem, 7, 2, 3, bias=False),
        "bn1": BatchNorm2d(stem, dtype=make.dtype),
        "relu": ReLU(),
        "maxpool": MaxPool2d(3, 2, 1),
    }
    for i, depth in enumerate(depths):
        width, blocks = make.width(64 * 2**i), []
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            if bottleneck:
                block = _Block(make, channels, ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)))
                channels = 4 * width
            else:
                block = _Block(make, channels, ((width, 3, stride), (width, 3, 1)))
                channels = width
            blocks.append(block)
        net[f"layer{i + 1}"] = Sequential(*blocks)
    return Sequential(
        {
            **net,
            "avgpool": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            "fc": make.linear(channels, make.num_classes),
        }
    )


def resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    filters: int = 64,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """ResNet-18: eight residual blocks of two 3x3 convolutions.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    filters : int
        Of the first convolution; all other widths follow in proportion.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights are drawn from; an int is a seed.

    Returns
    -------
    Sequential
        ``conv1``, ``bn1``, ``relu``, ``maxpool``, ``layer1`` to ``layer4``, ``avgpool``, ``flatten``, ``fc``. For
        224 x 224 images 11,689,512 parameters and 1,814,073,344 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1.

    Notes
    -----
    He et al., "Deep residual learning for image recognition", arXiv 1512.03385.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.models.resnet18(10, 1, filters=8, rng=0)
    >>> net(np.ones((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    make = Maker("resnet18", num_classes, in_channels, filters, 64, dtype, rng)
    return _resnet(make, False, (2, 2, 2, 2))


def resnet50(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    filters: int = 64,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """ResNet-50: sixteen residual blocks 1x1, 3x3, 1x1, with stride 2 in the 3x3 convolutions as in torchvision.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    filters : int
        Of the first convolution; all other widths follow in proportion.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights are drawn from; an int is a seed.

    Returns
    -------
    Sequential
        Parts as in `resnet18`. For 224 x 224 images 25,557,032 parameters and 4,089,184,256 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1.

    Notes
    -----
    He et al., "Deep residual learning for image recognition", arXiv 1512.03385.

    Examples
    --------
    >>> import fastconv
    >>> net = fastconv.models.resnet50(filters=4, rng=0)
    >>> net.layer1[0].downsample[0]
    Conv2d(4, 16, kernel_size=(1, 1), stride=(1, 1), bias=False)
    """
    make = Maker("resnet50", num_classes, in_channels, filters, 64, dtype, rng)
    return _resnet(make, True, (3, 4, 6, 3))
