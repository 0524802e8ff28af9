"""Files made to do harm: one clear message each, in bounded memory and time, and nothing is written elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration import audited
from tests.integration import hostile_models as models
from tests.integration.hostile_sources import GOOD, HOSTILE, gzip_with_a_path
from training import chat
from training.job import runner as jobs
from training.job.fingerprint import fingerprint
from training.specs.job import Job

# Python with the libraries that read sources holds 0.3 GB, a document of the greatest length up to 1 GB, a row group of
# parquet as much; RLIMIT_DATA stops at 4 GB more than at the start.
MOST_MEMORY = 3 * 2**30


def raw_corpus(folder: Path, path: Path, **source: str) -> audited.Told:
    """The real job over a folder of sources."""
    section = {"sources": [{"name": "notes", **({"path": str(path)} | source if "dataset" not in source else source)}]}
    job = Job(
        stage="raw_corpus",
        asset="raw_corpus",
        recipe="test",
        identity="0" * 64,
        seed=0,
        section=section,
        fingerprint=fingerprint("training.stages.raw_corpus"),
        store=str(folder / "store"),
        attempt=str(folder / "attempt"),
    )
    (folder / "job.json").write_text(job.model_dump_json())
    hub = [Path.home() / ".cache" / "huggingface"] if source else []  # where its library takes locks
    return audited.run(
        jobs.main, [str(folder / "job.json")], folder / "child", path, [folder / "attempt", folder / "store", *hub]
    )


def assert_harmless(job: audited.Told) -> None:
    assert job.of("run", "pickle", "process", "network", "write") == []
    assert job.peak < MOST_MEMORY


def assert_refused(job: audited.Told, *parts: str) -> None:
    assert job.code == 2, job.output[-2000:]
    assert "Traceback" not in job.output
    lines = [line for line in job.output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, job.output[-2000:]
    assert len(lines[0]) < 1000
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "good.txt").write_text(GOOD)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)  # shutil cannot remove folders that are nested this deeply


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_source(tmp_path: Path, notes: Path, make: Callable[[Path], None]) -> None:
    make(notes)
    job = raw_corpus(tmp_path, notes)
    assert_refused(job, *HOSTILE[make])
    assert_harmless(job)
    assert not list((tmp_path / "store").rglob("manifest.json"))


def test_a_path_in_a_gzip_header_is_no_path(tmp_path: Path, notes: Path) -> None:
    gzip_with_a_path(notes)
    job = raw_corpus(tmp_path, notes)
    assert job.code == 0, job.output
    assert_harmless(job)
    assert not list(tmp_path.rglob("evil.txt"))
    assert not (tmp_path.parent / "evil.txt").exists()
    manifest = next((tmp_path / "store").rglob("manifest.json"))
    assert json.loads(manifest.read_bytes())["metrics"]["documents"] == 2


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.model_folder(tmp_path_factory.mktemp("exported") / "model")


@pytest.mark.parametrize("make", models.HOSTILE, ids=lambda make: make.__name__)
def test_an_evaluation_of_a_hostile_model_folder(
    tmp_path: Path, exported: Path, make: Callable[[Path, Path], None]
) -> None:
    job = read_model(tmp_path, exported, models.evaluated, lambda model: make(model, tmp_path / models.CANARY))
    assert_refused(job, models.HOSTILE[make])


@pytest.mark.parametrize(
    "make",
    [
        models.pickle_beside,
        models.model_code_of_an_unknown_kind,
        models.code_map_alone,
        models.tokenizer_code,
        models.other_shape,
        models.slow_tokenizer,
    ],
    ids=lambda make: make.__name__,
)
def test_a_chat_with_a_hostile_model_folder(tmp_path: Path, exported: Path, make: Callable[[Path, Path], None]) -> None:
    job = read_model(tmp_path, exported, chat.main, lambda model: make(model, tmp_path / models.CANARY))
    assert_refused(job, models.HOSTILE[make])


@pytest.mark.parametrize("template", models.TEMPLATES)
def test_a_hostile_chat_template_is_never_run(tmp_path: Path, exported: Path, template: str) -> None:
    def make(model: Path) -> None:
        (model / "chat_template.jinja").write_text(models.TEMPLATES[template])

    job = read_model(tmp_path / "evaluation", exported, models.evaluated, make)
    assert job.code == 0, job.output
    assert "faults: its chat templates are not those that training encodes by" in job.output
    assert read_model(tmp_path / "chat", exported, chat.main, make).code == 0


def read_model(
    folder: Path, exported: Path, reader: Callable[[list[str]], int], make: Callable[[Path], None]
) -> audited.Told:
    """Read a copy of a model folder that was made hostile; nothing of it may run."""
    model = folder / "artifact" / "model"
    shutil.copytree(exported, model)
    make(model)
    arguments = [str(model), "Hello"] if reader is chat.main else [str(model.parent)]
    job = audited.run(reader, arguments, folder / "child", folder / "artifact", timeout=60)
    assert_harmless(job)
    assert not list(folder.rglob(models.CANARY))
    return job
