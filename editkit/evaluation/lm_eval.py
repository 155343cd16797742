"""General ability: tasks of EleutherAI's lm-evaluation-harness, where it is installed (https://github.com/EleutherAI/lm-evaluation-harness).

>>> run("model", ["arc_easy"])  # doctest: +SKIP
{'arc_easy': {'acc,none': {'value': 0.71, 'stderr': 0.0093, 'n': 2376}, ...}}
"""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from editkit.errors import EditError, listed
from editkit.training.devices import place_of
from editkit.training.loading import split
from editkit.training.trainer import seeded

Numbers = dict[str, dict[str, float | None]]


def run(
    source: str | os.PathLike[str], tasks: Sequence[str], *, device: str = "auto", batch_size: int = 16
) -> dict[str, Numbers]:
    """What the harness measures: for each task or group "metric,filter" as it names them, with value, standard error and n.

    source: MODEL or MODEL+ADAPTER, folders or Hub ids. The standard error is the harness's own; it and the number n of questions are
    None where the harness gives none.
    Raises EditError where lm-evaluation-harness is not installed, and for what it refuses, such as an unknown task.
    """
    check_installed()
    from lm_eval import simple_evaluate

    model, adapter = (part and os.path.expanduser(part) for part in split(source))
    arguments = {"pretrained": model} | ({"peft": adapter} if adapter else {})
    place = place_of(device)
    with seeded(0):  # the harness seeds the global generators, which are given back here
        try:
            found = simple_evaluate(
                model="hf",
                model_args=arguments,
                tasks=list(tasks),
                batch_size=batch_size,
                device=place,
                log_samples=False,
            )
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise EditError(f"lm-evaluation-harness does not run {listed(tasks)} on {source} ({error})") from error
    counts: Mapping[str, Any] = found.get("n-samples", {})
    return {task: _measured(row, counts.get(task, {}).get("effective")) for task, row in found["results"].items()}


def check_installed() -> None:
    """Raise EditError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EditError("--lm-eval needs lm-evaluation-harness: pip install 'lm_eval[hf]'")


def _measured(row: Mapping[str, Any], n: int | None) -> Numbers:
    """The numbers of one task; the harness puts "N/A" where a standard error is not defined."""
    found: Numbers = {}
    for name, value in row.items():
        metric, comma, kind = name.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            stderr = row.get(f"{metric}_stderr,{kind}")
            stderr = float(stderr) if isinstance(stderr, (int, float)) else None
            found[name] = {"value": float(value), "stderr": stderr, "n": n}
    return found
