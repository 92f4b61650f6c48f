"""What the reference kernels share: the geometry by name, windows of an image, the epilogue."""

from __future__ import annotations

import numpy as np

from fastconv._problem import Geometry


def unpack(geometry):
    """The geometry vector as a named tuple of ints."""
    return Geometry(*geometry.tolist())


def padded(input, g, value=0.0):
    """``input`` with its signed top and left pads (negative ones crop), as large as the windows reach.

    Bottom and right pads decide OH and OW; with those given, no kernel needs them.
    """
    need_h = (g.OH - 1) * g.stride_h + (g.KH - 1) * g.dil_h + 1
    need_w = (g.OW - 1) * g.stride_w + (g.KW - 1) * g.dil_w + 1
    output = np.full((*input.shape[:2], max(need_h, 0), max(need_w, 0)), value, dtype=input.dtype)
    inner, outer = inside(input, output, g)
    outer[...] = inner
    return output


def inside(input, output, g):
    """The parts of ``input`` and of its ``padded`` form that are the same cells, as views."""
    top, left = max(g.pad_top, 0), max(g.pad_left, 0)
    skip_h, skip_w = max(-g.pad_top, 0), max(-g.pad_left, 0)
    rows = max(min(g.IH - skip_h, output.shape[2] - top), 0)
    columns = max(min(g.IW - skip_w, output.shape[3] - left), 0)
    return (
        input[:, :, skip_h : skip_h + rows, skip_w : skip_w + columns],
        output[:, :, top : top + rows, left : left + columns],
    )


def taps(image, g):
    """For each kernel cell (kh, kw): the (N, C, OH, OW) view of a padded image that it meets."""
    for kh in range(g.KH):
        for kw in range(g.KW):
            top, left = kh * g.dil_h, kw * g.dil_w
            bottom = top + (g.OH - 1) * g.stride_h + 1
            right = left + (g.OW - 1) * g.stride_w + 1
            yield kh, kw, image[:, :, top : max(bottom, 0) : g.stride_h, left : max(right, 0) : g.stride_w]


def turned(weight, g):
    """A weight (IC, OCG, KH, KW) as that of the adjoint convolution (OC, ICG, KH, KW): taps in reverse."""
    by_group = weight.reshape(g.G, g.IC // g.G, g.OC // g.G, g.KH, g.KW)
    return by_group.swapaxes(1, 2)[..., ::-1, ::-1].reshape(g.OC, g.IC // g.G, g.KH, g.KW)


def epilogue(conv, bias, act_min, act_max, output, accumulate):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max); NaN stays NaN."""
    if accumulate:
        conv = conv + output
    if bias.size:
        conv = conv + bias[:, None, None]
    output[...] = np.clip(conv, conv.dtype.type(act_min), conv.dtype.type(act_max))


def pooled_geometry(g):
    """Geometry of the max-pool fused behind a convolution, by name."""
    return g._replace(
        IC=g.OC, IH=g.OH, IW=g.OW, KH=g.pool_KH, KW=g.pool_KW, OH=g.pool_OH, OW=g.pool_OW, G=g.OC,
        stride_h=g.pool_stride_h, stride_w=g.pool_stride_w, dil_h=1, dil_w=1,
        pad_top=g.pool_pad_top, pad_left=g.pool_pad_left, pad_bottom=0, pad_right=0, accumulate=0,
    )  # fmt: skip


def conv_epilogue(conv, bias, act_min, act_max, output, pooled, indices, g):
    """The epilogue of a forward convolution: into ``output``, or through the fused max-pool into ``pooled``."""
    if g.pool_KH == 0:
        epilogue(conv, bias, act_min, act_max, output, g.accumulate)
        return
    full = np.empty_like(conv)
    epilogue(conv, bias, act_min, act_max, full, False)
    max_pool(full, pooled, indices, pooled_geometry(g))


def max_pool(input, output, indices, g):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    image = padded(input, g, -np.inf)
    rows = np.arange(g.OH)[:, None] * g.stride_h - g.pad_top
    columns = np.arange(g.OW)[None, :] * g.stride_w - g.pad_left
    # The first cell of each window that lies inside the image: the index of an all -inf window
    first_h = np.where(rows < 0, rows + -(rows // g.dil_h) * g.dil_h, rows)
    first_w = np.where(columns < 0, columns + -(columns // g.dil_w) * g.dil_w, columns)
    best = np.full(output.shape, -np.inf, dtype=input.dtype)
    where = np.broadcast_to(first_h * g.IW + first_w, output.shape).astype(np.int64)
    for kh, kw, values in taps(image, g):
        row, column = rows + kh * g.dil_h, columns + kw * g.dil_w
        inside_image = (row >= 0) & (row < g.IH) & (column >= 0) & (column < g.IW)
        wins = ((values > best) | (np.isnan(values) & ~np.isnan(best))) & inside_image
        best = np.where(wins, values, best)
        where = np.where(wins, row * g.IW + column, where)
    output[...] = best
    if indices.size:
        indices[...] = where
