"""Machine code of tasks in files, so that it is compiled once on a machine, and its loading, which needs no Numba.

A file's name holds a digest of all that the code depends on: the kernel's source and that of the files it may use, the
versions of Numba and llvmlite, how Python lays out its objects, the CPU and Numba's settings. Nothing else decides whether
a file is right, so an upgrade never meets old code. A file starts with the digest of its contents: a damaged one is
compiled again. Folders, in this order: NUMBA_CACHE_DIR alone if set; __pycache__ beside the kernels; FASTCONV_CACHE_DIR,
or else ``fastconv`` in XDG_CACHE_HOME or ~/.cache. Where none can be written the code lives as long as the process.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite import __version__ as llvmlite_version
from llvmlite import binding

from fastconv._numba._late import setting
from fastconv._numba._simd import VECTOR_BYTES

_HERE = Path(__file__).parent
_NO_MATTER = ("NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY")


def folders() -> list[Path]:
    """Where object files may lie, in the order of preference."""
    if chosen := setting("CACHE_DIR"):
        return [Path(chosen) / "fastconv"]
    home = os.environ.get("XDG_CACHE_HOME", "")
    default = Path(home if os.path.isabs(home) else os.path.expanduser("~/.cache"), "fastconv")
    user = Path(os.path.expanduser(os.environ.get("FASTCONV_CACHE_DIR") or default))
    beside = [_HERE / "__pycache__"]
    return [*beside, user] if user.is_absolute() or user != default else beside  # some users have no home


def writable_folder() -> Path | None:
    """The folder where `keep` writes; None if there is none."""
    for folder in folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


@cache
def numba_version() -> str:
    """Without importing it."""
    from importlib.metadata import version

    return version("numba")


@cache
def _common() -> bytes:
    """What every task depends on."""
    settings = sorted(
        f"{key}={value}" for key, value in os.environ.items() if key.startswith("NUMBA_") and key not in _NO_MATTER
    )
    features = binding.get_host_cpu_features().flatten()
    layout = object.__basicsize__, tuple.__basicsize__  # of Python's objects, whose fields machine code reads
    host = (
        numba_version(), llvmlite_version, binding.get_host_cpu_name(), features, VECTOR_BYTES, setting("BOUNDSCHECK"), layout,
    )  # fmt: skip
    digest = hashlib.sha256(repr((host, settings)).encode())
    for path in [*sorted(_HERE.glob("_*.py")), _HERE.parent / "_problem.py"]:
        digest.update(path.read_bytes())
    return digest.digest()


@cache
def _file_name(task: str, dtype: str, file: str) -> str:
    digest = hashlib.sha256(_common() + Path(file).read_bytes())
    return f"{task}-{dtype}-{digest.hexdigest()[:20]}.o"


def load(task: str, dtype: str, file: str) -> int | None:
    """Address of a task's entry as an earlier process compiled it; None if there is none."""
    for folder in folders():
        try:
            data = (folder / _file_name(task, dtype, file)).read_bytes()
        except OSError:
            continue
        if hashlib.sha256(data[32:]).digest() == data[:32]:
            return _address(data[32:], task, dtype)
    return None


def keep(code: bytes, task: str, dtype: str, file: str) -> int:
    """Write the object file ``code`` if any folder can be written; the address of the entry in it."""
    folder = writable_folder()
    if folder is not None:
        with suppress(OSError):  # a full disc
            handle, temporary = tempfile.mkstemp(dir=folder)
            with open(handle, "wb") as stream:
                stream.write(hashlib.sha256(code).digest() + code)
            os.replace(temporary, folder / _file_name(task, dtype, file))  # whole or not at all
    return _address(code, task, dtype)


_engines: list[Any] = []  # each holds one object file's code


def _address(code: bytes, task: str, dtype: str) -> int:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(f"{task}_{dtype}".replace(".", "_")))
