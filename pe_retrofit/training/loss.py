"""Cross-entropy and distillation that never hold more than a chunk of logits.

The logits of 2048 tokens over a vocabulary of 49152 are 400 MB in float32, and autograd keeps several such matrices.
Here the loss of a chunk of tokens is followed at once by its gradient with respect to the hidden states (and to the
head, where that is trained), so that a chunk's logits are freed before the next chunk's are made and nothing is
computed twice: the way of Liger Kernel's fused linear cross-entropy (Hsu et al. 2024, "Liger Kernel: Efficient Triton
Kernels for LLM Training", arXiv 2410.10989), here in plain PyTorch for any head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK = 256
"""Tokens whose logits are held at once."""

IGNORED = -100
"""Label of a token that is not predicted."""

Head = Callable[[Tensor], Tensor]
"""Logits ``[n, vocabulary]`` of hidden states ``[n, hidden_size]``."""


@dataclass(frozen=True)
class Teacher:
    """What the student is to resemble.

    Attributes:
        hidden: last hidden states of the teacher, ``[n, hidden_size]``.
        head: of the teacher.
        weight: ``w`` in ``(1 - w) CE + w T² KL(teacher‖student)``.
        temperature: ``T``, by which both divide their logits.
    """

    hidden: Tensor
    head: Head
    weight: float
    temperature: float


def chunked_loss(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    trained: tuple[Tensor, ...] = (),
    teacher: Teacher | None = None,
    count: Tensor | float | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Cross-entropy of ``targets``, mixed with the distance from a teacher, and both of them on their own.

    Args:
        hidden: ``[n, hidden_size]``.
        targets: ``[n]``; tokens of which it is ``-100`` are left out, of both terms.
        head: gives the logits of a chunk.
        trained: parameters of the head that get a gradient.
        teacher: distil from it: ``(1 - w) CE + w T² KL(teacher‖student)`` (Hinton, Vinyals and Dean 2015, "Distilling
            the Knowledge in a Neural Network", arXiv 1503.02531), a mean over tokens like the cross-entropy itself.
        count: divides the sums; by default the number of targets. Half-precision logits become float32 first.
        chunk: tokens at once.

    Returns:
        ``[3]``, in float32 or what ``hidden`` has beyond it: the loss, the cross-entropy and the KL divergence (0
        without a teacher). Only the loss has a gradient.
    """
    kept = targets != IGNORED
    if not bool(kept.all()):
        hidden, targets = hidden[kept], targets[kept]
        if teacher is not None:
            teacher = Teacher(teacher.hidden[kept], teacher.head, teacher.weight, teacher.temperature)
    divisor = torch.as_tensor(max(len(targets), 1) if count is None else count, device=hidden.device)
    result: Tensor = _ChunkedLoss.apply(hidden, targets, head, teacher, divisor, chunk, *trained)
    return result


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in forward, chunk by chunk; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        head: Head,
        teacher: Teacher | None,
        count: Tensor,
        chunk: int,
        *trained: Tensor,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        sums = torch.zeros(3, dtype=wide, device=hidden.device)
        needed = any(ctx.needs_input_grad)
        gradient = torch.zeros_like(hidden) if needed else None
        gradients = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in trained]
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].detach().requires_grad_(needed)
            with torch.set_grad_enabled(needed):
                logits = head(states)
            guide = None if teacher is None else (teacher.head(teacher.hidden[part]).detach(), teacher)
            parts, slope = _sums_and_slope(logits.detach().to(wide), targets[part], guide, slope=needed)
            sums += parts
            if gradient is not None and slope is not None:
                flows = torch.autograd.grad(logits, [states, *trained], slope.to(logits.dtype), allow_unused=True)
                if flows[0] is not None:
                    gradient[part] = flows[0] / count  # after the product, where halves do not underflow
                for total, flow in zip(gradients, flows[1:], strict=True):
                    if flow is not None:
                        total += flow
        if needed:
            ctx.gradients = [gradient, *[(g / count).to(p.dtype) for g, p in zip(gradients, trained, strict=True)]]
        return sums / count

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # type: ignore[override]
        first, *rest = [None if g is None else g * scale[0].to(g.dtype) for g in ctx.gradients]
        ctx.gradients = None
        return (first, None, None, None, None, None, *rest)


def _sums_and_slope(
    logits: Tensor, targets: Tensor, guide: tuple[Tensor, Teacher] | None, *, slope: bool
) -> tuple[Tensor, Tensor | None]:
    """Sums of (loss, cross-entropy, KL) over a chunk ``[c, vocabulary]``, and the loss's slope in the logits.

    ``logits`` is overwritten.
    """
    chosen = targets[:, None]
    whole = torch.logsumexp(logits, -1, keepdim=True)
    entropy = (whole - logits.gather(-1, chosen)).sum()
    if guide is None:
        gradient = None
        if slope:
            gradient = logits.sub_(whole).exp_()
            gradient.scatter_add_(-1, chosen, gradient.new_full(chosen.shape, -1.0))
        return torch.stack([entropy, entropy, torch.zeros_like(entropy)]), gradient

    raw, teacher = guide
    weight, temperature = teacher.weight, teacher.temperature
    told = torch.log_softmax(raw.to(logits.dtype) / temperature, -1)
    said = torch.log_softmax(logits / temperature, -1)
    truth = told.exp()
    distance = (told.sub_(said)).mul_(truth).sum()
    gradient = None
    if slope:
        gradient = said.exp_().sub_(truth).mul_(weight * temperature)
        if weight < 1:
            gradient.add_(logits.sub_(whole).exp_(), alpha=1 - weight)
            gradient.scatter_add_(-1, chosen, gradient.new_full(chosen.shape, weight - 1))
    loss = (1 - weight) * entropy + weight * temperature**2 * distance
    return torch.stack([loss, entropy, distance]), gradient
