"""Work cell by cell: sums of two arrays, a rectifier's gradient, optimisers, sums and normalisation of maps, finiteness.

Formulas and shapes: fastconv/_reference/elementwise.py.
"""

from libc.math cimport sqrt, sqrtf

from common cimport (
    ceil_div, clamp, each_task, fill, int64_t, real, start, start_of_row, team_join, vd, vec, vf, vfma,
)

team_join()

cdef enum:
    CHUNK = 16384   # cells of a task: four arrays of them fill half a second-level cache, and take some microseconds
    SUMS = 4        # vectors that add up side by side, as each addition waits for the one before
    PIECE = 4096    # cells whose statistics are summed in `real`: of more a sum rounds too much


# What the tasks of add and rectify share: arrays of n cells, and bounds.
cdef struct Pair:
    Py_ssize_t itemsize, n
    const void* source
    double low, high
    void* target


cdef void add_task(
    Py_ssize_t task,
    const real* term,    # IN
    Py_ssize_t n_cells,
    real act_min,
    real act_max,
    real* total,         # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef Py_ssize_t i
    for i in range(task * CHUNK, min((task + 1) * CHUNK, n_cells)):
        total[i] = clamp(term[i] + total[i], act_min, act_max)


cdef void add_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pair* p = <const Pair*> job
    if p.itemsize == sizeof(float):
        add_task(task, <const float*> p.source, p.n, <float> p.low, <float> p.high, <float*> p.target)
    else:
        add_task(task, <const double*> p.source, p.n, p.low, p.high, <double*> p.target)


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
    cdef:
        Py_ssize_t n = term.shape[0]
        Pair job = Pair(sizeof(real), n, start_of_row(term), act_min, act_max, <void*> start_of_row(total))
    with nogil:
        each_task(add_entry, &job, ceil_div(n, CHUNK), n_threads)


cdef void rectify_task(
    Py_ssize_t task,
    const real* output,  # IN
    Py_ssize_t n_cells,
    real most,
    real* grad,          # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef Py_ssize_t i
    for i in range(task * CHUNK, min((task + 1) * CHUNK, n_cells)):
        grad[i] = grad[i] if (output[i] > 0) & (output[i] <= most) else 0


cdef void rectify_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Pair* p = <const Pair*> job
    if p.itemsize == sizeof(float):
        rectify_task(task, <const float*> p.source, p.n, <float> p.high, <float*> p.target)
    else:
        rectify_task(task, <const double*> p.source, p.n, p.high, <double*> p.target)


def rectify(
    const real[::1] output,
    real most,
    real[::1] grad,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """grad becomes 0 wherever not 0 < output <= most."""
    cdef:
        Py_ssize_t n = output.shape[0]
        Pair job = Pair(sizeof(real), n, start_of_row(output), 0, most, <void*> start_of_row(grad))
    with nogil:
        each_task(rectify_entry, &job, ceil_div(n, CHUNK), n_threads)


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
    const real* gradient,  # IN
    Py_ssize_t n_cells,
    real lr,
    real momentum,
    real weight_decay,
    bint nesterov,
    real* parameter,       # IN/OUT
    real* velocity,        # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t first = task * CHUNK, n = min(n_cells - first, CHUNK)
        const real* g = gradient + first
        real* w = parameter + first
        real* v = velocity + first if momentum != 0 else NULL
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


cdef struct Sgd:
    Py_ssize_t itemsize, n
    const void* gradient
    double lr, momentum, weight_decay
    bint nesterov
    void* parameter
    void* velocity


cdef void sgd_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Sgd* s = <const Sgd*> job
    if s.itemsize == sizeof(float):
        sgd_task(
            task, <const float*> s.gradient, s.n, <float> s.lr, <float> s.momentum, <float> s.weight_decay, s.nesterov,
            <float*> s.parameter, <float*> s.velocity,
        )
    else:
        sgd_task(
            task, <const double*> s.gradient, s.n, s.lr, s.momentum, s.weight_decay, s.nesterov, <double*> s.parameter,
            <double*> s.velocity,
        )


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
    cdef:
        Py_ssize_t n = gradient.shape[0]
        Sgd job = Sgd(
            sizeof(real), n, start_of_row(gradient), lr, momentum, weight_decay, nesterov, <void*> start_of_row(parameter),
            <void*> start_of_row(velocity),
        )
    with nogil:
        each_task(sgd_entry, &job, ceil_div(n, CHUNK), n_threads)


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
    const real* gradient,  # IN
    Py_ssize_t n_cells,
    real step,
    real mean_share,
    real kept,
    real square_share,
    real scale,
    real eps,
    real shrink,
    real weight_decay,
    real* parameter,       # IN/OUT
    real* mean,            # IN/OUT
    real* square,          # IN/OUT
) noexcept nogil:
    # A task is a chunk.
    cdef:
        Py_ssize_t first = task * CHUNK, n = min(n_cells - first, CHUNK)
        const real* g = gradient + first
        real* w = parameter + first
        real* m = mean + first
        real* s = square + first
    if weight_decay == 0:
        adam_cells(
            g, w, m, s, n, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, False
        )
    else:
        adam_cells(
            g, w, m, s, n, step, mean_share, kept, square_share, scale, eps, shrink, weight_decay, True
        )


cdef struct Adam:
    Py_ssize_t itemsize, n
    const void* gradient
    double step, mean_share, kept, square_share, scale, eps, shrink, weight_decay
    void* parameter
    void* mean
    void* square


cdef void adam_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Adam* a = <const Adam*> job
    if a.itemsize == sizeof(float):
        adam_task(
            task, <const float*> a.gradient, a.n, <float> a.step, <float> a.mean_share, <float> a.kept, <float> a.square_share,
            <float> a.scale, <float> a.eps, <float> a.shrink, <float> a.weight_decay, <float*> a.parameter, <float*> a.mean,
            <float*> a.square,
        )
    else:
        adam_task(
            task, <const double*> a.gradient, a.n, a.step, a.mean_share, a.kept, a.square_share, a.scale, a.eps, a.shrink,
            a.weight_decay, <double*> a.parameter, <double*> a.mean, <double*> a.square,
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
    cdef:
        Py_ssize_t n = gradient.shape[0]
        Adam job = Adam(
            sizeof(real), n, start_of_row(gradient), step, mean_share, kept, square_share, scale, eps, shrink, weight_decay,
            <void*> start_of_row(parameter), <void*> start_of_row(mean), <void*> start_of_row(square),
        )
    with nogil:
        each_task(adam_entry, &job, ceil_div(n, CHUNK), n_threads)


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


# N images of C maps.
cdef struct Maps:
    Py_ssize_t itemsize, N, C, cells


cdef inline Maps maps_of(const real[:, :, :, ::1] input) noexcept nogil:
    return Maps(sizeof(real), input.shape[0], input.shape[1], input.shape[2] * input.shape[3])


cdef struct MapSums:
    Maps maps
    const void* input
    void* sums


cdef void map_sums_task(
    Py_ssize_t task,
    const Maps* maps,
    const real* input,  # IN
    real* sums,         # OUT
    vec* unused,
) noexcept nogil:
    # A task is one channel; its images follow each other.
    cdef:
        Py_ssize_t n
        real total = 0
    if maps.cells:
        for n in range(maps.N):
            total = total + scaled_sum(input + (n * maps.C + task) * maps.cells, maps.cells, <real> 1, unused)
    sums[task] = total


cdef void map_sums_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const MapSums* m = <const MapSums*> job
    if m.maps.itemsize == sizeof(float):
        map_sums_task(task, &m.maps, <const float*> m.input, <float*> m.sums, <vf*> NULL)
    else:
        map_sums_task(task, &m.maps, <const double*> m.input, <double*> m.sums, <vd*> NULL)


def map_sums(
    const real[:, :, :, ::1] input,
    real[::1] sums,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """input (N, C, H, W) -> sums (C,): over images and cells."""
    cdef MapSums job = MapSums(maps_of(input), start(input), <void*> start_of_row(sums))
    with nogil:
        each_task(map_sums_entry, &job, job.maps.C, n_threads)


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
    const Maps* maps,
    const real* input,    # IN
    const real* weight,   # IN
    const real* bias,     # IN
    bint of_batch,
    real eps,
    real act_min,
    real act_max,
    real* mean,           # OUT of a batch, else IN
    real* variance,       # OUT of a batch, else IN
    real* output,         # OUT
    vec* unused,
) noexcept nogil:
    # A task is one channel.
    cdef:
        Py_ssize_t n, cells = maps.cells, at
        real scale
    if of_batch:
        map_moments(input + task * cells, maps.N, maps.C * cells, cells, &mean[task], &variance[task], unused)
    scale = <real> (weight[task] / sqrt(<double> variance[task] + eps))
    for n in range(maps.N):
        at = (n * maps.C + task) * cells
        normalise_cells(input + at, output + at, cells, mean[task], scale, bias[task], act_min, act_max)


cdef struct Normalise:
    Maps maps
    const void* input
    const void* weight
    const void* bias
    bint of_batch
    double eps, low, high
    void* mean
    void* variance
    void* output


cdef void normalise_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const Normalise* m = <const Normalise*> job
    if m.maps.itemsize == sizeof(float):
        normalise_task(
            task, &m.maps, <const float*> m.input, <const float*> m.weight, <const float*> m.bias, m.of_batch, <float> m.eps,
            <float> m.low, <float> m.high, <float*> m.mean, <float*> m.variance, <float*> m.output, <vf*> NULL,
        )
    else:
        normalise_task(
            task, &m.maps, <const double*> m.input, <const double*> m.weight, <const double*> m.bias, m.of_batch, m.eps,
            m.low, m.high, <double*> m.mean, <double*> m.variance, <double*> m.output, <vd*> NULL,
        )


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
    cdef Normalise job = Normalise(
        maps_of(input), start(input), start_of_row(weight), start_of_row(bias), of_batch, eps, act_min, act_max,
        <void*> start_of_row(mean), <void*> start_of_row(variance), <void*> start(output),
    )
    with nogil:
        each_task(normalise_entry, &job, job.maps.C, n_threads)


cdef inline void normalise_backward_cells(
    const real* g, const real* x, real* y, Py_ssize_t n, real centre, real slope, real shift, real scale
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        y[i] = (g[i] - shift - (x[i] - centre) * slope) * scale


cdef void normalise_backward_task(
    Py_ssize_t task,
    const Maps* maps,
    const real* grad_output,  # IN
    const real* input,        # IN
    const real* weight,       # IN
    const real* mean,         # IN
    const real* variance,     # IN
    bint of_batch,
    real eps,
    real* grad_weight,        # OUT
    real* grad_bias,          # OUT
    real* grad_input,         # OUT  or NULL
    vec* unused,
) noexcept nogil:
    # A task is one channel.
    cdef:
        Py_ssize_t n, N = maps.N, C = maps.C, cells = maps.cells, at, end, length
        real centre = mean[task]
        double total = 0, products = 0, scale = 1 / sqrt(<double> variance[task] + eps), slope = 0, shift = 0
    for n in range(N):
        at = (n * C + task) * cells
        end = at + cells
        while at < end:
            length = min(end - at, PIECE)
            total += scaled_sum(grad_output + at, length, <real> 1, unused)
            products += products_about(grad_output + at, input + at, length, centre, unused)
            at += length
    grad_bias[task] = <real> total
    grad_weight[task] = <real> (products * scale)
    if grad_input == NULL:
        return
    if of_batch:
        shift, slope = total / (N * cells), products * scale * scale / (N * cells)
    for n in range(N):
        at = (n * C + task) * cells
        normalise_backward_cells(
            grad_output + at, input + at, grad_input + at, cells, centre, <real> slope, <real> shift, <real> (scale * weight[task])
        )


cdef struct NormaliseBackward:
    Maps maps
    const void* grad_output
    const void* input
    const void* weight
    const void* mean
    const void* variance
    bint of_batch
    double eps
    void* grad_weight
    void* grad_bias
    void* grad_input


cdef void normalise_backward_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const NormaliseBackward* m = <const NormaliseBackward*> job
    if m.maps.itemsize == sizeof(float):
        normalise_backward_task(
            task, &m.maps, <const float*> m.grad_output, <const float*> m.input, <const float*> m.weight,
            <const float*> m.mean, <const float*> m.variance, m.of_batch, <float> m.eps, <float*> m.grad_weight,
            <float*> m.grad_bias, <float*> m.grad_input, <vf*> NULL,
        )
    else:
        normalise_backward_task(
            task, &m.maps, <const double*> m.grad_output, <const double*> m.input, <const double*> m.weight,
            <const double*> m.mean, <const double*> m.variance, m.of_batch, m.eps, <double*> m.grad_weight,
            <double*> m.grad_bias, <double*> m.grad_input, <vd*> NULL,
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
    cdef NormaliseBackward job = NormaliseBackward(
        maps_of(input), start(grad_output), start(input), start_of_row(weight), start_of_row(mean), start_of_row(variance),
        of_batch, eps, <void*> start_of_row(grad_weight), <void*> start_of_row(grad_bias), <void*> start(grad_input),
    )
    with nogil:
        each_task(normalise_backward_entry, &job, job.maps.C, n_threads)


cdef struct NonFinite:
    Py_ssize_t itemsize, n, n_parts
    const void* input
    void* found


cdef void non_finite_task(
    Py_ssize_t task,
    const real* input,  # IN
    Py_ssize_t n_cells,
    Py_ssize_t n_parts,
    real* found,        # OUT
    vec* unused,
) noexcept nogil:
    # A task is one of the equal parts.
    cdef Py_ssize_t part = ceil_div(n_cells, n_parts), first = min(task * part, n_cells)
    found[task] = scaled_sum(input + first, min(n_cells - first, part), <real> 0, unused)


cdef void non_finite_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const NonFinite* f = <const NonFinite*> job
    if f.itemsize == sizeof(float):
        non_finite_task(task, <const float*> f.input, f.n, f.n_parts, <float*> f.found, <vf*> NULL)
    else:
        non_finite_task(task, <const double*> f.input, f.n, f.n_parts, <double*> f.found, <vd*> NULL)


def non_finite(
    const real[::1] input,
    real[::1] found,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """found, of any length: of each of so many parts of input, 0 where all is finite, else NaN."""
    cdef NonFinite job = NonFinite(
        sizeof(real), input.shape[0], found.shape[0], start_of_row(input), <void*> start_of_row(found)
    )
    with nogil:
        each_task(non_finite_entry, &job, job.n_parts, n_threads)
