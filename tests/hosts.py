"""The hosts of the test matrix: a tiny random model of every kind the families hold. A new family is one row."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import transformers as hf

VOCAB, PAD, TRAINED = 97, 1, 32
"""Tokens 0 .. 96; 1 pads; every host was "trained" for 32 positions."""

SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,  # large enough for attention that is far from uniform
}
DECODER = {
    **SIZES,
    "max_position_embeddings": TRAINED,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
GQA = {**DECODER, "num_key_value_heads": 2}
WINDOW = 12
"""Smaller than the length of most tests."""

ENCODER = {**SIZES, "max_position_embeddings": TRAINED, "pad_token_id": PAD}


@dataclass(frozen=True)
class HostCase:
    """A tiny model.

    Attributes:
        name: of the row.
        model_class: with a head; the name of a class of transformers.
        config_class: the name of its config class.
        options: of the config.
        causal: decoder or encoder.
        rotates: has a rotation; otherwise a position table.
        own_layout: cos is not laid out as (f, f), so that frequencies of our own are refused.
        own_application: applies cos to pairs of neighbours, so that rotations inside our attention are refused.
        unfused: what the fused kernels cannot do, in words.
        windows: has sliding-window layers.
        native_nope: layer 1 has no rotation.
        rope_sets: window layers have rope parameters of their own.
        partial: rotates a part of each head.
        cross: attends to an encoder.
        packs: masks packed sequences from each other by ``position_ids``.
    """

    name: str
    config_class: str
    model_class: str
    options: dict[str, Any] = field(default_factory=dict)
    causal: bool = True
    rotates: bool = True
    own_layout: bool = False
    own_application: bool = False
    unfused: str = ""
    windows: bool = False
    native_nope: bool = False
    rope_sets: bool = False
    partial: bool = False
    cross: bool = False
    packs: bool = True

    def config(self, **more: Any) -> Any:
        """A fresh config; ``more`` overrides options."""
        return getattr(hf, self.config_class)(**copy.deepcopy({**self.options, **more}))

    def fresh(self, **more: Any) -> Any:
        """A new model with the weights of seed 0, in eval mode, in float32."""
        if not more:
            return copy.deepcopy(_built(self.name))
        return _build(self, more)


@cache
def _built(name: str) -> Any:
    return _build(HOSTS[name], {})


def _build(host: HostCase, more: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = getattr(hf, host.model_class)(host.config(**more)).eval()
    if "num_local_experts" in host.options:
        model.set_experts_implementation("eager")  # the grouped one has no float64
    with torch.no_grad():  # biases and norms away from 0 and 1, so that nothing cancels by accident
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_HOSTS = [
    HostCase("llama", "LlamaConfig", "LlamaForCausalLM", GQA),
    HostCase(
        "mistral",
        "MistralConfig",
        "MistralForCausalLM",
        {**GQA, "sliding_window": WINDOW, "head_dim": 16},
        windows=True,
    ),
    HostCase("qwen2", "Qwen2Config", "Qwen2ForCausalLM", GQA),
    HostCase("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {**GQA, "head_dim": 16}),
    HostCase(
        "gemma2",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {
            **GQA,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "attn_logit_softcapping": 3.0,
            "query_pre_attn_scalar": 16,
            "attn_implementation": "eager",  # before transformers 5.21 the default, sdpa, ignored the soft-capping
        },
        unfused="soft-capping",
        windows=True,
    ),
    HostCase(
        "gemma3",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**GQA, "head_dim": 16, "sliding_window": WINDOW, "layer_types": TYPES, "query_pre_attn_scalar": 16},
        windows=True,
        rope_sets=True,
    ),
    HostCase("olmo2", "Olmo2Config", "Olmo2ForCausalLM", GQA),
    HostCase("phi3", "Phi3Config", "Phi3ForCausalLM", GQA),
    HostCase("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", {**GQA, "no_rope_layers": [1, 0, 1]}, native_nope=True),
    HostCase("stablelm", "StableLmConfig", "StableLmForCausalLM", {**GQA, "partial_rotary_factor": 0.5}, partial=True),
    HostCase("cohere", "CohereConfig", "CohereForCausalLM", GQA, own_layout=True),
    HostCase(
        "glm",
        "GlmConfig",
        "GlmForCausalLM",
        {**GQA, "head_dim": 8, "partial_rotary_factor": 0.5},
        own_application=True,
        partial=True,
    ),
    HostCase(
        "gpt_oss",
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **GQA,
            "head_dim": 16,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "sliding_window": WINDOW,
            "layer_types": TYPES,
            "rope_parameters": PLAIN_ROPE,
        },
        unfused="sinks",
        packs=False,  # it does not hand position_ids to its masks
        windows=True,
        own_layout=True,
    ),
    HostCase(
        "mixtral",
        "MixtralConfig",
        "MixtralForCausalLM",
        {**GQA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": None},
    ),
    HostCase(
        "gpt_neox",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**DECODER, "use_parallel_residual": True, "rotary_pct": 0.5},
        partial=True,
    ),
    HostCase(
        "gpt_neox_serial",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**DECODER, "use_parallel_residual": False, "rotary_pct": 1.0},
    ),
    HostCase("bert", "BertConfig", "BertForMaskedLM", ENCODER, causal=False, rotates=False),
    HostCase(
        "roberta",
        "RobertaConfig",
        "RobertaForMaskedLM",
        {**ENCODER, "max_position_embeddings": TRAINED + PAD + 1},
        causal=False,
        rotates=False,
    ),
    HostCase(
        "distilbert",
        "DistilBertConfig",
        "DistilBertForMaskedLM",
        {
            "vocab_size": VOCAB,
            "dim": 32,
            "hidden_dim": 40,
            "n_layers": 3,
            "n_heads": 4,
            "max_position_embeddings": TRAINED,
            "pad_token_id": PAD,
            "initializer_range": 0.2,
        },
        causal=False,
        rotates=False,
    ),
    HostCase(
        "electra",
        "ElectraConfig",
        "ElectraForMaskedLM",
        {**ENCODER, "embedding_size": 16},
        causal=False,
        rotates=False,
    ),
    HostCase(
        "bert_decoder",
        "BertConfig",
        "BertLMHeadModel",
        {**ENCODER, "is_decoder": True},
        rotates=False,
        packs=False,
    ),
    HostCase(
        "bert_cross",
        "BertConfig",
        "BertLMHeadModel",
        {**ENCODER, "is_decoder": True, "add_cross_attention": True},
        rotates=False,
        cross=True,
        packs=False,
    ),
]
HOSTS = {host.name: host for host in _HOSTS}
