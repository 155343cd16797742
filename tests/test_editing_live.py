"""A model that is moved in place equals the model that `negate` writes, loaded from its files, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training_finetune import gpt2_without_prefix, mixtral
from tiny_models import save_gpt2, save_llama, save_qwen2, save_tied_twice

import editkit
from editkit.editing.live import LiveEdit
from editkit.editing.stream import planned
from editkit.errors import EditError
from editkit.masks.mask import Mask
from editkit.training.loading import load_model
from editkit.vectors.open import open_vector

MODEL = "model.safetensors"
Q, UP = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(bits(one[name]), bits(other[name])) for name in one)


def tuned(base, folder, tied=(), kept=()):
    """Another checkpoint of the same layout, every element of which is elsewhere."""
    draws = torch.Generator().manual_seed(7)
    moved = {
        name: one if name in kept else (one.double() + 0.02 * torch.randn(one.shape, generator=draws)).to(one.dtype)
        for name, one in load_file(base / MODEL).items()
    }
    if tied:
        moved[tied[1]] = moved[tied[0]].clone()
    editkit.write_checkpoint(moved, folder, like=base)
    return folder


def lora(base, folder):
    """Factors of rank 2 on two projections of every layer."""
    draws = torch.Generator().manual_seed(9)
    factors = {}
    for name, one in load_file(base / MODEL).items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(2, one.shape[1], generator=draws) * 0.1
            factors[f"{stem}.lora_B.weight"] = torch.randn(one.shape[0], 2, generator=draws) * 0.1
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "CAUSAL_LM"}))
    return folder


def agrees(base, vector, out, alpha, dtype="float32", only=(), mask=None, vector_base=None):
    """Move a loaded model, compare it with what is loaded from the folder that `negate` wrote, and move it back."""
    with editkit.open_checkpoint(base) as opened:
        net = load_model(opened, dtype)
        before = state(net)
        tau = open_vector(vector, opened, vector_base=vector_base)
        chosen = Mask(mask, opened) if mask else None
        with LiveEdit(net, opened, threads=2) as live:
            applied = live.apply(planned(opened, tau, alpha, {}, only, chosen))
            moved = state(net)
        assert same(state(net), before)
    result = editkit.negate(base, vector, out, alpha=alpha, only=only, mask=mask, vector_base=vector_base, report=False)
    with editkit.open_checkpoint(out) as written:
        assert same(moved, state(load_model(written, dtype)))
    assert same(moved, before) == (alpha == 0)
    return applied, result


@pytest.mark.parametrize("alpha", [1.0, 0.3, -1.7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_moved_model_is_the_one_that_negate_writes(tmp_path, stored, dtype, alpha):
    base = save_llama(tmp_path / "base", stored)
    applied, result = agrees(base, tuned(base, tmp_path / "tuned"), tmp_path / "out", alpha, dtype)
    assert applied.row() == pytest.approx(result.total)


@pytest.mark.parametrize(
    ("make", "kept"),
    [(save_gpt2, []), (gpt2_without_prefix, ["h.0.attn.bias"]), (save_qwen2, []), (mixtral, [])],
)
def test_models_of_other_kinds_and_names(tmp_path, make, kept):
    base = make(tmp_path / "base")
    agrees(base, tuned(base, tmp_path / "tuned", kept=kept), tmp_path / "out", 0.7)


def test_experts_that_transformers_fuses_can_be_edited_one_by_one(tmp_path):
    base = mixtral(tmp_path / "base")
    vector, only = tuned(base, tmp_path / "tuned"), ["*.experts.1.*", "*.layers.0.*.experts.2.w2.weight"]
    agrees(base, vector, tmp_path / "out", 0.7, only=only, dtype="bfloat16")


@pytest.mark.parametrize("make", [lambda folder: save_llama(folder, tied=True), save_tied_twice])
def test_tied_models_move_as_one(tmp_path, make):
    base = make(tmp_path / "base")
    tied = ["model.embed_tokens.weight", "lm_head.weight"] if make is save_tied_twice else []
    agrees(base, tuned(base, tmp_path / "tuned", tied), tmp_path / "out", 0.7)


def test_adapters_saved_vectors_and_a_base_of_the_vector(tmp_path):
    base = save_llama(tmp_path / "base")
    other = tuned(base, tmp_path / "tuned")
    agrees(base, lora(base, tmp_path / "lora"), tmp_path / "of lora", 0.7)
    editkit.task_vector(other, tmp_path / "tau.safetensors", base=base)
    agrees(base, tmp_path / "tau.safetensors", tmp_path / "of saved", 0.7)
    before = save_llama(tmp_path / "before", torch.bfloat16)
    agrees(base, other, tmp_path / "of difference", 0.7, vector_base=before)


def test_masks_and_globs(tmp_path):
    base = save_llama(tmp_path / "base", torch.bfloat16)
    other = tuned(base, tmp_path / "tuned")
    mask = {Q: torch.rand(16, 16, generator=torch.Generator().manual_seed(3)) < 0.3, UP: torch.rand(24) < 0.5}
    save_file(mask, tmp_path / "mask.safetensors")
    agrees(base, other, tmp_path / "masked", 1.3, mask=tmp_path / "mask.safetensors")
    agrees(base, other, tmp_path / "both", 1.3, mask=tmp_path / "mask.safetensors", only=["*.mlp.*"])
    agrees(base, other, tmp_path / "some", 1.3, only=["*.layers.1.*", "model.norm.weight"])


def test_alpha_zero_moves_nothing(tmp_path):
    base = save_llama(tmp_path / "base")
    agrees(base, tuned(base, tmp_path / "tuned"), tmp_path / "out", 0.0)


@pytest.fixture
def moving(tmp_path):
    """A loaded model, its checkpoint, and the plan of an edit."""
    base = save_llama(tmp_path / "base", torch.bfloat16)
    other = tuned(base, tmp_path / "tuned")
    with editkit.open_checkpoint(base) as opened:
        tau = open_vector(other, opened)
        yield load_model(opened), opened, lambda alpha, only=(): planned(opened, tau, alpha, {}, only, None)


def test_the_order_of_points_does_not_matter(moving):
    net, base, plan = moving
    points = [(0.5, ()), (2.0, ("*.mlp.*",)), (0.0, ()), (0.5, ("*.mlp.*", "lm_head.weight"))]
    found = []
    for order in (points, points[::-1]):
        with LiveEdit(net, base) as live:
            states = {}
            for alpha, only in order:
                live.apply(plan(alpha, only))
                states[alpha, only] = state(net)
        found.append(states)
    assert all(same(found[0][point], found[1][point]) for point in points)
    assert not same(found[0][points[0]], found[0][points[1]])


def test_an_error_on_the_way_leaves_the_loaded_weights(moving, monkeypatch):
    net, base, plan = moving
    before, calls = state(net), []
    with pytest.raises(KeyError), LiveEdit(net, base) as live:
        live.apply(plan(1.0))
        raise KeyError
    assert same(state(net), before)

    def failing(self, block, raw, write=LiveEdit._write):
        calls.append(block)
        if len(calls) == 5:
            raise OSError("in the middle of an edit")
        write(self, block, raw)

    monkeypatch.setattr(LiveEdit, "_write", failing)
    with pytest.raises(OSError, match="in the middle"), LiveEdit(net, base, threads=1) as live:
        live.apply(plan(1.0))
    assert len(calls) > 5 and same(state(net), before)


def test_files_stay_as_they_are(moving, tmp_path):
    net, base, plan = moving
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with LiveEdit(net, base) as live:
        live.apply(plan(1.0))
    assert files == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_numbers_that_the_file_cannot_hold_are_refused_and_taken_back(moving):
    net, base, plan = moving
    before = state(net)
    with pytest.raises(EditError, match=r"the edit makes .* NaN or Inf in a block of"), LiveEdit(net, base) as live:
        live.apply(plan(1e41))
    assert same(state(net), before)


def test_a_tensor_without_a_parameter_may_not_be_changed(tmp_path):
    base = gpt2_without_prefix(tmp_path / "base")
    with editkit.open_checkpoint(base) as opened:
        net, tau = load_model(opened), open_vector(tuned(base, tmp_path / "tuned"), opened)
        before = state(net)
        with pytest.raises(EditError, match=r"no parameter for h.0.attn.bias of .*: leave them out with --only"):
            LiveEdit(net, opened).apply(planned(opened, tau, 1.0, {}, [], None))
        assert same(state(net), before)


def test_a_tensor_that_is_shared_without_the_config_saying_so_is_refused(tmp_path):
    """GPT-2 ties its head also where the config does not say it."""
    base = save_gpt2(tmp_path / "base")
    tensors = load_file(base / MODEL)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, base / MODEL, {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (base / "config.json").write_text(json.dumps(config))
    other = tuned(base, tmp_path / "tuned", ["transformer.wte.weight", "lm_head.weight"])
    with editkit.open_checkpoint(base) as opened:
        tau = open_vector(other, opened)
        live = LiveEdit(load_model(opened), opened)
        with pytest.raises(EditError, match=r"are one tensor in the loaded model, and .* does not say so"):
            live.check(planned(opened, tau, 1.0, {}, ["*wte*"], None))
        live.check(planned(opened, tau, 1.0, {}, ["*attn*"], None))


def test_parameters_that_are_computed_from_the_files_are_refused_by_name(moving, monkeypatch):
    import editkit.editing.live as module

    net, base, plan = moving

    def turned(net, base, name, values, parts=module.file_parts):
        """As if transformers held the rows of the queries in another order, which no view has."""
        order = torch.tensor([3, 1, 2, 0, *range(4, 16)])
        return {file: part[order] if file == Q else part for file, part in parts(net, base, name, values).items()}

    monkeypatch.setattr(module, "file_parts", turned)
    live = LiveEdit(net, base)
    with pytest.raises(EditError, match=f"computes parameters of its own from {Q} of .*leave them out with --only"):
        live.check(plan(1.0))
    live.check(plan(1.0, ["*.mlp.*"]))
