"""Two trajectories of `unlearn` on tofu-tiny: four forget sets one after the other, and forget sets that are in or out of distribution.

    python benchmarks/unlearn_trajectories.py continual WORKDIR       four sets of 50 of the 200 rows; writes WORKDIR/continual
    python benchmarks/unlearn_trajectories.py distribution WORKDIR    gradient ascent alone, without a floor to speak of, on 50 rows

In distribution: 50 rows of TOFU, about authors like those that are kept. Out of distribution: 50 short stories that stories260k wrote, with
their first words as the question, which tofu-tiny/full first learns by heart beside what it knows (WORKDIR/both). After arXiv 2411.04388,
whose models and data are larger. Needs the optional folder ../shared (--shared) and WORKDIR/stories of `unlearn.py stories`.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import unlearn_inputs as inputs
from unlearn_tables import table

import editkit

SETS, ROWS, WORDS = 4, 50, 40
LOOKS, FLOOR = 2, 0.02


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def continual(work: Path, shared: Path, seed: int) -> None:
    data, models, rows = shared / "data" / "tofu", shared / "models" / "tofu-tiny", []
    parts = [work / f"forget-{number}.jsonl" for number in range(1, SETS + 1)]
    for number, part in enumerate(parts):
        inputs.write(part, lines(data / "forget.jsonl")[number * ROWS : (number + 1) * ROWS])
    report = editkit.unlearn(
        models / "full", work / "continual", forget=parts, retain=data / "retain.jsonl", reference=models / "retain", seed=seed, device="cpu"
    )  # fmt: skip
    found = {(point["after"], point["set"]): point for point in report["trajectory"]}
    sets = list(dict.fromkeys(name for _, name in found))
    for after in dict.fromkeys(name for name, _ in found):
        points = [found[after, name] for name in sets]
        rows.append([after or "before", *(f"{one['value']:.2f} ± {one['sd']:.2f}" for one in points)])
    print(f"MA (mean ± standard deviation over the examples) after each set; seed {seed}\n")
    print(table(["after", *(f"{name} (n = {found[None, name]['n']})" for name in sets)], rows))


def stories(work: Path) -> list[dict[str, str]]:
    made = []
    for story in lines(work / "stories" / "retain.jsonl"):
        words = story["text"].split()
        if len(words) >= WORDS:
            made.append({"question": " ".join(words[:6]), "answer": " ".join(words[6:WORDS])})
    distinct = {one["question"]: one for one in made}
    return list(distinct.values())[:ROWS]


def distribution(work: Path, shared: Path, seeds: list[int]) -> None:
    data, models = shared / "data" / "tofu", shared / "models" / "tofu-tiny"
    sets = {"in": work / "in.jsonl", "out": work / "out.jsonl"}
    inputs.write(sets["in"], lines(data / "forget.jsonl")[:ROWS])
    inputs.write(sets["out"], stories(work))
    if not (work / "both").exists():
        every = [*lines(sets["out"]) * 3, *lines(data / "forget.jsonl"), *lines(data / "retain.jsonl")]
        inputs.write(work / "every.jsonl", [{key: row[key] for key in ("question", "answer")} for row in every])
        editkit.finetune(models / "full", work / "every.jsonl", work / "both", epochs=6, batch_size=16, device="cpu")
    rows = []
    for name, path in sets.items():
        for seed in seeds:
            output = work / f"{name}-{seed}"
            report = editkit.unlearn(
                work / "both", output, forget=path, retain=data / "retain.jsonl", reference=models / "retain", method="ga", retain_loss="none",
                lr=1e-4, steps=120, eval_every=LOOKS, floor=FLOOR, stop="ma(forget) <= level", seed=seed, device="cpu",
            )  # fmt: skip
            points = report["tasks"][0]["points"]
            rows.append((name, seed, points, report["level"]["ma"]))
    print(table(["set", "seed", "MA before", "level", "steps to the level", "MA there", "retention there", *(f"retention at MA ≤ {at}" for at in (0.8, 0.5))], [summary(*row) for row in rows]))  # fmt: skip
    for name in sets:
        ends = [points[-1] for set_name, _, points, _ in rows if set_name == name]
        kept = [one["values"]["retention"] for one in ends]
        print(
            f"{name}: retention at the end {statistics.fmean(kept):.3f} ({min(kept):.3f} to {max(kept):.3f}), steps {[one['step'] for one in ends]}"
        )


def summary(name: str, seed: int, points: list[dict[str, Any]], level: float) -> list[str]:
    def kept_at(share: float) -> str:
        found = next((one for one in points if one["values"]["ma(forget)"] <= share), None)
        return f"{found['values']['retention']:.3f} (step {found['step']})" if found else "–"

    first, last = points[0]["values"], points[-1]["values"]
    return [
        name, str(seed), f"{first['ma(forget)']:.2f}", f"{level:.2f}", str(points[-1]["step"]), f"{last['ma(forget)']:.2f}",
        f"{last['retention']:.3f}", kept_at(0.8), kept_at(0.5),
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("what", choices=["continual", "distribution"])
    options.add_argument("work", type=Path)
    options.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    options.add_argument("--seeds", type=int, nargs="+", default=[0])
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.what == "continual":
        continual(given.work, given.shared, given.seeds[0])
    else:
        distribution(given.work, given.shared, given.seeds)


if __name__ == "__main__":
    main()
