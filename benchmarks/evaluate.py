"""The TOFU suite of `eval` against a naive loop: time, and the ratio.

    python benchmarks/evaluate.py MODEL DATA [--batch-size 16] [--examples N] [--runs 1]

DATA is a folder with forget.jsonl, retain.jsonl, real_authors.jsonl and world_facts.jsonl, such as ../shared/data/tofu. Both measure the
columns of Probability, ROUGE and Truth ratio of all four sets, tokenizing included, without writing files. The naive loop takes
the examples one by one and makes a pass for each metric: one for the probability of the answer (and of each wrong one, where they
are its alternatives), one each for the paraphrased and the wrong answers of the truth ratio, and transformers' `generate` for ROUGE.
Printed: seconds of each part (median of the runs), the ratio, and how far apart the two results are.
"""

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

SETS = ("forget", "retain", "real_authors", "world_facts")
COLUMNS = {"nll", "paraphrased_nll", "perturbed_nll", "rougeL_recall"}


def naive(subject: Any, sets: dict[str, Any], spent: dict[str, float]) -> list[float]:
    """One example and one metric at a time; the ROUGE and NLL of every row, to compare."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    from editkit.training.encoding import TEMPLATES, fill

    net, tokenizer, found = subject.net, subject.tokenizer, []

    def nll(question: str, answer: str) -> float:
        text, start = fill(TEMPLATES["question/answer"], question, answer)
        prompt = tokenizer(text[:start])["input_ids"]
        ids = torch.tensor([[0, *tokenizer(text)["input_ids"], 1]])
        labels = ids.clone()
        labels[0, : len(prompt) + 1] = -100
        return float(net(input_ids=ids, labels=labels).loss)

    def timed(name: str, work: Any) -> Any:
        started = time.perf_counter()
        result = work()
        spent[name] += time.perf_counter() - started
        return result

    with torch.no_grad():
        for name, examples in sets.items():
            choice = name in ("real_authors", "world_facts")
            for row in examples.rows:
                question, answer, wrong = row["question"], row["answer"], row["perturbed_answer"]
                found.append(timed("probability", lambda: nll(question, answer)))  # noqa: B023
                if choice:
                    timed("probability", lambda: [nll(question, one) for one in wrong])  # noqa: B023
            for row in examples.rows:
                question, wrong = row["question"], row["perturbed_answer"]
                right = row.get("paraphrased_answer", row["answer"])
                timed("truth ratio", lambda: [nll(question, one) for one in [right, *wrong]])  # noqa: B023
            scorer = RougeScorer(["rougeL"], use_stemmer=True)
            for row in examples.rows:
                text, start = fill(TEMPLATES["question/answer"], row["question"], row["answer"])
                ids = torch.tensor([[0, *tokenizer(text[:start])["input_ids"]]])
                mask = torch.ones_like(ids)

                def write(ids: Any = ids, mask: Any = mask, row: Any = row) -> float:
                    out = net.generate(ids, attention_mask=mask, max_new_tokens=200, do_sample=False, pad_token_id=1)
                    said = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
                    return scorer.score(row["answer"], said)["rougeL"].recall  # noqa: B023

                found.append(timed("ROUGE", write))
    return found


def ours(subject: Any, sets: dict[str, Any], batch_size: int) -> list[float]:
    from editkit.evaluation.measuring import measure, prepare

    found = []
    for name, examples in sets.items():
        rows = measure(subject, prepare(examples, name, subject, COLUMNS), batch_size=batch_size)
        found += [row["nll"] for row in rows] + [row["rougeL_recall"] for row in rows]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--examples", type=int)
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()

    from dataclasses import replace

    from editkit.evaluation.subject import opened
    from editkit.training.data import read_examples

    sets = {}
    for name in SETS:
        one = read_examples(given.data / f"{name}.jsonl")
        sets[name] = replace(one, rows=one.rows[: given.examples], numbers=one.numbers[: given.examples])
    with opened(given.model) as subject:
        ours(
            subject,
            {"forget": replace(sets["forget"], rows=sets["forget"].rows[:8], numbers=sets["forget"].numbers[:8])},
            8,
        )
        fast, parts = [], []
        for _ in range(given.runs):
            started = time.perf_counter()
            mine = ours(subject, sets, given.batch_size)
            fast.append(time.perf_counter() - started)
            spent: dict[str, float] = defaultdict(float)
            theirs = naive(subject, sets, spent)
            parts.append(dict(spent))
    slow = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    mine_median, total = statistics.median(fast), sum(slow.values())
    print(f"{sum(len(one) for one in sets.values())} examples, {given.runs} runs")
    print(f"eval        {mine_median:8.1f} s")
    for name, seconds in slow.items():
        print(f"naive       {seconds:8.1f} s  {name}")
    print(f"naive       {total:8.1f} s  in all: {total / mine_median:.1f} x")
    apart = np.abs(np.array(mine) - np.array(theirs))
    print(
        f"largest difference {apart.max():.2g}, rows that differ by more than 1e-4: {(apart > 1e-4).sum()} of {apart.size}"
    )


if __name__ == "__main__":
    main()
