"""Save a model that is spread over processes as if one process had trained it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..folders import written_whole


def unwrapped(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel and torch.compile."""
    found: Any = model
    while True:
        if isinstance(found, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            found = found.module
        elif hasattr(found, "_orig_mod"):
            found = found._orig_mod
        else:
            return found


def whole_state(model: nn.Module, *, trained: bool = False) -> dict[str, Tensor]:
    """The full state dict on the first process, in CPU memory; empty on the others. All processes must call it.

    One tensor is gathered at a time, so that a device holds one whole tensor beside its shards.

    Args:
        model: plain, wrapped by DDP, sharded by FSDP2, by tensor parallelism or by DeepSpeed's ZeRO-3.
        trained: leave out what is frozen, and buffers.

    Raises:
        UnsupportedError: FSDP1, which gathers through accelerate only.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    inner = unwrapped(model)
    if any(isinstance(m, FullyShardedDataParallel) for m in inner.modules()):
        raise UnsupportedError(
            "The model is sharded by FSDP1, whose shards only accelerate can gather. Use FSDP2 (fsdp_version: 2), or "
            "save with trainer.save_model(folder)."
        )
    first = _rank() == 0
    wanted = {n for n, p in inner.named_parameters(remove_duplicate=False) if p.requires_grad} if trained else None
    state: dict[str, Tensor] = {}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or (wanted is not None and name not in wanted):
            continue
        whole = _whole(tensor)
        if first:
            state[name] = whole.cpu().contiguous()
    return state


def _whole(tensor: Tensor) -> Tensor:
    """A tensor from the shards of all processes."""
    from torch.distributed.tensor import DTensor

    if hasattr(tensor, "ds_id"):  # ZeRO-3 leaves an empty tensor behind
        from deepspeed.zero import GatheredParameters

        with GatheredParameters([tensor]):
            return tensor.detach().cpu().clone()
    whole = tensor.detach()
    return whole.full_tensor() if isinstance(whole, DTensor) else whole


def save_whole(model: nn.Module, folder: str | Path, *, tokenizer: Any = None) -> None:
    """Save a model or an adapter with ``save_pretrained``, whole, however it is spread. All processes must call it.

    The first process gathers and writes into a folder beside ``folder``, which takes its place at the end; the others
    wait. What stands there is then what one process would have saved: the same files, keys and tensors, and the
    ``position_encoding`` block in ``config.json``. A model wrapped by peft saves its adapter alone.

    Args:
        model: a transformers model or one wrapped by peft; plain, in DDP, sharded by FSDP2 or tensor parallel.
        folder: replaced as a whole if it exists.
        tokenizer: saved beside the model.

    Raises:
        UnsupportedError: the model is sharded in a way that cannot be gathered.
        OSError: on every process, with the first one's reason, when it could not write; ``folder`` is as it was.
    """
    inner = unwrapped(model)
    state = whole_state(inner)
    failure: Exception | None = None
    if _rank() == 0:
        try:
            with written_whole(Path(folder)) as work, _alone(inner):
                inner.save_pretrained(work, state_dict=state)
                if tokenizer is not None:
                    tokenizer.save_pretrained(work)
        except Exception as error:  # the others wait for word
            failure = error
    message = _told(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if message is not None:
        raise OSError(f"The first process could not save the model in {str(folder)!r}: {message}")


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Inside, transformers takes a model for unsharded: the state is whole already, and nobody answers a collective."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    kept = {key: c.distributed_config for key, c in configs.items() if getattr(c, "distributed_config", None)}
    for key in kept:
        del configs[key].distributed_config
    try:
        yield
    finally:
        for key, value in kept.items():
            configs[key].distributed_config = value


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _told(message: str | None) -> str | None:
    """What the first process says, to all of them."""
    if not torch.distributed.is_initialized():
        return message
    box = [message]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
