"""The measurements behind :mod:`pe_retrofit.properties`: a small random model, plain and patched, and its answers."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
)

from .attention.late import LateRotation
from .config import EncodingConfig
from .errors import UnsupportedError
from .patchers.family import find_host
from .patching import patch_model
from .plan import parse_spec, settle_rope
from .registry import NATIVE, get_encoding
from .sites import BiasEncoding, HybridEncoding, LocalInput
from .views import fill_zero_parameters

FAMILY_NAMES = ("llama", "gpt_neox", "bert")
TRAINED = 128
HEADS = 4
WIDTH = 64
VOCABULARY = 101
BF16_TOKENS = 32
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


class Lab:
    """A small model with and without an encoding: two layers, or as many as a hybrid needs.

    Args:
        spec, options: as for ``patch_model``; only ``native`` leaves the model as it is.
        family: see :data:`FAMILY_NAMES`.

    Attributes:
        names / entries: the spec in words and as JSON.
        layers: of the small model.
        filled: parameters of the encoding that were zero and are random now.
        reach: longest input that the encoding takes, up to 16 L tokens.

    Raises:
        UnsupportedError: as from ``patch_model``, which wants an encoding that takes at least L tokens.
    """

    trained, heads = TRAINED, HEADS

    def __init__(self, spec: Any, family: str, options: dict[str, Any]) -> None:
        self.family = family
        host = find_host(small_model(family, 1))
        configs, keeps = settle_rope(host, *parse_spec(spec, options))
        self.layers = max([2, *(_least_layers(config) for config in configs)])
        self.stock: Any = small_model(family, self.layers)
        self.model: Any = small_model(family, self.layers)
        self.names = " + ".join((["native"] if keeps else []) + [c.name for c in configs])
        self.entries = ([{"name": NATIVE[0]}] if keeps else []) + [c.to_dict() for c in configs]
        self.filled: list[str] = []
        if configs:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'.*' is for teaching and diagnosis", UserWarning)  # measured here
                patch_model(self.model, spec, **options)
            self.filled = self._fill()
        self.causal = find_host(self.model).causal()
        self._runs: dict[int, tuple[bool, int]] = {}
        self._slow = False
        self.reach = self._find_reach()

    def _fill(self) -> list[str]:
        """Random values for what starts at zero: as large as the token embeddings at the input, 1 elsewhere."""
        embeddings = self.model.get_input_embeddings().weight.detach().square().mean().sqrt().item()
        filled: list[str] = []
        for name, module in self.model.named_modules():
            if name.endswith("position_encoding"):
                at_input = not any(part.isdigit() for part in name.split("."))
                filled += fill_zero_parameters(module, embeddings if at_input else 1.0, seed=len(filled))
        return sorted(set(filled))

    # running the model

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
        return (model or self.model)(input_ids=ids, use_cache=False, **inputs).last_hidden_state

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

    def farthest(self, wanted: int) -> int:
        """First position of a stretch for :meth:`bf16_error`, as near to ``wanted`` as the encoding takes."""
        return wanted if self.takes(wanted, wanted + BF16_TOKENS - 1) else max(0, self.reach - BF16_TOKENS)

    def finite(self, count: int) -> bool:
        """Whether the output over ``count`` tokens is finite."""
        return self._run(count)[0]

    def largest_tensor(self, count: int) -> int:
        """Numbers in the largest tensor that a forward pass over ``count`` tokens allocates."""
        return self._run(count)[1]

    @torch.no_grad()
    def _run(self, count: int) -> tuple[bool, int]:
        """Whether the output is finite, and the largest tensor on the way to it."""
        if count not in self._runs:
            start = time.perf_counter()
            with _Largest() as seen:
                output = self.model(input_ids=self.tokens(count)).last_hidden_state
            self._slow |= time.perf_counter() - start > 2.0
            self._runs[count] = bool(torch.isfinite(output).all()), seen.largest
        return self._runs[count]

    # properties

    def pair_outputs(self, distances: Tensor) -> Tensor:
        """``[n, width]``: output at the second of two tokens that are ``distances`` apart."""
        ids = self.tokens(2).expand(len(distances), -1)
        return self.output(ids, torch.stack((torch.zeros_like(distances), distances), dim=1))[:, 1]

    def prefix_output(self, short: int, longer: int) -> Tensor:
        """Output of the first ``short`` tokens within ``longer``: of text (decoders) or of padding (encoders)."""
        ids = self.tokens(longer)
        mask = torch.ones_like(ids)
        if not self.causal:
            mask[:, short:] = 0
        ids = torch.cat((self.tokens(short, seed=7), ids[:, short:]), dim=1)
        return self.output(ids, attention_mask=mask)[:, :short]

    def permutation_change(self, count: int) -> float:
        """Change of the last token's output when the others are permuted."""
        ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))[None, :count]
        order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(3))
        permuted = torch.cat((ids[:, :-1][:, order], ids[:, -1:]), dim=1)
        return self.change(self.output(ids)[:, -1], self.output(permuted)[:, -1])

    def shift_change(self, count: int, shift: int) -> float:
        """Change of the output when ``shift`` is added to all positions."""
        ids, positions = self.tokens(count), torch.arange(count)
        return self.change(self.output(ids, positions), self.output(ids, positions + shift))

    def sizes(self) -> tuple[float, float, str, int]:
        """Largest size of what the encoding brings in up to L, and up to 16 L or as far as it goes.

        Returns:
            The two sizes, what they are in words, and how far the second goes.
        """
        last = self.reach
        host = find_host(self.model)
        biases = [m for m in self.model.modules() if isinstance(m, BiasEncoding)]
        if biases:
            near, far = (max(_bias_size(b, n, self.causal) for b in biases) for n in (min(TRAINED, last), last))
            return near, far, "largest bias on a logit", last
        local = next((m for m in self.model.modules() if isinstance(m, LocalInput)), None)
        if local is not None:
            with torch.no_grad():
                hidden = self.model.get_input_embeddings().weight[self.tokens(last)].to(torch.float64)
                added = (local(hidden) - hidden)[0] / self.size(hidden)
            near, far = self.size(added[:TRAINED]), self.size(added[-TRAINED:])
            return near, far, "vector over token embedding (root mean square)", last
        table = host.table
        if table is not None or getattr(self.model, "position_encoding", None):
            with torch.no_grad():
                positions = torch.arange(last) + host.reserved_rows * (table is not None)
                module = table if table is not None else next(iter(self.model.position_encoding.values()))
                vectors = module(positions)
            return *self._sizes(vectors), "vector over token embedding (root mean square)", last
        near, far = (self._rotated_size(n) for n in (min(TRAINED, last), last))
        return near, far, "length of a rotated query over the original's", last

    def _sizes(self, vectors: Tensor) -> tuple[float, float]:
        """Largest size of ``[n, width]`` vectors over the token embeddings', up to L and of all."""
        size = vectors.square().mean(-1).sqrt() / self.size(self.model.get_input_embeddings().weight.detach())
        return size[:TRAINED].max().item(), size.max().item()

    def _rotated_size(self, count: int) -> float:
        """Largest amplitude of the rotation at any position below ``count``."""
        late = [m for m in self.model.modules() if isinstance(m, LateRotation)]
        if late:
            return late[0].scaling
        seen: list[Any] = []
        attention = find_host(self.model).attentions[0]
        with _hook(attention, lambda module, args, kwargs: seen.append(kwargs["position_embeddings"])):
            self.output(self.tokens(count))
        cos, sin = seen[0]
        return (cos.square() + sin.square()).sqrt().max().item()

    def score_rise(self, times: tuple[int, ...], pairs: int = 12) -> dict[int, float]:
        """How far attention scores beyond L rise above those within L, by multiple of L.

        The score of a token on another at each distance, over its score on itself, is read off the first layer's
        attention. Within L both the unpatched model (at the patched one's temperature) and the patched model (which is
        trained there) count as known.

        Returns:
            Multiple -> 95th percentile, over token pairs and heads, of the rise over the range of the known scores.
        """
        near, together = torch.arange(1, TRAINED), torch.zeros(1, dtype=torch.long)
        ratio = self._scores(together, self.model, pairs) / self._scores(together, self.stock, pairs)
        temperature = ratio.median() if ratio.max() - ratio.min() < 1e-3 else 1.0  # no common one with input encodings
        stock = self._scores(near, self.stock, pairs) * temperature
        known = torch.cat((self._scores(near, self.model, pairs), stock), dim=1)
        high, low = known.amax(1), known.amin(1)
        late = any(isinstance(m, LateRotation) for m in self.model.modules())
        result, worst = {}, 0.0
        for factor in times:
            first, last = TRAINED * factor // 2, TRAINED * factor - 1
            far = torch.unique(torch.linspace(first, last, 32 if late else 80).round().long())
            # a late rotation runs rows of different distances one by one, rows of the same one together
            parts = far.split(1) if late else (far,)
            rise = torch.cat([self._scores(part, self.model, pairs) for part in parts], dim=1).amax(1) - high
            share = (rise / (high - low).clamp_min(1e-12)).flatten().quantile(0.95).item()
            worst = max(worst, share)  # what goes wrong at 2 L is wrong at 4 L too
            result[factor] = worst
        return result

    def _scores(self, distances: Tensor, model: Any, pairs: int) -> Tensor:
        """``[pairs, n, h]``: log-odds of attending to a token that far away against attending to oneself."""
        content = self.tokens(2, rows=pairs, seed=11)
        n = len(distances)
        both = content[:, None].expand(pairs, n, 2).reshape(pairs * n, 2)
        positions = torch.stack((torch.zeros_like(distances), distances), dim=1).repeat(pairs, 1)
        mixed = self._heads(model, both, positions)[:, 1]
        far = self._heads(model, both[:, :1], positions[:, :1])[:, 0]
        own = self._heads(model, both[:, 1:], positions[:, 1:])[:, 0]
        weight = ((mixed - own) * (far - own)).sum(-1) / (far - own).square().sum(-1).clamp_min(1e-300)
        return torch.logit(weight.clamp(1e-12, 1 - 1e-12)).view(pairs, n, HEADS)

    def _heads(self, model: Any, ids: Tensor, positions: Tensor) -> Tensor:
        """``[rows, count, h, d]``: what each head of the first layer returns."""
        attention = find_host(model).attentions[0]
        seen: list[Tensor] = []
        last = getattr(attention, "o_proj", None) or getattr(attention, "dense", None)
        if last is not None:
            handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        else:
            handle = attention.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        try:
            self.output(ids, positions, model=model)
        finally:
            handle.remove()
        return seen[0].reshape(*ids.shape, HEADS, WIDTH // HEADS)

    @staticmethod
    def power(small: int, large: int, short: int, long: int) -> float:
        """``p`` where ``large / small = (long / short)^p``."""
        return math.log(large / small) / math.log(long / short)

    def time_ratio(self, count: int) -> tuple[float, int]:
        """Median time of a forward pass over the unpatched model's, and the length: less where it takes long."""
        limit = TRAINED if find_host(self.stock).table is not None else 4 * TRAINED if self._slow else count
        count = min(count, limit)
        ids = self.tokens(count)
        ratios: list[float] = []
        while len(ratios) < 6:
            seconds = []
            for model in (self.stock, self.model):
                start = time.perf_counter()
                with torch.no_grad():
                    model(input_ids=ids)
                seconds.append(time.perf_counter() - start)
            ratios.append(seconds[1] / seconds[0])
            if seconds[1] > 0.5:  # warming up is no issue then
                return ratios[-1], count
        return sorted(ratios[1:])[2], count

    @torch.no_grad()
    def cache_change(self) -> float | None:
        """Change of the output when text is read in chunks and token by token, across L where the encoding allows."""
        if not self.causal:
            return None
        start = min(TRAINED + 16, self.reach) - 24
        ids = self.tokens(start + 24)
        whole = self.model(input_ids=ids, use_cache=False).last_hidden_state
        cache = DynamicCache(config=self.model.config)
        parts = [(0, start), (start, start + 8), *((i, i + 1) for i in range(start + 8, start + 24))]
        outputs = [self.model(input_ids=ids[:, a:b], past_key_values=cache).last_hidden_state for a, b in parts]
        return self.change(whole, torch.cat(outputs, dim=1))

    def bf16_error(self, first: int, count: int = BF16_TOKENS) -> float:
        """Root mean square error of the bfloat16 model, over the size of the output, from a position on."""
        ids = self.tokens(count, rows=4)
        positions = torch.arange(first, first + count)
        exact = self.output(ids, positions)
        try:
            rough = self.output(ids, positions, model=self.model.bfloat16()).double()
        finally:
            self.model.double()
        return self.size(rough - exact) / self.size(exact)


class _Largest(TorchDispatchMode):
    """Notes the largest storage that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(item, Tensor) and item.device.type != "meta":
                self.largest = max(self.largest, item.untyped_storage().nbytes() // item.element_size())
        return result


def _bias_size(bias: BiasEncoding, count: int, causal: bool) -> float:
    query, keys = torch.tensor([[count - 1]]), torch.arange(count)[None]
    with torch.no_grad():
        values = bias.bias_at(query, keys, causal=causal)
    return values[torch.isfinite(values)].abs().max().item()


@contextmanager
def _hook(module: nn.Module, function: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(function, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
