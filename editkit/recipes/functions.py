"""The functions that a step of a recipe may call, and the arguments that it may write for them.

>>> "unlearn" in STEPS, "open_checkpoint" in STEPS
(True, False)
>>> list(parameters("verify_patch"))
['patch', 'model']
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any

import editkit
from editkit.checkpoint.blocks import Progress

STEPS = tuple(
    name for name in editkit.__all__ if name[0].islower() and name not in ("open_checkpoint", "write_checkpoint", "run")
)
"""The functions whose arguments are all files, numbers and texts."""
_OF_THE_RUNNER = ("output", "progress", "stage", "observe", "threads", "resume", "dry_run", "keep", "data_sha256")
_SUFFIXES = {"create_patch": ".editpatch", "task_vector": ".safetensors"}
Source = str | os.PathLike[str]


def parameters(name: str) -> dict[str, Parameter]:
    """The arguments that a recipe may write for a function of STEPS. What the runner gives is left out: output, progress and the like.

    `bake` and `forget` take those of `negate` that they hand on, and `diff` also `fail_if`.
    """
    own = inspect.signature(function(name)).parameters
    found = {one.name: one for one in own.values() if one.kind is not Parameter.VAR_KEYWORD}
    if len(found) < len(own):  # **settings, which are those of `negate`
        strength = ("alpha", "alpha_for", "vector_base") if name == "bake" else ()
        others = inspect.signature(editkit.negate).parameters.values()
        found |= {
            one.name: one
            for one in others
            if one.kind is Parameter.KEYWORD_ONLY and one.name not in (*found, *strength)
        }
    if name == "merge":  # a config is a file of paths that nobody would look at for changes
        weights = Mapping[Source, float | Mapping[str, Any]]
        found |= {
            "base": found["base"].replace(annotation=Source),
            "vectors": found["vectors"].replace(annotation=weights),
        }
    for key in {"verify": ("inputs",), "task_vector": ("base",)}.get(name, ()):  # looked for by itself it is in no key
        found[key] = found[key].replace(default=Parameter.empty)
    for key in {"embedding_model", "nli_model"} & found.keys():  # a folder or a Hub id too
        found[key] = found[key].replace(annotation=Source | None)
    return {key: one for key, one in found.items() if not _given(name, one)}


def _given(name: str, parameter: Parameter) -> bool:
    """Whether the runner gives it. The patch of an edit is a step of its own, `create_patch`."""
    if parameter.name == "patch":
        return parameter.default is None and parameter.kind is Parameter.KEYWORD_ONLY
    return parameter.name in _OF_THE_RUNNER and (name, parameter.name) != ("verify", "output")


def described(name: str) -> str:
    """The docstring of a function of STEPS."""
    return inspect.getdoc(getattr(editkit, name)) or ""


def output_name(name: str, step: str) -> str | None:
    """What the output of a step is called, None where the function writes nothing. Reports name a model by it.

    >>> output_name("unlearn", "edited"), output_name("task_vector", "tau"), output_name("inspect", "seen")
    ('edited', 'tau.safetensors', None)
    """
    writes = "output" in inspect.signature(function(name)).parameters and name != "verify"
    return f"{step}{_SUFFIXES.get(name, '')}" if writes else None


def function(name: str) -> Callable[..., Any]:
    """What a step calls."""
    return reported_diff if name == "diff" else getattr(editkit, name)


def takes(name: str, argument: str) -> bool:
    """Whether a function has an argument of those that the runner gives."""
    handed_on = {"bake": ("threads", "progress"), "forget": ("threads",)}.get(name, ())
    return argument in inspect.signature(function(name)).parameters or argument in handed_on


def reported_diff(
    base: Source,
    edited: Source,
    output: Source,
    *,
    only: str | Sequence[str] = (),
    mask: Source | None = None,
    allow_other_base: bool = False,
    spectral: bool = False,
    fail_if: str | Sequence[str] = (),
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`editkit diff` with its report in the folder `output`, and in `violations` of the result the rules that hold, see `diffing/gates.py`."""
    from editkit.diffing.gates import evaluate, parse_rule
    from editkit.diffing.rendering import write_report
    from editkit.diffing.rendering.wording import audit

    rules = [parse_rule(rule) for rule in ([fail_if] if isinstance(fail_if, str) else fail_if)]
    report = editkit.diff(
        base, edited, only=only, mask=mask, allow_other_base=allow_other_base, spectral=spectral, hashes=True,
        threads=threads, progress=progress,
    )  # fmt: skip
    violations = [str(one) for one in evaluate(rules, report)]
    if report.get("mask", {}).get("outside"):
        violations.insert(0, audit(report))
    write_report(report, Path(output))
    return {**report, "violations": violations}
