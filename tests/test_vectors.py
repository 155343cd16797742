"""Saved task vectors: what they hold, where they are refused, and that negating one equals negating its pair."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import editkit
from editkit.errors import EditError

NAMES = ["a.weight", "b.weight", "same.weight"]


def save(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def random(seed: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(24, 40, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def pair(tmp_path: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    base = {name: random(i, dtype) for i, name in enumerate(NAMES)}
    tuned = {name: t if name == "same.weight" else (t.double() * 1.03 + 1e-4).to(dtype) for name, t in base.items()}
    return save(tmp_path / "base", {**base, "steps": torch.arange(3)}), save(
        tmp_path / "tuned", {**tuned, "steps": torch.arange(3)}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_holds_the_difference_under_the_bases_names_without_zero_tensors(tmp_path, dtype):
    base, tuned = pair(tmp_path, dtype)
    record = editkit.task_vector(tuned, tmp_path / "tau.safetensors", base=base)
    saved = load_file(tmp_path / "tau.safetensors")
    b, t = (load_file(folder / "model.safetensors") for folder in (base, tuned))
    assert list(saved) == ["a.weight", "b.weight"] and record["zero_tensors"] == 1
    for name, tensor in saved.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, (t[name].double() - b[name].double()).float())
    with safe_open(tmp_path / "tau.safetensors", "pt") as file:
        kept = json.loads(file.metadata()["editkit"])
    with editkit.open_checkpoint(base) as opened:
        assert kept["base_sha256"] == opened.sha256()
    assert kept["base"] == "base" and str(tmp_path) not in json.dumps(kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_negating_a_saved_vector_equals_negating_the_pair(tmp_path, dtype):
    base, tuned = pair(tmp_path, dtype)
    editkit.task_vector(tuned, tmp_path / "tau.safetensors", base=base, dtype="float64")
    editkit.negate(base, tuned, tmp_path / "direct", alpha=0.7)
    editkit.negate(base, tmp_path / "tau.safetensors", tmp_path / "saved", alpha=0.7)
    for name in ("direct", "saved"):
        assert (tmp_path / name / "model.safetensors").exists()
    assert (tmp_path / "direct/model.safetensors").read_bytes() == (tmp_path / "saved/model.safetensors").read_bytes()


def test_refused_on_another_base_unless_allowed_and_then_recorded(tmp_path):
    base, tuned = pair(tmp_path, torch.float32)
    editkit.task_vector(tuned, tmp_path / "tau.safetensors", base=base)
    other = save(tmp_path / "other", {**{name: random(9, torch.float32) for name in NAMES}, "steps": torch.arange(3)})
    with pytest.raises(EditError, match=r"was made from base, whose weight files differ from those of .*other"):
        editkit.negate(other, tmp_path / "tau.safetensors", tmp_path / "out", alpha=1.0)
    assert not (tmp_path / "out").exists()
    editkit.negate(other, tmp_path / "tau.safetensors", tmp_path / "out", alpha=1.0, allow_other_base=True)
    assert json.loads((tmp_path / "out/editkit.json").read_text())["vector"]["allow_other_base"] is True


def test_two_vectors_can_be_diffed(tmp_path):
    base, tuned = pair(tmp_path, torch.float32)
    for dtype in ("float32", "bfloat16"):
        editkit.task_vector(tuned, tmp_path / f"{dtype}.safetensors", base=base, dtype=dtype)
    report = editkit.diff(tmp_path / "float32.safetensors", tmp_path / "bfloat16.safetensors")
    assert len(report["retyped"]) == 2 and 0 < report["summary"]["rel_l2"] < 2**-8


def test_bad_input(tmp_path):
    base, tuned = pair(tmp_path, torch.float32)
    (tmp_path / "there.safetensors").write_text("mine")
    for output, settings, match in [
        ("there.safetensors", {}, "exists"),
        ("tau.bin", {}, "end in .safetensors"),
        ("tau.safetensors", {"dtype": "int8"}, "dtype 'int8' is unknown"),
        ("tau.safetensors", {"base": None}, "is no adapter"),
    ]:
        with pytest.raises(EditError, match=match):
            editkit.task_vector(tuned, tmp_path / output, **{"base": base, **settings})
    named = load_file(tuned / "model.safetensors")
    named["a.weight"][0, 0] = torch.nan
    save_file(named, tuned / "model.safetensors")
    with pytest.raises(EditError, match=r"NaN or Inf in a\.weight"):
        editkit.task_vector(tuned, tmp_path / "tau.safetensors", base=base)
    assert (tmp_path / "there.safetensors").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "there.safetensors", "tuned"]


def test_a_saved_vector_and_an_adapter_take_no_base_of_their_own(tmp_path):
    base, tuned = pair(tmp_path, torch.float32)
    editkit.task_vector(tuned, tmp_path / "tau.safetensors", base=base)
    with pytest.raises(EditError, match="leave --vector-base out"):
        editkit.negate(base, tmp_path / "tau.safetensors", tmp_path / "out", alpha=1.0, vector_base=base)
