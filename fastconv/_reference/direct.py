"""Convolution by its definition.

``conv[n, oc, oh, ow] = sum over ic, kh, kw of x[n, g*ICG + ic, oh*stride_h - pad_top + kh*dil_h, ...] *
weight[oc, ic, kh, kw]`` with g the group of filter oc and x zero outside the image. Extents: input (N, IC, IH, IW),
weight (OC, ICG, KH, KW), bias (OC,) or (0,), output (N, OC, OH, OW); with a fused max-pool output has
length 0, pooled and indices (N, OC, pool_OH, pool_OW).
"""

import numpy as np

from fastconv._reference._common import conv_epilogue, epilogue, inside, padded, taps, unpack


def _grouped(array, G):
    """Split the channel axis: (N, C, ...) -> (N, G, C/G, ...)."""
    return array.reshape(array.shape[0], G, array.shape[1] // G, *array.shape[2:])


def conv2d(input, weight, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    g = unpack(geometry)
    filters = weight.reshape(g.G, g.OC // g.G, g.IC // g.G, g.KH, g.KW)
    conv = np.zeros((g.N, g.G, g.OC // g.G, g.OH, g.OW), dtype=input.dtype)
    for kh, kw, image in taps(padded(input, g), g):
        conv += np.einsum("goi,ngihw->ngohw", filters[..., kh, kw], _grouped(image, g.G))
    conv_epilogue(conv.reshape(g.N, g.OC, g.OH, g.OW), bias, act_min, act_max, output, pooled, indices, g)


def conv2d_grad_input(grad_output, weight, bias, act_min, act_max, grad_input, workspace, geometry, n_threads):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    g = unpack(geometry)
    filters = weight.reshape(g.G, g.OC // g.G, g.IC // g.G, g.KH, g.KW)
    conv = np.zeros_like(grad_input)
    image = padded(conv, g)
    for kh, kw, cells in taps(image, g):
        cells += np.einsum("goi,ngohw->ngihw", filters[..., kh, kw], _grouped(grad_output, g.G)).reshape(cells.shape)
    inner, outer = inside(conv, image, g)
    inner[...] = outer
    epilogue(conv, bias, act_min, act_max, grad_input, g.accumulate)


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate."""
    g = unpack(geometry)
    if not g.accumulate:
        grad_weight[...] = 0
    filters = grad_weight.reshape(g.G, g.OC // g.G, g.IC // g.G, g.KH, g.KW)
    for kh, kw, image in taps(padded(input, g), g):
        filters[..., kh, kw] += np.einsum("ngohw,ngihw->goi", _grouped(grad_output, g.G), _grouped(image, g.G))
