"""What a model still knows: negative log-likelihood, token accuracy and whole answers, with the true answer as input.

>>> summarize([Row(0.0, 1.0), Row(2.0, 0.5)]).nll
Measure(mean=1.0, spread=1.414...)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from editkit.evaluation.generation import generate
from editkit.evaluation.passes import teacher_forced
from editkit.training.encoding import Tokens

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
    """Score a transformers model on encoded examples."""
    scored = teacher_forced(model, rows, batch_size=BATCH)
    return summarize([Row(one.nll, float(one.hits.mean())) for one in scored])


def summarize(rows: Sequence[Row]) -> Score:
    """The score of a set from those of its examples."""

    def measure(values: list[float]) -> Measure:
        return Measure(fmean(values), stdev(values) if len(values) > 1 else 0.0)

    exact = fmean(row.accuracy == 1 for row in rows)
    return Score(len(rows), measure([row.nll for row in rows]), measure([row.accuracy for row in rows]), exact)


def answer(model: Any, tokenizer: Any, prompt: str, limit: int = 24) -> str:
    """What the model writes after `prompt` when it always takes the most likely token, up to `limit` tokens."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    [written] = generate(model, [ids], [limit], expected=[limit], stops={tokenizer.eos_token_id}, context=None)
    return tokenizer.decode(written).strip()
