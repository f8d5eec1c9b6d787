"""Save a model whole or not at all, with the code that others need, and see that it loads as the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import SavedDiffersError, UnsupportedError
from ..folders import written_whole
from ..marking import BLOCK, MarkedConfig
from ..models import quiet, release_gguf
from ..patchers.family import find_host
from .adapters import write_adapter
from .registering import auto_classes
from .remote_code import add_code

FORMS = ("merged", "adapter")
TOKENS = 24


def save_model(
    model: Any,
    folder: str | Path,
    tokenizer: Any = None,
    *,
    form: str | None = None,
    code: bool = True,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Save a model, patched or not, perhaps wrapped by peft.

    The folder appears whole, or what was there before stays. A whole model is loaded again from it and must give the
    same logits.

    Args:
        model: in evaluation mode.
        folder: replaced as a whole.
        tokenizer: saved beside it, if given.
        form: ``merged`` folds an adapter into the weights, which ``model`` then has; ``adapter`` saves the adapter
            alone, with its position parameters. By default an adapter is saved as one, anything else whole.
        code: put the code beside a model that plain transformers cannot load, for ``trust_remote_code=True`` where
            pe_retrofit is not installed.
        trust_remote_code: the model brings code of its own, which loading it again runs.

    Returns:
        What was saved, in JSON values.

    Raises:
        SavedDiffersError: what was saved gives other logits; nothing is kept.
        UnsupportedError: ``form`` does not fit, or the code cannot be sent along; nothing is kept.
        OSError: the disk is full; nothing is kept.
    """
    from safetensors import SafetensorError

    target = Path(folder).expanduser().absolute()
    adapted = _settle_form(model, form)
    if hasattr(model, "peft_config") and not adapted:
        model = model.merge_and_unload()
    release_gguf(model)
    difference = None
    files: list[str] = []
    try:
        with quiet(), written_whole(target) as work:
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            if adapted:
                write_adapter(model, work)
            else:
                model.save_pretrained(work)
                files = add_code(work) if code else []
                difference = _compare(model, work, trust_remote_code)
    except SafetensorError as error:
        raise OSError(f"The model cannot be written to {target}: {error}") from error
    learned = sum(p.numel() for name, p in model.named_parameters() if f".{BLOCK}." in f".{name}")
    return {
        "form": "adapter" if adapted else "merged",
        "folder": target.name,
        "code": files,
        "reload_difference": difference,
        "learned_positions": learned,
        "bytes": sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    }


def _settle_form(model: Any, form: str | None) -> bool:
    """Whether the adapter alone is saved."""
    adapted = hasattr(model, "peft_config")
    if form is not None and form not in FORMS:
        raise UnsupportedError(f"form={form!r} must be one of {', '.join(map(repr, FORMS))}, or None.")
    if form == "adapter" and not adapted:
        raise UnsupportedError(
            f"form='adapter' saves the adapter of a model that peft wraps, and {type(model).__name__} has none. Leave "
            "form out."
        )
    return adapted and form != "merged"


def auto_class(model: Any) -> Any:
    """The Auto class that loads a model.

    Raises:
        UnsupportedError: none does.
    """
    host = getattr(type(model.config), "host_class", type(model.config))
    name = type(model).__name__  # a marked class has its host's
    found = [auto for auto, cls in auto_classes(host).items() if isinstance(model, cls) and cls.__name__ == name]
    if not found:
        raise UnsupportedError(
            f"No Auto class of transformers loads {type(model).__name__}, so it could not be loaded after saving. Use "
            "its save_pretrained."
        )
    return found[0]


def _compare(model: Any, work: Path, trust: bool) -> float:
    """The largest difference between a model's logits and those of what was saved."""
    ids = probe_tokens(model)
    expected = first_output(model, ids)
    marked = isinstance(model.config, MarkedConfig)
    more = {"trust_remote_code": True} if trust and not marked else {}
    again = auto_class(model).from_pretrained(work, dtype=model.dtype, **more).eval().to(model.device)
    difference = float((first_output(again, ids) - expected).abs().max())
    if not difference <= 1e-5 * float(expected.abs().max()):
        raise SavedDiffersError(
            f"The saved model gives other logits than the one in memory (difference {difference:.3g}), so nothing was "
            "kept. Please report this with the model's name and its patch."
        )
    return difference


def context_length(model: Any) -> int:
    """Tokens the config says the model is meant for."""
    host = find_host(model)
    return int(host.config.max_position_embeddings) - (host.reserved_rows if host.table is not None else 0)


def probe_tokens(model: Any) -> Any:
    """Random ids ``[1, n]`` that no model takes for padding."""
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, size - 1), size, (1, min(TOKENS, context_length(model))), generator=generator)


@torch.no_grad()
def first_output(model: Any, ids: Any) -> Any:
    """Logits, or whatever comes first, in float32; a model for multiple choice gets the text as both of two choices."""
    ids = ids.to(model.device)
    if type(model).__name__.endswith("ForMultipleChoice"):
        ids = ids[:, None].repeat(1, 2, 1)
    training = model.training
    try:
        output = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        model.train(training)
    return output[0].float().cpu()
