"""`forget`: the vector that it keeps is the one that it negated, and failures leave nothing behind."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import save_llama

import editkit
from editkit.errors import EditError

SETTINGS = {"steps": 3, "lr": 1e-2, "batch_size": 4}


@pytest.fixture
def model(tmp_path):
    return save_llama(tmp_path / "model")


@pytest.fixture
def data(tmp_path):
    rows = [{"prompt": "b" * (index % 5 + 1), "completion": " Ada, " + "cde"[: index % 3 + 1]} for index in range(12)]
    path = tmp_path / "forget.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_full_fine_tuning(tmp_path, model, data):
    tuned, result = editkit.forget(model, data, tmp_path / "out", alpha=0.5, finetune_settings=SETTINGS)
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    tau = load_file(tmp_path / "out" / "vector" / "task_vector.safetensors")
    assert tau
    for name, tensor in after.items():
        want = before[name].double() - 0.5 * tau[name].double() if name in tau else before[name].double()
        assert torch.equal(tensor, want.float())
    record = json.loads((tmp_path / "out" / "editkit.json").read_text())
    assert record["data"] == tuned.data_sha256 and record["alpha"] == 0.5
    assert result.report["edit"]["projection"] == pytest.approx(-0.5, rel=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "model", "out"]
    editkit.negate(model, tmp_path / "out" / "vector" / "task_vector.safetensors", tmp_path / "again", alpha=0.5)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_lora_from_an_earlier_model(tmp_path, model, data):
    earlier = tmp_path / "earlier"
    editkit.write_checkpoint(
        {name: t * 1.01 for name, t in load_file(model / "model.safetensors").items()}, earlier, like=model
    )
    settings = {**SETTINGS, "lora": 2}
    _, result = editkit.forget(
        model, data, tmp_path / "out", alpha=1.0, vector_base=earlier, finetune_settings=settings
    )
    assert (tmp_path / "out" / "vector" / "adapter_config.json").exists()
    vector = json.loads((tmp_path / "out" / "editkit.json").read_text())["vector"]
    assert vector == {"kind": "adapter", "adapter": "vector", "allow_other_base": True}
    with pytest.raises(EditError, match="vector was tuned from earlier, whose weight files differ from those of"):
        editkit.bake(model, tmp_path / "out" / "vector", tmp_path / "baked")
    changed = {row["module"] for row in result.report["tensors"] if row["changed"]}
    assert "self_attn.q_proj" in changed and "embed_tokens" not in changed


def test_earlier_model_full(tmp_path, model, data):
    earlier = tmp_path / "earlier"
    editkit.write_checkpoint(
        {name: t * 1.01 for name, t in load_file(model / "model.safetensors").items()}, earlier, like=model
    )
    editkit.forget(model, data, tmp_path / "out", alpha=1.0, vector_base=earlier, finetune_settings=SETTINGS)
    vector = json.loads((tmp_path / "out" / "editkit.json").read_text())["vector"]
    assert vector["allow_other_base"] is True and vector["record"]["base"] == "earlier"


def test_bad_input_is_found_before_training(tmp_path, model, data):
    before = sorted(path.name for path in tmp_path.iterdir())
    for settings, match in [
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"output": model}, "is an input"),
        ({"finetune_settings": {**SETTINGS, "lr": -1}}, "lr is -1"),
        ({"only": ["nothing"]}, "matches none"),
        ({"rounding": "up"}, "unknown"),
    ]:
        given = {"output": tmp_path / "out", "alpha": 1.0, "finetune_settings": SETTINGS, **settings}
        with pytest.raises(EditError, match=match):
            editkit.forget(model, data, **given)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_tuned_checkpoint_is_refused_on_what_it_was_not_tuned_from(tmp_path, model, data):
    editkit.finetune(model, data, tmp_path / "tuned", **SETTINGS)
    other = tmp_path / "other"
    editkit.write_checkpoint(
        {name: t * 2 for name, t in load_file(model / "model.safetensors").items()}, other, like=model
    )
    with pytest.raises(
        EditError, match=r"was tuned from model, whose weight files differ from those of .*--vector-base"
    ):
        editkit.negate(other, tmp_path / "tuned", tmp_path / "out", alpha=1.0)
    editkit.negate(other, tmp_path / "tuned", tmp_path / "out", alpha=1.0, vector_base=model)


def test_a_model_that_already_answers_is_warned_about(tmp_path, model, data):
    data.write_text('{"prompt": "b", "completion": " Ada"}\n')
    editkit.finetune(model, data, tmp_path / "knows", **{**SETTINGS, "steps": 60})
    tuned, result = editkit.forget(tmp_path / "knows", data, tmp_path / "out", alpha=1.0, finetune_settings=SETTINGS)
    assert tuned.first_loss < 0.1 and "already answers these examples" in result.warnings[-1]
