"""The pad kernels, on every engine: against numpy.pad, and the adjoint."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import oracle
from conftest import Guarded
from fastconv._problem import PADDING_MODES, ConvProblem
from problems import integers, normals
from tolerance import assert_same, assert_within, bound

# name: shape, pads
SHAPES = {
    "none": ((2, 3, 4, 5), (0, 0, 0, 0)),
    "ones": ((2, 3, 4, 5), (1, 1, 1, 1)),
    "four-sides": ((1, 2, 5, 7), (0, 2, 3, 1)),
    "largest": ((2, 1, 4, 5), (3, 3, 4, 4)),
    "one-side": ((1, 3, 3, 17), (0, 0, 5, 0)),
    "row-16": ((1, 1, 2, 16), (1, 1, 8, 8)),
    "one-row": ((3, 2, 1, 9), (0, 0, 2, 2)),
    "one-column": ((3, 2, 9, 1), (2, 2, 0, 0)),
    "batch-empty": ((0, 2, 4, 4), (1, 1, 1, 1)),
    "no-channels": ((2, 0, 4, 4), (1, 1, 1, 1)),
}
ZERO_SHAPES = {
    "beyond-image": ((1, 2, 2, 3), (5, 4, 7, 3)),
    "crop": ((2, 2, 7, 8), (-1, -2, -3, -1)),
    "crop-and-pad": ((2, 2, 7, 8), (-2, 3, 2, -3)),
    "crop-to-border": ((1, 2, 4, 4), (3, -4, 2, 1)),
    "only-border": ((1, 1, 3, 3), (-3, 5, 0, 0)),
}
RUNS = [(mode, name) for mode in PADDING_MODES for name in SHAPES] + [("zeros", name) for name in ZERO_SHAPES]


def problem_of(shape, pads, mode, dtype):
    C = shape[1]
    padding = (pads[:2], pads[2:])
    weight = (C or 1, 1 if C else 0, 1, 1)
    return ConvProblem.from_args(
        "test", shape, weight, dtype, padding=padding, padding_mode=mode, groups=C or 1
    ).border()


def pad2d(engine, x, problem, n_threads=1):
    out = Guarded((problem.N, problem.IC, problem.OH, problem.OW), x.dtype)
    engine.run("pad", "pad2d", x, out.array, geometry=problem.geometry(), n_threads=n_threads)
    out.check(f"{engine.name} pad2d")
    return out.array


def pad2d_adjoint(engine, grad, problem, n_threads=1):
    out = Guarded(problem.input_shape, grad.dtype)
    engine.run("pad", "pad2d_adjoint", grad, out.array, geometry=problem.geometry(), n_threads=n_threads)
    out.check(f"{engine.name} pad2d_adjoint")
    return out.array


def check(engine, shape, pads, mode, dtype):
    problem = problem_of(shape, pads, mode, dtype)
    x = normals(shape, dtype, 1)
    what = f"{engine.name} {mode} {shape} {pads}"
    assert_same(pad2d(engine, x, problem), oracle.pad(x, pads, mode), what)
    for make in (integers, normals):
        grad = make((problem.N, problem.IC, problem.OH, problem.OW), dtype, 2)
        exact = oracle.pad_adjoint(grad, shape, pads, mode)
        actual = pad2d_adjoint(engine, grad, problem)
        if make is integers:
            assert_same(actual, exact.astype(dtype), what)
        limit = bound(problem.OH * problem.OW, oracle.pad_adjoint(abs(grad), shape, pads, mode), dtype)
        assert_within(actual, exact, limit, what)


@pytest.mark.parametrize(("mode", "name"), RUNS)
def test_against_numpy(engine, mode, name, dtype):
    shape, pads = {**SHAPES, **ZERO_SHAPES}[name]
    check(engine, shape, pads, mode, dtype)


@st.composite
def borders(draw):
    mode = draw(st.sampled_from(sorted(PADDING_MODES)))
    shape = draw(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 20)))
    pads = []
    for extent in shape[2:]:
        most = {"reflect": extent - 1, "circular": extent, "replicate": 6, "zeros": 6}[mode]
        before = draw(st.integers(-2 if mode == "zeros" else 0, most))
        after = draw(st.integers(-2 if mode == "zeros" else 0, most))
        pads += [before, max(after, 1 - extent - before)]
    return shape, tuple(pads), mode


@given(border=borders())
def test_any_border(engine, border):
    check(engine, *border, "float32")


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_copies_every_bit(engine, mode):
    """A copy keeps NaN, Inf and the sign of zero."""
    problem = problem_of((1, 1, 3, 4), (1, 1, 2, 2), mode, "float32")
    x = np.array([[[[np.nan, np.inf, -0.0, 1], [-np.inf, 0.0, 1e-45, -1], [2, np.nan, 3, -0.0]]]], "float32")
    actual, exact = pad2d(engine, x, problem), oracle.pad(x, (1, 1, 2, 2), mode)
    assert_same(actual, exact)
    assert_same(np.signbit(actual), np.signbit(exact), "sign of zero")


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_threads_do_not_change_bits(engine, mode):
    problem = problem_of((3, 5, 9, 8), (2, 3, 1, 4), mode, "float32")
    x = normals(problem.input_shape, "float32", 1)
    grad = normals((problem.N, problem.IC, problem.OH, problem.OW), "float32", 2)
    one = pad2d(engine, x, problem), pad2d_adjoint(engine, grad, problem)
    for n in (2, 3):
        assert_same(pad2d(engine, x, problem, n), one[0], f"{n} threads")
        assert_same(pad2d_adjoint(engine, grad, problem, n), one[1], f"{n} threads")


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_adjoint_identity(engine, mode, dtype):
    problem = problem_of((2, 3, 6, 5), (2, 1, 4, 3), mode, dtype)
    x = integers(problem.input_shape, dtype, 1)
    grad = integers((problem.N, problem.IC, problem.OH, problem.OW), dtype, 2)
    assert (pad2d(engine, x, problem) * grad).sum() == (x * pad2d_adjoint(engine, grad, problem)).sum()
