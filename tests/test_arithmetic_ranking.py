import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from editkit.arithmetic import draws, ranking

SMALLEST = np.float32(1.4e-45)  # the least number above zero
ANY = arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
ROUGH = arrays(
    np.float32, st.integers(1, 60), elements=st.sampled_from([0.0, -0.0, -1.0, SMALLEST, 1.0, 1.5, 1.0000001])
)


@settings(deadline=None)
@given(ANY | ROUGH, st.data())
def test_the_kth_largest_is_that_of_a_sort(scores, data):
    """Counted in two halves of the scores, as blocks are."""
    order = np.sort(scores[scores > 0])[::-1]
    if not len(order):
        assert ranking.upper(scores).sum() == 0
        return
    rank, cut = data.draw(st.integers(1, len(order))), data.draw(st.integers(0, len(scores)))
    parts = scores[:cut], scores[cut:]
    high = sum((ranking.upper(part).astype(np.int64) for part in parts), np.zeros(ranking.BINS, np.int64))
    assert high.sum() == len(order)
    bin, above = ranking.position(high, rank)
    low = sum(ranking.lower(part, bin).astype(np.int64) for part in parts)
    place, more = ranking.position(low, rank - above)
    value = ranking.value_of(bin, place)
    assert value == order[rank - 1]
    assert above + more == np.count_nonzero(order > value)
    chosen, ties = ranking.choose(scores, value)
    assert np.array_equal(chosen, scores > value) and ties == np.count_nonzero(scores == value)


def test_only_scores_above_zero_are_counted_in_the_bin_of_their_bits():
    scores = np.array([[0.0, -0.0, -2.0], [1.0, SMALLEST, np.float32(3.4e38)]], np.float32)
    counts = ranking.upper(scores)
    assert np.flatnonzero(counts).tolist() == [0x0000, 0x3F80, 0x7F7F] and counts.sum() == 3
    assert np.flatnonzero(ranking.lower(scores, 0)).tolist() == [1]


def test_a_value_is_put_together_from_its_bits():
    for value in (SMALLEST, np.float32(1e-40), np.float32(0.1), np.float32(3.4e38)):
        bits = int(value.view(np.uint32))
        assert ranking.value_of(bits >> 16, bits & 0xFFFF) == float(value)


def test_draws_are_splitmix64_worked_out_with_whole_numbers():
    key, wide = draws.key_of(3, "lm_head.weight"), (1 << 64) - 1

    def by_hand(index):
        draw = (key + index * 0x9E3779B97F4A7C15) & wide
        draw = ((draw ^ (draw >> 30)) * 0xBF58476D1CE4E5B9) & wide
        draw = ((draw ^ (draw >> 27)) * 0x94D049BB133111EB) & wide
        return (((draw ^ (draw >> 31)) >> 40) + 1) / 2**24

    found = np.empty((2, 3), np.float32)
    draws.uniform(key, 1000, found)
    assert found.reshape(-1).tolist() == [by_hand(1000 + index) for index in range(6)]


def test_draws_are_uniform_and_those_of_other_keys_are_unrelated():
    found = {key: np.empty(100_000, np.float32) for key in ((0, "a"), (1, "a"), (0, "b"))}
    for key, values in found.items():
        draws.uniform(draws.key_of(*key), 0, values)
        assert values.min() > 0 and values.max() <= 1
        counts = np.histogram(values, 20, (0, 1))[0]
        assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-squared of 19 degrees, one in a thousand
    one, *others = found.values()
    assert all(abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(100_000) for other in others)


@pytest.mark.parametrize(("one", "other"), [((0, "a"), (1, "a")), ((0, "a"), (0, "b")), ((1, "1a"), (11, "a"))])
def test_keys_differ_by_seed_and_by_name(one, other):
    assert draws.key_of(*one) != draws.key_of(*other) and 0 <= draws.key_of(*one) < 1 << 64
