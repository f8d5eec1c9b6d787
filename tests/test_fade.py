"""A fade over a training: its schedule, its callback, what is saved and resumed."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ENCODINGS, HOSTS, logits, tokens
from transformers import Trainer, TrainerCallback, TrainingArguments

from pe_retrofit import ConfigError, UnsupportedError, patch_model, set_strength, strength_of
from pe_retrofit.retrofit import FadeCallback, FadeOptions

STEPS = 8


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """A few random rows, by index."""

    def __init__(self) -> None:
        self.ids = tokens(4 * STEPS, 12)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


class Watch(TrainerCallback):
    """Notes the strength of every forward pass by optimiser step, and what an unbroken training logs."""

    def __init__(self, model: Any, stop: int | None = None) -> None:
        self.seen: dict[int, set[float]] = {}
        self.stop = stop
        self.step = 0
        model.register_forward_pre_hook(lambda m, args: self.seen.setdefault(self.step, set()).add(strength_of(m)))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= state.global_step == self.stop


def train(folder: Path, fade: FadeOptions, spec: str = "alibi", *, stop: int | None = None, **more: Any) -> Any:
    model = ENCODINGS[spec].patch(HOSTS["llama"].fresh()).train()
    watch = Watch(model, stop)
    resume = more.pop("resume", None)
    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        **more,
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(str(folder), **options),
        train_dataset=Rows(),
        callbacks=[FadeCallback(fade), watch],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, watch


def series(watch: Watch) -> list[float]:
    assert all(len(found) == 1 for found in watch.seen.values()), "one strength for all passes of a step"
    return [next(iter(watch.seen[step])) for step in sorted(watch.seen)]


def test_schedules() -> None:
    linear, cosine, step = (FadeOptions(schedule=s, steps=4, delay=2) for s in ("linear", "cosine", "step"))
    assert [linear.strength(n, 4) for n in range(9)] == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert [step.strength(n, 4) for n in range(9)] == [0, 0, 0, 0, 0, 0, 1, 1, 1]
    for n in range(9):
        x = min(1.0, max(0.0, (n - 2) / 4))
        assert cosine.strength(n, 4) == pytest.approx((1 - math.cos(math.pi * x)) / 2)
    assert cosine.strength(6, 4) == 1.0
    assert FadeOptions(fraction=0.5).length(100) == 50
    assert FadeOptions(fraction=0.0).length(100) == 1
    assert FadeOptions(steps=7).length(100) == 7


@pytest.mark.parametrize("more", [{"steps": 7, "delay": 2}, {"fraction": 1.0}, {"steps": 7, "hold": 2}])
def test_a_fade_that_does_not_end(more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would not end in time"):
        FadeOptions(**more).length(STEPS)


def test_wrong_options() -> None:
    with pytest.raises(ConfigError) as error:
        FadeOptions(schedule="quick", steps=0, fraction=1.5, delay=-1, hold=True)
    assert all(name in str(error.value) for name in ("schedule", "steps", "fraction", "delay", "hold"))


def test_training(tmp_path: Path) -> None:
    """Every pass of a step runs at its strength; logs say it; the end is the patched model."""
    fade = FadeOptions(steps=4, delay=1)
    trainer, watch = train(tmp_path, fade)
    wanted = [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert series(watch) == wanted
    logged = [entry["strength"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == wanted
    assert strength_of(trainer.model) == 1.0
    fresh = ENCODINGS["alibi"].patch(HOSTS["llama"].fresh())
    fresh.load_state_dict(trainer.model.state_dict())
    some = tokens(1, 12)
    assert torch.equal(logits(fresh.eval(), some), logits(trainer.model.eval(), some))
    trainer.save_model(str(tmp_path / "end"))


def test_the_first_step_is_the_native_model(tmp_path: Path) -> None:
    """Its loss is that of the stock model on the same rows."""
    trainer, _ = train(tmp_path, FadeOptions(steps=4), max_steps=6, lr_scheduler_type="constant")
    plain = Trainer(
        model=HOSTS["llama"].fresh().train(),
        args=TrainingArguments(**{**trainer.args.to_dict(), "max_steps": 1}),
        train_dataset=Rows(),
    )
    plain.train()
    first = [next(e["loss"] for e in t.state.log_history if "loss" in e) for t in (trainer, plain)]
    assert first[0] == first[1]


def test_resuming(tmp_path: Path) -> None:
    """Stopped half-way and resumed: the strengths, losses and weights of an unbroken run."""
    fade = FadeOptions(schedule="cosine", steps=6)
    more = {"save_strategy": "steps", "save_steps": 3}
    whole, watched = train(tmp_path / "whole", fade, "t5", **more)
    with pytest.warns(UserWarning, match="before the fade did"):
        first, before = train(tmp_path / "parts", fade, "t5", stop=3, **more)
    with pytest.raises(UnsupportedError, match=r"saved at strength 0\.5"):
        first.model.save_pretrained(tmp_path / "half")
    second, after = train(tmp_path / "parts", fade, "t5", resume=str(tmp_path / "parts" / "checkpoint-3"), **more)
    assert series(before) + series(after) == series(watched)
    assert strength_of(second.model) == 1.0
    losses = [[e["loss"] for e in t.state.log_history if "loss" in e] for t in (whole, second)]
    assert losses[0] == losses[1]
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)
    saved = json.loads((tmp_path / "parts" / "checkpoint-3" / "trainer_state.json").read_text())
    assert saved["stateful_callbacks"]["FadeCallback"]["attributes"] == {"length": 6, "now": fade.strength(2, 6)}
    with pytest.raises(ConfigError, match="was trained with the fade"):
        train(tmp_path / "parts", FadeOptions(steps=6), "t5", resume=str(tmp_path / "parts" / "checkpoint-3"), **more)


def test_state_makes_the_callback_again() -> None:
    callback = FadeCallback(FadeOptions(steps=5, delay=2))
    callback.length = 5
    again = FadeCallback.from_state(json.loads(json.dumps(callback.state())))
    assert (again.options, again.length) == (callback.options, 5)


def test_nothing_in_between(tmp_path: Path) -> None:
    """Said before anything is trained; a schedule of one step does."""
    with pytest.raises(UnsupportedError, match="schedule='step'"):
        train(tmp_path, FadeOptions(steps=4), "self_extend")
    _, watch = train(tmp_path, FadeOptions("step", steps=4), "self_extend")
    assert series(watch) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="load_best_model_at_end"):
        _best(tmp_path)
    with pytest.raises(UnsupportedError, match="not patched"):
        FadeCallback(FadeOptions(steps=4)).on_train_begin(
            TrainingArguments(str(tmp_path), report_to="none", use_cpu=True),
            type("State", (), {"max_steps": 8, "global_step": 0, "stateful_callbacks": {}}),
            None,
            model=HOSTS["llama"].fresh(),
        )


def _best(folder: Path) -> None:
    args = TrainingArguments(
        str(folder),
        load_best_model_at_end=True,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        report_to="none",
        use_cpu=True,
    )
    model = patch_model(HOSTS["llama"].fresh(), "alibi")
    FadeCallback().on_train_begin(args, None, None, model=model)


def test_a_teacher_inside_the_student() -> None:
    """Distillation from the original at a strength half-way: the teacher is the stock model, step after step."""
    from pe_retrofit import original

    stock = HOSTS["llama"].fresh()
    model = set_strength(ENCODINGS["nope"].patch(copy.deepcopy(stock)), 0.5).requires_grad_(False)
    some = tokens(2, 12)
    for _ in range(3):
        with torch.no_grad(), original(model):
            assert torch.equal(logits(model, some), logits(stock, some))
        assert strength_of(model) == 0.5


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_lifting_keeps_the_strength(strength: float) -> None:
    """Evaluation beside the stock model, half-way through a fade."""
    from pe_retrofit.evaluation.lifting import lifted

    model = set_strength(ENCODINGS["t5"].patch(HOSTS["llama"].fresh()), strength)
    some = tokens(1, 12)
    before = logits(model, some)
    with lifted(model):
        assert torch.equal(logits(model, some), logits(HOSTS["llama"].fresh(), some))
    assert strength_of(model) == strength
    assert torch.equal(logits(model, some), before)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/fade.md, from top to bottom."""
    page = (Path(__file__).parent.parent / "docs" / "fade.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "docs/fade.md", "exec", dont_inherit=True), names)
    assert strength_of(names["model"]) == 1.0
    assert not torch.equal(names["half"], names["patched"])
    assert [entry["strength"] for entry in names["trainer"].state.log_history if "strength" in entry][-1] == 1.0
