"""`gatehouse preview`: rows of training data as the model will see them, encoded in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.cli.console import make_console
from pipeline.cli.options import Recipe, new_app
from pipeline.cli.terminal import legible_environment
from pipeline.graph import Graph, is_asset, require_asset, upstream_of
from pipeline.paths import ROOT, variables
from pipeline.recipes.loader import available
from pipeline.workspace import Workspace
from training.errors import InputRefused, RecipeError
from training.specs.artifacts import Manifest
from training.specs.base_model import BaseModelSection
from training.specs.kinds import kind_of
from training.specs.post_training import PostTrainingSection, TooLong
from training.specs.preview import Column, Piece, Preview, PreviewRequest, SourcePreviewRequest
from training.specs.recipe import Recipe as RecipeSections
from training.store.store import Store

KINDS = ("adapter_data", "preference_data", "instruction_data", "packed_shards")
"""Kinds of assets that have rows to show; the first that a recipe has is shown by default."""

_STYLES = {"learned": "bold green", "given": "dim", "padding": "dim", "text": ""}

app = new_app()


@app.command("preview")
def command(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [ASSET]", help="A recipe, as -r takes it, and the asset whose rows to show."),
    ] = None,
    recipe: Recipe = "tiny",
    rows: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 3,
    first: Annotated[int, typer.Option(min=1, help="The first one, from 1.")] = 1,
    find: Annotated[str, typer.Option(help="The row at a place, such as chats.jsonl:7, or rows with this text.")] = "",
    packed: Annotated[bool, typer.Option("--packed", help="Conversations as they are packed into rows.")] = False,
    page: Annotated[Path | None, typer.Option("--html", help="Write them as a page to this file.")] = None,
) -> None:
    """Show rows of training data as the model will see them, coloured by what is learned.

    Learned is what the loss covers; the rest is given or padding. The rows are those of the newest version, promoted
    or not, encoded as the training encodes them.

    Examples: `gatehouse preview support.yaml`, `gatehouse preview support.yaml --find tickets.jsonl:17`,
    `gatehouse preview adapter_data --packed`.
    """
    source = context.get_parameter_source("recipe")
    is_given = source is not None and source.name == "COMMANDLINE"
    recipe, asset = _named(words or [], recipe, is_given)
    show(recipe, asset, rows=rows, first=first, find=find, packed=packed, page=page)


def _named(words: list[str], recipe: str, is_given: bool) -> tuple[str, str]:
    """The recipe and the asset that the arguments name; no asset where they name none.

    Args:
        is_given: The recipe was named by its option.
    """
    if len(words) > (1 if is_given else 2):
        raise RecipeError(f"name one recipe and one asset, and not {' '.join(words)}")
    if len(words) == 2:
        return words[0], words[1]
    if words and (is_asset(words[0]) or not (words[0].endswith((".yaml", ".yml")) or words[0] in available())):
        return recipe, words[0]
    return (words[0] if words else recipe), ""


def show(
    recipe: str,
    asset: str,
    *,
    rows: int = 3,
    first: int = 1,
    find: str = "",
    packed: bool = False,
    page: Path | None = None,
) -> None:
    """Print rows of an asset, or write them as a page; see `command`.

    Raises:
        RecipeError: The recipe has no such asset, or it has no rows of this kind.
        InputRefused: The asset or its tokenizer has not been built.
    """
    workspace = Workspace(recipe)
    asset = asset or _default(workspace.loaded.graph)
    require_asset(asset, workspace.loaded.graph)
    if kind_of(asset) not in KINDS:
        shown = ", ".join(name for name in workspace.loaded.graph if kind_of(name) in KINDS)
        raise RecipeError(f"{asset} has no rows that a model learns from; this recipe's are {shown}")

    if packed and kind_of(asset) == "preference_data":
        raise RecipeError("--packed: pairs are not packed; each answer has a row of its own")
    if find and (packed or kind_of(asset) == "packed_shards"):
        raise RecipeError("--find: a packed row holds many texts; leave --packed out, or choose rows with --first")
    data = _newest(workspace.store, asset, recipe)
    model, request = request_of(workspace, recipe, data)
    page = None if page is None else page.expanduser().absolute()
    wanted = {"first": first - 1, "count": rows, "packed": packed, "find": find, "page": page}
    preview = encoded(request.model_copy(update=wanted))
    context = request.context

    console = make_console()
    count = "" if preview.of is None else f"; {preview.of:,} rows"
    console.print(f"[bold]{asset}[/] {data.version} for {model}, {context} tokens a row{count}", highlight=False)
    if page is not None:
        console.print(f"{len(preview.rows)} rows are in {page}", markup=False)
        return
    print_rows(console, preview)
    if not preview.rows:
        console.print(f"no row holds {find!r}" if find else f"there is no row {first}", markup=False)


def request_of(workspace: Workspace, recipe: str, data: Manifest) -> tuple[str, PreviewRequest]:
    """What to ask for rows of a version, and the model that learns from them.

    Args:
        recipe: As the person named it.
        data: The version, of one of `KINDS`.

    Raises:
        RecipeError: No model learns from it.
        InputRefused: A file of it has changed, or its tokenizer has not been built.
    """
    store, sections = workspace.store, workspace.loaded.recipe
    tokenizer = _tokenizer(store, data, recipe)
    model, context, too_long = _learner(sections, data.asset, workspace.loaded.graph)
    return model, PreviewRequest(
        asset=data.asset,
        data=store.verified_folder(data.asset, data.version, data.digest).absolute(),
        tokenizer=store.verified_folder("tokenizer", tokenizer.version, tokenizer.digest).absolute(),
        context=context,
        seed=sections.seed,
        weights={source.name: source.weight for source in sections.sources},
        mixture=sections.base_model.mixture,
        too_long=too_long,
    )


def print_rows(console: Console, preview: Preview) -> None:
    """Print rows with their notes, and what the colours mean where there are any."""
    if any(piece.kind == "learned" for row in preview.rows for column in row.columns for piece in column.pieces):
        console.print(_legend(console))
    for note in preview.notes:
        console.print(Text(note, style="dim"))
    for row in preview.rows:
        console.print(Rule(Text(row.title), align="left", style="dim"))
        _print_columns(console, row.columns)


def _default(graph: Graph) -> str:
    """The data of the recipe's last model."""
    for kind in KINDS:
        if kind in graph:
            return kind
    raise RecipeError(f"this recipe has no data that a model learns from; its assets are {', '.join(graph)}")


def _newest(store: Store, asset: str, recipe: str) -> Manifest:
    """The newest version, promoted or not: a refused one is looked at most of all."""
    manifest = store.latest(asset)
    if manifest is None:
        raise InputRefused(
            f"{asset} has not been built yet; build it with: gatehouse run -r {shlex.quote(recipe)} --select +{asset}"
        )
    return manifest


def _tokenizer(store: Store, data: Manifest, recipe: str) -> Manifest:
    """The tokenizer that the rows were made with, or that a training would take: the promoted one."""
    made_with, pointer = data.inputs.get("tokenizer"), store.promotion("tokenizer")
    if made_with is not None:
        return store.manifest("tokenizer", made_with.version)
    return store.manifest("tokenizer", pointer.version) if pointer else _newest(store, "tokenizer", recipe)


def _learner(recipe: RecipeSections, asset: str, graph: Graph) -> tuple[str, int, TooLong]:
    """The first model that learns from the rows or from what is made of them, its tokens a row, and its rule."""
    for name, section in recipe.training_sections().items():
        if asset not in upstream_of(name, graph):
            continue
        if isinstance(section, PostTrainingSection):
            return name, section.context, section.too_long
        if isinstance(section, BaseModelSection):
            return name, max(phase.context for phase in section.curriculum), "turns"
    raise RecipeError(f"{asset}: no model of this recipe learns from it")


def encoded(request: PreviewRequest | SourcePreviewRequest) -> Preview:
    """The rows that a process of its own makes."""
    result = subprocess.run(
        [sys.executable, "-m", "training.preview"],
        input=request.model_dump_json().encode(),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **variables(), **legible_environment()},
        check=False,
    )
    if result.returncode:
        raise typer.Exit(result.returncode)  # it has said why
    return Preview.model_validate_json(result.stdout)


def _legend(console: Console) -> Text:
    kinds = {"learned": "learned", "given": "given, not learned", "padding": "padding"}
    parts = (part for kind, name in kinds.items() for part in (_piece(console, Piece(kind=kind, text=name)), "  "))
    return Text.assemble(*parts)


def _print_columns(console: Console, columns: tuple[Column, ...]) -> None:
    """One column as it is, several beside each other."""
    if len(columns) == 1:
        console.print(_text(console, columns[0]))
        return
    table = Table(box=None, expand=True, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.name, ratio=1, overflow="fold")
    table.add_row(*(_text(console, column) for column in columns))
    console.print(table)


def _text(console: Console, column: Column) -> Text:
    total = sum(piece.tokens for piece in column.pieces)
    if not total:
        return Text.assemble(*(_piece(console, piece) for piece in column.pieces))
    counts = Text(f"{column.count('learned')} of {total} tokens are learned\n", style="italic dim")
    return Text.assemble(counts, *(_piece(console, piece) for piece in column.pieces))


def _piece(console: Console, piece: Piece) -> Text:
    """Tokens of one kind; without colours, what is learned stands in brackets."""
    if piece.kind == "border":
        return Text("\n- - - a document begins - - -\n", style="magenta")
    text = piece.text if piece.kind != "padding" or not piece.tokens else f"[{piece.tokens} tokens of padding]"
    if piece.kind == "learned" and (console.no_color or not console.is_terminal):
        text = f"[[{text}]]"
    return Text(text, style=_STYLES[piece.kind])
