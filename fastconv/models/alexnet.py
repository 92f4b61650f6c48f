"""`alexnet` and its successor `zfnet`."""

from __future__ import annotations

from typing import Any

from fastconv._problem import flag
from fastconv.layers import AdaptiveAvgPool2d, Flatten, Layer, LocalResponseNorm, MaxPool2d, ReLU, Sequential
from fastconv.models._common import Maker


def _normalisation() -> LocalResponseNorm:
    """The papers' n = 5, k = 2, alpha = 1e-4, beta = 0.75; the layer's alpha is the paper's times n."""
    return LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _assembled(make: Maker, features: list[Layer], channels: int) -> Sequential:
    """Behind the features torchvision's head: 6 x 6 cells for images of any size, three dense layers."""
    return Sequential(
        {
            "features": Sequential(*features),
            "avgpool": AdaptiveAvgPool2d(6),
            "flatten": Flatten(),
            "classifier": make.classifier(channels * 36),
        }
    )


def alexnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    two_groups: bool = False,
    filters: int | None = None,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """AlexNet, in the form of one tower (as torchvision's) or as first published.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    two_groups : bool
        True: the paper's network, with 96 to 384 filters, groups of 2 and local response normalisation.
        False: one tower with 64 to 384 filters and neither.
    filters : int, optional
        Of the first convolution, by default 64 or, with `two_groups`, 96; all other widths follow in proportion.
    dtype : {"float32", "float64"}
    rng : numpy.random.Generator or int, optional
        Where the weights, and later the masks of dropout, are drawn from.

    Returns
    -------
    Sequential
        ``features``, ``avgpool``, ``flatten``, ``classifier``. For 224 x 224 images 61,100,840 parameters and
        714,188,480 multiply-adds; with `two_groups` 60,965,224 and 724,406,816.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1; when called, for images below 63 x 63.

    Notes
    -----
    Krizhevsky, "One weird trick", arXiv 1404.5997; Krizhevsky et al., "ImageNet classification ...", NIPS 2012.

    Examples
    --------
    >>> import fastconv
    >>> net = fastconv.models.alexnet(filters=8, rng=0)
    >>> fastconv.summary(net, (3, 224, 224)).output_shape
    (1, 1000)
    """
    two_groups = flag("alexnet", "two_groups", two_groups)
    base, groups = (96, 2) if two_groups else (64, 1)
    make = Maker("alexnet", num_classes, in_channels, base if filters is None else filters, base, dtype, rng)
    published = (96, 256, 384, 384, 256) if two_groups else (64, 192, 384, 256, 256)
    one, two, three, four, five = (make.width(width, groups) for width in published)

    def normalised() -> list[Layer]:
        return [_normalisation()] if two_groups else []

    features = [
        make.conv(make.in_channels, one, 11, 4, 2), ReLU(), *normalised(), MaxPool2d(3, 2),
        make.conv(one, two, 5, 1, 2, groups=groups), ReLU(), *normalised(), MaxPool2d(3, 2),
        make.conv(two, three, 3, 1, 1), ReLU(),
        make.conv(three, four, 3, 1, 1, groups=groups), ReLU(),
        make.conv(four, five, 3, 1, 1, groups=groups), ReLU(), MaxPool2d(3, 2),
    ]  # fmt: skip
    return _assembled(make, features, five)


def zfnet(
    num_classes: int = 1000,
    in_channels: int = 3,
    *,
    filters: int = 96,
    dtype: Any = "float32",
    rng: Any = None,
) -> Sequential:
    """ZFNet: AlexNet with smaller kernels and steps in its first layers, found by looking at what they had learnt.

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
        ``features``, ``avgpool``, ``flatten``, ``classifier``. For 224 x 224 images 62,357,608 parameters and
        1,168,032,896 multiply-adds.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1; when called, for images that are too small.

    Notes
    -----
    Zeiler and Fergus, "Visualizing and understanding convolutional networks", arXiv 1311.2901, figure 3. Maps are
    110, 55, 26, 13, 6 cells wide. The paper's contrast normalisation across maps is AlexNet's.

    Examples
    --------
    >>> import fastconv
    >>> net = fastconv.models.zfnet(filters=8, rng=0)
    >>> fastconv.summary(net, (3, 224, 224)).output_shape
    (1, 1000)
    """
    make = Maker("zfnet", num_classes, in_channels, filters, 96, dtype, rng)
    one, two, three, four, five = (make.width(width) for width in (96, 256, 384, 384, 256))
    features: list[Layer] = [
        make.conv(make.in_channels, one, 7, 2, 1), ReLU(), MaxPool2d(3, 2, 1), _normalisation(),
        make.conv(one, two, 5, 2), ReLU(), MaxPool2d(3, 2, 1), _normalisation(),
        make.conv(two, three, 3, 1, 1), ReLU(),
        make.conv(three, four, 3, 1, 1), ReLU(),
        make.conv(four, five, 3, 1, 1), ReLU(), MaxPool2d(3, 2),
    ]  # fmt: skip
    return _assembled(make, features, five)
