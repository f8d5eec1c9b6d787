"""Which encodings exist. Open to third parties through :func:`register_encoding`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from .config import EncodingConfig
from .errors import ConfigError, UnknownEncodingError, UnsupportedError

if TYPE_CHECKING:
    from .sites import Encoding

NATIVE = ("native",)
"""Names that, in a list, keep what the model had."""

REFUSED = {
    "pope": "PoPE applies softplus to queries and keys, which destroys the signs a pretrained model relies on: it "
    "can only be trained from scratch. Nearest encodings that retrofit: 'partial_rope', 'nope'.",
}

_ENCODINGS: dict[str, type[Encoding]] = {}
_T = TypeVar("_T", bound="type[Encoding]")


def register_encoding(cls: _T) -> _T:
    """Make an encoding available by name; usable as a class decorator.

    Args:
        cls: subclass of :class:`~pe_retrofit.sites.InputEncoding`, ``RotationEncoding``, ``PiecewiseEncoding``,
            ``BiasEncoding``, ``ScoreEncoding`` or ``HybridEncoding``, with a ``Config`` (an
            :class:`~pe_retrofit.config.EncodingConfig` subclass whose ``name`` is what is registered) and an ``info``.

    Raises:
        ConfigError: the name is missing, malformed, reserved or taken by another class, or the class lacks something.
    """
    if not isinstance(cls, type) or not hasattr(cls, "faults"):
        raise ConfigError(
            "register_encoding needs a subclass of InputEncoding, RotationEncoding, PiecewiseEncoding, BiasEncoding, "
            f"ScoreEncoding or HybridEncoding, got {cls!r}."
        )
    config = getattr(cls, "Config", None)
    name = getattr(config, "name", "")
    if not isinstance(config, type) or not issubclass(config, EncodingConfig):
        raise ConfigError(f"{cls.__name__}.Config must be an EncodingConfig subclass, got {config!r}.")
    if not isinstance(name, str) or not name.isidentifier() or name != name.lower():
        raise ConfigError(f"{config.__name__}.name={name!r} must be a lower-case identifier such as 'my_bias'.")
    if name in NATIVE or name in REFUSED or hasattr(nn.Module(), name) or name in ("values", "items"):
        raise ConfigError(f"The name {name!r} is reserved; choose another for {cls.__name__}.")
    taken = _ENCODINGS.get(name)
    if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ConfigError(f"The name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another.")
    faults = cls.faults()
    if "__dataclass_fields__" not in vars(config):
        faults.append(f"decorate {config.__name__} with @dataclass(frozen=True)")
    if faults:
        raise ConfigError(f"{cls.__name__} cannot be registered yet: {'; '.join(faults)}.")
    _ENCODINGS[name] = cls
    return cls


def get_encoding(name: str) -> type[Encoding]:
    """The class registered under ``name``.

    Raises:
        UnknownEncodingError: nothing has this name; the nearest names are suggested.
        UnsupportedError: the encoding exists in the literature but cannot be retrofitted.
    """
    if not isinstance(name, str):
        raise TypeError(f"An encoding's name must be a string, got {type(name).__name__}: {name!r}.")
    if name in REFUSED:
        raise UnsupportedError(f"{name!r} cannot be retrofitted. {REFUSED[name]}")
    if name not in _ENCODINGS:
        close = difflib.get_close_matches(name.lower(), [*_ENCODINGS, *NATIVE], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise UnknownEncodingError(f"No encoding is called {name!r}.{hint} Known: {', '.join(list_encodings())}.")
    return _ENCODINGS[name]


def list_encodings() -> list[str]:
    """Names of all registered encodings, sorted."""
    return sorted(_ENCODINGS)


def config_from_dict(block: Mapping[str, Any]) -> EncodingConfig:
    """The inverse of :meth:`EncodingConfig.to_dict`."""
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise ConfigError(f"An encoding must be a mapping with a 'name', got {block!r}.")
    options = {k: v for k, v in block.items() if k != "name"}
    return get_encoding(block["name"]).Config.from_options(options)
