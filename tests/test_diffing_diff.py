"""`diff` finds exactly what was planted, and its numbers are those of numpy in float64."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import editkit
from editkit.checkpoint.header import LONGEST_ROW
from editkit.diffing.rendering import render
from editkit.errors import EditError
from editkit.names import grid

Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


def save(folder: Path, tensors: dict[str, torch.Tensor], config: dict | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config or {"num_attention_heads": 4, "num_key_value_heads": 2}))
    return folder


def random(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


def row(report: dict, name: str) -> dict:
    return next(row for row in report["tensors"] if row["name"] == name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_three_planted_elements_one_of_them_one_step(tmp_path, dtype):
    base = {Q: random((64, 64)).to(dtype), "other.weight": random((300, 70), seed=1).to(dtype)}
    edited = {name: tensor.clone() for name, tensor in base.items()}
    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[edited[Q].element_size()]
    edited[Q].view(whole)[5, 6] += 1
    for place in ((0, 0), (63, 63)):
        edited[Q].view(whole)[place] ^= 1
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    assert report["summary"]["changed"] == 3 and report["summary"]["tensors_changed"] == 1
    assert row(report, Q)["changed"] == 3
    change = edited[Q].double() - base[Q].double()
    assert row(report, Q)["l2"] == pytest.approx(float(change.norm()), rel=1e-6)
    assert row(report, Q)["max_abs"] == pytest.approx(float(change.abs().max()), rel=1e-6)


def test_diff_of_a_checkpoint_with_itself_is_empty(tmp_path):
    folder = save(tmp_path / "a", {Q: random((64, 64), torch.bfloat16), "steps": torch.arange(4)})
    summary = editkit.diff(folder, folder)["summary"]
    assert summary["changed"] == summary["tensors_changed"] == summary["crossed_int4"] == 0
    assert summary["l2"] == summary["max_abs"] == 0 and summary["cosine"] == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_measures_are_those_of_numpy(tmp_path, dtype):
    base, other = random((96, 200), dtype), random((96, 200), dtype, seed=1)
    edited = torch.where(other > 0.01, base + other / 4, base)
    edited[0, 0] = -base[0, 0]
    report = editkit.diff(save(tmp_path / "a", {"w.weight": base}), save(tmp_path / "b", {"w.weight": edited}))
    b, e = base.double().numpy(), edited.double().numpy()
    d = e - b
    got = report["tensors"][0]
    assert got["changed"] == (d != 0).sum() and got["changed_fraction"] == (d != 0).mean()
    assert got["sign_flips"] == (b * e < 0).sum()
    for key, value in {
        "l2": np.linalg.norm(d),
        "rel_l2": np.linalg.norm(d) / np.linalg.norm(b),
        "max_abs": np.abs(d).max(),
        "mean": d.mean(),
        "cosine": (b * e).sum() / np.linalg.norm(b) / np.linalg.norm(e),
    }.items():
        assert got[key] == pytest.approx(value, rel=1e-5)
    for bits, steps in ((8, 127), (4, 7)):
        grid = np.abs(b).max(axis=1, keepdims=True) / steps
        expected = (np.rint(b / grid) != np.rint(e / grid)).sum()
        assert abs(got[f"crossed_int{bits}"] - expected) <= 2  # float32 may fall on the other side of a bin's edge


def test_rows_of_layers_modules_and_heads_add_up(tmp_path):
    names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for layer in range(3) for part in "qo"]
    base = {name: random((32, 32), seed=index) for index, name in enumerate([*names, "lm_head.weight"])}
    edited = {name: tensor + random((32, 32), seed=50 + index) / 9 for index, (name, tensor) in enumerate(base.items())}
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    deltas = {name: (edited[name].double() - base[name].double()).numpy() for name in base}
    for layer in report["layers"]:
        own = [
            d
            for name, d in deltas.items()
            if (f"layers.{layer['layer']}." in name) or (layer["layer"] is None and "lm" in name)
        ]
        assert layer["tensors"] == len(own) and layer["l2"] == pytest.approx(math.sqrt(sum((d**2).sum() for d in own)))
    assert [layer["layer"] for layer in report["layers"]] == [0, 1, 2, None]
    assert {module["module"]: module["tensors"] for module in report["modules"]} == {
        "self_attn.q_proj": 3, "self_attn.o_proj": 3, "lm_head": 1,
    }  # fmt: skip
    assert report["summary"]["l2"] == pytest.approx(math.sqrt(sum((d**2).sum() for d in deltas.values())))
    q, o = deltas[names[0]].reshape(4, 8, 32), deltas[names[1]].reshape(32, 4, 8)
    for head in range(4):
        assert row(report, names[0])["heads"][head]["l2"] == pytest.approx(np.linalg.norm(q[head]), rel=1e-5)
        assert row(report, names[1])["heads"][head]["l2"] == pytest.approx(np.linalg.norm(o[:, head]), rel=1e-5)
    assert "heads" not in row(report, "lm_head.weight")


def test_heads_of_fused_projections_are_named(tmp_path):
    name = "transformer.h.0.attn.c_attn.weight"  # GPT-2: [in, q k v x heads], so heads are columns
    base = {name: random((8, 24))}
    edited = {name: base[name].clone()}
    edited[name][:, 8 + 4 : 8 + 8] += 0.5  # the second head of k, width 4
    config = {"model_type": "gpt2", "n_head": 2}
    report = editkit.diff(save(tmp_path / "a", base, config), save(tmp_path / "b", edited, config))
    changed = {(part["projection"], part["head"]): part["changed"] for part in row(report, name)["heads"]}
    assert changed == {("q", 0): 0, ("q", 1): 0, ("k", 0): 0, ("k", 1): 32, ("v", 0): 0, ("v", 1): 0}


def test_fused_experts_are_reported_each(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    base = {name: random((4, 6, 10))}
    edited = {name: base[name].clone()}
    edited[name][2] += 0.5
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    assert [part["changed"] for part in row(report, name)["experts"]] == [0, 0, 60, 0]


def test_structure_is_listed_not_crashed_on(tmp_path):
    base = {
        "a.weight": random((4, 4)),
        "b.weight": random((4, 4)),
        "c.weight": random((4, 4)),
        "steps": torch.arange(6),
    }
    edited = {
        "a.weight": random((4, 5)), "b.weight": base["b.weight"].half().float().half(), "d.weight": random((2,)),
        "steps": torch.tensor([0, 1, 2, 3, 4, 9]),
    }  # fmt: skip
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    assert [entry["name"] for entry in report["added"]] == ["d.weight"]
    assert [entry["name"] for entry in report["removed"]] == ["c.weight"]
    assert report["reshaped"] == [{"name": "a.weight", "base_shape": [4, 4], "edited_shape": [4, 5]}]
    assert report["retyped"] == [{"name": "b.weight", "base_dtype": "F32", "edited_dtype": "F16"}]
    assert row(report, "steps")["changed"] == 1 and row(report, "steps")["l2"] is None
    half = base["b.weight"].double() - edited["b.weight"].double()
    assert row(report, "b.weight")["changed"] == int((half != 0).sum())
    json.dumps(report, allow_nan=False)


def test_nan_and_inf_are_counted_and_the_report_stays_json(tmp_path):
    base = {"w.weight": random((8, 8)), NORM: torch.full((4,), math.nan)}
    edited = {"w.weight": base["w.weight"].clone(), NORM: base[NORM].clone()}
    edited["w.weight"][0, :2] = torch.tensor([math.nan, math.inf])
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    got = row(report, "w.weight")
    assert (got["nan_before"], got["nan_after"], got["inf_after"], got["changed"]) == (0, 1, 1, 2)
    assert row(report, NORM)["nan_before"] == 4 and row(report, NORM)["changed"] == 0
    json.dumps(report, allow_nan=False)


def test_odd_shapes(tmp_path):
    base = {
        "empty": torch.zeros(0), "none.weight": torch.zeros(0, 5), "scalar": torch.tensor(1.0),
        "long": torch.zeros(LONGEST_ROW + 3), "four": random((2, 3, 4, 5)),
    }  # fmt: skip
    edited = {name: tensor.clone() for name, tensor in base.items()}
    edited["scalar"] += 1
    edited["long"][-1] = 7
    edited["four"][1, 2, 3, 4] += 1
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited))
    assert {row["name"]: row["changed"] for row in report["tensors"]} == {
        "empty": 0, "none.weight": 0, "scalar": 1, "long": 1, "four": 1,
    }  # fmt: skip
    assert row(report, "empty")["changed_fraction"] is None and row(report, "long")["max_abs"] == 7


def test_only_and_threads(tmp_path):
    base = {f"model.layers.{i}.mlp.up_proj.weight": random((300, 40), torch.bfloat16, i) for i in range(11)}
    edited = {name: tensor * 1.01 for name, tensor in base.items()}
    a, b = save(tmp_path / "a", base), save(tmp_path / "b", edited)
    report = editkit.diff(a, b, only=["model.layers.1.*"])
    assert [row["layer"] for row in report["tensors"]] == [1]
    assert editkit.diff(a, b, threads=1) == editkit.diff(a, b, threads=4)
    with pytest.raises(EditError, match="matches none of the 11 tensors"):
        editkit.diff(a, b, only=["nothing"])


def test_spectral_of_a_rank_one_change(tmp_path):
    base = {"w.weight": random((40, 60)), "same.weight": random((10, 10))}
    change = torch.outer(random((40,), seed=2), random((60,), seed=3)) * 100
    edited = {"w.weight": base["w.weight"] + change, "same.weight": base["same.weight"]}
    report = editkit.diff(save(tmp_path / "a", base), save(tmp_path / "b", edited), spectral=True)
    got = row(report, "w.weight")["spectral"]
    norm = np.linalg.norm((edited["w.weight"].double() - base["w.weight"].double()).numpy(), 2)
    assert got["norm"] == pytest.approx(norm, rel=1e-6) and got["stable_rank"] == pytest.approx(1, abs=1e-4)
    assert got["energy"]["1"] == pytest.approx(1, abs=1e-4)
    assert row(report, "same.weight")["spectral"]["norm"] == 0


def test_every_key_of_a_report_is_documented(tmp_path):
    base = {Q: random((16, 16)), "model.layers.0.mlp.experts.up": random((2, 4, 8)), "a": random((2, 2))}
    a = save(tmp_path / "a", base)
    b = save(
        tmp_path / "b", {**{name: tensor * 2 for name, tensor in base.items()}, "a": random((3, 2)), "c": random((2,))}
    )
    save(tmp_path / "tuned", {name: tensor * 2 for name, tensor in base.items()})
    reports = [
        editkit.diff(a, b, spectral=True),
        editkit.negate(a, tmp_path / "tuned", tmp_path / "out", alpha=1.0).report,
    ]
    documented = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")

    def keys(item) -> set[str]:
        if isinstance(item, dict):
            return set(item) | {key for value in item.values() for key in keys(value)}
        return {key for value in item for key in keys(value)} if isinstance(item, list) else set()

    found = keys(reports) - {"1", "4", "16", "64", "model.safetensors"}
    assert len(found) > 40 and not [key for key in sorted(found) if f"`{key}`" not in documented]


@pytest.mark.parametrize(
    ("name", "shape", "config", "heads"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (32, 32), {"num_attention_heads": 4}, 4),
        ("model.layers.0.self_attn.k_proj.weight", (16, 32), {"num_attention_heads": 4, "num_key_value_heads": 2}, 2),
        ("model.layers.0.self_attn.q_proj.weight", (32, 32), {"num_attention_heads": "4"}, None),
        ("model.layers.0.self_attn.k_proj.weight", (16, 32), {"num_attention_heads": 4, "num_key_value_heads": [2]}, 4),
        ("model.layers.0.self_attn.q_proj.weight", (32, 32), {"num_attention_heads": 5}, None),
        ("h.0.attn.c_proj.weight", (32, 32), {"model_type": "gpt_bigcode", "n_head": 4}, 4),
        ("h.0.attn.c_attn.weight", (48, 32), {"model_type": "gpt_bigcode", "n_head": 4}, None),
        ("h.0.self_attention.query_key_value.weight", (96, 32), {"num_attention_heads": 4}, 4),
        ("h.0.self_attention.query_key_value.weight", (96, 32), {"num_attention_heads": 4, "multi_query": True}, None),
        ("h.0.attn.q_proj.weight", (48, 48), {"text_config": {"num_attention_heads": 4}}, 4),
        (
            "vision_tower.encoder.layers.0.self_attn.q_proj.weight", (48, 48),
            {"text_config": {"num_attention_heads": 4}, "vision_config": {"num_attention_heads": 6}}, 6,
        ),
        ("h.0.attn.q_proj.weight", (48, 48), {"text_config": "x", "num_attention_heads": 4}, 4),
    ],
)  # fmt: skip
def test_parts_follow_the_config_or_are_left_out(name, shape, config, heads):
    found = grid(name, shape, config)
    assert (found and len(found.labels())) == heads


@pytest.mark.parametrize(
    ("base", "edited", "expected"),
    [
        ({"r": 4, "lora_alpha": 16}, {"r": 4, "lora_alpha": 32}, [("lora_alpha", 16, 32)]),
        ({"r": 8}, {}, []),  # 8 is the default
        ({"use_rslora": False, "rank_pattern": {}}, {"use_rslora": None}, []),
        ({"use_rslora": True}, {}, [("use_rslora", True, None)]),
        ({"alpha_pattern": {"a": 1, "b": 2}}, {"alpha_pattern": {"b": 2, "a": 1}}, "order"),  # the first match wins
        ({"lora_dropout": 0.1, "base_model_name_or_path": "x"}, {"lora_dropout": 0.0}, []),
        ({"init_lora_weights": True}, {"init_lora_weights": "pissa"}, [("init_lora_weights", True, "pissa")]),
        ({"lora_alpha": math.nan}, {"lora_alpha": math.nan}, []),
    ],
)
def test_settings_of_two_adapters_that_mean_another_change(tmp_path, base, edited, expected):
    for name, config in (("a", base), ("b", edited)):
        (tmp_path / name).mkdir()
        factor = {"base_model.model.q.lora_A.weight": torch.ones(4, 2)}
        save_file(factor, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    report = editkit.diff(tmp_path / "a", tmp_path / "b")
    found = [(row["name"], row["base"], row["edited"]) for row in report["settings"]]
    assert found == expected if expected != "order" else [row[0] for row in found] == ["alpha_pattern"]
    assert report["summary"]["changed"] == 0 and report["summary"]["settings"] == len(found)
    for form in ("table", "md", "html"):
        assert ("settings differ" in render(report, form)) == bool(found)


def test_quantized_checkpoints_are_compared_with_a_warning(tmp_path):
    codes = {"a.qweight": torch.arange(4, dtype=torch.int32)}
    config = {"quantization_config": {"quant_method": "gptq\x1b[2J"}}
    report = editkit.diff(
        save(tmp_path / "a", codes, config), save(tmp_path / "b", {"a.qweight": codes["a.qweight"] + 1})
    )
    assert [report[side]["quantization"] for side in ("base", "edited")] == ["gptq\x1b[2J", "gptq or awq"]
    assert "Warning: Quantized (gptq\\x1b[2J): codes are compared as stored" in render(report)
    assert editkit.diff(tmp_path / "a", tmp_path / "a")["summary"]["changed"] == 0


def test_one_glob_may_be_given_alone(tmp_path):
    a = save(tmp_path / "a", {"x.mlp.w": random((2, 2)), "y": random((2,))})
    assert [row["name"] for row in editkit.diff(a, a, only="*.mlp.*")["tensors"]] == ["x.mlp.w"]


def test_progress_covers_the_spectra(tmp_path):
    tensors = {"w.weight": random((8, 4)), "v": random((5,))}
    a, b = save(tmp_path / "a", tensors), save(tmp_path / "b", {name: value + 1 for name, value in tensors.items()})
    seen = []
    editkit.diff(a, b, spectral=True, progress=lambda *state: seen.append(state))
    # 4 bytes an element, both sides; the matrix is read once more for its spectrum
    assert seen[-1] == (2 * 4 * (32 + 5 + 32),) * 2 and sorted(seen) == seen
