"""The files of an origin, and the state that stands for them in an identity."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.data.sources import origins
from training.data.sources.origins import origin_files, origin_state
from training.errors import SourceError
from training.specs.imports import Origin

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md", "pytorch_model.bin", "code.py"):
        (folder / name).write_text(f"the content of {name}")
    return folder


def state(folder: Path, cache: Path | None = None) -> str:
    return origin_state(Origin(name=str(folder)), cache)


def test_files_are_sorted_by_what_they_are_for(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_text("the same weights once more")
    files = origin_files(Origin(name=str(folder)))
    assert [path.name for path in files.model] == ["config.json", "model.safetensors"]
    assert [path.name for path in files.tokenizer] == ["tokenizer.json"]
    assert [path.name for path in files.about] == ["README.md"]
    assert set(files.left_out) == {"pytorch_model.bin", "code.py", "consolidated.safetensors"}


def test_one_file_of_weights_takes_the_place_of_shards(folder: Path) -> None:
    (folder / "model-00001-of-00002.safetensors").write_text("x")
    assert "model-00001-of-00002.safetensors" in origin_files(Origin(name=str(folder))).left_out


def test_the_state_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    before = state(folder)
    shutil.copytree(folder, tmp_path / "a copy")
    assert state(tmp_path / "a copy") == before
    (folder / "code.py").write_text("what is not read does not count")
    assert state(folder) == before
    (folder / "config.json").write_text("another")
    assert state(folder) != before


def test_digests_are_kept_until_a_file_changes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, read = tmp_path / "cache" / "digests.json", []
    original = origins.file_entry
    monkeypatch.setattr(origins, "file_entry", lambda path: read.append(path.name) or original(path))

    before = state(folder, cache)
    assert len(read) == 4
    assert state(folder, cache) == before and len(read) == 4

    times = (folder / "config.json").stat()
    (folder / "config.json").write_text("the content of CONFIG.json")
    os.utime(folder / "config.json", ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not changed
    assert state(folder, cache) != before
    assert read[4:] == ["config.json"]

    cache.write_text("{ damaged")
    assert state(folder, cache) == state(folder)


def test_a_path_may_have_a_home_and_variables(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("MODELS", str(folder.parent))
    assert origin_state(Origin(name="~/model")) == origin_state(Origin(name="$MODELS/model")) == state(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"{tmp_path / 'nothing'} is no folder"):
        origin_files(Origin(name=str(tmp_path / "nothing")))
    with pytest.raises(SourceError, match="a name on the hub needs its `revision`"):
        origin_files(Origin(name="somebody/model"))


def test_a_name_on_the_hub_needs_no_network_for_its_state() -> None:
    one = origin_state(Origin(name="somebody/model", revision=COMMIT))
    assert one != origin_state(Origin(name="somebody/model", revision="f" * 40))


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that a snapshot asks for."""

    files = {"config.json": b"{}", "model.safetensors": b"weights", "evil.py": b"raise SystemExit", "x.bin": b"pickle"}
    asked: list[str] = []

    def do_GET(self) -> None:
        self._answer(True)

    def do_HEAD(self) -> None:
        self._answer(False)

    def _answer(self, body: bool) -> None:
        self.asked.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        if self.path.startswith(f"/api/models/somebody/model/revision/{COMMIT}"):
            siblings = [{"rfilename": file} for file in self.files]
            content = json.dumps({"id": "somebody/model", "sha": COMMIT, "siblings": siblings}).encode()
        elif self.path.startswith(f"/api/models/somebody/model/tree/{COMMIT}"):
            tree = [{"type": "file", "path": file, "size": len(data), "oid": f"{len(data):040x}"}
                    for file, data in self.files.items()]  # fmt: skip
            content = json.dumps(tree).encode()
        elif self.path.startswith(f"/somebody/model/resolve/{COMMIT}/") and name in self.files:
            content = self.files[name]
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{len(content):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield _Hub
    server.shutdown()
    server.server_close()


def test_a_repository_of_the_hub_is_fetched_at_its_commit_without_code_and_pickles(hub: type[_Hub]) -> None:
    files = origin_files(Origin(name="somebody/model", revision=COMMIT))
    assert [path.name for path in files.model] == ["config.json", "model.safetensors"]
    assert files.left_out == ()
    assert not [path for path in hub.asked if path.endswith(("evil.py", "x.bin"))]


def test_a_repository_that_the_hub_does_not_give_is_one_clear_error(hub: type[_Hub]) -> None:
    with pytest.raises(SourceError, match="the hub does not give somebody/other at 012345678"):
        origin_files(Origin(name="somebody/other", revision=COMMIT))
