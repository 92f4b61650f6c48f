"""state_dict, save and load: round trips, torch's files, damaged files, writing that is all or nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

from fastconv import _state
from fastconv._state import load, save
from fastconv.layers import BatchNorm2d, Conv2d, Flatten, Linear, LoadResult, ReLU, Residual, Sequential

ENDINGS = ("npz", "safetensors")


def net(seed=0, dtype="float32"):
    more = {"dtype": dtype, "rng": np.random.default_rng(seed)}
    body = Sequential({"conv": Conv2d(3, 3, 3, padding=1, bias=False, **more), "norm": BatchNorm2d(3, dtype=dtype)})
    return Sequential(Conv2d(1, 3, 3, **more), ReLU(), Residual(body), Flatten(), Linear(3 * 4 * 4, 2, **more))


@pytest.fixture(params=ENDINGS)
def ending(request):
    if request.param == "safetensors":
        pytest.importorskip("safetensors", reason="safetensors is not installed")
    return request.param


def assert_equal(actual, expected):
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype and actual[key].shape == value.shape, key
        np.testing.assert_array_equal(actual[key], value)


# -------------------------------------------------------------------------------------------------- state_dict


def test_state_dict_is_a_copy_and_loads_into_the_same_arrays():
    a, b = net(0), net(1)
    arrays = list(b.parameters())
    state = a.state_dict()
    assert b.load_state_dict(state) == LoadResult([], [])
    assert all(ours is kept for ours, kept in zip(b.parameters(), arrays, strict=True))
    assert_equal(b.state_dict(), state)
    a[0].weight[...] = 0
    assert state["0.weight"].any() and b[0].weight.any()


def test_floats_of_another_width_are_converted():
    a, b = net(0, "float64"), net(1, "float32")
    b.load_state_dict(a.state_dict())
    np.testing.assert_array_equal(b[0].weight, a[0].weight.astype(np.float32))
    assert b[0].weight.dtype == np.float32
    b.load_state_dict({key: value.astype(">f8") if value.ndim else value for key, value in a.state_dict().items()})
    assert b[0].weight.dtype == np.float32 and b[0].weight.dtype.isnative


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("4.bias"), ValueError, "Sequential.load_state_dict: key '4.bias' is missing"),
        (lambda s: s.update(extra=1), ValueError, "Sequential.load_state_dict: key 'extra' is unexpected"),
        (
            lambda s: s.update({"0.weight": np.zeros((3, 1, 5, 5))}),
            ValueError,
            r"'0.weight' has shape \(3, 1, 5, 5\), it must be \(3, 1, 3, 3\)",
        ),
        (lambda s: s.update({"0.bias": np.array("abc")}), TypeError, "'0.bias' has dtype <U3"),
        (lambda s: s.update({"0.bias": np.zeros(3, complex)}), TypeError, "'0.bias' has dtype complex128"),
        (lambda s: s.update({"2.body.norm.num_batches_tracked": 0.5}), TypeError, "must hold int64 numbers"),
        (lambda s: s.update({"0.bias": [[1], [2, 3]]}), TypeError, "'0.bias' cannot become an array"),
        (
            lambda s: [s.update({f"{key}x": s.pop(key)}) for key in list(s)],
            ValueError,
            "key '0.weight' is missing; .* more$",
        ),
    ],
)
def test_a_wrong_state_is_named_and_changes_nothing(change, error, message):
    mine = net(0)
    before = mine.state_dict()
    state = net(1).state_dict()
    change(state)
    with pytest.raises(error, match=message) as caught:
        mine.load_state_dict(state)
    assert "\n" not in str(caught.value)
    assert_equal(mine.state_dict(), before)


def test_not_strict_takes_what_fits():
    mine = net(0)
    state = net(1).state_dict()
    del state["4.bias"]
    state["head.weight"] = np.zeros(3)
    kept = mine[4].bias.copy()
    assert mine.load_state_dict(state, strict=False) == (["4.bias"], ["head.weight"])
    np.testing.assert_array_equal(mine[4].bias, kept)
    np.testing.assert_array_equal(mine[0].weight, state["0.weight"])
    with pytest.raises(TypeError, match="state_dict is a list"):
        mine.load_state_dict([])
    with pytest.raises(ValueError, match="shape"):  # a shape that differs is never a detail
        mine.load_state_dict({"4.bias": np.zeros(7)}, strict=False)


# ----------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, ending, dtype):
    path = tmp_path / f"net.{ending}"
    mine = net(0, dtype)
    mine(np.ones((2, 1, 6, 6), dtype))  # moves the running statistics
    save(mine, path)
    assert_equal(dict(sorted(load(path).items())), dict(sorted(mine.state_dict().items())))
    other = net(1, dtype).eval()
    other.load_state_dict(load(str(path)))
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 6)).astype(dtype)
    np.testing.assert_array_equal(other(x), mine.eval()(x))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert load(path)["0.weight"].flags.writeable


def test_dictionaries_of_any_names_and_arrays(tmp_path, ending):
    arrays = {
        "file": np.arange(3),
        "a/b.c": np.zeros((0, 2), np.float32),
        "scalar": np.array(5, np.int64),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "big-endian": np.arange(3, dtype=">f8"),
        "bits": np.array([True, False]),
        "Maß": np.ones(1, np.uint8),
    }
    path = tmp_path / f"any.{ending}"
    save(arrays, path)
    found = load(path)
    assert set(found) == set(arrays)
    for key, value in arrays.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].shape == value.shape
        assert found[key].dtype == value.dtype.newbyteorder("=")


def test_npz_is_numpys(tmp_path):
    state = net().state_dict()
    save(state, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as found:
        assert_equal(dict(found), state)
    np.savez(tmp_path / "plain.npz", **state)
    np.savez_compressed(tmp_path / "small.npz", **state)
    assert_equal(load(tmp_path / "plain.npz"), state)
    assert_equal(load(tmp_path / "small.npz"), state)
    save(state, tmp_path / "again.npz")
    assert (tmp_path / "ours.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()


def test_safetensors_are_torchs(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    twin = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3))
    files.save_file(twin.state_dict(), tmp_path / "torch.safetensors")
    mine = Sequential(Conv2d(1, 3, 3), BatchNorm2d(3))
    mine.load_state_dict(load(tmp_path / "torch.safetensors"))
    np.testing.assert_array_equal(mine[0].weight, twin[0].weight.detach().numpy())
    mine[0].bias[...] = 7
    save(mine, tmp_path / "ours.safetensors")
    twin.load_state_dict(files.load_file(tmp_path / "ours.safetensors"))
    assert (twin[0].bias == 7).all()


def test_numbers_that_numpy_or_the_format_has_not(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    files = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    files.save_file({"a": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"load: .*half\.safetensors: .*numbers of type BF16"):
        load(tmp_path / "half.safetensors")
    if np.dtype(np.longdouble).itemsize > 8:
        with pytest.raises(ValueError, match=r"save: .*long\.safetensors: "):
            save({"a": np.ones(3, np.longdouble)}, tmp_path / "long.safetensors")


def test_torchs_tensors_load_directly():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    twin = torch.nn.Linear(3, 2)
    mine = Linear(3, 2)
    mine.load_state_dict(twin.state_dict())
    np.testing.assert_array_equal(mine.weight, twin.weight.detach().numpy())
    mine.load_state_dict({key: value.half() for key, value in twin.state_dict().items()})
    with pytest.raises(TypeError, match="'weight' cannot become an array: .*requires grad"):
        mine.load_state_dict(dict(twin.named_parameters()))
    with pytest.raises(TypeError, match="'weight' cannot become an array"):
        mine.load_state_dict({key: value.bfloat16() for key, value in twin.state_dict().items()})


# --------------------------------------------------------------------------------------------- damaged files


def test_every_damage_is_one_valueerror_that_names_the_file(tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    save(net(), path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    damaged = [b"", b"\0" * 100, b"PK\3\4", whole[:-1], whole[: len(whole) // 2], whole[:7], whole[1:]]
    damaged += [generator.bytes(300), b"text, no arrays\n" * 9]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"load: .*net\.{ending}: damaged, or no .{ending} file") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_a_flipped_byte_never_goes_beyond_valueerror(tmp_path, ending):
    """Anywhere in the file. In .npz it is always found; .safetensors has no sums, so numbers may just differ."""
    path = tmp_path / f"net.{ending}"
    save({"a": np.arange(4.0), "b": np.ones((2, 3), np.float32)}, path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 0x55
        path.write_bytes(data)
        try:
            load(path)
        except ValueError as error:
            assert str(path) in str(error)


def test_pickles_are_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="bomb.npz: damaged"):
        load(tmp_path / "bomb.npz")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(TypeError, match="save: 'a' has dtype object"):
        save({"a": np.array([Bomb()], dtype=object)}, tmp_path / "b.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path):
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<f8", "fortran_order": False, "shape": (10**15,)})
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("a.npy", member.getvalue())
    with pytest.raises(ValueError, match="huge.npz: damaged"):
        load(tmp_path / "huge.npz")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="other.npz: .*'readme.txt', which is no array"):
        load(tmp_path / "other.npz")


def test_wrong_arguments_and_places(tmp_path):
    with pytest.raises(ValueError, match=r"save: path 'net.pt': it must end in .safetensors or .npz"):
        save(net(), "net.pt")
    with pytest.raises(ValueError, match=r"load: path 'net': it must end in"):
        load("net")
    with pytest.raises(TypeError, match="load: path is a int"):
        load(3)
    with pytest.raises(TypeError, match="save: state is a list"):
        save([1], tmp_path / "a.npz")
    with pytest.raises(ValueError, match="save: name 3: it must be a string"):
        save({3: np.ones(1)}, tmp_path / "a.npz")
    for name in ("a\0b", "\udc80"):  # zip files end a name at the first, UTF-8 does not know the second
        with pytest.raises(ValueError, match="save: name .*: no file holds null characters or halves of characters"):
            save({name: np.ones(1)}, tmp_path / "a.npz")
    with pytest.raises(TypeError, match="save: 'a' has dtype <U1"):
        save({"a": "x"}, tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.npz")
    with pytest.raises(FileNotFoundError, match="nothing was changed") as caught:
        save(net(), tmp_path / "absent" / "net.npz")
    assert caught.value.filename == str(tmp_path / "absent" / "net.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(OSError, match=r"folder\.npz"):
        load(tmp_path / "folder.npz")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.npz"]


def test_safetensors_may_be_absent(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r"pip install 'fastconv\[io\]', or use .npz"):
        save(net(), tmp_path / "net.safetensors")
    save(net(), tmp_path / "net.npz")
    load(tmp_path / "net.npz")


# ------------------------------------------------------------------------------------------- all or nothing


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_save_keeps_the_former_file(tmp_path, monkeypatch, error):
    path = tmp_path / "net.npz"
    former = net(0)
    save(former, path)
    written = []

    def failing(file, array, **options):
        written.append(file.write(b"half an array"))
        if len(written) == 3:
            raise error

    monkeypatch.setattr(np.lib.format, "write_array", failing)
    with pytest.raises(type(error)) as caught:
        save(net(1), path)
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert caught.value.errno == 28 and caught.value.filename == str(path)
        assert "No space left on device; nothing was changed" in str(caught.value)
    assert_equal(load(path), former.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.npz"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_save_keeps_the_former_file(tmp_path, ending):
    path = tmp_path / f"net.{ending}"
    former = net(0)
    save(former, path)
    program = f"""
        import os, signal
        import numpy as np
        from fastconv import _state
        os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # all is written, nothing renamed
        _state.save({{"0.weight": np.zeros(10)}}, {str(path)!r})
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert_equal(dict(sorted(load(path).items())), dict(sorted(former.state_dict().items())))
    left = [entry for entry in tmp_path.iterdir() if entry != path]
    assert len(left) == 1 and left[0].name.startswith(".net") and left[0].name.endswith(".partial")


def test_the_file_gets_the_usual_rights_and_a_link_stays_one(tmp_path):
    usual = tmp_path / "usual"
    usual.touch()
    path = tmp_path / "net.npz"
    save(net(), path)
    assert path.stat().st_mode == usual.stat().st_mode
    link = tmp_path / "link.npz"
    try:
        link.symlink_to("net.npz")
    except OSError:
        pytest.skip("no symbolic links here")
    save({"a": np.ones(1)}, link)
    assert link.is_symlink() and list(load(path)) == ["a"]


def test_two_writers_leave_one_whole_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "net.npz"
    states = [net(seed).state_dict() for seed in range(2)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(save, states[i % 2], path) for i in range(20)]
        reads = [pool.submit(_state.load, path) for _ in range(20)]
        for job in jobs:
            job.result()
        for job in reads:
            if job.exception() is None:
                assert list(job.result()) == list(states[0])
            else:
                assert isinstance(job.exception(), FileNotFoundError)
    found = load(path)["0.weight"]
    assert any(np.array_equal(found, state["0.weight"]) for state in states)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.npz"]
