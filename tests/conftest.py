"""What every test shares: the engines (back end x ISA), element types, guarded kernel calls, hypothesis' profile."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from fastconv import _backends, _warmup

# The same examples in every run, and no clock: a slow machine must not fail a test.
settings.register_profile(
    "fastconv",
    derandomize=True,
    deadline=None,
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastconv")


def pytest_configure(config):
    # What the user tuned must not choose the plans under test
    folder = tempfile.TemporaryDirectory(prefix="fastconv-test-cache-")
    config.add_cleanup(folder.cleanup)
    os.environ["FASTCONV_CACHE_DIR"] = folder.name
    config.addinivalue_line("markers", "slow: builds or starts something large; part of the gate all the same")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """Before several workers run the whole suite, the Numba kernels, which each of them would compile for itself."""
    config = session.config
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.keyword
    compiled = _backends.refusal("numba") is None and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")
    if whole and compiled and getattr(config.option, "numprocesses", None):
        with suppress(_warmup.WarmupError):  # no folder for them
            _warmup.run(everything=True)


CANARY = 64  # guard elements on each side of an array that a kernel writes

ENGINES = ("reference", "numba", *(f"cython-{isa}" for isa in _backends.ISAS))


class Guarded:
    """An array for a kernel to write: full of NaN (or of a wild index), with guard elements around it."""

    def __init__(self, shape, dtype, fill=None):
        dtype = np.dtype(dtype)
        self._fill = dtype.type(np.nan if dtype.kind == "f" else -(2**40)) if fill is None else dtype.type(fill)
        size = int(np.prod(shape, dtype=np.int64))
        ahead = 64 // dtype.itemsize
        raw = np.full(size + 2 * CANARY + ahead, self._fill, dtype=dtype)
        shift = -raw.ctypes.data % 64 // dtype.itemsize
        self._raw = raw[shift : shift + size + 2 * CANARY]
        self.array = self._raw[CANARY : CANARY + size].reshape(shape)

    def check(self, what):
        """Fail if a cell outside the array has been written."""
        edges = np.concatenate([self._raw[:CANARY], self._raw[self._raw.size - CANARY :]])
        same = np.isnan(edges) if np.isnan(self._fill) else edges == self._fill
        assert same.all(), f"{what}: wrote outside its array"


class Engine:
    """One back end, for "cython" at one ISA level."""

    def __init__(self, name):
        self.name = name
        self.backend, _, isa = name.partition("-")
        self.isa = isa or None

    def __repr__(self):
        return self.name

    @property
    def refusal(self):
        return _backends.refusal(self.backend, self.isa)

    @property
    def k(self):
        return _backends.kernels(self.backend, self.isa)

    def config(self, **more):
        """The public settings that make a call run on this engine."""
        return _backends.config(backend=self.backend, isa=self.isa, **more)

    def run(self, stem, kernel, *arrays, geometry, n_threads=1):
        """Call one kernel with a poisoned, guarded workspace of just the size it asks for."""
        dtype = next(array.dtype for array in arrays if getattr(array, "dtype", np.dtype(bool)).kind == "f")
        workspace = Guarded((self.k.workspace(stem, kernel, geometry, n_threads),), dtype)
        what = f"{self.name} {stem}.{kernel}"
        result = getattr(getattr(self.k, stem), kernel)(*arrays, workspace.array, geometry, n_threads)
        assert result is None, f"{what}: returned {result!r}"
        workspace.check(f"{what}: workspace")


def runnable():
    """Names of the engines that can run here."""
    return tuple(name for name in ENGINES if Engine(name).refusal is None)


@pytest.fixture(params=ENGINES)
def engine(request):
    """Every back end x ISA; the public API runs on it while the test does."""
    chosen = Engine(request.param)
    if chosen.refusal:
        pytest.skip(f"{chosen.name}: {chosen.refusal}")
    with chosen.config():
        yield chosen


@pytest.fixture(params=("float32", "float64"))
def dtype(request):
    """Both element types, for tests that are cheap enough to run twice."""
    return request.param


@pytest.fixture
def rng():
    return np.random.default_rng(20240607)
