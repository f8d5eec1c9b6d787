"""Run a recipe: each step once, whatever interrupts it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..evaluation.distributed import Processes, processes
from ..progress import Report
from ..training.lora import check_quantizing
from .schema import Recipe
from .stages import Steps
from .store import SUMMARY, Store, restart, write_json, write_whole
from .summary import markdown, summary
from .workshop import Workshop


def run(
    recipe: Recipe,
    *,
    again: bool = False,
    kind: str | None = None,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run a recipe, or what is left of it.

    Each finished step is written down and not done again. Several processes, each started by a launcher, run it
    together; the first one writes.

    Args:
        recipe: what to do, and in which folder.
        again: delete what an earlier run left in the folder and start over.
        kind: how processes must share the training (one of :data:`~pe_retrofit.training.devices.KINDS`); None: in
            any way.
        report: is told how far a step is: text, work done, work in all.
        tell: is told each step and what it came to, a line each.

    Returns:
        The summary: see :func:`~pe_retrofit.pipeline.summary.summary`.

    Raises:
        ConfigError: the folder holds something else, or the model or text cannot be found.
        UnsupportedError: the model cannot carry what is asked.
        OSError: the disk is full; finished steps stay finished.
        Interrupted: by Ctrl-C during an evaluation; the same call goes on.
    """
    if recipe["lora"] is not None:
        check_quantizing(recipe["lora"].quantize)
    if recipe["run"].device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"  # for what asks accelerate where to run
    who = processes()
    say = tell if tell is not None and who.main else (lambda line: None)
    folder = recipe.folder
    if again and who.main:
        restart(folder, recipe["save"].folder if recipe["save"] is not None else "model")
    who.wait()
    store = Store(folder, recipe, write=who.main)
    if who.main:
        store.open()
    who.wait()
    if not who.main:
        store.open()
    who.wait()
    workshop = Workshop(recipe, store, device_of(recipe, who), say)
    steps = Steps(recipe, store, workshop, who, report or (lambda text, done, total: None), kind)
    _run_steps(steps, store, recipe, who, say)
    found = summary(store)
    if who.main:
        write_json(folder / f"{SUMMARY}.json", found)
        write_whole(folder / f"{SUMMARY}.md", f"# {recipe.name}\n\n{markdown(found)}")
    return found


def step_names(recipe: Recipe) -> list[str]:
    """The steps of a recipe, in order."""
    store = Store(recipe.folder, recipe, write=False)
    return Steps(
        recipe, store, Workshop(recipe, store, None, print), Processes(), lambda text, done, total: None
    ).names()


def _run_steps(steps: Steps, store: Store, recipe: Recipe, who: Processes, say: Callable[[str], None]) -> None:
    from transformers import set_seed

    names = steps.names()
    for number, name in enumerate(names, 1):
        title = (
            f"[{number}/{len(names)}] {name.replace('_', ' after ', 1).replace('after stock', 'of the stock model')}"
        )
        if store.done(name) is not None:
            say(f"{title}: done before")
            continue
        say(title)
        set_seed(recipe["run"].seed)  # a step gives the same whether or not the ones before it ran in this process
        started = time.perf_counter()
        result = steps.run(name)
        who.wait()
        store.finish(name, result, time.perf_counter() - started)
    who.wait()


def device_of(recipe: Recipe, who: Processes) -> Any:
    """Where the model goes.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    wanted = recipe["run"].device
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = "cpu" if current is None else current.type
    if wanted not in ("auto", "cpu", there):
        raise ConfigError(f"run.device={wanted!r} is not on this machine, which has {there}. Set run.device=auto.")
    if who.device is not None:
        return who.device
    return there if wanted == "auto" else wanted


def loading_lines(recipe: Recipe, found: Mapping[str, Any]) -> list[str]:
    """How to load and evaluate what was saved."""
    saved = found["saved"]
    if saved is None:
        return []
    folder: Path = recipe.folder / recipe["save"].folder
    stock = recipe["model"].name
    if saved["form"] == "adapter":
        return [f"Saved the adapter in {folder}. Evaluate: pe-retrofit eval {folder}"]
    needs = "import pe_retrofit, then " if recipe["patch"] is not None else ""
    return [
        f"Saved in {folder}. Load: {needs}AutoModel*.from_pretrained({str(folder)!r}). "
        f"Evaluate: pe-retrofit eval {folder} --against {stock}"
    ]
