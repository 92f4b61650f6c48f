"""OpenVINO's CPU plugin at float32, one stream.

It converts to its own layout inside the call. A second copy of the network, compiled with profiling, tells which share
of the nodes' time those Reorder nodes take; that share is taken off every measured time.
"""

from __future__ import annotations

import io
from typing import Any

from . import onnx_model
from .case import Case, Prepared, Unsupported

PROFILED_CALLS = 20


def load(threads: int) -> Any:
    import onnx  # noqa: F401  (the models are built with it)
    import openvino

    return Adapter(openvino, threads)


class Adapter:
    def __init__(self, openvino: Any, threads: int) -> None:
        self.openvino, self.core = openvino, openvino.Core()
        self.version = openvino.__version__
        self.settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process is pinned already
        }

    def _request(self, case: Case, **more: Any) -> Any:
        model = self.core.read_model(io.BytesIO(onnx_model.build(case).SerializeToString()))
        request = self.core.compile_model(model, "CPU", {**self.settings, **more}).create_infer_request()
        request.set_input_tensor(self.openvino.Tensor(case.input))
        return request

    def prepare(self, case: Case) -> Prepared:
        if case.shape.indices:
            raise Unsupported("its max-pool with indices is not compared")
        profiled = self._request(case, PERF_COUNT=True)
        for _ in range(PROFILED_CALLS):
            profiled.infer()
        nodes = [(node.node_type, node.real_time.total_seconds()) for node in profiled.profiling_info]
        total = sum(seconds for _, seconds in nodes)
        reorder = sum(seconds for kind, seconds in nodes if kind == "Reorder")
        share = 1.0 - reorder / total if total else 1.0
        request = self._request(case)
        note = "own layout" + (", packed" if case.shape.kernel else "")
        if share < 1.0:
            note += f", {100 * (1 - share):.0f} % for layout conversion taken off"
        return Prepared(
            request.infer, lambda: (request.get_output_tensor(0).data.copy(),), note, case, share=share
        )  # fmt: skip
