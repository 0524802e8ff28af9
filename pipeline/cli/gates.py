"""`gatehouse gates`: every gate's verdict, and why an asset was refused."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.building.adoption import describe_adoption
from pipeline.cli.console import make_console
from pipeline.cli.options import Overrides, Recipe, new_app
from pipeline.gates.evidence_reader import Evidence, read_evidence
from pipeline.gates.report.explanation import advice, in_words
from pipeline.gates.report.worst_items import ShownItem, worst_items
from pipeline.gates.terms import terms
from pipeline.gates.wording import STATES, gate_state, number
from pipeline.graph import require_asset
from pipeline.humanize import age
from pipeline.recipes.loader import LoadedRecipe
from pipeline.workspace import Workspace
from training.errors import UserError
from training.specs.artifacts import Certificate, Manifest
from training.specs.gates import Gate, Verdict
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store, utc_today
from training.store.validity import Terms, changed_since, why_invalid

_COLOURS = {"passed": "green", "FAILED": "red", "waived": "yellow"}
_WORST, _LINE = 5, 400
_A_MONTH = timedelta(days=30)

app = new_app()


@app.command()
def gates(
    recipe: Recipe = "tiny",
    overrides: Overrides = None,
    why: Annotated[
        str,
        typer.Option(
            metavar="ASSET", help="Explain in words why this asset's newest version was refused, with the worst items."
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a gate.")] = False,
) -> None:
    """Show every gate of every asset: value, interval, threshold, the champion's value, verdict, age.

    A gate passes when its confidence bound passes, not merely its value. Nothing is judged again here.

    Examples: `gatehouse gates`, `gatehouse gates --why sft_model`.
    """
    if why:
        explain(recipe, why)
    else:
        show_gates(recipe, overrides or [], as_json)


@dataclass(frozen=True)
class GateRow:
    """One gate of the newest version of an asset.

    Attributes:
        champion: The champion's value, by the same suite and evaluator.
        verdict: passed, FAILED, `waived until <day>`, `waiver expired <day>`, or `not judged`.
        stale: What has changed since the verdict; empty when nothing has.
        age_seconds: Since the verdict.
    """

    asset: str
    version: str | None
    promoted: bool
    gate: str
    value: float | None
    interval: tuple[float, float] | None
    confidence: float | None
    method: str | None
    items: int
    must_be: str
    threshold: float
    champion: float | None
    verdict: str
    stale: str
    reason: str
    age_seconds: float | None


def show_gates(recipe: str, overrides: list[str], as_json: bool) -> None:
    """Print every gate of every asset's newest version as a table, or as a JSON list. Nothing is judged."""
    workspace = Workspace(recipe, overrides)
    store = workspace.store
    rows = {asset: _rows(asset, workspace.loaded, store) for asset in workspace.loaded.graph}
    if as_json:
        print(json.dumps([asdict(row) for asset_rows in rows.values() for row in asset_rows], indent=1))
        return

    console = make_console()
    table = Table(title=f"recipe {recipe}", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("gate", "value", "interval", "must be", "champion", "verdict", "age"):
        table.add_column(name, overflow="fold", justify="right" if name in ("value", "champion", "age") else "left")
    for asset, asset_rows in rows.items():
        table.add_row(f"[bold]{asset}[/]")
        for row in asset_rows:
            table.add_row(*_cells(row))
    console.print(table)

    for asset, asset_rows in rows.items():
        if note := _note(asset, asset_rows[0], store):
            console.print(note, highlight=False)
        for adoption in store.adoptions(asset, asset_rows[0].version) if asset_rows[0].version else ():
            console.print(describe_adoption(adoption), markup=False, highlight=False, soft_wrap=True)
    if any(row.verdict == STATES["failed"] for asset_rows in rows.values() for row in asset_rows):
        console.print("`gatehouse gates --why ASSET` explains a refusal, with the worst items.", highlight=False)


def explain(recipe: str, asset: str) -> None:
    """Say in words why the newest version of an asset was refused, on which items, and what can be done.

    Raises:
        RecipeError: There is no such asset.
    """
    workspace = Workspace(recipe)
    loaded, store = workspace.loaded, workspace.store
    require_asset(asset, loaded.graph, "--why")
    console = make_console()
    latest = store.latest(asset)
    certificate = store.certificate(asset, latest.version) if latest else None
    if latest is None or certificate is None:
        console.print(store.explain_unpromoted(asset), markup=False, highlight=False, soft_wrap=True)
        return

    refused = [verdict for verdict in certificate.verdicts if gate_state(certificate, verdict) != "passed"]
    console.print(_opening(certificate, refused, store), markup=False, highlight=False, soft_wrap=True)
    if stale := _stale(asset, certificate, latest, loaded, store):
        console.print(
            f"The verdict is stale, because this changed since: {stale}. `{latest.run_command(store.named)}` judges it "
            "again and trains nothing.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    evidence = _evidence(certificate, latest, store, console) if refused else None
    reasons = {gate.metric: gate.why for gate in loaded.recipe.gates_of(asset)}
    meanings = loaded.recipe.metrics(asset)
    for verdict in refused:
        meaning, reason = meanings.get(verdict.name, ""), reasons.get(verdict.name, "")
        _explain_gate(console, certificate, verdict, meaning, reason, evidence)

    if failed := [verdict.name for verdict in refused if not _is_waived(certificate, verdict)]:
        until = min(utc_today() + _A_MONTH, utc_today().replace(month=12, day=31))
        console.print("\n[bold]What can be done[/]")
        for line in advice(latest, failed, store.named, until):
            console.print(Padding(Text(f"- {line}"), (0, 0, 0, 2)))

    if page := store.gate_report(asset, latest.version):
        console.print(f"\nThe whole report: {page}", markup=False, highlight=False, soft_wrap=True)


def _rows(asset: str, loaded: LoadedRecipe, store: Store) -> list[GateRow]:
    latest = store.latest(asset)
    certificate = store.certificate(asset, latest.version) if latest else None
    if latest is None or certificate is None:
        return [_unjudged(asset, gate, latest) for gate in loaded.recipe.gates_of(asset)]

    pointer = store.promotion(asset)
    promoted = pointer is not None and pointer.version == latest.version
    stale = _stale(asset, certificate, latest, loaded, store)
    champion_values = _champion_values(certificate, store)
    return [
        GateRow(
            asset=asset,
            version=latest.version,
            promoted=promoted,
            gate=verdict.name,
            value=verdict.value,
            interval=verdict.interval,
            confidence=verdict.confidence,
            method=verdict.method,
            items=verdict.count,
            must_be=verdict.must_be,
            threshold=verdict.threshold,
            champion=champion_values.get(verdict.name),
            verdict=_word(certificate, verdict),
            stale=stale,
            reason=verdict.reason,
            age_seconds=time.time() - certificate.issued_at,
        )
        for verdict in certificate.verdicts
    ]


def _unjudged(asset: str, gate: Gate, latest: Manifest | None) -> GateRow:
    reason = "it was never judged" if latest else "it was never built"
    return GateRow(
        asset=asset,
        version=latest.version if latest else None,
        promoted=False,
        gate=gate.metric,
        value=None,
        interval=None,
        confidence=None,
        method=None,
        items=0,
        must_be=gate.must_be,
        threshold=gate.threshold,
        champion=None,
        verdict="not judged",
        stale="",
        reason=reason,
        age_seconds=None,
    )


def _champion_values(certificate: Certificate, store: Store) -> dict[str, float]:
    """The champion's values: as compared, else as it was judged itself by the same suite and evaluator."""
    compared = {verdict.name: verdict.champion.value for verdict in certificate.verdicts if verdict.champion}
    if certificate.champion is None or certificate.champion_asset is not None:  # another asset has other metrics
        return compared
    judged = store.certificate(certificate.asset, certificate.champion)
    if judged is None:
        return compared

    # By another suite or another evaluator its values would say nothing beside these.
    if (judged.suite_digest, judged.evaluator_fingerprint) != (
        certificate.suite_digest,
        certificate.evaluator_fingerprint,
    ):
        return compared
    return {verdict.name: verdict.value for verdict in judged.verdicts if verdict.value is not None} | compared


def _stale(asset: str, certificate: Certificate, manifest: Manifest, loaded: LoadedRecipe, store: Store) -> str:
    try:
        on = terms(asset, loaded, store)
    except UserError:
        return "the evaluation sets (none are promoted)"
    return changed_since(store, manifest, certificate, utc_today(), on)


def _word(certificate: Certificate, verdict: Verdict) -> str:
    state = gate_state(certificate, verdict)
    if state != "waived":
        return STATES[state]
    until = next(waiver.until for waiver in certificate.waivers if waiver.gate == verdict.name)
    return f"waived until {until}" if _is_waived(certificate, verdict) else f"waiver expired {until}"


def _is_waived(certificate: Certificate, verdict: Verdict) -> bool:
    return any(waiver.gate == verdict.name and waiver.holds(utc_today()) for waiver in certificate.waivers)


def _cells(row: GateRow) -> tuple[str, ...]:
    colour = _COLOURS.get(row.verdict.split()[0], "yellow" if row.verdict == "not judged" else "red")
    verdict = f"[{colour}]{row.verdict}[/]" + (" [yellow](stale)[/]" if row.stale else "")
    interval = f"{row.interval[0]:.4g} to {row.interval[1]:.4g}" if row.interval else ""
    return (
        f"  {row.gate}",
        number(row.value) or "-",
        interval,
        f"{row.must_be} {number(row.threshold)}",
        number(row.champion) or "-",
        verdict,
        "" if row.age_seconds is None else age(row.age_seconds),
    )


def _note(asset: str, row: GateRow, store: Store) -> str:
    """What the table cannot say of an asset."""
    if row.stale:
        command = store.manifest(asset, row.version).run_command(store.named) if row.version else ""
        return (
            f"[yellow]{asset} is stale[/], because this changed since it was judged: {escape(row.stale)}. "
            f"`{escape(command)}` judges it again and trains nothing."
        )

    pointer = store.promotion(asset)
    if row.version is not None and pointer is not None and not row.promoted:
        return f"{asset}: the table shows {row.version}; promoted is {pointer.version}."
    return ""


def _opening(certificate: Certificate, refused: list[Verdict], store: Store) -> str:
    name = f"{certificate.asset} {certificate.version}"
    if not refused:
        pointer = store.promotion(certificate.asset)
        if pointer is None or pointer.version != certificate.version:
            problem = store.explain_unpromoted(certificate.asset, certificate.version)
        else:
            problem = why_invalid(store, pointer, utc_today())
        if problem:
            return f"{name} passes all of its gates. {problem}"
        return f"{name} passes all of its {len(certificate.verdicts)} gates and is promoted."
    waived = all(_is_waived(certificate, verdict) for verdict in refused)
    return f"{name}: {len(refused)} of {len(certificate.verdicts)} gates refused it{', all waived' if waived else ''}."


def _evidence(certificate: Certificate, manifest: Manifest, store: Store, console: Console) -> Evidence | None:
    """The evidence that was judged, on the terms that held then."""
    terms_then = Terms(certificate.thresholds_digest, certificate.evaluator_fingerprint, certificate.suite_digest)
    try:
        evaluation = store.manifest(manifest.asset + EVALUATION_SUFFIX, certificate.evaluation_version)
        return read_evidence(manifest, evaluation, terms_then, store)
    except UserError as error:
        console.print(f"Its items cannot be shown: {error}", markup=False, highlight=False, soft_wrap=True)
        return None


def _explain_gate(
    console: Console, certificate: Certificate, verdict: Verdict, meaning: str, why: str, evidence: Evidence | None
) -> None:
    word = _word(certificate, verdict)
    console.print(f"\n[bold]{verdict.name}[/] [{_COLOURS.get(word.split()[0], 'red')}]{word}[/]", highlight=False)
    for line in in_words(verdict, meaning, why):
        console.print(Padding(Text(line), (0, 0, 0, 2)))

    gate = Gate(metric=verdict.name, must_be=verdict.must_be, threshold=verdict.threshold)
    items = worst_items(evidence, gate, _WORST) if evidence else []
    if items:
        console.print(Padding(Text("The worst items:"), (0, 0, 0, 2)))
    for item in items:
        console.print(Padding(_item(item), (0, 0, 0, 4)))


def _item(item: ShownItem) -> Text:
    value = Text(f"{number(item.value) or item.value}  ", style="bold")
    texts = [f"{key}: {_plain(value)}" for key, value in item.details.items()]
    return value.append("\n      ".join(texts) or _plain(item.id), style="not bold")


def _plain(text: str) -> str:
    """A model's text on one line, without what a terminal would obey."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = " ".join(printable.split())
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"
