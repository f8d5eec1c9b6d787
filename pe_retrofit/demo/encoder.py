"""What a longer reach does to a text-embedding BERT: short texts as before, long texts embedded whole.

There is no long original to compare with, so a long text's embedding is compared with the mean of the original model's
embeddings of its pieces, which fit its 512 positions: the cosine, and whether the nearest of all texts is the right
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..models import quiet
from ..patchers.family import find_host
from ..texts import Text
from .patched import Patched, describe
from .settings import UNPATCHED, Variant

LONG = 2048
PIECE = 256
TEXTS = 12
SHORT_TEXTS = 32

VARIANTS = (
    Variant("learned, tile", "learned", {"max_positions": LONG, "init": "tile"}),
    Variant("learned, interpolate", "learned", {"max_positions": LONG, "init": "interpolate"}),
    Variant("learned, copy_last", "learned", {"max_positions": LONG, "init": "copy_last"}),
    Variant("alibi", "alibi"),
    Variant("rope", "rope"),
)


def measure_encoder(
    model: Any, tokenizer: Any, text: Text, variants: Sequence[Variant] = VARIANTS, *, texts: int = TEXTS
) -> dict[str, Any]:
    """Cosines to the original's embeddings, and retrieval among long texts.

    Args:
        model: a ``BertModel`` whose mean-pooled last hidden state embeds a text, unpatched.
        tokenizer: of the model.
        text: cut into ``texts`` stretches of 2048 tokens, spread evenly.
    """
    with quiet():
        tokens = torch.tensor(tokenizer.encode(text.content, add_special_tokens=False))
    starts = torch.linspace(0, len(tokens) - LONG, texts).long().tolist()
    stretches = [tokens[s : s + LONG - 2] for s in starts]
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    short = torch.linspace(0, len(tokens) - PIECE, SHORT_TEXTS).long().tolist()
    # short texts of 16 to 128 tokens
    brief = [tokens[s : s + 16 * (1 + n % 8)] for n, s in enumerate(short)]
    before = torch.stack([embed(model, part, ends) for part in brief])
    pieces = torch.stack(
        [torch.stack([embed(model, part, ends) for part in whole.split(PIECE)]).mean(0) for whole in stretches]
    )
    reach = find_host(model).config.max_position_embeddings
    cut = torch.stack([embed(model, whole[: reach - 2], ends) for whole in stretches])
    rows = [{**describe(UNPATCHED), "note": f"first {reach} tokens only", **_compare(cut, pieces), "short_cosine": 1.0}]
    for variant in variants:
        with Patched(model, variant):
            after = torch.stack([embed(model, part, ends) for part in brief])
            whole = torch.stack([embed(model, part, ends) for part in stretches])
        cosine = torch.cosine_similarity(before, after).mean().item()
        rows.append({**describe(variant), **_compare(whole, pieces), "short_cosine": cosine})
    return {"long": LONG, "texts": texts, "short_texts": SHORT_TEXTS, "variants": rows}


@torch.no_grad()
def embed(model: Any, tokens: Tensor, ends: tuple[int, int]) -> Tensor:
    """Mean of the last hidden state over the tokens of a text ``[n]``: ``[hidden_size]``."""
    ids = torch.cat((torch.tensor(ends[:1]), tokens, torch.tensor(ends[1:])))[None]
    return model(input_ids=ids.to(model.device)).last_hidden_state[0].float().mean(0).cpu()


def _compare(whole: Tensor, pieces: Tensor) -> dict[str, Any]:
    """Finite or not, the mean cosine of each text to the mean of its pieces, and how often that is the nearest."""
    similar = torch.nn.functional.normalize(whole, dim=-1) @ torch.nn.functional.normalize(pieces, dim=-1).t()
    right = similar.argmax(1) == torch.arange(len(whole))
    return {
        "finite": bool(torch.isfinite(whole).all()),
        "long_cosine": similar.diagonal().mean().item(),
        "accuracy": right.float().mean().item(),
    }
