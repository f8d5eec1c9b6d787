"""The model card: what was done to a model, how it is loaded, what was measured, and what it is not good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .cards import describing, evaluation
from .cards.files import UNSIGNED, check_target, choose_pictures, sign, write
from .cards.known import Known, read_all
from .cards.limits import calibrated, limits, trained
from .cards.loading import loading
from .cards.metadata import card_data, check_card, is_repo_id
from .cards.run import Run
from .cards.serving import serving
from .cards.text import check_secrets, fence, label, one_line, plain, tokens, without_paths

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

TEMPLATE = Path(__file__).with_name("card.md.j2")
COMMON = ("model", "merged", "adapter", "checkpoint")
"""Folders with these names say nothing; the run's name takes their place."""


@dataclass
class Plan:
    """A card that is not written yet.

    Attributes:
        folder: it belongs into.
        card: of huggingface_hub.
        pictures: file name in the folder -> where the picture lies now.
        said: lines on where things come from and what was left out, for people.
    """

    folder: Path
    card: ModelCard
    pictures: dict[str, Path]
    said: list[str]

    @property
    def files(self) -> list[Path]:
        """What would be written."""
        return [self.folder / "README.md", *(self.folder / name for name in self.pictures)]


def make_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    recipe: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    language: str | Sequence[str] | None = None,
    name: str | None = None,
) -> ModelCard:
    """The card of a saved model or adapter. Nothing is written.

    Args:
        folder: with ``config.json``, or with an adapter. Within the folder of a ``pe-retrofit train`` run the recipe
            and the last evaluation are found by themselves.
        results: ``results.json`` of ``pe-retrofit eval``, or a folder that holds one, or the folder of a training run.
        recipe: file of the recipe; ``recipe.yaml`` in the folder by default.
        base_model: id on the Hub, or a folder, of which only the last part is shown.
        license: as the Hub names it; left out, with a note, where nothing tells it.
        datasets: ids on the Hub that it was trained on.
        language: codes such as ``en``.
        name: title, and the repository's id in the snippets; the folder's name by default.

    Raises:
        ConfigError: the folder holds no retrofitted model; a file is damaged; the results are of another model; or an
            argument is nothing the Hub takes.
        UnknownEncodingError: the model has an encoding that this installation does not know.
    """
    return plan_card(
        folder,
        results=results,
        recipe=recipe,
        base_model=base_model,
        license=license,
        datasets=datasets,
        language=language,
        name=name,
    ).card


def write_card(folder: str | Path, *, overwrite: bool = False, **options: Any) -> list[Path]:
    """Write ``README.md``, and the pictures of the evaluation beside it as ``evaluation-*.png``.

    Args:
        folder: as for :func:`make_card`.
        overwrite: replace a README that was not written here, or was edited since.
        options: as for :func:`make_card`.

    Returns:
        What was written.

    Raises:
        ConfigError: as for :func:`make_card`, or a README stands in the way.
        OSError: the disk is full, or the folder cannot be written; the old README is as it was.
    """
    check_target(Path(folder), overwrite)
    plan = plan_card(folder, **options)
    return write_plan(plan, overwrite=overwrite)


def write_plan(plan: Plan, *, overwrite: bool = False) -> list[Path]:
    """Write what :func:`plan_card` planned; see :func:`write_card`."""
    check_target(plan.folder, overwrite)
    return write(plan.folder, str(plan.card), plan.pictures)


def plan_card(
    folder: str | Path,
    *,
    results: str | Path | None = None,
    recipe: str | Path | None = None,
    base_model: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    language: str | Sequence[str] | None = None,
    name: str | None = None,
) -> Plan:
    """As :func:`make_card`, with the pictures and with what people should know before it is written."""
    from huggingface_hub import ModelCard

    folder = Path(folder).expanduser()
    if name is not None and (not one_line(name) or len(name) > 200):
        raise ConfigError(f"name={name[:60]!r} must be a title or a repository's id of 1 to 200 characters.")
    known = read_all(folder, results, recipe, base_model, license, datasets, language)
    title = name or _title(folder, known.run)
    pictures, left = choose_pictures(known.results.pictures) if known.results else ({}, 0)
    if left:
        known.notes.append(f"{left} more pictures were left out")
    index = evaluation.model_index(known.results, known.saved.pipeline) if known.results else []
    data = card_data(known.saved, known.facts, label(title), index)
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), **_values(known, title, list(pictures)))
    sign(card)
    check_card(card)
    check_secrets(str(card))
    return Plan(folder, card, pictures, [*known.notes, *known.facts.said])


def _title(folder: Path, run: Run | None) -> str:
    name = folder.resolve().name
    return run.name if run is not None and (name in COMMON or run.folder == folder.resolve()) else name


def _values(known: Known, title: str, pictures: list[str]) -> dict[str, Any]:
    """What the template shows; all of it Markdown already."""
    saved, results, facts, recipe = known.saved, known.results, known.facts, known.recipe
    repo = title if is_repo_id(title) else "REPOSITORY"
    base = f"[{facts.base_model}](https://huggingface.co/{facts.base_model})" if facts.base_model else ""
    tested = results.tested_length if results else None
    return {
        "title": plain(title),
        "sentence": describing.sentence(saved, base or plain(facts.base_name) or "A pretrained model"),
        "base_is_local": bool(facts.base_name and not facts.base_model),
        "base_is_unknown": not facts.base_name,
        "license_is_unknown": not facts.license,
        "told_by": "" if saved.told_by in ("config.json", "position_encoding.json") else saved.told_by,
        "lengths": {
            "trained": tokens(saved.trained),
            "reach": tokens(saved.reach) if saved.reach and saved.reach != saved.trained else "",
            "tested": tokens(tested) if tested else "not tested",
        },
        "loading": loading(saved, one_line(without_paths(title)), facts.base_model or facts.base_name),
        "layer_table": describing.layer_table(saved),
        "encodings": list(describing.encodings(saved)),
        "training": trained(known.training, recipe, known.run),
        "calibration": calibrated(known.calibration),
        "evaluated": results is not None,
        "stage": _stage(known),
        "verdict": evaluation.headline(results) if results else "",
        "tables": list(evaluation.tables(results)) if results else [],
        "pictures": [(plain(_alt(name)), name) for name in pictures],
        "measured": evaluation.measured(results, repo) if results else "",
        "serving": serving(saved, repo),
        "limits": limits(saved, results, known.training, recipe),
        "recipe": fence(without_paths(recipe.text), "yaml") if recipe else "",
        "recipe_shortened": bool(recipe and recipe.shortened),
        "versions": _versions(known),
        "unsigned": UNSIGNED,
    }


def _alt(name: str) -> str:
    return name.removeprefix("evaluation-").removesuffix(".png").replace("-", " ").replace("_", " ")


def _stage(known: Known) -> str:
    """A warning where what was evaluated is not what was saved."""
    run, results = known.run, known.results
    if run is None or results is None or run.results is None or run.stage == run.last_stage:
        return ""
    if results.path.parent.resolve() != run.results.resolve():
        return ""
    return f"These numbers were measured after the step {run.stage}; the model was saved after {run.last_stage}."


def _versions(known: Known) -> str:
    versions = (known.run.versions if known.run else {}) or (known.results.versions if known.results else {})
    if not versions and known.saved.transformers:
        versions = {"transformers": known.saved.transformers}
    return ", ".join(f"{plain(name, 40)} {plain(version, 40)}" for name, version in versions.items())
