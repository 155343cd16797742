"""Counting scores by their bits, to find the k-th largest of any number of them in two passes.

Positive float32 numbers are in the order of their bits read as whole numbers. The first pass counts the upper 16 of the 32
bits, the second the lower 16 of those scores whose upper bits are those of the k-th largest. Nothing is sorted or copied.

>>> import numpy as np
>>> scores = np.array([0.5, 3.0, 2.0, 3.0, -1.0], np.float32)
>>> high = upper(scores)
>>> bin, above = position(high, 3)          # the third largest, 2.0, lies in this bin, with 0 scores in bins above
>>> low, more = position(lower(scores, bin), 3 - above)
>>> value = value_of(bin, low)
>>> value, above + more
(2.0, 2)
>>> chosen, ties = choose(scores, value)
>>> chosen.tolist(), ties
([False, True, False, True, False], 1)
"""

import numpy as np
from numba import njit

from editkit.arithmetic.bits import int_of_bits

BINS = 1 << 16


def upper(scores: np.ndarray) -> np.ndarray:
    """How many positive scores have which upper 16 bits: uint32 [65536]."""
    counts = np.zeros(BINS, np.uint32)
    _upper(scores.reshape(-1), counts)
    return counts


def lower(scores: np.ndarray, bin: int) -> np.ndarray:
    """Of the positive scores whose upper 16 bits are `bin`: how many have which lower 16 bits, uint32 [65536]."""
    counts = np.zeros(BINS, np.uint32)
    _lower(scores.reshape(-1), bin, counts)
    return counts


def position(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest score, and how many scores lie in the bins above it."""
    from_top = np.cumsum(counts[::-1], dtype=np.int64)
    index = int(np.searchsorted(from_top, rank))
    return len(counts) - 1 - index, int(from_top[index - 1]) if index else 0


def value_of(bin: int, low: int) -> float:
    """The score with these upper and lower 16 bits."""
    return float(np.array([bin << 16 | low], np.uint32).view(np.float32)[0])


def choose(scores: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Which scores lie above the threshold (bool, flat), and how many are equal to it."""
    chosen = np.empty(scores.size, np.bool_)
    return chosen, _choose(scores.reshape(-1), np.float32(threshold), chosen)


@njit(cache=True, nogil=True)
def _upper(scores, counts):
    for i in range(scores.size):
        if scores[i] > 0:
            counts[int_of_bits(scores[i]) >> 16] += 1


@njit(cache=True, nogil=True)
def _lower(scores, bin, counts):
    for i in range(scores.size):
        if scores[i] > 0 and int_of_bits(scores[i]) >> 16 == bin:
            counts[int_of_bits(scores[i]) & 0xFFFF] += 1


@njit(cache=True, nogil=True)
def _choose(scores, threshold, chosen):
    ties = 0
    for i in range(scores.size):
        chosen[i] = scores[i] > threshold
        ties += scores[i] == threshold
    return ties
