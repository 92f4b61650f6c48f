"""Training: losses, optimisers, schedules, augmentation, and `fit` that puts them together.

================  ===============================================================
losses.py         `softmax_cross_entropy`, `mean_squared_error`
optimizers.py     `SGD`, `Adam`, `AdamW`
schedules.py      `StepSchedule`, `CosineSchedule`, `OneCycleSchedule`
clipping.py       `clip_grad_norm`
augment.py        `Augment`, `center_crop`
fit.py            `fit`, `evaluate`, `Progress` (tqdm for the bar)
history.py        `History`: what `fit` measured, as arrays and CSV
checkpoint.py     `save_checkpoint`, `load_checkpoint`
_guards.py        Ctrl-C between steps only; which layer gave the first NaN
================  ===============================================================

>>> import numpy as np, fastconv
>>> net = fastconv.Sequential(fastconv.Flatten(), fastconv.Linear(4, 2, rng=0))
>>> images = np.eye(4, dtype=np.float32).reshape(4, 1, 2, 2)
>>> history = fastconv.train.fit(net, (images, [0, 0, 1, 1]), epochs=30, batch_size=2, lr=0.5, progress=False)
>>> float(history["accuracy"][-1])
1.0
"""

import numpy as np

from fastconv.train.augment import Augment, center_crop
from fastconv.train.checkpoint import load_checkpoint, save_checkpoint
from fastconv.train.clipping import clip_grad_norm
from fastconv.train.fit import Progress, evaluate, fit
from fastconv.train.history import History
from fastconv.train.losses import mean_squared_error, softmax_cross_entropy
from fastconv.train.optimizers import SGD, Adam, AdamW
from fastconv.train.schedules import CosineSchedule, OneCycleSchedule, StepSchedule

# The maps of a step come and go. When more lies free at the end of its heap than twice the largest block it has unmapped,
# glibc gives it back, and each page of the next step's maps is faulted in and zeroed anew. A block of the largest size
# that counts, never touched, raises that bound to 64 MiB.
np.empty((32 << 20) - 8192, np.uint8)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Augment",
    "CosineSchedule",
    "History",
    "OneCycleSchedule",
    "Progress",
    "StepSchedule",
    "center_crop",
    "clip_grad_norm",
    "evaluate",
    "fit",
    "load_checkpoint",
    "mean_squared_error",
    "save_checkpoint",
    "softmax_cross_entropy",
]
