"""Memory: the peak of a process that makes one call, and the workspace a plan asks for.

asv's peak includes the interpreter, the imports and, for Numba, the compiler: compare one graph over time, not two
back ends with each other. The workspace is exact.
"""

import numpy as np

import fastconv

from . import _common
from ._common import Data

SHAPES = ("vgg16.conv1_2", "resnet50.layer1.conv", "resnet50.conv1", "smoke.3x3")


class Conv2d:
    """Peak memory of one convolution, by algorithm."""

    params = (_common.BACKENDS, ("auto", *_common.ALGORITHMS), SHAPES)
    param_names = ("backend", "algorithm", "shape")
    timeout = 300.0

    def setup(self, backend, algorithm, name):
        shape = _common.get(name)
        _common.require(backend, shape)
        self.shape, self.data = shape, Data(shape)

    def peakmem_conv2d(self, backend, algorithm, name):
        shape, data = self.shape, self.data
        fastconv.conv2d(
            data.input, data.weight, data.bias, shape.stride, shape.padding, 1, shape.groups,
            algorithm=algorithm, backend=backend,
        )  # fmt: skip

    def track_workspace(self, backend, algorithm, name):
        plan = fastconv.plan_conv2d(_common.conv_problem(self.shape), algorithm, backend)
        return plan.workspace_bytes

    track_workspace.unit = "bytes"  # type: ignore[attr-defined]


class Unit:
    """Peak memory of convolution, ReLU and max-pool on a 224 x 224 image."""

    params = (_common.BACKENDS, ("article.unit32", "article.unit64", "smoke.unit"))
    param_names = ("backend", "shape")
    timeout = 300.0

    def setup(self, backend, name):
        shape = _common.get(name)
        _common.require(backend, shape)
        self.shape, self.data = shape, Data(shape)

    def peakmem_unit(self, backend, name):
        shape, data = self.shape, self.data
        maps = fastconv.conv2d(
            data.input, data.weight, data.bias, shape.stride, shape.padding, activation="relu", backend=backend
        )
        out = np.empty(shape.output_shape, "float32")
        fastconv.max_pool2d(maps, shape.pool, shape.pool_stride, shape.pool_padding, backend=backend, out=out)
