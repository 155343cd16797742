"""Audits of edits: what changed outside of a mask, counted here by torch on whole tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_masks_mask import packed, save_mask

import editkit
from editkit.checkpoint.blocks import blocks
from editkit.checkpoint.reader import open_checkpoint
from editkit.diffing.rendering import render
from editkit.errors import EditError

Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
OUT, EMBED, STEPS = "model.layers.0.self_attn.o_proj.weight", "model.embed_tokens.weight", "model.steps"
SHAPES = {EMBED: (1000, 1101), Q: (12, 21), OUT: (21, 12), UP: (7, 21), "model.norm.weight": (21,)}
NUMEL = 1000 * 1101 + 2 * 12 * 21 + 7 * 21 + 21


def save(folder, named, file="model.safetensors"):
    folder.mkdir(exist_ok=True)
    save_file(named, folder / file)
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    return folder


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in SHAPES.items()}


def bits(tensor):
    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def counted(before, after, chosen):
    """(name -> (outside, first), inside) by comparing bytes of whole tensors."""
    strayed, inside = {}, 0
    for name, one in before.items():
        changed = (bits(one) != bits(after[name])).any(1)
        mask = torch.broadcast_to(torch.as_tensor(chosen.get(name, False)), one.shape).reshape(-1)
        inside += int((changed & mask).sum())
        if beyond := (changed & ~mask).nonzero().flatten().tolist():
            strayed[name] = (len(beyond), beyond[0])
    return strayed, inside


RANDOM = torch.Generator().manual_seed(7)
ELEMENTS = {name: torch.rand(SHAPES[name], generator=RANDOM) < 0.5 for name in (EMBED, UP, "model.norm.weight")}
HEADS = torch.tensor([True, False, False, True])
ROWS = torch.rand(1000, generator=RANDOM) < 0.5
MASKS = [
    ("element", {name: packed(one) for name, one in ELEMENTS.items()}, ELEMENTS),
    (
        "row",
        {EMBED: ROWS, "model.norm.weight": torch.tensor([True])},
        {EMBED: ROWS[:, None], "model.norm.weight": True},
    ),
    (
        "head",
        {Q: HEADS, OUT: ~HEADS},
        {Q: HEADS.repeat_interleave(3)[:, None], OUT: (~HEADS).repeat_interleave(3)},
    ),
    ("tensor", {EMBED: torch.tensor([True]), UP: torch.tensor([False])}, {EMBED: True}),
    (
        None,
        {EMBED: ELEMENTS[EMBED], UP: torch.arange(7) < 3},
        {EMBED: ELEMENTS[EMBED], UP: (torch.arange(7) < 3)[:, None]},
    ),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("granularity", "entries", "chosen"), MASKS, ids=lambda one: str(one) if not one or isinstance(one, str) else ""
)
def test_changes_outside_are_counted_as_on_whole_tensors(tmp_path, dtype, granularity, entries, chosen):
    before, mask = weights(dtype), tmp_path / "mask.safetensors"
    generator = torch.Generator().manual_seed(4)
    after = {
        name: torch.where(torch.rand(one.shape, generator=generator) < 0.2, -one, one) for name, one in before.items()
    }
    after[UP][0, 0], before[UP][0, 0] = 0.0, -0.0  # another sign of zero is another value of the bits
    base, edited = save(tmp_path / "base", before), save(tmp_path / "edited", after)
    if granularity:
        save_mask(mask, granularity, entries, base_sha256=open_checkpoint(base).sha256())
    else:
        save_file(entries, mask)
    assert len(list(blocks(open_checkpoint(base).tensors[EMBED]))) == 3
    strayed, inside = counted(before, after, chosen)
    selected = sum(int(torch.broadcast_to(torch.as_tensor(one), SHAPES[name]).sum()) for name, one in chosen.items())
    found = editkit.diff(base, edited, mask=mask)["mask"]
    assert {one["name"]: (one["changed"], one["first_index"]) for one in found.pop("outside")} == strayed
    assert found == {
        "name": "mask.safetensors",
        "granularity": granularity,
        "selected": selected,
        "selected_fraction": selected / NUMEL,
        "changed_inside": inside,
        "changed_outside": sum(count for count, _ in strayed.values()),
    }
    within = {
        name: torch.where(torch.broadcast_to(torch.as_tensor(chosen.get(name, False)), one.shape), after[name], one)
        for name, one in before.items()
    }
    clean = editkit.diff(base, save(tmp_path / "within", within), mask=mask)["mask"]
    assert (clean["outside"], clean["changed_outside"], clean["changed_inside"]) == ([], 0, inside)


def test_whole_numbers_and_structure_are_outside_of_any_mask(tmp_path):
    before = {
        Q: torch.ones(4, 4),
        UP: torch.ones(4, 4),
        STEPS: torch.arange(5),
        "gone": torch.ones(2),
        "wide": torch.ones(3),
    }
    before |= {"narrow": torch.ones(2, 3), "narrow2": torch.ones(2, 3)}
    after = {Q: torch.ones(4, 4), UP: torch.ones(8, 2), STEPS: torch.tensor([0, 1, 5, 3, 7]), "new": torch.ones(2)}
    after |= {"wide": torch.ones(3, dtype=torch.int64), "narrow": before["narrow"].bfloat16()}
    after["narrow2"] = torch.tensor([[1, 1, 1], [1, 2, 1]], dtype=torch.bfloat16)
    base, edited = save(tmp_path / "base", before), save(tmp_path / "edited", after)
    save_file({name: torch.tensor(True) for name in (Q, UP, "gone", "narrow")}, tmp_path / "mask.safetensors")
    report = editkit.diff(base, edited, mask=tmp_path / "mask.safetensors")
    assert sorted(report["mask"]["outside"], key=lambda one: one["name"]) == [
        {"name": "gone", "kind": "removed", "changed": None, "first_index": None},
        {"name": UP, "kind": "reshaped", "changed": None, "first_index": None},
        {"name": STEPS, "kind": "changed", "changed": 2, "first_index": 2},
        {"name": "narrow", "kind": "retyped", "changed": 0, "first_index": None},
        {"name": "narrow2", "kind": "retyped", "changed": 1, "first_index": 4},
        {"name": "new", "kind": "added", "changed": None, "first_index": None},
        {"name": "wide", "kind": "retyped", "changed": 3, "first_index": 0},
    ]
    numbers = {key: value for key, value in report["mask"].items() if key not in ("outside", "name", "granularity")}
    # compared are Q, the two narrow ones, wide and the steps: 16 + 6 + 6 + 3 + 5; the mask selects Q and one narrow one
    assert numbers == {"selected": 22, "selected_fraction": 22 / 36, "changed_inside": 0, "changed_outside": 6}
    table = render(report)
    assert (
        "Outside the mask mask.safetensors: 6 of 14 elements changed, in 3 tensors; 1 tensor was added; 1 tensor was removed; "
        "1 tensor was reshaped; 3 tensors were retyped. Inside: 0 of 22.\n"
    ) in table
    assert f"  {STEPS}: 2 elements changed, first at index 2, counted from 0\n" in table
    assert (
        "  narrow: retyped\n" in table
        and "  narrow2: retyped, 1 element changed, first at index 4, counted from 0\n" in table
    )


def test_settings_of_an_adapter_are_outside_of_any_mask(tmp_path):
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    pair = {name: torch.ones(2, 4), name.replace("_A", "_B"): torch.ones(6, 2)}
    for folder, alpha in (("base", 4), ("edited", 8)):
        save(tmp_path / folder, pair, "adapter_model.safetensors")
        (tmp_path / folder / "config.json").unlink()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha, "base_model_name_or_path": "m"}
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: torch.tensor(True)}, tmp_path / "mask.safetensors")
    report = editkit.diff(tmp_path / "base", tmp_path / "edited", mask=tmp_path / "mask.safetensors")
    assert report["mask"]["outside"] == [
        {"name": "lora_alpha", "kind": "setting", "changed": None, "first_index": None}
    ]
    assert "0 of 12 elements changed; 1 setting of the adapters changed. Inside: 0 of 8." in render(report)


def test_only_audits_what_it_compares(tmp_path):
    before = {Q: torch.ones(4, 4), UP: torch.ones(4, 4)}
    base = save(tmp_path / "base", before)
    edited = save(tmp_path / "edited", {Q: torch.zeros(4, 4), UP: before[UP] * 2})
    save_file({UP: torch.tensor(True)}, tmp_path / "mask.safetensors")
    found = editkit.diff(base, edited, mask=tmp_path / "mask.safetensors", only=["*.mlp.*"])["mask"]
    assert (found["selected"], found["changed_inside"], found["outside"]) == (16, 16, [])
    found = editkit.diff(base, edited, mask=tmp_path / "mask.safetensors")["mask"]
    assert [one["name"] for one in found["outside"]] == [Q]


def audited(tmp_path, after):
    base, edited = save(tmp_path / "base", weights()), save(tmp_path / "edited", {**weights(), **after})
    (tmp_path / "loc").mkdir()
    save_mask(tmp_path / "loc" / "mask.safetensors", "tensor", {UP: torch.tensor([True])}, base="base")
    return editkit.diff(base, edited, mask=tmp_path / "loc")


@pytest.mark.parametrize("form", ["table", "md", "html"])
def test_a_clean_audit_says_so_with_numbers(tmp_path, form):
    text = render(audited(tmp_path, {UP: weights()[UP] * 2}), form)
    assert f"Outside the mask loc: 0 of {NUMEL - 147:,} elements changed. Inside: 147 of 147." in text
    assert "first at index" not in text and 'class="warning"' not in text


@pytest.mark.parametrize("form", ["table", "md", "html"])
def test_every_form_names_what_strayed(tmp_path, form):
    norm = weights()["model.norm.weight"]
    norm[17] += 1
    text = render(audited(tmp_path, {"model.norm.weight": norm}), form)
    said = f"Outside the mask loc: 1 of {NUMEL - 147:,} elements changed, in 1 tensor. Inside: 0 of 147."
    assert said in text.replace("\\", "")
    what = "1 element changed, first at index 17, counted from 0"
    lines = {
        "table": f"  model.norm.weight: {what}\n",
        "md": f"- `model.norm.weight`: {what}\n",
        "html": f'<code>model.norm.weight</code> <span class="note">{what}</span>',
    }
    assert lines[form] in text


def test_a_table_does_not_name_them_all(tmp_path):
    named = {f"model.layers.{index}.mlp.up_proj.weight": torch.ones(1, 1) for index in range(30)}
    base = save(tmp_path / "base", {**named, Q: torch.ones(2, 2)})
    edited = save(tmp_path / "edited", {**{name: one + 1 for name, one in named.items()}, Q: torch.ones(2, 2)})
    save_file({Q: torch.tensor(True)}, tmp_path / "mask.safetensors")
    text = render(editkit.diff(base, edited, mask=tmp_path / "mask.safetensors"))
    assert text.count("first at index 0, counted from 0") == 20 and "  ... and 10 more, see --json\n" in text


def test_every_key_is_documented(tmp_path):
    found = audited(tmp_path, {EMBED: weights()[EMBED] * 2})["mask"]
    documented = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    keys = {*found, *found["outside"][0], "retyped", "setting"}
    assert len(keys) == 12 and not [key for key in keys if f"`{key}`" not in documented]


def test_a_diff_without_a_mask_says_nothing_of_one(tmp_path):
    base = save(tmp_path / "base", weights())
    report = editkit.diff(base, base)
    assert "mask" not in report and "mask" not in render(report)


def test_a_mask_for_another_base_is_refused_before_anything_is_compared(tmp_path):
    base, mask = save(tmp_path / "base", weights()), tmp_path / "mask.safetensors"
    edited = save(tmp_path / "edited", {**weights(), UP: weights()[UP] * 2})
    save_mask(mask, "tensor", {UP: torch.tensor([True])}, base="base", base_sha256=open_checkpoint(base).sha256())

    def never(done, total):
        raise AssertionError("compared")

    with pytest.raises(EditError, match=r"was made for base, and .*edited has other weights"):
        editkit.diff(edited, base, mask=mask, progress=never)
    found = editkit.diff(edited, base, mask=mask, allow_other_base=True)["mask"]
    assert (found["changed_inside"], found["outside"]) == (147, [])


def test_an_edit_that_had_a_mask_reports_its_audit(tmp_path):
    generator = torch.Generator().manual_seed(9)
    before = weights(torch.bfloat16)
    after = {name: one + torch.randn(one.shape, generator=generator).to(one.dtype) for name, one in before.items()}
    base, tuned = save(tmp_path / "base", before), save(tmp_path / "tuned", after)
    mask = save_mask(tmp_path / "mask.safetensors", "element", {name: packed(one) for name, one in ELEMENTS.items()})
    report = editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, mask=mask).report
    again = editkit.diff(base, tmp_path / "out", mask=mask)
    assert report["mask"] == again["mask"] and again["mask"]["outside"] == []
    assert again["mask"]["changed_inside"] == report["summary"]["changed"] > 0.9 * again["mask"]["selected"]
    assert json.loads((tmp_path / "out" / "diff" / "report.json").read_text())["mask"] == report["mask"]
