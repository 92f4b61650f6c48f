"""tune: what was measured decides, is remembered, and no fault of the file does harm."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastconv as fc
from fastconv import _plan, _tuned

PROBLEM = fc.ConvProblem.from_args("t", (1, 4, 12, 12), (8, 4, 3, 3), "float32", padding=1)
KEY_PARTS = ("forward", "unpacked", "reference")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache folder of this test's own, and nothing remembered in the process."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_tuned, "_here", {})
    monkeypatch.setattr(_tuned, "_filed", None)
    _plan.known_plans.clear()
    yield tmp_path / "cache"
    _plan.known_plans.clear()


def forget(monkeypatch):
    """As a new process starts."""
    monkeypatch.setattr(_tuned, "_here", {})
    monkeypatch.setattr(_tuned, "_filed", None)


def times_for(problem, winner):
    """A measurement in which ``winner`` is the fastest."""
    key = _plan._tuned_key(problem, "forward", False, fc._backends.kernels("reference"))
    names = [name for name in _plan.AUTOMATIC if _plan.ALGORITHMS[name].refusal(problem, "forward") is None]
    return key, {name: 10.0 if name == winner else 20.0 for name in names}


def test_tune_measures_every_algorithm_and_keeps_the_fastest(engine, folder, monkeypatch):
    plan = fc.tune(PROBLEM, seconds=0.001)
    (machine,) = (data := json.loads((folder / "tuned.json").read_text())["machines"])
    ((key, times),) = data[machine].items()
    assert fc.__version__ in machine and engine.backend in key and (engine.isa or "-") in key
    assert set(times) == {name for name in _plan.AUTOMATIC if not _plan.ALGORITHMS[name].refusal(PROBLEM, "forward")}
    assert plan.algorithm == min(times, key=times.get)
    assert "measured" in plan.explain()
    forget(monkeypatch)
    again = fc.plan_conv2d(PROBLEM)
    assert again.algorithm == plan.algorithm and "measured" in again.explain()


@pytest.mark.parametrize("winner", ["direct", "im2col"])
def test_what_was_measured_decides_for_public_calls_too(folder, winner):
    x, w = np.ones((1, 4, 12, 12), "float32"), np.ones((8, 4, 3, 3), "float32")
    with fc.config(backend="reference"):
        fc.conv2d(x, w, np.ones(8, "float32"), padding=1, activation="relu")
        _tuned.remember(*times_for(PROBLEM, winner))
        _plan.known_plans.clear()
        fc.conv2d(x, w, np.ones(8, "float32"), padding=1, activation="relu")  # bias and ReLU make no difference
        (plan,) = _plan.known_plans.values()
    assert plan.algorithm == winner


def test_tuning_makes_kept_plans_stale(folder):
    x, w = np.ones((1, 4, 12, 12), "float32"), np.ones((8, 4, 3, 3), "float32")
    with fc.config(backend="reference"):
        fc.conv2d(x, w, padding=1)
        assert _plan.known_plans
        fc.tune(PROBLEM, seconds=0.001)
        assert not _plan.known_plans


@pytest.mark.parametrize("op", ["grad_input", "grad_weight"])
def test_gradients_and_packed_weights_are_tuned_apart(folder, op):
    with fc.config(backend="reference"):
        assert fc.tune(PROBLEM, op=op, seconds=0.001).op == op
        assert fc.tune(PROBLEM, packed=True, seconds=0.001).packed
    ((_, entries),) = json.loads((folder / "tuned.json").read_text())["machines"].items()
    assert sorted(" ".join(key.split()[:2]) for key in entries) == sorted([f"{op} unpacked", "forward packed"])


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1, "machines": 3}', '{"format": 99}', "\x00\xff", '{"format": 1}', "[" * 10**5],
)
def test_a_corrupt_file_is_survived_and_replaced(folder, text, monkeypatch):
    folder.mkdir()
    (folder / "tuned.json").write_text(text, encoding="latin-1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fc.plan_conv2d(PROBLEM, backend="reference").algorithm in _plan.ALGORITHMS
        key, times = times_for(PROBLEM, "direct")
        _tuned.remember(key, times)
    forget(monkeypatch)
    assert _tuned.lookup(key) == times


def test_entries_of_a_wrong_form_are_not_believed(folder):
    key, _ = times_for(PROBLEM, "direct")
    folder.mkdir()
    no_times = ({"direct": number} for number in (True, 0, -5, np.nan, np.inf, 10**400))
    for wrong in (3, [], {}, {"direct": "fast"}, *no_times):
        _tuned._filed = None
        data = {"format": 1, "machines": {_tuned.machine(): {key: wrong}}}
        (folder / "tuned.json").write_text(json.dumps(data))
        assert _tuned.lookup(key) is None, wrong
    assert "measured" not in fc.plan_conv2d(PROBLEM, backend="reference").explain()


def test_an_algorithm_that_was_not_measured_makes_the_entry_void(folder):
    key, times = times_for(PROBLEM, "direct")
    del times["im2col"]
    _tuned.remember(key, times)
    assert "measured" not in fc.plan_conv2d(PROBLEM, backend="reference").explain()


def test_another_cpu_or_version_is_not_believed(folder, monkeypatch):
    key, times = times_for(PROBLEM, "direct")
    _tuned.remember(key, times)
    forget(monkeypatch)
    monkeypatch.setattr(_tuned, "machine", lambda: "another one")
    assert _tuned.lookup(key) is None


def test_a_folder_that_cannot_be_written(tmp_path, folder, monkeypatch):
    """Root may write anywhere, so a file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be written"), fc.config(backend="reference"):
        plan = fc.tune(PROBLEM, seconds=0.001)
    assert "measured" in plan.explain(), "this process remembers all the same"


def test_a_user_without_a_home(monkeypatch, tmp_path, folder):
    """As in containers that run under any number: calls work all the same, and nothing is written into a folder "~"."""
    monkeypatch.delenv("FASTCONV_CACHE_DIR")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which its specification says to ignore
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="there is no home folder"), fc.config(backend="reference"):
        plan = fc.tune(PROBLEM, seconds=0.001)
    assert "measured" in plan.explain() and not list(tmp_path.iterdir())


def test_two_writers_lose_nothing(folder):
    code = (
        "import sys\nfrom fastconv import _tuned\n"
        "for i in range(25): _tuned.remember(f'{sys.argv[1]}-{i}', {'direct': 1.0})\n"
    )
    environment = {**os.environ, "FASTCONV_CACHE_DIR": str(folder)}
    writers = [subprocess.Popen([sys.executable, "-c", code, name], env=environment) for name in ("a", "b")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    ((_, entries),) = json.loads((folder / "tuned.json").read_text())["machines"].items()
    assert sorted(entries) == sorted(f"{name}-{i}" for name in ("a", "b") for i in range(25))
    assert {path.name for path in folder.iterdir()} == {"tuned.json", "tuned.lock"}


def test_where_the_file_is(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTCONV_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _tuned.path() == tmp_path / "fastconv" / "tuned.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _tuned.path() == tmp_path / "home" / ".cache" / "fastconv" / "tuned.json"
