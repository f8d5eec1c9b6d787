"""The last embeddings beside a cache, for encodings that look at neighbours.

What :class:`~pe_retrofit.sites.LocalInput` reads of the past is remembered on the cache: the embeddings of its last
tokens, ``reach`` of them and :data:`SPARE` more, so that assisted decoding can cut back. The length of the cache says
what was cut or reset; methods that rearrange its rows are accompanied on this one cache, never on its class.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..held import held_by
from ..positions import KEYWORD
from ..sites import LocalInput

SPARE = 1024
"""Tokens remembered beyond the reach."""

_TAILS = "_position_encoding_tails"

_ROWS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "reorder_cache": lambda tail, rows: tail.index_select(0, rows.to(tail.device)),
    "batch_repeat_interleave": lambda tail, times: tail.repeat_interleave(times, dim=0),
    "batch_select_indices": lambda tail, rows: tail[rows.to(tail.device) if isinstance(rows, Tensor) else rows],
}
"""Methods of a cache that rearrange its rows, and what they mean for a tail ``[b, n, hidden_size]``."""


class Accompanied:
    """A method of one cache that takes the remembered rows along.

    Args:
        cache: held weakly, so that a cache is freed when its last user lets go. Copies and pickles of the cache get one
            of their own.
        name: of the method.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self.cache = weakref.ref(cache)
        self.name = name

    def __call__(self, argument: Any) -> None:
        cache = self.cache()
        if cache is None:
            raise UnsupportedError(
                f"{self.name}() was called on a shallow copy of a cache that is gone. Copy caches with copy.deepcopy."
            )
        getattr(type(cache), self.name)(cache, argument)
        for key, (tail, seen) in getattr(cache, _TAILS, {}).items():
            getattr(cache, _TAILS)[key] = (_ROWS[self.name](tail, argument), seen)

    def __reduce__(self) -> Any:
        return Accompanied, (self.cache(), self.name)


class Tails:
    """Hooks of a base model: what its local encodings see of the past is read before a pass and written after it."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def before(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Forward pre-hook, after that of :class:`~pe_retrofit.patchers.context.PositionContext`."""
        positions = kwargs.get(KEYWORD)
        if positions is None or positions.strength == 0.0:
            return
        cache = _holder(kwargs.get("past_key_values"))
        rows = next(kwargs[k] for k in ("input_ids", "inputs_embeds") if kwargs.get(k) is not None).shape[0]
        for name, encoding in _local(self.base).items():
            past = None if cache is None else _read(cache, name, encoding.reach, positions.first_query, rows)
            positions.shared[_TAILS, name] = past

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: the cache the pass was given, or that the model made itself, learns the last embeddings."""
        positions = kwargs.get(KEYWORD)
        cache = _holder(kwargs.get("past_key_values") or getattr(output, "past_key_values", None))
        if positions is None or positions.strength == 0.0 or cache is None or not hasattr(cache, "get_seq_length"):
            return
        for name, encoding in _local(self.base).items():
            states = positions.shared.pop((_TAILS, name, "new"), None)
            if states is not None:
                _write(cache, name, encoding.reach, states, positions.first_query + positions.query.shape[1])


def change(name: str, encoding: LocalInput, hidden: Tensor, near: Tensor, shared: dict[Any, Any]) -> Tensor:
    """The hidden states of a pass as a local encoding changes them; its raw ones are left for :meth:`Tails.after`."""
    past = shared.get((_TAILS, name))
    if past is not None:
        past = past.to(device=hidden.device, dtype=hidden.dtype)
    states = hidden if past is None else torch.cat((past, hidden), dim=1)
    kept = states[:, -(encoding.reach + SPARE) :]
    shared[_TAILS, name, "new"] = kept if kept.shape[1] == states.shape[1] else kept.clone()
    return encoding(hidden, None if past is None else past[:, -encoding.reach :], near.to(hidden.device))


def _local(base: Any) -> dict[str, LocalInput]:
    installed = base.position_encoding.items()
    return {name: encoding for name, encoding in installed if isinstance(encoding, LocalInput)}


def _holder(cache: Any) -> Any:
    return getattr(cache, "self_attention_cache", cache)  # an encoder-decoder cache holds two


def _fixed(cache: Any) -> bool:
    """A static cache, whose tail is written in place as compiled code needs."""
    return bool(getattr(cache, "is_compileable", False))


def _read(cache: Any, name: str, reach: int, past: int | Tensor, rows: int) -> Tensor | None:
    """``[b, n, hidden_size]``, embeddings of the last of the ``past`` tokens in a cache; None at the start."""
    tail, seen = getattr(cache, _TAILS, {}).get(name, (None, 0))
    if isinstance(past, int) and past == 0:
        return None
    if tail is None:
        raise UnsupportedError(
            f"The cache holds {past} tokens whose embeddings this model has not seen, and {name!r} looks at the last "
            f"{reach} of them. Fill the cache with the patched model itself."
        )
    if tail.shape[0] != rows:
        raise UnsupportedError(
            f"The cache was filled with {tail.shape[0]} rows and now meets {rows}; which row is which is unknown. Use "
            "the methods of the cache that rearrange its rows (batch_repeat_interleave, batch_select_indices)."
        )
    if _fixed(cache):
        return tail
    assert isinstance(past, int)
    cut = seen - past
    if cut < 0:
        raise UnsupportedError(
            f"The cache holds {past} tokens, of which this model has seen {seen}, and {name!r} looks at the last "
            f"{reach} of them. Fill the cache with the patched model itself."
        )
    left = tail.shape[1] - cut
    if left < min(past, reach):
        raise UnsupportedError(
            f"The cache was cut back by {cut} tokens, and {name!r} remembers the embeddings of the last "
            f"{tail.shape[1]} only. Cut back by at most {SPARE} at a time, or read the text again without the cache."
        )
    return tail[:, :left]


def _write(cache: Any, name: str, reach: int, states: Tensor, seen: int | Tensor) -> None:
    tails = getattr(cache, _TAILS, None)
    if tails is None:
        tails = {}
        setattr(cache, _TAILS, tails)
    if held_by(cache) is not None:  # a cache that forgets stops the gradient too
        states = states.detach()
    if _fixed(cache):
        tail = tails.get(name, (None, 0))[0]
        if tail is None or tail.shape[0] != states.shape[0]:
            tail = states.new_zeros(states.shape[0], reach, states.shape[2], requires_grad=False)
        new = states.detach()[:, -reach:]
        tail.copy_(torch.nn.functional.pad(new, (0, 0, reach - new.shape[1], 0)))
        states, seen = tail, 0
    tails[name] = (states, seen)
    if torch.compiler.is_compiling():
        return
    for method in _ROWS:
        if hasattr(cache, method) and not _accompanied(cache, method):
            setattr(cache, method, Accompanied(cache, method))


def _accompanied(cache: Any, method: str) -> bool:
    own = vars(cache).get(method)
    return isinstance(own, Accompanied) and own.cache() is cache
