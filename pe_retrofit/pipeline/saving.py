"""Save what a run made, whole or not at all, and see that it loads as the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import UnsupportedError
from ..folders import written_whole
from ..hub.adapters import write_adapter
from ..marking import BLOCK
from ..models import quiet
from ..patchers.family import find_host

TOKENS = 24


def save_model(model: Any, tokenizer: Any, folder: Path, form: str, auto: type[Any], trust: bool) -> dict[str, Any]:
    """Save a model, perhaps wrapped by peft, with its tokenizer.

    Args:
        model: in evaluation mode; ``form="merged"`` folds its adapter into the weights.
        tokenizer: of the model, or None.
        folder: replaced as a whole.
        form: ``merged`` or ``adapter``.
        auto: the Auto class that loads the model.
        trust: the model brings code of its own.

    Returns:
        What was saved, in JSON values.

    Raises:
        UnsupportedError: what was saved gives other logits; nothing is kept.
        OSError: the disk is full; nothing is kept.
    """
    from safetensors import SafetensorError

    adapted = hasattr(model, "peft_config")
    if form == "merged" and adapted:
        model = model.merge_and_unload()
        adapted = False
    ids = probe_tokens(model)
    expected = first_output(model, ids)
    difference = None
    try:
        with quiet(), written_whole(folder) as work:
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            if adapted:
                write_adapter(model, work)
            else:
                model.save_pretrained(work)
                more = {"trust_remote_code": True} if trust else {}
                again = auto.from_pretrained(work, dtype=model.dtype, **more).eval().to(model.device)
                difference = (first_output(again, ids) - expected).abs().max().item()
                if not difference <= 1e-5 * expected.abs().max().item():
                    raise UnsupportedError(
                        f"The saved model gives other logits than the one in memory (difference {difference:.3g}), "
                        "so nothing was kept. Please report this with the recipe."
                    )
    except SafetensorError as error:
        raise OSError(f"The model cannot be written to {folder}: {error}") from error
    learned = sum(p.numel() for name, p in model.named_parameters() if f".{BLOCK}." in f".{name}")
    return {
        "form": "adapter" if adapted else "merged",
        "folder": folder.name,
        "reload_difference": difference,
        "learned_positions": learned,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    }


def probe_tokens(model: Any) -> Any:
    """Random ids ``[1, n]`` that no model takes for padding."""
    host = find_host(model)
    rows = int(host.config.max_position_embeddings) - (host.reserved_rows if host.table is not None else 0)
    size = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(3, size - 1), size, (1, min(TOKENS, rows)), generator=generator)


@torch.no_grad()
def first_output(model: Any, ids: Any) -> Any:
    """Logits, or whatever comes first, in float32."""
    output = model(input_ids=ids.to(model.device), attention_mask=torch.ones_like(ids).to(model.device))
    return output[0].float().cpu()
