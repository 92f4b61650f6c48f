"""`field` and `top_patches`: the part of an image that an activation depends on, and what excites a filter most."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv._problem import checked_shape, choice
from fastconv.layers import Conv2d, Layer
from fastconv.layers._summary import Signal, _Trace
from fastconv.see._probe import evaluated, images_of, index_of, layer_of, network, output_of, prefix, several
from fastconv.see.deconvnet import RULES, project, strongest

TOGETHER = 224 * 224  # pixels that are projected at once
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two are exclusive


@dataclass(frozen=True)
class Field:
    """Where the activations of a layer look: the receptive field of position (0, 0), and how it moves.

    Attributes
    ----------
    top, left, bottom, right : float
        The cells of the input that position (0, 0) depends on; bottom and right are exclusive. Negative: padding.
    jump : (float, float)
        How far the field moves with each row and column of the layer's map.
    extents : (int, int)
        Height and width of the input.
    wraps : bool
        The network pads with the image's own pixels, so a field that leaves the image sees others of its rows.
    crops : bool
        Whether an activation can be computed from its field alone (see `top_patches`).
    """

    top: float
    left: float
    bottom: float
    right: float
    jump: tuple[float, float]
    extents: tuple[int, int]
    wraps: bool = False
    crops: bool = True

    def whole(self, position: Sequence[int]) -> Box:
        """The field of a position, with what lies outside the image."""
        row, column = position if len(position) == 2 else (0, 0)
        return (
            math.ceil(self.top + self.jump[0] * row), math.ceil(self.left + self.jump[1] * column),
            math.floor(self.bottom + self.jump[0] * row), math.floor(self.right + self.jump[1] * column),
        )  # fmt: skip

    def box(self, position: Sequence[int]) -> Box:
        """The part of the image that the activation at ``position`` depends on: (top, left, bottom, right)."""
        top, left, bottom, right = self.whole(position)
        H, W = self.extents
        if self.wraps and (top < 0 or bottom > H):
            top, bottom = 0, H
        if self.wraps and (left < 0 or right > W):
            left, right = 0, W
        top, left = min(max(top, 0), H), min(max(left, 0), W)
        return top, left, max(min(bottom, H), top), max(min(right, W), left)


class _Noting(_Trace):
    target: Layer
    found: Signal | None = None


@dataclass(frozen=True)
class _Probe(Signal):
    """A signal that notes what comes out of one layer, be it a leaf or not."""

    def enter(self, layer: Any, signals: tuple[Any, ...], options: dict[str, Any]) -> Any:
        output = super().enter(layer, signals, options)
        trace = self.trace
        if isinstance(trace, _Noting) and layer is trace.target and trace.found is None:
            trace.found = output[0] if isinstance(output, tuple) else output
        return output


def field(net: Any, layer: Any, input_shape: Any) -> Field:
    """The receptive field of a layer, for an input of a given shape.

    Parameters
    ----------
    net : Layer
    layer : str or Layer
        Any layer inside, a container too.
    input_shape : (int, int, int) or (int, int, int, int)
        (C, H, W) or (N, C, H, W).

    Returns
    -------
    Field
        ``.box(position)`` is the part of the image for a position of the layer's map.

    Raises
    ------
    TypeError, ValueError
        If the network has no such layer, or does not take that shape.

    Notes
    -----
    From layer to layer a field grows by (kernel - 1) * dilation * jump, and jump by the factor stride; where branches
    meet, the fields are united. See `fastconv.summary`.

    Examples
    --------
    >>> import fastconv
    >>> from fastconv.see import field
    >>> net = fastconv.Sequential(
    ...     fastconv.Conv2d(3, 8, 3, padding=1), fastconv.ReLU(), fastconv.MaxPool2d(2), fastconv.Conv2d(8, 8, 3))
    >>> found = field(net, "3", (3, 32, 32))
    >>> found.box((5, 5)), found.box((0, 0))
    ((9, 9, 17, 17), (0, 0, 7, 7))
    """
    function = "field"
    network(function, net)
    _, target = layer_of(function, net, layer)
    shape = checked_shape(function, "input", input_shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"{function}: input_shape {shape}: it must be (C, H, W) or (N, C, H, W)")
    return find_field(net, target, shape)


def find_field(net: Layer, target: Layer, input_shape: tuple[int, ...]) -> Field:
    shape = input_shape if len(input_shape) == 4 else (1, *input_shape)
    part = prefix(net, target)
    trace = _Noting(part)
    trace.target = target
    part(_Probe(shape, (shape[-2], shape[-1]), trace))
    signal = trace.found
    assert signal is not None
    convs = [inner for _, inner in part.named_layers() if isinstance(inner, Conv2d)]
    # With a stride, "same" pads by the size of the image: a part of it would be padded otherwise
    sized = any(isinstance(conv.padding, str) and max(conv.stride) > 1 for conv in convs)
    wraps = any(conv.padding_mode != "zeros" for conv in convs)
    return Field(
        float(signal.first[0]), float(signal.first[1]), float(signal.last[0]) + 1, float(signal.last[1]) + 1,
        (float(signal.jump[0]), float(signal.jump[1])), (shape[-2], shape[-1]), wraps,
        not sized and not wraps and all(step.denominator == 1 for step in signal.jump),
    )  # fmt: skip


@dataclass(frozen=True)
class Patch:
    """What excited a filter, and its projection.

    Attributes
    ----------
    image : int
        Number of the image in the order in which they came.
    position : tuple of int
        Row and column in the layer's map; () for a dense layer.
    value : float
        The activation.
    box : (int, int, int, int)
        The receptive field within the image: top, left, bottom, right (the last two exclusive).
    field : (int, int, int, int)
        The same with what lies outside the image.
    patch : (C, h, w) array
        That part of the image.
    projection : (C, h, w) array
        The activation projected to it.
    """

    image: int
    position: tuple[int, ...]
    value: float
    box: Box
    field: Box
    patch: np.ndarray
    projection: np.ndarray

    def framed(self, array: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """``patch``, ``projection`` or a picture (..., h, w) of them at the size of the field, ``fill`` outside."""
        top, left, bottom, right = self.field
        rows, columns = self.box[0] - top, self.box[1] - left
        height, width = array.shape[-2:]
        size = max(bottom - top, rows + height), max(right - left, columns + width)
        result = np.full((*array.shape[:-2], *size), fill, array.dtype)
        result[..., rows : rows + height, columns : columns + width] = array
        return result


@dataclass(order=True)
class _Candidate:
    """An activation that is among the k strongest so far, with what its projection needs."""

    value: float
    rank: int  # minus the image's number: of equal activations the first stays
    position: tuple[int, ...]
    place: Field
    corner: tuple[int, int]
    part: np.ndarray

    @property
    def inner(self) -> tuple[int, ...]:
        """The position in the map of the part."""
        if len(self.position) != 2:
            return self.position
        rows, columns = (int(start // step) for start, step in zip(self.corner, self.place.jump, strict=True))
        return self.position[0] - rows, self.position[1] - columns

    def patch(self, pixels: np.ndarray) -> Patch:
        """The patch, with a projection to the part."""
        box, (top, left) = self.place.box(self.position), self.corner
        here = (slice(None), slice(box[0] - top, box[2] - top), slice(box[1] - left, box[3] - left))
        whole = self.place.whole(self.position)
        return Patch(-self.rank, self.position, self.value, box, whole, self.part[here].copy(), pixels[here].copy())


def top_patches(
    net: Any,
    images: Iterable[Any],
    layer: Any,
    filters: Iterable[int] | None = None,
    k: int = 9,
    *,
    mode: str = "deconvnet",
    progress: bool = True,
) -> dict[int, list[Patch]]:
    """The image patches that excite filters most, each with its projection: Fig. 2 of Zeiler and Fergus.

    Parameters
    ----------
    net : Layer
    images : iterable of (C, H, W) arrays
        Gone through once; sizes may differ. A batch (N, C, H, W) is such an iterable, a generator another.
    layer : str or Layer
    filters : iterable of int, optional
        All filters of the layer if not given.
    k : int
        How many patches for each filter, of as many images.
    mode : {"deconvnet", "guided", "saliency"}
        Of the projections, as in `deconvnet`.
    progress : bool
        Show a bar on stderr (tqdm, where it is installed).

    Returns
    -------
    dict of int to list of Patch
        For every filter its patches, the strongest first; fewer than `k` if there are fewer images.

    Raises
    ------
    TypeError, ValueError
        For a network, layer, filter, `k` or image that cannot be used; the message names the image by its number.

    Notes
    -----
    Of each image only the strongest activation of a filter counts. Memory is bounded by `k`: for every filter `k` parts
    of images are kept, each as large as a receptive field, and they alone are projected at the end. An activation
    depends on its field only, so its projection from that part is the one from the whole image; where that does not
    hold (padding by other pixels, "same" with a stride, fractional strides) the whole image is kept.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import top_patches
    >>> net = fastconv.Sequential(fastconv.Conv2d(1, 4, 3, rng=0), fastconv.ReLU())
    >>> images = np.random.default_rng(0).random((20, 1, 12, 12), np.float32)
    >>> best = top_patches(net, images, "0", [2], k=3, progress=False)
    >>> [patch.patch.shape for patch in best[2]]
    [(1, 3, 3), (1, 3, 3), (1, 3, 3)]
    >>> best[2][0].value >= best[2][1].value
    True
    """
    function = "top_patches"
    network(function, net)
    choice(function, "mode", mode, tuple(RULES))
    _, target = layer_of(function, net, layer)
    checked_k(function, k)
    wanted = None if filters is None else list(several(function, "filters", filters, "a sequence of integers"))
    with evaluated(net):
        best = collect(function, net, images, {target: wanted}, k, progress)[target]
        found = finish(function, net, target, best, mode, progress)
    return found


def checked_k(function: str, k: Any) -> None:
    if isinstance(k, bool) or not hasattr(k, "__index__") or k < 1:
        raise ValueError(f"{function}: k {k!r}: it must be an integer of at least 1")


def collect(
    function: str,
    net: Layer,
    images: Iterable[Any],
    wanted: Mapping[Layer, list[int] | None],
    k: int,
    progress: bool,
) -> dict[Layer, dict[int, list[_Candidate]]]:
    """The k strongest of every filter of several layers, in one pass over the images."""
    heaps: dict[Layer, dict[int, list[_Candidate]]] = {target: {} for target in wanted}
    fields: dict[tuple[int, tuple[int, ...]], Field] = {}
    number = -1
    several(function, "images", images, "an iterable of (C, H, W) arrays")
    for number, image in enumerate(progress_bar(images, progress, "images")):
        try:
            x, _ = images_of(function, "an image", image)
            if len(x) != 1:
                raise ValueError(f"{function}: an image has shape {x.shape}: it must be (C, H, W)")
            outputs = output_of(net, x, *wanted)
        except (TypeError, ValueError) as error:
            error.add_note(f"in image {number}")
            raise
        for (target, filters), output in zip(wanted.items(), outputs, strict=True):
            if not heaps[target]:
                every = range(output.shape[1]) if filters is None else filters
                heaps[target] = {index_of(function, "filter", f, output.shape[1], "the layer"): [] for f in every}
            key = (id(target), x.shape)
            if key not in fields:
                fields[key] = find_field(net, target, x.shape)
            _offer(heaps[target], output[0], x[0], fields[key], -number, k)
    if number < 0:
        raise ValueError(f"{function}: images is empty: at least one image is needed")
    return {target: {f: sorted(heap, reverse=True) for f, heap in filters.items()} for target, filters in heaps.items()}


def _offer(heaps: dict[int, list[_Candidate]], maps: np.ndarray, image: np.ndarray, field: Field, rank: int, k: int) -> None:  # fmt: skip  # noqa: E501
    for f, heap in heaps.items():
        position = strongest(maps[f])
        value = float(maps[f][position])
        if not math.isfinite(value) or (len(heap) == k and value <= heap[0].value):
            continue
        corner, part = _part(image, field, position)
        push = heapq.heappush if len(heap) < k else heapq.heapreplace
        push(heap, _Candidate(value, rank, position, field, corner, part))


def _part(image: np.ndarray, field: Field, position: tuple[int, ...]) -> tuple[tuple[int, int], np.ndarray]:
    """What an activation is computed from: its field, begun where the strides begin, and its top left corner."""
    if not field.crops or len(position) != 2:
        return (0, 0), image.copy()
    top, left, bottom, right = field.box(position)
    top -= top % int(field.jump[0])
    left -= left % int(field.jump[1])
    return (top, left), image[:, top:bottom, left:right].copy()


def finish(
    function: str, net: Layer, target: Layer, best: Mapping[int, list[_Candidate]], mode: str, progress: bool
) -> dict[int, list[Patch]]:
    """The patches of candidates, with their projections."""
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # parts of one shape go through the network together
    for f, ones in best.items():
        for i, one in enumerate(ones):
            groups.setdefault(one.part.shape, []).append((f, i))
    found: dict[tuple[int, int], Patch] = {}
    bar = progress_bar(None, progress, "projections", sum(map(len, groups.values())))
    for shape, members in groups.items():
        most = max(TOGETHER // (shape[1] * shape[2]), 1)
        for start in range(0, len(members), most):
            some = members[start : start + most]
            ones = [best[f][i] for f, i in some]
            batch = np.stack([one.part for one in ones])
            pixels = project(function, net, batch, target, [f for f, _ in some], [one.inner for one in ones], mode)
            for key, one, values in zip(some, ones, pixels, strict=True):
                found[key] = one.patch(values)
            if bar is not None:
                bar.update(len(some))
    if bar is not None:
        bar.close()
    return {f: [found[f, i] for i in range(len(ones))] for f, ones in best.items()}


def progress_bar(items: Any, progress: bool, what: str, total: int | None = None) -> Any:
    """``items`` with tqdm's bar on a terminal, or as they are where it is not installed or not wanted."""
    if not progress:
        return items
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc=what, total=total, leave=False, disable=None)
