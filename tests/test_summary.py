"""summary: shapes equal to those of a real forward, numbers computed by hand, receptive fields by perturbation."""

from __future__ import annotations

import numpy as np
import pytest

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
    Identity,
    Layer,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    MaxUnpool2d,
    PReLU,
    ReLU,
    Residual,
    Sequential,
    Softmax,
    ZeroPad2d,
)
from fastconv.layers._summary import Summary, summary


def article_net():
    return Sequential(
        Conv2d(1, 32, 3), ReLU(), MaxPool2d(2), Conv2d(32, 64, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(1600, 10)
    )


def test_the_articles_net_by_hand():
    table = summary(article_net(), (1, 28, 28))
    assert isinstance(table, Summary)
    assert table.parameters == 34_826 == 320 + 18_496 + 16_010
    assert table.multiply_adds == 26 * 26 * 32 * 9 + 11 * 11 * 64 * 32 * 9 + 16_000
    rows = table.rows
    assert [row.parameters for row in rows] == [320, 0, 0, 18_496, 0, 0, 0, 16_010]
    assert [row.output_shape for row in rows] == [
        (1, 32, 26, 26), (1, 32, 26, 26), (1, 32, 13, 13), (1, 64, 11, 11), (1, 64, 11, 11), (1, 64, 5, 5), (1, 1600),
        (1, 10),
    ]  # fmt: skip
    assert [row.receptive_field[0] for row in rows] == [3, 3, 4, 8, 8, 10, 10, 26]
    assert [row.jump[0] for row in rows[:6]] == [1, 1, 2, 2, 2, 4]
    assert [row.name for row in rows] == [str(i) for i in range(8)]
    assert table.output_shape == (1, 10) and table.receptive_field == (26, 26) and table.input_shape == (1, 1, 28, 28)
    text = str(table)
    for part in ("34,826", "Conv2d(1, 32, kernel_size=(3, 3)", "1 x 64 x 5 x 5", "26 x 26", f"{table.multiply_adds:,}"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 110
    assert summary(article_net(), (5, 1, 28, 28)).multiply_adds == 5 * table.multiply_adds


def test_vgg16_by_the_literature():
    layers, channels = [], 3
    for block in ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3):
        for filters in block:
            layers += [Conv2d(channels, filters, 3, padding=1, init="zeros"), ReLU()]
            channels = filters
        layers.append(MaxPool2d(2))
    layers += [Flatten(), Linear(25088, 4096, init="zeros"), ReLU(), Linear(4096, 1000, init="zeros")]
    table = summary(Sequential(*layers), (3, 224, 224))
    trunk = [row for row in table.rows if row.layer.startswith("Conv2d")]
    assert sum(row.parameters for row in trunk) == 14_714_688
    assert sum(row.multiply_adds for row in trunk) == 15_346_630_656
    assert trunk[-1].receptive_field == (196, 196)  # conv5_3; 212 behind pool5
    pool5 = [row for row in table.rows if row.layer.startswith("MaxPool2d")][-1]
    assert pool5.receptive_field == (212, 212) and pool5.jump == (32, 32)


class Block(Layer):
    """A user's own layer: summary runs its forward."""

    def __init__(self, channels):
        self.conv = Conv2d(channels, channels, 5, padding=2, dtype="float64")

    def _forward(self, x):
        return self.conv(x) + x, None


# Nets of one channel in and out of float64, with positive weights: whatever is connected shows.
NETS = {
    "plain": lambda c: [c(1, 2, 3, stride=2, padding=1), ReLU(), c(2, 1, 3)],
    "pools": lambda c: [MaxPool2d(3, 2, 1), c(1, 1, 2), AvgPool2d((1, 3), 1)],
    "dilation": lambda c: [c(1, 1, (3, 1), dilation=3, padding=2), c(1, 1, (1, 3), stride=(1, 2))],
    "one-sided": lambda c: [c(1, 1, 3, padding=((2, 0), (0, 2))), ZeroPad2d((1, 0, 2, 0)), c(1, 1, 3)],
    "residual": lambda c: [c(1, 1, 3, padding=1), Residual(Sequential(c(1, 1, 3, padding=1), c(1, 1, 3, padding=1)))],
    "uneven-branches": lambda c: [Add(c(1, 1, 3, padding=((2, 0), (2, 0))), c(1, 1, 3, padding=((0, 2), (0, 2))))],
    "concat": lambda c: [Concat(c(1, 1, 1), c(1, 1, 5, padding=2)), c(2, 1, 1)],
    "own-layer": lambda c: [c(1, 1, 2), Block(1), Identity()],
    "transposed": lambda c: [c(1, 1, 3, stride=2), ConvTranspose2d(1, 1, 4, 2, 1, dtype="float64"), c(1, 1, 2)],
    "transposed-thin": lambda c: [ConvTranspose2d(1, 1, 2, 3, dtype="float64"), c(1, 1, 5)],
    "global": lambda c: [c(1, 1, 3), GlobalAvgPool2d()],
    "adaptive": lambda c: [c(1, 1, 3, stride=2), AdaptiveAvgPool2d((2, 3))],
    "same": lambda c: [c(1, 1, 4, stride=2, padding="same"), c(1, 1, 2, padding="same_lower")],
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_receptive_field_by_perturbation(name):
    def conv(*args, **options):
        return Conv2d(*args, dtype="float64", **options)

    net = Sequential(*NETS[name](conv))
    for array in net.parameters():
        array[...] = 1
    net.eval()
    height, width = 23, 21
    table = summary(net, (1, 1, height, width))
    base = np.abs(np.random.default_rng(0).normal(size=(1, 1, height, width)))
    before = net(base)
    assert table.output_shape == before.shape
    OH, OW = before.shape[-2:]
    reached = np.zeros((OH, OW, height, width), bool)
    for i in range(height):
        for j in range(width):
            x = base.copy()
            x[0, 0, i, j] += 100  # wins every maximum, too
            reached[:, :, i, j] = net(x)[0, 0] != before[0, 0]
    exact = name not in ("adaptive", "transposed", "transposed-thin")
    for axis, extent, outputs in ((0, height, OH), (1, width, OW)):
        field, jump, start = table.receptive_field[axis], table.jump[axis], table.start[axis]
        widest = 0
        for position in range(outputs):
            one = reached[position].any(axis=(0, 2)) if axis == 0 else reached[:, position].any(axis=(0, 1))
            cells = np.flatnonzero(one)
            first, last = start + position * jump, start + position * jump + field - 1
            if exact and first >= 0 and last <= extent - 1:
                assert (cells.min(), cells.max()) == (first, last)
            else:
                assert first - 1e-9 <= cells.min() and cells.max() <= last + 1 + 1e-9
            widest = max(widest, cells.max() - cells.min() + 1)
        assert widest <= field <= widest + (0 if exact else 2) or field > extent


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Conv2d(2, 3, 3, 2), (2, 2, 7, 8)),
        (Conv2d(2, 3, 3), (2, 7, 8)),
        (Conv1d(2, 3, 3, 2, 1), (2, 2, 9)),
        (Conv1d(2, 3, 3), (2, 9)),
        (ConvTranspose2d(2, 4, 3, 2, 1, 1, 2), (1, 2, 4, 5)),
        (Linear(5, 3), (2, 4, 5)),
        (PReLU(), (3,)),
        (MaxPool2d(3, 2, ceil_mode=True), (1, 2, 8, 8)),
        (AvgPool2d(2), (2, 5, 5)),
        (AdaptiveAvgPool2d((None, 2)), (1, 2, 5, 5)),
        (GlobalAvgPool2d(), (1, 2, 5, 5)),
        (ZeroPad2d((1, 2, 3, -1)), (1, 2, 5, 5)),
        (BatchNorm2d(2), (2, 2, 5, 5)),
        (LocalResponseNorm(3), (1, 2, 5, 5)),
        (Dropout(), (2, 3)),
        (Softmax(), (2, 3)),
        (Flatten(0), (2, 3, 4)),
        (Sequential(), (2, 3)),
        (Concat(Identity(), MaxPool2d(3, 1, 1)), (1, 2, 5, 5)),
    ],
    ids=repr,
)
def test_shapes_are_those_of_a_real_forward(layer, shape):
    table = summary(layer, shape)
    real = layer(np.ones(table.input_shape, np.float32)).shape
    assert table.output_shape == real
    assert table.input_shape in (shape, (1, *shape))
    assert table.parameters == sum(array.size for array in layer.parameters())


def test_multiply_adds_of_grouped_transposed_and_dense_layers():
    assert summary(Conv2d(8, 8, 3, groups=8), (8, 5, 5)).multiply_adds == 9 * 8 * 9
    assert summary(Conv1d(2, 4, 3), (1, 2, 10)).multiply_adds == 8 * 4 * 2 * 3
    assert summary(ConvTranspose2d(2, 4, 3, 2), (1, 2, 5, 5)).multiply_adds == 25 * 2 * 4 * 9
    assert summary(Linear(5, 3), (7, 5)).multiply_adds == 7 * 5 * 3


def test_shared_layers_count_once():
    conv = Conv2d(2, 2, 3, padding=1)
    table = summary(Sequential(conv, ReLU(), conv), (2, 5, 5))
    assert table.parameters == 38 and [row.parameters for row in table.rows] == [38, 0, 0]
    assert table.multiply_adds == 2 * 25 * 36
    assert [row.name for row in table.rows] == ["0", "1", "0"]
    assert table.receptive_field == (5, 5)


def test_pool_with_indices_and_unpool():
    class Switches(Layer):
        def __init__(self):
            self.pool, self.unpool = MaxPool2d(2, return_indices=True), MaxUnpool2d(2)

        def _forward(self, x):
            return self.unpool(*self.pool(x)), None

    table = summary(Switches(), (1, 3, 8, 8))
    assert table.output_shape == (1, 3, 8, 8)
    assert [row.name for row in table.rows] == ["pool", "unpool"]


def test_nothing_is_computed_or_kept():
    net = Sequential(BatchNorm2d(2), Dropout(rng=0))
    before = net[1].rng.bit_generator.state
    summary(net, (10**6, 2, 10**4, 10**4))
    assert net[0].num_batches_tracked == 0 and net[1].rng.bit_generator.state == before
    with pytest.raises(RuntimeError, match="no forward"):
        net.backward(np.ones(1))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Linear: input has shape") as caught:
        summary(article_net(), (1, 32, 32))
    assert any("layer '7' of Sequential" in note for note in caught.value.__notes__)
    with pytest.raises(ValueError, match=r"Conv2d: input has 3 channels"):
        summary(article_net(), (3, 28, 28))
    with pytest.raises(ValueError, match=r"larger than the padded input"):
        summary(article_net(), (1, 2, 2))
    with pytest.raises(TypeError, match="summary: net is a list"):
        summary([], (1, 2))
    with pytest.raises(TypeError, match="summary: input_shape is 5: it must be a sequence of integers"):
        summary(ReLU(), 5)
    with pytest.raises(TypeError, match="sequence of integers"):
        summary(ReLU(), (1.5, 2))
    with pytest.raises(ValueError, match="at least 0"):
        summary(ReLU(), (1, -2))

    class Odd(Layer):
        def _forward(self, x):
            return x, None

    with pytest.raises(TypeError, match=r"summary: Odd defines no _trace"):
        summary(Sequential(Odd()), (1, 2))
