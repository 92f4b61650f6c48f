"""Copy an image with a border, and the adjoint of that copy.

``output[n, c, oh, ow] = input[n, c, source(oh - pad_top), source(ow - pad_left)]`` where ``source`` maps a position
outside 0 <= i < extent by ``pad_mode``: zeros (the value 0), reflect (mirrored without the edge cell), replicate (the
edge cell), circular (i modulo extent). Pads are signed: a negative one crops. Extents: output (N, IC, OH, OW).
"""

import numpy as np

from fastconv._problem import PAD_CIRCULAR, PAD_REFLECT, PAD_REPLICATE
from fastconv._reference._common import unpack


def _source(extent, pad, size, mode):
    """For each of ``size`` output positions: its input position, -1 where the border is zero."""
    position = np.arange(size) - pad
    if mode == PAD_REFLECT:
        position = np.abs(position)
        return np.where(position >= extent, 2 * (extent - 1) - position, position)
    if mode == PAD_REPLICATE:
        return np.clip(position, 0, extent - 1)
    if mode == PAD_CIRCULAR:
        return position % extent
    return np.where((position < 0) | (position >= extent), -1, position)


def _sources(g):
    return _source(g.IH, g.pad_top, g.OH, g.pad_mode), _source(g.IW, g.pad_left, g.OW, g.pad_mode)


def pad2d(input, output, workspace, geometry, n_threads):
    """input (N, IC, IH, IW) -> output (N, IC, OH, OW)."""
    rows, columns = _sources(unpack(geometry))
    inner = (rows >= 0)[:, None] & (columns >= 0)
    output[...] = 0
    if inner.any():
        output[...] = np.where(inner, input[:, :, rows[:, None], columns], 0)


def pad2d_adjoint(grad_output, grad_input, workspace, geometry, n_threads):
    """grad_output (N, IC, OH, OW) -> grad_input (N, IC, IH, IW): each cell sums the cells that copied it."""
    rows, columns = _sources(unpack(geometry))
    grad_input[...] = 0
    for oh, ih in enumerate(rows):
        for ow, iw in enumerate(columns):
            if ih >= 0 and iw >= 0:
                grad_input[:, :, ih, iw] += grad_output[:, :, oh, ow]
