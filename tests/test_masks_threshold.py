from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.header import TensorInfo
from editkit.masks import threshold

SMALLEST = np.float32(1.4e-45)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """A few rows each, so that no tensor here is one block and many blocks begin within a byte."""
    monkeypatch.setattr(threshold, "blocks", partial(blocks, elements=12))


def infos_of(tensors):
    return [TensorInfo(name, "F32", values.shape, "", 0, values.nbytes) for name, values in tensors.items()]


def selected(tensors, wanted, groups, threads=2):
    """Name -> bool of the tensor's shape, from the packed bits; and thresholds and counts."""
    infos = infos_of(tensors)

    def scores(block):
        matrix = tensors[block.info.name].reshape(block.info.rows, -1)
        return np.ascontiguousarray(matrix[block.first : block.last])

    found, counts = threshold.thresholds(infos, scores, wanted, groups, threads)
    chosen = {}
    for info, bits in threshold.chosen_bits(infos, scores, found, groups, threads):
        assert bits.dtype == np.uint8 and bits.shape == (-(-info.numel // 8),)
        flat = np.unpackbits(bits, bitorder="little")
        assert not flat[info.numel :].any(), "bits after the last element"
        chosen[info.name] = flat[: info.numel].reshape(info.shape).astype(bool)
    assert list(chosen) == list(tensors)
    return chosen, found, counts


def by_sorting(tensors, wanted, groups):
    """All scores of a group in a row, sorted from the top, the first of equals first."""
    chosen = {}
    for group, count in wanted.items():
        names = [name for name in tensors if groups[name] == group]
        flat = np.concatenate([tensors[name].reshape(-1) for name in names])
        order = [index for index in np.argsort(-flat.astype(np.float64), kind="stable") if flat[index] > 0][:count]
        hit = np.zeros(len(flat), bool)
        hit[order] = True
        for name, part in zip(
            names, np.split(hit, np.cumsum([tensors[name].size for name in names])[:-1]), strict=True
        ):
            chosen[name] = part.reshape(tensors[name].shape)
    return chosen


ROUGH = st.sampled_from([0.0, -0.0, -1.0, SMALLEST, 2 * SMALLEST, 1e-40, 1.0, 1.0000001, 2.0, 3.4e38])
FINE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SHAPES = st.sampled_from([(1,), (13,), (5, 7), (3, 12), (2, 3, 5), (4, 1), (1, 40)])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_selection_is_that_of_a_stable_sort(data):
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=5))
    values = [
        data.draw(arrays(np.float32, shape, elements=data.draw(st.sampled_from([ROUGH, FINE])))) for shape in shapes
    ]
    tensors = {f"t{index}": value for index, value in enumerate(values)}
    groups = {name: data.draw(st.sampled_from(["a", "b", ""])) for name in tensors}
    wanted = {group: data.draw(st.integers(0, 60)) for group in sorted(set(groups.values()))}
    chosen, found, counts = selected(tensors, wanted, groups, data.draw(st.integers(1, 3)))
    for name, wanted_bits in by_sorting(tensors, wanted, groups).items():
        assert np.array_equal(chosen[name], wanted_bits), name
    for group, count in wanted.items():
        values = np.concatenate([tensors[name].reshape(-1) for name in tensors if groups[name] == group])
        above = int((values > 0).sum())
        assert counts[group].sum() == above
        total = sum(int(chosen[name].sum()) for name in tensors if groups[name] == group)
        assert total == min(count, above)
        if total:
            assert found[group].value == np.sort(values)[::-1][total - 1]


def test_of_equal_scores_the_first_in_the_order_of_the_files_are_taken():
    tensors = {name: np.ones((5, 5), np.float32) for name in ("z", "a", "m")}
    tensors["a"][4, 4] = 2
    chosen, found, _ = selected(tensors, {"": 40}, dict.fromkeys(tensors, ""))
    assert chosen["z"].all() and chosen["a"][4, 4]
    assert np.flatnonzero(chosen["a"]).tolist() == [*range(14), 24] and not chosen["m"].any()
    assert found[""] == (1.0, 39)


def test_a_long_vector_whose_rows_are_cut_is_one_vector():
    """More than LONGEST_ROW elements, the last row of its matrix shorter."""
    size = (1 << 20) + 37
    values = np.random.default_rng(0).standard_normal(size, np.float32)
    values[-3:] = 9
    infos = [TensorInfo("bias", "F32", (size,), "", 0, 4 * size)]

    def scores(block):
        rows, columns = block.shape
        return values[block.first << 20 :][: rows * columns].reshape(rows, columns)

    found, _ = threshold.thresholds(infos, scores, {"": 1001}, {"bias": ""})
    [(_, bits)] = threshold.chosen_bits(infos, scores, found, {"bias": ""})
    wanted = np.zeros(size, bool)
    wanted[np.argsort(-values, kind="stable")[:1001]] = True
    assert np.array_equal(np.unpackbits(bits, bitorder="little", count=size).astype(bool), wanted)


def test_progress_is_told_every_byte_of_three_passes():
    tensors = {"a": np.ones((7, 5), np.float32), "b": np.ones((3,), np.float32)}
    infos, told = infos_of(tensors), []
    shaped = {name: values.reshape(infos[i].rows, -1) for i, (name, values) in enumerate(tensors.items())}

    def scores(block):
        return shaped[block.info.name][block.first : block.last]

    groups = dict.fromkeys(tensors, "")
    found, _ = threshold.thresholds(infos, scores, {"": 3}, groups, 1, told.append)
    assert sum(told) == 2 * 4 * 38
    list(threshold.chosen_bits(infos, scores, found, groups, 1, told.append))
    assert sum(told) == 3 * 4 * 38
