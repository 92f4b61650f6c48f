"""Convolution by Winograd's minimal filtering: 3 x 3 and 5 x 5 kernels with stride 1, K x K with stride S, K <= 3 S.

Source: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv 1509.09308; matrices by Toom and Cook.

An output tile of m x m cells of a kernel of r x r needs T x T cells of the image, T = m + r - 1. With d the image's
cells and w a kernel::

    tile = A^T [ sum over c of (G w_c G^T) * (B^T d_c B) ] A          (* cell by cell)

For points p_0 ... p_(T-2), and infinity, in the order of ``WINOGRAD_POINTS[T - 2]``: 0, then each with both signs::

    A^T (m x T)   A^T[i, j] = p_j ** i; the column of infinity is 1 in the last row
    G   (T x r)   G[j, k] = p_j ** k / prod over l != j of (p_j - p_l); the row of infinity is (0, ..., 0, 1)
    B^T (T x T)   row j holds the coefficients of prod over l != j of (x - p_l), that of infinity of prod over all l

With stride S the image is S * S images of every S-th row and column, each with the kernel of every S-th row and column,
filled up with zeros to r = ceil(K / S): a convolution with stride 1 of S * S times the channels.

The gradient of the weight (3 x 3) is the adjoint of that, in w: with y the gradient's m x m cells of a tile ::

    grad_w_c = G^T [ sum over tiles of (B^T d_c B) * (A y A^T) ] G

A tile that comes out with a value that is not finite is computed again as a sum of products, so that NaN and Inf stand
where the definition puts them. Extents as in ``direct``; ``packed`` is 1-D of ``packed_weight_size`` elements.
"""

from fractions import Fraction

import numpy as np

from fastconv._problem import WINOGRAD_POINTS
from fastconv._reference._common import conv_epilogue, padded, taps, turned, unpack


def _matrices(tile, taps=3):
    """A^T, G and B^T of F(tile, taps) as lists of rows of Fractions."""
    points = [Fraction(0)]
    for point in map(Fraction, WINOGRAD_POINTS[tile + taps - 3]):
        points += [point, -point]
    others = [[p for i, p in enumerate(points) if i != j] for j in range(len(points))]

    def monic(roots):  # coefficients of prod (x - root), lowest power first
        coefficients = [Fraction(1)]
        for root in roots:
            shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
            coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
        return coefficients

    a_t = [[*(p**i for p in points), Fraction(i == tile - 1)] for i in range(tile)]
    g = []
    for p, rest in zip(points, others, strict=True):
        scale = Fraction(1)
        for other in rest:
            scale *= p - other
        g.append([p**k / scale for k in range(taps)])
    g.append([Fraction(k == taps - 1) for k in range(taps)])
    b_t = [[*monic(rest), Fraction(0)] for rest in others] + [monic(points)]
    return a_t, g, b_t


def _taps(g):
    """r: rows of a kernel that one of its phases meets at most."""
    return -(-g.KH // g.stride_h)


def _arrays(g, dtype):
    matrices = _matrices(g.tile, _taps(g))
    return tuple(np.array([[float(cell) for cell in row] for row in matrix], dtype) for matrix in matrices)


def _phases(array, S):
    """(N, C, H, W) -> (N, S * S * C, H / S, W / S): its S * S parts of every S-th row and column, phase by phase."""
    N, C, H, W = array.shape
    whole = np.zeros((N, C, -(-H // S) * S, -(-W // S) * S), array.dtype)
    whole[:, :, :H, :W] = array
    parts = whole.reshape(N, C, whole.shape[2] // S, S, whole.shape[3] // S, S)
    return np.moveaxis(parts, (3, 5), (1, 2)).reshape(N, S * S * C, parts.shape[2], parts.shape[4])


def _windows(image, g):
    """The T x T cells under every tile of a padded image, (N, G, S * S * ICG, rows, columns, T, T)."""
    m, S, r = g.tile, g.stride_h, _taps(g)
    rows, columns = -(-g.OH // m), -(-g.OW // m)
    whole = np.zeros((g.N, g.IC, S * (rows * m + r - 1), S * (columns * m + r - 1)), image.dtype)
    whole[:, :, : image.shape[2], : image.shape[3]] = image
    phases = _phases(whole.reshape(g.N * g.G, g.IC // g.G, *whole.shape[2:]), S)
    phases = phases.reshape(g.N, g.G, *phases.shape[1:])
    return np.lib.stride_tricks.sliding_window_view(phases, (m + r - 1, m + r - 1), (3, 4))[:, :, :, ::m, ::m]


def packed_weight_size(geometry):
    """Elements of a packed weight: the transformed one, (T, T, OC, S * S * ICG), and the weight itself."""
    g = unpack(geometry)
    T = g.tile + _taps(g) - 1
    return (T * T * g.stride_h**2 + g.KH**2) * g.OC * (g.IC // g.G)


def pack_weight(weight, packed, workspace, geometry, n_threads):
    """weight (OC, ICG, K, K) -> packed, in the order in which this back end's conv2d reads it.

    Turned, the weight is (IC, OCG, K, K), that of the convolution whose adjoint reads what is packed.
    """
    g = unpack(geometry)
    if g.turned:
        weight = turned(weight, g)
    _, G, _ = _arrays(g, weight.dtype)
    split = packed.size - weight.size
    packed[:split] = np.moveaxis(G @ _phases(weight, g.stride_h) @ G.T, (2, 3), (0, 1)).ravel()
    packed[split:] = weight.ravel()


def conv2d(input, packed, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    g = unpack(geometry)
    m, T, ICG, OCG, n_taps = g.tile, g.tile + _taps(g) - 1, g.IC // g.G, g.OC // g.G, g.KH * g.KW
    A_T, _, B_T = _arrays(g, input.dtype)
    split = packed.size - g.OC * ICG * n_taps
    transformed = packed[:split].reshape(T, T, g.G, OCG, g.stride_h**2 * ICG)
    weight = packed[split:].reshape(g.G, OCG, ICG * n_taps)
    rows, columns = -(-g.OH // m), -(-g.OW // m)
    image = padded(input, g)
    windows = _windows(image, g)
    with np.errstate(invalid="ignore", over="ignore"):
        cells = np.moveaxis(B_T @ windows @ B_T.T, (5, 6), (0, 1))  # (T, T, N, G, S * S * ICG, rows, columns)
        cells = cells.reshape(*cells.shape[:5], rows * columns)
        products = transformed[:, :, None] @ cells  # (T, T, N, G, OCG, rows * columns)
        products = np.moveaxis(products.reshape(T, T, g.N, g.OC, rows, columns), (0, 1), (4, 5))
        tiles = A_T @ products @ A_T.T  # (N, OC, rows, columns, m, m)
        wrong = ~np.isfinite(tiles).all((4, 5), keepdims=True)
        if wrong.any():
            direct = np.zeros((g.N, g.OC, rows * m, columns * m), input.dtype)
            cols = np.stack([cell for _, _, cell in taps(image, g)], 2).reshape(g.N, g.G, ICG * n_taps, g.OH * g.OW)
            direct[:, :, : g.OH, : g.OW] = (weight @ cols).reshape(g.N, g.OC, g.OH, g.OW)
            tiles = np.where(wrong, direct.reshape(g.N, g.OC, rows, m, columns, m).swapaxes(3, 4), tiles)
    conv = tiles.swapaxes(3, 4).reshape(g.N, g.OC, rows * m, columns * m)[:, :, : g.OH, : g.OW]
    conv_epilogue(conv, bias, act_min, act_max, output, pooled, indices, g)


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, 3, 3), added to what is there with accumulate."""
    g = unpack(geometry)
    m, T, ICG, OCG = g.tile, g.tile + 2, g.IC // g.G, g.OC // g.G
    A_T, G, B_T = _arrays(g, input.dtype)
    rows, columns = -(-g.OH // m), -(-g.OW // m)
    whole = np.zeros((g.N, g.OC, rows * m, columns * m), input.dtype)  # to whole tiles
    whole[:, :, : g.OH, : g.OW] = grad_output
    tiles = whole.reshape(g.N, g.OC, rows, m, columns, m).swapaxes(3, 4)
    with np.errstate(invalid="ignore", over="ignore"):
        cells = np.moveaxis(B_T @ _windows(padded(input, g), g) @ B_T.T, (5, 6), (0, 1))
        grads = np.moveaxis(A_T.T @ tiles @ A_T, (4, 5), (0, 1))  # (T, T, N, OC, rows, columns)
        cells = cells.reshape(T, T, g.N, g.G, ICG, rows * columns)
        grads = grads.reshape(T, T, g.N, g.G, OCG, rows * columns)
        products = (grads @ cells.swapaxes(4, 5)).sum(2).reshape(T, T, g.OC, ICG)
        summed = G.T @ np.moveaxis(products, (0, 1), (2, 3)) @ G
        grad_weight[...] = grad_weight + summed if g.accumulate else summed
