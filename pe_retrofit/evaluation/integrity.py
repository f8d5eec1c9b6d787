"""Is the model whole? A few tokens show whether masks, caches and padding do what they should.

A retrofit that looks at future tokens, or whose positions shift between the prompt and the generated tokens, still
gives numbers, sometimes good ones. These checks need no stock model and cost a few short forwards; where one fails, the
scores of the run are void, and the results say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from .subject import Subject

TOKENS = 48
SEED = 11
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF = 0.1
"""Tolerance for 16-bit models. Differences are means over the states concerned, over their root mean square."""

MEANS = {
    "causality": "tokens that come later change what came before",
    "cache": "reading on from a cache gives other results than reading at once",
    "padding": "padding changes the results",
}


@torch.no_grad()
def integrity(subject: Subject) -> dict[str, Any]:
    """Each check: its difference, the tolerance, and whether it holds; or why it could not be made.

    - ``causality`` (decoders): the first 32 of 48 random tokens, with two different continuations;
    - ``cache`` (decoders): 32 tokens at once, then 8 together and 8 one by one, against 48 at once;
    - ``padding``: 40 tokens with 8 of padding (on the left for decoders, on the right for encoders) and without.
    """
    causal = subject.kind == "causal"
    checks: dict[str, Callable[[Subject, Tensor], float]] = {"padding": _padding}
    if causal:
        checks = {"causality": _causality, "cache": _cache, **checks}
    count = min(TOKENS, subject.longest or TOKENS)
    size = subject.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(min(3, size - 1), size, (1, count), generator=generator).to(subject.device)
    found: dict[str, dict[str, Any]] = {}
    for name, check in checks.items():
        try:
            difference = check(subject, ids)
        except (ConfigError, UnsupportedError) as error:
            found[name] = {"ok": None, "reason": str(error)}
            continue
        except RuntimeError as error:  # what cannot even run is not whole
            found[name] = {"ok": False, "reason": f"{type(error).__name__}: {error}"}
            continue
        tolerance = TOLERANCE.get(subject.host.base.dtype, HALF)
        # a comparison with NaN is false, as it should be
        found[name] = {"ok": bool(difference <= tolerance), "difference": difference, "tolerance": tolerance}
    return found


def complaints(found: dict[str, Any]) -> list[str]:
    """A sentence for each check that failed."""
    return [
        f"Broken ({name}): {MEANS[name]} ({_amount(check)}). The scores of this model are void."
        for name, check in found.items()
        if check["ok"] is False
    ]


def _amount(check: dict[str, Any]) -> str:
    if "reason" in check:
        return str(check["reason"])
    return f"difference {check['difference']:.3g}, at most {check['tolerance']:g} is rounding"


def _states(subject: Subject, ids: Tensor, **more: Any) -> Any:
    return subject.host.base(input_ids=ids, **more)


def _causality(subject: Subject, ids: Tensor) -> float:
    other, kept = ids.clone(), 2 * ids.shape[1] // 3
    other[:, kept:] = ids[:, kept:].flip(1)
    one = _states(subject, ids, use_cache=False).last_hidden_state[:, :kept]
    two = _states(subject, other, use_cache=False).last_hidden_state[:, :kept]
    return _apart(one, two)


def _cache(subject: Subject, ids: Tensor) -> float:
    first = 2 * ids.shape[1] // 3
    together = first + (ids.shape[1] - first) // 2
    whole = _states(subject, ids, use_cache=False).last_hidden_state
    output = _states(subject, ids[:, :first], use_cache=True)
    parts = [output.last_hidden_state]
    for start, end in [(first, together), *((i, i + 1) for i in range(together, ids.shape[1]))]:
        output = _states(subject, ids[:, start:end], use_cache=True, past_key_values=output.past_key_values)
        parts.append(output.last_hidden_state)
    return _apart(whole[:, first:], torch.cat(parts, 1)[:, first:])


def _padding(subject: Subject, ids: Tensor) -> float:
    count = 5 * ids.shape[1] // 6
    pads = ids[:, count:]  # what stands there must not matter
    mask = torch.ones_like(ids)
    whole = _states(subject, ids[:, :count], attention_mask=mask[:, :count]).last_hidden_state
    if subject.kind == "causal":
        mask[:, : pads.shape[1]] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        rows = torch.cat((pads, ids[:, :count]), 1)
        padded = _states(subject, rows, attention_mask=mask, position_ids=positions, use_cache=False)
        return _apart(whole, padded.last_hidden_state[:, pads.shape[1] :])
    mask[:, count:] = 0
    return _apart(whole, _states(subject, ids, attention_mask=mask).last_hidden_state[:, :count])


def _apart(one: Tensor, two: Tensor) -> float:
    """Mean difference over the root mean square of the first."""
    one, two = one.double(), two.double()
    return ((one - two).abs().mean() / one.square().mean().sqrt()).item()
