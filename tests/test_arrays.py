"""What callers pass: odd layouts, byte orders, dtypes; nothing of theirs is written but out=."""

import numpy as np
import pytest

import fastconv as fc
from problems import integers
from tolerance import assert_same

X = integers((2, 3, 7, 8), "float32", 1)
W = integers((4, 3, 3, 3), "float32", 2)
B = integers((4,), "float32", 3)
G = integers((2, 4, 5, 6), "float32", 4)
POOLED, INDICES = fc.max_pool2d(X, 2, return_indices=True, backend="reference")


def calls(x, w, b, g, pooled, indices):
    """Every public function once: name -> call on the given arrays."""
    return {
        "conv2d": lambda: fc.conv2d(x, w, b),
        "conv2d im2col": lambda: fc.conv2d(x, w, b, padding=1, algorithm="im2col"),
        "conv2d reflect": lambda: fc.conv2d(x, w, b, padding=1, padding_mode="reflect"),
        "conv1d": lambda: fc.conv1d(x[:, :, 0], w[:, :, 0], b),
        "conv2d_grad_input": lambda: fc.conv2d_grad_input(X.shape, w, g),
        "conv2d_grad_weight": lambda: fc.conv2d_grad_weight(x, W.shape, g),
        "conv2d_backward": lambda: fc.conv2d_backward(g, x, w),
        "conv_transpose2d": lambda: fc.conv_transpose2d(g, w),
        "max_pool2d": lambda: fc.max_pool2d(x, 2),
        "max_pool1d": lambda: fc.max_pool1d(x[:, :, 0], 2),
        "max_pool2d_backward": lambda: fc.max_pool2d_backward(pooled, indices, X.shape, 2),
        "max_unpool2d": lambda: fc.max_unpool2d(pooled, indices, 2, output_size=(7, 8)),
        "max_unpool2d_backward": lambda: fc.max_unpool2d_backward(x, indices),
        "avg_pool2d": lambda: fc.avg_pool2d(x, 2),
        "avg_pool2d_backward": lambda: fc.avg_pool2d_backward(pooled, X.shape, 2),
        "im2col": lambda: fc.im2col(x, 3),
        "col2im": lambda: fc.col2im(g.reshape(2, 8, 15), (4, 6), 2),
        "relu": lambda: fc.relu(x),
    }


def flat(result):
    """The arrays of a result."""
    return result if isinstance(result, tuple) else (result,)


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def every_second(a):
    room = np.full((*a.shape[:-1], 2 * a.shape[-1]), 99, a.dtype)
    room[..., ::2] = a
    return room[..., ::2]


def unaligned(a):
    raw = np.zeros(a.nbytes + 1, np.uint8)
    out = raw[1:].view(a.dtype).reshape(a.shape)
    out[...] = a
    assert not out.flags.aligned or a.itemsize == 1
    return out


def overlapping_windows(a):
    """A strided view of a buffer with the same cells, made read-only."""
    view = np.lib.stride_tricks.as_strided(a, writeable=False)
    return view


class Subclass(np.ndarray):
    """Somebody's subclass of ndarray."""


LAYOUTS = {
    "plain": lambda a: a.copy(),
    "read-only": read_only,
    "non-contiguous": every_second,
    "negative-stride": lambda a: a[..., ::-1].copy()[..., ::-1],
    "all-negative": lambda a: np.flip(np.flip(a).copy()),
    "fortran": np.asfortranarray,
    "channels-last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 1 else a,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "big-endian-strided": lambda a: every_second(a.astype(a.dtype.newbyteorder(">"))),
    "unaligned": unaligned,
    "view": overlapping_windows,
    "subclass": lambda a: a.copy().view(Subclass),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(engine, layout, dtype):
    plain = [a.astype(dtype) for a in (X, W, B, G, POOLED)] + [INDICES]
    odd = [LAYOUTS[layout](a) for a in plain]
    before = [a.copy() for a in odd]
    for name, call in calls(*plain).items():
        exact = flat(call())
        actual = flat(calls(*odd)[name]())
        for one, other in zip(actual, exact, strict=True):
            assert type(one) is np.ndarray and one.dtype == other.dtype and one.dtype.isnative, name
            assert one.flags.writeable and (one.flags.c_contiguous or name == "relu"), name  # relu keeps the layout
            assert_same(one, other, f"{engine.name} {name} {layout}")
            assert not any(np.shares_memory(one, a) for a in odd), f"{name}: the result shares memory with an input"
    for a, b in zip(odd, before, strict=True):
        assert_same(a, b, f"{layout}: an input was changed")
        assert a.flags.writeable == (layout not in ("read-only", "view")), "the caller's flags were changed"


def test_broadcast_arrays(engine, dtype):
    x, w = np.broadcast_to(X[:, :1].astype(dtype), X.shape), np.broadcast_to(W[:1].astype(dtype), W.shape)
    assert_same(fc.conv2d(x, w), fc.conv2d(x.copy(), w.copy()))


def test_indices_of_other_integer_types(engine):
    for kind in (np.int32, np.uint8, np.uint64, ">i8", np.int16):
        assert_same(fc.max_unpool2d(POOLED, INDICES.astype(kind), 2, output_size=(7, 8)),
                    fc.max_unpool2d(POOLED, INDICES, 2, output_size=(7, 8)))  # fmt: skip


def test_huge_unsigned_indices_do_not_wrap():
    wrong = INDICES.astype(np.uint64)
    wrong[0, 0, 0, 0] = 2**64 - 1
    with pytest.raises(ValueError, match=r"^max_unpool2d: indices hold "):
        fc.max_unpool2d(POOLED, wrong, 2)


REFUSED = [
    "int8",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "object",
    "float16",
    "U1",
    "longdouble",
    "datetime64[s]",
]


@pytest.mark.parametrize("kind", REFUSED)
def test_other_dtypes_are_refused_by_name(kind):
    if kind == "longdouble" and np.dtype(kind) == np.float64:
        pytest.skip("long double is float64 here")
    bad = X.astype("int64").astype(kind)
    for name, call in {
        "conv2d": lambda: fc.conv2d(bad, W),
        "conv1d": lambda: fc.conv1d(bad[0], W[0]),
        "conv2d_grad_input": lambda: fc.conv2d_grad_input(X.shape, W, bad),
        "conv2d_grad_weight": lambda: fc.conv2d_grad_weight(bad, W.shape, G),
        "conv2d_backward": lambda: fc.conv2d_backward(bad, X, W),
        "conv_transpose2d": lambda: fc.conv_transpose2d(bad, W),
        "max_pool2d": lambda: fc.max_pool2d(bad, 2),
        "max_pool1d": lambda: fc.max_pool1d(bad[0], 2),
        "max_pool2d_backward": lambda: fc.max_pool2d_backward(bad, INDICES, X.shape, 2),
        "max_unpool2d": lambda: fc.max_unpool2d(bad, INDICES, 2),
        "max_unpool2d_backward": lambda: fc.max_unpool2d_backward(bad, INDICES),
        "avg_pool2d": lambda: fc.avg_pool2d(bad, 2),
        "avg_pool2d_backward": lambda: fc.avg_pool2d_backward(bad, X.shape, 2),
        "im2col": lambda: fc.im2col(bad, 2),
        "col2im": lambda: fc.col2im(bad[0], (2, 2), 1),
        "relu": lambda: fc.relu(bad),
    }.items():
        with pytest.raises(
            TypeError, match=rf"^{name}: \w+ has dtype {bad.dtype}: it must be float32 or float64".replace("[", r"\[")
        ):
            call()


def test_structured_and_masked_arrays_are_refused():
    for bad in (np.zeros((1, 1, 3, 3), [("r", "f4")]), np.ma.masked_less(X, 0)):
        with pytest.raises(TypeError):
            fc.conv2d(bad, W)


@pytest.mark.parametrize("shape", [(0, 3, 7, 8), (2, 0, 7, 8)])
def test_empty_batches_and_channels(engine, shape, dtype):
    x = np.zeros(shape, dtype)
    w = np.ones((4, shape[1], 3, 3), dtype)
    b = np.arange(4, dtype=dtype)
    out = fc.conv2d(x, w, b)
    assert_same(out, np.broadcast_to(b[:, None, None], (shape[0], 4, 5, 6)))
    g = np.ones(out.shape, dtype)
    grad_x, grad_w, grad_b = fc.conv2d_backward(g, x, w)
    assert_same(grad_x, np.zeros(shape, dtype))
    assert_same(grad_w, np.zeros(w.shape, dtype))
    assert_same(grad_b, np.full(4, 30 * shape[0], dtype))
    pooled, indices = fc.max_pool2d(x, 2, return_indices=True)
    assert pooled.shape == indices.shape == (*shape[:2], 3, 4)
    assert fc.max_pool2d_backward(pooled, indices, shape, 2).shape == shape
    assert fc.max_unpool2d(pooled, indices, 2).shape == (*shape[:2], 6, 8)
    assert fc.avg_pool2d(x, 2).shape == (*shape[:2], 3, 4)
    cols = fc.im2col(x, 3)
    assert cols.shape == (shape[0], shape[1] * 9, 30)
    assert fc.col2im(cols, (7, 8), 3).shape == shape


def test_empty_image_with_padding(engine, dtype):
    """No cell at all, but a border: every window sees zeros."""
    b = np.arange(4, dtype=dtype)
    out = fc.conv2d(np.zeros((2, 3, 0, 5), dtype), np.ones((4, 3, 3, 3), dtype), b, padding=(2, 0))
    assert_same(out, np.broadcast_to(b[:, None, None], (2, 4, 2, 3)))
    grad_x, grad_w, _ = fc.conv2d_backward(
        np.ones(out.shape, dtype), np.zeros((2, 3, 0, 5), dtype), np.ones((4, 3, 3, 3), dtype), padding=(2, 0)
    )
    assert grad_x.shape == (2, 3, 0, 5)
    assert_same(grad_w, np.zeros((4, 3, 3, 3), dtype))


def test_no_filters(engine, dtype):
    out = fc.conv2d(np.ones((2, 3, 5, 5), dtype), np.ones((0, 3, 3, 3), dtype))
    assert out.shape == (2, 0, 3, 3)


@pytest.mark.parametrize("value", [1.0, np.float32(1), np.array(1.0)])
def test_zero_dimensional_inputs(value):
    with pytest.raises((TypeError, ValueError), match=r"^conv2d: input "):
        fc.conv2d(value, W)
    with pytest.raises((TypeError, ValueError), match=r"^max_pool2d: input "):
        fc.max_pool2d(value, 2)


def test_out_is_never_an_input(engine):
    """Every overlap of out= is refused, exactly: neighbours and interleaved views are not overlaps."""
    room = np.zeros(4000, "float32")
    x = room[:336].reshape(X.shape)
    x[...] = X
    exact = fc.conv2d(X, W)
    apart = room[336 : 336 + exact.size].reshape(exact.shape)
    assert_same(fc.conv2d(x, W, out=apart), exact)
    touching = room[335 : 335 + exact.size].reshape(exact.shape)
    kept = room.copy()
    with pytest.raises(ValueError, match="out overlaps an input"):
        fc.conv2d(x, W, out=touching)
    assert_same(room, kept)
    both = np.zeros((2, 3, 7, 16), "float32")
    both[..., ::2] = X
    interleaved = fc.max_pool2d(both[..., ::2], 1, out=both[..., 1::2])
    assert_same(interleaved, X)
    assert_same(both[..., ::2], X)


def test_out_of_a_strided_input_is_checked_against_the_original():
    """A strided input is copied for the kernel; out= over the caller's own array is refused all the same."""
    x = np.asfortranarray(X)
    kept = x.copy()
    with pytest.raises(ValueError, match="out overlaps an input"):
        fc.max_pool2d(x, 1, out=x)
    assert_same(x, kept)


def test_out_in_another_byte_order_is_refused_or_filled():
    out = np.zeros((2, 4, 5, 6), ">f4")
    try:
        fc.conv2d(X, W, out=out)
    except TypeError as error:
        assert str(error).startswith("conv2d: out has dtype >f4")
    else:
        assert_same(out.astype("float32"), fc.conv2d(X, W))


def test_unaligned_out(engine):
    exact = fc.conv2d(X, W, B)
    out = unaligned(np.zeros_like(exact))
    assert fc.conv2d(X, W, B, out=out) is out
    assert_same(out.copy(), exact)


def test_results_are_new_each_time(engine):
    """A later call does not write into an earlier result."""
    first = fc.conv2d(X, W, B)
    kept = first.copy()
    fc.conv2d(-X, W, B)
    fc.max_pool2d(X, 2)
    assert_same(first, kept)
