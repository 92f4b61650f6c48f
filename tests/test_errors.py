"""Every error message: its type, its words, that it is one line, and that the call changed and allocated nothing."""

# ruff: noqa: E501 - a message stands on one line, so that a search for it ends here

import ast
import math
import traceback
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from fastconv import ConvProblem, PoolProblem, _backends, _plan, _problem

X = np.arange(180, dtype="float32").reshape(2, 3, 5, 6)
W = np.ones((4, 3, 3, 3), "float32")
B = np.ones(4, "float32")
G = np.ones((2, 4, 3, 4), "float32")
X64, B64 = X.astype("float64"), B.astype("float64")
XT, WT = np.ones((1, 4, 3, 3), "float32"), np.ones((4, 2, 3, 3), "float32")
P = np.arange(36, dtype="float32").reshape(1, 1, 6, 6)  # to pool
PG, PI = np.ones((1, 1, 3, 3), "float32"), np.arange(9).reshape(1, 1, 3, 3)
COLS = np.ones((2, 27, 12), "float32")
PHOTO = np.zeros((4, 6, 3), np.uint8)
SIGNALS, TAPS = np.ones((2, 3, 9), "float32"), np.ones((4, 3, 3), "float32")
READ_ONLY = np.zeros((2, 4, 3, 4), "float32")
READ_ONLY.flags.writeable = False
WHOLE = np.zeros(1000, "float32")
INSIDE, AROUND = WHOLE[:180].reshape(2, 3, 5, 6), WHOLE[100:196].reshape(2, 4, 3, 4)

PADDING = (
    "it must be an integer, a pair, a pair of pairs ((top, bottom), (left, right)), 'valid', 'same' or 'same_lower'"
)
NAMES = f"it must be one of {', '.join(map(repr, ('auto', *_plan.ALGORITHMS)))}"
CLAMP = "it must be None, 'relu', 'relu6' or a pair (low, high), low <= high"


class OnGpu:
    def __dlpack__(self, **more):
        raise AssertionError("the device was not asked first")

    def __dlpack_device__(self):
        return 2, 0


class Broken:
    def __array__(self, *arguments, **more):
        raise RuntimeError("it needs\na gradient")


# (call, exception, message); the message is the whole of it
TABLE = [
    # ---- what an array may be
    (lambda: fc.conv2d([[1.0]], W), TypeError, "conv2d: input is a list: it must be a NumPy array or have __array__ or __dlpack__"),
    (lambda: fc.conv2d(X, None), TypeError, "conv2d: weight is a NoneType: it must be a NumPy array or have __array__ or __dlpack__"),
    (lambda: fc.conv2d(np.ma.array(X), W), TypeError, "conv2d: input is a masked array: pass its filled() values"),
    (lambda: fc.conv2d(OnGpu(), W), TypeError, "conv2d: input is a OnGpu on a device: move it to the CPU first"),
    (lambda: fc.conv2d(Broken(), W), TypeError, "conv2d: input is a Broken that cannot become an array: it needs a gradient"),
    (lambda: fc.conv2d(X.astype(int), W), TypeError, "conv2d: input has dtype int64: it must be float32 or float64"),
    (lambda: fc.conv2d(X.astype(np.uint8), W), TypeError, "conv2d: input has dtype uint8: it must be float32 or float64; fastconv.from_images turns uint8 photographs into floats"),
    (lambda: fc.conv2d(PHOTO, W), TypeError, "conv2d: input has dtype uint8: it must be float32 or float64; fastconv.from_images turns uint8 photographs into floats"),
    (lambda: fc.conv2d(X, W.astype("float16")), TypeError, "conv2d: weight has dtype float16: it must be float32 or float64"),
    (lambda: fc.conv2d(X, W, B.astype(complex)), TypeError, "conv2d: bias has dtype complex128: it must be float32 or float64"),
    (lambda: fc.conv2d(X, W, B64), TypeError, "conv2d: input is float32 and bias is float64: they must have one dtype"),
    (lambda: fc.conv2d(X64, W), TypeError, "conv2d: input is float64 and weight is float32: they must have one dtype"),
    (lambda: fc.conv2d_grad_input(X.shape, W, G.astype("float64")), TypeError, "conv2d_grad_input: weight is float32 and grad_output is float64: they must have one dtype"),
    (lambda: fc.conv2d_grad_weight(X64, W.shape, G), TypeError, "conv2d_grad_weight: input is float64 and grad_output is float32: they must have one dtype"),
    (lambda: fc.conv2d_backward(G, X64, W), TypeError, "conv2d_backward: grad_output is float32 and input is float64: they must have one dtype"),
    (lambda: fc.conv_transpose2d(XT, WT.astype("float64")), TypeError, "conv_transpose2d: input is float32 and weight is float64: they must have one dtype"),
    (lambda: fc.relu(np.array([1, 2])), TypeError, "relu: input has dtype int64: it must be float32 or float64"),
    (lambda: fc.max_pool2d(P > 3, 2), TypeError, "max_pool2d: input has dtype bool: it must be float32 or float64"),
    (lambda: fc.avg_pool2d(P.astype(object), 2), TypeError, "avg_pool2d: input has dtype object: it must be float32 or float64"),
    # ---- shapes of arrays
    (lambda: fc.conv2d(X[0, 0], W), ValueError, "conv2d: input has shape (5, 6): it must be (N, C, H, W) or (C, H, W)"),
    (lambda: fc.conv2d(np.float32(1), W), ValueError, "conv2d: input has shape (): it must be (N, C, H, W) or (C, H, W)"),
    (lambda: fc.conv1d(X, TAPS), ValueError, "conv1d: input has shape (2, 3, 5, 6): it must be (N, C, L) or (C, L)"),
    (lambda: fc.conv2d(X, W[0]), ValueError, "conv2d: weight has shape (3, 3, 3): it must be (OC, IC/groups, KH, KW)"),
    (lambda: fc.conv1d(SIGNALS, W), ValueError, "conv1d: weight has shape (4, 3, 3, 3): it must be (OC, IC/groups, K)"),
    (lambda: fc.conv2d(X, W[..., :0]), ValueError, "conv2d: weight has shape (4, 3, 3, 0): its kernel must be at least 1 x 1"),
    (lambda: fc.conv2d(X[:, :2], W), ValueError, "conv2d: input has 2 channels (shape (2, 2, 5, 6)), weight (4, 3, 3, 3) with groups 1 needs 3"),
    (lambda: fc.conv2d(np.ones((5, 6, 3), "float32"), W), ValueError, "conv2d: input has 5 channels (shape (5, 6, 3)), weight (4, 3, 3, 3) with groups 1 needs 3; the input looks like HWC, fastconv.from_images turns photographs into NCHW"),
    (lambda: fc.conv2d(X, W, B[:3]), ValueError, "conv2d: bias has shape (3,): it must be (4,), one number per filter"),
    (lambda: fc.conv2d(X, W, B[:, None]), ValueError, "conv2d: bias has shape (4, 1): it must be (4,), one number per filter"),
    # ---- strides, dilations, groups
    (lambda: fc.conv2d(X, W, stride=0), ValueError, "conv2d: stride 0: strides must be at least 1"),
    (lambda: fc.conv2d(X, W, stride=(0, 1)), ValueError, "conv2d: stride (0, 1): strides must be at least 1"),
    (lambda: fc.conv2d(X, W, stride=-1), ValueError, "conv2d: stride -1: strides must be at least 1"),
    (lambda: fc.conv2d(X, W, stride=(1, 2, 3)), ValueError, "conv2d: stride (1, 2, 3): it must be an integer or a pair of integers"),
    (lambda: fc.conv1d(SIGNALS, TAPS, stride=(1, 2)), ValueError, "conv1d: stride (1, 2): it must be an integer or a sequence of one of integers"),
    (lambda: fc.conv2d(X, W, stride=1.0), TypeError, "conv2d: stride is 1.0: it must be an integer"),
    (lambda: fc.conv2d(X, W, stride=True), TypeError, "conv2d: stride is True: it must be an integer"),
    (lambda: fc.conv2d(X, W, stride="2"), TypeError, "conv2d: stride is '2': it must be an integer or a pair of integers"),
    (lambda: fc.conv2d(X, W, stride=None), TypeError, "conv2d: stride is None: it must be an integer"),
    (lambda: fc.conv2d(X, W, stride=2**31), ValueError, "conv2d: stride is 2147483648: its size must stay below 2**31"),
    (lambda: fc.conv2d(X, W, dilation=0), ValueError, "conv2d: dilation 0: dilations must be at least 1"),
    (lambda: fc.conv2d(X, W, dilation=(1, -2)), ValueError, "conv2d: dilation (1, -2): dilations must be at least 1"),
    (lambda: fc.conv2d(X, W, groups=0), ValueError, "conv2d: groups 0: it must be at least 1"),
    (lambda: fc.conv2d(X, W, groups=2), ValueError, "conv2d: groups 2: it must divide the 3 input channels and the 4 filters"),
    (lambda: fc.conv2d(X, W, groups=1.5), TypeError, "conv2d: groups is 1.5: it must be an integer"),
    # ---- padding
    (lambda: fc.conv2d(X, W, padding="foo"), ValueError, "conv2d: padding 'foo': it must be one of 'same', 'same_lower', 'valid'"),
    (lambda: fc.conv2d(X, W, padding=(1, 2, 3)), ValueError, f"conv2d: padding (1, 2, 3): {PADDING}"),
    (lambda: fc.conv2d(X, W, padding=("same", 1)), ValueError, f"conv2d: padding ('same', 1): {PADDING}"),
    (lambda: fc.conv2d(X, W, padding=((1, 2, 3), 1)), ValueError, f"conv2d: padding ((1, 2, 3), 1): {PADDING}"),
    (lambda: fc.conv2d(X, W, padding=0.5), TypeError, "conv2d: padding is 0.5: it must be an integer"),
    (lambda: fc.conv2d(X, W, padding=((1, 0.5), 1)), TypeError, "conv2d: padding is 0.5: it must be an integer"),
    (lambda: fc.conv2d(X, W, padding=b"ab"), TypeError, "conv2d: padding is b'ab': it must be an integer"),
    (lambda: fc.conv2d(X, W, padding={1, 2}), TypeError, "conv2d: padding is {1, 2}: it must be an integer"),
    (lambda: fc.conv2d(X, W, stride={1: 2, 2: 1}), TypeError, "conv2d: stride is {1: 2, 2: 1}: it must be an integer"),
    (lambda: fc.conv2d(X, W, padding_mode="mirror"), ValueError, "conv2d: padding_mode 'mirror': it must be one of 'zeros', 'reflect', 'replicate', 'circular'"),
    (lambda: fc.conv2d(X, W, padding=-1, padding_mode="reflect"), ValueError, "conv2d: padding -1: it must be at least 0 when padding_mode is 'reflect'"),
    (lambda: fc.conv2d(X, W, padding=5, padding_mode="reflect"), ValueError, "conv2d: padding 5: padding_mode 'reflect' allows at most 4 for an input of height 5"),
    (lambda: fc.conv2d(X, W, padding=(0, 7), padding_mode="circular"), ValueError, "conv2d: padding (0, 7): padding_mode 'circular' allows at most 6 for an input of width 6"),
    (lambda: fc.conv2d(X[:, :, :2], W), ValueError, "conv2d: the kernel (3, 3) with dilation (1, 1) is larger than the padded input (2, 6)"),
    (lambda: fc.conv2d(X, W, padding=(-2, 0)), ValueError, "conv2d: the kernel (3, 3) with dilation (1, 1) is larger than the padded input (1, 6)"),
    (lambda: fc.conv2d(X, W, dilation=(1, 3)), ValueError, "conv2d: the kernel (3, 3) with dilation (1, 3) is larger than the padded input (5, 6)"),
    (lambda: fc.conv2d(X, W, padding=2**30), ValueError, f"conv2d: an array of shape (2, 4, {2**31 + 3}, {2**31 + 4}) would not fit into memory"),
    (lambda: fc.conv2d(X, W, padding=2**24), ValueError, f"conv2d: an array of shape (2, 4, {2**25 + 3}, {2**25 + 4}) would not fit into memory"),
    # ---- names
    (lambda: fc.conv2d(X, W, activation="tanh"), ValueError, f"conv2d: activation 'tanh': {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=(2, 1)), ValueError, f"conv2d: activation (2, 1): {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=(1,)), ValueError, f"conv2d: activation (1,): {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=(0, "b")), ValueError, f"conv2d: activation (0, 'b'): {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=(0, math.nan)), ValueError, f"conv2d: activation (0, nan): {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=True), ValueError, f"conv2d: activation True: {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=("0", "6")), ValueError, f"conv2d: activation ('0', '6'): {CLAMP}"),
    (lambda: fc.conv2d(X, W, activation=(False, True)), ValueError, f"conv2d: activation (False, True): {CLAMP}"),
    (lambda: fc.conv2d(X, W, algorithm="fft"), ValueError, f"conv2d: algorithm 'fft': {NAMES}"),
    (lambda: fc.conv2d(X, W, algorithm=None), ValueError, f"conv2d: algorithm None: {NAMES}"),
    (lambda: fc.conv2d(X, W, padding=X), ValueError, f"conv2d: padding an array of shape (2, 3, 5, 6): {PADDING}"),
    (lambda: fc.conv2d(X, W, stride=X), TypeError, "conv2d: stride is an array of shape (2, 3, 5, 6): it must be an integer or a pair of integers"),
    (lambda: fc.conv2d(X, W, backend=B), ValueError, "conv2d: backend an array of shape (4,): it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.conv2d(X, W, backend="cuda"), ValueError, "conv2d: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.max_pool2d(P, 2, backend="cuda"), ValueError, "max_pool2d: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.im2col(P, 2, backend="cuda"), ValueError, "im2col: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.plan_conv2d(3), TypeError, "plan_conv2d: problem is a int: it must be a ConvProblem"),
    (lambda: fc.plan_conv2d(ConvProblem.from_args("t", X.shape, W.shape, "float32"), op="sideways"), ValueError, "plan_conv2d: op 'sideways': it must be one of 'forward', 'grad_input', 'grad_weight'"),
    (lambda: fc.plan_conv2d(ConvProblem.from_args("t", X.shape, W.shape, "float32"), op="grad_input", packed=True), ValueError, "plan_conv2d: packed with op 'grad_input': only the forward reads a packed weight"),
    (lambda: ConvProblem.from_args("t", 3, W.shape, "float32"), TypeError, "t: input_shape is 3: it must be a sequence of integers"),
    (lambda: ConvProblem.from_args("t", (1.0, 3, 5, 6), W.shape, "float32"), TypeError, "t: input_shape is 1.0: it must be an integer"),
    (lambda: ConvProblem.from_args("t", (-1, 3, 5, 6), W.shape, "float32"), ValueError, "t: input_shape (-1, 3, 5, 6): extents must be at least 0"),
    (lambda: ConvProblem.from_args("t", X.shape, W.shape, "float16"), ValueError, "t: dtype 'float16': it must be one of 'float32', 'float64'"),
    (lambda: PoolProblem.from_args("t", P.shape, None, 2), ValueError, "t: dtype None: it must be one of 'float32', 'float64'"),
    (lambda: fc.plan_conv2d(ConvProblem.from_args("t", X.shape, W.shape, "float32"), backend="cuda"), ValueError, "plan_conv2d: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    # ---- packed weights, the fused unit, tuning
    (lambda: fc.pack_conv2d_weight(W[0]), ValueError, "pack_conv2d_weight: weight has shape (3, 3, 3): it must be (OC, IC/groups, KH, KW)"),
    (lambda: fc.pack_conv2d_weight(W.astype(int)), TypeError, "pack_conv2d_weight: weight has dtype int64: it must be float32 or float64"),
    (lambda: fc.pack_conv2d_weight(W, stride=0), ValueError, "pack_conv2d_weight: stride 0: strides must be at least 1"),
    (lambda: fc.pack_conv2d_weight(W, groups=3), ValueError, "pack_conv2d_weight: groups 3: it must divide the 9 input channels and the 4 filters"),
    (lambda: fc.pack_conv2d_weight(W, X.shape, algorithm="fft"), ValueError, f"pack_conv2d_weight: algorithm 'fft': {NAMES}"),
    (lambda: fc.conv2d(X64, fc.pack_conv2d_weight(W)), TypeError, "conv2d: input is float64 and weight is float32: they must have one dtype"),
    (lambda: fc.conv2d(X[:, :2], fc.pack_conv2d_weight(W)), ValueError, "conv2d: input has 2 channels (shape (2, 2, 5, 6)), weight (4, 3, 3, 3) with groups 1 needs 3"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, pool_size=0), ValueError, "conv2d_relu_max_pool2d: pool_size 0: extents must be at least 1"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, pool_stride=0), ValueError, "conv2d_relu_max_pool2d: pool_stride 0: strides must be at least 1"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, pool_padding=2), ValueError, "conv2d_relu_max_pool2d: pool_padding 2: it must be at most half of the kernel (2, 2) with dilation (1, 1)"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, pool_size=9), ValueError, "conv2d_relu_max_pool2d: the kernel (9, 9) with dilation (1, 1) is larger than the padded input (3, 4)"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, return_indices=1), TypeError, "conv2d_relu_max_pool2d: return_indices is 1: it must be True or False"),
    (lambda: fc.conv2d_relu_max_pool2d(X, W, out=G), ValueError, "conv2d_relu_max_pool2d: out has shape (2, 4, 3, 4): it must be (2, 4, 1, 2)"),
    (lambda: fc.tune(3), TypeError, "tune: problem is a int: it must be a ConvProblem"),
    (lambda: fc.tune(ConvProblem.from_args("t", X.shape, W.shape, "float32"), seconds=0), ValueError, "tune: seconds 0: it must be a number above 0"),
    (lambda: fc.tune(ConvProblem.from_args("t", X.shape, W.shape, "float32"), op="up"), ValueError, "tune: op 'up': it must be one of 'forward', 'grad_input', 'grad_weight'"),
    (lambda: fc.tune(ConvProblem.from_args("t", X.shape, W.shape, "float32"), "cuda"), ValueError, "tune: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.tune(ConvProblem.from_args("t", X.shape, W.shape, "float32"), packed=1), TypeError, "tune: packed is 1: it must be True or False"),
    # ---- out=
    (lambda: fc.conv2d(X, W, out=[1.0]), TypeError, "conv2d: out is a list: it must be a NumPy array"),
    (lambda: fc.conv2d(X, W, out=np.ma.array(G)), TypeError, "conv2d: out is a MaskedArray: it must be a NumPy array"),
    (lambda: fc.conv2d(X, W, out=G.astype("float64")), TypeError, "conv2d: out has dtype float64: it must be float32"),
    (lambda: fc.conv2d(X, W, out=np.zeros((2, 4, 3, 5), "float32")), ValueError, "conv2d: out has shape (2, 4, 3, 5): it must be (2, 4, 3, 4)"),
    (lambda: fc.conv2d(X[0], W, out=np.zeros((1, 4, 3, 4), "float32")), ValueError, "conv2d: out has shape (1, 4, 3, 4): it must be (4, 3, 4)"),
    (lambda: fc.conv2d(X, W, out=READ_ONLY), ValueError, "conv2d: out is read-only: it must be writeable"),
    (lambda: fc.conv2d(INSIDE, W, out=AROUND), ValueError, "conv2d: out overlaps an input: it must have memory of its own"),
    (lambda: fc.max_pool2d(INSIDE, 1, out=INSIDE), ValueError, "max_pool2d: out overlaps an input: it must have memory of its own"),
    (lambda: fc.avg_pool2d(INSIDE, 1, out=INSIDE[:, :, ::-1]), ValueError, "avg_pool2d: out overlaps an input: it must have memory of its own"),
    (lambda: fc.relu(X, out=X64), TypeError, "relu: out has dtype float64: it must be float32"),
    # ---- gradients
    (lambda: fc.conv2d_grad_input(X.shape, W, G[:, :, :2]), ValueError, "conv2d_grad_input: grad_output has shape (2, 4, 2, 4): it must be (2, 4, 3, 4) for input (2, 3, 5, 6) and weight (4, 3, 3, 3)"),
    (lambda: fc.conv2d_grad_weight(X, W.shape, G[:1]), ValueError, "conv2d_grad_weight: grad_output has shape (1, 4, 3, 4): it must be (2, 4, 3, 4) for input (2, 3, 5, 6) and weight (4, 3, 3, 3)"),
    (lambda: fc.conv2d_backward(G, X, W, padding=1), ValueError, "conv2d_backward: grad_output has shape (2, 4, 3, 4): it must be (2, 4, 5, 6) for input (2, 3, 5, 6) and weight (4, 3, 3, 3)"),
    (lambda: fc.conv2d_grad_input((2, 3, 5), W, G), ValueError, "conv2d_grad_input: input has 2 channels (shape (2, 3, 5)), weight (4, 3, 3, 3) with groups 1 needs 3"),
    (lambda: fc.conv2d_grad_input(7, W, G), ValueError, "conv2d_grad_input: input_size 7: it must be four integers"),
    (lambda: fc.conv2d_grad_input((2, 3, -5, 6), W, G), ValueError, "conv2d_grad_input: input_size (2, 3, -5, 6): extents must be at least 0"),
    (lambda: fc.conv2d_grad_weight(X, (4, 3, 3), G), ValueError, "conv2d_grad_weight: weight_size (4, 3, 3): it must be four integers"),
    (lambda: fc.conv2d_grad_weight(X, "4333", G), ValueError, "conv2d_grad_weight: weight_size '4333': it must be four integers"),
    (lambda: fc.conv2d_backward(G, X, W, needs=(True, False)), ValueError, "conv2d_backward: needs (True, False): it must be three booleans (grad_input, grad_weight, grad_bias)"),
    (lambda: fc.conv2d_backward(G, X, W, needs=(1, 1, None)), ValueError, "conv2d_backward: needs (1, 1, None): it must be three booleans (grad_input, grad_weight, grad_bias)"),
    (lambda: fc.conv2d_backward(G, X, W, needs=True), ValueError, "conv2d_backward: needs True: it must be three booleans (grad_input, grad_weight, grad_bias)"),
    # ---- transposed
    (lambda: fc.conv_transpose2d(XT, WT[0]), ValueError, "conv_transpose2d: weight has shape (2, 3, 3): it must be (IC, OC/groups, KH, KW)"),
    (lambda: fc.conv_transpose2d(XT, WT[:, :, :0]), ValueError, "conv_transpose2d: weight has shape (4, 2, 0, 3): its kernel must be at least 1 x 1"),
    (lambda: fc.conv_transpose2d(XT, WT, stride=0), ValueError, "conv_transpose2d: stride 0: strides must be at least 1"),
    (lambda: fc.conv_transpose2d(XT, WT, output_padding=-1), ValueError, "conv_transpose2d: output_padding -1: output paddings must be at least 0"),
    (lambda: fc.conv_transpose2d(XT, WT, None, 2, 0, (1, 2)), ValueError, "conv_transpose2d: output_padding (1, 2): it must be smaller than stride (2, 2) or dilation (1, 1)"),
    (lambda: fc.conv_transpose2d(XT, WT, groups=0), ValueError, "conv_transpose2d: groups 0: it must be at least 1"),
    (lambda: fc.conv_transpose2d(XT, WT, groups=3), ValueError, "conv_transpose2d: groups 3: it must divide the 4 input channels"),
    (lambda: fc.conv_transpose2d(XT[:, :3], WT), ValueError, "conv_transpose2d: input has 3 channels (shape (1, 3, 3, 3)), weight (4, 2, 3, 3) needs 4"),
    (lambda: fc.conv_transpose2d(XT, WT, B, groups=4), ValueError, "conv_transpose2d: bias has shape (4,): it must be (8,), one number per filter"),
    (lambda: fc.conv_transpose2d(XT, WT, padding="same"), ValueError, "conv_transpose2d: padding 'same': it must be numbers or 'valid'"),
    (lambda: fc.conv_transpose2d(XT, WT, padding=3), ValueError, "conv_transpose2d: padding 3: it leaves an output of -1 x -1"),
    (lambda: fc.conv_transpose2d(XT[..., :0], WT), ValueError, "conv_transpose2d: input has shape (1, 4, 3, 0): its height and width must be at least 1"),
    (lambda: fc.conv_transpose2d(XT, WT, stride=2**30), ValueError, f"conv_transpose2d: an array of shape (1, 2, {2**31 + 3}, {2**31 + 3}) would not fit into memory"),
    # ---- columns
    (lambda: fc.im2col(X, 0), ValueError, "im2col: kernel_size 0: extents must be at least 1"),
    (lambda: fc.im2col(X, (7, 1)), ValueError, "im2col: the kernel (7, 1) with dilation (1, 1) is larger than the padded input (5, 6)"),
    (lambda: fc.im2col(X, 3000, padding=2**17), ValueError, f"im2col: an array of shape (2, 3, 3000, 3000, {2**18 - 2994}, {2**18 - 2993}) would not fit into memory"),
    (lambda: fc.im2col(X[0, 0], 1), ValueError, "im2col: input has shape (5, 6): it must be (N, C, H, W) or (C, H, W)"),
    (lambda: fc.col2im(X, (5, 6), 3), ValueError, "col2im: cols has shape (2, 3, 5, 6): it must be (N, C * KH * KW, L) or (C * KH * KW, L)"),
    (lambda: fc.col2im(COLS, (5, 6), 2), ValueError, "col2im: cols has shape (2, 27, 12): its rows must be a multiple of 2 * 2"),
    (lambda: fc.col2im(COLS, (6, 6), 3), ValueError, "col2im: cols has shape (2, 27, 12): it must have 4 * 4 columns"),
    (lambda: fc.col2im(COLS, 0, 3), ValueError, "col2im: output_size 0: extents must be at least 1"),
    # ---- pools
    (lambda: fc.max_pool2d(P, 0), ValueError, "max_pool2d: kernel_size 0: extents must be at least 1"),
    (lambda: fc.max_pool2d(P, 2, 0), ValueError, "max_pool2d: stride 0: strides must be at least 1"),
    (lambda: fc.max_pool2d(P, 2, dilation=0), ValueError, "max_pool2d: dilation 0: dilations must be at least 1"),
    (lambda: fc.max_pool2d(P, 2, padding=-1), ValueError, "max_pool2d: padding -1: it must be at least 0"),
    (lambda: fc.max_pool2d(P, 2, padding=2), ValueError, "max_pool2d: padding 2: it must be at most half of the kernel (2, 2) with dilation (1, 1)"),
    (lambda: fc.max_pool2d(P, 7), ValueError, "max_pool2d: the kernel (7, 7) with dilation (1, 1) is larger than the padded input (6, 6)"),
    (lambda: fc.max_pool2d(P[..., :0], 2), ValueError, "max_pool2d: input has shape (1, 1, 6, 0): its height and width must be at least 1"),
    (lambda: fc.max_pool2d(P, 2, ceil_mode=1), TypeError, "max_pool2d: ceil_mode is 1: it must be True or False"),
    (lambda: fc.max_pool2d(P, 2, return_indices=1), TypeError, "max_pool2d: return_indices is 1: it must be True or False"),
    (lambda: fc.max_pool1d(P, 2), ValueError, "max_pool1d: input has shape (1, 1, 6, 6): it must be (N, C, L) or (C, L)"),
    (lambda: fc.avg_pool2d(P, 2, divisor_override=0), ValueError, "avg_pool2d: divisor_override 0: it must not be zero"),
    (lambda: fc.avg_pool2d(P, 2, divisor_override=1.5), TypeError, "avg_pool2d: divisor_override is 1.5: it must be an integer"),
    (lambda: fc.avg_pool2d(P, 2, count_include_pad=None), TypeError, "avg_pool2d: count_include_pad is None: it must be True or False"),
    (lambda: fc.avg_pool2d_backward(PG[..., :2], P.shape, 2), ValueError, "avg_pool2d_backward: grad_output has shape (1, 1, 3, 2): it must be (1, 1, 3, 3) for input (1, 1, 6, 6)"),
    (lambda: fc.max_pool2d_backward(PG[..., :2], PI, P.shape, 2), ValueError, "max_pool2d_backward: grad_output has shape (1, 1, 3, 2): it must be (1, 1, 3, 3) for input (1, 1, 6, 6)"),
    (lambda: fc.max_pool2d_backward(PG, PI[..., :2], P.shape, 2), ValueError, "max_pool2d_backward: indices has shape (1, 1, 3, 2): it must be (1, 1, 3, 3) for input (1, 1, 6, 6)"),
    (lambda: fc.max_pool2d_backward(PG, PI + 28, P.shape, 2), ValueError, "max_pool2d_backward: indices hold 36: they must lie in 0 .. 35, the plane (6, 6)"),
    (lambda: fc.max_pool2d_backward(PG, PI - 1, P.shape, 2), ValueError, "max_pool2d_backward: indices hold -1: they must lie in 0 .. 35, the plane (6, 6)"),
    (lambda: fc.max_pool2d_backward(PG, PG, P.shape, 2), TypeError, "max_pool2d_backward: indices has dtype float32: it must be int64"),
    (lambda: fc.max_pool2d_backward(PG, PI, P.shape[:2], 2), ValueError, "max_pool2d_backward: input_shape (1, 1): it must be four integers"),
    (lambda: fc.max_unpool2d(PG, PI[:, :, :2], 2), ValueError, "max_unpool2d: indices has shape (1, 1, 2, 3): it must be the input's, (1, 1, 3, 3)"),
    (lambda: fc.max_unpool2d(PG, PI * 5, 2), ValueError, "max_unpool2d: indices hold 40: they must lie in 0 .. 35, the plane (6, 6)"),
    (lambda: fc.max_unpool2d(PG, PI, 0), ValueError, "max_unpool2d: kernel_size 0: extents must be at least 1"),
    (lambda: fc.max_unpool2d(PG, PI, 2, (0, 1)), ValueError, "max_unpool2d: stride (0, 1): strides must be at least 1"),
    (lambda: fc.max_unpool2d(PG, PI, 2, padding=4), ValueError, "max_unpool2d: the output would be -2 x -2: padding is too large"),
    (lambda: fc.max_unpool2d(PG, PI, 2, padding=-1), ValueError, "max_unpool2d: padding -1: it must be at least 0"),
    (lambda: fc.max_unpool2d(PG, PI, 2, padding="same"), ValueError, "max_unpool2d: padding 'same': it must be numbers or 'valid'"),
    (lambda: fc.max_unpool2d(PG, PI, 2, output_size=6), TypeError, "max_unpool2d: output_size is 6: it must be a sequence of integers"),
    (lambda: fc.max_unpool2d(PG, PI, 2, output_size=(6, 6, 6)), ValueError, "max_unpool2d: output_size (6, 6, 6): it must be (H, W) or (1, 1) + (H, W)"),
    (lambda: fc.max_unpool2d(PG, PI, 2, output_size=(8, 6)), ValueError, "max_unpool2d: output_size (8, 6): (H, W) must lie within one stride (2, 2) of (6, 6)"),
    (lambda: fc.max_unpool2d_backward(P, PI[0]), ValueError, "max_unpool2d_backward: indices has shape (1, 3, 3): it must share (1, 1) with grad_output"),
    (lambda: fc.max_unpool2d_backward(P, PI - 1), ValueError, "max_unpool2d_backward: indices hold -1: they must lie in 0 .. 35, the plane (6, 6)"),
    # ---- pictures
    (lambda: fc.from_images(PHOTO / 255), TypeError, "from_images: images has dtype float64: it must be uint8"),
    (lambda: fc.from_images(PHOTO[..., 0]), ValueError, "from_images: images has shape (4, 6): it must be (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels"),
    (lambda: fc.from_images(PHOTO.transpose(2, 0, 1)), ValueError, "from_images: images has shape (3, 4, 6): it must be (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels"),
    (lambda: fc.from_images(PHOTO, dtype="int8"), ValueError, "from_images: dtype 'int8': it must be 'float32' or 'float64'"),
    (lambda: fc.from_images(PHOTO, dtype="floaty"), ValueError, "from_images: dtype 'floaty': it must be 'float32' or 'float64'"),
    (lambda: fc.from_images(PHOTO, dtype=None), ValueError, "from_images: dtype None: it must be 'float32' or 'float64'"),
    (lambda: fc.from_images(PHOTO, mean="0.5"), TypeError, "from_images: mean is '0.5': it must be a number or 3 numbers"),
    (lambda: fc.from_images(PHOTO, std=True), TypeError, "from_images: std is True: it must be a number or 3 numbers"),
    (lambda: fc.from_images(PHOTO, mean="a"), TypeError, "from_images: mean is 'a': it must be a number or 3 numbers"),
    (lambda: fc.from_images(PHOTO, mean=(1, 2)), ValueError, "from_images: mean (1, 2): it must be a finite number or 3 of them, one per channel"),
    (lambda: fc.from_images(PHOTO, std=math.inf), ValueError, "from_images: std inf: it must be a finite number or 3 of them, one per channel"),
    (lambda: fc.from_images(PHOTO, std=0), ValueError, "from_images: std 0: it must be positive"),
    # ---- settings
    (lambda: fc.config(backend="cuda"), ValueError, "config: backend 'cuda': it must be 'auto' or one of 'cython', 'numba', 'reference'"),
    (lambda: fc.config(isa="avx9"), ValueError, "config: isa 'avx9': it must be one of 'baseline', 'x86_64_v3', 'x86_64_v4'"),
    (lambda: fc.config(num_threads=0), ValueError, "config: num_threads 0: it must be at least 1"),
    (lambda: fc.set_num_threads(0), ValueError, "set_num_threads: num_threads 0: it must be at least 1"),
    (lambda: fc.set_num_threads(2**62), ValueError, f"set_num_threads: num_threads {2**62}: it must be at most 4096"),
    (lambda: fc.set_num_threads(1.0), TypeError, "set_num_threads: num_threads is 1.0: it must be an integer"),
    (lambda: fc.set_num_threads(np.array([1, 2])), TypeError, "set_num_threads: num_threads is array([1, 2]): it must be an integer"),
    (lambda: fc.set_num_threads(True), TypeError, "set_num_threads: num_threads is True: it must be an integer"),
    (lambda: _backends.kernels("reference").fft, AttributeError, f"no kernel family 'fft': it must be one of {', '.join(_backends.STEMS)}"),
]  # fmt: skip
ARRAYS = {name: value for name, value in globals().items() if isinstance(value, np.ndarray)}
IDS = [f"{number}-{message.partition(':')[0]}" for number, (_, _, message) in enumerate(TABLE)]


def caught(call):
    with fc.config(backend="reference"):
        try:
            call()
        except Exception as error:
            return error
    raise AssertionError("no error was raised")


@pytest.mark.parametrize(("call", "kind", "message"), TABLE, ids=IDS)
def test_message(call, kind, message):
    before = {name: array.copy() for name, array in ARRAYS.items()}
    error = caught(call)
    assert type(error) is kind, f"{type(error).__name__}: {error}"
    assert str(error) == message
    assert "\n" not in message
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(array, before[name], err_msg=f"{name} was changed")


def raises(path):
    """(first, last line) of every raise statement of a file that gives a message."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            found.append((node.lineno, node.end_lineno))
    return found


@pytest.mark.parametrize("name", ["_problem", "_arrays", "functional"])
def test_the_table_reaches_every_raise(name):
    reached = set()
    for call, _, _ in TABLE:
        error = caught(call)
        while error is not None:
            reached |= {
                (Path(frame.filename).stem, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
            }
            error = error.__context__
    path = Path(_problem.__file__).parent / f"{name}.py"
    statements = raises(path)
    assert statements
    missed = [
        first for first, last in statements if not any((name, line) in reached for line in range(first, last + 1))
    ]
    assert not missed, f"{name}.py: no row of the table reaches the raise in line {missed}"


def test_a_backend_that_cannot_run_is_named(monkeypatch):
    monkeypatch.setattr(_backends, "refusal", lambda backend, isa=None: "it rains")
    with pytest.raises(fc.BackendUnavailable, match=r"^backend 'numba': it rains$"):
        fc.config(backend="numba")
    with pytest.raises(fc.BackendUnavailable, match=r"^backend 'cython', isa 'x86_64_v3': it rains$"):
        fc.config(isa="x86_64_v3")


def test_a_workspace_that_is_too_small_is_named(engine):
    problem = ConvProblem.from_args("t", (1, 8, 9, 9), (16, 8, 3, 3), "float32")
    plan = _plan.plan_conv2d(problem, "im2col")
    x, w = np.ones(problem.input_shape, "float32"), np.ones(problem.weight_shape, "float32")
    needed = plan.workspace_bytes
    assert needed >= 4, "im2col packs the weight in its workspace"
    with pytest.raises(ValueError, match=rf"^Plan: workspace has {needed - 4} bytes: it must have {needed}$"):
        plan(x, w, None, workspace=np.zeros(needed // 4 - 1, "float32"))


# ---------------------------------------------------------------------------------------------- before allocation

MEBIBYTE = 2**20


def _big(layout):
    x = np.zeros((1, 1, 2**12, 2**12), "float32")
    return {"contiguous": x, "strided": x[:, :, ::2], "fortran": x.swapaxes(2, 3)}[layout]


@pytest.mark.parametrize("layout", ["contiguous", "strided", "fortran"])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, w: fc.conv2d(x, w, stride=0),
        lambda x, w: fc.conv2d(x, w[:, :, :0]),
        lambda x, w: fc.conv2d(x, w, out=np.zeros(1, "float32")),
        lambda x, w: fc.conv1d(x, w),
        lambda x, w: fc.conv_transpose2d(x, w, output_padding=3),
        lambda x, w: fc.conv2d_grad_weight(x, (1, 1, 3), x),
        lambda x, w: fc.conv2d_grad_input((1, 1, 5, 5), w, x),
        lambda x, w: fc.conv2d_backward(x, x, w),
        lambda x, w: fc.max_pool2d(x, 2, padding=5),
        lambda x, w: fc.avg_pool2d(x, 2, divisor_override=0),
        lambda x, w: fc.avg_pool2d_backward(x, (1, 1, 3, 3), 2),
        lambda x, w: fc.im2col(x, 0),
        lambda x, w: fc.relu(x, out=np.zeros(1, "float32")),
    ],
    ids=[
        "conv2d-stride", "conv2d-kernel", "conv2d-out", "conv1d", "conv_transpose2d", "conv2d_grad_weight",
        "conv2d_grad_input", "conv2d_backward", "max_pool2d", "avg_pool2d", "avg_pool2d_backward", "im2col", "relu",
    ],
)  # fmt: skip
def test_nothing_is_allocated(call, layout):
    x, w = _big(layout), np.ones((1, 1, 3, 3), "float32")
    caught(lambda: call(x, w))  # imports and caches
    tracemalloc.start()
    try:
        error = caught(lambda: call(x, w))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, ValueError), error
    assert peak < MEBIBYTE, f"{peak} bytes before {error}"


def test_an_impossible_shape_is_refused_before_it_is_copied():
    x = np.broadcast_to(np.float32(0), (2**20, 2**20, 3, 3))
    w = np.ones((4, 5, 3, 3), "float32")
    error = caught(lambda: fc.conv2d(x, w))
    assert (
        str(error)
        == "conv2d: input has 1048576 channels (shape (1048576, 1048576, 3, 3)), weight (4, 5, 3, 3) with groups 1 needs 5"
    )
