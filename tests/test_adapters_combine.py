"""Combined adapters against dense sums in float64, numpy's singular values, peft's add_weighted_adapter and peft's logits."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapters_extract import OLD_PEFT, TODAYS_PEFT, best, logits
from test_vectors_lowrank import LLAMA, gpt2, llama, train
from transformers import AutoModelForCausalLM

from editkit.adapters.combine import METHODS, combine
from editkit.adapters.mixing import Mix
from editkit.errors import EditError, NothingChanged

Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base with adapters of it: two plain ones, and one with all that scales and ranks can be made of."""
    folder = tmp_path_factory.mktemp("adapters")
    base = llama(folder / "base")
    train(base, folder / "one", LLAMA)
    train(base, folder / "two", LLAMA)
    rich = {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 1}}
    train(base, folder / "rich", ["q_proj", "v_proj", "up_proj"], **rich)
    generator = torch.Generator().manual_seed(11)
    for name in ("two", "rich"):  # `train` draws the same factors for all
        file = folder / name / "adapter_model.safetensors"
        save_file(
            {n: torch.randn(t.shape, generator=generator) * 0.1 for n, t in sorted(load_file(file).items())}, file
        )
    return folder


def dense(adapter: Path) -> dict[str, np.ndarray]:
    """scale * B @ A of every module, by hand: patterns name the last part of a module."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = {n: t.double().numpy() for n, t in load_file(adapter / "adapter_model.safetensors").items()}
    out = {}
    for name, a in factors.items():
        if ".lora_A." in name or ".lora_embedding_A" in name:
            module = name.removeprefix("base_model.model.").split(".lora_")[0]
            leaf = module.rsplit(".", 1)[-1]
            rank = config["rank_pattern"].get(leaf, config["r"])
            alpha = config["alpha_pattern"].get(leaf, config["lora_alpha"])
            assert len(a) == rank
            out[module] = (
                alpha / (math.sqrt(rank) if config["use_rslora"] else rank) * factors[name.replace("_A", "_B")] @ a
            )
    return out


def result_of(folder: Path) -> dict[str, np.ndarray]:
    """B @ A of an adapter whose scales must all be 1."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (
        config["rank_pattern"] == config["alpha_pattern"]
        and config["r"] == config["lora_alpha"]
        and not config["use_rslora"]
    )
    factors = {
        n.removeprefix("base_model.model."): t.double().numpy()
        for n, t in load_file(folder / "adapter_model.safetensors").items()
    }
    return {n.split(".lora_")[0]: factors[n.replace("_A", "_B")] @ a for n, a in factors.items() if "_A" in n}


def summed(weights: dict[Path, float]) -> dict[str, np.ndarray]:
    total: dict[str, np.ndarray] = {}
    for adapter, weight in weights.items():
        for module, change in dense(adapter).items():
            total[module] = total.get(module, 0) + weight * change
    return total


def off(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


WEIGHTS = [
    {"one": 1.0, "two": 1.0},
    {"one": 0.5, "two": -0.5},
    {"one": 0.7, "rich": -1.3},
    {"rich": -2.0},
    {"one": 1.0, "two": 0.0, "rich": 0.25},
]


def given(place: Path, weights: dict[str, float]) -> dict[Path, float]:
    return {place / name: weight for name, weight in weights.items()}


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_cat_is_the_dense_sum(place, tmp_path, weights):
    result = combine(given(place, weights), tmp_path / "out")
    wanted, found = summed(given(place, weights)), result_of(tmp_path / "out")
    assert found.keys() == wanted.keys() and not result["left_out"] and not result["warnings"]
    for row in result["modules"]:
        error = off(found[row["module"]], wanted[row["module"]])
        assert error < 1e-6 and row["relative_error"] == pytest.approx(error, rel=0.01)
        assert row["l2"] == pytest.approx(np.linalg.norm(wanted[row["module"]]), rel=1e-9)
    assert result["relative_error"] < 1e-6


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("rank", [1, 3, 24])
def test_svd_is_the_nearest_of_its_rank(place, tmp_path, weights, rank):
    result = combine(given(place, weights), tmp_path / "out", method="svd", rank=rank)
    wanted, found = summed(given(place, weights)), result_of(tmp_path / "out")
    for row in result["modules"]:
        module = row["module"]
        error = off(found[module], wanted[module])
        assert error == pytest.approx(math.sqrt(best(wanted[module], rank)), abs=1e-6)
        assert row["relative_error"] == pytest.approx(error, rel=1e-3, abs=1e-7)
        assert row["rank"] == min(rank, np.linalg.matrix_rank(wanted[module], tol=1e-9))


def test_svd_has_the_largest_rank_of_each_module_unless_told_otherwise(place, tmp_path):
    result = combine(given(place, {"one": 1.0, "rich": 1.0}), tmp_path / "out", method="svd")
    assert {row["rank"] for row in result["modules"]} == {4}
    result = combine(given(place, {"rich": 1.0}), tmp_path / "again", method="svd")
    assert {row["module"].rsplit("_", 2)[-2][-1]: row["rank"] for row in result["modules"]} == {"q": 4, "v": 2, "p": 4}


@pytest.mark.parametrize("make", ["llama", "gpt2", "embeddings"])
def test_the_result_generates_what_the_summed_weights_do(place, tmp_path, make):
    if make == "llama":
        base, weights = place / "base", given(place, {"one": 0.7, "rich": -1.3})
    else:
        base = (gpt2 if make == "gpt2" else llama)(tmp_path / "base")
        targets = ["c_attn", "c_proj"] if make == "gpt2" else ["embed_tokens", "lm_head", "q_proj"]
        weights = {
            train(base, tmp_path / "a", targets): 0.7,
            train(base, tmp_path / "b", targets[:2], use_rslora=True): -1.3,
        }
    combine(weights, tmp_path / "out")
    want = tmp_path / "want"
    shutil.copytree(base, want)
    tensors = load_file(want / "model.safetensors")
    for module, change in summed(weights).items():
        name, change = f"{module}.weight", torch.from_numpy(change)
        transposed = make == "gpt2" or "embed" in module
        tensors[name] = (tensors[name].double() + (change.T if transposed else change)).float()
    save_file(tensors, want / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(base, tmp_path / "out"), logits(want), rtol=0, atol=5e-5)
    assert (logits(base) - logits(want)).abs().max() > 1e-2


def weighted_by_peft(place: Path, weights: dict[str, float], **settings) -> dict[str, np.ndarray]:
    """scale * B @ A of what peft's add_weighted_adapter makes of the adapters."""
    from peft import PeftModel

    names = list(weights)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "base"), place / names[0], names[0])
    for name in names[1:]:
        model.load_adapter(place / name, name)
    model.add_weighted_adapter(names, list(weights.values()), "new", **settings)
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    return {n: m.get_delta_weight("new").double().detach().numpy() for n, m in layers.items()}


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd"])
def test_deterministic_methods_agree_with_peft(place, tmp_path, method):
    if OLD_PEFT and method.endswith("_svd"):
        pytest.skip("peft before 0.21 gives another result")
    weights = {"one": 0.7, "two": 1.2}
    settings = {} if method == "linear" else {"density": 0.6}
    result = combine(given(place, weights), tmp_path / "out", method=method, **settings)
    found, wanted = result_of(tmp_path / "out"), summed(given(place, weights))
    for module, theirs in weighted_by_peft(place, weights, combination_type=method, **settings).items():
        assert off(found[module], theirs) < 1e-5
    for row in result["modules"]:
        assert row["relative_error"] == pytest.approx(off(found[row["module"]], wanted[row["module"]]), rel=1e-4)
        assert ("residual_energy" in row) == method.endswith("_svd")


@TODAYS_PEFT  # older ones give another result
def test_linear_with_a_negative_weight_agrees_with_peft_and_says_what_it_is(place, tmp_path):
    weights = {"one": 0.5, "two": -0.5}
    result = combine(given(place, weights), tmp_path / "out", method="linear")
    found = result_of(tmp_path / "out")
    for module, theirs in weighted_by_peft(place, weights, combination_type="linear").items():
        assert off(found[module], theirs) < 1e-6
    assert "linear mixes the factors A and B apart" in result["warnings"][0] and result["relative_error"] > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_a_single_adapter_can_be_scaled_and_negated_by_every_method(place, tmp_path, method):
    sparse = {} if method in ("cat", "svd", "linear") else {"density": 1.0}
    combine({place / "rich": -0.5}, tmp_path / "out", method=method, **sparse)
    found, wanted = result_of(tmp_path / "out"), summed({place / "rich": -0.5})
    for module, change in wanted.items():
        assert off(found[module], change) < 1e-6


def test_ties_by_hand():
    one, two = np.array([[4.0, -1.0, 2.0, 0.5]]), np.array([[1.0, 3.0, -2.0, 6.0]])
    tensors = [lambda first, last: one[first:last], lambda first, last: two[first:last]]

    def mixed(weights: list[float], density: float) -> list[float]:
        return Mix(tensors, (1, 4), weights, method="ties", density=density, seed=0, name="w").rows(0, 1)[0].tolist()

    # kept of one: 4, -1, 2; of two: 3, -2, 6. Sums 4, 2, 0, 6: the signs agree in 4; 3; nothing; 6.
    assert mixed([1.0, 1.0], 0.75) == [4.0, 3.0, 0.0, 6.0]
    assert mixed([0.5, 2.0], 1.0) == [(2.0 + 2.0) / 2, 6.0, 0.0, (0.25 + 12.0) / 2]
    # two negated is -1, -3, 2, -6: sums 3, -4, 4, -5.5
    assert mixed([1.0, -1.0], 1.0) == [4.0, -2.0, 2.0, -6.0]
    assert mixed([1.0, 1.0], 0.0) == [0.0] * 4


@pytest.mark.parametrize("density", [0.0, 0.013, 0.5, 1.0])
def test_the_threshold_keeps_the_largest_over_all_blocks(monkeypatch, density):
    from editkit.adapters import mixing

    monkeypatch.setattr(mixing, "_BLOCK", 64)
    values = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    mix = Mix(
        [lambda first, last: values[first:last]],
        (40, 16),
        [2.0],
        method="magnitude_prune",
        density=density,
        seed=0,
        name="w",
    )
    count = int(density * 640)
    order = np.argsort(-np.abs(values).reshape(-1))
    wanted = np.zeros(640, np.float32)
    wanted[order[:count]] = 2 * values.reshape(-1)[order[:count]]
    np.testing.assert_array_equal(np.vstack([mix.rows(0, 7), mix.rows(7, 40)]), wanted.reshape(40, 16))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_the_mean_of_dare_over_seeds_is_the_undropped_mixture(method):
    random = np.random.default_rng(2)
    one, two = np.abs(random.standard_normal((2, 6, 8)))  # of one sign, so that a dropped element changes no election
    tensors = [lambda first, last: one[first:last], lambda first, last: two[first:last]]

    def mixed(method: str, density: float, seed: int) -> np.ndarray:
        return Mix(tensors, (6, 8), [0.7, 0.6], method=method, density=density, seed=seed, name="w").rows(0, 6)

    drawn = np.stack([mixed(method, 0.4, seed) for seed in range(200)])
    if method == "dare_linear":
        wanted = 0.7 * one + 0.6 * two
    else:  # both are kept in .16 of the cases, one alone in .24 each; the mean is over those that are kept
        wanted = (0.16 * (0.7 * one + 0.6 * two) / 2 + 0.24 * (0.7 * one + 0.6 * two)) / 0.4
    error = drawn.std(0, ddof=1) / math.sqrt(200)
    assert (np.abs(drawn.mean(0) - wanted) < 4 * error).all()
    assert np.abs((drawn.mean(0) - wanted) / error).mean() < 1.1


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties_svd", "svd", "ties"])
def test_threads_do_not_matter_and_seeds_do_for_dare(place, tmp_path, method):
    settings = {} if method == "svd" else {"density": 0.5}
    for name, more in {"a": {"threads": 1}, "b": {"threads": 3}, "c": {"seed": 1}}.items():
        combine(given(place, {"one": 1.0, "two": 0.5}), tmp_path / name, method=method, **settings, **more)
    a, b, c = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "abc")
    assert a == b and (a == c) == (not method.startswith("dare"))
    record = json.loads((tmp_path / "c" / "editkit.json").read_text())
    assert record["weights"] == [1.0, 0.5] and str(tmp_path) not in json.dumps(record)


def test_sixteen_bit_adapters_are_summed_in_float32(place, tmp_path):
    base = place / "base"
    weights = {train(base, tmp_path / "a", LLAMA, "bfloat16"): 0.3, train(base, tmp_path / "b", LLAMA, "float16"): 0.9}
    assert combine(weights, tmp_path / "out")["relative_error"] < 1e-6
    wanted, found = summed(weights), result_of(tmp_path / "out")
    assert all(off(found[module], wanted[module]) < 1e-6 for module in wanted)


def test_adapters_that_cancel_are_left_out_or_refused(place, tmp_path):
    shutil.copytree(place / "one", tmp_path / "copy")
    with pytest.raises(NothingChanged, match="changes nothing"):
        combine({place / "one": 0.5, tmp_path / "copy": -0.5}, tmp_path / "out", method="svd")
    assert not (tmp_path / "out").exists()
    result = combine({place / "one": 0.5, tmp_path / "copy": -0.5, place / "rich": 1.0}, tmp_path / "out")
    assert len(result["left_out"]) == 2 and all("down_proj" in module for module in result["left_out"])


def test_a_rank_that_the_sum_does_not_have_is_said(place, tmp_path):
    weights = given(place, {"one": 1.0, "two": 1.0})  # of rank 4 each, in every module of `one`
    result = combine(weights, tmp_path / "out", method="svd", rank=16)
    count = len(result["modules"])
    assert {row["rank"] for row in result["modules"]} == {8}
    assert result["notes"] == [
        f"rank 8, not 16, in {count} of {count} modules: what is combined there has no larger one"
    ]
    assert not combine(weights, tmp_path / "less", method="svd", rank=8)["notes"]
    assert not combine(weights, tmp_path / "default", method="svd")["notes"]


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_says_the_ranks_and_bytes_that_are_written_and_writes_nothing(place, tmp_path, method):
    names = ("one", "rich") if method in ("cat", "svd") or method.endswith("_svd") else ("one", "two")
    weights = given(place, dict.fromkeys(names, 0.5))
    settings = {} if method in ("cat", "svd", "linear") else {"density": 0.9}
    planned = combine(weights, None, method=method, dry_run=True, **settings)
    assert combine(weights, tmp_path / "out", method=method, dry_run=True, **settings)["bytes"] == planned["bytes"]
    assert not list(tmp_path.iterdir())
    combine(weights, tmp_path / "out", method=method, **settings)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {
        n.removeprefix("base_model.model.").split(".lora_")[0]: len(tensor)
        for n, tensor in tensors.items()
        if ".lora_A" in n
    }
    assert {row["module"]: row["rank"] for row in planned["modules"]} == ranks
    assert planned["bytes"] == sum(tensor.nbytes for tensor in tensors.values())


def test_a_dry_run_checks_what_a_run_would(place, tmp_path):
    with pytest.raises(EditError, match="no output folder given"):
        combine({place / "one": 1.0}, None)
    with pytest.raises(NothingChanged, match="zero in every module"):
        combine({place / "one": 0.0}, None, dry_run=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(EditError, match="is not empty"):
        combine({place / "one": 1.0}, tmp_path / "out", dry_run=True)


def test_the_folders_of_a_base_are_not_handed_on_and_hub_ids_are(place, tmp_path):
    for name, written in {
        str(place / "base"): "./base",
        "org/base": "org/base",
        "base": "base",
        "./base": "./base",
    }.items():
        shutil.copytree(place / "one", tmp_path / "one", dirs_exist_ok=True)
        config = tmp_path / "one" / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": name}))
        combine({tmp_path / "one": 1.0}, tmp_path / "out")
        assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == written
        shutil.rmtree(tmp_path / "out")


# -- what is refused


def refused(tmp_path: Path, match: str, weights: dict[Path, float], **settings) -> None:
    with pytest.raises(EditError, match=match):
        combine(weights, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_refused_all_at_once(place, tmp_path):
    both = given(place, {"one": 1.0, "two": 1.0})
    refused(tmp_path, "method 'cut' is unknown: choose one of cat, svd", both, method="cut")
    refused(
        tmp_path,
        r"one is nan, not a finite number, .*two is inf",
        dict.fromkeys(both, math.nan) | {place / "two": math.inf},
    )
    refused(
        tmp_path, "ties needs the share of the elements that it keeps, such as --set density=0.5", both, method="ties"
    )
    refused(tmp_path, r"not 1.5", both, method="dare_linear_svd", density=1.5)
    refused(tmp_path, "cat has no density, cat has no rank of its own", both, density=0.5, rank=3)
    refused(tmp_path, "no adapter is given", {})
    refused(tmp_path, "rank 99 is larger than the matrix", both, method="svd", rank=99)


def test_ranks_that_differ_are_refused_where_factors_are_added(place, tmp_path):
    weights = given(place, {"one": 1.0, "rich": 1.0})
    refused(
        tmp_path,
        r"^these adapters cannot be combined: rank 4 in \S*one, 2 in \S*rich "
        r"\(model.layers.0.self_attn.v_proj and 1 more\): use cat, svd or one of the _svd methods$",
        weights,
        method="linear",
    )


def test_adapters_of_other_models_are_refused(place, tmp_path):
    other = train(gpt2(tmp_path / "gpt2"), tmp_path / "other", ["c_attn"])
    shutil.copytree(place / "two", tmp_path / "small")
    file = tmp_path / "small" / "adapter_model.safetensors"
    save_file({n: t[:, :9].clone() if "lora_A" in n else t for n, t in load_file(file).items()}, file)
    refused(tmp_path, r"one was made for .*base, not so .*other \(.*gpt2\)", {place / "one": 1.0, other: 1.0})
    refused(tmp_path, rf"{Q} \[24, 9\] in .*small instead of \[24, 24\]", {place / "one": 1.0, tmp_path / "small": 1.0})
    config = tmp_path / "small" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "org/model"}))
    refused(tmp_path, "--allow-other-base", {place / "one": 1.0, tmp_path / "small": 1.0})
    shutil.copy(place / "two" / "adapter_model.safetensors", file)
    combine({place / "one": 1.0, tmp_path / "small": 1.0}, tmp_path / "out", allow_other_base=True)


def test_embeddings_of_the_base_that_differ_are_refused_and_equal_ones_come_along(place, tmp_path):
    base = place / "base"
    one, two = (train(base, tmp_path / name, ["embed_tokens"]) for name in ("a", "b"))
    combine({one: 1.0, two: 1.0}, tmp_path / "out")
    copy = "base_model.model.model.embed_tokens.base_layer.weight"
    tensors = load_file(two / "adapter_model.safetensors")
    assert torch.equal(load_file(tmp_path / "out" / "adapter_model.safetensors")[copy], tensors[copy])
    tensors[copy] = tensors[copy] + 1
    save_file(tensors, two / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "out")
    refused(tmp_path, f"{copy} of .*b", {one: 1.0, two: 1.0})


def test_factors_that_are_not_finite_are_refused(place, tmp_path):
    shutil.copytree(place / "two", tmp_path / "bad")
    file = tmp_path / "bad" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{Q}.lora_B.weight"][0, 0] = torch.nan
    save_file(tensors, file)
    refused(tmp_path, f"bad has NaN or Inf in the factors of {Q}", {place / "one": 1.0, tmp_path / "bad": 1.0})
