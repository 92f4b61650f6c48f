"""What the models share."""

from __future__ import annotations

from typing import Any

from fastconv.layers import Conv2d, Dropout, Linear, ReLU, Sequential
from fastconv.layers import _initial as initial
from fastconv.layers._base import count


class Maker:
    """Makes the layers of one model: checked arguments, one dtype, one generator, widths in proportion."""

    def __init__(
        self, model: str, num_classes: Any, in_channels: Any, filters: Any, base: int, dtype: Any, rng: Any
    ) -> None:
        self.num_classes = count(model, "num_classes", num_classes)
        self.in_channels = count(model, "in_channels", in_channels)
        self.filters = count(model, "filters", filters)
        self.base = base
        self.dtype = initial.float_dtype(model, dtype)
        self.rng = initial.generator(model, rng)

    def width(self, published: int, multiple: int = 1) -> int:
        """A published width, scaled as the first layer is; at least ``multiple``, and divisible by it."""
        return max(1, round(published * self.filters / (self.base * multiple))) * multiple

    def conv(self, *args: Any, **options: Any) -> Conv2d:
        """A convolution in front of a ReLU."""
        return Conv2d(*args, **options, init="kaiming_normal", dtype=self.dtype, rng=self.rng)

    def linear(self, in_features: int, out_features: int) -> Linear:
        return Linear(in_features, out_features, dtype=self.dtype, rng=self.rng)

    def dropout(self, p: float = 0.5) -> Dropout:
        return Dropout(p, rng=self.rng)

    def classifier(self, in_features: int) -> Sequential:
        """The three dense layers of AlexNet and ZFNet, 4096 wide."""
        hidden = self.width(4096)
        return Sequential(
            self.dropout(), self.linear(in_features, hidden), ReLU(),
            self.dropout(), self.linear(hidden, hidden), ReLU(),
            self.linear(hidden, self.num_classes),
        )  # fmt: skip
