"""`editkit merge`: configs and options do what they say, and the numbers are those of numpy in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.numpy import load_file, save_file

SHAPES = {
    "model.embed_tokens.weight": (12, 8),
    **{f"model.layers.{layer}.mlp.up_proj.weight": (16, 8) for layer in range(3)},
    **{f"model.layers.{layer}.self_attn.q_proj.weight": (8, 8) for layer in range(3)},
    "model.norm.weight": (8,),
}
CONFIG = {"model_type": "llama", "num_hidden_layers": 3, "tie_word_embeddings": True}
UP, Q = "model.layers.{}.mlp.up_proj.weight", "model.layers.{}.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "one", "two")):
        draw = np.random.default_rng(seed)
        save(name, {key: draw.standard_normal(shape).astype(np.float32) for key, shape in SHAPES.items()})


def save(folder: str, tensors: dict[str, np.ndarray]) -> None:
    Path(folder).mkdir()
    save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    Path(folder, "config.json").write_text(json.dumps(CONFIG))


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(main, ["merge", *arguments], prog_name="editkit")
    assert result.exit_code == code, result.output
    return result


def weights(folder: str) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float64) for name, values in load_file(Path(folder, "model.safetensors")).items()}


def assert_close(folder: str, expected: dict[str, np.ndarray]) -> None:
    found = weights(folder)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


def sums(first: float, second: float) -> dict[str, np.ndarray]:
    """base + first * (one - base) + second * (two - base)."""
    base, one, two = weights("base"), weights("one"), weights("two")
    return {name: base[name] + first * (one[name] - base[name]) + second * (two[name] - base[name]) for name in base}


YAML = """
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters:
      weight: [{filter: mlp, value: [0, 1]}, {value: 0.5}]
  - model: two
    parameters: {weight: -0.25}
"""


def test_a_config_is_carried_out(tmp_path):
    Path("merge.yaml").write_text(YAML)
    result = run("merge.yaml", "-o", "out")
    first = {UP.format(layer): layer / 2 for layer in range(3)}
    assert_close("out", {name: sums(first.get(name, 0.5), -0.25)[name] for name in SHAPES})
    assert (
        "8 tensors merged, 0 taken over as they are; change to base; out written, report in out/diff/report.html"
        in result.stdout
    )
    assert result.stderr == ""
    layers = [line.split()[0] for line in result.stdout.splitlines()[1:-1]]
    assert layers == ["outside", "0", "1", "2", "all"]
    provenance = json.loads(Path("out/editkit.json").read_text())
    assert provenance["command"] == "merge" and {one["role"] for one in provenance["inputs"]} >= {
        "base",
        "model 1",
        "model 2",
    }


def test_vectors_with_weights_are_merged_without_a_config():
    run("--base", "base", "--vector", "one=0.5", "--vector", "two", "--method", "task_arithmetic", "-o", "out", "-q")
    assert_close("out", sums(0.5, 1))


def test_settings_are_numbers_or_gradients():
    run("--base", "base", "--vector", "one", "--method", "slerp", "--set", "t=[0, 0, 1]", "-o", "out", "--no-report")
    base, one, merged = weights("base"), weights("one"), weights("out")
    assert not Path("out/diff").exists()
    for name in (UP, Q):
        for layer, source in enumerate((base, base, one)):
            np.testing.assert_allclose(merged[name.format(layer)], source[name.format(layer)], rtol=1e-6)


def test_only_some_tensors_and_what_a_mask_selects():
    mask = {UP.format(1): np.zeros((16, 8), bool), Q.format(0): np.ones((8, 8), bool)}
    mask[UP.format(1)][3] = True
    save_file(mask, "mask.safetensors")
    common = ("--base", "base", "--method", "task_arithmetic", "--only", "*.mlp.*")
    run(*common, "--vector", "one", "--vector", "two", "--mask", "one=mask.safetensors", "-o", "own")
    base, both, second = weights("base"), sums(1, 1), sums(0, 1)
    expected = base | {UP.format(layer): second[UP.format(layer)] for layer in range(3)}
    expected[UP.format(1)][3] = both[UP.format(1)][3]
    assert_close("own", expected)
    run(*common, "--vector", "one", "--vector", "two", "--mask", "mask.safetensors", "-o", "all")
    expected = weights("base")
    expected[UP.format(1)][3] = both[UP.format(1)][3]
    assert_close("all", expected)
    assert Path("all/model.safetensors").stat().st_size == Path("base/model.safetensors").stat().st_size


def test_random_drops_follow_the_seed():
    common = ("--base", "base", "--vector", "one", "--method", "dare_linear", "--set", "density=0.5", "-q")
    for seed, name in (("3", "a"), ("3", "b"), ("4", "c")):
        run(*common, "--seed", seed, "--threads", "1", "-o", name)
    same, again, other = (Path(name, "model.safetensors").read_bytes() for name in "abc")
    assert same == again != other


def test_a_dry_run_shows_rules_sizes_and_memory_and_writes_nothing(tmp_path):
    Path("merge.yaml").write_text(YAML.replace("mlp", "nlp"))
    before = sorted(tmp_path.rglob("*"))
    result = run("merge.yaml", "--dry-run", "-o", "out")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["tensors", "setting", "filter", "value"]
    assert [line.split(maxsplit=1)[0] for line in lines[1:-1]] == ["0", "8", "8"]
    assert "models[0].parameters.weight (line 7)  nlp     [0.0, 1.0]" in lines[1]
    size = sum(values.size for values in weights("base").values()) * 4
    assert lines[-1].startswith(
        f"8 tensors would be merged by task_arithmetic and 0 taken over as they are: {size / 1e6:.1f} MB to write, about "
    )
    assert lines[-1].endswith(" MB of memory; nothing was written.")
    assert result.stderr == "editkit: note: the filter 'nlp' hits no tensor, so that its value has no effect\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_refuses_what_a_run_would_refuse():
    Path("merge.yaml").write_text(YAML)
    Path("full").mkdir()
    Path("full/file").touch()
    assert "full is not empty" in run("merge.yaml", "--dry-run", "-o", "full", code=2).stderr


def test_json_on_stdout_is_the_result_and_nothing_else():
    Path("merge.yaml").write_text(YAML)
    planned = json.loads(run("merge.yaml", "--dry-run", "--json").stdout)
    assert planned["output"] is None and planned["rules"][0] == {
        "place": "models[0].parameters.weight (line 7)",
        "filter": "mlp",
        "value": [0, 1],
        "tensors": 3,
    }
    done = json.loads(run("merge.yaml", "-o", "out", "--json").stdout)
    shift = {name: sums(1, 0)[name] * 0 + weights("out")[name] - weights("base")[name] for name in SHAPES}
    assert done["output"] == "out" and done["merged"] == 8
    assert done["total"]["applied_l2"] == pytest.approx(np.sqrt(sum((one**2).sum() for one in shift.values())))


def test_a_merge_that_changes_nothing_says_so_with_exit_code_1():
    result = run("--base", "base", "--vector", "one=0", "--method", "task_arithmetic", "-o", "out", code=1)
    assert "warning: nothing changed" in result.stderr


def test_a_stack_of_layers_is_a_new_model_even_where_no_number_is_new():
    Path("merge.yaml").write_text("""
merge_method: passthrough
slices:
  - sources: [{model: base, layer_range: [0, 3]}]
  - sources: [{model: base, layer_range: [1, 3]}]
""")
    result = run("merge.yaml", "-o", "out")
    assert "nothing changed" not in result.stderr
    made, base = weights("out"), weights("base")
    assert len(made) == len(base) + 4 and json.loads(Path("out/config.json").read_text())["num_hidden_layers"] == 5
    assert np.array_equal(made[UP.format(3)], base[UP.format(1)]) and np.array_equal(
        made[Q.format(4)], base[Q.format(2)]
    )


def test_shards_and_a_patch_that_takes_it_back():
    Path("merge.yaml").write_text(YAML)
    run("merge.yaml", "-o", "sharded", "--shard-size", "600", "-q")
    assert len(list(Path("sharded").glob("model-*.safetensors"))) > 1
    run("merge.yaml", "-o", "out", "--patch", "merge.editpatch", "-q")
    undone = CliRunner().invoke(main, ["patch", "undo", "out", "merge.editpatch", "-o", "back"], prog_name="editkit")
    assert undone.exit_code == 0, undone.output
    assert Path("back/model.safetensors").read_bytes() == Path("base/model.safetensors").read_bytes()


def test_mergekits_sign_flip_comes_only_when_it_is_asked_for():
    common = ("--base", "base", "--vector", "one=-1", "--method", "task_arithmetic", "--set", "normalize=true")
    right = run(*common, "-o", "right")
    assert_close("right", sums(-1, 0))
    assert "note: " in right.stderr
    run(*common, "--mergekit-compatible", "-o", "flipped")
    base, flipped, added = weights("base"), weights("flipped"), sums(1, 0)
    for name in base:
        np.testing.assert_allclose(flipped[name], added[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge.yaml",), "give -o/--output, or --dry-run"),
        (("-o", "out"), "give a CONFIG, or --base and --vector"),
        (("--base", "base", "-o", "out"), "give a CONFIG, or --base and --vector"),
        (("merge.yaml", "--base", "base", "--set", "t=1", "-o", "out"), "--base, --set: a CONFIG says this itself"),
        (("--base", "base", "--vector", "one=1", "--vector", "one=2", "-o", "out"), "--vector one is given more than once"),
        (("--base", "base", "--vector", "one", "--set", "t", "-o", "out"), "'t' is not KEY=VALUE, such as density=0.5"),
        (("--base", "base", "--vector", "one", "--set", "t=[", "-o", "out"), "'[' is no YAML"),
        (("--base", "base", "--vector", "one", "--mask", "a", "--mask", "b", "-o", "out"), "--mask: one gets more than one"),
        (("--base", "base", "--vector", "one", "--method", "tise", "-o", "out"), "did you mean ties?"),
        (("--base", "base", "--vector", "one", "--method", "ties", "--set", "dnsity=1", "-o", "out"), "did you mean density?"),
        (("--base", "base", "--vector", "one", "--method", "ties", "--set", "density=1.5", "-o", "out"), "is 1.5: give a number from 0 to 1"),
        (("--base", "base", "--vector", "one", "--vector", "two", "--method", "slerp", "--set", "t=1", "-o", "out"), "SLERP takes 1"),
        (("--base", "base", "--vector", "nowhere", "-o", "out"), "nowhere does not exist"),
        (("--base", "base", "--vector", "one", "--only", "nothing", "-o", "out"), "--only 'nothing' matches none"),
        (("nowhere.yaml", "-o", "out"), "nowhere.yaml cannot be read"),
        (("--to", "adapter", "--vector", "one", "--base", "base", "--only", "x", "-o", "out"), "--base, --only: has no meaning with --to adapter, which combines adapters with each other, without a base: leave it out"),
        (("--to", "adapter", "--vector", "one", "--set", "t=1", "-o", "out"), "--set t: with --to adapter there are rank and density"),
        (("--to", "adapter", "-o", "out"), "--to adapter needs --vector, once for each adapter"),
        (("--to", "adapter", "--vector", "one", "--method", "ties", "-o", "out"), "such as --set density=0.5"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(arguments, said):
    Path("merge.yaml").write_text(YAML)
    result = run(*arguments, code=2)
    assert said in result.stderr and result.stderr.count("\n") == 1 and result.stdout == ""
    assert not Path("out").exists()


def test_paths_with_an_equals_sign_are_vectors():
    Path("one").rename("x=one")
    run("--base", "base", "--vector", "x=one=0.5", "--method", "task_arithmetic", "-o", "half", "-q")
    run("--base", "base", "--vector", "x=one", "--method", "task_arithmetic", "-o", "whole", "-q")
    base, one = weights("base"), weights("x=one")
    assert_close("half", {name: (base[name] + one[name]) / 2 for name in base})
    assert_close("whole", one)


def test_adapters_are_combined_without_a_base():
    for seed, name in enumerate(("first", "second")):
        draw = np.random.default_rng(seed)
        Path(name).mkdir()
        prefix = "base_model.model.model.layers.0.self_attn.q_proj"
        factors = {
            f"{prefix}.lora_A.weight": draw.standard_normal((2, 8)),
            f"{prefix}.lora_B.weight": draw.standard_normal((8, 2)),
        }
        save_file(
            {key: values.astype(np.float32) for key, values in factors.items()}, Path(name, "adapter_model.safetensors")
        )
        config = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": "base",
        }
        Path(name, "adapter_config.json").write_text(json.dumps(config))

    def change(folder: str) -> np.ndarray:
        factors = load_file(Path(folder, "adapter_model.safetensors"))
        config = json.loads(Path(folder, "adapter_config.json").read_text())
        a, b = (next(v.astype(np.float64) for key, v in factors.items() if f"lora_{side}" in key) for side in "AB")
        return config["lora_alpha"] / config["r"] * b @ a

    result = run("--to", "adapter", "--vector", "first=1", "--vector", "second=-0.5", "-o", "both", "--dry-run")
    assert result.stdout.splitlines()[1].split() == ["model.layers.0.self_attn.q_proj", "4", str(4 * (8 + 8) * 4)]
    assert "1 modules would be combined by cat" in result.stdout and not Path("both").exists()
    result = run("--to", "adapter", "--vector", "first=1", "--vector", "second=-0.5", "-o", "both")
    np.testing.assert_allclose(change("both"), change("first") - 0.5 * change("second"), rtol=1e-5, atol=1e-6)
    assert "1 modules combined by cat" in result.stdout and "both written" in result.stdout
    more = ("--vector", "first", "--vector", "second", "--method", "svd", "--set", "rank=6", "-o", "more")
    assert "note: rank 4, not 6, in 1 of 1 modules" in run("--to", "adapter", *more).stderr
    rank = run(
        "--to",
        "adapter",
        "--vector",
        "first",
        "--vector",
        "second",
        "--method",
        "svd",
        "--set",
        "rank=1",
        "-o",
        "less",
        "--json",
    )
    u, s, v = np.linalg.svd(change("first") + change("second"))
    np.testing.assert_allclose(change("less"), s[0] * np.outer(u[:, 0], v[0]), rtol=1e-4, atol=1e-5)
    assert json.loads(rank.stdout)["relative_error"] == pytest.approx(
        np.sqrt((s[1:] ** 2).sum() / (s**2).sum()), rel=1e-4
    )
