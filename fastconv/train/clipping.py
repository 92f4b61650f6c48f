"""`clip_grad_norm`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from fastconv.layers import Layer
from fastconv.layers._base import number

BLOCK = 65536  # numbers, so that their squares stay in cache


def clip_grad_norm(net_or_grads: Any, max_norm: float) -> float:
    """Scale gradients in place so that their common 2-norm is at most `max_norm`.

    Parameters
    ----------
    net_or_grads : Layer, or array, or list of arrays or None
        A network after ``backward``, or gradients.
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm that they had.

    Raises
    ------
    TypeError, ValueError
        If `max_norm` is no number above 0, or a gradient no array of floats that can be written.

    Notes
    -----
    As torch: if the norm is larger than `max_norm`, all are multiplied by max_norm / (norm + 1e-6). The sum runs in
    float64, without BLAS, so its bits do not depend on threads.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> gradient = np.array([3.0, 4.0])
    >>> fastconv.train.clip_grad_norm([gradient], 1.0)
    5.0
    >>> gradient.round(3)
    array([0.6, 0.8])
    """
    max_norm = checked_norm("clip_grad_norm", "max_norm", max_norm)
    found: Any = [net_or_grads] if isinstance(net_or_grads, np.ndarray) else net_or_grads
    if isinstance(net_or_grads, Layer):
        found = net_or_grads.gradients()
    if not isinstance(found, Iterable):
        kind = type(net_or_grads).__name__
        raise TypeError(f"clip_grad_norm: net_or_grads is a {kind}: it must be a Layer or a list of arrays")
    gradients = [gradient for gradient in found if gradient is not None]
    for gradient in gradients:
        if not (isinstance(gradient, np.ndarray) and gradient.dtype.kind == "f" and gradient.flags.writeable):
            kind = gradient.dtype if isinstance(gradient, np.ndarray) else type(gradient).__name__
            raise TypeError(f"clip_grad_norm: a gradient is {kind}: it must be a writeable array of floats")
    total = 0.0
    for gradient in gradients:
        flat = gradient.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            total += float(np.square(flat[start : start + BLOCK], dtype=np.float64).sum())
    norm = math.sqrt(total)
    if norm > max_norm:
        for gradient in gradients:
            gradient *= max_norm / (norm + 1e-6)
    return norm


def checked_norm(function: str, name: str, value: Any) -> float:
    norm = number(function, name, value, finite=False)  # infinite: measure, and change nothing
    if norm <= 0:
        raise ValueError(f"{function}: {name} {norm:g}: it must be above 0")
    return norm
