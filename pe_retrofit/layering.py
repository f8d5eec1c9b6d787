"""What each layer gets: mappings from layers to specs, and hybrids, which expand to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import EncodingConfig
from .errors import ConfigError, UnsupportedError
from .plan import resolve_layers
from .registry import NATIVE, config_from_dict, get_encoding
from .sites import HybridEncoding

REST = "rest"
"""Selects the layers that no other selector names."""


@dataclass(frozen=True)
class Part:
    """A spec and its layers.

    Attributes:
        spec: a name, config object, mapping with a ``name``, or a list of these.
        options: for a name.
        layers: as for ``patch_model``.
        of_several: a part of a mapping, where ``"native"`` alone leaves its layers as they are.
    """

    spec: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    layers: Any = None
    of_several: bool = False


def split_spec(spec: Any, options: Mapping[str, Any], layers: Any, count: int) -> list[Part]:
    """One part per group of layers; a spec that is the same for all its layers is one part.

    Args:
        spec, options, layers: as the caller of ``patch_model`` gave them.
        count: layers of the model.

    Raises:
        ConfigError: selectors that are malformed, overlap or select nothing; options or ``layers`` beside a mapping.
        UnsupportedError: a hybrid within a list or a mapping.
    """
    hybrid = _hybrid(spec, options)
    if hybrid is not None:
        if count < hybrid.least_layers():
            raise ConfigError(
                f"{hybrid.config.name!r} needs a model of at least {hybrid.least_layers()} layers with these options; "
                f"this one has {count}. Choose a smaller interval, e.g. every={count}."
            )
        what, mapping = repr(hybrid.config.name), hybrid.layers(count)
    elif isinstance(spec, Mapping) and "name" not in spec:
        what, mapping = "A mapping from layers to encodings", spec
        if options:
            raise ConfigError(
                f"Options {sorted(options)} were given beside a mapping, so it is unclear whose they are. Put them "
                "into config objects, e.g. {'3::4': NopeConfig(attn_scale=0.1), 'rest': 'native'}."
            )
    else:
        _refuse_hybrids(spec)
        return [Part(spec, options, layers)]
    if layers is not None:
        raise ConfigError(f"{what} says itself which layers get what, so layers={layers!r} cannot be given as well.")
    return _parts(mapping, count)


def read_selector(text: str) -> slice | list[int]:
    """``3``, ``0,5,7``, ``3::4`` or ``-4:``.

    Raises:
        ValueError: anything else.
    """
    if ":" in text:
        bounds = [int(bound) if bound.strip() else None for bound in text.split(":")]
        if len(bounds) > 3 or bounds[2:] == [0]:
            raise ValueError(text)
        return slice(*bounds)
    return [int(index) for index in text.split(",")]


def _parts(mapping: Mapping[Any, Any], count: int) -> list[Part]:
    if not mapping:
        raise ConfigError("The mapping from layers to encodings is empty. Name layers, e.g. {'3::4': 'nope'}.")
    owners: dict[int, Any] = {}
    parts = []
    for selector, spec in mapping.items():
        if isinstance(spec, Mapping) and "name" not in spec:
            raise ConfigError(f"Layers {selector!r} are given {spec!r}, which is no encoding: it has no 'name'.")
        _refuse_hybrids(spec)
        if selector == REST:
            continue
        chosen = _select(selector, count)
        for layer in chosen:
            if layer in owners:
                raise ConfigError(
                    f"Layer {layer} is selected by both {owners[layer]!r} and {selector!r}; a layer gets one spec. Use "
                    "a list to compose encodings on it."
                )
            owners[layer] = selector
        parts.append(Part(spec, layers=chosen, of_several=True))
    for selector, spec in mapping.items():
        if selector == REST:
            left = [layer for layer in range(count) if layer not in owners]
            if not left:
                raise ConfigError(f"{REST!r} selects nothing: the other selectors name all {count} layers.")
            parts.append(Part(spec, layers=left, of_several=True))
    return parts


def _select(selector: Any, count: int) -> list[int]:
    chosen = selector
    if isinstance(selector, str):
        try:
            chosen = read_selector(selector)
        except ValueError as error:
            raise ConfigError(
                f"{selector!r} selects no layers. Write an index (3), indices ('0,5,7'), a slice ('3::4': every fourth "
                f"from the fourth on) or {REST!r}. Options of one encoding go beside its 'name'."
            ) from error
    if chosen is None:
        raise ConfigError(f"None selects no layers; for all that are not named write {REST!r}.")
    return resolve_layers(chosen, count)


def _hybrid(spec: Any, options: Mapping[str, Any]) -> HybridEncoding | None:
    """The hybrid that a spec names, alone or as the only item of a list."""
    if isinstance(spec, (list, tuple)) and len(spec) == 1:
        (spec,) = spec
    kind = _kind(spec)
    if kind is None:
        return None
    if isinstance(spec, EncodingConfig):
        if options:
            raise ConfigError(f"Options {sorted(options)} were given beside a config object; put them into it.")
        return kind(spec)
    return kind(config_from_dict(spec) if isinstance(spec, Mapping) else kind.Config.from_options(options))


def _kind(item: Any) -> type[HybridEncoding] | None:
    name = getattr(item, "name", None) if isinstance(item, EncodingConfig) else item
    name = item.get("name") if isinstance(item, Mapping) else name
    if not isinstance(name, str) or name in NATIVE:
        return None
    kind = get_encoding(name)
    return kind if issubclass(kind, HybridEncoding) else None


def _refuse_hybrids(spec: Any) -> None:
    for item in spec if isinstance(spec, (list, tuple)) else [spec]:
        kind = _kind(item)
        if kind is not None:
            raise UnsupportedError(
                f"{kind.Config.name!r} says what each layer of a model gets, so it cannot be a part of something. Use "
                "it alone, or write the layers out, e.g. {'3::4': 'nope', 'rest': ['native', 'alibi']}."
            )
