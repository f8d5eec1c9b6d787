"""The container of what is installed at one place of a model."""

from __future__ import annotations

from typing import Any

from torch import nn


class Installed(nn.Module):
    """What is installed at one place, by name; it stands at ``<module>.position_encoding``.

    Not an ``nn.ModuleDict``, which peft's ``modules_to_save`` refuses. Always reached through its parent at call time,
    so that a wrapper around it (peft's) or sharding of it takes effect.
    """

    def __setitem__(self, name: str, module: nn.Module) -> None:
        self.add_module(name, module)

    def __getitem__(self, name: str) -> nn.Module:
        return getattr(self, name)

    def values(self) -> list[Any]:
        """The modules, in the order they were installed."""
        return list(self.children())

    def items(self) -> list[tuple[str, Any]]:
        """Name and module, in that order."""
        return list(self.named_children())
