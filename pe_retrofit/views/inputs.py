"""Input encodings: the vector of each position, or what one token brings to its neighbours."""

from __future__ import annotations

from typing import Any

import torch

from ..sites import InputEncoding, LocalInput
from .kinds import InputView, Shape, fill_zero_parameters, filled_note


@torch.no_grad()
def see_input(module: InputEncoding[Any], shape: Shape) -> InputView:
    """As it starts in place of the native encoding, with what is zero filled in."""
    module.fit(None, keeps_native=False, embedding_rms=1.0)
    if isinstance(module, LocalInput):
        return _response(module)
    rows = getattr(module.config, "max_positions", shape.length)
    positions = torch.arange(min(shape.length, rows))
    if module(positions).any():
        return InputView(module(positions).double(), "at the size of the token embeddings (rms 1)")
    filled = fill_zero_parameters(module)
    return InputView(module(positions).double(), filled_note(filled))


def _response(module: LocalInput[Any]) -> InputView:
    """What one token brings to itself and to each of its neighbours: for a convolution, its kernel."""
    filled = fill_zero_parameters(module)
    before, after = module.sides
    text = torch.zeros(1, before + 1 + after, module.host.hidden_size)
    nothing = module(text)
    text[:, after] = 1.0
    added = module(text) - text - nothing
    note = f"what a token of ones, at {after}, brings to the tokens it reaches"
    return InputView(added[0].double(), f"{note}; {filled_note(filled)}" if filled else note)
