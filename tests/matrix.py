"""The test matrix: tiny random hosts of every family, and every encoding with what it supports.

A new encoding is one row of :data:`ENCODINGS`, a new family one row of :data:`HOSTS`; every generic test runs over
:func:`cells`. :func:`refusal` says which cells must be refused, and with what words.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

from pe_retrofit import (
    AlibiConfig,
    BiasEncoding,
    ConvConfig,
    CopeConfig,
    DebertaConfig,
    DualChunkConfig,
    DynamicConfig,
    FireConfig,
    KerpleConfig,
    LearnedConfig,
    LongropeConfig,
    MlpConfig,
    NormalizedConfig,
    RecurrentConfig,
    SandwichConfig,
    SelfExtendConfig,
    ShawConfig,
    SinusoidalConfig,
    T5Config,
    WindowConfig,
    YarnConfig,
    get_encoding,
    patch_model,
)

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


@dataclass(frozen=True)
class EncodingCase:
    """An encoding as a user asks for it.

    Attributes:
        spec / options / layers: arguments of ``patch_model``.
        decoder / encoder: holds for causal, for bidirectional attention (``encoder`` also: on a position table).
        scales: scales a rotation, so a model without one refuses it.
        late: depends on the length, so that keys are cached unrotated.
        identity: an exact no-op when patched: "always", "decoder", "encoder" (position table) or "".
        relative: a shift of all positions changes nothing (if what is kept of the native encoding is relative).
        learned: has parameters of its own.
        bias: runs through our attention function with a bias, so kernels can be chosen.
        keeps: the native encoding stays.
        input: acts on the embeddings.
        own_rotation: needs frequencies of our own where it is not the whole model's.
        heats: runs through our attention function without a bias that is the same in all layers: temperatures, hybrids.
        groups: for hybrids, how many groups of layers are patched in the matrix's models; 0: all layers alike.
        general: a bias that is no function of the distance.
        score: needs queries or keys: "relative" (of the distance), "values" (with value vectors too), "content" or "".
        pieces: a piecewise rotation.
        caches: a cache that was filled can be continued.
        hosts: names of the hosts it is tested on; None: all.
    """

    name: str
    spec: Any
    options: dict[str, Any] = field(default_factory=dict)
    layers: Any = None
    decoder: bool = True
    encoder: bool = True
    scales: bool = False
    late: bool = False
    identity: str = ""
    relative: bool = True
    learned: bool = False
    bias: bool = False
    keeps: bool = False
    input: bool = False
    own_rotation: bool = False
    heats: bool = False
    groups: int = 0
    general: bool = False
    score: str = ""
    pieces: bool = False
    caches: bool = True
    hosts: tuple[str, ...] | None = None

    @property
    def has_kernels(self) -> bool:
        """Whether all layers run through our attention function, so that kernels can be chosen."""
        return self.bias or bool(self.score) or self.pieces

    @property
    def turns(self) -> bool:
        """Whether keys are cached unrotated and rotated inside our attention, in models that rotate."""
        return self.late or self.pieces or (bool(self.score) and (self.keeps or self.scales))

    @property
    def biases(self) -> list[str]:
        """Names of the biases in the spec."""
        entries = self.spec if isinstance(self.spec, list) else [self.spec]
        names = [entry if isinstance(entry, str) else entry.name for entry in entries]
        return [name for name in names if name != "native" and issubclass(get_encoding(name), BiasEncoding)]

    def patch(self, model: Any, *, fill: bool = True, **more: Any) -> Any:
        """Patch; learned parameters get random values unless ``fill=False``, so that tests can fail."""
        patch_model(model, copy.deepcopy(self.spec), layers=self.layers, **self.options, **more)
        if fill:
            randomise(model)
        return model


def randomise(model: Any, scale: float = 0.7) -> None:
    """Give every learned parameter of an encoding random values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in learned_parameters(model):
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            if name.endswith("learned_slopes"):
                parameter.mul_((0.5 * noise).exp())
            else:
                parameter.add_(scale * noise)


def learned_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that encodings added."""
    return [(n, p) for n, p in model.named_parameters() if ".position_encoding." in f".{n}"]


EVERY_SECOND = slice(1, None, 2)
CORE = ("llama", "gemma2", "gemma3", "gpt_oss", "stablelm", "gpt_neox", "bert", "roberta", "bert_decoder")
"""Hosts that differ from each other in what attention sees; enough for an encoding like others that run on all."""
WIDE = (*CORE, "distilbert", "electra", "bert_cross")
"""These, and the ones that differ in their embeddings."""
_ENCODINGS = [
    EncodingCase("linear", "linear", {"factor": 2.0}, scales=True),
    EncodingCase("ntk", "ntk", {"factor": 4.0}, scales=True),
    EncodingCase("dynamic", "dynamic", {"factor": 2.0}, scales=True, late=True, identity="decoder", encoder=False),
    EncodingCase("yarn", "yarn", {"factor": 4.0, "beta_fast": 4.0}, scales=True),
    EncodingCase("longrope", "longrope", {"factor": 4.0}, scales=True, late=True, encoder=False),
    EncodingCase(
        "longrope_exact",
        "longrope",
        {"factor": 4.0, "attention_factor": 1.0},
        scales=True,
        late=True,
        identity="decoder",
        encoder=False,
    ),
    EncodingCase("llama3", "llama3", {"factor": 4.0}, scales=True),
    EncodingCase("partial_rope", "partial_rope", {"p": 0.5}, scales=True),
    EncodingCase("alibi", "alibi", bias=True),
    EncodingCase("alibi_learnable", "alibi", {"learnable": True}, learned=True, bias=True),
    EncodingCase("nope", "nope", encoder=False),
    EncodingCase("nope_warm", "nope", {"temperature": 0.5, "factor": 4.0}, encoder=False, heats=True),
    EncodingCase(
        "nope_growing",
        "nope",
        {"attn_scale": 0.1, "floor_scale": 7},
        encoder=False,
        heats=True,
        relative=False,
        hosts=CORE,
    ),
    EncodingCase("t5", "t5", {"num_buckets": 16, "max_distance": 40}, learned=True, bias=True),
    EncodingCase(
        "learned", "learned", {"max_positions": 160}, learned=True, relative=False, input=True, identity="encoder"
    ),
    EncodingCase("sinusoidal", "sinusoidal", learned=True, relative=False, input=True),
    EncodingCase("native+t5", ["native", T5Config(16, 40)], learned=True, bias=True, keeps=True, identity="always"),
    EncodingCase("native+alibi", ["native", "alibi"], bias=True, keeps=True),
    EncodingCase(
        "native+learned",
        ["native", LearnedConfig(160)],
        learned=True,
        relative=False,
        keeps=True,
        input=True,
        identity="decoder",
    ),
    EncodingCase(
        "native+sinusoidal",
        ["native", SinusoidalConfig()],
        learned=True,
        relative=False,
        keeps=True,
        input=True,
        identity="always",
    ),
    EncodingCase("nope+t5", ["nope", T5Config(16, 40)], learned=True, bias=True, encoder=False),
    EncodingCase("yarn+alibi", [YarnConfig(4.0, beta_fast=4.0), "alibi"], bias=True, scales=True),
    EncodingCase("dynamic+alibi", [DynamicConfig(2.0), "alibi"], bias=True, scales=True, late=True, encoder=False),
    EncodingCase(
        "longrope+t5",
        [LongropeConfig(4.0), T5Config(16, 40)],
        bias=True,
        scales=True,
        late=True,
        learned=True,
        encoder=False,
    ),
    EncodingCase("alibi+t5", [AlibiConfig(), T5Config(16, 40)], learned=True, bias=True),
    EncodingCase("fope", "fope", scales=True, own_rotation=True, learned=True, relative=False, hosts=CORE),
    EncodingCase(
        "fope_unclipped",
        "fope",
        {"clip": False},
        scales=True,
        own_rotation=True,
        learned=True,
        relative=False,
        identity="always",
        hosts=(*CORE, "smollm3", "glm", "cohere"),
    ),
    EncodingCase("rnope", "rnope", {"every": 2, "window": 9}, encoder=False, heats=True, groups=2, hosts=CORE),
    EncodingCase(
        "irope",
        "irope",
        {"every": 2, "floor_scale": 7},
        encoder=False,
        heats=True,
        relative=False,
        groups=1,
        hosts=CORE,
    ),
    EncodingCase(
        "swan",
        "swan",
        {"every": 2, "window": 9, "floor_scale": 7},
        encoder=False,
        heats=True,
        relative=False,
        groups=2,
        hosts=CORE,
    ),
    EncodingCase(
        "per_layer",
        {(0,): ["native", "alibi"], "1": ["native", T5Config(16, 40)], "rest": "native"},
        learned=True,
        heats=True,
        keeps=True,
        groups=2,
        hosts=CORE,
    ),
    EncodingCase("nope/2", "nope", layers=EVERY_SECOND, encoder=False),
    EncodingCase("yarn/2", "yarn", {"factor": 4.0, "beta_fast": 4.0}, layers=[0, 1], scales=True, own_rotation=True),
    EncodingCase(
        "dynamic/2",
        "dynamic",
        {"factor": 2.0},
        layers=[0, 1],
        scales=True,
        late=True,
        identity="decoder",
        encoder=False,
    ),
    EncodingCase("t5/2", "t5", {"num_buckets": 16, "max_distance": 40}, layers=[0, 2], learned=True, bias=True),
    EncodingCase("alibi/2", "alibi", layers=[1], bias=True),
    EncodingCase("native+alibi/2", ["native", "alibi"], layers=[0, -1], bias=True, keeps=True),
    EncodingCase("kerple", "kerple", learned=True, bias=True, hosts=CORE),
    EncodingCase("kerple_power", "kerple", {"variant": "power"}, learned=True, bias=True, hosts=CORE),
    EncodingCase(
        "fire", "fire", {"width": 8, "length": 20}, relative=False, learned=True, bias=True, general=True, hosts=CORE
    ),
    EncodingCase("mlp", "mlp", {"width": 8}, learned=True, bias=True, hosts=CORE),
    EncodingCase("sandwich", "sandwich", {"dim": 16}, learned=True, bias=True, hosts=CORE),
    EncodingCase("window", "window", {"size": 9}, bias=True, hosts=CORE),
    EncodingCase(
        "native+kerple",
        ["native", KerpleConfig()],
        learned=True,
        bias=True,
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase(
        "native+fire",
        ["native", FireConfig(8, length=20)],
        relative=False,
        learned=True,
        bias=True,
        general=True,
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase(
        "native+sandwich",
        ["native", SandwichConfig(16)],
        learned=True,
        bias=True,
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase("native+window", ["native", WindowConfig(9)], bias=True, keeps=True, hosts=CORE),
    EncodingCase("native+window/2", ["native", WindowConfig(9)], layers=[0, 2], bias=True, keeps=True, hosts=CORE),
    EncodingCase("nope+mlp", ["nope", MlpConfig(8)], learned=True, bias=True, encoder=False, hosts=CORE),
    EncodingCase("conv", "conv", learned=True, input=True, hosts=WIDE),
    EncodingCase(
        "native+conv", ["native", ConvConfig(5)], learned=True, input=True, keeps=True, identity="always", hosts=WIDE
    ),
    EncodingCase("recurrent", "recurrent", {"window": 4, "hidden": 8}, learned=True, input=True, hosts=WIDE),
    EncodingCase(
        "native+recurrent",
        ["native", RecurrentConfig(5, 8)],
        learned=True,
        input=True,
        keeps=True,
        identity="always",
        hosts=WIDE,
    ),
    EncodingCase("integer", "integer", {"scale": 0.1}, relative=False, learned=True, input=True, hosts=CORE),
    EncodingCase("random", "random", {"seed": 3}, relative=False, learned=True, input=True, hosts=CORE),
    EncodingCase("normalized", "normalized", relative=False, learned=True, input=True, caches=False, hosts=WIDE),
    EncodingCase(
        "native+normalized",
        ["native", NormalizedConfig()],
        relative=False,
        learned=True,
        input=True,
        keeps=True,
        caches=False,
        hosts=CORE,
    ),
    EncodingCase("shaw", "shaw", {"max_distance": 9}, learned=True, score="relative", hosts=CORE),
    EncodingCase("shaw_values", "shaw", {"values": True}, learned=True, score="values", hosts=CORE),
    EncodingCase("transformer_xl", "transformer_xl", learned=True, score="relative", hosts=CORE),
    EncodingCase(
        "deberta",
        "deberta",
        {"position_buckets": 8, "max_relative_positions": 20},
        learned=True,
        score="relative",
        hosts=CORE,
    ),
    EncodingCase("cope", "cope", {"max_positions": 8}, learned=True, score="content", encoder=False, hosts=CORE),
    EncodingCase(
        "native+shaw",
        ["native", ShawConfig(9)],
        learned=True,
        score="relative",
        keeps=True,
        identity="always",
        hosts=(*CORE, "cohere", "glm", "smollm3"),
    ),
    EncodingCase(
        "native+transformer_xl",
        ["native", "transformer_xl"],
        learned=True,
        score="relative",
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase(
        "native+deberta",
        ["native", DebertaConfig(8, 20)],
        learned=True,
        score="relative",
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase(
        "native+cope",
        ["native", CopeConfig(8)],
        learned=True,
        score="content",
        keeps=True,
        encoder=False,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase(
        "yarn+shaw",
        [YarnConfig(4.0, beta_fast=4.0), ShawConfig(9)],
        learned=True,
        score="relative",
        scales=True,
        hosts=CORE,
    ),
    EncodingCase(
        "dynamic+shaw",
        [DynamicConfig(2.0), ShawConfig(9)],
        learned=True,
        score="relative",
        scales=True,
        late=True,
        identity="decoder",
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase(
        "nope+deberta",
        ["nope", DebertaConfig(8, 20)],
        learned=True,
        score="relative",
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase("alibi+shaw", ["alibi", ShawConfig(9)], learned=True, bias=True, score="relative", hosts=CORE),
    EncodingCase(
        "shaw+deberta+alibi",
        [ShawConfig(9), DebertaConfig(8, 20), "alibi"],
        learned=True,
        bias=True,
        score="relative",
        hosts=CORE,
    ),
    EncodingCase("shaw/2", "shaw", {"max_distance": 9}, layers=[0, 2], learned=True, score="relative", hosts=CORE),
    EncodingCase(
        "native+shaw/2",
        ["native", ShawConfig(9)],
        layers=[0, 2],
        learned=True,
        score="relative",
        keeps=True,
        identity="always",
        hosts=CORE,
    ),
    EncodingCase("fox", "fox", learned=True, score="general", encoder=False, hosts=CORE),
    EncodingCase(
        "native+fox",
        ["native", "fox"],
        learned=True,
        score="general",
        keeps=True,
        identity="decoder",
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase("xpos", "xpos", {"scale_base": 16.0}, scales=True, late=True, encoder=False, hosts=CORE),
    EncodingCase("rope", "rope", hosts=CORE),
    EncodingCase("native+rope", ["native", "rope"], keeps=True, hosts=CORE),
    EncodingCase("rope+shaw", ["rope", ShawConfig(9)], learned=True, score="relative", hosts=("bert", "roberta")),
    EncodingCase(
        "self_extend",
        "self_extend",
        {"window": 6, "group": 3},
        pieces=True,
        relative=False,
        encoder=False,
        hosts=(*CORE, "cohere", "glm", "smollm3"),
    ),
    EncodingCase(
        "self_extend_exact",
        "self_extend",
        {"window": TRAINED},
        pieces=True,
        encoder=False,
        identity="decoder",
        hosts=CORE,
    ),
    EncodingCase("rerope", "rerope", {"window": 9}, pieces=True, encoder=False, hosts=CORE),
    EncodingCase("rerope_leaky", "rerope", {"window": 9, "leak": 3.0}, pieces=True, encoder=False, hosts=CORE),
    EncodingCase(
        "lm_infinite",
        "lm_infinite",
        {"sinks": 3, "window": 8},
        pieces=True,
        relative=False,
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase(
        "dual_chunk",
        "dual_chunk",
        {"chunk": 6, "context": 10},
        pieces=True,
        relative=False,
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase("string", "string", {"shift": 9, "local": 3}, pieces=True, encoder=False, hosts=CORE),
    EncodingCase("string/2", "string", {"shift": 9, "local": 3}, layers=[1], pieces=True, encoder=False, hosts=CORE),
    EncodingCase(
        "string_exact",
        "string",
        {"shift": TRAINED, "local": 3},
        pieces=True,
        encoder=False,
        identity="decoder",
        hosts=CORE,
    ),
    EncodingCase(
        "self_extend+t5",
        [SelfExtendConfig(6, 3), T5Config(16, 40)],
        learned=True,
        bias=True,
        pieces=True,
        relative=False,
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase(
        "self_extend+shaw",
        [SelfExtendConfig(6, 3), ShawConfig(9)],
        learned=True,
        score="relative",
        pieces=True,
        relative=False,
        encoder=False,
        hosts=CORE,
    ),
    EncodingCase(
        "dual_chunk+alibi",
        [DualChunkConfig(6, 10), "alibi"],
        bias=True,
        pieces=True,
        relative=False,
        encoder=False,
        hosts=CORE,
    ),
]
ENCODINGS = {encoding.name: encoding for encoding in _ENCODINGS}


def refusal(host: HostCase, encoding: EncodingCase) -> str | None:
    """A pattern the error must match where a cell has to be refused; None where it has to work."""
    subset = encoding.layers is not None or encoding.groups > 0
    if not host.causal and not encoding.encoder:
        return "holds for causal attention only"
    if not host.rotates:
        if encoding.scales:
            return "scales a rotation, and .* has none"
        if encoding.pieces:
            return "moves the positions of a rotation, and .* has none"
        if encoding.name == "native+learned":
            return "already has a learned table"
        if subset and not encoding.keeps:
            return "layers= cannot be chosen here"
        return None
    if (host.own_application and encoding.turns) or (host.own_layout and (encoding.turns or encoding.own_rotation)):
        return "rotate-half layout"
    if encoding.name in ("rope", "native+rope"):
        return "adding nothing changes nothing"
    if host.native_nope and encoding.name == "nope/2":
        return "changed nothing in layers"
    return None


@dataclass(frozen=True)
class Cell:
    """One host with one encoding."""

    host: HostCase
    encoding: EncodingCase

    @property
    def id(self) -> str:
        return f"{self.host.name}-{self.encoding.name}"

    @property
    def refusal(self) -> str | None:
        return refusal(self.host, self.encoding)

    @property
    def promises_identity(self) -> bool:
        """Whether the patched model must equal the original, bit by bit, within the trained length."""
        return {"": False, "always": True, "decoder": self.host.rotates, "encoder": not self.host.rotates}[
            self.encoding.identity
        ]

    @property
    def length(self) -> int:
        """How many tokens a test should take: beyond the trained length where the host can, far beyond for ``late``."""
        if self.encoding.late:
            return 80
        return 30 if not self.host.rotates and self.encoding.keeps else 40

    @property
    def relative(self) -> bool:
        """Whether a shift of all positions must change nothing."""
        if not self.encoding.relative or self.encoding.late:
            return False
        return self.host.rotates or not self.encoding.keeps

    @property
    def needs_positions(self) -> bool:
        """Whether positions of cached keys matter to us, and not to the host alone."""
        return self.encoding.has_kernels or self.encoding.late or self.encoding.heats

    @property
    def extends_table(self) -> bool:
        """Whether ``learned`` makes the host's own table longer, instead of adding one."""
        return not self.host.rotates and self.encoding.name == "learned"

    def patched(self, *, fill: bool = True, double: bool = False, **more: Any) -> Any:
        """A fresh patched model, in float64 with ``double``."""
        model = self.host.fresh()
        return self.encoding.patch(model.double() if double else model, fill=fill, **more)

    def patched_in_place(self, model: Any) -> Any:
        """``model``, patched as the encoding starts."""
        return self.encoding.patch(model, fill=False)


def cells(want: Callable[[Cell], bool] = lambda cell: True, *, refused: bool = False) -> list[Any]:
    """pytest parameters for all cells that work (or, with ``refused``, that must not) and satisfy ``want``."""
    every = [Cell(h, e) for h in HOSTS.values() for e in ENCODINGS.values() if e.hosts is None or h.name in e.hosts]
    return [pytest.param(c, id=c.id) for c in every if (c.refusal is not None) == refused and want(c)]


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """int64 ``[batch, length]``, without the padding token."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model: Any, ids: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
    """``[batch, length, vocabulary]`` without gradients; a decoder with cross attention gets a fixed encoder state."""
    with torch.no_grad():
        return model(input_ids=ids, **encoder_state(model, ids, inputs), **inputs).logits


def encoder_state(model: Any, ids: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a model with cross attention attends to: the same in every row."""
    if not getattr(model.config, "add_cross_attention", False):
        return {}
    rows = (ids if ids is not None else inputs["inputs_embeds"]).shape[0]
    state = torch.randn(1, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    return {"encoder_hidden_states": state.expand(rows, -1, -1).to(model.dtype)}


def cached_logits(
    model: Any, ids: torch.Tensor, chunks: Sequence[int], cache: Any = None, position_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """Logits of a decoder fed chunk by chunk through a cache."""
    assert sum(chunks) == ids.shape[1]
    parts, start = [], 0
    for size in chunks:
        piece = ids[:, start : start + size]
        more: dict[str, Any] = {}
        if position_ids is not None:
            more["position_ids"] = position_ids[:, start : start + size]
            more["attention_mask"] = torch.ones(ids.shape[0], start + size, dtype=torch.long)
        with torch.no_grad():
            state = encoder_state(model, piece, {})
            output = model(input_ids=piece, past_key_values=cache, use_cache=True, **state, **more)
        cache = output.past_key_values
        parts.append(output.logits)
        start += size
    return torch.cat(parts, dim=1)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest size of what is wanted."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    assert torch.isfinite(found).all()
    return ((found.double() - wanted.double()).abs().max() / wanted.double().abs().max()).item()
