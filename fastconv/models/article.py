"""`article_net`."""

from __future__ import annotations

from typing import Any

from fastconv._problem import pair
from fastconv.layers import Flatten, MaxPool2d, ReLU, Sequential
from fastconv.models._common import Maker


def article_net(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: Any = 28,
    *,
    filters: int = 32,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """The network of the article: conv 3x3 - ReLU - pool - conv 3x3 - ReLU - pool - dense.

    Parameters
    ----------
    num_classes : int
    in_channels : int
        1 for grey images, 3 for colour.
    image_size : int or pair of int
        Height and width of the images, at least 10; the dense layer depends on them.
    filters : int
        Of the first convolution; the second has twice as many.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights are drawn from; an int is a seed.

    Returns
    -------
    Sequential
        With the published sizes 34,826 parameters and 2,440,960 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1, or images too small for the two units.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.models.article_net(rng=0)
    >>> net(np.zeros((2, 1, 28, 28), np.float32)).shape
    (2, 10)
    """
    make = Maker("article_net", num_classes, in_channels, filters, 32, dtype, rng)
    size = pair("article_net", "image_size", image_size)
    if min(size) < 10:
        raise ValueError(f"article_net: image_size {size}: two units 3x3 and 2x2 need at least 10")
    height, width = (((extent - 2) // 2 - 2) // 2 for extent in size)
    first, second = make.filters, 2 * make.filters
    return Sequential(
        make.conv(make.in_channels, first, 3), ReLU(), MaxPool2d(2),
        make.conv(first, second, 3), ReLU(), MaxPool2d(2),
        Flatten(), make.linear(second * height * width, make.num_classes),
    )  # fmt: skip
