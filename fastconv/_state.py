"""`save` and `load`: states in .safetensors or .npz files, written whole or not at all, read without running code."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from fastconv._arrays import as_array


def save(state: Any, path: Any) -> None:
    """Write a network's state, or any dict of arrays, to a file.

    The file is written beside its place and then renamed: whoever reads `path` finds the former file or the
    whole new one, even after a crash.

    Parameters
    ----------
    state : Layer or mapping of str to array
    path : str or path
        Ends in ".safetensors" (extra ``io``: ``pip install fastconv[io]``) or in ".npz".

    Raises
    ------
    ValueError
        If the path has another ending, or a name is empty, not a string, or one that the file could not give back.
    TypeError
        If `state` is neither layer nor mapping, or an entry holds no numbers.
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be written; what was at `path` is unchanged.

    See Also
    --------
    load

    Examples
    --------
    >>> import fastconv, tempfile
    >>> net = fastconv.Linear(3, 2, rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.save(net, f"{folder}/net.npz")
    ...     same = fastconv.Linear(3, 2)
    ...     _ = same.load_state_dict(fastconv.load(f"{folder}/net.npz"))
    >>> bool((same.weight == net.weight).all())
    True
    """
    encode, _ = _format("save", path)
    if hasattr(state, "state_dict"):
        state = state.state_dict()
    if not isinstance(state, Mapping):
        raise TypeError(f"save: state is a {type(state).__name__}: it must be a Layer or a mapping of names to arrays")
    arrays = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name:
            raise ValueError(f"save: name {name!r}: it must be a string that is not empty")
        if "\0" in name or not name.isascii() and name.encode(errors="replace").decode() != name:
            raise ValueError(f"save: name {name!r}: no file holds null characters or halves of characters")
        array = np.asarray(as_array("save", repr(name), value), order="C")
        if array.dtype.kind not in "fiub":
            raise TypeError(f"save: {name!r} has dtype {array.dtype}: it must hold real numbers")
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    _write(path, lambda file: encode(file, arrays))


def load(path: Any) -> dict[str, np.ndarray]:
    """Read what `save` wrote, or any other .safetensors or .npz file of arrays.

    Nothing in the file is executed: there is no pickle.

    Parameters
    ----------
    path : str or path
        Ends in ".safetensors" (extra ``io``) or ".npz".

    Returns
    -------
    dict of str to array
        For ``Layer.load_state_dict``.

    Raises
    ------
    ValueError
        If the file is damaged or of another kind, or the path has another ending; the message names the file.
    FileNotFoundError, OSError
        If it cannot be read.
    ImportError
        If safetensors is not installed.

    See Also
    --------
    save

    Examples
    --------
    >>> import fastconv, numpy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.save({"a": numpy.arange(3)}, f"{folder}/a.npz")
    ...     fastconv.load(f"{folder}/a.npz")
    {'a': array([0, 1, 2])}
    """
    return read("load", path)


def read(function: str, path: Any) -> dict[str, np.ndarray]:
    """`load`, for any function that reads such a file."""
    _, decode = _format(function, path)
    with open(path, "rb") as file:
        data = file.read()
    try:
        return decode(data)
    except _Damage as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        name = os.fsdecode(path)
        ending = os.path.splitext(name)[1]
        raise ValueError(f"{function}: {name}: damaged, or no {ending} file that NumPy can hold ({reason})") from None


# What the readers raise for broken files, beside safetensors' own error (a ValueError is made of it below).
_Damage = (ValueError, KeyError, TypeError, EOFError, MemoryError, OverflowError, NotImplementedError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip

Encode = Callable[[BinaryIO, dict[str, np.ndarray]], None]
Decode = Callable[[bytes], dict[str, np.ndarray]]


def path_name(function: str, path: Any, name: str = "path") -> str:
    """``path`` as a string."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{function}: {name} is a {type(path).__name__}: it must be a string or a path") from None
    if "\0" in text:
        raise ValueError(f"{function}: {name} {text!r}: no path can hold a null character")
    return text


def _format(function: str, path: Any) -> tuple[Encode, Decode]:
    name = path_name(function, path)
    ending = os.path.splitext(name)[1].lower()
    if ending == ".npz":
        return _encode_npz, _decode_npz
    if ending != ".safetensors":
        raise ValueError(f"{function}: path {name!r}: it must end in .safetensors or .npz")
    try:
        import safetensors.numpy as safetensors
    except ImportError:
        raise ImportError(f"{function}: {name}: needs safetensors: pip install 'fastconv[io]', or use .npz") from None
    from safetensors import SafetensorError

    def encode(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
        if "__metadata__" in arrays:  # it would be written, and the file never read again
            raise ValueError("save: name '__metadata__': .safetensors files use it for themselves")
        try:
            file.write(safetensors.save(arrays))
        except SafetensorError as error:
            raise ValueError(f"save: {name}: {error}") from None

    def decode(data: bytes) -> dict[str, np.ndarray]:
        try:
            found = safetensors.load(data)
        except SafetensorError as error:
            raise ValueError(str(error)) from None
        except KeyError as error:  # bfloat16 and the like
            raise ValueError(f"it holds numbers of type {error.args[0]}") from None
        return {key: np.array(value) for key, value in found.items()}  # their arrays are read-only

    return encode, decode


def _encode_npz(file: BinaryIO, arrays: dict[str, np.ndarray]) -> None:
    """What numpy.savez writes, but for every name, and the same bytes for the same arrays (no clock in them)."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _decode_npz(data: bytes) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if not name.endswith(".npy"):
                raise ValueError(f"it holds {name!r}, which is no array")
            member = io.BytesIO(archive.read(name))  # checks the sum of its bytes
            arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
    return arrays


def write_bytes(path: Any, data: bytes) -> None:
    """Write a whole file or leave the former one: for tables and pictures."""

    def fill(file: BinaryIO) -> None:
        file.write(data)

    _write(path, fill)


def _write(path: Any, fill: Callable[[BinaryIO], None]) -> None:
    """Make the file at ``path`` what ``fill`` writes, or leave it as it was."""
    place = os.path.realpath(os.fsdecode(path))  # a link stays a link
    folder, name = os.path.split(place)
    partial = os.path.join(folder, f".{name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, place)
        _sync_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        if isinstance(error, OSError):
            message = f"save: {error.strerror or error}; nothing was changed"
            raise type(error)(error.errno, message, os.fsdecode(path)) from None
        raise


def _sync_folder(folder: str) -> None:
    """Let the new name survive a power cut, where folders can be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
