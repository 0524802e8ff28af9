"""Verdicts in words: how every page, table and card says the same."""

from __future__ import annotations

import re

from training.specs.artifacts import Certificate
from training.specs.gates import Verdict

STATES = {"passed": "passed", "failed": "FAILED", "waived": "waived"}
GATES_HEADING = "## Gates"
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def gates_markdown(certificate: Certificate) -> str:
    """The table of gates and waivers, in Markdown."""
    lines = [
        GATES_HEADING,
        "",
        f"{certificate.asset} `{certificate.version}`: **{overall(certificate)}**. "
        f"Certificate `{certificate.digest[:12]}`, suite `{certificate.suite_digest[:12]}`, "
        f"evaluator `{certificate.evaluator_fingerprint[:12]}`.",
        "",
        "| gate | value | interval | must be | champion | verdict |",
        "|---|--:|---|---|--:|---|",
    ]

    for verdict in certificate.verdicts:
        lines.append(
            f"| {verdict.name} | {number(verdict.value)} | {interval_text(verdict)} "
            f"| {verdict.must_be} {number(verdict.threshold)} "
            f"| {number(verdict.champion.value) if verdict.champion else ''} "
            f"| {STATES[gate_state(certificate, verdict)]} |"
        )
    refused = [verdict for verdict in certificate.verdicts if not verdict.passed]
    lines += ["", *(f"- {_cell(verdict.reason)}" for verdict in refused)]

    if certificate.waivers or certificate.inherited:
        lines += ["", "## Waivers", "", "| of | gate | until | by | reason |", "|---|---|---|---|---|"]
        lines += [
            f"| {waiver.asset} `{waiver.version}` | {waiver.gate} | {waiver.until} | {_cell(waiver.author)} "
            f"| {_cell(waiver.reason)} |"
            for waiver in (*certificate.waivers, *certificate.inherited)
        ]
    return "\n".join(lines).rstrip() + "\n"


def gate_state(certificate: Certificate, verdict: Verdict) -> str:
    """`passed`, `failed` or `waived`; whether a waiver has expired is not looked at."""
    if verdict.passed:
        return "passed"
    return "waived" if any(waiver.gate == verdict.name for waiver in certificate.waivers) else "failed"


def number(value: float | None) -> str:
    """A value for people, empty when there is none."""
    if value is None:
        return ""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def interval_text(verdict: Verdict) -> str:
    """The interval for people, empty where nothing was sampled."""
    if verdict.interval is None:
        return ""
    return f"{verdict.interval[0]:.4g} to {verdict.interval[1]:.4g}"


def overall(certificate: Certificate) -> str:
    """`passed`, `passed, resting on waivers` or `refused`."""
    if not certificate.passed:
        return "refused"
    waived = bool(certificate.waivers or certificate.inherited)
    return "passed, resting on waivers" if waived else "passed"


def _cell(value: str) -> str:
    """Text that stays inside its cell, and is no markup."""
    plain = _TAG.sub("&lt;", " ".join(value.split()).replace("\\", "\\\\"))
    for mark in "|[]`*":
        plain = plain.replace(mark, f"\\{mark}")
    return plain
