"""The same kernels under a watchful eye: Numba's as plain Python, Cython's with every index checked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastconv
from conftest import Engine
from fastconv import _backends

pytestmark = pytest.mark.slow
ROOT = Path(fastconv.__file__).parent.parent

# Small problems through every kernel of one engine, each against the reference. In the checked build an index error
# inside a nogil function cannot be raised: Python reports it to sys.unraisablehook, and then nothing may pass.
SCRIPT = """
import sys
unraisable = []
sys.unraisablehook = lambda args: unraisable.append(f"{args.exc_type.__name__}: {args.exc_value} in {args.object!r}")
import numpy as np
import convolution, fastconv
from conftest import Engine
from fastconv._problem import PADDING_MODES, ConvProblem, PoolProblem
from problems import BY_NAME, Conv, integers, solved
from tolerance import assert_same, assert_within, winograd_bound
from test_pad import pad2d, pad2d_adjoint, problem_of
from test_pool import Pool, exact_max, max_pool, run

engine, reference = Engine(sys.argv[1]), Engine("reference")
count = 0
ran = set()
if engine.backend == "numba":
    from fastconv._numba import _jit

    run_task = _jit.Task.run

    def recorded(task, *arguments, **options):
        ran.add(task.name)
        run_task(task, *arguments, **options)

    _jit.Task.run = recorded
CONVS = ["one-cell", "same-3x3", "crop-and-pad", "dilation-3x2", "stride-beyond-kernel", "groups-7-filters",
         "depthwise-stride2", "multiplier2", "rows-9", "rows-17", "pixels-17", "filters-9", "batch-empty",
         "no-channels", "no-filters", "no-rows", "padding-beyond-kernel", "strided-rows-17"]
if engine.backend == "cython":
    CONVS += ["filters-49", "pixels-97", "depth-385", "depth-769", "depth-43x9", "plane-14x14", "first-layer",
              "lone-50", "flat-15x17", "whole-rows-31", "depthwise-planes-7", "depthwise-columns-stride2"]
wrong = []
for name in CONVS:
    case = BY_NAME[name]
    for dtype in ("float32", "float64"):
        data, problem = solved(case, dtype, "integers"), case.problem(dtype)
        for stem in ("direct", "im2col"):
            for kernel, key in convolution.RESULT.items():
                for n_threads in (1, 2):
                    count += 1
                    try:
                        actual = convolution.call(engine, stem, kernel, problem, data, n_threads=n_threads)
                        assert_same(actual, data[key].astype(dtype))
                    except (AssertionError, IndexError) as error:
                        wrong.append(f"{stem}.{kernel} {name} {dtype}: {type(error).__name__} {error}")
assert not wrong, chr(10).join(wrong)
for name in ("same-3x3", "crop", "groups-7-filters", "rows-17", "batch-empty", "no-channels", "no-filters"):
    for dtype in ("float32", "float64"):
        data, problem = solved(BY_NAME[name], dtype, "integers"), BY_NAME[name].problem(dtype)
        actual = convolution.conv2d(engine, "winograd", problem, data["x"], data["w"], data["bias"], tile=2)
        assert_same(actual, (data["conv"] + data["bias"][:, None, None]).astype(dtype), f"winograd {name}")
        actual = convolution.grad_weight(engine, "winograd", problem, data["x"], data["grad_output"], tile=2)
        assert_same(actual, data["grad_weight"].astype(dtype), f"winograd grad_weight {name}")
        count += 2
convolution.check_fused_pool(engine, "winograd", BY_NAME["same-3x3"], "float32", (3, 2), (2, 1), (1, 0), True, 2)
case = Conv("", 1, 3, 17, 15, 5, 3, 3, padding=1)  # of few channels, vectors along tiles
for dtype in ("float32", "float64"):
    data, problem = solved(case, dtype, "integers"), case.problem(dtype)
    limit = winograd_bound(problem, 4, data["x"], data["w"])
    assert_within(convolution.conv2d(engine, "winograd", problem, data["x"], data["w"], tile=4), data["conv"], limit, "thin")
    geometry, extents = convolution.pool_geometry(problem, (2, 2), (2, 2), tile=4)
    pooled, none = np.zeros((1, 5, *extents), dtype), np.zeros((0, 0, 0, 0), dtype)
    weight = convolution.weight_of(engine, "winograd", data["w"], problem, tile=4)
    engine.run("winograd", "conv2d", data["x"], weight, none.reshape(-1), 0.0, np.inf, none, pooled, none.astype(np.int64),
               geometry=geometry)
    windows = np.maximum(data["conv"], 0)[..., :16, :14].reshape(1, 5, 8, 2, 7, 2)
    assert_within(pooled, windows.max((3, 5)), limit.max(), "thin, pooled")
    count += 2
for stem in ("direct", "im2col"):
    for indices in (True, False):
        convolution.check_fused_pool(engine, stem, BY_NAME["same-3x3"], "float32", (3, 2), (2, 1), (1, 0), indices)
    convolution.check_epilogue(engine, stem, BY_NAME["rows-3"], "float32")
for name in ("same-3x3", "crop-and-pad", "stride-2x3"):
    problem = BY_NAME[name].problem()
    x = solved(BY_NAME[name], "float32", "integers")["x"]
    shape = (problem.N, problem.IC, problem.KH, problem.KW, problem.OH, problem.OW)
    pairs = []
    for each in (engine, reference):
        cols, back = np.zeros(shape, "float32"), np.zeros(problem.input_shape, "float32")
        each.run("im2col", "im2col", x, cols, geometry=problem.geometry())
        each.run("im2col", "col2im", integers(shape, "float32", 1), back, geometry=problem.geometry())
        whole = np.zeros(problem.input_shape, "float32")
        each.run("im2col", "interleave", integers((x.size,), "float32", 1), whole, geometry=problem.geometry())
        pairs.append((cols, back, whole))
    for kernel, *both in zip(("im2col", "col2im", "interleave"), *pairs, strict=True):
        assert_same(*both, kernel)
        count += 1
for mode in PADDING_MODES:
    problem = problem_of((2, 2, 3, 4), (2, 1, 3, 2), mode, "float32")
    x, grad = integers((2, 2, 3, 4), "float32", 1), integers((2, 2, 6, 9), "float32", 2)
    assert_same(pad2d(engine, x, problem), pad2d(reference, x, problem), "pad2d")
    assert_same(pad2d_adjoint(engine, grad, problem), pad2d_adjoint(reference, grad, problem), "pad2d_adjoint")
    count += 2
for case in (Pool("", (2, 2, 7, 9), 2), Pool("", (1, 2, 6, 19), 3, 2, 1, 1, True),
             Pool("", (1, 1, 5, 4), (2, 3), (3, 1), 1), Pool("", (1, 2, 4, 35), 2),
             Pool("", (1, 1, 8, 18), 3, 2, 1, 2)):
    p = case.problem()
    x, g = integers(case.shape, "float32", 1), integers(p.output_shape, "float32", 2)
    values, indices = exact_max(x, p)
    actual, where = max_pool(engine, x, p)
    assert_same(actual, values, "max_pool2d")
    assert_same(where, indices, "max_pool2d indices")
    assert_same(max_pool(engine, x, p, with_indices=False)[0], values, "max_pool2d")
    calls = [("max_pool2d_backward", case.shape, (g, indices)), ("max_unpool2d", case.shape, (g, indices)),
             ("max_unpool2d_backward", p.output_shape, (x, indices))]
    if case.average:
        calls += [("avg_pool2d", p.output_shape, (x,)), ("avg_pool2d_backward", case.shape, (g,))]
    for kernel, shape, arrays in calls:
        actual, exact = (run(each, kernel, shape, *arrays, geometry=p.geometry()) for each in (engine, reference))
        assert_within(actual, exact, 4e-7 * (1 + abs(exact)), kernel)
        count += 1
case, data = BY_NAME["same-3x3"], solved(BY_NAME["same-3x3"], "float32", "integers")
data = {**data, "w": np.where(np.arange(data["w"].size).reshape(data["w"].shape) == 4, np.inf, data["w"]).astype("float32")}
assert_same(*(convolution.call(each, "direct", "conv2d_grad_input", case.problem(), data) for each in (engine, reference)))
maps, grads = integers((2, 2, 3, 5, 7), "float64", 1)
line, three, none = maps.reshape(-1), np.array([0.5, 1, 2]), np.empty(0, np.int64)
given = three, abs(three)
for kernel, arguments, changed in (
    ("add", (line, 0.0, 2.0), [grads.reshape(-1)]),
    ("rectify", (line, 2.0), [grads.reshape(-1)]),
    ("sgd", (line, 0.5, 0.25, 0.125, False), [grads.reshape(-1), line]),
    ("adam", (line, 0.1, 0.2, 0.9, 0.1, 1.5, 1e-3, 1.0, 0.25), [grads.reshape(-1), line, abs(line)]),
    ("map_sums", (maps,), [np.empty(3)]),
    ("normalise", (maps, three, three, 1, 1e-3, 0.0, 2.0), [np.empty(3), np.empty(3), np.empty_like(maps)]),
    ("normalise_backward", (grads, maps, three, *given, 1, 1e-3), [np.empty(3), np.empty(3), np.empty_like(maps)]),
    ("non_finite", (line,), [np.empty(4)]),
):
    results = []
    for each in (engine, reference):
        own = [array.copy() for array in changed]
        each.run("elementwise", kernel, *arguments, *own, geometry=none)
        results.append(own)
    for actual, exact in zip(*results, strict=True):
        assert_within(actual, exact, 1e-12 * (1 + abs(exact)), kernel)
    count += 1
if engine.backend == "numba":
    engine.k.direct.TASK, TASK = 64, engine.k.direct.TASK  # so that a small sum is cut, too
    engine.k.direct._planned.cache_clear()
    data = solved(case, "float32", "integers")
    actual = convolution.call(engine, "direct", "conv2d_grad_weight", case.problem(), data)
    assert_same(actual, data["grad_weight"].astype("float32"), "grad_weight in chunks")
    engine.k.direct.TASK = TASK
    engine.k.direct._planned.cache_clear()
    engine.k.winograd.MANY_GROUPS, MANY_GROUPS = 1, engine.k.winograd.MANY_GROUPS  # so that few tiles are not put together
    engine.k.winograd._planned.cache_clear()
    convolution.check_fused_pool(engine, "winograd", BY_NAME["same-3x3"], "float32", (3, 2), (2, 1), (1, 0), True, 2)
    engine.k.winograd.MANY_GROUPS = MANY_GROUPS
    engine.k.winograd._planned.cache_clear()
    assert ran == {task.name for task in _jit.tasks}, {task.name for task in _jit.tasks} - ran
assert not unraisable, unraisable[:3]
print("fine", count, sys.modules[f"fastconv._{engine.backend}.{engine.isa + '.' if engine.isa else ''}direct"].__file__)
"""


def run_script(engine, path, **environment):
    places = os.pathsep.join([str(path), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, engine.name], capture_output=True, text=True, timeout=900, cwd=path,
        env={**os.environ, "PYTHONPATH": places, **environment},
    )  # fmt: skip


def test_numba_kernels_as_plain_python():
    engine = Engine("numba")
    if engine.refusal:
        pytest.skip(f"numba: {engine.refusal}")
    run = run_script(engine, ROOT, NUMBA_DISABLE_JIT="1")
    assert run.returncode == 0 and run.stdout.startswith("fine "), run.stderr[-3000:]


@pytest.fixture(scope="module")
def checked_build(tmp_path_factory):
    """A copy of the package whose extension checks every memoryview index."""
    pytest.importorskip("Cython", reason="Cython is not installed: no checked build")
    if not (ROOT / "setup.py").is_file() or not (ROOT / "src_cython").is_dir():
        pytest.skip("not a source tree: no checked build")
    if shutil.which(os.environ.get("CC", "cc").split()[0]) is None and shutil.which("gcc") is None:
        pytest.skip("there is no C compiler: no checked build")
    folder = tmp_path_factory.mktemp("checked")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
    recipe = (ROOT / "setup.py").read_text()
    assert '"-O3"' in recipe
    (folder / "setup.py").write_text(recipe.replace('"-O3"', '"-O1"'))  # a third of the time
    shutil.copytree(ROOT / "src_cython", folder / "src_cython")
    shutil.copytree(
        ROOT / "fastconv", folder / "fastconv", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    )
    build = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
        capture_output=True, text=True, cwd=folder, timeout=1800,
        env={**os.environ, "FASTCONV_BOUNDSCHECK": "1"},
    )  # fmt: skip
    assert build.returncode == 0, build.stdout[-2000:] + build.stderr[-2000:]
    built = list((folder / "lib").rglob("*.so")) + list((folder / "lib").rglob("*.pyd"))
    assert len(built) == 1 + len(_backends.STEMS) * len({path.parent for path in built if path.stem.startswith("pad")})
    for path in built:
        target = folder / "fastconv" / path.relative_to(folder / "lib" / "fastconv")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


@pytest.mark.parametrize("isa", _backends.ISAS)
def test_cython_kernels_with_bounds_checks(checked_build, isa):
    engine = Engine(f"cython-{isa}")
    if engine.refusal:
        pytest.skip(f"{engine.name}: {engine.refusal}")
    run = run_script(engine, checked_build)
    assert run.returncode == 0 and run.stdout.startswith("fine "), run.stderr[-3000:]
    assert str(checked_build) in run.stdout, f"another build was tested: {run.stdout}"


def test_the_checked_build_does_check(checked_build):
    """A kernel called with an output too small for its geometry is caught: the checks are in."""
    if _backends.refusal("cython"):
        pytest.skip(f"cython: {_backends.refusal('cython')}")
    code = """
import sys
seen = []
sys.unraisablehook = lambda args: seen.append(args.exc_type.__name__)
import numpy as np
from fastconv._cython.baseline import pad
from test_pad import problem_of
geometry = problem_of((1, 1, 3, 4), (1, 1, 1, 1), "replicate", "float32").geometry()
grad, too_small, none = (np.zeros(shape, "float32") for shape in ((1, 1, 5, 6), (1, 1, 2, 4), 0))
try:
    pad.pad2d_adjoint(grad, too_small, none, geometry, 1)
except IndexError:
    seen.append("IndexError")
print(*seen)
"""
    places = os.pathsep.join([str(checked_build), str(Path(__file__).parent)])
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=checked_build,
        env={**os.environ, "PYTHONPATH": places}, timeout=300,
    )  # fmt: skip
    assert "IndexError" in run.stdout, run.stdout + run.stderr
