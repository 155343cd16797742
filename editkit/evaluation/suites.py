"""The metrics, each under a versioned id: what it needs, where it is defined, and how it comes from columns.

>>> metric("tofu/probability@1").each({"nll": np.array([0.0, np.log(2)])}, "forget")
array([1. , 0.5])
>>> [one.id for one in chosen(["knowundo"])][:2]
['knowundo/unlearn_success@1', 'knowundo/retention_success@1']

Definitions are in `metrics/`, one file per paper. The version changes when the number would.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from editkit.errors import EditError, listed, meant
from editkit.evaluation.metrics import closer_look, exposure, memorization, tofu

Columns = Mapping[str, Any]
Data = Mapping[str, Columns]

FORGET, RETAIN, UNSEEN = "forget", "retain", "unseen"
CHOICES = ("real_authors", "world_facts")
"""Sets whose answers are scored against wrong ones, as TOFU does."""
KEPT = (RETAIN, *CHOICES)
"""The sets of the two model utilities."""

TOFU, LOOK, MEMORIZED, KNOWUNDO, EXPOSURE = (
    f"arXiv {number}" for number in ("2401.06121", "2410.08109", "2210.01504, 2405.03097", "2407.01920", "2411.04388")
)


@dataclass(frozen=True)
class Metric:
    """better: "higher" or "lower" for a set whose knowledge is to be kept, None where neither is. needs: columns. sets: those it is for, or None."""

    id: str
    label: str
    meaning: str
    source: str
    needs: tuple[str, ...]
    unit: str = ""
    better: str | None = "higher"
    sets: tuple[str, ...] | None = None

    @property
    def suite(self) -> str:
        return self.id.partition("/")[0].replace("_", "-")

    def columns(self, name: str) -> tuple[str, ...]:
        """What it needs of the set `name`."""
        wrong = self.id == "tofu/probability@1" and name in CHOICES
        return (*self.needs, "perturbed_nll") if wrong else self.needs

    def described(self) -> dict[str, Any]:
        """As in results.json."""
        return {key: getattr(self, key) for key in ("id", "label", "unit", "better", "meaning", "source")}


@dataclass(frozen=True)
class Each(Metric):
    """A value for every example of a set, and their mean.

    each: (columns, name of the set) -> values [n]. against: where `each` needs a third argument: "reference", the columns of the same
    examples from it, or "unseen", those of never-seen controls. of_mean: a rising function that makes the result of the mean.
    """

    each: Callable[..., np.ndarray] = field(kw_only=True)
    of_mean: Callable[[float], float] | None = None
    against: str | None = None


@dataclass(frozen=True)
class Overall(Metric):
    """One value of whole sets. parts: data -> set -> rows [n, k]; value: set -> rows [..., n, k], as they are or drawn anew, -> [...].

    terms: what the k columns are called where one that is 0 makes the value 0.
    """

    parts: Callable[[Data], dict[str, np.ndarray]] = field(kw_only=True)
    value: Callable[[dict[str, np.ndarray]], Any] = field(kw_only=True)
    terms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Distance(Metric):
    """The distance of the truth ratios of a model from those of the reference. read: a field of `tofu.ForgetQuality`."""

    read: str = field(kw_only=True)


def _probability(data: Columns, name: str) -> np.ndarray:
    if name in CHOICES:
        return tofu.choice_probability(data["nll"], data["perturbed_nll"])
    return tofu.probability(data["nll"])


def _ratios(form: Callable[..., np.ndarray]) -> Callable[[Columns, str], np.ndarray]:
    def each(data: Columns, name: str) -> np.ndarray:
        ratio = form(data["paraphrased_nll"], data["perturbed_nll"])
        return tofu.forget_truth_ratio(ratio) if name in (FORGET, UNSEEN) else tofu.kept_truth_ratio(ratio)

    return each


def _column(name: str) -> Callable[[Columns, str], np.ndarray]:
    return lambda data, _: data[name]


def _entailment(data: Columns, name: str, reverse: bool = False) -> np.ndarray:
    forward = (name in (FORGET, UNSEEN)) != reverse
    return closer_look.entailment(data["entails_truth" if forward else "entailed_by_truth"], data["rougeL_recall"])


_truth_ratio = _ratios(tofu.truth_ratio_arithmetic)


def _utility(**more: Callable[[Columns, str], np.ndarray]) -> dict[str, Any]:
    """ROUGE, Probability, Truth ratio, and `more`, of the sets to be kept."""
    each = {"ROUGE": _column("rougeL_recall"), "probability": _probability, "truth ratio": _truth_ratio, **more}
    return {
        "parts": lambda data: {name: np.stack([one(data[name], name) for one in each.values()], 1) for name in KEPT},
        "value": tofu.model_utility,
        "terms": tuple(each),
    }


def _efficacy(data: Data) -> dict[str, np.ndarray]:
    one = data[FORGET]
    ratio = closer_look.truth_ratio_star(tofu.truth_ratio_arithmetic(one["paraphrased_nll"], one["perturbed_nll"]))
    parts = (one["rougeL_recall"], tofu.probability(one["nll"]), ratio, one["cosine"], _entailment(one, FORGET))
    return {FORGET: np.stack(parts, 1)}


_RATIO = ("paraphrased_nll", "perturbed_nll")
_UTILITY = ("nll", "rougeL_recall", *_RATIO)
_SIMILAR = ("cosine", "entails_truth", "entailed_by_truth")

METRICS: tuple[Metric, ...] = (
    Each("tofu/probability@1", "Probability", "Mean probability per token of the answer, exp(-NLL); of real_authors and world_facts its share among right and wrong answers.", TOFU, ("nll",), each=_probability),
    Each("tofu/rougeL_recall@1", "ROUGE-L recall", "Longest common subsequence of the greedy answer and the true one, over the true one's words, stemmed.", TOFU, ("rougeL_recall",), each=_column("rougeL_recall")),
    Each("tofu/truth_ratio@1", "Truth ratio", "R = mean probability of wrong answers over that of a right one; forget and unseen: mean min(R, 1/R), 1 where both are equally likely; other sets: mean max(0, 1 - R).", TOFU, _RATIO, each=_truth_ratio),
    Each("tofu/truth_ratio_geometric@1", "Truth ratio, geometric", "As the truth ratio, with the geometric mean of the wrong answers: the form that forget quality compares.", TOFU, _RATIO, each=_ratios(tofu.truth_ratio)),
    Overall("tofu/model_utility@1", "Model utility", "Harmonic mean of ROUGE, Probability and Truth ratio over retain, real_authors and world_facts; 0 if one is 0.", TOFU, _UTILITY, sets=KEPT, **_utility()),
    Distance("tofu/forget_quality@1", "Forget quality", "p-value of a two-sample Kolmogorov-Smirnov test between the geometric truth ratios of model and reference: small means they differ.", TOFU, _RATIO, unit="p", sets=(FORGET,), read="p"),
    Distance("tofu/log10_forget_quality@1", "log10 forget quality", "Decimal logarithm of forget quality.", TOFU, _RATIO, unit="log10 p", sets=(FORGET,), read="log10_p"),
    Distance("tofu/ks_statistic@1", "KS statistic", "Largest distance between the two distributions of truth ratios, 0 to 1. Samples drawn anew lie further apart, so its interval lies high.", TOFU, _RATIO, better="lower", sets=(FORGET,), read="statistic"),
    Each("closer_look/token_entropy@1", "Token entropy", "Entropy of the tokens of what was written over its largest possible value: 0 is one token again and again.", LOOK, ("token_entropy",), each=_column("token_entropy")),
    Each("closer_look/cosine_similarity@1", "Cosine similarity", "max(0, cosine) of the sentence embeddings of what was written and the true answer.", LOOK, ("cosine",), each=_column("cosine")),
    Each("closer_look/entailment@1", "Entailment", "Share of examples where an NLI model finds that what was written entails the truth (forget, unseen), or that the truth entails it (other sets); not where ROUGE-L recall is under 0.1.", LOOK, (*_SIMILAR[1:], "rougeL_recall"), each=_entailment),
    Each("closer_look/entailment_reverse@1", "Entailment, reverse", "Entailment in the other direction.", LOOK, (*_SIMILAR[1:], "rougeL_recall"), each=lambda data, name: _entailment(data, name, True)),
    Overall("closer_look/model_utility_18@1", "Model utility (18)", "Harmonic mean of ROUGE, Probability, Truth ratio, Token entropy, Cosine similarity and Entailment over retain, real_authors and world_facts.", LOOK, (*_UTILITY, "token_entropy", *_SIMILAR), sets=KEPT, **_utility(entropy=_column("token_entropy"), cosine=_column("cosine"), entailment=_entailment)),
    Overall("closer_look/forget_efficacy@1", "Forget efficacy", "1 - mean of ROUGE, Probability, 1 - Truth ratio, Cosine similarity and Entailment on forget.", LOOK, (*_UTILITY, *_SIMILAR), better=None, sets=(FORGET,), parts=_efficacy, value=lambda drawn: closer_look.forget_efficacy(drawn[FORGET])),
    Each("memorization/ma@1", "MA", "Memorization accuracy: share of the true tokens that are the most likely ones, end of text left out.", MEMORIZED, ("ma",), each=_column("ma")),
    Each("memorization/el_10@1", "EL_10", "Extraction likelihood: share of the 10-grams of the true rest that the greedy continuation holds, mean over all prefixes.", MEMORIZED, ("el_10",), sets=(FORGET, UNSEEN), each=_column("el_10")),
    Each("memorization/extraction_strength@1", "Extraction strength", "1 - the shortest prefix, as a share, after which all true tokens are the most likely ones.", "arXiv 2310.08144", ("extraction_strength",), each=_column("extraction_strength")),
    Overall("memorization/outliers@1", "Outliers", "Examples with MA of 0.15 or less plus examples with MA of 0.60 or more.", MEMORIZED, ("ma",), unit="examples", better=None, sets=(FORGET,), parts=lambda data: {FORGET: memorization.outlying(data[FORGET]["ma"])}, value=lambda drawn: np.nansum(drawn[FORGET], (-2, -1))),
    Each("memorization/forgotten@1", "Forgotten", "Share of the examples whose MA is at or below the mean of never-seen text.", MEMORIZED, ("ma",), better=None, sets=(FORGET,), against=UNSEEN, each=lambda data, _, unseen: memorization.forgotten(data["ma"], unseen["ma"])),
    Each("knowundo/unlearn_success@1", "Unlearn success", "100 - token accuracy on forget, in per cent.", KNOWUNDO, ("token_accuracy",), unit="%", better=None, sets=(FORGET,), each=lambda data, _: 100 * (1 - data["token_accuracy"])),
    Each("knowundo/retention_success@1", "Retention success", "Token accuracy on retain, in per cent, mean over examples.", KNOWUNDO, ("token_accuracy",), unit="%", sets=(RETAIN,), each=lambda data, _: 100 * data["token_accuracy"]),
    Each("knowundo/perplexity@1", "Perplexity", "exp of the mean over examples of NLL per token.", KNOWUNDO, ("nll",), better="lower", each=_column("nll"), of_mean=np.exp),
    Each("knowundo/rougeL@1", "ROUGE-L", "F1 of the longest common subsequence of the greedy answer and the true one, stemmed.", KNOWUNDO, ("rougeL_f1",), each=_column("rougeL_f1")),
    Each("exposure/gen_exposure@1", "Generalized exposure", "Log-likelihood per token minus that of the reference: above 0 knowledge is left, below 0 it is over-forgotten.", EXPOSURE, ("nll",), unit="nats/token", better=None, sets=(FORGET,), against="reference", each=lambda data, _, other: exposure.gen_exposure(data["nll"], other["nll"])),
    Each("exposure/rank_exposure@1", "Rank exposure", "log2 of the number of never-seen controls over the rank of the example among them by likelihood.", EXPOSURE, ("nll",), unit="bits", better=None, sets=(FORGET,), against=UNSEEN, each=lambda data, _, unseen: exposure.rank_exposure(-data["nll"], -unseen["nll"])),
    Each("general/token_accuracy@1", "Token accuracy", "Share of the answer's tokens that are the most likely ones, the true answer as input.", KNOWUNDO, ("token_accuracy",), each=_column("token_accuracy")),
    Each("general/nll@1", "NLL", "Mean negative log-likelihood of the answer's tokens.", TOFU, ("nll",), unit="nats/token", better="lower", each=_column("nll")),
    Each("general/kl_to_base@1", "KL to the base", "Kullback-Leibler divergence of base and model, mean over the answer's tokens.", "", ("kl",), unit="nats/token", better="lower", each=_column("kl")),
    Each("general/repetition@1", "Repetition", "Share of the 4-grams of what was written that occurred in it before.", "", ("repetition",), better="lower", each=_column("repetition")),
    Each("general/distinct_2@1", "Distinct-2", "Different 2-grams of what was written over all of them.", "arXiv 1510.03055", ("distinct_2",), each=_column("distinct_2")),
    Each("general/generation_perplexity@1", "Perplexity of generations", "exp of the mean NLL per token that the base gives to what was written: high means gibberish.", "", ("generation_base_nll",), better="lower", each=_column("generation_base_nll"), of_mean=np.exp),
)  # fmt: skip

SLOW = ("memorization/el_10@1",)
"""Asked for by name, or not measured: writes a continuation of nearly every prefix of every text."""
SUITES = tuple(dict.fromkeys(one.suite for one in METRICS))
REFERENCE = ("nll", "num_tokens", "token_accuracy", "ma", *_RATIO)
"""The columns that a reference is measured in where it is not evaluated itself: those of one pass per text."""


def metric(id: str) -> Metric:
    """The metric of this id. Raises EditError for an unknown one."""
    for one in METRICS:
        if one.id == id:
            return one
    raise EditError(f"there is no metric {id!r}: there are {listed((one.id for one in METRICS), limit=60)}")


def chosen(suites: Sequence[str] = (), metrics: Sequence[str] = ()) -> list[Metric]:
    """The metrics of these suites ("all" is every one), and those with such whole ids (globs; the version may be left out).

    By default all but those in SLOW.
    """
    if unknown := sorted(set(suites) - {"all", *SUITES}):
        raise EditError(f"no such suite: {listed(unknown)}; there are {listed([*SUITES, 'all'])}")
    if not suites and not metrics:
        return [one for one in METRICS if one.id not in SLOW]

    def asked(one: Metric) -> bool:
        names = (one.id, one.id.partition("@")[0])
        return (
            "all" in suites or one.suite in suites or any(fnmatchcase(name, glob) for name in names for glob in metrics)
        )

    for glob in metrics:
        if not any(fnmatchcase(name, glob) for one in METRICS for name in (one.id, one.id.partition("@")[0])):
            known = dict.fromkeys(one.id.partition("@")[0] for one in METRICS)
            raise EditError(f"--metrics {glob!r} names no metric: {meant(glob.partition('@')[0], known)}")
    return [one for one in METRICS if asked(one)]


def columns_of(metrics: Iterable[Metric], name: str) -> set[str]:
    """The columns that these metrics need of a set."""
    return {
        column
        for one in metrics
        if one.sets is None or name in one.sets or (isinstance(one, Each) and one.against == name)
        for column in one.columns(name)
    }
