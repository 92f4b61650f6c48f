"""Work cell by cell: sums of two arrays, a rectifier's gradient, optimisers, sums and normalisation of maps, finiteness.

Formulas and shapes: fastconv/_reference/elementwise.py.
"""

from cython.parallel cimport prange
from libc.math cimport sqrt, sqrtf

from common cimport ceil_div, clamp, fill, int64_t, real, start, vd, vec, vf, vfma

cdef enum:
    CHUNK = 16384   # cells of a task: four arrays of them fill half a second-level cache, and take some microseconds
    SUMS = 4        # vectors that add up side by side, as each addition waits for the one before
    PIECE = 4096    # cells whose statistics are summed in `real`: of more a sum rounds too much


cdef void add_task(
    Py_ssize_t task,
    const real[::1] term,  # IN
    real act_min,
    real act_max,
    real[::1] total,       # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t i, first = task * CHUNK, n = min(term.shape[0] - first, CHUNK)
        const real* a = &term[first]
        real* b = &total[first]
    for i in range(n):
        b[i] = clamp(a[i] + b[i], act_min, act_max)


def add(
    const real[::1] term,
    real act_min,
    real act_max,
    real[::1] total,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """total = clamp(total + term, act_min, act_max); NaN stays NaN."""
    cdef Py_ssize_t task, n_tasks = ceil_div(term.shape[0], CHUNK)
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        add_task(task, term, act_min, act_max, total)


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


cdef inline real sum_of(vec* sums, const real* unused) noexcept nogil:
    """The sum of all lanes of SUMS vectors."""
    cdef:
        Py_ssize_t i
        real total = 0
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3])
    for i in range(<Py_ssize_t> (sizeof(vec) // sizeof(real))):
        total = total + (<real*> sums)[i]
    return total


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
    for i in range(n // VL * VL, n):
        total = total + factor * cells[i]
    return total + sum_of(&sums[0], &total)


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


cdef void centred_sums(
    const real* cells, Py_ssize_t n, real centre, double* rest, double* squares, vec* unused
) noexcept nogil:
    """To rest and squares are added the sums of cell - centre and of its square."""
    cdef:
        Py_ssize_t i = 0, j, VL = sizeof(vec) // sizeof(real)
        vec[2] sums, more
        vec each, x
        real total = 0, of_squares = 0
    fill(&each, centre)
    for j in range(2):
        fill(&sums[j], <real> 0)
        fill(&more[j], <real> 0)
    while i + 2 * VL <= n:
        for j in range(2):
            x = (<const vec*> (cells + i + j * VL))[0] - each
            sums[j] = sums[j] + x
            more[j] = vfma(more[j], x, x)
        i += 2 * VL
    for i in range(i, n):
        total = total + (cells[i] - centre)
        of_squares = of_squares + (cells[i] - centre) * (cells[i] - centre)
    sums[0], more[0] = sums[0] + sums[1], more[0] + more[1]
    for j in range(VL):
        total = total + (<real*> &sums[0])[j]
        of_squares = of_squares + (<real*> &more[0])[j]
    rest[0] += total
    squares[0] += of_squares


cdef real products_about(const real* grad, const real* cells, Py_ssize_t n, real centre, vec* unused) noexcept nogil:
    """The sum of grad * (cell - centre)."""
    cdef:
        Py_ssize_t i = 0, j, VL = sizeof(vec) // sizeof(real)
        vec[SUMS] sums
        vec each
        real total = 0
    fill(&each, centre)
    for j in range(SUMS):
        fill(&sums[j], <real> 0)
    while i + SUMS * VL <= n:
        for j in range(SUMS):
            sums[j] = vfma(sums[j], (<const vec*> (grad + i + j * VL))[0], (<const vec*> (cells + i + j * VL))[0] - each)
        i += SUMS * VL
    while i + VL <= n:
        sums[0] = vfma(sums[0], (<const vec*> (grad + i))[0], (<const vec*> (cells + i))[0] - each)
        i += VL
    for i in range(i, n):
        total = total + grad[i] * (cells[i] - centre)
    return total + sum_of(&sums[0], &total)


cdef inline void map_moments(
    const real* maps, Py_ssize_t N, Py_ssize_t step, Py_ssize_t cells, real* mean, real* variance, vec* unused
) noexcept nogil:
    """Of N maps, step elements apart, of at least one cell."""
    # Piece by piece, which stays in the first-level cache: its mean, rounded, and what is missing to it, with the squares of
    # the distances from it. Pieces are joined in double precision (Chan, Golub and LeVeque 1979).
    cdef:
        Py_ssize_t n = 0, part, length, together, m
        double joint = 0, squares = 0, count = 0, everything = 0, here, total, rest, of_piece, own, distance
        real centre
    while n < N:
        together = max(min(PIECE // cells, N - n), 1)
        part = 0
        while part < cells:
            length = min(cells - part, PIECE)
            here = together * length
            total = rest = of_piece = 0
            for m in range(n, n + together):
                total += scaled_sum(maps + m * step + part, length, <real> 1, unused)
            centre = <real> (total / here)
            for m in range(n, n + together):
                centred_sums(maps + m * step + part, length, centre, &rest, &of_piece, unused)
            own = centre + rest / here
            everything += own * here if rest == rest else total  # Inf - Inf: of the mean it stays Inf
            distance = own - joint
            squares += of_piece - rest * rest / here + distance * distance * count * here / (count + here)
            joint += distance * here / (count + here)
            count += here
            part += length
        n += together
    mean[0] = <real> (everything / count)
    variance[0] = <real> (0 if squares < 0 else squares / count)


cdef inline void normalise_cells(
    const real* x, real* y, Py_ssize_t n, real centre, real scale, real shift, real low, real high
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = clamp((x[i] - centre) * scale + shift, low, high)


cdef void normalise_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] input,  # IN
    const real[::1] weight,          # IN
    const real[::1] bias,            # IN
    bint of_batch,
    real eps,
    real act_min,
    real act_max,
    real[::1] mean,                  # OUT of a batch, else IN
    real[::1] variance,              # OUT of a batch, else IN
    real[:, :, :, ::1] output,       # OUT
    vec* unused,
) noexcept nogil:
    # A task is one channel.
    cdef:
        Py_ssize_t n, N = input.shape[0], C = input.shape[1], cells = input.shape[2] * input.shape[3], at
        const real* x = start(input)
        real* y = <real*> start(output)
        real scale
    if of_batch:
        map_moments(x + task * cells, N, C * cells, cells, &mean[task], &variance[task], unused)
    scale = <real> (weight[task] / sqrt(<double> variance[task] + eps))
    for n in range(N):
        at = (n * C + task) * cells
        normalise_cells(x + at, y + at, cells, mean[task], scale, bias[task], act_min, act_max)


def normalise(
    const real[:, :, :, ::1] input,
    const real[::1] weight,
    const real[::1] bias,
    bint of_batch,
    real eps,
    real act_min,
    real act_max,
    real[::1] mean,
    real[::1] variance,
    real[:, :, :, ::1] output,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """output = clamp(weight * (input - mean) / sqrt(variance + eps) + bias), of_batch by the input's own mean and variance."""
    cdef:
        Py_ssize_t task, n_tasks = input.shape[1]
        vf* floats = NULL
        vd* doubles = NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        if real is float:
            normalise_task(task, input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output, floats)
        else:
            normalise_task(task, input, weight, bias, of_batch, eps, act_min, act_max, mean, variance, output, doubles)


cdef inline void normalise_backward_cells(
    const real* g, const real* x, real* y, Py_ssize_t n, real centre, real slope, real shift, real scale
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = (g[i] - shift - (x[i] - centre) * slope) * scale


cdef void normalise_backward_task(
    Py_ssize_t task,
    const real[:, :, :, ::1] grad_output,  # IN
    const real[:, :, :, ::1] input,        # IN
    const real[::1] weight,                # IN
    const real[::1] mean,                  # IN
    const real[::1] variance,              # IN
    bint of_batch,
    real eps,
    real[::1] grad_weight,                 # OUT
    real[::1] grad_bias,                   # OUT
    real[:, :, :, ::1] grad_input,         # OUT  or of length 0
    vec* unused,
) noexcept nogil:
    # A task is one channel.
    cdef:
        Py_ssize_t n, N = input.shape[0], C = input.shape[1], cells = input.shape[2] * input.shape[3], at, end, length
        const real* g = start(grad_output)
        const real* x = start(input)
        real* y = <real*> start(grad_input)
        real centre = mean[task]
        double total = 0, products = 0, scale = 1 / sqrt(<double> variance[task] + eps), slope = 0, shift = 0
    for n in range(N):
        at = (n * C + task) * cells
        end = at + cells
        while at < end:
            length = min(end - at, PIECE)
            total += scaled_sum(g + at, length, <real> 1, unused)
            products += products_about(g + at, x + at, length, centre, unused)
            at += length
    grad_bias[task] = <real> total
    grad_weight[task] = <real> (products * scale)
    if y == NULL:
        return
    if of_batch:
        shift, slope = total / (N * cells), products * scale * scale / (N * cells)
    for n in range(N):
        at = (n * C + task) * cells
        normalise_backward_cells(
            g + at, x + at, y + at, cells, centre, <real> slope, <real> shift, <real> (scale * weight[task])
        )


def normalise_backward(
    const real[:, :, :, ::1] grad_output,
    const real[:, :, :, ::1] input,
    const real[::1] weight,
    const real[::1] mean,
    const real[::1] variance,
    bint of_batch,
    real eps,
    real[::1] grad_weight,
    real[::1] grad_bias,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The three gradients of `normalise`; grad_input of length 0 is not wanted."""
    cdef:
        Py_ssize_t task, n_tasks = input.shape[1]
        vf* floats = NULL
        vd* doubles = NULL
    for task in prange(n_tasks, nogil=True, num_threads=n_threads, use_threads_if=n_threads > 1, schedule="dynamic"):
        if real is float:
            normalise_backward_task(
                task, grad_output, input, weight, mean, variance, of_batch, eps, grad_weight, grad_bias, grad_input, floats
            )
        else:
            normalise_backward_task(
                task, grad_output, input, weight, mean, variance, of_batch, eps, grad_weight, grad_bias, grad_input, doubles
            )


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
