"""Nothing foreign breaks out of a card: damaged files, hostile names, paths, tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import made_runs
import pytest
import yaml
from cards_made import ON_ALIBI, folders, metadata, planted, text_of
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pe_retrofit import ConfigError, UnknownEncodingError
from pe_retrofit.hub.card import make_card
from pe_retrofit.hub.cards.text import code, fence, one_line, plain, table, without_paths

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@pytest.fixture(scope="module")
def saved() -> dict[str, Path]:
    return folders()


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
    cells = {len(re.findall(r"<t[dh][ >]", row)) for row in html.split("<tr>")[1:]}
    assert cells == {3, 7}  # options of the encoding, and the evaluation


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


def test_a_recipe_of_another_model_is_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("patch: {'3::4': nope, rest: [native, {name: t5}]}\n")
    with pytest.raises(ConfigError, match="patches with nope, t5"):
        make_card(saved["alibi"], recipe=recipe)
    assert "### `nope`" in text_of(saved["some"], recipe=recipe)
    recipe.write_text("patch: {name: rnope, window: 16}\n")  # shows as its parts
    assert "window: 16" in text_of(saved["hybrid"], recipe=recipe)


def test_signs_that_are_no_paths_stay_in_the_recipe(saved: dict[str, Path], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    text = "patch: alibi\na: ~\nb: /\nc: [a/b, 3::4, https://x.org/a/b]\nd: '~'"
    recipe.write_text(text)
    card = text_of(saved["alibi"], recipe=recipe)
    assert text in card
    assert "shown by their last part" not in card
