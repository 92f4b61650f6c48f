"""The Numba back end's own business: what is compiled is kept, found again and never taken for something else."""

import ctypes
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import fastconv as fc
from fastconv import _backends, _warmup, cli
from test_pad import problem_of

if _backends.refusal("numba"):
    pytest.skip(f"numba: {_backends.refusal('numba')}", allow_module_level=True)

from fastconv._numba import _common, _jit, _late, _parallel, _simd, _store, pad
from fastconv._numba import _warmup as kernels

if _late.PLAIN_PYTHON:
    pytest.skip("NUMBA_DISABLE_JIT is set: nothing is compiled", allow_module_level=True)

from fastconv._numba._straight import straight

ROOT = Path(fc.__file__).parent.parent
GEOMETRY = problem_of((1, 1, 2, 3), (1, 1, 1, 1), "replicate", "float32").geometry()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Compiled code goes here."""
    monkeypatch.setattr(_store, "folders", lambda: [tmp_path / "kernels"])
    return tmp_path / "kernels"


def pads():
    """Copy an image with its border by a task that no one has loaded yet: what it should and what it does give."""
    x, out = np.arange(6, dtype="float32").reshape(1, 1, 2, 3), np.zeros((1, 1, 4, 5), "float32")
    task = _jit.Task(pad.pad2d_task.function)
    _jit.tasks.remove(task)
    task.run(1, 1, x, out, GEOMETRY)
    return np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge"), out


WITHOUT_NUMBA = """
import sys
import numpy as np
from fastconv._numba import _store, pad
from pathlib import Path
_store.folders = lambda: [Path(sys.argv[1])]
from fastconv import ConvProblem
border = ConvProblem.from_args("t", (3, 1, 2, 3), (1, 1, 1, 1), "float32", padding=1, padding_mode="replicate").border()
x, out = np.arange(6, dtype="float32").reshape(1, 1, 2, 3), np.zeros((3, 1, 4, 5), "float32")
pad.pad2d(np.tile(x, (3, 1, 1, 1)), out, out[0, 0, 0, :0], border.geometry(), int(sys.argv[2]))
print(out.sum(), "numba" in sys.modules)
"""


@pytest.mark.parametrize("n_threads", [1, 2])
def test_compiled_code_is_kept_and_loads_without_numba(folder, n_threads):
    expected, actual = pads()
    assert np.array_equal(actual, expected)
    (file,) = folder.glob("pad.*")
    before = file.stat().st_mtime_ns
    assert np.array_equal(pads()[1], expected) and file.stat().st_mtime_ns == before
    for function in (_parallel.launch, _parallel.serve):
        _parallel.machine_code.__wrapped__(function)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_NUMBA, str(folder), str(n_threads)], capture_output=True, text=True, cwd=ROOT,
        timeout=300,
    )  # fmt: skip
    assert run.stdout == f"{3 * expected.sum()} False\n", run.stderr[-2000:]


def elementwise_tasks():
    from fastconv._numba import elementwise

    return [value for value in vars(elementwise).values() if isinstance(value, _jit.Task)]


@pytest.mark.parametrize("task", elementwise_tasks(), ids=lambda task: task.name)
def test_every_task_can_be_kept(task):
    """None calls what only Numba's own memory has, such as a function of the C library."""
    for dtype in ("float32", "float64"):
        task.entry(np.dtype(dtype))
        assert _store.load(task.name, dtype, task.function.__code__.co_filename) is not None


def test_damaged_code_is_compiled_again(folder):
    expected, _ = pads()
    (file,) = folder.glob("pad.*")
    whole = file.read_bytes()
    for damaged in (b"", whole[:20], whole[:-5], whole[:40] + b"?" + whole[41:]):
        file.write_bytes(damaged)
        assert _store.load("pad.pad2d_task", "float32", pad.__file__) is None
    assert np.array_equal(pads()[1], expected)
    assert _store.load("pad.pad2d_task", "float32", pad.__file__) is not None


def test_no_folder_to_write_to_is_no_obstacle(folder, capsys):
    folder.write_text("a file, where the folder should be")
    expected, actual = pads()
    assert np.array_equal(actual, expected) and folder.is_file()
    assert cli.main(["warmup"]) == 2
    assert capsys.readouterr().err == (
        "fastconv warmup: no folder for compiled kernels can be written: set NUMBA_CACHE_DIR to one that can\n"
    )


def names():
    for function in (_store._common, _store._file_name, _store.numba_version):
        function.cache_clear()
    return _store._file_name("pad.pad2d_task", "float32", pad.__file__)


def test_an_upgrade_never_meets_old_code(tmp_path, monkeypatch):
    """The file's name changes with everything that the code depends on, and with nothing else."""
    here = tmp_path / "package" / "_numba"
    here.mkdir(parents=True)
    for path in _store._HERE.glob("_*.py"):
        (here / path.name).write_bytes(path.read_bytes())
    (here.parent / "_problem.py").write_bytes((_store._HERE.parent / "_problem.py").read_bytes())
    first = names()
    with monkeypatch.context() as patch:
        patch.setattr(_store, "_HERE", here)
        assert names() == first
        for name in ("_simd.py", "_common.py", "../_problem.py"):
            source = (here / name).read_text()
            (here / name).write_text(source + "\n# changed\n")
            assert names() != first, name
            (here / name).write_text(source)
        assert names() == first
    for attribute, value in (("VECTOR_BYTES", 128), ("numba_version", lambda: "9"), ("llvmlite_version", "9")):
        with monkeypatch.context() as patch:
            if attribute == "numba_version":
                value.cache_clear = lambda: None
            patch.setattr(_store, attribute, value)
            assert names() != first, attribute
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert names() != first
    monkeypatch.delenv("NUMBA_OPT")
    assert names() == first


def test_every_file_of_the_back_end_counts():
    """A kernel's own file and the shared ones, whose names start with _, are all that a kernel is made of."""
    stems = {f"{stem}.py" for stem in _backends.STEMS}
    assert {path.name for path in _store._HERE.glob("*.py") if not path.name.startswith("_")} == stems


# ----------------------------------------------------------------------------------------------------------- warmup


def test_warmup_knows_every_kernel():
    every = {name for name, _ in kernels.kernels(everything=True)} - {kernels.TEAM}
    assert every == {task.name for task in _jit.tasks}
    assert set(kernels.FIRST) < every
    assert {dtype for _, dtype in kernels.kernels(everything=False)} == {"float32", ""}


def test_warmup(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "kernels", lambda everything: [("pad.pad2d_task", "float32")])
    assert cli.main(["warmup", "--all"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"1 kernels are ready in {kernels.folder()}") and "1/1" in err


def test_warmup_without_numba(monkeypatch, capsys):
    monkeypatch.setattr(_warmup._backends, "refusal", lambda name: "numba is not installed")
    assert cli.main(["warmup"]) == 2
    assert capsys.readouterr() == ("", "fastconv warmup: numba is not installed\n")


# ------------------------------------------------------------------------------------------------------ narrow hosts

NARROW = """
import numpy as np
import fastconv as fc
from fastconv._numba import direct
x = np.arange(2 * 3 * 5 * 19, dtype="float32").reshape(2, 3, 5, 19)
cols = fc.im2col(x, 3, padding=1, backend="reference")
back = [fc.col2im(cols, (5, 19), 3, padding=1, backend=name) for name in ("numba", "reference")]
print(direct.VL_FLOAT, np.array_equal(*back))
"""


def test_vectors_follow_the_cpu_that_numba_compiles_for(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", NARROW], capture_output=True, text=True, cwd=ROOT, timeout=300,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_CPU_NAME": "generic"},
    )  # fmt: skip
    assert run.stdout == "4 True\n", run.stderr[-2000:]


# ------------------------------------------------------------------------------------------------------ compiled helpers


def compiled(function):
    """``function`` of words, whose straight functions are globals of this module."""
    _late.make_all()
    words = [ctypes.c_void_p] * function.__code__.co_argcount
    return ctypes.CFUNCTYPE(None, *words)(_late.compiler().compile_words(function, function.__name__, "", __file__))


def test_division_rounds_down(folder, monkeypatch):
    for name, value in {"get_late": _simd.get, "put_late": _simd.put}.items():
        monkeypatch.setitem(globals(), name, _late.made(value))

    def entry(values, count, by, out):
        for i in range(count):
            value = get_late(values, i, np.int64)  # noqa: F821
            put_late(out, 4 * i, value // by)  # noqa: F821
            put_late(out, 4 * i + 1, value % by)  # noqa: F821
            put_late(out, 4 * i + 2, value // 16)  # noqa: F821
            put_late(out, 4 * i + 3, value % 7)  # noqa: F821

    divide = compiled(entry)
    values = np.array([*range(-40, 41), 2**62, -(2**62), 2**63 - 1, -(2**63)])
    for by in (1, 2, 3, 16, 41, 2**40):
        out = np.zeros((values.size, 4), np.int64)
        divide(values.ctypes.data, values.size, by, out.ctypes.data)
        assert np.array_equal(out, np.stack([values // by, values % by, values // 16, values % 7], 1)), by


Sides = namedtuple("Sides", "left right")


def test_fields_are_read_where_they_stand(folder, monkeypatch):
    for name, value in {"fields_at_late": _common.fields_at, "put_late": _simd.put}.items():
        monkeypatch.setitem(globals(), name, _late.made(value))

    def entry(words, out, first, unused):
        sides = fields_at_late(words + 8 * first, Sides)  # noqa: F821
        put_late(out, 0, sides.right - sides.left)  # noqa: F821

    words, out = np.array([3, 10, 100]), np.zeros(1, np.int64)
    compiled(entry)(words.ctypes.data, out.ctypes.data, 1, 0)
    assert out[0] == 90


# ---------------------------------------------------------------------------------------------------- straight functions

load, store, broadcast, lanes = _simd.load, _simd.store, _simd.broadcast, _simd.lanes
F32 = np.dtype("float32")


def load_all(source, dtype, count):
    return [[load(source, (2 * i + j) * lanes(dtype), dtype) for j in range(2)] for i in range(count)]


def scaled(rows, factor, dtype):
    factors = [broadcast(dtype.type(factor + i)) for i in range(len(rows))]
    for i, row in enumerate(rows):
        rows[i] = [factors[i] * v - -v for v in row]  # (factor + i + 1) times
    return rows


def store_all(rows, target, dtype):
    for i, row in enumerate(rows):
        for j, v in enumerate(row):
            store(target, (2 * i + j) * lanes(dtype), v)


def positive(value):
    return 1 if value else 0


def test_straight_code_does_what_python_does(folder, monkeypatch):
    for function in (load_all, scaled, store_all):
        monkeypatch.setitem(globals(), f"{function.__name__}_late", _late.made(straight(function)))

    def entry(source, target, times, unused):
        rows = load_all_late(source, F32, 3)  # noqa: F821
        for _ in range(times):
            rows = scaled_late(rows, 1, F32)  # noqa: F821
        store_all_late(rows, target, F32)  # noqa: F821

    count = 2 * _simd.VL_FLOAT
    x = np.arange(3 * count, dtype="float32")
    out = np.zeros_like(x)
    compiled(entry)(x.ctypes.data, out.ctypes.data, 2, 0)
    assert np.array_equal(out.reshape(3, count), x.reshape(3, count) * np.array([[4], [9], [16]]))


def test_straight_code_cannot_branch_on_what_it_does_not_know(folder, monkeypatch):
    monkeypatch.setitem(globals(), "positive_late", _late.made(straight(positive)))

    def entry(value, target, unused, unused_too):
        positive_late(value)  # noqa: F821

    with pytest.raises(TypeError, match="straight code cannot branch"):
        compiled(entry)
