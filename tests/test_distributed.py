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
    """Each rank holds half of the heads: equal logits, or refused at the first forward pass."""
    names = [n for n in DECODER if ENCODINGS[n].spec == n]
    for name in names:
        model, ids = ENCODINGS[name].patch(HOSTS["llama"].fresh()), tokens(2, 20)
        case = {"ids": ids, "logits": logits(model, ids)}
        model.save_pretrained(tmp_path / name)
        torch.save(case, tmp_path / name / "case.pt")
    rows = {row["name"]: row for row in launched("worker_tensor_parallel.py", *(str(tmp_path / n) for n in names))}
    assert list(rows) == names
    problems = {name: row["error"] for name, row in rows.items() if "error" in row}
    assert not problems
    for name, row in rows.items():
        assert row["world"] == 2
        if capability(name).tp:
            assert row.get("change", 1.0) < 1e-5, row
            assert row["rows"] == 16, "half of the heads"
        else:
            assert "split over processes" in row.get("refused", ""), row
