"""One of two processes of ``test_distributed``: the same steps as one process, split by DDP or sharded by FSDP2.

Prints a JSON line per encoding on rank 0.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

import torch
import torch.distributed as dist
from matrix import ENCODINGS, HOSTS, tokens
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pe_retrofit.patchers.family import find_host

STEPS, RATE, LENGTH = 2, 0.05, 20


def built(host: str, name: str) -> Any:
    model = ENCODINGS[name].patch(HOSTS[host].fresh().double())
    return model.train()


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(model: Any, parameters: list[torch.nn.Parameter], rows: slice) -> list[float]:
    optimiser, losses = torch.optim.SGD(parameters, lr=RATE), []
    for step in range(STEPS):
        ids = tokens(4, LENGTH, seed=step)[rows]
        loss = loss_of(model, ids)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def compare(host: str, name: str, kind: str) -> dict[str, Any]:
    for module in (reference := built(host, name)).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    wanted = train(reference, list(reference.parameters()), slice(None))
    model = built(host, name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rank, world = dist.get_rank(), dist.get_world_size()
    if kind == "ddp":
        run: Any = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (world,))
        for layer in find_host(model).layers:
            fully_shard(layer, mesh=mesh)
        run = fully_shard(model, mesh=mesh)
    losses = train(run, [p for p in run.parameters() if p.requires_grad], slice(rank * 2, rank * 2 + 2))
    mean = torch.tensor(losses, dtype=torch.float64)
    dist.all_reduce(mean)
    change = max(
        (whole(a).detach() - b.detach()).abs().max().item()
        for a, b in zip(model.parameters(), reference.parameters(), strict=True)
    )
    sharded = sum(isinstance(p, DTensor) for p in model.parameters())
    return {
        "world": world,
        "sharded": sharded,
        "losses": (mean / world - torch.tensor(wanted)).abs().max().item(),
        "weights": change,
    }


def main() -> None:
    kind, names = sys.argv[1], sys.argv[2].split(",")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for cell in names:
        host, name = cell.split(":")
        try:
            row = compare(host, name, kind)
        except Exception:
            row = {"error": traceback.format_exc()[-1500:]}
        if dist.get_rank() == 0:
            print(json.dumps({"cell": cell, **row}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
