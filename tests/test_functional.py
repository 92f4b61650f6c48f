"""The public functions: their meaning against the oracle, their arguments against torch's, how a back end is chosen."""

import importlib.metadata
import inspect
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastconv
import oracle
from conftest import runnable
from fastconv import _backends
from problems import BY_NAME, convolutions, integers, normals, solved
from tolerance import ZERO_MEAN, assert_same, assert_within, bound

ROOT = Path(fastconv.__file__).parent.parent
ALGORITHMS = ("auto", "im2col", "direct")


def arguments(case):
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


# -------------------------------------------------------------------------------------- names and order of arguments

SIGNATURES = {
    "conv2d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode='zeros', "
    "activation=None, algorithm='auto', backend='auto', out=None",
    "conv1d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, *, padding_mode='zeros', "
    "activation=None, algorithm='auto', backend='auto', out=None",
    "conv2d_grad_input": "input_size, weight, grad_output, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', algorithm='auto', backend='auto', out=None",
    "conv2d_grad_weight": "input, weight_size, grad_output, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', algorithm='auto', backend='auto', out=None",
    "conv2d_backward": "grad_output, input, weight, *, stride=1, padding=0, dilation=1, groups=1, "
    "padding_mode='zeros', needs=(True, True, True), algorithm='auto', backend='auto'",
    "conv2d_relu_max_pool2d": "input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1, pool_size=2, "
    "pool_stride=None, pool_padding=0, return_indices=False, *, padding_mode='zeros', algorithm='auto', "
    "backend='auto', out=None",
    "pack_conv2d_weight": "weight, input_shape=None, stride=1, padding=0, dilation=1, groups=1, *, "
    "padding_mode='zeros', algorithm='auto', backend='auto'",
    "conv_transpose2d": "input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1, *, "
    "activation=None, algorithm='auto', backend='auto', out=None",
    "max_pool2d": "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, *, "
    "backend='auto', out=None",
    "max_pool1d": "input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False, *, "
    "backend='auto', out=None",
    "max_pool2d_backward": "grad_output, indices, input_shape, kernel_size, stride=None, padding=0, dilation=1, *, "
    "backend='auto'",
    "max_unpool2d": "input, indices, kernel_size, stride=None, padding=0, output_size=None, *, backend='auto'",
    "max_unpool2d_backward": "grad_output, indices, *, backend='auto'",
    "avg_pool2d": "input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, "
    "divisor_override=None, *, backend='auto', out=None",
    "avg_pool2d_backward": "grad_output, input_shape, kernel_size, stride=None, padding=0, ceil_mode=False, "
    "count_include_pad=True, divisor_override=None, *, backend='auto'",
    "im2col": "input, kernel_size, dilation=1, padding=0, stride=1, *, backend='auto'",
    "col2im": "cols, output_size, kernel_size, dilation=1, padding=0, stride=1, *, backend='auto'",
    "relu": "input, *, out=None",
    "from_images": "images, mean=None, std=None, dtype='float32'",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    signature = inspect.signature(getattr(fastconv, name))
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == f"({SIGNATURES[name]})"


def test_every_function_has_its_signature_pinned():
    assert set(SIGNATURES) == set(fastconv.functional.__all__)


TORCH = {
    "conv2d": ("input weight bias stride padding dilation groups", "torch.conv2d"),
    "conv_transpose2d": ("input weight bias stride padding output_padding groups dilation", "torch.conv_transpose2d"),
    "max_pool2d": ("input kernel_size stride padding dilation ceil_mode return_indices", "F.max_pool2d"),
    "max_unpool2d": ("input indices kernel_size stride padding output_size", "F.max_unpool2d"),
    "avg_pool2d": (
        "input kernel_size stride padding ceil_mode count_include_pad divisor_override", "F.avg_pool2d",
    ),
    "im2col": ("input kernel_size dilation padding stride", "F.unfold"),
    "conv2d_grad_input": ("input_size weight grad_output stride padding dilation groups", "torch.nn.grad"),
    "conv2d_grad_weight": ("input weight_size grad_output stride padding dilation groups", "torch.nn.grad"),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_positional_arguments_are_torchs(name):
    names = TORCH[name][0].split()
    parameters = inspect.signature(getattr(fastconv, name)).parameters
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == names


# --------------------------------------------------------------------------------------------------- convolution

PUBLIC_CASES = [
    "one-cell", "article", "kernel-2x5", "first-layer", "1x1", "1x1-stride2", "stride-2x3", "stride-beyond-kernel",
    "padding-beyond-kernel", "four-sides", "crop", "crop-and-pad", "dilation-3x2", "crop-strided-dilated", "groups2",
    "groups3-strided", "depthwise", "multiplier3-strided", "batch-empty", "no-channels", "no-filters", "depth-43x9",
    "filters-49", "plane-14x14", "kernel-is-image", "stride-beyond-image", "dilation-beyond-image",
]  # fmt: skip


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", PUBLIC_CASES)
def test_conv2d_and_gradients(engine, name, algorithm, dtype):
    case = BY_NAME[name]
    problem, more = case.problem(dtype), {**arguments(case), "algorithm": algorithm}
    what = f"{engine.name} {algorithm} {name}"

    data = solved(case, dtype, "integers")
    x, w, b, g = (data[key] for key in ("x", "w", "bias", "grad_output"))
    exact = (data["conv"] + b[:, None, None]).astype(dtype)
    assert_same(fastconv.conv2d(x, w, b, **more), exact, what)
    assert_same(fastconv.conv2d(x, w, **more), data["conv"].astype(dtype), what)
    assert_same(fastconv.conv2d(x, w, b, activation="relu6", **more), np.clip(exact, 0, 6), what)
    assert_same(fastconv.conv2d_grad_input(x.shape, w, g, **more), data["grad_input"].astype(dtype), what)
    assert_same(fastconv.conv2d_grad_weight(x, w.shape, g, **more), data["grad_weight"].astype(dtype), what)
    grad_x, grad_w, grad_b = fastconv.conv2d_backward(g, x, w, **more)
    assert_same(grad_x, data["grad_input"].astype(dtype), what)
    assert_same(grad_w, data["grad_weight"].astype(dtype), what)
    assert_same(grad_b, g.sum(axis=(0, 2, 3)), what)

    data = solved(case, dtype, "normals")
    x, w, b, g = (data[key] for key in ("x", "w", "bias", "grad_output"))
    for actual, key, terms in (
        (fastconv.conv2d(x, w, **more), "conv", problem.ICG * problem.KH * problem.KW),
        (fastconv.conv2d_grad_input(x.shape, w, g, **more), "grad_input", problem.OCG * problem.KH * problem.KW),
        (fastconv.conv2d_grad_weight(x, w.shape, g, **more), "grad_weight", problem.N * problem.OH * problem.OW),
    ):
        assert actual.dtype == dtype
        assert_within(actual, data[key], bound(min(ZERO_MEAN, max(terms, 1)), data[f"abs_{key}"], dtype, terms), what)


@given(case=convolutions(), algorithm=st.sampled_from(ALGORITHMS))
def test_any_convolution(engine, case, algorithm):
    data = solved.__wrapped__(case, "float32", "integers")
    more = {**arguments(case), "algorithm": algorithm}
    x, w, g = data["x"], data["w"], data["grad_output"]
    assert_same(fastconv.conv2d(x, w, **more), data["conv"].astype("float32"))
    grad_x, grad_w, _ = fastconv.conv2d_backward(g, x, w, **more)
    assert_same(grad_x, data["grad_input"].astype("float32"))
    assert_same(grad_w, data["grad_weight"].astype("float32"))


def test_the_hand_example(engine, dtype):
    x = np.arange(9).reshape(1, 1, 3, 3).astype(dtype)
    w = np.array([[[[1, 2], [0, -1]]]], dtype)
    assert_same(fastconv.conv2d(x, w), np.array([[[[0 + 2 - 4, 1 + 4 - 5], [3 + 8 - 7, 4 + 10 - 8]]]], dtype))


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [(None, -math.inf, math.inf), ("relu", 0, math.inf), ("relu6", 0, 6), ((-2, 3), -2, 3), ([-5.0, 5.0], -5, 5)],
)
def test_activation(engine, activation, low, high, dtype):
    data = solved(BY_NAME["article"], dtype, "integers")
    actual = fastconv.conv2d(data["x"], data["w"], data["bias"], activation=activation)
    exact = np.clip(data["conv"] + data["bias"][:, None, None], low, high).astype(dtype)
    assert_same(actual, exact)


@pytest.mark.parametrize("algorithm", ["im2col", "direct"])
def test_activation_keeps_nan(engine, algorithm, dtype):
    x, w = np.ones((1, 1, 4, 20), dtype), np.ones((7, 1, 1, 1), dtype)
    x[0, 0, 1, 3] = np.nan
    for activation in (None, "relu", "relu6", (-1, 2)):
        out = fastconv.conv2d(x, w, activation=activation, algorithm=algorithm)
        exact = np.broadcast_to(x, (1, 7, 4, 20)).copy()
        assert_same(out, exact)


@pytest.mark.parametrize("algorithm", ["im2col", "direct"])
@pytest.mark.parametrize("name", ["same-3x3", "crop-and-pad", "stride-2x3", "groups2", "depthwise-stride2"])
def test_non_finite(engine, name, algorithm):
    """NaN and Inf stand exactly where the defining sum has them, for all three operations."""
    from convolution import _pattern, definition

    case = BY_NAME[name]
    problem, more = case.problem("float32"), {**arguments(case), "algorithm": algorithm}
    base = {key: solved(case, "float32", "integers")[key] for key in ("x", "w", "grad_output")}
    for spot in base:
        data = {**base, spot: base[spot].copy()}
        flat = data[spot].reshape(-1)
        flat[0], flat[flat.size // 2], flat[-1] = np.nan, np.inf, -np.inf
        x, w, g = data["x"], data["w"], data["grad_output"]
        with np.errstate(invalid="ignore"):
            exact = definition(problem, x, w, g)
            actual = {
                "conv": fastconv.conv2d(x, w, **more),
                "grad_input": fastconv.conv2d_grad_input(x.shape, w, g, **more),
                "grad_weight": fastconv.conv2d_grad_weight(x, w.shape, g, **more),
            }
        for key, unused in (("conv", "grad_output"), ("grad_input", "x"), ("grad_weight", "w")):
            if spot != unused:
                assert_same(_pattern(actual[key]), _pattern(exact[key]), f"{engine.name} {algorithm} {key}, {spot} odd")


def test_one_image(engine, dtype):
    """An input without a batch axis is one image, and so is the result."""
    x, w, b = normals((3, 7, 8), dtype, 1), normals((5, 3, 3, 3), dtype, 2), normals((5,), dtype, 3)
    out = fastconv.conv2d(x, w, b, padding=1)
    assert_same(out, fastconv.conv2d(x[None], w, b, padding=1)[0])
    g = normals(out.shape, dtype, 4)
    assert_same(fastconv.conv2d_grad_input(x.shape, w, g, padding=1),
                fastconv.conv2d_grad_input(x[None].shape, w, g[None], padding=1)[0])  # fmt: skip
    assert_same(fastconv.conv2d_grad_weight(x, w.shape, g, padding=1),
                fastconv.conv2d_grad_weight(x[None], w.shape, g[None], padding=1))  # fmt: skip
    for one, batch in zip(
        fastconv.conv2d_backward(g, x, w, padding=1),
        fastconv.conv2d_backward(g[None], x[None], w, padding=1),
        strict=True,
    ):
        assert_same(one, batch.reshape(one.shape))
    back = fastconv.conv_transpose2d(g, w, padding=1)
    assert_same(back, fastconv.conv_transpose2d(g[None], w, padding=1)[0])
    assert_same(fastconv.im2col(x, 3), fastconv.im2col(x[None], 3)[0])
    assert_same(
        fastconv.col2im(fastconv.im2col(x, 3), (7, 8), 3), fastconv.col2im(fastconv.im2col(x[None], 3), (7, 8), 3)[0]
    )
    pooled, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    batch = fastconv.max_pool2d(x[None], 2, return_indices=True)
    assert_same(pooled, batch[0][0])
    assert_same(indices, batch[1][0])
    assert_same(fastconv.max_pool2d_backward(pooled, indices, x.shape, 2),
                fastconv.max_pool2d_backward(pooled[None], indices[None], x[None].shape, 2)[0])  # fmt: skip
    assert_same(fastconv.max_unpool2d(pooled, indices, 2, output_size=(7, 8)),
                fastconv.max_unpool2d(pooled[None], indices[None], 2, output_size=(7, 8))[0])  # fmt: skip
    assert_same(fastconv.max_unpool2d_backward(x, indices), fastconv.max_unpool2d_backward(x[None], indices[None])[0])
    assert_same(fastconv.avg_pool2d(x, 2), fastconv.avg_pool2d(x[None], 2)[0])
    assert_same(fastconv.avg_pool2d_backward(pooled, x.shape, 2),
                fastconv.avg_pool2d_backward(pooled[None], x[None].shape, 2)[0])  # fmt: skip


@pytest.mark.parametrize(
    ("stride", "padding", "pads", "dilation", "groups"),
    [(1, 0, (0, 0), 1, 1), (2, 1, (1, 1), 1, 1), ((3,), [(2, 0)], (2, 0), (2,), 1), (1, (2,), (2, 2), 1, 2),
     (1, [(-1, 2)], (-1, 2), 1, 1), (1, "valid", (0, 0), 1, 1)],
)  # fmt: skip
def test_conv1d(engine, stride, padding, pads, dilation, groups, dtype):
    x, w, b = integers((2, 4, 23), dtype, 1), integers((6, 4 // groups, 5), dtype, 2), integers((6,), dtype, 3)
    step, dil = np.ravel(stride)[0], np.ravel(dilation)[0]
    exact = oracle.conv2d(x[:, :, None], w[:, :, None], (1, step), (0, 0, *pads), (1, dil), groups)[:, :, 0]
    actual = fastconv.conv1d(x, w, b, stride, padding, dilation, groups)
    assert_same(actual, (exact + b[:, None]).astype(dtype))
    assert_same(fastconv.conv1d(x[0], w, b, stride, padding, dilation, groups), actual[0])
    out = np.zeros_like(actual)
    assert fastconv.conv1d(x, w, b, stride, padding, dilation, groups, out=out) is out
    assert_same(out, actual)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_conv1d_padding_mode(engine, mode):
    x, w = integers((2, 3, 9), "float32", 1), integers((4, 3, 3), "float32", 2)
    padded = np.pad(x, [(0, 0), (0, 0), (2, 3)], mode=oracle.NUMPY_MODES[mode])
    actual = fastconv.conv1d(x, w, padding=[(2, 3)], padding_mode=mode)
    assert_same(actual, fastconv.conv1d(padded, w))


@pytest.mark.parametrize("padding", [0, 1, (1,), ((0, 1),)])
def test_max_pool1d(engine, padding, dtype):
    x = normals((2, 3, 17), dtype, 1)
    sides = {0: (0, 0), 1: (1, 1), (1,): (1, 1), ((0, 1),): (0, 1)}[padding]
    for ceil_mode in (False, True):
        extent = oracle.pool_extent(17, 3, 2, *sides, 1, ceil_mode)
        values, indices = oracle.max_pool2d(x[:, :, None], (1, 3), (1, 2), (0, 0, *sides), (1, 1), (1, extent))
        out, where = fastconv.max_pool1d(x, 3, 2, padding, ceil_mode=ceil_mode, return_indices=True)
        assert_same(out, values[:, :, 0])
        assert_same(where, indices[:, :, 0])
        assert_same(fastconv.max_pool1d(x[1], 3, 2, padding, ceil_mode=ceil_mode), values[1, :, 0])
    assert_same(fastconv.max_pool1d(x, [4]), fastconv.max_pool2d(x[:, :, None], (1, 4))[:, :, 0])


# ----------------------------------------------------------------------------------------------------- padding


def same_pads(extent, kernel, stride, dilation, lower):
    total = max((math.ceil(extent / stride) - 1) * stride + dilation * (kernel - 1) + 1 - extent, 0)
    small = total // 2
    return (total - small, small) if lower else (small, total - small)


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("dilation", [1, (2, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 4), (5, 3)])
@pytest.mark.parametrize("padding", ["same", "same_lower"])
def test_same(padding, kernel, dilation, stride):
    x, w = integers((1, 2, 7, 10), "float32", 1), integers((3, 2, *kernel), "float32", 2)
    steps, dils = np.broadcast_to(stride, 2), np.broadcast_to(dilation, 2)
    pads = [
        side for a in (0, 1)
        for side in same_pads(x.shape[2 + a], kernel[a], steps[a], dils[a], padding == "same_lower")
    ]  # fmt: skip
    out = fastconv.conv2d(x, w, stride=stride, padding=padding, dilation=dilation)
    assert out.shape[2:] == (math.ceil(7 / steps[0]), math.ceil(10 / steps[1]))
    assert_same(out, oracle.conv2d(x, w, tuple(steps), tuple(pads), tuple(dils)).astype("float32"))
    g = integers(out.shape, "float32", 3)
    exact = oracle.conv2d_grad_input(x.shape, w, g, tuple(steps), tuple(pads), tuple(dils)).astype("float32")
    assert_same(fastconv.conv2d_grad_input(x.shape, w, g, stride, padding, dilation), exact)


def test_same_puts_the_odd_cell_last():
    x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2))
    last = fastconv.conv2d(x, w, padding="same")[0, 0]
    first = fastconv.conv2d(x, w, padding="same_lower")[0, 0]
    assert last.tolist() == [[4, 4, 2], [4, 4, 2], [2, 2, 1]]
    assert first.tolist() == [[1, 2, 2], [2, 4, 4], [2, 4, 4]]


@pytest.mark.parametrize(
    ("padding", "pads"),
    [(2, (2, 2, 2, 2)), ((1, 3), (1, 1, 3, 3)), ([1, 0], (1, 1, 0, 0)), (((0, 2), (3, 1)), (0, 2, 3, 1)),
     ((1, (0, 3)), (1, 1, 0, 3)), ([[-1, 0], [2, -2]], (-1, 0, 2, -2)), ("valid", (0, 0, 0, 0)), (-1, (-1, -1, -1, -1)),
     (np.int64(1), (1, 1, 1, 1)), (np.array([1, 2]), (1, 1, 2, 2))],
)  # fmt: skip
def test_spellings_of_padding(padding, pads):
    x, w = integers((2, 2, 6, 7), "float32", 1), integers((3, 2, 3, 3), "float32", 2)
    assert_same(fastconv.conv2d(x, w, padding=padding), oracle.conv2d(x, w, (1, 1), pads).astype("float32"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_modes(engine, mode, algorithm, dtype):
    x, w, b = integers((2, 3, 6, 7), dtype, 1), integers((4, 3, 3, 2), dtype, 2), integers((4,), dtype, 3)
    pads = (2, 1, 4, 3)
    more = {"padding": (pads[:2], pads[2:]), "padding_mode": mode, "stride": (1, 2), "algorithm": algorithm}
    padded = oracle.pad(x, pads, mode)
    exact = oracle.conv2d(padded, w, (1, 2)) + b[:, None, None]
    assert_same(fastconv.conv2d(x, w, b, activation="relu", **more), np.maximum(exact, 0).astype(dtype))
    g = integers(exact.shape, dtype, 4)
    inner = oracle.conv2d_grad_input(padded.shape, w, g, (1, 2))
    grad_x = oracle.pad_adjoint(inner, x.shape, pads, mode).astype(dtype)
    grad_w = oracle.conv2d_grad_weight(padded, w.shape, g, (1, 2)).astype(dtype)
    assert_same(fastconv.conv2d_grad_input(x.shape, w, g, **more), grad_x)
    assert_same(fastconv.conv2d_grad_weight(x, w.shape, g, **more), grad_w)
    back = fastconv.conv2d_backward(g, x, w, **more)
    assert_same(back[0], grad_x)
    assert_same(back[1], grad_w)


# ------------------------------------------------------------------------------------- gradients and transposed


@pytest.mark.parametrize("needs", [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)])
def test_backward_computes_what_is_needed(needs):
    data = solved(BY_NAME["article"], "float32", "integers")
    results = fastconv.conv2d_backward(data["grad_output"], data["x"], data["w"], needs=needs)
    exact = (data["grad_input"], data["grad_weight"], data["grad_output"].sum(axis=(0, 2, 3)))
    for needed, actual, right in zip(needs, results, exact, strict=True):
        if needed:
            assert_same(actual, right.astype("float32"))
        else:
            assert actual is None


TRANSPOSED = [
    # input, weight, stride, padding, output_padding, groups, dilation
    ((2, 3, 4, 5), (3, 4, 3, 3), 1, 0, 0, 1, 1),
    ((1, 4, 5, 6), (4, 3, 3, 3), 2, 1, 1, 1, 1),
    ((1, 4, 3, 4), (4, 2, 2, 3), (2, 3), (0, 1), (1, 2), 2, 1),
    ((1, 3, 4, 4), (3, 1, 3, 3), 1, 2, 0, 3, 2),
    ((1, 2, 3, 3), (2, 3, 2, 2), (3, 1), 0, (2, 0), 1, (1, 2)),
    ((1, 2, 4, 3), (2, 3, 3, 3), 2, ((0, 1), (2, 1)), 0, 1, 1),
    ((2, 2, 3, 3), (2, 2, 1, 1), 3, 0, 1, 1, 1),
    ((1, 2, 3, 4), (2, 5, 3, 2), 2, 1, 1, 1, 3),
    ((0, 2, 3, 3), (2, 3, 2, 2), 2, 0, 0, 1, 1),
]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("case", range(len(TRANSPOSED)))
def test_conv_transpose2d(engine, case, algorithm, dtype):
    x_shape, w_shape, stride, padding, output_padding, groups, dilation = TRANSPOSED[case]
    x, w = integers(x_shape, dtype, 1), integers(w_shape, dtype, 2)
    b = integers((w_shape[1] * groups,), dtype, 3)
    wide = [tuple(np.broadcast_to(value, 2).tolist()) for value in (stride, output_padding, dilation)]
    sides = padding if np.ndim(padding) == 2 else [(side, side) for side in np.broadcast_to(padding, 2).tolist()]
    exact = oracle.conv_transpose2d(x, w, wide[0], (*sides[0], *sides[1]), wide[1], groups, wide[2])
    actual = fastconv.conv_transpose2d(
        x, w, b, stride, padding, output_padding, groups, dilation, algorithm=algorithm, activation=(-20, 20)
    )
    assert_same(actual, np.clip(exact + b[:, None, None], -20, 20).astype(dtype), f"{engine.name} {algorithm}")
    plain = fastconv.conv_transpose2d(
        x, w, None, stride, padding, output_padding, groups, dilation, algorithm=algorithm
    )
    assert_same(plain, exact.astype(dtype))
    # the adjoint of the convolution with the same weight
    y = integers(plain.shape, dtype, 4)
    if np.size(output_padding) == 1 and output_padding == 0 and x.size:
        forward = fastconv.conv2d(y, w, None, stride, padding, dilation, groups)
        assert (plain * y).sum() == (x * forward).sum()


def test_conv_transpose2d_by_hand(engine, dtype):
    x, w = np.array([[[[1, 2], [3, 4]]]], dtype), np.array([[[[1, 10], [100, 1000]]]], dtype)
    rows = [[1, 10, 2, 20], [100, 1000, 200, 2000], [3, 30, 4, 40], [300, 3000, 400, 4000]]
    assert_same(fastconv.conv_transpose2d(x, w, stride=2), np.array([[rows]], dtype))
    whole = [[1, 12, 20], [103, 1034 + 200, 2040], [300, 3400, 4000]]
    assert_same(fastconv.conv_transpose2d(x, w), np.array([[whole]], dtype))
    assert_same(fastconv.conv_transpose2d(x, w, padding=1), np.array([[[[1234]]]], dtype))
    assert_same(fastconv.conv_transpose2d(x, w, np.array([5], dtype), 2, output_padding=1)[..., -1, :],
                np.full((1, 1, 5), 5, dtype))  # fmt: skip


@pytest.mark.parametrize("case", range(len(TRANSPOSED)))
def test_conv_transpose2d_against_torch(case):
    torch = pytest.importorskip("torch", reason="torch is not installed: the cross-check with it is left out")
    x_shape, w_shape, stride, padding, output_padding, groups, dilation = TRANSPOSED[case]
    if np.ndim(padding) == 2 or not x_shape[0]:
        pytest.skip("torch has no four-sided padding")
    x, w = integers(x_shape, "float64", 1), integers(w_shape, "float64", 2)
    more = (stride, padding, output_padding, groups, dilation)
    exact = torch.nn.functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(w), None, *more)
    assert_same(fastconv.conv_transpose2d(x, w, None, *more), exact.numpy())


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "stride"),
    [(3, 1, 0, 1), ((2, 3), 1, (1, 2), (2, 1)), (2, (3, 2), 1, 2), ((1, 4), 1, ((0, 1), (2, 0)), (1, 3)), (1, 1, 0, 1)],
)
def test_columns(engine, kernel, dilation, padding, stride, dtype):
    x = normals((2, 3, 7, 8), dtype, 1)
    kernel2, dils, steps = (tuple(np.broadcast_to(v, 2).tolist()) for v in (kernel, dilation, stride))
    sides = padding if np.ndim(padding) == 2 else [(s, s) for s in np.broadcast_to(padding, 2).tolist()]
    pads = (*sides[0], *sides[1])
    extents = tuple((x.shape[2 + a] + sum(sides[a]) - dils[a] * (kernel2[a] - 1) - 1) // steps[a] + 1 for a in (0, 1))
    exact = oracle.unfold(x, kernel2, steps, pads, dils, extents)
    flat = exact.reshape(2, 3 * kernel2[0] * kernel2[1], extents[0] * extents[1])
    assert_same(fastconv.im2col(x, kernel, dilation, padding, stride), flat)
    cols = integers(flat.shape, dtype, 2)
    back = oracle.fold(cols.reshape(exact.shape), x.shape, steps, pads, dils).astype(dtype)
    assert_same(fastconv.col2im(cols, (7, 8), kernel, dilation, padding, stride), back)
    torch = pytest.importorskip("torch", reason="torch is not installed: the cross-check with it is left out")
    if np.ndim(padding) < 2:
        unfolded = torch.nn.functional.unfold(torch.from_numpy(x), kernel, dilation, padding, stride)
        assert_same(fastconv.im2col(x, kernel, dilation, padding, stride), unfolded.numpy())
        folded = torch.nn.functional.fold(torch.from_numpy(cols), (7, 8), kernel, dilation, padding, stride)
        assert_same(fastconv.col2im(cols, (7, 8), kernel, dilation, padding, stride), folded.numpy())


# ------------------------------------------------------------------------------------- activations and pictures


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5), (0, 3)])
def test_relu(shape, dtype):
    x = np.asarray(normals(shape, dtype, 1))
    out = fastconv.relu(x)
    assert isinstance(out, np.ndarray) and out.dtype == dtype
    assert_same(out, np.where(x > 0, x, 0).astype(dtype))


def test_relu_keeps_nan_and_works_in_place(dtype):
    x = np.array([np.nan, -np.inf, np.inf, -0.0, 3], dtype)
    exact = np.array([np.nan, 0, np.inf, 0, 3], dtype)
    assert_same(fastconv.relu(x), exact)
    assert fastconv.relu(x, out=x) is x
    assert_same(x, exact)


def test_from_images(dtype):
    photo = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    out = fastconv.from_images(photo, dtype=dtype)
    assert out.shape == (1, 3, 4, 6) and out.dtype == dtype and out.flags.c_contiguous
    assert_same(out, (photo.transpose(2, 0, 1)[None].astype(dtype) / np.dtype(dtype).type(255)))
    assert_same(fastconv.from_images(np.full((1, 2, 2, 3), 255, np.uint8)), np.ones((1, 3, 2, 2), "float32"))
    batch = np.stack([photo, photo[::-1]])
    mean, std = [0.5, 0.25, 0.125], [0.5, 2.0, 0.25]
    out = fastconv.from_images(batch, mean, std, dtype)
    exact = (batch.transpose(0, 3, 1, 2) / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    assert out.shape == (2, 3, 4, 6)
    assert_within(out, exact, 8 * np.finfo(dtype).eps)
    assert_within(fastconv.from_images(photo, 0.5, 2.0, dtype), (photo.transpose(2, 0, 1)[None] / 255.0 - 0.5) / 2,
                  4 * np.finfo(dtype).eps)  # fmt: skip
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    assert fastconv.from_images(grey).shape == (1, 1, 2, 3)


# ------------------------------------------------------------------------------------------------- out= and inputs


def test_out_takes_the_result(engine, dtype):
    data = solved(BY_NAME["article"], dtype, "normals")
    x, w, b, g = (data[key] for key in ("x", "w", "bias", "grad_output"))
    pooled = fastconv.max_pool2d(g, 2)
    for call, arguments_ in (
        (fastconv.conv2d, (x, w, b)),
        (fastconv.conv2d_grad_input, (x.shape, w, g)),
        (fastconv.conv2d_grad_weight, (x, w.shape, g)),
        (fastconv.conv_transpose2d, (g, w)),
        (fastconv.max_pool2d, (g, 2)),
        (fastconv.avg_pool2d, (g, 2)),
        (fastconv.relu, (x,)),
    ):
        exact = call(*arguments_)
        for out in (
            np.full(exact.shape, np.nan, dtype),
            np.full(exact.shape[::-1], np.nan, dtype).T,  # Fortran order
            np.full((*exact.shape[:-1], 2 * exact.shape[-1]), np.nan, dtype)[..., ::2],
            np.full(exact.shape, np.nan, dtype)[..., ::-1],
        ):
            assert call(*arguments_, out=out) is out, call.__name__
            assert_same(out, exact, call.__name__)
    out = np.zeros_like(pooled)
    result, indices = fastconv.max_pool2d(g, 2, return_indices=True, out=out)
    assert result is out and indices.dtype == np.int64
    assert_same(out, pooled)


def test_out_of_one_image(dtype):
    x, w = normals((3, 5, 6), dtype, 1), normals((4, 3, 3, 3), dtype, 2)
    out = np.zeros((4, 3, 4), dtype)
    assert fastconv.conv2d(x, w, out=out) is out
    assert_same(out, fastconv.conv2d(x[None], w)[0])


class OnlyDlpack:
    """An array of another library: the DLPack protocol and nothing else."""

    def __init__(self, array, device=None):
        self._array, self._device = array, device

    def __dlpack__(self, **more):
        return self._array.__dlpack__(**more)

    def __dlpack_device__(self):
        return self._device or self._array.__dlpack_device__()


class OnlyArray:
    """An array of another library: __array__ and nothing else."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array if dtype is None else self._array.astype(dtype)


@pytest.mark.parametrize("wrap", [OnlyDlpack, OnlyArray])
def test_foreign_arrays(wrap, dtype):
    data = {key: value.copy() for key, value in solved(BY_NAME["article"], dtype, "integers").items()}
    x, w, b = data["x"], data["w"], data["bias"]
    assert_same(fastconv.conv2d(wrap(x), wrap(w), wrap(b)), fastconv.conv2d(x, w, b))
    _, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    pooled = fastconv.max_pool2d(wrap(x), 2)
    assert_same(
        fastconv.max_unpool2d(wrap(pooled), wrap(indices), 2, output_size=(10, 11)),
        fastconv.max_unpool2d(pooled, indices, 2, output_size=(10, 11)),
    )
    photo = np.zeros((2, 3, 3), np.uint8)
    assert fastconv.from_images(wrap(photo)).shape == (1, 3, 2, 3)


def test_an_array_on_another_device_is_named():
    x = np.zeros((1, 1, 3, 3), "float32")
    message = "conv2d: input is a OnlyDlpack on a device: move it to the CPU first"
    with pytest.raises(TypeError) as caught:
        fastconv.conv2d(OnlyDlpack(x, (2, 0)), x)
    assert str(caught.value) == message


def test_torch_tensors_are_accepted():
    torch = pytest.importorskip("torch", reason="torch is not installed: its tensors cannot be passed")
    x, w = normals((1, 2, 5, 5), "float32", 1), normals((3, 2, 3, 3), "float32", 2)
    out = fastconv.conv2d(torch.from_numpy(x), torch.from_numpy(w))
    assert type(out) is np.ndarray
    assert_same(out, fastconv.conv2d(x, w))


# ---------------------------------------------------------------------------------------------- choosing a back end


def chosen():
    """(backend, isa) of a call made now."""
    k = _backends.resolve()
    return k.backend, k.isa


def test_config_nests_and_restores():
    outside = chosen(), fastconv.get_num_threads()
    with fastconv.config(backend="reference", num_threads=3):
        assert chosen() == ("reference", None) and fastconv.get_num_threads() == 3
        with fastconv.config(num_threads=1):
            assert chosen() == ("reference", None) and fastconv.get_num_threads() == 1
            with fastconv.config(backend="auto"):
                assert chosen() == outside[0] and fastconv.get_num_threads() == 1
            assert chosen() == ("reference", None)
        with pytest.raises(KeyError), fastconv.config(num_threads=2):
            raise KeyError
        assert fastconv.get_num_threads() == 3
    assert (chosen(), fastconv.get_num_threads()) == outside


def test_config_can_be_entered_again():
    settings = fastconv.config(backend="reference")
    with settings:
        with settings:
            assert chosen()[0] == "reference"
        assert chosen()[0] == "reference"
    with settings:
        assert chosen()[0] == "reference"


def test_config_is_of_one_thread():
    seen = []
    with fastconv.config(backend="reference", num_threads=7):
        thread = threading.Thread(target=lambda: seen.append((chosen(), fastconv.get_num_threads())))
        thread.start()
        thread.join()
    assert seen == [(chosen(), fastconv.get_num_threads())]


def test_config_chooses_the_isa():
    isas = [isa for isa in _backends.ISAS if _backends.refusal("cython", isa) is None]
    if not isas:
        pytest.skip(f"cython: {_backends.refusal('cython')}")
    for isa in isas:
        with fastconv.config(backend="cython", isa=isa):
            assert chosen() == ("cython", isa)
            assert fastconv.plan_conv2d(BY_NAME["article"].problem()).isa == isa


def test_an_argument_beats_config():
    data = solved(BY_NAME["article"], "float32", "integers")
    with fastconv.config(backend="reference"):
        for backend in fastconv.available_backends():
            plan = fastconv.plan_conv2d(BY_NAME["article"].problem(), backend=backend)
            assert plan.backend == backend
            out = fastconv.conv2d(data["x"], data["w"], backend=backend)
            assert_same(out, data["conv"].astype("float32"))


def test_available_backends():
    assert fastconv.available_backends()[-1] == "reference"
    assert {name.partition("-")[0] for name in runnable()} == set(fastconv.available_backends())


def test_show_config(capsys):
    fastconv.show_config()
    text = capsys.readouterr().out
    assert text.startswith(f"fastconv {fastconv.__version__}\n")
    for word in (*_backends.BACKENDS, *_backends.ISAS, "threads", "backend in use", "isa in use"):
        assert word in text, word
    if "cython" in fastconv.available_backends():
        assert "openmp" in text and "VL 4 float32 / 2 float64" in text
    if "numba" in fastconv.available_backends():
        assert importlib.metadata.version("numba") in text


def python(code, **environment):
    """Run code in a new process; its output, last line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FASTCONV_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**clean, **environment},
        timeout=300,
    )
    return run.stdout.strip(), run.stderr.strip().splitlines()[-1:], run.returncode


SHOW = (
    "import fastconv; from fastconv import _backends as b; k = b.resolve(); "
    "print(k.backend, k.isa, fastconv.get_num_threads())"
)


def test_environment_chooses_the_backend():
    out, error, code = python(SHOW, FASTCONV_BACKEND="reference", FASTCONV_NUM_THREADS="5")
    assert (out, code) == ("reference None 5", 0), error


def test_environment_caps_the_isa():
    if _backends.refusal("cython"):
        pytest.skip(f"cython: {_backends.refusal('cython')}")
    out, error, code = python(SHOW, FASTCONV_MAX_ISA="baseline", FASTCONV_BACKEND="cython", FASTCONV_NUM_THREADS="1")
    assert (out, code) == ("cython baseline 1", 0), error


def test_environment_caps_numbas_vectors():
    if _backends.refusal("numba"):
        pytest.skip(f"numba: {_backends.refusal('numba')}")
    code = "from fastconv._numba import direct; print(direct.VL_FLOAT, direct.VL_DOUBLE)"
    assert python(code, FASTCONV_MAX_ISA="baseline")[0] == "4 2"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "FASTCONV_BACKEND",
            "cuda",
            "ValueError: FASTCONV_BACKEND is 'cuda': it must be 'auto' or one of cython, numba, reference",
        ),
        (
            "FASTCONV_MAX_ISA",
            "avx9",
            "ValueError: FASTCONV_MAX_ISA is 'avx9': it must be one of baseline, x86_64_v3, x86_64_v4",
        ),
        ("FASTCONV_NUM_THREADS", "0", "ValueError: FASTCONV_NUM_THREADS is '0': it must be an integer of at least 1"),
        (
            "FASTCONV_NUM_THREADS",
            "many",
            "ValueError: FASTCONV_NUM_THREADS is 'many': it must be an integer of at least 1",
        ),
    ],
)
def test_environment_is_checked(variable, value, message):
    if variable == "FASTCONV_MAX_ISA" and _backends.refusal("cython"):
        pytest.skip(f"cython: {_backends.refusal('cython')}")
    _, error, code = python(SHOW, **{variable: value})
    assert (error, code) == ([message], 1)


def test_without_extension_and_numba_one_warning_says_why():
    code = """
import sys, warnings, importlib.util
sys.modules["fastconv._cython.cpu"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "numba" else find(name, package)
import numpy as np, fastconv
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        out = fastconv.conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3)))
print(out.item(), fastconv.available_backends(), *(f"{w.category.__name__} {w.message}" for w in caught), sep="|")
"""
    out, error, status = python(code)
    assert status == 0, error
    value, backends, *caught = out.split("|")
    assert (value, backends) == ("9.0", "('reference',)")
    assert len(caught) == 1, caught
    assert caught[0].startswith(
        "RuntimeWarning fastconv runs on its slow NumPy reference kernels (cython: the compiled"
    )
    assert "numba: numba is not installed" in caught[0]


def test_without_extension_numba_serves():
    if _backends.refusal("numba"):
        pytest.skip(f"numba: {_backends.refusal('numba')}")
    out, error, status = python(
        'import sys; sys.modules["fastconv._cython.cpu"] = None\n' + SHOW, FASTCONV_NUM_THREADS="1"
    )
    assert (out, status) == ("numba None 1", 0), error


def test_clear_workspaces_changes_no_result(engine):
    data = solved(BY_NAME["article"], "float32", "normals")
    before = fastconv.conv2d(data["x"], data["w"])
    fastconv.clear_workspaces()
    assert_same(fastconv.conv2d(data["x"], data["w"]), before)


@pytest.mark.parametrize("stride", [33, (2, 1000), 10**6, 2**31 - 1])
def test_a_stride_beyond_the_image_costs_nothing(engine, stride):
    """A gradient must not plan one convolution for each of stride * stride residues."""
    x, w = integers((1, 2, 7, 8), "float64", 1), integers((3, 2, 3, 3), "float64", 2)
    step_h, step_w = np.broadcast_to(stride, 2).tolist()
    y = fastconv.conv2d(x, w, stride=stride)
    np.testing.assert_array_equal(y, fastconv.conv2d(x, w)[..., ::step_h, ::step_w])
    grad_input, grad_weight, _ = fastconv.conv2d_backward(np.ones_like(y), x, w, stride=stride)
    dense = np.zeros(fastconv.conv2d(x, w).shape)
    dense[..., ::step_h, ::step_w] = 1
    np.testing.assert_array_equal(grad_input, fastconv.conv2d_grad_input(x.shape, w, dense))
    np.testing.assert_array_equal(grad_weight, fastconv.conv2d_grad_weight(x, w.shape, dense))
