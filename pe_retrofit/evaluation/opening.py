"""Open what a user names: the model with its patch and adapter on, and what it is to be compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..hub.adapters import patch_for
from ..loading import Source, find_source, load_model, load_tokenizer
from ..marking import BLOCK
from ..patching import patch_model, unpatch_model
from ..specs import Named, read_named
from ..status import status

ADAPTER = "adapter_config.json"


@dataclass
class Opened:
    """A loaded model.

    Attributes:
        named: what was asked.
        model, tokenizer: with the patch and the adapter on.
        base: the model without patch and adapter, in words.
        adapter: folder or id of the adapter; None without.
    """

    named: Named
    model: Any
    tokenizer: Any
    base: str
    adapter: str | None

    @property
    def changed(self) -> bool:
        """Whether there is something to take off for a stock model."""
        return self.adapter is not None or status(self.model).patched

    @contextmanager
    def stock(self) -> Iterator[Any]:
        """The same model without patch and adapter, for as long as the block lasts; not patched again afterwards."""
        if self.adapter is not None:
            with self.model.disable_adapter():
                yield unpatch_model(self.model)
        else:
            yield unpatch_model(self.model)


def open_model(
    text: str, *, dtype: str = "auto", device: Any = None, gguf_file: str | None = None, trust_remote_code: bool = False
) -> Opened:
    """Load a model, put it on a device, patch it, and add its adapter.

    An adapter that says what its base was patched with gets a base patched so.

    Args:
        text: see :func:`~pe_retrofit.specs.read_named`; ``smollm2`` and ``minilm`` come in packages.

    Raises:
        ConfigError, UnknownEncodingError, UnsupportedError: it cannot be found, loaded or patched, has no tokenizer, or
            its adapter was made for a model with another patch.
    """
    named = read_named(text)
    folder = Path(named.model)
    adapter = str(folder) if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file() else None
    base = _base_of(folder) if adapter else named.model
    source = find_source(base, gguf_file, trust_remote_code)
    model, _ = load_model(source, dtype)
    tokenizer = _tokenizer(source, adapter)
    if device is not None:
        model = model.to(device)
    if named.spec is not None:
        patch_model(model, named.spec, layers=named.layers)
    if adapter is not None:
        patch_for(model, folder)
        model = _with_adapter(model, adapter)
    return Opened(named, model.eval(), tokenizer, Named(base, base).label, adapter)


def describe_source(opened: Opened) -> dict[str, Any]:
    """Where the model comes from, for the results."""
    config = opened.model.config
    return {"name": opened.named.label, "base": opened.base, "revision": getattr(config, "_commit_hash", None)}


def is_retrofit(folder: str) -> bool:
    """Whether a folder holds a model that was saved patched."""
    path = Path(folder) / "config.json"
    try:
        return path.is_file() and BLOCK in json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _base_of(adapter: Path) -> str:
    try:
        base = json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{adapter / ADAPTER} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{adapter / ADAPTER} names no base model (base_model_name_or_path).")
    return base


def _with_adapter(model: Any, adapter: str) -> Any:
    """The model with an adapter, whose positional tensors must have a place in it."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise UnsupportedError(f"{adapter!r} is a peft adapter. Install peft with: pip install peft") from error
    from safetensors import safe_open

    weights = Path(adapter) / "adapter_model.safetensors"
    if not weights.is_file():
        raise ConfigError(
            f"{adapter!r} holds no adapter_model.safetensors. Pickled adapters are not loaded; save it anew."
        )
    with safe_open(weights, "pt") as tensors:
        learned = [key for key in tensors.keys() if f".{BLOCK}." in key]  # noqa: SIM118 (not a mapping)
    if learned and not any(f".{BLOCK}." in f".{name}" for name, _ in model.named_parameters()):
        raise UnsupportedError(
            f"The adapter {adapter!r} holds learned positions ({learned[0]}, ...), and its base model is not patched, "
            "so they would be lost. Name the encoding it was trained with: NAME@ADAPTER, e.g. t5@ADAPTER."
        )
    return PeftModel.from_pretrained(model, adapter).eval()


def _tokenizer(source: Source, adapter: str | None) -> Any:
    tokenizer, reason = load_tokenizer(source)
    if tokenizer is None and adapter is not None:
        tokenizer, reason = load_tokenizer(Source(adapter, {}))
    if tokenizer is None:
        raise ConfigError(f"{source.name!r} has no tokenizer, which an evaluation needs: {reason}")
    return tokenizer
