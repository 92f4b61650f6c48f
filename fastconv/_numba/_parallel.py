"""Several threads for a task, the twin of src_cython/team.h. A team is the caller's thread and helpers of ours, which machine
code leads through the tasks of a job; it needs neither the GIL nor Numba's threading layers, whose import would cost more
than a first call may take.

A job is open while tasks are left. The caller writes it down, opens the gate and takes tasks as everyone does: one that
nobody took, of as many parts in turns as there are threads, or such a part whole. Neighbouring tasks write side by side,
where cores would take lines and what they fetch ahead from each other; so those that run at once lie a part apart. A
helper enters at the gate, one for each place, and whoever finds no task left shuts it and leaves.
The caller waits for those inside, never for one that has not come: on a busy machine it does the work of those by itself.
Who waits spins for a while, as the next job often follows at once, and then sleeps: a helper on the lock WAKE, the caller
on DONE. Several Python threads lead a team each. A fork has no helpers, so no teams.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from fastconv import _threads
from fastconv._numba import _late, _store
from fastconv._numba._simd import cgutils, extending, ir, types

# Bytes from a team's address to its words. What threads change while others read it has a cache line of its own.
GATE, COUNTER = 0, 64
ENTRY, TABLE, N_TASKS, N_WORKERS = 128, 136, 144, 152  # the job
AT_ONCE = 160  # tasks that a thread takes
SPINS = 168  # how often who waits looks before sleeping
SLEEPERS, WAKING = 192, 200  # helpers asleep; 1 while one of them is being woken
CPUS, ACQUIRE, RELEASE, WAKE, DONE = 256, 264, 272, 280, 288  # set once: of this process, C functions, locks
_N_WORDS = 40

# Pauses, of 10 to 140 cycles each by kind of CPU: as long as what lies between two layers of a network takes in NumPy
_SPINS = 30000

_STACK = 1 << 20  # bytes of a helper's, at least; tiles of Winograd take 128 KB

# The gate: places still free, above them who is inside, above that a bit: the caller sleeps. -1: helpers go home.
PLACES, INSIDE, ASLEEP = (1 << 16) - 1, 1 << 16, 1 << 32

# ------------------------------------------------------------------------------------------------------- machine code


def _intrinsic(function: Callable[..., Any]) -> Any:
    return function if _late.PLAIN_PYTHON else _late.Late(lambda: extending.intrinsic(function))


def _word(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@_intrinsic
def read(typingctx, address):
    """What stands at an address now."""

    def codegen(context, builder, signature, arguments):
        return builder.load_atomic(_word(builder, arguments[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@_intrinsic
def write(typingctx, address, value):
    def codegen(context, builder, signature, arguments):
        builder.store_atomic(arguments[1], _word(builder, arguments[0]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@_intrinsic
def add(typingctx, address, value):
    """Add to what stands at an address; what stood there before."""

    def codegen(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _word(builder, arguments[0]), arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@_intrinsic
def swap(typingctx, address, old, new):
    """What stood at an address; if that was ``old``, ``new`` stands there now."""

    def codegen(context, builder, signature, arguments):
        at = _word(builder, arguments[0])
        return builder.extract_value(builder.cmpxchg(at, arguments[1], arguments[2], "seq_cst", "seq_cst"), 0)

    return types.int64(types.int64, types.int64, types.int64), codegen


@_intrinsic
def call(typingctx, function, a, b, c, d):
    """The C function at an address; words beyond those that it takes do no harm."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 4)
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.none(*[types.int64] * 5), codegen


@_intrinsic
def pause(typingctx):
    """Tell the CPU that this thread spins."""

    def codegen(context, builder, signature, arguments):
        if builder.module.triple.startswith("x86_64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.none(), codegen


@_late.helper
def wake(team):
    """Wake a helper, who wakes the next; at most one is told at a time, so the lock is never released twice."""
    if read(team + SLEEPERS) > 0 and swap(team + WAKING, 0, 1) == 0:
        call(read(team + RELEASE), read(team + WAKE), 0, 0, 0)


@_late.helper
def perform(team, worker):
    """Take tasks until none is left, then shut the gate and leave; what the gate is after that."""
    entry, table, n_tasks, at_once = read(team + ENTRY), read(team + TABLE), read(team + N_TASKS), read(team + AT_ONCE)
    parts, taken = read(team + N_WORKERS), add(team + COUNTER, at_once)
    while taken < n_tasks:
        if at_once == 1:
            part = taken % parts
            task = part * (n_tasks // parts) + min(part, n_tasks % parts) + taken // parts
            call(entry, task, task + 1, worker, table)
        else:
            call(entry, taken, min(taken + at_once, n_tasks), worker, table)
        taken = add(team + COUNTER, at_once)
    gate = read(team + GATE)
    while True:
        left = (gate & ~PLACES) - INSIDE
        found = swap(team + GATE, gate, 0 if left == ASLEEP else left)
        if found == gate:
            return left
        gate = found


def lead(team, entry, table, n_tasks, n_workers, at_once):
    """The caller's part of a job."""
    write(team + ENTRY, entry)
    write(team + TABLE, table)
    write(team + N_TASKS, n_tasks)
    write(team + AT_ONCE, at_once)
    write(team + N_WORKERS, n_workers)
    write(team + COUNTER, 0)
    # Who spins takes a CPU from those who work where there are more threads than CPUs
    spins = _SPINS if n_workers <= read(team + CPUS) else 0
    write(team + SPINS, spins)
    write(team + GATE, INSIDE + n_workers - 1)
    wake(team)
    gate = perform(team, 0)
    while gate != 0:
        if spins > 0:
            pause()
            spins -= 1
            gate = read(team + GATE)
        else:
            found = swap(team + GATE, gate, gate + ASLEEP)
            if found == gate:
                call(read(team + ACQUIRE), read(team + DONE), 1, 0, 0)
                return
            gate = found


def serve(team):
    """A helper's life."""
    spins = read(team + SPINS)
    while True:
        gate = read(team + GATE)
        if gate < 0:
            return
        if gate & PLACES:
            if swap(team + GATE, gate, gate - 1 + INSIDE) == gate:
                if perform(team, gate & PLACES) == ASLEEP:
                    call(read(team + RELEASE), read(team + DONE), 0, 0, 0)
                spins = read(team + SPINS)
        elif spins > 0:
            pause()
            spins -= 1
        else:
            add(team + SLEEPERS, 1)
            call(read(team + ACQUIRE), read(team + WAKE), 1, 0, 0)
            write(team + WAKING, 0)
            add(team + SLEEPERS, -1)
            if read(team + GATE) & PLACES:
                wake(team)
            spins = read(team + SPINS)


def _machine_code(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` of words: loaded, or else compiled and kept."""
    name = f"_parallel.{function.__name__}"
    with _late.lock:
        address = _store.load(name, "words", __file__)
        if address is None:
            _late.make_all()
            address = _late.compiler().compile_words(function, name, "words", __file__)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * function.__code__.co_argcount)(address)


@cache
def machine_code() -> tuple[Callable[..., None], Callable[..., None]]:
    """`lead` and `serve`."""
    return _machine_code(lead), _machine_code(serve)


# --------------------------------------------------------------------------------------------------------------- teams

_python = ctypes.pythonapi  # its locks know nothing of Python: no GIL, no owner
_allocate_lock = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", _python))


class Team:
    """Helpers for one Python thread at a time."""

    def __init__(self) -> None:
        words = np.zeros(_N_WORDS + 8, np.int64)
        self._words = words[-words.ctypes.data % 64 // 8 :]  # from a cache line's start
        self.address = self._words.ctypes.data
        self._helpers: list[threading.Thread] = []
        self.lead, self._serve = machine_code()
        self._write(CPUS, _threads.available_cpus())
        self._write(WAKE, _new_lock())
        self._write(DONE, _new_lock())
        for place, function in ((ACQUIRE, _python.PyThread_acquire_lock), (RELEASE, _python.PyThread_release_lock)):
            self._write(place, ctypes.cast(function, ctypes.c_void_p).value)

    def _write(self, place: int, value: Any) -> None:
        self._words[place // 8] = value

    def grow(self, n_helpers: int) -> None:
        """Have at least so many helpers, or as many as can be started."""
        if n_helpers <= len(self._helpers):
            return
        with _starting, suppress(RuntimeError):  # the system gives no more threads, or Python ends
            users = threading.stack_size(0)
            threading.stack_size(max(users, _STACK) if users else 0)
            try:
                while len(self._helpers) < n_helpers:
                    helper = threading.Thread(target=self._help, name="fastconv", daemon=True)
                    helper.start()
                    self._helpers.append(helper)
            finally:
                threading.stack_size(users)

    def _help(self) -> None:
        if hasattr(signal, "pthread_sigmask"):  # signals are for threads that the program knows of
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._serve(self.address)

    def end(self) -> None:
        """Send the helpers home."""
        self._write(GATE, -1)
        for _ in self._helpers:
            _python.PyThread_release_lock(ctypes.c_void_p(int(self._words[WAKE // 8])))
        for helper in self._helpers:
            helper.join()


def _new_lock() -> int:
    lock = _allocate_lock()
    _python.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return int(lock)


_idle: list[Team] = []
_starting = threading.Lock()  # while stacks have another size than the program's own threads are to get


def run(n_tasks: int, n_threads: int, entry: Callable[..., None], table: int, static: bool) -> None:
    """Run tasks 0 ... n_tasks - 1 on up to ``n_threads`` threads: one by one, or ``static``, in equal runs."""
    try:
        team = _idle.pop()
    except IndexError:
        team = Team()
    try:
        n_workers = min(n_threads, int(n_tasks))
        team.grow(n_workers - 1)
        at_once = -(-int(n_tasks) // n_workers) if static else 1
        team.lead(team.address, entry, table, int(n_tasks), n_workers, at_once)
    finally:
        _idle.append(team)


def _end() -> None:
    """No helper may run where Python takes its memory away."""
    while _idle:
        _idle.pop().end()


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)
