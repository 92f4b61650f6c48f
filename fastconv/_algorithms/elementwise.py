"""Work cell by cell on whole arrays, which belongs to no plan: C-contiguous, of one dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastconv import _threads

SMALL = 1 << 17  # cells: with fewer a second thread costs more than it brings
PART = 1 << 16  # cells whose finiteness is one number

NONE = {np.dtype(name): np.empty(0, name) for name in ("float32", "float64")}
_NO_GEOMETRY = np.empty(0, np.int64)


def _run(kernel: Callable[..., None], array: np.ndarray, *others: Any, n_threads: int = 0) -> None:
    """``kernel`` on threads, as many as a call may use if not given; on one if ``array`` is small."""
    n_threads = 1 if array.size < SMALL else n_threads or _threads.get_num_threads()
    kernel(array, *others, NONE[array.dtype], _NO_GEOMETRY, n_threads)


def add(k: Any, term: np.ndarray, bounds: tuple[float, float], total: np.ndarray) -> None:
    """``total`` becomes total + term within ``bounds``."""
    _run(k.elementwise.add, term.reshape(-1), *bounds, total.reshape(-1))


def rectify(k: Any, output: np.ndarray, most: float, grad: np.ndarray) -> None:
    """``grad`` becomes 0 wherever not 0 < output <= most."""
    _run(k.elementwise.rectify, output.reshape(-1), most, grad.reshape(-1))


def sgd(k: Any, gradient: np.ndarray, numbers: tuple[Any, ...], parameter: np.ndarray, velocity: np.ndarray) -> None:
    """A step of gradient descent; ``numbers`` are the kernel's."""
    _run(k.elementwise.sgd, gradient, *numbers, parameter, velocity)


def adam(k: Any, gradient: np.ndarray, numbers: tuple[float, ...], *changed: np.ndarray) -> None:
    """A step of Adam; ``numbers`` are the kernel's, what is changed are the parameter and its two means."""
    _run(k.elementwise.adam, gradient, *numbers, *changed)


def map_sums(k: Any, maps: np.ndarray) -> np.ndarray:
    """The sum over images and cells of each map of (N, C, H, W)."""
    sums = np.empty(maps.shape[1], maps.dtype)
    _run(k.elementwise.map_sums, maps, sums)
    return sums


def normalise(
    k: Any, maps: np.ndarray, affine: tuple[np.ndarray, ...], of_batch: bool, eps: float, bounds: tuple[float, float],
    statistics: tuple[np.ndarray, ...],
) -> np.ndarray:  # fmt: skip
    """``maps`` (N, C, H, W) normalised by ``statistics``, which with ``of_batch`` become their own, and clamped."""
    output = np.empty(maps.shape, maps.dtype)
    _run(k.elementwise.normalise, maps, *affine, of_batch, eps, *bounds, *statistics, output)
    return output


def normalise_backward(
    k: Any, grad_output: np.ndarray, maps: np.ndarray, weight: np.ndarray, statistics: tuple[np.ndarray, ...],
    of_batch: bool, eps: float, need_input: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:  # fmt: skip
    """Gradients of weight, bias and, if it is needed, the maps."""
    grad_input = np.empty(maps.shape if need_input else (0, 0, 0, 0), maps.dtype)
    sums = [np.empty_like(weight), np.empty_like(weight)]
    _run(k.elementwise.normalise_backward, grad_output, maps, weight, *statistics, of_batch, eps, *sums, grad_input)
    return sums[0], sums[1], grad_input if need_input else None


def all_finite(k: Any, array: np.ndarray, n_threads: int) -> bool:
    """Whether ``array`` holds neither NaN nor Inf."""
    found = np.empty(1 + array.size // PART, array.dtype)
    _run(k.elementwise.non_finite, array.reshape(-1), found, n_threads=n_threads)
    return not np.isnan(found).any()
