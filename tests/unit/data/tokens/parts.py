"""Small real artifacts: a corpus, its tokenizer and its shards, made by the stages themselves."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.tables import CORPUS_SCHEMA, EXCLUSION_SCHEMA, ShardWriter, text_id, write_table
from training.job.context import InputArtifact, StageContext
from training.job.events import EventWriter
from training.specs.artifacts import Manifest
from training.specs.base import Spec
from training.specs.corpus import CorpusSection
from training.specs.execution import Execution
from training.specs.packed_shards import PackedShardsSection
from training.specs.tokenizer import SPECIAL_TOKENS, TokenizerSection
from training.stages import packed_shards, tokenizer

VOCABULARY = 400
ADAPTER_DOMAIN = "letters"
_WORDS = [
    a + b
    for a in ("ka", "lo", "mi", "né", "pu", "ra", "so", "tu", "wé", "xi")
    for b in ("bar", "del", "fin", "gor", "hum", "jot", "lam", "nox", "pik", "ren")
]


def text_of(number: int, words: int = 120) -> str:
    """Text of its own for every number; some of it names special tokens."""
    generator = random.Random(number)
    chosen = [generator.choice(_WORDS) + str(generator.randrange(100)) for _ in range(words)]
    if number % 7 == 0:
        chosen.insert(3, generator.choice(SPECIAL_TOKENS))
    return " ".join(chosen) + "\n\n    done.\n"


def row_of(text: str, domain: str = "general", source: str = "one") -> dict[str, Any]:
    """A row of a corpus."""
    return {
        "id": text_id(text),
        "text": text,
        "source": source,
        "path": "p",
        "licence": None,
        "bytes": len(text.encode()),
        "domain": domain,
    }


def write_corpus(folder: Path, train: Sequence[Mapping[str, Any]], heldout: Sequence[Mapping[str, Any]]) -> None:
    """Write the two splits."""
    for name, rows in (("train", train), ("heldout", heldout)):
        with ShardWriter(folder / name, CORPUS_SCHEMA) as writer:
            for row in rows:
                writer.add(row, row["bytes"])


def artifact(
    folder: Path,
    asset: str,
    section: Spec | None = None,
    facts: dict[str, str] | None = None,
) -> InputArtifact:
    """An artifact as a stage is given it."""
    folder.mkdir(parents=True, exist_ok=True)
    return InputArtifact(
        folder,
        Manifest(
            asset=asset,
            version="v1",
            stage=asset,
            recipe="test",
            identity="i",
            fingerprint="f",
            digest="d",
            files={},
            inputs={},
            metrics={},
            facts=facts or {},
            section=section.model_dump(mode="json") if section else {},
            seed=0,
            started_at=0,
            seconds=0,
        ),
    )


def context_of(out: Path, asset: str, section: Any, inputs: dict[str, InputArtifact]) -> StageContext[Any]:
    """What a stage is given."""
    out.mkdir(parents=True)
    return StageContext(
        asset=asset,
        identity="i",
        section=section,
        seed=0,
        inputs=inputs,
        files={},
        out=out,
        work=out,
        execution=Execution(),
        events=EventWriter(None),
        rank=0,
        world_size=1,
    )


def corpus_artifact(folder: Path, documents: int = 40) -> InputArtifact:
    """A corpus of two sources, with a domain kept back and ten held-out documents."""
    train = [
        row_of(text_of(number), ADAPTER_DOMAIN if number % 9 == 0 else "general", "one" if number % 3 else "two")
        for number in range(documents)
    ]
    write_corpus(folder, train, [row_of(text_of(1000 + number)) for number in range(10)])
    return artifact(folder, "corpus", CorpusSection())


def sets_artifact(folder: Path, excluded: Sequence[str] = ()) -> InputArtifact:
    """Evaluation sets with nothing but exclusions."""
    sets = artifact(folder, "evaluation_sets")
    write_table(
        folder / "exclusions.parquet",
        [{"id": name, "item": "q", "reason": "text", "overlap": 1.0} for name in excluded],
        EXCLUSION_SCHEMA,
    )
    return sets


def tokenizer_artifact(folder: Path, corpus: InputArtifact, vocabulary: int = VOCABULARY) -> InputArtifact:
    """A tokenizer trained on the corpus."""
    section = TokenizerSection(vocabulary=vocabulary)
    result = tokenizer.run(context_of(folder, "tokenizer", section, {"corpus": corpus}))
    return artifact(folder, "tokenizer", section, result.facts)


def shards_artifact(folder: Path, inputs: dict[str, InputArtifact]) -> InputArtifact:
    """Shards of several files, without the domain kept back."""
    section = PackedShardsSection(
        contexts=(32, 64), shard_tokens=2000, exclude_domains=(ADAPTER_DOMAIN,), weights={"one": 1.0, "two": 2.0}
    )
    result = packed_shards.run(context_of(folder, "packed_shards", section, inputs))
    return artifact(folder, "packed_shards", section, result.facts)
