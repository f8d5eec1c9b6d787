"""Lengths too short for a task of lm-eval, found before lm-eval looks for a shorter prompt for ever.

Two of its tasks shrink a prompt in a loop that has no end when the smallest does not fit, and that not even Ctrl-C
leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import UnsupportedError
from .surroundings import INSTALL, seeded, silent

VT_EXAMPLE, VT_ANSWER, CWE_ANSWER = 500, 30, 150
"""lm-eval's constants, in tokens; the last with some room, since its words are drawn."""


def check_fits(name: str, length: int, tokenizer: Any, seed: int) -> None:
    """Refuse lengths at which lm-eval would look for a shorter prompt for ever, or drop what it asks for.

    Raises:
        UnsupportedError: with the tokens the shortest prompt takes.
    """
    rules = {"ruler_vt": _shortest_vt, "ruler_cwe": _shortest_cwe}
    if name not in rules:
        return
    try:
        with silent(), seeded(seed):
            shortest = rules[name](lambda text: len(tokenizer(text).input_ids), length)
    except ImportError as error:
        raise UnsupportedError(
            f"lm-eval's task {name!r} lacks a package: {error}. Install it with: {INSTALL}"
        ) from error
    if shortest > length:
        raise UnsupportedError(
            f"lm-eval cannot make samples of {name!r} with {length} tokens: with this tokenizer a prompt and its "
            f"answer take at least about {shortest}."
        )


def _shortest_vt(count: Callable[[str], int], length: int) -> int:
    from lm_eval.tasks.ruler import vt_utils as vt

    made = [vt.generate_input_output(noises, 1, 4, is_icl=True) for noises in (5, 10)]
    solved = [count(f"{text} {names}") for text, names in made]
    fitting = [tokens for tokens in solved if tokens + VT_ANSWER <= VT_EXAMPLE]
    if not fitting:
        raise UnsupportedError(
            f"lm-eval cannot make samples of 'ruler_vt' for this tokenizer at any length: the solved example in front "
            f"may take {VT_EXAMPLE} tokens, and the shortest takes {solved[0] + VT_ANSWER}."
        )
    prompt, answer = vt.generate_input_output(10, 1, 4)
    return max(fitting) + count(f"{prompt} {answer}") + VT_ANSWER


def _shortest_cwe(count: Callable[[str], int], length: int) -> int:
    from lm_eval.tasks.ruler import cwe_utils as cwe

    example, prompt, answer = cwe.generate_input_output(10, length)
    return count(f"{example}\n{prompt} {' '.join(answer)}") + CWE_ANSWER
