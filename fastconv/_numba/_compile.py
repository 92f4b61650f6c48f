"""From a task to machine code. Imports Numba, so nothing but a compilation imports this module.

The entry of a task (see `_jit`) is a small generated function that reads its arguments from the table and loops. It is
compiled as a C callback, whose optimised LLVM module is then turned into an object file with one visible symbol.
"""

from __future__ import annotations

import copy
import functools
import gc
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, codegen, compiler, registry, typed_passes, types, typing, untyped_passes
from numba.core import ir as numba_ir
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.ir_utils import build_definitions
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from fastconv._numba import _fields_type, _store, _vector_type  # of whose types Numba hears before it meets one
from fastconv._numba._parallel import DATA

# Behind what heads every object: an array's `char *data; int nd; npy_intp *dimensions;` or a float's `double ob_fval;`.
_DATA = _VALUE = DATA
_DIMENSIONS = _DATA + 16

_WORD = ir.IntType(64)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A compilation makes objects by the million and lets none go: to look through them again and again is a sixth of its time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Part(codegen.JITCodeLibrary):
    """The code of a function, as Numba leaves it. What a task is made of is linked, optimised and turned into machine code
    at once; Numba would do all that for every function, and for all that it calls again.
    """

    codegen = property(lambda self: self)

    def set_env(self, name: str, environment: Any) -> None:
        """Of the function where Numba has compiled it, which it has not."""

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    def _optimize_functions(self, module: binding.ModuleRef) -> None:
        module.data_layout = self._codegen._data_layout

    def finalize(self) -> None:
        self._finalized = True

    def _get_module_for_linking(self) -> binding.ModuleRef:
        """All that the function is made of."""
        module, seen, left = self._final_module.clone(), {self}, [*self._linking_libraries]
        while left:
            library = left.pop()
            if library not in seen:
                seen.add(library)
                is_part = isinstance(library, _Part)
                module.link_in(library._final_module if is_part else library._get_module_for_linking(), preserve=True)
                left += library._linking_libraries if is_part else ()
        for each in module.functions:
            if not each.is_declaration:
                each.linkage = "linkonce_odr"
        return module


@register_pass(mutates_CFG=False, analysis_only=False)
class _LiteralArguments(FunctionPass):
    """Arguments that are literals are constants: branches that they decide against are pruned, not compiled in vain."""

    _name = "literal_arguments"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        blocks = state.func_ir.blocks
        for assignment in (each for block in blocks.values() for each in block.find_insts(numba_ir.Assign)):
            if isinstance(assignment.value, numba_ir.Arg):
                kind = state.args[assignment.value.index]
                if isinstance(kind, types.Literal):
                    assignment.value = numba_ir.Const(kind.literal_value, assignment.loc)
        state.func_ir._definitions = build_definitions(blocks)
        return True


def _quotient(value: int, by: int) -> int:
    """value // by, rounded down, for by > 0."""
    return value // by


def _remainder(value: int, by: int) -> int:
    return value % by


class _Division(AbstractTemplate):
    def generic(self, args, kws):
        if all(isinstance(arg, types.Integer) for arg in args):
            return signature(types.int64, types.int64, types.int64)


@lower_builtin(_quotient, types.int64, types.int64)
def _lower_quotient(context, builder, signature, arguments):
    value, by = arguments
    sign = builder.ashr(value, _WORD(63))  # all bits of a negative value are turned, and turned back: ~(~value // by)
    return builder.xor(builder.udiv(builder.xor(value, sign), by), sign)


@lower_builtin(_remainder, types.int64, types.int64)
def _lower_remainder(context, builder, signature, arguments):
    return builder.sub(arguments[0], builder.mul(_lower_quotient(context, builder, signature, arguments), arguments[1]))


# Numba's own ask first whether the divisor is 0 or -1, and branch on the sign; here divisors are extents
_DIVISION = {operator.floordiv: _quotient, operator.mod: _remainder}
for function in _DIVISION.values():
    infer_global(function)(type(function.__name__, (_Division,), {}))


@register_pass(mutates_CFG=False, analysis_only=False)
class _PlainDivision(FunctionPass):
    """The operators // and % of helpers without cases that no kernel has; a task's own are inlined later, and stay Numba's."""

    _name = "plain_division"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            for expression in block.find_exprs():
                if expression.op == "binop":
                    expression.fn = _DIVISION.get(expression.fn, expression.fn)
        return True


class _Context(typing.Context):
    """Numba's own, which remembers what an operator or a function of `_simd` gives: else each + tries every overload again."""

    @staticmethod
    @functools.cache
    def own() -> _Context:
        context = copy.copy(registry.cpu_target.typing_context)
        context.__class__ = _Context
        context.found = {}
        return context

    def resolve_function_type(self, function: Any, arguments: Any, named: Any) -> Any:
        if named or isinstance(function, (types.Dispatcher, str)):  # compiled functions; arguments that are no types
            return super().resolve_function_type(function, arguments, named)
        key = function, tuple(arguments)
        if key not in self.found:
            self.found[key] = super().resolve_function_type(function, arguments, named)
        return self.found[key]


# Numba's passes, but those that look for closures, array expressions, `with` and other things that no kernel has
_PASSES = (
    untyped_passes.TranslateByteCode, untyped_passes.FixupArgs, untyped_passes.IRProcessing, _LiteralArguments,
    _PlainDivision, untyped_passes.DeadBranchPrune, untyped_passes.GenericRewrites, untyped_passes.InlineInlinables,
    untyped_passes.ReconstructSSA, untyped_passes.DeadBranchPrune, typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis, typed_passes.IRLegalization, typed_passes.AnnotateTypes, typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)  # fmt: skip


class _Compiler(compiler.CompilerBase):
    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *others: Any) -> None:
        if library is None and not numba.config.BOUNDSCHECK:  # what raises, Numba runs
            library = _Part(targetctx.codegen(), "part")
        super().__init__(_Context.own(), targetctx, library, *others)

    def define_pipelines(self) -> list[Any]:
        passes = PassManager("kernels")
        for each in _PASSES:
            passes.add_pass(each, each.__name__)
        passes.finalize()
        return [passes]


# Contraction to FMA yes; NaN, Inf, signed zeros and the order of sums stay as written. Nothing here owns memory, so nothing
# is counted; Python never calls these functions, so they need no wrappers.
OPTIONS = {
    "error_model": "numpy", "fastmath": {"contract"}, "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True,
    "pipeline_class": _Compiler,
}  # fmt: skip


def jit(function: Callable[..., Any], inline: str = "never") -> Any:
    """``function`` for other compiled functions to call."""
    return numba.njit(inline=inline, **OPTIONS)(function)


def _word_at(builder: ir.IRBuilder, address: ir.Value, offset: Any, llvm_type: ir.Type = _WORD) -> ir.Value:
    offset = offset if isinstance(offset, ir.Value) else _WORD(offset)
    return builder.load(builder.inttoptr(builder.add(address, offset), llvm_type.as_pointer()))


def _array_reader(array_type: types.Array) -> Any:
    """f(table, position): the array whose object stands there."""

    @intrinsic
    def read(typingctx, table, position):
        def codegen(context, builder, signature, arguments):
            item = _word_at(builder, arguments[0], builder.mul(arguments[1], _WORD(8)))
            data, dimensions = _word_at(builder, item, _DATA), _word_at(builder, item, _DIMENSIONS)
            size = _WORD(array_type.dtype.bitwidth // 8)
            shape = [_word_at(builder, dimensions, 8 * axis) for axis in range(array_type.ndim)]
            strides, n_items = [], _WORD(1)
            for extent in reversed(shape):
                strides.insert(0, builder.mul(n_items, size))
                n_items = builder.mul(n_items, extent)
            array = cgutils.create_struct_proxy(array_type)(context, builder)
            array.data = builder.inttoptr(data, array.data.type)
            array.meminfo = cgutils.get_null_value(array.meminfo.type)  # owned by the caller
            array.parent = cgutils.get_null_value(array.parent.type)
            array.nitems, array.itemsize = n_items, size
            array.shape, array.strides = cgutils.pack_array(builder, shape), cgutils.pack_array(builder, strides)
            return array._getvalue()

        return array_type(types.int64, types.int64), codegen

    return read


def _number_reader(number: types.Number) -> Any:
    """f(table, position): the float that stands there as ``number``; what counts something is far below 2**53."""

    @intrinsic
    def read(typingctx, table, position):
        def codegen(context, builder, signature, arguments):
            item = _word_at(builder, arguments[0], builder.mul(arguments[1], _WORD(8)))
            value = _word_at(builder, item, _VALUE, ir.DoubleType())
            if number == types.int64:
                return builder.fptosi(value, _WORD)
            return builder.fptrunc(value, ir.FloatType()) if number == types.float32 else value

        return number(types.int64, types.int64), codegen

    return read


_SOURCE = """
def {name}(first, last, worker, table):
    {reads}
    for index in range(first, last):
        task(index, {worker}{arguments})
"""


def compile_task(task: Any, dtype: np.dtype, file: str) -> int:
    """Address of the entry for ``dtype``; its object file is kept for later processes."""
    # Part of the entry: Numba optimises each function together with all that it calls
    space: dict[str, Any] = {"task": jit(task.function, inline="always")}
    reads = []
    for position, (name, kind) in enumerate(task.kinds.items()):
        element = numba.from_dtype(dtype if kind.dtype == "real" else np.dtype(kind.dtype))
        if kind.ndim:
            space[f"read_{name}"] = _array_reader(types.Array(element, kind.ndim, "C", readonly=kind.const))
        else:
            space[f"read_{name}"] = _number_reader(element)
        reads.append(f"{name} = read_{name}(table, {position})")
    name = f"{task.name}_{dtype.name}".replace(".", "_")
    source = _SOURCE.format(
        name=name,
        reads="\n    ".join(reads),
        worker="worker, " if task.has_worker else "",
        arguments=", ".join(task.kinds),
    )
    exec(compile(source, file, "exec"), space)
    return compile_words(space[name], task.name, dtype.name, file)


def compile_words(function: Callable[..., None], task: str, dtype: str, file: str) -> int:
    """Address of ``function``, whose arguments and result are words; its object file is kept for later processes."""
    name = f"{task}_{dtype}".replace(".", "_")
    words = (types.int64,) * function.__code__.co_argcount
    compiled = jit(function)
    with _no_garbage_collection():
        compiled.compile(words)
    overload = compiled.overloads[words]
    module = _alone(overload.library, overload.fndesc.llvm_func_name, name, len(words))
    foreign = [
        each.name
        for each in (*module.functions, *module.global_variables)
        if each.is_declaration and not each.name.startswith("llvm.")
    ]
    if foreign:  # what raises, as under NUMBA_BOUNDSCHECK=1, runs only where Numba is
        callback = numba.cfunc(overload.signature, error_model="numpy", fastmath={"contract"}, _nrt=False)(function)
        _alive.append(callback)
        return callback.address
    return _store.keep(_machine().emit_object(module), task, dtype, file)


def _alone(library: Any, function: str, name: str, n_words: int) -> binding.ModuleRef:
    """LLVM module with one visible function ``name`` of ``n_words`` words, which calls Numba's ``function``."""
    own = ir.Module()
    pointer, status = ir.IntType(8).as_pointer(), ir.IntType(32)
    target = ir.Function(own, ir.FunctionType(status, [pointer, pointer, *[_WORD] * n_words]), function)
    entry = ir.Function(own, ir.FunctionType(_WORD, [_WORD] * n_words), name)
    builder = ir.IRBuilder(entry.append_basic_block())
    places = [builder.alloca(_WORD) for _ in range(2)]  # of the result, 0 for none, and of an exception: none
    builder.call(target, [*[builder.bitcast(place, pointer) for place in places], *entry.args])
    builder.ret(builder.load(places[0]))
    module = library._get_module_for_linking().clone()
    own.triple, own.data_layout = module.triple, module.data_layout
    module.link_in(binding.parse_assembly(str(own)))
    for each in (*module.functions, *module.global_variables):
        if not each.is_declaration and each.name != name and not each.name.startswith("llvm."):
            each.linkage = "internal"
    numba_passes, builder = registry.cpu_target.target_context.codegen()._module_pass_manager()
    numba_passes.run(module, builder)
    passes = binding.create_new_module_pass_manager()
    passes.add_dead_arg_elimination_pass()  # a struct travels as all its fields, of which most functions read a few
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, binding.create_pass_builder(_machine(), binding.create_pipeline_tuning_options()))
    return module


_alive: list[Any] = []  # callbacks that run from Numba's own memory


def _machine() -> binding.TargetMachine:
    """What Numba itself generates code with."""
    triple, cpu, features = registry.cpu_target.target_context.codegen().magic_tuple()
    return binding.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=int(numba.config.OPT), reloc="static", codemodel="jitdefault", jit=True
    )
