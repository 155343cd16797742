"""ROUGE of a generation against the true answer, as TOFU takes it: rouge-score with its stemmer (Lin 2004; 2401.06121).

>>> rouge("Ada writes many novels", "She wrote novels")
{'rouge1_recall': 0.333..., 'rougeL_recall': 0.333..., 'rougeL_f1': 0.285...}
"""

from functools import cache, lru_cache, partial
from types import SimpleNamespace
from typing import Any


def rouge(generation: str, truth: str) -> dict[str, float]:
    """Unigram recall, and recall and F1 of the longest common subsequence; all are 0 where one text has no word."""
    scores = _scorer().score(truth, generation)
    return {
        "rouge1_recall": float(scores["rouge1"].recall),
        "rougeL_recall": float(scores["rougeL"].recall),
        "rougeL_f1": float(scores["rougeL"].fmeasure),
    }


@cache
def _scorer() -> Any:
    """rouge-score's own scorer and tokenizer; words are stemmed once, since stemming takes most of the time."""
    from nltk.stem.porter import PorterStemmer
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenize import tokenize

    stemmer = SimpleNamespace(stem=lru_cache(1 << 16)(PorterStemmer().stem))
    return RougeScorer(["rouge1", "rougeL"], tokenizer=SimpleNamespace(tokenize=partial(tokenize, stemmer=stemmer)))
