"""Plans: which algorithm computes a problem, made once and then called.

The list AUTOMATIC is ordered: of its algorithms that do not refuse, the cheapest by its own estimate is taken, the
earlier one of equals. A plan depends on the problem, its dtype, the back end and its ISA, never on the number of
threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastconv import _arena, _backends, _threads
from fastconv._algorithms import OPS, Step, border, direct, im2col, pool, winograd
from fastconv._problem import ConvProblem, PoolProblem, choice

ALGORITHMS: dict[str, Any] = {"im2col": im2col, "direct": direct, "winograd": winograd, **winograd.FORCED}
AUTOMATIC = ("im2col", "direct", "winograd")
SMALL_WORK = 1_000_000  # multiply-adds: below about 50 us a second thread costs more than it brings
SPARE_BYTES = 16 * 2**20  # workspace allowed to "auto" beside twice input and output


class Plan:
    """One operation on arrays of fixed shapes, ready to run: ``plan(x, weight, bias, out=, workspace=)``.

    Attributes
    ----------
    problem : ConvProblem or PoolProblem
    op : str
        "forward", "grad_input", "grad_weight", or the name of a pooling kernel.
    algorithm, backend, isa : str
        What was chosen; `isa` is None but for the Cython back end.
    """

    def __init__(
        self, problem: Any, op: str, algorithm: str, kernels: _backends.Kernels, step: Step, refusals: dict[str, str]
    ) -> None:
        self.problem, self.op, self.algorithm = problem, op, algorithm
        self.backend, self.isa = kernels.backend, kernels.isa
        self._step, self._refusals = step, refusals
        self._run = step.run
        self._dtype = np.dtype(problem.dtype)
        self._no_bias = np.empty(0, self._dtype)
        self._parallel = problem.macs >= SMALL_WORK
        if op in ("forward", *pool.OPS):
            self.output_shape = problem.input_shape if op in pool.TO_INPUT else problem.output_shape
        else:
            self.output_shape = problem.input_shape if op == "grad_input" else problem.weight_shape

    @property
    def workspace_bytes(self) -> int:
        """Bytes of scratch memory that a call needs with the threads it would get now."""
        return self._step.workspace(self._workers()) * self._dtype.itemsize

    def _workers(self) -> int:
        return _threads.workers() if self._parallel else 1

    def __call__(
        self,
        *operands: np.ndarray | None,
        out: np.ndarray | None = None,
        workspace: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run on checked arrays: C-contiguous, of the problem's shapes and dtype; a bias of None is none."""
        if out is None:
            out = np.empty(self.output_shape, self._dtype)
        self.run(tuple(self._no_bias if array is None else array for array in operands), (out,), workspace)
        return out

    def run(
        self, operands: tuple[np.ndarray, ...], outputs: tuple[np.ndarray, ...], workspace: np.ndarray | None = None
    ) -> None:
        """Run on checked arrays, into ``outputs``."""
        n_workers = self._workers()
        elements = self._step.workspace(n_workers)
        if workspace is None:
            space = _arena.workspace(elements, self._dtype.name)
        else:
            space = workspace.view(self._dtype)
            if space.size < elements:
                raise ValueError(
                    f"Plan: workspace has {workspace.nbytes} bytes: it must have {elements * self._dtype.itemsize}"
                )
        self._run(*operands, *outputs, space, n_workers)

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
        lines += [f"  not {name}: {reason}" for name, reason in self._refusals.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        where = f"{self.backend}/{self.isa}" if self.isa else self.backend
        return f"<Plan {self.op} {self.algorithm} {where} {self.problem}>"


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
    algorithm : {"auto", "im2col", "direct", "winograd", "winograd_f2", "winograd_f4", "winograd_f6"}
        A name forces that algorithm, and raises its reason if it refuses. "winograd" chooses its tile itself.
    backend : {"auto", "cython", "numba", "reference"}
    op : {"forward", "grad_input", "grad_weight"}
    packed : bool
        Choose for a caller who has packed the weight: estimates leave packing out.

    Returns
    -------
    Plan

    Raises
    ------
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
    choice("plan_conv2d", "op", op, OPS)
    choice("plan_conv2d", "algorithm", algorithm, ("auto", *ALGORITHMS))
    k = _backends.resolve(backend)
    inner = problem if problem.padding_mode == "zeros" else problem.without_border()
    reasons = {name: ALGORITHMS[name].refusal(inner, op) for name in AUTOMATIC}
    if algorithm != "auto":
        reason = ALGORITHMS[algorithm].refusal(inner, op)
        if reason:
            raise ValueError(f"{algorithm}: {reason}")
        others = {name: reason or "not asked for" for name, reason in reasons.items() if name != algorithm}
        return Plan(problem, op, algorithm, k, _make(k, problem, op, algorithm), others)
    refusals = {name: reason for name, reason in reasons.items() if reason}
    costs = {name: ALGORITHMS[name].cost(inner, op, packed=packed) for name, reason in reasons.items() if not reason}
    plan = None
    order = sorted(costs, key=costs.__getitem__)
    for name in order:
        if plan is not None:
            refusals[name] = (
                f"estimated {costs[name] / 1e3:.1f} us, {plan.algorithm} {costs[plan.algorithm] / 1e3:.1f} us"
            )
            continue
        step = _make(k, problem, op, name)
        itemsize = np.dtype(problem.dtype).itemsize
        bytes_needed = (step.workspace(1) - step.packed_elements) * itemsize
        allowed = 2 * itemsize * (math.prod(problem.input_shape) + math.prod(problem.output_shape)) + SPARE_BYTES
        if bytes_needed > allowed and name != order[-1]:
            refusals[name] = f"it needs {bytes_needed} bytes of workspace, {allowed} are allowed"
            continue
        plan = Plan(problem, op, name, k, step, refusals)
    assert plan is not None  # direct never refuses
    return plan


def _make(k: _backends.Kernels, problem: ConvProblem, op: str, algorithm: str) -> Step:
    make = getattr(ALGORITHMS[algorithm], op)
    return make(k, problem) if problem.padding_mode == "zeros" else border.around(k, problem, op, make)


def plan_pool2d(problem: PoolProblem, op: str, backend: str = "auto") -> Plan:
    """The plan of a pooling operation (`fastconv._algorithms.pool.OPS`): there is one algorithm each."""
    k = _backends.resolve(backend)
    return Plan(problem, op, "pool", k, pool.step(k, problem, op), {})
