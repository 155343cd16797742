"""`unlearn` on tofu-tiny, four forget sets of 50 rows one after the other, by the defaults: what became of each, and of the retain set.

    python benchmarks/unlearn_continual.py WORKDIR

Prints the table and leaves the report, with its picture, in WORKDIR/continual. In and out of distribution is `recipes/in-out-distribution.yaml`.
Needs the optional folder ../shared (--shared).
"""

import argparse
import json
from pathlib import Path

import unlearn_inputs as inputs
from unlearn_tables import table

import editkit

SETS, ROWS = 4, 50


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path)
    options.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    data, models = given.shared / "data" / "tofu", given.shared / "models" / "tofu-tiny"
    forget = [json.loads(line) for line in (data / "forget.jsonl").read_text("utf-8").splitlines()]
    parts = [given.work / f"forget-{number}.jsonl" for number in range(1, SETS + 1)]
    for number, part in enumerate(parts):
        inputs.write(part, forget[number * ROWS : (number + 1) * ROWS])
    report = editkit.unlearn(
        models / "full", given.work / "continual", forget=parts, retain=data / "retain.jsonl", reference=models / "retain", seed=given.seed, device="cpu"
    )  # fmt: skip
    found = {(point["after"], point["set"]): point for point in report["trajectory"]}
    sets, rows = list(dict.fromkeys(name for _, name in found)), []
    for after in dict.fromkeys(name for name, _ in found):
        points = [found[after, name] for name in sets]
        rows.append([after or "before", *(f"{one['value']:.2f} ± {one['sd']:.2f}" for one in points)])
    print(f"MA (mean ± standard deviation over the examples) after each set; seed {given.seed}\n")
    print(table(["after", *(f"{name} (n = {found[None, name]['n']})" for name in sets)], rows))


if __name__ == "__main__":
    main()
