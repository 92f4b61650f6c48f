"""Names that stand for what needs Numba, until a kernel is compiled: a process that finds its kernels compiled by an
earlier one never imports Numba, which costs more than everything else up to the first result.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastconv._threads import Lock


def setting(name: str) -> str:
    """Numba's setting NUMBA_<name> as text, as Numba reads it; "" if unset."""
    if "numba" in sys.modules or Path(".numba_config.yaml").is_file():
        value = getattr(importlib.import_module("numba.core.config"), name)
        return "" if value is None else str(int(value) if isinstance(value, bool) else value)
    return os.environ.get(f"NUMBA_{name}", "")


PLAIN_PYTHON = setting("DISABLE_JIT") not in ("", "0")  # NUMBA_DISABLE_JIT=1: nothing is compiled, nothing is late


class Module:
    """A module that is imported when one of its names is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


class Late:
    """What ``make`` will give, made once, when kernels are compiled."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def made(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


def made(value: Any) -> Any:
    """``value``, which may be late."""
    return value.made() if isinstance(value, Late) else value


def compiler() -> Any:
    """The module that imports Numba."""
    return importlib.import_module("fastconv._numba._compile")


def helper(function: Any) -> Any:
    """A small function that tasks call."""
    return function if PLAIN_PYTHON else Late(lambda: compiler().jit(function))


shared: list[Callable[..., Any]] = []  # functions that Numba is still to be told of
lock = Lock()  # around compilation


def make_all() -> None:
    """Put what they stand for in the place of all late names of this package's modules."""
    from numba.extending import register_jitable

    while shared:
        register_jitable(**compiler().OPTIONS)(shared.pop())
    package = __name__.rpartition(".")[0] + "."
    for module in [module for name, module in sys.modules.items() if name.startswith(package)]:
        for name, value in list(vars(module).items()):
            if isinstance(value, Late):
                setattr(module, name, value.made())
