"""The steps between two tensors: there and back, worked by hand, small where little changed, and never trusted when damaged."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from editkit.patching import steps
from editkit.patching.digest import xxh64
from editkit.patching.steps import ALL, ALONE, pack, unpack


def moved(packed, side, width, direction):
    there = side.copy()
    unpack(packed, there, width, direction)
    return there


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (b"", 0xEF46DB3751D8E999),
        (b"a", 0xD24EC4F1A98C6E5B),
        (b"abc", 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0xFBCEA83C8A378BF1),  # https://pypi.org/project/xxhash
    ],
)
def test_the_checksum_is_xxh64(text, digest):
    assert xxh64(np.frombuffer(text, np.uint8)) == digest


def test_the_checksum_agrees_with_the_library_at_every_length():
    library = pytest.importorskip("xxhash")
    data = np.random.default_rng(0).integers(0, 256, 200, np.uint8)
    for size in range(200):
        assert xxh64(data[:size]) == library.xxh64_intdigest(data[:size].tobytes()), size


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32), width=st.sampled_from([1, 2, 4, 8]), count=st.integers(1, 300), share=st.floats(0, 1)
)
def test_there_and_back_for_any_bits(seed, width, count, share):
    draw = np.random.default_rng(seed)
    one, other = (draw.integers(0, 256, (count, width), np.uint8) for _ in range(2))
    same = draw.random(count) >= share
    other[same] = one[same]
    packed, changed = pack(one.reshape(-1), other.reshape(-1), width)
    assert changed == (one != other).any(axis=1).sum()
    assert (moved(packed, one.reshape(-1), width, 1) == other.reshape(-1)).all()
    assert (moved(packed, other.reshape(-1), width, -1) == one.reshape(-1)).all()


def content(packed):
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=10_000)


def test_all_steps_worked_by_hand():
    before, after = np.array([0x3F80, 0x3F80, 0x0000], "<u2"), np.array([0x3F81, 0x3F7F, 0xFFFF], "<u2")
    packed, _ = pack(before.view(np.uint8), after.view(np.uint8), 2)  # steps 1, -1, -1: folded 2, 1, 1
    assert content(packed) == bytes([2, 1, 1, 0, 0, 0, ALL])


def test_steps_of_few_elements_worked_by_hand():
    before, after = np.zeros(600, "<u2"), np.zeros(600, "<u2")
    after[3], after[300] = (
        0x0102,
        0xFFFE,
    )  # after 3 and 296 = 0x0128 others; steps 258 = 0x102 and -2: folded 0x204 and 3
    packed, _ = pack(before.view(np.uint8), after.view(np.uint8), 2)
    gaps = bytes([3, 0x28, 0, 0x01, 0, 0, 0, 0])
    assert content(packed) == gaps + bytes([0x04, 3, 0x02, 0]) + bytes([ALONE])


def test_few_changes_take_few_bytes_and_many_no_more_than_xor_would():
    draw = np.random.default_rng(0)
    size = 1 << 19
    weights = draw.standard_normal(size).astype(np.float32) * np.float32(0.02)
    tuned = weights + draw.standard_normal(size).astype(np.float32) * np.float32(0.001)
    one, other = ((side.view(np.uint32) >> 16).astype("<u2") for side in (weights, tuned))
    packed, changed = pack(one.view(np.uint8), other.view(np.uint8), 2)
    assert changed > 0.9 * size
    xor = np.ascontiguousarray((one ^ other).view(np.uint8).reshape(-1, 2).T)
    assert len(packed) < 0.95 * len(zstandard.ZstdCompressor(level=3).compress(xor.tobytes()))
    few = np.where(draw.random(size) < 0.01, other, one)
    packed, changed = pack(one.view(np.uint8), few.view(np.uint8), 2)
    assert len(packed) < 3 * changed


@pytest.mark.parametrize(
    "made",
    [
        b"",
        b"not zstandard",
        lambda: steps.compress(b""),
        lambda: steps.compress(bytes([1, 0, 0, 0, ALL])),  # of two elements, not of four
        lambda: steps.compress(bytes([9, 0, 0, 0, 2, 0, ALONE])),  # element 9 of 4
        lambda: steps.compress(bytes([3, 0, 0, 0, 2, ALONE])),  # a step of one byte
        lambda: steps.compress(bytes([3, 0, 0, 0, 2, 0, 7])),  # an unknown form
        lambda: steps.compress(bytes(1000)),
    ],
)
def test_damaged_frames_are_refused(made):
    with pytest.raises(ValueError):
        unpack(made if isinstance(made, bytes) else made(), np.zeros(8, np.uint8), 2, 1)
