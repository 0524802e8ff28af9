"""Out of memory: restart with a smaller micro-batch, or name what is too large."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from training.engine.batches import Batches
from training.errors import RecipeError
from training.job.outcome import JobOutcome, RestartRequested, is_out_of_memory


@contextmanager
def smaller_when_short(batches: Batches, model: PreTrainedModel) -> Iterator[None]:
    """Turn a failed allocation into a restart with half the micro-batch and twice the accumulation.

    The batch stays the same, and so does the trained model, up to rounding.

    Raises:
        RestartRequested: The job is to be started again with fewer tokens per forward pass.
        RecipeError: The micro-batch is a single row already.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        smaller = batches.smaller()
        if smaller is None:
            raise RecipeError(
                f"out of memory at a micro-batch of one row ({batches.micro_tokens} tokens): {reason}. The largest "
                f"tensors are {largest_tensors(model, batches)}. Use a shorter context, a smaller model or vocabulary, "
                "precision bf16, more processes with zero_stage 2 or 3 in launchers.yaml, or a machine with more "
                "memory"
            ) from error

        message = (
            f"out of memory at a micro-batch of {batches.micro_tokens} tokens ({reason}): starting again from the "
            f"newest checkpoint with {smaller} tokens and {batches.micro_tokens / smaller:g} times the accumulation; "
            "the batch stays the same"
        )
        outcome = JobOutcome(kind="out_of_memory", micro_batch_tokens=smaller, message=message)
        raise RestartRequested(outcome) from error


def largest_tensors(model: PreTrainedModel, batches: Batches) -> str:
    """The largest tensors of a training step with their shapes and sizes in megabytes, in words."""
    config = model.config.get_text_config()
    tokens, parameters = batches.micro_tokens, sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    # Not every configuration names the width of its feed-forward layers; four times the model's is the usual one.
    wide = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    layers = int(config.num_hidden_layers)
    tensors = [
        (f"the logits [{tokens}, {config.vocab_size}] in float32", 4 * tokens * config.vocab_size),
        (
            f"the activations of {layers} layers [{layers}, {tokens}, {wide}] in at least two bytes",
            2 * layers * tokens * wide,
        ),
        (f"weights [{parameters}], gradients and optimizer [3 x {trained}] in float32", 4 * (parameters + 3 * trained)),
    ]
    return "; ".join(f"{name}, {size / 1e6:,.0f} MB" for name, size in sorted(tensors, key=lambda tensor: -tensor[1]))
