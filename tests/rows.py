"""The encodings of the test matrix, as a user asks for them. A new encoding is one row."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from hosts import TRAINED

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
    NopeConfig,
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
        gains: multiplies queries where a rotation was.
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
    gains: bool = False
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
GAINING = (*CORE, "qwen3", "smollm3", "glm", "cohere")
"""These, and ones with normed queries, without a rotation in some layers, and with other layouts."""
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
    EncodingCase(
        "nope_gains", "nope", {"gains": True}, learned=True, encoder=False, heats=True, gains=True, hosts=GAINING
    ),
    EncodingCase(
        "nope_gains+t5",
        [NopeConfig(gains=True), T5Config(16, 40)],
        learned=True,
        bias=True,
        encoder=False,
        gains=True,
        hosts=GAINING,
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
        identity="always",
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
