"""The teacher-forced pass: all that a model says of given texts, one forward pass per text, the true tokens as input.

>>> [one.hits.mean() for one in teacher_forced(net, rows)]  # doctest: +SKIP
[1.0, 0.25]
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from editkit.checkpoint.blocks import Progress
from editkit.errors import EditError
from editkit.training.encoding import IGNORED, Tokens, collate

if TYPE_CHECKING:
    import torch

_CHUNK = 1 << 26  # logits looked at together, in float32
Other = Callable[[], AbstractContextManager[Any]]


class Scored(NamedTuple):
    """What a model says of the L labelled tokens of one text.

    log_probs: float32 [L], nats. tokens: int64 [L], the true ones. greedy: int64 [L], the most likely ones. mean, sd: float32 [L],
    of the log-probability over the vocabulary, under the model's own distribution; None unless asked for. kl: float32 [L], KL(other || model) in nats; None
    without another model.
    """

    log_probs: np.ndarray
    tokens: np.ndarray
    greedy: np.ndarray
    mean: np.ndarray | None
    sd: np.ndarray | None
    kl: np.ndarray | None

    @property
    def nll(self) -> float:
        """Mean over the tokens, nats."""
        return -float(self.log_probs.mean(dtype=np.float64))

    @property
    def hits(self) -> np.ndarray:
        """bool [L]: whether the true token is the most likely one."""
        return self.greedy == self.tokens


def teacher_forced(
    net: Any,
    rows: Sequence[Tokens],
    *,
    batch_size: int = 16,
    spread: bool = False,
    other: Other | None = None,
    where: Callable[[int], str] = lambda index: f"example {index}",
    progress: Progress | None = None,
) -> list[Scored]:
    """Score every text, in the order given; the longest go first, so that batches have little padding and memory runs out early.

    spread: also `mean` and `sd`. other: gives, as a context, a second model on the same device to take the KL divergence from. where: what
    to call a text in an error. Raises EditError where the model's output is NaN: which text, and which module gives the first one.
    """
    import torch

    found: dict[int, Scored] = {}
    device = next(net.parameters()).device
    with evaluating(net), torch.inference_mode():
        sharing = not by_length(net, max((len(row.ids) for row in rows), default=0))
        size = batch_size if sharing else 1  # padding would make shorter texts longer
        for indices, shared in _batches(rows, size, share=other is None):
            batch = [rows[index] for index in indices]
            try:
                logits = _after_prompts(net, batch, shared, device) if shared and sharing else None
                sharing = logits is not None or not shared
                scored = _scored(*(logits or _whole(net, batch, device, other)), batch, spread)
            except torch.OutOfMemoryError as error:
                raise EditError(
                    f"the device ran out of memory at {len(batch)} texts of up to {max(len(row.ids) for row in batch)} tokens: "
                    "lower --batch-size"
                ) from error
            for index, one in zip(indices, scored, strict=True):
                if np.isnan(one.log_probs).any():
                    raise EditError(f"{where(index)}: the model's output is NaN, {first_nan(net, rows[index], device)}")
                found[index] = one
            if progress:
                progress(len(found), len(rows))
    return [found[index] for index in range(len(rows))]


def _batches(rows: Sequence[Tokens], size: int, share: bool) -> Iterator[tuple[list[int], int]]:
    """Which texts go together, and how many tokens of a prompt they may share; the longest first.

    Answers to one question go through the model after its prompt, which goes through once; prompts in a batch have one length, so
    that nothing has to be padded before an answer.
    """
    starts = [next(at for at, label in enumerate(row.labels) if label != IGNORED) for row in rows]
    questions: dict[tuple[int, ...], list[int]] = {}
    for index, (row, start) in enumerate(zip(rows, starts, strict=True)):
        questions.setdefault(tuple(row.ids[:start]), []).append(index)
    alone: list[int] = []
    several: list[tuple[int, list[int]]] = []
    for prompt, some in questions.items():
        some.sort(key=lambda index: (-len(rows[index].ids), index))
        parts = (
            [some[at : at + size] for at in range(0, len(some), size)]
            if share and len(prompt) > 1
            else [[i] for i in some]
        )
        for part in parts:
            if len(part) > 1:
                several.append((len(prompt), part))
            else:
                alone += part
    alone.sort(key=lambda index: (-len(rows[index].ids), index))
    for at in range(0, len(alone), size):
        yield alone[at : at + size], 0
    for length, same in groupby(sorted(several, key=lambda one: (-one[0], one[1])), key=lambda one: one[0]):
        batch: list[int] = []
        for _, part in same:
            if len(batch) + len(part) > size:
                yield batch, length
                batch = []
            batch += part
        yield batch, length


@contextmanager
def evaluating(net: Any) -> Iterator[None]:
    """Evaluation mode, and the mode from before afterwards."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


Logits = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor | None"]
"""Of the labelled tokens of a batch, one text after the other: logits [tokens, vocabulary], the true tokens, another model's logits."""


def _whole(net: Any, rows: Sequence[Tokens], device: Any, other: Other | None) -> Logits:
    """Every text from its beginning."""
    batch = {name: tensor.to(device) for name, tensor in collate(rows).items()}
    labels = batch.pop("labels")[:, 1:]
    inside = labels != IGNORED
    logits = net(**batch, use_cache=False).logits[:, :-1][inside]
    theirs = None
    if other is not None:
        with other() as second, evaluating(second):
            theirs = second(**batch, use_cache=False).logits[:, :-1][inside]
    return logits, labels[inside], theirs


def _after_prompts(net: Any, rows: Sequence[Tokens], length: int, device: Any) -> Logits | None:
    """Each prompt once, and then the answers with its keys and values; None where the model keeps more than those, or cuts them."""
    import torch
    from transformers.cache_utils import DynamicCache, DynamicLayer

    prompts = list(dict.fromkeys(tuple(row.ids[:length]) for row in rows))
    which = torch.tensor([prompts.index(tuple(row.ids[:length])) for row in rows], device=device)
    found = net(input_ids=torch.tensor(prompts, device=device), use_cache=True)
    cache = getattr(found, "past_key_values", None)  # of a model with a state instead: none
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.batch_select_indices(which)
    first = found.logits[which, -1:]
    answers = collate([Tokens(row.ids[length:], row.labels[length:]) for row in rows])
    ids, labels = answers["input_ids"].to(device), answers["labels"].to(device)
    if ids.shape[1] > 1:  # the last token is only predicted
        mask = torch.cat([torch.ones(len(rows), length, dtype=torch.int64), answers["attention_mask"][:, :-1]], 1)
        rest = net(input_ids=ids[:, :-1], attention_mask=mask.to(device), past_key_values=cache, use_cache=True).logits
        first = torch.cat([first, rest], 1)
    inside = labels != IGNORED
    return first[inside], labels[inside], None


def by_length(net: Any, longest: int) -> bool:
    """Whether what a model makes of a token depends on how long the text becomes: rotary embeddings that stretch with it.

    longest: tokens; up to the length that the model was first trained with nothing stretches.
    """
    config = net.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    first = getattr(config, "original_max_position_embeddings", None) or getattr(config, "max_position_embeddings", 0)
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    return any(
        one.get("rope_type") in ("dynamic", "longrope")
        and longest > (one.get("original_max_position_embeddings") or first or 0)
        for one in kinds
    )


def _scored(
    logits: "torch.Tensor", tokens: "torch.Tensor", theirs: "torch.Tensor | None", rows: Sequence[Tokens], spread: bool
) -> list[Scored]:
    import torch

    step = max(1, _CHUNK // logits.shape[-1])
    parts = [
        _tokens(
            logits[at : at + step], tokens[at : at + step], spread, None if theirs is None else theirs[at : at + step]
        )
        for at in range(0, len(tokens), step)
    ]
    columns = [None if column[0] is None else torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    ends = np.cumsum([row.trained for row in rows])[:-1]
    split = [[None] * len(rows) if column is None else np.split(column, ends) for column in columns]
    truth = np.split(tokens.cpu().numpy(), ends)
    return [
        Scored(log_probs, true, greedy, mean, sd, kl)
        for true, log_probs, greedy, mean, sd, kl in zip(truth, *split, strict=True)
    ]


def _tokens(
    logits: "torch.Tensor", tokens: "torch.Tensor", spread: bool, theirs: "torch.Tensor | None"
) -> tuple["torch.Tensor | None", ...]:
    """log-probability and most likely token, then mean and sd over the vocabulary, then KL: [tokens] each."""
    log_probs = logits.float().log_softmax(-1)
    true = log_probs.gather(-1, tokens[:, None])[:, 0]
    mean = sd = kl = None
    if spread:
        probs = log_probs.exp()
        finite = log_probs.clamp(min=-1e4)  # a token of probability 0 adds 0, not NaN
        mean = (probs * finite).sum(-1)
        sd = (probs * (finite - mean[:, None]).square()).sum(-1).sqrt()
    if theirs is not None:
        second = theirs.float().log_softmax(-1)
        kl = (second.exp() * (second - log_probs).nan_to_num()).sum(-1)
    return true, logits.argmax(-1), mean, sd, kl


def first_nan(net: Any, row: Tokens, device: Any) -> str:
    """Where NaN or Inf appears first when `row` passes through the model, in words, with what to do."""
    import torch

    if bad := [name for name, one in net.named_parameters() if not one.isfinite().all()]:
        return (
            f"since {len(bad)} weights hold NaN or Inf, the first {bad[0]}: look at the checkpoint with editkit inspect"
        )
    seen: list[str] = []

    def hook(name: str) -> Callable[..., None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if not seen and isinstance(first, torch.Tensor) and not first.isfinite().all():
                seen.append(name)

        return look

    leaves = [(name, one) for name, one in net.named_modules() if not any(True for _ in one.children())]
    handles = [one.register_forward_hook(hook(name)) for name, one in leaves]
    try:
        batch = {name: tensor.to(device) for name, tensor in collate([row]).items() if name != "labels"}
        net(**batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    place = f"first in {seen[0]}" if seen else "first in a sum between modules"
    return f"{place}, though all weights are finite: compute in --dtype float32"
