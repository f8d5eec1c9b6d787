"""The position table of BERT-likes: replaced, silenced or extended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..encodings.learned import LearnedConfig, extend_table
from ..errors import UnsupportedError
from ..positions import KEYWORD, STRENGTH
from ..sites import InputEncoding, Installed, LocalInput
from ..sites.input import more_arguments
from ..sites.local import neighbours
from . import tails
from .family import Host, follow


class ReplacedTable(nn.Embedding):
    """Stands where a position table stood and keeps its weight (so the state dict and unpatching lose nothing).

    Returns the rows (if they are kept) plus the encoding's vectors (if there is one).

    Args:
        table: the original.
        encoding: what to add or put in its place, or None.
        offset: rows of the original before position 0.
        keeps_rows: the original stays underneath.
    """

    def __init__(self, table: nn.Embedding, encoding: InputEncoding | None, offset: int, *, keeps_rows: bool) -> None:
        super().__init__(1, 1, device="meta")
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.padding_idx = table.padding_idx
        self.weight = table.weight
        self.offset = offset
        self.keeps_rows = keeps_rows
        if encoding is not None:
            self.position_encoding = Installed()
            self.position_encoding[encoding.config.name] = encoding

    def forward(self, position_ids: Tensor) -> Tensor:
        """``[..., hidden_size]`` for int64 ``[...]``."""
        strength = self.__dict__[STRENGTH].value if STRENGTH in self.__dict__ else 1.0
        if strength == 0.0:
            return super().forward(position_ids)
        if strength != 1.0:
            return self._between(position_ids, strength)
        if self.keeps_rows:
            vectors = super().forward(position_ids)
        else:
            vectors = self.weight.new_zeros(*position_ids.shape, self.embedding_dim)
        for part in self._parts(position_ids):
            vectors = vectors + part
        return vectors

    def _parts(self, position_ids: Tensor) -> Iterator[Tensor]:
        """What each encoding adds."""
        context = getattr(position_ids, KEYWORD, None)
        for encoding in getattr(self, "position_encoding", {}).values():
            more = () if context is None else more_arguments(encoding, context)
            yield encoding((position_ids - self.offset).clamp_min(0), *more)

    def _between(self, position_ids: Tensor, strength: float) -> Tensor:
        """Partly in force: fewer of the rows (unless they are kept), not yet all of the encoding."""
        if not self.keeps_rows and int(position_ids.max()) >= self.num_embeddings:
            raise UnsupportedError(
                f"The position table has {self.num_embeddings} rows and the input has position "
                f"{int(position_ids.max())}. The table is still partly in force (strength {strength}), so a longer "
                "input must wait until set_strength(model, 1.0)."
            )
        vectors = super().forward(position_ids)
        vectors = vectors if self.keeps_rows else vectors * (1 - strength)
        for part in self._parts(position_ids):
            vectors = vectors + strength * part
        return vectors


def tie_positions(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Forward pre-hook of a base model: its table finds all that is known of the positions on ``position_ids``."""
    if KEYWORD not in kwargs or kwargs[KEYWORD].strength == 0.0:
        return None
    position_ids = kwargs["position_ids"].clone()
    setattr(position_ids, KEYWORD, kwargs[KEYWORD])
    return args, {**kwargs, "position_ids": position_ids}


def set_table(host: Host, table: nn.Module) -> None:
    """Put a module where the position table is."""
    path, _, name = str(host.family.table).rpartition(".")
    setattr(follow(host.base, path) if path else host.base, name, table)


def restore_table(host: Host, before: nn.Embedding) -> None:
    """Put the original position table back, where and as the model is now (it may have been loaded, moved or cast)."""
    current = host.table
    assert current is not None
    if isinstance(current, ReplacedTable):
        before.weight = current.weight
    else:
        before.to(device=current.weight.device, dtype=current.weight.dtype)
    set_table(host, before.train(current.training))


def extended(host: Host, config: LearnedConfig) -> nn.Embedding:
    """A longer copy of the position table."""
    old = host.table
    assert old is not None
    weight = extend_table(old.weight.detach(), config.max_positions, config.init, reserved=host.reserved_rows)
    rows, width = weight.shape
    new = nn.Embedding(rows, width, padding_idx=old.padding_idx, _weight=weight.clone())
    new.weight.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)


def resize_buffers(host: Host, rows: int) -> dict[str, Tensor]:
    """Lengthen the index buffers beside the table; returns the old ones by name."""
    parent = follow(host.base, str(host.family.table).rpartition(".")[0])
    old = {n: b for n, b in parent.named_buffers(recurse=False) if n in ("position_ids", "token_type_ids")}
    for name, buffer in old.items():
        if name == "position_ids":
            new = torch.arange(rows, device=buffer.device).expand(1, -1)
        else:
            new = torch.zeros(1, rows, dtype=buffer.dtype, device=buffer.device)
        parent.register_buffer(name, new, persistent=name not in parent._non_persistent_buffers_set)
    return old


def restore_buffers(host: Host, old: dict[str, Tensor]) -> None:
    """Undo :func:`resize_buffers`."""
    parent = follow(host.base, str(host.family.table).rpartition(".")[0])
    for name, buffer in old.items():
        buffer = buffer.to(getattr(parent, name).device)
        parent.register_buffer(name, buffer, persistent=name not in parent._non_persistent_buffers_set)


class AddToInput:
    """Forward pre-hook of the first layer: the base model's input encodings change the hidden states."""

    def __init__(self, base: Any) -> None:
        self.base = base

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        positions = kwargs[KEYWORD]
        strength = positions.strength
        if strength == 0.0:
            return args, kwargs
        for name, encoding in self.base.position_encoding.items():
            if isinstance(encoding, LocalInput):
                near = neighbours(positions, *encoding.sides)
                changed = tails.change(name, encoding, hidden, near, positions.shared)
                hidden = changed if strength == 1.0 else hidden + strength * (changed - hidden)
            else:
                more = (extra.to(hidden.device) for extra in more_arguments(encoding, positions))
                added = encoding(positions.query.to(hidden.device), *more).to(hidden.dtype)
                hidden = hidden + (added if strength == 1.0 else strength * added)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})
