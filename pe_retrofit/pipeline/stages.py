"""What each step of a run does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError, UnsupportedError
from ..evaluation.distributed import Processes
from ..hub.saving import save_model
from ..patching import patch_model
from ..progress import Report
from ..retrofit.calibration.options import USUAL
from ..sources import load_text
from ..status import status
from ..texts import Text
from .schema import Recipe
from .store import CHECKPOINTS, EVALUATE, Store, write_whole
from .workshop import STOCK, Workshop

HELD_OUT = "held_out"
IGNORED = -100


@dataclass
class Steps:
    """The steps of one run; each method does one and returns what it came to, in JSON values.

    Attributes:
        recipe, store, workshop, who: of the run.
        report: is told how far a step is.
        kind: how processes must share the training; None: in any way.
    """

    recipe: Recipe
    store: Store
    workshop: Workshop
    who: Processes
    report: Report
    kind: str | None = None
    material: Any = None

    def names(self) -> list[str]:
        """All steps, in order."""
        evaluate, stages = self.recipe["evaluate"], self.workshop.stages
        found = [f"evaluate_{STOCK}"] if evaluate is not None and (evaluate.against == STOCK or not stages) else []
        for stage in stages:
            found.append(stage)
            if evaluate is not None and (stage in evaluate.after or stage == stages[-1]):
                found.append(f"evaluate_{stage}")
        return [*found, "save"] if self.recipe["save"] is not None else found

    def run(self, name: str) -> dict[str, Any]:
        """Do one step."""
        kind, _, stage = name.partition("_")
        step: Callable[..., dict[str, Any]] = getattr(self, kind)
        return step(stage) if stage else step()

    def patch(self) -> dict[str, Any]:
        """Install the encodings with their default start."""
        model, options = self.workshop.get(STOCK), self.recipe["patch"]
        patch_model(model, options.spec, layers=options.selected)
        self.workshop.at = "patch"
        return {"status": status(model).to_dict()}

    def calibrate(self) -> dict[str, Any]:
        """Fit the encodings to the model; the first of several processes does it, the others take what it found."""
        result: dict[str, Any] = {}
        if self.who.main:
            from ..retrofit import calibrate

            windows = self._windows("calibrate")
            model, options = self.workshop.get(STOCK), self.recipe["patch"]
            done = calibrate(
                model,
                options.spec,
                windows,
                layers=options.selected,
                options=self.recipe["calibrate"],
                report=self.report,
            )
            result = {**done.to_dict(), "snapshot": self.workshop.keep("calibrate")}
        return self._shared(result)

    def transfer(self) -> dict[str, Any]:
        """Teach each layer the attention it had; the first of several processes does it."""
        result: dict[str, Any] = {}
        if self.who.main:
            from ..retrofit.transfer import transfer

            windows = self._windows("transfer")
            self.workshop.get(self.workshop.before("transfer"))
            if self.recipe["lora"] is not None:
                self.workshop.wrap()
            found = transfer(self.workshop.model, windows, self.recipe["transfer"], report=self.report)
            result = {**found, "snapshot": self.workshop.keep("transfer")}
        return self._shared(result)

    def finetune(self) -> dict[str, Any]:
        """Train, with all processes."""
        from ..training import finetune
        from ..training.devices import world
        from ..training.gathered import whole_state

        data = self.prepared()
        model = self.workshop.get(self.workshop.before("finetune"))
        done = finetune(
            model,
            self.workshop.load_tokenizer(),
            data,
            self.recipe["finetune"],
            self.recipe["lora"],
            self.store.folder / CHECKPOINTS,
            resume=True,
            fade=self.recipe["fade"],
            distill=self.recipe["distill"],
            report=self.report,
            callbacks=[_expecting(self.kind)],
        )
        self.workshop.model = done.model
        kept = self.workshop.keep("finetune", whole_state(done.model), write=self.who.main)
        losses = [row["loss"] for row in done.history if "loss" in row]
        result = {
            "steps": done.steps,
            "tokens": done.tokens,
            "seconds": done.seconds,
            "parameters": done.parameters,
            "loss": {"first": losses[0], "last": losses[-1]} if losses else None,
            "held_out_loss": next((row["eval_loss"] for row in reversed(done.history) if "eval_loss" in row), None),
            "data": {"text": data.text_label, "sha256": data.sha256, "notes": list(data.notes)},
            "devices": str(world()),
        }
        return self._shared({**result, "snapshot": kept}, again=True)

    def evaluate(self, stage: str) -> dict[str, Any]:
        """Ask the model after a stage, beside the stock model's answers."""
        from ..evaluation import evaluate_model
        from ..evaluation.report import write_run

        options, folder = self.recipe["evaluate"], self.store.folder / EVALUATE
        against = None if options.against == "none" or stage == STOCK else options.against
        setting = {**options.setting(), "text": self._text(options.text)}
        results = evaluate_model(
            self.workshop.get(stage),  # after the text, which may need another state
            self.workshop.load_tokenizer(),
            tasks=list(options.tasks),
            against=str(folder / STOCK) if against == STOCK else against,
            out=folder / stage,
            options=dict(options.options or {}),
            name=f"{self.recipe.name}, {'stock' if stage == STOCK else f'after {stage}'}",
            report=self.report,
            **setting,
        )
        failed = [name for name, task in results["tasks"].items() if task["status"] == "error"]
        if failed:
            raise UnsupportedError(
                f"The evaluation after {stage!r} failed: {failed[0]}: {results['tasks'][failed[0]]['reason']}"
            )
        if self.who.main:
            write_run(results, folder / stage)
        rows = {name: task["by_length"] for name, task in results["tasks"].items()}
        reasons = {name: task["reason"] for name, task in results["tasks"].items() if task.get("reason")}
        return {"rows": rows, "reasons": reasons, "verdict": results.get("verdict")}

    def save(self) -> dict[str, Any]:
        """Write the model; the first of several processes does."""
        options, result = self.recipe["save"], {}
        if self.who.main:
            stages = self.workshop.stages
            model = self.workshop.get(stages[-1] if stages else STOCK)
            result = save_model(
                model,
                self.store.folder / options.folder,
                self.workshop.load_tokenizer(),
                form=options.form if hasattr(model, "peft_config") else None,
                trust_remote_code=self.recipe["model"].trust_remote_code,
            )
            self.workshop.drop()  # merging leaves it as no stage does
        self.who.wait()
        return result

    def prepared(self) -> Any:
        """The training data, laid out once."""
        if self.material is None:
            from ..training.data import prepare

            tokenizer = self.workshop.load_tokenizer()
            if self.workshop.at in (None, STOCK) and "patch" in self.workshop.stages:
                self.workshop.get("patch")  # what fits the model is seen when it is patched
            model = self.workshop.model if self.workshop.model is not None else self.workshop.get(STOCK)
            self.material = prepare(self.recipe["data"], tokenizer, model, report=self.report)
        return self.material

    def _windows(self, section: str) -> torch.Tensor:
        """``[windows, length]`` token ids of the training data, as many and as long as a section asks for; as long as
        the data's rows, up to 512, where it does not say."""
        count = self.recipe[section].windows
        length = self.recipe[section].length or min(USUAL, self.recipe["data"].length)
        found: list[list[int]] = []
        rest: list[int] = []
        for row in self.prepared().train:
            ids = _unmasked(row)
            rest = ids if len(ids) >= length else rest + ids  # short rows are joined
            if len(rest) >= length:
                found.append(rest[:length])
                rest = []
            if len(found) == count:
                return torch.tensor(found)
        raise ConfigError(
            f"{section}: windows={count} of length={length} tokens are needed, and the training data has {len(found)}. "
            "Give more text, or lower windows or length."
        )

    def _shared(self, result: dict[str, Any], *, again: bool = False) -> dict[str, Any]:
        """Let all processes go on from what the first one wrote."""
        self.who.wait()
        if again or not self.who.main:
            self.workshop.drop()
        return result

    def _text(self, name: str | None) -> Text:
        """What perplexity is measured on: by default text that nothing was trained on."""
        trains = self.recipe["data"] is not None
        if name is None:
            name = HELD_OUT if trains else "python_topics"
        if name != HELD_OUT:
            return load_text(name)
        rows = self.prepared().evaluation
        if rows is None:
            raise UnsupportedError("evaluate.text: nothing is held out of the training data; set data.held_out.")
        tokenizer = self.workshop.load_tokenizer()
        ids = [token for row in rows for token in _unmasked(row)]
        content = tokenizer.decode(ids, skip_special_tokens=True)
        if self.who.main:
            write_whole(self.store.folder / EVALUATE / f"{HELD_OUT}.txt", content)
        return Text("held-out part of the training data", content, hashlib.sha256(content.encode()).hexdigest())


def _unmasked(row: Any) -> list[int]:
    """The tokens of a row, those hidden from a masked language model too."""
    ids, labels = [int(i) for i in row["input_ids"]], [int(i) for i in row["labels"]]
    return [i if label == IGNORED else label for i, label in zip(ids, labels, strict=True)]


def _expecting(kind: str | None) -> Any:
    """A callback that stops a training whose processes share the work in another way than was asked for."""
    from transformers import TrainerCallback

    from ..training.devices import check_world

    class Expecting(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
            check_world(None, kind, model=known.get("model"))

    return Expecting()
