"""Models: parameters and multiply-adds as published, torchvision's names, gradients of their blocks."""

import numpy as np
import pytest

import fastconv
from fastconv import models

# Parameters, multiply-adds for one 3 x 224 x 224 image in units of 1e9 as torchvision's documentation prints them,
# and entries of the state: one for each weight and bias, five for each batch normalisation.
PUBLISHED = {
    "alexnet": (61_100_840, 0.71, 16),
    "vgg16": (138_357_544, 15.47, 32),
    "resnet18": (11_689_512, 1.81, 122),
    "resnet50": (25_557_032, 4.09, 320),
    "mobilenet_v2": (3_504_872, 0.30, 314),
}
NAMES = {
    "alexnet": ("features.0.weight", "features.10.bias", "classifier.1.weight", "classifier.6.bias"),
    "vgg16": ("features.0.weight", "features.28.bias", "classifier.0.weight", "classifier.6.bias"),
    "resnet18": (
        "conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.num_batches_tracked", "layer4.1.bn2.bias", "fc.weight",
    ),
    "resnet50": ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight", "layer3.5.conv3.weight", "layer4.2.bn3.bias"),
    "mobilenet_v2": (
        "features.0.0.weight", "features.0.1.running_mean", "features.1.conv.0.0.weight", "features.1.conv.1.weight",
        "features.2.conv.1.0.weight", "features.17.conv.3.bias", "features.18.0.weight", "classifier.1.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_and_torchvision_names(name):
    parameters, giga, entries = PUBLISHED[name]
    net = getattr(models, name)(rng=0)
    cost = fastconv.summary(net, (3, 224, 224))
    assert cost.output_shape == (1, 1000)
    assert cost.parameters == parameters == sum(array.size for array in net.parameters())
    assert round(cost.multiply_adds / 1e9, 2) == giga
    keys = [name for name, _ in (*net.named_parameters(), *net.named_buffers())]
    assert len(keys) == entries and set(NAMES[name]) <= set(keys)


def test_sizes_of_the_papers():
    """AlexNet as first published (Caffe's count of the same network), ZFNet (by hand from its figure 3)."""
    table = fastconv.summary(models.alexnet(two_groups=True, rng=0), (3, 224, 224))
    assert (table.parameters, table.multiply_adds) == (60_965_224, 724_406_816)
    table = fastconv.summary(models.zfnet(rng=0), (3, 224, 224))
    dense = 9216 * 4096 + 4096 * 4096 + 4096 * 1000
    filters = 96 * 3 * 49 + 256 * 96 * 25 + 384 * 256 * 9 + 384 * 384 * 9 + 256 * 384 * 9
    assert table.parameters == dense + filters + 2 * 4096 + 1000 + 96 + 256 + 384 + 384 + 256 == 62_357_608
    maps = [row.output_shape[2] for row in table.rows if row.layer.startswith(("Conv2d", "MaxPool2d"))]
    assert maps == [110, 55, 26, 13, 13, 13, 13, 6]
    table = fastconv.summary(models.article_net(), (1, 28, 28))
    assert (table.parameters, table.multiply_adds) == (34_826, 2_440_960)


def test_seed_decides_the_weights():
    first, again, other = (models.article_net(rng=seed) for seed in (3, 3, 4))
    assert (first[0].weight == again[0].weight).all() and (first[7].weight == again[7].weight).all()
    assert not (first[0].weight == other[0].weight).all()


SMALL = {
    "article_net": lambda: (models.article_net(3, 1, (10, 12), filters=2, dtype="float64", rng=1), (2, 1, 10, 12)),
    "alexnet": lambda: (models.alexnet(3, filters=1, dtype="float64", rng=1), (1, 3, 63, 63)),
    "alexnet-two-groups": lambda: (
        models.alexnet(3, two_groups=True, filters=2, dtype="float64", rng=1),
        (1, 3, 63, 63),
    ),
    "resnet18": lambda: (models.resnet18(3, filters=2, dtype="float64", rng=1), (3, 3, 33, 33)),
    "resnet50": lambda: (models.resnet50(3, filters=1, dtype="float64", rng=1), (3, 3, 33, 33)),
    "mobilenet_v2": lambda: (models.mobilenet_v2(3, filters=8, dtype="float64", rng=1), (3, 3, 33, 33)),
}


@pytest.mark.parametrize("name", SMALL)
def test_gradient_agrees_with_central_differences(name):
    """Along one random direction of all parameters and of the input, without dropout, batch statistics in use."""
    net, shape = SMALL[name]()
    for _, layer in net.named_layers():
        if isinstance(layer, fastconv.Dropout):
            layer.p = 0.0
    rng = np.random.default_rng(5)
    x = rng.normal(size=shape)
    probe = rng.normal(size=net(x).shape)
    net(x)
    grad_input = net.backward(probe)
    directions = [rng.normal(size=array.shape) for array in (x, *net.parameters())]
    exact = sum((a * b).sum() for a, b in zip(directions, (grad_input, *net.gradients()), strict=True))
    step = 1e-9  # ReLU and batch normalisation bend often

    def loss(sign):
        moved = [x + sign * step * directions[0]]
        for array, direction in zip(net.parameters(), directions[1:], strict=True):
            array += sign * step * direction
        value = (net(moved[0]) * probe).sum()
        for array, direction in zip(net.parameters(), directions[1:], strict=True):
            array -= sign * step * direction
        return value

    assert (loss(1) - loss(-1)) / (2 * step) == pytest.approx(exact, rel=1e-6)


def test_every_layer_of_a_small_network_agrees_with_central_differences():
    """Each parameter of the article's net by itself, in float64, to 1e-6."""
    net = models.article_net(3, filters=2, image_size=10, dtype="float64", rng=2)
    rng = np.random.default_rng(8)
    x, labels = rng.normal(size=(4, 1, 10, 10)), np.array([0, 2, 1, 1])
    loss = fastconv.train.softmax_cross_entropy
    net.backward(loss(net(x), labels)[1])
    for (name, array), gradient in zip(net.named_parameters(), list(net.gradients()), strict=True):
        found = np.empty_like(array)
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1e-6
            above = loss(net(x), labels)[0]
            array[index] = value - 1e-6
            found[index] = (above - loss(net(x), labels)[0]) / 2e-6
            array[index] = value
        assert np.abs(found - gradient).max() <= 1e-6 * max(1, np.abs(gradient).max()), name


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: models.article_net(image_size=9), ValueError, r"article_net: image_size \(9, 9\): two units .* 10"),
        (lambda: models.resnet18(0), ValueError, "resnet18: num_classes 0: it must be at least 1"),
        (lambda: models.vgg16(filters=1.5), TypeError, "vgg16: filters is 1.5: it must be an integer"),
        (lambda: models.mobilenet_v2(filters=12), ValueError, "mobilenet_v2: filters 12: it must be a multiple of 8"),
        (lambda: models.alexnet(two_groups=1), TypeError, "alexnet: two_groups is 1: it must be True or False"),
        (lambda: models.zfnet(dtype="float16"), TypeError, "zfnet: dtype is 'float16'"),
        (lambda: models.zfnet(rng="x"), TypeError, "zfnet: rng is 'x'"),
    ],
)
def test_errors_are_raised_before_any_weight_is_drawn(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("replacement", [fastconv.Identity(), fastconv.LocalResponseNorm(3)], ids=["identity", "lrn"])
def test_a_normalisation_of_a_block_may_be_replaced(replacement):
    net = models.resnet18(10, 3, filters=8, rng=0).eval()
    block = net.layer1[0]
    assert isinstance(block.bn1, fastconv.BatchNorm2d)
    block.bn1 = replacement.eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    actual = net(x)
    with fastconv.record():  # in which every layer runs by itself
        expected = net(x)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
