"""Layers: forward and backward against torch and central differences, the tape's rules, names, modes, errors."""

# ruff: noqa: E501 - a message stands on one line

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import pickle
import re
import threading
import weakref

import numpy as np
import pytest

import fastconv
from conftest import Engine, runnable
from fastconv import functional, layers
from fastconv.layers import (
    AdaptiveAvgPool2d,
    Add,
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv1d,
    Conv2d,
    ConvTranspose2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    HardSwish,
    Identity,
    Layer,
    LeakyReLU,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    MaxUnpool2d,
    PReLU,
    ReLU,
    ReLU6,
    Residual,
    Sequential,
    Sigmoid,
    Softmax,
    ZeroPad2d,
    record,
)
from fastconv.layers._tape import RULES, tape

# Arguments that torch and this library take alike: class, positional and keyword arguments, shape of the input.
SHARED = {
    "Conv2d": (Conv2d, (3, 4, 3), {}, (2, 3, 6, 5)),
    "Conv2d-stride-padding": (Conv2d, (3, 4, (3, 2), 2, (1, 2)), {}, (2, 3, 7, 6)),
    "Conv2d-dilation-groups": (Conv2d, (4, 6, 3, 1, 2, 2, 2), {}, (2, 4, 6, 5)),
    "Conv2d-depthwise-no-bias": (Conv2d, (3, 6, 3), {"groups": 3, "bias": False}, (1, 3, 5, 5)),
    "Conv2d-same": (Conv2d, (2, 3, 3), {"padding": "same"}, (1, 2, 5, 4)),
    "Conv2d-reflect": (Conv2d, (2, 3, 3), {"padding": 2, "padding_mode": "reflect"}, (1, 2, 5, 4)),
    "Conv2d-one-image": (Conv2d, (3, 4, 3), {"padding": 1}, (3, 5, 4)),
    "Conv1d": (Conv1d, (3, 4, 3), {}, (2, 3, 9)),
    "Conv1d-all": (Conv1d, (4, 6, 3, 2, 2, 2, 2), {}, (2, 4, 9)),
    "Conv1d-same": (Conv1d, (2, 3, 4), {"padding": "same"}, (1, 2, 7)),
    "Conv1d-circular-one-signal": (Conv1d, (2, 3, 3), {"padding": 1, "padding_mode": "circular"}, (2, 7)),
    "ConvTranspose2d": (ConvTranspose2d, (3, 4, 3), {}, (2, 3, 4, 5)),
    "ConvTranspose2d-all": (ConvTranspose2d, (4, 6, (3, 2), 2, 1, 1, 2, False), {}, (2, 4, 4, 5)),
    "ConvTranspose2d-output-padding-beyond-stride": (
        ConvTranspose2d,
        (2, 3, 3, 1, 0, (2, 1), 1, True, 3),
        {},
        (1, 2, 4, 5),
    ),
    "ConvTranspose2d-one-image": (ConvTranspose2d, (2, 3, 2, 2), {}, (2, 3, 4)),
    "Linear": (Linear, (5, 3), {}, (4, 5)),
    "Linear-no-bias-axes": (Linear, (5, 3, False), {}, (2, 3, 5)),
    "Linear-vector": (Linear, (5, 3), {}, (5,)),
    "ReLU": (ReLU, (), {}, (2, 3, 4)),
    "ReLU6": (ReLU6, (), {}, (2, 3, 4)),
    "LeakyReLU": (LeakyReLU, (0.2,), {}, (2, 3, 4)),
    "PReLU": (PReLU, (), {}, (2, 3, 4)),
    "PReLU-channels": (PReLU, (3, 0.1), {}, (2, 3, 4, 2)),
    "Sigmoid": (Sigmoid, (), {}, (2, 3, 4)),
    "Softmax": (Softmax, (1,), {}, (4, 5)),
    "Softmax-last": (Softmax, (-1,), {}, (2, 3, 5)),
    "MaxPool2d": (MaxPool2d, (2,), {}, (2, 3, 5, 6)),
    "MaxPool2d-all": (MaxPool2d, (3, (2, 1), 1, 2), {"ceil_mode": True}, (2, 3, 8, 7)),
    "MaxPool2d-one-image": (MaxPool2d, (3, 2), {}, (3, 7, 7)),
    "AvgPool2d": (AvgPool2d, (2,), {}, (2, 3, 5, 6)),
    "AvgPool2d-all": (AvgPool2d, ((3, 2), 2, 1, True, False), {}, (2, 3, 6, 7)),
    "AvgPool2d-divisor": (AvgPool2d, (2,), {"divisor_override": 3}, (3, 4, 4)),
    "AdaptiveAvgPool2d": (AdaptiveAvgPool2d, ((3, 2),), {}, (2, 3, 7, 5)),
    "AdaptiveAvgPool2d-None": (AdaptiveAvgPool2d, ((None, 4),), {}, (3, 3, 3)),
    "ZeroPad2d": (ZeroPad2d, ((1, 2, 0, 3),), {}, (2, 3, 4, 5)),
    "ZeroPad2d-negative": (ZeroPad2d, ((-1, 2, 1, -2),), {}, (2, 3, 4, 5)),
    "BatchNorm2d": (BatchNorm2d, (3,), {}, (4, 3, 3, 2)),
    "BatchNorm2d-cumulative": (BatchNorm2d, (3, 1e-3, None), {}, (4, 3, 3, 2)),
    "BatchNorm2d-bare": (BatchNorm2d, (3,), {"affine": False, "track_running_stats": False}, (4, 3, 3, 2)),
    "LocalResponseNorm": (LocalResponseNorm, (5, 0.5, 0.75, 2.0), {}, (2, 7, 3, 2)),
    "LocalResponseNorm-even": (LocalResponseNorm, (4, 1.5), {}, (2, 3, 3, 2)),
    "Flatten": (Flatten, (), {}, (2, 3, 4)),
    "Flatten-inner": (Flatten, (0, 1), {}, (2, 3, 4)),
    "Identity": (Identity, (), {}, (2, 3)),
}
HAS_DTYPE = (Conv2d, Conv1d, ConvTranspose2d, Linear, PReLU, BatchNorm2d)


def build(name, dtype="float64"):
    """One of our layers, with weights that are neither 0 nor 1."""
    kind, args, options, shape = SHARED[name]
    layer = kind(*args, **options, **({"dtype": dtype} if kind in HAS_DTYPE else {}))
    randomise(layer)
    return layer, shape


def randomise(layer, seed=7):
    rng = np.random.default_rng(seed)
    for array in layer.parameters():
        array[...] = rng.normal(size=array.shape)
    for key, array in layer.named_buffers():
        if "running" in key:
            array[...] = rng.uniform(0.5, 1.5, array.shape)


def unlock(net):
    """Assignment gives a weight free that eval mode keeps packed, so that it can be changed in place."""
    for _, layer in net.named_layers():
        if isinstance(layer, Conv2d):
            layer.weight = layer.weight
    return net


def numbers(shape, dtype="float64", seed=1):
    """Normal, but no kink of an activation within 1e-3 (0, 6, +-3), and no two alike."""
    x = np.random.default_rng(seed).normal(scale=3, size=shape)
    for kink in (0, 6, -3, 3):
        x[np.abs(x - kink) < 1e-3] += 0.01
    return x.astype(dtype)


def assert_differences(net, x, loss_weight=None, h=1e-6, tolerance=1e-6):
    """``net.backward`` against central differences of sum(loss_weight * net(x)), in float64."""
    assert x.dtype == np.float64
    unlock(net)
    with record():
        y = net(x)
        r = np.random.default_rng(3).normal(size=y.shape) if loss_weight is None else loss_weight
        grad = net.backward(r)
    assert grad.shape == x.shape and grad.dtype == x.dtype

    def slope(array):
        found = np.empty(array.shape)
        for place in np.ndindex(array.shape):
            kept = array[place]
            array[place] = kept + h
            up = net(x).copy()  # Flatten gives a view of x
            array[place] = kept - h
            down = net(x).copy()
            array[place] = kept
            found[place] = (r * (up - down)).sum() / (2 * h)
        return found

    def check(actual, array, what):
        expected = slope(array)
        scale = max(1.0, np.abs(expected).max(initial=0))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale * 10, err_msg=what)

    check(grad, x, "input")
    for (key, parameter), (_, gradient) in zip(net.named_parameters(), net.named_gradients(), strict=True):
        assert gradient.shape == parameter.shape and gradient.dtype == parameter.dtype, key
        check(gradient, parameter, key)


@pytest.fixture(autouse=True)
def _empty_tape():
    """A failed test's traceback holds layers, and so their frames."""
    tape.frames = []
    yield
    assert tape.blocks == 0


# ----------------------------------------------------------------------------------------- every layer's maths


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", SHARED)
def test_gradients_by_central_differences(name, training):
    layer, shape = build(name)
    layer.train(training)
    assert_differences(layer, numbers(shape))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SHARED)
def test_agrees_with_torch(name, dtype, training):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    kind, args, options, _ = SHARED[name]
    layer, shape = build(name, dtype)
    twin = getattr(torch.nn, kind.__name__)(*args, **options).to(getattr(torch, dtype)).train(training)
    if dict(layer.named_parameters()) or dict(layer.named_buffers()):
        twin.load_state_dict({key: torch.from_numpy(value) for key, value in layer.state_dict().items()})
    layer.train(training)
    assert repr(layer) == re.sub(", bias=[a-zA-Z]*, track", ", track", repr(twin))  # newer torch has BatchNorm bias

    x = numbers(shape, dtype)
    with record():
        y = layer(x)
        r = numbers(y.shape, dtype, seed=2)
        grad = layer.backward(r)
    leaf = torch.from_numpy(x).requires_grad_()
    z = twin(leaf)
    z.backward(torch.from_numpy(r))
    assert y.dtype == grad.dtype == np.dtype(dtype)
    close = {"rtol": 2e-5, "atol": 5e-5} if dtype == "float32" else {"rtol": 1e-11, "atol": 1e-12}
    np.testing.assert_allclose(y, z.detach().numpy(), **close)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), **close)
    theirs = dict(twin.named_parameters())
    assert list(theirs) == [key for key, _ in layer.named_parameters()]
    for key, gradient in layer.named_gradients():
        np.testing.assert_allclose(gradient, theirs[key].grad.numpy(), err_msg=key, **close)
    theirs = twin.state_dict()
    assert list(theirs) == list(layer.state_dict())
    for key, value in layer.state_dict().items():  # running statistics have moved, too
        np.testing.assert_allclose(value, theirs[key].numpy(), err_msg=key, **close)


def test_hard_swish_and_global_pooling_agree_with_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for layer, twin in ((HardSwish(), torch.nn.Hardswish()), (GlobalAvgPool2d(), torch.nn.AdaptiveAvgPool2d(1))):
        x = numbers((2, 3, 5, 4))
        y = layer(x)
        grad = layer.backward(np.ones_like(y))
        leaf = torch.from_numpy(x).requires_grad_()
        twin(leaf).sum().backward()
        np.testing.assert_allclose(y, twin(leaf).detach().numpy(), rtol=1e-13)
        np.testing.assert_allclose(grad, leaf.grad.numpy(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("layer", [HardSwish(), GlobalAvgPool2d(), AdaptiveAvgPool2d(1)], ids=repr)
def test_more_central_differences(layer):
    assert_differences(layer, numbers((2, 3, 4, 5)))


def test_max_pool_gives_indices_and_unpool_takes_them():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = numbers((2, 3, 7, 6))
    pool, unpool = MaxPool2d(3, 2, 1, return_indices=True), MaxUnpool2d(3, 2, 1)
    y, indices = pool(x)
    z = unpool(y, indices, output_size=(7, 6))
    leaf = torch.from_numpy(x).requires_grad_()
    t_pool, t_unpool = torch.nn.MaxPool2d(3, 2, 1, return_indices=True), torch.nn.MaxUnpool2d(3, 2, 1)
    t_y, t_indices = t_pool(leaf)
    assert (indices == t_indices.numpy()).all() and (y == t_y.detach().numpy()).all()
    assert repr(unpool) == repr(t_unpool)
    t_z = t_unpool(t_y, t_indices, output_size=(7, 6))
    np.testing.assert_array_equal(z, t_z.detach().numpy())
    r = numbers((2, 3, 7, 6), seed=5)
    # Windows overlap here, so one cell may hold several values: torch's gradient counts each of them, ours the one that
    # stands. They agree where values do not meet.
    pool, unpool = MaxPool2d(2, return_indices=True), MaxUnpool2d(2)
    y, indices = pool(x[..., :6, :])
    unpool(y, indices)
    grad = pool.backward(unpool.backward(r[..., :6, :]))
    np.testing.assert_array_equal(grad, np.where(grad != 0, r[..., :6, :], 0))
    assert (grad != 0).sum() == y.size


def test_dropout_drops_scales_and_repeats():
    x = np.ones((40, 50), np.float32)
    layer = Dropout(0.25, rng=3)
    y = layer(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs((y == 0).mean() - 0.25) < 0.04
    np.testing.assert_array_equal(layer.backward(x), y)
    np.testing.assert_array_equal(Dropout(0.25, rng=3)(x), y)
    assert not (layer(x) == y).all()
    np.testing.assert_array_equal(layer.eval()(x), x)
    assert not Dropout(1.0)(np.full(5, np.inf)).any()
    np.testing.assert_array_equal(Dropout(0)(x), x)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1)])
def test_batch_norm_checks_arrays_that_were_put_in(name, shape):
    norm = BatchNorm2d(2, dtype="float64")
    setattr(norm, name, np.ones(shape))
    with pytest.raises(ValueError, match=rf"BatchNorm2d: {name} has shape {re.escape(str(shape))}: it must be \(2,\)"):
        norm(np.ones((2, 2, 3, 3)))


def test_batch_norm_of_single_cells():
    """Where channels share cache lines other loops run; and an Inf stays one in the running mean."""
    rng = np.random.default_rng(1)
    for shape in ((6, 5, 1, 1), (6, 5, 1, 2), (6, 5, 2, 2)):
        norm, x, grad = BatchNorm2d(5, dtype="float64"), *rng.standard_normal((2, *shape))
        wide = BatchNorm2d(5, dtype="float64")
        spread = [np.ascontiguousarray(a.transpose(1, 0, 2, 3).reshape(1, 5, -1, 1)) for a in (x, grad)]
        for actual, expected in ((norm(x), wide(spread[0])), (norm.backward(grad), wide.backward(spread[1]))):
            np.testing.assert_allclose(actual.transpose(1, 0, 2, 3).ravel(), expected.ravel(), atol=1e-12)
        np.testing.assert_allclose(norm.running_var, wide.running_var)
        np.testing.assert_allclose(norm.grad_weight, wide.grad_weight)
        x[0, 1, 0, 0] = np.inf
        with np.errstate(invalid="ignore"):
            norm(x)
        assert norm.running_mean[1] == np.inf and np.isfinite(norm.running_mean[[0, 2, 3, 4]]).all()


def test_a_residual_sum_does_not_overwrite_what_a_layer_keeps():
    """Its sum takes the place of what a BatchNorm2d gave, not of what another layer gave and needs again."""
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 6))
    for last in (BatchNorm2d(4, dtype="float64"), Sequential(BatchNorm2d(4, dtype="float64"), layers.Sigmoid())):
        block = fastconv.models.resnet18(3, filters=4, rng=0, dtype="float64").layer1[0]
        block.bn2 = last
        y = block(x)
        block.backward(np.ones_like(y))
        weight, analytic, values = block.conv2.weight, block.conv2.grad_weight[0, 0, 1, 1], []
        for step in (1e-6, -2e-6):
            weight[0, 0, 1, 1] += step
            values.append(block(x).sum())
        assert abs((values[0] - values[1]) / 2e-6 - analytic) < 1e-6
        np.testing.assert_allclose(
            y, np.maximum(last(block.conv2(block.relu(block.bn1(block.conv1(x))))) + x, 0), atol=1e-5
        )


def test_batch_norm_in_eval_mode_changes_nothing_of_itself():
    norm = BatchNorm2d(2, dtype="float64")
    before = norm.state_dict()
    with record():
        norm.eval()(numbers((3, 2, 4, 4)))
    for key, value in norm.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    norm.train()(numbers((3, 2, 4, 4)))
    assert norm.num_batches_tracked == 1 and norm.num_batches_tracked.shape == ()


def test_activations_keep_extremes_in_hand():
    with np.errstate(all="raise", under="ignore"):
        huge = np.array([[-1e30, -100.0, 0.0, 100.0, 1e30]], np.float32)
        assert Sigmoid()(huge).tolist()[0][2:] == [0.5, 1, 1]
        assert np.isfinite(Softmax()(huge)).all() and Softmax()(huge).sum() == 1
    nan = np.array([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(ReLU()(nan), [np.nan, np.inf, 0])
    np.testing.assert_array_equal(ReLU6()(nan), [np.nan, 6, 0])
    relu = ReLU()
    relu(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(relu.backward(np.array([np.inf, np.inf, 5.0])), [0, 0, 5])  # never 0 * inf


@pytest.mark.parametrize("engine_name", runnable())
def test_a_network_on_every_engine(engine_name):
    net = article_net("float64").eval()
    x = numbers((2, 1, 28, 28), seed=4)
    with Engine("reference").config():
        expected = net(x)
    with Engine(engine_name).config(), record():
        y = net(x)
        net.backward(np.ones_like(y))
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------- containers


def article_net(dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    more = {"dtype": dtype, "rng": rng}
    return Sequential(
        Conv2d(1, 32, 3, **more), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3, **more), ReLU(), MaxPool2d(2), Flatten(),
        Linear(1600, 10, **more),
    )  # fmt: skip


def small_residual_net(dtype="float64"):
    more = {"dtype": dtype, "rng": np.random.default_rng(5)}
    shared = PReLU(dtype=dtype)
    body = Sequential({"conv": Conv2d(3, 3, 3, padding=1, **more), "norm": BatchNorm2d(3, dtype=dtype), "act": shared})
    net = Sequential(
        Conv2d(2, 3, 3, **more),
        shared,
        Residual(body, shortcut=Conv2d(3, 3, 1, **more)),
        Residual(LeakyReLU()),
        Concat(AvgPool2d(2), MaxPool2d(2), dim=-3),
        Add(Identity(), Conv2d(6, 6, 1, bias=False, **more)),
        Flatten(),
        Dropout(0.5),
        Linear(6 * 2 * 2, 2, **more),
    )
    return net


def test_gradients_of_a_network_with_branches_and_shared_layers():
    net = small_residual_net()
    randomise(net)
    net.eval()
    assert_differences(net, numbers((2, 2, 6, 6)))


def test_a_network_with_branches_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    nn = torch.nn

    class Twin(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 3, padding=1)
            self.norm = nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu() + torch.cat([x, x, x], 1)

    class Own(Layer):
        def __init__(self):
            self.left, self.right = Conv2d(2, 3, 1, dtype="float64"), Conv2d(2, 3, 3, padding=1, dtype="float64")
            self.norm = BatchNorm2d(6, dtype="float64")
            self.path = Sequential(Concat(self.left, self.right), self.norm, ReLU())
            self.copies = Concat(Identity(), Identity(), Identity())

        def named_children(self):
            yield from (("left", self.left), ("right", self.right), ("norm", self.norm))

        def _forward(self, x):
            return self.path(x) + self.copies(x), None

        def _backward(self, grad_output, saved, run):
            return run(self.copies, grad_output) + run(self.path, grad_output)

    twin, own = Twin().double(), Own()
    own.load_state_dict(twin.state_dict())
    x = numbers((2, 2, 4, 5))
    leaf = torch.from_numpy(x).requires_grad_()
    y, z = own(x), twin(leaf)
    np.testing.assert_allclose(y, z.detach().numpy(), rtol=1e-11, atol=1e-12)
    r = numbers(y.shape, seed=9)
    z.backward(torch.from_numpy(r))
    np.testing.assert_allclose(own.backward(r), leaf.grad.numpy(), rtol=1e-10, atol=1e-11)
    for (key, gradient), (name, parameter) in zip(own.named_gradients(), twin.named_parameters(), strict=True):
        assert key == name
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-10, atol=1e-10, err_msg=key)


def test_torchs_state_dict_of_the_articles_net_gives_the_same_logits():
    """Running error analysis: every layer's own bound, plus what its weights make of the error that came in."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    torch.manual_seed(0)
    nn = torch.nn
    twin = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(1600, 10),
    )  # fmt: skip
    net = article_net().eval()
    net.load_state_dict(twin.state_dict())
    assert repr(net) == repr(twin)
    x = np.random.default_rng(1).random((4, 1, 28, 28), dtype=np.float32)
    with torch.no_grad():
        exact = twin.double()(torch.from_numpy(x).double()).numpy()

    eps = float(np.finfo(np.float32).eps)
    value, error = x.astype(np.float64), np.zeros(x.shape)
    for layer in net:
        if isinstance(layer, (Conv2d, Linear)):
            chain = layer.weight[0].size + 2
            w, b = np.abs(layer.weight).astype(np.float64), np.abs(layer.bias).astype(np.float64)
            apply = functional.conv2d if isinstance(layer, Conv2d) else lambda a, w, b=0: a @ w.T + b
            error = apply(error, w) + chain * eps * apply(np.abs(value) + error, w, b)
            exact_layer = apply(value, layer.weight.astype(np.float64), layer.bias.astype(np.float64))
            value = exact_layer
        else:  # no arithmetic, and no two numbers are moved apart
            value = layer(value)
            error = layer(error) if not isinstance(layer, ReLU) else error
    np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-13)
    y = net(x)
    assert y.dtype == np.float32
    assert (np.abs(y - exact) <= error).all()
    assert error.max() < 0.01


def test_sequential_is_a_sequence():
    a, b, c = ReLU(), Flatten(), Identity()
    net = Sequential(a, b, c)
    assert len(net) == 3 and list(net) == [a, b, c] and net[0] is a and net[-1] is c
    tail = net[1:]
    assert isinstance(tail, Sequential) and list(tail) == [b, c]
    assert [name for name, _ in tail.named_children()] == ["1", "2"]
    assert net.append(ReLU6()) is net and len(net) == 4
    with pytest.raises(IndexError):
        net[4]
    named = Sequential({"first": a, "second": Sequential(b)})
    assert named.first is a and [name for name, _ in named.named_layers()] == ["", "first", "second", "second.0"]
    with pytest.raises(AttributeError, match="third"):
        named.third  # noqa: B018
    with pytest.raises(TypeError, match="must be an integer"):
        net["0"]
    x = numbers((2, 3))
    np.testing.assert_array_equal(Sequential()(x), x)
    for twin in (copy.deepcopy(named), pickle.loads(pickle.dumps(named))):
        assert repr(twin) == repr(named) and twin.first is not a


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("channels", [1, 50])
def test_a_pickled_layer_in_eval_mode_trains_again(channels, protocol):
    """NumPy leaves larger arrays in the pickle's bytes, which cannot be written."""
    conv = Conv2d(channels, 20, 3, rng=0).eval()
    x = numbers((1, channels, 5, 5), "float32")
    expected = conv(x)
    twin = pickle.loads(pickle.dumps(conv, protocol))
    assert not twin.weight.flags.writeable
    np.testing.assert_array_equal(twin(x), expected)
    twin.train().weight[...] = 0
    np.testing.assert_array_equal(twin(x), np.broadcast_to(twin.bias[:, None, None], expected.shape))


def test_names_are_torchs():
    net = small_residual_net()
    names = [name for name, _ in net.named_parameters()]
    assert names == [
        "0.weight", "0.bias", "1.weight", "2.body.conv.weight", "2.body.conv.bias", "2.body.norm.weight",
        "2.body.norm.bias", "2.shortcut.weight", "2.shortcut.bias", "5.1.weight", "8.weight", "8.bias",
    ]  # fmt: skip
    assert [name for name, _ in net.named_buffers()] == [
        f"2.body.norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    ]
    assert len(list(net.parameters())) == len(names) and len(list(net.buffers())) == 3
    assert "2.body.act.weight" in net.state_dict()  # the shared layer stands under both names, as in torch
    assert [type(layer).__name__ for layer in net[2].children()] == ["Sequential", "Conv2d"]


def test_repr_of_nested_layers_is_torchs():
    torch = pytest.importorskip("torch", reason="torch is not installed")

    def nested(kit):
        first = kit.Sequential(kit.Conv2d(1, 2, 3, padding=(1, 0), dilation=2, bias=False), kit.ReLU())
        return kit.Sequential(first, kit.Dropout(0.3), kit.ConvTranspose2d(2, 2, 3, 2, output_padding=1, groups=2))

    assert repr(nested(layers)) == repr(nested(torch.nn))


# -------------------------------------------------------------------------------------------- weights at first


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_seeds_decide_the_weights(dtype):
    a, b = Conv2d(3, 8, 3, dtype=dtype, rng=1), Conv2d(3, 8, 3, dtype=dtype, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(a.weight, b.weight)
    np.testing.assert_array_equal(a.bias, b.bias)
    assert a.weight.dtype == a.bias.dtype == np.dtype(dtype)
    assert not (a.weight == Conv2d(3, 8, 3, dtype=dtype, rng=2).weight).any()
    assert not (Conv2d(3, 8, 3).weight == Conv2d(3, 8, 3).weight).all()


def test_the_default_is_torchs_distribution():
    layer = Conv2d(16, 400, 3, groups=2, rng=0)
    bound = 1 / np.sqrt(8 * 9)
    for array in (layer.weight, layer.bias):
        assert np.abs(array).max() <= bound and np.abs(array).max() > 0.95 * bound
        assert abs(array.mean()) < 0.1 * bound
    up = ConvTranspose2d(16, 8, 3, rng=0)  # torch takes axis 1 of the weight for its inputs
    assert 0.95 / np.sqrt(8 * 9) < np.abs(up.weight).max() <= 1 / np.sqrt(8 * 9)
    dense = Linear(64, 300, rng=0)
    assert 0.95 / 8 < np.abs(dense.weight).max() <= 1 / 8 and np.abs(dense.bias).max() <= 1 / 8


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("kaiming_normal", np.sqrt(2 / (8 * 9))),
        ("xavier_uniform", np.sqrt(2 / (8 * 9 + 200 * 9))),
        ("xavier_normal", np.sqrt(2 / (8 * 9 + 200 * 9))),
        ("zeros", 0),
    ],
)
def test_named_distributions(init, deviation):
    layer = Conv2d(8, 200, 3, rng=0, init=init)
    assert abs(layer.weight.std() - deviation) <= 0.03 * deviation
    assert not layer.bias.any()


def test_orthogonal_and_given_weights():
    for channels in ((2, 40), (8, 4)):
        layer = Conv2d(*channels, 3, rng=0, init="orthogonal", dtype="float64")
        rows = layer.weight.reshape(channels[1], -1)
        gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-12)
    sobel = np.array([[[[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]]])
    layer = Conv2d(1, 1, 3, init=sobel)
    assert layer.weight.dtype == np.float32 and (layer.weight == sobel).all() and not layer.bias.any()
    layer.weight[...] = 0
    assert sobel.any()


# ---------------------------------------------------------------------------------------------- rules and tape


def test_rules_by_hand():
    x, grad = np.array([-1.0, 2.0, 3.0, 0.0]), np.array([5.0, 6.0, -7.0, 8.0])
    expected = {"gradient": [0, 6, -7, 0], "deconvnet": [5, 6, 0, 8], "guided": [0, 6, 0, 0]}
    for rule, values in expected.items():
        for net in (ReLU(), Sequential(ReLU()), Residual(Sequential(ReLU())), Concat(ReLU(), dim=0), ReLU6()):
            net(x)
            with_shortcut = grad if isinstance(net, Residual) else 0
            np.testing.assert_array_equal(net.backward(grad, rule=rule), np.array(values) + with_shortcut)


@pytest.mark.parametrize("rule", ["gradient", "deconvnet", "guided"])
def test_a_relu_and_the_pool_behind_it_go_back_as_each_would_alone(rule):
    """`Sequential` merges the two; windows overlap, and zeros, equal maxima, NaN and Inf stand in them."""
    relu, pool = ReLU(), MaxPool2d(3, 2, 1)
    x = np.floor(3 * numbers((2, 3, 9, 8)))
    x[0, 0, 4, 4], x[1, 2, 2, 6] = np.nan, np.inf
    output = pool(relu(x))
    grad = np.floor(5 * numbers(output.shape))
    grad[0, 0, 2, 2] = np.inf
    alone = relu.backward(pool.backward(grad, rule=rule), rule=rule)
    net = Sequential(relu, pool)
    given = grad.copy()
    net(x)
    np.testing.assert_array_equal(net.backward(grad, rule=rule), alone)
    np.testing.assert_array_equal(grad, given)
    for layer in (net, relu, pool):  # nothing is left of the forward
        with pytest.raises(RuntimeError, match="no forward"):
            layer.backward(grad)


def test_indices_that_the_caller_holds_are_checked_again():
    pool = MaxPool2d(2, return_indices=True)
    output, indices = pool(numbers((1, 1, 4, 4)))
    indices[...] = 99
    with pytest.raises(ValueError, match="indices hold 99"):
        pool.backward(output)


def test_a_linear_networks_rules_agree_and_spare_the_parameters():
    net = Sequential(Conv2d(1, 2, 3, rng=0), AvgPool2d(2))
    x = numbers((1, 1, 6, 6), "float32")
    results = []
    for rule in ("gradient", "deconvnet", "guided"):
        y = net(x)
        net[0].grad_weight = None
        results.append(net.backward(np.ones_like(y), rule=rule))
        assert (net[0].grad_weight is None) == (rule != "gradient")
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_layer_used_twice(mode):
    conv = Conv2d(2, 2, 3, padding=1, dtype="float64", rng=0)
    x = numbers((1, 2, 4, 4))
    reference = Sequential(Conv2d(2, 2, 3, padding=1, dtype="float64", init=conv.weight),
                           Conv2d(2, 2, 3, padding=1, dtype="float64", init=conv.weight))  # fmt: skip
    for layer in reference:
        layer.bias[...] = conv.bias
    y = reference(x)
    expected = reference.backward(np.ones_like(y))
    total = reference[0].grad_weight + reference[1].grad_weight

    if mode == "train":
        again = conv(conv(x))
        grad = conv.backward(conv.backward(np.ones_like(y)), accumulate=True)
    else:
        conv.eval()
        with record():
            again = conv(conv(x))
            grad = conv.backward(conv.backward(np.ones_like(y)), accumulate=True)
    np.testing.assert_array_equal(again, y)
    np.testing.assert_array_equal(grad, expected)
    np.testing.assert_allclose(conv.grad_weight, total, rtol=1e-12)

    net = Sequential(conv, conv).train()  # inside one network the sum is taken by itself
    net(x)
    np.testing.assert_array_equal(net.backward(np.ones_like(y)), expected)
    np.testing.assert_allclose(conv.grad_weight, total, rtol=1e-12)


def test_gradients_are_overwritten_or_added():
    layer = Linear(2, 2, rng=0, dtype="float64")
    x = numbers((3, 2))
    one = np.ones((3, 2))
    for accumulate, factor in ((False, 1), (False, 1), (True, 2), (True, 3), (False, 1)):
        layer(x)
        layer.backward(one, accumulate=accumulate)
        np.testing.assert_allclose(layer.grad_weight, factor * np.outer(np.ones(2), x.sum(axis=0)))
    assert next(layer.gradients()) is layer.grad_weight
    layer.zero_grad()
    assert list(layer.gradients()) == [None, None]


@pytest.mark.parametrize("name", ["ReLU", "Flatten", "Identity", "Dropout", "GlobalAvgPool2d", "Sigmoid", "Softmax"])
def test_needs_input_false_gives_none_for_layers_without_parameters(name):
    first = getattr(fastconv, name)()
    x = np.ones((2, 1, 4, 4))
    for net in (first, Sequential(first), Sequential(ReLU(), first), Sequential(ReLU(), MaxPool2d(2), first)):
        assert net.backward(np.ones_like(net(x)), needs_input=False) is None


def test_needs_input_spares_only_the_inputs_gradient():
    net = article_net()
    x = numbers((2, 1, 28, 28), "float32")
    y = net(x)
    assert net.backward(np.ones_like(y)) is not None
    full = [gradient.copy() for gradient in net.gradients()]
    net(x)
    assert net.backward(np.ones_like(y), needs_input=False) is None
    for ours, expected in zip(net.gradients(), full, strict=True):
        np.testing.assert_array_equal(ours, expected)
    branches = Add(Conv2d(2, 2, 1), BatchNorm2d(2))
    for net in (Residual(Conv2d(2, 2, 1)), branches, Concat(Identity()), ConvTranspose2d(2, 2, 1)):
        y = net(numbers((2, 2, 3, 3), "float32"))
        assert net.backward(y, needs_input=False) is None


def test_backward_takes_forwards_from_the_last():
    relu = ReLU()
    first, second = np.array([1.0, -1.0]), np.array([-1.0, 1.0])
    one = np.ones(2)
    with record():
        relu(first)
        relu(second)
        np.testing.assert_array_equal(relu.backward(one), [0, 1])
        np.testing.assert_array_equal(relu.backward(one), [1, 0])
        with pytest.raises(RuntimeError, match=r"ReLU.backward: no forward of this layer is recorded"):
            relu.backward(one)


def test_two_networks_may_share_a_layer():
    """backward of a network reads that network's own call, even if a shared layer has run elsewhere since."""
    conv = Conv2d(1, 1, 3, padding=1, dtype="float64", rng=0)
    net = Sequential(conv, ReLU())
    x = numbers((1, 1, 5, 5))
    y = net(x)
    expected = net.backward(np.ones_like(y))
    grad_weight = conv.grad_weight
    net(x)
    other = conv(3 * x)
    np.testing.assert_array_equal(net.backward(np.ones_like(y)), expected)
    np.testing.assert_array_equal(conv.grad_weight, grad_weight)
    conv.backward(np.ones_like(other))
    assert not np.array_equal(conv.grad_weight, grad_weight)


def test_layers_of_a_network_can_be_gone_back_through_by_hand():
    net = article_net()
    x = numbers((1, 1, 28, 28), "float32")
    y = net(x)
    expected = net.backward(np.ones_like(y))
    net(x)
    grad = np.ones_like(y)
    for layer in reversed(list(net)):
        grad = layer.backward(grad)
    np.testing.assert_array_equal(grad, expected)
    with pytest.raises(RuntimeError, match="no forward"):
        net.backward(np.ones_like(y))


def test_record_nests_and_forgets():
    relu = ReLU().eval()
    one = np.ones(1)
    with record():
        relu(one)
        with record():
            relu(-one)
            np.testing.assert_array_equal(relu.backward(one), [0])
            relu(-one)  # left behind: the block takes it along
        np.testing.assert_array_equal(relu.backward(one), [1])
        relu(one)
    assert not tape.frames and not tape.blocks
    with pytest.raises(RuntimeError, match=r"eval mode.*train\(\).*fastconv.record"):
        relu.backward(one)
    with pytest.raises(ZeroDivisionError), record():
        relu(one)
        1 / 0  # noqa: B018
    assert not tape.frames and not tape.blocks


def test_forwards_without_backward_do_not_pile_up():
    net = article_net()
    x = numbers((1, 1, 28, 28), "float32")
    for _ in range(5):
        net(x)
    assert len(tape.frames) == 1
    for _ in range(5):
        y = net(x)
    assert len(tape.frames) <= 2
    for _ in range(5):
        net[:3](x)  # a new Sequential every time
    assert len(tape.frames) <= 3
    net.eval()
    assert not tape.frames
    net.train()(x)
    del net, y
    gc.collect()
    ReLU()(x)
    assert len(tape.frames) == 1  # of the ReLU; the network's went with it


@pytest.mark.parametrize(
    "last", [ReLU(), ReLU6(), Sigmoid(), Softmax(), MaxPool2d(2), MaxPool2d(2, return_indices=True)]
)
def test_a_layer_that_saves_its_output_does_not_keep_its_frame(last):
    net = Sequential(Conv2d(1, 2, 3), last) if not isinstance(last, MaxPool2d) else last
    for _ in range(5):
        net(numbers((1, 1, 8, 8), "float32"))
    assert len(tape.frames) <= 2


def test_hard_swish_of_large_numbers_does_not_overflow():
    np.testing.assert_array_equal(HardSwish()(np.array([3e38, -3e38], "float32")), np.array([3e38, 0], "float32"))


def test_a_frame_keeps_no_layer_alive():
    net = article_net()
    gone = weakref.ref(net)
    saved = weakref.ref(net[7])
    net(numbers((1, 1, 28, 28), "float32"))
    del net
    assert gone() is None and saved() is None


def test_a_failing_forward_leaves_no_trace():
    net = Sequential(ReLU(), Linear(3, 2))
    before = len(tape.frames)
    with pytest.raises(ValueError, match="3 features") as caught:
        net(np.ones((1, 4), np.float32))
    assert any("layer '1' of Sequential" in note for note in caught.value.__notes__)
    assert len(tape.frames) == before
    np.testing.assert_array_equal(net(np.zeros((1, 3), np.float32)), net[1].bias[None])


def test_frozen_statistics_inside_a_network_in_train_mode():
    net = Sequential(Conv2d(1, 2, 3, dtype="float64", rng=0), BatchNorm2d(2, dtype="float64"))
    net[1].eval()
    x = numbers((2, 1, 5, 5))
    y = net(x)
    assert net[1].num_batches_tracked == 0
    assert net.backward(np.ones_like(y)).shape == x.shape


def test_eval_forward_writes_no_attribute(monkeypatch):
    net = small_residual_net("float32").eval()
    ours = [layer for _, layer in net.named_layers()]
    for layer in ours:
        object.__setattr__(layer, "frozen", True)
    kinds = {type(layer) for layer in ours}
    written = []

    def refuse(self, name, value):
        written.append((self, name))

    with monkeypatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__setattr__", refuse)
        net(numbers((2, 2, 6, 6), "float32"))
    assert not written


def test_two_threads_share_a_network_in_eval_mode():
    net = article_net().eval()
    inputs = [numbers((2, 1, 28, 28), "float32", seed=seed) for seed in range(2)]
    with record():
        expected = []
        for x in inputs:
            y = net(x)
            expected.append((y, net.backward(np.ones_like(y))))
    barrier = threading.Barrier(2)
    failures = []

    def work(i):
        try:
            for _ in range(10):
                barrier.wait(30)
                np.testing.assert_array_equal(net(inputs[i]), expected[i][0])
                with record():
                    y = net(inputs[i])
                    barrier.wait(30)
                    np.testing.assert_array_equal(net.backward(np.ones_like(y)), expected[i][1])
            if tape.frames:
                failures.append("frames are left")
        except BaseException as error:  # shown below
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_thread_does_not_see_anothers_tape():
    relu = ReLU()
    relu(np.ones(2))
    seen = []

    def work():
        try:
            relu.backward(np.ones(2))
        except RuntimeError as error:
            seen.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(seen) == 1 and "in this thread" in seen[0]
    np.testing.assert_array_equal(relu.backward(np.ones(2)), [1, 1])


# ---------------------------------------------------------------------------------------------------- examples

DOCUMENTED = (
    "layers._base", "layers._summary", "layers._tape", "layers.activation", "layers.container", "layers.convolution",
    "layers.linear", "layers.normalisation", "layers.pooling", "_state",
)  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTED)
def test_examples(name, capsys):
    results = doctest.testmod(importlib.import_module(f"fastconv.{name}"))
    assert results.failed == 0, capsys.readouterr().out
    assert results.attempted


@pytest.mark.parametrize("name", layers.__all__)
def test_everything_public_is_documented_and_exported(name):
    thing = getattr(layers, name)
    assert getattr(fastconv, name) is thing
    assert thing.__doc__ and (">>> " in thing.__doc__ or name in ("LoadResult", "Summary"))


# ------------------------------------------------------------------------------------------------------ errors

ones = np.ones
MISTAKES = {
    "Conv2d: in_channels 0: it must be at least 1": lambda: Conv2d(0, 1, 3),
    "Conv2d: out_channels is 2.5: it must be an integer": lambda: Conv2d(1, 2.5, 3),
    "Conv2d: kernel_size 0: extents must be at least 1": lambda: Conv2d(1, 1, 0),
    "Conv2d: stride 0: strides must be at least 1": lambda: Conv2d(1, 1, 3, stride=0),
    "Conv2d: groups 2: it must divide the 3 input channels": lambda: Conv2d(3, 4, 3, groups=2),
    "Conv2d: padding 'foo': it must be one of": lambda: Conv2d(1, 1, 3, padding="foo"),
    "Conv2d: padding_mode 'wrap': it must be one of": lambda: Conv2d(1, 1, 3, padding_mode="wrap"),
    "Conv2d: dtype is 'float16': it must be": lambda: Conv2d(1, 1, 3, dtype="float16"),
    "Conv2d: dtype is None: it must be": lambda: Conv2d(1, 1, 3, dtype=None),
    "Conv2d: init 'he': it must be an array or one of": lambda: Conv2d(1, 1, 3, init="he"),
    r"Conv2d: init has shape \(3, 3\): it must be that of the weight, \(1, 1, 3, 3\)":
        lambda: Conv2d(1, 1, 3, init=ones((3, 3))),
    "Conv2d: init has dtype complex128": lambda: Conv2d(1, 1, 1, init=ones((1, 1, 1, 1), complex)),
    "Conv2d: rng is 'seed': it must be": lambda: Conv2d(1, 1, 3, rng="seed"),
    "Conv2d: rng is -1: it must be": lambda: Conv2d(1, 1, 3, rng=-1),
    "Conv2d: bias is 1: it must be True or False": lambda: Conv2d(1, 1, 3, bias=1),
    r"Conv2d: input has 4 channels \(shape \(1, 4, 8, 8\)\): it must have 3":
        lambda: Conv2d(3, 1, 3)(ones((1, 4, 8, 8), "f")),
    "Conv2d: input .* looks like HWC, fastconv.from_images": lambda: Conv2d(3, 1, 3)(ones((8, 8, 3), "f")),
    r"Conv2d: input has shape \(8, 8\): it must be \(N, C, H, W\) or": lambda: Conv2d(3, 1, 3)(ones((8, 8), "f")),
    "Conv2d: input is float64 and weight is float32: they must have one dtype":
        lambda: Conv2d(1, 1, 3)(ones((1, 1, 8, 8))),
    "Conv2d: input has dtype int64: it must be float32 or float64": lambda: Conv2d(1, 1, 3)(ones((1, 1, 8, 8), int)),
    "Conv2d: input is a str": lambda: Conv2d(1, 1, 3)("picture"),
    r"the kernel \(3, 3\) .* is larger than the padded input \(2, 2\)":
        lambda: Conv2d(1, 1, 3)(ones((1, 1, 2, 2), "f")),
    r"Conv1d: input has shape \(8,\): it must be \(N, C, L\) or \(C, L\)": lambda: Conv1d(1, 1, 3)(ones(8, "f")),
    "ConvTranspose2d: output_padding .*must be smaller than stride": lambda: ConvTranspose2d(1, 1, 3, output_padding=1),
    "ConvTranspose2d: padding 'same': it must be one of 'valid'": lambda: ConvTranspose2d(1, 1, 3, padding="same"),
    "Linear: in_features 0": lambda: Linear(0, 1),
    r"Linear: input has shape \(2, 4\): its last axis must have 3 features": lambda: Linear(3, 1)(ones((2, 4), "f")),
    "Linear: input is float64 and weight is float32": lambda: Linear(3, 1)(ones((2, 3))),
    "ReLU: input has dtype complex128": lambda: ReLU()(ones(2, complex)),
    "LeakyReLU: negative_slope is 'a': it must be a number": lambda: LeakyReLU("a"),
    r"LeakyReLU: negative_slope is an array of shape \(2,\): it must be a number": lambda: LeakyReLU(np.array([1, 2])),
    r"PReLU: input has shape \(2, 4\): it must have 3 channels in axis 1": lambda: PReLU(3)(ones((2, 4), "f")),
    "Softmax: dim 3: an input of 2 axes has no such axis": lambda: Softmax(3)(ones((2, 2))),
    "MaxPool2d: kernel_size 0": lambda: MaxPool2d(0),
    "MaxPool2d: padding 2: it must be at least 0 and at most half of the kernel": lambda: MaxPool2d(3, padding=2),
    r"MaxPool2d: input has shape \(4, 4\)": lambda: MaxPool2d(2)(ones((4, 4))),
    "AvgPool2d: divisor_override 0: it must not be zero": lambda: AvgPool2d(2, divisor_override=0),
    "AdaptiveAvgPool2d: output_size 0: it must be at least 1": lambda: AdaptiveAvgPool2d(0),
    "AdaptiveAvgPool2d: output_size .*must be an integer or a pair": lambda: AdaptiveAvgPool2d((1, 2, 3)),
    "GlobalAvgPool2d: input .*height and width must be at least 1": lambda: GlobalAvgPool2d()(ones((1, 2, 0, 3))),
    r"ZeroPad2d: padding \(1, 2\): it must be one integer or \(left": lambda: ZeroPad2d((1, 2)),
    "ZeroPad2d: padding .*leaves nothing": lambda: ZeroPad2d(-3)(ones((1, 1, 4, 4))),
    r"BatchNorm2d: input has shape \(1, 2, 1, 1\): .*more than one value per channel":
        lambda: BatchNorm2d(2)(ones((1, 2, 1, 1), "f")),
    r"BatchNorm2d: input has shape \(2, 3, 4\): it must be \(N, C, H, W\)":
        lambda: BatchNorm2d(3)(ones((2, 3, 4), "f")),
    "BatchNorm2d: momentum 2: it must lie in 0 .. 1": lambda: BatchNorm2d(2, momentum=2),
    "LocalResponseNorm: size 0": lambda: LocalResponseNorm(0),
    "Dropout: p 1.5: it must lie in 0 .. 1": lambda: Dropout(1.5),
    "Flatten: start_dim 1: an input of 1 axes": lambda: Flatten()(ones(3)),
    "Sequential: layer '0' is a list: .*pass a list's layers one by one": lambda: Sequential([ReLU()]),
    "Sequential: layer '1' is the class ReLU": lambda: Sequential(ReLU(), ReLU),
    "Sequential: name 'a.b': it must be a string without dots": lambda: Sequential({"a.b": ReLU()}),
    "Add: it needs at least one layer": lambda: Add(),
    r"Add: branches give \(2, 3\) and \(2, 1\): the shapes must be equal":
        lambda: Add(Identity(), Linear(3, 1))(ones((2, 3), "f")),
    "Residual: body is a NoneType": lambda: Residual(None),
    "Concat: branches give .*only axis 1 may differ": lambda: Concat(Identity(), AvgPool2d(2))(ones((1, 1, 4, 4))),
    "ReLU.backward: no forward": lambda: ReLU().backward(ones(2)),
    "Conv2d.backward: the layer is in eval mode": lambda: evaluated(Conv2d(1, 1, 1)).backward(ones((1, 1, 2, 2), "f")),
    "Sequential.backward: rule 'relu': it must be one of 'gradient'":
        lambda: called(Sequential(ReLU())).backward(ones(2), rule="relu"),
    r"ReLU.backward: grad_output has shape \(3,\): it must be the output's, \(1, 1, 2, 2\)":
        lambda: called(ReLU()).backward(ones(3, "f")),
    "ReLU.backward: grad_output is float64: it must be the output's dtype, float32":
        lambda: called(ReLU()).backward(ones((1, 1, 2, 2))),
    "ReLU.backward: accumulate is 1: it must be True or False": lambda: called(ReLU()).backward(ones(2), accumulate=1),
}  # fmt: skip


def called(layer):
    layer(np.ones((1, 1, 2, 2), np.float32))
    return layer


def evaluated(layer):
    return called(layer.eval())


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message) as caught:
        MISTAKES[message]()
    assert "\n" not in str(caught.value)


def test_a_wrong_gradient_changes_nothing():
    layer = Linear(3, 2)
    y = layer(np.ones((1, 3), np.float32))
    with pytest.raises(ValueError, match="grad_output"):
        layer.backward(np.ones((2, 2), np.float32))
    assert layer.grad_weight is None
    layer.backward(y)
    assert layer.grad_weight is not None


def test_inputs_of_every_kind_are_taken():
    net = Sequential(Conv2d(2, 3, 3, rng=0), ReLU(), Flatten(), Linear(3 * 2 * 2, 2, rng=0)).eval()
    x = numbers((2, 2, 4, 4), "float32")
    expected = net(x)
    odd = [x[::-1][::-1], np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=3)[..., ::2]]
    fixed = x.copy()
    fixed.flags.writeable = False
    for given in (*odd, fixed):
        kept = given.copy()
        np.testing.assert_array_equal(net(given), expected)
        np.testing.assert_array_equal(given, kept)
    assert net(np.empty((0, 2, 4, 4), np.float32)).shape == (0, 2)
    with record():
        y = net(np.empty((0, 2, 4, 4), np.float32))
        assert net.backward(y).shape == (0, 2, 4, 4)
    assert not net[0].grad_weight.any()


def test_torch_tensors_are_taken():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    net = Sequential(Conv2d(1, 1, 1), ReLU())
    x = numbers((1, 1, 3, 3), "float32")
    y = net(torch.from_numpy(x))
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, net.eval()(x))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # an infinite gradient
def test_a_rectifier_behind_a_convolution_is_one_with_it():
    """In a Sequential: the same numbers as one after the other, a layer that stands in it twice, every rule; who is
    handed a gradient does not find it changed."""
    conv, relu, other = Conv2d(3, 4, 3, padding=1, rng=0), ReLU(), Conv2d(4, 4, 3, padding=1, rng=1)
    net = Sequential(conv, relu, relu, other, relu, MaxPool2d(2))
    x = np.random.default_rng(0).normal(size=(2, 3, 6, 6)).astype("float32")
    maps = relu(other(relu(conv(x))))
    pooled = MaxPool2d(2)
    y = pooled(maps)
    for rule in RULES:
        np.testing.assert_array_equal(net(x), y)
        grad = np.random.default_rng(1).normal(size=y.shape).astype("float32")
        grad[0, 0, 0, 0] = np.inf
        before = grad.copy()
        actual = net.backward(grad, rule=rule)
        np.testing.assert_array_equal(grad, before)
        layers = (pooled, relu, other, relu, conv)
        exact, _ = grad, pooled(relu(other(relu(conv(x)))))
        for layer in layers:
            exact = layer.backward(exact, rule=rule)
        np.testing.assert_array_equal(actual, exact)
    last = Sequential(Conv2d(3, 4, 3, rng=0), ReLU())
    grad = np.ones_like(last(x))
    last.backward(grad)
    np.testing.assert_array_equal(grad, 1)


def test_a_masked_infinite_gradient_is_zero():
    relu = ReLU()
    relu(np.array([-1.0, 2.0, -3.0]))
    np.testing.assert_array_equal(relu.backward(np.array([np.inf, np.nan, np.nan])), [0, np.nan, 0])


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: Conv2d(1, 1, 1, dtype="floaty"), TypeError, "Conv2d: dtype is 'floaty': it must be 'float32' or 'float64'"),
        (lambda: Conv2d(1, 1, 1, dtype=3), TypeError, "Conv2d: dtype is 3: it must be 'float32' or 'float64'"),
        (lambda: fastconv.LeakyReLU(np.inf), ValueError, "LeakyReLU: negative_slope inf: it must be finite"),
        (lambda: fastconv.LeakyReLU(10**400), ValueError, "LeakyReLU: negative_slope inf: it must be finite"),
        (lambda: fastconv.LeakyReLU(np.complex64(1)), TypeError, "LeakyReLU: negative_slope is np.complex64(1+0j): it must be a number"),
        (lambda: fastconv.LeakyReLU(np.array(True)), TypeError, "LeakyReLU: negative_slope is array(True): it must be a number"),
        (lambda: fastconv.LeakyReLU(np.array([0.5])), TypeError, "LeakyReLU: negative_slope is an array of shape (1,): it must be a number"),
        (lambda: Sequential()[0], IndexError, "Sequential: index 0: there are 0 layers"),
        (lambda: fastconv.summary(fastconv.ReLU, (1, 1)), TypeError, "summary: net is a type: it must be a Layer"),
        (lambda: fastconv.AdaptiveAvgPool2d({1, 2}), TypeError, "AdaptiveAvgPool2d: output_size is {1, 2}: it must be an integer"),
    ],
)  # fmt: skip
def test_what_makes_no_layer_is_told(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind and str(caught.value) == message


def test_a_ragged_init_is_told():
    with pytest.raises(
        TypeError, match="^Linear: init is a list that cannot become an array: setting an array element"
    ):
        fastconv.Linear(2, 2, init=[[1, 2], [3]])


def test_a_single_number_goes_through_layers_of_any_shape():
    for layer in (fastconv.ReLU(), fastconv.ReLU6(), fastconv.Sigmoid(), fastconv.HardSwish(), fastconv.Identity()):
        y = layer(np.float64(1))
        assert np.shape(y) == () and np.shape(layer.backward(y)) == ()


def test_a_weight_whose_owner_cannot_be_locked():
    torch = pytest.importorskip("torch")
    conv = Conv2d(1, 2, 3)
    conv.weight = torch.ones(2, 1, 3, 3).numpy()
    conv.eval()(np.ones((1, 1, 3, 3), "float32"))
    assert conv.train().weight.flags.writeable


# A convolution and the normalisation behind it, in eval mode


def normalised_unit(dtype, rectifier, groups=1, affine=True, bias=True):
    rng = np.random.default_rng(3)
    conv = Conv2d(4, 6, 3, padding=1, groups=groups, bias=bias, dtype=dtype, rng=1, init="kaiming_normal")
    norm = BatchNorm2d(6, affine=affine, dtype=dtype)
    for array in (conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var):
        if array is not None:
            array[...] = rng.uniform(0.5, 2, array.shape)
    return Sequential(conv, norm, *rectifier)


def layer_by_layer(net, x):
    for layer in net:
        x = layer(x)
    return x


@pytest.mark.parametrize(
    "rectifier", [(), (ReLU(),), (ReLU6(),), (LeakyReLU(),)], ids=["none", "relu", "relu6", "leaky"]
)
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"affine": False}, {"bias": False}], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_eval_mode_normalises_within_the_convolution(dtype, options, rectifier):
    net = normalised_unit(dtype, rectifier, **options).eval()
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(dtype)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchNorm2d, "_forward", lambda *_: calls.append("norm"))
        actual = net(x)
    assert not calls
    tolerance = 1e-4 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(actual, layer_by_layer(net, x), rtol=0, atol=tolerance)


@pytest.mark.parametrize("change", ["mean", "variance", "norm weight", "norm bias", "bias", "weight", "eps"])
def test_what_changes_in_eval_mode_is_seen_by_the_next_call(change):
    net = normalised_unit("float64", (ReLU(),)).eval()
    conv, norm, _ = net
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8))
    before = net(x)
    if change == "weight":
        conv.weight = conv.weight * 2
    elif change == "eps":
        norm.eps = 1.0
    else:
        arrays = {
            "mean": norm.running_mean,
            "variance": norm.running_var,
            "norm weight": norm.weight,
            "norm bias": norm.bias,
        }
        arrays.get(change, conv.bias)[2] += 1
    after = net(x)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, layer_by_layer(net, x), rtol=0, atol=1e-12)


def test_a_recorded_forward_in_eval_mode_normalises_by_itself():
    net = normalised_unit("float64", (ReLU(),)).eval()
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8))
    net(x)
    with fastconv.record():
        y = net(x)
        grad = net.backward(np.ones_like(y))
    assert grad.shape == x.shape and net[1].grad_weight is not None
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again(x), net(x))
    with pytest.raises(ValueError, match=r"BatchNorm2d: input has shape \(6, 9, 8\)"):
        net(x[0])


def pooled_unit(pool, normalised=True):
    norm = (BatchNorm2d(16, dtype="float32"),) if normalised else ()
    return Sequential(Conv2d(3, 16, 3, padding=1, rng=1), *norm, ReLU(), pool, Conv2d(16, 4, 1, rng=2))


def calls_of_one_pass(net, x):
    """What ``net`` gives for ``x``, and how often a convolution pooled its own maps."""
    calls = []
    whole = fastconv.functional.conv2d_relu_max_pool2d
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastconv.functional, "conv2d_relu_max_pool2d", lambda *a, **k: calls.append(1) or whole(*a, **k))
        return net(x), len(calls)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("size", [2, (3, 2)])
def test_eval_mode_pools_large_maps_within_the_convolution(size, normalised):
    net = pooled_unit(MaxPool2d(size), normalised).eval()
    x = np.random.default_rng(0).standard_normal((8, 3, 66, 65)).astype(np.float32)
    actual, passes = calls_of_one_pass(net, x)
    assert passes == 1
    np.testing.assert_allclose(actual, layer_by_layer(net, x), rtol=0, atol=1e-5)
    assert calls_of_one_pass(net, x[:1])[1] == 0  # its maps stay in a cache


@pytest.mark.parametrize(
    "pool",
    [MaxPool2d(3, 2), MaxPool2d(2, padding=1), MaxPool2d(2, dilation=2), MaxPool2d(2, ceil_mode=True), AvgPool2d(2)],
    ids=str,
)
def test_other_pools_run_by_themselves(pool):
    net = pooled_unit(pool).eval()
    x = np.random.default_rng(0).standard_normal((8, 3, 65, 65)).astype(np.float32)
    actual, passes = calls_of_one_pass(net, x)
    assert passes == 0
    np.testing.assert_allclose(actual, layer_by_layer(net, x), rtol=0, atol=1e-5)


def test_a_recorded_forward_in_eval_mode_pools_by_itself():
    net = pooled_unit(MaxPool2d(2)).eval()
    x = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    with fastconv.record():
        y, passes = calls_of_one_pass(net, x)
        assert passes == 0 and net.backward(np.ones_like(y)).shape == x.shape
    assert calls_of_one_pass(net.train(), x)[1] == 0


def test_a_layer_that_is_appended_may_be_taken_over_too():
    net = pooled_unit(MaxPool2d(2))[:2].append(ReLU()).append(MaxPool2d(2)).eval()
    x = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    actual, passes = calls_of_one_pass(net, x)
    assert passes == 1
    np.testing.assert_allclose(actual, layer_by_layer(net, x), rtol=0, atol=1e-5)


def test_layers_that_share_what_is_inside_share_what_is_appended():
    net = normalised_unit("float32", ()).eval()
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
    net(x)
    other = copy.copy(net).append(ReLU())
    assert len(net) == len(other) == 3
    np.testing.assert_array_equal(net(x), other(x))
    np.testing.assert_allclose(net(x), layer_by_layer(other, x), rtol=0, atol=1e-4)


def test_a_folded_layer_that_has_run_is_called_anew():
    """What a call depends on is looked at in each: settings of the layer, shapes, the memory's order, the activation."""
    conv, norm = Conv2d(3, 4, 3, padding=1, rng=0), BatchNorm2d(4)
    net = Sequential(conv, norm, ReLU()).eval()
    x = np.random.default_rng(1).standard_normal((2, 3, 9, 8), dtype="float32")

    def expected(array):
        scale = 1 / np.sqrt(norm.running_var + norm.eps)
        y = fastconv.conv2d(
            array, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, backend="reference"
        )
        return np.maximum((y - norm.running_mean[:, None, None]) * scale[:, None, None], 0)

    for _ in range(2):
        np.testing.assert_allclose(net(x), expected(x), atol=1e-5)
    for name, value in (
        ("padding", (0, 2)),
        ("stride", (2, 1)),
        ("dilation", (2, 2)),
        ("padding", [0, 1]),
        ("padding", (1, 1)),
    ):
        setattr(conv, name, value)
        np.testing.assert_allclose(net(x), expected(x), atol=1e-5)
        np.testing.assert_allclose(net(x[:1]), expected(x[:1]), atol=1e-5)
    norm.running_mean += 1
    np.testing.assert_allclose(net(x[:, :, ::2, ::-1]), expected(x[:, :, ::2, ::-1]), atol=1e-5)
    np.testing.assert_allclose(Sequential(conv, norm).eval()(x).clip(0), expected(x), atol=1e-5)
    with fastconv.config(backend="reference"):
        np.testing.assert_allclose(net(x), expected(x), atol=1e-5)
    for name, wrong in (("stride", (True, True)), ("groups", True), ("dilation", (1.0, 1.0))):
        kept = getattr(conv, name)
        setattr(conv, name, wrong)
        with pytest.raises(TypeError, match=name):
            net(x)
        setattr(conv, name, kept)
    for wrong in (x[:, :2], x.astype("float64"), x[..., :1]):
        with pytest.raises((TypeError, ValueError), match="Conv2d|conv2d"):
            net(wrong)


def test_a_folded_layer_of_foreign_byte_order_runs_again():
    conv, norm = Conv2d(3, 4, 3, padding=1, rng=0), BatchNorm2d(4)
    expected = Sequential(conv, norm, ReLU()).eval()(np.ones((1, 3, 6, 7), "float32"))
    swapped = Conv2d(3, 4, 3, padding=1), BatchNorm2d(4)
    for name in ("weight", "bias", "running_mean", "running_var"):
        for own, other in zip((conv, norm), swapped, strict=True):
            if getattr(own, name, None) is not None:
                setattr(other, name, getattr(own, name).astype(">f4"))
    net = Sequential(*swapped, ReLU()).eval()
    x = np.ones((1, 3, 6, 7), swapped[0].weight.dtype)
    for _ in range(3):
        np.testing.assert_allclose(net(x), expected, atol=1e-6)


def test_layers_from_different_pickles_are_folded():
    conv, norm, _ = normalised_unit("float32", (ReLU(),))
    net = Sequential(*(pickle.loads(pickle.dumps(layer)) for layer in (conv, norm)), ReLU()).eval()
    x = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BatchNorm2d, "_forward", lambda *_: pytest.fail("it runs by itself"))
        y = net(x)
    np.testing.assert_allclose(y, layer_by_layer(net, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8"])
def test_a_copied_weight_keeps_its_numbers(dtype):
    conv = Conv2d(3, 4, 3, rng=1)
    conv.weight = conv.weight.astype(dtype)
    conv.bias = conv.bias.astype(dtype)
    for again in (copy.copy(conv), copy.deepcopy(conv)):
        np.testing.assert_array_equal(again.weight, conv.weight)
        np.testing.assert_array_equal(again.bias, conv.bias)
        assert again.weight.dtype == again.bias.dtype == np.dtype(dtype)
