"""Convolution as a matrix product of packed weights with the columns of the image.

``cols[n, c, kh, kw, oh, ow] = x[n, c, oh*stride_h - pad_top + kh*dil_h, ow*stride_w - pad_left + kw*dil_w]``, x zero
outside the image; ``conv[n] = weight (OC, K) @ cols (K, OH*OW)`` per group, K = ICG*KH*KW. Compiled back ends never
hold all of ``cols``. Extents as in ``direct``; ``packed`` is 1-D of ``packed_weight_size`` elements.
"""

import numpy as np

from fastconv._reference._common import conv_epilogue, epilogue, inside, padded, taps, turned, unpack


def im2col(input, cols, workspace, geometry, n_threads):
    """input (N, IC, IH, IW) -> cols (N, IC, KH, KW, OH, OW)."""
    g = unpack(geometry)
    for kh, kw, image in taps(padded(input, g), g):
        cols[:, :, kh, kw] = image


def col2im(cols, output, workspace, geometry, n_threads):
    """The adjoint of im2col: output (N, IC, IH, IW) sums the columns' cells."""
    g = unpack(geometry)
    output[...] = 0
    image = padded(output, g)
    for kh, kw, cells in taps(image, g):
        cells += cols[:, :, kh, kw]
    inner, outer = inside(output, image, g)
    inner[...] = outer


def interleave(parts, output, workspace, geometry, n_threads):
    """output (N, IC, IH, IW) of ``parts``, one behind the other: each is every stride-th row and column, from 0, 1 ... on."""
    g, first = unpack(geometry), 0
    for row in range(min(g.stride_h, g.IH)):
        for column in range(min(g.stride_w, g.IW)):
            cells = output[:, :, row :: g.stride_h, column :: g.stride_w]
            cells[...] = parts[first : first + cells.size].reshape(cells.shape)
            first += cells.size


def packed_weight_size(geometry):
    """Elements of a packed weight. The reference packs with panels of one filter: the weight as it is."""
    g = unpack(geometry)
    return g.OC * (g.IC // g.G) * g.KH * g.KW


def pack_weight(weight, packed, workspace, geometry, n_threads):
    """weight (OC, ICG, KH, KW) -> packed, in the order in which this back end's conv2d reads it.

    Turned, the weight is (IC, OCG, KH, KW), that of the convolution whose adjoint reads what is packed.
    """
    g = unpack(geometry)
    packed[...] = (turned(weight, g) if g.turned else weight).ravel()


def conv2d(input, packed, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    g = unpack(geometry)
    OCG, K = g.OC // g.G, (g.IC // g.G) * g.KH * g.KW
    cols = np.empty((g.N, g.IC, g.KH, g.KW, g.OH, g.OW), dtype=input.dtype)
    im2col(input, cols, workspace, geometry, n_threads)
    conv = packed.reshape(g.G, OCG, K) @ cols.reshape(g.N, g.G, K, g.OH * g.OW)
    conv_epilogue(conv.reshape(g.N, g.OC, g.OH, g.OW), bias, act_min, act_max, output, pooled, indices, g)


def conv2d_grad_input(grad_output, weight, bias, act_min, act_max, grad_input, workspace, geometry, n_threads):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    g = unpack(geometry)
    OCG, K = g.OC // g.G, (g.IC // g.G) * g.KH * g.KW
    transposed = weight.reshape(g.G, OCG, K).swapaxes(1, 2)
    cols = transposed @ grad_output.reshape(g.N, g.G, OCG, g.OH * g.OW)
    conv = np.empty_like(grad_input)
    col2im(cols.reshape(g.N, g.IC, g.KH, g.KW, g.OH, g.OW), conv, workspace, geometry, n_threads)
    epilogue(conv, bias, act_min, act_max, grad_input, g.accumulate)


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate.

    Turned it is (IC, OCG, KH, KW), of the weight of the convolution whose adjoint this one is.
    """
    g = unpack(geometry)
    OCG, ICG = g.OC // g.G, g.IC // g.G
    K = ICG * g.KH * g.KW
    cols = np.empty((g.N, g.IC, g.KH, g.KW, g.OH, g.OW), dtype=input.dtype)
    im2col(input, cols, workspace, geometry, n_threads)
    columns = cols.reshape(g.N, g.G, K, g.OH * g.OW)
    grads = grad_output.reshape(g.N, g.G, OCG, g.OH * g.OW)
    summed = (grads @ columns.swapaxes(2, 3)).sum(axis=0).reshape(g.G, OCG, ICG, g.KH, g.KW)
    if g.turned:
        summed = summed.swapaxes(1, 2)[..., ::-1, ::-1]
    summed = summed.reshape(grad_weight.shape)
    grad_weight[...] = grad_weight + summed if g.accumulate else summed
