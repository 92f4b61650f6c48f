"""`explain`: what one filter makes of every channel, before the sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv import functional
from fastconv.layers import Conv2d
from fastconv.see._probe import images_of, index_of


@dataclass(frozen=True)
class Explanation:
    """One filter at work on one image.

    Attributes
    ----------
    channels : tuple of int
        The input channels that the filter reads: all of them, or those of its group.
    kernels : (C, KH, KW) array
        The filter's kernel for each.
    maps : (C, OH, OW) array
        What each kernel makes of its channel.
    bias : float
        0 where the layer has none.
    sum : (OH, OW) array
        All maps and the bias added up: the layer's output for this filter, but for rounding.
    """

    channels: tuple[int, ...]
    kernels: np.ndarray
    maps: np.ndarray
    bias: float
    sum: np.ndarray


def explain(conv: Any, x: Any, filter: int) -> Explanation:
    r"""Take a filter's output apart: one map per input channel, the bias, and their sum.

    Parameters
    ----------
    conv : Conv2d
    x : (C, H, W) or (1, C, H, W) array
        One image, or one set of maps, as the layer gets it.
    filter : int

    Returns
    -------
    Explanation

    Raises
    ------
    TypeError
        If `conv` is no Conv2d, or `x` has not its dtype.
    ValueError
        For an input of other channels or of more than one image, or a filter that the layer has not.

    Notes
    -----
    A convolution is a sum over channels, so it can be read in parts:

    .. math::
        m_c[i, j] = \sum_{k, l} x[c, i s_h - p + k d_h, j s_w - p + l d_w]\, w[f, c, k, l], \qquad
        y[f] = b[f] + \sum_c m_c

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import explain
    >>> conv = fastconv.Conv2d(3, 32, 3, padding=1, rng=0)
    >>> x = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    >>> found = explain(conv, x, 5)
    >>> found.maps.shape, found.sum.shape
    ((3, 8, 8), (8, 8))
    >>> bool(np.allclose(found.sum, conv(x)[5], atol=1e-6))
    True
    """
    function = "explain"
    if type(conv) is not Conv2d:
        raise TypeError(f"{function}: conv is a {type(conv).__name__}: it must be a Conv2d")
    f = index_of(function, "filter", filter, conv.out_channels, "the layer")
    batch, _ = images_of(function, "x", x)
    if batch.shape[0] != 1:
        raise ValueError(f"{function}: x has shape {batch.shape}: it must be one image")
    if batch.dtype != conv.weight.dtype:
        raise TypeError(f"{function}: x is {batch.dtype} and the layer {conv.weight.dtype}: they must have one dtype")
    if batch.shape[1] != conv.in_channels:
        raise ValueError(f"{function}: x has {batch.shape[1]} channels: the layer takes {conv.in_channels}")
    width = conv.in_channels // conv.groups
    first = f // (conv.out_channels // conv.groups) * width
    kernels = conv.weight[f]
    # One group a channel: the maps that the convolution would add up
    maps = functional.conv2d(
        batch[:, first : first + width], kernels[:, None], None, conv.stride, conv.padding, conv.dilation, width,
        padding_mode=conv.padding_mode,
    )[0]  # fmt: skip
    bias = conv.weight.dtype.type(0 if conv.bias is None else conv.bias[f])
    channels = tuple(range(first, first + width))
    return Explanation(channels, kernels.copy(), maps, float(bias), maps.sum(axis=0) + bias)
