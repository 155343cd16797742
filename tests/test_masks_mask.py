import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from editkit.checkpoint.blocks import Block, blocks
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.masks.mask import Mask

Q, K, OUT, UP = (
    f"model.layers.0.{name}.weight"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")
)
SHAPES = {Q: (12, 11), K: (6, 11), OUT: (11, 12), UP: (7, 11), "model.norm.weight": (11,), "empty": (0, 5)}
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    named = {name: torch.arange(torch.Size(shape).numel()).float().reshape(shape) for name, shape in SHAPES.items()}
    save_file(named, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return open_checkpoint(folder)


def save_mask(path, granularity, entries, **said):
    record = {"format": "editkit.mask/1", "granularity": granularity, "base": "base", **said}
    save_file(entries, path, {"editkit": json.dumps(record)})
    return path


def packed(chosen):
    """Lowest bit first, worked out with integers."""
    bits = chosen.flatten().int().tolist()
    values = [sum(bit << place for place, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8)]
    return torch.tensor(values, dtype=torch.uint8)


def found(mask, base, name, elements=30):
    """The whole selection of a tensor, put together from small blocks."""
    info = base.tensors[name]
    parts = [np.broadcast_to(mask.chosen(name, block), block.shape) for block in blocks(info, elements)]
    assert len(info.shape) == 1 or len(parts) > 1
    return torch.from_numpy(np.concatenate([part.reshape(-1) for part in parts])).reshape(info.shape)


def by_head(selected):
    """12 rows or columns in heads of 3."""
    return torch.tensor(selected).repeat_interleave(3)


EVERY = torch.Generator().manual_seed(1)
SCATTERED = {name: torch.rand(SHAPES[name], generator=EVERY) < 0.4 for name in (Q, UP, "model.norm.weight")}
ROWS = torch.rand(7, generator=EVERY) < 0.5
FOUR, TWO = [True, False, False, True], [False, True]
GRANULARITIES = [
    ("element", {name: packed(chosen) for name, chosen in SCATTERED.items()}, SCATTERED),
    ("row", {UP: ROWS, "model.norm.weight": torch.tensor([True])}, {UP: ROWS[:, None], "model.norm.weight": True}),
    ("tensor", {UP: torch.tensor([True]), Q: torch.tensor([0], dtype=torch.uint8)}, {UP: True, Q: False}),
    (
        "head",
        {Q: torch.tensor(FOUR), K: torch.tensor(TWO), OUT: torch.tensor(FOUR, dtype=torch.uint8)},
        {Q: by_head(FOUR)[:, None], K: by_head(TWO)[:, None], OUT: by_head(FOUR)},
    ),
    (None, SCATTERED, SCATTERED),
    (None, {UP: ROWS, Q: torch.tensor(True)}, {UP: ROWS[:, None], Q: True}),
    (None, {UP: ROWS[:, None]}, {UP: ROWS[:, None]}),
]


@pytest.mark.parametrize(("granularity", "entries", "wanted"), GRANULARITIES)
def test_a_mask_selects_what_its_entries_say_and_nothing_else(tmp_path, base, granularity, entries, wanted):
    path = tmp_path / "mask.safetensors"
    if granularity is None:
        save_file(entries, path)
    else:
        save_mask(path, granularity, entries)
    mask = Mask(path, base)
    assert mask.names == [name for name in base.tensors if name in wanted and torch.as_tensor(wanted[name]).any()]
    for name in SHAPES:
        if name != "empty":
            whole = torch.broadcast_to(torch.as_tensor(wanted.get(name, False)), SHAPES[name])
            assert torch.equal(found(mask, base, name), whole), name
            assert mask.selected(base.tensors[name]) == int(whole.sum())


def test_values_outside_the_mask_are_cleared(tmp_path, base):
    mask = Mask(save_mask(tmp_path / "mask.safetensors", "row", {UP: ROWS}), base)
    values = np.ones((3, 11), np.float32)
    mask.clear_outside(UP, Block(base.tensors[UP], 2, 5), values)
    assert values.sum(1).tolist() == [11.0 * kept for kept in ROWS[2:5].tolist()]


def test_a_folder_of_localize_is_its_mask_and_says_what_it_is(tmp_path, base):
    (tmp_path / "loc").mkdir()
    save_file({"scores": torch.zeros(3)}, tmp_path / "loc" / "scores.safetensors")
    save_mask(
        tmp_path / "loc" / "mask.safetensors",
        "tensor",
        {UP: torch.tensor([True])},
        base_sha256=base.sha256(),
        budget="5%",
    )
    assert Mask(tmp_path / "loc", base).record["budget"] == "5%"


def test_bits_after_the_last_element_select_nothing(tmp_path, base):
    bits = packed(torch.zeros(7, 11))
    bits[-1] = 0b11100000  # 77 elements: five bits of the tenth byte
    with pytest.raises(EditError, match="selects nothing: its 1 entries are all false"):
        Mask(save_mask(tmp_path / "mask.safetensors", "element", {UP: bits}), base)
    bits[-1] |= 1 << 4
    mask = Mask(save_mask(tmp_path / "mask2.safetensors", "element", {UP: bits}), base)
    assert mask.selected(base.tensors[UP]) == 1 and found(mask, base, UP)[-1, -1]


@pytest.mark.parametrize("entry", [torch.tensor([True]), torch.ones(0, 5, dtype=torch.bool)], ids=str)
def test_a_tensor_without_elements_has_nothing_to_select(tmp_path, base, entry):
    save_file({"empty": entry}, tmp_path / "mask.safetensors")
    with pytest.raises(EditError, match="selects nothing"):
        Mask(tmp_path / "mask.safetensors", base)
    save_file({"empty": entry, UP: torch.tensor(True)}, tmp_path / "mask.safetensors")
    assert Mask(tmp_path / "mask.safetensors", base).selected(base.tensors["empty"]) == 0
    save_mask(tmp_path / "rows.safetensors", "row", {"empty": torch.ones(0, dtype=torch.bool), UP: ROWS})
    assert Mask(tmp_path / "rows.safetensors", base).selected(base.tensors["empty"]) == 0


MISFITS = [
    (
        "element",
        {UP: torch.ones(7, 11, dtype=torch.bool)},
        r"shape \[7, 11\], not that of a mask by element of \[7, 11\]",
    ),
    ("element", {UP: torch.ones(9, dtype=torch.uint8)}, r"shape \[9\], not that of a mask by element"),
    ("head", {UP: torch.ones(4, dtype=torch.bool)}, r"not that of a mask by head of \[7, 11\]"),
    ("head", {Q: torch.ones(3, dtype=torch.bool)}, r"shape \[3\], not that of a mask by head of \[12, 11\]"),
    ("row", {UP: torch.ones(11, dtype=torch.bool)}, r"shape \[11\], not that of a mask by row of \[7, 11\]"),
    ("tensor", {UP: torch.ones(7, dtype=torch.bool)}, r"not that of a mask by tensor"),
    ("tensor", {UP: torch.ones(1)}, "is F32 instead of BOOL or U8"),
    ("tensor", {"lm_head.weight": torch.ones(1, dtype=torch.bool)}, r"base has no lm_head\.weight"),
    (
        "column",
        {UP: torch.ones(1, dtype=torch.bool)},
        "has the granularity column: it must be one of tensor, row, head",
    ),
    (None, {UP: torch.ones(1, dtype=torch.bool)}, "has the granularity None"),
    (None, {UP: torch.ones(11, dtype=torch.bool)}, "has the granularity None"),
]


@pytest.mark.parametrize(("granularity", "entries", "said"), MISFITS)
def test_a_mask_that_does_not_fit_is_refused(tmp_path, base, granularity, entries, said):
    with pytest.raises(EditError, match=said):
        Mask(save_mask(tmp_path / "mask.safetensors", granularity, entries), base)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ("{not json", r"has the format \{not json: this editkit reads masks of editkit\.mask/1"),
        ('["editkit.mask/1"]', r"has the format"),
        ('{"format": "editkit.mask/2", "granularity": "row"}', r"has the format editkit\.mask/2"),
        ('{"format": "editkit.task_vector/1"}', r"has the format editkit\.task_vector/1"),
    ],
)
def test_metadata_that_cannot_be_read_are_refused(tmp_path, base, metadata, said):
    save_file({UP: torch.tensor([True])}, tmp_path / "mask.safetensors", {"editkit": metadata})
    with pytest.raises(EditError, match=said):
        Mask(tmp_path / "mask.safetensors", base)


def test_a_mask_of_other_weights_is_refused_unless_that_is_wanted(tmp_path, base):
    other = {"base": "elsewhere", "base_sha256": {"model.safetensors": "00" * 32}}
    path = save_mask(tmp_path / "mask.safetensors", "row", {UP: torch.ones(7, dtype=torch.bool)}, **other)
    with pytest.raises(EditError, match=r"was made for elsewhere, and .*base has other weights \(sha256\)"):
        Mask(path, base)
    assert Mask(path, base, allow_other_base=True).selected(base.tensors[UP]) == 77
