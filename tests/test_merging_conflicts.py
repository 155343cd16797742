"""Conflicts between task vectors: worked by hand on four elements, and against numpy on whole checkpoints."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from editkit_cli.main import main
from safetensors.numpy import save_file

import editkit
from editkit.errors import EditError
from editkit.merging.conflicts import conflicts
from editkit.merging.rendering import to_table

UP, DOWN, NORM = (f"model.layers.{layer}.weight" for layer in ("0.mlp.up_proj", "1.mlp.down_proj", "0.input_layernorm"))
PNG = b"\x89PNG"


def save(folder, **tensors):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return str(folder)


def row(*values):
    return np.array([values], np.float32)


@pytest.fixture
def three(tmp_path):
    """A base of ones, and what was added to its two tensors."""
    base = save(tmp_path / "base", **{UP: row(1, 1, 1, 1), DOWN: row(1, 1)})
    a = save(tmp_path / "a", **{UP: 1 + row(1, -1, 0, 2), DOWN: 1 + row(0, 0)})
    b = save(tmp_path / "b", **{UP: 1 + row(1, 1, 1, -2), DOWN: 1 + row(3, 0)})
    return base, a, b


def test_one_pair_by_hand(three):
    base, a, b = three
    report = conflicts(base, [a, b])
    [pair] = next(one for one in report["modules"] if one["name"] == "mlp.up_proj")["pairs"]
    # a.b = 1 - 1 - 4, |a|^2 = 6, |b|^2 = 7; three elements are changed by both, in two of them the signs differ
    assert pair["cosine"] == pytest.approx(-4 / np.sqrt(42))
    assert (pair["sign_disagreement"], pair["overlap"], pair["both"], pair["either"]) == (2 / 3, 3 / 4, 3, 4)
    assert pair["norm_ratio"] == pytest.approx(np.sqrt(7 / 6))
    assert [one["changed"] for one in report["vectors"]] == [3, 5]
    assert [one["l2"] for one in report["vectors"]] == pytest.approx([np.sqrt(6), 4.0])
    assert (report["pairs"][0]["both"], report["pairs"][0]["either"]) == (3, 5)


def test_what_has_no_value_is_unknown(three):
    base, a, b = three
    [pair] = next(one for one in conflicts(base, [a, b])["tensors"] if one["name"] == DOWN)["pairs"]
    assert (pair["cosine"], pair["sign_disagreement"], pair["norm_ratio"]) == (None, None, None)
    assert (pair["overlap"], pair["either"]) == (0, 1)


def test_a_mask_takes_elements_out(three, tmp_path):
    base, a, b = three
    save_file({UP: np.array([[0, 1, 1, 1]], np.uint8)}, tmp_path / "mask.safetensors")
    [pair] = conflicts(base, [a, b], masks={a: tmp_path / "mask.safetensors"})["pairs"]
    assert (pair["both"], pair["either"], pair["sign_disagreement"]) == (2, 5, 1)


def test_whole_checkpoints_equal_numpy_whatever_the_threads(tmp_path):
    draw = np.random.default_rng(0).standard_normal
    shapes = {UP: (700, 1024), DOWN: (64, 700), NORM: (700,)}
    models = [{name: draw(shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]
    base, *others = (save(tmp_path / str(number), **one) for number, one in enumerate(models))
    report = conflicts(base, others, threads=2)
    assert report == conflicts(base, others, threads=1)
    whole = np.stack(
        [np.concatenate([(one[name].astype(float) - models[0][name]).ravel() for name in shapes]) for one in models[1:]]
    )
    for pair in report["pairs"]:
        one, other = whole[pair["a"]], whole[pair["b"]]
        assert pair["cosine"] == pytest.approx(one @ other / np.sqrt(one @ one * (other @ other)), rel=1e-9)
        assert pair["sign_disagreement"] == (np.sign(one) != np.sign(other)).mean()
    assert [layer["name"] for layer in report["layers"]] == [0, 1]


def test_the_command_prints_and_writes(three, tmp_path):
    base, a, b = three
    given = ["conflicts", "--base", base, "--vector", a, "--vector", b]
    ended = CliRunner().invoke(main, [*given, "-o", str(tmp_path / "out"), "-q"])
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "out" / "conflicts.png").read_bytes().startswith(PNG)
    report = json.loads((tmp_path / "out" / "conflicts.json").read_text())
    assert report == json.loads(CliRunner().invoke(main, [*given, "--json", "-q"]).stdout)
    assert "0.67" in to_table(report) and "A  a (difference)" in to_table(report)


def test_bad_input_is_one_sentence(three, tmp_path):
    base, a, b = three
    with pytest.raises(EditError, match="give at least two"):
        editkit.conflicts(base, [a])
    with pytest.raises(EditError, match="none of the vectors"):
        editkit.conflicts(base, [a, b], masks={"c": "mask"})
    with pytest.raises(EditError, match="a changes none of the tensors that are compared"):
        editkit.conflicts(base, [a, b], only=["*.down_proj.*"])
    broken = save(tmp_path / "broken", **{UP: row(1, np.nan, 1, 1), DOWN: row(1, 2)})
    with pytest.raises(EditError, match=f"NaN or Inf in {UP}"):
        editkit.conflicts(base, [a, broken])
