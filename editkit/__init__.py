"""Edit the weights of language models stored as safetensors, see what changed, and take it back.

>>> import editkit
>>> editkit.__version__
'0.1.0'

The names below load their module on first use, so that `import editkit` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from editkit.errors import EditError, GateFailed, NothingChanged

__version__ = "0.1.0"

if TYPE_CHECKING:
    from editkit.adapters.combine import combine as combine_adapters
    from editkit.adapters.extract import extract_lora
    from editkit.attacks.attack import attack
    from editkit.checkpoint.inspection import inspect_checkpoint as inspect
    from editkit.checkpoint.reader import Checkpoint, TensorInfo, open_checkpoint
    from editkit.checkpoint.writer import write_checkpoint
    from editkit.demo.invent import invent
    from editkit.diffing.diff import diff
    from editkit.editing.bake import bake
    from editkit.editing.forget import forget
    from editkit.editing.negate import Negation, negate
    from editkit.evaluation.evaluate import evaluate, evaluate_rows
    from editkit.localization.compare import compare as compare_localizations
    from editkit.localization.localize import localize
    from editkit.merging.conflicts import conflicts
    from editkit.merging.merge import Merged, merge
    from editkit.patching.apply import apply_patch, undo_patch
    from editkit.patching.create import create_patch
    from editkit.patching.inspection import inspect_patch, verify_patch
    from editkit.recipes.run import run
    from editkit.sweeps.sweep import sweep
    from editkit.training.finetune import Finetuned, finetune
    from editkit.training.gather import gather
    from editkit.unlearning.unlearn import unlearn
    from editkit.vectors.task_vector import task_vector
    from editkit.verification.verify import verify

_HOME = {
    "attack": "editkit.attacks.attack:attack",
    "Checkpoint": "editkit.checkpoint.reader:Checkpoint",
    "TensorInfo": "editkit.checkpoint.reader:TensorInfo",
    "open_checkpoint": "editkit.checkpoint.reader:open_checkpoint",
    "inspect": "editkit.checkpoint.inspection:inspect_checkpoint",
    "write_checkpoint": "editkit.checkpoint.writer:write_checkpoint",
    "diff": "editkit.diffing.diff:diff",
    "bake": "editkit.editing.bake:bake",
    "extract_lora": "editkit.adapters.extract:extract_lora",
    "forget": "editkit.editing.forget:forget",
    "negate": "editkit.editing.negate:negate",
    "Negation": "editkit.editing.negate:Negation",
    "evaluate": "editkit.evaluation.evaluate:evaluate",
    "evaluate_rows": "editkit.evaluation.evaluate:evaluate_rows",
    "invent": "editkit.demo.invent:invent",
    "localize": "editkit.localization.localize:localize",
    "combine_adapters": "editkit.adapters.combine:combine",
    "conflicts": "editkit.merging.conflicts:conflicts",
    "merge": "editkit.merging.merge:merge",
    "Merged": "editkit.merging.merge:Merged",
    "compare_localizations": "editkit.localization.compare:compare",
    "finetune": "editkit.training.finetune:finetune",
    "Finetuned": "editkit.training.finetune:Finetuned",
    "gather": "editkit.training.gather:gather",
    "apply_patch": "editkit.patching.apply:apply_patch",
    "create_patch": "editkit.patching.create:create_patch",
    "inspect_patch": "editkit.patching.inspection:inspect_patch",
    "undo_patch": "editkit.patching.apply:undo_patch",
    "run": "editkit.recipes.run:run",
    "verify": "editkit.verification.verify:verify",
    "verify_patch": "editkit.patching.inspection:verify_patch",
    "sweep": "editkit.sweeps.sweep:sweep",
    "unlearn": "editkit.unlearning.unlearn:unlearn",
    "task_vector": "editkit.vectors.task_vector:task_vector",
}

__all__ = [
    "Checkpoint",
    "EditError",
    "Finetuned",
    "GateFailed",
    "Merged",
    "Negation",
    "NothingChanged",
    "TensorInfo",
    "__version__",
    "apply_patch",
    "attack",
    "bake",
    "combine_adapters",
    "compare_localizations",
    "conflicts",
    "create_patch",
    "diff",
    "evaluate",
    "evaluate_rows",
    "extract_lora",
    "finetune",
    "forget",
    "gather",
    "inspect",
    "inspect_patch",
    "invent",
    "localize",
    "merge",
    "negate",
    "open_checkpoint",
    "run",
    "sweep",
    "task_vector",
    "undo_patch",
    "unlearn",
    "verify",
    "verify_patch",
    "write_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'editkit' has no attribute {name!r}")
    module, attribute = _HOME[name].split(":")
    globals()[name] = value = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
