"""A small random model, plain and patched, and how it is run."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from ..config import EncodingConfig
from ..errors import UnsupportedError
from ..patchers.family import find_host
from ..patching import patch_model
from ..plan import parse_spec, settle_rope
from ..registry import NATIVE, get_encoding
from ..sites import HybridEncoding
from ..views import fill_zero_parameters
from .options import example_options

FAMILY_NAMES = ("llama", "gpt_neox", "bert")
TRAINED = 128
HEADS = 4
WIDTH = 64
VOCABULARY = 101
SPREAD = 0.2
"""Standard deviation of the random weights: large enough that attention is selective and positions matter."""

TOO_FAR = (UnsupportedError, IndexError, RuntimeError)
"""What models raise at positions they have no row for: ours, torch's embedding, and BERT's index buffers."""


def small_model(family: str, layers: int = 2) -> PreTrainedModel:
    """Four heads of 16 dimensions, trained length 128, float64; the same weights every time."""
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "max_position_embeddings": TRAINED,
        "initializer_range": SPREAD,
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "bert":
            plain: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            model: PreTrainedModel = BertModel(BertConfig(**common, **plain), add_pooling_layer=False)
        elif family == "gpt_neox":
            neox = GPTNeoXConfig(**common, rope_parameters={**rope, "partial_rotary_factor": 0.5})
            model = GPTNeoXModel(neox)
        else:
            model = LlamaModel(LlamaConfig(**common, num_key_value_heads=2, rope_parameters=rope))
    return model.double().eval()


def _least_layers(config: EncodingConfig) -> int:
    kind = get_encoding(config.name)
    return kind(config).least_layers() if issubclass(kind, HybridEncoding) else 1


@dataclass(frozen=True)
class Start:
    """What patching changes before anything is learned or filled in.

    Attributes:
        encoding: in words.
        identity: the output over L tokens is bit-equal to the unpatched model's.
        change: its largest change, over its size.
    """

    encoding: str
    identity: bool
    change: float


class Lab:
    """A small model with and without an encoding: two layers, or as many as a hybrid needs.

    Args:
        spec, options: as for ``patch_model``; only ``native`` leaves the model as it is. Options of a name that are not
            given and would not act on so small a model get those of :mod:`~pe_retrofit.probes.options`.
        family: see :data:`FAMILY_NAMES`.

    Attributes:
        names / entries: the spec in words and as JSON.
        chosen: options that were not given, with the value taken.
        breaks: what encodings that are for teaching say they lack.
        layers: of the small model.
        starts: what patching changed; where the encoding replaced the native one, also what it changes on top of it.
        filled: parameters of the encoding that were zero and are random now.
        reach: longest input that the encoding takes, up to 16 L tokens.

    Raises:
        UnsupportedError: as from ``patch_model``, which wants an encoding that takes at least L tokens.
    """

    trained, heads = TRAINED, HEADS

    def __init__(self, spec: Any, family: str, options: dict[str, Any]) -> None:
        self.family = family
        self.chosen: dict[str, Any] = {}
        if isinstance(spec, str) and spec not in NATIVE:
            self.chosen = example_options(spec, options)
            options = {**options, **self.chosen}
        host = find_host(small_model(family, 1))
        configs, keeps = settle_rope(host, *parse_spec(spec, options))
        self.layers = max([2, *(_least_layers(config) for config in configs)])
        self.stock: Any = small_model(family, self.layers)
        self.names = " + ".join((["native"] if keeps else []) + [c.name for c in configs])
        self.entries = ([{"name": NATIVE[0]}] if keeps else []) + [c.to_dict() for c in configs]
        self.breaks = "; ".join(get_encoding(c.name).info.breaks for c in configs if get_encoding(c.name).info.breaks)
        self.model: Any = self._patched(spec, options) if configs else small_model(family, self.layers)
        self.causal = find_host(self.model).causal()
        self.starts: list[Start] = [self._start(self.names, self.model)] if configs else []
        if configs and not keeps:
            try:
                beside = self._patched([NATIVE[0], *configs], {})
            except UnsupportedError:  # a rotation or a hybrid, of which there is one
                pass
            else:
                self.starts.append(self._start(f"native + {self.names}", beside))
        self.filled: list[str] = self._fill() if configs else []
        self.runs: dict[int, tuple[bool, int]] = {}
        self.slow = False
        self.reach = self._find_reach()

    def _patched(self, spec: Any, options: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'.*' is for teaching and diagnosis", UserWarning)  # measured here
            return patch_model(small_model(self.family, self.layers), spec, **options)

    def _start(self, names: str, model: Any) -> Start:
        ids = self.tokens(TRAINED)
        before, after = self.output(ids, model=self.stock), self.output(ids, model=model)
        return Start(names, torch.equal(before, after), self.change(before, after))

    def _fill(self) -> list[str]:
        """Random values for what starts at zero: as large as the token embeddings at the input, 1 elsewhere."""
        embeddings = self.model.get_input_embeddings().weight.detach().square().mean().sqrt().item()
        filled: list[str] = []
        for name, module in self.model.named_modules():
            if name.endswith("position_encoding"):
                at_input = not any(part.isdigit() for part in name.split("."))
                filled += fill_zero_parameters(module, embeddings if at_input else 1.0, seed=len(filled))
        return sorted(set(filled))

    @cached_property
    def single(self) -> tuple[Any, Any]:
        """The unpatched and the patched model in float32."""
        return copy.deepcopy(self.stock).float(), copy.deepcopy(self.model).float()

    def tokens(self, count: int, rows: int = 1, seed: int = 1) -> Tensor:
        """Random ids ``[rows, count]``."""
        return torch.randint(0, VOCABULARY, (rows, count), generator=torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def output(self, ids: Tensor, positions: Tensor | None = None, *, model: Any = None, **inputs: Any) -> Tensor:
        """Last hidden state ``[rows, count, width]``. A mask goes along, or gaps would count as packed sequences."""
        inputs.setdefault("attention_mask", torch.ones_like(ids))
        if positions is None:
            positions = torch.arange(ids.shape[1])
        inputs["position_ids"] = positions.expand(ids.shape)
        model = self.model if model is None else model
        return model(input_ids=ids, use_cache=False, **inputs).last_hidden_state

    @staticmethod
    def size(output: Tensor) -> float:
        """Root mean square."""
        return output.square().mean().sqrt().item()

    def change(self, before: Tensor, after: Tensor) -> float:
        """Largest difference over the size of ``before``."""
        return (after - before).abs().max().item() / self.size(before)

    def takes(self, first: int, last: int) -> bool:
        """Whether the encoding has a value for both positions."""
        try:
            self.output(self.tokens(2), torch.tensor([[first, last]]))
        except TOO_FAR:
            return False
        return True

    def _find_reach(self) -> int:
        """Longest input that the encoding takes, up to 16 L tokens."""
        good, bad = 1, 16 * TRAINED + 1
        if self.takes(0, bad - 2):
            return bad - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self.takes(0, middle - 1) else (good, middle)
        return good
