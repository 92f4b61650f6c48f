"""Vectors as 128-bit lanes: what `winograd` needs beside `_simd` to turn channels and filters into rows of pixels.

A quad is what a lane holds, 4 floats or 2 doubles.

    transpose(a, b, c, d)                       each lane of four vectors is a 4 x 4 matrix, or two of 2 x 2: transposed
    low(a, b), high(a, b)                       the lower or upper halves of each lane, element by element in turns
    load_lanes(address, offset, step, dtype)    lane l from offset + l * step       store_lanes(address, offset, step, v)
    load_twos, store_twos                       the same for two elements: piece b of lane l at offset + (quad*l + b)*step
    any_nan(vector)                             True if a lane is NaN
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastconv._numba._late import Module
from fastconv._numba._simd import Vector, _element, _python_put, _vector, _view, _with_python, lanes

ir, types = Module("llvmlite.ir"), Module("numba.core.types")


def _quad(itemsize: int) -> int:
    return 16 // itemsize


def _masks(count: int, quad: int) -> dict[str, list[int]]:
    """Lanes of two vectors one after the other, by function: single elements in turns, pairs of them in turns."""
    half, firsts = quad // 2, range(0, count, quad)
    found = {}
    for name, start in (("low", 0), ("high", half)):
        found[name] = [side + first + start + j for first in firsts for j in range(half) for side in (0, count)]
        found[f"{name}_pairs"] = [
            side + first + start + j for first in firsts for side in (0, count) for j in range(half)
        ]
    return found


def _shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, mask: list[int]) -> ir.Value:
    lane = ir.IntType(32)
    return builder.shuffle_vector(a, b, ir.VectorType(lane, len(mask))([lane(position) for position in mask]))


def _shuffled_masks(vector: Vector) -> dict[str, list[int]]:
    return _masks(vector.count, _quad(vector.dtype.bitwidth // 8))


def _python_shuffle(name: str, a: Any, b: Any) -> Any:
    return np.concatenate((a, b))[_masks(a.size, _quad(a.itemsize))[name]]


@_with_python(lambda a, b: _python_shuffle("low", a, b))
def low(typingctx, a, b):
    mask = _shuffled_masks(a)["low"]
    return a(a, a), lambda context, builder, signature, arguments: _shuffled(builder, *arguments, mask)


@_with_python(lambda a, b: _python_shuffle("high", a, b))
def high(typingctx, a, b):
    mask = _shuffled_masks(a)["high"]
    return a(a, a), lambda context, builder, signature, arguments: _shuffled(builder, *arguments, mask)


def _python_transpose(a, b, c, d):
    turns = [_python_shuffle(name, *pair) for pair in ((a, b), (c, d)) for name in ("low", "high")]
    if a.itemsize == 8:
        return tuple(turns)
    pairs = [(name, turns[i], turns[i + 2]) for i in (0, 1) for name in ("low_pairs", "high_pairs")]
    return tuple(_python_shuffle(*each) for each in pairs)


@_with_python(_python_transpose)
def transpose(typingctx, a, b, c, d):
    masks, result = _shuffled_masks(a), types.UniTuple(a, 4)

    def codegen(context, builder, signature, arguments):
        turns = [
            _shuffled(builder, *pair, masks[name])
            for pair in (arguments[:2], arguments[2:])
            for name in ("low", "high")
        ]
        if a.dtype == types.float32:
            turns = [
                _shuffled(builder, turns[i], turns[i + 2], masks[name])
                for i in (0, 1)
                for name in ("low_pairs", "high_pairs")
            ]
        return context.make_tuple(builder, result, turns)

    return result(a, a, a, a), codegen


def _places(count: int, quad: int, whole: bool) -> tuple[int, list[tuple[int, int]]]:
    """Elements of a piece, a whole lane or two; (first element, steps) of every piece."""
    if whole:
        return quad, [(first, first // quad) for first in range(0, count, quad)]
    return 2, [(first, first // quad * quad + first % quad // 2) for first in range(0, count, 2)]


def _at(builder: ir.IRBuilder, arguments: Any, steps: int, kind: ir.Type, size: int) -> ir.Value:
    address, offset, step = arguments[:3]
    word = ir.IntType(64)
    elements = builder.add(offset, builder.mul(step, word(steps)))
    return builder.inttoptr(builder.add(address, builder.mul(elements, word(size))), kind.as_pointer())


def _load_pieces(whole: bool, dtype: types.Type) -> Any:
    element = _element(dtype)
    vector, size = _vector(element), element.bitwidth // 8
    width, places = _places(vector.count, _quad(size), whole)

    def codegen(context, builder, signature, arguments):
        kind = ir.VectorType(context.get_value_type(element), width)
        parts = [builder.load(_at(builder, arguments, steps, kind, size), align=size) for _, steps in places]
        while len(parts) > 1:  # two by two: all are of one width
            mask = list(range(2 * parts[0].type.count))
            parts = [_shuffled(builder, a, b, mask) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return vector(types.int64, types.int64, types.int64, dtype), codegen


def _store_pieces(whole: bool, vector: Vector) -> Any:
    size = vector.dtype.bitwidth // 8
    width, places = _places(vector.count, _quad(size), whole)

    def codegen(context, builder, signature, arguments):
        kind = ir.VectorType(context.get_value_type(vector.dtype), width)
        for first, steps in places:
            part = _shuffled(builder, arguments[3], arguments[3], list(range(first, first + width)))
            builder.store(part, _at(builder, arguments, steps, kind, size), align=size)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64, vector), codegen


def _python_load(whole: bool, address: int, offset: int, step: int, dtype: Any) -> Any:
    width, places = _places(lanes(dtype), _quad(np.dtype(dtype).itemsize), whole)
    return np.concatenate([_view(address, offset + steps * step, width, dtype) for _, steps in places])


def _python_store(whole: bool, address: int, offset: int, step: int, vector: Any) -> None:
    width, places = _places(vector.size, _quad(vector.itemsize), whole)
    for first, steps in places:
        _python_put(address, offset + steps * step, vector[first : first + width])


@_with_python(lambda address, offset, step, dtype: _python_load(True, address, offset, step, dtype))
def load_lanes(typingctx, address, offset, step, dtype):
    return _load_pieces(True, dtype)


@_with_python(lambda address, offset, step, vector: _python_store(True, address, offset, step, vector))
def store_lanes(typingctx, address, offset, step, vector):
    return _store_pieces(True, vector)


@_with_python(lambda address, offset, step, dtype: _python_load(False, address, offset, step, dtype))
def load_twos(typingctx, address, offset, step, dtype):
    return _load_pieces(False, dtype)


@_with_python(lambda address, offset, step, vector: _python_store(False, address, offset, step, vector))
def store_twos(typingctx, address, offset, step, vector):
    return _store_pieces(False, vector)


@_with_python(lambda vector: bool(np.isnan(vector).any()))
def any_nan(typingctx, vector):
    def codegen(context, builder, signature, arguments):
        wrong = builder.fcmp_unordered("uno", arguments[0], arguments[0])
        bits = builder.bitcast(wrong, ir.IntType(vector.count))
        return builder.icmp_unsigned("!=", bits, ir.IntType(vector.count)(0))

    return types.boolean(vector), codegen
