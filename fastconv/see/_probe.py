"""Looking inside a network: a layer by its name, its output during a forward, and a backward that starts at it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastconv._arrays import as_floats, ready
from fastconv._problem import integer, shown
from fastconv.layers import Conv2d, Layer, Sequential
from fastconv.layers._tape import IDLE, BackwardPass, Frame, tape


class Reached(Exception):
    """Every layer that is watched has answered: the rest of the network need not run."""


class Watch(Frame):
    """A frame that notes the outputs of some layers.

    Parameters
    ----------
    targets : layers to watch
    keep : bool
        Keep what backward needs; else stop as soon as every target has answered.
    """

    def __init__(self, root: Layer, targets: Iterable[Layer], keep: bool) -> None:
        super().__init__(root, 1)
        self.outputs: dict[int, np.ndarray] = {}
        self._awaited = {id(target) for target in targets}
        self._watched = frozenset(self._awaited)
        self._keep = keep

    def push(self, layer: Any, saved: Any, output: Any) -> None:
        if self._keep:
            super().push(layer, saved, output)
        if id(layer) in self._watched:
            self.outputs[id(layer)] = output[0] if isinstance(output, tuple) else output
            self._awaited.discard(id(layer))
            if not self._awaited and not self._keep:
                raise Reached


class Order(Frame):
    """A frame that notes every leaf layer and its output, in the order in which they run."""

    def __init__(self, root: Layer) -> None:
        super().__init__(root, 1)
        self.leaves: list[tuple[Layer, np.ndarray]] = []

    def push(self, layer: Any, saved: Any, output: Any) -> None:
        if not any(layer.children()):
            self.leaves.append((layer, output[0] if isinstance(output, tuple) else output))


class Injected(BackwardPass):
    """A backward pass that starts inside: at `target` the gradient is replaced by `seed`, once."""

    merges = False

    def __init__(self, frame: Frame, rule: str, target: Layer, seed: np.ndarray) -> None:
        super().__init__(frame, rule, False, True)
        self.needs_parameters = False
        self._target, self._seed = target, seed
        self._done = False

    def __call__(
        self, layer: Any, grad_output: Any, needs_input: bool = True, owned: bool = False, through: Any = None
    ) -> Any:
        if layer is self._target and not self._done:
            grad_output, self._done = self._seed, True
        return super().__call__(layer, grad_output, needs_input)


def run(net: Layer, x: np.ndarray, frame: Frame) -> Any:
    """Call ``net`` with ``frame`` in place of the tape's own; None where the frame has stopped it."""
    outer = tape.running
    tape.running = frame
    try:
        return net._call(frame, (x,), {})
    except Reached:
        return None
    finally:
        tape.running = IDLE if outer is IDLE else outer


def output_of(net: Layer, x: np.ndarray, *targets: Layer) -> list[np.ndarray]:
    """Outputs of layers inside a network (of a layer that is used twice, the first)."""
    frame = Watch(net, targets, keep=False)
    run(net, x, frame)
    return [frame.outputs[id(target)] for target in targets]


def prefix(net: Layer, target: Layer) -> Layer:
    """The shortest network that ends with ``target``: what follows it in any Sequential is left out."""
    if net is target or type(net)._forward is not Sequential._forward:
        return net
    items = list(net.named_children())
    for i, (name, child) in enumerate(items):
        if any(layer is target for _, layer in child._walk("")):
            return Sequential({**dict(items[:i]), name: prefix(child, target)})
    return net


@contextmanager
def evaluated(net: Layer) -> Iterator[None]:
    """The network in eval mode while the block runs; a network that is in it already is not written to."""
    changed = [layer for _, layer in net.named_layers() if layer.training]
    try:
        for layer in changed:
            layer.training = False
        yield
    finally:
        for layer in changed:
            layer.training = True


def network(function: str, net: Any) -> Layer:
    if not isinstance(net, Layer):
        raise TypeError(f"{function}: net is a {type(net).__name__}: it must be a Layer")
    return net


def convolutions(function: str, net: Layer) -> list[tuple[str, Conv2d]]:
    """(name, layer) of the 2-D convolutions, in the order of ``named_layers``; ValueError if there is none."""
    found = [(name, layer) for name, layer in net.named_layers() if type(layer) is Conv2d]
    if not found:
        raise ValueError(f"{function}: net has no Conv2d layer: there is no filter to look at")
    return found


def layer_of(function: str, net: Layer, layer: Any) -> tuple[str, Layer]:
    """(name, layer) for a name of ``named_layers()``, or for the layer itself."""
    layers = dict(net.named_layers())
    if isinstance(layer, str):
        if layer not in layers:
            names = [name for name in layers if name]
            shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
            raise ValueError(f"{function}: layer {layer!r}: the network has no layer of that name; it has {shown}")
        return layer, layers[layer]
    if not isinstance(layer, Layer):
        raise TypeError(f"{function}: layer is a {type(layer).__name__}: it must be a name or a Layer of the network")
    for name, found in layers.items():
        if found is layer:
            return name, layer
    raise ValueError(f"{function}: layer {layer!r}: it is not in the network")


def index_of(function: str, name: str, value: Any, size: int, what: str) -> int:
    """A checked index 0 .. size - 1."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(value, "__index__"):
        raise TypeError(f"{function}: {name} is {value!r}: it must be an integer")
    index = value.__index__()
    if not 0 <= index < size:
        raise ValueError(f"{function}: {name} {index}: {what} has {size}, so it must lie in 0 .. {size - 1}")
    return index


def several(function: str, name: str, value: Any, what: str) -> Any:
    """``value`` if it can be gone through; TypeError for text and for what is one thing alone."""
    if isinstance(value, (str, bytes)) or not np.iterable(value):
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be {what}")
    return value


def labels_of(function: str, name: str, value: Any) -> list[int]:
    """The classes of some images."""
    return [integer(function, name, label) for label in several(function, name, value, "a sequence of integers")]


def images_of(function: str, name: str, value: Any) -> tuple[np.ndarray, bool]:
    """A batch (N, C, H, W), and whether it was given as one image (C, H, W)."""
    x = as_floats(function, name, value)
    if x.ndim not in (3, 4):
        raise ValueError(f"{function}: {name} has shape {x.shape}: it must be (N, C, H, W) or (C, H, W)")
    x = ready(x, x.shape)
    return (x[None], True) if x.ndim == 3 else (x, False)
