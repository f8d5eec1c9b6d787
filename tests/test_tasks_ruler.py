"""RULER-style tasks and key-value retrieval, solved from the prompt's text alone by independent solvers."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bytetokens import ByteTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pieces import Scripted
from solvers import reply_of, solve_common, solve_frequent, solve_niah, solve_pairs, solve_question, solve_variables

from pe_retrofit import ConfigError, UnsupportedError, models
from pe_retrofit.evaluation import Setting, list_tasks
from pe_retrofit.evaluation import tasks as _tasks  # noqa: F401  (registers them)
from pe_retrofit.evaluation.haystack import Draft, TooShort, fill
from pe_retrofit.evaluation.task import GROUPS
from pe_retrofit.evaluation.tasks.words import zeta
from pe_retrofit.evaluation.vocabulary import ADJECTIVES, NOUNS, WORDS
from pe_retrofit.texts import Text

FEW = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def text_of(sentences: int, seed: int = 0) -> Text:
    draw = random.Random(seed)
    words = ["river", "stone", "(see", "below)", "cannot", "however", "merely", "2nd", "x=1", "path"]
    lines = [" ".join(draw.choices(words, k=draw.randint(3, 15))) + draw.choice(".?!") for _ in range(sentences)]
    content = "\n".join(lines)
    return Text("sentences", content, hashlib.sha256(content.encode()).hexdigest())


STORY = text_of(4000)


def items_of(name: str, subject: Any = None, options: dict[str, Any] | None = None, **setting: Any) -> list[Any]:
    kind = list_tasks()[name]
    task = kind(kind.Options.from_options(options or {}))
    return list(task.items(subject or Scripted(), Setting(text=STORY, **setting)))


def prompts_of(name: str, options: dict[str, Any] | None = None, **setting: Any) -> list[tuple[str, list[str], Any]]:
    """Text of the prompt with its start token left out, the references, and the item."""
    subject = Scripted()
    found = items_of(name, subject, options, **setting)
    for item in found:
        assert item.content.prompt[0] == 0
        assert 0 not in item.content.prompt[1:]
    return [(subject.decode(i.content.prompt), list(i.content.references), i) for i in found]


NAMES = ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa", "kv_retrieval")
HAYS = ("noise", "needles", "text")


def test_vocabulary_is_of_plain_words_each_once() -> None:
    assert len(WORDS) == len(set(WORDS)) == len(ADJECTIVES) + len(NOUNS) > 800
    assert all(re.fullmatch(r"[a-z]{3,}", word) for word in WORDS)


@FEW
@given(seed=st.integers(0, 2**31), length=st.integers(800, 5000), depth=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@pytest.mark.parametrize("name", NAMES)
def test_the_answers_follow_from_the_prompt(name: str, seed: int, length: int, depth: float) -> None:
    for prompt, references, item in prompts_of(name, lengths=[length], samples=2, depths=[depth], seed=seed):
        found = {"vt": solve_variables, "cwe": solve_common}.get(name, lambda p: None)(prompt)
        if name.startswith("niah"):
            assert solve_niah(prompt) == references
        elif name == "vt":
            assert found[-1] == references
            shown = re.search(r"they are: ([A-Z ]+)\n", prompt)
            assert len(references) == 5
            own = re.findall(r"VAR (\w{5}) = VAR (\w+)", prompt)
            assert own == list(zip(references[1:], references, strict=False)), "each hop refers to the one before"
            assert shown is not None
            assert found[0] == shown[1].split()
        elif name == "cwe":
            assert sorted(found[-1]) == sorted(references)
            example = prompt[: prompt.rindex("Below is a numbered list")]
            shown_words = re.findall(r"\d+\. (\S+)", example[example.index("list are:") :])
            assert sorted(found[0]) == sorted(shown_words)
            assert not set(found[0]) & set(references)
            words = set(re.findall(r"\d+\. (\S+)", prompt[prompt.rindex("Below is") : prompt.rindex("\nQuestion")]))
            assert not [w for w in words - set(references) if any(r in w or w in r for r in references)]
        elif name == "fwe":
            assert solve_frequent(prompt) == references
        elif name == "qa":
            assert solve_question(prompt) == references
            assert prompt.lower().count(references[0].lower()) == 1
        else:
            assert [solve_pairs(prompt)] == references
            assert prompt.count(references[0]) == 1
        assert item.tokens <= length
        assert item.tokens == len(item.content.prompt) + max(item.content.new_tokens, len(item.content.answer))


@FEW
@given(seed=st.integers(0, 2**31), length=st.integers(1500, 8000))
@pytest.mark.parametrize("name", NAMES)
def test_prompts_fill_their_length(name: str, seed: int, length: int) -> None:
    for item in items_of(name, lengths=[length], samples=1, depths=[0.5], seed=seed):
        assert 0.95 * length <= item.tokens <= length


@pytest.mark.parametrize("hay", HAYS)
@pytest.mark.parametrize("name", NAMES[:4])
@pytest.mark.parametrize(("key", "value"), [("words", "numbers"), ("numbers", "words"), ("uuids", "uuids")])
def test_every_needle_stands_once_in_any_hay(name: str, hay: str, key: str, value: str) -> None:
    options = {"haystack": hay, "key_type": key, "value_type": value}
    for prompt, references, item in prompts_of(name, options, lengths=[2500], samples=2, depths=[0.5]):
        assert solve_niah(prompt) == references
        assert len(references) == (4 if name in ("niah_multivalue", "niah_multiquery") else 1)
        assert all(prompt.count(f" {reference}.") == 1 for reference in references)
        needles = prompt.count("One of the special magic")
        own = 1 if name == "niah_single" else 4
        assert needles == own + (dict(item.content.more)["units"] if hay == "needles" else 0)
        assert item.tokens >= 0.95 * 2500
        if hay == "text":
            body = prompt[prompt.index("afterwards.\n") + 12 : prompt.rindex("\nWhat ")]
            left = re.sub(r"One of the special magic \w+ for \S+ is: \S+\.", "", body).split()
            assert left == STORY.content.split()[: len(left)], "the text is no longer itself"


@pytest.mark.parametrize("hay", HAYS)
@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_the_needle_stands_at_its_depth(hay: str, depth: float) -> None:
    for prompt, references, _ in prompts_of(
        "niah_single", {"haystack": hay}, lengths=[4000], samples=2, depths=[depth]
    ):
        body = prompt[prompt.index("afterwards.\n") + 12 : prompt.rindex("\nWhat ")]
        needle = re.search(rf"One of the special magic numbers for \S+ is: {references[0]}\.", body)
        assert needle is not None
        before, after = needle.start(), len(body) - needle.end()
        assert before / (before + after) == pytest.approx(depth, abs=0.03)
        if depth in (0.0, 1.0):
            assert (before if depth == 0 else after) == 0
        if hay == "text" and 0 < depth < 1:
            assert body[: needle.start()].rstrip()[-1] in ".?!", "a needle stands within a sentence"


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_pair_stands_at_its_depth(depth: float) -> None:
    for prompt, references, _ in prompts_of("kv_retrieval", lengths=[6000], samples=2, depths=[depth]):
        values = list(json.loads(prompt[prompt.index("{") : prompt.rindex("}") + 1]).values())
        assert values.index(references[0]) == pytest.approx(depth * (len(values) - 1), abs=0.5)


def test_several_needles_are_spread_over_the_hay() -> None:
    places = []
    for prompt, _, _ in prompts_of("niah_multikey", lengths=[3000], samples=40):
        body = prompt[prompt.index("afterwards.\n") + 12 : prompt.rindex("\nWhat ")]
        places += [match.start() / len(body) for match in re.finditer("One of the special", body)]
    assert 0.4 < sum(places) / len(places) < 0.6
    assert min(places) < 0.1
    assert max(places) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_samples(name: str) -> None:
    def shas(seed: int, samples: int = 3) -> list[str]:
        return [item.sha for item in items_of(name, lengths=[1500, 2500], depths=[0.5], samples=samples, seed=seed)]

    first = shas(1)
    assert first == shas(1)
    assert len(set(first)) == 6
    assert not set(first) & set(shas(2))
    assert shas(1, 2) == [*first[:2], *first[3:5]], "more samples must leave those there are"


def test_samples_are_those_of_every_machine() -> None:
    """Fixed values: a change of these is a change of the task's version."""
    prompts = {name: prompts_of(name, lengths=[1500], depths=[0.5], samples=1)[0] for name in NAMES}
    found = {name: hashlib.sha256(prompt.encode()).hexdigest()[:8] for name, (prompt, _, _) in prompts.items()}
    assert found == FIXED


FIXED = {
    "niah_single": "a66d7802",
    "niah_multikey": "c8b5b6df",
    "niah_multivalue": "545457bd",
    "niah_multiquery": "e66f38a1",
    "vt": "b07ebda4",
    "cwe": "c6401e0b",
    "fwe": "f52e5743",
    "qa": "9a3581d8",
    "kv_retrieval": "40e824b5",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_scores_1_and_a_wrong_one_0(name: str) -> None:
    kind = list_tasks()[name]
    setting = Setting(lengths=[1500], samples=3, depths=[0.5], text=STORY)
    for reply, score in ((reply_of(name), 1.0), (lambda p: f" {reply_of(name)(p).upper()}, I think", 1.0)):
        subject = Scripted(reply=reply)
        task = kind()
        records = [task.run(subject, [item], setting)[0][0] for item in task.items(subject, setting)]
        assert [record["score"] for record in records] == [score] * 3
        assert all(n >= kind.Options().new_tokens for n in subject.asked)
    for wrong in ("", "42", "the best thing to do in a park"):
        subject = Scripted(reply=lambda p, wrong=wrong: wrong)
        records = [kind().run(subject, [item], setting)[0][0] for item in kind().items(subject, setting)]
        assert [record["score"] for record in records] == [0.0] * 3


@pytest.mark.parametrize("name", NAMES)
def test_the_forced_answer_holds_the_references(name: str) -> None:
    subject = Scripted()
    for item in items_of(name, subject, lengths=[1500], samples=2, depths=[0.0]):
        answer = subject.decode(item.content.answer)
        assert all(reference in answer for reference in item.content.references)
        assert subject.decode(item.content.prompt)[-1] in ":se", "the answer follows the prefix without a space between"
        assert answer[0] == " "


@pytest.mark.parametrize(("name", "parts"), [("niah_multivalue", 4), ("niah_multiquery", 4), ("vt", 5), ("fwe", 3)])
def test_a_part_of_the_references_scores_that_part(name: str, parts: int) -> None:
    separator = " " if name in ("vt", "fwe") else ", "
    subject = Scripted(reply=lambda p: separator.join(reply_of(name)(p).split(separator)[1:]))
    setting = Setting(lengths=[1500], samples=1, text=STORY)
    task = list_tasks()[name]()
    (item,) = task.items(subject, setting)
    assert task.run(subject, [item], setting)[0][0]["score"] == pytest.approx(1 - 1 / parts)


def test_common_words_by_length() -> None:
    for length, repeats, rest in ((2000, 6, 1), (6000, 30, 3)):
        ((prompt, references, _),) = prompts_of("cwe", lengths=[length], samples=1)
        listed = Counter(re.findall(r"\d+\. (\S+)", prompt[prompt.rindex("Below is") : prompt.rindex("\nQuestion")]))
        assert {listed[word] for word in references} == {repeats}
        others = [word for word in listed if word not in references]
        assert {listed[word] for word in others} == {rest}
        assert not [word for word in others for reference in references if reference in word]


def test_common_words_go_on_with_compounds_when_the_list_is_used_up() -> None:
    ((prompt, references, item),) = prompts_of("cwe", lengths=[24_000], samples=1)
    assert sorted(solve_common(prompt)[-1]) == sorted(references)
    assert dict(item.content.more)["units"] > len(WORDS)
    assert item.tokens >= 0.95 * 24_000


def test_frequent_words_follow_zipf() -> None:
    ((prompt, references, _),) = prompts_of("fwe", lengths=[12_000], samples=1)
    counts = Counter(prompt[prompt.index("coded words. ") + 13 : prompt.rindex("\nQuestion:")].split())
    top = counts["..."]
    for rank, word in enumerate(references, 2):
        assert counts[word] == pytest.approx(top / rank**2, rel=0.05)
    assert zeta(2.0) == pytest.approx(3.141592653589793**2 / 6, rel=1e-9)
    assert zeta(1.1) == pytest.approx(10.5844484649508, rel=1e-6)


@pytest.mark.parametrize("length", range(150, 520, 15))
def test_frequent_words_are_never_in_doubt(length: int) -> None:
    try:
        found = prompts_of("fwe", lengths=[length], samples=3)
    except UnsupportedError:
        assert length < 380
        return
    assert [solve_frequent(prompt) for prompt, _, _ in found] == [references for _, references, _ in found]


@pytest.mark.parametrize("name", NAMES)
def test_a_length_too_short_is_refused_with_the_shortest(name: str) -> None:
    with pytest.raises(UnsupportedError, match="at least") as caught:
        items_of(name, lengths=[100], samples=1)
    assert "100" in str(caught.value)
    if isinstance(caught.value, TooShort):  # and the length it names is enough, but for other words drawn
        (item, *_) = items_of(name, lengths=[caught.value.least + 30], samples=1, depths=[0.0])
        assert item.tokens <= caught.value.least + 30


def test_a_text_too_short_for_the_hay_is_refused() -> None:
    kind = list_tasks()["niah_single"]
    task = kind(kind.Options.from_options({"haystack": "text"}))
    with pytest.raises(UnsupportedError, match=r"only \d+ words.*haystack=noise"):
        list(task.items(Scripted(), Setting(lengths=[4000], text=text_of(20))))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("niah_single", {"haystack": "essay"}),
        ("niah_single", {"keys": 4}),
        ("niah_multikey", {"keys": 0}),
        ("niah_single", {"value_type": "emoji"}),
        ("cwe", {"repeats": 3, "rest": 3}),
        ("cwe", {"rest": 30}),
        ("fwe", {"alpha": 1.0}),
        ("vt", {"hops": 0}),
        ("qa", {"file": 3}),
        ("kv_retrieval", {"new_tokens": 0}),
    ],
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        list_tasks()[name].Options.from_options(options)


# the search


@settings(max_examples=200, deadline=None)
@given(
    costs=st.lists(st.integers(1, 9), min_size=1, max_size=300),
    head=st.integers(0, 50),
    least=st.integers(0, 3),
    room=st.integers(1, 1500),
)
def test_fill_finds_the_most_that_fits(costs: list[int], head: int, least: int, room: int) -> None:
    least = min(least, len(costs))
    tokens = [head + sum(costs[:n]) for n in range(len(costs) + 1)]
    draft = Draft(str, "", [], least, len(costs), "more is lacking.")
    if tokens[least] > room:
        with pytest.raises(TooShort, match=f"at least {tokens[least]} tokens"):
            fill(tokens.__getitem__, room, draft, "It")
        return
    if room - tokens[-1] >= 18:  # two of the largest units
        with pytest.raises(UnsupportedError, match="more is lacking"):
            fill(tokens.__getitem__, room, draft, "It")
        return
    if tokens[-1] < room:  # between the two: either is right
        return
    found = fill(tokens.__getitem__, room, draft, "It")
    assert tokens[found] <= room
    assert found == len(costs) or tokens[found + 1] > room or room - tokens[found] < 9


def test_fill_needs_few_looks_at_long_prompts() -> None:
    looked: list[int] = []

    def measure(units: int) -> int:
        looked.append(units)
        return 90 + 7 * units + len(str(units))

    found = fill(measure, 100_000, Draft(str, "", []), "It")
    assert 99_990 <= 90 + 7 * found + len(str(found)) <= 100_000
    assert len([units for units in looked if units > 5000]) <= 4


# questions from a file


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def rows_of(many: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"What is in box {n}?",
            "answers": {"text": [f"toy{n}x", f"Toy{n}x, a toy"], "answer_start": [0, 0]},
            "context": f"Box {n} holds toy{n}x, a toy. " + "It is made of plain wood. " * (n % 5 + 1),
        }
        for n in range(many)
    ]


def test_questions_from_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", rows_of(300))
    found = prompts_of("qa", {"file": file}, lengths=[1500], samples=4)
    for prompt, references, item in found:
        number = int(re.search(r"What is in box (\d+)\?", prompt)[1])  # type: ignore[index]
        assert references == [f"toy{number}x", f"Toy{number}x, a toy"]
        documents = re.findall(r"Document \d+:\n(.+)", prompt)
        assert len(documents) == len(set(documents)) > 5
        assert sum(references[0] in document for document in documents) == 1
        assert 0.95 * 1500 <= item.tokens <= 1500
    kind = list_tasks()["qa"]
    task = kind(kind.Options.from_options({"file": file}))
    assert task.describe(Setting(text=STORY))["file_sha256"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
    setting = Setting(lengths=[1500], samples=1, text=STORY)
    for reply, score in ((found[0][1][1], 1.0), ("toy", 0.0)):  # the second of the references alone is enough
        assert task.match(reply, found[0][1]) == score
    assert [i.sha for i in task.items(Scripted(), setting)] == [found[0][2].sha]


def test_a_file_with_too_few_or_too_long_contexts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="only 4 contexts"):
        prompts_of("qa", {"file": write(tmp_path / "few.jsonl", rows_of(5))}, lengths=[1500], samples=1)
    long = [{**row, "context": row["context"] * 100} for row in rows_of(5)]
    with pytest.raises(UnsupportedError, match="None of 50 questions"):
        prompts_of("qa", {"file": write(tmp_path / "long.jsonl", long)}, lengths=[500], samples=1)
    mixed = [*long, *rows_of(300)[5:]]
    for prompt, _, _ in prompts_of("qa", {"file": write(tmp_path / "mixed.jsonl", mixed)}, lengths=[900], samples=5):
        assert len(prompt) < 5000


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '{"question": "a"}',
        '{"question": "", "answers": ["b"], "context": "b"}',
        '{"question": "a", "answers": ["c"], "context": "b"}',
        '{"question": "a", "answers": 3, "context": "b"}',
        "",
    ],
)
def test_a_bad_file_is_refused_with_its_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text('{"question": "a", "answers": [], "context": "b"}\n' + line)
    with pytest.raises(ConfigError, match="line 2" if line else "no question"):
        prompts_of("qa", {"file": str(file)}, lengths=[1500], samples=1)
    with pytest.raises(ConfigError, match="cannot be read"):
        prompts_of("qa", {"file": str(tmp_path / "none.jsonl")}, lengths=[1500], samples=1)


# tokenizers


@pytest.mark.parametrize("name", NAMES)
def test_bytes_as_tokens(name: str) -> None:
    subject = Scripted(ByteTokenizer())
    for item in items_of(name, subject, {"new_tokens": 1}, lengths=[6000], samples=1, depths=[0.5]):
        assert 0.95 * 6000 <= item.tokens <= 6000
        assert item.content.new_tokens >= len(item.content.answer), "the right answer could not be generated whole"


@pytest.mark.real
@pytest.mark.skipif(not models.smollm2_available(), reason="needs the SmolLM2 package")
def test_smollm2_tokens() -> None:
    from transformers import AutoTokenizer

    file = models.bundled("smollm2")
    with models.quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    for name in NAMES:
        subject = Scripted(tokenizer)
        for item in items_of(name, subject, lengths=[1024, 4096], samples=1, depths=[0.5]):
            low = 0.9 if item.length == 1024 else 0.95  # pairs of UUIDs and documents are large units
            assert low * item.length <= item.tokens <= item.length
            prompt, answer = list(item.content.prompt)[1:], list(item.content.answer)
            assert tokenizer.encode(tokenizer.decode([*prompt, *answer])) == [*prompt, *answer]
            assert reply_of(name)(tokenizer.decode(prompt)).split()[0].strip(",") in tokenizer.decode(answer)


def test_groups() -> None:
    assert GROUPS["niah"]() == list(NAMES[:4])
    assert GROUPS["ruler"]() == list(NAMES[:8])
