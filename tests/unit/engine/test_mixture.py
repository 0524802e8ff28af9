"""What a training reads of each source, and the refusal to read one too often."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training.data.tokens.shards import ShardDocuments, TokenShards, TokenWriter
from training.engine.batches import read_documents
from training.errors import RecipeError
from training.job.events import EventReader, EventWriter
from training.specs.base_model import BaseModelSection, Phase
from training.specs.optimization import Optimizer
from training.stages.base_model import tell_mixture

BATCH_TOKENS, CONTEXT = 1024, 128


def shards_of(folder: Path, documents: dict[str, int]) -> TokenShards:
    """Shards with documents of 100 tokens."""
    source = np.repeat(np.arange(len(documents)), list(documents.values())).astype(np.int32)
    with TokenWriter(folder, 300, 10**6) as writer:
        for _ in source:
            writer.add(np.ones(100, np.int32))
        names = tuple(documents)
        writer.finish(source, np.zeros((len(source), 32), np.uint8), names, dict.fromkeys(names, 1.0), "")
    return TokenShards(folder)


def told(folder: Path, weights: list[float], max_epochs: float | None) -> str:
    """What is said of a training of 20 steps over 200 documents of the web and 20 books."""
    shards = shards_of(folder, {"web": 200, "books": 20})
    section = BaseModelSection(
        architecture={"model_type": "llama"},
        steps=20,
        batch_tokens=BATCH_TOKENS,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=0),
        curriculum=(Phase(context=CONTEXT, share=1),),
        max_epochs=max_epochs,
    )
    documents = [np.flatnonzero(shards.source == number) for number in range(2)]
    tokens = ShardDocuments(shards, 0)
    segments = read_documents(documents, tokens, weights, [(0, 20, CONTEXT)], BATCH_TOKENS, 1, alone=False)
    tell_mixture(section, shards, segments, EventWriter(folder / "events.jsonl"))
    (event,) = EventReader(folder / "events.jsonl").poll()
    return str(event["message"])


def test_the_mixture_is_told(tmp_path: Path) -> None:
    alike = told(tmp_path / "a", [1.0, 1.0], None)
    assert alike == "reads web 91.9% (14,700 tokens, read 0.73 times), books 8.1% (1,300 tokens, read 0.65 times)"
    more = told(tmp_path / "b", [1.0, 5.0], max_epochs=4)
    assert more == "reads web 65.6% (10,500 tokens, read 0.53 times), books 34.4% (5,500 tokens, read 2.75 times)"


def test_a_source_that_would_be_read_too_often_is_refused(tmp_path: Path) -> None:
    message = r"tokens of books, which has 2,000: 2\.75 times, and 2 are allowed\. Lower its weight or the steps"
    with pytest.raises(RecipeError, match=message):
        told(tmp_path, [1.0, 5.0], max_epochs=2)
