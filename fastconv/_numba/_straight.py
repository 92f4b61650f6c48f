"""Straight-line vector code for Numba, written by running it: `straight`.

LLVM keeps an accumulator in a register only if it is a value of its own, which no array is before loops unroll; and Numba
takes a millisecond and more for every statement if they are written out instead. So what runs in a straight line, loops over
constants included, is not compiled by Numba: it runs once as Python, where the machine code is made, and every operation on a
value that is not known yet leaves its instruction there.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np

from fastconv._numba._late import PLAIN_PYTHON, Late, Module, made

ir, types, registry = Module("llvmlite.ir"), Module("numba.core.types"), Module("numba.core.registry")
extending, dispatcher = Module("numba.core.extending"), Module("numba.core.dispatcher")
numpy_support = Module("numba.np.numpy_support")

_PACKAGE = __name__.rpartition(".")[0]


def straight(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of a function of compiled functions and of other straight ones that is Python run when kernels are compiled.

    Loops, lists, ``if`` and all else may depend on what is known then: literals, what follows from types, as
    ``lanes(dtype)``, and what is computed from those. Everything else are values to compute with: by + - *, by the functions
    of `_simd` and its like, by helpers, which are called. Tuples come in as lists and lists leave as tuples, whose elements are
    registers::

        @straight
        def add_products(acc, a, b, dtype, nv):
            return [fma(load(a, j, dtype), load(b, j, dtype), acc[j]) for j in range(nv)]

        @helper
        def dot(a, b, count, dtype):
            acc = zeros(dtype, 2)
            for _ in range(count):
                acc = add_products(acc, a, b, dtype, 2)
            ...
    """
    if PLAIN_PYTHON:
        return lambda *arguments: _tuples(function(*map(_lists, arguments)))
    return Late(lambda: _intrinsic(function))


def _lists(value: Any) -> Any:
    return [_lists(each) for each in value] if type(value) is tuple else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if type(value) in (list, tuple) else value


def _intrinsic(function: Callable[..., Any]) -> Any:
    results: dict[tuple[Any, ...], Any] = {}  # by types of arguments

    def define(typingctx, *arguments):
        if arguments not in results:  # a trial run, whose instructions nobody uses
            context = registry.cpu_target.target_context
            trial = ir.Function(ir.Module(), context.call_conv.get_function_type(types.none, ()), "trial")
            run = _Run(context, ir.IRBuilder(trial.append_basic_block()))
            values = [ir.Constant(context.get_value_type(each), ir.Undefined) for each in arguments]
            with context.push_code_library(context.codegen().create_library("trial")):
                results[arguments] = run.lowered(run.result(function, arguments, values))[0]

        def codegen(context, builder, signature, values):
            run = _Run(context, builder)
            return run.lowered(run.result(function, arguments, values))[1]

        return results[arguments](*arguments), codegen

    first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([first, *inspect.signature(function).parameters.values()])
    define.__name__ = function.__name__
    intrinsic = extending.intrinsic(prefer_literal=True)(define)
    intrinsic.straight = function
    return intrinsic


def _names(code: CodeType) -> set[str]:
    """Names of globals in a function and the comprehensions in it."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _operator(function: Callable[..., Any], swapped: bool = False) -> Callable[..., Any]:
    def method(self: _Value, *others: Any) -> Any:
        return self.run.operation(function, (*others, self) if swapped else (self, *others))

    return method


class _Value:
    """A value of the machine code: its type as Numba and as LLVM have it."""

    __array_ufunc__ = None  # NumPy's scalars leave operators to it

    def __init__(self, run: _Run, kind: Any, value: Any) -> None:
        self.run, self.kind, self.value = run, kind, value

    __add__, __radd__ = _operator(operator.add), _operator(operator.add, swapped=True)
    __sub__, __rsub__ = _operator(operator.sub), _operator(operator.sub, swapped=True)
    __mul__, __rmul__ = _operator(operator.mul), _operator(operator.mul, swapped=True)
    __neg__ = _operator(operator.neg)

    def __bool__(self) -> bool:
        raise TypeError("straight code cannot branch on a value that is not known before it runs")


class _Run:
    """One run of a straight function, which leaves its instructions at ``builder``."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.context, self.builder = context, builder

    def result(self, function: Callable[..., Any], kinds: Any, values: Any) -> Any:
        return self.running(function)(*map(self.raised, kinds, values))

    def running(self, function: Any) -> Callable[..., Any]:
        """``function`` with all that it calls made to run here as well."""
        space = dict(function.__globals__)
        for name in _names(function.__code__) & space.keys():
            space[name] = self.here(space[name])
        cells = tuple(CellType(self.here(cell.cell_contents)) for cell in function.__closure__ or ())
        return FunctionType(function.__code__, space, function.__name__, function.__defaults__, cells)

    def here(self, value: Any) -> Any:
        """What stands for ``value``, which a straight function names."""
        value = made(value)
        if isinstance(value, extending._Intrinsic):
            if not hasattr(value, "straight"):
                return lambda *arguments: self.emitted(value, arguments)
            value = value.straight
        if isinstance(value, dispatcher.Dispatcher):
            return lambda *arguments: self.operation(value, arguments)
        if isinstance(value, FunctionType) and value.__module__.startswith(_PACKAGE):
            return lambda *arguments: self.running(value)(*arguments)
        return value

    def emitted(self, intrinsic: Any, arguments: Any) -> Any:
        kinds, values = self.all_lowered(arguments, intrinsic._prefer_literal)
        signature, codegen = intrinsic._defn(self.context.typing_context, *kinds)
        values = self.converted(values, kinds, signature.args)
        return self.raised(signature.return_type, codegen(self.context, self.builder, signature, values))

    def operation(self, function: Callable[..., Any], arguments: Any) -> Any:
        kinds, values = self.all_lowered(arguments)
        known = self.context.typing_context.resolve_value_type(function)
        signature = known.get_call_type(self.context.typing_context, kinds, {})
        values = self.converted(values, kinds, signature.args)
        return self.raised(signature.return_type, self.context.get_function(known, signature)(self.builder, values))

    def converted(self, values: Any, kinds: Any, to_kinds: Any) -> list[Any]:
        return [self.context.cast(self.builder, *each) for each in zip(values, kinds, to_kinds, strict=True)]

    def raised(self, kind: Any, value: Any) -> Any:
        """A value for straight code to use."""
        if isinstance(kind, types.Literal):
            return kind.literal_value
        if isinstance(kind, types.DType):
            return numpy_support.as_dtype(kind.dtype)
        if isinstance(kind, types.NumberClass):
            return numpy_support.as_dtype(kind.instance_type).type
        if isinstance(kind, types.NoneType):
            return None
        if isinstance(kind, types.BaseTuple):
            parts = [self.raised(each, self.builder.extract_value(value, i)) for i, each in enumerate(kind)]
            return kind.instance_class(*parts) if isinstance(kind, types.BaseNamedTuple) else parts
        if isinstance(kind, types.Integer) and isinstance(value, ir.Constant) and isinstance(value.constant, int):
            return value.constant
        return _Value(self, kind, value)

    def lowered(self, value: Any, literal: bool = False) -> tuple[Any, Any]:
        """Numba's type of a straight function's value, and LLVM's value."""
        if isinstance(value, _Value):
            return value.kind, value.value
        if isinstance(value, (list, tuple)):
            kinds, values = self.all_lowered(value)
            kind = types.Tuple(kinds)
            return kind, self.context.make_tuple(self.builder, kind, values)
        if isinstance(value, (bool, int)):
            kind = types.boolean if isinstance(value, bool) else types.int64
            return types.literal(value) if literal else kind, self.context.get_constant(kind, value)
        if isinstance(value, np.floating):
            kind = numpy_support.from_dtype(value.dtype)
            return kind, self.context.get_constant(kind, value)
        if isinstance(value, np.dtype):
            return types.DType(numpy_support.from_dtype(value)), self.context.get_dummy_value()
        if isinstance(value, type):
            return types.NumberClass(numpy_support.from_dtype(np.dtype(value))), self.context.get_dummy_value()
        return types.none, self.context.get_dummy_value()

    def all_lowered(self, values: Any, literal: bool = False) -> tuple[list[Any], list[Any]]:
        pairs = [self.lowered(value, literal) for value in values]
        return [kind for kind, _ in pairs], [value for _, value in pairs]
