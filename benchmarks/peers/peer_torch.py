"""PyTorch on the CPU: eager functions, or (packed) what its compiler calls: prepacked weights, the ReLU fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import LEARNING_RATE, NETWORKS, Case, Prepared, Unsupported, fastest


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

    def prepare_training(self, case: Case) -> Prepared:
        if self.packed:
            raise Unsupported("nothing to pack: see torch")
        torch = self.torch
        with torch.inference_mode(False):
            run, outputs = training(torch, case, torch.float32)

        def call() -> None:
            with torch.inference_mode(False):
                run()

        return Prepared(call, outputs, "NCHW, eager", case)


def training(torch: Any, case: Case, dtype: Any) -> tuple[Callable[[], None], Callable[[], tuple[np.ndarray, ...]]]:
    """A gradient by the one operator that autograd would call, or a whole step by autograd itself."""
    shape, aten = case.shape, torch.ops.aten
    if shape.op == "step":
        return _step(torch, case, dtype)
    input, weight, grad = (torch.from_numpy(a).to(dtype) for a in (case.input, case.weight, case.gradient))
    stride, padding = [shape.stride] * 2, [shape.padding] * 2
    if shape.op == "conv_transpose2d":

        def run() -> Any:
            return torch.nn.functional.conv_transpose2d(grad, weight, None, stride, padding)

    elif shape.op == "max_pool2d_backward":
        how = [shape.pool] * 2, [shape.pool_stride] * 2, [0, 0], [1, 1], False
        _, where = torch.nn.functional.max_pool2d(input, *how[:-1], return_indices=True)

        def run() -> Any:
            return aten.max_pool2d_with_indices_backward(grad, input, *how, where)

    else:
        mask = [shape.op == "grad_input", shape.op == "grad_weight", False]

        def run() -> Any:
            results = aten.convolution_backward(
                grad, input, weight, None, stride, padding, [1, 1], False, [0, 0], shape.groups, mask
            )
            return results[mask.index(True)]

    result: Any = None

    def call() -> None:
        nonlocal result
        result = run()

    return call, lambda: (result.numpy(),)


def _step(torch: Any, case: Case, dtype: Any) -> tuple[Callable[[], None], Callable[[], tuple[np.ndarray, ...]]]:
    nn, (filters, padding, features, normalised) = torch.nn, NETWORKS[case.shape.name.partition(".")[2]]
    layers, channels = [], case.shape.IC
    for each in filters:
        norm = [nn.BatchNorm2d(each)] if normalised else []
        layers += [nn.Conv2d(channels, each, 3, padding=padding), *norm, nn.ReLU()] if each else [nn.MaxPool2d(2)]
        channels = each or channels
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, case.shape.OC)).to(dtype)
    for parameter, value in zip(net.parameters(), case.parameters, strict=True):
        parameter.data.copy_(torch.from_numpy(value))
    images, labels = torch.from_numpy(case.input).to(dtype), torch.from_numpy(case.gradient)
    sgd = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def call() -> None:
        with torch.enable_grad():
            sgd.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            sgd.step()

    return call, lambda: (np.concatenate([p.grad.numpy().ravel() for p in net.parameters()]),)
