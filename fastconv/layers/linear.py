"""Linear, Flatten, Identity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import functional
from fastconv._problem import flag, integer
from fastconv.layers import _initial
from fastconv.layers._base import Elementwise, Layer, axis_of, count, floats, same_dtype
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass

# In eval mode so few rows meet the weight as it stands: packing it would cost more than the product.
FEW = 8


def _product(left: np.ndarray, right: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """left @ right (+ bias, one number for each row) as a 1x1 convolution: ``right`` is an image of one row whose
    channels are its rows, ``left`` holds the filters. Unlike BLAS it gives the same bits on any number of threads.
    """
    if 0 in left.shape or 0 in right.shape:
        product = left @ right
        return product if bias is None else product + bias[:, None]
    return functional.conv2d(right[None, :, None], left[:, :, None, None], bias)[0, :, 0]


def _product_of_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left @ right.T, both read along their rows: the gradient of a 1x1 convolution's weight for one row of pixels."""
    size = (len(left), len(right), 1, 1)
    return functional.conv2d_grad_weight(right[None, :, None], size, left[None, :, None])[:, :, 0, 0]


class Linear(Layer):
    """Dense layer: y = x W^T + b over the last axis.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype, rng, init
        As in `Conv2d`.

    Attributes
    ----------
    weight : (out_features, in_features) array
    bias : (out_features,) array or None
    grad_weight, grad_bias : array or None

    Raises
    ------
    TypeError, ValueError
        For sizes below 1; when called, for an input of another last extent or dtype.

    Notes
    -----
    (..., in_features) -> (..., out_features).

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Linear(2, 1, bias=False, init=[[1, 10]], dtype="float64")(np.array([[3.0, 4.0]]))
    array([[43.]])
    """

    _parameter_names = ("weight", "bias")
    grad_weight: np.ndarray | None = None
    grad_bias: np.ndarray | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        rng: Any = None,
        init: Any = "kaiming_uniform",
    ) -> None:
        function = type(self).__name__
        self.in_features = count(function, "in_features", in_features)
        self.out_features = count(function, "out_features", out_features)
        kind = _initial.float_dtype(function, dtype)
        source = _initial.generator(function, rng)
        shape = (self.out_features, self.in_features)
        self.weight = _initial.weight(function, init, shape, kind, source)
        with_bias = flag(function, "bias", bias)
        self.bias = _initial.bias(init, shape, self.out_features, kind, source) if with_bias else None

    def _check_features(self, shape: tuple[int, ...]) -> None:
        if not shape or shape[-1] != self.in_features:
            raise ValueError(
                f"{type(self).__name__}: input has shape {shape}: its last axis must have {self.in_features} features"
            )

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        same_dtype(self, x, self.weight)
        self._check_features(x.shape)
        rows = x.reshape(-1, self.in_features)
        if rows.size and len(rows) < FEW and not self.training:
            columns = _product_of_rows(self.weight, rows)
            if self.bias is not None:
                columns += self.bias[:, None]
        else:
            columns = _product(self.weight, rows.T, self.bias)
        return np.ascontiguousarray(columns.T).reshape(*x.shape[:-1], self.out_features), (x, self.weight)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, weight = saved
        grads = grad_output.reshape(-1, self.out_features)
        if run.needs_parameters:
            grad_weight = _product(grads.T, x.reshape(-1, self.in_features))
            run.store(self, weight=grad_weight, bias=None if self.bias is None else grads.sum(axis=0))
        return _product(grads, weight).reshape(x.shape) if run.needs_input else None

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        self._check_features(signal.shape)
        shape = (*signal.shape[:-1], self.out_features)
        return signal.everything(shape), math.prod(shape) * self.in_features

    def _extra(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Flatten(Layer):
    """Merge neighbouring axes into one; by default all but the batch axis.

    Parameters
    ----------
    start_dim, end_dim : int
        First and last axis to merge.

    Raises
    ------
    TypeError, ValueError
        When called with an input that has no such axes.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Flatten()(np.ones((2, 3, 4, 5))).shape
    (2, 60)
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        self.start_dim = integer(type(self).__name__, "start_dim", start_dim)
        self.end_dim = integer(type(self).__name__, "end_dim", end_dim)

    def _flat(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        function = type(self).__name__
        start = axis_of(function, "start_dim", self.start_dim, len(shape))
        end = axis_of(function, "end_dim", self.end_dim, len(shape))
        if start > end:
            raise ValueError(f"{function}: start_dim {self.start_dim}: it must not lie behind end_dim {self.end_dim}")
        return (*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :])

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        return x.reshape(self._flat(x.shape)), x.shape

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return grad_output.reshape(saved)

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        return signal.like(self._flat(signal.shape)), 0

    def _extra(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Identity(Elementwise):
    """The input itself: a branch that changes nothing.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.Identity()(np.array([1.0]))
    array([1.])
    """

    def _forward(self, input: Any) -> tuple[Any, Any]:
        return floats(type(self).__name__, "input", input), None

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return grad_output
