"""Schedules: the learning rate as a function of the step, counted from 0."""

from __future__ import annotations

import math
from typing import Any

from fastconv._problem import integer
from fastconv.layers._base import count, number


class StepSchedule:
    """lr * gamma ** floor(step / step_size): a staircase.

    Parameters
    ----------
    lr : float
        At first.
    step_size : int
        Steps until it is multiplied by `gamma`.
    gamma : float

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.

    Examples
    --------
    >>> import fastconv
    >>> schedule = fastconv.train.StepSchedule(0.5, step_size=2, gamma=0.5)
    >>> [schedule(step) for step in range(5)]
    [0.5, 0.5, 0.25, 0.25, 0.125]
    """

    def __init__(self, lr: float, step_size: int, gamma: float = 0.1) -> None:
        self.lr = number("StepSchedule", "lr", lr, 0)
        self.step_size = count("StepSchedule", "step_size", step_size)
        self.gamma = number("StepSchedule", "gamma", gamma, 0)

    def __call__(self, step: int) -> float:
        return self.lr * self.gamma ** (_checked("StepSchedule", step) // self.step_size)


class CosineSchedule:
    """From `lr` to `min_lr` along half a cosine; `min_lr` afterwards.

    Parameters
    ----------
    lr : float
    total_steps : int
    min_lr : float

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.

    Notes
    -----
    min_lr + (lr - min_lr) (1 + cos(pi step / total_steps)) / 2 (Loshchilov and Hutter, arXiv 1608.03983).

    Examples
    --------
    >>> import fastconv
    >>> schedule = fastconv.train.CosineSchedule(1.0, total_steps=4)
    >>> [round(schedule(step), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    def __init__(self, lr: float, total_steps: int, min_lr: float = 0.0) -> None:
        self.lr = number("CosineSchedule", "lr", lr, 0)
        self.total_steps = count("CosineSchedule", "total_steps", total_steps)
        self.min_lr = number("CosineSchedule", "min_lr", min_lr, 0)

    def __call__(self, step: int) -> float:
        return _cosine(self.lr, self.min_lr, min(1.0, _checked("CosineSchedule", step) / self.total_steps))


class OneCycleSchedule:
    """Up from max_lr / div_factor to `max_lr`, then down to almost nothing, each along half a cosine.

    Parameters
    ----------
    max_lr : float
    total_steps : int
    pct_start : float
        Part of the steps on the way up, in 0 .. 1.
    div_factor, final_div_factor : float
        It starts at max_lr / div_factor and ends at max_lr / (div_factor * final_div_factor).

    Raises
    ------
    TypeError, ValueError
        For numbers out of range.

    Notes
    -----
    Smith and Topin, "Super-convergence", arXiv 1708.07120; the learning rates of torch's ``OneCycleLR`` (which by
    default cycles the momentum, too).

    Examples
    --------
    >>> import fastconv
    >>> schedule = fastconv.train.OneCycleSchedule(0.1, total_steps=100)
    >>> [round(schedule(step), 4) for step in (0, 29, 64, 99)]
    [0.004, 0.1, 0.05, 0.0]
    """

    def __init__(
        self,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        function = "OneCycleSchedule"
        self.max_lr = number(function, "max_lr", max_lr, 0)
        self.total_steps = count(function, "total_steps", total_steps)
        self.pct_start = number(function, "pct_start", pct_start, 0, 1)
        self.div_factor = number(function, "div_factor", div_factor, 1)
        self.final_div_factor = number(function, "final_div_factor", final_div_factor, 1)

    def __call__(self, step: int) -> float:
        step = _checked("OneCycleSchedule", step)
        initial = self.max_lr / self.div_factor
        top, last = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if step <= top:
            return _cosine(initial, self.max_lr, step / top if top > 0 else 1.0)
        down = min(1.0, (step - top) / (last - top)) if last > top else 1.0
        return _cosine(self.max_lr, initial / self.final_div_factor, down)


def _checked(function: str, step: Any) -> int:
    step = integer(function, "step", step)
    if step < 0:
        raise ValueError(f"{function}: step {step}: it must be at least 0")
    return step


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
