"""MaxPool2d, MaxUnpool2d, AvgPool2d, AdaptiveAvgPool2d, GlobalAvgPool2d, and ZeroPad2d."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np

from fastconv import functional
from fastconv._problem import PoolProblem, at_least, flag, integer, pair, resolve_padding, sequence, shown
from fastconv.layers._base import Layer, check_maps, count, maps
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass, recording
from fastconv.layers.activation import rectified


class MaxPool2d(Layer):
    """Largest value of every window: `fastconv.max_pool2d` as a layer.

    Parameters
    ----------
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        `kernel_size` if not given.
    padding : int, pair, or pair of pairs
        At most half of the kernel; it never wins.
    dilation : int or pair of int
    return_indices : bool
        The call returns (output, indices), as `MaxUnpool2d` wants them; backward takes the gradient of the first.
    ceil_mode : bool
        Round the output's extents up.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no pooling; when called, for an input of another rank, or smaller than the window.

    Notes
    -----
    (N, C, IH, IW) -> (N, C, OH, OW), or without the batch axis for one image. The gradient goes to the cell that won:
    NaN before every number, else the largest, of equals the first in row-major order.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> pool = fastconv.MaxPool2d(2)
    >>> pool(np.array([[[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 8.0, 1.0]]]))
    array([[[5., 8.]]])
    >>> pool.backward(np.array([[[1.0, 1.0]]]))
    array([[[0., 1., 0., 0.],
            [0., 0., 1., 0.]]])
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        function = type(self).__name__
        self.kernel_size = _window(function, "kernel_size", kernel_size, 1, "extents")
        self.stride = self.kernel_size if stride is None else _window(function, "stride", stride, 1, "strides")
        self.dilation = _window(function, "dilation", dilation, 1, "dilations")
        self.padding = _pool_padding(function, padding, self.kernel_size, self.dilation)
        self.return_indices = flag(function, "return_indices", return_indices)
        self.ceil_mode = flag(function, "ceil_mode", ceil_mode)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = maps(self, input)
        with_indices = self.return_indices or recording()
        arguments = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        if not with_indices:
            return functional.max_pool2d(x, *arguments), None
        output, indices = functional.max_pool2d(x, *arguments, True)
        return (output, indices) if self.return_indices else output, (indices, x.shape, output)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        indices, shape, output = saved
        if run.rectified:
            grad_output = rectified(grad_output, output, run)
        return functional.max_pool2d_backward(
            grad_output, indices, shape, self.kernel_size, self.stride, self.padding, self.dilation
        )

    def _trace(self, signal: Signal) -> tuple[Any, int]:
        problem = PoolProblem.from_args(
            type(self).__name__, signal.shape, "float32", self.kernel_size, self.stride, self.padding, self.dilation,
            self.ceil_mode,
        )  # fmt: skip
        output = signal.through(problem)
        return ((output, output) if self.return_indices else output), 0

    def _extra(self) -> str:
        return (
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"ceil_mode={self.ceil_mode}"
        )


def _window(function: str, name: str, value: Any, least: int, what: str) -> Any:
    """A checked int or pair, kept as it was given, as torch shows it."""
    numbers = at_least(function, name, pair(function, name, value), least, what)
    return numbers if np.iterable(value) else numbers[0]


def _pool_padding(function: str, padding: Any, kernel_size: Any, dilation: Any = 1) -> Any:
    """A checked padding of a pooling, kept as it was given."""
    pads = resolve_padding(function, padding, (1, 1), (1, 1), (1, 1), (1, 1))
    kernel, dil = pair(function, "kernel_size", kernel_size), pair(function, "dilation", dilation)
    most = [(dil[axis] * (kernel[axis] - 1) + 1) // 2 for axis in (0, 1)]
    if min(pads) < 0 or max(pads[:2]) > most[0] or max(pads[2:]) > most[1]:
        raise ValueError(
            f"{function}: padding {padding!r}: it must be at least 0 and at most half of the kernel {kernel}"
        )
    if isinstance(padding, str):
        return padding
    if not np.iterable(padding):
        return pads[0]
    return (pads[0], pads[2]) if pads[0] == pads[1] and pads[2] == pads[3] else (pads[:2], pads[2:])


class MaxUnpool2d(Layer):
    """Put pooled values back where they came from: `fastconv.max_unpool2d` as a layer, called with (input, indices).

    Parameters
    ----------
    kernel_size, stride, padding : int or pair of int
        Those of the pooling; `stride` is `kernel_size` if not given.

    Raises
    ------
    TypeError, ValueError
        When called, for indices outside the output's plane or of another shape, or an ``output_size`` out of reach.

    Notes
    -----
    The call is ``unpool(input, indices, output_size=None)``, both (N, C, IH, IW); the output is zero everywhere else.
    Backward returns the gradient of `input`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> pool = fastconv.MaxPool2d(2, return_indices=True)
    >>> pooled, indices = pool(np.array([[[1.0, 5.0], [3.0, 4.0]]]))
    >>> fastconv.MaxUnpool2d(2)(pooled, indices)
    array([[[0., 5.],
            [0., 0.]]])
    """

    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        function = type(self).__name__
        self.kernel_size = at_least(function, "kernel_size", pair(function, "kernel_size", kernel_size), 1, "extents")
        steps = self.kernel_size if stride is None else pair(function, "stride", stride)
        self.stride = at_least(function, "stride", steps, 1, "strides")
        self.padding = at_least(function, "padding", pair(function, "padding", padding), 0, "paddings")

    def _forward(self, input: Any, indices: Any, output_size: Any = None) -> tuple[Any, Any]:
        x = maps(self, input)
        arguments = (self.kernel_size, self.stride, self.padding, output_size)
        return functional.max_unpool2d(x, indices, *arguments), indices

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return functional.max_unpool2d_backward(grad_output, saved)

    def _trace(self, signal: Signal, indices: Any, output_size: Any = None) -> tuple[Signal, int]:
        check_maps(type(self).__name__, signal.shape)
        if output_size is None:
            output_size = [
                (extent - 1) * step - 2 * pad + size
                for extent, step, pad, size in zip(
                    signal.shape[-2:], self.stride, self.padding, self.kernel_size, strict=True
                )
            ]
        height, width = tuple(output_size)[-2:]
        shape = (*signal.shape[:-2], height, width)
        return signal.spread(shape, (height, width), self.kernel_size, self.stride, self.padding), 0

    def _extra(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AvgPool2d(Layer):
    """Mean of every window: `fastconv.avg_pool2d` as a layer.

    Parameters
    ----------
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        `kernel_size` if not given.
    padding : int, pair, or pair of pairs
        Zeros; at most half of the kernel.
    ceil_mode : bool
        Round the output's extents up.
    count_include_pad : bool
        Whether padding counts as cells of a window.
    divisor_override : int, optional
        Divide every sum by this instead.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no pooling; when called, for an input of another rank, or smaller than the window.

    Notes
    -----
    (N, C, IH, IW) -> (N, C, OH, OW), or without the batch axis for one image.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.AvgPool2d(2)(np.array([[[1.0, 5.0, 2.0, 0.0], [3.0, 3.0, 8.0, 2.0]]]))
    array([[[3., 3.]]])
    """

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        function = type(self).__name__
        self.kernel_size = _window(function, "kernel_size", kernel_size, 1, "extents")
        self.stride = self.kernel_size if stride is None else _window(function, "stride", stride, 1, "strides")
        self.padding = _pool_padding(function, padding, self.kernel_size)
        self.ceil_mode = flag(function, "ceil_mode", ceil_mode)
        self.count_include_pad = flag(function, "count_include_pad", count_include_pad)
        self.divisor_override = None
        if divisor_override is not None:
            self.divisor_override = integer(function, "divisor_override", divisor_override)
            if self.divisor_override == 0:
                raise ValueError(f"{function}: divisor_override 0: it must not be zero")

    def _arguments(self) -> tuple[Any, ...]:
        window = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return (*window, self.count_include_pad, self.divisor_override)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = maps(self, input)
        return functional.avg_pool2d(x, *self._arguments()), x.shape

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return functional.avg_pool2d_backward(grad_output, saved, *self._arguments())

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        problem = PoolProblem.from_args(
            type(self).__name__, signal.shape, "float32", self.kernel_size, self.stride, self.padding, 1, self.ceil_mode
        )
        return signal.through(problem), 0

    def _extra(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class AdaptiveAvgPool2d(Layer):
    """Mean over windows that divide the map into a given number of rows and columns.

    Parameters
    ----------
    output_size : int or pair of (int or None)
        (OH, OW); None keeps that extent.

    Raises
    ------
    TypeError, ValueError
        For sizes below 1; when called, for an input of another rank or an empty map.

    Notes
    -----
    (N, C, IH, IW) -> (N, C, OH, OW), or without the batch axis for one image. Row i of the output is the mean of the
    rows floor(i * IH / OH) .. ceil((i + 1) * IH / OH) - 1, columns alike (torch's windows; they may overlap).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.AdaptiveAvgPool2d((1, 2))(np.array([[[1.0, 2.0, 6.0]]]))
    array([[[1.5, 4. ]]])
    """

    def __init__(self, output_size: Any) -> None:
        function = type(self).__name__
        several = sequence(output_size)
        sizes = tuple(output_size) if several else (output_size,) * 2
        if len(sizes) != 2:
            raise ValueError(f"{function}: output_size {sizes}: it must be an integer or a pair of integers or None")
        self._sizes = tuple(None if size is None else count(function, "output_size", size) for size in sizes)
        self.output_size = self._sizes if several else self._sizes[0]

    def _windows(self, shape: tuple[int, ...]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(start, stop) of every row of windows, and of every column."""
        check_maps(type(self).__name__, shape)
        if min(shape[-2:]) < 1:
            raise ValueError(f"{type(self).__name__}: input has shape {shape}: its height and width must be at least 1")
        both = []
        for extent, size in zip(shape[-2:], self._sizes, strict=True):
            parts = extent if size is None else size
            both.append([(i * extent // parts, -((-i - 1) * extent // parts)) for i in range(parts)])
        return both[0], both[1]

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = maps(self, input)
        rows, columns = self._windows(x.shape)
        if x.shape[-2] % len(rows) == x.shape[-1] % len(columns) == 0:  # windows that tile the map
            return functional.avg_pool2d(x, (x.shape[-2] // len(rows), x.shape[-1] // len(columns))), x.shape
        tall = np.stack([x[..., start:stop, :].mean(axis=-2) for start, stop in rows], axis=-2)
        output = np.stack([tall[..., start:stop].mean(axis=-1) for start, stop in columns], axis=-1)
        return output, x.shape

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        rows, columns = self._windows(saved)
        tall = np.zeros((*grad_output.shape[:-1], saved[-1]), grad_output.dtype)
        for j, (start, stop) in enumerate(columns):
            tall[..., start:stop] += grad_output[..., j : j + 1] / (stop - start)
        grad_input = np.zeros(saved, grad_output.dtype)
        for i, (start, stop) in enumerate(rows):
            grad_input[..., start:stop, :] += tall[..., i : i + 1, :] / (stop - start)
        return grad_input

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        rows, columns = self._windows(signal.shape)
        grid = len(rows), len(columns)
        extents = signal.shape[-2:]
        stride = tuple(Fraction(extent, parts) for extent, parts in zip(extents, grid, strict=True))
        # Window i lies in (i * stride - early, (i + 1) * stride + early): floor and ceil move its ends by less than 1
        early = tuple(1 - Fraction(math.gcd(extent, parts), parts) for extent, parts in zip(extents, grid, strict=True))
        kernel = tuple(step + 2 * more for step, more in zip(stride, early, strict=True))
        return signal.windows((*signal.shape[:-2], *grid), grid, kernel, stride, early), 0

    def _extra(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Layer):
    """Mean of every map: the same as ``AdaptiveAvgPool2d(1)``.

    Raises
    ------
    TypeError, ValueError
        When called, for an input of another rank or an empty map.

    Notes
    -----
    (N, C, H, W) -> (N, C, 1, 1), or (C, H, W) -> (C, 1, 1) for one image.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.GlobalAvgPool2d()(np.array([[[1.0, 2.0], [3.0, 6.0]]]))
    array([[[3.]]])
    """

    def _check(self, shape: tuple[int, ...]) -> None:
        check_maps(type(self).__name__, shape)
        if min(shape[-2:]) < 1:
            raise ValueError(f"{type(self).__name__}: input has shape {shape}: its height and width must be at least 1")

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = maps(self, input)
        self._check(x.shape)
        return x.mean(axis=(-2, -1), keepdims=True), x.shape

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return np.broadcast_to(grad_output / (saved[-2] * saved[-1]), saved).copy()

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        self._check(signal.shape)
        return signal.everything((*signal.shape[:-2], 1, 1)), 0


class ZeroPad2d(Layer):
    """Zeros around every map.

    Parameters
    ----------
    padding : int or four ints (left, right, top, bottom)
        torch's order; a negative number takes rows or columns off.

    Raises
    ------
    TypeError, ValueError
        For a padding of another form; when called, for an input of another rank, or if nothing is left.

    Notes
    -----
    (N, C, H, W) -> (N, C, top + H + bottom, left + W + right), or without the batch axis for one image.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.ZeroPad2d((1, 0, 0, 1))(np.array([[[5.0]]]))
    array([[[0., 5.],
            [0., 0.]]])
    """

    def __init__(self, padding: Any) -> None:
        function = type(self).__name__
        sides = tuple(padding) if sequence(padding) else (padding,) * 4
        if len(sides) != 4:
            raise ValueError(
                f"{function}: padding {shown(padding)}: it must be one integer or (left, right, top, bottom)"
            )
        self.padding = tuple(integer(function, "padding", side) for side in sides)

    def _plane(self, shape: tuple[int, ...]) -> tuple[int, int]:
        check_maps(type(self).__name__, shape)
        left, right, top, bottom = self.padding
        height, width = shape[-2] + top + bottom, shape[-1] + left + right
        if min(height, width) < 0:
            raise ValueError(f"{type(self).__name__}: padding {self.padding}: it leaves nothing of an input {shape}")
        return height, width

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = maps(self, input)
        self._plane(x.shape)
        return _framed(x, self.padding), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return _framed(grad_output, tuple(-side for side in self.padding))

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        height, width = self._plane(signal.shape)
        left, _, top, _ = self.padding
        return signal.windows((*signal.shape[:-2], height, width), (height, width), (1, 1), pads=(top, left)), 0

    def _extra(self) -> str:
        return f"{self.padding}"


def _framed(array: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """A copy with zeros around the last two axes, or less where a side is negative."""
    left, right, top, bottom = sides
    height, width = array.shape[-2:]
    output = np.zeros((*array.shape[:-2], height + top + bottom, width + left + right), array.dtype)
    target, source = [], []
    for extent, before, after in ((height, top, bottom), (width, left, right)):
        target.append(slice(max(before, 0), max(extent + before + min(after, 0), 0)))
        source.append(slice(max(-before, 0), max(extent - max(-after, 0), 0)))
    output[..., target[0], target[1]] = array[..., source[0], source[1]]
    return output
