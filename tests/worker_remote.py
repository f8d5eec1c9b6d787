"""Run without pe_retrofit: load checkpoints by the code they bring, and say how they fare.

``python -S worker_remote.py JOBS.json``: a list of ``{"folder", "auto", "more"}``; prints one JSON line per job. In
each folder lie ``ids.pt`` and ``wanted.pt``, the logits of the model that was saved. ``more`` asks for generation,
saving again and training.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    SPEC = importlib.util.find_spec("pe_retrofit")  # an editable install leaves its data files, without any code
    assert SPEC is None or SPEC.origin is None, f"pe_retrofit can be imported here, from {SPEC.origin}"

import torch
import transformers

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()


def first(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits."""
    with torch.no_grad():
        return model(input_ids=ids)[0]


def load(auto: str, folder: Path) -> Any:
    """By the code beside the weights."""
    return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()


def train(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Some steps with an adapter, as a user of peft would take them."""
    import peft

    options = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["position_encoding"])
    wrapped = peft.get_peft_model(model, options).train()
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(4):
        loss = wrapped(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    moved = [n for n, p in wrapped.named_parameters() if "position_encoding" in n and p.requires_grad]
    return {"losses": losses, "trained_positions": len(moved), "merged": wrapped.eval().merge_and_unload()}


def main() -> None:
    """All jobs."""
    for job in json.loads(Path(sys.argv[1]).read_text()):
        folder = Path(job["folder"])
        ids, wanted = torch.load(folder / "ids.pt"), torch.load(folder / "wanted.pt")
        model = load(job["auto"], folder)
        found: dict[str, Any] = {
            "folder": folder.name,
            "difference": (first(model, ids) - wanted).abs().max().item(),
            "class": type(model).__name__,
            "module": type(model).__module__,
            "attention": model.config._attn_implementation,
        }
        if job.get("more"):
            without = model.generate(ids[:, :6], max_new_tokens=8, do_sample=False, use_cache=False)
            found["cache"] = torch.equal(model.generate(ids[:, :6], max_new_tokens=8, do_sample=False), without)
            trained = train(model, ids)
            again = trained.pop("merged")
            after = first(again, ids)
            again.save_pretrained(folder / "again")
            reloaded = load(job["auto"], folder / "again")
            found |= {
                **trained,
                "saved_again": sorted(path.name for path in (folder / "again").iterdir()),
                "difference_again": (first(reloaded, ids) - after).abs().max().item(),
                "changed": (after - wanted).abs().max().item(),
            }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
