"""LoRA adapters combined with each other, without their base: sum_i weight_i * scale_i * B_i @ A_i as one adapter.

The methods are those of peft's `add_weighted_adapter`:

cat     the factors side by side, [s_1 B_1, s_2 B_2, ...] @ [A_1; A_2; ...]: exact, of rank r_1 + r_2 + ...
svd     the change of a given rank that is nearest to that sum (Eckart and Young, 1936), from the small factors alone.
linear, ties, dare_linear, dare_ties, magnitude_prune
        mix the A with each other and the B with each other. Their product is no mixture of the changes: it also has the
        cross terms B_i @ A_j, which may be as large as the sum. `relative_error` says how far off it is.
ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd
        mix the changes themselves, and take the nearest change of a given rank to that; a block of rows at a time.

Scales are those of each adapter and module, rsLoRA, rank_pattern and alpha_pattern included (peft scales what it makes of
rsLoRA by another sqrt(r)). The result has scale 1, in float32 whatever the inputs had: sixteen bits would round the sum.
"""

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from editkit.adapters.agreement import Module, check_bases, check_modules, common_settings, embedding_copies
from editkit.adapters.factorize import check_rank, factorize
from editkit.adapters.mixing import SPARSE, Mix, ReadRows
from editkit.adapters.save import check_new_folder, common_rank, new_adapter
from editkit.adapters.sums import Term, l2, l2_of_sum, nearest, stacked
from editkit.arithmetic.codec import decode
from editkit.arithmetic.draws import key_of
from editkit.checkpoint import provenance
from editkit.checkpoint.adapter import Adapter, open_adapter
from editkit.checkpoint.blocks import Progress, counted, ordered_map
from editkit.errors import EditError, NothingChanged, listed

MIXED = ("linear", *SPARSE)
_ZERO = "the combination changes nothing, it is zero in every module: give other weights"
METHODS = ("cat", "svd", *MIXED, *(f"{name}_svd" for name in SPARSE))


class Combined(NamedTuple):
    """b [out, rank] and a [rank, in] in float64.

    tail: L2 of what they lack of the weighted sum, where that is known beforehand. residual: of a mixture of changes, the
    share of its energy that they lack.
    """

    b: np.ndarray
    a: np.ndarray
    tail: float | None = None
    residual: float | None = None


def combine(
    adapters: Mapping[str | os.PathLike[str], float],
    output: str | os.PathLike[str] | None,
    *,
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    allow_other_base: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the weighted combination of LoRA `adapters` (folder or Hub id -> weight) to the folder `output`, for peft.

    >>> combine({"math-lora": 1.0, "toxic-lora": -0.5}, "both", method="svd", rank=16)["relative_error"]  # doctest: +SKIP
    0.031

    method: see the head of this file. rank: of svd and the methods that end in it, by default the largest that any adapter
    has in a module. density: share of the elements that ties, dare and magnitude_prune keep, 0 to 1; it has no default. seed:
    of what dare drops. allow_other_base: combine adapters that name different bases. A module that only some adapters have
    gets the combination of these. dry_run: check all that needs no weights, read and write none; `output` may be None.
    `progress` counts modules.

    Returns {"method", "relative_error", "modules", "left_out", "notes", "warnings", "output"}. relative_error: L2 of the difference
    between the result and the weighted sum, over the L2 of that sum; None where the sum is zero. modules: rows of "module",
    "rank", "l2" of the sum, "relative_error" and, for methods that end in _svd, "residual_energy", the share of the energy
    of the mixture that the rank cost. left_out: modules whose change is zero. notes: where a rank came out smaller than asked
    for. A dry run returns {"method", "modules", "bytes", "output"}: rows of "module", "rank" and "bytes" of the factors, each
    the most that it may come to, and the bytes of all tensors.

    Raises EditError that lists everything that does not fit together, NothingChanged where every change is zero.
    """
    _check_settings(adapters, method, rank, density)
    if output is None and not dry_run:
        raise EditError("no output folder given: name one, or ask for a dry run")
    with ExitStack() as stack:
        opened = [open_adapter(source) for source in adapters]
        for one in opened:
            stack.callback(one.checkpoint.close)
        if not allow_other_base:
            check_bases(opened)
        modules = check_modules(opened, same_rank=method in MIXED)
        if rank is not None:
            check_rank(rank, {path: (module.out, module.inner) for path, module in modules.items()})
        inputs, weights = [one.checkpoint for one in opened], [float(weight) for weight in adapters.values()]
        if output is not None:
            check_new_folder(output, inputs)
        wide = any(info.dtype == "F64" for one in inputs for info in one.tensors.values())
        stored, dtype = (np.float64, "F64") if wide else (np.float32, "F32")
        if dry_run or output is None:
            width = np.dtype(stored).itemsize
            return {**_planned(opened, weights, modules, method, rank, width), "output": output and os.fspath(output)}
        advance, rows = counted(progress, len(modules)), []

        def work(path: str) -> tuple[str, np.ndarray, np.ndarray, dict[str, Any]]:
            terms = _terms(opened, weights, path)
            found = _combined(terms, modules[path], method, rank, density, seed, path)
            a, b = found.a.astype(stored), found.b.astype(stored)
            return path, a, b, {"module": path, "rank": len(a), **_compared(terms, found, a, b)}

        with new_adapter(output, inputs) as writer:
            for checkpoint in inputs:
                checkpoint.start_hashing()
            with ordered_map(work, modules, threads) as results:
                for path, a, b, row in results:
                    if row["rank"]:
                        writer.add(path, a, b, dtype, modules[path].embedding)
                    rows.append(row)
                    advance(1)
            if not writer.ranks:
                raise NothingChanged(_ZERO)
            for name, one in embedding_copies(opened).items():
                writer.take(one.checkpoint, one.copies[name])
            record = provenance.record(
                "combine-adapters",
                {f"adapter {index}": one for index, one in enumerate(inputs, 1)},
                seed=seed if method.startswith("dare") else None,
                method=method,
                weights=weights,
                rank=rank,
                density=density,
                allow_other_base=allow_other_base,
            )
            writer.finish(common_settings(opened), record)
    return _result(method, rank, rows, os.fspath(output))


def _check_settings(adapters: Mapping[Any, float], method: str, rank: int | None, density: float | None) -> None:
    if method not in METHODS:
        raise EditError(f"method {method!r} is unknown: choose one of {listed(METHODS)}")
    problems = [] if adapters else ["no adapter is given"]
    problems += [
        f"the weight of {os.fspath(source)} is {weight}, not a finite number"
        for source, weight in adapters.items()
        if not isinstance(weight, int | float) or not math.isfinite(weight)
    ]
    sparse = method.removesuffix("_svd") in SPARSE
    if density is not None and not sparse:
        problems.append(f"{method} has no density")
    if sparse and density is None:
        problems.append(f"{method} needs the share of the elements that it keeps, such as --set density=0.5")
    elif sparse and not (isinstance(density, int | float) and 0 <= density <= 1):
        problems.append(f"{method} needs a density from 0 to 1, such as --set density=0.5, not {density}")
    if rank is not None and not method.endswith("svd"):
        problems.append(f"{method} has no rank of its own (svd has)")
    elif rank is not None and not isinstance(rank, int):
        problems.append(f"the rank is {rank!r}, not a whole number")
    if problems:
        raise EditError(f"these adapters cannot be combined so: {listed(problems)}")


def _planned(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    modules: Mapping[str, Module],
    method: str,
    rank: int | None,
    width: int,
) -> dict[str, Any]:
    """The largest ranks that the modules may get, and what they then take with numbers of `width` bytes."""
    ranks: dict[str, int] = {}
    for path, module in modules.items():
        own = {
            number: one.checkpoint.tensors[one.modules[path].a].shape[0]
            for number, one in enumerate(adapters)
            if path in one.modules
        }
        together = sum(count for number, count in own.items() if weights[number])
        most = together if method == "cat" else max(own.values())
        if method.endswith("svd"):
            most = min(rank or most, module.out, module.inner, *([together] if method == "svd" else []))
        if together:
            ranks[path] = most
    if not ranks:
        raise NothingChanged(_ZERO)
    filled = common_rank(ranks)
    rows: list[dict[str, Any]] = [
        {"module": path, "rank": count, "bytes": (filled or count) * (modules[path].out + modules[path].inner) * width}
        for path, count in ranks.items()
    ]
    copies = [one.checkpoint.tensors[one.copies[name]].nbytes for name, one in embedding_copies(adapters).items()]
    return {"method": method, "modules": rows, "bytes": sum(row["bytes"] for row in rows) + sum(copies)}


def _terms(adapters: Sequence[Adapter], weights: Sequence[float], path: str) -> list[Term]:
    terms = []
    for adapter, weight in zip(adapters, weights, strict=True):
        if change := adapter.modules.get(path):
            infos = [adapter.checkpoint.tensors[name] for name in (change.a, change.b)]
            a, b = (decode(adapter.checkpoint.array(one.name), one.dtype, np.empty(one.shape)) for one in infos)
            if not (np.isfinite(a).all() and np.isfinite(b).all()):
                raise EditError(f"{adapter.label} has NaN or Inf in the factors of {path}: leave this adapter out")
            terms.append(Term(a, b, change.scale, weight))
    return terms


def _combined(
    terms: list[Term], module: Module, method: str, rank: int | None, density: float | None, seed: int, path: str
) -> Combined:
    rank = rank or max(len(one.a) for one in terms)
    if method in ("cat", "svd"):
        left, right = stacked([one for one in terms if one.weight] or terms)
        if not l2_of_sum(terms):
            return Combined(left[:, :0], right[:0], 0.0)
        return Combined(left, right, 0.0) if method == "cat" else Combined(*nearest(left, right, rank))
    rule = partial(Mix, method=method.removesuffix("_svd"), density=density, seed=seed)
    if method in MIXED:
        roots = [math.sqrt(abs(one.factor)) for one in terms]
        signed = [math.copysign(root, one.factor) for root, one in zip(roots, terms, strict=True)]
        a, b = (
            rule([_rows_of(one) for one in factors], factors[0].shape, weights, name=f"{path}.{side}").rows(
                0, len(factors[0])
            )
            for side, factors, weights in (("A", [t.a for t in terms], signed), ("B", [t.b for t in terms], roots))
        )
        return Combined(b, a) if a.any() and b.any() else Combined(b[:, :0], a[:0])
    changes = [_product((one.scale * one.b).astype(np.float32), one.a.astype(np.float32)) for one in terms]
    mix = rule(changes, (module.out, module.inner), [one.weight for one in terms], name=path)
    found = factorize(mix.rows, module.out, module.inner, rank=rank, seed=key_of(seed, path))
    return Combined(found.b.astype(np.float64), found.a.astype(np.float64), residual=found.residual)


def _rows_of(matrix: np.ndarray) -> ReadRows:
    return lambda first, last: matrix[first:last]


def _product(b: np.ndarray, a: np.ndarray) -> ReadRows:
    return lambda first, last: b[first:last] @ a


def _compared(terms: list[Term], found: Combined, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The L2 of the weighted sum, and of its difference to the stored factors a and b over that."""
    whole = l2_of_sum(terms)
    if found.tail is None:
        left, right = stacked(terms)
        lost = l2(np.hstack([left, -b.astype(np.float64)]), np.vstack([right, a.astype(np.float64)]))
    else:  # b a - b' a' = (b - b') a + b' (a - a'): nothing here is the difference of large numbers
        rounded = [(found.b - b, found.a), (b.astype(np.float64), found.a - a)]
        lost = math.hypot(found.tail, *(l2(*pair) for pair in rounded if all(one.any() for one in pair)))
    row = {"l2": whole, "relative_error": lost / whole if whole else None}
    return row if found.residual is None else {**row, "residual_energy": found.residual}


def _result(method: str, rank: int | None, rows: list[dict[str, Any]], output: str) -> dict[str, Any]:
    whole = math.hypot(*(row["l2"] for row in rows))
    lost = math.hypot(*(row["l2"] * (row["relative_error"] or 0) for row in rows))
    share, notes, warnings = lost / whole if whole else None, [], []
    if method in MIXED and share is not None and share > 0.01:
        warnings.append(
            f"{method} mixes the factors A and B apart, which is not the sum of the changes: the result differs from the weighted sum by "
            f"{share:.0%} of its L2; cat is exact, svd the nearest of a rank"
        )
    kept = [row for row in rows if row["rank"]]
    left_out = [row["module"] for row in rows if not row["rank"]]
    if rank is not None and (less := sorted({row["rank"] for row in kept if row["rank"] < rank})):
        count = sum(row["rank"] < rank for row in kept)
        ranks = f"{less[0]} to {less[-1]}" if less[1:] else f"{less[0]}"
        notes.append(
            f"rank {ranks}, not {rank}, in {count} of {len(kept)} modules: what is combined there has no larger one"
        )
    return {
        "method": method,
        "relative_error": share,
        "modules": kept,
        "left_out": left_out,
        "notes": notes,
        "warnings": warnings,
        "output": output,
    }
