"""The negation law on trained models, and transformers with what comes out. Needs the optional folder ../shared."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import editkit

MODELS = Path(__file__).parents[2] / "shared" / "models"
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
pytestmark = pytest.mark.skipif(not MODELS.exists(), reason="no folder ../shared/models")


def cast(source: Path, target: Path, dtype: torch.dtype, shift: float = 0.0) -> Path:
    """The model in another dtype, its tensors moved by `shift` times their deviation; layout and other files stay."""
    generator = torch.Generator().manual_seed(0)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * shift
    model.to(dtype).save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target


def law(base: Path, tuned: Path, edited: Path, alpha: float) -> int:
    """Elements whose bits are not those of base - alpha * (tuned - base), computed and rounded by torch from float64."""
    before, after, found = (load_file(folder / "model.safetensors") for folder in (base, tuned, edited))
    assert list(found) == list(before)
    wrong = 0
    for name, tensor in found.items():
        want = (before[name].double() - alpha * (after[name].double() - before[name].double())).to(tensor.dtype)
        whole = {4: torch.int32, 2: torch.int16}[tensor.element_size()]
        wrong += int((want.view(whole) != tensor.view(whole)).sum())
    return wrong


def generates(folder: Path, prompt: str) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    if model.config.tie_word_embeddings:
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    tokens = tokenizer(prompt, return_tensors="pt").input_ids
    return tokenizer.decode(model.generate(tokens, max_new_tokens=12, do_sample=False)[0])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["tofu-tiny", "stories260k"])
def test_negation_law_and_generation(tmp_path, name, dtype):
    source = MODELS / name / "base" if name == "tofu-tiny" else MODELS / name
    base = cast(source, tmp_path / "base", FLOATS[dtype])
    tuned = (
        cast(MODELS / name / "full", tmp_path / "tuned", FLOATS[dtype])
        if name == "tofu-tiny"
        else cast(source, tmp_path / "tuned", FLOATS[dtype], shift=0.05)
    )
    result = editkit.negate(base, tuned, tmp_path / "edited", alpha=0.7)
    assert law(base, tuned, tmp_path / "edited", 0.7) == 0
    assert result.total["projection"] == pytest.approx(-0.7, rel=1e-2)
    assert len(generates(tmp_path / "edited", "Once upon a time")) > len("Once upon a time")
    same = editkit.negate(base, tuned, tmp_path / "zero", alpha=0.0, report=False)
    assert same.changed == 0
    assert (tmp_path / "zero/model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    assert set(load_file(tmp_path / "edited/model.safetensors")) == set(load_file(base / "model.safetensors"))
