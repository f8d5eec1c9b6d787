"""The model of a run, brought to the state after any stage: loaded, patched, and given what the stages changed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..hub.adapters import patches_of
from ..loading import Source, find_source, load_model, load_tokenizer
from ..patching import apply_saved, patch_model, unpatch_model
from . import snapshot
from .schema import Recipe
from .sections import STAGES
from .store import Store

STOCK = "stock"
"""The model before the first stage."""


@dataclass
class Workshop:
    """One model, and the stage it is at.

    Attributes:
        recipe, store: of the run.
        device: where the model goes.
        tell: is told what goes on.
        model, tokenizer, auto: None until something is needed; ``auto`` is the Auto class that loads the model.
        at: ``stock`` or the last stage done on it; None when there is no model, or one in between.
    """

    recipe: Recipe
    store: Store
    device: Any
    tell: Callable[[str], None]
    model: Any = None
    tokenizer: Any = None
    auto: Any = None
    at: str | None = None
    loaded: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        """Where the model comes from."""
        return source_of(self.recipe)

    @property
    def stages(self) -> list[str]:
        """The stages of this recipe, in order."""
        return [stage for stage in STAGES if self.recipe[stage] is not None]

    def before(self, stage: str) -> str:
        """The state that a stage starts from."""
        earlier = self.stages[: self.stages.index(stage)]
        return earlier[-1] if earlier else STOCK

    def get(self, stage: str) -> Any:
        """The model as it is after ``stage``, in evaluation mode."""
        if self.at != stage or self.model is None:
            self._bring_to(stage)
        return self.model.eval()

    def keep(self, stage: str, state: dict[str, Any] | None = None, *, write: bool = True) -> dict[str, Any]:
        """Write what has changed since the model was loaded.

        Args:
            stage: that was just done.
            state: the whole state where the model is spread over processes; by default the model's own.
            write: only the first of several processes does.

        Returns:
            How many tensors and bytes that are.
        """
        tensors = {}
        if write:
            tensors = snapshot.changed(self.model.state_dict() if state is None else state, self.loaded)
            about = {"patches": patches_of(self.model), "lora": hasattr(self.model, "peft_config")}
            snapshot.save(self.store.snapshot(stage), tensors, about)
        self.at = stage
        return {"tensors": len(tensors), "bytes": sum(t.numel() * t.element_size() for t in tensors.values())}

    def drop(self) -> None:
        """Forget the model, and free its memory."""
        self.model = None
        self.at = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def load_tokenizer(self) -> Any:
        """The tokenizer, loaded once."""
        if self.tokenizer is None:
            self.tokenizer, reason = load_tokenizer(self.source)
            if self.tokenizer is None:
                from ..errors import ConfigError

                raise ConfigError(f"The model {self.source.name!r} has no tokenizer: {reason}")
        return self.tokenizer

    def _bring_to(self, stage: str) -> None:
        if self.at == "patch" and stage == STOCK and self.model is not None:
            unpatch_model(self.model)
            self.at = STOCK
            return
        if self.at == STOCK and stage == "patch" and self.model is not None:
            self._patch(stage)
            self.at = stage
            return
        self.drop()
        self.tell("loading the model")
        bits = self.recipe["lora"].quantize if self.recipe["lora"] is not None else "none"
        self.model, self.auto = load_model(self.source, self.recipe["model"].dtype, quantize=bits, device=self.device)
        if bits == "none":
            self.model.to(self.device)
        if not self.loaded:
            self.loaded = snapshot.fingerprints(self.model)
        if stage != STOCK and self.stages[0] == "patch":
            self._patch(stage)
        path = self._snapshot_of(stage)
        if path is not None:
            if snapshot.about(path)["lora"]:
                self.wrap()
            snapshot.restore(self.model, path)
        self.at = stage

    def _patch(self, stage: str) -> None:
        """As the recipe says, or, once it was calibrated, as the calibration chose."""
        path = self._snapshot_of(stage)
        if path is None:
            patch_model(self.model, self.recipe["patch"].spec, layers=self.recipe["patch"].selected)
        else:
            apply_saved(self.model, snapshot.about(path)["patches"])

    def _snapshot_of(self, stage: str) -> Path | None:
        """The latest snapshot up to a stage."""
        if stage == STOCK:
            return None
        done = self.stages[: self.stages.index(stage) + 1]
        paths = [self.store.snapshot(name) for name in reversed(done) if name != "patch"]
        return paths[0] if paths else None

    def wrap(self) -> None:
        """Put the recipe's adapter on, fresh."""
        from ..training.lora import add_lora

        self.model = add_lora(self.model, self.recipe["lora"])


def source_of(recipe: Recipe) -> Source:
    """Where a recipe's model comes from.

    Raises:
        ConfigError, UnsupportedError: it is nowhere; with what would help.
    """
    options = recipe["model"]
    source = find_source(options.name, options.gguf_file, options.trust_remote_code)
    if options.revision is not None:
        source = Source(source.name, {**source.kwargs, "revision": options.revision})
    return source
