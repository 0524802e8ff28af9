"""`preferences`: the judged answers of a user's own as pairs, in one form, cleaned by the recipe's rules and split."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from training.data.conversations.gathering import (
    CONTRADICTION,
    DROPPED,
    DUPLICATE,
    HELDOUT,
    IDENTICAL,
    NO_OPPOSITE,
    NO_PAIR,
    SKIPPED,
    TRAIN,
    DroppedRows,
    Gathered,
    excerpt,
    split_of,
)
from training.data.conversations.messages import Message, RowProblem, plain_answer, to_json, turns_key
from training.data.conversations.preference_formats import LABELLED, Judgement, is_good, judgement_of
from training.data.conversations.rules import EMPTY_ANSWER, Dropped, answered, orderly, with_learned
from training.data.conversations.rules import without_empty_answers as check_answers
from training.data.sources.bad_rows import BadRows
from training.data.sources.fetching import fetched_folder, provenance
from training.data.sources.reading import READING_MEMORY
from training.data.sources.rows import SourceRow, files_of_rows, read_rows_of
from training.data.tables import GATHERED_PAIR_SCHEMA, TableWriter, text_id
from training.errors import RecipeError, SourceError
from training.job.bounded_memory import bounded_memory
from training.job.context import StageContext
from training.job.parts import Pool
from training.specs.conversations import PreferenceSource
from training.specs.conversations import PreferencesSection as Section
from training.specs.corpus import dropped_metric
from training.specs.job import StageResult

_PROGRESS_EVERY = 5_000
_UNPAIRED = "single answers with a label that no pair holds"
_SHOWN_WORDS = 10
_DIGEST = 16


@dataclass(frozen=True)
class _Pair:
    """A pair and where it is from."""

    source: PreferenceSource
    row: SourceRow
    format: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]

    @property
    def keys(self) -> tuple[bytes, bytes, bytes]:
        """Digests of the prompt and the two answers; what differs in nothing but blanks has one."""
        return _digest(turns_key(self.prompt)), _answer_key(self.chosen), _answer_key(self.rejected)


@dataclass
class _Answers:
    """The labelled answers to one prompt, by digest."""

    prompt: list[Message]
    good: dict[bytes, tuple[SourceRow, list[Message]]] = field(default_factory=dict)
    bad: dict[bytes, tuple[SourceRow, list[Message]]] = field(default_factory=dict)


def _digest(text: str) -> bytes:
    return bytes.fromhex(text_id(text))[:_DIGEST]


def _answer_key(answer: list[Message]) -> bytes:
    return _digest(turns_key(answer, plain_answer))


def run(context: StageContext[Section]) -> StageResult:
    """Gather the pairs.

    Raises:
        SourceError: A source is missing or malformed, two rows contradict each other, or no pair is kept.
        RecipeError: All pairs are held out.
    """
    section = context.section
    bad = BadRows(section.on_bad_row, context.report / SKIPPED, "preference_options.on_bad_row")
    gathering = _Gathering(section, bad, DroppedRows(context.report / DROPPED), Gathered(section.sources))
    pool = Pool(context.work, context.execution, context.events, READING_MEMORY)
    with bounded_memory(READING_MEMORY):
        for source in section.sources:
            left_out = gathering.gathered.left_out[source.name]
            files = files_of_rows(source, pool, left_out)
            context.events.phase(f"read {source.name}")
            for row in read_rows_of(source, files, bad, fetched_folder(pool), left_out):
                gathering.add(source, row)
                if gathering.rows % _PROGRESS_EVERY == 0:
                    context.events.progress(gathering.rows, None, "rows", f"{len(gathering.pairs):,} pairs")
            gathering.end(source)
            gathering.gathered.remote += provenance(files, source, fetched_folder(pool))

        context.events.phase("contradictions")
        gathering.drop_contradictions()
        _write(context, gathering)

    dropped, gathered = gathering.dropped, gathering.gathered
    dropped.write()
    gathered.write(context.report, "Preferences", "pairs", dropped, bad)
    return StageResult(
        metrics={
            "pairs": float(gathered.rows(TRAIN)),
            "heldout_pairs": float(gathered.rows(HELDOUT)),
            "bad_rows": float(bad.count),
            "left_out_files": float(sum(files.total() for files in gathered.left_out.values())),
            **{f"{name}_pairs": float(count) for name, count in sorted(gathered.formats().items())},
            **{dropped_metric(reason): float(count) for reason, count in sorted(dropped.total.items())},
        },
        headline="pairs",
    )


class _Gathering:
    """Pairs so far, by the recipe's rules."""

    def __init__(self, section: Section, bad: BadRows, dropped: DroppedRows, gathered: Gathered) -> None:
        self.section, self.bad, self.dropped, self.gathered = section, bad, dropped, gathered
        self.rows = 0
        self.pairs: dict[tuple[bytes, bytes, bytes], _Pair] = {}
        self._start_source()

    def _start_source(self) -> None:
        self._identical: list[SourceRow] = []
        self._seen = 0
        self._words: Counter[str] = Counter()
        self._unknown: list[tuple[SourceRow, str]] = []
        self._answers: dict[bytes, _Answers] = {}

    def add(self, source: PreferenceSource, row: SourceRow) -> None:
        """Take a row."""
        self.rows += 1
        try:
            judgement = judgement_of(row.value, source.format, source.columns)
            if judgement.format == LABELLED:
                self._add_labelled(source, row, judgement)
                return
            if not judgement.pairs:
                raise Dropped(NO_PAIR)
            for chosen, rejected in judgement.pairs:
                try:
                    self._add_pair(source, row, judgement, chosen, rejected)
                except Dropped as reason:
                    self.dropped.add(source.name, row.place, str(reason))
        except RowProblem as problem:
            self.bad.report(f"{row.where}: {problem}")
        except Dropped as reason:
            self.dropped.add(source.name, row.place, str(reason))

    def _add_pair(
        self, source: PreferenceSource, row: SourceRow, judgement: Judgement, chosen: list[Message], bad: list[Message]
    ) -> None:
        prompt = orderly(judgement.prompt, self.section.roles)
        better, worse = (_answer(prompt, answer, self.section) for answer in (chosen, bad))
        self._keep(_Pair(source, row, judgement.format, _learned_none(prompt), better, worse))

    def _keep(self, pair: _Pair) -> None:
        self._seen += 1
        prompt, chosen, rejected = pair.keys
        if chosen == rejected:
            self._identical.append(pair.row)
            raise Dropped(IDENTICAL)
        if (prompt, chosen, rejected) in self.pairs:
            raise Dropped(DUPLICATE)
        self.pairs[prompt, chosen, rejected] = pair

    def _add_labelled(self, source: PreferenceSource, row: SourceRow, judgement: Judgement) -> None:
        self._words[judgement.label] += 1
        good = is_good(judgement.label, source.labels)
        if good is None:
            self._unknown.append((row, judgement.label))
            return

        assert judgement.answer is not None
        prompt = orderly(judgement.prompt, self.section.roles)
        answer = _answer(prompt, judgement.answer, self.section)
        answers = self._answers.setdefault(_digest(turns_key(prompt)), _Answers(_learned_none(prompt)))
        same, other = (answers.good, answers.bad) if good else (answers.bad, answers.good)
        key = _answer_key(answer)
        if key in same:
            raise Dropped(DUPLICATE)
        if key in other and self.section.contradictions == "refuse":
            raise _contradiction(other[key][0], row, "label the same answer to one prompt as good and as bad")
        same[key] = row, answer

    def end(self, source: PreferenceSource) -> None:
        """Do what takes all rows of a source: pair labelled answers, and judge its labels and equal answers.

        Raises:
            SourceError: A label is not known, or too many pairs have equal answers.
        """
        self._report_unknown(source)
        for answers in self._answers.values():
            self._pair_labelled(source, answers)

        if len(self._identical) > self.section.max_identical * self._seen:
            raise SourceError(
                f"source {source.name}: {len(self._identical):,} of {self._seen:,} pairs have the same answer twice, "
                f"blanks aside, the first at {self._identical[0].where}; correct chosen and rejected, or raise "
                "preference_options.max_identical"
            )
        self._start_source()

    def _report_unknown(self, source: PreferenceSource) -> None:
        seen = ", ".join(f"{word} ({count:,})" for word, count in self._words.most_common(_SHOWN_WORDS))
        for row, word in self._unknown:
            self.bad.report(
                f"{row.where}: the label {word!r} is not known; seen are {seen}. Say in labels of the source "
                f"{source.name} which of them are true and which false"
            )

    def _pair_labelled(self, source: PreferenceSource, answers: _Answers) -> None:
        """Pair good and bad answers in their order; the fewer are used again, so that each answer is in a pair."""
        for key in answers.good.keys() & answers.bad.keys():
            for side in (answers.good, answers.bad):
                self.dropped.add(source.name, side.pop(key)[0].place, CONTRADICTION)

        good, bad = list(answers.good.values()), list(answers.bad.values())
        if not good or not bad:
            self.gathered.notes[_UNPAIRED] += len(good) + len(bad)
            for row, _ in (*good, *bad):
                self.dropped.add(source.name, row.place, NO_OPPOSITE)
            return

        for number in range(max(len(good), len(bad))):
            (row, chosen), (_, rejected) = good[number % len(good)], bad[number % len(bad)]
            try:
                self._keep(_Pair(source, row, LABELLED, answers.prompt, chosen, rejected))
            except Dropped as reason:
                self.dropped.add(source.name, row.place, str(reason))

    def drop_contradictions(self) -> None:
        """Drop pairs that are there the other way round as well.

        Raises:
            SourceError: There are some, and the recipe does not drop them.
        """
        opposite = [keys for keys in self.pairs if (keys[0], keys[2], keys[1]) in self.pairs]
        if opposite and self.section.contradictions == "refuse":
            prompt, chosen, rejected = opposite[0]
            first, second = self.pairs[opposite[0]].row, self.pairs[prompt, rejected, chosen].row
            raise _contradiction(first, second, "prefer opposite answers to one prompt")
        for keys in opposite:
            pair = self.pairs.pop(keys)
            self.dropped.add(pair.source.name, pair.row.place, CONTRADICTION)


def _answer(prompt: list[Message], answer: list[Message], section: Section) -> list[Message]:
    """An answer after the recipe's rules, to a prompt that is in order.

    Raises:
        RowProblem: Its roles are in no order.
        Dropped: It is empty.
    """
    whole = answered(orderly([*prompt, *answer], section.roles))
    turns = whole[len(prompt) :]
    if not turns:
        raise Dropped(EMPTY_ANSWER)
    check_answers(turns, "drop")
    return with_learned([{**turn, "train": True} if turn["role"] == "assistant" else turn for turn in turns], "all")


def _learned_none(prompt: list[Message]) -> list[Message]:
    """The prompt with its keys in one order; none of its turns is learned."""
    marker: Message = {"role": "assistant", "content": "", "train": True}
    unlearned = [{**turn, "train": False} if turn["role"] == "assistant" else turn for turn in prompt]
    return with_learned([*unlearned, marker], "all")[:-1]


def _contradiction(first: SourceRow, second: SourceRow, problem: str) -> SourceError:
    return SourceError(
        f"{second.where} and {first.where} {problem}; remove one of them, or set "
        "preference_options.contradictions: drop"
    )


def _write(context: StageContext[Section], gathering: _Gathering) -> None:
    """Write the pairs of both splits.

    Raises:
        SourceError: There is none.
        RecipeError: All are held out.
    """
    gathered, section = gathering.gathered, gathering.section
    _check_kept(gathering)
    with (
        TableWriter(context.out / "train.parquet", GATHERED_PAIR_SCHEMA) as train,
        TableWriter(context.out / "heldout.parquet", GATHERED_PAIR_SCHEMA) as heldout,
    ):
        writers = {TRAIN: train, HELDOUT: heldout}
        for pair in gathering.pairs.values():
            row = _row(pair)
            split = split_of(pair.prompt, section.heldout)
            writers[split].add(row, sum(len(row[key]) for key in ("prompt", "chosen", "rejected")))
            gathered.kept[pair.source.name, pair.format, split] += 1
            gathered.sample(
                source=pair.source.name,
                where=pair.row.place,
                format=pair.format,
                prompt=excerpt(pair.prompt),
                chosen=excerpt(pair.chosen),
                rejected=excerpt(pair.rejected),
            )


def _check_kept(gathering: _Gathering) -> None:
    splits = Counter(split_of(pair.prompt, gathering.section.heldout) for pair in gathering.pairs.values())
    if splits[TRAIN]:
        return
    if splits[HELDOUT]:
        raise RecipeError(
            f"preferences: all {splits[HELDOUT]} pairs are held out; lower preference_options.heldout or add rows"
        )
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in gathering.dropped.total.most_common())
    listed = itertools.chain(gathering.bad.listed, [f"dropped are {reasons}" if reasons else "their files hold no row"])
    names = ", ".join(source.name for source in gathering.section.sources)
    raise SourceError(
        f"the sources {names} give no pair: {next(listed)}; correct their files or the rules of the recipe's "
        "preferences"
    )


def _row(pair: _Pair) -> dict[str, Any]:
    texts = {name: to_json(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
    return {
        "id": text_id(*texts.values()),
        **texts,
        "source": pair.source.name,
        "where": pair.row.place,
        "licence": pair.source.licence,
        "format": pair.format,
    }
