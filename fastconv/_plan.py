"""Plans: which algorithm computes a problem, made once and then called.

The list AUTOMATIC is ordered: of its algorithms that do not refuse, the cheapest is taken, the earlier one of equals:
by what `tune` measured where it did, else by each algorithm's own estimate. A plan depends on the problem, its dtype, the
back end and its ISA, whether the weight is packed beforehand, and what was tuned; never on the number of threads.

**Cost model.** An estimate is in nanoseconds on one thread of a 3 GHz core with AVX2: multiply-adds as the algorithm
really does them (whole tiles, whole vectors) over its measured rate, plus what it copies, plus, in a call that packs,
what that takes. Each algorithm's ``cost`` states its own terms. Estimates rank algorithms; they predict no time.
"""

from __future__ import annotations

import math
import time
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from typing import Any

import numpy as np

from fastconv import _arena, _backends, _threads, _tuned
from fastconv._algorithms import NO_INDICES, OPS, Step, border, direct, im2col, pool, winograd
from fastconv._problem import ConvProblem, PoolProblem, choice, flag, shown

ALGORITHMS: dict[str, Any] = {
    "im2col": im2col,
    "direct": direct,
    "winograd": winograd,
    "winograd_wide": winograd.WIDE,
    **winograd.FORCED,
}
AUTOMATIC = ("im2col", "direct", "winograd", "winograd_wide")
# Multiply-adds for each thread of a call, at least: some microseconds, as waking a thread takes. Of pools comparisons,
# of which small planes take several times as long
THREAD_WORK = 120_000
THREAD_POOL = 40_000
SPARE_BYTES = 16 * 2**20  # workspace allowed to "auto" beside twice input and output

known_plans: dict[Any, Plan] = {}  # of public calls, by their raw arguments


def most_workers(work: int, least: int) -> int:
    """Threads for so much work, of which each gets ``least`` or more; one if there is less."""
    return max(work // least, 1)


class Plan:
    """One operation on arrays of fixed shapes, ready to run: ``plan(x, weight, bias, out=, workspace=)``.

    Attributes
    ----------
    problem : ConvProblem or PoolProblem
    op : str
        "forward", "grad_input", "grad_weight", or the name of a pooling kernel.
    algorithm, backend, isa : str
        What was chosen; `isa` is None but for the Cython back end.
    packed : bool
        Whether ``weight`` is what `pack` made of it.
    output_shape : tuple of int

    Raises
    ------
    ValueError
        When called, if `workspace` is smaller than ``workspace_bytes``. Other arrays are not checked: they must be
        C-contiguous, aligned, and of the problem's shapes and dtype.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> problem = fastconv.ConvProblem.from_args("conv2d", (1, 2, 5, 5), (4, 2, 3, 3), "float32")
    >>> plan = fastconv.plan_conv2d(problem, backend="reference")
    >>> plan(np.ones(problem.input_shape, np.float32), np.ones(problem.weight_shape, np.float32), None).shape
    (1, 4, 3, 3)
    """

    def __init__(
        self,
        problem: Any,
        op: str,
        algorithm: str,
        kernels: _backends.Kernels,
        step: Step,
        notes: dict[str, str],
        packed: bool = False,
    ) -> None:
        self.problem, self.op, self.algorithm, self.packed = problem, op, algorithm, packed
        self.backend, self.isa = kernels.backend, kernels.isa
        self._kernels, self._step, self._notes = kernels, step, notes
        self._run = step.run
        self._dtype, self._dtype_name = np.dtype(problem.dtype), problem.dtype
        self._no_bias = np.empty(0, self._dtype)
        self._most_workers = most_workers(problem.macs, THREAD_POOL if op in pool.OPS else THREAD_WORK)
        self._elements = {1: step.workspace(1)}  # of workspace, by number of threads
        if op in ("forward", *pool.OPS):
            fused = getattr(problem, "pool", None)
            self.output_shape = problem.input_shape if op in pool.TO_INPUT else (fused or problem).output_shape
        else:
            self.output_shape = problem.input_shape if op == "grad_input" else problem.weight_shape
        if packed:
            module = ALGORITHMS[algorithm]
            layout = module.packed_layout(problem)
            # Everything that a packed array depends on beside its source
            self.pack_key = (layout, kernels.backend, kernels.isa, problem.G, problem.dtype)

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory that a call needs with the threads it would get now."""
        return self._workspace_elements(self._workers()) * self._dtype.itemsize

    def _workers(self) -> int:
        return min(_threads.get_num_threads(), self._most_workers)

    def _workspace_elements(self, n_workers: int) -> int:
        elements = self._elements.get(n_workers)
        if elements is None:
            elements = self._elements[n_workers] = self._step.workspace(n_workers)
        return elements

    def __call__(
        self,
        *operands: np.ndarray | None,
        out: np.ndarray | None = None,
        workspace: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run on checked arrays: C-contiguous, of the problem's shapes and dtype; a bias of None is none."""
        if operands[-1] is None:
            operands = (*operands[:-1], self._no_bias)
        if out is None:
            out = np.empty(self.output_shape, self._dtype)
        self.run(operands, (out,), workspace)  # type: ignore[arg-type]  # None can only come last
        return out

    def run(
        self, operands: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...], workspace: np.ndarray | None = None
    ) -> None:
        """Run on checked arrays, into ``outputs``."""
        n_workers = self._workers()
        elements = self._workspace_elements(n_workers)
        if workspace is None:
            space = _arena.workspace(elements, self._dtype_name)
            try:
                self._run(*operands, *outputs, space, n_workers)
            finally:
                _arena.keep(space, self._dtype_name)
            return
        space = workspace.view(self._dtype)
        if space.size < elements:
            raise ValueError(
                f"Plan: workspace has {workspace.nbytes} bytes: it must have {elements * self._dtype.itemsize}"
            )
        self._run(*operands, *outputs, space, n_workers)

    def pack(self, weight: np.ndarray) -> np.ndarray:
        """``weight``, checked, as a plan with ``packed`` reads it: a new array, or itself if it is read as it stands."""
        module, problem = ALGORITHMS[self.algorithm], self.problem
        size = module.packed_size(self._kernels, problem)
        if not size:
            return weight
        packed = _arena.aligned_empty(size * self._dtype.itemsize).view(self._dtype)
        module.pack(self._kernels, problem, weight, packed, self._workers())
        packed.flags.writeable = False
        return packed

    def explain(self) -> str:
        """What was chosen and what it needs, and why the other algorithms were not."""
        lines = [
            f"{self.op} of {self.problem}",
            f"  algorithm  {self.algorithm}",
            f"  back end   {self.backend}{f' ({self.isa})' if self.isa else ''}",
            f"  workspace  {self.workspace_bytes} bytes, {self._step.packed_elements * self._dtype.itemsize} of them "
            "for packed weights",
            f"  threads    {self._workers()}",
        ]
        if self._step.detail:
            lines.append(f"  {self._step.detail}")
        lines += [f"  not {name}: {reason}" for name, reason in self._notes.items()]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return _planned_again, (self.problem, self.op, self.algorithm, self.backend, self.isa, self.packed, self._notes)

    def __repr__(self) -> str:
        where = f"{self.backend}/{self.isa}" if self.isa else self.backend
        return f"<Plan {self.op} {self.algorithm} {where} {self.problem}>"


def _planned_again(
    problem: Any, op: str, algorithm: str, backend: str, isa: str | None, packed: bool, notes: dict[str, str]
) -> Plan:
    """A pickled or copied plan: the same choice, or BackendUnavailable where it cannot run."""
    k = _backends.kernels(backend, isa)
    step = pool.step(k, problem, op) if op in pool.OPS else _make(k, problem, op, algorithm, packed)
    return Plan(problem, op, algorithm, k, step, notes, packed)


def plan_conv2d(
    problem: ConvProblem,
    algorithm: str = "auto",
    backend: str = "auto",
    *,
    op: str = "forward",
    packed: bool = False,
) -> Plan:
    """Choose how to compute a convolution or one of its gradients.

    Parameters
    ----------
    problem : ConvProblem
    algorithm : {"auto", "im2col", "direct", "winograd", "winograd_wide", "winograd_f2", "winograd_f4", "winograd_f6"}
        A name forces that algorithm, and raises its reason if it refuses. "winograd" chooses its tile itself.
    backend : {"auto", "cython", "numba", "reference"}
    op : {"forward", "grad_input", "grad_weight"}
    packed : bool
        The weight will be packed beforehand, by ``plan.pack(weight)``; of the forward only.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError
        If `problem` is no ConvProblem.
    ValueError
        For an unknown name, or an algorithm that refuses; the message holds its reason.
    BackendUnavailable
        If the back end cannot run here.

    Examples
    --------
    >>> from fastconv import ConvProblem, plan_conv2d
    >>> problem = ConvProblem.from_args("conv2d", (1, 64, 56, 56), (64, 64, 3, 3), "float32", padding=1)
    >>> plan_conv2d(problem, "im2col", "reference")
    <Plan forward im2col reference ConvProblem(N=1, IC=64, ...
    """
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"plan_conv2d: problem is a {type(problem).__name__}: it must be a ConvProblem")
    choice("plan_conv2d", "op", op, OPS)
    choice("plan_conv2d", "algorithm", algorithm, ("auto", *ALGORITHMS))
    if flag("plan_conv2d", "packed", packed) and op != "forward":
        raise ValueError(f"plan_conv2d: packed with op {op!r}: only the forward reads a packed weight")
    k = _resolved("plan_conv2d", backend)
    inner = problem if problem.padding_mode == "zeros" else problem.without_border()
    reasons = {name: ALGORITHMS[name].refusal(inner, op) for name in AUTOMATIC}
    if algorithm != "auto":
        reason = ALGORITHMS[algorithm].refusal(inner, op)
        if reason:
            raise ValueError(f"{algorithm}: {reason}")
        others = {name: reason or "not asked for" for name, reason in reasons.items() if name != algorithm}
        return Plan(problem, op, algorithm, k, _make(k, problem, op, algorithm, packed), others, packed)
    refusals = {name: reason for name, reason in reasons.items() if reason}
    costs = {name: ALGORITHMS[name].cost(inner, op, packed=packed) for name, reason in reasons.items() if not reason}
    how, measured = "estimated", _tuned.lookup(_tuned_key(problem, op, packed, k))
    if measured and measured.keys() >= costs.keys():
        how, costs = "measured", {name: measured[name] for name in costs}
    plan = None
    order = sorted(costs, key=costs.__getitem__)
    for name in order:
        if plan is not None:
            refusals[name] = f"{how} {costs[name] / 1e3:.1f} us, {plan.algorithm} {costs[plan.algorithm] / 1e3:.1f} us"
            continue
        step = _make(k, problem, op, name, packed)
        itemsize = np.dtype(problem.dtype).itemsize
        bytes_needed = (step.workspace(1) - step.packed_elements) * itemsize
        allowed = 2 * itemsize * (math.prod(problem.input_shape) + math.prod(problem.output_shape)) + SPARE_BYTES
        if bytes_needed > allowed and name != order[-1]:
            refusals[name] = f"it needs {bytes_needed} bytes of workspace, {allowed} are allowed"
            continue
        plan = Plan(problem, op, name, k, step, refusals, packed)
    assert plan is not None  # direct never refuses
    return plan


def _resolved(function: str, backend: str) -> _backends.Kernels:
    try:
        return _backends.resolve(backend)
    except ValueError as error:
        raise ValueError(f"{function}: {error}") from None


def _make(k: _backends.Kernels, problem: ConvProblem, op: str, algorithm: str, packed: bool) -> Step:
    make = getattr(ALGORITHMS[algorithm], "forward_packed" if packed else op)
    return make(k, problem) if problem.padding_mode == "zeros" else border.around(k, problem, op, make)


def _tuned_key(problem: ConvProblem, op: str, packed: bool, k: _backends.Kernels) -> str:
    """What a measurement holds for: neither bias nor clamp changes which algorithm is the fastest."""
    plain = replace(problem, bias=False, act_min=-math.inf, act_max=math.inf)
    fields = [f"{field.name}={getattr(plain, field.name)}" for field in dataclass_fields(plain)]
    return " ".join([op, "packed" if packed else "unpacked", k.backend, k.isa or "-", *fields])


def tune(
    problem: ConvProblem,
    backend: str = "auto",
    *,
    op: str = "forward",
    packed: bool = False,
    seconds: float = 0.2,
) -> Plan:
    """Measure which algorithm is the fastest for a problem on this machine, and remember it.

    Every later plan for the same problem, dtype, back end and ISA with ``algorithm="auto"`` takes the winner, in this
    process and, by a file in the user's cache folder, in later ones with the same CPU and version of fastconv.

    Parameters
    ----------
    problem : ConvProblem
    backend : {"auto", "cython", "numba", "reference"}
    op : {"forward", "grad_input", "grad_weight"}
    packed : bool
        Measure with the weight packed beforehand, as `pack_conv2d_weight` and `Conv2d.eval` do.
    seconds : float
        Time to spend on each algorithm, about.

    Returns
    -------
    Plan
        The plan that calls get from now on; its ``explain()`` tells what each algorithm took.

    Raises
    ------
    TypeError
        If `problem` is no ConvProblem.
    ValueError
        For an unknown name, or `seconds` that are not above 0.
    BackendUnavailable
        If the back end cannot run here.

    Notes
    -----
    The best of several runs on random data counts, with the threads that a call would get. The file is
    ``tuned.json`` in the folder FASTCONV_CACHE_DIR, or else ``fastconv`` in XDG_CACHE_HOME or ``~/.cache``; deleting
    it forgets everything. A file that is corrupt or cannot be written costs a warning, nothing else.

    Examples
    --------
    >>> import fastconv
    >>> problem = fastconv.ConvProblem.from_args("conv2d", (1, 3, 16, 16), (8, 3, 3, 3), "float32", padding=1)
    >>> plan = fastconv.tune(problem, seconds=0.001)  # doctest: +SKIP
    >>> print(plan.explain())  # doctest: +SKIP
    """
    if not isinstance(problem, ConvProblem):
        raise TypeError(f"tune: problem is a {type(problem).__name__}: it must be a ConvProblem")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"tune: seconds {shown(seconds)}: it must be a number above 0")
    choice("tune", "op", op, OPS)
    if flag("tune", "packed", packed) and op != "forward":
        raise ValueError(f"tune: packed with op {op!r}: only the forward reads a packed weight")
    k = _resolved("tune", backend)
    inner = problem if problem.padding_mode == "zeros" else problem.without_border()
    rng = np.random.default_rng(0)
    dtype = np.dtype(problem.dtype)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, dtype=dtype)

    x, w, g = (draw(shape) for shape in (problem.input_shape, problem.weight_shape, problem.output_shape))
    plans = {
        name: plan_conv2d(problem, name, backend, op=op, packed=packed)
        for name in AUTOMATIC
        if ALGORITHMS[name].refusal(inner, op) is None
    }
    nanoseconds = {}
    for name, plan in plans.items():
        weight = plan.pack(w) if packed else w
        operands: tuple[np.ndarray, ...] = {"forward": (x, weight), "grad_input": (g, w), "grad_weight": (x, g)}[op]
        operands += (plan._no_bias,) if op != "grad_weight" else ()
        outputs = [np.empty(plan.output_shape, dtype)]
        if problem.pool is not None and op == "forward":
            outputs.append(NO_INDICES)
        plan.run(operands, tuple(outputs))  # compiles, where the back end does
        best, end = math.inf, time.perf_counter() + seconds
        while best == math.inf or time.perf_counter() < end:
            start = time.perf_counter_ns()
            plan.run(operands, tuple(outputs))
            best = min(best, time.perf_counter_ns() - start)
        nanoseconds[name] = best
    _tuned.remember(_tuned_key(problem, op, packed, k), nanoseconds)
    known_plans.clear()
    return plan_conv2d(problem, "auto", backend, op=op, packed=packed)


def plan_pool2d(problem: PoolProblem, op: str, backend: str = "auto") -> Plan:
    """The plan of a pooling operation (`fastconv._algorithms.pool.OPS`): there is one algorithm each."""
    k = _backends.resolve(backend)
    return Plan(problem, op, "pool", k, pool.step(k, problem, op), {})
