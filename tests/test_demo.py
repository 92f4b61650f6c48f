"""The command line and the demo: what it prints, what it draws, what it says about a bad request."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastconv
from fastconv import _demo
from fastconv.cli import main


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    """What is timed runs a few times, not for a third of a second: no test looks at a time."""
    monkeypatch.setattr(_demo.seconds, "__defaults__", (0.01,))


@pytest.fixture
def photo(tmp_path):
    """A small photograph in a file: SciPy's part of the demo takes seconds on a large one."""
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: the demo cannot read files")
    path = tmp_path / "photo.png"
    image.fromarray(_demo.load_photo().image[40:63, 60:95]).save(path)  # odd extents: 23 x 35
    return path


def run(capsys, *arguments):
    """Exit code, output and error output of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# ----------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize("backend", fastconv.available_backends())
def test_table(capsys, photo, tmp_path, backend):
    code, out, err = run(capsys, "demo", photo, "--backend", backend, "--out", tmp_path / "made")
    assert (code, err) == (0, "")
    shapes = ("(1, 32, 23, 35)", "(1, 32, 23, 35)", "(1, 32, 11, 17)", "(1, 64, 11, 17)")
    for step, shape in zip(_demo.STEPS, shapes, strict=True):
        (line,) = re.findall(rf"^  {re.escape(step)} +{re.escape(shape)} .*$", out, re.MULTILINE)
        assert re.search(r"float32 +[\d.e+]+ (s|ms|us)( +[\d.e+-]+x){2}( +[\d.]+e-\d\d){2}$", line), line
    assert re.findall(r"^back end (\w+)", out, re.MULTILINE) == [backend]
    assert "vs SciPy" in out and "vs NumPy im2col" in out and "keeps its bound" in out


def test_all_backends_and_the_shipped_photo(capsys, tmp_path, monkeypatch):
    shipped = _demo.load_photo()
    assert shipped.image.dtype == np.uint8 and shipped.image.shape == (176, 264, 3)
    small = _demo.Photo(shipped.image[:32, :32], shipped.title, shipped.source, shipped.licence)
    monkeypatch.setattr(_demo, "load_photo", lambda path: small)
    code, out, _ = run(capsys, "demo", "--out", tmp_path)
    assert code == 0
    assert re.findall(r"^back end (\w+)", out, re.MULTILINE) == list(fastconv.available_backends())
    assert "Rachel Michetti" in out and "CC0" in out


def test_picture(capsys, photo, tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demo draws nothing")
    code, out, _ = run(capsys, "demo", photo, "--backend", "reference", "--out", tmp_path / "a" / "b")
    target = tmp_path / "a" / "b" / "anatomy.png"
    assert code == 0 and f"picture: {target}" in out
    with image.open(target) as picture:
        assert picture.format == "PNG" and min(picture.size) > 1000


def test_picture_says_what_is_computed():
    """Every text of the picture is there, and the numbers worked by hand add up to the convolution's result."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: the demo draws nothing")
    from fastconv import _anatomy

    shipped, weights = _demo.load_photo(), _demo.make_weights()
    x = fastconv.from_images(shipped.image)
    figure = _anatomy.draw(shipped, weights, x, "reference")
    text = "\n".join(piece.get_text() for piece in figure.texts)
    for word in ("red plane", "kernel\nfor G", "the sum + bias", "after ReLU", "after pooling", "(1, 32, 88, 132)"):
        assert word in text
    sums = [float(value) for value in re.findall(r"adds up to ([+-][\d.]+)", text)]
    row, column = map(int, re.search(r"row (\d+), column (\d+)", text).groups())
    exact = fastconv.conv2d(x, weights.weight1, weights.bias1, padding=1, backend="reference")[0, 0, row, column]
    assert len(sums) == 3 and abs(sum(sums) - exact) < 2e-3
    assert f": {exact:+.3f}" in text


def test_peers_agree():
    """SciPy's steps and plain NumPy's are the same function; without SciPy the latter are the check."""
    weights, x = _demo.make_weights(), np.random.default_rng(1).random((1, 3, 9, 12))
    ours = _demo.chain(_demo.numpy_steps(weights, np.float64), x)
    theirs = _demo.chain(_demo.scipy_steps(weights, np.float64), x)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step", range(4))
def test_a_wrong_result_is_seen(step):
    """An error of 1 in 1000 of one element is outside the bound, in every step."""
    weights = _demo.make_weights()
    x = np.random.default_rng(1).random((1, 3, 8, 10)).astype(np.float32)
    exact = _demo.chain(_demo.numpy_steps(weights, np.float64), x.astype(np.float64))
    bounds = _demo.error_bounds(weights, x.astype(np.float64), exact)
    rows, _ = _demo.measure("reference", weights, x, exact, bounds)
    assert [row.within for row in rows] == [True] * 4
    largest = np.unravel_index(exact[step].argmax(), exact[step].shape)
    exact[step][largest] *= 1.001
    rows, _ = _demo.measure("reference", weights, x, exact, bounds)
    assert [row.within for row in rows] == [other != step for other in range(4)]


def test_large_photographs_are_reduced(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: the demo cannot read files")
    path = tmp_path / "large.jpg"
    image.new("L", (1600, 400), 128).save(path)
    photo = _demo.load_photo(path)
    assert photo.image.shape == (128, 512, 3)
    assert "1600 x 400 pixels, reduced to 512 x 128" in photo.source


def test_weights_are_fixed():
    first, second = _demo.make_weights(), _demo.make_weights()
    assert first.weight1.shape == (32, 3, 3, 3) and first.weight2.shape == (64, 32, 3, 3)
    np.testing.assert_array_equal(first.weight1, second.weight1)
    np.testing.assert_array_equal(first.weight2, second.weight2)
    assert first.names.count("random") == 32 - len(_demo.MADE)


def test_info(capsys):
    code, out, _ = run(capsys, "info")
    assert code == 0 and out.startswith(f"fastconv {fastconv.__version__}\n") and "reference" in out


def test_module_is_the_command():
    command = [sys.executable, "-m", "fastconv", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"fastconv {fastconv.__version__}\n"


# ---------------------------------------------------------------------------------------- what it says instead


def test_bad_files(capsys, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: the demo cannot read files")
    broken, tiny = tmp_path / "broken.jpg", tmp_path / "tiny.png"
    broken.write_bytes(b"\xff\xd8 this is no photograph")
    image.new("RGB", (3, 9)).save(tiny)
    for path, reason in (
        (tmp_path / "none.png", "there is no such file"),
        (tmp_path, "there is no such file"),
        (broken, "cannot identify image file"),
        (tiny, "3 x 9 pixels"),
    ):
        code, out, err = run(capsys, "demo", path, "--out", tmp_path / "unmade")
        assert (code, out) == (2, "")
        assert err.startswith("fastconv demo: cannot ") and str(path) in err and reason in err and err.count("\n") == 1
    assert not (tmp_path / "unmade").exists()


def test_bad_folder(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    code, out, err = run(capsys, "demo", "--out", file)
    assert (
        (code, out) == (2, "") and err.startswith(f"fastconv demo: cannot write into {file}") and err.count("\n") == 1
    )


def test_bad_backend(capsys, tmp_path, monkeypatch):
    code, _, err = run(capsys, "demo", "--backend", "fortran")
    assert code == 2 and "invalid choice: 'fortran'" in err
    monkeypatch.setattr(fastconv._backends, "_numba_refusal", lambda: "numba is not installed")
    code, out, err = run(capsys, "demo", "--backend", "numba", "--out", tmp_path)
    assert (code, out) == (2, "") and err == "fastconv demo: backend 'numba': numba is not installed\n"


@pytest.mark.parametrize(("name", "commands"), [("MAX_ISA", 2), ("NUM_THREADS", 2), ("BACKEND", 1)])
def test_bad_environment(tmp_path, name, commands):
    """One line, not a traceback. (The demo names its back ends itself: FASTCONV_BACKEND says nothing to it.)"""
    for command in (["info"], ["demo", "--out", str(tmp_path / "unmade")])[:commands]:
        done = subprocess.run(
            [sys.executable, "-m", "fastconv", *command],
            capture_output=True,
            text=True,
            env={**os.environ, f"FASTCONV_{name}": "foo"},
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert (
            done.stderr.startswith(f"fastconv {command[0]}: FASTCONV_{name} is 'foo'") and done.stderr.count("\n") == 1
        )
    assert not (tmp_path / "unmade").exists()


def without(monkeypatch, library):
    """Make ``import library`` fail, also for a module of ours that has imported it before."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "fastconv._anatomy", raising=False)
    monkeypatch.delattr(fastconv, "_anatomy", raising=False)


def test_without_matplotlib(capsys, photo, tmp_path, monkeypatch):
    without(monkeypatch, "matplotlib")
    code, out, _ = run(capsys, "demo", photo, "--backend", "reference", "--out", tmp_path)
    assert code == 0 and "anatomy.png is not drawn: matplotlib is not installed" in out
    assert not (tmp_path / "anatomy.png").exists()


def test_without_scipy(capsys, photo, tmp_path, monkeypatch):
    without(monkeypatch, "scipy")
    code, out, _ = run(capsys, "demo", photo, "--backend", "reference", "--out", tmp_path)
    assert code == 0 and "SciPy is not installed" in out
    assert "vs NumPy im2col" in out and "vs SciPy" not in out


def test_without_pillow(capsys, photo, monkeypatch):
    without(monkeypatch, "PIL")
    code, _, err = run(capsys, "demo", photo)
    assert code == 2 and "that needs Pillow (pip install 'fastconv[viz]')" in err and err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "fastconv", "info"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == "" and done.returncode == 141
