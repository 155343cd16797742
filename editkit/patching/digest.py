"""XXH64, a checksum of 64 bits at the speed of memory: every block of a model that a patch is put on is checked with it.

>>> hex(xxh64(np.frombuffer(b"abc", np.uint8)))
'0x44bc2cf5ad770999'

Yann Collet, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md (seed 0). It finds accidents, not forgeries: for those
a patch holds the sha256 of all files, see `verify_patch`.
"""

import numpy as np
from numba import njit

_1, _2, _3, _4, _5 = (
    np.uint64(prime)
    for prime in (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
)


def xxh64(data: np.ndarray) -> int:
    """The checksum of `data` (uint8, contiguous)."""
    words = data[: data.size // 8 * 8].view(np.uint64)
    return int(_xxh64(words, data[data.size // 8 * 8 :], np.uint64(data.size)))


@njit(cache=True, nogil=True, inline="always")
def _rotated(value, bits):
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit(cache=True, nogil=True, inline="always")
def _round(lane, word):
    return _rotated(lane + word * _2, 31) * _1


@njit(cache=True, nogil=True)
def _xxh64(words, rest, size):
    done = words.size // 4 * 4
    if done:
        a, b, c, d = _1 + _2, _2, np.uint64(0), np.uint64(0) - _1
        for i in range(0, done, 4):
            a, b = _round(a, words[i]), _round(b, words[i + 1])
            c, d = _round(c, words[i + 2]), _round(d, words[i + 3])
        digest = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
        for lane in (a, b, c, d):
            digest = (digest ^ _round(np.uint64(0), lane)) * _1 + _4
    else:
        digest = _5
    digest += size
    for i in range(done, words.size):
        digest = _rotated(digest ^ _round(np.uint64(0), words[i]), 27) * _1 + _4
    first = 0
    if rest.size >= 4:
        word = np.uint64(0)
        for i in range(4):
            word |= np.uint64(rest[i]) << np.uint64(8 * i)
        digest = _rotated(digest ^ (word * _1), 23) * _2 + _3
        first = 4
    for i in range(first, rest.size):
        digest = _rotated(digest ^ (np.uint64(rest[i]) * _5), 11) * _1
    digest = (digest ^ (digest >> np.uint64(33))) * _2
    digest = (digest ^ (digest >> np.uint64(29))) * _3
    return digest ^ (digest >> np.uint64(32))
