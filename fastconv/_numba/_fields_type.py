"""Numba's side of `fields_at` of _common.py: the type, and its attributes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model


class Fields(types.Type):
    """Address of int64 fields as a named tuple has them, which nothing writes."""

    def __init__(self, kind: Any) -> None:
        self.names = kind._fields
        super().__init__(name=f"fields({kind.__module__}.{kind.__name__}: {', '.join(self.names)})")


@register_model(Fields)
class _FieldsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fields: Fields) -> None:
        super().__init__(manager, fields, ir.IntType(64))


@infer_getattr
class _FieldsTemplate(AttributeTemplate):
    key = Fields

    def generic_resolve(self, fields: Fields, name: str) -> types.Type | None:
        return types.int64 if name in fields.names else None


@lower_getattr_generic(Fields)
def _lower_field(context: Any, builder: ir.IRBuilder, fields: Fields, value: ir.Value, name: str) -> ir.Value:
    word = ir.IntType(64)
    loaded = builder.load(builder.gep(builder.inttoptr(value, word.as_pointer()), [word(fields.names.index(name))]))
    # Once is enough, whatever is stored meanwhile
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded
