"""One of two processes of ``test_distributed``: saved patched models, loaded tensor parallel, against their logits.

Prints a JSON line per folder on rank 0.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

import pe_retrofit


def main() -> None:
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        row: dict[str, object] = {"name": folder.name}
        try:
            model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32).eval()
            case = torch.load(folder / "case.pt")
            with torch.no_grad():
                found = model(input_ids=case["ids"]).logits
            row["change"] = (found - case["logits"]).abs().max().item()
            row["rows"] = model.model.layers[0].self_attn.q_proj.weight.to_local().shape[0]
        except pe_retrofit.UnsupportedError as error:
            row["refused"] = str(error)
        except Exception:
            row["error"] = traceback.format_exc()[-1500:]
        row["world"] = dist.get_world_size()
        if dist.get_rank() == 0:
            print(json.dumps(row), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
