"""`instruction_data`: conversations from the training documents, written ones about what to refuse, a user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from training.data.conversations.dialogues import conversation_rows
from training.data.conversations.items import BENIGN, REFUSAL, Item, TrainingItems, sample_of, training_items
from training.data.conversations.mixing import (
    GATHERED,
    MIXED_CONVERSATION_SCHEMA,
    EvaluationItems,
    gathered_conversation,
    gathered_table,
    generated_conversation,
    is_gathered,
    sample_of_gathered,
    weighted,
)
from training.data.conversations.safety import agreement, read_prompts, refusal
from training.data.conversations.shortfall import in_words, unused_text
from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.tables import CONVERSATION_SCHEMA, read_rows, write_table
from training.errors import RecipeError
from training.job.context import StageContext
from training.specs.corpus import GENERAL
from training.specs.job import StageResult
from training.specs.post_training_data import InstructionDataSection as Section

_WRITTEN = "safety"
_PROMPT_FILES = ("harmful", "benign")


def run(context: StageContext[Section]) -> StageResult:
    """Make the conversations, and add those of the recipe's own.

    Raises:
        SourceError: A file of written prompts is malformed.
        RecipeError: The training documents give no conversation, or all of the recipe's own hold evaluation items.
    """
    section = context.section
    context.events.phase("conversations")
    items, is_all = _items(context) if "corpus" in context.inputs else TrainingItems([], is_all=True)
    written = _written(context) if all(name in context.files for name in _PROMPT_FILES) else []
    rows: list[dict[str, Any]] = [
        *conversation_rows([*((item, 0) for item in items[: section.max_conversations]), *written])
    ]

    schema, contaminated = CONVERSATION_SCHEMA, 0
    if "conversations" in context.inputs:
        gathered, contaminated = _gathered(context)
        rows = [*map(generated_conversation, rows), *gathered]
        schema = MIXED_CONVERSATION_SCHEMA
    if not rows:
        raise RecipeError("instruction_data: there is nothing to make conversations of; add sources or conversations")

    rows.sort(key=lambda row: row["id"])
    write_table(context.out / "train.parquet", rows, schema)
    kinds = Counter(row["kind"] for row in rows)
    _report(context, rows, TrainingItems(items, is_all), contaminated)
    added = {"contaminated_conversations": float(contaminated)} if "conversations" in context.inputs else {}
    return StageResult(
        metrics={
            "conversations": float(len(rows)),
            "refusals": float(kinds[REFUSAL]),
            **{f"{kind}_conversations": float(count) for kind, count in kinds.items()},
            **added,
        },
        headline="conversations",
    )


def _items(context: StageContext[Section]) -> TrainingItems:
    """Questions with answers of the training documents, one at least."""
    corpus, most = context.input("corpus").folder, context.section.max_answer_characters
    exclusions = context.input("evaluation_sets").folder / "exclusions.parquet"
    found = training_items(corpus, exclusions, context.section.max_conversations, most)
    if not found.items:
        unused = unused_text(read_rows(corpus / "train"), most)
        raise RecipeError(
            f"instruction_data: the training documents give no question: {in_words(unused[:1])}. Add "
            "text with paragraphs of several sentences, or raise instruction_data.max_answer_characters"
        )
    return found


def _gathered(context: StageContext[Section]) -> tuple[list[dict[str, Any]], int]:
    """The recipe's own conversations by weight, and how many were left out because they hold evaluation items."""
    context.events.phase("overlap with evaluation items")
    sets = context.input("evaluation_sets")
    rows = read_rows(context.input("conversations").folder / "train.parquet")
    clean, contaminated = EvaluationItems(sets.folder, sets.manifest.section).without(rows)
    gathered = [gathered_conversation(row) for row in weighted(clean)]
    if not gathered:
        raise RecipeError(
            f"instruction_data: none of {len(clean) + contaminated} conversations is left: {contaminated} hold items "
            "of the evaluation sets, and the weight of the others leaves none; add rows or raise their weight"
        )

    if contaminated:
        context.events.log(f"{contaminated} conversations hold items of the evaluation sets and are left out")
    return gathered, contaminated


def _written(context: StageContext[Section]) -> list[tuple[Item, int]]:
    """The written prompts and the number of each repeat; the first nine of a harmful one have a refusal each.

    Both sides give as many conversations. With more answers than refusals a model answers what it should refuse.
    """
    harmful = read_prompts(context.files["harmful"], ("prompt", "topic"))
    benign = read_prompts(context.files["benign"], ("prompt", "topic", "answer"))
    both = {row["prompt"] for row in harmful} & {row["prompt"] for row in benign}
    if both:
        raise RecipeError(
            f"{context.files['harmful']} and {context.files['benign']} both hold the prompt "
            f"{min(both)!r}; remove it from one"
        )

    each_side = context.section.safety_repeats * max(len(harmful), len(benign))
    refused = [
        (_item(REFUSAL, row["prompt"], refusal(row["prompt"], row["topic"], repeat)), repeat)
        for row, repeat in _repeated(harmful, each_side)
    ]
    answered = [
        (_item(BENIGN, row["prompt"], agreement(row["answer"])), repeat) for row, repeat in _repeated(benign, each_side)
    ]
    return refused + answered


def _repeated(prompts: list[dict[str, str]], length: int) -> Iterator[tuple[dict[str, str], int]]:
    """The prompts from the first to the last, again and again, each with the number of its earlier uses."""
    for position in range(length):
        repeat, index = divmod(position, len(prompts))
        yield prompts[index], repeat


def _item(kind: str, prompt: str, answer: str) -> Item:
    return Item(kind, prompt, answer, prompt, GENERAL, _WRITTEN)


def _report(
    context: StageContext[Section], rows: list[dict[str, Any]], found: TrainingItems, contaminated: int
) -> None:
    kinds = Counter(row["kind"] for row in rows)
    samples = [row for kind in kinds for row in [row for row in rows if row["kind"] == kind][:5]]
    write_samples(context.report, [sample_of_gathered(row) if is_gathered(row) else sample_of(row) for row in samples])
    bar_chart(
        context.report / "kinds.png",
        {kind: float(count) for kind, count in sorted(kinds.items())},
        "Conversations by kind",
        "conversations",
    )

    table = Counter((row["kind"], row["domain"]) for row in rows)
    read = "The training documents" if found.is_all else "The first training documents by digest"
    made = (
        f"{read} give {len(found.items)} conversations; "
        f"{min(len(found.items), context.section.max_conversations)} of them are used, chosen by digest. "
        "As many conversations have a written prompt to refuse as have one to answer. A few conversations begin "
        "with a system turn, and a few have two answers."
    )
    own = gathered_table(rows, "conversations", contaminated) if kinds[GATHERED] else []
    write_card(
        context.report,
        "Instruction data",
        [
            markdown_table(
                ["kind", "domain", "conversations"], [[*key, count] for key, count in sorted(table.items())]
            ),
            "",
            *([made] if found.items else []),
            *own,
        ],
    )
