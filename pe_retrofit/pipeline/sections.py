"""The sections of a recipe that belong to the pipeline itself: model, evaluate, save, run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..config import StrictOptions, checked, choice, flag, integer, names, words
from ..errors import ConfigError
from ..evaluation.setting import LONGEST, Setting
from ..loading import DTYPES

STAGES = ("patch", "calibrate", "transfer", "finetune")
"""What changes the model, in order; after each it can be evaluated."""


@dataclass(frozen=True)
class Section(StrictOptions):
    """Base of the sections here."""

    noun: ClassVar[str] = "section"


def _model_name(value: Any) -> str | None:
    good = isinstance(value, str) and 0 < len(value) <= 1000 and "\0" not in value
    if not good:
        return "must be a hub id, a folder, a .gguf file, smollm2 or minilm"
    return "must be a model alone; the encoding goes into the section patch" if "@" in value else None


@dataclass(frozen=True)
class ModelOptions(Section):
    """What is retrofitted."""

    name: str = checked("", _model_name, help="hub id, folder, .gguf file, smollm2 or minilm")  # type: ignore[misc]
    dtype: str = choice("auto", DTYPES, help="of the weights; auto: as stored, for GGUF what is fastest here")
    revision: str | None = words(most=200, help="branch, tag or commit on the Hub")
    gguf_file: str | None = words(most=500, help="GGUF file in the folder or repository")
    trust_remote_code: bool = flag(False, help="run code that comes with the model")


def _lengths(value: Any) -> str | None:
    whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if (
        whole
        and 0 < len(value) <= 100
        and list(value) == sorted(set(value))
        and value[0] >= 16
        and value[-1] <= LONGEST
    ):
        return None
    return f"must be ascending lengths in tokens from 16 to {LONGEST}, such as [512, 2k]"


def _depths(value: Any) -> str | None:
    fine = isinstance(value, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in value
    )
    if fine and 0 < len(value) <= 100 and list(value) == sorted(set(value)):
        return None
    return "must be ascending numbers from 0 to 1, such as [0, 0.5, 1]"


def _batch(value: Any) -> str | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096
    return None if whole or value == "auto" else "must be 'auto' or a whole number from 1 to 4096"


def _by_task(value: Any) -> str | None:
    good = value is None or (isinstance(value, Mapping) and all(isinstance(v, Mapping) for v in value.values()))
    return None if good else "must be options by task, such as {passkey: {digits: 7}}"


@dataclass(frozen=True)
class EvaluateOptions(Section):
    """What ``pe-retrofit eval`` takes, and after which stages."""

    name = "evaluate"
    tasks: Sequence[str] = names(("perplexity", "passkey"), most=100, help="tasks or groups of tasks")
    lengths: Sequence[int] = checked((512, 2048), _lengths, help="in tokens, the answer included")
    samples: int = integer(5, low=1, high=100_000, help="prompts per cell")
    depths: Sequence[float] = checked((0.0, 0.25, 0.5, 0.75, 1.0), _depths, help="depths of needles, 0 to 1")
    seed: int = integer(0, low=0, high=2**63 - 1, help="of all samples")
    text: str | None = words(most=1000, help="for perplexity and haystacks; by default the Python language reference")
    generate: bool = flag(False, help="generate where a forced answer would do")
    batch_size: int | str = checked("auto", _batch, help="prompts per forward, or auto")
    options: Mapping[str, Any] | None = checked(None, _by_task, help="by task, such as {passkey: {digits: 7}}")
    against: str = words(
        "stock", most=1000, help="stock (the model before the first stage), none, or the folder of a run"
    )
    after: Sequence[str] = names((), most=len(STAGES), help="stages after which to evaluate too: " + ", ".join(STAGES))

    def check(self) -> Sequence[str]:
        from ..evaluation import list_tasks
        from ..evaluation import tasks as _tasks  # noqa: F401  (registers them)
        from ..evaluation.task import GROUPS, PROVIDERS

        problems = [f"after: {stage!r} is no stage; stages are {', '.join(STAGES)}" for stage in self.after]
        problems = [problem for problem, stage in zip(problems, self.after, strict=True) if stage not in STAGES]
        known = list_tasks()
        allowed = [*known, *GROUPS, "all"]
        for task in self.tasks:
            if task not in allowed and task.partition("/")[0] not in PROVIDERS:
                problems.append(f"{task!r} is no task{nearest(task, allowed)}")
        if not self.tasks:
            problems.append("tasks is empty; name some, or leave the section out")
        for task, options in (self.options or {}).items():
            if task not in known:
                problems.append(f"options are given for {task!r}, which is no task{nearest(str(task), allowed)}")
                continue
            try:
                known[task].Options.from_options(dict(options))
            except (ConfigError, TypeError) as error:
                found = getattr(error, "problems", ()) or (str(error),)
                problems.extend(f"options.{task}: {problem}" for problem in found)
        return problems

    def setting(self) -> dict[str, Any]:
        """Keywords of :class:`~pe_retrofit.evaluation.Setting`, the text still a name."""
        return {key: getattr(self, key) for key in Setting.__dataclass_fields__}


@dataclass(frozen=True)
class SaveOptions(Section):
    """What is left at the end."""

    name = "save"
    form: str = choice(
        "merged",
        ("merged", "adapter"),
        help="merged: a whole model, LoRA folded into the weights; adapter: LoRA and learned positions alone",
    )
    folder: str = words("model", most=1000, help="within the folder of the run, or absolute")


@dataclass(frozen=True)
class RunOptions(Section):
    """Where and how it runs."""

    name = "run"
    folder: str | None = words(most=1000, help="for everything that is written; out/NAME-OF-THE-RECIPE by default")
    seed: int = integer(0, low=0, high=2**32 - 1, help="of everything random that has no seed of its own")
    device: str = choice(
        "auto", ("auto", "cpu", "cuda", "mps", "xpu"), help="auto: the accelerator, where there is one"
    )


def read_length(value: Any) -> Any:
    """``2k`` to 2048, ``512`` to 512; anything else as it is."""
    found = re.fullmatch(r"([0-9]{1,9})([kKmM]?)", value) if isinstance(value, str) else None
    return value if found is None else int(found[1]) * {"": 1, "k": 1024, "m": 1024**2}[found[2].lower()]


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean ...?``, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
