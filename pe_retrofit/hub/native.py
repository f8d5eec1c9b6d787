"""Export a model whose encoding transformers' own config can say: plain files that need no plugin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..folders import written_whole
from ..installing.applied import PATCHES
from ..loading import find_source, load_model, load_tokenizer
from ..marking import BLOCK, MODEL_TYPE, MarkedConfig
from ..models import quiet, release_gguf
from ..patchers.family import find_host
from .saving import auto_class, context_length, first_output, probe_tokens
from .targets import TARGETS, check_targets, notes, refusals

TOLERANCE = 1e-5
CODE = ("*.py", "position_encoding.json", "adapter_*")
"""Files that a plain model does not have."""


def export_native(
    model: Any,
    out: str | Path,
    tokenizer: Any = None,
    *,
    legacy: bool = False,
    targets: Sequence[str] = (),
    dtype: str = "auto",
    trust_remote_code: bool = False,
    tell: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Write a plain model of the host's type, load it again, and compare logits.

    ``config.json`` says ``architectures`` and ``model_type`` of the host, ``rope_parameters`` (``rope_type``,
    ``factor``, ``original_max_position_embeddings``, ``rope_theta``, whichever the type has) and
    ``max_position_embeddings``, trained length x factor. ``dynamic`` keeps the trained length there, because
    transformers computes with it; ``ntk`` is a larger ``rope_theta``; ``partial_rope`` is the type ``proportional``.

    Args:
        model: a model, or a hub id or folder.
        out: folder, replaced as a whole.
        tokenizer: saved beside it; by default that of the folder, if it has one.
        legacy: write ``rope_scaling`` and ``rope_theta`` too, as transformers 4 and older tools read them.
        targets: names of :data:`~pe_retrofit.hub.targets.TARGETS`; what one of them would silently run as something
            else is refused.
        dtype: of a model that is loaded here.
        trust_remote_code: run code that it brings along.
        tell: called with what goes on, in words.

    Returns:
        What was written, in JSON values.

    Raises:
        ConfigError: the model cannot be found, or a target is unknown.
        UnsupportedError: an encoding that the config cannot say, with its layers; a target that would ignore the
            scaling; ``legacy`` for what transformers 4 did not know; or other logits. Nothing is written.
        OSError: the disk is full; nothing is kept.

    Example:
        >>> patch_model(model, "yarn", factor=4.0)
        >>> export_native(model, "my-llama-32k", tokenizer, targets=["vllm", "llamacpp"])
    """
    from safetensors import SafetensorError

    check_targets(list(targets))
    if isinstance(model, (str, Path)):
        source = find_source(str(model), None, trust_remote_code)
        tell(f"loading {source.name}")
        model, _ = load_model(source, dtype)
        tokenizer = load_tokenizer(source)[0] if tokenizer is None else tokenizer
    _check_plain(model)
    release_gguf(model)
    target = Path(out).expanduser().absolute()
    ids = probe_tokens(model)
    expected = first_output(model, ids)
    tell("writing")
    try:
        with quiet(), written_whole(target) as work:
            if tokenizer is not None:
                _save_tokenizer(tokenizer, work, context_length(model))
            model.save_pretrained(work)
            config = json.loads((work / "config.json").read_text(encoding="utf-8"))
            _check_files(work, config)
            _check_for(config, targets)
            if legacy:
                config.update(legacy_keys(config))
                (work / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            tell("loading what was written")
            again = auto_class(model).from_pretrained(work, dtype=model.dtype).eval().to(model.device)
            apart = float((first_output(again, ids) - expected).abs().max() / expected.abs().max())
            if not apart <= TOLERANCE:
                raise UnsupportedError(
                    f"The exported model gives other logits than the one in memory (difference {apart:.3g} of the "
                    "largest), so nothing was kept. Please report this with the model's name and its patch."
                )
    except SafetensorError as error:
        raise OSError(f"The model cannot be written to {target}: {error}") from error
    return {
        "folder": target.name,
        "model_type": config["model_type"],
        "architectures": config.get("architectures"),
        "rope_parameters": config.get("rope_parameters"),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "legacy": {key: config[key] for key in ("rope_scaling", "rope_theta") if key in config} if legacy else None,
        "tokenizer": tokenizer is not None,
        "difference": apart,
        "tools": {name: {"ignores": refusals(name, config), "notes": notes(name, config)} for name in TARGETS},
    }


def legacy_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys in which transformers 4 says a rotation.

    Args:
        config: ``config.json`` of a plain model.

    Raises:
        UnsupportedError: it had no word for this one.
    """
    rope = dict(config.get("rope_parameters") or {})
    if any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedError(
            "legacy=True: the kinds of layers have rope parameters of their own, for which transformers 4 had other "
            "keys in each model. Leave legacy out."
        )
    kind, theta = rope.pop("rope_type", "default"), rope.pop("rope_theta", None)
    part = rope.pop("partial_rotary_factor", None)
    if kind == "proportional":
        raise UnsupportedError("legacy=True: transformers 4 did not know rope_type 'proportional'. Leave legacy out.")
    keys: dict[str, Any] = {"rope_theta": theta}
    keys["rope_scaling"] = None if kind == "default" else {"rope_type": kind, "type": kind, **rope}
    if part is not None:
        keys["partial_rotary_factor"] = part
    if config["model_type"] == "gpt_neox":
        keys |= {"rotary_emb_base": theta, "rotary_pct": part}
    return keys


def _check_plain(model: Any) -> None:
    """Refuse what the config of transformers cannot say."""
    if hasattr(model, "peft_config"):
        raise UnsupportedError(
            "The model has an adapter. Merge it first: pe-retrofit merge ADAPTER --out DIR, or "
            "pe_retrofit.hub.merge_adapter."
        )
    host = find_host(model)
    count = len(host.layers)
    foreign = [a for a in getattr(host.base, PATCHES, []) if not a.native]
    if not foreign and not isinstance(host.config, MarkedConfig):
        return
    lines = "".join(
        f"\n  - {a.names} on {'all layers' if a.all_layers or len(a.layers) == count else f'layers {a.layers}'}"
        for a in foreign
    )
    raise UnsupportedError(
        f"This encoding has no place in a plain config:{lines}\n"
        "Native are linear, ntk, dynamic, yarn, longrope, llama3 and partial_rope alone, on all layers. Ways out: save "
        "it with its code (pe_retrofit.hub.save_model, pe-retrofit push), which transformers loads with pe_retrofit or "
        "trust_remote_code=True; or patch the original with a native scaling (pe-retrofit patch MODEL yarn factor=4)."
    )


def _check_files(work: Path, config: dict[str, Any]) -> None:
    """See that nothing of ours is in what was written."""
    wrong = [key for key in (BLOCK, "auto_map") if key in config]
    wrong += [str(path.name) for pattern in CODE for path in work.glob(pattern)]
    if wrong or config.get("model_type") == MODEL_TYPE:
        raise UnsupportedError(
            f"The export is not a plain model: {', '.join(wrong) or 'its model_type is pe_retrofit'}. Nothing was "
            "kept; please report this with the model's name and its patch."
        )
    if not config.get("architectures"):
        raise ConfigError("The model has no class name to write as 'architectures'; load it with an Auto class first.")


def _check_for(config: dict[str, Any], targets: Sequence[str]) -> None:
    lines = [f"{TARGETS[name].title}: {line}" for name in targets for line in refusals(name, config)]
    if lines:
        told = "".join(f"\n  - {line}" for line in lines)
        raise UnsupportedError(
            f"Not every tool would run this model as it is, so nothing was written:{told}\n"
            "Choose another scaling (yarn is known to all of them for Llama, Mistral and Qwen), or leave the tool out."
        )


def _save_tokenizer(tokenizer: Any, work: Path, length: int) -> None:
    """Save a tokenizer that takes as long a text as the model."""
    before = tokenizer.model_max_length
    tokenizer.model_max_length = max(before, length)
    tokenizer.save_pretrained(work)
    tokenizer.model_max_length = before
