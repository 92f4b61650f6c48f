"""Layers: objects that own parameters, call the functional API, and know their gradients.

One protocol: ``y = layer(x)``, then ``grad_x = layer.backward(grad_y)``. Names, arguments and defaults are torch's.

=================  =================================================================
_base.py           Layer: forward and backward, modes, parameters, state; shared checks
_tape.py           what backward needs, per thread; record()
_summary.py        summary(): shapes, costs, receptive fields
_initial.py        first values of weights
convolution.py     Conv2d, Conv1d, ConvTranspose2d
pooling.py         MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, GlobalAvgPool2d, MaxUnpool2d, ZeroPad2d
activation.py      ReLU, ReLU6, LeakyReLU, PReLU, Sigmoid, HardSwish, Softmax
normalisation.py   BatchNorm2d, LocalResponseNorm, Dropout
linear.py          Linear, Flatten, Identity
container.py       Sequential, Add, Residual, Concat
=================  =================================================================

A new layer is a class in the file of its kind, one name here, one in ``fastconv/__init__.py``, tests in
``tests/test_layers.py``.
"""

from fastconv.layers._base import Layer, LoadResult
from fastconv.layers._summary import Summary, summary
from fastconv.layers._tape import record
from fastconv.layers.activation import HardSwish, LeakyReLU, PReLU, ReLU, ReLU6, Sigmoid, Softmax
from fastconv.layers.container import Add, Concat, Residual, Sequential
from fastconv.layers.convolution import Conv1d, Conv2d, ConvTranspose2d
from fastconv.layers.linear import Flatten, Identity, Linear
from fastconv.layers.normalisation import BatchNorm2d, Dropout, LocalResponseNorm
from fastconv.layers.pooling import AdaptiveAvgPool2d, AvgPool2d, GlobalAvgPool2d, MaxPool2d, MaxUnpool2d, ZeroPad2d

__all__ = [
    "AdaptiveAvgPool2d",
    "Add",
    "AvgPool2d",
    "BatchNorm2d",
    "Concat",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "HardSwish",
    "Identity",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LoadResult",
    "MaxPool2d",
    "MaxUnpool2d",
    "PReLU",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Summary",
    "ZeroPad2d",
    "record",
    "summary",
]
