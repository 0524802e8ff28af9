"""Files of web servers: what is listed of them, and how they come whole or not at all."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.file_server import FileRequest, FileServer, digest_header, serving
from training.data.sources import fetching, http_files
from training.data.sources.bad_rows import BadRows
from training.data.sources.fetching import fetched
from training.data.sources.reading import Document, read_source
from training.data.sources.remote_files import RemoteFile
from training.data.sources.source_files import list_source
from training.data.sources.source_state import describe_source, source_state
from training.errors import SourceError
from training.specs.raw_corpus import Source

MB = 1 << 20
DATA = random.Random(0).randbytes(3 * MB + 5)
LINES = "".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(100)).encode()
SECRET = "canary-7d1e0f"
_FETCH = """
import sys
from pathlib import Path
from training.data.sources import fetching
from training.data.sources.http_files import http_file
fetching._SYNC_BYTES = 1 << 20
fetching.fetched(http_file(sys.argv[1], "a.txt", "web"), "web", Path(sys.argv[2]))
"""
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_WAITS", (0.0, 0.0, 0.0))
    monkeypatch.setattr(http_files, "_LISTING_WAITS", (0.0, 0.0))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving({"/data/a.txt": DATA, "/data/b.jsonl": LINES}) as server:
        yield server


def source(path: str | tuple[str, ...], **fields: object) -> Source:
    return Source.model_validate({"name": "web", "path": path, **fields})


def listed(server: FileServer, path: str = "/data/a.txt") -> RemoteFile:
    return list_source(source(server.address + path)).remote[0]


def fetch(file: RemoteFile, folder: Path) -> bytes:
    return fetched(file, "web", folder).path.read_bytes()


def refusal(do: Callable[[], object]) -> str:
    with pytest.raises(SourceError) as caught:
        do()
    message = str(caught.value)
    assert len(message) < 2 * 180 and SECRET not in message
    return message


def documents(origin: Source, folder: Path) -> list[Document]:
    return list(read_source(origin, BadRows("fail", folder / "skipped.jsonl"), folder))


def test_a_file_comes_once_and_whole(server: FileServer, tmp_path: Path) -> None:
    file = listed(server)
    assert (file.bytes, file.etag) == (len(DATA), server.etag("/data/a.txt"))
    assert fetch(file, tmp_path) == fetch(file, tmp_path) == DATA
    assert [asked for path, asked, _ in server.requests] == ["bytes=0-0", ""]


def test_a_connection_that_breaks_off_continues_where_it_ended(server: FileServer, tmp_path: Path) -> None:
    server.answers = [lambda request: request.whole(MB), lambda request: request.part(request.start, sent=MB)]
    assert fetch(listed(server), tmp_path) == DATA
    etag = server.etag("/data/a.txt")
    assert server.requests[2:] == [
        ("/data/a.txt", f"bytes={MB}-", etag),
        ("/data/a.txt", f"bytes={2 * MB}-", etag),
    ]
    assert server.sent == len(DATA) + 1  # the first byte, for the listing


@pytest.mark.parametrize("begin", [0, 1, MB // 2])
def test_a_server_that_begins_earlier_than_it_was_asked(server: FileServer, tmp_path: Path, begin: int) -> None:
    server.answers = [lambda request: request.whole(MB), lambda request: request.part(begin)]
    assert fetch(listed(server), tmp_path) == DATA


def test_a_server_that_ignores_ranges(server: FileServer, tmp_path: Path) -> None:
    server.answers = [lambda request: request.whole(MB), FileRequest.whole]
    assert fetch(listed(server), tmp_path) == DATA


def test_a_server_that_begins_later_or_names_no_range(server: FileServer, tmp_path: Path) -> None:
    def unnamed(request: FileRequest) -> None:
        request.answer(206, request.data[request.start :], None, {})

    for wrong in (lambda request: request.part(request.start + 1), unnamed):
        server.answers = [lambda request: request.whole(MB), wrong]
        assert fetch(listed(server), tmp_path / wrong.__name__) == DATA


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 1])
def test_a_file_that_changes_half_way_is_refused(server: FileServer, tmp_path: Path, size: int) -> None:
    def changes(request: FileRequest) -> None:
        request.whole(MB)
        server.files["/data/a.txt"] = random.Random(1).randbytes(size)

    server.answers = [changes]
    assert "/data/a.txt changed since it was listed; start again" in refusal(lambda: fetch(listed(server), tmp_path))


def test_a_file_that_changed_before_it_was_fetched_is_refused(server: FileServer, tmp_path: Path) -> None:
    file = listed(server)
    server.files["/data/a.txt"] = DATA[::-1]
    assert "changed since it was listed" in refusal(lambda: fetch(file, tmp_path))


def test_a_version_that_has_no_strong_mark_is_never_continued(server: FileServer, tmp_path: Path) -> None:
    server.etags["/data/a.txt"] = 'W/"weak"'
    server.answers = [lambda request: request.whole(MB)]
    assert fetch(listed(server), tmp_path) == DATA
    assert [asked for _, asked, _ in server.requests] == ["bytes=0-0", "", ""]


def test_a_job_that_was_killed_fetches_the_rest(server: FileServer, tmp_path: Path) -> None:
    file = listed(server)
    server.answers = [lambda request: request.whole(2 * MB)] + [lambda request: request.part(request.start, sent=0)] * 4
    message = refusal(lambda: fetch(file, tmp_path))
    assert "3 tries brought nothing new" in message and f"{2 * MB:,} of {len(DATA):,} bytes stay" in message
    assert fetch(file, tmp_path) == DATA
    assert server.requests[-1][1] == f"bytes={2 * MB}-"


def test_a_process_that_is_killed_leaves_what_is_on_the_disk(server: FileServer, tmp_path: Path) -> None:
    killed = threading.Event()

    def stalls(request: FileRequest) -> None:
        request.answer(200, request.data, 2 * MB + MB // 2, {"Content-Length": str(len(DATA))})
        request.wfile.flush()
        killed.wait(60)

    file = listed(server)
    server.answers = [stalls]
    process = subprocess.Popen([sys.executable, "-c", _FETCH, file.address, str(tmp_path)], env=_ENVIRONMENT)
    while not any(note.read_bytes() == str(2 * MB).encode() for note in tmp_path.glob("*/on_disk")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed.set()
    assert fetch(file, tmp_path) == DATA
    assert server.requests[-1][1] == f"bytes={2 * MB}-"


def test_bytes_that_may_not_be_on_the_disk_are_fetched_again(server: FileServer, tmp_path: Path) -> None:
    file = listed(server)
    server.answers = [lambda request: request.whole(MB)] + [lambda request: request.part(request.start, sent=0)] * 4
    refusal(lambda: fetch(file, tmp_path))
    (partial,) = tmp_path.glob("*/partial")
    partial.write_bytes(partial.read_bytes() + bytes(MB))  # as a machine that lost its power may leave it
    assert fetch(file, tmp_path) == DATA


def test_slow_progress_is_no_failure(server: FileServer, tmp_path: Path) -> None:
    server.answers = [lambda request: request.part(request.start, sent=MB // 4)] * 11
    assert fetch(listed(server), tmp_path) == DATA


def test_a_server_that_never_ends_its_file_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.answers = [lambda request: request.whole(MB)] * 20
    assert "tries brought nothing new" in refusal(lambda: fetch(listed(server), tmp_path))
    assert len(server.answers) > 10


def test_a_server_that_is_busy_is_asked_again(server: FileServer, tmp_path: Path) -> None:
    server.answers = [lambda request: request.fail(503, {"Retry-After": "0"}), lambda request: request.fail(429)]
    assert fetch(listed(server), tmp_path) == DATA


def test_bytes_that_have_not_the_digest_of_the_server(server: FileServer, tmp_path: Path) -> None:
    server.headers["Repr-Digest"] = digest_header(DATA)
    file = listed(server)
    assert file.sha256 == hashlib.sha256(DATA).hexdigest()

    def damaged(request: FileRequest) -> None:
        request.answer(200, bytes(1) + request.data[1:], None, {})

    server.answers = [damaged]
    assert fetch(file, tmp_path) == DATA
    server.answers = [damaged] * 9
    assert "do not have the digest" in refusal(lambda: fetch(file, tmp_path / "other"))
    assert not list((tmp_path / "other").glob("*/record.json"))


@pytest.mark.parametrize(
    ("header", "message"),
    [("ETag", "neither ETag nor Last-Modified"), ("Content-Range", "no size")],
)
def test_a_server_that_does_not_tell_versions_apart(server: FileServer, header: str, message: str) -> None:
    server.headers[header] = ""
    assert message in refusal(lambda: listed(server))


def test_a_server_that_compresses_unasked(server: FileServer, tmp_path: Path) -> None:
    server.headers["Content-Encoding"] = "gzip"
    assert "compresses it (gzip) although it was asked not to" in refusal(lambda: listed(server))
    server.files["/data/c.jsonl.gz"] = gzip.compress(LINES)  # many servers call the file's own compression that
    origin = source(f"{server.address}/data/c.jsonl.gz")
    assert [document.text for document in documents(origin, tmp_path)][:2] == ["document 0", "document 1"]


def test_what_is_not_there(server: FileServer) -> None:
    assert "/none.txt does not exist (404)" in refusal(lambda: listed(server, "/none.txt"))
    server.server_close()
    server.shutdown()
    assert "a.txt cannot be reached (no connection, ConnectionError)" in refusal(lambda: listed(server))


def test_rows_are_named_as_those_of_a_local_file(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(LINES)
    here = Source(name="web", path=str(tmp_path / "b.jsonl"), licence="MIT")
    assert documents(source(f"{server.address}/data/b.jsonl", licence="MIT"), tmp_path) == documents(here, tmp_path)

    addresses = (f"{server.address}/data/b.jsonl", f"{server.address}/data/a.txt")
    names = [file.name for file in list_source(source(addresses)).remote]
    host = server.address.removeprefix("http://")
    assert names == [f"{host}/data/a.txt", f"{host}/data/b.jsonl"]
    both = list_source(source(addresses, exclude=("*.txt",)))
    assert [file.name for file in both.remote] == names[1:] and both.left_out == {"excluded": 1}


def test_a_bad_row_is_named_by_address_and_line(server: FileServer, tmp_path: Path) -> None:
    server.files["/data/b.jsonl"] = LINES + b"{\n"
    message = refusal(lambda: documents(source(f"{server.address}/data/b.jsonl"), tmp_path))
    assert message.startswith(f"{server.address}/data/b.jsonl:101: is not JSON")


def test_the_state_follows_what_the_server_says(server: FileServer) -> None:
    origin = source(f"{server.address}/data/b.jsonl")
    states = [source_state([origin])]
    assert source_state([origin]) == states[0]
    server.files["/data/b.jsonl"] = LINES[::-1]
    states.append(source_state([origin]))
    server.etags["/data/b.jsonl"] = '"another"'
    states.append(source_state([origin]))
    assert len(set(states)) == 3
    assert describe_source(origin) == "web: 1 file, 2.4 kB"


def test_secrets_are_used_and_never_shown(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("WEB_USER", "WEB_PASSWORD", "WEB_SIGNATURE"):
        monkeypatch.setenv(name, SECRET)
    address = server.address.replace("://", "://${WEB_USER}:${WEB_PASSWORD}@") + "/data/b.jsonl?sig=${WEB_SIGNATURE}"
    server.needs = "Basic Y2FuYXJ5LTdkMWUwZjpjYW5hcnktN2QxZTBm"
    origin = source(address, licence="MIT")
    state = source_state([origin])
    assert len(documents(origin, tmp_path)) == 100
    assert all(path.endswith(SECRET) for path, _, _ in server.requests)

    server.needs = "expired"
    for do in (lambda: source_state([origin]), lambda: documents(origin, tmp_path)):
        message = refusal(do)
        assert message.startswith(f"source web: {server.address}/data/b.jsonl: the server refuses access (403); renew")
    monkeypatch.delenv("WEB_SIGNATURE")
    assert "the environment variable WEB_SIGNATURE is not set" in refusal(lambda: source_state([origin]))

    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in written and SECRET not in caplog.text + state + repr(origin)


def test_a_password_cannot_lead_to_another_server(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_PASSWORD", "p@127.0.0.9/a?b#c:%20")
    server.needs = f"Basic {base64.b64encode(b'me:p@127.0.0.9/a?b#c:%20').decode()}"
    address = server.address.replace("://", "://me:$WEB_PASSWORD@") + "/data/b.jsonl"
    assert list_source(source(address)).remote[0].bytes == len(LINES)


def test_a_credential_that_expires_half_way_is_one_message(server: FileServer, tmp_path: Path) -> None:
    def expires(request: FileRequest) -> None:
        request.whole(MB)
        server.needs = "renewed"

    file = listed(server)
    server.answers = [expires]
    message = refusal(lambda: fetch(file, tmp_path))
    assert "source web: " in message and "the server refuses access (403); renew the credentials" in message
    server.needs = None
    assert fetch(file, tmp_path) == DATA
    assert server.requests[-1][1] == f"bytes={MB}-"


def test_two_files_of_one_name_are_refused(server: FileServer) -> None:
    addresses = (f"{server.address}/data/b.jsonl?page=1", f"{server.address}/data/b.jsonl?page=2")
    assert "of another file; make them two sources" in refusal(lambda: list_source(source(addresses)))
