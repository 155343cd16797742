"""The difference of two tensors bit by bit, in few bytes, and the way from either to the other.

>>> before, after = (np.array(values, np.float32).view(np.uint8) for values in ([1, 2, 3], [1, 2, 3.0000002]))
>>> packed, changed = pack(before, after, 4)
>>> unpack(packed, before, 4, 1)
>>> changed, before.view(np.float32)
(1, array([1.       , 2.       , 3.0000002], dtype=float32))

The bits of an element are read as a whole number, and the number of one side is subtracted from that of the other, modulo
2^bits: neighbouring floats of one sign are 1 apart, so that an edit gives small numbers where XOR would give long runs of ones
at every carry (of a change of 5 % in bf16, XOR leaves 14 % more). A step s is folded to 2s or -2s - 1, as in
https://protobuf.dev/programming-guides/encoding/#signed-ints, and the folded steps are stored byte by byte: first the lowest bytes of
all elements, last the highest ones, which are nearly all zero. Where half of the elements or fewer changed, only these are stored,
each after the count of unchanged ones before it. Zstandard (https://www.rfc-editor.org/rfc/rfc8878) packs either.
"""

import numpy as np
import zstandard
from numba import njit

from editkit.checkpoint.blocks import Scratch

LEVEL = 1
"""Of zstandard. Higher levels look for repetitions, which weights do not have: level 5 takes five times as long for 1 %."""
SPARSE = 0.5
"""Largest share of changed elements at which these are stored alone: there both ways take as many bytes, or nearly so."""
ALL, ALONE = 0, 1
"""The last byte of a frame: whether it holds the steps of all elements, or gaps and steps of the changed ones alone."""
_GAP = np.dtype("<u4")


class _Tools(Scratch):
    """One compressor and decompressor for each thread, which are not to be shared, and arrays to use again."""

    def __init__(self) -> None:
        super().__init__()
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()


_tools = _Tools()


def compress(data: bytes | np.ndarray) -> bytes:
    """One frame of zstandard."""
    return _tools.compressor.compress(memoryview(data))


def decompress(frame: bytes | np.ndarray, size: int) -> np.ndarray:
    """What a frame holds, at most `size` bytes (uint8), until the thread calls this again.

    Raises ValueError where it is damaged or holds more.
    """
    content = _tools.array("content", (size + 1,), np.uint8)
    try:
        with _tools.decompressor.stream_reader(memoryview(frame)) as stream:
            count = stream.readinto(content)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    if count > size:
        raise ValueError(f"it holds more than {size} bytes")
    return content[:count]


def unpacked_size(frame: bytes) -> int:
    """How many bytes a frame says it holds, at most a GB. Raises ValueError where it says nothing, or more."""
    size = zstandard.frame_content_size(frame)
    if not 0 <= size <= 1 << 30:
        raise ValueError(f"a frame of {size} bytes")
    return size


def pack(before: np.ndarray, after: np.ndarray, width: int) -> tuple[bytes, int]:
    """The steps from `before` to `after` (uint8, contiguous, elements of `width` bytes), packed, and how many are not zero."""
    one, other = (side.view(f"<u{width}") for side in (before, after))
    folded = np.empty_like(one)
    changed = int(_fold(one, other, folded))
    if changed > SPARSE * folded.size:
        parts, form = [_planes(folded)], ALL
    else:
        places = np.flatnonzero(folded)
        gaps = np.diff(places, prepend=-1) - 1
        parts, form = [_planes(gaps.astype(_GAP)), _planes(folded[places])], ALONE
    return compress(np.concatenate([*parts, np.array([form], np.uint8)])), changed


def unpack(packed: bytes | np.ndarray, side: np.ndarray, width: int, direction: int) -> None:
    """Move `side` in place by the steps, once forward (`direction` 1) or back (-1).

    Raises ValueError where `packed` is damaged or was made for a side of another size.
    """
    values = side.view(f"<u{width}")
    content = decompress(packed, values.size * (_GAP.itemsize + width) + 1)
    form, content = content[-1:].tolist(), content[:-1]
    if form == [ALL] and content.size == side.size:
        (_forward if direction > 0 else _back)(values, _joined("folded", content, values.dtype))
    elif form == [ALONE] and content.size % (_GAP.itemsize + width) == 0:
        count = content.size // (_GAP.itemsize + width)
        gaps = _joined("gaps", content[: count * _GAP.itemsize], _GAP)
        folded = _joined("folded", content[gaps.nbytes :], values.dtype)
        if _alone(values, folded, gaps, direction) > values.size:
            raise ValueError("it names elements that are not there")
    else:
        raise ValueError(f"{content.size} bytes are no steps of {side.size} bytes")


def _planes(values: np.ndarray) -> np.ndarray:
    """The bytes of all elements, the lowest ones first."""
    planes = np.empty((values.itemsize, values.size), np.uint8)
    _split(values, planes)
    return planes.reshape(-1)


def _joined(purpose: str, content: np.ndarray, dtype: np.dtype) -> np.ndarray:
    values = _tools.array(purpose, (content.size // dtype.itemsize,), dtype)
    _join(content.reshape(dtype.itemsize, values.size), values)
    return values


# Sums and differences of unsigned integers wrap around. The types are spelled out: numba makes a float of uint64 and a literal.


@njit(cache=True, nogil=True)
def _fold(one, other, folded):
    kind = one.dtype.type
    sign, changed = kind(8 * one.itemsize - 1), 0
    for i in range(one.size):
        step = kind(other[i] - one[i])
        folded[i] = kind(step << kind(1)) ^ kind(kind(0) - (step >> sign))
        changed += step != kind(0)
    return changed


@njit(cache=True, nogil=True, inline="always")
def _unfolded(folded, kind):
    return kind((folded >> kind(1)) ^ kind(kind(0) - (folded & kind(1))))


@njit(cache=True, nogil=True)
def _forward(values, folded):
    for i in range(values.size):
        values[i] += _unfolded(folded[i], values.dtype.type)


@njit(cache=True, nogil=True)
def _back(values, folded):
    for i in range(values.size):
        values[i] -= _unfolded(folded[i], values.dtype.type)


@njit(cache=True, nogil=True)
def _alone(values, folded, gaps, direction):
    """One after the element that the last gap led to; more than there are elements where it leads outside."""
    kind, place = values.dtype.type, np.int64(0)
    for i in range(gaps.size):
        place += np.int64(gaps[i])
        if place >= values.size:
            return values.size + 1
        step = _unfolded(folded[i], kind)
        values[place] = kind(values[place] + step) if direction > 0 else kind(values[place] - step)
        place += 1
    return place


@njit(cache=True, nogil=True)
def _split(values, planes):
    kind = values.dtype.type
    for plane in range(planes.shape[0]):
        shift = kind(8 * plane)
        for i in range(values.size):
            planes[plane, i] = np.uint8((values[i] >> shift) & kind(255))


@njit(cache=True, nogil=True)
def _join(planes, values):
    kind = values.dtype.type
    for i in range(values.size):
        values[i] = planes[0, i]
    for plane in range(1, planes.shape[0]):
        shift = kind(8 * plane)
        for i in range(values.size):
            values[i] |= kind(kind(planes[plane, i]) << shift)
