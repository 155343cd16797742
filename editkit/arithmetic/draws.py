"""Random numbers that depend on a key and an index alone, so that order, blocks and threads don't matter.

>>> key = key_of(0, "lm_head.weight")
>>> import numpy as np
>>> whole, part = np.empty(5, np.float32), np.empty(2, np.float32)
>>> uniform(key, 0, whole); uniform(key, 3, part)
>>> bool((whole[3:] == part).all() and (whole > 0).all() and (whole <= 1).all())
True
"""

from hashlib import sha256

import numpy as np
from numba import njit


def key_of(seed: int, name: str) -> int:
    """64 bits from a seed and the name of what is drawn, such as a tensor's."""
    return int.from_bytes(sha256(f"{seed}\0{name}".encode()).digest()[:8], "little")


def uniform(key: int, first: int, out: np.ndarray) -> None:
    """Fill `out` (float32, contiguous) with draws from (0, 1], those with the indices `first` and following."""
    _uniform(np.uint64(key), np.uint64(first), out.reshape(-1))


@njit(cache=True, nogil=True)
def splitmix(key, index):
    """The 64 random bits of one index: splitmix64 (Steele et al., 2014)."""
    draw = key + index * np.uint64(0x9E3779B97F4A7C15)
    draw = (draw ^ (draw >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    draw = (draw ^ (draw >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return draw ^ (draw >> np.uint64(31))


@njit(cache=True, nogil=True)
def _uniform(key, first, out):
    for i in range(out.size):
        out[i] = np.float32((splitmix(key, first + np.uint64(i)) >> np.uint64(40)) + np.uint64(1)) * np.float32(
            2.0**-24
        )
