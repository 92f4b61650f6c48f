"""Import and first call, each in a fresh Python process."""

from fastconv import _backends

from . import _common

FIRST_CALL = """
import numpy as np
import fastconv
fastconv.conv2d(np.ones((1, 3, 8, 8), "float32"), np.ones((8, 3, 3, 3), "float32"), backend={backend!r})
"""


class Import:
    """``import fastconv``, NumPy's own import included."""

    number = 1
    repeat = (5, 20, 10.0)

    def timeraw_import(self):
        return "import fastconv"

    def timeraw_import_numpy(self):
        """The part that is not ours."""
        return "import numpy"


class FirstCall:
    """Import and first convolution. Numba compiles, or loads what an earlier process compiled and cached."""

    params = (_common.BACKENDS,)
    param_names = ("backend",)
    number = 1
    repeat = (3, 10, 20.0)
    timeout = 300.0

    def setup(self, backend):
        _common.require(backend)

    def timeraw_first_call(self, backend):
        return FIRST_CALL.format(backend=backend)

    def timeraw_first_call_uncached(self, backend):
        """The same with an empty Numba cache."""
        return (
            FIRST_CALL.format(backend=backend),
            "import os, tempfile\nos.environ['NUMBA_CACHE_DIR'] = tempfile.mkdtemp()",
        )


class Availability:
    """How many back ends and ISA levels run here: a drop explains a gap in every other graph."""

    unit = "kernel sets"

    def track_kernel_sets(self):
        return sum(
            _backends.refusal(name.partition("-")[0], name.partition("-")[2] or None) is None
            for name in _common.KERNELS
        )
