"""fastconv itself, through its public API, on plain NCHW arrays."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .case import Case, Prepared


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
