"""`editkit diff`: what it prints, what it writes, and its exit codes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.numpy import save_file

UP, HEAD = "model.layers.0.mlp.up_proj.weight", "lm_head.weight"


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints of two 2 x 4 tensors; two of the eight elements of UP differ, by 1 and by 2."""
    for name, change in (("base", 0), ("edited", 1)):
        up = np.full((2, 4), 3, np.float32)
        up[0, 0] += change
        up[1, 3] -= 2 * change
        (tmp_path / name).mkdir()
        save_file({UP: up, HEAD: np.ones((2, 4), np.float32)}, tmp_path / name / "model.safetensors")
    return str(tmp_path / "base"), str(tmp_path / "edited")


def run(*arguments):
    return CliRunner().invoke(main, ["diff", *arguments, "--quiet"])


def test_the_table_and_the_formats(pair):
    result = CliRunner().invoke(main, ["diff", *pair])
    assert result.exit_code == 0 and "Of 16 parameters in 2 tensors, 12.5 % changed (2, in 1 tensor)." in result.stdout
    assert "model.layers.0" in result.stdout and "\x1b" not in result.stdout
    for form, start in (
        ("json", '{"schema": "editkit.diff/1"'),
        ("csv", "name,dtype"),
        ("md", "### "),
        ("html", "<!doctype"),
    ):
        assert CliRunner().invoke(main, ["diff", *pair, "--format", form, "--by", "tensor"]).stdout.startswith(start)
    read = json.loads(CliRunner().invoke(main, ["diff", *pair, "--json", "--only", HEAD]).stdout)
    assert [row["name"] for row in read["tensors"]] == [HEAD]
    assert CliRunner().invoke(main, ["diff", *pair, "--quiet"]).output == ""


def test_exit_codes_are_those_of_git_diff(pair):
    base, edited = pair
    assert run(base, edited).exit_code == 0
    assert run(base, edited, "--exit-code").exit_code == 1
    assert run(base, base, "--exit-code").exit_code == 0
    assert run(base, base + "-absent", "--exit-code").exit_code == 2


def test_every_violation_is_printed(pair):
    result = run(*pair, "--fail-if", "max_abs > 1.5 @ *.mlp.*", "--fail-if", "changed > 0", "--fail-if", "changed > 2")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"editkit: {UP}: max_abs is 2 (rule: max_abs > 1.5 @ *.mlp.*)",
        "editkit: summary: changed is 2 (rule: changed > 0)",
    ]
    assert run(*pair, "--fail-if", "changed > 0 @ lm_head.weight").exit_code == 0


def test_bad_rules_are_refused_before_anything_is_read(pair):
    result = run("no-such-model", "nor-this", "--fail-if", "rel_l1 > 3")
    assert result.exit_code == 2 and "did you mean rel_l2?" in result.stderr
    assert run(*pair, "--fail-if", "changed > 0 @ nothing.*").exit_code == 2


def test_a_report_goes_into_a_new_folder_only(pair, tmp_path):
    folder = tmp_path / "report"
    assert run(*pair, "-o", str(folder)).exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["layers.png", "report.html", "report.json"]
    result = run(*pair, "-o", str(folder))
    assert result.exit_code == 2 and "is not an empty folder" in result.stderr
    violated = run(*pair, "-o", str(tmp_path / "other"), "--fail-if", "changed > 0")
    assert violated.exit_code == 1 and (tmp_path / "other" / "report.json").exists()


def test_a_report_is_not_written_into_an_input(pair, tmp_path):
    base, edited = pair
    for place in (f"{edited}/report", base, str(tmp_path)):
        result = run(*pair, "-o", place)
        assert result.exit_code == 2 and " input" in result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["base", "edited", *["model.safetensors"] * 2]


def test_a_gate_on_the_whole_sees_what_was_not_compared(pair, tmp_path):
    save_file(
        {UP: np.full((2, 4), 3, np.float32)}, tmp_path / "base" / "model.safetensors"
    )  # HEAD is then an added one
    result = run(*pair, "--fail-if", "nan_after > 0")
    assert result.exit_code == 1
    assert result.stderr == f"editkit: summary: nan_after is unknown: {HEAD} was added (rule: nan_after > 0)\n"


def test_an_audit_exits_with_one_and_names_what_strayed(pair, tmp_path):
    mask = tmp_path / "mask.safetensors"
    save_file({UP: np.array([[1, 0, 0, 0], [0, 0, 0, 1]], np.uint8)}, mask)
    clean = CliRunner().invoke(main, ["diff", *pair, "--mask", str(mask)])
    assert clean.exit_code == 0
    said = "Outside the mask mask.safetensors: 0 of 14 elements changed. Inside: 2 of 2.\n"
    assert said in clean.stdout and "utside" not in clean.stderr
    save_file({UP: np.array([[1, 0, 0, 0], [0, 0, 1, 0]], np.uint8)}, mask)
    result = CliRunner().invoke(main, ["diff", *pair, "--mask", str(mask)])
    assert result.exit_code == 1 and f"  {UP}: 1 element changed, first at index 7, counted from 0\n" in result.stdout
    said = "editkit: Outside the mask mask.safetensors: 1 of 14 elements changed, in 1 tensor. Inside: 1 of 2.\n"
    quiet = run(*pair, "--mask", str(mask))
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (1, "", said)
    machine = run(*pair, "--mask", str(mask), "--json", "-o", str(tmp_path / "report"))
    outside = [{"name": UP, "kind": "changed", "changed": 1, "first_index": 7}]
    assert machine.exit_code == 1 and json.loads(machine.stdout)["mask"]["outside"] == outside
    assert json.loads((tmp_path / "report" / "report.json").read_text())["mask"]["outside"] == outside


def test_a_mask_of_another_checkpoint_is_bad_input(pair, tmp_path):
    record = {"format": "editkit.mask/1", "granularity": "row", "base": "m", "base_sha256": {"model.safetensors": "0"}}
    save_file({UP: np.array([1, 1], np.uint8)}, tmp_path / "m.safetensors", {"editkit": json.dumps(record)})
    refused = run(*pair, "--mask", str(tmp_path / "m.safetensors"))
    assert refused.exit_code == 2 and "was made for m, and" in refused.stderr and refused.stderr.count("\n") == 1
    assert run(*pair, "--mask", str(tmp_path / "m.safetensors"), "--allow-other-base").exit_code == 0
    absent = run(*pair, "--mask", str(tmp_path / "nothing"))
    assert absent.exit_code == 2 and "nothing does not exist" in absent.stderr
