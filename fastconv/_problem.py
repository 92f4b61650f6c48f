"""Problems: what a call asks for, checked once, and the geometry vector that kernels read.

Every shape and geometry error of the library is raised in this file, before anything is allocated.
A message names function, argument, value and rule: ``conv2d: stride (0, 1): strides must be at least 1``.
"""

from __future__ import annotations

import math
import operator
from collections import namedtuple
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

# The one vector that every kernel reads. A convolution is described as its FORWARD problem, for
# gradients too. Pooling uses the same extents (IC == OC channels); the pool_* fields describe a
# max-pool fused behind a convolution (pool_KH == 0: none); tile is the extent of Winograd's output
# tiles; turned: the weight is that of the convolution whose adjoint this one is. common.pxd repeats this order.
GEOMETRY = (
    "N", "IC", "IH", "IW", "OC", "KH", "KW", "OH", "OW", "G",
    "stride_h", "stride_w", "pad_top", "pad_bottom", "pad_left", "pad_right", "dil_h", "dil_w",
    "accumulate", "pad_mode", "count_include_pad", "divisor",
    "pool_KH", "pool_KW", "pool_OH", "pool_OW", "pool_stride_h", "pool_stride_w", "pool_pad_top", "pool_pad_left",
    "tile", "turned",
)  # fmt: skip
Geometry = namedtuple("Geometry", GEOMETRY)  # type: ignore[misc]  # names stand once, above
(
    GEO_N, GEO_IC, GEO_IH, GEO_IW, GEO_OC, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_G,
    GEO_STRIDE_H, GEO_STRIDE_W, GEO_PAD_TOP, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_DIL_H, GEO_DIL_W,
    GEO_ACCUMULATE, GEO_PAD_MODE, GEO_COUNT_INCLUDE_PAD, GEO_DIVISOR,
    GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW,
    GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_POOL_PAD_TOP, GEO_POOL_PAD_LEFT,
    GEO_TILE, GEO_TURNED,
) = range(len(GEOMETRY))  # fmt: skip

PAD_ZEROS, PAD_REFLECT, PAD_REPLICATE, PAD_CIRCULAR = range(4)
PADDING_MODES = {
    "zeros": PAD_ZEROS,
    "reflect": PAD_REFLECT,
    "replicate": PAD_REPLICATE,
    "circular": PAD_CIRCULAR,
}

DTYPES = ("float32", "float64")

# Winograd's F(m x m, 3 x 3) evaluates polynomials at 0, at plus and minus each of these numbers, and at infinity
# (Lavin & Gray, arXiv 1509.09308; Toom and Cook). The points of m = 4 were chosen for accuracy: all coefficients that
# touch the image are exact, and the error is a quarter of that of 1 and 2. src_cython/winograd.pyx repeats them.
WINOGRAD_POINTS = {2: (1.0,), 4: (0.625, 1.5), 6: (0.5, 1.0, 2.0)}

LARGEST = 2**31 - 1  # of one extent, stride, pad or dilation: products of two stay inside int64
MOST_ELEMENTS = 2**45  # of one array: a process has 2**47 bytes to itself


# ------------------------------------------------------------------ small checks, shared by all problems


def shown(value: Any) -> str:
    """``value`` for a message: in one line; an array, which somebody passed in a number's place, by its shape."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:100]}..."


def integer(function: str, name: str, value: Any) -> int:
    """``value`` as an int; bool, float and the rest raise TypeError."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be an integer")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be an integer") from None
    if abs(number) > LARGEST:
        raise ValueError(f"{function}: {name} is {shown(number)}: its size must stay below 2**31")
    return number


def sequence(value: Any) -> bool:
    """Whether ``value`` holds several values in an order: no text, no set, no mapping."""
    if type(value) in (tuple, list, int):  # nearly always; the question below takes a microsecond
        return type(value) is not int
    return np.iterable(value) and not isinstance(value, (str, bytes, bytearray, Set, Mapping))


def pair(function: str, name: str, value: Any, axes: int = 2) -> tuple[int, int]:
    """An int, or a sequence of ``axes`` ints, as (height, width)."""
    if isinstance(value, (str, bytes)) or (isinstance(value, np.ndarray) and value.ndim != 1):
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be an integer or {_count(axes)} integers")
    if not sequence(value):
        number = integer(function, name, value)
        return number, number
    items = tuple(value)
    if len(items) != axes:
        raise ValueError(f"{function}: {name} {shown(value)}: it must be an integer or {_count(axes)} integers")
    numbers = tuple(integer(function, name, item) for item in items)
    return numbers[0], numbers[-1]


def _count(axes: int) -> str:
    return "a pair of" if axes == 2 else "a sequence of one of"


def at_least(function: str, name: str, value: tuple[int, int], least: int, what: str) -> tuple[int, int]:
    """``value`` if both its numbers reach ``least``; else ValueError."""
    if min(value) < least:
        given = value[0] if value[0] == value[1] else value
        raise ValueError(f"{function}: {name} {given}: {what} must be at least {least}")
    return value


def choice(function: str, name: str, value: Any, choices: Any) -> Any:
    """``value`` if it is one of ``choices``; else ValueError listing them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{function}: {name} {shown(value)}: it must be one of {', '.join(map(repr, choices))}")
    return value


def output_extent(extent: int, pads: int, kernel: int, stride: int, dilation: int) -> int:
    """Number of window positions along one axis: floor((extent + pads - dilation*(kernel-1) - 1) / stride) + 1."""
    return (extent + pads - dilation * (kernel - 1) - 1) // stride + 1


def pooled_extent(extent: int, pad: int, pads: int, kernel: int, stride: int, dilation: int, ceil_mode: bool) -> int:
    """Output extent of a pool; with ``ceil_mode`` a window that would start in the right/bottom padding is dropped."""
    if not ceil_mode:
        return output_extent(extent, pads, kernel, stride, dilation)
    positions = -((dilation * (kernel - 1) + 1 - extent - pads) // stride) + 1
    return positions - 1 if (positions - 1) * stride >= extent + pad else positions


Pads = tuple[int, int, int, int]  # top, bottom, left, right


def resolve_padding(
    function: str,
    padding: Any,
    extents: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    axes: int = 2,
    name: str = "padding",
) -> Pads:
    """``padding`` as (top, bottom, left, right); for one axis (``axes`` 1) top and bottom are 0."""
    names = ("same", "same_lower", "valid")
    if isinstance(padding, str):
        choice(function, name, padding, names)
        if padding == "valid":
            return 0, 0, 0, 0
        pads: list[int] = []
        for extent, size, step, dil in zip(extents, kernel, stride, dilation, strict=True):
            total = max((-(-extent // step) - 1) * step + dil * (size - 1) + 1 - extent, 0)
            small, large = total // 2, total - total // 2
            pads += [small, large] if padding == "same" else [large, small]
        return pads[0], pads[1], pads[2], pads[3]
    rule = (
        "it must be an integer, a pair, a pair of pairs ((top, bottom), (left, right)), 'valid', 'same' or 'same_lower'"
    )
    if not sequence(padding):
        number = integer(function, name, padding)
        return (number,) * 4 if axes == 2 else (0, 0, number, number)
    items = tuple(padding)
    if len(items) != axes:
        raise ValueError(f"{function}: {name} {shown(padding)}: {rule}")
    sides: list[int] = [] if axes == 2 else [0, 0]
    for item in items:
        if isinstance(item, str):
            raise ValueError(f"{function}: {name} {shown(padding)}: {rule}")
        both = tuple(item) if sequence(item) else (item, item)
        if len(both) != 2:
            raise ValueError(f"{function}: {name} {shown(padding)}: {rule}")
        sides += [integer(function, name, side) for side in both]
    return sides[0], sides[1], sides[2], sides[3]


def resolve_activation(function: str, activation: Any) -> tuple[float, float]:
    """``activation`` as the two bounds of a clamp."""
    if activation is None:
        return -math.inf, math.inf
    if isinstance(activation, str):
        if activation == "relu":
            return 0.0, math.inf
        if activation == "relu6":
            return 0.0, 6.0
    elif sequence(activation):
        bounds = tuple(activation)
        try:
            low, high = map(float, bounds)
        except (TypeError, ValueError, OverflowError):
            pass
        else:
            if low <= high and not any(isinstance(bound, (str, bytes, bool, np.bool_)) for bound in bounds):
                return low, high
    raise ValueError(
        f"{function}: activation {shown(activation)}: it must be None, 'relu', 'relu6' or a pair (low, high), low <= high"
    )


def image_shape(function: str, name: str, shape: tuple[int, ...], axes: int = 2) -> tuple[int, int, int, int]:
    """(N, C, H, W) of a batch or of one image; with ``axes`` 1, of a batch of signals (H is 1)."""
    layout = ("(N, C, H, W) or (C, H, W)", "(N, C, L) or (C, L)")[axes == 1]
    if len(shape) not in (axes + 1, axes + 2):
        raise ValueError(f"{function}: {name} has shape {shape}: it must be {layout}")
    full = shape if len(shape) == axes + 2 else (1, *shape)
    return (full[0], full[1], full[2], full[3]) if axes == 2 else (full[0], full[1], 1, full[2])


def size_4d(function: str, name: str, value: Any) -> tuple[int, int, int, int]:
    """Four non-negative ints (a shape that a caller passes as an argument)."""
    if not sequence(value) or len(tuple(value)) != 4:
        raise ValueError(f"{function}: {name} {shown(value)}: it must be four integers")
    numbers = [integer(function, name, item) for item in value]
    if min(numbers) < 0:
        raise ValueError(f"{function}: {name} {tuple(numbers)}: extents must be at least 0")
    return numbers[0], numbers[1], numbers[2], numbers[3]


def checked_shape(function: str, name: str, shape: Any) -> tuple[int, ...]:
    """The shape of an array, which callers of the ``from_args`` below may have made up."""
    if type(shape) is not tuple or not all(type(extent) is int and extent >= 0 for extent in shape):
        if not sequence(shape):
            raise TypeError(f"{function}: {name}_shape is {shown(shape)}: it must be a sequence of integers")
        shape = tuple(integer(function, f"{name}_shape", extent) for extent in shape)
        if min(shape, default=0) < 0:
            raise ValueError(f"{function}: {name}_shape {shape}: extents must be at least 0")
    return shape


def _positive_extents(function: str, name: str, shape: tuple[int, ...]) -> None:
    if min(shape[2:]) < 1:
        raise ValueError(f"{function}: {name} has shape {shape}: its height and width must be at least 1")


def addressable(function: str, *shapes: tuple[int, ...]) -> None:
    """ValueError for a shape that no array can have."""
    for shape in shapes:
        if math.prod(shape) > MOST_ELEMENTS:
            raise ValueError(f"{function}: an array of shape {shape} would not fit into memory")


# --------------------------------------------------------------------------------------------- convolution


@dataclass(frozen=True)
class ConvProblem:
    """One convolution, checked. Gradients and transposed convolutions name their forward problem.

    Make it by `from_args`, which takes the arguments of `fastconv.conv2d` and checks them.

    Attributes
    ----------
    N, IC, IH, IW, OC, KH, KW, OH, OW, G : int
        Batch; channels, height and width of the input; filters, their height and width; height and width of the
        output; groups.
    stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dil_h, dil_w : int
    dtype : {"float32", "float64"}
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
    bias : bool
        Whether one is added.
    act_min, act_max : float
        Clamp of the result.
    pool : PoolProblem or None
        A max-pool fused behind it.

    Raises
    ------
    TypeError, ValueError
        Of `from_args`, as `fastconv.conv2d`.

    Examples
    --------
    >>> from fastconv import ConvProblem
    >>> problem = ConvProblem.from_args("conv2d", (1, 3, 8, 8), (4, 3, 3, 3), "float32", stride=2, padding="same")
    >>> problem.output_shape, problem.pad_top, problem.pad_bottom
    ((1, 4, 4, 4), 0, 1)
    """

    N: int
    IC: int
    IH: int
    IW: int
    OC: int
    KH: int
    KW: int
    OH: int
    OW: int
    G: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dil_h: int
    dil_w: int
    dtype: str
    padding_mode: str = "zeros"
    bias: bool = False
    act_min: float = -math.inf
    act_max: float = math.inf
    pool: PoolProblem | None = None  # a max-pool of the maps, run on rows that have just been computed

    @classmethod
    def from_args(
        cls,
        function: str,
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        dtype: str,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: Any = 1,
        *,
        padding_mode: Any = "zeros",
        bias_shape: tuple[int, ...] | None = None,
        activation: Any = None,
        axes: int = 2,
    ) -> ConvProblem:
        """The problem of a public call; raises ValueError or TypeError naming ``function``."""
        input_shape = checked_shape(function, "input", input_shape)
        weight_shape = checked_shape(function, "weight", weight_shape)
        choice(function, "dtype", dtype, DTYPES)
        N, IC, IH, IW = image_shape(function, "input", input_shape, axes)
        if len(weight_shape) != axes + 2:
            layout = "(OC, IC/groups, KH, KW)" if axes == 2 else "(OC, IC/groups, K)"
            raise ValueError(f"{function}: weight has shape {weight_shape}: it must be {layout}")
        OC, ICG, KH, KW = weight_shape if axes == 2 else (weight_shape[0], weight_shape[1], 1, weight_shape[2])
        if min(KH, KW) < 1:
            raise ValueError(f"{function}: weight has shape {weight_shape}: its kernel must be at least 1 x 1")
        stride_h, stride_w = at_least(function, "stride", pair(function, "stride", stride, axes), 1, "strides")
        dil_h, dil_w = at_least(function, "dilation", pair(function, "dilation", dilation, axes), 1, "dilations")
        if axes == 1:
            stride_h = dil_h = 1
        G = integer(function, "groups", groups)
        if G < 1:
            raise ValueError(f"{function}: groups {G}: it must be at least 1")
        if IC % G or OC % G:
            raise ValueError(f"{function}: groups {G}: it must divide the {IC} input channels and the {OC} filters")
        if ICG * G != IC:
            hint = ""
            if IC != ICG * G == input_shape[-1]:
                hint = "; the input looks like HWC, fastconv.from_images turns photographs into NCHW"
            raise ValueError(
                f"{function}: input has {IC} channels (shape {input_shape}), weight {weight_shape} with groups {G} "
                f"needs {ICG * G}{hint}"
            )
        if bias_shape is not None and bias_shape != (OC,):
            raise ValueError(f"{function}: bias has shape {bias_shape}: it must be ({OC},), one number per filter")
        choice(function, "padding_mode", padding_mode, PADDING_MODES)
        pads = resolve_padding(function, padding, (IH, IW), (KH, KW), (stride_h, stride_w), (dil_h, dil_w), axes)
        act_min, act_max = resolve_activation(function, activation)
        _check_padding_mode(function, padding_mode, padding, pads, (IH, IW))
        OH = output_extent(IH, pads[0] + pads[1], KH, stride_h, dil_h)
        OW = output_extent(IW, pads[2] + pads[3], KW, stride_w, dil_w)
        if min(OH, OW) < 1:
            padded = (IH + pads[0] + pads[1], IW + pads[2] + pads[3])
            raise ValueError(
                f"{function}: the kernel ({KH}, {KW}) with dilation ({dil_h}, {dil_w}) is larger than the padded "
                f"input {padded}"
            )
        addressable(
            function, (N, OC, OH, OW), (N, IC, IH + abs(pads[0]) + abs(pads[1]), IW + abs(pads[2]) + abs(pads[3]))
        )
        return cls(
            N, IC, IH, IW, OC, KH, KW, OH, OW, G, stride_h, stride_w, *pads, dil_h, dil_w,
            dtype, padding_mode, bias_shape is not None, act_min, act_max,
        )  # fmt: skip

    @classmethod
    def from_transpose_args(
        cls,
        function: str,
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        dtype: str,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: Any = 1,
        dilation: Any = 1,
        *,
        bias_shape: tuple[int, ...] | None = None,
        activation: Any = None,
    ) -> ConvProblem:
        """The convolution whose adjoint a transposed convolution is: its output is ``input``."""
        input_shape = checked_shape(function, "input", input_shape)
        weight_shape = checked_shape(function, "weight", weight_shape)
        choice(function, "dtype", dtype, DTYPES)
        N, OC, OH, OW = image_shape(function, "input", input_shape)
        if len(weight_shape) != 4:
            raise ValueError(f"{function}: weight has shape {weight_shape}: it must be (IC, OC/groups, KH, KW)")
        WC, ICG, KH, KW = weight_shape
        if min(KH, KW) < 1:
            raise ValueError(f"{function}: weight has shape {weight_shape}: its kernel must be at least 1 x 1")
        stride_h, stride_w = at_least(function, "stride", pair(function, "stride", stride), 1, "strides")
        dil_h, dil_w = at_least(function, "dilation", pair(function, "dilation", dilation), 1, "dilations")
        extra_h, extra_w = at_least(
            function, "output_padding", pair(function, "output_padding", output_padding), 0, "output paddings"
        )
        if extra_h >= max(stride_h, dil_h) or extra_w >= max(stride_w, dil_w):
            raise ValueError(
                f"{function}: output_padding ({extra_h}, {extra_w}): it must be smaller than stride "
                f"({stride_h}, {stride_w}) or dilation ({dil_h}, {dil_w})"
            )
        G = integer(function, "groups", groups)
        if G < 1:
            raise ValueError(f"{function}: groups {G}: it must be at least 1")
        if WC != OC:
            raise ValueError(
                f"{function}: input has {OC} channels (shape {input_shape}), weight {weight_shape} needs {WC}"
            )
        if OC % G:
            raise ValueError(f"{function}: groups {G}: it must divide the {OC} input channels")
        IC = ICG * G
        if bias_shape is not None and bias_shape != (IC,):
            raise ValueError(f"{function}: bias has shape {bias_shape}: it must be ({IC},), one number per filter")
        if isinstance(padding, str) and padding != "valid":
            raise ValueError(f"{function}: padding {padding!r}: it must be numbers or 'valid'")
        pads = resolve_padding(function, padding, (1, 1), (KH, KW), (stride_h, stride_w), (dil_h, dil_w))
        act_min, act_max = resolve_activation(function, activation)
        _positive_extents(function, "input", (N, OC, OH, OW))
        IH = (OH - 1) * stride_h - pads[0] - pads[1] + dil_h * (KH - 1) + extra_h + 1
        IW = (OW - 1) * stride_w - pads[2] - pads[3] + dil_w * (KW - 1) + extra_w + 1
        if min(IH, IW) < 1:
            raise ValueError(f"{function}: padding {padding!r}: it leaves an output of {IH} x {IW}")
        addressable(function, (N, IC, IH, IW))
        return cls(
            N, IC, IH, IW, OC, KH, KW, OH, OW, G, stride_h, stride_w, *pads, dil_h, dil_w,
            dtype, "zeros", bias_shape is not None, act_min, act_max,
        )  # fmt: skip

    @property
    def ICG(self) -> int:
        """Input channels of one group."""
        return self.IC // self.G

    @property
    def OCG(self) -> int:
        """Filters of one group."""
        return self.OC // self.G

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, IC, IH, IW)."""
        return self.N, self.IC, self.IH, self.IW

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(OC, IC/groups, KH, KW)."""
        return self.OC, self.ICG, self.KH, self.KW

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, OC, OH, OW)."""
        return self.N, self.OC, self.OH, self.OW

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of the forward problem."""
        return math.prod(self.output_shape) * self.ICG * self.KH * self.KW

    def check_grad_output(self, function: str, shape: tuple[int, ...]) -> None:
        """ValueError unless ``shape`` is this problem's output shape (of a batch or of one image)."""
        if image_shape(function, "grad_output", shape) != self.output_shape:
            raise ValueError(
                f"{function}: grad_output has shape {shape}: it must be {self.output_shape} for input "
                f"{self.input_shape} and weight {self.weight_shape}"
            )

    def geometry(self, *, accumulate: bool = False, tile: int = 0, turned: bool = False) -> np.ndarray:
        """The read-only int64 vector that kernels read; ``turned`` is of the adjoint's weight, ``tile`` is Winograd's."""
        fields = {name: getattr(self, name) for name in GEOMETRY[:GEO_ACCUMULATE]}
        if self.pool is not None:
            fields |= {
                name: getattr(self.pool, name.removeprefix("pool_")) for name in GEOMETRY if name.startswith("pool_")
            }
        flags = {"accumulate": int(accumulate), "turned": int(turned), "tile": tile}
        return _vector(**fields, **flags, pad_mode=PADDING_MODES[self.padding_mode])

    def border(self) -> ConvProblem:
        """The padding step alone, as the problem that ``pad`` kernels read: output = padded input."""
        IH, IW = self._padded_extents()
        return replace(self, OC=self.IC, OH=IH, OW=IW, KH=1, KW=1, G=self.IC or 1, pool=None)

    def without_border(self) -> ConvProblem:
        """The same convolution of an input that has been padded already."""
        IH, IW = self._padded_extents()
        return replace(self, IH=IH, IW=IW, pad_top=0, pad_bottom=0, pad_left=0, pad_right=0, padding_mode="zeros")

    def _padded_extents(self) -> tuple[int, int]:
        return self.IH + self.pad_top + self.pad_bottom, self.IW + self.pad_left + self.pad_right


def _check_padding_mode(function: str, mode: str, padding: Any, pads: Pads, extents: tuple[int, int]) -> None:
    if mode == "zeros":
        return
    for extent, sides, axis in ((extents[0], pads[:2], "height"), (extents[1], pads[2:], "width")):
        if min(sides) < 0:
            raise ValueError(f"{function}: padding {padding!r}: it must be at least 0 when padding_mode is {mode!r}")
        most = {"reflect": extent - 1, "circular": extent, "replicate": LARGEST if extent else 0}[mode]
        if max(sides) > most:
            raise ValueError(
                f"{function}: padding {padding!r}: padding_mode {mode!r} allows at most {most} for an input of "
                f"{axis} {extent}"
            )


def _vector(**fields: int) -> np.ndarray:
    vector = np.array([fields.get(name, 0) for name in GEOMETRY], dtype=np.int64)
    vector.flags.writeable = False
    return vector


# ------------------------------------------------------------------------------------------------- pooling


@dataclass(frozen=True)
class PoolProblem:
    """One pooling, checked. Make it by `from_args`.

    Attributes
    ----------
    N, C, IH, IW, KH, KW, OH, OW : int
        Batch and channels; height and width of the input, of the window and of the output.
    stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right, dil_h, dil_w : int
    dtype : {"float32", "float64"}
    count_include_pad : bool
        Whether padding counts as cells of a mean.
    divisor : int
        Of a mean; 0: the window's own size.

    Raises
    ------
    TypeError, ValueError
        Of `from_args`, as `fastconv.max_pool2d`.

    Examples
    --------
    >>> from fastconv import PoolProblem
    >>> PoolProblem.from_args("max_pool2d", (1, 3, 9, 9), "float32", 2, ceil_mode=True).output_shape
    (1, 3, 5, 5)
    """

    N: int
    C: int
    IH: int
    IW: int
    KH: int
    KW: int
    OH: int
    OW: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dil_h: int
    dil_w: int
    dtype: str
    count_include_pad: bool = True
    divisor: int = 0  # 0: the window's own size

    @classmethod
    def from_args(
        cls,
        function: str,
        input_shape: tuple[int, ...],
        dtype: str,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: Any = False,
        *,
        count_include_pad: Any = True,
        divisor_override: Any = None,
        axes: int = 2,
        names: tuple[str, str, str] = ("kernel_size", "stride", "padding"),
    ) -> PoolProblem:
        """The problem of a public call; raises ValueError or TypeError naming ``function``."""
        size_name, stride_name, padding_name = names
        input_shape = checked_shape(function, "input", input_shape)
        choice(function, "dtype", dtype, DTYPES)
        N, C, IH, IW = image_shape(function, "input", input_shape, axes)
        KH, KW = at_least(function, size_name, pair(function, size_name, kernel_size, axes), 1, "extents")
        if stride is None:
            stride_h, stride_w = KH, KW
        else:
            stride_h, stride_w = at_least(
                function, stride_name, pair(function, stride_name, stride, axes), 1, "strides"
            )
        dil_h, dil_w = at_least(function, "dilation", pair(function, "dilation", dilation, axes), 1, "dilations")
        if axes == 1:
            KH = stride_h = dil_h = 1
        ceil = flag(function, "ceil_mode", ceil_mode)
        _positive_extents(function, "input", (N, C, IH, IW))
        pads = resolve_padding(
            function, padding, (IH, IW), (KH, KW), (stride_h, stride_w), (dil_h, dil_w), axes, padding_name
        )
        if min(pads) < 0:
            raise ValueError(f"{function}: {padding_name} {padding!r}: it must be at least 0")
        for sides, size, dil in ((pads[:2], KH, dil_h), (pads[2:], KW, dil_w)):
            if max(sides) > (dil * (size - 1) + 1) // 2:
                raise ValueError(
                    f"{function}: {padding_name} {padding!r}: it must be at most half of the kernel ({KH}, {KW}) with "
                    f"dilation ({dil_h}, {dil_w})"
                )
        OH = pooled_extent(IH, pads[0], pads[0] + pads[1], KH, stride_h, dil_h, ceil)
        OW = pooled_extent(IW, pads[2], pads[2] + pads[3], KW, stride_w, dil_w, ceil)
        if min(OH, OW) < 1:
            raise ValueError(
                f"{function}: the kernel ({KH}, {KW}) with dilation ({dil_h}, {dil_w}) is larger than the padded "
                f"input {(IH + pads[0] + pads[1], IW + pads[2] + pads[3])}"
            )
        divisor = 0
        if divisor_override is not None:
            divisor = integer(function, "divisor_override", divisor_override)
            if divisor == 0:
                raise ValueError(f"{function}: divisor_override 0: it must not be zero")
        addressable(function, (N, C, OH, OW))
        include = flag(function, "count_include_pad", count_include_pad)
        return cls(N, C, IH, IW, KH, KW, OH, OW, stride_h, stride_w, *pads, dil_h, dil_w, dtype, include, divisor)

    @classmethod
    def of_indices(
        cls, plane_shape: tuple[int, ...], index_shape: tuple[int, ...], dtype: str, window: tuple[int, int] = (1, 1)
    ) -> PoolProblem:
        """The problem of an operation that reads indices alone: (N, C, IH, IW) planes, (N, C, OH, OW) indices.

        Where windows of one size lay side by side, ``window`` tells kernels that most likely each holds its index.
        """
        N, C, IH, IW = plane_shape
        return cls(N, C, IH, IW, *window, index_shape[2], index_shape[3], *window, 0, 0, 0, 0, 1, 1, dtype)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """(N, C, IH, IW)."""
        return self.N, self.C, self.IH, self.IW

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """(N, C, OH, OW)."""
        return self.N, self.C, self.OH, self.OW

    @cached_property
    def macs(self) -> int:
        """Comparisons or additions, the measure of its work."""
        return math.prod(self.output_shape) * self.KH * self.KW

    @cached_property
    def blind(self) -> tuple[list[int], list[int]]:
        """Rows and columns of windows without a cell of the image: with a dilation they can step over a small one."""
        both = [
            [i for i, start in enumerate(range(-pad, 0, step)) if i < windows and start % dil >= extent]
            for windows, step, pad, dil, extent in (
                (self.OH, self.stride_h, self.pad_top, self.dil_h, self.IH),
                (self.OW, self.stride_w, self.pad_left, self.dil_w, self.IW),
            )
        ]
        return both[0], both[1]

    def check_grad_output(self, function: str, name: str, shape: tuple[int, ...]) -> None:
        """ValueError unless ``shape`` is this problem's output shape (of a batch or of one image)."""
        if image_shape(function, name, shape) != self.output_shape:
            raise ValueError(
                f"{function}: {name} has shape {shape}: it must be {self.output_shape} for input {self.input_shape}"
            )

    def geometry(self, *, accumulate: bool = False) -> np.ndarray:
        """The read-only int64 vector that kernels read."""
        fields = {name: getattr(self, name) for name in GEOMETRY[:GEO_ACCUMULATE] if name not in ("IC", "OC", "G")}
        return _vector(
            **fields,
            IC=self.C,
            OC=self.C,
            G=self.C,
            accumulate=int(accumulate),
            count_include_pad=int(self.count_include_pad),
            divisor=self.divisor,
        )


def flag(function: str, name: str, value: Any) -> bool:
    """``value`` as a bool; anything but True and False raises TypeError."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{function}: {name} is {shown(value)}: it must be True or False")
    return bool(value)
