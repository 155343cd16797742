"""What a model writes: greedy continuations in batches, padded on the left, with a cache of keys and values.

>>> generate(net, [[0, 17, 9]], [200], expected=[30], stops={1}, context=2048)  # doctest: +SKIP
[[44, 12, 7]]
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from editkit.checkpoint.blocks import Progress
from editkit.errors import EditError
from editkit.evaluation.passes import by_length, evaluating


def generate(
    net: Any,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    expected: Sequence[int],
    stops: Collection[int],
    context: int | None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[list[int]]:
    """The most likely token again and again: up to `limits[i]` of them, up to a stop token (left out), up to the model's context.

    expected: about how many it will be, such as the length of the true answer; those of one length go together.

    Sampling, penalties and whatever else the model's own generation_config asks for are left aside. A prompt that fills the
    context gives [].
    """
    import torch

    longest = [
        max(0, min(limit, context - len(prompt)) if context is not None else limit)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    found: dict[int, list[int]] = {index: [] for index, limit in enumerate(longest) if not limit}
    # A batch runs until the last of its rows is done. Rows that this would take beyond the context go among their equals.
    most = max(longest, default=0)
    tight = [context is not None and len(prompt) + most > context for prompt in prompts]
    order = sorted(
        (i for i in range(len(prompts)) if longest[i]),
        key=lambda i: (tight[i], -longest[i] if tight[i] else 0, -expected[i], -len(prompts[i]), i),
    )
    with evaluating(net), _plain(net, stops), torch.inference_mode():
        alike = by_length(net, max((len(prompts[i]) + longest[i] for i in order), default=0))
        if alike:  # all of a batch are as long as they would be alone
            order.sort(key=lambda i: (-longest[i], -len(prompts[i]), i))
        if order and not _has_cache(net, prompts[order[0]][:1]):
            batch_size = 1
        for _, group in groupby(order, key=lambda i: (longest[i] if alike or tight[i] else 0, len(prompts[i]) * alike)):
            same = list(group)
            for start in range(0, len(same), batch_size):
                indices = same[start : start + batch_size]
                try:
                    written = _batch(
                        net, [prompts[index] for index in indices], max(longest[i] for i in indices), stops
                    )
                except torch.OutOfMemoryError as error:
                    raise EditError(
                        f"the device ran out of memory while writing {len(indices)} texts at once: lower --batch-size"
                    ) from error
                for index, tokens in zip(indices, written, strict=True):
                    found[index] = tokens[: longest[index]]
                if progress:
                    progress(len(found), len(prompts))
    return [found[index] for index in range(len(prompts))]


def _batch(net: Any, prompts: Sequence[Sequence[int]], limit: int, stops: Collection[int]) -> list[list[int]]:
    import torch

    width = max(map(len, prompts))
    device = next(net.parameters()).device
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    written = net.generate(input_ids=ids, attention_mask=mask, max_new_tokens=limit)[:, width:].tolist()
    ends = [next((at for at, token in enumerate(row) if token in stops), len(row)) for row in written]
    return [row[:end] for row, end in zip(written, ends, strict=True)]


def _has_cache(net: Any, start: Sequence[int]) -> bool:
    """Whether padding, and the company of others, change nothing: not so where a state of its own takes the place of the cache (RWKV)."""
    import torch
    from transformers.cache_utils import Cache

    found = net(input_ids=torch.tensor([list(start)], device=next(net.parameters()).device), use_cache=True)
    return isinstance(getattr(found, "past_key_values", None), Cache) or hasattr(found, "cache_params")


@contextmanager
def _plain(net: Any, stops: Collection[int]) -> Iterator[None]:
    """A generation_config that says nothing but greedy and where to stop; the model's own one afterwards."""
    from transformers import GenerationConfig

    core = net.get_base_model() if hasattr(net, "get_base_model") else net
    before = core.generation_config
    core.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=sorted(stops) or None, pad_token_id=min(stops, default=0)
    )
    try:
        yield
    finally:
        core.generation_config = before


def stops_of(net: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's end of text, and those of the model's own generation_config."""
    core = net.get_base_model() if hasattr(net, "get_base_model") else net
    given = core.generation_config.eos_token_id
    listed = given if isinstance(given, list) else [given]
    return {token for token in [tokenizer.eos_token_id, *listed] if token is not None}
