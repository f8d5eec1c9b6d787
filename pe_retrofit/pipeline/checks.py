"""What can be checked before anything heavy is loaded: names, files, packages, layers, room on the disk."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnknownEncodingError, UnsupportedError
from ..layering import split_spec
from ..loading import Source
from ..plan import resolve_layers
from ..sources import check_text
from ..training.lora import check_quantizing
from .schema import Recipe
from .store import check_folder
from .workshop import source_of

PACKAGES = {"lora": "peft", "transfer": "peft", "finetune": "accelerate", "data": "datasets"}
"""Packages that a section needs beside those always installed."""


def check_recipe(recipe: Recipe, *, again: bool = False) -> list[str]:
    """Check a recipe against this machine.

    Args:
        recipe: of a valid form.
        again: the run starts over, so what is in its folder does not matter.

    Returns:
        What could not be checked here, a line each.

    Raises:
        ConfigError: with every problem found.
    """
    problems: list[str] = []
    notes: list[str] = []
    for section, package in PACKAGES.items():
        if recipe[section] is not None and importlib.util.find_spec(package) is None:
            problems.append(f"{section}: needs the package {package!r}; install it with: pip install {package}")
    if recipe["lora"] is not None:
        _try(problems, "lora", lambda: check_quantizing(recipe["lora"].quantize))
    source = _try(problems, "model", lambda: source_of(recipe))
    if source is not None:
        _check_model(recipe, source, problems, notes)
    for section, names in _texts(recipe):
        for name in names:
            _try(problems, section, lambda name=name: check_text(name))
            if name.startswith("hub:"):
                notes.append(f"{section}: {name} is on the Hub and was not looked at")
    if not again:
        _try(problems, "run", lambda: check_folder(recipe.folder, recipe))
    if problems:
        error = ConfigError(
            f"The recipe {recipe.name!r} cannot run here:" + "".join(f"\n  - {p}" for p in dict.fromkeys(problems))
        )
        error.problems = tuple(problems)
        raise error
    return notes


def _check_model(recipe: Recipe, source: Source, problems: list[str], notes: list[str]) -> None:
    folder = source.folder
    if folder is None:
        notes.append(f"model: {source.name} is on the Hub and was not looked at")
        return
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    place = next((p for p in (recipe.folder, *recipe.folder.resolve().parents) if p.exists()), Path())
    free = shutil.disk_usage(place).free
    if recipe["save"] is not None and recipe["save"].form == "merged" and free < size:
        problems.append(
            f"run: {place} has {free / 2**30:.1f} GiB free, and the saved model takes about {size / 2**30:.1f} GiB"
        )
    if "gguf_file" in source.kwargs or recipe["model"].trust_remote_code:
        return
    layers = _try(problems, "model", lambda: _layers(source))
    if layers and recipe["patch"] is not None:
        spec, chosen = recipe["patch"].spec, recipe["patch"].selected
        _try(problems, "patch", lambda: (split_spec(spec, {}, chosen, layers), resolve_layers(chosen, layers)))


def _layers(source: Source) -> int | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.name, **source.kwargs)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{source.name!r} cannot be loaded: {error}") from error
    found: int | None = getattr(config, "num_hidden_layers", None)
    return found


def _texts(recipe: Recipe) -> list[tuple[str, list[str]]]:
    found = []
    if recipe["data"] is not None:
        found.append(("data", recipe["data"].names()))
    evaluate = recipe["evaluate"]
    if evaluate is not None and evaluate.text not in (None, "held_out"):
        found.append(("evaluate", [evaluate.text]))
    return found


def _try(problems: list[str], section: str, call: Any) -> Any:
    try:
        return call()
    except (ConfigError, UnknownEncodingError, UnsupportedError) as error:
        problems.append(f"{section}: {error}")
        return None
