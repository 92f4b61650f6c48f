"""ReLU, ReLU6, LeakyReLU, PReLU, Sigmoid, HardSwish, Softmax."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import _backends, functional
from fastconv._algorithms import elementwise
from fastconv._problem import integer
from fastconv.layers import _initial
from fastconv.layers._base import Elementwise, Layer, axis_of, count, floats, number, same_dtype
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass


class ReLU(Elementwise):
    """Rectified linear unit: y = max(x, 0), of any shape. NaN stays NaN; the gradient at 0 is 0.

    The rules of `backward` are defined here: "gradient" grad * (x > 0), "deconvnet" max(grad, 0),
    "guided" max(grad, 0) * (x > 0).

    Raises
    ------
    TypeError
        When called with anything but float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.ReLU()(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """

    def _forward(self, input: Any) -> tuple[Any, Any]:
        output = functional.relu(floats(type(self).__name__, "input", input))
        return output, output  # x > 0 where y > 0, and the next layer keeps y anyway

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return rectified(grad_output, saved, run)


class ReLU6(Elementwise):
    """y = min(max(x, 0), 6), of any shape. The gradient passes where 0 < x < 6.

    Rules of `backward` as in `ReLU`.

    Raises
    ------
    TypeError
        When called with anything but float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.ReLU6()(np.array([-1.0, 2.0, 9.0]))
    array([0., 2., 6.])
    """

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        output = np.clip(x, x.dtype.type(0), x.dtype.type(6))
        return output, output

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        below_6 = np.nextafter(saved.dtype.type(6), saved.dtype.type(0))
        return rectified(grad_output, saved, run, float(below_6))


def rectified(grad: np.ndarray, output: np.ndarray, run: BackwardPass, most: float = math.inf) -> np.ndarray:
    """What a rectifier sends back that gave ``output``; of its linear range ``most`` is the last."""
    grad = grad if run.owned else grad.copy()
    if run.rule != "gradient":
        np.maximum(grad, grad.dtype.type(0), out=grad)
    if run.rule != "deconvnet":
        elementwise.rectify(_backends.resolve(), output, most, grad)
    return grad


class LeakyReLU(Elementwise):
    """y = x where x > 0, else negative_slope * x; of any shape.

    Parameters
    ----------
    negative_slope : float

    Raises
    ------
    TypeError
        If the slope is no number; when called with anything but float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.LeakyReLU(0.5)(np.array([-1.0, 2.0]))
    array([-0.5,  2. ])
    """

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = number(type(self).__name__, "negative_slope", negative_slope)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        return np.where(x > 0, x, x * self.negative_slope), x

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return np.where(saved > 0, grad_output, grad_output * self.negative_slope)

    def _extra(self) -> str:
        return f"negative_slope={self.negative_slope}"


class PReLU(Layer):
    """y = x where x > 0, else weight * x, with a learned slope for all channels or for each.

    Parameters
    ----------
    num_parameters : int
        1, or the channels of the input (its axis 1).
    init : float
        First value of every slope.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight : (num_parameters,) array
    grad_weight : array or None

    Raises
    ------
    TypeError, ValueError
        When called with an input of another dtype or number of channels.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.PReLU(dtype="float64")(np.array([-1.0, 2.0]))
    array([-0.25,  2.  ])
    """

    _parameter_names = ("weight",)
    grad_weight: np.ndarray | None = None

    def __init__(self, num_parameters: int = 1, init: float = 0.25, *, dtype: Any = "float32") -> None:
        function = type(self).__name__
        self.num_parameters = count(function, "num_parameters", num_parameters)
        kind = _initial.float_dtype(function, dtype)
        self.weight = np.full(self.num_parameters, number(function, "init", init), kind)

    def _check_channels(self, shape: tuple[int, ...]) -> None:
        if self.num_parameters > 1 and (len(shape) < 2 or shape[1] != self.num_parameters):
            raise ValueError(
                f"{type(self).__name__}: input has shape {shape}: it must have {self.num_parameters} channels in axis 1"
            )

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        same_dtype(self, x, self.weight)
        self._check_channels(x.shape)
        slope = self.weight if self.num_parameters == 1 else self.weight.reshape(-1, *(1,) * (x.ndim - 2))
        return np.where(x > 0, x, x * slope), (x, slope)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, slope = saved
        if run.needs_parameters:
            shares = np.where(x > 0, x.dtype.type(0), grad_output * x)
            axes = None if self.num_parameters == 1 else tuple(axis for axis in range(x.ndim) if axis != 1)
            run.store(self, weight=shares.sum(axis=axes).reshape(self.weight.shape))
        return np.where(x > 0, grad_output, grad_output * slope)

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        self._check_channels(signal.shape)
        return signal, 0

    def _extra(self) -> str:
        return f"num_parameters={self.num_parameters}"


class Sigmoid(Elementwise):
    """y = 1 / (1 + exp(-x)), of any shape; no x overflows.

    Raises
    ------
    TypeError
        When called with anything but float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Sigmoid()(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        small = np.exp(-np.abs(x))
        output = np.where(x >= 0, x.dtype.type(1), small) / (1 + small)
        return output, output

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return grad_output * saved * (1 - saved)


class HardSwish(Elementwise):
    """y = x * min(max(x + 3, 0), 6) / 6, of any shape (Howard et al., "Searching for MobileNetV3", arXiv 1905.02244).

    Raises
    ------
    TypeError
        When called with anything but float32 or float64.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.HardSwish()(np.array([-4.0, 0.0, 1.5, 4.0]))
    array([-0.   ,  0.   ,  1.125,  4.   ])
    """

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        return x * (np.clip(x + 3, x.dtype.type(0), x.dtype.type(6)) / 6), x

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        slope = np.where(saved <= -3, saved.dtype.type(0), np.where(saved < 3, saved / 3 + 0.5, saved.dtype.type(1)))
        return grad_output * slope


class Softmax(Elementwise):
    """y = exp(x) / sum(exp(x)) along one axis; the largest x is subtracted first, so nothing overflows.

    Parameters
    ----------
    dim : int
        The axis that sums to 1; by default axis 1, the classes or channels.

    Raises
    ------
    TypeError, ValueError
        When called with anything but float32 or float64, or with too few axes.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Softmax()(np.array([[0.0, 0.0, 1000.0]]))
    array([[0., 0., 1.]])
    """

    def __init__(self, dim: int = 1) -> None:
        self.dim = integer(type(self).__name__, "dim", dim)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        axis_of(type(self).__name__, "dim", self.dim, x.ndim)
        output = np.exp(x - x.max(axis=self.dim, keepdims=True, initial=-np.inf))
        output /= output.sum(axis=self.dim, keepdims=True)
        return output, output

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return saved * (grad_output - (grad_output * saved).sum(axis=self.dim, keepdims=True))

    def _extra(self) -> str:
        return f"dim={self.dim}"
