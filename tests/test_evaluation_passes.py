"""The teacher-forced pass and greedy generation against one-by-one computations with transformers alone."""

import numpy as np
import pytest
import torch
from tiny_models import save_gpt2, save_llama, save_qwen2
from transformers import (
    AutoModelForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)

from editkit.errors import EditError
from editkit.evaluation.generation import generate, stops_of
from editkit.evaluation.passes import evaluating, teacher_forced
from editkit.evaluation.subject import opened
from editkit.training.encoding import IGNORED, Tokens

ROWS = [
    Tokens([0, 5, 9, 200, 33, 1], [IGNORED, IGNORED, IGNORED, 200, 33, 1]),
    Tokens([0, 7], [IGNORED, 7]),
    Tokens([0, *range(20, 60)], [IGNORED, *range(20, 60)]),
    Tokens([0, 8, 8, 8, 77], [IGNORED, IGNORED, 8, IGNORED, 77]),
]


@pytest.fixture(scope="module", params=[save_llama, save_gpt2, save_qwen2], ids=["llama", "gpt2", "qwen2"])
def net(request, tmp_path_factory):
    folder = request.param(tmp_path_factory.mktemp("model"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def alone(net, row):
    """Log-probabilities over the vocabulary before each labelled token, in float64, one text at a time."""
    with torch.no_grad():
        logits = net(torch.tensor([row.ids])).logits[0].double()
    places = [at for at, label in enumerate(row.labels) if label != IGNORED]
    return logits[[at - 1 for at in places]].log_softmax(-1), torch.tensor([row.ids[at] for at in places])


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_scores_are_those_of_each_text_alone_whatever_the_batch(net, batch_size):
    for row, one in zip(ROWS, teacher_forced(net, ROWS, batch_size=batch_size, spread=True), strict=True):
        log_probs, tokens = alone(net, row)
        true = log_probs.gather(1, tokens[:, None])[:, 0]
        probs = log_probs.exp()
        mean = (probs * log_probs).sum(-1)
        sd = ((probs * log_probs**2).sum(-1) - mean**2).sqrt()
        assert one.tokens.tolist() == tokens.tolist() and one.greedy.tolist() == log_probs.argmax(-1).tolist()
        for ours, theirs in ((one.log_probs, true), (one.mean, mean), (one.sd, sd)):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-5)
        assert one.nll == pytest.approx(-float(true.mean()), abs=1e-5)
        assert one.hits.tolist() == (log_probs.argmax(-1) == tokens).tolist() and one.kl is None


QUESTIONS = [[0, *range(30, 30 + size)] for size in (5, 9, 5, 3)]
ANSWERED = [
    Tokens([*question, *answer], [IGNORED] * len(question) + [IGNORED if token == 99 else token for token in answer])
    for question in QUESTIONS
    for answer in ([77, 8, 1], [77], [50, 99, 51, 52, 1], [12, 1])[: 4 if question is not QUESTIONS[3] else 1]
]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_answers_that_share_a_question_have_the_scores_that_they_have_alone(net, batch_size, monkeypatch):
    read = []
    forward = net.forward

    def counted(*args, **given):
        read.append(given["input_ids"].shape)
        return forward(*args, **given)

    monkeypatch.setattr(net, "forward", counted)
    found = teacher_forced(net, ANSWERED, batch_size=batch_size, spread=True)
    tokens = sum(rows * length for rows, length in read)
    assert (tokens < sum(len(row.ids) for row in ANSWERED)) == (batch_size > 1)
    assert max(rows for rows, _ in read) <= batch_size
    monkeypatch.undo()
    for row, one in zip(ANSWERED, found, strict=True):
        log_probs, tokens = alone(net, row)
        assert one.tokens.tolist() == tokens.tolist()
        np.testing.assert_allclose(one.log_probs, log_probs.gather(1, tokens[:, None])[:, 0].numpy(), atol=2e-5)


def test_plain_texts_share_nothing_but_their_beginning_and_go_in_batches_of_one_length(net, monkeypatch):
    texts = [Tokens([0, *range(9, 9 + size)], [IGNORED, *range(9, 9 + size)]) for size in (3, 30, 4, 31, 5, 32)]
    read = []
    forward = net.forward
    monkeypatch.setattr(
        net, "forward", lambda *args, **given: read.append(given["input_ids"].shape) or forward(*args, **given)
    )
    teacher_forced(net, texts, batch_size=3)
    assert [tuple(shape) for shape in read] == [(3, 33), (3, 6)]


def test_where_prompts_cannot_be_shared_every_text_is_read_from_its_beginning(net, monkeypatch):
    wanted = teacher_forced(net, ANSWERED)
    monkeypatch.setattr("editkit.evaluation.passes._after_prompts", lambda *_: None)
    for one, other in zip(teacher_forced(net, ANSWERED), wanted, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_kl_is_that_from_the_other_model_to_this_one(net, tmp_path):
    other = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path / "other", tied=True), dtype=torch.float32)
    from contextlib import nullcontext

    found = teacher_forced(net, ROWS, batch_size=3, other=lambda: nullcontext(other))
    for row, one in zip(ROWS, found, strict=True):
        mine, theirs = alone(net, row)[0], alone(other, row)[0]
        wanted = torch.nn.functional.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1)
        np.testing.assert_allclose(one.kl, wanted.numpy(), atol=2e-5)
    assert other.training is False


def test_logits_are_looked_at_in_chunks_without_a_difference(net, monkeypatch):
    whole = teacher_forced(net, ROWS, spread=True)
    monkeypatch.setattr("editkit.evaluation.passes._CHUNK", 600)  # two tokens of a vocabulary of 262
    for one, other in zip(whole, teacher_forced(net, ROWS, spread=True), strict=True):
        assert np.array_equal(one.log_probs, other.log_probs) and np.array_equal(one.sd, other.sd)


def test_a_model_in_training_is_left_in_training(net):
    net.train()
    try:
        teacher_forced(net, ROWS[:1])
        generate(net, [[0, 5]], [2], expected=[2], stops={1}, context=48)
        assert net.training
        with evaluating(net):
            assert not net.training
        assert net.training
    finally:
        net.eval()


def test_nan_is_refused_with_the_text_and_the_weight(tmp_path):
    net = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path), dtype=torch.float32).eval()
    net.model.layers[1].mlp.up_proj.weight.data[3, 2] = float("nan")
    with pytest.raises(
        EditError,
        match=r"example \d: the model's output is NaN, since 1 weights hold NaN or Inf, the first model.layers.1.mlp.up_proj.weight",
    ):
        teacher_forced(net, ROWS)


def test_nan_from_finite_weights_is_refused_with_the_module(tmp_path):
    net = AutoModelForCausalLM.from_pretrained(save_llama(tmp_path), dtype=torch.float32).eval()
    net.model.layers[1].mlp.up_proj.weight.data.fill_(3e38)
    with pytest.raises(EditError, match=r"NaN, first in model\.layers\.1\.mlp\.up_proj, though all weights are finite"):
        teacher_forced(net, ROWS)


def written(net, prompt, limit, stops):
    """Greedy, one token at a time, without cache or padding."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(limit):
            token = int(net(torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt) :]


PROMPTS = [[0, 5], [0, 9, 14, 200, 33, 90, 41, 12], [0], [0, 66, 66, 66], [0, *range(100, 140)]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_texts_are_those_written_alone_token_by_token(net, batch_size):
    limits = [12, 5, 9, 12, 7]
    plain = [written(net, prompt, limit, ()) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert (
        generate(net, PROMPTS, limits, expected=[3, 1, 2, 9, 4], stops=(), context=48, batch_size=batch_size) == plain
    )
    stop = plain[1][2]  # a token that is really written
    wanted = [written(net, prompt, limit, {stop}) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert wanted[1] == plain[1][: plain[1].index(stop)] and len(wanted[1]) < 5
    assert (
        generate(net, PROMPTS, limits, expected=[3, 1, 2, 9, 4], stops={stop}, context=48, batch_size=batch_size)
        == wanted
    )


def test_no_text_goes_beyond_the_context(net):
    prompts = [[0, *range(40, 40 + size)] for size in (3, 40, 44, 46, 47)]
    found = generate(net, prompts, [20] * 5, expected=[5] * 5, stops=(), context=48, batch_size=4)
    assert [len(one) for one in found] == [20, 7, 3, 1, 0]
    assert found[1] == written(net, prompts[1], 7, ())


def test_what_the_models_own_settings_say_of_sampling_does_not_matter(net):
    wanted = generate(net, PROMPTS, [8] * 5, expected=[8] * 5, stops=(), context=48)
    before = net.generation_config
    for name, value in {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "min_new_tokens": 3}.items():
        setattr(net.generation_config, name, value)
    try:
        assert generate(net, PROMPTS, [8] * 5, expected=[8] * 5, stops=(), context=48) == wanted
        assert net.generation_config is before
    finally:
        net.generation_config = type(before)()


def state_model(kind):
    torch.manual_seed(7)
    if kind == "rwkv":
        config = RwkvConfig(
            vocab_size=262, hidden_size=16, num_hidden_layers=2, context_length=64, bos_token_id=0, eos_token_id=1
        )
        return RwkvForCausalLM(config).eval()
    if kind == "mamba":
        config = MambaConfig(
            vocab_size=262, hidden_size=16, num_hidden_layers=2, state_size=4, bos_token_id=0, eos_token_id=1
        )
        return MambaForCausalLM(config).eval()
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = Phi3Config(
        vocab_size=262, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, bos_token_id=0,
        eos_token_id=1, pad_token_id=2, max_position_embeddings=64, original_max_position_embeddings=8,
        rope_parameters={**rope, "original_max_position_embeddings": 8},
    )  # fmt: skip
    return Phi3ForCausalLM(config).eval()


@pytest.mark.parametrize("kind", ["rwkv", "mamba", "longrope"])
def test_models_with_a_state_or_with_stretching_positions_are_read_and_written_as_one_by_one(kind):
    net = state_model(kind)
    for row, one in zip(ANSWERED, teacher_forced(net, ANSWERED, batch_size=8), strict=True):
        log_probs, tokens = alone(net, row)
        np.testing.assert_allclose(
            one.log_probs, log_probs.gather(1, tokens[:, None])[:, 0].numpy(), rtol=1e-5, atol=2e-5
        )
    mixed = [Tokens([0, 5, 9], [IGNORED, IGNORED, 9]), Tokens([0, *range(20, 40)], [IGNORED] * 20 + [39])]
    together, single = (teacher_forced(net, mixed, batch_size=size) for size in (2, 1))
    np.testing.assert_allclose(together[0].log_probs, single[0].log_probs, atol=1e-6)
    prompts = [[0, 5], [0, 9, 14, 200], [0, 7], [0, 66, 66, 66, 90, 12]]
    limits = [6, 5, 7, 4]
    plain = generate(net, prompts, limits, expected=limits, stops=(), context=48, batch_size=1)
    if kind == "mamba":  # the others go on from what they have read otherwise than they read it all again
        assert plain == [written(net, prompt, limit, ()) for prompt, limit in zip(prompts, limits, strict=True)]
    assert generate(net, prompts, limits, expected=limits, stops=(), context=48, batch_size=4) == plain


def test_answers_end_at_every_token_that_the_model_says_ends_them(tmp_path):
    save_llama(tmp_path)
    with opened(tmp_path, device="cpu") as subject:
        assert stops_of(subject.net, subject.tokenizer) == {1}
        subject.net.generation_config.eos_token_id = [7, 9]
        assert stops_of(subject.net, subject.tokenizer) == {1, 7, 9}
