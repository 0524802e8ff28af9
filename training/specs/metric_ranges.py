"""The range of each metric, and which way is better; a gate that no value can pass is found by it."""

from __future__ import annotations

import math
from dataclasses import dataclass

_SHARES_UP = (
    "round_trip",
    "special_tokens",
    "generation_mask",
    "packing_efficiency",
    "clean_stop_rate",
    "stop_rate",
    "refusal_rate",
    "benign_answer_rate",
    "chat_round_trip",
    "loads",
    "preference_accuracy",
)
_SHARES_DOWN = (
    "duplicate_rate",
    "repetition_rate",
    "over_refusal_rate",
    "empty_rate",
    "dropped_conversations_share",
    "dropped_pairs_share",
    "dropped_share",
    "mixture_error",
)
_FAULTS = (
    "bad_rows",
    "heldout_leaks",
    "unaccounted_documents",
    "tokens_lost",
    "contaminated_documents",
    "leaked_questions",
    "leaked_prompts",
    "identical_pairs",
    "prompts_in_both_splits",
    "rows_without_learned_token",
    "answers_without_learned_end",
    "learned_tokens_of_other_roles",
    "template_differences",
    "contradictions",
    "fp8_overflows",
    "export_logprob_error",
    "export_parent_ratio",
    "answer_loss",
    "heldout_answer_loss",
    "heldout_bits_per_byte",
    "left_out_files",
)
_AMOUNTS = (
    "documents",
    "bytes",
    "heldout_documents",
    "text_bytes",
    "questions",
    "harmful_prompts",
    "benign_prompts",
    "preference_pairs",
    "excluded_documents",
    "bytes_per_token",
    "tokens",
    "conversations",
    "heldout_conversations",
    "refusals",
    "pairs",
    "heldout_pairs",
)
# The harness's metrics that are a share of its items.
_TASK_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "acc_dcpmi", "exact_match", "pass@1")


@dataclass(frozen=True)
class MetricRange:
    """The values that a metric can have, bounds included.

    Attributes:
        better: 1 when more is better, -1 when less is better, 0 where that depends on the recipe's purpose.
    """

    low: float = -math.inf
    high: float = math.inf
    better: int = 0

    @property
    def is_share(self) -> bool:
        """Whether it is a part of a whole, from 0 to 1."""
        return (self.low, self.high) == (0.0, 1.0)


_UP, _DOWN = MetricRange(0.0, 1.0, 1), MetricRange(0.0, 1.0, -1)
_RANGES = {
    **dict.fromkeys(_SHARES_UP, _UP), **dict.fromkeys(_SHARES_DOWN, _DOWN),
    **dict.fromkeys(_FAULTS, MetricRange(low=0.0, better=-1)), **dict.fromkeys(_AMOUNTS, MetricRange(low=0.0)),
    "heldout_perplexity": MetricRange(low=1.0, better=-1), "loss_drop": MetricRange(better=1),
    "preference_margin": MetricRange(better=1), "answer_gain": MetricRange(better=1),
    "domain_gain": MetricRange(high=1.0, better=1),
    "general_loss": MetricRange(low=-1.0, better=-1), "saved_change_cosine": MetricRange(-1.0, 1.0, 1),
}  # fmt: skip


def metric_range(asset: str, metric: str, vocabulary: int, task_key: str = "") -> MetricRange:
    """The range of a metric of an asset; a metric that is not listed here can have any value.

    Args:
        asset: The asset.
        metric: One of its metrics.
        vocabulary: Tokens of the recipe's tokenizer. Its logarithm is the loss of a uniform guess.
        task_key: The harness's own metric, where a task gives it, such as `exact_match,strict-match`.
    """
    if task_key:
        name = task_key.partition(",")[0]
        if name in _TASK_SHARES or name.endswith("_acc"):
            return _UP
        return MetricRange(low=0.0, better=-1) if name == "bits_per_byte" else MetricRange()

    if asset == "base_model" and metric == "loss_drop":
        return MetricRange(high=math.log(vocabulary), better=1)
    if metric.startswith("heldout_bits_per_byte"):
        return _RANGES["heldout_bits_per_byte"]
    return _RANGES.get(metric, MetricRange())
