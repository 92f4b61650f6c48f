"""A small network with everything that has a state, for tests of `fit`; run as a script it trains until it is killed."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np

import fastconv
from fastconv import train

EPOCHS = 3


def images(n=40, seed=0):
    """Bright left or bright right half, in noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    x = rng.integers(0, 120, (n, 1, 12, 12), dtype=np.uint8)
    for image, label in zip(x, labels, strict=True):
        image[0, :, 6 * label : 6 * label + 6] += 100
    return x, labels


def network(seed=0):
    make = np.random.default_rng(seed)
    return fastconv.Sequential(
        fastconv.Conv2d(1, 4, 3, rng=make), fastconv.BatchNorm2d(4), fastconv.ReLU(), fastconv.MaxPool2d(2),
        fastconv.Flatten(), fastconv.Dropout(0.3, rng=make), fastconv.Linear(100, 2, rng=make),
    )  # fmt: skip


class Signalled:
    """An augmentation that sends this process a signal at its call number ``at``."""

    def __init__(self, at=None, number=signal.SIGINT):
        self.calls, self.at, self.number = 0, at, number
        self.augment = train.Augment(shift=1, rotate=5, flip=False)

    def __call__(self, x, rng):
        self.calls += 1
        if self.calls == self.at:
            os.kill(os.getpid(), self.number)
        return self.augment(x, rng)


def run(net, checkpoint=None, augment=None, optimizer=None, **options):
    """Five batches in each of three epochs."""
    options = {"epochs": EPOCHS, "progress": False, "validation": images(16, 1), **options}
    return train.fit(
        net, images(), batch_size=9, optimizer=optimizer or train.AdamW(net, 0.01),
        schedule=train.OneCycleSchedule(0.01, 5 * EPOCHS), augment=augment or Signalled(), checkpoint=checkpoint,
        clip=1.0, **options,
    )  # fmt: skip


def same(a, b):
    """Whether two networks hold the same bits, and their generators stand alike."""
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    bits = all(first[name].tobytes() == second[name].tobytes() for name in first)
    return bits and a[5].rng.bit_generator.state == b[5].rng.bit_generator.state


if __name__ == "__main__":
    run(network(), sys.argv[1], Signalled(8, signal.SIGKILL))
