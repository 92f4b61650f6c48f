"""First values of weights: torch's formulas, from a seeded NumPy generator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv._arrays import FLOAT32, FLOAT64, as_array
from fastconv._problem import shown

INITS = ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal", "orthogonal", "zeros")


def float_dtype(function: str, dtype: Any) -> np.dtype:
    """``dtype`` as float32 or float64; else TypeError."""
    try:
        found = np.dtype(dtype).newbyteorder("=")
    except TypeError:
        found = None
    if dtype is None or found is None or found not in (FLOAT32, FLOAT64):
        raise TypeError(f"{function}: dtype is {shown(dtype)}: it must be 'float32' or 'float64'")
    return FLOAT32 if found == FLOAT32 else FLOAT64  # the very objects that calls look for first


def generator(function: str, rng: Any) -> np.random.Generator:
    """``rng`` as a generator: one that exists, a seed, or None for an unpredictable one."""
    if not isinstance(rng, (bool, np.bool_, str)):
        try:
            return np.random.default_rng(rng)
        except (TypeError, ValueError):
            pass
    raise TypeError(
        f"{function}: rng is {shown(rng)}: it must be a numpy.random.Generator, a seed of at least 0, or None"
    )


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight, as torch counts them: axes 1 and 0 times the cells of a kernel."""
    cells = math.prod(shape[2:])
    return shape[1] * cells, shape[0] * cells


def weight(function: str, init: Any, shape: tuple[int, ...], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """A new weight of ``shape``: drawn as ``init`` names it, or a copy of ``init`` if it is an array.

    Drawn in float64 and rounded, so that one seed means the same weights in both dtypes.
    """
    if isinstance(init, str):
        if init not in INITS:
            raise ValueError(f"{function}: init {init!r}: it must be an array or one of {', '.join(map(repr, INITS))}")
        return _drawn(init, shape, rng).astype(dtype)
    if init is None or not (hasattr(init, "__array__") or isinstance(init, (list, tuple))):
        raise TypeError(
            f"{function}: init is a {type(init).__name__}: it must be an array or one of {', '.join(map(repr, INITS))}"
        )
    values = as_array(function, "init", init)
    if values.dtype.kind not in "fiu":
        raise TypeError(f"{function}: init has dtype {values.dtype}: it must hold real numbers")
    if values.shape != shape:
        raise ValueError(f"{function}: init has shape {values.shape}: it must be that of the weight, {shape}")
    return np.array(values, dtype=dtype, order="C")


def _drawn(init: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    fan_in, fan_out = fans(shape)
    if init == "zeros" or fan_in == 0:
        return np.zeros(shape)
    if init == "kaiming_uniform":  # torch's default, a = sqrt(5): gain**2 = 2 / (1 + a**2) = 1/3
        bound = 1 / math.sqrt(fan_in)
        return rng.uniform(-bound, bound, shape)
    if init == "kaiming_normal":  # for ReLU: gain**2 = 2
        return rng.normal(0, math.sqrt(2 / fan_in), shape)
    if init == "xavier_uniform":
        bound = math.sqrt(6 / (fan_in + fan_out))
        return rng.uniform(-bound, bound, shape)
    if init == "xavier_normal":
        return rng.normal(0, math.sqrt(2 / (fan_in + fan_out)), shape)
    rows, columns = shape[0], fan_in
    tall, upper = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    tall *= np.where(np.diagonal(upper) < 0, -1.0, 1.0)  # makes the draw uniform over orthogonal matrices
    return np.ascontiguousarray(tall if rows >= columns else tall.T).reshape(shape)


def bias(init: Any, weight_shape: tuple[int, ...], size: int, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """A new bias: torch's uniform in +-1/sqrt(fan_in) beside the default weight, zeros beside any other."""
    fan_in, _ = fans(weight_shape)
    if not (isinstance(init, str) and init == "kaiming_uniform") or fan_in == 0:
        return np.zeros(size, dtype)
    bound = 1 / math.sqrt(fan_in)
    return rng.uniform(-bound, bound, size).astype(dtype)
