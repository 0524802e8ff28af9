"""One smoke chain, trained once by the command line, shared by every end-to-end test."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conftest import BIN, ROOT, built_once, environment
from tests.patience import run_command

_LIVE, _KEPT = "live", "kept"


@dataclass(frozen=True)
class Chain:
    """A home in which the smoke recipe was materialized."""

    home: Path

    def env(self, **extra: str) -> dict[str, str]:
        return environment(self.home, GATEHOUSE_RECIPE="smoke", **extra)

    def command(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        run = warm.run_command if warm.can_run(arguments, extra) else run_command
        return run([str(BIN / arguments[0]), *arguments[1:]], 600, cwd=ROOT, env=self.env(**extra))

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.command("gatehouse", "status", "--json")
        assert done.returncode == 0, done.stdout
        return {status["asset"]: status for status in json.loads(done.stdout)}


def _build(folder: Path) -> None:
    home = folder / _LIVE
    for name in ("dagster", "mlflow"):
        (home / name).mkdir(parents=True)
    with warm.stand_in() as python:
        command = [str(BIN / "gatehouse"), "run"]
        done = warm.run_command(command, 600, cwd=ROOT, env=Chain(home).env(), python=python)
    assert done.returncode == 0, done.stdout[-6000:]
    for name in ("store", "work"):
        shutil.copytree(home / name, folder / _KEPT / name, ignore=shutil.ignore_patterns("lock", "*.lock"))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The chain, for the tests that give it commands. They run in one process, one after the other."""
    return Chain(built_once(tmp_path_factory, "smoke", _build) / _LIVE)


@pytest.fixture(scope="session")
def kept_chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Store and attempts of the chain as they were built, to be copied and never to be changed."""
    return Chain(built_once(tmp_path_factory, "smoke", _build) / _KEPT)
