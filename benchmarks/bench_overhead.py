"""Call overhead: a 1 x 3 x 8 x 8 image and eight 3 x 3 filters, whose arithmetic is next to nothing."""

import numpy as np

import fastconv
from fastconv import _plan

from . import _common


class Call(_common.Timed):
    """A whole public call, the same call of a plan made beforehand, and the kernel-less price of planning."""

    params = (_common.BACKENDS,)
    param_names = ("backend",)

    def setup(self, backend):
        _common.require(backend)
        rng = np.random.default_rng(0)
        self.input = rng.standard_normal((1, 3, 8, 8), dtype="float32")
        self.weight = rng.standard_normal((8, 3, 3, 3), dtype="float32")
        self.bias = rng.standard_normal(8, dtype="float32")
        self.problem = fastconv.ConvProblem.from_args(
            "benchmark", self.input.shape, self.weight.shape, "float32", bias_shape=(8,)
        )
        self.plan = fastconv.plan_conv2d(self.problem, "auto", backend)
        self.out = np.empty(self.problem.output_shape, "float32")
        self.time_conv2d(backend)
        self.time_conv2d_out(backend)
        self.time_plan_call(backend)
        self.time_max_pool2d(backend)

    def time_conv2d(self, backend):
        fastconv.conv2d(self.input, self.weight, self.bias, backend=backend)

    def time_conv2d_out(self, backend):
        fastconv.conv2d(self.input, self.weight, self.bias, backend=backend, out=self.out)

    def time_plan_call(self, backend):
        self.plan(self.input, self.weight, self.bias, out=self.out)

    def time_max_pool2d(self, backend):
        fastconv.max_pool2d(self.input, 2, backend=backend)

    def time_make_plan(self, backend):
        _plan.plan_conv2d(self.problem, "auto", backend)
