"""Fine-tuning: what the options mean, what is learned, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from finetuning import LORA, OPTIONS, Data, Rows, patched, run, weights

from pe_retrofit import patch_model
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.training import DistillOptions, FineTuneOptions, LoraOptions, add_lora
from pe_retrofit.training.options import settle_precision, training_arguments
from pe_retrofit.training.trainer import PositionTrainer

pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = Path(__file__).parents[1] / "docs" / "training.md"


def short(**changes: Any) -> FineTuneOptions:
    return dataclasses.replace(OPTIONS, **{"max_steps": 3, "save_every": 100, **changes})


def trainer(model: Any, options: FineTuneOptions, folder: Path) -> PositionTrainer:
    arguments = training_arguments(options, folder, evaluates=False)
    data = Data(Rows())
    return PositionTrainer(
        options=options, model=model, args=arguments, train_dataset=data.train, data_collator=data.collator
    )


def test_it_learns_and_tells(tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    options = short(max_steps=12, log_every=4, learning_rate=2e-2)
    done = run(tmp_path, options, data=Data(Rows(4), Rows(4)), report=lambda *a: told.append(a))
    losses = [row["loss"] for row in done.history if "loss" in row]
    assert losses[-1] < losses[0] - 0.3
    assert [row["step"] for row in done.history] == [4, 8, 12, 12]
    assert done.history[-1]["eval_loss"] < losses[0]
    assert done.tokens == 12 * 4 * 16 == done.history[-1]["tokens"]
    assert done.steps == 12
    assert told[-1][1:] == (12.0, 12.0)
    assert "tokens/s" in told[-1][0]
    assert not done.model.training
    assert done.seconds > 0


def test_accumulation_is_a_larger_batch(tmp_path: Path) -> None:
    """Also where labels are not spread evenly over the parts."""

    class Uneven(Rows):
        def __getitem__(self, index: int) -> dict[str, Any]:
            row = super().__getitem__(index)
            labels = row["labels"].clone()
            labels[: index % 4 * 4] = -100
            return {**row, "labels": labels}

    lora = dataclasses.replace(LORA, dropout=0.0)
    options = short(optim="sgd", max_grad_norm=0)
    for build in (tiny.llama, tiny.bert):
        found = []
        for batch, parts in ((4, 1), (1, 4)):
            model = patched(build=build).eval()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            model.config.attention_probs_dropout_prob = 0.0
            for layer in getattr(getattr(model, "bert", None), "encoder", torch.nn.Module()).children():
                for block in layer:
                    block.attention.self.dropout_prob = 0.0
            folder = tmp_path / f"{build.__name__}{batch}"
            changed = dataclasses.replace(options, batch_size=batch, accumulation=parts)
            found.append(weights(run(folder, changed, lora, model, data=Data(Uneven())).model))
        for name in found[0]:
            torch.testing.assert_close(found[0][name], found[1][name], msg=f"{build.__name__} {name}")


def test_position_parameters_have_a_rate_of_their_own(tmp_path: Path) -> None:
    model = add_lora(patched(), LORA)
    options = short(learning_rate=1e-3, pe_learning_rate=0.5, weight_decay=0.1)
    made = trainer(model, options, tmp_path).create_optimizer()
    names = {id(p): n for n, p in model.named_parameters()}
    for group in made.param_groups:
        position = {"position_encoding" in names[id(p)] for p in group["params"]}
        assert len(position) == 1
        assert group["lr"] == (0.5 if position == {True} else 1e-3)
        assert not (position == {True} and group["weight_decay"])
    assert sum(len(g["params"]) for g in made.param_groups) == len(weights(model))
    assert short(learning_rate=1e-3).position_rate == 1e-2


def test_a_rate_of_zero_leaves_the_positions_alone(tmp_path: Path) -> None:
    before = weights(add_lora(patched(), LORA))
    after = weights(run(tmp_path, short(pe_learning_rate=0)).model)
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert not [n for n in changed if "position_encoding" in n]
    assert [n for n in changed if "lora_B" in n]


@pytest.mark.parametrize("spec", ["t5", "alibi", "fire", ["native", "shaw"]])
@pytest.mark.parametrize("build", [tiny.llama, tiny.neox])
def test_gradient_checkpointing_changes_nothing(spec: Any, build: Any, tmp_path: Path) -> None:
    plain = run(tmp_path / "a", short(), model=patched(spec, build))
    spared = run(tmp_path / "b", short(gradient_checkpointing=True), model=patched(spec, build))
    for name, value in weights(plain.model).items():
        torch.testing.assert_close(weights(spared.model)[name], value)
    assert not spared.model.is_gradient_checkpointing


def test_what_is_returned_computes_in_its_own_precision(tmp_path: Path) -> None:
    """accelerate leaves its autocast on a model, so that logits would differ from those after saving and loading."""
    done = run(tmp_path / "run", short(precision="bf16"), lora=None)
    done.model.save_pretrained(tmp_path / "model")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = tiny.ids(2, 20)
    with torch.no_grad():
        assert torch.equal(done.model(input_ids=ids).logits, again(input_ids=ids).logits)


@pytest.mark.parametrize("lora", [LORA, LoraOptions(r=2, norms=True, embeddings=True), None])
def test_half_precision_weights_train_in_float32_and_stay_half(lora: Any, tmp_path: Path) -> None:
    model = tiny.llama().to(torch.bfloat16)
    patch_model(model, "t5")
    seen = set()

    class Look(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.update(p.dtype for p in kwargs["model"].parameters() if p.requires_grad)

    done = run(tmp_path, short(precision="auto"), lora, model, callbacks=[Look()])
    assert seen == {torch.float32}
    assert {p.dtype for n, p in done.model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    with torch.no_grad():
        assert done.model(input_ids=tiny.ids(1, 8)).logits.isfinite().all()
    assert settle_precision("auto", half=True) in ("bf16", "fp16")


@pytest.mark.parametrize(("fast", "half", "settled"), [(0, 0, "fp32"), (0, 1, "bf16"), (1, 0, "bf16"), (1, 1, "bf16")])
def test_auto_is_what_the_cpu_computes_fast(
    fast: int, half: int, settled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    kind = torch.bfloat16 if fast else torch.float32
    monkeypatch.setattr("pe_retrofit.training.options.fast_dtype", lambda: kind)
    assert settle_precision("auto", half=bool(half)) == settled


@pytest.mark.parametrize("spec", ["t5", "alibi", "yarn"])
def test_distillation_pulls_towards_the_original(spec: str, tmp_path: Path) -> None:
    options = short(max_steps=20, log_every=5, learning_rate=1e-2)
    model = tiny.llama()
    patch_model(model, spec, **({"factor": 4.0} if spec == "yarn" else {}))
    done = run(tmp_path, options, model=model, distill=DistillOptions(weight=1.0))
    rows = [row for row in done.history if "loss" in row]
    assert rows[-1]["kl"] < rows[0]["kl"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["kl"], rel=1e-4)


def test_distillation_does_not_touch_the_teacher(tmp_path: Path) -> None:
    done = run(tmp_path, short(), LoraOptions(r=2, norms=True), distill=DistillOptions())
    from pe_retrofit.installing.strength import original

    ids = tiny.ids(2, 12)
    with torch.no_grad(), original(done.model), done.model.disable_adapter():
        assert torch.equal(done.model(input_ids=ids).logits, tiny.llama()(input_ids=ids).logits)


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distill asks the original"):
        run(tmp_path, short(), None, distill=DistillOptions())
    with pytest.raises(ConfigError, match="nothing to train"):
        run(tmp_path, short(), None, patched().requires_grad_(False))
    with pytest.raises(UnsupportedError, match="half precision"):
        run(tmp_path, short(), LORA, patched().to(torch.bfloat16))
    model = patched(build=lambda: tiny.bert("BertForSequenceClassification"))
    with pytest.raises(ConfigError, match="logits over a vocabulary"):
        run(tmp_path, short(), LORA, model, distill=DistillOptions())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pe_retrofit.training.options.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=f"pip install {tracker}"):
        run(tmp_path, short(report_to=tracker))


def test_options_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        FineTuneOptions(max_steps=0, schedule="steep", betas=[0.9, 2.0])  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in ("max_steps=0", "schedule='steep'", "betas="))
    with pytest.raises(ConfigError, match="both given"):
        FineTuneOptions(max_steps=1, epochs=1.0)
    with pytest.raises(ConfigError, match="never look at the teacher"):
        DistillOptions(weight=0.0)
    with pytest.raises(UnsupportedError, match="precision=bf16 or fp32"):
        settle_precision("fp16" if not torch.cuda.is_available() else pytest.skip("there is a GPU"))


def test_options_become_training_arguments(tmp_path: Path) -> None:
    options = FineTuneOptions(epochs=2.0, warmup=5, betas=[0.8, 0.95], accumulation=3, weight_decay=0.1, seed=4)
    made = training_arguments(options, tmp_path, evaluates=False)
    assert (made.num_train_epochs, made.max_steps, made.get_warmup_steps(100)) == (2.0, -1, 5)
    assert (made.adam_beta1, made.adam_beta2, made.gradient_accumulation_steps) == (0.8, 0.95, 3)
    assert (made.weight_decay, made.seed, made.data_seed) == (0.1, 4, 4)
    assert training_arguments(FineTuneOptions(), tmp_path, evaluates=False).get_warmup_steps(100) == 3


@pytest.mark.parametrize("options", [LoraOptions, FineTuneOptions, DistillOptions])
def test_the_tables_of_the_documentation(options: Any) -> None:
    text = DOCS.read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"<!-- options: {options.name} -->")[1], flags=re.M)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", section, flags=re.M)
    wanted = [(r["option"], f"`{r['default']}`", r["help"]) for r in options.describe()]
    assert rows == wanted
