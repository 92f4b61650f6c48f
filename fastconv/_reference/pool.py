"""Max and average pooling, unpooling, and their gradients.

Windows lie as in a convolution. Extents: input (N, IC, IH, IW), output (N, IC, OH, OW); indices (N, IC, OH, OW) int64,
flat in the IH*IW plane, length 0 where none are wanted. For max_unpool2d the geometry is that of the pooling it undoes.
``outside`` (1,) int64 becomes 1, and the output any values, if an index lies outside of its plane, else 0.
"""

import numpy as np

from fastconv._reference._common import inside, max_pool, padded, taps, unpack


def max_pool2d(input, output, indices, workspace, geometry, n_threads):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    max_pool(input, output, indices, unpack(geometry))


def _any_outside(indices, g):
    return np.any((indices < 0) | (indices >= g.IH * g.IW))


def max_pool2d_backward(grad_output, indices, grad_input, outside, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient goes to the cell that won; gradients of one cell add up."""
    g = unpack(geometry)
    grad_input[...] = 0
    outside[0] = _any_outside(indices, g)
    if outside[0]:
        return
    planes = grad_input.reshape(-1, g.IH * g.IW)
    for plane, cells, grads in zip(
        planes,
        indices.reshape(-1, g.OH * g.OW),
        grad_output.reshape(-1, g.OH * g.OW),
        strict=True,
    ):
        np.add.at(plane, cells, grads)


def max_unpool2d(input, indices, output, outside, workspace, geometry, n_threads):
    """input (N, IC, OH, OW) -> output (N, IC, IH, IW): zero but at ``indices``; of duplicates the last wins."""
    g = unpack(geometry)
    output[...] = 0
    outside[0] = _any_outside(indices, g)
    if outside[0]:
        return
    planes = output.reshape(-1, g.IH * g.IW)
    sources = zip(planes, indices.reshape(-1, g.OH * g.OW), input.reshape(-1, g.OH * g.OW), strict=True)
    for plane, cells, values in sources:
        for cell, value in zip(cells, values, strict=True):
            plane[cell] = value


def max_unpool2d_backward(grad_output, indices, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, IH, IW) -> grad_input (N, IC, OH, OW): zero for a value that a later duplicate replaced."""
    g = unpack(geometry)
    grad_input[...] = 0
    sources = zip(
        grad_input.reshape(-1, g.OH * g.OW),
        indices.reshape(-1, g.OH * g.OW),
        grad_output.reshape(-1, g.IH * g.IW),
        strict=True,
    )
    for grads, cells, plane in sources:
        _, last = np.unique(cells[::-1], return_index=True)
        kept = cells.size - 1 - last
        grads[kept] = plane[cells[kept]]


def _divisors(g):
    """(OH, OW): what each window's sum is divided by."""
    if g.divisor:
        return np.full((g.OH, g.OW), g.divisor)

    def cells(size, kernel, stride, pad, extent, limit):
        start = np.arange(size) * stride - pad
        stop = np.minimum(start + kernel, limit)
        return stop - start if g.count_include_pad else np.minimum(stop, extent) - np.maximum(start, 0)

    rows = cells(g.OH, g.KH, g.stride_h, g.pad_top, g.IH, g.IH + g.pad_bottom)
    columns = cells(g.OW, g.KW, g.stride_w, g.pad_left, g.IW, g.IW + g.pad_right)
    return rows[:, None] * columns


def avg_pool2d(input, output, workspace, geometry, n_threads):
    """Sum over each window divided by divisor, else by its cells: those of the padded image, or of the image alone."""
    g = unpack(geometry)
    total = np.zeros(output.shape, dtype=input.dtype)
    for _, _, values in taps(padded(input, g), g):
        total += values
    output[...] = total / _divisors(g).astype(input.dtype)


def avg_pool2d_backward(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_input (N, IC, IH, IW): each gradient, divided as its window was, goes to all cells of the window."""
    g = unpack(geometry)
    share = grad_output / _divisors(g).astype(grad_output.dtype)
    grad_input[...] = 0
    image = padded(grad_input, g)
    for _, _, cells in taps(image, g):
        cells += share
    inner, outer = inside(grad_input, image, g)
    inner[...] = outer
