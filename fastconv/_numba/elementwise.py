"""Work cell by cell: sums of two arrays, a rectifier's gradient, optimisers, sums and normalisation of maps, finiteness.

Formulas and shapes: fastconv/_reference/elementwise.py.
"""

import numpy as np

from fastconv._numba._common import clamp, scaled_sum
from fastconv._numba._jit import const_real, helper, index, real, task
from fastconv._numba._pool_simd import sum_of_lanes
from fastconv._numba._simd import (
    address, broadcast, fma, get, itemsize, lanes, load, put, root, store, vmax, vmin,
)  # fmt: skip

CHUNK = 16384  # cells of a task: four arrays of them fill half a second-level cache, and take some microseconds
PIECE = 4096  # cells whose statistics are summed in `real`: of more a sum rounds too much


@task
def add_task(
    task: index,
    term: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    total: real[::1],  # IN/OUT
):
    # A task is a chunk.
    first, last = task * CHUNK, min((task + 1) * CHUNK, term.size)
    a, b = term[first:last], total[first:last]
    for i in range(last - first):
        b[i] = clamp(a[i] + b[i], act_min, act_max)


def add(term, act_min, act_max, total, workspace, geometry, n_threads):
    """total = clamp(total + term, act_min, act_max); NaN stays NaN."""
    add_task.run(-(-term.size // CHUNK), n_threads, term, act_min, act_max, total)


@task
def rectify_task(
    task: index,
    output: const_real[::1],  # IN
    most: real,
    grad: real[::1],  # IN/OUT
):
    # A task is a chunk.
    first, last = task * CHUNK, min((task + 1) * CHUNK, output.size)
    y, g = output[first:last], grad[first:last]
    zero = output.dtype.type(0)
    for i in range(last - first):
        g[i] = g[i] if (y[i] > 0) & (y[i] <= most) else zero


def rectify(output, most, grad, workspace, geometry, n_threads):
    """grad becomes 0 wherever not 0 < output <= most."""
    rectify_task.run(-(-output.size // CHUNK), n_threads, output, most, grad)


@helper
def sgd_cells(
    gradient, w, v, lr, momentum, weight_decay, moves, nesterov, decays
):  # the last three: constants at each call
    for i in range(gradient.size):
        g = gradient[i]
        if decays:
            g = g + weight_decay * w[i]
        if moves:
            v[i] = momentum * v[i] + g
            g = g + momentum * v[i] if nesterov else v[i]
        w[i] = w[i] - lr * g


@task
def sgd_task(
    task: index,
    gradient: const_real[::1],  # IN
    lr: real,
    momentum: real,
    weight_decay: real,
    nesterov: index,
    parameter: real[::1],  # IN/OUT
    velocity: real[::1],  # IN/OUT
):
    # A task is a chunk.
    first, last = task * CHUNK, min((task + 1) * CHUNK, gradient.size)
    g, w = gradient[first:last], parameter[first:last]
    v = velocity[first:last] if momentum != 0 else velocity
    if momentum == 0 and weight_decay == 0:
        sgd_cells(g, w, v, lr, momentum, weight_decay, False, False, False)
    elif momentum == 0:
        sgd_cells(g, w, v, lr, momentum, weight_decay, False, False, True)
    elif weight_decay == 0 and not nesterov:
        sgd_cells(g, w, v, lr, momentum, weight_decay, True, False, False)
    elif weight_decay == 0:
        sgd_cells(g, w, v, lr, momentum, weight_decay, True, True, False)
    elif not nesterov:
        sgd_cells(g, w, v, lr, momentum, weight_decay, True, False, True)
    else:
        sgd_cells(g, w, v, lr, momentum, weight_decay, True, True, True)


def sgd(gradient, lr, momentum, weight_decay, nesterov, parameter, velocity, workspace, geometry, n_threads):
    """A step of gradient descent, of parameter and velocity, which has length 0 where momentum is 0."""
    sgd_task.run(
        -(-gradient.size // CHUNK), n_threads, gradient, lr, momentum, weight_decay, nesterov, parameter, velocity
    )


@helper
def adam_cells(
    gradient, w, m, s, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay,
    decays,  # a constant at each call
):  # fmt: skip
    for i in range(gradient.size):
        g = gradient[i]
        if decays:
            g = g + weight_decay * w[i]
        m[i] = m[i] + mean_share * (g - m[i])
        s[i] = kept * s[i] + square_share * (g * g)
        w[i] = shrink * w[i] - step * (m[i] / (scale * root(s[i]) + eps))


@task
def adam_task(
    task: index,
    gradient: const_real[::1],  # IN
    step: real,
    mean_share: real,
    kept: real,
    square_share: real,
    scale: real,
    eps: real,
    shrink: real,
    weight_decay: real,
    parameter: real[::1],  # IN/OUT
    mean: real[::1],  # IN/OUT
    square: real[::1],  # IN/OUT
):
    # A task is a chunk.
    first, last = task * CHUNK, min((task + 1) * CHUNK, gradient.size)
    g, w, m, s = gradient[first:last], parameter[first:last], mean[first:last], square[first:last]
    if weight_decay == 0:
        adam_cells(g, w, m, s, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, False)
    else:
        adam_cells(g, w, m, s, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, True)


def adam(
    gradient, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, parameter, mean, square, workspace,
    geometry, n_threads,
):  # fmt: skip
    """A step of Adam, of parameter and of the means of the gradient and of its square."""
    adam_task.run(
        -(-gradient.size // CHUNK), n_threads, gradient, step, mean_share, kept, square_share, scale, eps, shrink,
        weight_decay, parameter, mean, square,
    )  # fmt: skip


@task
def map_sums_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    sums: real[::1],  # OUT
):
    # A task is one channel; its images follow each other.
    dtype, cells = input.dtype, input.shape[2] * input.shape[3]
    total = dtype.type(0)
    for n in range(input.shape[0]):
        maps = address(input) + (n * input.shape[1] + task) * cells * itemsize(dtype)
        total = total + scaled_sum(maps, cells, dtype.type(1), dtype)
    sums[task] = total


def map_sums(input, sums, workspace, geometry, n_threads):
    """input (N, C, H, W) -> sums (C,): over images and cells."""
    map_sums_task.run(input.shape[1], n_threads, input, sums)


@helper
def centred_sums(cells, n, centre, dtype):
    """The sums of cell - centre and of its square."""
    VL, each = lanes(dtype), broadcast(centre)
    sum0 = sum1 = more0 = more1 = broadcast(dtype.type(0))
    total = of_squares = dtype.type(0)
    i = 0
    while i + 2 * VL <= n:
        x0, x1 = load(cells, i, dtype) - each, load(cells, i + VL, dtype) - each
        sum0, sum1, more0, more1 = sum0 + x0, sum1 + x1, fma(x0, x0, more0), fma(x1, x1, more1)
        i += 2 * VL
    while i < n:
        x = get(cells, i, dtype) - centre
        total, of_squares = total + x, of_squares + x * x
        i += 1
    return np.float64(total + sum_of_lanes(sum0 + sum1)), np.float64(of_squares + sum_of_lanes(more0 + more1))


@helper
def products_about(grad, cells, n, centre, dtype):
    """The sum of grad * (cell - centre)."""
    VL, each = lanes(dtype), broadcast(centre)
    sum0 = sum1 = sum2 = sum3 = broadcast(dtype.type(0))
    total = dtype.type(0)
    i = 0
    while i + 4 * VL <= n:
        sum0 = fma(load(grad, i, dtype), load(cells, i, dtype) - each, sum0)
        sum1 = fma(load(grad, i + VL, dtype), load(cells, i + VL, dtype) - each, sum1)
        sum2 = fma(load(grad, i + 2 * VL, dtype), load(cells, i + 2 * VL, dtype) - each, sum2)
        sum3 = fma(load(grad, i + 3 * VL, dtype), load(cells, i + 3 * VL, dtype) - each, sum3)
        i += 4 * VL
    while i + VL <= n:
        sum0 = fma(load(grad, i, dtype), load(cells, i, dtype) - each, sum0)
        i += VL
    while i < n:
        total = total + get(grad, i, dtype) * (get(cells, i, dtype) - centre)
        i += 1
    return total + sum_of_lanes((sum0 + sum1) + (sum2 + sum3))


@helper
def map_moments(maps, N, step, cells, dtype):
    """Mean and variance of N maps, step bytes apart, of at least one cell."""
    # Piece by piece, which stays in the first-level cache: its mean, rounded, and what is missing to it, with the squares of
    # the distances from it. Pieces are joined in double precision (Chan, Golub and LeVeque 1979).
    number, size = dtype.type, itemsize(dtype)
    joint = squares = count = everything = np.float64(0)
    n = 0
    while n < N:
        together = max(min(PIECE // cells, N - n), 1)
        part = 0
        while part < cells:
            length = min(cells - part, PIECE)
            here = np.float64(together * length)
            total = rest = of_piece = np.float64(0)
            for m in range(n, n + together):
                total += np.float64(scaled_sum(maps + m * step + part * size, length, number(1), dtype))
            centre = number(total / here)
            for m in range(n, n + together):
                of_map, squares_of_map = centred_sums(maps + m * step + part * size, length, centre, dtype)
                rest, of_piece = rest + of_map, of_piece + squares_of_map
            own = np.float64(centre) + rest / here
            everything += own * here if rest == rest else total  # Inf - Inf: of the mean it stays Inf
            distance = own - joint
            squares += of_piece - rest * rest / here + distance * distance * count * here / (count + here)
            joint += distance * here / (count + here)
            count += here
            part += length
        n += together
    return number(everything / count), number(np.float64(0) if squares < 0 else squares / count)


@helper
def normalise_cells(x, y, n, centre, scale, shift, low, high, dtype):
    VL = lanes(dtype)
    i = 0
    while i + VL <= n:
        value = fma(load(x, i, dtype) - broadcast(centre), broadcast(scale), broadcast(shift))
        store(y, i, vmin(broadcast(high), vmax(broadcast(low), value)))
        i += VL
    while i < n:
        put(y, i, clamp((get(x, i, dtype) - centre) * scale + shift, low, high))
        i += 1


@task
def normalise_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[::1],  # IN
    bias: const_real[::1],  # IN
    of_batch: index,
    eps: real,
    act_min: real,
    act_max: real,
    mean: real[::1],  # OUT of a batch, else IN
    variance: real[::1],  # OUT of a batch, else IN
    output: real[:, :, :, ::1],  # OUT
):
    # A task is one channel.
    dtype, N, C, cells = input.dtype, input.shape[0], input.shape[1], input.shape[2] * input.shape[3]
    plane = cells * itemsize(dtype)
    if of_batch != 0:
        mean[task], variance[task] = map_moments(address(input) + task * plane, N, C * plane, cells, dtype)
    scale = dtype.type(np.float64(weight[task]) / root(np.float64(variance[task]) + np.float64(eps)))
    for n in range(N):
        at = (n * C + task) * plane
        x, y = address(input) + at, address(output) + at
        normalise_cells(x, y, cells, mean[task], scale, bias[task], act_min, act_max, dtype)


def normalise(
    input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output, workspace, geometry, n_threads
):  # fmt: skip
    """output = clamp(weight * (input - mean) / sqrt(variance + eps) + bias), of_batch by the input's own mean and variance."""
    normalise_task.run(
        input.shape[1], n_threads, input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output
    )


@helper
def normalise_backward_cells(g, x, y, n, centre, slope, shift, scale, dtype):
    VL = lanes(dtype)
    i = 0
    while i + VL <= n:
        distance = load(x, i, dtype) - broadcast(centre)
        value = load(g, i, dtype) - broadcast(shift) - distance * broadcast(slope)
        store(y, i, value * broadcast(scale))
        i += VL
    while i < n:
        put(y, i, (get(g, i, dtype) - shift - (get(x, i, dtype) - centre) * slope) * scale)
        i += 1


@task
def normalise_backward_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[::1],  # IN
    mean: const_real[::1],  # IN
    variance: const_real[::1],  # IN
    of_batch: index,
    eps: real,
    grad_weight: real[::1],  # OUT
    grad_bias: real[::1],  # OUT
    grad_input: real[:, :, :, ::1],  # OUT  or of length 0
):
    # A task is one channel.
    dtype, N, C, cells = input.dtype, input.shape[0], input.shape[1], input.shape[2] * input.shape[3]
    number, centre, size = dtype.type, mean[task], itemsize(dtype)
    g, x, y = address(grad_output), address(input), address(grad_input)
    total = products = np.float64(0)
    for n in range(N):
        at = (n * C + task) * cells
        end = at + cells
        while at < end:
            length = min(end - at, PIECE)
            total += np.float64(scaled_sum(g + at * size, length, number(1), dtype))
            products += np.float64(products_about(g + at * size, x + at * size, length, centre, dtype))
            at += length
    scale = np.float64(1) / root(np.float64(variance[task]) + np.float64(eps))
    grad_bias[task] = number(total)
    grad_weight[task] = number(products * scale)
    if grad_input.size == 0:
        return
    shift = slope = number(0)
    if of_batch != 0:
        shift, slope = number(total / (N * cells)), number(products * scale * scale / (N * cells))
    factor = number(scale * np.float64(weight[task]))
    for n in range(N):
        at = (n * C + task) * cells * size
        normalise_backward_cells(g + at, x + at, y + at, cells, centre, slope, shift, factor, dtype)


def normalise_backward(
    grad_output, input, weight, mean, variance, of_batch, eps, grad_weight, grad_bias, grad_input, workspace, geometry,
    n_threads,
):  # fmt: skip
    """The three gradients of `normalise`; grad_input of length 0 is not wanted."""
    normalise_backward_task.run(
        input.shape[1], n_threads, grad_output, input, weight, mean, variance, of_batch, eps, grad_weight, grad_bias,
        grad_input,
    )  # fmt: skip


@task
def non_finite_task(
    task: index,
    input: const_real[::1],  # IN
    found: real[::1],  # OUT
):
    # A task is one of the equal parts.
    dtype, part = input.dtype, -(-input.size // found.size)
    first = min(task * part, input.size)
    found[task] = scaled_sum(
        address(input) + first * itemsize(dtype), min(input.size - first, part), dtype.type(0), dtype
    )


def non_finite(input, found, workspace, geometry, n_threads):
    """found, of any length: of each of so many parts of input, 0 where all is finite, else NaN."""
    non_finite_task.run(found.size, n_threads, input, found)
