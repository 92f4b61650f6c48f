"""How far a float result may lie from the exact one. Derived here, once; u = eps / 2 is the unit roundoff.

**A sum of products.** Let a result be the sum of m products, added one after another in any order or grouping in
which no term passes through more than f roundings. With t_i the terms and no underflow, each rounding multiplies what
it touches by (1 + d), |d| <= u, so

    |actual - exact| <= ((1 + u)**f - 1) * sum |t_i|  <=  f * eps / 2 * 1.01 * sum |t_i|      (while f * u < 0.01)

and ``f * eps * sum|t_i|`` holds with room for one rounding more per term (the product, where it is not contracted into
an FMA). sum |t_i| is the same convolution of |x| and |w|. An underflowing product adds at most one smallest subnormal;
sums do not lose anything by underflow. Hence, for every result,

    |actual - exact| <= f * eps * conv(|x|, |w|) + m * smallest_subnormal

**f**, the longest chain really summed:

* direct conv2d: a filter's cells, KH*KW*ICG.
* im2col conv2d: K = KH*KW*ICG is cut into blocks of KC (the kernel module exports KC); a term passes through its
  block's sum, then through the sums of blocks: min(K, KC) + ceil(K / KC). Without KC the product is one chain of K.
* grad_input: an input cell meets at most OCG*KH*KW products; blocks of KC only make chains shorter.
* grad_weight: one product for every output pixel, N*OH*OW; chunks only make chains shorter.
* max_pool2d, im2col, pad, unpooling: no arithmetic, bitwise equal.
* avg_pool2d: KH*KW cells, one division. Its adjoint: at most KH*KW shares, one division each.
* col2im, pad's adjoint, max_pool2d's adjoint: the number of cells that meet in one.

**Epilogue.** bias and accumulate are two terms and two roundings more: f + 2, and |bias| and |out| join the sum. A
clamp whose bounds are floats of the type moves no two numbers apart.

**Zero-mean random data.** Errors are random-signed then and the partial sums grow like sqrt(i): the standard deviation
of the error of a chain of n is about u * sqrt(1 + 2 + ... + n) / 2 = 0.35 u n against sum|t_i| = 0.64 n: 0.28 eps of
it, whatever n. Five deviations are 1.4 eps, and of 100,000 results some have partial sums twice as large as that;
hence f <= 3 for every sum above, besides the proven bound. A wrong or missing term exceeds it by orders of magnitude,
a needlessly long chain in low precision too.

**Winograd.** tile = A^T [sum over c of (G w_c G^T) * (B^T d_c B)] A. Rounded or not, the value of cell (i, j) is a sum
of products of entries of |A|, |G|, |B| with |w_c[k, l]| and |d_c[p, q]| <= max|d_c|; in one dimension kernel cell k
reaches output i with the factor

    F[i, k] = sum over xi of |A^T[i, xi]| * |G[xi, k]| * (sum of row xi of |B^T|)

so that in two dimensions no factor exceeds F^2, F the largest F[i, k]: 16 for tiles of 2, 175.4 of 4, 1565 of 6; and
175.4 again for tiles of 2 of a 5 x 5 kernel. Each term passes, twice, through at most T additions of the input
transform, r and a rounded coefficient and its multiplication of the weight's, T of the output transform; and once
through the sum over channels, of which a stride S makes S * S of one:

    |actual - exact| <= F^2 * (4 * T + 2 * r + 4 + S^2 * ICG) * eps * sum over c of max|d_c| * sum|w_c|

with d_c all cells of the image that a tile's taps and their zeros meet.

Underflow adds at most a smallest subnormal s where a value was rounded: to the image's part, as if max|d_c| were s, to
the weight's, as if every |w_c| were, or to a product. "auto" takes a tile of 6 never, as its F^2 is 9 times that of 4.
On zero-mean random data no chain counts for more than 3 eps, as above.

Its gradient of the weight, G^T [sum over tiles of (B^T d B) * (A y A^T)] G, is the same form, in which a cell of y and
the weight have changed places: with y_t the gradient's cells of tile t, and d_t the image's,

    |actual - exact| <= F^2 * (6 * T + 6 + tiles) * eps * sum over tiles of max|d_t| * sum|y_t|

where a term passes, twice, through at most T additions of each transform, and through a rounded coefficient, two
multiplications by one of the last. F(2)'s coefficients are 0, 1 and 1/2: integers
and their quarters, exact. A tile that is computed again by the definition is within its bound, which is smaller.

**Integers** whose sums stay below 2**24 are exact in any order: bitwise equal.
"""

from __future__ import annotations

import numpy as np

import oracle
from fastconv._reference.winograd import _matrices

ZERO_MEAN = 3  # eps of conv(|x|, |w|), on zero-mean random data


def conv_chain(k, stem, kernel, problem):
    """f of a convolution kernel of kernel table ``k``."""
    taps = problem.KH * problem.KW
    if kernel == "conv2d":
        depth = taps * problem.ICG
        if stem == "direct":
            return depth
        block = getattr(k.im2col, "KC", depth) or 1
        return min(depth, block) + -(-depth // block)
    if kernel == "conv2d_grad_input":
        return taps * problem.OCG
    return problem.N * problem.OH * problem.OW


def products(kernel, problem):
    """m: products in one result, at most."""
    taps = problem.KH * problem.KW
    if kernel == "conv2d":
        return taps * problem.ICG
    return taps * problem.OCG if kernel == "conv2d_grad_input" else problem.N * problem.OH * problem.OW


def bound(chain, magnitude, dtype, terms=0, extra=0):
    """The bound above: ``chain`` is f, ``magnitude`` the sum of |terms|, ``terms`` is m, ``extra`` of the epilogue."""
    info = np.finfo(dtype)
    return (chain + extra) * float(info.eps) * np.asarray(magnitude) + terms * float(info.smallest_subnormal)


def winograd_factor(tile, taps=3):
    """F^2 above."""
    a_t, g, b_t = (abs(np.array(matrix, dtype=float)) for matrix in _matrices(tile, taps))
    return float((a_t @ (b_t.sum(1)[:, None] * g)).max()) ** 2


def _largest_of_tiles(problem, tile, x):
    """max|d_c| of every tile, (N, G, ICG, rows, columns)."""
    S, rows, columns = problem.stride_h, -(-problem.OH // tile), -(-problem.OW // tile)
    taps = -(-problem.KH // S)
    image = oracle.padded(
        oracle.wide(abs(x)), (problem.pad_top, problem.pad_bottom, problem.pad_left, problem.pad_right)
    )
    extents = (S * (rows * tile + taps - 1), S * (columns * tile + taps - 1))
    whole = np.zeros((*image.shape[:2], *map(max, extents, image.shape[2:])), image.dtype)
    whole[:, :, : image.shape[2], : image.shape[3]] = image
    window, step = S * (tile + taps - 1), S * tile
    largest = np.lib.stride_tricks.sliding_window_view(whole, (window, window), (2, 3))[:, :, ::step, ::step].max(
        (4, 5)
    )
    return largest[:, :, :rows, :columns].reshape(problem.N, problem.G, problem.ICG, rows, columns)


def winograd_bound(problem, tile, x, w, roundings=None):
    """The bound above for every result; ``roundings`` in place of the longest chain."""
    info, S = np.finfo(x.dtype), problem.stride_h
    taps = -(-problem.KH // S)
    channels = S**2 * problem.ICG
    if roundings is None:
        roundings = 4 * (tile + taps - 1) + 2 * taps + 4 + channels
    largest = _largest_of_tiles(problem, tile, x)
    rows, columns = largest.shape[3:]
    weight = oracle.wide(abs(w)).sum((2, 3)).reshape(problem.G, problem.OCG, problem.ICG)
    eps, tiny = float(info.eps), float(info.smallest_subnormal)
    limit = eps * np.einsum("ngchw,goc->ngohw", largest, weight)
    limit += tiny * (weight.sum(2)[:, :, None, None] + problem.KH**2 * largest.sum(2)[:, :, None] + channels)
    limit = limit.reshape(problem.N, problem.OC, rows, columns) * (winograd_factor(tile, taps) * roundings)
    return limit.repeat(tile, 2).repeat(tile, 3)[:, :, : problem.OH, : problem.OW]


def winograd_grad_weight_bound(problem, tile, x, grad_output, roundings=None):
    """The same for the gradient of the weight."""
    info, T = np.finfo(x.dtype), tile + 2
    rows, columns = -(-problem.OH // tile), -(-problem.OW // tile)
    tiles = problem.N * rows * columns
    if roundings is None:
        roundings = 6 * T + 6 + tiles
    largest = _largest_of_tiles(problem, tile, x)
    whole = np.zeros((problem.N, problem.OC, rows * tile, columns * tile), largest.dtype)
    whole[:, :, : problem.OH, : problem.OW] = abs(grad_output)
    grads = whole.reshape(problem.N, problem.G, problem.OCG, rows, tile, columns, tile).sum((4, 6))
    eps, tiny = float(info.eps), float(info.smallest_subnormal)
    limit = eps * np.einsum("ngchw,ngohw->goc", largest, grads)
    limit += tiny * (grads.sum((0, 3, 4))[:, :, None] + tile**2 * largest.sum((0, 3, 4))[:, None] + tiles)
    return (winograd_factor(tile) * roundings * limit).reshape(problem.OC, problem.ICG, 1, 1)


def assert_within(actual, exact, limit, what=""):
    """Fail, naming the worst cell, unless |actual - exact| <= limit everywhere."""
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, not {exact.shape}"
    if not actual.size:
        return
    error = np.abs(actual.astype(exact.dtype) - exact)
    limit = np.broadcast_to(limit, error.shape)
    bad = ~(error <= limit)
    if bad.any():
        with np.errstate(all="ignore"):
            ratio = np.where(bad, error / limit, -1)
        where = np.unravel_index(np.argmax(np.where(np.isnan(ratio), np.inf, ratio)), error.shape)
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.size} cells off; worst at {tuple(map(int, where))}: {actual[where]!r} "
            f"instead of {exact[where]!r}, error {error[where]:.3g} > bound {limit[where]:.3g}"
        )


def assert_same(actual, exact, what=""):
    """Fail, naming the first cell, unless equal bit for bit (NaN equals NaN, -0.0 equals 0.0)."""
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, not {exact.shape}"
    bad = ~((actual == exact) | ((actual != actual) & (exact != exact)))
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.size} cells differ; first at {where}: {actual[where]!r} instead of "
            f"{exact[where]!r}"
        )
