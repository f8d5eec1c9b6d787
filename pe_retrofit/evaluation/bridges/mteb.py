"""MTEB's retrieval tasks in the format of LongEmbed, on local files, with the encoder under test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, UnsupportedError
from ..embedding import AUTO, embed, find_pooling

if TYPE_CHECKING:
    from ..subject import Subject

SOURCE = "Zhu et al. 2024, LongEmbed: Extending Embedding Models for Long Context Retrieval, arXiv 2404.12096"


class MtebEncoder:
    """What MTEB calls an encoder, around a :class:`~pe_retrofit.evaluation.subject.Subject`.

    Texts are embedded as in the task ``encoder``: nothing is padded, and a text that the model's table of positions
    cannot hold is refused, where sentence-transformers would cut it.

    Args:
        subject: an encoder of the BERT family, patched or not.
        pooling: ``auto``, ``mean``, ``cls`` or ``max``.
        batch_size: texts per forward, or ``auto``.
    """

    def __init__(self, subject: Subject, *, pooling: str = AUTO, batch_size: int | str = AUTO) -> None:
        require()
        self.subject, self.batch_size = subject, batch_size
        self.pooling = find_pooling(subject.model, pooling)

    def encode(self, inputs: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_: Any) -> Any:
        """Unit vectors, float32 ``[texts, hidden_size]`` as a numpy array, of batches that hold ``text``."""
        texts = [text for batch in inputs for text in batch["text"]]
        subject = self.subject
        rows = [[*subject.start, *subject.encode(text.strip()), *subject.end] for text in texts]
        return embed(subject, rows, self.pooling.mode, self.batch_size).numpy()

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines ``[n, m]``."""
        one, other = _rows(embeddings1), _rows(embeddings2)
        return one @ other.T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines ``[n]``."""
        return (_rows(embeddings1) * _rows(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB writes about the model."""
        from mteb.models import ModelMeta

        return ModelMeta.create_empty({"name": "pe_retrofit/encoder", "revision": "local"})


def require() -> Any:
    """The package ``mteb``.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import mteb
    except ImportError as error:
        raise UnsupportedError(
            "MTEB's tasks need the package mteb: pip install 'pe_retrofit[mteb]'. The task 'encoder' asks the same "
            "kind of question without it."
        ) from error
    return mteb


def longembed_task(folder: str | Path) -> Any:
    """An MTEB retrieval task from local files as LongEmbed has them; nothing is downloaded.

    Args:
        folder: with ``corpus.jsonl`` (``doc_id``, ``text``), ``queries.jsonl`` (``qid``, ``text``) and ``qrels.jsonl``
            (``qid``, ``doc_id``). Where rows have ``context_length`` each of its values is a split,
            ``test_256``, ...; else all is the split ``test``.

    Raises:
        ConfigError: a file is missing or wrong, or names what another does not have.
    """
    require()
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    root = Path(folder)
    corpus = _split(root / "corpus.jsonl", ("doc_id", "text"))
    queries = _split(root / "queries.jsonl", ("qid", "text"))
    relevant = _split(root / "qrels.jsonl", ("qid", "doc_id"))
    if not set(queries) == set(corpus) == set(relevant):
        raise ConfigError(f"The files of {str(folder)!r} differ in their values of context_length.")
    data: dict[str, Any] = {}
    for split, rows in corpus.items():
        documents = {row["doc_id"] for row in rows}
        asked = {row["qid"] for row in queries[split]}
        pairs: dict[str, dict[str, int]] = {}
        for row in relevant[split]:
            if row["doc_id"] not in documents or row["qid"] not in asked:
                raise ConfigError(f"{root / 'qrels.jsonl'} names {row}, which corpus or queries do not have ({split}).")
            pairs.setdefault(row["qid"], {})[row["doc_id"]] = 1
        data[split] = {
            "corpus": Dataset.from_list([{"id": r["doc_id"], "text": r["text"], "title": ""} for r in rows]),
            "queries": Dataset.from_list([{"id": r["qid"], "text": r["text"]} for r in queries[split]]),
            "relevant_docs": pairs,
            "top_ranked": None,
        }

    class LocalLongEmbed(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalLongEmbed",
            description=f"Local retrieval data in the format of LongEmbed ({SOURCE}).",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=sorted(data),
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_1",
            dataset={"path": root.name or "local", "revision": "local"},
        )

        def load_data(self, *_: Any, **__: Any) -> None:
            self.dataset, self.data_loaded = {"default": data}, True

    return LocalLongEmbed()


def run_longembed(
    subject: Subject, folder: str | Path, *, pooling: str = AUTO, batch_size: int | str = AUTO
) -> dict[str, Any]:
    """MTEB's scores of an encoder on local files as LongEmbed has them.

    Returns:
        ``{"main_score", "pooling", "scores": {split: {name: value}}, "skipped": {split: reason}}``. The main score is
        ``ndcg_at_1``, which with one right document per query is acc@1. Skipped are splits with texts that the model's
        table of positions cannot hold.

    Raises:
        ConfigError, UnsupportedError: as :func:`longembed_task`.
    """
    task, encoder = longembed_task(folder), MtebEncoder(subject, pooling=pooling, batch_size=batch_size)
    task.load_data()
    scores: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}
    for split in task.metadata.eval_splits:
        try:
            found = task.evaluate(encoder, split, encode_kwargs={})["default"]
        except UnsupportedError as error:
            skipped[split] = str(error)
            continue
        scores[split] = {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}
    return {
        "main_score": task.metadata.main_score,
        "pooling": encoder.pooling.mode,
        "scores": scores,
        "skipped": skipped,
    }


def write_longembed(folder: str | Path, splits: dict[int, tuple[Sequence[str], Sequence[str], Sequence[int]]]) -> Path:
    """Write local files as LongEmbed has them.

    Args:
        folder: made as needed.
        splits: length -> documents, queries, and the number of each query's document.

    Returns:
        The folder.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[dict[str, Any]]] = {"corpus": [], "queries": [], "qrels": []}
    for length, (documents, queries, right) in splits.items():
        about = {"context_length": length}
        files["corpus"] += [{"doc_id": f"{length}-d{i}", "text": text, **about} for i, text in enumerate(documents)]
        files["queries"] += [{"qid": f"{length}-q{i}", "text": text, **about} for i, text in enumerate(queries)]
        files["qrels"] += [
            {"qid": f"{length}-q{i}", "doc_id": f"{length}-d{gold}", **about} for i, gold in enumerate(right)
        ]
    for name, rows in files.items():
        fresh = root / f"{name}.jsonl.new"
        fresh.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        fresh.replace(root / f"{name}.jsonl")
    return root


def _split(path: Path, fields: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, row in _rows_of(path):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in fields):
            raise ConfigError(f"Line {number} of {path} needs the texts {', '.join(fields)}.")
        length = row.get("context_length")
        splits.setdefault("test" if length is None else f"test_{length}", []).append(row)
    if not splits:
        raise ConfigError(f"{path} is empty.")
    return splits


def _rows_of(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if line.strip():
                yield number, json.loads(line)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON lines: {error}") from error


def _rows(vectors: Any) -> Any:
    import torch

    rows = torch.as_tensor(vectors).float()
    return torch.nn.functional.normalize(rows if rows.ndim > 1 else rows[None], dim=-1)
