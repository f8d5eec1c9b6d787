"""How a patched model says so in its config: in memory the host's type, on disk one of our own.

A config of a patched model is an instance of a subclass of the host's config class. ``model_type`` and ``to_dict`` stay
the host's, so peft, trl and generation keep their defaults; only what is *written* names :data:`MODEL_TYPE`, so that a
loader without this package fails loudly instead of running the unpatched architecture. The file holds the host's
original values of whatever patching edits, and patching again on load restores the rest.

Some loaders do not look at ``model_type`` (``LlamaForCausalLM.from_pretrained`` only warns). For them one field that
every architecture must resolve while it is built (the rope type, the activation) is written as a word that does not
resolve and says what is missing; its true value lies in the block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedConfig

from .config import SCHEMA_VERSION

MODEL_TYPE = "pe_retrofit"
"""``model_type`` on disk of every model whose encoding transformers itself cannot express."""

BLOCK = "position_encoding"
"""Name of the config entry."""

ORIGINAL = "original"
"""Within the block, in memory only: values of the host's config before patching."""

HOST = "host"
"""Within the block, on disk only: true values of the guarded fields."""

NEEDED = "import pe_retrofit, then load this model with an Auto class"
"""What a loader that ignores ``model_type`` stumbles over."""

STANDALONE = False
"""True in the copy of this code that travels with a checkpoint."""

ACTIVATIONS = ("hidden_act", "hidden_activation", "activation")

on_new_class: list[Callable[[type[PreTrainedConfig], type[PreTrainedConfig]], None]] = []
"""Called with (marked class, host class) when a marked class comes into being."""

_CLASSES: dict[type[PreTrainedConfig], type[PreTrainedConfig]] = {}


class MarkedConfig:
    """Mixin of the config classes of patched models."""

    host_class: type[PreTrainedConfig]

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to ``config.json``."""
        written = super().to_diff_dict()  # type: ignore[misc]
        block = dict(getattr(self, BLOCK, None) or {})
        written.update(block.pop(ORIGINAL, {}))
        guarded = guard(written)
        block[HOST] = {key: written.get(key) for key in guarded}
        written.update(guarded)
        written[BLOCK] = block
        written["model_type"] = MODEL_TYPE
        travelling_code(written)
        return written

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _blank, (self.host_class,), self.__dict__


def guard(written: dict[str, Any]) -> dict[str, Any]:
    """Fields of a host's config and the unresolvable values that stand in the file for them."""
    rope = written.get("rope_parameters")
    if isinstance(rope, dict) and rope:
        nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
        stop = {"rope_type": NEEDED, "rope_theta": 1.0}
        return {"rope_parameters": dict.fromkeys(nested, stop) if nested else stop}
    return {name: NEEDED for name in ACTIVATIONS if isinstance(written.get(name), str)}


def travelling_code(written: dict[str, Any]) -> None:
    """``auto_map`` names code beside the config. The copy that travels with a checkpoint writes itself there, whatever
    repository it came from; this package writes none, so the entry would name a file that is not there."""
    if not STANDALONE:
        written.pop("auto_map", None)
    elif isinstance(written.get("auto_map"), dict):
        written["auto_map"] = {auto: str(name).rpartition("--")[2] for auto, name in written["auto_map"].items()}


def marked_class(host_class: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """The subclass of a host's config class that marks a patched model; made once per host class."""
    if issubclass(host_class, MarkedConfig):
        return host_class
    if host_class not in _CLASSES:
        body = {"host_class": host_class, "__module__": __name__, "__doc__": host_class.__doc__}
        made = type(host_class.__name__, (MarkedConfig, host_class), body)
        _CLASSES[host_class] = made
        for callback in on_new_class:
            callback(made, host_class)
    return _CLASSES[host_class]


def mark(config: PreTrainedConfig, patches: list[dict[str, Any]], original: dict[str, Any]) -> None:
    """Make ``config`` say that its model carries ``patches``; ``original`` are host values that were edited."""
    config.__class__ = marked_class(type(config))  # type: ignore[assignment]
    block = {
        "schema_version": SCHEMA_VERSION,
        "host_model_type": config.model_type,
        "patches": patches,
        ORIGINAL: original,
    }
    setattr(config, BLOCK, block)


def unmark(config: PreTrainedConfig) -> None:
    """Undo :func:`mark`."""
    if isinstance(config, MarkedConfig):
        config.__class__ = config.host_class  # type: ignore[assignment]
        config.__dict__.pop(BLOCK, None)


def _blank(host_class: type[PreTrainedConfig]) -> PreTrainedConfig:
    cls = marked_class(host_class)
    return cls.__new__(cls)
