"""`conversations`: the conversations of a user's own, in one form, cleaned by the recipe's rules and split."""

from __future__ import annotations

from collections import Counter

from training.data.conversations.formats import ParsedConversation, conversation_of
from training.data.conversations.gathering import (
    DROPPED,
    DUPLICATE,
    HELDOUT,
    SKIPPED,
    TRAIN,
    DroppedRows,
    Gathered,
    excerpt,
    split_of,
)
from training.data.conversations.messages import RowProblem, plain_answer, to_json, turns_key
from training.data.conversations.rules import Dropped, answered, orderly, with_learned, without_empty_answers
from training.data.sources.bad_rows import BadRows
from training.data.sources.fetching import fetched_folder, provenance
from training.data.sources.reading import READING_MEMORY
from training.data.sources.rows import SourceRow, files_of_rows, read_rows_of
from training.data.tables import GATHERED_CONVERSATION_SCHEMA, TableWriter, text_id
from training.errors import RecipeError, SourceError
from training.job.bounded_memory import bounded_memory
from training.job.context import StageContext
from training.job.parts import Pool
from training.specs.conversations import PLAIN_TEXT, ConversationSource
from training.specs.conversations import ConversationsSection as Section
from training.specs.corpus import dropped_metric
from training.specs.job import StageResult

_PROGRESS_EVERY = 5_000
_CUT = "turns after the last answer that were left out"
_UNREAD = "messages with a key that is not read"


def run(context: StageContext[Section]) -> StageResult:
    """Gather the conversations.

    Raises:
        SourceError: A source is missing or malformed, or no row of them is kept.
        RecipeError: All rows are held out, or no source has rows to read.
    """
    section = context.section
    if not section.files:
        raise RecipeError("conversations: all sources are from the corpus; add one with path or dataset")
    bad = BadRows(section.on_bad_row, context.report / SKIPPED, "conversation_options.on_bad_row")
    dropped, gathered = DroppedRows(context.report / DROPPED), Gathered(section.files)
    seen: set[bytes] = set()

    pool = Pool(context.work, context.execution, context.events, READING_MEMORY)
    with (
        bounded_memory(READING_MEMORY),
        TableWriter(context.out / "train.parquet", GATHERED_CONVERSATION_SCHEMA) as train,
        TableWriter(context.out / "heldout.parquet", GATHERED_CONVERSATION_SCHEMA) as heldout,
    ):
        writers = {TRAIN: train, HELDOUT: heldout}
        for source in section.files:
            left_out = gathered.left_out[source.name]
            files = files_of_rows(source, pool, left_out)
            context.events.phase(f"read {source.name}")
            for row in read_rows_of(source, files, bad, fetched_folder(pool), left_out):
                try:
                    parsed = _normalised(row, source, section, gathered.notes)
                    _refuse_duplicate(parsed, section.duplicates, seen)
                    split, size = _add(writers, row, source, parsed, section.heldout)
                except RowProblem as problem:
                    bad.report(f"{row.where}: {problem}")
                except Dropped as reason:
                    dropped.add(source.name, row.place, str(reason))
                else:
                    gathered.kept[source.name, parsed.format, split] += 1
                    gathered.sample(
                        source=source.name,
                        where=row.place,
                        format=parsed.format,
                        prompt=excerpt(parsed.messages[:-1]),
                        answer=excerpt(parsed.messages[-1:]),
                    )
                    if gathered.kept.total() % _PROGRESS_EVERY == 0:
                        context.events.progress(gathered.kept.total(), None, "conversations", f"{size:,} characters")
            gathered.remote += provenance(files, source, fetched_folder(pool))

    dropped.write()
    _check_kept(gathered, dropped, bad)
    gathered.write(context.report, "Conversations", "conversations", dropped, bad)
    return StageResult(metrics=_metrics(gathered, dropped, bad), headline="conversations")


def _normalised(
    row: SourceRow, source: ConversationSource, section: Section, notes: Counter[str]
) -> ParsedConversation:
    """A row after the recipe's rules.

    Raises:
        RowProblem: It is a bad row.
        Dropped: A rule drops it.
    """
    unread: Counter[str] = Counter()
    parsed = conversation_of(row.value, source.format, source.columns, unread)
    messages = parsed.messages
    if parsed.format != PLAIN_TEXT:
        whole = orderly(messages, section.roles)
        messages = answered(whole)
        notes.update({_CUT: len(whole) - len(messages)} if len(whole) > len(messages) else {})
    without_empty_answers(messages, section.empty_answers)
    messages = with_learned(messages, section.train)
    notes.update({f"{_UNREAD}, {key}": count for key, count in unread.items()})
    return ParsedConversation(parsed.format, messages, parsed.tools)


def _refuse_duplicate(parsed: ParsedConversation, rule: str, seen: set[bytes]) -> None:
    """Remember a conversation.

    Raises:
        Dropped: There was one like it already.
    """
    if rule == "keep":
        return
    if rule == "prompt" and parsed.format != PLAIN_TEXT:
        key = turns_key(parsed.messages[:-1])
    else:
        key = turns_key(parsed.messages, plain_answer)
    digest = bytes.fromhex(text_id(key, parsed.tools))
    if digest in seen:
        raise Dropped(DUPLICATE)
    seen.add(digest)


def _add(
    writers: dict[str, TableWriter],
    row: SourceRow,
    source: ConversationSource,
    parsed: ParsedConversation,
    heldout: float,
) -> tuple[str, int]:
    """Write a row; its split and its size."""
    messages = to_json(parsed.messages)
    split, size = split_of(parsed.messages, heldout), len(messages) + len(parsed.tools)
    writers[split].add(
        {
            "id": text_id(messages, *([parsed.tools] if parsed.tools else [])),
            "messages": messages,
            "tools": parsed.tools,
            "source": source.name,
            "where": row.place,
            "licence": source.licence,
            "format": parsed.format,
            "weight": source.weight,
        },
        size,
    )
    return split, size


def _check_kept(gathered: Gathered, dropped: DroppedRows, bad: BadRows) -> None:
    if gathered.rows(TRAIN):
        return
    if gathered.rows(HELDOUT):
        raise RecipeError(
            f"conversations: all {gathered.rows(HELDOUT)} are held out; lower conversation_options.heldout or add rows"
        )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.total.most_common())
    names = ", ".join(source.name for source in gathered.sources)
    raise SourceError(
        f"the sources {names} give no conversation: "
        + (bad.listed[0] if bad.listed else f"dropped are {reasons}" if reasons else "their files hold no row")
        + "; correct their files or the rules of the recipe's conversations"
    )


def _metrics(gathered: Gathered, dropped: DroppedRows, bad: BadRows) -> dict[str, float]:
    return {
        "conversations": float(gathered.rows(TRAIN)),
        "heldout_conversations": float(gathered.rows(HELDOUT)),
        "bad_rows": float(bad.count),
        "left_out_files": float(sum(files.total() for files in gathered.left_out.values())),
        **{f"{name}_rows": float(count) for name, count in sorted(gathered.formats().items())},
        **{dropped_metric(reason): float(count) for reason, count in sorted(dropped.total.items())},
    }
