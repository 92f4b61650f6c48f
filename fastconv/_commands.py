"""`fastconv train` and `fastconv cost`: networks that train, seen and measured."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fastconv
from fastconv import _pictures, _state, datasets, models, train
from fastconv.layers import Conv2d, Layer, Sequential

MODELS: dict[str, Callable[..., Sequential]] = {
    "article": models.article_net,
    "alexnet": models.alexnet,
    "zfnet": models.zfnet,
    "vgg16": models.vgg16,
    "resnet18": models.resnet18,
    "resnet50": models.resnet50,
    "mobilenet_v2": models.mobilenet_v2,
}
KNOWN = {"digits": datasets.digits, "fashion": datasets.fashion_mnist}
BATCH = 64
VALIDATION_FOLDERS = ("val", "validation", "test")  # folders beside "train"


def run_train(
    data: str, model: str, epochs: int | None, lr: float, seed: int, size: int, augmented: bool, backend: str, out: str
) -> None:
    """Train, and leave checkpoint, history, curves and filters in a folder."""
    _pictures.check_installed("train")
    training, validation = load_data(data, size)
    epochs = epochs or (8 if data == "fashion" else 30)  # a few minutes on one core
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.npz"
    settings = {
        "data": data, "model": model, "epochs": epochs, "lr": lr, "seed": seed, "size": size, "augment": augmented,
    }  # fmt: skip
    _same_run(folder / "run.json", settings, checkpoint.exists())
    net = make_network(model, training, seed)
    film = _Film(folder / "filters.npz", net, checkpoint.exists())
    print(f"{data}: {training}, {len(validation)} to validate with")
    print(f"{model}: {sum(array.size for array in net.parameters()):,} parameters; results in {folder}/")
    started = time.perf_counter()

    def after_epoch(progress: train.Progress) -> None:
        film.add(progress.epoch)
        progress.history.to_csv(folder / "history.csv")
        drawn = _pictures.curves(progress.history, f"{model} on {data}")
        _state.write_bytes(folder / "curves.png", drawn)
        _state.write_bytes(folder / "filters.gif", film.drawn(progress.history))

    with fastconv.config(backend=backend):
        history = _fit(
            net, training, validation, epochs, lr, seed, augmented and data, [after_epoch], checkpoint=checkpoint
        )
    print(
        f"validation accuracy {history['val_accuracy'][-1]:.2%} after {len(history)} epochs, "
        f"{time.perf_counter() - started:.0f} s"
    )


def run_cost(
    model: str, filters: Sequence[int], data: str, epochs: int, lr: float, seed: int, size: int, backend: str, out: str
) -> None:
    """What a network costs and gains with more filters: a table, cost.csv and cost.png."""
    _pictures.check_installed("cost")
    training, validation = load_data(data, size)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{model} on {data}, {epochs} epochs each; time forward is for one image in a batch of {BATCH}")
    head = ("filters", "parameters", "multiply-adds", "ms forward", "s an epoch", "accuracy")
    print("  ".join(f"{name:>13}" for name in head))
    rows = []
    with fastconv.config(backend=backend):
        for count in filters:
            net = make_network(model, training, seed, filters=count)
            table = fastconv.summary(net, (1, *training.images.shape[1:]))
            forward = _time_forward(net, training.images)
            history = _fit(net, training, validation, epochs, lr, seed, data, [], progress=False)
            row = {
                "filters": count, "parameters": table.parameters, "multiply_adds": table.multiply_adds,
                "ms_forward": 1e3 * forward, "seconds_an_epoch": float(np.mean(history["seconds"])),
                "accuracy": float(history["val_accuracy"][-1]),
            }  # fmt: skip
            rows.append(row)
            print(
                f"{count:13d}  {table.parameters:13,d}  {table.multiply_adds:13,d}  {row['ms_forward']:13.3f}  "
                f"{row['seconds_an_epoch']:13.1f}  {row['accuracy']:13.2%}",
                flush=True,
            )
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _state.write_bytes(folder / "cost.csv", text.getvalue().encode())
    _state.write_bytes(folder / "cost.png", _pictures.costs(rows, f"{model} on {data}: enough filters, at what cost"))


def load_data(data: str, size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and validation images: a known set, or a folder's."""
    if data in KNOWN:
        return KNOWN[data]()
    root = Path(data)
    for name in VALIDATION_FOLDERS:
        if (root / "train").is_dir() and (root / name).is_dir():
            training, validation = (datasets.image_folder(root / part, size) for part in ("train", name))
            if training.classes != validation.classes:
                raise ValueError(f"{root}: train/ and {name}/ hold different classes")
            return training, validation
    everything = datasets.image_folder(root, size)
    if len(everything) < 2:
        raise ValueError(f"{root}: it holds a single image: there must be one to train and one to validate with")
    order = np.random.default_rng(0).permutation(len(everything))
    n = math.ceil(len(everything) * 4 / 5) if len(everything) > 4 else 1
    return everything[order[:n]], everything[order[n:]]


def make_network(model: str, data: datasets.Dataset, seed: int, **options: Any) -> Sequential:
    _, channels, height, width = data.images.shape
    if model == "article":
        options["image_size"] = (height, width)
    return MODELS[model](len(data.classes), channels, rng=seed, **options)


def _augmentation(data: str | bool) -> train.Augment | None:
    """Digits lean and wander but are never mirrored; clothes are only mirrored; photographs are mirrored and wander."""
    if not data:
        return None
    if data == "digits":
        return train.Augment(shift=2, rotate=12, scale=0.12)
    return train.Augment(flip=True, shift=0 if data == "fashion" else 2)


def _fit(
    net: Layer,
    training: datasets.Dataset,
    validation: datasets.Dataset,
    epochs: int,
    lr: float,
    seed: int,
    augmented: str | bool,
    callbacks: list[Callable[[train.Progress], Any]],
    **options: Any,
) -> train.History:
    """SGD with Nesterov momentum along one cycle of learning rates."""
    steps = epochs * math.ceil(len(training) / BATCH)
    return train.fit(
        net, training, epochs=epochs, batch_size=BATCH, validation=validation, seed=seed, callbacks=callbacks,
        optimizer=train.SGD(net, lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=train.OneCycleSchedule(lr, steps), augment=_augmentation(augmented), **options,
    )  # fmt: skip


def _time_forward(net: Layer, images: np.ndarray) -> float:
    """Seconds for one image, the best of five batches."""
    net.eval()
    x = np.multiply(images[:BATCH], np.float32(1 / 255), dtype=np.float32)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        net(x)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / len(x)


def _same_run(path: Path, settings: dict[str, Any], resumed: bool) -> None:
    """Keep the settings beside the checkpoint; ValueError if the one that is there was made with others."""
    if resumed:
        try:
            former = dict(json.loads(path.read_text()))
        except (OSError, TypeError, ValueError):
            raise ValueError(f"{path}: missing or damaged, beside a checkpoint: choose another --out") from None
        for name, value in settings.items():
            if former.get(name) != value:
                raise ValueError(
                    f"{path.parent} holds a run with {name} {former.get(name)}, this one has {value}: choose another "
                    "--out, or the same settings to go on"
                )
    _state.write_bytes(path, (json.dumps(settings, indent=1) + "\n").encode())


class _Film:
    """The first convolution's weights at the start and after every epoch, kept in a file for a resumed run."""

    def __init__(self, path: Path, net: Layer, resumed: bool) -> None:
        self._path = path
        self._layer = next(layer for _, layer in net.named_layers() if isinstance(layer, Conv2d))
        self._frames: dict[str, np.ndarray] = _state.load(path) if resumed and path.exists() else {}
        if not self._frames:
            self.add(0)

    def add(self, epoch: int) -> None:
        self._frames[f"epoch{epoch}"] = self._layer.weight.copy()
        _state.save(self._frames, self._path)

    def drawn(self, history: train.History) -> bytes:
        captions, frames = [], []
        for epoch in range(len(history) + 1):
            if f"epoch{epoch}" in self._frames:
                frames.append(self._frames[f"epoch{epoch}"])
                accuracy = f"validation accuracy {history['val_accuracy'][epoch - 1]:.2%}" if epoch else "random"
                captions.append(f"epoch {epoch}: {accuracy}")
        return _pictures.filters(frames, captions)
