"""`deconvnet`: one activation of a feature map, projected back to the pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv._problem import choice
from fastconv.layers import Layer
from fastconv.see._probe import Injected, Watch, evaluated, images_of, index_of, layer_of, network, prefix, run

RULES = {"deconvnet": "deconvnet", "guided": "guided", "saliency": "gradient"}


def deconvnet(
    net: Any, x: Any, layer: Any, filter: int, position: tuple[int, int] | None = None, *, mode: str = "deconvnet"
) -> np.ndarray:
    r"""Project one activation of a filter back to the pixels: which pattern there has caused it.

    Parameters
    ----------
    net : Layer
        Any network that has a backward: Sequential, residual, with branches, or of your own layers.
    x : (N, C, H, W) or (C, H, W) array
        What the network is called with.
    layer : str or Layer
        Its name in ``net.named_layers()``, or the layer itself. Of a layer that is used more than once, the last use.
    filter : int
        Map of that layer's output (or unit, of a dense layer).
    position : (int, int), optional
        Row and column of the activation; by default the strongest one of the map, in each image its own.
    mode : {"deconvnet", "guided", "saliency"}

    Returns
    -------
    array of the shape of `x`
        Behind a rectifier zero everywhere for a filter that is dead on the image. A convolution's output is taken as it
        is, before the rectifier: a negative activation is projected with its sign.

    Raises
    ------
    TypeError, ValueError
        For a network, input, layer, filter, position or mode that is not one of the above; the message says which.

    Notes
    -----
    All other activations of the layer are set to zero, and what is left goes down (Zeiler and Fergus,
    arXiv 1311.2901, section 2.1): max-pooling is undone with the recorded switches, each rectifier rectifies what comes
    down, each convolution is replaced by its transposed filters. In a linear network that is the transposed operator.
    With R the signal that comes down to a rectifier with input z, the modes differ in what passes it:

    .. math::
        \text{deconvnet: } \max(R, 0), \qquad \text{saliency: } R\,[z > 0], \qquad \text{guided: } \max(R, 0)\,[z > 0]

    "saliency" is the gradient of the activation (Simonyan et al., arXiv 1312.6034): it starts with 1. "guided"
    (Springenberg et al., arXiv 1412.6806) and "deconvnet" start with the activation itself. Layers other than ReLU and
    ReLU6 pass their gradient in every mode. The network runs as in eval mode; its mode and gradients are left as they
    are. Where pooling windows overlap, values that come back to one cell are added.

    The deeper a network of 3 x 3 filters, the more a deconvnet's picture shows the grid of the pools' switches, whatever
    the filter (Mahendran and Vedaldi, "Salient deconvolutional networks", ECCV 2016). There "guided", which also asks
    the input, shows more.

    Examples
    --------
    An edge filter, and where in the image its strongest answer comes from:

    >>> import numpy as np, fastconv
    >>> from fastconv.see import deconvnet
    >>> edge = np.array([[[[-1.0, 1.0]]]])
    >>> net = fastconv.Sequential(
    ...     fastconv.Conv2d(1, 1, (1, 2), bias=False, init=edge, dtype="float64"), fastconv.ReLU(),
    ...     fastconv.MaxPool2d((1, 2)))
    >>> deconvnet(net, np.array([[[0.0, 1.0, 4.0]]]), "2", 0)
    array([[[ 0., -3.,  3.]]])
    """
    function = "deconvnet"
    choice(function, "mode", mode, tuple(RULES))
    network(function, net)
    _, target = layer_of(function, net, layer)
    batch, single = images_of(function, "x", x)
    with evaluated(net):
        pixels = project(function, net, batch, target, [filter] * len(batch), [position] * len(batch), mode)
    return pixels[0] if single else pixels


def project(
    function: str, net: Layer, batch: np.ndarray, target: Layer, filters: list[int], positions: list[Any], mode: str
) -> np.ndarray:
    """`deconvnet` for a checked batch and layer, in eval mode: a filter and a position (or None) for each image."""
    part = prefix(net, target)
    frame = Watch(part, (target,), keep=True)
    output = run(part, batch, frame)
    found = frame.outputs[id(target)]
    if found.ndim < 2 or len(found) != len(batch):
        raise ValueError(f"{function}: the layer's output has shape {found.shape}: it must be (N, filters, ...)")
    seed = np.zeros_like(found)
    for n, (f, position) in enumerate(zip(filters, positions, strict=True)):
        index_of(function, "filter", f, found.shape[1], "the layer")
        values = found[n, f]
        place = strongest(values) if position is None else checked_position(function, position, values.shape)
        seed[(n, f, *place)] = 1 if mode == "saliency" else values[place]
    last = output[0] if isinstance(output, tuple) else output
    return Injected(frame, RULES[mode], target, seed)(part, np.zeros_like(last))


def strongest(values: np.ndarray) -> tuple[int, ...]:
    """Where the largest value of a map stands, the first of equal ones."""
    return tuple(int(place) for place in np.unravel_index(int(values.argmax()), values.shape)) if values.ndim else ()


def checked_position(function: str, position: Any, extents: tuple[int, ...]) -> tuple[int, ...]:
    try:
        numbers = tuple(value.__index__() for value in position)
    except (TypeError, AttributeError):
        raise TypeError(f"{function}: position is {position!r}: it must be (row, column)") from None
    if len(numbers) != len(extents) or any(not 0 <= p < size for p, size in zip(numbers, extents, strict=False)):
        shown = " x ".join(map(str, extents)) or "one number"
        raise ValueError(f"{function}: position {numbers}: it must lie in the layer's map, which is {shown}")
    return numbers
