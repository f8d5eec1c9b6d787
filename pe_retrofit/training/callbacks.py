"""The log of a fine-tune and its progress bar."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from ..progress import Report
from .journal import Journal

_SHOWN = ("loss", "cross_entropy", "kl", "eval_loss", "learning_rate", "grad_norm", "strength")


class Progress(TrainerCallback):
    """Writes ``training.jsonl`` and tells how far it is: loss, learning rate, tokens per second.

    Args:
        journal: gets the lines.
        report: is told about every step.
    """

    def __init__(self, journal: Journal, report: Report) -> None:
        self.journal, self.report = journal, report
        self.text = "fine-tune"
        self.last: tuple[int, float] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.journal.start()
        self.last = (state.num_input_tokens_seen, self.journal.seconds)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(f"{self.text}, step {state.global_step}", float(state.global_step), float(state.max_steps))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or not ("loss" in logs or "eval_loss" in logs):
            return
        row: dict[str, Any] = {"step": state.global_step, "epoch": state.epoch, "tokens": state.num_input_tokens_seen}
        row.update({key: logs[key] for key in _SHOWN if key in logs})
        if "loss" in logs:
            now = (state.num_input_tokens_seen, self.journal.seconds)
            before, self.last = self.last or (0, 0.0), now
            row["tokens_per_second"] = round((now[0] - before[0]) / max(now[1] - before[1], 1e-9), 1)
            self.text = (
                f"fine-tune, loss {row['loss']:.4g}, learning rate {row.get('learning_rate', 0):.2g}, "
                f"{row['tokens_per_second']:.0f} tokens/s"
            )
        self.journal.add(row)
