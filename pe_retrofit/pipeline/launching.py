"""Several processes: accelerate's launcher, called in this process, and checked against what was asked.

accelerate falls back in silence: ``--cpu --num_processes 2`` starts one process, and FSDP on CPUs runs as DDP. Here
what cannot run is refused before it starts, and each process checks what it became.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from .reading import read_file
from .shipped import LAUNCHERS, launchers

KINDS = {"NO": "one", "MULTI_CPU": "ddp", "MULTI_GPU": "ddp"}
MOST = 4096


class LaunchFailed(RuntimeError):  # noqa: N818 (what happened, for the command line)
    """A launched process failed; it has said why.

    Attributes:
        code: its exit code.
    """

    def __init__(self, code: int) -> None:
        super().__init__("A launched process failed; its message is above.")
        self.code = code


@dataclass(frozen=True)
class Plan:
    """What will be started.

    Attributes:
        processes: how many.
        kind: how they share the work: ``ddp``, ``fsdp1``, ``fsdp2``, ``zero1`` ... ``zero3``, or ``one``.
        cpu: on CPUs.
        config: accelerate's file, or None.
    """

    processes: int
    kind: str
    cpu: bool
    config: Path | None

    @property
    def expectation(self) -> str:
        """For the processes: ``2:ddp``."""
        return f"{self.processes}:{self.kind}"


def plan_launch(processes: int | None, config: str | None) -> Plan:
    """What ``--launch`` will do, or why it cannot.

    Args:
        processes: how many; by default what the config says, else one per accelerator.
        config: a file for ``accelerate launch``, or the name of one that comes with the package (``ddp``, ``fsdp2``,
            ``zero3``, ``cpu2``).

    Raises:
        ConfigError: no such file, or a number that makes no sense.
        UnsupportedError: this machine cannot run it.
    """
    import torch

    if importlib.util.find_spec("accelerate") is None:
        raise UnsupportedError("--launch needs accelerate. Install it with: pip install accelerate")
    if processes is not None and not 1 <= processes <= MOST:
        raise ConfigError(f"--processes {processes} must be from 1 to {MOST}.")
    path = None if config is None else _find(config)
    said = {} if path is None else read_file(path)
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    cpu = said.get("use_cpu") is True or devices == 0
    count = processes or said.get("num_processes") or devices
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise ConfigError("How many processes? This machine has no accelerator; say --processes 2.")
    kind = _kind(said, path, "ddp" if count > 1 else "one")
    if kind == "fsdp1":
        raise UnsupportedError(f"{path} asks for FSDP1, whose result is not gathered here. Set fsdp_version: 2 in it.")
    if kind.startswith("zero") and importlib.util.find_spec("deepspeed") is None:
        raise UnsupportedError(f"{path} asks for {kind}, which needs DeepSpeed. Install it with: pip install deepspeed")
    if kind.startswith(("fsdp", "zero")) and cpu:
        raise UnsupportedError(
            f"{path} asks for {kind}, and accelerate does not shard on CPUs: it would run DDP and not say so. Use "
            "--config cpu2 for two processes on CPUs, or a machine with accelerators."
        )
    machines = said.get("num_machines", 1)
    if not cpu and machines in (None, 1) and count > devices:
        raise ConfigError(f"{count} processes were asked for, and this machine has {devices} accelerators.")
    if kind == "one" and count > 1:
        raise ConfigError(f"{path} says distributed_type: 'NO', which is one process, and {count} were asked for.")
    return Plan(count, kind, cpu, path)


def launch(plan: Plan, words: Sequence[str]) -> None:
    """Start ``pe-retrofit WORDS`` in all processes, and wait for them.

    Raises:
        LaunchFailed: one of them failed.
        KeyboardInterrupt: by Ctrl-C.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    flags = [] if plan.config is None else ["--config_file", str(plan.config)]
    flags += ["--num_processes", str(plan.processes)]
    if plan.config is None or plan.cpu:
        flags += [
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
        flags += ["--multi_gpu"] if plan.processes > 1 else []
    arguments = launch_command_parser().parse_args([*flags, "--module", "pe_retrofit.cli", *words])
    with _environment(plan):
        try:
            launch_command(arguments)
        except ChildFailedError as error:
            codes = [failure.exitcode for failure in error.failures.values()]
            raise LaunchFailed(2 if 2 in codes else 1) from error
        except SignalException as error:
            raise KeyboardInterrupt from error
        except Exception as error:
            code = getattr(error, "returncode", None)  # one process, or DeepSpeed: subprocess.CalledProcessError
            if code is None:
                raise
            raise LaunchFailed(2 if code == 2 else 1) from error


def check_expectation(text: str) -> str:
    """In a launched process: whether as many run as were asked for.

    Args:
        text: :attr:`Plan.expectation`.

    Returns:
        The kind that was asked for, which shows when the model trains.

    Raises:
        UnsupportedError: another number runs.
    """
    from ..training.devices import check_world

    count, _, kind = text.partition(":")
    check_world(int(count), kind if kind in ("one", "ddp") else None)
    return kind


def _find(config: str) -> Path:
    path = Path(config)
    if path.is_file():
        return path
    known = launchers()
    if config.removeprefix(f"{LAUNCHERS}/") in known:
        return known[config.removeprefix(f"{LAUNCHERS}/")]
    raise ConfigError(f"--config {config!r} is no file, and none that comes with the package: {', '.join(known)}.")


def _kind(said: dict[str, Any], path: Path | None, default: str) -> str:
    wanted = said.get("distributed_type")
    if wanted is None and path is None:
        return default
    if wanted == "FSDP":
        return f"fsdp{(said.get('fsdp_config') or {}).get('fsdp_version', 1)}"
    if wanted == "DEEPSPEED":
        return f"zero{(said.get('deepspeed_config') or {}).get('zero_stage', 2)}"
    if wanted in KINDS:
        return KINDS[str(wanted)]
    allowed = ", ".join([*KINDS, "FSDP", "DEEPSPEED"])
    raise ConfigError(f"{path}: distributed_type={wanted!r} is not among those that are known here: {allowed}.")


@contextmanager
def _environment(plan: Plan) -> Iterator[None]:
    """Variables that launched processes inherit; afterwards as before."""
    wanted = {"TOKENIZERS_PARALLELISM": "false"}
    if plan.cpu:
        wanted["ACCELERATE_USE_CPU"] = "true"
        wanted["OMP_NUM_THREADS"] = os.environ.get(
            "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.processes))
        )
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
