"""PyTorch on the CPU: eager functions, or (packed) what its compiler calls: prepacked weights, the ReLU fused."""

from __future__ import annotations

from typing import Any

from .case import Case, Prepared, Unsupported, fastest


def load(threads: int, packed: bool) -> Any:
    import torch

    torch.set_num_threads(threads)
    torch.inference_mode().__enter__()
    return Adapter(torch, packed)


class Adapter:
    def __init__(self, torch: Any, packed: bool) -> None:
        self.torch, self.packed = torch, packed
        self.version = torch.__version__

    def prepare(self, case: Case) -> Prepared:
        if self.packed and (not case.shape.kernel or case.shape.pool):
            raise Unsupported("no weights to pack, or a pool: see torch")
        torch = self.torch
        layouts = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
        make = self._packed if self.packed else self._eager
        return fastest([make(case, name, layout) for name, layout in layouts.items()])

    def _eager(self, case: Case, name: str, layout: Any) -> Prepared:
        shape, functional = case.shape, self.torch.nn.functional
        input = self.torch.from_numpy(case.input).contiguous(memory_format=layout)
        if shape.kernel:
            weight = self.torch.from_numpy(case.weight).contiguous(memory_format=layout)
            bias = self.torch.from_numpy(case.bias)
        result: Any = None

        def call() -> None:
            nonlocal result
            maps = input
            if shape.kernel:
                maps = functional.conv2d(maps, weight, bias, shape.stride, shape.padding, 1, shape.groups).relu_()
            if shape.pool:
                maps = functional.max_pool2d(
                    maps, shape.pool, shape.pool_stride, shape.pool_padding, return_indices=shape.indices
                )
            result = maps

        def outputs() -> Any:
            tensors = result if shape.indices else (result,)
            return tuple(tensor.contiguous().numpy() for tensor in tensors)

        note = f"{name}, eager" + (", packed in each call" if shape.kernel else "")
        return Prepared(call, outputs, note, case)

    def _packed(self, case: Case, name: str, layout: Any) -> Prepared:
        shape, ops = case.shape, self.torch.ops.mkldnn
        stride, padding, dilation = [shape.stride] * 2, [shape.padding] * 2, [1, 1]
        input = self.torch.from_numpy(case.input).contiguous(memory_format=layout)
        bias = self.torch.from_numpy(case.bias)
        weight = ops._reorder_convolution_weight(
            self.torch.from_numpy(case.weight), padding, stride, dilation, shape.groups, list(shape.input_shape)
        )
        result: Any = None

        def call() -> None:
            nonlocal result
            result = ops._convolution_pointwise(
                input, weight, bias, padding, stride, dilation, shape.groups, "relu", [], ""
            )

        return Prepared(call, lambda: (result.contiguous().numpy(),), f"{name}, packed, ReLU fused", case)
