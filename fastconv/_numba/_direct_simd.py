"""Vectors for convolution, beside those of `_simd`: a row's border, and shuffles that keep the order of elements.

load_inside(row, column, extent, dtype)     lane i: row[column + i]; zero, and not read, outside [0, extent)
store_lanes(target, vector, first, last)    lanes [first, last)
every_other(a, b)                           the even lanes of a, the odd ones of b
zip_low(a, b), zip_high(a, b)               the lower, the upper half of a and b, in turns
"""

from __future__ import annotations

import numpy as np

from fastconv._numba._late import Module
from fastconv._numba._pool_simd import (
    _below, _lane_numbers, _masked_store, _python_load_inside, _resize, _shuffler, _spread,
)  # fmt: skip
from fastconv._numba._simd import _call, _element, _pointer, _vector, _with_python, put

ir, types = Module("llvmlite.ir"), Module("numba.core.types")


@_with_python(lambda row, column, extent, dtype: _python_load_inside(row, column, extent, 0, dtype))
def load_inside(typingctx, row, column, extent, dtype):
    element = _element(dtype)
    vector, bits = _vector(element), element.bitwidth

    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        start, limit = (_resize(builder, value, bits) for value in arguments[1:3])
        at = _pointer(builder, arguments[0], arguments[1], llvm_type, bits)
        # The sign bit decides, and a masked load looks at nothing else: lane - extent < 0 and lane >= 0
        lane = builder.add(_spread(builder, start, vector.count), _lane_numbers(vector.count, bits))
        beyond = builder.sub(lane, _spread(builder, limit, vector.count))
        mask = builder.icmp_signed("<", builder.and_(beyond, builder.not_(lane)), lane.type(None))
        name = f"llvm.masked.load.v{vector.count}f{bits}.p0"
        return _call(builder, name, llvm_type, [at, ir.IntType(32)(bits // 8), mask, llvm_type(None)])

    return vector(types.int64, types.int64, types.int64, dtype), codegen


def _python_store_lanes(target, value, first, last):
    for i in range(first, last):
        put(target, i, value[i])


@_with_python(_python_store_lanes)
def store_lanes(typingctx, target, value, first, last):
    def codegen(context, builder, signature, arguments):
        bits = value.dtype.bitwidth
        at = builder.inttoptr(arguments[0], arguments[1].type.as_pointer())
        start, count = builder.neg(arguments[2]), builder.sub(arguments[3], arguments[2])
        mask = _below(builder, *(_resize(builder, each, bits) for each in (start, count)), value.count)
        _masked_store(builder, arguments[1], at, mask, bits, f"f{bits}")
        return context.get_dummy_value()

    return types.none(types.int64, value, types.int64, types.int64), codegen


every_other = _shuffler(lambda count, half: [2 * j + (2 * j >= count) for j in range(count)])
zip_low = _shuffler(lambda count, half: [j // 2 + j % 2 * count for j in range(count)])
zip_high = _shuffler(lambda count, half: [count // 2 + j // 2 + j % 2 * count for j in range(count)])
