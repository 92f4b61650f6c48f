"""A layer as a .tflite model, NHWC, built with the schema classes that ai-edge-litert ships."""

from __future__ import annotations

from typing import Any

import numpy as np

from .case import Case, Unsupported

SAME, VALID = 0, 1  # TFLite's padding rules; it has no padding by numbers
RELU = 1


def same_pads(extent: int, kernel: int, stride: int) -> tuple[int, int, int]:
    """Output extent and the two pads of TFLite's SAME rule."""
    output = -(-extent // stride)
    total = max((output - 1) * stride + kernel - extent, 0)
    return output, total // 2, total - total // 2


class Builder:
    """Tensors, buffers and operators of one graph."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers = [schema.BufferT()]
        self.codes: list[Any] = []

    def tensor(self, name: str, extents: tuple[int, ...], values: np.ndarray | None = None) -> int:
        schema = self.schema
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(extents), 0
        tensor.type = schema.TensorType.FLOAT32
        if values is not None:
            tensor.type = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            self.buffers.append(buffer)
            tensor.buffer = len(self.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, kind: str, inputs: list[int], output: int, **options: Any) -> None:
        """Operator such as "CONV_2D"; ``options`` are the fields of its options table, ``table`` that table's name."""
        schema = self.schema
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        self.codes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = len(self.codes) - 1, inputs, [output]
        name = options.pop("table")
        table = getattr(schema, f"{name}T")()
        for field, value in options.items():
            assert hasattr(table, field), field
            setattr(table, field, value)
        operator.builtinOptionsType, operator.builtinOptions = getattr(schema.BuiltinOptions, name), table
        self.graph.operators.append(operator)

    def finish(self, input: int, output: int) -> bytes:
        import flatbuffers

        self.graph.inputs, self.graph.outputs = [input], [output]
        model = self.schema.ModelT()
        model.version, model.description = 3, b"layer"
        model.operatorCodes, model.subgraphs, model.buffers = self.codes, [self.graph], self.buffers
        writer = flatbuffers.Builder(1 << 16)
        writer.Finish(model.Pack(writer), b"TFL3")
        return bytes(writer.Output())


def build(case: Case, schema: Any) -> tuple[bytes, Case]:
    """The model, and the case that it really solves: padded pools follow TFLite's SAME rule."""
    shape = case.shape
    builder = Builder(schema)
    extents: tuple[int, ...] = (1, shape.IH, shape.IW, shape.IC)
    first = current = builder.tensor("x", extents)
    if shape.kernel:
        padding = SAME
        OH, OW = shape.conv_extents
        same = [same_pads(extent, shape.kernel, shape.stride) for extent in (shape.IH, shape.IW)]
        if any(pads != (extent, shape.padding, shape.padding) for pads, extent in zip(same, (OH, OW), strict=True)):
            padding = VALID
            if shape.padding:  # XNNPACK merges this operator into the convolution
                p = shape.padding
                pads = builder.tensor("pads", (4, 2), np.array([[0, 0], [p, p], [p, p], [0, 0]], np.int32))
                padded = builder.tensor("padded", (1, shape.IH + 2 * p, shape.IW + 2 * p, shape.IC))
                builder.operator("PAD", [current, pads], padded, table="PadOptions")
                current = padded
        options = {"padding": padding, "strideH": shape.stride, "strideW": shape.stride}
        options |= {"dilationHFactor": 1, "dilationWFactor": 1, "fusedActivationFunction": RELU}
        if shape.groups == 1:
            kind, options["table"] = "CONV_2D", "Conv2DOptions"
            weight = case.weight.transpose(0, 2, 3, 1)  # OHWI
        elif shape.groups == shape.IC == shape.OC:
            kind, options["table"], options["depthMultiplier"] = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", 1
            weight = case.weight.transpose(1, 2, 3, 0)  # 1HWC
        else:
            raise Unsupported("grouped convolution")
        filters = builder.tensor("weight", weight.shape, np.ascontiguousarray(weight))
        bias = builder.tensor("bias", case.bias.shape, case.bias)
        extents = (1, OH, OW, shape.OC)
        maps = builder.tensor("maps", extents)
        builder.operator(kind, [current, filters, bias], maps, **options)
        current = maps
    if shape.pool:
        padding = VALID
        if shape.pool_padding:
            padding = SAME
            vertical, horizontal = (same_pads(extent, shape.pool, shape.pool_stride) for extent in extents[1:3])
            if (vertical[0], horizontal[0]) != shape.output_shape[2:]:
                raise Unsupported("its SAME rule gives another number of windows")
            case = case.with_pool_pads(*vertical[1:], *horizontal[1:])
        pooled = builder.tensor("y", (1, *shape.output_shape[2:], shape.OC))
        builder.operator(
            "MAX_POOL_2D", [current], pooled, table="Pool2DOptions", padding=padding, strideH=shape.pool_stride,
            strideW=shape.pool_stride, filterHeight=shape.pool, filterWidth=shape.pool,
        )  # fmt: skip
        current = pooled
    return builder.finish(first, current), case
