"""Two processes give the losses and weights of one: every encoding under DDP and FSDP2; which run under tensor parallel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matrix import ENCODINGS, HOSTS, Cell

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
