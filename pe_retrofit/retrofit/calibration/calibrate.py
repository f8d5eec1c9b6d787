"""``calibrate``: patch a model and fit the new encoding to what the original does, without training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError, UnsupportedError
from ...patchers import rotation
from ...patchers.family import Host, find_host
from ...patching import STATE, patch_model, unpatch_model
from ...plan import resolve_layers
from ...progress import Report
from ..windows import draw_windows, tokenizer_of
from .fitting import fit_layer, fittable
from .keeping import Curve, measure_keeping
from .options import USUAL, CalibrateOptions
from .replay import Arguments, observe, record, run_layer
from .specs import calibratable, rotating, stripped
from .targets import Native

SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6)
"""Shares of native layers at which hybrids are measured."""

MEASURED = 4
"""Windows that layers are ranked on."""


@dataclass(frozen=True)
class LayerFit:
    """One layer.

    Attributes:
        layer: index.
        before / after: divergence of its heads' attention from the original's, mean nats per head and query, with the
            encoding's default start and calibrated. Steps towards the output may raise it.
        output_before / output_after: mean squared error of the heads' outputs, relative to the original's.
        state_error: how far the states after it are from the original's, relative.
    """

    layer: int
    before: float
    after: float
    output_before: float
    output_after: float
    state_error: float


@dataclass(frozen=True)
class Calibration:
    """What was done.

    Attributes:
        spec: what the model was patched with, as ``patch_model`` takes it.
        layers: one per layer that was fitted.
        tokens: of text that the original was run over.
        seconds: it took.
        curve: with ``keep``, what each layer is worth and the loss against the number of layers kept.
    """

    spec: Any
    layers: tuple[LayerFit, ...]
    tokens: int
    seconds: float
    curve: Curve | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "before": sum(f.before for f in self.layers) / len(self.layers),
            "after": sum(f.after for f in self.layers) / len(self.layers),
            "output_before": sum(f.output_before for f in self.layers) / len(self.layers),
            "output_after": sum(f.output_after for f in self.layers) / len(self.layers),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            **({} if self.curve is None else {"curve": self.curve.to_dict()}),
        }


@torch.no_grad()
def calibrate(
    model: Any,
    spec: Any,
    texts: Sequence[str] | str | Tensor,
    *,
    tokenizer: Any = None,
    layers: Any = None,
    options: CalibrateOptions | None = None,
    report: Report | None = None,
    **encoding_options: Any,
) -> Calibration:
    """Patch ``model`` in place and set the encoding's parameters so that attention stays as near as it can.

    The original is run over a few windows of text. Then, layer by layer, the parameters that minimise the divergence of
    each head's attention from the original's are found: a convex problem for gains and biases (see :mod:`.newton`), a
    search with gradients for scores (see :mod:`.descent`). No weight of the model changes, so
    :func:`~pe_retrofit.unpatch_model` gives the original back bit by bit.

    Args:
        model: not patched yet.
        spec, layers, **encoding_options: as for :func:`~pe_retrofit.patch_model`. In place of a rotation that is
            removed, ``nope`` gets ``gains=True``, and ``alibi`` slopes that can be set.
        texts: one or several texts to draw windows from, or token ids ``[w, n]``.
        tokenizer: for texts; by default that of the model's folder or repository.
        options: see :class:`CalibrateOptions`.
        report: told of the progress.

    Returns:
        What was fitted, and how near it came.

    Raises:
        ConfigError: too little text, or wrong options.
        UnsupportedError: the model is patched already, or the spec has nothing that can be fitted. The model is then
            as it was.
    """
    options = options or CalibrateOptions()
    started, say = time.monotonic(), report or (lambda text, done, total: None)
    host = find_host(model)
    if getattr(host.base, STATE, []):
        raise UnsupportedError("The model is patched already. Call unpatch_model(model) first: calibration patches it.")
    length = min(USUAL, host.shape().max_positions) if options.length is None else options.length
    if tokenizer is None and not isinstance(texts, Tensor):
        tokenizer = tokenizer_of(model)
    windows = draw_windows(texts, tokenizer, count=options.windows, length=length, seed=options.seed)
    _check_tokens(host, windows)
    if host.family.table is not None and length > host.shape().max_positions:
        raise ConfigError(
            f"length={length} exceeds the {host.shape().max_positions} positions of the model's table, so the "
            "original cannot be run over it. Lower length."
        )
    work = _Work(model, windows, [_native(host, layer) for layer in range(len(host.layers))], options, say)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        say("the original", 0, len(host.layers))
        work.teacher = [record(host, window[None].to(host.base.device))[0] for window in windows]
        curve = None
        if host.family.rotary is not None:
            rotation.check_layout(host, "calibration", rotates=True)
        wanted = calibratable(host, spec, encoding_options, layers, gains=options.gains)
        if options.keep is not None:
            wanted, curve = _hybrid(work, wanted, layers, options.keep)
            layers = None
        fits = work.calibrate(wanted, layers, options)
    finally:
        for module, mode in modes:
            module.training = mode
    return Calibration(wanted, tuple(fits), windows.numel(), time.monotonic() - started, curve)


@dataclass
class _Work:
    """A model that is being calibrated."""

    model: Any
    windows: Tensor
    natives: list[Native | None]
    options: CalibrateOptions
    say: Report
    teacher: list[list[Tensor]] = field(default_factory=list)

    def calibrate(self, wanted: Any, layers: Any, options: CalibrateOptions) -> list[LayerFit]:
        """Patch and fit; the model is as it was if that fails."""
        patch_model(self.model, wanted, layers=None if isinstance(wanted, dict) else layers)
        try:
            return _fit_all(find_host(self.model), self.windows, self.teacher, self.natives, options, self.say)
        except BaseException:
            unpatch_model(self.model)
            raise


def _hybrid(work: _Work, wanted: Any, layers: Any, keep: int) -> tuple[Any, Curve]:
    """The mapping in which the layers that are missed most keep the native encoding."""
    host = find_host(work.model)
    if isinstance(wanted, dict) or host.family.rotary is None:
        raise UnsupportedError(
            f"calibrate.keep={keep} chooses layers by itself, and "
            + (
                "the patch says which layers get what. Leave out keep, or name one encoding."
                if isinstance(wanted, dict)
                else "this model adds its positions to the input, which layers cannot keep one by one. Leave out keep."
            )
        )
    chosen = resolve_layers(layers, len(host.layers))
    if keep >= len(chosen):
        raise ConfigError(f"keep={keep} must be below the {len(chosen)} layers that are patched.")
    work.calibrate(wanted, layers, replace(work.options, sequential=False))
    try:
        counts = sorted({0, keep, *(round(len(chosen) * share) for share in SHARES)})
        curve = measure_keeping(work.model, work.windows[:MEASURED], chosen, counts, work.say)
    finally:
        unpatch_model(work.model)
    rest = tuple(layer for layer in chosen if layer not in curve.order[:keep])
    return {rest: wanted}, curve


def _fit_all(
    host: Host,
    windows: Tensor,
    teacher: list[list[Tensor]],
    natives: list[Native | None],
    options: CalibrateOptions,
    say: Report,
) -> list[LayerFit]:
    chosen = [layer for layer in sorted(stripped(host)) if fittable(host.attentions[layer])]
    if not chosen:
        raise UnsupportedError(
            "Nothing of this encoding can be fitted: it keeps or scales the model's own encoding, or has no parameters "
            "that can be. Patch it with patch_model instead; biases, scores and gains in place of a rotation or of a "
            "table can be calibrated, such as 't5', 'fire', 'shaw', 'deberta' or, where the model rotates, 'nope'."
        )
    entries = [record(host, window[None].to(host.base.device)) for window in windows]
    states = [entry[0][0] for entry in entries]
    others: list[list[Arguments]] = [entry[1] for entry in entries]
    generator = torch.Generator().manual_seed(options.seed)
    fits = []
    for layer in range(len(host.layers)):
        say(f"layer {layer}", layer, len(host.layers))
        if layer in chosen:
            native = natives[layer]
            if native is None:
                raise UnsupportedError(
                    f"The rotation of layer {layer} depends on the length of the text, so there is no one attention "
                    "to fit to. Set config.rope_parameters to frequencies that stay, e.g. 'yarn', before loading."
                )
            originals = [observe(host, layer, t[layer], o[layer]) for t, o in zip(teacher, others, strict=True)]
            inputs = states if options.sequential else [t[layer] for t in teacher]
            calls = [observe(host, layer, s, o[layer]) for s, o in zip(inputs, others, strict=True)]
            fit = fit_layer(host.attentions[layer], originals, calls, native, options, generator)
        states = [run_layer(host, layer, s, o[layer]) for s, o in zip(states, others, strict=True)]
        if layer in chosen:
            fits.append(LayerFit(layer, **asdict(fit), state_error=_error(states, teacher, layer)))
    say("done", len(host.layers), len(host.layers))
    return fits


def _check_tokens(host: Host, windows: Tensor) -> None:
    count = host.base.get_input_embeddings().weight.shape[0]
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= count:
        raise ConfigError(
            f"Token ids must be 0 to {count - 1}, the rows of the model's embedding, got {low} to {high}. Is the "
            "tokenizer another model's?"
        )


def _error(states: list[Tensor], teacher: list[list[Tensor]], layer: int) -> float:
    """Relative error of the states after a layer; of the last layer's there is no record, so of its input's."""
    after = [t[layer + 1] for t in teacher] if layer + 1 < len(teacher[0]) else None
    if after is None:
        return float("nan")
    wrong = sum(float((s - t).float().square().sum()) for s, t in zip(states, after, strict=True))
    return float((wrong / sum(float(t.float().square().sum()) for t in after)) ** 0.5)


def _native(host: Host, layer: int) -> Native | None:
    """How a layer rotates; None when that depends on the length of the text."""
    if layer not in rotating(host):
        return Native(None, 1.0)
    try:
        inv_freq, scaling = rotation.frequencies(host, None, layer)
    except UnsupportedError:
        return None
    return Native(torch.tensor(inv_freq), scaling)
