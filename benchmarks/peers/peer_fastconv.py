"""fastconv itself, through its public API, on plain NCHW arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .case import LEARNING_RATE, NETWORKS, Case, Prepared, Unsupported


def load(threads: int, backend: str, packed: bool) -> Any:
    import fastconv

    if backend not in fastconv.available_backends():
        raise ImportError(f"the {backend} back end does not run here")
    if not packed and not hasattr(fastconv, "pack_conv2d_weight"):
        raise ImportError("this version packs in every call; see the contestant without -unpacked")
    fastconv.set_num_threads(threads)
    return Adapter(fastconv, backend, packed)


class Adapter:
    def __init__(self, fastconv: Any, backend: str, packed: bool) -> None:
        self.fastconv, self.backend = fastconv, backend
        self.pack = getattr(fastconv, "pack_conv2d_weight", None) if packed else None
        self.version = fastconv.__version__

    def prepare(self, case: Case) -> Prepared:
        fastconv, shape = self.fastconv, case.shape
        out = np.empty(shape.output_shape, np.float32)
        where = np.empty(0, np.int64)
        conv: Any = None
        note = "NCHW"
        if shape.kernel:
            weight: Any = case.weight
            how = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups}
            if self.pack is not None:
                weight = self.pack(weight, shape.input_shape, backend=self.backend, **how)
            note += ", packed" if self.pack is not None else ", packed in each call"
            conv = functools.partial(fastconv.conv2d, case.input, weight, case.bias, **how, backend=self.backend)
        if shape.kernel and not shape.pool:

            def call() -> None:
                conv(activation="relu", out=out)

        elif shape.kernel and (fused := getattr(fastconv, "conv2d_relu_max_pool2d", None)) is not None:
            note += ", fused"

            def call() -> None:
                fused(
                    case.input, weight, case.bias, **how, pool_size=shape.pool, pool_stride=shape.pool_stride,
                    pool_padding=shape.pool_padding, backend=self.backend, out=out,
                )  # fmt: skip

        else:
            maps = np.empty((1, shape.OC, *shape.conv_extents), np.float32) if shape.kernel else case.input
            pool = functools.partial(
                fastconv.max_pool2d, maps, shape.pool, shape.pool_stride, shape.pool_padding, backend=self.backend
            )

            def call() -> None:
                nonlocal where
                if conv is not None:
                    conv(activation="relu", out=maps)
                if shape.indices:
                    where = pool(return_indices=True, out=out)[1]
                else:
                    pool(out=out)

        return Prepared(call, lambda: (out, where) if shape.indices else (out,), note, case)

    def prepare_training(self, case: Case) -> Prepared:
        if self.pack is None:
            raise Unsupported("nothing to pack: see the contestant without -unpacked")
        return Prepared(*training(self.fastconv, case, self.backend, np.float32), "NCHW", case)


def training(
    fastconv: Any, case: Case, backend: str, dtype: Any
) -> tuple[Callable[[], None], Callable[[], tuple[np.ndarray, ...]]]:
    """A gradient by its function, or a whole step by layers, loss and optimiser."""
    shape = case.shape
    if shape.op == "step":
        return _step(fastconv, case, backend, dtype)
    input, weight, grad = (array.astype(dtype) for array in (case.input, case.weight, case.gradient))
    how = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups, "backend": backend}
    run: Callable[[], Any]
    if shape.op == "conv_transpose2d":
        run = functools.partial(fastconv.conv_transpose2d, grad, weight, **how)
    elif shape.op == "max_pool2d_backward":
        window = (shape.pool, shape.pool_stride)
        _, where = fastconv.max_pool2d(input, *window, return_indices=True, backend=backend)
        run = functools.partial(
            fastconv.max_pool2d_backward, grad, where, input.shape, *window, backend=backend
        )  # fmt: skip
    else:
        needs = (shape.op == "grad_input", shape.op == "grad_weight", False)

        def run() -> Any:
            return fastconv.conv2d_backward(grad, input, weight, needs=needs, **how)[needs.index(True)]

    result: Any = None

    def call() -> None:
        nonlocal result
        result = run()

    return call, lambda: (result,)


def _step(
    fastconv: Any, case: Case, backend: str, dtype: Any
) -> tuple[Callable[[], None], Callable[[], tuple[np.ndarray, ...]]]:
    filters, padding, features, normalised = NETWORKS[case.shape.name.partition(".")[2]]
    layers, channels, kind = [], case.shape.IC, np.dtype(dtype).name
    for each in filters:
        if each:
            norm = [fastconv.BatchNorm2d(each, dtype=kind)] if normalised else []
            layers += [fastconv.Conv2d(channels, each, 3, padding=padding, dtype=kind), *norm, fastconv.ReLU()]
        else:
            layers.append(fastconv.MaxPool2d(2))
        channels = each or channels
    net = fastconv.Sequential(*layers, fastconv.Flatten(), fastconv.Linear(features, case.shape.OC, dtype=kind))
    for parameter, value in zip(net.parameters(), case.parameters, strict=True):
        parameter[...] = value
    images = case.input.astype(dtype)
    sgd = fastconv.train.SGD(net, lr=LEARNING_RATE, momentum=0.9)

    def call() -> None:
        with fastconv.config(backend=backend):
            _, grad = fastconv.train.softmax_cross_entropy(net(images), case.gradient)
            net.backward(grad, needs_input=False)
            sgd.step()

    return call, lambda: (np.concatenate([gradient.ravel() for gradient in net.gradients()]),)
