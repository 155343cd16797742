"""What a model still knows: negative log-likelihood, token accuracy and whole answers, with the true answer as input.

>>> summarize([Row(0.0, 1.0), Row(2.0, 0.5)]).nll
Measure(mean=1.0, spread=1.414...)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from editkit.training.encoding import IGNORED, Tokens, collate

BATCH = 64  # examples


class Row(NamedTuple):
    """One example: mean NLL of its answer's tokens in nats, and the share of them that the model finds most likely."""

    nll: float
    accuracy: float


@dataclass(frozen=True)
class Measure:
    """Mean over the examples, and their standard deviation."""

    mean: float
    spread: float


@dataclass(frozen=True)
class Score:
    """A set of `n` examples. `exact` is the share of answers of which every token is the most likely one: those that
    the model writes word for word when it is asked."""

    n: int
    nll: Measure
    accuracy: Measure
    exact: float


def score(model: Any, rows: Sequence[Tokens]) -> Score:
    """Score a transformers model on encoded examples; it is left in evaluation mode."""
    import torch

    found = []
    model.eval()
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = collate(rows[start : start + BATCH])
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch).logits[:, :-1].float().log_softmax(-1)
            inside = labels != IGNORED
            nll = -logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            right = logits.argmax(-1) == labels
            found += [
                Row(nll[i][inside[i]].mean().item(), right[i][inside[i]].float().mean().item()) for i in range(len(nll))
            ]
    return summarize(found)


def summarize(rows: Sequence[Row]) -> Score:
    """The score of a set from those of its examples."""

    def measure(values: list[float]) -> Measure:
        return Measure(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    exact = fmean(row.accuracy == 1 for row in rows)
    return Score(len(rows), measure([row.nll for row in rows]), measure([row.accuracy for row in rows]), exact)


def answer(model: Any, tokenizer: Any, prompt: str, limit: int = 24) -> str:
    """What the model writes after `prompt` when it always takes the most likely token, up to `limit` tokens."""
    import torch

    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    written: list[int] = []
    model.eval()
    with torch.no_grad():
        while len(written) < limit:
            token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            written.append(token)
    return tokenizer.decode(written).strip()
