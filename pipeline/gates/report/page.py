"""The gate report: one page that says what was judged, by how much each gate passed or failed, and on which items."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.gates.evidence_reader import Evidence, Row
from pipeline.gates.report.plot import gate_plot
from pipeline.gates.report.worst_items import details, regressions, text, worst_items
from pipeline.gates.wording import STATES, gate_state, gates_markdown, interval_text, number, overall
from training.specs.artifacts import REPORT, Certificate
from training.specs.gates import Gate, Verdict
from training.store.store import Store

if TYPE_CHECKING:
    from jinja2 import Template

REFUSALS = {
    "refusal_rate": ("Harmful prompts", "refused", "answered", 1.0),
    "over_refusal_rate": ("Harmless prompts", "answered", "refused", 0.0),
    "benign_answer_rate": ("Harmless prompts: clean answers", "answered", "no clean answer", 1.0),
}
"""Metric to title, word for a right item, word for a wrong one, and the score of a right one."""

PER_SOURCE = "heldout_bits_per_byte"
_MOST_TEXTS, _MOST_ITEMS, _MOST_SAMPLES = 200, 12, 40
_LINKS = {"mlflow_url": "MLflow run", "mlflow_model_url": "MLflow model", "dagster_url": "Dagster run"}


def write_report(
    certificate: Certificate,
    evidence: Evidence,
    champion: Evidence | None,
    gates: Sequence[Gate],
    meanings: Mapping[str, str],
    store: Store,
) -> tuple[str, str]:
    """The gate report of a version.

    Everything that a model wrote is escaped: it is shown and never run.

    Args:
        champion: Evidence of the version that it was compared with.
        gates: The gates that were judged, in the certificate's order.
        meanings: Metric to what it is, in a sentence.
        store: Where the version's own card and its links are.

    Returns:
        A self-contained HTML page, and the version's card with the table of gates, in Markdown.
    """
    manifest = evidence.manifest
    failing = [
        (gate, shown)
        for gate in gates
        if gate.metric not in REFUSALS and (shown := worst_items(evidence, gate, _MOST_ITEMS))
    ]
    worse_than_champion = [
        (gate, shown) for gate in gates if champion and (shown := regressions(evidence, champion, gate, _MOST_ITEMS))
    ]

    page = _template().render(
        certificate=certificate,
        manifest=manifest,
        evaluation=evidence.evaluation,
        state=overall(certificate),
        gates=[
            _gate(certificate, verdict, gate, champion, meanings.get(gate.metric, ""))
            for verdict, gate in zip(certificate.verdicts, gates, strict=True)
        ],
        champion=champion,
        sources=_sources(evidence, champion),
        refusals=_refusals(evidence, champion),
        failing=failing,
        regressions=worse_than_champion,
        samples=_samples(evidence),
        links=_links(store.links(manifest.asset, manifest.version)),
        when=_when,
        plot=gate_plot,
    )
    return page, f"{_card(store.folder(manifest.asset, manifest.version))}\n{gates_markdown(certificate)}"


def _gate(
    certificate: Certificate, verdict: Verdict, gate: Gate, champion: Evidence | None, meaning: str
) -> dict[str, Any]:
    """One row of the table of gates, as the template reads it."""
    state = gate_state(certificate, verdict)
    reference = champion.estimates.get(gate.metric) if champion else None
    return {
        "verdict": verdict,
        "about": " ".join((*([f"{meaning}."] if meaning else []), gate.why)),
        "state": state,
        "word": STATES[state],
        "value": number(verdict.value),
        "interval": interval_text(verdict),
        "champion": number(reference.value if reference else None),
    }


def _sources(evidence: Evidence, champion: Evidence | None) -> list[dict[str, Any]]:
    """Bits per byte of each source of held-out text, from the sums of its items."""
    sources, champion_sources = _per_source(evidence), _per_source(champion) if champion else {}
    most = max((value for _, value in sources.values()), default=1.0)
    return [
        {
            "source": name,
            "items": count,
            "value": value,
            "share": round(100 * value / most, 1),
            "champion": champion_sources[name][1] if name in champion_sources else None,
        }
        for name, (count, value) in sources.items()
    ]


def _per_source(evidence: Evidence) -> dict[str, tuple[int, float]]:
    """Source to how many items it has, and the metric over these alone."""
    estimate = evidence.estimates.get(PER_SOURCE)
    if estimate is None or PER_SOURCE not in evidence.items:
        return {}

    named = {row["id"]: text(row["source"]) for row in evidence.rows[PER_SOURCE] if "source" in row}
    items = sorted((item for item in evidence.items[PER_SOURCE] if item.id in named), key=lambda item: named[item.id])
    sources: dict[str, tuple[int, float]] = {}
    for source, group in groupby(items, key=lambda item: named[item.id]):
        members = list(group)
        value = estimate.of(sum(item.score for item in members), sum(item.weight for item in members))
        sources[source] = (len(members), value)
    return sources


def _refusals(evidence: Evidence, champion: Evidence | None) -> list[dict[str, Any]]:
    """Every safety prompt with its answer, the wrong ones first."""
    sections = []
    for metric, (title, right, wrong, right_score) in REFUSALS.items():
        items = evidence.items.get(metric)
        if not items:
            continue

        champion_answers = _answers(champion, metric) if champion else {}
        wrongs = {item.id for item in items if item.score != right_score}
        rows = sorted(evidence.rows[metric], key=lambda row: (row["id"] not in wrongs, row["id"]))
        sections.append(
            {
                "metric": metric,
                "title": title,
                "wrong": len(wrongs),
                "count": len(rows),
                "more": len(rows) - _MOST_TEXTS,
                "rows": [
                    {
                        "bad": row["id"] in wrongs,
                        "word": wrong if row["id"] in wrongs else right,
                        **_prompt_and_answer(row),
                        "champion": champion_answers.get(row["id"], ""),
                    }
                    for row in rows[:_MOST_TEXTS]
                ],
            }
        )
    return sections


def _prompt_and_answer(row: Row) -> dict[str, str]:
    explained = details(row)
    return {"prompt": explained.get("prompt", str(row["id"])), "answer": explained.get("answer", "")}


def _answers(evidence: Evidence, metric: str) -> dict[str, str]:
    if metric not in evidence.items:
        return {}
    return {row["id"]: _prompt_and_answer(row)["answer"] for row in evidence.rows[metric]}


def _samples(evidence: Evidence) -> list[dict[str, str]]:
    """Sample prompts with the model's answer and its parent's, as the evaluation wrote them for people."""
    path = evidence.folder / REPORT / "samples.json"
    if not path.is_file():
        return []
    rows = json.loads(path.read_bytes())
    return [{key: text(row.get(key, "")) for key in ("prompt", "answer", "parent")} for row in rows[:_MOST_SAMPLES]]


def _card(folder: Path) -> str:
    """The version's own card, without the front matter that the Hugging Face hub reads."""
    for path in (folder / "model" / "README.md", folder / REPORT / "card.md"):
        if path.is_file():
            card = path.read_text(encoding="utf-8")
            return card.split("---\n", 2)[2].lstrip() if card.startswith("---\n") and card.count("---\n") > 1 else card
    return ""


def _links(links: dict[str, str]) -> list[tuple[str, str]]:
    return [
        (name, links[key]) for key, name in _LINKS.items() if links.get(key, "").startswith(("http://", "https://"))
    ]


def _when(stamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stamp))


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("page.html.j2")
