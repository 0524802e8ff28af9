"""`preference_data`: pairs of a right and a wrong answer to the prompts of `instruction_data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from training.data.conversations.distractors import Distractors, same_answer
from training.data.conversations.items import BENIGN, ID_LENGTH, REFUSAL, Item, item_of
from training.data.conversations.safety import compliance, refusal
from training.data.reports import bar_chart, markdown_table, write_card, write_samples
from training.data.tables import PAIR_SCHEMA, fraction, read_rows, text_id, write_table
from training.errors import RecipeError
from training.job.context import StageContext
from training.specs.job import StageResult
from training.specs.post_training_data import PreferenceDataSection as Section


def run(context: StageContext[Section]) -> StageResult:
    """Make the pairs, one a prompt.

    Pairs about safety take at most half of `max_pairs`, so that they crowd out nothing else; the others fill the rest.

    Raises:
        RecipeError: No pair can be made.
    """
    context.events.phase("pairs")
    conversations = list(read_rows(context.input("instruction_data").folder / "train.parquet"))
    items = [item_of(row) for row in conversations]
    distractors = Distractors(items)
    refusals = sorted({item.answer for item in items if item.kind == REFUSAL})

    pairs: dict[str, dict[str, str]] = {}
    for row, item in zip(conversations, items, strict=True):
        if item.prompt not in pairs and (pair := _pair(item, row["id"], distractors, refusals)):
            pairs[item.prompt] = pair
    rows = _chosen(list(pairs.values()), context.section.max_pairs)
    if not rows:
        raise RecipeError(
            "preference_data: no conversation has a wrong answer to go with it: all answers are the same; add sources"
        )

    write_table(context.out / "train.parquet", rows, PAIR_SCHEMA)
    _report(context, rows, len(pairs))
    kinds = Counter(row["kind"] for row in rows)
    return StageResult(
        metrics={"pairs": float(len(rows)), **{f"{kind}_pairs": float(count) for kind, count in kinds.items()}},
        headline="pairs",
    )


def _chosen(pairs: list[dict[str, str]], most: int) -> list[dict[str, str]]:
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


def _report(context: StageContext[Section], rows: list[dict[str, str]], available: int) -> None:
    kinds = Counter(row["kind"] for row in rows)
    write_samples(
        context.report,
        [{key: row[key] for key in ("kind", "prompt", "chosen", "rejected")} for row in _some_of_each(rows, kinds)],
    )
    bar_chart(
        context.report / "kinds.png",
        {kind: float(count) for kind, count in sorted(kinds.items())},
        "Preference pairs by kind",
        "pairs",
    )

    table = Counter((row["kind"], row["domain"]) for row in rows)
    write_card(
        context.report,
        "Preference data",
        [
            markdown_table(["kind", "domain", "pairs"], [[*key, count] for key, count in sorted(table.items())]),
            "",
            f"{len(rows)} of {available} possible pairs, chosen by digest; at most half are about safety.",
        ],
    )


def _some_of_each(rows: list[dict[str, str]], kinds: Iterable[str]) -> list[dict[str, str]]:
    return [row for kind in sorted(kinds) for row in [row for row in rows if row["kind"] == kind][:5]]
