"""Losses: each returns its value and its gradient in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv._arrays import as_array, as_floats


def softmax_cross_entropy(logits: Any, labels: Any) -> tuple[float, np.ndarray]:
    r"""Mean cross-entropy of the softmax of `logits`, and its gradient.

    Parameters
    ----------
    logits : (N, C) array of float
        One score for each class; no softmax before.
    labels : (N,) array of int
        In 0 .. C - 1.

    Returns
    -------
    loss : float
    grad_logits : (N, C) array

    Raises
    ------
    TypeError
        If `logits` are not float32 or float64, or `labels` not integers.
    ValueError
        If the shapes do not fit, the batch is empty, or a label is out of range.

    Notes
    -----
    .. math::
        L = \frac{1}{N} \sum_n \Big(\log \sum_c e^{z_{nc}} - z_{n y_n}\Big), \qquad
        \frac{\partial L}{\partial z_{nc}} = \frac{1}{N} \big(\mathrm{softmax}(z_n)_c - [c = y_n]\big)

    The largest logit of each row is subtracted first, so nothing overflows; NaN stays NaN.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> loss, grad = fastconv.train.softmax_cross_entropy(np.array([[1000.0, 0.0], [0.0, 0.0]]), [0, 1])
    >>> round(loss, 4)
    0.3466
    >>> grad
    array([[ 0.  ,  0.  ],
           [ 0.25, -0.25]])
    """
    function = "softmax_cross_entropy"
    z = as_floats(function, "logits", logits)
    if z.ndim != 2 or 0 in z.shape:
        raise ValueError(f"{function}: logits have shape {z.shape}: it must be (N, C), neither of them 0")
    y = checked_labels(function, labels, z.shape[0], z.shape[1])
    rows = np.arange(y.size)
    shifted = z - z.max(axis=1, keepdims=True)
    grad = np.exp(shifted)
    total = grad.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - shifted[rows, y], dtype=np.float64))
    grad /= total
    grad[rows, y] -= 1
    grad /= y.size
    return loss, grad


def checked_labels(function: str, labels: Any, n: int, classes: int) -> np.ndarray:
    """``labels`` as an (n,) array of integers in 0 .. classes - 1."""
    y = as_array(function, "labels", labels)
    if y.dtype.kind not in "iu":
        raise TypeError(f"{function}: labels have dtype {y.dtype}: they must be integers")
    if y.shape != (n,):
        raise ValueError(f"{function}: labels have shape {y.shape}: it must be ({n},), one for each image")
    if y.size and (y.min() < 0 or y.max() >= classes):
        worst = y.min() if y.min() < 0 else y.max()
        raise ValueError(
            f"{function}: label {worst}: it must lie in 0 .. {classes - 1}, the network has {classes} outputs"
        )
    return y


def mean_squared_error(output: Any, target: Any) -> tuple[float, np.ndarray]:
    r"""Mean of the squared differences, and its gradient.

    Parameters
    ----------
    output : array of float
    target : array of the same shape

    Returns
    -------
    loss : float
    grad_output : array
        2 (output - target) / size, in the dtype of `output`.

    Raises
    ------
    TypeError
        If one of them is not float32 or float64.
    ValueError
        If the shapes differ, or nothing is in them.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.train.mean_squared_error(np.array([1.0, 5.0]), np.array([1.0, 2.0]))
    (4.5, array([0., 3.]))
    """
    function = "mean_squared_error"
    out, wanted = as_floats(function, "output", output), as_floats(function, "target", target)
    if out.shape != wanted.shape:
        raise ValueError(f"{function}: output has shape {out.shape} and target {wanted.shape}: they must be equal")
    if out.size == 0:
        raise ValueError(f"{function}: output has shape {out.shape}: it must not be empty")
    grad = np.asarray(np.subtract(out, wanted, dtype=out.dtype.newbyteorder("=")))
    loss = float(np.mean(np.square(grad), dtype=np.float64))
    grad *= 2 / grad.size
    return loss, grad
