"""Several processes, each with the whole model on a device of its own: who does what, and waiting for each other.

Started by ``accelerate launch`` or ``torchrun``; without either there is one process and nothing to import.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..errors import UnsupportedError


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: number of this one.
        world: how many there are.
        state: accelerate's ``PartialState``; None for one process.
    """

    rank: int = 0
    world: int = 1
    state: Any = None

    @property
    def main(self) -> bool:
        """Whether this one writes the results."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all have come this far."""
        if self.state is not None:
            self.state.wait_for_everyone()

    @property
    def device(self) -> Any:
        """The device of this process; None to leave the model where it is."""
        if self.state is None:
            return None
        return "cpu" if self.state.device.type == "cpu" else self.state.device


def processes() -> Processes:
    """What the launcher set up.

    Raises:
        UnsupportedError: several processes were launched and accelerate sees another number, or is not installed.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched <= 1:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise UnsupportedError(
            f"{launched} processes were launched, which needs accelerate. Install it with: pip install accelerate"
        ) from error
    import torch

    # shares may differ by hours, and waiting for the slowest is no error
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    if state.num_processes != launched:
        raise UnsupportedError(
            f"{launched} processes were launched, but accelerate sees {state.num_processes}: each would do everything. "
            "Launch with torchrun --nproc_per_node N, on CPUs with ACCELERATE_USE_CPU=true before it."
        )
    return Processes(state.process_index, state.num_processes, state)
