"""Checkpoints: network, optimiser, history and generators in one file, for an exact continuation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fastconv import _state
from fastconv.layers import Layer
from fastconv.train.history import History

FORMAT = 1
_PARTS = ("net", "optimizer", "history")


def save_checkpoint(path: Any, net: Layer, optimizer: Any = None, history: History | None = None, **meta: Any) -> None:
    """Write all that is needed to go on as if nothing had happened.

    Parameters
    ----------
    path : str or path
        Ends in ".npz" or ".safetensors"; written whole or not at all, as by `fastconv.save`.
    net : Layer
        Parameters, buffers, and the generators of its layers (`Dropout`).
    optimizer : SGD, Adam or AdamW, optional
    history : History, optional
    **meta
        Anything that JSON holds; `load_checkpoint` returns it.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        As `fastconv.save`; what was at `path` is unchanged then.

    Examples
    --------
    >>> import fastconv, tempfile
    >>> net = fastconv.Linear(3, 2, rng=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.train.save_checkpoint(f"{folder}/a.npz", net, epoch=7)
    ...     fastconv.train.load_checkpoint(f"{folder}/a.npz", fastconv.Linear(3, 2))
    {'epoch': 7}
    """
    entries: dict[str, np.ndarray] = {}
    for part, owner in zip(_PARTS, (net, optimizer, history), strict=True):
        _check_part("save_checkpoint", part, owner)
        if owner is not None:
            entries.update({f"{part}.{name}": array for name, array in owner.state_dict().items()})
    generators = {name: rng.bit_generator.state for name, rng in _generators(net)}
    text = json.dumps({"format": FORMAT, "generators": generators, "meta": meta}, default=_plain)
    entries["checkpoint"] = np.frombuffer(text.encode(), np.uint8)
    _state.save(entries, path)


def load_checkpoint(path: Any, net: Layer, optimizer: Any = None, history: History | None = None) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote into a network, an optimiser and a history of the same kinds.

    Parameters
    ----------
    path : str or path
    net : Layer
    optimizer : SGD, Adam or AdamW, optional
        Must have been saved, too.
    history : History, optional
        Must have been saved, too.

    Returns
    -------
    dict
        The ``meta`` that was saved.

    Raises
    ------
    ValueError
        If the file is damaged, no checkpoint, or of another network or optimiser; nothing is changed then.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import fastconv, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fastconv.save(fastconv.Linear(3, 2), f"{folder}/a.npz")
    ...     try:
    ...         fastconv.train.load_checkpoint(f"{folder}/a.npz", fastconv.Linear(3, 2))
    ...     except ValueError as error:
    ...         print(str(error).partition("/a.npz: ")[2])
    it is no checkpoint of save_checkpoint
    """
    for part, owner in zip(_PARTS, (net, optimizer, history), strict=True):
        _check_part("load_checkpoint", part, owner)
    return take(read(path), net, optimizer, history)


class Contents(NamedTuple):
    """What a checkpoint holds."""

    name: str
    entries: dict[str, np.ndarray]
    generators: dict[str, Any]
    meta: dict[str, Any]


def read(path: Any) -> Contents:
    """A checkpoint file, before anything is changed by it."""
    name, entries = _state.path_name("load_checkpoint", path), _state.read("load_checkpoint", path)
    try:
        head = json.loads(entries["checkpoint"].tobytes())
        generators, meta, version = head["generators"], head["meta"], head["format"]
        if not isinstance(generators, dict) or not isinstance(meta, dict):
            raise TypeError
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"load_checkpoint: {name}: it is no checkpoint of save_checkpoint") from None
    if version != FORMAT:
        raise ValueError(f"load_checkpoint: {name}: format {version!r}: this version reads format {FORMAT}")
    return Contents(name, entries, generators, meta)


def take(contents: Contents, net: Layer, optimizer: Any, history: History | None) -> dict[str, Any]:
    """Put it into a network, an optimiser and a history; if it does not fit, nothing is changed."""
    name, entries, generators, meta = contents
    owners = [(part, owner) for part, owner in zip(_PARTS, (net, optimizer, history), strict=True) if owner is not None]
    former = {part: owner.state_dict() for part, owner in owners}
    streams = [(rng, rng.bit_generator.state) for _, rng in _generators(net)]
    try:
        for part, owner in owners:
            found = {key.partition(".")[2]: value for key, value in entries.items() if key.startswith(f"{part}.")}
            owner.load_state_dict(found)
        for layer, rng in _generators(net):
            rng.bit_generator.state = generators[layer]
    except (KeyError, TypeError, ValueError) as error:
        for part, owner in owners:
            owner.load_state_dict(former[part])
        for rng, state in streams:
            rng.bit_generator.state = state
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"load_checkpoint: {name}: it does not fit: {reason}") from None
    return meta


def _check_part(function: str, part: str, owner: Any) -> None:
    if part == "net" and not isinstance(owner, Layer):
        raise TypeError(f"{function}: net is a {type(owner).__name__}: it must be a Layer")
    if owner is not None and not (hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict")):
        raise TypeError(f"{function}: {part} is a {type(owner).__name__}: it has no state")


def _generators(net: Layer) -> Iterator[tuple[str, np.random.Generator]]:
    for name, layer in net.named_layers():
        rng = getattr(layer, "rng", None)
        if isinstance(rng, np.random.Generator):
            yield name, rng


def _plain(value: Any) -> Any:
    """Arrays and NumPy's numbers (in the states of some generators) for JSON."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"save_checkpoint: meta holds a {type(value).__name__}: it must be what JSON can hold")
