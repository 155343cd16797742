"""Tiny models with random weights and a tokenizer whose ids can be worked out by hand."""

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SPECIAL = ["<s>", "</s>", "<pad>"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
JOINED = ["ĠA", "ĠAd", "ĠAda"]
VOCABULARY = [*SPECIAL, *LETTERS, *JOINED]


def tokenizer(**settings):
    """One token for each byte, except that " A", " Ad" and " Ada" are one token; adds no begin and no end."""
    bpe = models.BPE(
        vocab={token: index for index, token in enumerate(VOCABULARY)},
        merges=[("Ġ", "A"), ("ĠA", "d"), ("ĠAd", "a")],
    )
    inner = Tokenizer(bpe)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(names | settings))


def save_llama(folder, dtype=torch.float32, tied=False, **settings):
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    return _save(LlamaForCausalLM, config, folder, dtype, **settings)


def save_gpt2(folder, dtype=torch.float32, **settings):
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=16, n_layer=2, n_head=2, n_positions=48, bos_token_id=0, eos_token_id=1
    )
    return _save(GPT2LMHeadModel, config, folder, dtype, **settings)


def save_tied_twice(folder, **settings):
    """A tied Llama whose files hold the one tensor under both names."""
    save_llama(folder, tied=True, **settings)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def save_qwen2(folder, dtype=torch.float32, **settings):
    """With biases, random ones, on the projections of queries, keys and values."""
    config = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=48,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    _save(Qwen2ForCausalLM, config, folder, dtype, **settings)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(5)
    for name in sorted(tensors):
        if name.endswith("bias"):
            tensors[name] = (torch.randn(tensors[name].shape, generator=generator) * 0.1).to(dtype)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _save(kind, config, folder, dtype, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = kind(config).to(dtype)
    model.save_pretrained(folder, **settings)
    tokenizer().save_pretrained(folder)
    return folder
