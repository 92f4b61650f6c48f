"""health: networks whose state is known, planted faults, the statistics behind the verdicts."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv.layers import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, ReLU6, Residual, Sequential, Sigmoid
from fastconv.see import health
from fastconv.see.health import high_frequency_share, outlier, structure, uneven

DATA = Path(os.environ.get("FASTCONV_DATA", ""), "digits10k.npz")


@pytest.fixture(scope="module")
def digits():
    """Digits halved to 14 x 14: 1,500 to train with, 200 others, with labels."""
    if not os.environ.get("FASTCONV_DATA") or not DATA.is_file():
        pytest.skip("FASTCONV_DATA names no folder with digits10k.npz")
    with np.load(DATA) as file:
        x, y = file["x"].reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)) / 255, file["y"]
    order = np.random.default_rng(0).permutation(len(x))[:1700]  # the file is sorted by class
    x = x[order].astype(np.float32)
    return x[:1500], y[order[:1500]], x[1500:], y[order[1500:]]


def classifier(seed=0):
    rng = np.random.default_rng(seed)
    return Sequential(
        Conv2d(1, 16, 3, rng=rng), ReLU(), MaxPool2d(2), Conv2d(16, 32, 3, rng=rng), ReLU(), MaxPool2d(2),
        Flatten(), Linear(128, 10, rng=rng),
    )  # fmt: skip


def train(net, x, y, epochs, rate=0.05, decay=0.0, batch=50):
    """Gradient descent with momentum 0.9, the rate falling to 0."""
    rng = np.random.default_rng(0)
    speeds = [np.zeros_like(parameter) for parameter in net.parameters()]
    with fastconv.config(num_threads=1):
        for epoch in range(epochs):
            order = rng.permutation(len(x))
            for start in range(0, len(x), batch):
                some = order[start : start + batch]
                scores = net(x[some])
                grad = np.exp(scores - scores.max(axis=1, keepdims=True))
                grad /= grad.sum(axis=1, keepdims=True)
                grad[np.arange(len(some)), y[some]] -= 1
                net.backward(grad / np.float32(len(some)), needs_input=False)
                step = np.float32(rate * min(1, 2 * (1 - epoch / epochs)))
                for speed, weight, slope in zip(speeds, net.parameters(), net.gradients(), strict=True):
                    speed *= np.float32(0.9)
                    speed -= step * (slope + np.float32(decay) * weight)
                    weight += speed
    return net.eval()


@pytest.fixture(scope="module")
def healthy(digits):
    return train(classifier(HEALTHY), digits[0], digits[1], 8)


HEALTHY = 3  # a seed that leaves no filter dead, as some do


def accuracy(net, x, y):
    return float((net(x).argmax(axis=1) == y).mean())


def test_a_trained_network_is_well_trained_and_without_fault(healthy, digits):
    x, y, others, labels = digits
    assert accuracy(healthy, others, labels) > 0.9
    found = health(healthy, others)
    assert (found.verdict, found.faults) == ("well trained", []), str(found)
    assert [layer.name for layer in found.layers] == ["0", "3"] and found.images == 200
    found = health(healthy, others, labels, training=(x[:200], y[:200]))
    assert found.verdict == "well trained" and found.answers["accuracy"] > 0.9
    assert any("accuracy" in reason for reason in found.reasons)


@pytest.mark.parametrize("epochs", [0, 1])
def test_without_or_with_too_little_training_it_is_untrained(digits, epochs):
    for seed in (1, 9):
        net = train(classifier(seed), digits[0], digits[1], epochs)
        found = health(net, digits[2][:100])
        assert found.verdict == "untrained", str(found)
        assert all(layer.verdict == "untrained" for layer in found.layers) or epochs


def test_a_network_that_knows_shuffled_labels_by_heart_is_over_fitted(digits):
    x, y, others, labels = digits
    shuffled = np.random.default_rng(5).permutation(y[:300])
    net = train(classifier(1), x[:300], shuffled, 80)
    assert accuracy(net, x[:300], shuffled) > 0.9
    found = health(net, others[:100])
    assert found.verdict == "over-fitted" and "shift by one pixel" in found.reasons[0], str(found)
    found = health(net, others[:100], labels[:100], training=(x[:100], shuffled[:100]))
    assert found.verdict == "over-fitted" and "accuracy falls" in found.reasons[0], str(found)


def test_too_much_weight_decay_is_a_collapse(digits):
    net = train(classifier(1), digits[0], digits[1], 4, decay=0.3)
    found = health(net, digits[2][:100])
    assert found.verdict == "collapsed", str(found)
    assert "hardly depend on the image" in " ".join(found.reasons)


def test_planted_faults_are_named_and_no_others(healthy, digits):
    net = classifier()
    net.load_state_dict(healthy.state_dict())
    second = net[3]
    second.bias[4] = -100  # dead
    second.bias[7] = 100  # always on
    second.weight[9] = 0.5 * second.weight[2]  # duplicate, of another length and bias
    second.weight[12] = 0.001 * second.weight[12]  # low norm
    second.weight[20, 3, 1, 1] = 1e-40  # subnormal
    second.weight[31, 0, 0, 0] = np.nan  # not finite
    found = health(net.eval(), digits[2])
    planted = {
        ("3", 4, "dead"), ("3", 7, "always on"), ("3", 9, "duplicate"), ("3", 12, "low norm"), ("3", 20, "subnormal"),
        ("3", 31, "not finite"),
    }  # fmt: skip
    assert planted <= set(found.faults)
    # A filter of no weight has its bias everywhere, so it is dead or always on besides: that is no false alarm
    assert {fault for fault in found.faults if fault[1] != 12} == {fault for fault in planted if fault[1] != 12}
    assert found.layers[1].filters[9].twin == 2
    text = str(found)
    assert "filter 9: duplicate" in text and "filter 31: not finite" in text


def test_a_checkerboard_is_noisy(healthy, digits):
    net = classifier()
    net.load_state_dict(healthy.state_dict())
    net[0].weight[5, 0] = np.where(np.indices((3, 3)).sum(axis=0) % 2, -1, 1) * np.outer((1, 2, 1), (1, 2, 1)) / 4
    assert "noisy" in health(net.eval(), digits[2]).layers[0].filters[5].faults


def test_saturated_rectifiers_and_sigmoids(rng):
    x = rng.uniform(1, 2, (4, 1, 6, 6)).astype(np.float32)
    for activation, bias in ((ReLU6(), 50), (Sigmoid(), 50), (Sigmoid(), -50)):
        net = Sequential(Conv2d(1, 2, 3, rng=0), BatchNorm2d(2), activation).eval()
        net[0].bias[1] = bias
        found = health(net, x)
        assert "saturated" in found.layers[0].filters[1].faults
        assert "saturated" not in found.layers[0].filters[0].faults


def test_the_activation_of_a_filter_is_its_own(rng):
    """A rectifier behind the sum of a residual block does not belong to the block's last filter alone."""
    body = Sequential(Conv2d(2, 2, 1, rng=0), ReLU(), Conv2d(2, 2, 1, rng=1))
    body[0].weight[...], body[2].weight[...] = 1, -0.1  # always below zero, but not the sum
    net = Sequential(Conv2d(1, 2, 1, rng=2), Residual(body), ReLU())
    net[0].weight[...] = 10
    net.eval()
    found = health(net, rng.uniform(1, 2, (3, 1, 4, 4)).astype(np.float32))
    assert [layer.name for layer in found.layers] == ["0", "1.body.0", "1.body.2"]
    assert not any("dead" in one.faults for one in found.layers[2].filters)


def test_statistics_of_independent_weights():
    """On white noise: 1 - (9/16)^2 of the energy in the upper bands, and scores with mean 0 and deviation 1."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(200, 32, 8, 3, 3))
    assert abs(np.mean([high_frequency_share(one).mean() for one in noise[:20]]) - 0.684) < 0.02
    for kernels in (noise, rng.uniform(-1, 1, noise.shape)):
        for score in (structure, uneven, outlier):
            scores = [score(one) for one in kernels]
            assert abs(np.mean(scores)) < 0.35 and 0.7 < np.std(scores) < 1.4
    box = np.ones((2, 1, 3, 3))
    checks = np.where(np.indices((3, 3)).sum(axis=0) % 2, -1.0, 1.0)[None, None]
    assert high_frequency_share(box).max() < 0.4 < 0.92 < high_frequency_share(checks).min()
    assert structure(box) > 4 > -3 > structure(checks)
    # A pointwise layer whose filters share one direction, too weak to be seen in any single weight
    pointwise = rng.normal(size=(64, 96, 1, 1))
    shared = np.outer(rng.normal(size=64), rng.normal(size=96)).reshape(pointwise.shape)
    assert outlier(pointwise) < 4 < outlier(pointwise + 0.3 * shared)


def test_bad_input_is_named():
    net = Sequential(Conv2d(3, 4, 3, rng=0), ReLU())
    classifier = Sequential(net[0], ReLU(), Flatten(), Linear(144, 2))
    x = np.zeros((3, 8, 8), np.float32)
    for call, message in (
        (lambda: health(Sequential(ReLU()), [x]), "health: net has no Conv2d layer: there is no filter to look at"),
        (lambda: health(3, [x]), "health: net is a int: it must be a Layer"),
        (lambda: health(net, []), "health: images is empty: at least one image is needed"),
        (lambda: health(net, [x[:1]]), "Conv2d: input has 1 channels"),
        (lambda: health(net, [x[0]]), r"health: an image has shape \(8, 8\)"),
        (lambda: health(net, 3), "health: images is 3: it must be an iterable"),
        (lambda: health(classifier, [x], [0, 1]), "health: labels: 2 labels for 1 images: there must be as many"),
        (lambda: health(classifier, [x], ["a"]), "health: labels is 'a': it must be an integer"),
        (lambda: health(classifier, [x], 3), "health: labels is 3: it must be a sequence of integers"),
        (lambda: health(classifier, [x], [0], training=x), "health: training is a ndarray: it must be"),
        (lambda: health(classifier, [x], [0], training=([x], [])), "health: training: 0 labels for 1 images"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
