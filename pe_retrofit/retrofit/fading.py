"""The fade as a callback of transformers' ``Trainer``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from transformers.trainer_callback import ExportableState, TrainerCallback

from ..errors import ConfigError
from ..installing.strength import patched_bases, set_strength, strength_of
from ..positions import STRENGTH
from .fade import FadeOptions


class FadeCallback(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Sets the strength of a model's patch before every optimiser step, as :class:`FadeOptions` says.

    The strength follows from the number of the step alone, so a resumed training has the same one as an unbroken run.
    Logs get ``strength``, evaluation runs at the strength reached. Trainer's checkpoints on the way hold the weights of
    a model half-way, for resuming; ``save_pretrained`` refuses before strength 1.

    Args:
        options: of the fade, or a mapping of them.

    Raises:
        ConfigError: when training begins, if the fade would not end in time, the best model was to be loaded at the end
            (it may be one from half-way), or the checkpoint was trained with another fade.
        UnsupportedError: then too, if the model is not patched or its encoding has nothing in between.
    """

    def __init__(self, options: FadeOptions | Mapping[str, Any] | None = None) -> None:
        if isinstance(options, Mapping):
            options = FadeOptions.from_options({k: v for k, v in options.items() if k != "name"})
        self.options = options or FadeOptions()
        self.length = 0
        self.now = 1.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint says of the fade."""
        return {
            "args": {"options": self.options.to_dict()},
            "attributes": {"length": self.length, "now": self.now},
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check, and put the model where the first step wants it."""
        model = kwargs["model"]
        if args.load_best_model_at_end:
            raise ConfigError(
                "load_best_model_at_end=True could load weights from the middle of the fade, which belong to another "
                "encoding than the model's at the end. Set it to False, or evaluate the checkpoints after the fade."
            )
        length = self.options.length(state.max_steps)
        self._check_resumed(state, length)
        self.length = length
        if self.options.schedule != "step":
            before = strength_of(model)
            set_strength(model, 0.5)  # refuses what has nothing in between, before anything is trained
            set_strength(model, before)
        self._set(model, state.global_step)
        _checkpoints(model, True)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The strength of the step that begins."""
        self._set(kwargs["model"], state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Report it."""
        if logs is not None:
            logs["strength"] = self.now
        if state.log_history:
            state.log_history[-1]["strength"] = self.now

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Exactly 1, or words about why not."""
        model = kwargs["model"]
        _checkpoints(model, False)
        self._set(model, state.global_step)
        if self.now < 1.0:
            warnings.warn(
                f"Training ended after step {state.global_step}, before the fade did (at step "
                f"{self.options.delay + self.length}): the model is at strength {self.now:g}, and save_pretrained will "
                "refuse it. Resume from the last checkpoint, or call set_strength(model, 1.0) and accept the jump.",
                UserWarning,
                stacklevel=2,
            )

    def _set(self, model: Any, step: int) -> None:
        self.now = self.options.strength(step, self.length)
        set_strength(model, self.now)

    def _check_resumed(self, state: Any, length: int) -> None:
        saved = (state.stateful_callbacks or {}).get(type(self).__name__) if state.global_step else None
        saved = saved[-1] if isinstance(saved, list) else saved
        if not saved:
            return
        then, now = saved.get("args", {}).get("options"), self.options.to_dict()
        steps = saved.get("attributes", {}).get("length")
        if then != now or steps != length:
            raise ConfigError(
                f"The checkpoint at step {state.global_step} was trained with the fade {then} over {steps} steps, and "
                f"this run has {now} over {length} steps. Resume with the same options and number of steps."
            )


def _checkpoints(model: Any, allowed: bool) -> None:
    for base in patched_bases(model):
        if STRENGTH in base.__dict__:
            base.__dict__[STRENGTH].checkpoints = allowed
