"""What an encoder makes of tokens that were hidden from it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from .subject import Subject


def draw_masked(random: Random, count: int, share: float) -> list[int]:
    """Which of ``count`` places are hidden: that share of them, at least one, in ascending order."""
    return sorted(random.sample(range(count), max(1, round(share * count))))


def mask_token(subject: Subject) -> int:
    """The token that stands for a hidden one.

    Raises:
        UnsupportedError: the tokenizer has none.
    """
    token = getattr(subject.tokenizer, "mask_token_id", None)
    if token is None:
        raise UnsupportedError(
            f"The tokenizer of {subject.name} has no mask token, which masked-language modelling needs. Give the "
            "tokenizer that the model was trained with."
        )
    return int(token)


def masked_nll(subject: Subject, ids: Sequence[int], places: Sequence[int]) -> Tensor:
    """Negative log-likelihood ``[len(places)]``, in nats, of the tokens at these places, all of them hidden at once."""
    mask, hidden = mask_token(subject), set(places)
    states = subject.hidden([[mask if i in hidden else token for i, token in enumerate(ids)]])[0]
    return subject.nll(states[list(places)], [ids[i] for i in places])
