"""The stage `corpus` as a real job, and its gates on what it made: held-out text is not trained on."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.conftest import Pipeline
from tests.unit.data.test_stages import lines, rows
from training.data.text.similarity import jaccard, shingle_sets
from training.errors import RecipeError
from training.evaluation.corpora import measure_corpus
from training.evaluation.measurement import Measurement
from training.job.context import InputArtifact
from training.job.events import EventWriter
from training.job.parts import Pool
from training.specs.execution import Execution
from training.stages import corpus as stage

WORDS = [
    "".join(syllables)
    for syllables in itertools.product(("ba", "ko", "li", "mu", "ne", "ro", "sa", "ti", "lan", "mer"), repeat=4)
]


def sentence(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=14)).capitalize() + "."


def jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def build(pipeline: Pipeline, files: Mapping[str, str], **section: Any) -> Path:
    """The folder of a corpus made from files."""
    folder = pipeline.root / f"source{pipeline.attempts}"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    pipeline.run("raw_corpus", {"sources": [{"name": "s", "path": str(folder)}]})
    return pipeline.run("corpus", {"heldout": 0.08} | section, ("raw_corpus",))


def measured(pipeline: Pipeline) -> dict[str, float]:
    """What the gates of the corpus see."""
    return measurement(pipeline).report.metrics


def measurement(pipeline: Pipeline) -> Measurement:
    manifest = pipeline.promoted("corpus")
    artifact = InputArtifact(pipeline.store.folder("corpus", manifest.version), manifest)
    scratch = pipeline.root / f"measured-{manifest.version}"
    scratch.mkdir()
    return measure_corpus(artifact, Pool(scratch, Execution(), EventWriter(None)))


def sides(folder: Path) -> tuple[set[str], set[str]]:
    """Texts of the two splits."""
    train, heldout = ({row["text"] for row in rows(folder / split)} for split in ("train", "heldout"))
    return train, heldout


def page(words: list[str]) -> str:
    return "\n".join(" ".join(words[at : at + 15]) for at in range(0, len(words), 15))


def near_twins(count: int, twins: int, changed: int) -> dict[str, str]:
    """Pages of 300 words; some have a twin with other words in places far apart."""
    draw, files = random.Random(15), dict[str, str]()
    for number in range(count):
        words = draw.sample(WORDS, 300)
        files[f"{number}.txt"] = page(words)
        if number < twins:
            for place in range(changed):
                words[10 + 46 * place] = f"other{number}x{place}"
            files[f"{number}b.txt"] = page(words)
    return files


@pytest.mark.parametrize("near", [{}, {"threshold": 0.7}, {"threshold": 0.5}, {"permutations": 64}])
def test_what_the_builder_keeps_passes_its_gates(pipeline: Pipeline, near: dict[str, Any]) -> None:
    build(pipeline, near_twins(300, 100, 6), near_duplicates=near)
    metrics = measured(pipeline)
    assert pipeline.promoted("corpus").metrics["dropped_near_duplicate"] == 100
    assert (metrics["duplicate_rate"], metrics["heldout_leaks"]) == (0, 0)


def test_a_twin_that_the_bands_miss_is_not_held_out(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "near_duplicates", lambda *_: np.empty((0, 2), np.uint32))
    build(pipeline, near_twins(60, 60, 3), heldout=0.3)
    metrics = measured(pipeline)
    assert metrics["duplicate_rate"] > 0.5
    assert metrics["heldout_leaks"] == 0
    assert pipeline.promoted("corpus").metrics["dropped_near_duplicate"] > 10


def test_a_text_in_two_forms_is_one_document(pipeline: Pipeline) -> None:
    draw = random.Random(9)
    french = (
        "été même à dès après très déjà français année élève école forêt hôtel père mère côté noël garçon leçon reçu "
        "août île frère voilà"
    )
    words = french.split()
    texts = ["\n".join(" ".join(draw.choices(words, k=12)) for _ in range(30)) for _ in range(40)]
    files = {
        f"{form}{number}.txt": unicodedata.normalize(form, text)
        for number, text in enumerate(texts)
        for form in ("NFC", "NFD")
    }

    train, heldout = sides(build(pipeline, files, heldout=0.2))
    assert pipeline.promoted("corpus").metrics["dropped_exact_duplicate"] == 40
    assert train | heldout == set(texts)
    assert not train & heldout
    assert measured(pipeline)["heldout_leaks"] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: {"posts.jsonl": jsonl(["New. " + texts[0][::-1], *texts])},
        lambda texts: {"posts.jsonl": jsonl([*texts, "New. " + texts[0][::-1]])},
        lambda texts: {"posts.jsonl": jsonl(texts[1:])},
        lambda texts: {"2026/posts.jsonl": jsonl(texts)},
        lambda texts: {"a.jsonl": jsonl(texts[300:]), "b.jsonl": jsonl(texts[:300])},
        lambda texts: {f"{number}.txt": text for number, text in enumerate(texts)},
    ],
    ids=["a row in front", "a row at the end", "first row deleted", "moved", "two files", "a file each"],
)
def test_other_rows_names_and_packing_move_no_document(
    pipeline: Pipeline, change: Callable[[list[str]], dict[str, str]]
) -> None:
    draw = random.Random(11)
    texts = [f"Row {number}. " + " ".join(sentence(draw) for _ in range(8)) for number in range(600)]
    train, heldout = sides(build(pipeline, {"posts.jsonl": jsonl(texts)}))
    _, heldout_then = sides(build(pipeline, change(texts)))
    assert len(heldout) > 40
    assert len(heldout - heldout_then) <= 1  # the share of bytes moves by one document
    assert len(heldout_then & train) <= 1


def test_paragraphs_in_one_line_are_kept(pipeline: Pipeline) -> None:
    draw = random.Random(8)
    notes = {
        f"{number}.md": f"# Note {number}\n\n"
        + "\n\n".join(" ".join(sentence(draw) for _ in range(draw.randint(4, 28))) for _ in range(10))
        for number in range(30)
    }
    assert max(map(len, "\n".join(notes.values()).split("\n"))) > 2_500
    train, heldout = sides(build(pipeline, notes))
    assert train | heldout == set(notes.values())


def test_a_refusal_names_what_was_dropped_and_where(pipeline: Pipeline) -> None:
    with pytest.raises(RecipeError, match=r"\(12 long line, such as s/\d+\.txt\); loosen corpus\.max_line"):
        build(pipeline, {f"{number}.txt": f"value{number}=" * 500 for number in range(12)})
    build(
        pipeline,
        {
            f"{number}.txt": f"value{number}=" * 500 if number else "A word of it. " * 90 + str(number)
            for number in range(-2, 12)
        }
        | {"good.txt": "Other words of it. " * 90},
    )
    cause = measurement(pipeline).causes["bytes"]
    assert "13 of them as long line (corpus.max_line), such as s/" in cause


def test_documents_of_symbols_stay(pipeline: Pipeline) -> None:
    symbols = [mark * count for mark in "!?-*#=" for count in range(1, 6)] + [chr(0x1F600 + n) * 2 for n in range(20)]
    words = ["".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=5)) for seed in range(50)]
    folder = build(pipeline, {"a.jsonl": jsonl(words + symbols)}, min_characters=0, min_letters=0, heldout=0.2)
    train, heldout = sides(folder)
    assert train | heldout == {*words, *symbols}
    assert measured(pipeline)["duplicate_rate"] == 0


def test_every_removed_document_is_near_one_that_stays(pipeline: Pipeline) -> None:
    draw = random.Random(3)
    words = draw.sample(WORDS, 200)
    files = {}
    for number in range(40):  # each is near the one before it, and far from the first
        words[5 * number : 5 * number + 3] = draw.sample(WORDS, 3)
        files[f"{number}.txt"] = " ".join(words)
    folder = build(pipeline, files, max_line=10_000)
    kept = list(shingle_sets((row["text"] for split in ("train", "heldout") for row in rows(folder / split)), 5))
    gone = [files[row["path"]] for row in lines(folder / "dropped.jsonl")]
    assert 10 < len(gone) < 40
    assert all(max(jaccard(removed, remaining) for remaining in kept) >= 0.8 for removed in shingle_sets(gone, 5))


def test_one_single_document_is_split_by_its_pieces(pipeline: Pipeline) -> None:
    draw = random.Random(4)
    story = "\n".join(sentence(draw) for _ in range(900))
    train, heldout = sides(build(pipeline, {"story.txt": story}, max_characters=2_000, heldout=0.1))
    assert 0 < len(heldout) < 15 < len(train)
    assert sum(map(len, train | heldout)) == len(story)


def test_documents_that_are_nowhere_stop_the_stage(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    texts = {f"{number}.txt": " ".join(sentence(draw) for _ in range(8)) for number in range(30)}
    build(pipeline, texts)
    whole = stage._Statistics.__init__

    def forgetful(self: Any, ranges: Any) -> None:
        whole(self, ranges)
        self.documents["general"] -= 1

    monkeypatch.setattr(stage._Statistics, "__init__", forgetful)
    with pytest.raises(AssertionError, match="of 30 pieces 28 are kept and 0 dropped"):
        build(pipeline, texts)
