"""What backward needs: kept on a tape of each thread, never on the layer, so that one network serves many threads.

A **frame** holds what one outermost call ``net(x)`` saved, for `net` and every layer inside it: a stack for each layer,
because a layer may be used twice. ``backward`` takes the newest frame that knows the layer and pops from it.

When frames go: backward empties them; leaving a `record` block drops those made inside; outside a block, calling a
layer in train mode drops the layer's older frames whose returned array nobody holds any more; ``eval()`` drops this
thread's frames of the layer; and a frame never keeps its layers alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from fastconv._arrays import as_floats, ready

RULES = ("gradient", "deconvnet", "guided")


class Entry(NamedTuple):
    """One forward of one layer."""

    saved: Any
    shape: tuple[int, ...]  # of its output
    dtype: np.dtype


class Frame:
    """What one outermost call saved."""

    def __init__(self, root: Any, block: int) -> None:
        self.root = weakref.ref(root)
        self.block = block  # how many record() blocks were open; 0: kept because of train mode
        self.stacks: weakref.WeakKeyDictionary[Any, list[Entry]] = weakref.WeakKeyDictionary()
        self.output: Any = lambda: None  # weak reference to the returned array

    def push(self, layer: Any, saved: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        self.stacks.setdefault(layer, []).append(Entry(saved, first.shape, first.dtype))

    def pop(self, layer: Any) -> None:
        stack = self.stacks[layer]
        stack.pop()
        if not stack:
            del self.stacks[layer]

    def outlived_by(self, layer: Any) -> bool:
        """Whether a new call of ``layer`` drops this frame."""
        if not self.stacks:
            return True
        return self.block == 0 and self.output() is None and self.root() in (None, layer)


class _Idle:
    """Stands in `Tape.running` while no layer runs."""


IDLE = _Idle()


class Tape(threading.local):
    """This thread's frames, oldest first."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.blocks = 0
        self.running: Any = IDLE  # while a layer runs: its Frame, or None when nothing is to be kept

    def open(self, layer: Any) -> Frame | None:
        """The frame of an outermost call of ``layer``; None when nothing is to be kept."""
        if self.blocks == 0:
            if not layer.training:
                return None
            if self.frames:
                self.frames = [frame for frame in self.frames if not frame.outlived_by(layer)]
        return Frame(layer, self.blocks)

    def keep(self, frame: Frame, inputs: tuple[Any, ...], output: Any) -> Any:
        """File a finished call; what it returns.

        That is a view: many a layer saves its output, and a frame that holds what the caller got would never be dropped.
        """
        self.frames.append(frame)
        first = output[0] if isinstance(output, tuple) else output
        if not isinstance(first, np.ndarray) or any(first is input for input in inputs):  # a 0-d number of NumPy's
            return output
        shown = first.view()
        frame.output = weakref.ref(shown)
        return (shown, *output[1:]) if isinstance(output, tuple) else shown

    def find(self, layer: Any) -> Frame:
        """The newest frame that knows ``layer``; RuntimeError if there is none."""
        for frame in reversed(self.frames):
            if layer in frame.stacks:
                return frame
        raise _nothing_recorded(layer)

    def forget(self, layers: Iterable[Any]) -> None:
        """Drop what was kept of ``layers`` because of train mode."""
        for layer in layers:
            for frame in self.frames:
                if frame.block == 0:
                    frame.stacks.pop(layer, None)
        self.frames = [frame for frame in self.frames if frame.stacks]


tape = Tape()


def watched() -> bool:
    """Whether somebody reads what every layer of the running forward gives, not only what backward needs."""
    return tape.running is not None and type(tape.running) is not Frame


def recording() -> bool:
    """Whether what the running forward saves will be kept."""
    return tape.running is not None and tape.running is not IDLE


def _nothing_recorded(layer: Any) -> RuntimeError:
    name = type(layer).__name__
    if not layer.training:
        return RuntimeError(
            f"{name}.backward: the layer is in eval mode, in which a forward keeps nothing: call train() first, or run "
            "forward and backward inside `with fastconv.record():`"
        )
    return RuntimeError(
        f"{name}.backward: no forward of this layer is recorded in this thread: call the layer before each backward"
    )


@contextmanager
def record() -> Iterator[None]:
    """Keep what backward needs while the block runs, in eval mode too.

    Every forward of this thread inside the block is kept until a backward takes it or the block ends; blocks nest.
    Gradients can then be taken of a network in eval mode, and one layer may be called several times: each
    ``backward`` takes the last forward that is left.

    Without a block a layer keeps its forwards only in train mode: always the last one, and an earlier one as long as
    the array that it returned is alive.

    Yields
    ------
    None

    See Also
    --------
    fastconv.Layer.backward

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.ReLU().eval()
    >>> x = np.array([[-1.0, 2.0]])
    >>> with fastconv.record():
    ...     y = net(x)
    ...     grad_input = net.backward(np.ones_like(y))
    >>> grad_input
    array([[0., 1.]])
    """
    tape.blocks += 1
    depth = tape.blocks
    try:
        yield
    finally:
        tape.frames = [frame for frame in tape.frames if frame.block < depth]
        tape.blocks = depth - 1


class BackwardPass:
    """One outermost ``backward``: the frame it reads, the rule, and which parameter gradients it has written.

    A layer's ``_backward`` gets it as ``run``: ``run(child, grad_output)`` goes through a layer inside it,
    ``run.store(self, weight=..., bias=...)`` hands over gradients of parameters.
    """

    merges = True  # whether two layers may go back in one step; not where somebody counts on every one of them

    def __init__(self, frame: Frame, rule: str, accumulate: bool, needs_input: bool) -> None:
        self.rule = rule
        self.needs_input = needs_input  # whether the caller of the running layer wants the gradient of its input
        self.owned = False  # whether nobody else knows the gradient that the running layer got: it may write there
        self.rectified = False  # whether the running layer, a max-pool, also goes back through the ReLU before it
        self.needs_parameters = rule == "gradient"
        self._frame = frame
        self._accumulate = accumulate
        self._written: set[tuple[int, str]] = set()

    def __call__(
        self, layer: Any, grad_output: Any, needs_input: bool = True, owned: bool = False, through: Any = None
    ) -> Any:
        """Gradient of the input of ``layer``, from its last forward in the frame that is left.

        ``owned``: `grad_output` is the caller's own and not needed any more, so the layer may overwrite it.
        ``through``: the ReLU before ``layer``, a max-pool; the gradient is that of the ReLU's input.
        """
        stack = self._frame.stacks.get(layer)
        if not stack:
            raise _nothing_recorded(layer)
        entry = stack[-1]
        function = f"{type(layer).__name__}.backward"
        grad = as_floats(function, "grad_output", grad_output)
        if grad.shape != entry.shape:
            raise ValueError(f"{function}: grad_output has shape {grad.shape}: it must be the output's, {entry.shape}")
        if grad.dtype.newbyteorder("=") != entry.dtype:
            raise TypeError(f"{function}: grad_output is {grad.dtype}: it must be the output's dtype, {entry.dtype}")
        outer = self.needs_input, self.owned, self.rectified
        self.needs_input, self.owned, self.rectified = needs_input, owned, through is not None
        try:
            grad_input = layer._backward(ready(grad, grad.shape), entry.saved, self)
        finally:
            self.needs_input, self.owned, self.rectified = outer
        self._frame.pop(layer)
        if through is not None:
            self._frame.pop(through)
        return grad_input if needs_input else None  # a layer without parameters has no work to save, and gives its own

    def store(self, layer: Any, **gradients: np.ndarray | None) -> None:
        """Keep gradients of parameters as ``layer.grad_<name>``; a layer met twice in one pass gets their sum."""
        for name, value in gradients.items():
            if value is None:
                continue
            key = (id(layer), name)
            former = getattr(layer, f"grad_{name}", None)
            if former is not None and (self._accumulate or key in self._written):
                value = former + value
            self._written.add(key)
            setattr(layer, f"grad_{name}", value)
