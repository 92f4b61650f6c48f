"""`occlusion`: which part of an image an answer depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv._problem import at_least, pair
from fastconv.functional import per_channel
from fastconv.layers import Softmax
from fastconv.layers._base import count
from fastconv.see._probe import Order, Watch, evaluated, images_of, index_of, layer_of, network, run


@dataclass(frozen=True)
class Occlusion:
    """What a grey square does to a network's answer, for every place of the square.

    Attributes
    ----------
    rows, columns : tuple of int
        Top and left of the square.
    chance : (R, C) array
        The chance of the class with the square there (panel d of the paper's figure).
    answer : (R, C) array of int
        The class that the network names then (panel e).
    activity : (R, C) array or None
        Sum of the strongest map of `layer` (panel b).
    whole : float
        The chance of the class without a square.
    filter : int or None
        That map.
    target : int
        The class.
    size : (int, int)
        Height and width of the square.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    chance: np.ndarray
    answer: np.ndarray
    activity: np.ndarray | None
    whole: float
    filter: int | None
    target: int
    size: tuple[int, int]


def occlusion(
    net: Any,
    image: Any,
    target: int | None = None,
    *,
    size: Any = None,
    stride: Any = None,
    fill: Any = None,
    layer: Any = None,
    batch: int = 16,
) -> Occlusion:
    """Cover parts of an image with a grey square and watch the answer: Fig. 6 and 7 of Zeiler and Fergus.

    Parameters
    ----------
    net : Layer
        A classifier: its output is (N, K), of scores or (behind a `Softmax`) of chances.
    image : (C, H, W) array
    target : int, optional
        The class; by default the one that the network names for the whole image.
    size, stride : int or pair of int, optional
        Of the square, and its steps: by default a quarter and a sixteenth of the image's shorter side.
    fill : float or C floats, optional
        What the square is filled with; by default each channel's mean over the image.
    layer : str or Layer, optional
        Also watch this layer: the map that is strongest for the whole image.
    batch : int
        How many squares are tried at once.

    Returns
    -------
    Occlusion

    Raises
    ------
    TypeError, ValueError
        If the network is no classifier, or something does not fit.

    Notes
    -----
    Chances are softmax(scores). If the network really finds the object, the chance drops where the square covers it.

    Examples
    --------
    A "network" that sums up, and a bright spot:

    >>> import numpy as np, fastconv
    >>> from fastconv.see import occlusion
    >>> net = fastconv.Sequential(
    ...     fastconv.Flatten(), fastconv.Linear(16, 2, bias=False, init=np.array([[1.0] * 16, [0.0] * 16]), dtype="float64"))
    >>> image = np.zeros((1, 4, 4))
    >>> image[0, 0, 3] = 4
    >>> found = occlusion(net, image, size=2, stride=2, fill=0)
    >>> found.chance.round(2)
    array([[0.98, 0.5 ],
           [0.98, 0.98]])
    """
    function = "occlusion"
    network(function, net)
    x, _ = images_of(function, "image", image)
    if len(x) != 1:
        raise ValueError(f"{function}: image has shape {x.shape}: it must be one image, (C, H, W)")
    C, H, W = x.shape[1:]
    size = max(min(H, W) // 4, 1) if size is None else size
    stride = max(min(H, W) // 16, 1) if stride is None else stride
    height, width = at_least(function, "size", pair(function, "size", size), 1, "extents")
    step = at_least(function, "stride", pair(function, "stride", stride), 1, "strides")
    batch = count(function, "batch", batch)
    if height > H or width > W:
        raise ValueError(f"{function}: size ({height}, {width}): the image is {H} x {W}")
    grey = x[0].mean(axis=(1, 2)) if fill is None else per_channel(function, "fill", fill, C).astype(x.dtype)
    watched = None if layer is None else layer_of(function, net, layer)[1]
    rows, columns = range(0, H - height + 1, step[0]), range(0, W - width + 1, step[1])
    with evaluated(net):
        order = Order(net)
        scores = run(net, x, order)
        if not isinstance(scores, np.ndarray) or scores.ndim != 2 or scores.shape[1] < 2:
            shape = getattr(scores, "shape", type(scores).__name__)
            raise ValueError(f"{function}: the network's output has shape {shape}: it must be (N, K), K at least 2")
        soft = isinstance(order.leaves[-1][0], Softmax)
        known = int(scores[0].argmax()) if target is None else index_of(function, "target", target, scores.shape[1], "the output")  # fmt: skip  # noqa: E501
        f = None
        if watched is not None:
            _, maps = _watch(net, x, watched)
            f = int(maps[0].reshape(maps.shape[1], -1).sum(axis=1).argmax())
        places = [(row, column) for row in rows for column in columns]
        chances, answers, activity = [], [], []
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            covered = np.repeat(x, len(some), axis=0)
            for n, (row, column) in enumerate(some):
                covered[n, :, row : row + height, column : column + width] = grey[:, None, None]
            if watched is None:
                found = net(covered)
            else:
                found, maps = _watch(net, covered, watched)
                activity += maps[:, f].reshape(len(some), -1).sum(axis=1).tolist()
            chances += _chances(found, soft)[:, known].tolist()
            answers += found.argmax(axis=1).tolist()
    grid = len(rows), len(columns)
    return Occlusion(
        tuple(rows), tuple(columns), np.array(chances).reshape(grid), np.array(answers).reshape(grid),
        np.array(activity).reshape(grid) if watched is not None else None, float(_chances(scores, soft)[0, known]), f,
        known, (height, width),
    )  # fmt: skip


def _watch(net: Any, x: np.ndarray, layer: Any) -> tuple[np.ndarray, np.ndarray]:
    frame = Watch(net, (layer,), keep=True)
    output = run(net, x, frame)
    return output, frame.outputs[id(layer)]


def _chances(scores: np.ndarray, soft: bool) -> np.ndarray:
    if soft:
        return scores
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
