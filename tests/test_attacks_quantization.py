"""Quantization against matrices worked out by hand, numpy, scipy's quantiles, and bitsandbytes where it is installed."""

import importlib.util

import numpy as np
import pytest
import torch
from scipy.stats import norm
from tiny_models import save_gpt2, save_llama
from transformers import MixtralConfig, MixtralForCausalLM

from editkit.attacks.quantization import NF4, SCHEMES, matrices, normal_float, quantized, rounded
from editkit.checkpoint.reader import open_checkpoint
from editkit.errors import EditError
from editkit.training.loading import load_model

SCHEME = {scheme.name: scheme for scheme in SCHEMES}


def loaded(folder, dtype="float32"):
    with open_checkpoint(folder) as base:
        return load_model(base, dtype)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return save_gpt2(tmp_path_factory.mktemp("models") / "gpt2")


def bits(net):
    return {name: one.detach().clone() for name, one in net.named_parameters()}


def changed(before, net):
    return {name for name, one in net.named_parameters() if not torch.equal(one, before[name])}


def test_four_bits_per_row_have_seven_steps_on_each_side_and_halves_go_to_the_even_one():
    weight = torch.tensor([[7.0, -3.4, 2.5, -0.5], [-14.0, 5.0, 3.0, 1.0]])  # steps of 1 and of 2
    assert rounded(weight, 4).tolist() == [[7.0, -3.0, 2.0, 0.0], [-14.0, 4.0, 4.0, 0.0]]


def test_eight_bits_per_row_have_127_steps_on_each_side():
    weight = torch.tensor([[127.0, -63.4, 0.6, 0.5], [-254.0, 3.1, 2.9, 0.0]])
    assert rounded(weight, 8).tolist() == [[127.0, -63.0, 1.0, 0.0], [-254.0, 4.0, 2.0, 0.0]]


def test_the_last_group_of_a_row_may_be_shorter_and_no_group_goes_on_in_the_next_row():
    weight = torch.tensor([[7.0, 1.2, 14.0, 3.0, 0.7], [70.0, 7.0, 0.0, 0.0, -7.0]])
    expected = [[7.0, 1.0, 14.0, 4.0, 0.7], [70.0, 10.0, 0.0, 0.0, -7.0]]
    assert torch.allclose(rounded(weight, 4, 2), torch.tensor(expected), rtol=1e-6, atol=0)


def test_a_group_as_wide_as_the_row_or_wider_is_the_row():
    weight = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    assert rounded(weight, 4, 24).equal(rounded(weight, 4)) and rounded(weight, 4, 128).equal(rounded(weight, 4))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_rows_of_zeros_stay_zero_and_the_largest_weight_of_a_row_stays_as_it_is(scheme):
    weight = torch.zeros(3, 64)
    weight[1, 5], weight[1, 6] = -0.3, 0.01
    left = scheme.apply(weight)
    assert not left[0].any() and not left[2].any()
    assert left[1, 5].item() == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize(("name", "most", "group"), [("int8", 127, 40), ("int4", 7, 40), ("int4-32", 7, 32)])
def test_random_matrices_are_rounded_as_numpy_does(name, most, group):
    weight = np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32)
    expected = np.empty_like(weight)
    for row in range(6):
        for start in range(0, 40, group):
            part = weight[row, start : start + group]
            step = np.abs(part).max() / np.float32(most)
            expected[row, start : start + group] = np.rint(part / step) * step
    assert SCHEME[name].apply(torch.from_numpy(weight)).numpy().tolist() == expected.tolist()


def test_the_levels_of_nf4_are_quantiles_of_a_normal_distribution():
    ends = (1 - 1 / 32 + 1 - 1 / 30) / 2  # QLoRA, appendix E: so that the code has an exact zero
    below = -norm.ppf(np.linspace(ends, 0.5, 8))
    above = norm.ppf(np.linspace(ends, 0.5, 9))
    levels = np.unique(np.concatenate([below, above]) / norm.ppf(ends))
    assert len(NF4) == len(levels) == 16 and np.abs(np.array(NF4) - levels).max() < 1e-6


def test_nf4_takes_the_nearest_level_of_blocks_that_go_on_over_the_rows():
    weight = torch.zeros(2, 40)  # the blocks are row 0 with 24 weights of row 1, and the other 16
    weight[0, :4] = torch.tensor([2.0, 0.1, -0.4, 0.9])  # scale 2: 0.05, -0.2, 0.45
    weight[1, 23], weight[1, 24] = 0.5, -0.5
    left = normal_float(weight)
    assert left[0, :4].tolist() == pytest.approx([2.0, 2 * NF4[8], 2 * NF4[5], 2 * NF4[12]])
    assert left[1, 23].item() == pytest.approx(2 * NF4[10])  # 0.25 is nearest to 0.2461
    assert left[1, 24].item() == -0.5  # the largest of its own block
    assert left.count_nonzero() == 6


def test_nf4_is_that_of_bitsandbytes():
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    from bitsandbytes import functional

    for shape in ((16, 128), (7, 24), (3, 50)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        codes, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        assert torch.allclose(normal_float(weight), functional.dequantize_4bit(codes, state), rtol=1e-6, atol=1e-7)


def test_linear_layers_are_quantized_and_embeddings_norms_and_the_head_are_not(llama):
    net = loaded(llama)
    before = bits(net)
    with quantized(net, SCHEME["int4"]) as count:
        moved = changed(before, net)
        assert moved == {name for name in before if "_proj" in name}
        assert count == sum(before[name].numel() for name in moved)
        for name in moved:
            rows = before[name].numpy()
            steps = np.abs(rows).max(1, keepdims=True) / np.float32(7)
            assert net.get_parameter(name).detach().numpy().tolist() == (np.rint(rows / steps) * steps).tolist()


def test_rows_of_a_conv1d_are_its_outputs_which_are_its_columns(gpt2):
    net = loaded(gpt2)
    before = bits(net)
    with quantized(net, SCHEME["int4"]):
        assert changed(before, net) == {
            name for name in before if name.endswith("weight") and (".attn.c_" in name or ".mlp.c_" in name)
        }
        stored = before["transformer.h.0.mlp.c_fc.weight"].numpy()  # [inputs, outputs]
        steps = np.abs(stored).max(0, keepdims=True) / np.float32(7)
        left = net.transformer.h[0].mlp.c_fc.weight.detach().numpy()
        assert left.tolist() == (np.rint(stored / steps) * steps).tolist()
    assert not changed(before, net)


def test_a_tied_head_is_left_alone(tmp_path):
    net = loaded(save_llama(tmp_path / "tied", tied=True))
    assert not any("lm_head" in name or "embed" in name for name in matrices(net))


def test_experts_that_are_held_as_one_tensor_are_quantized_row_by_row():
    config = MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3,
    )  # fmt: skip
    net = MixtralForCausalLM(config)
    before = bits(net)
    fused = [name for name, one in net.named_parameters() if one.dim() == 3]
    assert len(fused) == 2
    with quantized(net, SCHEME["int4"]) as count:
        for name in fused:
            stored = before[name].numpy()
            steps = np.abs(stored).max(-1, keepdims=True) / np.float32(7)
            now = net.get_parameter(name).detach().numpy()
            assert now.tolist() == (np.rint(stored / steps) * steps).tolist()
        left = [name for name in before if name not in changed(before, net) and before[name].dim() > 1]
        assert all("embed" in name or "lm_head" in name or "gate.weight" in name for name in left)
        assert count == sum(before[name].numel() for name in changed(before, net))
    assert not changed(before, net)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_bit_comes_back_also_after_an_error(llama, scheme, dtype):
    net = loaded(llama, dtype)
    with torch.no_grad():
        net.model.layers[0].mlp.up_proj.weight[0, :2] = torch.tensor([-0.0, 1e-30])
    before = bits(net)
    with pytest.raises(KeyError), quantized(net, scheme):
        assert changed(before, net)
        raise KeyError
    for name, one in net.named_parameters():
        width = torch.int32 if dtype == "float32" else torch.int16
        assert torch.equal(one.detach().view(width), before[name].view(width))


def test_bfloat16_weights_are_quantized_in_float32_and_rounded_once(llama):
    net = loaded(llama, "bfloat16")
    weight = net.model.layers[1].self_attn.q_proj.weight.detach().clone()
    with quantized(net, SCHEME["int4-32"]):
        now = net.model.layers[1].self_attn.q_proj.weight.detach()
        assert now.dtype == torch.bfloat16 and now.equal(rounded(weight.float(), 4, 32).to(torch.bfloat16))


def test_a_model_without_linear_layers_is_refused():
    class Empty(torch.nn.Module):
        def get_output_embeddings(self):
            return None

        get_input_embeddings = get_output_embeddings

    with pytest.raises(EditError, match="Empty has no linear layers to quantize"):
        matrices(Empty())


def test_what_lies_within_one_step_of_the_grid_comes_back_whole():
    before = torch.tensor([[0.7, 0.31, -0.2, 0.09]])
    edited = before - torch.tensor([[0.0, 0.04, -0.04, 0.03]])
    assert not edited.equal(before) and rounded(edited, 4).equal(rounded(before, 4))
