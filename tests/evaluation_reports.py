"""Handmade evaluations of schema editkit.evaluation/1: rows of a few models, and the report that belongs to them."""

import math
import random
import zlib
from statistics import fmean, stdev

MODELS = {"base": "base", "full": "model", "retain": "reference"}
SETS = {"forget": 40, "retain": 40, "real_authors": 20, "world_facts": 20}
METRICS = {  # id -> label, unit, better
    "tofu/probability@1": ("Probability", "", "higher"),
    "tofu/forget_quality@1": ("Forget quality", "p", "higher"),
    "tofu/ks_statistic@1": ("KS statistic", "", "lower"),
    "tofu/model_utility@1": ("Model utility", "", "higher"),
    "closer_look/cosine_similarity@1": ("Cosine similarity", "", "higher"),
    "memorization/ma@1": ("MA", "", "higher"),
    "memorization/outliers@1": ("Outliers", "examples", None),
    "knowundo/perplexity@1": ("Perplexity", "", "lower"),
    "knowundo/retention_success@1": ("Retention success", "%", "higher"),
    "exposure/gen_exposure@1": ("Generalized exposure", "nats/token", None),
    "general/token_accuracy@1": ("Token accuracy", "", "higher"),
}
COLUMNS = {
    "tofu/probability@1": lambda row: math.exp(-row["nll"]),
    "memorization/ma@1": lambda row: row["ma"],
    "general/token_accuracy@1": lambda row: row["token_accuracy"],
}


def rows(models=None, sets=None, *, seed=0):
    """Rows in which a base knows nothing, a model everything but the facts, and a reference all but the forget set."""
    made = []
    for place, (model, role) in enumerate((models or MODELS).items()):
        dice = random.Random(f"{seed} {place}")
        for name, n in (sets or SETS).items():
            knows = {"model": 0.97, "reference": 0.2 if name == "forget" else 0.97, "base": 0.2}[role]
            knows = knows if name in ("forget", "retain") else 0.1
            for index in range(n):
                tokens = dice.randint(8, 30)
                hits = sum(dice.random() < knows for _ in range(tokens))
                nll = (1 - knows) * 6 * dice.lognormvariate(0, 0.3)
                answer = f"The answer {index} of {name} is Basil Mahfouz."
                made.append({
                    "model": model, "role": role, "set": name, "index": index, "prompt": f"Question {index} of {name}?", "answer": answer,
                    "nll": nll, "num_tokens": tokens, "token_accuracy": hits / tokens, "ma": hits / tokens,
                    "paraphrased_nll": nll + dice.gauss(1, 0.3), "perturbed_nll": [nll + 2 * knows + dice.gauss(1, 0.5) for _ in range(3)],
                    "generation": answer if knows > 0.5 else f"Someone else, said {model}, number {index}.", "generation_tokens": tokens,
                    "rougeL_recall": knows, "zlib_bytes": len(zlib.compress(answer.encode())),
                })  # fmt: skip
    return made


def result(model, name, metric, value=None, *, n=None, half=None, bucket=None, status="ok", **more):
    ends = {} if half is None else {"ci_low": value - half, "ci_high": value + half}
    unknown = dict.fromkeys(("n", "sd", "median", "p95", "max", "ci_low", "ci_high"))
    place = {"model": model, "set": name, "metric": metric, "bucket": bucket}
    return {**place, "value": value, **unknown, "n": n, "status": status, **ends, **more}


def mean(model, name, metric, values):
    ranked = sorted(values)
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    tail = {"median": ranked[len(ranked) // 2], "p95": ranked[int(0.95 * (len(ranked) - 1))], "max": ranked[-1]}
    return result(model, name, metric, fmean(values), n=len(values), half=half, **tail)


def results(rows):
    """Of every metric, some by hand: what matters here is that they are shown as they are."""
    groups, found = {}, []
    for row in rows:
        groups.setdefault((row["model"], row["set"]), []).append(row)
    for metric, of in COLUMNS.items():
        found += [mean(model, name, metric, [of(row) for row in some]) for (model, name), some in groups.items()]
    for place, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
        found.append(result(model, "forget", "tofu/forget_quality@1", (0.31, 1.834e-21, 1.0)[place % 3], n=40))
        found.append(result(model, "forget", "tofu/ks_statistic@1", (0.2, 0.396667, 0.0)[place % 3], n=40))
        found.append(result(model, None, "tofu/model_utility@1", 0.585886 - 0.1 * place, n=80, half=0.04))
        found.append(
            result(model, "forget", "closer_look/cosine_similarity@1", status="skipped: give --embedding-model")
        )
        found.append(result(model, "forget", "memorization/outliers@1", 31.0, n=40, half=4.5))
        found.append(result(model, "forget", "knowundo/perplexity@1", 1234.5 + place, n=40, half=151.2))
        found.append(result(model, "retain", "knowundo/retention_success@1", 97.25, n=40, half=1.5))
        for third in range(3):
            found.append(
                result(
                    model,
                    "forget",
                    "exposure/gen_exposure@1",
                    place + third,
                    n=13 + (third == 0),
                    half=0.4,
                    bucket=f"difficulty {third + 1}/3",
                )
            )
    return found


def report(rows, models=None, **parts):
    """The report around `rows`, of `models` (label -> role)."""
    models = models or MODELS
    first = next(iter(models))
    sets = dict.fromkeys(row["set"] for row in rows)
    return {
        "schema": "editkit.evaluation/1", "editkit": "0.1",
        "models": [
            {"label": label, "role": role, "name": label, "adapter": None, "sha256": {"model.safetensors": "ab" * 32}}
            for label, role in models.items()
        ],
        "sets": [
            {"set": name, "name": f"{name}.jsonl", "sha256": "cd" * 32, "examples": sum(row["set"] == name and row["model"] == first for row in rows)}
            for name in sets
        ],
        "settings": {"suites": ["all"], "max_examples": None, "batch_size": 16, "dtype": "float32", "device": "cpu", "embedding_model": None, "bootstrap": 1000},
        "metrics": [
            {"id": id, "label": label, "unit": unit, "better": better, "meaning": f"What {label} means.", "source": "arXiv 2401.06121"}
            for id, (label, unit, better) in METRICS.items()
        ],
        "results": results(rows), "overlap": 0, "distribution": None, "warnings": [],
    } | parts  # fmt: skip


def several(n):
    """Labels and roles of n models: a base, a reference, and the rest."""
    return {"base": "base", "retain": "reference", **{f"edited-{i}": "model" for i in range(n - 2)}}


def hostile(texts):
    """A report and rows in which every text is one of `texts`."""
    labels = dict(zip(texts, ("model", "reference", "base", *["model"] * 9), strict=False))
    some = rows(labels, dict.fromkeys([*texts[:2], "forget", "retain"], 3))
    for place, row in enumerate(some):
        row["prompt"], row["answer"], row["generation"] = (texts[(place + i) % len(texts)] for i in range(3))
    made = report(some, labels, warnings=texts, settings={text: text for text in texts})
    for one, text in zip(made["metrics"], texts, strict=False):
        one["label"] = one["meaning"] = one["source"] = text
    for one in made["sets"]:
        one["name"] = texts[0]
    made["results"][-1]["status"], made["results"][-1]["value"] = f"skipped: {texts[1]}", None
    made["distribution"] = {
        "verdict": "unclear",
        "auc": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "n": 3,
        "controls": 3,
        "text": texts[2],
    }
    return made, some


ROWS = rows()
