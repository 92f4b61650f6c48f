"""`History`: what training measured."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastconv import _state
from fastconv._arrays import as_array

COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds", "images_per_second")


class History:
    """One row for each epoch that has been trained; ``history["loss"]`` is a column as an array.

    Columns are epoch (from 1), loss and accuracy (means over the epoch, while the parameters changed), val_loss and
    val_accuracy (after it), lr (of its last step), seconds and images_per_second (of training alone). What was not
    measured is NaN.

    Examples
    --------
    >>> import fastconv
    >>> history = fastconv.train.History()
    >>> history.append(loss=0.5, accuracy=0.75, lr=0.1, seconds=2.0, images_per_second=100.0)
    >>> len(history), history["epoch"], history["loss"], history["val_loss"]
    (1, array([1]), array([0.5]), array([nan]))
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in COLUMNS:
            raise KeyError(f"History: column {column!r}: it must be one of {', '.join(map(repr, COLUMNS))}")
        kind = np.int64 if column == "epoch" else np.float64
        return np.array([row[column] for row in self._rows], kind)

    def __repr__(self) -> str:
        return f"History({len(self)} epochs)"

    def append(self, **values: float) -> None:
        """Add an epoch's row; columns that are not given are NaN."""
        unknown = values.keys() - set(COLUMNS[1:])
        if unknown:
            raise ValueError(f"History.append: {min(unknown)!r}: it must be one of {', '.join(COLUMNS[1:])}")
        row = {name: float(values.get(name, math.nan)) for name in COLUMNS[1:]}
        self._rows.append({"epoch": len(self) + 1, **row})

    def state_dict(self) -> dict[str, np.ndarray]:
        """All columns as arrays."""
        return {name: self[name] for name in COLUMNS}

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over what `state_dict` gave; TypeError or ValueError for anything else, and nothing is changed."""
        function = "History.load_state_dict"
        if not isinstance(state_dict, Mapping):
            kind = type(state_dict).__name__
            raise TypeError(f"{function}: state_dict is a {kind}: it must be a mapping of names to arrays")
        missing = [name for name in COLUMNS if name not in state_dict]
        if missing:
            raise ValueError(f"{function}: {missing[0]!r} and {len(missing) - 1} more keys: missing")
        columns = [as_array(function, repr(name), state_dict[name]) for name in COLUMNS]
        if any(column.ndim != 1 or column.dtype.kind not in "fiu" for column in columns):
            raise TypeError(f"{function}: state_dict: its columns must be arrays (epochs,) of numbers")
        if len(set(map(len, columns))) > 1:
            raise ValueError(f"{function}: columns of {sorted(set(map(len, columns)))} epochs: they must be as long")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self._rows = [dict(zip(COLUMNS, row, strict=True)) for row in rows]

    def to_csv(self, path: Any) -> None:
        """Write a table with one line for each epoch, empty where nothing was measured; whole or not at all."""
        _state.path_name("History.to_csv", path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self._rows:
            writer.writerow(["" if math.isnan(row[name]) else row[name] for name in COLUMNS])
        _state.write_bytes(path, text.getvalue().encode())
