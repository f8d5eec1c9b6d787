"""What the model card says of every kind of saved model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import made_runs
import pytest
import tiny
import torch
from cards_made import ALIBI, ON_ALIBI, adapter_folder, evaluated, folders, metadata, planted, section, text_of
from huggingface_hub import ModelCard

from pe_retrofit import ConfigError, patch_model
from pe_retrofit.hub.card import make_card
from pe_retrofit.hub.cards.text import MISSING


@pytest.fixture(scope="module")
def saved() -> dict[str, Path]:
    return folders()


@pytest.fixture(scope="module")
def adapter() -> Path:
    return adapter_folder()


def test_alibi_says_what_it_replaced_how_it_is_loaded_and_that_nothing_else_serves_it(saved: dict[str, Path]) -> None:
    card = text_of(saved["alibi"], base_model="org/base", license="MIT", language="en", datasets=["org/texts"])
    data = metadata(card)
    assert data["base_model"] == "org/base"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["license"] == "mit"
    assert data["language"] == ["en"]
    assert data["datasets"] == ["org/texts"]
    assert set(data["tags"]) == {"pe_retrofit", "positional-encoding", "long-context", "alibi", "llama"}
    assert "with ALiBi in place of its rotary encoding (RoPE), on all layers." in card
    assert "https://arxiv.org/abs/2108.12409" in card
    assert "m_h = 2^(-8h/H)" in card
    assert "trained length: 32 tokens" in card
    assert "not tested" in card
    assert "import pe_retrofit" in section(card, "Load")
    assert "trust_remote_code" not in card
    assert "vLLM, SGLang" in section(card, "What serves it")
    assert "--hf-overrides" not in card
    assert "damages a pretrained model" in section(card, "Limits")


def test_a_learned_bias_on_top_is_said_to_be_on_top(saved: dict[str, Path]) -> None:
    card = text_of(saved["t5"])
    assert "T5 bucketed relative bias on top of its rotary encoding (RoPE), on all layers" in card
    assert "| `num_buckets` | `32` |" in card
    assert "damages a pretrained model" not in card


def test_a_hybrid_lists_its_layers_and_every_encoding(saved: dict[str, Path]) -> None:
    card = text_of(saved["hybrid"])
    assert "NoPE in place of its rotary encoding (RoPE), on layer 3" in card
    assert "| layers 0-2 | `native` + `window` |" in card
    assert "### `nope`" in card
    assert "### `window`" in card
    assert "| `attn_scale` | `0.1` |" in card
    assert {"nope", "window"} <= set(metadata(card)["tags"])


def test_layers_that_were_left_alone_are_named(saved: dict[str, Path]) -> None:
    card = text_of(saved["some"])
    assert "on layer 1; the other layers as they were." in card
    assert "| the others | `native` |" in card


def test_yarn_is_plain_transformers_with_the_flags_of_each_engine(saved: dict[str, Path]) -> None:
    card = text_of(saved["yarn"], name="me/yarn-128")
    assert "pip install" not in section(card, "Load")
    assert "import pe_retrofit" not in card
    assert "trained length: 32 tokens" in card
    assert "length its config is meant for: 128 tokens" in card
    serving = section(card, "What serves it")
    assert "vllm serve me/yarn-128 --max-model-len 128" in serving
    override = json.loads(re.search(r"--hf-overrides '(.*?)'", serving)[1])  # type: ignore[index]
    config = json.loads((saved["yarn"] / "config.json").read_text())
    assert override["rope_parameters"] == config["rope_parameters"]
    assert "--context-length 128" in serving
    assert "-c 128 --rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 32" in serving


def test_linear_knows_its_trained_length_from_the_factor(saved: dict[str, Path]) -> None:
    card = text_of(saved["linear"])
    assert "trained length: 32 tokens" in card
    assert "--rope-scaling linear --rope-scale 2" in card


@pytest.mark.parametrize(
    ("kind", "vllm", "llama_cpp"),
    [("dynamic", False, False), ("llama3", True, True), ("longrope", True, False), ("partial_rope", True, False)],
)
def test_engines_are_promised_only_what_they_run(tmp_path: Path, kind: str, vllm: bool, llama_cpp: bool) -> None:
    patch_model(tiny.llama(), kind, **({} if kind == "partial_rope" else {"factor": 2.0})).save_pretrained(tmp_path)
    serving = section(text_of(tmp_path), "What serves it")
    for title, served in (("vLLM", vllm), ("llama.cpp", llama_cpp)):
        line = next(line for line in serving.splitlines() if f"**{title}**" in line)
        assert line.partition("**: ")[2].startswith("yes" if served else "no;")
    assert ("vllm serve" in serving) is vllm
    assert ("llama-server" in serving) is llama_cpp
    assert "--rope-scaling" not in serving


def test_ntk_leaves_no_trace_so_the_recipe_or_the_results_must_tell(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give the recipe or the results"):
        make_card(saved["ntk"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: org/base\npatch: {name: ntk, factor: 2}\n")
    card = text_of(saved["ntk"], recipe=recipe)
    assert "NTK-aware scaled RoPE" in card
    assert "trained length: 32 tokens" in card
    assert "`config.json` does not show this; the recipe does." in card
    results = evaluated(tmp_path / "eval", [([{"name": "ntk", "factor": 2.0}], [0, 1])])
    assert "### `ntk`" in text_of(saved["ntk"], results=results)


def test_a_model_without_a_retrofit_has_no_card(saved: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing for the card"):
        make_card(saved["stock"])
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: org/base\npatch: alibi\n")
    with pytest.raises(ConfigError, match="names alibi"):
        make_card(saved["stock"], recipe=recipe)
    with pytest.raises(ConfigError, match="no saved model"):
        make_card(tmp_path)


def test_heads_get_their_auto_class_and_pipeline(saved: dict[str, Path]) -> None:
    card = text_of(saved["bert"])
    assert metadata(card)["pipeline_tag"] == "fill-mask"
    assert "AutoModelForMaskedLM.from_pretrained" in card
    assert "ALiBi in place of its table of positions" in card
    assert "bert" in metadata(card)["tags"]
    card = text_of(saved["classes"])
    assert metadata(card)["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in card


def test_code_that_comes_along_is_offered_only_where_the_config_names_it(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    config = json.loads((saved["alibi"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "code.Config"}}))
    card = text_of(tmp_path)
    assert "trust_remote_code=True" in section(card, "Load")
    assert "None of them was tried with the code" in section(card, "What serves it")


def test_an_adapter_is_a_peft_model_that_patches_its_base(adapter: Path) -> None:
    card = text_of(adapter)
    data = metadata(card)
    assert data["library_name"] == "peft"
    assert data["base_model"] == "org/stock-base"
    assert data["base_model_relation"] == "adapter"
    assert data["pipeline_tag"] == "text-generation"
    assert "t5" in data["tags"]
    assert "load_adapter(name)" in card
    assert "T5 bucketed relative bias on top of its rotary encoding (RoPE)" in card
    assert "Merge it" in section(card, "What serves it")


def test_the_evaluation_stands_beside_stock_with_intervals_and_counts(saved: dict[str, Path], tmp_path: Path) -> None:
    results = evaluated(tmp_path / "eval", ALIBI, text="ab" * 32)
    card = text_of(saved["alibi"], results=results)
    evaluation = section(card, "Evaluation")
    assert "| tokens | stock | this model | 95 % | over stock | 95 %, paired | n |" in evaluation
    assert "| tokens | stock | this model | 95 % | minus stock | 95 %, paired | n |" in evaluation
    assert re.search(r"\| 16,384 \| 466 \| 25 \| .* to .* \| 0\.\d+x \| .* \| 1 \|", evaluation)
    assert "Blind at" in evaluation
    assert "ab" * 32 in evaluation
    assert (
        "--tasks perplexity,passkey --lengths 2048,4096,8192,12288,16384 --samples 2 --depths 0,0.5,1 --seed 0" in card
    )
    assert "the longest that was evaluated: 16,384 tokens" in card
    assert "torch 2.13.0" in section(card, "Versions")


def test_the_model_index_reads_back(saved: dict[str, Path], tmp_path: Path) -> None:
    results = evaluated(tmp_path / "eval", ALIBI)
    path = tmp_path / "README.md"
    make_card(saved["alibi"], results=results, license="mit", base_model="org/base").save(path)
    loaded = ModelCard.load(path)
    found = {(r.metric_type, r.metric_name): r.metric_value for r in loaded.data.eval_results}
    assert found["perplexity", "perplexity at 16,384 tokens (fixed_tail)"] == pytest.approx(25.0, rel=1e-4)
    assert found["accuracy", "mean score (0 to 1) at 2,048 tokens"] == 1.0
    assert loaded.data.license == "mit"
    assert loaded.data.base_model == "org/base"


def test_results_of_another_model_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    results = evaluated(tmp_path / "eval", [([{"name": "nope"}], [0, 1])])
    with pytest.raises(ConfigError, match="of a model with nope"):
        make_card(saved["alibi"], results=results)
    plain_run = evaluated(tmp_path / "other", [])
    with pytest.raises(ConfigError, match="its own encoding alone"):
        make_card(saved["alibi"], results=plain_run)


def test_what_is_missing_is_shown_as_missing(saved: dict[str, Path], tmp_path: Path) -> None:
    made = planted(ON_ALIBI)
    row = made["tasks"]["passkey"]["by_length"][0]
    row |= {"mean": None, "ci95": None, "difference": None, "difference_ci95": None, "stock": None, "n": None}
    made["tasks"]["perplexity"]["by_length"][0]["not_finite"] = 1
    made["tasks"]["probe"] = {"metric": "score", "status": "error", "reason": "it broke", "by_length": []}
    made["setting"] = {}
    made_runs.saved(tmp_path, made)
    card = text_of(saved["alibi"], results=tmp_path)
    assert f"| 2,048 | {' | '.join([MISSING] * 6)} |" in card
    assert "not finite" in card
    assert "**error**: it broke." in card
    assert f"sha256 {MISSING}" in card
    names = [r.metric_name for r in make_card(saved["alibi"], results=tmp_path).data.eval_results]
    assert "mean score (0 to 1) at 2,048 tokens" not in names


def test_a_run_that_was_not_finished_is_said_to_be_unfinished(saved: dict[str, Path], tmp_path: Path) -> None:
    made = planted(ON_ALIBI)
    made_runs.saved(tmp_path, {**made, "status": "running"})
    assert "The run was not finished (status running)" in text_of(saved["alibi"], results=tmp_path)


def ran(card: str, folder: Path, name: str) -> dict[str, Any]:
    """What the first Python snippet of a card leaves behind, with the folder in place of the repository."""
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert snippet is not None
    assert json.dumps(name) in snippet[1]
    space: dict[str, Any] = {}
    exec(snippet[1].replace(json.dumps(name), json.dumps(str(folder))), space)
    return space


@pytest.mark.parametrize(("kind", "spec"), [("alibi", ("alibi", {})), ("yarn", ("yarn", {"factor": 4.0}))])
def test_the_snippet_loads_the_same_model(saved: dict[str, Path], kind: str, spec: tuple[str, dict[str, Any]]) -> None:
    loaded = ran(text_of(saved[kind], name="me/it"), saved[kind], "me/it")
    expected = patch_model(tiny.llama(), spec[0], **spec[1])
    ids = tiny.ids(1, 20)
    with torch.no_grad():
        assert torch.allclose(loaded["model"].eval()(ids).logits, expected(ids).logits, atol=1e-5)
    assert ("tokenizer" in loaded) is (kind == "alibi")


def test_the_snippet_of_an_adapter_runs(saved: dict[str, Path], adapter: Path) -> None:
    card = text_of(adapter, name="me/it", base_model=str(saved["stock"]))
    assert str(saved["stock"].parent) not in card
    card = card.replace('from_pretrained("stock")', f"from_pretrained({json.dumps(str(saved['stock']))})")
    loaded = ran(card, adapter, "me/it")
    assert any("position_encoding" in name for name, _ in loaded["model"].named_parameters())


def test_a_longer_position_table_is_told_by_the_results(saved: dict[str, Path], tmp_path: Path) -> None:
    learned = [{"name": "learned", "max_positions": 64, "init": "tile"}]
    card = text_of(saved["longer"], results=evaluated(tmp_path, [(learned, [0, 1])]))
    assert "its position table extended to 64 positions, on all layers" in card
    assert "the results file does" in card
    assert "damages a pretrained model" not in card
