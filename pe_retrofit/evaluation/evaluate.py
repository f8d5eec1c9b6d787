"""Evaluate a model next to the stock model: the same questions to both, one folder of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..progress import Report
from . import tasks as _tasks  # noqa: F401  (registers them)
from .bridges import lm_eval as _lm_eval  # noqa: F401  (knows the tasks named lm_eval/...)
from .distributed import processes
from .opening import describe_source, open_model
from .session import Interrupted, Session
from .setting import Setting
from .sides import side_of_model, side_of_name
from .subject import Subject
from .task import choose_tasks

__all__ = ["Interrupted", "evaluate", "evaluate_model"]


def evaluate_model(
    model: Any,
    tokenizer: Any,
    *,
    tasks: Sequence[str] = ("perplexity", "passkey"),
    against: Any = "unpatched",
    out: str | Path | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    name: str = "",
    report: Report | None = None,
    **setting: Any,
) -> dict[str, Any]:
    """Evaluate a model that is loaded already, on the same samples as the model it came from.

    Args:
        model: a transformers model of a supported family, patched or not, with an adapter or not.
        tokenizer: of the model.
        tasks: names of tasks or groups; ``all`` for all the model can do.
        against: ``"unpatched"``: the same model with its patch lifted while it is compared (nothing is compared when
            there is no patch); another model; the folder of a run that has the same samples; or None.
        out: folder for ``results.json`` and ``samples/*.jsonl``; a run that stopped goes on from there. None keeps
            everything in memory.
        options: by task, e.g. ``{"passkey": {"digits": 7}}``.
        name: in tables and files; the class by default.
        report: is told how far the run is: text, work done, work in all.
        **setting: of :class:`Setting`: ``lengths``, ``samples``, ``depths``, ``seed``, ``text``, ``generate``,
            ``batch_size``.

    Returns:
        The results, as in ``results.json``.

    Raises:
        ConfigError: unknown tasks, wrong options or setting, or ``out`` holds another run.
        UnsupportedError: the model fits no family, the text is too short, or the patch cannot be lifted.
        Interrupted: by Ctrl-C; calling again with the same arguments goes on.
    """
    subject = Subject(model, tokenizer, name or type(model).__name__)
    wanted, side = _setting(setting), side_of_model(against, subject)
    chosen = choose_tasks(list(tasks), subject.kind, options)
    run = Session(wanted, chosen, None if out is None else Path(out), report, processes())
    return run.both(subject, None, side)


def evaluate(
    model: str,
    *,
    tasks: Sequence[str] = ("perplexity", "passkey"),
    against: str | None = "auto",
    out: str | Path,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: str = "auto",
    device: str | None = None,
    gguf_file: str | None = None,
    trust_remote_code: bool = False,
    report: Report | None = None,
    **setting: Any,
) -> dict[str, Any]:
    """Evaluate a model by its name; see :func:`evaluate_model`.

    Args:
        model: a hub id, a folder, an adapter's folder, a GGUF file, ``smollm2``, ``minilm``, or ``NAME@MODEL`` to patch
            on the fly (``yarn:factor=4@MODEL``).
        against: ``auto``: the same weights without patch and adapter, where there is one; ``none``; a model; or the
            folder of a run.
        dtype: ``auto`` (of the checkpoint), ``float32``, ``bfloat16``, ``float16``.
        device: ``cpu``, ``cuda``, ...; by default cuda where there is one.

    Raises:
        As :func:`evaluate_model`, and ConfigError: the model cannot be loaded.
    """
    wanted, who = _setting(setting), processes()
    keywords: dict[str, Any] = {
        "dtype": dtype,
        "device": who.device or device or _device(),
        "gguf_file": gguf_file,
        "trust_remote_code": trust_remote_code,
    }
    if report is not None:
        report("loading the model", 0.0, 0.0)
    opened = open_model(model, **keywords)
    subject = Subject(opened.model, opened.tokenizer, opened.named.label)
    chosen = choose_tasks(list(tasks), subject.kind, options)
    run = Session(wanted, chosen, Path(out), report, who)
    return run.both(subject, describe_source(opened), side_of_name(against, opened, keywords))


def _setting(keywords: Mapping[str, Any]) -> Setting:
    unknown = sorted(set(keywords) - set(Setting.__dataclass_fields__))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: unknown. The setting has: {', '.join(Setting.__dataclass_fields__)}.")
    return Setting(**keywords)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
