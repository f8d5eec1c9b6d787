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
    """``[w, length]`` token ids: windows of the texts that do not overlap, drawn at random.

    Args:
        texts: one or several texts, which are joined (an end-of-sequence token between them, where there is one), or
            token ids ``[w, n]`` of which the first ``count`` rows and ``length`` columns are taken.
        tokenizer: needed for texts; its beginning-of-sequence token, if it has one, begins each window.
        count: windows at most; fewer where the texts hold no more.

    Raises:
        ConfigError: there is not one window of text, or no tokenizer.
    """
    if isinstance(texts, Tensor):
        if texts.dim() != 2 or texts.is_floating_point() or not len(texts) or texts.shape[1] < length:
            raise ConfigError(
                f"Token ids must be whole numbers of shape [windows, at least {length} tokens], "
                f"got {texts.dtype} of shape {tuple(texts.shape)}."
            )
        return texts[:count, :length].long().cpu()
    if not isinstance(texts, str) and not (isinstance(texts, Sequence) and all(isinstance(t, str) for t in texts)):
        raise TypeError(f"texts must be one text, a list of texts or token ids [windows, length], got {texts!r:.80}.")
    if tokenizer is None:
        raise ConfigError("Texts need a tokenizer: pass tokenizer=, or token ids [windows, length].")
    first = getattr(tokenizer, "bos_token_id", None)
    body = length - (first is not None)
    between = getattr(tokenizer, "eos_token_id", None)
    ids: list[int] = []
    for text in [texts] if isinstance(texts, str) else texts:
        if ids and between is not None:
            ids.append(between)
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [ids[i : i + body] for i in range(0, len(ids) - body + 1, body)]
    if not pieces:
        raise ConfigError(
            f"The texts hold {len(ids)} tokens, and a window needs {length}. Give more text, or lower length."
        )
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    chosen = torch.tensor([pieces[i] for i in order])
    return chosen if first is None else torch.cat((torch.full((len(chosen), 1), first), chosen), dim=1)


def tokenizer_of(model: Any) -> Any:
    """The tokenizer that lies where the model came from.

    Raises:
        ConfigError: there is none.
    """
    from transformers import AutoTokenizer

    name = getattr(getattr(model, "config", None), "_name_or_path", "") or ""
    try:
        if not name:
            raise OSError("the model was not loaded from anywhere")
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(
            f"Texts need a tokenizer, and none was found beside the model ({str(error).strip().splitlines()[0]}). Pass "
            "tokenizer=, or token ids [windows, length]."
        ) from error
