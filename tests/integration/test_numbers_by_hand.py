"""What the trainers log and save, computed again in plain PyTorch: no packing, no padding, no trainer.

A batch holds just as many rows as one pass over the data, so that every document is in every batch, whatever the order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from tests.integration import training_jobs as jobs
from training.data.tokens.packing import plan, whole
from training.data.tokens.shards import TokenShards
from training.engine import runtime
from training.specs.artifacts import Manifest
from training.specs.execution import Execution
from training.store.store import Store
from training.tokenizer_folder import load_tokenizer

CONTEXT, STEPS, SEED = 64, 3, 7
RATE, DECAY, BETAS, EPSILON = 3e-3, 0.1, (0.9, 0.95), 1e-8
Learned = tuple[list[int], list[bool]]


@dataclass(frozen=True)
class Trained:
    """A finished job."""

    manifest: Manifest
    rows: list[dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the jobs have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    work = tmp_path_factory.mktemp("by-hand")
    made = Store(str(work / "store"), jobs.RECIPE)
    jobs.publish_data(made, work, sources=["a"])
    return made


@pytest.fixture(scope="module")
def tokenizer(store: Store) -> PreTrainedTokenizerBase:
    pointer = store.promotion("tokenizer")
    assert pointer is not None
    return load_tokenizer(store.folder("tokenizer", pointer.version) / "tokenizer")


@pytest.fixture(scope="module")
def documents(store: Store, tokenizer: PreTrainedTokenizerBase) -> list[Learned]:
    """Windows of all documents with the token before each, and what is learned of them."""
    pointer = store.promotion("packed_shards")
    assert pointer is not None
    shards = TokenShards(store.folder("packed_shards", pointer.version))
    found: list[Learned] = []
    for index in range(len(shards.lengths)):
        ids = [tokenizer.eos_token_id, *shards.document(index).tolist()]
        for start in range(0, len(ids) - 1, CONTEXT - 1):
            window = ids[start : start + CONTEXT]
            found.append((window, [False] + [True] * (len(window) - 1)))
    return found


@pytest.fixture(scope="module")
def base(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Trained for three passes, and promoted."""
    pointer = store.promotion("packed_shards")
    assert pointer is not None
    shards = TokenShards(store.folder("packed_shards", pointer.version))
    rows = plan(whole(shards.lengths), CONTEXT).rows
    section = {
        "steps": STEPS,
        "batch_tokens": rows * CONTEXT,
        "curriculum": [{"context": CONTEXT, "share": 1.0}],
        "optimizer": {"learning_rate": RATE, "warmup_steps": 0, "schedule": "constant", "weight_decay": DECAY},
    }
    return train(store, "base_model", tmp_path_factory.mktemp("base") / "attempt", section, rows * CONTEXT)


def train(store: Store, asset: str, attempt: Path, section: dict[str, Any], micro: int) -> Trained:
    """Run a job and promote what it makes."""
    job = jobs.make_job(
        store, asset, attempt, section | {"log_every": 1}, Execution(device="cpu", threads=1, micro_batch_tokens=micro)
    )
    done = jobs.run(job)
    assert done.code == 0, done.output
    manifest = jobs.published(store, attempt)
    jobs.promote(store, manifest)
    folder = store.folder(asset, manifest.version)
    lines = (folder / "report" / "training.jsonl").read_text().splitlines()
    return Trained(manifest, [json.loads(line) for line in lines], folder)


def loss_of(model: PreTrainedModel, texts: Sequence[Learned]) -> torch.Tensor:
    """Mean loss of the learned tokens, each text read alone."""
    losses, count = [], 0
    for ids, learned in texts:
        logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].float()
        nats = nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        losses.append(nats[torch.tensor(learned[1:])].sum())
        count += sum(learned[1:])
    return torch.stack(losses).sum() / count


def conversation(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> Learned:
    """A conversation written out, of which the answer and its end of turn are learned."""
    question, answer = question.strip(), answer.strip()
    before = f"<|user|>\n{question}<|end|>\n<|assistant|>\n"
    encoded = tokenizer(f"{before}{answer}<|end|>\n", add_special_tokens=False, return_offsets_mapping=True)
    end = len(before) + len(answer) + len("<|end|>")
    return list(encoded["input_ids"]), [
        len(before) <= start and stop <= end for start, stop in encoded["offset_mapping"]
    ]


def test_three_steps_of_adamw(base: Trained, documents: list[Learned], tokenizer: PreTrainedTokenizerBase) -> None:
    """Losses, gradient norms and weights, with clipping and with decay of the matrices alone."""
    runtime.seed_everything(SEED)
    config = AutoConfig.for_model(
        **jobs.ARCHITECTURE,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in model.named_parameters()}
    for step in range(1, STEPS + 1):
        model.zero_grad()
        loss = loss_of(model, documents)
        torch.autograd.backward(loss)
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients.values()))
        row = base.rows[step - 1]
        assert row["loss"] == pytest.approx(loss.item(), abs=2e-6)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert row["clipped_share"] == float(norm > 1)
        assert row["learning_rate"] == RATE

        with torch.no_grad():
            for name, weight in model.named_parameters():
                gradient = gradients[name] * min(1.0, 1 / (norm + 1e-6))
                mean, square = state[name]
                mean.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
                square.mul_(BETAS[1]).add_(gradient.square(), alpha=1 - BETAS[1])
                if weight.dim() == 2:
                    weight.mul_(1 - RATE * DECAY)
                root = (square / (1 - BETAS[1] ** step)).sqrt() + EPSILON
                weight.sub_(RATE * mean / (1 - BETAS[0] ** step) / root)
    saved = load_file(base.folder / "model" / "model.safetensors")
    for name, weight in model.named_parameters():
        # Adam divides by the gradient's size: where that is itself rounding, the processor decides a step's length.
        difference = (saved[name] - weight.detach()).abs()
        assert float((difference > 2e-6).float().mean()) < 1e-3, name
        assert float(difference.max()) < RATE / 20, name
    clipped = sum(row["clipped_share"] for row in base.rows) / STEPS
    assert base.manifest.metrics["clipped_share"] == pytest.approx(clipped)


def test_first_batch_of_sft(store: Store, base: Trained, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """All conversations once, with one row in each of the step's forward passes."""
    table = pq.read_table(_input(store, "instruction_data") / "train.parquet").to_pylist()
    turns = [json.loads(row["messages"]) for row in table]
    texts = [conversation(tokenizer, one[0]["content"], one[1]["content"]) for one in turns]
    rows = plan(whole(np.array([len(ids) - 1 for ids, _ in texts])), CONTEXT).rows
    made = train(store, "sft_model", tmp_path / "attempt", {"steps": 3, "batch_tokens": rows * CONTEXT}, CONTEXT)
    model = AutoModelForCausalLM.from_pretrained(base.folder / "model", dtype=torch.float32)
    with torch.no_grad():
        assert made.rows[0]["loss"] == pytest.approx(loss_of(model, texts).item(), abs=2e-6)


def test_first_batch_of_dpo(store: Store, base: Trained, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """The model is its own reference then: ln 2 a pair, and the chosen answers' own mean loss."""
    jobs.copy_version(store, base.manifest, "sft_model", tmp_path / "parent")
    pairs = [
        row
        for row in pq.read_table(_input(store, "preference_data") / "train.parquet").to_pylist()
        if row["id"] != "p005"
    ]  # longer than the context
    made = train(
        store, "dpo_model", tmp_path / "attempt", {"steps": 3, "batch_pairs": len(pairs), "sft_weight": 0.5}, 10**6
    )
    model = AutoModelForCausalLM.from_pretrained(base.folder / "model", dtype=torch.float32)
    chosen = [_without_last(conversation(tokenizer, row["prompt"], row["chosen"])) for row in pairs]
    with torch.no_grad():
        by_hand = math.log(2) + 0.5 * loss_of(model, chosen).item()
    assert made.rows[0]["loss"] == pytest.approx(by_hand, abs=2e-6)
    assert made.manifest.metrics["dropped_pairs_share"] == pytest.approx(1 / (len(pairs) + 1))


def _input(store: Store, asset: str) -> Path:
    pointer = store.promotion(asset)
    assert pointer is not None
    return Path(store.folder(asset, pointer.version))


def _without_last(text: Learned) -> Learned:
    """Pairs end with the end of turn, without the line's end behind it."""
    ids, learned = text
    return ids[:-1], learned[:-1]
