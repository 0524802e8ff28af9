"""What a training reads of each source: planned, refused where it is too often, counted, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.tokens.shards import DocumentsOfSources, ShardDocuments, TokenShards, TokenWriter
from training.engine.batches import SOURCE_TOKENS, PackedBatches, loader, read_documents, share_steps
from training.errors import RecipeError
from training.job.events import EventReader, EventWriter
from training.specs.artifacts import Manifest
from training.specs.base_model import BaseModelSection
from training.specs.mixture import Mixture, SourceRead, asked_shares, sampling_weights
from training.specs.packed_shards import PackedShardsSection
from training.stages.base_model import planned_mixture, tell_mixture, tokens_held

BATCH_TOKENS, CONTEXT = 1024, 128
SECTION: dict[str, Any] = {
    "architecture": {"model_type": "llama"},
    "steps": 20,
    "batch_tokens": BATCH_TOKENS,
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 0},
    "curriculum": [{"context": CONTEXT, "share": 1.0}],
}


def shards_of(folder: Path, documents: dict[str, int], length: int = 100) -> TokenShards:
    """Shards with documents of so many tokens."""
    source = np.repeat(np.arange(len(documents)), list(documents.values())).astype(np.int32)
    with TokenWriter(folder, 300, 10**6) as writer:
        for _ in source:
            writer.add(np.ones(length, np.int32))
        names = tuple(documents)
        writer.finish(source, np.zeros((len(source), 32), np.uint8), names, dict.fromkeys(names, 1.0), "")
    return TokenShards(folder)


def batches_of(
    shards: TokenShards, section: BaseModelSection, weights: list[list[float]] | None = None, world_size: int = 1
) -> PackedBatches:
    """As the stage makes them; with other weights than the section's where some are given."""
    by_name = [sampling_weights(section, phase, shards.tokens_of_sources()) for phase in section.curriculum]
    weights = weights or [[of_phase[name] for name in shards.sources] for of_phase in by_name]
    spans = share_steps(section.steps, [phase.share for phase in section.curriculum])
    phases = [(first, end, phase.context) for phase, (first, end) in zip(section.curriculum, spans, strict=True)]
    documents = DocumentsOfSources(shards)
    tokens = ShardDocuments(shards)
    segments = read_documents(documents, tokens, weights[0], phases, section.batch_tokens, 1, False, weights)
    count = len(shards.sources)
    return PackedBatches(
        segments,
        tokens,
        section.batch_tokens,
        section.batch_tokens // world_size,
        world_size,
        0,
        False,
        shards.source,
        count,
    )


def counted(shards: TokenShards, batches: PackedBatches, steps: range | None = None) -> Mixture:
    """What all micro-batches of some steps say that they hold."""
    read = np.zeros(len(shards.sources), np.int64)
    for step in steps or range(batches.steps):
        for micro in range(batches.accumulation):
            for rank in range(batches.world_size):
                read += batches.micro_batch(step, micro, rank)[SOURCE_TOKENS].numpy()
    held = shards.tokens_of_sources()
    pairs = zip(shards.sources, read.tolist(), strict=True)
    return Mixture(sources=tuple(SourceRead(name=name, tokens=tokens, held=held[name]) for name, tokens in pairs))


def told(folder: Path, section: BaseModelSection, shards: TokenShards) -> str:
    planned = planned_mixture(section, shards.tokens_of_sources(), batches_of(shards, section).segments)
    tell_mixture(section, planned, EventWriter(folder / "events.jsonl"))
    (event,) = EventReader(folder / "events.jsonl").poll()
    return str(event["message"])


def section_of(**keys: Any) -> BaseModelSection:
    return BaseModelSection.model_validate(SECTION | keys)


def asked(section: BaseModelSection, shards: TokenShards) -> dict[str, float]:
    spans = share_steps(section.steps, [phase.share for phase in section.curriculum])
    return asked_shares(section, shards.tokens_of_sources(), [end - first for first, end in spans])


def test_the_mixture_is_told(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, {"web": 200, "books": 20})
    alike = told(tmp_path, section_of(), shards)
    assert alike == "reads web 91.9% (14,700 tokens, read 0.73 times), books 8.1% (1,300 tokens, read 0.65 times)"


def test_how_much_more_often_a_source_is_read_is_told(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, {"web": 200, "books": 20})
    more = told(tmp_path, section_of(weights={"books": 5.0}, max_epochs=4), shards)
    assert more == (
        "reads web 65.6% (10,500 tokens, read 0.53 times), books 34.4% (5,500 tokens, read 2.75 times); "
        "books is read 5.2 times while web is read once"
    )


def test_a_source_that_would_be_read_too_often_is_refused(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, {"web": 200, "books": 20})
    message = (
        r"tokens of books, which has 2,000: 2\.75 times, and 2 are allowed; books is read 5\.2 times while web is read "
        r"once\. Lower its weight or the steps"
    )
    with pytest.raises(RecipeError, match=message):
        told(tmp_path, section_of(weights={"books": 5.0}, max_epochs=2), shards)


def test_a_tenth_of_a_small_source_is_eleven_times_the_source(tmp_path: Path) -> None:
    """10 and 1,000 rows in shares of 0.1 and 0.9: to read the 1,000 once, the 10 are read 11.1 times, in whole rows."""
    shards = shards_of(tmp_path, {"small": 10, "large": 1000}, CONTEXT - 1)
    rows = 1111  # 1,000 of the large source and 111 of the small one
    keys = {"mixture": {"small": 0.1, "large": 0.9}, "steps": rows, "batch_tokens": CONTEXT}
    message = told(tmp_path, section_of(**keys), shards)
    assert message == (
        "reads small 10.1% (14,224 tokens, read 11.20 times), large 89.9% (126,873 tokens, read 1.00 times); "
        "small is read 11.2 times while large is read once"
    )
    with pytest.raises(RecipeError, match=r"of small, which has 1,270: 11\.20 times, and 4 are allowed; small is read"):
        told(tmp_path, section_of(**keys, max_epochs=4), shards)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"weights": {"books": 5.0}},
        {"mixture": {"web": 0.5, "books": 0.5}},
        {"curriculum": [{"context": 64, "share": 0.5}, {"context": 128, "share": 0.5, "weights": {"books": 9.0}}]},
        {
            "mixture": {"web": 1.0, "books": 0.0},
            "curriculum": [
                {"context": 64, "share": 0.4},
                {"context": 128, "share": 0.6, "mixture": {"web": 0.25, "books": 0.75}},
            ],
        },
    ],
)
def test_what_is_read_is_what_is_asked(tmp_path: Path, keys: dict[str, Any]) -> None:
    shards, section = shards_of(tmp_path, {"web": 200, "books": 20}), section_of(steps=200, **keys)
    mixture = counted(shards, batches_of(shards, section))
    assert mixture.error(asked(section, shards)) < 0.01
    assert counted(shards, batches_of(shards, section, world_size=2)) == mixture
    planned = planned_mixture(section, shards.tokens_of_sources(), batches_of(shards, section).segments)
    assert [source.tokens for source in planned.sources] == pytest.approx(
        [source.tokens for source in mixture.sources], rel=0.02, abs=200
    )


def test_the_share_holds_over_any_thousand_steps(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, {"web": 300, "books": 30})
    section = section_of(steps=2000, mixture={"web": 0.9, "books": 0.1})
    batches, wanted = batches_of(shards, section), asked(section, shards)
    for first in (0, 700):
        assert counted(shards, batches, range(first, first + 1000)).error(wanted) < 0.01


def test_another_mixture_than_the_asked_one_shows(tmp_path: Path) -> None:
    shards, section = shards_of(tmp_path, {"web": 200, "books": 20}), section_of(steps=200, weights={"books": 5.0})
    wrong = counted(shards, batches_of(shards, section, weights=[[1.0, 1.0]]))
    assert wrong.error(asked(section, shards)) > 0.2


def test_every_learned_token_is_counted(tmp_path: Path) -> None:
    shards, section = shards_of(tmp_path, {"web": 200, "books": 20}), section_of()
    batches = batches_of(shards, section)
    learned = sum(int((batch["labels"] != -100).sum()) for batch in loader(batches, 0, 0))
    assert counted(shards, batches).tokens == learned


def test_a_listed_source_without_text_is_in_the_account(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, {"web": 30, "books": 5})
    assert [numbers.tolist() for numbers in DocumentsOfSources(shards)] == [list(range(30)), list(range(30, 35))]
    listed = PackedShardsSection(weights={"books": 1.0, "code": 1.0, "web": 1.0}).model_dump(mode="json")
    manifest = Manifest.model_construct(section=listed)
    assert tokens_held(shards, manifest) == {"web": 3000, "books": 500, "code": 0}


def test_a_share_of_a_source_without_text_is_refused(tmp_path: Path) -> None:
    section = section_of(mixture={"web": 0.9, "code": 0.1})
    with pytest.raises(ValueError, match=r"0\.1 of the tokens are asked of code, and packed_shards holds none"):
        sampling_weights(section, section.curriculum[0], {"web": 100, "code": 0})
    nothing = section_of(mixture={"web": 1.0, "code": 0.0})
    weights = sampling_weights(nothing, nothing.curriculum[0], {"web": 100, "code": 0})
    assert weights["code"] == 0
    assert asked_shares(nothing, {"web": 100, "code": 0}, [20]) == {"web": 1.0, "code": 0.0}
