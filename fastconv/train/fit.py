"""`fit`: the training loop; `evaluate`: loss and accuracy of a network as it is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastconv._arrays import as_array, as_ndarray
from fastconv._problem import flag, integer, sequence, shown
from fastconv._state import path_name
from fastconv.layers import Layer
from fastconv.layers._base import count, number
from fastconv.train._guards import Interrupt, blame_backward, blame_forward
from fastconv.train.checkpoint import read, save_checkpoint, take
from fastconv.train.clipping import checked_norm, clip_grad_norm
from fastconv.train.history import History
from fastconv.train.losses import checked_labels, softmax_cross_entropy
from fastconv.train.optimizers import SGD, Optimizer

Loss = Callable[[Any, Any], tuple[float, np.ndarray]]
EVALUATION_BATCH = 250


@dataclass(frozen=True)
class Progress:
    """What a callback of `fit` gets after every epoch.

    Attributes
    ----------
    net : Layer
    optimizer : SGD, Adam or AdamW
    history : History
    epoch : int
        How many are done.
    epochs : int
        How many there will be.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.Linear(2, 2, rng=0)
    >>> data = (np.eye(2, dtype=np.float32), [0, 1])
    >>> def stop_early(progress):
    ...     return progress.epoch == 2
    >>> len(fastconv.train.fit(net, data, epochs=50, callbacks=[stop_early], progress=False))
    2
    """

    net: Layer
    optimizer: Any
    history: History
    epoch: int
    epochs: int


def fit(
    net: Layer,
    data: Any,
    *,
    epochs: int,
    batch_size: int = 64,
    loss: Loss = softmax_cross_entropy,
    optimizer: Any = None,
    lr: float = 0.01,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    augment: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    validation: Any = None,
    callbacks: Iterable[Callable[[Progress], Any]] = (),
    patience: int | None = None,
    checkpoint: Any = None,
    resume: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> History:
    """Train a network.

    Parameters
    ----------
    net : Layer
        Changed in place, and in train mode afterwards.
    data : (images, labels), or a `fastconv.datasets.Dataset`
        Images (N, ...) of uint8, which are divided by 255, or of floats; labels (N,) of integers, or what `loss` takes.
    epochs : int
        Passes over the data, each in a new random order.
    batch_size : int
    loss : callable
        (output, labels) -> (loss, grad_output).
    optimizer : SGD, Adam or AdamW, optional
        Of `net`; by default SGD with `lr` and momentum 0.9.
    lr : float
        Of the default optimiser.
    schedule : callable, optional
        step -> learning rate, steps counted from 0 over all epochs.
    clip : float, optional
        Largest norm of the gradients, see `clip_grad_norm`.
    augment : callable, optional
        (images, generator) -> images, as `Augment`. The network must fit what it gives; `validation` does not go
        through it (see `center_crop`).
    validation : like `data`, optional
        Measured after every epoch, in eval mode.
    callbacks : iterable of callable
        Each is called with a `Progress` after every epoch; one that returns True ends the training.
    patience : int, optional
        End when the loss (of `validation`, if there is one) has not become smaller for so many epochs.
    checkpoint : str or path, optional
        File (.npz or .safetensors) that is written before the first epoch, after every epoch, and on Ctrl-C.
    resume : bool
        If `checkpoint` is there, go on from it; else it is overwritten.
    seed : int
        Decides the order of images and their augmentation, together with epoch and batch alone.
    progress : bool
        Show a bar (loss, accuracy, images/s, time left) on stderr where that is a terminal, and a line for each epoch.

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        For data or options that do not fit, before anything is trained; for a checkpoint that is damaged or belongs to
        another run.
    FloatingPointError
        If loss or a gradient is NaN or infinite; the message names the layer that produced it first. The checkpoint
        stays as it was.
    KeyboardInterrupt
        After Ctrl-C, when the running step is complete and the checkpoint written. A second Ctrl-C acts at once; in the
        middle of a step the checkpoint stays as it was.
    OSError
        If the checkpoint cannot be written; the former one is unchanged.
    ImportError
        If `progress` is wanted and tqdm is not installed.

    Notes
    -----
    A run that is killed and resumed gives the same bits as one that is not, at any number of threads: the order of
    epoch e and the augmentation of its batch b are drawn from generators seeded by (seed, e, b), and the checkpoint
    holds parameters, buffers, optimiser, history, the generators of `Dropout`, and the position.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> rng = np.random.default_rng(0)
    >>> images = rng.random((64, 1, 10, 10), np.float32)
    >>> labels = (images[:, 0, :, :5].sum((1, 2)) > images[:, 0, :, 5:].sum((1, 2))).astype(int)
    >>> net = fastconv.models.article_net(2, image_size=10, filters=4, rng=0)
    >>> history = fastconv.train.fit(net, (images, labels), epochs=12, batch_size=16, progress=False)
    >>> bool(history["loss"][-1] < history["loss"][0])
    True
    """
    run = _Run(net, data, validation, loss, epochs, batch_size, augment, seed)
    run.optimizer = SGD(net, number("fit", "lr", lr, 0), momentum=0.9) if optimizer is None else optimizer
    _check_optimizer(run.optimizer, net)
    run.schedule = _callable("schedule", schedule)
    run.clip = None if clip is None else checked_norm("fit", "clip", clip)
    run.patience = None if patience is None else count("fit", "patience", patience)
    if not sequence(callbacks):
        raise TypeError(f"fit: callbacks is a {type(callbacks).__name__}: it must be a list of functions")
    run.callbacks = tuple(_callable("callbacks", callback) for callback in callbacks)
    resume, with_bar = flag("fit", "resume", resume), flag("fit", "progress", progress)
    if checkpoint is not None:
        path_name("fit", checkpoint, "checkpoint")
        if resume and os.path.exists(checkpoint):
            run.load(checkpoint)
        else:
            run.save(checkpoint)
    net.train()
    with Interrupt() as interrupt, _bar(with_bar, run) as bar:
        try:
            while not run.finished():
                run.epoch_steps(interrupt, bar)
                run.close_epoch(interrupt, bar)
                if checkpoint is not None:
                    run.save(checkpoint)
                interrupt.check()
        except KeyboardInterrupt:
            if checkpoint is not None and run.whole:
                run.save(checkpoint)
            raise
    return run.history


def _callable(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"fit: {name} is a {type(value).__name__}: it must be a function")
    return value


def _check_optimizer(optimizer: Any, net: Layer) -> None:
    if not all(hasattr(optimizer, name) for name in ("step", "lr", "state_dict", "load_state_dict")):
        raise TypeError(f"fit: optimizer is a {type(optimizer).__name__}: it must be SGD, Adam or AdamW")
    if isinstance(optimizer, Optimizer) and not optimizer.owns_part_of(net):
        raise ValueError("fit: optimizer: its parameters are not those of net")


def evaluate(net: Layer, data: Any, loss: Loss = softmax_cross_entropy) -> tuple[float, float]:
    """Mean loss and accuracy of a network in eval mode; nothing is changed.

    Parameters
    ----------
    net : Layer
    data : (images, labels), or a `fastconv.datasets.Dataset`
        As for `fit`.
    loss : callable
        (output, labels) -> (loss, grad_output).

    Returns
    -------
    loss : float
    accuracy : float
        Part of the images whose largest output is their label; NaN where the labels are no classes.

    Raises
    ------
    TypeError, ValueError
        If the data do not fit the network.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> net = fastconv.Linear(2, 2, bias=False, init=np.eye(2))
    >>> loss, accuracy = fastconv.train.evaluate(net, (np.eye(2, dtype=np.float32), [0, 1]))
    >>> round(loss, 3), accuracy
    (0.313, 1.0)
    """
    _check_net("evaluate", net, loss)
    images, labels = _checked("evaluate", "data", data, net, loss)
    return _evaluate(net, images, labels, loss, lambda: None)


@np.errstate(over="ignore", invalid="ignore")  # a loss that is not finite tells of it
def _evaluate(
    net: Layer, images: np.ndarray, labels: np.ndarray, loss: Loss, check: Callable[[], None]
) -> tuple[float, float]:
    total, hits, n = 0.0, 0, len(images)
    with _evaluated(net):
        for start in range(0, n, EVALUATION_BATCH):
            check()
            part = slice(start, start + EVALUATION_BATCH)
            output = net(_floats(images[part], net))
            total += loss(output, labels[part])[0] * len(output)
            hits += _hits(output, labels[part])
    return total / n, hits / n if _classes(labels) else math.nan


@contextmanager
def _evaluated(net: Layer) -> Iterator[None]:
    """The network in eval mode while the block runs; then each layer in its own again."""
    modes = [(layer, layer.training) for _, layer in net.named_layers()]
    net.eval()
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


class _Run:
    """The state of one `fit`: everything that a checkpoint holds, and the steps that change it."""

    optimizer: Any
    schedule: Callable[[int], float] | None
    clip: float | None
    patience: int | None
    callbacks: tuple[Callable[[Progress], Any], ...]

    def __init__(
        self, net: Layer, data: Any, validation: Any, loss: Loss, epochs: Any, batch_size: Any, augment: Any, seed: Any
    ) -> None:
        _check_net("fit", net, loss)
        self.net, self.loss = net, loss
        self.epochs, self.batch_size = count("fit", "epochs", epochs), count("fit", "batch_size", batch_size)
        self.seed = integer("fit", "seed", seed)
        if self.seed < 0:
            raise ValueError(f"fit: seed {self.seed}: it must be at least 0")
        self.augment = _callable("augment", augment)
        self.images, self.labels = _checked("fit", "data", data, net, loss, self.augment)
        self.validation = None if validation is None else _checked("fit", "validation", validation, net, loss)
        self.n_batches = math.ceil(len(self.images) / self.batch_size)
        self.history = History()
        self.batch = 0  # batches of the running epoch that are done
        self.total_loss, self.hits, self.seconds = 0.0, 0, 0.0  # of these batches
        self.stopped = False  # a callback or patience ended it
        self.whole = True  # nothing is half done, so that a checkpoint of now can be gone on from

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.history)

    @property
    def seen(self) -> int:
        """Images of the running epoch that are done."""
        return min(self.batch * self.batch_size, len(self.images))

    def finished(self) -> bool:
        return self.stopped or self.epoch >= self.epochs

    def epoch_steps(self, interrupt: Interrupt, bar: Any) -> None:
        """The batches of the running epoch that are left."""
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.images))
        while self.batch < self.n_batches:
            start = time.perf_counter()
            rows = order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size]
            self.whole = False
            value, hits = self._step(rows)
            self.total_loss += value * len(rows)
            self.hits += hits
            self.batch += 1
            self.seconds += time.perf_counter() - start
            self.whole = True
            if bar is not None:
                bar.set_postfix_str(f"loss {self.total_loss / self.seen:.4f}{self._accuracy(', ')}", refresh=False)
                bar.update(len(rows))
            interrupt.check()

    @np.errstate(over="ignore", invalid="ignore")  # the error that follows says where it began
    def _step(self, rows: np.ndarray) -> tuple[float, int]:
        x, labels = _floats(self.images[rows], self.net), self.labels[rows]
        if self.augment is not None:
            x = self.augment(x, np.random.default_rng([self.seed, self.epoch, self.batch]))
        output = self.net(x)
        value, grad = self.loss(output, labels)
        place = f"epoch {self.epoch + 1}, batch {self.batch + 1}"
        if not math.isfinite(value):
            raise FloatingPointError(f"fit: the loss is {value} in {place}: {blame_forward(self.net, x)}")
        self.net.backward(grad, needs_input=False)
        blame = blame_backward(self.net)
        if blame is not None:
            raise FloatingPointError(f"fit: a gradient is not finite in {place}: {blame}")
        if self.clip is not None:
            clip_grad_norm(self.net, self.clip)
        if self.schedule is not None:
            step = self.epoch * self.n_batches + self.batch
            self.optimizer.lr = number("fit", f"schedule({step})", self.schedule(step), 0)
        self.optimizer.step()
        return value, _hits(output, labels)

    def close_epoch(self, interrupt: Interrupt, bar: Any) -> None:
        """Validation, the history's row, callbacks, the decision whether to go on."""
        measured: dict[str, float] = {}
        if self.validation is not None:
            found = _evaluate(self.net, *self.validation, self.loss, interrupt.check)
            measured = dict(zip(("val_loss", "val_accuracy"), found, strict=True))
        n = len(self.images)
        self.whole = False
        self.history.append(
            loss=self.total_loss / n,
            accuracy=self.hits / n if _classes(self.labels) else math.nan,
            lr=self.optimizer.lr,
            seconds=self.seconds,
            images_per_second=n / self.seconds,
            **measured,
        )
        if bar is not None:
            bar.write(self._line(measured))
            bar.set_description(f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}")
        self.batch, self.total_loss, self.hits, self.seconds = 0, 0.0, 0, 0.0
        self.whole = True
        event = Progress(self.net, self.optimizer, self.history, self.epoch, self.epochs)
        ends = [callback(event) for callback in self.callbacks]
        if self.patience is not None:
            losses = self.history["loss" if self.validation is None else "val_loss"]
            ends.append(self.epoch - 1 - int(np.argmin(losses)) >= self.patience)
        self.stopped = any(end is True for end in ends)

    def _accuracy(self, before: str) -> str:
        return f"{before}accuracy {self.hits / self.seen:.2%}" if _classes(self.labels) else ""

    def _line(self, measured: dict[str, float]) -> str:
        text = f"epoch {self.epoch}/{self.epochs}: loss {self.total_loss / len(self.images):.4f}{self._accuracy(', ')}"
        if measured:
            text += f"; validation loss {measured['val_loss']:.4f}"
            if not math.isnan(measured["val_accuracy"]):
                text += f", accuracy {measured['val_accuracy']:.2%}"
        return f"{text}; {len(self.images) / self.seconds:,.0f} images/s"

    # Checkpoints. What decides the course of a run must agree when it is resumed.

    def _identity(self) -> dict[str, int]:
        return {"images": len(self.images), "batch_size": self.batch_size, "seed": self.seed}

    def save(self, path: Any) -> None:
        save_checkpoint(
            path, self.net, self.optimizer, self.history, identity=self._identity(), batch=self.batch,
            total_loss=self.total_loss, hits=self.hits, seconds=self.seconds, stopped=self.stopped,
        )  # fmt: skip

    def load(self, path: Any) -> None:
        name = os.fsdecode(path)
        contents = read(path)
        meta = contents.meta
        if not isinstance(meta.get("identity"), dict):
            raise ValueError(f"fit: {name}: it is no checkpoint of fit")
        for key, value in self._identity().items():
            if meta["identity"].get(key) != value:
                raise ValueError(
                    f"fit: {name}: its run had {key} {meta['identity'].get(key)}, this one has {value}: resume with "
                    "the same, or choose another checkpoint"
                )
        take(contents, self.net, self.optimizer, self.history)
        self.batch, self.total_loss, self.hits = meta["batch"], meta["total_loss"], meta["hits"]
        self.seconds, self.stopped = meta["seconds"], meta["stopped"]


def _bar(shown: bool, run: _Run) -> Any:
    """tqdm's bar over all images of all epochs, or None in its place."""
    if not shown:
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("fit: progress needs tqdm: pip install 'fastconv[train]', or pass progress=False") from None
    n = len(run.images)
    return tqdm(
        total=run.epochs * n, initial=run.epoch * n + run.seen, desc=f"epoch {run.epoch + 1}/{run.epochs}",
        unit=" images", dynamic_ncols=True, disable=None,
    )  # fmt: skip


def _check_net(function: str, net: Any, loss: Any) -> None:
    if not isinstance(net, Layer):
        raise TypeError(f"{function}: net is a {type(net).__name__}: it must be a Layer")
    if not callable(loss):
        raise TypeError(f"{function}: loss is a {type(loss).__name__}: it must be a function")


def _checked(
    function: str, name: str, data: Any, net: Layer, loss: Loss, augment: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, checked against each other and, by one image in eval mode, against the network.

    An image that does not fit as it is may do so augmented: cropped, say.
    """
    try:
        given_images, given_labels = data
    except (TypeError, ValueError):
        raise TypeError(f"{function}: {name} is a {type(data).__name__}: it must be (images, labels)") from None
    images, labels = as_ndarray(function, name, given_images), as_array(function, f"labels of {name}", given_labels)
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise TypeError(f"{function}: {name}: images have dtype {images.dtype}: it must be uint8, float32 or float64")
    if images.ndim < 2 or len(images) == 0:
        raise ValueError(f"{function}: {name}: images have shape {images.shape}: there must be at least one image")
    if labels.ndim == 0:
        raise ValueError(f"{function}: {name}: labels are {shown(given_labels)}: there must be one for each image")
    if len(labels) != len(images):
        raise ValueError(f"{function}: {name}: {len(images)} images and {len(labels)} labels: there must be as many")
    sample = _floats(images[:1], net)
    try:
        with _evaluated(net):
            try:
                output = net(sample)
            except ValueError:
                if augment is None:
                    raise
                sample = augment(sample, np.random.default_rng(0))
                output = net(sample)
    except ValueError as error:
        reason = "; ".join([str(error), *getattr(error, "__notes__", ())])
        raise ValueError(f"{function}: {name}: images of shape {sample.shape[1:]} do not fit: {reason}") from None
    if loss is softmax_cross_entropy:
        if output.ndim != 2:
            raise ValueError(f"{function}: net gives shape {output.shape}: softmax_cross_entropy needs (N, classes)")
        checked_labels(f"{function}: {name}", labels, len(images), output.shape[1])
    return images, labels


def _floats(images: np.ndarray, net: Layer) -> np.ndarray:
    """A batch in the network's dtype; bytes become 0 .. 1."""
    dtype = next((array.dtype for array in net.parameters()), np.dtype(np.float32))
    if images.dtype == np.uint8:
        return np.multiply(images, dtype.type(1 / 255), dtype=dtype)
    return images.astype(dtype, copy=False)


def _classes(labels: np.ndarray) -> bool:
    return labels.ndim == 1 and labels.dtype.kind in "iu"


def _hits(output: np.ndarray, labels: np.ndarray) -> int:
    return int((output.argmax(axis=1) == labels).sum()) if _classes(labels) and output.ndim == 2 else 0
