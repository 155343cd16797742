"""Examples -> token ids and labels: where the loss is taken is decided here, and nowhere else.

>>> fill("Question: {question}\\nAnswer: {answer}", "Who?", "Ada.")
('Question: Who?\\nAnswer: Ada.', 22)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from editkit.errors import EditError, listed
from editkit.training.data import Examples

if TYPE_CHECKING:
    import torch

QUESTION, ANSWER = "{question}", "{answer}"
TEMPLATES = {
    "question/answer": "Question: {question}\nAnswer: {answer}",
    "text/labels": "Question: {question}\nAnswer: {answer}",
    "prompt/completion": "{question}{answer}",
    "text": "{question}{answer}",
}
"""Format -> prompt template. `{question}` and `{answer}` stand for the two values, whatever their keys are called."""

IGNORED = -100  # the label of a token that is not in the loss


class Tokens(NamedTuple):
    """One example: token ids and labels of the same length; a label is the token itself, or IGNORED (-100)."""

    ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """Tokens in the loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Encoded:
    """Examples as tokens. truncated: cut at `max_length`. dropped: rows (by number) with nothing left to train on."""

    rows: list[Tokens]
    truncated: int
    dropped: list[int]

    @property
    def trained(self) -> int:
        return sum(row.trained for row in self.rows)


def encode(
    examples: Examples,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    loss_on: str = "answer",
    prompt_template: str | None = None,
) -> Encoded:
    """Tokenize every example; labels are IGNORED outside the answer (loss_on="answer") or nowhere (loss_on="all").

    The first token of the answer is the first that holds a character of it; of "Answer: Ada" that is " Ada", or " " where
    the tokenizer does not join the two. Begin and end of text are added where the tokenizer has them and did not add them
    itself; the end belongs to the answer. Chat messages are written by the model's own chat template, which
    also places these tokens, and the loss is taken on every turn of the assistant. The very first token is never
    predicted, hence never in the loss. `max_length` counts tokens and cuts the end.

    Raises EditError for a wrong template, a missing or unsuitable chat template, and where no token is left to train.
    """
    if loss_on not in ("answer", "all"):
        raise EditError(f"loss_on is {loss_on!r}: it must be 'answer' or 'all'")
    if max_length is not None and max_length < 2:
        raise EditError(f"max_length is {max_length}: an example needs at least 2 tokens")
    if examples.format == "messages":
        encoded = list(_encode_chats(examples, tokenizer, prompt_template))
    else:
        template = _template(examples, prompt_template)
        encoded = [_encode_pair(*fill(template, *examples.pair(row)), tokenizer) for row in range(len(examples))]
    rows, truncated, dropped = [], 0, []
    for number, (ids, in_answer) in zip(examples.numbers, encoded, strict=True):
        truncated += max_length is not None and len(ids) > max_length
        shown = zip(ids, in_answer, strict=True)
        labels = [token if index and (loss_on == "all" or hit) else IGNORED for index, (token, hit) in enumerate(shown)]
        row = Tokens(ids[:max_length], labels[:max_length])
        if row.trained:
            rows.append(row)
        else:
            dropped.append(number)
    if not rows:
        raise EditError(
            f"{examples.label} has no token to train on within {max_length} tokens: give a larger max_length"
        )
    return Encoded(rows, truncated, dropped)


def fit(max_length: int | None, context: int | None) -> int | None:
    """The most tokens of an example: what was asked for, or the model's context. Raises EditError for more than that."""
    if max_length and context and max_length > context:
        raise EditError(
            f"max_length is {max_length} and the model reads {context} tokens at most: give no more than that"
        )
    return max_length or context


def fill(template: str, question: str, answer: str) -> tuple[str, int]:
    """The whole text and the character at which the answer begins, so that text[:start] is what a model continues.

    Spaces before the answer belong to it: many tokenizers join them to the word, and one that does not in some word must
    not leave a model that starts from "Answer:" with a token that it never learned.
    """
    before, after = template.split(ANSWER)
    prompt = before.replace(QUESTION, question)
    return prompt + answer + after, len(prompt.rstrip(" "))


def collate(rows: Sequence[Tokens], pad: int = 0) -> dict[str, "torch.Tensor"]:
    """input_ids, attention_mask and labels, int64 [rows, longest]; padding on the right is masked and IGNORED."""
    import torch

    longest = max(len(row.ids) for row in rows)
    return {
        "input_ids": torch.tensor([row.ids + [pad] * (longest - len(row.ids)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows]),
        "labels": torch.tensor([row.labels + [IGNORED] * (longest - len(row.ids)) for row in rows]),
    }


def _template(examples: Examples, given: str | None) -> str:
    if given is None:
        return TEMPLATES[examples.format]
    if examples.format == "text":
        raise EditError(f"{examples.label} is plain text, which takes no prompt template: leave --prompt-template out")
    ends = given.find(QUESTION), given.find(ANSWER)
    if given.count(QUESTION) != 1 or given.count(ANSWER) != 1 or ends[0] > ends[1]:
        raise EditError(f"--prompt-template {given!r} must hold {QUESTION} and then {ANSWER}, once each")
    return given


def _encode_pair(text: str, start: int, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids, and which of them belong to the answer: all from the first token that reaches beyond character `start`."""
    ids, first = _tokenize(text, start, tokenizer, specials=True)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None and ids[:1] != [begin]:
        ids, first = [begin, *ids], first + 1
    if end is not None and ids[-1:] != [end]:
        ids = [*ids, end]
    return ids, [index >= first for index in range(len(ids))]


def _tokenize(text: str, start: int, tokenizer: Any, *, specials: bool) -> tuple[list[int], int]:
    """Ids, and the index of the first token that holds a character from `start` on (their number if there is none)."""
    settings = {"add_special_tokens": specials, "verbose": False}
    if tokenizer.is_fast:
        found = tokenizer(text, return_offsets_mapping=True, **settings)
        reaching = (index for index, (_, last) in enumerate(found["offset_mapping"]) if last > start)
        return found["input_ids"], next(reaching, len(found["input_ids"]))
    # Without offsets: the prompt alone gives the same tokens up to where the answer joins in.
    ids, prompt = tokenizer(text, **settings)["input_ids"], tokenizer(text[:start], **settings)["input_ids"]
    pairs = enumerate(zip(ids, prompt, strict=False))
    return ids, next((index for index, (one, other) in pairs if one != other), min(len(ids), len(prompt)))


def _encode_chats(examples: Examples, tokenizer: Any, given: str | None) -> Iterator[tuple[list[int], list[bool]]]:
    if given is not None:
        raise EditError(
            f"{examples.label} holds messages, which the model's chat template writes: leave --prompt-template out"
        )
    if not tokenizer.chat_template:
        raise EditError(
            f"{examples.label} holds messages and the model has no chat template: give prompt and completion"
        )
    chats = [_render(row["messages"], tokenizer) for row in examples.rows]
    if bad := [number for number, chat in zip(examples.numbers, chats, strict=True) if chat is None]:
        raise EditError(
            f"{examples.label}: {examples.unit} {listed(bad)}: the model's chat template rewrites earlier turns of the "
            "assistant or refuses the roles: split such a conversation into one row per answer"
        )
    for text, spans in filter(None, chats):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        inside = [False] * len(ids)
        for start, end in spans:
            first = _tokenize(text, start, tokenizer, specials=False)[1]
            last = _tokenize(text, end, tokenizer, specials=False)[1]
            inside[first:last] = [True] * (last - first)
        yield ids, inside


def _render(messages: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[tuple[int, int]]] | None:
    """The conversation as text, and the characters of each of the assistant's turns; None where turns can't be told."""
    from jinja2 import TemplateError

    def write(count: int, **settings: Any) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, **settings)

    try:
        whole = write(len(messages))
        turns: Iterable[int] = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        parts = [(write(i, add_generation_prompt=True) if i else "", write(i + 1)) for i in turns]
    except TemplateError:
        return None
    if not all(whole.startswith(before) and whole.startswith(after) for before, after in parts):
        return None
    return whole, [(len(before), len(after)) for before, after in parts]
