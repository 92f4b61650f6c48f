"""Numba's side of the vectors of `_simd`: the type, and the operators + - * and unary - on it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import lower_builtin, models, register_model


class Vector(types.Type):
    """``count`` elements of a Numba scalar type in one register."""

    def __init__(self, dtype: types.Type, count: int) -> None:
        self.dtype, self.count = dtype, count
        super().__init__(name=f"vector({count} x {dtype})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        element = manager.lookup(vector.dtype).get_value_type()
        super().__init__(manager, vector, ir.VectorType(element, vector.count))


def _operator(function: Callable[..., Any], instruction: str, n_arguments: int) -> None:
    """Let ``function`` of the operator module take vectors; NumPy has it for the Python form."""

    @infer_global(function)
    class _Template(AbstractTemplate):
        def generic(self, args, kws):
            if len(args) == n_arguments and isinstance(args[0], Vector) and all(arg == args[0] for arg in args):
                return signature(args[0], *args)

    @lower_builtin(function, *[Vector] * n_arguments)
    def lower(context, builder, signature, arguments):
        return getattr(builder, instruction)(*arguments, flags=("contract",))


_operator(operator.add, "fadd", 2)
_operator(operator.sub, "fsub", 2)
_operator(operator.mul, "fmul", 2)
_operator(operator.neg, "fneg", 1)
