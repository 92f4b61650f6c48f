"""`vgg16`."""

from __future__ import annotations

from typing import Any

from fastconv.layers import AdaptiveAvgPool2d, Flatten, Layer, MaxPool2d, ReLU, Sequential
from fastconv.models._common import Maker

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and number of convolutions between pools


def vgg16(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    filters: int = 64,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """VGG-16 (configuration D): thirteen 3x3 convolutions, five pools, three dense layers.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    filters : int
        Of the first convolution; all other widths follow in proportion.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights, and later the masks of dropout, are drawn from.

    Returns
    -------
    Sequential
        ``features``, ``avgpool``, ``flatten``, ``classifier``. For 224 x 224 images 138,357,544 parameters and
        15,470,264,320 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1; when called, for images below 32 x 32.

    Notes
    -----
    Simonyan and Zisserman, "Very deep convolutional networks ...", arXiv 1409.1556.

    Examples
    --------
    >>> import fastconv
    >>> net = fastconv.models.vgg16(filters=4, rng=0)
    >>> fastconv.summary(net, (3, 224, 224)).output_shape
    (1, 1000)
    """
    make = Maker("vgg16", num_classes, in_channels, filters, 64, dtype, rng)
    features: list[Layer] = []
    channels = make.in_channels
    for published, convolutions in BLOCKS:
        for _ in range(convolutions):
            features += [make.conv(channels, make.width(published), 3, padding=1), ReLU()]
            channels = make.width(published)
        features.append(MaxPool2d(2))
    hidden = make.width(4096)
    return Sequential(
        {
            "features": Sequential(*features),
            "avgpool": AdaptiveAvgPool2d(7),
            "flatten": Flatten(),
            "classifier": Sequential(
                make.linear(channels * 49, hidden), ReLU(), make.dropout(),
                make.linear(hidden, hidden), ReLU(), make.dropout(),
                make.linear(hidden, make.num_classes),
            ),
        }
    )  # fmt: skip
