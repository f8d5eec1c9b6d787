"""``transfer``: each layer's new attention learns, on its own, what the original attention of the layer gave.

No gradient passes through depth: one layer is trained at a time, in order, on the states that the retrofitted layers
before it hand it, towards the output of the original attention on the original's states. After LoLCATs' attention
transfer (Zhang et al., "LoLCATs: On Low-Rank Linearizing of Large Language Models", 2024, arXiv 2410.10254), which
trains on the original's states; here a layer also makes up for the errors of those before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import StrictOptions, choice, integer, number
from ..errors import ConfigError, UnsupportedError
from ..installing import CHILD
from ..installing.strength import original
from ..patchers.family import Host, find_host
from ..patching import STATE
from ..progress import Report
from .calibration.replay import Arguments, record, run_layer


@dataclass(frozen=True)
class TransferOptions(StrictOptions):
    """How layers learn from the original's attention."""

    name = "transfer"
    noun = "section"
    windows: int = integer(16, low=1, high=4096, help="windows of text")
    length: int = integer(512, low=16, high=2**16, help="tokens per window")
    steps: int = integer(24, low=1, high=10**6, help="updates per layer")
    batch_size: int = integer(4, low=1, high=4096, help="windows per update")
    learning_rate: float = number(1e-3, low=0.0, high=10.0, help="of the adapter, at its highest; falls to 0")
    pe_learning_rate: float | None = number(
        None, low=0.0, high=10.0, optional=True, help="of position parameters; None: 10 times learning_rate"
    )
    states: str = choice(
        "student",
        ("student", "original"),
        help="what a layer is trained on: the states the retrofitted layers hand it, or the original's",
    )

    def check(self) -> Sequence[str]:
        if self.batch_size > self.windows:
            return [f"batch_size={self.batch_size} exceeds windows={self.windows}"]
        return []


def transfer(
    model: Any, windows: Tensor, options: TransferOptions | None = None, report: Report | None = None
) -> dict[str, Any]:
    """Train position parameters, and adapters on queries and keys, layer by layer towards the original's attention.

    Args:
        model: patched, with a peft adapter or without. What is trained: the parameters of the encodings, and LoRA
            matrices of the attention's projections where there are any.
        windows: token ids ``[w, n]``, all of which are used; ``options.windows`` and ``length`` are for who draws them.
        options: see :class:`TransferOptions`.
        report: told of the progress.

    Returns:
        JSON values: for each layer the relative error of the attention's output before and after, tokens, seconds. A
        layer that did not get nearer keeps the parameters it had.

    Raises:
        ConfigError: the token ids are none.
        UnsupportedError: the model is not patched, or has nothing that could learn.
    """
    options = options or TransferOptions()
    say, started = report or (lambda text, done, total: None), time.monotonic()
    host = find_host(model)
    _check_windows(windows, host)
    if not getattr(host.base, STATE, []):
        raise UnsupportedError(
            "The model is not patched, so its attention is what it would learn. Call patch_model or calibrate first."
        )
    learning = [layer for layer in range(len(host.layers)) if any(_learners(host, layer))]
    if not learning:
        raise UnsupportedError(
            "No layer has parameters of an encoding or an adapter that could learn. Patch with an encoding that has "
            "parameters (t5, kerple, fire, nope with gains=True, ...) or add an adapter first."
        )
    modes = [(module, module.training) for module in model.modules()]
    needed = [(p, p.requires_grad) for p in model.parameters()]
    model.eval()
    try:
        model.requires_grad_(False)
        with _in_float32(host, learning):
            layers = _run(model, host, windows, options, learning, say)
    finally:
        for parameter, wanted in needed:
            parameter.requires_grad_(wanted)
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
    return {"layers": layers, "tokens": windows.numel(), "seconds": round(time.monotonic() - started, 1)}


def _run(
    model: Any, host: Host, windows: Tensor, options: TransferOptions, learning: list[int], say: Report
) -> list[dict[str, Any]]:
    batches = windows.to(host.base.device).split(options.batch_size)
    adapter = model.disable_adapter if hasattr(model, "peft_config") else nullcontext
    with original(model), adapter():
        teacher = [record(host, batch) for batch in batches]
    student = [record(host, batch) for batch in batches]
    states = [found[0][0] for found in student]
    others = [found[1] for found in student]
    rows = []
    for layer in range(len(host.layers)):
        say(f"layer {layer}", layer, len(host.layers))
        if layer in learning:
            with original(model), adapter():
                wanted = [_attended(host, layer, t[0][layer], t[1][layer])[0] for t in teacher]
            inputs = states if options.states == "student" else [t[0][layer] for t in teacher]
            calls = [_attended(host, layer, s, o[layer])[1] for s, o in zip(inputs, others, strict=True)]
            before = _error(host, layer, calls, wanted)
            kept = [p.detach().clone() for part in _learners(host, layer) for p in part]
            _learn(host, layer, calls, wanted, options)
            after = _error(host, layer, calls, wanted)
            if not after <= before:  # no number, or farther
                _put_back(host, layer, kept)
                after = before
            rows.append({"layer": layer, "before": before, "after": after})
        with _autocast(host):
            states = [run_layer(host, layer, s, o[layer]) for s, o in zip(states, others, strict=True)]
    say("done", len(host.layers), len(host.layers))
    return rows


def _learn(host: Host, layer: int, calls: list[Arguments], wanted: list[Tensor], options: TransferOptions) -> None:
    position, adapter = _learners(host, layer)
    slow = options.learning_rate
    fast = 10 * slow if options.pe_learning_rate is None else options.pe_learning_rate
    groups = [{"params": p, "lr": rate} for p, rate in ((position, fast), (adapter, slow)) if p]
    for parameter in (*position, *adapter):
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.steps)
    size = [w.float().square().mean() for w in wanted]
    for step in range(options.steps):
        number = step % len(calls)
        with torch.enable_grad(), _autocast(host):
            output = _attend(host, layer, calls[number])
            loss = (output.float() - wanted[number].float()).square().mean() / size[number]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    for parameter in (*position, *adapter):
        parameter.requires_grad_(False)


@torch.no_grad()
def _put_back(host: Host, layer: int, kept: list[Tensor]) -> None:
    for parameter, value in zip((p for part in _learners(host, layer) for p in part), kept, strict=True):
        parameter.copy_(value)


def _check_windows(windows: Any, host: Host) -> None:
    rows = host.base.get_input_embeddings().weight.shape[0]
    wrong = not isinstance(windows, Tensor) or windows.dim() != 2 or windows.is_floating_point() or not windows.numel()
    if wrong or not 0 <= int(windows.min()) <= int(windows.max()) < rows:
        said = f"{windows.dtype} of shape {tuple(windows.shape)}" if isinstance(windows, Tensor) else f"{windows!r:.80}"
        raise ConfigError(
            f"Token ids must be whole numbers from 0 to {rows - 1}, the rows of the model's embedding, of shape "
            f"[windows, length], got {said}."
        )


def _learners(host: Host, layer: int) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the encodings at a layer's attention, and of adapters on its projections."""
    named = list(host.attentions[layer].named_parameters())
    position = [p for n, p in named if f".{CHILD}." in f".{n}" and "original_module" not in n]
    adapter = [p for n, p in named if "lora_" in n]
    return position, adapter


@contextmanager
def _in_float32(host: Host, learning: list[int]) -> Iterator[None]:
    """What is trained in float32 while it is: small steps are lost in bfloat16."""
    trained = [p for layer in learning for part in _learners(host, layer) for p in part]
    dtypes = [p.dtype for p in trained]
    for parameter in trained:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, dtype in zip(trained, dtypes, strict=True):
            parameter.data = parameter.data.to(dtype)


def _autocast(host: Host) -> Any:
    half = host.base.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(host.base.device.type, dtype=host.base.dtype) if half else nullcontext()


@torch.no_grad()
def _attended(host: Host, layer: int, states: Tensor, others: Arguments) -> tuple[Tensor, Arguments]:
    """Output of a layer's attention on ``states``, and what it was called with."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    output: list[Tensor] = []

    def before(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((args, dict(kwargs)))

    def after(_: nn.Module, args: Any, found: Any) -> None:
        output.append(found if isinstance(found, Tensor) else found[0])

    attention = host.attentions[layer]
    handles = [
        attention.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        attention.register_forward_hook(after),
    ]
    try:
        with _autocast(host):
            run_layer(host, layer, states, others)
    finally:
        for handle in handles:
            handle.remove()
    return output[0], Arguments(*seen[0])


def _attend(host: Host, layer: int, call: Arguments) -> Tensor:
    found = host.attentions[layer](*call.args, **call.kwargs)
    return found if isinstance(found, Tensor) else found[0]


@torch.no_grad()
def _error(host: Host, layer: int, calls: list[Arguments], wanted: list[Tensor]) -> float:
    """Relative error of the attention's output."""
    with _autocast(host):
        outputs = [_attend(host, layer, call) for call in calls]
    wrong = sum(float((o.float() - w.float()).square().sum()) for o, w in zip(outputs, wanted, strict=True))
    return float((wrong / sum(float(w.float().square().sum()) for w in wanted)) ** 0.5)
