"""THE CONTRACT: every kernel in plain NumPy, written to be read. Compiled back ends do exactly this.

A kernel takes inputs, outputs, workspace, ``geometry`` and ``n_threads``; checks nothing, returns None. Arrays are
C-contiguous and of one dtype; an array that a call does not use has length 0.
"""
