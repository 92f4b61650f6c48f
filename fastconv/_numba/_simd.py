"""Explicit vectors for Numba: a type over LLVM's ``<n x float>`` and ``<n x double>``, and functions on raw addresses.

An address is an int64 as `address` gives it; offsets count elements, sums of addresses count bytes. Nothing is checked:
no bounds, no alignment (every access is allowed to be unaligned), no aliasing. Functions that need to know the element
type take it as ``dtype``: the ``.dtype`` of an array, or ``np.float32`` and its like.

    address(array)                    int64, of the array's first element
    itemsize(dtype), lanes(dtype)     bytes of an element, elements of a vector; constants to the compiler
    get(address, offset, dtype)       one element              put(address, offset, value)
    load(address, offset, dtype)      a vector                 store(address, offset, vector)
    load_quad(address, offset, dtype) 16 bytes, as a vector of fewer lanes
    broadcast(value)                  value in every lane
    a + b, a - b, a * b, -a           on vectors of one type
    fma(a, b, c)                      a * b + c, fused wherever the CPU can
    vmax(a, b), vmin(a, b)            a > b ? a : b and a < b ? a : b, so NaN in either lane gives b
    root(value)                       square root of a number
    shuffler(mask)                    f(a, b) that picks lanes: mask counts through a, then b; -1 = any value
    copy(target, source, bytes)       memcpy                   clear(target, bytes)    memset to zero
    local(count, dtype)               array on the stack, alive until the function returns; count is a literal. Give it
                                      a name: as Python it dies with its last reference
    prefetch(address)                 a hint to load a cache line
    prefetch_second(address)          the same into the second-level cache, which can have more lines on the way than the first
    outlined(), inlined()             keeps the function that calls it from being inlined; has it inlined everywhere
    rolled()                          keeps the loop that calls it from being unrolled

Code that runs in a straight line, loops over constants included, is best written with `straight` of _straight.py.

With NUMBA_DISABLE_JIT=1 each is a NumPy or ctypes function of the same meaning, and the same kernel source runs as
Python (fma then rounds twice). The module depends on NumPy, llvmlite and Numba alone, and on Numba only when something is
compiled: until then a function that needs it is a `Late` name (see _late.py), which `make_all` replaces. Code compiled
with these functions depends on this file, on _vector_type.py, on VECTOR_BYTES and on the CPU: who keeps it must keep a
digest of them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numpy as np

from fastconv._numba._late import PLAIN_PYTHON, Late, Module, setting

ir, types, cgutils = Module("llvmlite.ir"), Module("numba.core.types"), Module("numba.core.cgutils")
extending, _vector_type = Module("numba.extending"), Module("fastconv._numba._vector_type")

# --------------------------------------------------------------------------------------------------------------- width


def _vector_bytes() -> int:
    """Of the widest vector that the code generator's CPU has at full rate: 64, 32 or 16, capped by FASTCONV_MAX_ISA."""
    if setting("CPU_NAME") in ("", "host"):
        features = {name for name, there in llvmlite.binding.get_host_cpu_features().items() if there}
    else:  # NUMBA_CPU_NAME=generic and the like: what NUMBA_CPU_FEATURES adds
        flags = setting("CPU_FEATURES").split(",")
        features = {flag.strip()[1:] for flag in flags if flag.strip().startswith("+")}
    cap = {"baseline": 16, "x86_64_v3": 32}.get(os.environ.get("FASTCONV_MAX_ISA", "").strip(), 64)
    if cap >= 64 and features.issuperset(f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")):
        return 64
    return 32 if cap >= 32 and features.issuperset(("avx2", "fma")) else 16


VECTOR_BYTES = _vector_bytes()
VL_FLOAT, VL_DOUBLE = VECTOR_BYTES // 4, VECTOR_BYTES // 8
# Whether products wait for loads where each takes a factor from memory: cores that multiply two 512-bit vectors in a cycle
# load two. Zen 4 multiplies one.
LOADS_ARE_SCARCE = VECTOR_BYTES == 64 and llvmlite.binding.get_host_cpu_name() != "znver4"

# ---------------------------------------------------------------------------------------------------------------- type


def Vector(dtype: Any, count: int) -> Any:
    """The type of ``count`` elements of a Numba scalar type in one register."""
    return _vector_type.Vector(dtype, count)


def _element(dtype: types.Type) -> types.Type:
    """The scalar type that a ``dtype`` argument names."""
    return dtype.dtype if isinstance(dtype, types.DType) else dtype.instance_type


def _vector(element: types.Type) -> Vector:
    return Vector(element, VECTOR_BYTES * 8 // element.bitwidth)


def _with_python(python: Callable[..., Any], literal: bool = False) -> Callable[..., Any]:
    """Decorator of an @intrinsic: ``python`` stands in its place where nothing is compiled."""

    def decorate(function: Callable[..., Any]) -> Any:
        if PLAIN_PYTHON:
            return python
        return Late(lambda: extending.intrinsic(prefer_literal=literal)(function))

    return decorate


# ------------------------------------------------------------------------------------------------ addresses and memory


def _view(address: int, offset: int, count: int, dtype: Any) -> np.ndarray:
    dtype = np.dtype(dtype)
    raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(int(address) + int(offset) * dtype.itemsize)
    return np.frombuffer(raw, dtype)


def _pointer(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value, llvm_type: ir.Type, bits: int) -> ir.Value:
    """``address + offset * bits / 8`` as a pointer to ``llvm_type``."""
    # An integer's sum would hide from LLVM that two offsets lie side by side, and its loops would gather.
    base = builder.inttoptr(address, ir.IntType(bits).as_pointer())
    return builder.bitcast(builder.gep(base, [offset]), llvm_type.as_pointer())


@_with_python(lambda array: array.ctypes.data)
def address(typingctx, array):
    def codegen(context, builder, signature, arguments):
        data = cgutils.create_struct_proxy(array)(context, builder, value=arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@_with_python(lambda dtype: np.dtype(dtype).itemsize)
def itemsize(typingctx, dtype):
    size = _element(dtype).bitwidth // 8
    return types.int64(dtype), lambda context, builder, signature, arguments: ir.IntType(64)(size)


@_with_python(lambda dtype: VECTOR_BYTES // np.dtype(dtype).itemsize)
def lanes(typingctx, dtype):
    count = _vector(_element(dtype)).count
    return types.int64(dtype), lambda context, builder, signature, arguments: ir.IntType(64)(count)


def _read(result: types.Type, element: types.Type, dtype: types.Type) -> Any:
    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(result)
        at = _pointer(builder, arguments[0], arguments[1], llvm_type, element.bitwidth)
        return builder.load(at, align=element.bitwidth // 8)

    return result(types.int64, types.int64, dtype), codegen


def _write(value: types.Type, element: types.Type) -> Any:
    def codegen(context, builder, signature, arguments):
        at = _pointer(builder, arguments[0], arguments[1], arguments[2].type, element.bitwidth)
        builder.store(arguments[2], at, align=element.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, value), codegen


def _python_put(address: int, offset: int, value: Any) -> None:
    value = np.asarray(value, np.int64 if type(value) is int else None)
    _view(address, offset, value.size, value.dtype)[...] = value


@_with_python(lambda address, offset, dtype: _view(address, offset, 1, dtype)[0])
def get(typingctx, address, offset, dtype):
    element = _element(dtype)
    return _read(element, element, dtype)


@_with_python(_python_put)
def put(typingctx, address, offset, value):
    return _write(value, value)


@_with_python(lambda address, offset, dtype: _view(address, offset, lanes(dtype), dtype).copy())
def load(typingctx, address, offset, dtype):
    element = _element(dtype)
    return _read(_vector(element), element, dtype)


@_with_python(lambda address, offset, dtype: _view(address, offset, 16 // np.dtype(dtype).itemsize, dtype).copy())
def load_quad(typingctx, address, offset, dtype):
    element = _element(dtype)
    return _read(Vector(element, 128 // element.bitwidth), element, dtype)


@_with_python(_python_put)
def store(typingctx, address, offset, vector):
    return _write(vector, vector.dtype)


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[ir.Value]) -> ir.Value:
    """Call of an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _bytes_at(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.IntType(8).as_pointer())


@_with_python(lambda target, source, count: ctypes.memmove(int(target), int(source), int(count)) and None)
def copy(typingctx, target, source, count):
    def codegen(context, builder, signature, arguments):
        target, source = (_bytes_at(builder, at) for at in arguments[:2])
        _call(builder, "llvm.memcpy.p0.p0.i64", ir.VoidType(), [target, source, arguments[2], ir.IntType(1)(0)])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


@_with_python(lambda target, count: ctypes.memset(int(target), 0, int(count)) and None)
def clear(typingctx, target, count):
    def codegen(context, builder, signature, arguments):
        arguments = [_bytes_at(builder, arguments[0]), ir.IntType(8)(0), arguments[1], ir.IntType(1)(0)]
        _call(builder, "llvm.memset.p0.i64", ir.VoidType(), arguments)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


def _prefetch(levels: int) -> Any:
    def codegen(context, builder, signature, arguments):
        hints = [ir.IntType(32)(hint) for hint in (0, levels, 1)]  # to read, kept in so many levels, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [_bytes_at(builder, arguments[0]), *hints])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@_with_python(lambda address: None)
def prefetch(typingctx, address):
    return _prefetch(3)


@_with_python(lambda address: None)
def prefetch_second(typingctx, address):
    return _prefetch(2)


@_with_python(lambda count, dtype: np.empty(count, dtype), literal=True)
def local(typingctx, count, dtype):
    element = _element(dtype)
    result = types.Array(element, 1, "C")

    def codegen(context, builder, signature, arguments):
        n, size = ir.IntType(64)(count.literal_value), ir.IntType(64)(element.bitwidth // 8)
        data = cgutils.alloca_once(builder, context.get_data_type(element), n)
        data.align = VECTOR_BYTES
        array = cgutils.create_struct_proxy(result)(context, builder)
        array.data = builder.bitcast(data, array.data.type)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)  # owned by nobody
        array.parent = cgutils.get_null_value(array.parent.type)
        array.nitems, array.itemsize = n, size
        array.shape, array.strides = cgutils.pack_array(builder, [n]), cgutils.pack_array(builder, [size])
        return array._getvalue()

    return result(count, dtype), codegen


def _attribute(name: str) -> Callable[..., Any]:
    """f() that gives the function that calls it an attribute of LLVM."""

    @_with_python(lambda: None)
    def mark(typingctx):
        def codegen(context, builder, signature, arguments):
            builder.function.attributes.add(name)
            return context.get_dummy_value()

        return types.none(), codegen

    return mark


outlined, inlined = _attribute("noinline"), _attribute("alwaysinline")


@_with_python(lambda: None)
def rolled(typingctx):
    def codegen(context, builder, signature, arguments):
        # An instruction of no bytes that may not come to depend on other conditions, as it would in a remainder loop
        nothing = builder.asm(ir.FunctionType(ir.VoidType(), []), "", "", [], side_effect=True)
        nothing.attributes.add("convergent")
        return context.get_dummy_value()

    return types.none(), codegen


# ---------------------------------------------------------------------------------------------------------- arithmetic


@_with_python(lambda value: np.full(lanes(value.dtype), value))
def broadcast(typingctx, value):
    vector = _vector(value)

    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        first = builder.insert_element(llvm_type(ir.Undefined), arguments[0], ir.IntType(32)(0))
        mask = ir.VectorType(ir.IntType(32), vector.count)(None)  # lane 0, everywhere
        return builder.shuffle_vector(first, first, mask)

    return vector(value), codegen


@_with_python(lambda a, b, c: a * b + c)
def fma(typingctx, a, b, c):
    def codegen(context, builder, signature, arguments):
        # Not llvm.fma: on a CPU without the instruction that is a call of fmaf for each lane
        kind = "f32" if a.dtype == types.float32 else "f64"
        return _call(builder, f"llvm.fmuladd.v{a.count}{kind}", arguments[0].type, list(arguments))

    return a(a, a, a), codegen


@_with_python(np.sqrt)
def root(typingctx, value):
    def codegen(context, builder, signature, arguments):
        return _call(builder, f"llvm.sqrt.f{value.bitwidth}", arguments[0].type, list(arguments))

    return value(value), codegen


def _select(predicate: str, a: Vector) -> Any:
    def codegen(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(predicate, *arguments), *arguments)

    return a(a, a), codegen


@_with_python(lambda a, b: np.where(a > b, a, b))
def vmax(typingctx, a, b):
    return _select(">", a)


@_with_python(lambda a, b: np.where(a < b, a, b))
def vmin(typingctx, a, b):
    return _select("<", a)


def shuffler(mask: tuple[int, ...]) -> Callable[..., Any]:
    """f(a, b): lane j is lane ``mask[j]`` of a and b one after the other; any value where it is -1."""

    @_with_python(lambda a, b: np.concatenate((a, b))[list(mask)])
    def shuffle(typingctx, a, b):
        result = Vector(a.dtype, len(mask))

        def codegen(context, builder, signature, arguments):
            lane = ir.IntType(32)
            lanes = [lane(ir.Undefined if position < 0 else position) for position in mask]
            return builder.shuffle_vector(*arguments, ir.VectorType(lane, len(mask))(lanes))

        return result(a, a), codegen

    return shuffle
