"""Model cards: what a model is, without a clock or a path, so that the same weights give the same card."""

from __future__ import annotations

import json
from typing import Any

from training.engine.fit import Fit
from training.engine.session import Session
from training.specs.contracts import parent_in
from training.specs.kinds import kind_of
from training.specs.mixture import Mixture

_ABOUT = {
    "base_model": "A language model trained from random weights on packed documents.",
    "sft_model": "The {parent}, fine-tuned on conversations; only the assistant's tokens were learned.",
    "dpo_model": "The {parent} after direct preference optimization (Rafailov et al., 2023).",
    "lora_model": "The {parent} with a LoRA adapter (Hu et al., 2021) for one domain, merged into its weights.",
}
_CALLED = {"base_model": "base model", "sft_model": "SFT model", "dpo_model": "DPO model"}
_LOAD = ("from transformers import pipeline", "", 'model = pipeline("text-generation", model="path/to/this/folder")')
_CONTINUE = (*_LOAD, 'print(model("import os\\n", max_new_tokens=64)[0]["generated_text"])')
_CHAT = (
    *_LOAD,
    'talk = [{"role": "user", "content": "What does `os.path.join` do?"}]',
    'print(model(talk, max_new_tokens=64)[0]["generated_text"][-1]["content"])',
)
# The metrics that do not depend on how long the training took.
_CLOCKLESS = (
    "train_loss_first",
    "train_loss",
    "steps",
    "tokens",
    "parameters",
    "flops",
    "converted_layers",
    "dropped_pairs",
    "dropped_pairs_share",
    "dropped_conversations",
    "dropped_conversations_share",
    "trainable_parameters",
    "rollbacks",
    "skipped_batches",
    "fp8_overflows",
    "clipped_share",
)


def write(session: Session, result: Fit, saved: str, mixture: Mixture | None = None) -> str:
    """The card in Markdown, with the hub's front matter. It is part of the artifact's content.

    Args:
        session: The job.
        result: The training.
        saved: The weights' precision, and why.
        mixture: What was read of each source.
    """
    context, facts = session.context, session.facts()

    parent = parent_in(context.inputs)
    about = _ABOUT.get(kind_of(context.asset), "A causal language model.")
    if getattr(session.section, "origin", None) is not None:
        about = "An imported language model, trained further on packed documents."
    about = about.format(parent=_CALLED.get(parent or "", parent))
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "license: other",
        "license_name: terms-of-the-training-texts",
        "---",
        "",
        f"# {context.asset}",
        "",
        about + " Trained by Gatehouse.",
        "",
        "**Licence.** The weights carry the terms of the texts they were trained on, and of the model that was "
        "imported where one was. The raw corpus and the conversations list the licence of every source.",
        "",
        "## Made from",
        "",
        "| input | version's content |",
        "|---|---|",
    ]

    lines += [f"| {name} | `{used.manifest.digest}` |" for name, used in sorted(context.inputs.items())]
    lines += ["", "## Use", "", "```python", *(_CONTINUE if context.asset == "base_model" else _CHAT), "```"]

    lines += ["", "## Training", "", "| | |", "|---|---|"]
    lines += [
        f"| {name.replace('_', ' ')} | {_number(result.metrics[name])} |"
        for name in _CLOCKLESS
        if name in result.metrics
    ]
    lines += [
        f"| {name} | {facts[name]} |"
        for name in ("precision", "kernels", "attention", "rows", "tokenizer")
        if name in facts
    ]
    lines += [f"| weights | {saved} |", f"| seed | {context.seed} |"]
    if mixture is not None:
        lines += ["", "## Read of each source", "", *_mixture_table(mixture)]
    lines += ["", "## Recipe", "", "```json", _recipe(session), "```", ""]
    return "\n".join(lines)


def without_front_matter(text: str) -> str:
    """The card as a page."""
    return text.split("---\n", 2)[2].lstrip()


def _mixture_table(mixture: Mixture) -> list[str]:
    shares = mixture.shares()
    rows = [
        f"| {source.name} | {source.tokens:,} | {source.held:,} | {source.epochs:.3f} | {shares[source.name]:.2%} |"
        for source in mixture.sources
    ]
    return ["| source | tokens learned | tokens there | times read | share |", "|---|--:|--:|--:|--:|", *rows]


def _recipe(session: Session) -> str:
    fields: dict[str, Any] = session.section.identity_fields()
    return json.dumps(fields, indent=1, sort_keys=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4f}"
