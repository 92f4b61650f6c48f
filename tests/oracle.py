"""What the functions must give, by SciPy and by plain loops, independent of the library's code.

Every function takes arrays of any float type and computes in the wider one: float64 for float32 data, long double for
float64 data, so that its own rounding does not count. ``pads`` is (top, bottom, left, right), signed.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import convolve, correlate


def wide(array):
    """The array in the next wider float type."""
    return np.asarray(array, dtype=np.longdouble if array.dtype == np.float64 else np.float64)


def padded(x, pads, value=0.0):
    """(..., H, W) with four signed pads: positive ones add ``value``, negative ones crop."""
    top, bottom, left, right = pads
    grown = [(0, 0)] * (x.ndim - 2) + [(max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
    x = np.pad(x, grown, constant_values=value)
    H, W = x.shape[-2:]
    return x[..., max(-top, 0) : H - max(-bottom, 0), max(-left, 0) : W - max(-right, 0)]


def stuffed(a, steps):
    """Zeros between the cells of (..., H, W): ``steps`` apart."""
    H, W = a.shape[-2:]
    out = np.zeros((*a.shape[:-2], max((H - 1) * steps[0] + 1, 0), max((W - 1) * steps[1] + 1, 0)), dtype=a.dtype)
    out[..., :: steps[0], :: steps[1]] = a
    return out


def conv2d(x, w, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """Cross-correlation: one scipy.signal.correlate for every (image, filter, channel)."""
    x, w = padded(wide(x), pads), stuffed(wide(w), dilation)
    OC, ICG = w.shape[:2]
    OCG = OC // groups
    OH, OW = ((x.shape[2 + a] - w.shape[2 + a]) // stride[a] + 1 for a in (0, 1))
    out = np.zeros((x.shape[0], OC, OH, OW), dtype=x.dtype)
    for n in range(x.shape[0]):
        for oc in range(OC):
            for c in range(ICG):
                plane = x[n, oc // OCG * ICG + c]
                whole = correlate(plane, w[oc, c], mode="valid", method="direct")
                out[n, oc] += whole[:: stride[0], :: stride[1]]
    return out


def conv2d_grad_input(x_shape, w, grad_output, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """The adjoint in x: full convolutions of the spread-out gradient; the border is cut off."""
    w, spread = stuffed(wide(w), dilation), stuffed(wide(grad_output), stride)
    OC, ICG = w.shape[:2]
    OCG = OC // groups
    top, bottom, left, right = pads
    H, W = x_shape[2] + top + bottom, x_shape[3] + left + right
    whole = np.zeros((x_shape[0], x_shape[1], H, W), dtype=w.dtype)
    for n in range(x_shape[0]):
        for oc in range(OC):
            for c in range(ICG):
                full = convolve(spread[n, oc], w[oc, c], mode="full", method="direct")
                whole[n, oc // OCG * ICG + c, : full.shape[0], : full.shape[1]] += full
    return padded(whole, (-top, -bottom, -left, -right))


def conv2d_grad_weight(x, w_shape, grad_output, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1), groups=1):
    """The adjoint in the weight: correlations of the padded image with the spread-out gradient."""
    x, spread = padded(wide(x), pads), stuffed(wide(grad_output), stride)
    OC, ICG, KH, KW = w_shape
    OCG = OC // groups
    grad = np.zeros(w_shape, dtype=x.dtype)
    for n in range(x.shape[0]):
        for oc in range(OC):
            for c in range(ICG):
                plane = x[n, oc // OCG * ICG + c]
                whole = correlate(plane, spread[n, oc], mode="valid", method="direct")
                grad[oc, c] += whole[:: dilation[0], :: dilation[1]][:KH, :KW]
    return grad


def conv_transpose2d(x, w, stride=(1, 1), pads=(0, 0, 0, 0), output_padding=(0, 0), groups=1, dilation=(1, 1)):
    """torch's definition, cell by cell: every input cell stamps its filter on the output; w (IC, OC/groups, KH, KW)."""
    x, w = wide(x), wide(w)
    N, IC, IH, IW = x.shape
    _, OCG, KH, KW = w.shape
    ICG = IC // groups
    whole_h = (IH - 1) * stride[0] + dilation[0] * (KH - 1) + 1 + output_padding[0]
    whole_w = (IW - 1) * stride[1] + dilation[1] * (KW - 1) + 1 + output_padding[1]
    out = np.zeros((N, OCG * groups, whole_h, whole_w), dtype=x.dtype)
    for n, ic, ih, iw in np.ndindex(N, IC, IH, IW):
        first = ic // ICG * OCG
        for kh, kw in np.ndindex(KH, KW):
            out[n, first : first + OCG, ih * stride[0] + kh * dilation[0], iw * stride[1] + kw * dilation[1]] += (
                x[n, ic, ih, iw] * w[ic, :, kh, kw]
            )
    return padded(out, tuple(-pad for pad in pads))


def windows(x_shape, kernel, stride, pads, dilation, out_shape):
    """For every output cell (oh, ow): the list of the image cells (ih, iw) in its window, in row-major order."""
    IH, IW = x_shape[-2:]
    for oh, ow in np.ndindex(*out_shape):
        cells = []
        for kh, kw in np.ndindex(*kernel):
            ih = oh * stride[0] - pads[0] + kh * dilation[0]
            iw = ow * stride[1] - pads[2] + kw * dilation[1]
            if 0 <= ih < IH and 0 <= iw < IW:
                cells.append((ih, iw))
        yield oh, ow, cells


def pool_extent(extent, kernel, stride, before, after, dilation, ceil_mode):
    """Window positions of torch's pools, by counting them."""
    reach = dilation * (kernel - 1) + 1
    count, start = 0, -before
    while start + reach <= extent + after:
        count, start = count + 1, start + stride
    if ceil_mode and start + reach - stride < extent + after and start < extent:
        count += 1
    return count


def max_pool2d(x, kernel, stride, pads, dilation, out_shape):
    """(values, indices): NaN wins, then the largest, of equals the first; padding never."""
    values = np.full((*x.shape[:2], *out_shape), -np.inf, dtype=x.dtype)
    indices = np.full(values.shape, -1, dtype=np.int64)
    for n, c in np.ndindex(*x.shape[:2]):
        for oh, ow, cells in windows(x.shape, kernel, stride, pads, dilation, out_shape):
            best = None
            for ih, iw in cells:
                value = x[n, c, ih, iw]
                if best is None or value > best[0] or (math.isnan(value) and not math.isnan(best[0])):
                    best = value, ih * x.shape[3] + iw
            if best is not None:
                values[n, c, oh, ow], indices[n, c, oh, ow] = best
    return values, indices


def max_pool2d_backward(grad_output, indices, x_shape):
    """Each gradient added to the cell that won."""
    grad = np.zeros(x_shape, dtype=wide(grad_output).dtype)
    for n, c, oh, ow in np.ndindex(*grad_output.shape):
        ih, iw = divmod(int(indices[n, c, oh, ow]), x_shape[3])
        grad[n, c, ih, iw] += grad_output[n, c, oh, ow]
    return grad


def max_unpool2d(x, indices, out_shape):
    """Zeros but at the indices; the last of duplicates stays."""
    out = np.zeros((*x.shape[:2], *out_shape), dtype=x.dtype)
    for n, c, h, w in np.ndindex(*x.shape):
        ih, iw = divmod(int(indices[n, c, h, w]), out_shape[1])
        out[n, c, ih, iw] = x[n, c, h, w]
    return out


def max_unpool2d_backward(grad_output, indices):
    """Only the value that stayed has a gradient."""
    grad = np.zeros(indices.shape, dtype=grad_output.dtype)
    width = grad_output.shape[3]
    for n, c in np.ndindex(*indices.shape[:2]):
        owner = {int(cell): where for where, cell in np.ndenumerate(indices[n, c])}
        for cell, where in owner.items():
            grad[n, c][where] = grad_output[n, c, cell // width, cell % width]
    return grad


def _divisors(x_shape, kernel, stride, pads, out_shape, count_include_pad, divisor):
    IH, IW = x_shape[-2:]
    for oh, ow in np.ndindex(*out_shape):
        top, left = oh * stride[0] - pads[0], ow * stride[1] - pads[2]
        if divisor:
            yield oh, ow, divisor
        elif count_include_pad:
            cells = [
                (ih, iw)
                for ih in range(top, top + kernel[0])
                for iw in range(left, left + kernel[1])
                if ih < IH + pads[1] and iw < IW + pads[3]
            ]
            yield oh, ow, len(cells)
        else:
            rows = sum(0 <= ih < IH for ih in range(top, top + kernel[0]))
            yield oh, ow, rows * sum(0 <= iw < IW for iw in range(left, left + kernel[1]))


def avg_pool2d(x, kernel, stride, pads, out_shape, count_include_pad=True, divisor=0):
    """The sum of each window over its divisor."""
    x = wide(x)
    out = np.zeros((*x.shape[:2], *out_shape), dtype=x.dtype)
    for oh, ow, cells in windows(x.shape, kernel, stride, pads, (1, 1), out_shape):
        for ih, iw in cells:
            out[:, :, oh, ow] += x[:, :, ih, iw]
    for oh, ow, count in _divisors(x.shape, kernel, stride, pads, out_shape, count_include_pad, divisor):
        out[:, :, oh, ow] /= count
    return out


def avg_pool2d_backward(grad_output, x_shape, kernel, stride, pads, count_include_pad=True, divisor=0):
    """The adjoint of `avg_pool2d`, window by window."""
    grad_output = wide(grad_output)
    out_shape = grad_output.shape[2:]
    grad = np.zeros(x_shape, dtype=grad_output.dtype)
    counts = _divisors(x_shape, kernel, stride, pads, out_shape, count_include_pad, divisor)
    places = windows(x_shape, kernel, stride, pads, (1, 1), out_shape)
    for (oh, ow, cells), (_, _, count) in zip(places, counts, strict=True):
        for ih, iw in cells:
            grad[:, :, ih, iw] += grad_output[:, :, oh, ow] / count
    return grad


def unfold(x, kernel, stride, pads, dilation, out_shape):
    """(N, C, KH, KW, OH, OW): the columns, cell by cell."""
    x = padded(x, pads)
    cols = np.zeros((*x.shape[:2], *kernel, *out_shape), dtype=x.dtype)
    for kh, kw, oh, ow in np.ndindex(*kernel, *out_shape):
        cols[:, :, kh, kw, oh, ow] = x[:, :, oh * stride[0] + kh * dilation[0], ow * stride[1] + kw * dilation[1]]
    return cols


def fold(cols, x_shape, stride, pads, dilation):
    """The adjoint of `unfold`."""
    cols = wide(cols)
    grad = np.zeros(x_shape, dtype=cols.dtype)
    for kh, kw, oh, ow in np.ndindex(*cols.shape[2:]):
        ih = oh * stride[0] - pads[0] + kh * dilation[0]
        iw = ow * stride[1] - pads[2] + kw * dilation[1]
        if 0 <= ih < x_shape[2] and 0 <= iw < x_shape[3]:
            grad[:, :, ih, iw] += cols[:, :, kh, kw, oh, ow]
    return grad


NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def pad(x, pads, mode):
    """numpy.pad, with crops."""
    top, bottom, left, right = pads
    if mode == "zeros":
        return padded(x, pads)
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)], mode=NUMPY_MODES[mode])


def pad_adjoint(grad, x_shape, pads, mode):
    """Each border cell's gradient goes back to the cell it copied: found by padding an image of cell numbers."""
    cells = np.arange(1, x_shape[2] * x_shape[3] + 1, dtype=np.int64).reshape(x_shape[2:])
    source = pad(cells, pads, mode)
    out = np.zeros((*x_shape[:2], x_shape[2] * x_shape[3] + 1), dtype=wide(grad).dtype)
    for h, w in np.ndindex(*source.shape):
        out[:, :, source[h, w]] += grad[:, :, h, w]
    return out[:, :, 1:].reshape(x_shape)
