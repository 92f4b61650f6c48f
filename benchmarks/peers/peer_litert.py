"""XNNPACK, through ai-edge-litert (TensorFlow Lite's interpreter), NHWC throughout."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from . import tflite_model
from .case import Case, Prepared, Unsupported


def load(threads: int) -> Any:
    from ai_edge_litert import schema_py_generated
    from ai_edge_litert.interpreter import Interpreter

    return Adapter(Interpreter, schema_py_generated, threads)


class Adapter:
    def __init__(self, interpreter: Any, schema: Any, threads: int) -> None:
        self.interpreter, self.schema, self.threads = interpreter, schema, threads
        self.version = version("ai-edge-litert")

    def prepare(self, case: Case) -> Prepared:
        if case.shape.indices:
            raise Unsupported("its max-pool has no indices")
        model, solved = tflite_model.build(case, self.schema)
        net = self.interpreter(model_content=model, num_threads=self.threads)
        net.allocate_tensors()
        source, sink = net.get_input_details()[0]["index"], net.get_output_details()[0]["index"]
        net.set_tensor(source, np.ascontiguousarray(case.input.transpose(0, 2, 3, 1)))

        def outputs() -> tuple[np.ndarray, ...]:
            return (np.ascontiguousarray(net.get_tensor(sink).transpose(0, 3, 1, 2)),)

        return Prepared(net.invoke, outputs, "NHWC" + (", packed" if case.shape.kernel else ""), solved)
