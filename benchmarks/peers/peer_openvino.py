"""OpenVINO's CPU plugin at float32, one stream.

It converts to its own layout inside the call. A second copy of the network, compiled with profiling, tells which share
of the nodes' time those Reorder nodes take; that share is taken off every measured time.
"""

from __future__ import annotations

import io
from typing import Any

from . import onnx_model
from .case import Case, Prepared, Unsupported

UNCOUNTED_CALLS, COUNTED_CALLS = 20, 60  # the first ones find cold caches and fresh memory, conversions above all


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
        share = 1.0 - _reordering(self._request(case, PERF_COUNT=True))
        request = self._request(case)
        note = "own layout" + (", packed" if case.shape.kernel else "")
        if share < 1.0:
            note += f", {100 * (1 - share):.0f} % for layout conversion taken off"
        return Prepared(
            request.infer, lambda: (request.get_output_tensor(0).data.copy(),), note, case, share=share
        )  # fmt: skip


def _reordering(profiled: Any) -> float:
    """The share of Reorder nodes in the time of the counted calls."""

    def seconds_after(calls: int) -> tuple[float, float]:
        for _ in range(calls):
            profiled.infer()
        nodes = [(node.node_type, node.real_time.total_seconds()) for node in profiled.profiling_info]
        return sum(seconds for _, seconds in nodes), sum(seconds for kind, seconds in nodes if kind == "Reorder")

    # OpenVINO gives means over all calls so far
    every = UNCOUNTED_CALLS + COUNTED_CALLS
    before, after = seconds_after(UNCOUNTED_CALLS), seconds_after(COUNTED_CALLS)
    total, reorder = (every * after[i] - UNCOUNTED_CALLS * before[i] for i in range(2))
    return max(reorder / total, 0.0) if total > 0 else 0.0
