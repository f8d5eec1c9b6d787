"""Length generalisation, for real: a small model learns short problems, and the tasks tell short from long."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
import transformers as hf
from bytetokens import ByteTokenizer

from pe_retrofit.evaluation import evaluate_model
from pe_retrofit.evaluation.tasks.algorithms import problem

TRAINED_UP_TO = 5
SIZES = (2, 3, 5, 12)


def learned(task: str, steps: int) -> Any:
    """A small decoder after so many steps on problems of sizes up to 5; the loss is on the answers only."""
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, bos_token_id=256, eos_token_id=257, pad_token_id=259,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, steps, pct_start=0.1)
    random = Random(f"training {task}")
    model.train()
    for _ in range(steps):
        size = random.randint(1, TRAINED_UP_TO)  # one size a batch, so that nothing is padded
        rows, starts = [], []
        for _ in range(32):
            question, answer = problem(task, random, size)
            rows.append([256, *question.encode(), *answer.encode()])
            starts.append(1 + len(question))
        width = min(map(len, rows))
        ids = torch.tensor([row[:width] for row in rows])
        labels = ids.clone()
        for row, start in zip(labels, starts, strict=True):
            row[:start] = -100
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


@pytest.mark.slow
def test_what_was_learned_scores_and_what_is_too_long_does_not() -> None:
    model = learned("copy", 1000)
    results = evaluate_model(
        model, ByteTokenizer(), tasks=("copy", "reverse"), lengths=(128,), samples=10, generate=True,
        options={task: {"sizes": SIZES} for task in ("copy", "reverse")},
    )  # fmt: skip
    found = {row["length"]: row["mean"] for row in results["tasks"]["copy"]["by_length"]}
    assert min(found[n] for n in (2, 3, 5)) >= 0.7
    assert found[12] <= 0.3
    assert all(row["agreement"] == 1.0 for row in results["tasks"]["copy"]["by_length"])
    assert max(row["mean"] for row in results["tasks"]["reverse"]["by_length"]) <= 0.1  # never trained
