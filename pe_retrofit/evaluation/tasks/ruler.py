"""The tasks in the style of RULER, together."""

from ..task import register_group
from . import niah, questions, variables, words

NEEDLES = ("niah_single", "niah_multikey", "niah_multivalue", "niah_multiquery")

register_group("niah", NEEDLES)
register_group("ruler", (*NEEDLES, "vt", "cwe", "fwe", "qa"))

__all__ = ["niah", "questions", "variables", "words"]
