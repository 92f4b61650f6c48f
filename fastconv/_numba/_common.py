"""What several kernel files use: common.pxd's twin."""

from fastconv._numba._jit import helper, shared


@shared
def ceil_div(a, b):
    """ceil(a / b) for b > 0, also for negative a."""
    return -(-a // b)


@helper
def clamp(value, low, high):
    """value within [low, high]; NaN stays NaN: both comparisons are false for it."""
    if value < low:
        return low
    if value > high:
        return high
    return value
