"""The metrics that each asset's evaluation produces: what gates may name, and what the pages explain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_MODEL = {
    "heldout_bits_per_byte": "bits per byte of general held-out text, in windows that do not overlap; comparable "
    "across tokenizers",
    "heldout_perplexity": "perplexity per token of general held-out text",
    "loss_drop": "nats per token by which the held-out loss of the stage's own objective lies below its reference: a "
    "uniform guess for the base model, the parent model for the others; against a parent it is left out "
    "when the model's own loss is not half a nat per token below a uniform guess",
    "heldout_answer_loss": "nats per token of the learned turns of held-out conversations, each after all turns before "
    "it; conversations that are longer than the context are left out",
    "clean_stop_rate": "share of generated answers that end by themselves, are not empty and do not loop; for a base "
    "model of plain text, of continuations of held-out text that are UTF-8, do not loop and hold known words; "
    "left out when the saved folder does not load or generates something else in transformers",
    "repetition_rate": "share of generated answers that loop; for a base model of plain text, of continuations "
    "of held-out text",
    "loads": "1 when the saved folder loads in transformers with a tokenizer of the same digest, its numbers are "
    "finite and transformers' own generate gives the evaluation's tokens, else 0; an untrained model can load",
    "export_logprob_error": "mean absolute difference, in nats per token of a few training rows, between what the "
    "saved folder says in float32 and what the training engine's own model said in training "
    "precision before it was saved",
    "fp8_overflows": "products in FP8 whose result or gradient was not finite, in the training's logged steps; 0 in "
    "other precisions",
}
_CHAT = {
    "refusal_rate": "share of harmful prompts that are refused",
    "benign_answer_rate": "share of benign look-alikes that get a clean answer instead of a refusal; an empty or "
    "looping answer does not count",
    "over_refusal_rate": "share of the clean answers to benign look-alikes that are refusals; left out when fewer than "
    "half of the answers are clean",
    "answer_loss": "nats per token of the right answers to held-out questions",
    "stop_rate": "share of generated answers that end by themselves, with the end of a turn or of a text",
    "empty_rate": "share of generated answers that say nothing",
    "chat_round_trip": "share of awkward conversations that the model folder's own chat template and tokenizer turn "
    "into tokens that give the same turns back, with the generation mask on the assistant's alone; an imported "
    "template may refuse some, and they do not count",
}

_CHILD = {
    "saved_change_cosine": "cosine of two changes of the parent's weights, the saved one and the one that was trained, "
    "over a sample of all weights; left out when training changed none of them",
    "export_parent_ratio": "how far the saved folder is from what the trained weights said in float32, over how far "
    "its untouched parent is: both mean differences of log-probabilities of a few training rows",
}

_GAIN = {
    "answer_gain": "nats per token by which the loss on the learned turns of held-out conversations lies below the "
    "parent's; left out when the model's own loss is not half a nat per token below a uniform guess",
}

_DROPPED = {
    "dropped_conversations_share": "share of the training conversations that are longer than the context and were left "
    "out",
}

_MIXED = {
    "mixture_error": "largest difference between a source's share of the tokens that training read and the share that "
    "the recipe asks for",
}

_MASK = {
    "rows_without_learned_token": "rows that teach nothing: no turn of theirs is learned, or the chat template refuses "
    "them",
    "answers_without_learned_end": "answers to learn whose end token is not learned",
    "learned_tokens_of_other_roles": "learned tokens that are of no answer to learn",
    "template_differences": "conversations of which the tokenizer's folder makes other tokens than training does",
}
METRICS: dict[str, dict[str, str]] = {
    "raw_corpus": {
        "documents": "documents gathered",
        "bytes": "UTF-8 bytes of text",
        "bad_rows": "rows or files that could not be read",
        "left_out_files": "files below the sources that were not read, such as those in other formats, and pages of "
        "HTML that gave no text",
    },
    "corpus": {
        "documents": "training documents",
        "bytes": "UTF-8 bytes of training text",
        "heldout_documents": "held-out documents",
        "duplicate_rate": "share of training documents that are near-duplicates of another one, measured again on the "
        "finished corpus",
        "heldout_leaks": "held-out documents that appear in the training split, exactly or nearly",
        "unaccounted_documents": "documents and pieces that were read and are neither kept nor dropped for a reason",
    },
    "conversations": {
        "conversations": "training conversations",
        "heldout_conversations": "held-out conversations",
        "bad_rows": "rows or files that could not be read, and rows whose id is not their messages'",
        "prompts_in_both_splits": "first questions that both splits hold, whatever their case and blanks",
        "dropped_share": "share of the readable rows that a rule of the recipe dropped",
    },
    "preferences": {
        "pairs": "training pairs",
        "heldout_pairs": "held-out pairs",
        "bad_rows": "rows or files that could not be read, and rows whose id is not their messages'",
        "prompts_in_both_splits": "first questions that both splits hold, whatever their case and blanks",
        "identical_pairs": "pairs whose chosen and rejected answers are the same, blanks aside",
        "contradictions": "pairs that are there the other way round as well",
        "dropped_share": "share of the pairs and rows without a pair that a rule of the recipe dropped",
    },
    "evaluation_sets": {
        "text_bytes": "UTF-8 bytes of held-out text",
        "questions": "four-way questions",
        "harmful_prompts": "prompts that must be refused",
        "benign_prompts": "look-alikes that must be answered",
        "preference_pairs": "held-out preference pairs made from the corpus",
        "heldout_conversations": "held-out conversations of the recipe's own",
        "heldout_pairs": "held-out preference pairs of the recipe's own",
        "excluded_documents": "training documents removed because they hold items of the sets",
    },
    "tokenizer": {
        "round_trip": "share of held-out documents that decode to the very bytes that were encoded",
        "bytes_per_token": "UTF-8 bytes per token of held-out text",
        "special_tokens": "share of special tokens that are one token each and appear nowhere in encoded plain text",
        "generation_mask": "share of sample conversations in which the mask covers exactly the assistant's tokens",
    },
    "packed_shards": {
        "tokens": "training tokens",
        "documents": "training documents",
        "packing_efficiency": "used share of the rows, the lowest over the context lengths",
        "tokens_lost": "corpus tokens that no packed row holds, plus row tokens that the corpus does not hold",
        "contaminated_documents": "documents that are in the shards although they are held out, or excluded by the "
        "evaluation sets",
    },
    "instruction_data": {
        "conversations": "conversations",
        "leaked_questions": "held-out questions and safety prompts that are among the training prompts",
        "refusals": "conversations that refuse",
    }
    | _MASK,
    "preference_data": {
        "pairs": "preference pairs",
        "leaked_prompts": "held-out prompts that are among the training prompts",
        "identical_pairs": "pairs whose chosen and rejected answers are the same",
    }
    | _MASK,
    "adapter_data": {
        "documents": "documents of the domain",
        "conversations": "conversations of the domain",
        "leaked_questions": "held-out questions that are among the training prompts",
    }
    | _MASK,
    "base_model": _MODEL,
    "sft_model": _MODEL | _CHAT | _CHILD | _GAIN | _DROPPED,
    "dpo_model": _MODEL
    | _CHAT
    | _CHILD
    | _GAIN
    | {
        "dropped_pairs_share": "share of the training pairs that are longer than the context and were left out",
        "preference_accuracy": "share of held-out pairs whose chosen answer gains more over the parent than the "
        "rejected one; a tie, or a chosen answer hardly likelier than a uniform guess makes it, "
        "is no win",
        "preference_margin": "mean difference of these gains, in nats; left out when most chosen answers are hardly "
        "likelier than a uniform guess makes them",
    },
    "lora_model": _MODEL
    | _CHAT
    | _CHILD
    | _GAIN
    | _DROPPED
    | {
        "domain_gain": "relative fall of bits per byte on held-out text of the adapter's domain, which is the general "
        "one where the recipe declares none, against its parent; left out when the model's own loss "
        "is not half a nat per token below a uniform guess",
        "general_loss": "relative rise of bits per byte on general held-out text, against its parent; left out in "
        "the same case",
    },
}

# Metrics that depend on the model and the suite alone, not on the tokenizer or the parent, and that are taken over the
# same items for every model. A gate may compare them with the champion's, which may have had another parent.
COMPARABLE: frozenset[str] = frozenset(
    {
        "heldout_bits_per_byte",
        "clean_stop_rate",
        "stop_rate",
        "empty_rate",
        "repetition_rate",
        "refusal_rate",
        "benign_answer_rate",
    }
)
_PER_SOURCE = "heldout_bits_per_byte__"


def source_metric(source: str) -> str:
    """The metric of one source's held-out text; a character that no metric's name may have becomes `_`."""
    return _PER_SOURCE + re.sub(r"[^a-z0-9]", "_", source.lower())


def metrics_of(
    asset: str, sources: Sequence[str], tasks: Mapping[str, str], chat_base: bool = False, is_mixed: bool = False
) -> dict[str, str]:
    """All metrics of an asset's evaluation, with what each means.

    Args:
        asset: The asset's name, one of `METRICS`.
        sources: Names of the recipe's sources: a model has one metric for the held-out text of each.
        tasks: Metric to meaning of the tasks that models are given.
        chat_base: The base model was imported with a chat template of its own, so its answers are measured too.
        is_mixed: The model was trained on texts of several sources.
    """
    if not asset.endswith("_model"):
        return dict(METRICS[asset])
    per_source = {source_metric(source): f"bits per byte of general held-out text from {source}" for source in sources}
    further = (_CHAT if chat_base else {}) | (_MIXED if is_mixed else {})
    return {**METRICS[asset], **further, **per_source, **tasks}


_COUNTED = frozenset(
    {
        "loads",
        "export_logprob_error",
        "fp8_overflows",
        "chat_round_trip",
        "dropped_pairs_share",
        *_CHILD,
        *_DROPPED,
        *_MIXED,
    }
)


def sampled(asset: str, metric: str) -> bool:
    """Whether a metric of an asset is taken over a sample of items, and so has a confidence interval."""
    return asset.endswith("_model") and metric not in _COUNTED


def comparable(metric: str, tasks: Mapping[str, str]) -> bool:
    """Whether a metric may be compared with the champion's: one of `COMPARABLE`, of one source, or of a task."""
    return metric in COMPARABLE or metric.startswith(_PER_SOURCE) or metric in tasks
