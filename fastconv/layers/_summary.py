"""`summary`: what every layer of a network gives and costs, found without computing anything.

The network is called with a `Signal` in place of an array: a shape, and the part of the input that each position of it
sees. Containers run their own forward on it (so branches join by ``+`` as arrays do); a leaf answers by its ``_trace``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

Pair = tuple[Fraction, ...]  # height, width
_NOWHERE = (Fraction(0), Fraction(0))


@dataclass(frozen=True)
class Row:
    """One leaf layer of a `Summary`.

    Attributes
    ----------
    name : str
        As in ``named_layers()``: "0", "features.3".
    layer : str
        The layer's repr.
    output_shape : tuple of int
    parameters : int
        Numbers in its parameters; 0 in later rows of a layer that is used more than once.
    multiply_adds : int
        Of convolutions and dense layers; other layers count 0, as in the literature.
    receptive_field : (int, int)
        Height and width of the part of the input that one output position depends on, padding included.
    jump : (float, float)
        Distance in input cells between the fields of neighbouring outputs.
    start : (float, float)
        Top/left input cell of the first output's field, negative inside padding.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int]
    jump: tuple[float, float]
    start: tuple[float, float]


@dataclass(frozen=True)
class Signal:
    """Stands for an array on its way through a network.

    Along each spatial axis, output 0 sees no input cells outside ``first .. last``, output i none outside the same span
    ``jump * i`` further on. Behind windows that do not lie alike (of transposed convolutions, of adaptive pooling) the
    numbers are fractions, and the span is the smallest that holds for every i.
    """

    shape: tuple[int, ...]
    grid: tuple[int, int]  # positions: height, width of the last map
    trace: _Trace = field(repr=False, compare=False)
    first: Pair = _NOWHERE
    last: Pair = _NOWHERE
    jump: Pair = (Fraction(1), Fraction(1))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def like(self, shape: tuple[int, ...]) -> Signal:
        """Every output sees what its input saw."""
        return replace(self, shape=shape)

    def windows(
        self,
        shape: tuple[int, ...],
        grid: tuple[int, int],
        kernel: tuple[int, int] | Pair,
        stride: tuple[int, int] | Pair = (1, 1),
        pads: tuple[int, int] | Pair = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> Signal:
        """Windows of a convolution or pooling; ``pads`` are those at the top and left."""
        first, last, jump = [], [], []
        for axis in range(2):
            offset = -pads[axis] * self.jump[axis]
            first.append(self.first[axis] + offset)
            last.append(self.last[axis] + offset + dilation[axis] * (kernel[axis] - 1) * self.jump[axis])
            jump.append(self.jump[axis] * stride[axis])
        return replace(self, shape=shape, grid=grid, first=tuple(first), last=tuple(last), jump=tuple(jump))

    def through(self, problem: Any, axes: int = 2) -> Signal:
        """The windows of a ConvProblem or PoolProblem."""
        shape: tuple[int, ...] = problem.output_shape
        if axes == 1:
            shape = (shape[0], shape[1], shape[3])
        return self.windows(
            shape if self.ndim == axes + 2 else shape[1:],
            (problem.OH, problem.OW), (problem.KH, problem.KW), (problem.stride_h, problem.stride_w),
            (problem.pad_top, problem.pad_left), (problem.dil_h, problem.dil_w),
        )  # fmt: skip

    def spread(
        self,
        shape: tuple[int, ...],
        grid: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pads: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
    ) -> Signal:
        """A transposed convolution: output o sees the i with 0 <= o + pad - i * stride <= dilation * (kernel - 1)."""
        first, last, jump = [], [], []
        for axis in range(2):
            step = self.jump[axis] / stride[axis]
            offset = pads[axis] * step
            first.append(self.first[axis] + offset - dilation[axis] * (kernel[axis] - 1) * step)
            last.append(self.last[axis] + offset)
            jump.append(step)
        return replace(self, shape=shape, grid=grid, first=tuple(first), last=tuple(last), jump=tuple(jump))

    def everything(self, shape: tuple[int, ...], grid: tuple[int, int] = (1, 1)) -> Signal:
        """Every output sees the whole map."""
        last = tuple(self.last[axis] + (self.grid[axis] - 1) * self.jump[axis] for axis in range(2))
        return replace(self, shape=shape, grid=grid, last=last)

    def joined(self, other: Signal, shape: tuple[int, ...]) -> Signal:
        """Two branches meet: their fields are united."""
        return replace(
            self,
            shape=shape,
            first=tuple(min(a, b) for a, b in zip(self.first, other.first, strict=True)),
            last=tuple(max(a, b) for a, b in zip(self.last, other.last, strict=True)),
            jump=tuple(max(a, b) for a, b in zip(self.jump, other.jump, strict=True)),
        )

    def __add__(self, other: Any) -> Signal:
        if not isinstance(other, Signal):
            return NotImplemented
        return self.joined(other, self.shape)

    def enter(self, layer: Any, signals: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Go through ``layer``, as ``layer(signal)`` does."""
        output, multiply_adds = layer._trace(*signals, **options)
        if not any(layer.children()):
            self.trace.add(layer, output[0] if isinstance(output, tuple) else output, multiply_adds)
        return output


class _Trace:
    """Rows of the leaf layers, in the order in which they run."""

    def __init__(self, net: Any) -> None:
        self.rows: list[Row] = []
        self._names: dict[int, str] = {}
        for name, layer in net.named_layers():
            self._names.setdefault(id(layer), name)
        self._counted: set[int] = set()

    def add(self, layer: Any, output: Signal, multiply_adds: int) -> None:
        own = 0 if id(layer) in self._counted else layer._own_parameters()
        self._counted.add(id(layer))
        self.rows.append(
            Row(
                name=self._names.get(id(layer), "?"),
                layer=repr(layer),
                output_shape=output.shape,
                parameters=own,
                multiply_adds=multiply_adds,
                receptive_field=_field(output),
                jump=_floats(output.jump),
                start=_floats(output.first),
            )
        )


def _floats(values: Pair) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _field(signal: Signal) -> tuple[int, int]:
    height, width = (math.floor(signal.last[axis] - signal.first[axis]) + 1 for axis in range(2))
    return height, width


@dataclass(frozen=True)
class Summary:
    """Result of `summary`; ``str()`` of it is a table.

    Attributes
    ----------
    rows : tuple of Row
        The leaf layers in the order in which they run: name, layer, output_shape, parameters, multiply_adds,
        receptive_field, jump, start.
    input_shape, output_shape : tuple of int
    parameters : int
        Numbers in all parameters, each counted once.
    multiply_adds : int
    receptive_field, jump, start
        Those of the output, as in a row.
    """

    rows: tuple[Row, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int]
    jump: tuple[float, float]
    start: tuple[float, float]

    def __str__(self) -> str:
        head = ("", "layer", "output shape", "parameters", "multiply-adds", "field")
        cells = [head, ("", "input", _times(self.input_shape), "", "", "1 x 1")]
        for row in self.rows:
            cells.append(
                (row.name, _short(row.layer), _times(row.output_shape), f"{row.parameters:,}",
                 f"{row.multiply_adds:,}", _times(row.receptive_field))
            )  # fmt: skip
        total = ("", "total", _times(self.output_shape), f"{self.parameters:,}", f"{self.multiply_adds:,}",
                 _times(self.receptive_field))  # fmt: skip
        widths = [max(len(line[column]) for line in (*cells, total)) for column in range(len(head))]
        aligned: list[Callable[[str, int], str]] = [str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.rjust]

        def line(values: tuple[str, ...]) -> str:
            cells = zip(aligned, values, widths, strict=True)
            return "  ".join(put(value, width) for put, value, width in cells).rstrip()

        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        return "\n".join([line(head), rule, *map(line, cells[1:]), rule, line(total)])


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))


def _short(text: str, limit: int = 40) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def summary(net: Any, input_shape: Any) -> Summary:
    """What every layer of a network gives and costs: output shape, parameters, multiply-adds, receptive field.

    Nothing is computed, so networks and images of any size take milliseconds.

    Parameters
    ----------
    net : Layer
    input_shape : sequence of int
        Shape of the array that `net` is called with. Three numbers (C, H, W) mean one image, (1, C, H, W); for a
        network that takes no images they are the shape itself.

    Returns
    -------
    Summary
        ``str()`` of it is a table ("field" is the receptive field); ``.rows`` and the totals are data.

    Raises
    ------
    TypeError
        If `net` is not a layer, or holds one that does not say how it changes a shape.
    ValueError
        If the shape does not fit the network; the message names the layer.

    Notes
    -----
    Multiply-adds are those of convolutions and dense layers, as papers count them. A receptive field grows from layer
    to layer by (kernel - 1) * dilation * jump, jump by the factor stride; where branches meet the fields are united, so
    a residual network has that of its deepest path. It counts padding as input. Behind a transposed convolution or an
    adaptive pooling, whose windows do not lie alike, it is an upper bound.

    Examples
    --------
    >>> import fastconv
    >>> net = fastconv.Sequential(
    ...     fastconv.Conv2d(1, 32, 3), fastconv.ReLU(), fastconv.MaxPool2d(2),
    ...     fastconv.Flatten(), fastconv.Linear(5408, 10),
    ... )
    >>> table = fastconv.summary(net, (1, 28, 28))
    >>> table.parameters, table.multiply_adds
    (54410, 248768)
    >>> print(table)
       layer                                     output shape      parameters  multiply-adds    field
    -------------------------------------------------------------------------------------------------
       input                                     1 x 1 x 28 x 28                                1 x 1
    0  Conv2d(1, 32, kernel_size=(3, 3), str...  1 x 32 x 26 x 26         320        194,688    3 x 3
    1  ReLU()                                    1 x 32 x 26 x 26           0              0    3 x 3
    2  MaxPool2d(kernel_size=2, stride=2, pa...  1 x 32 x 13 x 13           0              0    4 x 4
    3  Flatten(start_dim=1, end_dim=-1)          1 x 5408                   0              0    4 x 4
    4  Linear(in_features=5408, out_features...  1 x 10                54,090         54,080  28 x 28
    -------------------------------------------------------------------------------------------------
       total                                     1 x 10                54,410        248,768  28 x 28
    """
    if isinstance(net, type) or not hasattr(net, "named_layers"):
        raise TypeError(f"summary: net is a {type(net).__name__}: it must be a Layer")
    shape = _checked_shape(input_shape)
    if len(shape) != 3:
        return _summarised(net, shape)
    try:
        return _summarised(net, (1, *shape))
    except ValueError as error:
        try:
            return _summarised(net, shape)
        except ValueError:
            raise error from None


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        numbers = tuple(value.__index__() for value in shape)
    except (TypeError, AttributeError):
        raise TypeError(f"summary: input_shape is {shape!r}: it must be a sequence of integers") from None
    if not numbers or min(numbers) < 0:
        raise ValueError(f"summary: input_shape {numbers}: it must hold numbers of at least 0")
    return numbers


def _summarised(net: Any, shape: tuple[int, ...]) -> Summary:
    trace = _Trace(net)
    spatial = (1, 1, *shape[2:]) if len(shape) > 2 else (1, 1)
    output = net(Signal(shape, (spatial[-2], spatial[-1]), trace))
    last = output[0] if isinstance(output, tuple) else output
    return Summary(
        rows=tuple(trace.rows),
        input_shape=shape,
        output_shape=last.shape,
        parameters=sum(row.parameters for row in trace.rows),
        multiply_adds=sum(row.multiply_adds for row in trace.rows),
        receptive_field=_field(last),
        jump=_floats(last.jump),
        start=_floats(last.first),
    )
