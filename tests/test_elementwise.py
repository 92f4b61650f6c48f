"""The elementwise kernels, on every engine: against the formulas in float64, and the same bits on several threads."""

import numpy as np
import pytest

from conftest import Guarded
from fastconv import _threads
from fastconv._algorithms import elementwise
from problems import integers, normals
from tolerance import assert_same

SIZES = (0, 1, 7, 100, 16383, 16384, 16385, 50001)  # around a task's cells, and a rest of every vector
NO_GEOMETRY = np.empty(0, np.int64)


def run(engine, kernel, *arguments, changed=(), n_threads=1):
    """Call with guarded copies of the arrays ``changed``, which come last, and give those."""
    guarded = []
    for array in changed:
        own = Guarded(array.shape, array.dtype)
        own.array[...] = array
        guarded.append(own)
    arrays = [own.array for own in guarded]
    engine.run("elementwise", kernel, *arguments, *arrays, geometry=NO_GEOMETRY, n_threads=n_threads)
    for own in guarded:
        own.check(f"{engine.name} {kernel}")
    return arrays


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, np.inf), (0.0, 1.0)])
def test_add(engine, dtype, size, bounds):
    term, total = integers((2, size), dtype, 11)
    special = [np.nan, np.inf, -np.inf, 0.5]
    term[: len(special)] = special[:size]
    expected = np.clip(term + total, *bounds)
    for n_threads in (1, 3):
        (actual,) = run(engine, "add", term, *bounds, changed=[total], n_threads=n_threads)
        assert_same(actual, expected, f"{engine.name} add {size}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("most", [np.inf, 1.0])
def test_rectify(engine, dtype, size, most):
    output, grad = normals((2, size), dtype, 1)
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, np.nextafter(output.dtype.type(1), output.dtype.type(2))]
    output[: len(special)] = special[:size]
    grad[1:4], grad[-2:] = np.nan, np.inf
    expected = np.where((output > 0) & (output <= most), grad, output.dtype.type(0))
    for n_threads in (1, 3):
        (actual,) = run(engine, "rectify", output, most, changed=[grad], n_threads=n_threads)
        assert_same(actual, expected, f"{engine.name} rectify {size}")


def sgd(numbers, gradient, parameter, velocity):
    lr, momentum, weight_decay, nesterov = numbers
    g = gradient + weight_decay * parameter
    if momentum:
        velocity = momentum * velocity + g
        g = g + momentum * velocity if nesterov else velocity
    return parameter - lr * g, velocity


def adam(numbers, gradient, parameter, mean, square):
    step, mean_share, kept, square_share, scale, eps, shrink, weight_decay = numbers
    g = gradient + weight_decay * parameter
    mean = mean + mean_share * (g - mean)
    square = kept * square + square_share * g**2
    return shrink * parameter - step * mean / (scale * np.sqrt(square) + eps), mean, square


STEPS = [
    ("sgd", sgd, (0.5, momentum, decay, nesterov))
    for momentum, nesterov in ((0.0, False), (0.75, False), (0.75, True))
    for decay in (0.0, 0.25)
]
STEPS += [("adam", adam, (0.1, 0.2, 0.9, 0.1, 1.5, 1e-3, *last)) for last in ((1.0, 0.0), (1.0, 0.25), (0.9, 0.0))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kernel", "formula", "numbers"), STEPS)
def test_steps_of_optimizers(engine, dtype, kernel, formula, numbers, size):
    gradient, *changed = normals((4, size), dtype, 2)
    changed = changed[: 3 if kernel == "adam" else 2]
    changed[-1] = abs(changed[-1])
    if kernel == "sgd" and not numbers[1]:
        changed[-1] = changed[-1][:0]
    expected = formula(numbers, *(array.astype(np.float64) for array in (gradient, *changed)))
    first = run(engine, kernel, gradient, *numbers, changed=changed)
    for actual, exact in zip(first, expected, strict=True):
        np.testing.assert_allclose(
            actual, exact, rtol=0, atol=16 * np.finfo(dtype).eps * (1 + abs(exact).max(initial=0))
        )
    for again, once in zip(run(engine, kernel, gradient, *numbers, changed=changed, n_threads=3), first, strict=True):
        assert_same(again, once, f"{engine.name} {kernel} on three threads")


@pytest.mark.parametrize(("kernel", "formula", "numbers"), STEPS)
def test_a_cell_does_not_depend_on_its_place(engine, dtype, kernel, formula, numbers):
    """Vectors and their rest round alike: what a parameter becomes does not depend on what it is stored with."""
    values = normals((4, 1), dtype, 3)
    gradient, *changed = (np.repeat(abs(value), 16384 + 61) for value in values)
    changed = changed[: 3 if kernel == "adam" else 2]
    if kernel == "sgd" and not numbers[1]:
        changed[-1] = changed[-1][:0]
    for actual in run(engine, kernel, gradient, *numbers, changed=changed):
        assert (actual == actual[:1]).all()


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 1, 1), (3, 2, 17, 31), (0, 2, 3, 3), (2, 0, 3, 3), (2, 3, 0, 4), (5, 40, 1, 7)]
)
def test_map_sums(engine, dtype, shape):
    for make in (integers, normals):
        maps = make(shape, dtype, 4)
        exact, magnitude = (array.astype(np.float64).sum(axis=(0, 2, 3)) for array in (maps, abs(maps)))
        sums = [run(engine, "map_sums", maps, changed=[np.empty(shape[1], dtype)], n_threads=n)[0] for n in (1, 3)]
        assert_same(sums[0], sums[1], engine.name)
        if make is integers:
            assert_same(sums[0], exact.astype(dtype), engine.name)
        assert (abs(sums[0] - exact) <= 2 * np.finfo(dtype).eps * magnitude).all()
    if maps.size:
        maps[0, 0, 0, 0] = np.inf
        (sums,) = run(engine, "map_sums", maps, changed=[np.empty(shape[1], dtype)])
        assert sums[0] == np.inf and np.isfinite(sums[1:]).all()


def batch_norm(maps, weight, bias, mean, variance, eps):
    """The definition, in float64."""
    x = (maps.astype(np.float64) - mean[:, None, None]) / np.sqrt(variance[:, None, None].astype(np.float64) + eps)
    return x, x * weight[:, None, None] + bias[:, None, None]


@pytest.mark.parametrize(
    "shape", [(2, 3, 4, 5), (1, 1, 1, 2), (3, 2, 17, 31), (5, 40, 1, 7), (64, 2, 1, 1), (2, 5, 8, 8)]
)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_normalise(engine, dtype, shape, offset):
    maps, C, eps = normals(shape, dtype, 6) + np.dtype(dtype).type(offset), shape[1], 1e-3
    weight, bias, *given = normals((4, C), dtype, 7)
    given = [given[0], abs(given[1])]
    for of_batch in (1, 0):
        mean = maps.astype(np.float64).mean(axis=(0, 2, 3)) if of_batch else given[0]
        variance = maps.astype(np.float64).var(axis=(0, 2, 3)) if of_batch else given[1]
        _, expected = batch_norm(maps, weight, bias, mean, variance, eps)
        changed = [*([np.empty(C, dtype)] * 2 if of_batch else given), np.empty_like(maps)]
        for low, high in ((-np.inf, np.inf), (0.0, 1.0)):
            arguments = (maps, weight, bias, of_batch, eps, low, high)
            first = run(engine, "normalise", *arguments, changed=changed)
            for again, once in zip(
                run(engine, "normalise", *arguments, changed=changed, n_threads=3), first, strict=True
            ):
                assert_same(again, once, f"{engine.name} on three threads")
            tolerance = 32 * np.finfo(dtype).eps
            size = abs(maps).max() + abs(mean).max()
            np.testing.assert_allclose(first[0], mean, rtol=0, atol=tolerance * size)
            # An error of a map's mean counts with that mean's distance from the batch's, and squared
            apart = abs(maps.astype(np.float64).mean(axis=(2, 3)) - mean).max()
            np.testing.assert_allclose(
                first[1], variance, rtol=tolerance, atol=tolerance * size * (apart + tolerance * size)
            )
            slope = abs(weight).max() / np.sqrt(variance.min() + eps)
            error = tolerance * (slope * size + abs(bias).max() + abs(expected).max())
            np.testing.assert_allclose(first[2], expected.clip(low, high), rtol=0, atol=error)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 17, 31), (5, 40, 1, 7), (64, 2, 1, 1), (2, 5, 8, 8)])
@pytest.mark.parametrize("of_batch", [1, 0])
def test_normalise_backward(engine, dtype, shape, of_batch):
    maps, grad = normals((2, *shape), dtype, 8)
    C, cells, eps = shape[1], maps.size // shape[1], 1e-3
    (weight,) = normals((1, C), dtype, 9)
    mean, variance = maps.mean(axis=(0, 2, 3)), maps.var(axis=(0, 2, 3))
    x, _ = batch_norm(maps, weight, weight, mean, variance, eps)
    bias_grad, weight_grad = grad.astype(np.float64).sum(axis=(0, 2, 3)), (grad * x).sum(axis=(0, 2, 3))
    expected = grad.astype(np.float64)
    if of_batch:
        expected = expected - (bias_grad[:, None, None] + x * weight_grad[:, None, None]) / cells
    expected = expected * (weight / np.sqrt(variance + eps))[:, None, None]
    arguments = (grad, maps, weight, mean, variance, of_batch, eps)
    changed = [np.empty(C, dtype), np.empty(C, dtype), np.empty_like(maps)]
    first = run(engine, "normalise_backward", *arguments, changed=changed)
    again = run(engine, "normalise_backward", *arguments, changed=changed, n_threads=3)
    sums_only = run(engine, "normalise_backward", *arguments, changed=[*changed[:2], np.empty((0, 0, 0, 0), dtype)])
    eps = np.finfo(dtype).eps
    for actual, twice, exact, size in zip(
        first, again, (weight_grad, bias_grad, expected), (cells, cells, 1 + abs(expected).max()), strict=True
    ):
        assert_same(twice, actual, f"{engine.name} on three threads")
        np.testing.assert_allclose(actual, exact, rtol=0, atol=64 * eps * size)
    for actual, once in zip(sums_only[:2], first[:2], strict=True):
        assert_same(actual, once, f"{engine.name} without the gradient of the maps")


@pytest.mark.parametrize("shape", [(2, 2, 300, 400), (40, 2, 30, 41)])
@pytest.mark.parametrize("offset", [0.3, 1e5])
def test_statistics_of_many_cells(engine, dtype, shape, offset):
    """Mean and variance are as good as their roundings, however many cells there are and however far from 0."""
    if engine.backend == "reference":
        pytest.skip("reference: NumPy's own sums")
    maps = (normals(shape, "float64", 12) + offset).astype(dtype)
    maps[:, 1] = np.dtype(dtype).type(offset)  # all alike
    C, eps = shape[1], np.finfo(dtype).eps
    changed = [np.empty(C, dtype), np.empty(C, dtype), np.empty_like(maps)]
    ones, zeros = np.ones(C, dtype), np.zeros(C, dtype)
    mean, variance, output = run(engine, "normalise", maps, ones, zeros, 1, 1e-5, -np.inf, np.inf, changed=changed)
    exact, spread = (f(maps.astype(np.longdouble), axis=(0, 2, 3)) for f in (np.mean, np.var))
    np.testing.assert_allclose(mean, exact, rtol=16 * eps, atol=0)
    joining = np.finfo(np.float64).eps * abs(offset)  # of the means of pieces, in double precision
    np.testing.assert_allclose(variance, spread, rtol=8 * eps, atol=joining)
    assert abs(output[:, 1]).max() <= 16 * joining / np.sqrt(1e-5)
    assert abs(output[:, 0].astype(np.float64).mean()) <= 16 * eps * (1 + abs(offset))


def test_normalise_keeps_channels_apart(engine, dtype):
    maps = normals((2, 3, 5, 6), dtype, 10)
    maps[0, 1, 2, 3] = np.nan
    ones, zeros = np.ones(3, dtype), np.zeros(3, dtype)
    changed = [np.empty(3, dtype), np.empty(3, dtype), np.empty_like(maps)]
    mean, variance, output = run(engine, "normalise", maps, ones, zeros, 1, 1e-5, 0.0, np.inf, changed=changed)
    for values in (mean, variance, output.sum(axis=(0, 2, 3))):
        assert np.isnan(values[1]) and np.isfinite(values[[0, 2]]).all()
    for shape in ((0, 3, 5, 6), (2, 3, 0, 6)):  # of no batch, but by statistics that are given
        nothing = np.empty(shape, dtype)
        run(engine, "normalise", nothing, ones, zeros, 0, 1e-5, 0.0, np.inf, changed=[zeros, ones, nothing])
        sums = run(
            engine, "normalise_backward", nothing, nothing, ones, zeros, ones, 0, 1e-5, changed=[ones, ones, nothing]
        )
        assert not sums[0].any() and not sums[1].any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parts", [1, 3, 20])
def test_non_finite(engine, dtype, size, parts):
    array = normals((size,), dtype, 5) * (np.finfo(dtype).max / 8)
    (found,) = run(engine, "non_finite", array, changed=[np.empty(parts, dtype)], n_threads=3)
    assert (found == 0).all()
    for place, value in ((0, np.nan), (size - 1, np.inf), (size // 2, -np.inf)):
        if size:
            wrong = array.copy()
            wrong[place] = value
            (found,) = run(engine, "non_finite", wrong, changed=[np.empty(parts, dtype)])
            part = place // -(-size // parts)
            assert np.isnan(found[part]) and (np.delete(found, part) == 0).all()


def test_threads_are_for_large_arrays(monkeypatch):
    asked = []

    class Kernels:
        class elementwise:
            @staticmethod
            def rectify(output, most, grad, workspace, geometry, n_threads):
                asked.append(n_threads)

    monkeypatch.setattr(_threads, "get_num_threads", lambda: 5)
    for size in (elementwise.SMALL - 1, elementwise.SMALL):
        elementwise.rectify(Kernels, np.ones(size), np.inf, np.ones(size))
    assert asked == [1, 5]
