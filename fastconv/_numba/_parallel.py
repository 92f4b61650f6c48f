"""Several threads for a task, the twin of src_cython/team.h. A team is the caller's thread and helpers of ours, which machine
code leads through the tasks of a job; it needs neither the GIL nor Numba's threading layers, whose import would cost more
than a first call may take. Python calls that code as it calls functions of C extensions: ctypes would take as long for it as
a small layer for its work.

A job is open while tasks are left. The caller writes it down, opens the gate and takes tasks as everyone does: one after
the other of its own part, of which there are as many as threads, then what is left of the others'. Neighbouring tasks read
and write side by side, where cores would take lines and what they fetch ahead from each other; and the next job often goes
on with what this one has left in a core's cache. A helper enters at the gate, one for each place, and whoever finds no task
left shuts it and leaves.
The caller waits for those inside, never for one that has not come: on a busy machine it does the work of those by itself.
Who waits spins for a while, as the next job often follows at once, and then sleeps: a helper on the lock WAKE, the caller
on DONE. Systems may wake a helper on the caller's own CPU and leave it there, however long the caller works. So the caller
gives way, once it has worked for a while without a helper that it woke, and the helper moves to another CPU. Each Python
thread that calls leads a team of its own, which another thread takes over when it ends: so no interrupt can lose one. A fork
has no helpers, so it starts teams of its own.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
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
GATE, ENTRY, TABLE, N_TASKS, N_WORKERS = 0, 64, 72, 80, 88
PARTS = 96  # address of the parts, a line each: how many of its tasks were taken, or looked for in vain
SPINS = 104  # how often who waits looks before sleeping
CPU = 112  # the caller's
SLEEPERS, WAKING = 128, 136  # helpers asleep; 1 while one of them is being woken
WOKEN, BEARS = 144, 152  # when a helper was woken that has not run since, in ns, 0: none; how long the caller bears it
CPUS, ACQUIRE, RELEASE, WAKE, DONE = 192, 200, 208, 216, 224  # set once: of this process, C functions, locks
CLOCK, YIELD, WHERE, GET, SET = 232, 240, 248, 256, 264  # C functions, 0 where the system has none of them
NUMBER, FAILED, SAVE, RESTORE, FALSE = 272, 280, 288, 296, 304  # C functions of Python
HERE, THERE = 320, 336  # the time: of the caller, of the one who wakes another
ALL, OTHERS = 384, 512  # sets of CPUs, of the one helper that moves
SET_BYTES = 128
METHOD = (
    640  # what Python knows of `launch`; here, as its function reads it until the last and has the words as its self
)
_N_WORDS = 84

# Pauses, of 10 to 140 cycles each by kind of CPU: as long as what lies between two layers of a network takes in NumPy
_SPINS = 30000

_STACK = 1 << 20  # bytes of a helper's, at least; tiles of Winograd take 128 KB

PATIENCE = 100_000  # ns; to give way costs about as much, where there is something to give way to

# The gate: places still free, above them who is inside, above that a bit: the caller sleeps. -1: helpers go home.
PLACES, INSIDE, ASLEEP = (1 << 16) - 1, 1 << 16, 1 << 32

# ------------------------------------------------------------------------------------------------------- machine code


def _intrinsic(function: Callable[..., Any]) -> Any:
    return function if _late.PLAIN_PYTHON else _late.Late(lambda: extending.intrinsic(function))


# C structures, on which CPython's and NumPy's ABI rest: what heads every object, then an array's `char *data`, or a tuple's
# items behind their number.
DATA, ITEMS = object.__basicsize__, tuple.__basicsize__


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
def ask(typingctx, function, a, b, c):
    """What the C function at an address returns, an int."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [ir.IntType(64)] * 3)
        result = builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return builder.sext(result, ir.IntType(64))

    return types.int64(*[types.int64] * 4), codegen


@_intrinsic
def ask_word(typingctx, function, a):
    """What the C function at an address returns, a pointer or long long."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64)])
        return builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])

    return types.int64(types.int64, types.int64), codegen


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
def now(team, place):
    """Nanoseconds, by way of two words."""
    ask(read(team + CLOCK), 1, team + place, 0)  # CLOCK_MONOTONIC
    return read(team + place) * 1_000_000_000 + read(team + place + 8)


@_late.helper
def summon(team):
    """Somebody is about to wake a helper."""
    if read(team + SET) != 0 and read(team + WOKEN) == 0:
        write(team + BEARS, PATIENCE)
        write(team + WOKEN, now(team, THERE))


@_late.helper
def stand(team):
    """The caller, before a job."""
    if read(team + SET) != 0 and read(team + SLEEPERS) > 0:
        write(team + CPU, ask(read(team + WHERE), 0, 0, 0))


@_late.helper
def give_way(team):
    """The caller, between two tasks; each time in vain it waits twice as long for the next."""
    woken, bears = read(team + WOKEN), read(team + BEARS)
    if woken != 0 and now(team, HERE) - woken >= bears:
        write(team + BEARS, 2 * bears)
        write(team + CPU, ask(read(team + WHERE), 0, 0, 0))
        ask(read(team + YIELD), 0, 0, 0)


@_late.helper
def come(team):
    """A helper that runs again goes from the caller's CPU to another."""
    cpu = read(team + CPU)
    if (
        read(team + WOKEN) != 0 and 0 <= cpu < 8 * SET_BYTES and ask(read(team + WHERE), 0, 0, 0) == cpu
        and ask(read(team + GET), 0, SET_BYTES, team + ALL) >= 0
    ):  # fmt: skip
        left = 0
        for i in range(0, SET_BYTES, 8):
            others = read(team + ALL + i)
            if cpu // 64 == i // 8:
                others &= ~(1 << cpu % 64)
            write(team + OTHERS + i, others)
            left |= others
        if left != 0 and ask(read(team + SET), 0, SET_BYTES, team + OTHERS) == 0:
            ask(read(team + SET), 0, SET_BYTES, team + ALL)
    write(team + WOKEN, 0)


@_late.helper
def wake(team):
    """Wake a helper, who wakes the next. Helpers leave the sleepers one at a time, while WAKING is 1: so the lock is never
    released twice, nor for none.
    """
    if read(team + SLEEPERS) > 0 and swap(team + WAKING, 0, 1) == 0:
        if read(team + SLEEPERS) > 0:
            summon(team)
            call(read(team + RELEASE), read(team + WAKE), 0, 0, 0)
        else:
            write(team + WAKING, 0)


@_late.helper
def perform(team, worker):
    """Take tasks until none is left, then shut the gate and leave; what the gate is after that."""
    entry, table, parts, n_workers = read(team + ENTRY), read(team + TABLE), read(team + PARTS), read(team + N_WORKERS)
    least, longer = read(team + N_TASKS) // n_workers, read(team + N_TASKS) % n_workers
    for i in range(n_workers):
        part = (worker + i) % n_workers
        first, size = part * least + min(part, longer), least + (1 if part < longer else 0)
        while read(parts + 64 * part) < size:
            taken = add(parts + 64 * part, 1)
            if taken >= size:
                break
            call(entry, first + taken, first + taken + 1, worker, table)
            if worker == 0:
                give_way(team)
    gate = read(team + GATE)
    while True:
        left = (gate & ~PLACES) - INSIDE
        found = swap(team + GATE, gate, 0 if left == ASLEEP else left)
        if found == gate:
            return left
        gate = found


@_late.helper
def lead(team):
    """The caller's part of a job that is written down but for its threads' parts."""
    n_workers = read(team + N_WORKERS)
    for part in range(n_workers):
        write(read(team + PARTS) + 64 * part, 0)
    # Who spins takes a CPU from those who work where there are more threads than CPUs
    spins = _SPINS if n_workers <= read(team + CPUS) else 0
    write(team + SPINS, spins)
    stand(team)
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


def launch(words, arguments, count):
    """What Python calls as ``launch(n_tasks, n_workers, entry, table)``: a function by METH_FASTCALL, whose self is the team's
    array of words. ``table`` is a tuple.
    """
    team = read(words + DATA)
    number = read(team + NUMBER)
    n_tasks, n_workers = ask_word(number, read(arguments)), ask_word(number, read(arguments + 8))
    entry, table = ask_word(number, read(arguments + 16)), read(arguments + 24) + ITEMS
    if ask_word(read(team + FAILED), 0) != 0:
        return 0
    state = ask_word(read(team + SAVE), 0)  # of Python's thread, which has no GIL meanwhile
    if n_workers > 1:
        write(team + ENTRY, entry)
        write(team + TABLE, table)
        write(team + N_TASKS, n_tasks)
        write(team + N_WORKERS, n_workers)
        lead(team)
    else:
        call(entry, 0, n_tasks, 0, table)
    ask_word(read(team + RESTORE), state)
    return ask_word(read(team + FALSE), 0)


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
            add(team + SLEEPERS, -1)
            come(team)
            write(team + WAKING, 0)
            if read(team + GATE) & PLACES:
                wake(team)
            spins = read(team + SPINS)


@cache
def machine_code(function: Callable[..., Any]) -> int:
    """Address of `launch` or `serve`: loaded, or else compiled and kept."""
    name = f"_parallel.{function.__name__}"
    with _late.lock:
        address = _store.load(name, "words", __file__)
        if address is None:
            _late.make_all()
            address = _late.compiler().compile_words(function, name, "words", __file__)
    return address


# --------------------------------------------------------------------------------------------------------------- teams

_python = ctypes.pythonapi  # its locks know nothing of Python: no GIL, no owner
_allocate_lock = ctypes.PYFUNCTYPE(ctypes.c_void_p)(("PyThread_allocate_lock", _python))
_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", _python)
)
_FUNCTIONS = {
    ACQUIRE: "PyThread_acquire_lock", RELEASE: "PyThread_release_lock", NUMBER: "PyLong_AsLongLong",
    FAILED: "PyErr_Occurred", SAVE: "PyEval_SaveThread", RESTORE: "PyEval_RestoreThread", FALSE: "PyBool_FromLong",
}  # fmt: skip


_NAME = ctypes.c_char_p(b"launch")


class _Method(ctypes.Structure):
    """C structure PyMethodDef."""

    _fields_ = (("name", ctypes.c_void_p), ("code", ctypes.c_void_p), ("flags", ctypes.c_int), ("doc", ctypes.c_void_p))
    FASTCALL = 0x80


class Team:
    """A Python thread's helpers."""

    def __init__(self) -> None:
        words = np.zeros(_N_WORDS + 8, np.int64)
        words = words[-words.ctypes.data % 64 // 8 :]  # from a cache line's start
        self.words = memoryview(words)
        self.place = words.ctypes.data
        self._helpers: list[threading.Thread] = []
        self._write(CPUS, _threads.available_cpus())
        self._write(WAKE, _new_lock())
        self._write(DONE, _new_lock())
        for place, function in _functions().items():
            self._write(place, function)
        method = _Method.from_buffer(words, METHOD)
        method.name, method.code, method.flags = (
            ctypes.cast(_NAME, ctypes.c_void_p),
            machine_code(launch),
            _Method.FASTCALL,
        )
        self.launch = _new_function(ctypes.addressof(method), words, None)
        self._parts: list[np.ndarray] = []  # all that there were: an interrupted call may have left any of them in use
        self._room = 0
        self.size = 1  # the caller and the helpers

    def _write(self, place: int, value: Any) -> None:
        self.words[place // 8] = value

    def grow(self, n_workers: int) -> None:
        """Have parts for so many, and as many helpers beside the caller, or those that can be started."""
        if self._room < n_workers:  # nobody is inside
            self._parts.append(np.zeros(8 * (n_workers + 1), np.int64))
            start = self._parts[-1].ctypes.data
            self._write(PARTS, start + -start % 64)
            self._room = n_workers
        life = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(machine_code(serve))  # here: helpers have no stack to compile on
        with _stacks.lock:
            _stacks.users = threading.stack_size(0)
            threading.stack_size(max(_stacks.users, _STACK) if _stacks.users else 0)
            try:
                while self.size < n_workers:
                    helper = threading.Thread(target=self._help, args=(life,), name="fastconv", daemon=True)
                    helper.start()
                    self._helpers.append(helper)
                    self.size += 1
            except RuntimeError as error:  # the system gives no more threads, or Python ends
                if error.__context__ is not None:  # or it stands for an interrupt
                    raise
            finally:
                _stacks.restore()

    def _help(self, life: Callable[[int], None]) -> None:
        # But for its own faults, signals are for threads that the program knows of
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - _FAULTS)
        life(self.place)

    def end(self) -> None:
        """Send the helpers home."""
        self._write(GATE, -1)
        for _ in self._helpers:
            _python.PyThread_release_lock(ctypes.c_void_p(self.words[WAKE // 8]))
        for helper in self._helpers:
            helper.join()


@cache
def _functions() -> dict[int, int]:
    """Addresses of C functions by the places of a team's words."""
    found = {place: getattr(_python, name) for place, name in _FUNCTIONS.items()}
    if sys.platform.startswith("linux"):  # those by which a helper moves
        names = {
            CLOCK: "clock_gettime", YIELD: "sched_yield", WHERE: "sched_getcpu", GET: "sched_getaffinity",
            SET: "sched_setaffinity",
        }  # fmt: skip
        library = ctypes.CDLL(None)
        with suppress(AttributeError):
            found.update({place: getattr(library, name) for place, name in names.items()})
    return {place: ctypes.cast(function, ctypes.c_void_p).value or 0 for place, function in found.items()}


def _new_lock() -> int:
    lock = _allocate_lock()
    _python.PyThread_acquire_lock(ctypes.c_void_p(lock), 1)
    return int(lock)


class _Lead:
    """A team as long as its Python thread lives, from which no interrupt can take it; then it is another thread's."""

    def __init__(self) -> None:
        self.generation = _generation
        self.team = _idle.pop() if _idle else Team()

    def __del__(self) -> None:
        if self.generation == _generation:
            _idle.append(self.team)


class _Local(threading.local):
    lead: _Lead | None = None


_local = _Local()
_idle: list[Team] = []
_generation = 0  # raised in a fork, where the teams of before have no helpers
_FAULTS = {getattr(signal, f"SIG{name}", None) for name in ("SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "SYS")}


class _Stacks:
    """While helpers are started, stacks have another size than the program's own threads are to get."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users: int | None = None

    def restore(self) -> None:
        if self.users is not None:
            threading.stack_size(self.users)
            self.users = None


_stacks = _Stacks()


def run(n_tasks: int, n_threads: int, entry: int, table: tuple[Any, ...]) -> None:
    """Run tasks 0 ... n_tasks - 1 of the entry at an address on up to ``n_threads`` threads."""
    lead = _local.lead
    if lead is None:
        lead = _local.lead = _Lead()
    n_workers = n_threads if n_threads < n_tasks else n_tasks
    if lead.team.size < n_workers:
        lead.team.grow(n_workers)
    lead.team.launch(n_tasks, n_workers, entry, table)


def _end() -> None:
    """No helper may run where Python takes its memory away."""
    _local.lead = None
    while _idle:
        _idle.pop().end()


atexit.register(_end)


def _after_fork_in_child() -> None:
    global _generation
    _generation += 1
    _local.lead = None
    _idle.clear()
    _stacks.lock = threading.Lock()
    _stacks.restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
