"""A layer as an ONNX model, for the libraries that read one."""

from __future__ import annotations

from typing import Any

from .case import Case

OPSET, IR_VERSION = 17, 8  # old enough for every reader


def build(case: Case) -> Any:
    """Model ``x`` -> ``y`` (and ``where``, the max-pool's indices)."""
    from onnx import TensorProto, helper, numpy_helper

    shape = case.shape
    nodes, weights = [], []
    current = "x"
    if shape.kernel:
        weights = [numpy_helper.from_array(case.weight, "weight"), numpy_helper.from_array(case.bias, "bias")]
        attributes = {
            "kernel_shape": [shape.kernel] * 2,
            "strides": [shape.stride] * 2,
            "pads": [shape.padding] * 4,
            "group": shape.groups,
        }
        nodes.append(helper.make_node("Conv", [current, "weight", "bias"], ["conv"], name="conv", **attributes))
        current = "maps" if shape.pool else "y"
        nodes.append(helper.make_node("Relu", ["conv"], [current], name="relu"))
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape.output_shape)]
    if shape.pool:
        outputs = ["y", "where"] if shape.indices else ["y"]
        attributes = {
            "kernel_shape": [shape.pool] * 2,
            "strides": [shape.pool_stride] * 2,
            "pads": [shape.pool_padding] * 4,
        }
        nodes.append(helper.make_node("MaxPool", [current], outputs, name="pool", **attributes))
        if shape.indices:
            results.append(helper.make_tensor_value_info("where", TensorProto.INT64, shape.output_shape))
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape.input_shape)], results, weights
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
