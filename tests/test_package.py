"""The package: what sdist and wheel hold, and that the wheel convolves where nothing but NumPy is installed."""

import doctest
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastconv
from fastconv import _backends

ROOT = Path(__file__).resolve().parents[1]
needs_project = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="the project's folder is not here: only its tests are"
)

# A convolution worked out by hand, max-pooled, on every back end and ISA that runs here.
CONVOLVES = """
import importlib.util
import numpy as np
import fastconv
for library in ("numba", "scipy", "matplotlib", "PIL"):
    assert importlib.util.find_spec(library) is None, library
x = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
w = np.ones((1, 1, 3, 3), dtype=np.float32)
def check():
    bias = np.array([-50], dtype=np.float32)
    assert fastconv.conv2d(x, w, bias, activation="relu").tolist() == [[[[0, 4], [31, 40]]]]
    y = fastconv.max_pool2d(fastconv.conv2d(x, w), 2)
    assert y.tolist() == [[[[90]]]], y
check()
for isa in fastconv._backends.built_isas():
    with fastconv.config(backend="cython", isa=isa):
        check()
print(*fastconv.available_backends())
"""


def call(*command, **kwargs):
    """Output of a command; the test fails with all of it if the command does."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def environment(**changes):
    """The environment without what steers builds and imports, and with ``changes``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FASTCONV_", "PYTHON"))}
    return kept | changes


@pytest.fixture(scope="session")
def registry():
    """Skips where pip reaches no package registry: an isolated build and a fresh environment need one."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--dest"]
    folder = Path(os.environ.get("TMPDIR", "/tmp"), f"fastconv-registry-{os.getpid()}")
    try:
        done = subprocess.run([*command, str(folder), "setuptools>=77"], capture_output=True, text=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode:
        pytest.skip(f"pip reaches no package registry: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="session")
def compiler():
    """The command of the C compiler; skips where there is none."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(command.split()[0]) is None:
        pytest.skip(f"there is no C compiler ({command})")
    return command


@pytest.fixture(scope="session")
def sdist(tmp_path_factory, registry):
    """The sdist, built by `python -m build` from a copy of the project (a build writes into its folder)."""
    pytest.importorskip("build", reason="build is not installed: no sdist can be made")
    copy, folder = tmp_path_factory.mktemp("project"), tmp_path_factory.mktemp("sdist")
    skip = shutil.ignore_patterns(
        "build", "dist", ".git", ".venv", "*.egg-info", "*.so", "__pycache__", ".*_cache", ".asv"
    )
    shutil.copytree(ROOT, copy, ignore=skip, dirs_exist_ok=True)
    call(sys.executable, "-m", "build", "--sdist", "--outdir", folder, copy, env=environment(FASTCONV_NO_EXTENSION="1"))
    (path,) = folder.glob("*.tar.gz")
    return path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, sdist, compiler):
    """The wheel, built from the sdist alone: it fails if the sdist lacks a source."""
    folder = tmp_path_factory.mktemp("wheel")
    plain = folder / "cc"  # under test is what the wheel holds, not its speed: a third of the time
    plain.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O1\n')
    plain.chmod(0o755)
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist)
    call(*command, env=environment(CC=str(plain)))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def bare(tmp_path_factory, registry):
    """Python of a fresh virtual environment with NumPy and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    call(sys.executable, "-m", "venv", folder, env=environment())
    python = folder / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "numpy", env=environment())
    return python


def install(python, wheel, folder):
    """Install a wheel alone into a folder; the environment that finds it there."""
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel, env=environment())
    return environment(PYTHONPATH=str(folder))


@needs_project
def test_sdist_is_complete(sdist):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    expected = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md"}
    expected |= {"fastconv/py.typed", "fastconv/data/coffee.npz", ".ci/run", "asv.conf.json"}
    for folder in ("fastconv", "src_cython", "tests", "benchmarks", "docs"):
        for path in (ROOT / folder).rglob("*"):
            made = path.suffix in (".so", ".c", ".o") or "__pycache__" in path.parts
            if path.is_file() and not made and not path.name.startswith("."):
                expected.add(str(path.relative_to(ROOT)))
    assert expected - inside == set()
    assert not [name for name in inside if name.endswith((".so", ".c", ".pyc"))]


@needs_project
def test_wheel_holds_every_kernel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        binaries = {name: archive.read(name) for name in names if name.endswith(".so")}
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    x86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
    isas = _backends.ISAS if x86 else _backends.ISAS[:1]
    stems = {path.stem for path in (ROOT / "src_cython").glob("*.pyx")} - {"cpu"}
    modules = {f"fastconv/_cython/{isa}/{stem}{suffix}" for isa in isas for stem in stems}
    assert set(binaries) == modules | {f"fastconv/_cython/cpu{suffix}"}
    assert {"fastconv/py.typed", "fastconv/data/coffee.npz", "fastconv/cli.py"} <= set(names)
    outside = [
        name for name in names if not name.startswith(("fastconv/", f"fastconv-{fastconv.__version__}.dist-info/"))
    ]
    assert outside == []
    assert wheel.stat().st_size < 5e6
    if sys.platform == "linux":
        assert [name for name, data in binaries.items() if b".symtab" in data] == []  # stripped

    fields = email.message_from_string(metadata)
    assert fields["Version"] == fastconv.__version__
    assert fields["License-Expression"] == "BSD-3-Clause"
    assert fields["Requires-Python"] == ">=3.11"
    needed = [need for need in fields.get_all("Requires-Dist") if "extra ==" not in need]
    assert [need.partition(">")[0] for need in needed] == ["numpy"]
    assert {"numba", "viz", "test", "all"} <= set(fields.get_all("Provides-Extra"))


@needs_project
def test_wheel_convolves_with_numpy_alone(wheel, bare, tmp_path):
    where = install(bare, wheel, tmp_path / "site")
    assert call(bare, "-W", "error", "-c", CONVOLVES, env=where, cwd=tmp_path) == "cython reference\n"
    demo = call(bare, "-m", "fastconv", "demo", "--out", tmp_path, env=where, cwd=tmp_path)
    assert "SciPy is not installed" in demo and "matplotlib is not installed" in demo and "keeps its bound" in demo


@needs_project
def test_without_extension(sdist, bare, tmp_path):
    """FASTCONV_NO_EXTENSION=1: the reference serves, with one warning; where Numba is installed, it does."""
    command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, sdist)
    call(*command, env=environment(FASTCONV_NO_EXTENSION="1"))
    (wheel,) = tmp_path.glob("*.whl")
    where = install(bare, wheel, tmp_path / "site")
    done = subprocess.run(
        [str(bare), "-c", CONVOLVES], capture_output=True, text=True, env=where, cwd=tmp_path, check=True
    )
    assert done.stdout == "reference\n"
    assert done.stderr.count("RuntimeWarning") == 1
    assert "slow NumPy reference" in done.stderr and "numba is not installed" in done.stderr
    if _backends.refusal("numba") is None:
        code = "import fastconv; print(*fastconv.available_backends(), fastconv._backends.resolve().backend)"
        assert call(sys.executable, "-W", "error", "-c", code, env=where, cwd=tmp_path) == "numba reference numba\n"


@needs_project
def test_readme_example():
    assert doctest.testfile(str(ROOT / "README.md"), module_relative=False).failed == 0


@needs_project
def test_readme_links():
    for text in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", text.read_text()):
            assert (ROOT / target).exists(), f"{text.name} links to {target}"
