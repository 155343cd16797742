"""Rows -> results: every metric of every model and set, with n, spread, tail and a 95 % interval, or the reason why it is not there.

>>> from editkit.evaluation.rows import columns
>>> from editkit.evaluation.suites import metric
>>> rows = [{"set": "forget", "index": i, "nll": 0.5 + i} for i in range(3)]
>>> [result] = aggregate({"edited": columns(rows)}, [metric("general/nll@1")])
>>> result["value"], result["n"], result["status"]
(1.5, 3, 'ok')
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from editkit.arithmetic.draws import key_of
from editkit.errors import listed
from editkit.evaluation.metrics import exposure, statistics, tofu
from editkit.evaluation.rows import Columns
from editkit.evaluation.suites import FORGET, UNSEEN, Data, Distance, Each, Metric, Overall

Result = dict[str, Any]
_UNDEFINED: Result = dict.fromkeys(("value", "n", "sd", "median", "p95", "max", "ci_low", "ci_high"))
NEEDED = {
    "paraphrased_nll": " (key paraphrased_answer or perturbed_answer of the examples)",
    "perturbed_nll": " (key perturbed_answer of the examples)",
    "cosine": " (--embedding-model)",
    "entails_truth": " (--nli-model)",
    "entailed_by_truth": " (--nli-model)",
    "kl": " (--base)",
    "generation_base_nll": " (--base)",
}
"""What a column needs that is not always there."""
_SETS = {UNSEEN: "give --set unseen=FILE, text of the same kind that no model saw"}


def aggregate(
    models: Mapping[str, Data], metrics: Sequence[Metric], *, reference: Data | None = None, base: Data | None = None
) -> list[Result]:
    """One result per model, metric and set, or per model and metric where it joins several sets (`set` is then None).

    models: label -> set -> columns (`rows.columns`). reference: the columns of a model that never saw the forget set; base: those
    of the model before the edit, for the buckets of exposure. Intervals are drawn from the metric's id and the set, so that models are
    compared on the same resamples.
    """
    found = []
    for label, data in models.items():
        for one in metrics:
            for name, bucket, values in _results(one, data, reference, base):
                place: Result = {"model": label, "set": name, "metric": one.id, "bucket": bucket}
                found.append({**place, **_UNDEFINED, "status": "ok", **values})
    return found


def _results(
    one: Metric, data: Data, reference: Data | None, base: Data | None
) -> Iterator[tuple[str | None, str | None, Result]]:
    if isinstance(one, Each):
        for name in data:
            if one.sets is None or name in one.sets:
                yield from ((name, bucket, values) for bucket, values in _each(one, data, name, reference, base))
        return
    sets = one.sets or ()
    place = sets[0] if len(sets) == 1 else None
    if missing := [name for name in sets if name not in data]:
        yield place, None, _skipped(f"no set {listed(missing)}")
    elif lacking := [column for name in sets for column in _lacking(one, data[name], name)]:
        yield place, None, _skipped(f"no {listed(dict.fromkeys(lacking), limit=3)}")
    elif isinstance(one, Distance):
        yield place, None, _distance(one, data[FORGET], (reference or {}).get(FORGET))
    elif isinstance(one, Overall):
        parts = one.parts(data)
        value = float(one.value(parts))
        low, high = statistics.bootstrap(one.value, parts, seed=key_of(0, one.id))
        n = sum(int((~np.isnan(rows).all(-1)).sum()) for rows in parts.values())
        result = {"value": value, "n": n, "ci_low": low, "ci_high": high}
        yield place, None, _skipped("a part has no known value") if np.isnan(value) else result


def _each(
    one: Each, data: Data, name: str, reference: Data | None, base: Data | None
) -> Iterator[tuple[str | None, Result]]:
    mine = data[name]
    if lacking := _lacking(one, mine, name):
        yield None, _skipped(f"no {listed(lacking, limit=3)}")
        return
    others = []
    if one.against:
        other = data.get(UNSEEN) if one.against == UNSEEN else (reference or {}).get(name)
        if other is None:
            yield None, _unknown(_SETS.get(one.against, "give --reference, a model that never saw the forget set"))
            return
        if lacking := _lacking(one, other, name):
            yield (
                None,
                _unknown(f"{'the set' if one.against == UNSEEN else 'the'} {one.against} has no {listed(lacking)}"),
            )
            return
        others.append(other if one.against == UNSEEN else aligned(other, mine))
        if one.against != UNSEEN and np.isnan(others[0]["index"]).all():
            yield None, _unknown("the reference has other examples")
            return
    values = np.asarray(one.each(mine, name, *others), np.float64)
    yield None, _summarized(one, values, name)
    if one.against == "reference":
        yield from _buckets(one, values, name, others[0], (base or {}).get(name), mine)


def _buckets(
    one: Each, values: np.ndarray, name: str, other: Columns, before: Columns | None, mine: Columns
) -> Iterator[tuple[str, Result]]:
    """The results in thirds by difficulty and, where the model before the edit is known, by memorization (2411.04388)."""
    proxies = {"difficulty": exposure.difficulty_proxy(other["nll"])}
    if before is not None and {"nll", "num_tokens"} <= set(before):
        then = aligned(before, mine)
        proxies["memorization"] = exposure.memorization_proxy(then["nll"], other["nll"], then["num_tokens"])
    for kind, proxy in proxies.items():
        thirds = exposure.thirds(proxy)
        for third in range(3):
            yield f"{kind} {third + 1}/3", _summarized(one, values[thirds == third], f"{name} {kind} {third}")


def _summarized(one: Each, values: np.ndarray, name: str) -> Result:
    found = statistics.summary(values, seed=key_of(0, f"{one.id} {name}"))._asdict()
    if not found["n"]:
        return _skipped("no row has a value")
    if one.of_mean is not None:
        with np.errstate(over="ignore"):
            found = {
                key: value if key == "n" or value is None else float(one.of_mean(value))
                for key, value in found.items()
                if key != "sd"
            }
    if np.isinf(found["value"]):
        return _unknown(f"more than a number holds, on {found['n']} examples")
    return found


def _distance(one: Distance, mine: Columns, other: Columns | None) -> Result:
    if other is None:
        return _unknown("no reference: give --reference, a model that never saw the forget set")
    if lacking := _lacking(one, other, FORGET):
        return _skipped(f"the reference has no {listed(lacking)}")
    ratios = {
        key: tofu.truth_ratio(rows["paraphrased_nll"], rows["perturbed_nll"])
        for key, rows in (("mine", mine), ("other", other))
    }
    ratios = {key: statistics.known(values) for key, values in ratios.items()}
    quality = tofu.forget_quality(ratios["mine"], ratios["other"])
    if quality is None:
        return _skipped("no row has a truth ratio")
    value, low, high = float(getattr(quality, one.read)), None, None
    if one.read == "statistic":
        low, high = statistics.bootstrap(
            lambda drawn: tofu.ks_statistic(drawn["mine"], drawn["other"]), ratios, seed=key_of(0, one.id)
        )
        if (
            low is not None
        ):  # resamples of equal samples differ, so that a small distance would lie below its own interval
            low = min(low, value)
    return {"value": value, "n": quality.n, "ci_low": low, "ci_high": high}


def aligned(other: Columns, mine: Columns) -> Columns:
    """The numbers of another model in the order of the rows of this one; NaN where it lacks the example, or has another one there."""
    place = {int(index): at for at, index in enumerate(other["index"])}
    order = []
    for index, texts in zip(mine["index"], mine["texts"], strict=True):
        at = place.get(int(index))
        theirs = other["texts"][at] if at is not None else ()
        order.append(at if all(a is None or b is None or a == b for a, b in zip(texts, theirs, strict=False)) else None)
    return {
        key: np.array([np.nan if at is None else values[at] for at in order], np.float64)
        for key, values in other.items()
        if not isinstance(values, list)
    }


def _lacking(one: Metric, data: Columns, name: str) -> list[str]:
    return [f"{column}{NEEDED.get(column, '')}" for column in one.columns(name) if column not in data]


def _skipped(why: str) -> Result:
    return {"status": f"skipped: {why}"}


def _unknown(why: str) -> Result:
    return {"status": f"unknown: {why}"}


def distribution(reference: Data | None) -> dict[str, Any] | None:
    """Whether the forget set is of the same distribution as never-seen text, by how hard the reference finds both; None if unknown."""
    if reference is None or any("nll" not in reference.get(name, ()) for name in (FORGET, UNSEEN)):
        return None
    forget, unseen = (exposure.difficulty_proxy(reference[name]["nll"]) for name in (FORGET, UNSEEN))
    found = exposure.distribution_verdict(forget, unseen, seed=key_of(0, "distribution"))
    return found._asdict() if found else None
