"""Adapters as peft writes them, and everything about them that is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from editkit.checkpoint.adapter import is_adapter, open_adapter
from editkit.errors import EditError

Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def write(folder: Path, config: dict | None = None, tensors: dict | None = None) -> Path:
    """A one-module adapter of rank 2 and alpha 6, with what is given changed."""
    folder.mkdir(exist_ok=True)
    a, b = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)
    save_file(
        {Q.format(0, "A"): a, Q.format(0, "B"): b} if tensors is None else tensors, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "init_lora_weights": True} | (
        config or {}
    )
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(EditError) as caught:
        open_adapter(folder)
    return str(caught.value)


def test_reads_factors_and_scale(tmp_path):
    adapter = open_adapter(write(tmp_path, {"base_model_name_or_path": "org/base"}))
    assert adapter.base == "org/base"
    assert dict(adapter.modules) == {
        "model.layers.0.self_attn.q_proj": (Q.format(0, "A"), Q.format(0, "B"), 3.0, False),
    }
    assert is_adapter(tmp_path) and not is_adapter(tmp_path / "nowhere")


def test_scale_of_rslora_is_alpha_over_the_root_of_the_rank(tmp_path):
    adapter = open_adapter(write(tmp_path, {"use_rslora": True}))
    assert adapter.modules["model.layers.0.self_attn.q_proj"].scale == pytest.approx(6 / 2**0.5, rel=1e-15)


@pytest.mark.parametrize(
    ("pattern", "alpha"),
    [
        ("q_proj", 10),  # the last part of the path
        ("self_attn.q_proj", 10),  # some last parts
        ("model.layers.0.self_attn.q_proj", 10),  # the whole path
        (r"^model\.layers\.(0|2)\..*", 10),
        (r".*\.0\..*_proj", 10),
        ("proj", 6),  # part of a word is no match
        ("layers.0", 6),  # neither is the middle of a path
    ],
)
def test_patterns_match_as_in_peft(tmp_path, pattern, alpha):
    from peft.utils.other import get_pattern_key

    module = "model.layers.0.self_attn.q_proj"
    assert {pattern: 10}.get(get_pattern_key([pattern], module), 6) == alpha
    adapter = open_adapter(write(tmp_path, {"alpha_pattern": {pattern: 10}}))
    assert adapter.modules[module].scale == alpha / 2


def test_first_of_two_patterns_wins(tmp_path):
    config = {"alpha_pattern": {"layers.1.self_attn.q_proj": 8, "q_proj": 4, "self_attn.q_proj": 2}}
    assert open_adapter(write(tmp_path, config)).modules["model.layers.0.self_attn.q_proj"].scale == 2.0


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora (DoRA)"),
        ({"lora_bias": True}, "lora_bias (LoRA with bias)"),
        ({"bias": "all"}, "bias='all'"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens (aLoRA)"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"monteclora_config": {"num_samples": 8}}, "monteclora_config"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"invented_tomorrow": 1}, "invented_tomorrow (not known to editkit)"),
        *(
            ({"init_lora_weights": i}, i)
            for i in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica")
        ),
    ],
)
def test_unsupported_settings_are_named(tmp_path, setting, named):
    assert named in refusal(write(tmp_path, setting))


def test_all_unsupported_settings_are_named_at_once(tmp_path):
    message = refusal(
        write(tmp_path, {"use_dora": True, "bias": "all", "init_lora_weights": "pissa", "use_qalora": True})
    )
    assert all(word in message for word in ("use_dora", "bias='all'", "pissa", "use_qalora"))


def test_every_setting_of_the_installed_peft_is_decided(tmp_path):
    # A default LoraConfig must open, and one with any variant switched on must not.
    from peft import LoraConfig

    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"])
    defaults = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    assert open_adapter(write(tmp_path, defaults | {"peft_type": "LORA"})).modules
    variants = [
        name for name, field in LoraConfig.__dataclass_fields__.items() if field.metadata.get("is_lora_variant")
    ]
    assert variants
    for name in variants:
        assert name in refusal(write(tmp_path, defaults | {"peft_type": "LORA", name: {"on": 1}}))


A, B = np.ones((2, 4), np.float32), np.ones((4, 2), np.float32)


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({Q.format(0, "A"): A}, "model.layers.0.self_attn.q_proj has no factor B"),
        ({Q.format(0, "B"): B}, "model.layers.0.self_attn.q_proj has no factor A"),
        (
            {Q.format(0, "A"): A, Q.format(0, "B"): np.ones((4, 3), np.float32)},
            "has rank 2 in adapter_config.json, 2 and 3",
        ),
        ({Q.format(0, "A"): A[:1], Q.format(0, "B"): B[:, :1]}, "has rank 2 in adapter_config.json, 1 and 1"),
        ({Q.format(0, "A"): A[None], Q.format(0, "B"): B}, "a convolution?"),
        ({Q.format(0, "A"): A.astype(np.int32), Q.format(0, "B"): B}, "dtype I32"),
        ({"base_model.model.q.lora_magnitude_vector": A}, "base_model.model.q.lora_magnitude_vector is not understood"),
        ({"base_model.model.q.lora_B.bias": A}, "base_model.model.q.lora_B.bias is not understood"),
        ({"model.q.lora_A.weight": A, "model.q.lora_B.weight": B}, "model.q.lora_A.weight is not understood"),
        ({"base_model.model.model.norm.weight": A}, "it holds no LoRA factors"),
    ],
)
def test_misshapen_tensors_are_named(tmp_path, tensors, named):
    assert named in refusal(
        write(tmp_path, tensors={name: np.ascontiguousarray(value) for name, value in tensors.items()})
    )


@pytest.mark.parametrize(
    "setting", [{"r": 0}, {"r": "2"}, {"lora_alpha": None}, {"alpha_pattern": {"(": 1}}, {"rank_pattern": [1]}]
)
def test_a_broken_configuration_is_no_traceback(tmp_path, setting):
    assert re.search(
        r"gives no rank and scale for .*: (r and lora_alpha must be numbers, r above 0|a pattern is no regular expression)|has rank",
        refusal(write(tmp_path, setting)),
    )


def test_a_folder_without_configuration(tmp_path):
    (write(tmp_path) / "adapter_config.json").unlink()
    assert "has no adapter_config.json" in refusal(tmp_path)


def test_pickled_adapters_are_refused(tmp_path):
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "adapter_model.bin" in refusal(tmp_path)
