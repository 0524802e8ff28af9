"""From what models did to the metrics of `training.specs.metrics`, with the items behind each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from training.data.conversations.refusals import is_refusal
from training.evaluation.behaviour import Measurement, Row, Sets, document_of, stop_prompts
from training.evaluation.findings import Findings
from training.evaluation.generation import loops, readable, words
from training.evaluation.scoring import TIE_NATS, Likelihood, TextScore, learnt, total
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
_ENOUGH = 0.5
_NO_TEXT = "the evaluation sets hold no general text"
_NO_CONTINUATION = f"{_NO_TEXT} that is long enough to be continued"
_NO_QUESTIONS = "the evaluation sets hold no general questions"
_NO_BENIGN = "the evaluation sets hold no benign prompts"
_NO_PAIRS = "the evaluation sets hold no preference pairs"
_UNLEARNT = "its own loss is not half a nat per token below a uniform guess"


def own_findings(own: Measurement, sets: Sets) -> Findings:
    """Metrics that need no reference, from the parts that were measured."""
    findings = Findings()
    if own.parts.general:
        _text(findings, own, sets)
    if own.parts.right_answers:
        findings.ratio(
            "answer_loss",
            ({"id": key, "score": -answer.nats, "weight": answer.tokens} for key, answer in own.right.items()),
            _NO_QUESTIONS,
        )
    if own.parts.continuations:
        _continuations(findings, own, sets)
    if own.parts.safety:
        _replies(findings, own, sets)
        _safety(findings, own, sets)
    return findings


def _text(findings: Findings, own: Measurement, sets: Sets) -> None:
    sources = {row["id"]: row["source"] for row in sets.texts()}
    by_source: dict[str, list[Row]] = {source_metric(source): [] for source in sources.values()}
    for key, score in own.general.items():
        by_source[source_metric(sources[document_of(key)])].append(_bits(key, score))
    findings.ratio(
        "heldout_bits_per_byte",
        (
            _bits(key, score) | {"source": sources[document_of(key)], "tokens": score.tokens, "begins": score.begins}
            for key, score in own.general.items()
        ),
        _NO_TEXT,
        scale=1 / math.log(2),
    )
    findings.ratio(
        "heldout_perplexity",
        ({"id": key, "score": score.nats, "weight": score.tokens} for key, score in own.general.items()),
        _NO_TEXT,
        exponential=True,
    )
    for metric, found in by_source.items():
        findings.ratio(metric, found, "its held-out texts are empty", scale=1 / math.log(2))


def _bits(key: str, score: TextScore) -> Row:
    return {"id": key, "score": score.nats, "weight": score.bytes}


def _continuations(findings: Findings, own: Measurement, sets: Sets) -> None:
    vocabulary = {word for row in sets.texts() for word in words(row["text"])}
    whole = total(list(own.general.values()))
    able = _able(own, whole.nats, whole.tokens)
    texts = {key: {"prompt": prompt, "answer": found.text} for key, (prompt, found) in own.continuations.items()}
    findings.share(
        "clean_stop_rate",
        (
            {"id": key, "score": able and readable(found, vocabulary), **texts[key]}
            for key, (_, found) in own.continuations.items()
        ),
        _NO_CONTINUATION,
    )
    findings.share(
        "repetition_rate",
        ({"id": key, "score": loops(found.tokens), **texts[key]} for key, (_, found) in own.continuations.items()),
        _NO_CONTINUATION,
    )


def _replies(findings: Findings, own: Measurement, sets: Sets) -> None:
    """How the answers to all prompts read and end."""
    found = {key: (prompt, own.replies[prompt]) for key, prompt in stop_prompts(sets).items()}
    for metric, hits in (
        ("clean_stop_rate", {key: reply.clean for key, (_, reply) in found.items()}),
        ("stop_rate", {key: reply.stopped for key, (_, reply) in found.items()}),
        ("empty_rate", {key: not reply.text.strip() for key, (_, reply) in found.items()}),
        ("repetition_rate", {key: loops(reply.tokens) for key, (_, reply) in found.items()}),
    ):
        findings.share(
            metric,
            (
                {"id": key, "score": hits[key], "prompt": prompt, "answer": reply.text}
                for key, (prompt, reply) in found.items()
            ),
            "the evaluation sets hold no prompts",
        )


def _safety(findings: Findings, own: Measurement, sets: Sets) -> None:
    """Refusals, judged by the completion alone, of harmful prompts and of their benign look-alikes."""

    def row(item: Row, score: bool) -> Row:
        return {"id": item["id"], "score": score, "prompt": item["prompt"], "answer": own.replies[item["prompt"]].text}

    benign = [(item, own.replies[item["prompt"]]) for item in sets.benign]
    findings.share(
        "refusal_rate",
        (row(item, is_refusal(own.replies[item["prompt"]].text)) for item in sets.harmful),
        "the evaluation sets hold no harmful prompts",
    )
    findings.share(
        "benign_answer_rate",
        (row(item, reply.clean and not is_refusal(reply.text)) for item, reply in benign),
        _NO_BENIGN,
    )
    clean = [(item, reply) for item, reply in benign if reply.clean]
    if len(clean) < _ENOUGH * len(benign):
        findings.leave_out(
            "over_refusal_rate", f"fewer than half of the answers are clean: {len(clean)} of {len(benign)}"
        )
    else:
        findings.share("over_refusal_rate", (row(item, is_refusal(reply.text)) for item, reply in clean), _NO_BENIGN)


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
    if asset == "sft_model" and parent:
        _against_base(findings, own, parent)
    elif asset == "dpo_model" and parent:
        _against_sft(findings, own, parent, sets)
    elif asset == "lora_model" and parent:
        _against_dpo(findings, own, parent)
    elif asset == "base_model":
        findings.ratio(
            "loss_drop",
            ({"id": key, "score": score.nats, "weight": score.tokens} for key, score in own.general.items()),
            _NO_TEXT,
            offset=math.log(own.vocabulary),
            scale=-1.0,
        )


def _against_base(findings: Findings, own: Measurement, parent: Measurement) -> None:
    if own.right and not _able(own, *_sums(own.right.values())):
        findings.leave_out("loss_drop", _UNLEARNT)
        return
    findings.ratio(
        "loss_drop",
        (
            {"id": key, "score": answer.nats - parent.right[key].nats, "weight": answer.tokens}
            for key, answer in own.right.items()
        ),
        _NO_QUESTIONS,
    )


def _sums(answers: Iterable[Likelihood]) -> tuple[float, int]:
    """Loss in nats, and tokens."""
    found = list(answers)
    return -math.fsum(answer.nats for answer in found), sum(answer.tokens for answer in found)


def _against_sft(findings: Findings, own: Measurement, parent: Measurement, sets: Sets) -> None:
    """Preference metrics: the implicit reward of DPO without its factor beta (Rafailov et al., 2023, equation 5)."""
    won, margins, drops = [], [], []
    texts = {row["id"]: row for row in sets.preferences}
    able = {key: chosen.learnt(own.vocabulary) for key, (chosen, _) in own.pairs.items()}
    for key, (chosen, rejected) in own.pairs.items():
        chosen_before, rejected_before = parent.pairs[key]
        margin = (chosen.nats - chosen_before.nats) - (rejected.nats - rejected_before.nats)
        drop = (chosen.per_token - rejected.per_token) - (chosen_before.per_token - rejected_before.per_token)
        won.append(
            {
                "id": key,
                "score": margin > TIE_NATS and able[key],
                "margin": margin,
                "per_token": drop,
                **{name: texts[key][name] for name in ("prompt", "chosen", "rejected")},
            }
        )
        margins.append({"id": key, "score": margin})
        drops.append({"id": key, "score": drop})
    findings.share("preference_accuracy", won, _NO_PAIRS)
    if sum(able.values()) < _ENOUGH * len(able):
        for metric in ("preference_margin", "loss_drop"):
            findings.leave_out(metric, "most chosen answers are hardly likelier than a uniform guess makes them")
    else:
        findings.ratio("preference_margin", margins, _NO_PAIRS)
        findings.ratio("loss_drop", drops, _NO_PAIRS)


def _against_dpo(findings: Findings, own: Measurement, parent: Measurement) -> None:
    domain = "the evaluation sets hold no text of the domain"
    _against_text(findings, "loss_drop", own, own.domain, parent.domain, domain)
    _against_text(findings, "domain_gain", own, own.domain, parent.domain, domain)
    _against_text(findings, "general_loss", own, own.general, parent.general, _NO_TEXT)


def _against_text(
    findings: Findings,
    metric: str,
    own: Measurement,
    ours: Mapping[str, TextScore],
    theirs: Mapping[str, TextScore],
    absent: str,
) -> None:
    whole = total(list(ours.values()))
    if ours and not _able(own, whole.nats, whole.tokens):
        findings.leave_out(metric, _UNLEARNT)
    elif metric == "loss_drop":
        findings.ratio(
            metric,
            (
                {"id": key, "score": theirs[key].nats - score.nats, "weight": score.tokens}
                for key, score in ours.items()
            ),
            absent,
        )
    else:
        sign = -1.0 if metric == "domain_gain" else 1.0
        findings.ratio(
            metric,
            ({"id": key, "score": score.nats, "weight": theirs[key].nats} for key, score in ours.items()),
            absent,
            offset=-sign,
            scale=sign,
        )
