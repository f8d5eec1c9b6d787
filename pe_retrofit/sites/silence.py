"""Whether an encoding's parameters are all zero, so that it adds nothing, and whether they train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn


class Silence:
    """Mixed into modules for which all-zero parameters (those of :meth:`speaking`) mean that they add nothing."""

    zero_is_silent: ClassVar[bool] = False
    _silence: tuple[tuple[tuple[int, int], ...], bool] | None = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """As in :class:`torch.nn.Module`."""
        return super().parameters(recurse)  # type: ignore[misc]

    def speaking(self) -> list[nn.Parameter]:
        """The parameters that must be zero; all of them unless overridden."""
        return list(self.parameters())

    @property
    def trains(self) -> bool:
        """Whether a gradient must reach parameters in the current mode."""
        return torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())

    @property
    def silent(self) -> bool:
        """Whether nothing is added anywhere, so that the kernels may leave the encoding out.

        A no is kept until a parameter changes; a yes is looked up each time, for what is written through
        ``parameter.data`` leaves no trace.
        """
        if not self.zero_is_silent or torch.compiler.is_compiling():
            return False
        parameters = self.speaking()
        state = tuple((p.data_ptr(), -1 if p.is_inference() else p._version) for p in parameters)
        if self._silence is None or self._silence[1] or self._silence[0] != state:
            with torch.no_grad():
                self._silence = (state, not any(bool(p.any()) for p in parameters))
        return self._silence[1]
