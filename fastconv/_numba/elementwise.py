"""Work cell by cell: sums of two arrays, a rectifier's gradient, optimisers, sums and normalisation of maps, finiteness.

Formulas and shapes: fastconv/_reference/elementwise.py.
"""

import math

import numpy as np

from fastconv._numba._common import clamp
from fastconv._numba._jit import const_real, helper, index, real, task
from fastconv._numba._pool_simd import sum_of_lanes
from fastconv._numba._simd import address, broadcast, fma, get, itemsize, lanes, load

CHUNK = 16384  # cells of a task: four arrays of them fill half a second-level cache, and take some microseconds


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
        w[i] = shrink * w[i] - step * (m[i] / (scale * math.sqrt(s[i]) + eps))


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


@helper
def scaled_sum(cells, n, factor, dtype):
    """The sum of factor * cell, by four vectors side by side, as each addition waits for the one before."""
    VL, each = lanes(dtype), broadcast(factor)
    sum0 = sum1 = sum2 = sum3 = broadcast(dtype.type(0))
    total = dtype.type(0)
    i = 0
    while i + 4 * VL <= n:
        sum0, sum1 = fma(each, load(cells, i, dtype), sum0), fma(each, load(cells, i + VL, dtype), sum1)
        sum2, sum3 = fma(each, load(cells, i + 2 * VL, dtype), sum2), fma(each, load(cells, i + 3 * VL, dtype), sum3)
        i += 4 * VL
    while i + VL <= n:
        sum0 = fma(each, load(cells, i, dtype), sum0)
        i += VL
    while i < n:
        total = total + factor * get(cells, i, dtype)
        i += 1
    return total + sum_of_lanes((sum0 + sum1) + (sum2 + sum3))


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
def squares_about(cells, n, centre, dtype):
    """The sum of (cell - centre)**2."""
    VL, each = lanes(dtype), broadcast(centre)
    sum0 = sum1 = sum2 = sum3 = broadcast(dtype.type(0))
    total = dtype.type(0)
    i = 0
    while i + 4 * VL <= n:
        x0, x1 = load(cells, i, dtype) - each, load(cells, i + VL, dtype) - each
        x2, x3 = load(cells, i + 2 * VL, dtype) - each, load(cells, i + 3 * VL, dtype) - each
        sum0, sum1, sum2, sum3 = fma(x0, x0, sum0), fma(x1, x1, sum1), fma(x2, x2, sum2), fma(x3, x3, sum3)
        i += 4 * VL
    while i + VL <= n:
        x0 = load(cells, i, dtype) - each
        sum0 = fma(x0, x0, sum0)
        i += VL
    while i < n:
        total = total + (get(cells, i, dtype) - centre) * (get(cells, i, dtype) - centre)
        i += 1
    return total + sum_of_lanes((sum0 + sum1) + (sum2 + sum3))


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
    # A task is one channel. Mean and squares of its maps are joined one by one (Chan, Golub and LeVeque 1979): each map is
    # in cache when it is read again for its squares, and often still when it is normalised.
    dtype, N, cells = input.dtype, input.shape[0], input.shape[2] * input.shape[3]
    number, joint, squares = dtype.type, 0.0, 0.0
    if of_batch != 0:
        for n in range(N):
            x = address(input) + (n * input.shape[1] + task) * cells * itemsize(dtype)
            own = np.float64(scaled_sum(x, cells, number(1), dtype)) / cells
            distance = own - joint
            joint += distance / (n + 1)
            squares += np.float64(squares_about(x, cells, number(own), dtype))
            squares += distance * distance * cells * n / (n + 1)
        mean[task] = number(joint)
        variance[task] = number(squares / (N * cells))
    centre, shift = mean[task], bias[task]
    scale = number(weight[task] / math.sqrt(np.float64(variance[task]) + np.float64(eps)))
    for n in range(N):
        x, y = input[n, task].reshape(cells), output[n, task].reshape(cells)
        for i in range(cells):
            y[i] = clamp((x[i] - centre) * scale + shift, act_min, act_max)


def normalise(
    input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output, workspace, geometry, n_threads
):  # fmt: skip
    """output = clamp(weight * (input - mean) / sqrt(variance + eps) + bias), of_batch by the input's own mean and variance."""
    normalise_task.run(
        input.shape[1], n_threads, input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output
    )


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
    dtype, N, cells = input.dtype, input.shape[0], input.shape[2] * input.shape[3]
    number, centre, total, products = dtype.type, mean[task], 0.0, 0.0
    for n in range(N):
        at = (n * input.shape[1] + task) * cells * itemsize(dtype)
        total += np.float64(scaled_sum(address(grad_output) + at, cells, number(1), dtype))
        products += np.float64(products_about(address(grad_output) + at, address(input) + at, cells, centre, dtype))
    scale = 1 / math.sqrt(np.float64(variance[task]) + np.float64(eps))
    grad_bias[task] = number(total)
    grad_weight[task] = number(products * scale)
    if grad_input.size == 0:
        return
    shift = slope = number(0)
    if of_batch != 0:
        shift, slope = number(total / (N * cells)), number(products * scale * scale / (N * cells))
    factor = number(scale * weight[task])
    for n in range(N):
        g, x, y = grad_output[n, task].reshape(cells), input[n, task].reshape(cells), grad_input[n, task].reshape(cells)
        for i in range(cells):
            y[i] = (g[i] - shift - (x[i] - centre) * slope) * factor


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
