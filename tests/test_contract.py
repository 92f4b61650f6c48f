"""The rules of the house that no single module can see: equal kernels everywhere, imports one way, nothing leaks."""

import ast
import functools
import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastconv
from conftest import Engine
from fastconv import _backends, _problem

PACKAGE = Path(fastconv.__file__).parent
SOURCES = Path(__file__).parent.parent / "src_cython"
needs_sources = pytest.mark.skipif(not SOURCES.is_dir(), reason="src_cython is not here: not run from a source tree")


def stems(folder, suffix):
    return {path.stem for path in folder.glob(f"*{suffix}") if not path.name.startswith("_")}


# ------------------------------------------------------------------------------------------------- kernels


@needs_sources
def test_stems_are_equal():
    expected = set(_backends.STEMS)
    assert stems(PACKAGE / "_reference", ".py") == expected
    assert stems(PACKAGE / "_numba", ".py") == expected
    assert stems(SOURCES, ".pyx") - {"cpu"} == expected


@needs_sources
def test_setup_builds_every_isa():
    tree = ast.parse((SOURCES.parent / "setup.py").read_text())
    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert tuple(ast.literal_eval(values["ISAS"])) == _backends.ISAS


def kernel_names(module):
    """Public functions that are kernels: those that take a geometry and threads, by the contract of the reference."""
    found = set()
    for name, value in vars(module).items():
        if name.startswith("_") or name.endswith("_workspace") or not callable(value) or inspect.isclass(value):
            continue
        home = getattr(value, "__module__", None)
        if (
            home == module.__name__
            or type(value).__name__ == "cython_function_or_method"
            or "fused" in type(value).__name__
        ):
            found.add(name)
    return found


KERNELS = {
    stem: sorted(kernel_names(importlib.import_module(f"fastconv._reference.{stem}"))) for stem in _backends.STEMS
}


def test_the_reference_has_every_kernel():
    unit = {
        "pad": ["pad2d", "pad2d_adjoint"],
        "im2col": sorted(
            [
                "im2col",
                "col2im",
                "interleave",
                "packed_weight_size",
                "pack_weight",
                "conv2d",
                "conv2d_grad_input",
                "conv2d_grad_weight",
            ]
        ),
        "direct": ["conv2d", "conv2d_grad_input", "conv2d_grad_weight"],
        "winograd": sorted(["packed_weight_size", "pack_weight", "conv2d", "conv2d_grad_weight"]),
        "pool": sorted(
            [
                "max_pool2d",
                "max_pool2d_backward",
                "max_unpool2d",
                "max_unpool2d_backward",
                "avg_pool2d",
                "avg_pool2d_backward",
            ]
        ),
        "elementwise": sorted(
            ["add", "rectify", "sgd", "adam", "map_sums", "normalise", "normalise_backward", "non_finite"]
        ),
    }
    assert {stem: KERNELS[stem] for stem in unit} == unit


@pytest.mark.parametrize(("stem", "kernel"), [(stem, kernel) for stem, names in KERNELS.items() for kernel in names])
def test_signatures_are_equal(engine, stem, kernel):
    reference = getattr(importlib.import_module(f"fastconv._reference.{stem}"), kernel)
    expected = list(inspect.signature(reference).parameters)
    module = getattr(engine.k, stem)
    assert hasattr(module, kernel), f"{engine.name} lacks {stem}.{kernel}{tuple(expected)}"
    actual = list(inspect.signature(getattr(module, kernel)).parameters)
    assert actual == expected, f"{engine.name} {stem}.{kernel} takes {actual}, the contract says {expected}"


BY_ADDRESS = [("im2col", "conv2d"), ("direct", "conv2d"), ("winograd", "conv2d"), ("pool", "max_pool2d")]


@pytest.mark.parametrize(("stem", "kernel"), BY_ADDRESS)
def test_arrays_taken_by_address_are_checked(engine, stem, kernel):
    """Another cell size, steps between cells and a read-only result are refused before anything runs."""
    if engine.backend != "cython":
        pytest.skip(f"{engine.name}: its kernels take no addresses")
    image, cells = np.ones((1, 1, 4, 4), "float32"), np.ones(4096, "float32")
    problem = _problem.ConvProblem.from_args("test", image.shape, (1, 1, 3, 3), "float32", padding=1)
    arrays = {
        **{"input": image, "weight": image, "packed": cells, "bias": cells},
        **{"output": image.copy(), "pooled": image.copy(), "workspace": cells.copy()},
        **{"indices": np.empty((0, 0, 0, 0), np.int64), "geometry": problem.geometry(tile=2)},
    }
    run = getattr(getattr(engine.k, stem), kernel)
    names = list(inspect.signature(run).parameters)
    taken = [name for name in names if name in arrays]
    assert len(taken) >= 5

    def call(**others):
        values = {**arrays, "act_min": -np.inf, "act_max": np.inf, "n_threads": 1, **others}
        run(*(values[name] for name in names))

    for name in taken:
        array = arrays[name]
        with pytest.raises(TypeError, match="bytes"):
            call(**{name: array.astype("int16" if array.dtype == np.int64 else "float64")})
        if array.size:
            with pytest.raises(ValueError, match="contiguous"):
                call(**{name: np.repeat(array, 2, axis=-1)[..., ::2]})
    for name in {"output", "pooled", "indices", "workspace"} & set(taken):
        locked = arrays[name].copy()
        locked.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            call(**{name: locked})


@pytest.mark.parametrize("stem", _backends.STEMS)
def test_order_is_equal(stem):
    """Kernels stand in one order in every back end's file, so that they read side by side."""
    files = [PACKAGE / "_reference" / f"{stem}.py", PACKAGE / "_numba" / f"{stem}.py", SOURCES / f"{stem}.pyx"]
    orders = []
    for file in files:
        if file.is_file():
            text = file.read_text()
            pattern = r"^(?:def|cpdef [\w ]+?) ?(\w+)\("
            orders.append([name for name in re.findall(pattern, text, re.M) if name in KERNELS[stem]])
    assert orders, "no kernel file found"
    for order, file in zip(orders, files, strict=False):
        assert order == orders[0], f"{file.name}: kernels in the order {order}, the reference has {orders[0]}"


def test_no_extra_kernels(engine):
    """A public kernel with the contract's signature that the reference lacks would be outside the contract."""
    for stem, names in KERNELS.items():
        module = getattr(engine.k, stem)
        for name, value in vars(module).items():
            if name.startswith("_") or not callable(value) or inspect.isclass(value):
                continue
            try:
                parameters = list(inspect.signature(value).parameters)
            except (TypeError, ValueError):
                continue
            if parameters[-3:] == ["workspace", "geometry", "n_threads"]:
                assert name in names, f"{engine.name} {stem}.{name} is not in the reference"


def test_workspaces_are_sizes(engine):
    """<kernel>_workspace(geometry, n_workers) is named after a kernel, takes just this, and gives a size."""
    problem = _problem.ConvProblem.from_args("test", (2, 3, 7, 8), (5, 3, 3, 3), "float32", padding=1)
    geometry = problem.geometry(tile=4)
    for stem, names in KERNELS.items():
        module = getattr(engine.k, stem)
        for name in (name for name in vars(module) if name.endswith("_workspace") and not name.startswith("_")):
            assert name.removesuffix("_workspace") in names, f"{engine.name} {stem}.{name}: no such kernel"
            parameters = list(inspect.signature(getattr(module, name)).parameters)
            assert parameters == ["geometry", "n_workers"], f"{engine.name} {stem}.{name}{tuple(parameters)}"
            sizes = [getattr(module, name)(geometry, n) for n in (1, 2, 3)]
            assert all(isinstance(size, (int, np.integer)) and size >= 0 for size in sizes), (
                f"{engine.name} {stem}.{name}: {sizes}"
            )
            assert sizes == sorted(sizes)


def test_compiled_modules_state_their_vector_length(engine):
    if engine.backend == "reference":
        pytest.skip("reference: it has no vectors")
    expected = {"cython-baseline": 4, "cython-x86_64_v3": 8, "cython-x86_64_v4": 16}.get(engine.name)
    module = engine.k.direct
    assert module.VL_FLOAT in (4, 8, 16) and module.VL_DOUBLE == module.VL_FLOAT // 2
    assert expected is None or module.VL_FLOAT == expected


def test_kernels_accept_read_only_inputs(engine):
    problem = _problem.ConvProblem.from_args("test", (1, 2, 4, 5), (3, 2, 3, 3), "float32")
    x, w = np.ones((1, 2, 4, 5), "float32"), np.ones((3, 2, 3, 3), "float32")
    x.flags.writeable = w.flags.writeable = False
    out, none = np.zeros(problem.output_shape, "float32"), np.zeros((0, 0, 0, 0), "float32")
    bias, indices = np.zeros(3, "float32"), np.zeros((0, 0, 0, 0), np.int64)
    bias.flags.writeable = False
    engine.run("direct", "conv2d", x, w, bias, -np.inf, np.inf, out, none, indices, geometry=problem.geometry())
    assert (out == 18).all()


# ------------------------------------------------------------------------------------------------- geometry


def enum_names(text, prefix):
    """Names in a .pxd's anonymous enums that begin with the prefix, in order."""
    bodies = re.findall(r"^cdef enum:\n((?:    .*\n)+)", text, re.M)
    return re.findall(rf"\b{prefix}[A-Z_]+\b", "".join(bodies))


@needs_sources
def test_geometry_is_one_list():
    text = (SOURCES / "common.pxd").read_text()
    geometry, modes = enum_names(text, "GEO_"), enum_names(text, "PAD_")
    assert geometry == [
        f"GEO_{name}" if name[0].isupper() else f"GEO_{name.upper()}" for name in map(_spelled, _problem.GEOMETRY)
    ]
    for position, name in enumerate(geometry):
        assert getattr(_problem, name) == position, name
    assert modes == [f"PAD_{mode.upper()}" for mode in _problem.PADDING_MODES]
    for position, name in enumerate(modes):
        assert getattr(_problem, name) == position, name


def _spelled(name):
    """pool_KH -> POOL_KH: the index names are upper case."""
    return name.upper() if "_" in name else name


def test_geometry_vector():
    problem = _problem.ConvProblem.from_args(
        "test", (2, 6, 17, 19), (4, 3, 3, 5), "float32", (2, 3), ((1, 2), (3, -4)), (4, 1), 2
    )
    vector = problem.geometry(accumulate=True)
    assert vector.dtype == np.int64 and not vector.flags.writeable
    named = _problem.Geometry(*vector.tolist())._asdict()
    expected = {
        "N": 2, "IC": 6, "IH": 17, "IW": 19, "OC": 4, "KH": 3, "KW": 5, "OH": 6, "OW": 5, "G": 2, "stride_h": 2,
        "stride_w": 3, "pad_top": 1, "pad_bottom": 2, "pad_left": 3, "pad_right": -4, "dil_h": 4, "dil_w": 1,
        "accumulate": 1, "pad_mode": 0, "count_include_pad": 0, "divisor": 0, "pool_KH": 0, "pool_KW": 0, "pool_OH": 0,
        "pool_OW": 0, "pool_stride_h": 0, "pool_stride_w": 0, "pool_pad_top": 0, "pool_pad_left": 0, "tile": 0,
    }  # fmt: skip
    assert {name: named[name] for name in expected} == expected
    assert not any(value for name, value in named.items() if name not in expected), (
        "a field that nobody asked for is set"
    )


# --------------------------------------------------------------------------------------------------- imports

# Which of our own packages a module may import at any level; longest prefix decides. _problem and _threads
# stand below everything.
BELOW = {"_problem", "_threads", "_arena"}
MAY_IMPORT = {
    "_problem": set(),
    "_threads": set(),
    "_arena": set(),
    "_arrays": {"_problem"},
    "_backends": {"", "_threads", "_problem", "_cython", "_numba"},  # for show_config: the version, the CPU, Numba
    "_reference": {"_reference", "_problem"},
    "_numba": {"_numba", "_problem", "_threads"},
    "_cython": {"_cython"},
    "_algorithms": {"_algorithms", *BELOW},
    "_plan": {"_algorithms", "_backends", "_tuned", *BELOW},
    "_packed": {"_plan", "_arrays", *BELOW},
    "functional": {"_packed", "_plan", "_backends", "_arrays", "_algorithms", *BELOW},
    "layers": {"functional", "_packed", "_backends", "_plan", "_algorithms", "_arrays", *BELOW},
    "models": {"layers", *BELOW},
    "train": {"layers", "_backends", "_algorithms", "_state", "_arrays", *BELOW},
    "datasets": {"_state", "_arrays", *BELOW},
}
ABOVE = {"cli", "see", "graph", "onnx", "dask", "compat"}  # may import anything but a kernel package
KERNEL_PACKAGES = {"_reference", "_numba", "_cython"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield path, parts


def own_imports(tree, parts):
    """First components, below fastconv, of what a module imports (inside functions too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names = alias.name.split(".")
                if names[0] == "fastconv":
                    yield names[1] if len(names) > 1 else "", node.lineno
        elif isinstance(node, ast.ImportFrom):
            names = (node.module or "").split(".")
            assert node.level == 0, f"{'/'.join(parts)}:{node.lineno}: relative import"
            if names[0] == "fastconv":
                if len(names) > 1:
                    yield names[1], node.lineno
                else:
                    for alias in node.names:
                        yield alias.name, node.lineno


def test_imports_go_one_way():
    wrong = []
    for path, parts in modules():
        if parts[0] == "__init__":
            continue
        allowed = MAY_IMPORT.get(parts[0])
        for target, line in own_imports(ast.parse(path.read_text()), parts):
            if not (PACKAGE / target).is_dir() and not (PACKAGE / f"{target}.py").is_file():
                target = ""  # a public name, from the package itself
            bad = target in KERNEL_PACKAGES if allowed is None else target not in allowed
            if bad and target != parts[0]:
                wrong.append(f"{'/'.join(parts)}:{line} imports {target or 'fastconv itself'}")
    assert not wrong, "\n".join(wrong)


def test_the_reference_imports_numpy_alone():  # and exact fractions, from which Winograd's matrices follow
    for path in (PACKAGE / "_reference").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                ours = name in ("fastconv._problem", "fastconv._reference._common")
                assert name in ("numpy", "fractions", "__future__") or ours, f"{path.name} imports {name}"


def test_only_the_dispatch_table_names_back_ends():
    """A comparison with a back end's name outside _backends.py means that the design has leaked."""
    names = {*_backends.BACKENDS, *_backends.ISAS}
    wrong = []
    for path, parts in modules():
        if parts[0] in ("_backends", *KERNEL_PACKAGES):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            constants = {side.value for side in sides if isinstance(side, ast.Constant) and isinstance(side.value, str)}
            operands = {side.id if isinstance(side, ast.Name) else getattr(side, "attr", "") for side in sides}
            if constants & names or ("auto" in constants and "backend" in operands):
                wrong.append(f"{'/'.join(parts)}:{node.lineno}")
    assert not wrong, "back ends named at " + ", ".join(wrong)


def test_kernels_check_and_raise_nothing():
    """Kernels of the reference and Numba have no raise and no assert."""
    for folder in ("_reference", "_numba"):
        for stem in _backends.STEMS:
            path = PACKAGE / folder / f"{stem}.py"
            for node in ast.walk(ast.parse(path.read_text())):
                assert not isinstance(node, (ast.Raise, ast.Assert)), f"{folder}/{stem}.py:{node.lineno}"


HEAVY = (
    "numba", "scipy", "matplotlib", "dask", "onnx", "PIL", "torch", "llvmlite", "pandas", "Cython", "jinja2", "tqdm", "h5py",
)  # fmt: skip


def test_import_is_light():
    code = f"import sys, fastconv; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert run.stdout.strip() == "", f"import fastconv imports {run.stdout}"


def test_public_names_are_there():
    for name in fastconv.__all__:
        assert hasattr(fastconv, name), name
    assert len(set(fastconv.__all__)) == len(fastconv.__all__)
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", sorted(n for n in fastconv.__all__ if inspect.isfunction(getattr(fastconv, n))))
def test_every_public_function_is_documented(name):
    value = getattr(fastconv, name)
    text = inspect.getdoc(value) or ""
    assert "Examples\n-----" in text or not inspect.signature(value).parameters, f"{name}: no example"
    for parameter in inspect.signature(value).parameters:
        assert re.search(rf"\b{parameter}\b", text), f"{name}: {parameter} is not described"


# ------------------------------------------------------------------------------------- Cython's annotated output


@pytest.fixture(scope="session")
def annotated(tmp_path_factory):
    """A function: stem -> (source lines, {line number: score}), by `cython --annotate`; a score above 0: Python."""
    pytest.importorskip("Cython", reason="Cython is not installed: its annotated output cannot be read")
    if not SOURCES.is_dir():
        pytest.skip("src_cython is not here: not run from a source tree")
    folder = tmp_path_factory.mktemp("annotated")
    for path in SOURCES.iterdir():
        shutil.copy(path, folder / path.name)

    @functools.cache
    def annotate(stem):
        subprocess.run(
            [
                sys.executable, "-m", "cython", "-3", "--annotate", "-I", str(folder),
                "-X", "boundscheck=False", "-X", "wraparound=False", "-X", "cdivision=True",
                "-X", "initializedcheck=False", str(folder / f"{stem}.pyx"),
            ],
            check=True, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        html = (folder / f"{stem}.html").read_text()
        pattern = r'<pre class="cython line score-(\d+)"[^>]*>(?:\+|&#xA0;|\xa0)?<span class="">0*(\d+)</span>'
        scores = {int(line): int(score) for score, line in re.findall(pattern, html)}
        return (folder / f"{stem}.pyx").read_text().splitlines(), scores

    return annotate


def without_gil(lines):
    """Line numbers inside functions declared nogil, and inside `with nogil` blocks."""
    inside = set()
    for number, line in enumerate(lines, 1):
        head = line.strip()
        opens = head.startswith("with nogil")
        if re.search(r"\bnogil:\s*(#.*)?$", line) and not opens:
            opens = True  # the last line of a (possibly long) header of a nogil function
        if not opens:
            continue
        start = number
        while not re.match(r"\s*(cdef|for|with|def)\b", lines[start - 1]):
            start -= 1  # the header's first line carries the indent
        indent = len(lines[start - 1]) - len(lines[start - 1].lstrip())
        for after in range(number + 1, len(lines) + 1):
            text = lines[after - 1]
            if text.strip() and len(text) - len(text.lstrip()) <= indent:
                break
            inside.add(after)
    return inside


@pytest.mark.parametrize("stem", _backends.STEMS)
def test_no_python_inside_loops(annotated, stem):
    lines, scores = annotated(stem)
    assert scores, "the annotated output has another form: no score was found"
    inside = without_gil(lines)
    assert inside, f"{stem}.pyx has no nogil code"
    wrong = [
        f"{stem}.pyx:{n} (score {scores[n]}): {lines[n - 1].strip()}" for n in sorted(inside) if scores.get(n, 0) > 0
    ]
    assert not wrong, "Python inside nogil code:\n" + "\n".join(wrong)


@pytest.mark.parametrize("stem", _backends.STEMS)
def test_every_kernel_releases_the_gil(annotated, stem):
    """Every contract kernel runs its tasks in a `with nogil` block."""
    lines, _ = annotated(stem)
    text = "\n".join(lines)
    function = r"^def (\w+)\((?:.|\n)*?\):\n((?:(?:    .*)?\n)*)"
    bodies = dict(re.findall(function, text + "\n", re.M))
    for kernel in KERNELS[stem]:
        if kernel == "packed_weight_size":
            continue
        assert "with nogil:" in bodies[kernel], f"{stem}.pyx: {kernel} keeps the GIL"


def test_engines_are_all_named():
    """The fixture covers each back end, and each ISA of the compiled one."""
    from conftest import ENGINES

    assert {Engine(name).backend for name in ENGINES} == set(_backends.BACKENDS)
    assert {Engine(name).isa for name in ENGINES} == {None, *_backends.ISAS}
