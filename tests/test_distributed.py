"""Two processes give the losses and weights of one: DDP and FSDP2 with every encoding; what tensor parallel carries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ENCODINGS, HOSTS, Cell, logits, tokens

from pe_retrofit.capabilities import capability

HERE = Path(__file__).parent
DECODER = [n for n, e in ENCODINGS.items() if Cell(HOSTS["llama"], e).refusal is None and "+" not in n and "/" not in n]
ENCODER = ["alibi", "t5", "learned", "sinusoidal", "rope", "conv", "recurrent", "shaw", "deberta", "fire", "mlp"]
LENGTH = 20
CELLS = [f"llama:{n}" for n in DECODER] + [f"bert:{n}" for n in ENCODER]


def launched(script: str, *arguments: str) -> list[dict[str, Any]]:
    """What rank 0 of two processes prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [*command, str(HERE / script), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(kind: str) -> None:
    rows = {row["cell"]: row for row in launched("worker_distributed.py", kind, ",".join(CELLS))}
    assert list(rows) == CELLS
    problems = {cell: row for cell, row in rows.items() if "error" in row}
    assert not problems
    for cell, row in rows.items():
        assert row["world"] == 2
        assert (row["sharded"] > 0) == (kind == "fsdp2"), cell
        assert row["losses"] < 1e-6, (cell, row)
        assert row["weights"] < 1e-6, (cell, row)


def test_tensor_parallel_as_the_table_says(tmp_path: Path) -> None:
    """Each rank holds half of the heads: the logits, losses and weights of one process, and copies that stay alike."""
    names = [n for n in DECODER if ENCODINGS[n].spec == n]
    cells = [("llama", n) for n in names] + [("gpt_neox", "alibi"), ("gpt_neox", "t5"), ("qwen3", "kerple")]
    folders = []
    for host, name in cells:
        model, ids = ENCODINGS[name].patch(HOSTS[host].fresh().double()), tokens(2, LENGTH)
        folder = tmp_path / f"{host}:{name}"
        case = {"ids": ids, "logits": logits(model, ids)}
        model.save_pretrained(folder)
        torch.save(case, folder / "case.pt")
        folders.append(folder)
    assert all(capability(name).tp for name in names)
    rows = {row["name"]: row for row in launched("worker_tensor_parallel.py", *map(str, folders))}
    assert list(rows) == [folder.name for folder in folders]
    problems = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert not problems
    for name, row in rows.items():
        assert row["world"] == 2
        assert row["heads"] == 0.5, name
        assert max(row["change"], row["losses"], row["weights"]) < 1e-6, (name, row)
        assert row["drift"] < 1e-12, (name, row)
