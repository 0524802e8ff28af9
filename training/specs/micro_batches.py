"""How a batch is divided among processes and forward passes. The recipe check uses it too, so it imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from training.errors import RecipeError


def micro_batch_tokens(batch_tokens: int, wanted: int, world_size: int, contexts: Sequence[int]) -> int:
    """Tokens per rank and forward pass: the launcher's wish, or the rank's whole share of a smaller batch.

    Args:
        batch_tokens: Tokens per optimizer step, of all ranks.
        wanted: The launcher's wish.
        world_size: Number of ranks.
        contexts: Tokens per row, of every phase of the curriculum.

    Raises:
        RecipeError: The batch cannot be divided into whole micro-batches of whole rows.
    """
    micro = min(wanted, batch_tokens // world_size)
    if micro == 0 or batch_tokens % (micro * world_size):
        raise RecipeError(
            f"batch_tokens {batch_tokens} cannot be divided into micro-batches of {micro} tokens on "
            f"{world_size} processes: batch_tokens must be a multiple of {max(micro, 1) * world_size}. "
            "Change micro_batch_tokens or processes in launchers.yaml, or batch_tokens in the recipe"
        )

    for context in contexts:
        if micro % context:
            raise RecipeError(
                f"a micro-batch of {micro} tokens does not hold whole rows of {context} tokens: set "
                f"micro_batch_tokens in launchers.yaml to a multiple of {context}, or change the context "
                "in the recipe"
            )
    return micro


def micro_batch_pairs(batch_pairs: int, context: int, micro_batch_tokens: int, world_size: int) -> int:
    """Pairs per rank and forward pass: the most that divide the batch and whose padded tokens stay within the limit.

    A single pair may exceed the limit.

    Args:
        batch_pairs: Pairs per optimizer step, of all ranks.
        context: Most tokens of a prompt with one answer.
        micro_batch_tokens: The launcher's limit, in tokens per rank and forward pass.
        world_size: Number of ranks.

    Raises:
        RecipeError: The ranks cannot share the batch evenly.
    """
    if batch_pairs % world_size:
        raise RecipeError(
            f"batch_pairs {batch_pairs} cannot be divided among {world_size} processes; change "
            "batch_pairs in the recipe or processes in launchers.yaml"
        )

    share = batch_pairs // world_size
    limit = max(1, micro_batch_tokens // (2 * context))
    return max(size for size in range(1, share + 1) if share % size == 0 and (size <= limit or size == 1))
