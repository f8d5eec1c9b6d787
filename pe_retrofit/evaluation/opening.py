"""Open what a user names: the model with its patch and adapter on, and what it is to be compared with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..hub.adapter_files import CONFIG
from ..hub.adapter_loading import base_name, base_source, put_on
from ..hub.adapters import prepare_base
from ..loading import Source, find_source, load_model, load_tokenizer
from ..marking import BLOCK
from ..patching import patch_model, unpatch_model
from ..specs import Named, read_named
from ..status import status


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
    adapter = str(folder) if (folder / CONFIG).is_file() and not (folder / "config.json").is_file() else None
    if adapter is None:
        base, source = named.model, find_source(named.model, gguf_file, trust_remote_code)
    else:
        base, source = base_name(folder), base_source(folder, trust_remote_code, gguf_file=gguf_file)
    model, _ = load_model(source, dtype)
    tokenizer = _tokenizer(source, adapter)
    if device is not None:
        model = model.to(device)
    if named.spec is not None:
        patch_model(model, named.spec, layers=named.layers)
    if adapter is not None:
        prepare_base(model, folder, patch=True)
        model = put_on(model, folder)
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


def _tokenizer(source: Source, adapter: str | None) -> Any:
    tokenizer, reason = load_tokenizer(source)
    if tokenizer is None and adapter is not None:
        tokenizer, reason = load_tokenizer(Source(adapter, {}))
    if tokenizer is None:
        raise ConfigError(f"{source.name!r} has no tokenizer, which an evaluation needs: {reason}")
    return tokenizer
