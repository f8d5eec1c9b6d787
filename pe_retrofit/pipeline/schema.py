"""What a recipe is: sections, each a strict dataclass of the part of the package it configures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config import StrictOptions, shorten
from ..errors import ConfigError
from .crossing import cross_problems
from .patchspec import PatchOptions
from .reading import read_file, write_text
from .sections import nearest, read_length

SECTIONS = {
    "model": "pe_retrofit.pipeline.sections:ModelOptions",
    "data": "pe_retrofit.training.data:DataOptions",
    "patch": "pe_retrofit.pipeline.patchspec:PatchOptions",
    "calibrate": "pe_retrofit.retrofit:CalibrateOptions",
    "transfer": "pe_retrofit.retrofit.transfer:TransferOptions",
    "fade": "pe_retrofit.retrofit:FadeOptions",
    "lora": "pe_retrofit.training.lora:LoraOptions",
    "finetune": "pe_retrofit.training.options:FineTuneOptions",
    "distill": "pe_retrofit.training.options:DistillOptions",
    "evaluate": "pe_retrofit.pipeline.sections:EvaluateOptions",
    "save": "pe_retrofit.pipeline.sections:SaveOptions",
    "run": "pe_retrofit.pipeline.sections:RunOptions",
}
"""Sections in the order of a recipe, and where their options are declared."""

ALWAYS = ("model", "save", "run")
"""Sections that are there with their defaults when a recipe does not name them; ``save`` can be turned off."""


def options_of(section: str) -> type[Any]:
    """The class of a section's options."""
    module, _, name = SECTIONS[section].partition(":")
    try:
        found: type[Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"is not part of this version ({error})") from error
    return found


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Attributes:
        name: of the file, without its ending.
        sections: by name, in the order of :data:`SECTIONS`; None for a section that is left out.
    """

    name: str
    sections: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, section: str) -> Any:
        """The options of a section; None when it is left out."""
        return self.sections[section]

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self["run"].folder or f"out/{self.name}").expanduser()

    def to_plain(self) -> dict[str, Any]:
        """Every section with every option; ``false`` for one that is left out."""
        return {name: plain(options) for name, options in self.sections.items()}

    def to_yaml(self) -> str:
        """A recipe that gives the same run."""
        return write_text(self.to_plain())


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and check a recipe file.

    Args:
        path: YAML or JSON.
        overrides: from ``section.key`` to values; see :func:`~pe_retrofit.pipeline.overriding.apply`.

    Raises:
        ConfigError: with everything that is wrong, in one message.
    """
    from .overriding import apply

    path = Path(path)
    raw = read_file(path)
    return make_recipe(apply(raw, overrides or {}), path.stem)


def make_recipe(raw: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """Check sections and make a recipe of them.

    Raises:
        ConfigError: with everything that is wrong, in one message.
    """
    problems: list[str] = []
    for key in raw:
        if key not in SECTIONS:
            problems.append(f"{shorten(key)} is no section{nearest(str(key), list(SECTIONS)) or _all_sections()}")
    sections: dict[str, Any] = {}
    broken = set()
    for section in SECTIONS:
        value = raw.get(section, {} if section in ALWAYS else False)
        if section not in raw and section == "model":
            problems.append("model: is required, such as model: {name: smollm2}")
            broken.add(section)
            continue
        found: list[str] = []
        sections[section] = _parse(section, value, found)
        if found:
            broken.add(section)
        problems += [f"{section}: {problem}" for problem in found]
    problems += cross_problems(sections, broken)
    if problems:
        error = ConfigError(f"The recipe {name!r} is not valid:" + "".join(f"\n  - {p}" for p in problems))
        error.problems = tuple(problems)
        raise error
    return Recipe(name, sections)


def plain(options: Any) -> Any:
    """A section's options as a recipe holds them."""
    if options is None:
        return False
    if isinstance(options, PatchOptions):
        return options.to_plain()
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    return {key: _plain_value(value) for key, value in values.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain_value(part) for part in value]
    return {k: _plain_value(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _parse(section: str, value: Any, problems: list[str]) -> Any:
    """The options of one section, or None when it is off or wrong."""
    if value is False:
        if section in ("model", "run"):
            problems.append("cannot be left out")
        return None
    if value is None:
        problems.append("is empty; write {} for its defaults, or false to leave it out")
        return None
    if section == "model" and isinstance(value, str):
        value = {"name": value}
    try:
        if section == "patch":
            return PatchOptions.parse(value)
        return _options(section, {} if value is True else value, problems)
    except ConfigError as error:
        problems += error.problems or (str(error),)
    return None


def _options(section: str, value: Any, problems: list[str]) -> StrictOptions | None:
    kind = options_of(section)
    if not isinstance(value, Mapping):
        known = ", ".join(f.name for f in dataclasses.fields(kind))
        problems.append(f"{shorten(value)} is no mapping of options. It has: {known}")
        return None
    value = {str(key): option for key, option in value.items()}
    if section == "evaluate":
        value = _evaluate(value)
    made: StrictOptions = kind.from_options(value)
    return made


def _evaluate(value: dict[str, Any]) -> dict[str, Any]:
    """Lengths may be written 2k, and a single one, task or depth needs no list."""
    for key in ("lengths", "depths", "tasks", "after"):
        if key in value and isinstance(value[key], (str, int, float)) and not isinstance(value[key], bool):
            value[key] = (
                [part.strip() for part in value[key].split(",")] if isinstance(value[key], str) else [value[key]]
            )
    if isinstance(value.get("lengths"), (list, tuple)):
        value["lengths"] = [read_length(part) for part in value["lengths"]]
    return value


def _all_sections() -> str:
    return f"; sections are {', '.join(SECTIONS)}"
