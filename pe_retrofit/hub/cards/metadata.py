"""The metadata at the top of a card: where each value comes from, and that the Hub will take it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from .checking import read_text
from .folder import ADAPTED, Saved
from .recipe import Recipe
from .results import Results
from .text import last_part, one_line

README = "README.md"
MOST_BYTES = 4 * 2**20

BUNDLED = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm": "sentence-transformers/all-MiniLM-L6-v2",
}
"""Short names of models that come in packages, and where they are on the Hub."""

_LICENSES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql
ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_LICENSES.split())
"""Licences as the Hub names them."""


@dataclass
class Facts:
    """What the metadata says, and who says so.

    Attributes:
        base_model: id on the Hub; empty where it is unknown, or not on the Hub.
        base_name: the base model in words, for sentences.
        license, datasets, language: as on the Hub; empty where unknown.
        said: a line per value, with where it comes from.
    """

    base_model: str = ""
    base_name: str = ""
    license: str = ""
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    said: list[str] = field(default_factory=list)


def gather(
    saved: Saved,
    results: Results | None,
    recipe: Recipe | None,
    *,
    base_model: str | None,
    license: str | None,
    datasets: Sequence[str],
    language: str | Sequence[str] | None,
) -> Facts:
    """Values from the arguments, else from the recipe, the folder, its card, or the results.

    Raises:
        ConfigError: an argument is nothing that the Hub takes; with all that is wrong.
    """
    there = front_matter(saved.folder / README)
    facts = Facts()
    _base(facts, saved, results, recipe, base_model, there)
    wrong: list[str] = []
    if license is not None and license.lower() not in LICENSES:
        close = difflib.get_close_matches(license.lower(), sorted(LICENSES), n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "'other' stands for any other."
        wrong.append(f"license={one_line(license, 60)!r} is no licence that the Hub knows; {hint}")
    wrong += [f"dataset {one_line(name, 60)!r} is no id on the Hub" for name in datasets if not is_repo_id(name)]
    languages = (language,) if isinstance(language, str) else tuple(language or ())
    wrong += [
        f"language={one_line(code, 60)!r} is no code such as 'en'" for code in languages if not _is_language(code)
    ]
    if wrong:
        raise ConfigError("The card cannot say this: " + "; ".join(wrong) + ".")
    found = license or str(there.get("license") or "")
    if found.lower() in LICENSES:
        facts.license = found.lower()
        facts.said.append(f"license: {facts.license} ({'as given' if license else f'from the {README} there'})")
    facts.datasets = tuple(datasets) or _datasets(recipe, there, facts)
    facts.language = languages or tuple(code for code in _several(there.get("language")) if _is_language(code))
    return facts


def _base(
    facts: Facts,
    saved: Saved,
    results: Results | None,
    recipe: Recipe | None,
    given: str | None,
    there: Mapping[str, Any],
) -> None:
    card = _several(there.get("base_model"))
    candidates = [
        (given or "", "as given"),
        (recipe.model if recipe else "", "from the recipe"),
        (saved.base, "from the folder"),
        (results.base if results else "", "from the results"),
        (results.stock if results else "", "from the results"),
        (card[0] if card else "", f"from the {README} there"),
    ]
    for name, source in candidates:
        name = BUNDLED.get(name, name)
        if not name:
            continue
        if is_repo_id(name) and "/" in name and not Path(name).exists():
            facts.base_model = facts.base_name = name
            facts.said.append(f"base_model: {name} ({source})")
            return
        if source == "as given" and not is_repo_id(name) and not Path(name).expanduser().exists():
            raise ConfigError(f"base_model={one_line(last_part(name), 80)!r} is neither an id on the Hub nor a folder.")
        facts.base_name = facts.base_name or local_name(name)
        if source == "as given":
            break
    if facts.base_name:
        facts.said.append(f"base_model: left out, {facts.base_name!r} is no id on the Hub")
    else:
        facts.said.append("base_model: left out, nothing names it")


def _datasets(recipe: Recipe | None, there: Mapping[str, Any], facts: Facts) -> tuple[str, ...]:
    """From ``hub:NAME:...`` in the recipe, else from the card there."""
    if recipe is not None and recipe.data.startswith("hub:"):
        name = recipe.data.removeprefix("hub:").split(":")[0]
        if is_repo_id(name):
            facts.said.append(f"datasets: {name} (from the recipe)")
            return (name,)
    found = tuple(name for name in _several(there.get("datasets")) if is_repo_id(name))
    if found:
        facts.said.append(f"datasets: {', '.join(found)} (from the {README} there)")
    return found


def local_name(name: str) -> str:
    """A model's name without where it lies here."""
    short = last_part(name)
    if short == name and ("/" in name or "\\" in name or name.startswith(".")) and Path(name).exists():
        return Path(name).resolve().name
    return one_line(short, 120)


def is_repo_id(name: object) -> bool:
    """Whether the Hub could have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def front_matter(path: Path) -> dict[str, Any]:
    """The metadata of a card that is there already; empty where there is none that can be read."""
    if not path.is_file():
        return {}
    block = re.match(r"\s*---\r?\n(.*?)\r?\n---", read_text(path, MOST_BYTES), re.DOTALL)
    try:
        found = yaml.safe_load(block[1]) if block else None
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def card_data(saved: Saved, facts: Facts, name: str, results: list[Any]) -> Any:
    """The metadata as ``huggingface_hub`` writes it."""
    from huggingface_hub import ModelCardData

    relation = "adapter" if saved.form == ADAPTED else "finetune"
    tags = ["pe_retrofit", "positional-encoding", "long-context", *saved.names, saved.host_type]
    return ModelCardData(
        base_model=facts.base_model or None,
        base_model_relation=relation if facts.base_model else None,
        library_name="peft" if saved.form == ADAPTED else "transformers",
        pipeline_tag=saved.pipeline,
        license=facts.license or None,
        language=list(facts.language) or None,
        datasets=list(facts.datasets) or None,
        tags=[tag for tag in tags if tag],
        model_name=name if results else None,
        eval_results=results or None,
    )


def check_card(card: Any) -> None:
    """What the Hub's validation asks of the metadata, as far as it can be checked here.

    Raises:
        ConfigError: it would be refused.
    """
    from huggingface_hub import ModelCard

    again = ModelCard(str(card))
    if again.data.to_dict() != card.data.to_dict() or again.text != card.text:
        raise ConfigError("The card's metadata does not read back as it was written. Please report this.")
    data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", str(card), re.DOTALL)[1])  # type: ignore[index]
    texts = ("base_model", "base_model_relation", "library_name", "pipeline_tag", "license")
    wrong = [key for key in texts if key in data and not isinstance(data[key], str)]
    for key in ("language", "datasets", "tags"):
        if key in data and not (isinstance(data[key], list) and all(isinstance(v, str) for v in data[key])):
            wrong.append(key)
    if wrong:
        raise ConfigError(f"The card's metadata is not what the Hub takes: {', '.join(wrong)}. Please report this.")


def _several(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, str) and entry]


def _is_language(code: object) -> bool:
    return isinstance(code, str) and re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]{2,8})?|code|multilingual", code) is not None
