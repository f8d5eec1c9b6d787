"""lm-evaluation-harness, with its traps closed: everything that touches the package ``lm_eval`` is here.

What is guarded: prompts cut from the left in silence, ``-1`` for "no samples", a tokenizer it can only load from a
folder, samples that depend on what was drawn before, and loops without end where a prompt cannot be made short enough.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ...errors import ConfigError, UnsupportedError
from ...models import quiet
from .fitting import check_fits
from .surroundings import INSTALL, NUMPY_SEED, seeded, silent

SERIES = "0.4."
OFFLINE = ("niah_single_1", "niah_multikey_2", "niah_multikey_3", "ruler_vt", "ruler_cwe")
"""Tasks that make their own samples, without a network."""


class Truncated(RuntimeError):  # noqa: N818 (what happened)
    """lm-eval cut a prompt: the score would be of another question."""


class NoScore(RuntimeError):  # noqa: N818 (what happened)
    """lm-eval has no score for a sample, which it writes as -1."""


def require() -> str:
    """The installed version.

    Raises:
        UnsupportedError: it is missing, or of another series.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UnsupportedError(f"Tasks named lm_eval/... need lm-evaluation-harness. Install it with: {INSTALL}")
    version = metadata.version("lm_eval")
    if not version.startswith(SERIES):
        raise UnsupportedError(
            f"Tasks named lm_eval/... need lm-eval {SERIES}x, and {version} is installed. Install it with: {INSTALL}"
        )
    return version


def save_tokenizer(tokenizer: Any, folder: Path) -> Any:
    """Save a tokenizer where lm-eval can load it, and load it as lm-eval does.

    Raises:
        UnsupportedError: it cannot be saved, or what comes back splits text differently.
    """
    from transformers import AutoTokenizer

    sample = "The special magic number for tiny-house is: 8284194.\nVAR XQB = VAR ZWP.\n\n 3f1c-é"
    try:
        with quiet():
            tokenizer.save_pretrained(str(folder))
            again = AutoTokenizer.from_pretrained(str(folder))
            same = again.encode(sample) == tokenizer.encode(sample)
    except Exception as error:
        raise UnsupportedError(
            f"The tokenizer ({type(tokenizer).__name__}) cannot be saved and loaded again, which lm-eval needs: {error}"
        ) from error
    if not same:
        raise UnsupportedError(
            f"The tokenizer ({type(tokenizer).__name__}) splits text differently once it is saved and loaded, as "
            "lm-eval does: its lengths would be wrong. Use a tokenizer that survives save_pretrained."
        )
    return again


def load_task(name: str, length: int, tokenizer: Any, folder: Path, seed: int, include: str = "") -> Any:
    """A task of lm-eval with its samples for one length.

    Args:
        name: as lm-eval calls it.
        length: in tokens; tasks that have no lengths ignore it.
        tokenizer: loaded from ``folder``.
        folder: where the tokenizer is saved.
        seed: of the samples.
        include: a folder with task files of one's own, searched first.

    Raises:
        ConfigError: no task has this name, or it is a group.
        UnsupportedError: it measures perplexity in disjoint windows, its data cannot be reached, or the length is too
            short for it.
    """
    check_fits(name, length, tokenizer, seed)
    given = {"max_seq_lengths": [length], "tokenizer": str(folder)}
    try:
        with silent(), seeded(seed):
            task = _manager(name, include, given).load([name])["tasks"][name]
    except ConfigError:
        raise
    except ImportError as error:
        raise UnsupportedError(
            f"lm-eval's task {name!r} needs a package that is not installed: {error}. For RULER's tasks: {INSTALL}"
        ) from error
    except (OSError, ValueError, RuntimeError, AssertionError, KeyError, TypeError) as error:
        raise UnsupportedError(_why_not(name, length, error)) from error
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise UnsupportedError(
            f"lm-eval's task {name!r} measures perplexity in disjoint windows, where each window begins without "
            "context: it says nothing about long context. Use the task 'perplexity'."
        )
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=NUMPY_SEED)
    return task


def _manager(name: str, include: str, given: dict[str, Any]) -> Any:
    """The index of the smallest folder that knows the task: reading all of lm-eval's takes seconds."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    ruler = Path(lm_eval.__file__).parent / "tasks" / "ruler"
    for folder in [include, str(ruler)]:
        if folder:
            found = TaskManager(include_path=folder, include_defaults=False, metadata=given)
            if name in found.all_subtasks:
                return found
    found = TaskManager(include_path=include or None, metadata=given)
    if name in found.all_subtasks:
        return found
    if name in found.all_tasks:
        raise ConfigError(f"lm_eval/{name} is a group of lm-eval. Name its tasks one by one.")
    close = difflib.get_close_matches(name, found.all_subtasks, n=3)
    hint = f"; did you mean {' or '.join(f'lm_eval/{c}' for c in close)}?" if close else "."
    raise ConfigError(f"lm-eval has no task {name!r}{hint} Without a network work: {', '.join(OFFLINE)}.")


def _why_not(name: str, length: int, error: Exception) -> str:
    """Its failure in words."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, OSError) or "Hub" in text or "offline" in text.lower():
        return (
            f"lm-eval's task {name!r} takes its data from the network, which cannot be reached: {text}. "
            f"Without a network work: {', '.join(OFFLINE)}."
        )
    return f"lm-eval cannot make samples of {name!r} with {length} tokens: {text}."


def harness_model(model: Any, tokenizer: Any, max_length: int) -> Any:
    """A model object as lm-eval sees it, which counts what it cuts in ``truncated``.

    Args:
        model: in evaluation mode, patched or not.
        tokenizer: lm-eval may give it a padding token.
        max_length: explicit, or lm-eval takes the config's (or 2048) and cuts the start of longer prompts in silence.
    """
    from lm_eval.models.huggingface import HFLM

    class Counting(HFLM):
        truncated = 0

        def tok_encode(
            self, string: str, add_special_tokens: Any = None, left_truncate_len: int | None = None, **more: Any
        ) -> list[int]:
            whole: list[int] = super().tok_encode(string, add_special_tokens, None, **more)
            if left_truncate_len and len(whole) > left_truncate_len:
                self.truncated += 1
                return whole[-left_truncate_len:]
            return whole

        def tok_batch_encode(
            self,
            strings: list[str],
            padding_side: str = "left",
            left_truncate_len: Any = None,
            truncation: bool = False,
        ) -> Any:
            _, mask = super().tok_batch_encode(strings, padding_side)
            found = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
            self.truncated += int((mask.sum(1) > found[1].sum(1)).sum())
            return found

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **more: Any) -> Any:
            self.truncated += sum(len(before) + len(after) > self.max_length + 1 for _, before, after in requests)
            return super()._loglikelihood_tokens(requests, *args, **more)

    with silent():
        return Counting(pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=1, backend="causal")


def ask(lm: Any, name: str, task: Any, doc: int) -> dict[str, Any]:
    """lm-eval's record of one of a task's samples.

    Raises:
        Truncated: the prompt was cut.
    """
    from lm_eval.evaluator import evaluate

    before = lm.truncated
    with silent():
        # samples= instead of limit=, which with several lengths takes the first ones of the first length only
        results = evaluate(
            lm=lm, task_dict={"tasks": {name: task}}, samples={name: [doc]}, bootstrap_iters=0, log_samples=True
        )
    if lm.truncated > before:
        raise Truncated(
            f"lm-eval cut {lm.truncated - before} prompt(s) of {name!r} to {lm.max_length} tokens; what was asked for "
            "may be gone, so there is no score."
        )
    found: dict[str, Any] = results["samples"][name][0]  # several when it has several filters: the first
    return found


def score_of(sample: dict[str, Any], name: str, length: int, metrics: Sequence[str]) -> tuple[str, float]:
    """The metric that counts, and its value.

    RULER's tasks score under their length; others under the first metric they name.

    Raises:
        NoScore: there is none, or it is -1, which stands for "no samples" and is no score.
        UnsupportedError: it is not between 0 and 1.
    """
    metric = str(length) if "max_length" in sample["doc"] else next((m for m in metrics if m in sample), "")
    value = sample.get(metric)
    if isinstance(value, (list, tuple)) or value is None or value == -1:
        shown = "none" if value is None else repr(value)
        raise NoScore(
            f"lm-eval gave no score for a sample of {name!r} at {length} tokens ({shown}; -1 means no samples)."
        )
    if not 0 <= float(value) <= 1:
        raise UnsupportedError(
            f"lm-eval's task {name!r} scores {metric!r} outside 0 to 1 ({value}); it is not supported."
        )
    return metric, float(value)
