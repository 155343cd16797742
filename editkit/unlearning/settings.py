"""The settings of a run: what the method says, what the preset says, what was asked for; and what of that cannot be."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from editkit.errors import EditError, listed
from editkit.training.devices import unfit
from editkit.training.finetune import default_lr
from editkit.unlearning.methods import NAMES, Method, composed, method
from editkit.unlearning.objectives import FORGET, RETAIN, Objective
from editkit.unlearning.rules import DEFAULT_RULE, Rule, parse_all

STEPS = 100
"""Most steps of a phase, or as many as 5 passes over the forget set take if that is more; the stop rule ends most runs earlier."""
EPOCHS = 5
EVERY = 5
RATE = 0.6
"""Times the learning rate of fine-tuning, which starts from what is there; here it must not run ahead of the looks."""
LEAST = 0.01
"""Share of the elements below which the learning rate rises no further."""
FLOOR = 0.95
BATCH = 16
SAVES = ("checkpoint", "adapter", "vector")
ANCHORS = ("original", "phase")


@dataclass(frozen=True)
class Settings:
    """All of them, resolved; `lr` None is found from the size of the model, `steps` None from that of the forget set."""

    method: Method
    forget_weight: float
    retain_weight: float
    beta: float | None
    lora: int | None
    steps: int | None
    epochs: int | None
    lr: float | None
    batch_size: int
    grad_accum: int
    grad_checkpointing: bool
    weight_decay: float
    rectify: bool
    rules: tuple[Rule, ...]
    by_default: bool
    floor: float
    eval_every: int
    alpha: float
    anchor: str
    save: str
    preset: str | None
    seed: int
    max_length: int | None
    prompt_template: str | None
    dtype: str | None
    device: str

    def described(self) -> dict[str, Any]:
        """As in unlearn.json."""
        flat = {key: value for key, value in asdict(self).items() if key not in ("method", "rules", "by_default")}
        phases = [phase.forget for phase in self.method.phases]
        if not any(phase.negated for phase in self.method.phases):
            flat |= {"alpha": None, "anchor": None}
        betas = [one.beta for one in self.objectives if one.beta]
        return {
            "forget_loss": " then ".join(phases),
            "retain_loss": self.method.retain,
            **flat,
            "beta": self.beta or (betas[0] if betas else None),
            "stop": [rule.text for rule in self.rules],
        }

    @property
    def objectives(self) -> list[Objective]:
        """All that are used."""
        return objectives(self.method)

    @property
    def formula(self) -> str:
        """That of the method, with the losses and weights that are used."""
        terms = [(self.forget_weight, FORGET[self.method.phases[0].forget], "F")]
        if kept := RETAIN[self.method.retain]:
            terms.append((self.retain_weight, kept, "R"))
        loss = " + ".join(f"{f'{weight:g} ' * (weight != 1)}L_{one.label}({of})" for weight, one, of in terms)
        return self.method.formula.format(loss=loss)

    def most(self, examples: int) -> int:
        """Most steps of a phase."""
        per_epoch = math.ceil(examples / min(self.batch_size, examples))
        return self.steps or per_epoch * (self.epochs or max(EPOCHS, math.ceil(STEPS / per_epoch)))

    def rate(self, width: int, share: float) -> float:
        """The learning rate for a model of this width of which this share of the elements may move."""
        ours = RATE * default_lr(width, self.lora is not None) / max(share, LEAST) ** 0.5
        return ours if self.lr is None else self.lr


def resolve(
    *,
    name: str | None,
    forget_loss: str | None,
    retain_loss: str | None,
    preset: str | None,
    stop: Sequence[str],
    retain: bool,
    mask: bool,
    tasks: int,
    control: bool,
    given: Mapping[str, Any],
) -> Settings:
    """given: the other fields of Settings, None where nothing was said. Raises EditError that lists what cannot be."""
    if preset not in (None, "paper"):
        raise EditError(f"--preset {preset!r} is unknown: there is paper")
    chosen = _method(name, forget_loss, retain_loss, retain, published=preset is not None)
    paper = dict(chosen.paper) if preset else {}
    paper_stop = [paper.pop("stop")] if "stop" in paper else []
    if mask:
        paper.pop("lora", None)
    said = {key: value for key, value in given.items() if value is not None}
    if "epochs" in said:
        paper.pop("steps", None)
    if "steps" in said:
        paper.pop("epochs", None)
    values: dict[str, Any] = {
        "forget_weight": chosen.weights[0],
        "retain_weight": chosen.weights[1],
        **dict.fromkeys(("beta", "lora", "steps", "epochs", "lr", "max_length", "prompt_template", "dtype")),
        "batch_size": BATCH,
        "grad_accum": 1,
        "weight_decay": 0.0,
        "rectify": False,
        "grad_checkpointing": False,
        "floor": FLOOR,
        "eval_every": EVERY,
        "alpha": chosen.alpha or 1.0,
        "anchor": "phase",
        "seed": 0,
        "device": "auto",
        **paper,
        **said,
    }
    values.setdefault("save", "adapter" if values["lora"] else "checkpoint")
    wrong = _unfit_numbers(values) + _unfit_together(chosen, values, said, retain, mask, tasks, control)
    if wrong:
        raise EditError(f"these settings cannot be unlearned with: {listed(wrong, limit=20)}")
    own = () if preset or refuses(chosen) else (DEFAULT_RULE,)
    rules = parse_all(stop or paper_stop or own)
    return Settings(method=chosen, rules=rules, by_default=not (stop or preset), preset=preset, **values)


def _method(
    name: str | None, forget_loss: str | None, retain_loss: str | None, retain: bool, published: bool
) -> Method:
    """The method of this name, or of these losses, with another retain loss where one is given.

    SGA and TAU have none as published, and none without a retain set; they have ours where there is one.
    """
    if name is None and forget_loss is None:
        name = "npo+gd" if retain else "npo"
    if name is None:
        name = "sga" if forget_loss == "sga" else f"{forget_loss}+{retain_loss or ('gd' if retain else 'none')}"
        forget_loss = None
    chosen = method(name)
    if forget_loss is not None:
        chosen = with_forget(chosen, forget_loss)
    if retain_loss is None and chosen.name in NAMES and not chosen.localized and (published or not retain):
        return replace(chosen, retain="none")
    return chosen if retain_loss is None else with_retain(chosen, retain_loss)


def _unfit_numbers(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with each setting by itself."""
    counts = {key: values[key] for key in ("lora", "epochs", "steps", "batch_size", "grad_accum", "eval_every")}
    wrong = unfit(values["dtype"], values["device"], **counts)
    if values["dtype"] == "float16":
        wrong.append("dtype is float16, in which gradients of unlearning run out of range: give bfloat16 or float32")
    if values["epochs"] is not None and values["steps"] is not None:
        wrong.append("epochs and steps are both given, only one can say how long")
    if values["lr"] is not None and not 0 < values["lr"] < math.inf:
        wrong.append(f"lr is {values['lr']}, must be a finite number above 0")
    for key in ("forget_weight", "retain_weight", "weight_decay"):
        if not 0 <= values[key] < math.inf:
            wrong.append(f"{key} is {values[key]}, must be a finite number of at least 0")
    if values["beta"] is not None and not 0 < values["beta"] < math.inf:
        wrong.append(f"beta is {values['beta']}, must be a finite number above 0")
    if not 0 < values["floor"] < 1:
        wrong.append(f"floor is {values['floor']}, must be a share between 0 and 1")
    if not math.isfinite(values["alpha"]) or values["alpha"] <= 0:
        wrong.append(f"alpha is {values['alpha']}, must be a finite number above 0")
    if not 0 <= values["seed"] < 2**32:
        wrong.append(f"seed is {values['seed']}, must be in 0 ... 2**32 - 1")
    for key, allowed in (("save", SAVES), ("anchor", ANCHORS)):
        if values[key] not in allowed:
            wrong.append(f"{key} is {values[key]!r}, must be one of {listed(allowed)}")
    return wrong


def _unfit_together(
    chosen: Method,
    values: Mapping[str, Any],
    said: Mapping[str, Any],
    retain: bool,
    mask: bool,
    tasks: int,
    control: bool,
) -> list[str]:
    """What of the settings does not go with the method, the data or each other."""
    wrong = []
    if values["beta"] is not None and not any(one.beta for one in objectives(chosen)):
        wrong.append(f"beta is given, and no loss of {chosen.name} has one")
    negated = any(phase.negated for phase in chosen.phases)
    if values["lora"] and mask:
        wrong.append("lora and mask are both given, the weights of an adapter are not those that a mask selects")
    if values["lora"] and negated:
        wrong.append(
            f"{chosen.name} negates a task vector of all weights, leave lora out (editkit negate --forget --lora negates an adapter)"
        )
    if chosen.retain != "none" and not retain:
        wrong.append(
            f"{chosen.name} has a retain loss ({chosen.retain}) and there is no retain set, give --retain or --retain-loss none"
        )
    if values["rectify"] and chosen.retain == "none":
        wrong.append("rectify needs the gradient of a retain loss, give --retain-loss gd")
    if (said.keys() & {"alpha", "anchor"}) and not negated:
        wrong.append(f"alpha and anchor are for methods that negate a task vector, {chosen.name} does not")
    if chosen.localized and not mask and tasks > 1:
        wrong.append(f"{chosen.name} localizes one forget set, give --mask for several")
    if chosen.localized and not mask and not retain:
        wrong.append(
            f"{chosen.name} localizes what the forget set uses and a retain set does not, give --retain or --mask"
        )
    if control and not mask and not chosen.localized:
        wrong.append(f"control compares a mask with a random one, and {chosen.name} has none, give --mask")
    if values["save"] == "adapter" and not values["lora"]:
        wrong.append("save is adapter, and without lora there is none")
    return wrong


def refuses(chosen: Method) -> bool:
    """Whether it teaches refusals. Teacher-forced accuracy does not see those: the true beginning of an answer still leads to its end."""
    return FORGET[chosen.forget].refusals


def objectives(chosen: Method) -> list[Objective]:
    """All losses of a method."""
    kept = RETAIN[chosen.retain]
    return [*(FORGET[phase.forget] for phase in chosen.phases), *([kept] if kept else [])]


def with_forget(chosen: Method, forget: str) -> Method:
    """A method with a procedure, and another loss to ascend on in it."""
    if chosen.name not in NAMES:
        raise EditError(f"--method {chosen.name} and --forget-loss {forget} both say what to do: give one of them")
    if forget not in FORGET or all(phase.negated for phase in chosen.phases):
        raise EditError(f"{chosen.name} cannot take the forget loss {forget!r}: leave --forget-loss out")
    phases = tuple(phase if phase.negated else replace(phase, forget=forget) for phase in chosen.phases)
    return replace(chosen, phases=phases, label=_with(chosen.label, FORGET[forget].label))


def with_retain(chosen: Method, retain: str) -> Method:
    """The same method with another retain loss."""
    if retain not in RETAIN:
        raise EditError(f"there is no retain loss {retain!r}: there are {listed(RETAIN)}")
    if chosen.name not in NAMES:
        return composed(chosen.forget, retain)
    if retain == chosen.retain:
        return chosen
    kept = RETAIN[retain]
    return replace(chosen, retain=retain, label=_with(chosen.label, kept.label if kept else "no retain loss"))


def _with(label: str, more: str) -> str:
    return f"{label}{' and' if ' with ' in label else ' with'} {more}"
