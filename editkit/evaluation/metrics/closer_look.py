"""What "A closer look at machine unlearning for LLMs" adds to TOFU (Yuan et al. 2024, https://arxiv.org/abs/2410.08109).

Its model utility has 18 terms: three sets with ROUGE, Probability, Truth ratio, Token entropy, Cosine similarity, Entailment; the
harmonic mean is `tofu.model_utility`. Cosine similarity is in `editkit.evaluation.similarity`.

>>> token_entropy("the cat saw the dog".split())
0.8277...
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from editkit.evaluation.metrics.statistics import Array, mean
from editkit.evaluation.metrics.tofu import forget_truth_ratio

LEAST_ROUGE = (
    0.1  # rougeL recall under which no text counts as entailed, whatever the NLI model says: the paper's constant
)


def token_entropy(tokens: Sequence[Hashable]) -> float:
    """`H(token frequencies, log2) / log2(number of tokens)` of a generation: 1 where no token comes twice, 0 for at most one token."""
    if len(tokens) < 2:
        return 0.0
    shares = np.asarray(list(Counter(tokens).values())) / len(tokens)
    return max(0.0, float(-(shares * np.log2(shares)).sum() / np.log2(len(tokens))))


def entailment(labels: ArrayLike, rougeL_recall: ArrayLike) -> Array:
    """The NLI model's labels (1 is "entailment") with 0 where rougeL recall is under 0.1; NaN where one of the two is unknown.

    >>> entailment([1, 1, 0], [0.5, 0.05, 0.9]).tolist()
    [1.0, 0.0, 0.0]

    The paper's direction: on the forget set the generation entails the truth, on all others the truth entails the generation.
    """
    rouge = np.asarray(rougeL_recall, np.float64)
    return np.asarray(labels, np.float64) * np.where(np.isnan(rouge), np.nan, rouge >= LEAST_ROUGE)


def truth_ratio_star(ratio: ArrayLike) -> Array:
    """`1 - min(R, 1/R)` per example of the forget set: high while the right answer still stands out, which is what is to go."""
    return 1 - forget_truth_ratio(ratio)


def forget_efficacy(columns: ArrayLike) -> Array:
    """`1 - mean(ROUGE, Probability, Truth ratio*, Cosine similarity, Entailment)` of the forget set: [..., n, 5] to [...].

    >>> float(forget_efficacy([[1.0, 1.0, 0.5, 1.0, 1.0], [0.0, 0.0, 0.5, 0.0, 0.0]]))
    0.5

    Token entropy is no part of it: gibberish scores well here, so report the entropy beside it. NaN where a column has no known value.
    Fit for `statistics.bootstrap`.
    """
    means = mean(columns, axis=-2)
    return np.asarray(1 - means.sum(-1) / means.shape[-1])
