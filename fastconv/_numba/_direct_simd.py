"""Vectors for convolution, beside those of `_simd`: a row's border, every other lane.

load_inside(row, column, extent, dtype)     lane i: row[column + i]; zero, and not read, outside [0, extent)
store_lanes(target, vector, first, last)    lanes [first, last)
even(a, b), odd(a, b)                       every other lane of a, then of b
every_other(a, b)                           the even lanes of a, the odd ones of b
zip_low(a, b), zip_high(a, b)               the lower, the upper half of a and b, in turns
"""

from __future__ import annotations

import numpy as np

from fastconv._numba._late import Module
from fastconv._numba._simd import _call, _element, _pointer, _vector, _with_python, get, lanes, put

ir, types = Module("llvmlite.ir"), Module("numba.core.types")


def _mask(builder, first, last, count):
    """<count x i1>: lanes [first, last)."""
    lane = ir.IntType(64)
    iota = ir.VectorType(lane, count)([lane(i) for i in range(count)])
    nowhere = ir.VectorType(lane, count)(ir.Undefined)
    none = ir.VectorType(ir.IntType(32), count)(None)
    first, last = (
        builder.shuffle_vector(builder.insert_element(nowhere, bound, ir.IntType(32)(0)), nowhere, none)
        for bound in (first, last)
    )
    return builder.and_(builder.icmp_signed(">=", iota, first), builder.icmp_signed("<", iota, last))


def _python_load_inside(row, column, extent, dtype):
    lane = np.arange(column, column + lanes(dtype))
    there = (lane >= 0) & (lane < extent)
    return np.array([get(row, i, dtype) if ok else 0 for i, ok in zip(lane, there, strict=True)], dtype)


@_with_python(_python_load_inside)
def load_inside(typingctx, row, column, extent, dtype):
    """Lane i: row[column + i]; zero, and not read, where that column is outside [0, extent)."""
    vector = _vector(_element(dtype))

    def codegen(context, builder, signature, arguments):
        row, column, extent = arguments[:3]
        llvm_type = context.get_value_type(vector)
        at = _pointer(builder, row, column, llvm_type, vector.dtype.bitwidth)
        mask = _mask(builder, builder.neg(column), builder.sub(extent, column), vector.count)
        kind = f"v{vector.count}f{vector.dtype.bitwidth}"
        align = ir.IntType(32)(vector.dtype.bitwidth // 8)
        return _call(builder, f"llvm.masked.load.{kind}.p0", llvm_type, [at, align, mask, llvm_type(None)])

    return vector(types.int64, types.int64, types.int64, dtype), codegen


def _python_store_lanes(target, value, first, last):
    for i in range(first, last):
        put(target, i, value[i])


@_with_python(_python_store_lanes)
def store_lanes(typingctx, target, value, first, last):
    """Lanes [first, last) to memory."""

    def codegen(context, builder, signature, arguments):
        target, vector, first, last = arguments
        at = builder.inttoptr(target, vector.type.as_pointer())
        mask = _mask(builder, first, last, value.count)
        kind = f"v{value.count}f{value.dtype.bitwidth}"
        align = ir.IntType(32)(value.dtype.bitwidth // 8)
        _call(builder, f"llvm.masked.store.{kind}.p0", ir.VoidType(), [vector, at, align, mask])
        return context.get_dummy_value()

    return types.none(types.int64, value, types.int64, types.int64), codegen


def _shuffler(lane_of):
    """f(a, b): lane j is lane ``lane_of(j, count)`` of a and b, one after the other."""

    @_with_python(lambda a, b: np.concatenate((a, b))[[lane_of(j, len(a)) for j in range(len(a))]])
    def shuffle(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            mask = [ir.IntType(32)(lane_of(j, a.count)) for j in range(a.count)]
            return builder.shuffle_vector(*arguments, ir.VectorType(ir.IntType(32), a.count)(mask))

        return a(a, a), codegen

    return shuffle


even = _shuffler(lambda j, count: 2 * j)
odd = _shuffler(lambda j, count: 2 * j + 1)
every_other = _shuffler(lambda j, count: 2 * j + (2 * j >= count))
zip_low = _shuffler(lambda j, count: j // 2 + j % 2 * count)
zip_high = _shuffler(lambda j, count: count // 2 + j // 2 + j % 2 * count)
