"""A contestant's process: pinned, its thread pool alone in it, measuring only when it is told to."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._timing import gather, measure, spread
from . import case as case_module
from .case import Case, Prepared, Unsupported
from .contestants import CONTESTANTS, MACHINE

THREAD_VARIABLES = ("OMP", "FASTCONV", "NUMBA", "OPENBLAS", "MKL")
PATIENCE = 300.0  # seconds for one answer: Numba may have to compile


class Failed(Exception):
    """The contestant could not do what was asked; the text says why."""


def _serve(pipe: Any, name: str | None, threads: int, cpus: list[int]) -> None:
    gather(cpus)
    tracing = bool(os.environ.get("FASTCONV_PEERS_TRACE"))
    if not tracing:  # libraries greet on stderr
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    adapter: Any = None
    prepared: Prepared | None = None
    while True:
        try:
            command, argument = pipe.recv()
        except EOFError:
            return
        try:
            answer: Any
            if command == "load":
                file, options = CONTESTANTS[str(name)]
                adapter = importlib.import_module(f"{__package__}.{file}").load(threads, **options)
                answer = adapter.version
            elif command == "prepare":
                prepared = None
                gather(cpus)
                if argument.shape.op and name not in MACHINE and not hasattr(adapter, "prepare_training"):
                    raise Unsupported("no gradients")
                prepare = adapter.prepare_training if argument.shape.op and name not in MACHINE else adapter.prepare
                prepared = prepare(argument)
                prepared.call()
                spread(prepared.call, cpus)
                outputs = tuple(np.array(array) for array in prepared.outputs())
                answer = (outputs, prepared.note, prepared.case, prepared.work)
            elif command == "run":
                assert prepared is not None
                answer = [taken * prepared.share for taken in measure(prepared.call, argument)]
            else:
                answer = case_module.expected(argument)
            pipe.send((True, answer))
        except (Unsupported, ImportError) as reason:
            pipe.send((False, str(reason)))
        except Exception as failure:
            pipe.send((False, f"{type(failure).__name__}: {failure}".splitlines()[0]))
            if tracing:
                traceback.print_exc()


@contextmanager
def _environment(threads: int):
    """Thread counts for libraries that read them when they are loaded, in the new process alone."""
    names = [f"{prefix}_NUM_THREADS" for prefix in THREAD_VARIABLES]
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Worker:
    """The parent's end of one contestant; ``name`` None computes expected results."""

    def __init__(self, name: str | None, threads: int, cpus: list[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, threads, cpus), daemon=True)
        with _environment(threads):
            self._process.start()
        theirs.close()

    def ask(self, command: str, argument: Any = None) -> Any:
        """One command and its answer; Failed if the contestant refuses, dies or stays silent."""
        try:
            self._pipe.send((command, argument))
            if not self._pipe.poll(PATIENCE):
                self._process.kill()
                raise Failed(f"no answer to {command!r} in {PATIENCE:.0f} s")
            done, answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(1.0)
            raise Failed(f"its process died (exit code {self._process.exitcode})") from None
        if not done:
            raise Failed(answer)
        return answer

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def prepare(self, case: Case) -> Any:
        return self.ask("prepare", case)

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5.0)
        if self._process.is_alive():
            self._process.kill()
