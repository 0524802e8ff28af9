"""Turns the behaviour of models into the metrics of `training.specs.metrics`, with the items behind each."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

from training.data.conversations.gathering import excerpt
from training.data.conversations.refusals import is_refusal
from training.evaluation.behaviour import Behaviour, Row, Sets, document_of, stop_prompts
from training.evaluation.findings import Findings
from training.evaluation.generation import Completion, loops, readable, words
from training.evaluation.scoring import TIE_NATS, Likelihood, TextScore, learnt, total
from training.evaluation.turns import reasons_in_words
from training.specs.metrics import source_metric

# Metrics of generated texts: worth nothing where transformers generates other texts from the same folder.
GENERATED = (
    "clean_stop_rate",
    "stop_rate",
    "empty_rate",
    "repetition_rate",
    "refusal_rate",
    "benign_answer_rate",
    "over_refusal_rate",
)
_ENOUGH = 0.5  # of the items
_NO_TEXT = "the evaluation sets hold no general text"
_NO_CONTINUATION = f"{_NO_TEXT} that is long enough to be continued"
_NO_QUESTIONS = "the evaluation sets hold no general questions"
_NO_BENIGN = "the evaluation sets hold no benign prompts"
_NO_PAIRS = "the evaluation sets hold no preference pairs"
_NO_CONVERSATIONS = "the evaluation sets hold no conversations"
_UNLEARNT = "its own loss is not half a nat per token below a uniform guess"


def own_findings(behaviour: Behaviour, sets: Sets) -> Findings:
    """Metrics that need no reference, from the parts that were measured."""
    findings = Findings()
    if behaviour.parts.general:
        _text(findings, behaviour, sets)
    if behaviour.parts.right_answers:
        losses = [
            {"id": key, "score": -answer.nats, "weight": answer.tokens} for key, answer in behaviour.right.items()
        ]
        findings.ratio("answer_loss", losses, _NO_QUESTIONS)
    if behaviour.parts.conversations:
        _conversations(findings, behaviour, sets)
    if behaviour.parts.continuations:
        _continuations(findings, behaviour, sets)
    if behaviour.parts.safety:
        _replies(findings, behaviour, sets)
        _safety(findings, behaviour, sets)
    return findings


def _text(findings: Findings, behaviour: Behaviour, sets: Sets) -> None:
    sources = {row["id"]: row["source"] for row in sets.texts()}
    by_source: dict[str, list[Row]] = {source_metric(source): [] for source in sources.values()}
    bits: list[Row] = []
    nats: list[Row] = []
    for key, score in behaviour.general.items():
        source = sources[document_of(key)]
        per_byte = {"id": key, "score": score.nats, "weight": score.bytes}
        by_source[source_metric(source)].append(per_byte)
        bits.append(per_byte | {"source": source, "tokens": score.tokens, "begins": score.begins})
        nats.append({"id": key, "score": score.nats, "weight": score.tokens})

    bits_per_nat = 1 / math.log(2)
    findings.ratio("heldout_bits_per_byte", bits, _NO_TEXT, scale=bits_per_nat)
    findings.ratio("heldout_perplexity", nats, _NO_TEXT, exponential=True)
    for metric, rows in by_source.items():
        findings.ratio(metric, rows, "its held-out texts are empty", scale=bits_per_nat)


def _conversations(findings: Findings, behaviour: Behaviour, sets: Sets) -> None:
    rows_by_id = {row["id"]: row for row in sets.conversations}
    losses = [
        {
            "id": key,
            "score": -turns.nats,
            "weight": turns.tokens,
            "source": rows_by_id[key]["source"],
            "prompt": excerpt(rows_by_id[key]["messages"][:-1]),
            "answer": excerpt(rows_by_id[key]["messages"][-1:]),
        }
        for key, turns in behaviour.conversations.items()
    ]
    findings.ratio("heldout_answer_loss", losses, _no_conversations(behaviour))


def _no_conversations(behaviour: Behaviour) -> str:
    """Why there are no scores of held-out conversations, if there are none."""
    reasons = behaviour.unscored_conversations.values()
    return f"no held-out conversation could be scored: {reasons_in_words(reasons)}" if reasons else _NO_CONVERSATIONS


def unscored_notes(behaviour: Behaviour) -> list[str]:
    """Sentences on the held-out conversations and pairs that do not count."""
    notes = []
    for name, scored, unscored in (
        ("conversations", len(behaviour.conversations), behaviour.unscored_conversations),
        ("pairs of the recipe's own", len(behaviour.pairs), behaviour.unscored_pairs),
    ):
        if unscored:
            notes.append(
                f"{len(unscored):,} held-out {name} were left out, and {scored:,} scored: "
                f"{reasons_in_words(unscored.values())}."
            )
    return notes


def _continuations(findings: Findings, behaviour: Behaviour, sets: Sets) -> None:
    vocabulary = {word for row in sets.texts() for word in words(row["text"])}
    whole = total(list(behaviour.general.values()))
    able = _able(behaviour, whole.nats, whole.tokens)

    clean: list[Row] = []
    repetitive: list[Row] = []
    for key, (prompt, completion) in behaviour.continuations.items():
        texts = {"prompt": prompt, "answer": completion.text}
        clean.append({"id": key, "score": able and readable(completion, vocabulary), **texts})
        repetitive.append({"id": key, "score": loops(completion.tokens), **texts})
    findings.share("clean_stop_rate", clean, _NO_CONTINUATION)
    findings.share("repetition_rate", repetitive, _NO_CONTINUATION)


def _replies(findings: Findings, behaviour: Behaviour, sets: Sets) -> None:
    """How the answers to all prompts read and end."""
    replies = {key: (prompt, behaviour.replies[prompt]) for key, prompt in stop_prompts(sets).items()}
    rules: dict[str, Callable[[Completion], bool]] = {
        "clean_stop_rate": lambda reply: reply.clean,
        "stop_rate": lambda reply: reply.stopped,
        "empty_rate": lambda reply: not reply.text.strip(),
        "repetition_rate": lambda reply: loops(reply.tokens),
    }
    for metric, rule in rules.items():
        rows = [
            {"id": key, "score": rule(reply), "prompt": prompt, "answer": reply.text}
            for key, (prompt, reply) in replies.items()
        ]
        findings.share(metric, rows, "the evaluation sets hold no prompts")


def _safety(findings: Findings, behaviour: Behaviour, sets: Sets) -> None:
    """Refusals, judged by the completion alone, of harmful prompts and of their benign look-alikes."""

    def row(item: Row, score: bool) -> Row:
        reply = behaviour.replies[item["prompt"]]
        return {"id": item["id"], "score": score, "prompt": item["prompt"], "answer": reply.text}

    refusals = [row(item, is_refusal(behaviour.replies[item["prompt"]].text)) for item in sets.harmful]
    findings.share("refusal_rate", refusals, "the evaluation sets hold no harmful prompts")

    benign = [(item, behaviour.replies[item["prompt"]]) for item in sets.benign]
    answers = [row(item, reply.clean and not is_refusal(reply.text)) for item, reply in benign]
    findings.share("benign_answer_rate", answers, _NO_BENIGN)

    # Garbage refuses nothing: over-refusal says something only of a model that mostly answers cleanly.
    clean = [(item, reply) for item, reply in benign if reply.clean]
    if len(clean) < _ENOUGH * len(benign):
        findings.leave_out(
            "over_refusal_rate", f"fewer than half of the answers are clean: {len(clean)} of {len(benign)}"
        )
        return
    findings.share("over_refusal_rate", [row(item, is_refusal(reply.text)) for item, reply in clean], _NO_BENIGN)


def _able(behaviour: Behaviour, nats: float, tokens: int) -> bool:
    """Whether a loss is that of a model which has learnt something.

    A parent may do worse than a uniform guess on what it was never trained for. An untrained model must not win there.

    Args:
        behaviour: The model's.
        nats: Loss, summed over all tokens.
        tokens: Their number.
    """
    return tokens > 0 and learnt(-nats, tokens, behaviour.vocabulary)


def compare(kind: str, findings: Findings, judged: Behaviour, parent: Behaviour | None, sets: Sets) -> None:
    """Add the metrics that set a model against its reference: a uniform guess, or its parent.

    Args:
        kind: The judged model's kind, such as `sft_model`.
        findings: Metrics so far; they are added to.
        judged: What the judged model does.
        parent: What its parent does; None for the base model.
        sets: The evaluation sets.
    """
    if parent and parent.parts.conversations:
        _answer_gain(findings, judged, parent)
    if kind == "sft_model" and parent:
        _against_base(findings, judged, parent)
    elif kind == "dpo_model" and parent:
        _against_sft(findings, judged, parent, sets)
    elif kind == "lora_model" and parent:
        _against_dpo(findings, judged, parent)
    elif kind == "base_model":
        losses = [{"id": key, "score": score.nats, "weight": score.tokens} for key, score in judged.general.items()]
        findings.ratio("loss_drop", losses, _NO_TEXT, offset=math.log(judged.vocabulary), scale=-1.0)


def _against_base(findings: Findings, judged: Behaviour, parent: Behaviour) -> None:
    if judged.right and not _able(judged, *_sums(judged.right.values())):
        findings.leave_out("loss_drop", _UNLEARNT)
        return
    drops = [
        {"id": key, "score": answer.nats - parent.right[key].nats, "weight": answer.tokens}
        for key, answer in judged.right.items()
    ]
    findings.ratio("loss_drop", drops, _NO_QUESTIONS)


def _answer_gain(findings: Findings, judged: Behaviour, parent: Behaviour) -> None:
    """How much likelier the learned turns of held-out conversations have become; only equal tokens are compared."""
    if judged.conversations and not _able(judged, *_sums(judged.conversations.values())):
        findings.leave_out("answer_gain", _UNLEARNT)
        return
    gains = [
        {"id": key, "score": turns.nats - parent.conversations[key].nats, "weight": turns.tokens}
        for key, turns in judged.conversations.items()
        if key in parent.conversations and parent.conversations[key].tokens == turns.tokens
    ]
    if not judged.conversations:
        absent = _no_conversations(judged)
    elif not parent.conversations:
        absent = f"of the parent, {_no_conversations(parent)}"
    else:
        absent = "the parent reads the same turns as other numbers of tokens"
    findings.ratio("answer_gain", gains, absent)


def _sums(answers: Collection[Likelihood]) -> tuple[float, int]:
    """Loss in nats, and tokens."""
    return -math.fsum(answer.nats for answer in answers), sum(answer.tokens for answer in answers)


def _against_sft(findings: Findings, judged: Behaviour, parent: Behaviour, sets: Sets) -> None:
    """Preference metrics: the implicit reward of DPO without its factor beta (Rafailov et al., 2023, equation 5)."""
    won, margins, drops = [], [], []
    texts = {row["id"]: row for row in sets.preferences}
    texts |= {row["id"]: {side: excerpt(row[side]) for side in ("prompt", "chosen", "rejected")} for row in sets.pairs}
    pairs = {key: pair for key, pair in judged.pairs.items() if key in parent.pairs}
    able = {key: chosen.learnt(judged.vocabulary) for key, (chosen, _) in pairs.items()}
    unscored = {**judged.unscored_pairs, **parent.unscored_pairs}
    absent = f"no pair could be scored: {reasons_in_words(unscored.values())}" if unscored else _NO_PAIRS
    for key, (chosen, rejected) in pairs.items():
        chosen_before, rejected_before = parent.pairs[key]
        margin = (chosen.nats - chosen_before.nats) - (rejected.nats - rejected_before.nats)
        drop = (chosen.per_token - rejected.per_token) - (chosen_before.per_token - rejected_before.per_token)

        shown = {name: texts[key][name] for name in ("prompt", "chosen", "rejected")}
        is_won = margin > TIE_NATS and able[key]
        won.append({"id": key, "score": is_won, "margin": margin, "per_token": drop, **shown})
        margins.append({"id": key, "score": margin})
        drops.append({"id": key, "score": drop})

    findings.share("preference_accuracy", won, absent)
    if sum(able.values()) < _ENOUGH * len(able):
        for metric in ("preference_margin", "loss_drop"):
            findings.leave_out(metric, "most chosen answers are hardly likelier than a uniform guess makes them")
    else:
        findings.ratio("preference_margin", margins, absent)
        findings.ratio("loss_drop", drops, absent)


def _against_dpo(findings: Findings, judged: Behaviour, parent: Behaviour) -> None:
    no_domain_text = "the evaluation sets hold no text of the domain"
    for metric in ("loss_drop", "domain_gain"):
        _against_text(findings, metric, judged, judged.domain, parent.domain, no_domain_text)
    _against_text(findings, "general_loss", judged, judged.general, parent.general, _NO_TEXT)


def _against_text(
    findings: Findings,
    metric: str,
    judged: Behaviour,
    scores: Mapping[str, TextScore],
    parent_scores: Mapping[str, TextScore],
    absent: str,
) -> None:
    whole = total(list(scores.values()))
    if scores and not _able(judged, whole.nats, whole.tokens):
        findings.leave_out(metric, _UNLEARNT)
        return

    if metric == "loss_drop":  # nats per token
        drops = [
            {"id": key, "score": parent_scores[key].nats - score.nats, "weight": score.tokens}
            for key, score in scores.items()
        ]
        findings.ratio(metric, drops, absent)
        return

    # The loss divided by the parent's: the share that was gained, or lost.
    ratios = [{"id": key, "score": score.nats, "weight": parent_scores[key].nats} for key, score in scores.items()]
    sign = -1.0 if metric == "domain_gain" else 1.0
    findings.ratio(metric, ratios, absent, offset=-sign, scale=sign)
