"""`mobilenet_v2`."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.layers import AdaptiveAvgPool2d, BatchNorm2d, Flatten, Layer, ReLU6, Sequential
from fastconv.layers._folding import joined
from fastconv.layers._tape import BackwardPass
from fastconv.models._common import Maker

# The paper's table 2: expansion, width, repeats, stride of the first repeat
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _unit(make: Maker, IC: int, OC: int, kernel: int, stride: int = 1, groups: int = 1) -> Sequential:
    convolution = make.conv(IC, OC, kernel, stride, kernel // 2, groups=groups, bias=False)
    return Sequential(convolution, BatchNorm2d(OC, dtype=make.dtype), ReLU6())


class _InvertedResidual(Layer):
    """Expand 1x1, depthwise 3x3, project 1x1; added to the input where the shapes agree."""

    def __init__(self, make: Maker, IC: int, OC: int, stride: int, expansion: int) -> None:
        wide = IC * expansion
        expand = [_unit(make, IC, wide, 1)] if expansion != 1 else []
        self.conv = Sequential(
            *expand, _unit(make, wide, wide, 3, stride, groups=wide),
            make.conv(wide, OC, 1, bias=False), BatchNorm2d(OC, dtype=make.dtype),
        )  # fmt: skip
        self._adds = stride == 1 and IC == OC

    def _forward(self, input: Any) -> tuple[Any, Any]:
        output = self.conv(input)
        return (joined(input, output, self.conv[-1]) if self._adds else output), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        needs_input = run.needs_input
        grad = run(self.conv, grad_output, needs_input)
        return grad + grad_output if self._adds and needs_input else grad


def _divisible(width: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth below ``width``: the paper's own rule."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    filters: int = 32,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """MobileNetV2: inverted residuals around depthwise convolutions.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    filters : int
        Of the first convolution, a multiple of 8: 32 times torchvision's ``width_mult``. The other widths follow as
        there, in multiples of 8; the last, 1280, never becomes smaller.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights, and later the masks of dropout, are drawn from.

    Returns
    -------
    Sequential
        ``features``, ``avgpool``, ``flatten``, ``classifier``. For 224 x 224 images 3,504,872 parameters and
        300,774,272 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, or `filters` that 8 does not divide.

    Notes
    -----
    Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", arXiv 1801.04381.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.models.mobilenet_v2(10, 1, filters=8, rng=0).eval()
    >>> net(np.ones((2, 1, 32, 32), np.float32)).shape
    (2, 10)
    """
    make = Maker("mobilenet_v2", num_classes, in_channels, filters, 32, dtype, rng)
    if make.filters % 8:
        raise ValueError(f"mobilenet_v2: filters {make.filters}: it must be a multiple of 8")
    factor = make.filters / 32
    channels, last = make.filters, _divisible(1280 * max(1.0, factor))
    features: list[Layer] = [_unit(make, make.in_channels, channels, 3, 2)]
    for expansion, published, repeats, first_stride in STAGES:
        width = _divisible(published * factor)
        for i in range(repeats):
            features.append(_InvertedResidual(make, channels, width, first_stride if i == 0 else 1, expansion))
            channels = width
    features.append(_unit(make, channels, last, 1))
    return Sequential(
        {
            "features": Sequential(*features),
            "avgpool": AdaptiveAvgPool2d(1),
            "flatten": Flatten(),
            "classifier": Sequential(make.dropout(0.2), make.linear(last, make.num_classes)),
        }
    )
