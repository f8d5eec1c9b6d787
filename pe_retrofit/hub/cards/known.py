"""Everything a card is made from, found and read, and seen to belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...config import EncodingConfig
from ...errors import ConfigError
from ...registry import NATIVE, config_from_dict
from .folder import PLAIN, Saved, read_folder, told
from .metadata import Facts, gather
from .recipe import FILE, Recipe, read_recipe
from .results import Results, read_results
from .run import RUN, Calibrated, Run, Trained, find_run, read_calibration, read_training
from .text import one_line


@dataclass
class Known:
    """All that was read.

    Attributes:
        notes: lines on where things were found, for people.
    """

    saved: Saved
    run: Run | None
    recipe: Recipe | None
    results: Results | None
    facts: Facts
    training: Trained | None
    calibration: Calibrated | None
    notes: list[str] = field(default_factory=list)


def read_all(
    folder: Path,
    results: str | Path | None,
    recipe: str | Path | None,
    base_model: str | None,
    license: str | None,
    datasets: Sequence[str],
    language: str | Sequence[str] | None,
) -> Known:
    """Read what belongs to a saved model; the arguments are those of :func:`~pe_retrofit.hub.card.make_card`."""
    saved = read_folder(folder)
    run = find_run(folder)
    notes: list[str] = []
    result_path = _results_path(results, run, notes)
    recipe_path = _recipe_path(folder, recipe, run, notes)
    read = read_recipe(recipe_path) if recipe_path is not None else None
    found = read_results(result_path) if result_path is not None else None
    saved = _completed(saved, found, read)
    _check_match(saved, found, read)
    facts = gather(saved, found, read, base_model=base_model, license=license, datasets=datasets, language=language)
    training, calibration = read_training(run), read_calibration(folder, run)
    if saved.trained is None and found is not None:
        saved = replace(saved, trained=found.trained_length)
    return Known(saved, run, read, found, facts, training, calibration, notes)


def _results_path(given: str | Path | None, run: Run | None, notes: list[str]) -> Path | None:
    if given is not None:
        path = Path(given).expanduser()
        inside = find_run(path) if path.is_dir() and (path / RUN).is_file() else None
        if inside is not None and inside.folder == path.resolve():
            if inside.results is None:
                raise ConfigError(f"The run {str(given)!r} holds no evaluation of its model.")
            return inside.results
        return path
    if run is None or run.results is None:
        return None
    notes.append(f"results: the evaluation after {run.stage!r} of the run this folder lies in")
    if run.stage != run.last_stage:
        notes.append(f"results: made after {run.stage!r}, while the model was saved after {run.last_stage!r}")
    return run.results


def _recipe_path(folder: Path, given: str | Path | None, run: Run | None, notes: list[str]) -> Path | None:
    if given is not None:
        return Path(given).expanduser()
    if (folder / FILE).is_file():
        return folder / FILE
    if run is not None and run.recipe is not None:
        notes.append("recipe: that of the run this folder lies in")
        return run.recipe
    return None


def _completed(saved: Saved, results: Results | None, recipe: Recipe | None) -> Saved:
    """With the encodings, where the folder's own config hides them."""
    if saved.groups:
        return saved
    if saved.form == PLAIN:
        if results is not None and results.encodings:
            specs = [(list(map(_entry, entries)), layers) for entries, layers in results.encodings]
            everywhere = saved.layers is not None and all(len(layers or ()) == saved.layers for _, layers in specs)
            return told(saved, [(e, None if everywhere else layers) for e, layers in specs], "the results file")
        if recipe is not None and recipe.spec is not None:
            return told(saved, [(recipe.spec, None)], "the recipe")
    raise ConfigError(
        f"Nothing in {str(saved.folder)!r} tells of another positional encoding, so there is nothing for the card to "
        "describe. ntk, and a longer position table, leave no trace in config.json: give the recipe or the results."
    )


def _entry(entry: dict[str, Any]) -> EncodingConfig | str:
    return str(entry["name"]) if entry.get("name") in NATIVE else config_from_dict(entry)


def _check_match(saved: Saved, results: Results | None, recipe: Recipe | None) -> None:
    """Refuse the results or the recipe of another model."""
    if recipe is not None and recipe.names and not recipe.names & set(saved.names):
        raise ConfigError(
            f"The recipe {recipe.name!r} patches with {', '.join(sorted(recipe.names))}, and {str(saved.folder)!r} has "
            f"{', '.join(sorted(saved.names))}. Name the recipe of this model."
        )
    if results is None:
        return
    named = {str(entry.get("name")) for entries, _ in results.encodings for entry in entries} - set(NATIVE)
    mine = set(saved.names)
    if named == mine or (
        not named and saved.form == PLAIN and saved.told_by == "config.json" and _same_rope(saved, results)
    ):
        return
    other = ", ".join(sorted(named)) or "its own encoding alone"
    raise ConfigError(
        f"The results in {results.path} are of a model with {one_line(other)}, and {str(saved.folder)!r} has "
        f"{', '.join(sorted(mine))}. Name the results of this model."
    )


def _same_rope(saved: Saved, results: Results) -> bool:
    return results.rope_type in ("", str(saved.rope.get("rope_type", "")))
