"""What is shown at the end of a run: the assets, the sources, the model's answers, and what to do next."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pipeline.cli.console import RunDisplay
from pipeline.cli.next_steps import next_steps
from pipeline.gates.evidence_reader import shown_estimates
from pipeline.gates.statistics import interval
from pipeline.graph import in_order, models_of
from pipeline.paths import ROOT
from pipeline.recipes.loader import LoadedRecipe
from pipeline.upkeep.asset_status import headline
from pipeline.workspace import Workspace
from training.data.sources.source_state import describe_source
from training.errors import SourceError
from training.specs.evidence import Estimate, Item
from training.specs.job import EVALUATION_SUFFIX
from training.store.store import Store

_QUESTIONS = 3
_CELL = 160
_ONE_SIDED = 0.975  # of each bound of a 95% interval
Measured = tuple[Estimate, tuple[Item, ...]]
_COMPARED = (
    "heldout_answer_loss",
    "heldout_bits_per_byte",
    "choice_accuracy_dcpmi",
    "clean_stop_rate",
    "benign_answer_rate",
    "refusal_rate",
)


def show_summary(
    recipe: str, workspace: Workspace, display: RunDisplay, took: str, failed: bool, console: Console
) -> None:
    """Print what came of a run.

    Args:
        recipe: As the person named it.
        display: What the run has shown so far.
        took: How long it took, and its id.
        failed: It did not end well.
    """
    store = workspace.store
    if display.states:
        console.print(_table(store, display))
    if display.states.keys() & {"raw_corpus", "conversations", "preferences"}:
        show_sources(workspace.loaded, console)
    console.print(took, highlight=False)

    graph = workspace.loaded.graph
    if not failed:
        _show_gain(
            store,
            [(asset, display.versions[asset]) for asset in models_of(graph) if asset in display.versions],
            console,
        )
        _show_answers(store, models_of(graph), console)
    _show_next(next_steps(recipe, graph, display.refused, failed, store), console)


def show_sources(loaded: LoadedRecipe, console: Console) -> None:
    """Print what was read of each source and what was left out, as `gatehouse recipe check` does."""
    for source in loaded.recipe.all_sources():
        try:
            line = describe_source(source, ROOT)
        except SourceError as error:  # it went, or changed, since it was read
            line = str(error)
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(store: Store, display: RunDisplay) -> Table:
    table = Table()
    for name in ("asset", "version", "", "time", "headline", "gates passed"):
        table.add_column(name, justify="right" if name in ("time", "gates passed") else "left", no_wrap=True)

    for asset in in_order(display.states):
        version = display.versions[asset]
        certificate = store.certificate(asset, version)
        verdicts = certificate.verdicts if certificate else ()
        table.add_row(
            asset,
            version,
            display.states[asset],
            f"{display.seconds.get(asset, 0.0):.1f} s",
            headline(store.manifest(asset, version), certificate),
            f"{sum(verdict.passed for verdict in verdicts)}/{len(verdicts)}",
        )
    return table


def _show_answers(store: Store, models: Sequence[str], console: Console) -> None:
    """A few questions with the answers of the first model and of the last one."""
    before, after = _samples(store, models[0]), _samples(store, models[-1])
    if len(models) < 2 or not before or not after:
        return

    table = Table(title="The same questions, before and after", title_justify="left", show_lines=True)
    for name in ("question", "base model", "final model"):
        table.add_column(name, overflow="fold", ratio=1)
    for prompt in list(after)[:_QUESTIONS]:
        table.add_row(*(_shortened(text) for text in (prompt, before.get(prompt, ""), after[prompt])))
    console.print(table)


def _show_gain(store: Store, models: Sequence[tuple[str, str]], console: Console) -> None:
    """What was measured of the first model and of the last one on the same items, each with its 95% interval.

    Args:
        models: Asset and version of each.
    """
    if len(models) < 2:
        return
    first, last = (_estimates(store, *model) for model in (models[0], models[-1]))
    shown = [name for name in _COMPARED if name in first and name in last and _same_items(first[name], last[name])]
    if not shown:
        return

    table = Table(title="Measured before and after, with 95% intervals", title_justify="left")
    for column in ("metric", models[0][0], models[-1][0]):
        table.add_column(column, no_wrap=True)
    for name in shown:
        table.add_row(name, *(_with_interval(name, *estimates[name]) for estimates in (first, last)))
    console.print(table)


def _estimates(store: Store, asset: str, version: str) -> dict[str, Measured]:
    """What was measured on a sample by the evaluation on which a version was judged."""
    certificate = store.certificate(asset, version)
    if certificate is None:
        return {}
    return shown_estimates(store.folder(asset + EVALUATION_SUFFIX, certificate.evaluation_version))


def _same_items(one: Measured, other: Measured) -> bool:
    return {item.id for item in one[1]} == {item.id for item in other[1]}


def _with_interval(name: str, estimate: Estimate, items: Sequence[Item]) -> str:
    low, high = interval(estimate, items, _ONE_SIDED, name)
    return f"{estimate.value:.3f}  {low:.3f} to {high:.3f}"


def _show_next(steps: list[tuple[str, str]], console: Console) -> None:
    if not steps:
        return

    width = max(len(command) for command, _ in steps)
    console.print("\nNext:", highlight=False)
    for command, purpose in steps:
        console.print(f"  {command:<{width}}  {purpose}", highlight=False, markup=False, soft_wrap=True)


def _shortened(text: str) -> str:
    """A text on one line, cut to what a table's cell can show."""
    return textwrap.shorten(text, _CELL, placeholder=" …")


def _samples(store: Store, asset: str) -> dict[str, str]:
    """Prompt to answer, as the newest evaluation of a model sampled them."""
    latest = store.latest(asset + EVALUATION_SUFFIX)
    if latest is None:
        return {}

    path = store.folder(latest.asset, latest.version) / "report" / "samples.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {row["prompt"]: row["answer"] for row in rows}
