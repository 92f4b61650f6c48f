"""The Numba back end: the same stems, functions and order as ``src_cython``; `_jit` holds the one compile policy."""
