"""What to train on, and how it is cut into rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...config import StrictOptions, checked, choice, flag, integer, number, words

LONGEST = 1 << 24
"""Most tokens of a row, and most positions."""

OBJECTIVES = ("auto", "causal", "mlm", "completion")
PACKINGS = ("windows", "packed", "padded")
POSITIONS = ("normal", "pose", "randomized")


def _texts(value: Any) -> str | None:
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    good = all(isinstance(v, str) and 0 < len(v) <= 1000 and "\0" not in v for v in listed)
    if good and 0 < len(listed) <= 100:
        return None
    return "must be a text's name of 1 to 1000 characters, or a list of 1 to 100 of them"


def _stages(value: Any) -> str | None:
    if value is None:
        return None
    example = "such as [[512, 0.5], [1024, 0.25], [2048, 0.25]]"
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= 20:
        return f"must be a list of 1 to 20 stages [tokens per row, share], {example}"
    for stage in value:
        if not isinstance(stage, (list, tuple)) or len(stage) != 2:
            return f"must hold stages [tokens per row, share], {example}"
        tokens, share = stage
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 4 <= tokens <= LONGEST:
            return f"must hold whole numbers of tokens from 4 to {LONGEST}, {example}"
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            return f"must hold shares above 0 and at most 1, {example}"
    total = sum(share for _, share in value)
    return None if abs(total - 1) < 1e-6 else f"must have shares that add up to 1, not to {total:g}"


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # too long for a file's name
        return False


@dataclass(frozen=True)
class DataOptions(StrictOptions):
    """Options of the training data; see docs/data.md.

    PoSE: Zhu et al., PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training, 2023, arXiv
    2309.10400. Randomised positions: Ruoss et al., Randomized Positional Encodings Boost Length Generalization of
    Transformers, 2023, arXiv 2305.16843.
    """

    name = "data"
    noun: ClassVar[str] = "section"

    text: str | Sequence[str] = checked(
        MISSING,
        _texts,
        help="a .txt, .md, .jsonl, .json, .csv or .parquet file, a folder, hub:NAME[:CONFIG[:SPLIT[:FIELD]]], python, "
        "python_topics or python_sources; several as a list or joined by commas",
    )
    field: str | None = words(most=200, help="column of the rows that holds the text; by default text")
    objective: str = choice("auto", OBJECTIVES, help="auto: causal for decoders, mlm for encoders")
    length: int = integer(512, low=4, high=LONGEST, help="tokens per row")
    packing: str = choice(
        "windows",
        PACKINGS,
        help="windows: consecutive pieces of the whole text; packed: whole documents side by side, which do not see "
        "each other; padded: one document per row",
    )
    held_out: float = number(
        0.05,
        low=0,
        high=1e12,
        help="kept from training for evaluation, at the end of the text: a share below 1 (at least one row), or a "
        "number of tokens; 0: nothing",
    )
    tokens: int | None = integer(
        None,
        low=1,
        high=1 << 50,
        optional=True,
        help="training tokens in one epoch, repeating or cutting the text; by default the text once",
    )
    shuffle: bool = flag(True, help="rows in random order, another one in each pass over the text")
    seed: int = integer(0, low=0, high=2**63 - 1, help="of the order and of all draws")
    positions: str = choice("normal", POSITIONS, help="position ids of a row: 0, 1, 2 ...; PoSE; or a random subset")
    target_length: int | None = integer(
        None, low=4, high=LONGEST, optional=True, help="positions that pose and randomized reach"
    )
    chunks: int = integer(2, low=2, high=1024, help="pieces of a row between which pose skips positions")
    curriculum: Sequence[Sequence[float]] | None = checked(
        None,
        _stages,
        help="stages [tokens per row, share of the epoch], such as [[512, 0.5], [1024, 0.5]]; the tokens of a batch "
        "stay the same",
    )
    mlm_probability: float = number(0.15, low=0.01, high=0.9, help="share of tokens to predict with mlm")
    streaming: bool = flag(False, help="read rows while training instead of holding all tokens in memory")
    buffer_size: int = integer(1000, low=2, high=1_000_000, help="documents that streaming shuffles among")

    def __post_init__(self) -> None:
        stages = self.curriculum
        if isinstance(stages, (list, tuple)):
            plain = tuple(tuple(stage) if isinstance(stage, list) else stage for stage in stages)
            object.__setattr__(self, "curriculum", plain)
        super().__post_init__()

    def check(self) -> Sequence[str]:
        """Problems that concern several fields."""
        return [*self._rows(), *self._positions(), *self._streaming()]

    def _rows(self) -> list[str]:
        problems = []
        if self.objective == "completion" and self.packing == "windows":
            problems.append(
                "objective='completion' needs rows that are whole examples: set packing to 'padded' or 'packed'"
            )
        if self.objective == "mlm" and self.packing == "packed":
            problems.append(
                "packing='packed' is for decoders, since encoders attend across documents: set packing to 'padded' or "
                "'windows'"
            )
        if self.tokens is not None and self.tokens < self.length:
            problems.append(f"tokens={self.tokens} is less than one row of length={self.length}: set it to at least it")
        if self.curriculum is not None:
            lengths = [int(tokens) for tokens, _ in self.curriculum]
            if self.packing != "windows":
                problems.append(f"curriculum needs rows of equal length: packing='windows', not {self.packing!r}")
            if max(lengths) != self.length or any(self.length % n for n in lengths):
                problems.append(
                    f"curriculum has rows of {', '.join(map(str, lengths))} tokens: the longest must be "
                    f"length={self.length}, and every other must divide it"
                )
            if self.streaming:
                problems.append("curriculum needs the whole text: set streaming to false")
        return problems

    def _positions(self) -> list[str]:
        if self.positions == "normal":
            if self.target_length is not None:
                return [f"target_length={self.target_length} needs positions='pose' or 'randomized'"]
            return []
        problems = []
        if self.target_length is None or self.target_length < self.length:
            problems.append(
                f"positions={self.positions!r} needs a target_length of at least length={self.length}, got "
                f"{self.target_length}"
            )
        if self.packing != "windows":
            problems.append(
                f"positions={self.positions!r} needs packing='windows', not {self.packing!r}: skipped positions would "
                "look like new documents, or be padding"
            )
        shortest = int(min((n for n, _ in self.curriculum), default=self.length) if self.curriculum else self.length)
        if self.positions == "pose" and self.chunks > shortest:
            problems.append(f"chunks={self.chunks} is more than the {shortest} tokens of a row")
        return problems

    def _streaming(self) -> list[str]:
        if self.streaming and 0 < self.held_out < 1:
            return [
                f"held_out={self.held_out:g} is a share, but a stream has no known end: give a number of tokens, which "
                "are then taken from its beginning, or 0"
            ]
        return []

    def names(self) -> list[str]:
        """The single texts; a name that exists as a file keeps its commas."""
        listed = [self.text] if isinstance(self.text, str) else list(self.text)
        split = [name.split(",") if "," in name and not _exists(name) else [name] for name in listed]
        return [name.strip() for names in split for name in names if name.strip()]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = super().to_dict()
        if self.curriculum is not None:
            plain["curriculum"] = [list(stage) for stage in self.curriculum]
        return plain
