"""OpenCV's dnn module, from an ONNX model, NCHW."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import onnx_model
from .case import Case, Prepared, Unsupported


def load(threads: int) -> Any:
    import cv2
    import onnx  # noqa: F401  (the models are built with it)

    cv2.setNumThreads(threads)
    return Adapter(cv2)


class Adapter:
    def __init__(self, cv2: Any) -> None:
        self.cv2, self.version = cv2, cv2.__version__

    def prepare(self, case: Case) -> Prepared:
        if case.shape.indices:
            raise Unsupported("its max-pool with indices is not compared")
        model = np.frombuffer(onnx_model.build(case).SerializeToString(), np.uint8)
        net = self.cv2.dnn.readNetFromONNX(model)
        net.setInput(case.input)
        result: Any = None

        def call() -> None:
            nonlocal result
            result = net.forward()

        return Prepared(call, lambda: (result,), "NCHW" + (", packed" if case.shape.kernel else ""), case)
