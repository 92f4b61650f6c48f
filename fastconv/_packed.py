"""Weights packed once and used by many calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv._arrays import ready
from fastconv._plan import Plan
from fastconv._threads import Lock

_lock = Lock()  # around packing


class PackedWeight:
    """A convolution weight with its packed forms: made by `fastconv.pack_conv2d_weight`, accepted where a weight is.

    Each algorithm, back end and ISA reads a layout of its own. A layout is made when a call first needs it, and kept;
    it is never taken for another. Threads may share a PackedWeight. Pickles and copies hold the plain weight alone.

    Attributes
    ----------
    source : (OC, IC/groups, KH, KW) array, read-only
        The plain weight.
    shape, dtype, ndim
        Those of `source`.
    nbytes : int
        Bytes of the packed forms made so far.

    Examples
    --------
    >>> import numpy as np, fastconv
    >>> packed = fastconv.pack_conv2d_weight(np.ones((8, 4, 3, 3), np.float32))
    >>> packed
    PackedWeight(shape=(8, 4, 3, 3), dtype=float32, packed: nothing yet)
    >>> np.asarray(packed).flags.writeable
    False
    """

    def __init__(self, source: np.ndarray) -> None:
        self.source = source
        self._packs: dict[Any, np.ndarray] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the plain weight."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        return self.source.dtype

    @property
    def ndim(self) -> int:
        """Its number of axes."""
        return self.source.ndim

    @property
    def nbytes(self) -> int:
        """Bytes of the packed forms made so far."""
        return sum(pack.nbytes for pack in self._packs.values() if pack is not self.source)

    def packed_for(self, plan: Plan) -> np.ndarray:
        """The weight as ``plan`` reads it."""
        found = self._packs.get(plan.pack_key)
        if found is None:
            with _lock:
                found = self._packs.get(plan.pack_key)
                if found is None:
                    found = plan.pack(ready(self.source, plan.problem.weight_shape))
                    self._packs[plan.pack_key] = found
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.source, dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.source,)

    def __repr__(self) -> str:
        layouts = ", ".join(str(key[0]) for key in self._packs) or "nothing yet"
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype}, packed: {layouts})"
