"""Layers made of layers: Sequential, Add, Residual, Concat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from fastconv._problem import integer
from fastconv.layers._base import Layer, axis_of, floats
from fastconv.layers._folding import ACTIVATIONS, fold, pools, rectified_by, rectifies
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass
from fastconv.layers.activation import ReLU
from fastconv.layers.convolution import Conv2d
from fastconv.layers.linear import Linear
from fastconv.layers.normalisation import BatchNorm2d
from fastconv.layers.pooling import AvgPool2d, MaxPool2d

NEW_GRADIENTS = (Conv2d, BatchNorm2d, MaxPool2d, AvgPool2d, Linear)  # whose _backward gives an array of its own


class _Container(Layer):
    """Layers under names: "0", "1" ..., or the keys of a mapping. Each can be reached as an attribute, too."""

    def __init__(self, *layers: Any) -> None:
        function = type(self).__name__
        self._layers: dict[str, Layer] = {}
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named: Iterable[tuple[Any, Any]] = layers[0].items()
        else:
            named = ((str(i), layer) for i, layer in enumerate(layers))
        for name, layer in named:
            if not isinstance(name, str) or not name or "." in name:
                raise ValueError(f"{function}: name {name!r}: it must be a string without dots")
            self._layers[name] = self._checked(name, layer)

    def _checked(self, name: str, layer: Any) -> Layer:
        if not isinstance(layer, Layer):
            hint = "; pass a list's layers one by one: *layers" if isinstance(layer, (list, tuple)) else ""
            kind = f"the class {layer.__name__}" if isinstance(layer, type) else f"a {type(layer).__name__}"
            raise TypeError(f"{type(self).__name__}: layer {name!r} is {kind}: it must be a Layer{hint}")
        return layer

    def __getattr__(self, name: str) -> Any:
        layers = self.__dict__.get("_layers", {})
        if name in layers:
            return layers[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def named_children(self) -> Iterator[tuple[str, Layer]]:
        yield from self._layers.items()

    def _apply(self, name: str, input: Any) -> Any:
        """Call one of the layers; an error says which."""
        try:
            return self._layers[name](input)
        except (TypeError, ValueError) as error:
            self._note(error, name)
            raise

    def _note(self, error: Exception, name: str) -> None:
        error.add_note(f"which is layer {name!r} of {type(self).__name__}")


class Sequential(_Container):
    """Layers one behind the other.

    Parameters
    ----------
    *layers : Layer, or one mapping of names to layers
        Without names they are called "0", "1" ...

    Raises
    ------
    TypeError, ValueError
        If something is not a layer, or for names that are empty or hold dots.

    Notes
    -----
    ``net[i]`` is a layer, ``net[i:j]`` a `Sequential` of the same layers under the same names, ``len(net)`` their
    number, and iterating gives them in order. A named layer is an attribute as well: ``net.conv1``. A layer may stand
    in it more than once.

    Examples
    --------
    The network of the article, forward and back:

    >>> import numpy as np, fastconv
    >>> net = fastconv.Sequential(
    ...     fastconv.Conv2d(1, 32, 3), fastconv.ReLU(), fastconv.MaxPool2d(2),
    ...     fastconv.Conv2d(32, 64, 3), fastconv.ReLU(), fastconv.MaxPool2d(2),
    ...     fastconv.Flatten(), fastconv.Linear(1600, 10),
    ... )
    >>> y = net(np.ones((2, 1, 28, 28), np.float32))
    >>> y.shape
    (2, 10)
    >>> net.backward(np.ones_like(y)).shape, net[0].grad_weight.shape
    ((2, 1, 28, 28), (32, 1, 3, 3))
    >>> net[:3]
    Sequential(
      (0): Conv2d(1, 32, kernel_size=(3, 3), stride=(1, 1))
      (1): ReLU()
      (2): MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)
    )
    """

    def __len__(self) -> int:
        return len(self._layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers.values())

    def __getitem__(self, index: Any) -> Any:
        items = list(self._layers.items())
        if isinstance(index, slice):
            part = Sequential(dict(items[index]))
            part.training = self.training
            return part
        at = integer(type(self).__name__, "index", index)
        if not -len(items) <= at < len(items):
            raise IndexError(f"{type(self).__name__}: index {at}: there are {len(items)} layers")
        return items[at][1]

    def append(self, layer: Layer) -> Sequential:
        """Add a layer at the end, named by its position; returns the network itself."""
        name = str(len(self._layers))
        if name in self._layers:
            raise ValueError(f"{type(self).__name__}.append: name {name!r}: it is taken already")
        self._layers[name] = self._checked(name, layer)
        return self

    def _forward(self, input: Any) -> tuple[Any, Any]:
        output = input
        if not self._layers:
            output = floats(type(self).__name__, "input", input)
        layers: list[Any] = [*self._layers.values(), None, None, None]
        at, count = 0, len(layers) - 3
        try:
            while at < count:
                # Layers normalise, rectify and pool what they store: a pass over the maps, and an array, less for each
                layer, after, last, end = layers[at : at + 4]
                folded = fold(layer, after, output)
                relu, pool = (after, last) if folded is None else (last, end)
                if pools(layer, relu, pool, output):
                    output = layer(output, fold=folded, pool=pool)
                    at += 3 if folded is None else 4
                elif folded is not None:
                    activation = ACTIVATIONS.get(type(last))
                    output = folded.run(layer, output, activation)
                    at += 2 if activation is None else 3
                elif rectifies(layer, after):
                    output = rectified_by(after, layer(output, activation=ACTIVATIONS[type(after)]))
                    at += 2
                else:
                    output = layer(output)
                    at += 1
        except (TypeError, ValueError) as error:
            self._note(error, [*self._layers][at])
            raise
        return output, None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        layers = list(self._layers.values())
        needs_input, owned, grad = run.needs_input, run.owned, grad_output
        through = None
        for before, layer in reversed(list(pairwise(layers))):
            if layer is through:
                through = None
                continue
            # A window's winner was positive where the maximum is: the ReLU masks the fewer cells behind the pool
            merged = type(layer) is MaxPool2d and type(before) is ReLU and run.rule == "gradient" and run.merges
            through = before if merged else None
            grad = run(layer, grad, owned=owned, through=through)
            owned = type(layer) in NEW_GRADIENTS
        return grad if not layers or layers[0] is through else run(layers[0], grad, needs_input, owned)

    def _trace(self, *signals: Any, **options: Any) -> tuple[Any, int]:
        return self._forward(*signals)[0] if self._layers else signals[0], 0


class Add(_Container):
    """Several layers on the same input; their outputs, of one shape, are added.

    Parameters
    ----------
    *layers : Layer, or one mapping of names to layers

    Raises
    ------
    TypeError, ValueError
        If something is not a layer, or there is none; when called, if the outputs differ in shape.

    Notes
    -----
    y = layer_0(x) + layer_1(x) + ...; the gradient of x is the sum of the branches' gradients.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Add(fastconv.Identity(), fastconv.ReLU())(np.array([-1.0, 2.0]))
    array([-1.,  4.])
    """

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        if not self._layers:
            raise ValueError(f"{type(self).__name__}: it needs at least one layer")

    def _branches(self, input: Any) -> list[Any]:
        return [self._apply(name, input) for name in self._layers]

    def _forward(self, input: Any) -> tuple[Any, Any]:
        return _total(type(self).__name__, self._branches(input)), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        needs_input = run.needs_input
        grads = [run(layer, grad_output, needs_input) for layer in reversed(self._layers.values())]
        return _total(type(self).__name__, grads) if needs_input else None


def _total(function: str, arrays: list[Any]) -> Any:
    """Sum of arrays (or signals) of one shape."""
    total = arrays[0]
    for array in arrays[1:]:
        if array.shape != total.shape:
            raise ValueError(f"{function}: branches give {total.shape} and {array.shape}: the shapes must be equal")
        total = total + array
    return total


class Residual(Layer):
    """A body with a shortcut around it: y = body(x) + x, or body(x) + shortcut(x).

    Parameters
    ----------
    body : Layer
    shortcut : Layer, optional
        Where the body changes the shape: a 1x1 convolution, say.

    Raises
    ------
    TypeError
        If one of them is not a layer.
    ValueError
        When called, if the two shapes differ.

    Notes
    -----
    He et al., "Deep residual learning", arXiv 1512.03385. Names of parameters: "body.0.weight", "shortcut.weight".

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Residual(fastconv.ReLU())(np.array([-1.0, 2.0]))
    array([-1.,  4.])
    """

    def __init__(self, body: Layer, shortcut: Layer | None = None) -> None:
        for name, layer in (("body", body), ("shortcut", shortcut)):
            if not isinstance(layer, Layer) and not (name == "shortcut" and layer is None):
                raise TypeError(f"{type(self).__name__}: {name} is a {type(layer).__name__}: it must be a Layer")
        self.body = body
        self.shortcut = shortcut

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = input if isinstance(input, Signal) else floats(type(self).__name__, "input", input)
        around = x if self.shortcut is None else self.shortcut(x)
        return _total(type(self).__name__, [self.body(x), around]), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        needs_input = run.needs_input
        through = run(self.body, grad_output, needs_input)
        around = grad_output if self.shortcut is None else run(self.shortcut, grad_output, needs_input)
        return through + around if needs_input else None


class Concat(Add):
    """Several layers on the same input; their outputs are joined along one axis.

    Parameters
    ----------
    *layers : Layer, or one mapping of names to layers
    dim : int
        The axis; by default axis 1, the channels.

    Raises
    ------
    TypeError, ValueError
        If something is not a layer, or there is none; when called, if the outputs differ along another axis.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fire = fastconv.Concat(fastconv.Conv2d(8, 4, 1), fastconv.Conv2d(8, 4, 3, padding=1))
    >>> fire(np.ones((1, 8, 5, 5), np.float32)).shape
    (1, 8, 5, 5)
    """

    def __init__(self, *layers: Any, dim: int = 1) -> None:
        super().__init__(*layers)
        self.dim = integer(type(self).__name__, "dim", dim)

    def _sizes(self, outputs: list[Any]) -> tuple[int, list[int]]:
        """The axis, and the extent of every branch along it."""
        function, first = type(self).__name__, outputs[0].shape
        axis = axis_of(function, "dim", self.dim, len(first))
        for output in outputs:
            shape = output.shape
            if len(shape) != len(first) or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
                raise ValueError(f"{function}: branches give {first} and {shape}: only axis {axis} may differ")
        return axis, [output.shape[axis] for output in outputs]

    def _forward(self, input: Any) -> tuple[Any, Any]:
        outputs = self._branches(input)
        axis, sizes = self._sizes(outputs)
        return np.concatenate(outputs, axis=axis), (axis, sizes)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        axis, sizes = saved
        needs_input = run.needs_input
        parts = np.split(grad_output, np.cumsum(sizes)[:-1], axis=axis)
        pairs = zip(reversed(self._layers.values()), reversed(parts), strict=True)
        grads = [run(layer, part, needs_input) for layer, part in pairs]
        return _total(type(self).__name__, grads) if needs_input else None

    def _trace(self, *signals: Any, **options: Any) -> tuple[Any, int]:
        outputs = self._branches(signals[0])
        axis, sizes = self._sizes(outputs)
        joined = outputs[0]
        for output in outputs[1:]:
            joined = joined + output
        return joined.like((*joined.shape[:axis], sum(sizes), *joined.shape[axis + 1 :])), 0
