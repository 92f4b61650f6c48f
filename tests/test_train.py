"""Training: losses, optimisers and schedules against torch, augmentation against SciPy, runs bit for bit."""

# ruff: noqa: E501 - a message stands on one line

from __future__ import annotations

import csv
import hashlib
import math
import os
import platform
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fastconv
import training
from fastconv import datasets, models, train
from fastconv._algorithms import elementwise

HERE = Path(__file__).resolve().parent
PACKAGE = str(Path(fastconv.__file__).resolve().parents[1])  # as installed, compiled kernels and all


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")


# ------------------------------------------------------------------------------------------------------ losses


def test_cross_entropy_is_torchs(torch, rng, dtype):
    logits, labels = (8 * rng.normal(size=(7, 5))).astype(dtype), rng.integers(0, 5, 7)
    loss, grad = train.softmax_cross_entropy(logits, labels)
    theirs = torch.tensor(logits, requires_grad=True)
    value = torch.nn.functional.cross_entropy(theirs, torch.tensor(labels))
    value.backward()
    eps = float(np.finfo(dtype).eps)
    assert loss == pytest.approx(value.item(), rel=8 * eps)
    assert grad.dtype == dtype and np.abs(grad - theirs.grad.numpy()).max() < 8 * eps


@pytest.mark.parametrize("loss", [train.softmax_cross_entropy, train.mean_squared_error])
def test_gradients_of_losses_agree_with_central_differences(loss, rng):
    output = rng.normal(size=(4, 3))
    target = np.array([2, 0, 1, 1]) if loss is train.softmax_cross_entropy else rng.normal(size=(4, 3))
    _, grad = loss(output, target)
    found = np.empty_like(output)
    for index in np.ndindex(output.shape):
        step = np.zeros_like(output)
        step[index] = 1e-6
        found[index] = (loss(output + step, target)[0] - loss(output - step, target)[0]) / 2e-6
    assert np.abs(found - grad).max() < 1e-9


def test_cross_entropy_neither_overflows_nor_hides_nan():
    loss, grad = train.softmax_cross_entropy(np.array([[-1e5, 1e5]], np.float32), [0])
    assert loss == 2e5 and grad.tolist() == [[-1, 1]]
    assert math.isnan(train.softmax_cross_entropy(np.array([[np.nan, 0.0]]), [0])[0])


def test_losses_leave_their_arguments_alone(rng):
    output, target = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    kept = output.copy()
    train.softmax_cross_entropy(output, [0, 1, 2])
    train.mean_squared_error(output, target)
    assert (output == kept).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train.softmax_cross_entropy(np.ones((2, 3)), [0, 3]), ValueError, "label 3: it must lie in 0 .. 2"),
        (lambda: train.softmax_cross_entropy(np.ones((2, 3)), [0, -1]), ValueError, "label -1: it must lie in 0 .. 2"),
        (lambda: train.softmax_cross_entropy(np.ones((2, 3)), [0]), ValueError, r"shape \(1,\): it must be \(2,\)"),
        (lambda: train.softmax_cross_entropy(np.ones((2, 3)), [0.0, 1.0]), TypeError, "labels have dtype float64"),
        (lambda: train.softmax_cross_entropy(np.ones((0, 3)), []), ValueError, r"logits have shape \(0, 3\)"),
        (lambda: train.softmax_cross_entropy(np.ones((2, 3), int), [0, 1]), TypeError, "int64"),
        (lambda: train.mean_squared_error(np.ones(3), np.ones(2)), ValueError, r"\(3,\) and target \(2,\)"),
        (lambda: train.mean_squared_error(np.ones(0), np.ones(0)), ValueError, "must not be empty"),
    ],
)
def test_errors_of_losses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# -------------------------------------------------------------------------------------------------- optimisers

OPTIMIZERS = {
    "SGD": ("SGD", {"lr": 0.1}),
    "SGD-decay": ("SGD", {"lr": 0.1, "weight_decay": 0.3}),
    "SGD-momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "SGD-nesterov": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    "Adam": ("Adam", {"lr": 0.01}),
    "Adam-decay": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    "AdamW": ("AdamW", {"lr": 0.01}),
    "AdamW-decay": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_torchs(torch, rng, name):
    """Thirty steps in float64, one parameter of several tasks, more than a thread is started for."""
    kind, options = OPTIMIZERS[name]
    ours = [rng.normal(size=(5, 3)), rng.normal(size=(elementwise.SMALL + 7,))]
    theirs = [torch.tensor(array.copy(), requires_grad=True) for array in ours]
    mine, its = getattr(train, kind)(ours, **options), getattr(torch.optim, kind)(theirs, **options)
    for step in range(30):
        gradients = [rng.normal(size=array.shape) for array in ours]
        mine.step(gradients)
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = torch.tensor(gradient)
        its.step()
        assert mine.steps == step + 1
    for array, tensor in zip(ours, theirs, strict=True):
        assert np.abs(array - tensor.detach().numpy()).max() < 2e-14


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_go_on_from_their_state(rng, name, dtype):
    kind, options = OPTIMIZERS[name]
    start = rng.normal(size=(4, 5)).astype(dtype)
    gradients = rng.normal(size=(6, 4, 5)).astype(dtype)
    whole, broken = start.copy(), start.copy()
    through = getattr(train, kind)([whole], **options)
    first = getattr(train, kind)([broken], **options)
    for gradient in gradients:
        through.step([gradient])
    for gradient in gradients[:3]:
        first.step([gradient])
    second = getattr(train, kind)([broken], **{**options, "lr": 7.0})
    second.load_state_dict(first.state_dict())
    for gradient in gradients[3:]:
        second.step([gradient])
    assert whole.dtype == dtype and whole.tobytes() == broken.tobytes() != start.tobytes()


def test_an_optimizer_of_a_network_uses_its_gradients():
    net = fastconv.Linear(2, 1, rng=0)
    before = net.state_dict()
    sgd = train.SGD(net, 0.5)
    sgd.step()  # no backward has run: nothing to follow
    assert (net.weight == before["weight"]).all()
    net(np.array([[3.0, 4.0]], np.float32))
    net.backward(np.ones((1, 1), np.float32))
    sgd.step()
    assert np.allclose(before["weight"] - net.weight, [[1.5, 2.0]])
    assert np.allclose(before["bias"] - net.bias, 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train.SGD([np.ones(2)], lr=-1), ValueError, "SGD: lr -1: it must be at least 0"),
        (lambda: train.SGD([np.ones(2)], 0.1, momentum=1.5), ValueError, "SGD: momentum 1.5: it must lie in 0 .. 1"),
        (lambda: train.SGD([np.ones(2)], 0.1, nesterov=True), ValueError, "SGD: nesterov True: it needs a momentum"),
        (lambda: train.SGD(np.ones(2), 0.1), TypeError, "net_or_params is a ndarray: it must be a Layer or a list"),
        (lambda: train.Adam([]), ValueError, "Adam: net_or_params: there are no parameters"),
        (lambda: train.Adam([np.ones(2, int)]), TypeError, "parameter '0': it must be a C-contiguous float"),
        (lambda: train.Adam([np.ones((2, 3)).T]), TypeError, "parameter '0': it must be a C-contiguous float"),
        (lambda: train.AdamW([np.ones(2)], betas=(0.9, 1.0)), ValueError, "AdamW: betas 1: it must lie in"),
        (lambda: train.AdamW([np.ones(2)], betas=0.9), ValueError, "AdamW: betas 0.9: it must be two numbers"),
        (lambda: train.SGD([np.ones(2)], 0.1).step(), ValueError, "SGD.step: gradients is None"),
        (lambda: train.SGD([np.ones(2)], 0.1).step([]), ValueError, "SGD.step: 0 gradients: there are 1 parameters"),
        (lambda: train.SGD([np.ones(2)], 0.1).step([np.ones(3)]), ValueError, r"'0' has shape \(3,\): .* \(2,\)"),
        (
            lambda: train.SGD([np.ones(2)], 0.1).load_state_dict({}),
            ValueError,
            "key 'steps' is missing; key 'lr' is missing",
        ),
    ],
)
def test_errors_of_optimizers(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_read_only_parameter_is_named_before_any_changes():
    arrays = [np.ones(2), np.ones(2)]
    sgd = train.SGD(arrays, 0.1)
    arrays[1].flags.writeable = False
    with pytest.raises(ValueError, match="SGD.step: parameter '1' is read-only"):
        sgd.step([np.ones(2), np.ones(2)])
    assert (arrays[0] == 1).all()


@pytest.mark.parametrize(("lr", "error"), [("fast", TypeError), (-1.0, ValueError), (np.nan, ValueError)])
def test_a_rate_set_by_hand_is_checked_before_anything_changes(lr, error):
    parameter = np.ones(3)
    optimizer = train.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.step([np.ones(3)])
    before, state = parameter.copy(), optimizer.state_dict()
    optimizer.lr = lr
    with pytest.raises(error, match="SGD.step: lr"):
        optimizer.step([np.ones(3)])
    assert np.array_equal(parameter, before)
    optimizer.lr = 0.1
    assert all(np.array_equal(value, state[name]) for name, value in optimizer.state_dict().items())


# ----------------------------------------------------------------------------------------- schedules, clipping


def test_schedules_are_torchs(torch):
    def theirs(make, steps, lr=0.4):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
        schedule = make(optimizer)
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    each = torch.optim.lr_scheduler
    n = 23
    cases = [
        (train.StepSchedule(0.4, 5, 0.3), theirs(lambda o: each.StepLR(o, 5, 0.3), n)),
        (train.CosineSchedule(0.4, n, 0.01), theirs(lambda o: each.CosineAnnealingLR(o, n, 0.01), n)),
        (
            train.OneCycleSchedule(0.4, n, 0.25, 10, 100),
            theirs(lambda o: each.OneCycleLR(o, 0.4, n, None, None, 0.25, "cos", False, 0.85, 0.95, 10, 100), n - 1),
        ),
    ]
    for part in (0.0, 0.03, 0.1):  # less than one step, or a little more, on the way up
        rates = theirs(lambda o: each.OneCycleLR(o, 0.1, 27, pct_start=part, cycle_momentum=False), 26)  # noqa: B023
        cases.append((train.OneCycleSchedule(0.1, 27, part), rates))
    for ours, rates in cases:
        assert [ours(step) for step in range(len(rates))] == pytest.approx(rates, rel=1e-12), ours


def test_the_ends_of_schedules():
    cycle = train.OneCycleSchedule(0.5, 10)
    assert cycle(9) == pytest.approx(0.5 / 25e4) and cycle(50) == pytest.approx(cycle(9))
    assert max(cycle(step) for step in range(10)) == pytest.approx(0.5)
    assert train.CosineSchedule(0.5, 10, 0.1)(99) == pytest.approx(0.1)
    assert 0 < train.OneCycleSchedule(0.5, 1)(0) <= 0.5
    with pytest.raises(ValueError, match="OneCycleSchedule: total_steps 0: it must be at least 1"):
        train.OneCycleSchedule(0.5, 0)


def test_clipping_is_torchs(torch, rng):
    for largest in (0.5, 1e3):
        ours = [rng.normal(size=(30, 7)), rng.normal(size=(train.clipping.BLOCK + 3,)), None]
        theirs = [torch.zeros(array.shape, dtype=torch.float64) for array in ours[:2]]
        for tensor, array in zip(theirs, ours, strict=False):
            tensor.grad = torch.tensor(array.copy())
        norm = torch.nn.utils.clip_grad_norm_(theirs, largest)
        assert train.clip_grad_norm(ours, largest) == pytest.approx(float(norm), rel=1e-13)
        for tensor, array in zip(theirs, ours, strict=False):
            assert np.allclose(array, tensor.grad.numpy(), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="clip_grad_norm: max_norm 0: it must be above 0"):
        train.clip_grad_norm([], 0)


# ------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("channels", [1, 3])
def test_affine_augmentation_is_scipys(rng, channels):
    """Each image is what scipy.ndimage makes of it with the same draw."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="SciPy is not installed: nothing to compare with")
    x = rng.normal(size=(6, channels, 9, 12))
    augment = train.Augment(shift=2.5, rotate=40, scale=0.3, fill=0.75)
    found = augment(x, rng=3)
    draw = np.random.default_rng(3)
    turns, factors = np.radians(draw.uniform(-40, 40, 6)), draw.uniform(0.7, 1.3, 6)
    moves = draw.uniform(-2.5, 2.5, (2, 6)).T
    centre = np.array([4.0, 5.5])
    for n in range(6):
        cosine, sine = np.cos(turns[n]) / factors[n], np.sin(turns[n]) / factors[n]
        matrix = np.array([[cosine, -sine], [sine, cosine]])
        offset = centre - matrix @ (centre + moves[n])
        for c in range(channels):
            wanted = ndimage.affine_transform(x[n, c], matrix, offset, order=1, mode="grid-constant", cval=0.75)
            assert np.abs(found[n, c] - wanted).max() < 1e-12


def test_flip_and_crop(rng):
    x = rng.random((200, 2, 6, 7), np.float32)
    kept = x.copy()
    mirrored = train.Augment(flip=True)(x, 0)
    flips = [(out == image[:, :, ::-1]).all() for out, image in zip(mirrored, x, strict=True)]
    assert all(flip or (out == image).all() for flip, out, image in zip(flips, mirrored, x, strict=True))
    assert 60 < sum(flips) < 140
    pieces = train.Augment(crop=5)(x, 0)
    places = set()
    for piece, image in zip(pieces, x, strict=True):
        hits = [(i, j) for i in range(2) for j in range(3) if (image[:, i : i + 5, j : j + 5] == piece).all()]
        places.update(hits)
        assert len(hits) == 1
    assert len(places) == 6
    assert (train.center_crop(x, 4) == x[:, :, 1:5, 1:5]).all()
    assert (x == kept).all() and mirrored.dtype == pieces.dtype == np.float32


def test_a_seed_decides_the_augmentation(rng):
    x = rng.random((4, 1, 8, 8), np.float32)
    augment = train.Augment(1, 10, 0.1, True, 6)
    assert augment(x, 5).tobytes() == augment(x, np.random.default_rng(5)).tobytes() != augment(x, 6).tobytes()
    assert (train.Augment()(x, 0) == x).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: train.Augment(scale=1.0), ValueError, "Augment: scale 1: it must lie in 0 .. 0.99"),
        (lambda: train.Augment(rotate=-1), ValueError, "Augment: rotate -1: it must lie in 0 .. 180"),
        (lambda: train.Augment(flip=1), TypeError, "Augment: flip is 1"),
        (lambda: train.Augment(crop=-1), ValueError, "Augment: crop -1: it must be at least 0"),
        (lambda: train.Augment(crop=9)(np.ones((1, 1, 8, 9)), 0), ValueError, "with H and W of at least 9"),
        (lambda: train.Augment()(np.ones((1, 8, 9)), 0), ValueError, r"\(1, 8, 9\): it must be \(N, C, H, W\)"),
        (lambda: train.Augment()(np.ones((1, 1, 8, 9), np.uint8), 0), TypeError, "uint8"),
        (lambda: train.center_crop(np.ones((1, 1, 8, 9)), 0), ValueError, "center_crop: size 0"),
    ],
)
def test_errors_of_augmentation(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --------------------------------------------------------------------------------------------------------- fit


def test_fit_learns_and_tells(tmp_path, capsys):
    pytest.importorskip("tqdm", reason="tqdm is not installed: fit shows no progress")
    net, seen = training.network(), []
    history = training.run(net, callbacks=[lambda p: seen.append((p.epoch, p.epochs, p.net is net))], progress=True)
    assert seen == [(1, 3, True), (2, 3, True), (3, 3, True)] and net.training
    assert history["epoch"].tolist() == [1, 2, 3] and len(history) == 3
    assert history["loss"][2] < history["loss"][0] and history["val_accuracy"][-1] > 0.9
    assert (history["seconds"] > 0).all()
    assert history["lr"][-1] == pytest.approx(0.01 / 25e4)
    assert (history["images_per_second"] * history["seconds"]).tolist() == pytest.approx([40] * 3)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].startswith("epoch 3/3: loss 0.") and "images/s" in lines[2]
    history.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_loss"]) for row in rows] == history["val_loss"].tolist()
    with pytest.raises(KeyError, match="column 'val'"):
        history["val"]


def test_bar_shows_loss_accuracy_speed_and_time_left(monkeypatch, capsys):
    tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed: fit shows no progress")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)
    monkeypatch.setenv("TQDM_MININTERVAL", "0")
    training.run(training.network(), progress=True, epochs=1)
    bar = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert any("epoch 1/1" in text and "loss " in text and "accuracy " in text for text in bar)
    assert any("images/s" in text and "<00:0" in text for text in bar)


def test_seeds_decide_everything():
    nets = [training.network() for _ in range(3)]
    for net, seed in zip(nets, (5, 5, 6), strict=True):
        training.run(net, seed=seed)
    assert training.same(nets[0], nets[1])
    assert nets[0].state_dict()["0.weight"].tobytes() != nets[2].state_dict()["0.weight"].tobytes()


TRAINS = """
import hashlib, sys, numpy as np, fastconv
from fastconv import train, models
rng = np.random.default_rng(0)
data = rng.integers(0, 255, (96, 1, 28, 28), dtype=np.uint8), rng.integers(0, 10, 96)
net = models.article_net(rng=1)
optimizer = train.SGD(net, 0.05, momentum=0.9)
train.fit(net, data, epochs=2, optimizer=optimizer, augment=train.Augment(1, 10), progress=False)
digest = hashlib.sha256()
for array in net.parameters():
    digest.update(array.tobytes())
print(fastconv.get_num_threads(), digest.hexdigest())
"""


def test_the_same_bits_on_any_number_of_threads():
    """Of our kernels, and of the BLAS behind NumPy."""
    found = {}
    for threads in ("1", "2", "3"):
        blas = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"), threads)
        env = {**os.environ, **blas, "FASTCONV_NUM_THREADS": threads, "PYTHONPATH": PACKAGE}
        done = subprocess.run([sys.executable, "-c", TRAINS], env=env, capture_output=True, text=True, check=True)
        count, found[threads] = done.stdout.split()
        assert count == threads
    assert len(set(found.values())) == 1, found


def test_callbacks_and_patience_end_a_run():
    assert len(training.run(training.network(), callbacks=[lambda p: p.epoch == 2])) == 2
    net = fastconv.Sequential(fastconv.Flatten(), fastconv.Linear(144, 2, rng=0))
    options = {"epochs": 9, "lr": 0.0, "progress": False, "validation": training.images(16, 1)}
    history = train.fit(net, training.images(), patience=2, **options)
    assert len(history) == 3 and len(set(history["val_loss"])) == 1


def test_any_loss_and_float_images(rng):
    net = fastconv.Linear(3, 2, dtype="float64", rng=0)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    target = x @ np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 1.0]])
    history = train.fit(
        net, (x, target), epochs=60, batch_size=10, lr=0.05, loss=train.mean_squared_error, progress=False
    )
    assert history["loss"][-1] < 1e-6 and np.isnan(history["accuracy"]).all()
    loss, accuracy = train.evaluate(net, (x, target), train.mean_squared_error)
    assert loss < 1e-6 and math.isnan(accuracy)


def test_evaluate_changes_nothing():
    net = training.network()
    net[1].eval()
    before = net.state_dict()
    train.evaluate(net, training.images())
    after = net.state_dict()
    assert all((before[name] == after[name]).all() for name in before)
    assert net.training and net[0].training and not net[1].training


# ------------------------------------------------------------------------------------------ stopped and resumed


def unbroken(tmp_path):
    net = training.network()
    return net, training.run(net, tmp_path / "unbroken.npz")


def columns(history):
    return [history[name].tolist() for name in ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr")]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL in the middle of the second epoch; the rest from its checkpoint, with a network of another seed."""
    path = tmp_path / "run.npz"
    env = {**os.environ, "PYTHONPATH": PACKAGE}
    done = subprocess.run([sys.executable, HERE / "training.py", path], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    whole, history = unbroken(tmp_path)
    resumed = training.network(seed=9)
    went_on = training.Signalled()
    assert columns(training.run(resumed, path, went_on)) == columns(history)
    assert went_on.calls == 10  # from the start of the second epoch
    assert training.same(resumed, whole)


@pytest.mark.parametrize("at", [1, 7, 10, 15])
def test_ctrl_c_leaves_a_checkpoint_of_the_very_step(tmp_path, at):
    path = tmp_path / "run.npz"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.run(training.network(), path, training.Signalled(at))
    assert signal.getsignal(signal.SIGINT) is handler
    whole, history = unbroken(tmp_path)
    resumed = training.network(seed=9)
    went_on = training.Signalled()
    assert columns(training.run(resumed, path, went_on)) == columns(history)
    assert went_on.calls == 15 - at
    assert training.same(resumed, whole)


def test_a_second_ctrl_c_in_the_middle_of_a_step_keeps_the_former_checkpoint(tmp_path):
    """Its batch has gone through batch normalisation and dropout, and a part of the parameters is stepped already."""

    class Interrupted(train.AdamW):
        calls = 0

        def _update(self, *arrays):
            super()._update(*arrays)
            self.calls += 1
            if self.calls == 50:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    path, net = tmp_path / "run.npz", training.network()
    with pytest.raises(KeyboardInterrupt):
        training.run(net, path, optimizer=Interrupted(net, 0.01))
    whole, history = unbroken(tmp_path)
    resumed = training.network(seed=9)
    went_on = training.Signalled()
    assert columns(training.run(resumed, path, went_on)) == columns(history)
    assert went_on.calls == 10  # from the start of the second epoch
    assert training.same(resumed, whole)


def test_ctrl_c_during_validation(tmp_path, monkeypatch):
    path = tmp_path / "run.npz"
    module = sys.modules["fastconv.train.fit"]
    evaluate, calls = module._evaluate, []

    def interrupted(net, images, labels, loss, check):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return evaluate(net, images, labels, loss, check)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_evaluate", interrupted)
        net = training.network()
        with pytest.raises(KeyboardInterrupt):
            training.run(net, path)
        assert net.training
    whole, history = unbroken(tmp_path)
    resumed = training.network(seed=9)
    assert columns(training.run(resumed, path)) == columns(history)
    assert training.same(resumed, whole)


def test_a_finished_run_is_not_trained_again(tmp_path):
    whole, history = unbroken(tmp_path)
    again, augment = training.network(seed=9), training.Signalled()
    assert columns(training.run(again, tmp_path / "unbroken.npz", augment)) == columns(history)
    assert augment.calls == 0 and training.same(again, whole)
    training.run(again, tmp_path / "unbroken.npz", augment, resume=False)
    assert augment.calls == 15


def test_fit_in_another_thread():
    net, other = training.network(), training.network()
    thread = threading.Thread(target=training.run, args=(net,))
    thread.start()
    thread.join()
    training.run(other)
    assert training.same(net, other)


def changed(call, message, error=ValueError):
    """The call must fail with the message and leave the network alone."""
    net = training.network(seed=4)
    before = hashlib.sha256(b"".join(array.tobytes() for array in net.state_dict().values())).digest()
    with pytest.raises(error, match=message) as caught:
        call(net)
    assert "\n" not in str(caught.value)
    assert before == hashlib.sha256(b"".join(array.tobytes() for array in net.state_dict().values())).digest()


def test_bad_checkpoints_change_nothing(tmp_path):
    unbroken(tmp_path)
    path = tmp_path / "unbroken.npz"
    whole = path.read_bytes()
    for name, data in (("cut", whole[: len(whole) // 2]), ("noise", b"noise"), ("empty", b"")):
        bad = tmp_path / f"{name}.npz"
        bad.write_bytes(data)
        changed(lambda net, bad=bad: training.run(net, bad), rf"load_checkpoint: .*{name}\.npz: damaged")
        assert bad.read_bytes() == data
    flipped = bytearray(whole)
    flipped[whole.index(fastconv.load(path)["net.6.weight"].tobytes()) + 5] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    changed(lambda net: training.run(net, tmp_path / "flipped.npz"), r"flipped\.npz: damaged")
    fastconv.save(training.network(), tmp_path / "net.npz")
    changed(lambda net: training.run(net, tmp_path / "net.npz"), "net.npz: it is no checkpoint of save_checkpoint")
    train.save_checkpoint(tmp_path / "other.npz", models.article_net(2, image_size=12))
    other = tmp_path / "other.npz"
    changed(lambda net: train.load_checkpoint(other, net), "other.npz: it does not fit: Sequential.load_state")
    train.save_checkpoint(other, training.network())
    changed(lambda net: training.run(net, other), "other.npz: it is no checkpoint of fit")
    changed(lambda net: training.run(net, path, optimizer=train.SGD(net, 0.1)), "it does not fit: SGD.load_state_dict")
    changed(lambda net: training.run(net, tmp_path / "a.pickle"), "must end in .safetensors or .npz")
    changed(lambda net: training.run(net, path, seed=1), "its run had seed 0, this one has 1")
    assert path.read_bytes() == whole


def test_checkpoints_in_safetensors(tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        training.run(training.network(), path, training.Signalled(7))
    whole, _ = unbroken(tmp_path)
    resumed = training.network(seed=9)
    training.run(resumed, path)
    assert training.same(resumed, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of 64 KiB cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_nothing_that_was_saved(small_disk, tmp_path):
    path, large = small_disk / "run.npz", small_disk / "large"
    with pytest.raises(KeyboardInterrupt):
        training.run(training.network(), path, training.Signalled(7))
    saved = path.read_bytes()
    large.write_bytes(bytes((63 * 1024 - len(saved)) // 4096 * 4096))
    with pytest.raises(OSError, match="No space left on device; nothing was changed") as caught:
        training.run(training.network(), path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == saved and sorted(small_disk.iterdir()) == [large, path]
    large.unlink()
    whole, _ = unbroken(tmp_path)
    resumed = training.network(seed=9)
    training.run(resumed, path)
    assert training.same(resumed, whole)


# ------------------------------------------------------------------------------------------- NaN, and bad input


def test_nan_names_the_layer_that_made_it(tmp_path):
    path = tmp_path / "run.npz"
    net = training.network()
    net[6].weight[1, 3] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"loss is nan in epoch 1, batch 1: first in layer '6', Linear\(.*weight"
    ):
        training.run(net, path)
    assert path.exists() and "_forward" not in vars(net[0])

    net = training.network()
    net[0].weight[...] = 3e38
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="first in layer '0', Conv2d"):
        training.run(net)

    x, labels = training.images()
    x = x.astype(np.float32)
    x[7, 0, 2, 2] = np.nan
    with pytest.raises(FloatingPointError, match="the images of this batch hold NaN or Inf"):
        train.fit(training.network(), (x, labels), epochs=1, progress=False)


def test_nan_in_a_gradient_names_its_layer():
    class Broken(fastconv.ReLU):
        def _backward(self, grad_output, saved, run):
            return super()._backward(grad_output, saved, run) * np.float32(np.nan)

    net = fastconv.Sequential(
        fastconv.Conv2d(1, 4, 3, rng=0), Broken(), fastconv.Flatten(), fastconv.Linear(400, 2, rng=0)
    )
    before = net[3].weight.copy()
    with pytest.raises(
        FloatingPointError, match=r"gradient is not finite in epoch 1, batch 1: first in layer '0', Conv2d"
    ):
        train.fit(net, training.images(), epochs=1, progress=False)
    assert (net[3].weight == before).all()  # no step was made with it


def test_a_blow_up_is_caught():
    net = fastconv.Sequential(fastconv.Flatten(), fastconv.Linear(144, 2, rng=0))
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="fit: .* first in layer '1', Linear"):
        train.fit(net, training.images(), epochs=50, lr=1e38, progress=False)


X, Y = training.images()
BAD = {
    "empty": ((X[:0], Y[:0]), {}, ValueError, r"fit: data: images have shape \(0, 1, 12, 12\): .* at least one"),
    "numbers": ((X, Y[:5]), {}, ValueError, "fit: data: 40 images and 5 labels"),
    "labels": ((X, Y + 1), {}, ValueError, "fit: data: label 2: it must lie in 0 .. 1, the network has 2 outputs"),
    "labels-type": ((X, Y / 2), {}, TypeError, "fit: data: labels have dtype float64: they must be integers"),
    "size": (
        (X[..., :9], Y),
        {},
        ValueError,
        r"fit: data: images of shape \(1, 12, 9\) do not fit: Linear: .*layer '6'",
    ),
    "channels": (
        (X.repeat(3, 1), Y),
        {},
        ValueError,
        r"images of shape \(3, 12, 12\) do not fit: Conv2d: .* 3 channels",
    ),
    "integers": ((X.astype(int), Y), {}, TypeError, "fit: data: images have dtype int64: it must be uint8, float32"),
    "one": (X, {}, TypeError, r"fit: data is a ndarray: it must be \(images, labels\)"),
    "epochs": ((X, Y), {"epochs": 0}, ValueError, "fit: epochs 0: it must be at least 1"),
    "batch": ((X, Y), {"batch_size": 2.5}, TypeError, "fit: batch_size is 2.5: it must be an integer"),
    "seed": ((X, Y), {"seed": -1}, ValueError, "fit: seed -1: it must be at least 0"),
    "validation": ((X, Y), {"validation": (X, Y - 1)}, ValueError, "fit: validation: label -1: it must lie in 0 .. 1"),
    "patience": ((X, Y), {"patience": 0}, ValueError, "fit: patience 0: it must be at least 1"),
    "place": ((X, Y), {"checkpoint": "/nowhere/a.npz"}, OSError, "save: No such file or directory; nothing was chang"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_training(name):
    data, options, error, message = BAD[name]
    options = {"epochs": 1, "progress": False, **options}
    changed(lambda net: train.fit(net, data, **options), message, error)


def test_without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(
        ImportError, match=r"fit: progress needs tqdm: pip install 'fastconv\[train\]', or pass progress"
    ):
        training.run(training.network(), progress=True)


# ------------------------------------------------------------------------------------------------------ memory

STEPS = """
import resource
import numpy as np
import {module}
def step():
    return len([np.ones(3 << 20, np.uint8) for _ in range(8)])
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that gives freed memory back")
def test_memory_of_a_step_is_kept_for_the_next():
    """Page faults of three steps that write 24 MiB each, 6,144 pages; without the module many times as many."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    faults = {}
    for module in ("fastconv.train", "numpy"):
        run = subprocess.run([sys.executable, "-c", STEPS.format(module=module)], env={**env, "PYTHONPATH": PACKAGE},
                             capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
        faults[module] = int(run.stdout)
    assert faults["fastconv.train"] < 1000 and faults["fastconv.train"] < faults["numpy"] / 4, faults


# --------------------------------------------------------------------------------------------------- real data


def test_digits_are_learnt():
    """One epoch on 2,000 of the digits."""
    try:
        training_set, test_set = datasets.digits()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    net = models.article_net(rng=0)
    steps = 2000 // 50
    train.fit(
        net, training_set[:2000], epochs=1, batch_size=50, optimizer=train.SGD(net, 0.1, momentum=0.9, nesterov=True),
        schedule=train.OneCycleSchedule(0.1, steps), progress=False,
    )  # fmt: skip
    assert train.evaluate(net, test_set[:500])[1] > 0.85


NET = fastconv.Sequential(fastconv.Flatten(), fastconv.Linear(4, 2, rng=0))
IMAGES, LABELS = np.ones((3, 1, 2, 2), "float32"), np.array([0, 1, 0])


def fitted(data=(IMAGES, LABELS), **options):
    return train.fit(NET, data, epochs=1, progress=False, **options)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: fitted(loss=3), TypeError, "fit: loss is a int: it must be a function"),
        (lambda: fitted(schedule=0.1), TypeError, "fit: schedule is a float: it must be a function"),
        (lambda: fitted(schedule=lambda step: None), TypeError, "fit: schedule(0) is None: it must be a number"),
        (lambda: fitted(schedule=lambda step: math.nan), ValueError, "fit: schedule(0) nan: it must be at least 0"),
        (lambda: fitted(augment="flip"), TypeError, "fit: augment is a str: it must be a function"),
        (lambda: fitted(callbacks=print), TypeError, "fit: callbacks is a builtin_function_or_method: it must be a list of functions"),
        (lambda: fitted(callbacks=[3]), TypeError, "fit: callbacks is a int: it must be a function"),
        (lambda: fitted(optimizer="sgd"), TypeError, "fit: optimizer is a str: it must be SGD, Adam or AdamW"),
        (lambda: fitted(optimizer=train.SGD(fastconv.Linear(4, 2), 0.1)), ValueError, "fit: optimizer: its parameters are not those of net"),
        (lambda: fitted(clip=0), ValueError, "fit: clip 0: it must be above 0"),
        (lambda: fitted(lr=math.inf), ValueError, "fit: lr inf: it must be finite"),
        (lambda: fitted(checkpoint=1.5), TypeError, "fit: checkpoint is a float: it must be a string or a path"),
        (lambda: fitted((IMAGES, 3)), ValueError, "fit: data: labels are 3: there must be one for each image"),
        (lambda: train.evaluate(3, (IMAGES, LABELS)), TypeError, "evaluate: net is a int: it must be a Layer"),
        (lambda: train.SGD(NET, 0.1).step(3), TypeError, "SGD.step: gradients is a int: it must be a list of arrays"),
        (lambda: train.SGD(NET, 0.1).step([np.ones((2, 4)), np.array(["a", "b"])]), TypeError, "SGD.step: gradient of '1.bias' has dtype <U1: it must hold float32 numbers"),
        (lambda: train.SGD(NET, 0.1).step([np.ones((2, 4)), np.ones(2, complex)]), TypeError, "SGD.step: gradient of '1.bias' has dtype complex128: it must hold float32 numbers"),
        (lambda: train.SGD(NET, 0.1).load_state_dict(3), TypeError, "SGD.load_state_dict: state_dict is a int: it must be a mapping of names to arrays"),
        (lambda: train.SGD(NET, 0.1).load_state_dict({"steps": 1.5, "lr": 1}), TypeError, "SGD.load_state_dict: 'steps' has dtype float64: it must hold int64 numbers"),
        (lambda: train.SGD(NET, 0.1).load_state_dict({"steps": 1, "lr": math.nan}), ValueError, "SGD.load_state_dict: lr nan: it must be at least 0"),
        (lambda: train.SGD(NET, 0.1).load_state_dict({"steps": -1, "lr": 1}), ValueError, "SGD.load_state_dict: steps -1: it must be at least 0"),
        (lambda: train.clip_grad_norm(3, 1), TypeError, "clip_grad_norm: net_or_grads is a int: it must be a Layer or a list of arrays"),
        (lambda: train.clip_grad_norm([np.ones(3), np.ones(3, int)], 1), TypeError, "clip_grad_norm: a gradient is int64: it must be a writeable array of floats"),
        (lambda: train.clip_grad_norm([[1.0]], 1), TypeError, "clip_grad_norm: a gradient is list: it must be a writeable array of floats"),
        (lambda: train.StepSchedule(0.1, 2)(1.5), TypeError, "StepSchedule: step is 1.5: it must be an integer"),
        (lambda: train.CosineSchedule(0.1, 2)(-1), ValueError, "CosineSchedule: step -1: it must be at least 0"),
        (lambda: train.History().load_state_dict(3), TypeError, "History.load_state_dict: state_dict is a int: it must be a mapping of names to arrays"),
        (lambda: train.History().load_state_dict({"epoch": [1]}), ValueError, "History.load_state_dict: 'loss' and 6 more keys: missing"),
        (lambda: train.History().load_state_dict({**train.History().state_dict(), "lr": [0.1]}), ValueError, "History.load_state_dict: columns of [0, 1] epochs: they must be as long"),
        (lambda: train.History().load_state_dict({**train.History().state_dict(), "lr": "a"}), TypeError, "History.load_state_dict: state_dict: its columns must be arrays (epochs,) of numbers"),
        (lambda: train.History().to_csv(3), TypeError, "History.to_csv: path is a int: it must be a string or a path"),
        (lambda: train.save_checkpoint("a.npz", 3), TypeError, "save_checkpoint: net is a int: it must be a Layer"),
        (lambda: train.load_checkpoint(3, NET), TypeError, "load_checkpoint: path is a int: it must be a string or a path"),
        (lambda: train.load_checkpoint("a.npz", NET, 3), TypeError, "load_checkpoint: optimizer is a int: it has no state"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_told_before_anything_changes(call, kind, message):
    before = NET.state_dict()
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == message
    assert all((array == before[name]).all() for name, array in NET.state_dict().items())


def test_a_network_for_crops_is_trained_on_crops(rng):
    """It fits neither the whole images, nor crops of another size."""
    x, y = rng.random((20, 1, 14, 14), np.float32), rng.integers(0, 10, 20)
    net = models.article_net(image_size=10, filters=2, rng=0)
    validation = train.center_crop(x, 10), y
    history = train.fit(net, (x, y), epochs=1, augment=train.Augment(crop=10), validation=validation, progress=False)
    assert len(history) == 1
    for crop in (14, 15):
        with pytest.raises(ValueError, match=r"^fit: data: images of shape \(1, 14, 14\) do not fit: "):
            train.fit(net, (x, y), epochs=1, augment=train.Augment(crop=crop), progress=False)
    with pytest.raises(ValueError, match=r"^fit: validation: images of shape \(1, 14, 14\) do not fit: "):
        train.fit(net, (x, y), epochs=1, augment=train.Augment(crop=10), validation=(x, y), progress=False)


@pytest.mark.filterwarnings("error")
def test_what_diverges_raises_without_warnings_before():
    x, y = training.images()
    with pytest.raises(FloatingPointError, match="^fit: the loss is (nan|inf) in epoch 2, batch 1: first in layer"):
        train.fit(training.network(), (x, y), epochs=9, batch_size=40, lr=1e30, validation=(x, y), progress=False)


def test_one_gradient_may_be_clipped_alone():
    gradient = np.array([3.0, 4.0])
    assert train.clip_grad_norm(gradient, 1) == 5 and np.allclose(gradient, [0.6, 0.8])
    assert train.clip_grad_norm([gradient], math.inf) == pytest.approx(1) and np.allclose(gradient, [0.6, 0.8])


def test_the_loss_of_single_numbers():
    value, grad = train.mean_squared_error(np.float64(1), np.float64(3))
    assert value == 4 and isinstance(grad, np.ndarray) and grad == -4


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_parameter_without_a_gradient_waits_as_in_torch(torch, rng, name):
    options = {"lr": 0.1, "momentum": 0.9} if name == "SGD" else {"lr": 0.1, "weight_decay": 0.01}
    ours = [rng.normal(size=3), rng.normal(size=2)]
    theirs = [torch.tensor(array.copy(), requires_grad=True) for array in ours]
    optimizer, reference = getattr(train, name)(ours, **options), getattr(torch.optim, name)(theirs, **options)
    for step in range(6):
        gradients = [rng.normal(size=3), None if step in (0, 3) else rng.normal(size=2)]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = None if gradient is None else torch.tensor(gradient)
        state, optimizer = optimizer.state_dict(), getattr(train, name)(ours, **options)
        optimizer.load_state_dict(state)
        optimizer.step(gradients)
        reference.step()
        for array, tensor in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(array, tensor.detach().numpy(), rtol=1e-12)


def test_a_state_without_counts_of_each_parameter_is_refused():
    adam = train.Adam([np.ones(2)])
    adam.step([np.ones(2)])
    state = adam.state_dict()
    del state["steps.0"]
    again = train.Adam([np.ones(2)])
    with pytest.raises(ValueError) as caught:
        again.load_state_dict(state)
    assert str(caught.value) == "Adam.load_state_dict: key 'steps.0' is missing"
    assert again.steps == 0
