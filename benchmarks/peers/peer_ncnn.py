"""ncnn: the network as parameter text, weights from memory through a temporary file, all half precision off.

Its layers work on channels interleaved by 4, 8 or 16; the input is handed over in the form that is quickest, the output
taken as it comes, and both are converted outside the timed part.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .case import Case, Prepared, Unsupported, fastest

PACKINGS = (1, 4, 8, 16)


def load(threads: int) -> Any:
    import ncnn

    return Adapter(ncnn, threads)


class Adapter:
    def __init__(self, ncnn: Any, threads: int) -> None:
        self.ncnn, self.threads = ncnn, threads
        self.version = ncnn.__version__

    def _net(self, case: Case) -> Any:
        shape, ncnn = case.shape, self.ncnn
        net = ncnn.Net()
        net.opt.num_threads = self.threads
        net.opt.use_vulkan_compute = False
        for name in dir(net.opt):
            if name.startswith(("use_fp16", "use_bf16")):
                setattr(net.opt, name, False)
        layers = ["Input x 0 1 x"]
        if shape.kernel:
            kind = "Convolution" if shape.groups == 1 else "ConvolutionDepthWise"
            groups = "" if shape.groups == 1 else f" 7={shape.groups}"
            output = "maps" if shape.pool else "y"
            layers.append(
                f"{kind} conv 1 1 x {output} 0={shape.OC} 1={shape.kernel} 3={shape.stride} 4={shape.padding} "
                f"5=1 6={case.weight.size}{groups} 9=1"
            )
        if shape.pool:
            source = "maps" if shape.kernel else "x"
            layers.append(
                f"Pooling pool 1 1 {source} y 0=0 1={shape.pool} 2={shape.pool_stride} 3={shape.pool_padding} 5=1"
            )
        text = "\n".join(["7767517", f"{len(layers)} {len(layers)}", *layers, ""])
        if net.load_param_mem(text) != 0:
            raise Unsupported("its parser refuses the network")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "weights.bin")
            flag = np.zeros(1, np.int32).tobytes()  # what follows is float32
            path.write_bytes(flag + case.weight.tobytes() + case.bias.tobytes() if shape.kernel else b"")
            if net.load_model(str(path)) != 0:
                raise Unsupported("it refuses the weights")
        return net

    def prepare(self, case: Case) -> Prepared:
        if case.shape.indices:
            raise Unsupported("its max-pool has no indices")
        net = self._net(case)
        candidates = [self._with(case, net, packing) for packing in PACKINGS if case.shape.IC % packing == 0]
        return fastest(candidates)

    def _with(self, case: Case, net: Any, packing: int) -> Prepared:
        ncnn = self.ncnn
        plain = ncnn.Mat(case.input[0]).clone()
        fed = ncnn.convert_packing(plain, packing) if packing > 1 else plain
        result: Any = None

        def call() -> None:
            nonlocal result
            extractor = net.create_extractor()
            extractor.input("x", fed)
            result = extractor.extract("y", 1)[1]  # 1: leave it in its own packing

        def outputs() -> tuple[np.ndarray, ...]:
            return (np.array(ncnn.convert_packing(result, 1))[None],)

        note = f"channels by {packing}" + (", packed" if case.shape.kernel else "")
        return Prepared(call, outputs, note, case)
