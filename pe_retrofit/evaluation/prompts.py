"""The A/B of real prompts: each model answers each prompt, and the answers stand side by side with what they cost."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ..errors import ConfigError, UnsupportedError
from ..memory import peak_memory
from ..models import quiet
from ..progress import Report, Work
from ..specs import read_named
from .log import SampleLog
from .opening import open_model
from .promptfile import LONGEST, Prompt, read_prompts
from .promptresults import collect
from .results import about
from .subject import Subject
from .task import fingerprint

LOG = "generations"


class Interrupted(Exception):  # noqa: N818 (not an error)
    """The run was stopped by the user; what was done is saved."""


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

    Attributes:
        max_new_tokens: per answer, where its prompt names no other number.
        temperature: 0 is greedy; otherwise sampling from the whole distribution at that temperature.
        seed: of the sampling; each prompt has a generator state of its own, the same for every model.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        if not 1 <= self.max_new_tokens <= LONGEST:
            wrong.append(f"max_new_tokens={self.max_new_tokens} must be a whole number from 1 to {LONGEST}")
        if not (math.isfinite(self.temperature) and 0 <= self.temperature <= 100):
            wrong.append(f"temperature={self.temperature} must be a number from 0 (greedy) to 100")
        if not 0 <= self.seed < 2**63:
            wrong.append(f"seed={self.seed} must be a whole number from 0")
        if wrong:
            raise ConfigError("; ".join(wrong) + ".")


@dataclass
class _Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when the first new token came; ``generate`` hands it the prompt first."""

    calls: int = 0
    first: float | None = None

    def put(self, value: Any) -> None:
        """Tokens have come."""
        self.calls += 1
        if self.calls == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        """Nothing is left to do."""


def compare_prompts(
    models: Sequence[str],
    prompts: str | Path,
    out: str | Path,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    dtype: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Let each model answer each prompt; one model in memory at a time.

    Finished answers are in ``out/generations.jsonl``; a call with the same models, prompts and decoding goes on from
    there, and one that differs answers anew what differs.

    Args:
        models: as for :func:`~pe_retrofit.evaluation.evaluate`; answers are compared with those of the first.
        prompts: a JSON-lines file, see :func:`~pe_retrofit.evaluation.promptfile.read_prompts`.
        out: folder.
        max_new_tokens, temperature, seed: see :class:`Decoding`.
        report: is told how far the run is.

    Returns:
        ``models`` and ``prompts``, with for each prompt one answer per model: text, time to the first token and in all
        (seconds), tokens per second, peak memory (bytes), repetition (share of repeated 4-grams), agreement with the
        first model and whether the reference is contained.

    Raises:
        ConfigError: a wrong file (with the line), model or number.
        UnsupportedError: a model is no decoder, or a prompt is too long for it.
        Interrupted: by Ctrl-C.
    """
    decoding = Decoding(max_new_tokens, temperature, seed)
    twice = [name for name in models if list(models).count(name) > 1]
    if not models or twice:
        raise ConfigError(f"{twice[0]!r} is named twice; name each model once." if twice else "Name the models.")
    for name in models:
        read_named(name)  # wrong names before anything is loaded
    asked = read_prompts(prompts)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    keywords = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    log = SampleLog(Path(out), LOG)
    work = Work(float(len(models) * sum(p.max_new_tokens or max_new_tokens for p in asked)), report)
    try:
        for name in models:
            _answer_all(name, asked, decoding, keywords, log, work)
    except KeyboardInterrupt:
        raise Interrupted("The comparison was interrupted; what was done is saved.") from None
    finally:
        log.close()
    return collect(models, asked, asdict(decoding), dtype, log)


def _answer_all(
    name: str, prompts: Sequence[Prompt], decoding: Decoding, keywords: Mapping[str, Any], log: SampleLog, work: Work
) -> None:
    """What is left of one model's answers."""
    stamp = fingerprint(name, _stamp(name), sorted((k, str(v)) for k, v in keywords.items()))
    subject: Subject | None = None
    model: dict[str, Any] = {}
    for prompt in prompts:
        tokens = prompt.max_new_tokens or decoding.max_new_tokens
        key = fingerprint(stamp, prompt.content, tokens, decoding.temperature, decoding.seed)
        before = log.done.get((name, prompt.id))
        if before is None or before[0]["asked"] != key:
            if subject is None:
                work.say(f"{name}, loading")
                opened = open_model(name, **keywords)
                subject = Subject(opened.model, opened.tokenizer, name)
                _check(subject)
                subject.hidden([(subject.start or [0]) * 8])  # first calls are slow; they are not the answer's
                model = {**about(subject), "base": opened.base, "vocabulary": _vocabulary(subject.tokenizer)}
            work.say(f"{name}, {prompt.id}")
            try:
                answer = _answer(subject, prompt, tokens, decoding)
            except (ConfigError, UnsupportedError) as error:
                raise type(error)(f"Line {prompt.line} of the prompts, {name}: {error}") from error
            log.add(name, prompt.id, [{"asked": key, "model": model, **answer}])
        work.advance(tokens)
    del subject
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check(subject: Subject) -> None:
    if subject.kind != "causal":
        raise UnsupportedError(f"{subject.name} is an encoder and cannot continue a prompt; name decoders.")


def _answer(subject: Subject, prompt: Prompt, new_tokens: int, decoding: Decoding) -> dict[str, Any]:
    ids = _tokens(subject, prompt)
    subject.check_length(len(ids) + new_tokens)
    clock = _Clock()
    with peak_memory(subject.device) as peak, torch.random.fork_rng():
        torch.manual_seed(int(fingerprint(decoding.seed, prompt.content), 16))
        started = time.perf_counter()
        row = _generate(subject, ids, new_tokens, decoding, clock)
        total = time.perf_counter() - started
    kept = subject.until_end(row)
    return {
        "prompt_tokens": len(ids),
        "new_tokens": len(row),
        "stopped": len(kept) < len(row),
        "tokens": kept,
        "text": subject.decode(kept),
        "first_token_seconds": None if clock.first is None else clock.first - started,
        "seconds": total,
        "tokens_per_second": len(row) / total if total > 0 else None,
        "peak_memory_bytes": peak.get("peak"),
    }


def _tokens(subject: Subject, prompt: Prompt) -> list[int]:
    tokenizer = subject.tokenizer
    if prompt.messages is None:
        with quiet():
            ids = list(tokenizer.encode(prompt.prompt))  # with the special tokens it adds by itself
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # the text is to be continued
    else:
        if not getattr(tokenizer, "chat_template", None):
            raise UnsupportedError("its tokenizer has no chat template. Give a prompt instead of messages.")
        try:
            written = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates are programs of their own and raise what they like
            raise ConfigError(f"the chat template refuses these messages: {error}") from error
        ids = subject.encode(written)  # the template writes the special tokens itself
    if not ids:
        raise ConfigError("the prompt has no tokens.")
    return ids


@torch.no_grad()
def _generate(subject: Subject, ids: list[int], new_tokens: int, decoding: Decoding, clock: _Clock) -> list[int]:
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if decoding.temperature > 0:
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": 1.0, "top_k": 0}
    rows = torch.tensor([ids], device=subject.device)
    with quiet():
        made = subject.model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=new_tokens,
            num_beams=1,
            use_cache=True,
            repetition_penalty=1.0,
            pad_token_id=subject.pad,
            streamer=clock,
            **sampling,
        )
    row: list[int] = made[0, len(ids) :].tolist()
    return row


def _stamp(name: str) -> list[tuple[str, int, int]]:
    """What changes when a local model is saved anew."""
    path = Path(read_named(name).model)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _vocabulary(tokenizer: Any) -> str:
    """Equal for tokenizers whose tokens can be compared."""
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else type(tokenizer).__name__
    return fingerprint(sorted(words.items()) if isinstance(words, dict) else words)
