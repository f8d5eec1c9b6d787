"""What a folder with a saved model holds: its form, its encodings, its head, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import EncodingConfig
from ...encodings.learned import Learned
from ...encodings.nope import Nope
from ...errors import ConfigError
from ...marking import BLOCK, HOST
from ...registry import NATIVE, config_from_dict, get_encoding
from ...sites import PiecewiseEncoding, RotationEncoding
from ..adapters import read_marker
from ..configuration import check_block
from .checking import Checker, read_json
from .rope import original_length, positions, rope_of, scalings

CONFIG, ADAPTER = "config.json", "adapter_config.json"
MOST_BYTES = 16 * 2**20

PATCHED, PLAIN, ADAPTED = "patched", "plain", "adapter"
"""With a block of ours in its config; a plain model whose config says it all; an adapter alone."""

TRACELESS = ("ntk", "learned", "rope")
"""Encodings that leave a plain config in which nothing tells of them."""

HEADS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "Model": "feature-extraction",
}
"""Ends of class names, and the Hub's pipeline for such a head."""

TASK_HEADS = {
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "FEATURE_EXTRACTION": "Model",
}
"""peft's task types."""


@dataclass(frozen=True)
class Group:
    """Encodings that share layers.

    Attributes:
        entries: options of each, in order; without those that stand for the native encoding.
        on_top: the native encoding stays underneath.
        layers: None for all.
    """

    entries: tuple[EncodingConfig, ...]
    on_top: bool
    layers: tuple[int, ...] | None


@dataclass(frozen=True)
class Saved:
    """A saved model.

    Attributes:
        form: one of :data:`PATCHED`, :data:`PLAIN`, :data:`ADAPTED`.
        head: end of the class name, such as ``ForCausalLM``; empty where it is unknown.
        architecture: class name in the config.
        auto: the Auto class that loads it.
        host_type: model type of the architecture.
        layers: of the model; None where it is not recorded.
        groups: what is on which layers.
        told_by: where the encodings are known from, in words.
        rotates: the native encoding is a rotation; None where it is not recorded.
        trained, reach: tokens it was trained to, and tokens its config is meant for.
        rope: ``rope_parameters`` of a plain config.
        remote_code: the folder brings code for ``trust_remote_code``.
        tokenizer: the folder has one.
        base: what the folder itself says it was made from.
        transformers: version that wrote the config.
    """

    folder: Path
    form: str
    head: str
    architecture: str
    auto: str
    host_type: str
    layers: int | None
    groups: tuple[Group, ...]
    told_by: str
    rotates: bool | None
    trained: int | None
    reach: int | None
    rope: Mapping[str, Any]
    remote_code: bool
    tokenizer: bool
    base: str
    transformers: str

    @property
    def pipeline(self) -> str | None:
        """The Hub's name for what the head does; None where it has none."""
        return HEADS.get(self.head)

    @property
    def names(self) -> list[str]:
        """Names of the encodings, each once."""
        return list(dict.fromkeys(entry.name for group in self.groups for entry in group.entries))

    @property
    def encodings(self) -> list[EncodingConfig]:
        """The encodings with their options, each once."""
        return list(dict.fromkeys(entry for group in self.groups for entry in group.entries))

    @property
    def replaces(self) -> bool:
        """Whether some layers lost the native encoding to something that is no scaling of it."""
        return any(
            not group.on_top and any(not keeps_rotation(entry) for entry in group.entries) for group in self.groups
        )


def read_folder(folder: Path) -> Saved:
    """Read a folder; ``groups`` is empty where a plain config does not tell.

    Raises:
        ConfigError: it holds no saved model, or a damaged one.
        UnknownEncodingError: it names an encoding this installation does not have.
    """
    if (folder / CONFIG).is_file():
        return _model(folder)
    if (folder / ADAPTER).is_file():
        return _adapter(folder)
    inside = folder / "model"
    hint = f" Did you mean {str(inside)!r}?" if (inside / CONFIG).is_file() or (inside / ADAPTER).is_file() else ""
    raise ConfigError(f"The folder {str(folder)!r} holds no {CONFIG} and no {ADAPTER}, so no saved model.{hint}")


def told(saved: Saved, specs: Sequence[tuple[Sequence[Any], Sequence[int] | None]], by: str) -> Saved:
    """The same with encodings that something else tells of, if a plain config may hide them.

    Args:
        saved: without groups.
        specs: lists of configs and ``"native"`` with their layers.
        by: who says so.

    Raises:
        ConfigError: a model with such an encoding would say so itself.
    """
    groups = tuple(_group(list(entries), layers) for entries, layers in specs)
    hidden = [entry.name for group in groups for entry in group.entries]
    loud = [name for name in hidden if name not in TRACELESS]
    if loud:
        raise ConfigError(
            f"{by} names {', '.join(loud)}, and {saved.folder / CONFIG} says nothing of it: this is not the model that "
            "was made there, or it was saved without its patch."
        )
    found = replace(saved, groups=groups, told_by=by)
    factor = next((getattr(e, "factor", None) for e in found.encodings if e.name == "ntk"), None)
    trained = round(saved.reach / factor) if factor and saved.reach else None
    return replace(found, trained=trained)


def _model(folder: Path) -> Saved:
    raw = read_json(folder / CONFIG, MOST_BYTES)
    check = Checker(str(folder / CONFIG))
    architectures = check.entries(raw, "architectures", most=100, kind=str)
    head, auto = head_of(architectures)
    reach = check.whole(raw, "max_position_embeddings", low=1, high=2**31)
    layers = check.whole(raw, "num_hidden_layers", low=1, high=2**16) or check.whole(raw, "n_layers", high=2**16)
    about: dict[str, Any] = {
        "head": head,
        "architecture": architectures[0] if architectures else "",
        "auto": auto,
        "layers": layers,
        "remote_code": bool(raw.get("auto_map")),
        "tokenizer": any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")),
        "base": check.words(raw, "_name_or_path"),
        "transformers": check.words(raw, "transformers_version", most=40),
    }
    host_type = check.words(raw, "model_type", most=200)
    rope = rope_of(raw)
    check.done()
    block = raw.get(BLOCK)
    if block is None:
        groups = tuple(_group([entry], on) for entry, on in scalings(rope, raw))
        return Saved(
            folder, PLAIN, host_type=host_type, groups=groups, told_by=CONFIG, rotates=bool(rope) or None,
            trained=original_length(rope, raw, reach), reach=positions(raw, host_type, reach), rope=rope, **about,
        )  # fmt: skip
    check_block(block)
    patches = tuple(_group(_entries(patch["encodings"]), patch.get("layers")) for patch in block["patches"])
    rows = positions(raw, block["host_model_type"], reach)
    rotates = "rope_parameters" in block.get(HOST, {})
    return Saved(
        folder, PATCHED, host_type=block["host_model_type"], groups=patches, told_by=CONFIG, rotates=rotates,
        trained=rows, reach=rows, rope={}, **about,
    )  # fmt: skip


def _adapter(folder: Path) -> Saved:
    raw = read_json(folder / ADAPTER, MOST_BYTES)
    check = Checker(str(folder / ADAPTER))
    base = check.words(raw, "base_model_name_or_path")
    task = check.words(raw, "task_type", most=60)
    check.done()
    head = TASK_HEADS.get(task, "")
    marker = read_marker(folder)
    host, shape = ("", {}) if marker.base is None else (marker.base.model_type, marker.base.shape)
    return Saved(
        folder=folder,
        form=ADAPTED,
        head=head,
        architecture="",
        auto=_auto(head) or "AutoModelForCausalLM",
        host_type=host,
        layers=shape.get("layers"),
        groups=tuple(_group(_entries(patch["encodings"]), patch["layers"]) for patch in marker.patches),
        told_by="position_encoding.json",
        rotates=not re.search(r"bert|electra", host) if host else None,
        trained=shape.get("trained_length"),
        reach=None,
        rope={},
        remote_code=False,
        tokenizer=(folder / "tokenizer_config.json").is_file(),
        base=base or (marker.base.name if marker.base else None) or "",
        transformers="",
    )


def head_of(architectures: Sequence[str]) -> tuple[str, str]:
    """``ForCausalLM`` and ``AutoModelForCausalLM``, from a class name."""
    name = architectures[0] if architectures else ""
    found = re.search(r"(For[A-Z]\w*|LMHeadModel|Model)$", name)
    head = found[1] if found else ""
    return head, _auto(head) or "AutoModel"


def _auto(head: str) -> str:
    """The Auto class of a head; empty for none."""
    import transformers

    if head in ("LMHeadModel", "Model"):
        return "AutoModelForCausalLM" if head == "LMHeadModel" else "AutoModel"
    name = f"AutoModel{head}"
    return name if head and name.isidentifier() and hasattr(transformers, name) else ""


def _entries(entries: Sequence[Any]) -> list[Any]:
    """Configs, and ``"native"``."""
    named = [entry.get("name") if isinstance(entry, Mapping) else None for entry in entries]
    return [name if name in NATIVE else config_from_dict(entry) for name, entry in zip(named, entries, strict=True)]


def _group(entries: Sequence[Any], layers: Sequence[int] | None) -> Group:
    kept = tuple(entry for entry in entries if entry not in NATIVE)
    return Group(kept, len(kept) < len(entries), None if layers is None else tuple(layers))


def keeps_rotation(entry: EncodingConfig) -> bool:
    """Whether an encoding is a change of the rotation or of the position table, not something else in its place."""
    kind = get_encoding(entry.name)
    if issubclass(kind, Nope):
        return False
    return issubclass(kind, (RotationEncoding, PiecewiseEncoding, Learned))
