"""Fixtures of a real server that speaks S3. Tests that use them name this module in `pytest_plugins`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import s3fs

from tests.integration.object_store import BUCKET, SECRET, ObjectServer, serving


@pytest.fixture(scope="session")
def running_server() -> Iterator[tuple[ObjectServer, str]]:
    """The server and its address."""
    server = ObjectServer()
    with serving(server) as address:
        yield server, address


@pytest.fixture
def object_server(running_server: tuple[ObjectServer, str]) -> Iterator[ObjectServer]:
    """The server, behaving."""
    running_server[0].reset()
    yield running_server[0]
    running_server[0].reset()


@pytest.fixture
def credentials(running_server: tuple[ObjectServer, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a person sets to reach the server; it is set in this process too."""
    variables = {
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": running_server[1],
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return variables


@pytest.fixture
def bucket(credentials: dict[str, str], object_server: ObjectServer) -> Any:
    """The server's files as another client sees them; the bucket is empty."""
    client = s3fs.S3FileSystem(use_listings_cache=False)
    if client.exists(BUCKET):
        client.rm(BUCKET, recursive=True)
    client.mkdir(BUCKET)
    return client
