"""What the filters see: explain, deconvnet, receptive fields, the strongest patches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import fastconv
from fastconv.layers import (
    AvgPool2d,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    Residual,
    Sequential,
)
from fastconv.see import Preparation, deconvnet, explain, field, top_patches
from fastconv.see._probe import layer_of, output_of


def chain(seed=0, dtype="float64", channels=3, widths=(6, 8, 5), **conv):
    """Conv-ReLU-pool, twice, and a last convolution."""
    rng = np.random.default_rng(seed)
    conv = {"padding": 1, "dtype": dtype, "rng": rng, **conv}
    a, b, c = widths
    return Sequential(
        Conv2d(channels, a, 3, **conv), ReLU(), MaxPool2d(2), Conv2d(a, b, 3, **conv), ReLU(), MaxPool2d(2),
        Conv2d(b, c, 3, **conv), ReLU(),
    )  # fmt: skip


class Block(Layer):
    """A residual block by hand, as users write it."""

    def __init__(self, channels, rng):
        self.conv1 = Conv2d(channels, channels, 3, padding=1, dtype="float64", rng=rng)
        self.relu = ReLU()
        self.conv2 = Conv2d(channels, channels, 3, padding=1, dtype="float64", rng=rng)
        self.last = ReLU()

    def _forward(self, x):
        return self.last(self.conv2(self.relu(self.conv1(x))) + x), None

    def _backward(self, grad_output, saved, run):
        total = run(self.last, grad_output)
        return run(self.conv1, run(self.relu, run(self.conv2, total))) + total


def residual(seed=0):
    rng = np.random.default_rng(seed)
    conv = {"dtype": "float64", "rng": rng}
    body = Sequential(Conv2d(4, 6, 3, 2, 1, **conv), ReLU(), Conv2d(6, 6, 3, padding=1, **conv))
    return Sequential(
        Conv2d(3, 4, 3, padding=1, **conv), ReLU(),
        Residual(body, Conv2d(4, 6, 1, 2, **conv)), ReLU(), MaxPool2d(2),
        Concat(Conv2d(6, 3, 1, **conv), Sequential(Conv2d(6, 2, 3, padding=1, **conv), ReLU())),
        Block(5, rng), Conv2d(5, 4, 3, padding=1, **conv),
    )  # fmt: skip


@pytest.fixture
def image(rng):
    return rng.normal(size=(3, 24, 20))


# ------------------------------------------------------------------------------------------------------- explain


@pytest.mark.parametrize(
    "options",
    [
        {}, {"padding": 1}, {"stride": 2, "padding": 2, "dilation": 2}, {"groups": 2}, {"bias": False},
        {"padding": "same", "padding_mode": "reflect"},
    ],
    ids=str,
)  # fmt: skip
def test_the_maps_of_explain_add_up_to_the_layer(rng, dtype, options):
    conv = Conv2d(4, 6, 3, rng=0, dtype=dtype, **options)
    x = rng.normal(size=(4, 11, 9)).astype(dtype)
    y = conv(x)
    size = fastconv.conv2d(np.abs(x), np.abs(conv.weight), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    for f in range(6):
        found = explain(conv, x, f)
        np.testing.assert_array_equal(found.maps.sum(axis=0) + found.maps.dtype.type(found.bias), found.sum)
        assert found.sum.shape == y[f].shape and found.maps.dtype == x.dtype
        if not options.get("padding_mode"):
            assert (np.abs(found.sum - y[f]) <= 2 * 40 * np.finfo(dtype).eps * (size[f] + 1)).all()
        np.testing.assert_allclose(found.sum, y[f], atol=1e-5)
        for place, channel in enumerate(found.channels):
            np.testing.assert_array_equal(found.kernels[place], conv.weight[f, place])
            alone = np.zeros_like(x)
            alone[channel] = x[channel]
            np.testing.assert_allclose(found.maps[place] + found.bias, conv(alone)[f], atol=1e-5)


def test_explain_reads_the_channels_of_its_group():
    conv = Conv2d(6, 4, 1, groups=2, bias=False, rng=0)
    assert explain(conv, np.ones((6, 2, 2), np.float32), 1).channels == (0, 1, 2)
    assert explain(conv, np.ones((1, 6, 2, 2), np.float32), 2).channels == (3, 4, 5)


# ----------------------------------------------------------------------------------------------------- deconvnet


def test_in_a_linear_network_it_is_the_transposed_operator(rng):
    conv = {"dtype": "float64", "rng": rng}
    net = Sequential(Conv2d(2, 3, 3, 2, 1, **conv), AvgPool2d(2), Conv2d(3, 4, 2, padding=1, bias=False, **conv))
    net[0].bias[...] = 0
    x = rng.normal(size=(2, 9, 7))
    # The operator as a matrix: what comes out for every unit vector
    shape = net(x).shape
    units = np.eye(x.size).reshape(-1, *x.shape)
    operator = net(units).reshape(x.size, -1).T
    for f, position in ((0, (0, 0)), (3, (1, 2)), (2, (2, 1))):
        row = np.ravel_multi_index((f, *position), shape)
        activation = net(x)[(f, *position)]
        expected = (operator[row] * activation).reshape(x.shape)
        np.testing.assert_allclose(deconvnet(net, x, "2", f, position), expected, atol=1e-12)
        np.testing.assert_allclose(deconvnet(net, x, "2", f, position, mode="guided"), expected, atol=1e-12)
        saliency = deconvnet(net, x, "2", f, position, mode="saliency")
        np.testing.assert_allclose(saliency, operator[row].reshape(x.shape), atol=1e-12)


def test_modes_differ_as_the_formulas_say_on_four_by_four():
    r"""Worked out by hand: 1x1 filter (1), ReLU, pool 2x2, then a 2x2 filter ((1, -2), (-3, 4)), ReLU.

    x = 1  2 -1 -1     pooled  5  3     y = 5 - 6 - 6 + 32 = 25
        0  5  3 -2             2  8
        2  0  1  0     Down comes the seed times the filter: 25 * ((1, -2), (-3, 4)), before the lower ReLU:
       -4  1  0  8     deconvnet and guided keep what is positive there, the gradient all of it (all winners > 0).
    """
    x = np.array([[[1.0, 2, -1, -1], [0, 5, 3, -2], [2, 0, 1, 0], [-4, 1, 0, 8]]])
    net = Sequential(
        Conv2d(1, 1, 1, bias=False, init=[[[[1]]]], dtype="float64"), ReLU(), MaxPool2d(2),
        Conv2d(1, 1, 2, bias=False, init=[[[[1, -2], [-3, 4]]]], dtype="float64"), ReLU(),
    )  # fmt: skip
    assert net(x).tolist() == [[[25]]]
    rows, columns = (1, 1, 2, 3), (1, 2, 0, 3)  # the switches: where 5, 3, 2 and 8 came from

    def placed(*values):
        full = np.zeros((1, 4, 4))
        full[0, rows, columns] = values
        return full

    np.testing.assert_array_equal(deconvnet(net, x, "4", 0), placed(25, 0, 0, 100))
    np.testing.assert_array_equal(deconvnet(net, x, "4", 0, mode="guided"), placed(25, 0, 0, 100))
    np.testing.assert_array_equal(deconvnet(net, x, "4", 0, mode="saliency"), placed(1, -2, -3, 4))

    # A winner that the lower ReLU stops: x < 0 all over its window. The deconvnet does not look at the input there.
    x = np.array([[[-1.0, -2, -1, -1], [-4, -5, 3, -2], [2, 0, 1, 0], [-4, 1, 0, 8]]])
    assert net(x).tolist() == [[[20]]]  # 0 - 6 - 6 + 32
    first = placed(0, 0, 0, 80)
    first[0, 0, 0] = 20  # of the equal zeros the first is the switch
    np.testing.assert_array_equal(deconvnet(net, x, "4", 0), first)
    np.testing.assert_array_equal(deconvnet(net, x, "4", 0, mode="guided"), placed(0, 0, 0, 80))
    np.testing.assert_array_equal(deconvnet(net, x, "4", 0, mode="saliency"), placed(0, -2, -3, 4))


def test_switches_put_values_back_where_they_came_from(rng):
    x = rng.permutation(48.0 + np.arange(48)).reshape(1, 8, 6)
    net = Sequential(MaxPool2d(2))
    pooled, indices = fastconv.max_pool2d(x, 2, return_indices=True)
    for position in np.ndindex(4, 3):
        back = deconvnet(net, x, "0", 0, position)
        assert np.count_nonzero(back) == 1
        assert back.ravel()[indices[(0, *position)]] == x.ravel()[indices[(0, *position)]] == pooled[(0, *position)]


@pytest.mark.parametrize("build", [chain, residual], ids=["chain", "residual"])
def test_saliency_is_the_gradient(build, image):
    """Central differences of an activation inside the network, at every kind of layer."""
    net = build()
    h = 1e-6
    for name, layer in net.named_layers():
        if not name:
            continue
        (output,) = output_of(net, image[None], layer)
        f = output.shape[1] - 1
        position = np.unravel_index(output[0, f].argmax(), output.shape[2:])
        found = deconvnet(net, image, name, f, mode="saliency")
        for place in ((0, 3, 4), (2, 11, 9), tuple(np.unravel_index(np.abs(found).argmax(), found.shape))):
            up, down = image.copy(), image.copy()
            up[place] += h
            down[place] -= h
            values = [output_of(net, one[None], layer)[0][(0, f, *position)] for one in (up, down)]
            assert abs(found[place] - (values[0] - values[1]) / (2 * h)) < 1e-5, (name, place)


def test_deconvnet_by_hand_through_the_public_functions(image):
    """The paper's chain, written out: unpool, rectify, transposed filters, twice."""
    net = chain()
    z1 = net[0](image)
    p1, s1 = fastconv.max_pool2d(fastconv.relu(z1), 2, return_indices=True)
    z2 = net[3](p1)
    p2, s2 = fastconv.max_pool2d(fastconv.relu(z2), 2, return_indices=True)
    f = 4
    row, column = np.unravel_index(p2[f].argmax(), p2[f].shape)
    kept = np.zeros_like(p2)
    kept[f, row, column] = p2[f, row, column]
    down = fastconv.relu(fastconv.max_unpool2d(kept, s2, 2, output_size=z2.shape))
    down = fastconv.conv_transpose2d(down, net[3].weight, padding=1)
    down = fastconv.relu(fastconv.max_unpool2d(down, s1, 2, output_size=z1.shape))
    expected = fastconv.conv_transpose2d(down, net[0].weight, padding=1)
    np.testing.assert_allclose(deconvnet(net, image, "5", f), expected, atol=1e-12)
    np.testing.assert_allclose(deconvnet(net, image, net[5], f, (row, column)), expected, atol=1e-12)


def test_a_batch_takes_each_image_at_its_own_maximum(rng):
    net, x = chain(), rng.normal(size=(3, 3, 16, 16))
    alone = np.stack([deconvnet(net, one, "6", 1) for one in x])
    np.testing.assert_allclose(deconvnet(net, x, "6", 1), alone, atol=1e-14)


def test_a_dense_layer_has_units(rng):
    net = Sequential(*chain(), Flatten(), Linear(5 * 4 * 4, 7, dtype="float64", rng=1))
    x = rng.normal(size=(3, 16, 16))
    saliency = deconvnet(net, x, "9", 3, mode="saliency")
    y = net(x[None])
    seed = np.zeros_like(y)
    seed[0, 3] = 1
    np.testing.assert_array_equal(net.backward(seed)[0], saliency)


def test_modes_gradients_and_batch_statistics_are_left_alone(image):
    net = Sequential(Conv2d(3, 4, 3, dtype="float64", rng=0), BatchNorm2d(4, dtype="float64"), ReLU())
    net[0].eval()
    before = net.state_dict()
    y = net(image[None])  # a forward of the user's own, whose backward is still to come
    state = net.state_dict()
    deconvnet(net, image, "2", 0)
    top_patches(net, [image], "0", [0], 1, progress=False)
    assert (net.training, net[0].training, net[1].training) == (True, False, True)
    assert net[0].grad_weight is None
    after = net.state_dict()
    assert all((state[key] == after[key]).all() for key in state) and list(before) == list(after)
    with pytest.raises(RuntimeError, match="no forward"):
        net[2].backward(np.ones_like(y))
        net[2].backward(np.ones_like(y))


def test_no_branch_is_forgotten(image):
    """The projection of the sum of a residual block is that of its branches, in a linear network."""
    conv = {"dtype": "float64", "bias": False}
    net = Sequential(Residual(Conv2d(3, 3, 3, padding=1, rng=0, **conv), Conv2d(3, 3, 1, rng=1, **conv)))
    whole = deconvnet(net, image, "0", 1, (5, 6), mode="saliency")
    parts = [deconvnet(net, image, name, 1, (5, 6), mode="saliency") for name in ("0.body", "0.shortcut")]
    np.testing.assert_allclose(whole, parts[0] + parts[1], atol=1e-12)


# ------------------------------------------------------------------------------------ fields and strongest patches


@pytest.mark.parametrize("build", [chain, residual], ids=["chain", "residual"])
def test_fields_hold_by_perturbation(build):
    """With positive weights and no bias every pixel of the field counts, and none outside does, borders included."""
    net = build()
    for name, parameter in net.named_parameters():
        parameter[...] = 0 if name.endswith("bias") else np.abs(parameter) + 0.1
    net = Sequential(*(AvgPool2d(layer.kernel_size) if isinstance(layer, MaxPool2d) else layer for layer in net))
    x = np.ones((1, 3, 24, 20))
    for name, layer in net.named_layers():
        (maps,) = output_of(net, x, layer)
        H, W = maps.shape[2:]
        for position in itertools.product({0, H // 2, H - 1}, {0, W // 3, W - 1}):
            box = field(net, name, x.shape).box(position)
            every = range(maps.shape[1])  # behind a Concat the maps have fields of their own, the layer has their union
            slopes = [deconvnet(net, x[0], name, f, position, mode="saliency").any(axis=0) for f in every]
            rows, columns = np.nonzero(np.any(slopes, axis=0))
            assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1), (name, position)


def test_a_pixel_outside_the_crop_changes_nothing(rng):
    net = chain(padding=2)
    images = [rng.normal(size=(3, *size)) for size in ((24, 20), (17, 31), (24, 20))]
    best = top_patches(net, images, "6", k=3, progress=False)
    borders = 0
    for f, patch in ((f, patch) for f, ones in best.items() for patch in ones):
        x = images[patch.image].copy()
        top, left, bottom, right = patch.box
        np.testing.assert_array_equal(patch.patch, x[:, top:bottom, left:right])
        inside = np.zeros(x.shape[1:], bool)
        inside[top:bottom, left:right] = True
        x[:, ~inside] = rng.normal(size=(3, (~inside).sum()))
        value = net[:7](x)[(f, *patch.position)]
        assert value == pytest.approx(patch.value, abs=1e-12)
        borders += patch.box != patch.field
        framed = patch.framed(patch.patch, np.nan)
        assert framed.shape == (3, patch.field[2] - patch.field[0], patch.field[3] - patch.field[1])
        assert np.isnan(framed[0]).sum() == framed[0].size - patch.patch[0].size
    assert borders


@pytest.mark.parametrize(
    "net, size",
    [
        (chain(padding=2), (24, 20)), (chain(padding="same"), (23, 31)), (chain(padding_mode="reflect"), (24, 20)),
        (residual(), (25, 22)), (chain(stride=2, padding="same"), (45, 37)),
        (Sequential(*chain(padding=0)[:5], MaxPool2d(3, 2, 1, ceil_mode=True), Conv2d(8, 5, 3, dtype="float64", rng=4)),
         (31, 30)),
    ],
    ids=["padding", "same", "reflect", "residual", "same-stride", "overlapping-ceil"],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["deconvnet", "saliency"])
def test_patches_are_the_strongest_and_their_projections_those_of_the_whole_image(rng, net, size, mode):
    images = rng.normal(size=(6, 3, *size))
    name = "7" if isinstance(net[-1], Conv2d) and len(net) == 8 else "6"
    best = top_patches(net, images, name, k=2, mode=mode, progress=False)
    _, layer = layer_of("test", net, name)
    maps = np.stack([output_of(net, x[None], layer)[0][0] for x in images])
    for f, ones in best.items():
        expected = np.sort(maps[:, f].max(axis=(1, 2)))[::-1][:2]
        np.testing.assert_allclose([one.value for one in ones], expected)
        for one in ones:
            assert maps[(one.image, f, *one.position)] == one.value
            whole = deconvnet(net, images[one.image], name, f, one.position, mode=mode)
            top, left, bottom, right = one.box
            np.testing.assert_allclose(one.projection, whole[:, top:bottom, left:right], atol=1e-11)
            whole[:, top:bottom, left:right] = 0
            assert not whole.any()  # nothing of the projection lies outside the crop


def test_images_are_streamed():
    """A generator is gone through once, and no image outlives its turn but for k small parts."""
    import weakref

    net, alive = chain(dtype="float32"), []

    class Image(np.ndarray):
        pass

    def images():
        rng = np.random.default_rng(3)
        for _ in range(12):
            one = rng.random((3, 64, 64), np.float32).view(Image)
            alive.append(weakref.ref(one))
            yield one
            del one
            assert sum(ref() is not None for ref in alive) <= 2

    best = top_patches(net, images(), "3", [0, 5], 2, progress=False)
    assert len(alive) == 12 and all(len(ones) == 2 for ones in best.values())
    assert all(one.patch.base is None and one.patch.size <= 3 * 10 * 10 for ones in best.values() for one in ones)


def test_equal_activations_keep_the_first_image():
    net = Sequential(Conv2d(1, 1, 1, bias=False, init="zeros"))
    best = top_patches(net, np.ones((5, 1, 4, 4), np.float32), "0", k=3, progress=False)
    assert [one.image for one in best[0]] == [0, 1, 2]


# ------------------------------------------------------------------------------------------------------ bad input

NET = chain(dtype="float32")
X = np.zeros((3, 16, 16), np.float32)
BAD = {
    "no such layer": (lambda: deconvnet(NET, X, "9", 0), "deconvnet: layer '9': the network has no layer of that name"),
    "a foreign layer": (lambda: deconvnet(NET, X, ReLU(), 0), r"deconvnet: layer ReLU\(\): it is not in the network"),
    "no layer at all": (lambda: deconvnet(NET, X, 3, 0), "deconvnet: layer is a int: it must be a name or a Layer"),
    "no network": (lambda: deconvnet(len, X, "0", 0), "deconvnet: net is a builtin_function_or_method"),
    "filter": (lambda: deconvnet(NET, X, "0", 6), r"deconvnet: filter 6: the layer has 6, so it must lie in 0 \.\. 5"),
    "filter kind": (lambda: deconvnet(NET, X, "0", 0.5), "deconvnet: filter is 0.5: it must be an integer"),
    "position": (lambda: deconvnet(NET, X, "2", 0, (8, 0)), r"deconvnet: position \(8, 0\): .* 8 x 8"),
    "position kind": (lambda: deconvnet(NET, X, "2", 0, 3), r"deconvnet: position is 3: it must be \(row, column\)"),
    "mode": (lambda: deconvnet(NET, X, "0", 0, mode="cam"), "deconvnet: mode 'cam'"),
    "channels": (lambda: deconvnet(NET, X[:2], "0", 0), "Conv2d: input has 2 channels"),
    "integers": (lambda: deconvnet(NET, X.astype(int), "0", 0), "deconvnet: x has dtype int64"),
    "rank": (lambda: deconvnet(NET, X[0], "0", 0), r"deconvnet: x has shape \(16, 16\)"),
    "no images": (lambda: top_patches(NET, [], "0"), "top_patches: images is empty"),
    "k": (lambda: top_patches(NET, [X], "0", k=0), "top_patches: k 0: it must be an integer of at least 1"),
    "k of another kind": (lambda: top_patches(NET, [X], "0", k=1.5), "top_patches: k 1.5: it must be an integer"),
    "one filter": (
        lambda: top_patches(NET, [X], "0", 3),
        "top_patches: filters is 3: it must be a sequence of integers",
    ),
    "one number": (lambda: top_patches(NET, 3, "0"), "top_patches: images is 3: it must be an iterable"),
    "an image": (lambda: top_patches(NET, [X, X[:1]], "0", progress=False), "Conv2d: input has 1 channels"),
    "explain": (lambda: explain(ReLU(), X, 0), "explain: conv is a ReLU: it must be a Conv2d"),
    "explain two": (lambda: explain(NET[0], np.stack([X, X]), 0), "explain: x has shape .*: it must be one image"),
    "explain dtype": (lambda: explain(NET[0], X.astype("float64"), 0), "explain: x is float64"),
    "explain channels": (lambda: explain(NET[0], X[:1], 0), "explain: x has 1 channels: the layer takes 3"),
    "field": (lambda: field(NET, "nought", X.shape), "field: layer 'nought'"),
    "field of a plane": (lambda: field(NET, "0", (16, 16)), r"field: input_shape \(16, 16\): it must be \(C, H, W\)"),
    "field of a number": (lambda: field(NET, "0", 5), "field: input_shape is 5: it must be a sequence of integers"),
    "field of text": (lambda: field(NET, "0", "abc"), "field: input_shape is 'abc': it must be a sequence"),
    "a photograph": (lambda: Preparation()(X[0]), r"Preparation: image has shape \(16, 16\): it must be \(H, W, C\)"),
    "means": (lambda: Preparation((1.0, 2.0))(X.T), "Preparation: mean .*: it must be a finite number or 3 of them"),
    "scale": (lambda: Preparation(scale="a")(X.T), "Preparation: scale is 'a': it must be a number or 3 numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    if name == "an image":
        assert "in image 1" in caught.value.__notes__
