"""What users pass becomes what kernels read: C-contiguous, aligned, native float32 or float64 arrays.

A plain array that is all of this already is passed on as it is; anything else is copied, never changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

FLOAT32, FLOAT64, INT64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
DTYPES = {"float32": FLOAT32, "float64": FLOAT64, "int64": INT64}
NO_BIAS: dict[str, np.ndarray] = {"float32": np.empty(0, FLOAT32), "float64": np.empty(0, FLOAT64)}
CPU_DEVICES = (1, 3)  # DLPack: kDLCPU, kDLCUDAHost


def as_ndarray(function: str, name: str, value: Any) -> np.ndarray:
    """``value`` as an ndarray of any dtype; accepts ``__array__`` and a CPU ``__dlpack__``, else TypeError."""
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"{function}: {name} is a masked array: pass its filled() values")
        return np.asarray(value)
    kind = type(value).__name__
    if hasattr(value, "__array__"):
        convert: Callable[[Any], np.ndarray] = np.asarray
    elif hasattr(value, "__dlpack__"):
        device = value.__dlpack_device__()[0] if hasattr(value, "__dlpack_device__") else CPU_DEVICES[0]
        if device not in CPU_DEVICES:
            raise TypeError(f"{function}: {name} is a {kind} on a device: move it to the CPU first")
        convert = np.from_dlpack
    else:
        raise TypeError(f"{function}: {name} is a {kind}: it must be a NumPy array or have __array__ or __dlpack__")
    return as_array(function, name, value, convert)


def as_array(function: str, name: str, value: Any, convert: Callable[[Any], np.ndarray] = np.asarray) -> np.ndarray:
    """``value``, a list too, as an array of any dtype; TypeError if that fails, as it does for ragged lists."""
    try:
        return convert(value)
    except Exception as error:  # often of their own code: a tensor that needs a gradient, say
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = type(value).__name__
        raise TypeError(f"{function}: {name} is a {kind} that cannot become an array: {reason}") from None


def as_floats(function: str, name: str, value: Any) -> np.ndarray:
    """``value`` as a float32 or float64 array of any layout (`ready` copies, later); TypeError for any other dtype."""
    if type(value) is np.ndarray and (value.dtype is FLOAT32 or value.dtype is FLOAT64):
        return value
    array = as_ndarray(function, name, value)
    if array.dtype.newbyteorder("=") not in (FLOAT32, FLOAT64):
        hint = "; fastconv.from_images turns uint8 photographs into floats" if array.dtype == np.uint8 else ""
        raise TypeError(f"{function}: {name} has dtype {array.dtype}: it must be float32 or float64{hint}")
    return array


def ready(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``array`` as kernels read it: C-contiguous, aligned, native, of ``shape``; as it is if it is all that."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned and array.dtype.isnative):
        array = contiguous(array, array.dtype.newbyteorder("="))
    return array if array.ndim == len(shape) else array.reshape(shape)


def contiguous(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """``array`` as it is if C-contiguous, aligned and of ``dtype``, else a copy that is (0-d arrays stay 0-d)."""
    if array.ndim == 0:
        return array.astype(dtype)
    return np.require(array, dtype=dtype, requirements=["C", "A"])


def as_indices(function: str, name: str, value: Any) -> np.ndarray:
    """``value`` as an array of integers of any layout; TypeError for any other kind."""
    array = as_ndarray(function, name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {name} has dtype {array.dtype}: it must be int64")
    return array


def ready_indices(
    function: str, name: str, array: np.ndarray, shape: tuple[int, ...], plane: tuple[int, int]
) -> np.ndarray:
    """``array`` as C-contiguous int64 of ``shape``; ValueError unless every index lies in ``plane``."""
    check_index_range(function, name, array, plane)
    return contiguous(array, INT64).reshape(shape)


def check_index_range(function: str, name: str, indices: np.ndarray, plane: tuple[int, int]) -> None:
    """ValueError unless every index lies in a plane of ``plane`` cells."""
    cells = plane[0] * plane[1]
    if indices.size and indices.dtype == INT64 and indices.view(np.uint64).max() < cells:
        return  # without its sign a negative one is huge: one pass tells
    if indices.size and (indices.min() < 0 or indices.max() >= cells):
        wrong = indices.min() if indices.min() < 0 else indices.max()
        raise ValueError(f"{function}: {name} hold {wrong}: they must lie in 0 .. {cells - 1}, the plane {plane}")


def same_dtype(function: str, **arrays: np.ndarray | None) -> str:
    """The one dtype of all ``arrays``; TypeError naming those that differ."""
    given = [(name, array.dtype.newbyteorder("=")) for name, array in arrays.items() if array is not None]
    first_name, first = given[0]
    for name, dtype in given[1:]:
        if dtype != first:
            raise TypeError(f"{function}: {first_name} is {first} and {name} is {dtype}: they must have one dtype")
    return "float32" if first == FLOAT32 else "float64"  # .name is found out anew each time, by a microsecond of Python


def check_out(
    function: str,
    out: Any,
    shape: tuple[int, ...],
    dtype: str,
    inputs: tuple[np.ndarray | None, ...],
    name: str = "out",
) -> bool:
    """Raise unless ``out`` can take the result: an ndarray of ``shape`` and ``dtype`` apart from all ``inputs``.

    Whether a kernel can write it itself; else the result is to be copied into it.
    """
    if type(out) is not np.ndarray and (not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray)):
        raise TypeError(f"{function}: {name} is a {type(out).__name__}: it must be a NumPy array")
    if out.dtype is not DTYPES[dtype] and out.dtype != DTYPES[dtype]:
        raise TypeError(f"{function}: {name} has dtype {out.dtype}: it must be {dtype}")
    if out.shape != shape:
        raise ValueError(f"{function}: {name} has shape {out.shape}: it must be {shape}")
    flags = out.flags
    if not flags.writeable:
        raise ValueError(f"{function}: {name} is read-only: it must be writeable")
    owner = flags.owndata  # of two arrays that own their memory nothing need be asked
    for array in inputs:
        if array is not None and not (owner and array is not out and array.flags.owndata) and _overlap(out, array):
            raise ValueError(f"{function}: {name} overlaps an input: it must have memory of its own")
    return flags.carray and out.dtype.isnative


def _overlap(a: np.ndarray, b: np.ndarray) -> bool:
    if not np.may_share_memory(a, b):  # by their bounds
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True  # their bounds overlap and the exact question is too hard: refuse
