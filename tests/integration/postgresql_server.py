"""A real PostgreSQL server of Debian's package, with a password, that can be stopped and started again."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.jobs.local import free_port

PASSWORD = "canary-3f1c9b"


class PostgreSQL:
    """A server on 127.0.0.1; it refuses to run as root, so there it runs as the user `postgres`."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.port = free_port()
        self._data = folder / "data"
        self._binaries = binaries
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        (folder / "password").write_text(PASSWORD)
        self._run(
            "initdb",
            "-D",
            str(self._data),
            "-U",
            "gatehouse",
            "--auth=scram-sha-256",
            "-E",
            "UTF8",
            f"--pwfile={folder / 'password'}",
        )
        with (self._data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"\nlisten_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{folder}'\n"
            )
        self.start()

    def url(self, database: str) -> str:
        """As a person writes it."""
        return f"postgresql://gatehouse:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(self._data / "log"), "start")

    def stop(self) -> None:
        """As a power cut would: no connection is closed in good order, and the log is recovered at the next start."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "stop")

    def create(self, database: str) -> None:
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "gatehouse", database)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            cwd="/",
            user=self._user,
            text=True,
            env={**os.environ, "PGPASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE if program != "pg_ctl" else None,
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"


@contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A new server, gone afterwards. Skips where PostgreSQL is not installed."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="gatehouse-pg-", dir="/tmp"))
    try:
        server = PostgreSQL(folder, binaries)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path | None:
    if os.geteuid() == 0 and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        return None
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    return debian[-1] if debian else Path(found).parent if found else None
