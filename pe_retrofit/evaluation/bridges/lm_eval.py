"""Tasks named ``lm_eval/NAME``: questions and scores of lm-evaluation-harness, in the same run and results file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...config import flag
from ...errors import UnsupportedError
from ..metrics import contained
from ..task import PROVIDERS, Item, Record, Task, TaskOptions, fingerprint
from .harness import OFFLINE, ask, harness_model, load_task, require, save_tokenizer, score_of, silent

if TYPE_CHECKING:
    from ..setting import Setting
    from ..subject import Subject

PREFIX = "lm_eval"

HELP = (
    "any task of lm-evaluation-harness that scores 0 to 1, by its own code (pip install 'pe_retrofit[eval]'). Without "
    f"a network: {', '.join(OFFLINE)}. Options: replay=true answers again with our own code; include=FOLDER adds tasks"
)

NOTES: Mapping[str, str] = {
    "ruler_cwe": "lm-eval drops the solved example in front of the question: not comparable with NVIDIA's table.",
    "ruler_qa_squad": "lm-eval divides by the number of aliases: not comparable with NVIDIA's table.",
    "ruler_qa_hotpot": "lm-eval divides by the number of aliases: not comparable with NVIDIA's table.",
}


@dataclass(frozen=True)
class HarnessOptions(TaskOptions):
    """Options of lm-eval's tasks."""

    name = PREFIX
    include: str = field(default="", metadata={"help": "folder with task files of one's own, searched first"})
    replay: bool = flag(False, help="answer again with our own code, and count how often the scores agree")

    def check(self) -> Sequence[str]:
        """The folder exists."""
        if not isinstance(self.include, str) or (self.include and not Path(self.include).is_dir()):
            return [f"include={self.include!r} is no folder"]
        return ()


@dataclass
class Prepared:
    """What the samples of a task share.

    Attributes:
        folder: holds the tokenizer for as long as it is needed.
        tokenizer: as lm-eval loads it.
        longest: tokens of the longest prompt and its answer.
    """

    folder: tempfile.TemporaryDirectory[str]
    tokenizer: Any
    longest: int = 0


@dataclass(frozen=True)
class Question:
    """One sample of a task of lm-eval.

    Attributes:
        task: lm-eval's object, with the samples of one length.
        doc: number of the sample in it.
        prompt: what is put to the model.
        new_tokens: how many tokens may be generated; 0 when answers are forced.
        prepared: what its task shares.
    """

    task: Any
    doc: int
    prompt: str
    new_tokens: int
    prepared: Prepared


class HarnessTask(Task):
    """A task of lm-eval: its samples, its prompts, its way of running a model, its score.

    ``samples`` of the setting is how many of its samples are asked, at each length by itself. A task that has no
    lengths is asked once, and stands under the shortest one.

    RULER's lengths in lm-eval leave out the beginning of the answer that it puts behind the question, so a prompt may
    be some tokens longer than its length; ``actual_lengths`` of the results counts all of them.
    """

    harness_name: ClassVar[str]
    metric = "score"
    source = "Gao et al., lm-evaluation-harness, https://github.com/EleutherAI/lm-evaluation-harness"
    notice = "lm-eval makes all samples of each length first, however few are asked (500 for RULER's tasks)"
    Options = HarnessOptions

    def __init__(self, options: TaskOptions | None = None) -> None:
        super().__init__(options)
        self._model: tuple[Any, Any] = (None, None)

    def items(self, subject: Subject, setting: Setting) -> Iterator[Item]:
        folder = tempfile.TemporaryDirectory(prefix="pe_retrofit_tokenizer_")  # lm-eval remembers tokenizers by folder
        where = Path(folder.name)
        shared = Prepared(folder, save_tokenizer(subject.tokenizer, where))
        for length in setting.lengths:
            task = load_task(self.harness_name, length, shared.tokenizer, where, setting.seed, self.options.include)
            found = list(self._questions(task, setting.samples, length, shared))
            for item in found:
                subject.check_length(item.tokens)
                shared.longest = max(shared.longest, item.tokens)
                yield item
            if "max_length" not in task.eval_docs[found[0].content.doc]:
                return  # it has no lengths

    def _questions(self, task: Any, samples: int, length: int, shared: Prepared) -> Iterator[Item]:
        there = len(task.eval_docs)
        if there < samples:
            raise UnsupportedError(
                f"lm-eval's task {self.harness_name!r} has {there} samples at {length} tokens, and {samples} are asked."
            )
        with silent():
            task.build_all_requests(limit=samples, rank=0, world_size=1)
        requests: dict[int, list[Any]] = {}
        for instance in task.instances:
            requests.setdefault(instance.doc_id, []).append(instance)
        for doc, instances in requests.items():
            made = [_measure(instance, shared.tokenizer) for instance in instances]
            yield Item(
                key=f"{length}/{doc}",
                length=length,
                depth=None,
                index=doc,
                tokens=max(tokens for tokens, _ in made),
                shape=None,  # lm-eval pads batches on the left; alone, an answer depends on its own prompt only
                sha=fingerprint([instance.args for instance in instances]),
                content=Question(task, doc, instances[0].args[0], made[0][1], shared),
            )

    def run(self, subject: Subject, items: Sequence[Item], setting: Setting) -> list[list[Record]]:
        return [[self._answer(subject, item)] for item in items]

    def _answer(self, subject: Subject, item: Item) -> Record:
        question: Question = item.content
        sample = ask(self._harness(subject, question.prepared), self.harness_name, question.task, question.doc)
        metric, score = score_of(sample, self.harness_name, item.length, _metrics(question.task))
        more: dict[str, Any] = {"metric": metric, "doc_hash": sample["doc_hash"], "prompt_hash": sample["prompt_hash"]}
        if question.new_tokens:
            more["generated"] = sample["resps"][0][0]
        references = sample["target"] if isinstance(sample["target"], list) else [sample["target"]]
        more["references"] = references
        if self.options.replay:
            more |= self._replayed(subject, question, references, score)
        return item.record(score=score, tokens=1, **more)

    def _replayed(self, subject: Subject, question: Question, references: Sequence[Any], score: float) -> Record:
        if not question.new_tokens:
            raise UnsupportedError(
                f"replay=true: lm-eval's task {self.harness_name!r} does not generate, so there is nothing to replay."
            )
        text, again = replay(
            subject,
            question.prepared.tokenizer(question.prompt).input_ids,
            question.new_tokens,
            list(map(str, references)),
        )
        return {"replayed": text, "generated_score": again, "agrees": abs(again - score) < 1e-9}

    def _harness(self, subject: Subject, shared: Prepared) -> Any:
        if self._model[0] is not subject:
            self._model = (subject, harness_model(subject.model, shared.tokenizer, shared.longest))
        return self._model[1]

    def describe(self, setting: Setting) -> dict[str, Any]:
        found = {**super().describe(setting), "lm_eval": require(), "decoding": "lm-eval's, one prompt at a time"}
        if self.harness_name in NOTES:
            found["note"] = NOTES[self.harness_name]
        return found


def replay(subject: Subject, prompt: Sequence[int], new_tokens: int, references: Sequence[str]) -> tuple[str, float]:
    """Answer a prompt of lm-eval with this package's own generation and metric: the text and its score, 0 to 1.

    lm-eval also stops at the tokenizer's end of text, which the model's own settings may not name.
    """
    tokens = subject.generate([prompt], new_tokens)[0]
    end = subject.tokenizer.eos_token_id
    text = subject.decode(tokens[: tokens.index(end)] if end in tokens else tokens)
    return text, contained(text, references)


def named(name: str) -> type[Task]:
    """The class of the task ``lm_eval/<name>``; whether lm-eval has it shows when its samples are made.

    Raises:
        UnsupportedError: lm-eval is not installed.
    """
    version = require()
    about = {
        "name": f"{PREFIX}/{name}",
        "harness_name": name,
        "title": f"{name} of lm-eval",
        "recipe": f"task {name} of lm-evaluation-harness {version}: its samples, prompts, generation and score",
        "__doc__": HarnessTask.__doc__,
    }
    return type("HarnessTask", (HarnessTask,), about)


def _measure(instance: Any, tokenizer: Any) -> tuple[int, int]:
    """Tokens a request takes, generated ones included, and how many those are."""
    context, given = instance.args[0], instance.args[1]
    if isinstance(given, Mapping):
        new = int(given.get("max_gen_toks", given.get("max_new_tokens", 256)))
        return len(tokenizer(context).input_ids) + new, new
    return len(tokenizer(context).input_ids) + len(tokenizer(given, add_special_tokens=False).input_ids), 0


def _metrics(task: Any) -> list[str]:
    return [str(entry["metric"]) for entry in task.config.metric_list or []]


PROVIDERS[PREFIX] = named
