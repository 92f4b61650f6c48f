"""Vectors for convolution, beside those of `_simd`: a row's border, and every other cell.

load_inside(row, column, extent, dtype)     lane i: row[column + i]; zero, and not read, outside [0, extent)
store_lanes(target, vector, first, last)    lanes [first, last)
even(a, b), odd(a, b)                       every other lane of a and b, in an order that costs one instruction:
                                            128-bit lanes stay where they are
every_other(a, b)                           the even lanes of a, the odd ones of b
in_order(a, a), out_of_order(a, a)          from that order to the natural one, and back
zip_low(a, b), zip_high(a, b)               the lower, the upper half of a and b, in turns
"""

from __future__ import annotations

import numpy as np

from fastconv._numba._late import Module
from fastconv._numba._pool_simd import _below, _lane_numbers, _masked_store, _python_load_inside, _resize, _spread
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


def _shuffler(lanes_of):
    """f(a, b): lane j is lane ``lanes_of(count, half)[j]`` of a and b; ``half`` elements make 64 bits."""

    @_with_python(lambda a, b: np.concatenate((a, b))[lanes_of(a.size, 8 // a.itemsize)])
    def shuffle(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            mask = [ir.IntType(32)(lane) for lane in lanes_of(a.count, 64 // a.dtype.bitwidth)]
            return builder.shuffle_vector(*arguments, ir.VectorType(ir.IntType(32), a.count)(mask))

        return a(a, a), codegen

    return shuffle


def _every_other(first):
    return lambda count, half: [
        side + lane + first + 2 * j for lane in range(0, count, 2 * half) for side in (0, count) for j in range(half)
    ]


def _in_order(count, half):
    return [lane + start + j for start in (0, half) for lane in range(0, count, 2 * half) for j in range(half)]


def _out_of_order(count, half):
    return [_in_order(count, half).index(j) for j in range(count)]


even, odd = _shuffler(_every_other(0)), _shuffler(_every_other(1))
in_order, out_of_order = _shuffler(_in_order), _shuffler(_out_of_order)
every_other = _shuffler(lambda count, half: [2 * j + (2 * j >= count) for j in range(count)])
zip_low = _shuffler(lambda count, half: [j // 2 + j % 2 * count for j in range(count)])
zip_high = _shuffler(lambda count, half: [count // 2 + j // 2 + j % 2 * count for j in range(count)])
