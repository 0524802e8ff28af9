"""Preference pairs: batches, and the reference model's log-probabilities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lmkernels import high_precision
from trl.trainer.dpo_trainer import DataCollatorForPreference

from training.data.conversations.encoded_pairs import Pair
from training.data.tokens.order import RowOrder
from training.engine.batches import Batch, smaller_divisor
from training.engine.deepspeed_config import undivided
from training.engine.session import Session
from training.errors import InputRefused

CHOSEN_SHARE = "chosen_share"
REFERENCE_FILE = "reference_logprobs.parquet"
_PROVEN_BATCHES = 8  # of the reference model, which a proof computes again


@dataclass(frozen=True)
class PairBatches:
    """Batches of pairs, padded to the longest of each micro-batch.

    Attributes:
        steps: Optimizer steps.
        batch_pairs: Pairs per optimizer step, of all ranks together.
        micro_pairs: Pairs per rank and forward pass.
        context: Most tokens of a prompt with one answer.
        order: Which pairs a step reads.
        pad: Id of the padding token.
        reference: float32 [pairs, 2], log-probabilities of chosen and rejected under the reference model.
    """

    pairs: tuple[Pair, ...]
    steps: int
    batch_pairs: int
    micro_pairs: int
    context: int
    world_size: int
    order: RowOrder
    pad: int
    reference: np.ndarray

    @property
    def accumulation(self) -> int:
        """Micro-batches per rank and step."""
        return self.batch_pairs // (self.micro_pairs * self.world_size)

    @property
    def micro_tokens(self) -> int:
        """Most tokens per rank and forward pass, padding included."""
        return self.micro_pairs * 2 * self.context

    def smaller(self) -> int | None:
        """A divisor of the batch in whole pairs."""
        pairs = smaller_divisor(self.batch_pairs // self.world_size, self.micro_pairs)
        return pairs and pairs * 2 * self.context

    def micro_batch(self, step: int, micro: int, rank: int) -> Batch:
        """TRL's columns, and `CHOSEN_SHARE`.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask`, int64 [2 x pairs, length], the chosen answers first;
            `ref_chosen_logps` and `ref_rejected_logps`, float32 [pairs]. `CHOSEN_SHARE` is the number of chosen tokens
            over its mean among the step's micro-batches, float64 [].
        """
        step_pairs = self.order.rows(step * self.batch_pairs, self.batch_pairs)[1]
        first = (micro * self.world_size + rank) * self.micro_pairs
        micro_pairs = step_pairs[first : first + self.micro_pairs]

        chosen = self._chosen_tokens(micro_pairs)
        mean = self._chosen_tokens(step_pairs) * self.micro_pairs / self.batch_pairs
        return self.collate(micro_pairs) | {CHOSEN_SHARE: torch.tensor(chosen / mean, dtype=torch.float64)}

    def tokens_before(self, step: int) -> int:
        """Tokens of all ranks before a step, padding left out."""
        lengths = np.array([pair.tokens for pair in self.pairs], np.int64)
        return int(lengths[self.order.rows(0, step * self.batch_pairs)[1]].sum()) if step else 0

    def _chosen_tokens(self, numbers: np.ndarray) -> int:
        return sum(self.pairs[number].learned_of_chosen for number in numbers)

    def longest(self, pad: int | None = None) -> Batch:
        """A micro-batch of the longest pairs."""
        by_length = sorted(range(len(self.pairs)), key=lambda number: -self.pairs[number].longest)
        return self.collate(np.resize(np.array(by_length), self.micro_pairs), pad)

    def collate(self, numbers: np.ndarray, pad: int | None = None) -> Batch:
        """The batch of the pairs with these numbers, int64 [pairs], padded to the longest of them."""
        examples = [
            {
                "prompt_ids": self.pairs[number].prompt,
                "chosen_ids": self.pairs[number].chosen,
                "rejected_ids": self.pairs[number].rejected,
                "ref_chosen_logps": float(self.reference[number, 0]),
                "ref_rejected_logps": float(self.reference[number, 1]),
            }
            for number in numbers
        ]
        batch: Batch = DataCollatorForPreference(pad_token_id=self.pad if pad is None else pad)(examples)
        self._leave_given(batch["completion_mask"], numbers)
        return batch

    def _leave_given(self, mask: torch.Tensor, numbers: np.ndarray) -> None:
        """Take what is not learned out of a mask of chosen and then rejected answers, int64 [2 x pairs, length]."""
        for row, number in enumerate(numbers):
            pair = self.pairs[number]
            for side, given in enumerate(pair.given):
                if given:
                    mask[row + side * len(numbers), len(pair.prompt) + torch.tensor(given)] = 0


def reference_logprobs(session: Session, trainer: Any, batches: PairBatches) -> np.ndarray:
    """Log-probabilities of all pairs under the model as it is now, computed in float32.

    In bf16 they depend on a batch's padding, by up to 0.27 nats an answer, and training pads other batches.
    Pairs are taken in the order of their ids, in batches that do not depend on the training order. Finished batches are
    kept in the attempt's folder, so that a job that was stopped continues after them.

    A proof computes the first batches again, and takes the others from the version that it proves.

    Returns:
        Natural log-probabilities of the chosen and the rejected answer, float32 [pairs, 2].
    """
    context, job_runtime = session.context, session.runtime
    size, count = batches.micro_pairs, len(batches.pairs)
    # A restart with a smaller micro-batch has other batches, so the size is part of the path.
    folder = context.work / "reference" / str(size)
    folder.mkdir(parents=True, exist_ok=True)
    recorded = _recorded_reference(session, batches.pairs)
    starts = range(0, count, size) if recorded is None else range(0, count, size)[:_PROVEN_BATCHES]

    context.events.phase("reference log-probabilities")
    model = trainer.model.to(job_runtime.device).eval()
    scored = min(count, len(starts) * size)
    for number, start in enumerate(starts):
        target = folder / f"{start:08d}.npy"
        if number % job_runtime.world_size == job_runtime.rank and not target.exists():
            with torch.no_grad(), high_precision(model), undivided(trainer.args.hf_deepspeed_config):
                inputs = trainer._prepare_inputs(batches.collate(np.arange(start, min(start + size, count))))
                logprobs = trainer.compute_ref_log_probs(model, inputs)
            _write(target, torch.stack(logprobs, dim=1).float().cpu().numpy())
        if number % 16 == 0:
            context.events.progress(start, scored, "pairs")
    context.events.progress(scored, scored, "pairs")

    torch.distributed.barrier()
    computed = np.concatenate([np.load(folder / f"{start:08d}.npy", allow_pickle=False) for start in starts])
    return computed if recorded is None else _proven_reference(computed, recorded, batches.pairs)


def _recorded_reference(session: Session, pairs: Sequence[Pair]) -> np.ndarray | None:
    """The values that the version of a proof recorded, float32 [pairs, 2]; None in a build."""
    if session.context.recorded is None:
        return None
    table = pq.read_table(pa.BufferReader(session.context.recorded(REFERENCE_FILE)))
    if table["id"].to_pylist() != [pair.id for pair in pairs]:
        raise InputRefused(f"{session.context.asset}: {REFERENCE_FILE} of the version is about other pairs")
    return np.stack([table["chosen"].to_numpy(), table["rejected"].to_numpy()], axis=1)


def _proven_reference(computed: np.ndarray, recorded: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """The recorded values, once the ones that were computed again are equal to them."""
    differing = np.flatnonzero((computed != recorded[: len(computed)]).any(axis=1))
    if len(differing):
        first = int(differing[0])
        raise InputRefused(
            f"the reference log-probabilities of the pair {pairs[first].id} are {computed[first].tolist()} with "
            f"today's code, and the version recorded {recorded[first].tolist()}"
        )
    return recorded


def save_reference(path: Path, pairs: Sequence[Pair], reference: np.ndarray) -> None:
    """Write reference_logprobs.parquet: id, chosen, rejected.

    Args:
        path: The file.
        pairs: In the order of `reference`.
        reference: float32 [pairs, 2].
    """
    table = pa.table(
        {
            "id": [pair.id for pair in pairs],
            "chosen": pa.array(reference[:, 0], pa.float32()),
            "rejected": pa.array(reference[:, 1], pa.float32()),
        }
    )
    pq.write_table(table, path, compression="zstd", write_statistics=False)


def _write(target: Path, values: np.ndarray) -> None:
    """Write an array whole or not at all: a job that is killed in between must not find half of it."""
    partial = target.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    os.replace(partial, target)
