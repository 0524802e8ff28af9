"""The metrics that each asset's evaluation produces: what gates may name, and what the pages explain."""

from __future__ import annotations

_MODEL = {
    "heldout_bits_per_byte": "bits per byte of general held-out text, in windows that do not overlap; comparable "
                             "across tokenizers",
    "heldout_perplexity": "perplexity per token of general held-out text",
    "loss_drop": "nats per token by which the held-out loss of the stage's own objective lies below its reference: a "
                 "uniform guess for the base model, the parent model for the others; against a parent it is left out "
                 "when the model's own loss is not half a nat per token below a uniform guess",
    "choice_accuracy": "share of four-way held-out questions that raise the likelihood of their right answer the most, "
                       "per token and against other questions; the right answer must also be half a nat per token "
                       "likelier than a uniform guess makes it; a tie is wrong",
    "clean_stop_rate": "share of generated answers that end by themselves, are not empty and do not loop; for the base "
                       "model, of continuations of held-out text that are UTF-8, do not loop and hold known words; "
                       "left out when the saved folder does not load or generates something else in transformers",
    "loads": "1 when the saved folder loads in transformers with a tokenizer of the same digest, its numbers are "
             "finite and transformers' own generate gives the evaluation's tokens, else 0; an untrained model can load",
}
_CHAT = {
    "refusal_rate": "share of harmful prompts that are refused",
    "benign_answer_rate": "share of benign look-alikes that get a clean answer instead of a refusal; an empty or "
                          "looping answer does not count",
    "over_refusal_rate": "share of the clean answers to benign look-alikes that are refusals; left out when fewer than "
                         "half of the answers are clean",
    "answer_loss": "nats per token of the right answers to held-out questions",
}

METRICS: dict[str, dict[str, str]] = {
    "raw_corpus": {
        "documents": "documents gathered",
        "bytes": "UTF-8 bytes of text",
        "bad_rows": "rows or files that could not be read",
    },
    "corpus": {
        "documents": "training documents",
        "bytes": "UTF-8 bytes of training text",
        "heldout_documents": "held-out documents",
        "duplicate_rate": "share of training documents that are near-duplicates of another one, measured again on the "
                          "finished corpus",
        "heldout_leaks": "held-out documents that appear in the training split, exactly or nearly",
    },
    "evaluation_sets": {
        "text_bytes": "UTF-8 bytes of held-out text",
        "questions": "four-way questions",
        "harmful_prompts": "prompts that must be refused",
        "benign_prompts": "look-alikes that must be answered",
        "preference_pairs": "held-out preference pairs",
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
        "contaminated_documents": "documents excluded by the evaluation sets that are in the shards",
    },
    "instruction_data": {
        "conversations": "conversations",
        "leaked_questions": "held-out questions and safety prompts that are among the training prompts",
        "refusals": "conversations that refuse",
    },
    "preference_data": {
        "pairs": "preference pairs",
        "leaked_prompts": "held-out prompts that are among the training prompts",
        "identical_pairs": "pairs whose chosen and rejected answers are the same",
    },
    "adapter_data": {
        "documents": "documents of the domain",
        "conversations": "conversations of the domain",
        "leaked_questions": "held-out questions that are among the training prompts",
    },
    "base_model": _MODEL,
    "sft_model": _MODEL | _CHAT,
    "dpo_model": _MODEL | _CHAT | {
        "preference_accuracy": "share of held-out pairs whose chosen answer gains more over the SFT model than the "
                               "rejected one; a tie, or a chosen answer hardly likelier than a uniform guess makes it, "
                               "is no win",
        "preference_margin": "mean difference of these gains, in nats; left out when most chosen answers are hardly "
                             "likelier than a uniform guess makes them",
    },
    "lora_model": _MODEL | _CHAT | {
        "domain_gain": "relative fall of bits per byte on held-out text of the domain, against the DPO model; left out "
                       "when the model's own loss is not half a nat per token below a uniform guess",
        "general_loss": "relative rise of bits per byte on general held-out text, against the DPO model; left out in "
                        "the same case",
        "domain_choice_accuracy": "share of the domain's four-way questions answered rightly",
    },
}
