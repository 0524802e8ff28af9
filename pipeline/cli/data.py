"""`gatehouse data`: the first documents of an asset or a source, and what was counted of an asset."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from pipeline.cli.console import make_console
from pipeline.cli.data_stats import print_statistics, statistics_of
from pipeline.cli.options import Recipe, new_app
from pipeline.cli.preview import KINDS, encoded, print_rows, request_of
from pipeline.graph import kind_named, require_asset
from pipeline.humanize import nearest
from pipeline.workspace import Workspace
from training.errors import InputRefused, RecipeError
from training.specs.artifacts import Manifest
from training.specs.job import CODE
from training.specs.kinds import kind_of
from training.specs.preview import Column, Piece, Preview, PreviewRow, SourcePreviewRequest
from training.specs.raw_corpus import Source
from training.store.store import Store

_DOCUMENTS = {"raw_corpus": "documents/", "corpus": "train/"}
_ROWS = {"conversations": "train.parquet", "preferences": "train.parquet"}
_PREVIEWED = (*_DOCUMENTS, *_ROWS, *KINDS)
_SIDES = ("chosen", "rejected")

app = new_app("Look at data: the first documents, and what was counted.")
Version = Annotated[str, typer.Option(help="One of its versions, promoted or not; by default the promoted one.")]


@app.command()
def preview(
    name: Annotated[str, typer.Argument(metavar="ASSET|SOURCE", help="An asset of data, or a source of the recipe.")],
    recipe: Recipe = "tiny",
    version: Version = "",
    rows: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 3,
    characters: Annotated[int, typer.Option(min=1, help="Of each document that are shown.")] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a row.")] = False,
) -> None:
    """Show the first documents of an asset, or of a source before anything is built.

    Texts are shown as they are, conversations with what is learned, and packed shards as decoded rows in which a line
    says where a document begins. Of texts and conversations only the files are read that hold these rows.

    Examples: `gatehouse data preview corpus`, `gatehouse data preview corpus --rows 20 --json`,
    `gatehouse data preview tickets -r support.yaml`, `gatehouse data preview packed_shards --version 20260101-...`.

    Exit codes: 0 shown, 2 there is nothing to show.
    """
    workspace = Workspace(recipe)
    if name not in workspace.loaded.graph and (request := _source_request(workspace, name, rows, characters)):
        heading, shown = name, encoded(request)
    else:
        manifest = _version(workspace, name, version, recipe)
        heading = f"{name} {manifest.version}"
        shown = _shown(workspace, recipe, manifest, rows, characters)

    if as_json:
        print(json.dumps([row.model_dump(mode="json") for row in shown.rows], indent=1, ensure_ascii=False))
        return
    console = make_console()
    console.print(heading, style="bold", highlight=False)
    print_rows(console, shown)
    if not shown.rows:
        console.print("there is no document", markup=False)


@app.command()
def stats(
    asset: Annotated[str, typer.Argument(help="An asset of data.")],
    recipe: Recipe = "tiny",
    version: Version = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show what was counted of an asset: documents, bytes, tokens, by source, what was dropped and why, lengths.

    Only its reports are read.

    Examples: `gatehouse data stats corpus`, `gatehouse data stats packed_shards --json`,
    `gatehouse data stats raw_corpus -r support.yaml`.

    Exit codes: 0 shown, 2 there is no such version.
    """
    workspace = Workspace(recipe)
    manifest = _version(workspace, asset, version, recipe)
    statistics = statistics_of(workspace.store, manifest)
    if as_json:
        print(json.dumps(statistics, indent=1, ensure_ascii=False))
    else:
        print_statistics(make_console(), statistics)


def _source_request(workspace: Workspace, name: str, rows: int, characters: int) -> SourcePreviewRequest | None:
    """What to ask for documents of a source; None if there is no source of this name."""
    recipe = workspace.loaded.recipe
    source = next((source for source in recipe.all_sources() if source.name == name), None)
    if source is None:
        return None
    if not isinstance(source, Source):
        return SourcePreviewRequest.model_validate({"rows": source, "count": rows, "characters": characters})
    code = workspace.loaded.files("raw_corpus")[CODE].absolute() if source.function else None
    tokenizer = recipe.tokenizer_of_ids() if source.input_ids is not None else None
    return SourcePreviewRequest(text=source, code=code, tokenizer=tokenizer, count=rows, characters=characters)


def _version(workspace: Workspace, asset: str, version: str, recipe: str) -> Manifest:
    """The version of an asset that was asked for, or the promoted one.

    Raises:
        RecipeError: There is no asset of data of this name.
        InputRefused: It was never built, or no version is promoted and none was named.
        StoreError: It has no such version.
    """
    graph, store = workspace.loaded.graph, workspace.store
    sources = [source.name for source in workspace.loaded.recipe.all_sources()]
    if asset not in graph and (near := nearest(asset, sources)):
        raise RecipeError(f"there is no asset and no source called {asset!r}{near}")
    require_asset(asset, graph)
    named = shlex.quote(recipe)
    if kind_named(kind_of(asset)).is_model:
        raise RecipeError(f"{asset} is a model, and not data; see `gatehouse status {asset} -r {named}`")

    if version:
        return store.manifest(asset, version)
    if (pointer := store.promotion(asset)) is not None:
        return store.manifest(asset, pointer.version)
    latest = store.latest(asset)
    if latest is None:
        raise InputRefused(f"{asset} has not been built yet; build it with: gatehouse run -r {named} --select +{asset}")
    raise InputRefused(f"no version of {asset} is promoted; look at the newest with --version {latest.version}")


def _shown(workspace: Workspace, recipe: str, manifest: Manifest, count: int, characters: int) -> Preview:
    kind = kind_of(manifest.asset)
    if kind in KINDS:
        _, request = request_of(workspace, recipe, manifest)
        return encoded(request.model_copy(update={"count": count}))
    if kind not in _PREVIEWED:
        there_are = ", ".join(name for name in workspace.loaded.graph if kind_of(name) in _PREVIEWED)
        raise RecipeError(f"{manifest.asset} has no documents to show; this recipe's assets that have are {there_are}")

    beginning = {**_DOCUMENTS, **_ROWS}[kind]
    row_of = {"conversations": _conversation, "preferences": _pair}.get(kind, _document)
    with TemporaryDirectory() as folder:
        read = islice(_rows(workspace.store, manifest, beginning, Path(folder)), count)
        return Preview(rows=tuple(row_of(row, characters) for row in read))


def _rows(store: Store, manifest: Manifest, beginning: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of an asset's parquet files, each of which is read and verified when it is its turn."""
    from training.data.tables import read_rows  # pyarrow takes a third of a second

    for name in sorted(name for name in manifest.files if name.startswith(beginning) and name.endswith(".parquet")):
        yield from read_rows(store.verified_file(manifest, name, folder))


def _document(row: Mapping[str, Any], characters: int) -> PreviewRow:
    about = (f"{row['source']}/{row['path']}", row.get("domain"), row["licence"], f"{row['bytes']:,} bytes")
    pieces = (Piece(kind="text", text=_cut(row["text"], characters)),)
    return PreviewRow(title=", ".join(filter(None, about)), columns=(Column(pieces=pieces),))


def _conversation(row: Mapping[str, Any], characters: int) -> PreviewRow:
    pieces = _pieces(json.loads(row["messages"]), characters)
    return PreviewRow(title=f"{row['source']}/{row['where']}", columns=(Column(pieces=pieces),))


def _pair(row: Mapping[str, Any], characters: int) -> PreviewRow:
    prompt = json.loads(row["prompt"])
    columns = (Column(name=side, pieces=_pieces([*prompt, *json.loads(row[side])], characters)) for side in _SIDES)
    return PreviewRow(title=f"{row['source']}/{row['where']}", columns=tuple(columns))


def _pieces(messages: Sequence[Mapping[str, Any]], characters: int) -> tuple[Piece, ...]:
    """Messages, each under its role; those that are learned as learned."""
    pieces: list[Piece] = []
    for message in messages:
        calls = json.dumps(message["tool_calls"], ensure_ascii=False) if message.get("tool_calls") else ""
        text = "\n".join(filter(None, (message["content"], calls)))
        pieces.append(Piece(kind="given", text=f"{message['role']}: "))
        pieces.append(Piece(kind="learned" if message.get("train") else "given", text=_cut(text, characters)))
        pieces.append(Piece(kind="given", text="\n"))
    return tuple(pieces)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} [... {len(text) - characters:,} more]"
