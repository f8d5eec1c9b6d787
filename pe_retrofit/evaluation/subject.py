"""The model under test, seen by the tasks: tokens in, likelihoods, choices and embeddings out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from ..likelihood import hidden_states, logits_of, token_nll
from ..models import quiet
from ..patchers.family import find_host
from ..texts import Text
from .embedding import pool

SOME = 64
"""Values of a tensor that tell it from another."""


@dataclass(frozen=True)
class Forced:
    """What a model makes of a given answer.

    Attributes:
        nll: mean negative log-likelihood of the answer's tokens, in nats.
        exact: every token is the model's first choice.
        choices: its first choices, given the answer so far.
    """

    nll: float
    exact: bool
    choices: list[int]


class Subject:
    """A model, its tokenizer and what they can do.

    Args:
        model: of a supported family, in evaluation mode.
        tokenizer: of the model.
        name: in tables and files.

    Raises:
        UnsupportedError: the model is a decoder or encoder without what an evaluation needs.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.host = find_host(model)
        self._texts: dict[str, list[int]] = {}

    @cached_property
    def kind(self) -> str:
        """``causal``, ``masked`` or ``encoder``."""
        has_head = getattr(self.model, "get_output_embeddings", lambda: None)() is not None
        if self.host.causal():
            if not has_head:
                raise UnsupportedError(
                    f"{type(self.model).__name__} has no language-modelling head. Load it with AutoModelForCausalLM."
                )
            return "causal"
        return "masked" if has_head else "encoder"

    @property
    def weights(self) -> str:
        """Twelve hexadecimal digits that change when the model is trained: of some values of every tensor."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if parameter.device.type == "meta":
                continue
            flat = parameter.detach().flatten()
            some = flat[:: max(1, flat.numel() // SOME)]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(some.to("cpu", torch.float64).numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def trained_length(self) -> int:
        """Tokens its config says it was made for, as it is now."""
        return int(self.host.config.max_position_embeddings) - (self.host.reserved_rows if self.host.table else 0)

    @property
    def longest(self) -> int | None:
        """Tokens its position table holds; None where no table limits it, as where an encoding took its place."""
        table = self.host.table
        if table is None or not getattr(table, "keeps_rows", True):
            return None
        return table.weight.shape[0] - self.host.reserved_rows

    @property
    def start(self) -> list[int]:
        """The token that begins a text, or nothing."""
        token = self.tokenizer.bos_token_id if self.kind == "causal" else self.tokenizer.cls_token_id
        return [] if token is None else [token]

    @property
    def end(self) -> list[int]:
        """The token that ends an encoder's text, or nothing."""
        token = None if self.kind == "causal" else self.tokenizer.sep_token_id
        return [] if token is None else [token]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text without special ones."""
        with quiet():  # tokenizers warn about texts longer than the model's maximum, which is the point here
            tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return tokens

    def tokens_of(self, text: Text) -> list[int]:
        """All tokens of a long text, remembered."""
        if text.sha256 not in self._texts:
            self._texts[text.sha256] = self.encode(text.content)
        return self._texts[text.sha256]

    def check_length(self, tokens: int) -> None:
        """Refuse what the model's position table cannot hold.

        Raises:
            UnsupportedError: with the limit and the way out.
        """
        if self.longest is not None and tokens > self.longest:
            raise UnsupportedError(
                f"{self.name} reads at most {self.longest} tokens (its table of positions ends there), and {tokens} "
                f"are asked. Extend it, e.g. with learned:max_positions={tokens}@MODEL, or choose shorter lengths."
            )

    def hidden(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Last hidden states ``[b, n, hidden_size]`` of rows of equal length."""
        self.check_length(len(rows[0]))
        return hidden_states(self.model, torch.tensor([list(row) for row in rows], device=self.device))

    def embeddings(self, rows: Sequence[Sequence[int]], pooling: str) -> Tensor:
        """Vectors of length 1, float32 ``[b, hidden_size]``, of rows of equal length; ``mean``, ``cls`` or ``max``."""
        return pool(self.hidden(rows), pooling)

    def nll(self, hidden: Tensor, targets: Sequence[int]) -> Tensor:
        """Negative log-likelihood ``[n]`` of each target, in nats, from hidden states ``[n, hidden_size]``."""
        return token_nll(self.model, hidden, torch.tensor(list(targets), device=hidden.device))

    def forced(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[Forced]:
        """Teacher-forced answers, in one forward without a cache; all prompts and all answers of equal length."""
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        return self._judge(self.hidden(rows)[:, -len(answers[0]) - 1 : -1], answers)

    def _judge(self, hidden: Tensor, answers: Sequence[Sequence[int]]) -> list[Forced]:
        found = []
        for states, answer in zip(hidden, answers, strict=True):
            logits = logits_of(self.model, states)
            targets = torch.tensor(list(answer), device=logits.device)
            nll = torch.nn.functional.cross_entropy(logits, targets)
            choices = logits.argmax(-1).tolist()
            found.append(Forced(nll.item(), choices == list(answer), choices))
        return found

    @torch.no_grad()
    def forced_and_generated(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], new_tokens: int
    ) -> tuple[list[Forced], list[list[int]]]:
        """:meth:`forced` and :meth:`generate` with one pass over the prompts: its cache serves the generation."""
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        self.check_length(len(rows[0]))
        ids = torch.tensor(rows, device=self.device)
        output = self.host.base(input_ids=ids, use_cache=True)
        forced = self._judge(output.last_hidden_state[:, -len(answers[0]) - 1 : -1], answers)
        cache = output.past_key_values
        try:
            cache.crop(len(prompts[0]) - 1)
        except (ValueError, NotImplementedError, AttributeError, RuntimeError):  # a cache that forgets cannot go back
            cache = None
        return forced, self.generate(prompts, new_tokens, cache)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, cache: Any | None = None) -> list[list[int]]:
        """Greedy continuations with the cache, for prompts of equal length, up to the token that ends a text.

        Args:
            prompts: tokens.
            new_tokens: at most so many.
            cache: of a first part of the prompts.
        """
        ids = torch.tensor([list(prompt) for prompt in prompts], device=self.device)
        with quiet():
            rows = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                past_key_values=cache,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,
                pad_token_id=self.pad,
            )[:, ids.shape[1] :].tolist()
        return [self.until_end(row) for row in rows]

    @property
    def stops(self) -> list[int]:
        """Tokens that end a generated text."""
        stops = self.model.generation_config.eos_token_id
        return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)

    @property
    def pad(self) -> int:
        """What ``generate`` fills finished rows with."""
        pad = self.model.generation_config.pad_token_id
        return int(pad) if pad is not None else (self.stops or [0])[0]

    def until_end(self, row: Sequence[int]) -> list[int]:
        """Generated tokens up to the one that ends the text."""
        stops = self.stops
        return list(row[: next((i for i, token in enumerate(row) if token in stops), len(row))])

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text
