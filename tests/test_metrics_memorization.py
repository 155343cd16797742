"""Memorization, entropy, repetition and ROUGE: against transcriptions of their definitions and rouge-score itself."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from scipy import stats

from editkit.evaluation.metrics import closer_look, memorization, text
from editkit.evaluation.metrics.rouge import rouge
from editkit.evaluation.metrics.statistics import bootstrap

tokens = st.lists(st.integers(0, 2), max_size=14)


def el_by_definition(generate, x, n):
    """EL_n of the text x[0], ..., x[T-1] as it is written: 1/(T-n) sum over the prefixes x_<t, t = 1 ... T-n."""
    total = 0.0
    for t in range(1, len(x) - n + 1):
        suffix, said = x[t:], generate(x[:t], len(x) - t)
        windows = [suffix[a : a + n] for a in range(len(suffix)) if a + n <= len(suffix)]
        total += sum(any(said[b : b + n] == w for b in range(len(said))) for w in windows) / len(windows)
    return total / (len(x) - n)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=15), st.integers(1, 4), st.randoms(use_true_random=False))
def test_extraction_likelihood_is_its_definition(x, n, random):
    replies = {
        t: [random.choice((0, 1, 2)) if random.random() < 0.4 else x[t + k] for k in range(len(x) - t)]
        for t in range(1, len(x))
    }
    longer = [replies[t] + [1] * 5 for t in range(1, len(x))]
    found = memorization.extraction_likelihood(longer, x[1:], n)
    if len(x) - 1 < n:
        assert found is None
    else:
        assert found == pytest.approx(el_by_definition(lambda prefix, length: replies[len(prefix)][:length], x, n))


def test_extraction_likelihood_of_ten_grams_worked_by_hand():
    text = list(range(12))  # suffixes of 12, 11 and 10 tokens with 3, 2 and 1 ten-grams
    assert memorization.extraction_likelihood([text, text[1:], text[2:]], text) == 1
    assert memorization.extraction_likelihood([text[:11], [], text[2:]], text) == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert memorization.extraction_likelihood([], text[:9]) is None
    # a repeated n-gram of the truth counts as often as it is there: of aa, aa, ab two come back
    assert memorization.extraction_likelihood([[1, 1, 1, 1], [9] * 3, [9] * 2], [1, 1, 1, 2], 2) == pytest.approx(
        2 / 3 / 3
    )


def test_memorization_accuracy_is_a_share_and_unknown_without_tokens():
    assert memorization.memorization_accuracy([1, 0, 0, 1, 1]) == 0.6
    assert memorization.memorization_accuracy([]) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=10))
def test_extraction_strength_is_its_definition(pairs):
    greedy, labels = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    found = memorization.extraction_strength(greedy, labels)
    if not pairs:
        assert found is None
    else:
        assert found == 1 - min(k for k in range(len(pairs) + 1) if greedy[k:] == labels[k:]) / len(pairs)


def test_outliers_are_counted_on_both_sides():
    assert memorization.outliers([0.15, 0.151, 0.599, 0.6, 1.0, math.nan]) == (1, 2)
    assert memorization.outliers([]) == (0, 0)


def test_forgotten_is_at_most_the_mean_of_never_seen_text():
    found = memorization.forgotten([0.1, 0.3, 0.31, math.nan], [0.1, 0.2, 0.6, math.nan])
    assert found[:3].tolist() == [1, 1, 0] and np.isnan(found[3])
    assert np.isnan(memorization.forgotten([0.1], [])).all()


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30))
def test_token_entropy_is_the_entropy_of_scipy_over_its_largest_value(values):
    counts = np.bincount(values)
    expected = stats.entropy(counts, base=2) / np.log2(len(values))
    assert closer_look.token_entropy(values) == pytest.approx(expected, abs=1e-12)


def test_token_entropy_is_one_for_all_different_tokens_and_zero_for_nothing_said():
    assert closer_look.token_entropy("to be or not".split()) == 1
    assert (
        closer_look.token_entropy([])
        == closer_look.token_entropy(["word"])
        == closer_look.token_entropy("no no no".split())
        == 0
    )


def test_entailment_does_not_count_without_a_word_in_common():
    found = closer_look.entailment([1, 1, 1, 0, math.nan, 1], [0.1, 0.0999, 1.0, 1.0, 1.0, math.nan])
    assert found[:4].tolist() == [1, 0, 1, 0] and np.isnan(found[4:]).all()


def test_forget_efficacy_is_one_minus_the_mean_of_five_means():
    columns = np.random.default_rng(0).random((20, 5))
    assert float(closer_look.forget_efficacy(columns)) == pytest.approx(1 - columns.mean())
    columns[3, 2] = math.nan
    expected = 1 - np.mean([*columns[:, [0, 1, 3, 4]].mean(0), np.delete(columns[:, 2], 3).mean()])
    assert float(closer_look.forget_efficacy(columns)) == pytest.approx(expected)
    low, high = bootstrap(lambda drawn: closer_look.forget_efficacy(drawn["forget"]), {"forget": columns}, seed=0)
    assert low < expected < high
    columns[:, 2] = math.nan
    assert np.isnan(closer_look.forget_efficacy(columns))


@given(tokens, st.integers(1, 5))
def test_repetition_counts_the_n_grams_that_came_before(values, n):
    grams = [values[i : i + n] for i in range(len(values)) if i + n <= len(values)]
    if not grams:
        assert text.repetition(values, n) is None and text.distinct(values, n) is None
        return
    before = sum(gram in grams[:i] for i, gram in enumerate(grams)) / len(grams)
    assert text.repetition(values, n) == pytest.approx(before)
    assert text.distinct(values, n) == pytest.approx(1 - before)


def test_perplexity_is_the_exponential_of_the_mean_loss():
    assert text.perplexity([math.log(2), math.log(8), math.nan]) == pytest.approx(4)
    assert text.perplexity([]) is None and text.perplexity([math.nan]) is None
    assert text.perplexity([1000.0]) == math.inf


TRICKY = [
    "",
    "   \n",
    "…!? —",
    "The cats were running, quickly; the CAT's run!",
    "a cat runs quick",
    "Åsa Öberg naïve café 東京 ёлка",
    "asa oberg naive cafe",
    "x_y 12.5% 3,000 e-mail don't",
    "12 5 3 000 e mail dont",
    "the the the the",
    "the of the",
    "Generalizations, generalization; generally relational conditional",
]


@pytest.mark.parametrize("truth", TRICKY)
def test_rouge_is_that_of_rouge_score_on_tricky_texts(truth):
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    for generation in TRICKY:
        theirs = scorer.score(truth, generation)
        assert rouge(generation, truth) == {
            "rouge1_recall": theirs["rouge1"].recall,
            "rougeL_recall": theirs["rougeL"].recall,
            "rougeL_f1": theirs["rougeL"].fmeasure,
        }


@given(st.text(max_size=40), st.text(max_size=40))
def test_rouge_is_that_of_rouge_score_on_any_text(generation, truth):
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(truth, generation)["rougeL"]
    found = rouge(generation, truth)
    assert (found["rougeL_recall"], found["rougeL_f1"]) == (theirs.recall, theirs.fmeasure)
