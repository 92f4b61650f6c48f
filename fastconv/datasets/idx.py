"""IDX, the format of MNIST's files: two zeros, type, number of axes, extents, then the numbers, all big-endian."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from typing import Any

import numpy as np

from fastconv._problem import shown
from fastconv._state import path_name

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = b"\x1f\x8b"


def read_idx(path: Any) -> np.ndarray:
    """The array in an IDX file, packed by gzip or not.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    array
        Of the file's shape and type, in the machine's byte order.

    Raises
    ------
    TypeError, ValueError
        If `path` is none, or the file is damaged or of another kind; the message names it.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import fastconv, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "labels-idx1-ubyte")
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     fastconv.datasets.read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    name = path_name("read_idx", path)
    with open(path, "rb") as file:
        data = file.read()
    if data[:2] == GZIP:
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"read_idx: {name}: damaged gzip file ({error})") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in TYPES:
        raise ValueError(f"read_idx: {name}: it starts with {data[:4].hex(' ')}: it is no IDX file")
    dtype, ndim = np.dtype(TYPES[data[2]]), data[3]
    start = 4 + 4 * ndim
    if len(data) < start:
        raise ValueError(f"read_idx: {name}: it ends within its header")
    shape = struct.unpack(f">{ndim}I", data[4:start])
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise ValueError(
            f"read_idx: {name}: it has {len(data)} bytes: an array of shape {shown(shape)} needs {shown(wanted)}"
        )
    try:
        values = np.frombuffer(data, dtype, offset=start).reshape(shape)
    except ValueError as error:  # more axes than NumPy has, or an extent of 0 beside others that overflow
        raise ValueError(f"read_idx: {name}: no array has shape {shown(shape)} ({error})") from None
    return values.astype(dtype.newbyteorder("="))
