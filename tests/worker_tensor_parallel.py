"""One of two processes of ``test_distributed``: saved patched models, loaded tensor parallel and trained.

Prints a JSON line per folder on rank 0.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from worker_distributed import train

import pe_retrofit  # noqa: F401
from pe_retrofit.patchers.family import find_host
from pe_retrofit.sites.split import split_of
from pe_retrofit.training.gathered import whole_state


def loaded(folder: Path, **more: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **more).eval()


def run(folder: Path) -> dict[str, Any]:
    reference, model = loaded(folder), loaded(folder, distributed_config=DistributedConfig(tp_size=2))
    case = torch.load(folder / "case.pt")
    with torch.no_grad():
        change = (model(input_ids=case["ids"]).logits - case["logits"]).abs().max().item()
    attention, heads = find_host(model).attentions[0], model.config.num_attention_heads
    split = split_of(attention, heads)
    row: dict[str, Any] = {"change": change, "heads": split and (split.heads.stop - split.heads.start) / heads}
    rates = {n: p for n, p in model.named_parameters() if p.requires_grad}
    expected = train(reference, [p for p in reference.parameters() if p.requires_grad], slice(None))
    found = train(model, list(rates.values()), slice(None))
    row["losses"] = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    state = whole_state(model)
    if dist.get_rank() == 0:
        wanted = reference.state_dict()
        row["weights"] = max((state[n] - wanted[n]).abs().max().item() for n in wanted if wanted[n].numel())
    alike = [p.detach().clone() for n, p in rates.items() if "position_encoding" in n]
    theirs = [p.clone() for p in alike]
    for tensor in theirs:
        dist.broadcast(tensor, src=0)
    drift = torch.tensor([max([0.0, *((a - b).abs().max().item() for a, b in zip(alike, theirs, strict=True))])])
    dist.all_reduce(drift, op=dist.ReduceOp.MAX)
    return {**row, "drift": drift.item()}


def main() -> None:
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        row: dict[str, object] = {"name": folder.name}
        try:
            row |= run(folder)
        except Exception:
            row["error"] = traceback.format_exc()[-1500:]
        row["world"] = dist.get_world_size()
        if dist.get_rank() == 0:
            print(json.dumps(row), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
