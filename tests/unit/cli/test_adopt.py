"""`gatehouse adopt`: what it takes, what it leaves alone, and how it ends."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline.building import adoption as adoption_module
from pipeline.cli.adopt import adopt
from pipeline.jobs.launcher import JobRefused
from tests.unit.worlds import World
from training.errors import RecipeError
from training.job.fingerprint import fingerprint
from training.specs.artifacts import Proof
from training.specs.job import Job
from training.specs.proofs import PROOF_FILE

PROOF = Proof(method="rebuilt", compared="all 2 files, 10 bytes, equal byte for byte", files=2, bytes=10, seconds=3.0)


@pytest.fixture
def printed(world: World, monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the command prints, over five promoted assets that other code made."""
    world.publish_upstream()

    def changed(module: str) -> str:
        return fingerprint(module) if "evaluate" in module else "x" + fingerprint(module)[1:]

    def passes(_builder: object, job: Job, *_: object) -> None:
        if job.asset == "tokenizer":
            raise JobRefused("tokenizer v1: tokenizer/tokenizer.json is not what today's code makes: byte 7 differs")
        Path(job.attempt).mkdir(parents=True)
        (Path(job.attempt) / PROOF_FILE).write_text(PROOF.model_dump_json())

    monkeypatch.setattr("pipeline.building.planner.fingerprint", changed)
    monkeypatch.setattr(adoption_module, "_launch", passes)
    output = io.StringIO()
    workspace = SimpleNamespace(builder=lambda author: world.builder, store=world.store, loaded=world.builder.loaded)
    monkeypatch.setattr("pipeline.workspace.Workspace", lambda recipe: workspace)
    monkeypatch.setattr("pipeline.cli.decision.tidy", lambda *_: None)  # MLflow and Dagster are left alone
    monkeypatch.setattr("pipeline.cli.console.make_console", lambda: Console(file=output, width=200))
    return output


def test_all_are_adopted_but_what_fails_its_proof(world: World, printed: io.StringIO) -> None:
    assert not adopt("unit", [], True, "moved", "", 120)
    text = printed.getvalue()
    for asset in ("raw_corpus", "corpus", "evaluation_sets", "packed_shards"):
        assert f"{asset} {world.promoted(asset)} was adopted on" in text
        assert len(world.store.adoptions(asset, world.promoted(asset))) == 1
    assert "tokenizer is not adopted: tokenizer v1: tokenizer/tokenizer.json" in text
    assert "base_model is left alone: never built" in text
    assert "4 adopted in" in text and "not adopted: tokenizer." in text


def test_what_was_adopted_needs_no_second_time(world: World, printed: io.StringIO) -> None:
    assert adopt("unit", ["corpus", "raw_corpus"], False, "moved", "ada", 120)
    assert "2 adopted in" in printed.getvalue()
    assert adopt("unit", ["corpus"], False, "moved", "ada", 120)
    assert "corpus needs no adoption" in printed.getvalue()
    assert "0 adopted in" in printed.getvalue()


@pytest.mark.parametrize(
    ("assets", "is_all", "reason", "said"),
    [
        ([], False, "moved", "name the assets to adopt, or give --all"),
        (["corpus"], True, "moved", "name the assets to adopt, or give --all"),
        (["corpus"], False, " ", "--reason: say why"),
        (["corpu"], False, "moved", "did you mean corpus"),
    ],
)
def test_what_is_missing_is_said(assets: list[str], is_all: bool, reason: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        adopt("tiny", assets, is_all, reason, "ada", 120)
