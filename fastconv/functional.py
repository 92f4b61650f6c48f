"""The public functions. Each body reads: check -> plan -> run.

Names, order and meaning of the arguments are torch's. Arrays are NCHW; an input without the batch axis is one image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import _backends, _threads
from fastconv._algorithms import NO_INDICES, elementwise
from fastconv._arrays import (
    FLOAT32,
    FLOAT64,
    INT64,
    NO_BIAS,
    as_floats,
    as_indices,
    as_ndarray,
    check_index_range,
    check_out,
    contiguous,
    ready,
    ready_indices,
    same_dtype,
)
from fastconv._packed import PackedWeight
from fastconv._plan import THREAD_WORK, Plan, known_plans, most_workers, plan_conv2d, plan_pool2d
from fastconv._problem import (
    ConvProblem,
    PoolProblem,
    addressable,
    at_least,
    flag,
    image_shape,
    integer,
    pair,
    resolve_padding,
    sequence,
    shown,
    size_4d,
)

__all__ = [
    "avg_pool2d",
    "avg_pool2d_backward",
    "col2im",
    "conv1d",
    "conv2d",
    "conv2d_backward",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv2d_relu_max_pool2d",
    "conv_transpose2d",
    "from_images",
    "im2col",
    "max_pool1d",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "pack_conv2d_weight",
    "relu",
]

# ------------------------------------------------------------------------------------------- plan and run

MOST_PLANS = 4096  # a plan weighs a few KB


def freeze(value: Any) -> Any:
    """``value`` as a key that tells 1 from True and 1.0, and holds lists as tuples."""
    kind = type(value)
    if kind is int or kind is str or value is None:
        return value
    if kind is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:  # what layers have
        return value
    if kind is tuple or kind is list:
        return tuple([freeze(item) for item in value])
    return kind, value


FROZEN_FALSE = freeze(False)


def _planned(key: tuple[Any, ...], make: Callable[[], Plan]) -> Plan:
    """The plan made for the same raw arguments before, else a new one."""
    key = (*key, _backends.settings())
    try:
        plan = known_plans.get(key)
    except TypeError:  # an argument without a hash, such as an array of two strides
        return make()
    return kept(key, make()) if plan is None else plan


def kept(key: tuple[Any, ...], plan: Plan) -> Plan:
    """``plan``, found again by ``key`` if that has a hash."""
    if len(known_plans) >= MOST_PLANS:
        known_plans.clear()
    try:
        known_plans[key] = plan
    except TypeError:
        pass
    return plan


def _result_shape(plan: Plan, ndim: int, axes: int) -> tuple[int, ...]:
    """The shape a caller expects whose array had ``ndim`` axes (``axes`` of them spatial)."""
    shape = plan.output_shape
    if axes == 1:
        shape = (*shape[:2], shape[3])
    return shape if ndim == axes + 2 else shape[1:]


def _run(
    function: str,
    plan: Plan,
    arrays: tuple[tuple[np.ndarray | None, tuple[int, ...]], ...],
    shape: tuple[int, ...],
    out: Any = None,
) -> np.ndarray:
    """Run ``plan`` on (array, shape that the kernel reads) pairs; a result of ``shape``, in ``out`` if given."""
    in_place = False
    if out is not None:  # before anything is copied
        in_place = check_out(function, out, shape, plan.problem.dtype, tuple([array for array, _ in arrays]))
    operands = tuple([None if array is None else ready(array, wanted) for array, wanted in arrays])
    if out is None:
        result = plan(*operands)
        return result if result.shape == shape else result.reshape(shape)
    if in_place:
        plan(*operands, out=out.reshape(plan.output_shape))
    else:
        out[...] = plan(*operands).reshape(shape)
    return out


# -------------------------------------------------------------------------------------------- convolution


def conv2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    r"""2-D convolution (cross-correlation) of a batch of images with a set of filters.

    Parameters
    ----------
    input : (N, IC, IH, IW) or (IC, IH, IW) array of float32 or float64
        Anything with ``__array__`` or a CPU ``__dlpack__``.
    weight : (OC, IC/groups, KH, KW) array of the same dtype, or what `pack_conv2d_weight` made of it
    bias : (OC,) array of the same dtype, optional
    stride, dilation : int or pair of int
        At least 1; dilation 1 means none.
    padding : int, pair, pair of pairs ((top, bottom), (left, right)), "valid", "same" or "same_lower"
        Cells added to each side (a negative number crops). With "same" OH = ceil(IH / stride), the odd cell at the
        bottom/right; "same_lower" puts it at the top/left.
    groups : int
        Divides both channel counts; filter ``oc`` sees the channels of its own group alone.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    activation : None, "relu", "relu6" or pair (low, high)
        Clamp applied to the result; NaN stays NaN.
    algorithm : {"auto", "im2col", "direct", "winograd", "winograd_wide", "winograd_f2", "winograd_f4", "winograd_f6"}
        "auto" takes the fastest by estimate. "winograd" (3 x 3, stride 1, dilation 1) multiplies 2 to 5 times less than
        the others and rounds more; it chooses between output tiles of 2 x 2 and 4 x 4, "winograd_f2" ... force a tile.
        "winograd_wide" is the same for 5 x 5, and for stride S = 2, 3, 4 and kernels of 2 S + 1 to 3 S rows and columns:
        2.8 to 4 times less, as exact as a tile of 4 x 4.
    backend : {"auto", "cython", "numba", "reference"}
    out : (N, OC, OH, OW) array, optional
        Takes the result; must not overlap an input.

    Returns
    -------
    (N, OC, OH, OW) array, or (OC, OH, OW) for one image
        OH = floor((IH + top + bottom - dilation * (KH - 1) - 1) / stride) + 1, OW alike.

    Raises
    ------
    TypeError
        For dtypes other than float32 and float64, mixed dtypes, or arguments that are not numbers.
    ValueError
        For shapes that do not fit, strides or dilations below 1, a kernel larger than the padded input, unknown names,
        an algorithm that refuses, or an `out` that does not fit.

    Notes
    -----
    .. math::
        out[n, o, i, j] = bias[o] +
        \sum_{c, k, l} x[n, c, i s_h - p_{top} + k d_h, j s_w - p_{left} + l d_w]\, w[o, c, k, l]

    with x zero (or continued by `padding_mode`) outside the image: Dumoulin and Visin, "A guide to convolution
    arithmetic for deep learning", arXiv 1603.07285.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.arange(16.0).reshape(1, 1, 4, 4)
    >>> right_minus_left = np.array([[[[-1.0, 0.0, 1.0]]]])
    >>> fastconv.conv2d(x, right_minus_left)
    array([[[[2., 2.],
             [2., 2.],
             [2., 2.],
             [2., 2.]]]])
    """
    return _conv("conv2d", 2, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation,
                 algorithm, backend, out)  # fmt: skip


def conv1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    activation: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """1-D convolution (cross-correlation): `conv2d` of images of height 1.

    Parameters
    ----------
    input : (N, IC, L) or (IC, L) array of float32 or float64
    weight : (OC, IC/groups, K) array of the same dtype
    bias : (OC,) array of the same dtype, optional
    stride, dilation : int or sequence of one int
    padding : int, sequence of one int or of one pair ((left, right),), "valid", "same" or "same_lower"
    groups, padding_mode, activation, algorithm, backend, out
        As in `conv2d`.

    Returns
    -------
    (N, OC, OL) array, or (OC, OL) for one signal

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv1d(np.array([[1.0, 2.0, 4.0, 8.0]]), np.array([[[-1.0, 1.0]]]))
    array([[1., 2., 4.]])
    """
    return _conv("conv1d", 1, input, weight, bias, stride, padding, dilation, groups, padding_mode, activation,
                 algorithm, backend, out)  # fmt: skip


def _conv(
    function: str,
    axes: int,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    activation: Any,
    algorithm: str,
    backend: str,
    out: Any,
) -> np.ndarray:
    # Written out for the sake of small calls: for plain arrays of a known plan nothing is called here but what reads this
    # thread's settings
    x, w, b = input, weight, bias
    packed = type(weight) is PackedWeight
    if packed:
        w = weight.source
    plain = (
        type(x) is type(w) is np.ndarray and (x.dtype is FLOAT32 or x.dtype is FLOAT64) and w.dtype is x.dtype
        and (b is None or (type(b) is np.ndarray and b.dtype is x.dtype))
    )  # fmt: skip
    if not plain:
        x = as_floats(function, "input", input)
        w = w if packed else as_floats(function, "weight", weight)
        b = None if bias is None else as_floats(function, "bias", bias)
        same_dtype(function, input=x, weight=w, bias=b)
    bias_shape = None if b is None else b.shape
    key = (
        function, x.shape, w.shape, x.dtype.char, bias_shape, packed,
        stride if type(stride) is int else freeze(stride), padding if type(padding) is int else freeze(padding),
        dilation if type(dilation) is int else freeze(dilation), groups if type(groups) is int else freeze(groups),
        padding_mode, activation if activation is None or type(activation) is str else freeze(activation), algorithm, backend,
        _backends.settings(),
    )  # fmt: skip
    try:
        plan = known_plans[key]
    except (KeyError, TypeError):
        problem = ConvProblem.from_args(
            function, x.shape, w.shape, x.dtype.name, stride, padding, dilation, groups,
            padding_mode=padding_mode, bias_shape=bias_shape, activation=activation, axes=axes,
        )  # fmt: skip
        plan = kept(key, _plan(function, problem, algorithm, backend, packed=packed))
    problem = plan.problem
    as_they_are = (
        plain and axes == 2 and x.ndim == 4
        and x.flags.carray and (packed or w.flags.carray) and (b is None or b.flags.carray)
    )  # fmt: skip
    if as_they_are:  # what `_run` does for arrays that kernels can read and write as they are
        if out is None:
            result = np.empty(plan.output_shape, x.dtype)
        else:
            result = out
            as_they_are = check_out(function, out, plan.output_shape, problem.dtype, (x, w, b))
    if packed:
        w = weight.packed_for(plan)
    if as_they_are:
        plan.run((x, w, NO_BIAS[problem.dtype] if b is None else b), (result,))
        return result
    operands = ((x, problem.input_shape), (w, w.shape if packed else problem.weight_shape), (b, (problem.OC,)))
    return _run(function, plan, operands, _result_shape(plan, x.ndim, axes), out)


def _plan(
    function: str, problem: ConvProblem, algorithm: str, backend: str, op: str = "forward", packed: bool = False
) -> Plan:
    """`plan_conv2d` with errors that name the function that the user called."""
    try:
        return plan_conv2d(problem, algorithm, backend, op=op, packed=packed)
    except ValueError as error:
        message = str(error)
        raise ValueError(f"{function}: {message.removeprefix('plan_conv2d: ')}") from None


def pack_conv2d_weight(
    weight: Any,
    input_shape: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    backend: str = "auto",
) -> PackedWeight:
    """Lay a convolution's weight out as the kernels read it, once for many calls.

    The result is taken wherever a `weight` is, by `conv2d` and `conv2d_relu_max_pool2d` without packing it again:
    calls on small images, whose weights are large beside the pixels, gain most.

    Parameters
    ----------
    weight : (OC, IC/groups, KH, KW) array of float32 or float64
        It is copied: later changes of it have no effect.
    input_shape : (N, IC, IH, IW) or (IC, IH, IW), ints, optional
        With it the layout for such calls is made now; without it, by the first call.
    stride, padding, dilation, groups, padding_mode, algorithm, backend
        Those of the calls to come, which say theirs all the same. A call of another algorithm, back end or instruction
        set packs anew, and both layouts are kept.

    Returns
    -------
    PackedWeight

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> w = np.ones((8, 4, 3, 3), np.float32)
    >>> packed = fastconv.pack_conv2d_weight(w)
    >>> x = np.ones((1, 4, 6, 6), np.float32)
    >>> bool((fastconv.conv2d(x, packed, padding=1) == fastconv.conv2d(x, w, padding=1)).all())
    True
    """
    function = "pack_conv2d_weight"
    w = as_floats(function, "weight", weight)
    if w.ndim != 4:
        raise ValueError(f"{function}: weight has shape {w.shape}: it must be (OC, IC/groups, KH, KW)")
    OC, ICG, KH, KW = w.shape
    if input_shape is None:  # the smallest image that any such convolution takes
        dil = pair(function, "dilation", dilation)
        G = integer(function, "groups", groups)
        extents = (max(dil[0], 1) * KH + abs(KH), max(dil[1], 1) * KW + abs(KW))
        top, bottom, left, right = resolve_padding(function, padding, extents, (KH, KW), (1, 1), (1, 1))
        margin = max(abs(top), abs(bottom), abs(left), abs(right))
        size: tuple[int, ...] = (1, ICG * max(G, 1), extents[0] + 2 * margin, extents[1] + 2 * margin)
    else:
        size = _size(function, "input_shape", input_shape)
    problem = ConvProblem.from_args(
        function, size, w.shape, w.dtype.name, stride, padding, dilation, groups, padding_mode=padding_mode
    )
    plan = _plan(function, problem, algorithm, backend, packed=True)
    own = np.array(w, dtype=w.dtype.newbyteorder("="), order="C")
    own.flags.writeable = False
    packed = PackedWeight(own)
    if input_shape is not None:
        packed.packed_for(plan)
    return packed


def conv2d_relu_max_pool2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    pool_size: Any = 2,
    pool_stride: Any = None,
    pool_padding: Any = 0,
    return_indices: bool = False,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Convolution, ReLU and max-pool in one pass: the maps before the pool are never stored whole.

    Parameters
    ----------
    input : (N, IC, IH, IW) or (IC, IH, IW) array of float32 or float64
    weight : (OC, IC/groups, KH, KW) array of the same dtype, or what `pack_conv2d_weight` made of it
    bias, stride, padding, dilation, groups, padding_mode, algorithm, backend
        The convolution's, as in `conv2d`.
    pool_size, pool_stride : int or pair of int
        The pool's window and step; without a step, that of the window.
    pool_padding : int, pair, or pair of pairs
        At most half of the window.
    return_indices : bool
        Also return where each maximum stands.
    out : array, optional
        Takes the maxima.

    Returns
    -------
    output : (N, OC, PH, PW) array, or (OC, PH, PW) for one image
        ``max_pool2d(relu(conv2d(input, weight, bias)))``.
    indices : int64 array of the same shape
        Only with `return_indices`: flat positions in the OH * OW plane of the convolution.

    Raises
    ------
    TypeError, ValueError
        As `conv2d` and `max_pool2d`.

    Notes
    -----
    NaN wins over every number; of equal maxima (often zeros that ReLU made) the first in row-major order wins.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[[1.0, -5.0, 2.0, 3.0]]]])
    >>> w = np.array([[[[2.0]]]])
    >>> fastconv.conv2d_relu_max_pool2d(x, w, pool_size=(1, 2), return_indices=True)
    (array([[[[2., 6.]]]]), array([[[[0, 3]]]]))
    """
    function = "conv2d_relu_max_pool2d"
    x = as_floats(function, "input", input)
    packed = type(weight) is PackedWeight
    w = weight.source if packed else as_floats(function, "weight", weight)
    b = None if bias is None else as_floats(function, "bias", bias)
    bias_shape = None if b is None else b.shape
    dtype = same_dtype(function, input=x, weight=w, bias=b)
    flag(function, "return_indices", return_indices)

    def make() -> Plan:
        problem = ConvProblem.from_args(
            function, x.shape, w.shape, dtype, stride, padding, dilation, groups,
            padding_mode=padding_mode, bias_shape=bias_shape, activation="relu",
        )  # fmt: skip
        pool = PoolProblem.from_args(
            function, problem.output_shape, dtype, pool_size, pool_stride, pool_padding,
            names=("pool_size", "pool_stride", "pool_padding"),
        )  # fmt: skip
        return _plan(function, replace(problem, pool=pool), algorithm, backend, packed=packed)

    plan = _planned(
        (function, x.shape, w.shape, dtype, bias_shape, packed, freeze(stride), freeze(padding), freeze(dilation),
         freeze(groups), freeze(pool_size), freeze(pool_stride), freeze(pool_padding), padding_mode, algorithm,
         backend),
        make,
    )  # fmt: skip
    shape = _result_shape(plan, x.ndim, 2)
    direct = out is not None and check_out(function, out, shape, dtype, (x, w, b))
    problem = plan.problem
    kernel_weight = weight.packed_for(plan) if packed else ready(w, problem.weight_shape)
    kernel_bias = ready(b, b.shape) if b is not None else NO_BIAS[dtype]
    operands = (ready(x, problem.input_shape), kernel_weight, kernel_bias)
    values = out.reshape(plan.output_shape) if direct else np.empty(plan.output_shape, dtype)  # type: ignore[union-attr]
    indices = np.empty(plan.output_shape, np.int64) if return_indices else NO_INDICES
    plan.run(operands, (values, indices))
    if out is None:
        result = values.reshape(shape)
    else:
        result = out
        if not direct:
            out[...] = values.reshape(shape)
    return (result, indices.reshape(shape)) if return_indices else result


def conv2d_grad_input(
    input_size: Any,
    weight: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `conv2d` in its input: the adjoint of the convolution, applied to `grad_output`.

    Parameters
    ----------
    input_size : (N, IC, IH, IW) or (IC, IH, IW), ints
    weight : (OC, IC/groups, KH, KW) array of float32 or float64
    grad_output : (N, OC, OH, OW) or (OC, OH, OW) array of the same dtype
    stride, padding, dilation, groups, padding_mode, algorithm, backend
        Those of the forward call.
    out : array of `input_size`, optional

    Returns
    -------
    array of shape `input_size`

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; ValueError if `grad_output` has not the shape of the convolution's output.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv2d_grad_input((1, 1, 1, 3), np.array([[[[1.0, 2.0]]]]), np.array([[[[1.0, 10.0]]]]))
    array([[[[ 1., 12., 20.]]]])
    """
    function = "conv2d_grad_input"
    w = as_floats(function, "weight", weight)
    g = as_floats(function, "grad_output", grad_output)
    dtype = same_dtype(function, weight=w, grad_output=g)
    size = _size(function, "input_size", input_size)

    def make() -> Plan:
        problem = ConvProblem.from_args(
            function, size, w.shape, dtype, stride, padding, dilation, groups, padding_mode=padding_mode
        )
        return _plan(function, problem, algorithm, backend, "grad_input")

    plan = _planned(
        (function, size, w.shape, dtype, freeze(stride), freeze(padding), freeze(dilation), freeze(groups),
         padding_mode, algorithm, backend),
        make,
    )  # fmt: skip
    plan.problem.check_grad_output(function, g.shape)
    return _run(function, plan, ((g, plan.problem.output_shape), (w, w.shape), (None, ())), size, out)


def _size(function: str, name: str, value: Any) -> tuple[int, ...]:
    """A shape that a caller passes as an argument: of a batch, or of one image."""
    if sequence(value) and len(tuple(value)) == 3:
        return size_4d(function, name, (1, *value))[1:]
    return size_4d(function, name, value)


def conv2d_grad_weight(
    input: Any,
    weight_size: Any,
    grad_output: Any,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `conv2d` in its weight, summed over the batch.

    Parameters
    ----------
    input : (N, IC, IH, IW) or (IC, IH, IW) array of float32 or float64
    weight_size : (OC, IC/groups, KH, KW), ints
    grad_output : (N, OC, OH, OW) or (OC, OH, OW) array of the same dtype
    stride, padding, dilation, groups, padding_mode, algorithm, backend
        Those of the forward call.
    out : array of `weight_size`, optional

    Returns
    -------
    array of shape `weight_size`

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; ValueError if `grad_output` has not the shape of the convolution's output.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv2d_grad_weight(np.array([[[[1.0, 2.0, 3.0]]]]), (1, 1, 1, 2), np.array([[[[1.0, 10.0]]]]))
    array([[[[21., 32.]]]])
    """
    function = "conv2d_grad_weight"
    x = as_floats(function, "input", input)
    g = as_floats(function, "grad_output", grad_output)
    dtype = same_dtype(function, input=x, grad_output=g)
    size = size_4d(function, "weight_size", weight_size)

    def make() -> Plan:
        problem = ConvProblem.from_args(
            function, x.shape, size, dtype, stride, padding, dilation, groups, padding_mode=padding_mode
        )
        return _plan(function, problem, algorithm, backend, "grad_weight")

    plan = _planned(
        (function, x.shape, size, dtype, freeze(stride), freeze(padding), freeze(dilation), freeze(groups),
         padding_mode, algorithm, backend),
        make,
    )  # fmt: skip
    problem = plan.problem
    problem.check_grad_output(function, g.shape)
    operands = ((x, problem.input_shape), (g, problem.output_shape))
    return _run(function, plan, operands, size, out)


def conv2d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    needs: tuple[bool, bool, bool] = (True, True, True),
    algorithm: str = "auto",
    backend: str = "auto",
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """All gradients of `conv2d`, or those that are needed.

    Parameters
    ----------
    grad_output : (N, OC, OH, OW) or (OC, OH, OW) array
    input : (N, IC, IH, IW) or (IC, IH, IW) array
    weight : (OC, IC/groups, KH, KW) array
    stride, padding, dilation, groups, padding_mode, algorithm, backend
        Those of the forward call.
    needs : three bools
        Which of (grad_input, grad_weight, grad_bias) to compute.

    Returns
    -------
    grad_input, grad_weight, grad_bias : array or None
        Shapes of `input`, of `weight`, and (OC,); None where not needed. grad_bias[o] is the sum of
        grad_output[n, o, i, j] over n, i, j.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((2, 1, 2, 2))
    >>> _, _, grad_bias = fastconv.conv2d_backward(np.ones((1, 2, 2, 2)), x, w, needs=(False, False, True))
    >>> grad_bias
    array([4., 4.])
    """
    function = "conv2d_backward"
    g = as_floats(function, "grad_output", grad_output)
    x = as_floats(function, "input", input)
    w = as_floats(function, "weight", weight)
    dtype = same_dtype(function, grad_output=g, input=x, weight=w)
    wanted = tuple(needs) if np.iterable(needs) else ()
    if len(wanted) != 3 or not all(isinstance(need, (bool, np.bool_)) for need in wanted):
        raise ValueError(
            f"{function}: needs {shown(needs)}: it must be three booleans (grad_input, grad_weight, grad_bias)"
        )
    need_input, need_weight, need_bias = wanted

    def describe() -> ConvProblem:
        return ConvProblem.from_args(
            function, x.shape, w.shape, dtype, stride, padding, dilation, groups, padding_mode=padding_mode
        )

    def plan(op: str) -> Plan:
        return _planned((function, op, *key), lambda: _plan(function, describe(), algorithm, backend, op))

    key = (
        x.shape, w.shape, dtype, freeze(stride), freeze(padding), freeze(dilation), freeze(groups), padding_mode,
        algorithm, backend,
    )  # fmt: skip
    by_input = plan("grad_input") if need_input else None
    by_weight = plan("grad_weight") if need_weight else None
    known = by_input or by_weight
    problem = known.problem if known else describe()
    problem.check_grad_output(function, g.shape)
    batch_g, batch_x = ready(g, problem.output_shape), ready(x, problem.input_shape)
    pair_g, pair_x = (batch_g, problem.output_shape), (batch_x, problem.input_shape)
    return (
        _run(function, by_input, (pair_g, (w, w.shape), (None, ())), x.shape) if by_input else None,
        _run(function, by_weight, (pair_x, pair_g), w.shape) if by_weight else None,
        elementwise.map_sums(_kernels(function, backend), batch_g) if need_bias else None,
    )


def conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    *,
    activation: Any = None,
    algorithm: str = "auto",
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Transposed 2-D convolution: the adjoint of `conv2d` with the same weight, plus a bias.

    Parameters
    ----------
    input : (N, IC, IH, IW) or (IC, IH, IW) array of float32 or float64
    weight : (IC, OC/groups, KH, KW) array of the same dtype
    bias : (OC,) array of the same dtype, optional
    stride, dilation : int or pair of int
    padding : int, pair, or pair of pairs
        Cells taken off each side of the output.
    output_padding : int or pair of int
        Rows and columns added at the bottom/right; smaller than stride or dilation.
    groups : int
    activation, algorithm, backend, out
        As in `conv2d`.

    Returns
    -------
    (N, OC, OH, OW) array, or (OC, OH, OW) for one image
        OH = (IH - 1) * stride - top - bottom + dilation * (KH - 1) + output_padding + 1, OW alike.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Notes
    -----
    Zeiler et al., "Deconvolutional networks", CVPR 2010; arithmetic as in arXiv 1603.07285, chapter 4.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.conv_transpose2d(np.array([[[[1.0, 10.0]]]]), np.array([[[[1.0, 2.0]]]]))
    array([[[[ 1., 12., 20.]]]])
    """
    function = "conv_transpose2d"
    x = as_floats(function, "input", input)
    w = as_floats(function, "weight", weight)
    b = None if bias is None else as_floats(function, "bias", bias)
    dtype = same_dtype(function, input=x, weight=w, bias=b)
    bias_shape = None if b is None else b.shape

    def make() -> Plan:
        problem = ConvProblem.from_transpose_args(
            function, x.shape, w.shape, dtype, stride, padding, output_padding, groups, dilation,
            bias_shape=bias_shape, activation=activation,
        )  # fmt: skip
        return _plan(function, problem, algorithm, backend, "grad_input")

    plan = _planned(
        (function, x.shape, w.shape, dtype, bias_shape, freeze(stride), freeze(padding), freeze(output_padding),
         freeze(groups), freeze(dilation), freeze(activation), algorithm, backend),
        make,
    )  # fmt: skip
    operands = ((x, plan.problem.output_shape), (w, w.shape), (b, bias_shape or ()))
    return _run(function, plan, operands, _result_shape(plan, x.ndim, 2), out)


def im2col(
    input: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1, *, backend: str = "auto"
) -> np.ndarray:
    """The columns of a batch of images: every window as one column (torch's unfold).

    Parameters
    ----------
    input : (N, C, H, W) or (C, H, W) array of float32 or float64
    kernel_size, dilation, stride : int or pair of int
    padding : as in `conv2d`
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    (N, C * KH * KW, OH * OW) array, without the first axis for one image

    Raises
    ------
    TypeError, ValueError
        As `conv2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.im2col(np.array([[[[1.0, 2.0, 3.0]]]]), (1, 2))
    array([[[1., 2.],
            [2., 3.]]])
    """
    function = "im2col"
    x = as_floats(function, "input", input)
    problem = _columns_problem(function, x.shape, x.dtype.name, kernel_size, dilation, padding, stride)
    p = problem
    six_axes = (p.N, p.IC, p.KH, p.KW, p.OH, p.OW)
    addressable(function, six_axes)
    k = _kernels(function, backend)
    cols = np.empty(six_axes, p.dtype)
    k.im2col.im2col(ready(x, p.input_shape), cols, cols[:0].reshape(-1), p.geometry(), _workers(p))
    shape = (p.N, p.IC * p.KH * p.KW, p.OH * p.OW)
    return cols.reshape(shape if x.ndim == 4 else shape[1:])


def col2im(
    cols: Any,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
    *,
    backend: str = "auto",
) -> np.ndarray:
    """The adjoint of `im2col`: cells of overlapping windows are summed (torch's fold).

    Parameters
    ----------
    cols : (N, C * KH * KW, OH * OW) or (C * KH * KW, OH * OW) array of float32 or float64
    output_size : int or pair of int
        (H, W) of the images.
    kernel_size, dilation, stride : int or pair of int
    padding : as in `conv2d`
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    (N, C, H, W) array, or (C, H, W) for one image

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; ValueError if `cols` is not what `im2col` gives for these sizes.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.col2im(np.array([[[1.0, 2.0], [2.0, 3.0]]]), (1, 3), (1, 2))
    array([[[[1., 4., 3.]]]])
    """
    function = "col2im"
    c = as_floats(function, "cols", cols)
    if c.ndim not in (2, 3):
        raise ValueError(f"{function}: cols has shape {c.shape}: it must be (N, C * KH * KW, L) or (C * KH * KW, L)")
    N, rows, positions = c.shape if c.ndim == 3 else (1, *c.shape)
    size = at_least(function, "output_size", pair(function, "output_size", output_size), 1, "extents")
    KH, KW = at_least(function, "kernel_size", pair(function, "kernel_size", kernel_size), 1, "extents")
    if rows % (KH * KW):
        raise ValueError(f"{function}: cols has shape {c.shape}: its rows must be a multiple of {KH} * {KW}")
    p = _columns_problem(function, (N, rows // (KH * KW), *size), c.dtype.name, (KH, KW), dilation, padding, stride)
    if positions != p.OH * p.OW:
        raise ValueError(f"{function}: cols has shape {c.shape}: it must have {p.OH} * {p.OW} columns")
    k = _kernels(function, backend)
    output = np.empty(p.input_shape, p.dtype)
    six_axes = ready(c, c.shape).reshape(p.N, p.IC, p.KH, p.KW, p.OH, p.OW)
    k.im2col.col2im(six_axes, output, output[:0].reshape(-1), p.geometry(), _workers(p))
    return output if c.ndim == 3 else output[0]


def _columns_problem(
    function: str, shape: tuple[int, ...], dtype: str, kernel_size: Any, dilation: Any, padding: Any, stride: Any
) -> ConvProblem:
    KH, KW = at_least(function, "kernel_size", pair(function, "kernel_size", kernel_size), 1, "extents")
    C = image_shape(function, "input", shape)[1]
    return ConvProblem.from_args(function, shape, (1, C, KH, KW), dtype, stride, padding, dilation)


def _kernels(function: str, backend: str) -> _backends.Kernels:
    """The kernels of ``backend``, with errors that name the function that the user called."""
    try:
        return _backends.resolve(backend)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def _workers(problem: ConvProblem) -> int:
    return min(_threads.get_num_threads(), most_workers(problem.macs, THREAD_WORK))


# ------------------------------------------------------------------------------------------------ pooling


def max_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Largest value of every window, of every map by itself.

    Parameters
    ----------
    input : (N, C, IH, IW) or (C, IH, IW) array of float32 or float64
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        `kernel_size` if not given.
    padding : int, pair, or pair of pairs
        At most half of the kernel. Padding never wins: it counts as -inf.
    dilation : int or pair of int
    ceil_mode : bool
        Round the output's extents up; a window that would start in the right/bottom padding is dropped.
    return_indices : bool
        Also return where each maximum stands.
    backend : {"auto", "cython", "numba", "reference"}
    out : (N, C, OH, OW) array, optional
        Takes the maxima.

    Returns
    -------
    output : (N, C, OH, OW) array, or (C, OH, OW) for one image
    indices : int64 array of the same shape
        Only with `return_indices`: flat positions in the IH * IW plane.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`; ValueError if `padding` exceeds half of the kernel.

    Notes
    -----
    NaN wins over every number; of equal maxima the first in row-major order wins. A window whose dilation steps over a
    small image holds padding alone: its value is -inf, its index means nothing, its gradient goes nowhere.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x = np.array([[[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 8.0, 1.0]]])
    >>> fastconv.max_pool2d(x, 2, return_indices=True)
    (array([[[5., 8.]]]), array([[[1, 6]]]))
    """
    return _max_pool("max_pool2d", 2, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices,
                     backend, out)  # fmt: skip


def max_pool1d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
    *,
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> Any:
    """Largest value of every window of a signal: `max_pool2d` of images of height 1.

    Parameters
    ----------
    input : (N, C, L) or (C, L) array of float32 or float64
    kernel_size, stride, dilation : int or sequence of one int
    padding : int, sequence of one int or of one pair
    ceil_mode, return_indices, backend, out
        As in `max_pool2d`.

    Returns
    -------
    output : (N, C, OL) array, or (C, OL) for one signal
    indices : int64 array of the same shape
        Only with `return_indices`.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool1d(np.array([[1.0, 5.0, 2.0, 0.0]]), 2)
    array([[5., 2.]])
    """
    return _max_pool("max_pool1d", 1, input, kernel_size, stride, padding, dilation, ceil_mode, return_indices,
                     backend, out)  # fmt: skip


def _max_pool(
    function: str,
    axes: int,
    input: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: Any,
    return_indices: bool,
    backend: str,
    out: Any,
) -> Any:
    # Written out for the sake of small calls, as `_conv` is
    plain = type(input) is np.ndarray and (input.dtype is FLOAT32 or input.dtype is FLOAT64)
    x = input if plain else as_floats(function, "input", input)
    key = (
        function, x.shape, x.dtype.char, kernel_size if type(kernel_size) is int else freeze(kernel_size),
        stride if type(stride) is int else freeze(stride), padding if type(padding) is int else freeze(padding),
        dilation if type(dilation) is int else freeze(dilation), FROZEN_FALSE if ceil_mode is False else freeze(ceil_mode),
        backend, _backends.settings(),
    )  # fmt: skip
    try:
        plan = known_plans[key]
    except (KeyError, TypeError):
        problem = PoolProblem.from_args(
            function, x.shape, x.dtype.name, kernel_size, stride, padding, dilation, ceil_mode, axes=axes
        )
        plan = kept(key, _pool_plan(function, problem, "max_pool2d", backend))
    shape = plan.output_shape
    if not (plain and axes == 2 and x.ndim == 4 and x.flags.carray):
        shape = _result_shape(plan, x.ndim, axes)
        x = ready(x, plan.problem.input_shape)
    in_place = False
    if return_indices is not True and return_indices is not False:
        return_indices = flag(function, "return_indices", return_indices)
    if out is not None:
        in_place = check_out(function, out, shape, plan.problem.dtype, (input if plain else x,))
    as_planned = shape is plan.output_shape
    if in_place:
        target = out if as_planned else out.reshape(plan.output_shape)
    else:
        target = np.empty(plan.output_shape, x.dtype)
    indices = np.empty(plan.output_shape, np.int64) if return_indices else NO_INDICES
    plan.run((x,), (target, indices))
    result = target if as_planned else target.reshape(shape)
    if out is not None:
        if not in_place:
            out[...] = result
        result = out
    if return_indices:
        return result, indices if as_planned else indices.reshape(shape)
    return result


def _pool_plan(function: str, problem: PoolProblem, op: str, backend: str) -> Plan:
    try:
        return plan_pool2d(problem, op, backend)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def max_pool2d_backward(
    grad_output: Any,
    indices: Any,
    input_shape: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    *,
    backend: str = "auto",
) -> np.ndarray:
    """Gradient of `max_pool2d` in its input: each gradient goes to the cell that won.

    Parameters
    ----------
    grad_output : (N, C, OH, OW) or (C, OH, OW) array of float32 or float64
    indices : int64 array of the same shape, from ``max_pool2d(..., return_indices=True)``
    input_shape : (N, C, IH, IW) or (C, IH, IW), ints
    kernel_size, stride, padding, dilation
        Those of the forward call.
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    array of shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; ValueError for indices outside the plane or shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_pool2d_backward(np.array([[[7.0]]]), np.array([[[3]]]), (1, 2, 2), 2)
    array([[[0., 0.],
            [0., 7.]]])
    """
    function = "max_pool2d_backward"
    g = as_floats(function, "grad_output", grad_output)
    where = as_indices(function, "indices", indices)
    size = input_shape if type(input_shape) is tuple else _size(function, "input_shape", input_shape)

    def make() -> Plan:
        window = (kernel_size, stride, padding, dilation)
        _size(function, "input_shape", size)
        problem = PoolProblem.from_args(function, size, g.dtype.name, *window, True)  # larger than an image: only here
        if image_shape(function, "grad_output", g.shape) != problem.output_shape:
            problem = PoolProblem.from_args(function, size, g.dtype.name, *window)
        problem.check_grad_output(function, "grad_output", g.shape)
        problem.check_grad_output(function, "indices", where.shape)
        return _pool_plan(function, problem, function, backend)

    plan = _planned(
        (function, g.shape, g.dtype.char, where.shape, freeze(size), freeze(kernel_size), freeze(stride), freeze(padding),
         freeze(dilation), backend),
        make,
    )  # fmt: skip
    rows, columns = plan.problem.blind
    if rows or columns:  # their indices point nowhere: no cell gets these gradients
        g, where = g.copy(), where.copy()
        for array in (g, where):
            array[..., rows, :] = 0
            array[..., columns] = 0
    return _placed(function, plan, g, where).reshape(size)


def _placed(function: str, plan: Plan, values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The result of a plan that puts values to their indices; ValueError for an index outside of its plane."""
    problem = plan.problem
    cells = problem.output_shape
    result, outside = np.empty(plan.output_shape, problem.dtype), np.empty(1, INT64)
    plan.run((ready(values, cells), contiguous(indices, INT64).reshape(cells)), (result, outside))
    if outside[0]:
        check_index_range(function, "indices", indices, (problem.IH, problem.IW))
    return result


def max_unpool2d(
    input: Any,
    indices: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    output_size: Any = None,
    *,
    backend: str = "auto",
) -> np.ndarray:
    """Put pooled values back where they came from; every other cell is zero.

    Parameters
    ----------
    input : (N, C, IH, IW) or (C, IH, IW) array of float32 or float64
    indices : int64 array of the same shape, from ``max_pool2d(..., return_indices=True)``
    kernel_size, stride, padding : int or pair of int
        Those of the pooling; `stride` is `kernel_size` if not given.
    output_size : sequence of int, optional
        Shape of the result, or its last two extents: within one stride of the default
        ``(IH - 1) * stride - 2 * padding + kernel_size``.
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    (N, C, OH, OW) array, or (C, OH, OW) for one image
        Of values with the same index the last in row-major order stands.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; ValueError for indices outside the output's plane, or an `output_size` out of reach.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_unpool2d(np.array([[[7.0]]]), np.array([[[2]]]), 2)
    array([[[0., 0.],
            [7., 0.]]])
    """
    function = "max_unpool2d"
    x = as_floats(function, "input", input)
    where = as_indices(function, "indices", indices)
    N, C, IH, IW = image_shape(function, "input", x.shape)
    if where.shape != x.shape:
        raise ValueError(f"{function}: indices has shape {where.shape}: it must be the input's, {x.shape}")
    kernel = at_least(function, "kernel_size", pair(function, "kernel_size", kernel_size), 1, "extents")
    steps = kernel if stride is None else at_least(function, "stride", pair(function, "stride", stride), 1, "strides")
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f"{function}: padding {padding!r}: it must be numbers or 'valid'")
    pads = resolve_padding(function, padding, (IH, IW), kernel, steps, (1, 1))
    if min(pads) < 0:
        raise ValueError(f"{function}: padding {shown(padding)}: it must be at least 0")
    default = (
        (IH - 1) * steps[0] - pads[0] - pads[1] + kernel[0],
        (IW - 1) * steps[1] - pads[2] - pads[3] + kernel[1],
    )
    plane = _unpooled_plane(function, output_size, x.shape, default, steps)
    window = kernel if steps == kernel and not any(pads) else (1, 1)
    problem = PoolProblem.of_indices((N, C, *plane), (N, C, IH, IW), x.dtype.name, window)
    plan = _pool_plan(function, problem, function, backend)
    return _placed(function, plan, x, where).reshape((*x.shape[:-2], *plane))


def _unpooled_plane(
    function: str, output_size: Any, shape: tuple[int, ...], default: tuple[int, int], steps: tuple[int, int]
) -> tuple[int, int]:
    if output_size is None:
        if min(default) < 1:
            raise ValueError(f"{function}: the output would be {default[0]} x {default[1]}: padding is too large")
        return default
    if not sequence(output_size):
        raise TypeError(f"{function}: output_size is {shown(output_size)}: it must be a sequence of integers")
    sizes = tuple(integer(function, "output_size", size) for size in output_size)
    if len(sizes) not in (2, len(shape)) or (len(sizes) > 2 and sizes[:-2] != shape[:-2]):
        raise ValueError(f"{function}: output_size {sizes}: it must be (H, W) or {shape[:-2]} + (H, W)")
    for size, usual, step in zip(sizes[-2:], default, steps, strict=True):
        if not usual - step < size < usual + step or size < 1:
            raise ValueError(f"{function}: output_size {sizes}: (H, W) must lie within one stride {steps} of {default}")
    return sizes[-2], sizes[-1]


def max_unpool2d_backward(grad_output: Any, indices: Any, *, backend: str = "auto") -> np.ndarray:
    """Gradient of `max_unpool2d` in its input: what arrives where each value was put.

    Parameters
    ----------
    grad_output : (N, C, OH, OW) or (C, OH, OW) array of float32 or float64
        The gradient of the unpooled maps.
    indices : int64 array (N, C, IH, IW) or (C, IH, IW), those of the forward call
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    array of the shape of `indices`
        Zero for a value that a later one with the same index replaced.

    Raises
    ------
    TypeError, ValueError
        As `max_unpool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.max_unpool2d_backward(np.array([[[1.0, 2.0], [3.0, 4.0]]]), np.array([[[2]]]))
    array([[[3.]]])
    """
    function = "max_unpool2d_backward"
    g = as_floats(function, "grad_output", grad_output)
    where = as_indices(function, "indices", indices)
    plane = image_shape(function, "grad_output", g.shape)
    cells = image_shape(function, "indices", where.shape)
    if g.ndim != where.ndim or plane[:2] != cells[:2]:
        raise ValueError(f"{function}: indices has shape {where.shape}: it must share {g.shape[:-2]} with grad_output")
    problem = PoolProblem.of_indices(plane, cells, g.dtype.name)
    plan = _pool_plan(function, problem, function, backend)
    operands = ((g, plane), (ready_indices(function, "indices", where, cells, plane[2:]), cells))
    return _run(function, plan, operands, where.shape)


def avg_pool2d(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    backend: str = "auto",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Mean of every window, of every map by itself.

    Parameters
    ----------
    input : (N, C, IH, IW) or (C, IH, IW) array of float32 or float64
    kernel_size : int or pair of int
    stride : int or pair of int, optional
        `kernel_size` if not given.
    padding : int, pair, or pair of pairs
        Zeros added to each side; at most half of the kernel.
    ceil_mode : bool
        As in `max_pool2d`.
    count_include_pad : bool
        Whether padding counts as cells of a window.
    divisor_override : int, optional
        Divide every sum by this instead.
    backend : {"auto", "cython", "numba", "reference"}
    out : (N, C, OH, OW) array, optional

    Returns
    -------
    (N, C, OH, OW) array, or (C, OH, OW) for one image

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`; ValueError for a divisor of 0.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool2d(np.array([[[1.0, 5.0, 2.0, 0.0], [3.0, 3.0, 8.0, 2.0]]]), 2)
    array([[[3., 3.]]])
    """
    function = "avg_pool2d"
    x = as_floats(function, "input", input)

    def make() -> Plan:
        problem = PoolProblem.from_args(
            function, x.shape, x.dtype.name, kernel_size, stride, padding, 1, ceil_mode,
            count_include_pad=count_include_pad, divisor_override=divisor_override,
        )  # fmt: skip
        return _pool_plan(function, problem, function, backend)

    plan = _planned(
        (function, x.shape, x.dtype, freeze(kernel_size), freeze(stride), freeze(padding), freeze(ceil_mode),
         freeze(count_include_pad), freeze(divisor_override), backend),
        make,
    )  # fmt: skip
    return _run(function, plan, ((x, plan.problem.input_shape),), _result_shape(plan, x.ndim, 2), out)


def avg_pool2d_backward(
    grad_output: Any,
    input_shape: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    backend: str = "auto",
) -> np.ndarray:
    """Gradient of `avg_pool2d` in its input: each gradient, divided as its window was, goes to all cells of the window.

    Parameters
    ----------
    grad_output : (N, C, OH, OW) or (C, OH, OW) array of float32 or float64
    input_shape : (N, C, IH, IW) or (C, IH, IW), ints
    kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override
        Those of the forward call.
    backend : {"auto", "cython", "numba", "reference"}

    Returns
    -------
    array of shape `input_shape`

    Raises
    ------
    TypeError, ValueError
        As `avg_pool2d`.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.avg_pool2d_backward(np.array([[[8.0]]]), (1, 2, 2), 2)
    array([[[2., 2.],
            [2., 2.]]])
    """
    function = "avg_pool2d_backward"
    g = as_floats(function, "grad_output", grad_output)
    size = _size(function, "input_shape", input_shape)
    problem = PoolProblem.from_args(
        function, size, g.dtype.name, kernel_size, stride, padding, 1, ceil_mode,
        count_include_pad=count_include_pad, divisor_override=divisor_override,
    )  # fmt: skip
    problem.check_grad_output(function, "grad_output", g.shape)
    plan = _pool_plan(function, problem, function, backend)
    return _run(function, plan, ((g, problem.output_shape),), size)


# ------------------------------------------------------------------------------- activations and pictures


def relu(input: Any, *, out: np.ndarray | None = None) -> np.ndarray:
    """Rectified linear unit: max(x, 0), elementwise; NaN stays NaN.

    Parameters
    ----------
    input : array of float32 or float64, any shape
    out : array of the same shape and dtype, optional
        May be `input` itself.

    Returns
    -------
    array of the shape of `input`

    Raises
    ------
    TypeError, ValueError
        For other dtypes, or an `out` that does not fit.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> fastconv.relu(np.array([-1.0, 2.0]))
    array([0., 2.])
    """
    x = as_floats("relu", "input", input)
    if out is None:
        return np.asarray(np.maximum(x, x.dtype.type(0)))
    check_out("relu", out, x.shape, x.dtype.name, ())
    return np.maximum(x, x.dtype.type(0), out=out)


def from_images(images: Any, mean: Any = None, std: Any = None, dtype: Any = "float32") -> np.ndarray:
    """Photographs as `conv2d` wants them: uint8 HWC or NHWC to floats NCHW in [0, 1], normalised if asked.

    Parameters
    ----------
    images : (H, W, C) or (N, H, W, C) array of uint8, C one of 1, 3, 4
    mean, std : float or sequence of C floats, optional
        In units of the [0, 1] range: result = (images / 255 - mean) / std, channel by channel.
    dtype : {"float32", "float64"}

    Returns
    -------
    (N, C, H, W) array; N is 1 for one photograph

    Raises
    ------
    TypeError
        If `images` is not uint8.
    ValueError
        If its shape, `mean`, `std` or `dtype` is not one of the above.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> photo = np.full((4, 6, 3), 255, dtype=np.uint8)
    >>> fastconv.from_images(photo).shape
    (1, 3, 4, 6)
    """
    function = "from_images"
    array = as_ndarray(function, "images", images)
    if array.dtype != np.uint8:
        raise TypeError(f"{function}: images has dtype {array.dtype}: it must be uint8")
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"{function}: images has shape {array.shape}: it must be (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels"
        )
    try:
        kind = None if dtype is None else np.dtype(dtype)
    except TypeError:
        kind = None
    if kind not in (np.float32, np.float64):
        raise ValueError(f"{function}: dtype {shown(dtype)}: it must be 'float32' or 'float64'")
    C = array.shape[-1]
    shift = per_channel(function, "mean", 0.0 if mean is None else mean, C)
    scale = per_channel(function, "std", 1.0 if std is None else std, C)
    if not (scale > 0).all():
        raise ValueError(f"{function}: std {shown(std)}: it must be positive")
    batch = array if array.ndim == 4 else array[None]
    # One affine map a channel: x / 255 alone where no mean or std is given, so that 255 becomes exactly 1
    result = np.ascontiguousarray(batch.transpose(0, 3, 1, 2)).astype(kind)
    result /= kind.type(255)
    if mean is not None:
        result -= shift.astype(kind)[:, None, None]
    if std is not None:
        result /= scale.astype(kind)[:, None, None]
    return result


def per_channel(function: str, name: str, value: Any, C: int) -> np.ndarray:
    """A number, or one for each of C channels, as (C,) floats; TypeError or ValueError for anything else."""
    try:
        given = np.asarray(value)
        numbers = given.astype(np.float64) if given.dtype.kind in "fiu" else None
    except (TypeError, ValueError):
        numbers = None
    if numbers is None:
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be a number or {C} numbers")
    if numbers.shape not in ((), (C,)) or not np.isfinite(numbers).all():
        raise ValueError(
            f"{function}: {name} {shown(value)}: it must be a finite number or {C} of them, one per channel"
        )
    return np.broadcast_to(numbers, (C,))
