"""Packed weights: the same bits as an unpacked forced algorithm, never misread, frozen, safe to copy, kept by eval."""

import copy
import pickle
import threading

import numpy as np
import pytest

import fastconv as fc
from fastconv import _plan
from fastconv.layers import _tape
from problems import BY_NAME, integers, normals, solved
from tolerance import assert_same

NAMES = ("article", "stride2", "groups2", "depthwise", "filters-49", "reflect", "kernel-5x5", "kernel-5x5-stride2")
PACKABLE = [name for name in NAMES if name in BY_NAME]


def arguments(case):
    return {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}


@pytest.mark.parametrize("algorithm", ["auto", *_plan.ALGORITHMS])
@pytest.mark.parametrize("name", PACKABLE)
def test_a_packed_weight_gives_the_exact_result(engine, name, algorithm):
    case = BY_NAME[name]
    data = solved(case, "float32", "integers")
    problem = case.problem()
    if algorithm != "auto" and _plan.ALGORITHMS[algorithm].refusal(problem, "forward"):
        pytest.skip(f"{algorithm}: {_plan.ALGORITHMS[algorithm].refusal(problem, 'forward')}")
    lazy = fc.pack_conv2d_weight(data["w"])
    eager = fc.pack_conv2d_weight(data["w"], data["x"].shape, **arguments(case), algorithm=algorithm)
    for packed in (lazy, eager):
        for _ in range(2):
            actual = fc.conv2d(data["x"], packed, **arguments(case), algorithm=algorithm)
            if algorithm.startswith("winograd"):  # it rounds
                np.testing.assert_allclose(actual, data["conv"], rtol=0, atol=1e-5 * np.abs(data["conv"]).max())
                continue
            assert_same(actual, data["conv"].astype("float32"), f"{engine.name} {algorithm} packed")


def test_eager_packs_now_and_lazy_at_the_first_call(engine):
    x, w = integers((1, 8, 9, 9), "float32", 1), integers((16, 8, 3, 3), "float32", 2)
    packed = fc.pack_conv2d_weight(w, x.shape, algorithm="im2col")
    made = packed.nbytes
    assert made > 0 and "im2col" in repr(packed)
    fc.conv2d(x, packed, algorithm="im2col")
    assert packed.nbytes == made
    lazy = fc.pack_conv2d_weight(w)
    assert lazy.nbytes == 0 and "nothing yet" in repr(lazy)
    fc.conv2d(x, lazy, algorithm="im2col")
    assert lazy.nbytes == made


def test_a_pack_is_not_read_by_another_back_end_dtype_or_group_count():
    x, w = integers((1, 8, 9, 9), "float32", 1), integers((16, 4, 3, 3), "float32", 2)
    packed = fc.pack_conv2d_weight(w)
    for backend in fc.available_backends():
        with fc.config(backend=backend):
            for channels, groups in ((8, 2), (4, 1), (16, 4)):
                part = np.concatenate([x, x], axis=1)[:, :channels]
                exact = fc.conv2d(part, w, groups=groups, algorithm="im2col", backend="reference")
                assert_same(fc.conv2d(part, packed, groups=groups, algorithm="im2col"), exact, backend)


@pytest.mark.parametrize("algorithm", ["auto", *_plan.ALGORITHMS])
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 8, 9, 17])
def test_one_pack_serves_images_of_any_size(engine, channels, algorithm):
    w, problem = normals((6, channels, 3, 3), "float32", 2), None
    packed = fc.pack_conv2d_weight(w)
    for extents in ((32, 33), (2, 3), (20, 20), (7, 40), (5, 5), (64, 9)):
        x = normals((2, channels, *extents), "float32", 1)
        if problem is None:
            problem = fc.ConvProblem.from_args("test", x.shape, w.shape, "float32", padding=1)
            if algorithm != "auto" and _plan.ALGORITHMS[algorithm].refusal(problem, "forward"):
                pytest.skip(f"{algorithm}: {_plan.ALGORITHMS[algorithm].refusal(problem, 'forward')}")
        exact = fc.conv2d(x.astype("float64"), w.astype("float64"), padding=1, backend="reference", algorithm="direct")
        actual = fc.conv2d(x, packed, padding=1, algorithm=algorithm)
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-4 * np.abs(exact).max(), err_msg=f"{extents}")
        pooled = fc.conv2d_relu_max_pool2d(x, packed, padding=1, algorithm=algorithm)
        windows = fc.max_pool2d(np.maximum(exact, 0), 2, backend="reference")
        np.testing.assert_allclose(pooled, windows, rtol=0, atol=1e-4 * np.abs(exact).max(), err_msg=f"{extents}")


def test_the_source_is_a_frozen_copy():
    w = integers((4, 3, 3, 3), "float32", 2)
    packed = fc.pack_conv2d_weight(w)
    x = integers((1, 3, 6, 6), "float32", 1)
    before = fc.conv2d(x, packed)
    w[...] = 0
    assert_same(fc.conv2d(x, packed), before)
    assert packed.shape == (4, 3, 3, 3) and packed.dtype == np.float32 and packed.ndim == 4
    with pytest.raises(ValueError, match="read-only"):
        packed.source[...] = 0
    assert w.flags.writeable


@pytest.mark.parametrize("change", [lambda w: w[:, :, ::-1], np.asfortranarray, lambda w: w.astype(">f4")])
def test_weights_of_any_layout(change):
    w = change(integers((4, 3, 3, 3), "float32", 2))
    x = integers((1, 3, 6, 6), "float32", 1)
    assert_same(fc.conv2d(x, fc.pack_conv2d_weight(w)), fc.conv2d(x, w.astype("float32")))


def test_it_is_taken_wherever_a_weight_is():
    x, w = integers((1, 3, 6, 6), "float32", 1), integers((4, 3, 3, 3), "float32", 2)
    packed = fc.pack_conv2d_weight(w)
    y = fc.conv2d(x, w)
    assert_same(fc.conv2d_grad_input(x.shape, packed, y), fc.conv2d_grad_input(x.shape, w, y))
    assert_same(fc.conv_transpose2d(y, packed), fc.conv_transpose2d(y, w))
    ours, theirs = fc.conv2d_backward(y, x, packed), fc.conv2d_backward(y, x, w)
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    assert_same(np.asarray(packed), w)
    assert np.asarray(packed, dtype="float64").dtype == np.float64
    assert np.array(packed).flags.writeable
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        assert np.asarray(packed, copy=False) is packed.source
        with pytest.raises(ValueError, match="copy"):
            np.asarray(packed, dtype="float64", copy=False)


def test_copies_and_pickles_hold_the_plain_weight():
    x, w = integers((1, 3, 6, 6), "float32", 1), integers((4, 3, 3, 3), "float32", 2)
    packed = fc.pack_conv2d_weight(w, x.shape)
    fc.conv2d(x, packed)
    for twin in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed), copy.copy(packed)):
        assert twin.nbytes == 0
        assert_same(fc.conv2d(x, twin), fc.conv2d(x, packed))


def test_threads_share_one():
    x, w = integers((1, 8, 9, 9), "float32", 1), integers((16, 8, 3, 3), "float32", 2)
    packed, exact, found = fc.pack_conv2d_weight(w), fc.conv2d(x, w, algorithm="im2col"), []
    start = threading.Barrier(4)

    def work():
        start.wait(60)
        found.append(fc.conv2d(x, packed, algorithm="im2col"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for result in found:
        assert_same(result, exact)


# ---------------------------------------------------------------------------------------------------- in layers


@pytest.mark.parametrize("kind", [fc.Conv2d, fc.Conv1d])
def test_eval_keeps_a_pack_and_locks_the_weight(kind):
    conv = kind(3, 4, 3, rng=0)
    x = np.ones((1, 3, 8, 8)[: 4 if kind is fc.Conv2d else 3], "float32")
    weight = conv.weight
    trained = conv(x)
    conv.eval()
    np.testing.assert_allclose(conv(x), trained, rtol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        conv.weight[...] = 0
    assert conv.weight is weight and _tape.tape.frames == _tape.tape.frames
    conv.train()
    conv.weight[...] = 0
    assert not conv(x)[:, 0].any() or conv.bias[0] != 0
    np.testing.assert_array_equal(conv(x)[0, :, 0].reshape(4, -1)[:, 0], conv.bias)
    conv.eval()
    np.testing.assert_array_equal(conv(x)[0, :, 0].reshape(4, -1)[:, 0], conv.bias)


def test_the_mode_may_be_set_as_an_attribute():
    conv = fc.Conv2d(3, 4, 3, rng=0)
    conv.training = False
    assert not conv.weight.flags.writeable
    conv.training = True
    assert conv.weight.flags.writeable


def test_assignment_frees_the_weight_and_counts_at_once():
    conv = fc.Conv2d(3, 4, 3, bias=False, rng=0).eval()
    x = np.ones((1, 3, 8, 8), "float32")
    old = conv.weight
    assert conv(x).any() and not old.flags.writeable
    conv.weight = np.zeros_like(old)
    assert old.flags.writeable and not conv(x).any()


def test_load_state_dict_in_eval_mode():
    a, b = fc.Conv2d(3, 4, 3, rng=0).eval(), fc.Conv2d(3, 4, 3, rng=1).eval()
    x = np.ones((1, 3, 8, 8), "float32")
    assert (a(x) != b(x)).any()
    state = a.state_dict()
    b.load_state_dict(state)
    np.testing.assert_array_equal(a(x), b(x))
    assert not np.shares_memory(b.weight, state["weight"])


def test_copies_of_a_layer_in_eval_mode_have_their_own_weight():
    conv = fc.Conv2d(3, 4, 3, rng=0).eval()
    x = np.ones((1, 3, 8, 8), "float32")
    y = conv(x)
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        np.testing.assert_array_equal(twin(x), y)
        twin.train().weight[...] = 0
        np.testing.assert_array_equal(conv(x), y)
        assert not conv.weight.flags.writeable


def test_a_weight_that_was_read_only_stays_so():
    conv = fc.Conv2d(3, 4, 3, rng=0)
    conv.weight.flags.writeable = False
    x = np.ones((1, 3, 8, 8), "float32")
    y = conv(x)
    np.testing.assert_allclose(conv.eval()(x), y, rtol=1e-5)
    assert not conv.train().weight.flags.writeable
