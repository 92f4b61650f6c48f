"""Checks that every convolution family passes, at kernel level: `test_direct`, `test_im2col` and
`test_winograd` run them."""

from __future__ import annotations

import math

import numpy as np

import oracle
from conftest import Guarded
from fastconv import _problem
from problems import integers, normals, solve, solved
from tolerance import ZERO_MEAN, assert_same, assert_within, bound, conv_chain, products

NO_ARRAY = (0, 0, 0, 0)


def pool_geometry(problem, kernel, stride, pads=(0, 0), accumulate=False, tile=0):
    """The geometry vector of a convolution with a max-pool behind it, and the pooled extents."""
    fields = dict(zip(_problem.GEOMETRY, problem.geometry(accumulate=accumulate, tile=tile).tolist(), strict=True))
    extents = tuple(
        oracle.pool_extent((problem.OH, problem.OW)[a], kernel[a], stride[a], pads[a], pads[a], 1, False)
        for a in (0, 1)
    )
    fields.update(
        pool_KH=kernel[0], pool_KW=kernel[1], pool_OH=extents[0], pool_OW=extents[1], pool_stride_h=stride[0],
        pool_stride_w=stride[1], pool_pad_top=pads[0], pool_pad_left=pads[1],
    )  # fmt: skip
    geometry = np.array(list(fields.values()), dtype=np.int64)
    geometry.flags.writeable = False
    return geometry, extents


def weight_of(engine, stem, w, problem, n_threads=1, tile=0, turned=False):
    """The weight as the family's conv2d reads it: packed for im2col and winograd."""
    if stem not in ("im2col", "winograd"):
        return w
    geometry = problem.geometry(tile=tile, turned=turned)
    packed = Guarded((int(getattr(engine.k, stem).packed_weight_size(geometry)),), w.dtype)
    engine.run(stem, "pack_weight", w, packed.array, geometry=geometry, n_threads=n_threads)
    packed.check(f"{engine.name} pack_weight")
    packed.array.flags.writeable = False
    return packed.array


def conv2d(engine, stem, problem, x, w, bias=None, start=None, clamp=(-math.inf, math.inf), n_threads=1, tile=0):
    """One call of a family's conv2d; ``start`` is what accumulate adds to, ``tile`` is Winograd's."""
    dtype = x.dtype
    out = Guarded(problem.output_shape, dtype)
    if start is not None:
        out.array[...] = start
    weight = weight_of(engine, stem, w, problem, n_threads, tile)
    engine.run(
        stem, "conv2d", x, weight, np.zeros(0, dtype) if bias is None else bias, *clamp, out.array,
        np.zeros(NO_ARRAY, dtype), np.zeros(NO_ARRAY, np.int64),
        geometry=problem.geometry(accumulate=start is not None, tile=tile), n_threads=n_threads,
    )  # fmt: skip
    out.check(f"{engine.name} {stem}.conv2d")
    return out.array


def grad_input(engine, stem, problem, grad_output, w, bias=None, start=None, clamp=(-math.inf, math.inf), n_threads=1):
    out = Guarded(problem.input_shape, w.dtype)
    if start is not None:
        out.array[...] = start
    engine.run(
        stem, "conv2d_grad_input", grad_output, w, np.zeros(0, w.dtype) if bias is None else bias, *clamp, out.array,
        geometry=problem.geometry(accumulate=start is not None), n_threads=n_threads,
    )  # fmt: skip
    out.check(f"{engine.name} {stem}.conv2d_grad_input")
    return out.array


def grad_weight(engine, stem, problem, x, grad_output, start=None, n_threads=1, tile=0):
    out = Guarded(problem.weight_shape, x.dtype)
    if start is not None:
        out.array[...] = start
    engine.run(
        stem, "conv2d_grad_weight", x, grad_output, out.array,
        geometry=problem.geometry(accumulate=start is not None, tile=tile), n_threads=n_threads,
    )  # fmt: skip
    out.check(f"{engine.name} {stem}.conv2d_grad_weight")
    return out.array


def call(engine, stem, kernel, problem, data, **more):
    """A kernel by name on the data of `solved`."""
    if kernel == "conv2d":
        return conv2d(engine, stem, problem, data["x"], data["w"], **more)
    if kernel == "conv2d_grad_input":
        return grad_input(engine, stem, problem, data["grad_output"], data["w"], **more)
    return grad_weight(engine, stem, problem, data["x"], data["grad_output"], **more)


RESULT = {"conv2d": "conv", "conv2d_grad_input": "grad_input", "conv2d_grad_weight": "grad_weight"}


def check_case(engine, stem, kernel, case, dtype):
    """Integers exact; random data under the proven bound, and within two eps of conv(|x|, |w|)."""
    problem, what = case.problem(dtype), f"{engine.name} {stem}.{kernel} {case.name}"
    exact = solved(case, dtype, "integers")
    actual = call(engine, stem, kernel, problem, exact)
    assert_same(actual, exact[RESULT[kernel]].astype(dtype), what)

    data = solved(case, dtype, "normals")
    actual, sizes = call(engine, stem, kernel, problem, data), data[f"abs_{RESULT[kernel]}"]
    terms = products(kernel, problem)
    chain = conv_chain(engine.k, stem, kernel, problem)
    assert_within(actual, data[RESULT[kernel]], bound(chain, sizes, dtype, terms), what)
    assert_within(actual, data[RESULT[kernel]], bound(ZERO_MEAN, sizes, dtype, terms), f"{what} (zero-mean)")


def check_any(engine, stem, case):
    """Any geometry, integer data: exact, forward and backward."""
    problem = case.problem("float32")
    x, w = integers(problem.input_shape, "float32", 1), integers(problem.weight_shape, "float32", 2)
    grad = integers(problem.output_shape, "float32", 3)
    exact = solve(problem, x, w, grad)
    data = {"x": x, "w": w, "grad_output": grad}
    for kernel, name in RESULT.items():
        actual = call(engine, stem, kernel, problem, data)
        assert_same(actual, exact[name].astype("float32"), f"{engine.name} {stem}.{kernel} {case}")


def check_forward_epilogue(engine, stem, case, dtype, tile=0):
    """out = clamp((accumulate ? out : 0) + conv + bias, low, high), for every combination."""
    problem, data = case.problem(dtype), solved(case, dtype, "integers")
    start = integers(problem.output_shape, dtype, 7, 20)
    for clamp in ((-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-3.0, 5.0), (-math.inf, 2.0), (4.0, 4.0)):
        for bias in (None, data["bias"]):
            for before in (None, start):
                exact = data["conv"] + (0 if bias is None else bias[:, None, None]) + (0 if before is None else before)
                actual = conv2d(engine, stem, problem, data["x"], data["w"], bias, before, clamp, tile=tile)
                what = f"{engine.name} {stem}.conv2d clamp {clamp} bias {bias is not None} add {before is not None}"
                assert_same(actual, np.clip(exact, *clamp).astype(dtype), what)


def check_epilogue(engine, stem, case, dtype):
    """The same for the gradients too."""
    check_forward_epilogue(engine, stem, case, dtype)
    problem, data = case.problem(dtype), solved(case, dtype, "integers")
    start = integers(problem.input_shape, dtype, 8, 20)
    bias = integers((problem.IC,), dtype, 9)
    for clamp in ((-math.inf, math.inf), (0.0, 6.0)):
        for b in (None, bias):
            for before in (None, start):
                exact = data["grad_input"] + (0 if b is None else b[:, None, None]) + (0 if before is None else before)
                actual = grad_input(engine, stem, problem, data["grad_output"], data["w"], b, before, clamp)
                what = f"{engine.name} {stem}.conv2d_grad_input clamp {clamp} bias {b is not None}"
                assert_same(actual, np.clip(exact, *clamp).astype(dtype), what)

    start = integers(problem.weight_shape, dtype, 10, 20)
    actual = grad_weight(engine, stem, problem, data["x"], data["grad_output"], start)
    assert_same(actual, (data["grad_weight"] + start).astype(dtype), f"{engine.name} {stem}.conv2d_grad_weight add")


def check_epilogue_rounding(engine, stem, case, dtype):
    """Random data with bias and accumulate: two roundings more than the sum itself."""
    problem, data = case.problem(dtype), solved(case, dtype, "normals")
    start = normals(problem.output_shape, dtype, 11)
    actual = conv2d(engine, stem, problem, data["x"], data["w"], data["bias"], start)
    exact = data["conv"] + data["bias"][:, None, None].astype(data["conv"].dtype) + start
    sizes = data["abs_conv"] + abs(data["bias"])[:, None, None] + abs(start)
    chain, terms = conv_chain(engine.k, stem, "conv2d", problem), products("conv2d", problem)
    assert_within(actual, exact, bound(chain, sizes, dtype, terms, extra=2), f"{engine.name} {stem}.conv2d epilogue")


def check_fused_pool(engine, stem, case, dtype, kernel, stride, pads=(0, 0), with_indices=True, tile=0):
    """The pooled result and its indices are those of pooling the finished convolution."""
    problem, data = case.problem(dtype), solved(case, dtype, "integers")
    geometry, extents = pool_geometry(problem, kernel, stride, pads, tile=tile)
    shape = (problem.N, problem.OC, *extents)
    pooled = Guarded(shape, dtype)
    indices = Guarded(shape if with_indices else NO_ARRAY, np.int64)
    weight = weight_of(engine, stem, data["w"], problem, tile=tile)
    engine.run(
        stem, "conv2d", data["x"], weight, data["bias"], 0.0, math.inf, np.zeros(NO_ARRAY, dtype), pooled.array,
        indices.array, geometry=geometry,
    )  # fmt: skip
    pooled.check("pooled")
    indices.check("indices")
    full = np.maximum(data["conv"] + data["bias"][:, None, None], 0).astype(dtype)
    sides = (pads[0], pads[0], pads[1], pads[1])
    values, where = oracle.max_pool2d(full, kernel, stride, sides, (1, 1), extents)
    what = f"{engine.name} {stem}.conv2d fused with a {kernel} pool"
    assert_same(pooled.array, values, what)
    if with_indices:
        assert_same(indices.array, where, f"{what}: indices")


def _pattern(array):
    """0 finite, 1 NaN, 2 +Inf, 3 -Inf, cell by cell."""
    return np.select([np.isnan(array), np.isposinf(array), np.isneginf(array)], [1, 2, 3], 0)


def check_non_finite(engine, stem, case, dtype):
    """NaN and Inf appear exactly where the definition puts them: nowhere else, and lost nowhere."""
    problem = case.problem(dtype)
    data = {name: array.copy() for name, array in solved(case, dtype, "integers").items()}
    for value in (np.nan, np.inf, -np.inf):
        for spot in ("x", "w", "grad_output"):
            changed = {**data, spot: data[spot].copy()}
            flat = changed[spot].reshape(-1)
            for at in {0, flat.size // 2, flat.size - 1}:
                flat[at] = value
            with np.errstate(invalid="ignore"):
                exact = definition(problem, changed["x"], changed["w"], changed["grad_output"])
            for kernel, name in RESULT.items():
                if spot == {"conv2d": "grad_output", "conv2d_grad_input": "x", "conv2d_grad_weight": "w"}[kernel]:
                    continue  # it takes no part
                with np.errstate(invalid="ignore"):
                    actual = call(engine, stem, kernel, problem, changed)
                what = f"{engine.name} {stem}.{kernel} with {value} in {spot}"
                assert_same(_pattern(actual), _pattern(exact[name]), what)
                finite = np.isfinite(exact[name])
                assert_same(actual[finite], exact[name][finite].astype(dtype), what)


def definition(problem, x, w, grad_output):
    """All three by the defining sums: x is zero outside the image and a term, so that 0 * Inf is NaN there too."""
    pads = (problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right)
    image, w, grad_output = oracle.padded(oracle.wide(x), pads), oracle.wide(w), oracle.wide(grad_output)
    conv = np.zeros(problem.output_shape, dtype=image.dtype)
    grad_image, grad_w = np.zeros_like(image), np.zeros_like(w)
    for oc, oh, ow, kh, kw in np.ndindex(problem.OC, problem.OH, problem.OW, problem.KH, problem.KW):
        first = oc // problem.OCG * problem.ICG
        channels = slice(first, first + problem.ICG)
        ih, iw = oh * problem.stride_h + kh * problem.dil_h, ow * problem.stride_w + kw * problem.dil_w
        for n in range(problem.N):
            conv[n, oc, oh, ow] += (image[n, channels, ih, iw] * w[oc, :, kh, kw]).sum()
            grad_image[n, channels, ih, iw] += grad_output[n, oc, oh, ow] * w[oc, :, kh, kw]
            grad_w[oc, :, kh, kw] += grad_output[n, oc, oh, ow] * image[n, channels, ih, iw]
    grad_x = oracle.padded(grad_image, tuple(-pad for pad in pads))
    return {"conv": conv, "grad_input": grad_x, "grad_weight": grad_w}


def check_adjoint(engine, stem, case, dtype):
    """<conv(x, w), g> = <x, grad_input(g, w)> = <w, grad_weight(x, g)>, for random data."""
    problem, data = case.problem(dtype), solved(case, dtype, "normals")
    forward, back, weight = (call(engine, stem, kernel, problem, data).astype(np.float64) for kernel in RESULT)
    x, w, g = (data[name].astype(np.float64) for name in ("x", "w", "grad_output"))
    size = float((data["abs_conv"].astype(np.float64) * abs(g)).sum())
    # Each result is within ZERO_MEAN eps of its own sum of magnitudes; the float64 sums here add a few eps of float64.
    limit = (2 * ZERO_MEAN * np.finfo(dtype).eps + 64 * np.finfo(np.float64).eps) * size
    assert abs((forward * g).sum() - (x * back).sum()) <= limit
    assert abs((forward * g).sum() - (w * weight).sum()) <= limit


def check_central_differences(engine, stem, case, rng):
    """The derivative of sum(conv * g) by central differences, float64: exact up to rounding, conv is bilinear."""
    problem, data = case.problem("float64"), solved(case, "float64", "normals")
    x, w, g = data["x"], data["w"], data["grad_output"]
    step = 0.5  # any step is exact for a function that is linear in each argument
    back = call(engine, stem, "conv2d_grad_input", problem, data)
    weight = call(engine, stem, "conv2d_grad_weight", problem, data)
    for array, gradient, name in ((x, back, "x"), (w, weight, "w")):
        for cell in rng.choice(array.size, min(array.size, 12), replace=False):
            values = []
            for sign in (1, -1):
                moved = array.copy()
                moved.reshape(-1)[cell] += sign * step
                arguments = {"x": x, "w": w, name: moved}
                values.append(float((conv2d(engine, stem, problem, arguments["x"], arguments["w"]) * g).sum()))
            numeric = (values[0] - values[1]) / (2 * step)
            assert abs(numeric - gradient.reshape(-1)[cell]) <= 1e-10 * (1 + abs(values[0])), f"{name} cell {cell}"


def check_threads(engine, stem, case, dtype):
    """Same bits for 1, 2 and 3 threads."""
    problem, data = case.problem(dtype), solved(case, dtype, "normals")
    for kernel in RESULT:
        one, *more = (call(engine, stem, kernel, problem, data, n_threads=n) for n in (1, 2, 3))
        for n, other in enumerate(more, 2):
            assert_same(other, one, f"{engine.name} {stem}.{kernel} on {n} threads")


def check_subnormal(engine, stem, case, dtype):
    """Tiny data: products that underflow cost at most a smallest subnormal each; nothing is flushed to zero."""
    problem, data = case.problem(dtype), solved(case, dtype, "normals")
    scale = np.dtype(dtype).type(2.0 ** (-65 if dtype == "float32" else -515))
    x, w = data["x"] * scale, data["w"] * scale
    actual = conv2d(engine, stem, problem, x, w)
    factor = data["conv"].dtype.type(scale) ** 2
    chain, terms = conv_chain(engine.k, stem, "conv2d", problem), products("conv2d", problem)
    limit = bound(chain, data["abs_conv"] * factor, dtype, terms)
    assert_within(actual, data["conv"] * factor, limit, f"{engine.name} {stem}.conv2d, subnormal results")
    assert (actual != 0).any(), "flushed to zero"
