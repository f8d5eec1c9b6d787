"""One of two processes of ``test_devices``: LoRA runs in several ways, against what one process got.

Each process saves what it found in a file per run and encoding.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.big_modeling import _attach_context_parallel_hooks
from device_runs import ENCODINGS, MAIN, batches, patched, result, train, trained_by_trainer, with_lora
from peft import PeftModel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.experimental import context_parallel
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from pe_retrofit.patchers.family import find_host
from pe_retrofit.training.devices import check_context_parallel, check_world, save_whole
from pe_retrofit.training.lora_on_shards import check_lora, mend_lora

PLAIN = functional.scaled_dot_product_attention


def share() -> slice:
    return slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)


def mean(losses: list[float]) -> list[float]:
    total = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


def sharded(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in find_host(model).layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def ddp(folder: Path, name: str) -> dict[str, Any]:
    model: Any = DistributedDataParallel(with_lora(patched(name), name))
    found = result(model, mean(train(model, share())))
    save_whole(model, folder / f"ddp-{name}")
    world = check_world(2, "ddp", model=model, report=None)
    return {"world": world, "refused": refused(lambda: check_world(2, "fsdp2", model=model, report=None)), **row(found)}


def fsdp2(folder: Path, name: str) -> dict[str, Any]:
    """LoRA first, shards then."""
    model = sharded(with_lora(patched(name), name))
    found = result(model, mean(train(model, share())))
    save_whole(model, folder / f"fsdp2-{name}")
    return {"world": check_world(2, "fsdp2", model=model, report=None), **row(found)}


def fsdp2_full(folder: Path, name: str) -> dict[str, Any]:
    """All weights train, none of them LoRA's; saved untouched first."""
    model = sharded(patched(name))
    save_whole(model, folder / f"fsdp2-untouched-{name}")
    found = result(model, mean(train(model, share())))
    save_whole(model, folder / f"fsdp2-full-{name}")
    (folder / "file").touch()
    where = folder / "file" / "under"  # which cannot be
    failed = refused(lambda: save_whole(model, where))
    return {"world": check_world(2, "fsdp2", model=model, report=None), "failed": failed, **row(found)}


def trainer_ddp(folder: Path, name: str) -> dict[str, Any]:
    model, world = with_lora(patched(name), name), []
    found = result(model, trained_by_trainer(model, folder / "trainer", 2, world))
    return {"world": world[0], **row(found)}


def trainer_fsdp2(folder: Path, name: str) -> dict[str, Any]:
    """Sharded by transformers as it is loaded."""
    loaded = spread(folder, name, fsdp_size=2)
    save_whole(loaded, folder / f"loaded-untouched-{name}")
    saved = ENCODINGS[name][2]
    if saved:
        return {"world": check_world(2, "fsdp2", model=loaded), "refused": refused(lambda: check_lora(loaded, saved))}
    check_lora(loaded, saved)
    model, world = with_lora(loaded, name), []
    found = result(model, trained_by_trainer(model, folder / "trainer", 2, world))
    return {"world": world[0], **row(found)}


def tp(folder: Path, name: str) -> dict[str, Any]:
    """Every process sees all rows and has half of the heads; a saved adapter goes on; gradients accumulate."""
    model = PeftModel.from_pretrained(spread(folder, name, tp_size=2), folder / f"start-{name}", is_trainable=True)
    mended = mend_lora(model, redraw=False)
    found = result(model, train(model.train(), micro=2))
    save_whole(model, folder / f"tp-{name}")
    return {"world": check_world(2, "tp", model=model, report=None), "mended": mended, **row(found)}


def tp_fresh(folder: Path, name: str) -> dict[str, Any]:
    """An adapter made on the shards, and what it was at the start."""
    loaded = spread(folder, name, tp_size=2)
    check_lora(loaded, ENCODINGS[name][2])
    model = with_lora(loaded, name)
    mended = mend_lora(model)
    save_whole(model, folder / f"fresh-{name}")
    found = result(model, train(model))
    return {"world": check_world(2, "tp", model=model, report=None), "mended": mended, **row(found)}


def tp_full(folder: Path, name: str) -> dict[str, Any]:
    model = spread(folder, name, tp_size=2).train()
    save_whole(model, folder / f"tp-untouched-{name}")
    found = result(model, train(model))
    return {"world": check_world(2, "tp", model=model, report=None), **row(found)}


def cp(folder: Path, name: str) -> dict[str, Any]:
    """PyTorch shards the text; its ring attention, which has no CPU kernels, is replaced by an exchange of all keys."""
    model = with_lora(patched(name), name)
    if name in ("alibi", "t5"):
        return {
            "world": check_world(2, "ddp", report=None),
            "refused": refused(lambda: check_context_parallel(model, 2)),
        }
    check_context_parallel(model, 2)
    _attach_context_parallel_hooks(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser, losses, seen = torch.optim.AdamW(parameters, lr=1e-2, foreach=False), [], []
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))
    for ids in batches():
        ids = ids.clone()
        targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
        positions = torch.arange(ids.shape[1])[None].repeat(len(ids), 1)
        count = (targets != -100).sum()
        with context_parallel(mesh, buffers=[ids, targets, positions], buffer_seq_dims=[1, 1, 1]):
            with exchanging(positions[0]):
                logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
                )
                (loss / count).backward()
            seen.append(positions[0].tolist())
        for parameter in parameters:
            dist.all_reduce(parameter.grad)
        optimiser.step()
        optimiser.zero_grad()
        total = loss.detach() / count
        dist.all_reduce(total)
        losses.append(total.item())
    return {"world": check_world(2, "ddp", report=None), "positions": seen[0], **row(result(model, losses))}


class Everyone(torch.autograd.Function):
    """The parts of both processes, one after the other."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, dim: int) -> torch.Tensor:
        parts = [torch.empty_like(part).contiguous() for _ in range(2)]
        dist.all_gather(parts, part.contiguous())
        ctx.dim = dim
        return torch.cat(parts, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = grad.clone().contiguous()
        dist.all_reduce(total)
        return total.chunk(2, ctx.dim)[dist.get_rank()], None


@contextmanager
def exchanging(positions: torch.Tensor) -> Iterator[None]:
    """In place of PyTorch's attention one that gets the keys and values of both processes, and goes by positions."""
    everyone = Everyone.apply(positions, 0)
    original = functional.scaled_dot_product_attention

    def attention(query: Any, key: Any, value: Any, attn_mask: Any = None, **more: Any) -> Any:
        assert attn_mask is None
        assert more.pop("is_causal")
        keys, values = Everyone.apply(key, 2), Everyone.apply(value, 2)
        return PLAIN(query, keys, values, attn_mask=positions[:, None] >= everyone, **more)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def spread(folder: Path, name: str, **sizes: int) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder / f"patched-{name}", dtype=torch.float64, distributed_config=DistributedConfig(**sizes)
    )


def refused(action: Callable[[], Any]) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def row(found: dict[str, Any]) -> dict[str, Any]:
    return {"found": found}


RUNS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    run.__name__: run for run in (ddp, fsdp2, fsdp2_full, trainer_ddp, trainer_fsdp2, tp, tp_fresh, tp_full, cp)
}


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    check_world(2, "ddp")
    for run in RUNS if sys.argv[2] == "all" else sys.argv[2].split(","):
        for name in ENCODINGS if run == "cp" else MAIN:
            try:
                found = RUNS[run](folder, name)
                found["world"] = vars(found["world"])
            except Exception:
                found = {"error": traceback.format_exc()[-2500:]}
            torch.save(found, folder / f"{run}-{name}-{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
