"""A patch leads from base to edit and back, bit for bit; anything else, and any flipped bit, is refused and leaves nothing."""

import os
import shutil
import subprocess
import sys
import textwrap
from hashlib import sha256

import pytest
import torch
from patched import kept, sides_and_patch, there_and_back, tuned
from safetensors.torch import load_file, save_file
from sharded import model, tree
from tiny_models import save_gpt2, save_llama, save_tied_twice

import editkit
from editkit.errors import EditError
from editkit.patching import file as patch_file
from editkit.patching import stack, writer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def edit(tmp_path):
    return sides_and_patch(tmp_path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [save_llama, save_gpt2, save_tied_twice, "tied", "sharded"])
def test_every_edit_is_taken_back_bit_for_bit(tmp_path, dtype, kind):
    settings = {"tied": {"tied": True}, "sharded": {"max_shard_size": "8KB"}}.get(kind, {})
    base = (save_llama if isinstance(kind, str) else kind)(tmp_path / "base", dtype=DTYPES[dtype], **settings)
    assert (kind == "sharded") == (base / "model.safetensors.index.json").exists()
    tune = tuned(base, tmp_path / "tuned")
    reported = kind == "sharded"
    editkit.negate(base, tune, tmp_path / "edited", alpha=0.7, report=reported, patch=tmp_path / "edit.editpatch")
    assert (tmp_path / "edited" / "diff").exists() == reported
    there_and_back(base, tmp_path / "edited", tmp_path / "edit.editpatch", tmp_path)
    assert not (tmp_path / "there" / "diff").exists() and not (tmp_path / "back" / "editkit.json").exists()


def test_the_layout_of_the_files_is_that_of_the_side(tmp_path):
    base = model(tmp_path / "base", shards=1)
    tune = tuned(base, tmp_path / "tuned")
    editkit.negate(base, tune, tmp_path / "edited", alpha=1.0, shard_size=20_000, patch=tmp_path / "p.editpatch")
    assert len(list((tmp_path / "edited").glob("*.safetensors"))) == 2
    there_and_back(base, tmp_path / "edited", tmp_path / "p.editpatch", tmp_path)


def test_a_lone_file_and_whole_numbers_and_empty_tensors(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "double": torch.randn(7, dtype=torch.float64, generator=generator),
        "long": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "none": torch.empty(0, 3),
        "special": torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf")]),
    }
    other = {name: one.clone() for name, one in tensors.items()}
    other["double"][3] += 1e-16
    other["long"] -= 7
    other["flags"] = ~other["flags"]
    other["scalar"] *= -1
    other["special"] = torch.tensor([-0.0, 0.0, 1.0, float("nan"), 3.0])
    save_file(tensors, tmp_path / "one.safetensors", {"a": "b"})
    save_file(other, tmp_path / "other.safetensors", {"c": "d"})
    found = editkit.create_patch(tmp_path / "one.safetensors", tmp_path / "other.safetensors", tmp_path / "p.editpatch")
    changed = {row["name"]: row["changed"] for row in found["tensors"]}
    expected = {
        name: int((one.reshape(-1, 1).view(torch.uint8) != other[name].reshape(-1, 1).view(torch.uint8)).any(1).sum())
        for name, one in tensors.items()
        if one.numel()
    }
    assert changed == {name: count for name, count in expected.items() if count}
    editkit.apply_patch(tmp_path / "one.safetensors", tmp_path / "p.editpatch", tmp_path / "there")
    assert (tmp_path / "there/other.safetensors").read_bytes() == (tmp_path / "other.safetensors").read_bytes()
    os.rename(tmp_path / "other.safetensors", tmp_path / "called.safetensors")
    editkit.undo_patch(tmp_path / "called.safetensors", tmp_path / "p.editpatch", tmp_path / "back")
    assert (tmp_path / "back/one.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes()


def test_blocks_that_are_cut_and_blocks_that_are_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(patch_file, "BLOCK", 1024)
    monkeypatch.setattr(stack, "BLOCK", 1024)
    monkeypatch.setattr(writer, "BLOCK", 1024)
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16)
    edited = tmp_path / "edited"
    shutil.copytree(base, edited)
    raw = bytearray((edited / "model.safetensors").read_bytes())
    raw[-5000] ^= 1
    (edited / "model.safetensors").write_bytes(raw)
    found = editkit.create_patch(base, edited, tmp_path / "p.editpatch")
    assert found["summary"]["changed"] == 1 and found["tensors"][0]["bytes"] < 40
    there_and_back(base, edited, tmp_path / "p.editpatch", tmp_path)


def test_threads_do_not_matter(edit, tmp_path):
    base, edited, patch = edit
    for threads in (1, 5):
        editkit.create_patch(base, edited, tmp_path / f"{threads}.editpatch", threads=threads)
        assert (tmp_path / f"{threads}.editpatch").read_bytes() == patch.read_bytes()
        editkit.undo_patch(edited, patch, tmp_path / f"back{threads}", threads=threads)
        assert kept(tmp_path / f"back{threads}") == kept(base)


def test_other_files_go_back_as_well(tmp_path):
    base = model(tmp_path / "base")
    (base / "editkit.json").write_text('{"command": "finetune"}')
    edited = tuned(base, tmp_path / "edited")
    (edited / "config.json").write_text('{"layers": 3}')
    (edited / "code/modeling.py").unlink()
    (edited / "more").mkdir()
    (edited / "more/words.txt").write_bytes(os.urandom(5000))
    (edited / "editkit.json").write_text('{"command": "mine"}')
    (edited / "diff").mkdir()
    (edited / "diff/report.json").write_text("{}")
    (edited / "vector").mkdir()
    (edited / "vector/task_vector.safetensors").write_bytes(b"half of it would be no use")
    (edited / "vector/README.md").write_text("")
    found = editkit.create_patch(base, edited, tmp_path / "p.editpatch")
    paths = {row["path"]: (row["base"] is None, row["edited"] is None) for row in found["others"]}
    assert paths == {
        "config.json": (False, False),
        "code/modeling.py": (False, True),
        "more/words.txt": (True, False),
        "editkit.json": (False, False),
    }
    editkit.undo_patch(edited, tmp_path / "p.editpatch", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(path.name for path in base.iterdir())
    editkit.apply_patch(base, tmp_path / "p.editpatch", tmp_path / "there")
    assert not (tmp_path / "there/code").exists()
    left_out = ("diff/", "vector/")
    assert tree(tmp_path / "there") == {k: v for k, v in tree(edited).items() if not k.startswith(left_out)}


def test_a_file_that_was_changed_since_is_not_overwritten(tmp_path):
    base = model(tmp_path / "base")
    edited = tuned(base, tmp_path / "edited")
    (edited / "config.json").write_text('{"layers": 3}')
    editkit.create_patch(base, edited, tmp_path / "p.editpatch")
    (edited / "config.json").write_text('{"layers": 4}')
    with pytest.raises(EditError, match=r"edited/config.json: changed since the patch was made"):
        editkit.undo_patch(edited, tmp_path / "p.editpatch", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_info_counts_what_torch_counts(edit):
    base, edited, patch = edit
    found = editkit.inspect_patch(patch)
    differ = {}
    for path in base.glob("*.safetensors"):
        one, other = load_file(path), load_file(edited / path.name)
        counts = {name: int((one[name].view(torch.int16) != other[name].view(torch.int16)).sum()) for name in one}
        differ |= {name: count for name, count in counts.items() if count}
    assert (
        {row["name"]: row["changed"] for row in found["tensors"]}
        == differ
        == {"model.layers.1.w": 1500 - 1500 + sum(differ.values())}
    )
    assert found["summary"]["numel"] == 9000 and found["summary"]["bytes"] == patch.stat().st_size
    for side, folder in (("base", base), ("edited", edited)):
        hashes = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
        assert found[side] == {"name": folder.name, "sha256": hashes}


def test_neither_torch_nor_transformers_is_imported(edit, tmp_path):
    base, edited, patch = edit
    code = f"""
        import sys, editkit
        editkit.create_patch({str(base)!r}, {str(edited)!r}, {str(tmp_path / "p.editpatch")!r})
        editkit.undo_patch({str(edited)!r}, {str(patch)!r}, {str(tmp_path / "back")!r})
        editkit.verify_patch({str(patch)!r}, {str(base)!r})
        sys.exit(bool({{"torch", "transformers", "peft"}} & set(sys.modules)))
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False).returncode == 0
