"""Load an adapter onto the base it was trained on, patched as it was, and prove that it arrived."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, UnsupportedError
from ..loading import Source, find_source, load_model
from ..models import quiet
from .adapter_files import CONFIG, WEIGHTS, check_file, held_tensors, read_settings
from .adapters import FILE, prepare_base, read_marker

TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.jinja", "added_tokens.json")


def load_adapter(
    adapter: str | Path,
    base: Any = None,
    *,
    patch: bool = False,
    dtype: str = "auto",
    device: Any = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    is_trainable: bool = False,
) -> Any:
    """Load an adapter that was saved by :func:`~pe_retrofit.hub.adapters.save_adapter`, or by peft.

    Args:
        adapter: folder, or id of a repository on the Hub.
        base: the base model, patched as in training; perhaps quantised. By default the one that the adapter names is
            loaded, and patched.
        patch: patch ``base`` as the adapter says, if it is not patched.
        dtype: ``auto`` (as stored), ``float32``, ``bfloat16`` or ``float16``, of a base that is loaded here.
        device: the model is moved there; by default it stays where it is.
        trust_remote_code: run code that the base model brings along.
        revision: of the adapter on the Hub.
        is_trainable: go on training it.

    Returns:
        A ``PeftModel``, in evaluation mode unless it is trainable.

    Raises:
        ConfigError: the adapter or its base cannot be found or read, or its tensors have no place in the model.
        UnsupportedError: ``base`` is not patched, patched otherwise, or another model (revision, shape or weights: each
            is named with both values); or peft is not installed.

    Example:
        >>> model = load_adapter("me/my-llama-t5-lora")
        >>> model = load_adapter("./lora", base, patch=True)
    """
    folder = adapter_folder(adapter, revision)
    _require_peft(folder)
    settings = read_settings(folder)
    if base is not None and hasattr(base, "peft_config"):
        raise UnsupportedError(
            "base has an adapter already. Merge it (merge_and_unload()), take it off (unload()), or hand in a plain "
            "model."
        )
    model = base if base is not None else _load_base(folder, settings, dtype, trust_remote_code)
    if device is not None and not getattr(model, "is_quantized", False):
        model = model.to(device)
    prepare_base(model, folder, patch=patch or base is None)
    return put_on(model, folder, settings, is_trainable=is_trainable)


def put_on(model: Any, folder: Path, settings: Any = None, *, is_trainable: bool = False) -> Any:
    """Wrap a model that is ready for it; an adapter that does not arrive whole is taken off again.

    Raises:
        ConfigError: its tensors do not fit, or did not arrive.
    """
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    settings = read_settings(folder) if settings is None else settings
    settings.inference_mode = not is_trainable
    check_file(folder, settings, model)
    more: dict[str, Any] = {"is_trainable": is_trainable, "torch_device": "cpu"}
    whole = {n: m for n, m in model.named_modules() if any(n.endswith(t) for t in settings.modules_to_save or ())}
    wrapped = None
    try:
        with quiet():
            if {"cpu", "disk"} & set((getattr(model, "hf_device_map", None) or {}).values()):
                wrapped = PeftModel.from_pretrained(model, str(folder), config=settings, **more)
            else:  # in two steps, so that it can be taken off when the second fails
                wrapped = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(settings.task_type, PeftModel)(model, settings)
                wrapped.load_adapter(str(folder), "default", **more)
        _prove(wrapped, folder)
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        if wrapped is not None:
            wrapped.unload()
            for name, module in whole.items():  # peft leaves its trained copies
                model.set_submodule(name, module)
        if isinstance(error, (ConfigError, UnsupportedError)):
            raise
        raise ConfigError(f"The adapter {folder.name!r} cannot be put on the model: {error!s:.500}") from error
    return wrapped.train() if is_trainable else wrapped.eval()


def adapter_folder(name: str | Path, revision: str | None = None) -> Path:
    """The folder of an adapter; its files are downloaded when it is on the Hub.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download(str(name), revision)
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{str(name)!r} holds no {CONFIG}, so it is no adapter.")
    return folder


def base_name(folder: Path) -> str:
    """The base model that an adapter names.

    Raises:
        ConfigError: it names none.
    """
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{folder / CONFIG} names no base model (base_model_name_or_path).")
    return base


def base_source(
    folder: Path, trust_remote_code: bool = False, *, base: str | None = None, gguf_file: str | None = None
) -> Source:
    """Where the base of an adapter comes from, in the revision it was trained on.

    Args:
        folder: of the adapter.
        trust_remote_code: of the base.
        base: its name, instead of the one in the adapter.
        gguf_file: inside it.

    Raises:
        ConfigError: it cannot be found.
    """
    source = find_source(base or base_name(folder), gguf_file, trust_remote_code)
    known = read_marker(folder).base
    if source.folder is None and base is None:
        revision = read_settings(folder).revision or (known.revision if known else None)
        if revision:
            return Source(source.name, {**source.kwargs, "revision": revision})
    return source


def _load_base(folder: Path, settings: Any, dtype: str, trust_remote_code: bool) -> Any:
    return load_model(base_source(folder, trust_remote_code), dtype)[0]


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [CONFIG, WEIGHTS, FILE, *TOKENIZER]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"There is no adapter {name!r}: it is no folder here, and the Hub says: {error!s:.300}"
        ) from error


def _prove(wrapped: Any, folder: Path) -> None:
    """See that what the file holds is what the model has now."""
    from peft import get_peft_model_state_dict

    held, there = held_tensors(folder), get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    problems = {
        "the file lacks": sorted(set(there) - set(held)),
        "the model did not take": sorted(set(held) - set(there)),
        "other values are in": [k for k in held if k in there and not _same(held[k], there[k])],
    }
    if said := [f"{what} {_few(keys)}" for what, keys in problems.items() if keys]:
        raise ConfigError(
            f"The adapter {folder.name!r} did not arrive whole: {'; '.join(said)}. It was not saved from a model like "
            "this one; save it anew."
        )


def _same(held: torch.Tensor, there: torch.Tensor) -> bool:
    if there.is_meta:
        return held.shape == there.shape
    return torch.equal(held.to(there.dtype), there.detach().cpu())


def _few(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"


def _require_peft(folder: Path) -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UnsupportedError(f"{folder.name!r} is a peft adapter. Install peft with: pip install peft") from error
