"""The only dispatch table: which kernels exist, which of them run here, and which one a call gets."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from fastconv import _threads
from fastconv._problem import shown

BACKENDS = ("cython", "numba", "reference")  # in order of preference
STEMS = ("pad", "im2col", "direct", "winograd", "pool", "elementwise")
ISAS = ("baseline", "x86_64_v3", "x86_64_v4")  # ascending; the Cython back end is compiled once for each

NO_SETTINGS: tuple[str | None, str | None] = (None, None)  # back end and ISA


class _Local(threading.local):
    settings: tuple[str | None, str | None] = NO_SETTINGS


_local = _Local()


class BackendUnavailable(RuntimeError):
    """A back end or ISA was asked for by name that cannot run here; the message says why.

    Examples
    --------
    >>> import fastconv
    >>> try:
    ...     settings = fastconv.config(isa="x86_64_v4")
    ... except fastconv.BackendUnavailable as error:
    ...     print(error)  # doctest: +SKIP
    backend 'cython', isa 'x86_64_v4': this CPU does not have x86_64_v4
    """


class Kernels:
    """Lazy table of one back end's kernels: ``k.<stem>.<kernel>``."""

    def __init__(self, backend: str, isa: str | None, package: str) -> None:
        self.backend, self.isa, self._package = backend, isa, package

    def __getattr__(self, stem: str) -> ModuleType:
        if stem not in STEMS:
            raise AttributeError(f"no kernel family {stem!r}: it must be one of {', '.join(STEMS)}")
        module = importlib.import_module(f"{self._package}.{stem}")
        setattr(self, stem, module)
        return module

    def workspace(self, stem: str, kernel: str, geometry: Any, n_workers: int) -> int:
        """Elements of workspace that a kernel needs; a module exports ``<kernel>_workspace`` where it is not 0."""
        size: Callable[[Any, int], int] | None = getattr(getattr(self, stem), f"{kernel}_workspace", None)
        return int(size(geometry, n_workers)) if size else 0

    def __repr__(self) -> str:
        return f"Kernels({self.backend!r}, isa={self.isa!r})"


# --------------------------------------------------------------------------------------- what runs here


def max_isa() -> str:
    """The cap set by FASTCONV_MAX_ISA; without it the highest level there is."""
    text = os.environ.get("FASTCONV_MAX_ISA", "").strip()
    if not text:
        return ISAS[-1]
    if text not in ISAS:
        raise ValueError(f"FASTCONV_MAX_ISA is {text!r}: it must be one of {', '.join(ISAS)}")
    return text


@cache
def _cython_refusal(isa: str) -> str | None:
    # The CPU is asked first: importing code for a higher level kills the process.
    try:
        from fastconv._cython import cpu
    except ImportError as error:
        return f"the compiled extension is not installed ({error})"
    if ISAS.index(isa) > cpu.level():
        return f"this CPU does not have {isa}"
    if importlib.util.find_spec(f"fastconv._cython.{isa}.{STEMS[0]}") is None:
        return f"{isa} was not built"
    return None


@cache
def _numba_refusal() -> str | None:
    return None if importlib.util.find_spec("numba") else "numba is not installed (pip install fastconv[numba])"


def refusal(backend: str, isa: str | None = None) -> str | None:
    """Why ``backend`` (at ``isa``) cannot run here; None if it can."""
    if backend == "cython":
        return _cython_refusal(isa or ISAS[0])
    if isa is not None:
        return f"the {backend} back end has no ISA levels"
    return _numba_refusal() if backend == "numba" else None


def built_isas() -> tuple[str, ...]:
    """ISA levels of the Cython back end that can run here, ascending, whatever the cap."""
    return tuple(isa for isa in ISAS if _cython_refusal(isa) is None)


def best_isa() -> str:
    """The level in use: the highest one that runs here and that FASTCONV_MAX_ISA allows."""
    return _best_up_to(max_isa())


@cache
def _best_up_to(cap: str) -> str:
    return next(isa for isa in reversed(built_isas()) if ISAS.index(isa) <= ISAS.index(cap))


def available_backends() -> tuple[str, ...]:
    """Back ends that run here, in order of preference.

    Returns
    -------
    tuple of str
        A subset of ``("cython", "numba", "reference")``; "reference" is always there.

    Examples
    --------
    >>> import fastconv
    >>> "reference" in fastconv.available_backends()
    True
    """
    return tuple(name for name in BACKENDS if refusal(name) is None)


def numba_warmup() -> ModuleType:
    """What compiles Numba's kernels by name."""
    return importlib.import_module("fastconv._numba._warmup")


# ------------------------------------------------------------------------------------- which one is used


@cache
def _table(backend: str, isa: str | None) -> Kernels:
    package = f"fastconv._{backend}" if isa is None else f"fastconv._{backend}.{isa}"
    return Kernels(backend, isa, package)


def kernels(backend: str, isa: str | None = None) -> Kernels:
    """The kernel table of a back end; for "cython", of one ISA (None: `best_isa`).

    Raises
    ------
    ValueError
        If there is no such back end or ISA.
    BackendUnavailable
        If it cannot run here; the message says why.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend {shown(backend)}: it must be 'auto' or one of {', '.join(map(repr, BACKENDS))}")
    if isa is not None and (not isinstance(isa, str) or isa not in ISAS):
        raise ValueError(f"isa {shown(isa)}: it must be one of {', '.join(map(repr, ISAS))}")
    reason = refusal(backend, isa)
    if reason:
        raise BackendUnavailable(f"backend {backend!r}{f', isa {isa!r}' if isa else ''}: {reason}")
    if backend == "cython" and isa is None:
        isa = best_isa()
    return _table(backend, isa)


@cache
def _automatic() -> str:
    """The preferred back end that runs here; one warning if that is the reference."""
    asked = os.environ.get("FASTCONV_BACKEND", "auto").strip() or "auto"
    if asked != "auto":
        if asked not in BACKENDS:
            raise ValueError(f"FASTCONV_BACKEND is {asked!r}: it must be 'auto' or one of {', '.join(BACKENDS)}")
        return asked
    chosen = available_backends()[0]
    if chosen == "reference":
        reasons = "; ".join(f"{name}: {refusal(name)}" for name in BACKENDS[:-1])
        warnings.warn(f"fastconv runs on its slow NumPy reference kernels ({reasons})", RuntimeWarning, stacklevel=2)
    return chosen


def resolve(backend: str = "auto") -> Kernels:
    """The kernels that a call with ``backend=`` gets in this Python thread."""
    own, isa = settings()
    if not isinstance(backend, str):
        return kernels(backend)  # which names what it must be
    if backend == "auto":
        backend = own or _automatic()
    return kernels(backend, isa if backend == "cython" else None)


def settings() -> tuple[str | None, str | None]:
    """This Python thread's (backend, isa), as `config` set them: part of every plan's key."""
    return _local.settings


class config:
    """Choose back end, ISA and thread count for this Python thread.

    Parameters
    ----------
    backend : {"auto", "cython", "numba", "reference"}, optional
        What ``backend="auto"`` means inside the block.
    isa : {"baseline", "x86_64_v3", "x86_64_v4"}, optional
        Level of the Cython back end.
    num_threads : int, optional
        Threads that a call may use.

    Raises
    ------
    ValueError, TypeError
        If a value is not one of those.
    BackendUnavailable
        If it cannot run here.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> x, w = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    >>> with fastconv.config(backend="reference", num_threads=1):
    ...     fastconv.conv2d(x, w)
    array([[[[9.]]]])
    """

    def __init__(self, *, backend: str | None = None, isa: str | None = None, num_threads: int | None = None) -> None:
        try:
            if backend is not None and not (isinstance(backend, str) and backend == "auto"):
                kernels(backend)
            if isa is not None:
                kernels("cython", isa)
        except ValueError as error:
            raise ValueError(f"config: {error}") from None
        self._backend, self._isa = backend, isa
        self._count = None if num_threads is None else _threads.check_count("config", num_threads)
        self._saved: list[tuple[str | None, str | None, int | None]] = []

    def __enter__(self) -> config:
        backend, isa = settings()
        count = _threads.swap_local(None)
        self._saved.append((backend, isa, count))
        _threads.swap_local(count if self._count is None else self._count)
        _local.settings = (
            {None: backend, "auto": None}.get(self._backend, self._backend), isa if self._isa is None else self._isa
        )  # fmt: skip
        return self

    def __exit__(self, *exc_info: object) -> None:
        *own, count = self._saved.pop()
        _local.settings = own[0], own[1]
        _threads.swap_local(count)


def describe() -> dict[str, Any]:
    """What `show_config` prints, as data."""
    info: dict[str, Any] = {"backends": {}, "isas": {}}
    for backend in BACKENDS:
        info["backends"][backend] = refusal(backend) or "available"
    for isa in ISAS:
        reason = _cython_refusal(isa)
        if reason:
            info["isas"][isa] = reason
        else:
            direct = _table("cython", isa).direct
            info["isas"][isa] = f"available, VL {direct.VL_FLOAT} float32 / {direct.VL_DOUBLE} float64"
    info["isa in use"] = best_isa() if built_isas() else "none"
    info["max ISA"] = max_isa()
    info["backend in use"] = resolve().backend
    if refusal("numba") is None:
        from fastconv._numba import _jit

        info["numba"] = _jit.describe()
    info["openmp"] = "not used: fastconv starts threads of its own"
    info["threads"] = _threads.get_num_threads()
    return info


def show_config() -> None:
    """Print back ends, ISA levels and vector lengths, and threads.

    Examples
    --------
    >>> import fastconv
    >>> fastconv.show_config()  # doctest: +ELLIPSIS
    fastconv ...
    """
    from fastconv import __version__

    info = describe()
    print(f"fastconv {__version__}")
    for name, state in info.pop("backends").items():
        print(f"  back end {name:<10} {state}")
    for name, state in info.pop("isas").items():
        print(f"  ISA {name:<15} {state}")
    for name, state in info.items():
        print(f"  {name:<19} {state}")
