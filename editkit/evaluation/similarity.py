"""Does a generation mean what the true answer means? Sentence embeddings and natural language inference (arXiv 2410.08109).

Both are models of their own, given by folder or Hub id: the paper takes paraphrase-MiniLM-L6-v2 for the embeddings.

>>> cosine_similarity("paraphrase-MiniLM-L6-v2", ["Ada wrote novels."], ["Novels were written by Ada."])  # doctest: +SKIP
array([0.93])
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from editkit.errors import EditError, first_line, listed
from editkit.evaluation.metrics.statistics import Array
from editkit.training.devices import place_of
from editkit.training.trainer import quiet_transformers

INSTALL = "pip install 'editkit[similarity]'"
COMPARED = ("cosine", "entails_truth", "entailed_by_truth")
"""Columns that other models give, reading what was written."""


@dataclass(frozen=True)
class Readers:
    """The models that read what was written, by folder or Hub id; None where there is none."""

    embedding: str | None
    nli: str | None
    device: str = "auto"

    def can(self, column: str) -> bool:
        """Whether a column of rows can be had, as far as it is up to these models."""
        return column not in COMPARED or (self.embedding if column == "cosine" else self.nli) is not None

    def try_out(self, columns: Collection[str]) -> None:
        """Refuse models that do not load now, not after hours of writing."""
        self.add([{"generation": "a", "answer": "a"}], columns)

    def add(self, rows: Sequence[dict[str, Any]], columns: Collection[str]) -> None:
        """Put those of COMPARED among `columns` that can be had into rows with a generation."""
        asked = {column for column in COMPARED if column in columns and self.can(column)}
        rows = [row for row in rows if "generation" in row]
        if not asked or not rows:
            return
        written, truths = ([row[key] for row in rows] for key in ("generation", "answer"))
        if "cosine" in asked and self.embedding is not None:
            _put(rows, "cosine", cosine_similarity(self.embedding, written, truths, device=self.device))
        if "entails_truth" in asked and self.nli is not None:
            _put(rows, "entails_truth", entailment(self.nli, written, truths, device=self.device))
        if "entailed_by_truth" in asked and self.nli is not None:
            _put(rows, "entailed_by_truth", entailment(self.nli, truths, written, device=self.device))


def _put(rows: Sequence[dict[str, Any]], column: str, values: Array) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[column] = value


def cosine_similarity(
    model: str, generations: Sequence[str], truths: Sequence[str], *, device: str = "auto", batch_size: int = 32
) -> Array:
    """`max(0, cos)` of the embeddings of each pair of texts, [n].

    model: a folder or Hub id that sentence-transformers loads; texts beyond its length are cut. A pair with an empty text has 0: nothing
    said is like no answer (and an encoder would still return some vector for it).
    Raises EditError where sentence-transformers is not installed, or the model does not load.
    """
    pairs = list(zip(generations, truths, strict=True))
    texts = sorted({text for pair in pairs for text in pair if text.strip()})
    if not texts:
        return np.zeros(len(pairs))
    encoder = _encoder(model, place_of(device))
    with quiet_transformers():
        found = encoder.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False)
    vectors = dict(zip(texts, np.asarray(found, np.float64), strict=True))
    cosines = [vectors[one] @ vectors[other] if one in vectors and other in vectors else 0.0 for one, other in pairs]
    return np.clip(np.asarray(cosines, np.float64), 0, 1)


@lru_cache(maxsize=1)  # one encoder serves all sets and models of an evaluation
def _encoder(model: str, place: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise EditError(f"sentence embeddings need the package sentence-transformers: {INSTALL}") from error
    with quiet_transformers():
        try:
            return SentenceTransformer(model, device=place, trust_remote_code=False)
        except Exception as error:  # a folder, a download or a config fails in a dozen ways
            raise EditError(f"{model} is no model that sentence-transformers can load ({first_line(error)})") from error


def entailment(
    model: str, premises: Sequence[str], hypotheses: Sequence[str], *, device: str = "auto", batch_size: int = 32
) -> Array:
    """1.0 for each pair of which an NLI model says that the premise entails the hypothesis, else 0.0, [n].

    >>> entailment("roberta-large-mnli", ["Ada wrote novels."], ["Ada is a writer."])  # doctest: +SKIP
    array([1.])

    model: a folder or Hub id of a sequence classifier with one label named "entailment"; pairs beyond its length are cut, the longer text
    first. A pair with an empty text has 0, without asking. Raises EditError where the model does not load or has no such label.
    """
    import torch

    pairs = list(zip(premises, hypotheses, strict=True))
    found = np.zeros(len(pairs))
    said = [i for i, pair in enumerate(pairs) if all(text.strip() for text in pair)]
    if not said:
        return found
    place = place_of(device)
    net, tokenizer, label = _classifier(model, place)
    limit = _longest(net, tokenizer)
    said.sort(key=lambda i: -sum(map(len, pairs[i])))  # texts of one length together: little padding
    for start in range(0, len(said), batch_size):
        some = said[start : start + batch_size]
        texts = [[pairs[i][side] for i in some] for side in (0, 1)]
        batch = tokenizer(*texts, padding=True, truncation=True, max_length=limit, return_tensors="pt").to(place)
        with torch.inference_mode():
            found[some] = (net(**batch).logits.argmax(-1) == label).cpu().numpy()
    return found


@lru_cache(maxsize=1)
def _classifier(model: str, place: str) -> tuple[Any, Any, int]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with quiet_transformers():
        try:
            net = AutoModelForSequenceClassification.from_pretrained(model, trust_remote_code=False)
            tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        except Exception as error:
            raise EditError(f"{model} is no classifier that transformers can load ({first_line(error)})") from error
    labels = net.config.id2label
    entailing = [index for index, label in labels.items() if str(label).lower() == "entailment"]
    if len(entailing) != 1:
        raise EditError(f"{model} has the labels {listed(labels.values())}: an NLI model has one named entailment")
    return net.to(place).eval(), tokenizer, int(entailing[0])


def _longest(net: Any, tokenizer: Any) -> int:
    """The tokens that the model can take. Tokenizers that do not know say 10^30; some position tables have 2 places that are not used."""
    positions = getattr(net.config, "max_position_embeddings", 512)
    return int(min(tokenizer.model_max_length, positions if tokenizer.model_max_length <= positions else positions - 2))
