"""`health`: faults of single filters, and a verdict on layers and network, with reasons."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastconv.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    HardSwish,
    Identity,
    Layer,
    LeakyReLU,
    PReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Softmax,
)
from fastconv.see._probe import Order, convolutions, evaluated, images_of, labels_of, network, run, several
from fastconv.see.patches import progress_bar

# Thresholds, each with its source. tests/test_see_health.py holds them against networks that are known to be random,
# trained for 0, 1 and many epochs, trained on shuffled labels, and collapsed under weight decay.
ALWAYS_ON = 1.0  # share of positions; there a ReLU is the identity, so the filter only passes on a linear map
DUPLICATE = 0.99  # cosine of two filters; RePr (Prakash et al., arXiv 1811.07275) measures overlap by it
NOISY = 0.92  # share of energy above half of Nyquist; white noise has 0.68 (Zeiler and Fergus, section 4.1)
LOW_NORM = 0.05  # of the layer's median norm; small norms are what Li et al. (arXiv 1608.08710) prune
SATURATED = 0.9  # share of positions at the ends of a bounded activation (Glorot and Bengio, AISTATS 2010)
EVIDENCE = 4.0  # standard errors by which a layer must differ from independent weights, to count as trained
UNSURE = 0.7  # entropy of the answers over its maximum; measured on digits: 1.00 random, 0.90 one epoch, 0.05 trained
CONSTANT = 0.05  # spread of the answers between images over their size
STABLE = 0.55  # share of answers that survive a shift by one pixel; measured: 0.84 trained, 0.25 on shuffled labels
GAP = 0.15  # training accuracy minus that on other images
MANY = 0.5  # share of a layer's filters: from here on the layer itself is ill

FAULTS = ("dead", "always on", "duplicate", "noisy", "low norm", "subnormal", "not finite", "saturated")


@dataclass(frozen=True)
class FilterHealth:
    """What was measured on one filter.

    Attributes
    ----------
    filter : int
    faults : tuple of str
        Of "dead", "always on", "duplicate", "noisy", "low norm", "subnormal", "not finite", "saturated".
    active : float
        Share of positions, over all images, at which its activation is above 0.
    norm : float
        Euclidean norm of its weights.
    high_frequency : float
        Share of its kernels' energy above half of the Nyquist frequency; NaN for kernels smaller than 3 x 3.
    twin : int or None
        The filter before it that it is most alike, and
    cosine : float
        how much.
    """

    filter: int
    faults: tuple[str, ...]
    active: float
    norm: float
    high_frequency: float
    twin: int | None
    cosine: float


@dataclass(frozen=True)
class LayerHealth:
    """One convolution: its filters, a verdict with reasons, and how much neighbouring weights agree (in standard errors
    of independent ones; NaN for 1 x 1 kernels)."""

    name: str
    verdict: str
    reasons: tuple[str, ...]
    filters: tuple[FilterHealth, ...]
    structure: float
    high_frequency: float

    @property
    def active(self) -> float:
        """Mean share of active positions."""
        return float(np.mean([one.active for one in self.filters]))

    @property
    def counts(self) -> dict[str, int]:
        """How many filters have each fault, without those that none has."""
        found = {fault: sum(fault in one.faults for one in self.filters) for fault in FAULTS}
        return {fault: count for fault, count in found.items() if count}


@dataclass(frozen=True)
class Health:
    """Result of `health`; ``str()`` of it is a report in lines.

    Attributes
    ----------
    verdict : str
        "well trained", "untrained", "over-fitted" or "collapsed".
    reasons : tuple of str
    layers : tuple of LayerHealth
    answers : dict of str to float
        What was measured on the network's output, where it is (N, K).
    images : int
    """

    verdict: str
    reasons: tuple[str, ...]
    layers: tuple[LayerHealth, ...]
    answers: dict[str, float] = field(default_factory=dict)
    images: int = 0

    @property
    def faults(self) -> list[tuple[str, int, str]]:
        """(layer, filter, fault) of everything that was found."""
        return [
            (layer.name, one.filter, fault) for layer in self.layers for one in layer.filters for fault in one.faults
        ]

    def __str__(self) -> str:
        lines = [f"{self.verdict} ({self.images} images)", *(f"  {reason}" for reason in self.reasons)]
        for layer in self.layers:
            lines.append(f"{layer.name}: {layer.verdict}; " + "; ".join(layer.reasons))
            for one in layer.filters:
                if one.faults:
                    lines.append(f"  filter {one.filter}: " + ", ".join(one.faults))
        return "\n".join(lines)


class _Activity:
    """Of one convolution: how often each filter's activation is on, at its ends, and in which range, over all images."""

    def __init__(self, conv: Conv2d) -> None:
        self.kind: type[Layer] | None = None  # of the activation behind it
        channels = conv.out_channels
        self.cells = 0
        self.on = np.zeros(channels)
        self.ends = np.zeros(channels)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    def add(self, maps: np.ndarray) -> None:
        rows = maps[0].reshape(maps.shape[1], -1)
        if not rows.size:
            return
        self.cells += rows.shape[1]
        self.on += (rows > 0).sum(axis=1)
        if self.kind is ReLU6:
            self.ends += (rows >= 6).sum(axis=1)
        elif self.kind is Sigmoid:
            self.ends += ((rows < 0.02) | (rows > 0.98)).sum(axis=1)
        self.low = np.fmin(self.low, rows.min(axis=1))
        self.high = np.fmax(self.high, rows.max(axis=1))


_BETWEEN = (BatchNorm2d, Identity, Dropout)  # may stand between a convolution and its activation
_ACTIVATIONS = (ReLU, ReLU6, LeakyReLU, PReLU, HardSwish, Sigmoid)


def _followers(leaves: list[tuple[Layer, np.ndarray]]) -> dict[int, int]:
    """For each convolution among the leaves the index of its activation's output, or its own where none follows."""
    found = {}
    for i, (layer, output) in enumerate(leaves):
        if type(layer) is not Conv2d:
            continue
        found[i] = i
        for j in range(i + 1, len(leaves)):
            after, value = leaves[j]
            if not isinstance(after, (*_BETWEEN, *_ACTIVATIONS)) or value.shape != output.shape:
                break
            # Behind a branch the next leaf has another input: whether this is its input is seen from its output
            if not np.array_equal(after._forward(leaves[j - 1][1])[0], value, equal_nan=True):
                break
            if isinstance(after, _ACTIVATIONS):
                found[i] = j
                break
    return found


def high_frequency_share(kernels: np.ndarray) -> np.ndarray:
    """Share of the energy of filters (OC, IC, KH, KW) at frequencies above 1/4 per cell along either axis.

    With the discrete Fourier transform at 16 x 16 frequencies. Energy in a band is a quadratic form of the weights, and
    those of the lower band along rows and columns multiply: E = sum over (i, j, k, l) of w_ij w_kl A_ik B_jl.
    """
    OC, IC, KH, KW = kernels.shape
    with np.errstate(invalid="ignore", over="ignore"):
        rows = kernels.reshape(OC * IC, KH * KW).astype(np.float64)
        lower = np.kron(_low_band(KH), _low_band(KW))
        total = (rows * rows).reshape(OC, -1).sum(axis=1)
        low = ((rows @ lower) * rows).reshape(OC, -1).sum(axis=1)
        return 1 - low / np.where(total > 0, total, np.nan)


def _low_band(size: int) -> np.ndarray:
    """The form (size, size) that gives the energy of a row of weights at frequencies up to 1/4, of a total of 1."""
    extent = max(16, size)
    frequencies = np.fft.fftfreq(extent)
    frequencies = frequencies[np.abs(frequencies) <= 0.25]
    apart = np.subtract.outer(np.arange(size), np.arange(size))
    return np.cos(2 * np.pi * frequencies[:, None, None] * apart).sum(axis=0) / extent


def structure(kernels: np.ndarray) -> float:
    r"""How much neighbouring weights agree, in standard errors of independent weights.

    With s the sum of products of neighbours, n their number and v the mean square of a weight: s / (v sqrt(n)), which
    for independent weights around 0 has mean 0 and deviation 1.
    """
    w = kernels.astype(np.float64)
    w = w / (np.abs(w).max() or 1)
    right, down = w[..., 1:] * w[..., :-1], w[..., 1:, :] * w[..., :-1, :]
    pairs = right.size + down.size
    square = float((w * w).mean())
    return float((right.sum() + down.sum()) / (square * math.sqrt(pairs))) if pairs and square else math.nan


def uneven(weight: np.ndarray) -> float:
    r"""How much the norms of filters differ, in standard errors of independent weights of one distribution.

    With d weights a filter, the squared norms of F filters of independent weights have variance d (m4 - m2^2), where m2
    and m4 are the moments of a weight; the ratio of what is found to that is 1 +- sqrt(2 / (F - 1)).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    rows = rows / (np.abs(rows).max() or 1)
    if len(rows) < 4:
        return math.nan
    expected = rows.shape[1] * float((rows**4).mean() - (rows**2).mean() ** 2)
    found = float((rows**2).sum(axis=1).var(ddof=1))
    return (found / expected - 1) / math.sqrt(2 / (len(rows) - 1)) if expected else math.nan


def outlier(weight: np.ndarray) -> float:
    r"""How far the largest singular value lies beyond that of independent weights, in standard errors.

    Of a matrix n x d of independent weights of variance v, the square of the largest singular value is
    v (m + s t) with m = (sqrt(n - 1) + sqrt(d))^2, s = sqrt(m) (1 / sqrt(n - 1) + 1 / sqrt(d))^(1/3) and t of the
    Tracy-Widom law, whose mean is -1.21 and whose deviation 1.27 (Johnstone, Annals of Statistics 29, 2001). Training
    leaves values beyond that edge (Martin and Mahoney, arXiv 1810.01075).
    """
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    rows = rows / (np.abs(rows).max() or 1)
    n, d = sorted(rows.shape)
    variance = float(rows.var())
    if n < 4 or not variance:
        return math.nan
    rows -= rows.mean()
    gram = rows @ rows.T if len(rows) == n else rows.T @ rows
    largest = float(np.linalg.eigvalsh(gram)[-1])
    a, b = math.sqrt(n - 1), math.sqrt(d)
    edge, scale = (a + b) ** 2, (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return ((largest / variance - edge) / scale + 1.21) / 1.27


def _twins(conv: Conv2d) -> tuple[np.ndarray, np.ndarray]:
    """For every filter the one before it (of its group) that it is most alike, and their cosine."""
    rows = conv.weight.reshape(conv.out_channels, -1).astype(np.float64)
    rows = np.where(np.isfinite(rows), rows, 0)
    scale = np.abs(rows).max(axis=1, keepdims=True)
    rows = rows / np.where(scale > 0, scale, 1)
    length = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(length > 0, length, 1)[:, None]
    cosine = np.tril(unit @ unit.T, -1)
    group = np.arange(conv.out_channels) // (conv.out_channels // conv.groups)
    cosine[group[:, None] != group] = 0
    return cosine.argmax(axis=1), cosine.max(axis=1)


def _filters(conv: Conv2d, seen: _Activity) -> list[FilterHealth]:
    weight = conv.weight
    rows = weight.reshape(conv.out_channels, -1)
    finite = np.isfinite(rows).all(axis=1)
    if conv.bias is not None:
        finite &= np.isfinite(conv.bias)
    tiny = np.finfo(weight.dtype).tiny
    subnormal = ((rows != 0) & (np.abs(rows) < tiny)).any(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt((rows.astype(np.float64) ** 2).sum(axis=1))
    usual = float(np.median(norms[finite])) if finite.any() else math.nan
    share = high_frequency_share(weight) if min(conv.kernel_size) >= 3 else np.full(conv.out_channels, np.nan)
    twin, cosine = _twins(conv)
    cells = max(seen.cells, 1)
    rectified = seen.kind in (ReLU, ReLU6)
    found = []
    for f in range(conv.out_channels):
        dead = seen.high[f] <= 0 if rectified else seen.high[f] == seen.low[f]
        tests = {
            "not finite": not finite[f],
            "subnormal": subnormal[f],
            "low norm": finite[f] and norms[f] <= LOW_NORM * usual,
            "dead": finite[f] and dead,
            "always on": finite[f] and rectified and seen.on[f] >= ALWAYS_ON * cells,
            "duplicate": finite[f] and cosine[f] >= DUPLICATE,
            "noisy": share[f] > NOISY,
            "saturated": seen.ends[f] >= SATURATED * cells,
        }
        found.append(
            FilterHealth(
                f, tuple(name for name in FAULTS if tests[name]), float(seen.on[f] / cells), float(norms[f]),
                float(share[f]), int(twin[f]) if cosine[f] > 0 else None, float(cosine[f]),
            )
        )  # fmt: skip
    return found


def _share(filters: Iterable[FilterHealth], *faults: str) -> float:
    return float(np.mean([any(fault in one.faults for fault in faults) for one in filters]))


def _judge_layer(name: str, conv: Conv2d, seen: _Activity) -> LayerHealth:
    filters = _filters(conv, seen)
    finite = bool(np.isfinite(conv.weight).all())
    agreement = structure(conv.weight) if finite else math.nan
    spread = uneven(conv.weight) if finite else math.nan
    beyond = outlier(conv.weight) if finite else math.nan
    share = float(np.nanmean([one.high_frequency for one in filters])) if min(conv.kernel_size) >= 3 else math.nan
    signs = [sign for sign in (abs(agreement), spread, beyond) if not math.isnan(sign)]
    reasons, verdict = [], "well trained"
    gone = _share(filters, "dead", "low norm", "not finite", "duplicate")
    if gone >= MANY:
        verdict = "collapsed"
        reasons.append(f"{gone:.0%} of its filters are dead, of low norm, duplicates or not finite")
    elif _share(filters, "saturated") >= MANY:
        verdict = "collapsed"
        reasons.append(f"{_share(filters, 'saturated'):.0%} of its filters are saturated")
    elif signs and max(signs) < EVIDENCE:
        verdict = "untrained"
    if not math.isnan(agreement):
        reasons.append(f"neighbouring weights agree by {agreement:+.0f} standard errors of independent ones")
    if not math.isnan(spread):
        reasons.append(f"norms of filters differ by {spread:+.0f} standard errors")
    if not math.isnan(beyond):
        reasons.append(f"the largest singular value lies {beyond:+.0f} standard errors from that of noise")
    if not math.isnan(share):
        reasons.append(f"high frequencies hold {share:.0%} of the energy (white noise: 68%)")
    ill = sum(bool(one.faults) for one in filters)
    reasons.append(f"{ill} of {len(filters)} filters have a fault" if ill else "no filter has a fault")
    return LayerHealth(name, verdict, tuple(reasons), tuple(filters), agreement, share)


class _Answers:
    """The outputs (1, K) of a classifier, and whether they survive a shift of the image by one pixel."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.kept: list[bool] = []

    def add(self, net: Layer, x: np.ndarray, output: np.ndarray) -> None:
        self.rows.append(output[0].astype(np.float64))
        if np.isfinite(output).all() and len(self.kept) < 4 * 200:
            for shift in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                moved = np.roll(x, shift, axis=(2, 3))
                self.kept.append(int(net(moved)[0].argmax()) == int(output[0].argmax()))

    def measured(self, last: Layer | None) -> dict[str, float]:
        values = np.array(self.rows)
        if not np.isfinite(values).all():
            return {"finite": 0.0}
        if isinstance(last, Softmax):
            chances, values = values, np.log(np.maximum(values, 1e-30))
        else:
            chances = np.exp(values - values.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
        entropy = -(chances * np.log(np.maximum(chances, 1e-300))).sum(axis=1) / math.log(values.shape[1])
        centred = values - values.mean(axis=1, keepdims=True)
        size = float(np.sqrt((centred**2).mean()))
        spread = float(centred.std(axis=0).mean())
        return {
            "finite": 1.0, "entropy": float(entropy.mean()), "confidence": float(chances.max(axis=1).mean()),
            "spread": spread / size if size else 0.0, "classes": float(len(set(values.argmax(axis=1).tolist()))),
            "stable": float(np.mean(self.kept)) if self.kept else math.nan,
        }  # fmt: skip


def _accuracy(function: str, name: str, answers: list[int], labels: list[int]) -> float:
    if len(answers) != len(labels):
        raise ValueError(f"{function}: {name}: {len(labels)} labels for {len(answers)} images: there must be as many")
    right = [answer == label for answer, label in zip(answers, labels, strict=True)]
    return float(np.mean(right)) if right else math.nan


def health(
    net: Any,
    images: Iterable[Any],
    labels: Any = None,
    *,
    training: tuple[Any, Any] | None = None,
    progress: bool = False,
) -> Health:
    """Judge a network by its filters: faults of each, a verdict with reasons on each layer and on the whole.

    Parameters
    ----------
    net : Layer
    images : iterable of (C, H, W) arrays
        Gone through once. A filter is called dead on these images: give some dozens that are like those it will see.
    labels : sequence of int, optional
        The right classes of `images`, which the network should not have been trained on.
    training : (images, labels), optional
        Some that it has been trained on. With `labels` they show over-fitting directly.
    progress : bool
        Show a bar (tqdm).

    Returns
    -------
    Health
        ``str()`` of it is a report, ``.faults`` a list of (layer, filter, fault).

    Raises
    ------
    TypeError, ValueError
        If `net` is no network or has no convolution, or an image does not fit.

    Notes
    -----
    **Filters.** *dead*: its rectifier lets nothing pass at any position of any image (without a rectifier: it says the
    same everywhere). *always on*: its rectifier stops nothing. *duplicate*: cosine with a filter before it of 0.99 or
    more. *noisy*: more than 92 % of its kernels' energy above half of the Nyquist frequency; white noise has 68 %,
    trained filters less (Zeiler and Fergus, section 4.1, mend a first layer "of extremely high and low frequency").
    *low norm*: at most 5 % of its layer's median. *subnormal*, *not finite*: such weights. *saturated*: at 90 % of the
    positions at the end of a ReLU6 or Sigmoid.

    **Layers.** *collapsed*: half of the filters or more are dead, of low norm, duplicates, not finite, or saturated.
    *untrained*: its weights look like independent random ones: how neighbours in a kernel agree, how norms of filters
    differ and how large the largest singular value is lie within 4 standard errors of what independent weights do.

    **The network**, the first that holds. *collapsed*: half of its layers are. *untrained*: more than half of them are.
    *collapsed*: its answers are not finite or hardly depend on the image. *over-fitted*: with `labels` and `training`,
    accuracy falls by more than 15 points between them; without, its answers are sure but do not last: fewer than 55 %
    survive a shift of the image by one pixel (Zhang, arXiv 1904.11486, measures this consistency), as with networks
    that know their images by heart. *untrained*: its answers have more than 70 % of the largest entropy (a network that
    has been trained for too short a time, too). Else *well trained*: whether the answers are right cannot be seen
    without labels. Of a network whose output is not (N, K), the layers alone decide.

    The thresholds of the last two were measured on small networks for digits (``tests/test_see_health.py`` trains
    them): random, trained for 1 and many epochs, on shuffled labels, and under too much weight decay.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> from fastconv.see import health
    >>> net = fastconv.Sequential(fastconv.Conv2d(3, 16, 3, rng=0), fastconv.ReLU(), fastconv.Conv2d(16, 16, 3, rng=1))
    >>> net[0].weight[3] = 0
    >>> net[0].bias[3] = -1
    >>> found = health(net, np.random.default_rng(0).random((8, 3, 16, 16), np.float32))
    >>> found.verdict
    'untrained'
    >>> [fault for fault in found.faults if fault[:2] == ("0", 3)]
    [('0', 3, 'dead'), ('0', 3, 'low norm')]
    """
    function = "health"
    network(function, net)
    convs = convolutions(function, net)
    several(function, "images", images, "an iterable of (C, H, W) arrays")
    classes = None if labels is None else labels_of(function, "labels", labels)
    if training is not None and (not isinstance(training, (tuple, list)) or len(training) != 2):
        raise TypeError(f"{function}: training is a {type(training).__name__}: it must be (images, labels)")
    names = {id(layer): name for name, layer in convs}
    seen: dict[int, _Activity] = {}
    followers: dict[int, int] | None = None
    answers = _Answers()
    last: Layer | None = None
    count = 0
    with evaluated(net):
        for image in progress_bar(images, progress, "health"):
            try:
                x, _ = images_of(function, "an image", image)
                order = Order(net)
                output = run(net, x, order)
            except (TypeError, ValueError) as error:
                error.add_note(f"in image {count}")
                raise
            if followers is None:
                followers = _followers(order.leaves)
                last = order.leaves[-1][0]
            for place, activation in followers.items():
                conv = order.leaves[place][0]
                assert isinstance(conv, Conv2d)
                activity = seen.setdefault(id(conv), _Activity(conv))
                if activation != place:
                    activity.kind = type(order.leaves[activation][0])
                activity.add(order.leaves[activation][1])
            if isinstance(output, np.ndarray) and output.ndim == 2 and output.shape[1] > 1:
                answers.add(net, x, output)
            count += 1
        if not count:
            raise ValueError(f"{function}: images is empty: at least one image is needed")
        layers = tuple(_judge_layer(names[id(conv)], conv, seen[id(conv)]) for _, conv in convs if id(conv) in seen)
        measured = answers.measured(last) if answers.rows else {}
        if classes is not None and answers.rows:
            found = [int(row.argmax()) for row in answers.rows]
            measured["accuracy"] = _accuracy(function, "labels", found, classes)
        if training is not None and answers.rows:
            known = [int(net(images_of(function, "an image", x)[0])[0].argmax()) for x in training[0]]
            learnt = labels_of(function, "labels of training", training[1])
            measured["training accuracy"] = _accuracy(function, "training", known, learnt)
    verdict, reasons = _verdict(layers, measured)
    return Health(verdict, tuple(reasons), layers, measured, count)


def _verdict(layers: tuple[LayerHealth, ...], measured: dict[str, float]) -> tuple[str, list[str]]:
    """The verdict on the network; the first that holds."""
    total = len(layers)
    collapsed = [layer.name for layer in layers if layer.verdict == "collapsed"]
    untrained = [layer.name for layer in layers if layer.verdict == "untrained"]
    verdict, reasons = "well trained", []

    def says(found: str, reason: str) -> None:
        nonlocal verdict
        reasons.append(reason)
        if verdict == "well trained":
            verdict = found

    if len(collapsed) >= MANY * total:
        says("collapsed", f"{len(collapsed)} of {total} layers are collapsed: {', '.join(collapsed[:6])}")
    if len(untrained) > MANY * total:
        says("untrained", f"{len(untrained)} of {total} layers look like random weights: {', '.join(untrained[:6])}")
    if measured.get("finite") == 0:
        says("collapsed", "its answers are not finite")
    elif measured.get("spread", 1) < CONSTANT:
        says(
            "collapsed",
            f"its answers hardly depend on the image: they spread by {measured['spread']:.1%} of their size",
        )
    unsure = measured.get("entropy", 0) > UNSURE
    gap = measured.get("training accuracy", math.nan) - measured.get("accuracy", math.nan)
    if gap > GAP:
        says(
            "over-fitted",
            f"accuracy falls from {measured['training accuracy']:.1%} on what it was trained on to "
            f"{measured['accuracy']:.1%}",
        )
    elif math.isnan(gap) and measured.get("stable", 1) < STABLE and not unsure and verdict == "well trained":
        says(
            "over-fitted",
            f"only {measured['stable']:.0%} of its answers survive a shift by one pixel, though it is sure of them "
            f"(mean chance {measured['confidence']:.0%})",
        )
    if unsure:
        says(
            "untrained", f"its answers are unsure: {measured['entropy']:.0%} of the entropy of saying 1/K to everything"
        )
    if verdict == "well trained":
        reasons.append(f"{total - len(untrained)} of {total} layers carry the marks of training")
        if "stable" in measured:
            reasons.append(
                f"{measured['stable']:.0%} of its answers survive a shift by one pixel; mean chance of the answer "
                f"{measured['confidence']:.0%}"
            )
        if "accuracy" in measured:
            reasons.append(f"accuracy {measured['accuracy']:.1%}")
    ill = sum(bool(one.faults) for layer in layers for one in layer.filters)
    reasons.append(f"{ill} of {sum(len(layer.filters) for layer in layers)} filters have a fault")
    return verdict, reasons
