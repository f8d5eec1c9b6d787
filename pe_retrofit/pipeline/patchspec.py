"""The section ``patch`` of a recipe: every way of writing which layers get which encodings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import EncodingConfig, shorten
from ..errors import ConfigError, UnknownEncodingError, UnsupportedError
from ..layering import REST, read_selector
from ..registry import NATIVE, get_encoding
from ..sites import HybridEncoding
from ..specs import make_spec

LAYERS = "layers"


@dataclass(frozen=True)
class PatchOptions:
    """What ``patch_model`` gets.

    Attributes:
        spec: a list of config objects and ``"native"``, or a mapping from layers to such lists.
        layers: for a list: None for all layers, or what selects some.
    """

    spec: Any
    layers: str | None = None

    @property
    def names(self) -> list[str]:
        """Names of the encodings."""
        lists = self.spec.values() if isinstance(self.spec, Mapping) else [self.spec]
        return list(dict.fromkeys(_name(item) for items in lists for item in items))

    @property
    def selected(self) -> Any:
        """The layers, as ``patch_model(layers=...)`` takes them."""
        return None if self.layers is None else read_selector(self.layers)

    def to_plain(self) -> Any:
        """As a recipe holds it, with every option written out."""
        if isinstance(self.spec, Mapping):
            return {key: [_plain(item) for item in items] for key, items in self.spec.items()}
        entries = [_plain(item) for item in self.spec]
        if self.layers is None:
            return entries[0] if len(entries) == 1 else entries
        return {**entries[0], LAYERS: self.layers} if len(entries) == 1 else {self.layers: entries}

    @classmethod
    def parse(cls, value: Any) -> PatchOptions:
        """Understand a recipe's ``patch``.

        ``alibi``; ``native+t5``; ``{name: yarn, factor: 4}``; ``{name: native+t5, num_buckets: 64, layers: "3::4"}``;
        a list that composes, ``[native, {name: t5, num_buckets: 64}]``; or a mapping from layers to any of these,
        ``{"3::4": nope, rest: native}``.

        Raises:
            ConfigError: with all problems found (``problems``).
        """
        problems: list[str] = []
        made = _parse(value, problems)
        if problems or made is None:
            error = ConfigError("The patch is not valid:" + "".join(f"\n  - {p}" for p in problems))
            error.problems = tuple(problems)
            raise error
        return made


def _parse(value: Any, problems: list[str]) -> PatchOptions | None:
    if isinstance(value, Mapping) and "name" in value:
        layers = value.get(LAYERS)
        if layers is not None:
            layers = _selector(layers, problems)
        items = _items({k: v for k, v in value.items() if k != LAYERS}, problems)
        return PatchOptions(items, None if layers == "all" else layers)
    if not isinstance(value, Mapping):
        items = _items(value, problems)
        if items == ["native"]:
            problems.append("'native' alone changes nothing; name an encoding, or leave the section out")
        return PatchOptions(items)
    if not value:
        problems.append("names no encoding; write a name such as alibi, or {name: yarn, factor: 4}")
    spec: dict[str, Any] = {}
    for key, part in value.items():
        selector = REST if key == REST else _selector(key, problems, near=part)
        items = _items(part, problems)
        if any(_is_hybrid(item) for item in items):
            problems.append(f"layers {key!r}: a hybrid says itself which layers get what, so it cannot be a part")
        spec[str(selector)] = items
    if len(spec) < len(value):
        problems.append("layers are selected twice; select them once")
    if spec and all(items == ["native"] for items in spec.values()):
        problems.append("'native' on every layer changes nothing; give some layers another encoding")
    return PatchOptions(spec)


def _items(value: Any, problems: list[str]) -> list[Any]:
    """A list of configs and ``"native"`` from one way of writing it."""
    if isinstance(value, (list, tuple)):
        if not value:
            problems.append("the list of encodings is empty; name at least one, such as [native, t5]")
        made = [item for part in value for item in _one(part, problems)]
    else:
        made = _one(value, problems)
    found = [_name(item) for item in made]
    problems.extend(f"{name!r} is named twice" for name in dict.fromkeys(found) if found.count(name) > 1)
    if len(made) > 1 and any(_is_hybrid(item) for item in made):
        problems.append("a hybrid says what each layer gets, so it cannot be composed with something")
    return made


def _one(value: Any, problems: list[str]) -> list[Any]:
    options: dict[str, Any] = {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        options = {str(key): option for key, option in value.items() if key != "name"}
        value = value["name"]
    if not isinstance(value, str):
        problems.append(f"{shorten(value)} is no encoding; write a name, or {{name: yarn, factor: 4}}")
        return []
    try:
        return make_spec(value, options)[0]
    except (ConfigError, UnknownEncodingError, UnsupportedError) as error:
        found = error.problems if isinstance(error, ConfigError) else ()
        problems.extend([f"{value}: {problem}" for problem in found] or [str(error)])
    return []


def _selector(value: Any, problems: list[str], near: Any = None) -> str:
    """``3``, ``0,5,7``, ``3::4`` as text."""
    if isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
        value = ",".join(map(str, value))
    text = str(value).replace(" ", "")
    if text == "all":
        return text
    try:
        read_selector(text)
    except ValueError:
        known = near is not None and isinstance(value, str) and value.isidentifier()
        way = ", or put options beside a 'name'" if known else ""
        problems.append(f"{shorten(value)} selects no layers; write 3, '0,5,7', '3::4' or rest{way}")
    return text


def _is_hybrid(item: Any) -> bool:
    return not isinstance(item, str) and issubclass(get_encoding(item.name), HybridEncoding)


def _name(item: Any) -> str:
    return item if isinstance(item, str) else str(item.name)


def _plain(item: Any) -> Any:
    if isinstance(item, EncodingConfig):
        return item.to_dict()
    return item if item in NATIVE else {"name": item}
