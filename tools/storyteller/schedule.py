"""Where is the training by the clock, and what follows from it?

The schedule runs on wall time, not on steps: a slow or paused machine still ends on time.
"""

import math
import time
from bisect import bisect_right

WARMUP_STEPS = 60
STAGE_STARTS = (0.45, 0.8)  # fractions of the time at which the second stage begins, and the third
_FLOOR = 0.02  # last learning rate as a fraction of the peak


def progress(start, deadline):
    """Returns the elapsed fraction (0 to 1) between two times in seconds since the epoch."""
    return min(1.0, max(0.0, (time.time() - start) / (deadline - start)))


def stage(fraction):
    """Returns the index of the data mixture at `fraction` of the time."""
    return bisect_right(STAGE_STARTS, fraction)


def rate(peak, fraction, step):
    """Returns the learning rate: linear warmup by steps, cosine decay by time."""
    cosine = _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * fraction))
    return peak * cosine * min(1.0, (step + 1) / WARMUP_STEPS)
