"""How far the retrofit's predictions lie from the original's on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...likelihood import CHUNK, logits_of
from ..subject import Subject

PARTS = 32
"""Stretches of positions at most, by which drift is reported."""


def logit_drift(model: Any, hidden: Tensor, stock: Any, reference: Tensor, ids: Sequence[int] | None) -> dict[str, Any]:
    """Drift of the logits, position by position, in chunks that never hold more than 512 rows of the vocabulary.

    Args:
        model, stock: whose heads turn hidden states into logits.
        hidden, reference: their last hidden states ``[n, hidden_size]`` for the same tokens.
        ids: the tokens, for a decoder's negative log-likelihoods; None for an encoder.

    Returns:
        ``kl``, ``agreement``, ``largest_change`` and for decoders ``nll`` and ``stock_nll``: means (the largest of
        all), and under ``by_position`` the same by stretches of positions.
    """
    columns: dict[str, list[Tensor]] = {"kl": [], "agreement": [], "largest_change": []}
    if ids is not None:
        columns |= {"nll": [], "stock_nll": []}
    for start in range(0, len(hidden), CHUNK):
        ours = logits_of(model, hidden[start : start + CHUNK])
        theirs = logits_of(stock, reference[start : start + CHUNK].to(hidden.device))
        log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
        columns["kl"].append((log_p.exp() * (log_p - log_q)).sum(-1))
        columns["agreement"].append((ours.argmax(-1) == theirs.argmax(-1)).float())
        columns["largest_change"].append((ours - theirs).abs().amax(-1))
        if ids is not None:
            following = torch.tensor(list(ids[start + 1 : start + 1 + CHUNK]), device=ours.device)[:, None]
            columns["nll"].append(-log_q[: len(following)].gather(1, following)[:, 0])
            columns["stock_nll"].append(-log_p[: len(following)].gather(1, following)[:, 0])
    return _summary({name: torch.cat(parts).double().cpu() for name, parts in columns.items()}, "logits")


def hidden_drift(hidden: Tensor, reference: Tensor) -> dict[str, Any]:
    """For encoders without a head: ``cosine`` of the last hidden states, token by token, and of their means."""
    ours, theirs = hidden.float(), reference.float().to(hidden.device)
    found = _summary({"cosine": cosine_similarity(ours, theirs, dim=-1).double().cpu()}, "hidden states")
    found["cosine_of_means"] = cosine_similarity(ours.mean(0), theirs.mean(0), dim=-1).item()
    return found


def same_head(subject: Subject, hidden: Tensor, expected: Tensor) -> bool:
    """Whether a model's head, as it is now, gives the logits it gave before."""
    return torch.equal(logits_of(subject.model, hidden), expected)


def _summary(columns: dict[str, Tensor], of: str) -> dict[str, Any]:
    count = len(next(iter(columns.values())))
    size = max(1, -(-count // PARTS))
    found: dict[str, Any] = {"status": "ok", "of": of, "positions": count}
    for name, values in columns.items():
        found[name] = (values.max() if name == "largest_change" else values.mean()).item()
    parts = [(start, min(start + size, count)) for start in range(0, count, size)]
    found["by_position"] = {
        "positions": [[start, stop - 1] for start, stop in parts],
        **{
            name: [_reduced(name, values[start:stop]) for start, stop in parts if start < len(values)]
            for name, values in columns.items()
        },
    }
    return found


def _reduced(name: str, values: Tensor) -> float:
    return (values.max() if name == "largest_change" else values.mean()).item()
