"""Convolution and pooling for NumPy arrays: fast compiled kernels, no framework.

>>> import numpy as np, fastconv
>>> x = np.ones((1, 3, 8, 8), dtype=np.float32)
>>> w = np.ones((4, 3, 3, 3), dtype=np.float32)
>>> fastconv.conv2d(x, w, padding=1, activation="relu").shape
(1, 4, 8, 8)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastconv import functional
from fastconv._arena import clear_workspaces
from fastconv._backends import BackendUnavailable, available_backends, config, show_config
from fastconv._packed import PackedWeight
from fastconv._plan import Plan, plan_conv2d, tune
from fastconv._problem import ConvProblem, PoolProblem
from fastconv._threads import get_num_threads, set_num_threads
from fastconv.functional import *  # noqa: F403

if TYPE_CHECKING:
    from fastconv import datasets, layers, models, see, train
    from fastconv._state import load, save  # noqa: F401
    from fastconv.layers import *  # noqa: F403

__version__ = "0.1.0"

_LAYERS = (
    "AdaptiveAvgPool2d", "Add", "AvgPool2d", "BatchNorm2d", "Concat", "Conv1d", "Conv2d", "ConvTranspose2d", "Dropout",
    "Flatten", "GlobalAvgPool2d", "HardSwish", "Identity", "Layer", "LeakyReLU", "Linear", "LoadResult",
    "LocalResponseNorm", "MaxPool2d", "MaxUnpool2d", "PReLU", "ReLU", "ReLU6", "Residual", "Sequential", "Sigmoid",
    "Softmax", "Summary", "ZeroPad2d", "record", "summary",
)  # fmt: skip
# Modules and names that are imported when they are first used: a script of functions alone need not pay for them
_MODULES = ("datasets", "layers", "models", "see", "train")
_LAZY = {"load": "fastconv._state", "save": "fastconv._state", **dict.fromkeys(_LAYERS, "fastconv.layers")}

__all__ = [
    "BackendUnavailable",
    "ConvProblem",
    "PackedWeight",
    "Plan",
    "PoolProblem",
    "available_backends",
    "clear_workspaces",
    "config",
    "datasets",
    "get_num_threads",
    "layers",
    "models",
    "plan_conv2d",
    "see",
    "set_num_threads",
    "show_config",
    "train",
    "tune",
    *functional.__all__,
    *_LAZY,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"fastconv.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'fastconv' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
