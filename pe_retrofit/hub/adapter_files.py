"""The files of an adapter: written, and looked through before anything is built from them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UnsupportedError
from ..installing.applied import CHILD
from ..installing.stamp import PREFIX, stamp_name

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MOST_BYTES = 1 << 24
ROOT = "base_model.model."
DELTA = "token_adapter.trainable_tokens_delta"

_LORA = re.compile(r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.weight)?")


def write_weights(model: Any, work: Path, *, owns_positions: bool) -> None:
    """peft's files of a model's adapter, whole.

    Args:
        model: a ``PeftModel``.
        work: an empty folder.
        owns_positions: the position parameters must be among them.

    Raises:
        UnsupportedError: they are not.
    """
    from safetensors import safe_open

    model.save_pretrained(work, save_embedding_layers=False)
    (work / "README.md").unlink(missing_ok=True)  # a form to fill in
    learned = [
        n for n, p in model.named_parameters() if f".{CHILD}." in f".{n}" and "modules_to_save" not in n and p.numel()
    ]
    with safe_open(work / WEIGHTS, "pt") as held:
        there = set(held.keys())
    lost = [n for n in learned if n.replace(".original_module", "") not in there]
    if lost and owns_positions:
        raise UnsupportedError(
            f"The adapter does not hold the model's learned positions ({lost[0]}, ...), so nothing was saved: they "
            "would be lost. Wrap the patched model with LoraConfig(..., modules_to_save=['position_encoding']), or "
            "with pe_retrofit.training.add_lora."
        )
    settings = json.loads((work / CONFIG).read_text(encoding="utf-8"))
    if settings.get("task_type") is None and type(model.get_base_model()).__name__.endswith("ForCausalLM"):
        settings["task_type"], settings["auto_mapping"] = "CAUSAL_LM", None  # for AutoPeftModelForCausalLM
        (work / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def guard(model: Any, work: Path, patches: list[dict[str, Any]]) -> None:
    """Make plain peft refuse a base without the stamp of these patches, by what the files say.

    Raises:
        UnsupportedError: the adapter uses the option that is needed for it.
    """
    from safetensors.torch import load_file, save_file

    name = stamp_name(patches)
    settings = json.loads((work / CONFIG).read_text(encoding="utf-8"))
    if set(settings.get("trainable_token_indices") or [name]) != {name}:
        raise UnsupportedError(
            "trainable_token_indices of the adapter trains single tokens, and the guard of the position encoding needs "
            "this option. Train the embeddings whole: modules_to_save=['embed_tokens', ...]."
        )
    below = next(n for n, _ in model.named_modules() if n.endswith(f".{name}"))
    tensors = load_file(work / WEIGHTS)
    tensors.setdefault(f"{below}.{DELTA}", torch.zeros(1, 1))
    save_file(tensors, work / WEIGHTS, metadata={"format": "pt"})
    settings["trainable_token_indices"] = {name: [0]}
    (work / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


def read_settings(folder: Path) -> Any:
    """The ``LoraConfig`` of an adapter, without the guard.

    Raises:
        ConfigError: the file is missing, damaged, or would run code.
        UnsupportedError: it is no LoRA adapter.
    """
    from peft import LoraConfig

    path = folder / CONFIG
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        kind = found.get("peft_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__}: {error}).") from error
    if kind != "LORA":
        raise UnsupportedError(f"{path} has peft_type {kind!r}; only LORA is read. Load it with peft itself.")
    if found.get("megatron_config"):
        raise ConfigError(f"{path} has a megatron_config, with which peft imports what the file names; leave it out.")
    tokens = found.get("trainable_token_indices")
    if isinstance(tokens, dict) and all(key.startswith(PREFIX) for key in tokens):
        found["trainable_token_indices"] = None
    found.pop("runtime_config", None)
    try:
        return LoraConfig.from_peft_type(**found)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path} is no valid LoRA config ({type(error).__name__}: {error!s:.300}).") from error


def check_file(folder: Path, settings: Any, model: nn.Module) -> None:
    """Refuse an adapter whose tensors have no place in a model, before the model is wrapped.

    Args:
        folder: of the adapter.
        settings: its ``LoraConfig``.
        model: the base, patched as it is to be.

    Raises:
        ConfigError: no or damaged safetensors; tensors without a place, of another shape, or with values that are no
            numbers: all of them in one message.
        UnsupportedError: it holds learned positions, and the model is not patched.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no {WEIGHTS}. Pickled adapters are not loaded, as they can run code; save it anew."
        )
    try:
        with safe_open(path, "pt") as held:
            shapes = {key: tuple(held.get_slice(key).get_shape()) for key in held.keys()}  # noqa: SIM118
            problems = list(_misfits(shapes, settings, model))
            if not problems:
                problems = [f"{k} holds values that are no numbers" for k in shapes if not _finite(held.get_tensor(k))]
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} is damaged ({error!s:.300}). Download or save it again.") from error
    if problems:
        shown = "".join(f"\n  - {p}" for p in problems[:10])
        more = f"\n  - and {len(problems) - 10} more" if len(problems) > 10 else ""
        hint = _hint(shapes, model)
        kind = UnsupportedError if hint else ConfigError
        raise kind(f"The adapter {folder.name!r} does not fit the model:{shown}{more}{hint}")


def held_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter but the guard."""
    from safetensors.torch import load_file

    return {key: tensor for key, tensor in load_file(folder / WEIGHTS).items() if f".{PREFIX}" not in key}


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _hint(shapes: dict[str, Any], model: nn.Module) -> str:
    learned = next((key for key in shapes if f".{CHILD}." in key), None)
    if learned is None or any(f".{CHILD}." in f".{name}" for name, _ in model.named_parameters()):
        return ""
    return (
        f"\nIt holds learned positions ({learned}, ...), and its base model is not patched, so they would be lost. "
        "Name the encoding it was trained with: NAME@ADAPTER, e.g. t5@ADAPTER; or patch the base first."
    )


def _misfits(shapes: dict[str, tuple[int, ...]], settings: Any, model: nn.Module) -> Iterator[str]:
    """What is wrong with the names and shapes of an adapter's tensors."""
    modules, state = dict(model.named_modules()), {n: tuple(t.shape) for n, t in model.state_dict().items()}
    if not any(_LORA.fullmatch(key) for key in shapes):
        yield "it holds no LoRA tensors"
    for key, shape in shapes.items():
        name = key.removeprefix(ROOT)
        if f".{PREFIX}" in f".{name}":
            if shape != (1, 1):
                yield f"{key} has shape {list(shape)}; [1, 1] is expected"
            continue
        lora = _LORA.fullmatch(name)
        if lora is None:
            whole = any(f".{m}." in f".{name}" for m in settings.modules_to_save or ())
            if name == key or not whole or name not in state:
                yield f"{key} has no place in it"
            elif state[name] != shape:
                yield f"{key} has shape {list(shape)}, and the model's {list(state[name])}"
            continue
        module = modules.get(lora[1].replace(".base_layer", ""))
        if name == key or module is None:
            yield f"{key} has no place in it"
        elif (wanted := _lora_shape(lora[2], lora[1], module, settings)) is not None and wanted != shape:
            yield f"{key} has shape {list(shape)}; {list(wanted)} is expected"


def _lora_shape(part: str, name: str, module: Any, settings: Any) -> tuple[int, ...] | None:
    """Of a LoRA tensor; None where the module does not say its size."""
    patterns = settings.rank_pattern or {}
    r = next((patterns[p] for p in patterns if re.match(rf"(.*\.)?({p})$", name)), settings.r)
    first, last = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if part.startswith("lora_embedding"):
        first, last = getattr(module, "num_embeddings", None), getattr(module, "embedding_dim", None)
    if first is None or last is None:
        return None
    return {"A": (r, first), "B": (last, r), "r": (last,)}[part[-1]]
