"""Windows of token ids, from whatever texts a user has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError


def draw_windows(
    texts: Sequence[str] | str | Tensor, tokenizer: Any, *, count: int, length: int, seed: int = 0
) -> Tensor:
    """``[count, length]`` token ids: that many windows of the texts that do not overlap, drawn at random.

    Args:
        texts: one or several texts, or token ids ``[w, n]`` of which the first ``count`` rows and ``length`` columns
            are taken.
        tokenizer: needed for texts; its beginning-of-sequence token, if it has one, begins each window.

    Raises:
        ConfigError: there is too little text, or no tokenizer.
    """
    if isinstance(texts, Tensor):
        if texts.dim() != 2 or texts.is_floating_point() or texts.shape[0] < count or texts.shape[1] < length:
            raise ConfigError(
                f"Token ids must be whole numbers of shape [at least {count}, at least {length}] (windows, length), "
                f"got {texts.dtype} of shape {tuple(texts.shape)}."
            )
        return texts[:count, :length].long().cpu()
    if not isinstance(texts, str) and not (isinstance(texts, Sequence) and all(isinstance(t, str) for t in texts)):
        raise TypeError(f"texts must be one text, a list of texts or token ids [windows, length], got {texts!r:.80}.")
    if tokenizer is None:
        raise ConfigError("Texts need a tokenizer: pass tokenizer=, or token ids [windows, length].")
    first = getattr(tokenizer, "bos_token_id", None)
    body = length - (first is not None)
    pieces: list[list[int]] = []
    for text in [texts] if isinstance(texts, str) else texts:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        pieces += [ids[i : i + body] for i in range(0, len(ids) - body + 1, body)]
    if len(pieces) < count:
        raise ConfigError(
            f"The texts hold {len(pieces)} windows of {length} tokens, and {count} are needed. Give more text, or "
            "lower windows or length."
        )
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    chosen = torch.tensor([pieces[i] for i in order])
    return chosen if first is None else torch.cat((torch.full((count, 1), first), chosen), dim=1)
