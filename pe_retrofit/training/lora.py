"""Adapters of low rank beside position parameters that are trained whole (peft)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config import StrictOptions, choice, flag, integer, number
from ..errors import ConfigError, UnsupportedError
from ..installing import CHILD
from ..patchers.family import Host, find_host
from ..patchers.table import ReplacedTable
from .lora_on_shards import check_lora, mend_lora

TARGETS = ("all-linear", "attention", "qk")
_QUERY_KEY = ("q_proj", "k_proj", "query", "key", "q_lin", "k_lin")


def _check_target(value: Any) -> str | None:
    if isinstance(value, str):
        return None if value in TARGETS else f"must be one of {', '.join(map(repr, TARGETS))}, or a list of names"
    good = isinstance(value, (list, tuple)) and 0 < len(value) <= 100
    if good and all(isinstance(v, str) and 0 < len(v) <= 200 for v in value):
        return None
    return "must be a list of 1 to 100 names of linear layers, such as ['q_proj', 'v_proj']"


@dataclass(frozen=True)
class LoraOptions(StrictOptions):
    """An adapter of low rank (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685).

    The parameters of positional encodings are always trained whole and saved with it.
    """

    name = "lora"
    noun = "section"

    r: int = integer(16, low=1, high=4096, help="rank")
    alpha: float | None = number(None, low=1e-3, high=1e5, optional=True, help="scale of the update; None: twice r")
    dropout: float = number(0.0, low=0.0, high=0.99, help="dropout before the adapter")
    target: str | tuple[str, ...] = field(
        default="all-linear",
        metadata={"check": _check_target, "help": "all-linear, attention, qk, or names of linear layers in the blocks"},
    )
    variant: str = choice("lora", ("lora", "dora", "rslora"), help="lora, dora (2402.09353) or rslora (2312.03732)")
    quantize: str = choice("none", ("none", "4bit", "8bit"), help="frozen weights through bitsandbytes (QLoRA)")
    embeddings: bool = flag(False, help="train the token embeddings (and the head) too, as LongLoRA does (2309.12307)")
    norms: bool = flag(False, help="train the norms too, as LongLoRA does (2309.12307)")


def add_lora(model: Any, options: LoraOptions) -> Any:
    """Wrap a model for training with peft; what is not trained is frozen.

    Args:
        model: a transformers model, patched or not. Its position parameters are trained whole; so are, where asked,
            the embeddings and the norms.
        options: of the adapter.

    Returns:
        A ``PeftModel``; its adapters are float32, whatever the model is. :func:`trained_parameters` counts what it
        trains.

    Raises:
        ConfigError: a target that the blocks do not have.
        UnsupportedError: the model has an adapter already, or FSDP2 has sharded it; bitsandbytes or a GPU is missing
            for ``quantize``; or the model was not loaded quantised.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if hasattr(model, "peft_config"):
        raise UnsupportedError(
            "The model has an adapter already. Merge it (model.merge_and_unload()) or take the plain model."
        )
    host = find_host(model)
    targets = _targets(model, host, options.target)
    if options.quantize != "none":
        check_quantized(model, options)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    saved = _saved_whole(model, host, options)
    check_lora(model, saved)
    tied = options.embeddings and bool(getattr(host.config, "tie_word_embeddings", False))
    config = LoraConfig(
        r=options.r,
        lora_alpha=2 * options.r if options.alpha is None else options.alpha,  # type: ignore[arg-type]
        lora_dropout=options.dropout,
        use_dora=options.variant == "dora",
        use_rslora=options.variant == "rslora",
        target_modules=targets,
        modules_to_save=saved or None,
        ensure_weight_tying=tied,
    )
    wrapped = get_peft_model(model, config)
    mend_lora(wrapped)
    return wrapped


def trained_parameters(model: nn.Module) -> dict[str, int]:
    """How many parameters are trained: ``position``, ``adapter``, ``other``, their sum ``trained``, and ``all``."""
    counts = {"position": 0, "adapter": 0, "other": 0}
    position = position_parameters(model)
    every = 0
    for name, parameter in model.named_parameters():
        every += parameter.numel()
        if parameter.requires_grad:
            kind = "position" if name in position else "adapter" if "lora_" in name else "other"
            counts[kind] += parameter.numel()
    return {**counts, "trained": sum(counts.values()), "all": every}


def position_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of positional encodings, by their full names."""
    table = _trained_table(model)
    prefix = None if table is None else f"{table}."
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (f".{CHILD}." in f".{name}" or (prefix is not None and name.startswith(prefix) and "lora_" not in name))
    }


def _trained_table(model: nn.Module) -> str | None:
    """The name of a position table that a patch has lengthened."""
    host = find_host(model)
    lengthened = [a for a in getattr(host.base, "_position_encoding_patches", []) if a.table_before is not None]
    if not lengthened or host.table is None or isinstance(host.table, ReplacedTable):
        return None
    return next(name for name, module in model.named_modules() if module is host.table)


def check_quantizing(bits: str) -> None:
    """Refuse quantised weights where they cannot be, before anything is loaded.

    Args:
        bits: ``4bit``, ``8bit`` or ``none``.

    Raises:
        UnsupportedError: with what is missing.
    """
    if bits == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UnsupportedError(
            f"lora.quantize={bits!r} needs bitsandbytes, which is not installed. Install it with: pip install "
            "bitsandbytes, or set lora.quantize=none."
        )
    if not torch.cuda.is_available():
        raise UnsupportedError(
            f"lora.quantize={bits!r} needs a GPU, and torch sees none here. Set lora.quantize=none; a CPU trains "
            "bfloat16 weights."
        )


def check_quantized(model: Any, options: LoraOptions) -> None:
    """Refuse what cannot train on quantised weights.

    Raises:
        UnsupportedError: with what is missing.
    """
    bits = options.quantize
    check_quantizing(bits)
    if not getattr(model, f"is_loaded_in_{bits}", False):
        raise UnsupportedError(
            f"lora.quantize={bits!r} needs a model that was loaded so: from_pretrained(..., "
            f"quantization_config=BitsAndBytesConfig(load_in_{bits}=True))."
        )


def _targets(model: nn.Module, host: Host, target: str | Sequence[str]) -> list[str]:
    """Full names of the linear layers inside the blocks that get an adapter."""
    roots = host.attentions if target in ("attention", "qk") else host.layers
    inside = {id(m) for root in roots for m in root.modules() if isinstance(m, nn.Linear)}
    linear = [name for name, m in model.named_modules() if id(m) in inside and f".{CHILD}." not in f".{name}."]
    if target in ("all-linear", "attention"):
        return linear
    wanted = _QUERY_KEY if target == "qk" else tuple(target)
    found = [name for name in linear if any(f".{name}".endswith(f".{w}") for w in wanted)]
    missing = [w for w in wanted if not any(f".{name}".endswith(f".{w}") for name in linear)]
    if target == "qk" and not found:
        raise ConfigError(
            "lora.target='qk' needs queries and keys of their own, and the blocks have only "
            f"{', '.join(_leaves(linear))}. Choose lora.target='attention'."
        )
    if target != "qk" and missing:
        raise ConfigError(
            f"lora.target names {', '.join(map(repr, missing))}, which no linear layer of the blocks is called. They "
            f"have {', '.join(_leaves(linear))}."
        )
    return found


def _leaves(names: Sequence[str]) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in names})


def _saved_whole(model: Any, host: Host, options: LoraOptions) -> list[str]:
    """Modules that are trained whole: position parameters always, embeddings and norms where asked."""
    saved = []
    if any(f".{CHILD}." in f".{name}" for name, _ in model.named_parameters()):
        saved.append(CHILD)
    if (table := _trained_table(model)) is not None:
        saved.append(table)
    names = {id(m): name for name, m in model.named_modules() if f".{CHILD}." not in f".{name}."}
    if options.norms:
        norms = [n for m in host.base.modules() if (n := names.get(id(m))) and type(m).__name__.endswith("Norm")]
        saved += norms
    if options.embeddings:
        saved.append(names[id(host.base.get_input_embeddings())])
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        if head is not None and not getattr(host.config, "tie_word_embeddings", False):
            saved.append(names[id(head)])
    return saved
