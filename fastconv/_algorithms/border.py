"""Padding modes other than zeros: the border is made first (or folded back last) around any algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fastconv._algorithms import Step, lines
from fastconv._problem import ConvProblem


def around(k: Any, problem: ConvProblem, op: str, make: Callable[[Any, ConvProblem], Step]) -> Step:
    """The step of ``make`` for the padded input, with the border's own step before or after it."""
    inner = make(k, problem.without_border())
    border = problem.border()
    geometry, shape = border.geometry(), border.output_shape
    size = border.N * border.OC * border.OH * border.OW
    room = lines(size)

    def pad_first(input, *others):
        *operands, output, workspace, n_threads = others
        padded = workspace[:size].reshape(shape)
        k.pad.pad2d(input, padded, workspace[:0], geometry, n_threads)
        inner.run(padded, *operands, output, workspace[room:], n_threads)

    def fold_last(grad_output, weight, bias, output, workspace, n_threads):
        padded = workspace[:size].reshape(shape)
        inner.run(grad_output, weight, bias, padded, workspace[room:], n_threads)
        k.pad.pad2d_adjoint(padded, output, workspace[:0], geometry, n_threads)

    run = fold_last if op == "grad_input" else pad_first
    return replace(inner, run=run, workspace=lambda n_workers: room + inner.workspace(n_workers))
