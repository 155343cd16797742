"""What is refused: another model, the wrong side or order, any flipped bit, a patch that somebody made up; nothing is left then."""

import json
import random
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from patched import kept, sides_and_patch, there_and_back, tuned
from safetensors.torch import load_file, save_file
from sharded import model, tree
from tiny_models import save_gpt2, save_llama

import editkit
from editkit.errors import EditError, NothingChanged
from editkit.patching import file as patch_file
from editkit.patching.steps import compress


@pytest.fixture
def edit(tmp_path):
    return sides_and_patch(tmp_path)


def refused(call, tmp_path, *words):
    """The sentence of the error; nothing was made."""
    before = {str(path) for path in tmp_path.rglob("*")}
    with pytest.raises(EditError) as caught:
        call()
    assert {str(path) for path in tmp_path.rglob("*")} == before
    for word in words:
        assert str(word) in str(caught.value), str(caught.value)
    return str(caught.value)


def test_a_patch_applied_or_undone_twice(edit, tmp_path):
    base, edited, patch = edit
    refused(
        lambda: editkit.apply_patch(edited, patch, tmp_path / "out"),
        tmp_path,
        "is the edited side",
        "already",
        "to apply",
    )
    refused(
        lambda: editkit.undo_patch(base, patch, tmp_path / "out"), tmp_path, "is the base side", "already", "to undo"
    )


def test_another_model(edit, tmp_path):
    _, edited, patch = edit
    other = tuned(edited, tmp_path / "other", seed=9)
    refused(
        lambda: editkit.apply_patch(other, patch, tmp_path / "out"), tmp_path, "neither side", "between base and edited"
    )
    small = model(tmp_path / "small", shards=1)
    refused(lambda: editkit.undo_patch(small, patch, tmp_path / "out"), tmp_path, "neither side")
    assert "later edit" not in refused(
        lambda: editkit.undo_patch(save_llama(tmp_path / "llama"), patch, tmp_path / "out"), tmp_path / "small"
    )
    refused(
        lambda: editkit.verify_patch(patch, save_gpt2(tmp_path / "gpt2")), Path(patch).parent / "small", "another model"
    )


def test_a_stack_is_undone_in_order(tmp_path):
    states = [model(tmp_path / "state0")]
    (states[0] / "config.json").write_text("{}")
    for step in (1, 2, 3):
        states.append(tuned(states[-1], tmp_path / f"state{step}", seed=step, only=f"layers.{step}"))
        (states[-1] / "config.json").write_text(f'{{"step": {step}}}')
        editkit.create_patch(*states[-2:], tmp_path / f"{step}.editpatch")
    one, two, three = (tmp_path / f"{step}.editpatch" for step in (1, 2, 3))
    editkit.undo_patch(states[3], [three, two, one], tmp_path / "back")
    assert tree(tmp_path / "back") == tree(states[0])
    editkit.apply_patch(states[0], [one, two, three], tmp_path / "there")
    assert tree(tmp_path / "there") == tree(states[3])
    editkit.undo_patch(states[3], [three, two], tmp_path / "part")
    assert tree(tmp_path / "part") == tree(states[1])

    def undone(*patches):
        return lambda: editkit.undo_patch(states[3], patches, tmp_path / "out")

    refused(undone(one, two, three), tmp_path, f"undone in another order: give {three} {two} {one}")
    refused(undone(three, one), tmp_path, one, "leave it out")
    refused(undone(two), tmp_path, "neither side", "if it got a later edit, undo that one first: give its patch before")
    said = refused(lambda: editkit.apply_patch(states[0], two, tmp_path / "out"), tmp_path, "neither side")
    assert "later edit" not in said
    refused(undone(three, three), tmp_path, "leave it out")
    refused(lambda: editkit.undo_patch(states[3], [], tmp_path / "out"), tmp_path, "no patch given")


def flips(raw, count):
    """Some of the bits, and all of those in the first and last bytes."""
    chosen = random.Random(0)
    yield from range(8 * 20)
    yield from range(8 * (len(raw) - 60), 8 * len(raw))
    yield from (chosen.randrange(8 * len(raw)) for _ in range(count))


def test_a_flipped_bit_anywhere_in_the_patch_is_found(edit, tmp_path):
    base, edited, patch = edit
    raw = patch.read_bytes()
    bad = tmp_path / "bad.editpatch"
    for bit in flips(raw, 200):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        bad.write_bytes(flipped)
        with pytest.raises(EditError, match=r"bad\.editpatch"):
            editkit.verify_patch(bad)
    frames = editkit.patching.file.Patch(patch)
    for start in {frame.start + frame.size // 2 for frame in frames.frames()}:
        flipped = bytearray(raw)
        flipped[start] ^= 16
        bad.write_bytes(flipped)
        refused(lambda: editkit.undo_patch(edited, bad, tmp_path / "out"), tmp_path, "bad.editpatch is damaged")
        refused(lambda: editkit.apply_patch(base, bad, tmp_path / "out"), tmp_path, "bad.editpatch is damaged")
    frames.close()
    for size in (0, 5, 16, 60, len(raw) // 2, len(raw) - 1):
        bad.write_bytes(raw[:size])
        refused(lambda: editkit.verify_patch(bad), tmp_path)
    bad.write_bytes(raw + b"\0")
    refused(lambda: editkit.verify_patch(bad), tmp_path)


def test_a_flipped_bit_anywhere_in_the_model_is_found(edit, tmp_path):
    _, edited, patch = edit
    for path in edited.glob("*.safetensors"):
        raw = path.read_bytes()
        header = 8 + int.from_bytes(raw[:8], "little")
        infos = editkit.open_checkpoint(edited).tensors.values()
        for byte in [*random.Random(1).sample(range(len(raw)), 40), 0, header - 1, header, len(raw) - 1]:
            flipped = bytearray(raw)
            flipped[byte] ^= 1 << byte % 8
            path.write_bytes(flipped)
            said = refused(lambda: editkit.undo_patch(edited, patch, tmp_path / "out"), tmp_path)
            if byte >= header:
                [name] = [info.name for info in infos if info.file == path.name and info.start <= byte < info.end]
                assert name in said
                found = editkit.verify_patch(patch, edited)
                assert found["side"] is None and found["tensors"] == [name]
                assert found["nearest"] == "edited" or name == "model.layers.1.w"  # which is of neither side now
        path.write_bytes(raw)
    assert editkit.verify_patch(patch, edited)["side"] == "edited"


def test_verify_says_which_side_a_model_is(edit, tmp_path):
    base, edited, patch = edit
    clean = {"tensors": [], "sha256": [], "files": []}
    for side, folder in (("base", base), ("edited", edited)):
        found = editkit.verify_patch(patch, folder)
        assert found["side"] == found["nearest"] == side and {key: found[key] for key in clean} == clean
    whole = {name: t for path in edited.glob("*.safetensors") for name, t in load_file(path).items()}
    (tmp_path / "one").mkdir()
    save_file(whole, tmp_path / "one/model.safetensors", {"format": "pt"})
    found = editkit.verify_patch(patch, tmp_path / "one")  # the same tensors in another file
    assert found["side"] is None and found["sha256"] == ["model.safetensors"] and found["tensors"] == []


@pytest.mark.parametrize("change", [lambda raw: raw[:-50], lambda raw: raw + b"more" * 20])
def test_a_patch_of_another_length(edit, tmp_path, change):
    base, _, patch = edit
    patch.write_bytes(change(patch.read_bytes()))
    refused(
        lambda: editkit.apply_patch(base, patch, tmp_path / "out"), tmp_path, "ends too early, or goes on after its"
    )


def folder_and_file(tmp_path):
    """A base with a folder `tok` where the edit has a file, and the reverse for `more`; and the patch between them."""
    base = model(tmp_path / "base", dtype=torch.bfloat16)
    edited = tuned(base, tmp_path / "edited")
    for folder, whole, parts in ((base, "more", "tok"), (edited, "tok", "more")):
        (folder / parts / "deep").mkdir(parents=True)
        (folder / parts / "deep" / "x.json").write_text("{}")
        (folder / whole).write_text(f"a file {whole}")
    editkit.create_patch(base, edited, tmp_path / "p.editpatch")
    return base, edited, tmp_path / "p.editpatch"


def test_a_folder_that_becomes_a_file_and_a_file_that_becomes_a_folder(tmp_path):
    base, edited, patch = folder_and_file(tmp_path)
    there_and_back(base, edited, patch, tmp_path)
    assert (tmp_path / "there/tok").read_text() == "a file tok" and (
        tmp_path / "back/more"
    ).read_text() == "a file more"
    tuned(edited, tmp_path / "other", seed=2)
    (tmp_path / "other/tok").unlink()
    (tmp_path / "other/tok").mkdir()
    (tmp_path / "other/tok/y.json").write_text("[]")
    editkit.create_patch(edited, tmp_path / "other", tmp_path / "q.editpatch")
    editkit.apply_patch(base, [patch, tmp_path / "q.editpatch"], tmp_path / "twice")
    assert kept(tmp_path / "twice") == kept(tmp_path / "other")
    editkit.undo_patch(tmp_path / "other", [tmp_path / "q.editpatch", patch], tmp_path / "undone")
    assert kept(tmp_path / "undone") == kept(base)


def test_a_file_that_the_patch_does_not_know_is_never_lost_to_one_that_it_writes(tmp_path):
    base, _, patch = folder_and_file(tmp_path)
    (base / "tok/mine.txt").write_text("mine")
    said = f"{base}/tok/mine.txt: not known to the patch, and in the way of a file of the edited side: move it away"
    refused(lambda: editkit.apply_patch(base, patch, tmp_path / "out"), tmp_path, said)


def test_sides_that_differ_in_more_than_values(tmp_path):
    def made(name, **tensors):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    base = made("base", a=torch.ones(2), b=torch.ones(2), c=torch.ones(2, 3))
    other = made("other", a=torch.ones(2).bfloat16(), c=torch.ones(3, 2), d=torch.ones(2))
    patch = tmp_path / "p.editpatch"
    said = refused(lambda: editkit.create_patch(base, other, patch), tmp_path, "b (only in one of the two)", "d (only")
    assert "a (F32 [2] and BF16 [2])" in said and "c (F32 [2, 3] and F32 [3, 2])" in said
    names = [f"t{number}" for number in range(7)]
    narrow, wide = (
        made(n, **{t: torch.ones(2, dtype=d) for t in names})
        for n, d in (("f16", torch.float16), ("f32", torch.float32))
    )
    said = refused(lambda: editkit.create_patch(narrow, wide, patch), tmp_path)
    assert said.endswith("which a patch does not keep: all 7 tensors are F32 instead of F16")
    mixed = made("mixed", **{t: torch.ones(2, dtype=torch.float16 if t == "t3" else torch.float32) for t in names})
    said = refused(lambda: editkit.create_patch(narrow, mixed, patch), tmp_path, "t5 (F16 [2] and F32 [2]) and 1 more")
    assert "t6" not in said and "t3" not in said
    with pytest.raises(NothingChanged, match="the same weights"):
        editkit.create_patch(base, base, patch)
    assert not patch.exists()


def test_names_of_patches(edit, tmp_path):
    base, edited, patch = edit
    refused(lambda: editkit.create_patch(base, edited, tmp_path / "p.zip"), tmp_path, "let it end in .editpatch")
    refused(lambda: editkit.create_patch(base, edited, patch), tmp_path, "exists")
    refused(
        lambda: editkit.create_patch(base, edited, edited / "p.editpatch"),
        tmp_path,
        f"lies inside {edited}: give the patch",
    )
    refused(lambda: editkit.inspect_patch(tmp_path / "absent.editpatch"), tmp_path, "cannot be read")
    refused(lambda: editkit.inspect_patch(base / "config.json"), tmp_path, "is no patch")
    for call in (editkit.inspect_patch, editkit.verify_patch, lambda folder: editkit.undo_patch(edited, folder, "out")):
        refused(lambda call=call: call(base), tmp_path, f"{base} is a folder: give the file of a patch")
    refused(lambda: editkit.undo_patch(edited, patch, base), tmp_path, "is not empty")


def rewritten(patch, change):
    """A patch whose table says something else, with checksums that fit."""
    opened = patch_file.Patch(patch)
    raw, table = patch.read_bytes(), opened.table
    opened.close()
    change(table)
    packed = compress(json.dumps(table).encode())
    start = len(raw) - 40 - int.from_bytes(raw[-40:-32], "little")
    patch.write_bytes(raw[:start] + packed + len(packed).to_bytes(8, "little") + sha256(packed).digest())


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table["others"].update({"../outside.txt": {"base": None, "edited": None}}),
        lambda table: table["others"].update({"/outside.txt": {"base": None, "edited": None}}),
        lambda table: table["edited"]["files"].update(
            {"../x.safetensors": table["edited"]["files"]["model-0.safetensors"]}
        ),
        lambda table: table["others"].update({"model-0.safetensors.partial": {"base": None, "edited": None}}),
        lambda table: table["others"].update({"more/model.bin": {"base": None, "edited": None}}),
        lambda table: table["left_out"]["edited"].append("code/../../outside.txt"),
        lambda table: table.update(block=7),
        lambda table: table.pop("tensors"),
        lambda table: table["tensors"].popitem(),
        lambda table: table["tensors"]["model.layers.0.w"].update(base="00"),
        lambda table: table["base"]["files"]["model-0.safetensors"].update(header="{}"),
        lambda table: table["base"]["files"]["model-0.safetensors"].update(header='{"a": {"data_offsets": "x"}}'),
        lambda table: table.update(others=[]),
    ],
)
def test_a_patch_that_somebody_made_up(edit, tmp_path, change):
    base, _, patch = edit
    rewritten(patch, change)
    refused(lambda: editkit.apply_patch(base, patch, tmp_path / "out"), tmp_path, "was not written by editkit")


def test_an_interrupted_apply_and_create_leave_nothing(edit, tmp_path):
    base, edited, patch = edit

    def interrupted(done, total):
        raise KeyboardInterrupt

    before = {str(path) for path in tmp_path.rglob("*")}
    for call in (
        lambda: editkit.apply_patch(base, patch, tmp_path / "deep/out", progress=interrupted),
        lambda: editkit.undo_patch(edited, patch, tmp_path / "out", progress=interrupted),
        lambda: editkit.create_patch(base, edited, tmp_path / "deep/p.editpatch", progress=interrupted),
    ):
        with pytest.raises(KeyboardInterrupt):
            call()
        assert {str(path) for path in tmp_path.rglob("*")} == before


def test_an_edit_that_changes_nothing_has_no_patch_and_says_so(tmp_path):
    base = model(tmp_path / "base")
    tune = tuned(base, tmp_path / "tuned")
    result = editkit.negate(base, tune, tmp_path / "out", alpha=0.0, patch=tmp_path / "p.editpatch")
    assert any("was not written: there is nothing to undo" in one for one in result.warnings)
    assert not (tmp_path / "p.editpatch").exists()


def test_a_patch_that_cannot_be_written_is_refused_before_the_edit(tmp_path):
    base = model(tmp_path / "base")
    tune = tuned(base, tmp_path / "tuned")
    said = {"p.zip": "let it end in .editpatch", "base/p.editpatch": f"lies inside {base}:"}
    said["out/p.editpatch"] = f"lies inside {tmp_path / 'out'}: give the patch a place outside of it"
    for name, words in said.items():
        refused(
            lambda name=name: editkit.negate(base, tune, tmp_path / "out", alpha=1.0, patch=tmp_path / name),
            tmp_path,
            words,
        )
