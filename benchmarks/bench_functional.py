"""Public API: what a user's call costs, checks, planning and weight packing included."""

import numpy as np

import fastconv

from . import _common
from ._common import Data

UNITS = ("article.unit32", "article.unit64", "smoke.unit")


class _Function(_common.Timed):
    def bind(self, call):
        """``self.call``: ``call``, made once already (plans, compiled code and workspaces are then there)."""
        call()
        _common.place(call, fastconv.get_num_threads())
        self.call = call


class Conv2d(_Function):
    """conv2d with bias and ReLU into a given output, algorithm "auto"."""

    params = (_common.BACKENDS, _common.CONVS, _common.THREADS)
    param_names = ("backend", "shape", "threads")
    dtype = "float32"

    def setup(self, backend, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        data, out = Data(shape, self.dtype), np.empty(shape.output_shape, self.dtype)
        self.bind(
            lambda: fastconv.conv2d(
                data.input, data.weight, data.bias, shape.stride, shape.padding, 1, shape.groups,
                activation="relu", backend=backend, out=out,
            )
        )  # fmt: skip

    def time_conv2d(self, backend, name, threads):
        self.call()


class Conv2dFloat64(Conv2d):
    """The same in double precision."""

    dtype = "float64"


class Conv2dForced(_Function):
    """conv2d with the algorithm forced."""

    params = (_common.BACKENDS, _common.FORWARD, _common.CONVS, _common.THREADS)
    param_names = ("backend", "algorithm", "shape", "threads")

    def setup(self, backend, algorithm, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        _common.require_algorithm(algorithm, _common.conv_problem(shape))
        data = Data(shape)
        out = np.empty(shape.output_shape, "float32")
        self.bind(
            lambda: fastconv.conv2d(
                data.input, data.weight, data.bias, shape.stride, shape.padding, 1, shape.groups,
                activation="relu", algorithm=algorithm, backend=backend, out=out,
            )
        )  # fmt: skip

    def time_conv2d(self, backend, algorithm, name, threads):
        self.call()


class Conv2dGradients(_Function):
    """conv2d_grad_input and conv2d_grad_weight, algorithm "auto"."""

    params = (_common.BACKENDS, ("input", "weight"), _common.CONVS, _common.THREADS)
    param_names = ("backend", "gradient", "shape", "threads")

    def setup(self, backend, gradient, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        data = Data(shape)
        how = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups, "backend": backend}
        if gradient == "input":
            self.bind(lambda: fastconv.conv2d_grad_input(shape.input_shape, data.weight, data.grad_output, **how))
        else:
            self.bind(lambda: fastconv.conv2d_grad_weight(data.input, shape.weight_shape, data.grad_output, **how))

    def time_gradient(self, backend, gradient, name, threads):
        self.call()


class MaxPool2d(_Function):
    """max_pool2d, with indices where the shape's name ends in "_idx"."""

    params = (_common.BACKENDS, _common.POOLS, _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def setup(self, backend, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        input = Data(shape).input
        self.bind(
            lambda: fastconv.max_pool2d(
                input, shape.pool, shape.pool_stride, shape.pool_padding, return_indices=shape.indices, backend=backend
            )
        )  # fmt: skip

    def time_max_pool2d(self, backend, name, threads):
        self.call()


class AvgPool2d(_Function):
    """avg_pool2d."""

    params = (_common.BACKENDS, _common.POOLS, _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def setup(self, backend, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        input = Data(shape).input
        self.bind(
            lambda: fastconv.avg_pool2d(input, shape.pool, shape.pool_stride, shape.pool_padding, backend=backend)
        )

    def time_avg_pool2d(self, backend, name, threads):
        self.call()


class Unit(_Function):
    """Convolution, bias, ReLU and max-pool, as two calls."""

    params = (_common.BACKENDS, UNITS, _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def setup(self, backend, name, threads):
        shape = _common.get(name)
        _common.require(backend, shape, threads)
        data = Data(shape)

        def call():
            maps = fastconv.conv2d(
                data.input, data.weight, data.bias, shape.stride, shape.padding, activation="relu", backend=backend
            )
            return fastconv.max_pool2d(maps, shape.pool, shape.pool_stride, shape.pool_padding, backend=backend)

        self.bind(call)

    def time_unit(self, backend, name, threads):
        self.call()
