"""The recipe and the run behind a saved model, as far as a card needs them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError, UnknownEncodingError, UnsupportedError
from ...specs import make_spec
from .checking import Checker, read_json, read_text
from .results import FILE as RESULTS
from .text import is_path, last_part, without_paths

FILE = "recipe.yaml"
RUN, RUN_KIND = "run.json", "pe_retrofit run"
EVALUATE = "evaluate"
CALIBRATION = "calibration.json"
STAGES = ("patch", "calibrate", "transfer", "finetune")
MOST_BYTES = 2**20
MOST_RUN_BYTES = 16 * 2**20
DEEPEST = 40
UP = 3
"""How many folders up from the saved model a run is looked for."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as text and as data.

    Attributes:
        text: verbatim, except that absolute paths are shown by their last part.
        shortened: whether there were such paths.
        sections: what the YAML says.
        name: of the file.
    """

    text: str
    shortened: bool
    sections: Mapping[str, Any]
    name: str

    @property
    def model(self) -> str:
        """The model that was retrofitted; empty where the recipe does not say."""
        model = self.sections.get("model")
        name = model.get("name") if isinstance(model, dict) else model
        return name if isinstance(name, str) else ""

    @property
    def trains(self) -> bool:
        """Whether weights are trained."""
        return self.sections.get("finetune") not in (None, False)

    @property
    def data(self) -> str:
        """The text it trains on, as the recipe names it."""
        data = self.sections.get("data")
        text = data.get("text") if isinstance(data, dict) else data
        return text if isinstance(text, str) else ""

    @property
    def spec(self) -> list[Any] | None:
        """What all layers are patched with; None where layers differ, or nothing is patched."""
        patch = self.sections.get("patch")
        if isinstance(patch, dict) and "layers" in patch:
            return None
        parts = patch if isinstance(patch, list) else [patch]
        found: list[Any] = []
        for part in parts:
            named = part if isinstance(part, dict) else {"name": part}
            name = named.get("name")
            if not isinstance(name, str):
                return None
            options = {str(k): v for k, v in named.items() if k != "name"}
            try:
                found += make_spec(name, options)[0]
            except (ConfigError, UnknownEncodingError, UnsupportedError) as error:
                raise ConfigError(f"The recipe {self.name!r}: section patch: {error}") from error
        return found


@dataclass(frozen=True)
class Run:
    """The folder of a ``pe-retrofit train`` run.

    Attributes:
        folder, name: of the run.
        recipe: its file; None without.
        results: folder of the last evaluation of the retrofitted model; None without.
        stage, last_stage: what was evaluated, and the last thing done to the model.
        steps: step -> what it came to.
        versions: of the libraries.
    """

    folder: Path
    name: str
    recipe: Path | None
    results: Path | None
    stage: str
    last_stage: str
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        ConfigError: it cannot be read, or is no mapping of sections.
    """
    text = read_text(path, MOST_BYTES)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        paths = sorted(set(_paths(node, 0, set())), key=len, reverse=True) if node is not None else []
        sections = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(sections, dict):
        raise ConfigError(f"The recipe {path} holds no sections such as 'model: ...'.")
    shown = text
    for value in paths:
        shown = shown.replace(value, last_part(value))
    shown = "\n".join(without_paths(line) for line in shown.splitlines())
    return Recipe(shown, shown.split() != text.split(), sections, path.stem)


def _paths(node: yaml.Node, depth: int, seen: set[int]) -> Iterator[str]:
    """The scalars that are absolute paths; aliases are followed once."""
    if depth > DEEPEST:
        raise ConfigError(f"The recipe is nested deeper than {DEEPEST} levels; is it the right file?")
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        if is_path(node.value) and "\n" not in node.value:
            yield node.value
        return
    for entry in node.value:
        for part in entry if isinstance(entry, tuple) else (entry,):
            yield from _paths(part, depth + 1, seen)


def find_run(folder: Path) -> Run | None:
    """The run whose folder this is, or in whose folder this lies.

    Raises:
        ConfigError: its ``run.json`` is damaged.
    """
    folder = folder.resolve()
    for place in (folder, *list(folder.parents)[:UP]):
        file = place / RUN
        if file.is_file():
            raw = read_json(file, MOST_RUN_BYTES)
            if raw.get("kind") == RUN_KIND:
                return _run(place, raw)
    return None


def _run(folder: Path, raw: Mapping[str, Any]) -> Run:
    check = Checker(f"The run {folder / RUN}")
    steps = check.mapping(raw, "steps")
    results = {name: check.mapping(step, "result", f"steps.{name[:60]}.") for name, step in steps.items() if step}
    versions = check.mapping(raw, "versions", needed=False)
    name = check.words(raw, "name", most=300)
    check.done()
    evaluated = [stage for stage in STAGES if (folder / EVALUATE / stage / RESULTS).is_file()]
    done = [stage for stage in STAGES if stage in steps]
    recipe = folder / FILE
    return Run(
        folder=folder,
        name=name or folder.name,
        recipe=recipe if recipe.is_file() else None,
        results=folder / EVALUATE / evaluated[-1] if evaluated else None,
        stage=evaluated[-1] if evaluated else "",
        last_stage=done[-1] if done else "",
        steps=results,
        versions={str(k): v for k, v in list(versions.items())[:30] if isinstance(v, str)},
    )


@dataclass(frozen=True)
class Calibrated:
    """What a calibration came to; None for what is not recorded."""

    tokens: int | None
    text: str
    before: float | None
    after: float | None
    perplexity: Mapping[str, float | None]
    kept: bool


def read_calibration(folder: Path, run: Run | None) -> Calibrated | None:
    """From ``calibration.json`` in the folder, else from the run.

    Raises:
        ConfigError: it is damaged.
    """
    file = folder / CALIBRATION
    if file.is_file():
        raw = read_json(file, MOST_RUN_BYTES)
    elif run is not None and run.steps.get("calibrate"):
        file, raw = run.folder / RUN, dict(run.steps["calibrate"])
    else:
        return None
    check = Checker(f"The calibration in {file}")
    text = check.mapping(raw, "text", needed=False)
    measured = check.mapping(raw, "perplexity", needed=False)
    names = ("stock", "default", "calibrated")
    found = Calibrated(
        tokens=check.whole(raw, "tokens"),
        text=check.words(text, "source", "text."),
        before=check.number(raw, "before"),
        after=check.number(raw, "after"),
        perplexity={name: check.number(measured, name, "perplexity.", low=0) for name in names if measured},
        kept=isinstance(raw.get("curve"), dict),
    )
    check.done()
    return found


@dataclass(frozen=True)
class Trained:
    """What a fine-tune came to; None for what is not recorded."""

    steps: int | None
    tokens: int | None
    loss: float | None
    held_out_loss: float | None
    text: str
    sha256: str


def read_training(run: Run | None) -> Trained | None:
    """From the run.

    Raises:
        ConfigError: its ``run.json`` is damaged.
    """
    if run is None or not run.steps.get("finetune"):
        return None
    raw = run.steps["finetune"]
    check = Checker(f"The run {run.folder / RUN}")
    data = check.mapping(raw, "data", "finetune.", needed=False)
    found = Trained(
        steps=check.whole(raw, "steps", "finetune."),
        tokens=check.whole(raw, "tokens", "finetune."),
        loss=check.number(check.mapping(raw, "loss", "finetune.", needed=False), "last", "finetune.loss."),
        held_out_loss=check.number(raw, "held_out_loss", "finetune."),
        text=check.words(data, "text", "finetune.data."),
        sha256=check.words(data, "sha256", "finetune.data.", most=64),
    )
    check.done()
    return found
