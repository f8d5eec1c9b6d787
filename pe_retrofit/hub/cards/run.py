"""The folder of a ``pe-retrofit train`` run around a saved model: what was calibrated, trained and evaluated there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checking import Checker, read_json
from .recipe import FILE
from .results import FILE as RESULTS

RUN, RUN_KIND = "run.json", "pe_retrofit run"
EVALUATE = "evaluate"
CALIBRATION = "calibration.json"
STAGES = ("patch", "calibrate", "transfer", "finetune")
MOST_RUN_BYTES = 16 * 2**20
UP = 3
"""How many folders up from the saved model a run is looked for."""


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
