"""Vectors for pooling, beside those of `_simd`: loads that stop at the border of the image, and the rules of a maximum.

Cells are integers as wide as the elements: a vector of them has as many lanes.

    load_inside(address, offset, extent, border, dtype)   lane i: element offset + i; border, and not read, where that is
                                                          not in [0, extent)
    insert(v, lane, value)                                v with one lane replaced
    even(a, b), odd(a, b)                                 every other lane of a, then of b, as 128-bit pieces allow:
                                                          a[0] a[2] b[0] b[2] a[4] ...
    next_even(v)                                          v as even gives it: each lane's next; in the last lane any
    untangle(v)                                           puts the pairs of such a result into their places
    before(v), after(v)                                   each lane's neighbour below or above; at the end itself
    store_first(address, offset, v, count)                the first ``count`` lanes
    store_halves(address, v, step)                        the lower lanes to the address, the upper ones ``step`` bytes behind
    divide(a, b), sum_of_lanes(v)                         a / b; the sum, by halves
    fold_max(best, value)                                 the maximum: NaN wins, of equals best (zeros have signs)
    takes(best, value)                                    mask: value is larger, or the first NaN
    larger(best, value)                                   mask: value > best
    pick(mask, a, b)                                      a where the mask is set, else b
    ramp(first, step, dtype)                              cells: lane i is first + i * step
    add_cells(a, b), load_cells(address, offset, dtype)   cells; `store` of _simd writes them
    subtract_cells(a, b)                                  cells: a - b
    no_flags(dtype)                                       flags of lanes, none set: a mask with AVX-512, cells without
    note_nan(flags, a, b), has_flags(flags)               flags, set where a or b is NaN besides; whether one is set
    store_cells(address, offset, cells, base, count)      the first ``count`` cells + base, as 64 bits
    store_tangled_cells(address, offset, cells)           cells that are not negative, untangled, as 64 bits
    load_indices(address, offset, dtype)                  int64 indices as cells, apart
    apart(v), zip_pieces_low(a, b), zip_pieces_high(a, b) pairs of 64 bits, ordered so that the lower and upper halves of all
                                                          128-bit pieces of a and b, in turns, stand in the elements' order
    beyond_cells(address, offset, dtype)                  cells, in any order: what of these does not fit into a cell, or 0
    same(a, b), first_ones(count, dtype)                  mask: cells are equal; cells: 1 in the first ``count`` lanes, 0 behind
    lanes_outside(column, extent, dtype)                  mask: column + lane is not in [0, extent)
    outside(cells, extent)                                mask: cells that are not in [0, extent)
    either(a, b)                                          cells: the bits of both
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from fastconv._numba._late import Module
from fastconv._numba._simd import (
    VECTOR_BYTES, Vector, _call, _element, _pointer, _read, _vector, _view, _with_python, lanes,
)  # fmt: skip

ir, types = Module("llvmlite.ir"), Module("numba.core.types")

# ------------------------------------------------------------------------------------------------------- in plain LLVM


def _cells(vector: Vector) -> Vector:
    return Vector(types.int32 if vector.dtype.bitwidth == 32 else types.int64, vector.count)


def _lane_numbers(count: int, bits: int) -> ir.Constant:
    return ir.VectorType(ir.IntType(bits), count)(list(range(count)))


def _spread(builder: ir.IRBuilder, value: ir.Value, count: int) -> ir.Value:
    llvm_type = ir.VectorType(value.type, count)
    first = builder.insert_element(llvm_type(ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.VectorType(ir.IntType(32), count)(None))


def _resize(builder: ir.IRBuilder, value: ir.Value, bits: int) -> ir.Value:
    return value if value.type.width == bits else builder.trunc(value, ir.IntType(bits))


def _below(builder: ir.IRBuilder, start: ir.Value, limit: ir.Value, count: int) -> ir.Value:
    """Mask of the lanes with start + lane < limit, unsigned: what is negative is not below either."""
    at = builder.add(_spread(builder, start, count), _lane_numbers(count, start.type.width))
    return builder.icmp_unsigned("<", at, _spread(builder, limit, count))


def _masked_store(builder: ir.IRBuilder, value: ir.Value, at: ir.Value, mask: ir.Value, bits: int, kind: str) -> None:
    name = f"llvm.masked.store.v{value.type.count}{kind}.p0"
    _call(builder, name, ir.VoidType(), [value, at, ir.IntType(32)(bits // 8), mask])


# -------------------------------------------------------------------------------------------------------------- memory


def _python_load_inside(address: int, offset: int, extent: int, border: Any, dtype: Any) -> np.ndarray:
    at = offset + np.arange(lanes(dtype))
    result = np.full(at.size, border, dtype)
    for lane in np.flatnonzero((at >= 0) & (at < extent)):
        result[lane] = _view(address, at[lane], 1, dtype)[0]
    return result


@_with_python(_python_load_inside)
def load_inside(typingctx, address, offset, extent, border, dtype):
    element = _element(dtype)
    vector, bits = _vector(element), element.bitwidth

    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        start, limit = (_resize(builder, value, bits) for value in arguments[1:3])
        mask = _below(builder, start, limit, vector.count)
        at = _pointer(builder, arguments[0], arguments[1], llvm_type, bits)
        others = _spread(builder, arguments[3], vector.count)
        name = f"llvm.masked.load.v{vector.count}f{bits}.p0"
        return _call(builder, name, llvm_type, [at, ir.IntType(32)(bits // 8), mask, others])

    return vector(types.int64, types.int64, types.int64, element, dtype), codegen


def _python_store_first(address: int, offset: int, vector: np.ndarray, count: int) -> None:
    count = max(min(count, vector.size), 0)
    if count:
        _view(address, offset, count, vector.dtype)[...] = vector[:count]


@_with_python(_python_store_first)
def store_first(typingctx, address, offset, vector, count):
    def codegen(context, builder, signature, arguments):
        bits = vector.dtype.bitwidth
        at = _pointer(builder, arguments[0], arguments[1], arguments[2].type, bits)
        mask = _below(builder, ir.IntType(64)(0), arguments[3], vector.count)
        _masked_store(builder, arguments[2], at, mask, bits, f"f{bits}")
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, vector, types.int64), codegen


def _python_store_halves(address: int, vector: np.ndarray, step: int) -> None:
    for half in (0, 1):
        part = vector[half * vector.size // 2 :][: vector.size // 2]
        _view(address + half * step, 0, part.size, vector.dtype)[...] = part


@_with_python(_python_store_halves)
def store_halves(typingctx, address, vector, step):
    def codegen(context, builder, signature, arguments):
        at, value, step = arguments
        count = vector.count // 2
        if VECTOR_BYTES == 64:
            # Whole, in a register: of two halves the compiler would permute each, at twice the price
            value = builder.asm(ir.FunctionType(value.type, [value.type]), "", "=x,0", [value], side_effect=False)
        for first in (0, count):
            mask = ir.VectorType(ir.IntType(32), count)(list(range(first, first + count)))
            half = builder.shuffle_vector(value, value, mask)
            to = builder.inttoptr(builder.add(at, step) if first else at, half.type.as_pointer())
            builder.store(half, to, align=vector.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(types.int64, vector, types.int64), codegen


@_with_python(
    lambda address, offset, dtype: _view(address, offset, lanes(dtype), f"i{np.dtype(dtype).itemsize}").copy()
)
def load_cells(typingctx, address, offset, dtype):
    element = _element(dtype)
    return _read(_cells(_vector(element)), element, dtype)


def _python_store_cells(address: int, offset: int, cells: np.ndarray, base: int, count: int) -> None:
    _python_store_first(address, offset, cells.astype(np.int64) + base, count)


@_with_python(_python_store_cells)
def store_cells(typingctx, address, offset, cells, base, count):
    def codegen(context, builder, signature, arguments):
        wide = ir.VectorType(ir.IntType(64), cells.count)
        value = arguments[2] if cells.dtype.bitwidth == 64 else builder.sext(arguments[2], wide)
        value = builder.add(value, _spread(builder, arguments[3], cells.count))
        at = _pointer(builder, arguments[0], arguments[1], wide, 64)
        whole = builder.icmp_signed(">=", arguments[4], ir.IntType(64)(cells.count))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                builder.store(value, at, align=8)
            with otherwise:
                mask = _below(builder, ir.IntType(64)(0), arguments[4], cells.count)
                _masked_store(builder, value, at, mask, 64, "i64")
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, cells, types.int64, types.int64), codegen


def _tangled_pieces(count: int, upper: bool) -> list[int]:
    """32-bit cells and, beside each, one of a vector behind them: the lower or upper pairs of the 128-bit pieces."""
    return [piece + 2 * upper + j + side for piece in range(0, count, 4) for j in (0, 1) for side in (0, count)]


def _python_store_tangled_cells(address: int, offset: int, cells: np.ndarray) -> None:
    _python_store_cells(address, offset, cells[_untangled(cells.size, 8 // cells.itemsize)], 0, cells.size)


@_with_python(_python_store_tangled_cells)
def store_tangled_cells(typingctx, address, offset, cells):
    def codegen(context, builder, signature, arguments):
        value, count = arguments[2], cells.count
        if cells.dtype.bitwidth == 64:
            places = [_untangled(count, 1)]
        else:
            places = [_tangled_pieces(count, upper) for upper in (False, True)]
        for number, lanes_of in enumerate(places):
            mask = ir.VectorType(ir.IntType(32), count)(lanes_of)
            to = builder.add(arguments[1], ir.IntType(64)(number * count // 2))
            part = builder.shuffle_vector(value, value.type(None), mask)
            builder.store(part, _pointer(builder, arguments[0], to, value.type, 64), align=8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, cells), codegen


# --------------------------------------------------------------------------------------------------------------- lanes


def _python_insert(vector: np.ndarray, lane: int, value: Any) -> np.ndarray:
    result = vector.copy()
    result[lane] = value
    return result


@_with_python(_python_insert)
def insert(typingctx, vector, lane, value):
    def codegen(context, builder, signature, arguments):
        return builder.insert_element(arguments[0], arguments[2], arguments[1])

    return vector(vector, types.int64, vector.dtype), codegen


def _shuffler(places: Callable[[int, int], list[int]]) -> Any:
    """f(a, b): lane j is lane ``places(count, half)[j]`` of a, then b; ``half`` elements make 64 bits."""

    def shuffle(typingctx, a, b):
        def codegen(context, builder, signature, arguments):
            mask = ir.VectorType(ir.IntType(32), a.count)(places(a.count, 64 // a.dtype.bitwidth))
            return builder.shuffle_vector(*arguments, mask)

        return a(a, b), codegen

    return _with_python(lambda a, b: np.concatenate((a, b))[places(a.size, 8 // a.itemsize)])(shuffle)


def _permuter(places: Callable[[int, int], list[int]]) -> Any:
    """f(v): the same of one vector."""

    def permute(typingctx, v):
        def codegen(context, builder, signature, arguments):
            mask = ir.VectorType(ir.IntType(32), v.count)(places(v.count, 64 // v.dtype.bitwidth))
            return builder.shuffle_vector(arguments[0], arguments[0], mask)

        return v(v), codegen

    return _with_python(lambda v: v[places(v.size, 8 // v.itemsize)])(permute)


def _evens(count: int, half: int) -> list[int]:
    return [piece + side + 2 * j for piece in range(0, count, 2 * half) for side in (0, count) for j in range(half)]


def _odds(count: int, half: int) -> list[int]:
    return [lane + 1 for lane in _evens(count, half)]


def _following(count: int, half: int) -> list[int]:
    """For each lane of `even` the lane that holds the element after its own."""
    elements = _evens(count, half)  # twice their number among the even ones
    return [elements.index(min(element + 2, 2 * count - 2)) for element in elements]


def _untangled(count: int, half: int) -> list[int]:
    """Pairs of 64 bits: 0, 2, ..., 1, 3, ..."""
    return [piece + first + j for first in (0, half) for piece in range(0, count, 2 * half) for j in range(half)]


def _apart(count: int, half: int) -> list[int]:
    return [_untangled(count, half).index(lane) for lane in range(count)]


def _zipped_pieces(count: int, half: int, second: int = 0) -> list[int]:
    return [
        piece + second * half + lane + side
        for piece in range(0, count, 2 * half)
        for lane in range(half)
        for side in (0, count)
    ]


even, odd, next_even = _shuffler(_evens), _shuffler(_odds), _permuter(_following)
untangle, apart = _permuter(_untangled), _permuter(_apart)
before = _permuter(lambda count, half: [0, *range(count - 1)])
after = _permuter(lambda count, half: [*range(1, count), count - 1])
zip_pieces_low, zip_pieces_high = _shuffler(_zipped_pieces), _shuffler(partial(_zipped_pieces, second=1))


@_with_python(lambda a, b: a / b)
def divide(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, arguments: builder.fdiv(*arguments)


@_with_python(lambda v: np.add.reduce(v))
def sum_of_lanes(typingctx, v):
    def codegen(context, builder, signature, arguments):
        value, count = arguments[0], v.count
        while count > 1:
            count //= 2
            halves = [ir.VectorType(ir.IntType(32), count)(list(range(at, at + count))) for at in (0, count)]
            value = builder.fadd(*(builder.shuffle_vector(value, value, half) for half in halves))
        return builder.extract_element(value, ir.IntType(32)(0))

    return v.dtype(v), codegen


# --------------------------------------------------------------------------------------------------------------- rules


@_with_python(lambda best, value: np.where(np.isnan(value), value, np.where(value > best, value, best)))
def fold_max(typingctx, best, value):
    def codegen(context, builder, signature, arguments):
        best, value = arguments
        maximum = builder.select(builder.fcmp_ordered(">", value, best), value, best)
        return builder.select(builder.fcmp_unordered("uno", value, value), value, maximum)

    return best(best, value), codegen


@_with_python(lambda best, value: ~(value <= best) & ~np.isnan(best))
def takes(typingctx, best, value):
    def codegen(context, builder, signature, arguments):
        best, value = arguments
        return builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))

    return Vector(types.boolean, best.count)(best, value), codegen


@_with_python(lambda best, value: value > best)
def larger(typingctx, best, value):
    def codegen(context, builder, signature, arguments):
        return builder.fcmp_ordered(">", arguments[1], arguments[0])

    return Vector(types.boolean, best.count)(best, value), codegen


@_with_python(lambda mask, a, b: np.where(mask, a, b))
def pick(typingctx, mask, a, b):
    return a(mask, a, b), lambda context, builder, signature, arguments: builder.select(*arguments)


@_with_python(
    lambda first, step, dtype: (first + step * np.arange(lanes(dtype))).astype(f"i{np.dtype(dtype).itemsize}")
)
def ramp(typingctx, first, step, dtype):
    cells = _cells(_vector(_element(dtype)))

    def codegen(context, builder, signature, arguments):
        bits = cells.dtype.bitwidth
        first, step = (_spread(builder, _resize(builder, value, bits), cells.count) for value in arguments[:2])
        return builder.add(first, builder.mul(step, _lane_numbers(cells.count, bits)))

    return cells(types.int64, types.int64, dtype), codegen


@_with_python(lambda a, b: a + b)
def add_cells(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, arguments: builder.add(*arguments)


@_with_python(lambda a, b: a - b)
def subtract_cells(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, arguments: builder.sub(*arguments)


# As cells, each note would take a slow transfer from a mask register; without those, masks are cells themselves
@_with_python(lambda dtype: np.zeros(lanes(dtype), f"i{np.dtype(dtype).itemsize}"))
def no_flags(typingctx, dtype):
    vector = _vector(_element(dtype))
    flags = Vector(types.boolean, vector.count) if VECTOR_BYTES == 64 else _cells(vector)
    return flags(dtype), lambda context, builder, signature, arguments: context.get_value_type(flags)(None)


@_with_python(lambda flags, a, b: flags | -(np.isnan(a) | np.isnan(b)).astype(flags.dtype))
def note_nan(typingctx, flags, a, b):
    def codegen(context, builder, signature, arguments):
        if VECTOR_BYTES == 32:  # by name: CPUs that have masks as well would compare into one
            kind = "ps" if a.dtype == types.float32 else "pd"
            unordered = ir.IntType(8)(3)
            nan = _call(builder, f"llvm.x86.avx.cmp.{kind}.256", arguments[1].type, [*arguments[1:], unordered])
            return builder.or_(arguments[0], builder.bitcast(nan, arguments[0].type))
        nan = builder.fcmp_unordered("uno", arguments[1], arguments[2])
        return builder.or_(arguments[0], nan if flags.dtype == types.boolean else builder.sext(nan, arguments[0].type))

    return flags(flags, a, b), codegen


@_with_python(lambda flags: bool(np.any(flags)))
def has_flags(typingctx, flags):
    def codegen(context, builder, signature, arguments):
        bits = ir.IntType(flags.count if flags.dtype == types.boolean else VECTOR_BYTES * 8)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], bits), bits(0))

    return types.boolean(flags), codegen


def _python_load_indices(address: int, offset: int, dtype: Any) -> np.ndarray:
    cells = _view(address, offset, lanes(dtype), np.int64).astype(f"i{np.dtype(dtype).itemsize}")
    return cells[_apart(cells.size, 8 // cells.itemsize)]


@_with_python(_python_load_indices)
def load_indices(typingctx, address, offset, dtype):
    cells = _cells(_vector(_element(dtype)))

    def codegen(context, builder, signature, arguments):
        llvm_type, count = context.get_value_type(cells), cells.count
        narrow = cells.dtype.bitwidth == 32  # the lower halves, as 128-bit pieces allow: that is apart, too
        mask = _evens(count, 2) if narrow else _apart(count, 1)
        at = [arguments[1], builder.add(arguments[1], ir.IntType(64)(count // 2))]
        pointers = [_pointer(builder, arguments[0], offset, llvm_type, 64) for offset in at]
        low = builder.load(pointers[0], align=8)
        high = builder.load(pointers[1], align=8) if narrow else low
        return builder.shuffle_vector(low, high, ir.VectorType(ir.IntType(32), count)(mask))

    return cells(types.int64, types.int64, dtype), codegen


def _python_beyond_cells(address: int, offset: int, dtype: Any) -> np.ndarray:
    if np.dtype(dtype).itemsize == 8:
        return np.zeros(lanes(dtype), np.int64)
    halves = _view(address, offset, lanes(dtype), np.uint64).reshape(2, -1)
    return ((halves[0] | halves[1]) >> np.uint64(32)).view(np.int32)


@_with_python(_python_beyond_cells)
def beyond_cells(typingctx, address, offset, dtype):
    cells = _cells(_vector(_element(dtype)))

    def codegen(context, builder, signature, arguments):
        llvm_type = context.get_value_type(cells)
        if cells.dtype.bitwidth == 64:
            return llvm_type(None)
        half = cells.count // 2
        wide = ir.VectorType(ir.IntType(64), half)
        at = [arguments[1], builder.add(arguments[1], ir.IntType(64)(half))]
        low, high = (builder.load(_pointer(builder, arguments[0], offset, wide, 64), align=8) for offset in at)
        return builder.bitcast(builder.lshr(builder.or_(low, high), wide([32] * half)), llvm_type)

    return cells(types.int64, types.int64, dtype), codegen


@_with_python(lambda a, b: a | b)
def either(typingctx, a, b):
    return a(a, b), lambda context, builder, signature, arguments: builder.or_(*arguments)


@_with_python(lambda a, b: a == b)
def same(typingctx, a, b):
    def codegen(context, builder, signature, arguments):
        return builder.icmp_signed("==", *arguments)

    return Vector(types.boolean, a.count)(a, b), codegen


@_with_python(lambda count, dtype: (np.arange(lanes(dtype)) < count).astype(f"i{np.dtype(dtype).itemsize}"))
def first_ones(typingctx, count, dtype):
    cells = _cells(_vector(_element(dtype)))

    def codegen(context, builder, signature, arguments):
        # The sign of lane - count: what LLVM knows as a mask it keeps as one, and widens at every use
        bits = cells.dtype.bitwidth
        count = _spread(builder, _resize(builder, arguments[0], bits), cells.count)
        return builder.lshr(
            builder.sub(_lane_numbers(cells.count, bits), count),
            ir.VectorType(ir.IntType(bits), cells.count)([bits - 1] * cells.count),
        )

    return cells(types.int64, dtype), codegen


def _python_lanes_outside(column: int, extent: int, dtype: Any) -> np.ndarray:
    at = column + np.arange(lanes(dtype))
    return (at < 0) | (at >= extent)


@_with_python(_python_lanes_outside)
def lanes_outside(typingctx, column, extent, dtype):
    element = _element(dtype)
    count = _vector(element).count

    def codegen(context, builder, signature, arguments):
        start, limit = (_resize(builder, value, element.bitwidth) for value in arguments[:2])
        return builder.not_(_below(builder, start, limit, count))

    return Vector(types.boolean, count)(types.int64, types.int64, dtype), codegen


@_with_python(lambda cells, extent: (cells < 0) | (cells >= extent))
def outside(typingctx, cells, extent):
    def codegen(context, builder, signature, arguments):
        limit = _spread(builder, _resize(builder, arguments[1], cells.dtype.bitwidth), cells.count)
        return builder.icmp_unsigned(">=", arguments[0], limit)  # unsigned, what is negative is large

    return Vector(types.boolean, cells.count)(cells, types.int64), codegen
