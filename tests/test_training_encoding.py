import pytest
import torch
from tiny_models import VOCABULARY, tokenizer
from tokenizers.processors import TemplateProcessing

from editkit.errors import EditError
from editkit.training.data import Examples
from editkit.training.encoding import IGNORED, Tokens, collate, encode

NO = IGNORED


def examples(*rows, format="question/answer"):
    return Examples("data.jsonl", format, list(rows), list(range(1, len(rows) + 1)), "line")


def qa(question, answer):
    return examples({"question": question, "answer": answer})


def ids(*tokens):
    """Ids by hand: the place of each token in the vocabulary."""
    return [VOCABULARY.index(token) for token in tokens]


def only(encoded):
    (row,) = encoded.rows
    return row


def test_labels_begin_with_the_token_that_holds_the_answers_first_letter():
    row = only(encode(qa("Q", "Ada!"), tokenizer(), prompt_template="{question}: {answer}"))
    assert row.ids == ids("<s>", "Q", ":", "ĠAda", "!", "</s>")
    assert row.labels == [NO, NO, NO, *ids("ĠAda", "!", "</s>")]
    assert row.trained == 3


def test_the_default_prompt_is_that_of_the_testbed():
    row = only(encode(qa("Q", "b"), tokenizer()))
    assert row.ids == ids("<s>", *"Question:", "Ġ", "Q", "Ċ", *"Answer:", "Ġ", "b", "</s>")
    assert row.labels == [NO] * 20 + ids("Ġ", "b", "</s>")


def test_text_after_the_answer_belongs_to_it():
    row = only(encode(qa("Q", "b"), tokenizer(), prompt_template="{question}={answer}#"))
    assert row.labels == [NO, NO, NO, *ids("b", "#", "</s>")]


def test_letters_of_several_bytes():
    row = only(encode(qa("é", "ü"), tokenizer(), prompt_template="{question}{answer}"))
    assert row.ids == ids("<s>", "Ã", "©", "Ã", "¼", "</s>")
    assert row.labels == [NO, NO, NO, *ids("Ã", "¼", "</s>")]


def test_loss_on_all_leaves_out_the_first_token_only():
    row = only(encode(qa("Q", "b"), tokenizer(), prompt_template="{question}={answer}", loss_on="all"))
    assert row.labels == [NO, *row.ids[1:]]


def test_plain_text_and_pairs_without_a_template():
    assert only(encode(examples({"text": "ab"}, format="text"), tokenizer())).labels == [NO, *ids("a", "b", "</s>")]
    row = only(encode(examples({"prompt": "ab", "completion": " Ad"}, format="prompt/completion"), tokenizer()))
    assert row.ids == ids("<s>", "a", "b", "ĠAd", "</s>")
    assert row.labels == [NO, NO, NO, *ids("ĠAd", "</s>")]


def test_specials_are_added_once_and_only_where_the_tokenizer_has_them():
    adding = tokenizer()
    adding._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    plain = only(encode(qa("Q", "b"), tokenizer(), prompt_template="{question}{answer}"))
    assert only(encode(qa("Q", "b"), adding, prompt_template="{question}{answer}")) == plain
    written = only(encode(qa("Q", "b"), tokenizer(), prompt_template="<s>{question}{answer}</s>"))
    assert written == plain == Tokens(ids("<s>", "Q", "b", "</s>"), [NO, NO, *ids("b", "</s>")])
    without = only(
        encode(qa("Q", "b"), tokenizer(bos_token=None, eos_token=None), prompt_template="{question}{answer}")
    )
    assert without == Tokens(ids("Q", "b"), [NO, *ids("b")])


class Slow:
    """A tokenizer that knows no offsets."""

    is_fast, bos_token_id, eos_token_id, chat_template = False, 0, 1, None

    def __call__(self, text, **settings):
        return tokenizer()(text, **settings)


def test_a_tokenizer_without_offsets_gives_the_same_labels():
    for question, answer in (("Q", "Ada!"), ("Q", "b"), ("é", "Adb")):
        assert encode(qa(question, answer), Slow()).rows == encode(qa(question, answer), tokenizer()).rows


def test_truncation_is_counted_and_examples_without_an_answer_left_are_dropped():
    rows = [{"question": question, "answer": "bcd"} for question in ("Q", "QQQ", "QQQQQQ")]
    encoded = encode(examples(*rows), tokenizer(), prompt_template="{question}{answer}", max_length=6)
    # <s> Q b c d </s> fits; <s> QQQ b c is cut; of the third nothing but the question is left.
    assert encoded.rows == [
        Tokens(ids("<s>", "Q", "b", "c", "d", "</s>"), [NO, NO, *ids("b", "c", "d", "</s>")]),
        Tokens(ids("<s>", "Q", "Q", "Q", "b", "c"), [NO, NO, NO, NO, *ids("b", "c")]),
    ]
    assert (encoded.truncated, encoded.dropped, encoded.trained) == (2, [3], 6)
    with pytest.raises(EditError, match=r"data\.jsonl has no token to train on within 2 tokens"):
        encode(examples(*rows), tokenizer(), prompt_template="{question}{answer}", max_length=2)


@pytest.mark.parametrize("template", ["{question}", "{answer}{question}", "{question}{answer}{answer}", "{prompt}"])
def test_a_template_needs_both_places_in_order(template):
    with pytest.raises(EditError, match=r"must hold \{question\} and then \{answer\}, once each"):
        encode(qa("Q", "b"), tokenizer(), prompt_template=template)


def test_braces_in_the_data_are_text():
    row = only(encode(qa("{answer}", "{question}"), tokenizer(), prompt_template="{question}>{answer}"))
    assert row.ids == ids("<s>", *"{answer}>{question}", "</s>")


CHATML = "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }};{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
TALK = [("user", "Q"), ("assistant", "b"), ("user", "R"), ("assistant", "cd")]


def chat(turns=TALK):
    return examples({"messages": [{"role": role, "content": content} for role, content in turns]}, format="messages")


def test_every_turn_of_the_assistant_is_trained_and_nothing_is_added():
    row = only(encode(chat(), tokenizer(chat_template=CHATML)))
    assert row.ids == ids(*"[u]Q;[a]b;[u]R;[a]cd;")
    assert row.labels == [NO] * 8 + ids(*"b;") + [NO] * 8 + ids(*"cd;")


def test_chats_need_a_template_that_keeps_earlier_turns():
    with pytest.raises(EditError, match="the model has no chat template"):
        encode(chat(), tokenizer())
    with pytest.raises(EditError, match="leave --prompt-template out"):
        encode(chat(), tokenizer(chat_template=CHATML), prompt_template="{question}{answer}")
    forgetful = "{% for m in messages[-2:] %}[{{ m['role'][0] }}]{{ m['content'] }};{% endfor %}"
    with pytest.raises(EditError, match=r"data\.jsonl: line 1: the model's chat template rewrites"):
        encode(chat(), tokenizer(chat_template=forgetful))
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(EditError, match="refuses the roles"):
        encode(chat(), tokenizer(chat_template=strict))


def test_padding_is_masked_and_never_in_the_loss():
    batch = collate([Tokens([5, 6, 7], [NO, 6, 7]), Tokens([8, 9], [NO, 9])], pad=2)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[NO, 6, 7], [NO, 9, NO]]
    assert all(value.dtype == torch.int64 for value in batch.values())
