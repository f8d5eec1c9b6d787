"""The model card: what it says of every kind of saved model, and that nothing foreign breaks out of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_runs
import pytest
import tiny
import torch
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tokenizers_made import decoder_tokenizer
from typer.testing import CliRunner

from pe_retrofit import ConfigError, NopeConfig, UnknownEncodingError, WindowConfig, patch_model
from pe_retrofit.hub import card as cards
from pe_retrofit.hub.card import make_card, plan_card, write_card
from pe_retrofit.hub.cards.text import MISSING, code, fence, one_line, plain, table, without_paths

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0" * 32
T5 = [{"name": "native"}, {"name": "t5", "num_buckets": 32, "max_distance": 128}]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with small models of every kind; the tests do not write into them."""
    root = tmp_path_factory.mktemp("saved")
    hybrid = {"3::4": NopeConfig(attn_scale=0.1), "rest": ["native", WindowConfig(16)]}
    made = {
        "alibi": patch_model(tiny.llama(), "alibi"),
        "t5": tiny.patched(["native", "t5"]),
        "hybrid": patch_model(tiny.llama(num_hidden_layers=4), hybrid),
        "some": patch_model(tiny.llama(), "nope", layers=[1]),
        "yarn": patch_model(tiny.llama(), "yarn", factor=4.0),
        "linear": patch_model(tiny.llama(), "linear", factor=2.0),
        "ntk": patch_model(tiny.llama(), "ntk", factor=2.0),
        "bert": patch_model(tiny.bert(), "alibi"),
        "classes": patch_model(tiny.bert("BertForSequenceClassification"), "t5"),
        "stock": tiny.llama(),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    decoder_tokenizer().save_pretrained(root / "alibi")
    return {name: root / name for name in made}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, saved: dict[str, Path]) -> Path:
    """An adapter of the stock model in ``saved``, patched with t5."""
    from peft import LoraConfig, get_peft_model

    from pe_retrofit.hub.adapters import save_adapter

    model = patch_model(tiny.llama(), ["native", "t5"])
    model.config._name_or_path = model.name_or_path = "org/stock-base"
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["position_encoding"], task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("lora") / "my-adapter"
    save_adapter(get_peft_model(model, options), folder)
    return folder


def planted(encodings: Any, *names: str, **more: Any) -> dict[str, Any]:
    """Results of a model with these patches."""
    made = made_runs.blind(*names, **more)
    made["model"]["encoding"] = encodings
    return made


def evaluated(folder: Path, encodings: Any, *, pictures: tuple[str, ...] = (), **more: Any) -> Path:
    """A run of an evaluation of a model with these encodings."""
    layers = [{"encodings": entries, "layers": on, "kernel": "auto"} for entries, on in encodings]
    made_runs.saved(folder, planted(layers, **more))
    for name in pictures:
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / name).write_bytes(PICTURE)
    return folder


ALIBI = [([{"name": "alibi", "learnable": False, "sides": "both"}], [0, 1])]
ON_ALIBI = [{"encodings": ALIBI[0][0], "layers": [0, 1], "kernel": "auto"}]


def text_of(folder: Path, **options: Any) -> str:
    return str(make_card(folder, **options))


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def section(card: str, title: str) -> str:
    return re.split(r"^## ", card, flags=re.MULTILINE)[[*_titles(card)].index(title) + 1]


def _titles(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)


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


@pytest.mark.parametrize(("kind", "served"), [("dynamic", False), ("llama3", False), ("longrope", False)])
def test_gguf_is_promised_only_what_it_knows(tmp_path: Path, kind: str, served: bool) -> None:
    patch_model(tiny.llama(), kind, factor=2.0).save_pretrained(tmp_path)
    line = next(line for line in text_of(tmp_path).splitlines() if "llama.cpp" in line)
    assert ("yes" in line) is served
    assert "--rope-scaling" not in text_of(tmp_path)


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
    assert "trust_remote_code=True" in section(text_of(tmp_path), "Load")


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
    assert found["perplexity", "perplexity at 16,384 tokens"] == pytest.approx(25.0, rel=1e-4)
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


DAMAGE: dict[str, Any] = {
    "no JSON": lambda r: "{",
    "a list": lambda r: [],
    "another kind": lambda r: {**r, "kind": "prompts"},
    "a newer version": lambda r: {**r, "schema_version": 2},
    "tasks are a list": lambda r: {**r, "tasks": []},
    "a score above 1": lambda r: _with_row(r, mean=7.0),
    "a negative score": lambda r: _with_row(r, mean=-1),
    "a text for a number": lambda r: _with_row(r, mean="0.5"),
    "an interval of one": lambda r: _with_row(r, ci95=[0.5]),
    "an interval upside down": lambda r: _with_row(r, ci95=[0.5, 0.1]),
    "a huge number": lambda r: _with_row(r, n=10**400),
    "no length": lambda r: _with_row(r, length=None),
    "a status of its own": lambda r: {**r, "tasks": {"a": {"metric": "score", "status": "fine"}}},
    "rows without end": lambda r: {**r, "tasks": {"a": {"metric": "score", "status": "ok", "by_length": [{}] * 2000}}},
}


def _with_row(results: dict[str, Any], **values: Any) -> dict[str, Any]:
    results["tasks"]["passkey"]["by_length"][0] |= values
    return results


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_results_file_is_a_clear_error(
    saved: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    made = DAMAGE[damage](made_runs.blind())
    (tmp_path / "results.json").write_text(made if isinstance(made, str) else json.dumps(made))
    with pytest.raises(ConfigError, match=r"results\.json"):
        make_card(saved["alibi"], results=tmp_path)


def test_all_that_is_wrong_with_a_results_file_is_told_at_once(saved: dict[str, Path], tmp_path: Path) -> None:
    made = _with_row(made_runs.blind(), mean=7.0, n=-1)
    made["seed"] = "none"
    (tmp_path / "results.json").write_text(json.dumps(made))
    with pytest.raises(ConfigError) as caught:
        make_card(saved["alibi"], results=tmp_path)
    assert len(caught.value.problems) == 3


HOSTILE = "x|<script>alert(1)</script>\n---\n# `owned` ![i](http://e.vil/i.png) **b** \u202e $$x$$ @me {{ 7*7 }} \ud800"


def test_hostile_names_break_neither_tables_nor_metadata(saved: dict[str, Path], tmp_path: Path) -> None:
    made = planted(ON_ALIBI, HOSTILE)
    made["stock"]["name"] = made["setting"]["text"]["source"] = HOSTILE
    made["verdict"]["words"] = [HOSTILE]
    made["versions"] = {HOSTILE: HOSTILE}
    made["tasks"][HOSTILE] = {**made["tasks"].pop("passkey"), "title": HOSTILE, "unit": HOSTILE, "reason": HOSTILE}
    (tmp_path / "results.json").write_text(json.dumps(made))
    card = make_card(saved["alibi"], results=tmp_path)
    text = str(card)
    assert metadata(text)["tags"][0] == "pe_retrofit"
    assert ModelCard(text).data.to_dict() == card.data.to_dict()
    body = text.split("---\n", 2)[2]
    assert "<script" not in text.split("---\n")[1]
    html = MARKDOWN.render(body)
    assert "<script" not in html
    assert "<img" not in html
    assert "e.vil" not in "".join(re.findall(r'(?:href|src)="[^"]*"', html))
    assert "\u202e" not in text
    assert "{{ 7*7 }}" not in text
    assert "7\\*7" in text
    assert html.count("<h1>") == 1
    assert len({row.count("<td") + row.count("<th") for row in html.split("<tr>")[1:]} - {3, 7}) == 0


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_in_a_cell_stays_text_in_one_cell(foreign: str) -> None:
    cell = plain(foreign)
    tokens = MARKDOWN.parse(table(["a", "b"], [[cell or "-", "end"]]))
    inline = [token for token in tokens if token.type == "inline"]
    assert len(inline) == 4
    assert all(child.type == "text" for child in inline[2].children or ())
    shown = "".join(child.content for child in inline[2].children or ())
    assert shown == (one_line(without_paths(foreign)) or "-")


@given(st.text(alphabet="-+=#>*_~`.)1 3:|<&$www.https://ab", max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_text_in_a_paragraph_stays_a_paragraph(foreign: str) -> None:
    tokens = MARKDOWN.parse(plain(foreign))
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])


@given(st.text(alphabet="`~\n ab\r", max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_in_a_block_of_code_stays_in_it(foreign: str) -> None:
    tokens = MARKDOWN.parse(fence(foreign, "yaml") + "\n\nafter")
    assert [token.type for token in tokens] == ["fence", "paragraph_open", "inline", "paragraph_close"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/models/x", "x"),
        ("yarn:factor=2@/home/jane/my models/x", "yarn:factor=2@x"),
        ("see /tmp/run-3/results.json, and ~/data/a.txt:field", "see results.json, and a.txt:field"),
        ("C:\\Users\\jane\\x", "x"),
        ("/home/jane", "(a local path)"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("org/model and 12 tokens/s", "org/model and 12 tokens/s"),
        ("lm_eval/niah_single_1", "lm_eval/niah_single_1"),
    ],
)
def test_only_the_last_part_of_a_local_path_is_shown(text: str, shown: str) -> None:
    assert without_paths(text) == shown
    assert code(text).strip("`").replace("\\", "") == shown.replace("\\", "")


RECIPE = """# {home}
model: {{name: "{home}"}}
patch: {{name: alibi}}
data: {{text: "hub:org/corpus:en:train"}}
finetune: {{max_steps: 10}}  # three ticks: ``` and <script>
run: {{folder: /tmp/run-3}}
"""


def test_the_recipe_stands_there_without_local_paths(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(home="/home/jane/a base"))
    card = text_of(saved["alibi"], recipe=recipe)
    assert not re.search(r"/home/|/tmp/|jane", card)
    assert 'model: {name: "a base"}' in card
    assert "local paths are shown by their last part" in card
    assert "A base" not in card
    assert "a base with ALiBi" in card
    assert "its id on the Hub is not known" in card
    assert "base_model" not in metadata(card)
    assert metadata(card)["datasets"] == ["org/corpus"]
    block = next(t for t in MARKDOWN.parse(card.split("---\n", 2)[2]) if t.type == "fence" and t.info == "yaml")
    assert yaml.safe_load(block.content)["patch"] == {"name": "alibi"}
    assert "By the recipe below" in card
    assert "nothing here says that this one was trained" not in card


@pytest.mark.parametrize("bad", ["a: [", "- 1", "a: " + "[" * 200 + "]" * 200, "a: !!python/object:os.system x"])
def test_a_recipe_that_is_none_is_a_clear_error(saved: dict[str, Path], tmp_path: Path, bad: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(bad)
    with pytest.raises(ConfigError, match="recipe"):
        make_card(saved["alibi"], recipe=recipe)


def test_a_recipe_of_aliases_within_aliases_is_read_at_once(saved: dict[str, Path], tmp_path: Path) -> None:
    lines = ["a0: &a0 [/home/jane/x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    recipe = tmp_path / "r.yaml"
    recipe.write_text("\n".join(lines))
    assert "jane" not in text_of(saved["alibi"], recipe=recipe)


@pytest.mark.parametrize("secret", ["hf_" + "a1B2" * 8, "https://jane:secret@host/x"])
def test_a_card_with_a_token_is_refused_without_repeating_it(
    saved: dict[str, Path], tmp_path: Path, secret: str
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"patch: alibi  # {secret}\n")
    with pytest.raises(ConfigError, match="access token") as caught:
        make_card(saved["alibi"], recipe=recipe)
    assert secret not in str(caught.value)


def test_the_token_in_use_is_refused_whatever_it_looks_like(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "an-odd-token-1")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("patch: alibi  # an-odd-token-1\n")
    with pytest.raises(ConfigError, match="access token"):
        make_card(saved["alibi"], recipe=recipe)


def test_arguments_that_the_hub_would_refuse_are_told_together(saved: dict[str, Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_card(saved["alibi"], license="apache2", datasets=["not an id"], language="English")
    assert all(part in str(caught.value) for part in ("apache-2.0", "not an id", "English"))
    with pytest.raises(ConfigError, match="neither an id on the Hub nor a folder"):
        make_card(saved["alibi"], base_model="/nowhere/at all")


def test_an_unknown_license_is_left_out_and_said(saved: dict[str, Path]) -> None:
    card = text_of(saved["alibi"])
    assert "license" not in metadata(card)
    assert "**License: not stated.**" in card


def test_values_of_a_card_that_is_there_are_kept(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved["alibi"] / "config.json").read_bytes())
    (tmp_path / "README.md").write_text(
        "---\nlicense: gemma\nbase_model: org/b\nlanguage: de\ndatasets: [o/d]\n---\nhi"
    )
    data = metadata(text_of(tmp_path))
    assert (data["license"], data["base_model"], data["language"], data["datasets"]) == (
        "gemma",
        "org/b",
        ["de"],
        ["o/d"],
    )


@pytest.mark.parametrize(
    "block",
    [
        {"schema_version": 99, "host_model_type": "llama", "patches": []},
        {"schema_version": 1, "host_model_type": "os.system", "patches": []},
        {"schema_version": 1, "host_model_type": "llama", "patches": [{"encodings": [{"name": "nothing_like_it"}]}]},
        {"schema_version": 1, "host_model_type": "llama", "patches": [{"encodings": [{"name": "yarn", "factor": -1}]}]},
    ],
)
def test_a_hostile_config_is_a_clear_error(saved: dict[str, Path], tmp_path: Path, block: Mapping[str, Any]) -> None:
    config = json.loads((saved["alibi"] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "position_encoding": block}))
    with pytest.raises((ConfigError, UnknownEncodingError)):
        make_card(tmp_path)


def test_a_rope_config_cannot_reach_the_shell(saved: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((saved["yarn"] / "config.json").read_text())
    config["rope_parameters"] |= {"x'; rm -rf ~; '": 1, "evil": "'; rm -rf ~; '"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "rm -rf" not in text_of(tmp_path)


def run_of(folder: Path, model: Path, stages: tuple[str, ...] = ("patch", "finetune"), last: str = "finetune") -> Path:
    """The folder of a training run with a saved model within it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    (folder / "recipe.yaml").write_text("model: {name: smollm2}\npatch: {name: alibi}\nfinetune: {max_steps: 7}\n")
    data = {"text": "a text", "sha256": "cd" * 32}
    result = {"steps": 7, "tokens": 700, "loss": {"first": 3.0, "last": 2.5}, "held_out_loss": 2.75, "data": data}
    calibration = {"before": 0.5, "after": 0.25, "tokens": 4096}
    steps = {s: {"result": result if s == "finetune" else calibration if s == "calibrate" else {}} for s in stages}
    versions = {"torch": "9.9"}
    run = {"kind": "pe_retrofit run", "schema_version": 1, "name": "my-recipe", "steps": steps, "versions": versions}
    (folder / "run.json").write_text(json.dumps(run))
    evaluated(folder / "evaluate" / "patch", ALIBI)
    evaluated(folder / "evaluate" / last, ALIBI, text="ef" * 32, pictures=("perplexity-by_position.png",))
    return folder


def test_a_model_in_a_run_finds_its_recipe_its_last_evaluation_and_what_was_trained(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    run = run_of(tmp_path / "out", saved["alibi"], ("patch", "calibrate", "finetune"))
    plan = plan_card(run / "model")
    card = str(plan.card)
    assert "# my-recipe" in card
    assert metadata(card)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "max_steps: 7" in section(card, "Recipe")
    assert "ef" * 32 in card
    assert "7 steps, 700 tokens, of a text" in section(card, "Training")
    assert "0.5 before, 0.25 after" in section(card, "Calibration")
    assert "torch 9.9" in section(card, "Versions")
    assert {"evaluation-perplexity-by_position.png"} == set(plan.pictures)
    assert any("the evaluation after 'finetune'" in line for line in plan.said)
    assert str(tmp_path) not in card
    assert str(make_card(run / "model", results=run)) == card


def test_an_evaluation_of_an_earlier_stage_is_said_to_be_one(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"], last="calibrate")
    assert "measured after the step calibrate; the model was saved after finetune" in text_of(run / "model")


def test_writing_copies_the_pictures_and_links_them(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    written = write_card(run / "model", license="mit")
    assert [path.name for path in written] == ["README.md", "evaluation-perplexity-by_position.png"]
    card = (run / "model" / "README.md").read_text()
    assert "](evaluation-perplexity-by_position.png)" in card
    assert (run / "model" / "evaluation-perplexity-by_position.png").read_bytes() == PICTURE
    assert ModelCard.load(run / "model" / "README.md").data.license == "mit"
    assert sorted(p.name for p in (run / "model").iterdir()) == sorted(["config.json", *(p.name for p in written)])


def test_a_picture_that_is_none_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    results = evaluated(tmp_path / "eval", ALIBI, pictures=("a.png",))
    (results / "pictures" / "a.png").write_bytes(b"<svg onload=alert(1)>")
    with pytest.raises(ConfigError, match="no PNG"):
        make_card(saved["alibi"], results=results)


def test_a_readme_of_somebody_else_is_kept(saved: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((saved["alibi"] / "config.json").read_bytes())
    readme = tmp_path / "README.md"
    readme.write_text("my own words")
    with pytest.raises(ConfigError, match="was not written by pe-retrofit"):
        write_card(tmp_path)
    assert readme.read_text() == "my own words"
    write_card(tmp_path, overwrite=True)
    write_card(tmp_path, license="mit")  # ours: no need to ask
    readme.write_text(readme.read_text().replace("# ", "# My ", 1))
    with pytest.raises(ConfigError, match="edited since"):
        write_card(tmp_path)


def test_the_empty_form_that_peft_writes_is_replaced(adapter: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    folder = tmp_path / "adapter"
    get_peft_model(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    form = (folder / "README.md").read_text()
    assert cards.check_target(folder, False) is None
    (folder / "README.md").write_text(form.replace("[More Information Needed]", "Jane", 1))
    with pytest.raises(ConfigError, match="not written by"):
        cards.check_target(folder, False)


def test_a_failed_write_leaves_the_old_card(
    saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_bytes((saved["alibi"] / "config.json").read_bytes())
    write_card(tmp_path)
    before = (tmp_path / "README.md").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_card(tmp_path, license="mit")
    assert (tmp_path / "README.md").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json"]


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


def invoke(*arguments: Any) -> Any:
    import typer

    from pe_retrofit.cli import card as verb
    from pe_retrofit.cli.app import Verbs

    app = typer.Typer(cls=Verbs)
    app.callback()(lambda: None)
    verb.register(app)
    return CliRunner().invoke(app, ["card", *map(str, arguments)])


def test_a_dry_run_shows_the_card_and_every_file_and_writes_nothing(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = invoke(run / "model", "--dry-run")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("---\n")
    assert "# my-recipe" in done.stdout
    shown = " ".join(done.stderr.split())
    assert "README.md" in shown
    assert "evaluation-perplexity-by_position.png" in shown
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_command_writes_says_so_and_speaks_json(saved: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(tmp_path / "out", saved["alibi"])
    done = invoke(run / "model", "--license", "mit", "--dataset", "o/d", "--base-model", "o/b")
    assert done.exit_code == 0, done.output
    assert "Written" in done.stdout
    assert "(as given)" in done.stdout
    found = json.loads(invoke(run / "model", "--license", "mit", "--json").stdout)
    assert found["written"] is True
    assert found["metadata"]["license"] == "mit"
    assert Path(found["files"][0]).name == "README.md"
    (run / "model" / "README.md").write_text("mine")
    done = invoke(run / "model")
    assert done.exit_code == 2
    assert "--overwrite" in done.stderr
