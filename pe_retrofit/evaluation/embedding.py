"""Texts as vectors: the pooling a model was trained with, and which of some documents is nearest to a query."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from .subject import Subject

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda hidden: hidden.mean(-2),
    "cls": lambda hidden: hidden[..., 0, :],
    "max": lambda hidden: hidden.amax(-2),
}
"""``[b, n, hidden_size]`` without padding to ``[b, hidden_size]``."""

AUTO = "auto"

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean",  # another length, the same direction
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector.

    Attributes:
        mode: of :data:`POOLINGS`.
        source: who says so.
    """

    mode: str
    source: str


@dataclass(frozen=True)
class Ranking:
    """Where the right document came out.

    Attributes:
        rank: 1 for first; a document that is as near as the right one counts as nearer.
        similarity: cosine of the query and the right document.
        margin: that less the cosine of the nearest wrong document.
    """

    rank: int
    similarity: float
    margin: float


def pool(hidden: Tensor, mode: str) -> Tensor:
    """Vectors of length 1, float32 ``[b, hidden_size]``, from hidden states ``[b, n, hidden_size]`` without padding.

    Args:
        mode: ``mean`` over all tokens, ``cls`` (the first), or ``max`` over the tokens.
    """
    return nn.functional.normalize(POOLINGS[mode](hidden.float()), dim=-1)


def find_pooling(model: Any, mode: str = AUTO) -> Pooling:
    """The pooling that sentence-transformers' files beside a model name (``modules.json``, its Pooling's config).

    Args:
        model: with the folder or hub id it was loaded from in ``config._name_or_path``.
        mode: ``auto``, or one of :data:`POOLINGS`, which is then taken as it is.

    Returns:
        ``mean`` where there are no such files; ``source`` says which it was.

    Raises:
        UnsupportedError: the files ask for what is not done here: another pooling, several, or further layers.
        ConfigError: a file cannot be read.
    """
    if mode != AUTO:
        return Pooling(mode, "option pooling")
    name = str(getattr(model.config, "_name_or_path", "") or "")
    modules = _read(name, "modules.json")
    if modules is None:
        return Pooling("mean", "default, no modules.json beside the model")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ConfigError(f"modules.json of {name!r} is not a list of modules. Set the option pooling.")
    kinds = {str(module.get("type", "")).rpartition(".")[2]: str(module.get("path", "")) for module in modules}
    further = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if further:
        raise UnsupportedError(
            f"modules.json of {name!r} puts {', '.join(further)} after the encoder, which is not run here, so the "
            f"vectors would not be those of the model. Set the option pooling ({', '.join(POOLINGS)}) to go without."
        )
    if "Pooling" not in kinds:
        return Pooling("mean", "default, modules.json names no pooling")
    file = f"{kinds['Pooling']}/config.json"
    config = _read(name, file)
    if not isinstance(config, dict):
        raise ConfigError(f"{file}, which modules.json of {name!r} names, is missing or not an object.")
    return Pooling(_mode(config, f"{file} of {name!r}"), file)


def embed(
    subject: Subject, rows: Sequence[Sequence[int]], mode: str, batch_size: int | str = AUTO, *, tokens: int = 8192
) -> Tensor:
    """Vectors of length 1, float32 ``[texts, hidden_size]`` on the CPU, of texts of any lengths.

    Texts of equal length run together, so nothing is ever padded.

    Args:
        rows: tokens of each text, special ones included.
        mode: of :data:`POOLINGS`.
        batch_size: texts per forward; ``auto``: as many as have ``tokens`` tokens together.

    Raises:
        UnsupportedError: a text is longer than the model's table of positions.
    """
    from .runner import halving

    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(rows)
    while order:
        length = len(rows[order[0]])
        most = batch_size if isinstance(batch_size, int) else max(1, tokens // max(1, length))
        batch = [i for i in order[:most] if len(rows[i]) == length]
        found = halving(lambda part: list(subject.embeddings([rows[i] for i in part], mode).cpu()), batch)
        for i, vector in zip(batch, found, strict=True):
            vectors[i] = vector
        order = order[len(batch) :]
    return torch.stack(vectors)


def rank(queries: Tensor, documents: Tensor, right: Sequence[int]) -> list[Ranking]:
    """Where each query's right document comes out by cosine.

    Args:
        queries, documents: vectors of length 1, ``[q, hidden_size]`` and ``[n, hidden_size]``; at least two documents.
        right: number of each query's document.
    """
    found = []
    for cosines, gold in zip(queries.double() @ documents.double().T, right, strict=True):
        others = torch.cat([cosines[:gold], cosines[gold + 1 :]])
        mine = cosines[gold]
        nearer = int((~(others < mine)).sum())  # a cosine that is no number is never a success
        found.append(Ranking(1 + nearer, mine.item(), (mine - others.max()).item()))
    return found


def _mode(config: dict[str, Any], where: str) -> str:
    named = config.get("pooling_mode")
    asked = {str(named)} if named is not None else {key for key, on in config.items() if key in _FLAGS and on is True}
    asked |= {key for key, on in config.items() if key.startswith("pooling_mode_") and key not in _FLAGS and on is True}
    modes = {_FLAGS.get(word, word) for word in asked}
    mode = modes.pop() if len(modes) == 1 else None
    if mode not in POOLINGS:
        raise UnsupportedError(
            f"{where} asks for {', '.join(sorted(asked)) or 'no pooling'}, and one of {', '.join(POOLINGS)} can be "
            "done. Set the option pooling to choose one."
        )
    return mode


def _read(name: str, file: str) -> Any:
    """A JSON file of a model's folder or hub repository; None where there is none."""
    path = Path(name) / file
    if not Path(name).is_dir():
        path = _cached(name, file) or path
    if not name or not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Set the option pooling.") from error


def _cached(name: str, file: str) -> Path | None:
    from transformers.utils import cached_file

    if not name or name.count("/") > 1:
        return None
    try:
        found = cached_file(
            name,
            file,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None
    return None if found is None else Path(found)
