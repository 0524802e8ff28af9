"""What the trainers compute: the same losses under every layout, known curves, clear refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.integration import training_jobs as jobs
from tests.integration.golden_losses import assert_golden
from training.data.conversations.chat_template import encode_conversation
from training.errors import EXIT_USER
from training.model_folder import load_model
from training.specs.artifacts import Manifest
from training.specs.execution import Execution
from training.store.store import Store
from training.tokenizer_folder import load_tokenizer

EVERY_STEP = {"log_every": 1, "checkpoints": {"every_steps": 1000, "keep": 1}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with data, and an untouched base model in place of every parent."""
    work = tmp_path_factory.mktemp("numbers")
    made = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(made, work)
    job = jobs.make_job(made, "base_model", work / "base", {"steps": 3})
    done = jobs.run(job)
    assert done.code == 0, done.output
    base = jobs.published(made, work / "base")
    jobs.promote(made, base)
    for asset in ("sft_model", "dpo_model"):
        jobs.copy_version(made, base, asset, work / asset)
    return made


def train(
    store: Store,
    asset: str,
    attempt: Path,
    section: dict[str, Any] | None = None,
    micro: int = 256,
    processes: int = 1,
    stage: int = 0,
) -> tuple[Manifest, list[dict[str, Any]], Path]:
    """Run a job that must succeed: its manifest, its logged rows, its folder."""
    execution = Execution(device="cpu", threads=1, processes=processes, micro_batch_tokens=micro, zero_stage=stage)
    done = jobs.run(jobs.make_job(store, asset, attempt, EVERY_STEP | (section or {}), execution), processes)
    assert done.code == 0, done.output
    manifest = jobs.published(store, attempt)
    folder = store.folder(asset, manifest.version)
    rows = [json.loads(line) for line in (folder / "report" / "training.jsonl").read_text().splitlines()]
    return manifest, rows, folder


def values(rows: list[dict[str, Any]], name: str = "loss") -> list[float]:
    return [row[name] for row in rows]


def test_accumulation_and_ranks_do_not_change_the_loss(store: Store, tmp_path: Path) -> None:
    """One micro-batch of 8 rows, 8 of one row, and two ranks with 4 each: the same global batch."""
    section = {"steps": 4, "curriculum": [{"context": 64, "share": 1.0}]}
    _, whole, _ = train(store, "base_model", tmp_path / "whole", section, micro=512)
    _, pieces, _ = train(store, "base_model", tmp_path / "pieces", section, micro=64)
    _, ranks, _ = train(store, "base_model", tmp_path / "ranks", section, micro=64, processes=2, stage=2)
    assert len(whole) == 4
    assert values(pieces) == pytest.approx(values(whole), rel=1e-5)
    assert values(ranks) == pytest.approx(values(whole), rel=1e-5)
    for other in (pieces, ranks):
        assert values(other, "grad_norm") == pytest.approx(values(whole, "grad_norm"), rel=1e-4)


def test_accumulation_does_not_change_a_masked_loss(store: Store, tmp_path: Path) -> None:
    """Micro-batches hold different numbers of assistant's tokens: a mean of their means would be another loss."""
    _, whole, _ = train(store, "sft_model", tmp_path / "whole", {"steps": 3}, micro=256)
    _, pieces, _ = train(store, "sft_model", tmp_path / "pieces", {"steps": 3}, micro=64)
    assert values(pieces) == pytest.approx(values(whole), rel=1e-5)


def test_accumulation_does_not_change_the_chosen_answers_loss(store: Store, tmp_path: Path) -> None:
    """Micro-batches hold different numbers of chosen tokens; without the weight the loss is that of DPO alone."""
    section = {"steps": 3, "sft_weight": 1.0}
    _, whole, _ = train(store, "dpo_model", tmp_path / "whole", section, micro=4096)
    _, pieces, _ = train(store, "dpo_model", tmp_path / "pieces", section, micro=64)
    assert values(pieces) == pytest.approx(values(whole), rel=1e-5)
    assert values(whole)[0] > math.log(2) + 1


def test_the_first_losses_of_a_base_model(store: Store, tmp_path: Path) -> None:
    manifest, rows, folder = train(store, "base_model", tmp_path / "attempt", {"steps": 12}, micro=512)
    assert_golden("base_model", values(rows))
    assert manifest.metrics["train_loss_first"] == rows[0]["loss"]
    assert manifest.metrics["tokens"] == 12 * 512
    assert manifest.headline == "train_loss"
    assert values(rows, "learning_rate")[2] == pytest.approx(3e-3)
    config = json.loads((folder / "model" / "config.json").read_text())
    assert "_name_or_path" not in config
    assert config["vocab_size"] == jobs.VOCABULARY
    assert load_file(folder / "model" / "model.safetensors")["model.norm.weight"].dtype.is_floating_point
    assert str(tmp_path) not in (folder / "model" / "README.md").read_text()
    assert json.loads((folder / "report" / "samples.json").read_text())[0].keys() == {"prompt", "answer"}


@pytest.mark.parametrize("asset", ["sft_model", "dpo_model", "lora_model"])
def test_the_first_losses_of_post_training(store: Store, tmp_path: Path, asset: str) -> None:
    _, rows, _ = train(store, asset, tmp_path / "attempt", {"steps": 10})
    assert len(rows) == 10
    assert_golden(asset, values(rows))


def test_fp8_trains_close_to_bf16(store: Store, tmp_path: Path) -> None:
    """Emulated FP8: every eligible layer is converted, and rounding moves the loss only a little."""
    low, low_rows, folder = train(store, "base_model", tmp_path / "fp8", {"precision": "fp8"})
    half, half_rows, _ = train(store, "base_model", tmp_path / "bf16", {"precision": "bf16"})
    assert low.metrics["converted_layers"] == 2 * 7
    assert half.metrics["converted_layers"] == 0
    assert values(low_rows) != values(half_rows)
    assert values(low_rows) == pytest.approx(values(half_rows), abs=0.1)
    weights = load_file(folder / "model" / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.bfloat16"}


def test_dpo_starts_from_its_reference(store: Store, tmp_path: Path) -> None:
    """Before the first update model and reference agree, so the loss is ln 2; too long pairs are counted."""
    manifest, rows, folder = train(store, "dpo_model", tmp_path / "attempt")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["reward_margin"] > 0
    assert manifest.metrics["dropped_pairs"] == 1
    reference = pq.read_table(folder / "reference_logprobs.parquet").to_pydict()
    assert reference["id"] == sorted(reference["id"])
    assert "p005" not in reference["id"]
    assert len(reference["id"]) == 17
    assert max(reference["chosen"] + reference["rejected"]) < 0


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_reference_is_exact_in_every_precision(store: Store, tmp_path: Path, precision: str) -> None:
    """Each answer's log-probability by itself, unpadded and in float32."""
    _, _, folder = train(store, "dpo_model", tmp_path / "attempt", {"precision": precision, "steps": 3})
    reference = pq.read_table(folder / "reference_logprobs.parquet").to_pydict()
    parent = store.promotion("sft_model")
    assert parent is not None
    sft = store.folder("sft_model", parent.version) / "model"
    model, tokenizer = load_model(sft), load_tokenizer(sft)
    data = store.promotion("preference_data")
    assert data is not None
    rows = pq.read_table(store.folder("preference_data", data.version) / "train.parquet").to_pylist()

    for row in (row for row in rows if row["id"] in reference["id"]):
        for side in ("chosen", "rejected"):
            ids, mask = (
                torch.from_numpy(part)[None]
                for part in encode_conversation(
                    tokenizer, [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row[side]}]
                )
            )
            with torch.inference_mode():
                logprobs = model(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
            by_hand = float(logprobs[mask[:, 1:]].sum())
            assert reference[side][reference["id"].index(row["id"])] == pytest.approx(by_hand, abs=2e-4)


def test_batch_that_cannot_be_divided_is_refused(store: Store, tmp_path: Path) -> None:
    done = jobs.run(
        jobs.make_job(
            store, "base_model", tmp_path / "attempt", None, Execution(device="cpu", threads=1, micro_batch_tokens=192)
        )
    )
    assert done.code == EXIT_USER
    assert "batch_tokens 512 cannot be divided into micro-batches of 192 tokens" in done.output
    assert "Traceback" not in done.output


def test_loss_that_is_not_finite_stops_the_job(store: Store, tmp_path: Path) -> None:
    wild = {"optimizer": {"learning_rate": 1e30, "warmup_steps": 0}}
    done = jobs.run(jobs.make_job(store, "base_model", tmp_path / "attempt", wild | EVERY_STEP))
    assert done.code == EXIT_USER
    assert "lower optimizer.learning_rate" in done.output
    assert not list((tmp_path / "attempt" / "checkpoints").glob("step-*"))


def test_architecture_that_does_not_exist_is_refused(store: Store, tmp_path: Path) -> None:
    wrong = {"architecture": {"model_type": "lamma"}}
    done = jobs.run(jobs.make_job(store, "base_model", tmp_path / "attempt", wrong))
    assert done.code == EXIT_USER
    assert "base_model.architecture" in done.output
