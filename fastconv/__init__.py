"""Convolution and pooling for NumPy arrays: fast compiled kernels, no framework.

>>> import numpy as np, fastconv
>>> x = np.ones((1, 3, 8, 8), dtype=np.float32)
>>> w = np.ones((4, 3, 3, 3), dtype=np.float32)
>>> fastconv.conv2d(x, w, padding=1, activation="relu").shape
(1, 4, 8, 8)
"""

from fastconv import functional
from fastconv._arena import clear_workspaces
from fastconv._backends import BackendUnavailable, available_backends, config, show_config
from fastconv._plan import Plan, plan_conv2d
from fastconv._problem import ConvProblem, PoolProblem
from fastconv._threads import get_num_threads, set_num_threads
from fastconv.functional import *  # noqa: F403

__version__ = "0.1.0"

__all__ = [
    "BackendUnavailable",
    "ConvProblem",
    "Plan",
    "PoolProblem",
    "available_backends",
    "clear_workspaces",
    "config",
    "get_num_threads",
    "plan_conv2d",
    "set_num_threads",
    "show_config",
    *functional.__all__,
]
