"""What a layer takes over from those behind it.

A convolution and the batch normalisation behind it are one convolution in eval mode. Both are linear maps of each channel:
with scale = weight / sqrt(running_var + eps) of the normalisation, the convolution's weight * scale and
(bias - running_mean) * scale + norm's bias give what both give, up to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import _backends, functional
from fastconv._algorithms import elementwise
from fastconv._arrays import FLOAT32, FLOAT64, ready
from fastconv._packed import PackedWeight
from fastconv._plan import known_plans
from fastconv._problem import ConvProblem, resolve_activation
from fastconv.layers._tape import tape, watched
from fastconv.layers.activation import ReLU, ReLU6
from fastconv.layers.convolution import Conv1d, Conv2d
from fastconv.layers.normalisation import BatchNorm2d
from fastconv.layers.pooling import MaxPool2d

ACTIVATIONS: dict[Any, str] = {ReLU: "relu", ReLU6: "relu6"}  # that kernels of the layer before apply themselves
RECTIFY = (Conv2d, Conv1d, BatchNorm2d)  # whose kernels they are
RECTIFIERS = (*ACTIVATIONS, type(None))
LEAVES_CACHE = 1 << 21  # bytes of maps, which are worth pooling before they are stored,
LARGE_MAP = 1 << 10  # if they have so many cells each


class Fold:
    """The weight and the bias of a convolution with a normalisation in them."""

    def __init__(self, conv: Conv2d, norm: BatchNorm2d) -> None:
        self._pack, self._eps = conv._pack, norm.eps
        self._bytes = [None if array is None else array.tobytes() for array in _others(conv, norm)]
        dtype, mean, variance = conv.weight.dtype, norm.running_mean, norm.running_var
        assert mean is not None and variance is not None
        scale = 1 / np.sqrt(variance + np.float64(norm.eps), dtype=np.float64)
        if norm.weight is not None:
            scale *= norm.weight
        shift = -scale * mean if conv.bias is None else scale * (conv.bias - mean.astype(np.float64))
        if norm.bias is not None:
            shift += norm.bias
        self.weight = PackedWeight((conv.weight * scale[:, None, None, None]).astype(dtype))
        self.bias = shift.astype(dtype)

    def run(self, conv: Conv2d, x: np.ndarray, activation: str | None) -> Any:
        """``conv``, a layer that `fold` gave this for, on (N, C, H, W).

        Without the calls between a layer and its plan, which in a network of small layers take as long as some of them.
        """
        dtype = x.dtype
        native = (dtype is FLOAT32 or dtype is FLOAT64) and dtype is self.bias.dtype
        if not native or x.shape[1] != conv.in_channels or not x.flags.carray:
            return conv(x, fold=self, activation=activation)
        arguments = conv.stride, conv.padding, conv.dilation, conv.groups
        key = (
            Fold, x.shape, self.weight.shape, dtype.char, activation, functional.freeze(arguments), conv.padding_mode,
            _backends.settings(),
        )  # fmt: skip
        plan = known_plans.get(key)
        if plan is None:
            output = conv(x, fold=self, activation=activation)  # which checks it all
            problem = ConvProblem.from_args(
                "conv2d", x.shape, self.weight.shape, dtype.name, *arguments, padding_mode=conv.padding_mode,
                bias_shape=self.bias.shape, activation=activation,
            )  # fmt: skip
            functional.kept(key, functional.plan_conv2d(problem, packed=True))
            return output
        output = np.empty(plan.output_shape, dtype)
        plan.run((x, self.weight.packed_for(plan), self.bias), (output,))
        return output

    def fits(self, conv: Conv2d, norm: BatchNorm2d) -> bool:
        """Whether nothing has changed since: the convolution's weight is locked, all else is compared."""
        if self._pack is not conv._pack or self._eps != norm.eps:
            return False
        return self._bytes == [None if array is None else array.tobytes() for array in _others(conv, norm)]


def _others(conv: Conv2d, norm: BatchNorm2d) -> tuple[Any, ...]:
    """The arrays that the result depends on, but the convolution's weight."""
    return conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var


def fold(conv: Any, norm: Any, input: Any) -> Fold | None:
    """The two as one convolution, which ``conv`` keeps; None unless both are in eval mode and nobody looks in between."""
    if not (
        tape.running is None
        and type(conv) is Conv2d
        and type(norm) is BatchNorm2d
        and conv._pack is not None
        and not norm.training
        and norm.running_mean is not None
        and norm.running_mean.dtype == conv.weight.dtype
        and norm.num_features == conv.out_channels
        and type(input) is np.ndarray
        and input.ndim == 4
    ):
        return None
    kept: Fold | None = conv._folds.get(norm)
    if kept is None or not kept.fits(conv, norm):
        kept = conv._folds[norm] = Fold(conv, norm)
    return kept


def pools(conv: Any, relu: Any, pool: Any, x: Any) -> bool:
    """Whether ``pool(relu(conv(x)))`` is one pass: nobody looks in between, windows tile the maps, which would leave the cache."""
    if type(conv) is not Conv2d or type(relu) is not ReLU or type(pool) is not MaxPool2d or tape.running is not None:
        return False
    if type(x) is not np.ndarray or x.ndim != 4 or pool.return_indices or pool.ceil_mode:
        return False
    if pool.kernel_size != pool.stride or pool.padding not in (0, (0, 0)) or pool.dilation not in (1, (1, 1)):
        return False
    cells = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
    return cells >= LARGE_MAP and x.shape[0] * conv.out_channels * cells * x.itemsize >= LEAVES_CACHE


def unit(conv: Any, norm: Any, rectifier: Any, x: Any) -> Any:
    """``rectifier(norm(conv(x)))``, without the last if it is None."""
    folded = fold(conv, norm, x)
    if folded is not None:
        return folded.run(conv, x, ACTIVATIONS.get(type(rectifier)))
    x = conv(x)
    if rectifies(norm, rectifier):
        return rectified_by(rectifier, norm(x, activation=ACTIVATIONS[type(rectifier)]))
    x = norm(x)
    return x if rectifier is None else rectifier(x)


def joined(term: Any, total: Any, last: Any, rectifier: Any = None) -> Any:
    """``rectifier(total + term)``; ``last`` is the layer that gave ``total``.

    What a BatchNorm2d gives is new and known to nobody else, unless somebody watches: the sum takes its place.
    """
    own = type(last) is BatchNorm2d and type(total) is np.ndarray and not watched()
    if not own or total.shape != term.shape or total.dtype != term.dtype or type(rectifier) not in RECTIFIERS:
        total = total + term
        return total if rectifier is None else rectifier(total)
    bounds = resolve_activation("joined", ACTIVATIONS.get(type(rectifier)))
    elementwise.add(_backends.resolve(), ready(term, term.shape), bounds, total)
    return total if rectifier is None else rectified_by(rectifier, total)


def rectifies(layer: Any, rectifier: Any) -> bool:
    """Whether ``layer`` may apply the rectifier behind it in its last pass: nobody looks in between."""
    return type(layer) in RECTIFY and type(rectifier) in ACTIVATIONS and not watched()


def rectified_by(rectifier: Any, output: Any) -> Any:
    """``output`` of a layer that has applied ``rectifier`` itself, which goes on the tape as if it had run."""
    if tape.running is not None:
        tape.running.push(rectifier, output, output)
    return output
