"""The base of all layers, and the checks that they share.

One protocol: ``y = layer(x)``, then ``grad_x = layer.backward(grad_y)``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastconv._arrays import as_floats, ready
from fastconv._problem import choice, flag, integer, shown
from fastconv.layers._summary import Signal
from fastconv.layers._tape import IDLE, RULES, BackwardPass, tape


class LoadResult(NamedTuple):
    """What `Layer.load_state_dict` found not to match.

    Attributes
    ----------
    missing_keys, unexpected_keys : list of str

    Examples
    --------
    >>> import fastconv
    >>> fastconv.Linear(3, 2).load_state_dict({"scale": 1}, strict=False).missing_keys
    ['weight', 'bias']
    """

    missing_keys: list[str]
    unexpected_keys: list[str]


class Layer:
    """Base of all layers.

    A layer of your own that is made of other layers keeps them as attributes (their names become part of the names of
    parameters) and defines two methods:

    ``_forward(self, input)``
        Returns ``(output, saved)``: the result, and whatever ``_backward`` will need. It sets no attribute.
    ``_backward(self, grad_output, saved, run)``
        Returns the gradient of the input. ``run(child, grad_output)`` goes back through a child; children must be gone
        through in the reverse order of the forward. ``run.store(self, weight=grad)`` keeps the gradient of a parameter
        as ``self.grad_weight``; ``run.rule`` is the rule that the caller chose.

    Attributes
    ----------
    training : bool
        True at first; see `train` and `eval`.

    Notes
    -----
    **What backward needs** is kept on a tape of the calling thread, in train mode or inside `fastconv.record`. Each
    ``backward`` takes the last forward that is left, so a layer may be used twice. It holds the arrays themselves, not
    copies: do not change an input or an output between forward and backward.

    **In eval mode** a forward writes no attribute: any number of threads may share the layer.

    Examples
    --------
    A residual block, written by hand:

    >>> import numpy as np, fastconv
    >>> class Block(fastconv.Layer):
    ...     def __init__(self):
    ...         self.conv = fastconv.Conv2d(2, 2, 3, padding=1, rng=0)
    ...         self.relu = fastconv.ReLU()
    ...     def _forward(self, x):
    ...         return self.relu(self.conv(x) + x), None
    ...     def _backward(self, grad_output, saved, run):
    ...         grad_sum = run(self.relu, grad_output)
    ...         return run(self.conv, grad_sum) + grad_sum
    >>> block = Block()
    >>> y = block(np.ones((1, 2, 4, 4), np.float32))
    >>> block.backward(np.ones_like(y)).shape
    (1, 2, 4, 4)
    >>> [name for name, _ in block.named_parameters()]
    ['conv.weight', 'conv.bias']
    """

    training: bool = True
    _parameter_names: ClassVar[tuple[str, ...]] = ()
    _buffer_names: ClassVar[tuple[str, ...]] = ()

    # What a subclass defines.

    def _forward(self, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        raise NotImplementedError(f"{type(self).__name__} defines no _forward(input) -> (output, saved)")

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no _backward(grad_output, saved, run) -> grad_input")

    def _trace(self, *signals: Any, **options: Any) -> tuple[Any, int]:
        """What comes out for a `Signal`, and the multiply-adds that takes (see `fastconv.summary`)."""
        if any(self.children()):
            return self._forward(*signals, **options)[0], 0
        raise TypeError(f"summary: {type(self).__name__} defines no _trace(signal) -> (signal, multiply_adds)")

    def _mode_changed(self) -> None:
        """Called when weights have been exchanged; a layer that keeps more than its parameters renews that."""

    def _extra(self) -> str:
        """The arguments in the repr."""
        return ""

    # Forward and backward.

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The layer's output for an input; see the class for shapes and formula."""
        if inputs and isinstance(inputs[0], Signal):
            return inputs[0].enter(self, inputs, options)
        if tape.running is not IDLE:  # called by another layer: its frame is ours
            return self._call(tape.running, inputs, options)
        frame = tape.open(self)
        tape.running = frame
        try:
            output = self._call(frame, inputs, options)
        finally:
            tape.running = IDLE
        return output if frame is None else tape.keep(frame, inputs, output)

    def _call(self, frame: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        try:
            output, saved = self._forward(*inputs, **options)
        except (TypeError, ValueError) as error:
            if not any(self.children()):
                error.add_note(f"in {self!r}")
            raise
        if frame is not None:
            frame.push(self, saved, output)
        return output

    def backward(
        self,
        grad_output: Any,
        *,
        accumulate: bool = False,
        rule: str = "gradient",
        needs_input: bool = True,
    ) -> Any:
        """Gradient of the input; gradients of the parameters are left in ``grad_weight``, ``grad_bias``.

        It belongs to the last forward in this thread that no backward has taken yet.

        Parameters
        ----------
        grad_output : array of the output's shape and dtype
            Gradient of some number (a loss) in the layer's output.
        accumulate : bool
            Add to the gradients of the parameters; else they are overwritten. Within one call a layer that is used
            several times gets the sum either way.
        rule : {"gradient", "deconvnet", "guided"}
            How `ReLU` and `ReLU6` go back; every other layer always takes its gradient.
            "gradient" lets pass where the input was positive. "deconvnet" rectifies what comes back: max(grad, 0)
            (Zeiler and Fergus, arXiv 1311.2901). "guided" does both (Springenberg et al., arXiv 1412.6806).
            With the last two, which are for looking at networks, the gradients of the parameters stay as they are.
        needs_input : bool
            False: return None and save the work of the first layer's input gradient, as a training step can.

        Returns
        -------
        array of the input's shape, or None

        Raises
        ------
        RuntimeError
            If no forward is recorded: backward before forward, or in eval mode outside `fastconv.record`.
        TypeError, ValueError
            If `grad_output` has not the shape and dtype of the output, or for an unknown rule.

        Examples
        --------
        >>> import numpy as np, fastconv
        >>> layer = fastconv.ReLU()
        >>> y = layer(np.array([-1.0, 2.0, 3.0]))
        >>> layer.backward(np.array([5.0, 6.0, -7.0]))
        array([ 0.,  6., -7.])
        >>> y = layer(np.array([-1.0, 2.0, 3.0]))
        >>> layer.backward(np.array([5.0, 6.0, -7.0]), rule="guided")
        array([0., 6., 0.])
        """
        function = f"{type(self).__name__}.backward"
        choice(function, "rule", rule, RULES)
        accumulate = flag(function, "accumulate", accumulate)
        needs_input = flag(function, "needs_input", needs_input)
        run = BackwardPass(tape.find(self), rule, accumulate, needs_input)
        return run(self, grad_output, needs_input)

    # Modes.

    def train(self, mode: bool = True) -> Any:
        """Switch this layer and all inside it to train mode (or, with False, to eval mode).

        Train mode keeps what backward needs, lets `Dropout` drop and `BatchNorm2d` use and track
        the batch's statistics.

        Parameters
        ----------
        mode : bool

        Returns
        -------
        Layer
            Itself.

        Raises
        ------
        TypeError
            If `mode` is neither True nor False; nothing is switched then.
        """
        mode = flag(f"{type(self).__name__}.train", "mode", mode)
        layers = [layer for _, layer in self.named_layers()]
        for layer in layers:
            layer.training = mode
        if not mode:
            tape.forget(layers)
        return self

    def eval(self) -> Any:
        """Switch to eval mode: nothing is kept, dropped or tracked, and threads may share the layer.

        What this thread still held for backward (outside `fastconv.record`) is freed.

        Returns
        -------
        Layer
            Itself.
        """
        return self.train(False)

    # What is inside.

    def named_children(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) of the layers directly inside."""
        for name, value in vars(self).items():
            if isinstance(value, Layer):
                yield name, value

    def children(self) -> Iterator[Layer]:
        """The layers directly inside."""
        for _, layer in self.named_children():
            yield layer

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """(name, layer) of this layer (named "") and all inside it, each layer once: torch's ``named_modules``."""
        seen: set[int] = set()
        for name, layer in self._walk(prefix):
            if id(layer) not in seen:
                seen.add(id(layer))
                yield name, layer

    def _walk(self, prefix: str) -> Iterator[tuple[str, Layer]]:
        """As `named_layers`, a layer that is used twice under both names."""
        yield prefix, self
        for name, layer in self.named_children():
            yield from layer._walk(_joined(prefix, name))

    def _trained(self) -> Iterator[tuple[str, Layer, str]]:
        """Where each parameter lives."""
        for prefix, layer in self.named_layers():
            for name in layer._parameter_names:
                if getattr(layer, name) is not None:
                    yield _joined(prefix, name), layer, name

    def named_parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of all parameters, with torch's names: "0.weight". Changing an array changes the layer.

        Examples
        --------
        >>> import fastconv
        >>> net = fastconv.Sequential(fastconv.Conv2d(1, 8, 3), fastconv.ReLU())
        >>> [(name, array.shape) for name, array in net.named_parameters()]
        [('0.weight', (8, 1, 3, 3)), ('0.bias', (8,))]
        """
        for key, layer, name in self._trained():
            yield key, getattr(layer, name)

    def parameters(self) -> Iterator[np.ndarray]:
        """The arrays of `named_parameters`."""
        for _, array in self.named_parameters():
            yield array

    def named_gradients(self) -> Iterator[tuple[str, np.ndarray | None]]:
        """(name, array or None) for each of `named_parameters`: what the last backward left in ``grad_weight`` ..."""
        for key, layer, name in self._trained():
            yield key, getattr(layer, f"grad_{name}", None)

    def gradients(self) -> Iterator[np.ndarray | None]:
        """The arrays of `named_gradients`, in the order of `parameters`.

        Examples
        --------
        A step of gradient descent:

        >>> import numpy as np, fastconv
        >>> net = fastconv.Linear(2, 1, bias=False, init=np.array([[1.0, 2.0]]), dtype="float64")
        >>> y = net(np.array([[3.0, 4.0]]))
        >>> _ = net.backward(np.ones_like(y))
        >>> for parameter, gradient in zip(net.parameters(), net.gradients()):
        ...     parameter -= 0.5 * gradient
        >>> net.weight
        array([[-0.5,  0. ]])
        """
        for _, array in self.named_gradients():
            yield array

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for _, layer in self.named_layers():
            for name in layer._parameter_names:
                if hasattr(layer, f"grad_{name}"):
                    setattr(layer, f"grad_{name}", None)

    def named_buffers(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, array) of what belongs to the state but is not trained: "1.running_mean"."""
        for prefix, layer in self.named_layers():
            for name in layer._buffer_names:
                if getattr(layer, name) is not None:
                    yield _joined(prefix, name), getattr(layer, name)

    def buffers(self) -> Iterator[np.ndarray]:
        """The arrays of `named_buffers`."""
        for _, array in self.named_buffers():
            yield array

    def _own_parameters(self) -> int:
        own = (getattr(self, name) for name in self._parameter_names)
        return sum(array.size for array in own if array is not None)

    # State.

    def _state(self) -> dict[str, tuple[Layer, str]]:
        """Where each entry of the state lives."""
        places = {}
        for prefix, layer in self._walk(""):
            for name in (*layer._parameter_names, *layer._buffer_names):
                if getattr(layer, name) is not None:
                    places[_joined(prefix, name)] = (layer, name)
        return places

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers under torch's names.

        Returns
        -------
        dict of str to array

        See Also
        --------
        fastconv.save

        Examples
        --------
        >>> import fastconv
        >>> list(fastconv.Linear(3, 2).state_dict())
        ['weight', 'bias']
        """
        return {key: np.array(getattr(layer, name)) for key, (layer, name) in self._state().items()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> LoadResult:
        """Take over parameters and buffers, torch's too.

        All entries are checked before any is written. Floats of another width are converted to the layer's dtype.

        Parameters
        ----------
        state_dict : mapping of str to array
            From `state_dict`, `fastconv.load`, or torch (anything with ``__array__``).
        strict : bool
            Every key must be there and no other; else those that match are taken.

        Returns
        -------
        LoadResult
            ``missing_keys`` and ``unexpected_keys``, both empty when `strict`.

        Raises
        ------
        ValueError
            If keys are missing or unexpected, or a shape differs; the message names each key. Nothing is changed then.
        TypeError
            If an entry does not hold numbers.

        Examples
        --------
        >>> import fastconv
        >>> a, b = fastconv.Linear(3, 2), fastconv.Linear(3, 2)
        >>> b.load_state_dict(a.state_dict())
        LoadResult(missing_keys=[], unexpected_keys=[])
        """
        function = f"{type(self).__name__}.load_state_dict"
        if not isinstance(state_dict, Mapping):
            kind = type(state_dict).__name__
            raise TypeError(f"{function}: state_dict is a {kind}: it must be a mapping of names to arrays")
        places = self._state()
        missing = [key for key in places if key not in state_dict]
        unexpected = [key for key in state_dict if key not in places]
        faults = []
        if flag(function, "strict", strict):
            faults += [f"key {key!r} is missing" for key in missing]
            faults += [f"key {key!r} is unexpected" for key in unexpected]
        values = {}
        for key, (layer, name) in places.items():
            if key in state_dict:
                own = getattr(layer, name)
                values[key] = _state_array(function, key, state_dict[key], own.dtype)
                if values[key].shape != own.shape:
                    faults.append(f"{key!r} has shape {values[key].shape}, it must be {own.shape}")
        refuse(function, faults)
        for key, value in values.items():
            layer, name = places[key]
            own = getattr(layer, name)
            if own.flags.writeable:
                own[...] = value
            else:
                setattr(layer, name, np.array(value))
                layer._mode_changed()
        return LoadResult(missing, unexpected)

    def __repr__(self) -> str:
        lines = []
        for name, layer in self.named_children():
            lines.append(f"  ({name}): " + repr(layer).replace("\n", "\n  "))
        extra = self._extra()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n".join([f"{type(self).__name__}({extra}", *lines, ")"])


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def refuse(function: str, faults: list[str]) -> None:
    """ValueError that tells the first ``faults``, if there are any."""
    if faults:
        more = f"; and {len(faults) - 8} more" if len(faults) > 8 else ""
        raise ValueError(f"{function}: {'; '.join(faults[:8])}{more}")


def _state_array(function: str, key: Any, value: Any, dtype: np.dtype) -> np.ndarray:
    """An entry of a state_dict as a new array of ``dtype``."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: needs a gradient, lives on a device, is bfloat16
        raise TypeError(f"{function}: {key!r} cannot become an array: {error}") from None
    if array.dtype.kind not in ("fiu" if dtype.kind == "f" else "iu"):
        raise TypeError(f"{function}: {key!r} has dtype {array.dtype}: it must hold {dtype} numbers")
    return array.astype(dtype)


class Elementwise(Layer):
    """Any shape, which it keeps."""

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        return signal, 0


def number(
    function: str, name: str, value: Any, least: float = -math.inf, most: float = math.inf, finite: bool = True
) -> float:
    """``value`` as a float in [least, most]; infinite only if that is allowed."""
    of_numpy = isinstance(value, (np.ndarray, np.generic))  # float() would take the first of one, or half of a complex
    if (
        isinstance(value, (bool, str))
        or not hasattr(value, "__float__")
        or (of_numpy and (value.ndim or value.dtype.kind not in "fiu"))
    ):
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be a number")
    try:
        number = float(value)
    except (TypeError, ValueError):  # a tensor of several
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be a number") from None
    except OverflowError:
        number = math.inf
    if finite and math.isinf(number):
        raise ValueError(f"{function}: {name} {number:g}: it must be finite")
    if not least <= number <= most:
        rule = f"it must lie in {least:g} .. {most:g}" if math.isfinite(most) else f"it must be at least {least:g}"
        raise ValueError(f"{function}: {name} {number:g}: {rule if math.isfinite(least) else 'it must be a number'}")
    return number


def count(function: str, name: str, value: Any) -> int:
    number = integer(function, name, value)
    if number < 1:
        raise ValueError(f"{function}: {name} {number}: it must be at least 1")
    return number


def floats(function: str, name: str, value: Any) -> np.ndarray:
    """``value`` as a C-contiguous, native array of float32 or float64; a copy where it is not."""
    array = as_floats(function, name, value)
    return ready(array, array.shape)


def batch(layer: Layer, input: Any, channels: int | None = None, axes: str = "NCHW") -> np.ndarray:
    """A whole batch (N, C, H, W) of floats."""
    function = type(layer).__name__
    x = floats(function, "input", input)
    if x.ndim != len(axes):
        raise ValueError(f"{function}: input has shape {x.shape}: it must be ({', '.join(axes)})")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"{function}: input has shape {x.shape}: it must have {channels} channels in axis 1")
    return x


def maps(layer: Layer, input: Any) -> np.ndarray:
    """A batch (N, C, H, W) or one image (C, H, W), of floats."""
    function = type(layer).__name__
    x = floats(function, "input", input)
    check_maps(function, x.shape)
    return x


def check_maps(function: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (3, 4):
        raise ValueError(f"{function}: input has shape {shape}: it must be (N, C, H, W) or (C, H, W)")


def same_dtype(layer: Layer, x: np.ndarray, parameter: np.ndarray) -> None:
    if x.dtype.newbyteorder("=") != parameter.dtype:
        raise TypeError(
            f"{type(layer).__name__}: input is {x.dtype} and weight is {parameter.dtype}: they must have one dtype"
        )


def axis_of(function: str, name: str, axis: int, ndim: int) -> int:
    """``axis`` counted from the front; ValueError if an array of ``ndim`` axes has no such axis."""
    if not -ndim <= axis < ndim:
        raise ValueError(f"{function}: {name} {axis}: an input of {ndim} axes has no such axis")
    return axis % ndim
