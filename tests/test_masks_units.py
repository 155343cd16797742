import numpy as np
import pytest

from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.header import LONGEST_ROW, TensorInfo
from editkit.masks.units import units_of

CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2}
GPT2 = {"n_head": 2, "model_type": "gpt2"}
ATTENTION = "model.layers.0.self_attn"
H = "transformer.h.0.attn"

CASES = [
    # name, shape, granularity, config -> which unit every element belongs to, as an array that broadcasts to the shape
    ("w", (6, 5), "tensor", None, np.zeros((1, 1))),
    ("w", (6, 5), "element", None, np.zeros((1, 1))),
    ("w", (6, 5), "row", None, np.arange(6)[:, None]),
    ("experts.gate_up_proj", (3, 4, 5), "row", None, np.arange(3)[:, None, None]),
    ("bias", (7,), "row", None, np.zeros(1)),
    ("scalar", (), "row", None, np.zeros(())),
    (f"{ATTENTION}.q_proj.weight", (8, 6), "head", CONFIG, np.arange(8)[:, None] // 2),
    (f"{ATTENTION}.k_proj.weight", (4, 6), "head", CONFIG, np.arange(4)[:, None] // 2),
    (f"{ATTENTION}.o_proj.weight", (6, 8), "head", CONFIG, np.arange(8) // 2),
    (f"{H}.c_attn.weight", (6, 12), "head", GPT2, np.arange(12) // 2),  # q0 q1 k0 k1 v0 v1
    (f"{H}.c_proj.weight", (4, 6), "head", GPT2, np.arange(4)[:, None] // 2),
]


@pytest.mark.parametrize(("name", "shape", "granularity", "config", "unit"), CASES)
@pytest.mark.parametrize("elements", [1, 7, 20, 1000])
def test_values_spread_to_the_elements_of_their_unit_and_sums_come_back(
    name, shape, granularity, config, unit, elements
):
    info = TensorInfo(name, "F32", shape, "", 0, 4 * int(np.prod(shape)))
    units = units_of(info, granularity, config)
    owner = np.broadcast_to(unit.astype(int), shape)
    count = int(owner.max()) + 1
    assert units.count == count and info.numel % count == 0
    of_unit, values = np.arange(count) * 10 + 3, np.random.default_rng(1).standard_normal(shape)
    spread, sums = [], np.zeros(count)
    for block in blocks(info, elements):
        spread.append(np.broadcast_to(units.spread(block, of_unit), block.shape).reshape(-1))
        units.add(block, values.reshape(info.rows, info.columns)[block.first : block.last], sums)
    assert np.concatenate(spread).tolist() == of_unit[owner].reshape(-1).tolist()
    assert sums == pytest.approx(np.bincount(owner.reshape(-1), values.reshape(-1), count))


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("model.layers.0.mlp.up_proj.weight", (8, 6), CONFIG),
        (f"{ATTENTION}.q_proj.weight", (8, 6), None),
        (f"{ATTENTION}.q_proj.weight", (9, 6), CONFIG),  # no four equal parts
        (f"{ATTENTION}.q_proj.bias", (8,), CONFIG),
        ("model.layers.0.mlp.experts.down_proj", (4, 6, 5), CONFIG),  # experts are no heads
    ],
)
def test_what_has_no_heads_has_no_units_by_head(name, shape, config):
    assert units_of(TensorInfo(name, "F32", shape, "", 0, 0), "head", config) is None


@pytest.mark.parametrize("granularity", ["row", "tensor", "element"])
def test_a_vector_longer_than_a_row_is_one_unit(granularity):
    info = TensorInfo("bias", "F32", (LONGEST_ROW + 5,), "", 0, 0)
    units, into = units_of(info, granularity, None), np.zeros(1)
    for block in blocks(info):
        units.add(block, np.ones(block.shape, np.float32), into)
        assert units.spread(block, np.array([True])).shape == (1, 1)
    assert units.count == 1 and into.tolist() == [LONGEST_ROW + 5]


def test_sums_are_float64_whatever_the_values_are():
    info = TensorInfo("w", "F32", (3, 4), "", 0, 48)
    block, values = next(blocks(info)), np.array([[2**24, 1, 1, 1]] * 3, np.float32)
    for granularity in ("tensor", "row"):
        into = np.zeros(units_of(info, granularity, None).count)
        units_of(info, granularity, None).add(block, values, into)
        assert into.sum() == 3 * (2**24 + 3)
