"""Every mistake of a person's is one clear message, exit code 2, and nothing that was published changes."""

import gzip
import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.jobs.locks import building
from tests.conftest import ROOT, environment
from tests.integration.workspaces import Workspace

TEXT = "A sentence that is long enough to be kept, with words in it. " * 8


@pytest.fixture(scope="module")
def published(data_chain: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A user whose tokenizer and evaluation sets are published and promoted. Tests work on copies."""
    made = data_chain.moved(tmp_path_factory.mktemp("published"))
    for asset in ("packed_shards", "instruction_data", "preference_data", "adapter_data"):
        for folder in made.home.glob(f"*/mine/{asset}*"):
            shutil.rmtree(folder)
    return made


@pytest.fixture
def space(published: Workspace, tmp_path: Path) -> Workspace:
    return published.moved(tmp_path / "mine")


def state(space: Workspace) -> dict[str, str]:
    """What is published, by digest; the links say who last looked and are not part of it."""
    return {
        str(path.relative_to(space.home)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((space.home / "store").rglob("*"))
        if path.is_file() and path.parent.name != "links"
    }


def assert_one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The message is on one line, once, with all of the parts; there is no traceback."""
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    lines = [line for line in done.stdout.splitlines() if parts[0] in line]
    assert len(lines) == 1, done.stdout
    for part in parts:
        assert part in lines[0]


def assert_refused(space: Workspace, arguments: list[str], *parts: str) -> None:
    before = state(space)
    assert_one_message(space.run(*arguments), *parts)
    assert state(space) == before


def missing_folder(space: Workspace) -> None:
    space.write_recipe(space.folder / "nowhere")


def glob_of_nothing(space: Workspace) -> None:
    space.write_recipe(space.folder / "notes" / "*.rst")


def only_empty_files(space: Workspace) -> None:
    for path in space.notes.iterdir():
        path.write_text("")


def only_short_files(space: Workspace) -> None:
    for number, path in enumerate(space.notes.iterdir()):
        path.write_text(f"note {number}")


def truncated_gzip(space: Workspace) -> None:
    data = gzip.compress("".join(f"{number} {TEXT}" for number in range(500)).encode())
    (space.notes / "half.txt.gz").write_bytes(data[: len(data) // 2])


def truncated_parquet(space: Workspace) -> None:
    path = space.notes / "half.parquet"
    pq.write_table(pa.table({"text": [TEXT] * 50}), path)
    path.write_bytes(path.read_bytes()[:-40])


def bad_json_line(space: Workspace) -> None:
    (space.notes / "rows.jsonl").write_text(json.dumps({"text": TEXT}) + "\n{'text': 1}\n")


def wrong_column(space: Workspace) -> None:
    (space.notes / "rows.jsonl").write_text(json.dumps({"body": TEXT}) + "\n")


def invalid_utf8(space: Workspace) -> None:
    (space.notes / "latin.txt").write_bytes(b"first line\n caf\xe9\n")


@pytest.mark.parametrize(("damage", "parts"), [
    (missing_folder, ("nowhere does not exist", "source notes", "correct its path in the recipe")),
    (glob_of_nothing, ("no file matches", "source notes", "notes/*.rst", "correct its path in the recipe")),
    (only_empty_files, ("holds no file to read (left out: ", " empty)", "correct its path in the recipe")),
    (only_short_files, ("no document is left", "too short", "loosen corpus.min_characters in the recipe")),
    (truncated_gzip, ("half.txt.gz", "cannot be read", "repair or exclude it")),
    (truncated_parquet, ("half.parquet", "cannot be read", "repair or exclude it")),
    (bad_json_line, ("rows.jsonl:2", "is not JSON", "repair the line")),
    (wrong_column, ("rows.jsonl:1", "no key 'text', only body", "set text_column")),
    (invalid_utf8, ("latin.txt: line 2 is not UTF-8", "0xe9", "convert the file to UTF-8")),
])  # fmt: skip
def test_bad_sources(space: Workspace, damage: Callable[[Workspace], None], parts: tuple[str, ...]) -> None:
    damage(space)
    before = {path: digest for path, digest in state(space).items() if "/mine/corpus/" in path}
    done = space.run("--select", "+corpus")
    assert_one_message(done, *parts)
    after = state(space)
    assert before.items() <= after.items()
    assert {path for path in after if "/mine/corpus/" in path} == set(before)


def test_the_same_message_through_dagster(space: Workspace) -> None:
    bad_json_line(space)
    before = state(space)
    done = space.command(
        "dagster", "asset", "materialize", "--select", "mine/raw_corpus", GATEHOUSE_RECIPE=str(space.recipe)
    )
    assert done.returncode != 0
    assert re.search(r"rows\.jsonl:2: is not JSON .*; repair the line, or set raw_corpus\.on_bad_row", done.stdout)
    assert state(space) == before


def test_status_goes_on_without_the_sources(space: Workspace) -> None:
    missing_folder(space)
    done = space.command("gatehouse", "status", "-r", str(space.recipe), "--json")
    assert done.returncode == 0, done.stdout
    assert "nowhere does not exist" in json.loads(done.stdout)[0]["why"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--select", "corpuss", "--select", "corpus"], ("--select corpuss", "did you mean corpus?")),
        (["--select", "sft_model+"], ("--select sft_model+", "+name takes what is upstream")),
        (["--select", "corpus", "--launcher", "cluster"], ("'cluster'", "launchers.yaml", "it has local")),
        (["--set", "base_model.stepps=3"], ("base_model.stepps", "did you mean steps?")),
        (["-r", "tinny"], ("'tinny'", "did you mean tiny?")),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], parts: tuple[str, ...]) -> None:
    space = Workspace(tmp_path)
    space.notes.mkdir()
    space.write_recipe()
    assert_one_message(space.run(*arguments), *parts)
    assert not (space.home / "store").exists()


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("gates:", "tokeniser: {}\ngates:", ("tokeniser", "mine.yaml:5", "did you mean tokenizer?")),
        (
            "threshold: 0",
            "threshold: plenty",
            ("gates.raw_corpus.0.threshold", "mine.yaml:7", "'plenty' is not a number"),
        ),
    ],
)
def test_bad_recipes(tmp_path: Path, old: str, new: str, parts: tuple[str, ...]) -> None:
    space = Workspace(tmp_path)
    space.write_recipe()
    space.recipe.write_text(space.recipe.read_text().replace(old, new, 1))
    assert_one_message(space.run(), *parts)


def test_a_tokenizer_swapped_under_the_shards(space: Workspace) -> None:
    path = next(space.asset("tokenizer").glob("versions/*/tokenizer/tokenizer.json"))
    path.write_text(path.read_text().replace("Ġthe", "Ġhte"))
    assert_refused(
        space,
        ["--select", "packed_shards"],
        "tokenizer/tokenizer.json has changed",
        "packed_shards:",
        "--select tokenizer` makes it anew",
    )


def test_an_edited_pointer_and_what_its_message_says_to_do(space: Workspace) -> None:
    pointer = space.asset("corpus") / "promoted.json"
    whole = json.loads(pointer.read_text())
    pointer.write_text("{edited")
    assert_refused(
        space,
        ["--select", "tokenizer"],
        "promoted.json is damaged",
        str(pointer),
        "delete this file and materialize corpus again",
    )
    pointer.unlink()
    done = space.run("--select", "corpus")
    assert done.returncode == 0, done.stdout
    assert json.loads(pointer.read_text())["digest"] == whole["digest"]


def test_a_half_written_manifest(space: Workspace) -> None:
    manifest = next(space.asset("corpus").glob("versions/*/manifest.json"))
    manifest.write_bytes(manifest.read_bytes()[:60])
    assert_refused(
        space,
        ["--select", "corpus"],
        "manifest.json is damaged",
        str(manifest),
        "delete this file and materialize corpus again",
    )


def test_two_runs_of_one_asset(space: Workspace) -> None:
    with building(space.home / "work", "mine", "raw_corpus", "run of the test"):
        assert_refused(
            space,
            ["--select", "raw_corpus", "--force"],
            "raw_corpus is being built by run of the test",
            "wait for it to finish",
        )


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = Workspace(tmp_path).command("gatehouse", "up", "--port", str(port))
    assert_one_message(done, f"port {port} is in use", "choose another one with --port")


@pytest.mark.parametrize("command", [["gatehouse", "status"], ["python", "-m", "pipeline.paths"]])
def test_a_home_that_cannot_be_made(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "home").write_text("a file, no folder")
    done = Workspace(tmp_path).command(*command)
    assert_one_message(done, "set GATEHOUSE_HOME to a folder", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"stage": "raw', "Invalid JSON"),
        ("{}", "stage: Field required"),
        (None, "No such file"),
    ],
)
def test_a_damaged_job(tmp_path: Path, content: str | None, part: str) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_text(content)
    done = subprocess.run(
        [sys.executable, "-m", "training.run", str(path)],
        cwd=ROOT,
        text=True,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert_one_message(done, "broken.json", part)
