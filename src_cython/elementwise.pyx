"""Work cell by cell: a rectifier's gradient, optimisers, sums of maps, and whether all is finite.

Formulas and shapes: fastconv/_reference/elementwise.py.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt, sqrtf

from common cimport ceil_div, fill, int64_t, real, start, vd, vec, vf

cdef enum:
    CHUNK = 16384   # cells of a task: four arrays of them fill half a second-level cache, and take some microseconds
    SUMS = 4        # vectors that add up side by side, as each addition waits for the one before


cdef void rectify_task(
    Py_ssize_t task,
    const real[::1] output,  # IN
    real most,
    real[::1] grad,          # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t i, first = task * CHUNK, n = min(output.shape[0] - first, CHUNK)
        const real* y = &output[first]
        real* g = &grad[first]
    for i in range(n):
        g[i] = g[i] if (y[i] > 0) & (y[i] <= most) else 0


def rectify(
    const real[::1] output,
    real most,
    real[::1] grad,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad becomes 0 wherever not 0 < output <= most."""
    cdef Py_ssize_t task, n_tasks = ceil_div(output.shape[0], CHUNK)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        rectify_task(task, output, most, grad)


cdef inline void sgd_cells(
    const real* gradient, real* w, real* v, Py_ssize_t n, real lr, real momentum, real weight_decay,
    bint moves, bint nesterov, bint decays,  # constants at each call
) noexcept nogil:
    cdef:
        Py_ssize_t i
        real g
    for i in range(n):
        g = gradient[i]
        if decays:
            g = g + weight_decay * w[i]
        if moves:
            v[i] = momentum * v[i] + g
            g = g + momentum * v[i] if nesterov else v[i]
        w[i] = w[i] - lr * g


cdef void sgd_task(
    Py_ssize_t task,
    const real[::1] gradient,  # IN
    real lr,
    real momentum,
    real weight_decay,
    bint nesterov,
    real[::1] parameter,       # IN/OUT
    real[::1] velocity,        # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t first = task * CHUNK, n = min(gradient.shape[0] - first, CHUNK)
        const real* g = &gradient[first]
        real* w = &parameter[first]
        real* v = &velocity[first] if momentum != 0 else NULL
    if momentum == 0 and weight_decay == 0:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, False, False, False)
    elif momentum == 0:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, False, False, True)
    elif weight_decay == 0 and not nesterov:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, True, False, False)
    elif weight_decay == 0:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, True, True, False)
    elif not nesterov:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, True, False, True)
    else:
        sgd_cells(g, w, v, n, lr, momentum, weight_decay, True, True, True)


def sgd(
    const real[::1] gradient,
    real lr,
    real momentum,
    real weight_decay,
    bint nesterov,
    real[::1] parameter,
    real[::1] velocity,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """A step of gradient descent, of parameter and velocity, which has length 0 where momentum is 0."""
    cdef Py_ssize_t task, n_tasks = ceil_div(gradient.shape[0], CHUNK)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        sgd_task(task, gradient, lr, momentum, weight_decay, nesterov, parameter, velocity)


cdef inline real root(real value) noexcept nogil:
    if real is float:
        return sqrtf(value)
    else:
        return sqrt(value)


cdef inline void adam_cells(
    const real* gradient, real* w, real* m, real* s, Py_ssize_t n, real step, real mean_share, real kept,
    real square_share, real scale, real eps, real shrink, real weight_decay,
    bint decays,  # a constant at each call
) noexcept nogil:
    cdef:
        Py_ssize_t i
        real g
    for i in range(n):
        g = gradient[i]
        if decays:
            g = g + weight_decay * w[i]
        m[i] = m[i] + mean_share * (g - m[i])
        s[i] = kept * s[i] + square_share * (g * g)
        w[i] = shrink * w[i] - step * (m[i] / (scale * root(s[i]) + eps))


cdef void adam_task(
    Py_ssize_t task,
    const real[::1] gradient,  # IN
    real step,
    real mean_share,
    real kept,
    real square_share,
    real scale,
    real eps,
    real shrink,
    real weight_decay,
    real[::1] parameter,       # IN/OUT
    real[::1] mean,            # IN/OUT
    real[::1] square,          # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t first = task * CHUNK, n = min(gradient.shape[0] - first, CHUNK)
        const real* g = &gradient[first]
        real* w = &parameter[first]
        real* m = &mean[first]
        real* s = &square[first]
    if weight_decay == 0:
        adam_cells(
            g, w, m, s, n, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, False
        )
    else:
        adam_cells(
            g, w, m, s, n, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, True
        )


def adam(
    const real[::1] gradient,
    real step,
    real mean_share,
    real kept,
    real square_share,
    real scale,
    real eps,
    real shrink,
    real weight_decay,
    real[::1] parameter,
    real[::1] mean,
    real[::1] square,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """A step of Adam, of parameter and of the means of the gradient and of its square."""
    cdef Py_ssize_t task, n_tasks = ceil_div(gradient.shape[0], CHUNK)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        adam_task(
            task, gradient, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, parameter, mean, square
        )


cdef real scaled_sum(const real* cells, Py_ssize_t n, real factor, vec* unused) noexcept nogil:
    """The sum of factor * cell."""
    cdef:
        Py_ssize_t i, j, VL = sizeof(vec) // sizeof(real), whole = n // (SUMS * VL) * (SUMS * VL)
        vec[SUMS] sums
        vec each
        real total = 0
    fill(&each, factor)
    for j in range(SUMS):
        fill(&sums[j], <real> 0)
    for i in range(whole // (SUMS * VL)):
        for j in range(SUMS):
            sums[j] = sums[j] + each * (<const vec*> (cells + (i * SUMS + j) * VL))[0]
    for i in range((n - whole) // VL):
        sums[0] = sums[0] + each * (<const vec*> (cells + whole + i * VL))[0]
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3])
    for i in range(n // VL * VL, n):
        total = total + factor * cells[i]
    for i in range(VL):
        total = total + (<real*> &sums[0])[i]
    return total


cdef void map_sums_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,  # IN
    real[::1] sums,                  # OUT
    vec* unused,
) noexcept nogil:
    # A task is one channel; its images follow each other.
    cdef:
        Py_ssize_t n, C = input.shape[1], cells = input.shape[2] * input.shape[3]
        const real* maps = start(input)
        real total = 0
    if cells:
        for n in range(input.shape[0]):
            total = total + scaled_sum(maps + (n * C + task) * cells, cells, <real> 1, unused)
    sums[task] = total


def map_sums(
    const real[:, :, :, ::1] input,
    real[::1] sums,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, C, H, W) -> sums (C,): over images and cells."""
    cdef:
        Py_ssize_t task, n_tasks = input.shape[1]
        vf* floats = NULL
        vd* doubles = NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        if real is float:
            map_sums_task(task, input, sums, floats)
        else:
            map_sums_task(task, input, sums, doubles)


cdef void non_finite_task(
    Py_ssize_t task,
    const real[::1] input,  # IN
    real[::1] found,        # OUT
    vec* unused,
) noexcept nogil:
    # A task is one of the equal parts.
    cdef Py_ssize_t part = ceil_div(input.shape[0], found.shape[0]), first = min(task * part, input.shape[0])
    found[task] = 0
    if first < input.shape[0]:
        found[task] = scaled_sum(&input[first], min(input.shape[0] - first, part), <real> 0, unused)


def non_finite(
    const real[::1] input,
    real[::1] found,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """found, of any length: of each of so many parts of input, 0 where all is finite, else NaN."""
    cdef:
        Py_ssize_t task, n_tasks = found.shape[0]
        vf* floats = NULL
        vd* doubles = NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        if real is float:
            non_finite_task(task, input, found, floats)
        else:
            non_finite_task(task, input, found, doubles)
