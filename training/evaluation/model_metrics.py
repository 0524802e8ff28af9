"""From what models did to the metrics of `training.specs.metrics`, with the items behind each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from training.data.safety import is_refusal
from training.evaluation.behaviour import Measurement, Sets, stop_prompts
from training.evaluation.generation import readable, words
from training.evaluation.scoring import TIE_NATS, Likelihood, learnt, right_choice, total

_ENOUGH = 0.5


@dataclass
class Findings:
    """Metrics so far. What cannot be computed is absent, and a gate on it fails.

    Attributes:
        metrics: Metric to its value.
        counts: Metric to the number of items it was computed from.
        items: One row per item: `metric`, `id` and its figures.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)

    def add(self, metric: str, value: float, count: int) -> None:
        """Record a metric; one without items or without a finite value is left out."""
        if count and math.isfinite(value):
            self.metrics[metric] = value
            self.counts[metric] = count

    def leave_out(self, metric: str) -> None:
        """Take a metric back; its gate then fails."""
        self.metrics.pop(metric, None)
        self.counts.pop(metric, None)

    def share(self, metric: str, right: Collection[bool]) -> None:
        """Record the share of items that are right."""
        self.add(metric, sum(right) / max(1, len(right)), len(right))


def own_findings(own: Measurement, sets: Sets) -> Findings:
    """Metrics that need no reference, from the parts that were measured."""
    findings = Findings()
    _text(findings, own)
    _choices(findings, own, sets, "choice_accuracy", general=True)
    _choices(findings, own, sets, "domain_choice_accuracy", general=False)
    _answer_loss(findings, own, sets)
    _continuations(findings, own, sets)
    _safety(findings, own, sets)
    return findings


def _text(findings: Findings, own: Measurement) -> None:
    for name, scores in (("heldout_bits_per_byte", own.general), ("domain_bits_per_byte", own.domain)):
        findings.items += [{"metric": name, "id": key, "nats": score.nats, "tokens": score.tokens,
                            "bytes": score.bytes, "score": score.bits_per_byte}
                           for key, score in scores.items() if score.tokens]
    whole = total(list(own.general.values()))
    if whole.tokens:
        findings.add("heldout_bits_per_byte", whole.bits_per_byte, len(own.general))
        findings.add("heldout_perplexity", math.exp(min(whole.nats / whole.tokens, 700)), len(own.general))


def _choices(findings: Findings, own: Measurement, sets: Sets, metric: str, general: bool) -> None:
    right = []
    for row in sets.asked(general):
        if row["id"] not in own.choices:
            continue
        found = own.choices[row["id"]]
        priors = own.priors[row["id"]]
        right.append(right_choice(found, priors, row["answer"], own.vocabulary))
        findings.items.append({"metric": metric, "id": row["id"], "score": float(right[-1]), "answer": row["answer"],
                               "nats_per_token": [choice.per_token for choice in found], "priors": priors})
    findings.share(metric, right)


def _answer_loss(findings: Findings, own: Measurement, sets: Sets) -> None:
    found = _general_answers(own, sets)
    findings.items += [{"metric": "answer_loss", "id": key, "score": -answer.per_token, "tokens": answer.tokens}
                       for key, answer in found.items()]
    if found:
        findings.add("answer_loss", _nats_per_token(found.values()), len(found))


def _general_answers(own: Measurement, sets: Sets) -> dict[str, Likelihood]:
    return {row["id"]: own.right[row["id"]] for row in sets.asked(general=True) if row["id"] in own.right}


def _nats_per_token(answers: Iterable[Likelihood]) -> float:
    found = list(answers)
    return -math.fsum(answer.nats for answer in found) / sum(answer.tokens for answer in found)


def _continuations(findings: Findings, own: Measurement, sets: Sets) -> None:
    vocabulary = {word for row in sets.texts(general=True) for word in words(row["text"])}
    whole = total(list(own.general.values()))
    able = _able(own, whole.nats, whole.tokens)
    right = [able and readable(completion, vocabulary) for _, completion in own.continuations]
    findings.items += [{"metric": "clean_stop_rate", "id": f"continuation-{number}", "score": float(right[number]),
                        "prompt": prompt, "answer": completion.text}
                       for number, (prompt, completion) in enumerate(own.continuations)]
    findings.share("clean_stop_rate", right)


def _safety(findings: Findings, own: Measurement, sets: Sets) -> None:
    """Metrics over generated answers, when the safety prompts were answered."""
    asked = stop_prompts(sets)
    if not own.replies.keys() >= set(asked):
        return
    replies = {prompt: own.replies[prompt] for prompt in asked}
    findings.items += [{"metric": "clean_stop_rate", "id": f"reply-{number}", "score": float(reply.clean),
                        "prompt": prompt, "answer": reply.text}
                       for number, (prompt, reply) in enumerate(replies.items())]
    findings.share("clean_stop_rate", [reply.clean for reply in replies.values()])
    refused = {row["id"]: is_refusal(replies[row["prompt"]].text) for row in sets.harmful}
    benign = {row["id"]: replies[row["prompt"]] for row in sets.benign}
    answered = {key: reply.clean and not is_refusal(reply.text) for key, reply in benign.items()}
    for metric, scores in (("refusal_rate", refused), ("benign_answer_rate", answered)):
        findings.items += [{"metric": metric, "id": key, "score": float(right)} for key, right in scores.items()]
        findings.share(metric, scores.values())
    clean = [is_refusal(reply.text) for reply in benign.values() if reply.clean]
    if len(clean) >= _ENOUGH * len(benign):
        findings.share("over_refusal_rate", clean)


def _able(own: Measurement, nats: float, tokens: int) -> bool:
    """Whether a loss is one of a model that has learnt something.

    A parent may do worse than a uniform guess on what it was never trained for; an untrained model must not win there.
    """
    return tokens > 0 and learnt(-nats, tokens, own.vocabulary)


def compare(asset: str, findings: Findings, own: Measurement, parent: Measurement | None, sets: Sets) -> None:
    """Add the metrics that set a model against its reference: a uniform guess, or its parent.

    Args:
        asset: The judged model's asset name.
        findings: Metrics so far; they are added to.
        own: The judged model.
        parent: Its parent; None for the base model.
        sets: The evaluation sets.
    """
    if asset == "base_model":
        whole = total(list(own.general.values()))
        if whole.tokens:
            findings.add("loss_drop", math.log(own.vocabulary) - whole.nats / whole.tokens, len(own.general))
    elif parent is not None:
        {"sft_model": _against_base, "dpo_model": _against_sft, "lora_model": _against_dpo}[asset](
            findings, own, parent, sets)


def _against_base(findings: Findings, own: Measurement, parent: Measurement, sets: Sets) -> None:
    ours, theirs = _general_answers(own, sets), _general_answers(parent, sets)
    if not ours or ours.keys() != theirs.keys():
        return
    loss = _nats_per_token(ours.values())
    if _able(own, loss, 1):
        findings.add("loss_drop", _nats_per_token(theirs.values()) - loss, len(ours))


def _against_sft(findings: Findings, own: Measurement, parent: Measurement, sets: Sets) -> None:
    """Preference metrics: the implicit reward of DPO without its factor beta (Rafailov et al., 2023, equation 5)."""
    if not own.pairs or own.pairs.keys() != parent.pairs.keys():
        return
    won, margins, drops, able = [], [], [], []
    for key, (chosen, rejected) in own.pairs.items():
        chosen_before, rejected_before = parent.pairs[key]
        margins.append((chosen.nats - chosen_before.nats) - (rejected.nats - rejected_before.nats))
        drops.append((chosen.per_token - rejected.per_token)
                     - (chosen_before.per_token - rejected_before.per_token))
        able.append(chosen.learnt(own.vocabulary))
        won.append(margins[-1] > TIE_NATS and able[-1])
        findings.items.append({"metric": "preference_accuracy", "id": key, "score": float(won[-1]),
                               "margin": margins[-1], "per_token": drops[-1]})
    findings.share("preference_accuracy", won)
    if sum(able) >= _ENOUGH * len(able):
        findings.add("preference_margin", math.fsum(margins) / len(margins), len(margins))
        findings.add("loss_drop", math.fsum(drops) / len(drops), len(drops))


def _against_dpo(findings: Findings, own: Measurement, parent: Measurement, sets: Sets) -> None:
    ours, theirs = total(list(own.domain.values())), total(list(parent.domain.values()))
    if own.domain.keys() == parent.domain.keys() and _able(own, ours.nats, ours.tokens):
        findings.add("loss_drop", theirs.nats / theirs.tokens - ours.nats / ours.tokens, len(own.domain))
        findings.add("domain_gain", 1 - ours.nats / theirs.nats, len(own.domain))
    ours, theirs = total(list(own.general.values())), total(list(parent.general.values()))
    if own.general.keys() == parent.general.keys() and _able(own, ours.nats, ours.tokens):
        findings.add("general_loss", ours.nats / theirs.nats - 1, len(own.general))
