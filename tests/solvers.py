"""The answers of the RULER-style tasks, worked out from the prompt's text alone."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any


def solve_niah(prompt: str) -> list[str]:
    body, question = prompt.rsplit("\nWhat ", 1)
    needles = re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", body)
    asked = re.search(r"special magic \w+ for (.+?) mentioned in the provided text\?", question)
    assert asked is not None
    keys = re.split(r", and |, ", asked[1])
    assert len({value for _, value in needles}) == len(needles), "a value comes twice"
    return [value for key in keys for name, value in needles if name == key]


def solve_variables(prompt: str) -> list[list[str]]:
    """For each problem in the prompt, the variables that have the value asked for, in order of assignment."""
    solved = []
    for part in prompt.split("Memorize and track")[1:]:
        value = re.search(r"assigned the value (\d+) in the text above", part)
        assert value is not None
        known: dict[str, str] = {}
        for name, _, source in re.findall(r"VAR (\w+) = (VAR )?(\w+)", part):
            assert name not in known, "a variable is assigned twice"
            known[name] = known.get(source, source)  # an assignment stands after what it refers to
        solved.append([name for name, end in known.items() if end == value[1]])
    return solved


def solve_common(prompt: str) -> list[list[str]]:
    solved = []
    for part in prompt.split("Below is a numbered list")[1:]:
        many = re.search(r"What are the (\d+) most common", part)
        assert many is not None
        listed = re.findall(r"(\d+)\. (\S+)", part[: part.index("\nQuestion:")])
        assert [int(n) for n, _ in listed] == list(range(1, len(listed) + 1))
        ranked = Counter(word for _, word in listed).most_common()
        top = int(many[1])
        assert ranked[top - 1][1] > ranked[top][1], "the last of the common words is as rare as the others"
        solved.append([word for word, _ in ranked[:top]])
    return solved


def solve_frequent(prompt: str) -> list[str]:
    body = prompt[prompt.index("coded words. ") + 13 : prompt.rindex("\nQuestion:")]
    ranked = Counter(word for word in body.split() if word != "...").most_common()
    assert ranked[2][1] > ranked[3][1], "the third and the fourth appear equally often"
    return [word for word, _ in ranked[:3]]


def solve_question(prompt: str) -> list[str]:
    documents = re.findall(r"Document (\d+):\n(.+)", prompt)
    assert [int(n) for n, _ in documents] == list(range(1, len(documents) + 1))
    asked = prompt[prompt.rindex("Question: ") + 10 :]
    patterns = {
        "Where was (.+) born": r"{} was born in (\w+) in \d+",
        "In which year was (.+) born": r"{} was born in \w+ in (\d+)",
        "profession of (.+)\\?": r"{} was born in \w+ in \d+ and became an? (\w+)\.",
        "did (.+) move": r"{} was born in .*?later life \w+ moved to (\w+) and",
        "did (.+) collect": r"{} was born in .*?large collection of (\w+)\.",
    }
    for question, pattern in patterns.items():
        if found := re.search(question, asked):
            return [m[1] for _, text in documents if (m := re.search(pattern.format(found[1]), text))]
    raise AssertionError(asked)


def solve_pairs(prompt: str) -> str:
    pairs = json.loads(prompt[prompt.index("{") : prompt.rindex("}") + 1])
    key = re.search(r'Key: "(.+)"', prompt)
    assert key is not None
    value: str = pairs[key[1]]
    return value


def reply_of(name: str) -> Any:
    """The right answer, worked out from the prompt."""
    solvers = {
        "vt": lambda p: " ".join(solve_variables(p)[-1]),
        "cwe": lambda p: ", ".join(solve_common(p)[-1]),
        "fwe": lambda p: " ".join(solve_frequent(p)),
        "qa": lambda p: " ".join(solve_question(p)),
        "kv_retrieval": solve_pairs,
    }
    return solvers.get(name, lambda p: ", ".join(solve_niah(p)))
