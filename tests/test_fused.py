"""conv2d_relu_max_pool2d: the three steps in one, its memory, its arguments."""

import itertools
import tracemalloc

import numpy as np
import pytest

import fastconv as fc
from fastconv import _plan
from problems import integers, normals
from tolerance import assert_same

POOLS = [
    {},
    {"pool_size": 3, "pool_stride": 2, "pool_padding": 1},
    {"pool_size": 3, "pool_stride": 1, "pool_padding": 1},
    {"pool_size": (3, 2), "pool_stride": (1, 3)},
    {"pool_size": 2, "pool_stride": 3, "pool_padding": ((1, 0), (0, 1))},
]
CONVS = [
    {"padding": 1},
    {"padding": 1, "groups": 2},
    {"stride": 2, "padding": ((2, 1), (0, 3))},
    {"dilation": 2, "padding": 2},
    {"padding": 1, "padding_mode": "reflect"},
]


def in_steps(x, w, b, conv, pool, backend="reference"):
    maps = fc.conv2d(x, w, b, **conv, activation="relu", backend=backend, algorithm="direct")
    size = pool.get("pool_size", 2)
    return fc.max_pool2d(maps, size, pool.get("pool_stride"), pool.get("pool_padding", 0), return_indices=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_it_is_the_three_steps(engine, conv, pool, dtype):
    """Values and indices, for every algorithm, weights packed or not."""
    G = conv.get("groups", 1)
    x, w, b = integers((2, 4, 11, 13), dtype, 1), integers((6, 4 // G, 3, 3), dtype, 2), integers((6,), dtype, 3)
    exact = in_steps(x, w, b, conv, pool)
    maps = fc.conv2d(x, w, b, **conv, activation="relu", backend="reference", algorithm="direct")
    packed = fc.pack_conv2d_weight(w)
    ran = 0
    for algorithm in ("auto", *_plan.ALGORITHMS):
        try:
            values, indices = fc.conv2d_relu_max_pool2d(
                x, w, b, **conv, **pool, return_indices=True, algorithm=algorithm
            )
        except ValueError as error:
            assert algorithm.startswith("winograd") and "it needs" in str(error), error
            continue
        ran += 1
        again = fc.conv2d_relu_max_pool2d(x, packed, b, **conv, **pool, algorithm=algorithm)
        if algorithm.startswith("winograd"):  # it rounds, so equal maxima may differ by an ulp
            scale = np.abs(exact[0]).max()
            for actual in (values, again):
                np.testing.assert_allclose(actual, exact[0], rtol=0, atol=1e-5 * scale)
            at = np.take_along_axis(maps.reshape(*maps.shape[:2], -1), indices.reshape(*indices.shape[:2], -1), 2)
            np.testing.assert_allclose(at.reshape(values.shape), exact[0], rtol=0, atol=1e-5 * scale)
            continue
        assert_same(values, exact[0], algorithm)
        assert_same(indices, exact[1], algorithm)
        assert_same(again, exact[0], algorithm)
    assert ran >= 3


def test_one_image_no_bias_and_out(engine):
    x, w = integers((3, 9, 9), "float32", 1), integers((5, 3, 3, 3), "float32", 2)
    exact = in_steps(x, w, None, {}, {})[0]
    assert_same(fc.conv2d_relu_max_pool2d(x, w), exact)
    out = np.full(exact.shape, np.nan, "float32")
    assert fc.conv2d_relu_max_pool2d(x, w, out=out) is out
    assert_same(out, exact)
    wide = np.full((*exact.shape[:2], 2 * exact.shape[2]), np.nan, "float32")
    fc.conv2d_relu_max_pool2d(x, w, out=wide[..., ::2])
    assert_same(wide[..., ::2], exact)
    assert np.isnan(wide[..., 1::2]).all()


def test_an_empty_batch(engine):
    values, indices = fc.conv2d_relu_max_pool2d(
        np.zeros((0, 3, 9, 9), "float32"), np.ones((5, 3, 3, 3), "float32"), return_indices=True
    )
    assert values.shape == indices.shape == (0, 5, 3, 3) and indices.dtype == np.int64


def test_nan_wins_and_relu_makes_first_zeros_win(engine):
    x = -np.ones((1, 1, 4, 4), "float32")
    x[0, 0, 2, 3] = np.nan
    values, indices = fc.conv2d_relu_max_pool2d(x, np.ones((1, 1, 1, 1), "float32"), return_indices=True)
    np.testing.assert_array_equal(values[0, 0], [[0, 0], [0, np.nan]])
    np.testing.assert_array_equal(indices[0, 0], [[0, 2], [8, 11]])


def test_the_bits_do_not_depend_on_threads(engine):
    x, w, b = (
        normals((2, 16, 40, 41), "float32", 1),
        normals((24, 16, 3, 3), "float32", 2),
        normals((24,), "float32", 3),
    )
    found = []
    for n_threads in (1, 2, 3):
        with fc.config(num_threads=n_threads):
            found.append(fc.conv2d_relu_max_pool2d(x, w, b, padding=1, return_indices=True))
    for values, indices in found[1:]:
        assert_same(values, found[0][0])
        assert_same(indices, found[0][1])


@pytest.mark.parametrize("algorithm", ["auto", "im2col", "direct", "winograd"])
def test_the_maps_are_never_stored_whole(engine, algorithm):
    """Peak extra memory: results apart, less than half of the full-resolution maps."""
    if engine.backend == "reference":
        pytest.skip("reference: it pools finished maps")
    x, w, b = (
        normals((1, 3, 224, 224), "float32", 1),
        normals((32, 3, 3, 3), "float32", 2),
        normals((32,), "float32", 3),
    )
    fc.conv2d_relu_max_pool2d(x, w, b, padding=1, algorithm=algorithm)  # compiles
    fc.clear_workspaces()
    tracemalloc.start()
    try:
        result = fc.conv2d_relu_max_pool2d(x, w, b, padding=1, algorithm=algorithm)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 32 * 224 * 224 * 4 / 2


@pytest.mark.parametrize("channels", [3, 31], ids=["one block of K", "two blocks of K"])
@pytest.mark.parametrize("size, step, pad", [(3, 2, 1), (5, 1, 2), (2, 3, 0)])
def test_blocks_hand_on_the_rows_that_windows_share(engine, channels, size, step, pad):
    """Planes of many blocks, of which a task computes several one after the other, on 1 to 3 threads."""
    x, w, b = integers((1, channels, 33, 130), "float32", 1), integers((7, channels, 3, 3), "float32", 2), None
    pool = {"pool_size": size, "pool_stride": step, "pool_padding": pad}
    exact = in_steps(x, w, b, {"padding": 1}, pool)
    before = fc.get_num_threads()
    try:
        for algorithm, n_threads in itertools.product(("im2col", "direct"), (1, 2, 3)):
            fc.set_num_threads(n_threads)
            values, indices = fc.conv2d_relu_max_pool2d(
                x, w, b, padding=1, **pool, return_indices=True, algorithm=algorithm
            )
            assert_same(values, exact[0], f"{algorithm} on {n_threads} threads")
            assert_same(indices, exact[1], f"{algorithm} on {n_threads} threads")
    finally:
        fc.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_windows_pooled_in_registers(engine, dtype):
    """2x2 windows in rows of a vector and one column more or less; last panels of two filters; too narrow rows."""
    for OW, OC in itertools.product((2, 4, 7, 8, 9, 14, 16, 17, 31, 32, 33), (2, 8)):
        x, w = integers((2, 2, 7, OW), dtype, OW), integers((OC, 2, 3, 3), dtype, OC)
        b = integers((OC,), dtype, 3)
        values = fc.conv2d_relu_max_pool2d(x, w, b, padding=1, algorithm="im2col")
        assert_same(values, in_steps(x, w, b, {"padding": 1}, {})[0], (OW, OC))


def test_values_that_are_not_finite_where_maxima_come_first(engine):
    """A sum of -inf and a bias of inf is NaN, and wins, though it is not the maximum before the bias."""
    x = np.ones((1, 1, 2, 14), "float32")
    x[0, 0, 0, 3], x[0, 0, 1, 8], x[0, 0, 1, 13] = -np.inf, np.nan, np.inf
    w = np.ones((2, 1, 1, 1), "float32")
    w = np.concatenate([w, np.zeros_like(w)], axis=1)  # two channels: a problem that is not read in place
    x = np.concatenate([x, np.zeros_like(x)], axis=1)
    for bias in (np.array([0, 1], "float32"), np.array([np.inf, -np.inf], "float32")):
        with np.errstate(invalid="ignore"):
            exact = in_steps(x, w, bias, {"padding": ((0, 0), (0, 2))}, {})[0]
            actual = fc.conv2d_relu_max_pool2d(x, w, bias, padding=((0, 0), (0, 2)), algorithm="im2col")
        np.testing.assert_array_equal(actual, exact)
