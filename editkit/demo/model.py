"""The demo's models: a small Llama that learns the people on the spot, and the same Llama before it met them.

`base` has read about other people and knows what questions and answers look like; `model` is base after it learned the
people to forget and those to keep. Both are built once and kept in the cache of the user.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from editkit import training
from editkit.checkpoint import disk
from editkit.checkpoint.digests import cache_folder
from editkit.demo import people
from editkit.editing.forget import Stage
from editkit.training.data import Examples
from editkit.training.encoding import TEMPLATES, Encoded, encode


@dataclass(frozen=True)
class Settings:
    """Everything that decides what the models are. The numbers of people are those of the four groups."""

    forget: int = 8
    retain: int = 32
    unseen: int = 12
    background: int = 60
    vocabulary: int = 1024
    width: int = 192
    layers: int = 2
    heads: int = 6
    hidden: int = 512
    base_steps: int = 300
    base_lr: float = 2e-3
    model_steps: int = 250
    model_lr: float = 7e-4
    batch_size: int = 32
    seed: int = 0


GROUPS = ("forget", "retain", "unseen", "background")


def groups(settings: Settings) -> dict[str, list[people.Person]]:
    """The people of each group; no name occurs twice."""
    everybody = iter(people.invent(sum(getattr(settings, group) for group in GROUPS), settings.seed))
    return {group: [next(everybody) for _ in range(getattr(settings, group))] for group in GROUPS}


def rows(persons: list[people.Person]) -> list[dict[str, str]]:
    """Their questions and answers, person by person."""
    return [row for person in persons for row in person.rows]


def encoded(examples: list[dict[str, str]], tokenizer: Any, loss_on: str = "answer") -> Encoded:
    """Rows as `editkit finetune` would see them in a file."""
    numbers = list(range(1, len(examples) + 1))
    return encode(Examples("the demo", "question/answer", examples, numbers, "row"), tokenizer, loss_on=loss_on)


def models(settings: Settings, stage: Stage) -> tuple[Path, bool]:
    """The folder with `base` and `model`, and whether it was in the cache; else they are built, whole or not at all.

    The name of the folder is a hash of the settings and of the code that makes the people and trains the models.
    """
    sources = [Path(__file__), Path(people.__file__), *sorted(Path(training.__file__).parent.glob("*.py"))]
    code = b"".join(path.read_bytes() for path in sources)
    key = hashlib.sha256(json.dumps(asdict(settings)).encode() + code).hexdigest()[:16]
    folder = cache_folder() / "demo" / key
    if folder.is_dir():
        return folder, True
    with disk.staged(folder) as staging:
        build(settings, staging, stage)
        os.rename(staging, folder)
    return folder, False


@contextmanager
def one_thread() -> Iterator[None]:
    """The matrices are so small that a second thread gains little on an idle machine, and on a busy one, where threads
    wait for each other, makes everything several times slower."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build(settings: Settings, folder: Path, stage: Stage) -> None:
    """Train both models and save them as `folder`/base and `folder`/model."""
    from editkit.training.trainer import quiet_transformers, seeded, train

    known = {group: rows(persons) for group, persons in groups(settings).items()}
    tokenizer = build_tokenizer(settings, [row for examples in known.values() for row in examples])
    with seeded(settings.seed):
        llama = build_llama(settings, tokenizer)
    learn: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": "cpu",
    }
    background = encoded(known["background"], tokenizer, loss_on="all").rows
    lessons = encoded(known["forget"] + known["retain"], tokenizer).rows
    for name, what, steps, lr, examples in (
        ("base", "teach a small Llama to answer", settings.base_steps, settings.base_lr, background),
        ("model", "teach it the people", settings.model_steps, settings.model_lr, lessons),
    ):
        with stage(what) as progress:
            train(llama, examples, steps=steps, lr=lr, progress=progress, **learn)
        with quiet_transformers():
            llama.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)


def build_tokenizer(settings: Settings, examples: list[dict[str, str]]) -> Any:
    """A byte-level BPE of the demo's own text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((TEMPLATES["question/answer"].format(**row) for row in examples), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def build_llama(settings: Settings, tokenizer: Any) -> Any:
    """A Llama with random weights, drawn from the global generator of torch."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads // 2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
