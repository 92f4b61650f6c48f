"""ONNX Runtime, CPU provider, all graph optimisations, inputs and outputs bound beforehand.

Its optimiser runs convolutions in a blocked layout (NCHWc) between a ReorderInput and a ReorderOutput node. Those are
cut off and run outside the timed part, so that it too is timed in the layout it likes best.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import onnx_model
from .case import Case, Prepared

BLOCKED = "com.microsoft.nchwc"


def load(threads: int) -> Any:
    import onnx  # noqa: F401  (the models are built with it)
    import onnxruntime

    return Adapter(onnxruntime, threads)


class Adapter:
    def __init__(self, ort: Any, threads: int) -> None:
        self.ort, self.threads = ort, threads
        self.version = ort.__version__

    def _session(self, model: Any, save_to: str = "", optimise: bool = True) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        levels = self.ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        if save_to:
            options.optimized_model_filepath = save_to
        return self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def prepare(self, case: Case) -> Prepared:
        import onnx

        model = onnx_model.build(case)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder, "optimised.onnx"))
            session = self._session(model, save_to=path)
            optimised = onnx.load(path)
        before, after = _cut(optimised)
        fed, note = case.input, "NCHW"
        if before or after:
            session = self._session(optimised, optimise=False)
            note = "NCHWc"
        if before:
            fed = self._session(before, optimise=False).run(None, {"x": case.input})[0]
        binding = session.io_binding()
        binding.bind_ortvalue_input(session.get_inputs()[0].name, self.ort.OrtValue.ortvalue_from_numpy(fed))
        results = session.run(None, {session.get_inputs()[0].name: fed})
        for output, result in zip(session.get_outputs(), results, strict=True):
            binding.bind_ortvalue_output(output.name, self.ort.OrtValue.ortvalue_from_numpy(np.zeros_like(result)))

        def outputs() -> tuple[np.ndarray, ...]:
            arrays = tuple(value.numpy() for value in binding.get_outputs())
            if after:
                arrays = (self._session(after, optimise=False).run(None, {after.graph.input[0].name: arrays[0]})[0],)
            if case.shape.indices:  # they count through all planes
                plane = case.shape.conv_extents[0] * case.shape.conv_extents[1]
                arrays = (arrays[0], arrays[1] % plane)
            return arrays

        if case.shape.kernel:
            note += ", packed"
        return Prepared(lambda: session.run_with_iobinding(binding), outputs, note, case)


def _cut(model: Any) -> tuple[Any, Any]:
    """Take the reorder nodes at both ends off ``model``; they come back as models, None where there is none."""
    import onnx
    from onnx import helper

    graph = model.graph

    def alone(node: Any, input: Any, output: Any) -> Any:
        lone = helper.make_graph([node], "reorder", [input], [output])
        return helper.make_model(lone, opset_imports=model.opset_import, ir_version=model.ir_version)

    def blocked(name: str) -> Any:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, "channels", "height", "width"])

    before = after = None
    for node in list(graph.node):
        if node.domain != BLOCKED:
            continue
        if node.op_type == "ReorderInput" and node.input[0] == graph.input[0].name:
            before = alone(node, graph.input[0], blocked(node.output[0]))
            graph.input[0].CopyFrom(blocked(node.output[0]))
            graph.node.remove(node)
        elif node.op_type == "ReorderOutput" and node.output[0] == graph.output[0].name:
            after = alone(node, blocked(node.input[0]), graph.output[0])
            graph.output[0].CopyFrom(blocked(node.input[0]))
            graph.node.remove(node)
    return before, after
