import json
import os
import random
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import save_gpt2, save_llama, tokenizer

from editkit.checkpoint.adapter import open_adapter
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError, NothingChanged
from editkit.training.finetune import finetune
from editkit.training.loading import file_tensors, load_model
from editkit.training.trainer import train

ROWS = [{"prompt": "b" * (index % 5 + 1), "completion": " Ada, " + "cde"[: index % 3 + 1]} for index in range(12)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def tensors(folder):
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


def layout(folder):
    """Everything about the files that training must not change: names, order, dtypes, shapes, metadata, index."""
    checkpoint = open_checkpoint(folder)
    kept = [(info.name, info.dtype, info.shape, info.file, info.start) for info in checkpoint.tensors.values()]
    others = {str(path): (folder / path).read_bytes() for path in checkpoint.other_files()}
    return kept, checkpoint.metadata, checkpoint.index, others


def llama_sharded(folder):
    return save_llama(folder, torch.bfloat16, max_shard_size="5KB")


def llama_tied_half(folder):
    return save_llama(folder, torch.float16, tied=True)


def gpt2_without_prefix(folder):
    """As the files of GPT-2 on the Hub: no `transformer.`, no head, and the causal mask of each layer as a tensor."""
    save_gpt2(folder)
    plain = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    plain["h.0.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
    save_file(plain, folder / "model.safetensors", {"format": "pt"})
    return folder


def mixtral(folder):
    """transformers holds the experts of a layer in two fused parameters, the files have three tensors for each."""
    from transformers import MixtralConfig, MixtralForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=262, num_key_value_heads=1, num_local_experts=3, bos_token_id=0, eos_token_id=1, **small
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        MixtralForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("make", [save_llama, llama_sharded, llama_tied_half, save_gpt2, gpt2_without_prefix, mixtral])
def test_the_output_has_the_names_dtypes_and_files_of_the_base_and_loads(tmp_path, data, make):
    from transformers import AutoModelForCausalLM

    base, output = make(tmp_path / "base"), tmp_path / "tuned"
    before = layout(base)
    result = finetune(base, data, output, steps=4, lr=1e-2, device="cpu")
    assert layout(output) == before == layout(base)
    old, new = tensors(base), tensors(output)
    same = [name for name in old if torch.equal(old[name], new[name])]
    assert same == (["h.0.attn.bias"] if make is gpt2_without_prefix else [])
    elements = sum(new[name].numel() for name in new if name not in same)
    assert result.changed == sum(int((old[name] != new[name]).sum()) for name in new) / elements > 0.5
    assert (result.steps, result.examples, result.truncated, result.kind) == (4, 12, 0, "full")
    assert result.last_loss < result.first_loss
    _, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_one_step_is_adam_on_the_mean_loss_of_the_answers(tmp_path, data):
    """The first step of Adam moves each weight by lr * g / (|g| + eps), whatever the length of the gradient g."""
    base = save_llama(tmp_path / "base")
    finetune(base, data, tmp_path / "tuned", steps=1, lr=1e-3, batch_size=12, device="cpu")
    model = load_model(open_checkpoint(base))
    losses = []
    for row in ROWS:  # one by one: without any padding
        prompt, answer = [
            tokenizer().convert_tokens_to_ids(list(row["prompt"])),
            tokenizer()(row["completion"])["input_ids"],
        ]
        logits = model(torch.tensor([[0, *prompt, *answer, 1]])).logits[0].log_softmax(-1)
        losses += [-logits[len(prompt) + index, token] for index, token in enumerate([*answer, 1])]
    torch.stack(losses).mean().backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    new = tensors(tmp_path / "tuned")
    for name, parameter in model.named_parameters():
        gradient = parameter.grad / max(norm.item(), 1.0)
        expected = parameter - 1e-3 * gradient / (gradient.abs() + 1e-8)
        clear = gradient.abs() > 1e-6  # below, the order of summation decides
        torch.testing.assert_close(new[name][clear], expected.detach()[clear], atol=2e-6, rtol=0)


def test_a_16_bit_base_is_trained_in_float32_and_rounded_once(tmp_path, data):
    half, single = save_llama(tmp_path / "half", torch.bfloat16), tmp_path / "single"
    shutil.copytree(half, single)
    wide = {name: tensor.float() for name, tensor in tensors(half).items()}
    save_file(wide, single / "model.safetensors", {"format": "pt"})
    for base in (half, single):
        finetune(base, data, tmp_path / f"tuned-{base.name}", steps=5, lr=1e-3, device="cpu")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors(tmp_path / "tuned-single").items()}
    found = tensors(tmp_path / "tuned-half")
    assert all(torch.equal(found[name], rounded[name]) for name in rounded)


@pytest.mark.parametrize("lora", [None, 2])
def test_the_same_seed_gives_the_same_bytes_and_leaves_the_random_states(tmp_path, data, lora):
    base = save_gpt2(tmp_path / "base")  # has dropout
    states = random.getstate(), torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        finetune(base, data, tmp_path / name, lora=lora, steps=3, lr=1e-3, seed=seed, device="cpu")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    a, c = tensors(tmp_path / "a"), tensors(tmp_path / "c")
    assert not any(torch.equal(a[name], c[name]) for name in a)
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("make", [save_llama, llama_tied_half, save_gpt2])
def test_a_lora_loads_in_peft_and_in_editkit(tmp_path, data, make):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, output = make(tmp_path / "base"), tmp_path / "lora"
    result = finetune(base, data, output, lora=2, steps=4, lr=1e-2, device="cpu")
    assert (result.kind, result.changed > 0.5) == ("lora", True)
    assert {path.name for path in output.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "editkit.json",
    }
    adapter = open_adapter(output)
    linear = 7 if make is not save_gpt2 else 4
    assert len(adapter.modules) == 2 * linear and not any("head" in name for name in adapter.modules)
    assert (adapter.base, {low.scale for low in adapter.modules.values()}) == ("./base", {2.0})
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.tensor([[0, 70, 71, 72]])
    before = model(ids).logits
    tuned = PeftModel.from_pretrained(model, output)
    assert (tuned(ids).logits - before).abs().max() > 1e-4
    saved = load_file(output / "adapter_model.safetensors")
    assert set(saved) == set(tuned.state_dict()) & set(saved) or len(saved) == 4 * linear
    assert all(tensor.dtype == torch.float32 for tensor in saved.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lora", [None, 2])
def test_computing_in_16_bits_keeps_the_dtypes_of_the_files(tmp_path, data, dtype, lora):
    base = save_llama(tmp_path / "base")
    result = finetune(base, data, tmp_path / "tuned", dtype=dtype, lora=lora, steps=6, lr=1e-2, device="cpu")
    assert (result.dtype, result.last_loss < result.first_loss) == (dtype, True)
    assert {tensor.dtype for tensor in tensors(tmp_path / "tuned").values()} == {torch.float32}


def test_provenance_names_data_seed_and_base_without_paths(tmp_path, data):
    base = save_llama(tmp_path / "base")
    result = finetune(base, data, tmp_path / "tuned", steps=2, seed=9, device="cpu")
    text = (tmp_path / "tuned" / "editkit.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert (record["command"], record["seed"], record["data"]) == ("finetune", 9, result.data_sha256)
    assert record["inputs"][0]["files"] == open_checkpoint(base).sha256()
    assert (record["steps"], record["lr"], result.lr) == (2, 0.08 / 16, 0.08 / 16)


def test_epochs_count_batches_and_progress_counts_steps(tmp_path, data):
    base, seen = save_llama(tmp_path / "base"), []
    result = finetune(
        base,
        data,
        tmp_path / "tuned",
        epochs=2,
        batch_size=5,
        device="cpu",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(step, 6) for step in range(1, 7)]  # 12 examples are 3 batches of at most 5
    assert (result.steps, result.epochs) == (6, 2)


def test_it_says_nothing_and_leaves_no_other_file(tmp_path, data, capfd, monkeypatch):
    base = save_llama(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    capfd.readouterr()
    for output, lora in (("tuned", None), ("lora", 2)):
        finetune("base", "data.jsonl", output, lora=lora, steps=2, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert sorted(os.listdir()) == ["base", "data.jsonl", "lora", "tuned"]
    assert base.is_dir()


BAD_SETTINGS = [
    ({"lr": 0.0}, "lr is 0.0, must be a finite number above 0"),
    ({"lr": float("nan")}, "lr is nan"),
    (
        {"steps": 0, "batch_size": 0, "lora": 0},
        "lora is 0, must be at least 1, steps is 0, must be at least 1, batch_size is 0",
    ),
    ({"steps": 1, "epochs": 1}, "epochs and steps are both given"),
    ({"seed": -1}, "seed is -1"),
    ({"dtype": "int8"}, "dtype is 'int8'"),
    ({"device": "tpu"}, "device is 'tpu'"),
    ({"max_length": 49}, "max_length is 49 and the model reads 48 tokens"),
    ({"loss_on": "prompt"}, "loss_on is 'prompt'"),
]


@pytest.mark.parametrize(("settings", "said"), BAD_SETTINGS)
def test_bad_settings_are_refused(tmp_path, data, settings, said):
    base = save_llama(tmp_path / "base")
    with pytest.raises(EditError) as caught:
        finetune(base, data, tmp_path / "tuned", **settings)
    assert said in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "data.jsonl"]


def refused(tmp_path, data, kind=EditError, **settings):
    with pytest.raises(kind) as caught:
        finetune(tmp_path / "base", data, tmp_path / "tuned", device="cpu", **settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "data.jsonl"]
    return str(caught.value)


def test_a_loss_that_is_not_a_number_names_its_step(tmp_path, data):
    base = save_llama(tmp_path / "base")
    # The learning rate of the first step is 0, the second step destroys the weights, the third shows it.
    assert "at step 3 of 30: lower the learning rate (1e+30)" in refused(tmp_path, data, lr=1e30, steps=30)
    weights = tensors(base)
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    assert "the loss is nan at step 1 of 3" in refused(tmp_path, data, steps=3)


def test_a_training_below_the_rounding_of_the_model_is_no_success(tmp_path, data):
    save_llama(tmp_path / "base", torch.bfloat16)
    assert "changed no weight" in refused(tmp_path, data, NothingChanged, lr=1e-12, steps=1)


def test_values_that_the_dtype_cannot_hold_are_refused(tmp_path, data):
    save_llama(tmp_path / "base", torch.float16)
    assert "that F16 cannot hold" in refused(tmp_path, data, lr=1e6, steps=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused(tmp_path, data):
    base = save_llama(tmp_path / "base")
    with pytest.raises(EditError, match="device cuda is not available on this machine"):
        finetune(base, data, tmp_path / "tuned", device="cuda")


def test_models_that_cannot_be_trained_are_refused(tmp_path, data):
    base = save_llama(tmp_path / "base")
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(
        json.dumps({**json.loads(config), "quantization_config": {"quant_method": "gptq"}})
    )
    assert "is quantized (gptq)" in refused(tmp_path, data)
    (base / "config.json").write_text(json.dumps({**json.loads(config), "model_type": "nonesuch"}))
    assert "is of a kind that transformers does not load by itself" in refused(tmp_path, data)
    (base / "config.json").write_text(json.dumps({**json.loads(config), "vocab_size": 100}))
    assert "its tokenizer gives token" in refused(tmp_path, data)
    (base / "config.json").write_text(json.dumps({**json.loads(config), "num_hidden_layers": 3}))
    assert "lacks the weights model.layers.2.input_layernorm.weight" in refused(tmp_path, data)
    own_code = {**json.loads(config), "model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (base / "config.json").write_text(json.dumps(own_code))
    (base / "own.py").write_text("raise SystemExit('code of the checkpoint was run')")
    assert "is of a kind that transformers does not load by itself" in refused(tmp_path, data)
    (base / "config.json").unlink()
    assert "has no config.json of a model" in refused(tmp_path, data)
    (base / "config.json").write_text(config)
    (base / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(tmp_path, data)


@pytest.mark.parametrize("decoder", [False, True])
def test_an_encoder_is_refused_unless_its_config_says_that_it_decodes(tmp_path, decoder):
    """Tokens of a masked language model see those after them, and so the answers."""
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertLMHeadModel(BertConfig(vocab_size=40, is_decoder=decoder, **sizes)).save_pretrained(tmp_path / "bert")
    with open_checkpoint(tmp_path / "bert") as base:
        if decoder:
            assert load_model(base).config.is_decoder
        else:
            with pytest.raises(EditError, match="bert is a bert whose tokens see those after them: give a model that"):
                load_model(base)


def test_weights_without_a_place_in_the_files_are_refused_by_name(tmp_path):
    base, other = save_llama(tmp_path / "base"), save_llama(tmp_path / "tied", tied=True)
    model = load_model(open_checkpoint(base))
    with pytest.raises(EditError, match=r"tied does not have under these names: lm_head\.weight"):
        file_tensors(model, open_checkpoint(other))


def test_padding_does_not_change_the_training(tmp_path):
    """Two equal examples beside a long one train as they do alone, apart from the long one's own tokens."""
    from editkit.training.encoding import IGNORED, Tokens

    base = open_checkpoint(save_llama(tmp_path / "base"))
    short = Tokens([0, 70, 71, 1], [IGNORED, IGNORED, 71, 1])
    silent = Tokens([0, *range(70, 100)], [IGNORED] * 31)  # long, and not in the loss
    found = []
    for rows in ([short], [short, silent]):
        model = load_model(base)
        losses = train(model, rows, steps=1, lr=1e-3, device="cpu", pad=2)
        found.append((losses[0], model.state_dict()))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for name, tensor in found[0][1].items():
        moved = (tensor - base[name]).abs() > 1e-4
        torch.testing.assert_close(found[1][1][name][moved], tensor[moved], atol=1e-4, rtol=0)
