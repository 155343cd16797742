"""`task_vector` refuses what it would save wrongly, and never writes into what it reads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import editkit
from editkit.errors import EditError


def save(folder, tensor):
    folder.mkdir()
    save_file({"norm.weight": tensor}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("tensor", "change", "dtype", "fits"),
    [
        (torch.zeros(4), 1e6, "float16", False),  # the largest float16 is 65504
        (torch.zeros(4), 65504.0, "float16", True),
        (torch.zeros(4, dtype=torch.float64), 1e39, "float32", False),  # the largest float32 is 3.4e38
        (torch.zeros(4, dtype=torch.float64), 1e39, "float64", True),
        (torch.zeros(4), 3.4028e38, "bfloat16", False),  # rounds up to Inf
    ],
)
def test_numbers_too_large_for_the_dtype_are_refused(tmp_path, tensor, change, dtype, fits):
    base, tuned = save(tmp_path / "base", tensor), save(tmp_path / "tuned", tensor + change)
    output = tmp_path / "new" / "tau.safetensors"
    if fits:
        editkit.task_vector(tuned, output, base=base, dtype=dtype)
        assert load_file(output)["norm.weight"].isfinite().all()
    else:
        with pytest.raises(
            EditError, match=r"^norm\.weight changes by up to .*, too much for .*: choose another dtype"
        ):
            editkit.task_vector(tuned, output, base=base, dtype=dtype)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tuned"]


def test_an_output_in_an_input_is_refused(tmp_path):
    base, tuned = save(tmp_path / "base", torch.zeros(4)), save(tmp_path / "tuned", torch.ones(4))
    for folder in (base, tuned):
        with pytest.raises(EditError, match=r"tau\.safetensors lies inside the input"):
            editkit.task_vector(tuned, folder / "tau.safetensors", base=base)
        assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
