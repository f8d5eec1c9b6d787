"""Problems that concern several sections of a recipe."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .sections import STAGES

NEEDS = (
    ("calibrate", "patch", "there is no encoding to calibrate"),
    ("transfer", "patch", "the model would learn from itself"),
    ("fade", "patch", "there is nothing to fade to"),
    ("calibrate", "data", "it measures the model on text"),
    ("transfer", "data", "it trains on text"),
    ("finetune", "data", "it trains on text"),
    ("lora", "finetune", "or transfer, nothing trains the adapter"),
    ("fade", "finetune", "it fades over the steps of a fine-tune"),
    ("distill", "finetune", "it is a loss of the fine-tune"),
)
"""A section, one it needs, and why."""


def cross_problems(sections: Mapping[str, Any], broken: Collection[str]) -> list[str]:
    """What does not fit together; sections that are wrong in themselves are not looked at.

    Args:
        sections: options by name, None for one that is left out.
        broken: names of sections that could not be read.
    """

    def there(name: str) -> bool:
        return name in broken or sections.get(name) is not None

    problems = []
    for section, needed, why in NEEDS:
        if not there(section) or there(needed) or (section == "lora" and there("transfer")):
            continue
        problems.append(f"{section}: needs the section {needed!r}: without it, {why}; add it or set {section}: false")
    if not any(there(name) for name in ("patch", "finetune", "evaluate")):
        problems.append("nothing to do: name at least one of the sections patch, finetune, evaluate")
    evaluate, save = sections.get("evaluate"), sections.get("save")
    if evaluate is not None:
        for stage in evaluate.after:
            if stage in STAGES and not there(stage):
                problems.append(f"evaluate: after names {stage!r}, a stage that this recipe leaves out")
    if save is not None and save.form == "adapter" and not there("lora"):
        problems.append("save: form='adapter' needs the section 'lora'; without one, use form: merged")
    problems += _quantised_problems(sections.get("lora"), save, sections.get("run"))
    return problems + _shifted_problems(sections.get("data"), sections.get("finetune"))


def _quantised_problems(lora: Any, save: Any, run: Any) -> list[str]:
    """What quantised weights cannot be: merged into without loss, or on a CPU."""
    if lora is None or lora.quantize == "none":
        return []
    problems = []
    if save is not None and save.form == "merged":
        problems.append(
            f"save: form='merged' would round the adapter away into weights of {lora.quantize} (lora.quantize); use "
            "form: adapter, which loads on the whole model"
        )
    if run is not None and run.device not in ("auto", "cuda"):
        problems.append(f"lora: quantize={lora.quantize!r} needs a GPU, and run.device={run.device!r}")
    return problems


def _shifted_problems(data: Any, finetune: Any) -> list[str]:
    """Rows that cannot be cut into the groups of shifted sparse attention."""
    group = None if finetune is None else finetune.shifted_group
    if group is None or data is None:
        return []
    lengths = [data.length] if data.curriculum is None else [int(length) for length, _ in data.curriculum]
    problems = [
        f"finetune: shifted_group={group} does not divide rows of {length} tokens (data); it must divide their length"
        for length in lengths
        if length % group
    ]
    if data.packing != "windows":
        problems.append(
            f"finetune: shifted_group={group} needs rows without padding: data.packing='windows', not {data.packing!r}"
        )
    return problems
