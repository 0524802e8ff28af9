"""`preference_data`: pairs of a right and a wrong answer to the prompts of `instruction_data`, and a user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from training.data.conversations.distractors import Distractors, same_answer
from training.data.conversations.items import BENIGN, ID_LENGTH, REFUSAL, Item, item_of
from training.data.conversations.mixing import (
    GATHERED,
    MIXED_PAIR_SCHEMA,
    EvaluationItems,
    gathered_pair,
    gathered_table,
    generated_pair,
    is_gathered,
    sample_of_pair,
)
from training.data.conversations.safety import compliance, refusal
from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.tables import PAIR_SCHEMA, fraction, read_rows, text_id, write_table
from training.errors import RecipeError
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training_data import PreferenceDataSection as Section


def run(context: StageContext[Section]) -> StageResult:
    """Make the pairs, one a prompt, and add those of the recipe's own.

    Pairs about safety take at most half of `max_pairs`, so that they crowd out nothing else; the others fill the rest.
    The recipe's own pairs are not counted against `max_pairs`.

    Raises:
        RecipeError: No pair can be made.
    """
    context.events.phase("pairs")
    pairs = _generated(context) if "instruction_data" in context.inputs else []
    rows = _chosen(pairs, context.section.max_pairs)
    has_own = "preferences" in context.inputs
    if not rows and not has_own:
        raise RecipeError(
            "preference_data: no conversation has a wrong answer to go with it: all answers are the same; add sources"
        )

    schema, contaminated, added = PAIR_SCHEMA, 0, {}
    if has_own:
        own, contaminated = _own(context)
        rows = sorted([*map(generated_pair, rows), *own], key=lambda row: str(row["id"]))
        schema, added = MIXED_PAIR_SCHEMA, {"contaminated_pairs": float(contaminated)}

    write_table(context.out / "train.parquet", rows, schema)
    _report(context, rows, len(pairs), contaminated)
    kinds = Counter(row["kind"] for row in rows)
    return StageResult(
        metrics={
            "pairs": float(len(rows)),
            **{f"{kind}_pairs": float(count) for kind, count in kinds.items()},
            **added,
        },
        headline="pairs",
    )


def _generated(context: StageContext[Section]) -> list[dict[str, Any]]:
    """A pair for each prompt that was made from the corpus or written."""
    conversations = [
        row for row in read_rows(context.input("instruction_data").folder / "train.parquet") if not is_gathered(row)
    ]
    items = [item_of(row) for row in conversations]
    distractors = Distractors(items)
    refusals = sorted({item.answer for item in items if item.kind == REFUSAL})

    pairs: dict[str, dict[str, Any]] = {}
    for row, item in zip(conversations, items, strict=True):
        if item.prompt not in pairs and (pair := _pair(item, row["id"], distractors, refusals)):
            pairs[item.prompt] = pair
    return list(pairs.values())


def _own(context: StageContext[Section]) -> tuple[list[dict[str, Any]], int]:
    """The recipe's own pairs, and how many were left out because they hold evaluation items."""
    context.events.phase("overlap with evaluation items")
    sets = context.input("evaluation_sets")
    rows = read_rows(context.input("preferences").folder / "train.parquet")
    clean, contaminated = EvaluationItems(sets.folder, sets.manifest.section).without(rows)
    if not clean:
        raise RecipeError(
            f"preference_data: all {contaminated} pairs of the recipe's preferences hold items of the evaluation sets; "
            "add others"
        )

    if contaminated:
        context.events.log(f"{contaminated} pairs hold items of the evaluation sets and are left out")
    return [gathered_pair(row) for row in clean], contaminated


def _chosen(pairs: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Up to `most` pairs by digest, at most half of them about safety."""
    by_id = sorted(pairs, key=lambda row: row["id"])
    safety = [row for row in by_id if row["kind"] in (REFUSAL, BENIGN)][: most // 2]
    others = [row for row in by_id if row["kind"] not in (REFUSAL, BENIGN)][: most - len(safety)]
    return sorted([*safety, *others], key=lambda row: row["id"])


def _pair(item: Item, draw: str, distractors: Distractors, refusals: list[str]) -> dict[str, str] | None:
    """The pair of a conversation; `draw` is the conversation's id, which differs between copies of a written one."""
    rejected = _rejected(item, draw, distractors, refusals)
    if rejected is None or same_answer(rejected, item.answer):
        return None
    return {
        "id": text_id(item.prompt, item.answer, rejected)[:ID_LENGTH],
        "prompt": item.prompt,
        "chosen": item.answer,
        "rejected": rejected,
        "kind": item.kind,
        "domain": item.domain,
    }


def _rejected(item: Item, draw: str, distractors: Distractors, refusals: list[str]) -> str | None:
    """The answer that the model should like less than the right one.

    Half of the wrong answers are as long as the right one, so that length alone does not tell them apart. The others
    have any length. A refused prompt gets an answer that complies, a look-alike gets a refusal.
    """
    half = fraction("rejected", draw) < 0.5
    if item.kind == REFUSAL:
        benign = distractors.of_kind(BENIGN, item)
        return benign if half and benign else compliance(item.prompt)
    if item.kind == BENIGN:
        return refusals[int(fraction("refused", draw) * len(refusals))] if refusals else refusal(item.prompt, "that")
    return next(iter(distractors.similar_in_length(item, 1)), None) if half else distractors.of_kind(item.kind, item)


def _report(context: StageContext[Section], rows: list[dict[str, Any]], available: int, contaminated: int) -> None:
    kinds = Counter(row["kind"] for row in rows)
    write_samples(
        context.report,
        [sample_of_pair(row) for row in _some_of_each(rows, kinds)],
    )
    bar_chart(
        context.report / "kinds.png",
        {kind: float(count) for kind, count in sorted(kinds.items())},
        "Preference pairs by kind",
        "pairs",
    )

    table = Counter((row["kind"], row["domain"]) for row in rows)
    count = len(rows) - kinds[GATHERED]
    made = f"{count} of {available} possible pairs, chosen by digest; at most half are about safety." if count else None
    write_card(
        context.report,
        "Preference data",
        [
            markdown_table(["kind", "domain", "pairs"], [[*key, count] for key, count in sorted(table.items())]),
            "",
            *([] if made is None else [made]),
            *(gathered_table(rows, "pairs", contaminated) if kinds[GATHERED] else []),
        ],
    )


def _some_of_each(rows: list[dict[str, Any]], kinds: Iterable[str]) -> list[dict[str, Any]]:
    return [row for kind in sorted(kinds) for row in [row for row in rows if row["kind"] == kind][:5]]
