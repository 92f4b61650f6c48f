"""What protects a run: Ctrl-C takes effect between steps only, and the first NaN names its layer."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from fastconv.layers import Layer


class Interrupt:
    """Inside the block the first Ctrl-C is only noted, and ``check`` raises KeyboardInterrupt; a second one acts at once.

    Python tells only the main thread of signals; in any other nothing changes.
    """

    def __init__(self) -> None:
        self._seen = False
        self._former: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._former = signal.getsignal(signal.SIGINT)
            if self._former is not None:
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Called where all is consistent."""
        if self._seen:
            raise KeyboardInterrupt


def finite(array: np.ndarray) -> bool:
    """Whether no NaN and no Inf is in ``array``; a sum tells it in one pass unless large numbers overflow in it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(array, axis=None))) or bool(np.isfinite(array).all())


def blame_forward(net: Layer, images: np.ndarray) -> str:
    """Where the first NaN or Inf of a forward pass comes from; the pass is run once more to find it."""
    if not finite(images):
        return "the images of this batch hold NaN or Inf"
    found: list[str] = []
    layers = [(name, layer) for name, layer in net.named_layers()]

    def watched(name: str, layer: Layer) -> Any:
        forward = layer._forward

        def run(*inputs: Any, **options: Any) -> Any:
            output, saved = forward(*inputs, **options)
            first = output[0] if isinstance(output, tuple) else output
            if not found and not finite(first):
                found.append(f"first in layer {name!r}, {_short(layer)}{_parameters(layer)}")
            return output, saved

        return run

    for name, layer in layers:
        vars(layer)["_forward"] = watched(name, layer)
    try:
        net(images)
    finally:
        for _, layer in layers:
            del vars(layer)["_forward"]
    return found[0] if found else "every layer's output is finite, so it is the loss itself"


def blame_backward(net: Layer) -> str | None:
    """The gradient that backward made NaN or Inf first, None if there is none."""
    bad = [name for name, gradient in net.named_gradients() if gradient is not None and not finite(gradient)]
    if not bad:
        return None
    layer, _, parameter = bad[-1].rpartition(".")  # backward starts at the last layer
    place = dict(net.named_layers())[layer]
    return f"first in layer {layer!r}, {_short(place)}: the gradient of its {parameter}"


def _short(layer: Layer) -> str:
    text = repr(layer)
    return type(layer).__name__ if "\n" in text else text


def _parameters(layer: Layer) -> str:
    own = [name for name in layer._parameter_names if getattr(layer, name) is not None]
    bad = [name for name in own if not finite(getattr(layer, name))]
    return f", whose {bad[0]} had become so by the step before" if bad else ""
