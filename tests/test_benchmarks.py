"""The benchmarks themselves: shapes against known totals, every asv class and the commands run once on small shapes."""

import importlib
import inspect
import itertools
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "shapes.py").is_file():
    pytest.skip("the benchmarks folder is not here", allow_module_level=True)
if str(ROOT) not in sys.path:  # an installed fastconv is tested, the benchmarks lie beside these tests
    sys.path.append(str(ROOT))

from benchmarks import _common, shapes  # noqa: E402
from benchmarks.peers import case as peers_case  # noqa: E402
from benchmarks.peers import contestants, report  # noqa: E402
from fastconv import _backends  # noqa: E402

KINDS = ("time_", "timeraw_", "peakmem_", "track_")
FILES = sorted(path.stem for path in (ROOT / "benchmarks").glob("bench_*.py"))


@pytest.mark.parametrize("network", shapes.NETWORKS)
def test_multiply_adds_are_those_known(network):
    total = sum(shape.macs * shape.count for shape in shapes.network(network))
    assert total == pytest.approx(shapes.TOTALS[network], rel=0.003)


def test_layer_counts():
    count = {name: sum(s.count for s in shapes.network(name) if s.kernel) for name in shapes.NETWORKS}
    assert count == {"alexnet": 5, "zfnet": 5, "vgg16": 13, "resnet50": 53, "mobilenetv2": 52}


def test_names_are_unique_and_every_class_has_a_smoke_shape():
    every = (*shapes.SHAPES, *shapes.SMOKE)
    assert len({shape.name for shape in every}) == len(every)
    used = {shape.layer_class for shape in shapes.SHAPES}
    assert used == set(shapes.CLASSES)
    assert used - {"1x1s2"} == {shape.layer_class for shape in shapes.SMOKE}
    for name in (*_common.CONVS, *_common.POOLS):
        _common.get(name)


def test_extents_follow_from_layer_to_layer():
    """What one layer of VGG-16 and AlexNet gives is what the next takes."""
    for network in ("alexnet", "vgg16", "zfnet"):
        for before, after in itertools.pairwise(shapes.network(network)):
            assert before.output_shape == after.input_shape, (before.name, after.name)


def asv_classes():
    return list(_asv_classes())


def _asv_classes():
    for file in FILES:
        module = importlib.import_module(f"benchmarks.{file}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and not name.startswith("_"):
                yield pytest.param(cls, id=f"{file}.{name}")


def small(params, names):
    """The combinations with small shapes on one thread."""
    for values in itertools.product(*params):
        given = dict(zip(names, values, strict=True))
        if given.get("threads", 1) == 1 and given.get("shape", "smoke").startswith("smoke"):
            yield values


@pytest.mark.parametrize("cls", asv_classes())
def test_asv_class_runs(cls, monkeypatch):
    """Every benchmark method of every asv class, on the smoke shapes and one thread."""
    import fastconv

    before = fastconv.get_num_threads()
    methods = [name for name in dir(cls) if name.startswith(KINDS)]
    assert methods, "no benchmark in it"
    ran = 0
    try:
        for values in small(getattr(cls, "params", ()), getattr(cls, "param_names", ())):
            for name in methods:
                instance = cls()
                try:
                    if hasattr(instance, "setup"):
                        instance.setup(*values)
                except NotImplementedError:  # asv's way to skip what cannot run here
                    continue
                result = getattr(instance, name)(*values)
                if hasattr(instance, "teardown"):
                    instance.teardown(*values)
                if name.startswith("timeraw_"):
                    code = result if isinstance(result, str) else "\n".join(reversed(result))
                    compile(code, name, "exec")
                ran += 1
    finally:
        fastconv.set_num_threads(before)
    assert ran, "every combination was skipped"


def test_first_call_code_runs():
    from benchmarks import bench_import

    code = bench_import.FirstCall().timeraw_first_call("reference")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=ROOT)


def test_back_end_is_the_first_parameter():
    for param in asv_classes():
        (cls,) = param.values
        if hasattr(cls, "params"):
            assert cls.param_names[0] == "backend", cls
            assert cls.params[0] in (_common.BACKENDS, _common.KERNELS), cls


def test_third_parties_are_imported_inside_functions():
    """asv imports the whole folder: no module of it may need more than fastconv, NumPy and the standard library."""
    allowed = set(sys.stdlib_module_names) | {"numpy", "fastconv", "benchmarks"}
    for _, name, _ in pkgutil.walk_packages([str(ROOT / "benchmarks")], "benchmarks."):
        for value in vars(importlib.import_module(name)).values():
            if isinstance(value, types.ModuleType):
                assert value.__name__.partition(".")[0] in allowed, (name, value)


def test_terminal_table(capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    from benchmarks import __main__

    assert __main__.main(["--shape", "smoke", "--backend", "reference", "--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for shape in shapes.SMOKE:
        assert any(line.startswith(shape.name + " ") for line in lines)
    assert __main__.main(["--shape", "smoke.none"]) == 2
    assert "it must be a name of" in capsys.readouterr().err


@pytest.mark.parametrize("shape", shapes.SMOKE, ids=lambda shape: shape.name)
def test_expected_results_of_the_two_sources_agree(shape):
    pytest.importorskip("torch", reason="torch is not installed")
    case = peers_case.Case.of(shape)
    exact, source = peers_case.expected(case)
    assert source.startswith("torch")
    assert peers_case.error(peers_case._expected_by_reference(case), exact) < 1e-13
    shifted = tuple(array + 1 for array in exact)
    assert peers_case.error(shifted, exact) > peers_case.TOLERANCE


def test_race_of_fastconv_with_itself(tmp_path, capsys):
    """The whole way of benchmarks.peers, with contestants that are always there."""
    import json

    from benchmarks.peers import __main__

    files = [str(tmp_path / name) for name in ("race.json", "race.md")]
    code = __main__.main(
        ["--shape", "smoke.3x3", "smoke.maxpool", "--quick", "--seconds", "0.001"]
        + ["--peers", "fastconv-cython", "fastconv-numba", "memcpy", "--json", files[0], "--markdown", files[1]]
    )
    assert code == 0
    (race,) = json.loads(Path(files[0]).read_text())["races"]
    ours = [name for name in ("fastconv-cython", "fastconv-numba") if name in race["versions"]]
    for row in race["rows"]:
        for name in ours:
            assert row["results"][name]["best"] > 0, row
            assert row["results"][name]["error"] < 1e-5
    assert "### 3x3, stride 1" in Path(files[1]).read_text()
    assert __main__.main(["--threads", "4096"]) == 2


@pytest.mark.parametrize("shape", shapes.TRAINING_SMOKE, ids=lambda shape: shape.name)
def test_expected_gradients_of_the_two_sources_agree(shape):
    pytest.importorskip("torch", reason="torch is not installed")
    case = peers_case.Case.of(shape)
    exact, source = peers_case.expected(case)
    assert source.startswith("torch")
    assert peers_case.error(peers_case._expected_by_reference(case), exact) < 1e-10


def test_training_shapes():
    every = (*shapes.SHAPES, *shapes.SMOKE, *shapes.TRAINING, *shapes.TRAINING_SMOKE)
    assert len({shape.name for shape in every}) == len(every)
    assert {shape.layer_class for shape in shapes.TRAINING} == set(shapes.TRAINING_CLASSES)
    filters, size, channels, macs = peers_case.VGG16, 64, 3, 0
    for each in filters:
        size, channels, macs = (
            (size, each, macs + size**2 * each * channels * 9) if each else (size // 2, channels, macs)
        )
    assert shapes.STEPS["vgg16"] == macs + 2048 * 10


def test_race_of_a_step(tmp_path):
    import json

    from benchmarks.peers import __main__

    peers = ["fastconv-cython", "fastconv-cython-unpacked"]
    file = tmp_path / "race.json"
    assert (
        __main__.main(["--shape", "tiny", "--quick", "--seconds", "0.001", "--peers", *peers, "--json", str(file)]) == 0
    )
    (race,) = json.loads(file.read_text())["races"]
    assert [row["name"] for row in race["rows"]] == [shape.name for shape in shapes.TRAINING_SMOKE]
    for row in race["rows"]:
        assert "fastconv-cython" not in race["versions"] or row["results"]["fastconv-cython"]["best"] > 0, row


def test_report_arithmetic():
    """Sums with multiplicity, the oracle, ratios and geometric means, on figures that can be checked by hand."""
    name = {"a": "resnet50.layer1.conv", "b": "resnet50.layer2.conv"}
    rows = [
        {
            "name": name[key], "text": key, "class": "3x3", "network": "resnet50", "count": 3, "work": 2e9,
            "expected_by": "-",
            "results": {
                peer: {"best": time, "median": time, "calls": 1, "note": "-"}
                for peer, time in zip(("fastconv-cython", "torch", "ncnn"), times, strict=True)
            },
        }
        for key, times in {"a": (0.01, 0.02, 0.04), "b": (0.02, 0.08, 0.02)}.items()
    ]  # fmt: skip
    race = {"versions": dict.fromkeys(("fastconv-cython", "torch", "ncnn"), "1"), "absent": {}, "rows": rows}
    assert report.rate(rows[0], "torch") == pytest.approx(100)
    assert report.best_peer(rows[1], ["torch", "ncnn"]) == pytest.approx(100)
    text = report.network_section(race)
    assert "| resnet50, convolutions | 90.00 | 300.00 | 180.00 | 120.00 | 1.33 | - | ncnn |" in text
    section = report.class_section(race, "3x3")
    assert "| **geometric mean** | 141.4 |" in section  # sqrt(200 * 100)
    assert "| 1.41 |" in section  # against the best peer of each layer: sqrt(2 * 1)


def test_contestants_have_their_files():
    for file, _ in contestants.CONTESTANTS.values():
        assert callable(importlib.import_module(f"benchmarks.peers.{file}").load)


def test_offline_pages_turn_known_links_alone():
    from benchmarks import offline_pages

    page = (
        '<script src="https://code.jquery.com/jquery-3.3.1.min.js" integrity="sha256-x"></script>'
        '<script src="asv.js"></script><a href="https://github.com/airspeed-velocity/asv/">asv</a>'
    )
    turned, wanted = offline_pages.localise(page)
    assert wanted == ["jquery-3.3.1.min.js"]
    assert turned == page.replace(
        'src="https://code.jquery.com/jquery-3.3.1.min.js" integrity="sha256-x"', 'src="vendor/jquery-3.3.1.min.js"'
    )


def test_offline_pages_without_pages(tmp_path, capsys):
    from benchmarks import offline_pages

    assert offline_pages.main([str(tmp_path)]) == 2
    assert "run asv publish first" in capsys.readouterr().err


def test_parity(capsys):
    from benchmarks import parity

    if _backends.refusal("numba") or _backends.refusal("cython"):
        pytest.skip("parity compares the two compiled back ends, and one of them does not run here")
    wanted = ["grad_weight im2col", "max_pool2d"]
    assert parity.main(["--shape", "smoke.1x1", "smoke.maxpool", "--operation", *wanted, "--seconds", "0"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows if "smoke" in row[1]] == [f"| {name}" for name in wanted]
    assert all(float(row[4].strip(" |")) > 0 for row in rows if "smoke" in row[1])
    double = ["--shape", "smoke.1x1", "--operation", wanted[0], "--seconds", "0", "--dtype", "float64"]
    assert parity.main(double) == 0
    assert "in turns, float64, batch 1" in capsys.readouterr().out
    assert parity.main(["--shape", "nothing"]) == 2
    assert "shape 'nothing': it must be a name" in capsys.readouterr().err
