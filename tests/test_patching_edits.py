"""Edits that train write a patch as well, and what they wrote is what their provenance claims."""

import pytest
from patched import REPORTS
from sharded import tree
from test_editing_forget import SETTINGS, data, model  # noqa: F401
from test_unlearning_unlearn import AT_ONCE, PLACE, no_pictures, run  # noqa: F401

import editkit
from editkit.errors import EditError


@pytest.mark.parametrize("lora", [None, 2])
def test_forget(tmp_path, model, data, lora):  # noqa: F811
    settings, patch = {**SETTINGS, "lora": lora}, tmp_path / "p.editpatch"
    editkit.forget(model, data, tmp_path / "out", alpha=2.0, finetune_settings=settings, patch=patch)
    editkit.undo_patch(tmp_path / "out", patch, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(model)
    found = editkit.verify(tmp_path / "out", inputs={"data": data}, recompute=True)
    assert found["verdict"] == "ok" and {row["state"] for row in found["rows"]} == {"ok"}, found
    with pytest.raises(EditError, match="exists"):  # before anything is trained
        editkit.forget(model, data, tmp_path / "more", alpha=1.0, finetune_settings=settings, patch=patch)


def test_unlearn(tmp_path):
    run(tmp_path, **AT_ONCE, patch=tmp_path / "p.editpatch")
    base = PLACE() / "model"
    editkit.undo_patch(tmp_path / "out", tmp_path / "p.editpatch", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(base)
    editkit.apply_patch(base, tmp_path / "p.editpatch", tmp_path / "there")
    reports = (*REPORTS, "unlearning/")
    assert tree(tmp_path / "there") == {k: v for k, v in tree(tmp_path / "out").items() if not k.startswith(reports)}
    assert editkit.verify(tmp_path / "out", inputs={"base": base})["verdict"] == "ok"
    found = editkit.verify(tmp_path / "out", inputs={"base": base}, recompute=True)
    assert found["verdict"] == "unknown" and [row["what"] for row in found["rows"] if row["state"] == "skipped"] == [
        "recompute"
    ]


def test_a_patch_of_an_adapter_is_refused_before_training(tmp_path):
    with pytest.raises(EditError, match="here adapter is saved: leave --patch out"):
        run(tmp_path, **AT_ONCE, lora=2, patch=tmp_path / "p.editpatch")
