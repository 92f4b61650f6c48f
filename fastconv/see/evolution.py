"""`evolution`: how what excites a filter changes during training."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fastconv._state import load
from fastconv.see._probe import layer_of, network, several
from fastconv.see.patches import Patch, top_patches


@dataclass(frozen=True)
class Evolution:
    """Filters over checkpoints.

    Attributes
    ----------
    labels : tuple of str
        Of the checkpoints, in their order.
    filters : dict of int to tuple of Patch
        For every filter what excited it most at each checkpoint, with its projection.
    """

    labels: tuple[str, ...]
    filters: dict[int, tuple[Patch, ...]]


def evolution(
    checkpoints: Any,
    net: Any,
    images: Iterable[Any],
    layer: Any,
    filters: Iterable[int] | None = None,
    *,
    mode: str = "deconvnet",
    progress: bool = True,
) -> Evolution:
    """A filter during training: at each checkpoint its strongest activation over all images, projected to the pixels.

    Parameters
    ----------
    checkpoints : sequence of states or paths, or mapping of labels to them
        Each a ``state_dict()`` or a file that `fastconv.load` reads.
    net : Layer
        The network that they belong to; it is copied, not changed.
    images : iterable of (C, H, W) arrays
        Kept in memory: each checkpoint sees all of them.
    layer, filters, mode, progress
        As in `top_patches`.

    Returns
    -------
    Evolution

    Raises
    ------
    TypeError, ValueError
        If there is no checkpoint, or one does not fit the network.

    Notes
    -----
    Fig. 4 of Zeiler and Fergus, arXiv 1311.2901: lower layers settle within a few epochs, upper ones much later; a jump
    means that another image has become the strongest.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import evolution
    >>> nets = [fastconv.Sequential(fastconv.Conv2d(1, 4, 3, rng=seed), fastconv.ReLU()) for seed in (0, 1)]
    >>> images = np.random.default_rng(0).random((6, 1, 9, 9), np.float32)
    >>> states = {"epoch 0": nets[0].state_dict(), "epoch 1": nets[1].state_dict()}
    >>> found = evolution(states, nets[0], images, "0", [2], progress=False)
    >>> found.labels, len(found.filters[2])
    (('epoch 0', 'epoch 1'), 2)
    """
    function = "evolution"
    network(function, net)
    name, _ = layer_of(function, net, layer)
    several(function, "checkpoints", checkpoints, "a sequence of states or paths, or a mapping of labels to them")
    pairs = list(checkpoints.items()) if isinstance(checkpoints, Mapping) else [(None, one) for one in checkpoints]
    if not pairs:
        raise ValueError(f"{function}: checkpoints is empty: at least one is needed")
    pictures = list(several(function, "images", images, "an iterable of (C, H, W) arrays"))
    wanted = None if filters is None else list(several(function, "filters", filters, "a sequence of integers"))
    moving = copy.deepcopy(net)
    labels, found = [], []
    for i, (label, checkpoint) in enumerate(pairs):
        is_path = isinstance(checkpoint, (str, os.PathLike))
        try:
            moving.load_state_dict(load(checkpoint) if is_path else checkpoint)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{function}: checkpoint {i if label is None else label!r}: {error}") from None
        usual = os.path.splitext(os.path.basename(os.fspath(checkpoint)))[0] if is_path else str(i)
        labels.append(usual if label is None else str(label))
        found.append(top_patches(moving, pictures, name, wanted, 1, mode=mode, progress=progress))
    return Evolution(tuple(labels), {f: tuple(one[f][0] for one in found) for f in found[0]})
