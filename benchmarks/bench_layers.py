"""Layers: forward in eval mode, forward and backward in train mode, and the article's network."""

import numpy as np

import fastconv
from fastconv import layers

from . import _common

SHAPES = {"resnet50.layer1": (1, 64, 56, 56), "smoke": (1, 16, 14, 14)}

LAYERS = {
    "Conv2d 3x3": lambda C: layers.Conv2d(C, C, 3, padding=1, rng=np.random.default_rng(0)),
    "Conv2d 1x1": lambda C: layers.Conv2d(C, C, 1, rng=np.random.default_rng(0)),
    "Conv2d depthwise": lambda C: layers.Conv2d(C, C, 3, padding=1, groups=C, rng=np.random.default_rng(0)),
    "ConvTranspose2d": lambda C: layers.ConvTranspose2d(C, C // 2, 2, stride=2, rng=np.random.default_rng(0)),
    "BatchNorm2d": lambda C: layers.BatchNorm2d(C),
    "ReLU": lambda C: layers.ReLU(),
    "MaxPool2d": lambda C: layers.MaxPool2d(3, 2, 1),
    "AvgPool2d": lambda C: layers.AvgPool2d(2),
    "GlobalAvgPool2d": lambda C: layers.GlobalAvgPool2d(),
    "LocalResponseNorm": lambda C: layers.LocalResponseNorm(5),
}

NETS = {"article": (1, 3, 224, 224), "smoke.article": (1, 3, 32, 32)}


class _Net(_common.Timed):
    """Runs ``self.net`` on ``self.input`` with one back end."""

    def prepare(self, backend, threads, net, extents):
        self.net = net
        self.input = np.random.default_rng(0).standard_normal(extents, dtype="float32")
        self.settings = fastconv.config(backend=backend, num_threads=threads)
        self.settings.__enter__()
        self.grad_output = np.ones_like(net(self.input))
        self.forward_backward()
        _common.place(self.forward_backward, threads)
        net.eval()
        net(self.input)

    def teardown(self, *values):
        self.settings.__exit__(None, None, None)

    def forward(self):
        self.net(self.input)  # in eval mode, see prepare

    def forward_backward(self):
        self.net.train()
        self.net(self.input)
        self.net.backward(self.grad_output)


class Layer(_Net):
    """One layer on one thread."""

    params = (_common.BACKENDS, tuple(LAYERS), tuple(SHAPES))
    param_names = ("backend", "layer", "shape")

    def setup(self, backend, name, shape):
        extents = SHAPES[shape]
        _common.require(backend, large=shape != "smoke")
        self.prepare(backend, 1, LAYERS[name](extents[1]), extents)

    def time_forward(self, backend, name, shape):
        self.forward()

    def time_forward_backward(self, backend, name, shape):
        self.forward_backward()


class Network(_Net):
    """The article's network: convolution, ReLU, max-pool, convolution."""

    params = (_common.BACKENDS, tuple(NETS), _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def setup(self, backend, shape, threads):
        _common.require(backend, threads=threads, large=not shape.startswith("smoke"))
        rng = np.random.default_rng(0)
        net = layers.Sequential(
            layers.Conv2d(3, 32, 3, padding=1, rng=rng),
            layers.ReLU(),
            layers.MaxPool2d(2),
            layers.Conv2d(32, 64, 3, padding=1, rng=rng),
        )
        self.prepare(backend, threads, net, NETS[shape])

    def time_forward(self, backend, shape, threads):
        self.forward()

    def time_forward_backward(self, backend, shape, threads):
        self.forward_backward()
