"""Load what a user names on the command line: the right Auto class, the weights, the tokenizer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, UnsupportedError
from .machine import fast_dtype
from .models import BUNDLED, bundled, quiet, release_gguf

DTYPES = ("auto", "float32", "bfloat16", "float16")
PREFERRED = ("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSequenceClassification", "AutoModel")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: hub id or folder.
        kwargs: for every ``from_pretrained``: ``gguf_file``, ``trust_remote_code``.
    """

    name: str
    kwargs: dict[str, Any]

    @property
    def folder(self) -> Path | None:
        """The folder, when it is one."""
        return Path(self.name) if Path(self.name).is_dir() else None


def find_source(name: str, gguf_file: str | None, trust_remote_code: bool) -> Source:
    """Understand ``MODEL``: a hub id, a folder, a ``.gguf`` file (or a folder that holds nothing else to load), or
    ``smollm2`` / ``minilm``, which come in packages.

    Raises:
        ConfigError: it is none of these, or which GGUF file is meant is unclear.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if name in BUNDLED and not Path(name).exists():
        name = str(bundled(name))
    path = Path(name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ConfigError(f"{name!r} is a file. Name the folder that holds the model, a hub id, or a .gguf file.")
        if gguf_file is not None:
            raise ConfigError(f"{name!r} is a GGUF file already; leave out --gguf-file.")
        return Source(str(path.parent), {**kwargs, "gguf_file": path.name})
    if path.is_dir() and gguf_file is None and not (path / "config.json").exists():
        found = sorted(p.name for p in path.glob("*.gguf"))
        if len(found) > 1:
            raise ConfigError(f"{name!r} holds several GGUF files; choose one with --gguf-file: {', '.join(found)}.")
        if not found:
            raise ConfigError(f"The folder {name!r} holds no config.json and no .gguf file, so no model.")
        gguf_file = found[0]
    if gguf_file is not None:
        if path.is_dir() and not (path / gguf_file).is_file():
            raise ConfigError(f"--gguf-file {gguf_file!r} is not in the folder {name!r}.")
        kwargs["gguf_file"] = gguf_file
    elif not path.exists() and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ConfigError(f"There is no folder {name!r}.")
    return Source(name, kwargs)


def load_model(source: Source, dtype: str, *, quantize: str = "none", device: Any = None) -> tuple[Any, type[Any]]:
    """The model in evaluation mode, and the Auto class that loads it.

    Args:
        source: where it comes from.
        dtype: one of :data:`DTYPES`. ``auto``: as stored; a GGUF file, whose weights are dequantised first, gets
            what this machine computes fastest (:func:`~pe_retrofit.machine.fast_dtype`).
        quantize: ``4bit`` (NF4) or ``8bit`` through bitsandbytes, on ``device``; ``none``: as stored, on the CPU.
        device: for quantised weights, which do not move afterwards.

    Raises:
        ConfigError: transformers cannot find or load it; with its reason.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}.")
    kind: Any = dtype if dtype == "auto" else getattr(torch, dtype)
    if dtype == "auto" and "gguf_file" in source.kwargs:
        kind = fast_dtype()
    try:
        with quiet() if source.folder else nullcontext():  # bars are for downloads
            config = AutoConfig.from_pretrained(source.name, **source.kwargs)
            auto = auto_class(config)
            more = {} if quantize == "none" else _quantised(quantize, kind, device)
            model = auto.from_pretrained(source.name, dtype=kind, **more, **source.kwargs).eval()
            release_gguf(model)
            return model, auto
    except (ConfigError, UnsupportedError):
        raise
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise ConfigError(f"The model {source.name!r} cannot be loaded: {error}") from error


def _quantised(bits: str, dtype: Any, device: Any) -> dict[str, Any]:
    """Keywords of ``from_pretrained`` for quantised weights, as QLoRA uses them (Dettmers et al. 2023, 2305.14314)."""
    import torch
    from transformers import BitsAndBytesConfig

    compute = dtype if dtype in (torch.float16, torch.float32) else torch.bfloat16
    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": compute}
    config = BitsAndBytesConfig(**{f"load_in_{bits}": True}, **(four if bits == "4bit" else {}))
    return {"quantization_config": config, "device_map": {"": device}}


def auto_class(config: Any) -> type[Any]:
    """The Auto class whose model for this config is the one the config names as its architecture.

    Without an architecture: the masked-language or plain encoder for encoders, the causal model for the rest.
    """
    from transformers.models.auto import modeling_auto

    classes = {name: kind for name, kind in vars(modeling_auto).items() if getattr(kind, "_model_mapping", None)}
    ordered = [*PREFERRED, *(name for name in classes if name not in PREFERRED)]
    remote = getattr(config, "auto_map", None) or {}
    wanted = (getattr(config, "architectures", None) or [None])[0]
    names: dict[str, list[str]] = {}
    for name in ordered:
        found = classes[name]._model_mapping.get(type(config), None)
        found = found if isinstance(found, (tuple, list)) else (found,)
        names[name] = [kind.__name__ for kind in found if kind is not None]
        names[name] += [str(remote[name]).rpartition(".")[2]] if name in remote else []
    for name in ordered:
        if wanted in names[name]:
            return classes[name]
    is_encoder = bool(names["AutoModelForMaskedLM"]) and not getattr(config, "is_decoder", False)
    for name in ("AutoModel",) if is_encoder else ("AutoModelForCausalLM", "AutoModel"):
        if names[name]:
            return classes[name]
    raise ConfigError(
        f"transformers knows no model class for model type {config.model_type!r}. If the model brings its own code and "
        "you trust it, add --trust-remote-code."
    )


def load_tokenizer(source: Source) -> tuple[Any, str]:
    """The tokenizer, or None and why there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.name, **source.kwargs), ""
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        return None, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
