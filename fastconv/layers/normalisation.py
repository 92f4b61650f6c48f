"""BatchNorm2d, LocalResponseNorm, Dropout."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import _backends
from fastconv._algorithms import elementwise
from fastconv._arrays import contiguous
from fastconv._problem import flag, resolve_activation
from fastconv.layers import _initial
from fastconv.layers._base import Elementwise, Layer, batch, count, floats, number, same_dtype
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass


class BatchNorm2d(Layer):
    r"""Batch normalisation of every channel (Ioffe and Szegedy, arXiv 1502.03167).

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
    momentum : float or None
        Weight of the batch in the running statistics; None: plain mean of all batches.
    affine : bool
        Learn ``weight`` and ``bias``.
    track_running_stats : bool
        Keep running statistics, for eval mode; without them the batch's own are used in both modes.
    dtype : {"float32", "float64"}

    Attributes
    ----------
    weight, bias : (num_features,) array or None
    running_mean, running_var : (num_features,) array or None
    num_batches_tracked : 0-d int64 array or None
    grad_weight, grad_bias : array or None

    Raises
    ------
    TypeError, ValueError
        When called, for an input that is not (N, num_features, H, W) of the layer's dtype; where the batch's statistics
        are used (train mode), also for one that has a single value per channel.

    Notes
    -----
    .. math::
        y = w \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + b

    In train mode mean and (biased) variance are the batch's, and the running ones move towards them:
    running = (1 - momentum) * running + momentum * batch, with the unbiased variance. In eval mode they are the
    running ones.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> norm = fastconv.BatchNorm2d(1, dtype="float64")
    >>> norm(np.array([[[[1.0, 3.0]]]])).round(3)
    array([[[[-1.,  1.]]]])
    >>> norm.running_mean, norm.running_var
    (array([0.2]), array([1.1]))
    """

    _parameter_names = ("weight", "bias")
    _buffer_names = ("running_mean", "running_var", "num_batches_tracked")
    grad_weight: np.ndarray | None = None
    grad_bias: np.ndarray | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        function = type(self).__name__
        self.num_features = count(function, "num_features", num_features)
        self.eps = number(function, "eps", eps, 0)
        self.momentum = None if momentum is None else number(function, "momentum", momentum, 0, 1)
        self.affine = flag(function, "affine", affine)
        self.track_running_stats = flag(function, "track_running_stats", track_running_stats)
        kind = _initial.float_dtype(function, dtype)
        C = self.num_features
        self.weight = np.ones(C, kind) if self.affine else None
        self.bias = np.zeros(C, kind) if self.affine else None
        self.running_mean = np.zeros(C, kind) if self.track_running_stats else None
        self.running_var = np.ones(C, kind) if self.track_running_stats else None
        self.num_batches_tracked = np.array(0, np.int64) if self.track_running_stats else None

    def _forward(self, input: Any, *, activation: Any = None) -> tuple[Any, Any]:
        x = batch(self, input, self.num_features)
        for name in (*self._parameter_names, "running_mean", "running_var"):
            self._check_own(x, name)
        of_batch = self.training or self.running_mean is None
        count = x.size // self.num_features
        if of_batch and count <= 1:
            raise ValueError(
                f"{type(self).__name__}: input has shape {x.shape}: statistics of a batch need more than one value per "
                "channel"
            )
        # Copies, which a later forward does not change
        kept = np.empty((2, self.num_features), x.dtype)
        if not of_batch:
            kept[:] = self.running_mean, self.running_var
        statistics, affine = (kept[0], kept[1]), self._affine(x.dtype)
        bounds = resolve_activation(type(self).__name__, activation)
        output = elementwise.normalise(_kernels(x), x, affine, of_batch, self.eps, bounds, statistics)
        if self.training and self.running_mean is not None:
            self._follow(*statistics, count)
        return output, (x, affine[0], statistics, of_batch)

    def _check_own(self, x: np.ndarray, name: str) -> None:
        """Anybody may have put another array in the place of a parameter or a statistic."""
        own = getattr(self, name)
        if own is None:
            return
        if np.shape(own) != (self.num_features,):
            raise ValueError(
                f"{type(self).__name__}: {name} has shape {np.shape(own)}: it must be ({self.num_features},)"
            )
        same_dtype(self, x, own)

    def _affine(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias, or what leaves everything as it is."""
        weight = np.ones(self.num_features, dtype) if self.weight is None else contiguous(self.weight, dtype)
        bias = np.zeros(self.num_features, dtype) if self.bias is None else contiguous(self.bias, dtype)
        return weight, bias

    def _follow(self, mean: np.ndarray, variance: np.ndarray, count: int) -> None:
        """Move the running statistics towards a batch's."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        factor = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean *= 1 - factor
        self.running_mean += factor * mean
        self.running_var *= 1 - factor
        self.running_var += factor * variance * (count / (count - 1))

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, weight, statistics, of_batch = saved
        grad_weight, grad_bias, grad_input = elementwise.normalise_backward(
            _kernels(x), grad_output, x, weight, statistics, of_batch, self.eps, run.needs_input
        )
        if run.needs_parameters:
            run.store(
                self,
                weight=None if self.weight is None else grad_weight,
                bias=None if self.bias is None else grad_bias,
            )
        return grad_input

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        if len(signal.shape) != 4 or signal.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__}: input has shape {signal.shape}: it must be (N, {self.num_features}, H, W)"
            )
        return signal, 0

    def _extra(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


def _kernels(maps: np.ndarray) -> Any:
    """NumPy's loops run along channels: they are the faster ones where many channels share a cache line."""
    N, _, H, W = maps.shape
    return _backends.kernels("reference") if N > 1 and H * W <= 2 else _backends.resolve()


class LocalResponseNorm(Elementwise):
    r"""Local response normalisation across channels (Krizhevsky et al., "ImageNet classification ...", NIPS 2012).

    Parameters
    ----------
    size : int
        Neighbouring channels that are summed.
    alpha, beta, k : float

    Raises
    ------
    TypeError, ValueError
        For a size below 1; when called, for an input that is not (N, C, H, W).

    Notes
    -----
    .. math::
        y_c = x_c \Big(k + \frac{\alpha}{size} \sum_{c' = c - \lfloor size/2 \rfloor}^{c + \lfloor (size-1)/2 \rfloor}
        x_{c'}^2\Big)^{-\beta}

    as in torch, whose alpha is that of the paper times `size`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.LocalResponseNorm(2, alpha=2.0, beta=1.0)(np.array([[[[1.0]], [[2.0]]]])).round(3).ravel()
    array([0.5  , 0.333])
    """

    def __init__(self, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> None:
        function = type(self).__name__
        self.size = count(function, "size", size)
        self.alpha = number(function, "alpha", alpha)
        self.beta = number(function, "beta", beta)
        self.k = number(function, "k", k)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = batch(self, input)
        base = _over_channels(np.square(x), self.size // 2, (self.size - 1) // 2)
        base *= self.alpha / self.size
        base += self.k
        output = x * base**-self.beta
        return output, (x, base, output)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, base, output = saved
        shares = _over_channels(grad_output * output / base, (self.size - 1) // 2, self.size // 2)
        return grad_output * base**-self.beta - (2 * self.alpha * self.beta / self.size) * x * shares

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        if len(signal.shape) != 4:
            raise ValueError(f"{type(self).__name__}: input has shape {signal.shape}: it must be (N, C, H, W)")
        return signal, 0

    def _extra(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


def _over_channels(array: np.ndarray, before: int, after: int) -> np.ndarray:
    """Sum over the channels c - before .. c + after of (N, C, H, W)."""
    C = array.shape[1]
    total = array.copy()
    for offset in range(1, min(before, C - 1) + 1):
        total[:, offset:] += array[:, :-offset]
    for offset in range(1, min(after, C - 1) + 1):
        total[:, :-offset] += array[:, offset:]
    return total


class Dropout(Elementwise):
    """In train mode, set numbers to zero with probability `p` and divide the rest by 1 - p; of any shape.

    Parameters
    ----------
    p : float
        In 0 .. 1.
    rng : numpy.random.Generator or int, optional
        Where the masks are drawn from; an int is a seed.

    Attributes
    ----------
    rng : numpy.random.Generator

    Raises
    ------
    TypeError, ValueError
        For a `p` outside 0 .. 1; when called with anything but float32 or float64.

    Notes
    -----
    In eval mode the output is the input. Srivastava et al., "Dropout", JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> sorted(set(fastconv.Dropout(0.5, rng=0)(np.ones(100)).tolist()))
    [0.0, 2.0]
    """

    def __init__(self, p: float = 0.5, *, rng: Any = None) -> None:
        function = type(self).__name__
        self.p = number(function, "p", p, 0, 1)
        self.rng = _initial.generator(function, rng)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = floats(type(self).__name__, "input", input)
        if not self.training or self.p == 0:
            return x, None
        kept = self.rng.random(x.shape) >= self.p
        return self._masked(x, kept), kept

    def _masked(self, array: np.ndarray, kept: np.ndarray) -> np.ndarray:
        zero = array.dtype.type(0)
        return np.where(kept, array / (1 - self.p), zero) if self.p < 1 else np.zeros_like(array)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        return grad_output if saved is None else self._masked(grad_output, saved)

    def _extra(self) -> str:
        return f"p={self.p}, inplace=False"
