"""The A/B of prompts: what is generated, measured and compared, going on after a stop, and wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from bytetokens import ByteTokenizer
from typer.testing import CliRunner

from pe_retrofit import patch_model
from pe_retrofit.cli.app import build
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.evaluation import prompts as module
from pe_retrofit.evaluation.metrics import repetition
from pe_retrofit.evaluation.promptfile import read_prompts
from pe_retrofit.evaluation.promptresults import agreement
from pe_retrofit.evaluation.prompts import Interrupted, compare_prompts
from pe_retrofit.evaluation.report.answers import answers_html, answers_markdown, write_answers

LINES = [
    {"id": "one", "prompt": "Hello", "max_new_tokens": 6, "reference": "zzzz"},
    {"prompt": "Hello again, and again", "max_new_tokens": 9},
]


class Chatty(ByteTokenizer):
    chat_template = "yes"

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        assert options == {"add_generation_prompt": True, "tokenize": False}
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + "<assistant>"


def load(name: str) -> Any:
    model = tiny.llama(
        vocab_size=260, max_position_embeddings=256, eos_token_id=257, bos_token_id=256, pad_token_id=259
    )
    if name.startswith("alibi"):
        patch_model(model, "alibi")
    return model


class Loader:
    """Stands for ``open_model``; remembers what was loaded, and what each model was asked."""

    def __init__(self, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer or ByteTokenizer()
        self.loaded: list[str] = []
        self.asked: list[list[int]] = []
        self.stop_after: int | None = None

    def __call__(self, name: str, **_: Any) -> Any:
        self.loaded.append(name)
        model = load(name)
        generate = model.generate

        def watched(ids: Any, **options: Any) -> Any:
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(ids[0].tolist())
            return generate(ids, **options)

        model.generate = watched
        return SimpleNamespace(model=model, tokenizer=self.tokenizer, base="a base")


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    made = Loader()
    monkeypatch.setattr(module, "open_model", made)
    return made


def file(folder: Path, lines: Any = LINES) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


MODELS = ["first", "alibi@first"]


def greedy(name: str, ids: list[int], tokens: int) -> list[int]:
    """One forward per token, no cache."""
    model = load(name)
    row = list(ids)
    for _ in range(tokens):
        with torch.no_grad():
            row.append(int(model(torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        if row[-1] == 257:
            return row[len(ids) : -1]
    return row[len(ids) :]


def test_answers_are_the_greedy_ones_and_are_compared_with_the_first(tmp_path: Path, loader: Loader) -> None:
    found = compare_prompts(MODELS, file(tmp_path), tmp_path / "out", device="cpu")
    for row, line in zip(found["prompts"], LINES, strict=True):
        ids = [256, *str(line["prompt"]).encode()]
        expected = [greedy(name, ids, int(str(line["max_new_tokens"]))) for name in MODELS]
        assert [answer["tokens"] for answer in row["answers"]] == expected
        first, other = row["answers"]
        assert "exact" not in first
        assert other["exact"] == (expected[0] == expected[1])
        same = 0
        while same < min(map(len, expected)) and expected[0][same] == expected[1][same]:
            same += 1
        assert other["agreement"] == pytest.approx(same / max(map(len, expected)))
        for answer in row["answers"]:
            assert 0 < answer["first_token_seconds"] <= answer["seconds"]
            assert answer["tokens_per_second"] == pytest.approx(answer["new_tokens"] / answer["seconds"])
            assert answer["repetition"] == repetition(answer["tokens"])
    assert found["prompts"][0]["answers"][0]["reference"] == 0.0
    assert "reference" not in found["prompts"][1]["answers"][0]
    assert loader.loaded == MODELS


def test_measures() -> None:
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4]) == 0.0
    assert repetition([7] * 8) == pytest.approx(4 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert agreement([1, 2, 3], [1, 2, 4, 5]) == 0.5
    assert agreement([], []) == 1.0
    assert agreement([], [1]) == 0.0
    assert agreement([1, 2], [1, 2]) == 1.0


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, loader: Loader) -> None:
    path, out = file(tmp_path), tmp_path / "out"
    loader.stop_after = 3
    with pytest.raises(Interrupted):
        compare_prompts(MODELS, path, out, device="cpu")
    with (out / "generations.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"task": "alibi@first", "key": "li')  # cut short by a kill
    loader.stop_after, loader.loaded = None, []
    found = compare_prompts(MODELS, path, out, device="cpu")
    assert loader.loaded == ["alibi@first"]
    assert len(loader.asked) == 4
    fresh = compare_prompts(MODELS, path, tmp_path / "other", device="cpu")
    texts = [[[a["text"] for a in row["answers"]] for row in result["prompts"]] for result in (found, fresh)]
    assert texts[0] == texts[1]
    loader.loaded = []
    assert compare_prompts(MODELS, path, out, device="cpu")["prompts"] == found["prompts"]
    assert loader.loaded == []


def test_what_changes_an_answer_is_answered_anew(tmp_path: Path, loader: Loader) -> None:
    out = tmp_path / "out"
    compare_prompts(["first"], file(tmp_path), out, device="cpu")
    assert len(loader.asked) == 2
    changed = [LINES[0], {**LINES[1], "prompt": "Something else"}]
    found = compare_prompts(["first"], file(tmp_path, changed), out, device="cpu")
    assert len(loader.asked) == 3
    assert found["prompts"][1]["answers"][0]["prompt_tokens"] == 1 + len("Something else")
    compare_prompts(["first"], file(tmp_path, changed), out, device="cpu", temperature=1.0)
    assert len(loader.asked) == 5


def test_sampling_repeats_itself_with_a_seed_and_not_with_another(tmp_path: Path, loader: Loader) -> None:
    def texts(seed: int, folder: str) -> list[Any]:
        torch.manual_seed(torch.seed() % 1000)
        found = compare_prompts(["first"], file(tmp_path), tmp_path / folder, device="cpu", temperature=1.5, seed=seed)
        return [row["answers"][0]["tokens"] for row in found["prompts"]]

    one, again, other = texts(1, "a"), texts(1, "b"), texts(2, "c")
    assert one == again
    assert one != other


def test_messages_go_through_the_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Loader(Chatty())
    monkeypatch.setattr(module, "open_model", chat)
    lines = [{"messages": [{"role": "user", "content": "Hi"}], "max_new_tokens": 2}]
    found = compare_prompts(["first"], file(tmp_path, lines), tmp_path / "out", device="cpu")
    assert chat.asked == [[256, *b"<user>Hi<assistant>"][1:]]
    assert "user: Hi" in answers_markdown(found)


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_line(tmp_path: Path, loader: Loader) -> None:
    lines = [LINES[0], {"messages": [{"role": "user", "content": "Hi"}]}]
    with pytest.raises(UnsupportedError, match="Line 2 of the prompts, first: its tokenizer has no chat template"):
        compare_prompts(["first"], file(tmp_path, lines), tmp_path / "out", device="cpu")


def test_encoders_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = SimpleNamespace(model=tiny.bert(), tokenizer=ByteTokenizer(), base="a base")
    monkeypatch.setattr(module, "open_model", lambda name, **_: opened)
    with pytest.raises(UnsupportedError, match="cannot continue a prompt"):
        compare_prompts(["bert"], file(tmp_path), tmp_path / "out", device="cpu")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: it is not JSON"),
        ("[1]", "line 2: it is no JSON object"),
        ('{"promt": "x"}', "line 2: 'promt' is unknown; did you mean 'prompt'?"),
        ('{"id": "x"}', "line 2: it needs either prompt or messages"),
        ('{"prompt": "x", "messages": []}', "line 2: it needs either prompt or messages"),
        ('{"prompt": ""}', "line 2: prompt must be a text that is not empty"),
        ('{"messages": []}', "line 2: messages must be a list"),
        ('{"messages": [{"role": "user"}]}', "line 2: messages must be a list"),
        ('{"prompt": "x", "max_new_tokens": 0}', "line 2: max_new_tokens=0"),
        ('{"prompt": "x", "max_new_tokens": true}', "line 2: max_new_tokens=True"),
        ('{"prompt": "x", "reference": [1]}', "line 2: reference must be"),
        ('{"prompt": "x", "id": [1]}', "line 2: id="),
        ('{"prompt": "x", "id": "one"}', "line 2: the id 'one' is that of line 1 already"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x", "id": "one"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_prompts(path)
    assert words in str(error.value)


def test_wrong_files_and_numbers(tmp_path: Path, loader: Loader) -> None:
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in ((empty, "hold nothing"), (binary, "cannot be read"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            read_prompts(path)
    path = file(tmp_path)
    for options, words in (
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be"),
        ({"seed": -1}, "seed=-1 must be"),
    ):
        with pytest.raises(ConfigError, match=words):
            compare_prompts(["first"], path, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="named twice"):
        compare_prompts(["first", "first"], path, tmp_path / "out")
    assert not loader.loaded
    assert not (tmp_path / "out").exists()


def test_files_show_every_answer_and_escape_it(tmp_path: Path, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ByteTokenizer, "decode", lambda *_, **__: "<script>alert(1)</script> ``` end")
    found = compare_prompts(MODELS, file(tmp_path), tmp_path / "out", device="cpu")
    page, text = answers_html(found), answers_markdown(found)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") == 4
    assert "````text\n<script>" in text, "the fence is longer than any in the text"
    names = [path.name for path in write_answers(found, tmp_path / "out")]
    assert names == ["prompts.json", "prompts.md", "prompts.html"]
    assert json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))["kind"] == "prompts"


def test_the_command(tmp_path: Path, loader: Loader) -> None:
    out = tmp_path / "out"
    arguments = ["compare", "--prompts", str(file(tmp_path)), *MODELS, "--out", str(out), "--device", "cpu"]
    found = CliRunner().invoke(build(), arguments)
    assert found.exit_code == 0, found.output
    assert "agreement" in found.output
    assert sorted(p.name for p in out.iterdir()) == [
        "generations.jsonl",
        "prompts.html",
        "prompts.json",
        "prompts.md",
    ]
    printed = CliRunner().invoke(build(), [*arguments, "--json"])
    assert json.loads(printed.stdout)["decoding"]["method"] == "greedy"
    loader.stop_after = 0
    stopped = CliRunner().invoke(build(), [*arguments[:-4], "--out", str(tmp_path / "new")])
    assert stopped.exit_code == 130
