"""One smoke chain, trained once through Dagster's own command line, shared by every end-to-end test."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import BIN, ROOT, environment
from tests.patience import run_command


@dataclass(frozen=True)
class Chain:
    """A home in which the smoke recipe was materialized."""

    home: Path
    seconds: float

    def env(self, **extra: str) -> dict[str, str]:
        return environment(self.home, GATEHOUSE_RECIPE="smoke", **extra)

    def command(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return run_command([str(BIN / arguments[0]), *arguments[1:]], 600, cwd=ROOT, env=self.env(**extra))

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.command("gatehouse", "status", "--json")
        assert done.returncode == 0, done.stdout
        return {status["asset"]: status for status in json.loads(done.stdout)}


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    home = tmp_path_factory.mktemp("smoke")
    for folder in ("dagster", "mlflow"):
        (home / folder).mkdir()
    started = time.monotonic()
    done = Chain(home, 0).command("dagster", "asset", "materialize", "--select", "*")
    assert done.returncode == 0, done.stdout[-6000:]
    return Chain(home, time.monotonic() - started)
