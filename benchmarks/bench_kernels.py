"""Kernel level: one call of one compiled kernel, workspace and packed weights made beforehand."""

from dataclasses import replace

import numpy as np

from fastconv import _arena, _backends
from fastconv._algorithms import NO_IMAGE, NO_INDICES
from fastconv._algorithms.winograd import tile_of_wide
from fastconv._problem import ConvProblem, PoolProblem

from . import _common
from ._common import Data

WINOGRAD_TILE = 4  # what "auto" takes for most planes, of 3 x 3 kernels


def tile_of(problem: ConvProblem) -> int:
    """Winograd's tile for this layer; other kernels do not read it."""
    return tile_of_wide(problem) if problem.KH > 3 else WINOGRAD_TILE


def stem_of(algorithm: str) -> str:
    """The kernels that compute it: winograd's for "winograd_wide"."""
    return algorithm.partition("_")[0]


class _Kernel(_common.Timed):
    """Binds one kernel call in ``setup`` to ``self.call``."""

    dtype = "float32"
    twin = None  # another back end's benchmark of the same call, whose arrays this one works on: addresses make a difference

    def prepare(self, kernel, shape, threads):
        backend, isa = _common.require(kernel, shape, threads)
        self.k = _backends.kernels(backend, isa)
        self.threads = threads
        self.data = self.twin.data if self.twin else Data(shape, self.dtype)
        self.written = []

    def kept(self, array):
        """``array`` to write to, or the twin's in its place."""
        theirs = self.twin.written[len(self.written)] if self.twin else array
        self.written.append(theirs if (theirs.shape, theirs.dtype) == (array.shape, array.dtype) else array)
        return self.written[-1]

    def bind(self, stem, name, *arrays):
        """``self.call``: kernel ``stem.name`` with a workspace of just its size; called once."""
        size = self.k.workspace(stem, name, self.geometry, self.threads) * np.dtype(self.dtype).itemsize
        workspace = self.kept(_arena.aligned_empty(size)).view(self.dtype)
        kernel, geometry, threads = getattr(getattr(self.k, stem), name), self.geometry, self.threads
        self.call = lambda: kernel(*arrays, workspace, geometry, threads)
        _common.place(self.call, threads)
        self.call()

    def packed_weight(self, algorithm):
        """The weight as an algorithm's forward reads it."""
        weight, stem = self.data.weight, stem_of(algorithm)
        if stem == "direct":
            return weight
        packed = self.kept(np.empty(getattr(self.k, stem).packed_weight_size(self.geometry), weight.dtype))
        self.bind(stem, "pack_weight", weight, packed)
        return packed


class Conv2d(_Kernel):
    """Forward convolution with bias and ReLU; the weights packed where the algorithm packs."""

    params = (_common.KERNELS, _common.FORWARD, _common.CONVS, _common.THREADS)
    param_names = ("backend", "algorithm", "shape", "threads")

    def setup(self, kernel, algorithm, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        problem = _common.conv_problem(shape, self.dtype)
        _common.require_algorithm(algorithm, problem)
        self.geometry = problem.geometry(tile=tile_of(problem))
        weight = self.packed_weight(algorithm)
        output = self.kept(np.empty(problem.output_shape, weight.dtype))
        self.bind(
            stem_of(algorithm), "conv2d", self.data.input, weight, self.data.bias, problem.act_min, problem.act_max,
            output, NO_IMAGE[self.dtype], NO_INDICES,
        )  # fmt: skip

    def time_forward(self, kernel, algorithm, name, threads):
        self.call()


class Unit(_Kernel):
    """Convolution, ReLU and max-pool in one pass; the weights packed where the algorithm packs."""

    params = (_common.KERNELS, _common.FORWARD, ("article.unit32", "units.vgg16_2", "smoke.unit"), _common.THREADS)
    param_names = ("backend", "algorithm", "shape", "threads")

    def setup(self, kernel, algorithm, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        problem = _common.conv_problem(shape, self.dtype)
        pool = PoolProblem.from_args(
            "benchmark", problem.output_shape, problem.dtype, shape.pool, shape.pool_stride, shape.pool_padding
        )
        problem = replace(problem, pool=pool)
        _common.require_algorithm(algorithm, problem)
        self.geometry = problem.geometry(tile=tile_of(problem))
        weight = self.packed_weight(algorithm)
        pooled = self.kept(np.empty(shape.output_shape, weight.dtype))
        self.bind(
            stem_of(algorithm), "conv2d", self.data.input, weight, self.data.bias, problem.act_min, problem.act_max,
            NO_IMAGE[self.dtype], pooled, NO_INDICES,
        )  # fmt: skip

    def time_unit(self, kernel, algorithm, name, threads):
        self.call()


class _Gradient(_Kernel):
    params = (_common.KERNELS, _common.ALGORITHMS, _common.CONVS, _common.THREADS)
    param_names = ("backend", "algorithm", "shape", "threads")

    def prepare_gradient(self, kernel, algorithm, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        problem = _common.conv_problem(shape, self.dtype)
        if algorithm == "winograd":
            _common.require_algorithm(algorithm, problem)
        self.geometry = problem.geometry(tile=tile_of(problem))


class Conv2dGradInput(_Gradient):
    """Gradient of a convolution in its input."""

    def setup(self, kernel, algorithm, name, threads):
        self.prepare_gradient(kernel, algorithm, name, threads)
        data, no_bias = self.data, np.empty(0, self.dtype)
        grad_input = self.kept(np.empty_like(data.input))
        self.bind(
            algorithm, "conv2d_grad_input", data.grad_output, data.weight, no_bias, -np.inf, np.inf, grad_input
        )  # fmt: skip

    def time_grad_input(self, kernel, algorithm, name, threads):
        self.call()


class Conv2dGradWeight(_Gradient):
    """Gradient of a convolution in its weight."""

    def setup(self, kernel, algorithm, name, threads):
        self.prepare_gradient(kernel, algorithm, name, threads)
        data = self.data
        self.bind(algorithm, "conv2d_grad_weight", data.input, data.grad_output, self.kept(np.empty_like(data.weight)))

    def time_grad_weight(self, kernel, algorithm, name, threads):
        self.call()


class PackWeight(_Kernel):
    """What a functional call pays before a convolution by an algorithm that packs."""

    params = (_common.KERNELS, ("im2col", "winograd"), _common.CONVS, _common.THREADS)
    param_names = ("backend", "algorithm", "shape", "threads")

    def setup(self, kernel, algorithm, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        problem = _common.conv_problem(shape, self.dtype)
        _common.require_algorithm(algorithm, problem)
        self.geometry = problem.geometry(tile=tile_of(problem))
        self.packed_weight(algorithm)

    def time_pack_weight(self, kernel, algorithm, name, threads):
        self.call()


class Columns(_Kernel):
    """The whole column matrix, and its adjoint; the maps of a layer with strides put together from their phases."""

    params = (
        _common.KERNELS,
        ("im2col", "col2im", "interleave"),
        ("resnet50.layer1.conv", "resnet50.layer2.conv1", *_common.SMOKE_CONVS),
        _common.THREADS,
    )
    param_names = ("backend", "kernel", "shape", "threads")

    def setup(self, kernel, function, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        self.geometry = _common.conv_problem(shape, self.dtype).geometry()
        if function == "interleave":
            if shape.stride == 1:
                raise NotImplementedError("a layer of stride 1 has one phase")
            arrays = self.data.input.ravel(), self.kept(np.empty_like(self.data.input))
        else:
            OH, OW = shape.conv_extents
            cols = self.kept(np.zeros((1, shape.IC, shape.kernel, shape.kernel, OH, OW), self.dtype))
            arrays = (self.data.input, cols) if function == "im2col" else (cols, self.data.input)
        self.bind("im2col", function, *arrays)

    def time_columns(self, kernel, function, name, threads):
        self.call()


class MaxPool2d(_Kernel):
    """Max-pool, with indices where the shape's name ends in "_idx"."""

    params = (_common.KERNELS, _common.POOLS, _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def setup(self, kernel, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        self.geometry = _common.pool_problem(shape, self.dtype).geometry()
        output = self.kept(np.empty(shape.output_shape, self.dtype))
        indices = self.kept(np.empty(shape.output_shape, "int64")) if shape.indices else NO_INDICES
        self.bind("pool", "max_pool2d", self.data.input, output, indices)

    def time_max_pool2d(self, kernel, name, threads):
        self.call()


class ByIndices(_Kernel):
    """What goes by the indices of a max-pool: its gradient, the way back through the switches of a deconvnet, and that one's."""

    functions = ("max_pool2d_backward", "max_unpool2d", "max_unpool2d_backward")
    params = (_common.KERNELS, functions, _common.POOLS, _common.THREADS)
    param_names = ("backend", "kernel", "shape", "threads")

    def setup(self, kernel, function, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        self.geometry = _common.pool_problem(shape, self.dtype).geometry()
        maps, values = self.data.input, self.data.grad_output
        indices = self.kept(np.empty(shape.output_shape, "int64"))
        self.bind("pool", "max_pool2d", maps, np.empty_like(values), indices)
        if function == "max_unpool2d_backward":
            self.bind("pool", function, maps, indices, self.kept(np.empty_like(values)))
        else:
            self.bind("pool", function, values, indices, self.kept(np.empty_like(maps)), np.empty(1, "int64"))

    def time_by_indices(self, kernel, function, name, threads):
        self.call()


class AvgPool2d(_Kernel):
    """Average pool, and its gradient."""

    functions = ("avg_pool2d", "avg_pool2d_backward")
    params = (_common.KERNELS, functions, _common.POOLS, _common.THREADS)
    param_names = ("backend", "kernel", "shape", "threads")

    def setup(self, kernel, function, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        self.geometry = _common.pool_problem(shape, self.dtype).geometry()
        maps, values = self.data.input, self.data.grad_output
        read, written = (maps, values) if function == "avg_pool2d" else (values, maps)
        self.bind("pool", function, read, self.kept(np.empty_like(written)))

    def time_avg_pool2d(self, kernel, function, name, threads):
        self.call()


class Elementwise(_Kernel):
    """Cell by cell, on as many as the maps that a pool reads: residual sums, ReLU backward, optimisers, sums of maps, checks."""

    functions = ("add", "rectify", "sgd", "adam", "map_sums", "non_finite")
    params = (_common.KERNELS, functions, _common.POOLS, _common.THREADS)
    param_names = ("backend", "kernel", "shape", "threads")

    def setup(self, kernel, function, name, threads):
        self.prepare(kernel, _common.get(name), threads)
        self.geometry = np.empty(0, np.int64)
        maps = self.data.input
        term, changed = maps.ravel(), self.kept(np.ones(maps.size, self.dtype))
        if function == "add":
            arguments = term, -1.0, 1.0, changed
        elif function == "rectify":
            arguments = term, np.inf, changed
        elif function == "sgd":
            arguments = term, 1e-9, 0.9, 1e-4, False, changed, self.kept(np.zeros_like(changed))
        elif function == "adam":
            means = self.kept(np.zeros_like(changed)), self.kept(np.ones_like(changed))
            arguments = term, 1e-9, 0.1, 0.999, 0.001, 1.0, 1e-8, 1.0, 1e-4, changed, *means
        elif function == "map_sums":
            arguments = maps, np.empty(maps.shape[1], self.dtype)
        else:
            arguments = term, np.empty(threads, self.dtype)
        self.bind("elementwise", function, *arguments)

    def time_elementwise(self, kernel, function, name, threads):
        self.call()


class _Normalised(_Kernel):
    """Batch normalisation of the maps that a pool reads, by their own statistics."""

    params = (_common.KERNELS, _common.POOLS, _common.THREADS)
    param_names = ("backend", "shape", "threads")

    def prepare_normalised(self, kernel, name, threads):
        self.prepare(kernel, _common.get(name), threads)
        self.geometry = np.empty(0, np.int64)
        channels = np.linspace(0.5, 2, self.data.input.shape[1], dtype=self.dtype)
        self.weight, self.sums = channels, (np.empty_like(channels), np.empty_like(channels))
        self.output = self.kept(np.empty_like(self.data.input))
        arguments = (self.data.input, channels, channels, True, 1e-5, 0.0, np.inf)
        self.bind("elementwise", "normalise", *arguments, *self.sums, self.output)


class Normalise(_Normalised):
    """Batch normalisation and ReLU."""

    def setup(self, kernel, name, threads):
        self.prepare_normalised(kernel, name, threads)

    def time_normalise(self, kernel, name, threads):
        self.call()


class NormaliseBackward(_Normalised):
    """The three gradients of a batch normalisation."""

    def setup(self, kernel, name, threads):
        self.prepare_normalised(kernel, name, threads)
        gradients = (np.empty_like(self.weight), np.empty_like(self.weight), self.kept(np.empty_like(self.data.input)))
        arguments = (self.output, self.data.input, self.weight, *self.sums, True, 1e-5)
        self.bind("elementwise", "normalise_backward", *arguments, *gradients)

    def time_normalise_backward(self, kernel, name, threads):
        self.call()


class Pad2d(_Kernel):
    """The copy with a border, as a convolution with padding would need it, and its adjoint."""

    params = (
        _common.KERNELS,
        ("pad2d", "pad2d_adjoint"),
        ("zeros", "reflect", "replicate", "circular"),
        ("resnet50.layer1.conv", "smoke.3x3"),
        _common.THREADS,
    )
    param_names = ("backend", "kernel", "padding_mode", "shape", "threads")

    def setup(self, kernel, function, mode, name, threads):
        shape = _common.get(name)
        self.prepare(kernel, shape, threads)
        if not shape.padding:
            raise NotImplementedError("no padding")
        border = _common.ConvProblem.from_args(
            "benchmark",
            shape.input_shape,
            shape.weight_shape,
            self.dtype,
            1,
            shape.padding,
            groups=shape.groups,
            padding_mode=mode,
        ).border()
        self.geometry = border.geometry()
        padded = self.kept(np.ones(border.output_shape, self.dtype))
        arrays = (
            (self.data.input, padded) if function == "pad2d" else (padded, self.kept(np.empty_like(self.data.input)))
        )
        self.bind("pad", function, *arrays)

    def time_pad2d(self, kernel, function, mode, name, threads):
        self.call()
