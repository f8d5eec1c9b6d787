"""The length-generalisation tasks: answers by an independent solver, sizes as cells, scripted and real models."""

from __future__ import annotations

import random
import re
import string
from typing import Any

import pytest
from bytetokens import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from pieces import Scripted
from tiny import llama

from pe_retrofit import ConfigError, UnsupportedError
from pe_retrofit.evaluation import Setting, evaluate_model, list_tasks
from pe_retrofit.evaluation import tasks as _tasks  # noqa: F401  (registers them)
from pe_retrofit.evaluation.cells import by_length
from pe_retrofit.evaluation.tables import tables
from pe_retrofit.evaluation.task import GROUPS
from pe_retrofit.evaluation.tasks.algorithms import SIZES, problem

NAMES = ("copy", "reverse", "addition", "sort", "lookup")


def solve(question: str) -> str:
    """The answer, from the question alone, digit by digit where digits are added."""
    verb, rest = question.removesuffix("\nAnswer:").split(": ", 1)
    if verb == "Copy":
        return rest
    if verb == "Reverse":
        return "".join(reversed(rest))
    if verb == "Sort":
        todo, done = [int(n) for n in rest.split()], []
        while todo:
            done.append(todo.pop(todo.index(min(todo))))
        return " ".join(str(n) for n in done)
    if verb == "Look up":
        pairs, key = rest.split("; ")
        return dict(re.findall(r"(\w+) (\d+)", pairs))[key]
    assert verb == "Add"
    first, second = (part.split()[::-1] for part in rest.split(" + "))
    digits, carry = [], 0
    for a, b in zip(first, second, strict=True):
        carry, digit = divmod(int(a) + int(b) + carry, 10)
        digits.append(str(digit))
    return " ".join((digits + ["1"] * carry)[::-1])


def size_of(name: str, question: str) -> int:
    """How large a problem is, counted in its question."""
    rest = question.removesuffix("\nAnswer:").split(": ", 1)[1]
    if name == "lookup":
        return rest.count(",") + 1
    return len(rest.split(" + ")[0].split())


def items_of(name: str, subject: Any = None, *, sizes: Any = (2, 5, 11), **setting: Any) -> list[Any]:
    kind = list_tasks()[name]
    return list(kind(kind.Options(sizes=sizes)).items(subject or Scripted(), Setting(**setting)))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 60))
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_right_and_sizes_exact(name: str, seed: int, size: int) -> None:
    question, answer = problem(name, random.Random(seed), size)
    assert answer == f" {solve(question)}\n"
    assert size_of(name, question) == size


def test_looking_up_leaves_no_doubt() -> None:
    for seed in range(20):
        question, _ = problem("lookup", random.Random(seed), 300)
        found = re.findall(r"(\w\w) (\d\d\d)", question)
        assert len({key for key, _ in found}) == len({value for _, value in found}) == len(found) == 300


def test_letters_and_digits_are_all_drawn() -> None:
    question, _ = problem("copy", random.Random(0), 512)
    assert set(string.ascii_lowercase) <= set(question)
    assert all(problem("addition", random.Random(s), 1)[0][5] != "0" for s in range(50)), "a number begins with 0"


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_sizes(name: str) -> None:
    subject = Scripted(ByteTokenizer())
    items = items_of(name, subject, samples=3, lengths=[512, 1024])
    assert [item.length for item in items] == [2, 2, 2, 5, 5, 5, 11, 11, 11]
    assert len({item.key for item in items}) == 9
    assert len({item.sha for item in items}) == 9
    for item in items:
        prompt = subject.decode(item.content.prompt)
        assert size_of(name, prompt) == item.length
        assert item.depth is None
        assert subject.decode(item.content.answer) == f" {solve(prompt)}\n"
        assert item.tokens == len(item.content.prompt) + len(item.content.answer)
    again = items_of(name, subject, samples=3, lengths=[512, 1024])
    assert [item.sha for item in again] == [item.sha for item in items]
    assert [item.sha for item in items_of(name, subject, samples=3, lengths=[256])] == [item.sha for item in items]
    other = items_of(name, subject, samples=3, seed=1)
    assert not {item.sha for item in other} & {item.sha for item in items}


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_solves_small_problems_only(name: str, generate: bool) -> None:
    def reply(prompt: str) -> str:
        right = solve(prompt)
        return f" {right}\n" if size_of(name, prompt) <= 5 else f" {right[:-1]}\n"  # one character is missing

    subject = Scripted(ByteTokenizer(), reply)
    task = list_tasks()[name](list_tasks()[name].Options(sizes=(2, 5, 11)))
    setting = Setting(lengths=[1024], samples=3, generate=generate)
    records = [task.run(subject, [item], setting)[0][0] for item in task.items(subject, setting)]
    assert [record["score"] for record in records] == [1.0] * 6 + [0.0] * 3
    if generate:
        assert [record["generated_score"] for record in records] == [1.0] * 6 + [0.0] * 3
        assert all(record["agrees"] for record in records)
    rows = by_length(records, None, "score")
    assert [(row["length"], row["mean"]) for row in rows] == [(2, 1.0), (5, 1.0), (11, 0.0)]


@pytest.mark.parametrize("name", NAMES)
def test_more_than_the_answer_is_not_the_answer(name: str) -> None:
    task = list_tasks()[name]()
    assert task.match(" a b\n", ["a b"]) == 1
    assert task.match(" a b c", ["a b"]) == 0
    assert task.match(" a", ["a b"]) == 0


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"copy of size 40 needs \d+ tokens.*copy.sizes"):
        items_of("copy", Scripted(ByteTokenizer()), sizes=(2, 40), lengths=[64, 128])
    assert len(items_of("copy", Scripted(ByteTokenizer()), sizes=(2, 40), lengths=[64, 256], samples=1)) == 2


@pytest.mark.parametrize("sizes", [(), (0,), (4, 2), (2, 2), (1.5,), (True,), 4, "4", (513,), tuple(range(1, 70))])
def test_wrong_sizes_are_refused(sizes: Any) -> None:
    with pytest.raises(ConfigError, match="sizes"):
        list_tasks()["copy"].Options(sizes=sizes)


def test_wrong_problems_are_refused() -> None:
    with pytest.raises(ConfigError, match="no algorithm"):
        problem("multiply", random.Random(0), 3)
    with pytest.raises(ConfigError, match="size=0"):
        problem("copy", random.Random(0), 0)


def test_group_and_default_sizes() -> None:
    assert GROUPS["algorithms"]() == list(NAMES)
    assert list_tasks()["sort"].Options().sizes == SIZES


def test_a_table_has_a_column_for_each_size() -> None:
    model = llama(vocab_size=260)
    results = evaluate_model(
        model,
        ByteTokenizer(),
        tasks=["algorithms"],
        options={"lookup": {"sizes": [2, 3]}, **{name: {"sizes": [2, 4, 9]} for name in NAMES[:-1]}},
        lengths=[128],
        samples=2,
        generate=True,
    )
    found = list(tables(results))
    assert [list(table.head) for table in found] == [["problem size", "2", "4", "9"]] * 4 + [["problem size", "2", "3"]]
    for task in results["tasks"].values():
        assert task["status"] == "ok"
        assert "effective_length" not in task, "sizes are no lengths of a context"
        assert all(row["agreement"] == 1 for row in task["by_length"])
