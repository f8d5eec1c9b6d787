"""What is installed on an attention, for the heads that this process has: all, or some under tensor parallelism."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import UnsupportedError
from ..sites import BiasEncoding, ScoreEncoding
from ..sites.partial import local, partial
from ..sites.split import split_of, synced


def of_this_process(module: nn.Module, installed: list[Any], query: Tensor) -> list[Any]:
    """``installed`` for the query heads of ``query [b, h, q, d]``.

    Args:
        module: the attention module.
        installed: what it carries; a module that is neither a bias nor a score names in ``per_head`` the parameters
            that have one entry per head.

    Raises:
        UnsupportedError: there are other heads than the encoding was made for, and the model does not say which; or the
            tensors are sharded in another way.
    """
    heads = query.shape[1]
    if type(query).__name__ == "DTensor":
        raise UnsupportedError(_refusal(heads, heads))
    whole = next((n for n in map(_heads, installed) if n is not None and n != heads), None)
    if whole is None:
        return installed
    split = split_of(module, whole)
    if split is None or split.heads.stop - split.heads.start != heads:
        raise UnsupportedError(_refusal(heads, whole))

    def own(item: Any) -> Any:
        if _heads(item) is None:
            return item
        item = synced(item, split.group)
        if isinstance(item, (BiasEncoding, ScoreEncoding)):
            return partial(item, heads=split.heads)
        return local(item, split.heads, getattr(item, "host", None))

    return [own(item) for item in installed]


def _heads(item: Any) -> int | None:
    """How many heads it was made for; None when it does not matter."""
    if isinstance(item, (BiasEncoding, ScoreEncoding)):
        return item.host.num_heads
    names = getattr(item, "per_head", None)
    return len(getattr(item, names[0])) if names else None


def _refusal(heads: int, whole: int) -> str:
    return (
        f"The attention got {heads} query heads of the {whole} its encoding was made for, or sharded tensors, and the "
        "model does not say which heads these are. Tensor parallelism works where transformers shards the saved, "
        "patched model by whole heads: from_pretrained(folder, distributed_config=DistributedConfig(tp_size=...)). "
        "Otherwise load the model whole on each process, or use FSDP2."
    )
