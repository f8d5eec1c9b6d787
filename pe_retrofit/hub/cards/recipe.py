"""The recipe and the run behind a saved model, as far as a card needs them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError, UnknownEncodingError, UnsupportedError
from ...registry import NATIVE, get_encoding, list_encodings
from ...sites import HybridEncoding
from ...specs import make_spec
from .checking import read_text
from .text import is_path, last_part, without_paths

FILE = "recipe.yaml"
MOST_BYTES = 2**20
DEEPEST = 40


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
    def names(self) -> set[str]:
        """Names of the encodings it patches with; empty with a hybrid, which a saved model shows as its parts."""
        found = set(_named(self.sections.get("patch"), 0)) - set(NATIVE)
        known = {name for name in found if name in list_encodings()}
        return set() if any(issubclass(get_encoding(name), HybridEncoding) for name in known) else known

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
        shown = re.sub(rf"(?<![\w./-]){re.escape(value)}(?![\w/-])", lambda _, v=value: last_part(v), shown)  # type: ignore[misc]
    shown = "\n".join(without_paths(line) for line in shown.splitlines())
    return Recipe(shown, shown.split() != text.split(), sections, path.stem)


def _named(patch: Any, depth: int) -> Iterator[str]:
    """Every name in a section ``patch``."""
    if depth > 6:
        return
    if isinstance(patch, str):
        yield from patch.split("+")
    elif isinstance(patch, list):
        for part in patch[:1000]:
            yield from _named(part, depth + 1)
    elif isinstance(patch, dict) and "name" in patch:
        yield from _named(patch["name"], depth + 1)
    elif isinstance(patch, dict):
        for part in list(patch.values())[:1000]:
            yield from _named(part, depth + 1)


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
