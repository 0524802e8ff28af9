"""`evaluation_sets`: what every model is measured on, and which training documents hold some of it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from training.data.conversations.distractors import Distractors
from training.data.conversations.gathering import excerpt
from training.data.conversations.items import ID_LENGTH, Item, items_of, unique_by_prompt
from training.data.conversations.safety import read_prompts
from training.data.conversations.shortfall import unused_text
from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.tables import EXCLUSION_SCHEMA, fraction, read_rows, text_id, write_table
from training.data.text.documents import Split
from training.data.text.overlap import EvaluationItem, Overlap, OverlapIndex
from training.data.text.word_codes import batches_of
from training.errors import RecipeError
from training.job.context import StageContext
from training.job.parts import Part, Pool
from training.specs.base import canonical_json
from training.specs.conversations import PLAIN_TEXT
from training.specs.corpus import GENERAL
from training.specs.evaluation_sets import EvaluationSetsSection as Section
from training.specs.job import StageResult
from training.specs.tasks import TASKS_FILE, TASKS_FOLDER, misfits, read_task_file

_CHOICES = 4
# A text that more training documents hold is boilerplate, such as a licence. It is no use as an item, and excluding all
# documents that hold it could empty the corpus.
_MOST_HOLDERS = 3
SHORTFALL = "shortfall.jsonl"
_SPARE = 4  # candidates per item that the recipe asks for, because some turn out to be boilerplate
_REASONS = {
    "text": "held-out text",
    "questions": "question",
    "preferences": "preference pair",
    "harmful": "harmful prompt",
    "benign": "benign prompt",
    "samples": "sample prompt",
    "conversations": "held-out conversation",
    "pairs": "held-out pair",
}
Rows = list[dict[str, Any]]

# Asset, name of the set, and columns with messages or tools in JSON.
_GATHERED = (
    ("conversations", "conversations", ("messages", "tools")),
    ("preferences", "pairs", ("prompt", "chosen", "rejected")),
)


def run(context: StageContext[Section]) -> StageResult:
    """Take held-out text, make questions and pairs of it, read the written prompts, find the documents that hold them.

    Without a corpus there is no text, and nothing is made of it. Conversations and pairs of the recipe's own are taken
    where there are some.

    Raises:
        SourceError: A file of written prompts is malformed.
        RecipeError: A local task's file is not one.
    """
    section, corpus = context.section, context.inputs.get("corpus")
    context.events.phase("held-out items")
    documents: Rows = []
    if corpus is not None:
        documents = sorted(read_rows(corpus.folder / "heldout"), key=lambda row: row["id"])
    items = unique_by_prompt(item for document in documents for item in items_of(document))
    written = {
        name: [
            {"id": _id(name, row["prompt"]), "prompt": row["prompt"], "topic": row["topic"]}
            for row in (read_prompts(context.files[name], ("prompt", "topic")) if name in context.files else [])
        ]
        for name in ("harmful", "benign")
    }
    samples = [{"id": _id("samples", prompt), "prompt": prompt} for prompt in section.samples]
    gathered = _gathered(context)

    candidates, texts = _candidates(section, items), _text(section, documents, _SPARE)
    holders = _holders(
        context,
        [
            *(EvaluationItem(row["id"], row["text"]) for row in texts),
            *(EvaluationItem(item.id, item.evidence) for item in candidates),
            *(EvaluationItem(row["id"], row["prompt"]) for row in (*written["harmful"], *written["benign"], *samples)),
            *(EvaluationItem(row["id"], _words(row)) for rows in gathered.values() for row in rows),
        ],
    )

    rare = [item for item in candidates if len(holders[item.id]) <= _MOST_HOLDERS]
    distractors = Distractors(items)
    sets: dict[str, Rows] = {
        "text": _text(section, [row for row in texts if len(holders[row["id"]]) <= _MOST_HOLDERS]),
        "questions": _questions(section, rare, distractors),
        **written,
        "preferences": _preferences(section, rare, distractors),
        "samples": samples,
    }
    for name, rows in gathered.items():
        chosen = [row for row in rows if len(holders[row["id"]]) <= _MOST_HOLDERS][: _most(section, name)]
        sets[name] = sorted(chosen, key=lambda row: str(row["id"]))
    for name, rows in sets.items():
        _write_lines(context.out / f"{name}.jsonl", rows)
    if corpus is not None and len(sets["questions"]) < section.questions:
        _write_lines(context.report / SHORTFALL, _shortfall(documents, len(candidates) - len(rare)))
    _write_tasks(context, sets["questions"])
    exclusions = _exclusions(sets, holders)
    write_table(context.out / "exclusions.parquet", exclusions, EXCLUSION_SCHEMA)
    metrics = {
        "text_bytes": float(sum(row["bytes"] for row in sets["text"])),
        "questions": float(len(sets["questions"])),
        "harmful_prompts": float(len(sets["harmful"])),
        "benign_prompts": float(len(sets["benign"])),
        "preference_pairs": float(len(sets["preferences"])),
        "excluded_documents": float(len({row["id"] for row in exclusions})),
        **{f"heldout_{name}": float(len(sets[name])) for name in gathered},
    }
    _report(context, sets, exclusions)
    headline = "heldout_conversations" if corpus is None and "conversations" in gathered else "questions"
    return StageResult(metrics=metrics, headline=headline)


def _gathered(context: StageContext[Section]) -> dict[str, Rows]:
    """Held-out conversations and pairs of the recipe's own, each kind where there is such an input.

    They are more than the recipe asks for, in an order that is a pure function of each one's digest.
    """
    gathered: dict[str, Rows] = {}
    for asset, name, columns in _GATHERED:
        if asset not in context.inputs:
            continue
        file = context.input(asset).folder / "heldout.parquet"
        ids = {row["id"] for row in read_rows(file, ["id", "format"]) if row["format"] != PLAIN_TEXT}
        most = _most(context.section, name) * _SPARE
        wanted = dict.fromkeys(_by_digest(name, ids)[:most])
        rows = {row["id"]: row for row in read_rows(file, ["id", "source", *columns]) if row["id"] in wanted}
        gathered[name] = [
            {
                "id": row_id,
                **{column: json.loads(rows[row_id][column] or "[]") for column in columns},
                "source": rows[row_id]["source"],
            }
            for row_id in wanted
        ]
    return gathered


def _by_digest(purpose: str, ids: Iterable[str]) -> list[str]:
    return sorted(ids, key=lambda row_id: (fraction(purpose, row_id), row_id))


def _most(section: Section, name: str) -> int:
    return section.conversations if name == "conversations" else section.preferences


def _words(row: Mapping[str, Any]) -> str:
    """All that is said in a conversation or a pair, as one text."""
    parts = (row.get(part, []) for part in ("messages", "prompt", "chosen", "rejected"))
    return "\n".join(message["content"] for messages in parts for message in messages)


@dataclass(frozen=True)
class _TrainingFile:
    """A file of training documents, and what is looked for in them.

    Attributes:
        items: JSON file with the id and the text of every item.
    """

    path: Path
    items: Path
    ngram: int
    overlap: float


def _holders(context: StageContext[Section], items: list[EvaluationItem]) -> dict[str, list[Overlap]]:
    """The training documents that hold each item, by the item's id.

    An overlap depends on its document and its item alone, so changing one item leaves the overlaps of all others.
    """
    holders: dict[str, list[Overlap]] = defaultdict(list)
    if "corpus" not in context.inputs:
        return holders
    pool = Pool(context.work, context.execution, context.events)
    items_file = context.work / "items.json"
    items_file.write_text(json.dumps(items))
    parts = [
        Part(path.stem, _TrainingFile(path, items_file, context.section.ngram, context.section.overlap), size)
        for path, size in Split(context.input("corpus").folder / "train").files()
    ]
    for finished in pool.run("overlap with training documents", _find_overlaps, parts):
        for overlap in itertools.starmap(Overlap, finished.result["overlaps"]):
            holders[overlap.item].append(overlap)
    return holders


def _find_overlaps(file: _TrainingFile, _folder: Path) -> dict[str, Any]:
    """The overlaps of a file's documents, in their order."""
    index = _index(file.items, file.ngram, file.overlap, file.items.stat().st_mtime_ns)
    overlaps: list[Overlap] = []
    for rows in batches_of(read_rows(file.path, ["id", "text"]), itemgetter("text")):
        overlaps += index.overlaps_of([row["id"] for row in rows], [row["text"] for row in rows])
    return {"overlaps": overlaps}


@lru_cache(maxsize=1)  # a process that works on many files makes it once
def _index(items: Path, ngram: int, overlap: float, _written_at: int) -> OverlapIndex:
    return OverlapIndex(itertools.starmap(EvaluationItem, json.loads(items.read_text())), ngram, overlap)


def _candidates(section: Section, items: list[Item]) -> list[Item]:
    """Enough items of every domain to choose from, so that the overlap test stays small in a large corpus."""
    chosen: dict[str, Item] = {}
    for domain in sorted({item.domain for item in items}):
        of_domain = [item for item in items if item.domain == domain]
        questions = section.questions if domain == GENERAL else section.domain_questions
        for purpose, count in (("question", questions), ("preference", section.preferences)):
            chosen.update((item.id, item) for item in _drawn(purpose, of_domain)[: count * _SPARE])
    return list(chosen.values())


def _drawn(purpose: str, items: list[Item]) -> list[Item]:
    """Items in an order that is a pure function of each one's digest and differs between purposes."""
    return sorted(items, key=lambda item: fraction(purpose, item.id))


def _text(section: Section, documents: Rows, spare: int = 1) -> Rows:
    """Whole held-out documents, in the order of ids, while they fit into `spare` times each domain's share.

    Where not even the shortest document of a domain fits, its beginning is taken.
    """
    rows: Rows = []
    for domain in sorted({document["domain"] for document in documents}):
        of_domain = [document for document in documents if document["domain"] == domain]
        share = section.text_kilobytes * 1024
        shortest = min(of_domain, key=lambda document: int(document["bytes"]))
        if shortest["bytes"] > share:
            text = shortest["text"].encode()[:share].decode(errors="ignore")
            of_domain = [{**shortest, "text": text, "bytes": len(text.encode())}]

        left = share * spare
        for document in of_domain:
            if document["bytes"] <= min(left, share):
                left -= document["bytes"]
                rows.append({key: document[key] for key in ("id", "text", "source", "domain", "bytes")})
    return sorted(rows, key=lambda row: str(row["id"]))


def _questions(section: Section, items: list[Item], distractors: Distractors) -> Rows:
    """Four-way questions, as many of every domain as the recipe asks for, chosen by digest."""
    asked: dict[str, int] = {}
    rows = []
    for item in _drawn("question", items):
        most = section.questions if item.domain == GENERAL else section.domain_questions
        if asked.get(item.domain, 0) >= most:
            continue
        others = distractors.similar_in_length(item, _CHOICES - 1)
        if len(others) < _CHOICES - 1:
            continue

        asked[item.domain] = asked.get(item.domain, 0) + 1
        answer = int(fraction("position", item.id) * _CHOICES)
        rows.append(
            {
                "id": item.id,
                "prompt": item.prompt,
                "choices": [*others[:answer], item.answer, *others[answer:]],
                "answer": answer,
                "domain": item.domain,
                "source_id": item.source_id,
            }
        )
    return sorted(rows, key=lambda row: str(row["id"]))


def _shortfall(documents: Rows, boilerplate: int) -> Rows:
    """Why there are fewer questions than were asked for; the gates' evaluation shows it."""
    rows = unused_text(documents)
    if boilerplate:
        reason = f"questions that more than {_MOST_HOLDERS} training documents hold, so that they are boilerplate"
        rows.append({"reason": reason, "count": boilerplate, "path": "the training split"})
    return rows


def _preferences(section: Section, items: list[Item], distractors: Distractors) -> Rows:
    rows: Rows = []
    for item in _drawn("preference", items):
        rejected = distractors.similar_in_length(item, 1)
        if rejected and len(rows) < section.preferences:
            rows.append(
                {
                    "id": item.id,
                    "prompt": item.prompt,
                    "chosen": item.answer,
                    "rejected": rejected[0],
                    "domain": item.domain,
                }
            )
    return sorted(rows, key=lambda row: row["id"])


def _exclusions(sets: dict[str, Rows], holders: dict[str, list[Overlap]]) -> Rows:
    """Rows of exclusions.parquet: the training documents that hold an item of a set."""
    exclusions = [
        {"id": overlap.document, "item": overlap.item, "reason": _REASONS[name], "overlap": overlap.share}
        for name, rows in sets.items()
        for row in rows
        for overlap in holders[row["id"]]
    ]
    return sorted(exclusions, key=lambda row: (row["id"], row["item"], row["reason"]))


def _write_tasks(context: StageContext[Section], questions: Rows) -> None:
    """Write the folder of the tasks: their list, the local tasks' files, and the questions that these read.

    lm-evaluation-harness's own command line runs the local tasks in this folder as well.
    """
    folder = context.out / TASKS_FOLDER
    folder.mkdir()
    for index, task in enumerate(context.section.tasks):
        if task.file is None:
            continue
        path = context.files[f"tasks.{index}.file"]
        for key, message in misfits(task, read_task_file(path)):
            raise RecipeError(f"evaluation_sets.tasks.{index}.{key}: {message}")
        shutil.copyfile(path, folder / f"{task.name}.yaml")

    tasks = [task.model_dump(mode="json") for task in context.section.tasks]
    (folder / TASKS_FILE).write_text(canonical_json(tasks) + "\n", encoding="utf-8")
    for name, general in (("general", True), ("domain", False)):
        rows = [row for row in questions if (row["domain"] == GENERAL) == general]
        _write_lines(folder / f"{name}_questions.jsonl", rows)


def _id(kind: str, text: str) -> str:
    return text_id(kind, text)[:ID_LENGTH]


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n" for row in rows)


def _report(context: StageContext[Section], sets: dict[str, Rows], exclusions: Rows) -> None:
    samples = [
        {
            "prompt": row["prompt"],
            "answer": row["choices"][row["answer"]],
            "wrong": row["choices"][(row["answer"] + 1) % _CHOICES],
            "domain": row["domain"],
        }
        for row in sets["questions"][:10]
    ]
    samples += [
        {"prompt": excerpt(row["messages"][:-1]), "answer": excerpt(row["messages"][-1:]), "source": row["source"]}
        for row in sets.get("conversations", [])[:5]
    ]
    samples += [
        {"prompt": excerpt(row["prompt"]), "answer": excerpt(row["chosen"]), "wrong": excerpt(row["rejected"])}
        for row in sets.get("pairs", [])[:5]
    ]
    write_samples(context.report, samples)
    bar_chart(
        context.report / "sets.png",
        {name: float(len(rows)) for name, rows in sets.items()},
        "Items of the evaluation sets",
        "items",
    )

    domains = sorted({row["domain"] for row in sets["text"]} | {row["domain"] for row in sets["questions"]})
    rows = [
        [
            domain,
            sum(row["bytes"] for row in sets["text"] if row["domain"] == domain),
            *(sum(row["domain"] == domain for row in sets[name]) for name in ("questions", "preferences")),
        ]
        for domain in domains
    ]
    reasons = sorted({row["reason"] for row in exclusions})
    counts = [[reason, len({row["id"] for row in exclusions if row["reason"] == reason})] for reason in reasons]

    write_card(
        context.report,
        "Evaluation sets",
        [
            markdown_table(["domain", "bytes of text", "questions", "preference pairs"], rows),
            "",
            f"Written prompts: {len(sets['harmful'])} harmful, {len(sets['benign'])} benign look-alikes.",
            "",
            *(line for name in ("conversations", "pairs") if name in sets for line in (_own(sets, name), "")),
            f"Tasks of lm-evaluation-harness: {', '.join(task.name for task in context.section.tasks) or 'none'}.",
            "",
            "## Training documents that are excluded",
            "",
            markdown_table(["because of", "documents"], counts),
            "",
            f"A training document is excluded if it holds at least {context.section.overlap:.0%} of an item's "
            f"{context.section.ngram}-grams of words (of characters in scripts without spaces); a shorter item must be "
            "held whole, and one of fewer than 6 words, or 12 such characters, excludes nothing. Held-out texts and "
            "questions that more than "
            f"{_MOST_HOLDERS} training documents hold are boilerplate and were left out of the sets instead.",
        ],
    )


def _own(sets: dict[str, Rows], name: str) -> str:
    sources = Counter(row["source"] for row in sets[name])
    listed = ", ".join(f"{count} from {source}" for source, count in sorted(sources.items()))
    return f"Of the recipe's own: {len(sets[name])} held-out {name}{f', {listed}' if listed else ''}."
