"""Conv2d, Conv1d, ConvTranspose2d."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from fastconv import _backends, functional
from fastconv._algorithms import elementwise
from fastconv._arrays import as_floats, ready
from fastconv._packed import PackedWeight
from fastconv._problem import PADDING_MODES, ConvProblem, at_least, choice, flag, pair, resolve_padding
from fastconv.layers import _initial
from fastconv.layers._base import Layer, count, same_dtype
from fastconv.layers._summary import Signal
from fastconv.layers._tape import BackwardPass


class _Conv(Layer):
    """What the convolutions share; ``axes`` is the number of spatial axes."""

    _parameter_names = ("weight", "bias")
    _axes: ClassVar[int] = 2
    weight: np.ndarray
    bias: np.ndarray | None
    grad_weight: np.ndarray | None = None
    grad_bias: np.ndarray | None = None

    def _configure(self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups):  # type: ignore[no-untyped-def]
        function, axes = type(self).__name__, self._axes
        self.in_channels = count(function, "in_channels", in_channels)
        self.out_channels = count(function, "out_channels", out_channels)

        def sizes(name: str, value: Any, what: str) -> tuple[int, ...]:
            return at_least(function, name, pair(function, name, value, axes), 1, what)[-axes:]

        self.kernel_size = sizes("kernel_size", kernel_size, "extents")
        self.stride = sizes("stride", stride, "strides")
        self.dilation = sizes("dilation", dilation, "dilations")
        self.groups = count(function, "groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{function}: groups {self.groups}: it must divide the {self.in_channels} input channels and the "
                f"{self.out_channels} filters"
            )
        self.padding = self._checked_padding(function, padding)

    def _checked_padding(self, function: str, padding: Any) -> Any:
        """``padding`` as torch shows it, (height, width), or as pairs where the two sides differ."""
        top, bottom, left, right = resolve_padding(function, padding, (1, 1), (1, 1), (1, 1), (1, 1), self._axes)
        if isinstance(padding, str):
            return padding
        sides = ((top, bottom), (left, right))[-self._axes :]
        return tuple(low for low, _ in sides) if all(low == high for low, high in sides) else sides

    def _draw(self, shape: tuple[int, ...], bias: Any, dtype: Any, rng: Any, init: Any) -> None:
        function = type(self).__name__
        kind = _initial.float_dtype(function, dtype)
        source = _initial.generator(function, rng)
        self.weight = _initial.weight(function, init, shape, kind, source)
        with_bias = flag(function, "bias", bias)
        self.bias = _initial.bias(init, shape, self.out_channels, kind, source) if with_bias else None

    def _input(self, input: Any) -> np.ndarray:
        if (
            type(input) is np.ndarray and input.dtype is self.weight.dtype and input.ndim == self._axes + 2
            and input.shape[1] == self.in_channels and input.flags.carray
        ):  # fmt: skip
            return input
        function = type(self).__name__
        x = as_floats(function, "input", input)
        same_dtype(self, x, self.weight)
        self._check_channels(function, x.shape)
        return ready(x, x.shape)

    def _check_channels(self, function: str, shape: tuple[int, ...]) -> None:
        axes = self._axes
        if len(shape) not in (axes + 1, axes + 2):
            layout = "(N, C, H, W) or (C, H, W)" if axes == 2 else "(N, C, L) or (C, L)"
            raise ValueError(f"{function}: input has shape {shape}: it must be {layout}")
        if shape[-axes - 1] != self.in_channels:
            hint = ""
            if axes == 2 and shape[-1] == self.in_channels:
                hint = "; it looks like HWC, fastconv.from_images turns photographs into NCHW"
            raise ValueError(
                f"{function}: input has {shape[-axes - 1]} channels (shape {shape}): it must have "
                f"{self.in_channels}{hint}"
            )

    def _extra(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        if isinstance(self.padding, str):
            parts.append(f"padding={self.padding}")
        elif any(np.ravel(self.padding)):
            parts.append(f"padding={self.padding}")
        if any(step != 1 for step in self.dilation):
            parts.append(f"dilation={self.dilation}")
        if any(getattr(self, "output_padding", ())):
            parts.append(f"output_padding={self.output_padding}")  # type: ignore[attr-defined]
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if getattr(self, "padding_mode", "zeros") != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")  # type: ignore[attr-defined]
        return ", ".join(parts)


class Conv2d(_Conv):
    r"""2-D convolution (cross-correlation) with its own weight and bias: `fastconv.conv2d` as a layer.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input; number of filters.
    kernel_size : int or pair of int
    stride, dilation : int or pair of int
    padding : int, pair, pair of pairs ((top, bottom), (left, right)), "valid", "same" or "same_lower"
    groups : int
        Must divide both channel counts.
    bias : bool
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    dtype : {"float32", "float64"}
        Of the parameters, and so of the input.
    rng : numpy.random.Generator or int, optional
        Where the weights are drawn from; an int is a seed.
    init : str or array
        "kaiming_uniform" (torch's default: weight and bias uniform in +-1/sqrt(fan_in)), "kaiming_normal" (for ReLU),
        "xavier_uniform", "xavier_normal", "orthogonal", "zeros", or the weight itself, which is copied. The bias is
        zero for all but the first.

    Attributes
    ----------
    weight : (out_channels, in_channels/groups, KH, KW) array
        Read-only in eval mode, in which the layer keeps it packed for its kernels (see `pack_conv2d_weight`); `train`,
        or an assignment, gives it free.
    bias : (out_channels,) array or None
    grad_weight, grad_bias : array or None
        Left by `backward`.

    Raises
    ------
    TypeError, ValueError
        For arguments that make no convolution; when called, for an input of other channels or dtype, or one smaller
        than the kernel.

    Notes
    -----
    (N, IC, IH, IW) -> (N, OC, OH, OW), or without the batch axis for one image;
    OH = floor((IH + top + bottom - dilation * (KH - 1) - 1) / stride) + 1.

    .. math::
        y[n, o, i, j] = b[o] + \sum_{c, k, l} x[n, c, i s_h - p + k d_h, j s_w - p + l d_w]\, w[o, c, k, l]

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> conv = fastconv.Conv2d(3, 32, 3, padding=1, rng=0)
    >>> conv
    Conv2d(3, 32, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
    >>> y = conv(np.ones((1, 3, 8, 8), np.float32))
    >>> y.shape
    (1, 32, 8, 8)
    >>> conv.backward(np.ones_like(y)).shape, conv.grad_weight.shape
    ((1, 3, 8, 8), (32, 3, 3, 3))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        padding_mode: str = "zeros",
        dtype: Any = "float32",
        rng: Any = None,
        init: Any = "kaiming_uniform",
    ) -> None:
        self._configure(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.padding_mode = choice(type(self).__name__, "padding_mode", padding_mode, PADDING_MODES)
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        self._draw(shape, bias, dtype, rng, init)

    # In eval mode the weight is packed at the first forward, and locked so that the pack cannot grow stale.

    _pack: PackedWeight | None = None
    _folds: dict[Any, Any]  # by normalisation, see _folding.py; there as long as the pack

    def _mode_changed(self) -> None:
        self._unlock()
        if not self.training and "weight" in vars(self) and self.weight.flags.writeable:
            self.weight.flags.writeable = False
            self._pack, self._folds = PackedWeight(self.weight), {}

    def _unlock(self) -> None:
        if self._pack is not None:
            try:
                self._pack.source.flags.writeable = True
            except ValueError:  # its memory belongs to what cannot say so: a pickle's bytes, a tensor
                vars(self)["weight"] = self._pack.source.copy()
            self._pack = None
            vars(self).pop("_folds", None)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._unlock()
        super().__setattr__(name, value)
        if name == "training":
            self._mode_changed()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_pack", "_folds")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        for name in self._parameter_names:  # of NumPy's own dtype objects, for which calls look first
            array = vars(self)[name]
            if array is not None:
                vars(self)[name] = array.view(np.dtype(array.dtype.str))
        if not self.weight.flags.writeable:  # locked when it was pickled, and now a part of the pickle
            vars(self)["weight"] = self.weight.copy()
        self._mode_changed()

    def _forward(self, input: Any, *, activation: Any = None, fold: Any = None, pool: Any = None) -> tuple[Any, Any]:
        x = self._input(input)
        weight, bias = (self._pack or self.weight, self.bias) if fold is None else (fold.weight, fold.bias)
        if pool is not None:  # behind a ReLU, in eval mode: see _folding.py
            output = functional.conv2d_relu_max_pool2d(
                x, weight, bias, self.stride, self.padding, self.dilation, self.groups, pool.kernel_size, pool.stride,
                padding_mode=self.padding_mode,
            )  # fmt: skip
            return output, None
        output = functional.conv2d(
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, activation=activation,
        )  # fmt: skip
        return output, (x, self.weight)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, weight = saved
        grad_input, grad_weight, grad_bias = functional.conv2d_backward(
            grad_output, x, weight,
            stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
            padding_mode=self.padding_mode,
            needs=(run.needs_input, run.needs_parameters, run.needs_parameters and self.bias is not None),
        )  # fmt: skip
        run.store(self, weight=grad_weight, bias=grad_bias)
        return grad_input

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        function, shape = type(self).__name__, signal.shape
        self._check_channels(function, shape)
        problem = ConvProblem.from_args(
            function, shape, self.weight.shape, "float32", self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, axes=self._axes,
        )  # fmt: skip
        return signal.through(problem, self._axes), problem.macs


class Conv1d(Conv2d):
    """1-D convolution with its own weight and bias: `fastconv.conv1d` as a layer.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size, stride, dilation : int or sequence of one int
    padding : int, sequence of one int or of one pair ((left, right),), "valid", "same" or "same_lower"
    groups, bias, padding_mode, dtype, rng, init
        As in `Conv2d`.

    Attributes
    ----------
    weight : (out_channels, in_channels/groups, K) array
    bias : (out_channels,) array or None
    grad_weight, grad_bias : array or None

    Raises
    ------
    TypeError, ValueError
        As `Conv2d`.

    Notes
    -----
    (N, IC, L) -> (N, OC, OL), or (IC, L) -> (OC, OL) for one signal.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> difference = fastconv.Conv1d(1, 1, 2, bias=False, init=np.array([[[-1, 1]]]), dtype="float64")
    >>> difference(np.array([[1.0, 2.0, 4.0, 8.0]]))
    array([[1., 2., 4.]])
    """

    _axes = 1

    def _forward(self, input: Any, *, activation: Any = None) -> tuple[Any, Any]:  # type: ignore[override]
        x = self._input(input)
        output = functional.conv1d(
            x, self._pack or self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups,
            padding_mode=self.padding_mode, activation=activation,
        )  # fmt: skip
        return output, (x, self.weight)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, weight = saved
        padding = self.padding if isinstance(self.padding, str) else (0, *self.padding)
        grad_input, grad_weight, grad_bias = functional.conv2d_backward(
            grad_output[..., None, :], x[..., None, :], weight[..., None, :],
            stride=(1, *self.stride), padding=padding, dilation=(1, *self.dilation), groups=self.groups,
            padding_mode=self.padding_mode,
            needs=(run.needs_input, run.needs_parameters, run.needs_parameters and self.bias is not None),
        )  # fmt: skip
        run.store(self, weight=None if grad_weight is None else grad_weight.reshape(weight.shape), bias=grad_bias)
        return None if grad_input is None else grad_input.reshape(x.shape)


class ConvTranspose2d(_Conv):
    """Transposed 2-D convolution with its own weight and bias: `fastconv.conv_transpose2d` as a layer.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or pair of int
    stride : int or pair of int
    padding : int, pair, or pair of pairs
        Cells taken off each side of the output.
    output_padding : int or pair of int
        Rows and columns added at the bottom/right; smaller than stride or dilation.
    groups : int
    bias : bool
    dilation : int or pair of int
    dtype, rng, init
        As in `Conv2d`.

    Attributes
    ----------
    weight : (in_channels, out_channels/groups, KH, KW) array
    bias : (out_channels,) array or None
    grad_weight, grad_bias : array or None

    Raises
    ------
    TypeError, ValueError
        As `Conv2d`.

    Notes
    -----
    (N, IC, IH, IW) -> (N, OC, OH, OW), or without the batch axis for one image;
    OH = (IH - 1) * stride - top - bottom + dilation * (KH - 1) + output_padding + 1. It is the adjoint of `Conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> up = fastconv.ConvTranspose2d(16, 8, 2, stride=2)
    >>> up(np.ones((1, 16, 5, 5), np.float32)).shape
    (1, 8, 10, 10)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        dtype: Any = "float32",
        rng: Any = None,
        init: Any = "kaiming_uniform",
    ) -> None:
        self._configure(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        function = type(self).__name__
        if isinstance(self.padding, str):
            choice(function, "padding", self.padding, ("valid",))
        extra = pair(function, "output_padding", output_padding)
        self.output_padding = at_least(function, "output_padding", extra, 0, "output paddings")
        for more, step, dil in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if more >= max(step, dil):
                raise ValueError(
                    f"{function}: output_padding {self.output_padding}: it must be smaller than stride {self.stride} "
                    f"or dilation {self.dilation}"
                )
        shape = (self.in_channels, self.out_channels // self.groups, *self.kernel_size)
        self._draw(shape, bias, dtype, rng, init)

    def _forward(self, input: Any) -> tuple[Any, Any]:
        x = self._input(input)
        output = functional.conv_transpose2d(
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )
        return output, (x, self.weight)

    def _backward(self, grad_output: np.ndarray, saved: Any, run: BackwardPass) -> Any:
        x, weight = saved
        # The forward is the adjoint of a convolution from grad_output's plane to x's; cells of output_padding that no
        # window of that convolution reaches are taken off at the bottom/right.
        top, bottom, left, right = resolve_padding("", self.padding, (1, 1), (1, 1), (1, 1), (1, 1))
        (more_h, more_w), (step_h, step_w) = self.output_padding, self.stride
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": ((top, bottom - more_h // step_h * step_h), (left, right - more_w // step_w * step_w)),
            "dilation": self.dilation,
            "groups": self.groups,
        }
        if run.needs_parameters:
            grad_weight = functional.conv2d_grad_weight(grad_output, weight.shape, x, **geometry)
            maps = grad_output.reshape(-1, *grad_output.shape[-3:])
            grad_bias = None if self.bias is None else elementwise.map_sums(_backends.resolve(), maps)
            run.store(self, weight=grad_weight, bias=grad_bias)
        return functional.conv2d(grad_output, weight, **geometry) if run.needs_input else None

    def _trace(self, signal: Signal) -> tuple[Signal, int]:
        function = type(self).__name__
        self._check_channels(function, signal.shape)
        problem = ConvProblem.from_transpose_args(
            function, signal.shape, self.weight.shape, "float32", self.stride, self.padding, self.output_padding,
            self.groups, self.dilation,
        )  # fmt: skip
        shape = problem.input_shape if signal.ndim == 4 else problem.input_shape[1:]
        grown = signal.spread(
            shape, (problem.IH, problem.IW), (problem.KH, problem.KW), (problem.stride_h, problem.stride_w),
            (problem.pad_top, problem.pad_left), (problem.dil_h, problem.dil_w),
        )  # fmt: skip
        return grown, problem.macs
