"""The negation law on files: what is written is base - alpha * (tuned - base), recomputed here by torch in float64."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import editkit
from editkit.errors import EditError

SHAPES = {
    "model.embed_tokens.weight": (32, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.0.self_attn.o_proj.weight": (16, 16),
    "model.layers.0.mlp.up_proj.weight": (40, 16),
    "model.layers.1.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.up_proj.weight": (40, 16),
    "model.layers.10.mlp.up_proj.weight": (40, 16),
    "model.norm.weight": (16,),
}
Q, O_PROJ = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.o_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
CONFIG = {"model_type": "llama", "num_attention_heads": 4, "tie_word_embeddings": True}


def tensors(seed: int, dtype: torch.dtype, scale: float = 0.02) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in SHAPES.items()}


def save(folder: Path, named: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


def pair(tmp_path: Path, dtype: str, step: float = 0.003) -> tuple[Path, Path]:
    base = tensors(0, FLOATS[dtype])
    tuned = {name: (t.double() + tensors(1, torch.float64)[name] * step / 0.02).to(t.dtype) for name, t in base.items()}
    return save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)


def expected(base: torch.Tensor, tuned: torch.Tensor, alpha: float) -> torch.Tensor:
    return (base.double() - alpha * (tuned.double() - base.double())).to(base.dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("alpha", [1.0, 0.3, -2.5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_negation_law(tmp_path, dtype, alpha):
    base, tuned = pair(tmp_path, dtype)
    result = editkit.negate(base, tuned, tmp_path / "out", alpha=alpha)
    before, after = load_file(base / "model.safetensors"), load_file(tuned / "model.safetensors")
    edited = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in edited.items():
        assert torch.equal(bits(tensor), bits(expected(before[name], after[name], alpha))), name
    assert result.total["projection"] == pytest.approx(-alpha, rel=2e-3) and not result.warnings
    tau = {name: after[name].double() - before[name].double() for name in edited}
    norm = math.sqrt(sum(float((t**2).sum()) for t in tau.values()))
    assert result.total["requested_l2"] == pytest.approx(abs(alpha) * norm, rel=1e-5)
    shift = {name: edited[name].double() - before[name].double() for name in edited}
    assert result.total["applied_l2"] == pytest.approx(
        math.sqrt(sum(float((d**2).sum()) for d in shift.values())), rel=1e-5
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_alpha_zero_gives_identical_bytes_and_says_that_nothing_changed(tmp_path, dtype):
    base, tuned = pair(tmp_path, dtype)
    result = editkit.negate(base, tuned, tmp_path / "out", alpha=0.0)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert result.changed == 0 and result.warnings == ["nothing changed: alpha is 0"]


def test_only_leaves_all_other_bytes_alone_and_names_match_whole(tmp_path):
    base, tuned = pair(tmp_path, "bfloat16")
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, only=["model.layers.1.*"])
    report = editkit.diff(base, tmp_path / "out")
    changed = {row["name"] for row in report["tensors"] if row["changed"]}
    assert changed == {name for name in SHAPES if name.startswith("model.layers.1.")}


def test_alpha_per_glob(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    result = editkit.negate(
        base, tuned, tmp_path / "out", alpha=1.0, alpha_for={"*.mlp.*": 0.5, "model.norm.weight": 0}
    )
    rows = {row["name"]: row["edit"]["projection"] for row in result.report["tensors"]}
    assert rows["model.layers.1.mlp.up_proj.weight"] == pytest.approx(-0.5, abs=1e-6)
    assert rows["model.layers.1.self_attn.q_proj.weight"] == pytest.approx(-1.0, abs=1e-6)
    assert rows["model.norm.weight"] == 0 and not result.warnings
    assert result.total["alpha"] is None


def test_report_of_the_edit_equals_a_diff_of_the_files(tmp_path):
    base, tuned = pair(tmp_path, "bfloat16")
    result = editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, only=["*.mlp.*"])
    later = editkit.diff(base, tmp_path / "out")
    for written, read in zip(result.report["tensors"], later["tensors"], strict=True):
        assert {key: value for key, value in written.items() if key != "edit"} == read
    assert all(result.report[side].keys() == later[side].keys() for side in ("base", "edited"))
    saved = json.loads((tmp_path / "out" / "diff" / "report.json").read_text())
    assert saved["summary"]["changed"] == later["summary"]["changed"] == result.changed


def test_threads_and_shards_do_not_matter(tmp_path):
    base, tuned = pair(tmp_path, "bfloat16")
    for name, settings in {"one": {"threads": 1}, "three": {"threads": 3, "shard_size": 3000}}.items():
        editkit.negate(base, tuned, tmp_path / name, alpha=1.0, rounding="stochastic", **settings)
    with editkit.open_checkpoint(tmp_path / "three") as sharded:
        assert len(sharded.files) > 1
        for name, tensor in load_file(tmp_path / "one" / "model.safetensors").items():
            assert torch.equal(bits(sharded[name]), bits(tensor))
    reports = [(tmp_path / name / "diff" / "report.json").read_text() for name in ("one", "three")]
    assert reports[0].replace('"one"', "") == reports[1].replace('"three"', "")


def test_change_below_half_a_step_is_said_to_be_lost_and_stochastic_rounding_keeps_it(tmp_path):
    base = {"w.weight": torch.full((64, 64), 1.0, dtype=torch.bfloat16)}
    tau = {"w.weight": torch.full((64, 64), 1e-3)}
    tuned = {"w.weight": base["w.weight"].float() + tau["w.weight"]}  # a float32 tuning of a bfloat16 base
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", tuned)
    result = editkit.negate(tmp_path / "base", tmp_path / "tuned", tmp_path / "out", alpha=1.0)
    assert result.changed == 0 and "half a step of BF16" in result.warnings[0]
    result = editkit.negate(
        tmp_path / "base", tmp_path / "tuned", tmp_path / "out2", alpha=1.0, rounding="stochastic", seed=5
    )
    # each element moves by 2**-8 with probability 1e-3 / 2**-8 = 0.256: 1049 of 4096, standard deviation 28
    assert abs(result.changed - 1049) < 140
    assert result.total["projection"] == pytest.approx(-1, abs=0.15)


def test_identical_tuned_checkpoint_changes_nothing(tmp_path):
    base, _ = pair(tmp_path, "float16")
    same = save(tmp_path / "same", load_file(base / "model.safetensors"))
    result = editkit.negate(base, same, tmp_path / "out", alpha=1.0)
    assert result.changed == 0 and "the task vector is zero" in result.warnings[0]


def test_masks_of_every_granularity(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    generator = torch.Generator().manual_seed(3)
    q, up, embed = (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.embed_tokens.weight",
    )
    mask = {
        q: torch.rand(16, 16, generator=generator) < 0.3,
        up: torch.rand(40, generator=generator) < 0.5,
        embed: torch.tensor(True),
        "model.norm.weight": torch.tensor([False]),
    }
    (tmp_path / "loc").mkdir()
    save_file(mask, tmp_path / "loc" / "mask.safetensors")
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, mask=tmp_path / "loc")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        chosen = mask.get(name, torch.tensor(False))
        chosen = chosen[:, None] if name == up else chosen
        want = torch.where(chosen, expected(before[name], after[name], 1.0), before[name])
        assert torch.equal(bits(want), bits(tensor)), name


def save_mask(path: Path, granularity: str, entries: dict[str, torch.Tensor], **said) -> Path:
    record = {"format": "editkit.mask/1", "granularity": granularity, "base": "base", **said}
    save_file(entries, path, {"editkit": json.dumps(record)})
    return path


FOUR = torch.tensor([True, False, False, True])
ELEMENTS = torch.rand(40, 16, generator=torch.Generator().manual_seed(3)) < 0.3
PACKED = (ELEMENTS.reshape(-1, 8) * 2 ** torch.arange(8)).sum(1).to(torch.uint8)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("alpha", [1.0, -1.0])
@pytest.mark.parametrize(
    ("granularity", "entries", "chosen"),
    [
        ("element", {UP: PACKED}, {UP: ELEMENTS}),
        (
            "head",
            {Q: FOUR, O_PROJ: FOUR.clone()},
            {Q: FOUR.repeat_interleave(4)[:, None], O_PROJ: FOUR.repeat_interleave(4)},
        ),
        ("row", {UP: ELEMENTS[:, 0].clone()}, {UP: ELEMENTS[:, :1]}),
        ("tensor", {Q: torch.tensor([True]), UP: torch.tensor([False])}, {Q: torch.tensor(True)}),
    ],
)
def test_masks_that_say_their_granularity(tmp_path, granularity, entries, chosen, alpha, rounding):
    base, tuned = pair(tmp_path, "bfloat16")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    for name in (Q, UP):
        before[name].view(-1)[::3] = -0.0  # subtracting nothing must not make it 0.0
    save_file(before, base / "model.safetensors")
    mask = save_mask(tmp_path / "mask.safetensors", granularity, entries)
    result = editkit.negate(base, tuned, tmp_path / "out", alpha=alpha, mask=mask, rounding=rounding)
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        whole = torch.broadcast_to(chosen.get(name, torch.tensor(False)), tensor.shape)
        assert torch.equal(bits(tensor)[~whole], bits(before[name])[~whole]), name
        want = expected(before[name], after[name], alpha)
        if rounding == "nearest":
            assert torch.equal(bits(tensor)[whole], bits(want)[whole]), name
        assert not whole.any() or (bits(tensor) != bits(before[name]))[whole].float().mean() > 0.5
    assert result.report["mask"]["outside"] == [] and result.report["mask"]["changed_inside"] == result.changed


def test_a_mask_for_other_weights_is_refused_unless_that_is_wanted(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    entries = {UP: torch.tensor([True])}
    mask = save_mask(tmp_path / "mask.safetensors", "tensor", entries, base_sha256={"model.safetensors": "0" * 64})
    with pytest.raises(EditError, match=r"was made for base, and .* has other weights \(sha256\)"):
        editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, mask=mask)
    assert not (tmp_path / "out").exists()
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0, mask=mask, allow_other_base=True)
    record = json.loads((tmp_path / "out" / "editkit.json").read_text())
    assert [one["role"] for one in record["inputs"]] == ["base", "mask", "vector 1"]


def test_integers_and_other_files_are_copied(tmp_path):
    named = {**tensors(0, torch.bfloat16), "model.steps": torch.arange(5)}
    other = {**tensors(1, torch.bfloat16), "model.steps": torch.arange(5) * 2}
    base, tuned = save(tmp_path / "base", named), save(tmp_path / "tuned", other)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0)
    assert load_file(tmp_path / "out" / "model.safetensors")["model.steps"].tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_header_and_layout_are_the_bases(tmp_path):
    base, tuned = pair(tmp_path, "bfloat16")
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0)
    size = 8 + int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")
    heads = [(folder / "model.safetensors").read_bytes()[:size] for folder in (base, tmp_path / "out")]
    assert heads[0] == heads[1]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_provenance_names_inputs_by_hash_and_no_folder_of_this_machine(tmp_path):
    from hashlib import sha256

    base, tuned = pair(tmp_path, "float32")
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0)
    text = (tmp_path / "out" / "editkit.json").read_text()
    assert str(tmp_path) not in text
    for folder in (base, tuned):
        assert sha256((folder / "model.safetensors").read_bytes()).hexdigest() in text


def refused(tmp_path: Path, match: str, **settings) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    settings = {
        "model": tmp_path / "base",
        "vector": tmp_path / "tuned",
        "alpha": 1.0,
        "output": tmp_path / "out",
        **settings,
    }
    with pytest.raises(EditError, match=match):
        editkit.negate(**settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_numbers_that_are_none_are_refused(tmp_path):
    pair(tmp_path, "float32")
    refused(tmp_path, "--alpha is nan: give a finite number", alpha=math.nan)
    refused(tmp_path, r"--alpha-for \*.mlp.\* is inf", alpha_for={"*.mlp.*": math.inf})
    refused(tmp_path, "--only '.*nothing.*' matches none of the 8 tensors", only=["nothing.*"])
    refused(tmp_path, "--alpha-for '.*attn.*' matches none", alpha_for={"attn": 1.0})
    refused(tmp_path, "rounding 'up' is unknown", rounding="up")


def test_nan_in_the_vector_is_refused(tmp_path):
    _, tuned = pair(tmp_path, "bfloat16")
    named = load_file(tuned / "model.safetensors")
    named["model.norm.weight"][3] = math.nan
    save_file(named, tuned / "model.safetensors")
    refused(tmp_path, "1 NaN or Inf in a block of model.norm.weight")


def test_overflow_is_refused(tmp_path):
    pair(tmp_path, "float16")
    refused(tmp_path, "the edit makes .* NaN or Inf in a block of .*: F16 cannot hold", alpha=1e9)


def test_all_misfits_are_listed(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    named = load_file(tuned / "model.safetensors")
    named["model.embed_tokens.weight"] = torch.zeros(33, 16)
    named["model.norm.weight"] = torch.zeros(17)
    del named["model.layers.1.mlp.up_proj.weight"]
    named["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 16)
    save_file(named, tuned / "model.safetensors")
    with pytest.raises(EditError) as error:
        editkit.negate(base, tuned, tmp_path / "out", alpha=1.0)
    for part in (
        "lacks 1 of the tensors", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight [33, 16] instead of [32, 16]",
        "model.norm.weight [17] instead of [16]", "model.layers.2.mlp.up_proj.weight",
    ):  # fmt: skip
        assert part in str(error.value)


def test_quantized_base_is_refused_by_method(tmp_path):
    pair(tmp_path, "float32")
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**CONFIG, "quantization_config": {"quant_method": "gptq"}})
    )
    refused(tmp_path, r"quantized: .*base \(gptq\)")


def test_tied_base_and_untied_tuned_model(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    named = load_file(tuned / "model.safetensors")
    named["lm_head.weight"] = named["model.embed_tokens.weight"].clone()
    save_file(named, tuned / "model.safetensors")
    editkit.negate(base, tuned, tmp_path / "same", alpha=1.0)  # a tied head that was saved twice is no head of its own
    named["lm_head.weight"][0, 0] += 1
    save_file(named, tuned / "model.safetensors")
    refused(tmp_path, "ties its output head", output=tmp_path / "out")


def test_a_tied_base_saved_twice_stays_tied(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    named = load_file(base / "model.safetensors")
    named["lm_head.weight"] = named["model.embed_tokens.weight"].clone()
    save_file(named, base / "model.safetensors")
    once = save(tmp_path / "once", tensors(0, torch.float32))  # the same base without the second copy
    editkit.negate(base, tuned, tmp_path / "out", alpha=1.0)
    editkit.negate(base, tuned, tmp_path / "out2", alpha=1.0, vector_base=once)
    assert editkit.diff(tmp_path / "out", tmp_path / "out2")["summary"]["changed"] == 0
    edited = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(edited["lm_head.weight"], edited["model.embed_tokens.weight"])
    assert not torch.equal(edited["lm_head.weight"], named["lm_head.weight"])


def doubly(folder: Path, named: dict[str, torch.Tensor]) -> Path:
    """A tied model whose files hold the one tensor under both names."""
    return save(folder, {**named, "lm_head.weight": named["model.embed_tokens.weight"].clone()})


@pytest.mark.parametrize(
    "settings",
    [
        {"only": ["lm_head.weight"]},
        {"only": ["model.embed_tokens.weight"]},
        {"alpha_for": {"lm_head.weight": 0.0}},
        {"mask": "mask.safetensors"},
    ],
    ids=str,
)
def test_half_of_a_tied_tensor_is_refused(tmp_path, settings):
    doubly(tmp_path / "base", tensors(0, torch.float32))
    doubly(tmp_path / "tuned", tensors(1, torch.float32))
    save_file(
        {"lm_head.weight": torch.tensor(True), "model.norm.weight": torch.tensor(True)}, tmp_path / "mask.safetensors"
    )
    if "mask" in settings:
        settings = {"mask": tmp_path / settings["mask"]}
    refused(tmp_path, r"are one tensor in .*base \(tied\)", **settings)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_tied_tensors_saved_twice_stay_equal(tmp_path, rounding):
    base = doubly(tmp_path / "base", tensors(0, torch.bfloat16))
    tuned = doubly(tmp_path / "tuned", tensors(1, torch.bfloat16))
    editkit.negate(base, tuned, tmp_path / "out", alpha=0.3, rounding=rounding)
    edited = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(bits(edited["lm_head.weight"]), bits(edited["model.embed_tokens.weight"]))


@pytest.mark.parametrize("wide", ["float32", "float64"])
@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_a_16_bit_base_with_a_wider_tuned_model(tmp_path, narrow, wide):
    base = save(tmp_path / "base", tensors(0, FLOATS[narrow]))
    tuned = save(tmp_path / "tuned", tensors(1, FLOATS[wide]))
    editkit.negate(base, tuned, tmp_path / "out", alpha=-0.7, report=False)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(bits(tensor), bits(expected(before[name], after[name], -0.7)))


def test_stochastic_rounding_leaves_float64_as_it_is(tmp_path):
    base, tuned = pair(tmp_path, "float64")
    for rounding in ("nearest", "stochastic"):
        editkit.negate(base, tuned, tmp_path / rounding, alpha=0.3, rounding=rounding)
    files = [(tmp_path / rounding / "model.safetensors").read_bytes() for rounding in ("nearest", "stochastic")]
    assert files[0] == files[1]


def test_a_folder_of_the_base_where_the_report_goes_is_refused_at_once(tmp_path):
    base, _ = pair(tmp_path, "float32")
    (base / "diff").mkdir()
    (base / "diff" / "notes.txt").write_text("mine")
    refused(tmp_path, "has a diff of its own")
    editkit.negate(base, tmp_path / "tuned", tmp_path / "out", alpha=1.0, report=False)
    assert (tmp_path / "out" / "diff" / "notes.txt").read_text() == "mine"


def test_alpha_for_tensors_that_are_not_edited_is_refused(tmp_path):
    pair(tmp_path, "float32")
    refused(tmp_path, "names no tensor that is edited", only=["*.mlp.*"], alpha_for={"model.norm.weight": 0.5})


def test_damaged_provenance_is_no_crash(tmp_path):
    _, tuned = pair(tmp_path, "float32")
    for number, record in enumerate([{}, {"inputs": 5}, {"inputs": [{"role": "base"}]}, {"inputs": [3]}]):
        (tuned / "editkit.json").write_text(json.dumps({"command": "finetune", **record}))
        editkit.negate(tmp_path / "base", tuned, tmp_path / f"out{number}", alpha=1.0, report=False)


@pytest.mark.parametrize("place", ["base", "tuned", "link", "base/inside", "full"])
def test_bad_outputs_are_refused(tmp_path, place):
    pair(tmp_path, "float32")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    refused(tmp_path, "input|not empty", output=tmp_path / place)


def test_dry_run_checks_and_writes_nothing(tmp_path):
    base, tuned = pair(tmp_path, "float32")
    result = editkit.negate(base, tuned, alpha=1.0, only=["*.mlp.*"], dry_run=True)
    assert list(result.alphas) == [name for name in SHAPES if ".mlp." in name]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]
    refused(tmp_path, "is an input", output=base, dry_run=True)


def test_vector_base(tmp_path):
    """Made between two earlier checkpoints, negated on a third."""
    base, tuned = pair(tmp_path, "float32")
    target = save(tmp_path / "target", tensors(9, torch.float32))
    editkit.negate(target, tuned, tmp_path / "out", alpha=1.5, vector_base=base)
    t, b, m = (load_file(folder / "model.safetensors") for folder in (tuned, base, target))
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        want = (m[name].double() - 1.5 * (t[name].double() - b[name].double())).float()
        assert torch.equal(bits(want), bits(tensor))
