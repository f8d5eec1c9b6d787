"""The loss inside the head: a model returns its loss where its logits would be, so no logits are kept.

The head's forward of this instance stands aside while the model runs, as part of the model's own forward: wrappers
around the model (DDP, FSDP2, autocast) see an ordinary pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..installing.strength import original
from ..likelihood import replaced_forward
from ..patchers.family import find_host
from .loss import IGNORED, Head, Teacher, chunked_loss


def find_head(model: nn.Module, input_ids: Tensor) -> nn.Module | None:
    """The output embedding of a language model, where its output is the logits as they are.

    None where the model does more to them (the soft cap of Gemma 2), which a short forward over ``input_ids`` shows.
    """
    head = output_embedding(model)
    if head is None:
        return None
    seen: list[Tensor] = []
    handle = head.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        with torch.no_grad(), evaluating(model):
            logits = model(input_ids=input_ids[:1, :8], **_without_cache(model)).logits
    finally:
        handle.remove()
    return head if len(seen) == 1 and torch.equal(seen[0].float(), logits.float()) else None


def output_embedding(model: Any) -> Any:
    """The layer that makes logits over the vocabulary; None for other models."""
    found = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return found if isinstance(found, nn.Module) else None


def token_loss(
    model: nn.Module,
    head: nn.Module | None,
    inputs: dict[str, Any],
    *,
    causal: bool,
    teacher: Callable[[Tensor], Teacher] | None = None,
    count: Tensor | float | None = None,
) -> Tensor:
    """``[3]``: loss, cross-entropy and KL divergence of a batch; see :func:`~pe_retrofit.training.loss.chunked_loss`.

    Args:
        model: as it trains.
        head: from :func:`find_head`; None: the model makes all logits, and the loss follows.
        inputs: of the model, with ``labels`` ``[b, n]``, -100 where nothing is predicted.
        causal: labels are of the same token; the prediction is made one token before.
        teacher: makes the teacher of the tokens that ``[b, n]`` bool selects.
        count: divides the sums; by default the number of labels.
    """
    passed = {**_without_cache(model), **{k: v for k, v in inputs.items() if k != "labels"}}
    labels = inputs["labels"]
    if causal:
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    kept = labels != IGNORED
    guide = None if teacher is None else teacher(kept)

    def compute(states: Tensor, forward: Head, trained: tuple[Tensor, ...]) -> Tensor:
        found = chunked_loss(states[kept], labels[kept], forward, trained=trained, teacher=guide, count=count)
        return found.view(1, 1, 3)

    if head is None:
        return compute(model(**passed).logits, lambda logits: logits, ()).view(3)
    trained = tuple(p for p in head.parameters() if p.requires_grad)
    with _replaced(head, lambda states, forward: compute(states, forward, trained)):
        return model(**passed).logits.view(3)


def teacher_of(
    model: nn.Module, head: nn.Module | None, inputs: dict[str, Any], weight: float, temperature: float
) -> Callable[[Tensor], Teacher]:
    """The original of a patched model with an adapter, as the teacher of a batch."""

    def make(kept: Tensor) -> Teacher:
        passed = {**_without_cache(model), **{k: v for k, v in inputs.items() if k != "labels"}}
        with torch.no_grad(), evaluating(model), adapter_off(model), original(model), ExitStack() as stack:
            if head is not None:
                stack.enter_context(_replaced(head, lambda states, forward: states))
            states = model(**passed).logits[kept]
        return Teacher(states, _frozen(head), weight, temperature)

    return make


def _frozen(head: nn.Module | None) -> Head:
    """The head as it was before training."""
    if head is None:
        return lambda logits: logits
    forward = head.forward

    def frozen(states: Tensor) -> Tensor:
        with torch.no_grad(), adapter_off(head):
            return forward(states)

    return frozen


def _replaced(head: nn.Module, forward: Callable[[Tensor, Head], Tensor]) -> AbstractContextManager[None]:
    """Within, this instance's forward is ``forward(states, the forward it had)``."""
    own = head.forward
    return replaced_forward(head, lambda states: forward(states, own))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Within, adapters and modules saved whole are off; unlike peft's, it leaves ``requires_grad`` as it is.

    Which distributed wrappers rely on, and it costs less than a millisecond.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers: list[Any] = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, no dropout; afterwards every module trains or not as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _without_cache(model: nn.Module) -> dict[str, Any]:
    return {"use_cache": False} if find_host(model).family.rotary else {}
