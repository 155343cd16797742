"""`verify` says of an output what is true, what differs and what nobody can know; and takes nothing for granted."""

import json
import shutil
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file
from sharded import model, tree
from tiny_models import save_llama

import editkit
from editkit.errors import EditError


@pytest.fixture
def edit(tmp_path):
    base, tuned = model(tmp_path / "base", dtype=torch.bfloat16), tmp_path / "tuned"
    shutil.copytree(base, tuned)
    move(tuned, 3)
    editkit.negate(base, tuned, tmp_path / "edited", alpha=1.0)
    return tmp_path / "edited"


def move(folder, seed):
    """Add noise to all weights of a folder."""
    generator = torch.Generator().manual_seed(seed)
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        moved = {name: (t + torch.randn(t.shape, generator=generator) * 0.1).to(t.dtype) for name, t in tensors.items()}
        save_file(moved, path, {"format": "pt"})


def claim(folder, **said):
    """Have an output claim something else of itself."""
    record = json.loads((folder / "editkit.json").read_text())
    (folder / "editkit.json").write_text(json.dumps({**record, **said}))


def states(found):
    return {f"{row['what']} {row['name']}": row["state"] for row in found["rows"]}


def test_an_output_as_it_was_written(edit):
    found = editkit.verify(edit)
    files = [name for name in tree(edit) if not name.startswith("diff/") and name != "editkit.json"]
    assert states(found) == {f"output {name}": "ok" for name in files} | {
        "input base": "ok",
        "input vector 1 (tuned)": "ok",
    }
    assert (found["verdict"], found["command"]) == ("ok", "negate") and all(row["why"] is None for row in found["rows"])


def test_the_hashes_in_the_provenance_are_those_of_the_files(edit):
    record = json.loads((edit / "editkit.json").read_text())
    expected = {
        name: sha256(content).hexdigest()
        for name, content in tree(edit).items()
        if not name.startswith("diff/") and name != "editkit.json"
    }
    assert record["output"] == expected and "model.safetensors.index.json" in expected


@pytest.mark.parametrize(
    "file", ["model-1.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json"]
)
def test_a_changed_file_differs_and_is_named(edit, file):
    raw = bytearray((edit / file).read_bytes())
    raw[-2] ^= 1 if file.endswith("rs") else 0
    (edit / file).write_bytes(raw if file.endswith("rs") else raw + b"\n")
    found = editkit.verify(edit)
    assert found["verdict"] == "differs"
    [row] = [row for row in found["rows"] if row["state"] == "differs"]
    digest = sha256((edit / file).read_bytes()).hexdigest()
    assert row["name"] == file and digest in row["why"]


def test_a_header_that_is_broken_is_a_difference_and_no_error(edit):
    (edit / "model-0.safetensors").write_bytes(b"broken")
    assert states(editkit.verify(edit))["output model-0.safetensors"] == "differs"


def test_a_file_that_is_gone_and_one_that_came(edit):
    (edit / "config.json").unlink()
    index = json.loads((edit / "model.safetensors.index.json").read_text())
    index["weight_map"]["new"] = "new.safetensors"
    (edit / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"new": torch.ones(2)}, edit / "new.safetensors")
    found = states(editkit.verify(edit))
    assert [found[f"output {name}"] for name in ("config.json", "new.safetensors")] == ["differs", "differs"]


def test_an_output_of_an_older_version_is_unknown_and_not_ok(edit):
    record = json.loads((edit / "editkit.json").read_text())
    del record["output"]
    (edit / "editkit.json").write_text(json.dumps(record))
    found = editkit.verify(edit)
    assert found["verdict"] == "unknown" and states(found)["output model-0.safetensors"] == "unknown"
    again = editkit.verify(edit, recompute=True)  # which proves it after all
    assert again["verdict"] == "ok" and states(again)["recompute negate"] == "ok"


def test_inputs_that_are_not_found_or_are_others(edit, tmp_path, monkeypatch):
    shutil.move(tmp_path / "tuned", tmp_path / "elsewhere")
    found = editkit.verify(edit)
    assert states(found)["input vector 1 (tuned)"] == "unknown" and found["verdict"] == "ok"
    found = editkit.verify(edit, inputs={"vector 1": tmp_path / "elsewhere"})
    assert states(found)["input vector 1 (tuned)"] == "ok"
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")  # of the same name, and another one
    assert states(editkit.verify(edit))["input vector 1 (tuned)"] == "unknown"
    found = editkit.verify(edit, inputs={"tuned": tmp_path / "tuned"}, recompute=True)
    assert states(found)["input vector 1 (tuned)"] == "differs" and found["verdict"] == "differs"
    assert states(found)["recompute negate"] == "skipped"
    with pytest.raises(EditError, match=r"was not made from before: its inputs are base, vector 1 \(tuned\)"):
        editkit.verify(edit, inputs={"before": tmp_path / "base"})


SETTINGS = {
    "plain": {},
    "stochastic": {"rounding": "stochastic", "seed": 7},
    "globs": {"only": ["*layers.1*", "*layers.2*"], "alpha_for": {"*.1.w": 0.25}},
    "sharded": {"shard_size": 7000},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_command_run_again_gives_the_same_bytes(edit, tmp_path, name):
    out = tmp_path / "again"
    editkit.negate(tmp_path / "base", tmp_path / "tuned", out, **{"alpha": 0.5, **SETTINGS[name]})
    before = tree(tmp_path)
    found = editkit.verify(out, recompute=True)
    assert states(found)["recompute negate"] == "ok" and found["verdict"] == "ok"
    assert tree(tmp_path) == before  # nothing is left


def test_an_output_that_its_inputs_do_not_give(edit):
    record = json.loads((edit / "editkit.json").read_text())
    record["alpha"] = 0.9
    (edit / "editkit.json").write_text(json.dumps(record))
    found = editkit.verify(edit, recompute=True)
    [row] = [row for row in found["rows"] if row["state"] == "differs"]
    assert row["what"] == "recompute" and "model-0.safetensors" in row["why"] and found["verdict"] == "differs"


def test_a_vector_of_another_base_and_a_saved_one(edit, tmp_path):
    editkit.task_vector(tmp_path / "tuned", tmp_path / "tau.safetensors", base=tmp_path / "base")
    editkit.negate(tmp_path / "base", tmp_path / "tau.safetensors", tmp_path / "one", alpha=1.0)
    editkit.negate(edit, tmp_path / "tuned", tmp_path / "two", alpha=1.0, vector_base=tmp_path / "base")
    for name in ("one", "two"):
        assert states(editkit.verify(tmp_path / name, recompute=True))["recompute negate"] == "ok"


def test_a_merge_and_a_baked_adapter(tmp_path):
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16)
    for name, seed in (("one", 1), ("two", 2)):
        shutil.copytree(base, tmp_path / name)
        move(tmp_path / name, seed)
    lora = adapter(tmp_path / "lora", base)
    vectors = {tmp_path / "one": {"weight": 0.5, "density": 0.5}, lora: {"weight": 2.0, "density": 0.3}}
    editkit.merge(base, vectors, tmp_path / "merged", method="dare_ties", seed=3)
    vectors = {tmp_path / "one": 0.5, tmp_path / "two": -0.5}
    editkit.merge(base, vectors, tmp_path / "resharded", method="task_arithmetic", shard_size=9000, only=["*.mlp.*"])
    editkit.bake(base, lora, tmp_path / "baked", scale=0.5)
    other = adapter(tmp_path / "other", base, seed=6)
    editkit.combine_adapters({lora: 1, other: -0.5}, tmp_path / "both", method="dare_linear", density=0.5, seed=2)
    made = {"merged": "merge", "resharded": "merge", "baked": "bake", "both": "combine-adapters"}
    for name, command in made.items():
        found = editkit.verify(tmp_path / name, recompute=True)
        assert states(found)[f"recompute {command}"] == "ok" and found["verdict"] == "ok", found


def adapter(folder, base, seed=5):
    """A LoRA of rank 2 on the projections of the queries, as peft writes it."""
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base),
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator, prefix = torch.Generator().manual_seed(seed), "base_model.model.model.layers"
    factors = {"A": (2, 16), "B": (16, 2)}
    tensors = {
        f"{prefix}.{layer}.self_attn.q_proj.lora_{factor}.weight": torch.randn(shape, generator=generator)
        for layer in range(2)
        for factor, shape in factors.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_training_is_not_repeated(edit):
    record = json.loads((edit / "editkit.json").read_text())
    record["command"] = "unlearn"
    (edit / "editkit.json").write_text(json.dumps(record))
    found = editkit.verify(edit, recompute=True)
    [row] = [row for row in found["rows"] if row["what"] == "recompute"]
    assert row["state"] == "skipped" and "depends on the machine" in row["why"] and found["verdict"] == "unknown"
    assert editkit.verify(edit)["verdict"] == "ok"  # what was not asked for is not missed


def test_an_output_that_cannot_be_made_again_is_unknown(edit, tmp_path):
    shutil.rmtree(tmp_path / "tuned")
    found = editkit.verify(edit, recompute=True)
    assert states(found)["recompute negate"] == "skipped" and found["verdict"] == "unknown"
    assert editkit.verify(edit)["verdict"] == "ok"


def test_a_mask_is_given_as_the_folder_that_localize_wrote(edit, tmp_path):
    loc = tmp_path / "loc"
    loc.mkdir()
    save_file({"model.layers.0.w": torch.ones(1, dtype=torch.bool)}, loc / "mask.safetensors")
    save_file({"model.layers.0.w": torch.ones(1)}, loc / "scores.safetensors")
    for name in ("base", "tuned"):
        (tmp_path / name / "tokenizer.json").unlink()  # which has no vocabulary
    editkit.negate(tmp_path / "base", tmp_path / "tuned", tmp_path / "masked", alpha=1.0, mask=loc)
    vector = {tmp_path / "tuned": {"weight": 1.0, "mask": loc}}
    editkit.merge(tmp_path / "base", vector, tmp_path / "merged", method="task_arithmetic")
    for name, role in (("masked", "mask"), ("merged", "model 1 mask")):
        for place in (loc, loc / "mask.safetensors"):
            found = editkit.verify(tmp_path / name, inputs={role: place}, recompute=True)
            assert states(found)[f"input {role} (mask.safetensors)"] == "ok" and found["verdict"] == "ok", found
    with pytest.raises(EditError, match=r"tuned has no mask\.safetensors: give a mask file, or the folder"):
        editkit.verify(tmp_path / "masked", inputs={"mask": tmp_path / "tuned"})


def test_a_role_is_no_name_of_another_input(edit, tmp_path, monkeypatch):
    editkit.negate(edit, tmp_path / "tuned", tmp_path / "two", alpha=1.0, vector_base=tmp_path / "base")
    for folder in ("elsewhere", "work"):
        (tmp_path / folder).mkdir()
    for name in ("base", "tuned", "edited", "two"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    output = shutil.move(tmp_path / "elsewhere" / "two", tmp_path / "work" / "two")
    monkeypatch.chdir(tmp_path / "work")
    found = states(editkit.verify(output, inputs={"base": tmp_path / "elsewhere" / "edited"}))
    assert (found["input base (edited)"], found["input vector 2 (base)"]) == ("ok", "unknown")
    (tmp_path / "elsewhere" / "two").symlink_to(output)  # inputs lie beside the link
    found = editkit.verify(tmp_path / "elsewhere" / "two")
    assert found["verdict"] == "ok", found


def test_the_only_vector_may_be_called_tuned(edit, tmp_path):
    shutil.move(tmp_path / "tuned", tmp_path / "full")
    editkit.negate(tmp_path / "base", tmp_path / "full", tmp_path / "one", alpha=1.0)
    shutil.move(tmp_path / "full", tmp_path / "elsewhere")
    for name in ("vector 1", "full", "tuned"):
        found = editkit.verify(tmp_path / "one", inputs={name: tmp_path / "elsewhere"}, recompute=True)
        assert states(found)["input vector 1 (full)"] == states(found)["recompute negate"] == "ok"
    editkit.negate(edit, tmp_path / "elsewhere", tmp_path / "two", alpha=1.0, vector_base=tmp_path / "base")
    with pytest.raises(
        EditError, match=r"from tuned: its inputs are base \(edited\), vector 1 \(elsewhere\), vector 2 \(base\)$"
    ):
        editkit.verify(tmp_path / "two", inputs={"tuned": tmp_path / "elsewhere"})


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "other"},
        {"schema": "editkit.provenance/0"},
        {"schema": "editkit.provenance/2x"},
        {"inputs": 3},
        {"inputs": [3]},
        {"inputs": [{"name": "x", "files": {"a": 1}}]},
        {"inputs": [{"name": "x", "role": 3, "files": {}}]},
        {"output": ["a"]},
        {"command": None},
    ],
)
def test_damaged_provenance_is_refused(edit, change):
    record = json.loads((edit / "editkit.json").read_text())
    (edit / "editkit.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(EditError, match=r"editkit\.json is damaged"):
        editkit.verify(edit)


def test_provenance_of_a_newer_version_is_not_called_damaged(edit):
    claim(edit, schema="editkit.provenance/2")
    with pytest.raises(
        EditError, match=r"editkit\.json is of a newer editkit \(editkit\.provenance/2, .* update editkit$"
    ):
        editkit.verify(edit)


def test_paths_out_of_the_output_are_not_followed(edit, tmp_path):
    record = json.loads((edit / "editkit.json").read_text())
    config = tmp_path / "base/config.json"
    record["output"]["../base/config.json"] = record["output"][str(config)] = sha256(config.read_bytes()).hexdigest()
    record["inputs"][0]["name"] = "../" + tmp_path.name + "/base"
    (edit / "editkit.json").write_text(json.dumps(record))
    found = states(editkit.verify(edit))
    assert [found["output ../base/config.json"], found[f"output {config}"]] == ["differs", "differs"]
    assert "unknown" in found.values()


def test_a_checkpoint_without_provenance(edit, tmp_path):
    with pytest.raises(EditError, match=r"base has no editkit\.json"):
        editkit.verify(tmp_path / "base")


def test_a_patched_output_verifies_as_the_edit_it_is(edit, tmp_path):
    editkit.create_patch(tmp_path / "base", edit, tmp_path / "p.editpatch")
    editkit.apply_patch(tmp_path / "base", tmp_path / "p.editpatch", tmp_path / "applied")
    found = editkit.verify(tmp_path / "applied", recompute=True)
    assert found["verdict"] == "ok" and states(found)["recompute negate"] == "ok"


def test_a_file_that_came_later_is_named_but_for_documents(edit):
    (edit / "modeling.py").write_text("import os")
    (edit / "README.md").write_text("# A card")
    found = editkit.verify(edit)
    assert [row["name"] for row in found["rows"] if row["state"] == "differs"] == ["modeling.py"]
    assert found["verdict"] == "differs"


def test_files_and_links_that_came_in_new_folders_are_named_but_for_reports(edit, tmp_path):
    for name in ("code/new.py", "deep/er/x.json", ".hidden/x.py", "code/.x", "docs/card.md", "vector/x.bin"):
        (edit / name).parent.mkdir(parents=True, exist_ok=True)
        (edit / name).write_text("x")
    (edit / "linked").symlink_to(tmp_path)
    assert (edit / "diff/report.json").is_file()
    expected = ["code/new.py", "deep/er/x.json", "linked", "vector/x.bin"]
    found = editkit.verify(edit)
    assert [row["name"] for row in found["rows"] if row["state"] == "differs"] == expected
    (edit / "vector/task_vector.safetensors").write_text("")  # the mark of a vector that was kept
    (edit / "diff/report.json").unlink()  # what is left in diff is no report
    named = [row["name"] for row in editkit.verify(edit)["rows"] if row["state"] == "differs"]
    assert "vector/x.bin" not in named and "diff/report.html" in named


def test_an_adapter_whose_scale_was_changed_is_another_one(tmp_path):
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16)
    lora = adapter(tmp_path / "lora", base)
    editkit.bake(base, lora, tmp_path / "baked")
    record = json.loads((tmp_path / "baked/editkit.json").read_text())
    files = {one["role"]: one["files"] for one in record["inputs"]}
    assert files["base"].keys() == {"model.safetensors"}
    assert files["vector 1"] == {
        name: sha256((lora / name).read_bytes()).hexdigest()
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    assert states(editkit.verify(tmp_path / "baked"))["input vector 1 (lora)"] == "ok"
    config = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 8}))
    found = editkit.verify(tmp_path / "baked", inputs={"vector 1": lora})
    assert states(found)["input vector 1 (lora)"] == "differs" and found["verdict"] == "differs"
    del record["inputs"][1]["files"]["adapter_config.json"]  # as older versions wrote it
    claim(tmp_path / "baked", inputs=record["inputs"])
    assert editkit.verify(tmp_path / "baked", inputs={"vector 1": lora})["verdict"] == "ok"


def test_a_false_claim_of_the_record_is_found_by_doing_it_again(edit, tmp_path):
    true = json.loads((edit / "editkit.json").read_text())
    shutil.copytree(tmp_path / "tuned", tmp_path / "other-name")
    shutil.copytree(tmp_path / "base", tmp_path / "elsewhere")
    places = {"base": tmp_path / "elsewhere", "vector 1": tmp_path / "other-name"}
    twice = [*true["inputs"], true["inputs"][0]]
    for said, keys in [
        ({}, None),
        ({"editkit": "0.0.9", "versions": {}}, None),
        ({"seed": 5}, "seed"),
        ({"vector": {"kind": "saved"}}, "vector.kind"),
        ({"method": "ties", "made_by": "us"}, "method, made_by"),
        ({"inputs": twice}, "inputs' roles"),
    ]:
        claim(edit, **said)
        found = editkit.verify(edit, inputs=places, recompute=True)
        why = keys and f"it claims another {keys} than the command records"
        [row] = [row for row in found["rows"] if row["what"] == "recompute"]
        assert (row["state"], row["why"]) == ("differs" if keys else "ok", why)
        (edit / "editkit.json").write_text(json.dumps(true))
    claim(edit, data="ab" * 32)
    assert states(editkit.verify(edit))["input data"] == "unknown"  # of which only the data can tell


def test_a_false_claim_of_a_merge_is_found_by_doing_it_again(tmp_path):
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16)
    shutil.copytree(base, tmp_path / "one")
    move(tmp_path / "one", 1)
    editkit.merge(base, {tmp_path / "one": 0.5}, tmp_path / "merged", method="task_arithmetic", only=["*.mlp.*"])
    plan = json.loads((tmp_path / "merged/editkit.json").read_text())["plan"]
    claim(tmp_path / "merged", method="linear", seed=5, data="ab", plan={**plan, "author": "us"})
    found = editkit.verify(tmp_path / "merged", recompute=True)
    [row] = [row for row in found["rows"] if row["what"] == "recompute"]
    assert row["why"] == "it claims another method, plan.author, seed, data than the command records"


@pytest.mark.parametrize("damage", [None, {"models": []}, {"targets": 5}, {"config": [1]}, {"files": {"../x": "y"}}])
def test_a_damaged_plan_is_not_carried_out(tmp_path, damage):
    base = save_llama(tmp_path / "base", dtype=torch.bfloat16)
    shutil.copytree(base, tmp_path / "one")
    move(tmp_path / "one", 1)
    editkit.merge(base, {tmp_path / "one": 0.5}, tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "editkit.json").read_text())
    record["plan"] = damage and {**record["plan"], **damage}
    (tmp_path / "merged" / "editkit.json").write_text(json.dumps(record))
    assert editkit.verify(tmp_path / "merged", recompute=True)["verdict"] == "differs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged", "one"]
