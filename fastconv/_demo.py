"""`fastconv demo`: Conv2d -> ReLU -> MaxPool -> Conv2d on a photograph, timed, checked and drawn.

Each back end runs the same four steps in float32. SciPy runs them in float64 (`scipy.signal.correlate`); the difference
is held against a bound that follows from float32's rounding alone. The picture is drawn in `_anatomy.py`.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv._backends import max_isa

LONGEST_SIDE = 512  # pixels: larger photographs are reduced, else SciPy's check would take minutes
SMALLEST_SIDE = 4
SEED = 0
SHIPPED = "coffee.npz"

Array = np.ndarray


class DemoError(Exception):
    """Something the user can mend; its text is one line."""


# ------------------------------------------------------------------------------------------- the photograph


@dataclass(frozen=True)
class Photo:
    """A photograph: ``image`` is uint8 (height, width, RGB)."""

    image: Array
    title: str
    source: str
    licence: str = ""


def load_photo(path: str | Path | None = None) -> Photo:
    """The photograph in a file, read by Pillow; without a path the shipped one."""
    if path is None:
        data = resources.files("fastconv").joinpath("data", SHIPPED).read_bytes()
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            return Photo(stored["image"], str(stored["title"]), str(stored["source"]), str(stored["licence"]))
    if not Path(path).is_file():
        raise DemoError(f"cannot read {path}: there is no such file")
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DemoError(f"cannot read {path}: that needs Pillow (pip install 'fastconv[viz]')") from None
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types for a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DemoError(f"cannot read {path}: {reason}") from None
    width, height = image.size
    source = f"{path}, {width} x {height} pixels"
    if max(width, height) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(width, height)
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
        source += f", reduced to {image.size[0]} x {image.size[1]}"
    if min(image.size) < SMALLEST_SIDE:
        shown = f"{image.size[0]} x {image.size[1]}"
        raise DemoError(f"cannot use {path}: {shown} pixels, at least {SMALLEST_SIDE} x {SMALLEST_SIDE} are needed")
    return Photo(np.asarray(image), Path(path).name, source)


# --------------------------------------------------------------------------------------------------- filters

GREY = np.full(3, 1 / 3)
BOX = np.full((3, 3), 1 / 9)
SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
DIAGONAL = np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]) / 4
LAPLACE = np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]]) / 8
CENTRE = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]])

# Filters made by hand, as the first layers of trained networks often have them: what it answers to, the pattern in
# the plane, its weight in red, green and blue, bias. The remaining ones of the 32 are random.
MADE = (
    ("vertical edges", SOBEL_X, GREY, 0.0),
    ("horizontal edges", SOBEL_X.T, GREY, 0.0),
    ("diagonal edges /", DIAGONAL, GREY, 0.0),
    ("diagonal edges \\", DIAGONAL[:, ::-1], GREY, 0.0),
    ("vertical edges, the other way", -SOBEL_X, GREY, 0.0),
    ("brightness (a blur)", BOX, GREY, 0.0),
    ("spots", LAPLACE, GREY, 0.0),
    ("sharpened picture", CENTRE + LAPLACE, GREY, 0.0),
    ("red areas", BOX, np.array([1, -0.5, -0.5]), -0.2),
    ("green areas", BOX, np.array([-0.5, 1, -0.5]), -0.2),
    ("blue areas", BOX, np.array([-0.5, -0.5, 1]), -0.2),
    ("yellow areas", BOX, np.array([0.5, 0.5, -1]), -0.2),
    ("edges from green to red", SOBEL_X, np.array([1, -1, 0]), 0.0),
)


@dataclass(frozen=True)
class Weights:
    """Both layers' weights and biases, float32, and the names of the first layer's filters."""

    weight1: Array
    bias1: Array
    weight2: Array
    bias2: Array
    names: tuple[str, ...]


def make_weights() -> Weights:
    """32 filters of which the first `MADE` are recognisable, then 64 random ones; always the same."""
    rng = np.random.default_rng(SEED)
    made = np.array([colour[:, None, None] * pattern for _, pattern, colour, _ in MADE])
    random = rng.normal(scale=(2 / 27) ** 0.5, size=(32 - len(MADE), 3, 3, 3))
    bias = np.zeros(32)
    bias[: len(MADE)] = [row[3] for row in MADE]
    return Weights(
        np.concatenate([made, random]).astype(np.float32),
        bias.astype(np.float32),
        rng.normal(scale=(2 / 288) ** 0.5, size=(64, 32, 3, 3)).astype(np.float32),
        rng.normal(scale=0.1, size=64).astype(np.float32),
        tuple(row[0] for row in MADE) + ("random",) * len(random),
    )


# ------------------------------------------------------------- the four steps: ours, SciPy's, plain NumPy's

STEPS = ("Conv2d 3->32, 3x3, padding 1", "ReLU", "MaxPool 2x2, stride 2", "Conv2d 32->64, 3x3, padding 1")
PEERS = {
    "SciPy": "scipy.signal.correlate(method='direct')",
    "NumPy im2col": "matrix of columns, then one matrix product (BLAS)",
}
Step = Callable[[Array], Array]


def fastconv_steps(weights: Weights) -> list[Step]:
    """The unit, by the public API."""
    return [
        lambda x: fastconv.conv2d(x, weights.weight1, weights.bias1, padding=1),
        fastconv.relu,
        lambda x: fastconv.max_pool2d(x, 2),
        lambda x: fastconv.conv2d(x, weights.weight2, weights.bias2, padding=1),
    ]


def _border(x: Array) -> Array:
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))


def scipy_steps(weights: Weights, dtype: Any) -> list[Step]:
    """The same by SciPy, in ``dtype``."""
    from scipy.ndimage import maximum_filter
    from scipy.signal import correlate

    def conv(x: Array, weight: Array, bias: Array) -> Array:
        image = _border(x)[0]
        maps = [correlate(image, w.astype(dtype), mode="valid", method="direct")[0] for w in weight]
        return (np.array(maps) + bias.astype(dtype)[:, None, None])[None]

    def pool(x: Array) -> Array:
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        largest = maximum_filter(x, size=(1, 1, 2, 2), origin=(0, 0, -1, -1))
        return np.ascontiguousarray(largest[:, :, : 2 * rows : 2, : 2 * columns : 2])

    return [
        lambda x: conv(x, weights.weight1, weights.bias1),
        lambda x: np.maximum(x, 0),
        pool,
        lambda x: conv(x, weights.weight2, weights.bias2),
    ]


def numpy_steps(weights: Weights, dtype: Any) -> list[Step]:
    """The same as one writes it in plain NumPy: the matrix of columns (im2col), then one matrix product (BLAS)."""

    def conv(x: Array, weight: Array, bias: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(_border(x)[0], (3, 3), axis=(1, 2))
        columns = windows.transpose(0, 3, 4, 1, 2).reshape(weight[0].size, -1)
        product = weight.reshape(len(weight), -1).astype(dtype) @ columns + bias.astype(dtype)[:, None]
        return product.reshape(1, len(weight), *x.shape[2:])

    def pool(x: Array) -> Array:
        rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        upper, lower = (np.maximum(x[:, :, r:rows:2, :columns:2], x[:, :, r:rows:2, 1:columns:2]) for r in (0, 1))
        return np.maximum(upper, lower)

    return [
        lambda x: conv(x, weights.weight1, weights.bias1),
        lambda x: np.maximum(x, 0),
        pool,
        lambda x: conv(x, weights.weight2, weights.bias2),
    ]


def chain(steps: list[Step], x: Array) -> list[Array]:
    """The results of all steps."""
    results = []
    for step in steps:
        x = step(x)
        results.append(x)
    return results


def error_bounds(weights: Weights, x: Array, exact: list[Array]) -> list[Array]:
    """How far float32 may be from ``exact`` after each step, whatever the order in which it sums.

    A sum of n rounded products differs from the exact one by at most n*u / (1 - n*u) times the sum of their sizes,
    u = 2**-24 [Higham, Accuracy and Stability of Numerical Algorithms, 3.1]; an error of the input goes through the
    filter's sizes; ReLU and max-pool never enlarge one.
    """
    sizes = Weights(np.abs(weights.weight1), np.abs(weights.bias1), np.abs(weights.weight2), np.abs(weights.bias2), ())
    by_size = numpy_steps(sizes, np.float64)

    def conv(step: int, x: Array, error: Array | float, weight: Array, bias: Array) -> Array:
        n = weight[0].size + 2
        gamma = n * 2.0**-24 / (1 - n * 2.0**-24)
        without_bias = by_size[step](np.broadcast_to(error, x.shape)) - bias[:, None, None]
        return gamma * by_size[step](np.abs(x) + error) + without_bias

    first = conv(0, x, 0.0, sizes.weight1, sizes.bias1)
    pooled = by_size[2](first)
    return [first, first, pooled, conv(3, exact[2], pooled, sizes.weight2, sizes.bias2)]


# ------------------------------------------------------------------------------------------ timing and table


def seconds(function: Callable[[], Any], budget: float = 0.3) -> float:
    """Best time of one call; the first call, which may compile or allocate, is not counted."""
    function()
    best, spent, calls = float("inf"), 0.0, 0
    while calls < 2 or spent < budget:
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        best, spent, calls = min(best, once), spent + once, calls + 1
    return best


def step_times(steps: list[Step], x: Array, *, once: bool = False) -> list[float]:
    """Time of each step on the result of the one before; ``once``: a single call each."""
    times = []
    for step in steps:
        start = time.perf_counter()
        result = step(x)
        single = time.perf_counter() - start
        times.append(single if once else seconds(functools.partial(step, x)))
        x = result
    return times


@dataclass(frozen=True)
class Row:
    """One step of one back end, as the table shows it."""

    step: str
    shape: tuple[int, ...]
    dtype: str
    time: float
    error: float  # the largest
    bound: float  # at the same element
    within: bool  # every element keeps its bound


def measure(
    backend: str, weights: Weights, x: Array, exact: list[Array], bounds: list[Array]
) -> tuple[list[Row], float]:
    """Run, check and time the four steps on one back end; also the time of the first run."""
    steps = fastconv_steps(weights)
    with fastconv.config(backend=backend):
        start = time.perf_counter()
        results = chain(steps, x)
        first = time.perf_counter() - start
        times = step_times(steps, x)
    rows = []
    for name, result, true, bound, spent in zip(STEPS, results, exact, bounds, times, strict=True):
        error = np.abs(result - true)
        worst = np.unravel_index(int(error.argmax()), error.shape)
        within = bool((error <= bound).all())
        rows.append(Row(name, result.shape, str(result.dtype), spent, float(error[worst]), float(bound[worst]), within))
    return rows, first


def duration(value: float) -> str:
    """A time with three digits and its unit."""
    unit, factor = ("s", 1) if value >= 1 else ("ms", 1e3) if value >= 1e-3 else ("us", 1e6)
    return f"{value * factor:.3g} {unit}"


def ratio(value: float) -> str:
    """How many times as fast, with two or three digits."""
    return f"{value:.0f}x" if value >= 100 else f"{value:.2g}x" if value < 10 else f"{value:.3g}x"


def table(rows: list[Row], peers: dict[str, list[float]]) -> Iterator[str]:
    """Lines of the table; ``peers`` names the times that ours are compared with."""
    lines = [["step", "shape", "dtype", "time", *(f"vs {name}" for name in peers), "largest error", "bound there"]]
    for index, row in enumerate(rows):
        speeds = [ratio(times[index] / row.time) for times in peers.values()]
        state = f"{row.bound:.1e}" if row.within else f"{row.bound:.1e} EXCEEDED"
        lines.append([row.step, str(row.shape), row.dtype, duration(row.time), *speeds, f"{row.error:.1e}", state])
    total = sum(row.time for row in rows)
    lines.append(
        ["all four", "", "", duration(total), *(ratio(sum(times) / total) for times in peers.values()), "", ""]
    )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = (True, True, True)  # text columns; numbers stand right
    for line in lines:
        cells = [
            cell.ljust(width) if column < len(left) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


# ------------------------------------------------------------------------------------------------------- run


def run(
    path: str | None = None, backend: str = "all", out: str | Path = ".", echo: Callable[[str], Any] = print
) -> bool:
    """The whole demo; True if every step of every back end kept its bound.

    Parameters
    ----------
    path : str, optional
        A photograph that Pillow can read; None: the shipped one.
    backend : {"all", "cython", "numba", "reference"}
        "all" means every back end that runs here.
    out : str or Path
        Folder of ``anatomy.png``; made if it is missing.
    echo : callable
        Gets every line of output.

    Raises
    ------
    DemoError
        If the photograph cannot be read or the picture not be written.
    BackendUnavailable
        If a back end asked for by name cannot run here.
    """
    photo = load_photo(path)
    try:
        fastconv.get_num_threads()
        max_isa()
    except ValueError as error:  # in an environment variable
        raise DemoError(str(error)) from None
    backends = fastconv.available_backends() if backend == "all" else (backend,)
    with fastconv.config(backend=backends[0]):
        pass  # raises BackendUnavailable before anything is written or computed
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot write into {folder}: {error.strerror}") from None

    weights = make_weights()
    x = fastconv.from_images(photo.image)
    height, width = photo.image.shape[:2]
    echo(f"photograph:   {photo.title} ({width} x {height} pixels)")
    echo(f"  source:     {photo.source}")
    if photo.licence:
        echo(f"  licence:    {photo.licence}")
    echo(f"the unit:     {' -> '.join(STEPS)}; input {x.shape} {x.dtype}, values 0 to 1")
    echo(f"filters:      {len(MADE)} of the first 32 are made by hand ({MADE[0][0]}, {MADE[8][0]} ...); the others")
    echo(f"              and all 64 of the second layer are random (seed {SEED}): nothing here is trained")

    peers = {"NumPy im2col": step_times(numpy_steps(weights, np.float32), x)}
    x64 = x.astype(np.float64)
    try:
        exact = chain(scipy_steps(weights, np.float64), x64)
    except ImportError:
        echo("check:        SciPy is not installed, so plain NumPy in float64 takes its place (pip install scipy)")
        exact = chain(numpy_steps(weights, np.float64), x64)
    else:
        echo("check:        every step against the same steps by SciPy in float64 (scipy.signal.correlate)")
        peers = {"SciPy": step_times(scipy_steps(weights, np.float32), x, once=True), **peers}
    bounds = error_bounds(weights, x64, exact)
    for name, times in peers.items():
        each = ", ".join(map(duration, times))
        echo(f"{name + ':':<14}{PEERS[name]}, float32: {each}; all four {duration(sum(times))}")

    echo("patience:     a back end's first run loads its kernels; Numba's compiles them, a minute or more, once")

    good = True
    for name in backends:
        echo("")
        threads = fastconv.get_num_threads()
        echo(f"back end {name}, {threads} thread{'s' if threads > 1 else ''}")
        rows, first = measure(name, weights, x, exact, bounds)
        echo(f"  first run, with all that is compiled or loaded then: {duration(first)}")
        good = good and all(row.within for row in rows)
        for line in table(rows, peers):
            echo(line)
    echo("")
    echo("time: best of several calls after a first one; vs: how many times as fast; error: largest difference to the")
    echo("check, in the units of the result; bound: what rounding to float32 allows at that element")
    echo("every element of every step keeps its bound" if good else "AN ELEMENT EXCEEDS ITS BOUND: please report this")

    try:
        from fastconv import _anatomy

        figure = _anatomy.draw(photo, weights, x, backends[0])
    except ImportError:
        echo("anatomy.png is not drawn: matplotlib is not installed (pip install 'fastconv[viz]')")
        return good
    target = folder / "anatomy.png"
    try:
        figure.savefig(target)
    except OSError as error:
        raise DemoError(f"cannot write {target}: {error.strerror}") from None
    echo(f"picture: {target}")
    return good
