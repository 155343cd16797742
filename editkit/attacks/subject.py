"""What is attacked: a model whose adapter, if it has one, is merged into its weights, as a release of it would be."""

from collections.abc import Iterator
from contextlib import contextmanager

from editkit.evaluation.subject import Source, Subject, opened


@contextmanager
def opened_whole(source: Source, *, dtype: str | None, device: str) -> Iterator[Subject]:
    """As `opened`, with plain layers only: quantization and training reach all weights, also where MODEL+ADAPTER is given.

    >>> with opened_whole("model+my-lora", dtype=None, device="cpu") as subject:  # doctest: +SKIP
    ...     type(subject.net).__name__
    'LlamaForCausalLM'
    """
    with opened(source, dtype=dtype, device=device) as subject:
        if subject.adapter:
            subject.net = subject.core = subject.net.merge_and_unload()
        yield subject
