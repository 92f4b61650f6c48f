"""Vectors for convolution, beside those of `_simd`: a row's border, and shuffles that keep the order of elements.

load_inside(row, column, extent, dtype)     lane i: row[column + i]; zero, and not read, outside [0, extent)
join_inside(v, row, column, extent)         the same, but v outside
store_lanes(target, vector, first, last)    lanes [first, last)
every_other(a, b)                           the even lanes of a, the odd ones of b
even(a, b), odd(a, b)                       every other lane of a, then of b; before AVX-512 in the order of _pool_simd
untangle(v), apart(v)                       lead from that order to the natural one, and back
following(v), preceding(v)                  every lane from the next one, from the one before, round in a circle
halves(a, b)                                the lower half of a, the upper one of b
zip_low(a, b), zip_high(a, b)               the lower, the upper half of a and b, in turns
first_lanes(v, count)                       v in the first ``count`` lanes, zeros behind
within(i, extent)                           0 <= i < extent by one comparison, which a branch may take to be nearly always true
aligned()                                   has the function that calls it keep vectors that leave their registers in one cache
                                            line each; left alone, LLVM does so or not as the caller's stack happens to lie
hidden(address)                             the same address, about which the compiler knows nothing: what is stored there is
                                            read again where it is used and takes no register

ORDERED says that the CPU has AVX-512: any order of lanes costs one instruction, and some lanes are loaded and stored as fast
as all.
"""

from __future__ import annotations

import numpy as np

from fastconv._numba._late import Module
from fastconv._numba._pool_simd import (
    _below, _evens, _lane_numbers, _masked_store, _odds, _permuter, _python_load_inside, _resize, _shuffler, _spread,
)  # fmt: skip
from fastconv._numba._pool_simd import apart as _apart
from fastconv._numba._pool_simd import untangle as _untangle
from fastconv._numba._simd import VECTOR_BYTES, _call, _element, _pointer, _vector, _with_python, put

ir, types = Module("llvmlite.ir"), Module("numba.core.types")

ORDERED = int(VECTOR_BYTES == 64)


def _load(builder, vector, llvm_type, row, column, extent, others):
    bits = vector.dtype.bitwidth
    start, limit = (_resize(builder, value, bits) for value in (column, extent))
    at = _pointer(builder, row, column, llvm_type, bits)
    # The sign bit decides, and a masked load looks at nothing else: lane - extent < 0 and lane >= 0
    lane = builder.add(_spread(builder, start, vector.count), _lane_numbers(vector.count, bits))
    beyond = builder.sub(lane, _spread(builder, limit, vector.count))
    mask = builder.icmp_signed("<", builder.and_(beyond, builder.not_(lane)), lane.type(None))
    name = f"llvm.masked.load.v{vector.count}f{bits}.p0"
    return _call(builder, name, llvm_type, [at, ir.IntType(32)(bits // 8), mask, others])


@_with_python(lambda row, column, extent, dtype: _python_load_inside(row, column, extent, 0, dtype))
def load_inside(typingctx, row, column, extent, dtype):
    vector = _vector(_element(dtype))

    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        return _load(builder, vector, llvm_type, *arguments[:3], llvm_type(None))

    return vector(types.int64, types.int64, types.int64, dtype), codegen


@_with_python(lambda v, row, column, extent: _python_load_inside(row, column, extent, v, v.dtype))
def join_inside(typingctx, v, row, column, extent):
    def codegen(context, builder, signature, arguments):
        return _load(builder, v, arguments[0].type, *arguments[1:], arguments[0])

    return v(v, types.int64, types.int64, types.int64), codegen


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
even = _shuffler(lambda count, half: list(range(0, 2 * count, 2)) if ORDERED else _evens(count, half))
odd = _shuffler(lambda count, half: list(range(1, 2 * count, 2)) if ORDERED else _odds(count, half))
untangle = _permuter(lambda count, half: list(range(count))) if ORDERED else _untangle
apart = untangle if ORDERED else _apart
following = _permuter(lambda count, half: [*range(1, count), 0])
preceding = _permuter(lambda count, half: [count - 1, *range(count - 1)])
halves = _shuffler(lambda count, half: [lane + lane // (count // 2) * count for lane in range(count)])
zip_low = _shuffler(lambda count, half: [j // 2 + j % 2 * count for j in range(count)])
zip_high = _shuffler(lambda count, half: [count // 2 + j // 2 + j % 2 * count for j in range(count)])


@_with_python(lambda v, count: np.where(np.arange(v.size) < count, v, v.dtype.type(0)))
def first_lanes(typingctx, v, count):
    def codegen(context, builder, signature, arguments):
        value = arguments[0]
        mask = _below(builder, ir.IntType(64)(0), arguments[1], v.count)
        return builder.select(mask, value, value.type(None))

    return v(v, types.int64), codegen


@_with_python(lambda i, extent: 0 <= i < extent)
def within(typingctx, i, extent):
    def codegen(context, builder, signature, arguments):
        inside = builder.icmp_unsigned("<", *arguments)
        return _call(builder, "llvm.expect.i1", inside.type, [inside, inside.type(1)])

    return types.boolean(types.int64, types.int64), codegen


@_with_python(lambda: None)
def aligned(typingctx):
    def codegen(context, builder, signature, arguments):
        builder.function.attributes.alignstack = VECTOR_BYTES
        return context.get_dummy_value()

    return types.none(), codegen


@_with_python(lambda address: address)
def hidden(typingctx, address):
    def codegen(context, builder, signature, arguments):
        word = arguments[0].type
        return builder.asm(ir.FunctionType(word, [word]), "", "=r,0", arguments, side_effect=False)

    return types.int64(types.int64), codegen
