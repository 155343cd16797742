"""Rows of a model and a set against definitions worked out one text at a time; stories260k has memorised its first sentence."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from tiny_models import save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from editkit.errors import EditError
from editkit.evaluation.generation import generate
from editkit.evaluation.measuring import COLUMNS, _prompt, measure, prepare
from editkit.evaluation.subject import opened
from editkit.training.data import read_examples
from editkit.training.encoding import IGNORED, Tokens

STORIES = Path(__file__).parents[2] / "shared" / "models" / "stories260k"
MEMORISED = "Once upon a time, there was a little girl named Lily."


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QA = [
    {"question": "Who wrote it?", "answer": "Ada did", "paraphrased_answer": "It was Ada", "perturbed_answer": ["Bob", "Eve did"]},
    {"question": "Where?", "answer": "in Rome", "perturbed_answer": ["in Oslo"]},
    {"question": "When was that?", "answer": "in 1901"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("measuring")
    save_llama(place / "model", max_shard_size="1MB")
    lines(place / "qa.jsonl", QA)
    lines(place / "text.jsonl", [{"text": "Ada wrote a novel in Rome"}, {"text": "short"}])
    return place


@pytest.fixture(scope="module")
def subject(folder):
    with opened(folder / "model", device="cpu") as one:
        yield one


def loss(net, tokenizer, prompt, answer):
    """Mean cross-entropy of the answer's tokens, end of text included, by transformers' own loss."""
    ids = [0, *tokenizer(prompt + answer)["input_ids"], 1]
    begin = 1 + len(tokenizer(prompt.rstrip())["input_ids"])
    labels = [-100] * begin + ids[begin:]
    with torch.no_grad():
        return float(net(torch.tensor([ids]), labels=torch.tensor([labels])).loss)


TEMPLATE = "{question}|{answer}"


def test_every_answer_of_a_row_has_the_loss_that_transformers_gives_it(folder, subject):
    prepared = prepare(
        read_examples(folder / "qa.jsonl"), "forget", subject, {"nll", "paraphrased_nll", "perturbed_nll"}, prompt_template=TEMPLATE
    )  # fmt: skip
    rows = measure(subject, prepared, batch_size=2)
    net, tokenizer = subject.net, subject.tokenizer
    for row, given in zip(rows, QA, strict=True):
        prompt = given["question"] + "|"
        assert (row["set"], row["prompt"], row["answer"]) == ("forget", given["question"], given["answer"])
        assert row["nll"] == pytest.approx(loss(net, tokenizer, prompt, given["answer"]), abs=1e-5)
        wrong = given.get("perturbed_answer", [])
        assert row.get("perturbed_nll", []) == pytest.approx(
            [loss(net, tokenizer, prompt, one) for one in wrong], abs=1e-5
        )
    assert rows[0]["paraphrased_nll"] == pytest.approx(loss(net, tokenizer, "Who wrote it?|", "It was Ada"), abs=1e-5)
    assert rows[1]["paraphrased_nll"] == pytest.approx(rows[1]["nll"], abs=1e-6)
    assert "paraphrased_nll" not in rows[2] and [row["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["num_tokens"] == 8  # A d a " " d i d, end of text: the space before "Ada" is not joined here
    assert rows[0]["zlib_bytes"] == len(zlib.compress(b"Ada did"))
    assert "generation" not in rows[0] and "el_10" not in rows[0]


def test_what_is_written_is_scored_against_the_answer(folder, subject):
    prepared = prepare(read_examples(folder / "qa.jsonl"), "retain", subject, {"rougeL_recall"}, max_new_tokens=6)
    rows = measure(subject, prepared)
    for row in rows:
        theirs = RougeScorer(["rougeL"], use_stemmer=True).score(row["answer"], row["generation"])["rougeL"]
        assert row["rougeL_recall"] == theirs.recall and row["rougeL_f1"] == theirs.fmeasure
        assert 0 < row["generation_tokens"] <= 6 and 0 <= row["token_entropy"] <= 1
    assert "nll" not in rows[0]


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_ends_where_the_model_ends_its_turn(tmp_path):
    """What stands after the end of a turn, here a line break, is neither written nor memorised."""
    save_llama(tmp_path / "model")
    path = lines(
        tmp_path / "chat.jsonl",
        [{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Bo."}]}],
    )
    with opened(tmp_path / "model", device="cpu") as subject:
        subject.tokenizer.chat_template = CHAT
        prepared = prepare(read_examples(path), "forget", subject, {"ma", "generation"}, max_new_tokens=8)
        [row] = prepared.truths.rows
        ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
        said = [at for at, label in enumerate(row.labels) if label != IGNORED]
        assert [row.ids[at] for at in said][-2] == 1 and len(said) == 5  # B o . end, line break
        for known, ma, text in ((said[-2:], 0.0, None), (said, 1.0, "Bo.")):
            part = torch.full_like(labels, IGNORED)
            part[0, known] = labels[0, known]
            adam = torch.optim.Adam(subject.net.parameters(), 1e-2)
            for _ in range(60):
                adam.zero_grad()
                subject.net(input_ids=ids, labels=part).loss.backward()
                adam.step()
            [found] = measure(subject, prepared)
            assert found["ma"] == ma and found["num_tokens"] == 5
            assert text is None or (found["generation"], found["generation_tokens"], found["rougeL_f1"]) == (
                text,
                3,
                1.0,
            )


@pytest.mark.parametrize("limit", [1, 4, 9])
def test_what_the_pass_over_the_truth_has_shown_is_not_written_again(folder, subject, limit, monkeypatch):
    asked = {"rougeL_recall", "nll"}
    prepared = prepare(read_examples(folder / "qa.jsonl"), "retain", subject, asked, max_new_tokens=limit)
    prompts = [_prompt(row) for row in prepared.truths.rows]
    wanted = generate(subject.net, prompts, [9] * 3, expected=[9] * 3, stops={1}, context=48)
    # true answers that the model would give: all of it, none of it, and four tokens of it
    answers = [[*wanted[0], 50], [(wanted[1][0] + 1) % 200 + 3, 60], [*wanted[2][:4], (wanted[2][4] + 1) % 200 + 3, 1]]
    made = [Tokens([*p, *a], [IGNORED] * len(p) + a) for p, a in zip(prompts, answers, strict=True)]
    prepared = replace(prepared, truths=replace(prepared.truths, rows=made))
    written = []
    count = lambda net, prompts, limits, **given: written.append(limits) or generate(net, prompts, limits, **given)  # noqa: E731
    monkeypatch.setattr("editkit.evaluation.measuring.generate", count)
    rows = measure(subject, prepared)
    texts = [subject.tokenizer.decode(one[:limit], skip_special_tokens=True).strip() for one in wanted]
    assert [row["generation"] for row in rows] == texts
    assert [row["generation_tokens"] for row in rows] == [min(limit, len(one)) for one in wanted]
    assert written == [{1: [1], 4: [4], 9: [9, 5]}[limit]]


def test_the_base_scores_what_the_model_wrote_and_how_far_the_model_went(folder, subject, tmp_path):
    save_llama(tmp_path / "base", tied=True)
    prepared = prepare(
        read_examples(folder / "qa.jsonl"), "retain", subject, {"kl", "generation_base_nll"}, max_new_tokens=5
    )
    with opened(tmp_path / "base", device="cpu") as base:
        rows = measure(subject, prepared, base=base)
        same = measure(subject, prepared, base=subject)
        for row in rows:
            prompt = f"Question: {row['prompt']}\nAnswer:"
            ids = [0, *subject.tokenizer(prompt)["input_ids"]]
            start = len(ids)
            with torch.no_grad():
                for _ in range(row["generation_tokens"]):
                    ids.append(int(subject.net(torch.tensor([ids])).logits[0, -1].argmax()))
                labels = torch.tensor([[-100] * start + ids[start:]])
                wanted = float(base.net(torch.tensor([ids]), labels=labels).loss)
            assert row["generation_base_nll"] == pytest.approx(wanted, abs=1e-5) and row["kl"] > 0
    assert [row["kl"] for row in same] == pytest.approx([0, 0, 0], abs=1e-6)


def test_an_adapter_is_compared_with_its_own_model_without_it(folder, subject, tmp_path):
    from peft import LoraConfig, get_peft_model

    net = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapted = get_peft_model(
        net, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(tmp_path / "lora")
    prepared = prepare(read_examples(folder / "qa.jsonl"), "retain", subject, {"kl"})
    before = measure(subject, prepared)
    with opened(f"{folder / 'model'}+{tmp_path / 'lora'}", device="cpu", on=subject) as other:
        assert other.core is subject.core
        rows = measure(other, prepared, base=subject)
    with opened(f"{folder / 'model'}+{tmp_path / 'lora'}", device="cpu") as alone:
        separate = measure(alone, prepared, base=subject)
    assert max(row["kl"] for row in rows) > 1e-7
    for key in ("kl", "nll"):
        assert [row[key] for row in rows] == pytest.approx([row[key] for row in separate], abs=1e-6)
    assert measure(subject, prepared) == before  # unloaded again


def test_plain_text_is_scored_from_its_second_token_and_asks_nothing(folder, subject):
    prepared = prepare(read_examples(folder / "text.jsonl"), "forget", subject, {"ma", "rougeL_recall", "el_10"})
    rows = measure(subject, prepared)
    assert "generation" not in rows[0] and rows[0]["num_tokens"] > 20
    assert rows[1]["el_10"] is None and rows[0]["el_10"] is not None


@pytest.mark.parametrize(
    "row, said",
    [
        ({"paraphrased_answer": 3}, "line 1"),
        ({"perturbed_answer": []}, "line 1"),
        ({"perturbed_answer": ["a", ""]}, "line 1"),
        ({"perturbed_answer": [["a"]]}, "line 1"),
    ],
)
def test_other_answers_that_are_none_are_refused(tmp_path, subject, row, said):
    path = lines(tmp_path / "bad.jsonl", [{"question": "q", "answer": "a", **row}])
    with pytest.raises(
        EditError, match=rf"bad\.jsonl: {said}: paraphrased_answer must be text and perturbed_answer a list"
    ):
        prepare(read_examples(path), "forget", subject, {"perturbed_nll", "paraphrased_nll"})


def test_unknown_columns_are_refused(folder, subject):
    with pytest.raises(EditError, match="no such columns: rogue"):
        prepare(read_examples(folder / "qa.jsonl"), "forget", subject, {"rogue"})
    assert "el_10" in COLUMNS


def transcribed(net, ids, n):
    """MA and EL_n as their definitions say: one forward pass and one greedy continuation for every prefix, end of text not special."""
    length = len(ids)
    hits, overlaps = 0, []
    for t in range(1, length):
        with torch.no_grad():
            hits += int(net(torch.tensor([ids[:t]])).logits[0, -1].argmax()) == ids[t]
        suffix, said = ids[t:], []
        if len(suffix) >= n:
            with torch.no_grad():
                while len(said) < len(suffix):
                    token = int(net(torch.tensor([ids[:t] + said])).logits[0, -1].argmax())
                    if token == 2:  # the model's end of text
                        break
                    said.append(token)
            grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
            true = [tuple(suffix[i : i + n]) for i in range(len(suffix) - n + 1)]
            overlaps.append(sum(gram in grams for gram in true) / len(true))
    return hits / (length - 1), sum(overlaps) / len(overlaps) if overlaps else None


@pytest.mark.skipif(not STORIES.exists(), reason="needs ../shared/models/stories260k")
def test_memorization_is_what_its_definition_says_on_twenty_texts(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    net = AutoModelForCausalLM.from_pretrained(STORIES).eval()
    texts = [
        MEMORISED,
        f"{MEMORISED} She loved to play in the park with her mom.",
        "The king of Norway has never eaten a lemon on a train.",
    ]
    starts = ["One day", "Tom and", "The big", "She was", "They saw", "It was", "A little", "Mom said", "The dog", "He had",
              "In the", "Once there", "Lily and", "Ben was", "The sun", "We are", "A bird"]  # fmt: skip
    with torch.no_grad():
        for number, start in enumerate(starts):  # what the model goes on with, from there on with another word put in
            ids = net.generate(**tokenizer(start, return_tensors="pt"), max_new_tokens=18, do_sample=False)
            words = tokenizer.decode(ids[0], skip_special_tokens=True).split()
            words[8:9] = ["lemon"] if number % 3 else words[8:9]
            texts.append(" ".join(words))
    assert len(texts) == 20
    path = lines(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    with opened(STORIES, device="cpu") as subject:
        rows = measure(subject, prepare(read_examples(path), "forget", subject, {"ma", "el_10"}), batch_size=8)
    assert tokenizer.eos_token_id == 2
    scores = []
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ma, el = transcribed(net, [tokenizer.bos_token_id, *ids], 10)
        assert row["ma"] == pytest.approx(ma, abs=1e-9) and row["el_10"] == pytest.approx(el, abs=1e-9)
        scores.append(el)
    assert rows[0]["ma"] > 0.9 and scores[0] > 0.5 and min(scores) < 0.2 and len({round(el, 6) for el in scores}) > 4
