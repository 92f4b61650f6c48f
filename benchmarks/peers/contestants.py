"""Who takes part. A new library: one adapter file ``peer_<name>.py`` and one row here.

An adapter has ``load(threads, **options)``; it imports the library (ImportError: the contestant is left out, and the
report says so) and gives an object with ``version`` (text) and ``prepare(case)`` -> `case.Prepared`; one that can
train has ``prepare_training(case)`` too, for shapes with an ``op``.
"""

from __future__ import annotations

from typing import Any

OURS = ("fastconv-cython", "fastconv-numba", "fastconv-cython-unpacked", "fastconv-numba-unpacked")
MACHINE = ("FMA peak", "memcpy")

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fastconv-cython": ("peer_fastconv", {"backend": "cython", "packed": True}),
    "fastconv-numba": ("peer_fastconv", {"backend": "numba", "packed": True}),
    "fastconv-cython-unpacked": ("peer_fastconv", {"backend": "cython", "packed": False}),
    "fastconv-numba-unpacked": ("peer_fastconv", {"backend": "numba", "packed": False}),
    "torch": ("peer_torch", {"packed": False}),
    "torch-packed": ("peer_torch", {"packed": True}),
    "onnxruntime": ("peer_onnxruntime", {}),
    "openvino": ("peer_openvino", {}),
    "xnnpack": ("peer_litert", {}),
    "ncnn": ("peer_ncnn", {}),
    "opencv": ("peer_opencv", {}),
    "FMA peak": ("machine_fma", {}),
    "memcpy": ("machine_memcpy", {}),
}
