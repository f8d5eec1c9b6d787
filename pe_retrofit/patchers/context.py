"""The hooks that bring positions into a model: one before and one after the base model's forward."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import UnsupportedError
from ..positions import KEYWORD, STRENGTH, remember, resolve

SDPA = functional.scaled_dot_product_attention
"""PyTorch's own. Context parallelism puts another in its place, which sees a part of the keys at a time."""


class PositionContext:
    """Resolves positions once per forward pass and hands them down as a keyword argument.

    Args:
        packs_by_position: see :func:`pe_retrofit.positions.resolve`.
        required: the attention implementation the patch depends on; None when any will do.
        whole: the input encoding looks at neighbours or at the length of the text.
        table_offset: for models with a position table that was replaced: rows before position 0; None otherwise.
        encodings: names, for messages.
        base: the base model, for the names of its arguments.
    """

    def __init__(
        self,
        *,
        packs_by_position: bool,
        required: str | None,
        whole: bool = False,
        table_offset: int | None,
        encodings: str,
        base: nn.Module,
    ) -> None:
        self.packs_by_position = packs_by_position
        self.required = required
        self.whole = whole
        self.table_offset = table_offset
        self.encodings = encodings
        self.names = list(inspect.signature(type(base).forward).parameters)[1:]

    def before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Forward pre-hook of the base model."""
        state = module.__dict__.get(STRENGTH)
        if state is not None and state.value == 0.0:
            return args, {**kwargs, KEYWORD: state.nowhere()}
        if self.required is not None and module.config._attn_implementation != self.required:
            raise UnsupportedError(
                f"The model was patched with {self.encodings}, which runs through the attention implementation "
                f"{self.required!r}, but it is now set to {module.config._attn_implementation!r}, which would drop the "
                f"encoding without a word. Call model.set_attn_implementation({self.required!r}), or "
                "unpatch_model(model) first."
            )
        replaced = not torch.compiler.is_compiling() and functional.scaled_dot_product_attention is not SDPA
        if (self.required is not None or self.whole) and replaced:
            needs = "computes its attention over all keys at once" if self.required else "needs the whole text"
            raise UnsupportedError(
                f"The model was patched with {self.encodings}, which {needs}, but "
                "torch.nn.functional.scaled_dot_product_attention has been replaced, as context parallelism does: each "
                "process would attend to its own part of the text only. Train without context parallelism "
                "(cp_size=1), or use an encoding that only changes the rotation, such as 'yarn', 'ntk' or 'linear'."
            )
        kwargs = {**dict(zip(self.names[: len(args)], args, strict=True)), **kwargs}
        tokens = kwargs.get("input_ids")
        tokens = kwargs.get("inputs_embeds") if tokens is None else tokens
        if tokens is None:
            return (), kwargs  # the model's own error is the right one
        position_ids = kwargs.get("position_ids")
        if position_ids is not None and self.table_offset:
            position_ids = position_ids - self.table_offset
        positions = resolve(
            query_length=tokens.shape[1],
            batch_size=tokens.shape[0],
            device=tokens.device,
            position_ids=position_ids,
            attention_mask=kwargs.get("attention_mask"),
            cache=kwargs.get("past_key_values"),
            packs_by_position=self.packs_by_position,
        )
        if state is not None:
            positions.strength, positions.native_attention = state.value, state.attention
        positions.weights = bool(kwargs.get("output_attentions", getattr(module.config, "output_attentions", False)))
        kwargs[KEYWORD] = positions
        if self.table_offset is not None:
            self._feed_embeddings(tokens, positions.query, kwargs)
        return (), kwargs

    def after(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Forward hook: a cache that the model made itself learns the positions of what it holds."""
        positions = kwargs.get(KEYWORD)
        if positions is None or positions.strength == 0.0 or kwargs.get("past_key_values") is not None:
            return
        cache = getattr(output, "past_key_values", None)
        cache = getattr(cache, "self_attention_cache", cache)
        if cache is not None and hasattr(cache, "get_seq_length"):
            remember(cache, positions)

    def _feed_embeddings(self, tokens: Tensor, query: Tensor, kwargs: dict[str, Any]) -> None:
        """Embeddings of BERT-likes take positions and token types from buffers of the old length; give them ours."""
        rows, length = tokens.shape[:2]
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = (query + (self.table_offset or 0)).expand(rows, -1)
        if "token_type_ids" in self.names and kwargs.get("token_type_ids") is None:
            kwargs["token_type_ids"] = torch.zeros(rows, length, dtype=torch.long, device=tokens.device)
