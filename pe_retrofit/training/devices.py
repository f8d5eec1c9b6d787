"""Many devices: how many processes run, in what way they share the work, and whether that is what was asked for.

Launchers fall back in silence: ``accelerate launch --cpu --num_processes 2`` starts one process, and FSDP that is asked
for on CPUs runs as DDP. A run therefore compares what it wanted with what accelerate, torch and the model itself say.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, UnsupportedError
from ..status import status
from .gathered import save_whole, whole_state

__all__ = [
    "KINDS",
    "World",
    "check_context_parallel",
    "check_gathering",
    "check_start",
    "check_world",
    "kind_of",
    "save_whole",
    "whole_state",
    "world",
]

KINDS = ("one", "ddp", "fsdp1", "fsdp2", "tp", "fsdp2+tp", "zero1", "zero2", "zero3")
"""Ways for processes to share the work: alone, copies of the model, shards of it, parts of its heads."""

LAUNCH = "ACCELERATE_USE_CPU=true torchrun --nproc_per_node {} --standalone script.py"
"""How two or more processes start on CPUs."""


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        processes: how many there are.
        rank: the number of this one.
        kind: how they share the work, one of :data:`KINDS`.
        accelerate: accelerate's ``distributed_type``, e.g. ``MULTI_CPU``.
        backend: of the process group: ``gloo``, ``nccl``, ...; empty for one process.
        device: of this process.
    """

    processes: int
    rank: int
    kind: str
    accelerate: str
    backend: str
    device: str

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def __str__(self) -> str:
        count = "1 process" if self.processes == 1 else f"{self.processes} processes"
        through = f", {self.backend}" if self.backend else ""
        return f"{count}, {self.kind} (accelerate: {self.accelerate}{through}), {self.device}"


def world(model: nn.Module | None = None) -> World:
    """What runs.

    Args:
        model: the model as it trains, wrapped or sharded; None before that, when accelerate's word is all there is.

    Raises:
        UnsupportedError: the launcher, torch and accelerate do not agree on the number of processes.
    """
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # which PartialState leaves to its callers
    state = AcceleratorState() if AcceleratorState._shared_state else PartialState(cpu=cpu)
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    counts = {
        "the launcher (WORLD_SIZE)": int(os.environ.get("WORLD_SIZE", "1")),
        "torch.distributed": torch.distributed.get_world_size() if grouped else 1,
        "accelerate": state.num_processes,
    }
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{who} says {count}" for who, count in counts.items())
        raise UnsupportedError(
            f"How many processes run is not clear: {said}. Each would train on all of the data by itself. On CPUs "
            f"launch with: {LAUNCH.format(max(counts.values()))}"
        )
    accelerate = state.distributed_type.value
    found = kind_of(model) if model is not None else None
    return World(
        processes=state.num_processes,
        rank=state.process_index,
        kind=found or _planned(state),
        accelerate=accelerate,
        backend=torch.distributed.get_backend() if grouped else "",
        device=str(state.device),
    )


def check_world(
    processes: int | None = None,
    kind: str | None = None,
    *,
    model: nn.Module | None = None,
    report: Callable[[str], None] | None = print,
) -> World:
    """Print in one line what runs, and raise when it is not what was asked for.

    Args:
        processes: how many processes there must be; None: any number.
        kind: how they must share the work, one of :data:`KINDS`; None: in any way.
        model: the model as it trains (``trainer.model_wrapped``); without it no sharding is seen, and accelerate's
            word is taken.
        report: gets the line, on the first process; None: nobody does.

    Returns:
        What runs.

    Raises:
        ConfigError: no such kind or number.
        UnsupportedError: something else runs, or the processes do not agree.
    """
    problems = []
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int) or processes < 1):
        problems.append(f"processes={processes!r} must be a whole number from 1 on")
    if kind is not None and kind not in KINDS:
        problems.append(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    if problems:
        raise ConfigError("What was asked of the devices is not valid: " + "; ".join(problems) + ".")
    found = world(model)
    if report is not None and found.first:
        report(f"devices: {found}")
    wrong = []
    if processes is not None and found.processes != processes:
        wrong.append(f"processes={processes} was asked for, but {found.processes} run; on CPUs launch with: ")
        wrong[-1] += LAUNCH.format(processes)
    if kind is not None and found.kind != kind:
        wrong.append(f"kind={kind!r} was asked for, but {found.kind!r} runs{_remedy(kind, found)}")
    if wrong:
        raise UnsupportedError(f"What runs is not what was asked for ({found}): " + "; ".join(wrong) + ".")
    return found


def _remedy(kind: str, found: World) -> str:
    if kind.startswith("fsdp") and found.device == "cpu":
        return (
            "; accelerate does not shard on CPUs, so load the model with "
            f"from_pretrained(..., distributed_config=DistributedConfig(fsdp_size={found.processes}))"
        )
    if kind == "tp":
        return f"; load it with from_pretrained(..., distributed_config=DistributedConfig(tp_size={found.processes}))"
    if kind.startswith("zero"):
        return "; DeepSpeed must be installed and named in accelerate's config (distributed_type: DEEPSPEED)"
    return ""


def kind_of(model: nn.Module) -> str | None:
    """How a model is spread over processes, from its modules and parameters; None where nothing shows it."""
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
    from torch.distributed.tensor import DTensor
    from torch.nn.parallel import DistributedDataParallel

    parameters = list(model.parameters())
    if any(hasattr(p, "ds_id") for p in parameters):
        return "zero3"
    modules = list(model.modules())
    if any(isinstance(m, DistributedDataParallel) for m in modules):
        return "ddp"
    if any(isinstance(m, FullyShardedDataParallel) for m in modules):
        return "fsdp1"
    spread = [p for p in parameters if isinstance(p, DTensor)]
    if any(isinstance(m, FSDPModule) for m in modules):
        return "fsdp2+tp" if any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in spread) else "fsdp2"
    return "tp" if spread else None


def _planned(state: object) -> str:
    """What accelerate is going to do."""
    from accelerate import DistributedType

    kind = getattr(state, "distributed_type", DistributedType.NO)
    if kind == DistributedType.NO:
        return "one"
    if kind == DistributedType.FSDP:
        return f"fsdp{getattr(getattr(state, 'fsdp_plugin', None), 'fsdp_version', 1)}"
    if kind == DistributedType.DEEPSPEED:
        return f"zero{getattr(getattr(state, 'deepspeed_plugin', None), 'zero_stage', 2)}"
    return "ddp"


def check_context_parallel(model: nn.Module, cp_size: int) -> None:
    """Refuse to split the text over processes where an encoding cannot be computed from a part of it.

    Context parallelism hands each process a part of the tokens, with their own ``position_ids``, drops the attention
    mask and puts a ring of its own in the place of PyTorch's attention. Rotations alone survive that.

    Args:
        model: patched or not, wrapped by peft or not.
        cp_size: processes that share one text; 1: nothing is split.

    Raises:
        ConfigError: ``cp_size`` is no whole number from 1 on.
        UnsupportedError: the model adds something to its attention scores, or to its input from neighbours, or its
            attention implementation is not the one that is replaced.
    """
    if isinstance(cp_size, bool) or not isinstance(cp_size, int) or cp_size < 1:
        raise ConfigError(f"cp_size={cp_size!r} must be a whole number from 1 on.")
    if cp_size == 1:
        return
    info = status(model)
    names = " + ".join(p.encodings for p in info.patches)
    if info.supports.get("context parallelism") == "refused":
        raise UnsupportedError(
            f"cp_size={cp_size} splits each text over processes, and {names} needs all of it: a process would see its "
            "own part of the keys only, and the attention mask is dropped. Set cp_size=1, or use an encoding that only "
            "changes the rotation, such as 'yarn', 'ntk' or 'linear'."
        )
    if info.attention != "sdpa":
        raise UnsupportedError(
            f"cp_size={cp_size} works through PyTorch's attention alone, but the attention implementation is "
            f"{info.attention!r}. Call model.set_attn_implementation('sdpa'), or set cp_size=1."
        )


def check_start(trainer: Any) -> None:
    """Refuse, before the first step of a ``Trainer``, what would fail at its end or train something else.

    Raises:
        UnsupportedError: the processes do not agree on how many they are; the model cannot be trained on parts of a
            text; or it will be sharded in a way that cannot be saved whole.
    """
    world()
    plan = getattr(trainer.accelerator, "parallelism_config", None)
    check_context_parallel(trainer.model, max(getattr(plan, "cp_size", 1), getattr(plan, "sp_size", 1)))
    check_gathering(trainer.accelerator.state)


def check_gathering(state: Any) -> None:
    """Refuse ways of sharding whose result cannot be gathered, before hours are spent on it.

    Args:
        state: accelerate's ``AcceleratorState``.

    Raises:
        UnsupportedError: FSDP1; FSDP2 or ZeRO-3 that save in shards; with the setting that helps.
    """
    kind = _planned(state)
    if kind == "fsdp1":
        raise UnsupportedError("The trained model could not be saved: FSDP1 is not gathered here. Set fsdp_version: 2.")
    if kind == "fsdp2" and "FULL_STATE_DICT" not in str(state.fsdp_plugin.state_dict_type):
        raise UnsupportedError(
            "The checkpoints would hold no weights: FSDP2 would save in shards. Set fsdp_state_dict_type: "
            "FULL_STATE_DICT in accelerate's config."
        )
    settings = state.deepspeed_plugin.deepspeed_config.get("zero_optimization", {}) if kind == "zero3" else {}
    if kind == "zero3" and settings.get("stage3_gather_16bit_weights_on_model_save") is not True:
        raise UnsupportedError(
            "The checkpoints would hold no weights: DeepSpeed's ZeRO-3 would save in shards. Set "
            "zero3_save_16bit_model: true in accelerate's config."
        )
