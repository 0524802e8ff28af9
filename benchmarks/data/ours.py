"""Gatehouse's own steps, run without Dagster: `python -m benchmarks.data.ours STEP CORPUS FOLDER TOKENIZER`."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.job.context import InputArtifact, StageContext
    from training.specs.base import Spec
    from training.specs.corpus import CorpusSection

# A process of the pool imports this module again, as it imports `training.run` of a job, and needs no stage for that.
CONTEXT = 2048


def main(step: str, corpus_file: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """Run a step; what it made."""
    steps = {"shards": _shards, "near-duplicates": _near_duplicates, "tokens": _tokens, "plan": _plan}
    return steps[step](corpus_file, folder, tokenizer, processes)


def _shards(corpus_file: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """JSON lines to packed shards: read, clean, remove duplicates, hold text out, tokenize, plan the rows."""
    from training.data.tables import EXCLUSION_SCHEMA, write_table
    from training.data.tokens.byte_bpe import TOKENIZER_FILE
    from training.specs.corpus import CorpusSection
    from training.specs.packed_shards import PackedShardsSection
    from training.stages import packed_shards

    made = _corpus(corpus_file, folder, processes, CorpusSection(heldout=0.002))
    write_table(_folder(folder / "evaluation_sets") / "exclusions.parquet", [], EXCLUSION_SCHEMA)
    (folder / "tokenizer" / TOKENIZER_FILE).parent.mkdir(parents=True)
    shutil.copyfile(tokenizer, folder / "tokenizer" / TOKENIZER_FILE)
    inputs = {"corpus": made} | {name: _artifact(folder / name, name, {}) for name in ("evaluation_sets", "tokenizer")}
    section = PackedShardsSection(contexts=(CONTEXT,))
    context = _context(folder, "packed_shards", section, inputs, processes)
    result = packed_shards.run(context)
    return {"tokens": result.metrics["tokens"], "documents": result.metrics["documents"]}


def _near_duplicates(corpus_file: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """The ids of the documents that are left after exact and near-duplicates were removed."""
    from training.data.tables import read_rows
    from training.specs.corpus import CorpusSection

    every = CorpusSection(min_characters=0, min_letters=0, max_line=10**9, max_characters=10**9, heldout=0.002)
    made = _corpus(corpus_file, folder, processes, every)
    kept = [row["path"] for split in ("train", "heldout") for row in read_rows(made.folder / split, ["path"])]
    (folder / "kept.json").write_text(json.dumps(sorted({int(path.split("#")[1]) - 1 for path in kept})))
    return {"documents": len(kept)}


def _tokens(corpus_file: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """JSON lines to tokens on disk, by way of the raw corpus; nothing is cleaned or removed."""
    import numpy as np
    import pyarrow.parquet as pq

    from training.data.text.cut_documents import WHOLE
    from training.data.text.documents import Split
    from training.data.tokens.tokenized_parts import FileOfDocuments, tokenize_file
    from training.job.events import EventWriter
    from training.job.parts import Part, Pool
    from training.specs.execution import Execution
    from training.specs.raw_corpus import RawCorpusSection, Source
    from training.stages import raw_corpus

    section = RawCorpusSection(sources=(Source(name="s", path=str(corpus_file)),))
    raw_corpus.run(_context(folder, "raw_corpus", section, {}, processes))
    files = Split(folder / "raw_corpus" / "out" / "documents").files()
    rows = [pq.read_metadata(path).num_rows for path, _ in files]
    np.save(folder / "groups.npy", np.full(sum(rows), WHOLE, np.int32))
    parts = [
        Part(path.stem, FileOfDocuments(path, folder / "groups.npy", sum(rows[:number]), tokenizer, 0), size)
        for number, (path, size) in enumerate(files)
    ]
    done = Pool(folder / "parts", Execution(threads=processes), EventWriter(None)).run("tokenize", tokenize_file, parts)
    return {"documents": sum(rows), "engine": done[0].result["engine"]}


def _plan(corpus_file: Path, folder: Path, tokenizer: Path, processes: int) -> dict[str, Any]:
    """Best-fit packing of the lengths in a file, without the start of the process."""
    import numpy as np

    from training.data.tokens.packing import plan, whole

    lengths = np.load(corpus_file)
    plan(whole(lengths[:1000], np.arange(1000)), CONTEXT)  # compiles it
    started = time.perf_counter()
    packing = plan(whole(lengths, np.arange(len(lengths))), CONTEXT)
    return {"rows": packing.rows, "seconds": time.perf_counter() - started}


def _corpus(corpus_file: Path, folder: Path, processes: int, limits: CorpusSection) -> InputArtifact:
    from training.specs.raw_corpus import RawCorpusSection, Source
    from training.stages import corpus, raw_corpus

    section = RawCorpusSection(sources=(Source(name="s", path=str(corpus_file)),))
    result = raw_corpus.run(_context(folder, "raw_corpus", section, {}, processes))
    raw = _artifact(folder / "raw_corpus" / "out", "raw_corpus", result.metrics)
    corpus.run(_context(folder, "corpus", limits, {"raw_corpus": raw}, processes))
    return _artifact(folder / "corpus" / "out", "corpus", {})


def _context(
    folder: Path, asset: str, section: Spec, inputs: dict[str, InputArtifact], processes: int
) -> StageContext[Any]:
    from training.job.context import StageContext
    from training.job.events import EventWriter
    from training.specs.execution import Execution

    work = _folder(folder / asset)
    return StageContext(
        asset=asset,
        identity="",
        section=section,
        seed=0,
        inputs=inputs,
        files={},
        out=_folder(work / "out"),
        work=work,
        execution=Execution(threads=processes),
        events=EventWriter(None),
        rank=0,
        world_size=1,
    )


def _artifact(folder: Path, asset: str, metrics: dict[str, float]) -> InputArtifact:
    from training.job.context import InputArtifact
    from training.specs.artifacts import Manifest

    manifest = Manifest.model_construct(asset=asset, version="", metrics=metrics, section={}, facts={})
    return InputArtifact(folder, manifest)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], *map(Path, sys.argv[2:5]), int(sys.argv[5]))))
